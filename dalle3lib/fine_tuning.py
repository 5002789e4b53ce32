"""Fine-tuning a public captioner on public captions: SSC and DSC for real photographs (paper §2.1).

The world's captioners are made by ``foundation``; this is the same training for any CoCa of
open_clip, such as ``coca_ViT-L-14``, on photographs that lie in a folder (``caption_sets``).
"""

from pathlib import Path
from typing import Any

from dalle3lib import UserError, caption_sets, captioner, captioner_training, files, quality
from dalle3lib.caption_sets import Pairs, Photographs

READ_AGAIN = 200  # held-out images that the finished captioner captions, for the alarm


def fine_tune(
    kind: str,
    base: Path | str,
    data: Path | str,
    out: Path | str,
    *,
    pretrained: str | None = None,
    context: int | None = None,
    steps: int,
    batch: int,
    lr: float,
    seed: int = 0,
    unseen: int = 500,
    held_out_every: int = 250,
    patience: int | None = 4,
    device: str = "cpu",
    strict: bool = False,
    **options,
) -> dict[str, Any]:
    """Fine-tune a CoCa on the captions in ``data``; write it to ``out``; return its manifest.

    ``kind`` is "ssc" or "dsc". ``base`` is a directory made by ``captioner.save``, or the name of
    an open_clip model with the tag of its weights in ``pretrained``. ``context`` tokens make room
    for long captions (``captioner.extend_context``); what still does not fit is cut, and the share
    of such captions is printed first. Training has the captioning loss alone, stops when the
    likelihood of ``unseen`` held-out images' captions has not improved for ``patience``
    measurements, and keeps the best weights. ``options`` go to ``train_captioner``: micro-batches,
    bfloat16, gradient checkpointing, warm-up.

    ``out`` has open_clip's ``local-dir:`` layout, with the curve (``training.csv``) and a manifest
    that names data, licence and revision. The same call again goes on where it was interrupted,
    and returns the manifest of finished work. What is degenerate about the captions of held-out
    images is printed and noted (``quality.alarms``); if ``strict``, it is a UserError, raised when
    everything is written. UserError also for data that is missing or cannot be read.
    """
    out = Path(out).expanduser()
    options |= {"seed": seed, "steps": steps, "batch_size": batch, "lr": lr}
    options |= {"held_out_every": held_out_every, "patience": patience}
    start = {"base": str(base), "pretrained": pretrained, "context": context, "kind": kind}
    source = caption_sets.provenance(data, kind)
    _claim(out, start | options | {"unseen": unseen, "data": source})
    if not (out / "manifest.json").is_file():
        started = quality.clock()
        learned = caption_sets.pairs(data, "train", kind)
        held_out = Pairs(*(f[:unseen] for f in caption_sets.pairs(data, "dev", kind, every=False)))
        model, tokenizer = captioner.load(base, pretrained)
        if context:
            captioner.extend_context(model, max(context, model.context_length))
        cut = report_truncation(model, tokenizer, learned.captions)
        size = model.to(device).visual.image_size[0]
        seen, new = (Photographs(part.paths, size) for part in (learned, held_out))
        measured = {"nats_per_token_before": _nats(model, tokenizer, new, held_out.captions)}
        log = captioner_training.train_captioner(
            model,
            tokenizer,
            seen,
            learned.captions,
            directory=out,
            contrastive=0.0,
            captioning=1.0,
            held_out=(new, held_out.captions),
            description=f"fine-tuning {kind.upper()}",
            **options,
        )
        captioner.save(model.eval(), tokenizer, out)
        captioner_training.write_curve(log, out)
        measured["nats_per_token"] = _nats(model, tokenizer, new, held_out.captions)
        quality.write_manifest(
            out,
            started,
            seed=seed,
            steps=len(log["loss"]),
            measured={name: round(value, 4) for name, value in measured.items()},
            data=source | {"pairs": len(learned.captions), "truncated": round(cut, 4)},
            alarms=quality.listen(model, tokenizer, new[:READ_AGAIN], model.context_length),
        )
    return _finished(out, strict)


def report_truncation(model, tokenizer, captions: list[str]) -> float:
    """The share of captions that are longer than the model's context, also printed."""
    length = model.context_length
    cut = captioner_training.truncated_share(tokenizer, captions, length, model.pad_id)
    print(f"{cut:.1%} of {len(captions):,} captions are longer than {length} tokens: cut there.")
    return cut


def _nats(model, tokenizer, images: Photographs, captions: list[str]) -> float:
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


def _finished(out: Path, strict: bool) -> dict[str, Any]:
    """The manifest of a finished fine-tuning, its files checked; UserError if ``strict``."""
    manifest = files.read_json(out / "manifest.json")
    if problem := files.damage(out, manifest["files"]):
        raise UserError(f"The captioner in {out} cannot be used: {problem}; fine-tune it again.")
    if strict and manifest["alarms"]:
        raise UserError(
            f"The captioner in {out} is written, but its captions are degenerate: "
            f"{' '.join(manifest['alarms'])} Lower the learning rate or look at the data."
        )
    return manifest
