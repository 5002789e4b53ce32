"""Each source lists its shards the same every time, and gives its images with their captions."""

import io
import json
import os
import pickle

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from test_tars import write_tar

from dalle3lib import UserError, sources
from dalle3lib.sources import Columns, expand_braces, list_shards
from dalle3lib.splits import SPLITS, Folder
from dalle3lib.world import World


def png(colour=(0, 0, 0), size=(32, 32)):
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def items(shards):
    """Every item of all shards; a shard is sent through pickle, as it is to a worker."""
    return [item for shard in pickle.loads(pickle.dumps(shards)) for item in shard.read()]


def summary(shards):
    return [(item.key, item.alt, item.problem) for item in items(shards)]


@pytest.fixture
def photos(tmp_path):
    """Five images a0.png … a4.png in a folder below ``photos``."""
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    for i in range(5):
        (tmp_path / "photos" / "deep" / f"a{i}.png").write_bytes(png((i, 0, 0)))
    return tmp_path / "photos"


def caption(folder, names, texts):
    content = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"id": i, "image_id": i, "caption": t} for i, t in enumerate(texts) if t],
    }
    (folder / "captions.json").write_text(json.dumps(content))


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_without_captions(photos):
    shards = list_shards(str(photos), size=2)
    assert [(s.name, s.images) for s in shards] == [("00000", 2), ("00001", 2), ("00002", 1)]
    assert shards[1].source == "deep/a2.png to deep/a3.png"
    assert summary(shards) == [(f"deep/a{i}.png", None, None) for i in range(5)]
    assert items(shards)[3].image == png((3, 0, 0))
    assert shards == list_shards(str(photos), size=2)


def test_the_order_of_the_folder_does_not_matter(photos, monkeypatch):
    before = list_shards(str(photos), size=2)
    listed = sources.list_files
    monkeypatch.setattr(sources, "list_files", lambda f: sorted(listed(f), reverse=True))
    assert list_shards(str(photos), size=2) == before


def test_a_folder_with_captions(photos):
    caption(photos, ["a3.png", "a1.png", "gone.png", "a0.png"], ["three", "o\ud800ne", "lost", ""])
    found = {key: (alt, problem) for key, alt, problem in summary(list_shards(str(photos)))}
    assert found == {
        "deep/a0.png": (None, None),  # listed, but nobody has described it
        "a1.png": ("o\\ud800ne", None),
        "deep/a2.png": (None, None),
        "a3.png": ("three", None),
        "deep/a4.png": (None, None),
        "gone.png": (None, "it cannot be read: No such file or directory"),
    }


def test_other_json_is_not_captions_but_broken_json_is_a_problem(photos):
    (photos / "notes.json").write_text('{"author": "x"}')
    assert len(items(list_shards(str(photos)))) == 5
    (photos / "captions.json").write_text('{"images": [')
    with pytest.raises(UserError, match="captions.json is not readable JSON"):
        list_shards(str(photos))


def test_damaged_captions_are_listed(photos):
    caption(photos, ["a0.png", "a0.png"], ["one", "two"])
    with pytest.raises(UserError, match="file name listed more than once × 1"):
        list_shards(str(photos))


def test_a_changed_file_changes_its_shard_only(photos):
    before = list_shards(str(photos), size=2)
    (photos / "deep" / "a2.png").write_bytes(png((2, 0, 0), (99, 99)))
    after = list_shards(str(photos), size=2)
    assert [a.identity == b.identity for a, b in zip(before, after, strict=True)] == [
        True,
        False,
        True,
    ]


def test_unreadable_and_too_large_files_and_strange_names(photos, monkeypatch):
    (photos / "b.gif").write_bytes(b"GIF89a")
    (photos / "a.png").mkdir()  # no file, so no image
    with open(os.fsencode(photos) + b"/\xff\n.png", "wb") as file:
        file.write(png())
    monkeypatch.setattr(sources, "MAX_BYTES", 90)
    found = summary(list_shards(str(photos)))
    assert [key for key, _, _ in found][-2:] == ["deep/a4.png", "\\udcff\n.png"]
    assert found[0] == ("b.gif", None, None)  # decoding will say what is wrong with it
    assert [problem for _, _, problem in found[1:3]] == [None, "refused: it has 97 bytes"]


def test_photographs_have_the_keys_and_captions_of_the_record(benchmarks):
    folder = benchmarks / "coco-mini"
    records = {r.key: r.alt for split in SPLITS for r in Folder(folder, split)}
    found = summary(list_shards(str(folder), size=10))
    assert len(found) == 26 and {key: alt for key, alt, _ in found} == records


# ---- tars ----------------------------------------------------------------------------------------


@pytest.fixture
def archives(tmp_path):
    (tmp_path / "tars").mkdir()
    for i in range(3):
        members = [(f"{i}{j}.png", png((i, j, 0))) for j in range(2)] + [(f"{i}1.txt", b"text")]
        write_tar(tmp_path / "tars" / f"t-{i:02d}.tar", members)
    return tmp_path / "tars"


