"""Who may sign in: invitations, passwords (argon2), and setting people aside."""

import hashlib
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import bindparam, insert, select, update

from cai.errors import LabelerError
from cai.serve.queue import RECOUNT
from cai.serve.tables import Database, answers, labelers, read_versions, tasks

__all__ = ["MIN_PASSWORD", "Account", "Accounts", "Throttle"]

MIN_PASSWORD: Final = 10  # characters
MAX_PASSWORD: Final = 1000
_INVITATION_SECONDS: Final = 7 * 24 * 3600.0
_TRIES: Final = 5  # wrong passwords before a name has to wait
_WAIT_SECONDS: Final = 30.0
_MAX_MADE_UP: Final = 10_000
_BY_ID: Final = select(labelers).where(labelers.c.id == bindparam("number"))  # made once: every request needs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A person who labels. A session belongs to an `epoch`; a new password or a sign-out begins another."""

    id: int
    name: str
    is_admin: bool
    is_active: bool
    epoch: int


class Accounts:
    """The people of one database."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        # What the OWASP Password Storage Cheat Sheet asks for, 19 MiB, two passes, one lane: one core for 20 ms, where
        # argon2-cffi's own choice (64 MiB, three passes, four lanes) takes every core from those who label for 90 ms.
        self._hasher = PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)
        self._throttle = Throttle(clock)
        self._read: set[tuple[int, str]] = set()

    def invite(self, name: str, *, is_admin: bool = False) -> str:
        """The token of a link with which `name` chooses a password, once, within a week. The person is added if new; an
        old password works until the link is used. Who is an admin stays one.
        """
        name = name.strip()
        if not 1 <= len(name) <= 40 or not name.isprintable():
            raise LabelerError(f"name: must be 1 to 40 printable characters, got {name!r}")
        token = secrets.token_urlsafe(32)
        values: dict[str, Any] = {"invitation": _digest(token), "invited_at": self._clock()}
        with self._database.write() as connection:
            if is_admin:
                values["is_admin"] = True
            known = connection.execute(update(labelers).where(labelers.c.name == name).values(values)).rowcount
            if not known:
                new = {"name": name, "is_admin": is_admin, "is_active": True, "epoch": 0, **values}
                connection.execute(insert(labelers).values(new))
        return token

    def invited(self, token: str) -> Account | None:
        """Whom an invitation is for; None when it was used, replaced, or is too old."""
        fits = (labelers.c.invitation == _digest(token), labelers.c.invited_at > self._oldest())
        with self._database.read() as connection:
            row = connection.execute(select(labelers).where(*fits)).one_or_none()
        return None if row is None else _account(row)

    def accept(self, token: str, password: str) -> Account | None:
        """Set the password of the invited person, and end the sessions of the old one. Raises LabelerError for a
        password that will not do.
        """
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise LabelerError(
                f"A password has {MIN_PASSWORD} to {MAX_PASSWORD} characters; this one has {len(password)}."
            )
        hashed = self._hasher.hash(password)
        mine = (labelers.c.invitation == _digest(token), labelers.c.invited_at > self._oldest())
        with self._database.write() as connection:
            found = connection.execute(select(labelers.c.id).where(*mine)).scalar()
            if found is None:
                return None
            values = {"password": hashed, "invitation": None, "epoch": labelers.c.epoch + 1}
            connection.execute(update(labelers).where(labelers.c.id == found).values(values))
        return self.get(int(found))

    def sign_in(self, name: str, password: str) -> Account | None:
        """The person, if the password is theirs and they are not set aside. Raises LabelerError while the name has to
        wait after too many wrong ones.
        """
        name = name.strip()
        with self._database.read() as connection:
            row = connection.execute(select(labelers).where(labelers.c.name == name)).one_or_none()
        wait = self._throttle.wait(name, is_known=row is not None)
        if wait > 0:
            raise LabelerError(f"Too many wrong passwords; try again in {wait:.0f} seconds.")
        stored = self._nobody if row is None or row.password is None else row.password
        try:
            self._hasher.verify(stored, password[:MAX_PASSWORD])
        except VerificationError:
            return None
        if row is None or row.password is None or not row.is_active:
            return None
        self._throttle.clear(name)
        return self.get(int(row.id))

    def end_sessions(self, account: Account) -> None:
        """All of this person's, in every browser."""
        with self._database.write() as connection:
            mine = labelers.c.id == account.id
            connection.execute(update(labelers).where(mine).values(epoch=labelers.c.epoch + 1))

    def get(self, number: int) -> Account | None:
        """By id."""
        with self._database.read() as connection:
            row = connection.execute(_BY_ID, {"number": number}).one_or_none()
        return None if row is None else _account(row)

    def all(self) -> list[Account]:
        """Everybody, by name."""
        with self._database.read() as connection:
            found = [_account(row) for row in connection.execute(select(labelers))]
        return sorted(found, key=lambda account: account.name.casefold())

    def set_active(self, number: int, is_active: bool) -> None:
        """Set a person aside, or take them back. What they said stays in the database; while they are set aside it does
        not count, and others are asked instead.
        """
        with self._database.write() as connection:
            values = {"is_active": is_active, "epoch": labelers.c.epoch + int(not is_active)}
            connection.execute(update(labelers).where(labelers.c.id == number).values(values))
            mine = select(answers.c.task).where(answers.c.labeler == number)
            connection.execute(RECOUNT.where(tasks.c.id.in_(mine)))

    def has_read(self, account: Account, version: str) -> bool:
        """Whether they have said to have read this version of the instructions."""
        if (account.id, version) not in self._read:  # who has read it has read it: no need to ask at every page
            mine = (read_versions.c.labeler == account.id, read_versions.c.version == version)
            with self._database.read() as connection:
                if connection.execute(select(read_versions.c.version).where(*mine)).first() is None:
                    return False
            self._read.add((account.id, version))
        return True

    def note_read(self, account: Account, version: str) -> None:
        """They say so now."""
        mine = (read_versions.c.labeler == account.id, read_versions.c.version == version)
        with self._database.write() as connection:
            if connection.execute(select(read_versions.c.version).where(*mine)).first() is None:
                connection.execute(insert(read_versions).values(labeler=account.id, version=version))

    @cached_property
    def _nobody(self) -> str:
        """A hash that no password has, so that an unknown name takes as long as a known one."""
        return self._hasher.hash(secrets.token_hex(8))

    def _oldest(self) -> float:
        return self._clock() - _INVITATION_SECONDS


