"""The queue as one person sees it: what is on the screen now, answering it, and taking the last answer back."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from cai.errors import LabelerError
from cai.records import seed_of
from cai.serve.accounts import Account
from cai.serve.form import Form, shown_order
from cai.serve.queue import dump, load, recount
from cai.serve.tables import Database, answers, batches, claims, is_wanted, tasks, withdrawn
from cai.types import Comparison, Feedback

__all__ = ["Desk", "Screen", "Tally"]

LEASE: Final = 1800.0  # seconds after which what is on a screen is given to somebody else too
_RECENT: Final = 20  # answers that the pace is taken from
_is_open = select(batches.c.is_open).select_from(tasks.join(batches))  # whether an open batch has the task


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A comparison as one person is asked it. `attempt` is how often they took an answer to it back, and `draft` what
    they said last.
    """

    task: str
    comparison: Comparison
    form: Form
    shown: tuple[int, ...]
    attempt: int
    draft: Feedback | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What a person has done and has left; `median_seconds` of the last answers; `last` is the task whose answer can be
    taken back.
    """

    num_answered: int
    num_left: int
    median_seconds: float | None
    last: str | None


class Desk:
    """Hands out tasks and takes answers: each (task, labeler) once, whatever is clicked twice or sent again."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._forms: dict[int, Form] = {}  # batches never change their form

    def next(self, labeler: Account) -> Screen | None:
        """What is on the labeler's screen, or the next task, which is theirs for half an hour; None when nothing is
        left. The same until it is answered: a reload or a second tab shows the same.
        """
        with self._database.write() as connection:
            now = self._clock()
            row = _current(connection, labeler, now) or self._pick(connection, labeler, now)
            if row is None:
                return None
            form = self._form(connection, row.batch)
            undone = _undone(connection, labeler, row.id)
        return _screen(row, form, labeler, undone)

    def screen(self, labeler: Account, task: str) -> Screen | None:
        """The task as this person was asked it, whether or not it is theirs now; None when there is no such task."""
        with self._database.read() as connection:
            row = connection.execute(select(tasks).where(tasks.c.id == task)).one_or_none()
            return (
                None
                if row is None
                else _screen(row, self._form(connection, row.batch), labeler, _undone(connection, labeler, task))
            )

    def answer(self, labeler: Account, task: str, feedback: Feedback, seconds: float, *, attempt: int = 0) -> bool:
        """Record an answer; False, and nothing is changed, when this person has answered this task before.

        `seconds` is what the page measured; it is held within the time since the task was put on the screen. `attempt`
        is that of the screen. Raises LabelerError, in words for the person, when it was sent before an answer was taken
        back, or no open batch has the task any more.
        """
        with self._database.write() as connection:
            mine = (answers.c.task == task, answers.c.labeler == labeler.id)
            if connection.execute(select(answers.c.task).where(*mine)).first() is not None:
                return False
            if attempt != len(_undone(connection, labeler, task)):
                raise LabelerError("You took this answer back after it was sent; choose again.")
            if not connection.execute(_is_open.where(tasks.c.id == task)).scalar_one():
                raise LabelerError(
                    "This comparison was closed meanwhile, so the answer was not taken. Nothing that you saved is lost."
                )
            now = self._clock()
            claim = (claims.c.task == task, claims.c.labeler == labeler.id)
            shown_at = connection.execute(select(claims.c.shown_at).where(*claim)).scalar()
            row = {
                "task": task,
                "labeler": labeler.id,
                "feedback": dump(feedback),
                "answered_at": now,
                "seconds": max(0.0, min(seconds, now - shown_at) if shown_at is not None else seconds),
                "is_taken": False,
            }
            connection.execute(insert(answers).values(row))
            connection.execute(delete(claims).where(*claim))
            recount(connection, tasks.c.id == task)
        return True

    def undo(self, labeler: Account, task: str) -> bool:
        """Take back the answer to `task` and put it on the screen again; False when it is not the last answer, a run
        has taken it, or its batch is closed, so that it could not be given again. What was said is kept among the
        withdrawn.
        """
        with self._database.write() as connection:
            row = _last(connection, labeler)
            if row is None or row.task != task:
                return False
            now = self._clock()
            kept = {name: getattr(row, name) for name in ("task", "labeler", "feedback", "answered_at", "seconds")}
            connection.execute(insert(withdrawn).values(**kept, withdrawn_at=now))
            connection.execute(delete(answers).where(answers.c.task == task, answers.c.labeler == labeler.id))
            recount(connection, tasks.c.id == task)
            _claim(connection, labeler, task, now)
        return True

    def tally(self, labeler: Account) -> Tally:
        """Of one person."""
        with self._database.read() as connection:
            count = select(func.count()).select_from(answers).where(answers.c.labeler == labeler.id)
            recent = select(answers.c.seconds).where(answers.c.labeler == labeler.id)
            seconds = connection.execute(recent.order_by(answers.c.answered_at.desc()).limit(_RECENT)).scalars().all()
            wanted = select(func.count()).select_from(tasks).where(is_wanted)
            mine = wanted.join(answers).where(answers.c.labeler == labeler.id)
            last = _last(connection, labeler)
            return Tally(
                num_answered=int(connection.execute(count).scalar_one()),
                num_left=connection.execute(wanted).scalar_one() - connection.execute(mine).scalar_one(),
                median_seconds=statistics.median(seconds) if seconds else None,
                last=None if last is None else str(last.task),
            )

    def latest_form(self) -> Form | None:
        """The form of the latest open batch; None when there is none."""
        with self._database.read() as connection:
            newest = select(batches.c.id).where(batches.c.is_open).order_by(batches.c.id.desc()).limit(1)
            batch = connection.execute(newest).scalar()
            return None if batch is None else self._form(connection, batch)

    # --- within a transaction -----------------------------------------------------------------------------------------

    def _pick(self, connection: Connection, labeler: Account, now: float) -> Any:
        """The next task: of the latest batch, in its order, now and then a gold item; it is claimed."""
        others = (
            select(func.count())
            .where(claims.c.task == tasks.c.id, claims.c.labeler != labeler.id, claims.c.shown_at > now - LEASE)
            .scalar_subquery()
        )
        order = (batches.c.id.desc(), tasks.c.position)
        mine = select(tasks).select_from(tasks.join(batches)).where(*_open_to(labeler)).order_by(*order).limit(1)
        row = connection.execute(mine.where(is_wanted, tasks.c.num_wanted - tasks.c.num_answers > others)).one_or_none()
        if row is None:
            return None
        count = select(func.count()).select_from(answers).where(answers.c.labeler == labeler.id)
        turn = seed_of(0, "gold", labeler.name, int(connection.execute(count).scalar_one()))
        if turn < self._form(connection, row.batch).gold_share * 2**63:
            row = connection.execute(mine.where(tasks.c.gold.is_not(None))).one_or_none() or row
        _claim(connection, labeler, row.id, now)
        return row

    def _form(self, connection: Connection, batch: int) -> Form:
        if batch not in self._forms:
            column = connection.execute(select(batches.c.form).where(batches.c.id == batch)).scalar_one()
            self._forms[batch] = load(Form, column)
        return self._forms[batch]


