"""Captions: the blend of original and synthetic ones (paper §3.1), and what captions are like."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError, stats
from dalle3lib.images import Record
from dalle3lib.randomness import rng

# Which field of a record holds the human captions that each kind of synthetic one is learned from.
HUMAN = {"ssc": "short", "dsc": "descriptive"}

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

PHRASE_LOOP = re.compile(r"(?<!\S)(\S+(?: \S+){0,15}?)(?: \1){2,}(?!\S)")  # three in a row
LETTER_LOOP = re.compile(r"(\D{1,8}?)\1{5,}")  # six in a row, as in hahahahahaha; 1000000 is none


def looping(caption: str) -> bool:
    """Whether a caption says the same word or phrase three times in a row, or stammers."""
    words = " ".join(re.findall(r"\w+", caption.lower()))
    return bool(PHRASE_LOOP.search(words) or LETTER_LOOP.search(caption))


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
    character an upper-case letter; some digit; ``repeated``: the same text occurs again;
    ``loops``: the captioner was caught in a circle (``looping``). Raises UserError for an empty
    list or an empty caption.
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
        "loops": share(looping(t) for t in texts),
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
    """A table of statistics as text for reading: habits as rows, shares in percent.

    ``truncated``, the share of captions cut at the greatest length, is shown if it is there.
    """
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
        "loops": ("run in circles", "{:.1%}"),
        "truncated": ("cut at the greatest length", "{:.1%}"),
    }
    rows = {
        label: ["–" if np.isnan(v) else form.format(v) for v in table[name]]
        for name, (label, form) in columns.items()
        if name in table
    }
    return pd.DataFrame(rows, index=table.index).T


def share(conditions: Iterable[bool]) -> float:
    """The fraction of an iterable of booleans that is true."""
    return float(np.mean(list(conditions)))


# --- for the ledger ------------------------------------------------------------------------------


def differences(
    texts: dict[str, Sequence[str]], tallies: dict[str, pd.DataFrame]
) -> dict[str, dict]:
    """What the ledger claims of DSC, SSC, base captioner and alt-text: an entry per claim.

    ``texts`` are the captions of the same pictures by these names, ``tallies`` what they state
    (``caption_facts.tally``), empty where no facts are known. Effects are paired by picture, with
    95 % intervals over pictures; one fine-tuning of each kind is one seed.
    """
    words = {name: [len(text.split()) for text in found] for name, found in texts.items()}
    first = {name: [text.lower().split()[0] for text in found] for name, found in texts.items()}
    article = {n: np.isin(found, ("a", "an", "the")) * 100.0 for n, found in first.items()}
    synthetic = (article["SSC"] + article["DSC"]) / 2
    pairs = {
        "dsc-longer-than-ssc": ("words", words["DSC"], words["SSC"]),
        "synthetic-captions-share-habits": ("% points", synthetic, article["alt-text"]),
    }
    if tallies:
        told = {name: table["told"].sum(axis=1) for name, table in tallies.items()}
        for claim, name in {"ssc": "SSC", "base": "base captioner", "original": "alt-text"}.items():
            pairs[f"dsc-states-more-than-{claim}"] = ("facts", told["DSC"], told[name])
        dsc, ssc = (100 * tallies[name]["told", "background"] for name in ("DSC", "SSC"))
        pairs["dsc-names-surroundings"] = ("% points", dsc, ssc)
    entries = {}
    for claim, (unit, a, b) in pairs.items():
        interval = stats.paired_bootstrap(a, b, rng(0, claim))
        effect = float(np.mean(a) - np.mean(b))
        entries[claim] = {"effect": effect, "interval": interval, "seeds": 1, "unit": unit}
    return entries
