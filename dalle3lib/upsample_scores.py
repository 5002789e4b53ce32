"""Short, upsampled and descriptive prompts of the same scenes, judged by what the short one asks.

The paper judges pictures of upsampled prompts against the *original* prompt (§3.5, §4.1.2). A short
prompt names one object, a descriptive one often two: to draw two is harder, to find one of two
right is easier. So the comparison is made on scenes whose short prompt names every object, with
texts that name as many, and counts nothing but the facts that the short prompt states.
"""

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import pandas as pd
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from dalle3lib import UserError, arm, diffusion, pairs, prompt_facts, runs, stats, text, vae
from dalle3lib.caption_facts import parse
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score
from dalle3lib.images import Record, stack, to_tensor
from dalle3lib.randomness import rng
from dalle3lib.sample import sample
from dalle3lib.world import reader

FAR = 4  # times as many held-out records are looked through as are wanted
TRIES = 8  # seeds an upsampler is tried with to name as many objects as the prompt
MEASURES = ("facts", "whole", "own facts", "score", "own score")


# ---- prompts -------------------------------------------------------------------------------------


def asked(record: Record) -> str:
    """The prompt to upsample: the short caption, or the original one where there is no short."""
    return record.short or record.alt


def names_all(record: Record) -> bool:
    """Whether the short prompt names as many objects as its scene has."""
    return len(parse(asked(record)).objects) == len(record.facts["objects"])


def held_out(cfg: Parameters, count: int, every: bool = True) -> list[Record]:
    """The first ``count`` held-out records whose short prompt names every object of the scene.

    With ``every`` False: those whose short prompt does not. Of records without facts, the first.
    """
    records = pairs.held_out(cfg, FAR * count)
    if not all(record.facts for record in records):
        return records[:count]
    return list(islice((r for r in records if names_all(r) == every), count))


def same_objects(
    prompts: Sequence[str], upsample: Callable[[Sequence[str], int], list[str]]
) -> list[str]:
    """An upsampled text for each prompt that names as many objects as the prompt does.

    ``upsample(prompts, seed)`` is asked with one seed after the other, ``TRIES`` at most, for the
    prompts that still lack one; the last text stands where none was found.
    """
    texts, lacking = [""] * len(prompts), list(range(len(prompts)))
    for seed in range(TRIES):
        for i, found in zip(lacking, upsample([prompts[i] for i in lacking], seed), strict=True):
            texts[i] = found
        lacking = [i for i in lacking if objects(texts[i]) != objects(prompts[i])]
        if not lacking:
            break
    return texts


def objects(said: str) -> int:
    """How many objects a text names."""
    return len(parse(said).objects)


# ---- pictures and what is read in them -----------------------------------------------------------


def network(cfg: Parameters, name: str) -> tuple[UNet2DConditionModel, float]:
    """An arm (kind-ratio-seed) and its guidance: the shipped one, or that of its finished run.

    Raises UserError, naming the command that trains it, if there is neither.
    """
    kind, ratio, seed = name.rsplit("-", 2)
    if cfg.data == "world" and seed == "0":
        return arm.load(f"{kind}-{ratio}")
    run = runs.find(cfg, "04a_train_arm", kind, ratio, seed)
    model = UNet2DConditionModel.from_pretrained(run / "unet").float().eval()
    return model.requires_grad_(False), runs.results(run)["guidance"]


def score(
    model: UNet2DConditionModel, on: arm.Studio, **options
) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """Draw every kind of prompt in ``on`` and judge the pictures; (table, pictures by kind).

    The same scene starts from the same noise whatever the prompt. ``options`` (seed, steps,
    guidance) go to ``sample.sample``; the table is that of ``measure``, with a column "kind".
    """
    tables, pictures = [], {}
    for kind, texts in on.texts.items():
        pictures[kind] = sample(model, on.autoencoder, on.states[kind], dtype=on.dtype, **options)
        tables.append(measure(pictures[kind], texts, on).assign(kind=kind))
    return pd.concat(tables, ignore_index=True), pictures


def measure(pictures: np.ndarray, texts: Sequence[str], on: arm.Studio) -> pd.DataFrame:
    """A row for each picture, uint8 [N, H, W, 3], drawn from one of the texts; shares are 0 to 1.

    "facts": share of the original prompt's facts that the reader finds; "whole": share of its
    objects found with all that is said of them; "chance": "facts" of the *next* scene's prompt;
    "own facts": share of the text's own facts. "score" and "own score" are CLIP scores (100 ×
    cosine) with the original prompt and with the text. Without known facts only these two.
    """
    short = [asked(record) for record in on.records]
    seen = clip_score.resized(on.scorer[0], pictures)
    found = {"scene": range(len(short))}
    found["score"] = clip_score.clip_scores(*on.scorer, seen, short)
    found["own score"] = clip_score.clip_scores(*on.scorer, seen, texts)
    if all(record.facts for record in on.records):
        read = reader.read(pictures)
        found["facts"] = kept(short, read)
        found["whole"] = [prompt_facts.whole(*pair) for pair in zip(short, read, strict=True)]
        found["chance"] = kept(short[1:] + short[:1], read)
        found["own facts"] = kept(texts, read)
    return pd.DataFrame(found)


