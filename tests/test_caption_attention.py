"""Attention over the image: the layers' own weights, composed, and the words they belong to."""

import copy

import numpy as np
import pytest
import torch
from tiny_coca import (
    CAPTIONS,
    public_model,
    random_images,
    random_model,
    roberta_model,
    tiny_tokenizer,
)
from torch.nn import functional as F

from dalle3lib import UserError, captioner
from dalle3lib.caption_attention import (
    Word,
    over_image,
    trace,
    watched,
    word_maps,
    words,
)
from dalle3lib.caption_decoding import all_logits, encode_images

torch.set_num_threads(1)
TOKENIZER = tiny_tokenizer()


def models(directory):
    """A model of ours, a public architecture, one with a text encoder that looks both ways."""
    yield "ours", random_model(TOKENIZER)
    two = {"vision_cfg__attentional_pool": "parallel", "vision_cfg__width": 48}
    yield "two poolers", random_model(TOKENIZER, **two)
    yield "one width", random_model(TOKENIZER, vision_cfg__width=48)
    yield "public", public_model("coca_ViT-B-32")
    yield "roberta", roberta_model(directory, hf_pooler_type="mean_pooler")


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """For each model: itself, three images and captions of them."""
    found = {}
    for name, model in models(tmp_path_factory.mktemp("roberta")):
        images = random_images(3, size=model.visual.image_size[0])
        found[name] = model, images, captioner.generate(model, images, max_len=9)
    return found


NAMES = ("ours", "two poolers", "one width", "public", "roberta")


