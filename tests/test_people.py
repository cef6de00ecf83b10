"""Simulated people of different minds: values, groups, biases, and the noise that makes them agree as wanted."""

import math
import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from cai.errors import LabelerError
from cai.labelers.people import Biases, agreement_of, group_of, make_crowd
from cai.labelers.simulated import SimulatedLabeler
from cai.labelers.statistics import between_people, first_judgments
from cai.sandbox.grammar import draw_varied, make_prompts
from cai.sandbox.plug import SandboxScorer
from cai.types import Comparison, Judgment, Prompt, Response, Turn


class Numbers:
    """The numbers of a text, `2 -1 x y`, as columns `warm` and `cold`; `never` applies to no text."""

    columns = ("warm", "cold", "never")

    def texts(self) -> dict[str, str]:
        """Not from a file."""
        return {"scorer": "abc"}

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> dict[str, list[float]]:
        """Three columns."""
        both = [[float(word) for word in response.split()[:2]] for response in responses]
        columns = zip(("warm", "cold"), map(list, zip(*both, strict=True)), strict=True) if both else ()
        return {"warm": [], "cold": []} | dict(columns) | {"never": [math.nan] * len(responses)}


def comparison(name: str, *texts: str) -> Comparison:
    prompt = Prompt(id=name, turns=(Turn("user", name),))
    responses = [
        Response(id=f"{name}/{k}", prompt_id=name, text=text, model="m", num_tokens=1, finished=True)
        for k, text in enumerate(texts)
    ]
    return Comparison(id=name, prompt=prompt, responses=tuple(responses))


def random_comparisons(num: int, k: int = 2) -> list[Comparison]:
    rng = random.Random(1)
    return [
        comparison(f"c{i}", *(f"{rng.gauss(0, 2):.5f} {rng.gauss(0, 2):.5f} {i} {j}" for j in range(k)))
        for i in range(num)
    ]


def people(**settings: Any) -> SimulatedLabeler:
    defaults: dict[str, Any] = {"scorer": Numbers(), "column": "warm", "seed": 1, "overlap": 1.0, "agreement": 0.7}
    return SimulatedLabeler(**{**defaults, **settings})


# --- the published rates ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sandbox_comparisons() -> list[Comparison]:
    """2,000 pairs of responses of the sandbox's grammar, half of them to harmful prompts."""
    rng = random.Random(7)
    prompts = [p for harmful in (True, False) for p in make_prompts(1000, split="train", harmful=harmful, seed=3)]
    found = []
    for number, prompt in enumerate(prompts):
        texts: list[str] = []
        while len(texts) < 2:
            text = draw_varied(rng, prompt).text
            texts += [text] if text not in texts else []
        turns = (Turn("user", prompt.text),)
        one = comparison(f"s{number}", *texts)
        found.append(Comparison(id=one.id, prompt=Prompt(id=one.id, turns=turns), responses=one.responses))
    return found


@pytest.mark.parametrize("rate", [0.60, 0.66, 0.726, 0.773])
@pytest.mark.slow
def test_agreement_hits_the_published_rates_on_2000_items(rate: float, sandbox_comparisons: list[Comparison]) -> None:
    labeler = people(scorer=SandboxScorer(), column="gold", agreement=rate)
    judgments = list(labeler.label(sandbox_comparisons))
    found = between_people(judgments)
    assert found["num_pairs"] == 2000
    assert found["agreement"] == pytest.approx(rate, abs=0.015)
    by_comparison: dict[str, list[float]] = defaultdict(list)
    for judgment in judgments:
        row: Any = judgment.evidence[0]
        by_comparison[judgment.comparison_id].append(row["p_people"])
    expected = np.mean([p * q + (1 - p) * (1 - q) for p, q in by_comparison.values()])
    assert expected == pytest.approx(rate, abs=1e-9), "the noise is solved for, not found by trial"


# --- values -----------------------------------------------------------------------------------------------------------

GROUPS = {"warm": {"warm": 1.0}, "cool": {"warm": 0.4, "cold": 1}, "odd": {"warm": 1, "cold": -0.5}}


def test_groups_share_the_people_and_judge_by_their_own_values() -> None:
    labeler = people(groups=GROUPS, num_people=7, agreement=0.65)
    comparisons = random_comparisons(1500)
    judgments = list(labeler.label(comparisons))
    assert {j.person for j in judgments} == {*(f"{g}-{n}" for g in GROUPS for n in (1, 2)), "warm-3"}
    texts = {c.id: [list(map(float, r.text.split()[:2])) for r in c.responses] for c in comparisons}
    for judgment in judgments[:50]:
        weights = GROUPS[group_of(judgment.person)]
        expected = [
            sum(weights.get(n, 0) * x for n, x in zip(("warm", "cold"), r, strict=True))
            for r in texts[judgment.comparison_id]
        ]
        row: Any = judgment.evidence[0]
        assert row["value"] == pytest.approx(expected)
        assert "gold" not in row, "what they value is no measure of anybody else"


