"""Answers of language models on disk: bought once, written before use, never changed.

A file of JSON lines, one an answer, that only grows. A line is on the disk before its answer is
handed out, so that whatever stops a run, what was paid for is there. A line that a crash cut short
is recognised, listed and passed over; its request is simply asked again.
"""

import contextlib
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from dalle3lib import files


class Answer(NamedTuple):
    """What a model answered: the text, why it ended, the tokens read and written, the cost.

    ``finish`` is the protocol's finish_reason ("stop", "length", "content_filter", …) or
    "refusal". ``cost`` is in the currency of the prices that held when it was bought.
    """

    text: str
    finish: str
    prompt_tokens: int
    completion_tokens: int
    cost: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens read and written."""
        return self.prompt_tokens + self.completion_tokens


def key(request: dict[str, Any]) -> str:
    """The SHA-256 of a request's content: model, messages (with their images) and options."""
    return files.digest(request)


class Cache:
    """The answers in one file, which need not exist yet.

    ``problems`` lists the lines that hold no answer ("line 7 is cut short or damaged"). Several
    processes may use one file: who holds it (``hold``) is alone, and sees what the others wrote.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.problems: list[str] = []
        self._answers: dict[str, Answer] = {}
        self._read, self._lines = 0, 0  # bytes and lines of the file that were looked at
        self._held, self._file = 0, None
        self._lock = threading.RLock()
        if self.path.is_file():
            self._look()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, name: str) -> Answer | None:
        """The answer to the request of a ``key``; None if there is none."""
        return self._answers.get(name)

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Keep other processes from the file, waiting for them first; threads of this one share it.

        Raises UserError if the file cannot be written.
        """
        with self._lock:
            if not self._held:
                self._open()
            self._held += 1
        try:
            yield
        finally:
            with self._lock:
                self._held -= 1
                if not self._held:
                    self._file.close()  # which releases the lock

    def put(self, name: str, request: dict[str, Any], answer: Answer) -> None:
        """Append an answer and wait until it is on the disk; call it while holding the file.

        The line says what was asked too, each image by its SHA-256 alone. Raises UserError if the
        disk is full.
        """
        line = {"key": name, "request": _without_images(request), "answer": answer._asdict()}
        data = json.dumps(line, ensure_ascii=False).encode() + b"\n"
        with self._lock, files.guard(self.path):
            if self._read and not self._whole():
                data = b"\n" + data  # what a crash left of a line stays a line of its own
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
            self._catch_up()

    def _open(self) -> None:
        with files.guard(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "ab")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"Waiting for another process that adds answers to {self.path}.", flush=True)
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._catch_up()

    def _look(self) -> None:
        """Read what is there without waiting; a line that is just being written is left."""
        with open(self.path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._catch_up(writing=True)
            self._catch_up()

    def _whole(self) -> bool:
        """Whether the file ends with the end of a line."""
        with open(self.path, "rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == b"\n"

    def _catch_up(self, writing: bool = False) -> None:
        """Read the lines that were added since the last look."""
        with open(self.path, "rb") as file:
            file.seek(self._read)
            lines = file.read().splitlines(keepends=True)
        for line in lines:
            if writing and not line.endswith(b"\n"):
                break
            self._read += len(line)
            if not line.strip():
                continue
            self._lines += 1
            try:
                entry = json.loads(line)
                self._answers.setdefault(entry["key"], Answer(**entry["answer"]))
            except (ValueError, KeyError, TypeError):
                self.problems.append(f"line {self._lines} is cut short or damaged")


def _without_images(value: Any) -> Any:
    """A request in which each data URL is replaced by its SHA-256."""
    if isinstance(value, dict):
        return {name: _without_images(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_without_images(inner) for inner in value]
    if isinstance(value, str) and value.startswith("data:"):
        return f"data URL with SHA-256 {files.digest(value)}"
    return value
