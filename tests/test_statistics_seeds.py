"""Intervals over seeds: that differ, that agree by luck, that are missing."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from studies import names

from cai.report.agreement import (
    kappa_of,
    kappa_table,
)
from cai.report.resampling import Table, mean_table
from cai.report.statistics import Bootstrap

# --- seeds ------------------------------------------------------------------------------------------------------------


def test_seeds_that_differ_widen_the_interval() -> None:
    """Between-seed spread of 1 must show, although each seed's own prompts give intervals of +-.1."""
    rng = np.random.default_rng(2)
    tables = [mean_table(s, names(400, f"{s}-"), s + rng.normal(size=400)) for s in range(3)]
    estimate = Bootstrap(num_draws=2000).estimate(tables)
    assert estimate is not None
    assert list(estimate.per_seed) == [0, 1, 2]
    assert estimate.low < 0.2 and estimate.high > 1.8


def test_prompts_that_seeds_share_do_not_count_thrice() -> None:
    rng = np.random.default_rng(3)
    values = rng.normal(size=100)
    bootstrap = Bootstrap(num_draws=4000)
    shared = bootstrap.estimate([mean_table(s, names(100), values) for s in range(3)])
    one = bootstrap.estimate([mean_table(0, names(100), values)])
    assert shared is not None and one is not None
    assert shared.high - shared.low == pytest.approx(one.high - one.low, rel=0.1)


def test_seeds_that_agree_by_luck_give_no_certainty() -> None:
    """Three seeds with the same figure on prompts of their own: t alone would say +-0."""
    values = np.random.default_rng(3).normal(size=100)
    estimate = Bootstrap(num_draws=2000).estimate([mean_table(s, names(100, f"{s}-"), values) for s in range(3)])
    assert estimate is not None and estimate.method == "seeds"
    prompts_alone = 1.96 * values.std() / math.sqrt(300)
    assert estimate.high - estimate.value == pytest.approx(0.5 * prompts_alone, rel=0.1)


def test_two_seeds_are_about_the_models_that_were_trained() -> None:
    rng = np.random.default_rng(3)
    tables = [mean_table(s, names(100, f"{s}-"), 5 * s + rng.normal(size=100)) for s in range(3)]
    bootstrap = Bootstrap(num_draws=2000)
    two, three = bootstrap.estimate(tables[:2]), bootstrap.estimate(tables)
    assert two is not None and three is not None
    assert (two.method, three.method) == ("bootstrap", "seeds")
    assert two.high - two.low == pytest.approx(2 * 1.96 / math.sqrt(200), rel=0.15)
    # 0, 5 and 10: sd 5, t with 2 degrees of freedom 4.303
    assert three.high - three.low == pytest.approx(2 * 4.303 * 5 / math.sqrt(3), rel=0.1)


def covered_by(tables: Callable[[int], list[Table]], truth: float, num: int = 300, **options: Any) -> int:
    """In how many of `num` studies the interval holds the truth."""
    bootstrap = Bootstrap(num_draws=600, **options)
    estimates = [bootstrap.estimate(tables(study)) for study in range(num)]
    return sum(e is not None and e.low <= truth <= e.high for e in estimates)


@pytest.mark.parametrize("between", [0.0, 0.15, 1.0])
def test_intervals_over_three_seeds_cover_however_much_seeds_differ(between: float) -> None:
    rng = np.random.default_rng(4)

    def study(_: int) -> list[Table]:
        return [mean_table(s, names(50, f"{s}-"), rng.normal(0, between) + rng.normal(size=50)) for s in range(3)]

    assert 276 <= covered_by(study, 0.0) <= 296  # 95 % is 285, sd 3.8; with `between` 0, 96.3 %


def test_intervals_of_a_rate_over_seeds_stay_between_0_and_1() -> None:
    events = [[1.0] * 90 + [0.0] * 10, [1.0] * 60 + [0.0] * 40, [1.0] * 99 + [0.0]]
    estimate = Bootstrap(num_draws=200).estimate([mean_table(s, names(100, f"{s}-"), e) for s, e in enumerate(events)])
    assert estimate is not None and estimate.method == "seeds"
    assert 0 < estimate.low < 0.4 and 0.95 < estimate.high < 1  # 0.83 +- 0.51 without Wilson


# --- seeds that are missing, and where figures end --------------------------------------------------------------------


def test_a_missing_seed_does_not_turn_a_study_of_seeds_into_one_of_prompts() -> None:
    """Parts of three seeds that share two are compared as if they were others; to cut them would claim certainty."""
    rng = np.random.default_rng(12)
    a, b = ([mean_table(s, names(200, f"{s}-"), rng.normal(s % 3, 0.1, size=200)) for s in seeds]
            for seeds in ((0, 1, 2), (1, 2, 3)))  # fmt: skip
    found = Bootstrap(num_draws=300).difference(a, b)
    own = [[t.sums[:, 0].mean() for t in tables] for tables in (a, b)]
    assert found is not None and found.method == "seeds" and found.per_seed == {}
    assert found.p_value == pytest.approx(scipy.stats.ttest_ind(*own, equal_var=False).pvalue, abs=0.01)


def test_figures_stay_where_they_can_be() -> None:
    rng = np.random.default_rng(5)
    kappas, shares, rates = [], [], []
    for s, (wrong, mean) in enumerate(((0.02, 0.95), (0.05, 0.99), (0.005, 0.85))):
        first = rng.random(200) < 0.5
        kappas.append(kappa_table(s, names(200, f"{s}-"), list(first), list(first ^ (rng.random(200) < wrong))))
        values = np.clip(rng.normal(mean, 0.02, 200), 0, 1)
        shares.append(mean_table(s, names(200, f"{s}-"), values, bounds=(0.0, 1.0)))
        rates.append(mean_table(s, names(200, f"{s}-"), (np.arange(200) < 60 * s).astype(float)))
    bootstrap = Bootstrap(num_draws=300)
    for estimate in (bootstrap.estimate(kappas, kappa_of), bootstrap.estimate(shares)):
        assert (
            estimate is not None and estimate.method == "seeds" and estimate.low < estimate.value < estimate.high == 1
        )
    other = [mean_table(s, names(200, f"{s}-"), (np.arange(200) < 20 + 85 * (2 - s)).astype(float)) for s in range(3)]
    difference = bootstrap.difference(rates, other)
    assert difference is not None and (difference.low, difference.high) == (-1.0, 1.0)


def test_seeds_with_many_prompts_of_different_number_have_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cai.report.resampling.MAX_CELLS", 10_000)  # 100 draws of 100 prompts, 50 of 200
    rng = np.random.default_rng(13)
    a, b = (
        [mean_table(s, names(100 * (s + 1), f"{s}-"), rng.normal(size=100 * (s + 1))) for s in (0, 1)] for _ in "ab"
    )
    found = Bootstrap(num_draws=500).difference(a, b)
    assert found is not None and found.p_value is not None and found.p_value >= 1 / 51
