"""Preference data in the formats of others: every row becomes a labelled comparison, or says why it cannot."""

import csv
import gzip
import random
from pathlib import Path
from typing import Any

import pytest
from foreign import A, U, better, load, msg
from hypothesis import given
from hypothesis import strategies as st

from cai.datasets.formats import FORMATS
from cai.datasets.labelled import Draft, best_response, labelled_of
from cai.datasets.recorded import Recorded
from cai.datasets.rows import Unusable
from cai.errors import DataError
from cai.types import Pair, Turn

# --- TRL --------------------------------------------------------------------------------------------------------------


DIALOGUE = msg((U, "Hi"), (A, "Hello"), (U, "How are you?"))
TURNS = (Turn(U, "Hi"), Turn(A, "Hello"), Turn(U, "How are you?"))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": DIALOGUE, "chosen": msg((A, "Fine.")), "rejected": msg((A, "Bad."))},
        {"prompt": DIALOGUE, "chosen": "Fine.", "rejected": "Bad."},
        {"chosen": [*DIALOGUE, *msg((A, "Fine."))], "rejected": [*DIALOGUE, *msg((A, "Bad."))]},
        # as ultrafeedback_binarized has it: the prompt again in front of the responses
        {"prompt": DIALOGUE, "chosen": [*DIALOGUE, *msg((A, "Fine."))], "rejected": [*DIALOGUE, *msg((A, "Bad."))]},
    ],
)
def test_trl_explicit_and_implicit_prompts_keep_every_turn(tmp_path: Path, row: dict[str, Any]) -> None:
    (one,) = load(tmp_path, [row], "trl").labelled
    assert one.comparison.prompt.turns == TURNS
    assert better(one) == [("Fine.", "Bad.")]


def test_trl_texts_with_the_prompt_in_a_column_or_at_the_start(tmp_path: Path) -> None:
    explicit = {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."}
    implicit = {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    for row in (explicit, implicit):
        (one,) = load(tmp_path, [row], "trl").labelled
        assert one.comparison.prompt.turns == (Turn(U, "The sky is"),)
        assert better(one) == [(" blue.", " green.")]


def test_trl_extra_columns_are_taken_and_what_is_not_is_named(tmp_path: Path) -> None:
    row = {
        "prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 0.75, "weight": 2, "margin": 0.5, "score_chosen": 7,
        "tags": ["red_team"], "user": "u1", "person": 3, "labeler": "human",
    }  # fmt: skip
    found = load(tmp_path, [row], "trl", tags=["all"])
    (one,) = found.labelled
    (judgment,) = one.judgments
    chosen_first = one.comparison.responses[0].text == "a"
    assert judgment.pairs == (Pair(0, 1, 0.75 if chosen_first else 0.25, weight=2.0, margin=0.5),)
    assert (judgment.person, judgment.labeler) == ("3", "human")
    assert (one.comparison.prompt.tags, one.comparison.prompt.user) == (("all", "red_team"), "u1")
    assert found.unused == ("score_chosen",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "chosen": "a"}, "missing_column"),
        ({"prompt": "q", "chosen": "a", "rejected": "a"}, "identical_responses"),
        ({"prompt": "q", "chosen": "a", "rejected": " "}, "empty_turn"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "not_a_dialogue"),
        ({"prompt": [{"role": "tool", "content": "x"}], "chosen": "a", "rejected": "b"}, "not_a_dialogue"),
        ({"prompt": msg((U, "q"), (A, "a")), "chosen": "a", "rejected": "b"}, "no_user_turn_at_the_end"),
        ({"chosen": msg((U, "q"), (A, "a")), "rejected": msg((U, "r"), (A, "b"))}, "response_of_several_turns"),
        ({"chosen": msg((U, "q"), (A, "a")), "rejected": msg((U, "q"))}, "no_final_response"),
        ({"chosen": msg((U, "q")), "rejected": msg((U, "q"))}, "no_final_response"),
        ({"chosen": msg((A, "a")), "rejected": msg((A, "b"))}, "no_user_turn_at_the_end"),
        ({"chosen": "abc", "rejected": "abcd"}, "no_final_response"),
        ({"chosen": "abc", "rejected": "xyz"}, "empty_turn"),
        ({"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"}, "another_format"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": 1.5}, "contradictory_label"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "p_chosen": "high"}, "not_a_number"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "weight": 0}, "contradictory_label"),
    ],
)
def test_trl_rows_that_cannot_serve_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"prompt": "good", "chosen": "a", "rejected": "b"}
    found = load(tmp_path, [good, row], "trl")
    assert len(found.labelled) == 1
    assert [(one.row, one.reason) for one in found.left_out] == [(2, reason)]
    assert found.counts["rows"] == 2 and found.counts[f"left_out_{reason}"] == 1


