"""The queue as one person sees it: what is on the screen now, answering it, and taking the last answer back."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select, update

from cai.records import seed_of
from cai.serve.accounts import Account
from cai.serve.form import Form, shown_order
from cai.serve.queue import dump, load, recount
from cai.serve.tables import Database, answers, batches, claims, is_wanted, tasks, withdrawn
from cai.types import Comparison, Feedback

__all__ = ["Desk", "Screen", "Tally"]

LEASE: Final = 1800.0  # seconds after which what is on a screen is given to somebody else too
_RECENT: Final = 20  # answers that the pace is taken from


@dataclass(frozen=True, slots=True, kw_only=True)
class Screen:
    """A comparison as one person is asked it. `draft` is an answer of theirs that they took back."""

    task: str
    comparison: Comparison
    form: Form
    shown: tuple[int, ...]
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
            query = select(withdrawn.c.feedback).where(withdrawn.c.task == row.id, withdrawn.c.labeler == labeler.id)
            draft = connection.execute(query.order_by(withdrawn.c.id.desc()).limit(1)).scalar()
        return _screen(row, form, labeler, draft)

    def screen(self, labeler: Account, task: str) -> Screen | None:
        """The task as this person was asked it, whether or not it is theirs now; None when there is no such task."""
        with self._database.read() as connection:
            row = connection.execute(select(tasks).where(tasks.c.id == task)).one_or_none()
            return None if row is None else _screen(row, self._form(connection, row.batch), labeler, None)

    def answer(self, labeler: Account, task: str, feedback: Feedback, seconds: float) -> bool:
        """Record an answer; False, and nothing is changed, when this person has answered this task before.

        `seconds` is what the page measured; it is held within the time since the task was put on the screen.
        """
        with self._database.write() as connection:
            mine = (answers.c.task == task, answers.c.labeler == labeler.id)
            if connection.execute(select(answers.c.task).where(*mine)).first() is not None:
                return False
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
        """Take back the answer to `task` and put it on the screen again; False when it is not the last answer, or a run
        has taken it. What was said is kept among the withdrawn.
        """
        with self._database.write() as connection:
            row = _last(connection, labeler)
            if row is None or row.task != task or row.is_taken:
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
            wanted = select(func.count()).select_from(tasks.join(batches)).where(batches.c.is_open, is_wanted)
            mine = wanted.join(answers, answers.c.task == tasks.c.id).where(answers.c.labeler == labeler.id)
            last = _last(connection, labeler)
            return Tally(
                num_answered=int(connection.execute(count).scalar_one()),
                num_left=connection.execute(wanted).scalar_one() - connection.execute(mine).scalar_one(),
                median_seconds=statistics.median(seconds) if seconds else None,
                last=None if last is None or last.is_taken else str(last.task),
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
        row = connection.execute(mine.where(is_wanted, tasks.c.num_missing > others)).one_or_none()
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


def _screen(row: Any, form: Form, labeler: Account, draft: str | None) -> Screen:
    comparison = load(Comparison, row.comparison)
    return Screen(
        task=row.id,
        comparison=comparison,
        form=form,
        shown=shown_order(row.id, labeler.name, len(comparison.responses)),
        draft=None if draft is None else load(Feedback, draft),
    )


def _current(connection: Connection, labeler: Account, now: float) -> Any:
    """The task that the labeler has, unless the lease is over and nobody waits for it any more."""
    query = (
        select(tasks, claims.c.shown_at)
        .select_from(tasks.join(claims).join(batches, tasks.c.batch == batches.c.id))
        .where(claims.c.labeler == labeler.id, *_open_to(labeler))
    )
    row = connection.execute(query).one_or_none()
    return row if row is not None and (row.num_missing > 0 or row.shown_at > now - LEASE) else None


def _last(connection: Connection, labeler: Account) -> Any:
    query = select(answers).where(answers.c.labeler == labeler.id).order_by(answers.c.answered_at.desc()).limit(1)
    return connection.execute(query).one_or_none()
