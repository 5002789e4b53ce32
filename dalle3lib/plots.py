"""Figures that several chapters share: each function draws what it is given and returns it."""

import textwrap
from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pandas import DataFrame, Series

from dalle3lib.images import Record

# One colour per kind of caption in the whole book (Okabe and Ito's, told apart by everyone).
KIND_COLOURS = {"alt-text": "#D55E00", "short": "#0072B2", "descriptive": "#00795A"}
# What captioners write has the colour of what they were fine-tuned on.
CAPTION_COLOURS = KIND_COLOURS | {
    "human": "#555555",
    "base captioner": "#555555",
    "SSC": KIND_COLOURS["short"],
    "DSC": KIND_COLOURS["descriptive"],
    "upsampled": "#CC79A7",
    "original": KIND_COLOURS["alt-text"],  # as a kind of prompt
}
# One colour per arm likewise; the more descriptive captions, the darker the green.
ARM_COLOURS = {
    "original only": KIND_COLOURS["alt-text"],
    "SSC 95 %": KIND_COLOURS["short"],
    "DSC 50 %": "#B5DCC8",
    "DSC 65 %": "#98CEB4",
    "DSC 80 %": "#7FBF9F",
    "DSC 90 %": "#3F9C7C",
    "DSC 95 %": KIND_COLOURS["descriptive"],
    "DSC 100 %": "#003D2C",
}
COLOURS = ("#0072B2", "#00795A", "#D55E00", "#555555")
LINE = 56  # characters in a line of text beside a picture


def caption_grid(
    records: Sequence[Record],
    columns: int = 2,
    labels: Sequence[str] = tuple(KIND_COLOURS),
) -> Figure:
    """Numbered pictures, each with all its captions beside it, every kind in its own colour.

    ``labels`` say what the alt-text, the short and the descriptive caption of a record are called.
    """
    figure, axes = beside_pictures([record.image for record in records], columns)
    for axis, record in zip(axes, records, strict=False):
        _write_captions(axis, record, labels)
    return figure


def beside_pictures(pictures: Sequence[np.ndarray], columns: int) -> tuple[Figure, list[Axes]]:
    """A grid of numbered pictures, and an empty axis beside each for what is said of it."""
    rows = -(-len(pictures) // columns)
    figure, axes = plt.subplots(
        rows,
        2 * columns,
        figsize=(5.2 * columns, 1.68 * rows),
        width_ratios=(1.5, 3.7) * columns,
        gridspec_kw={"wspace": 0.04, "hspace": 0.1, "left": 0, "right": 1, "bottom": 0, "top": 1},
        squeeze=False,
        dpi=110,
    )
    for axis in axes.flat:
        axis.set_axis_off()
    beside = []
    for i, image in enumerate(pictures):
        row, column = divmod(i, columns)
        picture, text = axes[row, 2 * column : 2 * column + 2]
        picture.imshow(image, interpolation="nearest")
        picture.set_anchor("N")
        label = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        picture.text(2, 2, str(i + 1), fontsize=8, va="top", bbox=label)
        beside.append(text)
    return figure, beside


def _write_captions(axis: Axes, record: Record, labels: Sequence[str]) -> None:
    """The captions of one record from the top of an axis down: kind in bold, then the text."""
    captions = zip(labels, (record.alt, record.short, record.descriptive), strict=True)
    below = 0.0  # points from the top
    for kind, caption in captions:
        if caption is None:
            continue
        lines = textwrap.wrap(caption, LINE, max_lines=4, placeholder=" …")
        style = {
            "xy": (0, 1),
            "xycoords": "axes fraction",
            "textcoords": "offset points",
            "va": "top",
            "fontsize": 8.5,
            "parse_math": False,  # a caption with a dollar sign is no formula
        }
        axis.annotate(kind, xytext=(0, -below), weight="bold", color=CAPTION_COLOURS[kind], **style)
        axis.annotate("\n".join(lines), xytext=(0, -below - 12), linespacing=1.25, **style)
        below += 12 + 11.5 * len(lines) + 4


def word_histogram(captions: dict[str, Sequence[str]], longest: int = 50) -> Figure:
    """How many words captions have, by kind: the share of captions in percent for each count.

    Captions of more than ``longest`` words are counted in the last bar.
    """
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained", dpi=110)
    for kind, texts in captions.items():
        words = [min(len(text.split()), longest) for text in texts]
        axis.hist(
            words,
            bins=[n - 0.5 for n in range(1, max(words) + 2)],
            weights=[100 / len(words)] * len(words),
            histtype="stepfilled",
            linewidth=1.5,
            edgecolor=CAPTION_COLOURS[kind],
            facecolor=(CAPTION_COLOURS[kind], 0.3),
            label=kind,
        )
    axis.set(xlabel="words in the caption", ylabel="share of captions (%)")
    tidy(axis)
    return figure


def shares(table: DataFrame, xlabel: str) -> Figure:
    """Shares (0 to 1) as horizontal bars in percent: a group per row, a colour per column."""
    figure, axis = plt.subplots(
        figsize=(8, 0.4 + 0.2 * table.size + 0.15 * len(table)), layout="constrained", dpi=110
    )
    colours = [CAPTION_COLOURS.get(name, "#999999") for name in table.columns]
    (100 * table).plot.barh(ax=axis, color=colours, width=0.8)
    for bars in axis.containers:
        axis.bar_label(bars, fmt="%.0f", padding=2, fontsize=8)
    axis.invert_yaxis()
    axis.set(xlabel=xlabel, ylabel="", xlim=(0, 108))
    tidy(axis)
    return figure


def lines(table: DataFrame, xlabel: str, ylabel: str) -> Figure:
    """One line per column over the rows' labels; shares (0 to 1) are drawn in percent."""
    figure, axis = plt.subplots(figsize=(8, 3.2), layout="constrained", dpi=110)
    for name, marker in zip(table.columns, cycle("osD^v"), strict=False):
        axis.plot(table.index, 100 * table[name], marker=marker, label=name)
    axis.set(xlabel=xlabel, ylabel=ylabel, xticks=table.index, ylim=(0, None))
    tidy(axis)
    return figure


def tidy(axis: Axes) -> None:
    """No box around the plot, and the legend beside it, where it hides nothing."""
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))


