"""An endpoint engine and questions for it, and servers of ours that fail as real ones do, for tests."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from fault_server import FaultServer, p_first, serving

from cai.engines.base import EnginePrompt, Sampling, Scored
from cai.engines.endpoint import EndpointEngine
from cai.engines.wire.options import Options
from cai.types import Turn

OPTIONS = (" (A)", " (B)")
LETTERS = Options(list(OPTIONS))
Start = Callable[..., tuple[FaultServer, str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server; its state and URL."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> tuple[FaultServer, str]:
            state = FaultServer(**{"hang": 2.0, **settings})
            return state, stack.enter_context(serving(state.app))

        yield begin


def engine(*urls: str, **settings: Any) -> EndpointEngine:
    quick = {"timeout_seconds": 20.0, "retry_seconds": 0.005, "mode": "logprob"}
    return EndpointEngine(model="judge", base_urls=urls, **{**quick, **settings})


def question(number: int) -> EnginePrompt:
    return EnginePrompt(turns=(Turn("user", f"Which is better in case {number}, (A) or (B)?"),), text="The answer is:")


def ask(one: EndpointEngine, number: int, first: int = 0) -> list[Scored]:
    prompts = [question(n) for n in range(first, first + number)]
    return sorted(one.score(prompts, [OPTIONS] * number), key=lambda scored: scored.index)


def share(scored: Scored) -> float:
    """The first option's part of what both have."""
    first, second = (math.exp(logp) for logp in scored.logps)
    return first / (first + second)


def truth(number: int) -> float:
    return p_first(f"{question(number).turns[0].content}\nThe answer is:")


def texts_of(one: EndpointEngine, number: int, **settings: Any) -> dict[int, str]:
    prompts = [EnginePrompt(turns=(Turn("user", f"Tell me about {n}."),)) for n in range(number)]
    keys = [str(n) for n in range(number)]
    return {g.index: g.text for g in one.generate(prompts, Sampling(max_new_tokens=6), seed=1, keys=keys, **settings)}
