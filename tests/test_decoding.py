"""The ways of decoding: the same pictures, each way's own captions."""

import numpy as np
import pytest
import torch
from tiny_coca import random_model, tiny_tokenizer

from dalle3lib import captioner
from dalle3lib.evals import decoding

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def compared():
    tokenizer = tiny_tokenizer()
    model = random_model(tokenizer)
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    options = {"max_len": 10}
    found = decoding.compare(model, tokenizer, images, seed=3, **options)
    return model, tokenizer, images, found


def test_each_way_writes_what_it_writes_alone(compared):
    model, tokenizer, images, found = compared
    options = {"max_len": 10, "progress": False}
    greedy = captioner.caption(model, tokenizer, images, **options)
    beam = captioner.caption(model, tokenizer, images, strategy="beam", num_beams=4, **options)
    noise = torch.Generator().manual_seed(3)
    drawn = captioner.caption(
        model, tokenizer, images, strategy="sample", generator=noise, **options
    )
    assert found["greedy"].texts == greedy and found["beam search, 4 beams"].texts == beam
    assert found["sampled"].texts == drawn != greedy
    assert "generator" not in decoding.WAYS["sampled"]


def test_the_table_is_of_one_picture_and_of_all(compared):
    found = compared[-1]
    table = decoding.table(found, shown=2)
    assert list(table.index) == list(decoding.WAYS)
    for name, written in found.items():
        row = table.loc[name]
        assert row["caption"] == written.texts[2]
        assert row["log-probability"] == pytest.approx(written.log_probability[2])
        assert row["mean log-probability"] == pytest.approx(written.log_probability.mean())
        assert row["mean words"] == sum(len(t.split()) for t in written.texts) / 5
        assert row["cut (%)"] == 20 * sum(written.truncated)
