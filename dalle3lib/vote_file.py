"""The SQLite file that holds votes: its tables, and the triggers by which rows are only added."""

import contextlib
import os
import secrets
import sqlite3
from pathlib import Path

from dalle3lib.files import guard

SCHEMA = """
CREATE TABLE study (digest TEXT NOT NULL);
CREATE TABLE raters (number INTEGER PRIMARY KEY, token TEXT NOT NULL UNIQUE, at TEXT NOT NULL);
CREATE TABLE votes (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    rater INTEGER NOT NULL REFERENCES raters (number),
    trial TEXT NOT NULL,
    choice TEXT NOT NULL CHECK (choice IN ('left', 'right', 'tie', 'undo')),
    key TEXT NOT NULL,
    seconds REAL,
    at TEXT NOT NULL,
    UNIQUE (rater, key)
);
CREATE INDEX votes_of ON votes (rater, trial, id);
"""
NO_CHANGE = """
CREATE TRIGGER {table}_{change} BEFORE {change} ON {table}
BEGIN SELECT RAISE(ABORT, 'votes are only ever added'); END;
"""


def create(file: Path, digest: str) -> None:
    """Make an empty file of votes for the plan with this digest, unless another process just did.

    It appears under its name when it is whole. Readers do not wait for the writer (WAL).
    """
    part = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
    with guard(file):
        with contextlib.closing(sqlite3.connect(part)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.executescript(SCHEMA)
            for table in ("study", "raters", "votes"):
                for change in ("UPDATE", "DELETE"):
                    connection.executescript(NO_CHANGE.format(table=table, change=change))
            connection.execute("INSERT INTO study VALUES (?)", [digest])
            connection.commit()
        try:
            os.link(part, file)
        except FileExistsError:
            pass  # the other process was first
        finally:
            part.unlink()
