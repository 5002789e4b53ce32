"""What GPT-V was told to answer, as checks of its answers (paper appendix D, section 4.1.2).

The judge sees a picture and the original prompt, thinks aloud, and ends with "correct" or
"incorrect". Of its six rules two can be checked in the text alone: the answer ends with the
verdict, and the thinking stays under 50 words. The others (no nitpicking, extra objects and slight
deformations do not matter, "incorrect" only where something specific is wrong) need the picture.
"""

import re
from math import isnan

from dalle3lib.evals.judge import parse

LIMIT = 50  # words of thinking; fewer are allowed
_VERDICT = re.compile(r"\b(?:in)?correct\b")


def verdict(answer: str) -> bool | None:
    """Whether an answer's last word says "correct" (``judge.parse``); None if it says neither."""
    said = parse(answer)
    return None if isnan(said) else bool(said)


def first_mention(answer: str) -> bool | None:
    """The verdict by the first "correct" or "incorrect" of an answer: not the paper's rule."""
    found = _VERDICT.search(answer.lower())
    return found and found[0] == "correct"


def mentions_correct(answer: str) -> bool | None:
    """The verdict by whether "correct" occurs anywhere: what a hasty parser would do."""
    return "correct" in answer.lower() or None


PARSERS = {
    "last word, incorrect first": verdict,
    "first mention": first_mention,
    "contains correct": mentions_correct,
}


def thinking(answer: str) -> str:
    """What stands before the last word of an answer; all of it if that is no verdict."""
    words = answer.split()
    return " ".join(words if verdict(answer) is None else words[:-1])


def broken(answer: str) -> dict[str, bool]:
    """Which of the rules an answer breaks, as far as its text can tell, by rule."""
    thought = len(thinking(answer).split())
    return {
        "no verdict at the end": verdict(answer) is None,
        "no thinking before it": thought == 0,
        f"{LIMIT} words of thinking or more": thought >= LIMIT,
    }
