"""Training a captioner (paper section 2): CoCa's two losses, and how good a captioner is.

The base captioner learns with both losses, the SSC and DSC fine-tunes with the captioning loss
alone. The network and its captions are in ``captioner``.
"""

import math
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from torch import LongTensor, Tensor
from torch.nn import functional as F

from dalle3lib import UserError, files, parallel
from dalle3lib.captioner import encode, pixels
from dalle3lib.randomness import batch_indices
from dalle3lib.train import Part, train


def loss(
    model: open_clip.CoCa, images: Tensor, tokens: LongTensor, contrastive: float, captioning: float
) -> dict[str, Tensor]:
    """CoCa's two losses for images float [B, 3, H, W] and their captions' tokens [B, L].

    ``captioning`` weighs the mean negative log-likelihood of the caption's tokens given the image
    (equation 2), pads ignored; ``contrastive`` weighs CLIP's loss: the image must pick its caption
    among the batch's, and the caption its image. Returns scalars ``loss`` (the weighted sum),
    ``contrastive`` and ``captioning`` (unweighted; contrastive is 0 where its weight is 0).
    """
    used = int((tokens != model.pad_id).any(dim=0).nonzero().max()) + 1  # columns not all pads
    if not contrastive:
        tokens = tokens[:, :used]  # the text feature depends on the pads; the captioning does not
    image_feature, image_tokens = model.visual(images)
    text_feature, text_tokens = model.text(tokens)
    logits = model.text_decoder(image_tokens, text_tokens[:, : used - 1])
    caption_loss = F.cross_entropy(
        logits.flatten(0, 1).float(), tokens[:, 1:used].flatten(), ignore_index=model.pad_id
    )
    contrast = torch.zeros_like(caption_loss)
    if contrastive:
        contrast = contrastive_loss(image_feature, text_feature, model.logit_scale)
    total = contrastive * contrast + captioning * caption_loss
    return {"loss": total, "contrastive": contrast, "captioning": caption_loss}


def contrastive_loss(image_feature: Tensor, text_feature: Tensor, log_scale: Tensor) -> Tensor:
    """CLIP's loss of B pairs of features [B, D]: each must find its partner among the batch's."""
    scale = log_scale.clamp(max=math.log(100)).exp()  # CLIP's bound on the temperature
    similarity = scale * F.normalize(image_feature, dim=-1) @ F.normalize(text_feature, dim=-1).T
    pairs = torch.arange(len(similarity), device=similarity.device)
    return (F.cross_entropy(similarity, pairs) + F.cross_entropy(similarity.T, pairs)) / 2


def train_captioner(
    model: open_clip.CoCa,
    tokenizer,
    images: np.ndarray,
    captions: list[str],
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    directory: Path | str,
    contrastive: float,
    captioning: float,
    held_out: tuple[np.ndarray, list[str]] | None = None,
    micro_batch: int | None = None,
    bfloat16: bool = False,
    grad_checkpointing: bool = False,
    **options,
) -> dict[str, list[float]]:
    """Trains ``model`` in place on images uint8 [N, H, W, 3] and their captions, on its device.

    Returns the log: for each entry of ``loss`` one value per step. ``images`` is an array, or
    whatever gives one for ``images[rows]``, such as ``caption_sets.Photographs``.

    The base model is trained with both losses, the SSC and DSC fine-tunes with the captioning loss
    alone (``contrastive=0``, open_clip's recipe for COCO). ``held_out`` are images and captions
    that are not learned from: their nats per token are measured as training goes on, and can stop
    it (``held_out_every``, ``patience``). ``options`` go to ``train.train``, which resumes
    bit-exactly from ``directory``.

    Three ways to need less memory: ``micro_batch`` images at a time, with the gradient of the
    whole batch (captioning loss only: the contrastive loss compares all images of a batch at
    once); activations in bfloat16 (weights, optimizer and loss stay float32); and activations
    computed again on the way back instead of kept (``grad_checkpointing``, about a third slower).
    """
    tokens = encode(tokenizer, captions, model.context_length).to(model.logit_scale.device)
    parts = parallel.micro_batches(batch, micro_batch)
    if contrastive and len(parts) > 1:
        raise UserError(
            f"The contrastive loss compares all {batch} images of a batch, so a batch cannot "
            f"be split into {len(parts)} parts: leave micro_batch out and train in one process, or "
            "set contrastive to 0."
        )

    def part_loss(rows: np.ndarray, terms: int) -> dict[str, Tensor]:
        part = tokens[rows]
        with torch.autocast(part.device.type, torch.bfloat16, enabled=bfloat16):
            values = loss(model, pixels(model, images[rows]), part, contrastive, captioning)
        weight = caption_terms(part, model.pad_id) / terms  # 1 if this is the whole batch
        return {name: weight * value for name, value in values.items()}

    def batch_loss(step: int) -> list[Part]:
        rows = batch_indices(seed, step, batch, len(tokens))
        terms = caption_terms(tokens[rows], model.pad_id)
        return [partial(part_loss, rows[part], terms) for part in parts]

    if held_out:
        options["held_out"] = partial(
            token_log_likelihood, model, tokenizer, *held_out, batch_size=micro_batch or 128
        )
    model.set_grad_checkpointing(grad_checkpointing)
    log = train(model, batch_loss, steps=steps, lr=lr, directory=Path(directory), **options)
    model.set_grad_checkpointing(False)
    return log


