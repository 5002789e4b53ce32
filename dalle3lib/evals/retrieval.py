"""Zero-shot retrieval: finding the text of a picture, and the picture of a text, among many.

The usual test of a contrastive model (Radford et al. 2021; CoCa, Yu et al. 2022): nothing was
trained for it, the features are compared by their cosine. Several pictures may share a caption,
and then each of them is right for it: what counts is what a text says, not where it stands.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import comb
from torch import Tensor

from dalle3lib import UserError, stats
from dalle3lib.evals import clip_score
from dalle3lib.randomness import rng

DIRECTIONS = ("image → text", "text → image")


def ranks(similarity: np.ndarray, right: np.ndarray) -> np.ndarray:
    """How many wrong candidates come before the best right one: int [queries], 0 is a hit.

    ``similarity`` float and ``right`` bool are [queries, candidates]. A wrong candidate as similar
    as the right one comes before it, so that a model that tells nothing apart finds nothing.
    """
    best = np.where(right, similarity, -np.inf).max(axis=1, keepdims=True)
    return ((similarity >= best) & ~right).sum(axis=1)


def chance(right: np.ndarray, k: int) -> np.ndarray:
    """The probability that blind guessing puts a right candidate among the first k: [queries].

    ``right`` bool [queries, candidates].
    """
    n, good = right.shape[1], right.sum(axis=1)
    k = min(k, n)
    return 1 - comb(n - good, k) / comb(n, k)


def retrieve(
    image: Tensor,
    text: Tensor,
    texts: Sequence[str] | None = None,
    pool: int = 100,
    ks: Sequence[int] = (1, 5, 10),
) -> pd.DataFrame:
    """Each image [N, d] looks for its text [N, d] in a pool, and each text for its image.

    The records are divided into consecutive pools; an incomplete last pool is left out, unless it
    is the only one. ``texts`` say which features belong to equal captions, each of which is
    right (None: all differ). Features have unit length.

    One row per query: ``direction``, ``rank`` (see ``ranks``), ``R@k`` (1.0 where the rank is
    below k) and ``chance@k`` for each k. Raises UserError if there are not as many texts as images.
    """
    texts = np.arange(len(image)) if texts is None else np.asarray(texts)
    if not len(image) == len(text) == len(texts):
        raise UserError(
            f"There are {len(image)} images but {len(text)} texts and {len(texts)} captions: "
            "retrieval needs one text for each image."
        )
    pool, rows = min(pool, len(image)), []
    for first in range(0, len(image) - pool + 1, pool):
        here = slice(first, first + pool)
        similarity = (image[here] @ text[here].T).double().cpu().numpy()
        right = texts[here][:, None] == texts[here]
        for direction, found in zip(DIRECTIONS, (similarity, similarity.T), strict=True):
            rank = ranks(found, right)
            columns = {f"R@{k}": (rank < k).astype(float) for k in ks}
            columns |= {f"chance@{k}": chance(right, k) for k in ks}
            rows.append(pd.DataFrame({"direction": direction, "rank": rank, **columns}))
    return pd.concat(rows, ignore_index=True)


def recall(table: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Recall at each k with its interval and chance, from what ``retrieve`` returned.

    Rows: direction and k. Columns, as shares: ``recall``, ``low`` and ``high`` (95 % bootstrap
    over queries, which takes the pools as given; NaN for a single query), ``chance``.
    """
    rows = {}
    for direction, part in table.groupby("direction", sort=False):
        for name in (column for column in table if column.startswith("R@")):
            hits, k = part[name], name.removeprefix("R@")
            low, high = stats.mean_interval(hits, random) if len(hits) > 1 else (np.nan, np.nan)
            blind = part[f"chance@{k}"].mean()
            rows[direction, name] = {
                "recall": hits.mean(), "low": low, "high": high, "chance": blind
            }  # fmt: skip
    return pd.DataFrame(rows).T.rename_axis(["direction", "at"])


def recalls(
    model, tokenizer, images: np.ndarray, texts: dict[str, list[str]]
) -> dict[str, pd.DataFrame]:
    """``recall`` for each kind of caption, by a CoCa's or CLIP's features.

    ``images`` are uint8 [N, H, W, 3]; ``texts`` holds N captions of each kind.
    """
    image = clip_score.image_features(model, images)
    found = {}
    for kind, captions in texts.items():
        text = clip_score.text_features(model, tokenizer, captions)
        found[kind] = recall(retrieve(image, text, captions), rng(0, f"recall/{kind}"))
    return found


def readable(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """What ``recalls`` returned as text, in percent: recall (interval; chance)."""
    shares = 100 * pd.concat(tables, names=["percent of"])
    cells = [
        f"{s.recall:.0f} ({s.low:.0f} to {s.high:.0f}; {s.chance:.0f})" for s in shares.itertuples()
    ]
    columns = shares.index.get_level_values("at").unique()
    return pd.Series(cells, shares.index, dtype=object).unstack("at")[columns]
