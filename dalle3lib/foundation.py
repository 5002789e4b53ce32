"""Training the world's foundations: the models that the paper takes as given.

Each ``train_...`` makes one of them from the foundation split, which shares no scene with any
other: it writes the model to ``out`` in the format of its public counterpart and returns its
quality as measured; checkpoints lie in ``work``. ``train_one`` adds the manifest. The notebook
``00_foundations`` calls them; the results are shipped in ``data/foundation`` and every chapter
starts from the shipped files.
"""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from dalle3lib import captioner, captioner_training, files, quality, text, upsampler, vae
from dalle3lib.captions import HUMAN, by_kind
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


def held_out(noise: float = 0.5, count: int = 500) -> list[Record]:
    """Scenes on which captioners are measured while they learn: the dev split's second 500.

    The first 500 (``quality.held_out``) measure the finished ones.
    """
    return World("dev", 500 + count, noise)[500:]


def train_vae(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, float]:
    """Train the autoencoder and standardise its latents (fp16)."""
    torch.manual_seed(seed)
    model = vae.build().to(memory_format=torch.channels_last)
    images = stack(World("foundation", scenes))
    train(
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
    return quality.autoencoder(vae.load(out))


def train_text(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, float]:
    """Learn the tokenizer and train T5 on equal token shares of alt, short and descriptive text.

    Only the encoder is saved (fp16), with its tokenizer.
    """
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
    return measured


def train_clip(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, float]:
    """Train the CLIP scorer contrastively; each image draws one of its captions every time.

    It reads alt-text, short and descriptive captions, and uses a seed of its own: no captioner
    shares its weights.
    """
    records = list(World("foundation", scenes))
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

    train(model, loss, steps=steps, lr=lr, directory=work, description="CLIP scorer")
    captioner.save(model, tokenizer, out)
    return quality.scorer(*clip_score.load(out))


def train_base_captioner(
    work: Path, out: Path, *, seed: int, scenes: int, noise: float, **recipe
) -> dict[str, float]:
    """Train the base CoCa on (image, alt-text) pairs with both losses (weights 1 and 2)."""
    records = list(World("foundation", scenes, noise))
    captions = by_kind(records)
    tokenizer = text.train_tokenizer([c for kind in captions.values() for c in kind], start=True)
    model = captioner.build(tokenizer, seed)
    options = {"contrastive": 1.0, "captioning": 2.0, "description": "base CoCa"}
    options |= {"seed": seed, "directory": work, **recipe}
    return _train_captioner(model, tokenizer, "alt", records, held_out(noise), out, **options)


def train_fine_tune(kind: str, work: Path, out: Path, *, scenes: int, **recipe) -> dict[str, float]:
    """Fine-tune the captioner ``coca-base`` beside ``out`` on human captions (paper section 2.1).

    ``kind`` is "ssc" (captions of the main subject only) or "dsc" (of everything); both use the
    captioning loss alone. What is degenerate about the captions that the result writes of held-out
    scenes is printed.
    """
    model, tokenizer = captioner.load(out.parent / "coca-base")
    records, unseen = list(World("foundation", scenes)), held_out()
    options = {"contrastive": 0.0, "captioning": 1.0, "description": f"fine-tuning {kind.upper()}"}
    options |= {"directory": work, **recipe}
    measured = _train_captioner(model, tokenizer, HUMAN[kind], records, unseen, out, **options)
    quality.listen(model.eval(), tokenizer, stack(unseen[:100]), LENGTH[kind])
    return measured


def _train_captioner(
    model,
    tokenizer,
    field: str,
    records: Sequence[Record],
    unseen: Sequence[Record],
    out: Path,
    **options,
) -> dict[str, float]:
    """Train a captioner on one kind of caption (a record's field); save it and its curve."""
    learned, others = ((stack(s), [getattr(r, field) for r in s]) for s in (records, unseen))
    log = captioner_training.train_captioner(model, tokenizer, *learned, held_out=others, **options)
    captioner.save(model, tokenizer, out)
    captioner_training.write_curve(log, out)
    return quality.captioner(*captioner.load(out), field)


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
) -> dict[str, float]:
    """Train the judge on captions, then questions, of scenes seen about once.

    It sees another draw of the world than the captioners (``seed``), three objects included.
    """

    def spec(index: int) -> Scene:
        return scene("foundation", index % scenes, seed, counts=(1, 2, 3))

    tokenizer = vqa_training.train_tokenizer(spec)
    model = vqa_training.build(tokenizer, seed)
    processor = vqa_training.make_processor(tokenizer)
    train(
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
    return quality.judge(*vqa.load(out))


def train_upsampler(
    work: Path, out: Path, *, seed: int, scenes: int, steps: int, batch: int, lr: float
) -> dict[str, float]:
    """Train the upsampler from the text encoder ``t5`` beside it (fp16).

    It learns from the captions in ``data/captions`` of the first ``scenes`` training images.
    """
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
    loss = round(sum(log["loss"][-100:]) / len(log["loss"][-100:]), 3)
    return {"loss": loss} | quality.upsampler(*upsampler.load(out))


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
        recipe, started = RECIPES[name], quality.clock()
        with files.guard(out):
            measured = TRAINING[name](work, out, **recipe)
            settled = {"seed": recipe["seed"], "steps": recipe["steps"], "measured": measured}
            quality.write_manifest(out, started, **settled)
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
