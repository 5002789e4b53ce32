"""Upsampling by language models: what is asked, what is made of answers, the command."""

import json
import sys
from types import ModuleType, SimpleNamespace

import pytest
import setuptools
from misbehaving_server import SAID, Server, reply

from dalle3lib import UserError, chat_server, upsample
from dalle3lib.__main__ import main
from dalle3lib.completions import Completion
from dalle3lib.paths import ROOT
from dalle3lib.upsample import Upsampled

WORDS = " ".join(f"word{i}" for i in range(100))


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


@pytest.fixture
def client(server, tmp_path):
    return chat_server.client(
        "small", server.url, cache=tmp_path / "cache.jsonl", sleep=lambda _: None
    )


def last(prompt):
    """What the server takes for the content of a prompt's request."""
    return upsample.template()["request"] + prompt


# ---- the protocol --------------------------------------------------------------------------------


def test_the_protocol_has_one_system_message_and_three_worked_turns():
    conversation = upsample.messages("a red car")
    roles = [message["role"] for message in conversation]
    assert roles == ["system", *["user", "assistant"] * 3, "user"]
    assert "Between 15 and 80 words" in conversation[0]["content"]
    users = [message["content"] for message in conversation if message["role"] == "user"]
    assert all(text.startswith(upsample.template()["request"]) for text in users)
    assert users[-1].endswith("a red car")
    assert [m["role"] for m in upsample.messages("a red car", worked=False)] == ["system", "user"]


def test_the_worked_answers_keep_the_rules_they_show():
    first, changed, new = (turn["assistant"] for turn in upsample.template()["turns"])
    for text in (first, changed, new):
        assert 15 <= len(text.split()) <= 80 and text == text.lower() and "\n" not in text
    # "make it …" is worked in everywhere: nothing of the first text stands whole before the change
    assert not changed.startswith(first[:60]) and first not in changed
    assert all(word in first and word in changed for word in ("lighthouse", "door", "rusty"))
    assert "lighthouse" not in new  # another picture forgets the ones before


def test_the_template_is_part_of_the_package(monkeypatch):
    monkeypatch.chdir(ROOT)
    project = setuptools.Distribution()
    project.parse_config_files()
    build = project.get_command_obj("build_py")
    build.ensure_finalized()
    build.manifest_files = {}  # what git lists does not count
    assert "dalle3lib/upsample_template.yaml" in build.find_data_files("dalle3lib", "dalle3lib")


# ---- answers -------------------------------------------------------------------------------------


def completion(text, finish="stop"):
    return Completion(text, finish, 15, 0.0, False)


@pytest.mark.parametrize(
    ("text", "finish", "problem"),
    [
        (SAID, "stop", ""),
        (" ".join(WORDS.split()[:14]), "stop", "too short"),
        (" ".join(WORDS.split()[:15]), "stop", ""),
        (" ".join(WORDS.split()[:80]), "stop", ""),
        (" ".join(WORDS.split()[:81]), "stop", "too long"),
        ("  \n", "stop", "empty"),
        ('""', "stop", "empty"),
        ("I'm sorry, but I can't help with that.", "stop", "refused"),
        ("I cannot describe this.", "stop", "refused"),
        ("As an AI, I do not draw.", "stop", "refused"),
        ("a sorry little dog sits " + WORDS[:80], "stop", ""),
        ("no", "content_filter", "refused"),
        (SAID, "refusal", "refused"),
    ],
)
def test_what_is_wrong_with_an_answer(text, finish, problem):
    assert upsample.problem(completion(text, finish)) == problem


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ("[a red car]", "a red car"),
        ('"a red\n car"', "a red car"),
        ("“a red car”", "a red car"),
        ('"stop" says a sign, "go" another', '"stop" says a sign, "go" another'),
        ('a sign says "stop"', 'a sign says "stop"'),
        ('"', '"'),
    ],
)
def test_wrapping_is_taken_off(said, text):
    assert upsample.cleaned(said) == text


def test_prompts_come_back_in_order_with_the_original_before(server, client):
    server.scripts[last("a dog.")] = [reply("[" + WORDS + "]")]
    server.scripts[last("a cow")] = [reply(None, refusal="I will not.")]
    server.scripts[last("a pig")] = [reply("")]
    prompts = ["a cat", "a dog.", "a cow", "a pig", "a cat"]
    results = upsample.upsample(prompts, "openai", client=client)
    cut = " ".join(WORDS.split()[:80])
    assert results == [
        Upsampled("a cat", f"a cat. {SAID}", "small", False, 15, 0.0, ""),
        Upsampled("a dog.", f"a dog.. {cut}", "small", False, 15, 0.0, "too long"),
        Upsampled("a cow", "a cow", "small", False, 15, 0.0, "refused"),
        Upsampled("a pig", "a pig", "small", False, 15, 0.0, "empty"),
        Upsampled("a cat", f"a cat. {SAID}", "small", True, 15, 0.0, ""),
    ]
    assert upsample.report(results) == {
        "prompts": 5,
        "cached": 1,
        "refused": 1,
        "empty": 1,
        "too long": 1,
        "too short": 0,
        "tokens": 60,
        "cost": 0.0,
    }
    bare = upsample.upsample(["a cat"], "openai", client=client, prepend=False)
    assert bare[0].text == SAID and bare[0].cached
    assert len(server.requests) == 4


