"""The page of those who look after a project: the queue, the people, how well they agree, and setting people aside."""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response

from cai.report.statistics import Estimate
from cai.serve.answers import whole_number
from cai.serve.overview import overview
from cai.serve.queue import Queue
from cai.serve.site import Member, Refused, fields_of_request, go, site_of

__all__ = ["router"]

router = APIRouter()
Fields = Annotated[dict[str, str], Depends(fields_of_request)]
_MAX_ID: Final = 2**31 - 1  # what Postgres has room for


@router.get("/admin", response_model=None)
def admin(request: Request) -> Response:
    """Everything at this moment."""
    site = site_of(request)
    member = _admin(site.member(request))
    found = overview(site.database)
    response = site.page("admin", member=member, found=found, when=_when, percent=_percent)
    site.renew(response, member)
    return response


@router.post("/admin/people", response_model=None)
def people(request: Request, fields: Fields) -> Response:
    """Set a person aside, or take them back."""
    site = site_of(request)
    member = _admin(site.poster(request, fields))
    number = _number(fields, "labeler")
    if number == member.account.id:
        raise Refused(409, "You cannot set yourself aside.")
    site.accounts.set_active(number, fields.get("active") == "yes")
    return go("/admin")


@router.post("/admin/batches", response_model=None)
def batch(request: Request, fields: Fields) -> Response:
    """Close a batch, so that nobody is asked it any more, or open it again."""
    site = site_of(request)
    _admin(site.poster(request, fields))
    Queue(site.database).set_open(_number(fields, "batch"), fields.get("open") == "yes")
    return go("/admin")


def _admin(member: Member) -> Member:
    if not member.account.is_admin:
        raise Refused(404, "There is no such page.")
    return member


def _number(fields: dict[str, str], name: str) -> int:
    number = whole_number(fields.get(name), 0, _MAX_ID)
    if number is None:
        raise Refused(400, "This is not a form.")
    return number


def _when(seconds: float | None) -> str:
    """A moment, in UTC, for the page."""
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} %"
