"""Archives from strangers: samples as WebDataset means them, every trick refused, nothing run."""

import io
import os
import pickle
import tarfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, tars
from dalle3lib.tars import read_tar, split_name


def write_tar(path, members, format=tarfile.PAX_FORMAT):
    """A tar of (name, bytes) pairs, or of TarInfo objects as they are."""
    with tarfile.open(path, "w", format=format) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member, io.BytesIO(bytes(member.size)))
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                archive.addfile(info, io.BytesIO(member[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def told(path):
    """What an archive gives: (key, image, alt) of good items, (key, problem) of bad ones."""
    return [
        (item.key, item.problem) if item.problem else (item.key, item.image, item.alt)
        for item in read_tar(path)
    ]


def test_samples_are_runs_of_members_with_one_key(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("0001.jpg", b"first"), ("0001.txt", b"  a cat\n on a mat "), ("0001.cls", b"7"),
            ("0002.json", b'{"caption": "a dog", "width": 3}'), ("0002.PNG", b"second"),
            ("d/0003.seg.webp", b"third"), ("d/0003.json", b"[1, 2]"),
            ("0004.jpeg", b"fourth"), ("0004.caption", b"\xff x"), ("0004.txt", b" "),
        ],
    )  # fmt: skip
    assert told(path) == [
        ("0001", b"first", "a cat on a mat"),
        ("0002", b"second", "a dog"),
        ("d/0003", b"third", None),
        ("0004", b"fourth", "\ufffd x"),
    ]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_in_every_dialect(tmp_path, format):
    name = "/".join(["folder"] * 12) + "/image"  # 89 characters, over 100 with the next line
    names = [name, "x" * 90 + "/" + "y" * 60]
    path = write_tar(tmp_path / "a.tar", [(f"{n}.png", b"data") for n in names], format)
    assert told(path) == [(n, b"data", None) for n in names]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/0001.jpg", ("a/0001", "jpg")),
        ("a.b/0001.left.JPG", ("a.b/0001", "jpg")),
        ("README", (None, "")),
        ("a/._0001.jpg", (None, "")),
        (".hidden.jpg", (None, "")),
        ("a\nb.png", ("a\nb", "png")),
        ("\udcff.png", ("\\udcff", "png")),
    ],
)
def test_split_name(name, expected):
    assert split_name(name) == expected


@pytest.mark.parametrize(
    "name", ["/etc/x.jpg", "../x.jpg", "a/../../x.jpg", "a\\..\\x.jpg", "C:x.jpg"]
)
def test_names_that_lead_out(tmp_path, name):
    path = write_tar(tmp_path / "a.tar", [(name, b"data"), ("ok.jpg", b"image")])
    (_, problem), good = told(path)
    assert problem == "refused: its name leads out of the archive"
    assert good == ("ok", b"image", None)


@pytest.mark.parametrize(
    ("member", "reason"),
    [
        (special("a.jpg", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (special("a.jpg", tarfile.LNKTYPE, "ok.jpg"), "link"),
        (special("a.jpg", tarfile.CHRTYPE), "no plain file"),
        (special("a.jpg", tarfile.BLKTYPE), "no plain file"),
        (special("a.jpg", tarfile.FIFOTYPE), "no plain file"),
        (special("a.jpg", b"Z"), "no plain file"),
    ],
)
def test_what_is_no_plain_file_is_refused(tmp_path, member, reason):
    path = write_tar(tmp_path / "a.tar", [("ok.jpg", b"image"), member])
    good, (key, problem) = told(path)
    assert good == ("ok", b"image", None)
    assert key == "a" and problem.startswith("refused: ") and reason in problem


def test_folders_are_no_news_and_sparse_files_are_refused(tmp_path):
    path = write_tar(tmp_path / "a.tar", [special("d", tarfile.DIRTYPE), ("d/a.jpg", b"1")])
    assert told(path) == [("d/a", b"1", None)]
    with open(tmp_path / "holes.jpg", "wb") as file:
        file.truncate(2**20)
    os.system(f"cd {tmp_path} && tar --sparse --format=gnu -cf s.tar holes.jpg")
    ((key, problem),) = told(tmp_path / "s.tar")
    assert key == "holes" and "full of holes" in problem


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("field", [*tars.PICKLES, "npy", "x.PKL"])
def test_pickles_are_never_opened(tmp_path, field):
    canary = tmp_path / "canary"
    data = pickle.dumps(Canary(canary))
    path = write_tar(tmp_path / "a.tar", [("1.jpg", b"image"), (f"1.{field}", data)])
    found = told(path)
    assert ("1", b"image", None) in found and not canary.exists()
    refused = [problem for _, problem in (f for f in found if len(f) == 2)]
    assert len(refused) == (field != "npy")  # another field is left alone, as any we do not know
    assert all("pickle" in problem for problem in refused)
    pickle.loads(data).close()
    assert canary.exists()  # it would have sung


def test_samples_without_or_with_two_images_and_repeated_keys(tmp_path):
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("1.tif", b"x"), ("1.txt", b"a caption"),
            ("2.jpg", b"2"), ("2.png", b"also"),
            ("3.jpg", b"3"), ("2.webp", b"again"),
        ],
    )  # fmt: skip
    assert told(path) == [
        ("1", "no jpg, png or webp image among its tif, txt"),
        ("2", "it is the second image of its sample"),
        ("2", b"2", None),
        ("3", b"3", None),
        ("2", "its key was used before in this archive"),
    ]


