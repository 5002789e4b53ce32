"""The ledger: what the runs measured of each claim, and the verdict that follows.

A run's ``results.json`` has entries for the claims of its chapter. Here they are checked against
``claims``, their p values are corrected by family, and every claim becomes one row.
"""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from dalle3lib import UserError, claims, runs, stats
from dalle3lib.claims import Claim
from dalle3lib.config import nearest


def rows(root: Path | None) -> list[dict[str, Any]]:
    """One row per claim: what is claimed, what the finished runs under ``root`` say, the verdict.

    Keys: id, source, section, claim, paper, ours (a number or None), interval ([low, high] or
    None), seeds, verdict, chapter, run (notebook/run id, or None), unit. With no root, or without
    evidence, a claim is ``not tested (needs …)``. Raises UserError for a damaged run or one that
    reports an unknown claim.
    """
    return judged(evidence(root) if root else {})


def judged(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per claim, as of ``rows``, from what was measured, by claim id (see ``evidence``).

    Of an entry without a run the row has no run.
    """
    known = claims.load()
    adjusted = _adjusted(known, found)
    return [_row(claim, found.get(claim.id), adjusted.get(claim.id)) for claim in known]


def evidence(root: Path) -> dict[str, dict[str, Any]]:
    """What finished runs under ``root`` measured, by claim id, checked against the claims.

    Each is an entry of ``claims`` in a ``results.json`` (effect, interval, seeds, unit; where
    there are seeds enough also p, equivalence_p, pilot) plus ``run``. Only a chapter's run with
    the preset's own parameters counts, the one called ``main``: others are explorations. Of runs
    on other data than the world, for which the claims are written, only what asks for no seeds
    counts, as it was counted in what others released.
    """
    known = {claim.id: claim for claim in claims.load()}
    found: dict[str, dict[str, Any]] = {}
    for manifest in sorted(Path(root).glob("*/main/manifest.json")):
        chapter, run = manifest.parent.parent.name, manifest.parent
        elsewhere = runs.load(run)["parameters"].get("data", "world") != "world"
        for name, entry in runs.results(run).get("claims", {}).items():
            if name not in known:
                raise UserError(f"{run} reports on an unknown claim {name!r}{nearest(name, known)}")
            problem = _problem(known[name], entry, chapter)
            if problem:
                raise UserError(f"{run}, claim {name!r}: {problem}; correct its notebook.")
            if elsewhere and known[name].min_seeds:
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


def _adjusted(known: list[Claim], found: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Holm-adjusted p values by claim id, for the claims that have one.

    A claim of the family without a p value counts as p = 1: a family tested by half must not be
    easier to pass than a whole one. Claims of equality are tested by ``equivalence_p`` instead.
    """
    adjusted = {}
    for family in {claim.family for claim in known}:
        ids = [claim.id for claim in known if claim.family == family]
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
        said = claims.verdict(claim, effect, interval, p_adjusted, seeds, pilot, same)
    row |= {"ours": entry.get("effect"), "interval": entry.get("interval")}
    row |= {"seeds": entry.get("seeds"), "verdict": said, "chapter": claim.chapter}
    return row | {"run": entry.get("run"), "unit": claim.unit}


def tally(found: list[dict[str, Any]]) -> dict[str, int]:
    """How many rows have each verdict that some row has, in the order of ``claims.VERDICTS``."""
    counts = Counter(claims.word(row["verdict"]) for row in found)
    return {name: counts[name] for name in claims.VERDICTS if counts[name]}


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


def table(found: list[dict[str, Any]]) -> str:
    """The ledger as plain text for a terminal, by chapter, then the count of each verdict."""
    columns = ("claim", "paper", "ours", "95 % interval", "seeds", "verdict")
    texts = [cells(row) for row in found]
    width = {name: max(map(len, [name, *(text[name] for text in texts)])) for name in columns}
    lines = ["  ".join(name.ljust(width[name]) for name in columns).rstrip()]
    for chapter in sorted({row["chapter"] for row in found}):
        lines += ["", chapter]
        for text in texts:
            if text["chapter"] == chapter:
                lines.append("  ".join(text[name].ljust(width[name]) for name in columns).rstrip())
    counts = ", ".join(f"{count} {name}" for name, count in tally(found).items())
    return "\n".join([*lines, "", f"{len(found)} claims: {counts}."])


def show(root: Path, as_json: bool) -> None:
    """Print the ledger of the runs under ``root``: a table, or the rows as a JSON list."""
    found = rows(root)
    if as_json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    print(table(found))
    if all(row["run"] is None for row in found):
        print(f"No finished run under {root} reports on a claim yet; `make book` makes them.")
    print("Every verdict is said of this data and these foundations.")
