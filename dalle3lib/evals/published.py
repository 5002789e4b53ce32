"""OpenAI's released verdicts: Table 1's DrawBench row counted again (paper section 4.1.2).

For each of DrawBench's 200 prompts each system drew four images, and GPT-V called each of them
correct or incorrect. The released files hold 2,400 such answers, and 15 more about SDXL's pictures
of upsampled prompts. A prompt's four answers depend on each other, so the prompt is the unit of all
intervals and tests here.
"""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from dalle3lib import UserError, stats
from dalle3lib.evals import drawbench, judge_rules, paper_tables
from dalle3lib.evals import published_files as public
from dalle3lib.evals.drawbench import IMAGES
from dalle3lib.randomness import rng

PROMPTS = "prompts/drawbench.txt"
ANSWERS = {  # file of answers by system and by what its images were drawn from
    ("DALL-E 3", "original"): "drawbench/3/drawbench_results.json",
    ("DALL-E 2", "original"): "drawbench/2/drawbench_results.json",
    ("SDXL", "original"): "drawbench/sdxl/drawbench_results.json",
    ("SDXL", "upsampled"): "drawbench_upsampled/sdxl/drawbench_results.json",
}
SYSTEMS = ("DALL-E 3", "DALL-E 2", "SDXL")
PAIRS = (("DALL-E 3", "DALL-E 2"), ("DALL-E 3", "SDXL"), ("DALL-E 2", "SDXL"))
ROW = "DrawBench, original prompts, GPT-V correct"  # of Table 1, as data/paper.csv calls it
CLEAR = 2  # times as many of a prompt's words in answers to its own pictures as to others


# --- the answers, joined with their prompts ------------------------------------------------------


def verdicts(folder: str | Path) -> pd.DataFrame:
    """All released answers, a row each, joined with the prompts that they are about.

    Columns: system, drawn from ("original" or "upsampled" prompts; the judge always sees the
    original), number (of the prompt, from 0), prompt, category, image (0 to 3), correct (bool, as
    released), answer. ``folder`` is that of the released files. Raises UserError for a file that is
    missing or altered, and for answers that do not fit their prompts (``attach``).
    """
    prompts = public.read(folder, PROMPTS).splitlines()
    tables = []
    for (system, source), name in ANSWERS.items():
        table = attach(json.loads(public.read(folder, name)), prompts)
        table.insert(0, "system", system)
        table.insert(1, "drawn from", source)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def attach(answers: dict[str, dict], prompts: list[str]) -> pd.DataFrame:
    """Answers by image file (``…/17_3.png``) joined with their prompts: see ``verdicts``.

    The number in a file's name counts the prompts from 0 or, for DALL-E 2, from 1; nothing in the
    files says which. What the judge wrote does: it repeats words of the prompt. UserError if a name
    cannot be read, if neither count makes the words fit, or if it leads outside the list.
    """
    names = [re.fullmatch(r".*/(\d+)_(\d+)\.png", name) for name in answers]
    if not all(names):
        odd = next(name for name, found in zip(answers, names, strict=True) if not found)
        raise UserError(f"{odd!r} is not the name of an image, such as 17_3.png.")
    table = pd.DataFrame(list(answers.values()))
    table = table.rename(columns={"response": "answer"})
    numbers = np.array([int(found[1]) for found in names])
    table.insert(0, "number", numbers - first_number(numbers, table.answer, prompts))
    table.insert(1, "prompt", [prompts[number] for number in table.number])
    table.insert(2, "category", np.array(drawbench.categories())[table.number])
    table.insert(3, "image", [int(found[2]) for found in names])
    return table.sort_values(["number", "image"], ignore_index=True)


def first_number(numbers: np.ndarray, answers: pd.Series, prompts: list[str]) -> int:
    """Which number the first prompt has in the names of images: 0 or 1.

    Raises UserError unless one of the two keeps all numbers within the list and finds at least
    twice as many of the prompts' words in the answers as the other.
    """
    shares = {first: overlap(numbers - first, answers, prompts) for first in (0, 1)}
    best = max(shares, key=shares.get)
    inside = 0 <= numbers.min() - best and numbers.max() - best < len(prompts)
    if not inside or shares[best] < CLEAR * shares[1 - best] or not shares[best]:
        raise UserError(
            f"The answers fit the prompts neither if these are counted from 0 ({shares[0]:.0%} of "
            f"the prompts' words) nor from 1 ({shares[1]:.0%}); is this the right list of prompts?"
        )
    return best


