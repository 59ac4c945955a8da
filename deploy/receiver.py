"""The web process that annotators' browsers and Label Studio reach: signed links to images, and hints of answers.

It holds no password and no session: a link or a token that was made with the secret is the permission. It answers with
images, or with a few words that tell nothing of paths, tokens or what was sent.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from deploy.hints import APART_SECONDS, WAIT_SECONDS, Hints
from models.base import utc_now
from models.errors import DipnetError, NotFound
from models.settings import Settings, load_settings
from storage.media import HEALTH, MARK, TOKEN_HEADER, Refused, Signer, example_path, request_path, webhook_path
from tasks import labeling
from tasks.showing import Changed, NotShowable, Shown, image_of_example, image_of_request

MOST_BODY_BYTES = 256 * 1024
IMAGES_AT_ONCE = 4  # each may hold 200 MB
QUERY = "dipnet.query"
LONGEST_ID = 9  # digits that every database takes
EVERY_ANSWER = {
    MARK[0]: MARK[1],
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
}
WITH_AN_IMAGE = {
    **EVERY_ANSWER,
    # The labelling page lies elsewhere and reads pixels; there are no cookies that another page could misuse.
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Cache-Control": "private, max-age=3600, immutable",
}
WITHOUT_AN_IMAGE = {**EVERY_ANSWER, "Cache-Control": "no-store"}
# The first that fits. An error's own words may name paths; they are for the log.
ANSWERS: tuple[tuple[type[DipnetError], int, str], ...] = (
    (Refused, 403, "this link is not valid, or no longer; open the task anew in the labelling tool"),
    (Changed, 410, "the image has changed since it was chosen"),
    (NotShowable, 415, "this is not an image that a browser can show, or it is too large"),
    (NotFound, 404, "there is no such image, or it is no longer shown"),
    (DipnetError, 503, "the image cannot be shown now; try again later"),
)

log = logging.getLogger(__name__)


class WithoutQuery:
    """Takes the query, which is the permission, out of what a server logs of a request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Keep the query where only we look for it."""
        if scope["type"] == "http":
            # The very mapping that the server's access log reads: Prefect's configuration of logs may switch it on.
            scope[QUERY], scope["query_string"] = scope["query_string"], b""
        await self._app(scope, receive, send)


@dataclass(frozen=True)
class Desk:
    """What the answers need."""

    settings: Settings
    signer: Signer
    hints: Hints
    limiter: CapacityLimiter


def make_app(
    settings: Settings | None = None,
    sync: Callable[[int], object] | None = None,
    *,
    wait: float = WAIT_SECONDS,
    apart: float = APART_SECONDS,
) -> FastAPI:
    """The application, by the settings of the environment unless given. Raises BadInput without a secret."""
    chosen = settings or load_settings()
    hints = Hints(sync or sync_and_announce, wait=wait, apart=apart)
    # Nothing tells of itself, and nothing makes a URL of the Host that a request names.
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, lifespan=_syncing)
    app.add_middleware(WithoutQuery)
    app.state.desk = Desk(chosen, Signer(chosen.receiver_secret), hints, CapacityLimiter(IMAGES_AT_ONCE))
    for path, answer in (
        (HEALTH, health),
        ("/media/requests/{key}", show_request),
        ("/media/examples/{project_id}/{sample_id}", show_example),
    ):
        app.add_api_route(path, answer, methods=["GET", "HEAD"])
    app.add_api_route(webhook_path("{project_id}"), note_hint, methods=["POST"])
    app.add_exception_handler(DipnetError, _tell)
    app.add_exception_handler(HTTPException, _tell_http)
    app.add_exception_handler(Exception, _tell_nothing)
    return app


def sync_and_announce(project_id: int) -> None:
    """What a hint causes: the same steps as the poll, for one project. Raises DipnetError."""
    labeling.sync_project(project_id)
    labeling.announce()


async def health(request: Request) -> Response:
    """Whether both sides know the same secret."""
    _check(request, HEALTH)
    return Response(status_code=204, headers=WITHOUT_AN_IMAGE)


async def show_request(request: Request, key: str) -> Response:
    """The image of a label request."""
    _check(request, request_path(key))
    return await _show(request, partial(image_of_request, _desk(request).settings, key))


async def show_example(request: Request, project_id: str, sample_id: str) -> Response:
    """An exemplar, in a project's instructions."""
    _check(request, example_path(project_id, sample_id))
    return await _show(request, partial(image_of_example, _desk(request).settings, int(project_id), sample_id))


