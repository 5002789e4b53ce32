"""Training the world's foundations: the models that the paper takes as given.

Each function trains one of them from the foundation split, which shares no scene with any other,
and writes it in the format of its public counterpart. The notebook ``00_foundations`` calls them;
the results are shipped in ``data/foundation`` and every chapter starts from the shipped files.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from dalle3lib import captioner, captioner_training, files, quality, text, upsampler, vae
from dalle3lib.captions import by_kind
from dalle3lib.evals import clip_score, vqa, vqa_training
from dalle3lib.images import Record, stack, to_tensor
from dalle3lib.randomness import batch_indices, rng
from dalle3lib.recaption import LENGTH
from dalle3lib.train import train
from dalle3lib.world import Scene, World, scene

# How each shipped foundation was trained, in an order that respects what needs what. "scenes" of
# the foundation split (the upsampler's are training images); the fine-tunes learn from the human
# captions of the first of them. The base captioner's alt-text has less noise than the arms': at 0.5
# it learned no colour in 8 minutes.
RECIPES = {
    "vae": {"seed": 0, "scenes": 60_000, "steps": 6000, "batch": 32, "lr": 8e-4},
    "clip": {"seed": 1, "scenes": 60_000, "steps": 700, "batch": 128, "lr": 1e-3},
    "judge": {
        "seed": 2, "scenes": 1_000_000, "pretraining": 4000, "steps": 12_000, "batch": 32,
        "lr": 1e-3,
    },
    "t5": {"seed": 0, "scenes": 20_000, "steps": 8000, "batch": 320, "lr": 1.5e-3},  # 320 tokens
    "coca-base": {
        "seed": 0, "scenes": 40_000, "noise": 0.1, "steps": 1500, "batch": 64, "lr": 1e-3,
    },
    "coca-dsc": {"seed": 0, "scenes": 8_000, "steps": 1700, "batch": 64, "lr": 1e-3},
    "coca-ssc": {"seed": 0, "scenes": 20_000, "steps": 3000, "batch": 64, "lr": 1e-3},
    "upsampler": {"seed": 0, "scenes": 20_000, "steps": 6000, "batch": 32, "lr": 1e-3},
}  # fmt: skip
ARMS = ("original-0", "ssc-95", "dsc-80", "dsc-95")  # shipped too, trained by notebook 04a
# Shipped too, trained by notebook 08.
STAGES = ("vae-recipe",) + tuple(
    f"unet-recipe-{name}" for name in ("first", "progressive", "scratch", "squares")
)
DECODERS = ("decoder-teacher", "decoder")  # shipped too, trained by notebook 07
NAMES = (*RECIPES, *(f"unet-{arm}" for arm in ARMS), *DECODERS, *STAGES)  # all that is shipped
HALVES = (  # side by side
    ("vae", "judge"),
    ("t5", "coca-base", "coca-dsc", "coca-ssc", "clip", "upsampler"),
)


def world_records(split: str, count: int, noise: float = 0.5) -> list[Record]:
    """The first ``count`` records of a split of the world, rendered once and kept."""
    return list(World(split, count, noise))


def held_out(noise: float = 0.5, count: int = 500) -> list[Record]:
    """Scenes on which captioners are measured while they learn: the dev split's second 500.

    The first 500 (``quality.held_out``) measure the finished ones.
    """
    return World("dev", 500 + count, noise)[500:]


def train_vae(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the autoencoder, standardise its latents, save it (fp16) to ``out``; return the log.

    ``work`` holds the checkpoints of the run.
    """
    started = quality.clock()
    torch.manual_seed(seed)
    model = vae.build().to(memory_format=torch.channels_last)
    images = stack(world_records("foundation", scenes))
    log = train(
        model,
        vae.step_loss(
            model, lambda step: images[batch_indices(seed, step, batch, len(images))], seed=seed
        ),
        steps=steps,
        lr=lr,
        directory=work,
        ema_decay=0.995,
        description="autoencoder",
    )
    model.eval()
    vae.standardise(model, to_tensor(images[:1000]))
    model.half().save_pretrained(out)
    quality.write_manifest(
        out, started, seed=seed, steps=steps, measured=quality.autoencoder(vae.load(out))
    )
    return log


