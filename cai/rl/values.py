"""The value function of PPO: a network of its own on the reward model's trunk, or a head on the policy's.

InstructGPT starts the value function as the reward model, head and all. But a reward model learns about whole
responses: what its head says of the beginning of one is arbitrary, worse than a constant. So `fit` comes first, unless
`fit_value` is off.

Shape letters: B = responses, T = response tokens (padded), M = response tokens of a batch, D = hidden size.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cai.errors import ModelError
from cai.models.lora import load_trained, trained_parameters, trained_state
from cai.rl.models import Packed, Policy, autocast, head_outputs, pack, plan_batches, score_head, states
from cai.rl.rollout import Rollout

__all__ = ["SharedValue", "Value", "ValueModel", "fit"]


_RIDGE: Final = 0.1  # of the mean variance of a feature: there may be more features than responses
_FLOOR: Final = 1e-8  # where all states are alike: a single prompt, one token long responses


class ValueModel:
    """The expected scaled score given a prefix: `head(hidden) + offset`, on the trunk of a reward model.

    It is a network of its own, so that value gradients cannot damage the policy (Stiennon et al. 2020, appendix B).
    """

    coefficient = 1.0  # its gradients meet no others

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model.train(False)
        self.offset = 0.0

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the value's own optimiser moves."""
        return trained_parameters(self.model)

    def values(self, batch: Packed) -> Tensor:
        """Value of the prefix before every response token, (M), row by row, float32."""
        return head_outputs(self.model, self.states(batch)) + self.offset

    def states(self, batch: Packed) -> Tensor:
        """What the head reads, (M, D)."""
        return states(self.model, batch, batch.predicts)

    @torch.no_grad()
    def set_head(self, weight: Tensor, offset: float) -> None:
        """Make the head `weight` (D) and `offset`."""
        score_head(self.model).weight.copy_(weight[None])
        self.offset = offset

    def both(self, policy: Policy, batch: Packed) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities and the values, (M) each."""
        return policy.logp(batch), self.values(batch)

    def state_dict(self) -> dict[str, Any]:
        """Its weights, without those that are frozen, and the offset."""
        return {"model": trained_state(self.model), "offset": self.offset}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        load_trained(self.model, state["model"])
        self.offset = state["offset"]


class SharedValue:
    """A linear head on the policy's own trunk (Ziegler et al. 2019): one forward pass serves both, and there is one
    network less in memory; the value's gradients move the policy too, `coefficient` times.
    """

    def __init__(self, policy: Policy, *, coefficient: float) -> None:
        if not policy.has_plain_head:
            raise ModelError(
                f"value=shared: {type(policy.model).__name__} does more to its logits than a matrix product, so that "
                "its trunk cannot be shared; use value=reward_model"
            )
        self.policy = policy
        self.coefficient = coefficient
        width = policy.model.config.get_text_config().hidden_size
        self.head = nn.Linear(width, 1, device=policy.model.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The head; the trunk is in the policy's optimiser."""
        return self.head.parameters()

    def values(self, batch: Packed) -> Tensor:
        """Value of the prefix before every response token, (M), row by row, float32."""
        return self._of(self.states(batch))

    def states(self, batch: Packed) -> Tensor:
        """What the head reads, (M, D)."""
        return states(self.policy.model, batch, batch.predicts)

    @torch.no_grad()
    def set_head(self, weight: Tensor, offset: float) -> None:
        """Make the head `weight` (D) and `offset`."""
        self.head.weight.copy_(weight[None])
        self.head.bias.fill_(offset)

    def both(self, policy: Policy, batch: Packed) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities and the values, (M) each, from one forward pass."""
        hidden = self.states(batch)
        return policy.logp_of(hidden, batch), self._of(hidden)

    def state_dict(self) -> dict[str, Any]:
        """The head's weights."""
        return self.head.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the head's weights back."""
        self.head.load_state_dict(state)

    def _of(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values


Value = ValueModel | SharedValue


@torch.no_grad()
def fit(value: Value, rollout: Rollout, rewards: Tensor, max_tokens: int, dtype: str) -> None:
    """Set the head of `value` by ridge regression, on its trunk's states, of the rewards (B, T) that are still to come
    at each token of `rollout`; in batches of `max_tokens`, the trunk in mixed precision where `dtype` is bfloat16.
    """
    to_go = rewards.flip(1).cumsum(1).flip(1)  # gamma = 1
    sums: Tensor | None = None  # of the products of all columns [1, states, to go] with each other
    for indices in plan_batches([len(row.ids) for row in rollout.rows], max_tokens):
        batch = pack([rollout.rows[i] for i in indices], rewards.device)
        with autocast(rewards.device, dtype):
            features = value.states(batch).double()
        target = to_go[indices][rollout.mask[indices].bool()].double()
        columns = torch.cat([torch.ones_like(target)[:, None], features, target[:, None]], dim=1)
        sums = columns.T @ columns + (0.0 if sums is None else sums)
    assert sums is not None  # a rollout has rows
    means = sums[0] / sums[0, 0]
    covariance = sums / sums[0, 0] - means[:, None] * means
    features, target = covariance[1:-1, 1:-1], covariance[1:-1, -1]
    ridge = _RIDGE * features.diagonal().mean() + _FLOOR
    weight = torch.linalg.solve(features + ridge * torch.eye(len(features), device=features.device), target)
    value.set_head(weight, float(means[-1] - means[1:-1] @ weight))
