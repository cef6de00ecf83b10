"""The mean and its interval, agreement, calibration, against simulations, closed formulas and libraries."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from studies import names, simulated_study

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
from cai.report.formulas import holm, wilson
from cai.report.resampling import mean_table
from cai.report.statistics import Bootstrap

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


@pytest.mark.parametrize(("few", "many", "value"), [((3, 3), (0, 400), 0.5), ((4, 8), (0, 500), 0.25)])
def test_few_events_are_counted_and_not_worked_out_of_the_mean(
    few: tuple[int, int], many: tuple[int, int], value: float
) -> None:
    """Two seeds that count very different numbers: what is sure of the large one says nothing of the small one."""
    tables = [
        mean_table(seed, names(num, f"{seed}-"), [1.0] * events + [0.0] * (num - events), is_rate=True)
        for seed, (events, num) in enumerate((few, many))
    ]
    found = Bootstrap(num_draws=500).estimate(tables)
    assert found is not None and found.value == value and found.method == "wilson"
    assert found.low < value - 0.1 and found.high > value + 0.15


@pytest.mark.parametrize("num_seeds", [1, 2])
def test_one_prompt_a_seed_is_no_interval(num_seeds: int) -> None:
    tables = [mean_table(seed, [f"{seed}"], [1.5 + seed]) for seed in range(num_seeds)]
    assert Bootstrap(num_draws=50).estimate(tables) is None


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
