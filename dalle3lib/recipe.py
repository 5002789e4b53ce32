"""The DALL-E 3 recipe in small: 95 % descriptive captions, a second stage, several aspects.

Of DALL-E 3 the paper says which captions it was trained on (§4). That a model of its family is
trained at 256 pixels and then further at 512 and 1,024, in buckets of several aspects, is
described elsewhere (Podell et al. 2023, §2.3 and §2.5). Here the first stage is an arm "DSC
95 %" at 64 x 64 pixels; the second draws the same scenes with twice the pixels in each direction,
on a square, a landscape and a portrait. It starts from the first, or from scratch with as much
compute as both stages together. One autoencoder serves both stages, as in the family.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm.auto import tqdm

from dalle3lib import UserError, buckets, captioner, diffusion, files, paths, text, unet, vae
from dalle3lib.images import Record, stack, to_tensor
from dalle3lib.recaption import LENGTH, load_captioner
from dalle3lib.train import train
from dalle3lib.world import CANVASES, SQUARE, Canvas, World
from dalle3lib.world.reader import averaged

SCALE = 2  # how many times finer the second stage is than the first
FIRST = "recipe-first"  # the first stage: an arm on the second stage's autoencoder
RATIO, DROPOUT = 95, 0.1  # per cent of samples with the synthetic caption; share without any
STARTS = ("progressive", "scratch")
SHARD = 500  # records


def pictures(
    split: str, count: int, noise: float = 0.5, canvases: Sequence[Canvas] = CANVASES
) -> World:
    """The first ``count`` scenes of a split as the second stage sees them, on all canvases."""
    return World(split, count, noise, canvases=canvases, scale=SCALE)


def by_size(records: Sequence[Record]) -> tuple[list[buckets.Size], dict[int, np.ndarray]]:
    """The different sizes (width, height) of the records' images, and who has which.

    The rows of the records are by number of their size, as ``buckets.batch_at`` takes them.
    """
    sizes = [(r.image.shape[1], r.image.shape[0]) for r in records]
    found = sorted(set(sizes))
    return found, buckets.members(np.array([found.index(size) for size in sizes]))


# ---- the autoencoder -----------------------------------------------------------------------------


def adapt_autoencoder(
    directory: Path, *, seed: int = 0, scenes: int = 6000, steps: int = 300, batch: int = 16
) -> tuple[AutoencoderKL, dict[str, list[float]]]:
    """The shipped autoencoder trained further on pictures of both stages: (model, log).

    As shipped it has seen 64 x 64 pixels only, with a texture's whole period in every cell.
    ``scenes`` of the foundation split are drawn for the second stage and a third as many for the
    first, on every canvas, so that it does not forget them. Its latents are standardised anew.
    """
    model = vae.load(paths.foundation("vae")).requires_grad_(True)
    model = model.to(memory_format=torch.channels_last)
    records = list(pictures("foundation", scenes))
    both = records + list(World("foundation", scenes // 3, canvases=CANVASES))
    _, groups = by_size(both)

    def batch_at(step: int) -> np.ndarray:
        _, rows = buckets.batch_at(seed, step, batch, groups)
        return np.stack([both[i].image for i in rows])

    log = train(
        model,
        vae.step_loss(model, batch_at, seed=seed),
        steps=steps,
        lr=4e-4,
        directory=directory,
        warmup=20,
        ema_decay=0.99,
        checkpoint_every=50,
        description="autoencoder",
    )
    model.eval()
    size = (SCALE * SQUARE.height, SCALE * SQUARE.width)
    squares = [r for r in records[:600] if r.image.shape[:2] == size][:200]
    vae.standardise(model, to_tensor(stack(squares)))
    return model, log


def autoencoder() -> AutoencoderKL:
    """The shipped autoencoder of the second stage (``adapt_autoencoder`` made it)."""
    return vae.load(paths.foundation("vae-recipe"))


# ---- captions ------------------------------------------------------------------------------------


def view(image: np.ndarray) -> np.ndarray:
    """What the captioner and the scorer see of a picture uint8 [H, W, 3]: uint8 [64, 64, 3].

    Both know objects of one size only, so the picture is brought to the first stage's resolution
    (not squeezed into a square), what is over 64 pixels is cropped off on both sides, and what
    is missing is mirrored.
    """
    side = SQUARE.width
    small = averaged(image[None], SCALE)[0]
    over = [max(0, (length - side) // 2) for length in small.shape[:2]]
    small = small[over[0] : over[0] + side, over[1] : over[1] + side]
    lacking = [(side - length) // 2 for length in small.shape[:2]]
    return np.pad(small, [(n, n) for n in lacking] + [(0, 0)], mode="symmetric")


def write_captions(records: Sequence[Record]) -> list[str]:
    """A descriptive caption of each picture by the shipped DSC captioner."""
    views = np.stack([view(r.image) for r in records])
    return captioner.caption(*load_captioner("dsc"), views, max_len=LENGTH["dsc"], progress=False)


# ---- what training reads -------------------------------------------------------------------------


@dataclass(frozen=True)
class Encoded:
    """Pictures and captions, encoded once: ``latents`` [4, h, w] and the states of both captions
    ("original", "dsc") of each, and the rows of each bucket."""

    latents: list[Tensor]
    states: dict[str, list[Tensor]]
    groups: dict[int, np.ndarray]


@torch.no_grad()
def encode_shard(records: Sequence[Record], model, encoder, tokenizer) -> dict[str, Tensor]:
    """Latents and caption states of a few records as flat tensors; latents by size and row."""
    tensors = {}
    sizes, groups = by_size(records)
    for bucket, rows in groups.items():
        pixels = to_tensor(np.stack([records[i].image for i in rows]))
        means = torch.cat([model.encode(x).latent_dist.mean for x in pixels.split(32)])
        name = "{}x{}".format(*sizes[bucket])
        tensors[f"latents.{name}"] = (means * model.config.scaling_factor).half().contiguous()
        tensors[f"rows.{name}"] = torch.from_numpy(rows)
    for kind, texts in {
        "original": [r.alt for r in records],
        "dsc": write_captions(records),
    }.items():
        states = text.encode(encoder, tokenizer, texts)
        tensors[f"states.{kind}"] = torch.cat(states).half()
        tensors[f"lengths.{kind}"] = torch.tensor([len(s) for s in states], dtype=torch.int32)
    return tensors


def encode(records: Sequence[Record], directory: Path, model: AutoencoderKL) -> Encoded:
    """Caption and encode records into ``directory``, a shard at a time, and read them back.

    ``model`` is the autoencoder. Shards that are there are kept, so an interrupted call goes on
    where it stopped.
    """
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    models = model, *text.load(paths.foundation("t5"))
    shards = []
    for start in tqdm(range(0, len(records), SHARD), desc="captioning and encoding"):
        path = directory / f"shard-{start:07d}.safetensors"
        if not path.is_file():
            files.write_atomic(path, save(encode_shard(records[start : start + SHARD], *models)))
        shards.append(load_file(path))
    return collect(shards)


def collect(shards: Sequence[dict[str, Tensor]]) -> Encoded:
    """The records of several shards as one set, in their order."""
    latents: dict[int, Tensor] = {}
    states: dict[str, list[Tensor]] = {"original": [], "dsc": []}
    for shard in shards:
        before = len(latents)
        for name in (n.removeprefix("rows.") for n in shard if n.startswith("rows.")):
            rows = (shard[f"rows.{name}"] + before).tolist()
            latents |= dict(zip(rows, shard[f"latents.{name}"].float(), strict=True))
        for kind, known in states.items():
            known += shard[f"states.{kind}"].split(shard[f"lengths.{kind}"].tolist())
    ordered = [latents[row] for row in range(len(latents))]
    shapes = [tuple(x.shape) for x in ordered]
    found = sorted(set(shapes))
    groups = buckets.members(np.array([found.index(shape) for shape in shapes]))
    return Encoded(ordered, states, groups)


# ---- training ------------------------------------------------------------------------------------


def step_loss(
    model: UNet2DConditionModel, data: Encoded, *, seed: int, batch: int
) -> Callable[[int], dict[str, Tensor]]:
    """The loss of the recipe as a function of the step, for ``train.train``.

    Each step shows one bucket; otherwise as ``diffusion.step_loss``. Order, noise and times
    depend on seed and step only: both starts see the same.
    """

    def at(step: int) -> dict[str, Tensor]:
        _, rows = buckets.batch_at(seed, step, batch, data.groups)
        told = data.states["original"], data.states["dsc"]
        shown = diffusion.shown_captions(rows, *told, seed, step, RATIO, DROPOUT)
        x = torch.stack([data.latents[i] for i in rows])
        noise, t = diffusion.noise_and_times(seed, step, tuple(x.shape))
        return {"loss": diffusion.loss(model, x, noise, t, *text.pad(shown))}

    return at


def first_stage(directory: Path | None = None) -> UNet2DConditionModel:
    """The first stage's averaged weights, float32: as shipped, or from a ``directory``."""
    where = directory or paths.foundation(f"unet-{FIRST}")
    return UNet2DConditionModel.from_pretrained(where).float()


def network(start: str, seed: int, first: Path | None = None) -> UNet2DConditionModel:
    """The U-Net before the second stage: the first stage's, or ("scratch") an untrained one.

    ``first`` is as for ``first_stage``. Raises UserError for any other start.
    """
    if start not in STARTS:
        raise UserError(f"There is no start {start!r}: choose {' or '.join(STARTS)}.")
    model = first_stage(first)
    if start == "scratch":
        config = model.config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = unet.build(
                tuple(config.block_out_channels), text_width=config.cross_attention_dim
            )
    model.register_to_config(sample_size=SCALE * SQUARE.width // 8)
    return model.to(memory_format=torch.channels_last)


def train_stage(
    start: str,
    data: Encoded,
    directory: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    first: Path | None = None,
    snapshots: Sequence[int] = (),
) -> tuple[UNet2DConditionModel, dict[str, list[float]]]:
    """Train the second stage from a start; return (EMA U-Net, log). Resumes from ``directory``."""
    model = network(start, seed, first)
    log = train(
        model,
        step_loss(model, data, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=directory,
        warmup=min(100, steps // 4),
        ema_decay=0.995,
        checkpoint_every=100,
        snapshots=snapshots,
        description=start,
    )
    return model, log
