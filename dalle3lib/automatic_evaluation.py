"""Table 1 in the world: systems that add one step of the paper after another, its benchmarks, and
a score with its reason for every picture (paper §4.1).

The paper compares three products; here the systems differ in the paper's steps alone, so the table
says what each is worth. The last "system" are rendered scenes, which show what was asked by
construction: no instrument can rightly give more than it gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dalle3lib import (
    UserError,
    arm,
    chat_server,
    decoder,
    files,
    paths,
    pretrained,
    text,
    trained_arms,
    upsampler,
    vae,
)
from dalle3lib.config import Parameters
from dalle3lib.evals import (
    clip_score,
    compbench,
    counting,
    detectors,
    drawbench,
    judge,
    noun_phrases,
    spatial,
    text_rendering,
    vision_model,
    vqa,
    world_judge,
)
from dalle3lib.randomness import rng
from dalle3lib.sample import decode, draw_latents
from dalle3lib.world import World, reader, scene
from dalle3lib.world.compositions import composition
from dalle3lib.world.drawbench import prompts as drawbench_prompts
from dalle3lib.world.prompts import Probe, probe, satisfied
from dalle3lib.world.render import render

CEILING = "rendered scenes"
POOL = 20_000  # scenes of the test split from which captions are sampled
BOUND = ("colour", "shape", "texture")  # T2I-CompBench's sets in the paper's table
BENCHMARKS = ("captions", "drawbench", *BOUND, "spatial", "numeracy", "text")
# The VQA model of T2I-CompBench, as transformers has it, and the revision that is meant.
BLIP = ("Salesforce/blip-vqa-capfilt-large", "c6af15bed424cf343aab3ff3bb31417ba272923a")


# ---- systems -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class System:
    """What draws: an arm (kind-ratio-seed; None: the renderer), from which prompts, how decoded."""

    name: str
    arm: str | None
    upsampled: bool = False
    consistency: bool = False


def systems(arms: Sequence[str]) -> list[System]:
    """Each arm; the last one with upsampled prompts; with the consistency decoder too; the ceiling.

    The last arm with both is the paper's whole recipe.
    """
    plain = [System(arm.label(name), name) for name in arms]
    last = arms[-1]
    steps = [System("+ upsampling", last, True), System("+ consistency decoder", last, True, True)]
    return [*plain, *steps, System(CEILING, None)]


def chosen(cfg: Parameters) -> list[System]:
    """The systems of ``cfg.arms``, of which ``cfg.systems`` may name some; UserError for others."""
    found = systems(cfg.arms)
    known = {one.name: one for one in found}
    if unknown := [name for name in cfg.systems if name not in known]:
        raise UserError(f"There is no system {unknown[0]!r}: choose among {', '.join(known)}.")
    return [known[name] for name in cfg.systems] or found


def command(cfg: Parameters, name: str) -> str:
    """The shell command that makes the rows of one system again."""
    return (
        f"papermill notebooks/{cfg.notebook}.ipynb row.ipynb -p preset {cfg.preset} "
        f"-p seed {cfg.seed} -y \"systems: ['{name}']\""
    )


# ---- benchmarks ----------------------------------------------------------------------------------


def captions(count: int, seed: int) -> list[Probe]:
    """Short captions of ``count`` scenes of the test split, sampled with a seed without repetition.

    The paper samples 4,096 captions of COCO's validation images (§4.1.1).
    """
    picked = rng(seed, "table 1/captions").choice(POOL, count, replace=False)
    records = World("test", POOL)
    return [Probe(records[i].short, scene("test", i), {}) for i in map(int, picked)]


def benchmarks(cfg: Parameters) -> dict[str, pd.DataFrame]:
    """The prompts of each benchmark: rows with category, prompt, probe, seed and image number.

    ``cfg`` gives the numbers: ``captions``, ``drawbench`` prompts with ``images`` pictures each,
    ``compositions`` of each other set.
    """
    sets = {
        "captions": [("captions", p) for p in captions(cfg.captions, cfg.seed)],
        "drawbench": drawbench_prompts(cfg.drawbench),
        **{n: [(n, p) for p in composition(n, cfg.compositions)] for n in BENCHMARKS[2:-1]},
        "text": [("text", p) for p in probe("text", cfg.compositions)],
    }
    tables = {}
    for name, found in sets.items():
        images = cfg.images if name == "drawbench" else 1
        rows = [(c, p.prompt, p, cfg.seed + i) for i in range(images) for c, p in found]
        tables[name] = pd.DataFrame(rows, columns=["category", "prompt", "probe", "seed"])
    return tables


# ---- pictures ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Studio:
    """The models that turn prompts into pictures: text encoder, upsampler, both decoders."""

    encoder: tuple
    upsampler: tuple
    decoders: dict[bool, object]  # by whether it is the consistency decoder
    networks: dict[str, tuple]  # by arm: U-Net and guidance


def studio(cfg: Parameters, some: Sequence[System]) -> Studio:
    """Load what the systems need, where ``cfg`` says; UserError names an arm that is missing."""
    device = pretrained.device(cfg)
    names = {one.arm for one in some if one.arm}
    two = decoder.ConsistencyDecoder(device, "world")
    return Studio(
        encoder=text.load(paths.foundation("t5")),
        upsampler=upsampler.load(),
        decoders={False: vae.load(paths.foundation("vae")).to(device), True: two},
        networks={name: trained_arms.network(cfg, name) for name in names},
    )


def draw(
    system: System, prompts: pd.DataFrame, on: Studio, *, steps: int, seed: int
) -> tuple[np.ndarray, list[str]]:
    """A picture uint8 [N, 64, 64, 3] for each row of a benchmark, and the texts that were drawn.

    Rows of one seed and prompt start from the same noise whatever the system. The upsampler's text
    is taken as it comes: whoever uses it does not know how many objects are meant.
    """
    if system.arm is None:
        return np.stack([render(one.scene) for one in prompts.probe]), list(prompts.prompt)
    texts = list(prompts.prompt)
    if system.upsampled:
        texts = upsampler.write(*on.upsampler, texts, seed=seed)
    unet, guidance = on.networks[system.arm]
    pictures = np.empty((len(texts), 64, 64, 3), np.uint8)
    for one, rows in prompts.reset_index(drop=True).groupby("seed").groups.items():
        states = text.encode(*on.encoder, [texts[i] for i in rows])
        latents = draw_latents(unet, states, seed=one, steps=steps, guidance=guidance)
        pictures[rows] = decode(latents, on.decoders[system.consistency])
    return pictures, texts


# ---- scores --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruments:
    """What looks at pictures: scorer and VQA model as their ``load`` gives them, and a judge."""

    scorer: tuple
    vqa: tuple
    judge: judge.Judge


def instruments(cfg: Parameters) -> Instruments:
    """Load what ``cfg`` names: scorer ``clip``, VQA model ``vqa``, ``judge`` (``judge_of``)."""
    scorer = clip_score.load(pretrained.directory("clip", cfg.clip))
    return Instruments(scorer, vqa_of(cfg.vqa), judge_of(cfg.judge, pretrained.device(cfg)))


def vqa_of(name: str) -> tuple:
    """The VQA model of a name and its processor: "world", or a BLIP's name or directory."""
    if name == "world":
        return vqa.load(paths.foundation("judge"))
    where = paths.folder(name) if paths.folder(name).is_dir() else name
    return vqa.load(where, **({"revision": BLIP[1]} if name == BLIP[0] else {}))


