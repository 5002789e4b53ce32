"""Retrieval: ranks, equal captions, chance, pools."""

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle3lib import UserError
from dalle3lib.evals import retrieval
from dalle3lib.evals.retrieval import DIRECTIONS, chance, ranks, recall, retrieve
from dalle3lib.randomness import rng

EYE = np.eye(3, dtype=bool)


def top1(image, text, direction=0, **options):
    table = retrieve(image, text, ks=[1], **options)
    return table.loc[table["direction"] == DIRECTIONS[direction], "R@1"].mean()


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.5], [0.9, 0.1, 0.5], [0.9, 0.1, 0.5]])
    assert ranks(similarity, EYE).tolist() == [0, 2, 1]
    right = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)  # the better of two counts
    assert ranks(similarity, right).tolist() == [1, 0, 0]


def test_who_tells_nothing_apart_finds_nothing():
    assert ranks(np.zeros((3, 3)), EYE).tolist() == [2, 2, 2]
    assert top1(torch.ones(4, 2), torch.ones(4, 2)) == 0


@given(st.lists(st.booleans(), min_size=1, max_size=6).filter(any), st.integers(1, 7))
def test_chance_is_the_share_of_orders_that_hit(right, k):
    orders = list(permutations(right))
    share = sum(any(order[:k]) for order in orders) / len(orders)
    assert chance(np.array([right]), k) == pytest.approx(share)


def test_retrieval_by_hand():
    text = torch.eye(4)
    image = torch.eye(4)[[0, 1, 3, 2]]  # the last two pick each other's text
    assert top1(image, text, pool=4) == top1(image, text, 1, pool=4) == 0.5
    assert top1(image, text, pool=2) == 0.5
    # pools of three: only the first pool counts, its third image has no true neighbour in it
    assert top1(image[[0, 1, 3, 2]], text, pool=3) == 1
    assert len(retrieve(image, text, pool=3)) == 6


def test_directions_differ():
    image, text = torch.eye(2), torch.eye(2)[[0, 0]]  # both texts say what the first image shows
    assert top1(image, text) == 0  # neither image can tell the texts apart
    assert top1(image, text, 1) == 0.5


def test_an_equal_caption_is_right():
    text = torch.eye(3)[[0, 0, 1]]
    image = torch.eye(3)[[0, 0, 1]]
    assert top1(image, text) == pytest.approx(1 / 3)
    assert top1(image, text, texts=["a dog", "a dog", "a cat"]) == 1
    table = retrieve(image, text, ["a dog", "a dog", "a cat"], ks=[1])
    assert table["chance@1"].tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3] * 2)


def test_smaller_pools_are_easier():
    features = torch.randn(2, 60, 4, generator=torch.Generator().manual_seed(0))
    image, words = F.normalize(features[0] + 2 * features[1]), F.normalize(features[1])
    found = [top1(image, words, pool=pool) for pool in (2, 20, 60)]
    assert found == sorted(found, reverse=True) and found[0] > found[2]
    assert top1(image, words, pool=1) == 1


def test_fewer_texts_than_a_pool_are_one_pool():
    assert top1(torch.eye(3), torch.eye(3)[[0, 2, 1]]) == pytest.approx(1 / 3)


def test_random_features_are_at_chance():
    features = F.normalize(torch.randn(2, 2000, 8, generator=torch.Generator().manual_seed(1)))
    table = recall(retrieve(*features, pool=50), rng(0, "test"))
    assert table.index.tolist() == [(d, f"R@{k}") for d in DIRECTIONS for k in (1, 5, 10)]
    for (_, at), row in table.iterrows():
        assert row["chance"] == pytest.approx(int(at[2:]) / 50)
        assert row["low"] <= row["recall"] <= row["high"]
        assert abs(row["recall"] - row["chance"]) < 4 * np.sqrt(row["chance"] / 2000)


def test_one_query_has_no_interval():
    table = recall(retrieve(torch.ones(1, 2), torch.ones(1, 2), ["x"]), rng(0, "test"))
    assert (table["recall"] == 1).all() and (table["chance"] == 1).all()
    assert table[["low", "high"]].isna().all(axis=None)


def test_each_image_needs_a_text():
    with pytest.raises(UserError, match="3 images but 2 texts"):
        retrieve(torch.eye(3), torch.eye(3)[:2])
    with pytest.raises(UserError, match="and 2 captions"):
        retrieve(torch.eye(3), torch.eye(3), ["a", "b"])
    assert retrieval.DIRECTIONS[0].startswith("image")


def test_recalls_of_each_kind_are_those_of_its_features(monkeypatch):
    image, text = torch.eye(4), {"short": torch.eye(4), "alt-text": torch.eye(4)[[1, 0, 3, 2]]}
    known = {kind: [f"{kind} {i}" for i in range(4)] for kind in text}
    monkeypatch.setattr(retrieval.clip_score, "image_features", lambda model, images: image)
    monkeypatch.setattr(
        retrieval.clip_score, "text_features", lambda model, t, x: text[x[0].rsplit(" ", 1)[0]]
    )
    found = retrieval.recalls(None, None, np.zeros((4, 8, 8, 3), np.uint8), known)
    assert [table["recall"].iloc[0] for table in found.values()] == [1, 0]
    shown = retrieval.readable(found)
    assert list(shown.columns) == ["R@1", "R@5", "R@10"]
    assert shown.loc[("short", DIRECTIONS[0]), "R@1"] == "100 (100 to 100; 25)"
    assert shown.loc[("alt-text", DIRECTIONS[1]), "R@1"] == "0 (0 to 0; 25)"
    assert shown.loc[("alt-text", DIRECTIONS[1]), "R@10"] == "100 (100 to 100; 100)"
