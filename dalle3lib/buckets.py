"""Multi-aspect buckets: batches of one size each from images of many shapes, nothing left out.

A batch needs pictures of equal size. Cropping all to a square throws much of a wide picture away
and teaches a generator to cut off heads, so images are sorted into buckets of about equal area and
different aspect (as the SDXL report describes, Podell et al. 2023, §2.3): each is resized to cover
the bucket whose aspect is nearest, and only the little that sticks out is cropped away.

``batch_at`` is the sampler: which bucket, and which of its images, a step shows. It is a pure
function of seed and step, so the step number is all that a resumed training needs. Sizes are
(width, height) in any unit.
"""

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from dalle3lib import UserError
from dalle3lib.randomness import batch_indices, rng

Size = tuple[int, int]


def bucket_sizes(area: float, step: int, most: float = 2.0) -> list[Size]:
    """The sizes, multiples of ``step``, that come nearest to ``area`` without exceeding it.

    One for each longer side, lying and standing, up to the aspect ``most`` (longer over shorter
    side); narrowest first. For 512 x 512 pixels and an autoencoder of 8 pixels:
    ``bucket_sizes(512**2, 32)``.
    """
    longer = range(int(area**0.5) // step * step, int((area * most) ** 0.5) + step, step)
    sizes = [(side, min(side, int(area / side) // step * step)) for side in longer if side]
    wide = {(w, h) for w, h in sizes if h and w / h <= most}
    return sorted(wide | {(h, w) for w, h in wide}, key=lambda size: size[0] / size[1])


def nearest(size: Size, buckets: Sequence[Size]) -> int:
    """The number of the bucket whose aspect differs from an image's by the smallest factor."""
    aspects = np.array([width / height for width, height in buckets])
    return int(abs(np.log(aspects * size[1] / size[0])).argmin())


def assign(sizes: Sequence[Size], buckets: Sequence[Size], least: int = 1) -> np.ndarray:
    """The bucket of each image: int64 [N].

    Buckets with fewer than ``least`` images (a batch, say) are given up, the smallest first, and
    their images go where they fit next best. UserError without images or without buckets.
    """
    if not len(sizes) or not len(buckets):
        raise UserError("Buckets need images and sizes to sort them into: give at least one each.")
    kept = list(range(len(buckets)))
    while True:
        fits = {s: nearest(s, [buckets[b] for b in kept]) for s in set(map(tuple, sizes))}
        chosen = np.array([kept[fits[tuple(s)]] for s in sizes])
        counts = np.bincount(chosen, minlength=len(buckets))
        smallest = min(kept, key=lambda b: counts[b])
        if counts[smallest] >= least or len(kept) == 1:
            return chosen
        kept.remove(smallest)


def cropped(sizes: Sequence[Size], buckets: Sequence[Size], chosen: np.ndarray) -> np.ndarray:
    """The share of each image that lies outside its bucket after resizing to cover it: [N]."""
    aspect = np.array([width / height for width, height in sizes])
    wanted = np.array([width / height for width, height in buckets])[chosen]
    return 1 - np.minimum(aspect / wanted, wanted / aspect)


def members(chosen: np.ndarray) -> dict[int, np.ndarray]:
    """The rows of the images in each bucket that holds any."""
    return {int(bucket): np.flatnonzero(chosen == bucket) for bucket in np.unique(chosen)}


# ---- the sampler ---------------------------------------------------------------------------------


def _batches_before(round_: int, counts: dict[int, int], batch: int) -> dict[int, int]:
    """How many batches each bucket has given before a round, in which as many images are shown
    as there are: whole batches only, the rest is carried over to the next round."""
    return {bucket: round_ * count // batch for bucket, count in counts.items()}


def batch_at(
    seed: int, step: int, batch: int, groups: dict[int, np.ndarray]
) -> tuple[int, np.ndarray]:
    """The batch of a step: (its bucket, the rows of ``batch`` images of it, int64).

    ``groups`` is from ``members``. Each bucket visits its images in epochs, each a fresh
    permutation, and is drawn as often as it has images, so every image is shown equally often;
    a batch may straddle two epochs of its bucket.
    """
    counts = {bucket: len(rows) for bucket, rows in groups.items()}

    def total(round_: int) -> int:
        return sum(_batches_before(round_, counts, batch).values())

    latest = (step + len(counts)) * batch // sum(counts.values()) + 2
    round_ = bisect_right(range(latest), step, key=total) - 1
    before, after = (_batches_before(r, counts, batch) for r in (round_, round_ + 1))
    order = np.repeat(list(counts), [after[b] - before[b] for b in counts])
    order = rng(seed, "buckets", round_).permutation(order)
    place = step - total(round_)
    bucket = int(order[place])
    number = before[bucket] + int((order[:place] == bucket).sum())
    rows = batch_indices(seed, number, batch, counts[bucket], stream=f"order/{bucket}")
    return bucket, groups[bucket][rows]


def repeated(seed: int, batch: int, groups: dict[int, np.ndarray]) -> float:
    """The share of an epoch's places that show an image which the epoch has shown already.

    An epoch are the steps that have a place for every image; what is shown twice takes the place
    of an image that the epoch leaves out.
    """
    total = sum(len(rows) for rows in groups.values())
    shown = [batch_at(seed, step, batch, groups)[1] for step in range(-(-total // batch))]
    return 1 - len(np.unique(np.concatenate(shown))) / (len(shown) * batch)
