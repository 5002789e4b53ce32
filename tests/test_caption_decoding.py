"""Cached decoding against the plain computation, for every kind of open_clip CoCa."""

import copy
import os

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_coca import (
    public_model,
    random_images,
    random_model,
    roberta_model,
    spread,
    tiny_tokenizer,
)

from dalle3lib import UserError, caption_decoding, captioner, paths
from dalle3lib.world import render, scene


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


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
    step = caption_decoding.CachedReader.__call__

    def counting_step(reader, tokens):
        assert all(len(layer) == len(tokens) for layer in reader.text + reader.image)
        seen.append(len(tokens))
        return step(reader, tokens)

    monkeypatch.setattr(caption_decoding.CachedReader, "__call__", counting_step)
    model.visual.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(inputs[0]))
    )
    tokens = captioner.generate(model, images, max_len=20, end_id=end_id)
    ended = (tokens == end_id).cumsum(dim=1) > 0
    unfinished = (~ended).sum(dim=0).tolist()  # at each place
    assert seen == unfinished[:-1]
    assert seen[0] == 9 and seen[-1] < 9
    assert encoded == [9]


@pytest.mark.parametrize("beams", [1, 3])
def test_each_token_is_read_once_and_the_image_once_for_all_beams(tokenizer, beams, monkeypatch):
    model, images = random_model(tokenizer), random_images(5)
    queries, step = [], caption_decoding.cross_attention_step

    def counting_step(block, x, image):
        assert len(image) == 5  # never copied for the beams
        queries.append(len(x))
        return step(block, x, image)

    monkeypatch.setattr(caption_decoding, "cross_attention_step", counting_step)
    encoded = []
    model.visual.register_forward_hook(
        lambda module, inputs, output: encoded.append(len(inputs[0]))
    )
    options = {"strategy": "beam", "num_beams": beams} if beams > 1 else {}
    captioner.generate(model, images, max_len=12, end_id=-1, **options)
    assert queries == [5 * beams] * 11 * 3 and encoded == [5]


def test_nothing_is_computed_once_all_captions_have_ended(tokenizer):
    model, images = random_model(tokenizer), random_images(2)
    prompt = torch.tensor([[2, 40, 1], [2, 50, 1]])
    model.visual.register_forward_hook(lambda *arguments: pytest.fail("an image was encoded"))
    for strategy in ("greedy", "beam"):
        tokens = captioner.generate(model, images, max_len=6, prompt=prompt, strategy=strategy)
        assert tokens.tolist() == [[2, 40, 1, 0, 0, 0], [2, 50, 1, 0, 0, 0]]
    with pytest.raises(pytest.fail.Exception):
        captioner.generate(model, images, max_len=6)


# ---- public architectures ------------------------------------------------------------------------

STRATEGIES = {
    "greedy": {},
    "beam": {"strategy": "beam", "num_beams": 3},
    "sample": {"strategy": "sample", "top_k": 50, "top_p": 0.95, "temperature": 2.0},
}


def both(model, images, strategy: str, **options) -> tuple[torch.Tensor, torch.Tensor]:
    """The captions of ``generate`` and of its definition, with the same noise."""
    results = []
    for function in (captioner.generate, captioner.generate_uncached):
        if strategy == "sample":
            options["generator"] = torch.Generator().manual_seed(3)
        results.append(function(model, images, **STRATEGIES[strategy], **options))
    return tuple(results)


@pytest.fixture(scope="module", params=["coca_ViT-B-32", "coca_ViT-L-14", "coca_base"])
def public(request):
    return public_model(request.param)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_public_architectures(public, strategy):
    assert (public.start_id, public.end_id, public.pad_id) == (49406, 49407, 0)
    images = random_images(4, size=public.visual.image_size[0])
    cached, plain = both(public, images, strategy, max_len=12)
    assert torch.equal(cached, plain)
    assert len(cached.unique()) > 10 and (cached[:, 0] == 49406).all()
    # the same where captions end early, at a token that does get written
    end_id = int(cached[1, 5])
    cached, plain = both(public, images, strategy, max_len=12, end_id=end_id)
    assert torch.equal(cached, plain) and (cached[:, 1:] == 0).any()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_text_encoder_that_looks_both_ways(tmp_path, strategy):
    model, images = roberta_model(tmp_path), random_images(4)
    encoded = []
    hook = model.visual.register_forward_hook(lambda *arguments: encoded.append(1))
    captioner.generate(model, images, max_len=8, **STRATEGIES["beam"])
    assert len(encoded) == 1
    hook.remove()
    prompt = torch.tensor([[0, 50], [0, 51], [0, 52], [0, 1]])  # 1: its own pad
    cached, plain = both(model, images, strategy, max_len=16, prompt=prompt)
    assert torch.equal(cached, plain) and len(cached.unique()) > 10
    model.end_id = int(cached[1, 5])
    cached, plain = both(model, images, strategy, max_len=16, prompt=prompt)
    assert torch.equal(cached, plain) and (cached[:, 2:] == 0).any()
    # it does change its mind: a later token moves the state of an earlier one
    text = torch.tensor([[0, 50, 51], [0, 50, 52]])
    first, second = model.text(text)[1][:, 0]
    assert not torch.allclose(first, second, atol=1e-3)