def test_tars_by_folder_pattern_and_name(archives):
    shards = list_shards(str(archives))
    assert [(s.name, s.source, s.images) for s in shards] == [
        (f"{i:05d}", f"t-{i:02d}.tar", None) for i in range(3)
    ]
    assert summary(shards) == [
        (f"{i}{j}", "text" if j else None, None) for i in range(3) for j in range(2)
    ]
    assert list_shards(f"{archives}/t-{{00..02}}.tar") == shards
    assert list_shards(f"{archives}/t-{{00,01,02}}.tar") == shards
    assert list_shards(f"{archives}/t-00.tar") == shards[:1]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a.tar", ["a.tar"]),
        ("a{8..11}.tar", ["a8.tar", "a9.tar", "a10.tar", "a11.tar"]),
        ("{x,y}/{00..01}", ["x/00", "x/01", "y/00", "y/01"]),
        ("a{2..1}", []),
    ],
)
def test_expand_braces(pattern, names):
    assert list(expand_braces(pattern)) == names


# ---- the world -----------------------------------------------------------------------------------


def test_the_world():
    shards = list_shards("world:test:5", size=2)
    assert [s.images for s in shards] == [2, 2, 1]
    for item, record in zip(items(shards), World("test", 5), strict=True):
        assert (item.key, item.alt) == (record.key, record.alt)
        assert np.array_equal(item.image, record.image)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("pipe:cat a.tar", "would run a program"),
        (" pipe:touch canary", "would run a program"),
        ("https://host/a.tar", "not on this machine"),
        ("s3://bucket/a.tar", "not on this machine"),
        ("world:trian:5", "world:SPLIT:COUNT"),
        ("world:train:0", "world:SPLIT:COUNT"),
        ("world:train", "world:SPLIT:COUNT"),
        ("nowhere", "no folder nowhere"),
        ("a-{00..99999999999}.tar", "no archive a-00.tar"),
        ("a-{9..0}.tar", "names no archive"),
        ("hf:some/dataset", "pin it as hf:some/dataset@REVISION"),
    ],
)
def test_addresses_that_are_refused(address, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        list_shards(address)
    assert not list(tmp_path.iterdir())


def test_empty_and_mixed_folders(tmp_path, photos, archives):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no images, tars or tables"):
        list_shards(str(tmp_path / "empty"))
    with pytest.raises(UserError, match="holds images and tars"):
        list_shards(str(tmp_path))
    with pytest.raises(UserError, match="at least 1 image"):
        list_shards(str(photos), size=0)


# ---- Hugging Face datasets -----------------------------------------------------------------------


@pytest.fixture
def table(tmp_path):
    """Five images with a text column, as a ``datasets.Dataset``."""
    images = [{"bytes": png((i, 0, 0)), "path": None} for i in range(5)]
    rows = {
        "image": images,
        "text": [f"text {i}" for i in range(5)],
        "id": list("vwxyz"),
        "same": ["s"] * 5,
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_a_folder_of_parquet_files(table, tmp_path):
    (tmp_path / "p").mkdir()
    for i in range(2):
        table.shard(2, i).to_parquet(tmp_path / "p" / f"train-{i:05d}-of-00002.parquet")
    shards = list_shards(str(tmp_path / "p"))
    assert [s.source for s in shards] == ["train 1 of 2", "train 2 of 2"]
    found = items(shards)
    assert [item.key for item in found] == [
        "00000-000000", "00000-000001", "00000-000002", "00001-000000", "00001-000001",
    ]  # fmt: skip
    assert [item.alt for item in found] == [f"text {i}" for i in range(5)]
    assert [item.image for item in found] == [png((i, 0, 0)) for i in range(5)]
    named = list_shards(f"hf:{tmp_path / 'p'}:train", columns=Columns(text="id", key="id"))
    assert [(item.key, item.alt) for item in items(named)] == [(c, c) for c in "vwxyz"]
    (first, *others) = items(list_shards(f"hf:{tmp_path / 'p'}", columns=Columns(key="same")))
    assert first.key == "s" and first.image and not first.problem
    assert ["its key was used before" in (i.problem or "") for i in others] == [1, 1, 0, 1]
    with pytest.raises(UserError, match="cannot be opened: .*test"):
        list_shards(f"hf:{tmp_path / 'p'}:test")
    with pytest.raises(UserError, match="no column 'caption', only image, text, id, same"):
        list_shards(str(tmp_path / "p"), columns=Columns(text="caption"))


def test_a_saved_dataset(table, tmp_path):
    table.save_to_disk(tmp_path / "saved")
    shards = list_shards(str(tmp_path / "saved"), size=2)
    assert len(shards) == 3
    assert [item.image for item in items(shards)] == [png((i, 0, 0)) for i in range(5)]


def test_rows_without_an_image_and_damaged_tables(table, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(png())
    features = datasets.Features(
        {"image": datasets.Image(), "text": datasets.List(datasets.Value("string"))}
    )
    rows = [{"bytes": None, "path": str(secret)}, None, {"bytes": png(), "path": None}]
    (tmp_path / "p").mkdir()
    path = tmp_path / "p" / "train.parquet"
    raw = datasets.Features(
        {
            "image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
            "text": features["text"],
        }
    )
    made = datasets.Dataset.from_dict({"image": rows, "text": [["a", "b"], [], None]}, features=raw)
    pq.write_table(made.data.table.replace_schema_metadata(features.arrow_schema.metadata), path)
    one, two, three = items(list_shards(str(tmp_path / "p")))
    assert one.problem == two.problem == "the row holds no image, only a path or nothing"
    assert (three.image, three.alt) == (png(), None)
    content = bytearray(path.read_bytes())
    content[4:200] = bytes(196)
    path.write_bytes(content)
    *_, last = items(list_shards(str(tmp_path / "p")))
    assert last.key is None and "this part of the dataset is damaged" in last.problem
