"""The captioner: cached decoding against the plain computation, losses, files, a tiny training."""

import copy
import json
import os

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import UserError, caption_decoding, captioner, text

SIZE = 16
CAPTIONS = [
    "a red circle",
    "a blue square on a grey background",
    "two green triangles, one above the other",
    "a small yellow star to the left of a large purple cross",
    "an orange ring",
    "stripes",
    "the word HI on a black background",
    "a white circle inside a pink square",
]


@pytest.fixture(scope="module")
def tokenizer():
    return text.train_tokenizer(CAPTIONS * 20, vocab_size=400, start=True)


def tiny_config(**changes) -> dict:
    """A CoCa for 16 x 16 images; ``changes`` are entries of its three towers, as tower__name."""
    config = copy.deepcopy(captioner.WORLD_COCA)
    config["embed_dim"] = 48
    config["vision_cfg"].update(
        image_size=SIZE, patch_size=4, width=32, layers=2, head_width=16, attn_pooler_queries=9
    )
    config["text_cfg"].update(context_length=40, width=48, heads=3, layers=2)
    config["multimodal_cfg"].update(context_length=40, width=48, heads=2, layers=3)
    for name, value in changes.items():
        tower, name = name.split("__")
        config[tower][name] = value
    return config


def random_model(tokenizer, seed: int = 0, **changes) -> open_clip.CoCa:
    """A random CoCa with outputs spread enough that captions differ and ties do not occur."""
    model = captioner.build(tokenizer, seed, tiny_config(**changes)).eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        model.text.token_embedding.weight.normal_()
        model.text.positional_embedding.normal_()
        model.text_decoder.text_projection.normal_()
        for block in model.text_decoder.cross_attn:
            block.attn.out_proj.weight.normal_()
    return model


def random_images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def by_the_book(model, images, tokens, max_len: int) -> torch.Tensor:
    """Greedy captions without end by open_clip's forward alone, everything again each time."""
    while tokens.shape[1] < max_len:
        logits = model(images, tokens, output_labels=False)["logits"]
        tokens = torch.cat([tokens, logits[:, -1:].argmax(dim=-1)], dim=1)
    return tokens


def cut(tokens: torch.Tensor, end_id: int, first: int) -> torch.Tensor:
    """Pads (0) after the first end token at or after place ``first``."""
    ended = (tokens == end_id) & (torch.arange(tokens.shape[1]) >= first)
    after = (ended.cumsum(dim=1) - ended.long()) > 0
    return tokens.masked_fill(after, 0)


# ---- decoding ------------------------------------------------------------------------------------

MODELS = {
    "world": {},
    "layer scale": {"text_cfg__ls_init_value": 0.3, "multimodal_cfg__ls_init_value": 0.5},
    "pads hidden where they are": {},
    "no attentional pooling": {"vision_cfg__attentional_pool": False, "vision_cfg__width": 48},
}


@pytest.fixture(scope="module")
def models(tokenizer):
    made = {name: random_model(tokenizer, 7, **changes) for name, changes in MODELS.items()}
    made["pads hidden where they are"].text.correct_cls_mask = True
    return made


@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_cached_decoding_gives_the_tokens_of_the_whole_model(models, tokenizer, data):
    model = models[data.draw(st.sampled_from(list(MODELS)))]
    images = random_images(data.draw(st.integers(1, 4)), data.draw(st.integers(0, 99)))
    max_len = data.draw(st.integers(2, 16))
    length = data.draw(st.integers(1, min(4, max_len)))
    rows = st.lists(st.integers(1, len(tokenizer) - 1), min_size=length, max_size=length)
    prompt = torch.tensor([data.draw(rows) for _ in images])
    arguments = {"max_len": max_len, "prompt": prompt}

    # The text encoder hides its pad token: make that a token which does get written.
    likely = captioner.generate(model, images, end_id=-1, **arguments)[:, length:]
    model.text.pad_id = data.draw(st.sampled_from([0, *likely.flatten().tolist()]))
    if model.text.pad_id in prompt[:, 0]:
        model.text.pad_id = 0
    endless = by_the_book(model, images, prompt, max_len)
    # Captions end early where the end token is one that gets written.
    end_id = data.draw(st.sampled_from([-1, *endless[:, length - 1 :].flatten().tolist()]))
    expected = cut(endless, end_id, first=length - 1)
    assert torch.equal(captioner.generate(model, images, end_id=end_id, **arguments), expected)
    plain = captioner.generate_uncached(model, images, end_id=end_id, **arguments)
    assert torch.equal(plain, expected)


def test_cached_decoding_without_a_cls_token(tokenizer):
    model = random_model(tokenizer, text_cfg__embed_cls=False)
    images = random_images(4)
    tokens = captioner.generate(model, images, max_len=40, end_id=-1)
    # open_clip reads such texts at full length only: each token must be what it expects next
    logits = model(images, tokens, output_labels=False)["logits"]
    assert torch.equal(logits[:, :-1].argmax(dim=-1), tokens[:, 1:])
    assert len(tokens.unique()) > 10


def test_a_batch_gives_what_each_image_gives_alone(tokenizer):
    model, images = random_model(tokenizer), random_images(9)
    end_id = int(captioner.generate(model, images, max_len=20, end_id=-1)[3, 6])
    together = captioner.generate(model, images, max_len=20, end_id=end_id)
    alone = [captioner.generate(model, x[None], max_len=20, end_id=end_id)[0] for x in images]
    assert torch.equal(together, torch.stack(alone))
    assert torch.equal(
        together[:, :12], captioner.generate(model, images, max_len=12, end_id=end_id)
    )


