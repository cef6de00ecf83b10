"""Answers of a server are kept as they come, and none is asked for twice."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from endpoints import OPTIONS, Start, ask, engine, question, start, texts_of

from cai.errors import DataError
from cai.records import Journal, read_rows

__all__ = ["start"]  # fixture


def test_answers_and_failures_that_are_there_are_not_asked_for_again(start: Start, tmp_path: Path) -> None:
    state, url = start(rate=0.3, kinds=["400", "html"])
    one = engine(url, max_attempts=1)
    one.keep_in(tmp_path)
    first, texts = ask(one, 40), texts_of(one, 10)
    assert {scored.receipt.failed for scored in first} == {None, "http_400", "html"}
    state.bodies.clear()
    again = engine(url, max_attempts=1)
    again.keep_in(tmp_path)
    for one_, other in zip(ask(again, 40), first, strict=True):
        assert list(one_.logps) == list(other.logps) and one_.receipt == other.receipt
    assert texts_of(again, 10) == texts
    assert [body["messages"][0]["content"] for body in state.bodies] == ["A or B?"], "the probe"
    assert again.usage.num_requests == one.usage.num_requests + 1


def test_published_defect_labels_are_saved_only_at_the_end(start: Start, tmp_path: Path) -> None:
    """Whoever stops in the middle, however rudely, has every answer that was given out."""
    state, url = start(latency=0.01)
    one = engine(url, concurrency=4)
    one.keep_in(tmp_path)
    answers = one.score([question(n) for n in range(60)], [OPTIONS] * 60)
    given = [next(answers) for _ in range(25)]
    (journal,) = tmp_path.glob("answers-*.journal")
    kept = len(read_rows(journal))
    assert kept >= 25
    answers.close()
    again = engine(url, concurrency=4)
    again.keep_in(tmp_path)
    whole = ask(again, 60)
    assert all(list(whole[scored.index].logps) == list(scored.logps) for scored in given)
    assert state.repeats <= 4 + 1, "those under way, and the probe"


KILLED = """
import sys
from pathlib import Path
from cai.engines.base import EnginePrompt
from cai.engines.endpoint import EndpointEngine
one = EndpointEngine(model="judge", base_urls=sys.argv[1:2], mode="logprob", concurrency=8)
one.keep_in(Path(sys.argv[2]))
prompts = [EnginePrompt(text=f"Case {n}: (A) or (B)?") for n in range(150)]
print(sum(scored.receipt.failed is None for scored in one.score(prompts, [("(A)", "(B)")] * 150)))
"""


@pytest.mark.slow
def test_kill_and_restart_repeat_at_most_the_requests_under_way(start: Start, tmp_path: Path) -> None:
    state, url = start(latency=0.02)
    command = [sys.executable, "-c", KILLED, url, str(tmp_path)]
    paths = {"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""}
    process = subprocess.Popen(command, env=paths)
    while len(state.answered) < 60:
        time.sleep(0.005)
    process.kill()
    process.wait()
    done = subprocess.run(command, env=paths, capture_output=True, text=True, check=True)
    assert done.stdout == "150\n" and len(state.answered) == 151
    assert state.repeats <= 8 + 1, "under way at the kill, and the probe"


def test_answers_that_cannot_be_kept_stop_it(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, records: object) -> None:
        raise DataError("answers.journal: cannot be written: No space left on device")

    state, url = start()
    one = engine(url, concurrency=4)
    one.keep_in(tmp_path)
    monkeypatch.setattr(Journal, "append", full)
    with pytest.raises(DataError, match="No space left on device"):
        ask(one, 200)
    assert state.seen.total() < 20
