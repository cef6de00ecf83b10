"""What labelers say, turned into pairs: counts, order, ties, corrections, and what is refused."""

import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import evalica
import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import comparison

from cai.codec import from_json, to_json
from cai.errors import LabelerError
from cai.labelers.feedback import judgment_of, own_pairs, pairs_of, preference_of
from cai.labelers.statistics import between_people, said, with_gold
from cai.types import Feedback, Pair, Provenance

Groups = tuple[tuple[int, ...], ...]


def better(pairs: tuple[Pair, ...]) -> set[tuple[int, int]]:
    """(better, worse) of hard pairs."""
    assert all(pair.p in (0.0, 1.0) and pair.first < pair.second for pair in pairs)
    return {(pair.first, pair.second) if pair.p else (pair.second, pair.first) for pair in pairs}


@st.composite
def rankings(draw: st.DrawFn, ties: bool = True) -> Groups:
    """All of 2 to 9 responses in groups, best first."""
    order = draw(st.permutations(range(draw(st.integers(2, 9)))))
    cuts = draw(st.lists(st.booleans(), min_size=len(order), max_size=len(order))) if ties else [True] * len(order)
    groups: list[list[int]] = [[]]
    for index, cut in zip(order, cuts, strict=True):
        if cut and groups[-1]:
            groups.append([])
        groups[-1].append(index)
    return tuple(tuple(group) for group in groups)


def size(ranking: Groups) -> int:
    return sum(map(len, ranking))


@given(rankings(ties=False))
def test_a_strict_ranking_gives_all_pairs_and_bradley_terry_recovers_it(ranking: Groups) -> None:
    pairs = pairs_of(Feedback(shown=(), ranking=ranking), size(ranking))
    k = size(ranking)
    assert len(pairs) == k * (k - 1) // 2
    assert [(pair.first, pair.second) for pair in pairs] == list(combinations(range(k), 2))
    winners = [evalica.Winner.X if pair.p else evalica.Winner.Y for pair in pairs]
    # A little of a draw in every pair keeps the strengths of the first and the last finite.
    xs, ys = [pair.first for pair in pairs], [pair.second for pair in pairs]
    draws = [evalica.Winner.Draw] * len(pairs)
    weights = [1.0] * len(pairs) + [0.2] * len(pairs)
    scores = evalica.bradley_terry(xs * 2, ys * 2, winners + draws, weights=weights, limit=10000).scores
    assert sorted(range(k), key=lambda index: -scores[index]) == [index for group in ranking for index in group]


@given(rankings())
def test_a_tie_gives_no_pair_and_all_others_one(ranking: Groups) -> None:
    found = better(pairs_of(Feedback(shown=(), ranking=ranking), size(ranking)))
    assert found == {(a, b) for up, down in combinations(ranking, 2) for a in up for b in down}


@given(rankings(), st.data())
def test_renaming_the_responses_renames_the_pairs(ranking: Groups, data: st.DataObject) -> None:
    k = size(ranking)
    to = data.draw(st.permutations(range(k)))
    corrected = data.draw(st.none() | st.integers(0, k - 1))
    feedback = Feedback(
        shown=(), ranking=ranking, corrected=corrected, correction="" if corrected is None else "better"
    )
    renamed = replace(
        feedback,
        ranking=tuple(tuple(to[index] for index in group) for group in ranking),
        corrected=None if corrected is None else to[corrected],
    )
    new = [*to, k]
    assert better(pairs_of(renamed, k)) == {(new[a], new[b]) for a, b in better(pairs_of(feedback, k))}


@given(rankings(ties=False))
def test_the_reverse_ranking_gives_the_reverse_pairs(ranking: Groups) -> None:
    there = better(pairs_of(Feedback(shown=(), ranking=ranking), size(ranking)))
    back = better(pairs_of(Feedback(shown=(), ranking=ranking[::-1]), size(ranking)))
    assert back == {(b, a) for a, b in there}


@given(rankings(), st.data())
def test_a_correction_is_above_every_ranked_response(ranking: Groups, data: st.DataObject) -> None:
    k = size(ranking)
    feedback = Feedback(shown=(), ranking=ranking)
    corrected = replace(feedback, corrected=data.draw(st.integers(0, k - 1)), correction="better")
    more = better(pairs_of(corrected, k)) - better(pairs_of(feedback, k))
    assert more == {(k, index) for index in range(k)}


