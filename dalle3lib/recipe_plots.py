"""Figures of the chapter on the recipe: cropping, buckets, and what training buys."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import COLOURS, tidy


def cropping(aspects: np.ndarray, shares: dict[str, np.ndarray]) -> Figure:
    """The share of an image (0 to 1) that is cropped away against its aspect, a line per name."""
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained", dpi=110)
    for (name, share), colour in zip(shares.items(), cycle(COLOURS), strict=False):
        axis.plot(aspects, 100 * share, color=colour, label=name)
    ticks = {0.5: "1:2", 2 / 3: "2:3", 0.75: "3:4", 1: "1:1", 4 / 3: "4:3", 1.5: "3:2", 2: "2:1"}
    axis.set(xscale="log", xlabel="aspect of the image (width : height)", ylabel="cropped away (%)")
    axis.minorticks_off()
    axis.set_xticks(list(ticks), list(ticks.values()))
    axis.set_ylim(0, None)
    tidy(axis)
    return figure


def schedule(order: Sequence[int], names: Sequence[str]) -> Figure:
    """Which bucket each step shows: a box for every step in its bucket's row and colour."""
    figure, axis = plt.subplots(figsize=(8, 0.8 + 0.28 * len(names)), layout="constrained", dpi=110)
    for row, colour in zip(range(len(names)), cycle(COLOURS), strict=False):
        steps = np.flatnonzero(np.asarray(order) == row)
        axis.broken_barh([(step - 0.45, 0.9) for step in steps], (row - 0.35, 0.7), color=colour)
    axis.set(xlabel="training step", yticks=range(len(names)), xlim=(-0.8, len(order) - 0.2))
    axis.set_yticklabels(names)
    axis.invert_yaxis()
    axis.spines[["top", "right", "left"]].set_visible(False)
    return figure


def compute_curves(curves: dict[str, DataFrame], panels: dict[str, str], first: float) -> Figure:
    """What training buys: measures with their intervals against all compute spent, in TFLOPs.

    ``curves`` maps a start to rows with measure, flops, mean, low and high; ``panels`` maps the
    measures to draw to the label of their axis. A dotted line marks the end of the first stage.
    """
    figure, axes = plt.subplots(
        1, len(panels), figsize=(9.5, 3.3), layout="constrained", dpi=110, squeeze=False
    )
    for axis, (measure, label) in zip(axes.flat, panels.items(), strict=True):
        for (name, table), colour in zip(curves.items(), cycle(COLOURS), strict=False):
            points = table[table.measure == measure]
            spent = points.flops / 1e12
            axis.plot(spent, points["mean"], marker="o", color=colour, label=name)
            axis.fill_between(spent, points.low, points.high, color=colour, alpha=0.15)
        axis.axvline(first / 1e12, color="0.5", linestyle=":", label="end of the first stage")
        axis.set(xlabel="compute spent, both stages (TFLOP)", ylabel=label, xlim=(0, None))
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
