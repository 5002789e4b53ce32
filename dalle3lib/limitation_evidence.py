"""What the claims of chapter 12 stand on: the study's seeds, one seed drawn now, the captions."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError, stats, study_evidence, study_results, upsample_scores
from dalle3lib.caption_facts import Marks, mark
from dalle3lib.images import Record
from dalle3lib.limitations import KINDS
from dalle3lib.randomness import rng
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


def over_seeds() -> tuple[dict[str, dict], Results | None]:
    """The study's entries of the claims ``STUDIED``, and its results, the main stage's before the
    pilot's; nothing and None where there are no committed results."""
    found, latest = {}, None
    for stage in ("pilot", "main"):
        try:
            latest = study_results.load(stage)
        except UserError:
            if study_results.names(stage):  # they are there but cannot be used
                raise
            continue
        found |= study_evidence.evidence(stage, latest, STUDIED)
    return found, latest


def told(entries: dict[str, dict]) -> pd.DataFrame:
    """Entries of the claims ``STUDIED`` as a table, with a column that says what they mean."""
    ends = [entry["interval"] for entry in entries.values()]
    said = ["yes" if low > 0 else "no: easier" if high < 0 else "unclear" for low, high in ends]
    table = pd.DataFrame(entries).T.reindex(
        columns=["effect", "interval", "unit", "seeds", "pilot"]
    )
    return table.assign(**{"harder than colour and shape": said})


def seed_shares(results: Results, kind: str = "descriptive") -> dict[str, pd.DataFrame]:
    """What pictures from one kind of prompt show, as ``percent`` over seeds, by arm.

    ``PLACE_ROW`` is the share of the pairs found that stand where asked.
    """
    tables = {}
    for name in sorted(results.tables, key=_order):
        _, arrays = study_results.matrices(results, [name])
        means = {m: np.nanmean(arrays[name, kind, m], axis=1) for m in (PAIRS, "count", "word")}
        two = (results.prompts[results.prompts.kind == kind].objects == 2).to_numpy()
        pair, at = (arrays[name, kind, m][:, two].mean(axis=1) for m in (PAIRS, PLACED))
        rows = {"colour and shape": means[PAIRS], "number of objects": means["count"]}
        rows |= {PLACE_ROW: at / pair, "printed word": means["word"]}
        tables[name] = pd.DataFrame({row: _over(v, f"{name}/{row}") for row, v in rows.items()}).T
    return tables


def _order(name: str) -> tuple[int, int]:
    """The place of an arm (kind-ratio) among others: original only, SSC, DSC by ratio."""
    kind, ratio = name.rsplit("-", 1)
    return ("original", "ssc", "dsc").index(kind), int(ratio)


def _over(values: np.ndarray, name: str) -> dict[str, float]:
    """Mean in per cent of one value a seed, with its interval over seeds (none for one seed)."""
    low, high = (np.nan, np.nan)
    if len(values) > 1:
        low, high = stats.seed_interval(100 * values, rng(0, f"limitations/{name}"))
    return {"value": 100 * values.mean(), "low": low, "high": high}
