"""The networks of reward learning and PPO around Hugging Face models: reward head, value head, response log-probs.

Rows are right-packed: prompt, then response, then padding. Causal attention never looks ahead, so real tokens do not
see the padding, no attention mask is needed, and positions count from 0. What is padding follows from lengths alone,
never from token ids, so a pad token that equals the end-of-turn token is harmless.

Shape letters: B = rows, L = tokens of the longest row, D = hidden size, V = vocabulary, M = response tokens of a batch.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer

from cai.errors import ModelError, unknown
from cai.models.digest import check_scorable
from cai.models.flat import flat_states, is_plain_llama
from cai.models.loading import encode_dialogue, end_of_turn_id, load_classifier, load_tokenizer, save_model
from cai.models.lora import load_trained, trained_parameters, trained_state
from cai.records import from_json, read_json, to_json, write_json
from cai.rl.losses import selective_log_softmax
from cai.rl.reward_scores import Constants, Head, ensemble_scores, pool_rewards
from cai.types import Prompt

__all__ = [
    "ADAPTER",
    "Packed",
    "Policy",
    "RewardModel",
    "Row",
    "autocast",
    "batch_budget",
    "head_outputs",
    "load_scalar",
    "member_folders",
    "pack",
    "plan_batches",
    "read_constants",
    "recompute_activations",
    "score_head",
    "states",
]

REWARD_FILE = "reward.json"
ADAPTER = "adapter"  # the folder of an adapter, inside that of the model that it was merged into
_CPU_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Row:
    """Token ids of a prompt and a response to it; `ids[num_prompt:]` is the response, which is never empty."""

    ids: list[int]
    num_prompt: int


@dataclass(frozen=True, slots=True)
class Packed:
    """Rows as tensors: `ids` (B, L), `last` (B) index of each row's last token, `predicts` (B, L) bool, true at the
    positions whose next token belongs to the response, `targets` (M) those next tokens, row by row.
    """

    ids: Tensor
    last: Tensor
    predicts: Tensor
    targets: Tensor


def pack(rows: Sequence[Row], device: torch.device | str = "cpu") -> Packed:
    """Right-packed tensors of `rows`. Padding is id 0: it is never read, so any id does."""
    length = max(len(row.ids) for row in rows)
    ids = torch.tensor([row.ids + [0] * (length - len(row.ids)) for row in rows])
    sizes = torch.tensor([len(row.ids) for row in rows])
    starts = torch.tensor([row.num_prompt for row in rows])
    columns = torch.arange(length)
    predicts = (columns >= starts[:, None] - 1) & (columns < sizes[:, None] - 1)
    targets = torch.roll(ids, -1, dims=1)[predicts]
    return Packed(ids.to(device), (sizes - 1).to(device), predicts.to(device), targets.to(device))


def plan_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, shortest first, each of at most `max_tokens` padded tokens (or one row)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= max_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def batch_budget(max_tokens: int, device: torch.device | str) -> int:
    """Padded tokens of a forward pass: `max_tokens`, or less on a CPU, which gains nothing from larger batches and
    falls out of its caches.
    """
    return min(max_tokens, _CPU_TOKENS) if torch.device(device).type == "cpu" else max_tokens


def autocast(device: torch.device | str, dtype: str) -> AbstractContextManager[Any]:
    """Mixed precision: with `dtype` bfloat16, matrix products run in it while weights and losses stay in float32."""
    return torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=dtype == "bfloat16")


def recompute_activations(model: PreTrainedModel) -> None:
    """Activation checkpointing (Chen et al. 2016): layers keep their input alone for the backward pass, which computes
    the rest again. ModelError for an architecture that has no such layers.
    """
    try:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except ValueError:
        raise ModelError(f"{type(model).__name__} has no activation checkpointing; use it without") from None
    # Hugging Face's layers recompute in training mode alone, in which a network here never is: it would drop out.
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.forward = partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *args: Any, **settings: Any) -> Any:
    """`forward` of a layer, computed again in the backward pass where there will be one."""
    if not torch.is_grad_enabled():
        return forward(*args, **settings)
    return checkpoint(forward, *args, use_reentrant=False, **settings)


def states(model: PreTrainedModel, batch: Packed, where: Tensor) -> Tensor:
    """The trunk's last hidden states at the positions `where` (B, L) bool, row by row: (where.sum(), D)."""
    if is_plain_llama(model):
        real = torch.arange(batch.ids.shape[1], device=batch.ids.device) <= batch.last[:, None]
        return flat_states(model, batch.ids, real, where)
    hidden: Tensor = model.base_model(input_ids=batch.ids, use_cache=False).last_hidden_state
    return hidden[where]


