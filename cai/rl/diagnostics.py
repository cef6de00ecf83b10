"""What an update of PPO says about itself, and what is to be worried about, in words."""

from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from cai.rl.losses import explained_variance, kl_k1, kl_k3, masked_mean
from cai.rl.rollout import Rollout, Update

__all__ = ["describe", "diagnose", "warn"]

Row = Mapping[str, float | None]

_SETTLED: Final = 5  # updates after which a value function should know something
_RECENT: Final = 4  # updates whose mean counts as "now"


def diagnose(update: Update) -> dict[str, float]:
    """What the rollout says about the policy before the update's own steps; KL and entropy are sample estimates, in
    nats: `kl` and `kl_k3` per response, `kl_per_token` and `entropy` per token.
    """
    explained = explained_variance(update.values, update.returns, update.rollout.mask)
    own = {"objective": float(update.objective.mean()), "explained_variance": float(explained)}
    return describe(update.rollout, update.scores, update.logp_ref) | own


def describe(rollout: Rollout, scores: Tensor, logp_ref: Tensor) -> dict[str, float]:
    """What needs no critic, of B responses with `scores` (B) and reference log-probabilities (B, T)."""
    mask = rollout.mask
    kl = kl_k1(rollout.logp, logp_ref) * mask
    figures = {
        "score_mean": scores.mean(),
        "score_std": scores.std(correction=0),
        "kl": kl.sum(1).mean(),
        "kl_per_token": masked_mean(kl, mask),
        "kl_k3": (kl_k3(rollout.logp, logp_ref) * mask).sum(1).mean(),
        "entropy": -masked_mean(rollout.logp, mask),
        "num_response_tokens": mask.sum(1).mean(),
        "eos_rate": rollout.finished.float().mean(),
    }
    return {key: float(value) for key, value in figures.items()}


def warn(curve: Sequence[Row]) -> dict[str, str]:
    """What the last row of `curve` gives cause to worry about, by kind: one line each, with what is likely behind it.

    The signs are those that practitioners look for (Huang et al. 2024; Ouyang et al. 2022, section 4.2); thresholds are
    wide, so that a healthy run is silent.
    """
    first, last, number = curve[0], curve[-1], len(curve)
    found: dict[str, str] = {}

    def figure(name: str, row: Row = last) -> float:
        value = row.get(name)
        return float("nan") if value is None else value

    if number == 1 and abs(figure("kl")) > 0.05:
        found["kl_at_start"] = f"KL is {figure('kl'):.3f} at the first update: reference and policy differ beforehand"
    if figure("first_approx_kl") > 0.01:
        found["ratio"] = (
            f"the first minibatch is {figure('first_approx_kl'):.3f} nats off its own rollout: sampling and training "
            "disagree on log-probabilities (temperature, dropout, padding, precision)"
        )
    if figure("clipfrac") > 0.3:
        found["clipfrac"] = f"{figure('clipfrac'):.0%} of ratios are clipped: learning_rate or num_epochs is too high"
    if number > _SETTLED and _recent(curve, "explained_variance") < 0:
        found["value"] = (
            f"explained variance is {_recent(curve, 'explained_variance'):.2f}: the value function is worse than a "
            "constant; value_learning_rate or value_clip does not suit the scale of the rewards"
        )
    if figure("entropy") < 0.1 * figure("entropy", first):
        found["entropy"] = f"entropy fell to {figure('entropy'):.3f} nats per token: the policy collapses; raise beta"
    if figure("score_std") == 0:
        found["score_std"] = "all responses have one score: there is nothing to learn from"
    if figure("eos_rate") < min(0.8, figure("eos_rate", first) - 0.1):
        found["eos"] = f"only {figure('eos_rate'):.0%} of responses end: raise missing_eos_penalty or max_new_tokens"
    if number > 2 * _RECENT and _falls(curve, "gold") and _rises(curve, "score_mean"):
        found["over_optimisation"] = (
            "the score still rises while the gold score falls: over-optimisation; raise beta or stop earlier"
        )
    return found


def _recent(curve: Sequence[Row], name: str, end: int | None = None) -> float:
    """Mean of the last few updates before `end`; NaN where one has no figure, which compares as no cause to worry."""
    values = [row.get(name) for row in curve[:end][-_RECENT:]]
    return sum(float("nan") if value is None else value for value in values) / len(values)


def _falls(curve: Sequence[Row], name: str) -> bool:
    """Whether the figure is now clearly below its best: by a fifth of what it had gained."""
    means = [_recent(curve, name, end) for end in range(_RECENT, len(curve) + 1)]
    start, best, now = means[0], max(means), means[-1]
    return best - now > 0.2 * (best - start) and now < best - 0.1 * abs(best)


def _rises(curve: Sequence[Row], name: str) -> bool:
    return _recent(curve, name) > _recent(curve, name, -_RECENT)
