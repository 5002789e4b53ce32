"""The diffusion method: schedule, loss, sampler, guidance. The network is anywhere else.

Time t runs from 0 (data) to 1 (noise); a noisy latent is z = sqrt(a) x + sqrt(1 - a) e with the
cosine schedule a(t). The network predicts the velocity v = sqrt(a) e - sqrt(1 - a) x.
"""

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dalle3lib import parallel, text
from dalle3lib.captions import drop_caption, use_synthetic
from dalle3lib.randomness import batch_indices, rng
from dalle3lib.train import Part


def alpha_bar(t: Tensor) -> Tensor:
    """The share of signal variance left at time t in [0, 1]: cosine schedule, in (0, 1].

    Nichol & Dhariwal 2021, equation 17, kept above 1e-5 so that no division by zero occurs.
    """
    angle = (t.double() + 0.008) / 1.008 * math.pi / 2  # in double, so that a(0) is exactly 1
    share = (angle.cos() / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    return share.clamp(1e-5, 1.0).to(t.dtype)


def _like(t: Tensor, x: Tensor) -> Tensor:
    """alpha_bar of times [B] in a shape that multiplies x [B, ...]."""
    return alpha_bar(t).view(-1, *(1,) * (x.dim() - 1))


def add_noise(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """The noisy latent z at times t [B] (Ho et al. 2020, equation 4)."""
    a = _like(t, x)
    return a.sqrt() * x + (1 - a).sqrt() * noise


def velocity(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """What the network should predict (Salimans & Ho 2022, section 4)."""
    a = _like(t, x)
    return a.sqrt() * noise - (1 - a).sqrt() * x


def predict(model: UNet2DConditionModel, z: Tensor, t: Tensor, states: Tensor, mask: Tensor):
    """The network's velocity [B, 4, h, w] for noisy latents z at times t [B].

    ``states`` [B, L, d] and ``mask`` [B, L] come from ``text.pad``.
    """
    return model(z, 1000 * t, states, encoder_attention_mask=mask).sample.float()


def min_snr_weight(t: Tensor, gamma: float) -> Tensor:
    """How much the errors at times t [B] count with min-SNR weighting (Hang et al. 2023): [B].

    The weight of the clean latent's error is the signal-to-noise ratio, but at most ``gamma`` (5 in
    their paper), so that nearly clean latents do not drown the others; divided by that ratio plus
    one, as it is the velocity's error that is weighed (their section 3.4).
    """
    a = alpha_bar(t)
    snr = a / (1 - a)  # infinite where there is no noise: the weight is 0 there
    return snr.clamp(max=gamma) / (snr + 1)


def loss(
    model: UNet2DConditionModel,
    x: Tensor,
    noise: Tensor,
    t: Tensor,
    states: Tensor,
    mask: Tensor,
    min_snr: float | None = None,
) -> Tensor:
    """Mean squared error of the velocity over a batch, weighed by ``min_snr_weight`` if asked."""
    error = predict(model, add_noise(x, noise, t), t, states, mask) - velocity(x, noise, t)
    if min_snr is None:
        return error.square().mean()
    return (min_snr_weight(t, min_snr) * error.square().mean((1, 2, 3))).mean()


def shown_captions(
    rows: Sequence[int],
    original: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    seed: int,
    step: int,
    ratio: float,
    dropout: float,
) -> list[Tensor]:
    """Which caption each sample of a step shows (the blend, paper §3.1): its states [L, d].

    ``rows`` are the samples' numbers in ``original`` and ``synthetic``; the synthetic caption is
    shown with probability ``ratio`` per cent, none ([0, d]) with probability ``dropout``.
    """
    use = use_synthetic(seed, step, len(rows), ratio)
    drop = drop_caption(seed, step, len(rows), dropout)
    shown = [synthetic[i] if s else original[i] for i, s in zip(rows, use, strict=True)]
    return [state[:0] if d else state for state, d in zip(shown, drop, strict=True)]


def noise_and_times(seed: int, step: int, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The noise of a step's latents, of their ``shape`` [B, 4, h, w], and their times [B]."""
    noise = rng(seed, "noise", step).standard_normal(shape, dtype="float32")
    t = rng(seed, "timestep", step).random(shape[0], dtype="float32")
    return torch.from_numpy(noise), torch.from_numpy(t)


def step_loss(
    model: UNet2DConditionModel,
    latents: Tensor,
    original: Sequence[Tensor],
    synthetic: Sequence[Tensor],
    *,
    seed: int,
    batch: int,
    ratio: float,
    dropout: float,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    micro_batch: int | None = None,
    min_snr: float | None = None,
    multiple: int = 1,
) -> Callable[[int], dict[str, Tensor] | list[Part]]:
    """The loss of one arm as a function of the step, for ``train.train``.

    Each sample shows its synthetic caption with probability ``ratio`` per cent and its original
    one otherwise (the blend, paper §3.1), and none at all with probability ``dropout`` (for
    guidance). ``latents`` is [N, 4, h, w]; ``original`` and ``synthetic`` are the N captions'
    states, [L, d] each. Order, noise and times depend on seed and step only: arms are paired.

    All of that is drawn in memory and moved to ``device``, where the model is; so a GPU sees what a
    processor would. With ``dtype`` bfloat16 matrices are multiplied in that precision (autocast),
    weights stay float32. If ``micro_batch`` is smaller than ``batch``, or several processes train
    together, a step has parts whose losses sum to that of the batch. ``min_snr`` weighs the times
    (``min_snr_weight``); without it all count alike, as in the arms of this book. Captions are
    padded to a ``multiple`` of tokens, which changes no loss (pads are masked).
    """

    def draw(step: int) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        rows = batch_indices(seed, step, batch, len(latents)).tolist()
        shown = shown_captions(rows, original, synthetic, seed, step, ratio, dropout)
        return latents[rows], *noise_and_times(seed, step, (batch, *latents.shape[1:])), shown

    def of(x: Tensor, noise: Tensor, t: Tensor, shown: list[Tensor]) -> Tensor:
        moved = (a.to(device) for a in (x, noise, t))
        with autocast(device, dtype):
            return loss(model, *moved, *text.pad(shown, device, multiple), min_snr=min_snr)

    drawn_at = draw if device == "cpu" else drawn_ahead(draw)
    parts = parallel.micro_batches(batch, micro_batch)

    def part_loss(drawn: tuple, rows: slice) -> dict[str, Tensor]:
        part = [values[rows] for values in drawn]
        return {"loss": of(*part) * (len(part[0]) / batch)}

    def at(step: int) -> dict[str, Tensor] | list[Part]:
        drawn = drawn_at(step)
        if len(parts) == 1:
            return {"loss": of(*drawn)}
        return [partial(part_loss, drawn, rows) for rows in parts]

    return at


def drawn_ahead(draw: Callable) -> Callable:
    """The same function of the step; a thread draws the next one while a GPU works on this one."""
    pool, waiting = ThreadPoolExecutor(max_workers=1), {}

    def at(step: int):
        drawn = waiting.pop(step, None) or pool.submit(draw, step)
        waiting.clear()
        waiting[step + 1] = pool.submit(draw, step + 1)
        return drawn.result()

    return at


def autocast(device: str | torch.device, dtype: torch.dtype) -> torch.autocast:
    """A context in which matrices are multiplied in ``dtype``; float32 changes nothing."""
    return torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32)


def guided(
    model: UNet2DConditionModel, states: Tensor, mask: Tensor, scale: float
) -> Callable[[Tensor, Tensor], Tensor]:
    """A velocity function (z, t) with classifier-free guidance (Ho & Salimans 2022, equation 6).

    The unconditional answer sees the all-zero state that dropped captions show in training;
    ``scale`` 1 leaves it out.
    """

    def at(z: Tensor, t: Tensor) -> Tensor:
        told = predict(model, z, t, states, mask)
        if scale == 1:
            return told
        nothing = torch.zeros_like(states[:, :1]), torch.ones_like(mask[:, :1])
        return torch.lerp(predict(model, z, t, *nothing), told, scale)

    return at


@torch.no_grad()
def ddim(
    velocity_of: Callable[[Tensor, Tensor], Tensor],
    noise: Tensor,
    steps: int,
    callback: Callable[[int, Tensor], None] | None = None,
) -> Tensor:
    """Deterministic DDIM sampling (Song et al. 2021, equation 12, eta 0): noise to latents.

    ``callback(step, x)`` sees the current estimate of the clean latent [B, 4, h, w].
    """
    z = noise
    times = torch.linspace(1, 0, steps + 1)
    for step, (now, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        a, b = alpha_bar(now), alpha_bar(after)
        v = velocity_of(z, now.expand(len(z)).to(z.device))
        x = a.sqrt() * z - (1 - a).sqrt() * v
        e = (1 - a).sqrt() * z + a.sqrt() * v
        z = b.sqrt() * x + (1 - b).sqrt() * e
        if callback:
            callback(step, x)
    return z
