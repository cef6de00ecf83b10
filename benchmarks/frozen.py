"""One PPO update on a rollout that is fixed beforehand, by this project's trainer: what `trl_golden.py` has TRL do too.

The rollout has responses that end, some after a single token, and responses that are cut off; the policy is not the
reference; the value starts as a copy of the reward model, as TRL's does. The end-of-turn token has id 0, which is also
what this project pads with: nothing may depend on it. Weights are drawn from seeds, name by name: none need be stored.

Shape letters: B = responses, T = response tokens (padded), S = optimiser steps, P = parameters of a network.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerBase

from cai.rl import ppo
from cai.rl.models import Policy, RewardModel, Row, pack
from cai.rl.ppo import PPOTrainer
from cai.rl.rollout import Rollout, Update
from cai.rl.settings import PPOSettings
from cai.rl.values import ValueModel

END, PAD = 0, 1  # PAD is TRL's: it knows padding by its id
VOCABULARY = 24
NUM_ROWS, MAX_NEW_TOKENS = 16, 10
TEMPERATURE = 0.7
LEARNING_RATE, VALUE_LEARNING_RATE = 2e-3, 3e-3


@dataclass(frozen=True)
class Case:
    """A number of steps, and whether the rollout comes from an older policy than the one that learns, so that ratios
    are away from 1 and some are clipped already in the first minibatch.
    """

    name: str
    num_epochs: int
    num_minibatches: int
    stale: bool

    @property
    def permutations(self) -> list[list[int]]:
        """The order of the rows in each epoch."""
        generator = torch.Generator().manual_seed(7)
        return [torch.randperm(NUM_ROWS, generator=generator).tolist() for _ in range(self.num_epochs)]


CASES = (Case("update", 4, 4, stale=False), Case("step", 1, 1, stale=True))


@dataclass(frozen=True)
class Networks:
    """Policy, the policy that sampled, reference, reward model and value, which is a copy of the reward model."""

    policy: LlamaForCausalLM
    sampler: LlamaForCausalLM
    reference: LlamaForCausalLM
    reward: LlamaForSequenceClassification
    value: LlamaForSequenceClassification


@dataclass(frozen=True)
class Outcome:
    """What an update came to: scores (B) as the reward model gave them, gradients (S, P) and the change of the weights
    (P) of policy and value, and averages over the steps by the names of `cai.rl.settings.DIAGNOSTICS`.
    """

    scores: Tensor
    gradients: dict[str, Tensor]
    changes: dict[str, Tensor]
    averages: dict[str, float]


def randomise(model: nn.Module, seed: int, scale: float) -> None:
    """Add noise of `scale` to all weights, drawn from `seed`, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in sorted(model.named_parameters()):
        parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))


def networks(stale: bool) -> Networks:
    """The networks before the update."""
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, pad_token_id=PAD, num_labels=1,
        bos_token_id=None, eos_token_id=END,
    )  # fmt: skip
    reference = LlamaForCausalLM(config).eval()
    reward = LlamaForSequenceClassification(config).eval()
    for seed, model in enumerate((reference, reward)):
        for name, parameter in model.named_parameters():
            parameter.data.fill_(1.0 if "norm" in name else 0.0)
        randomise(model, seed, 0.25)
    policy = copy.deepcopy(reference)
    randomise(policy, 2, 0.02)
    sampler = copy.deepcopy(policy)
    if stale:
        randomise(sampler, 3, 0.02)
    return Networks(policy, sampler, reference, reward, copy.deepcopy(reward))


def rows() -> list[Row]:
    """The frozen rows: prompts of 1-7 tokens; a third cut off, two of one token, one that ends just in time."""
    generator = torch.Generator().manual_seed(5)

    def tokens(count: int) -> list[int]:
        return torch.randint(2, VOCABULARY, (count,), generator=generator).tolist()

    lengths = [MAX_NEW_TOKENS if row % 3 == 0 else 2 + row % 7 for row in range(NUM_ROWS)]
    lengths[1] = lengths[8] = 1
    lengths[2] = MAX_NEW_TOKENS
    found = []
    for row, length in enumerate(lengths):
        prompt = tokens(1 + row % 7)
        response = tokens(length) if row % 3 == 0 else [*tokens(length - 1), END]
        found.append(Row(prompt + response, len(prompt)))
    return found


