"""Training the consistency decoder: the teacher, its distillation, and how both were shipped.

The recipe that the paper leaves out (App. B says "consistency distillation", no more). The teacher
learns to denoise pixels given latents; the student starts from its weights and learns to answer
alike all along the teacher's path. Without a teacher the same loop does consistency training.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from dalle3lib import (
    consistency,
    decoder_network,
    decoder_scores,
    files,
    paths,
    quality,
    vae,
)
from dalle3lib.images import stack, to_tensor
from dalle3lib.randomness import batch_indices, rng
from dalle3lib.train import train, update_ema
from dalle3lib.world import World, render

# How decoders are trained for the book: scenes of the foundation split (the autoencoder's own).
TEACHER = {"seed": 0, "scenes": 60_000, "steps": 20_000, "batch": 16, "lr": 1.2e-3}
STUDENT = {"seed": 0, "scenes": 60_000, "steps": 2000, "batch": 16, "lr": 4e-4}
LATENT_NOISE = 0.3  # greatest deviation of the noise on half of the latents, theirs being 1
TARGET_DECAY = 0.95  # of the EMA target (Song et al. 2023, appendix C)


@dataclass(frozen=True)
class Pairs:
    """What training reads: ``images`` uint8 [N, H, W, 3] and their ``latents`` [N, 4, h, w]."""

    images: np.ndarray
    latents: Tensor


def pictures(scenes: int) -> Pairs:
    """The first scenes of the foundation split and their latents by the shipped autoencoder."""
    images = stack(World("foundation", scenes))
    return Pairs(images, vae.encode(vae.load(paths.foundation("vae")), images, batch=100))


def draw(data: Pairs, seed: int, step: int, batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A step's pictures [B, 3, H, W], latents, noise, and grid points n [B] in 1 ... 63.

    Half of the latents get noise of a deviation up to ``LATENT_NOISE``: the decoder then forgives
    the errors of latents that a diffusion model has drawn.
    """
    rows = torch.from_numpy(batch_indices(seed, step, batch, len(data.images)))
    x, latents = to_tensor(data.images[rows.numpy()]), data.latents[rows]
    blur = rng(seed, "decoder/latents", step)
    level = LATENT_NOISE * np.maximum(0, blur.uniform(-1, 1, (batch, 1, 1, 1)))
    latents = latents + torch.from_numpy(level * blur.standard_normal(latents.shape)).float()
    noise = rng(seed, "decoder/noise", step).standard_normal(x.shape, dtype="float32")
    n = rng(seed, "decoder/time", step).integers(1, consistency.GRID, batch)
    return x, latents, torch.from_numpy(noise), torch.from_numpy(n)


def teacher_loss(
    model: nn.Module, data: Pairs, *, seed: int, batch: int
) -> Callable[[int], dict[str, Tensor]]:
    """The teacher's loss as a function of the step, for ``train.train``."""

    def at(step: int) -> dict[str, Tensor]:
        return {"loss": consistency.diffusion_loss(model, *draw(data, seed, step, batch))}

    return at


class Pair(nn.Module):
    """A student and its EMA target. The target is part of the model that the loop trains, so that
    checkpoints hold it and an interrupted distillation goes on as if it had not been."""

    def __init__(self, student: nn.Module):
        super().__init__()
        self.student = student
        self.target = deepcopy(student).requires_grad_(False)


def student_loss(
    pair: Pair, teacher: nn.Module | None, data: Pairs, *, seed: int, batch: int
) -> Callable[[int], dict[str, Tensor]]:
    """The student's loss as a function of the step; without a teacher that of consistency training.

    Each step first moves the target a little towards the student.
    """

    def at(step: int) -> dict[str, Tensor]:
        average = dict(pair.target.state_dict())
        update_ema(average, pair.student, TARGET_DECAY, step)
        drawn, models = draw(data, seed, step, batch), (pair.student, pair.target)
        if teacher is None:
            return {"loss": consistency.training_loss(*models, *drawn)}
        return {"loss": consistency.distillation_loss(*models, teacher, *drawn)}

    return at


