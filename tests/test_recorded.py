"""Labels and responses that exist already: found by their texts, given under the names of those who gave them."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import comparison, run

from cai.datasets.folder import read_folder, write_folder
from cai.datasets.labelled import Labelled, key_of, matching
from cai.datasets.recorded import Recorded
from cai.datasets.source import RecordedData
from cai.errors import DataError, LabelerError
from cai.labelers.base import Labeler
from cai.labelers.feedback import judgment_of, rearranged
from cai.labelers.recorded import RecordedLabeler
from cai.records import read_json, read_records, write_json, write_records
from cai.stages.data import Data
from cai.stages.label import Label
from cai.stages.recorded import RecordedComparisons
from cai.types import Comparison, Feedback, Judgment, Pair, Preference, Prompt, Provenance

SAID = Feedback(
    shown=(2, 0, 1), ranking=((2,), (0, 1)), strength=2, ratings=(3, 0, 7), flags=(("rude",), (), ("long",)),
    corrected=0, correction="best", critique="rude", instructions="v3",
)  # fmt: skip
WHEN = Provenance(labeled_at="2026-01-01T00:00:00+00:00", seconds=2.5)


def recorded(folder: Path, *people: str, names: str = "abc") -> Path:
    """A folder of comparisons with three responses, judged by `people`; the last comparison by nobody."""
    labelled = []
    for row, name in enumerate(names, start=1):
        one = comparison(name, f"{name} x", f"{name} y", f"{name} z")
        given = [
            judgment_of(one, SAID, number=n, labeler="human", person=p, provenance=WHEN) for n, p in enumerate(people)
        ]
        labelled.append(Labelled(comparison=one, judgments=tuple(given) if name != names[-1] else (), rows=(row,)))
    write_folder(folder, labelled)
    return folder


def turned(one: Comparison, *order: int) -> Comparison:
    """The same texts in another order, under another id."""
    return replace(one, id=f"other-{one.id}", responses=tuple(one.responses[k] for k in order))


def test_labels_are_found_by_texts_in_any_order(tmp_path: Path) -> None:
    labeler = RecordedLabeler(path=str(recorded(tmp_path, "ada", "bob")))
    assert isinstance(labeler, Labeler)
    asked = [turned(comparison("a", "a x", "a y", "a z"), 2, 0, 1), comparison("b", "b x", "b y", "b z")]
    judgments = list(labeler.label(asked))
    assert [(j.id, j.comparison_id, j.person, j.labeler) for j in judgments] == [
        ("other-a/0", "other-a", "ada", "human"),
        ("other-a/1", "other-a", "bob", "human"),
        ("b/0", "b", "ada", "human"),
        ("b/1", "b", "bob", "human"),
    ]
    said = judgments[0].feedback
    assert said == replace(
        SAID, shown=(0, 1, 2), ranking=((0,), (1, 2)), ratings=(7, 3, 0), flags=(("long",), ("rude",), ()), corrected=1
    )
    assert judgments[0].provenance == WHEN
    ordered = {(0, 1, 1.0), (0, 2, 1.0), (0, 3, 0.0), (1, 3, 0.0), (2, 3, 0.0)}
    assert {(p.first, p.second, p.p) for p in judgments[0].pairs} == ordered
    assert judgments[2].feedback == SAID
    assert [j.id for j in labeler.label(asked, done=["other-a"])] == ["b/0", "b/1"]


def test_two_comparisons_of_the_same_texts_give_all_their_judgments(tmp_path: Path) -> None:
    """As in the folder of a run that sampled the same responses twice."""
    one = comparison("a", "x", "y")
    two = replace(one, id="b")
    tie = Judgment(id="a/0", comparison_id="a", labeler="human", person="ann", pairs=(), abstained="tie")
    verdict = Judgment(id="b/0", comparison_id="b", labeler="human", person="bob", pairs=(Pair(0, 1, 1.0),))
    write_folder(
        tmp_path,
        [Labelled(comparison=c, judgments=(j,), rows=(n,)) for n, (c, j) in enumerate([(one, tie), (two, verdict)], 1)],
    )
    judgments = list(RecordedLabeler(path=str(tmp_path)).label([replace(one, id="mine")]))
    assert [(j.id, j.person, j.pairs) for j in judgments] == [("mine/0", "ann", ()), ("mine/1", "bob", verdict.pairs)]


def test_the_same_id_with_other_texts_is_not_the_same_comparison(tmp_path: Path) -> None:
    labeler = RecordedLabeler(path=str(recorded(tmp_path, "ada")))
    asked = [
        comparison("a", "a x", "a y", "another"),
        comparison("b", "b x", "b y", "b z"),
        comparison("c", "c x", "c y", "c z"),
    ]
    other, _, unjudged = labeler.label(asked)
    assert (other.abstained, unjudged.abstained) == ("not_recorded", "not_recorded")
    assert labeler.facts() == {"num_not_recorded": 2, "num_rows_left_out": 0}


def test_nothing_found_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    labeler = RecordedLabeler(path=str(recorded(tmp_path, "ada")))
    with pytest.raises(LabelerError, match=r"none of the 1 comparisons is among its 3; .*stage@sample=recorded"):
        list(labeler.label([comparison("a", "p", "q")]))
    with pytest.raises(LabelerError, match=r"path: say where the labels are: labeler.path="):
        RecordedLabeler(path=None)


@given(st.permutations(range(4)), st.lists(st.sampled_from("xyz"), min_size=4, max_size=4), st.data())
def test_rearranging_there_and_back_changes_nothing(order: list[int], texts: list[str], data: st.DataObject) -> None:
    one = comparison("a", *texts)
    other = replace(one, responses=tuple(one.responses[k] for k in order))
    assert key_of(one) == key_of(other)
    there, back = matching(one, other), matching(other, one)
    assert [texts[k] for k in range(4)] == [other.responses[there[k]].text for k in range(4)]
    said = Feedback(
        shown=tuple(order), ranking=((order[0],), tuple(order[1:3])), ratings=(1, 2, 3, 4), corrected=2, correction="c"
    )
    judgment = judgment_of(one, said, number=0, labeler="human", person="ada")
    moved = rearranged(judgment, there, comparison_id="a", number=0)
    again = rearranged(moved, back, comparison_id="a", number=0)
    if len(set(texts)) == 4:
        assert again == judgment
    moved_texts = [*(other.responses[k].text for k in range(4)), "c"]
    own_texts = [*texts, "c"]

    def ordered(found: Judgment, names: list[str]) -> list[tuple[str, str]]:
        pairs = [(names[p.first], names[p.second]) for p in found.pairs]
        return sorted(pair if p.p else pair[::-1] for pair, p in zip(pairs, found.pairs, strict=True))

    assert ordered(moved, moved_texts) == ordered(judgment, own_texts)


def test_evidence_keeps_its_indices_where_the_order_changes() -> None:
    """Only its labeler knows which numbers in it are indices."""
    row: dict[str, Any] = {"pair": [0, 1], "p": 0.7}
    judgment = Judgment(id="a/0", comparison_id="a", labeler="ai", person="", pairs=(Pair(0, 1, 0.7),), evidence=(row,))
    assert rearranged(judgment, [0, 1], comparison_id="b", number=2) == replace(judgment, id="b/2", comparison_id="b")
    moved = rearranged(judgment, [1, 0], comparison_id="a", number=0)
    assert moved.evidence == ({"place": [1, 0], "evidence": [row]},)
    assert moved.pairs[0].p == pytest.approx(0.3)


# --- where records are ------------------------------------------------------------------------------------------------


def test_a_run_folder_is_a_dataset(tmp_path: Path) -> None:
    made = read_folder(recorded(tmp_path / "made", "ada"))
    for stage, name in (("sample", "comparisons.jsonl"), ("label", "judgments.jsonl")):
        (tmp_path / "store" / stage).mkdir(parents=True)
        (tmp_path / "made" / name).rename(tmp_path / "store" / stage / name)
    stages = {stage: {"path": str(tmp_path / "store" / stage)} for stage in ("sample", "label")}
    write_json(tmp_path / "runs" / "rlhf" / "run.json", {"stages": stages})
    assert read_folder(tmp_path / "runs" / "rlhf") == made
    with pytest.raises(DataError, match=r"runs: has no comparisons.jsonl; it has the arms rlhf: take one of them"):
        read_folder(tmp_path / "runs")
    write_json(tmp_path / "run.json", {"stages": {"sample": stages["sample"]}})
    with pytest.raises(DataError, match="the run has no stage 'label'"):
        read_folder(tmp_path)


def test_judgments_without_their_comparisons_are_refused(tmp_path: Path) -> None:
    folder = recorded(tmp_path, "ada")
    assert read_folder(folder / "judgments.jsonl") == read_folder(folder)
    write_records(folder / "comparisons.jsonl", read_records(folder / "comparisons.jsonl", Comparison)[1:])
    with pytest.raises(DataError, match=r"judgments.jsonl: there is no comparison 'a', of which it has a judgment"):
        read_folder(folder)
    (folder / "comparisons.jsonl").unlink()
    with pytest.raises(DataError, match=r"has no comparisons.jsonl. Records are a run folder, records.parquet, or"):
        read_folder(folder / "judgments.jsonl")
    with pytest.raises(DataError, match="is a folder; format hh is a file"):
        Recorded(path=str(folder), format="hh")


# --- in a run ---------------------------------------------------------------------------------------------------------


def test_a_dataset_of_its_own_responses_and_labels_takes_the_place_of_sampling(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(40)]
    rows += [{"prompt": f"q{i}", "chosen": f"better {i}", "rejected": f"bad {i}"} for i in range(0, 40, 2)]
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = RecordedData(
        path=str(path), format="plain", seed=0, num_red_team=4, num_demonstrations=4, num_comparisons=20, num_rl=4,
        num_evaluation=8,
    )  # fmt: skip
    folders = {name: tmp_path / name for name in ("data", "sample", "label")}
    for folder in folders.values():
        folder.mkdir()
    Data(source=source).run({}, folders["data"])
    facts = RecordedComparisons(path=str(path), format="plain").run(folders, folders["sample"])
    prompts = {prompt.id for prompt in read_records(folders["data"] / "comparisons.jsonl", Prompt)}
    comparisons = read_records(folders["sample"] / "comparisons.jsonl", Comparison)
    assert {one.prompt.id for one in comparisons} == prompts and len(prompts) == 20
    assert 20 < len(comparisons) == facts["num_comparisons"] < 40
    run(Label(labeler=RecordedLabeler(path=str(path), format="plain")), folders, folders["label"])
    preferences = read_records(folders["label"] / "preferences.jsonl", Preference)
    assert len(preferences) == len(comparisons)
    for preference in preferences:
        (pair,) = preference.pairs
        assert preference.responses[pair.first if pair.p else pair.second].startswith(("good", "better"))
    assert read_json(folders["label"] / "label.json")["num_abstained"] == 0


def test_other_prompts_than_the_datas_are_refused(tmp_path: Path) -> None:
    write_records(tmp_path / "comparisons.jsonl", [comparison("z", "p", "q").prompt])
    stage = RecordedComparisons(path=str(recorded(tmp_path / "records", "ada")))
    with pytest.raises(
        DataError, match="has no responses to any of the 1 comparison prompts; the data stage must read"
    ):
        stage.run({"data": tmp_path}, tmp_path)