# --- ratings ----------------------------------------------------------------------------------------------------------


def rated(*scores: Any, instruction: str = "q") -> dict[str, Any]:
    texts = [{"response": f"r{k}", "overall_score": score, "model": f"m{k}"} for k, score in enumerate(scores)]
    return {"instruction": instruction, "completions": texts, "source": "evol"}


def test_ratings_rank_and_equal_ones_tie(tmp_path: Path) -> None:
    found = load(tmp_path, [rated(3, 4.5, 3, 1)], "ratings")
    (one,) = found.labelled
    assert [response.text for response in one.comparison.responses] == ["r0", "r1", "r2", "r3"]
    assert [response.model for response in one.comparison.responses] == ["m0", "m1", "m2", "m3"]
    assert better(one) == [("r0", "r3"), ("r1", "r0"), ("r1", "r2"), ("r1", "r3"), ("r2", "r3")]
    assert one.judgments[0].evidence == ({"scores": [3.0, 4.5, 3.0, 1.0]},)
    assert best_response(one) == "r1"
    assert found.unused == ("source",)


def test_a_response_without_a_score_is_not_compared_and_all_equal_is_a_tie(tmp_path: Path) -> None:
    rows = [rated(3, None, float("nan"), "N/A", "2.5"), rated(4, 4, instruction="other")]
    scored, tied = load(tmp_path, rows, "ratings").labelled
    assert better(scored) == [("r0", "r4")]
    assert (tied.judgments[0].pairs, tied.judgments[0].abstained, best_response(tied)) == ((), "tie", None)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (rated(1), "no_label"),
        (rated(1, None), "no_label"),
        (rated(1, "good"), "not_a_number"),
        (rated(1, True), "not_a_number"),
        (rated(*range(10)), "number_of_responses"),
        ({"instruction": "q", "completions": "text"}, "not_a_list"),
        ({"instruction": "q", "completions": ["text"]}, "not_an_object"),
        ({"completions": rated(1, 2)["completions"]}, "missing_column"),
    ],
)
def test_ratings_that_cannot_serve_say_why(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    found = load(tmp_path, [rated(1, 2), row], "ratings")
    assert [(one.row, one.reason) for one in found.left_out] == [(2, reason)]


# --- plain tables -----------------------------------------------------------------------------------------------------


def test_a_csv_with_a_column_map(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        table = csv.writer(file)
        table.writerow(["question", "answer_x", "answer_y", "winner", "rater"])
        table.writerow(["one\nline more", "a", "b", "answer_y", "ada"])
        table.writerow(["two", "a", "b", "tie", "bob"])
        table.writerow(["three", "a", "b"])
        table.writerow(["four", "a", "b", "1", "bob"])
    columns = {
        "prompt": "question", "first": "answer_x", "second": "answer_y", "preferred": "winner", "person": "rater",
    }  # fmt: skip
    found = Recorded(path=str(path), format="plain", columns=columns).load()
    one, two = found.labelled
    assert one.comparison.prompt.turns == (Turn(U, "one\nline more"),)
    assert better(one) == [("b", "a")] and one.judgments[0].person == "ada"
    assert two.judgments[0].abstained == "tie"
    assert [(o.row, o.reason) for o in found.left_out] == [(3, "wrong_number_of_cells"), (4, "unknown_verdict")]
    assert found.left_out[1].detail == "preferred: must be first, second or tie, got '1'"
    assert found.counts["rows"] == 4


def test_plain_chosen_and_probabilities(tmp_path: Path) -> None:
    rows = [
        {"prompt": "q", "chosen": "a", "rejected": "b"},
        {"prompt": "r", "first": "a", "second": "b", "p": "0.25", "weight": 0.5},
        {"prompt": DIALOGUE, "first": "a", "second": "b", "preferred": "B"},
    ]
    one, two, three = load(tmp_path, rows, "plain").labelled
    assert better(one) == [("a", "b")]
    assert two.judgments[0].pairs == (Pair(0, 1, 0.25, weight=0.5),)
    assert three.comparison.prompt.turns == TURNS and better(three) == [("b", "a")]


def test_rows_of_the_same_comparison_are_one_with_all_its_judgments(tmp_path: Path) -> None:
    """People who disagree are kept, in whatever order their rows had the responses."""
    rows = [
        {"prompt": "q", "first": "a", "second": "b", "preferred": "first", "person": "ada"},
        {"prompt": "q", "first": "b", "second": "a", "preferred": "first", "person": "bob"},
        {"prompt": "q", "first": "b", "second": "a", "p": 0.25, "person": "eve"},
        {"prompt": "q", "first": "a", "second": "c", "preferred": "first"},
    ]
    found = load(tmp_path, rows, "plain")
    one, other = found.labelled
    assert [judgment.id for judgment in one.judgments] == [f"{one.comparison.id}/{k}" for k in range(3)]
    assert [better(one, k) for k in range(3)] == [[("a", "b")], [("b", "a")], [("a", "b")]]
    assert [judgment.person for judgment in one.judgments] == ["ada", "bob", "eve"]
    assert one.judgments[1].feedback is not None and one.judgments[1].feedback.shown == (1, 0)
    assert one.judgments[2].pairs == (Pair(0, 1, 0.75),)
    assert one.rows == (1, 2, 3) and other.rows == (4,)
    assert (found.counts["rows"], found.counts["comparisons"], found.counts["judgments"]) == (4, 2, 4)


def test_the_chosen_response_stands_first_as_often_as_second(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(400)]
    found = load(tmp_path, rows, "plain")
    first = sum(one.comparison.responses[0].text.startswith("good") for one in found.labelled)
    assert 160 < first < 240  # 200, give or take four standard deviations
    assert sum(one.judgments[0].pairs[0].p for one in found.labelled) == first
    again = load(tmp_path, rows[::-1], "plain").labelled[::-1]
    assert [one.comparison.responses for one in again] == [one.comparison.responses for one in found.labelled]


# --- any row, any file ------------------------------------------------------------------------------------------------


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=4) | st.sampled_from([U, A]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["role", "content", "value", "rank", "result", "type", "selected", "response", "overall_score", "a", "b"]
    ), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
@given(data=st.data())
@pytest.mark.slow
def test_any_row_is_read_or_says_why_not(name: str, data: st.DataObject) -> None:
    """Nothing but Unusable comes out of a row that a file may hold, whatever is in it."""
    columns = [column for column in FORMATS[name].columns if column not in ("responses", "question")]
    row = data.draw(st.fixed_dictionaries({column: VALUES for column in (*columns, "responses", "annotations")}))
    try:
        draft = FORMATS[name].read(row, {})
        assert isinstance(draft, Draft)
        assert labelled_of(draft, 1, prefix=name, source="x", tags=()).judgments
    except Unusable as problem:
        assert problem.reason and " " not in problem.reason


def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(0)
    rows = [{"prompt": f"q{i}", "chosen": f"a{rng.random()}", "rejected": f'b, "{i}"\n'} for i in range(20)]
    expected = load(tmp_path, rows, "plain").labelled
    load(tmp_path, rows, "plain", "data.json")
    (tmp_path / "data.json.gz").write_bytes(gzip.compress((tmp_path / "data.json").read_bytes()))
    with (tmp_path / "data.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, ["prompt", "chosen", "rejected"])
        table.writeheader()
        table.writerows(rows)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "data.parquet")
    for name in ("data.json", "data.json.gz", "data.csv", "data.parquet"):
        found = Recorded(path=str(tmp_path / name), format="plain").load()
        assert [one.comparison.responses for one in found.labelled] == [one.comparison.responses for one in expected]
        assert [one.judgments for one in found.labelled] == [one.judgments for one in expected]
        assert not found.left_out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.json", b"{}", "must be a list of rows, got {} (one row a line is .jsonl)"),
        ("x.json", b"[", "not JSON: Expecting value"),
        ("x.csv", b"a,a\n1,2\n", "the first line must name the columns, each once"),
        ("x.csv", b"", "the first line must name the columns, each once"),
        ("x.csv", b"a,b\n\xff,1\n", "cannot be read: 'utf-8' codec"),
        ("x.parquet", b"PAR1", "cannot be read: Parquet"),
        ("x.jsonl", b"\x1f\x8b\x08\x00", "cannot be read: Compressed file ended"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Recorded(path=str(tmp_path / name), format="plain").load()
    assert message in str(caught.value) and "\n" not in str(caught.value)
