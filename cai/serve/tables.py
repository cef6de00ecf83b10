"""The database of a labelling project: tables, connections, and one writer at a time.

SQLite unless a URL says otherwise. Every write is one transaction that holds the only write lock from its first
statement on (`BEGIN IMMEDIATE`; on Postgres an advisory lock), so what it reads is still true when it writes. What is
acknowledged is on the disk: `synchronous=FULL`, as WAL with less may lose commits when power is lost. What is on whose
screen is not worth that wait. Do not put a SQLite file on a network file system.
"""

import os
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    Boolean,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    case,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
    text,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from cai.errors import StoreError

__all__ = [
    "NUM_CONNECTIONS",
    "Database",
    "answers",
    "batch_tasks",
    "batches",
    "claims",
    "is_wanted",
    "labelers",
    "meta",
    "missing",
    "read_versions",
    "tasks",
    "withdrawn",
]

SCHEMA_VERSION: Final = 2
NUM_CONNECTIONS: Final = 8  # that stay open
_BUSY_MS: Final = 30_000  # how long to wait for another process that writes
_LOCK: Final = 0x636169  # of Postgres: any number that all writers share

_metadata = MetaData()

meta = Table("meta", _metadata, Column("key", Text, primary_key=True), Column("value", Text, nullable=False))

labelers = Table(
    "labelers",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("is_admin", Boolean, nullable=False),
    Column("is_active", Boolean, nullable=False),  # no: set aside, may not sign in, and their answers do not count
    Column("password", Text),  # argon2; null until an invitation has been accepted
    Column("invitation", Text, unique=True),  # SHA-256 of the token in the link
    Column("invited_at", Float),
    Column("epoch", Integer, nullable=False),  # raised at sign-out too: sessions of an earlier epoch are over
)

batches = Table(  # what one run queued
    "batches",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("digest", Text, nullable=False, unique=True),
    Column("form", Text, nullable=False),  # JSON of cai.serve.form.Form
    Column("queued_at", Float, nullable=False),
    Column("is_open", Boolean, nullable=False),
)

tasks = Table(
    "tasks",
    _metadata,
    Column("id", Text, primary_key=True),
    Column("batch", ForeignKey("batches.id"), nullable=False),  # the latest open one that has it; else the latest
    Column("position", Integer, nullable=False),  # in that batch
    Column("num_wanted", Integer, nullable=False),  # the most that an open batch wants
    Column("num_answers", Integer, nullable=False),  # of people who are not set aside
    Column("gold", Text),  # JSON of the expert's Feedback
    Column("comparison", Text, nullable=False),  # JSON
)
is_wanted = tasks.c.num_wanted > tasks.c.num_answers
Index(  # with all that counting needs
    "tasks_wanted",
    *(tasks.c.batch, tasks.c.position, tasks.c.num_wanted, tasks.c.num_answers),
    sqlite_where=is_wanted,
    postgresql_where=is_wanted,
)

batch_tasks = Table(  # what each batch wants
    "batch_tasks",
    _metadata,
    Column("batch", ForeignKey("batches.id"), primary_key=True),
    Column("task", ForeignKey("tasks.id"), primary_key=True, index=True),
    Column("position", Integer, nullable=False),
    Column("num_wanted", Integer, nullable=False),  # labels; 0 for a gold item
)
# Labels that a batch still waits for on a task, in a join of the two.
missing = case(
    (batch_tasks.c.num_wanted > tasks.c.num_answers, batch_tasks.c.num_wanted - tasks.c.num_answers), else_=0
)

