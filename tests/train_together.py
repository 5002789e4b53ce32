"""A tiny arm trained by every process that runs this: ``train_together.py DIRECTORY [MICRO]``."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from dalle3lib import diffusion, parallel, unet
from dalle3lib.train import train

BATCH = 6


def tiny_loss(micro_batch: int | None = None) -> tuple[unet.UNet2DConditionModel, Callable]:
    """A tiny U-Net and its loss as a function of the step, in parts."""
    numbers = np.random.default_rng(0)
    latents = torch.from_numpy(numbers.standard_normal((BATCH, 4, 8, 8), dtype="float32"))
    states = torch.from_numpy(numbers.standard_normal((BATCH, 5, 32), dtype="float32"))
    mask = torch.ones(BATCH, 5, dtype=torch.bool)
    torch.manual_seed(0)
    model = unet.build((16, 32, 32), text_width=32)

    def part_loss(step: int, part: slice) -> dict[str, torch.Tensor]:
        draw = np.random.default_rng(step)
        noise = torch.from_numpy(draw.standard_normal(latents.shape, dtype="float32"))[part]
        t = torch.from_numpy(draw.random(BATCH, dtype="float32"))[part]
        x = latents[part]
        value = diffusion.loss(model, x, noise, t, states[part], mask[part])
        return {"loss": value * len(x) / BATCH}

    cuts = parallel.micro_batches(BATCH, micro_batch)
    return model, lambda step: [partial(part_loss, step, cut) for cut in cuts]


def tiny_arm(directory: Path, steps: int = 12, micro_batch: int | None = None) -> dict:
    """Train the tiny U-Net; the log."""
    model, loss = tiny_loss(micro_batch)
    return train(
        model,
        loss,
        steps=steps,
        lr=1e-3,
        directory=directory,
        warmup=2,
        ema_decay=0.9,
        held_out=lambda: float(next(iter(model.parameters())).sum()),
        held_out_every=4,
        checkpoint_every=3,
        snapshots=(steps,),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    tiny_arm(Path(sys.argv[1]), micro_batch=int(sys.argv[2]) if len(sys.argv) > 2 else None)
