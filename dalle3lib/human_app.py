"""The rating page: several people compare pairs of pictures, each by a personal link.

The server decides which trial comes next and stores every vote before it answers, so closing the
page, reloading it, opening it twice or killing the server loses nothing. A link holds its rater's
name and a key made from the study's secret, so nobody can vote for another. No address and no text
names a system: pictures are asked for by trial and side.
"""

import hashlib
import hmac
import os
import secrets
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import urlsplit

from dalle3lib import UserError
from dalle3lib.files import guard

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
STALE = "This pair had been answered before, so that answer stands. Here is where you are now."


def key(secret: str, rater: str) -> str:
    """The key of a rater's link: 32 hexadecimal digits that only the secret's holder can make."""
    return hmac.new(secret.encode(), rater.encode(), hashlib.sha256).hexdigest()[:32]


def refusal(method: str, headers: Any) -> tuple[int, str] | None:
    """Why a request is refused before its body is read: (HTTP status, sentence); None if it is not.

    A request that changes something must come from a page of this very server, and say how long it
    is.
    """
    if method in ("GET", "HEAD"):
        return None
    if urlsplit(headers.get("origin", "")).netloc.lower() != headers.get("host", "").lower():
        return 403, "Votes are taken from this page only."
    length = headers.get("content-length", "")
    if not length.isascii() or not length.isdecimal():
        return 411, "A request must say how long it is."
    return (413, f"A request may have {LIMIT} bytes.") if int(length) > LIMIT else None
