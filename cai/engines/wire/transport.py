"""Asking a server until it answers: attempts, waits, limits, outages, and what all of it costs.

One question is one POST, tried again after trouble that may pass. How many go out at a time, how many in a minute and
how much they may cost is bounded. When nothing works any more, everybody waits for the server to come back, and no
question's attempts are used up by that.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from cai.engines.base import Usage
from cai.engines.wire.hosts import Host, Hosts, Outage
from cai.engines.wire.ledger import Attempt
from cai.engines.wire.replies import Kind, Tokens, Trouble, check_model, one_line, parse, refuses_content, tokens
from cai.engines.wire.requests import Request
from cai.errors import EngineError

__all__ = ["Handling", "Spending", "Tally", "Transport"]

T = TypeVar("T")
R = TypeVar("R")
_MILLION: Final = 1_000_000
_LONGEST_WAIT: Final = 30.0  # seconds between attempts, unless the server asks for more
_TRANSIENT: Final = frozenset({408, 409, 425, 429})  # and everything from 500 on
_FATAL: Final = frozenset({401, 402, 403, 404, 405})  # key, money, model: nothing that a single question could help
_SHORTEST_REST: Final = 0.05  # seconds
_SECRET: Final = 8  # characters of a key; shorter ones stand for none (EMPTY), and any answer may hold them
logging.getLogger("stamina").addHandler(logging.NullHandler())  # it would tell stderr about every attempt


@dataclass(frozen=True, slots=True, kw_only=True)
class Handling:
    """How answers are fetched; none of it changes what is asked. Times are in seconds."""

    base_urls: Sequence[str]
    api_key: str | None = None
    concurrency: int = 32
    requests_per_minute: float | None = None
    timeout: float = 60.0
    max_attempts: int = 6
    retry_seconds: float = 0.5
    outage_seconds: float = 600.0
    reported_as: str | None = None


@dataclass(slots=True)
class Spending:
    """What was spent so far, by the prices per million tokens (`input`, `output` and, where it differs, `cached`)."""

    prices: Mapping[str, float]
    max_cost: float | None
    usage: Usage = field(default_factory=Usage)

    def price(self, used: Tokens) -> float:
        """USD for these tokens."""
        if not self.prices:
            return 0.0
        cached = self.prices.get("cached", self.prices["input"])
        read = (used.read - used.cached) * self.prices["input"] + used.cached * cached
        return (read + used.made * self.prices["output"]) / _MILLION

    def add(self, attempt: Attempt) -> None:
        """Count an attempt."""
        self.usage.num_requests += 1
        self.usage.prompt_tokens += attempt.prompt_tokens
        self.usage.new_tokens += attempt.new_tokens
        self.usage.cost += attempt.cost


@dataclass(slots=True)
class Tally:
    """The attempts at one question (its id, see `Attempt`) so far, and which server the last one went to."""

    question: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    host: Host | None = None


class _Exchange:
    """One POST and what came of it: a reading that is paid for, or Trouble."""

    def __init__(self, handling: Handling, model: str, spending: Spending) -> None:
        self._handling = handling
        self._model = model
        self._spending = spending

    async def send(self, host: Host, request: Request, read: Callable[[dict[str, Any]], T], attempt: Attempt) -> T:
        """POST and read. Everything that can go wrong becomes Trouble; `attempt` gets what it took."""
        import httpx2
        import openai

        start = time.perf_counter()
        try:
            # The client's own timeout starts again with every byte, so a server that drips would never end.
            async with asyncio.timeout(self._handling.timeout):
                response = await host.client.post(request.path, cast_to=httpx2.Response, body=request.body)
        except (TimeoutError, openai.APITimeoutError):
            raise Trouble(Kind.TRANSIENT, "timeout", f"no whole answer within {self._handling.timeout:g} s") from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            cause = error.__cause__ or error
            raise Trouble(Kind.TRANSIENT, "connection", self._shown(f"{type(cause).__name__}: {cause}")) from None
        finally:
            attempt.seconds = time.perf_counter() - start
        try:
            secret = len(self._handling.api_key or "") >= _SECRET
            found = parse(self._masked(response.text) if secret else response.text)
            used = tokens(found)
            attempt.prompt_tokens, attempt.new_tokens = used.read, used.made
            attempt.cost = self._spending.price(used)
            check_model(found, self._model, self._handling.reported_as)
            return read(found)
        except Trouble as trouble:
            raise Trouble(trouble.kind, trouble.reason, self._shown(trouble.detail)) from None  # an escaped key, say

    def _refusal(self, error: Any) -> Trouble:
        """What an HTTP error status means."""
        status: int = error.status_code
        if status == 403 and refuses_content(error.response.text):
            return Trouble(Kind.PERMANENT, "content_filter", self._shown(error.response.text))
        transient = status in _TRANSIENT or status >= 500
        kind = Kind.TRANSIENT if transient else Kind.FATAL if status in _FATAL else Kind.PERMANENT
        retry_after = None
        with suppress(ValueError):  # none, or a date
            retry_after = max(0.0, float(error.response.headers.get("retry-after", "")))
        if retry_after is not None and retry_after > self._handling.outage_seconds:
            detail = f"asks to wait {retry_after:g} s, and outage_seconds is {self._handling.outage_seconds:g}"
            return Trouble(Kind.FATAL, f"http_{status}", detail)
        return Trouble(kind, f"http_{status}", self._shown(error.response.text or error.message), retry_after)

    def _shown(self, text: str) -> str:
        """What a server said, fit for files: one line, without our key."""
        return one_line(self._masked(text))

    def _masked(self, text: str) -> str:
        """What a server said, all of it, without our key, should it have repeated that; in JSON a / may be escaped."""
        key = self._handling.api_key or ""
        return text.replace(key, "***").replace(key.replace("/", "\\/"), "***") if key else text


class Transport:
    """Sends requests to the least busy of several servers, for one event loop. `close` it in the end. `keep` stores an
    attempt that brought no answer; the last attempt of the tally that did bring one is stored with it.
    """

    def __init__(
        self, handling: Handling, model: str, spending: Spending, keep: Callable[[Attempt], Awaitable[None]]
    ) -> None:
        self._keep = keep
        self._handling = handling
        self._spending = spending
        self._exchange = _Exchange(handling, model, spending)
        self._slots = asyncio.Semaphore(handling.concurrency)
        self._next_turn = 0.0
        # Two questions can fail in a row, so that one that no server can stomach is not taken for an outage.
        trip, rest = max(10, 2 * handling.max_attempts), max(_SHORTEST_REST, 10 * handling.retry_seconds)
        hosts = [Host(url, api_key=handling.api_key, timeout=handling.timeout) for url in handling.base_urls]
        self._hosts = Hosts(hosts, trip=trip, rest=rest, patience=handling.outage_seconds)
        self.stopped: EngineError | None = None

    async def close(self) -> None:
        """Close the connections."""
        await self._hosts.close()

    async def fetch(
        self, request: Request, read: Callable[[dict[str, Any]], T], tally: Tally, then: Callable[[T], Awaitable[R]]
    ) -> R:
        """What `then` makes of what `read` makes of the answer. No other request takes this one's place before `then`
        is through, so that answers which are not kept yet count as under way.

        Raises Trouble when all attempts are used up, and EngineError when asking on makes no sense: `stopped` then has
        it too, and every later call raises it.
        """
        import stamina

        async for attempt in stamina.retry_context(
            on=_wait, attempts=self._handling.max_attempts, timeout=None, wait_initial=self._handling.retry_seconds,
            wait_max=_LONGEST_WAIT, wait_jitter=self._handling.retry_seconds,
        ):  # fmt: skip
            with attempt:
                async with self._slots:
                    return await then(await self._attempt(request, read, tally))
        raise AssertionError("unreachable")

    async def _attempt(self, request: Request, read: Callable[[dict[str, Any]], T], tally: Tally) -> T:
        """One attempt; those that meet an outage are not counted."""
        while True:
            try:
                host = await self._hosts.take(tally.host, self._check)
            except Outage as outage:
                raise self.stop(f"{outage}; every answer so far is kept, and the same command goes on") from None
            attempt = Attempt(question=tally.question, outcome="ok")
            try:
                await self._turn()
                self._check()
                found = await self._exchange.send(host, request, read, attempt)
            except Trouble as trouble:
                attempt.outcome = trouble.reason
                self._count(attempt, tally)
                await self._keep(attempt)
                if trouble.kind is Kind.FATAL and not request.optional:
                    raise self.stop(f"{host.url}: {trouble}") from None
                if trouble.kind is not Kind.TRANSIENT:
                    self._hosts.works(host)
                elif self._hosts.fails(host):
                    continue
                raise
            finally:
                tally.host = host
                host.in_flight -= 1
            self._hosts.works(host)
            self._count(attempt, tally)
            return found

    def _count(self, attempt: Attempt, tally: Tally) -> None:
        tally.attempts.append(attempt)
        self._spending.add(attempt)

    async def _turn(self) -> None:
        """Wait for this request's place in the minute."""
        if self._handling.requests_per_minute is None:
            return
        now = time.monotonic()
        turn = max(now, self._next_turn)
        self._next_turn = turn + 60 / self._handling.requests_per_minute
        await asyncio.sleep(turn - now)

    def _check(self) -> None:
        """Raise what stops everything."""
        if self.stopped is not None:
            raise self.stopped
        limit, spent = self._spending.max_cost, self._spending.usage.cost
        if limit is not None and spent >= limit:
            raise self.stop(
                f"spent {spent:.4f} USD of max_cost={limit:g}; every answer is kept, and with a higher "
                "max_cost the same command goes on"
            )

    def stop(self, message: str) -> EngineError:
        """Let what is under way be the last; the error that says why."""
        if self.stopped is None:
            self.stopped = EngineError(f"endpoint: {message}")
        return self.stopped


def _wait(error: Exception) -> bool | float:
    """Whether to try again, and after how many seconds where the server says so."""
    if not isinstance(error, Trouble) or error.kind not in (Kind.TRANSIENT, Kind.GARBAGE):
        return False
    return True if error.retry_after is None else error.retry_after
