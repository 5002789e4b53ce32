"""Training the recipe's second stage: from either start with equal compute, and what is shipped.

Equal compute means equal floating-point operations, counted, not equal steps or minutes: a picture
of the second stage costs nearly four times as much as one of the first.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import arm, diffusion, files, paths, quality, recipe, recipe_scores, vae
from dalle3lib.world import CANVASES, SQUARE

# How the shipped second stage was trained: scenes of the training split, steps of the progressive
# start (from scratch takes more, see ``steps_from_scratch``), images a step, peak learning rate.
RECIPE = {"seed": 0, "scenes": 10_000, "steps": 2200, "batch": 32, "lr": 1.4e-3}
PROMPTS, EVERY = 40, 250  # on the curve: prompts of each canvas, steps between its points

# ---- equal compute -------------------------------------------------------------------------------


def training_flops(model: UNet2DConditionModel, height: int, width: int, tokens: int) -> int:
    """Floating-point operations of forward and backward pass for one image of h x w latents."""
    x = torch.zeros(1, model.config.in_channels, height, width)
    states = torch.zeros(1, tokens, model.config.cross_attention_dim)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel of a CPU is not counted
        diffusion.loss(model, x, x, torch.zeros(1), states, mask).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def compute(data: recipe.Encoded) -> tuple[float, float]:
    """What the first stage cost in all, and an image of the second on average: FLOPs (both).

    Descriptive captions are taken at their mean length in ``data``.
    """
    model = recipe.network("progressive", seed=0)
    steps = quality.manifest(f"unet-{recipe.FIRST['arm']}")["steps"]
    tokens = round(float(np.mean([len(state) for state in data.states["dsc"]])))
    side = SQUARE.width // 8
    first = training_flops(model, side, side, tokens) * steps * recipe.FIRST["batch"]
    sizes = [(len(rows), data.latents[rows[0]].shape[1:]) for rows in data.groups.values()]
    costs = [number * training_flops(model, *shape, tokens) for number, shape in sizes]
    return float(first), sum(costs) / len(data.latents)


def steps_from_scratch(steps: int, batch: int, first: float, image: float) -> int:
    """The steps that cost as much as the first stage and ``steps`` of the second together.

    ``first`` and ``image`` come from ``compute``.
    """
    return steps + round(first / (image * batch))


# ---- training, and what is shipped ---------------------------------------------------------------


def train_again(directory: Path) -> dict[str, dict]:
    """Train the autoencoder and both second stages by ``RECIPE``; their manifests.

    They are left in ``directory``, as they are shipped in ``data/foundation``. An interrupted
    call goes on where it stopped.
    """
    work, given = directory / "checkpoints", dict(RECIPE)
    seed, scenes, steps, batch = (given[k] for k in ("seed", "scenes", "steps", "batch"))
    started, out = quality.clock(), directory / "vae-recipe"
    if not (out / "manifest.json").is_file():
        model, log = recipe.adapt_autoencoder(work / "vae-recipe")
        save_autoencoder(model, out, started, seed=seed, steps=len(log["loss"]))
    autoencoder = vae.load(out)
    data = recipe.encode(recipe.pictures("train", scenes), work / "cache", autoencoder)
    first, image = compute(data)
    on = recipe_scores.studio(PROMPTS, autoencoder)
    for start in recipe.STARTS:
        scratch = start == "scratch"
        count = steps_from_scratch(steps, batch, first, image) if scratch else steps
        before = 0.0 if scratch else first
        options = {"seed": seed, "steps": count, "batch": batch, "lr": given["lr"]}
        spent = {"first_flops": before, "image_flops": image, "batch": batch}
        out = directory / f"unet-recipe-{start}"
        if not (out / "manifest.json").is_file():
            train_and_save(start, data, on, work / start, out, spent, options)
    names = ("vae-recipe", *(f"unet-recipe-{start}" for start in recipe.STARTS))
    return {name: files.read_json(directory / name / "manifest.json") for name in names}


def save_autoencoder(
    model: AutoencoderKL, out: Path, started: tuple[float, float], *, seed: int, steps: int
) -> None:
    """Write the second stage's autoencoder in half precision, with what it keeps of pictures."""
    model.half().save_pretrained(out)
    model, measured = vae.load(out), {}
    for canvas in CANVASES:
        kept = recipe_scores.reconstruction(model, canvas, 60)
        measured[f"psnr_db_{canvas.name}"] = round(kept["psnr_db"], 2)
        measured[f"read_colour-shape_{canvas.name}"] = round(kept["decoded colour-shape"], 3)
        coarse = recipe_scores.reconstruction(model, canvas, 60, scale=1)["psnr_db"]
        measured[f"psnr_db_{canvas.name}_first"] = round(coarse, 2)
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)


def train_and_save(
    start: str,
    data: recipe.Encoded,
    on: recipe_scores.Studio,
    work: Path,
    out: Path,
    spent: dict,
    options: dict,
) -> None:
    """Train the second stage from a start, score its snapshots, and write it to ``out``.

    Beside the weights lies ``training.json``: what was ``spent``, the loss, and the curve.
    """
    started, steps = quality.clock(), options["steps"]
    snapshots = [*range(EVERY, steps, EVERY), steps]
    model, log = recipe.train_stage(start, data, work, snapshots=snapshots, **options)
    wall, cpu = quality.clock()
    seconds = wall - started[0], cpu - started[1]
    curve = recipe_scores.score_snapshots(
        model, on, work, seed=options["seed"], steps=20, guidance=recipe_scores.guidance()
    )
    flops = curve.step * spent["image_flops"] * spent["batch"] + spent["first_flops"]
    curve = curve.assign(flops=flops)
    last = curve[(curve.step == steps) & (curve.measure == "colour-shape")]
    measured = {f"read_colour-shape_{r.canvas}": round(r.mean, 3) for r in last.itertuples()}
    arm.save(model, out)
    training = spent | {"loss": log["loss"], "curve": curve.to_dict("records")}
    files.write_atomic(out / "training.json", files.to_json(training).encode())
    wall, cpu = quality.clock()
    started = wall - seconds[0], cpu - seconds[1]
    quality.write_manifest(out, started, seed=options["seed"], steps=steps, measured=measured)


def load(start: str) -> tuple[UNet2DConditionModel, dict]:
    """A shipped second stage by its start: (averaged weights, what its training left behind)."""
    directory = paths.foundation(f"unet-recipe-{start}")
    model = UNet2DConditionModel.from_pretrained(directory).float().eval().requires_grad_(False)
    return model, files.read_json(directory / "training.json")


def spent(training: dict[str, dict]) -> pd.DataFrame:
    """What each start cost, from what ``load`` tells about it: a column for each start.

    Operations are those of forward and backward passes, counted, in GFLOP and TFLOP.
    """
    table = {}
    for start, about in training.items():
        steps, step = len(about["loss"]), about["image_flops"] * about["batch"]
        table[start] = {
            "steps of the second stage": steps,
            "GFLOP a step": step / 1e9,
            "first stage, TFLOP": about["first_flops"] / 1e12,
            "both stages, TFLOP": (steps * step + about["first_flops"]) / 1e12,
        }
    return pd.DataFrame(table)
