"""Figures of the study: scores by share, and the differences that claims are about."""

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from pandas import DataFrame

from dalle3lib.plots import COLOURS

KINDS = {
    "original": "#D55E00", "short": "#0072B2", "upsampled": "#CC79A7", "descriptive": "#00795A",
    "reworded": "#555555",
}  # fmt: skip


def by_share(values: DataFrame, summary: DataFrame, ylabel: str, zero: bool = False) -> Figure:
    """A panel for each kind of prompt: every seed's value against the share of synthetic captions,
    their mean and its interval.

    ``values`` comes from ``mixing_ratio.means`` (or ``over_original``, then with a line at
    ``zero``), ``summary`` is ``over_seeds`` of it.
    """
    kinds = list(dict.fromkeys(summary.kind))
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(9.5, 3.4), layout="constrained", dpi=110, squeeze=False
    )
    for axis, kind in zip(axes.flat, kinds, strict=True):
        seeds, mean = values[values.kind == kind], summary[summary.kind == kind]
        colour = KINDS.get(kind, "#555555")
        if zero:
            axis.axhline(0, color="0.4", linestyle="--")
        axis.plot(seeds.share, seeds.value, "o", color="0.45", alpha=0.45, ms=3.5, label="a seed")
        below, above = mean["mean"] - mean.low, mean.high - mean["mean"]
        axis.errorbar(
            mean.share, mean["mean"], [below, above], color=colour, marker="D", ms=4.5, capsize=3,
            label="mean, 95 % interval",
        )  # fmt: skip
        axis.set(xlabel="share of descriptive captions (%)", title=f"{kind} prompts")
        axis.set_xticks(
            sorted(set(mean.share)), map(str, sorted(set(mean.share))), fontsize=8, rotation=90
        )
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel(ylabel)
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def effects(found: dict[str, dict], names: dict[str, str], xlabel: str) -> Figure:
    """A row for each effect: every seed's difference, their mean, its 95 % interval, zero.

    ``found`` maps a claim to an entry as of ``stats.effect``; ``names`` gives the rows' labels.
    """
    figure, axis = plt.subplots(
        figsize=(9, 0.8 + 0.42 * max(1, len(found))), layout="constrained", dpi=110
    )
    for row, entry in enumerate(found.values()):
        by_seed = entry.get("by_seed", [])
        axis.plot(by_seed, [row + 0.2] * len(by_seed), "o", color="0.45", alpha=0.5, ms=3.5)
        axis.plot(entry["interval"], [row, row], color=COLOURS[0])
        axis.plot(entry["effect"], row, marker="D", color=COLOURS[0], ms=5)
    axis.axvline(0, color="0.4", linestyle="--")
    labels = [names.get(claim, claim) for claim in found]
    axis.set(xlabel=xlabel, yticks=range(len(found)), yticklabels=labels)
    axis.set_ylim(max(0.5, len(found) - 0.5), -0.5)
    axis.spines[["top", "right"]].set_visible(False)
    return figure
