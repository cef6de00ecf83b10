"""PPO for language models (Schulman et al. 2017; Ziegler et al. 2019; InstructGPT section 3.5): one loop to read.

One update: sample a response to each prompt; score it; turn scores and the per-token KL to the reference into rewards;
estimate advantages; then take clipped policy and value steps over minibatches. All that it works with is passed in.

Shape letters: B = responses of an update, T = response tokens (padded), M = real response tokens of a microbatch.

Choices that papers differ on: gamma = 1; the KL penalty has the log-probabilities of rollout; a response without an
end-of-turn token within `max_new_tokens` ends the episode and has `missing_eos_penalty` *subtracted* from its scaled
score; advantages are whitened over the whole batch; losses are means over the tokens of a minibatch; policy and value
have an optimiser and a gradient norm each; Adam's epsilon is 1e-5 (OpenAI's) and its learning rate warms up first.
PPO-ptx adds the gradient of the mean loss on pre-training tokens to that of every step (InstructGPT eq. 2).
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from cai.errors import ModelError
from cai.models.documents import Documents
from cai.records import seed_of
from cai.rl.diagnostics import diagnose
from cai.rl.learner import Learner
from cai.rl.losses import adapted_beta, gae, kl_k1, kl_k3, masked_whiten, shaped_rewards
from cai.rl.models import Policy, Row, autocast, batch_budget
from cai.rl.rollout import ROLLOUT_TOKENS, Rollout, Update, per_token, sample_responses
from cai.rl.settings import PPOSettings
from cai.rl.values import Value, fit

__all__ = ["PPOTrainer"]

_ESTIMATORS = {"k1": kl_k1, "k3": kl_k3}


class PPOTrainer:
    """The loop over one policy, reference, value network and reward.

    `reward` scores rows, prompts with *closed* responses: (B) on any device. A response that was cut off is closed with
    the first of `stop_ids`, the end-of-turn token, because every response that a reward model trains on ends so. `ptx`
    gives the documents of PPO-ptx; without it, or with a coefficient of 0, there is no such term.
    """

    def __init__(
        self,
        *,
        policy: Policy,
        reference: Policy,
        value: Value,
        reward: Callable[[Sequence[Row]], Tensor],
        reward_scale: float,
        stop_ids: Sequence[int],
        settings: PPOSettings,
        ptx: Documents | None = None,
    ) -> None:
        self.policy = policy
        self.reference = reference
        self.value = value
        self.reward = reward
        self.reward_scale = reward_scale
        self.stop_ids = stop_ids
        self.settings = settings
        self.num_updates = 0
        self.beta = settings.beta
        self.device = policy.model.device
        self.max_tokens = batch_budget(settings.max_batch_tokens, self.device)
        self.learner = Learner(policy, value, settings, ptx if settings.ptx_coefficient else None)

    def update(self, prompts: Sequence[list[int]]) -> Update:
        """One PPO update on a batch of prompts (token ids)."""
        s = self.settings
        # 1. Sample, and score. The log-probs of sampling are the old ones of the ratio, and those of the KL penalty.
        rollout, scores = self._sample(prompts, "rollout")
        # 2. Rewards, with the KL to the reference at every response token.
        rewards, logp_ref = self._rewards(rollout, scores)
        # 3. Values, and advantages over them.
        values = per_token(rollout, self.value.values, self.max_tokens, s.dtype)
        advantages, returns = gae(rewards, values, rollout.mask, s.lam)
        advantages = masked_whiten(advantages, rollout.mask)
        objective = rewards.sum(1)
        # 4. Learn, and report.
        update = Update(rollout, scores, logp_ref, values, advantages, returns, objective, {})
        update.diagnostics.update(diagnose(update) | {"beta": self.beta} | self.learner.learn(update, self.num_updates))
        self.num_updates += 1
        if s.kl_target is not None:
            kl_now = update.diagnostics["kl"]
            self.beta = adapted_beta(self.beta, kl_now, s.kl_target, len(prompts), s.kl_horizon)
        return update

    def fit_value(self, prompts: Sequence[list[int]]) -> Rollout:
        """Fit the value's head, before any update, to responses of the policy as it is; they teach nothing else."""
        rollout, scores = self._sample(prompts, "value fit")
        rewards, _ = self._rewards(rollout, scores)
        fit(self.value, rollout, rewards, self.max_tokens, self.settings.dtype)
        return rollout

    def try_out(self, prompts: Sequence[list[int]]) -> tuple[Rollout, Tensor]:
        """A response to each prompt with its score (B), nothing learnt; random numbers of its own."""
        return self._sample(prompts, "validation")

    def state_dict(self) -> dict[str, Any]:
        """All that the next update hangs on; seeds follow from the settings and the number of the update."""
        return {"learner": self.learner.state_dict(), "num_updates": self.num_updates, "beta": self.beta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken."""
        self.learner.load_state_dict(state["learner"])
        self.num_updates, self.beta = state["num_updates"], state["beta"]

    def _rewards(self, rollout: Rollout, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Reward of every response token, and its log-probability by the reference, (B, T) each."""
        s = self.settings
        logp_ref = per_token(rollout, self.reference.logp, self.max_tokens, s.dtype)
        kl = _ESTIMATORS[s.penalty](rollout.logp, logp_ref) * rollout.mask
        scaled = scores * self.reward_scale
        if s.score_clip is not None:
            scaled = scaled.clamp(-s.score_clip, s.score_clip)
        penalised = scaled - s.missing_eos_penalty * (~rollout.finished)
        return shaped_rewards(penalised, kl, rollout.mask, self.beta), logp_ref

    def _sample(self, prompts: Sequence[list[int]], purpose: str) -> tuple[Rollout, Tensor]:
        s = self.settings
        with autocast(self.device, s.dtype):
            rollout = sample_responses(
                self.policy,
                prompts,
                seeds=[seed_of(s.seed, purpose, self.num_updates, row) for row in range(len(prompts))],
                max_new_tokens=s.max_new_tokens,
                stop_ids=self.stop_ids,
                max_batch_tokens=ROLLOUT_TOKENS * s.max_batch_tokens,
            )
        scores = self.reward(rollout.closed(self.stop_ids[0])).to(self.device)
        wrong = (~scores.isfinite()).nonzero()[:, 0].tolist()
        if wrong:
            raise ModelError(
                f"{purpose} {self.num_updates + 1}: {len(wrong)} of {len(scores)} rewards are not finite, the first "
                f"that of response {wrong[0] + 1}: {float(scores[wrong[0]])}; nothing was learnt from them"
            )
        return rollout, scores
