"""The claims: what is claimed, and the verdict that follows from what was measured.

``data/claims.yaml`` says what would count as evidence before there is any; a chapter's run says
what was measured (``ledger``); ``verdict`` is a function of the two, so nobody words a result by
hand.
"""

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dalle3lib import UserError, paths
from dalle3lib.config import nearest
from dalle3lib.files import digest

VERDICTS = tuple(
    "replicated,supported,direction only,inconclusive,null,contradicted,"
    "pilot,no verdict,not tested".split(",")
)
SOURCES = ("paper", "extension")
DIRECTIONS = ("greater", "less", "equal", "two-sided")
FAMILY_SIZE = 6
ALPHA = 0.05
BOOKKEEPING = ("chapter", "needs", "frozen")  # may change after a claim is frozen


@dataclass(frozen=True)
class Claim:
    """One claim; the fields are explained at the head of ``data/claims.yaml``."""

    id: str
    source: str
    section: str
    claim: str
    paper: str
    metric: str
    unit: str
    direction: str
    smallest_effect: float
    family: str
    min_seeds: int
    chapter: str
    needs: str
    frozen: str | None


# --- reading the claims --------------------------------------------------------------------------


def load(path: str | Path | None = None) -> list[Claim]:
    """The claims of ``data/claims.yaml`` (or ``path``), checked, in their order.

    Raises UserError naming the claim for a missing, unknown or wrong field, an id used twice, an
    unknown chapter or family, a family of more than six, or a claim changed after it was frozen.
    """
    path = Path(path or paths.ROOT / "data" / "claims.yaml")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        chapters, families = list(document["chapters"]), list(document["families"])
        entries = [dict(entry) for entry in document["claims"]]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a readable list of claims ({reason}).") from None
    claims = [_claim(entry, number) for number, entry in enumerate(entries, start=1)]
    for claim in claims:
        _check_known(claim, "chapter", claim.chapter, chapters)
        _check_known(claim, "family", claim.family, families)
    for name, count in Counter(claim.id for claim in claims).items():
        if count > 1:
            raise UserError(f"Claim {name!r} is there {count} times; every id must be unique.")
    for family, count in Counter(claim.family for claim in claims).items():
        if count > FAMILY_SIZE:
            last = [claim.id for claim in claims if claim.family == family][-1]
            raise UserError(
                f"Claim {last!r} makes family {family!r} {count} claims large; "
                f"{FAMILY_SIZE} is the most, so open another family."
            )
    return claims


def _claim(entry: dict[str, Any], number: int) -> Claim:
    """One entry of the file as a Claim; UserError naming it if a field is not as it must be."""
    name = entry.get("id") or f"number {number}"
    fields = {field.name: field.type for field in dataclasses.fields(Claim)}
    for key in entry:
        if key not in fields:
            raise UserError(f"Claim {name!r} has an unknown field {key!r}{nearest(key, fields)}")
    for key, kind in fields.items():
        if key not in entry:
            raise UserError(f"Claim {name!r} has no field {key!r}; add it to data/claims.yaml.")
        value = entry[key]
        if kind is float and type(value) is int:
            entry[key] = value = float(value)
        empty = isinstance(value, str) and not value.strip()
        if empty or not isinstance(value, kind) or isinstance(value, bool):
            wanted = getattr(kind, "__name__", str(kind))
            raise UserError(f"Claim {name!r}: field {key!r} must be {wanted}, not {value!r}.")
    claim = Claim(**entry)
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", claim.id):
        raise UserError(f"Claim {name!r}: an id is lower-case words joined by hyphens.")
    _check_known(claim, "source", claim.source, SOURCES)
    _check_known(claim, "direction", claim.direction, DIRECTIONS)
    if not (claim.smallest_effect >= 0 and claim.min_seeds >= 0):
        raise UserError(f"Claim {name!r}: smallest_effect and min_seeds cannot be negative.")
    if claim.frozen is not None and claim.frozen != claim_hash(claim):
        raise UserError(
            f"Claim {name!r} was changed after it was frozen; restore it, or add a new claim."
        )
    return claim


def _check_known(claim: Claim, field: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError unless a claim's field holds one of the known words."""
    if value not in known:
        raise UserError(f"Claim {claim.id!r}: unknown {field} {value!r}{nearest(value, known)}")


def claim_hash(claim: Claim) -> str:
    """SHA-256 of what a claim says and how it will be judged, as 64 hexadecimal digits.

    Where the evidence stands (``chapter``), what is missing (``needs``) and the hash itself
    (``frozen``) are left out: they may change without changing the claim.
    """
    content = dataclasses.asdict(claim)
    return digest({key: value for key, value in content.items() if key not in BOOKKEEPING})


# --- the verdict ---------------------------------------------------------------------------------


def verdict(
    claim: Claim,
    effect: float,
    interval: Sequence[float],
    p_adjusted: float | None,
    seeds: int,
    pilot: bool = False,
    equivalence_p: float | None = None,
) -> str:
    """The verdict on a claim: one of ``VERDICTS``, with a number in brackets where it needs one.

    ``effect`` and its 95 % ``interval`` (low, high) are in the claim's unit, signed as its metric
    says. ``p_adjusted`` is the Holm-adjusted p value in the claimed direction (None: untested,
    so never enough), ``equivalence_p`` that of the test for "no difference" within the smallest
    effect of interest (None: the whole interval must lie within it).

    ``pilot``: the seeds were a pilot's. ``no verdict (n of m seeds)``: fewer than the claim asks
    for. ``replicated``: interval beyond 0 in the claimed direction, adjusted p ≤ .05, effect at
    least the smallest of interest. ``direction only``: interval beyond 0, but one of the other
    two fails. ``contradicted``: interval beyond 0 the other way. ``null``: no difference of
    interest. ``inconclusive``: anything else. A claim of equality is replicated where another is
    null, and contradicted when the interval lies wholly beyond the smallest effect.

    An extension that meets the three conditions of ``replicated`` is ``supported``: it stands on
    the same evidence, but there was no earlier finding that could have been repeated.
    """
    if pilot:
        return "pilot"
    if seeds < claim.min_seeds:
        return f"no verdict ({seeds} of {claim.min_seeds} seeds)"
    passed = "replicated" if claim.source == "paper" else "supported"
    low, high = interval
    if claim.direction == "less" or (claim.direction == "two-sided" and effect < 0):
        effect, low, high = -effect, -high, -low
    margin = claim.smallest_effect
    no_difference = -margin <= low and high <= margin
    if equivalence_p is not None:
        no_difference = equivalence_p <= ALPHA
    if claim.direction == "equal":
        beyond = low > margin or high < -margin
        return passed if no_difference else "contradicted" if beyond else "inconclusive"
    if low > 0:
        significant = p_adjusted is not None and p_adjusted <= ALPHA
        return passed if significant and effect >= margin else "direction only"
    if high < 0:
        return "contradicted"
    return "null" if no_difference else "inconclusive"


def word(text: str) -> str:
    """A verdict without its bracket: ``no verdict (1 of 10 seeds)`` is ``no verdict``."""
    return text.partition(" (")[0]