def train_text(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Learn the tokenizer and train T5 on equal token shares of alt, short and descriptive text.

    Only the encoder is saved (fp16), with its tokenizer. Returns the log.
    """
    started = quality.clock()
    torch.manual_seed(seed)
    world = World("foundation", scenes)
    said, again = (
        list(zip(*(world.captions(i, wording) for i in range(scenes)), strict=True))
        for wording in ("", "/again")
    )
    tokenizer = text.train_tokenizer([caption for kind in said for caption in kind])

    def tokens(captions: Sequence[str]) -> list[list[int]]:
        ids = tokenizer(list(captions), add_special_tokens=False).input_ids
        return [caption[: text.MAX_TOKENS] for caption in ids]

    kinds = zip(("alt", "short", "desc"), said, again, strict=True)
    corpora = {kind: list(zip(tokens(a), tokens(b), strict=True)) for kind, a, b in kinds}
    model = text.build(len(tokenizer))
    log = train(
        model,
        text.step_loss(model, corpora, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=work,
        description="text encoder",
    )
    measured = {"loss": round(log["loss"][-1], 3)} | quality.rewording(model, tokenizer)
    encoder = text.T5EncoderModel(model.config)  # which tells the configuration it has no decoder
    encoder.load_state_dict(model.state_dict(), strict=False)
    encoder.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)
    return log


def train_clip(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the CLIP scorer contrastively; each image draws one of its captions every time.

    It reads alt-text, short and descriptive captions, and uses a seed of its own: no captioner
    shares its weights. Returns the log.
    """
    started = quality.clock()
    records = world_records("foundation", scenes)
    captions = by_kind(records)
    tokenizer = text.train_tokenizer([c for kind in captions.values() for c in kind], start=True)
    model = clip_score.build(tokenizer, seed)
    images = stack(records)
    tokens = torch.stack([captioner.encode(tokenizer, c, 48) for c in captions.values()])

    def loss(step: int) -> dict:
        rows = batch_indices(seed, step, batch, len(images))
        kinds = rng(seed, "clip/kind", step).integers(len(tokens), size=batch)
        drawn = tokens[kinds, rows]
        return {"loss": clip_score.contrastive_loss(model, to_tensor(images[rows]), drawn)}

    log = train(model, loss, steps=steps, lr=lr, directory=work, description="CLIP scorer")
    captioner.save(model, tokenizer, out)
    measured = quality.scorer(*clip_score.load(out))
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)
    return log


def train_base_captioner(
    work: Path,
    out: Path,
    *,
    seed: int,
    scenes: int,
    noise: float,
    steps: int,
    batch: int,
    lr: float,
) -> dict[str, list[float]]:
    """Train the base CoCa on (image, alt-text) pairs with both losses (weights 1 and 2)."""
    started = quality.clock()
    records = world_records("foundation", scenes, noise)
    captions = by_kind(records)
    tokenizer = text.train_tokenizer([c for kind in captions.values() for c in kind], start=True)
    model = captioner.build(tokenizer, seed)
    unseen = held_out(noise)
    log = captioner_training.train_captioner(
        model,
        tokenizer,
        stack(records),
        captions["alt-text"],
        held_out=(stack(unseen), by_kind(unseen)["alt-text"]),
        seed=seed,
        steps=steps,
        batch_size=batch,
        lr=lr,
        directory=work,
        contrastive=1.0,
        captioning=2.0,
        description="base CoCa",
    )
    captioner.save(model, tokenizer, out)
    captioner_training.write_curve(log, out)
    measured = quality.captioner(*captioner.load(out), "alt")
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)
    return log


FINE_TUNING = {"ssc": "short", "dsc": "descriptive"}  # which human captions each kind learns from


def fine_tune_captioner(
    kind: str,
    records: list[Record],
    base: Path,
    work: Path,
    *,
    seed: int,
    steps: int,
    batch: int,
    lr: float,
    unseen: list[Record] | None = None,
    **options,
):
    """Fine-tune the base CoCa on human captions of one kind (paper §2.1); (model, tokenizer, log).

    ``kind`` is "ssc" (captions of the main subject only) or "dsc" (captions of everything); both
    start from the base captioner in directory ``base`` and use the captioning loss alone. The
    likelihood of the captions of ``unseen`` records, if given, is measured along the way
    (``options`` of ``train.train``, such as ``held_out_every`` and ``patience``), and what is
    degenerate about the captions that it writes of the first 100 is printed.
    """
    model, tokenizer = captioner.load(base)
    if unseen:
        options["held_out"] = stack(unseen), by_kind(unseen)[FINE_TUNING[kind]]
    log = captioner_training.train_captioner(
        model,
        tokenizer,
        stack(records),
        by_kind(records)[FINE_TUNING[kind]],
        seed=seed,
        steps=steps,
        batch_size=batch,
        lr=lr,
        directory=work,
        contrastive=0.0,
        captioning=1.0,
        description=f"fine-tuning {kind.upper()}",
        **options,
    )
    if unseen:
        quality.listen(model.eval(), tokenizer, stack(unseen[:100]), LENGTH[kind])
    return model.eval(), tokenizer, log


