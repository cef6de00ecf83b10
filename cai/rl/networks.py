"""The networks of PPO: each with weights of its own, or all over one copy of the SL-CAI weights.

Over one base the reference is that base itself, the policy has an adapter, the reward model has that of the reward
stage, and the value starts as a copy of the latter, with a head of its own. Optimisers hold adapters and heads alone.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from cai.errors import ModelError
from cai.models.digest import model_digest
from cai.models.loading import load_causal_lm, load_config, load_tokenizer, pick_device, save_model
from cai.models.lora import add_adapter, check_adapter, load_adapter, load_trained, merge, trained_parameters, view
from cai.records import seed_of
from cai.rl.memory import Budget, budget, check_budget, free_bytes
from cai.rl.models import (
    ADAPTER,
    Policy,
    RewardModel,
    batch_budget,
    load_scalar,
    member_folders,
    read_constants,
    recompute_activations,
    score_head,
)
from cai.rl.settings import PPOSettings
from cai.rl.values import SharedValue, Value, ValueModel

__all__ = ["Networks", "OneBase", "load_networks", "save_policy"]


@dataclass(frozen=True, slots=True)
class Networks:
    """What a PPO trainer works with; scores count `reward_scale` times."""

    policy: Policy
    reference: Policy
    value: Value
    reward: RewardModel
    reward_scale: float


def load_networks(settings: PPOSettings, sft: Path, reward: Path, *, longest_prompt: int, scaled: bool) -> Networks:
    """From the model folders of SL-CAI and of the reward model; says first what they need of memory. What is trained is
    in float32, what is frozen in `settings.dtype`. `scaled`: scores are divided by their spread.

    Raises ModelError when they cannot fit, or when adapters are wanted and the reward model has none.
    """
    device, temperature = pick_device(settings.device), settings.temperature
    needed = _needed(settings, sft, reward, longest_prompt, device)
    print(check_budget(needed, free_bytes(device)), file=sys.stderr)
    source: _Source = (OneBase if settings.lora_rank else _Apart)(settings, sft, reward, device)
    model = source.policy()
    policy, scorer = Policy(model, temperature=temperature), source.reward()
    scale = 1 / scorer.std if scaled and scorer.std > 0 else 1.0
    value: Value
    if settings.value == "shared":
        value = SharedValue(policy, coefficient=settings.value_coefficient)
    else:
        value = ValueModel(source.critic())
        factor = scale * scorer.constants.gain
        value.set_head(factor * score_head(value.model).weight[0], factor * scorer.offset)
    if settings.activation_checkpointing:
        for network in (model, value.model) if isinstance(value, ValueModel) else (model,):
            recompute_activations(network)
    return Networks(policy, Policy(source.reference(), temperature=temperature), value, scorer, scale)


def _needed(settings: PPOSettings, sft: Path, reward: Path, longest_prompt: int, device: str) -> Budget:
    """The memory that the run needs, from the configurations alone."""
    config = load_config(sft)
    with torch.device("meta"):  # a tree of modules without weights
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    if settings.lora_rank:
        _add_policy_adapter(model, settings)
    return budget(
        settings, config, model.num_parameters(),
        num_frozen=model.num_parameters() - sum(p.numel() for p in trained_parameters(model)),
        num_reward_models=read_constants(reward).num_models,
        longest_prompt=longest_prompt,
        max_tokens=batch_budget(settings.max_batch_tokens, device),
    )  # fmt: skip


def save_policy(policy: Policy, settings: PPOSettings, sft: Path, tokenizer: PreTrainedTokenizerBase, to: Path) -> None:
    """Write the policy as a plain model, with its adapter, if it has one, merged into the weights in folder `sft`."""
    model = policy.model
    if settings.lora_rank:
        model = load_causal_lm(sft)
        _add_policy_adapter(model, settings)
        load_trained(model, policy.state_dict())
        merge(model)
    save_model(model, tokenizer, to)


class _Source(Protocol):
    """Gives the four networks; each is asked for once at most."""

    def policy(self) -> PreTrainedModel: ...

    def reference(self) -> PreTrainedModel: ...

    def reward(self) -> RewardModel: ...

    def critic(self) -> PreTrainedModel: ...


class _Apart:
    """Every network has weights of its own."""

    def __init__(self, settings: PPOSettings, sft: Path, reward: Path, device: str) -> None:
        self._sft, self._reward, self._device, self._dtype = sft, reward, device, settings.dtype

    def policy(self) -> PreTrainedModel:
        return load_causal_lm(self._sft, device=self._device)

    def reference(self) -> PreTrainedModel:
        return load_causal_lm(self._sft, dtype=self._dtype, device=self._device)

    def reward(self) -> RewardModel:
        return RewardModel.load(self._reward, dtype=self._dtype, device=self._device)

    def critic(self) -> PreTrainedModel:
        return load_scalar(self._reward, device=self._device)


class OneBase:
    """All networks over one copy of the weights in folder `sft`."""

    def __init__(self, settings: PPOSettings, sft: Path, reward: Path, device: str) -> None:
        self._digest = model_digest(sft)
        self._settings, self._reward = settings, reward
        self._constants = read_constants(reward)
        for folder in member_folders(reward, self._constants.num_models):
            check_adapter(folder / ADAPTER, base=self._digest)
        self.base = load_causal_lm(sft, dtype=settings.dtype, device=device)

    def policy(self) -> PreTrainedModel:
        """With a new adapter."""
        model = view(self.base)
        _add_policy_adapter(model, self._settings)
        return model

    def reference(self) -> PreTrainedModel:
        """The base itself."""
        return self.base

    def reward(self) -> RewardModel:
        """With the adapters of the reward stage; of an ensemble, all of them."""
        models = [self._scalar(folder) for folder in member_folders(self._reward, self._constants.num_models)]
        for parameter in (p for model in models for p in trained_parameters(model)):
            parameter.data = parameter.data.to(self.base.dtype)
            parameter.requires_grad_(False)
        reward = RewardModel(models[0], load_tokenizer(self._reward), others=models[1:])
        reward.constants = self._constants
        return reward

    def critic(self) -> PreTrainedModel:
        """A copy of the (first) reward model's adapter and head, to be trained."""
        return self._scalar(self._reward)

    def _scalar(self, folder: Path) -> PreTrainedModel:
        """The base's trunk under a scalar head, with the adapter that belongs to `folder`."""
        with torch.device("meta"):
            config = load_config(folder)
            model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
        trunk = view(self.base).base_model
        if type(trunk) is not type(model.base_model):
            names = type(trunk).__name__, type(model.base_model).__name__
            raise ModelError(f"{folder}: a reward model's {names[1]} cannot be laid over a {names[0]}; use lora_rank=0")
        setattr(model, model.base_model_prefix, trunk)
        head = nn.Linear(score_head(model).in_features, 1, bias=False, device=self.base.device)
        model.score = head
        load_adapter(model, folder / ADAPTER, base=self._digest, head=head)
        return model


def _add_policy_adapter(model: PreTrainedModel, settings: PPOSettings) -> None:
    seed = seed_of(settings.seed, "policy adapter")
    add_adapter(model, rank=settings.lora_rank, alpha=settings.lora_alpha, seed=seed)
