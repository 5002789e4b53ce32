"""The captioner: losses, files, text and pixels, a tiny training."""

import copy
import json
import os

import numpy as np
import open_clip
import pytest
import torch
from tiny_coca import (
    CAPTIONS,
    SIZE,
    random_images,
    random_model,
    roberta_model,
    tiny_config,
    tiny_tokenizer,
)
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import UserError, captioner, captioner_training, text


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


# ---- losses --------------------------------------------------------------------------------------


def test_the_loss_is_open_clip_s(tokenizer):
    model = captioner.build(tokenizer, config=tiny_config())
    images = random_images(len(CAPTIONS))
    tokens = captioner.encode(tokenizer, CAPTIONS, 40)
    output = model(images, tokens)
    names = ("image_features", "text_features", "logits", "labels", "logit_scale")
    reference = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=0.5, pad_id=0)
    expected = reference(**{name: output[name] for name in names}, output_dict=True)
    ours = captioner_training.loss(model, images, tokens, contrastive=0.5, captioning=2.0)
    assert set(ours) == {"loss", "contrastive", "captioning"}
    torch.testing.assert_close(ours["loss"], sum(expected.values()))
    torch.testing.assert_close(0.5 * ours["contrastive"], expected["contrastive_loss"])
    torch.testing.assert_close(2.0 * ours["captioning"], expected["caption_loss"])

    alone = captioner_training.loss(model, images, tokens, contrastive=0.0, captioning=2.0)
    assert alone["contrastive"] == 0
    torch.testing.assert_close(alone["captioning"], ours["captioning"])
    torch.testing.assert_close(alone["loss"], 2 * ours["captioning"])


