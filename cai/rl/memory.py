"""What a PPO run will need of memory, worked out before anything is loaded, and what there is.

Weights, gradients and optimiser states are exact; activations and the cache of sampling are estimates of the largest
arrays. `benchmarks/memory.py` compares them with what a run really takes.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from cai.errors import ModelError
from cai.rl.rollout import ROLLOUT_TOKENS
from cai.rl.settings import PPOSettings

__all__ = ["Budget", "budget", "check_budget", "free_bytes"]

_GIB = 2**30
_ADAM = 4  # copies of a trained network in float32: weights, gradients, and Adam's two moments
# Floats kept for the backward pass per token and layer, in hidden sizes: inputs of norms and projections, queries,
# keys, values, attention's output; and the MLP's, in its own width.
_KEPT, _KEPT_MLP = 10, 4


@dataclass(frozen=True, slots=True)
class Budget:
    """Bytes: `networks` with gradients and optimiser states, `activations` of the largest pass of training, `cache` of
    keys and values while sampling.
    """

    networks: int
    activations: int
    cache: int

    @property
    def peak(self) -> int:
        """Sampling and training take turns."""
        return self.networks + max(self.activations, self.cache)

    def __str__(self) -> str:
        networks, activations, cache = (_size(n) for n in (self.networks, self.activations, self.cache))
        parts = f"networks and optimisers {networks}, activations {activations}, while sampling {cache}"
        return f"about {_size(self.peak)} ({parts})"


def budget(
    settings: PPOSettings,
    config: PreTrainedConfig,
    num_parameters: int,
    *,
    num_frozen: int = 0,
    num_reward_models: int = 1,
    longest_prompt: int,
    max_tokens: int,
) -> Budget:
    """For a policy of `num_parameters` and a value network, reference and reward model of about as many. Where
    `num_frozen` of them are frozen, these are there once, and reference, reward model and value lie over them too. The
    reward model may be an ensemble of `num_reward_models`. A training pass has at most `max_tokens` tokens, or the
    longest row if that is more.
    """
    text = config.get_text_config()
    hidden, layers, vocabulary = text.hidden_size, text.num_hidden_layers, text.vocab_size
    heads = text.num_attention_heads
    cached = getattr(text, "num_key_value_heads", heads) * (getattr(text, "head_dim", None) or hidden // heads)
    wide = getattr(text, "intermediate_size", None) or 4 * hidden
    half = 2 if settings.dtype == "bfloat16" else 4
    length = longest_prompt + settings.max_new_tokens
    num_learning = 1 if settings.value == "shared" else 2
    tokens = max(max_tokens, length)
    inside = (_KEPT * hidden + _KEPT_MLP * wide) * half  # of one layer
    kept = (layers * hidden * half + inside if settings.activation_checkpointing else layers * inside) * num_learning
    logits = 3 * vocabulary * 4  # as they are, upcast or exponentiated, and their gradient
    rows = min(settings.batch_size, max(ROLLOUT_TOKENS * settings.max_batch_tokens // length, 1))
    num_trained = num_parameters - num_frozen
    # Apart, reference and reward model are whole networks; over one base they are that base, and an adapter.
    if num_frozen:
        frozen = half * num_frozen + 4 * num_reward_models * num_trained
    else:
        frozen = half * (1 + num_reward_models) * num_trained
    return Budget(
        networks=4 * _ADAM * num_learning * num_trained + frozen,
        activations=tokens * (kept + logits),
        cache=rows * length * layers * 2 * cached * half,
    )


def free_bytes(device: torch.device | str) -> int | None:
    """Memory that is free on a device; None where nobody says."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def check_budget(needed: Budget, free: int | None) -> str:
    """A line that says what is needed and what there is. Raises ModelError when the networks alone do not fit."""
    if free is None:
        return f"ppo: needs {needed}"
    line = f"ppo: needs {needed}; {_size(free)} free"
    if needed.networks > free:
        raise ModelError(f"{line}: a smaller model, adapters (lora_rank), value=shared or dtype=bfloat16 need less")
    if needed.peak > free:
        line += ", which may not do: a smaller max_batch_tokens needs less, and so does activation_checkpointing=true"
    return line


def _size(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB" if num_bytes >= _GIB else f"{num_bytes / 2**20:.0f} MiB"
