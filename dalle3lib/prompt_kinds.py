"""What arms are asked: the kinds of prompt that belong to the same images.

Figure 4 of the paper has two, original and descriptive captions. Short prompts, what an upsampler
makes of them (paper §3.5), and descriptive ones in sentences that no training caption has are
further kinds that a run may ask for.
"""

from collections.abc import Sequence

from dalle3lib import UserError, upsampler
from dalle3lib.config import nearest
from dalle3lib.images import Record
from dalle3lib.randomness import rng
from dalle3lib.recaption import synthetic_captions
from dalle3lib.world.language import reworded_caption
from dalle3lib.world.scene import Scene

FIGURE_4 = ("original", "descriptive")
KINDS = (*FIGURE_4, "short", "upsampled", "reworded")


def prompts(records: list[Record], kinds: Sequence[str] = FIGURE_4) -> dict[str, list[str]]:
    """Prompts of the images, by kind: those of Figure 4 are original captions and descriptive ones.

    A descriptive prompt is the record's own descriptive caption where it holds one (the world's is
    human), otherwise what the shipped DSC captioner writes, as in the paper. Further ``kinds`` are
    "short" (the record's own short caption), "upsampled": what the shipped upsampler makes of
    that (paper §3.5), or of the original caption where there is no short one, and "reworded"
    (``reworded``). Raises UserError for another kind, and for short or reworded prompts of records
    that have none.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"There are no {unknown[0]} prompts{nearest(unknown[0], KINDS)}")
    with_short = all(r.short for r in records)
    if "short" in kinds and not with_short:
        raise UserError(
            "These images have no short captions, so nothing can be asked with short prompts: take "
            "original ones, which photographs have."
        )
    original = [r.alt for r in records]
    short = [r.short for r in records] if with_short else original
    make = {
        "original": lambda: original,
        "descriptive": lambda: descriptive(records),
        "short": lambda: short,
        "upsampled": lambda: upsampler.write(*upsampler.load(), short, seed=0),
        "reworded": lambda: reworded(records),
    }
    return {kind: make[kind]() for kind in kinds}


def descriptive(records: list[Record]) -> list[str]:
    """The records' descriptive captions, or, unless all have one, the shipped DSC captioner's."""
    if all(r.descriptive for r in records):
        return [r.descriptive for r in records]
    return synthetic_captions(records, "dsc")


def reworded(records: list[Record]) -> list[str]:
    """The facts of each of the world's records in sentences held out of all training captions.

    For a record of the test split it is the prompt of the same number in the probe set
    "phrasings". Raises UserError for records without facts.
    """
    if not all(r.facts for r in records):
        raise UserError(
            "Only the world's images can be described in held-out sentences: take other kinds of "
            "prompt for photographs."
        )
    streams = [rng(0, "probe/phrasings", int(r.key.rsplit("-", 1)[1])) for r in records]
    pairs = zip(records, streams, strict=True)
    return [reworded_caption(Scene.from_facts(r.facts), random) for r, random in pairs]