@pytest.mark.parametrize(
    "settings", [{"num_people": 3}, {"num_people": 9, "spread": 0.5}, {"position_bias": 0.8, "length_bias": 0.3}]
)
@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.slow
def test_noise_is_solved_for_people_of_different_minds(settings: dict[str, Any], k: int) -> None:
    """Over every two people who could have judged, not only those who did."""
    comparisons = random_comparisons(4000 if k == 2 else 800, k)
    labeler = people(groups=GROUPS, agreement=0.62, **settings)
    found = between_people(labeler.label(comparisons))
    assert found["num_pairs"] == len(comparisons) * k * (k - 1) / 2
    assert found["agreement"] == pytest.approx(0.62, abs=0.02)


@pytest.mark.slow
def test_people_of_one_group_agree_more_than_people_of_two() -> None:
    groups = {"warm": {"warm": 1}, "cold": {"cold": 1}}
    judgments = people(groups=groups, num_people=8, agreement=0.6).label(random_comparisons(4000))
    given: dict[str, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        given[judgment.comparison_id].append(judgment)
    same: dict[bool, list[bool]] = defaultdict(list)
    for one, other in given.values():
        same[group_of(one.person) == group_of(other.person)].append(one.pairs[0].p == other.pairs[0].p)
    # warm and cold are independent here, so between groups there is chance alone, whatever the noise
    assert np.mean(same[False]) == pytest.approx(0.5, abs=0.03)
    assert np.mean(same[True]) == pytest.approx(0.5 + 0.1 * 7 / 3, abs=0.03)


def test_spread_gives_everybody_weights_of_their_own() -> None:
    crowd = make_crowd(6, column="warm", groups=GROUPS, spread=0.3, columns=Numbers.columns, seed=1)
    assert len(crowd.kinds) == 6
    again = make_crowd(9, column="warm", groups=GROUPS, spread=0.3, columns=Numbers.columns, seed=1)
    assert again.kinds[:6] == crowd.kinds, "a person does not change when others come"
    many = make_crowd(900, column="warm", groups={"g": {"cold": 2}}, spread=0.3, columns=Numbers.columns, seed=1)
    own = [weights["cold"] for weights in many.kinds]
    assert (np.mean(own), np.std(own)) == (pytest.approx(2, abs=0.07), pytest.approx(0.6, abs=0.05))


def test_a_column_that_does_not_apply_adds_nothing() -> None:
    one = people(groups={"g": {"warm": 1, "never": 5}}).label(random_comparisons(40))
    other = people(groups={"g": {"warm": 1}}).label(random_comparisons(40))
    assert [j.pairs for j in one] == [j.pairs for j in other]
    with pytest.raises(LabelerError, match="groups: the columns of somebody has no number for comparison 'c0'"):
        list(people(groups={"g": {"warm": 1}, "h": {"never": 1}}).label(random_comparisons(3)))


def test_more_than_two_people_can_judge_a_comparison() -> None:
    judgments = list(people(num_labels=4, overlap=0.5).label(random_comparisons(400)))
    given = defaultdict(list)
    for judgment in judgments:
        given[judgment.comparison_id].append(judgment.person)
    assert {len(names) for names in given.values()} == {1, 4}
    assert all(len(set(names)) == len(names) for names in given.values())
    two = list(people(num_labels=2, overlap=0.5).label(random_comparisons(400)))
    assert first_judgments(two) == first_judgments(judgments), "how many judge changes nothing in what each says"


# --- biases, measured back --------------------------------------------------------------------------------------------


def preferred_first(judgments: Sequence[Judgment]) -> list[bool]:
    """Whether the response shown first was preferred."""
    rows: list[Any] = [(j.evidence[0], j.pairs[0].p) for j in judgments]
    return [(p > 0.5) == (row["shown"][0] == row["pair"][0]) for row, p in rows]


def test_position_bias_is_found_again_in_the_labels() -> None:
    even = [comparison(f"e{i}", f"1 {i} a", f"1 {i} b") for i in range(3000)]
    judgments = list(people(position_bias=0.6, overlap=0.0, agreement=0.6).label([*even, *random_comparisons(3000)]))
    share = float(np.mean(preferred_first(judgments[:3000])))
    assert math.log(share / (1 - share)) == pytest.approx(0.6, abs=0.1)
    shown: list[Any] = [j.evidence[0]["shown"] for j in judgments]
    assert np.mean([order == [0, 1] for order in shown]) == pytest.approx(0.5, abs=0.03)
    assert 0.5 < np.mean(preferred_first(judgments[3000:])) < share, "where values differ, place decides less"


@pytest.mark.slow
def test_places_of_a_ranking_count_evenly_from_first_to_last() -> None:
    even = [comparison(f"e{i}", *(f"1 {i} {c}" for c in "abc")) for i in range(6000)]
    judgments = list(
        people(position_bias=1.0, overlap=0.0, agreement=0.53).label([*even, *random_comparisons(600, k=3)])
    )[:6000]
    odds: dict[int, list[bool]] = defaultdict(list)
    for judgment in judgments:
        rows: list[Any] = list(judgment.evidence)
        first_of = [row["shown"][0] for row in rows]
        rank = {index: 2 - first_of.count(index) for index in range(3)}
        for pair, (i, j) in zip(judgment.pairs, combinations(range(3), 2), strict=True):
            gap = rank[j] - rank[i]
            odds[abs(gap)].append((pair.p > 0.5) == (gap > 0))
    for gap, wanted in ((1, 0.5), (2, 1.0)):
        share = float(np.mean(odds[gap]))
        assert math.log(share / (1 - share)) == pytest.approx(wanted, abs=0.1)


@pytest.mark.slow
def test_length_bias_is_found_again_in_the_labels() -> None:
    twice = [comparison(f"t{i}", f"1 0 {'x' * 6}", f"1 0 {'x' * 16}") for i in range(4000)]  # 10 and 20 characters
    judgments = list(people(length_bias=0.5, overlap=0.0, agreement=0.6).label([*twice, *random_comparisons(2000)]))
    share = float(np.mean([j.pairs[0].p == 0 for j in judgments[:4000]]))
    assert math.log(share / (1 - share)) == pytest.approx(0.5, abs=0.1)
    assert all("shown" not in row for j in judgments for row in j.evidence)


def test_identical_texts_are_even_whatever_the_bias() -> None:
    same = comparison("same", "3 1 x", "3 1 x")
    judgments = people(position_bias=3.0, length_bias=1.0).label([same, *random_comparisons(50)])
    assert {j.pairs[0].p for j in judgments if j.comparison_id == "same"} == {0.5}


def test_offsets_of_places_are_those_of_random_orders() -> None:
    k, bias = 4, 0.9
    seen: dict[float, int] = defaultdict(int)
    rng = np.random.default_rng(0)
    for _ in range(20_000):
        places = rng.permutation(k)
        seen[round(bias * (places[1] - places[0]) / (k - 1), 6)] += 1
    expected = {round(x, 6): p for x, p in Biases(position=bias).offsets(k).items()}
    assert {x: n / 20_000 for x, n in seen.items()} == pytest.approx(expected, abs=0.01)
    assert sum(expected.values()) == pytest.approx(1)


def test_agreement_by_hand() -> None:
    q, r = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(0.5))
    log_odds = np.array([[1.0], [-0.5]])
    assert agreement_of(log_odds, {0.0: 1.0}) == pytest.approx(q * r + (1 - q) * (1 - r))
    assert agreement_of(log_odds[:1], {0.0: 1.0}) == pytest.approx(q * q + (1 - q) ** 2), "two of the same mind"
    first, last = 1 / (1 + math.exp(-1.7)), 1 / (1 + math.exp(-0.3))
    mean = (first + last) / 2
    assert agreement_of(log_odds[:1], {0.7: 0.5, -0.7: 0.5}) == pytest.approx(mean**2 + (1 - mean) ** 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": {"a": {"warmth": 1}}}, "groups.a: unknown column of the scorer 'warmth'; did you mean 'warm'"),
        ({"groups": {"a": {"warm": "1"}}}, "groups.a.warm: must be a number, got '1'"),
        ({"groups": {"a": 1}}, "groups.a: must be weights by column"),
        ({"groups": {}}, "groups: there are 0 for num_people 5"),
        ({"groups": GROUPS, "num_people": 2}, "groups: there are 3 for num_people 2; each needs somebody"),
        ({"groups": {"a": {"warm": 0}}}, "agreement: 0.7 cannot be reached on these 20 pairs, of which 20 have equal"),
        ({"groups": {"a": {"warm": 1}, "b": {"warm": -1}}}, "agreement: 0.7 cannot be reached .* must be above"),
        ({"spread": -1}, "spread: must be 0 or more, got -1"),
        ({"num_labels": 1}, "num_labels: people who judge an overlap must be 2 or more, got 1"),
        ({"num_labels": 6}, r"num_people: must be at least 6 \(overlap 1.0\), got 5"),
        ({"position_bias": math.nan}, "position_bias: must be a number, got nan"),
        ({"length_bias": 60.0}, "agreement: 0.7 cannot be reached .* must be above"),
    ],
)
def test_settings_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelerError, match=message):
        list(people(**settings).label(random_comparisons(20)))
