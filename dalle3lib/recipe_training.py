"""Training the recipe's stages: from either start with equal compute, and what is shipped.

Equal compute means equal floating-point operations, counted, not equal steps or minutes: a picture
of the second stage costs nearly four times as much as one of the first.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import (
    arm,
    config,
    diffusion,
    files,
    latents,
    paths,
    quality,
    recipe,
    recipe_scores,
    vae,
)
from dalle3lib.world import CANVASES, SQUARE

# How the shipped second stage was trained: scenes of the training split, steps of the progressive
# start (from scratch takes more, see ``steps_from_scratch``), images a step, peak learning rate.
RECIPE = {"seed": 0, "scenes": 10_000, "steps": 2200, "batch": 32, "lr": 1.4e-3}
FIRST = {"preset": "cpu", "kind": "dsc", "ratio": recipe.RATIO}  # the arm that is the first stage
SQUARES = "squares"  # the progressive second stage again, with every scene drawn on a square
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


def compute(data: recipe.Encoded, first: Path) -> tuple[float, float]:
    """What the first stage (in ``first``) cost in all, and an image of ``data`` on average: FLOPs.

    Descriptive captions are taken at their mean length in ``data``.
    """
    model, made = recipe.first_stage(first), files.read_json(first / "manifest.json")
    tokens = round(float(np.mean([len(state) for state in data.states["dsc"]])))
    side, images = SQUARE.width // 8, made["steps"] * made["batch"]
    sizes = [(len(rows), data.latents[rows[0]].shape[1:]) for rows in data.groups.values()]
    costs = [number * training_flops(model, *shape, tokens) for number, shape in sizes]
    before = training_flops(model, side, side, tokens) * images
    return float(before), sum(costs) / len(data.latents)


def steps_from_scratch(steps: int, batch: int, first: float, image: float) -> int:
    """The steps that cost as much as the first stage and ``steps`` of the second together.

    ``first`` and ``image`` come from ``compute``.
    """
    return steps + round(first / (image * batch))


# ---- training, and what is shipped ---------------------------------------------------------------


def train_again(directory: Path) -> dict[str, dict]:
    """Train the autoencoder and every stage by ``FIRST`` and ``RECIPE``; their manifests.

    They are left in ``directory``, as they are shipped in ``data/foundation``: the autoencoder,
    the first stage, the second from either start, and the second on squares alone. An interrupted
    call goes on where it stopped.
    """
    work, given = directory / "checkpoints", dict(RECIPE)
    seed, scenes, steps, batch = (given[k] for k in ("seed", "scenes", "steps", "batch"))
    coder, first = directory / "vae-recipe", directory / f"unet-{recipe.FIRST}"
    if not (coder / "manifest.json").is_file():
        train_autoencoder(work / "vae-recipe", coder, seed)
    if not (first / "manifest.json").is_file():
        train_first_stage(coder, work / "first", first, seed)
    autoencoder, data = vae.load(coder), {}
    for name, canvases in (("all", CANVASES), (SQUARES, CANVASES[:1])):
        drawn = recipe.pictures("train", scenes, canvases=canvases)
        data[name] = recipe.encode(drawn, work / f"cache-{name}", autoencoder)
    before, image = compute(data["all"], first)
    longer = steps_from_scratch(steps, batch, before, image)
    on, made = recipe_scores.studio(PROMPTS, autoencoder), [coder, first]
    for name, start, shown, count in (
        ("progressive", "progressive", "all", steps),
        ("scratch", "scratch", "all", longer),
        (SQUARES, "progressive", SQUARES, steps),
    ):
        made.append(directory / f"unet-recipe-{name}")
        if not (made[-1] / "manifest.json").is_file():
            options = {"seed": seed, "steps": count, "batch": batch, "lr": given["lr"]}
            train_and_save(start, data[shown], on, work / name, made[-1], first, options)
    return {out.name: files.read_json(out / "manifest.json") for out in made}


def train_autoencoder(work: Path, out: Path, seed: int) -> None:
    """Adapt the shipped autoencoder; write it in half precision, with what it keeps of pictures."""
    started = quality.clock()
    model, log = recipe.adapt_autoencoder(work, seed=seed)
    model.half().save_pretrained(out)
    model, measured = vae.load(out), {}
    for canvas in CANVASES:
        kept = recipe_scores.reconstruction(model, canvas, 60)
        measured[f"psnr_db_{canvas.name}"] = round(kept["psnr_db"], 2)
        measured[f"read_colour-shape_{canvas.name}"] = round(kept["decoded colour-shape"], 3)
        coarse = recipe_scores.reconstruction(model, canvas, 60, scale=1)["psnr_db"]
        measured[f"psnr_db_{canvas.name}_first"] = round(coarse, 2)
    quality.write_manifest(out, started, seed=seed, steps=len(log["loss"]), measured=measured)


def train_first_stage(coder: Path, work: Path, out: Path, seed: int) -> None:
    """Train the first stage on the latents of the autoencoder in ``coder``; write it to ``out``.

    It is an arm like any other (chapter 04a): its guidance is chosen as theirs.
    """
    cfg = config.from_preset("04a_train_arm", seed=seed, vae=str(coder), **FIRST)
    cache = latents.load(latents.build(cfg))
    started = quality.clock()
    model, log = arm.train_arm(cfg, cache, work)
    measured = {"guidance": float(arm.choose_guidance(cfg, model).idxmax())}
    arm.save(model, out)
    steps, more = len(log["loss"]), {"batch": cfg.batch}
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured, **more)


def train_and_save(
    start: str,
    data: recipe.Encoded,
    on: recipe_scores.Studio,
    work: Path,
    out: Path,
    first: Path,
    options: dict,
) -> None:
    """Train the second stage from a start, score its snapshots, and write it to ``out``.

    Beside the weights lies ``training.json``: what it cost, the loss, and the curve. ``first`` is
    the first stage's directory.
    """
    started, steps = quality.clock(), options["steps"]
    before, image = compute(data, first)
    spent = {"first_flops": before if start == "progressive" else 0.0, "image_flops": image}
    spent |= {"batch": options["batch"]}
    snapshots = [*range(EVERY, steps, EVERY), steps]
    model, log = recipe.train_stage(start, data, work, first=first, snapshots=snapshots, **options)
    wall, cpu = quality.clock()
    seconds = wall - started[0], cpu - started[1]
    sampling = {"seed": options["seed"], "steps": 20, "guidance": recipe_scores.guidance(first)}
    curve = recipe_scores.score_snapshots(model, on, work, **sampling)
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


def load(name: str) -> tuple[UNet2DConditionModel, dict]:
    """A shipped second stage by its start, or ``SQUARES``: (averaged weights, what its training
    left behind)."""
    directory = paths.foundation(f"unet-recipe-{name}")
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
