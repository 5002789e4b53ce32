"""The words of a prompt: which things they name, what to ask a judge, which nobody here knows."""

import difflib
import re
from collections.abc import Sequence
from functools import cache

from dalle3lib.caption_facts import parse
from dalle3lib.randomness import rng
from dalle3lib.world.language import (
    INVERSE,
    alt_text,
    article,
    descriptive_caption,
    short_caption,
)
from dalle3lib.world.scene import (
    BACKGROUNDS,
    COLOURS,
    HELD_OUT_PAIRS,
    SHAPES,
    SIZES,
    TEXTURES,
    WORDS,
    scene,
)


def _unquoted(prompt: str) -> str:
    """A text in lower case, without what stands in quotes: that is to be printed."""
    return re.sub(r'"[^"]*"', " ", prompt.lower())


def words_of(prompt: str) -> list[str]:
    """The words of a text in lower case, without those in quotes."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", _unquoted(prompt))


@cache
def known_words() -> frozenset[str]:
    """Every word in three kinds of caption of two thousand training scenes.

    The alt-text is taken without noise: adverts and unrelated lines are no words for pictures.
    """
    words: set[str] = set()
    for index in range(2000):
        spec, random = scene("train", index), rng(0, "playground/words", index)
        for caption in (short_caption, descriptive_caption):
            words.update(words_of(caption(spec, random)))
        words.update(words_of(alt_text(spec, 0.0, random)))
    return frozenset(words)


def coloured_shapes(prompt: str) -> list[tuple[str, str]]:
    """The (colour, shape) pairs that a prompt names, in its order, each once.

    A colour counts for the shape that it is said of, as ``caption_facts.parse`` reads it.
    """
    pairs = []
    for said in parse(prompt).objects:
        named = {s.attribute: s.value for s in reversed(said)}
        if "colour" in named:
            pairs.append((named["colour"], named["shape"]))
    return list(dict.fromkeys(pairs))


def questions_about(prompt: str) -> list[str]:
    """What to ask the judge about a picture of this prompt; each "is …?" hopes for a yes.

    Coloured shapes, how two of them are placed, and the background; then how many objects there
    are and which word is printed, where the prompt speaks of such things.
    """
    things, plain = coloured_shapes(prompt), _unquoted(prompt)
    asked = [f"is there {article(colour)} {shape}?" for colour, shape in things]
    if len(things) == 2 and things[0][1] != things[1][1]:
        (_, first), (_, second) = things
        for relation in (*INVERSE, *INVERSE.values()):
            if re.search(rf"\b{relation} (an?|the) ", plain):
                asked.append(f"is the {first} {relation} the {second}?")
    behind = [s.value for s in parse(prompt).scene if s.attribute == "background"]
    asked += [f"is the background {name}?" for name in behind]
    asked += ["how many objects are there?"] * bool(things)
    asked += ["which word is printed?"] * ('"' in prompt)
    return asked


def hint(prompt: str) -> str:
    """What a prompt asks for that nobody in this world has seen, in kind sentences; "" if nothing.

    It names unknown words (with the nearest known one), words that could be printed if they
    stood in quotes, more objects than any training picture holds, and coloured shapes that none
    of them shows.
    """
    notes = []
    strange = [word for word in dict.fromkeys(words_of(prompt)) if word not in known_words()]
    if strange:
        words = listed([f'"{word}"' for word in strange], "or")
        kinds = (SHAPES, COLOURS, TEXTURES, SIZES, BACKGROUNDS)
        known = "; ".join(", ".join(kind) for kind in kinds)
        notes.append(f"The world knows no {words}; it knows {known}.")
        values = [value for kind in kinds for value in kind]
        near = {word: difflib.get_close_matches(word, values, 1, 0.75) for word in strange}
        notes += [f'Did you mean "{close[0]}"?' for close in near.values() if close]
    printable = [f'"{word}"' for word in strange if word in WORDS and len(word) > 2]
    if printable:
        notes.append(f"In quotes, {listed(printable)} would be printed in the picture.")
    pairs = coloured_shapes(prompt)
    if len(pairs) > 2:
        notes.append("No training picture shows more than two objects.")
    unseen = [article(" ".join(pair)) for pair in pairs if pair in HELD_OUT_PAIRS]
    if unseen:
        notes.append(f"No training picture shows {listed(unseen, 'or')}: the arm must combine.")
    return " ".join(notes)


def listed(items: Sequence[str], last: str = "and") -> str:
    """Items as people list them: "a", "a and b", "a, b and c"."""
    return f" {last} ".join(filter(None, [", ".join(items[:-1]), *items[-1:]]))
