"""One arm of the experiment: caption kind × blend ratio × seed (paper §3.3 and §3.4).

All arms see the same images in the same order with the same noise, start sampling from the same
noise, and differ in nothing but the captions they train on.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from dalle3lib import UserError, diffusion, paths, stats, text, unet, vae
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score
from dalle3lib.images import Record, open_source
from dalle3lib.latents import Cache
from dalle3lib.randomness import rng
from dalle3lib.recaption import KINDS, synthetic_captions
from dalle3lib.sample import sample
from dalle3lib.train import train


def label(name: str) -> str:
    """The name of an arm as readers see it: "dsc-95-0" becomes "DSC 95 %"."""
    kind, ratio, _ = name.rsplit("-", 2)
    return "original only" if kind == "original" else f"{kind.upper()} {ratio} %"


def snapshot_steps(steps: int, count: int) -> list[int]:
    """``count`` equally spaced steps, the last one ``steps``: where the curve has its points."""
    return sorted({max(1, round(steps * (i + 1) / count)) for i in range(count)})


def train_arm(
    cfg: Parameters, cache: Cache, directory: Path
) -> tuple[UNet2DConditionModel, dict[str, list[float]]]:
    """Train the arm that ``cfg`` names (kind, ratio, seed); return (EMA U-Net, log).

    Snapshots of the averaged weights are left in ``directory``. Raises UserError for an unknown
    kind or a ratio outside 0 to 100.
    """
    if cfg.kind not in ("original", *KINDS) or not 0 <= cfg.ratio <= 100:
        raise UserError(
            f"There is no arm {cfg.kind} {cfg.ratio} %: the kind is original, ssc or dsc, and the "
            "ratio a percentage from 0 to 100."
        )
    original = cache.states["original"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cfg.seed)
        model = unet.build(tuple(cfg.channels), text_width=original[0].shape[1])
    model = model.to(memory_format=torch.channels_last)
    loss = diffusion.step_loss(
        model,
        cache.latents,
        original,
        cache.states[cfg.kind],
        seed=cfg.seed,
        batch=cfg.batch,
        ratio=cfg.ratio,
        dropout=cfg.dropout,
    )
    log = train(
        model,
        loss,
        steps=cfg.steps,
        lr=cfg.lr,
        directory=directory,
        warmup=min(100, cfg.steps // 4),
        ema_decay=0.995,
        checkpoint_every=cfg.checkpoint_every,
        snapshots=snapshot_steps(cfg.steps, cfg.evaluations),
        description=f"{cfg.kind} {cfg.ratio} % seed {cfg.seed}",
    )
    return model, log


def prompts(records: list[Record]) -> dict[str, list[str]]:
    """The two sets of prompts of Figure 4: the images' original captions, and descriptive ones.

    A descriptive prompt is the human descriptive caption where a record holds one (the world),
    otherwise what the DSC captioner writes, as in the paper.
    """
    if all(r.descriptive for r in records):
        descriptive = [r.descriptive for r in records]
    else:
        descriptive = synthetic_captions(records, "dsc")
    return {"original": [r.alt for r in records], "descriptive": descriptive}


def evaluation_records(cfg: Parameters) -> list[Record]:
    """The held-out records whose captions are the prompts: ``cfg.prompts`` of the dev split."""
    return list(open_source(cfg.data, "dev", cfg.prompts, noise=cfg.noise))


def score_snapshots(
    cfg: Parameters, model: UNet2DConditionModel, directory: Path
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Sample every snapshot with both sets of prompts and score the pictures with CLIP.

    Returns one row for each (step, kind of prompt, prompt) with its CLIP score (100 × cosine),
    and the last snapshot's pictures uint8 [N, H, W, 3] by kind of prompt.
    """
    autoencoder = vae.load(paths.foundation("vae"))
    encoder, tokenizer = text.load(paths.foundation("t5"))
    scorer = clip_score.load(paths.foundation("clip"))
    texts = prompts(evaluation_records(cfg))
    states = {kind: text.encode(encoder, tokenizer, t) for kind, t in texts.items()}
    rows, pictures = [], {}
    for step in snapshot_steps(cfg.steps, cfg.evaluations):
        model.load_state_dict(load_file(directory / f"ema-{step:06d}.safetensors"))
        for kind, prompt in texts.items():
            pictures[kind] = sample(
                model,
                autoencoder,
                states[kind],
                seed=cfg.seed,
                steps=cfg.sampling_steps,
                guidance=cfg.guidance,
            )
            scores = clip_score.clip_scores(*scorer, pictures[kind], prompt)
            rows.append(pd.DataFrame({"prompt": prompt, "score": scores, "kind": kind}))
            rows[-1]["step"] = step
    return pd.concat(rows, ignore_index=True), pictures


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
