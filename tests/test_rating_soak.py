"""Many raters at once and a server that is killed again and again: no acknowledged vote is lost."""

import contextlib
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import served_study
import tiny_study

from dalle3lib import human
from dalle3lib.vote_store import VoteStore

CLIENT = Path(__file__).with_name("rating_client.py")
LINE = len(f"{'0' * 16} left {'0' * 32}\n")  # the shortest that a client writes


def soak(folder: Path, raters: int, votes: int, kills: int) -> dict[str, float]:
    """Let each of the raters give so many votes while the server is killed so often; what it took.

    Fails if a client gave up, or if votes and acknowledgements are not the same, once each.
    """
    pytest.importorskip("fastapi", reason="the extra `label` is not installed")
    prompts = -(-votes // 9)  # three questions about three pairs of systems
    tiny_study.make(folder, prompts=prompts, trials=votes, checks=0, repeats=0)
    options = ("--port", str(served_study.free_port()))
    server, links = served_study.start(folder, *options, "--raters", str(raters))
    files = [folder.parent / f"acknowledged-{rater}" for rater in range(raters)]
    began, waits, clients = time.monotonic(), [], []
    try:
        for rater, (link, file) in enumerate(zip(links, files, strict=True)):
            command = [sys.executable, "-I", str(CLIENT), link, str(rater), str(file)]
            clients.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for number in range(kills):
            share = (number + 0.5) / kills
            while _written(files) < share * raters * votes:
                assert all(client.poll() in (None, 0) for client in clients), "a client gave up"
                time.sleep(0.01)
            server.kill()
            server.communicate()
            waits.append(time.monotonic())
            server, again = served_study.start(folder, *options)
            waits[-1] = time.monotonic() - waits[-1]
            assert again == links
        told = [client.communicate()[0] for client in clients]
    finally:
        for process in (server, *clients):
            process.kill()
            process.wait()
    assert all(client.returncode == 0 for client in clients)
    _check(folder, files, votes)
    failed, repeated = (sum(int(line.split()[i]) for line in told) for i in range(2))
    seconds = time.monotonic() - began
    return {
        "votes": raters * votes,
        "kills": kills,
        "sent again without an answer": failed,
        "sent again after one": repeated,
        "seconds": seconds,
        "votes a second": raters * votes / (seconds - sum(waits)),
    }


def _written(files: list[Path]) -> int:
    """About how many votes were acknowledged so far."""
    return sum(file.stat().st_size // LINE for file in files if file.exists())


def _check(folder: Path, files: list[Path], votes: int) -> None:
    """Every acknowledged vote is stored once, in the plan's order, and nothing else is."""
    with contextlib.closing(sqlite3.connect(folder / "votes.sqlite")) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    store = VoteStore.open(folder)
    rows = store.votes()
    assert rows.current.all() and rows.key.is_unique
    for rater, file in enumerate(files):
        mine = rows[rows.rater == rater]
        stored = [f"{t} {c} {k}" for t, c, k in zip(mine.trial, mine.choice, mine.key, strict=True)]
        assert stored == file.read_text().splitlines() and len(stored) == votes
        assert mine.trial.tolist() == [trial.id for trial in human.trials(store.plan, rater)]
    assert len(rows) == len(files) * votes


def test_three_raters_and_two_kills_lose_no_vote(tmp_path):
    took = soak(tmp_path / "study", raters=3, votes=30, kills=2)
    assert took["votes"] == 90 and took["sent again without an answer"] > 0


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_sixteen_raters_and_twenty_five_kills_lose_no_vote(tmp_path, capsys):
    took = soak(tmp_path / "study", raters=16, votes=1000, kills=25)
    with capsys.disabled():
        print("\n" + ", ".join(f"{name}: {value:,.0f}" for name, value in took.items()))
