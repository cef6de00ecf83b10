"""Differences between policies: pairing, p-values, equivalence."""

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats import weightstats
from studies import names

from cai.report.resampling import Table, mean_table
from cai.report.statistics import Bootstrap

# --- differences ------------------------------------------------------------------------------------------------------


def test_paired_difference_is_sharper_than_unpaired() -> None:
    rng = np.random.default_rng(5)
    difficulty = rng.normal(0, 2, size=200)
    a, b = difficulty + 0.2 + rng.normal(0, 0.5, 200), difficulty + rng.normal(0, 0.5, 200)
    bootstrap = Bootstrap(num_draws=2000)
    paired = bootstrap.difference([mean_table(0, names(200), a)], [mean_table(0, names(200), b)])
    unpaired = bootstrap.difference([mean_table(0, names(200), a)], [mean_table(0, names(200, "q"), b)])
    assert paired is not None and unpaired is not None
    assert paired.value == pytest.approx(unpaired.value)
    assert paired.excludes_zero and not unpaired.excludes_zero
    assert paired.high - paired.low < 0.4 * (unpaired.high - unpaired.low)
    assert paired.p_value is not None and paired.p_value < 0.01


def test_difference_pairs_by_the_seeds_in_common() -> None:
    bootstrap = Bootstrap(num_draws=500)
    a = [mean_table(s, names(20), np.arange(20.0) + 10 * s) for s in (0, 1)]
    b = [mean_table(s, names(20), np.arange(20.0) + 10 * s + 1) for s in (1, 2)]
    difference = bootstrap.difference(a, b)
    assert difference is not None
    assert (difference.value, difference.low, difference.high) == pytest.approx((-1.0, -1.0, -1.0))
    assert list(difference.per_seed) == [1]


def rates_of(seed: int, num: int, rate: float) -> Table:
    events = round(num * rate)
    return mean_table(seed, names(num, f"{seed}-"), [1.0] * events + [0.0] * (num - events), is_rate=True)


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_a_seed_that_counts_more_does_not_stand_for_the_others(num_seeds: int) -> None:
    """Simpson's paradox: no difference in any seed, and 34 points between the pooled counts of three."""
    a = [rates_of(0, 40, 0.2), rates_of(1, 200, 0.8), rates_of(2, 200, 0.7)][:num_seeds]
    b = [rates_of(0, 200, 0.2), rates_of(1, 40, 0.8), rates_of(2, 40, 0.7)][:num_seeds]
    bootstrap = Bootstrap(num_draws=500)
    found, one = bootstrap.difference(a, b), bootstrap.estimate(a)
    assert found is not None and one is not None and found.p_value is not None
    assert one.value == pytest.approx(np.mean([0.2, 0.8, 0.7][:num_seeds]))
    assert found.value == pytest.approx(0) and not found.excludes_zero and found.p_value > 0.5


def test_arms_that_count_different_prompts_are_not_exchanged() -> None:
    """What only one of them counted, as reasons of refusals: exchanged, it would move the counts, and reject in 20 % of
    studies where there is nothing to find.
    """
    rng, bootstrap, rejected = np.random.default_rng(0), Bootstrap(num_draws=400), 0
    for _ in range(100):
        tables = []
        for num in (100, 15):
            values = np.full(200, np.nan)
            values[rng.choice(200, num, replace=False)] = rng.random(num) < 0.3
            tables.append([mean_table(0, names(200), values, is_rate=True)])
        found = bootstrap.difference(*tables)
        assert found is not None and found.p_value is not None
        assert found.excludes_zero or found.p_value > 0.04
        rejected += found.p_value < 0.05
    assert rejected <= 12  # 5 expected, sd 2.2


def test_difference_of_two_rates_without_events_is_not_certain() -> None:
    zero = [mean_table(0, names(100), np.zeros(100))]
    difference = Bootstrap(num_draws=200).difference(zero, zero)
    assert difference is not None
    assert difference.method == "mover"
    assert difference.low < -0.03 < 0.03 < difference.high
    assert difference.p_value == pytest.approx(1.0)


def test_p_values_of_no_difference_are_uniform_enough() -> None:
    rng = np.random.default_rng(6)
    bootstrap = Bootstrap(num_draws=500)
    small = 0
    for _ in range(300):
        tables = [[mean_table(0, names(60), rng.normal(size=60))] for _ in range(2)]
        difference = bootstrap.difference(*tables)
        assert difference is not None and difference.p_value is not None
        assert (difference.p_value < 0.05) == difference.excludes_zero or abs(difference.p_value - 0.05) < 0.02
        small += difference.p_value < 0.05
    assert 4 <= small <= 30  # 15 expected, sd 3.8


