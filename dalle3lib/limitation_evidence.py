"""What the claims of chapter 12 stand on beside the study: one seed drawn now, the captions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import arm, stats, study_evidence, study_results, upsample_scores
from dalle3lib.caption_facts import Marks, mark
from dalle3lib.images import Record
from dalle3lib.limitations import KINDS
from dalle3lib.study_evidence import PAIRS, PLACED
from dalle3lib.study_results import Results
from dalle3lib.world import reader

STUDIED = ("spatial-below-attributes", "printed-text-poor", "counting-below-attributes")
PLACE_ROW = "place of two objects, where these are right"
LOOKS = ("shape", "colour", "texture", "size")  # attributes of an object that are no place


def captions(dsc: Sequence[str], ssc: Sequence[str], facts: Sequence[dict]) -> dict[str, dict]:
    """The two claims about captions, of one captioner of each kind: entries of the ledger by id.

    ``dsc`` and ``ssc`` are the captions of the same pictures, ``facts`` these pictures'. Shares are
    of each caption that states both attributes and places.
    """
    marks = [(mark(a, f), mark(b, f)) for a, b, f in zip(dsc, ssc, facts, strict=True)]
    shares = np.array([_right(long, LOOKS) - _right(long, ("place",)) for long, _ in marks])
    false = [float(len(long.false) - len(short.false)) for long, short in marks]
    found = {
        "captioner-spatial-below-attributes": (100 * shares[np.isfinite(shares)], "% points"),
        "dsc-invents-more-than-ssc": (np.array(false), "facts"),
    }
    return {
        name: upsample_scores.effect(values, name, unit, "one captioner of each kind")
        for name, (values, unit) in found.items()
    }


def _right(marks: Marks, attributes: Sequence[str]) -> float:
    """Which share of a caption's statements about some attributes is true; NaN of none."""
    stated = sum(marks.stated[a] for a in attributes)
    return sum(marks.right[a] for a in attributes) / stated if stated else np.nan


def as_results(
    records: Sequence[Record],
    texts: dict[str, list[str]],
    facts: dict[str, dict[str, list[dict]]],
    seed: int,
) -> Results:
    """What was read in one seed's pictures, in the form of the study's results.

    ``facts`` are what the reader reads, by arm (kind-ratio) and kind of prompt, one a record.
    """
    asked = pd.DataFrame(
        [(kind, t) for kind in KINDS for t in texts[kind]], columns=["kind", "prompt"]
    )
    tables: dict[str, dict] = {}
    for name, by_kind in facts.items():
        rows = [
            reader.recall(read, record.facts)
            for kind in KINDS
            for read, record in zip(by_kind[kind], records, strict=True)
        ]
        tables[name] = {seed: pd.DataFrame(rows).assign(kind=asked.kind, step=0)}
    return Results("live", tables, {}, study_results.describe(asked, list(records)))


def one_seed(results: Results) -> dict[str, dict]:
    """Entries of the claims ``STUDIED`` from one seed's results, intervals over prompts.

    A claim whose arm or facts are lacking is left out.
    """
    found = {}
    for name in STUDIED:
        how = study_evidence.CLAIMS[name]
        if set(how.arms) <= set(results.tables):
            values = how.differences(study_evidence.Scores(results, how.arms))[0]
            values = values[~np.isnan(values)]
            if len(values) > 1 and np.isfinite(values).all():
                found[name] = upsample_scores.effect(values, name, note=how.note)
    return found


def seed_shares(results: Results) -> dict[str, pd.DataFrame]:
    """What pictures from descriptive prompts show, in per cent over seeds: a table by arm's label.

    Columns value, low and high. ``PLACE_ROW`` is the share of the pairs found that stand where
    asked.
    """
    kind, tables = "descriptive", {}
    for name in sorted(results.tables, key=_order):
        _, arrays = study_results.matrices(results, [name])
        means = {m: np.nanmean(arrays[name, kind, m], axis=1) for m in (PAIRS, "count", "word")}
        two = (results.prompts[results.prompts.kind == kind].objects == 2).to_numpy()
        pair, at = (arrays[name, kind, m][:, two].mean(axis=1) for m in (PAIRS, PLACED))
        rows = {"colour and shape": means[PAIRS], "number of objects": means["count"]}
        rows |= {PLACE_ROW: at / pair, "printed word": means["word"]}
        found = {row: stats.over_seeds(100 * shares) for row, shares in rows.items()}
        tables[arm.label(f"{name}-0")] = pd.DataFrame(found, index=["value", "low", "high"]).T
    return tables


def _order(name: str) -> tuple[int, int]:
    """The place of an arm (kind-ratio) among others: original only, SSC, DSC by ratio."""
    kind, ratio = name.rsplit("-", 1)
    return ("original", "ssc", "dsc").index(kind), int(ratio)


def summary(
    places: pd.DataFrame, numbers: pd.DataFrame, right: pd.Series, errors: dict, name: str
) -> list[str]:
    """What the page measured of one arm, a sentence for each limitation.

    ``places`` are values in per cent by (arm, wording) with columns pairs, both and right;
    ``numbers`` by (arm, asked) with a column exact; ``right`` words of the world right by station;
    ``errors`` are ``limitations.wrong`` of "DSC captions" and of the arm.
    """
    brief, full = (places.loc[(name, w)] for w in ("relation words", "full description"))
    wrong = {what: table.value for what, table in errors.items()}
    at = {what: [wrong[what][a] for a in LOOKS[:3]] for what in ("DSC captions", name)}
    counts = numbers.exact.xs(name, level=0)
    return [
        f"Places: both objects are in {brief.both:.0f} % of the pictures of short sentences and in "
        f"{full.both:.0f} % of those of full descriptions; where both are, {_said(brief.right)} "
        f"and {_said(full.right)} stand as asked.",
        "Numbers: exactly as many of the kind in "
        + ", ".join(f"{share:.0f} % ({asked} asked)" for asked, share in counts.items())
        + ".",
        "Printed words right: " + ", ".join(f"{s} {v:.0f} %" for s, v in right.items()) + ".",
        "Wrong shapes, colours and textures: "
        + "; ".join(f"{k} " + ", ".join(f"{v:.0f}" for v in vs) for k, vs in at.items())
        + f" (%). Wrong words: {wrong['DSC captions']['printed word']:.0f} % of those that DSC "
        "captions state.",
    ]


def _said(share: float) -> str:
    """A share in words: of nothing there is none."""
    return f"{share:.0f} %" if np.isfinite(share) else "(no picture has both)"
