"""Figures of what captions state: every share has its dot, every false part stands out."""

import numpy as np
import pandas as pd

from dalle3lib import caption_plots


def test_rates_draw_a_dot_and_an_interval_for_each_known_share():
    row = {"m": 0.5, "m low": 0.4, "m high": 0.7}
    table = pd.DataFrame({"shape": row, "place": dict.fromkeys(row, np.nan)}).T
    figure = caption_plots.rates({"SSC": table, "DSC": table}, ("m",))
    (axis,) = figure.axes
    dots = [line.get_xdata() for line in axis.lines]
    assert [np.isfinite(x).sum() for x in dots] == [1, 1] and dots[0][0] == 50
    ends = [path.vertices[:, 0] for path in axis.collections[0].get_paths()]
    assert ends[0].tolist() == [40, 70]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["shape", "place"]
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the first row stands at the top


def test_false_parts_are_written_in_their_own_style_at_their_own_place():
    text = "a small red star which is striped on a background of fine white snow"
    pictures = np.zeros((1, 8, 8, 3), np.uint8)
    figure = caption_plots.marked_grid(pictures, [text], [[(2, 7), (52, 62)]], columns=1)
    said = figure.axes[1].texts
    lines = [said[i : i + 3] for i in range(0, len(said), 3)]
    false = "".join(red.get_text().strip() + " " for _, red, _ in lines)
    assert false.split() == [text[2:7], *text[52:62].split()]
    for black, red, under in lines:
        merged = [
            a if b == " " else b for a, b in zip(black.get_text(), red.get_text(), strict=True)
        ]
        assert "".join(merged) in text  # together they are the line
        assert red.get_weight() == "bold" and black.get_weight() != "bold"
        assert [c == "_" for c in under.get_text()].count(True) >= len(red.get_text().split())


def test_more_pictures_than_a_row_holds():
    pictures = np.zeros((3, 8, 8, 3), np.uint8)
    figure = caption_plots.marked_grid(pictures, ["one", "two", ""], [[], [(0, 3)], []])
    assert len(figure.axes) == 2 * 4
