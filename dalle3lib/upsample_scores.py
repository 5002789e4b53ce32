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

from dalle3lib import (
    arm,
    diffusion,
    pairs,
    prompt_facts,
    prompt_kinds,
    quality,
    stats,
    text,
)
from dalle3lib.caption_facts import parse
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score
from dalle3lib.images import Record, stack, to_uint8
from dalle3lib.randomness import rng
from dalle3lib.sample import sample
from dalle3lib.world import reader

FAR = 4  # times as many held-out records are looked through as are wanted
TRIES = 8  # seeds an upsampler is tried with to name as many objects as the prompt


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
    records = pairs.held_out(cfg, FAR * count + 50)
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


def studio(
    records: list[Record],
    upsample: Callable[[Sequence[str], int], list[str]],
    cfg: Parameters,
) -> arm.Studio:
    """The models, and the records' short, upsampled (``same_objects``) and descriptive prompts."""
    short = [asked(record) for record in records]
    texts = {"short": short, "upsampled": same_objects(short, upsample)}
    texts["descriptive"] = prompt_kinds.descriptive(records)
    return arm.studio(records, cfg, texts)


# ---- pictures and what is read in them -----------------------------------------------------------


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
    objects found with all that is said of them; "repeated": whether one of them is there more often
    than the prompt says; "chance": "facts" of the *next* scene's prompt; "own facts": share of the
    text's own facts. "score" and "own score" are CLIP scores (100 ×
    cosine) with the original prompt and with the text. Without known facts only these two.
    """
    short = [asked(record) for record in on.records]
    found = {"scene": range(len(short))}
    found["score"] = clip_score.clip_scores(*on.scorer, pictures, short)
    found["own score"] = clip_score.clip_scores(*on.scorer, pictures, texts)
    if all(record.facts for record in on.records):
        read = reader.read(pictures)
        found["facts"] = kept(short, read)
        found["whole"] = [prompt_facts.whole(*pair) for pair in zip(short, read, strict=True)]
        found["repeated"] = [prompt_facts.repeats(*p) for p in zip(short, read, strict=True)]
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


def by_kind(scores: dict[str, pd.DataFrame], measures: dict[str, str]) -> dict[str, pd.DataFrame]:
    """Means over scenes with 95 % intervals: for each kind of prompt a row per arm.

    ``scores`` maps an arm's label to the table of ``score``; ``measures`` maps columns of it to
    their names in the tables, which have "name", "name low" and "name high" (for
    ``caption_plots.rates``). Measures that are not known are left out.
    """
    tables: dict[str, dict] = {}
    for name, table in scores.items():
        for kind, group in table.groupby("kind", sort=False):
            row = tables.setdefault(kind, {}).setdefault(name, {})
            for column in (c for c in measures if c in group):
                values = group[column].dropna().to_numpy(float)
                low, high = stats.mean_interval(values, rng(0, f"{name}/{kind}/{column}"))
                label = measures[column]
                row |= {label: values.mean(), f"{label} low": low, f"{label} high": high}
    return {kind: pd.DataFrame(rows).T for kind, rows in tables.items()}


def views(equal: pd.DataFrame, harder: pd.DataFrame) -> pd.DataFrame:
    """The same arm's kinds of prompt as four measures see them; only the last compares like.

    ``equal`` and ``harder`` are tables of ``score``: of scenes whose short prompt names every
    object, and of scenes with an object that it does not name. Shares in per cent.
    """
    both, kinds = pd.concat([equal, harder]).groupby("kind", sort=False), harder.kind.unique()
    columns = {"CLIP score with its own text, all scenes": both["own score"].mean()}
    if "facts" in equal:
        columns["facts of its own text, all scenes (%)"] = 100 * both["own facts"].mean()
        parts = {"an object unnamed": harder, "every object named": equal}
        for name, table in parts.items():
            means = table.groupby("kind", sort=False)["facts"].mean()
            columns[f"facts of the short prompt, {name} (%)"] = 100 * means
    return pd.DataFrame(columns).loc[kinds]


def gain(scores: pd.DataFrame, kind: str, over: str = "short") -> np.ndarray:
    """What each scene gains with one kind of prompt over another: [N].

    In % points of the short prompt's facts, or, where none are known, in points of its CLIP score.
    """
    measure, scale = ("facts", 100) if "facts" in scores else ("score", 1)
    by_kind = scores.pivot(index="scene", columns="kind", values=measure)
    return scale * (by_kind[kind] - by_kind[over]).dropna().to_numpy()


def effect(gains: np.ndarray, name: str, unit: str = "% points", note: str = "") -> dict:
    """A mean gain with its 95 % interval over scenes, as the ledger and ``plots`` take it."""
    interval = stats.mean_interval(gains, rng(0, name))
    row = {"effect": float(np.mean(gains)), "interval": interval, "seeds": 1}
    return row | {"unit": unit, "note": note}


def gains(scores: dict[str, pd.DataFrame], kinds: Sequence[str]) -> dict[str, dict]:
    """The ``effect`` of each kind of prompt over the short one, by "arm, kind"."""
    return {
        f"{name}, {kind}": effect(
            gain(table, kind), f"{name}/{kind}", "% points" if "facts" in table else "points"
        )
        for name, table in scores.items()
        for kind in kinds
    }


def backends(
    networks: dict[str, tuple[UNet2DConditionModel, float]],
    records: list[Record],
    texts: dict[str, list[str]],
    cfg: Parameters,
) -> pd.DataFrame:
    """The gain of several upsamplers' ``texts`` over the short prompt: rows "arm, upsampler".

    ``networks`` are arms with their guidance. As many of the records count as all have a text for;
    columns effect, interval, unit. Without texts, no rows.
    """
    count = min(map(len, texts.values()), default=0)
    asked_for = {"short": list(map(asked, records))} | texts
    kinds = {name: said[:count] for name, said in asked_for.items()}
    rows: dict[str, dict] = {}
    if count:
        on = arm.studio(records[:count], cfg, kinds)
        options = {"seed": cfg.seed, "steps": cfg.sampling_steps}
        for name, (model, guidance) in networks.items():
            rows |= gains({name: score(model, on, guidance=guidance, **options)[0]}, list(texts))
    return pd.DataFrame(rows, ["effect", "interval", "unit"]).T


def claims(scores: dict[str, pd.DataFrame], lost: np.ndarray) -> dict[str, dict]:
    """What the ledger claims of upsampling: an entry per claim that could be measured.

    ``scores`` are tables by arm on scenes of equal difficulty, ``lost`` the share (0 to 1) of each
    prompt's facts that its upsampled text does not keep.
    """
    note = "facts of the original prompt; one upsampler, one seed of each arm"
    found = {"upsampling-keeps-what-was-asked": 100 * lost}
    if "DSC 95 %" in scores:
        dsc = scores["DSC 95 %"]
        found["short-prompts-off-distribution"] = gain(dsc, "descriptive")
        found["upsampling-helps-on-short-prompts"] = gain(dsc, "upsampled")
        if "original only" in scores:
            other = gain(scores["original only"], "upsampled")
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
) -> dict[str, np.ndarray]:
    """By how much true captions lower an arm's loss (error of the velocity) on unseen images.

    ``latents`` is [N, 4, h, w], ``states`` their captions' by kind. Each image is noised ``draws``
    times, alike for all captions. For each kind an array [N]: the loss without a caption minus the
    loss with it, in per cent of the mean loss without.
    """
    errors = {}
    nothing = [latents.new_zeros(0, model.config.cross_attention_dim)] * len(latents)
    for kind, said in {"none": nothing, **states}.items():
        shown = text.pad(said, model.device)
        draw = [_error(model, latents, seed, n, *shown) for n in range(draws)]
        errors[kind] = torch.stack(draw).mean(0).cpu().numpy()
    base = errors.pop("none")
    return {kind: 100 * (base - error) / base.mean() for kind, error in errors.items()}


def _error(model, x: Tensor, seed: int, draw: int, states: Tensor, mask: Tensor) -> Tensor:
    """The mean squared error of the velocity of each image: [N]."""
    noise, t = diffusion.noise_and_times(seed, draw, tuple(x.shape))
    x, noise, t = (a.to(model.device) for a in (x, noise, t))
    noised = diffusion.add_noise(x, noise, t)
    error = diffusion.predict(model, noised, t, states, mask) - diffusion.velocity(x, noise, t)
    return error.square().mean((1, 2, 3))


def bounds(on: arm.Studio, scores: pd.DataFrame) -> dict[str, dict[str, float]]:
    """What the reader finds of the short prompts' facts at most and at least, as shares.

    "ceiling": in the true pictures after one pass through the autoencoder; "floor": by accident, in
    the pictures drawn from each kind of prompt for another scene.
    """
    decoded = to_uint8(quality.reconstruct(on.autoencoder, stack(on.records)))
    names = [asked(record) for record in on.records]
    ceiling = measure(decoded, names, on)[["facts", "whole"]].mean()
    floor = scores.groupby("kind", sort=False)["chance"].mean()
    return {"ceiling": ceiling.to_dict(), "floor": floor.to_dict()}
