"""Simulated people and the statistics of judgments. (The AI labeler: test_ai_labeler.py.)"""

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.errors import LabelerError
from cai.labelers.journaled import label_journaled
from cai.labelers.people import agreement_of, noise_for
from cai.labelers.simulated import SimulatedLabeler
from cai.labelers.statistics import between_people, cohen_kappa, first_judgments, position, verdicts, with_gold
from cai.types import Comparison, Judgment, Pair, Prompt, Response, Turn


class Number:
    """Scores a text that is a number by its value."""

    columns = ("gold", "nothing")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Gold, and a column that applies to no response."""
        return {"gold": [float(r.split()[0]) for r in responses], "nothing": [math.nan] * len(responses)}


def comparison(name: str, *texts: str, tags: tuple[str, ...] = ()) -> Comparison:
    prompt = Prompt(id=name, turns=(Turn("user", name),), tags=tags)
    responses = [
        Response(id=f"{name}/{k}", prompt_id=name, text=text, model="m", num_tokens=1, finished=True)
        for k, text in enumerate(texts)
    ]
    return Comparison(id=name, prompt=prompt, responses=tuple(responses))


def random_comparisons(n: int, k: int = 2, seed: int = 0) -> list[Comparison]:
    rng = random.Random(seed)
    return [comparison(f"c{i}", *(f"{rng.gauss(0, 3):.6f} {i} {j}" for j in range(k))) for i in range(n)]


def people(**settings: object) -> SimulatedLabeler:
    return SimulatedLabeler(**{"scorer": Number(), "seed": 1, **settings})  # type: ignore[arg-type]


# --- simulated people -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.6, 0.726])
def test_two_people_agree_at_the_rate_asked_for(rate: float) -> None:
    judgments = list(people(agreement=rate, overlap=1.0).label(random_comparisons(4000)))
    found = between_people(judgments)
    assert found["num_pairs"] == 4000
    assert found["agreement"] == pytest.approx(rate, abs=0.015)
    assert found["kappa"] == pytest.approx(2 * rate - 1, abs=0.03)  # balanced labels


@given(
    st.lists(st.floats(-50, 50).filter(lambda x: abs(x) > 1e-3), min_size=5, max_size=40),
    st.floats(0.51, 0.98),
    st.floats(1e-6, 1e6),
)
def test_tau_gives_exactly_the_rate_whatever_the_unit_of_gold(values: list[float], rate: float, unit: float) -> None:
    differences = np.array([values]) * unit
    tau = noise_for(lambda tau: agreement_of(differences / tau, {0.0: 1.0}), rate, differences)
    assert agreement_of(differences / tau, {0.0: 1.0}) == pytest.approx(rate, abs=1e-9)


def test_agreement_is_the_mean_of_q_squared_plus_its_complement_squared() -> None:
    log_odds = np.array([[-1.0, 0.0, 2.5]]) / 0.7
    q = 1 / (1 + np.exp(-log_odds))
    assert agreement_of(log_odds, {0.0: 1.0}) == pytest.approx(np.mean(q**2 + (1 - q) ** 2))


def test_an_unreachable_rate_names_the_reachable_range() -> None:
    half_equal = [comparison("a", "1 x", "1 y"), comparison("b", "1 x", "2 y")]
    with pytest.raises(LabelerError, match=r"0\.8 cannot be reached on these 2 pairs, of which 1 have equal.*0\.7500"):
        list(people(agreement=0.8).label(half_equal))
    assert len(list(people(agreement=0.7).label(half_equal))) >= 2


def test_people_are_right_as_often_as_the_bradley_terry_model_says() -> None:
    comparisons = [comparison(str(i), "1 x", "0 y") for i in range(3000)]
    judgments = list(people(agreement=0.726, overlap=0.0).label(comparisons))
    q = (1 + math.sqrt(2 * 0.726 - 1)) / 2  # preference-learning notes: .726 -> .836
    assert np.mean([j.pairs[0].p for j in judgments]) == pytest.approx(q, abs=0.02)
    assert judgments[0].evidence[0]["p_people"] == pytest.approx(q, abs=1e-6)


def test_a_ranking_never_contradicts_itself() -> None:
    for judgment in people(agreement=0.6).label(random_comparisons(200, k=4)):
        better = {(pair.first, pair.second) if pair.p == 1 else (pair.second, pair.first) for pair in judgment.pairs}
        assert len(judgment.pairs) == 6
        orders = [o for o in permutations(range(4)) if all(pair in better for pair in combinations(o, 2))]
        assert len(orders) == 1, judgment.id


def test_identical_texts_are_even_and_are_no_agreement() -> None:
    comparisons = [comparison("same", "3 x", "3 x"), *random_comparisons(20)]
    judgments = list(people(overlap=1.0).label(comparisons))
    same = [j for j in judgments if j.comparison_id == "same"]
    assert [j.pairs for j in same] == [(Pair(0, 1, 0.5),)] * 2
    assert all(p.p in (0.0, 1.0) for j in judgments if j not in same for p in j.pairs)
    found = between_people(judgments)
    assert (found["num_pairs"], found["num_even"]) == (20, 1)


def test_overlap_is_the_share_that_a_second_person_judges() -> None:
    judgments = list(people(overlap=0.3, num_people=4).label(random_comparisons(2000)))
    by_comparison: dict[str, list[str]] = {}
    for judgment in judgments:
        by_comparison.setdefault(judgment.comparison_id, []).append(judgment.person)
    assert len(by_comparison) == 2000
    twice = [names for names in by_comparison.values() if len(names) == 2]
    assert len(twice) / 2000 == pytest.approx(0.3, abs=0.03)
    assert all(a != b for a, b in twice)
    assert {j.person for j in judgments} == {f"person-{n}" for n in (1, 2, 3, 4)}


def test_labels_depend_on_their_own_comparison_and_seed() -> None:
    comparisons = random_comparisons(60)
    labeler = people()
    whole = list(labeler.label(comparisons))
    done = {c.id for c in comparisons[::2]}
    assert list(labeler.label(comparisons, done=done)) == [j for j in whole if j.comparison_id not in done]
    assert list(people().label(comparisons)) == whole
    assert [j.pairs for j in people(seed=2).label(comparisons)] != [j.pairs for j in whole]


def test_swapping_the_responses_swaps_the_labels() -> None:
    comparisons = random_comparisons(50)
    swapped = [replace(c, responses=c.responses[::-1]) for c in comparisons]
    labels = first_judgments(people().label(comparisons))
    for name, judgment in first_judgments(people().label(swapped)).items():
        assert judgment.pairs[0].p == 1 - labels[name].pairs[0].p


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"agreement": 0.5}, "agreement: must be above 0.5"),
        ({"agreement": 1.0}, "agreement: must be above 0.5"),
        ({"overlap": 20}, "overlap: must be a share"),
        ({"num_people": 1, "overlap": 0.1}, "num_people: must be at least 2"),
        ({"column": "golf"}, "did you mean 'gold'"),
        ({"column": "nothing"}, "'nothing' has no number"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, object], message: str) -> None:
    with pytest.raises(LabelerError, match=message):
        list(people(**settings).label(random_comparisons(3)))


# --- statistics -------------------------------------------------------------------------------------------------------


def judgment(name: str, *pairs: Pair, number: int = 0, **rest: object) -> Judgment:
    return Judgment(id=f"{name}/{number}", comparison_id=name, labeler="l", person=str(number), pairs=pairs, **rest)  # type: ignore[arg-type]


def test_kappa() -> None:
    assert cohen_kappa([], []) is None
    assert cohen_kappa([True, True], [True, True]) is None, "chance alone explains it"
    assert cohen_kappa([True, False], [False, True]) == -1.0
    # balanced labels, agreement .72 -> .44 (evaluation notes, section 6)
    first = [True] * 50 + [False] * 50
    second = [True] * 36 + [False] * 14 + [False] * 36 + [True] * 14
    assert cohen_kappa(first, second) == pytest.approx(0.44)


def test_verdicts_count_every_abstention_by_its_reason() -> None:
    broken = ({"neutralised": 2}, {"neutralised": 1})
    decided = [judgment("a", Pair(0, 1, 0.9), evidence=broken), judgment("b", Pair(0, 1, 0.5))]
    rows = [*decided, judgment("c", abstained="why")]
    assert verdicts(rows) == {
        "num_pairs": 2,
        "num_even": 1,
        "mean_p": pytest.approx(0.7),
        "mean_distance": pytest.approx(0.2),
        "num_abstained": 1,
        "abstained": {"why": 1},
        "num_neutralised": 1,
    }
    assert verdicts([])["mean_p"] is None


def test_position_looks_at_both_orders_of_a_question() -> None:
    def row(shown: list[int], p: float | None, principle: str = "x") -> dict[str, object]:
        return {"pair": [0, 1], "principle": principle, "shown": shown, "p": p}

    rows = [
        judgment("a", evidence=(row([0, 1], 0.9), row([1, 0], 0.8))),  # first both times
        judgment("b", evidence=(row([0, 1], 0.1), row([1, 0], 0.2))),  # second both times
        judgment("c", evidence=(row([0, 1], 0.9), row([1, 0], 0.2))),  # the same response both times
        judgment("d", evidence=(row([0, 1], 0.9), row([1, 0], None))),  # one is ill-formed
        judgment("e", evidence=(row([0, 1], 0.9, "x"), row([1, 0], 0.9, "y"))),  # two principles, one order each
    ]
    found = position(rows)
    assert found["num_questions"] == 3
    assert found["same_position"] == pytest.approx(2 / 3)
    assert position([*rows, judgment("f", evidence=(row([0, 1], 0.55), row([1, 0], 0.55)))]) == {
        "num_questions": 4,
        "same_position": pytest.approx(3 / 4),
        "num_decided": 3,
        "same_position_decided": pytest.approx(2 / 3),
        "mean_p_shown_first": pytest.approx((3.1 + 1.1) / 8),
    }
    assert found["mean_p_shown_first"] == pytest.approx((0.9 + 0.8 + 0.1 + 0.2 + 0.9 + 0.2) / 6)


def test_agreement_with_gold_by_tag_and_principle() -> None:
    comparisons = [comparison(n, "x", "y", tags=(t,)) for n, t in (("a", "t"), ("b", "t"), ("c", "u"), ("d", "u"))]
    labels = {
        "a": judgment("a", Pair(0, 1, 0.9), principle_ids=("p",)),
        "b": judgment("b", Pair(0, 1, 0.6), principle_ids=("q",)),
        "c": judgment("c", Pair(0, 1, 0.5), principle_ids=("p",)),
        "d": judgment("d", Pair(0, 1, 0.9), principle_ids=("p",)),
    }
    gold = {"a": [2.0, 1.0], "b": [1.0, 2.0], "c": [3.0, 1.0], "d": [1.0, 1.0]}
    found = with_gold(comparisons, labels, gold)
    assert (found["num_pairs"], found["num_equal"], found["agreement"]) == (3, 1, 0.5)
    assert found["by_tag"]["t"] == {"num_pairs": 2, "agreement": 0.5}
    assert found["by_principle"]["p"] == {"num_pairs": 2, "agreement": 0.75}


# --- the journal ------------------------------------------------------------------------------------------------------


def test_labelling_goes_on_wherever_the_journal_was_cut(tmp_path) -> None:  # type: ignore[no-untyped-def]
    comparisons = random_comparisons(12)
    whole = label_journaled(people(overlap=0.5), comparisons, tmp_path / "whole.journal", title="label")
    data = (tmp_path / "whole.journal").read_bytes()
    for cut in range(0, len(data) + 1, 97):
        path = tmp_path / "cut.journal"
        path.write_bytes(data[:cut])
        assert label_journaled(people(overlap=0.5), comparisons, path, title="label") == whole, cut
        assert sorted(path.read_bytes().splitlines()) == sorted(data.splitlines()), cut
