"""Fine-tuning any captioner on human captions: SSC and DSC (paper §2.1).

The captioner may be a CoCa of open_clip, such as ``coca_ViT-L-14``, or the world's; the captions
belong to photographs in a folder (``caption_sets``), or to the world. The shipped captioners are
made by the same training in ``foundation``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dalle3lib import (
    UserError,
    caption_sets,
    captioner,
    captioner_training,
    files,
    foundation,
    quality,
    recaption,
)
from dalle3lib.captions import HUMAN
from dalle3lib.images import stack
from dalle3lib.world import World

Lessons = tuple[Sequence[np.ndarray], list[str]]  # images and their captions, one for one
READ_AGAIN = 200  # held-out images that the finished captioner captions, for the alarm


def lessons(
    kind: str, data: Path | str, split: str, size: int, count: int | None = None
) -> Lessons:
    """Images uint8 [size, size, 3] and the human captions to learn from, one for one.

    ``kind`` ("ssc" or "dsc") says whether short or long captions of the world are meant, where
    ``data`` is "world" (at most 60,000 scenes); of a folder, see ``caption_sets.pairs``. ``split``
    is "train" or "dev". At most ``count`` pairs; of an image with five captions, only one in "dev".
    ``images[rows]`` is an array for any rows. UserError for data that is missing or cannot be read.
    """
    if data == "world":
        if split == "train":
            records = list(World("foundation", count or 8000))
        else:
            records = foundation.held_out(count=count or 500)
        return stack(records), [getattr(record, HUMAN[kind]) for record in records]
    found = caption_sets.pairs(data, split, kind, every=split == "train")
    paths, texts = found.paths[:count], found.captions[:count]
    return caption_sets.Photographs(paths, size), texts


def provenance(kind: str, data: Path | str) -> dict[str, Any]:
    """What a manifest says of the captions: set, licence, revision."""
    if data == "world":
        return {"set": "the world's human captions", "licence": "this repository's"}
    return caption_sets.provenance(data, kind)


def fine_tune(
    kind: str,
    base: str,
    data: Path | str,
    out: Path | str,
    *,
    context: int | None = None,
    steps: int,
    batch: int,
    lr: float,
    seed: int = 0,
    examples: int | None = None,
    unseen: int = 500,
    held_out_every: int = 250,
    patience: int | None = 4,
    device: str = "cpu",
    **options,
) -> dict[str, Any]:
    """Fine-tune a CoCa on the captions in ``data``; write it to ``out``; return its manifest.

    ``kind`` is "ssc" or "dsc". ``base`` is "shipped" (the world's), a directory made by
    ``captioner.save``, or the name of an open_clip model with the tag of its weights, such as
    "coca_ViT-L-14:laion2b_s13b_b90k". ``context`` tokens make room for long captions
    (``captioner.extend_context``); what still does not fit is cut, and the share of such captions
    is printed first. Training on the first ``examples`` pairs of ``lessons`` (all) has the
    captioning loss alone, stops when the likelihood of ``unseen`` held-out images' captions has not
    improved for ``patience`` measurements, and keeps the best weights. ``options`` go to
    ``train_captioner``: micro-batches, bfloat16, gradient checkpointing, warm-up.

    ``out`` has open_clip's ``local-dir:`` layout, with the curve (``training.csv``) and a manifest
    that names data, licence and revision. The same call again goes on where it was interrupted,
    and returns the manifest of finished work. What is degenerate about the captions of held-out
    images is printed and noted (``quality.alarms``). UserError for data that is missing or cannot
    be read.
    """
    out = Path(out).expanduser()
    training = {"steps": steps, "batch": batch, "lr": lr, "seed": seed}
    training |= {"held_out_every": held_out_every, "patience": patience, **options}
    settings = {"kind": kind, "base": str(base), "context": context, "examples": examples}
    settings |= {"unseen": unseen, **training, "data": provenance(kind, data)}
    _claim(out, settings)
    if not (out / "manifest.json").is_file():
        started = quality.clock()
        model, tokenizer, _ = recaption.find_captioner("base", str(base))
        size = model.to(device).visual.image_size[0]
        learned = lessons(kind, data, "train", size, examples)
        held_out = lessons(kind, data, "dev", size, unseen)
        if context:
            captioner.extend_context(model, max(context, model.context_length))
        training["description"] = f"fine-tuning {kind.upper()}"
        about = _tune(model, tokenizer, learned, held_out, out, training)
        about["data"] = settings["data"] | about["data"]
        quality.write_manifest(out, started, seed=seed, **about)
    manifest = files.read_json(out / "manifest.json")
    if problem := files.damage(out, manifest["files"]):
        raise UserError(f"The captioner in {out} cannot be used: {problem}; fine-tune it again.")
    return manifest


def _tune(
    model, tokenizer, learned: Lessons, held_out: Lessons, out: Path, training: dict
) -> dict[str, Any]:
    """Train the captioner and write it to ``out``; the entries of its manifest."""
    cut = report_truncation(model, tokenizer, learned[1])
    before = _nats(model, tokenizer, *held_out)
    log = captioner_training.train_captioner(
        model,
        tokenizer,
        *learned,
        directory=out,
        contrastive=0.0,
        captioning=1.0,
        held_out=held_out,
        **training,
    )
    captioner.save(model.eval(), tokenizer, out)
    captioner_training.write_curve(log, out)
    after = _nats(model, tokenizer, *held_out)
    return {
        "steps": len(log["loss"]),
        "measured": {"nats_per_token_before": round(before, 4), "nats_per_token": round(after, 4)},
        "data": {"pairs": len(learned[1]), "truncated": round(cut, 4)},
        "alarms": quality.listen(model, tokenizer, held_out[0][:READ_AGAIN], model.context_length),
    }


def report_truncation(model, tokenizer, captions: list[str]) -> float:
    """The share of captions that are longer than the model's context, also printed."""
    length = model.context_length
    cut = captioner_training.truncated_share(tokenizer, captions, length, model.pad_id)
    print(f"{cut:.1%} of {len(captions):,} captions are longer than {length} tokens: cut there.")
    return cut


def _nats(model, tokenizer, images: Sequence[np.ndarray], captions: list[str]) -> float:
    return captioner_training.token_log_likelihood(model.eval(), tokenizer, images, captions, 32)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the directory; UserError if it holds work with others."""
    with files.guard(out):
        out.mkdir(parents=True, exist_ok=True)
    if not (out / "settings.json").is_file():
        files.write_atomic(out / "settings.json", files.to_json(settings).encode())
    found = files.read_json(out / "settings.json")
    if changed := [k for k in found | settings if found.get(k) != settings.get(k)]:
        raise UserError(
            f"{out} holds a fine-tuning with another {', '.join(changed)}: choose another "
            "directory, or remove this one."
        )
