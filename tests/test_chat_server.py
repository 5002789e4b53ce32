"""Asking servers: a real one (``transformers serve``), keys, what each reply means."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest
from misbehaving_server import SAID, Server, reply
from tiny_chat import write_chat_model

from dalle3lib import UserError, chat_server, upsample
from dalle3lib.completion_cache import Answer
from dalle3lib.completions import Failed

SECRET = "sk-test-do-not-show-0123456789"


@pytest.fixture
def server():
    running = Server()
    yield running
    running.close()


# ---- a real server -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """``transformers serve`` with a tiny model: its address and the model's name."""
    for module in ("fastapi", "uvicorn"):
        pytest.importorskip(module, reason="the extra `label` is not installed")
    folder = tmp_path_factory.mktemp("served")
    write_chat_model(folder / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command += ["serve", str(folder / "model"), "--host", "127.0.0.1", "--port", str(port)]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder), "OMP_NUM_THREADS": "1"}
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=log, stderr=log, env=os.environ | quiet
        )
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder / "model")
    finally:
        process.terminate()
        process.wait(30)


def test_a_real_server_answers_and_is_asked_once(real, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    url, model = real
    cache = tmp_path / "cache.jsonl"
    options = {"max_tokens": 20, "temperature": 0.0}
    made = chat_server.client(model, url, cache=cache, workers=2)
    prompts = ["a red car", "two cats", "a red car"]
    results = upsample.upsample(prompts, "openai", client=made, options=options)
    assert [result.cached for result in results] == [False, False, True]
    assert [result.original for result in results] == prompts
    assert results[0] == results[2]._replace(cached=False)
    assert all(result.model == model for result in results)
    # the model is random, so what it says is no description; but it was asked, and it counted
    assert all(result.tokens > len(upsample.messages("")) for result in results)
    assert made.report()["bought"] == 2
    again = upsample.upsample(
        prompts, "openai", client=chat_server.client(model, url, cache=cache), options=options
    )
    assert all(result.cached for result in again)
    assert [result.text for result in again] == [result.text for result in results]


def test_a_real_server_says_that_it_has_no_such_model(real, tmp_path):
    made = chat_server.client("another", real[0], cache=tmp_path / "c.jsonl")
    with pytest.raises(UserError, match="0 of 1 answers are there"):
        upsample.upsample(["a red car"], "openai", client=made)


# ---- keys ----------------------------------------------------------------------------------------


def test_openai_needs_a_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    with pytest.raises(UserError, match="needs a key: put it in the variable OPENAI_API_KEY"):
        chat_server.connect()
    with pytest.raises(UserError, match="MY_KEY"):
        chat_server.connect(key_variable="MY_KEY")
    with pytest.raises(UserError, match="begins with http"):
        chat_server.connect("localhost:8000/v1")


def test_a_key_is_sent_and_never_shown(server, tmp_path, monkeypatch, capsys, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    told = {"error": {"message": f"Incorrect API key provided: {SECRET}", "code": None}}
    client = chat_server.client("m", server.url, cache=tmp_path / "c.jsonl", sleep=lambda _: None)
    upsample.upsample(["a cat"], "openai", client=client)
    assert server.headers[-1]["authorization"] == f"Bearer {SECRET}"
    said = []
    for status in (400, 401, 404, 429, 500):
        prompt = f"a cat {status}"
        content = upsample.template()["request"] + prompt
        server.scripts[content] = [lambda h, s=status: h.send(s, json.dumps(told))] * 9
        with pytest.raises(UserError) as stopped:
            upsample.upsample([prompt], "openai", client=client)
        said.append(str(stopped.value))
    assert "does not accept the key in OPENAI_API_KEY" in said[1]
    server.scripts[upsample.template()["request"] + "echo"] = [reply(f"{SAID} {SECRET}")]
    (echo,) = upsample.upsample(["echo"], "openai", client=client)
    shown = capsys.readouterr()
    everything = [*said, echo.text, str(client.report()), repr(client), caplog.text]
    everything += [shown.out, shown.err, (tmp_path / "c.jsonl").read_text()]
    assert not any(SECRET in text for text in everything)


def test_without_a_key_a_server_that_wants_one_is_named(server, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    content = upsample.template()["request"] + "a cat"
    server.scripts[content] = ["401"]
    client = chat_server.client("m", server.url, cache=tmp_path / "c.jsonl")
    with pytest.raises(UserError, match=r"127.0.0.1:\d+ needs a key \(status 401\)"):
        upsample.upsample(["a cat", "a dog", "a cow"] * 9, "openai", client=client)
    assert len(server.attempts[content]) == 1  # not tried again


# ---- replies -------------------------------------------------------------------------------------


def test_a_whole_reply():
    assert chat_server.answer(json.dumps(reply())) == Answer(SAID, "stop", 10, 5)
    assert chat_server.answer(json.dumps(reply(usage=None))).prompt_tokens is None
    refused = chat_server.answer(json.dumps(reply(None, refusal="I will not.")))
    assert refused[:2] == ("I will not.", "refusal")
    assert chat_server.answer(json.dumps(reply(None))).text == ""


@pytest.mark.parametrize(
    "body",
    [
        "[]",
        "null",
        "3",
        '{"error": "x"}',
        '{"choices": null}',
        '{"choices": [{}]}',
        '{"choices": [{"message": "x"}]}',
        json.dumps(reply(["x"])),
        json.dumps(reply(usage={})),
        json.dumps(reply(usage={"prompt_tokens": "1", "completion_tokens": 1})),
        json.dumps(reply(usage={"prompt_tokens": -1, "completion_tokens": 1})),
        json.dumps(reply(usage={"prompt_tokens": True, "completion_tokens": 1})),
    ],
)
def test_another_schema_is_no_answer(body):
    with pytest.raises(Failed, match="wrong schema") as failed:
        chat_server.answer(body)
    assert failed.value.charged and failed.value.retry


@pytest.mark.parametrize("body", ["", "<html>", '{"choices": [', "data: [DONE]"])
def test_what_is_not_json_is_no_answer(body):
    with pytest.raises(Failed, match="not JSON"):
        chat_server.answer(body)


def send(server, word):
    server.scripts["x"] = [word]
    request = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    return chat_server.connect(server.url, timeout=0.5)(request)


@pytest.mark.parametrize(
    ("word", "kind", "retry", "charged", "fatal"),
    [
        ("400", "status 400", False, False, False),
        ("404", "status 404", False, False, True),
        ("408", "status 408", True, False, False),
        ("429", "status 429", True, False, False),
        ("500", "status 500", True, False, False),
        ("hang", "timed out", True, True, False),
        ("half", "broken off", True, True, False),
        ("not JSON", "not JSON", True, True, False),
        ("wrong schema", "wrong schema", True, True, False),
    ],
)
def test_what_each_failure_means(server, word, kind, retry, charged, fatal):
    with pytest.raises(Failed, match=kind) as failed:
        send(server, word)
    assert (failed.value.retry, failed.value.charged, failed.value.fatal) == (retry, charged, fatal)


def test_an_empty_purse_is_not_waited_for_and_a_filter_is_a_refusal(server):
    broke = json.dumps({"error": {"message": "pay", "code": "insufficient_quota"}})
    with pytest.raises(Failed, match="pay") as failed:
        send(server, lambda handler: handler.send(429, broke))
    assert failed.value.fatal and not failed.value.retry
    filtered = json.dumps({"error": {"message": "no", "code": "content_filter"}})
    answer = send(server, lambda handler: handler.send(400, filtered))
    assert answer == Answer("", "content_filter", 0, 0)


def test_nobody_listens(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    request = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(Failed, match=f"no connection: 127.0.0.1:{port}") as failed:
        chat_server.connect(f"http://127.0.0.1:{port}/v1")(request)
    assert failed.value.retry and not failed.value.charged
