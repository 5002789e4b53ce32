"""A client for language models that charge: each answer bought once, within a cap, whatever fails.

``Client.complete`` asks many conversations at a time. What was answered before comes from the cache
(``completion_cache``), equal requests are one, failures are tried again a bounded number of times,
and a request is sent only while the cap on tokens and on money allows it. Who answers is a function
``send``: a server (``chat_server``) or a model in this process (``chat_model``). The content of a
message is a text, or a list of texts and images in OpenAI's format (``image``).
"""

import base64
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tqdm.auto import tqdm

from dalle3lib import UserError, paths
from dalle3lib.budget import (
    FREE,
    NOTHING,
    UNLIMITED,
    Amount,
    Budget,
    CapReached,
    Limits,
    Prices,
    bound,
)
from dalle3lib.completion_cache import Answer, Cache, key
from dalle3lib.randomness import rng

REFUSED = ("refusal", "content_filter")  # how an answer ends that is none
ATTEMPTS = 6  # for each request
FIRST_WAIT, LAST_WAIT = 0.5, 60.0  # seconds between attempts, doubled in between
PATIENCE = 600.0  # seconds; a server that asks for more is not waited for
GIVE_UP = 5  # requests that fail one after another; then the rest is not sent

Message = dict[str, Any]
Conversation = tuple[list[Message], dict[str, Any]]  # messages and options (max_tokens, …)


class Completion(NamedTuple):
    """An answer as it is handed out; ``cached``: nothing was paid for it by this call."""

    text: str
    finish: str
    tokens: int
    cost: float
    cached: bool


class Failed(Exception):
    """An attempt without an answer: what kind of failure, and what the other side said.

    ``retry``: another attempt may help. ``charged``: the answer that did not arrive may have to be
    paid. ``wait``: seconds that the server asked for. ``fatal``: every request would fail alike.
    """

    def __init__(
        self,
        kind: str,
        said: str = "",
        *,
        retry: bool = True,
        charged: bool = False,
        wait: float | None = None,
        fatal: bool = False,
    ) -> None:
        super().__init__(f"{kind}: {said}" if said else kind)
        self.kind, self.retry, self.charged = kind, retry, charged
        self.wait, self.fatal = wait, fatal


class NotSent(Exception):
    """A request that was left out because others had failed or the cap was reached."""


def default_cache() -> Path:
    """Where answers are kept unless a file is named: ``completions.jsonl`` beside the runs."""
    return paths.runs_dir() / "completions.jsonl"


