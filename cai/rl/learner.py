"""The optimiser steps of PPO: clipped losses over minibatches, and the pre-training term of PPO-ptx.

Shape letters: B = responses of an update, M = real response tokens of a microbatch.
"""

import math
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor

from cai.errors import ModelError
from cai.models.documents import Documents
from cai.records import seed_of
from cai.rl.losses import policy_loss, value_loss
from cai.rl.models import Policy, Row, autocast, batch_budget, pack, plan_batches
from cai.rl.rollout import Update
from cai.rl.settings import PPOSettings
from cai.rl.values import Value

__all__ = ["Learner", "rate_factor"]

_BETA_2: Final = 0.999
_EPSILON: Final = 1e-5


class Learner:
    """Policy and value with their optimisers. `ptx` gives the documents of PPO-ptx, None leaves the term out."""

    def __init__(self, policy: Policy, value: Value, settings: PPOSettings, ptx: Documents | None) -> None:
        self.policy, self.value, self.settings, self.ptx = policy, value, settings, ptx
        self.device = policy.model.device
        self.max_tokens = batch_budget(settings.max_batch_tokens, self.device)
        networks = (policy.parameters(), value.parameters())
        self._optimizers = [torch.optim.Adam(p, betas=(0.9, _BETA_2), eps=_EPSILON) for p in networks]
        self._reader = Policy(policy.model)  # of documents, which have no temperature

    def learn(self, update: Update, number: int) -> dict[str, float]:
        """Epochs of shuffled minibatches of update `number`, until one is too far from the rollout to be learnt from;
        means over steps, among them `learning_rate`, `num_steps`, and `first_approx_kl`, which is 0 when nothing is
        wrong. Raises ModelError when a figure is not finite.
        """
        s = self.settings
        rate = rate_factor(s, number)
        for optimizer, peak in zip(self._optimizers, (s.learning_rate, s.value_learning_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * peak
        steps: list[dict[str, Tensor]] = []
        for minibatch in self._minibatches(len(update.rollout.rows), number):
            documents = f"ptx-{s.seed}-{number}-{len(steps)}", number / s.num_updates
            measured = self._backward(update, minibatch, documents)
            if s.stop_kl is not None and steps and measured["approx_kl"] > s.stop_kl:
                self._zero_gradients()
                break
            steps.append(measured | self._step())
        means = {key: float(torch.stack([step[key] for step in steps]).mean()) for key in steps[0]}
        wrong = [key for key, value in means.items() if not math.isfinite(value)]
        if wrong:
            raise ModelError(f"update {number + 1}: {wrong[0]} is {means[wrong[0]]}: a smaller learning_rate may help")
        constants = {"learning_rate": rate * s.learning_rate, "num_steps": float(len(steps))}
        return means | constants | {"first_approx_kl": float(steps[0]["approx_kl"])}

    def state_dict(self) -> dict[str, Any]:
        """Weights that are trained, and optimisers."""
        optimizers = [optimizer.state_dict() for optimizer in self._optimizers]
        return {"policy": self.policy.state_dict(), "value": self.value.state_dict(), "optimizers": optimizers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.policy.load_state_dict(state["policy"])
        self.value.load_state_dict(state["value"])
        for optimizer, saved in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)

    def _minibatches(self, num_rows: int, number: int) -> Iterator[list[int]]:
        for epoch in range(self.settings.num_epochs):
            seed = seed_of(self.settings.seed, "minibatches", number, epoch)
            order = torch.randperm(num_rows, generator=torch.Generator().manual_seed(seed)).tolist()
            for start in range(0, num_rows, self.settings.minibatch_size):
                yield order[start : start + self.settings.minibatch_size]

    def _backward(self, update: Update, minibatch: list[int], documents: tuple[str, float]) -> dict[str, Tensor]:
        """Gradients of policy and value on a minibatch, cut into length-sorted microbatches; what was measured on the
        way. `documents` says which ones PPO-ptx draws.
        """
        lengths = [len(update.rollout.rows[i].ids) for i in minibatch]
        num_tokens = update.rollout.mask[minibatch].sum()
        sums: dict[str, Tensor] = {}
        for indices in plan_batches(lengths, self.max_tokens):
            totals = self._losses(update, [minibatch[i] for i in indices])
            loss = totals["policy_loss"] + self.value.coefficient * totals["value_loss"]
            torch.autograd.backward(loss / num_tokens)
            sums = {key: total.detach() + sums.get(key, 0.0) for key, total in totals.items()}
        means = {key: total / num_tokens for key, total in sums.items()}
        if self.ptx is not None:
            means["ptx_loss"] = self._ptx(self.ptx, *documents)
        return means

    def _step(self) -> dict[str, Tensor]:
        """One optimiser step of policy and value; the norms of their gradients."""
        norms = {}
        for name, optimizer in zip(("policy", "value"), self._optimizers, strict=True):
            (group,) = optimizer.param_groups
            norms[f"{name}_grad_norm"] = torch.nn.utils.clip_grad_norm_(group["params"], self.settings.max_grad_norm)
            if self.settings.tf_adam:
                group["eps"] = _tf_epsilon(optimizer)
            optimizer.step()
        self._zero_gradients()
        return norms

    def _zero_gradients(self) -> None:
        for optimizer in self._optimizers:
            optimizer.zero_grad()

    def _ptx(self, source: Documents, seed: str, progress: float) -> Tensor:
        """Add the gradient of PPO-ptx's second term; returns the weighted mean loss, in nats per token."""
        s = self.settings
        documents = source.documents(seed, progress, s.ptx_tokens)
        total_weight = sum(sum(document.weights[1:]) for document in documents)
        loss = torch.zeros((), device=self.device)
        for indices in plan_batches([len(document.ids) for document in documents], self.max_tokens):
            chosen = [documents[i] for i in indices]
            with autocast(self.device, s.dtype):
                logp = self._reader.logp(pack([Row(document.ids, 1) for document in chosen], self.device))
            weights = torch.tensor([w for document in chosen for w in document.weights[1:]], device=self.device)
            part = -(logp * weights).sum() / total_weight
            torch.autograd.backward(s.ptx_coefficient * part)
            loss += part.detach()
        return loss

    def _losses(self, update: Update, rows: list[int]) -> dict[str, Tensor]:
        """Sums over the response tokens of a microbatch: losses (with gradient) and clipping statistics."""
        s, real = self.settings, update.rollout.mask[rows].bool()
        batch = pack([update.rollout.rows[i] for i in rows], self.device)
        with autocast(self.device, s.dtype):
            logp, values = self.value.both(self.policy, batch)
        logp_old = update.rollout.logp[rows][real]
        surrogate, clipped = policy_loss(logp, logp_old, update.advantages[rows][real], s.clip)
        error, value_clipped = value_loss(values, update.values[rows][real], update.returns[rows][real], s.value_clip)
        return {
            "policy_loss": surrogate.sum(),
            "value_loss": error.sum(),
            "clipfrac": clipped.float().sum(),
            "value_clipfrac": value_clipped.float().sum(),
            "approx_kl": ((logp - logp_old) ** 2).sum() / 2,  # k2 of the new policy against that of rollout
        }


def rate_factor(settings: PPOSettings, update: int) -> float:
    """Factor of the learning rates at update number `update` (from 0): warm-up, then linear to 0 or constant."""
    warmup = min(1.0, (update + 1) / (settings.num_warmup_updates + 1))
    return warmup * (1 - update / settings.num_updates if settings.schedule == "linear" else 1.0)


def _tf_epsilon(optimizer: torch.optim.Optimizer) -> float:
    """The epsilon with which torch's Adam takes TensorFlow's next step: theirs is added to sqrt(v) before the bias of v
    is corrected, torch's after, so that torch's counts less in the first steps (Huang et al. 2024).
    """
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    step = float(state["step"]) + 1 if state else 1.0
    return float(_EPSILON / (1 - _BETA_2**step) ** 0.5)
