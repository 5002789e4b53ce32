"""Diagrams of networks, with the sizes of the very model they are given."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import open_clip
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from open_clip.transformer import TextTransformer
from torch import nn

from dalle3lib import UserError

# Ink and paper are set, not taken from the reader's style: a diagram stays one on a dark page.
INK, PAPER = "#222222", "white"
IMAGE, TEXT, LOSS = "#DCEAF7", "#DFF0E6", "#FCE8D5"


def sizes(model: open_clip.CoCa) -> dict[str, int | tuple[int, int]]:
    """The sizes of a CoCa that its diagram names, read from its weights and layers.

    ``image`` and ``patch`` (pixels, height and width), ``patches`` (rows and columns), ``vectors``
    (captioning queries of the pooler), layers, width and heads of each part. Raises ``UserError``
    for a model without attentional pooler.
    """
    visual, text, decoder = model.visual, model.text, model.text_decoder
    if getattr(visual, "attn_pool", None) is None:
        raise UserError(
            "This model's image encoder has no attentional pooler, so it is not the CoCa of the "
            "diagram: use one such as coca_ViT-L-14."
        )
    own = isinstance(text, TextTransformer)  # the alternative is a Hugging Face text encoder
    # open_clip's first query is the contrastive one, unless a second pooler makes that vector.
    together = visual.attn_pool_contrastive is None
    return {
        "image": visual.image_size,
        "patch": visual.patch_size,
        "patches": visual.grid_size,
        "image layers": len(visual.transformer.resblocks),
        "image width": visual.conv1.out_channels,
        "image heads": visual.transformer.resblocks[0].attn.num_heads,
        "vectors": len(visual.attn_pool.query) - together,
        "pooler heads": visual.attn_pool.attn.num_heads,
        "embedding": visual.output_dim,
        "text layers": len(text.transformer.resblocks) if own else text.config.num_hidden_layers,
        "text width": text.width if own else text.config.hidden_size,
        "vocabulary": text.vocab_size if own else text.config.vocab_size,
        "context": decoder.context_length,
        "decoder layers": len(decoder.cross_attn),
        "decoder width": decoder.width,
        "decoder heads": decoder.cross_attn[0].attn.num_heads,
    }


def coca(model: open_clip.CoCa, image: np.ndarray, caption: Sequence[str]) -> Figure:
    """CoCa from the image and the caption at the bottom to its two losses (paper §2).

    ``image`` is uint8 [H, W, 3], square; ``caption`` the first words to show. Raises ``UserError``
    as ``sizes``.
    """
    size = sizes(model)
    figure, axis = plt.subplots(figsize=(9.6, 6.3), layout="constrained", dpi=110, facecolor=PAPER)
    axis.set(xlim=(0, 100), ylim=(0, 68), aspect="equal")
    axis.set_axis_off()
    _image_side(axis, model, size, image)
    _text_side(axis, model, size, caption)
    _losses(axis, size)
    return figure


def _image_side(axis: Axes, model: open_clip.CoCa, size: dict, image: np.ndarray) -> None:
    """The picture in patches, the image encoder, and the pooler above it."""
    (height, width), (rows, columns) = size["image"], size["patches"]
    axis.imshow(image, extent=(10, 24, 1, 15), interpolation="nearest", zorder=2)
    for i in range(1, max(rows, columns)):
        at = 14 * i / max(rows, columns)
        axis.plot([10 + at] * 2, [1, 15], color=PAPER, linewidth=0.6, zorder=3)
        axis.plot([10, 24], [1 + at] * 2, color=PAPER, linewidth=0.6, zorder=3)
    said = f"{height} × {width} px\n{rows} × {columns} patches"
    axis.text(25, 8, said, fontsize=8, color=INK, va="center")
    pooler = parameters(model.visual.attn_pool)
    encoder = parameters(model.visual) - pooler
    _box(axis, 2, 20, IMAGE, "image encoder", [
        "vision transformer",
        f"{size['image layers']} layers, {size['image heads']} heads, width {size['image width']}",
        f"{encoder:,} parameters",
    ])  # fmt: skip
    _box(axis, 2, 42, IMAGE, "attentional pooler", [
        f"1 + {size['vectors']} learned queries, {size['pooler heads']} heads",
        "each gathers what it needs from all patches",
        f"{pooler:,} parameters",
    ])  # fmt: skip
    _arrow(axis, [(17, 15.4), (17, 20)])
    _arrow(axis, [(17, 33), (17, 42)])
    axis.text(18, 37.5, f"{rows * columns} patches\n+ class token", **_small("left"))


def _text_side(axis: Axes, model: open_clip.CoCa, size: dict, caption: Sequence[str]) -> None:
    """The caption token by token, the text encoder that sees no image, and the decoder above."""
    tokens = ["start", *caption[:4], "…", "CLS"]
    for i, token in enumerate(tokens):
        left = 64 + i * 36 / len(tokens)
        colour = LOSS if token == "CLS" else TEXT
        box = Rectangle(
            (left, 4), 36 / len(tokens) - 0.6, 5, facecolor=colour, edgecolor=INK, linewidth=0.7
        )
        axis.add_patch(box)
        short = token if len(token) <= 7 else token[:6] + "…"
        axis.text(left + 18 / len(tokens) - 0.3, 6.5, short, fontsize=7, **_centred())
    shown = f"at most {size['context']} tokens, from a vocabulary of {size['vocabulary']:,}"
    axis.text(82, 1.4, shown, **_small("center"))
    _box(axis, 67, 20, TEXT, "text encoder (unimodal)", [
        "causal: looks back, sees no image",
        f"{size['text layers']} layers, width {size['text width']}",
        f"{parameters(model.text):,} parameters",
    ])  # fmt: skip
    _box(axis, 67, 42, TEXT, "multimodal decoder", [
        "self-attention, then cross-attention",
        f"{size['decoder layers']} layers of both, {size['decoder heads']} heads, "
        f"width {size['decoder width']}",
        f"{parameters(model.text_decoder):,} parameters",
    ])  # fmt: skip
    _arrow(axis, [(82, 9.4), (82, 20)])
    _arrow(axis, [(82, 33), (82, 42)])
    axis.text(83, 37.5, "one state\nper token", **_small("left"))


def _losses(axis: Axes, size: dict) -> None:
    """Both losses, and the three arrows between the columns."""
    _box(axis, 67, 60, LOSS, "captioning loss", ["of each next token (equation 2)"], height=7.5)
    _arrow(axis, [(82, 55), (82, 60)])
    _box(axis, 39, 20, LOSS, "contrastive loss", [
        "CLIP's: each image finds",
        "its caption in the batch,",
        "each caption its image",
    ], width=21)  # fmt: skip
    _arrow(axis, [(32, 52), (67, 52)])
    axis.text(49.5, 53, f"{size['vectors']} vectors: the image F(i)", **_small("center", "bottom"))
    axis.text(49.5, 51, "keys and values of cross-attention", **_small("center", "top"))
    _arrow(axis, [(32, 45), (49.5, 45), (49.5, 33)])
    axis.text(33, 44, f"1 image vector\n({size['embedding']} numbers)", **_small("left", "top"))
    _arrow(axis, [(67, 26.5), (60, 26.5)])
    axis.text(63.5, 34, "state of CLS:\n1 text vector", **_small("center", "bottom"))
    axis.plot([63.5, 63.5], [33.6, 27.2], color=INK, linewidth=0.6, linestyle=":")


def parameters(module: nn.Module) -> int:
    """How many numbers a module learns."""
    return sum(weight.numel() for weight in module.parameters())


def _box(
    axis: Axes,
    left: float,
    bottom: float,
    colour: str,
    title: str,
    lines: Sequence[str],
    width: float = 30,
    height: float = 13,
) -> None:
    """A rounded box: its name in bold, then lines."""
    style = "round,pad=0,rounding_size=1.2"
    place = ((left, bottom), width, height)
    axis.add_patch(FancyBboxPatch(*place, boxstyle=style, facecolor=colour, edgecolor=INK))
    middle, top = left + width / 2, bottom + height - 2.2
    axis.text(middle, top, title, fontsize=9.5, weight="bold", **_centred())
    for i, line in enumerate(lines):
        axis.text(middle, top - 3 * (i + 1), line, fontsize=7.8, **_centred())


def _arrow(axis: Axes, points: Sequence[tuple[float, float]]) -> None:
    """An arrow along straight pieces, its head at the last point."""
    style = {"color": INK, "linewidth": 1.2}
    axis.plot(*zip(*points[:-1], strict=True), **style, solid_capstyle="butt")
    arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, **style}
    axis.annotate("", xy=points[-1], xytext=points[-2], arrowprops=arrow)


def _centred() -> dict:
    return {"ha": "center", "va": "center", "color": INK, "parse_math": False}


def _small(across: str, along: str = "center") -> dict:
    return {"ha": across, "va": along, "fontsize": 7.8, "color": INK, "linespacing": 1.2}
