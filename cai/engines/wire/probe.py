"""Finding out what a server can do, by asking it: many take a request for log-probabilities and quietly ignore it."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from cai.engines.base import EnginePrompt, Sampling
from cai.engines.wire import requests
from cai.engines.wire.ledger import Attempt, Ledger
from cai.engines.wire.options import Options
from cai.engines.wire.replies import Kind, Trouble, decision_reply, positions, text_reply
from cai.engines.wire.requests import DIALECTS, Manner, Request
from cai.engines.wire.transport import Handling, Spending, Tally, Transport
from cai.errors import EngineError
from cai.types import Turn

__all__ = ["MODES", "Ability", "find_abilities", "find_ability"]

MODES: Final = ("logprob", "decision", "sampled", "parsed")  # the best first

T = TypeVar("T")
_LETTERS: Final = Options(["A", "B"])
_WORDS: Final = ("kumquat", "zeppelin")  # nobody says one of these unless made to
_QUESTIONS: Final = ("A or B?", "A or B, please?", "Which is it, A or B?")
_FEWER: Final = 5  # top log-probabilities, where a server refuses as many as were asked for
_NUM_SAMPLES: Final = 4


@dataclass(frozen=True, slots=True)
class Ability:
    """How a server answers a choice: by `mode`; with how many `top_logprobs`; in which `dialect` of decisions; whether
    an answer in words can be `constrained` to the options.
    """

    mode: str
    top_logprobs: int = 0
    dialect: str = ""
    constrained: bool = False


def find_ability(
    manner: Manner, handling: Handling, spending: Spending, ledger: Ledger, wanted: str, *, chat: bool
) -> Ability:
    """What all of the servers do for prompts with turns (`chat`) or of text alone, in the mode `wanted` (auto: the best
    they can).

    Raises EngineError when a server cannot, and when servers differ.
    """
    found = {
        url: asyncio.run(_probed(manner, replace(handling, base_urls=(url,)), spending, ledger, wanted, chat))
        for url in handling.base_urls
    }
    first, *rest = found.items()
    for url, ability in rest:
        if ability != first[1]:
            raise EngineError(f"endpoint: servers differ: {first[0]} can {first[1]}, {url} can {ability}")
    return first[1]


def find_abilities(
    manner: Manner, handling: Handling, spending: Spending, ledger: Ledger, *, chat: bool
) -> dict[str, Ability | None]:
    """What the first of the servers does in every mode; None where it cannot."""

    async def look() -> dict[str, Ability | None]:
        probe = _Probe(manner, handling, spending, ledger, chat)
        try:
            return {mode: await probe.look_for(mode) for mode in MODES}
        finally:
            await probe.close()

    return asyncio.run(look())


async def _probed(
    manner: Manner, handling: Handling, spending: Spending, ledger: Ledger, wanted: str, chat: bool
) -> Ability:
    probe = _Probe(manner, handling, spending, ledger, chat)
    url = handling.base_urls[0]
    try:
        for mode in MODES if wanted == "auto" else (wanted,):
            ability = await probe.look_for(mode)
            if ability is not None:
                return ability
        able = ", ".join([mode for mode in MODES if mode != wanted and await probe.look_for(mode)])
        raise EngineError(f"endpoint: {url}: mode={wanted}, and the server {_CANNOT[wanted]}; it can do {able}")
    except EngineError as error:
        if url not in str(error):
            raise EngineError(f"endpoint: {url}: {error}") from None
        raise
    finally:
        await probe.close()


_CANNOT: Final[Mapping[str, str]] = {
    "logprob": "gives no log-probabilities (it refuses or ignores `top_logprobs`)",
    "decision": "has no decision endpoint (/systemone or /decisions) that answers for this model",
    "sampled": "says the same whatever the seed, at temperature 1",
    "parsed": "answers nothing",
}


class _Probe:
    """Small questions to one server."""

    def __init__(self, manner: Manner, handling: Handling, spending: Spending, ledger: Ledger, chat: bool) -> None:
        self._transport = Transport(handling, manner.model, spending, self._keep)
        self._manner = manner
        self._ledger = ledger
        self._chat = chat
        self.refusals: list[str] = []

    async def close(self) -> None:
        """Close the connections."""
        await self._transport.close()

    async def look_for(self, mode: str) -> Ability | None:
        """The ability to answer in this mode, if the server has it."""
        if mode == "logprob":
            return await self._logprob()
        if mode == "decision":
            return await self._decision()
        if mode == "sampled" and not await self._samples():
            return None
        if mode == "parsed":
            await self._plain()
        return Ability(mode, constrained=await self._constrained())

    async def _logprob(self) -> Ability | None:
        for number in dict.fromkeys((self._manner.top_logprobs, min(_FEWER, self._manner.top_logprobs))):
            manner = replace(self._manner, top_logprobs=number)
            for question in _QUESTIONS:  # one answer without them may be an accident
                num_top = await self._ask(requests.logprobs(manner, self._prompt(question)), _num_top)
                if num_top is None:
                    break
                if num_top > 1:
                    return Ability("logprob", top_logprobs=number)
            else:
                return None
        await self._plain()
        return None

    async def _plain(self) -> None:
        """Raises EngineError when the server refuses even this."""
        request = requests.text(self._manner, self._prompt("Hello."), Sampling(max_new_tokens=1), seed=0)
        if await self._ask(request, text_reply) is None:
            raise EngineError(f"the server refuses to answer: {self.refusals[-1]}")

    async def _decision(self) -> Ability | None:
        for dialect in DIALECTS:
            request = requests.decision(self._manner, self._prompt("A or B?"), _LETTERS.texts, dialect)
            read = lambda found, dialect=dialect: decision_reply(found, _LETTERS, dialect)  # noqa: E731
            if await self._ask(replace(request, optional=True), read) is not None:
                return Ability("decision", dialect=dialect)
        return None

    async def _samples(self) -> bool:
        """Whether another seed gives another text."""
        sampling, prompt = Sampling(max_new_tokens=12), self._prompt("Write twenty random letters.")
        said = {
            reply.text
            for seed in range(_NUM_SAMPLES)
            if (reply := await self._ask(requests.text(self._manner, prompt, sampling, seed=seed), text_reply))
        }
        return len(said) > 1

    async def _constrained(self) -> bool:
        """Whether the server keeps to a schema."""
        if not self._chat:
            return False
        prompt = self._prompt("What is two and two?")
        request = requests.verdict(self._manner, prompt, _WORDS, temperature=0.0, seed=0, constrained=True)
        said = await self._ask(request, text_reply)
        return said is not None and any(f'"{word}"' in said.text for word in _WORDS)

    def _prompt(self, text: str) -> EnginePrompt:
        return EnginePrompt(turns=(Turn("user", text),)) if self._chat else EnginePrompt(text=text)

    async def _ask(self, request: Request, read: Callable[[dict[str, Any]], T]) -> T | None:
        """The answer; None where the server refuses the request as such. EngineError when it does not answer at all."""
        tally = Tally()

        async def keep(value: T) -> T:
            await self._keep(tally.attempts[-1])
            return value

        try:
            return await self._transport.fetch(request, read, tally, keep)
        except Trouble as trouble:
            refused = (Kind.PERMANENT, Kind.FATAL, Kind.GARBAGE) if request.optional else (Kind.PERMANENT,)
            if trouble.kind not in refused:
                raise EngineError(f"cannot be probed: {trouble}") from None
            self.refusals.append(str(trouble))
            return None

    async def _keep(self, attempt: Attempt) -> None:
        self._ledger.add([attempt])


def _num_top(found: dict[str, Any]) -> int:
    """How many tokens are named in each place; 0 where the wish for them was ignored."""
    try:
        return max((len(position.top) for position in positions(found)), default=0)
    except Trouble as trouble:
        if trouble.reason == "no_logprobs":
            return 0
        raise
