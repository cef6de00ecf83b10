"""Preference data as Argilla and Label Studio export it."""

from pathlib import Path
from typing import Any

import pytest
from foreign import A, U, better, load, msg


def argilla(responses: dict[str, Any], **fields: Any) -> dict[str, Any]:
    fields = fields or {"prompt": "q", "reply_1": "a", "reply_2": "b", "reply_3": "c"}
    return {"id": "1", "fields": fields, "metadata": {}, "suggestions": {}, "responses": responses, "vectors": {}}


def test_argilla_rankings_labels_and_drafts(tmp_path: Path) -> None:
    ranked = argilla(
        {
            "best": [
                {"value": ["reply_2", "reply_1", "reply_3"], "user_id": "ada"},
                {"value": [{"value": "reply_1", "rank": 1}, {"value": "reply_2", "rank": 1},
                           {"value": "reply_3", "rank": 2}], "user_id": "bob", "status": "submitted"},
                {"value": ["reply_1", "reply_2", "reply_3"], "user_id": "eve", "status": "discarded"},
            ],
            "rating": [{"value": 5, "user_id": "ada"}],
        }
    )  # fmt: skip
    pair = {"prompt": msg((U, "Hi"), (A, "Hello"), (U, "Well?")), "left": "a", "right": "b", "context": "of no use"}
    chosen = argilla({"better": [{"value": "right", "user_id": "ada"}, {"value": "tie", "user_id": "bob"}]}, **pair)
    (one,) = load(tmp_path, [ranked], "argilla", "data.json").labelled
    assert better(one) == [("a", "c"), ("b", "a"), ("b", "c")]
    assert better(one, 1) == [("a", "c"), ("b", "c")]
    assert one.judgments[2].abstained == "discarded"
    assert [judgment.person for judgment in one.judgments] == ["ada", "bob", "eve"]
    (two,) = load(tmp_path, [chosen], "argilla", "data.json", columns={"responses": "left, right"}).labelled
    assert len(two.comparison.prompt.turns) == 3
    assert better(two) == [("b", "a")] and two.judgments[1].abstained == "tie"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (argilla({}), "no_label"),
        (argilla({"rating": [{"value": 5}]}), "no_label"),
        (argilla({"a": [{"value": "reply_1"}], "b": [{"value": "reply_2"}]}), "several_questions"),
        (argilla({"a": [{"value": ["reply_1", "reply_9"]}]}), "unknown_verdict"),
        (argilla({"a": [{"value": [{"value": "reply_1", "rank": "x"}]}]}), "not_a_number"),
        (argilla({"a": [{"value": ["reply_1", "reply_1"]}]}), "contradictory_label"),
        (argilla({"a": "reply_1"}), "not_a_list"),
        ({"fields": "x", "responses": {}}, "not_an_object"),
        ({"fields": {}}, "missing_column"),
    ],
)
def test_argilla_records_that_cannot_serve_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = argilla({"a": [{"value": "reply_1"}]})
    found = load(tmp_path, [good, row], "argilla")
    assert [(one.row, one.reason) for one in found.left_out] == [(2, reason)]
    assert better(found.labelled[0]) == [("a", "b"), ("a", "c")]


def task(*annotations: dict[str, Any], **data: Any) -> dict[str, Any]:
    return {"id": 7, "data": {"prompt": "q", "text1": "a", "text2": "b", **data}, "annotations": list(annotations)}


def side(selected: Any, **more: Any) -> dict[str, Any]:
    value = {"type": "pairwise", "from_name": "pw", "to_name": "t1,t2", "value": {"selected": selected}}
    when = {"created_at": "2026-03-09T22:16:08.728353Z", "lead_time": 4.25, "was_cancelled": False}
    return {"id": 1, "completed_by": 3, "result": [value], **when, **more}


def test_label_studio_pairwise_tasks(tmp_path: Path) -> None:
    annotations = [
        side("right"),
        side("left", completed_by={"id": 4, "email": "bob@example.org"}),
        side("left", was_cancelled=True),
        {"completed_by": 6, "result": []},
    ]
    (one,) = load(tmp_path, [task(*annotations)], "label_studio", "export.json").labelled
    assert better(one) == [("b", "a")] and better(one, 1) == [("a", "b")]
    assert [judgment.abstained for judgment in one.judgments] == [None, None, "cancelled", "no_choice"]
    assert [judgment.person for judgment in one.judgments] == ["3", "bob@example.org", "3", "6"]
    when = one.judgments[0].provenance
    assert when is not None and (when.labeled_at, when.seconds) == ("2026-03-09T22:16:08.728353Z", 4.25)
    assert one.judgments[3].provenance is None
    columns = {"first": "x", "second": "y"}
    (other,) = load(tmp_path, [task(side("left"), x="u", y="v")], "label_studio", columns=columns).labelled
    assert better(other) == [("u", "v")]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (task(), "no_label"),
        (task(side("middle")), "unknown_verdict"),
        (task(side("left"), text1=3), "not_text"),
        (task({"result": "left"}), "not_a_list"),
        (task({"result": [{"type": "pairwise", "value": "left"}]}), "not_an_object"),
        (task(side("left", lead_time="long")), "not_a_number"),
        ({"data": {"prompt": "q", "text1": "a", "text2": "b"}}, "missing_column"),
        ({"data": {"prompt": "q", "text1": "a"}, "annotations": []}, "missing_column"),
    ],
)
def test_label_studio_tasks_that_cannot_serve_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found = load(tmp_path, [task(side("left")), row], "label_studio")
    assert [(one.row, one.reason) for one in found.left_out] == [(2, reason)]
