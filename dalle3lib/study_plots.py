"""Figures of the study: scores by share, and where its claims hold."""

import textwrap

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import CAPTION_COLOURS, COLOURS

ACROSS = 3  # panels in a row


def by_share(
    values: DataFrame,
    summary: DataFrame,
    ylabel: str,
    zero: bool = False,
    title: str = "{} prompts",
    sharey: bool = False,
) -> Figure:
    """A panel for each kind of prompt: every seed's value against the share of synthetic captions,
    their mean and its interval.

    ``values`` comes from ``mixing_ratio.means`` (or ``over_original``, then with a line at
    ``zero``), ``summary`` is ``over_seeds`` of it; ``title`` is a panel's, around its kind;
    with ``sharey`` all panels have one scale.
    """
    kinds = list(dict.fromkeys(summary.kind))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(9.5, 3.4), sharey=sharey, layout="constrained", dpi=110,
        squeeze=False,
    )  # fmt: skip
    for axis, kind in zip(axes.flat, kinds, strict=True):
        seeds, mean = values[values.kind == kind], summary[summary.kind == kind]
        colour = CAPTION_COLOURS.get(kind, "#555555")
        if zero:
            axis.axhline(0, color="0.4", linestyle="--")
        axis.plot(seeds.share, seeds.value, "o", color="0.45", alpha=0.45, ms=3.5, label="a seed")
        below, above = mean["mean"] - mean.low, mean.high - mean["mean"]
        axis.errorbar(
            mean.share, mean["mean"], [below, above], color=colour, marker="D", ms=4.5, capsize=3,
            label="mean, 95 % interval",
        )  # fmt: skip
        axis.set(xlabel="share of descriptive captions (%)", title=title.format(kind))
        axis.set_xticks(
            sorted(set(mean.share)), map(str, sorted(set(mean.share))), fontsize=8, rotation=90
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel(ylabel)
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def effects_by_setting(table: DataFrame) -> Figure:
    """A panel for each claim of ``study_map.effects``: its effect in every stage, side by side.

    Small dots are seeds, diamonds their means with 95 % intervals; the study itself is dark, what
    decides nothing pale. The band holds effects too small to matter. Two seeds have an interval
    many times wider than all else: it is cut at the edge of the panel.
    """
    settings = {stage: rows.iloc[0] for stage, rows in table.groupby("stage", sort=False)}
    names = [f"{one.setting}\n({one.worth})" for one in settings.values()]
    parts = list(table.groupby("claim", sort=False))
    across = min(ACROSS, len(parts))
    down = -(-len(parts) // across)
    size = (1.5 + 3 * across, down * (1.1 + 0.34 * len(settings)))
    figure, axes = plt.subplots(
        down, across, figsize=size, sharey=True, squeeze=False, layout="constrained", dpi=110
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
    known = rows[rows.seeds > 2]
    shown = [0, *known.low, *known.high, *(value for seeds in rows["by seed"] for value in seeds)]
    margin = 0.08 * (max(shown) - min(shown))
    axis.set_xlim(min(shown) - margin, max(shown) + margin)
    axis.set_xlabel(rows.unit.iloc[0], fontsize=8)
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
