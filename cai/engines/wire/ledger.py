"""The answers of a server, kept one by one as they come, so that no restart asks for one twice."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cai.records import Journal
from cai.types import Provenance

__all__ = ["Answer", "Ledger"]


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


class Ledger:
    """Answers by id, on disk once `open` has said where.

    Failures are held back until there has been one answer: when nothing at all comes, the mistake is ours more often
    than every single question's, and the same command, corrected, is to ask them all again.
    """

    def __init__(self) -> None:
        self.path: Path | None = None
        self._journal: Journal[Answer] | None = None
        self._answers: dict[str, Answer] = {}
        self._held: list[Answer] = []
        self.has_success = False

    def open(self, path: Path) -> list[Answer]:
        """Go on from the journal at `path`; the answers that are there."""
        self.path, self._journal = path, Journal(path, Answer)
        known = self._journal.read()
        self._answers = {answer.id: answer for answer in known}
        self._held = []
        self.has_success = any(not answer.failed for answer in known)
        return known

    def begin(self) -> None:
        """A new call of questions: what was held back until an earlier one stopped is to be asked again."""
        self._held = []

    def get(self, answer_id: str) -> Answer | None:
        """The answer that is there already."""
        return self._answers.get(answer_id)

    def add(self, answers: Sequence[Answer]) -> None:
        """Keep answers: when this returns, they survive a crash (failures, if anything was ever answered)."""
        self.has_success = self.has_success or any(not answer.failed for answer in answers)
        if self._journal is None:
            return
        self._held += answers
        if self.has_success:
            new = {answer.id: answer for answer in self._held if answer.id not in self._answers}
            self._journal.append(new.values())
            self._answers |= new
            self._held = []
