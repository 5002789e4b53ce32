"""Captions: the blend of original and synthetic ones (paper §3.1), and what captions are like."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError
from dalle3lib.images import Record
from dalle3lib.randomness import rng

# --- the blend -----------------------------------------------------------------------------------


def use_synthetic(seed: int, step: int, batch: int, ratio: float) -> np.ndarray:
    """Which samples of this step's batch are trained on their synthetic caption: bool [batch].

    ``ratio`` is the share of synthetic captions in percent (paper §3.1: 65, 80, 90 or 95). Each
    sample draws one uniform number in [0, 1) and is synthetic where that lies below the ratio.
    The draw depends on seed and step only, so a higher ratio turns some originals into synthetic
    captions and never the reverse: arms that differ in ratio or caption kind are paired.
    """
    if not 0 <= ratio <= 100:
        raise UserError(f"the share of synthetic captions is 0 to 100 percent, not {ratio}.")
    return rng(seed, "caption", step).random(batch) < ratio / 100


def blend(original: Sequence, synthetic: Sequence, use: np.ndarray) -> list:
    """The captions a batch is trained on (paper §3.1): synthetic where ``use``, else original.

    The items may be texts, embeddings or indices of either. The originals that remain keep the
    model from learning the captioner's habits (the table below) as if they were the language.
    """
    return [s if u else o for o, s, u in zip(original, synthetic, use, strict=True)]


def drop_caption(seed: int, step: int, batch: int, rate: float) -> np.ndarray:
    """Which samples are trained with an empty caption, for guidance: bool [batch].

    Classifier-free guidance (Ho and Salimans 2022) needs a model that also denoises without any
    caption; ``rate`` is the share of such samples, 0 to 1.
    """
    if not 0 <= rate <= 1:
        raise UserError(f"the share of dropped captions is 0 to 1, not {rate}.")
    return rng(seed, "dropout", step).random(batch) < rate


# --- what captions are like ----------------------------------------------------------------------

# Paper §3.1: a captioner has "modal behaviours" (letter case, final full stop, length, leading
# article) that a model trained on its captions alone would take for the language itself. The same
# habits counted on real data: the 10,000 example triplets released with CapsFusion (Yu et al.
# 2023), whose captions describe the same web images. Shares are fractions of captions.
PUBLISHED_SOURCE = "CapsFusion example triplets, n = 10,000 (Yu et al. 2023), counted by us"
PUBLISHED = pd.DataFrame(
    {
        "LAION-2B alt-text": [10_000, 10.8, 9, 27, 0.042, 0.064, 0.817, 0.413, 21_989],
        "LAION-COCO captions (BLIP)": [10_000, 9.0, 9, 13, 0.777, 0.891, 0.924, 0.043, 8_091],
        "CapsFusion captions (LLM)": [10_000, 22.7, 21, 40, 0.553, 0.950, 0.990, 0.378, 22_688],
    },
    index=[
        "count",
        "words_mean",
        "words_median",
        "words_p95",
        "starts_with_article",
        "ends_with_full_stop",
        "starts_upper_case",
        "has_digit",
        "vocabulary",
    ],
).T


def statistics(captions: Sequence[str]) -> dict[str, float]:
    """The habits of a set of captions, in the columns of ``PUBLISHED``.

    ``words_*`` count what stands between spaces (mean, median, 95th percentile). ``vocabulary``
    is the number of different words, without case and punctuation; it grows with ``count``. The
    rest are fractions of captions: first word a, an or the; last character a full stop; first
    character an upper-case letter; some digit; ``repeated``: the same text occurs again. Raises
    UserError for an empty list or an empty caption.
    """
    if not captions:
        raise UserError("there are no captions to count: give at least one.")
    empty = [i for i, caption in enumerate(captions) if not caption.strip()]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(captions)} captions are empty (the first is number {empty[0]}): "
            "write or remove them."
        )
    texts = [caption.strip() for caption in captions]
    words = [len(text.split()) for text in texts]
    copies = Counter(texts)
    return {
        "count": len(texts),
        "words_mean": float(np.mean(words)),
        "words_median": float(np.median(words)),
        "words_p95": float(np.percentile(words, 95)),
        "starts_with_article": share(t.split()[0].lower() in ("a", "an", "the") for t in texts),
        "ends_with_full_stop": share(t.endswith(".") for t in texts),
        "starts_upper_case": share(t[0].isupper() for t in texts),
        "has_digit": share(any(c.isdigit() for c in t) for t in texts),
        "vocabulary": len({word for t in texts for word in re.findall(r"\w+", t.lower())}),
        "repeated": share(copies[t] > 1 for t in texts),
    }


def compare(sets: dict[str, Sequence[str]]) -> pd.DataFrame:
    """``statistics`` of several sets of captions: one row per name."""
    return pd.DataFrame({name: statistics(captions) for name, captions in sets.items()}).T


def by_kind(records: Sequence[Record]) -> dict[str, list[str]]:
    """The captions that records hold, by kind; a kind that no record has is left out."""
    kinds = {"alt-text": "alt", "short": "short", "descriptive": "descriptive"}
    texts = {
        kind: [text for record in records if (text := getattr(record, field)) is not None]
        for kind, field in kinds.items()
    }
    return {kind: found for kind, found in texts.items() if found}


def readable(table: pd.DataFrame) -> pd.DataFrame:
    """A table of statistics as text for reading: habits as rows, shares in percent."""
    columns = {
        "count": ("captions", "{:,.0f}"),
        "words_mean": ("words, mean", "{:.1f}"),
        "words_median": ("words, median", "{:.0f}"),
        "words_p95": ("words, 95th percentile", "{:.0f}"),
        "starts_with_article": ("start with a, an, the", "{:.1%}"),
        "ends_with_full_stop": ("end with a full stop", "{:.1%}"),
        "starts_upper_case": ("start upper-case", "{:.1%}"),
        "has_digit": ("hold a digit", "{:.1%}"),
        "vocabulary": ("different words", "{:,.0f}"),
        "repeated": ("occur more than once", "{:.1%}"),
    }
    rows = {
        label: ["–" if np.isnan(v) else form.format(v) for v in table[name]]
        for name, (label, form) in columns.items()
    }
    return pd.DataFrame(rows, index=table.index).T


def share(conditions: Iterable[bool]) -> float:
    """The fraction of an iterable of booleans that is true."""
    return float(np.mean(list(conditions)))


# --- what captions say, where the facts are known ------------------------------------------------

# Words that tell where an object is, by the direction in which they do.
ACROSS = ("left", "right", "side by side")
UPRIGHT = ("top", "bottom", "above", "below", "one above the other")
FILE_NAME = re.compile(r"\.(?:jpe?g|png|gif|webp)$", re.IGNORECASE)
PLACE_WORDS = dict.fromkeys(("left", "right"), ACROSS) | dict.fromkeys(("top", "bottom"), UPRIGHT)


def names(text: str, value: str) -> bool:
    """Whether a text has a value as a word (or its plural); quoted words do not count."""
    plain = re.sub(r'"[^"]*"', " ", text.lower()).replace("_", " ")  # file names are words too
    return re.search(rf"\b{re.escape(value)}(e?s)?\b", plain) is not None


def stated(text: str, facts: dict) -> dict[str, float]:
    """Which share of a picture's facts a text states, by attribute: 0 to 1.

    ``facts`` has "background", "objects" (each with attributes) and "word" (printed in the
    picture, or None). An attribute of several objects counts the objects whose value is named; a
    place also counts where a relation gives it ("to the left of"); a printed word must be quoted.
    """
    found = {"background": float(names(text, facts["background"]))}
    if facts["word"]:
        found["printed word"] = float(f'"{facts["word"]}"' in text.lower())
    for attribute in facts["objects"][0]:
        values = [thing[attribute] for thing in facts["objects"]]
        if attribute == "place":
            words = [[w for p in v.split() for w in PLACE_WORDS.get(p, (p,))] for v in values]
        else:
            words = [[value] for value in values]
        found[attribute] = share(any(names(text, w) for w in options) for options in words)
    return found


def facts_named(text: str, facts: dict) -> float:
    """How many of a picture's facts a text states (see ``stated``), out of ``facts_in``."""
    things = facts["objects"]
    return sum(v * (len(things) if k in things[0] else 1) for k, v in stated(text, facts).items())