def train_fine_tune(
    kind: str, work: Path, out: Path, *, scenes: int, **recipe
) -> dict[str, list[float]]:
    """Make the shipped captioner of a kind from ``coca-base`` beside it; return the log."""
    started = quality.clock()
    records = world_records("foundation", scenes)
    base = out.parent / "coca-base"
    model, tokenizer, log = fine_tune_captioner(
        kind, records, base, work, unseen=held_out(), **recipe
    )
    captioner.save(model, tokenizer, out)
    captioner_training.write_curve(log, out)
    measured = quality.captioner(*captioner.load(out), FINE_TUNING[kind])
    quality.write_manifest(
        out, started, seed=recipe["seed"], steps=recipe["steps"], measured=measured
    )
    return log


def train_judge(
    work: Path,
    out: Path,
    *,
    seed: int,
    scenes: int,
    pretraining: int,
    steps: int,
    batch: int,
    lr: float,
) -> dict[str, list[float]]:
    """Train the judge on captions, then questions, of scenes seen about once; return the log.

    It sees another draw of the world than the captioners (``seed``), three objects included.
    """
    started = quality.clock()

    def spec(index: int) -> Scene:
        return scene("foundation", index % scenes, seed, counts=(1, 2, 3))

    tokenizer = vqa_training.train_tokenizer(spec)
    model = vqa_training.build(tokenizer, seed)
    processor = vqa_training.make_processor(tokenizer)
    log = train(
        model,
        vqa_training.step_loss(
            model, processor, spec, seed=seed, batch=batch, pretraining=pretraining
        ),
        steps=steps,
        lr=lr,
        directory=work,
        ema_decay=0.995,
        description="judge",
    )
    vqa_training.save(model, processor, out)
    measured = quality.judge(*vqa.load(out))
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)
    return log


def train_upsampler(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the upsampler from the text encoder ``t5`` beside it; save it (fp16); return the log.

    It learns from the captions in ``data/captions`` of the first ``scenes`` training images.
    """
    started = quality.clock()
    torch.manual_seed(seed)
    model, tokenizer = upsampler.build(out.parent / "t5")
    texts = (upsampler.tokens(tokenizer, side) for side in upsampler.examples(scenes))
    log = train(
        model,
        upsampler.step_loss(model, *texts, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=work,
        ema_decay=0.995,
        description="upsampler",
    )
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    measured = {"loss": round(sum(log["loss"][-100:]) / len(log["loss"][-100:]), 3)}
    measured |= quality.upsampler(*upsampler.load(out))
    quality.write_manifest(out, started, seed=seed, steps=steps, measured=measured)
    return log


TRAINING = {
    "vae": train_vae,
    "clip": train_clip,
    "judge": train_judge,
    "t5": train_text,
    "coca-base": train_base_captioner,
    "coca-dsc": partial(train_fine_tune, "dsc"),
    "coca-ssc": partial(train_fine_tune, "ssc"),
    "upsampler": train_upsampler,
}


def train_one(name: str, directory: Path) -> dict:
    """Train the foundation called ``name`` by its recipe; return its manifest.

    Checkpoints and result lie under ``directory``; a finished one is not trained again.
    """
    out, work = directory / name, directory / "checkpoints" / name
    if not (out / "manifest.json").is_file():
        torch.set_num_threads(1)  # another number of threads rounds differently
        with files.guard(out):
            TRAINING[name](work, out, **RECIPES[name])
    return files.read_json(out / "manifest.json")


def _train_half(names: tuple[str, ...], directory: Path) -> dict[str, dict]:
    return {name: train_one(name, directory) for name in names}


def train_all(directory: Path) -> dict[str, dict]:
    """Train every foundation under ``directory``, two processes of one thread; the qualities."""
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        done = [pool.submit(_train_half, half, directory) for half in HALVES]
        return {name: m["quality"] for half in done for name, m in half.result().items()}


def manifests() -> dict[str, dict]:
    """The manifests of the shipped foundations by name, every file checked."""
    return {name: quality.manifest(name) for name in NAMES}