def image(path: str | Path) -> dict[str, Any]:
    """The part of a message's content that is a picture file (PNG, JPEG or WebP), as a data URL."""
    kind = Path(path).suffix.lower().lstrip(".").replace("jpg", "jpeg")
    if kind not in ("png", "jpeg", "webp"):
        raise UserError(f"{path} is no PNG, JPEG or WebP file, so a model cannot be shown it.")
    try:
        return image_part(kind, Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from None


def image_part(kind: str, data: bytes) -> dict[str, Any]:
    """As ``image``, of the content of a file of a ``kind``: "png", "jpeg" or "webp"."""
    url = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


class Client:
    """Asks one model, by name.

    ``send`` takes a request (``{"model", "messages", **options}``) and returns an ``Answer`` or
    raises ``Failed``. ``prices`` are per million tokens; ``limits`` cap what the answers that this
    client hands out cost when they were bought, so that a run that is repeated with the same cap
    does not spend it again. At most one request passes the cap. ``workers`` requests are under way
    at a time. ``sleep`` and ``clock`` (seconds since the epoch) are there for tests.
    """

    def __init__(
        self,
        model: str,
        send: Callable[[dict[str, Any]], Answer],
        cache: Cache | str | Path | None = None,
        *,
        prices: Prices = FREE,
        limits: Limits = UNLIMITED,
        workers: int = 4,
        attempts: int = ATTEMPTS,
        sleep: Callable[[float], Any] | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.model, self._send, self.prices = model, send, prices
        self.cache = cache if isinstance(cache, Cache) else Cache(cache or default_cache())
        self.budget, self.attempts = Budget(limits), attempts
        self.counts: Counter[str] = Counter()
        self._interrupted = threading.Event()
        self._sleep, self._clock = sleep or self._interrupted.wait, clock
        self._pool, self._lock = ThreadPoolExecutor(workers), threading.RLock()
        self._flying: dict[str, Future[Answer]] = {}
        self._open_at = 0.0  # before this moment nothing is sent: a server asked for it
        self._row = 0  # requests that failed one after another
        self._stop = ""  # why nothing more is sent

    def complete(self, conversations: Sequence[Conversation]) -> list[Completion]:
        """The answers to conversations, in their order; equal ones are asked once.

        Raises UserError, after what was under way has ended, if some failed for good, if the cap is
        reached, or if the server accepts nothing (a wrong key, an unknown model): how many answers
        are there, how many are not, and why. Those that are there are in the cache.
        """
        requests = [self._request(*conversation) for conversation in conversations]
        names = [key(request) for request in requests]
        self._stop, self._row = "", 0
        self._interrupted.clear()
        with self.cache.hold():
            known = {name for name in names if self.cache.get(name)}
            for name in known:
                self.budget.count(name, _amount(self.cache.get(name)))
            todo = {n: r for n, r in zip(names, requests, strict=True) if n not in known}
            flights = {name: self._fly(name, request) for name, request in todo.items()}
            self._wait([flight for flight, _ in flights.values()])
            self._check([flight for flight, _ in flights.values()], len(set(names)))
        return self._handed_out(names, {name for name, (_, here) in flights.items() if here})

    def report(self) -> dict[str, Any]:
        """What was counted so far.

        ``sent``, ``bought``, ``cached``, failed attempts by cause, ``tokens`` and ``cost`` paid,
        ``lost tokens`` and ``lost cost`` (the most that attempts without an answer may have cost),
        and the ``problems`` of the cache file.
        """
        paid, lost = self.budget.paid, self.budget.lost
        return {
            **{name: self.counts[name] for name in ("sent", "bought", "cached")},
            **{name: n for name, n in sorted(self.counts.items()) if name.startswith("failed: ")},
            **{"tokens": paid.tokens, "cost": paid.cost},
            **{"lost tokens": lost.tokens, "lost cost": lost.cost},
            "problems": list(self.cache.problems),
        }

    # ---- one request -----------------------------------------------------------------------------

    def _request(self, messages: list[Message], options: dict[str, Any]) -> dict[str, Any]:
        if bad := {"model", "messages", "n", "stream"} & options.keys():
            raise UserError(f"{', '.join(sorted(bad))} cannot be an option of a request.")
        request = {"model": self.model, "messages": messages, **options}
        if self.budget.limits != UNLIMITED and bound(request, self.prices) is None:
            raise UserError("A cap needs max_tokens (or max_completion_tokens) in the options.")
        return request

    def _fly(self, name: str, request: dict[str, Any]) -> tuple[Future[Answer], bool]:
        """The request under way, and whether this call has sent it on its way."""
        with self._lock:
            if name in self._flying:
                return self._flying[name], False
            if answer := self.cache.get(name):  # another thread has bought it meanwhile
                flight: Future[Answer] = Future()
                flight.set_result(answer)
                return flight, False
            flight = self._flying[name] = self._pool.submit(self._land, name, request)
            flight.add_done_callback(lambda _: self._flying.pop(name, None))
            return flight, True

    def _land(self, name: str, request: dict[str, Any]) -> Answer:
        """The answer to a request; a failure may be a reason to send no more of them."""
        try:
            with self.cache.hold():  # even if whoever asked is gone by then
                answer = self._ask(name, request)
            self._row = 0
            return answer
        except Failed as failure:
            self._row += 1
            if failure.fatal:
                self._stop = str(failure)
            elif self._row >= GIVE_UP:
                self._stop = f"{self._row} requests failed one after another"
            raise
        except CapReached as reached:
            self._stop = str(reached)
            raise

    def _ask(self, name: str, request: dict[str, Any]) -> Answer:
        """Send a request until it is answered, ``attempts`` times at most; keep the answer."""
        reserved = bound(request, self.prices) or NOTHING
        for attempt in range(self.attempts):
            self._sleep_until_open()
            self.budget.reserve(reserved)
            if self._stop:
                self.budget.release(reserved)
                raise NotSent(self._stop)
            try:
                answer = self._attempt(name, request, reserved)
            except BaseException as error:
                charged = not isinstance(error, Failed) or error.charged
                self.budget.release(reserved, lost=charged)
                if not isinstance(error, Failed):
                    raise
                self._count(f"failed: {error.kind}")
                if not error.retry or attempt == self.attempts - 1:
                    raise
                self._back_off(name, attempt, error)
            else:
                self.budget.release(reserved, name, _amount(answer))
                return answer
        raise AssertionError("a request has at least one attempt")

    def _attempt(self, name: str, request: dict[str, Any], reserved: Amount) -> Answer:
        """One attempt; its answer is on the disk when this returns."""
        self._count("sent")
        answer = self._send(request)
        if answer.prompt_tokens is None:  # the server does not say: the most that it can be
            tokens, cost = reserved
            answer = answer._replace(prompt_tokens=tokens, completion_tokens=0, cost=cost)
        else:
            cost = self.prices.of(answer.prompt_tokens, answer.completion_tokens)
            answer = answer._replace(cost=cost)
        self.cache.put(name, request, answer)
        self._count("bought")
        return answer

    def _count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    # ---- waiting ---------------------------------------------------------------------------------

    def _sleep_until_open(self) -> None:
        if (seconds := self._open_at - self._clock()) > 0:
            self._sleep(seconds)

    def _back_off(self, name: str, attempt: int, failure: Failed) -> None:
        """Wait as long as the server asks, all requests alike; else twice as long each time.

        The second kind of wait is shortened by up to half at random, so that requests that failed
        together do not return together. Raises the failure if the server asks for too long.
        """
        if failure.wait is not None:
            if failure.wait > PATIENCE:
                raise Failed(f"asked to wait {failure.wait:.0f} s", str(failure)) from None
            self._open_at = max(self._open_at, self._clock() + failure.wait)
        else:
            longest = min(FIRST_WAIT * 2**attempt, LAST_WAIT)
            self._sleep(longest * rng(0, f"back off/{name}", attempt).uniform(0.5, 1.0))

    def _wait(self, flights: list[Future[Answer]]) -> None:
        """Wait for all; an interruption stops what has not been sent."""
        try:
            for _ in tqdm(as_completed(flights), "answers", len(flights), disable=not flights):
                pass
        except BaseException:
            self._stop = "interrupted"
            self._interrupted.set()
            for flight in flights:
                flight.cancel()
            raise

    # ---- the end ---------------------------------------------------------------------------------

    def _check(self, flights: list[Future[Answer]], total: int) -> None:
        """UserError that counts what is there and what is not, unless everything is."""
        errors = [error for flight in flights if (error := flight.exception())]
        failed = [error for error in errors if isinstance(error, Failed)]
        for error in errors:
            if not isinstance(error, Failed | NotSent | CapReached):
                raise error
        if not errors:
            return
        there = f"{total - len(errors)} of {total} answers are there, kept in {self.cache.path}"
        left = len(errors) - len(failed)
        if any(isinstance(error, CapReached) for error in errors):
            raise UserError(f"{self._stop}: {there}; raise the cap and ask again for the rest.")
        if any(error.fatal for error in failed):
            raise UserError(f"{self._stop} ({there}).")
        causes = "; ".join(list(dict.fromkeys(map(str, failed)))[:3]) or self._stop
        unsent = f", {left} were then not sent" if left else ""
        raise UserError(
            f"{len(failed)} requests failed ({causes}){unsent}: {there}; ask again for the rest."
        )

    def _handed_out(self, names: list[str], bought: set[str]) -> list[Completion]:
        """The answers of all requests; one bought now is not cached where it comes first."""
        completions = []
        for name in names:
            answer, cached = self.cache.get(name), name not in bought
            bought.discard(name)
            self.counts["cached"] += cached
            amount = _amount(answer)
            completions.append(Completion(answer.text, answer.finish, *amount, cached))
        return completions


def _amount(answer: Answer) -> Amount:
    return Amount(answer.tokens, answer.cost)