def test_the_embedded_model_is_called_with_the_seed(monkeypatch):
    """What it writes is ``upsampler``'s to test; here a stand-in says how it was called."""
    calls = []

    def write(model, tokenizer, prompts, *, seed):
        calls.append((model, prompts, seed))
        return ["a large red car", ""]

    def tokenizer(text):
        return SimpleNamespace(input_ids=text.split())

    standing = ModuleType("dalle3lib.upsampler")
    standing.load = lambda path=None: (path, tokenizer)
    standing.write = write
    monkeypatch.setitem(sys.modules, "dalle3lib.upsampler", standing)
    monkeypatch.setattr("dalle3lib.upsampler", standing, raising=False)
    car, nothing = upsample.upsample(["a car", "a cat"], seed=7)
    assert car == Upsampled("a car", "a large red car", "t5", False, 6, 0.0)
    assert nothing[1:2] + nothing[-1:] == ("a cat", "empty")
    named, _ = upsample.upsample(["a car", "a cat"], model="x/mine", prepend=True)
    assert (named.text, named.model) == ("a car. a large red car", "t5 mine")
    assert calls == [(None, ["a car", "a cat"], 7), ("x/mine", ["a car", "a cat"], 0)]


def test_the_seed_and_the_options_are_part_of_the_request(server, client):
    upsample.upsample(["a cat"], "openai", client=client)
    assert server.requests[-1] | {"messages": 0} == {
        "model": "small",
        "messages": 0,
        "seed": 0,
        "max_tokens": 200,
        "temperature": 0.7,
    }
    assert server.requests[-1]["messages"] == upsample.messages("a cat")
    other = {"max_completion_tokens": 900, "seed": None}
    upsample.upsample(["a cat"], "openai", client=client, seed=3, options=other)
    assert server.requests[-1].keys() == {"model", "messages", "max_completion_tokens"}


def test_mistakes_are_said_before_anything_is_asked(server, client):
    with pytest.raises(UserError, match=r"empty \(counted from 0\): 1, 2;"):
        upsample.upsample(["a cat", "", " \n"], "openai", client=client)
    with pytest.raises(UserError, match="did you mean 'openai'"):
        upsample.upsample(["a cat"], "openia")
    with pytest.raises(UserError, match="'openai' needs a model"):
        upsample.upsample(["a cat"], "openai")
    with pytest.raises(UserError, match="'chat' needs a model"):
        upsample.upsample(["a cat"], "chat")
    assert not server.requests


def test_a_server_may_be_named_in_place_of_a_client(server, runs_root):
    for cached in (False, True):
        (made,) = upsample.upsample(["a cat"], "openai", model="small", base_url=server.url)
        assert made == Upsampled("a cat", f"a cat. {SAID}", "small", cached, 15, 0.0)
    assert (runs_root / "completions.jsonl").is_file()


def test_the_command_writes_json_lines(server, tmp_path, capsys):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a cat\na dog\na cat\n")
    command = ["upsample", str(prompts), "--backend", "openai", "--model", "small"]
    command += ["--base-url", server.url, "--cache", str(tmp_path / "c.jsonl")]
    command += ["--prices", "1", "2"]
    assert main(command) == 0
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.out.splitlines()]
    assert [line["original"] for line in lines] == ["a cat", "a dog", "a cat"]
    assert list(lines[0])[:6] == ["original", "text", "model", "cached", "tokens", "cost"]
    assert [line["cached"] for line in lines] == [False, False, True]
    assert lines[0]["cost"] == pytest.approx(20e-6)
    assert json.loads(said.err.splitlines()[-1])["cached"] == 1
    assert main([*command, "-o", str(tmp_path / "out.jsonl")]) == 0
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert all(line["cached"] for line in again) and len(server.requests) == 2
    assert main([*command, "--max-tokens", "1", "--seed", "5"]) == 1
    assert "The cap of 1 tokens is reached" in capsys.readouterr().err
    assert main(["upsample", str(tmp_path / "none.txt")]) == 1
    assert main(command[:4] + ["--base-url", server.url]) == 1
    assert "needs --model" in capsys.readouterr().err
