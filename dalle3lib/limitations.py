"""What still fails (paper §5), and where on the way it is lost: captions, text encoder, pictures.

Every table has a row for each text or picture and is NaN where a question does not arise, such as
the relation of objects that are not both there; ``percent`` makes shares with intervals of it.
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn import functional

from dalle3lib import arm, paths, prompt_facts, stats, text, trained_arms
from dalle3lib.caption_facts import ATTRIBUTES, pairs, parse
from dalle3lib.config import Parameters
from dalle3lib.evals import text_rendering
from dalle3lib.evals.spatial import relation_of
from dalle3lib.images import Record
from dalle3lib.randomness import rng
from dalle3lib.sample import sample
from dalle3lib.study_evidence import PAIRS
from dalle3lib.world import reader
from dalle3lib.world.language import NOTES, article, descriptive_caption
from dalle3lib.world.prompts import Probe, probe, satisfied
from dalle3lib.world.scene import WORDS

SETS = ("spatial", "counting", "text")  # probe sets
KINDS = ("descriptive", "short")  # of held-out prompts
LETTERS = 4  # of the longest printed word
RIDGE = 1e-2  # weight of the squared coefficients


def percent(table: pd.DataFrame, name: str, wholes: pd.DataFrame | None = None) -> pd.DataFrame:
    """The mean of every column in per cent with its 95 % interval over rows: value, low, high.

    NaN counts nowhere. With ``wholes`` a column is summed and divided by the sum of theirs; NaN
    where that is nothing. ``name`` is the stream of the bootstrap.
    """
    wholes = table.notna() if wholes is None else wholes
    parts, wholes = table.fillna(0).astype(float), wholes.astype(float)
    low, high = stats.ratio_interval(parts, wholes, rng(0, f"limitations/{name}"))
    value = parts.sum() / wholes.sum().replace(0, np.nan)
    return 100 * pd.DataFrame({"value": value, "low": low, "high": high}, index=table.columns)


# ---- prompts and pictures ------------------------------------------------------------------------


def placed(one: Probe) -> str:
    """The prompt of a probe of "spatial" with each object's own place in the relation's stead."""
    at = {thing.shape: thing.place for thing in one.scene.objects}
    told = [(article(f"{o['colour']} {o['shape']}"), at[o["shape"]]) for o in one.ask["objects"]]
    return " and ".join(f"{what} at the {place}" for what, place in told) + "."


def prompts(
    records: Sequence[Record], count: int
) -> tuple[dict[str, list[Probe]], dict[str, list[str]]]:
    """``count`` probes of each of ``SETS``, and all the texts to draw, by kind.

    The texts are the records' descriptive and short ones, the probes', and two more wordings of the
    spatial ones: "places" (``placed``), and "described", descriptive captions of their scenes.
    """
    sets = {name: probe(name, count) for name in SETS}
    texts = {kind: [getattr(record, kind) for record in records] for kind in KINDS}
    texts |= {name: [one.prompt for one in found] for name, found in sets.items()}
    texts["places"] = [placed(one) for one in sets["spatial"]]
    texts["described"] = [
        descriptive_caption(one.scene, rng(0, "limitations/described", i))
        for i, one in enumerate(sets["spatial"])
    ]
    return sets, texts


def draw(cfg: Parameters, name: str, on: arm.Studio, folder: Path) -> dict[str, np.ndarray]:
    """An arm's picture, uint8 [N, 64, 64, 3], of every text of ``on``, by kind.

    They are kept in ``folder``, so that an interrupted run goes on with the next arm.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.npz"
    if not path.is_file():
        model, guidance = trained_arms.network(cfg, name)
        options = {"seed": cfg.seed, "steps": cfg.sampling_steps, "guidance": guidance}
        options["dtype"] = on.dtype
        drawn = {k: sample(model, on.autoencoder, s, **options) for k, s in on.states.items()}
        np.savez_compressed(path.with_suffix(".tmp.npz"), **drawn)
        path.with_suffix(".tmp.npz").rename(path)
    with np.load(path, allow_pickle=False) as kept:
        return dict(kept)


# ---- places, numbers, words ----------------------------------------------------------------------


def related(probes: Sequence[Probe], facts: Sequence[dict]) -> pd.DataFrame:
    """What became of two objects and a relation: a row for each picture.

    Columns: ``words`` of the relation; ``pairs``, the share of both objects' colours and shapes;
    ``both``, whether both are there; ``right``, whether they stand as asked, NaN unless both are.
    """
    rows = []
    for one, read in zip(probes, facts, strict=True):
        both = satisfied(one.ask | {"relation": None}, read)
        right = float(satisfied(one.ask, read)) if both else np.nan
        share = reader.recall(read, one.scene.facts())[PAIRS]
        rows.append((relation_of(one.prompt), share, float(both), right))
    return pd.DataFrame(rows, columns=["words", "pairs", "both", "right"])


