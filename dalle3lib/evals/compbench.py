"""T2I-CompBench: are attributes bound to their objects? (Huang et al. 2023; paper §4.1, table 1).

BLIP-VQA asks a picture about each noun phrase of its prompt, "a red circle?", and multiplies the
probabilities of yes. The benchmark's script asked about two phrases when the paper was written
(commit 7710d05 of July 2023); it asks about eight since December 2023 (59523aa) and passes over a
few phrases of place since January 2024 (96c0854). Published numbers of both kinds stand beside each
other, so both protocols are here (``PROTOCOLS``).

Where public weights differ from the benchmark's: its script resizes pictures to 480 pixels, those
of "Salesforce/blip-vqa-capfilt-large" are set to 384, to which their position embeddings were
interpolated; ``at_size`` makes the size explicit. And its questions begin with [ENC], transformers'
with [CLS]. So neither size repeats the published numbers to the last digit.
"""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm.auto import tqdm
from transformers import BlipForQuestionAnswering, BlipImageProcessor, BlipProcessor
from transformers.image_utils import PILImageResampling

from dalle3lib import UserError, paths
from dalle3lib.evals import clip_score, per_image, vqa
from dalle3lib.evals.published_files import COMPBENCH

FILES = {  # 300 prompts each, for evaluation
    "colour": "color_val.txt",
    "shape": "shape_val.txt",
    "texture": "texture_val.txt",
    "spatial": "spatial_val.txt",
    "non-spatial": "non_spatial_val.txt",
    "complex": "complex_val.txt",
    "numeracy": "numeracy_val.txt",
}
SIZE = 480  # pixels to which the benchmark's script resizes pictures for BLIP
LONGEST = 50  # words of a question
PLACES = ("top", "the side", "the left", "the right")  # phrases that name no object
PROTOCOLS = {"2023": (2, ()), "2024": (8, PLACES)}  # how many phrases, and which are passed over


# ---- prompts -------------------------------------------------------------------------------------


def lines(file: str, folder: str | Path | None = None) -> list[str]:
    """The lines of one of the benchmark's files; UserError naming its home if it is not there."""
    benchmarks = paths.benchmarks()
    if folder is None and benchmarks is None:
        where = "no folder is given"
    else:
        path = Path(folder).expanduser() if folder else benchmarks / "t2i-compbench"
        if (path / file).is_file():
            return [
                s for line in (path / file).read_text("utf-8").splitlines() if (s := line.strip())
            ]
        where = f"{path / file} is missing"
    raise UserError(
        f"T2I-CompBench's prompts are not here ({where}): give the folder examples/dataset of a "
        f"clone of {COMPBENCH.home}, or set DALLE3_BENCHMARKS to a folder with a folder "
        "t2i-compbench."
    )


def prompts(category: str, folder: str | Path | None = None) -> list[str]:
    """The 300 evaluation prompts of a category, in the file's order.

    ``folder`` holds the files (None: t2i-compbench among the benchmarks). Raises UserError for a
    category that is not in ``FILES``, and without the files.
    """
    if category not in FILES:
        raise UserError(f"There is no category {category!r}: choose one of {', '.join(FILES)}.")
    return lines(FILES[category], folder)


# ---- BLIP-VQA ------------------------------------------------------------------------------------


def at_size(processor: BlipProcessor, size: int = SIZE) -> BlipProcessor:
    """The processor, but resizing pictures to ``size`` pixels, bicubic: 480 is the benchmark's."""
    side = {"height": size, "width": size}
    settings = processor.image_processor.to_dict() | {"size": side}
    image = BlipImageProcessor.from_dict(settings | {"resample": PILImageResampling.BICUBIC})
    return BlipProcessor(image, processor.tokenizer)


def questions(phrases: Sequence[str], protocol: str = "2024") -> list[str]:
    """The questions that a protocol asks about a prompt's noun phrases, in lower case.

    As in the benchmark, punctuation is removed, and what stands beyond 50 words. Raises UserError
    for another protocol than those of ``PROTOCOLS``.
    """
    if protocol not in PROTOCOLS:
        raise UserError(f"There is no protocol {protocol!r}: choose {' or '.join(PROTOCOLS)}.")
    most, passed_over = PROTOCOLS[protocol]
    asked = [f"{p}?".lower() for p in phrases if p not in passed_over][:most]
    clean = [re.sub(r'[.!"()*#:;~]', "", q).rstrip(" ") for q in asked]
    return [" ".join(q.split(" ")[:LONGEST]) for q in clean]


