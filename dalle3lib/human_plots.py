"""Figures of the chapter on human evaluation."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from dalle3lib import human
from dalle3lib.human_samples import pixels
from dalle3lib.plots import COLOURS


def trials(plan: human.Plan, some: Sequence[human.Trial]) -> Figure:
    """Trials as raters see them, side by side: question, caption if it is shown, two pictures."""
    asked = [textwrap.wrap(human.QUESTIONS[trial.question].ask, 40) for trial in some]
    said = [f"“{trial.caption}”" if trial.caption else "(no caption is shown)" for trial in some]
    below = [textwrap.wrap(caption, 46, max_lines=8, placeholder=" …") for caption in said]
    lines = max(len(a) + len(b) for a, b in zip(asked, below, strict=True)) + 1
    height = 1.4 + 0.15 * lines  # inches
    figure = plt.figure(figsize=(3.1 * len(some), height), dpi=110)
    boxes = figure.subfigures(1, len(some), squeeze=False)[0]
    for box, trial, question, caption in zip(boxes, some, asked, below, strict=True):
        sides = {"left": 0.03, "right": 0.97, "wspace": 0.06, "top": 1.4 / height, "bottom": 0.01}
        for axis, name in zip(
            box.subplots(1, 2, gridspec_kw=sides), (trial.left, trial.right), strict=True
        ):
            axis.imshow(pixels(plan.folder / "images" / name), interpolation="nearest")
            axis.set_axis_off()
            axis.set_anchor("N")
        style = {"va": "top", "parse_math": False}
        box.text(0.03, 0.99, "\n".join(question), fontsize=8, weight="bold", **style)
        start = 0.99 - 0.16 * len(question) / height
        box.text(0.03, start, "\n".join(caption), fontsize=7, **style)
    return figure


def votes_needed(curves: dict[str, np.ndarray], rates: np.ndarray, had: dict[str, int]) -> Figure:
    """Votes needed against the true win rate in %, a line a name, the votes on a logarithmic axis.

    ``had`` are numbers of votes to point out, as dashed lines.
    """
    figure, axis = plt.subplots(figsize=(9, 3.4), layout="constrained", dpi=110)
    for (name, votes), colour in zip(curves.items(), COLOURS, strict=False):
        axis.plot(rates, votes, color=colour, label=name)
    for (name, votes), dash in zip(had.items(), ("--", ":", "-."), strict=False):
        axis.axhline(votes, color="0.4", linestyle=dash, label=f"{name}: {votes:,}")
    axis.set(yscale="log", xlabel="true win rate (%)", ylabel="votes on the pair")
    axis.set_yticks([10, 100, 1000, 10_000], ["10", "100", "1,000", "10,000"])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return figure