def counted(probes: Sequence[Probe], facts: Sequence[dict]) -> pd.DataFrame:
    """How many objects are there: a row for each picture.

    Columns: ``asked``; ``seen``, how many are of the colour and shape asked for; ``exact``, whether
    that is as many; ``objects``, all of them; ``kind``, which share of these is as asked.
    """
    rows = []
    for one, read in zip(probes, facts, strict=True):
        wanted, things = one.ask["objects"][0], read["objects"]
        seen = sum(all(thing[k] == value for k, value in wanted.items()) for thing in things)
        share = seen / len(things) if things else np.nan
        rows.append((one.ask["count"], seen, float(seen == one.ask["count"]), len(things), share))
    return pd.DataFrame(rows, columns=["asked", "seen", "exact", "objects", "kind"])


def asked_seen(table: pd.DataFrame) -> pd.DataFrame:
    """The share of pictures with each number of objects (columns) by the number asked for (rows), 0
    to 1, from ``counted``; columns go up to three."""
    whole = pd.crosstab(table.asked, table.objects, normalize="index")
    whole = whole.reindex(columns=range(max(4, whole.columns.max() + 1)), fill_value=0)
    return whole.rename(index="{} asked".format, columns="{} seen".format)


def load_encoder() -> tuple:
    """The world's text encoder and its tokenizer."""
    return text.load(paths.foundation("t5"))


def pieces(tokenizer, prompt: str, word: str) -> list[int]:
    """The numbers of the tokens of a prompt that hold letters of a word standing in quotes."""
    start = prompt.index(f'"{word}"') + 1
    spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
    return [i for i, (a, b) in enumerate(spans) if a < start + len(word) and b > start]


def printed(probes: Sequence[Probe], facts: Sequence[dict], tokenizer) -> pd.DataFrame:
    """What became of a printed word: a row for each picture.

    Columns: ``word``; ``letters`` and ``pieces`` of it (the text encoder's tokens); ``known``,
    whether pictures of the world print it; ``some``, whether any word is read; ``length``, whether
    it has as many letters; ``first``, whether it begins as asked; ``right``, whether it is the
    word; ``errors``, edits by letter of the word. "… by chance": held against the *next* word.
    """
    words, rows = [one.ask["word"] for one in probes], []
    for i, (one, read) in enumerate(zip(probes, facts, strict=True)):
        word, other, found = words[i], words[(i + 1) % len(words)], read["word"] or ""
        row = {"word": word, "letters": len(word), "known": word in WORDS}
        row["pieces"] = len(pieces(tokenizer, one.prompt, word))
        row |= {"some": float(found != ""), "length": float(len(found) == len(word))}
        row["right"] = float(found == word)
        for name, wanted in (("", word), (" by chance", other)):
            row[f"first{name}"] = float(found[:1] == wanted[:1])
            row[f"errors{name}"] = text_rendering.error_rate(found, wanted)
        rows.append(row)
    return pd.DataFrame(rows)


