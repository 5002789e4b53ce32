"""Training a captioner: held-out likelihood, and the three ways to need less memory."""

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_coca import CAPTIONS, SIZE, public_model, tiny_config, tiny_tokenizer

from dalle3lib import UserError, captioner, captioner_training

torch.set_num_threads(1)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def trained(tokenizer, directory, model=None, **options):
    """A tiny CoCa after three steps of six captions of different lengths: (weights, log)."""
    model = model or captioner.build(tokenizer, config=tiny_config())
    common = {"seed": 0, "steps": 3, "batch": 6, "lr": 1e-3, "contrastive": 0, "captioning": 1}
    log = captioner_training.train_captioner(
        model, tokenizer, IMAGES, CAPTIONS, directory=directory, **common | options
    )
    return dict(model.state_dict()), log


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    return trained(tokenizer, tmp_path_factory.mktemp("whole"))


def furthest(one: dict, other: dict) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


# ---- less memory ---------------------------------------------------------------------------------


@pytest.mark.parametrize("micro_batch", [1, 4, 6])
def test_the_gradient_of_micro_batches_is_that_of_the_batch(
    tokenizer, tmp_path, whole, micro_batch, monkeypatch
):
    sizes, loss = [], captioner_training.loss

    def watched(model, images, *rest):
        sizes.append(len(images))
        return loss(model, images, *rest)

    monkeypatch.setattr(captioner_training, "loss", watched)
    weights, log = trained(tokenizer, tmp_path, micro_batch=micro_batch)
    assert max(sizes) == micro_batch and sum(sizes) == 18
    np.testing.assert_allclose(log["loss"], whole[1]["loss"], atol=1e-6)
    # Adam divides a gradient by its own size, so rounding shows where gradients are all but zero
    assert furthest(weights, whole[0]) < 1e-5
    if micro_batch == 6:
        assert furthest(weights, whole[0]) == 0 and log == whole[1]


def test_gradients_of_parts_are_those_of_the_batch(tokenizer):
    """Token for token: the mean of means would weigh the words of short captions more."""
    model = captioner.build(tokenizer, config=tiny_config())
    tokens, pad = captioner.encode(tokenizer, CAPTIONS, 40), model.pad_id
    pictures = captioner.pixels(model, IMAGES)

    def gradient(parts: list[slice]) -> torch.Tensor:
        model.zero_grad()
        for part in parts:
            share = captioner_training.caption_terms(tokens[part], pad)
            share /= captioner_training.caption_terms(tokens, pad)
            values = captioner_training.loss(model, pictures[part], tokens[part], 0, 1)
            (share * values["loss"]).backward()
        return model.text.token_embedding.weight.grad.clone()

    once = gradient([slice(0, 8)])
    torch.testing.assert_close(gradient([slice(0, 3), slice(3, 8)]), once, rtol=0, atol=1e-6)
    assert len({captioner_training.caption_terms(tokens[i : i + 1], pad) for i in range(8)}) > 3


def test_the_contrastive_loss_is_not_split(tokenizer, tmp_path):
    with pytest.raises(UserError, match="all 6 images of a batch.*into 3 parts"):
        trained(tokenizer, tmp_path, contrastive=1, micro_batch=2)


def test_gradient_checkpointing_changes_no_number(tokenizer, tmp_path, whole, monkeypatch):
    weights, log = trained(tokenizer, tmp_path / "a", grad_checkpointing=True)
    assert furthest(weights, whole[0]) < 1e-6
    np.testing.assert_allclose(log["loss"], whole[1]["loss"], atol=1e-6)
    again = []  # every block of the three towers is computed again on the way back
    inner = torch.utils.checkpoint.checkpoint

    def counted(block, *rest, **more):
        again.append(type(block).__name__)
        return inner(block, *rest, **more)

    monkeypatch.setattr("open_clip.transformer.checkpoint", counted)
    model = captioner.build(tokenizer, config=tiny_config())
    trained(tokenizer, tmp_path / "b", model, grad_checkpointing=True, steps=1)
    assert len(again) == 2 + 2 + 2 * 3  # vision, text, and self and cross attention of the decoder
    trained(tokenizer, tmp_path / "c", model, steps=1)
    assert len(again) == 10  # and it is off again


