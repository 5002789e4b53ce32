"""Figures of the chapters on automatic evaluation and on OpenAI's released verdicts."""

from collections.abc import Iterable, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import ARM_COLOURS, COLOURS, tidy

MANY = (*COLOURS, "#CC79A7", "#A07000")  # for up to six names
SYSTEM_COLOURS = {"DALL-E 3": "#00795A", "DALL-E 2": "#0072B2", "SDXL": "#D55E00"}
OWN_COLOURS = SYSTEM_COLOURS | ARM_COLOURS


def dots(tables: dict[str, DataFrame], xlabel: str, line: float | None = None) -> Figure:
    """A row for each label, and in it a dot for each name, with its interval where it has one.

    ``tables`` maps a name to a table with the columns value, low and high by row label; rows that a
    table lacks stay empty, and where low is missing there is a dot alone. ``line`` draws a dashed
    vertical line.
    """
    rows = list(dict.fromkeys(row for table in tables.values() for row in table.index))
    shared = np.array([sum(row in table.index for table in tables.values()) > 1 for row in rows])
    apart = shared * 0.7 / len(tables)  # a dot that is alone in its row stands in the middle
    figure, axis = plt.subplots(
        figsize=(9, 0.9 + len(rows) * max(0.3, 0.14 * len(tables))), layout="constrained", dpi=110
    )
    colours = own_colours(tables)
    for i, (name, table) in enumerate(tables.items()):
        table, colour = table.reindex(rows), colours[name]
        y = np.arange(len(rows)) + apart * (i - (len(tables) - 1) / 2)
        axis.hlines(y, table.low, table.high, color=colour)
        axis.plot(table["value"], y, "osD^vPX*"[i % 8], color=colour, markersize=5, label=name)
    for row in range(1, len(rows), 2):
        axis.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0)
    if line is not None:
        axis.axvline(line, color="0.4", linestyle="--", zorder=0)
    axis.set(xlabel=xlabel, yticks=range(len(rows)), yticklabels=rows, ylim=(len(rows) - 0.5, -0.5))
    tidy(axis)
    axis.get_legend().set_visible(len(tables) > 1)
    return figure


def own_colours(names: Iterable[str]) -> dict[str, str]:
    """The colour that a system or an arm has in the whole book; for others one that nobody here
    has, as far as ``MANY`` reach."""
    names = list(names)
    found = {name: OWN_COLOURS[name] for name in names if name in OWN_COLOURS}
    free = cycle([colour for colour in MANY if colour not in found.values()])
    return {name: found.get(name) or next(free) for name in names}


def stacks(counts: DataFrame, images: int) -> Figure:
    """How many of a prompt's images are right: a bar a system, the share of prompts a segment.

    ``counts`` [prompts, systems] are right images, 0 to ``images``; the shares are written in.
    """
    figure, axis = plt.subplots(figsize=(9, 2.4), layout="constrained", dpi=110)
    left = np.zeros(counts.shape[1])
    for right in range(images + 1):
        width = 100 * (counts == right).mean().to_numpy()
        shade = plt.get_cmap("cividis")(right / images)
        bars = axis.barh(list(counts), width, left=left, color=shade, label=str(right), height=0.7)
        ink = "white" if right < images / 2 else "black"
        axis.bar_label(bars, fmt="%.0f", label_type="center", color=ink, fontsize=8)
        left += width
    axis.invert_yaxis()
    axis.set(xlabel="share of prompts (%)", xlim=(0, 100))
    tidy(axis)
    axis.legend(title="images right", frameon=False, loc="upper left", bbox_to_anchor=(1, 1.05))
    return figure


def word_counts(words: dict[str, Sequence[int]], limit: int) -> Figure:
    """How many words answers have: the share of answers for each count, a line a name.

    A dashed line stands at ``limit``, the first count that is not allowed.
    """
    figure, axis = plt.subplots(figsize=(9, 3), layout="constrained", dpi=110)
    for (name, counts), colour in zip(words.items(), cycle(COLOURS), strict=False):
        edges = np.arange(limit % 3 - 3, max(counts) + 4, 3) - 0.5  # one of them at the limit
        axis.hist(
            counts,
            bins=edges,
            weights=[100 / len(counts)] * len(counts),
            histtype="step",
            linewidth=1.5,
            color=SYSTEM_COLOURS.get(name, colour),
            label=name,
        )
    axis.axvline(limit - 0.5, color="0.4", linestyle="--", label=f"{limit} words: too many")
    axis.set(xlabel="words before the verdict (three a step)", ylabel="share of answers (%)")
    tidy(axis)
    return figure


def needed(
    curves: dict[str, np.ndarray], differences: np.ndarray, had: int, marks: dict[str, float]
) -> Figure:
    """Prompts needed against the true difference, a line a name, both axes logarithmic.

    A dashed line shows how many prompts there were; ``marks`` are differences to point out.
    """
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained", dpi=110)
    for (name, prompts), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        axis.plot(differences, prompts, color=colour, label=name)
    axis.axhline(had, color="0.4", linestyle="--", label=f"DrawBench: {had} prompts")
    axis.set(
        xscale="log", yscale="log", xlabel="true difference (% points)", ylabel="prompts needed"
    )
    for name, value in marks.items():
        axis.axvline(value, color="0.7", linestyle=":", zorder=0)
        axis.text(value, axis.get_ylim()[1], f" {name}", fontsize=8, va="top", ha="left")
    axis.set_xticks([1, 2, 5, 10, 20], ["1", "2", "5", "10", "20"])
    axis.set_yticks([10, 100, 1000, 10000], ["10", "100", "1,000", "10,000"])
    axis.minorticks_off()
    tidy(axis)
    return figure
