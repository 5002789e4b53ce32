"""Boxes: overlaps by hand, what the world's reader finds where, a public detector in small."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    CLIPTokenizer,
    OwlViTConfig,
    OwlViTForObjectDetection,
    OwlViTImageProcessor,
    OwlViTProcessor,
)

from dalle3lib import UserError
from dalle3lib.evals import detectors
from dalle3lib.evals.detectors import Found, iou
from dalle3lib.world import LANDSCAPE, Scene, Thing, render

torch.set_num_threads(1)


# ---- overlaps ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("second", "share"),
    [
        ((0, 0, 10, 10), 1),
        ((5, 0, 15, 10), 50 / 150),
        ((0, 0, 10, 5), 0.5),
        ((10, 0, 20, 10), 0),  # they touch
        ((20, 20, 30, 30), 0),
        ((4, 4, 4, 4), 0),  # a point
    ],
)
def test_iou_by_hand(second, share):
    assert iou((0, 0, 10, 10), second) == pytest.approx(share)


def test_boxes_without_an_area_do_not_overlap():
    assert iou((1, 1, 1, 5), (1, 1, 1, 5)) == 0


boxes = st.tuples(*[st.integers(0, 50)] * 2, *[st.integers(51, 99)] * 2)


@given(boxes, boxes)
def test_iou_is_symmetric_a_share_and_one_of_equals_only(a, b):
    assert iou(a, b) == iou(b, a) and 0 <= iou(a, b) <= 1
    assert (iou(a, b) == 1) == (a == b)


# ---- the world -----------------------------------------------------------------------------------

RED, BLUE = (
    Thing("circle", "red", "plain", "large", "left"),
    Thing("star", "blue", "plain", "small", "right"),
)
SPEC = Scene("snow", (RED, BLUE))


def test_the_reader_finds_named_objects_in_their_boxes():
    images = np.stack([render(SPEC)] * 3)
    found = detectors.world(images, [["red circle", "star"], ["blue circle"], []])
    assert found == [
        [
            Found("red circle", (2.5, 18.5, 29.5, 45.5), 1.0),  # (16, 32), radius 13.5
            Found("star", (38, 22, 58, 42), 1.0),  # (48, 32), radius 10
        ],
        [],
        [],
    ]


def test_every_object_of_a_name_is_found():
    twins = Scene("snow", (RED, Thing("circle", "red", "plain", "large", "right")))
    (found,) = detectors.world(render(twins)[None], [["red circle"]])
    assert [f.box[0] for f in found] == [2.5, 34.5]


def test_a_word_raises_objects_and_a_scale_enlarges_them():
    worded = Scene("snow", (RED, BLUE), "cat")
    (found,) = detectors.world(render(worded)[None], [["circle"]])
    assert found == [Found("circle", (2.5, 10.5, 29.5, 37.5), 1.0)]
    (found,) = detectors.world(render(SPEC, scale=2)[None], [["circle"]])
    assert found == [Found("circle", (5, 37, 59, 91), 1.0)]
    (found,) = detectors.world(render(SPEC, LANDSCAPE)[None], [["circle"]])
    assert found == [Found("circle", (10.5, 10.5, 37.5, 37.5), 1.0)]


def test_boxes_hold_what_is_drawn():
    """Around the box of a large circle is background; in its middle is the circle."""
    image = render(SPEC)
    (found,) = detectors.world(image[None], [["red circle"]])
    x0, y0, x1, y1 = found[0].box
    red = (image[..., 0] > 180) & (image[..., 1] < 90)
    rows, columns = np.nonzero(red)
    assert x0 <= columns.min() and columns.max() < x1 and y0 <= rows.min() and rows.max() < y1
    assert red[int((y0 + y1) / 2), int((x0 + x1) / 2)]


def test_the_reader_needs_names_for_each_picture_of_its_size():
    with pytest.raises(UserError, match="1 images but 2"):
        detectors.world(render(SPEC)[None], [["star"], ["star"]])
    with pytest.raises(UserError, match="The reader needs pictures"):
        detectors.world(np.zeros((1, 30, 30, 3), np.uint8), [["star"]])


# ---- a public detector ---------------------------------------------------------------------------

STATES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def owl(tmp_path_factory):
    """A random OWL-ViT as transformers writes it: letters for a vocabulary, 32 pixels."""
    path = tmp_path_factory.mktemp("owl")
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    tokenizer.model_max_length = 16
    text = {"vocab_size": len(words), "num_attention_heads": 2, "max_position_embeddings": 16}
    text |= {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1}
    vision = {"image_size": 32, "patch_size": 16, "num_attention_heads": 2}
    sizes = {"text_config": STATES | text, "vision_config": STATES | vision}
    config = OwlViTConfig(**sizes, projection_dim=32)
    torch.manual_seed(0)
    OwlViTForObjectDetection(config).save_pretrained(path)
    image = OwlViTImageProcessor(size={"height": 32, "width": 32})
    OwlViTProcessor(image, tokenizer).save_pretrained(path)
    return path


IMAGES = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)


def test_a_public_detector_is_found_by_its_directory(owl):
    model, processor = detectors.load(owl)
    assert isinstance(model, OwlViTForObjectDetection) and not model.training
    found = detectors.zero_shot(model, processor, threshold=0)(IMAGES, [["cat", "dog"], []])
    assert len(found[0]) == 4 and found[1] == []  # one for each of the four patches
    assert {f.name for f in found[0]} <= {"cat", "dog"}
    sure = [f.confidence for f in found[0]]
    assert sure == sorted(sure, reverse=True) and 0 < min(sure)
    between = (sure[0] + sure[1]) / 2
    few = detectors.zero_shot(model, processor, threshold=between)(IMAGES[:1], [["cat", "dog"]])
    assert few == [found[0][:1]]


@torch.no_grad()
def test_its_boxes_are_pixels_of_the_picture(owl):
    """The box of a patch is (middle, size) in shares of the picture's width and height."""
    model, processor = detectors.load(owl)
    (found,) = detectors.zero_shot(model, processor, threshold=0)(IMAGES[:1], [["cat"]])
    inputs = processor(text=[["cat"]], images=IMAGES[0], return_tensors="pt")
    output = model(**inputs)
    best = output.logits[0, :, 0].argmax()
    x, y, width, height = output.pred_boxes[0, best].tolist()
    expected = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    assert np.allclose(found[0].box, np.array(expected) * [40, 48, 40, 48], atol=1e-3)
    assert found[0].confidence == pytest.approx(output.logits[0, best, 0].sigmoid().item())


def test_names_may_be_asked_in_a_sentence(owl):
    model, processor = detectors.load(owl)
    plain = detectors.zero_shot(model, processor, 0)(IMAGES[:1], [["a photo of a cat"]])
    asked = detectors.zero_shot(model, processor, 0, "a photo of a {}")(IMAGES[:1], [["cat"]])
    assert [f.name for f in asked[0]] == ["cat"] * 4
    assert [f.confidence for f in asked[0]] == [f.confidence for f in plain[0]]


def test_a_missing_detector_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere cannot be loaded"):
        detectors.load(tmp_path / "nowhere")
