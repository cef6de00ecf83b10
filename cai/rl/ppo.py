"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; InstructGPT section 3.5): one loop to read.

One update: sample a response to each prompt; score it; turn scores and the per-token KL to the reference into rewards;
estimate advantages; then take clipped policy and value steps over minibatches. All that it works with is passed in.

Shape letters: B = responses of an update, T = response tokens (padded), M = real response tokens of a microbatch.

Choices that papers differ on: gamma = 1; the KL penalty is k1 with the log-probabilities of rollout; a response without
an end-of-turn token within `max_new_tokens` ends the episode and has `missing_eos_penalty` *subtracted* from its scaled
score; advantages are whitened over the whole batch; losses are means over the tokens of a minibatch; policy and value
have an optimiser and a gradient norm each; Adam's epsilon is 1e-5 (OpenAI's) and its learning rate warms up first.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cai.records import seed_of
from cai.rl.losses import (
    explained_variance,
    gae,
    kl_k1,
    kl_k3,
    masked_mean,
    masked_whiten,
    policy_loss,
    shaped_rewards,
    value_loss,
)
from cai.rl.models import Packed, Policy, Row, ValueModel, autocast, batch_budget, pack, plan_batches
from cai.rl.rollout import Rollout, sample_responses
from cai.rl.settings import PPOSettings

__all__ = ["PPOTrainer", "Update", "diagnose", "rate_factor"]

# Sampling keeps no activations for a backward pass, so its batches may be this many times larger.
_ROLLOUT_TOKENS = 8


@dataclass(frozen=True, slots=True)
class Update:
    """What one update saw and learnt. `scores` (B) are the reward's own, before scaling and penalty; the rest is
    (B, T) and 0 on padding: reference log-probs, values at rollout, whitened advantages, and returns.
    """

    rollout: Rollout
    scores: Tensor
    logp_ref: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor
    objective: Tensor
    diagnostics: dict[str, float]