def test_pads_change_no_caption_loss_and_no_gradient(tokenizer):
    model = captioner.build(tokenizer, config=tiny_config())
    images, results = random_images(3), []
    longest = max(len(tokenizer(caption).input_ids) for caption in CAPTIONS[:3])
    for length in (longest, 40):
        model.zero_grad()
        tokens = captioner.encode(tokenizer, CAPTIONS[:3], length)
        values = captioner_training.loss(model, images, tokens, contrastive=0, captioning=1)
        values["loss"].backward()
        results.append((values["loss"], model.text.token_embedding.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_contrastive_loss_by_hand():
    feature = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    # cosine 1 on the diagonal, 0 beside it, scale 2: -log(e^2 / (e^2 + e^0)) both ways
    matched = captioner_training.contrastive_loss(feature, feature, torch.tensor(2.0).log())
    assert float(matched) == pytest.approx(np.log(1 + np.exp(-2)))
    swapped = captioner_training.contrastive_loss(feature, feature.flip(0), torch.tensor(2.0).log())
    assert float(swapped) == pytest.approx(2 + np.log(1 + np.exp(-2)))
    bounded = captioner_training.contrastive_loss(feature, feature.flip(0), torch.tensor(9.0))
    assert float(bounded) == pytest.approx(100)


def test_log_likelihood_weighs_each_token_once(tokenizer):
    model = captioner.build(tokenizer, config=tiny_config()).eval()
    images = np.random.default_rng(0).integers(0, 256, (5, SIZE, SIZE, 3), dtype=np.uint8)
    total, count = 0.0, 0
    for image, caption in zip(images, CAPTIONS, strict=False):
        tokens = torch.tensor([tokenizer(caption).input_ids])
        with torch.no_grad():
            logits = model(captioner.pixels(model, image[None]), tokens)["logits"]
        chosen = logits[0].log_softmax(dim=-1).gather(1, tokens[0, 1:, None])
        total, count = total - float(chosen.sum()), count + len(chosen)
    for batch_size in (2, 128):
        value = captioner_training.token_log_likelihood(
            model, tokenizer, images, CAPTIONS[:5], batch_size=batch_size
        )
        assert value == pytest.approx(total / count, rel=1e-5)


# ---- text and pixels -----------------------------------------------------------------------------


def test_captions_survive_encoding(tokenizer, tmp_path):
    strange = [*CAPTIONS, "naïve façade, 東京 & 3 cats: “ok” (50 %).", "  two   spaces "]
    captioner.save(captioner.build(tokenizer, config=tiny_config()), tokenizer, tmp_path)
    _, loaded = captioner.load(tmp_path)
    tokens = captioner.encode(tokenizer, strange, 76)
    assert tokens.shape == (len(strange), 76) and (tokens[:, 0] == 2).all()
    clean = [" ".join(caption.split()) for caption in strange]
    for reader in (tokenizer, loaded):
        assert captioner.decode(reader, tokens, end_id=1) == clean
    assert torch.equal(captioner.encode(loaded, CAPTIONS, 76), tokens[: len(CAPTIONS)])


def test_a_long_caption_is_cut_but_ends(tokenizer):
    tokens = captioner.encode(tokenizer, ["a red circle " * 50], 20)
    assert tokens.shape == (1, 20) and tokens[0, -1] == 1 and 0 not in tokens


def test_decoding_stops_at_the_end_token(tokenizer):
    tokens = captioner.encode(tokenizer, ["a red circle", "stripes"], 20)
    tokens[0, 8:] = 99  # whatever follows the end is not part of the caption
    assert captioner.decode(tokenizer, tokens, end_id=1) == ["a red circle", "stripes"]


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_an_empty_caption_is_named(tokenizer, empty):
    with pytest.raises(UserError, match="Caption number 1 is empty"):
        captioner.encode(tokenizer, ["a red circle", empty], 40)


def test_pixels_follow_the_model_s_preprocessing(tokenizer):
    model = captioner.build(tokenizer, config=tiny_config())
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), dtype=np.uint8)
    share = torch.tensor(images).permute(0, 3, 1, 2) / 255
    torch.testing.assert_close(captioner.pixels(model, images), 2 * share - 1)
    model.visual.preprocess_cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.5)}
    mean, std = torch.tensor([0.4, 0.5, 0.6]), torch.tensor([0.2, 0.25, 0.5])
    expected = (share - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(captioner.pixels(model, images), expected)
    with pytest.raises(UserError, match="16 x 16 pixels, these have 8 x 16"):
        captioner.pixels(model, images[:, :8])


def test_captions_come_with_their_log_probability_and_whether_they_were_cut(tokenizer):
    model, images = random_model(tokenizer), random_images(9)
    model.end_id = int(captioner.generate(model, images, max_len=20, end_id=-1)[3, 6])
    tokens = captioner.generate(model, images, max_len=20)
    options = {"max_len": 20, "batch_size": 4, "progress": False}
    written = captioner.write(model, tokenizer, images, **options)
    assert written.texts == captioner.caption(model, tokenizer, images, **options)
    assert written.truncated.tolist() == [model.end_id not in row for row in tokens.tolist()]
    assert 0 < written.truncated.mean() < 1
    expected = captioner.log_probability(model, images, tokens).numpy()
    np.testing.assert_allclose(written.log_probability, expected, rtol=1e-4)
    nothing = captioner.write(model, tokenizer, images[:0], **options)
    assert [len(field) for field in nothing] == [0, 0, 0]


# ---- longer contexts -----------------------------------------------------------------------------


@pytest.mark.parametrize("embed_cls", [True, False])
def test_a_longer_context_changes_no_short_caption(tokenizer, tmp_path, embed_cls):
    model, images = random_model(tokenizer, text_cfg__embed_cls=embed_cls), random_images(6)
    tokens = captioner.encode(tokenizer, CAPTIONS[:6], 40)
    before = copy.deepcopy(model)
    assert captioner.extend_context(model, 100) is model
    long = nn.functional.pad(tokens, (0, 60))
    for old, new in ((tokens, long), (tokens, tokens)) if embed_cls else ((tokens, long),):
        with torch.no_grad():
            expected = before(images, old, output_labels=False)
            found = model(images, new, output_labels=False)
        torch.testing.assert_close(found["logits"][:, :40], expected["logits"])
        if old is not new:  # pads are hidden, the CLS token has kept its place at the end
            torch.testing.assert_close(found["text_features"], expected["text_features"])
    short, full = (captioner.generate(m, images, max_len=40, end_id=-1) for m in (before, model))
    assert torch.equal(short, full)

    # and it writes and learns captions of the new length
    tokens = captioner.generate(model, images, max_len=100, end_id=-1)
    assert torch.equal(tokens[:, :40], short) and (tokens[:, 40:] != 0).all()
    if embed_cls:
        plain = captioner.generate_uncached(model, images, max_len=100, end_id=-1)
        assert torch.equal(plain, tokens)
    captioner_training.loss(model, images, tokens, contrastive=1, captioning=1)["loss"].backward()
    gradient = model.text.positional_embedding.grad
    assert gradient.shape == (100 + embed_cls, 48) and (gradient[40:99] != 0).any(dim=1).all()

    captioner.save(model, tokenizer, tmp_path, dtype=torch.float32)
    loaded, _ = captioner.load(tmp_path)
    assert loaded.context_length == loaded.text.context_length == 100
    assert torch.equal(captioner.generate(loaded, images, max_len=100, end_id=-1), tokens)


def test_new_places_are_copies_of_the_last(tokenizer):
    model = random_model(tokenizer)
    old = model.text.positional_embedding.detach().clone()
    new = captioner.extend_context(model, 43).text.positional_embedding
    assert torch.equal(new[:40], old[:40]) and torch.equal(new[43], old[40])
    assert torch.equal(new[40:43], old[39].expand(3, -1))
    same = captioner.extend_context(model, 43)
    assert torch.equal(same.text.positional_embedding, new)


def test_a_context_that_cannot_be_extended_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="holds 40 tokens already: it cannot be shortened to 39"):
        captioner.extend_context(random_model(tokenizer), 39)
    with pytest.raises(UserError, match="HFTextEncoder"):
        captioner.extend_context(roberta_model(tmp_path), 60)


