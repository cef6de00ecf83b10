"""People, on a web page: comparisons wait in a database, and a run goes on once they have been labelled."""

import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from cai.errors import LabelerError, LabelsMissing
from cai.labelers.feedback import MAX_RESPONSES, judgment_of
from cai.records import digest_file, read_records
from cai.serve.form import Form, Gold, task_id
from cai.types import Comparison, Judgment, Provenance

if TYPE_CHECKING:
    from cai.serve.queue import Answer, Asked

__all__ = ["HumanLabeler", "judgments_of"]


class HumanLabeler:
    """Puts every comparison before people, and gives their judgments when all have enough of them.

    `database` is a SQLite file or a SQLAlchemy URL; `cai label serve` serves the page. Until enough labels are there
    `label` raises LabelsMissing, which says what to do. The same comparison asked in the same way keeps the answers
    that it has, whatever run asks. For the questions, the overlap and the gold items (a file of `cai.serve.form.Gold`
    records) see `cai.serve.form.Form`; for `margins` see `cai.labelers.feedback.pairs_of`.

    The labels depend on what people said, which no setting decides: a stage that has them is complete and keeps them,
    and answers that came into it can no longer be undone.
    """

    name = "human"

    def __init__(
        self, *, database: str, instructions: str, strength: bool = False, ratings: bool = False,
        flags: Mapping[str, str] | None = None, correction: bool = False, critique: bool = False,
        skip_reasons: Sequence[str] = ("unclear",), overlap: float = 0.0, num_labels: int = 2, gold: str | None = None,
        gold_share: float = 0.1, min_gold: int = 10, min_agreement: float = 0.75, margins: Sequence[float] = (),
    ) -> None:  # fmt: skip
        self._database = database
        self._instructions = Path(instructions)
        self._form = Form(
            instructions=_read(self._instructions),
            strength=strength,
            ratings=ratings,
            flags=dict(flags or {}),
            correction=correction,
            critique=critique,
            skip_reasons=tuple(skip_reasons),
            overlap=overlap,
            num_labels=num_labels,
            gold_share=gold_share if gold else 0.0,
            min_gold=min_gold,
            min_agreement=min_agreement,
            margins=tuple(margins),
        )
        self._gold = Path(gold) if gold else None
        self._facts: dict[str, float] = {}

    def texts(self) -> dict[str, str]:
        """Hashes of the instructions and the gold items."""
        files = {"instructions": self._instructions} | ({"gold": self._gold} if self._gold else {})
        return {name: digest_file(path) for name, path in files.items()}

    def label(self, comparisons: Sequence[Comparison], *, done: Collection[str] = ()) -> Iterator[Judgment]:
        """Everybody's judgments of each comparison, verdicts before skips, the first given first."""
        from cai.serve.queue import Queue
        from cai.serve.tables import Database

        for comparison in comparisons:
            if len(comparison.responses) > MAX_RESPONSES:
                raise LabelerError(
                    f"comparison {comparison.id!r}: people can rank {MAX_RESPONSES} responses at most, "
                    f"got {len(comparison.responses)}"
                )
        gold = read_records(self._gold, Gold) if self._gold else []
        database = Database(self._database, create=True)
        try:
            asked = Queue(database).ask(comparisons, self._form, gold)
        finally:
            database.close()
        if asked.answers is None:
            raise LabelsMissing(self._what_to_do(asked))
        answers = asked.answers.values()
        self._facts = {
            "num_people": len({answer.person for given in answers for answer in given}),
            "people_seconds": sum(answer.seconds for given in answers for answer in given),
        }
        for comparison in comparisons:
            if comparison.id not in done:
                yield from judgments_of(
                    comparison, asked.answers[task_id(comparison, self._form)], margins=self._form.margins
                )

    def facts(self) -> dict[str, float]:
        """How many people labelled, and the seconds that they spent."""
        return dict(self._facts)

    def _what_to_do(self, asked: "Asked") -> str:
        option = "" if self._database == "labels.db" else f" --database {shlex.quote(self._database)}"
        others = (
            f". People are asked for {asked.num_elsewhere:,} labels of other runs as well; the admin page closes "
            "what nobody needs any more"
        )
        return (
            f"{asked.num_missing:,} of {asked.num_wanted:,} labels are missing. `cai label serve{option}` serves the "
            f"page where people give them, `cai label invite NAME{option}` lets somebody in; then the same command "
            f"goes on{others if asked.num_elsewhere else ''}"
        )


def judgments_of(
    comparison: Comparison, answers: Sequence["Answer"], *, margins: Sequence[float] = ()
) -> Iterator[Judgment]:
    """What each person said, as `<comparison.id>/0`, `/1`, ...: verdicts before skips, the first given first."""
    ordered = sorted(
        answers, key=lambda answer: (answer.feedback.skipped is not None, answer.answered_at, answer.person)
    )
    for number, answer in enumerate(ordered):
        moment = datetime.fromtimestamp(answer.answered_at, UTC)
        provenance = Provenance(
            labeled_at=moment.isoformat(timespec="milliseconds"),
            seconds=round(answer.seconds, 3),
            num_attempts=answer.num_attempts,
        )
        yield judgment_of(
            comparison,
            answer.feedback,
            number=number,
            labeler=HumanLabeler.name,
            person=answer.person,
            provenance=provenance,
            margins=margins,
        )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise LabelerError(f"instructions: {path}: cannot be read: {error}") from None
