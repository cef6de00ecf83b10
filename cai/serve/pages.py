"""The pages of a person who labels: the comparison, saving an answer, taking the last one back, the instructions."""

import json
import math
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from cai.errors import LabelerError
from cai.serve.answers import LETTERS, feedback_of, fields_of, whole_number
from cai.serve.desk import Screen, Tally
from cai.serve.site import Refused, fields_of_request, go, site_of

__all__ = ["router"]

router = APIRouter()
Fields = Annotated[dict[str, str], Depends(fields_of_request)]


@router.get("/", response_model=None)
def home() -> Response:
    """The page that everybody wants."""
    return go("/label")


@router.get("/label", response_model=None)
def label(request: Request) -> Response:
    """What is on this person's screen: the same comparison until it is answered."""
    site = site_of(request)
    member = site.member(request)
    screen = site.desk.next(member.account)
    if screen is not None and not site.accounts.has_read(member.account, screen.form.version):
        return go("/instructions")
    tally = site.desk.tally(member.account)
    if screen is None:
        response = site.page("done", member=member, tally=tally, pace=pace(tally))
    else:
        response = site.page("label", member=member, tally=tally, pace=pace(tally), **_shown(screen))
    site.renew(response, member)
    return response


@router.post("/label", response_model=None)
def answer(request: Request, fields: Fields) -> Response:
    """Record an answer, once: sent again, it changes nothing and is told to have been recorded before."""
    site = site_of(request)
    member = site.poster(request, fields)
    if fields.get("labeler") != str(member.account.id):
        raise Refused(409, "Somebody else has signed in here; reload the page.")
    screen = site.desk.screen(member.account, fields.get("task", ""))
    version = fields.get("instructions", "")
    attempt = whole_number(fields.get("attempt"), 0, 10**6)
    if screen is None or attempt is None or not site.accounts.has_read(member.account, version):
        raise Refused(409, "The questions have changed; reload the page.")
    try:
        feedback = feedback_of(fields, screen.form, screen.comparison, screen.shown, instructions=version)
    except LabelerError as error:
        raise Refused(422, str(error)) from None
    seconds = _seconds(fields.get("seconds", ""))
    try:
        recorded = site.desk.answer(member.account, screen.task, feedback, seconds, attempt=attempt)
    except LabelerError as error:  # the page goes on to what is on the screen now, if anything is
        raise Refused(409, str(error), reload=site.desk.next(member.account) is not None) from None
    return JSONResponse({"recorded": recorded})


@router.post("/undo", response_model=None)
def undo(request: Request, fields: Fields) -> Response:
    """Take the last answer back. The form names it, so that two clicks do not take back two."""
    site = site_of(request)
    member = site.poster(request, fields)
    site.desk.undo(member.account, fields.get("task", ""))
    return go("/label")


@router.get("/instructions", response_model=None)
def instructions(request: Request) -> Response:
    """What this person is to do, in the version that their next comparison comes with."""
    site = site_of(request)
    member = site.member(request)
    screen = site.desk.next(member.account)
    form = screen.form if screen is not None else site.desk.latest_form()
    if form is None:
        return go("/label")
    known = site.accounts.has_read(member.account, form.version)
    response = site.page("instructions", member=member, text=form.instructions, version=form.version, known=known)
    site.renew(response, member)
    return response


@router.post("/instructions", response_model=None)
def instructions_read(request: Request, fields: Fields) -> Response:
    """The person says that they have read a version."""
    site = site_of(request)
    member = site.poster(request, fields)
    site.accounts.note_read(member.account, fields.get("version", ""))
    return go("/label")


def pace(tally: Tally) -> dict[str, Any]:
    """Progress in words: how long an answer takes, how long the rest will."""
    if tally.median_seconds is None:
        return {"each": None, "left": None}
    minutes = tally.median_seconds * tally.num_left / 60
    left = f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
    return {"each": f"{max(1, round(tally.median_seconds))} s", "left": left if minutes >= 1 else None}


def _shown(screen: Screen) -> dict[str, Any]:
    """What the template shows of a comparison: texts in their places, and nothing that says who wrote them."""
    form = screen.form
    responses = [
        {"letter": LETTERS[place], "place": place, "text": screen.comparison.responses[index].text}
        for place, index in enumerate(screen.shown)
    ]
    extras = (form.strength, form.ratings, form.flags, form.correction, form.critique)
    return {
        "task": screen.task,
        "attempt": screen.attempt,
        "form": form,
        "turns": screen.comparison.prompt.turns,
        "responses": responses,
        # One press or click says everything there is to say, so it saves too.
        "at_once": len(responses) == 2 and not any(extras),
        "draft": json.dumps(fields_of(screen.draft)) if screen.draft else "{}",
    }


def _seconds(value: str) -> float:
    """What the page measured; 0 when it is no time."""
    try:
        seconds = float(value)
    except ValueError:
        return 0.0
    return seconds if math.isfinite(seconds) else 0.0
