"""How good the foundations are, measured on held-out scenes of the ``dev`` split.

The numbers stand in each manifest, and ``report`` measures them again from the shipped files.
"""

import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from dalle3lib import (
    caption_facts,
    captioner_training,
    captions,
    files,
    paths,
    prompt_facts,
    stats,
    vae,
)
from dalle3lib import captioner as coca
from dalle3lib import upsampler as writer
from dalle3lib.captions import by_kind
from dalle3lib.evals import clip_score, retrieval, vqa
from dalle3lib.images import Record, stack, to_tensor, to_uint8
from dalle3lib.randomness import rng
from dalle3lib.recaption import LENGTH, committed
from dalle3lib.world import Scene, World, reader, scene
from dalle3lib.world.wording import coloured_shapes

# What the captioners are meant to reach in the world, as shares.
GOALS = {"SSC names the main subject": 0.95, "DSC recall": 0.85, "DSC precision": 0.93}
# Which captions each captioner has learned from, as fields of a record.
LEARNED = {"coca-base": "alt", "coca-dsc": "descriptive", "coca-ssc": "short"}


def held_out(count: int) -> list[Record]:
    """The first ``count`` records of the dev split, with the default alt-text."""
    return list(World("dev", count))


def held_out_scenes(count: int) -> list[Scene]:
    """The specifications of the same scenes."""
    return [scene("dev", i) for i in range(count)]


