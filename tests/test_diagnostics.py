"""Warnings of PPO: each sign by itself, and silence on a healthy run."""

from typing import Any

import pytest

from cai.rl.diagnostics import warn


def healthy(number: int) -> dict[str, float]:
    """A row of a run that goes well."""
    growth = number / 24
    return {
        "kl": 0.001 + 1.5 * growth, "first_approx_kl": 1e-9, "clipfrac": 0.08, "entropy": 0.8 - 0.3 * growth,
        "explained_variance": min(-0.6 + number / 5, 0.9), "score_std": 0.6, "eos_rate": 0.99,
        "gold": -0.2 + 2 * growth, "score_mean": growth,
    }  # fmt: skip


def test_a_healthy_run_is_silent() -> None:
    curve = [healthy(number) for number in range(24)]
    curve[0]["explained_variance"] = -3.0  # the value function starts from a reward model that reads whole responses
    assert [warn(curve[:number]) for number in range(1, 25)] == [{}] * 24


@pytest.mark.parametrize(
    ("at", "changed", "kind", "words"),
    [
        (1, {"kl": -0.2}, "kl_at_start", "reference and policy differ"),
        (4, {"first_approx_kl": 0.06}, "ratio", "sampling and training disagree"),
        (4, {"clipfrac": 0.4}, "clipfrac", "40% of ratios are clipped"),
        (12, {"entropy": 0.02}, "entropy", "the policy collapses"),
        (4, {"score_std": 0.0}, "score_std", "nothing to learn from"),
        (9, {"eos_rate": 0.6}, "eos", "only 60% of responses end"),
    ],
)
def test_each_sign(at: int, changed: dict[str, float], kind: str, words: str) -> None:
    curve: list[dict[str, Any]] = [healthy(number) for number in range(at)]
    curve[-1] |= changed
    found = warn(curve)
    assert list(found) == [kind] and words in found[kind]


def test_a_value_function_worse_than_a_constant() -> None:
    curve = [healthy(number) | {"explained_variance": -0.3} for number in range(8)]
    assert [list(warn(curve[:number])) for number in (5, 6)] == [[], ["value"]]


def test_gold_that_falls_while_the_score_rises() -> None:
    curve = [healthy(number) for number in range(24)]
    for number in range(12, 24):
        curve[number]["gold"] = curve[12]["gold"] - 0.15 * (number - 12)
    assert list(warn(curve)) == ["over_optimisation"]
    for row in curve[12:]:
        row["score_mean"] = 0.0  # the score falls too: something else is wrong
    assert warn(curve) == {}
    without: list[dict[str, Any]] = [{name: v for name, v in row.items() if name != "gold"} for row in curve]
    assert warn(without) == {} and warn([row | {"gold": None} for row in without]) == {}
