"""How far the three instruments can be trusted: reader, judge and CLIP scorer on known scenes.

All three are asked the same true and false statements about rendered scenes, as they are and
degraded, so that their errors can be compared. On generated samples, where nobody knows the truth,
only their agreement can be measured.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest

from dalle3lib import quality
from dalle3lib.evals import clip_score, vqa
from dalle3lib.images import to_uint8
from dalle3lib.randomness import rng
from dalle3lib.world import reader
from dalle3lib.world.canvas import SQUARE
from dalle3lib.world.language import RELATION, article, descriptive_caption
from dalle3lib.world.questions import NUMBERS, VALUES
from dalle3lib.world.render import render
from dalle3lib.world.scene import BACKGROUNDS, WORDS, Scene

# How the judge is asked: in words that it was trained on. It answers yes or no; places and counts
# it was never asked in that way, so there it answers openly and must say what the claim says.
QUESTIONS = {
    "colour-shape": "is there {} {}?",
    "texture-shape": "is there {} {}?",
    "size-shape": "is there {} {}?",
    "relation": "is the {} {} the {}?",
    "place": "where is the {}?",
    "count": "how many objects are there?",
    "background": "is the background {}?",
    "word": "is the word {} printed?",
}
OPEN = ("place", "count")  # the claim's last part is the answer
BLUR, GRAIN = 1.2, 25.0  # standard deviations: of the blur in pixels, of the noise in 255ths


@dataclass(frozen=True)
class Statement:
    """One statement about picture number ``picture``, in the form that each instrument takes.

    The reader is checked for ``claim``, a tuple such as ("red", "circle"); the judge is asked
    ``question``; CLIP chooses between ``caption``, which agrees with the claim, and ``foil``,
    which differs from it in this fact. ``true`` is whether the claim holds in the scene.
    """

    picture: int
    kind: str
    claim: tuple[str, ...]
    question: str
    caption: str
    foil: str
    true: bool


def holds(kind: str, claim: tuple[str, ...], facts: dict) -> bool:
    """Whether a claim holds among the facts of a scene or of a reading (as ``Scene.facts``)."""
    things = facts["objects"]
    if kind in ("background", "word"):
        return claim == (facts[kind],)
    if kind == "count":
        return claim == (NUMBERS[len(things)],) if len(things) < len(NUMBERS) else False
    if kind == "relation":
        first, relation, second = claim
        axis = 0 if relation == RELATION["left", "right"] else 1
        at = {
            s: [SQUARE.centre[o["place"]][axis] for o in things if o["shape"] == s]
            for s in claim[::2]
        }
        return any(a < b for a in at[first] for b in at[second])
    names = ("shape", "place") if kind == "place" else kind.split("-")
    return claim in {tuple(o[name] for name in names) for o in things}


def alternatives(kind: str, spec: Scene) -> list[tuple[tuple, tuple, Scene]]:
    """Every way to change one fact of a kind: (claim that holds, claim that does not, new scene).

    Empty where a scene has no such fact, or none that could be changed without ambiguity.
    """
    things, found = spec.objects, []
    if kind == "background":
        found = [((spec.background,), (v,), replace(spec, background=v)) for v in BACKGROUNDS]
    elif kind == "word" and spec.word:
        alike = [w for w in WORDS if len(w) == len(spec.word)]
        found = [((spec.word,), (w,), replace(spec, word=w)) for w in alike]
    elif kind == "count":
        twins = tuple(replace(things[0], place=place) for place in ("left", "right"))
        other = twins if len(things) == 1 else things[:1]
        claims = ((NUMBERS[len(those)],) for those in (things, other))
        found = [(*claims, replace(spec, objects=other))]
    elif kind == "place" and len(things) == 1:
        places = ("centre", "left", "right") + (() if spec.word else ("top", "bottom"))
        for thing, place in ((things[0], place) for place in places):
            claims = (thing.shape, thing.place), (thing.shape, place)
            found.append((*claims, replace(spec, objects=(replace(thing, place=place),))))
    elif kind == "relation" and len(things) == 2:
        a, b = things
        claim = (a.shape, RELATION[a.place, b.place], b.shape)
        swapped = replace(b, place=a.place), replace(a, place=b.place)
        found = [(claim, claim[::-1], replace(spec, objects=swapped))]
    elif "-" in kind:
        names = kind.split("-")
        changed = names if kind == "colour-shape" else names[:1]  # a pair can fail in two ways
        for i, thing in enumerate(things):
            for other in (replace(thing, **{n: value}) for n in changed for value in VALUES[n]):
                claims = (tuple(getattr(o, n) for n in names) for o in (thing, other))
                objects = (*things[:i], other, *things[i + 1 :])
                found.append((*claims, replace(spec, objects=objects)))
    return [entry for entry in found if not holds(kind, entry[1], spec.facts())]


def change(kind: str, spec: Scene, number: int, seed: int = 0) -> tuple[tuple, tuple, Scene] | None:
    """One of the ``alternatives`` for picture ``number``, drawn at random; None if none exists."""
    found = alternatives(kind, spec)
    at = rng(seed, f"instruments/{kind}", number).integers(max(1, len(found)))
    return found[at] if found else None


def statements(scenes: Sequence[Scene], seed: int = 0) -> list[Statement]:
    """A true and a false statement, one after the other, for each scene and kind of fact.

    The false one holds in the scene with that one fact changed, and the captions of both scenes,
    written from the same random draws, are each other's foil. A kind of which a scene has no such
    fact (no word, one object and not two) is not asked of it: the counts in ``errors`` tell how
    many were.
    """
    asked = []
    for i, spec in enumerate(scenes):
        for kind, template in QUESTIONS.items():
            if (chosen := change(kind, spec, i, seed)) is None:
                continue
            right, wrong, other = chosen
            mine, foil = (
                descriptive_caption(s, rng(seed, "instruments/caption", i)) for s in (spec, other)
            )
            for claim, texts in ((right, (mine, foil)), (wrong, (foil, mine))):
                first = article(claim[0]) if "-" in kind else claim[0]
                question = template.format(first, *claim[1:])
                asked.append(Statement(i, kind, claim, question, *texts, claim is right))
    return asked


def partners(scenes: Sequence[Scene], seed: int = 0) -> list[Scene]:
    """The scenes that a morph mixes in: one object has another colour or another shape.

    It is the same change that the false statement of kind "colour-shape" names.
    """
    return [change("colour-shape", spec, i, seed)[2] for i, spec in enumerate(scenes)]


def degraded(scenes: Sequence[Scene], autoencoder, seed: int = 0) -> dict[str, np.ndarray]:
    """The scenes' pictures uint8 [N, 64, 64, 3], clean and in four ways degraded.

    "clean" is as rendered; "blurred" by a Gaussian of 1.2 pixels; "noised" with normal noise of
    standard deviation 25 of 255; "VAE-decoded" encoded to latents (their mean) and decoded;
    "morphed" the mean picture of the scene and its partner (``partners``), whose changed object
    is half one thing and half another.
    """
    clean, mixed = (
        np.stack([render(s) for s in some]) for some in (scenes, partners(scenes, seed))
    )
    blurred = gaussian_filter(clean.astype(np.float32), (0, BLUR, BLUR, 0))
    noise = rng(seed, "instruments/noise").standard_normal(clean.shape, dtype=np.float32)
    return {
        "clean": clean,
        "blurred": np.uint8(blurred.round()),
        "noised": np.uint8((clean + GRAIN * noise).round().clip(0, 255)),
        "VAE-decoded": to_uint8(quality.reconstruct(autoencoder, clean)),
        "morphed": np.uint8((clean.astype(np.uint16) + mixed + 1) // 2),
    }


def truth(asked: Sequence[Statement], *facts: Sequence[dict]) -> np.ndarray:
    """Which statements hold: bool [n]. ``facts`` are one list, or several, of facts by picture.

    With several lists a statement is true only if it holds in all of them. So of a morph, which
    mixes two scenes, neither's colour and shape is true of the object that is half of each: who
    claims one of them claims what is not clearly there. What both scenes share stays true.
    """
    return np.array([all(holds(s.kind, s.claim, f[s.picture]) for f in facts) for s in asked], bool)


def reader_answers(asked: Sequence[Statement], images: np.ndarray) -> np.ndarray:
    """Which claims the rule-based reader finds among the facts it reads: bool [n]."""
    return truth(asked, reader.read(images))


def judge_answers(asked: Sequence[Statement], images: np.ndarray, model, processor) -> np.ndarray:
    """Which claims the judge makes: bool [n].

    A yes/no question counts as claimed if p(yes) is at least one half; a question of a kind in
    ``OPEN`` if the answer is what the claim says.
    """
    questions, of = [s.question for s in asked], [s.picture for s in asked]
    claimed = vqa.p_yes(model, processor, images, questions, of=of) >= 0.5
    rows = [i for i, s in enumerate(asked) if s.kind in OPEN]
    said = vqa.answer(
        model, processor, images, [questions[i] for i in rows], of=[of[i] for i in rows]
    )
    claimed[rows] = [a == asked[i].claim[-1] for a, i in zip(said, rows, strict=True)]
    return claimed


def clip_answers(asked: Sequence[Statement], images: np.ndarray, model, tokenizer) -> np.ndarray:
    """Which statements' captions CLIP prefers to their foils: bool [n].

    A cosine has no natural "yes", so CLIP has an easier task than the others: it is told that one
    of two captions is right. Of a true statement and its false twin it claims exactly one, hence
    both kinds of error are equally frequent.
    """
    image = clip_score.image_features(model, images)[[s.picture for s in asked]]
    row = {t: i for i, t in enumerate(dict.fromkeys(t for s in asked for t in (s.caption, s.foil)))}
    text = clip_score.text_features(model, tokenizer, list(row))
    mine, other = text[[row[s.caption] for s in asked]], text[[row[s.foil] for s in asked]]
    return ((image * (mine - other)).sum(1) > 0).cpu().numpy()


def errors(answers: np.ndarray, true: np.ndarray, kinds: Sequence[str]) -> pd.DataFrame:
    """Accuracy and both kinds of error by kind of fact, and over all kinds in the row "all".

    ``answers`` and ``true`` are bool [n], ``kinds`` [n] names. Columns are pairs (measure, part):
    measures "accuracy", "false positive rate" (claims among the false statements) and "false
    negative rate" (misses among the true ones); parts "n" (statements counted), "rate", and the
    Wilson 95 % interval "low", "high", which takes statements as independent. NaN if n is 0.
    """
    answers, true, kinds = np.asarray(answers, bool), np.asarray(true, bool), np.asarray(kinds)
    rows = {}
    for kind in [*dict.fromkeys(kinds.tolist()), "all"]:
        here = (kinds == kind) | (kind == "all")
        measures = {
            "accuracy": (answers == true)[here],
            "false positive rate": answers[here & ~true],
            "false negative rate": ~answers[here & true],
        }
        rows[kind] = {(name, k): v for name, m in measures.items() for k, v in _wilson(m).items()}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("kind")


def _wilson(events: np.ndarray) -> dict[str, float]:
    """How many events, the share that happened, and its Wilson 95 % interval."""
    if not len(events):
        return {"n": 0, "rate": np.nan, "low": np.nan, "high": np.nan}
    interval = binomtest(int(events.sum()), len(events)).proportion_ci(method="wilson")
    return {"n": len(events), "rate": events.mean(), "low": interval.low, "high": interval.high}


def validate(
    scenes: Sequence[Scene],
    pictures: dict[str, np.ndarray],
    instruments: dict[str, Callable[[Sequence[Statement], np.ndarray], np.ndarray]],
    seed: int = 0,
) -> pd.DataFrame:
    """``errors`` of every instrument on every set of pictures: rows (instrument, pictures, kind).

    ``pictures`` comes from ``degraded`` with the same seed; an instrument is a function of
    statements and images, such as ``reader_answers``. Where neither a statement nor its foil holds
    (a morph's mixed object), a forced choice has nothing right to choose: such pairs are left out
    for the instrument called "CLIP", and its n is smaller by them.
    """
    asked = statements(scenes, seed)
    kinds = np.array([s.kind for s in asked])
    facts, mixed = ([s.facts() for s in specs] for specs in (scenes, partners(scenes, seed)))
    tables = {}
    for name, answer in instruments.items():
        for condition, images in pictures.items():
            true = truth(asked, facts, *([mixed] if condition == "morphed" else []))
            decidable = np.repeat(true[::2] != true[1::2], 2) | (name != "CLIP")
            counted = (array[decidable] for array in (answer(asked, images), true, kinds))
            tables[name, condition] = errors(*counted)
    return pd.concat(tables, names=["instrument", "pictures"])