def test_the_permutation_test_is_the_one_of_scipy() -> None:
    """One value a prompt, one seed: exchanging a prompt's values is a change of the difference's sign."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.25, 1, size=40), rng.normal(size=40)
    found = Bootstrap(num_draws=20_000).difference([mean_table(0, names(40), a)], [mean_table(0, names(40), b)])
    expected = scipy.stats.permutation_test(
        (a, b), lambda x, y, axis: (x - y).mean(axis=axis), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert found is not None and found.p_value == pytest.approx(expected.pvalue, abs=0.02)


def test_few_events_are_tested_too() -> None:
    """5 of 200 against none: McNemar's exact test, 2 x (1/2)^5."""
    five = [mean_table(0, names(200), [1.0] * 5 + [0.0] * 195)]
    none = [mean_table(0, names(200), [0.0] * 200)]
    found = Bootstrap(num_draws=20_000).difference(five, none)
    assert found is not None and found.method == "mover"
    assert found.p_value == pytest.approx(2 * 0.5**5, abs=0.01)


def test_p_values_over_seeds_are_those_of_the_paired_t_test() -> None:
    rng = np.random.default_rng(8)
    a, b = ([mean_table(s, names(30), rng.normal(c, 0.01, size=30) + s * c) for s in range(4)] for c in (0.5, 0.3))
    found = Bootstrap(num_draws=500).difference(a, b)
    own = [[t.sums[:, 0].mean() for t in tables] for tables in (a, b)]
    assert found is not None and found.method == "seeds"
    assert found.p_value == pytest.approx(scipy.stats.ttest_rel(*own).pvalue, rel=0.02)


def test_arms_without_a_seed_in_common_are_compared_by_welchs_test() -> None:
    rng = np.random.default_rng(9)
    a = [mean_table(s, names(30, f"{s}-"), rng.normal(s, 0.01, size=30)) for s in (1, 2, 3)]
    b = [mean_table(s, names(30, f"{s}-"), rng.normal(s * 2, 0.01, size=30)) for s in (4, 5, 6, 7)]
    found = Bootstrap(num_draws=500).difference(a, b)
    own = [[t.sums[:, 0].mean() for t in tables] for tables in (a, b)]
    assert found is not None and found.per_seed == {}
    assert found.p_value == pytest.approx(scipy.stats.ttest_ind(*own, equal_var=False).pvalue, rel=0.02)


def test_a_contrast_weighs_its_parts() -> None:
    tables = [[mean_table(s, names(50), np.arange(50.0) * k + s) for s in (0, 1, 2)] for k in (1, 2, 5)]
    found = Bootstrap(num_draws=300).contrast(list(zip((0.5, 0.5, -1.0), tables, strict=True)))
    assert found is not None
    assert found.value == pytest.approx(24.5 * (0.5 + 1.0 - 5.0)) and list(found.per_seed) == [0, 1, 2]
    assert found.low < found.value < found.high < 0  # the prompts, which all seeds share
    assert Bootstrap(num_draws=300).contrast([(1.0, tables[0]), (-1.0, [])]) is None


# --- equivalence ------------------------------------------------------------------------------------------------------


def test_equivalence_is_two_one_sided_t_tests() -> None:
    """Against statsmodels 0.15, ttost_paired, on the figures of five seeds."""
    rng = np.random.default_rng(10)
    a, b = ([mean_table(s, names(30, f"{s}-"), rng.normal(c, 0.2, size=30)) for s in range(5)] for c in (0.50, 0.52))
    found = Bootstrap(num_draws=500).difference(a, b, margin=0.2)
    x, y = (np.array([t.sums[:, 0].mean() for t in tables]) for tables in (a, b))
    assert found is not None
    assert found.p_equal == pytest.approx(weightstats.ttost_paired(x, y, -0.2, 0.2)[0], rel=0.02)


def test_equivalence_of_one_seed_goes_by_draws() -> None:
    rng = np.random.default_rng(11)
    a, b = ([mean_table(0, names(2000), (rng.random(2000) < 0.3).astype(float))] for _ in range(2))
    bootstrap = Bootstrap(num_draws=2000)
    found = bootstrap.difference(a, b, margin=0.05)
    assert found is not None and found.p_equal is not None and found.p_value is not None
    error = (found.high - found.low) / 3.92
    assert found.p_equal == pytest.approx(scipy.stats.norm.sf((0.05 - abs(found.value)) / error), abs=0.01)
    narrow = bootstrap.difference(a, b, margin=0.001)
    assert narrow is not None and narrow.p_equal is not None and narrow.p_equal > 0.2
    without = bootstrap.difference(a, b)
    assert without is not None and without.p_equal is None