@pytest.mark.parametrize("ranking", [((0,), (1,)), ((1,), (0,))])
@pytest.mark.parametrize("corrected", [0, 1])
def test_a_correction_of_two_responses_gives_exactly_three_ordered_preferences(ranking: Groups, corrected: int) -> None:
    feedback = Feedback(shown=(1, 0), ranking=ranking, corrected=corrected, correction="best")
    ((up,), (down,)) = ranking
    pairs = pairs_of(feedback, 2)
    assert len(pairs) == 3
    assert better(pairs) == {(2, up), (2, down), (up, down)}


def test_a_correction_of_an_unranked_response_is_above_it_alone() -> None:
    assert pairs_of(Feedback(shown=(), corrected=1, correction="best"), 3) == (Pair(1, 3, 0.0),)
    partly = Feedback(shown=(), ranking=((0,), (2,)), corrected=1, correction="best")
    assert better(pairs_of(partly, 4)) == {(0, 2), (4, 0), (4, 1), (4, 2)}
    tied = Feedback(shown=(), ranking=((0, 1),), corrected=1, correction="best")
    assert better(pairs_of(tied, 2)) == {(2, 0), (2, 1)}


def test_strength_sets_margins_only_where_asked() -> None:
    feedback = Feedback(shown=(), ranking=((2,), (0,), (1,)), strength=2, corrected=0, correction="best")
    assert all(pair.margin == 0 for pair in pairs_of(feedback, 3))
    margins = {(p.first, p.second): p.margin for p in pairs_of(feedback, 3, margins=(0.5, 1.0, 2.0))}
    # The first group is response 2; how much better the correction is, or the second than the third, nobody said.
    assert {pair for pair, margin in margins.items() if margin} == {(0, 2), (1, 2)}
    assert {margin for margin in margins.values() if margin} == {1.0}
    unasked = replace(feedback, strength=0)
    assert all(pair.margin == 0 for pair in pairs_of(unasked, 3, margins=(0.5, 1.0, 2.0)))
    with pytest.raises(LabelerError, match=r"margins: must be 3 rewards of 0 or more, for strength 1 to 3, got \(1,\)"):
        pairs_of(feedback, 3, margins=(1,))


# --- judgments and preferences ----------------------------------------------------------------------------------------

TWO = comparison("c1", "one", "two")
WHEN = Provenance(labeled_at="2026-01-01T00:00:00+00:00", seconds=3.5)


def test_a_judgment_keeps_everything_that_was_said() -> None:
    feedback = Feedback(
        shown=(1, 0),
        ranking=((1,), (0,)),
        strength=3,
        ratings=(2, 6),
        flags=(("rude", "made_up"), ()),
        corrected=1,
        correction="three",
        critique="the first one lies",
        instructions="v2",
    )
    judgment = judgment_of(TWO, feedback, number=1, labeler="human", person="ada", provenance=WHEN)
    assert (judgment.id, judgment.comparison_id, judgment.labeler, judgment.person) == ("c1/1", "c1", "human", "ada")
    assert (judgment.feedback, judgment.provenance, judgment.abstained) == (feedback, WHEN, None)
    assert from_json(type(judgment), to_json(judgment), "here") == judgment
    preference = preference_of(TWO, judgment)
    assert (preference.responses, preference.num_corrections) == (("one", "two", "three"), 1)
    assert (preference.id, preference.prompt, preference.labeler) == ("c1", TWO.prompt, "human")
    ordered = [{(preference.responses[a], preference.responses[b])} for a, b in sorted(better(preference.pairs))]
    assert ordered == [{("two", "one")}, {("three", "one")}, {("three", "two")}]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"skipped": "unclear prompt"}, "unclear prompt"),
        ({"ranking": ((0, 1),)}, "tie"),
        ({"ranking": ((0,),)}, "not_compared"),
        ({"ratings": (3, 0)}, "not_compared"),
        ({"flags": (("rude",), ())}, "not_compared"),
        ({"critique": "both are wrong"}, "not_compared"),
    ],
)
def test_feedback_without_a_pair_is_an_abstention_that_says_why(said: dict[str, Any], reason: str) -> None:
    judgment = judgment_of(TWO, Feedback(shown=(0, 1), **said), number=0, labeler="human", person="ada")
    assert (judgment.pairs, judgment.abstained) == ((), reason)
    with pytest.raises(LabelerError, match=r"judgment 'c1/0' abstained \(.*\); it gives no preference"):
        preference_of(TWO, judgment)


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, "it says nothing"),
        ({"ranking": ((0,), (2,))}, "response 2 is not there; responses are 0 to 1"),
        ({"ranking": ((0,), (-1,))}, "response -1 is not there"),
        ({"ranking": ((0,), (1, 0))}, "ranking: every response stands in one group"),
        ({"ranking": ((0, 1), ())}, "ranking: every response stands in one group, and no group is empty"),
        ({"ranking": ((0,), (1,)), "shown": (0, 0)}, "shown: must hold every response once"),
        ({"ranking": ((0,), (1,)), "strength": 4}, "strength: must be 0 to 3"),
        ({"ranking": ((0, 1),), "strength": 1}, "strength: must be 0 to 3, and 0 without two groups, got 1"),
        ({"ratings": (1,)}, "ratings: must go by response, 2 in all, got 1"),
        ({"ratings": (8, 1)}, "ratings: must be 1 to 7"),
        ({"flags": ((),)}, "flags: must go by response"),
        ({"corrected": 0}, "corrected and correction go together"),
        ({"correction": "new"}, "corrected and correction go together"),
        ({"corrected": 0, "correction": " \n"}, "corrected and correction go together"),
        ({"corrected": 0, "correction": " one "}, "correction: must be another text than the responses, but is .* 0"),
        ({"corrected": 0, "correction": "two"}, "correction: must be another text than the responses, but is .* 1"),
        ({"skipped": ""}, "skipped: must say why"),
        ({"skipped": "no", "ranking": ((0,), (1,))}, "skipped: .* has no ranking"),
    ],
)
def test_feedback_that_cannot_be_is_refused_in_one_line(said: dict[str, Any], problem: str) -> None:
    feedback = Feedback(**{"shown": (), **said})
    with pytest.raises(LabelerError, match=f"^comparison 'c1': feedback: {problem}") as caught:
        judgment_of(TWO, feedback, number=0, labeler="human", person="ada")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("k", [1, 10])
