"""How good the probabilities of a reward model are: log-loss, accuracy, reliability bins, ECE, temperature (numpy).

`p` is the predicted and `target` the labelled probability that the first response of a pair is preferred, both
float arrays of shape (num_pairs). Targets may be soft.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "accuracy",
    "calibrated",
    "entropy_floor",
    "expected_accuracy",
    "expected_calibration_error",
    "fit_temperature",
    "log_loss",
    "pair_metrics",
    "reliability",
]

Array = NDArray[np.float64]


def log_loss(delta: Array, target: Array) -> float:
    """Mean of `-(t log sigmoid(d) + (1 - t) log sigmoid(-d))` in nats, from reward differences `delta`."""
    return float(np.mean(target * np.logaddexp(0, -delta) + (1 - target) * np.logaddexp(0, delta)))


def entropy_floor(target: Array) -> float:
    """Mean entropy of the labels in nats: the log-loss that no model can go below (0 for hard labels)."""
    t = np.clip(target, 1e-12, 1 - 1e-12)
    return float(np.mean(-t * np.log(t) - (1 - t) * np.log1p(-t)))


def accuracy(delta: Array, target: Array) -> float:
    """Share of pairs on which sign(delta) is the more probable label; a tie on either side counts one half."""
    return float(np.mean((1 + np.sign(delta) * np.sign(target - 0.5)) / 2))


def expected_accuracy(delta: Array, target: Array) -> float:
    """Chance that a label drawn from `target` agrees with sign(delta); a tied delta counts one half."""
    return float(np.mean(0.5 + np.sign(delta) * (target - 0.5)))


def reliability(p: Array, target: Array, num_bins: int = 10) -> list[dict[str, float]]:
    """Non-empty bins of equal width over [0, 1] by `p`: low, high, count, mean_p, mean_target."""
    index = np.minimum((p * num_bins).astype(int), num_bins - 1)
    return [
        {
            "low": k / num_bins,
            "high": (k + 1) / num_bins,
            "count": int(np.sum(index == k)),
            "mean_p": float(p[index == k].mean()),
            "mean_target": float(target[index == k].mean()),
        }
        for k in range(num_bins)
        if np.any(index == k)
    ]


def expected_calibration_error(bins: Sequence[dict[str, float]]) -> float:
    """ECE (Guo et al. 2017, eq. 3) of `reliability` bins: mean |mean_p - mean_target| weighted by count."""
    total = sum(b["count"] for b in bins)
    return float(sum(b["count"] * abs(b["mean_p"] - b["mean_target"]) for b in bins) / total)


def fit_temperature(delta: Array, target: Array) -> float:
    """The T > 0 that minimises `log_loss(delta / T, target)` (Guo et al. 2017, section 4.2): above 1, the model was
    over-confident. Within [0.01, 100]; the bounds stand for "no finite optimum".
    """
    # The loss is convex in 1/T, so its derivative has one sign change, found by bisection on log(1/T).
    low, high = np.log(0.01), np.log(100.0)
    for _ in range(60):
        middle = (low + high) / 2
        slope = np.mean(delta * (1 / (1 + np.exp(-np.clip(np.exp(middle) * delta, -500, 500))) - target))
        low, high = (middle, high) if slope < 0 else (low, middle)
    return float(np.exp(-(low + high) / 2))


def calibrated(delta: Array, target: Array, groups: Sequence[str]) -> Array:
    """`delta / T`, with a T for each half of the pairs that was fitted on the other half: figures of it say what a
    temperature is worth on pairs that it has not seen. Pairs of one group (a prompt) are in one half.
    """
    halves = {group: number % 2 for number, group in enumerate(dict.fromkeys(groups))}
    half = np.array([halves[group] for group in groups])
    out = delta.copy()
    if len(halves) > 1:
        for side in (0, 1):
            out[half == side] /= fit_temperature(delta[half != side], target[half != side])
    return out


def pair_metrics(delta: Array, target: Array) -> dict[str, float]:
    """The scalar figures of this module on reward differences `delta` (num_pairs) and labels `target`.

    `temperature` is fitted on the same pairs that it is reported for: it says how over-confident the model is there.
    """
    bins = reliability(1 / (1 + np.exp(-np.clip(delta, -500, 500))), target)
    return {
        "num_pairs": len(delta),
        "accuracy": accuracy(delta, target),
        "expected_accuracy": expected_accuracy(delta, target),
        "log_loss": log_loss(delta, target),
        "entropy_floor": entropy_floor(target),
        "ece": expected_calibration_error(bins),
        "temperature": fit_temperature(delta, target),
    }