def test_too_large_members(tmp_path, monkeypatch):
    monkeypatch.setattr(tars, "MAX_BYTES", 10)
    monkeypatch.setattr(tars, "MAX_TEXT", 5)
    members = [("1.jpg", bytes(11)), ("2.jpg", b"2"), ("2.txt", b"123456"), ("2.bin", bytes(50))]
    path = write_tar(tmp_path / "a.tar", members)
    assert told(path) == [
        ("1", "refused: it has 11 bytes"),
        ("2", "refused: it has 6 bytes"),
        ("2", b"2", None),
    ]


# ---- damage --------------------------------------------------------------------------------------

MEMBERS = [(f"{i:03d}.{field}", bytes([i]) * size) for i in range(9)
           for field, size in (("jpg", 600), ("txt", 40))]  # fmt: skip


def whole(tmp_path):
    return write_tar(tmp_path / "whole.tar", MEMBERS, tarfile.USTAR_FORMAT)


def test_a_sound_archive_is_not_called_damaged(tmp_path):
    assert [key for key, *_ in told(whole(tmp_path))] == [f"{i:03d}" for i in range(9)]
    assert told(write_tar(tmp_path / "none.tar", [])) == []


@pytest.mark.parametrize("cut", [0, 100, 512, 3000, 5 * 2560, 9 * 2560 - 512, 9 * 2560])
def test_a_cut_archive_is_always_noticed(tmp_path, cut):
    path = whole(tmp_path)
    path.write_bytes(path.read_bytes()[:cut])
    *good, (key, problem) = told(path)
    assert key is None and "the archive is damaged after" in problem
    assert len(good) in (cut // 2560, (cut + 1024) // 2560)  # its image may be there, its text not


def test_a_damaged_header_is_not_the_end(tmp_path):
    path = whole(tmp_path)
    content = bytearray(path.read_bytes())
    content[4 * 2560] ^= 1  # the name of the fifth sample's image
    path.write_bytes(content)
    *good, (key, _) = told(path)
    assert [g[0] for g in good] == ["000", "001", "002", "003"] and key is None


def test_a_page_of_zeros_is_not_the_end(tmp_path):
    path = whole(tmp_path)
    content = bytearray(path.read_bytes())
    content[4 * 2560 : 5 * 2560] = bytes(2560)
    path.write_bytes(content)
    *good, (key, problem) = told(path)
    assert len(good) == 4 and key is None and "more after its end mark" in problem


@pytest.mark.timeout(20)
@pytest.mark.parametrize("size", [-512, -1024, -3072])
def test_a_negative_size_does_not_go_round_for_ever(tmp_path, size):
    """After -512 bytes of content the next header is the same one again."""
    path = whole(tmp_path)
    content = bytearray(path.read_bytes())
    header = content[2560:3072]
    header[124:136] = b"\xff" * 10 + (size % 2**16).to_bytes(2, "big")  # base 256
    header[148:156] = b" " * 8  # the checksum counts itself as spaces
    header[148:156] = b"%06o\0 " % sum(header)
    assert tarfile.TarInfo.frombuf(bytes(header), "utf-8", "strict").size == size
    content[2560:3072] = header
    path.write_bytes(content)
    *good, (key, problem) = told(path)
    assert key is None and len(good) <= 3


def test_compressed_archives_and_other_files_are_no_tars(tmp_path):
    import gzip

    path = tmp_path / "a.tar"
    path.write_bytes(gzip.compress(whole(tmp_path).read_bytes()))
    ((key, problem),) = told(path)
    assert key is None and "damaged after 0 bytes" in problem
    with pytest.raises(UserError, match="cannot be read"):
        told(tmp_path / "none.tar")


def fuzzed(content, rng):
    """A copy of some bytes that is cut, has some bits flipped, or a block of zeros."""
    data, kind = bytearray(content), rng.integers(3)
    if kind == 0:
        return bytes(data[: rng.integers(len(data))])
    if kind == 1:
        for bit in rng.integers(0, 8 * len(data), rng.integers(1, 20)):
            data[bit // 8] ^= 1 << bit % 8
    else:
        start = rng.integers(len(data))
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    return bytes(data)


@pytest.mark.parametrize("count", [40, pytest.param(150, marks=pytest.mark.soak)])
def test_fuzzed_archives_lose_nothing_silently(tmp_path, count):
    content, path = whole(tmp_path).read_bytes(), tmp_path / "fuzzed.tar"
    keys, noticed, unnoticed = {f"{i:03d}" for i in range(9)}, 0, 0
    for seed in range(count):
        path.write_bytes(fuzzed(content, np.random.default_rng(seed)))
        items = list(read_tar(path))
        damaged = [item for item in items if item.key is None]
        noticed += len(damaged)
        assert len(damaged) <= 1 and all(item is items[-1] for item in damaged)
        assert all(item.problem or item.image is not None for item in items)
        captioned = [item.key for item in items if not item.problem]
        assert len(captioned) == len(set(captioned))
        found = {item.key for item in items}
        if not damaged and found != keys:  # only zeros up to the very end look like a sound end
            rest = path.read_bytes()[len(found) * 2560 :]
            assert found < keys and not rest.strip(b"\0")
            unnoticed += 1
    assert unnoticed <= count / 20
    assert noticed > count / 4  # cuts, and headers that no longer fit their checksum


@given(st.binary(max_size=4096))
@settings(max_examples=60)
def test_any_bytes_end_in_one_entry(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "any.tar"
    path.write_bytes(data)
    *good, last = read_tar(path)
    assert last.key is None and not good
