"""What becomes of a prompt's facts: in a longer text made from it, and in a picture drawn from it.

Both are held against the facts that the *prompt* states, as the paper judges upsampled prompts
(§4.1.2: the judge sees the original prompt). A fact is kept, contradicted or left out; what a text
states beyond the prompt is invented.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pandas as pd

from dalle3lib import stats
from dalle3lib.caption_facts import ATTRIBUTES, fits, pairs, parse
from dalle3lib.captions import looping
from dalle3lib.world.wording import words_of

FATES = ("kept", "contradicted", "left out")
NONE = "none"  # the value of an attribute of the scene that a text does not state


def facts_of(text: str) -> dict:
    """What a text states, in the form of a scene's facts; what it leaves open is missing or None.

    Where it states two values of the same thing, the first counts.
    """
    said = parse(text)
    scene = {s.attribute: s.value for s in reversed(said.scene)}
    objects = [{s.attribute: s.value for s in reversed(one)} for one in said.objects]
    return {
        "background": scene.get("background"),
        "objects": objects,
        "word": scene.get("printed word"),
    }


# ---- the facts of the prompt ---------------------------------------------------------------------


def fates(prompt: str, facts: dict) -> Counter:
    """What became of each fact of a prompt: how often each (attribute, fate) of ``FATES``.

    ``facts`` are those of a longer text (``facts_of``) or of a picture (``reader.read``). The
    prompt's objects are paired with theirs so that most is kept. A fact is contradicted where its
    object has another value of that attribute, and left out where it has none or is missing.
    """
    said = parse(prompt)
    scene = {"background": facts["background"], "printed word": facts["word"]}
    partners = {id(one): thing for one, thing in pairs(said.objects, facts["objects"])}
    told = [(s, scene) for s in said.scene]
    told += [(s, partners.get(id(one), {})) for one in said.objects for s in one]
    return Counter((s.attribute, _fate(s, thing)) for s, thing in told)


def _fate(statement, thing: dict) -> str:
    if not thing.get(statement.attribute):
        return "left out"
    return "kept" if fits(statement, thing) else "contradicted"


def whole(prompt: str, facts: dict) -> float:
    """The share of a prompt's objects that are there with everything said of them; NaN of none."""
    said = parse(prompt).objects
    found = pairs(said, facts["objects"])
    right = [all(fits(s, thing) for s in one) for one, thing in found]
    return sum(right) / len(said) if said else np.nan


def agree(prompt: str, text: str) -> bool:
    """Whether a text keeps every fact of a prompt and shows nothing of it more often."""
    facts = facts_of(text)
    found = {fate for _, fate in fates(prompt, facts)}
    return found == {"kept"} and not repeats(prompt, facts)


def repeats(prompt: str, facts: dict) -> bool:
    """Whether an object of the prompt is there more often than the prompt says."""
    said = parse(prompt).objects
    for one in said:
        fitting = [thing for thing in facts["objects"] if all(fits(s, thing) for s in one)]
        alike = [other for other in said if {s[:2] for s in one} <= {s[:2] for s in other}]
        if len(fitting) > len(alike):
            return True
    return False


def table(prompts: Sequence[str], facts: Sequence[dict]) -> pd.DataFrame:
    """``fates`` of many prompts as counts: a row each, columns (fate, attribute)."""
    found = [fates(*pair) for pair in zip(prompts, facts, strict=True)]
    columns = pd.MultiIndex.from_product([FATES, ATTRIBUTES])
    rows = [[one[attribute, fate] for fate, attribute in columns] for one in found]
    return pd.DataFrame(rows, columns=columns)


def shares(counts: pd.DataFrame, random: np.random.Generator) -> pd.DataFrame:
    """The share of facts with each fate and its 95 % interval over prompts: a row an attribute.

    ``counts`` come from ``table``; columns "kept", "kept low", "kept high" … and "facts", how many
    there are. "all" counts every attribute; what no prompt states has NaN.
    """
    by_fate = {fate: counts[fate].assign(all=counts[fate].sum(axis=1)) for fate in FATES}
    total = sum(by_fate.values())
    found = {"facts": total.sum()}
    for fate, part in by_fate.items():
        low, high = stats.ratio_interval(part, total, random)
        found[fate] = part.sum() / found["facts"].replace(0, np.nan)
        found |= {f"{fate} low": low, f"{fate} high": high}
    return pd.DataFrame(found)