class Policy:
    """A causal language model whose responses get log-probabilities at the temperature they were sampled at."""

    def __init__(self, model: PreTrainedModel, *, temperature: float = 1.0) -> None:
        self.model = model.train(False)  # no dropout in any network: the first minibatch's ratio must be 1
        self.temperature = temperature
        self.has_plain_head = _head_is_plain(model)

    def logp(self, batch: Packed) -> Tensor:
        """Log-probability of every response token, (M), row by row; logits are made for those positions alone."""
        if self.has_plain_head:
            return self.logp_of(states(self.model, batch, batch.predicts), batch)
        # The architecture does more to logits than the matrix product: let it, at the columns that matter.
        columns = batch.predicts.any(0).nonzero().squeeze(1)
        output = self.model(input_ids=batch.ids, use_cache=False, logits_to_keep=columns)
        return selective_log_softmax(output.logits[batch.predicts[:, columns]], batch.targets, self.temperature)

    def logp_of(self, hidden: Tensor, batch: Packed) -> Tensor:
        """The same from the trunk's states (M, D) before every response token, where the output head is plain."""
        return selective_log_softmax(_output_head(self.model)(hidden), batch.targets, self.temperature)

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the policy's optimiser moves."""
        return trained_parameters(self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights, without those that are frozen."""
        return trained_state(self.model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put weights back."""
        load_trained(self.model, state)


@torch.no_grad()
def _head_is_plain(model: PreTrainedModel) -> bool:
    """Whether logits are just `head(hidden)`; some families scale or cap them (Gemma 2, Granite, Cohere)."""
    ids = torch.arange(2, device=model.device)[None]
    with autocast(model.device, str(model.dtype).removeprefix("torch.")):
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        return torch.equal(_output_head(model)(hidden), model(input_ids=ids, use_cache=False).logits)


def _output_head(model: PreTrainedModel) -> nn.Module:
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if not isinstance(head, nn.Module):
        raise ModelError(f"{type(model).__name__} has no output embeddings: it is not a causal language model")
    return head


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The scalar head of a sequence classification model of one label."""
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or head.out_features != 1:
        raise ModelError(f"{type(model).__name__} has no scalar head `score`: needed is a decoder-only model")
    return head


def head_outputs(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """The scalar head at states (..., D), (...), in float32: bfloat16 has steps of 1/64 between 2 and 4."""
    head = score_head(model)
    with torch.autocast(hidden.device.type, enabled=False):
        bias = None if head.bias is None else head.bias.float()
        return linear(hidden.float(), head.weight.float(), bias).squeeze(-1)


def load_scalar(folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> PreTrainedModel:
    """The sequence classification model of one label in `folder`. Raises ModelError when its head is not there."""
    model = load_classifier(folder, dtype=dtype, device=device, new_head=False)
    score_head(model)
    return model


class RewardModel:
    """A scalar head on a language model's trunk: score = gain * (head(hidden state of the last token) + offset).

    Offset (demonstrations score 0 on average, InstructGPT section 3.2) and gain are kept in `reward.json` beside the
    Hugging Face files, because the head of a sequence classification model has no bias: one added to it would be lost
    on reload. `cai.rl.reward_scores` has what else is in there, and how the models of an ensemble make one score.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        others: Sequence[PreTrainedModel] = (),
        **constants: Any,
    ) -> None:
        """`others` are the other models of an ensemble, `constants` the fields of `reward_scores.Constants`."""
        self.model = model
        self.others = list(others)
        self.tokenizer = tokenizer
        self.constants = Constants(**constants)

    @property
    def offset(self) -> float:
        """Added to the first model's output."""
        return self.constants.offset

    @property
    def std(self) -> float:
        """Spread of the scores over the SFT policy's own samples, for whoever wants rewards of unit scale."""
        return self.constants.std

    @classmethod
    def from_language_model(
        cls, path: Path | str, *, seed: int, device: str = "cpu", head: Head = "last", pessimism: float = 0.0
    ) -> Self:
        """The trunk of a causal language model with a new head, drawn from N(0, 1 / (d + 1)) (Stiennon et al. 2020,
        appendix B; the root that the paper's formula lacks is in their code). ModelError for a type of model that
        transformers has no sequence classification for.
        """
        check_scorable(path)
        tokenizer = load_tokenizer(path)
        model = load_classifier(path, dtype="float32", device="cpu", new_head=True)
        weight = score_head(model).weight
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            weight.copy_(noise / math.sqrt(weight.shape[1] + 1))
        # Hugging Face's own forward reads the score at the last id that is not this one, so it must not be the
        # end-of-turn token, which it is in a tokenizer without a padding token of its own.
        spare = [i for i in (tokenizer.pad_token_id, 0, 1) if i is not None and i != end_of_turn_id(tokenizer)]
        model.config.get_text_config().pad_token_id = spare[0]
        return cls(model.to(torch.device(device)), tokenizer, head=head, pessimism=pessimism)  # type: ignore[arg-type]

    @classmethod
    def load(cls, folder: Path | str, *, dtype: str = "float32", device: str = "cpu") -> Self:
        """Read what `save` wrote. A folder without `reward.json` is a ModelError: its scores would lack the offset."""
        constants = read_constants(folder)
        members = member_folders(folder, constants.num_models)
        first, *others = [load_scalar(path, dtype=dtype, device=device) for path in members]
        reward = cls(first, load_tokenizer(folder), others=others)
        reward.constants = constants
        return reward

    def save(self, folder: Path) -> None:
        """Write the Hugging Face files and `reward.json`; the other models of an ensemble go into member-2/, ..."""
        models = (self.model, *self.others)
        for path, model in zip(member_folders(folder, len(models)), models, strict=True):
            save_model(model, self.tokenizer, path)
        write_json(folder / REWARD_FILE, to_json(self.constants))

    def encode(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Row]:
        """Prompt and response, closed by the end-of-turn token, as token ids."""
        pairs = zip(prompts, responses, strict=True)
        return [Row(*encode_dialogue(self.tokenizer, prompt.turns, response)) for prompt, response in pairs]

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str], *, max_batch_tokens: int = 16384) -> Tensor:
        """Score of each response, (len(prompts)), float32 on the CPU."""
        return self.score_rows(self.encode(prompts, responses), max_batch_tokens=max_batch_tokens)

    def score_rows(self, rows: Sequence[Row], *, max_batch_tokens: int = 16384) -> Tensor:
        """Score of each row, (len(rows)), float32 on the CPU."""
        return ensemble_scores(self.raw_scores(rows, max_batch_tokens=max_batch_tokens), self.constants)

    @torch.no_grad()
    def raw_scores(self, rows: Sequence[Row], *, max_batch_tokens: int = 16384) -> Tensor:
        """What the head of each model gives each row, (models, len(rows)), float32 on the CPU: the first model's and
        then the others' outputs before offset and gain.
        """
        scores = torch.empty(1 + len(self.others), len(rows))
        device = self.model.device
        for indices in plan_batches([len(row.ids) for row in rows], batch_budget(max_batch_tokens, device)):
            batch = pack([rows[i] for i in indices], device)
            for number, model in enumerate((self.model, *self.others)):
                scores[number, indices] = self._outputs(model, batch).cpu()
        return scores

    def _outputs(self, model: PreTrainedModel, batch: Packed) -> Tensor:
        if self.constants.head == "last":  # the head at one token per row is enough
            last = torch.arange(batch.ids.shape[1], device=batch.ids.device) == batch.last[:, None]
            return head_outputs(model, states(model, batch, last))
        response = torch.roll(batch.predicts, 1, dims=1)  # the tokens themselves, not the positions before them
        outputs = torch.zeros(response.shape, device=response.device)
        outputs[response] = head_outputs(model, states(model, batch, response))
        return pool_rewards(outputs, response, cast(Head, self.constants.head))


def read_constants(folder: Path | str) -> Constants:
    """What `reward.json` in the folder of a reward model says. Raises ModelError when there is none."""
    path = Path(folder) / REWARD_FILE
    if not path.is_file():
        raise ModelError(f"{folder}: no {REWARD_FILE}: not a reward model of the reward stage")
    constants = from_json(Constants, read_json(path), str(path))
    if constants.head not in get_args(Head):
        raise ModelError(f"{path}: {unknown('head', constants.head, get_args(Head))}")
    return constants


def member_folders(folder: Path | str, num_models: int) -> list[Path]:
    """Where the models of an ensemble are."""
    return [Path(folder), *(Path(folder) / f"member-{number}" for number in range(2, num_models + 1))]
