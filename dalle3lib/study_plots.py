"""Figures of where the study's claims hold."""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import COLOURS

ACROSS = 3  # panels in a row


def effects_by_setting(table: DataFrame) -> Figure:
    """A panel for each claim of ``study_map.effects``: its effect in every stage, side by side.

    Small dots are seeds, diamonds their means with 95 % intervals; the study itself is dark, what
    decides nothing pale. The band holds effects too small to matter.
    """
    settings = {stage: rows.iloc[0] for stage, rows in table.groupby("stage", sort=False)}
    names = [f"{one.setting}\n({one.worth})" for one in settings.values()]
    parts = list(table.groupby("claim", sort=False))
    down = -(-len(parts) // ACROSS)
    size = (10.5, down * (1.1 + 0.34 * len(settings)))
    figure, axes = plt.subplots(
        down, ACROSS, figsize=size, sharey=True, squeeze=False, layout="constrained", dpi=110
    )
    for axis, (claim, rows) in zip(axes.flat, parts, strict=False):
        _panel(axis, rows, list(settings))
        axis.set_title(textwrap.fill(claim.replace("-", " "), 34), fontsize=9)
    for axis in axes.flat[len(parts) :]:
        axis.set_axis_off()
    axes[0, 0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0, 0].set_ylim(len(names) - 0.5, -0.5)  # the first at the top
    return figure


def _panel(axis: Axes, rows: DataFrame, stages: list[str]) -> None:
    """The effects of one claim, each at the height of its stage."""
    axis.axvline(0, color="0.4", linestyle="--")
    axis.axvspan(-rows.smallest.iloc[0], rows.smallest.iloc[0], color="0.93")
    for row in rows.to_dict("records"):
        height = stages.index(row["stage"])
        colour = COLOURS[0] if row["stage"] == "main" else "#7FA8C9"
        axis.plot(row["by seed"], [height + 0.22] * row["seeds"], "o", color="0.5", ms=2.5)
        axis.plot([row["low"], row["high"]], [height, height], color=colour)
        axis.plot(row["effect"], height, marker="D", color=colour, ms=5)
    axis.set_xlabel(rows.unit.iloc[0], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
