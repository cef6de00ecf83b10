"""Many questions at once, for code that is not asynchronous: a generator of answers over an event loop of its own."""

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from cai.engines.wire.ledger import Answer, Attempt, Ledger
from cai.engines.wire.replies import Reply, Trouble
from cai.engines.wire.requests import Request
from cai.engines.wire.transport import Handling, Spending, Tally, Transport
from cai.errors import EngineError
from cai.records import fingerprint
from cai.types import Provenance

__all__ = ["Job", "answers", "job_id"]

_WAITING: Final = 8  # questions that are under way for each that may be with the server: most of them wait to try again
_HOPELESS: Final = 20  # failures before the first answer that end it


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A question: `id` names its answer in the ledger, `index` says for whom it is, `mode` how it is asked."""

    index: int
    id: str
    request: Request
    read: Callable[[dict[str, Any]], Reply]
    mode: str


def job_id(request: Request, key: object) -> str:
    """Names a question by what is sent, what it is for, and which of several it is."""
    return fingerprint([request.path, request.body, key])


def answers(
    jobs: Iterable[Job], ledger: Ledger, handling: Handling, model: str, spending: Spending
) -> Iterator[tuple[Job, Answer]]:
    """Every job with its answer, as they come: at once where the ledger has it, and kept there before it is given out.

    When asking on makes no sense, what is under way is finished and kept first; then EngineError is raised.
    """
    ledger.begin()
    loop = asyncio.new_event_loop()
    session = _Session(iter(jobs), ledger, handling, model, spending)
    main = loop.create_task(session.work())
    try:
        while batch := loop.run_until_complete(session.next(main)):
            yield from batch
    finally:
        main.cancel()
        loop.run_until_complete(asyncio.gather(main, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


class _Session:
    """The workers of one call of `answers`."""

    def __init__(self, jobs: Iterator[Job], ledger: Ledger, handling: Handling, model: str, spending: Spending) -> None:
        self._jobs = jobs
        self._ledger = ledger
        self._handling = handling
        self._model = model
        self._spending = spending
        self._done: list[tuple[Job, Answer]] = []
        self._unwritten: list[tuple[tuple[Answer | Attempt, ...], asyncio.Future[None]]] = []
        self._news = asyncio.Event()
        self._arrived = asyncio.Event()
        self._num_failed = 0
        self._first_failure = ""

    async def next(self, main: "asyncio.Task[None]") -> list[tuple[Job, Answer]]:
        """The answers since the last call; none when all are given out. Raises what went wrong with all of them."""
        while not self._done and not main.done():
            self._news.clear()
            waiting = asyncio.ensure_future(self._news.wait())
            await asyncio.wait({main, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
        batch, self._done = self._done, []
        if not batch:
            main.result()
        return batch

    async def work(self) -> None:
        """Run the workers until no job is left, or asking on makes no sense."""
        transport = Transport(self._handling, self._model, self._spending, self._keep)
        writer = asyncio.ensure_future(self._write())
        workers = [asyncio.ensure_future(self._worker(transport)) for _ in range(_WAITING * self._handling.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            for task in (writer, *workers):
                task.cancel()
            await asyncio.gather(writer, *workers, return_exceptions=True)
            await transport.close()
        if transport.stopped is not None:
            raise transport.stopped
        if self._num_failed and not self._ledger.has_success:
            raise EngineError(f"endpoint: no answer to any of {self._num_failed} questions; {self._first_failure}")

    async def _worker(self, transport: Transport) -> None:
        for job in self._jobs:
            answer = self._ledger.get(job.id) or await self._ask(job, transport)
            if answer is None:
                return
            self._done.append((job, answer))
            self._news.set()

    async def _ask(self, job: Job, transport: Transport) -> Answer | None:
        """The answer to one question, kept; None when everything stops."""
        tally = Tally(job.id, self._ledger.begun(job.id))

        async def keep(reply: Reply) -> Answer:
            answer = _answer(job, tally, reply)
            await self._keep(tally.attempts[-1], answer)
            return answer

        try:
            return await transport.fetch(job.request, job.read, tally, keep)
        except EngineError:  # the transport remembers it
            return None
        except Trouble as trouble:
            self._num_failed += 1
            self._first_failure = self._first_failure or f"the first: {trouble}"
            if self._num_failed >= _HOPELESS and not self._ledger.has_success:
                transport.stop(f"no answer to any of the first {self._num_failed} questions; {self._first_failure}")
                return None
            failed = replace(_answer(job, tally, Reply()), failed=trouble.reason, detail=trouble.detail)
            await self._keep(failed)
            return failed

    async def _keep(self, *records: Answer | Attempt) -> None:
        """Returns when the records are on the disk."""
        written = asyncio.get_running_loop().create_future()
        self._unwritten.append((records, written))
        self._arrived.set()
        await written

    async def _write(self) -> None:
        """One write for everything that came while the one before was under way."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            batch, self._unwritten = self._unwritten, []
            problem: Exception | None = None
            try:
                await asyncio.to_thread(self._ledger.add, [record for records, _ in batch for record in records])
            except Exception as error:
                problem = error
            for _, written in batch:
                if written.done():  # its worker was cancelled
                    continue
                if problem is None:
                    written.set_result(None)
                else:
                    written.set_exception(problem)


def _answer(job: Job, tally: Tally, reply: Reply) -> Answer:
    """What is kept of a question, as of now."""
    return Answer(
        id=job.id,
        provenance=Provenance(
            labeled_at=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            seconds=round(sum(attempt.seconds for attempt in tally.attempts), 3),
            prompt_tokens=sum(attempt.prompt_tokens for attempt in tally.attempts),
            new_tokens=sum(attempt.new_tokens for attempt in tally.attempts),
            cost=sum(attempt.cost for attempt in tally.attempts),
            num_attempts=len(tally.attempts),
            mode=job.mode,
        ),
        attempts=tuple(attempt.outcome for attempt in tally.attempts),
        text=reply.text,
        finished=reply.finished,
        num_tokens=tally.attempts[-1].new_tokens,
        logps=reply.logps,
    )
