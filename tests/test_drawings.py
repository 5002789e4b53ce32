"""Diagrams name the sizes of the model they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from tiny_coca import public_model, random_model, roberta_model, tiny_tokenizer

from dalle3lib import UserError, captioner, drawings, text

IMAGE = np.zeros((64, 64, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def said(figure) -> str:
    return "\n".join(t.get_text() for axis in figure.axes for t in axis.texts)


def test_the_sizes_of_the_world_captioner_are_those_of_its_configuration():
    tokenizer = text.train_tokenizer(["a red circle"] * 9, vocab_size=300, start=True)
    model = captioner.build(tokenizer)
    image, words = captioner.WORLD_COCA["vision_cfg"], captioner.WORLD_COCA["text_cfg"]
    decoder = captioner.WORLD_COCA["multimodal_cfg"]
    assert drawings.sizes(model) == {
        "image": (64, 64),
        "patch": (8, 8),
        "patches": (8, 8),
        "image layers": image["layers"],
        "image width": image["width"],
        "image heads": image["width"] // image["head_width"],
        "vectors": image["attn_pooler_queries"] - 1,
        "pooler heads": image["attn_pooler_heads"],
        "embedding": 128,
        "text layers": words["layers"],
        "text width": words["width"],
        "vocabulary": len(tokenizer),
        "context": decoder["context_length"],
        "decoder layers": decoder["layers"],
        "decoder width": decoder["width"],
        "decoder heads": decoder["heads"],
    }


@pytest.mark.parametrize("name", ["ours", "two poolers", "public"])
def test_the_diagram_says_what_the_model_computes(name):
    two = {"vision_cfg__attentional_pool": "parallel", "vision_cfg__width": 48}
    model = {
        "ours": lambda: random_model(tiny_tokenizer()),
        "two poolers": lambda: random_model(tiny_tokenizer(), **two),
        "public": lambda: public_model("coca_ViT-L-14"),
    }[name]()
    drawn = said(drawings.coca(model, IMAGE, "a red $5 thing".split()))
    with torch.no_grad():
        vectors = model.visual(torch.zeros(1, 3, *model.visual.image_size))[1]
    assert f"{vectors.shape[1]} vectors: the image" in drawn
    assert f"1 + {vectors.shape[1]} learned queries" in drawn
    rows, columns = model.visual.grid_size
    assert f"{rows * columns} patches" in drawn
    # every parameter is counted in one of four boxes, but the contrastive loss's temperature
    counted = [line.split()[0] for line in drawn.splitlines() if line.endswith(" parameters")]
    total = sum(int(number.replace(",", "")) for number in counted)
    assert len(counted) == 4 and total == drawings.parameters(model) - 1


def test_long_words_are_cut_and_nothing_overlaps_the_margins():
    figure = drawings.coca(random_model(tiny_tokenizer()), IMAGE, ["extraordinarily", "$x^$"])
    assert "extrao…" in said(figure) and "$x^$" in said(figure)
    figure.canvas.draw()
    frame = figure.bbox
    for axis in figure.axes:
        for label in axis.texts:
            box = label.get_window_extent()
            assert frame.x0 <= box.x0 and box.x1 <= frame.x1, label.get_text()
            assert frame.y0 <= box.y0 and box.y1 <= frame.y1, label.get_text()


def test_a_model_without_pooler_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no attentional pooler"):
        drawings.coca(roberta_model(tmp_path), IMAGE, ["a"])
