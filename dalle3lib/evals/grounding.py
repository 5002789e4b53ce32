"""Grounding: does a caption's word look at the thing it names?

Where facts are known, a picture of attention can be checked by counting. For a word that names the
colour or shape of exactly one object, how much of its attention (``caption_attention``) falls on
that object, how much on the other object, how much do the caption's other words give it, and how
much would attention get that is spread evenly over the picture?
"""

import re
from collections.abc import Sequence

import numpy as np
import open_clip
import pandas as pd
import torch
from torch import LongTensor, Tensor

from dalle3lib import captioner, stats
from dalle3lib.caption_attention import Trace, Word, word_maps
from dalle3lib.images import Record, stack
from dalle3lib.randomness import rng
from dalle3lib.world.canvas import SQUARE
from dalle3lib.world.render import backdrop

Box = tuple[slice, slice]  # rows and columns, pixels
ATTRIBUTES = ("colour", "shape")
SHARES = ["named", "other object", "other words", "by area"]
LOSSES = ["loss named", "loss other"]


def boxes(facts: dict) -> list[Box]:
    """The square of the picture that belongs to each object, in the order of the facts."""
    return [SQUARE.square(thing["place"], facts["word"] is not None) for thing in facts["objects"]]


def covered(box: Box, rows: int, columns: int, side: int = SQUARE.width) -> np.ndarray:
    """Which share of each patch a box covers: float64 [rows, columns], 0 to 1; mean is the area.

    The box is in pixels of a picture of ``side`` x ``side``, cut into equal patches.
    """

    def along(span: slice, count: int) -> np.ndarray:
        edges = np.linspace(0, side, count + 1).clip(span.start, span.stop)
        return np.diff(edges) * count / side

    return np.outer(along(box[0], rows), along(box[1], columns))


def naming(words: Sequence[Word], facts: dict, attribute: str) -> list[tuple[int, int]]:
    """Which word names which object by its ``attribute``: pairs (word, object).

    Left out, because nobody could say which object is meant: values that several objects have or
    that the caption says more than once. A wrong value names no object.
    """
    values = [thing[attribute] for thing in facts["objects"]]
    pairs = []
    for i, value in enumerate(values):
        said = [w for w, word in enumerate(words) if re.fullmatch(f"{value}(e?s)?", word.text)]
        if values.count(value) == 1 and len(said) == 1:
            pairs.append((said[0], i))
    return pairs


def look(words: Sequence[Word], patches: Tensor, facts: dict, attribute: str) -> list[dict]:
    """For each word that names an object by its ``attribute``: where its attention falls.

    ``patches`` [L - 1, rows, columns] is one caption's entry of ``over_image``. Each result has
    the ``word`` and the ``thing`` (numbers), and as shares (0 to 1) of the attention on patches:
    ``named`` (on the object it names), ``other object`` (NaN if there is none), ``other words``
    (what the caption's other words give the named object, mean) and ``by area`` (what attention
    spread evenly over the picture would give it).
    """
    maps = word_maps(words, patches)
    masks = [covered(box, *maps.shape[1:]) for box in boxes(facts)]
    found = []
    for word, thing in naming(words, facts, attribute):
        in_box = (maps * masks[thing]).sum((1, 2))
        elsewhere = [(maps[word] * m).sum() for i, m in enumerate(masks) if i != thing]
        shares = {
            "named": in_box[word],
            "other object": np.mean(elsewhere) if elsewhere else np.nan,
            "other words": np.delete(in_box, word).mean() if len(words) > 1 else np.nan,
            "by area": masks[thing].mean(),
        }
        found.append({"word": word, "thing": thing} | shares)
    return found


def grounding(
    words: Sequence[Sequence[Word]], patches: Tensor, records: Sequence[Record]
) -> pd.DataFrame:
    """``look`` for N captions of records that hold facts: one row per word naming colour or shape.

    ``words`` are those of each caption, ``patches`` [N, L - 1, rows, columns]. Columns beside
    ``look``'s: ``picture`` (0 to N - 1), ``objects`` (how many it shows) and ``attribute``.
    """
    rows = []
    for i, (said, maps, record) in enumerate(zip(words, patches, records, strict=True)):
        count = len(record.facts["objects"])
        for attribute in ATTRIBUTES if said else ():
            about = {"picture": i, "objects": count, "attribute": attribute}
            rows += [about | found for found in look(said, maps, record.facts, attribute)]
    return pd.DataFrame(rows, columns=["picture", "objects", "attribute", "word", "thing", *SHARES])


