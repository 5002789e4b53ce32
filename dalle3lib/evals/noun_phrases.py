"""Noun phrases of prompts: what T2I-CompBench asks a picture about (Huang et al. 2023, §4).

They come from spaCy, as in the benchmark, from a file, or, for the world's prompts, from the
world's own grammar. spaCy is an optional extra: its phrases depend on the version of its English
model, so that who compares with other people's numbers does well to keep them in a file.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from dalle3lib import UserError
from dalle3lib.world.questions import NUMBERS
from dalle3lib.world.scene import COLOURS, SHAPES, SIZES, TEXTURES

MODEL = "en_core_web_sm"
WORLD_PHRASE = re.compile(
    rf"\b(?:an?|{'|'.join(NUMBERS[1:])}) (?:(?:{'|'.join(SIZES + TEXTURES + COLOURS)}) )*"
    rf"(?:{'|'.join(SHAPES)})(?:e?s)?\b"
)
# What stands between two objects of a sentence of the category "complex".
PREPOSITIONS = (
    "on top of", "on bottom of", "on the left", "on the right", "next to", "on side of", "near",
)  # fmt: skip


def language_model(name: str = MODEL):
    """spaCy's English model. Raises UserError if spaCy or the model is not installed."""
    try:
        import spacy
    except ImportError:
        raise UserError(
            "Noun phrases need spaCy, which is not installed: pip install 'dalle3lib[compbench]', "
            "or give the phrases in a file (noun_phrases.from_file)."
        ) from None
    try:
        return spacy.load(name)
    except OSError:
        raise UserError(
            f"spaCy's model {name} is not installed: python -m spacy download {name}, or give the "
            "phrases in a file (noun_phrases.from_file)."
        ) from None


def from_spacy(prompts: Sequence[str]) -> dict[str, list[str]]:
    """The noun chunks of each prompt, in their order, by spaCy's English model."""
    read = language_model()
    return {p: [chunk.text for chunk in read(p).noun_chunks] for p in dict.fromkeys(prompts)}


def from_file(path: str | Path) -> dict[str, list[str]]:
    """The phrases of each prompt of a file: JSON {prompt: [phrase, ...]}, or a text file.

    A line of the text file is a prompt and its phrases, separated by tabs. Raises UserError for
    a file that is missing or built otherwise.
    """
    path = Path(path).expanduser()
    try:
        content = path.read_text("utf-8")
        if path.suffix == ".json":
            phrases = json.loads(content)
        else:
            lines = [line.split("\t") for line in content.splitlines() if line.strip()]
            phrases = {prompt: found for prompt, *found in lines}
        if not all(isinstance(p, str) for found in phrases.values() for p in [*found]):
            raise ValueError("a phrase is no text")
        if any(isinstance(found, str) for found in phrases.values()):
            raise ValueError("phrases do not stand in a list")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(
            f"The noun phrases of {path} cannot be read ({error}): write JSON of prompt: "
            "[phrases], or lines of a prompt and its phrases with tabs between them."
        ) from error
    return phrases


def of_world(prompts: Sequence[str]) -> dict[str, list[str]]:
    """The noun phrases of the world's prompts, exactly, such as "a red circle"."""
    return {prompt: WORLD_PHRASE.findall(prompt) for prompt in prompts}


# ---- other parts of speech -----------------------------------------------------------------------


def without_adjectives(prompts: Sequence[str]) -> dict[str, str]:
    """Each prompt without its adjectives, its tokens with spaces between them, by spaCy.

    T2I-CompBench compares complex prompts with pictures in this form (CLIP_similarity.py).
    """
    read = language_model()
    return {p: " ".join(t.text for t in read(p) if t.pos_ != "ADJ") for p in dict.fromkeys(prompts)}


def objects(prompts: Sequence[str], sentences: bool = False) -> dict[str, tuple[str, str] | None]:
    """The two objects whose places each prompt relates, by spaCy; None where they are not found.

    They are the first and the last noun; in ``sentences``, those of the category "complex", the
    nouns nearest to the preposition (``around``).
    """
    read, found = language_model(), {}
    for prompt in dict.fromkeys(prompts):
        tokens = list(read(prompt))
        words, tags = [t.text for t in tokens], [t.pos_ for t in tokens]
        nouns = [word for word, tag in zip(words, tags, strict=True) if tag == "NOUN"]
        ends = (nouns[0], nouns[-1]) if nouns else None
        found[prompt] = around(words, tags) if sentences else ends
    return found


def around(words: Sequence[str], tags: Sequence[str]) -> tuple[str, str] | None:
    """The nouns nearest to the preposition of a tokenised sentence, before it and after it.

    A proper noun counts before it, and after it where there is no other and one more word follows.
    None unless exactly two are found, so of a sentence with two prepositions (2D_spatial_eval.py).
    """
    found = []
    for i in range(len(words)):
        length = next((k for k in (3, 2, 1) if " ".join(words[i : i + k]) in PREPOSITIONS), None)
        if length is None:
            continue
        before = [words[j] for j in range(i) if tags[j] in ("NOUN", "PROPN")]
        behind = range(i + length, len(words))
        nouns = [words[j] for j in behind if tags[j] == "NOUN"]
        names = [words[j] for j in behind[:-1] if tags[j] == "PROPN" != tags[j + 1]]
        found += before[-1:] + (nouns or names)[:1]
    return tuple(found) if len(found) == 2 else None
