"""What all pages share: the parts behind them, who is asking, templates, and how a request is refused."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from cai.serve.accounts import Account, Accounts
from cai.serve.desk import Desk
from cai.serve.sessions import Session, Sessions
from cai.serve.tables import Database

__all__ = ["Member", "Refused", "Site", "fields_of_request", "go", "site_of", "static_files", "wants_json"]

HERE: Final = Path(__file__).resolve().parent
SESSION_COOKIE: Final = "cai_session"
VISITOR_COOKIE: Final = "cai_visitor"  # another one, so that the sign-in page never ends a session
_MAX_BODY: Final = 1_000_000  # bytes of a form


class Refused(Exception):
    """A request that is not granted: an HTTP status, words for the person, and what the page script is to know."""

    def __init__(self, status: int, message: str, **more: object) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.more = more


@dataclass(frozen=True, slots=True)
class Member:
    """Somebody who is signed in, and the session they are signed in by."""

    account: Account
    session: Session


class Site:
    """The parts that requests are answered with. `is_https` marks cookies for encrypted connections only."""

    def __init__(self, database: Database, *, is_https: bool = False, session_seconds: float = 12 * 3600.0) -> None:
        self.database = database
        self.accounts = Accounts(database)
        self.desk = Desk(database)
        self.sessions = Sessions(database.secret(), self.accounts, seconds=session_seconds)
        self._hashing = CapacityLimiter(1)
        self._is_https = is_https
        self._session_seconds = session_seconds

    def warm_up(self) -> None:
        """Make what the first pages need, before anybody waits for them."""
        _templates()
        self.accounts.get(0)
        self.desk.warm_up()

    # --- pages --------------------------------------------------------------------------------------------------------

    def page(self, template: str, *, member: Member | None = None, status: int = 200, **values: Any) -> Response:
        """A rendered template; with a member, it has their name and a token for its forms."""
        token = None if member is None else self.sessions.token(member.session)
        account = None if member is None else member.account
        return HTMLResponse(_templates()[template].render(account=account, csrf=token, **values), status)

    async def hash_in_turn(self, answer: Callable[..., Response], *args: Any) -> Response:
        """What `answer(*args)` gives, which hashes a password: one at a time, on a thread beside the others, so that
        those who label wait neither for a thread nor for every core.
        """
        return await to_thread.run_sync(answer, *args, limiter=self._hashing)

    # --- who ----------------------------------------------------------------------------------------------------------

    def member(self, request: Request) -> Member:
        """Who is signed in; without anybody a page is sent to the sign-in form, and a script is told 401."""
        session = self.sessions.read(request.cookies.get(SESSION_COOKIE))
        account = self.sessions.account(session)
        if session is None or account is None:
            raise Refused(401, "Your session has ended; sign in again.")
        return Member(account, session)

    def poster(self, request: Request, fields: Mapping[str, str]) -> Member:
        """The member who sent a form, if it came from one of their pages."""
        member = self.member(request)
        if not self.sessions.token_fits(member.session, fields.get("csrf", "")):
            # The new token is for the page script, which sends the form again; no other site can read this.
            token = self.sessions.token(member.session)
            raise Refused(403, "This page was out of date. Go back and send it again.", csrf=token)
        return member

    def visitor(self, request: Request) -> Session:
        """The session of somebody who is not signed in; made where there is none."""
        return self.sessions.read(request.cookies.get(VISITOR_COOKIE)) or self.sessions.new(None)

    def check_visitor(self, request: Request, fields: Mapping[str, str]) -> Session:
        """The same, of somebody who sent a form that one of our pages gave them."""
        session = self.visitor(request)
        if not self.sessions.token_fits(session, fields.get("csrf", "")):
            raise Refused(403, "This page was out of date. Open it again.")
        return session

    def set_session(self, response: Response, session: Session) -> None:
        """Sign in."""
        self._set(response, SESSION_COOKIE, session)

    def set_visitor(self, response: Response, session: Session) -> None:
        """Remember a visitor until the form comes back."""
        self._set(response, VISITOR_COOKIE, session)

    def renew(self, response: Response, member: Member) -> None:
        """A session ends some time after its last use, not after its beginning."""
        if session := self.sessions.renewed(member.session):
            self._set(response, SESSION_COOKIE, session)

    def clear_session(self, response: Response) -> None:
        """Sign out."""
        response.delete_cookie(SESSION_COOKIE, httponly=True, samesite="strict", secure=self._is_https)

    def _set(self, response: Response, name: str, session: Session) -> None:
        response.set_cookie(
            name,
            self.sessions.cookie(session),
            max_age=int(self._session_seconds),
            httponly=True,
            samesite="strict",
            secure=self._is_https,
        )


@cache
def static_files() -> dict[str, bytes]:
    """The files of the page, by name."""
    return {path.name: path.read_bytes() for path in sorted((HERE / "static").iterdir())}


@cache
def _templates() -> dict[str, Template]:
    """All of them, compiled."""
    environment = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    digests = {name: hashlib.sha256(data).hexdigest()[:12] for name, data in static_files().items()}
    environment.globals["static"] = lambda name: f"/static/{name}?v={digests[name]}"
    names = environment.list_templates()
    return {name.removesuffix(".html.jinja"): environment.get_template(name) for name in names}


def site_of(request: Request) -> Site:
    """The site that the application serves."""
    site: Site = request.app.state.site
    return site


def wants_json(request: Request) -> bool:
    """Whether the page script asks, rather than the browser."""
    return "application/json" in request.headers.get("accept", "")


def go(path: str) -> Response:
    """To another page, by GET."""
    return RedirectResponse(path, 303)


async def fields_of_request(request: Request) -> dict[str, str]:
    """The fields of a form (the last of each name); 413 or 400 when it is too long or no form."""
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise Refused(400, "This is not a form.")
    body = bytearray()
    async for part in request.stream():
        body += part
        if len(body) > _MAX_BODY:
            raise Refused(413, f"The form is too long: {_MAX_BODY:,} bytes at most.")
    try:
        return dict(parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=1000))
    except ValueError:
        raise Refused(400, "This is not a form.") from None


def refusal(request: Request, error: Exception) -> Response:
    """What a Refused becomes: JSON for the script, a page or the way to the sign-in form for a browser."""
    assert isinstance(error, Refused)
    site = site_of(request)
    if wants_json(request):
        body = {"error": error.message, **error.more}
        if error.status != 401:
            return JSONResponse(body, error.status)
        visitor = site.visitor(request)  # with it the script can sign in without leaving the page
        response: Response = JSONResponse({**body, "csrf": site.sessions.token(visitor)}, error.status)
        site.set_visitor(response, visitor)
        return response
    if error.status == 401:
        return go("/sign-in")
    return site.page("message", status=error.status, title="That did not work", text=error.message)