@pytest.mark.parametrize("embed_cls", [True, False])
def test_blocks_of_another_kind_are_read_again(tokenizer, embed_cls):
    model = random_model(tokenizer, text_cfg__qk_norm=True, text_cfg__embed_cls=embed_cls)
    assert not caption_decoding.is_causal(model)
    cached, plain = both(model, random_images(3), "greedy", max_len=12)
    assert torch.equal(cached, plain)


@pytest.mark.parametrize("everything", [True, False])
def test_bfloat16_weights(tokenizer, everything):
    model, images = random_model(tokenizer), random_images(4)
    model = model.bfloat16() if everything else captioner.to_bfloat16(model)
    tokens = captioner.generate(model, images, max_len=12, end_id=-1)
    assert tokens.shape == (4, 12) and len(tokens.unique()) > 5
    for strategy in STRATEGIES:
        both(model, images, strategy, max_len=6)
    # rounding is coarse, but each token is among the best of the whole model in float32
    with torch.no_grad():
        logits = model.float()(images, tokens[:, :-1], output_labels=False)["logits"]
    chosen = logits.gather(2, tokens[:, 1:, None])[..., 0]
    assert ((logits.amax(dim=-1) - chosen) / logits.std() < 0.25).all()


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
    with pytest.raises(UserError, match="give prompt and end_id"):
        captioner.generate(model, images, max_len=5)


def test_a_pooler_that_takes_a_token_away_is_named(tmp_path):
    model = roberta_model(tmp_path, hf_pooler_type="cls_pooler")
    with pytest.raises(UserError, match="one state per token.*mean pooling"):
        captioner.generate(model, random_images(2), max_len=5)


# ---- many images ---------------------------------------------------------------------------------


def world_model(tokenizer, seed: int) -> open_clip.CoCa:
    """The world's architecture with random weights that write different captions."""
    return spread(captioner.build(tokenizer, seed), seed)


@torch.no_grad()
def gaps_where_different(model, images, cached, plain) -> list[float]:
    """For each caption that differs: how far apart its two best logits were where it first does."""
    gaps = []
    for row in (cached != plain).any(dim=1).nonzero()[:, 0].tolist():
        place = int((cached[row] != plain[row]).nonzero()[0])
        prefix = plain[row : row + 1, :place]
        logits = model(images[row : row + 1], prefix, output_labels=False)["logits"]
        best, second = logits[0, -1].topk(2).values
        gaps.append(float(best - second))
    return gaps


def compare(model, images, batch_size: int = 128) -> tuple[int, list[float]]:
    """Captions compared, cached against plain, and the gaps where they differ."""
    gaps, pads = [], 0
    for part in images.split(batch_size):
        cached = captioner.generate(model, part, max_len=48)
        plain = captioner.generate_uncached(model, part, max_len=48)
        gaps += gaps_where_different(model, part, cached, plain)
        pads += int((plain == 0).sum())
    print(f"{len(images)} captions, {pads / len(images):.1f} pads each, {len(gaps)} differ: {gaps}")
    return gaps


COUNT = int(os.environ.get("DALLE3_SOAK_IMAGES", "10000"))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_ten_thousand_images_with_random_models():
    tokenizer, models = tiny_tokenizer(), 10
    for seed in range(models):
        images = random_images(COUNT // models, seed, size=64)
        assert all(gap < 1e-4 for gap in compare(world_model(tokenizer, seed), images))


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", ["ssc", "dsc"])
def test_ten_thousand_images_with_the_shipped_captioners(kind):
    model, _ = captioner.load(paths.foundation(f"coca-{kind}"))
    pictures = np.stack([render(scene("test", index)) for index in range(COUNT // 2)])
    assert all(gap < 1e-4 for gap in compare(model, captioner.pixels(model, pictures)))


@pytest.mark.soak
def test_bfloat16_agrees_with_float32_on_the_next_token():
    """After the same tokens, the most probable next one is the same, up to close decisions."""
    model, _ = captioner.load(paths.foundation("coca-dsc"))
    pictures = np.stack([render(scene("test", index)) for index in range(1024)])
    images = captioner.pixels(model, pictures)
    coarse = captioner.to_bfloat16(copy.deepcopy(model))
    same, gaps = 0, []
    for part in images.split(128):
        tokens = captioner.generate(model, part, max_len=48)
        with torch.no_grad():
            exact, rounded = (
                torch.stack([read(tokens[:, :place]) for place in range(1, 48)], dim=1)
                for read in (caption_decoding.reader(m, part, 48) for m in (model, coarse))
            )
        written = (tokens[:, 1:] != 0) & (tokens[:, :-1] != model.end_id)
        agree = exact.argmax(dim=-1) == rounded.argmax(dim=-1)
        best, second = exact.topk(2).values.unbind(dim=-1)
        same += int((agree & written).sum())
        gaps += (best - second)[written & ~agree].tolist()
    share = same / (same + len(gaps))
    print(f"{share:.3%} of {same + len(gaps)} tokens agree; gaps {sorted(gaps)}")
    assert share >= 0.999 and max(gaps) < 0.1
