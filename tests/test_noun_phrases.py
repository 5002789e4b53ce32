"""Noun phrases: the world's by its grammar, those of files, and spaCy where it is or is not."""

import json
import sys
from types import SimpleNamespace

import pytest

from dalle3lib import UserError
from dalle3lib.evals import noun_phrases
from dalle3lib.world import probe


@pytest.mark.parametrize(
    ("prompt", "phrases"),
    [
        ("a red circle and a blue square.", ["a red circle", "a blue square"]),
        (
            "an orange cross above a small striped star.",
            ["an orange cross", "a small striped star"],
        ),
        ("two red crosses.", ["two red crosses"]),
        ("a large moon which is dotted. behind, there is sky.", ["a large moon"]),
        ("the red circle and circles", []),
        ("a red circlet", []),
    ],
)
def test_the_worlds_phrases(prompt, phrases):
    assert noun_phrases.of_world([prompt]) == {prompt: phrases}


@pytest.mark.parametrize("name", ["three", "spatial", "counting", "text", "combinations"])
def test_each_object_of_a_probe_is_a_phrase(name):
    for one in probe(name, 12):
        (found,) = noun_phrases.of_world([one.prompt]).values()
        twins = one.scene.twins() or one.ask["count"]
        assert len(found) == (1 if twins else len(one.ask["objects"])), one.prompt


# ---- files ---------------------------------------------------------------------------------------

NOTED = {"a cat and a dog": ["a cat", "a dog"], "rain": []}


def test_phrases_from_files(tmp_path):
    (tmp_path / "noted.json").write_text(json.dumps(NOTED))
    (tmp_path / "noted.txt").write_text("a cat and a dog\ta cat\ta dog\n\nrain\n")
    for name in ("noted.json", "noted.txt"):
        assert noun_phrases.from_file(tmp_path / name) == NOTED


@pytest.mark.parametrize(
    "content", ["{", '["a cat"]', '{"a cat": "a cat"}', '{"a cat": [1]}', '{"a cat": 1}']
)
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(UserError, match="bad.json cannot be read.*write JSON"):
        noun_phrases.from_file(tmp_path / "bad.json")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.txt cannot be read"):
        noun_phrases.from_file(tmp_path / "nowhere.txt")


# ---- spaCy ---------------------------------------------------------------------------------------


def test_without_spacy_the_cure_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(
        UserError, match=r"needs? spaCy.*pip install 'dalle3lib\[compbench\]'.*file"
    ):
        noun_phrases.from_spacy(["a cat"])


def test_without_its_english_model_the_cure_is_told(monkeypatch):
    def load(name):
        raise OSError(f"[E050] Can't find model '{name}'.")

    monkeypatch.setitem(sys.modules, "spacy", SimpleNamespace(load=load))
    with pytest.raises(UserError, match="python -m spacy download en_core_web_sm.*file"):
        noun_phrases.without_adjectives(["a red cat"])


class Doc(list):
    """Tokens and noun chunks as spaCy gives them."""

    noun_chunks = [SimpleNamespace(text="The red hat"), SimpleNamespace(text="the coat rack")]


SENTENCE = "The/DET red/ADJ hat/NOUN was/AUX on/ADP top/NOUN of/ADP the/DET coat/NOUN rack/NOUN"


@pytest.fixture
def spacy(monkeypatch):
    """spaCy with one sentence: every text has these tokens."""
    tokens = [token.split("/") for token in SENTENCE.split()]
    doc = Doc(SimpleNamespace(text=text, pos_=tag) for text, tag in tokens)
    module = SimpleNamespace(load=lambda name: lambda text: doc)
    monkeypatch.setitem(sys.modules, "spacy", module)


def test_what_spacy_tells_is_taken_over(spacy):
    assert noun_phrases.from_spacy(["p", "p"]) == {"p": ["The red hat", "the coat rack"]}
    assert noun_phrases.without_adjectives(["p"]) == {"p": "The hat was on top of the coat rack"}
    assert noun_phrases.objects(["p"]) == {"p": ("hat", "rack")}  # the first and the last noun
    assert noun_phrases.objects(["p"], sentences=True) == {"p": ("hat", "coat")}


@pytest.mark.parametrize(
    ("sentence", "pair"),
    [
        ("the/D old/A cat/NOUN sat/V near/ADP a/D big/A dog/NOUN today/NOUN", ("cat", "dog")),
        ("Tom/PROPN is/V next/ADP to/ADP the/D dog/NOUN", ("Tom", "dog")),
        ("the/D cat/NOUN is/V near/ADP Tom/PROPN ./PUNCT", ("cat", "Tom")),
        ("the/D cat/NOUN is/V near/ADP New/PROPN York/PROPN ./PUNCT", ("cat", "York")),
        ("the/D cat/NOUN is/V near/ADP Tom/PROPN", None),  # nothing follows the name
        ("the/D cat/NOUN near/ADP a/D bee/NOUN near/ADP a/D dog/NOUN", None),  # twice
        ("near/ADP the/D dog/NOUN", None),
        ("the/D cat/NOUN sat/V", None),
        ("a/D cat/NOUN on/ADP the/D left/NOUN of/ADP a/D dog/NOUN", ("cat", "dog")),
    ],
)
def test_the_nouns_around_a_preposition(sentence, pair):
    words, tags = zip(*(token.split("/") for token in sentence.split()), strict=True)
    assert noun_phrases.around(words, tags) == pair


def test_the_real_spacy_agrees():
    """Where spaCy and its model are installed: the phrases that a person would name."""
    pytest.importorskip("spacy", reason="needs the extra compbench")
    try:
        found = noun_phrases.from_spacy(["a green bench and a blue bowl"])
    except UserError as error:
        pytest.skip(str(error))
    assert list(found.values()) == [["a green bench", "a blue bowl"]]
