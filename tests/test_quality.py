"""How good the foundations are: measures by hand, with models that are known."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from tiny_coca import random_images, random_model, tiny_tokenizer

from dalle3lib import UserError, caption_facts, captioner, captioner_training, captions, quality
from dalle3lib.images import stack
from dalle3lib.randomness import rng
from dalle3lib.world import World

torch.set_num_threads(1)
RECORDS = quality.held_out(6)


class Mirror:
    """An autoencoder that gives back what it gets, each value times ``gain``."""

    device = "cpu"

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


# ---- the alarm -----------------------------------------------------------------------------------

GOOD = [f"a {colour} {shape}." for colour in ("red", "blue", "pink") for shape in ("star", "moon")]


def test_people_do_not_loop(benchmarks):
    records = World("dev", 300)
    texts = [text for kind in captions.by_kind(list(records)).values() for text in kind]
    photographs = json.loads((benchmarks / "coco-mini" / "captions_train2017.json").read_text())
    texts += [entry["caption"] for entry in photographs["annotations"]]
    assert [text for text in texts if captions.looping(text)] == []
    assert quality.alarms([r.descriptive for r in records]) == []
    assert quality.alarms([r.short for r in records]) == []


def test_nothing_is_wrong_with_good_captions():
    assert quality.alarms(GOOD, [False] * 6) == [] == quality.alarms(GOOD)
    assert quality.alarms(GOOD[:2] * 2) == []  # twice may be chance


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (["", " "], "2 of 8 captions (25.0%) are empty, more than 0%: for example ''"),
        (["so so so"], "1 of 7 captions (14.3%) repeat themselves without end, more than 2%"),
        ([GOOD[0]] * 3, "4 of 9 captions (44.4%) are one and the same, more than 10%"),
    ],
)
def test_each_symptom_is_a_sentence_with_an_example(bad, said):
    found = quality.alarms(GOOD + bad)
    assert len(found) == 1 and said in found[0] and repr(bad[0].strip()) in found[0]


def test_captions_without_an_end():
    (found,) = quality.alarms(GOOD, [True] * 2 + [False] * 4)
    assert "2 of 6 captions (33.3%) were cut" in found and repr(GOOD[0]) in found


def test_a_broken_captioner_is_found_out():
    """Its last layer sees nothing of the picture and prefers one token, which never ends."""
    tokenizer = tiny_tokenizer()
    model, images = random_model(tokenizer), random_images(12)
    fine = captioner.write(model, tokenizer, images, max_len=16, progress=False)
    with torch.no_grad():
        model.text_decoder.ln_final.weight.zero_()
        model.text_decoder.text_projection[:, tokenizer("red").input_ids[1]] = 9
        model.text_decoder.ln_final.bias.fill_(1)
    broken = captioner.write(model, tokenizer, images, max_len=16, progress=False)
    found = " ".join(quality.alarms(broken.texts, broken.truncated))
    for symptom in ("12 of 12 captions (100.0%) repeat", "one and the same", "were cut"):
        assert symptom in found
    assert "one and the same" not in " ".join(quality.alarms(fine.texts))


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