def score_curve(summary: DataFrame, truth: dict[str, float] | None = None) -> Figure:
    """Mean CLIP score against step, a line with its interval for each arm, a panel for each kind.

    ``summary`` comes from ``arm.summarise``; ``truth`` gives the true images' scores by kind.
    """
    kinds = summary.kind.unique()
    figure, axes = plt.subplots(
        1, len(kinds), figsize=(9.5, 3.4), layout="constrained", dpi=110, squeeze=False
    )
    for axis, kind in zip(axes.flat, kinds, strict=True):
        for name, points in summary[summary.kind == kind].groupby("arm", sort=False):
            colour = ARM_COLOURS.get(name, "#555555")
            axis.plot(points.step, points["mean"], marker="o", color=colour, label=name)
            axis.fill_between(points.step, points.low, points.high, color=colour, alpha=0.15)
        if truth:
            axis.axhline(truth[kind], color="0.4", linestyle="--", label="true images")
        axis.set(xlabel="training step", title=f"{kind} prompts")
        axis.spines[["top", "right"]].set_visible(False)
    axes.flat[0].set_ylabel("CLIP score (100 × cosine)")
    axes.flat[-1].legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def differences(effects: dict[str, dict], xlabel: str) -> Figure:
    """A diamond with its interval for each effect, one below the other, and a line at zero.

    ``effects`` maps a name to an entry with effect, interval (low, high) and, where seeds were
    compared, by_seed: the seeds' differences, drawn as grey dots.
    """
    figure, axis = plt.subplots(
        figsize=(9, 0.8 + 0.42 * max(1, len(effects))), layout="constrained", dpi=110
    )
    for row, entry in enumerate(effects.values()):
        by_seed = entry.get("by_seed", [])
        axis.plot(by_seed, [row + 0.2] * len(by_seed), "o", color="0.45", alpha=0.5, ms=3.5)
        axis.plot(entry["interval"], [row, row], color=COLOURS[0])
        axis.plot(entry["effect"], row, marker="D", color=COLOURS[0], ms=5)
    axis.axvline(0, color="0.4", linestyle="--")
    axis.set(xlabel=xlabel, yticks=range(len(effects)), yticklabels=list(effects))
    axis.set_ylim(max(0.5, len(effects) - 0.5), -0.5)  # the first at the top
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def sample_grid(rows: dict[str, np.ndarray], prompts: Sequence[str], shown: int = 6) -> Figure:
    """Pictures side by side: a row for each source, a column for each of the first prompts.

    ``rows`` maps a name to uint8 pictures [N, H, W, 3] of the same N prompts; pictures of other
    shapes keep their proportions, and pixels are equally large in all rows.
    """
    columns = min(shown, *(len(pictures) for pictures in rows.values()))
    widest = max(pictures.shape[2] for pictures in rows.values())
    heights = [pictures.shape[1] / widest for pictures in rows.values()]
    figure, axes = plt.subplots(
        len(rows),
        columns,
        figsize=(1.55 * columns, 1.55 * sum(heights) + 0.07 * len(rows) + 0.8),
        height_ratios=heights,
        squeeze=False,
        layout="constrained",
        dpi=110,
    )
    for line, (name, pictures) in zip(axes, rows.items(), strict=True):
        for axis, picture in zip(line, pictures, strict=False):
            axis.imshow(picture, interpolation="nearest")
            beside = (widest - picture.shape[1]) / 2  # left empty, so that all pixels are alike
            axis.set_xlim(-0.5 - beside, picture.shape[1] - 0.5 + beside)
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        line[0].set_ylabel(name, fontsize=8)
    for axis, prompt in zip(axes[0], prompts, strict=False):
        lines = textwrap.wrap(prompt, 25, max_lines=6, placeholder=" …")
        axis.set_title("\n".join(lines), fontsize=6.5, loc="left", va="bottom", parse_math=False)
    return figure


