"""How good the foundations are: measures by hand, with models that are known."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from dalle3lib import UserError, caption_facts, captioner, captioner_training, quality
from dalle3lib.images import stack
from dalle3lib.randomness import rng
from dalle3lib.world import World

torch.set_num_threads(1)
RECORDS = quality.held_out(6)


class Mirror:
    """An autoencoder that gives back what it gets, each value times ``gain``."""

    def __init__(self, gain: float = 1.0):
        self.gain = gain

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z):
        return SimpleNamespace(sample=self.gain * z)


def test_held_out_scenes_are_those_of_the_records():
    assert [spec.facts() for spec in quality.held_out_scenes(6)] == [r.facts for r in RECORDS]
    assert [r.key for r in RECORDS] == [r.key for r in World("dev", 6)]


def test_reconstructions_do_not_depend_on_the_batch():
    images = stack(RECORDS)
    whole = quality.reconstruct(Mirror(0.5), images, batch=100)
    assert torch.equal(whole, quality.reconstruct(Mirror(0.5), images, batch=4))
    assert torch.allclose(whole[0], 0.5 * (torch.tensor(images[0]).permute(2, 0, 1) / 127.5 - 1))


def test_facts_are_read_from_the_right_pictures():
    table = quality.facts_read(stack(RECORDS), RECORDS)
    assert isinstance(table, pd.DataFrame) and len(table) == 6
    assert (table["colour-shape"] == 1).all() and (table["background"] == 1).all()
    worded = [r.facts["word"] is not None for r in RECORDS]
    if "word" in table:
        assert (table["word"].notna() == worded).all()
    others = quality.facts_read(stack(RECORDS[1:] + RECORDS[:1]), RECORDS)
    assert others["colour-shape"].mean() < 0.5


def test_without_facts_nothing_is_read():
    table = quality.facts_read(stack(RECORDS), [replace(r, facts=None) for r in RECORDS])
    assert table.shape == (6, 0)


def test_an_autoencoder_that_loses_nothing(monkeypatch):
    monkeypatch.setattr(quality, "held_out", lambda count: RECORDS[:count])
    good, grey = quality.autoencoder(Mirror(), 3), quality.autoencoder(Mirror(0.0), 3)
    assert good["read_colour-shape"] == 1 and good["psnr_db"] > 60
    assert grey["read_colour-shape"] == 0 and grey["psnr_db"] < 15


@pytest.mark.parametrize("field", ["alt", "short", "descriptive"])
def test_a_captioner_is_marked_by_its_own_captions(monkeypatch, field):
    """One that writes the human captions states what they state."""
    human = [getattr(r, field) for r in RECORDS]
    monkeypatch.setattr(quality, "held_out", lambda count: RECORDS)
    monkeypatch.setattr(captioner_training, "token_log_likelihood", lambda *_: 0.12345)
    monkeypatch.setattr(captioner, "caption", lambda *_, **__: human)
    measured = quality.captioner(SimpleNamespace(context_length=48), None, field)
    assert measured.pop("nats_per_token") == 0.123
    if field == "alt":
        assert measured == {}
    elif field == "short":  # it names the main subject, in colour and shape
        assert measured == {"states_colour": 1, "states_shape": 1}
    else:
        assert set(measured.values()) == {1} and "states_background" in measured


def test_a_missing_manifest_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    with pytest.raises(UserError, match="judge"):
        quality.manifest("judge")


class Parrot:
    """A T5 that writes what ``said`` makes of the caption it reads."""

    def __init__(self, said):
        self.said = said

    def eval(self):
        return self

    def generate(self, ids, **_):
        return [self.said(row) for row in ids]


class Words:
    """A tokenizer whose only token is the whole text."""

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=texts, attention_mask=None)

    def batch_decode(self, ids, **_):
        return ids


def test_pairs_kept_in_other_words(monkeypatch):
    said = ["a red circle above a blue star.", "two large striped pink moons side by side."]
    records = [replace(RECORDS[0], descriptive=text) for text in said]
    monkeypatch.setattr(quality, "held_out", lambda count: records)
    swapped = {said[0]: "a blue circle below a red star.", said[1]: "a pink moon."}
    assert quality.rewording(Parrot(str), Words()) == {"pairs_kept": 1}
    assert quality.rewording(Parrot(swapped.get), Words()) == {"pairs_kept": round(1 / 3, 3)}


def test_goals_by_hand():
    facts = [r.facts for r in RECORDS]
    right = [r.short for r in RECORDS]
    rates = caption_facts.rates(
        caption_facts.tally([r.descriptive for r in RECORDS], facts), rng(0, "test")
    )
    table = quality.goals(right, facts, rates)
    assert table["measured"].tolist() == [1, 1, 1] and table["reached"].all()
    assert table["goal"].tolist() == list(quality.GOALS.values())
    wrong = quality.goals(["a thing.", *right[1:]], facts, rates)
    assert wrong["measured"].tolist() == [pytest.approx(5 / 6), 1, 1]
    assert wrong["reached"].tolist() == [False, True, True]
    assert wrong["low"].iloc[0] < 5 / 6 < wrong["high"].iloc[0]
