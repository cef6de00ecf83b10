"""Recorded datasets as a source of prompts: no turn lost, every row counted, sets that do not overlap."""

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cai.datasets import source as src
from cai.datasets.hh import DIFFER_EARLIER
from cai.datasets.hygiene import PREFIX, USER
from cai.datasets.labelled import EMPTY_TURN, IDENTICAL, NO_RESPONSE
from cai.datasets.recorded import Recorded
from cai.datasets.source import RecordedData
from cai.errors import ConfigError, DataError
from cai.records import read_json, read_records
from cai.stages.data import Data, DataSource, check_sets
from cai.types import LeftOut, PromptSets, Turn

SAMPLE = Path(__file__).parent.parent.parent / "shared" / "data" / "hh-harmless-sample.jsonl.gz"


def row(*turns: str, chosen: str = "Good.", rejected: str = "Bad.") -> dict[str, str]:
    """A row whose shared turns alternate, the human's first."""
    headers = ("\n\nHuman: ", "\n\nAssistant: ")
    shared = "".join(headers[i % 2] + turn for i, turn in enumerate(turns))
    return {"chosen": f"{shared}\n\nAssistant: {chosen}", "rejected": f"{shared}\n\nAssistant: {rejected}"}


def written(tmp_path: Path, rows: list[dict[str, str]]) -> str:
    path = tmp_path / "hh.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def made(path: str, seed: int = 0, format: str = "hh", **more: Any) -> RecordedData:
    """A source whose sets are empty but for `more`, which settings may not ask for: files here have a row or two."""
    names = ("evaluation", "red_team", "demonstrations", "comparisons", "rl")
    sizes = {name: more.pop(name, 0) for name in names}
    settings: dict[str, Any] = {f"num_{name}": max(size, 1) for name, size in sizes.items()}
    source = RecordedData(path=path, seed=seed, format=format, **{"tags": ("red_team",), **settings, **more})
    source._sizes = sizes
    return source


def members(sets: PromptSets) -> dict[str, list[tuple[Turn, ...]]]:
    """The dialogues of each set."""
    shown = [shown.prompt for shown in sets.demonstrations]
    all_sets = {name: getattr(sets, name) for name in ("red_team", "comparisons", "rl", "evaluation")}
    return {
        name: [prompt.turns for prompt in prompts] for name, prompts in {**all_sets, "demonstrations": shown}.items()
    }


def accounted(sets: PromptSets) -> None:
    """Every row is in a set, or counted where it is not; what is left out is listed too."""
    counts = sets.counts
    known = {
        name: count for name, count in counts.items() if name.startswith("left_out_") or name in ("unused", src.FURTHER)
    }
    assert counts["rows"] == sum(map(len, members(sets).values())) + sum(known.values())
    listed = Counter(f"left_out_{one.reason}" for one in sets.left_out)
    assert listed == Counter({name: count for name, count in known.items() if name.startswith("left_out_")})


def test_every_turn_is_in_the_prompt(tmp_path: Path) -> None:
    path = written(tmp_path, [row("Hi", "Hello.\n\nHow are you?", "Human: fine", chosen="Nice.\n\nBye.")])
    sets = made(path, demonstrations=1).load()
    (shown,) = sets.demonstrations
    assert shown.prompt.turns == (
        Turn("user", "Hi"),
        Turn("assistant", "Hello.\n\nHow are you?"),
        Turn("user", "Human: fine"),
    )
    assert shown.text == "Nice.\n\nBye."
    assert shown.prompt.tags == ("red_team",)
    assert shown.prompt.source == "hh.jsonl:1"


def test_neighbours_of_one_role_are_joined_and_counted(tmp_path: Path) -> None:
    text = "\n\nHuman: A\n\nHuman: B\n\nAssistant: C\n\nAssistant: "
    source = made(written(tmp_path, [{"chosen": text + "D", "rejected": text + "E"}]), demonstrations=1)
    sets = source.load()
    (shown,) = sets.demonstrations
    assert shown.prompt.turns == (Turn("user", "A\n\nB"),)
    assert shown.text == "C\n\nD"
    assert sets.counts["joined_turns"] == 1