def kept(prompts: Sequence[str], facts: Sequence[dict]) -> np.ndarray:
    """The share of each prompt's facts that are among the facts: [N], NaN where it states none."""
    table = prompt_facts.table(prompts, facts)
    total = table.sum(axis=1).to_numpy()
    right = table["kept"].sum(axis=1).to_numpy()
    return np.divide(right, total, out=np.full(len(total), np.nan), where=total > 0)


# ---- comparisons ---------------------------------------------------------------------------------


def summarise(scores: dict[str, pd.DataFrame], measure: str = "facts") -> pd.DataFrame:
    """Means over prompts with 95 % intervals, by arm and kind of prompt: columns mean, low, high.

    ``scores`` maps an arm's label to the table of ``score``; "chance" is given besides, if known.
    """
    rows = []
    for name, table in scores.items():
        for kind, group in table.groupby("kind", sort=False):
            values = group[measure].dropna().to_numpy()
            row = {"arm": name, "kind": kind, "mean": values.mean()}
            row["low"], row["high"] = stats.mean_interval(values, rng(0, f"{name}/{kind}"))
            if "chance" in group and measure == "facts":
                row["chance"] = group["chance"].mean()
            rows.append(row)
    return pd.DataFrame(rows)


def gain(
    scores: pd.DataFrame, kind: str, over: str, measure: str = "facts", scale: float = 100
) -> np.ndarray:
    """What each scene gains with one kind of prompt over another, times ``scale``: [N].

    The scenes are those that both have, without those where the measure is unknown.
    """
    by_kind = scores.pivot(index="scene", columns="kind", values=measure)
    if lacking := [name for name in (kind, over) if name not in by_kind]:
        raise UserError(f"No pictures were drawn from {lacking[0]} prompts.")
    return scale * (by_kind[kind] - by_kind[over]).dropna().to_numpy()


def effect(gains: np.ndarray, name: str, unit: str = "% points", note: str = "") -> dict:
    """A mean gain with its 95 % interval over scenes, as the ledger and ``plots`` take it."""
    interval = stats.mean_interval(gains, rng(0, name))
    row = {"effect": float(gains.mean()), "interval": interval, "seeds": 1}
    return row | {"unit": unit, "note": note}


def claims(scores: dict[str, pd.DataFrame], lost: np.ndarray, upsampled: str) -> dict[str, dict]:
    """What the ledger claims of upsampling: an entry per claim that could be measured.

    ``scores`` are tables by arm on scenes of equal difficulty, ``upsampled`` the kind of prompt
    that counts, ``lost`` the share (0 to 1) of each prompt's facts that its upsampled text does
    not keep.
    """
    note = "facts of the original prompt; one upsampler, one seed of each arm"
    found = {"upsampling-keeps-what-was-asked": 100 * lost}
    if "DSC 95 %" in scores:
        dsc = scores["DSC 95 %"]
        found["short-prompts-off-distribution"] = gain(dsc, "descriptive", "short")
        found["upsampling-helps-on-short-prompts"] = gain(dsc, upsampled, "short")
        if "original only" in scores:
            other = gain(scores["original only"], upsampled, "short")
            found["upsampling-helps-dsc-more-than-original"] = (
                found["upsampling-helps-on-short-prompts"] - other
            )
    return {name: effect(gains, name, note=note) for name, gains in found.items()}


# ---- what a caption is worth ---------------------------------------------------------------------


@torch.no_grad()
def worth(
    model: UNet2DConditionModel,
    latents: Tensor,
    states: dict[str, Sequence[Tensor]],
    seed: int,
    draws: int = 4,
) -> pd.DataFrame:
    """By how much true captions lower an arm's loss (error of the velocity) on unseen images.

    ``latents`` is [N, 4, h, w], ``states`` their captions' by kind. Each image is noised ``draws``
    times, alike for all captions; a row per image, a column per kind: the loss without a caption
    minus the loss with it, in per cent of the former over all images.
    """
    nothing = [state[:0] for state in next(iter(states.values()))]
    errors = {}
    for kind, said in {"none": nothing, **states}.items():
        shown = text.pad(said)
        errors[kind] = torch.stack(
            [_error(model, latents, seed, draw, *shown) for draw in range(draws)]
        ).mean(0)
    base = errors.pop("none")
    return pd.DataFrame(
        {k: (100 * (base - error) / base.mean()).numpy() for k, error in errors.items()}
    )


def _error(model, x: Tensor, seed: int, draw: int, states: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of the velocity of each image: [N]."""
    noise, t = diffusion.noise_and_times(seed, draw, tuple(x.shape))
    noised = diffusion.add_noise(x, noise, t)
    error = diffusion.predict(model, noised, t, states, mask) - diffusion.velocity(x, noise, t)
    return error.square().mean((1, 2, 3))


def latents_of(records: Sequence[Record], autoencoder) -> Tensor:
    """The records' pictures as the arms see them: latents of unit deviation [N, 4, h, w]."""
    with torch.no_grad():
        pixels = to_tensor(stack(records)).split(vae.at_once(128, 8))
        means = torch.cat([autoencoder.encode(x).latent_dist.mean for x in pixels])
    return means * autoencoder.config.scaling_factor
