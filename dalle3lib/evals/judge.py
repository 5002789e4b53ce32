"""A judge says whether a picture shows what a prompt asks for: correct or incorrect (paper §4.1.2).

The paper asks GPT-4V, with the rules of its appendix D; here any vision-language model is asked the
same in our own words (``judge_template.yaml``), through a client of ``completions``: a server
(``chat_server.client``) or a model on this machine (``vision_model.client``). The world's judge,
which asks questions instead of talking, is ``world_judge``. Whoever judges sees the ORIGINAL
prompt, never an upsampled one.

Departures from the paper: after the prompt the task is said once more, and a last rule says that
neither the prompt nor the picture gives orders. The paper's judge reads the prompt last.
"""

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml
from PIL import Image

from dalle3lib import UserError, completions
from dalle3lib.images import read_rgb

TEMPLATE = Path(__file__).with_name("judge_template.yaml")
OPTIONS = {"max_tokens": 200, "temperature": 0}  # fifty words are some seventy tokens
UNPARSED = float("nan")
# Right before the last word, in the same sentence.
AMBIGUOUS = re.compile(r"(\b(not|nor|or|neither|cannot)\b|n['’]t|/)[ *_\"'“‘(]*$")

Picture = np.ndarray | str | Path  # uint8 [H, W, 3], or an image file


class Verdict(NamedTuple):
    """``score`` is 1 (correct), 0 (incorrect) or NaN (unparsed); ``reason`` is the judge's text."""

    score: float
    reason: str


# A judge takes pictures, the prompts they were made for, and what each must hold (an ``ask`` of
# ``world.prompts``, which only the world's judge reads; None elsewhere).
Judge = Callable[[Sequence[Picture], Sequence[str], Sequence[dict | None]], list[Verdict]]


# ---- what is asked -------------------------------------------------------------------------------


@cache
def template() -> dict[str, str]:
    """The protocol: ``system``, ``request`` (with ``{mark}`` and ``{prompt}``), ``reminder``."""
    return yaml.safe_load(TEMPLATE.read_text("utf-8"))


def mark(prompt: str) -> str:
    """What the lines around a prompt begin with: eight hexadecimal digits of the prompt's hash.

    A prompt cannot hold its own mark, so none can pretend to have ended.
    """
    return "#" + hashlib.blake2b(prompt.encode(), digest_size=4).hexdigest()


def part(picture: Picture) -> dict[str, Any]:
    """The part of a message that is a picture; an array travels as PNG, so without loss."""
    if isinstance(picture, str | Path):
        return completions.image(picture)
    data = io.BytesIO()
    Image.fromarray(picture).save(data, "PNG")
    return completions.image_part("png", data.getvalue())


def messages(picture: Picture, prompt: str) -> list[dict[str, Any]]:
    """The conversation that asks for a verdict: the rules; the picture, the prompt, the task."""
    request = template()["request"].strip().format(mark=mark(prompt), prompt=prompt)
    content = [part(picture), {"type": "text", "text": request}]
    rules = template()["system"].strip()
    return [{"role": "system", "content": rules}, {"role": "user", "content": content}]


def reminded(asked: list[dict[str, Any]], said: str) -> list[dict[str, Any]]:
    """The conversation after an answer without a verdict, which asks for that alone."""
    answer = {"role": "assistant", "content": said.strip() or "(nothing)"}
    return [*asked, answer, {"role": "user", "content": template()["reminder"].strip()}]


# ---- what was answered ---------------------------------------------------------------------------


def parse(text: str) -> float:
    """The verdict in an answer: 0 for a last word "incorrect", 1 for "correct", else NaN.

    Case, punctuation and mark-up around the word do not matter; "in-correct" is one word. A last
    word that is denied or an alternative ("not correct", "correct or incorrect") decides nothing.
    """
    last = re.search(r"([^\W\d_]+(?:[-‐‑][^\W\d_]+)*)[\W_]*$", text.casefold())
    if last is None or AMBIGUOUS.search(text.casefold()[: last.start()]):
        return UNPARSED
    word = re.sub(r"\W", "", last.group(1))
    if word == "incorrect":
        return 0.0
    return 1.0 if word == "correct" else UNPARSED


def _read(answer: completions.Completion) -> float:
    """As ``parse``; an answer that was cut or refused has no last word."""
    whole = answer.finish not in ("length", *completions.REFUSED)
    return parse(answer.text) if whole else UNPARSED


def by_chat(client: completions.Client, options: dict[str, Any] = OPTIONS) -> Judge:
    """The judge that a vision-language model makes, asked through ``client``.

    An answer without a verdict, or one that ``max_tokens`` cut, is replied to once, with the
    reminder; what then has no verdict either stays unparsed, and so does a refusal, at once. The
    reason holds both answers. ``options`` go with every request. The judge raises UserError as
    ``completions.Client.complete`` does; what was answered is kept, so asking again goes on.
    """

    def judge(pictures, prompts, asks=None) -> list[Verdict]:
        matched(pictures, prompts, asks)
        asked = [messages(*pair) for pair in zip(pictures, prompts, strict=True)]
        first = client.complete([(conversation, options) for conversation in asked])
        verdicts = [Verdict(_read(a), a.text.strip() or f"({a.finish})") for a in first]
        open_ = [
            i for i, verdict in enumerate(verdicts)
            if np.isnan(verdict.score) and first[i].finish not in completions.REFUSED
        ]  # fmt: skip
        again = [(reminded(asked[i], first[i].text), options) for i in open_]
        for i, answer in zip(open_, client.complete(again) if again else [], strict=True):
            reason = f"{verdicts[i].reason}\n{answer.text.strip() or f'({answer.finish})'}"
            verdicts[i] = Verdict(_read(answer), reason)
        return verdicts

    return judge


def matched(pictures: Sequence, prompts: Sequence, asks: Sequence | None) -> None:
    """UserError unless there is a prompt for every picture, and an ask where asks are given."""
    if len(pictures) != len(prompts) or (asks is not None and len(asks) != len(prompts)):
        count = len(prompts) if asks is None else f"{len(prompts)} and {len(asks)}"
        raise UserError(f"{len(pictures)} pictures need as many prompts (and asks), not {count}.")


def pixels(picture: Picture) -> np.ndarray:
    """A picture as uint8 [H, W, 3]. Raises UserError for a file that cannot be read."""
    return picture if isinstance(picture, np.ndarray) else np.asarray(read_rgb(picture))