def test_rows_that_cannot_serve_are_counted_by_reason(tmp_path: Path) -> None:
    rows = [
        row("fine"),
        row("fine", chosen="Another."),
        row("same", chosen="x", rejected="x"),
        row("empty", chosen=" "),
        row("", chosen="x"),
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: b"},
        {"chosen": row("one")["chosen"], "rejected": row("two")["rejected"]},
        {"chosen": row("a", "b", "c")["chosen"], "rejected": row("a")["rejected"]},
    ]
    source = made(written(tmp_path, rows), rl=1)
    sets = source.load()
    assert [prompt.turns[0].content for prompt in sets.rl] == ["fine"]
    accounted(sets)
    assert (sets.counts["rows"], sets.counts[src.FURTHER]) == (8, 1)
    reasons = {one.row: one.reason for one in sets.left_out}
    assert reasons == {3: IDENTICAL, 4: EMPTY_TURN, 5: EMPTY_TURN, 6: NO_RESPONSE, 7: DIFFER_EARLIER, 8: DIFFER_EARLIER}


def test_sets_do_not_share_an_opening_and_every_row_is_somewhere(tmp_path: Path) -> None:
    rows = [row(f"topic {i % 30}", "Yes?", f"more {i}") for i in range(90)]
    source = made(written(tmp_path, rows), red_team=10, demonstrations=10, comparisons=10, rl=10, evaluation=10)
    sets = source.load()
    check_sets(sets)
    assert isinstance(source, DataSource)
    openings = {name: {turns[0].content for turns in own} for name, own in members(sets).items()}
    assert all(len(own) == 10 for own in members(sets).values())
    assert sum(map(len, openings.values())) == len(set().union(*openings.values()))
    assert sets.counts["rows"] == 90
    accounted(sets)
    assert sets.counts[f"left_out_{src.APART['opening']}"] > 0


def test_evaluation_prompts_stay_when_other_sizes_change(tmp_path: Path) -> None:
    path = written(tmp_path, [row(f"topic {i}") for i in range(60)])
    first = made(path, evaluation=10, rl=5).load()
    assert made(path, evaluation=10, rl=40, red_team=3).load().evaluation == first.evaluation
    assert made(path, evaluation=10, rl=5).load() == first
    assert made(path, seed=1, evaluation=10).load().evaluation != first.evaluation


def test_asking_for_too_many_names_both_numbers(tmp_path: Path) -> None:
    path = written(tmp_path, [row(f"topic {i}") for i in range(7)])
    with pytest.raises(DataError, match=r"hh\.jsonl: 9 prompts asked for \(evaluation 4, .*, rl 5\), but it has 7"):
        made(path, evaluation=4, rl=5).load()


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        ("{", "not_json", "Expecting property name"),
        ("\xff", "not_json", "'utf-8' codec"),
        ("[1]", "not_an_object", "[1]"),
        ('{"chosen": "x"}', "not_a_dialogue", "chosen: must start with two line breaks and 'Human:', got 'x'"),
        (
            json.dumps({"chosen": "\n\nHuman: x"}),
            "missing_column",
            "no rejected (column 'rejected'); the row has chosen",
        ),
        ('{"chosen": 3, "rejected": "x"}', "not_a_dialogue", "chosen: must start with two line breaks"),
        (
            '{"chosn": "x", "rejected": "x"}',
            "missing_column",
            "no chosen (column 'chosen'); the row has chosn, rejected",
        ),
        (json.dumps(row("a", chosen="\ud800")), "not_unicode", "half of a surrogate pair"),
    ],
)
def test_rows_that_cannot_be_read_are_left_out_and_listed_by_line(
    tmp_path: Path, line: str, reason: str, detail: str
) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_bytes(f"{json.dumps(row('a'))}\n\n".encode() + line.encode("latin-1") + b"\n")
    sets = made(str(path), rl=1).load()
    (left_out,) = sets.left_out
    assert (left_out.row, left_out.reason) == (3, reason)
    assert left_out.detail.startswith(detail)
    accounted(sets)


