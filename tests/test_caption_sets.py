"""COCO and DOCCI as pairs of photographs and captions: made by hand, and the real photographs."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from dalle3lib import UserError, caption_sets, images, splits
from dalle3lib.caption_sets import Photographs, pairs

ENTRIES = [
    ("train_00000", "A red wall.  It is\nwet."),
    ("train_00001", "A blue wall."),
    ("qual_dev_00000", "A green wall."),
    ("qual_test_00000", "A grey wall."),
    ("test_00000", "A pink wall."),
]


@pytest.fixture
def docci(tmp_path):
    """A folder in DOCCI's layout: five photographs of one colour each."""
    folder = tmp_path / "docci"
    (folder / "images").mkdir(parents=True)
    write(folder, [entry(name, text) for name, text in ENTRIES])
    for number, (name, _) in enumerate(ENTRIES):
        Image.new("RGB", (40, 30), (50 * number, 0, 0)).save(folder / "images" / f"{name}.jpg")
    return folder


def entry(name: str, text: str, **changes) -> dict:
    whole = {"split": name.rpartition("_")[0], "example_id": name, "image_file": f"{name}.jpg"}
    return whole | {"description": text} | changes


def write(folder, entries: list) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in entries]
    (folder / caption_sets.DESCRIPTIONS).write_text("\n".join(lines) + "\n")


# ---- pairs ---------------------------------------------------------------------------------------


def test_docci_by_split(docci):
    found = {split: pairs(docci, split, "dsc") for split in caption_sets.DOCCI_SPLITS}
    assert found["train"].captions == ["A red wall. It is wet.", "A blue wall."]
    assert [path.name for path in found["train"].paths] == ["train_00000.jpg", "train_00001.jpg"]
    assert found["dev"].captions == ["A green wall."] and found["test"].captions == ["A pink wall."]
    said = caption_sets.provenance(docci, "dsc")
    assert said["licence"] == "unknown" and caption_sets.DOCCI.revision in said["set"]


def test_a_relative_folder_lies_in_the_repository(docci, monkeypatch):
    """As in a preset: Jupyter starts in notebooks/, the graph in the repository."""
    monkeypatch.setattr(caption_sets.paths, "ROOT", docci.parent)
    assert pairs("docci", "dev", "dsc").paths == [docci / "images" / "qual_dev_00000.jpg"]


def test_the_pinned_descriptions_are_recognised(docci, monkeypatch):
    monkeypatch.setattr(
        caption_sets.files, "sha256", lambda _: caption_sets.DOCCI.downloads[0].sha256
    )
    said = caption_sets.provenance(docci, "dsc")
    assert said["licence"] == "CC BY 4.0" and said["revision"].startswith("98dbd77")


def test_every_problem_of_docci_is_listed(docci):
    (docci / "images" / "train_00001.jpg").unlink()
    odd = ["no JSON", entry("train_00002", " "), {"example_id": "train_00003"}, "[]"]
    odd.append(entry("train_00004", "text", example_id=4))
    write(docci, [entry(*ENTRIES[0]), entry(*ENTRIES[1]), *odd])
    with pytest.raises(UserError) as error:
        pairs(docci, "train", "dsc")
    for said in ("6 problems", "image file missing × 1", "empty description × 1", "(3, 5, 6, …)"):
        assert said in str(error.value)
    with pytest.raises(UserError, match="has no test photographs"):
        write(docci, [entry(*ENTRIES[0])])
        pairs(docci, "test", "dsc")


def test_an_image_file_cannot_lead_out_of_the_folder(docci):
    write(docci, [entry(*ENTRIES[0], image_file="../../etc/train_00001.jpg")])
    assert pairs(docci, "train", "dsc").paths == [docci / "images" / "train_00001.jpg"]