@torch.no_grad()
def reconstruct(model, images: np.ndarray, batch: int = 100) -> Tensor:
    """What is left of images uint8 [N, H, W, 3] after encoding and decoding: [N, 3, H, W]."""
    at_once = vae.at_once(batch, images.shape[1] // 8)
    parts = (x.to(model.device) for x in to_tensor(images).split(at_once))
    return torch.cat([model.decode(model.encode(x).latent_dist.mean).sample.cpu() for x in parts])


def facts_read(images: np.ndarray, records: list[Record]) -> pd.DataFrame:
    """Which share of each record's facts the reader finds in the image uint8 [N, H, W, 3].

    One row per record, one column per kind of fact (``reader.recall``), NaN where a record has
    no such fact; no columns at all if the records hold no facts.
    """
    if not all(record.facts for record in records):
        return pd.DataFrame(index=range(len(records)))
    read = reader.read(images)
    return pd.DataFrame([reader.recall(f, r.facts) for f, r in zip(read, records, strict=True)])


def autoencoder(model, count: int = 500) -> dict[str, float]:
    """Mean PSNR (dB) of reconstructions, and which facts the reader still finds in them."""
    records = held_out(count)
    decoded = reconstruct(model, stack(records))
    shares = facts_read(to_uint8(decoded), records).mean()
    loss_db = vae.psnr(decoded, to_tensor(stack(records))).mean().item()
    return {"psnr_db": round(loss_db, 2)} | {f"read_{k}": round(v, 3) for k, v in shares.items()}


def scorer(model, tokenizer, count: int = 500) -> dict[str, float]:
    """Top-1 retrieval among 100 held-out texts, for each kind of caption.

    Pictures that share a caption share the right answer.
    """
    records = held_out(count)
    image = clip_score.image_features(model, stack(records))
    found = {}
    for kind, texts in by_kind(records).items():
        features = clip_score.text_features(model, tokenizer, texts)
        table = retrieval.retrieve(image, features, texts, ks=[1])
        picks = table.loc[table["direction"] == retrieval.DIRECTIONS[0], "R@1"]
        found[f"retrieval_{kind}"] = round(picks.mean(), 3)
    return found


def captioner(model, tokenizer, field: str, count: int = 500) -> dict[str, float]:
    """How well a captioner knows held-out human captions, and which facts its own ones state.

    ``field`` is the caption it learned from: "alt", "short" or "descriptive". Returns the mean
    negative log-likelihood in nats per token and, but for alt-text, the share of facts stated by
    its greedy captions (of the main subject alone where the captions are short).
    """
    records = held_out(count)
    images, human = stack(records), [getattr(r, field) for r in records]
    nats = captioner_training.token_log_likelihood(model, tokenizer, images, human)
    measured = {"nats_per_token": round(nats, 3)}
    if field == "alt":
        return measured
    length = LENGTH["ssc" if field == "short" else "dsc"]
    own = coca.caption(model, tokenizer, images, max_len=length, progress=False)
    facts = [caption_facts.subject_only(r.facts) if field == "short" else r.facts for r in records]
    pairs = zip(own, facts, strict=True)
    stated = pd.DataFrame([caption_facts.stated(text, f) for text, f in pairs]).mean()
    kinds = ("colour", "shape") if field == "short" else stated.index
    return measured | {f"states_{kind}": round(stated[kind], 3) for kind in kinds}


def goals(short: list[str], facts: list[dict], descriptive: pd.DataFrame) -> pd.DataFrame:
    """Whether the captioners reach ``GOALS``: a row each, with 95 % intervals over pictures.

    ``short`` are SSC captions of pictures with ``facts``; the main subject must be named with its
    own shape and colour. ``descriptive`` are the DSC captions' ``caption_facts.rates``.
    """
    named = [caption_facts.names_subject(*pair) for pair in zip(short, facts, strict=True)]
    ends = stats.mean_interval(np.array(named, float), rng(0, "subject"))
    row, measured = descriptive.loc["all"], [(np.mean(named), *ends)]
    for name in ("recall", "precision"):
        measured.append((row[name], row[f"{name} low"], row[f"{name} high"]))
    table = pd.DataFrame(measured, index=list(GOALS), columns=["measured", "low", "high"])
    table["goal"] = pd.Series(GOALS)
    return table.assign(reached=table["measured"] >= table["goal"])


@torch.no_grad()
def rewording(model, tokenizer, count: int = 300) -> dict[str, float]:
    """The share of coloured shapes that T5 keeps when it says descriptive captions in other words.

    ``model`` is the whole T5, whose decoder is not shipped, so only training can measure this.
    """
    said = [record.descriptive for record in held_out(count)]
    batch = tokenizer(said, padding=True, return_tensors="pt")
    mask = batch.attention_mask
    ids = model.eval().generate(batch.input_ids, attention_mask=mask, max_new_tokens=48)
    again = tokenizer.batch_decode(ids, skip_special_tokens=True)
    pairs = [set(coloured_shapes(caption)) for caption in said]
    kept = [p & set(coloured_shapes(caption)) for p, caption in zip(pairs, again, strict=True)]
    return {"pairs_kept": round(sum(map(len, kept)) / sum(map(len, pairs)), 3)}


def judge(model, processor, count: int = 500) -> dict[str, float]:
    """The share of right answers on rendered scenes, over all questions and by kind."""
    right = vqa.accuracy(model, processor, held_out_scenes(count))
    return {kind: round(share, 3) for kind, share in right.items()}


def upsampler(model, tokenizer, count: int = 500) -> dict[str, float]:
    """What held-out human short prompts become, as shares: facts kept and contradicted (the rest
    is left out), objects kept whole, and texts that look like descriptive training captions."""
    prompts = [record.short for record in held_out(count)]
    texts = writer.write(model, tokenizer, prompts, seed=0)
    facts = [prompt_facts.facts_of(text) for text in texts]
    found = prompt_facts.table(prompts, facts).sum()
    measured = {fate: found[fate].sum() / found.sum() for fate in ("kept", "contradicted")}
    whole = [prompt_facts.whole(*pair) for pair in zip(prompts, facts, strict=True)]
    measured["objects_whole"] = float(np.nanmean(whole))
    examples = list(committed()["dsc"].values())
    measured["like_training"] = prompt_facts.like(texts, examples)["all"]
    return {name: round(share, 3) for name, share in measured.items()}


# ---- the alarm: captions that no working captioner writes ----------------------------------------

# The share of captions above which each symptom is an alarm, and how to say it. Short captions of
# like pictures are often equal, so of identical ones only the most frequent caption is counted.
ALARMS = {
    "empty": (0.0, "are empty"),
    "looping": (0.02, "repeat themselves without end"),
    "identical": (0.1, "are one and the same"),
    "truncated": (0.1, "were cut before they ended"),
}


def alarms(texts: Sequence[str], truncated: Sequence[bool] | None = None) -> list[str]:
    """What is degenerate about a captioner's captions of different images: sentences, or none.

    ``truncated`` tells which captions were cut at the greatest length (``captioner.write``).
    Each sentence gives the share, the limit of ``ALARMS`` that it exceeds, and an example.
    """
    most, copies = Counter(texts).most_common(1)[0]
    symptoms = {
        "empty": [not text.strip() for text in texts],
        "looping": [captions.looping(text) for text in texts],
        "identical": [copies > 2 and text == most for text in texts],
        "truncated": [False] * len(texts) if truncated is None else list(truncated),
    }
    found = []
    for name, (limit, what) in ALARMS.items():
        if (share := captions.share(symptoms[name])) > limit:
            example = texts[symptoms[name].index(True)]
            found.append(
                f"{sum(symptoms[name])} of {len(texts)} captions ({share:.1%}) {what}, more than "
                f"{limit:.0%}: for example {textwrap.shorten(example, 100, placeholder=' …')!r}."
            )
    return found


def listen(model, tokenizer, images: np.ndarray, length: int) -> list[str]:
    """The ``alarms`` of a captioner's greedy captions of images, each of them also printed."""
    written = coca.write(model, tokenizer, images, max_len=length, batch_size=32, progress=False)
    found = alarms(written.texts, written.truncated)
    for alarm in found:
        print(f"Degenerate captions: {alarm}")
    return found


# ---- manifests -----------------------------------------------------------------------------------


def clock() -> tuple[float, float]:
    """Wall and processor seconds so far, to take differences of."""
    return time.time(), time.process_time()


def write_manifest(
    directory: Path,
    started: tuple[float, float],
    *,
    seed: int,
    steps: int,
    measured: dict[str, float],
    **more,
) -> None:
    """Write the manifest of a foundation last: what it is, how good, and the hash of each file.

    ``started`` is the ``clock()`` at the start of its training; ``more`` are further entries.
    """
    wall, cpu = (now - then for now, then in zip(clock(), started, strict=True))
    payload = sorted(p for p in directory.iterdir() if p.is_file() and p.name != "manifest.json")
    manifest = {
        "name": directory.name,
        "seed": seed,
        "steps": steps,
        "quality": measured,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": torch.get_num_threads(),
        **more,
        "files": files.listing(directory, payload),
    }
    files.write_atomic(directory / "manifest.json", files.to_json(manifest).encode())


def manifest(name: str) -> dict:
    """The manifest of a shipped foundation, every file of it checked."""
    return files.read_json(paths.foundation(name) / "manifest.json")


def report(count: int) -> dict[str, dict[str, float]]:
    """The quality of the shipped foundations, measured now on ``count`` held-out scenes."""
    measured = {
        "vae": autoencoder(vae.load(paths.foundation("vae")), count),
        "clip": scorer(*clip_score.load(paths.foundation("clip")), count),
        "judge": judge(*vqa.load(paths.foundation("judge")), count),
    }
    for name, field in LEARNED.items():
        measured[name] = captioner(*coca.load(paths.foundation(name)), field, count)
    measured["upsampler"] = upsampler(*writer.load(), count)
    return measured
