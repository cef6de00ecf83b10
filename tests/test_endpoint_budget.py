"""What the endpoint engine keeps to: requests under way and per minute, and the ceiling on spending."""

import time
from collections import Counter
from pathlib import Path

import pytest
from endpoints import Start, ask, engine, start, texts_of

from cai.engines.endpoint import EndpointEngine
from cai.errors import EngineError

__all__ = ["start"]  # fixture


@pytest.mark.parametrize("concurrency", [1, 5])
def test_no_more_requests_are_under_way_than_allowed(start: Start, concurrency: int) -> None:
    state, url = start(latency=0.02)
    ask(engine(url, concurrency=concurrency), 20)
    assert state.peak == concurrency


def test_requests_of_a_minute_are_spread_over_it(start: Start) -> None:
    state, url = start()
    begun = time.monotonic()
    ask(engine(url, requests_per_minute=6000), 30)
    assert time.monotonic() - begun > 0.29 and state.seen.total() == 31


def test_the_ceiling_on_spending_stops_and_a_higher_one_goes_on(start: Start, tmp_path: Path) -> None:
    state, url = start(latency=0.01)
    prices = {"judge": {"input": 1000.0, "output": 0.0}}

    def made(max_cost: float) -> EndpointEngine:
        one = engine(url, concurrency=4, prices=prices, max_cost=max_cost)
        one.keep_in(tmp_path)
        return one

    poor = made(0.5)
    with pytest.raises(EngineError, match=r"spent 0\.5\d+ USD of max_cost=0\.5; every answer is kept, and with a high"):
        ask(poor, 60)
    per_question = 0.013
    assert 0.5 <= poor.usage.cost < 0.5 + 4 * per_question
    first = state.stats()["num_answered"]
    rich = made(5.0)
    assert rich.usage == poor.usage, "what was spent is not forgotten, the probe's included"
    assert all(scored.receipt.failed is None for scored in ask(rich, 60))
    assert state.repeats == 1, "the probe"
    assert 20 < first < 60 and state.stats()["num_answered"] == 61


def test_what_garbage_cost_counts_after_a_restart(start: Start, tmp_path: Path) -> None:
    """A server that takes money for nothing, and the same command again and again: max_cost is spent once."""
    state, url = start(script=lambda body, before: "no_choices")
    prices = {"judge": {"input": 1000.0, "output": 0.0}}
    for number in range(3):
        one = engine(url, concurrency=2, prices=prices, max_cost=0.05, max_attempts=4)
        one.keep_in(tmp_path)
        assert number == 0 or one.usage.cost >= 0.05
        with pytest.raises(EngineError, match=r"spent 0\.05\d\d USD of max_cost=0\.05"):
            texts_of(one, 30)
        assert one.usage.cost == pytest.approx(state.read / 1000)
        assert one.usage.num_requests == state.seen.total()
    assert state.read / 1000 < 0.05 + 2 * 0.02


@pytest.mark.parametrize("mode", ["logprob", "sampled"])
def test_an_answer_has_cost_what_all_attempts_at_it_did_those_before_a_stop_too(
    start: Start, tmp_path: Path, mode: str
) -> None:
    state, url = start()
    prices = {"judge": {"input": 1000.0, "output": 0.0}}

    def made() -> EndpointEngine:
        one = engine(url, concurrency=3, prices=prices, max_attempts=50, outage_seconds=0.2, mode=mode, num_samples=3)
        one.keep_in(tmp_path)
        return one

    one = made()
    ask(one, 1)
    state.script = lambda body, before: "no_choices" if before < 2 else "403"
    with pytest.raises(EngineError, match="http_403"):
        ask(one, 10)
    state.script = None
    again = made()
    assert again.usage == one.usage
    found = ask(again, 10)
    assert again.usage.cost == pytest.approx(state.read / 1000) and again.usage.num_requests == state.seen.total()
    probes = [body for body in state.bodies if "case" not in str(body)]
    assert sum(scored.receipt.provenance.num_attempts for scored in found) == state.seen.total() - len(probes)
    assert max(len(scored.receipt.attempts) for scored in found) > 3
    last = made()
    assert last.usage == again.usage
    for one_, other in zip(ask(last, 10), found, strict=True):
        assert Counter(one_.receipt.attempts) == Counter(other.receipt.attempts)
        assert one_.receipt.provenance.cost == pytest.approx(other.receipt.provenance.cost)


def test_a_ceiling_needs_prices() -> None:
    with pytest.raises(EngineError, match="max_cost: 1 USD cannot be kept to without a price for 'judge' in prices"):
        engine("http://localhost:1/v1", max_cost=1.0)
    with pytest.raises(EngineError, match="unknown priced model 'judge'; did you mean 'judge-2'"):
        engine("http://localhost:1/v1", prices={"judge-2": {"input": 1, "output": 1}})
