"""One arm of the experiment: caption kind × blend ratio × seed (paper §3.3 and §3.4).

All arms see the same images in the same order with the same noise, start sampling from the same
noise, and differ in nothing but the captions they train on.
"""

import copy
import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from torch import Tensor

from dalle3lib import (
    UserError,
    diffusion,
    files,
    pairs,
    parallel,
    paths,
    pretrained,
    quality,
    stats,
    text,
    unet,
    vae,
)
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score
from dalle3lib.images import Record
from dalle3lib.latents import Cache
from dalle3lib.prompt_kinds import FIGURE_4, prompts
from dalle3lib.randomness import rng
from dalle3lib.recaption import KINDS
from dalle3lib.sample import sample
from dalle3lib.train import train

TOKENS = 32  # a compiled network sees captions padded to a multiple of this many


def parts(name: str) -> tuple[str, str, str]:
    """Kind, ratio and seed of an arm's name, such as "dsc-95-0"; UserError if it has no such."""
    found = tuple(name.rsplit("-", 2))
    if len(found) != 3:
        raise UserError(f"{name!r} names no arm: give kind, ratio and seed, such as dsc-95-0.")
    return found


def label(name: str) -> str:
    """The name of an arm as readers see it: "dsc-95-0" becomes "DSC 95 %"."""
    kind, ratio, _ = parts(name)
    return "original only" if kind == "original" else f"{kind.upper()} {ratio} %"


def load(name: str) -> tuple[UNet2DConditionModel, float]:
    """A shipped arm: its averaged weights (float32, frozen) and the guidance chosen for it.

    ``name`` is kind and ratio: "original-0", "ssc-95", "dsc-95" or "dsc-80". Raises UserError if
    it is not shipped or damaged.
    """
    directory = paths.foundation(f"unet-{name}")
    model = UNet2DConditionModel.from_pretrained(directory).float().eval().requires_grad_(False)
    return model, files.read_json(directory / "manifest.json")["quality"]["guidance"]


