"""The queue as runs see it: comparisons go in, and come out as answers once there are enough of them."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sqlalchemy import Connection, func, insert, select, update
from sqlalchemy.sql.expression import bindparam

from cai.codec import from_json, to_json
from cai.records import fingerprint
from cai.serve.form import Form, Gold, task_id
from cai.serve.tables import Database, answers, batch_tasks, batches, is_wanted, labelers, missing, tasks, withdrawn
from cai.types import Comparison, Feedback

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["RECOUNT", "Answer", "Asked", "Queue", "chunks", "dump", "load"]

R = TypeVar("R", bound="DataclassInstance")
_COUNTED: Final = (
    select(func.count())
    .select_from(answers.join(labelers))
    .where(answers.c.task == tasks.c.id, labelers.c.is_active)
    .scalar_subquery()
)
RECOUNT: Final = update(tasks).values(num_answers=_COUNTED)  # anew: people who were set aside do not count
_CHUNK: Final = 500  # parameters of one statement; SQLite and Postgres both allow many more


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What one person said about one comparison, when (seconds since 1970), and how long they looked at it; undone
    answers count among the attempts and the seconds.
    """

    task: str
    comparison_id: str
    person: str
    feedback: Feedback
    answered_at: float
    seconds: float
    num_attempts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How far a batch is. `answers` go by task id, in the order of their giving; None while labels are missing.
    `num_elsewhere` labels are wanted of comparisons that other open batches alone have.
    """

    num_comparisons: int
    num_wanted: int
    num_missing: int
    num_elsewhere: int
    answers: dict[str, list[Answer]] | None


class Queue:
    """Puts comparisons before people; idempotent, so that a run may ask as often as it likes."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def ask(self, comparisons: Sequence[Comparison], form: Form, gold: Sequence[Gold] = ()) -> Asked:
        """Queue what is not queued yet, ahead of everything else, and take the answers if they are all there.

        A comparison that was asked in the same way before keeps its answers. Answers that were taken can no longer be
        undone. One transaction.
        """
        wanted = {task_id(c, form): form.num_wanted(c.id) for c in comparisons}
        with self._database.write() as connection:
            batch = self._batch(connection, form, wanted)
            _insert(connection, batch, comparisons, form, gold)
            _settle(connection, batch)
            num_missing, num_elsewhere = _missing(connection, batch), _elsewhere(connection, batch)
            found = None if num_missing else _take(connection, list(wanted))
        return Asked(
            num_comparisons=len(wanted),
            num_wanted=sum(wanted.values()),
            num_missing=num_missing,
            num_elsewhere=num_elsewhere,
            answers=found,
        )

    def _batch(self, connection: Connection, form: Form, wanted: dict[str, int]) -> int:
        """The id of the batch, which is made or opened again."""
        digest = fingerprint([to_json(form), sorted(wanted)])
        old = connection.execute(select(batches.c.id).where(batches.c.digest == digest)).scalar()
        if old is not None:
            connection.execute(update(batches).where(batches.c.id == old).values(is_open=True))
            return int(old)
        row = {"digest": digest, "form": dump(form), "queued_at": self._clock(), "is_open": True}
        return int(connection.execute(insert(batches).values(row).returning(batches.c.id)).scalar_one())

    def set_open(self, batch: int, is_open: bool) -> None:
        """Close a batch, so that nobody is asked for it any more, or open it again. What other batches want stays."""
        with self._database.write() as connection:
            connection.execute(update(batches).where(batches.c.id == batch).values(is_open=is_open))
            _settle(connection, batch)

    def latest(self) -> int | None:
        """The number of the latest batch."""
        with self._database.read() as connection:
            return connection.execute(select(func.max(batches.c.id))).scalar()

    def form(self, batch: int) -> Form | None:
        """How a batch was asked; None when there is no such batch."""
        with self._database.read() as connection:
            column = connection.execute(select(batches.c.form).where(batches.c.id == batch)).scalar()
        return None if column is None else load(Form, column)

    def answered(self, batch: int) -> list[tuple[Comparison, list[Answer]]]:
        """The comparisons of a batch that have answers which count, in their order, with these; no gold items, which
        are no labels of the batch.
        """
        with self._database.read() as connection:
            rows = connection.execute(
                select(tasks.c.id, tasks.c.comparison)
                .select_from(tasks.join(batch_tasks))
                .where(batch_tasks.c.batch == batch, batch_tasks.c.num_wanted > 0)
                .order_by(batch_tasks.c.position, tasks.c.id)
            ).all()
            found = _answers(connection, [row.id for row in rows])
        return [(load(Comparison, row.comparison), found[row.id]) for row in rows if found[row.id]]


