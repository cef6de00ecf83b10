"""The answers of a server and what every attempt cost, kept one by one as they come, so that no restart asks for an
answer twice, or forgets what was spent.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cai.records import Journal
from cai.types import Provenance

__all__ = ["Answer", "Attempt", "Ledger"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An answer, or its failure after every attempt (`failed` says why). `id` is the fingerprint of what was asked."""

    id: str
    provenance: Provenance
    attempts: tuple[str, ...]
    text: str = ""
    finished: bool = True
    num_tokens: int = 0
    logps: tuple[float | None, ...] = ()
    failed: str | None = None
    detail: str = ""


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One request: how it ended (`ok`, or the trouble's name) and what it took; `cost` is in USD. `question` is the id
    of the answer that it was for, empty where it only found out what a server can. `id` is its number in the journal.
    """

    question: str
    id: str = ""
    outcome: str = ""
    seconds: float = 0.0
    prompt_tokens: int = 0
    new_tokens: int = 0
    cost: float = 0.0


class Ledger:
    """Answers by id, and attempts, on disk once `open` has said where.

    Failures are held back until there has been one answer: when nothing at all comes, the mistake is ours more often
    than every single question's, and the same command, corrected, is to ask them all again. Attempts are not: they were
    paid for.
    """

    def __init__(self) -> None:
        self.folder: Path | None = None
        self._journal: Journal[Answer] | None = None
        self._answers: dict[str, Answer] = {}
        self._held: list[Answer] = []
        self._attempts: Journal[Attempt] | None = None
        self._num_attempts = 0
        self._begun: dict[str, list[Attempt]] = {}
        self.has_success = False

    def open(self, folder: Path, name: str) -> list[Attempt]:
        """Go on from the journals in `folder` that have `name` in theirs; the attempts that are there."""
        self.folder = folder
        self._journal = Journal(folder / f"answers-{name}.journal", Answer)
        known = self._journal.read()
        self._answers = {answer.id: answer for answer in known}
        self._held = []
        self.has_success = any(not answer.failed for answer in known)
        self._attempts = Journal(folder / f"attempts-{name}.journal", Attempt)
        made = self._attempts.read()
        self._num_attempts = len(made)
        self._begun = {}
        for attempt in made:
            if attempt.question and attempt.question not in self._answers:
                self._begun.setdefault(attempt.question, []).append(attempt)
        return made

    def begin(self) -> None:
        """A new call of questions: what was held back until an earlier one stopped is to be asked again."""
        self._held = []

    def get(self, answer_id: str) -> Answer | None:
        """The answer that is there already."""
        return self._answers.get(answer_id)

    def begun(self, answer_id: str) -> list[Attempt]:
        """The attempts at a question that were made before `open` and came to no answer; given out once."""
        return self._begun.pop(answer_id, [])

    def add(self, records: Sequence[Answer | Attempt]) -> None:
        """Keep records: when this returns, they survive a crash (failures, if anything was ever answered)."""
        answers = [record for record in records if isinstance(record, Answer)]
        self.has_success = self.has_success or any(not answer.failed for answer in answers)
        if self._journal is None or self._attempts is None:
            return
        # First what was paid, so that no kill leaves an answer without its price.
        made = [record for record in records if isinstance(record, Attempt)]
        self._attempts.append([replace(one, id=str(n)) for n, one in enumerate(made, start=self._num_attempts)])
        self._num_attempts += len(made)
        self._held += answers
        if self.has_success:
            new = {answer.id: answer for answer in self._held if answer.id not in self._answers}
            self._journal.append(new.values())
            self._answers |= new
            self._held = []