def loss_curves(curves: dict[str, Sequence[float]], ylabel: str) -> Figure:
    """One loss per step and name: every step pale, the running mean over a twentieth strong."""
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained", dpi=110)
    for (name, values), colour in zip(curves.items(), cycle(COLOURS), strict=False):
        series = Series(values, index=range(1, len(values) + 1))
        axis.plot(series.index, series, color=colour, alpha=0.25, linewidth=0.8)
        axis.plot(series.rolling(max(1, len(series) // 20)).mean(), color=colour, label=name)
    axis.set(xlabel="training step", ylabel=ylabel)
    tidy(axis)
    return figure


def curves(values: dict[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    """A line per name over 1, 2, 3, ..., and a dashed one at 1: ratios."""
    figure, axis = plt.subplots(figsize=(8, 3), layout="constrained", dpi=110)
    for (name, numbers), colour in zip(values.items(), cycle(COLOURS), strict=False):
        axis.plot(range(1, len(numbers) + 1), numbers, color=colour, label=name)
    axis.axhline(1, color="0.4", linestyle="--")
    axis.set(xlabel=xlabel, ylabel=ylabel, ylim=(0, None))
    tidy(axis)
    return figure


def histogram(values: dict[str, Sequence[float]], xlabel: str, ylabel: str) -> Figure:
    """How often values fall into thirty equal bins, a colour per name; a line marks each mean."""
    figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained", dpi=110)
    for (name, numbers), colour in zip(values.items(), cycle(COLOURS), strict=False):
        axis.hist(numbers, bins=30, color=colour, alpha=0.6, label=name)
        axis.axvline(np.mean(numbers), color=colour, linestyle="--", label=f"mean of {name}")
    axis.set(xlabel=xlabel, ylabel=ylabel)
    tidy(axis)
    return figure


def heatmaps(tables: dict[str, DataFrame]) -> Figure:
    """A table of shares (0 to 1) for each name, side by side, with the percentages written in.

    Rows are the same in all tables; where a table has no number its cell stays empty.
    """
    rows = list(dict.fromkeys(row for table in tables.values() for row in table.index))
    columns = list(dict.fromkeys(c for table in tables.values() for c in table.columns))
    figure, axes = plt.subplots(
        1,
        len(tables),
        figsize=(1.6 + 0.55 * len(columns) * len(tables), 1.2 + 0.32 * len(rows)),
        sharey=True,
        squeeze=False,
        layout="constrained",
        dpi=110,
    )
    for axis, (name, table) in zip(axes.flat, tables.items(), strict=True):
        shares = table.reindex(index=rows, columns=columns).to_numpy(float)
        axis.imshow(shares, cmap="cividis", vmin=0, vmax=1, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
            if np.isfinite(share):
                ink = "white" if share < 0.5 else "black"
                label = {"ha": "center", "va": "center", "fontsize": 7.5, "color": ink}
                axis.text(column, row, f"{100 * share:.0f}", **label)
        axis.set(title=f"{name} (%)", xticks=range(len(columns)), yticks=range(len(rows)))
        axis.set_xticklabels(columns, rotation=45, ha="right", fontsize=8)
        axis.set_yticklabels(rows, fontsize=8)
    return figure
