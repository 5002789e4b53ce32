"""Figures of the captioner: its training, its retrieval, where its words look."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

CAPTIONER_COLOURS = {"base": "#D55E00", "SSC": "#0072B2", "DSC": "#00795A"}
OTHER = "#555555"


def training_curves(curves: dict[str, DataFrame], blind: float | None = None) -> Figure:
    """Both losses of each captioner over its training steps, a panel for each loss.

    The tables have the columns ``step``, ``captioning``, ``contrastive`` (means since the row
    before; 0 where that loss was not used) and ``held_out`` (the captioning loss on held-out
    captions, nats per token, NaN where not measured), drawn as dots. ``blind`` is the contrastive
    loss of a model that cannot tell the captions of a batch apart; without it that panel is left
    out.
    """
    figure = plt.figure(figsize=(9.6 if blind else 6, 3.4), layout="constrained", dpi=110)
    panels = figure.subplots(1, 2, width_ratios=(3, 2)) if blind else [figure.subplots()]
    titles = ("line: training; dots: held out", "line: training")
    captioning, contrastive = panels[0], panels[-1]
    for name, table in curves.items():
        colour = CAPTIONER_COLOURS.get(name, OTHER)
        captioning.plot(table["step"], table["captioning"], color=colour, linewidth=1, alpha=0.7)
        held = table.dropna(subset="held_out")
        captioning.plot(held["step"], held["held_out"], "o", color=colour, ms=4, label=name)
        if blind and (table["contrastive"] > 0).any():
            contrastive.plot(table["step"], table["contrastive"], color=colour, label=name)
    if blind:
        contrastive.axhline(blind, color="0.4", linestyle="--", label="telling nothing apart")
        contrastive.set(ylabel="contrastive loss (nats)")
    captioning.set(ylabel="captioning loss (nats per token)")
    for axis, title in zip(panels, titles, strict=False):
        axis.set(xlabel="training step")
        axis.set_ylim(0, None)
        axis.set_title(title, fontsize=9, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8.5)
    return figure


def recalls(tables: dict[str, dict[str, DataFrame]], at: str = "R@1") -> Figure:
    """Recall by kind of caption and captioner, a panel per direction, chance as a short line.

    ``tables`` holds for each captioner and each kind of caption what ``retrieval.recall`` returned;
    ``at`` says at which k.
    """
    directions = list(
        dict.fromkeys(d for kinds in tables.values() for t in kinds.values() for d, _ in t.index)
    )
    figure, axes = plt.subplots(
        1, len(directions), figsize=(9.6, 3.2), layout="constrained", dpi=110, sharey=True,
        squeeze=False,
    )  # fmt: skip
    for axis, direction in zip(axes.flat, directions, strict=True):
        for i, (name, kinds) in enumerate(tables.items()):
            rows = 100 * DataFrame([table.loc[(direction, at)] for table in kinds.values()])
            x = np.arange(len(rows)) + 0.2 * (i - (len(tables) - 1) / 2)
            colour = CAPTIONER_COLOURS.get(name, OTHER)
            axis.vlines(x, rows["low"], rows["high"], color=colour)
            axis.plot(x, rows["recall"], "o", color=colour, label=name)
        half = 0.1 * len(tables) + 0.05
        for place, level in enumerate(rows["chance"]):
            style = {"color": "0.3", "linestyle": "--", "linewidth": 1}
            axis.plot([place - half, place + half], [level] * 2, **style)
        axis.plot([], [], color="0.3", linestyle="--", linewidth=1, label="chance")
        axis.set(title=direction, xticks=range(len(rows)), xticklabels=list(kinds), ylim=(0, 102))
        axis.set_xlim(-0.6, len(rows) - 0.4)
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel(f"{at} (%)")
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def attention_maps(
    image: np.ndarray, words: Sequence[str], maps: np.ndarray, columns: int = 8
) -> Figure:
    """A picture, and again for each word with the share of attention that each patch gets.

    ``image`` uint8 [H, W, 3]; ``maps`` [words, rows, columns], shares of one word's attention, on
    one colour scale for all words.
    """
    columns = min(columns, len(words) + 1)
    lines = -(-(len(words) + 1) // columns)
    size = (1.0 + 1.1 * columns, 0.3 + 1.35 * lines)
    figure, axes = plt.subplots(
        lines, columns, figsize=size, layout="constrained", dpi=110,
        squeeze=False,
    )  # fmt: skip
    for axis in axes.flat:
        axis.set_axis_off()
    axes.flat[0].imshow(image, interpolation="nearest")
    axes.flat[0].set_title("the picture", fontsize=8.5, style="italic")
    height, width = image.shape[:2]
    grey, top = image.mean(axis=2), 100 * np.max(maps)
    for axis, word, shares in zip(axes.flat[1:], words, 100 * np.asarray(maps), strict=False):
        axis.imshow(grey, cmap="gray", vmin=-60, vmax=315)
        heat = axis.imshow(
            shares,
            cmap="inferno",
            alpha=0.35 + 0.55 * shares / top,  # the picture stays visible where nobody looks
            vmin=0,
            vmax=top,
            extent=(-0.5, width - 0.5, height - 0.5, -0.5),
            interpolation="nearest",
        )
        axis.set_title(word, fontsize=8.5, parse_math=False)
    bar = figure.colorbar(heat, ax=axes, aspect=12 * lines, pad=0.01)
    bar.set_label("% of the attention", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure


MARKS = {
    "named": ("o", "the object it names"),
    "other object": ("s", "the other object"),
    "other words": ("x", "the object, by the caption's other words"),
    "by area": ("|", "the object's share of the area"),
    "loss named": ("o", "without the object it names"),
    "loss other": ("s", "without the other object"),
}


def grounding(summaries: dict[str, DataFrame]) -> Figure:
    """Attention on the named object, and what painting it over costs the word: a panel for each.

    ``summaries`` holds for each captioner what ``grounding.summary`` returned of all shares and
    losses; bars are the intervals.
    """
    rows = [(name, key) for name, table in summaries.items() for key in table.index]
    figure, panels = plt.subplots(
        1, 2, figsize=(9.6, 1.5 + 0.3 * len(rows)), layout="constrained", dpi=110, sharey=True
    )
    panels_of = {name: panels[int(name.startswith("loss"))] for name in MARKS}
    for measure, (marker, label) in MARKS.items():
        axis, scale = panels_of[measure], 1 if measure.startswith("loss") else 100
        for y, (name, key) in enumerate(rows):
            found = summaries[name].loc[key]
            own = measure.endswith("named")
            colour = CAPTIONER_COLOURS.get(name, OTHER) if own else OTHER
            ends = [scale * found[f"{end} {measure}"] for end in ("low", "high")]
            axis.plot(ends, [y, y], color=colour, linewidth=1.2)
            style = {"color": colour, "linestyle": "none", "markersize": 9 if marker == "|" else 5}
            axis.plot(scale * found[measure], y, marker, **style, label="" if y else label)
    labels = [
        f"{name}: {attribute}, {count} object{'s' * (count > 1)}"
        for name, (count, attribute) in rows
    ]
    panels[0].set(yticks=range(len(rows)), yticklabels=labels, xlim=(0, 100))
    panels[0].invert_yaxis()
    panels[0].set_xlabel("a word's attention on … (%)")
    panels[1].set_xlabel("fall of the word's log-probability (nats) …")
    panels[1].axvline(0, color="0.4", linestyle="--", linewidth=1)
    for axis in panels:
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(
            frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=7.5, ncols=2
        )
    return figure