def test_a_file_without_a_usable_row_says_why(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text('{"prompt": "x", "chosen": "y"}\n{}\n')
    with pytest.raises(DataError, match=r"none of its 2 rows can be used: row 1: not_a_dialogue: chosen: must start"):
        made(str(path), rl=1).load()


def test_the_stage_lists_what_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path, [row("a"), row("b", chosen="x", rejected="x")])
    (tmp_path / "out").mkdir()
    facts = Data(source=made(path, rl=1)).run({}, tmp_path / "out")
    (left_out,) = read_records(tmp_path / "out" / "left_out.jsonl", LeftOut)
    assert (left_out.row, left_out.reason) == (2, IDENTICAL)
    assert read_json(tmp_path / "out" / "data.json")["source"]["left_out_identical_responses"] == 1
    assert facts["num_left_out"] == 1


def test_gzip_is_known_by_its_bytes_and_damage_is_named(tmp_path: Path) -> None:
    packed = gzip.compress((json.dumps(row("a")) + "\n").encode())
    path = tmp_path / "no-suffix"
    path.write_bytes(packed)
    assert len(made(str(path), rl=1).load().rl) == 1
    path.write_bytes(packed[:-6])
    with pytest.raises(DataError, match="no-suffix: cannot be read"):
        made(str(path), rl=1).load()
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        made(str(tmp_path / "none.jsonl"))


def test_comparisons_keep_order_and_repeated_prompts(tmp_path: Path) -> None:
    path = written(tmp_path, [row("a"), row("b", chosen="x", rejected="x"), row("a", chosen="Better.")])
    first, second = Recorded(path=path, format="hh").load().labelled
    assert {r.text for r in first.comparison.responses} == {"Good.", "Bad."}
    assert {r.text for r in second.comparison.responses} == {"Better.", "Bad."}
    assert first.comparison.prompt.id == second.comparison.prompt.id
    assert first.comparison.id != second.comparison.id


# --- hygiene as settings of the source --------------------------------------------------------------------------------


def plain(tmp_path: Path, rows: list[dict[str, Any]]) -> str:
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps({"chosen": "Good.", "rejected": "Bad.", **r}) + "\n" for r in rows))
    return str(path)


def test_all_prompts_of_a_user_stay_in_one_set(tmp_path: Path) -> None:
    rows = [{"prompt": f"question {i}", "user": f"u{i % 17}"} for i in range(120)]
    rows += [{"prompt": "question 0", "user": "u5", "chosen": "Best."}, {"prompt": "question 1"}]
    sizes = dict.fromkeys(("red_team", "demonstrations", "comparisons", "rl", "evaluation"), 12)
    sets = made(plain(tmp_path, rows), format="plain", split_by="user", **sizes).load()
    check_sets(sets)
    accounted(sets)
    user = {row["prompt"]: row.get("user", "") for row in reversed(rows)}
    users = {name: {user[turns[0].content] for turns in own} - {""} for name, own in members(sets).items()}
    assert sum(map(len, users.values())) == len(set().union(*users.values())) >= 5
    assert all(len(own) == 12 for own in members(sets).values())
    assert sets.counts[f"left_out_{src.APART['user']}"] > 0


def test_users_with_the_same_opening_do_not_bring_it_into_two_sets(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}] for _ in range(40)]
    rows = [
        {"prompt": [*own, {"role": "user", "content": f"more {i}"}], "user": f"u{i}"} for i, own in enumerate(turns)
    ]
    rows += [{"prompt": f"question {i}", "user": f"v{i}"} for i in range(40)]
    sets = made(plain(tmp_path, rows), format="plain", split_by="user", comparisons=8, rl=8, evaluation=8).load()
    accounted(sets)
    assert sum(any(turns[0].content == "Hi" for turns in own) for own in members(sets).values()) == 1


