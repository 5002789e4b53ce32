"""The rating page: raters compare pairs of pictures in a browser, each by a personal link.

The server decides which trial comes next and has stored a vote before it answers, so closing the
page, reloading it, opening it twice or killing the server loses nothing. A link holds a token that
only its rater knows. No address and no text names a system: pictures are asked for by trial and
side, and nothing else in the study's folder can be asked for.
"""

import logging
import secrets
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from dalle3lib import UserError, human
from dalle3lib.vote_store import AlreadyVoted, Refused, VoteStore

if TYPE_CHECKING:
    from fastapi import FastAPI

PAGE = Path(__file__).parent / "rating_page"
LIMIT = 4096  # bytes of a request's body; a vote has 150
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
STALE = "You went on in another window, so this answer was not stored. You are here now:"
BROKEN = "The vote cannot be stored at the moment."
log = logging.getLogger("uvicorn.error")  # uvicorn's own, which goes to the error output


def state(store: VoteStore, rater: int, notice: str = "") -> dict[str, Any]:
    """What a rater's page shows: the trial to come (None when all have a vote) and the progress.

    ``trial`` has id, ask, hint, caption (None where it is not shown) and the addresses of its two
    pictures, left and right, relative to the personal link; ``notice`` is a sentence to show.
    """
    trial, (done, total) = store.next_trial(rater), store.progress(rater)
    shown = trial and trial.shown()
    if shown:
        shown |= {side: f"picture/{trial.id}/{side}" for side in ("left", "right")}
    return {"trial": shown, "done": done, "total": total, "notice": notice}


def record(
    store: VoteStore, rater: int, trial: str, choice: str, key: str, seconds: float | None
) -> dict[str, Any]:
    """Store a vote and return the state after it.

    Votes come in the plan's order. A page that is behind the others (its trial has a vote by now)
    or before them (another one has undone a vote) is told so, and nothing is stored. Raises Refused
    as ``VoteStore.vote``.
    """
    places = {other.id: place for place, other in enumerate(human.trials(store.plan, rater))}
    to_come = store.next_trial(rater)
    if to_come and places.get(trial, -1) > places[to_come.id]:
        return state(store, rater, STALE)
    try:
        store.vote(rater, trial, choice, key, seconds)
    except AlreadyVoted:
        return state(store, rater, STALE)
    return state(store, rater)


def picture(store: VoteStore, rater: int, trial: str, side: Literal["left", "right"]) -> bytes:
    """A picture of one of the rater's trials, PNG; Refused if the trial is not the rater's."""
    mine = {other.id: other for other in human.trials(store.plan, rater)}
    if trial not in mine:
        raise Refused("This comparison is not one of yours: reload the page.")
    return store.image(getattr(mine[trial], side)).read_bytes()


def refusal(method: str, headers: Any) -> tuple[int, str] | None:
    """Why a request is refused before its body is read: (HTTP status, sentence), or None.

    What changes something must come from a page of this very server (a browser says so in
    ``Origin``) and say how long it is.
    """
    if method in ("GET", "HEAD"):
        return None
    if urlsplit(headers.get("origin", "")).netloc.lower() != headers.get("host", "").lower():
        return 403, "Votes are taken from the rating page only."
    length = headers.get("content-length", "")
    if not (length.isascii() and length.isdecimal()):
        return 411, "A request must say how long it is."
    return (413, f"A request has {LIMIT} bytes at most.") if int(length) > LIMIT else None


@lru_cache
def page(rater: int) -> str:
    """The HTML of a rater's page, without any trial: the script asks for these."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(loader=FileSystemLoader(PAGE), autoescape=True)
    return environment.get_template("page.html").render(rater=f"Rater {rater + 1}")


def build(store: VoteStore, tokens: Sequence[str], hosts: Sequence[str]) -> "FastAPI":
    """The web application of a study: ``tokens`` of all raters in order, ``hosts`` it answers to.

    Raises UserError where FastAPI, or what it is served with, is not installed.
    """
    try:
        import jinja2  # noqa: F401 - for ``page``
        import uvicorn  # noqa: F401 - for ``rate.serve``
        from fastapi import Body, Depends, FastAPI, Response
        from fastapi.responses import HTMLResponse
        from fastapi.staticfiles import StaticFiles
    except ImportError:
        raise UserError(
            'The rating page needs FastAPI, jinja2 and uvicorn: pip install "dalle3lib[label]".'
        ) from None

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    _protect(app, hosts)
    app.mount("/static", StaticFiles(directory=PAGE / "static"))

    def known(token: str) -> int:
        """The rater of a link; all tokens are compared, each in constant time."""
        sent = token.encode("utf-8", "surrogatepass")
        equal = [n for n, t in enumerate(tokens) if secrets.compare_digest(t.encode(), sent)]
        if not equal:
            raise Refused("This link belongs to no rater of this study: ask for a new one.")
        return equal[0]

    Rater = Annotated[int, Depends(known)]
    Key = Annotated[str, Body(pattern="^[0-9a-f]{32}$")]

    @app.get("/r/{token}/", response_class=HTMLResponse)
    def page_(rater: Rater) -> str:
        return page(rater)

    @app.get("/r/{token}/trial")
    def trial_(rater: Rater) -> dict:
        return state(store, rater)

    @app.get("/r/{token}/picture/{trial}/{side}")
    def picture_(rater: Rater, trial: str, side: Literal["left", "right"]) -> Response:
        return Response(picture(store, rater, trial, side), media_type="image/png")

    @app.post("/r/{token}/vote")
    def vote_(
        rater: Rater,
        key: Key,
        trial: Annotated[str, Body()],
        choice: Annotated[Literal["left", "right", "tie"], Body()],
        seconds: Annotated[float | None, Body(ge=0, allow_inf_nan=False)] = None,
    ) -> dict:
        return record(store, rater, trial, choice, key, seconds)

    @app.post("/r/{token}/undo")
    def undo_(rater: Rater, key: Key, done: Annotated[int, Body(ge=0)]) -> dict:
        store.undo(rater, key, after=done)
        return state(store, rater)

    return app


def _protect(app: "FastAPI", hosts: Sequence[str]) -> None:
    """Refuse foreign hosts, foreign pages and long bodies; say why in one line of plain text."""
    from fastapi import Request, Response
    from fastapi.exceptions import RequestValidationError, StarletteHTTPException
    from fastapi.middleware.trustedhost import TrustedHostMiddleware
    from fastapi.responses import PlainTextResponse

    def said(status: int, sentence: str) -> Response:
        return PlainTextResponse(sentence, status)

    async def guarded(request: Request, call_next: Any) -> Response:
        refused = refusal(request.method, request.headers)
        response = said(*refused) if refused else await call_next(request)
        response.headers.update(HEADERS)
        if response.status_code >= 400:  # without the address, which may hold a token
            sender = request.client.host if request.client else "?"
            log.warning("refused (%d): %s by %s", response.status_code, request.method, sender)
        return response

    async def broken(request: Request, error: Exception) -> Response:
        log.error("%s", error)
        return said(503, BROKEN)

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.middleware("http")(guarded)
    app.exception_handler(Refused)(lambda _, error: said(404, str(error)))
    app.exception_handler(UserError)(broken)
    app.exception_handler(RequestValidationError)(lambda *_: said(422, "This is not a vote."))
    app.exception_handler(StarletteHTTPException)(
        lambda _, error: said(error.status_code, error.detail)
    )
