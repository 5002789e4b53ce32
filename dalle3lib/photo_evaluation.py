"""Table 1 on photographs: arms of a GPU's presets, the paper's own prompts and metrics (§4.1).

The paper samples 4,096 captions of COCO 2014's validation images and scores one picture of each
with CLIP ViT-B/32; it asks a judge about DrawBench, and BLIP about T2I-CompBench. Here the draw
has a recorded seed, and the arms are runs of notebook 04a. A benchmark whose prompts or
judge are not there is left out, and what it needs is said.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from dalle3lib import UserError, arm, coco, files, pairs, paths, pretrained, trained_arms
from dalle3lib.automatic_evaluation import BOUND, judge_of, vqa_of
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score, compbench, drawbench, noun_phrases
from dalle3lib.evals.judge import Judge
from dalle3lib.randomness import rng
from dalle3lib.sample import sample

BENCHMARKS = ("captions", *BOUND, "drawbench")


# ---- prompts -------------------------------------------------------------------------------------


def coco_captions(folder: str | Path, count: int = 4096, seed: int = 0) -> list[str]:
    """``count`` captions of a COCO folder, drawn with a seed without repetition.

    All captions that are not blank take part, in the order of file names and annotations. Raises
    UserError if there are fewer, or no captions file.
    """
    known = coco.references(paths.folder(str(folder)))
    texts = [text.strip() for name in sorted(known) for text in known[name] if text.strip()]
    if count > len(texts):
        raise UserError(f"{folder} has {len(texts)} captions, fewer than {count}: ask for fewer.")
    picked = rng(seed, "COCO captions").choice(len(texts), count, replace=False)
    return [texts[i] for i in picked]


def captions(cfg: Parameters) -> pd.DataFrame:
    """The captions to draw: of the folder of prompts, or the alt-text of images held out."""
    if cfg.prompts_from in pairs.HELD_OUT:
        return _table([record.alt for record in pairs.held_out(cfg, cfg.captions)], cfg.seed)
    return _table(coco_captions(cfg.prompts_from, cfg.captions, cfg.seed), cfg.seed)


def bound(cfg: Parameters, name: str) -> pd.DataFrame:
    """Prompts of one of T2I-CompBench's sets with their noun ``phrases``.

    ``cfg.compbench`` is the folder of the lists, or "benchmarks", where ``DALLE3_BENCHMARKS`` has
    them; ``cfg.phrases`` "spacy", or a file. Raises UserError where one of them is not here.
    """
    folder = None if cfg.compbench == "benchmarks" else paths.folder(cfg.compbench)
    said = compbench.prompts(name, folder)[: cfg.compositions]
    if cfg.phrases == "spacy":
        phrases = noun_phrases.from_spacy(said)
    else:
        phrases = noun_phrases.from_file(paths.folder(cfg.phrases))
    if lacking := [prompt for prompt in said if prompt not in phrases]:
        raise UserError(
            f"{cfg.phrases} has no noun phrases for {len(lacking)} prompts of T2I-CompBench's "
            f"{name}, the first is {lacking[0]!r}: add them."
        )
    return _table(said, cfg.seed).assign(phrases=[list(phrases[prompt]) for prompt in said])


def drawbench_prompts(cfg: Parameters) -> pd.DataFrame:
    """DrawBench, ``cfg.images`` pictures of each prompt; UserError without a judge or the file."""
    if cfg.judge == "none":
        raise UserError(
            "DrawBench needs a judge: set judge to server:MODEL (with OPENAI_BASE_URL), or to the "
            "directory of a vision-language model."
        )
    found = drawbench.load()[: cfg.drawbench]
    each = [found.assign(seed=cfg.seed + i) for i in range(cfg.images)]
    return pd.concat(each, ignore_index=True)


def _table(prompts: Sequence[str], seed: int) -> pd.DataFrame:
    return pd.DataFrame({"category": "all", "prompt": prompts, "seed": seed})


def benchmarks(cfg: Parameters) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """The prompts of each benchmark that is here, and of the others what they need.

    Rows have category, prompt and seed, those of ``BOUND`` also phrases.
    """
    sets, lacking = {}, {}
    for name in BENCHMARKS:
        try:
            if name == "captions":
                sets[name] = captions(cfg)
            else:
                sets[name] = drawbench_prompts(cfg) if name == "drawbench" else bound(cfg, name)
        except UserError as error:
            lacking[name] = str(error)
    return sets, lacking


# ---- pictures and scores -------------------------------------------------------------------------


@dataclass(frozen=True)
class Instruments:
    """What draws and looks at pictures, whichever the arm, loaded once.

    ``studio`` has the encoded prompts of each benchmark and the scorer; a VQA model (a pair, as its
    ``load`` gives it) and a judge are there where they are asked, else None.
    """

    studio: arm.Studio
    vqa: tuple | None
    judge: Judge | None


def instruments(cfg: Parameters, sets: dict[str, pd.DataFrame]) -> Instruments:
    """Load what the benchmarks in ``sets`` need, on the device; a public BLIP sees 480 pixels."""
    device = pretrained.device(cfg)
    studio = arm.studio([], cfg, {name: list(table.prompt) for name, table in sets.items()})
    answering = None
    if set(sets) & set(BOUND):
        model, processor = vqa_of(cfg.vqa)
        public = cfg.vqa != "world"
        answering = model.to(device), compbench.at_size(processor) if public else processor
    judge = judge_of(cfg.judge, device) if "drawbench" in sets else None
    return Instruments(studio, answering, judge)


def draw(
    cfg: Parameters, name: str, benchmark: str, prompts: pd.DataFrame, on: arm.Studio
) -> np.ndarray:
    """A picture of each row's prompt by an arm (kind-ratio-seed): uint8 [N, size, size, 3].

    ``on`` has encoded these prompts. Raises UserError, naming the command, if the arm was not
    trained.
    """
    unet, guidance = trained_arms.network(cfg, name)
    options = {"steps": cfg.sampling_steps, "guidance": guidance}
    pictures: list = [None] * len(prompts)
    for seed, rows in prompts.reset_index(drop=True).groupby("seed").groups.items():
        states = [on.states[benchmark][i] for i in rows]
        drawn = sample(unet, on.autoencoder, states, seed=int(seed), dtype=on.dtype, **options)
        for i, picture in zip(rows, drawn, strict=True):
            pictures[i] = picture
    return np.stack(pictures)


def score(name: str, prompts: pd.DataFrame, images: np.ndarray, by: Instruments) -> pd.DataFrame:
    """A row for each picture of a benchmark: prompt, seed, score, reason, and ``clip``.

    Scores are CLIP's points for "captions" (with ``hessel``, the other variant, and ``cut``,
    whether the scorer saw the beginning only), shares of 1 for the others.
    """
    said, scorer = list(prompts.prompt), by.studio.scorer
    clip = table = clip_score.score_images(*scorer, images, said)
    if name == "captions":
        hessel = clip_score.clip_scores(*scorer, images, said, "hessel")
        table = clip.assign(hessel=hessel, cut=clip_score.truncated(*scorer, said))
    elif name == "drawbench":
        table = drawbench.judged(prompts.assign(image=range(len(said))), list(images), by.judge)
    else:
        phrases = dict(zip(said, prompts.phrases, strict=True))
        found = compbench.answers(*by.vqa, images, said, phrases)
        table = compbench.scores(said, phrases, found, protocol="2024")
        old = compbench.scores(said, phrases, found, protocol="2023").score
        table = table.assign(**{"score 2023": old})
    extra = {"category": list(prompts.category), "seed": list(prompts.seed)}
    return table.assign(benchmark=name, clip=clip.score, **extra)


def evaluate(
    cfg: Parameters, name: str, sets: dict[str, pd.DataFrame], by: Instruments, folder: Path
) -> tuple[pd.DataFrame, np.ndarray]:
    """All rows of an arm on all benchmarks, and its pictures of the first ``cfg.shown`` captions.

    They are kept in ``folder`` benchmark by benchmark, so that an interrupted call goes on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tables = []
    for benchmark, prompts in sets.items():
        place = folder / f"{name}-{benchmark}.parquet"
        if not place.is_file():
            images = draw(cfg, name, benchmark, prompts, by.studio)
            rows = score(benchmark, prompts, images, by).assign(system=arm.label(name))
            np.save(place.with_suffix(".npy"), images[: cfg.shown], allow_pickle=False)
            files.write_atomic(place, rows.to_parquet())
        tables.append(pd.read_parquet(place))
    shown = np.load(folder / f"{name}-captions.npy", allow_pickle=False)
    return pd.concat(tables, ignore_index=True), shown
