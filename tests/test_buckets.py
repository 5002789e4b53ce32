"""The bucket sampler: full batches of one bucket, every image as often, little cropped away."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, buckets
from dalle3lib.randomness import batch_indices, rng

# Width over height of what cameras, phones and web pages make, with about how common they are.
ASPECTS = {1: 15, 4 / 3: 25, 3 / 2: 25, 16 / 9: 10, 3 / 4: 12, 2 / 3: 10, 9 / 16: 3}
seeds = st.integers(0, 2**31)
counts = st.lists(st.integers(1, 300), min_size=1, max_size=6)


def photographs(seed: int, number: int) -> list[tuple[int, int]]:
    """Sizes as on the web: common aspects, a third of them cropped by somebody to any other."""
    random = rng(seed, "sizes")
    chances = np.array([*ASPECTS.values()]) / sum(ASPECTS.values())
    aspect = random.choice([*ASPECTS], number, p=chances)
    odd = random.random(number) < 1 / 3
    aspect[odd] *= np.exp(random.normal(0, 0.15, odd.sum()))
    aspect = np.clip(aspect, 0.5, 2)
    area = np.exp(random.uniform(np.log(2e5), np.log(4e6), number))
    return [
        (round((a * r) ** 0.5), round((a / r) ** 0.5)) for a, r in zip(area, aspect, strict=True)
    ]


def groups_of(sizes: list[int]) -> dict[int, np.ndarray]:
    return buckets.members(np.repeat(range(len(sizes)), sizes))


# ---- sorting -------------------------------------------------------------------------------------


def test_sizes_by_hand():
    assert buckets.bucket_sizes(128**2, 32, 2) == [
        (96, 160), (128, 128), (160, 96),
    ]  # fmt: skip
    assert buckets.bucket_sizes(10, 8) == []


@given(st.integers(8, 64), st.integers(4, 16), st.floats(1, 4))
def test_sizes(step, sides, most):
    area = (step * sides) ** 2
    found = buckets.bucket_sizes(area, step, most)
    assert (step * sides,) * 2 in found and len(set(found)) == len(found)
    for width, height in found:
        assert width % step == height % step == 0 and width * height <= area
        assert (height, width) in found
        long, short = max(width, height), min(width, height)
        assert long * (short + step) > area  # the next higher one would be too large
        assert 1 / most <= width / height <= most


def test_the_nearest_bucket_by_hand():
    three = [(128, 128), (160, 96), (96, 160)]
    asked = [(640, 480), (640, 427), (640, 360), (480, 640), (500, 500), (100, 1000)]
    assert [buckets.nearest(size, three) for size in asked] == [1, 1, 1, 2, 0, 2]
    assert buckets.nearest((5, 4), three) == 0  # 1.25 is nearer to 1 than to 5 / 3


def test_small_buckets_are_given_up():
    three = [(128, 128), (160, 96), (96, 160)]
    sizes = [(1, 1)] * 5 + [(3, 2)] * 2 + [(9, 10)] * 4 + [(2, 3)] * 3
    assert Counter(buckets.assign(sizes, three).tolist()) == {0: 9, 1: 2, 2: 3}
    assert Counter(buckets.assign(sizes, three, least=3).tolist()) == {0: 11, 2: 3}
    assert Counter(buckets.assign(sizes, three, least=100).tolist()) == {0: 14}
    for nothing in (([], three), (sizes, [])):
        with pytest.raises(UserError, match="at least one"):
            buckets.assign(*nothing)


def test_cropping_by_hand():
    sizes, square = [(100, 100), (200, 100), (100, 400)], [(64, 64), (128, 64)]
    assert buckets.cropped(sizes, square, np.array([0, 0, 0])).tolist() == [0, 0.5, 0.75]
    assert buckets.cropped(sizes, square, np.array([1, 1, 1])).tolist() == [0.5, 0, 0.875]


@given(seeds)
@settings(max_examples=20)
def test_photographs_lose_less_than_a_twentieth(seed):
    sizes = photographs(seed, 3000)
    wanted = buckets.bucket_sizes(512**2, 32)
    chosen = buckets.assign(sizes, wanted, least=64)
    groups = buckets.members(chosen)
    assert min(map(len, groups.values())) >= 64
    assert buckets.cropped(sizes, wanted, chosen).mean() < 0.05
    one = np.zeros(len(sizes), int)
    assert buckets.cropped(sizes, [(512, 512)], one).mean() > 0.2  # what squares would lose


# ---- the sampler ---------------------------------------------------------------------------------


@given(counts, seeds, st.integers(1, 40), st.integers(0, 10**9))
def test_every_batch_is_full_and_of_one_bucket(sizes, seed, batch, step):
    groups = groups_of(sizes)
    bucket, rows = buckets.batch_at(seed, step, batch, groups)
    assert len(rows) == batch and set(rows) <= set(groups[bucket])
    again, same = buckets.batch_at(seed, step, batch, groups)  # no state between calls
    assert again == bucket and np.array_equal(rows, same)


@given(counts, seeds, st.integers(1, 40))
@settings(max_examples=30)
def test_every_image_is_shown_equally_often(sizes, seed, batch):
    groups, total = groups_of(sizes), sum(sizes)
    steps = 3 * total // batch + 1
    drawn = [buckets.batch_at(seed, step, batch, groups) for step in range(steps)]
    shown = np.bincount(np.concatenate([rows for _, rows in drawn]), minlength=total)
    for bucket, rows in groups.items():
        number = sum(b == bucket for b, _ in drawn)
        assert shown[rows].max() - shown[rows].min() <= 1  # in epochs of its bucket
        # as often as its share of the images asks for, but for the batch that is not full yet
        # and a round that is under way
        due = steps * len(rows) / total
        assert abs(number - due) <= len(rows) / batch + len(sizes) + 1


@given(st.lists(st.integers(200, 2000), min_size=1, max_size=5), seeds)
@settings(max_examples=20)
def test_an_epoch_wastes_less_than_a_twentieth(sizes, seed):
    batch = max(1, sum(sizes) // (50 * len(sizes)))
    assert buckets.repeated(seed, batch, groups_of(sizes)) < 0.05


def test_one_bucket_is_the_plain_order():
    groups = groups_of([37])
    for step in range(12):
        bucket, rows = buckets.batch_at(3, step, 8, groups)
        assert bucket == 0
        assert np.array_equal(rows, batch_indices(3, step, 8, 37, stream="order/0"))


def test_the_order_of_buckets_depends_on_the_seed():
    groups = groups_of([100, 100, 100])
    orders = {tuple(buckets.batch_at(s, i, 10, groups)[0] for i in range(30)) for s in range(4)}
    assert len(orders) == 4


def test_an_epoch_by_hand():
    """Five and three images, batches of two: 2 + 1 whole batches, then what was carried over."""
    groups = {0: np.arange(5), 7: np.arange(5, 8)}
    drawn = [buckets.batch_at(0, step, 2, groups) for step in range(8)]
    assert Counter(b for b, _ in drawn[:3]) == {0: 2, 7: 1}
    assert Counter(b for b, _ in drawn) == {0: 5, 7: 3}
    assert Counter(np.concatenate([rows for _, rows in drawn]).tolist()) == dict.fromkeys(
        range(8), 2
    )
    assert buckets.repeated(0, 2, {0: np.arange(4)}) == 0
