"""How far captions agree with what people wrote about the same images: CIDEr-D.

CIDEr (Vedantam et al. 2015) compares runs of one to four words, weighing each by how rare it is
among all references: "a" tells little, "giraffe" much. The variant D, which evaluation servers
use, also cuts repetitions and punishes a difference in length. Computed by aac-metrics, in Python;
the tokenizer is ours, as the usual one (Stanford's) needs Java.
"""

import importlib
import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import UserError, stats
from dalle3lib.randomness import rng


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation, as Stanford's tokenizer leaves."""
    return re.findall(r"\w+(?:['’]\w+)*", text.lower())


def cider_d(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr-D of each caption against the references of its image, float64 [N], from 0 to 10.

    Papers print the mean times a hundred: 1.2 as "120". Rarity is counted over the references
    given, so scores of different sets of images do not compare.
    Raises UserError for fewer than two images, an image without references, unequal lengths, or
    if aac-metrics is not installed.
    """
    if len(captions) != len(references) or len(captions) < 2 or not all(references):
        raise UserError(
            f"CIDEr-D needs two or more images with references: {len(captions)} captions, "
            f"{len(references)} images, {sum(not r for r in references)} of them without any."
        )
    try:
        library = importlib.import_module("aac_metrics.functional.cider_d")
    except ImportError as error:
        raise UserError(
            f"CIDEr-D needs aac-metrics ({error}): pip install 'dalle3lib[cider]'."
        ) from error
    _, each = library.cider_d(list(captions), [list(r) for r in references], tokenizer=words)
    return each["cider_d"].numpy()


def agreement(texts: dict[str, Sequence[str]], references: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Mean CIDEr-D of several kinds of caption of the same images: a row per kind.

    Columns: "CIDEr-D", its 95 % interval over images "low" and "high", and "as printed" in papers.
    Images without references are left out. Raises UserError as ``cider_d``.
    """
    some = [i for i, found in enumerate(references) if found]
    rows = {}
    for kind, found in texts.items():
        scores = cider_d([found[i] for i in some], [references[i] for i in some])
        low, high = stats.mean_interval(scores, rng(0, kind))
        mean = float(scores.mean())
        rows[kind] = {"CIDEr-D": mean, "low": low, "high": high, "as printed": 100 * mean}
    return pd.DataFrame(rows).T
