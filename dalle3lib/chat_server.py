"""Asking a server that speaks OpenAI's chat protocol: OpenAI's own, vLLM, llama.cpp, Ollama, …

The official client sends the requests; what comes back is checked here field by field, because that
client takes any JSON for an answer. The key comes from the environment and goes into the client
alone: no message, cache line or log holds it.
"""

import email.utils
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dalle3lib import UserError, completions
from dalle3lib.budget import FREE, UNLIMITED, Limits, Prices
from dalle3lib.completion_cache import Answer, key
from dalle3lib.completions import Failed

OPENAI = "https://api.openai.com/v1"
REFUSALS = ("content_filter", "content_policy_violation")  # error codes that say: not this text
BROKE = "insufficient_quota"  # the code of a 429 that waiting does not cure
TRY_AGAIN = (408, 409, 425, 429)  # and everything from 500


def client(
    model: str,
    base_url: str | None = None,
    *,
    cache: str | Path | None = None,
    prices: Prices = FREE,
    limits: Limits = UNLIMITED,
    key_variable: str = "OPENAI_API_KEY",
    timeout: float = 60.0,
    **settings: Any,
) -> completions.Client:
    """A client for a model of a server; ``settings`` are further ones of ``completions.Client``.

    ``base_url`` ends in ``/v1`` for most servers (None: ``OPENAI_BASE_URL``, else OpenAI's). The
    key is in the environment variable ``key_variable``. Raises UserError as ``connect`` does.
    """
    send = connect(base_url, key_variable=key_variable, timeout=timeout)
    return completions.Client(model, send, cache, prices=prices, limits=limits, **settings)


def connect(
    base_url: str | None = None, *, key_variable: str = "OPENAI_API_KEY", timeout: float = 60.0
) -> Callable[[dict[str, Any]], Answer]:
    """The function that sends a request to a server and returns its answer, or raises ``Failed``.

    A silence of ``timeout`` seconds is a failure. Other servers than OpenAI's may need no key; for
    OpenAI's, UserError if the environment has none. UserError also if the address is none.
    """
    import openai

    base_url = base_url or os.environ.get("OPENAI_BASE_URL") or OPENAI
    address = urlsplit(base_url)
    if address.scheme not in ("http", "https") or not address.hostname:
        raise UserError("The base URL of a server begins with http:// or https:// and a host.")
    secret = os.environ.get(key_variable, "").strip()
    if not secret and address.hostname == urlsplit(OPENAI).hostname:
        raise UserError(f"{address.hostname} needs a key: put it in the variable {key_variable}.")
    server = openai.OpenAI(
        api_key=secret or "none", base_url=base_url, max_retries=0, timeout=timeout
    )
    place = f"{address.hostname}:{address.port}" if address.port else address.hostname

    def hidden(text: str) -> str:
        """A text of the server's, short, without the key."""
        text = text.replace(secret, "…") if secret else text
        return " ".join(text.split())[:200]

    def send(request: dict[str, Any]) -> Answer:
        headers = {"Idempotency-Key": key(request)}  # for servers that then charge once
        try:
            reply = server.chat.completions.with_raw_response.create(
                **request, extra_headers=headers
            )
            found = answer(reply.text)
            return found._replace(text=found.text.replace(secret, "…")) if secret else found
        except openai.APIStatusError as error:
            return _refused(error, hidden, place, key_variable if secret else "")
        except openai.APITimeoutError as error:
            connected = type(error.__cause__).__name__ not in ("ConnectTimeout", "PoolTimeout")
            said = f"{place} was silent for {timeout:g} s"
            raise Failed("timed out", said, charged=connected) from None
        except openai.APIConnectionError as error:
            connected = type(error.__cause__).__name__ != "ConnectError"
            kind = "broken off" if connected else "no connection"
            said = f"{place}: {hidden(str(error.__cause__ or error))}"
            raise Failed(kind, said, charged=connected) from None

    return send


def _refused(error: Any, hidden: Callable[[str], str], place: str, key_variable: str) -> Answer:
    """What an error status means: an empty answer for a text that is not wanted, else Failed."""
    status, said = error.status_code, hidden(str(error.message))
    if error.code in REFUSALS:
        return Answer("", "content_filter", 0, 0)
    if status in (401, 403):  # its text may show a part of the key
        cure = f"does not accept the key in {key_variable}" if key_variable else "needs a key"
        raise Failed(f"{place} {cure} (status {status})", retry=False, fatal=True) from None
    if status == 404 or error.code == BROKE:
        raise Failed(f"status {status} of {place}", said, retry=False, fatal=True) from None
    again = status in TRY_AGAIN or status >= 500
    wait = retry_after(error.response.headers, time.time()) if again else None
    raise Failed(f"status {status}", said, retry=again, wait=wait) from None


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """The seconds that a server asks to wait, from ``Retry-After``: a number or a date (HTTP).

    ``retry-after-ms`` goes before it, as some servers send it. None if neither can be read; a date
    in the past is 0. ``now``: seconds since the epoch.
    """
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        said = headers.get(name, "").strip()
        if re.fullmatch(r"\d+(\.\d+)?", said):
            return float(said) / unit
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - now)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def answer(body: str) -> Answer:
    """The answer in a reply's body; Failed if it is not JSON or has another schema.

    A reply without ``usage`` is one without a count of tokens: its ``prompt_tokens`` are None.
    """
    try:
        reply = json.loads(body)
    except ValueError:
        raise Failed("not JSON", repr(body[:40]), charged=True) from None
    try:
        choice, usage = reply["choices"][0], reply.get("usage")
        message = choice["message"]
        content, refusal = message.get("content"), message.get("refusal")
        finish = "refusal" if refusal else choice.get("finish_reason") or ""
        counts = (None, None)
        if usage is not None:
            counts = (usage["prompt_tokens"], usage["completion_tokens"])
        text = content if content is not None else refusal or ""
        whole = all(type(n) is int and n >= 0 for n in counts if usage is not None)
        if not (isinstance(text, str) and isinstance(finish, str) and whole):
            raise TypeError("a field has another type")
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise Failed("wrong schema", str(error), charged=True) from None
    return Answer(text, finish, *counts)