class PPOTrainer:
    """The loop over one policy, reference, value network and reward.

    `reward` scores rows, prompts with *closed* responses: (B) on any device. A response that was cut off is closed with
    the first of `stop_ids`, the end-of-turn token, because every response that a reward model trains on ends so.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        reference: Policy,
        value: ValueModel,
        reward: Callable[[Sequence[Row]], Tensor],
        reward_scale: float,
        stop_ids: Sequence[int],
        settings: PPOSettings,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.value = value
        self.reward = reward
        self.reward_scale = reward_scale
        self.stop_ids = stop_ids
        self.settings = settings
        self.num_updates = 0
        self.device = policy.model.device
        self.max_tokens = batch_budget(settings.max_batch_tokens, self.device)
        self._optimizers = [torch.optim.Adam(net.model.parameters(), eps=1e-5) for net in (policy, value)]

    def update(self, prompts: Sequence[list[int]]) -> Update:
        """One PPO update on a batch of prompts (token ids)."""
        s = self.settings
        # 1. Sample. The log-probs of sampling are the old ones of the ratio, and those of the KL penalty.
        seeds = [seed_of(s.seed, "rollout", self.num_updates, row) for row in range(len(prompts))]
        with autocast(self.device, s.dtype):
            rollout = sample_responses(
                self.policy,
                prompts,
                seeds=seeds,
                max_new_tokens=s.max_new_tokens,
                stop_ids=self.stop_ids,
                max_batch_tokens=_ROLLOUT_TOKENS * s.max_batch_tokens,
            )
        # 2. Score; look up reference and value at every response token.
        scores = self.reward(rollout.closed(self.stop_ids[0])).to(self.device)
        logp_ref = self._per_token(rollout, self.reference.logp)
        values = self._per_token(rollout, self.value.values)
        # 3. Rewards and advantages.
        kl = kl_k1(rollout.logp, logp_ref) * rollout.mask
        penalised = scores * self.reward_scale - s.missing_eos_penalty * (~rollout.finished)
        rewards = shaped_rewards(penalised, kl, rollout.mask, s.beta)
        advantages, returns = gae(rewards, values, rollout.mask, s.lam)
        advantages = masked_whiten(advantages, rollout.mask)
        objective = penalised - s.beta * kl.sum(1)
        # 4. Learn, and report.
        update = Update(rollout, scores, logp_ref, values, advantages, returns, objective, {})
        rate = rate_factor(s, self.num_updates)
        for optimizer, peak in zip(self._optimizers, (s.learning_rate, s.value_learning_rate), strict=True):
            optimizer.param_groups[0]["lr"] = rate * peak
        constants = {"beta": s.beta, "learning_rate": rate * s.learning_rate}
        update.diagnostics.update(diagnose(update) | constants | self._learn(update))
        self.num_updates += 1
        return update

    @torch.no_grad()
    def _per_token(self, rollout: Rollout, function: Callable[[Packed], Tensor]) -> Tensor:
        """`function` of every response token as (B, T), computed in length-sorted batches."""
        out = torch.zeros_like(rollout.mask)
        for indices in plan_batches([len(row.ids) for row in rollout.rows], self.max_tokens):
            with autocast(self.device, self.settings.dtype):
                flat = function(pack([rollout.rows[i] for i in indices], self.device))
            part = torch.zeros_like(out[indices])
            part[rollout.mask[indices].bool()] = flat
            out[indices] = part
        return out

    def _learn(self, update: Update) -> dict[str, float]:
        """Epochs of shuffled minibatches; returns means over all of them."""
        s, num_rows = self.settings, len(update.rollout.rows)
        steps: list[dict[str, Tensor]] = []
        for epoch in range(s.num_epochs):
            generator = torch.Generator().manual_seed(seed_of(s.seed, "minibatches", self.num_updates, epoch))
            order = torch.randperm(num_rows, generator=generator).tolist()
            for start in range(0, num_rows, s.minibatch_size):
                steps.append(self._step(update, order[start : start + s.minibatch_size]))
        return {key: float(torch.stack([step[key] for step in steps]).mean()) for key in steps[0]}

    def _step(self, update: Update, minibatch: list[int]) -> dict[str, Tensor]:
        """One optimiser step of policy and value on a minibatch, cut into length-sorted microbatches."""
        lengths = [len(update.rollout.rows[i].ids) for i in minibatch]
        num_tokens = update.rollout.mask[minibatch].sum()
        sums: dict[str, Tensor] = {}
        for indices in plan_batches(lengths, self.max_tokens):
            totals = self._losses(update, [minibatch[i] for i in indices])
            # One backward for both: they are separate networks, so their gradients do not mix.
            torch.autograd.backward((totals["policy_loss"] + totals["value_loss"]) / num_tokens)
            sums = {key: total.detach() + sums.get(key, 0.0) for key, total in totals.items()}
        means = {key: total / num_tokens for key, total in sums.items()}
        for name, optimizer in zip(("policy", "value"), self._optimizers, strict=True):
            parameters = optimizer.param_groups[0]["params"]
            means[f"{name}_grad_norm"] = torch.nn.utils.clip_grad_norm_(parameters, self.settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
        return means

    def _losses(self, update: Update, rows: list[int]) -> dict[str, Tensor]:
        """Sums over the response tokens of a microbatch: losses (with gradient) and clipping statistics."""
        s, real = self.settings, update.rollout.mask[rows].bool()
        batch = pack([update.rollout.rows[i] for i in rows], self.device)
        with autocast(self.device, s.dtype):
            logp, values = self.policy.logp(batch), self.value.values(batch)
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


def diagnose(update: Update) -> dict[str, float]:
    """What the rollout says about the policy before the update's own steps; KL and entropy are sample estimates."""
    rollout, mask = update.rollout, update.rollout.mask
    kl = kl_k1(rollout.logp, update.logp_ref) * mask
    figures = {
        "score_mean": update.scores.mean(),
        "score_std": update.scores.std(correction=0),
        "objective": update.objective.mean(),
        "kl": kl.sum(1).mean(),
        "kl_per_token": masked_mean(kl, mask),
        "kl_k3": (kl_k3(rollout.logp, update.logp_ref) * mask).sum(1).mean(),
        "entropy": -masked_mean(rollout.logp, mask),
        "explained_variance": explained_variance(update.values, update.returns, mask),
        "num_response_tokens": mask.sum(1).mean(),
        "eos_rate": rollout.finished.float().mean(),
    }
    return {key: float(value) for key, value in figures.items()}
