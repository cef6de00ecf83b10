"""Muon for the matrices of a small model, with its orthogonalisation shared out between processes.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/): momentum, then the nearest semi-orthogonal
matrix by five Newton-Schulz steps. Our own because matrices of one shape are stacked into one batched product, and
because each data-parallel process orthogonalises a share of them only: on two cores that halves the cost.
"""

from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

__all__ = ["Muon", "orthogonalise"]


def orthogonalise(matrices: Tensor, num_steps: int = 5) -> Tensor:
    """Newton-Schulz on a stack (N, rows, columns): singular values go to about 1 (0.7 to 1.2), singular vectors stay.

    In bfloat16, which is enough. The coefficients are Jordan's, chosen for speed of convergence: the odd polynomial
    a s + b s^3 + c s^5 lifts small singular values fast and does not converge to 1 exactly.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    for _ in range(num_steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    result: Tensor = (x.mT if tall else x).to(matrices.dtype)
    return result


class Muon:
    """Updates matrices in place from their `.grad`; `rank` of `world_size` does its share, `step` gathers the rest."""

    def __init__(
        self,
        parameters: Iterable[Parameter],
        *,
        momentum: float = 0.95,
        weight_decay: float = 0.02,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.parameters = list(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.rank, self.world_size = rank, world_size
        self.buffers = [torch.zeros_like(p) for p in self.parameters]
        self._flat = torch.zeros(sum(p.numel() for p in self.parameters))
        ends = list(accumulate(p.numel() for p in self.parameters))
        self._updates = [self._flat[e - p.numel() : e].view_as(p) for e, p in zip(ends, self.parameters, strict=True)]

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """One update with Nesterov momentum; every process ends with the same weights."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        aheads: dict[int, Tensor] = {}
        for i, parameter in enumerate(self.parameters):
            assert parameter.grad is not None
            self.buffers[i].lerp_(parameter.grad, 1 - self.momentum)
            if i % self.world_size == self.rank:
                aheads[i] = parameter.grad.lerp(self.buffers[i], self.momentum)
                groups[tuple(parameter.shape)].append(i)
        self._flat.zero_()
        for members in groups.values():
            updates = orthogonalise(torch.stack([aheads[i] for i in members]))
            for i, update in zip(members, updates, strict=True):
                self._updates[i].copy_(update)
        if self.world_size > 1:
            dist.all_reduce(self._flat)
        for parameter, update in zip(self.parameters, self._updates, strict=True):
            rows, columns = parameter.shape
            parameter.mul_(1 - lr * self.weight_decay).add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)

    def state_dict(self) -> dict[str, list[Tensor]]:
        """The momentum, for a checkpoint."""
        return {"buffers": self.buffers}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Put the momentum of a checkpoint back."""
        for mine, theirs in zip(self.buffers, state["buffers"], strict=True):
            mine.copy_(theirs)