def answers(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: dict[str, Sequence[str]],
    batch: int = 32,
) -> list[dict[str, float]]:
    """How surely each picture is what its prompt's phrases say: p(yes) by question, 4 decimals.

    ``images`` are uint8 [N, H, W, 3]; ``phrases`` gives the noun phrases of each prompt (from
    ``noun_phrases``). The questions of both protocols are asked, and a picture is encoded once for
    all of them, where the benchmark's script encodes it eight times. Raises UserError if a prompt
    is not among ``phrases``.
    """
    per_image.same_number(len(images), prompts)
    noted = per_image.look_up(phrases, prompts, "noun phrases")
    asked = [list(dict.fromkeys(q for p in PROTOCOLS for q in questions(n, p))) for n in noted]
    found = []
    for start in tqdm(range(0, len(images), batch), "BLIP-VQA", leave=False):
        part = asked[start : start + batch]
        of = np.repeat(np.arange(len(part)), [len(q) for q in part])
        flat = [q for some in part for q in some]
        sure = iter(vqa.p_yes(model, processor, images[start : start + batch], flat, of, batch))
        found += [{q: round(float(next(sure)), 4) for q in some} for some in part]
    return found


def scores(
    prompts: Sequence[str],
    phrases: dict[str, Sequence[str]],
    found: Sequence[dict[str, float]],
    *,
    protocol: str = "2024",
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """BLIP-VQA by one protocol from ``answers``, a row for each image (``per_image.table``).

    The score is the product of p(yes) over the phrases; a missing phrase counts 1.
    """
    asked = [questions(n, protocol) for n in per_image.look_up(phrases, prompts, "noun phrases")]
    pairs = [[(q, f[q]) for q in some] for some, f in zip(asked, found, strict=True)]
    products = [round(float(np.prod([p for _, p in some])), 4) for some in pairs]
    reasons = ["; ".join(f"{q} {p:.2f}" for q, p in some) or "no phrase" for some in pairs]
    return per_image.table(prompts, seed, products, reasons)


def bvqa(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    images: np.ndarray,
    prompts: Sequence[str],
    phrases: dict[str, Sequence[str]],
    *,
    protocol: str = "2024",
    seed: int | Sequence[int] = 0,
    batch: int = 32,
) -> pd.DataFrame:
    """BLIP-VQA of images uint8 [N, H, W, 3] with their prompts: ``scores`` of their ``answers``."""
    found = answers(model, processor, images, prompts, phrases, batch)
    return scores(prompts, phrases, found, protocol=protocol, seed=seed)


# ---- the other categories ------------------------------------------------------------------------


def clip_cosines(
    model,
    tokenizer,
    images: np.ndarray,
    prompts: Sequence[str],
    texts: dict[str, str] | None = None,
    *,
    seed: int | Sequence[int] = 0,
) -> pd.DataFrame:
    """The cosine of each image and its prompt by CLIP, the score of "non-spatial" prompts.

    In the category "complex" it is that of ``texts``, the prompts without adjectives
    (``noun_phrases.without_adjectives``). Neither scaled nor clipped, as in the benchmark.
    """
    said = per_image.look_up(texts, prompts, "text") if texts else list(prompts)
    cosines = clip_score.clip_scores(model, tokenizer, images, said) / 100
    reasons = [f"cosine with {text!r}" for text in said]
    return per_image.table(prompts, seed, cosines, reasons)


def complex_kinds(prompts: Sequence[str], folder: str | Path | None = None) -> list[str]:
    """What the "complex" prompts are about beside attributes: "spatial", "action" or "both"."""

    def key(prompt: str) -> str:
        return prompt.split(".")[0].lower()

    kinds = {
        key(line): kind
        for kind in ("action", "spatial")
        for line in lines(f"complex_val_{kind}.txt", folder)
    }
    return [kinds.get(key(prompt), "both") for prompt in prompts]


def three_in_one(
    kinds: Sequence[str], attribute: pd.DataFrame, spatial: pd.DataFrame, action: pd.DataFrame
) -> pd.DataFrame:
    """The score of "complex" prompts from three tables of the same images (§4; 3_in_1.py).

    The mean of BLIP-VQA and the spatial score for the kind "spatial", of BLIP-VQA and CLIP's cosine
    for "action", of all three for "both". Raises UserError unless all are of the same images.
    """
    parts = {"BLIP-VQA": attribute, "place": spatial, "CLIP": action}
    keys = [part[["prompt", "image"]].reset_index(drop=True) for part in parts.values()]
    if not (keys[0].equals(keys[1]) and keys[0].equals(keys[2]) and len(kinds) == len(keys[0])):
        raise UserError("The three scores are not of the same images: evaluate the same samples.")
    counted = {"spatial": ("BLIP-VQA", "place"), "action": ("BLIP-VQA", "CLIP"), "both": (*parts,)}
    values = [{n: parts[n].score.iloc[i] for n in counted[k]} for i, k in enumerate(kinds)]
    means = [sum(v.values()) / len(v) for v in values]
    reasons = ["; ".join(f"{name} {x:.2f}" for name, x in v.items()) for v in values]
    return per_image.table(attribute.prompt, attribute.seed, means, reasons)
