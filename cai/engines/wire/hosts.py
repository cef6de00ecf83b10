"""Several servers that can do the same: which one is asked next, and what to do when none of them answers."""

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Host", "Hosts", "Outage"]


class Outage(Exception):
    """None of the servers has answered for too long."""


class Host:
    """One base URL. `failures` counts what went wrong since it last answered; `timeout` is in seconds."""

    def __init__(self, url: str, *, api_key: str | None, timeout: float) -> None:
        self.url = url
        self._api_key = api_key
        self._timeout = timeout
        self.in_flight = 0
        self.failures = 0
        self.rests_until = 0.0

    @cached_property
    def client(self) -> "AsyncOpenAI":
        """Without retries of its own: these would be neither counted nor paid for."""
        from openai import AsyncOpenAI

        return AsyncOpenAI(base_url=self.url, api_key=self._api_key or "none", max_retries=0, timeout=self._timeout)


class Hosts:
    """Hands out the least busy server. One that fails `trip` times in a row rests for `rest` seconds at a time; when
    all of them have rested for `patience` seconds, that is an Outage.
    """

    def __init__(self, hosts: Sequence[Host], *, trip: int, rest: float, patience: float) -> None:
        self._hosts = hosts
        self._trip = trip
        self._rest = rest
        self._patience = patience
        self._down_since: float | None = None

    async def take(self, last: Host | None, check: Callable[[], None]) -> Host:
        """A place on the least busy server that is not resting, rather not on the `last` one. `check` is called before
        every look, and may raise. Raises Outage.
        """
        while True:
            check()
            now = time.monotonic()
            awake = [host for host in self._hosts if host.rests_until <= now]
            if awake:
                host = min(awake, key=lambda host: (host is last, host.in_flight))
                if host.failures >= self._trip:  # one request at a time finds out whether it is back
                    host.rests_until = now + self._rest
                host.in_flight += 1
                return host
            if self._down_since is not None and now - self._down_since > self._patience:
                raise Outage(f"no answer from {', '.join(host.url for host in self._hosts)} for {self._patience:g} s")
            await asyncio.sleep(min(host.rests_until for host in self._hosts) - now)

    def works(self, host: Host) -> None:
        """It has answered, be it garbage."""
        host.failures, host.rests_until, self._down_since = 0, 0.0, None

    def fails(self, host: Host) -> bool:
        """It has not; whether that is an outage by now."""
        host.failures += 1
        if host.failures < self._trip:
            return False
        host.rests_until = time.monotonic() + self._rest
        if self._down_since is None and all(one.failures >= self._trip for one in self._hosts):
            self._down_since = time.monotonic()
        return True

    async def close(self) -> None:
        """Close the connections."""
        for host in self._hosts:
            if "client" in vars(host):
                await host.client.close()