def snapshot_steps(steps: int, count: int) -> list[int]:
    """``count`` equally spaced steps, the last one ``steps``: where the curve has its points."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def training_seed(cfg: Parameters) -> int:
    """The seed of all that training draws: order, noise, times, which captions are shown.

    It is the arm's own seed, so that arms are paired. A ``data_order`` other than 0 makes another
    one of it: the same arm trained once more, an A/A control. Initial weights, prompts and starting
    noise keep the arm's seed.
    """
    order = cfg.get("data_order", 0)
    return int(rng(cfg.seed, "data order", order).integers(2**62)) if order else cfg.seed


def train_arm(
    cfg: Parameters, cache: Cache, directory: Path
) -> tuple[UNet2DConditionModel, dict[str, list[float]]]:
    """Train the arm that ``cfg`` names (kind, ratio, seed); return (EMA U-Net, log).

    Snapshots of the averaged weights are left in ``directory``. Several ``processes`` share each
    step (``arm_processes``). Raises UserError for an unknown kind or a ratio outside 0 to 100.
    """
    if cfg.kind not in ("original", *KINDS) or not 0 <= cfg.ratio <= 100:
        raise UserError(
            f"There is no arm {cfg.kind} {cfg.ratio} %: the kind is original, ssc or dsc, and the "
            "ratio a percentage from 0 to 100."
        )
    if cfg.get("processes", 1) > 1 and parallel.count() == 1:
        _train_together(cfg, directory)  # and what follows finds it finished
    original, device = cache.states["original"], pretrained.device(cfg)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = unet.build(
            tuple(cfg.channels), original[0].shape[1], cache.latents.shape[-1], cfg.get("layers", 1)
        )
    model = model.to(device, memory_format=torch.channels_last)
    if cfg.get("grad_checkpointing", False):
        model.enable_gradient_checkpointing()
    loss = diffusion.step_loss(
        compiled(model) if cfg.get("compile", False) else model,
        cache.latents,
        original,
        cache.states[cfg.kind],
        seed=training_seed(cfg),
        batch=cfg.batch,
        ratio=cfg.ratio,
        dropout=cfg.dropout,
        device=device,
        dtype=pretrained.dtype(cfg),
        micro_batch=cfg.get("micro_batch", None),
        multiple=TOKENS if cfg.get("compile", False) else 1,
    )
    log = train(
        model,
        loss,
        steps=cfg.steps,
        lr=cfg.lr,
        directory=directory,
        warmup=min(cfg.get("warmup", 100), cfg.steps // 4),
        ema_decay=cfg.get("ema_decay", 0.995),
        checkpoint_every=cfg.checkpoint_every,
        snapshots=snapshot_steps(cfg.steps, cfg.evaluations),
        description=f"{cfg.kind} {cfg.ratio} % seed {cfg.seed}",
    )
    return model, log


def _train_together(cfg: Parameters, directory: Path) -> None:
    """Train the arm in ``cfg.processes`` processes, each a ``dalle3lib.arm_processes``, and leave
    its checkpoints in ``directory``.

    Raises UserError if they fail; the same call goes on from their last checkpoint.
    """
    about = {"notebook": cfg.notebook, "preset": cfg.preset, "values": cfg.values}
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    given = directory / "processes.json"
    files.write_atomic(given, files.to_json(about | {"root": str(cfg.root)}).encode())
    command, environment = parallel.launch_command(cfg.processes, cfg.get("device", "cpu"))
    command += ["-m", "dalle3lib.arm_processes", str(given)]
    if code := subprocess.run(command, env=environment, cwd=paths.ROOT).returncode:
        raise UserError(
            f"The {cfg.processes} processes that train this arm ended with code {code}; what went "
            "wrong is said above. Run the notebook again: it goes on from their last checkpoint."
        )


def compiled(model: UNet2DConditionModel) -> Callable:
    """The network as a function that torch.compile has fused; it shares the model's weights.

    It is compiled anew for every number of tokens, hence ``TOKENS``. Raises UserError without the
    C++ compiler that this takes.
    """
    if not shutil.which(os.environ.get("CXX", "g++")):
        raise UserError(
            "The parameter compile needs a C++ compiler and there is no g++ here: install it "
            "(apt-get install g++), name another in CXX, or set compile to false."
        )
    return torch.compile(model, dynamic=False)


def evaluation_records(cfg: Parameters) -> list[Record]:
    """The held-out records whose captions are the prompts: the first ``cfg.prompts``."""
    return pairs.held_out(cfg, cfg.prompts)


@dataclass(frozen=True)
class Studio:
    """What turns prompts into scored pictures, whatever the arm: the models and the prompts.

    ``texts`` and ``states`` are by kind of prompt; ``records`` are the images they belong to;
    ``dtype`` is the precision in which the U-Net samples.
    """

    autoencoder: AutoencoderKL
    scorer: tuple
    records: list[Record]
    texts: dict[str, list[str]]
    states: dict[str, list[Tensor]]
    dtype: torch.dtype = torch.float32


def studio(
    records: list[Record],
    cfg: Parameters = pretrained.SHIPPED,
    texts: dict[str, list[str]] | None = None,
) -> Studio:
    """Load the models that ``cfg`` names and encode the prompts, by kind.

    ``texts`` are the prompts; None: those of the kinds that ``cfg`` names (``prompt_kinds``), of
    Figure 4 if it names none.
    """
    device, dtype = pretrained.device(cfg), pretrained.dtype(cfg)
    where = {role: pretrained.directory(role, n) for role, n in pretrained.chosen(cfg).items()}
    encoder, tokenizer = text.load(where["t5"], dtype)
    texts = prompts(records, cfg.get("prompt_kinds", FIGURE_4)) if texts is None else texts
    states = {k: text.encode(encoder.to(device), tokenizer, t) for k, t in texts.items()}
    del encoder  # the largest of the models; the others need its memory
    autoencoder = vae.load(where["vae"]).to(device)
    scorer, words = clip_score.load(where["clip"])
    return Studio(autoencoder, (scorer.to(device), words), records, texts, states, dtype)


def score(
    model: UNet2DConditionModel, on: Studio, *, seed: int, steps: int, guidance: float
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Sample every kind of prompt and score the pictures; (table, pictures by kind of prompt).

    The table has one row for each (kind, prompt): the CLIP score (100 × cosine) with the prompt
    and, where the records hold facts, the share of the image's facts that the reader finds.
    Pictures are uint8 [N, H, W, 3].
    """
    rows, pictures = [], {}
    for kind, asked in on.texts.items():
        options = {"seed": seed, "steps": steps, "guidance": guidance, "dtype": on.dtype}
        pictures[kind] = sample(model, on.autoencoder, on.states[kind], **options)
        clip = clip_score.clip_scores(*on.scorer, pictures[kind], asked)
        table = pd.DataFrame({"kind": kind, "prompt": asked, "score": clip})
        rows.append(table.join(quality.facts_read(pictures[kind], on.records)))
    return pd.concat(rows, ignore_index=True), pictures