def judge_of(name: str, device: str = "cpu") -> judge.Judge:
    """The judge of a name: "world", "server:MODEL", or a vision-language model's name or folder.

    A server is the one of ``OPENAI_BASE_URL``; its key is in ``OPENAI_API_KEY``.
    """
    if name == "world":
        return world_judge.load()
    kind, _, model = name.partition(":")
    talks = (
        chat_server.client(model) if kind == "server" else vision_model.client(name, None, device)
    )
    return judge.by_chat(talks)


def score(name: str, prompts: pd.DataFrame, images: np.ndarray, by: Instruments) -> pd.DataFrame:
    """A row for each picture of a benchmark: prompt, seed, image, score, reason, and more.

    Scores are CLIP's points for "captions" and shares of 1 for the others. ``clip`` is the CLIP
    score of every picture with its prompt; ``reader`` whether the world's reader finds all that is
    asked (NaN for captions, which have no ask).
    """
    said, asks, seeds = list(prompts.prompt), [p.ask for p in prompts.probe], list(prompts.seed)
    clip = clip_score.score_images(*by.scorer, images, said)
    phrases, found = noun_phrases.of_world(said), None
    facts = None if name == "captions" else reader.read(images)
    if name == "captions":
        table = clip.copy()
    elif name == "drawbench":
        numbered = prompts.assign(image=range(len(prompts)))
        table = drawbench.judged(
            numbered, list(images), by.judge, dict(zip(said, asks, strict=True))
        )
    elif name in BOUND:
        found = compbench.answers(*by.vqa, images, said, phrases)
        table = compbench.scores(said, phrases, found, protocol="2024")
    elif name == "spatial":
        objects = spatial.objects_of_world(said, asks)
        table = spatial.score_images(images, said, objects, detectors.of_facts(facts))
    elif name == "numeracy":
        asked = counting.asked_of_world(said, asks)
        table = counting.score_images(images, said, asked, detectors.of_facts(facts))
    else:
        words = {p: ask["word"] for p, ask in zip(said, asks, strict=True)}
        printed = [seen["word"] or "" for seen in facts]
        table = text_rendering.score_images(images, said, words, lambda _: printed)
    if found:
        table["score 2023"] = compbench.scores(said, phrases, found, protocol="2023").score
    read = np.nan
    if facts is not None:
        read = [float(satisfied(a, f)) for a, f in zip(asks, facts, strict=True)]
    extra = {"category": list(prompts.category), "seed": seeds, "clip": clip.score, "reader": read}
    return table.assign(benchmark=name, **extra)


def evaluate(
    system: System, sets: dict[str, pd.DataFrame], on: Studio, by: Instruments, folder: Path,
    *, steps: int, seed: int,
) -> tuple[pd.DataFrame, np.ndarray]:  # fmt: skip
    """All rows of a system on all benchmarks, and its pictures of "captions".

    They are kept in ``folder`` benchmark by benchmark, so that an interrupted call goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables, shown = [], np.empty((0, 64, 64, 3), np.uint8)
    for name, prompts in sets.items():
        place = folder / f"{system.name.strip('+ ').replace(' ', '-')}-{name}.parquet"
        pictures = place.with_suffix(".npy")
        if not place.is_file():
            images, texts = draw(system, prompts, on, steps=steps, seed=seed)
            rows = score(name, prompts, images, by).assign(system=system.name, drawn_from=texts)
            if name == "captions":
                np.save(pictures, images, allow_pickle=False)
            files.write_atomic(place, rows.to_parquet())
        tables.append(pd.read_parquet(place))
        if name == "captions":
            shown = np.load(pictures, allow_pickle=False)
    return pd.concat(tables, ignore_index=True), shown