def stations(words: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """``percent`` of words that are right by station, for known words and for new ones.

    ``words`` are tables with ``right`` and ``known``, by station; one without new words has no row.
    """
    found = {}
    for label, known in (("words of the world", True), ("new words", False)):
        own = {n: t.right[t.known == known].to_frame() for n, t in words.items()}
        rows = [percent(t, f"{n}/{known}").set_axis([n]) for n, t in own.items() if len(t) > 1]
        found[label] = pd.concat(rows)
    return found


def transcribed(captions: Sequence[str], facts: Sequence[dict]) -> pd.DataFrame:
    """Whether captions of pictures that print a word say this word: ``word`` and ``right``."""
    told = zip(map(prompt_facts.facts_of, captions), facts, strict=True)
    rows = [(f["word"], float(said["word"] == f["word"])) for said, f in told if f["word"]]
    return pd.DataFrame(rows, columns=["word", "right"])


@torch.no_grad()
def spelled(encoder, tokenizer, words: Sequence[str], count: int, seed: int = 0) -> pd.DataFrame:
    """What a linear reader spells from the text encoder's states of the tokens of words.

    It learns (ridge regression) from ``count`` random strings of 2 to 4 letters in the same
    sentence, so it knows pieces of words but none of the words. A row a word: word, pieces, the
    share of its letters that are right at their places, and whether all are, "right". What a linear
    reader finds is there; what it misses may be there in another form.
    """
    random = rng(seed, "limitations/strings")
    size = random.integers(2, LETTERS + 1, count)
    drawn = ["".join(chr(97 + i) for i in random.integers(26, size=n)) for n in size]
    x, _ = _slots(encoder, tokenizer, drawn)
    y = torch.stack([_letters(word) for word in drawn])
    inner = x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(inner, x.T @ y.flatten(1))
    x, tokens = _slots(encoder, tokenizer, words)
    read = (x @ weights).reshape(len(words), LETTERS, -1).argmax(-1)
    same = read == torch.stack([_letters(word) for word in words]).argmax(-1)
    rows = [
        (word, n, float(row[: len(word)].double().mean()), float(row.all()))
        for word, n, row in zip(words, tokens, same, strict=True)
    ]
    return pd.DataFrame(rows, columns=["word", "pieces", "letters right", "right"])


def _slots(encoder, tokenizer, words: Sequence[str]) -> tuple[Tensor, list[int]]:
    """The states of each word's tokens side by side, a constant behind; and how many tokens."""
    said = [NOTES[1].format(word) for word in words]
    where = [pieces(tokenizer, *pair) for pair in zip(said, words, strict=True)]
    states = text.encode(encoder, tokenizer, said)
    own = [s[at].flatten() for s, at in zip(states, where, strict=True)]
    wide = [functional.pad(s, (0, LETTERS * states[0].shape[1] - len(s))) for s in own]
    return functional.pad(torch.stack(wide).float(), (0, 1), value=1.0), list(map(len, where))


def _letters(word: str) -> Tensor:
    """A word as [4, 27]: each letter, or that there is none, as a one among zeros."""
    codes = [ord(letter) - 97 for letter in word] + [26] * (LETTERS - len(word))
    return functional.one_hot(torch.tensor(codes), 27).float()


# ---- invented detail -----------------------------------------------------------------------------


def beyond(shown: Sequence[dict | str], wanted: Sequence[dict | str]) -> pd.DataFrame:
    """What is shown beyond what is wanted, and what of it is missing: a row for each pair.

    Each is a picture's facts (``Scene.facts``), or a text that states some.
    """
    rows = []
    for pair in zip(shown, wanted, strict=True):
        is_there, asked = (prompt_facts.facts_of(x) if isinstance(x, str) else x for x in pair)
        more = len(is_there["objects"]) - len(asked["objects"])
        some, word = is_there["word"] is not None, asked["word"] is not None
        row = {"an object too many": float(more > 0), "an object missing": float(more < 0)}
        row["a word out of nothing"] = np.nan if word else float(some)
        row["the word left out"] = float(not some) if word else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def filled(texts: Sequence[str], facts: Sequence[dict], attributes: Sequence[str]) -> pd.Series:
    """What pictures show where their prompts leave it open: shares of each attribute, by
    "attribute: value" (``prompt_facts.added``)."""
    total = sum((prompt_facts.added(*pair) for pair in zip(texts, facts, strict=True)), Counter())
    counts = pd.Series(total, dtype=float).sort_index()
    found = (counts / counts.groupby(level=0).transform("sum")).loc[list(attributes)]
    return found.set_axis(map(": ".join, found.index))


def wrong(texts: Sequence[str], facts: Sequence[dict], name: str) -> pd.DataFrame:
    """Which share of the facts that texts state pictures do not show: ``percent`` by attribute.

    Said of captions it is what the captioner got wrong, of prompts what the generator did.
    """
    fates = prompt_facts.table(texts, facts)
    lost = fates["contradicted"] + fates["left out"]
    return percent(lost, name, lost + fates["kept"]).loc[list(ATTRIBUTES)]


def confusions(
    texts: Sequence[str], facts: Sequence[dict], attribute: str, values: Sequence[str]
) -> pd.DataFrame:
    """How often pictures show a value where their texts say another: shares, rows said x shown.

    A row sums to 1, or is NaN where nothing says so. Objects of text and picture are paired so that
    most is true.
    """
    counts = pd.DataFrame(0.0, index=list(values), columns=list(values))
    for said, read in zip(texts, facts, strict=True):
        for one, thing in pairs(parse(said).objects, read["objects"]):
            for statement in (s for s in one if s.attribute == attribute):
                counts.loc[statement.value, thing[attribute]] += 1
    return counts.div(counts.sum(axis=1).replace(0, np.nan), axis=0)


def likeness(captions: pd.DataFrame, pictures: pd.DataFrame) -> float:
    """Spearman's rank correlation of two ``confusions`` over all pairs of different values.

    1: what captions take for one another, pictures do most; NaN if one of them errs nowhere.
    """
    apart = ~np.eye(len(captions), dtype=bool)
    both = np.stack([t.to_numpy()[apart] for t in (captions, pictures)])
    both = both[:, np.isfinite(both).all(axis=0)]
    if both.shape[1] < 3 or (np.ptp(both, axis=1) == 0).any():
        return np.nan
    return float(spearmanr(*both).statistic)
