"""WebDataset tars: read member by member, nothing extracted to disk, nothing executed.

A sample is a run of members that share their name up to the first dot: ``0001.jpg``, ``0001.txt``.
Archives come from strangers. A member is only ever read as an image, a text or JSON; whatever
tries to be something else (a link, a device, a pickle, a name that leads out of the archive) is
refused with its reason. A tar has no checksum of its content and Python's ``tarfile`` takes a
damaged header for the end of the archive, so the end is checked here. What cannot be noticed: bits
that changed inside an image that still decodes, and zeros from some member to the very end.
"""

import errno
import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np

from dalle3lib import UserError

IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("txt", "caption", "json")
PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "ckpt", "joblib", "dill")  # can run code
MAX_BYTES = 128 * 2**20  # of one encoded image; photographs have a few MiB
MAX_TEXT = 2**20  # bytes of one caption


@dataclass(frozen=True, eq=False)
class Item:
    """One image of a source, or why there is none.

    ``image`` is the file's bytes, or the pixels uint8 [H, W, 3]; ``alt`` the caption found with
    it, or None. ``file`` names the place in the source. If ``problem`` is set, there is no image;
    if ``key`` is None too, the archive itself is damaged and its remaining images are lost.
    """

    key: str | None
    image: bytes | np.ndarray | None = None
    alt: str | None = None
    file: str = ""
    problem: str | None = None


def printable(text: str) -> str:
    """The text with what no file can hold as UTF-8 (lone surrogates) written as backslash codes."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class Member:
    """A member of an archive: its sample's key, its field (``jpg``), and its bytes or a refusal."""

    key: str | None
    field: str
    name: str
    data: bytes | None
    problem: str | None


def read_tar(path: Path) -> Iterator[Item]:
    """The samples of an uncompressed tar in its order; see ``Item`` for what is wrong with some.

    ``key`` is the WebDataset key. Raises UserError if the file cannot be read at all.
    """
    seen: set[str] = set()
    for key, members in groupby(_members(path), key=lambda member: member.key):
        image, texts, fields, problems = None, {}, [], []
        for member in members:
            fields.append(member.field)
            if member.problem:
                problems.append(Item(key, file=member.name, problem=member.problem))
            elif member.field in IMAGES and image:
                reason = "it is the second image of its sample"
                problems.append(Item(key, file=member.name, problem=reason))
            elif member.field in IMAGES:
                image = member
            elif member.data is not None:
                texts.setdefault(member.field, member.data)
        if key in seen:
            yield Item(key, file=key, problem="its key was used before in this archive")
            continue
        seen.add(key)
        if not image and not problems:
            reason = f"no jpg, png or webp image among its {', '.join(fields)}"
            problems.append(Item(key, file=key, problem=reason))
        yield from problems
        if image:
            yield Item(key, image.data, _caption(texts), image.name)


def _members(path: Path) -> Iterator[Member]:
    """The regular members of an archive; last of all a problem without a key if it is damaged."""
    position = -1
    try:
        with tarfile.open(path, "r:") as archive:  # "r:" reads plain tars only: no zip bombs
            while (info := archive.next()) is not None:
                archive.members.clear()  # kept by tarfile, which would fill the memory
                if archive.offset <= position:  # a negative size would send it round for ever
                    raise tarfile.ReadError("a member has a negative size")
                position = archive.offset
                problem = refusal(info)
                key, field = split_name(info.name)
                if problem:
                    yield Member(
                        key or printable(info.name), field, printable(info.name), None, problem
                    )
                elif key and info.isfile():
                    wanted = field in IMAGES + TEXTS
                    data = archive.extractfile(info).read() if wanted else None
                    yield Member(key, field, printable(info.name), data, None)
            _check_end(archive)
    except Exception as error:  # tarfile raises a dozen kinds on damaged headers
        if getattr(error, "errno", None) in (errno.EIO, errno.EACCES, errno.ENOENT, errno.ESTALE):
            raise UserError(
                f"{path} cannot be read ({error}); run the same command again."
            ) from error
        reason = (
            f"the archive is damaged after {max(position, 0):,} bytes, the rest is lost: {error}"
        )
        yield Member(None, "", path.name, None, printable(reason))


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless an archive ends with its end mark: a block of zeros, then no more."""
    file = archive.fileobj
    file.seek(archive.offset)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("it breaks off, or a header in it is damaged")
    while rest := file.read(2**20):
        if rest.strip(b"\0"):
            raise tarfile.ReadError("there is more after its end mark")


def split_name(name: str) -> tuple[str | None, str]:
    """A member's key and field: ``("a/0001", "jpg")`` of ``a/0001.jpg``; no key for ``a/.x``."""
    match = re.fullmatch(r"((?:.*/)?[^./][^./]*)\.([^/]*)", name, re.DOTALL)
    if not match:
        return None, ""
    return printable(match[1]), match[2].rpartition(".")[2].lower()


def refusal(info: tarfile.TarInfo) -> str | None:
    """Why a member of an archive is not read, or None."""
    parts = re.split(r"[/\\]", info.name)
    field = parts[-1].rpartition(".")[2].lower()
    if not parts[0] or ".." in parts or re.match("[A-Za-z]:", info.name) or "\0" in info.name:
        return "refused: its name leads out of the archive"
    if info.issym() or info.islnk():
        return "refused: it is a link"
    if info.isdir():
        return None
    if not info.isreg() or info.issparse():
        return "refused: it is no plain file (a device, a pipe or full of holes)"
    if field in PICKLES:
        return "refused: it is a pickle, which could run a program when opened"
    if info.size > (MAX_TEXT if field in TEXTS else MAX_BYTES) and field in IMAGES + TEXTS:
        return f"refused: it has {info.size:,} bytes"
    return None


def _caption(texts: dict[str, bytes]) -> str | None:
    """The caption among a sample's texts: its txt, its caption, or "caption" in its json."""
    for field in TEXTS:
        text = texts.get(field, b"").decode("utf-8", "replace")
        if field == "json":
            try:
                text = json.loads(text)["caption"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
        if isinstance(text, str) and text.strip():
            return printable(" ".join(text.split()))
    return None
