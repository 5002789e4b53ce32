"""What captions state where the facts of a picture are known: stated, right, wrong, left out.

A text is read as the world's language is written: objects with the attributes said of them, a
background, a printed word in quotes. A value counts for the object whose shape it is said of, not
anywhere: "a red circle and a blue star" states nothing right about a blue circle. What stands
there but is said of no object is counted as wrong, never left out.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from dalle3lib import UserError, stats
from dalle3lib.captions import by_kind
from dalle3lib.images import Record
from dalle3lib.world.language import NOTES
from dalle3lib.world.scene import BACKGROUNDS, COLOURS, SHAPES, SIZES, TEXTURES, Scene

ATTRIBUTES = ("shape", "colour", "texture", "size", "place", "background", "printed word")
LOOSE = "said of nothing"  # values that a text names without an object they could belong to
FILE_NAME = re.compile(r"\.(?:jpe?g|png|gif|webp)$", re.IGNORECASE)
QUOTED = re.compile(r'"([^"]*)("|$)')
NUMBERS = {"two": 2, "three": 3}
WORDS_OF = {"colour": COLOURS, "texture": TEXTURES, "size": SIZES}
# What places two objects, or two of a kind, have by the words between or behind them.
BETWEEN = {
    "to the left of": ("left", "right"),
    "to the right of": ("right", "left"),
    "above": ("top", "bottom"),
    "below": ("bottom", "top"),
}
TWO_OF_A_KIND = {f"one {words} the other": places for words, places in BETWEEN.items()} | {
    "side by side": ("left", "right")
}


# --- reading a text ------------------------------------------------------------------------------


class Statement(NamedTuple):
    """One value that a text states, and where in the text it does: [start, end)."""

    attribute: str
    value: str
    start: int
    end: int


class Said(NamedTuple):
    """What a text states: about each object, about the scene, and about nothing that it names."""

    objects: list[list[Statement]]
    scene: list[Statement]
    loose: list[Statement]


def _any(values) -> str:
    """A pattern of any of the values, the longest first; any white space between words."""
    longest = sorted(values, key=len, reverse=True)
    return "(?:" + "|".join(value.replace(" ", r"\s+") for value in longest) + ")"


@cache
def _patterns() -> dict[str, re.Pattern]:
    """How an object is written, how a value of an attribute, and the notes on printed words."""
    adjective = _any([word for words in WORDS_OF.values() for word in words])
    places = [f"{row} {side}" for row in ("top", "bottom") for side in ("left", "right")]
    place = _any([*places, "left", "right", "top", "bottom", "centre"])
    noun = rf"(?:{adjective}\s+)*{_any(SHAPES)}(?:e?s)?\b"
    one = rf"(?:(?:an?|the)\s+)?(?:{_any(NUMBERS)}\s+)?{noun}"
    thing = (
        rf"\b(?:(?P<number>{_any(NUMBERS)})\s+)?(?P<before>(?:{adjective}\s+)*)"
        rf"(?P<shape>{_any(SHAPES)})(?:e?s)?\b"
        rf"(?P<after>(?:\s+in\s+{_any(COLOURS)}\b|\s+with\s+an?\s+{_any(TEXTURES)}\s+texture\b"
        rf"|\s+which\s+(?:is|are)\s+{adjective}\b(?:(?:,\s*|\s+)(?:and\s+)?{adjective}\b)*)*)"
        rf"(?:\s+(?:(?:at|in|on)\s+(?:the\s+)?)?(?P<place>{place})\b(?!\s+of\b)"
        rf"|\s+(?P<pair>{_any(TWO_OF_A_KIND)})\b|\s+(?P<between>{_any(BETWEEN)})(?=\s+{one}))?"
    )
    values = {name: _any(words) for name, words in WORDS_OF.items()}
    values |= {"place": rf"(?:{place}|above|below|side\s+by\s+side)"}
    value = "|".join(rf"(?P<{name}>{words})" for name, words in values.items())
    notes = {part.strip(" .") for note in NOTES for part in note.split('"{}"')} - {""}
    background = _any(BACKGROUNDS)
    patterns = {"thing": thing, "value": rf"\b(?:{value})\b", "background": rf"\b{background}\b"}
    return {k: re.compile(p) for k, p in (patterns | {"note": _any(notes)}).items()}


def parse(text: str) -> Said:
    """What a text states, in the order in which it does; a text of any other kind states nothing.

    Upper and lower case and the underscores of file names make no difference. "Two" of something
    are two objects that are alike. Objects that stand "to the left of", "above" … one another have
    the places that follow.
    """
    plain = "".join(low if len(low := c.lower()) == 1 else c for c in text).replace("_", " ")
    words = [Statement("printed word", m[1], m.start(1), m.end(1)) for m in QUOTED.finditer(plain)]
    plain = QUOTED.sub(_blank, plain)
    patterns = _patterns()
    found = list(patterns["thing"].finditer(plain))
    rest = patterns["note"].sub(_blank, patterns["thing"].sub(_blank, plain))
    behind = [
        Statement("background", m[0], *m.span()) for m in patterns["background"].finditer(rest)
    ]
    scene = [*_once(behind), *_once(words)]
    return Said(_objects(found), scene, _values(rest, 0, len(rest)))


def _blank(match: re.Match) -> str:
    """As many spaces as the match has characters, so that positions stay as they are."""
    return " " * len(match[0])


def _once(statements: list[Statement]) -> list[Statement]:
    """The statements without those that only repeat an earlier one."""
    first = {(s.attribute, s.value): s for s in reversed(statements)}
    return sorted(first.values(), key=lambda s: s.start)


def _values(text: str, start: int, end: int) -> list[Statement]:
    """The values of attributes named between two positions of a text, each as a statement."""
    found = _patterns()["value"].finditer(text, start, end)
    return [Statement(m.lastgroup, " ".join(m[0].split()), *m.span()) for m in found]


def _objects(found: list[re.Match]) -> list[list[Statement]]:
    """The statements about each object, from the matches of ``thing`` in a text."""
    objects, brought = [], []
    for match in found:
        spans = [match.span(part) for part in ("before", "after")]
        said = [value for span in spans for value in _values(match.string, *span)]
        said += [Statement("shape", match["shape"], *match.span("shape")), *brought]
        brought, copies = [], [said] * (NUMBERS[match["number"]] - 1 if match["number"] else 0)
        if match["place"]:
            said.append(_placed(match, "place", match["place"]))
        elif match["between"]:
            first, second = BETWEEN[" ".join(match["between"].split())]
            said.append(_placed(match, "between", first))
            brought = [_placed(match, "between", second)]
        at = match.span("number")  # an object too many is a false number, not a false attribute
        again = [[Statement(s.attribute, s.value, *at) for s in copy] for copy in copies]
        if match["pair"]:
            first, second = TWO_OF_A_KIND[" ".join(match["pair"].split())]
            said.append(_placed(match, "pair", first))
            for copy in again[:1]:
                copy.append(_placed(match, "pair", second))
        objects += [_once(said), *map(_once, again)]
    return objects


def _placed(match: re.Match, group: str, place: str) -> Statement:
    """The statement of a place by what stands in a group of the match."""
    return Statement("place", " ".join(place.split()), *match.span(group))


# --- marking a text ------------------------------------------------------------------------------


class Marks(NamedTuple):
    """A caption held against the facts; the counts are by attribute.

    ``stated``: facts that it states; ``right``: those of them that are true; ``told``: facts of
    the picture that it states; ``held``: all facts of the picture; ``false``: what is not true.
    """

    stated: Counter
    right: Counter
    told: Counter
    held: Counter
    false: list[Statement]


def mark(text: str, facts: dict) -> Marks:
    """What of a text is true of a picture, and what of the picture it tells.

    ``facts`` has "background", "objects" (each with attributes) and "word" (printed in the
    picture, or None). The objects of text and picture are paired so that most statements are true
    (among equals, most shapes); what is said of an object that the picture has no partner for is
    false.
    """
    said, things = parse(text), facts["objects"]
    true = {"background": facts["background"], "printed word": facts["word"]}
    held = Counter(attribute for thing in things for attribute in thing)
    held += Counter(attribute for attribute, value in true.items() if value is not None)
    right = [s for s in said.scene if s.value == true[s.attribute]]
    told = Counter(s.attribute for s in right)
    for said_of, thing in pairs(said.objects, things):
        fitting = [s for s in said_of if fits(s, thing)]
        right += fitting
        told += Counter({s.attribute for s in fitting})
    stated = [*said.scene, *(s for statements in said.objects for s in statements)]
    false = list((Counter(stated) - Counter(right)).elements())
    counts = Counter(s.attribute for s in stated) + Counter({LOOSE: len(said.loose)})
    rights = Counter(s.attribute for s in right)
    return Marks(counts, rights, told, held, sorted([*false, *said.loose], key=lambda s: s.start))


def fits(statement: Statement, thing: dict) -> bool:
    """Whether a statement is true of an object; "left" is true of one at the top left."""
    value = thing.get(statement.attribute, "")
    if statement.attribute == "place":
        return set(statement.value.split()) <= set(value.split())
    return statement.value == value


def pairs(objects: list[list[Statement]], things: list[dict]) -> list[tuple]:
    """Which stated object is which true one: most true statements, then most shapes."""
    if not objects or not things:
        return []
    right = [[[s.attribute for s in said if fits(s, t)] for t in things] for said in objects]
    score = np.array([[100 * len(found) + ("shape" in found) for found in row] for row in right])
    rows, columns = linear_sum_assignment(score, maximize=True)
    return [(objects[i], things[j]) for i, j in zip(rows, columns, strict=True)]


def stated(text: str, facts: dict) -> dict[str, float]:
    """Which share of a picture's facts a text states rightly, by attribute: 0 to 1."""
    marks = mark(text, facts)
    return {attribute: marks.told[attribute] / n for attribute, n in marks.held.items()}


