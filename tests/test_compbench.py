"""BLIP-VQA: questions and products by hand, and the answers of one plain forward per question."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
)

from dalle3lib import UserError, paths
from dalle3lib.evals import compbench, noun_phrases, vqa
from dalle3lib.evals.compbench import questions
from dalle3lib.world import probe, render, scene
from dalle3lib.world.compositions import BOUND, composition

torch.set_num_threads(1)

PROMPTS = ["a red circle and a blue square", "a top on the left", "two green stars", "rain"]
PHRASES = {
    PROMPTS[0]: ["a red circle", "a blue square"],
    PROMPTS[1]: ["top", "a top", "the left"],
    PROMPTS[2]: ["two green stars"],
    PROMPTS[3]: [],
}
IMAGES = np.stack([render(scene("test", i)) for i in range(4)])
STATES = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
STATES |= {"num_hidden_layers": 2}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A random BLIP with BERT's words as public ones have; larger weights make answers differ."""
    path = tmp_path_factory.mktemp("blip")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?"]
    words += "a red circle and blue square top on the left two green stars rain".split()
    words = {word: i for i, word in enumerate(dict.fromkeys(words))}
    vision = {"image_size": 32, "patch_size": 8, "initializer_range": 0.02}
    text = {"vocab_size": len(words) + 2, "bos_token_id": len(words), "pad_token_id": 0}
    text |= {"sep_token_id": 3, "eos_token_id": 3, "max_position_embeddings": 64}
    config = BlipConfig(vision_config=STATES | vision, text_config=STATES | text)
    torch.manual_seed(0)
    model = BlipForQuestionAnswering(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embeddings" not in name:
                weight.mul_(8)
    image = BlipImageProcessor(size={"height": 32, "width": 32})
    model.save_pretrained(path)
    BlipProcessor(image, BertTokenizer(vocab=words)).save_pretrained(path)
    return vqa.load(path)


@torch.no_grad()
def plain(model, processor, image: np.ndarray, question: str) -> float:
    """p(yes) / (p(yes) + p(no)) by transformers' own forward, alone: a loss is -log p(answer)."""
    inputs = processor(images=image, text=question, return_tensors="pt")
    share = {}
    for word in ("yes", "no"):
        token = processor.tokenizer.convert_tokens_to_ids(word)
        labels = torch.tensor([[model.decoder_start_token_id, token]])
        output = model(**inputs, labels=labels, interpolate_pos_encoding=True)
        share[word] = np.exp(-output.loss.item())
    return share["yes"] / (share["yes"] + share["no"])


# ---- questions -----------------------------------------------------------------------------------


def test_questions_by_hand():
    assert questions(["A red circle", 'Dr. (No)\'s #1: "cat"!']) == [
        "a red circle?",
        "dr no's 1 cat?",
    ]
    assert questions([]) == []
    long = " ".join(f"w{i}" for i in range(60))
    assert questions([long]) == [" ".join(f"w{i}" for i in range(50))]  # the mark is cut off too


def test_protocols_differ_in_number_and_in_phrases_of_place():
    phrases = ["top", "a", "the left", "b", "the right", "c", "the side", *"defghij"]
    assert questions(phrases, "2023") == ["top?", "a?"]
    assert questions(phrases, "2024") == [f"{x}?" for x in "abcdefgh"]
    assert questions(["The left", "the top"], "2024") == ["the left?", "the top?"]  # as written
    with pytest.raises(UserError, match="no protocol '2025': choose 2023 or 2024"):
        questions(phrases, "2025")


# ---- answers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 48])
def test_answers_are_those_of_one_forward_per_question(judge, size):
    """To four decimals, at the model's own size and at another one."""
    model, processor = judge
    if size:
        processor = compbench.at_size(processor, size)
    found = compbench.answers(model, processor, IMAGES, PROMPTS, PHRASES, batch=3)
    assert [list(f) for f in found] == [
        ["a red circle?", "a blue square?"],
        ["top?", "a top?"],
        ["two green stars?"],
        [],
    ]
    expected = [plain(model, processor, IMAGES[i], q) for i, f in enumerate(found) for q in f]
    values = [p for f in found for p in f.values()]
    assert np.allclose(values, expected, atol=1e-4) and np.ptp(values) > 0.01
    assert values == [round(p, 4) for p in values]


def test_a_picture_is_encoded_once(judge):
    seen = []
    hook = judge[0].vision_model.register_forward_hook(
        lambda _, __, output: seen.append(len(output.last_hidden_state))
    )
    compbench.answers(*judge, IMAGES, PROMPTS, PHRASES, batch=3)
    hook.remove()
    assert sum(seen) == 3  # nothing is asked of the last picture


def test_the_size_is_that_of_the_processor(judge):
    own, larger = judge[1], compbench.at_size(judge[1], 48)
    options = {"return_tensors": "pt", "input_data_format": "channels_last"}
    sizes = [p.image_processor(list(IMAGES), **options).pixel_values.shape for p in (own, larger)]
    assert [tuple(s[2:]) for s in sizes] == [(32, 32), (48, 48)]
    assert larger.image_processor.image_mean == own.image_processor.image_mean
    assert compbench.at_size(judge[1]).image_processor.size["height"] == 480
    a, b = (vqa.p_yes(judge[0], p, IMAGES[:1], ["a red circle?"]) for p in (own, larger))
    assert a != b


# ---- scores --------------------------------------------------------------------------------------

FOUND = [
    {"a red circle?": 0.93, "a blue square?": 0.08},
    {"top?": 0.1, "a top?": 0.5},
    {"two green stars?": 0.1234},
    {},
]


def test_scores_by_hand():
    frame = compbench.scores(PROMPTS, PHRASES, FOUND, protocol="2024", seed=[1, 2, 3, 4])
    assert list(frame) == ["prompt", "seed", "image", "score", "reason"]
    assert frame.score.tolist() == [0.0744, 0.5, 0.1234, 1]  # missing phrases count 1
    assert frame.reason[0] == "a red circle? 0.93; a blue square? 0.08"
    assert frame.reason[3] == "no phrase" and frame.seed.tolist() == [1, 2, 3, 4]
    earlier = compbench.scores(PROMPTS, PHRASES, FOUND, protocol="2023")
    assert earlier.score.tolist() == [0.0744, 0.05, 0.1234, 1]


def test_a_phrase_said_twice_counts_twice():
    frame = compbench.scores(["p"], {"p": ["a cat", "a cat"]}, [{"a cat?": 0.5}])
    assert frame.score.tolist() == [0.25] and frame.reason[0] == "a cat? 0.50; a cat? 0.50"


def test_bvqa_is_the_scores_of_the_answers(judge):
    found = compbench.answers(*judge, IMAGES, PROMPTS, PHRASES)
    for protocol in compbench.PROTOCOLS:
        frame = compbench.bvqa(*judge, IMAGES, PROMPTS, PHRASES, protocol=protocol, seed=5)
        expected = compbench.scores(PROMPTS, PHRASES, found, protocol=protocol, seed=5)
        pd.testing.assert_frame_equal(frame, expected)


def test_prompts_without_noted_phrases_are_counted_and_named(judge):
    with pytest.raises(UserError, match="2 prompts have no noun phrases, the first is 'x'"):
        compbench.bvqa(*judge, IMAGES, ["x", "rain", "y", "x"], PHRASES)
    with pytest.raises(UserError, match="4 images but 1 prompts"):
        compbench.bvqa(*judge, IMAGES, ["rain"], PHRASES)


# ---- other categories ----------------------------------------------------------------------------


def test_cosines_are_of_the_prompt_or_of_another_text(monkeypatch):
    heard = []

    def clip_scores(model, tokenizer, images, texts):
        heard.append(list(texts))
        return np.array([31.0, -2.0])

    monkeypatch.setattr(compbench.clip_score, "clip_scores", clip_scores)
    frame = compbench.clip_cosines(None, None, IMAGES[:2], ["a", "b"])
    assert frame.score.tolist() == [0.31, -0.02] and frame.reason[0] == "cosine with 'a'"
    compbench.clip_cosines(None, None, IMAGES[:2], ["a", "b"], {"a": "x", "b": "y"})
    assert heard == [["a", "b"], ["x", "y"]]


def scored(*values: float, prompts="abc") -> pd.DataFrame:
    rows = {"prompt": list(prompts), "seed": 1, "image": range(3), "score": values, "reason": ""}
    return pd.DataFrame(rows)


def test_three_in_one_by_hand():
    parts = scored(0.4, 0.4, 0.4), scored(0.8, 0.8, 0.8), scored(0.3, 0.3, 0.3)
    frame = compbench.three_in_one(["spatial", "action", "both"], *parts)
    assert frame.score.tolist() == pytest.approx([0.6, 0.35, 0.5])
    assert frame.reason[0] == "BLIP-VQA 0.40; place 0.80"
    with pytest.raises(UserError, match="not of the same images"):
        compbench.three_in_one(["both"] * 3, *parts[:2], scored(1, 1, 1, prompts="abd"))


# ---- prompts -------------------------------------------------------------------------------------


def test_the_benchmarks_prompts(benchmarks):
    found = {category: compbench.prompts(category) for category in compbench.FILES}
    assert {len(prompts) for prompts in found.values()} == {300}
    assert found["colour"][0] == "a green bench and a blue bowl"
    kinds = compbench.complex_kinds(found["complex"])
    assert [kinds.count(k) for k in ("spatial", "action", "both")] == [58, 212, 30]
    assert compbench.prompts("shape", benchmarks / "t2i-compbench") == found["shape"]


def test_without_the_files_their_home_is_told(tmp_path, monkeypatch):
    monkeypatch.delenv("DALLE3_BENCHMARKS", raising=False)
    with pytest.raises(UserError, match="no folder is given.*Karine-Huang/T2I-CompBench"):
        compbench.prompts("colour")
    with pytest.raises(UserError, match="color_val.txt is missing.*Karine-Huang/T2I-CompBench"):
        compbench.prompts("colour", tmp_path)
    with pytest.raises(UserError, match="no category '3d': choose one of colour, shape"):
        compbench.prompts("3d", tmp_path)


# ---- the world -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["colour", "shape", "texture"])
def test_the_worlds_judge_tells_bound_attributes_from_swapped_ones(name):
    """The shipped judge, asked about pictures that show the prompt or its attributes swapped."""
    probes = composition(name, 20)
    images, swapped = (
        np.stack([render(spec) for spec in some])
        for some in (
            [one.scene for one in probes],
            [swap(one.scene, BOUND[name]) for one in probes],
        )
    )
    prompts, judge = [one.prompt for one in probes], vqa.load(paths.foundation("judge"))
    phrases = noun_phrases.of_world(prompts)
    right = compbench.bvqa(*judge, images, prompts, phrases)
    wrong = compbench.bvqa(*judge, swapped, prompts, phrases)
    assert right.score.mean() > 0.9 and wrong.score.mean() < 0.1


def swap(spec, attribute: str):
    a, b = spec.objects
    values = getattr(b, attribute), getattr(a, attribute)
    objects = (replace(o, **{attribute: v}) for o, v in zip((a, b), values, strict=True))
    return replace(spec, objects=tuple(objects))


def test_the_worlds_prompts_are_asked_about_their_phrases(judge):
    prompts = [one.prompt for one in probe("spatial", 4)]
    frame = compbench.bvqa(*judge, IMAGES, prompts, noun_phrases.of_world(prompts))
    assert frame.reason.str.count(r"\?").tolist() == [2] * 4 and frame.score.between(0, 1).all()