def overlap(numbers: np.ndarray, answers: pd.Series, prompts: list[str]) -> float:
    """The share of a prompt's words (of four letters or more) that its answer has, on average.

    Numbers outside the list, and prompts without such words, are left out; 0 if none remains.
    """
    asked = [set(re.findall(r"[a-z]{4,}", prompt.lower())) for prompt in prompts]
    shares = [
        np.mean([word in answer.lower() for word in asked[number]])
        for number, answer in zip(numbers, answers, strict=True)
        if 0 <= number < len(prompts) and asked[number]
    ]
    return float(np.mean(shares)) if shares else 0.0


def numbering(folder: str | Path) -> pd.DataFrame:
    """How the images are numbered, and what the answers say: a row for each file of answers.

    Columns: lowest and highest number in the names, and the share of the prompts' words found in
    the answers if the first prompt is number 0, and if it is number 1.
    """
    prompts, rows = public.read(folder, PROMPTS).splitlines(), {}
    for (system, source), name in ANSWERS.items():
        answers = json.loads(public.read(folder, name))
        numbers = np.array([int(re.search(r"(\d+)_\d+\.png$", file)[1]) for file in answers])
        texts = [entry["response"] for entry in answers.values()]
        rows[f"{system}, {source} prompts"] = {
            "lowest": numbers.min(),
            "highest": numbers.max(),
            "words found, first is 0": overlap(numbers, texts, prompts),
            "words found, first is 1": overlap(numbers - 1, texts, prompts),
        }
    return pd.DataFrame.from_dict(rows, "index")


def by_prompt(table: pd.DataFrame) -> pd.DataFrame:
    """How many of each prompt's four images are right: int, a row a prompt, a column a system.

    Systems are joined by the prompt's number and its text together. UserError unless every system
    has four answers to every prompt.
    """
    table = table[table["drawn from"] == "original"]
    keys = ["number", "prompt", "category"]
    counts = table.groupby([*keys, "system"]).correct.agg(["sum", "size"]).unstack("system")
    if not (counts["size"] == IMAGES).all(axis=None):
        gap = counts["size"].index[(counts["size"] != IMAGES).any(axis=1)][0]
        raise UserError(f"Prompt {gap[0]} ({gap[1]!r}) lacks answers; four a system are needed.")
    return counts["sum"].astype(int)[[name for name in SYSTEMS if name in counts["sum"]]]


# --- the recount ---------------------------------------------------------------------------------


def recount(folder: str | Path, seed: int = 0) -> pd.DataFrame:
    """Table 1's DrawBench row from the released verdicts: columns as ``summarise``, and printed.

    Rows are the systems; ``printed`` is the paper's own number. Raises UserError as ``verdicts``.
    """
    table = summarise(by_prompt(verdicts(folder)), seed)
    return table.assign(printed=paper_tables.printed("Table 1").loc[ROW])


