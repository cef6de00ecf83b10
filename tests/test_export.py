"""Exports: TRL's format, and the commands that import, check and export."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from worlds import comparison

from cai import cli
from cai.datasets.export import export, preference_rows
from cai.datasets.labelled import Labelled
from cai.datasets.recorded import Recorded
from cai.datasets.rows import read_file
from cai.errors import ConfigError, DataError
from cai.labelers.feedback import judgment_of
from cai.records import read_json, read_records
from cai.types import Feedback, Judgment, LeftOut, Pair

# --- TRL's format -----------------------------------------------------------------------------------------------------


def table(path: Path) -> list[dict[str, Any]]:
    rows = [row for _, row in read_file(path)]
    assert all(isinstance(row, dict) for row in rows)
    return rows  # type: ignore[return-value]


def labelled_pairs(*p: float, **more: Any) -> Labelled:
    one = comparison("c", "x", "y")
    given = tuple(
        Judgment(id=f"c/{n}", comparison_id="c", labeler="ai", person="", pairs=(Pair(0, 1, q, **more),))
        for n, q in enumerate(p)
    )
    return Labelled(comparison=one, judgments=given, rows=(1,))


def test_chosen_is_what_was_preferred_and_even_pairs_choose_nothing() -> None:
    counts: Counter[str] = Counter()
    rows = list(preference_rows(labelled_pairs(0.9, 0.2, 0.5, 1.0), counts))
    assert [row["chosen"][0]["content"] for row in rows] == ["x", "y", "x"]
    assert [row["p_chosen"] for row in rows] == [0.9, 0.8, 1.0]
    assert counts["even_pairs_left_out"] == 1
    (*_, even, _) = preference_rows(labelled_pairs(0.9, 0.2, 0.5, 1.0), counts, keep_even=True)
    assert even["p_chosen"] == 0.5


def test_columns_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    """TRL's reward trainer takes a column of margins for margins, and of zeros it would compute with them."""
    export([labelled_pairs(1.0)], tmp_path / "a")
    export([labelled_pairs(0.75, margin=0.5, weight=2.0)], tmp_path / "b")
    plain, full = (table(tmp_path / name / "preference" / "train.parquet")[0] for name in "ab")
    assert set(plain) == {"prompt", "chosen", "rejected", "comparison_id", "judgment_id", "labeler"}
    assert set(full) - set(plain) == {"p_chosen", "weight", "margin"}