def names_subject(text: str, facts: dict) -> bool:
    """Whether a text names the main subject of a picture with its own shape and colour."""
    main = Scene.from_facts(facts).main()
    wanted = {("shape", main.shape), ("colour", main.colour)}
    return any(wanted <= {s[:2] for s in said} for said in parse(text).objects)


def subject_only(facts: dict) -> dict:
    """The facts without all objects but the main subject: what a short caption should state."""
    spec = Scene.from_facts(facts)
    return replace(spec, objects=(spec.main(),)).facts()


# --- many captions -------------------------------------------------------------------------------


def tally(texts: Sequence[str], facts: Sequence[dict]) -> pd.DataFrame:
    """``mark`` of many captions as numbers: a row per caption, columns (count, attribute).

    The counts are "stated", "right", "told" and "held"; the attributes are ``ATTRIBUTES`` and
    ``LOOSE``.
    """
    names = [(count, a) for count in Marks._fields[:4] for a in (*ATTRIBUTES, LOOSE)]
    marked = [mark(text, f) for text, f in zip(texts, facts, strict=True)]
    rows = [[getattr(m, count)[attribute] for count, attribute in names] for m in marked]
    return pd.DataFrame(rows, columns=pd.MultiIndex.from_tuples(names))


def rates(table: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """Recall and precision of captions with intervals, from ``tally``: a row per attribute.

    Recall is the share of the pictures' facts that are told, precision the share of the stated
    facts that are right, each with its 95 % interval over captions ("recall low" …); NaN where
    there is nothing to divide by. "all" counts every attribute, and ``LOOSE`` as stated.
    """
    counts = {}
    for name in Marks._fields[:4]:
        counts[name] = table[name].reindex(columns=ATTRIBUTES)
        counts[name]["all"] = table[name].sum(axis=1)
    found = {"stated": counts["stated"].mean(), "right": counts["right"].mean()}
    for name, part, whole in (("recall", "told", "held"), ("precision", "right", "stated")):
        parts, wholes = counts[part], counts[whole]
        found[name] = parts.sum() / wholes.sum().replace(0, np.nan)
        low, high = stats.ratio_interval(parts, wholes, random)
        found |= {f"{name} low": low, f"{name} high": high}
    return pd.DataFrame(found)


def coverage(records: Sequence[Record]) -> pd.DataFrame:
    """The mean share of facts that captions state: attributes as rows, caption kinds as columns.

    Raises UserError if a record has no facts.
    """
    if not all(record.facts for record in records):
        raise UserError("what captions state can only be counted where records hold facts.")
    table = {}
    for kind, texts in by_kind(records).items():
        found = [stated(text, r.facts) for text, r in zip(texts, records, strict=True)]
        table[kind] = pd.DataFrame(found).mean()
    return pd.DataFrame(table)


def faults(records: Sequence[Record]) -> pd.DataFrame:
    """What is wrong with the alt-text of each record: one row per record.

    Columns: ``alt-text``; ``is a file name``; and, if all records hold facts, ``facts stated``
    (share of the picture's facts, 0 to 1), ``says nothing`` (names no value of any attribute,
    true or wrong) and ``names what is not there``.
    """
    table = pd.DataFrame({"alt-text": [record.alt for record in records]})
    table["is a file name"] = table["alt-text"].str.contains(FILE_NAME)
    if all(record.facts for record in records):
        marks = [mark(record.alt, record.facts) for record in records]
        table["facts stated"] = [m.told.total() / m.held.total() for m in marks]
        table["says nothing"] = [not m.stated.total() for m in marks]
        table["names what is not there"] = [bool(m.false) for m in marks]
    return table
