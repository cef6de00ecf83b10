"""Sessions: signed cookies, and tokens that forms carry so that no other site can post them.

A cookie holds who it is, the epoch of their password, when it was issued, and a random id that the form tokens belong
to. Visitors have one too, with nobody in it, for the sign-in form. The signing key is in the database.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from itsdangerous import BadSignature, URLSafeSerializer

from cai.codec import from_json, to_json
from cai.errors import DataError
from cai.serve.accounts import Account, Accounts

__all__ = ["Session", "Sessions"]

NOBODY: Final = 0
_REFRESH_SHARE: Final = 0.1  # of a session's length after which a request prolongs it


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a cookie says. `labeler` is 0 for a visitor."""

    id: str
    labeler: int
    epoch: int
    issued_at: float


class Sessions:
    """Makes and reads cookies and form tokens. A session ends `seconds` after its last use."""

    def __init__(
        self, secret: str, accounts: Accounts, *, seconds: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._cookies = URLSafeSerializer(secret, salt="cai.session")
        self._tokens = URLSafeSerializer(secret, salt="cai.form")
        self._accounts = accounts
        self._seconds = seconds
        self._clock = clock

    def new(self, account: Account | None) -> Session:
        """A session with an id of its own, so that signing in leaves no earlier token valid."""
        who = (NOBODY, 0) if account is None else (account.id, account.epoch)
        return Session(id=secrets.token_urlsafe(16), labeler=who[0], epoch=who[1], issued_at=self._clock())

    def cookie(self, session: Session) -> str:
        """The cookie's value."""
        return str(self._cookies.dumps(to_json(session)))

    def read(self, cookie: str | None) -> Session | None:
        """The session in a cookie; None when there is none, it is forged, or it is over."""
        try:
            session = from_json(Session, self._cookies.loads(cookie or ""), "cookie")
        except (BadSignature, DataError):
            return None
        return session if session.issued_at > self._clock() - self._seconds else None

    def account(self, session: Session | None) -> Account | None:
        """Who is signed in: nobody after a new password, or once set aside."""
        if session is None or session.labeler == NOBODY:
            return None
        account = self._accounts.get(session.labeler)
        return account if account is not None and account.is_active and account.epoch == session.epoch else None

    def renewed(self, session: Session) -> Session | None:
        """The same session, issued now, when that is worth a new cookie."""
        now = self._clock()
        if now - session.issued_at < _REFRESH_SHARE * self._seconds:
            return None
        return Session(id=session.id, labeler=session.labeler, epoch=session.epoch, issued_at=now)

    def token(self, session: Session) -> str:
        """What the forms of this session carry."""
        return str(self._tokens.dumps(session.id))

    def token_fits(self, session: Session, token: str) -> bool:
        """Whether a form came from a page of this session."""
        try:
            found = self._tokens.loads(token)
        except BadSignature:
            return False
        return isinstance(found, str) and secrets.compare_digest(found.encode(), session.id.encode())
