"""Synthetic captions of a dataset: committed ones found by the picture, others written live."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from tiny_coca import tiny_config, tiny_tokenizer

from dalle3lib import UserError, captioner, files, recaption
from dalle3lib.world import World

RECORDS = list(World("train", 6))
WRITTEN = {
    "ssc": [f"short caption {i}." for i in range(6)],
    "dsc": [f"a long caption of picture {i}." for i in range(6)],
}


@pytest.fixture
def committed(foundations):
    """The captions of six records, committed to a directory of the test's own."""
    directory = recaption.commit_captions(RECORDS, WRITTEN)
    recaption.committed.cache_clear()
    return directory


@pytest.fixture
def live(monkeypatch):
    """A captioner that says which pictures it was asked about; returns its list of questions."""
    asked = []

    def write(records, kind):
        asked.append((kind, [r.key for r in records]))
        return [f"live {kind} {r.key}" for r in records]

    monkeypatch.setattr(recaption, "write_captions", write)
    return asked


def test_picture_id_is_that_of_the_pixels():
    image = np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)
    assert recaption.picture_id(image) == "5678cf5dd10aacef"  # committed files depend on it
    assert recaption.picture_id(np.asfortranarray(image)) == recaption.picture_id(image)
    changed = image.copy()
    changed[63, 63, 2] ^= 1
    assert recaption.picture_id(changed) != recaption.picture_id(image)
    ids = {recaption.picture_id(r.image) for r in World("train", 300)}
    assert len(ids) == 300 and all(len(i) == 16 for i in ids)


def test_committed_captions_are_found_by_picture(committed, live):
    for kind in recaption.KINDS:
        assert recaption.synthetic_captions(RECORDS, kind) == WRITTEN[kind]
        order = [4, 0, 4]
        found = recaption.synthetic_captions([RECORDS[i] for i in order], kind)
        assert found == [WRITTEN[kind][i] for i in order]
    assert live == []


def test_the_key_of_a_record_does_not_matter(committed, live):
    quiet = World("train", 1, noise=0)[0]  # another alt-text, the same picture
    assert recaption.synthetic_captions([quiet], "dsc") == WRITTEN["dsc"][:1]
    assert live == []


def test_other_pictures_are_captioned_live_in_their_places(committed, live):
    strangers = list(World("test", 2))
    mixed = [RECORDS[1], strangers[0], RECORDS[0], strangers[1]]
    assert recaption.synthetic_captions(mixed, "ssc") == [
        WRITTEN["ssc"][1], "live ssc test-000000", WRITTEN["ssc"][0], "live ssc test-000001",
    ]  # fmt: skip
    assert live == [("ssc", ["test-000000", "test-000001"])]  # asked once, of these only


def test_without_committed_captions_all_are_live(foundations, live):
    assert recaption.committed() == {"ssc": {}, "dsc": {}}
    assert recaption.synthetic_captions(RECORDS[:2], "dsc") == [
        "live dsc train-000000", "live dsc train-000001",
    ]  # fmt: skip


def test_the_shipped_captioners_write(foundations):
    short, long = (recaption.synthetic_captions(RECORDS[:3], kind) for kind in recaption.KINDS)
    assert all(caption.strip() for caption in short + long)
    assert short != long
    again = recaption.write_captions(RECORDS[:3], "ssc")
    assert again == short


def test_unknown_kind():
    with pytest.raises(UserError, match="'alt'.*ssc or dsc"):
        recaption.load_captioner("alt")


def test_what_is_committed(committed, foundations):
    table = pq.read_table(committed / recaption.FILE).to_pydict()
    assert table == {
        "key": [r.key for r in RECORDS],
        "picture": [recaption.picture_id(r.image) for r in RECORDS],
        "alt": [r.alt for r in RECORDS],
        **WRITTEN,
    }
    manifest = json.loads((committed / "manifest.json").read_text())
    assert manifest["rows"] == 6
    assert files.damage(committed, manifest["files"]) is None
    assert manifest["captioners"]["dsc"] == files.sha256(foundations / "coca-dsc" / "manifest.json")


@pytest.mark.parametrize("bit", [0, 12_345])
def test_a_flipped_bit_in_the_committed_captions(committed, flip, bit):
    flip(committed / recaption.FILE, bit)
    with pytest.raises(UserError, match=f"{recaption.FILE} is damaged.*restore data/captions"):
        recaption.synthetic_captions(RECORDS, "dsc")


def test_a_missing_or_cut_table(committed):
    table = committed / recaption.FILE
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(UserError, match="bytes instead of"):
        recaption.committed()
    table.unlink()
    with pytest.raises(UserError, match="is missing"):
        recaption.committed()


def test_a_damaged_manifest(committed):
    (committed / "manifest.json").write_text('{"rows"')
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        recaption.committed()


def test_a_damaged_captioner(foundations, tiny_foundation, tmp_path, monkeypatch, flip):
    shutil.copytree(tiny_foundation, tmp_path / "copy")
    flip(tmp_path / "copy" / "coca-ssc" / "open_clip_model.safetensors", 123_456)
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path / "copy"))
    with pytest.raises(UserError, match="open_clip_model.safetensors is damaged"):
        recaption.synthetic_captions(RECORDS[:1], "ssc")
    assert recaption.synthetic_captions(RECORDS[:1], "dsc")  # the other is whole


def test_a_captioner_is_found_by_what_the_parameters_say(tmp_path):
    tokenizer = tiny_tokenizer()
    model = captioner.build(tokenizer, 0, tiny_config())
    captioner.save(model, tokenizer, tmp_path / "mine")
    *_, length = recaption.find_captioner("ssc", str(tmp_path / "mine"))
    assert length == 40  # its own context: nobody knows how long its captions are meant to be
    with pytest.raises(UserError, match="no captioner in nowhere"):
        recaption.find_captioner("ssc", "nowhere")
    with pytest.raises(UserError, match="cannot be loaded"):
        recaption.find_captioner("ssc", "coca_ViT-B-32:no_such_tag")


def test_a_relative_captioner_lies_in_the_repository_and_home_is_known(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(captioner, "load", lambda path: (path, None))
    monkeypatch.setattr(recaption, "context_length", lambda _: 40)
    monkeypatch.setattr(recaption.paths, "ROOT", tmp_path)
    assert recaption.find_captioner("base", "mine")[0] == tmp_path / "mine"
    monkeypatch.setenv("HOME", str(tmp_path))
    chosen, _ = recaption._captioners(["dsc"], {"dsc": "~/mine"}, {})
    assert chosen == {"dsc": tmp_path / "mine"}


def test_shipped_captioners_have_their_lengths(monkeypatch):
    asked = []
    monkeypatch.setattr(captioner, "load", lambda path: (asked.append(path), None))
    monkeypatch.setattr(recaption.paths, "foundation", lambda name: name)
    found = {kind: recaption.find_captioner(kind)[2] for kind in ("base", "ssc", "dsc")}
    assert found == {"base": 48, "ssc": 16, "dsc": 48}
    assert asked == ["coca-base", "coca-ssc", "coca-dsc"]