def summarise(right: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Shares of right images from the counts of ``by_prompt``, a row for each system.

    Columns: prompts, verdicts, correct (counts); share (% correct) with low and high, its 95 %
    interval over prompts; alone low and alone high, the narrower one (Wilson) that takes verdicts
    for independent; worth, how many independent verdicts would say as much; mixed, the share of
    prompts (%) of which some images are right and some are not.
    """
    rows, prompts = {}, len(right)
    for name, counts in right.items():
        share, verdicts = counts.mean() / IMAGES, IMAGES * prompts
        low, high = stats.mean_interval(counts / IMAGES, rng(seed, f"recount {name}"))
        alone = binomtest(int(counts.sum()), verdicts).proportion_ci(method="wilson")
        spread = np.var(counts / IMAGES, ddof=1) / prompts
        rows[name] = {
            **{"prompts": prompts, "verdicts": verdicts, "correct": int(counts.sum())},
            **{"share": 100 * share, "low": 100 * low, "high": 100 * high},
            **{"alone low": 100 * alone.low, "alone high": 100 * alone.high},
            "worth": share * (1 - share) / spread if spread else np.nan,
            "mixed": 100 * counts.between(1, IMAGES - 1).mean(),
        }
    return pd.DataFrame.from_dict(rows, "index")


def by_category(right: pd.DataFrame, seed: int = 0) -> dict[str, pd.DataFrame]:
    """``summarise`` within each category, by system: a row for each category and for all."""
    groups = {name: group for name, group in right.groupby("category", sort=False)}
    tables = {name: summarise(group, seed) for name, group in (groups | {"all": right}).items()}
    return {
        system: pd.DataFrame({name: table.loc[system] for name, table in tables.items()}).T
        for system in right.columns
    }


def differences(right: pd.DataFrame, seed: int = 0) -> dict[str, dict[str, Any]]:
    """Each pair's difference, paired by prompt: effect, interval, p, seeds, unit and prompts.

    Effect and 95 % interval (over prompts) are in % points. ``p`` is that of the exact one-sided
    sign-flip test over prompts that the first is better.
    """
    found = {}
    for first, second in PAIRS:
        a, b = 100 * right[first] / IMAGES, 100 * right[second] / IMAGES
        interval = stats.paired_bootstrap(a, b, rng(seed, f"pair {first} {second}"))
        found[f"{first} over {second}"] = {
            "effect": float(np.mean(a - b)),
            "interval": list(interval),
            "p": stats.sign_flip_count_p(right[first] - right[second]),
            **{"seeds": 0, "unit": "% points", "prompts": len(right)},
        }
    return found


def as_table(apart: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """``differences`` as a table, a row a pair: value, low and high (% points), and p."""
    rows = {
        name: [entry["effect"], *entry["interval"], entry["p"]] for name, entry in apart.items()
    }
    return pd.DataFrame.from_dict(rows, "index", columns=["value", "low", "high", "p"])


def claims(table: pd.DataFrame, apart: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The evidence for the claims of family table-1-recount, from ``recount`` and ``differences``.

    A recount is no sample of anything, so its interval has no width; nothing is trained, so there
    are no seeds.
    """
    short, found = {"DALL-E 3": "dalle3", "DALL-E 2": "dalle2", "SDXL": "sdxl"}, {}
    for name, row in table.iterrows():
        off = float(row.share - row.printed)
        entry = {"effect": off, "interval": [off, off], "seeds": 0, "unit": "% points"}
        found[f"recount-drawbench-{short[name]}"] = entry
    for first, second in PAIRS:
        name = f"released-{short[first]}-over-{short[second]}-on-drawbench"
        found[name] = apart[f"{first} over {second}"]
    return found


def audit(table: pd.DataFrame) -> pd.DataFrame:
    """What the answers look like, a row for each system and kind of prompt, in counts.

    Columns: answers, the rules they break (``judge_rules.broken``), and how many verdicts each of
    ``judge_rules.PARSERS`` reads otherwise than the released field says.
    """
    found = table.answer.map(judge_rules.broken).apply(pd.Series)
    for name, parser in judge_rules.PARSERS.items():
        found[f"misread: {name}"] = table.answer.map(parser) != table.correct
    found.insert(0, "answers", 1)
    return found.groupby([table.system, table["drawn from"]], sort=False).sum().astype(int)


def judged_win_rates(apart: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """The verdicts of ``differences`` as win rates on DrawBench, each pair both ways round.

    Two images of a prompt, one of each system, are compared by their verdicts; where these are the
    same each wins half. So the rate is 50 % plus half the difference. Columns value, low, high (%).
    """
    rows = {}
    for name, entry in apart.items():
        first, second = name.split(" over ")
        ways = {f"{first} over {second}": 1, f"{second} over {first}": -1}
        for way, sign in ways.items():
            low, high = sorted(50 + sign * np.array(entry["interval"]) / 2)
            value = 50 + sign * entry["effect"] / 2
            rows[f"DrawBench: {way}"] = {"value": value, "low": low, "high": high}
    return pd.DataFrame.from_dict(rows, "index")
