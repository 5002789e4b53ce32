"""Figures of what captions state: true and false by attribute, and false parts marked in place."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import CAPTION_COLOURS, beside_pictures


def rates(tables: dict[str, DataFrame], measures: Sequence[str]) -> Figure:
    """Shares by attribute in percent, a panel for each measure, a dot and interval for each name.

    Each table has a row per attribute and for each measure the columns "m", "m low", "m high"
    (0 to 1). Where a share is unknown there is no dot.
    """
    rows = next(iter(tables.values())).index
    figure, axes = plt.subplots(
        1, len(measures), figsize=(9.5, 0.9 + 0.42 * len(rows)), sharey=True, layout="constrained",
        dpi=110, squeeze=False,
    )  # fmt: skip
    for axis, measure in zip(axes.flat, measures, strict=True):
        for i, (name, table) in enumerate(tables.items()):
            y = np.arange(len(rows)) + 0.18 * (i - (len(tables) - 1) / 2)
            colour = CAPTION_COLOURS.get(name, "#555555")
            low, high = (100 * table[f"{measure} {end}"] for end in ("low", "high"))
            axis.hlines(y, low, high, color=colour)
            axis.plot(
                100 * table[measure], y, "osD^"[i % 4], color=colour, markersize=5, label=name
            )
        for row in range(1, len(rows), 2):
            axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
        axis.set(title=measure, xlabel="share of facts (%)", xlim=(-3, 103))
        axis.spines[["top", "right"]].set_visible(False)
    bottom = len(rows) - 0.5
    axes.flat[0].set(yticks=range(len(rows)), yticklabels=list(rows), ylim=(bottom, -0.5))
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def marked_grid(
    pictures: Sequence[np.ndarray],
    texts: Sequence[str],
    spans: Sequence[Sequence[tuple[int, int]]],
    columns: int = 2,
) -> Figure:
    """Numbered pictures with a text beside each, parts of it red, bold and underlined.

    ``spans`` gives for each text the [start, end) of those parts.
    """
    figure, axes = beside_pictures(pictures, columns)
    style = {"xycoords": "axes fraction", "textcoords": "offset points", "va": "top"}
    style |= {"family": "monospace", "fontsize": 8.5, "parse_math": False}
    for axis, text, marked in zip(axes, texts, spans, strict=False):
        inside = np.zeros(len(text), dtype=bool)
        for start, end in marked:
            inside[start:end] = True
        for row, (first, last) in enumerate(_lines(text, 42)):
            line = list(zip(text[first:last], inside[first:last], strict=True))
            at = {"xy": (0, 1), "xytext": (0, -15 * row)} | style
            axis.annotate("".join(" " if bad else c for c, bad in line), **at)
            red = {"color": "#C00000", "weight": "bold"} | at
            axis.annotate("".join(c if bad else " " for c, bad in line), **red)
            axis.annotate("".join("_" if bad else " " for _, bad in line), **red)
    return figure


def _lines(text: str, width: int) -> list[tuple[int, int]]:
    """Where the lines of a text wrapped to a width begin and end."""
    lines, at = [], 0
    for line in textwrap.wrap(text, width, drop_whitespace=False, replace_whitespace=False):
        lines.append((at + len(line) - len(line.lstrip()), at + len(line)))
        at += len(line)
    return lines