def test_planted_duplicates_and_busy_users_are_left_out_and_counted(tmp_path: Path) -> None:
    start = "Write a story about a fox who "
    rows: list[dict[str, Any]] = [{"prompt": start + end, "user": "ada"} for end in ("sings", "SLEEPS", "eats")]
    rows += [{"prompt": f"{i} is a number of its own kind, is it not?", "user": "bob"} for i in range(5)]
    settings: dict[str, Any] = {"format": "plain", "dedup_prefix": 25, "max_per_user": 3}
    sets = made(plain(tmp_path, rows), comparisons=4, **settings).load()
    accounted(sets)
    assert sets.counts[f"left_out_{PREFIX}"] == 2 and sets.counts[f"left_out_{USER}"] == 2
    assert [one.row for one in sets.left_out] == [2, 3, 7, 8]
    assert sets.left_out[0].detail == "the first 25 characters are those of row 1"
    assert sets.left_out[2].detail == "user 'bob' has 3 prompts before it"


def test_personal_data_is_replaced_before_anything_is_written(tmp_path: Path) -> None:
    rows = [{"prompt": "Mail ada@example.org", "chosen": "Call (202) 555-0143.", "user": "ada@example.org"}]
    sets = made(plain(tmp_path, rows), format="plain", demonstrations=1, screen_pii=True).load()
    (shown,) = sets.demonstrations
    assert shown.prompt.turns[0].content == "Mail <email>" and shown.text == "Call <phone>."
    assert "ada@" not in repr(sets)
    assert (sets.counts["screened_email"], sets.counts["screened_phone"], sets.counts["screened_rows"]) == (1, 1, 1)


def test_a_prompt_without_a_preferred_response_is_no_demonstration(tmp_path: Path) -> None:
    rows = [{"prompt": f"q {i}", "first": "a", "second": "b", "preferred": ("tie", "b")[i % 2]} for i in range(10)]
    path = tmp_path / "plain.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    sets = made(str(path), format="plain", demonstrations=4).load()
    accounted(sets)
    assert [shown.text for shown in sets.demonstrations] == ["b"] * 4
    assert all(int(shown.prompt.turns[0].content[2:]) % 2 for shown in sets.demonstrations)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "hhh"}, r"format: unknown format 'hhh'; did you mean 'hh'\? Allowed: argilla, hh"),
        ({"columns": {"chosn": "x"}}, "columns: unknown column of format hh 'chosn'; did you mean 'chosen'"),
        ({"dedup_prefix": 0}, "dedup_prefix: must be 1 or more, or null, got 0"),
        ({"max_per_user": -1}, "max_per_user: must be 1 or more, or null, got -1"),
    ],
)
def test_settings_that_mean_nothing_are_refused_before_the_file_is_read(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        made(written(tmp_path, []), **settings)


def test_users_are_asked_for_where_there_are_none(tmp_path: Path) -> None:
    path = written(tmp_path, [row("a"), row("b")])
    with pytest.raises(DataError, match=r"split_by: is user, but no row of .* says who the user is"):
        made(path, rl=1, split_by="user").load()
    with pytest.raises(DataError, match="max_per_user: is 3, but no row says who the user is"):
        made(path, rl=1, max_per_user=3).load()


def test_the_published_sample() -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"NOT TESTED: the sample of HH-RLHF is not here ({SAMPLE})")
    source = made(str(SAMPLE), red_team=200, demonstrations=100, comparisons=300, rl=300, evaluation=90)
    sets = source.load()
    check_sets(sets)
    accounted(sets)
    assert sets.counts["rows"] == 1000
    assert (sets.counts["left_out_empty_turn"], sets.counts["joined_turns"], sets.counts[src.FURTHER]) == (3, 2, 0)
    assert len(sets.red_team) == 200
    lines = gzip.decompress(SAMPLE.read_bytes()).decode().splitlines()
    for prompt in sets.red_team:
        shown = json.loads(lines[int(prompt.source.split(":")[1]) - 1])["chosen"]
        assert all(turn.content in shown for turn in prompt.turns)
        num_turns = shown.count("\n\nHuman:") + shown.count("\n\nAssistant:")
        assert len(prompt.turns) == num_turns - 1 or prompt.source.endswith((":668", ":764"))  # those are joined
