"""The report's statistics: against known values, against libraries, and by simulation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats import weightstats

from cai.labelers.statistics import cohen_kappa
from cai.report.agreement import (
    alpha_of,
    alpha_table,
    calibration,
    calibration_error_of,
    calibration_table,
    human_ceiling,
    kappa_of,
    kappa_table,
)
from cai.report.resampling import Table, mean_table
from cai.report.statistics import Bootstrap, holm, wilson


def names(num: int, prefix: str = "p") -> list[str]:
    return [f"{prefix}{i}" for i in range(num)]


def simulated_study(rng: np.random.Generator, num_prompts: int, num_samples: int, spread: float) -> Table:
    """Responses whose mean is 0, with an effect of the prompt that its responses share."""
    effect = rng.normal(0, spread, size=num_prompts)
    values = effect[:, None] + rng.normal(size=(num_prompts, num_samples))
    return mean_table(0, [p for p in names(num_prompts) for _ in range(num_samples)], values.ravel())


# --- the mean and its interval ----------------------------------------------------------------------------------------


def test_interval_covers_the_truth_when_responses_share_a_prompt() -> None:
    rng = np.random.default_rng(0)
    bootstrap = Bootstrap(num_draws=1000)
    covered = naive = 0
    for _ in range(400):
        table = simulated_study(rng, num_prompts=60, num_samples=8, spread=1.0)
        estimate = bootstrap.estimate([table])
        assert estimate is not None
        covered += estimate.low <= 0 <= estimate.high
        naive += abs(estimate.value) < 1.96 * math.sqrt((1 + 1.0) / estimate.num)
    # 95 % of 400 is 380, sd 4.4; an interval that forgets the prompts covers about 63 %
    assert 363 <= covered <= 394
    assert naive < 300


def test_interval_of_a_clustered_rate_covers_the_truth() -> None:
    rng = np.random.default_rng(1)
    bootstrap = Bootstrap(num_draws=1000)
    prompts = [p for p in names(100) for _ in range(2)]
    for rate, at_least in ((0.5, 272), (0.02, 272)):  # of 300: 95 % is 285, sd 3.8
        shape = (rate * 4, (1 - rate) * 4)
        covered = 0
        for _ in range(300):
            values = (rng.random((100, 2)) < rng.beta(*shape, size=(100, 1))).astype(float)
            estimate = bootstrap.estimate([mean_table(0, prompts, values.ravel())])
            assert estimate is not None
            covered += estimate.low <= rate <= estimate.high
        assert covered >= at_least, rate


def test_zero_events_do_not_give_an_interval_of_width_zero() -> None:
    estimate = Bootstrap(num_draws=500).estimate([mean_table(0, names(200), np.zeros(200))])
    assert estimate is not None
    assert estimate.method == "wilson"
    assert (estimate.value, estimate.low) == (0.0, 0.0)
    assert estimate.high == pytest.approx(0.0188, abs=1e-3)


def test_repeated_samples_of_one_prompt_are_no_new_evidence() -> None:
    once = Bootstrap(num_draws=2000).estimate([mean_table(0, names(50), np.arange(50.0))])
    copies = Bootstrap(num_draws=2000).estimate([mean_table(0, names(50) * 4, np.tile(np.arange(50.0), 4))])
    assert once is not None and copies is not None
    assert (copies.num, copies.num_prompts) == (200, 50)
    assert (copies.low, copies.high) == pytest.approx((once.low, once.high))


def test_nan_does_not_count_and_nothing_gives_none() -> None:
    bootstrap = Bootstrap(num_draws=500)
    estimate = bootstrap.estimate([mean_table(0, names(4), [1.0, math.nan, 3.0, math.nan])])
    assert estimate is not None
    assert (estimate.value, estimate.num, estimate.num_prompts) == (2.0, 2, 2)
    assert bootstrap.estimate([mean_table(0, names(2), [math.nan, math.nan])]) is None
    assert bootstrap.estimate([]) is None


def test_same_seed_same_interval() -> None:
    table = mean_table(0, names(30), np.arange(30.0))
    assert Bootstrap(num_draws=300, seed=5).estimate([table]) == Bootstrap(num_draws=300, seed=5).estimate([table])
    assert Bootstrap(num_draws=300, seed=5).estimate([table]) != Bootstrap(num_draws=300, seed=6).estimate([table])


def test_order_of_rows_and_of_seeds_does_not_matter() -> None:
    values = np.arange(40.0)
    tables = [mean_table(s, names(40), values * (s + 1)) for s in range(3)]
    turned = [mean_table(s, names(40)[::-1], (values * (s + 1))[::-1]) for s in (2, 0, 1)]
    bootstrap = Bootstrap(num_draws=300)
    first, second = bootstrap.estimate(tables), bootstrap.estimate(turned)
    assert first is not None and second is not None
    assert (first.low, first.high) == pytest.approx((second.low, second.high))
    assert first.per_seed == second.per_seed == {0: 19.5, 1: 39.0, 2: 58.5}


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


# --- closed formulas against libraries --------------------------------------------------------------------------------


def test_known_kappas() -> None:
    """reference values: balanced binary labels with a = .726 -> .452; .60 -> .20; .773 -> .546"""
    for agreement, kappa in ((0.726, 0.452), (0.60, 0.20), (0.773, 0.546)):
        half = agreement / 2
        sums = np.array([[half, 0.5 - half, 0.5 - half, half]])
        assert kappa_of(sums)[0] == pytest.approx(kappa, abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=2, max_size=30))
def test_kappa_is_the_one_of_the_label_stage(pairs: list[tuple[bool, bool]]) -> None:
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    expected = cohen_kappa(first, second)
    sums = kappa_table(0, names(len(pairs)), first, second).sums.sum(axis=0)[None, :]
    if expected is None:
        assert math.isnan(kappa_of(sums)[0])
    else:
        assert kappa_of(sums)[0] == pytest.approx(expected, abs=1e-9)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.sampled_from([True, False, None]), min_size=3, max_size=3), min_size=3, max_size=20))
def test_alpha_is_evalicas_with_people_missing(rows: list[list[bool | None]]) -> None:
    evalica = pytest.importorskip("evalica")
    pandas = pytest.importorskip("pandas")
    ratings = [[r for r in row if r is not None] for row in rows]
    pairable = [r for row in ratings if len(row) > 1 for r in row]
    if len(set(pairable)) < 2:
        return
    sums = alpha_table(0, names(len(rows)), ratings).sums.sum(axis=0)[None, :]
    frame = pandas.DataFrame([[None if r is None else float(r) for r in row] for row in rows]).T
    assert alpha_of(sums)[0] == pytest.approx(evalica.alpha(frame).alpha, abs=1e-9)


@pytest.mark.parametrize(
    ("events", "num", "low", "high"),
    [(0, 200, 0.0, 0.018845), (1, 40, 0.004427, 0.128814), (29, 40, 0.57165, 0.83892), (40, 40, 0.912378, 1.0)],
)
def test_wilson(events: int, num: int, low: float, high: float) -> None:
    """Values of statsmodels 0.15, proportion_confint(method="wilson")."""
    assert wilson(events, num) == pytest.approx((low, high), abs=1e-6)


def test_holm() -> None:
    """Values of statsmodels 0.15, multipletests(method="holm")."""
    assert holm([0.04, 0.001, 0.2, 0.02, 0.9]) == pytest.approx([0.12, 0.005, 0.4, 0.08, 0.9])
    assert holm([]) == []


def test_kappa_and_alpha_have_intervals_that_hold_them() -> None:
    rng = np.random.default_rng(7)
    truth = rng.random(500) < 0.5
    first, second = truth ^ (rng.random(500) < 0.16), truth ^ (rng.random(500) < 0.16)
    bootstrap = Bootstrap(num_draws=1000)
    kappa = bootstrap.estimate([kappa_table(0, names(500), list(first), list(second))], kappa_of)
    alpha = bootstrap.estimate([alpha_table(0, names(500), list(zip(first, second, strict=True)))], alpha_of)
    assert kappa is not None and alpha is not None
    assert kappa.value == pytest.approx(alpha.value, abs=0.01)
    expected = 2 * (0.84**2 + 0.16**2) - 1
    assert kappa.low < expected < kappa.high < kappa.low + 0.2


def test_human_ceiling() -> None:
    assert human_ceiling(0.726) == pytest.approx(0.836, abs=5e-4)
    assert human_ceiling(0.60) == pytest.approx(0.7236, abs=1e-4)
    assert human_ceiling(1.0) == 1.0
    assert human_ceiling(0.49) is None


# --- calibration ------------------------------------------------------------------------------------------------------


def test_calibration_error_of_honest_and_of_overconfident_predictions() -> None:
    rng = np.random.default_rng(8)
    truth = rng.random(4000)
    outcome = (rng.random(4000) < truth).astype(float)
    honest = calibration_table(0, names(4000), list(truth), list(outcome))
    boastful = calibration_table(0, names(4000), list(np.where(truth > 0.5, 0.99, 0.01)), list(outcome))
    error = [calibration_error_of(t.sums.sum(axis=0)[None, :])[0] for t in (honest, boastful)]
    assert error[0] < 0.03
    assert error[1] == pytest.approx(0.24, abs=0.02)
    bins = calibration([honest])
    assert len(bins) == 10 and sum(b.num for b in bins) == 4000
    assert sum(b.outcome_low <= b.predicted <= b.outcome_high for b in bins) >= 8


def test_probability_one_is_in_the_last_bin() -> None:
    (last,) = calibration([calibration_table(0, ["p"], [1.0], [1.0])])
    assert (last.low, last.high, last.num) == (0.9, 1.0, 1)


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