def choose_guidance(cfg: Parameters, model: UNet2DConditionModel) -> pd.Series:
    """The mean CLIP score of Figure 4's kinds of prompt at each scale in ``cfg.guidances``.

    The prompts are the ``cfg.tuning`` held-out records that follow those the arm is evaluated on
    (fewer images than that overlap); where these are of the test split, those in the same places
    of the dev split. The scale to use is the series' ``idxmax()``.
    """
    if cfg.get("prompts_from", "dev") == "test":
        cfg = dataclasses.replace(cfg, values=cfg.values | {"prompts_from": "dev"})
    tuning = pairs.held_out(cfg, cfg.prompts + cfg.tuning)[-cfg.tuning :]
    on = studio(tuning, cfg, prompts(tuning))
    options = {"seed": cfg.seed, "steps": cfg.sampling_steps}
    means = {g: score(model, on, guidance=g, **options)[0].score.mean() for g in cfg.guidances}
    return pd.Series(means, name="CLIP score").rename_axis("guidance")


def score_snapshots(
    cfg: Parameters, model: UNet2DConditionModel, directory: Path, guidance: float
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """``score`` of every snapshot in ``directory``, with a column ``step``.

    Before the last one only Figure 4's kinds of prompt are asked, if they are asked at all.
    Returns all tables as one, and the last snapshot's pictures; ``model`` ends with its weights.
    """
    on, tables, pictures = studio(evaluation_records(cfg), cfg), [], {}
    options = {"seed": cfg.seed, "steps": cfg.sampling_steps, "guidance": guidance}
    curve = {kind: texts for kind, texts in on.texts.items() if kind in FIGURE_4}
    on_the_way = dataclasses.replace(on, texts=curve or on.texts)
    for step in snapshot_steps(cfg.steps, cfg.evaluations):
        model.load_state_dict(load_file(directory / f"ema-{step:06d}.safetensors"))
        table, pictures = score(model, on if step == cfg.steps else on_the_way, **options)
        tables.append(table.assign(step=step))
    return pd.concat(tables, ignore_index=True), pictures


def save(model: UNet2DConditionModel, directory: Path) -> None:
    """Write a trained arm in diffusers' layout, in half precision."""
    copy.deepcopy(model).half().save_pretrained(directory)


def summarise(scores: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Mean CLIP score with its 95 % interval over prompts for each arm, kind of prompt and step.

    ``scores`` maps an arm's label to what ``score_snapshots`` returned; columns arm, kind, step,
    mean, low, high.
    """
    rows = []
    for name, table in scores.items():
        for (kind, step), group in table.groupby(["kind", "step"], sort=False):
            values = group.score.to_numpy()
            low, high = stats.mean_interval(values, rng(0, f"summary/{name}/{kind}", int(step)))
            rows.append((name, kind, int(step), values.mean(), low, high))
    return pd.DataFrame(rows, columns=["arm", "kind", "step", "mean", "low", "high"])
