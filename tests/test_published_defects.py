"""What published recipes got wrong (DESIGN, section 12), as tests that would fail on the defective behaviour."""

import gzip
import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from worlds import FunctionEngine, ai_labeler, comparison, run

from cai.datasets.export import preference_rows
from cai.datasets.labelled import Labelled
from cai.datasets.recorded import Recorded
from cai.engines.base import EnginePrompt
from cai.errors import EngineError
from cai.labelers.feedback import judgment_of
from cai.records import read_records, write_records
from cai.stages.label import Label
from cai.types import Feedback, Preference

SAMPLE = Path(__file__).parent.parent.parent / "shared" / "data" / "hh-harmless-sample.jsonl.gz"


def sample() -> Path:
    if not SAMPLE.is_file():
        pytest.skip(f"NOT TESTED: the sample of HH-RLHF is not here ({SAMPLE})")
    return SAMPLE


def judged(name: str, *ranking: tuple[int, ...]) -> Labelled:
    one = comparison(name, f"{name} first", f"{name} second")
    said = Feedback(shown=(1, 0), ranking=ranking)
    judgment = judgment_of(one, said, number=0, labeler="human", person="ada")
    return Labelled(comparison=one, judgments=(judgment,), rows=(1,))


# --- "chosen" is always the first response, whatever the judge says ---------------------------------------------------


def test_chosen_is_not_always_the_first_response() -> None:
    counts: Counter[str] = Counter()
    for name, ranking, best in (("a", ((0,), (1,)), "a first"), ("b", ((1,), (0,)), "b second")):
        (row,) = preference_rows(judged(name, *ranking), counts)
        assert row["chosen"][0]["content"] == best


def test_an_imported_chosen_response_is_not_always_the_first_one() -> None:
    """Nor can a model learn the place: the files have the chosen one in front, we have it there half of the time."""
    labelled = Recorded(path=str(sample()), format="hh").load().labelled
    first = sum(one.judgments[0].pairs[0].p for one in labelled)
    assert 0.45 < first / len(labelled) < 0.55
    lines = gzip.decompress(SAMPLE.read_bytes()).decode().splitlines()
    for one in labelled:
        row = json.loads(lines[one.rows[0] - 1])
        (pair,) = one.judgments[0].pairs
        best, worst = (0, 1) if pair.p == 1 else (1, 0)
        assert row["chosen"].endswith(one.comparison.responses[best].text)
        assert row["rejected"].rstrip().endswith(one.comparison.responses[worst].text)


# --- a random pair is recorded when both choices tie ------------------------------------------------------------------


def test_a_tie_is_not_recorded_as_a_random_pair() -> None:
    counts: Counter[str] = Counter()
    tied = judged("a", (0, 1))
    assert (tied.judgments[0].pairs, tied.judgments[0].abstained) == ((), "tie")
    assert list(preference_rows(tied, counts)) == [] and counts["judgments_without_pairs"] == 1


# --- rows are dropped on any exception, in silence --------------------------------------------------------------------


def test_rows_are_not_dropped_in_silence(tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} for i in range(50)]
    broken: dict[int, object] = {
        4: {"prompt": "q", "chosen": "a"},
        7: {"prompt": None, "chosen": 1, "rejected": []},
        8: [],
        9: "text",
        20: None,
        31: {"prompt": [{"role": "user"}], "chosen": "a", "rejected": "b"},
        33: {"prompt": "q", "chosen": "", "rejected": "b"},
        49: {"prompt": "q", "chosen": "a", "rejected": "a"},
    }
    for row, value in broken.items():
        rows[row - 1] = value
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = Recorded(path=str(path), format="trl").load()
    assert {one.row for one in found.left_out} == set(broken)
    assert all(one.reason and one.detail for one in found.left_out)
    assert found.counts["rows"] == 50 == len(found.left_out) + sum(len(one.rows) for one in found.labelled)
    assert sum(n for name, n in found.counts.items() if name.startswith("left_out_")) == len(broken)


# --- only the first turn is kept, of 71 % of the dialogues that have several ------------------------------------------


def test_every_turn_of_every_dialogue_is_kept() -> None:
    found = Recorded(path=str(sample()), format="hh").load()
    lines = gzip.decompress(SAMPLE.read_bytes()).decode().splitlines()
    assert len(lines) == found.counts["rows"] == 1000
    assert [one.row for one in found.left_out] == [87, 517, 926]  # with a turn that has no text
    several = 0
    for one in found.labelled:
        row = json.loads(lines[one.rows[0] - 1])
        shared = row["chosen"][: row["chosen"].rindex("\n\nAssistant:")]
        texts = [text.strip() for text in re.split(r"\n\n(?:Human|Assistant):", shared)[1:]]
        several += len(texts) > 1
        if len(texts) == len(one.comparison.prompt.turns):
            assert [turn.content for turn in one.comparison.prompt.turns] == texts
        else:  # neighbours of one role are joined: nothing is lost
            assert "\n\n".join(turn.content for turn in one.comparison.prompt.turns) == "\n\n".join(texts)
    assert several == 699 and several / len(found.labelled) > 0.7
    assert found.counts["joined_turns"] == 2


# --- draws are not seeded ---------------------------------------------------------------------------------------------