def stated(sets: dict[str, Sequence[str]]) -> pd.DataFrame:
    """How much texts state: words, objects and facts of each attribute, as means over each set."""
    rows = {}
    for name, texts in sets.items():
        said = [parse(text) for text in texts]
        found = Counter(
            s.attribute for one in said for part in [one.scene, *one.objects] for s in part
        )
        row = {"words": np.mean([len(text.split()) for text in texts])}
        row["objects"] = np.mean([len(one.objects) for one in said])
        rows[name] = row | {attribute: found[attribute] / len(texts) for attribute in ATTRIBUTES}
    return pd.DataFrame(rows).T


# ---- what a longer text adds ---------------------------------------------------------------------


def invented(prompt: str, text: str) -> Counter:
    """What a text states beyond its prompt: how often each (attribute, value).

    Values that contradict the prompt are no inventions. Three attributes have a value in every
    text: the number of "objects", and, unless the prompt states them, the "background" or ``NONE``
    and a "printed word" ("some" or ``NONE``).
    """
    return added(prompt, facts_of(text))


def added(prompt: str, facts: dict) -> Counter:
    """``invented`` of a text or a picture whose facts are known."""
    said = parse(prompt)
    partners = {id(thing): one for one, thing in pairs(said.objects, facts["objects"])}
    found = Counter({("objects", str(len(facts["objects"]))): 1})
    if not any(s.attribute == "background" for s in said.scene):
        found["background", facts["background"] or NONE] = 1
    if not any(s.attribute == "printed word" for s in said.scene):
        found["printed word", "some" if facts["word"] else NONE] = 1
    for thing in facts["objects"]:
        told = {s.attribute for s in partners.get(id(thing), [])}
        found.update((name, value) for name, value in thing.items() if name not in told)
    return found


def distribution(prompts: Sequence[str], texts: Sequence[str]) -> pd.Series:
    """How often texts invent each value, as a share of its attribute: by (attribute, value)."""
    total = sum((invented(*pair) for pair in zip(prompts, texts, strict=True)), Counter())
    counts = pd.Series(total).sort_index()
    return counts / counts.groupby(level=0).transform("sum")


def distance(a: pd.Series, b: pd.Series) -> pd.Series:
    """Total variation of two results of ``distribution`` by attribute: 0 if alike, at most 1."""
    gap = a.sub(b, fill_value=0).abs()
    return gap.groupby(level=0).sum() / 2


def like(texts: Sequence[str], examples: Sequence[str]) -> dict[str, float]:
    """How far texts look like the examples: shares, 0 to 1.

    ``words known``: no word that occurs in no example; ``length known``: as many words as some
    example; ``read whole``: it names an object, nothing said of no object, no circle; ``all``.
    """
    known = {word for example in examples for word in words_of(example)}
    lengths = {len(example.split()) for example in examples}
    said = [parse(text) for text in texts]
    checks = pd.DataFrame(
        {
            "words known": [known.issuperset(words_of(text)) for text in texts],
            "length known": [len(text.split()) in lengths for text in texts],
            "read whole": [
                bool(one.objects) and not one.loose and not looping(text)
                for one, text in zip(said, texts, strict=True)
            ],
        }
    )
    return checks.assign(all=checks.all(axis=1)).mean().to_dict()


def inventions(
    prompts: Sequence[str], texts: Sequence[str], ssc: Sequence[str], dsc: Sequence[str]
):
    """How often texts and training captions invent each value, and how far apart they are.

    ``ssc`` and ``dsc`` are the two captions of training pictures, more of them than of the texts.
    Returns (table of shares by (attribute, value), table of distances by attribute): "upsampled" is
    the texts', "chance" that of as many training captions from the others.
    """
    n = len(texts)
    training = distribution(ssc[n:], dsc[n:])
    made_up = distribution(prompts, texts)
    far = {"upsampled": distance(made_up, training)}
    far["chance"] = distance(distribution(ssc[:n], dsc[:n]), training)
    both = pd.DataFrame({"upsampled": made_up, "training captions": training}).fillna(0)
    return both, pd.DataFrame(far)
