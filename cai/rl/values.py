"""The value function of PPO: a network of its own that starts as the reward model, or a head on the policy's trunk.

Shape letters: M = response tokens of a batch, D = hidden size.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from cai.errors import ModelError
from cai.models.lora import load_trained, trained_parameters, trained_state
from cai.rl.models import Packed, Policy, head_outputs, states

__all__ = ["SharedValue", "Value", "ValueModel"]


class ValueModel:
    """The expected scaled score given a prefix: `(head(hidden) + offset) * scale`, starting as the reward model.

    It is a network of its own, so that value gradients cannot damage the policy (Stiennon et al. 2020, appendix B).
    """

    coefficient = 1.0  # its gradients meet no others

    def __init__(self, model: PreTrainedModel, *, offset: float, scale: float) -> None:
        self.model = model.train(False)
        self.offset = offset
        self.scale = scale

    def parameters(self) -> Iterator[nn.Parameter]:
        """What the value's own optimiser moves."""
        return trained_parameters(self.model)

    def values(self, batch: Packed) -> Tensor:
        """Value of the prefix before every response token, (M), row by row, float32."""
        hidden = states(self.model, batch, batch.predicts)
        return (head_outputs(self.model, hidden) + self.offset) * self.scale

    def both(self, policy: Policy, batch: Packed) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities and the values, (M) each."""
        return policy.logp(batch), self.values(batch)

    def state_dict(self) -> dict[str, Tensor]:
        """Its weights, without those that are frozen."""
        return trained_state(self.model)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put weights back."""
        load_trained(self.model, state)


class SharedValue:
    """A linear head on the policy's own trunk, zero at first (Ziegler et al. 2019): one forward pass serves both, and
    there is one network less in memory; the value's gradients move the policy too, `coefficient` times.
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
        return self._of(states(self.policy.model, batch, batch.predicts))

    def both(self, policy: Policy, batch: Packed) -> tuple[Tensor, Tensor]:
        """The policy's log-probabilities and the values, (M) each, from one forward pass."""
        hidden = states(policy.model, batch, batch.predicts)
        return policy.logp_of(hidden, batch), self._of(hidden)

    def state_dict(self) -> dict[str, Tensor]:
        """The head's weights."""
        return self.head.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put the head's weights back."""
        self.head.load_state_dict(state)

    def _of(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.head(hidden.float()).squeeze(-1)
        return values


Value = ValueModel | SharedValue
