"""Files that are whole or not there: hashing, checking, and writing without half-written ones."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from dalle3lib import UserError


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listing(directory: Path, paths: Iterable[Path]) -> dict[str, dict]:
    """Return a manifest's table of files: name relative to ``directory`` to size and SHA-256."""
    return {
        path.relative_to(directory).as_posix(): {
            "sha256": sha256(path),
            "size": path.stat().st_size,
        }
        for path in paths
    }


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file; UserError if it is missing or no JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); restore it or make it again.") from None


def damage(directory: Path, files: dict[str, dict], content: bool = True) -> str | None:
    """Compare files with a manifest's list and return what is wrong with the first bad one.

    ``files`` maps a name relative to ``directory`` to ``{"size": bytes, "sha256": hex digits}``.
    Returns None when every file is there, byte for byte, else a phrase such as
    ``"weights.safetensors is missing"``. Without ``content`` only sizes are compared.
    """
    for name, expected in files.items():
        path = directory / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != expected["size"]:
            return f"{path} has {path.stat().st_size} bytes instead of {expected['size']}"
        if content and sha256(path) != expected["sha256"]:
            return f"{path} is damaged (its bytes do not match its manifest)"
    return None


def to_json(value: Any) -> str:
    """Return readable JSON; numpy numbers and arrays and paths become plain values.

    Raises UserError for NaN and infinity, which JSON cannot hold.
    """
    try:
        return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain)
    except ValueError:
        raise UserError("A result is NaN or infinite, so it was not written.") from None


def _plain(value: Any) -> Any:
    """Return a numpy or torch value as plain numbers, and anything else (a path) as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


def digest(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON as 64 hexadecimal digits."""
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain
    )
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def guard(path: str | Path) -> Iterator[None]:
    """Turn a full disk or a missing write permission into one clear UserError naming ``path``.

    Libraries in Rust and C++ report the same causes in exceptions of their own, so the message
    is looked at too.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number, text = getattr(error, "errno", None), str(error)
        full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        denied = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
        if number in full or any(os.strerror(n) in text for n in full):
            cause, cure = "the disk is full", "free some space"
        elif number in denied or any(os.strerror(n) in text for n in denied):
            cause, cure = "there is no permission to write there", "make it writable"
        else:
            raise
        raise UserError(
            f"Cannot write {path}: {cause}; {cure} or set DALLE3_RUNS to another directory, "
            "and run the same command again (everything finished so far is kept)."
        ) from error


def write_atomic(path: str | Path, data: bytes) -> None:
    """Write a file so that a crash leaves either the old bytes or the new ones, never a mixture.

    Raises UserError when the disk is full or may not be written to; the old file then stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with guard(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            _sync_directory(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _sync_directory(directory: Path) -> None:
    """Make a rename in a directory survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