def flat(parameters: Iterator[nn.Parameter], of: str = "data") -> Tensor:
    """Weights, or with `of="grad"` gradients, as one vector (P)."""
    return torch.cat([getattr(p, of).detach().flatten().clone() for p in parameters])


def frozen_rollout(policy: Policy, given: Sequence[Row]) -> Rollout:
    """`given` as if `policy` had sampled it."""
    lengths = torch.tensor([len(row.ids) - row.num_prompt for row in given])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    logp = torch.zeros(mask.shape)
    with torch.no_grad():
        logp[mask] = policy.logp(pack(given))
    return Rollout(list(given), mask.float(), logp, torch.tensor([row.ids[-1] == END for row in given]))


def our_trainer(case: Case, nets: Networks, given: Sequence[Row], **changes: Any) -> PPOTrainer:
    """This project's trainer at the settings that TRL gets too; a row that was cut off is scored as it is."""
    numbers: dict[str, Any] = {
        "seed": 0, "batch_size": NUM_ROWS, "minibatch_size": NUM_ROWS // case.num_minibatches, "beta": 0.3,
        "num_epochs": case.num_epochs, "learning_rate": LEARNING_RATE, "value_learning_rate": VALUE_LEARNING_RATE,
        "num_warmup_updates": 0, "max_grad_norm": 1e9, "max_new_tokens": MAX_NEW_TOKENS, "temperature": TEMPERATURE,
        "missing_eos_penalty": 0.5, "device": "cpu",
    }  # fmt: skip
    scorer = RewardModel(nets.reward, PreTrainedTokenizerBase())
    return PPOTrainer(
        policy=Policy(nets.policy, temperature=TEMPERATURE),
        reference=Policy(nets.reference, temperature=TEMPERATURE),
        value=ValueModel(nets.value),
        reward=lambda _: scorer.score_rows(given),
        reward_scale=1.0,
        stop_ids=[END],
        settings=PPOSettings(**numbers | changes),
    )


def our_update(case: Case, given: Sequence[Row], orders: Sequence[Sequence[int]], **changes: Any) -> Outcome:
    """One update by this project's trainer on the rows `given`, whose minibatches are cut from `orders`."""
    nets = networks(case.stale)
    trained = {"policy": nets.policy, "value": nets.value}
    before = {name: flat(net.parameters()) for name, net in trained.items()}
    trainer = our_trainer(case, nets, given, **changes)
    gradients: dict[str, list[Tensor]] = {name: [] for name in trained}

    def record(optimizer: torch.optim.Optimizer, *_: object) -> None:
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for name, net in trained.items():
            if id(next(net.parameters())) in moved:
                gradients[name].append(flat(net.parameters(), "grad"))

    sampled = frozen_rollout(Policy(nets.sampler, temperature=TEMPERATURE), given)
    hook = register_optimizer_step_pre_hook(record)
    with (
        mock.patch.object(ppo, "sample_responses", lambda *_, **__: sampled),
        mock.patch.object(torch, "randperm", mock.Mock(side_effect=[torch.tensor(order) for order in orders])),
    ):
        update: Update = trainer.update([row.ids[: row.num_prompt] for row in given])
    hook.remove()
    changes_of = {name: flat(net.parameters()) - before[name] for name, net in trained.items()}
    stacked = {name: torch.stack(steps) for name, steps in gradients.items()}
    return Outcome(update.scores, stacked, changes_of, dict(update.diagnostics))


def distance(ours: Tensor, theirs: Tensor) -> float:
    """Length of the difference relative to the length of `theirs`."""
    return float((ours.double() - theirs.double()).norm() / theirs.double().norm())