def test_corrections_are_rows_of_their_own(tmp_path: Path) -> None:
    one = comparison("c", "x", "y")
    feedback = Feedback(shown=(0, 1), ranking=((0,), (1,)), corrected=0, correction="z")
    judgment = judgment_of(one, feedback, number=0, labeler="human", person="ada")
    export([Labelled(comparison=one, judgments=(judgment,), rows=(1,))], tmp_path)
    rows = table(tmp_path / "preference" / "train.parquet")
    found = {(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}
    assert found == {("x", "y"), ("z", "x"), ("z", "y")}


def test_prompts_and_users_stay_on_one_side_of_the_split(tmp_path: Path) -> None:
    labelled = []
    for i in range(60):
        one = comparison(f"c{i}", f"x{i}", "y")
        one = replace(one, prompt=replace(one.prompt, user=f"u{i % 12}"))
        judgment = judgment_of(one, Feedback(shown=(), ranking=((0,), (1,))), number=0, labeler="human", person="ada")
        labelled.append(Labelled(comparison=one, judgments=(judgment,), rows=(i,)))
    counts = export(labelled, tmp_path, test_share=0.3)
    assert counts["rows_train"] + counts["rows_test"] == 60 and counts["rows_test"] >= 5
    sides = [{row["user"] for row in table(tmp_path / "preference" / f"{name}.parquet")} for name in ("train", "test")]
    assert not sides[0] & sides[1]
    with pytest.raises(ConfigError, match="test_share: must be 0 or more and below 1, got 1"):
        export(labelled, tmp_path, test_share=1.0)


def test_an_export_without_a_pair_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no pair to export into train, of 1 comparisons .even_pairs_left_out: 1"):
        export([labelled_pairs(0.5)], tmp_path)


def test_datasets_loads_the_folder_as_the_card_says(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) + "\n" for i in range(30)))
    labelled = Recorded(path=str(path), format="plain").load().labelled
    export(labelled, tmp_path / "out", test_share=0.3, source="plain.jsonl")
    found = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "test"} and sum(len(split) for split in found.values()) == 30
    assert found["train"].column_names[:3] == ["prompt", "chosen", "rejected"]
    assert found["train"][0]["chosen"] == [{"role": "assistant", "content": "a"}]
    everything = datasets.load_dataset(
        str(tmp_path / "out"), "records", split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(everything) == 30 and {"evidence", "feedback", "labeled_at"} <= set(everything.column_names)


# --- the commands -----------------------------------------------------------------------------------------------------


def data(capsys: pytest.CaptureFixture[str], *command: str) -> str:
    assert cli.main(["data", *command]) == 0
    return capsys.readouterr().out


def test_import_check_and_export(workdir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"q": f"question {i}", "chosen": "a@x.org", "rejected": "b", "who": f"u{i % 2}"} for i in range(6)]
    rows += [{"q": "more", "chosen": "same", "rejected": "same"}, {"q": "bad"}]
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + "{\n")
    options = [
        "--format",
        "plain",
        "--columns",
        "prompt=q",
        "user=who",
        "--tags",
        "t",
        "--max-per-user",
        "2",
        "--screen-pii",
    ]
    shown = data(capsys, "check", "in.jsonl", *options)
    assert not Path("out").exists()
    printed = data(capsys, "import", "in.jsonl", "out", *options)
    assert printed == shown + "out\n"
    lines = printed.splitlines()
    assert [line.split() for line in lines[:3]] == [["rows", "9"], ["rows", "used", "4"], ["prompts", "4"]]
    (listed,) = [line for line in lines if "over_max_per_user" in line]
    assert listed.startswith("left out: over_max_per_user ") and "  2   rows 5, 6   (5: user " in listed
    made = read_json(Path("out/import.json"))
    assert made["counts"]["rows"] == 9 and made["counts"]["screened_email"] == 6
    reasons = ["over_max_per_user", "over_max_per_user", "identical_responses", "missing_column", "not_json"]
    left_out = read_records(Path("out/left_out.jsonl"), LeftOut)
    assert [(one.row, one.reason) for one in left_out] == list(enumerate(reasons, start=5))
    counted = {k: v for k, v in made["counts"].items() if k.startswith("left_out")}
    assert counted == {f"left_out_{reason}": reasons.count(reason) for reason in reasons}
    assert "rows train" in data(capsys, "export", "out", "exported")
    data(capsys, "import", "exported", "again")
    for name in ("comparisons.jsonl", "judgments.jsonl"):
        assert Path("again", name).read_bytes() == Path("out", name).read_bytes()
    assert "user" not in table(Path("exported/preference/train.parquet"))[0]["user"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("import in.jsonl there --format plain", "there: exists; cai data writes over nothing"),
        ("check none.jsonl", "none.jsonl: no such file or folder"),
        (
            "check in.jsonl",
            "in.jsonl: has no comparisons.jsonl. Records are a run folder, records.parquet, or a folder",
        ),
        ("check in.jsonl --format plian", "format: unknown format 'plian'; did you mean 'plain'?"),
        (
            "check in.jsonl --format plain --columns prompt",
            "--columns: write NAME=COLUMN, the format's name first, got 'prompt'",
        ),
        ("check in.jsonl --format plain", "in.jsonl: none of its 0 rows can be used"),
    ],
)
def test_a_mistake_is_one_line(workdir: Path, capsys: pytest.CaptureFixture[str], command: str, message: str) -> None:
    Path("in.jsonl").write_text("")
    Path("there").mkdir()
    Path("there/file").write_text("mine")
    assert cli.main(["data", *command.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"cai: {message}") and captured.err.count("\n") == 1 and not captured.out
