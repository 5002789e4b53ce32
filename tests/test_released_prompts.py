"""OpenAI's released prompts: what upsampling did, on made-up lines and on the real files."""

import hashlib
import io
import urllib.error

import pytest

from dalle3lib import UserError, released_prompts
from dalle3lib.upsample import prepended


def test_each_kind_of_line_is_told_apart():
    originals = ["A cat.", "some skittles", "A room in a house."]
    released = ["A cat.. " + "word " * 14 + "End", "some skittles", "A hut in a wood.. a small hut"]
    table = released_prompts.compare(originals, released)
    assert table.kind.tolist() == ["upsampled", "unchanged", "edited"]
    assert table.words.tolist() == [15, 0, 3]
    assert table.in_range.tolist() == [True, False, False]
    assert table.lower_case.tolist()[::2] == [False, True]
    assert table.prepended[2] == "A hut in a wood." and table.description[2] == "a small hut"


def test_the_released_pairs(benchmarks, monkeypatch):
    monkeypatch.setenv("DALLE3_BENCHMARKS", str(benchmarks))
    table = released_prompts.pairs()
    assert len(table) == 200
    assert table.index[table.kind == "unchanged"].tolist() == [153]
    assert table.original[153] == table.released[153] == "some skittles"
    assert table.index[table.kind == "edited"].tolist() == [167]
    assert table.prepended[167] == "Photo of a mega Lego space station inside a kid's bedroom."
    assert table.original[167] == "Photo of a mega Lego space station inside a bedroom."
    written = table[table.kind != "unchanged"]
    assert written.in_range.all() and written.lower_case.all() and written.words.max() == 78
    for row in table[table.kind == "upsampled"].itertuples():  # our own form is theirs
        assert prepended(row.original, row.description) == row.released
    facts = released_prompts.summary(table).set_index("fact").value
    assert facts["original prompt, then a description"] == 198
    assert facts["words of a description, median"] == 48
    assert facts["words of a description, mean"] == pytest.approx(49.53, abs=0.01)


def test_files_that_are_missing_or_altered_are_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DALLE3_BENCHMARKS", raising=False)
    with pytest.raises(UserError, match="github.com/openai/dalle3-eval-samples"):
        released_prompts.pairs()
    (tmp_path / "drawbench.txt").write_text("A cat.\n")
    with pytest.raises(UserError, match="drawbench.txt is missing or altered"):
        released_prompts.pairs(tmp_path)


def test_a_download_is_checked_before_it_is_kept(tmp_path, monkeypatch):
    content = {"a.txt": b"A cat.\n", "b.txt": b"A cat.. a small cat\n"}
    pinned = [
        released_prompts.Download(f"https://x/{n}", len(b), hashlib.sha256(b).hexdigest())
        for n, b in content.items()
    ]
    monkeypatch.setattr(released_prompts, "ORIGINAL", pinned[0])
    monkeypatch.setattr(released_prompts, "UPSAMPLED", pinned[1])
    asked = []

    def served(url, timeout):
        asked.append(url)
        return io.BytesIO(content[url.rpartition("/")[2]])

    monkeypatch.setattr(released_prompts.urllib.request, "urlopen", served)
    assert released_prompts.pairs(released_prompts.fetch(tmp_path)).words.tolist() == [3]
    released_prompts.fetch(tmp_path)
    assert len(asked) == 2  # nothing is fetched twice
    (tmp_path / "a.txt").unlink()
    content["a.txt"] = b"A dog.\n"
    with pytest.raises(UserError, match="not the file of its revision"):
        released_prompts.fetch(tmp_path)
    assert not (tmp_path / "a.txt").exists()

    def offline(url, timeout):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(released_prompts.urllib.request, "urlopen", offline)
    with pytest.raises(UserError, match="cannot be fetched"):
        released_prompts.fetch(tmp_path)
