"""Training the world's foundations: the models that the paper takes as given.

Each function trains one of them from the foundation split, which shares no scene with any other,
and writes it in the format of its public counterpart. The notebook ``00_foundations`` calls them;
the results are shipped in ``data/foundation`` and every chapter starts from the shipped files.
"""

import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from dalle3lib import captioner, files, paths, text, vae
from dalle3lib.captions import by_kind
from dalle3lib.evals import clip_score
from dalle3lib.images import Record, stack, to_tensor
from dalle3lib.randomness import batch_indices, rng
from dalle3lib.train import train
from dalle3lib.world import World

SCENES = 20_000  # of the foundation split
HUMAN_SCENES = 8_000  # of them, the first carry the human captions for fine-tuning
# How each shipped foundation was trained, in an order that respects what needs what.
RECIPES = {
    "vae": {"seed": 0, "steps": 2000, "batch": 32, "lr": 2e-3},
    "clip": {"seed": 1, "steps": 700, "batch": 64, "lr": 1e-3},
    "t5": {"seed": 0, "steps": 600, "batch": 48, "lr": 2e-3},
    "coca-base": {"seed": 0, "steps": 700, "batch": 64, "lr": 1e-3},
    "coca-dsc": {"seed": 0, "steps": 1900, "batch": 64, "lr": 1e-3},
    "coca-ssc": {"seed": 0, "steps": 900, "batch": 64, "lr": 1e-3},
}
HALVES = (("vae", "clip"), ("t5", "coca-base", "coca-dsc", "coca-ssc"))  # trained side by side


def world_records(split: str, count: int, noise: float = 0.5) -> list[Record]:
    """The first ``count`` records of a split of the world, rendered once and kept."""
    return list(World(split, count, noise))


def clock() -> tuple[float, float]:
    """Wall and processor seconds so far, to take differences of."""
    return time.time(), time.process_time()


def finish(
    directory: Path, *, seed: int, steps: int, quality: dict, started: tuple[float, float]
) -> None:
    """Write the manifest of a foundation last: what it is, how good, and the hash of each file.

    ``started`` is the ``clock()`` at the start of its training.
    """
    wall, cpu = (now - then for now, then in zip(clock(), started, strict=True))
    payload = sorted(p for p in directory.iterdir() if p.is_file() and p.name != "manifest.json")
    manifest = {
        "name": directory.name,
        "seed": seed,
        "steps": steps,
        "quality": quality,
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "files": files.listing(directory, payload),
    }
    files.write_atomic(directory / "manifest.json", files.to_json(manifest).encode())


