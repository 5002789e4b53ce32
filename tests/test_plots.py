"""Figures show the numbers and texts they are given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dalle3lib.images import Record
from dalle3lib.plots import (
    caption_grid,
    differences,
    heatmaps,
    lines,
    sample_grid,
    shares,
    word_histogram,
)
from dalle3lib.recipe_plots import compute_curves, cropping, schedule


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    return [text.get_text() for axis in figure.axes for text in axis.texts]


def test_caption_grid_shows_each_picture_with_the_captions_it_has():
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    records = [
        Record("a", image, "alt costs $5 or $6", "short one.", "descriptive " * 5),
        Record("b", image + 9, "alt only"),
        Record("c", image, "x" * 500),
    ]
    figure = caption_grid(records)
    shown = texts(figure)
    assert [t for t in shown if t.isdigit()] == ["1", "2", "3"]
    assert shown.count("alt-text") == 3 and shown.count("short") == shown.count("descriptive") == 1
    assert "alt costs $5 or $6" in shown and "alt only" in shown
    assert sum(len(axis.images) for axis in figure.axes) == 3
    figure.canvas.draw()  # a dollar sign is not taken for a formula


def test_word_histogram_adds_up_to_100_percent():
    figure = word_histogram({"short": ["a b", "a b", "a b c", "a"], "alt-text": ["a " * 80]}, 10)
    heights = [
        patch.get_path().vertices[:, 1].max() for axis in figure.axes for patch in axis.patches
    ]
    assert heights == [pytest.approx(50), pytest.approx(100)]  # two of four; all in the last bar
    assert [t.get_text() for t in figure.axes[0].get_legend().get_texts()] == ["short", "alt-text"]


def test_shares_labels_its_bars_in_percent():
    table = pd.DataFrame({"alt-text": [0.25, 0], "short": [1, 0.5]}, index=["shape", "size"])
    assert texts(shares(table, "stated (%)")) == ["25", "0", "100", "50"]


def test_lines_draws_percent_over_the_index():
    axis = lines(pd.DataFrame({"a": [0, 0.5]}, index=[0.0, 0.75]), "noise", "share (%)").axes[0]
    assert axis.lines[0].get_xydata().tolist() == [[0, 0], [0.75, 50]]
    assert axis.get_ylim()[0] == 0


def test_heatmaps_write_each_share_and_leave_gaps_empty():
    first = pd.DataFrame({"clean": [1.0, 0.25], "noised": [0.5, np.nan]}, index=["shape", "word"])
    second = pd.DataFrame({"clean": [0.0]}, index=["word"])
    figure = heatmaps({"reader": first, "judge": second})
    reader, judge = figure.axes
    assert [t.get_text() for t in reader.texts] == ["100", "50", "25"]
    assert [(t.get_text(), t.get_position()) for t in judge.texts] == [("0", (0, 1))]
    assert reader.get_title() == "reader (%)"


def test_a_grid_of_different_shapes_keeps_their_pixels_equally_large():
    wide, high = np.zeros((2, 6, 10, 3), np.uint8), np.zeros((3, 10, 6, 3), np.uint8)
    figure = sample_grid({"wide": wide, "high": high}, ["a", "b"], shown=5)
    figure.canvas.draw()
    assert len(figure.axes) == 4
    pixels = [np.diff(axis.transData.transform([(0, 0), (1, 1)]), axis=0) for axis in figure.axes]
    assert np.allclose(np.abs(pixels), abs(pixels[0][0, 0]))


def test_cropping_is_in_percent_of_the_picture():
    (axis,) = cropping(np.array([0.5, 1, 2]), {"squares": np.array([0.5, 0, 0.5])}).axes
    assert axis.lines[0].get_xydata().tolist() == [[0.5, 50], [1, 0], [2, 50]]
    assert [t.get_text() for t in axis.get_xticklabels()][0] == "1:2"


def test_a_schedule_has_a_box_for_each_step_in_its_row():
    (axis,) = schedule([0, 1, 1, 0, 2], ["square", "landscape", "portrait"]).axes
    boxes = [
        [path.vertices[:4].mean(0).round(2).tolist() for path in row.get_paths()]
        for row in axis.collections
    ]
    assert boxes == [[[0, 0], [3, 0]], [[1, 1], [2, 1]], [[4, 2]]]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["square", "landscape", "portrait"]


def test_curves_are_drawn_over_the_compute_in_teraflops():
    rows = [("a", 1e12, 0.2), ("a", 3e12, 0.4), ("b", 1e12, 60.0)]
    table = pd.DataFrame(rows, columns=["measure", "flops", "mean"])
    table = table.assign(low=table["mean"] - 0.1, high=table["mean"] + 0.1)
    figure = compute_curves({"scratch": table}, {"a": "share", "b": "score"}, first=2e12)
    left, right = figure.axes
    assert left.lines[0].get_xydata().tolist() == [[1, 0.2], [3, 0.4]]
    assert right.lines[0].get_xydata().tolist() == [[1, 60]]
    assert left.lines[1].get_xdata() == [2, 2] and left.get_ylabel() == "share"


def test_differences_are_drawn_where_they_are():
    seeds = {"effect": 2.0, "interval": (1.0, 3.5), "by_seed": [1.5, 2.5]}
    axis = differences({"a": seeds, "b": {"effect": -1, "interval": (-2, 0)}}, "points").axes[0]
    assert list(axis.lines[0].get_xdata()) == [1.5, 2.5] and list(axis.lines[3].get_xdata()) == []
    assert list(axis.lines[1].get_xdata()) == [1.0, 3.5] and axis.lines[5].get_xdata() == [-1]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["a", "b"]
    assert differences({}, "points").axes[0].get_yticks().tolist() == []