def _open_to(labeler: Account) -> tuple[ColumnElement[bool], ...]:
    """Of an open batch, and not answered by this person."""
    answered = select(answers.c.task).where(answers.c.task == tasks.c.id, answers.c.labeler == labeler.id).exists()
    return batches.c.is_open, ~answered


def _claim(connection: Connection, labeler: Account, task: str, now: float) -> None:
    mine = claims.c.labeler == labeler.id
    if connection.execute(update(claims).where(mine).values(task=task, shown_at=now)).rowcount == 0:
        connection.execute(insert(claims).values(labeler=labeler.id, task=task, shown_at=now))


def _screen(row: Any, form: Form, labeler: Account, undone: Sequence[str]) -> Screen:
    comparison = load(Comparison, row.comparison)
    return Screen(
        task=row.id,
        comparison=comparison,
        form=form,
        shown=shown_order(row.id, labeler.name, len(comparison.responses)),
        attempt=len(undone),
        draft=load(Feedback, undone[-1]) if undone else None,
    )


def _current(connection: Connection, labeler: Account, now: float) -> Any:
    """The task that the labeler has, unless the lease is over and nobody waits for it any more."""
    query = (
        select(tasks, claims.c.shown_at)
        .select_from(tasks.join(claims).join(batches, tasks.c.batch == batches.c.id))
        .where(claims.c.labeler == labeler.id, *_open_to(labeler))
    )
    row = connection.execute(query).one_or_none()
    return row if row is not None and (row.num_wanted > row.num_answers or row.shown_at > now - LEASE) else None


def _undone(connection: Connection, labeler: Account, task: str) -> Sequence[str]:
    """What they said of it and took back, the first first."""
    query = select(withdrawn.c.feedback).where(withdrawn.c.task == task, withdrawn.c.labeler == labeler.id)
    return connection.execute(query.order_by(withdrawn.c.id)).scalars().all()


def _last(connection: Connection, labeler: Account) -> Any:
    """Their last answer, if it can be taken back."""
    query = select(answers).where(answers.c.labeler == labeler.id).order_by(answers.c.answered_at.desc()).limit(1)
    row = connection.execute(query).one_or_none()
    if row is None or row.is_taken or not connection.execute(_is_open.where(tasks.c.id == row.task)).scalar_one():
        return None
    return row