def attend(layer, query, key, value):
    """Multi-head attention written out: (weights [B, heads, T, S], output [B, T, width])."""
    width, heads = layer.embed_dim, layer.num_heads
    if layer.in_proj_weight is None:
        matrices = layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight
    else:
        matrices = layer.in_proj_weight.split(width)
    projected = zip((query, key, value), matrices, layer.in_proj_bias.split(width), strict=True)
    q, k, v = (F.linear(*p).unflatten(-1, (heads, -1)).transpose(1, 2) for p in projected)
    weights = (q @ k.transpose(-1, -2) / (width // heads) ** 0.5).softmax(dim=-1)
    return weights, layer.out_proj((weights @ v).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_watched_weights_make_the_output_of_the_layer(cases, name):
    model, images, tokens = cases[name]
    layers = [block.attn for block in model.text_decoder.cross_attn]
    layers += [model.visual.attn_pool.attn] if model.visual.attn_pool else []
    for layer in layers:
        seen = []
        hook = layer.register_forward_hook(
            lambda module, given, output, seen=seen: seen.append((given, output[0]))
        )
        plain = all_logits(model, encode_images(model, images), tokens)
        with watched(layer) as calls:
            same = all_logits(model, encode_images(model, images), tokens)
        hook.remove()
        torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-4)  # watching changes nothing
        (given, unwatched), (_, output) = seen
        weights, expected = attend(layer, *given)
        assert len(calls) == 1
        torch.testing.assert_close(calls[0], weights)
        torch.testing.assert_close(output, expected)
        torch.testing.assert_close(unwatched, expected)


def test_nobody_watches_afterwards(cases):
    layer = cases["ours"][0].visual.attn_pool.attn
    with pytest.raises(KeyError), watched(layer):
        raise KeyError
    assert not layer._forward_hooks and not layer._forward_pre_hooks


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_attention_over_patches_is_the_product_of_both(cases, name):
    model, images, tokens = cases[name]
    looked = over_image(model, images, tokens)
    assert looked.patches.shape == (3, 8, *model.visual.grid_size)
    total = looked.patches.sum(dim=(2, 3)) + looked.class_token
    torch.testing.assert_close(total, torch.ones(3, 8))
    # one token of one caption, each layer alone, its prefix alone
    read = tokens[1:2, :4]
    layers = [block.attn for block in model.text_decoder.cross_attn]
    expected = 0
    vectors = encode_images(model, images[1:2])
    if model.visual.attn_pool:
        with watched(model.visual.attn_pool.attn) as pooled:
            encode_images(model, images[1:2])
        queries = pooled[0].mean(dim=1)[0, -vectors.shape[1] :]
    else:
        queries = torch.eye(1 + vectors.shape[1])[1:]
    for layer in layers:
        with watched(layer) as calls:
            all_logits(model, vectors, read)
        word = calls[0][0, :, 3].mean(dim=0)
        for amount, query in zip(word, queries, strict=True):
            expected = expected + amount * query / len(layers)
    found = torch.cat([looked.class_token[1, 3:4], looked.patches[1, 3].flatten()])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("name", NAMES)
def test_later_words_and_other_captions_change_nothing(cases, name):
    model, images, tokens = cases[name]
    other = tokens.clone()
    other[:, 5:] = (other[:, 5:] + 7) % 50 + 3
    one, two = over_image(model, images, tokens), over_image(model, images[:2], other[:2])
    torch.testing.assert_close(one.patches[:2, :5], two.patches[:, :5])


def test_another_image_encoder_is_a_sentence(cases):
    model, images, tokens = cases["ours"]
    model = copy.copy(model)
    model._modules = model._modules | {"visual": torch.nn.Identity()}
    with pytest.raises(UserError, match="a Identity, whose attention"):
        over_image(model, images, tokens)


# ---- words ---------------------------------------------------------------------------------------


def spelt(tokenizer, model, text):
    """The words of a text, and the text again from the tokens of each word."""
    (row,) = captioner.encode(tokenizer, [text], 40)
    found = words(tokenizer, row, model.end_id)
    start = row[:1]
    again = [
        captioner.decode(tokenizer, torch.cat([start, row[w.places]])[None], model.end_id)[0]
        for w in found
    ]
    return [w.text for w in found], again, row


@pytest.mark.parametrize("name", ["ours", "public"])
@pytest.mark.parametrize("text", [*CAPTIONS, "a red star.", "left, half-full"])
def test_each_word_has_the_tokens_that_spell_it(cases, name, text):
    model = cases[name][0]
    tokenizer = TOKENIZER
    if name == "public":
        tokenizer = captioner.open_clip.get_tokenizer("coca_ViT-B-32")
    found, again, _ = spelt(tokenizer, model, text)
    assert again == found
    assert "".join(found).replace(" ", "").lower() == text.replace(" ", "").lower()


def test_a_token_of_two_marks_belongs_to_both(cases):
    tokenizer = captioner.open_clip.get_tokenizer("coca_ViT-B-32")
    found, again, _ = spelt(tokenizer, cases["public"][0], "the word 'no'; red")
    assert found == ["the", "word", "'", "no", "'", ";", "red"]
    assert again == ["the", "word", "'", "no", "';", "';", "red"]


def test_marks_and_quotations_are_words_of_their_own(cases):
    model = cases["ours"][0]
    found, _, row = spelt(TOKENIZER, model, 'a red circle. it says "go up", see?')
    assert found == ["a", "red", "circle", ".", "it", "says", '"go up"', ",", "see", "?"]
    every = [place for word in words(TOKENIZER, row, model.end_id) for place in word.places]
    assert every == sorted(every)
    assert every[0] == 1 and every[-1] == int((row == model.end_id).nonzero()[0]) - 1


def test_a_caption_that_never_ended_and_an_empty_one(cases):
    model = cases["ours"][0]
    (row,) = captioner.encode(TOKENIZER, ["a red circle"], 40)
    cut = row[: int((row == model.end_id).nonzero()[0])]
    assert [w.text for w in words(TOKENIZER, cut, model.end_id)] == ["a", "red", "circle"]
    nothing = torch.tensor([model.start_id, model.end_id, model.pad_id])
    assert words(TOKENIZER, nothing, model.end_id) == []


def test_a_word_looks_where_its_tokens_look_on_average():
    patches = torch.tensor([[[0.5, 0.3]], [[0.1, 0.1]], [[0.0, 0.4]]])  # [3 tokens, 1 row, 2]
    maps = word_maps([Word("a", [1]), Word("bc", [2, 3])], patches)
    np.testing.assert_allclose(maps, [[[5 / 8, 3 / 8]], [[1 / 6, 5 / 6]]], rtol=1e-6)


def test_a_trace_is_the_caption_that_is_written(cases):
    model, _, _ = cases["ours"]
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    whole, parts = (trace(model, TOKENIZER, images, max_len=12, batch_size=n) for n in (5, 2))
    assert torch.equal(whole.tokens, parts.tokens) and whole.words == parts.words
    torch.testing.assert_close(whole.patches, parts.patches)
    torch.testing.assert_close(whole.class_token, parts.class_token)
    written = captioner.caption(model, TOKENIZER, images, max_len=12, progress=False)
    spelled = captioner.decode(TOKENIZER, whole.tokens, model.end_id)
    assert spelled == written and len(whole.words) == 5
