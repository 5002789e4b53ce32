"""The consistency decoder's method (paper App. B): a diffusion model of pixels, given the latent,
and its distillation into two steps. The network is anywhere else.

Time and noise are those of ``diffusion``: z = sqrt(a) x + sqrt(1 - a) e with the cosine schedule,
on a grid of 64 times n / 64, as in OpenAI's released decoder. With s = sqrt(1 / a - 1), the noise
per unit of signal, any denoiser here is

    D(z, t) = c_skip(t) z + c_out(t) F(c_in(t) z, latent, t)

(Karras et al. 2022, table 1, written for this schedule). At t = 0 it is z itself whatever the
network F says: the boundary condition of a consistency model (Song et al. 2023, equation 5).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dalle3lib.diffusion import add_noise, alpha_bar

SIGMA_DATA = 0.5  # the deviation that pictures in [-1, 1] are taken to have, as released
GRID = 64  # times on the grid on which the model is made consistent, as released
LAST = GRID - 1  # at n = 64 no signal is left at all, so sampling starts one before
TIMES = {1: (LAST,), 2: (LAST, 32), 4: (LAST, 48, 32, 16)}  # of the sampler; 1.0 and 0.5 released
HUBER = 0.00054  # of ``distance``, times the root of the number of values (Song & Dhariwal 2023)


def times(n: Tensor) -> Tensor:
    """The times n / 64 in [0, 1] of grid points n [B]."""
    return n.float() / GRID


def _shaped(values: Tensor) -> Tensor:
    """Values [B] so that they multiply pictures [B, 3, H, W]."""
    return values.view(-1, 1, 1, 1)


def scalings(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """c_skip, c_out and c_in at times t [B], each [B, 1, 1, 1].

    Karras et al. (2022, table 1) write them for z / sqrt(a) = x + s e, hence the roots of a.
    """
    a = _shaped(alpha_bar(t.double()))
    s2, d2 = 1 / a - 1, SIGMA_DATA**2
    skip = d2 / (s2 + d2) / a.sqrt()
    out = (s2 * d2 / (s2 + d2)).sqrt()
    scale = (1 / (a * (s2 + d2))).sqrt()
    return skip.float(), out.float(), scale.float()


def condition(latents: Tensor, height: int) -> Tensor:
    """Latents [B, 4, h, w] as the network sees them beside the pixels: [B, 4, H, W], repeated."""
    return F.interpolate(latents, scale_factor=height // latents.shape[-2], mode="nearest")


def denoise(model: nn.Module, z: Tensor, t: Tensor, latents: Tensor) -> Tensor:
    """The denoiser D: the clean picture [B, 3, H, W] that noisy z at times t [B] comes from.

    ``model(x, t)`` takes 7 channels, the scaled z and the latents [B, 4, h, w] repeated to its
    size, and gives 3 (or 6, of which the first 3 count, as released).
    """
    skip, out, scale = scalings(t)
    seen = torch.cat([scale * z, condition(latents, z.shape[-2])], dim=1)
    answer = model(seen.to(model.dtype), t * 1024).sample[:, :3]
    return skip * z + out * answer.float()


# ---- the teacher: a diffusion decoder ------------------------------------------------------------


def diffusion_loss(model: nn.Module, x: Tensor, latents: Tensor, noise: Tensor, n: Tensor):
    """The teacher's loss at grid points n [B]: a scalar.

    The squared error of D over c_out², which is that of F, so that all times count alike (Karras
    et al. 2022, equation 8 and table 1). ``x`` and ``noise`` are [B, 3, H, W].
    """
    t = times(n)
    error = denoise(model, add_noise(x, noise, t), t, latents) - x
    return (error / scalings(t)[1]).square().mean()


def ode_step(x: Tensor, z: Tensor, now: Tensor, after: Tensor) -> Tensor:
    """Where the probability flow takes z from times ``now`` to ``after`` if the clean picture is x.

    One DDIM step (Song et al. 2021, equation 12, eta 0); ``after`` may be 0, which gives x.
    """
    a, b = (_shaped(alpha_bar(t.double())).float() for t in (now, after))
    noise = (z - a.sqrt() * x) / (1 - a).sqrt()
    return b.sqrt() * x + (1 - b).sqrt() * noise


@torch.no_grad()
def diffusion_sample(model: nn.Module, latents: Tensor, noise: Tensor, steps: int = 16) -> Tensor:
    """Decode with the teacher in ``steps`` ODE steps: latents to pictures [B, 3, H, W] in [-1, 1].

    ``noise`` [B, 3, H, W] is standard normal; the grid's times are used at even distances.
    """
    z = (1 - alpha_bar(torch.tensor(LAST / GRID))).sqrt() * noise
    grid = torch.linspace(LAST, 0, steps + 1).round()
    for now, after in zip(grid[:-1], grid[1:], strict=True):
        t, following = (times(n).expand(len(z)) for n in (now, after))
        z = ode_step(denoise(model, z, t, latents).clamp(-1, 1), z, t, following)
    return z


# ---- the student: a consistency model ------------------------------------------------------------


def distance(a: Tensor, b: Tensor) -> Tensor:
    """How far pictures [B, 3, H, W] are apart: pseudo-Huber, [B] (Song & Dhariwal 2023, sec. 3.3).

    Quadratic for small differences, then linear, so that no few pictures decide a step.
    """
    c = HUBER * a[0].numel() ** 0.5
    return ((a - b).square().sum((1, 2, 3)) + c**2).sqrt() - c


def consistency_loss(
    model: nn.Module, target: nn.Module, z: Tensor, before: Tensor, latents: Tensor, n: Tensor
) -> Tensor:
    """How much D differs between two points of a path: a scalar (Song et al. 2023, equation 7).

    ``z`` lies at grid points n [B] >= 1, ``before`` at n - 1 on the same path; the answer there is
    that of the ``target``, without gradient. Weighed by 1 / c_out of time n, so that nearly clean
    pictures, where D can hardly be wrong, count as well.
    """
    t, earlier = times(n), times(n - 1)
    with torch.no_grad():
        wanted = denoise(target, before, earlier, latents)
    apart = distance(denoise(model, z, t, latents), wanted)
    return (apart / scalings(t)[1].flatten()).mean()


def distillation_loss(
    model: nn.Module,
    target: nn.Module,
    teacher: nn.Module,
    x: Tensor,
    latents: Tensor,
    noise: Tensor,
    n: Tensor,
) -> Tensor:
    """Consistency distillation (Song et al. 2023, algorithm 2): a scalar.

    The teacher's ODE leads from the noisy picture at n [B] one grid point back, and both ends must
    decode alike.
    """
    t, earlier = times(n), times(n - 1)
    z = add_noise(x, noise, t)
    with torch.no_grad():
        before = ode_step(denoise(teacher, z, t, latents), z, t, earlier)
    return consistency_loss(model, target, z, before, latents, n)


def training_loss(
    model: nn.Module, target: nn.Module, x: Tensor, latents: Tensor, noise: Tensor, n: Tensor
) -> Tensor:
    """Consistency training (Song et al. 2023, algorithm 3), which has no teacher: a scalar.

    The same noise at n - 1 stands for the ODE's step, which is right on average only.
    """
    z, before = (add_noise(x, noise, times(k)) for k in (n, n - 1))
    return consistency_loss(model, target, z, before, latents, n)


@torch.no_grad()
def consistency_sample(
    model: nn.Module,
    latents: Tensor,
    noise: Callable[[int], Tensor],
    grid: Sequence[int] = TIMES[2],
) -> Tensor:
    """Decode with a consistency model (Song et al. 2023, algorithm 1): [B, 3, H, W] in [-1, 1].

    ``noise(step)`` gives standard normal [B, 3, H, W]. From noise at the first grid point the
    model jumps to a picture; at each further one it is given fresh noise and jumps again.
    """
    x = torch.zeros_like(noise(0))
    for step, n in enumerate(grid):
        t = times(torch.tensor(n, device=x.device)).expand(len(x))
        x = denoise(model, add_noise(x, noise(step), t), t, latents).clamp(-1, 1)
    return x
