"""A cap on tokens and money that concurrent requests pass by at most one request.

What an answer costs is known when it is there, so each request reserves the most that it can cost
before it is sent. If paid, lost and reserved amounts together stay below the cap, the sum cannot
pass it. A request whose reservation does not fit waits until nothing else is under way and is sent
alone if the cap is not reached yet: that one may pass it.
"""

import threading
from typing import Any, NamedTuple

MARGIN = 64  # tokens that a server's own template may add
PER_MESSAGE = 16  # tokens around each message
IMAGE_TOKENS = 2000  # for an image of moderate size; a request may cost more where models take more


class CapReached(Exception):
    """The cap allows no further request."""


class Amount(NamedTuple):
    """Tokens and money."""

    tokens: int
    cost: float

    def plus(self, other: "Amount") -> "Amount":
        """The sum."""
        return Amount(self.tokens + other.tokens, self.cost + other.cost)

    def minus(self, other: "Amount") -> "Amount":
        """The difference."""
        return Amount(self.tokens - other.tokens, self.cost - other.cost)


NOTHING = Amount(0, 0.0)


class Prices(NamedTuple):
    """What a million tokens cost, read and written; in any currency, since no price is built in."""

    prompt: float = 0.0
    completion: float = 0.0

    def of(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The cost of an answer."""
        return (self.prompt * prompt_tokens + self.completion * completion_tokens) / 1e6


class Limits(NamedTuple):
    """Caps on tokens and on money; None is no cap."""

    tokens: int | None = None
    cost: float | None = None

    def above(self, amount: Amount) -> bool:
        """Whether an amount is below both caps."""
        pairs = ((amount.tokens, self.tokens), (amount.cost, self.cost))
        return all(cap is None or spent < cap for spent, cap in pairs)

    def hold(self, amount: Amount) -> bool:
        """Whether an amount passes neither cap."""
        pairs = ((amount.tokens, self.tokens), (amount.cost, self.cost))
        return all(cap is None or spent <= cap for spent, cap in pairs)


UNLIMITED = Limits()
FREE = Prices()


def bound(request: dict[str, Any], prices: Prices) -> Amount | None:
    """The most that a request can cost; None if its options set no ``max_tokens``.

    A token is at least one byte of text; an image counts as ``IMAGE_TOKENS``.
    """
    written = request.get("max_completion_tokens", request.get("max_tokens"))
    if written is None:
        return None
    read = MARGIN
    for message in request["messages"]:
        read += PER_MESSAGE
        content = message["content"]
        for part in [content] if isinstance(content, str) else content:
            text = part if isinstance(part, str) else part.get("text")
            read += IMAGE_TOKENS if text is None else len(text.encode())
    return Amount(read + written, prices.of(read, written))


class Budget:
    """What was paid, what may have been lost, what is under way, and the caps."""

    def __init__(self, limits: Limits = UNLIMITED) -> None:
        self.limits = limits
        self.paid = self.lost = self._earlier = self._flying = NOTHING
        self._under_way = 0
        self._counted: set[str] = set()
        self._changed = threading.Condition()

    def count(self, name: str, amount: Amount) -> None:
        """Let an answer that was bought earlier count towards the caps, once."""
        with self._changed:
            if name not in self._counted:
                self._counted.add(name)
                self._earlier = self._earlier.plus(amount)

    def reserve(self, amount: Amount) -> None:
        """Set an amount aside, waiting for others if need be; CapReached if there is no room."""
        with self._changed:
            while not self.limits.hold(self._spent().plus(self._flying).plus(amount)):
                if not self._under_way:
                    if self.limits.above(self._spent()):
                        break
                    raise CapReached(f"The cap of {self._caps()} is reached")
                self._changed.wait()
            if not self.limits.above(self._spent()):  # nothing is free at a cap of 0
                raise CapReached(f"The cap of {self._caps()} is reached")
            self._flying = self._flying.plus(amount)
            self._under_way += 1

    def release(
        self, amount: Amount, name: str = "", paid: Amount = NOTHING, lost: bool = False
    ) -> None:
        """End a reservation: an answer was paid, or none came, for which it may have been lost."""
        with self._changed:
            self._flying = self._flying.minus(amount)
            self._under_way -= 1
            self.paid = self.paid.plus(paid)
            self.lost = self.lost.plus(amount if lost else NOTHING)
            self._counted.add(name)
            self._changed.notify_all()

    def _spent(self) -> Amount:
        return self._earlier.plus(self.paid).plus(self.lost)

    def _caps(self) -> str:
        tokens = f"{self.limits.tokens:,} tokens" if self.limits.tokens is not None else ""
        cost = f"{self.limits.cost:g} in money" if self.limits.cost is not None else ""
        return " and ".join(filter(None, (tokens, cost)))