def _insert(
    connection: Connection, batch: int, comparisons: Sequence[Comparison], form: Form, gold: Sequence[Gold]
) -> None:
    """The tasks that are new, and what this batch wants of each; what other batches want of them stays. An expert's
    answer replaces an earlier one.
    """
    experts = {task_id(item.comparison, form): item for item in gold}
    texts = {task_id(c, form): c for c in (*comparisons, *(item.comparison for item in experts.values()))}
    own = {task_id(c, form) for c in comparisons}
    known = set(connection.execute(select(tasks.c.id)).scalars())
    fresh = {"batch": batch, "position": 0, "num_wanted": 0, "num_answers": 0}  # settled by the caller
    if new := [{"id": name, "comparison": dump(c), **fresh} for name, c in texts.items() if name not in known]:
        connection.execute(insert(tasks), new)
    if marked := [{"gold_task": name, "expert": dump(item.feedback)} for name, item in experts.items()]:
        gold_task = tasks.c.id == bindparam("gold_task")
        connection.execute(update(tasks).where(gold_task).values(gold=bindparam("expert")), marked)
    joined = set(connection.execute(select(batch_tasks.c.task).where(batch_tasks.c.batch == batch)).scalars())
    rows = [
        {"batch": batch, "task": name, "position": k, "num_wanted": form.num_wanted(c.id) if name in own else 0}
        for k, (name, c) in enumerate(texts.items())
        if name not in joined
    ]
    if rows:
        connection.execute(insert(batch_tasks), rows)


def _settle(connection: Connection, batch: int) -> None:
    """Set anew what the open batches together want of the tasks of this one: the most that one of them does, asked as
    the latest asks it.
    """

    def wanting(column: Any) -> Any:
        query = select(column).select_from(batch_tasks.join(batches)).correlate(tasks)
        return query.where(batch_tasks.c.task == tasks.c.id, batches.c.is_open)

    def latest(column: Any) -> Any:
        return wanting(column).order_by(batch_tasks.c.batch.desc()).limit(1).scalar_subquery()

    values = {
        "batch": func.coalesce(latest(batch_tasks.c.batch), tasks.c.batch),
        "position": func.coalesce(latest(batch_tasks.c.position), tasks.c.position),
        "num_wanted": func.coalesce(wanting(func.max(batch_tasks.c.num_wanted)).scalar_subquery(), 0),
    }
    own = select(batch_tasks.c.task).where(batch_tasks.c.batch == batch)
    connection.execute(update(tasks).where(tasks.c.id.in_(own)).values(values))


def _missing(connection: Connection, batch: int) -> int:
    """Labels that this batch still waits for."""
    query = select(func.coalesce(func.sum(missing), 0)).select_from(batch_tasks.join(tasks))
    return int(connection.execute(query.where(batch_tasks.c.batch == batch)).scalar_one())


def _elsewhere(connection: Connection, batch: int) -> int:
    """Labels that people are asked for besides: of a run that goes on some day, or of one that nobody goes on with."""
    own = select(batch_tasks.c.task).where(batch_tasks.c.batch == batch)
    query = select(func.coalesce(func.sum(tasks.c.num_wanted - tasks.c.num_answers), 0))
    return int(connection.execute(query.where(is_wanted, tasks.c.id.not_in(own))).scalar_one())


def _take(connection: Connection, wanted: Sequence[str]) -> dict[str, list[Answer]]:
    found = _answers(connection, wanted)
    for ids in chunks(wanted):
        connection.execute(update(answers).where(answers.c.task.in_(ids)).values(is_taken=True))
    return found


def _answers(connection: Connection, wanted: Sequence[str]) -> dict[str, list[Answer]]:
    """Answers of people who are not set aside, by task, in the order of their giving."""
    found: dict[str, list[Answer]] = {name: [] for name in wanted}
    undone: dict[tuple[str, int], list[float]] = {}
    for row in connection.execute(select(withdrawn.c.task, withdrawn.c.labeler, withdrawn.c.seconds)):
        undone.setdefault((row.task, row.labeler), []).append(row.seconds)
    for ids in chunks(wanted):
        query = (
            select(answers, labelers.c.name, tasks.c.comparison)
            .select_from(answers.join(labelers).join(tasks))
            .where(answers.c.task.in_(ids), labelers.c.is_active)
            .order_by(answers.c.answered_at, labelers.c.name)
        )
        for row in connection.execute(query):
            before = undone.get((row.task, row.labeler), [])
            answer = Answer(
                task=row.task,
                comparison_id=json.loads(row.comparison)["id"],
                person=row.name,
                feedback=load(Feedback, row.feedback),
                answered_at=row.answered_at,
                seconds=row.seconds + sum(before),
                num_attempts=1 + len(before),
            )
            found[row.task].append(answer)
    return found


def chunks(items: Sequence[str]) -> list[Sequence[str]]:
    """As many at a time as one statement takes."""
    return [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]


def dump(record: "DataclassInstance") -> str:
    """A record as a column holds it: ASCII, so that no database minds a NUL or a lone surrogate."""
    return json.dumps(to_json(record))


def load(cls: type[R], column: str) -> R:
    """A record from a column."""
    return from_json(cls, json.loads(column), "database")
