"""The claims ledger: what is claimed, what the runs measured, and the verdict that follows.

``data/claims.yaml`` says what would count as evidence before there is any; a chapter's run says
what was measured; ``verdict`` is a function of the two, so nobody words a result by hand.
"""

import dataclasses
import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dalle3lib import UserError, paths, runs, stats
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

    ``pilot``: the seeds were a pilot's. ``no verdict (n seeds)``: fewer seeds than the claim asks
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
        return f"no verdict ({seeds} seed{'' if seeds == 1 else 's'})"
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
    """A verdict without its bracket: ``no verdict (1 seed)`` is ``no verdict``."""
    return text.partition(" (")[0]


# --- the ledger ----------------------------------------------------------------------------------


def ledger(root: Path | None) -> list[dict[str, Any]]:
    """One row per claim: what is claimed, what the finished runs under ``root`` say, the verdict.

    Keys: id, source, section, claim, paper, ours (a number or None), interval ([low, high] or
    None), seeds, verdict, chapter, run (notebook/run id, or None), unit. With no root, or without
    evidence, a claim is ``not tested (needs …)``. Raises UserError for a damaged run or one that
    reports an unknown claim.
    """
    return judged(evidence(root, {claim.id: claim for claim in load()}) if root else {})


def judged(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per claim, as of ``ledger``, from what was measured, by claim id (see ``evidence``).

    Of an entry without a run the row has no run.
    """
    claims = load()
    adjusted = _adjusted(claims, found)
    return [_row(claim, found.get(claim.id), adjusted.get(claim.id)) for claim in claims]


def evidence(root: Path, claims: dict[str, Claim]) -> dict[str, dict[str, Any]]:
    """What finished runs under ``root`` measured, by claim id, checked against the claims.

    Each is an entry of ``claims`` in a ``results.json`` (effect, interval, seeds, unit; where
    there are seeds enough also p, equivalence_p, pilot) plus ``run``. Only a chapter's run with
    the preset's own parameters counts, the one called ``main``: others are explorations. Of runs
    on other data than the world, for which the claims are written, only what asks for no seeds
    counts, as it was counted in what others released.
    """
    found: dict[str, dict[str, Any]] = {}
    for manifest in sorted(Path(root).glob("*/main/manifest.json")):
        chapter, run = manifest.parent.parent.name, manifest.parent
        elsewhere = runs.load(run)["parameters"].get("data", "world") != "world"
        for name, entry in runs.results(run).get("claims", {}).items():
            if name not in claims:
                raise UserError(
                    f"{run} reports on an unknown claim {name!r}{nearest(name, claims)}"
                )
            problem = _problem(claims[name], entry, chapter)
            if problem:
                raise UserError(f"{run}, claim {name!r}: {problem}; correct its notebook.")
            if elsewhere and claims[name].min_seeds:
                continue
            found[name] = {**entry, "run": f"{chapter}/main"}
    return found


def _problem(claim: Claim, entry: dict[str, Any], chapter: str) -> str | None:
    """What is wrong with a run's entry for a claim, or None."""
    if claim.chapter != chapter:
        return f"it belongs to chapter {claim.chapter}"
    try:
        (low, high), seeds, unit = entry["interval"], entry["seeds"], entry["unit"]
        chances = [entry.get(name) for name in ("p", "equivalence_p")]
        sound = np.isfinite([entry["effect"], low, high]).all() and low <= high
        sound = sound and type(seeds) is int and seeds >= 0
        sound = sound and all(p is None or 0 <= p <= 1 for p in chances)
    except (KeyError, TypeError, ValueError, AttributeError):
        sound = False
    if not sound:
        return "it must give a finite effect, an interval [low, high], seeds and a unit"
    return None if unit == claim.unit else f"its unit is {claim.unit!r}, not {unit!r}"


def _adjusted(claims: list[Claim], found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Holm-adjusted p values by claim id, for the claims that have one.

    A claim of the family without a p value counts as p = 1: a family tested by half must not be
    easier to pass than a whole one. Claims of equality are tested by ``equivalence_p`` instead.
    """
    adjusted = {}
    for family in {claim.family for claim in claims}:
        ids = [claim.id for claim in claims if claim.family == family]
        raw = [found.get(name, {}).get("p") for name in ids]
        values = stats.holm([1 if p is None else p for p in raw])
        pairs = zip(ids, raw, values, strict=True)
        adjusted |= {name: float(value) for name, p, value in pairs if p is not None}
    return adjusted


def _row(claim: Claim, entry: dict[str, Any] | None, p_adjusted: float | None) -> dict[str, Any]:
    """One row of the ledger."""
    row = {name: getattr(claim, name) for name in ("id", "source", "section", "claim", "paper")}
    entry = entry or {}
    said = f"not tested (needs {claim.needs})"
    if entry:
        effect, interval, seeds = entry["effect"], entry["interval"], entry["seeds"]
        pilot, same = entry.get("pilot", False), entry.get("equivalence_p")
        said = verdict(claim, effect, interval, p_adjusted, seeds, pilot, same)
    row |= {"ours": entry.get("effect"), "interval": entry.get("interval")}
    row |= {"seeds": entry.get("seeds"), "verdict": said, "chapter": claim.chapter}
    return row | {"run": entry.get("run"), "unit": claim.unit}


def tally(rows: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows have each verdict that some row has, in the order of ``VERDICTS``."""
    counts = Counter(word(row["verdict"]) for row in rows)
    return {name: counts[name] for name in VERDICTS if counts[name]}


# --- for readers ---------------------------------------------------------------------------------


def cells(row: dict[str, Any]) -> dict[str, str]:
    """A row as short plain texts by column title; a dash where there is nothing."""
    interval = row["interval"]
    return {
        "claim": row["id"],
        "in words": row["claim"],
        "section": row["section"],
        "paper": row["paper"] if row["source"] == "paper" else "(extension)",
        "ours": "–" if row["ours"] is None else f"{row['ours']:+.3g} {row['unit']}",
        "95 % interval": f"[{interval[0]:+.3g}, {interval[1]:+.3g}]" if interval else "–",
        "seeds": str(row["seeds"] or "–"),  # none where nothing was trained
        "verdict": row["verdict"],
        "chapter": row["chapter"],
        "run": row["run"] or "–",
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The ledger as plain text for a terminal, by chapter, then the count of each verdict."""
    columns = ("claim", "paper", "ours", "95 % interval", "seeds", "verdict")
    texts = [cells(row) for row in rows]
    width = {name: max(map(len, [name, *(text[name] for text in texts)])) for name in columns}
    lines = ["  ".join(name.ljust(width[name]) for name in columns).rstrip()]
    for chapter in sorted({row["chapter"] for row in rows}):
        lines += ["", chapter]
        for text in texts:
            if text["chapter"] == chapter:
                lines.append("  ".join(text[name].ljust(width[name]) for name in columns).rstrip())
    counts = ", ".join(f"{count} {name}" for name, count in tally(rows).items())
    return "\n".join([*lines, "", f"{len(rows)} claims: {counts}."])


def markdown(rows: list[dict[str, Any]]) -> str:
    """The ledger as a Markdown table for the book; all text is escaped, so none acts as markup."""
    if not rows:
        return "There are no claims."
    texts = [cells(row) for row in rows]
    lines = [[name.capitalize() for name in texts[0]], ["---"] * len(texts[0])]
    lines += [[_escaped(value) for value in text.values()] for text in texts]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _escaped(text: str) -> str:
    """A text as one Markdown table cell: one line, no HTML, every mark of Markdown a plain sign."""
    plain = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\`*_{}\[\]()#$|~^:@])", r"\\\1", plain)


def main(root: Path, as_json: bool) -> None:
    """Print the ledger of the runs under ``root``: a table, or the rows as a JSON list."""
    rows = ledger(root)
    if as_json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    print(table(rows))
    if all(row["run"] is None for row in rows):
        print(f"No finished run under {root} reports on a claim yet; `make book` makes them.")
    print("Every verdict is said of this data and these foundations.")