def test_coco_photographs_with_all_their_captions(benchmarks):
    folder = benchmarks / "coco-mini"
    found = {split: pairs(folder, split, "ssc") for split in ("train", "dev", "test")}
    once = {split: pairs(folder, split, "ssc", every=False) for split in found}
    content = json.loads((folder / "captions_train2017.json").read_text())
    assert sum(len(part.captions) for part in found.values()) == len(content["annotations"])
    assert sum(len(part.paths) for part in once.values()) == len(content["images"]) == 26
    for split, part in once.items():
        records = splits.Folder(folder, split)
        assert part.captions == [record.alt for record in records]
        assert [path.name for path in part.paths] == [record.key for record in records]
        assert list(dict.fromkeys(found[split].paths)) == part.paths
    names = {image["id"]: image["file_name"] for image in content["images"]}
    told = {(names[a["image_id"]], " ".join(a["caption"].split())) for a in content["annotations"]}
    assert {
        (path.name, text) for part in found.values() for path, text in zip(*part, strict=True)
    } == told


@pytest.mark.parametrize(
    ("header", "name", "licence"),
    [
        ({"description": "COCO 2014 Dataset"}, "COCO 2014 train", "captions CC BY 4.0"),
        ({"description": "COCO 2017 Dataset"}, "COCO 2017 Dataset", "unknown"),
        ({}, "a folder with COCO-format captions", "unknown"),
    ],
)
def test_a_set_is_named_by_its_header(benchmarks, tmp_path, header, name, licence):
    content = json.loads((benchmarks / "coco-mini" / "captions_train2017.json").read_text())
    (tmp_path / "captions.json").write_text(json.dumps({**content, "info": header}))
    said = caption_sets.provenance(tmp_path, "ssc")
    assert said["set"].startswith(name) and said["licence"].startswith(licence)


@pytest.mark.parametrize(("kind", "said"), [("ssc", "13.0 GB"), ("dsc", "7.6 GB")])
def test_what_is_missing_is_one_sentence_with_address_and_size(tmp_path, kind, said):
    for folder in (tmp_path, tmp_path / "nowhere"):
        for question in (lambda f: pairs(f, "train", kind), caption_sets.provenance):
            with pytest.raises(UserError) as error:
                question(folder) if question is not caption_sets.provenance else question(
                    folder, kind
                )
            assert all(d.url in str(error.value) for d in caption_sets.SETS[kind].downloads)
            assert said in str(error.value) and "CC BY 4.0" in str(error.value)


# ---- photographs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [10**9, 0])
def test_photographs_by_any_rows(docci, keep, monkeypatch):
    found = pairs(docci, "train", "dsc")
    paths = [*found.paths, found.paths[0]]
    photographs = Photographs(paths, 16, keep)
    decoded = []
    decode = images.decode
    monkeypatch.setattr(images, "decode", lambda *a: decoded.append(a) or decode(*a))
    expected = np.stack([decode(path, 16) for path in paths])
    assert len(photographs) == 3 and np.array_equal(photographs[:], expected)
    assert np.array_equal(photographs[np.array([2, 0])], expected[[2, 0]])
    assert np.array_equal(photographs[1:], expected[1:]) and photographs[:0:-1].dtype == np.uint8
    assert bool(decoded) == (keep == 0)  # kept in memory, or read again from the disk


def test_damaged_photographs_are_all_named_at_the_start(docci):
    found = pairs(docci, "train", "dsc")
    found.paths[0].write_bytes(found.paths[0].read_bytes()[:200])
    found.paths[1].write_bytes(b"")
    with pytest.raises(UserError, match="2 of 2 photographs.*train_00000.*train_00001.*is empty"):
        Photographs(found.paths, 16)


def test_a_photograph_that_vanishes_later_is_named(docci):
    photographs = Photographs(pairs(docci, "train", "dsc").paths, 16, keep=0)
    shutil.rmtree(docci / "images")
    with pytest.raises(UserError, match="train_00001.jpg can no longer be read"):
        photographs[[1]]