def test_two_to_nine_responses_can_be_ranked(k: int) -> None:
    with pytest.raises(LabelerError, match=f"a comparison has 2 to 9 responses, got {k}"):
        pairs_of(Feedback(shown=(), ranking=((0,),)), k)


def test_a_judgment_of_another_comparison_is_no_preference() -> None:
    judgment = judgment_of(TWO, Feedback(shown=(), ranking=((0,), (1,))), number=0, labeler="human", person="ada")
    with pytest.raises(LabelerError, match=r"comparison 'c2': judgment 'c1/0' is about 'c1'"):
        preference_of(comparison("c2", "one", "two"), judgment)


def test_corrections_are_in_no_measure_of_agreement() -> None:
    """Each person's correction is another text: equal indices are not equal pairs, and no gold score is known."""
    said = [Feedback(shown=(), ranking=((0,), (1,)), corrected=i, correction=f"new {i}") for i in (0, 1)]
    given = [judgment_of(TWO, f, number=i, labeler="human", person=f"p{i}") for i, f in enumerate(said)]
    assert own_pairs(given[0]) == (Pair(0, 1, 1.0),)
    assert between_people(given)["num_pairs"] == 1
    found = with_gold([TWO], {"c1": given[0]}, {"c1": [1.0, 0.0]})
    assert (found["num_pairs"], found["agreement"]) == (1, 1.0)
    assert not math.isnan(found["agreement"])


def test_what_people_said_besides_is_counted() -> None:
    one = Feedback(
        shown=(), ranking=((1,), (0,)), strength=2, ratings=(2, 6), flags=(("rude",), ()), critique="so rude"
    )
    other = Feedback(shown=(), ranking=((0,), (1,)), ratings=(3, 4), corrected=0, correction="three", instructions="v2")
    given = [one, other, Feedback(shown=(), skipped="unclear"), Feedback(shown=(), ranking=((0, 1),), ratings=(0, 5))]
    judgments = [judgment_of(TWO, f, number=i, labeler="human", person="ada") for i, f in enumerate(given)]
    found = said(judgments)
    assert found == {
        "num": 4,
        "num_with_ties": 1,
        "num_corrections": 1,
        "num_critiques": 1,
        "skipped": {"unclear": 1},
        "strength": {"2": 1},
        "flags": {"rude": 1},
        "ratings": {"2": 1, "3": 1, "4": 1, "5": 1, "6": 1},
        "mean_rating": 4.0,
        "ratings_agree": 0.5,
        "instructions": {"v2": 1},
    }
    assert said([replace(judgments[0], feedback=None)]) is None
