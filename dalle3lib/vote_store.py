"""Votes of human raters: stored once each, never changed, whatever crashes or votes at once.

The store is one SQLite file in the study's folder. Rows are only ever added: an undo is a row of
its own, and triggers refuse any change. A vote carries a key made by whoever sends it, so that a
vote sent again (a page that got no answer, a second click) is acknowledged and not counted twice.
Any number of threads and processes may use one store at the same time, each process after opening
it for itself.
"""

import contextlib
import hashlib
import hmac
import math
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from dalle3lib import UserError, human, vote_file
from dalle3lib.files import guard

FILE = "votes.sqlite"
CHOICES = ("left", "right", "tie")
WAIT = 30  # seconds for which a process waits while others write


class Refused(UserError):
    """Somebody asked for what is not theirs: an unknown token, trial, picture or rater."""


class AlreadyVoted(UserError):
    """A trial has a vote already; undo it to vote again."""


class Progress(NamedTuple):
    """How many of a rater's trials have a vote."""

    done: int
    total: int


class VoteStore:
    """The votes of one study; ``VoteStore.create(folder)`` or ``VoteStore.open(folder)``.

    ``plan`` is the study's plan. A vote that a method acknowledged is on the disk.
    """

    def __init__(self, folder: str | Path) -> None:
        """Use ``open``, which checks that the store is there and belongs to the plan."""
        self.plan = human.load(folder)
        self.file = self.plan.folder / FILE
        self._local, self._process = threading.local(), os.getpid()

    @classmethod
    def create(cls, folder: str | Path) -> "VoteStore":
        """The store of a study, made empty if there is none yet, else opened."""
        store = cls(folder)
        if store.file.exists():
            return cls.open(folder)
        vote_file.create(store.file, store.plan.digest)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: str | Path) -> "VoteStore":
        """The store of a study; UserError if there is none, or its plan has changed since."""
        store = cls(folder)
        if not store.file.is_file():
            raise UserError(f"{folder} has no votes yet: start with `python -m dalle3lib rate`.")
        with store._reading() as connection:
            (digest,) = connection.execute("SELECT digest FROM study").fetchone()
        if digest != store.plan.digest:
            raise UserError(
                f"The plan in {folder} has changed since the first vote, so votes no longer mean "
                "what they did: restore plan.json and key.json, or start a study of its own."
            )
        return store

    # ---- raters ----------------------------------------------------------------------------------

    def invite(self, count: int = 1, secret: str | None = None) -> list[str]:
        """Add raters; their secret tokens, one each. Only a hash is kept, so note them down.

        With a ``secret`` they are made of it and can be made again (``token``).
        """
        if count < 1:
            raise UserError(f"{count} raters cannot be invited: invite 1 or more.")
        with self._writing() as connection:
            (first,) = connection.execute("SELECT count(*) FROM raters").fetchone()
            secret = secret or secrets.token_hex()
            tokens = [self.token(secret, first + i) for i in range(count)]
            rows = [(first + i, _hash(token), _now()) for i, token in enumerate(tokens)]
            connection.executemany("INSERT INTO raters VALUES (?, ?, ?)", rows)
        return tokens

    def token(self, secret: str, rater: int) -> str:
        """The token that ``invite`` makes of a secret, another one in each study: 32 hex digits."""
        told = f"{self.plan.digest}|{rater}".encode()
        return hmac.new(secret.encode(), told, hashlib.sha256).hexdigest()[:32]

    def rater(self, token: str) -> int:
        """The number of the rater who has this token, from 0; Refused if nobody has."""
        query = "SELECT number FROM raters WHERE token = ?"
        with self._reading() as connection:
            found = connection.execute(query, [_hash(token)]).fetchone()
        if found is None:
            raise Refused("This link belongs to no rater of this study: ask for a new one.")
        return found[0]

    def raters(self) -> int:
        """How many raters were invited."""
        with self._reading() as connection:
            return connection.execute("SELECT count(*) FROM raters").fetchone()[0]

    # ---- voting ----------------------------------------------------------------------------------

    def next_trial(self, rater: int) -> human.Trial | None:
        """The rater's first trial without a vote; None when all have one."""
        with self._reading() as connection:
            voted = _current(connection, rater)
        return next((t for t in human.trials(self.plan, rater) if t.id not in voted), None)

    def progress(self, rater: int) -> Progress:
        """How far a rater has come."""
        with self._reading() as connection:
            voted = _current(connection, rater)
        return Progress(len(voted), len(human.trials(self.plan, rater)))

    def vote(
        self, rater: int, trial_id: str, choice: str, key: str, seconds: float | None = None
    ) -> bool:
        """Store a vote: True if it is new, False if this very vote was stored before.

        ``choice`` is "left", "right" or "tie"; ``key`` names this vote among all of the rater's
        (1 to 64 characters, made by the sender, the same when it is sent again); ``seconds`` is how
        long the rater looked. Raises Refused for a trial that the rater does not have and a key
        that named another vote, AlreadyVoted for a trial that has a vote under another key, and
        UserError for an impossible choice, key or time.
        """
        if choice not in CHOICES:
            raise UserError(f"A vote is left, right or tie, not {choice!r}.")
        if all(trial.id != trial_id for trial in human.trials(self.plan, rater)):
            raise Refused("This comparison is not one of yours: reload the page.")
        if seconds is not None and not 0 <= seconds < math.inf:
            raise UserError(f"A vote cannot take {seconds} seconds.")
        with self._writing() as connection:
            if stored := _stored(connection, rater, key):
                return _replayed(stored, (trial_id, choice))
            if trial_id in _current(connection, rater):
                raise AlreadyVoted("This comparison has your vote already: undo it to change it.")
            _add(connection, rater, trial_id, choice, key, seconds)
        return True

    def undo(
        self, rater: int, key: str | None = None, after: int | None = None
    ) -> human.Trial | None:
        """Take back the rater's last vote; the trial that is open again, None if there was no vote.

        The vote stays in the history. With a ``key`` (as of ``vote``), a request sent again takes
        back nothing further; with ``after``, nothing is taken back, and None returned, unless this
        many trials have a vote (a second page may show what is no longer so).
        """
        key = secrets.token_hex(16) if key is None else key
        of = {trial.id: trial for trial in human.trials(self.plan, rater)}
        with self._writing() as connection:
            if stored := _stored(connection, rater, key):
                _replayed(stored, (stored[0], "undo"))
                return of[stored[0]]
            voted = _current(connection, rater)
            if not voted or after not in (None, len(voted)):
                return None
            last = max(voted, key=voted.get)
            _add(connection, rater, last, "undo", key, None)
        return of[last]

    def image(self, name: str) -> Path:
        """The file of a picture that raters see; Refused for any other name."""
        if name not in self.plan.images:
            raise Refused("There is no such picture in this study.")
        return self.plan.folder / "images" / name

    # ---- reading all votes -----------------------------------------------------------------------

    def votes(self) -> pd.DataFrame:
        """Every row ever stored, in order, with what it means.

        Columns: id, rater, trial, choice (left, right, tie or undo), key, seconds, at (UTC),
        current (the vote stands: not taken back), and those of ``human.meaning``.
        """
        with self._reading() as connection:
            query = "SELECT id, rater, trial, choice, key, seconds, at FROM votes ORDER BY id"
            rows = connection.execute(query).fetchall()
        names = ["id", "rater", "trial", "choice", "key", "seconds", "at"]
        table = pd.DataFrame(rows, columns=names).astype({"seconds": float})
        last = ~table.duplicated(["rater", "trial"], keep="last")
        table["current"] = last & (table.choice != "undo")
        return table.join(human.meaning(self.plan, table))

    def export(self, path: str | Path) -> Path:
        """Write ``votes`` as CSV or parquet, by the ending of ``path``; no token is in it."""
        path, table = Path(path).expanduser(), self.votes()
        if path.suffix not in (".csv", ".parquet"):
            raise UserError(f"Votes are exported as .csv or .parquet, not as {path.name!r}.")
        part = path.with_name(f".{path.name}.{os.getpid()}.part")
        with guard(path):
            if path.suffix == ".csv":
                table.to_csv(part, index=False)
            else:
                table.to_parquet(part, index=False)
            part.replace(path)
        return path

    # ---- the file --------------------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        """This thread's connection; UserError in a forked process, which SQLite cannot serve."""
        if os.getpid() != self._process:
            raise UserError("A process started by fork cannot use this store: open it there again.")
        if not hasattr(self._local, "connection"):
            made = sqlite3.connect(self.file, timeout=WAIT, isolation_level=None)
            made.execute(f"PRAGMA busy_timeout = {1000 * WAIT}")
            made.execute("PRAGMA synchronous = FULL")  # an acknowledged vote survives a power cut
            self._local.connection = made
        return self._local.connection

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """The connection; what goes wrong with the file becomes a UserError."""
        try:
            yield self._connection()
        except sqlite3.Error as error:
            raise UserError(
                f"{self.file} cannot be used ({error}): if it is damaged, restore a copy; if the "
                "disk is full, free some space; then send the vote again."
            ) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that holds the right to write from its start: all or nothing."""
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise


def _current(connection: sqlite3.Connection, rater: int) -> dict[str, int]:
    """The trials of a rater that have a vote, with the number of that vote."""
    query = "SELECT trial, max(id), choice FROM votes WHERE rater = ? GROUP BY trial"
    rows = connection.execute(query, [rater]).fetchall()
    return {trial: number for trial, number, choice in rows if choice != "undo"}


def _stored(connection: sqlite3.Connection, rater: int, key: str) -> tuple[str, str] | None:
    """Trial and choice of the rater's row with this key, if there is one; checks the key."""
    if not isinstance(key, str) or not 1 <= len(key) <= 64:
        raise UserError("A vote's key has 1 to 64 characters.")
    query = "SELECT trial, choice FROM votes WHERE rater = ? AND key = ?"
    return connection.execute(query, [rater, key]).fetchone()


def _replayed(stored: tuple[str, str], sent: tuple[str, str]) -> bool:
    """False, which says "stored before"; Refused if the key was another vote's."""
    if stored != sent:
        raise Refused("This key was used for another vote: reload the page.")
    return False


def _add(
    connection: sqlite3.Connection,
    rater: int,
    trial: str,
    choice: str,
    key: str,
    seconds: float | None,
) -> None:
    """Add a row; Refused if there is no such rater."""
    if not connection.execute("SELECT 1 FROM raters WHERE number = ?", [rater]).fetchone():
        raise Refused(f"There is no rater {rater}: invite one.")
    columns = "(rater, trial, choice, key, seconds, at)"
    row = [rater, trial, choice, key, seconds, _now()]
    connection.execute(f"INSERT INTO votes {columns} VALUES (?, ?, ?, ?, ?, ?)", row)


def _hash(token: str) -> str:
    """What is kept of a token: whoever reads the file cannot vote in somebody's name."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _now() -> str:
    """The time, UTC, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
