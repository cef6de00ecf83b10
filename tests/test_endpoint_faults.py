"""Faults of a server, one by one and all at once, and servers that are down (benchmarks/fault_server.py)."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from endpoints import Start, ask, engine, share, start, texts_of, truth

from cai.errors import EngineError

__all__ = ["start"]  # fixture


# --- faults -----------------------------------------------------------------------------------------------------------


REASONS = {
    "429": "http_429", "500": "http_500", "503": "http_503", "hang": "timeout", "drip": "timeout",
    "reset": "connection", "html": "html", "cut_json": "bad_json", "twice": "bad_json", "no_choices": "no_choices",
    "null_content": "no_logprobs", "nan_logprobs": "bad_logprobs", "no_logprobs": "no_logprobs",
    "wrong_model": "wrong_model", "no_usage": "no_usage",
}  # fmt: skip


def fault_of(body: Any, faults: Sequence[str]) -> str:
    """The fault with the number of the question."""
    found = re.search(r"case (\d+)", body["messages"][0]["content"])
    return faults[int(found[1])] if found else ""


@pytest.mark.slow
def test_each_fault_is_known_for_what_it_is_and_passes(start: Start) -> None:
    faults = list(REASONS)
    state, url = start(hang=8.0, script=lambda body, before: fault_of(body, faults) if before < 2 else None)
    for number, scored in enumerate(ask(engine(url, timeout_seconds=2.0), len(faults))):
        reason = REASONS[faults[number]]
        assert scored.receipt.attempts == (reason, reason, "ok"), faults[number]
        assert scored.receipt.failed is None and share(scored) == pytest.approx(truth(number))
        assert scored.receipt.provenance.num_attempts == 3
    assert all(state.faults[fault] == 2 for fault in faults)


@pytest.mark.slow
def test_a_fault_that_does_not_pass_is_a_failure_with_its_reason(start: Start) -> None:
    faults = [*REASONS, "400", ""]
    _, url = start(hang=8.0, script=lambda body, before: fault_of(body, faults))
    *broken, whole = ask(engine(url, max_attempts=2, timeout_seconds=2.0), len(faults))
    assert whole.receipt.failed is None and share(whole) == pytest.approx(truth(len(broken)))
    for fault, scored in zip(faults, broken, strict=False):
        reason = REASONS.get(fault, "http_400")
        assert scored.receipt.failed == reason and scored.receipt.detail
        assert scored.receipt.attempts == (("http_400",) if fault == "400" else (reason, reason)), "400 stays 400"
        assert list(scored.logps) == [-math.inf, -math.inf], "nothing that could be a label"


def test_a_verdict_without_a_choice_has_no_probability(start: Start) -> None:
    _, url = start(script=lambda body, before: "wrong_verdict" if "case 1," in body["messages"][0]["content"] else None)
    _, scored = ask(engine(url), 2)
    assert list(scored.logps) == [-math.inf, -math.inf] and scored.receipt.failed is None
    _, parsed = ask(engine(url, mode="parsed", max_attempts=3), 2)
    assert parsed.receipt.failed == "no_verdict" and parsed.receipt.attempts == ("no_verdict",) * 3


@pytest.mark.slow
def test_under_all_faults_at_once_every_question_is_answered_rightly_or_failed(start: Start) -> None:
    state, url = start(rate=0.3, seed=5)
    one = engine(url, concurrency=16, prices={"judge": {"input": 1.0, "output": 3.0}}, timeout_seconds=1.9)
    found = ask(one, 250)
    assert [scored.index for scored in found] == list(range(250))
    failed = Counter(scored.receipt.failed for scored in found if scored.receipt.failed)
    ill_formed = 0
    for number, scored in enumerate(found):
        if scored.receipt.failed or math.isinf(scored.logps[0]):
            ill_formed += not scored.receipt.failed
            assert list(scored.logps) == [-math.inf, -math.inf]
        else:
            assert share(scored) == pytest.approx(truth(number))
    assert 0 < failed["http_400"] == state.faults["400"] and ill_formed == state.faults["wrong_verdict"] > 0
    assert failed.total() <= failed["http_400"] + 2
    counted = state.stats()
    assert counted["num_requests"] == one.usage.num_requests and counted["peak"] <= 16 and counted["repeats"] == 0
    assert 0.2 < 1 - state.faults["none"] / counted["num_requests"] < 0.4
    # What went lost on the way was worked out and will be on the bill, and nobody can know how much.
    assert 0 < one.usage.prompt_tokens < counted["prompt_tokens"]
    assert one.usage.cost == pytest.approx((one.usage.prompt_tokens + 3 * one.usage.new_tokens) / 1e6)
    assert one.usage.cost == pytest.approx(sum(scored.receipt.provenance.cost for scored in found), abs=1e-4)
    assert len(state.faults) > 14


# --- servers that are down, or refuse ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_outage_uses_up_no_questions_attempts(start: Start) -> None:
    state, url = start()
    one = engine(url, concurrency=8, max_attempts=3)
    ask(one, 1)
    state.script = lambda body, before: "503" if state.seen.total() < 50 else None
    found = ask(one, 40, first=1)
    assert [scored.receipt.failed for scored in found] == [None] * 40
    assert state.faults["503"] > 40, "it was asked many more times than the attempts of eight questions"


def test_an_outage_without_end_stops_and_the_same_command_goes_on(start: Start, tmp_path: Path) -> None:
    state, url = start()
    one = engine(url, concurrency=4, outage_seconds=0.3)
    one.keep_in(tmp_path)
    ask(one, 20)
    state.down = True
    with pytest.raises(EngineError, match=r"no answer from http://127.* for 0\.3 s; every answer so far is kept"):
        ask(one, 40)
    state.down = False
    again = engine(url, concurrency=4)
    again.keep_in(tmp_path)
    assert [scored.receipt.failed for scored in ask(again, 40)] == [None] * 40
    assert state.repeats == 1, "the probe"


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(EngineError, match=r"^endpoint: http://127\.0\.0\.1:9/v1: cannot be probed: connection: Con"):
        ask(engine("http://127.0.0.1:9/v1", max_attempts=2), 1)


def test_servers_share_the_work_and_one_that_dies_is_left_out(start: Start) -> None:
    (state, url), (other, there) = start(latency=0.01), start(latency=0.01)
    one = engine(url, there, concurrency=8)
    assert len(ask(one, 40)) == 40
    assert min(state.seen.total(), other.seen.total()) > 10
    state.down = True
    before = other.seen.total()
    assert [scored.receipt.failed for scored in ask(one, 60, first=40)] == [None] * 60
    assert other.seen.total() - before == 60


def test_servers_that_differ_are_refused(start: Start) -> None:
    (_, url), (_, other) = start(), start(abilities=("systemone",))
    with pytest.raises(EngineError, match=r"endpoint: servers differ: .*mode='logprob'.*mode='decision'"):
        ask(engine(url, other, mode="auto"), 1)


def test_an_outage_ends_even_without_pauses(start: Start) -> None:
    state, url = start()
    one = engine(url, concurrency=4, retry_seconds=0, outage_seconds=0.3)
    ask(one, 1)
    state.down = True
    state.seen.clear()
    with pytest.raises(EngineError, match=r"no answer from http://127.* for 0\.3 s"):
        ask(one, 40)
    assert state.seen.total() < 40, "it is left alone for a moment each time"


def test_when_nothing_comes_at_all_nothing_is_kept(start: Start, tmp_path: Path) -> None:
    """The mistake is ours more often than every question's, and putting it right must be enough."""
    state, url = start(script=lambda body, before: "400" if body["max_tokens"] == 6 else None)
    one = engine(url)
    one.keep_in(tmp_path)
    with pytest.raises(EngineError, match=r"no answer to any of 5 questions; the first: http_400: .*400 on purpose"):
        texts_of(one, 5)
    with pytest.raises(EngineError, match=r"no answer to any of the first 20 questions; the first: http_400"):
        texts_of(one, 500)
    assert state.seen.total() < 100
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["attempts"], "these were made"
    state.script = None
    assert len(texts_of(one, 5)) == 5