def train_teacher(
    data: Pairs,
    directory: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    autoencoder: AutoencoderKL | None = None,
    **network,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Train a teacher; return (averaged weights, log). Resumes from ``directory``.

    It starts from the decoder of ``autoencoder`` (``decoder_network.start_from``), or from nothing.
    ``network`` are options of ``decoder_network.build``.
    """
    if autoencoder is not None:
        network = {"channels": tuple(autoencoder.config.block_out_channels), **network}
    model = decoder_network.build(seed=seed, **network)
    if autoencoder is not None:
        decoder_network.start_from(autoencoder, model)
    model = model.to(memory_format=torch.channels_last)
    log = train(
        model,
        teacher_loss(model, data, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=directory,
        warmup=min(100, steps // 4),
        ema_decay=0.998,
        description="diffusion decoder",
    )
    return model.eval().requires_grad_(False), log


def train_student(
    start: nn.Module,
    teacher: nn.Module | None,
    data: Pairs,
    directory: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
) -> tuple[nn.Module, dict[str, list[float]]]:
    """Distil ``teacher`` into a consistency model with the weights of ``start``; (model, log).

    With ``teacher`` None: consistency training, on the data alone. Resumes from ``directory``.
    """
    pair = Pair(deepcopy(start).requires_grad_(True)).to(memory_format=torch.channels_last)
    pair.train()
    log = train(
        pair,
        student_loss(pair, teacher, data, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=directory,
        warmup=min(50, steps // 4),
        ema_decay=0.995,
        description="distillation" if teacher is not None else "consistency training",
    )
    return pair.student.eval().requires_grad_(False), log


# ---- what is shipped -----------------------------------------------------------------------------


def save(
    model: nn.Module, out: Path, started: tuple[float, float], recipe: dict, way: str, **more
) -> None:
    """Write a decoder in half precision with a manifest of how well it does ``way`` to decode.

    ``recipe`` is ``TEACHER`` or ``STUDENT``; ``way`` a name of ``decoder_scores.decoders``; what
    ``more`` there is to say goes into the manifest.
    """
    deepcopy(model).to(memory_format=torch.contiguous_format).half().save_pretrained(out)
    shipped = decoder_network.load(out)
    scenes = decoder_scores.test_scenes(100)
    autoencoder = vae.load(paths.foundation("vae"))
    true = np.stack([render(spec) for spec in scenes])
    latents = decoder_scores.latents_of(true, autoencoder)
    how = decoder_scores.decoders(autoencoder, shipped, shipped)[way]
    found = decoder_scores.measure(decoder_scores.decode(latents, how), scenes).mean()
    quality.write_manifest(
        out,
        started,
        seed=recipe["seed"],
        steps=recipe["steps"],
        measured={name: round(value, 3) for name, value in found.items()},
        batch=recipe["batch"],
        scenes=recipe["scenes"],
        decoded=way,
        **more,
    )


def train_again(directory: Path) -> dict[str, dict]:
    """Train teacher and student by ``TEACHER`` and ``STUDENT`` and save them; their manifests.

    They are left in ``directory``, as they are shipped in ``data/foundation``. An interrupted call
    goes on where it stopped.
    """
    work, started, lesson = directory / "checkpoints", quality.clock(), dict(TEACHER)
    data, autoencoder = pictures(lesson.pop("scenes")), vae.load(paths.foundation("vae"))
    teacher, _ = train_teacher(data, work / "decoder-teacher", autoencoder=autoencoder, **lesson)
    save(teacher, directory / "decoder-teacher", started, TEACHER, "teacher, 16 steps")
    started, lesson = quality.clock(), {k: v for k, v in STUDENT.items() if k != "scenes"}
    student, _ = train_student(teacher, teacher, data, work / "decoder", **lesson)
    save(student, directory / "decoder", started, STUDENT, "consistency, 2 steps")
    names = ("decoder-teacher", "decoder")
    return {name: files.read_json(directory / name / "manifest.json") for name in names}