def test_a_finished_caption_leaves_the_batch(tokenizer, monkeypatch):
    model, images = random_model(tokenizer), random_images(9)
    end_id = int(captioner.generate(model, images, max_len=20, end_id=-1)[3, 6])
    seen, encoded = [], []
    step = caption_decoding.decode_step

    def counting_step(model, cache, tokens, position):
        assert all(layer.shape[1] == len(tokens) for layer in cache.text + cache.image)
        seen.append(len(tokens))
        return step(model, cache, tokens, position)

    monkeypatch.setattr(caption_decoding, "decode_step", counting_step)
    model.visual.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(inputs[0]))
    )
    tokens = captioner.generate(model, images, max_len=20, end_id=end_id)
    ended = (tokens == end_id).cumsum(dim=1) > 0
    unfinished = (~ended).sum(dim=0).tolist()  # at each place
    assert seen == unfinished[:-1]
    assert seen[0] == 9 and seen[-1] < 9
    assert encoded == [9]


def test_nothing_is_computed_once_all_captions_have_ended(tokenizer, monkeypatch):
    model, images = random_model(tokenizer), random_images(2)
    prompt = torch.tensor([[2, 40, 1], [2, 50, 1]])
    monkeypatch.setattr(caption_decoding, "decode_step", None)
    tokens = captioner.generate(model, images, max_len=6, prompt=prompt)
    assert tokens.tolist() == [[2, 40, 1, 0, 0, 0], [2, 50, 1, 0, 0, 0]]


def test_decoding_says_what_it_cannot_do(tokenizer):
    model, images = random_model(tokenizer), random_images(2)
    assert captioner.generate(model, images, max_len=40).shape == (2, 40)
    with pytest.raises(UserError, match="max_len is 41.*1 to 40 tokens"):
        captioner.generate(model, images, max_len=41)
    with pytest.raises(UserError, match="prompt has shape"):
        captioner.generate(model, images, max_len=5, prompt=torch.zeros(3, 2, dtype=torch.long))
    with pytest.raises(UserError, match="prompt has shape"):
        captioner.generate(model, images, max_len=5, prompt=torch.zeros(2, 6, dtype=torch.long))
    del model.end_id
    with pytest.raises(UserError, match="give start_id and end_id"):
        captioner.generate(model, images, max_len=5)
    model.text = nn.Linear(2, 2)  # as a Hugging Face text encoder: not open_clip's
    with pytest.raises(UserError, match="open_clip's own causal text encoder"):
        captioner.generate(model, images, max_len=5, end_id=1)


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


# ---- losses --------------------------------------------------------------------------------------


def test_the_loss_is_open_clip_s(tokenizer):
    model = captioner.build(tokenizer, config=tiny_config())
    images = random_images(len(CAPTIONS))
    tokens = captioner.encode(tokenizer, CAPTIONS, 40)
    output = model(images, tokens)
    names = ("image_features", "text_features", "logits", "labels", "logit_scale")
    reference = open_clip.CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=0.5, pad_id=0)
    expected = reference(**{name: output[name] for name in names}, output_dict=True)
    ours = captioner.loss(model, images, tokens, contrastive=0.5, captioning=2.0)
    assert set(ours) == {"loss", "contrastive", "captioning"}
    torch.testing.assert_close(ours["loss"], sum(expected.values()))
    torch.testing.assert_close(0.5 * ours["contrastive"], expected["contrastive_loss"])
    torch.testing.assert_close(2.0 * ours["captioning"], expected["caption_loss"])

    alone = captioner.loss(model, images, tokens, contrastive=0.0, captioning=2.0)
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
        values = captioner.loss(model, images, tokens, contrastive=0, captioning=1)
        values["loss"].backward()
        results.append((values["loss"], model.text.token_embedding.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1])


def test_contrastive_loss_by_hand():
    feature = torch.tensor([[3.0, 0.0], [0.0, 5.0]])
    # cosine 1 on the diagonal, 0 beside it, scale 2: -log(e^2 / (e^2 + e^0)) both ways
    matched = captioner.contrastive_loss(feature, feature, torch.tensor(2.0).log())
    assert float(matched) == pytest.approx(np.log(1 + np.exp(-2)))
    swapped = captioner.contrastive_loss(feature, feature.flip(0), torch.tensor(2.0).log())
    assert float(swapped) == pytest.approx(2 + np.log(1 + np.exp(-2)))
    bounded = captioner.contrastive_loss(feature, feature.flip(0), torch.tensor(9.0))
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
        value = captioner.token_log_likelihood(
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
            values = captioner.loss(model, torch.zeros(4, 3, 64, 64), tokens, contrastive, 1.0)
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


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tokenizer, tmp_path_factory):
    """A tiny model that has learned eight images by heart: (model, images, log)."""
    images = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    model = captioner.build(tokenizer, config=tiny_config())
    log = captioner.train_captioner(
        model,
        tokenizer,
        images,
        CAPTIONS,
        seed=0,
        steps=100,
        batch_size=8,
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
    right = captioner.token_log_likelihood(model, tokenizer, images, CAPTIONS)
    wrong = captioner.token_log_likelihood(model, tokenizer, shuffled, CAPTIONS)
    assert right < 0.1 < 1 < wrong
    tensor = captioner.pixels(model, images[:2])
    assert captioner.caption(model, tokenizer, tensor, max_len=40, progress=False) == CAPTIONS[:2]


def test_a_trained_model_decodes_as_the_whole_model(trained):
    model, images, _ = trained
    mixed = torch.cat([captioner.pixels(model, images), random_images(24, seed=5)])
    cached = captioner.generate(model, mixed, max_len=40)
    assert torch.equal(cached, captioner.generate_uncached(model, mixed, max_len=40))
    assert len({int(row.argmin()) for row in cached}) > 1  # captions of several lengths