DRAW = """
import json, sys
from cai.datasets.source import RecordedData
names = ("num_red_team", "num_demonstrations", "num_comparisons", "num_rl", "num_evaluation")
source = RecordedData(path=sys.argv[1], format="plain", seed=int(sys.argv[2]), **dict.fromkeys(names, 5))
sets = source.load()
print(json.dumps([[p.id for p in s] for s in (sets.red_team, sets.comparisons, sets.rl, sets.evaluation)]))
"""


def test_draws_are_seeded(tmp_path: Path) -> None:
    """The same in every process, whatever Python's own hashes and the order of the rows; another with another seed."""
    rows = [json.dumps({"prompt": f"q{i}", "chosen": "a", "rejected": "b"}) for i in range(60)]
    for name, own in (("there", rows), ("back", rows[::-1])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(own))

    def drawn(name: str, seed: int, hashes: int) -> str:
        command = [sys.executable, "-c", DRAW, str(tmp_path / f"{name}.jsonl"), str(seed)]
        environment = {**os.environ, "PYTHONHASHSEED": str(hashes)}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    assert drawn("there", 3, 1) == drawn("there", 3, 2) == drawn("back", 3, 1)
    assert drawn("there", 3, 1) != drawn("there", 4, 1)


# --- the judge: its order swap is never undone, one order only, no judge at all ---------------------------------------


def by_content(asked: EnginePrompt, choice: str) -> float:
    """Prefers what holds the word good, wherever it is shown."""
    if choice in (" yes", " no"):
        return math.log(0.5)
    first = "good" in asked.text.split("one ")[1].split(" two ")[0]
    return math.log(0.8 if (choice == " (A)") == first else 0.2)


@pytest.mark.parametrize("both_orders", [True, False])
def test_a_judge_s_order_swap_is_undone(workdir: Path, both_orders: bool) -> None:
    items = [comparison(f"c{i}", *(("good", "bad") if i % 2 else ("bad", "good"))) for i in range(40)]
    write_records(workdir / "sample" / "comparisons.jsonl", items)
    labeler = ai_labeler(workdir, FunctionEngine(logp=by_content), both_orders=both_orders)
    run(Label(labeler=labeler), {"sample": workdir / "sample"}, workdir / "out")
    for preference in read_records(workdir / "out" / "preferences.jsonl", Preference):
        (pair,) = preference.pairs
        chosen = preference.responses[pair.first if pair.p > 0.5 else pair.second]
        assert chosen == "good", "the chosen one is what the judge says, not what was shown first"


def test_both_orders_are_asked_unless_told_otherwise(workdir: Path) -> None:
    """A judge that goes by the place alone has nothing to say."""
    engine = FunctionEngine(logp=lambda asked, choice: math.log(0.9 if choice in (" (A)", " yes") else 0.1))
    (judgment,) = ai_labeler(workdir, engine).label([comparison("c", "one text", "other text")])
    shown: list[Any] = [row["shown"] for row in judgment.evidence]
    assert sorted(shown) == [[0, 1], [1, 0]]
    assert judgment.pairs[0].p == 0.5


def test_a_judge_s_tie_is_not_recorded_as_a_random_pair(workdir: Path) -> None:
    even = FunctionEngine(logp=lambda *_: math.log(0.4))
    items = [comparison(f"c{i}", f"x {i}", f"y {i}") for i in range(20)]
    assert [j.pairs[0].p for j in ai_labeler(workdir, even).label(items)] == [0.5] * 20, "even, and said so"
    abstains = list(ai_labeler(workdir, even, min_distance=0.01).label(items))
    assert {(j.pairs, j.abstained) for j in abstains} == {((), "undecided")}, "or no label, and counted"


def test_the_revision_is_not_always_the_chosen_one(workdir: Path) -> None:
    """There is a judge: of a response and its revision, it may well prefer the response."""
    items = [comparison(f"c{i}", "response" + " good" * (i % 2), "revision" + " good" * (1 - i % 2)) for i in range(10)]
    judgments = list(ai_labeler(workdir, FunctionEngine(logp=by_content)).label(items))
    assert [j.pairs[0].p > 0.5 for j in judgments] == [i % 2 == 1 for i in range(10)]


def test_an_exception_in_the_middle_loses_no_label_and_drops_no_row(workdir: Path) -> None:
    """Labels are saved as they come, and an exception stops the run rather than pass over a row."""
    items = [comparison(f"c{i}", f"good {i}", f"bad {i}") for i in range(600)]
    write_records(workdir / "sample" / "comparisons.jsonl", items)

    def breaks(asked: EnginePrompt, choice: str) -> float:
        if "question c590\n" in asked.text:
            raise EngineError("the judge fell over")
        return by_content(asked, choice)

    with pytest.raises(EngineError, match="the judge fell over"):
        run(
            Label(labeler=ai_labeler(workdir, FunctionEngine(logp=breaks))),
            {"sample": workdir / "sample"},
            workdir / "out",
        )
    saved = len((workdir / "out" / "judgments.journal").read_text().splitlines())
    assert saved >= 512
    engine = FunctionEngine(logp=by_content)
    run(Label(labeler=ai_labeler(workdir, engine)), {"sample": workdir / "sample"}, workdir / "out")
    assert len(read_records(workdir / "out" / "preferences.jsonl", Preference)) == 600
    assert sum(map(len, engine.scored)) < 600 * 14, "what was saved is not asked again"