def caption_terms(tokens: LongTensor, pad_id: int) -> int:
    """Over how many tokens the captioning loss of captions [B, L] is the mean."""
    return int((tokens[:, 1:] != pad_id).sum())


def truncated_share(tokenizer, captions: list[str], length: int, pad_id: int = 0) -> float:
    """The share of captions that do not fit into ``length`` tokens, start and end included."""
    cut = 0
    for first in range(0, len(captions), 1000):
        tokens = encode(tokenizer, captions[first : first + 1000], length + 1)
        cut += int((tokens[:, length] != pad_id).sum())
    return cut / len(captions)


def curve(log: dict[str, list[float]], window: int | None = None) -> pd.DataFrame:
    """What a training's log shows, to draw or to keep: one row for every ``window`` steps.

    The default is 20 steps, or a tenth of a training of less than 200.

    Columns: ``step`` (the last of the window, counted from 1), ``captioning`` and ``contrastive``
    (means over the window, nats), ``held_out`` (nats per caption token after that step, NaN where
    it was not measured). Measurements between the ends of windows have rows of their own.
    """
    losses = pd.DataFrame({name: log[name] for name in ("captioning", "contrastive")})
    window = window or min(20, max(1, len(losses) // 10))
    step = pd.Series(range(len(losses)), name="step") // window * window + window
    means = losses.groupby(step.clip(upper=len(losses))).mean().reset_index()
    measured = {"step": log.get("held_out_step", []), "held_out": log.get("held_out", [])}
    table = means.merge(pd.DataFrame(measured, dtype=float), on="step", how="outer")
    return table.astype({"step": int}).round(4)


def write_curve(log: dict[str, list[float]], directory: Path) -> None:
    """Write ``curve(log)`` as ``training.csv`` into a directory."""
    table = curve(log).to_csv(index=False, lineterminator="\n")
    files.write_atomic(directory / "training.csv", table.encode())


@torch.no_grad()
def token_log_likelihood(
    model: open_clip.CoCa, tokenizer, images: np.ndarray, captions: list[str], batch_size: int = 128
) -> float:
    """Mean negative log-likelihood per caption token given the image, in nats (lower is better).

    ``images`` are uint8 [N, H, W, 3], one caption each; every token but the start and the pads
    counts once, the end token included. The model should be in evaluation mode.
    """
    tokens = encode(tokenizer, captions, model.context_length).to(model.logit_scale.device)
    total, count = 0.0, 0
    for first in range(0, len(tokens), batch_size):
        rows = slice(first, first + batch_size)
        terms = caption_terms(tokens[rows], model.pad_id)
        batch = loss(model, pixels(model, images[rows]), tokens[rows], contrastive=0, captioning=1)
        total, count = total + float(batch["captioning"]) * terms, count + terms
    return total / count
