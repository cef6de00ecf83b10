"""From several judgments of a comparison to its label: first, majority, mean; ties, corrections, abstentions."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import WordCount, comparison, run

from cai.errors import LabelerError
from cai.labelers.aggregate import labels_of, preference_from
from cai.labelers.simulated import SimulatedLabeler
from cai.records import read_json, read_records, write_records
from cai.stages.label import Label
from cai.types import Feedback, Judgment, Pair, Preference


def judgment(number: int, *pairs: Pair, name: str = "c", labeler: str = "l", **rest: Any) -> Judgment:
    return Judgment(
        id=f"{name}/{number}", comparison_id=name, labeler=labeler, person=f"p{number}", pairs=pairs, **rest
    )


def votes(*ps: float) -> list[Judgment]:
    return [judgment(n, Pair(0, 1, p)) for n, p in enumerate(ps)]


def label(judgments: list[Judgment], how: Any) -> Judgment:
    return labels_of(judgments, how).by_comparison["c"]


def test_the_first_is_taken_as_it_is() -> None:
    skips = judgment(0, abstained="unclear")
    assert label([*votes(0.0, 1.0, 1.0)], "first") == votes(0.0)[0]
    assert label([skips, judgment(1, Pair(0, 1, 1.0))], "first") is skips


@pytest.mark.parametrize(
    ("ps", "majority", "mean", "num_tied"),
    [
        ((1.0, 1.0, 0.0), 1.0, 2 / 3, 0),
        ((0.0, 0.0, 1.0), 0.0, 1 / 3, 0),
        ((0.6, 0.7, 0.1), 1.0, 1.4 / 3, 0),
        ((1.0, 0.0), 0.5, 0.5, 1),
        ((1.0, 0.0, 0.5), 0.5, 0.5, 1),
        ((0.5, 0.5), 0.5, 0.5, 0),  # two identical texts are no tie of votes
        ((0.5, 0.9), 1.0, 0.7, 0),
    ],
)
def test_majority_and_mean(ps: tuple[float, ...], majority: float, mean: float, num_tied: int) -> None:
    assert label(votes(*ps), "majority").pairs == (Pair(0, 1, majority),)
    assert label(votes(*ps), "mean").pairs[0].p == pytest.approx(mean)
    assert labels_of(votes(*ps), "majority").num_tied == num_tied


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9), st.sampled_from(["majority", "mean"]))
def test_turning_everybody_over_turns_the_label_over(ps: list[float], how: Any) -> None:
    straight, turned = (label(votes(*own), how).pairs[0].p for own in (ps, [1 - p for p in ps]))
    assert straight == pytest.approx(1 - turned)
    assert label(votes(*ps[::-1]), how).pairs[0].p == pytest.approx(straight), "whoever came first"


def test_pairs_go_by_those_who_have_a_verdict_on_them() -> None:
    ranks = [
        judgment(0, Pair(0, 1, 1.0), Pair(0, 2, 1.0), Pair(1, 2, 1.0)),
        judgment(1, Pair(0, 1, 0.0), Pair(1, 2, 1.0)),  # 0 and 2 tied: no pair
        judgment(2, abstained="skipped"),
    ]
    found = labels_of(ranks, "majority")
    assert found.by_comparison["c"].pairs == (Pair(0, 1, 0.5), Pair(0, 2, 1.0), Pair(1, 2, 1.0))
    assert found.num_tied == 1
    assert label([judgment(0, abstained="a"), judgment(1, abstained="b")], "mean").abstained == "a"


def test_margins_count_for_and_against_and_weights_are_averaged() -> None:
    given_ = [
        judgment(0, Pair(0, 1, 1.0, weight=2.0, margin=1.5)),
        judgment(1, Pair(0, 1, 1.0, margin=0.9)),
        judgment(2, Pair(0, 1, 0.0, margin=0.6)),
    ]
    (pair,) = label(given_, "majority").pairs
    assert (pair.p, pair.weight, pair.margin) == (1.0, pytest.approx(4 / 3), pytest.approx(0.6))
    (against,) = label([judgment(0, Pair(0, 1, 1.0, margin=0.1)), *given_[2:], *given_[2:]], "majority").pairs
    assert (against.p, against.margin) == (0.0, pytest.approx(1.1 / 3))


def test_an_aggregated_label_names_its_labelers_and_holds_their_evidence() -> None:
    one = judgment(0, Pair(0, 1, 1.0), labeler="ai", principle_ids=("kind",), evidence=({"p": 1},))
    two = judgment(1, Pair(0, 1, 1.0), labeler="human", principle_ids=("kind", "safe"), evidence=({"p": 2},))
    found = label([one, two], "mean")
    assert (found.labeler, found.person, found.principle_ids) == ("ai+human", "", ("kind", "safe"))
    assert found.evidence == ({"p": 1}, {"p": 2})


def corrected(number: int, text: str, *pairs: Pair) -> Judgment:
    feedback = Feedback(shown=(0, 1), ranking=((0,), (1,)), corrected=0, correction=text)
    return judgment(number, *pairs, Pair(0, 2, 0.0), Pair(1, 2, 0.0), feedback=feedback)


def test_every_correction_is_kept_with_its_own_pairs() -> None:
    two = comparison("c", "x", "y")
    given_ = [
        corrected(0, "x better", Pair(0, 1, 1.0)),
        judgment(1, Pair(0, 1, 1.0)),
        corrected(2, "x best", Pair(0, 1, 0.0)),
    ]
    preference = preference_from(two, given_, label(given_, "majority"))
    assert preference.responses == ("x", "y", "x better", "x best")
    own = (Pair(0, 2, 0.0), Pair(1, 2, 0.0), Pair(0, 3, 0.0), Pair(1, 3, 0.0))
    assert preference.pairs == (Pair(0, 1, 1.0), *own)
    first = preference_from(two, given_, label(given_, "first"))
    assert first.responses == preference.responses and first.pairs == preference.pairs


def test_a_verdict_that_is_a_correction_alone_is_not_lost() -> None:
    only = corrected(0, "x better")
    assert label([only, judgment(1, abstained="skipped")], "majority") is only


# --- the stage --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_more_labels_for_each_item_come_nearer_to_the_truth(workdir: Path) -> None:
    items = [comparison(f"c{i}", "w " * (i % 7 + 1), "v " * (i % 5 + 2)) for i in range(800)]
    write_records(workdir / "sample" / "comparisons.jsonl", items)
    found = {}
    for how in ("first", "majority", "mean"):
        people = SimulatedLabeler(scorer=WordCount(), seed=2, agreement=0.6, num_labels=5, overlap=1.0)
        stage = Label(labeler=people, scorer=WordCount(), aggregate=how)  # type: ignore[arg-type]
        run(stage, {"sample": workdir / "sample"}, workdir / how)
        found[how] = read_json(workdir / how / "label.json")
        assert len(read_records(workdir / how / "judgments.jsonl", Judgment)) == 4000, "all of them are kept"
    assert found["majority"]["num_judgments_each"] == {"5": 800}
    assert found["majority"]["aggregate"] == "majority" and found["majority"]["num_tied"] == 0
    assert found["majority"]["gold"]["agreement"] > found["first"]["gold"]["agreement"] + 0.05
    assert found["mean"]["gold"]["agreement"] == pytest.approx(found["majority"]["gold"]["agreement"])
    preferences = read_records(workdir / "mean" / "preferences.jsonl", Preference)
    assert {round(5 * p.pairs[0].p) for p in preferences} == set(range(6)), "disagreement is a soft label"


def test_a_rule_that_does_not_exist() -> None:
    people = SimulatedLabeler(scorer=WordCount(), seed=2)
    with pytest.raises(LabelerError, match="aggregate: unknown rule 'majorty'; did you mean 'majority'"):
        Label(labeler=people, aggregate="majorty")  # type: ignore[arg-type]
