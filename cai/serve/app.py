"""The web application: routes, security headers, and which names it answers to."""

import mimetypes
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from cai.serve import admin, doors, pages
from cai.serve.site import Refused, Site, refusal, static_files
from cai.serve.tables import NUM_CONNECTIONS

__all__ = ["create_app"]

# Everything comes from this server, nothing is inline, nobody frames it.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS: Final = {  # of every response; pages, which hold texts and tokens, are not to be kept
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
_ENCODED: Final = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]


def create_app(site: Site, *, hosts: Sequence[str]) -> FastAPI:
    """The application. Requests for other host names than `hosts` are refused: a page of somebody else, whose name has
    been made to point at this machine, gets nothing.
    """
    app = FastAPI(title="cai", openapi_url=None, lifespan=_lifespan)
    app.state.site = site
    app.add_exception_handler(Refused, refusal)
    app.add_exception_handler(HTTPException, _lost)
    app.add_api_route("/static/{name}", _static, response_model=None)
    for module in (doors, pages, admin):
        app.include_router(module.router)
    app.add_middleware(_Headers)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """As many threads as the database has connections: more would open some more, and only wait for each other."""
    to_thread.current_default_thread_limiter().total_tokens = NUM_CONNECTIONS
    app.state.site.warm_up()
    yield


def _static(name: str) -> Response:
    """A file of the page; its address changes with its content, so it may be kept."""
    data = static_files().get(name)
    if data is None:
        raise Refused(404, "There is no such page.")
    kind = mimetypes.guess_type(name)[0]
    return Response(data, media_type=kind, headers={"cache-control": "public, max-age=31536000, immutable"})


def _lost(request: Request, error: Exception) -> Response:
    """For an address that is none of ours."""
    assert isinstance(error, HTTPException)
    return refusal(request, Refused(error.status_code, "There is no such page."))


class _Headers:
    """Adds the headers that a response has not."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """As ASGI has it."""

        async def sender(message: Any) -> None:
            if message["type"] == "http.response.start":
                held = {name for name, _ in message["headers"]}
                message["headers"] += [(name, value) for name, value in _ENCODED if name not in held]
            await send(message)

        await self._app(scope, receive, sender if scope["type"] == "http" else send)
