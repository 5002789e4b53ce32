"""The figures of chapter 11: that they draw the numbers they are given, where they should."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dalle3lib import plots, verdict_plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(**rows):
    return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high"])


def test_dots_of_one_row_stand_side_by_side_and_a_lone_one_in_the_middle():
    both = {"SDXL": table(a=[50, 40, 60], b=[10, np.nan, np.nan]), "other": table(a=[55, 50, 60])}
    axis = verdict_plots.dots(both, "share (%)", line=50).axes[0]
    first, second = (line.get_xydata() for line in axis.lines[:2])
    assert first[:, 0].tolist() == [50, 10] and second[0, 0] == 55
    assert first[0, 1] == -second[0, 1] < 0 and first[1, 1] == 1
    assert axis.lines[0].get_color() == verdict_plots.SYSTEM_COLOURS["SDXL"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    assert axis.get_legend().get_visible()
    alone = verdict_plots.dots({"one": both["other"]}, "share (%)").axes[0]
    assert not alone.get_legend().get_visible()


def test_an_arm_has_the_books_colour_and_no_two_names_share_one():
    arms = list(plots.ARM_COLOURS)
    names = ["DSC captions", "true pictures", *arms]
    axis = verdict_plots.dots(dict.fromkeys(names, table(a=[5, 4, 6])), "share (%)").axes[0]
    drawn = {line.get_label(): line.get_color() for line in axis.lines if line.get_label() in names}
    assert {name: drawn[name] for name in arms} == plots.ARM_COLOURS
    assert len(set(drawn.values())) == len(names)


def test_stacks_add_up_to_all_prompts():
    counts = pd.DataFrame({"SDXL": [0, 1, 2, 2], "DALL-E 3": [2, 2, 2, 2]})
    axis = verdict_plots.stacks(counts, images=2).axes[0]
    widths = np.array([[bar.get_width() for bar in bars] for bars in axis.containers])
    assert widths.tolist() == [[25, 0], [25, 0], [50, 100]]


def test_no_bin_of_words_holds_both_sides_of_the_limit():
    axis = verdict_plots.word_counts({"SDXL": [3, 48, 49, 50, 51]}, limit=50).axes[0]
    corners = axis.patches[0].get_xy()
    inside = corners[corners[:, 0] > 49.5]
    assert 49.5 in corners[:, 0] and corners[0, 0] <= 3
    assert max(inside[:, 1]) == pytest.approx(40)  # 50 and 51 of five answers


def test_prompts_needed_and_marks_are_drawn():
    curve = np.array([100.0, 1.0])
    axis = verdict_plots.needed({"4 images": curve}, np.array([1.0, 10.0]), 200, {"x": 3}).axes[0]
    assert axis.lines[0].get_ydata().tolist() == [100, 1]
    assert axis.lines[1].get_ydata() == [200, 200] and list(axis.lines[2].get_xdata()) == [3, 3]
    assert axis.texts[0].get_text() == " x"