claims = Table(  # what is on whose screen
    "claims",
    _metadata,
    Column("labeler", ForeignKey("labelers.id"), primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("shown_at", Float, nullable=False),
)

answers = Table(
    "answers",
    _metadata,
    Column("task", ForeignKey("tasks.id"), primary_key=True),
    Column("labeler", ForeignKey("labelers.id"), primary_key=True),
    Column("feedback", Text, nullable=False),  # JSON
    Column("answered_at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("is_taken", Boolean, nullable=False),  # by a run: it can no longer be undone
    Index("answers_by_person", "labeler", "answered_at"),
)

withdrawn = Table(  # what was answered and undone
    "withdrawn",
    _metadata,
    Column("id", Integer, primary_key=True),
    Column("task", ForeignKey("tasks.id"), nullable=False, index=True),
    Column("labeler", ForeignKey("labelers.id"), nullable=False),
    Column("feedback", Text, nullable=False),
    Column("answered_at", Float, nullable=False),
    Column("seconds", Float, nullable=False),
    Column("withdrawn_at", Float, nullable=False),
)

read_versions = Table(  # which instructions a labeler has said to have read
    "read_versions",
    _metadata,
    Column("labeler", ForeignKey("labelers.id"), primary_key=True),
    Column("version", Text, primary_key=True),
)


class Database:
    """Connections to one database. `where` is a file (SQLite) or a SQLAlchemy URL without a password in it.

    With `create` the tables are made where there are none. Raises StoreError for a URL that cannot be used, a database
    that is not there, is none of ours, or was made by another version.
    """

    def __init__(self, where: str, *, create: bool = False) -> None:
        self.where = where
        url = _url(where)
        self._is_sqlite = url.get_backend_name() == "sqlite"
        self._writing = threading.Lock()  # threads of one process queue here, which is fairer than SQLite's retries
        if self._is_sqlite:
            _prepare_file(Path(url.database or ""), create)
        try:
            self._engine = create_engine(url, pool_size=NUM_CONNECTIONS)
        except (NoSuchModuleError, ModuleNotFoundError) as error:
            raise StoreError(f"database {where!r}: its driver is not installed: {error}") from None
        if self._is_sqlite:
            event.listen(self._engine, "connect", _configure)
            event.listen(self._engine, "begin", _begin)
        try:
            self._check_schema(create)
        except StoreError:
            self.close()
            raise
        except SQLAlchemyError as error:
            self.close()
            cause = str(getattr(error, "orig", None) or error).splitlines()[0]
            raise StoreError(f"database {where!r}: {cause}") from None

    def close(self) -> None:
        """Give back all connections."""
        self._engine.dispose()

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[Connection]:
        """A transaction that holds the write lock; committed, and on the disk, when the block ends without an error.
        What nobody was told may do without the disk (`durable=False`): only a machine that loses power loses it, and
        the others need not wait for the disk so often.
        """
        with self._writing, self._engine.connect() as connection:
            connection.execution_options(cai_writes="FULL" if durable else "NORMAL")
            with connection.begin():
                if not self._is_sqlite:
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                    if not durable:
                        connection.execute(text("SET LOCAL synchronous_commit TO off"))
                yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one moment and writes nothing."""
        with self._engine.connect() as connection:
            if not self._is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    def secret(self) -> str:
        """The key that signs cookies; made with the database, so that sessions outlive the server."""
        with self.read() as connection:
            return str(connection.execute(select(meta.c.value).where(meta.c.key == "secret")).scalar_one())

    def _check_schema(self, create: bool) -> None:
        if create:
            with self.write() as connection:
                if not inspect(connection).get_table_names():
                    _metadata.create_all(connection)
                    rows = {"schema_version": str(SCHEMA_VERSION), "secret": secrets.token_hex(32)}
                    connection.execute(insert(meta), [{"key": key, "value": rows[key]} for key in rows])
        with self.read() as connection:
            if not inspect(connection).has_table("meta"):
                raise StoreError(f"database {self.where!r}: is no database of labels")
            found = connection.execute(select(meta.c.value).where(meta.c.key == "schema_version")).scalar()
        if found != str(SCHEMA_VERSION):
            is_older = found is not None and int(found) < SCHEMA_VERSION
            what_to_do = "name another file, or go on with the cai that made it" if is_older else "update cai"
            raise StoreError(
                f"database {self.where!r}: has schema version {found}, this cai knows {SCHEMA_VERSION}; {what_to_do}"
            )


def _url(where: str) -> URL:
    if "://" not in where:
        return URL.create("sqlite", database=where)
    try:
        url = make_url(where)
    except ArgumentError:
        raise StoreError(
            f"database {where!r}: must be a file or a URL such as postgresql+psycopg://host/name"
        ) from None
    if url.password is not None:
        raise StoreError(
            f"database {url.render_as_string()!r}: holds a password, which would be written into every run folder; "
            "leave it out and set PGPASSWORD, or use ~/.pgpass"
        )
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise StoreError(f"database {where!r}: must be SQLite or Postgres, got {url.get_backend_name()}")
    return url


def _prepare_file(path: Path, create: bool) -> None:
    """The file, readable by its owner alone: it holds hashes of passwords, and what people said."""
    if path.is_dir():
        raise StoreError(f"database {str(path)!r}: is a folder")
    if create and not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError as error:
            raise StoreError(f"database {str(path)!r}: cannot be made: {error.strerror}") from None
    if not path.exists():
        raise StoreError(f"database {str(path)!r}: is not there; `cai run labeler=human` makes it, or name another one")


def _configure(connection: Any, _record: object) -> None:
    """Of a new SQLite connection; we begin transactions ourselves."""
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", f"busy_timeout={_BUSY_MS}", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin(connection: Connection) -> None:
    synchronous = connection.get_execution_options().get("cai_writes")
    if synchronous:
        connection.exec_driver_sql(f"PRAGMA synchronous={synchronous}")  # while a transaction runs it cannot be changed
    connection.exec_driver_sql("BEGIN IMMEDIATE" if synchronous else "BEGIN")
