"""Coming in and going out: sign-in, invitations, sign-out."""

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from cai.errors import LabelerError
from cai.serve.accounts import MIN_PASSWORD
from cai.serve.site import Refused, Site, fields_of_request, go, site_of, wants_json

__all__ = ["router"]

router = APIRouter(default_response_class=Response)
Fields = Annotated[dict[str, str], Depends(fields_of_request)]
_STALE = "This invitation was used already, replaced by a newer one, or is older than a week. Ask for another."


@router.get("/sign-in", response_model=None)
def sign_in_form(request: Request) -> Response:
    """The form."""
    return _sign_in_page(site_of(request), request)


@router.post("/sign-in", response_model=None)
async def sign_in(request: Request, fields: Fields) -> Response:
    """Check name and password; the page script signs in without leaving its page, and gets a new token."""
    return await site_of(request).hash_in_turn(_sign_in, request, fields)


def _sign_in(request: Request, fields: dict[str, str]) -> Response:
    site = site_of(request)
    site.check_visitor(request, fields)
    name = fields.get("name", "")
    try:
        account = site.accounts.sign_in(name, fields.get("password", ""))
        problem = "Name and password do not go together."
    except LabelerError as error:
        account, problem = None, str(error)
    if account is None:
        if wants_json(request):
            return JSONResponse({"error": problem}, 422)
        return _sign_in_page(site, request, name=name, problem=problem)
    session = site.sessions.new(account)
    response: Response
    response = JSONResponse({"csrf": site.sessions.token(session)}) if wants_json(request) else go("/label")
    site.set_session(response, session)
    return response


@router.post("/sign-out", response_model=None)
def sign_out(request: Request, fields: Fields) -> Response:
    """End this person's sessions, here and in their other browsers: a cookie that somebody kept is good for nothing."""
    site = site_of(request)
    site.accounts.end_sessions(site.poster(request, fields).account)
    response = go("/sign-in")
    site.clear_session(response)
    return response


@router.get("/invitation/{token}", response_model=None)
def invitation(token: str, request: Request) -> Response:
    """The form with which an invited person chooses a password."""
    return _invitation_page(site_of(request), request, token)


@router.post("/invitation/{token}", response_model=None)
async def accept(token: str, request: Request, fields: Fields) -> Response:
    """Set the password and sign in; the link is used up."""
    return await site_of(request).hash_in_turn(_accept, token, request, fields)


def _accept(token: str, request: Request, fields: dict[str, str]) -> Response:
    site = site_of(request)
    site.check_visitor(request, fields)
    password = fields.get("password", "")
    if password != fields.get("again", ""):
        return _invitation_page(site, request, token, problem="The two passwords differ.")
    try:
        account = site.accounts.accept(token, password)
    except LabelerError as error:
        return _invitation_page(site, request, token, problem=str(error))
    if account is None:
        raise Refused(410, _STALE)
    response = go("/label")
    site.set_session(response, site.sessions.new(account))
    return response


def _sign_in_page(site: Site, request: Request, *, name: str = "", problem: str = "") -> Response:
    visitor = site.visitor(request)
    token = site.sessions.token(visitor)
    response = site.page("sign_in", status=422 if problem else 200, token=token, name=name, problem=problem)
    site.set_visitor(response, visitor)
    return response


def _invitation_page(site: Site, request: Request, link: str, *, problem: str = "") -> Response:
    account = site.accounts.invited(link)
    if account is None:
        raise Refused(410, _STALE)
    visitor = site.visitor(request)
    response = site.page(
        "invitation",
        status=422 if problem else 200,
        token=site.sessions.token(visitor),
        name=account.name,
        link=link,
        problem=problem,
        min_password=MIN_PASSWORD,
    )
    site.set_visitor(response, visitor)
    return response
