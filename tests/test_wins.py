"""Win rates, parity, equal length, Elo: against libraries and by simulation, on made-up verdicts."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import evalica
import numpy as np
import pytest
import statsmodels.api as sm
from reports import quick
from synthetic_runs import make_runs

from cai.records import read_json, read_rows, write_rows
from cai.report.ratings import ratings
from cai.report.runs import Policy
from cai.report.statistics import Bootstrap
from cai.report.wins import Match, win_rates

ALL = ("SL-CAI", "RLHF", "RLAIF")


def match(
    first: str, second: str, outcomes: Sequence[float], lengths: Sequence[float] | None = None, seed: int = 0
) -> Match:
    num = len(outcomes)
    prompts = [f"p{i}" for i in range(num)]
    ratios = [math.nan] * num if lengths is None else list(lengths)
    never = [math.nan] * num
    return Match(first, second, "AI judge", {seed: prompts}, {seed: list(outcomes)}, {seed: ratios}, {seed: never})


def policies(*names: str) -> list[Policy]:
    return [Policy(name, "policy", (name,), {}, ()) for name in names]


def by_chance(rng: np.random.Generator, scores: Mapping[str, float], num: int) -> list[Match]:
    """Every two of the policies, each prompt won as their scores say."""
    found = []
    names = list(scores)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            p = 1 / (1 + math.exp(scores[a] - scores[b]))
            found.append(match(b, a, (rng.random(num) < p).astype(float)))
    return found


def test_orders_cannot_disagree_on_responses_that_are_equal(tmp_path: Path) -> None:
    """They are known by their texts: a judge who goes by the place alone gives a half to different ones, too."""
    (folder, *_) = make_runs(tmp_path, seeds=(0,), num_prompts=8, num_comparisons=8)
    stages = read_json(folder / "run.json")["stages"]
    ours, theirs = (Path(stages[name]["path"]) / "responses.jsonl" for name in ("evaluate_policy", "evaluate_sl_cai"))
    texts = {row["id"]: row["text"] for row in read_rows(theirs)}
    answers = read_rows(ours)
    write_rows(ours, [row | ({"text": texts[row["id"]]} if i % 2 else {}) for i, row in enumerate(answers)])
    path = Path(stages["win_rate"]["path"]) / "wins.jsonl"
    by_place = {"p_a": 0.5, "p_a_shown_first": 1.0, "p_a_shown_second": 0.0, "consistent": False, "winner": "tie"}
    write_rows(path, [row | by_place for row in read_rows(path)])
    (rate,) = (r for r in quick([folder]).win_rates if r.judge == "AI judge")
    assert rate.inconsistent is not None and rate.inconsistent.value == 1.0
    assert rate.inconsistent.num == sum(texts[row["id"]] != row["text"] for row in read_rows(ours)) < len(answers)


# --- parity -----------------------------------------------------------------------------------------------------------


def test_parity_is_more_than_no_difference() -> None:
    """100 prompts cannot tell, 4000 can."""
    rng = np.random.default_rng(0)
    few, many = (match("B", "A", rng.integers(2, size=num).astype(float)) for num in (100, 4000))
    found = [rate.estimate for rate in win_rates([few, many], Bootstrap(num_draws=1000))]
    assert all(e.low < 0.5 < e.high and e.p_value is not None and e.p_value > 0.05 for e in found)
    assert found[0].p_equal is not None and found[0].p_equal > 0.05
    assert found[1].p_equal is not None and found[1].p_equal < 0.05


def test_a_preference_is_no_parity() -> None:
    (rate,) = win_rates([match("B", "A", [1.0] * 150 + [0.0] * 50)], Bootstrap(num_draws=1000))
    assert rate.estimate.p_value is not None and rate.estimate.p_value < 0.01
    assert rate.estimate.p_equal is not None and rate.estimate.p_equal > 0.9


def of_seeds(found: Sequence[Match]) -> Match:
    """Matches of one seed each as one of seeds 0, 1, ..."""
    prompts, outcomes, lengths, swayed = (
        {s: getattr(m, name)[0] for s, m in enumerate(found)} for name in ("prompts", "outcomes", "lengths", "swayed")
    )
    return Match("B", "A", "AI judge", prompts, outcomes, lengths, swayed)


def test_who_always_won_may_have_been_lucky() -> None:
    (rate,) = win_rates([of_seeds([match("B", "A", [1.0] * 5)] * 3)], Bootstrap(num_draws=200))
    assert rate.estimate.method == "wilson" and rate.estimate.p_value is not None
    assert 1e-6 < rate.estimate.p_value < 0.05


# --- at equal length --------------------------------------------------------------------------------------------------


def test_rate_at_equal_length_is_the_logistic_regression_of_statsmodels() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(0.4, 0.5, size=400)
    y = (rng.random(400) < 1 / (1 + np.exp(-(-0.3 + 1.5 * x)))).astype(float)
    (rate,) = win_rates([match("B", "A", y, list(x))], Bootstrap(num_draws=1000))
    fit = sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit()
    assert rate.at_equal_length is not None
    assert rate.at_equal_length.value == pytest.approx(1 / (1 + math.exp(-fit.params[0])), abs=1e-9)
    low, high = (1 / (1 + math.exp(-(fit.params[0] + sign * 1.96 * fit.bse[0]))) for sign in (-1, 1))
    assert (rate.at_equal_length.low, rate.at_equal_length.high) == pytest.approx((low, high), abs=0.015)
    assert rate.estimate.value > 0.5 > rate.at_equal_length.value  # it won by being longer
    wald = fit.params[0] / fit.bse[0]  # the test that the rate is a half, not that it is nothing
    assert rate.at_equal_length.p_value == pytest.approx(math.erfc(abs(wald) / math.sqrt(2)), abs=0.03)


def test_each_seed_at_equal_length_is_its_own_fit() -> None:
    rng = np.random.default_rng(3)
    seeds, rates = [], []
    for edge in (-3.0, 0.0, 3.0):
        x = rng.normal(0.3, 0.5, size=200)
        y = (rng.random(200) < 1 / (1 + np.exp(-(edge + 1.5 * x)))).astype(float)
        seeds.append(match("B", "A", y, list(x)))
        rates.append(sm.GLM(y, sm.add_constant(x), family=sm.families.Binomial()).fit().params[0])
    (rate,) = win_rates([of_seeds(seeds)], Bootstrap(num_draws=200))
    found = rate.at_equal_length
    assert found is not None and (found.low, found.high) == (0.0, 1.0)  # of seeds so far apart nothing is known
    assert list(found.per_seed.values()) == pytest.approx([1 / (1 + math.exp(-b)) for b in rates], abs=1e-6)


@pytest.mark.parametrize(
    ("outcomes", "lengths"),
    [
        ([1.0, 0.0] * 20, [0.0] * 40),  # all of one length
        ([1.0] * 20 + [0.0] * 20, [1.0] * 20 + [-1.0] * 20),  # the longer one always wins
        ([1.0] * 40, list(np.linspace(-1, 1, 40))),  # one side always wins
        ([1.0, 0.0] * 20, [math.nan] * 40),  # lengths are not known
    ],
)
def test_where_lengths_do_not_tell_there_is_no_rate_at_equal_length(
    outcomes: list[float], lengths: list[float]
) -> None:
    (rate,) = win_rates([match("B", "A", outcomes, lengths)], Bootstrap(num_draws=200))
    assert rate.at_equal_length is None


# --- Elo --------------------------------------------------------------------------------------------------------------


def test_elo_is_evalicas_and_the_truth_is_in_its_interval() -> None:
    scores = {"SL-CAI": 0.0, "RLHF": 0.7, "RLAIF": 1.0}
    found = by_chance(np.random.default_rng(2), scores, 500)
    (rated,) = ratings(found, policies(*ALL), Bootstrap(num_draws=1000))
    assert (rated.reference, list(rated.elo)) == ("SL-CAI", ["RLHF", "RLAIF"]) and rated.misfit < 0.05
    xs = [m.first for m in found for _ in m.outcomes[0]]
    ys = [m.second for m in found for _ in m.outcomes[0]]
    winners = [evalica.Winner.X if o else evalica.Winner.Y for m in found for o in m.outcomes[0]]
    fit = evalica.bradley_terry(xs, ys, winners, tolerance=1e-10, limit=10_000).scores
    for name, estimate in rated.elo.items():
        assert estimate.value == pytest.approx(400 * math.log10(fit[name] / fit["SL-CAI"]), abs=1.0)
        assert estimate.low < scores[name] * 400 / math.log(10) < estimate.high < estimate.low + 120
    assert 400 * math.log10(0.64 / 0.36) == pytest.approx(100, abs=0.1)  # what the page says of 100 points


def test_who_never_lost_has_a_rating_all_the_same() -> None:
    found = [match("RLHF", "SL-CAI", [1.0] * 50), match("RLAIF", "RLHF", [0.5] * 50)]
    (rated,) = ratings(found, policies(*ALL), Bootstrap(num_draws=200))
    assert 700 < rated.elo["RLHF"].value < 900
    assert rated.elo["RLAIF"].value == pytest.approx(rated.elo["RLHF"].value, abs=1.0)


def test_a_circle_shows_as_misfit() -> None:
    found = [match("RLHF", "SL-CAI", [1.0, 1.0, 1.0, 0.0] * 20), match("RLAIF", "RLHF", [1.0, 1.0, 1.0, 0.0] * 20),
             match("RLAIF", "SL-CAI", [0.0, 0.0, 0.0, 1.0] * 20)]  # fmt: skip
    (rated,) = ratings(found, policies(*ALL), Bootstrap(num_draws=200))
    assert rated.misfit == pytest.approx(0.25, abs=0.01)


def test_who_never_met_is_on_no_scale() -> None:
    apart = [match("RLHF", "SL-CAI", [1.0, 0.0] * 20), match("RLAIF", "SL-CAI of RLAIF", [1.0, 0.0] * 20)]
    names = policies("SL-CAI", "SL-CAI of RLAIF", "RLHF", "RLAIF")
    assert ratings(apart, names, Bootstrap(num_draws=200)) == []
    elsewhere = [match("RLHF", "SL-CAI", [1.0, 0.0]), match("RLAIF", "SL-CAI", [1.0, 0.0], seed=1)]
    assert ratings(elsewhere, names, Bootstrap(num_draws=200)) == []