def test_bfloat16_is_close_and_keeps_float32_weights(tokenizer, tmp_path, whole):
    weights, log = trained(tokenizer, tmp_path, bfloat16=True)
    assert {value.dtype for value in weights.values()} == {torch.float32}
    np.testing.assert_allclose(log["loss"], whole[1]["loss"], rtol=0.01)
    assert log["loss"] != whole[1]["loss"]


def test_all_three_together_on_a_public_architecture(tmp_path):
    import open_clip

    model = public_model("coca_ViT-L-14")
    images = np.random.default_rng(1).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8)
    log = captioner_training.train_captioner(
        model,
        open_clip.get_tokenizer("coca_ViT-L-14"),
        images,
        CAPTIONS,
        seed=0,
        steps=6,
        batch=6,
        micro_batch=2,
        bfloat16=True,
        grad_checkpointing=True,
        lr=3e-3,
        warmup=1,
        directory=tmp_path,
        contrastive=0,
        captioning=1,
    )
    assert log["loss"][-1] < log["loss"][0]


# ---- held-out likelihood -------------------------------------------------------------------------


def test_training_stops_when_held_out_captions_become_less_likely(tokenizer, tmp_path):
    """What is held out contradicts what is learned: the start is best, and training says so."""
    model = captioner.build(tokenizer, config=tiny_config())
    held_out = IMAGES[:4], [caption[::-1] for caption in CAPTIONS[:4]]
    options = {"held_out": held_out, "held_out_every": 10, "steps": 200, "batch": 8}
    options |= {"lr": 3e-3, "warmup": 10, "patience": 2}
    _, log = trained(tokenizer, tmp_path, model, **options)
    assert len(log["loss"]) == log["held_out_step"][-1] < 200
    nats = captioner_training.token_log_likelihood(model.eval(), tokenizer, *held_out)
    assert nats == pytest.approx(min(log["held_out"]), rel=1e-5) and nats < log["held_out"][-1]


def test_the_curve_by_hand(tmp_path):
    log = {"captioning": [float(i) for i in range(50)], "contrastive": [1.0] * 50}
    log |= {"held_out": [3.0, 2.12345, 2.0], "held_out_step": [27.0, 40.0, 50.0]}
    captioner_training.write_curve(log, tmp_path)
    first, *rows, last = (tmp_path / "training.csv").read_text().splitlines()
    assert first == "step,captioning,contrastive,held_out" and last == "50,47.0,1.0,2.0"
    assert rows[4:8] == ["25,22.0,1.0,", "27,,,3.0", "30,27.0,1.0,", "35,32.0,1.0,"]
    assert rows[8] == "40,37.0,1.0,2.1234" and len(rows) == 10
    longer = captioner_training.curve({name: 5 * log[name] for name in log})
    assert longer["captioning"].dropna().iloc[0] == 9.5  # of steps 0 to 19
    unmeasured = {name: log[name] for name in ("captioning", "contrastive")}
    table = captioner_training.curve(unmeasured, window=20)
    assert table["step"].tolist() == [20, 40, 50] and table["held_out"].isna().all()
    assert isinstance(table, pd.DataFrame)


def test_the_share_of_captions_that_do_not_fit(tokenizer):
    tokens = [len(tokenizer(caption).input_ids) for caption in CAPTIONS]
    for length in (min(tokens) - 1, 8, max(tokens)):
        share = captioner_training.truncated_share(tokenizer, CAPTIONS, length)
        assert share == np.mean([count > length for count in tokens])
    import open_clip

    clip = open_clip.get_tokenizer("coca_ViT-L-14")
    captions = ["a red circle"] * 1500 + ["a red circle " * 40] * 500  # five tokens, 122 tokens
    assert captioner_training.truncated_share(clip, captions, 76) == 0.25
    assert captioner_training.truncated_share(clip, captions, 122) == 0
    assert captioner_training.truncated_share(clip, captions, 121) == 0.25
