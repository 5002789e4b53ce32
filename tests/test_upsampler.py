"""The embedded upsampler: what it learns from, its loss, and texts that seed and prompt decide."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from dalle3lib import UserError, paths, prompt_facts, recaption, text, upsampler
from dalle3lib.randomness import rng
from dalle3lib.world import World

torch.set_num_threads(1)
SHORT = [World("dev", 24).captions(i)[1] for i in range(24)]


@pytest.fixture(scope="module")
def shipped():
    return upsampler.load()


# ---- what it learns from -------------------------------------------------------------------------


def test_examples_agree_and_are_the_committed_captions():
    short, long = upsampler.examples(30)
    assert len(short) == len(long) and 60 < len(short) <= 120
    assert all(map(prompt_facts.agree, short, long))
    written = set(list(recaption.committed()["dsc"].values())[:30])
    assert set(long) <= written
    human = {World("train", 30).captions(i)[1] for i in range(30)}
    ssc = set(list(recaption.committed()["ssc"].values())[:30])
    assert ssc & set(short) and human & set(short)


def test_without_captions_there_is_nothing_to_learn(foundations):
    with pytest.raises(UserError, match="data/captions"):
        upsampler.examples(3)


def test_it_starts_as_the_text_encoder():
    model, tokenizer = upsampler.build(paths.foundation("t5"))
    encoder, _ = text.load(paths.foundation("t5"))
    ids = torch.tensor([tokenizer("a red circle on snow.").input_ids])
    with torch.no_grad():
        assert torch.equal(model.encoder(ids).last_hidden_state, encoder(ids).last_hidden_state)
    assert all(p.requires_grad for p in model.parameters())


def test_the_loss_is_the_surprise_at_each_token_alone():
    """Padding counts for nothing: a batch's loss is the mean over real tokens."""
    model, tokenizer = upsampler.build(paths.foundation("t5"))
    texts = ["a red circle.", "a large plain blue star at the top, in front of snow."]
    tokens = upsampler.tokens(tokenizer, texts)
    assert all(ids[-1] == text.END for ids in tokens)
    with torch.no_grad():
        both = upsampler.loss(model, tokens, tokens[::-1]).item()
        surprises = []
        for source, target in zip(tokens, tokens[::-1], strict=True):
            shifted = torch.cat([torch.tensor([text.PAD]), target[:-1]])
            logits = model(source[None], decoder_input_ids=shifted[None]).logits[0]
            surprises.append(F.cross_entropy(logits, target, reduction="none"))
    assert both == pytest.approx(torch.cat(surprises).mean().item(), abs=1e-5)
    at = upsampler.step_loss(model, tokens, tokens, seed=0, batch=2)
    assert at(3)["loss"].item() == at(3)["loss"].item()


# ---- writing -------------------------------------------------------------------------------------


def test_a_text_depends_on_seed_and_prompt_alone(shipped):
    together = upsampler.write(*shipped, SHORT, seed=3)
    assert upsampler.write(*shipped, SHORT[::-1], seed=3)[::-1] == together
    assert upsampler.write(*shipped, SHORT, seed=3, batch=5) == together
    assert [upsampler.write(*shipped, [p], seed=3)[0] for p in SHORT[:6]] == together[:6]
    torch.manual_seed(1)
    assert upsampler.write(*shipped, SHORT, seed=3) == together
    other = upsampler.write(*shipped, SHORT, seed=4)
    assert sum(a == b for a, b in zip(together, other, strict=True)) < 4


def test_no_nucleus_and_no_heat_is_the_likeliest_text(shipped):
    model, tokenizer = shipped
    cold = upsampler.write(model, tokenizer, SHORT[:4], seed=0, temperature=1e-4)
    assert upsampler.write(model, tokenizer, SHORT[:4], seed=1, temperature=1e-4) == cold
    assert upsampler.write(model, tokenizer, SHORT[:4], seed=1, top_p=1e-6) == cold
    given = tokenizer(SHORT[:4], padding=True, return_tensors="pt")
    greedy = model.generate(**given, max_new_tokens=upsampler.MAX_TOKENS, do_sample=False)
    plain = tokenizer.batch_decode(greedy, skip_special_tokens=True)
    assert [one.strip() for one in plain] == cold


@settings(max_examples=10)
@given(st.lists(st.floats(-3, 3), min_size=3, max_size=5))
def test_the_noise_samples_in_proportion_to_probability(logits):
    """The likeliest of noised logits is drawn as often as softmax says (Gumbel-max)."""
    scores = torch.tensor([logits])
    counts = np.zeros(len(logits))
    for seed in range(2000):
        noise = upsampler.SeededNoise(["a red circle."], seed)
        counts[noise(torch.zeros(1, 1, dtype=torch.long), scores).argmax().item()] += 1
    expected = F.softmax(scores[0].double(), -1).numpy()
    spread = np.sqrt(expected * (1 - expected) / 2000)
    assert (abs(counts / 2000 - expected) < 5 * spread + 1e-3).all()


def test_the_noise_is_that_of_prompt_and_position():
    scores = torch.zeros(2, 7)
    noise = upsampler.SeededNoise(["a", "b"], 5)
    first = noise(torch.zeros(2, 1, dtype=torch.long), scores)
    assert torch.equal(first, noise(torch.ones(2, 1, dtype=torch.long), scores))
    assert not torch.equal(first, noise(torch.zeros(2, 2, dtype=torch.long), scores))
    assert torch.allclose(
        first[1], torch.from_numpy(rng(5, "upsample/b", 1).gumbel(size=7)).float()
    )


def test_an_empty_prompt_is_one_sentence(shipped):
    with pytest.raises(UserError, match="Prompt number 1 is empty"):
        upsampler.write(*shipped, ["a red circle.", "  "], seed=0)


def test_no_prompts_no_texts(shipped):
    assert upsampler.write(*shipped, [], seed=0) == []


def test_it_can_read_anything(shipped):
    written = upsampler.write(*shipped, ["Ein roter Kreis 🎈", "x" * 400], seed=0)
    assert all(isinstance(one, str) for one in written)


def test_the_shipped_one_does_what_it_is_for(shipped):
    """Far above chance: chance keeps an eighth of shapes and of colours."""
    texts = upsampler.write(*shipped, SHORT, seed=0)
    counts = prompt_facts.table(SHORT, [prompt_facts.facts_of(t) for t in texts]).sum()
    assert counts["kept"].sum() / counts.sum() > 0.8
    lengths = [len(t.split()) for t in recaption.committed()["dsc"].values()]
    assert min(lengths) <= np.mean([len(t.split()) for t in texts]) <= max(lengths)