def train_vae(
    records: list[Record], work: Path, out: Path, *, seed: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the autoencoder, set its latent scale, save it in fp16 to ``out``; return the log.

    ``work`` holds the checkpoints of the run.
    """
    started = clock()
    torch.manual_seed(seed)
    model = vae.build().to(memory_format=torch.channels_last)
    images = stack(records)
    log = train(
        model,
        vae.step_loss(model, images, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=work,
        ema_decay=0.995,
        description="autoencoder",
    )
    model.eval()
    model.register_to_config(scaling_factor=vae.latent_scale(model, to_tensor(images[:1000])))
    model.half().save_pretrained(out)
    finish(out, seed=seed, steps=steps, quality=vae_quality(vae.load(out)), started=started)
    return log


@torch.no_grad()
def vae_quality(model, count: int = 500) -> dict[str, float]:
    """Mean PSNR (dB) of the reconstructions of held-out scenes."""
    images = to_tensor(stack(world_records("dev", count)))
    values = [
        vae.psnr(model.decode(model.encode(x).latent_dist.mean).sample, x)
        for x in images.split(100)
    ]
    return {"psnr_db": round(torch.cat(values).mean().item(), 2)}


def train_text(
    records: list[Record], work: Path, out: Path, *, seed: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Learn the tokenizer and train T5 on equal token shares of alt, short and descriptive text.

    Only the encoder is saved (fp16), with its tokenizer. Returns the log.
    """
    started = clock()
    torch.manual_seed(seed)
    captions = by_kind(records)
    tokenizer = text.train_tokenizer([c for kind in captions.values() for c in kind])
    corpora = {
        kind: [ids[: text.MAX_TOKENS] for ids in tokenizer(c, add_special_tokens=False).input_ids]
        for kind, c in captions.items()
    }
    model = text.build(len(tokenizer))
    log = train(
        model,
        text.step_loss(model, corpora, seed=seed, batch=batch),
        steps=steps,
        lr=lr,
        directory=work,
        description="text encoder",
    )
    encoder = text.T5EncoderModel(model.config)
    encoder.load_state_dict(model.state_dict(), strict=False)
    encoder.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    finish(
        out, seed=seed, steps=steps, quality={"loss": round(log["loss"][-1], 3)}, started=started
    )
    return log


def train_clip(
    records: list[Record], work: Path, out: Path, *, seed: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the CLIP scorer contrastively; each image draws one of its captions every time.

    It reads alt-text, short and descriptive captions, and uses a seed of its own: no captioner
    shares its weights. Returns the log.
    """
    started = clock()
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
    quality = clip_quality(*clip_score.load(out))
    finish(out, seed=seed, steps=steps, quality=quality, started=started)
    return log


def clip_quality(model, tokenizer, count: int = 500) -> dict[str, float]:
    """Top-1 retrieval among 100 held-out texts, for each kind of caption."""
    records = world_records("dev", count)
    image = clip_score.image_features(model, stack(records))
    return {
        f"retrieval_{kind}": round(
            clip_score.retrieval_top1(image, clip_score.text_features(model, tokenizer, texts)), 3
        )
        for kind, texts in by_kind(records).items()
    }


def train_base_captioner(
    records: list[Record], work: Path, out: Path, *, seed: int, steps: int, batch: int, lr: float
) -> dict[str, list[float]]:
    """Train the base CoCa on (image, alt-text) pairs with both losses (weights 1 and 2)."""
    started = clock()
    captions = by_kind(records)
    tokenizer = text.train_tokenizer([c for kind in captions.values() for c in kind], start=True)
    model = captioner.build(tokenizer, seed)
    log = captioner.train_captioner(
        model,
        tokenizer,
        stack(records),
        captions["alt-text"],
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
    quality = captioner_quality(*captioner.load(out), "alt-text")
    finish(out, seed=seed, steps=steps, quality=quality, started=started)
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
):
    """Fine-tune the base CoCa on human captions of one kind (paper §2.1); (model, tokenizer, log).

    ``kind`` is "ssc" (captions of the main subject only) or "dsc" (captions of everything); both
    start from the base captioner in directory ``base`` and use the captioning loss alone.
    """
    model, tokenizer = captioner.load(base)
    log = captioner.train_captioner(
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
    )
    return model.eval(), tokenizer, log


def train_fine_tune(
    kind: str, records: list[Record], base: Path, work: Path, out: Path, *, seed: int, **options
) -> dict[str, list[float]]:
    """Make the shipped captioner of a kind: fine-tune, save (fp16), measure; return the log."""
    started = clock()
    model, tokenizer, log = fine_tune_captioner(kind, records, base, work, seed=seed, **options)
    captioner.save(model, tokenizer, out)
    quality = captioner_quality(*captioner.load(out), FINE_TUNING[kind])
    finish(out, seed=seed, steps=options["steps"], quality=quality, started=started)
    return log


def captioner_quality(model, tokenizer, kind: str, count: int = 500) -> dict[str, float]:
    """Mean negative log-likelihood of held-out human captions, in nats per token."""
    dev = world_records("dev", count)
    nats = captioner.token_log_likelihood(model, tokenizer, stack(dev), by_kind(dev)[kind])
    return {"nats_per_token": round(nats, 3)}


def train_one(name: str, directory: Path) -> dict:
    """Train the foundation called ``name`` by its recipe; return its manifest.

    Checkpoints and result lie under ``directory``; a finished one is not trained again.
    """
    out, work, recipe = directory / name, directory / "checkpoints" / name, RECIPES[name]
    if not (out / "manifest.json").is_file():
        torch.set_num_threads(1)  # another number of threads rounds differently
        with files.guard(out):
            if name.startswith("coca-") and name != "coca-base":
                records = world_records("foundation", HUMAN_SCENES)
                train_fine_tune(name[5:], records, directory / "coca-base", work, out, **recipe)
            else:
                pretrain = {"vae": train_vae, "t5": train_text, "clip": train_clip}
                records = world_records("foundation", SCENES)
                pretrain.get(name, train_base_captioner)(records, work, out, **recipe)
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
    return {name: files.read_json(paths.foundation(name) / "manifest.json") for name in RECIPES}


def quality_report(count: int) -> dict[str, dict[str, float]]:
    """The quality of the shipped foundations, measured now on ``count`` held-out scenes."""
    report = {
        "vae": vae_quality(vae.load(paths.foundation("vae")), count),
        "clip": clip_quality(*clip_score.load(paths.foundation("clip")), count),
    }
    learned = {"coca-base": "alt-text", "coca-dsc": "descriptive", "coca-ssc": "short"}
    for name, kind in learned.items():
        report[name] = captioner_quality(*captioner.load(paths.foundation(name)), kind, count)
    return report