def _account(row: Any) -> Account:
    return Account(
        id=row.id, name=row.name, is_admin=bool(row.is_admin), is_active=bool(row.is_active), epoch=row.epoch
    )


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


class Throttle:
    """After some wrong passwords in a row a name waits; kept in memory, as a restart costs an attacker nothing less. Of
    names that nobody has only the latest are kept: they fill no memory, and push out nobody's count.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, tuple[int, float]] = {}  # tries that were not right, or not yet, and when the last was
        self._made_up: dict[str, tuple[int, float]] = {}

    def wait(self, name: str, *, is_known: bool) -> float:
        """Seconds until the name may try again; where that is 0, this counts as a try from now on, so that many at once
        are no more than many in turn.
        """
        tries = self._known if is_known else self._made_up
        with self._lock:
            count, at = tries.pop(name, (0, 0.0))
            now = self._clock()
            wait = max(0.0, at + _WAIT_SECONDS - now) if count >= _TRIES else 0.0
            tries[name] = (count, at) if wait > 0 else (count + 1, now)
            if len(self._made_up) > _MAX_MADE_UP:
                del self._made_up[next(iter(self._made_up))]
        return wait

    def clear(self, name: str) -> None:
        """The password was right."""
        with self._lock:
            self._known.pop(name, None)
