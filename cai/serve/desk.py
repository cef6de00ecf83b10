"""The queue as one person sees it: what is on the screen now, answering it, and taking the last answer back."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import BindParameter, Connection, bindparam, delete, func, insert, select, update

from cai.errors import LabelerError
from cai.records import seed_of
from cai.serve.accounts import Account
from cai.serve.form import Form, shown_order
from cai.serve.queue import RECOUNT, dump, load
from cai.serve.tables import Database, answers, batches, claims, is_wanted, tasks, withdrawn
from cai.types import Comparison, Feedback

__all__ = ["Desk", "Screen", "Tally"]

LEASE: Final = 1800.0  # seconds after which what is on a screen is given to somebody else too
_PACE: Final = 20  # answers that the pace is taken from

# Statements that every page or answer needs, made once: making them costs more than running them.
_ME: Final[BindParameter[Any]] = bindparam("me")
_TASK: Final[BindParameter[Any]] = bindparam("task")
_MY_ANSWER: Final = select(answers.c.task).where(answers.c.task == tasks.c.id, answers.c.labeler == _ME).exists()
_OPEN_TO_ME: Final = (batches.c.is_open, ~_MY_ANSWER)
_CURRENT: Final = (
    select(tasks, claims.c.shown_at)
    .select_from(tasks.join(claims).join(batches, tasks.c.batch == batches.c.id))
    .where(claims.c.labeler == _ME, *_OPEN_TO_ME)
)
_OTHERS: Final = (
    select(func.count())
    .where(claims.c.task == tasks.c.id, claims.c.labeler != _ME, claims.c.shown_at > bindparam("since"))
    .scalar_subquery()
)
_MINE: Final = (
    select(tasks)
    .select_from(tasks.join(batches))
    .where(*_OPEN_TO_ME)
    .order_by(batches.c.id.desc(), tasks.c.position)
    .limit(1)
)
_NEXT: Final = _MINE.where(is_wanted, tasks.c.num_wanted - tasks.c.num_answers > _OTHERS)
_NEXT_GOLD: Final = _MINE.where(tasks.c.gold.is_not(None))
_NUM_ANSWERED: Final = select(func.count()).select_from(answers).where(answers.c.labeler == _ME)
_NUM_WANTED: Final = select(func.count()).select_from(tasks).where(is_wanted)
_COUNTS: Final = select(
    _NUM_ANSWERED.scalar_subquery().label("num_answered"),
    (
        _NUM_WANTED.scalar_subquery()
        - _NUM_WANTED.join(answers).where(answers.c.labeler == _ME).correlate(None).scalar_subquery()
    ).label("num_left"),
)
_RECENT: Final = (  # an open batch has the task, or it cannot be asked again
    select(answers, batches.c.is_open)
    .select_from(answers.join(tasks).join(batches, tasks.c.batch == batches.c.id))
    .where(answers.c.labeler == _ME)
    .order_by(answers.c.answered_at.desc())
    .limit(bindparam("most"))
)
_UNDONE: Final = (
    select(withdrawn.c.feedback).where(withdrawn.c.task == _TASK, withdrawn.c.labeler == _ME).order_by(withdrawn.c.id)
)
_BEFORE: Final = (
    select(
        batches.c.is_open,
        _MY_ANSWER.label("is_answered"),
        select(func.count())
        .where(withdrawn.c.task == tasks.c.id, withdrawn.c.labeler == _ME)
        .scalar_subquery()
        .label("num_undone"),
        select(claims.c.shown_at)
        .where(claims.c.task == tasks.c.id, claims.c.labeler == _ME)
        .scalar_subquery()
        .label("shown_at"),
    )
    .select_from(tasks.join(batches))
    .where(tasks.c.id == _TASK)
)
_CLAIMED: Final = {"task": _TASK, "shown_at": bindparam("now")}
_MOVE: Final = update(claims).where(claims.c.labeler == _ME).values(_CLAIMED)
_CLAIM: Final = insert(claims).values({"labeler": _ME, **_CLAIMED})
_LET_GO: Final = delete(claims).where(claims.c.task == _TASK, claims.c.labeler == _ME)
_ANSWER: Final = insert(answers)
_RECOUNT: Final = RECOUNT.where(tasks.c.id == _TASK)
_THE_TASK: Final = select(tasks).where(tasks.c.id == _TASK)


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

    def warm_up(self) -> None:
        """Run, for nobody, what pages and answers need: after a restart many come at once, and each would wait until it
        has made the statements for itself.
        """
        nobody = {"me": 0, "task": "", "since": 0.0, "most": 1, "now": 0.0}
        with self._database.write(durable=False) as connection:
            for statement in (_CURRENT, _NEXT, _UNDONE, _COUNTS, _RECENT, _THE_TASK, _BEFORE, _MOVE, _LET_GO, _RECOUNT):
                connection.execute(statement, nobody)

    def next(self, labeler: Account) -> Screen | None:
        """What is on the labeler's screen, or the next task, which is theirs for half an hour; None when nothing is
        left. The same until it is answered: a reload or a second tab shows the same.
        """
        with self._database.write(durable=False) as connection:
            now = self._clock()
            row = _current(connection, labeler, now) or self._pick(connection, labeler, now)
            if row is None:
                return None
            form = self._form(connection, row.batch)
            undone = connection.execute(_UNDONE, {"task": row.id, "me": labeler.id}).scalars().all()
        return _screen(row, form, labeler, undone)

    def screen(self, labeler: Account, task: str) -> Screen | None:
        """The task as this person was asked it at first, whether or not it is theirs now; None when there is none."""
        with self._database.read() as connection:
            row = connection.execute(_THE_TASK, {"task": task}).one_or_none()
            return None if row is None else _screen(row, self._form(connection, row.batch), labeler, ())

    def answer(self, labeler: Account, task: str, feedback: Feedback, seconds: float, *, attempt: int = 0) -> bool:
        """Record an answer; False, and nothing is changed, when this person has answered this task before.

        `seconds` is what the page measured; it is held within the time since the task was put on the screen. `attempt`
        is that of the screen. Raises LabelerError, in words for the person, when it was sent before an answer was taken
        back, or no open batch has the task any more.
        """
        with self._database.write() as connection:
            before = connection.execute(_BEFORE, {"task": task, "me": labeler.id}).one()
            if before.is_answered:
                return False
            if attempt != before.num_undone:
                raise LabelerError("You took this answer back after it was sent; choose again.")
            if not before.is_open:
                raise LabelerError(
                    "This comparison was closed meanwhile, so the answer was not taken. Nothing that you saved is lost."
                )
            now, shown_at = self._clock(), before.shown_at
            row = {
                "task": task,
                "labeler": labeler.id,
                "feedback": dump(feedback),
                "answered_at": now,
                "seconds": max(0.0, min(seconds, now - shown_at) if shown_at is not None else seconds),
                "is_taken": False,
            }
            connection.execute(_ANSWER, row)
            if shown_at is not None:
                connection.execute(_LET_GO, {"task": task, "me": labeler.id})
            connection.execute(_RECOUNT, {"task": task})
        return True

    def undo(self, labeler: Account, task: str) -> bool:
        """Take back the answer to `task` and put it on the screen again; False when it is not the last answer, a run
        has taken it, or its batch is closed, so that it could not be given again. What was said is kept among the
        withdrawn.
        """
        with self._database.write() as connection:
            row = connection.execute(_RECENT, {"me": labeler.id, "most": 1}).one_or_none()
            if row is None or row.task != task or not _can_undo(row):
                return False
            now = self._clock()
            kept = {name: getattr(row, name) for name in ("task", "labeler", "feedback", "answered_at", "seconds")}
            connection.execute(insert(withdrawn).values(**kept, withdrawn_at=now))
            connection.execute(delete(answers).where(answers.c.task == task, answers.c.labeler == labeler.id))
            connection.execute(_RECOUNT, {"task": task})
            _claim(connection, labeler, task, now)
        return True

    def tally(self, labeler: Account) -> Tally:
        """Of one person."""
        with self._database.read() as connection:
            counts = connection.execute(_COUNTS, {"me": labeler.id}).one()
            recent = connection.execute(_RECENT, {"me": labeler.id, "most": _PACE}).all()
        return Tally(
            num_answered=int(counts.num_answered),
            num_left=int(counts.num_left),
            median_seconds=statistics.median(row.seconds for row in recent) if recent else None,
            last=str(recent[0].task) if recent and _can_undo(recent[0]) else None,
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
        me = {"me": labeler.id}
        row = connection.execute(_NEXT, {**me, "since": now - LEASE}).one_or_none()
        if row is None:
            return None
        if share := self._form(connection, row.batch).gold_share:
            turn = seed_of(0, "gold", labeler.name, int(connection.execute(_NUM_ANSWERED, me).scalar_one()))
            if turn < share * 2**63:
                row = connection.execute(_NEXT_GOLD, me).one_or_none() or row
        _claim(connection, labeler, row.id, now)
        return row

    def _form(self, connection: Connection, batch: int) -> Form:
        if batch not in self._forms:
            column = connection.execute(select(batches.c.form).where(batches.c.id == batch)).scalar_one()
            self._forms[batch] = load(Form, column)
        return self._forms[batch]


def _claim(connection: Connection, labeler: Account, task: str, now: float) -> None:
    claim = {"me": labeler.id, "task": task, "now": now}
    if connection.execute(_MOVE, claim).rowcount == 0:
        connection.execute(_CLAIM, claim)


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
    row = connection.execute(_CURRENT, {"me": labeler.id}).one_or_none()
    return row if row is not None and (row.num_wanted > row.num_answers or row.shown_at > now - LEASE) else None


def _can_undo(row: Any) -> bool:
    """Of an answer: no run has it, and it can be given again."""
    return bool(row.is_open) and not row.is_taken
