"""HH-RLHF as a data source: no turn lost, every row counted, sets that do not overlap."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from cai.datasets import hh
from cai.datasets.hh import HHData, hh_comparisons
from cai.errors import DataError
from cai.stages.data import DataSource, check_sets
from cai.types import Turn

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


def made(path: str, seed: int = 0, **sizes: int) -> HHData:
    """A source whose sets are empty but for `sizes`, which settings may not ask for: files here have a row or two."""
    names = ("evaluation", "red_team", "demonstrations", "comparisons", "rl")
    settings: dict[str, Any] = {f"num_{name}": sizes.get(name, 1) for name in names}
    source = HHData(path=path, seed=seed, **settings)
    source._sizes = {name: sizes.get(name, 0) for name in names}
    return source


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
    assert sets.counts[hh.JOINED] == 1


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
    assert {reason: count for reason, count in sets.counts.items() if count} == {
        "rows": 8,
        hh.DUPLICATE: 1,
        hh.IDENTICAL: 1,
        hh.EMPTY_TURN: 2,
        hh.NO_RESPONSE: 1,
        hh.DIFFER_EARLIER: 2,
    }


def test_sets_do_not_share_an_opening_and_every_row_is_somewhere(tmp_path: Path) -> None:
    rows = [row(f"topic {i % 30}", "Yes?", f"more {i}") for i in range(90)]
    source = made(written(tmp_path, rows), red_team=10, demonstrations=10, comparisons=10, rl=10, evaluation=10)
    sets = source.load()
    check_sets(sets)
    assert isinstance(source, DataSource)
    members = {
        "red_team": sets.red_team,
        "demonstrations": [shown.prompt for shown in sets.demonstrations],
        "comparisons": sets.comparisons,
        "rl": sets.rl,
        "evaluation": sets.evaluation,
    }
    openings = {name: {prompt.turns[0].content for prompt in prompts} for name, prompts in members.items()}
    assert all(len(prompts) == 10 for prompts in members.values())
    assert sum(map(len, openings.values())) == len(set().union(*openings.values()))
    counts = sets.counts
    assert counts["rows"] == 90 == 50 + sum(v for k, v in counts.items() if k not in ("rows", hh.JOINED))
    assert counts[hh.APART] > 0


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
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object with the keys chosen and rejected"),
        ('{"chosen": "x"}', "key 'rejected': missing"),
        ('{"chosen": 3, "rejected": "x"}', "key 'chosen': must be text"),
        ('{"chosn": "x", "rejected": "x"}', "unknown key 'chosn'; did you mean 'chosen'?"),
        (
            '{"chosen": "Hello", "rejected": "x"}',
            "key 'chosen': a dialogue must start with two line breaks and 'Human:', got 'Hello'",
        ),
    ],
)
def test_rows_that_cannot_be_read_are_named_by_line(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps(row("a")) + "\n\n" + line + "\n")
    with pytest.raises(DataError) as caught:
        made(str(path), rl=1).load()
    assert str(caught.value).startswith(f"{path}:3: {message}")


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
    first, second = hh_comparisons(path)
    assert (first[1:], second[1:]) == (("Good.", "Bad."), ("Better.", "Bad."))
    assert first[0].id == second[0].id


def test_the_published_sample() -> None:
    if not SAMPLE.is_file():
        pytest.skip(f"NOT TESTED: the sample of HH-RLHF is not here ({SAMPLE})")
    source = made(str(SAMPLE), red_team=200, demonstrations=100, comparisons=300, rl=300, evaluation=90)
    sets = source.load()
    check_sets(sets)
    counts = sets.counts
    assert counts["rows"] == 1000 == 990 + sum(v for k, v in counts.items() if k not in ("rows", hh.JOINED))
    assert (counts[hh.EMPTY_TURN], counts[hh.JOINED], counts[hh.DUPLICATE]) == (3, 2, 0)
    assert len(sets.red_team) == 200
    lines = gzip.decompress(SAMPLE.read_bytes()).decode().splitlines()
    for prompt in sets.red_team:
        shown = json.loads(lines[int(prompt.source.split(":")[1]) - 1])["chosen"]
        assert all(turn.content in shown for turn in prompt.turns)
        num_turns = shown.count("\n\nHuman:") + shown.count("\n\nAssistant:")
        assert len(prompt.turns) == num_turns - 1 or prompt.source.endswith((":668", ":764"))  # those are joined
    assert len(hh_comparisons(str(SAMPLE))) == 997