async def note_hint(request: Request, project_id: str) -> Response:
    """Note that something was answered. The body is counted and dropped: Label Studio's holds a token of its own."""
    tokens = request.headers.getlist(TOKEN_HEADER)
    if len(tokens) != 1 or not _desk(request).signer.is_webhook_token(tokens[0]):
        return Response(status_code=401, headers=WITHOUT_AN_IMAGE)
    try:
        if not await _is_small(request):
            # What else would come is not waited for.
            return _plain(413, "this is more than a webhook sends", {"Connection": "close"})
    except ClientDisconnect:
        return Response(status_code=400, headers=WITHOUT_AN_IMAGE)
    if project_id.isascii() and project_id.isdigit() and len(project_id) <= LONGEST_ID:
        _desk(request).hints.note(int(project_id))
    return Response(status_code=202, headers=WITHOUT_AN_IMAGE)


@asynccontextmanager
async def _syncing(app: FastAPI) -> AsyncIterator[None]:
    desk: Desk = app.state.desk
    desk.hints.start()
    try:
        yield
    finally:
        await to_thread.run_sync(desk.hints.stop)


def _desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def _check(request: Request, path: str) -> None:
    """Raises Refused unless the query signs the path. What is missing or repeated signs nothing."""
    query = QueryParams(request.scope[QUERY])
    until, signature = (query.getlist(name) for name in ("until", "signature"))
    once = len(until) == len(signature) == 1
    _desk(request).signer.check(
        path, until=until[0] if once else "", signature=signature[0] if once else "", now=utc_now()
    )


async def _show(request: Request, look: Callable[..., Shown]) -> Response:
    """What a look at the image gives, or that the browser has it already."""
    tags = ",".join(request.headers.getlist("if-none-match")).split(",")
    known = {tag.strip().removeprefix("W/").strip('"') for tag in tags} - {""}
    shown = await to_thread.run_sync(partial(look, known=known), limiter=_desk(request).limiter)
    headers = {**WITH_AN_IMAGE, "ETag": f'"{shown.sample_id}"'}
    if not shown.data:
        return Response(status_code=304, headers=headers)
    return Response(shown.data, media_type=shown.media_type, headers=headers)


async def _is_small(request: Request) -> bool:
    """Whether the body ends before it is too large, whatever was said of its length."""
    said = request.headers.get("content-length", "")
    if said.isascii() and said.isdigit() and (len(said) > LONGEST_ID or int(said) > MOST_BODY_BYTES):
        return False
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > MOST_BODY_BYTES:
            return False
    return True


def _plain(status: int, text: str, headers: dict[str, str] | None = None) -> Response:
    return Response(
        text + "\n", status, media_type="text/plain; charset=utf-8", headers={**WITHOUT_AN_IMAGE, **(headers or {})}
    )


async def _tell(request: Request, error: Exception) -> Response:
    """One of our errors: a few words to the browser, the whole sentence to the log."""
    status, text = next((status, text) for kind, status, text in ANSWERS if isinstance(error, kind))
    if not isinstance(error, Refused):  # which anybody can cause, as often as they like
        log.warning("%s is not shown: %s", request.url.path, " ".join(str(error).split()))
    return _plain(status, text)


async def _tell_http(_request: Request, error: Exception) -> Response:
    """A path or a method that is not ours."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    return _plain(status, {404: "not found", 405: "this cannot be done here"}.get(status, "refused"), headers)


async def _tell_nothing(_request: Request, _error: Exception) -> Response:
    """A mistake of ours, which the server logs."""
    return _plain(500, "this did not work")