def facts_in(facts: dict) -> int:
    """How many facts a picture holds: attributes of objects, the background, a printed word."""
    return sum(len(thing) for thing in facts["objects"]) + 1 + bool(facts["word"])


def wrong(text: str, facts: dict, vocabulary: set[str]) -> list[str]:
    """The values of the vocabulary that a text names although nothing in the picture has them."""
    true = {v for thing in facts["objects"] for v in thing.values()} | {facts["background"]}
    return sorted(value for value in vocabulary - true if names(text, value))


def vocabulary(records: Iterable[Record]) -> set[str]:
    """All values of object attributes (places apart) and backgrounds in the facts of records."""
    found = set()
    for facts in (record.facts for record in records):
        found.add(facts["background"])
        found |= {v for thing in facts["objects"] for a, v in thing.items() if a != "place"}
    return found


def coverage(records: Sequence[Record]) -> pd.DataFrame:
    """The mean share of facts that captions state: attributes as rows, caption kinds as columns.

    Raises UserError if a record has no facts.
    """
    if not all(record.facts for record in records):
        raise UserError("what captions state can only be counted where records hold facts.")
    table = {}
    for kind, texts in by_kind(records).items():
        found = [stated(text, r.facts) for text, r in zip(texts, records, strict=True)]
        table[kind] = pd.DataFrame(found).mean()
    return pd.DataFrame(table)


def faults(records: Sequence[Record]) -> pd.DataFrame:
    """What is wrong with the alt-text of each record: one row per record.

    Columns: ``alt-text``; ``is a file name``; and, if all records hold facts, ``facts stated``
    (share of the picture's facts, 0 to 1), ``says nothing`` (names no value of any attribute,
    true or wrong) and ``names what is not there``.
    """
    table = pd.DataFrame({"alt-text": [record.alt for record in records]})
    table["is a file name"] = table["alt-text"].str.contains(FILE_NAME)
    if all(record.facts for record in records):
        values = vocabulary(records)
        false = [bool(wrong(r.alt, r.facts, values)) for r in records]
        true = [np.mean(list(stated(r.alt, r.facts).values())) for r in records]
        table["facts stated"] = true
        table["says nothing"] = [t == 0 and not f for t, f in zip(true, false, strict=True)]
        table["names what is not there"] = false
    return table
