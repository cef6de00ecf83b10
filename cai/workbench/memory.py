"""Answers that a judge gave, kept between commands: an edit to one principle asks only what that edit touched.

A file `<store>/answers/<judge>.journal` for every judge (its weights, template, seed, temperature and engine, and the
packages that compute), with an answer per question. A question is known by everything that it shows, so nothing in it
can change without its being asked anew.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cai import pipeline
from cai.labelers.judge import Judge, Question, Row
from cai.progress import progress
from cai.records import Journal, fingerprint, to_json
from cai.store import locked
from cai.workbench.show import counted

__all__ = ["Memory"]

_BATCH: Final = 512  # questions that go to the engine, and then to the disk, together


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What the judge said to the question with this id: `p` and `mass` of `cai.labelers.judge.Row`."""

    id: str
    p: float | None
    mass: float


class Memory:
    """Asks a judge, made by the node `engine`, what it has not been asked before; `num_asked` and `num_reused` count
    questions. `judge` is the fingerprint of all that decides its answers.
    """

    def __init__(self, judge: Judge, engine: Mapping[str, object], folder: Path) -> None:
        self._judge = judge
        own = {"engine": pipeline.portable(engine), "packages": pipeline.packages()}
        self.judge = fingerprint(judge.settings() | own)
        self._path = folder / f"{self.judge}.journal"
        self._told: dict[str, _Answer] = {}
        self.num_asked = 0
        self.num_reused = 0

    def tell(self, questions: Iterable[Question], rows: Sequence[Any]) -> None:
        """Take answers from elsewhere (a label stage of the same judge); they are not written down again."""
        for question, row in zip(questions, rows, strict=True):
            name = self._id(question)
            self._told[name] = _Answer(id=name, p=row["p"], mass=row["mass"])

    def ask(self, questions: Sequence[Question], title: str) -> list[Row]:
        """The answer to each question, as `Judge.ask` gives it, without the branches."""
        ids = [self._id(question) for question in questions]
        with locked(self._path.with_suffix(".lock"), "answers"):
            journal = Journal(self._path, _Answer)
            known = {answer.id: answer for answer in journal.read()} | self._told
            new = list({name: q for name, q in zip(ids, questions, strict=True) if name not in known}.items())
            if new:
                asked = counted(len(new), "question")
                print(f"{title}: {asked} to ask the judge, {len(ids) - len(new):,} known", file=sys.stderr)
            with progress(title, total=len(new), unit="questions") as bar:
                for start in range(0, len(new), _BATCH):
                    batch = new[start : start + _BATCH]
                    rows = [row for row, _ in self._judge.ask([question for _, question in batch])]
                    answers = [_Answer(id=n, p=r["p"], mass=r["mass"]) for (n, _), r in zip(batch, rows, strict=True)]
                    # What a server failed to answer is asked again the next time.
                    journal.append(answer for answer, row in zip(answers, rows, strict=True) if "failed" not in row)
                    known |= {answer.id: answer for answer in answers}
                    bar.advance(len(batch))
        self.num_asked += len(new)
        self.num_reused += len(questions) - len(new)
        return [_row(question, known[name]) for question, name in zip(questions, ids, strict=True)]

    def _id(self, question: Question) -> str:
        return fingerprint([question.key, to_json(self._judge.render(question))])


def _row(question: Question, answer: _Answer) -> Row:
    shown = list(question.shown)
    return {
        "pair": sorted(shown),
        "principle": question.principle.id,
        "shown": shown,
        "p": answer.p,
        "mass": answer.mass,
    }
