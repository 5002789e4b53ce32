"""The captioner's figures show the numbers they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from dalle3lib import captioner_plots
from dalle3lib.evals import grounding, retrieval
from dalle3lib.randomness import rng


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def drawn(axis, marker=None):
    """The points of each line of an axis, or of those with a marker."""
    chosen = [line for line in axis.lines if marker is None or line.get_marker() == marker]
    return [line.get_xydata().tolist() for line in chosen]


def test_training_curves():
    base = pd.DataFrame(
        {"step": [20, 40], "captioning": [3, 2], "contrastive": [4, 1], "held_out": [np.nan, 2.5]}
    )
    fine = pd.DataFrame(
        {"step": [20], "captioning": [0.5], "contrastive": [0.0], "held_out": [np.nan]}
    )
    captioning, contrastive = captioner_plots.training_curves(
        {"base": base, "DSC": fine}, blind=4.2
    ).axes
    assert drawn(captioning) == [[[20, 3], [40, 2]], [[40, 2.5]], [[20, 0.5]], []]
    assert drawn(contrastive)[0] == [[20, 4], [40, 1]]
    assert len(contrastive.lines) == 2  # the base, and what blindness costs
    assert contrastive.lines[1].get_ydata()[0] == 4.2
    assert contrastive.get_ylim()[0] == 0 and captioning.get_ylim()[0] == 0


def test_recalls():
    table = retrieval.recall(retrieval.retrieve(torch.eye(4), torch.eye(4)), rng(0, "test"))
    left, right = captioner_plots.recalls({"base": {"short": table}, "DSC": {"short": table}}).axes
    assert [left.get_title(), right.get_title()] == list(retrieval.DIRECTIONS)
    assert [y for ((_, y),) in drawn(left, "o")] == [100, 100]
    chance = [line for line in left.lines if line.get_linestyle() == "--" and len(line.get_xdata())]
    assert [list(line.get_ydata()) for line in chance] == [[25, 25]]
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["short"]


@pytest.mark.parametrize("count", [1, 7, 20])
def test_attention_maps(count):
    image = np.zeros((16, 16, 3), dtype=np.uint8)
    maps = np.random.default_rng(0).random((count, 4, 4))
    names = [f"word{i} $" for i in range(count)]
    figure = captioner_plots.attention_maps(image, names, maps)
    axes = [axis for axis in figure.axes if axis.get_title()]
    assert [axis.get_title() for axis in axes] == ["the picture", *names]
    for axis, expected in zip(axes[1:], maps, strict=True):
        heat = axis.images[-1]
        np.testing.assert_allclose(heat.get_array(), 100 * expected)
        assert heat.get_clim() == (0, 100 * maps.max())  # one scale for all
    figure.canvas.draw()


def test_grounding():
    table = pd.DataFrame(
        {"picture": [0, 1, 2], "objects": [1, 2, 2], "attribute": ["colour", "shape", "shape"]}
        | {"named": [0.9, 0.6, 0.8], "other object": [np.nan, 0.2, 0.1], "other words": 0.4}
        | {"by area": 0.25, "loss named": [5.0, 4, 2], "loss other": [np.nan, 0.5, -0.5]}
    )
    found = grounding.summary(table, grounding.SHARES + grounding.LOSSES, rng(0, "test"))
    shares, losses = captioner_plots.grounding({"SSC": found}).axes
    labels = [tick.get_text() for tick in shares.get_yticklabels()]
    assert labels == ["SSC: colour, 1 object", "SSC: shape, 2 objects"]
    assert [point for (point,) in drawn(shares, "o")] == [[90, 0], [pytest.approx(70), 1]]
    assert [point for (point,) in drawn(losses, "o")] == [[5, 0], [3, 1]]
    assert [x for ((x, _),) in drawn(losses, "s")] == [pytest.approx(np.nan, nan_ok=True), 0]
    assert {line.get_text() for line in shares.get_legend().get_texts()} == {
        label for name, (_, label) in captioner_plots.MARKS.items() if name in grounding.SHARES
    }