def without(record: Record, thing: int) -> np.ndarray:
    """The record's picture with one object painted over by the background: uint8 [64, 64, 3]."""
    picture, box = record.image.copy(), boxes(record.facts)[thing]
    picture[box] = (backdrop(record.facts["background"])[box] + 0.5).astype(np.uint8)
    return picture


def removal(
    model: open_clip.CoCa,
    tokens: LongTensor,
    words: Sequence[Sequence[Word]],
    records: Sequence[Record],
    table: pd.DataFrame,
) -> pd.DataFrame:
    """How much a naming word needs its object: what it loses when an object is painted over.

    ``tokens`` int64 [N, L] are the captions with their ``words``; ``table`` is what ``grounding``
    returned of them. Returns the table with, in nats, how far the log-probability of the word's
    tokens falls without the object it names (``loss named``) and, mean, without another one
    (``loss other``, NaN where there is none). The words before it stay as they are.
    """
    shown = table.drop_duplicates("picture")
    counts = zip(shown["picture"], shown["objects"], strict=True)
    cases = [(picture, gone) for picture, count in counts for gone in range(count)]
    of = [picture for picture, _ in cases]
    painted = [without(records[picture], gone) for picture, gone in cases]
    painted = np.stack(painted) if painted else stack(records)[:0]
    before = _log_probabilities(model, stack(records), tokens)
    after = _log_probabilities(model, painted, tokens[of])
    fell = dict(zip(cases, (before[of] - after).cpu(), strict=True))
    losses = []
    for row in table.itertuples():
        places = [place - 1 for place in words[row.picture][row.word].places]
        loss = [float(fell[row.picture, gone][places].sum()) for gone in range(row.objects)]
        named = loss.pop(row.thing)
        losses.append([named, np.mean(loss) if loss else np.nan])
    return table.join(pd.DataFrame(losses, index=table.index, columns=LOSSES, dtype=float))


def _log_probabilities(model: open_clip.CoCa, images: np.ndarray, tokens: LongTensor) -> Tensor:
    """``token_log_probabilities`` for images uint8 [N, H, W, 3], a few hundred at a time."""
    parts = [slice(i, i + 256) for i in range(0, len(tokens), 256)]
    batches = [captioner.pixels(model, images[part]) for part in parts]
    found = [
        captioner.token_log_probabilities(model, batch, tokens[part])
        for batch, part in zip(batches, parts, strict=True)
    ]
    return torch.cat(found) if found else torch.zeros(0, tokens.shape[1] - 1)


def summary(
    table: pd.DataFrame, columns: Sequence[str], random: np.random.Generator
) -> pd.DataFrame:
    """Means of ``columns`` of a table with ``objects``, ``attribute`` and ``picture``.

    One row per number of objects and attribute; a picture counts once, with the mean of its words.
    Columns: ``words``, ``pictures``, and for each of ``columns`` its mean and, as ``low <name>``
    and ``high <name>``, its 95 % bootstrap interval over pictures (NaN for a single one).
    """
    rows = {}
    for key, part in table.groupby(["objects", "attribute"]):
        by_picture = part.groupby("picture")[list(columns)].mean()
        rows[key] = {"words": len(part), "pictures": len(by_picture)}
        for name, values in by_picture.items():
            known = values.dropna()
            several = len(known) > 1
            low, high = stats.mean_interval(known, random) if several else (np.nan, np.nan)
            rows[key] |= {name: known.mean(), f"low {name}": low, f"high {name}": high}
    index = pd.MultiIndex.from_tuples(rows, names=["objects", "attribute"])
    measured = [f"{what}{name}" for name in columns for what in ("", "low ", "high ")]
    return pd.DataFrame(list(rows.values()), index, ["words", "pictures", *measured])


def measure(model: open_clip.CoCa, traced: Trace, records: Sequence[Record]) -> pd.DataFrame:
    """``summary`` of all shares and losses for captions traced from the pictures of records."""
    table = grounding(traced.words, traced.patches, records)
    table = removal(model, traced.tokens, traced.words, records, table)
    return summary(table, SHARES + LOSSES, rng(0, "grounding"))