# ---- files ---------------------------------------------------------------------------------------


def test_a_saved_model_loads_through_open_clip(tokenizer, tmp_path):
    model = captioner.build(tokenizer, seed=3, config=tiny_config())
    captioner.save(model, tokenizer, tmp_path)
    public, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    ours, ours_tokenizer = captioner.load(tmp_path)
    assert isinstance(ours, open_clip.CoCa) and not ours.training
    for name, value in model.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value.half().float()), name
        assert torch.equal(public.state_dict()[name], value.half().float()), name
    assert (ours.start_id, ours.end_id) == (2, 1)
    public_tokens = open_clip.get_tokenizer(f"local-dir:{tmp_path}")(CAPTIONS)
    assert torch.equal(public_tokens, captioner.encode(ours_tokenizer, CAPTIONS, 40))
    assert ours.visual.preprocess_cfg["mean"] == [0.5] * 3
    assert ours.visual.image_size == (SIZE, SIZE)

    captioner.save(ours, ours_tokenizer, tmp_path / "again", dtype=torch.float32)
    again, _ = captioner.load(tmp_path / "again")
    for name, value in ours.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_weights_depend_on_the_seed_alone(tokenizer):
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (captioner.build(tokenizer, s, tiny_config()) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    weights = [dict(model.state_dict()) for model in (one, same, other)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not torch.equal(weights[0]["visual.conv1.weight"], weights[2]["visual.conv1.weight"])
    assert captioner.WORLD_COCA["text_cfg"].get("vocab_size") is None


def test_the_world_s_captioner_is_small(tmp_path):
    tokenizer = text.train_tokenizer(CAPTIONS, vocab_size=400, start=True)
    tokenizer.add_tokens([f"word{i}" for i in range(1024 - len(tokenizer))])
    model = captioner.build(tokenizer)
    captioner.save(model, tokenizer, tmp_path)
    assert os.path.getsize(tmp_path / "open_clip_model.safetensors") <= 5e6
    tokens = torch.zeros(4, model.context_length, dtype=torch.long)
    tokens[:, :40] = torch.arange(3, 43)
    for contrastive in (1.0, 0.0):
        with FlopCounterMode(display=False) as counter:  # forward and backward
            values = captioner_training.loss(
                model, torch.zeros(4, 3, 64, 64), tokens, contrastive, 1.0
            )
            values["loss"].backward()
        assert counter.get_total_flops() / 4 <= 0.6e9


def test_what_cannot_be_loaded_is_named(tokenizer, tmp_path):
    with pytest.raises(UserError, match="There is no captioner in .*nowhere"):
        captioner.load(tmp_path / "nowhere")
    captioner.save(captioner.build(tokenizer, config=tiny_config()), tokenizer, tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(UserError, match="cannot be loaded"):
        captioner.load(tmp_path)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    del config["model_cfg"]["multimodal_cfg"], config["model_cfg"]["pad_id"]
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    weights.unlink()
    with pytest.raises(UserError, match="not a CoCa captioner"):
        captioner.load(tmp_path)


def test_open_clip_s_own_tokenizer_and_ids(tmp_path):
    clip_tokenizer = open_clip.get_tokenizer("coca_ViT-B-32")
    config = tiny_config()
    del config["text_cfg"]["hf_tokenizer_name"]
    model = captioner.build(clip_tokenizer, config=config)
    assert (model.start_id, model.end_id) == (49406, 49407)
    captioner.save(model, clip_tokenizer, tmp_path)
    model, loaded = captioner.load(tmp_path)
    assert (model.start_id, model.end_id) == (49406, 49407)
    tokens = captioner.encode(loaded, ["A red circle!"], 12)
    assert captioner.decode(loaded, tokens, model.end_id) == ["a red circle !"]
    assert captioner.generate(model, random_images(1), max_len=4)[0, 0] == 49406


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A tiny model that has learned eight images by heart: (model, images, log)."""
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    model = captioner.build(tokenizer, config=tiny_config())
    log = captioner_training.train_captioner(
        model,
        tokenizer,
        images,
        CAPTIONS,
        seed=0,
        steps=100,
        batch=8,
        lr=3e-3,
        warmup=10,
        directory=tmp_path_factory.mktemp("captioner"),
        contrastive=1.0,
        captioning=2.0,
    )
    return model.eval(), images, log


def test_a_tiny_model_learns_its_captions_by_heart(trained, tokenizer):
    model, images, log = trained
    assert set(log) == {"loss", "contrastive", "captioning"} and len(log["loss"]) == 100
    shuffled = images[::-1].copy()
    captions = captioner.caption(
        model, tokenizer, shuffled, max_len=40, batch_size=3, progress=False
    )
    assert captions == CAPTIONS[::-1]
    right = captioner_training.token_log_likelihood(model, tokenizer, images, CAPTIONS)
    wrong = captioner_training.token_log_likelihood(model, tokenizer, shuffled, CAPTIONS)
    assert right < 0.1 < 1 < wrong
    tensor = captioner.pixels(model, images[:2])
    assert captioner.caption(model, tokenizer, tensor, max_len=40, progress=False) == CAPTIONS[:2]


def test_a_trained_model_decodes_as_the_whole_model(trained):
    model, images, _ = trained
    mixed = torch.cat([captioner.pixels(model, images), random_images(24, seed=5)])
    cached = captioner.generate(model, mixed, max_len=40)
    assert torch.equal(cached, captioner.generate_uncached(model, mixed, max_len=40))
    assert len({int(row.argmin()) for row in cached}) > 1  # captions of several lengths
