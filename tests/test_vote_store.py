"""Votes are stored once each and never changed, whoever writes at the same time or crashes."""

import multiprocessing
import os
import signal
import sqlite3

import pandas as pd
import pytest
import tiny_study
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, human
from dalle3lib.vote_store import AlreadyVoted, Refused, VoteStore


@pytest.fixture
def store(tmp_path) -> VoteStore:
    tiny_study.make(tmp_path)
    found = VoteStore.create(tmp_path)
    found.invite(2)
    return found


def vote_all(store: VoteStore, rater: int, choice: str = "left") -> list[human.Trial]:
    """Vote until nothing is left; what was shown."""
    shown = []
    while trial := store.next_trial(rater):
        assert store.vote(rater, trial.id, choice, f"key {len(shown)}", 1.5)
        shown.append(trial)
    return shown


def test_a_whole_session(store):
    shown = vote_all(store, 0)
    assert tuple(shown) == human.trials(store.plan, 0)
    assert store.progress(0) == (18, 18) and store.progress(1) == (0, 18)
    assert store.next_trial(0) is None


def test_a_token_opens_its_own_rater_and_is_not_kept(store):
    one, two = store.invite(2)
    assert (store.rater(one), store.rater(two)) == (2, 3) and store.raters() == 4
    for wrong in ("", one[:-1], one + "x", "\ud800", "' OR 1=1 --"):
        with pytest.raises(Refused, match="no rater"):
            store.rater(wrong)
    everything = b"".join(p.read_bytes() for p in store.plan.folder.glob("votes.sqlite*"))
    assert one.encode() not in everything
    with pytest.raises(UserError, match="1 or more"):
        store.invite(0)


def test_a_vote_sent_again_is_acknowledged_and_not_counted(store):
    trial = store.next_trial(0)
    assert store.vote(0, trial.id, "left", "k", 2.0) is True
    assert store.vote(0, trial.id, "left", "k", 9.0) is False
    assert len(store.votes()) == 1 and store.votes().seconds[0] == 2.0
    with pytest.raises(Refused, match="another vote"):
        store.vote(0, trial.id, "right", "k")
    with pytest.raises(AlreadyVoted, match="undo it"):
        store.vote(0, trial.id, "right", "another key")
    assert store.vote(1, store.next_trial(1).id, "tie", "k") is True  # keys are each rater's own


def test_undo_takes_back_the_last_vote_and_keeps_it_in_the_history(store):
    first, second, *_ = human.trials(store.plan, 0)
    store.vote(0, first.id, "left", "1")
    store.vote(0, second.id, "right", "2")
    assert store.undo(0, "u1") == second == store.next_trial(0)
    assert store.undo(0, "u1") == second, "sent again, it takes back nothing further"
    assert store.undo(0) == first == store.next_trial(0)
    assert store.undo(0) is None
    store.vote(0, first.id, "tie", "3")
    votes = store.votes()
    assert votes.choice.tolist() == ["left", "right", "undo", "undo", "tie"]
    assert votes.current.tolist() == [False, False, False, False, True]
    assert votes.winner.tolist()[-1] == "tie" and votes.winner.isna().sum() == 2
    assert store.vote(0, first.id, "left", "1") is False, "the vote taken back is acknowledged"
    assert store.votes().current.sum() == 1


def test_votes_say_who_won(store):
    vote_all(store, 1, "right")
    votes = store.votes()
    assert votes.current.all() and (votes.winner == votes.right).all()
    assert votes.place.tolist() == list(range(18))
    assert votes.role.value_counts().to_dict() == {"main": 12, "check": 3, "repeat": 3}
    checks = votes[votes.role == "check"]
    scrambled = checks.right == human.SCRAMBLED
    assert (checks.expected.eq("left") == scrambled).all()
    assert votes.expected[votes.role != "check"].isna().all()
    main = votes[votes.role == "main"]
    assert set(main.left) | set(main.right) == set(tiny_study.SYSTEMS)


def test_forged_requests_are_refused(store):
    mine, theirs = human.trials(store.plan, 0)[0], human.trials(store.plan, 1)
    other = next(t for t in theirs if t.id not in {m.id for m in human.trials(store.plan, 0)})
    for trial in (other.id, "", "x' OR '1'='1", "0" * 10**6):
        with pytest.raises(Refused):
            store.vote(0, trial, "left", "k")
    for choice in ("undo", "LEFT", "", None, 1):
        with pytest.raises(UserError, match="left, right or tie"):
            store.vote(0, mine.id, choice, "k")
    for key in ("", "k" * 65, None, 7):
        with pytest.raises(UserError, match="1 to 64"):
            store.vote(0, mine.id, "left", key)
    for seconds in (-1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="seconds"):
            store.vote(0, mine.id, "left", "k", seconds)
    with pytest.raises(Refused, match="no rater 7"):
        store.vote(7, human.trials(store.plan, 7)[0].id, "left", "k")
    assert store.votes().empty
    for name in ("../plan.json", "/etc/passwd", "..%2Fplan.json", "", "votes.sqlite", "x.png\0"):
        with pytest.raises(Refused, match="no such picture"):
            store.image(name)
    assert store.image(mine.left).is_file()


@pytest.mark.parametrize("table", ["votes", "raters", "study"])
@pytest.mark.parametrize("change", ["DELETE FROM {}", "UPDATE {} SET rowid = rowid + 1"])
def test_nothing_can_be_changed(store, table, change):
    vote_all(store, 0)
    with sqlite3.connect(store.file) as direct, pytest.raises(sqlite3.Error, match="only ever"):
        direct.execute(change.format(table))
    assert store.progress(0).done == 18


def test_creating_twice_and_opening_what_is_not_there(store, tmp_path):
    vote_all(store, 0)
    assert len(VoteStore.create(store.plan.folder).votes()) == 18
    with pytest.raises(UserError, match="holds no study"):
        VoteStore.open(tmp_path / "nowhere")
    tiny_study.make(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="no votes yet"):
        VoteStore.open(tmp_path / "other")
    key = store.plan.folder / "key.json"
    key.write_text(key.read_text().replace("alpha", "omega"))
    with pytest.raises(UserError, match="has changed"):
        VoteStore.open(store.plan.folder)


def test_a_damaged_file_is_a_clear_error(store):
    store.file.write_bytes(b"damaged" * 1000)
    with pytest.raises(UserError, match="cannot be used"):
        VoteStore.open(store.plan.folder)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_export(store, tmp_path, ending):
    vote_all(store, 0)
    store.undo(0)
    path = store.export(tmp_path / f"out.{ending}")
    read = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert len(read) == 19 and "token" not in read
    assert read.winner.fillna("").tolist() == store.votes().winner.fillna("").tolist()
    with pytest.raises(UserError, match=".csv or .parquet"):
        store.export(tmp_path / "out.xlsx")


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["left", "right", "tie", "undo", "again"]), max_size=40))
def test_a_session_is_a_stack(tmp_path_factory, actions):
    """Voting pushes, undo pops, sending again changes nothing: whatever the order."""
    folder = tmp_path_factory.mktemp("stack")
    tiny_study.make(folder, prompts=2, trials=6, checks=1, repeats=0)
    store, stack, last = VoteStore.create(folder), [], None
    store.invite()
    trials = human.trials(store.plan, 0)
    for number, action in enumerate(actions):
        if action == "again" and last:
            assert store.vote(*last) is False
        elif action == "undo":
            assert store.undo(0) == (stack.pop()[0] if stack else None)
        elif action in ("left", "right", "tie") and len(stack) < len(trials):
            trial = store.next_trial(0)
            last = (0, trial.id, action, f"{number}")
            assert store.vote(*last)
            stack.append((trial, action))
    standing = store.votes()[store.votes().current]
    assert list(zip(standing.trial, standing.choice, strict=True)) == [
        (trial.id, choice) for trial, choice in stack
    ]
    assert store.progress(0).done == len(stack)


# ---- several processes ---------------------------------------------------------------------------


def vote_in_a_process(folder: str, rater: int, told) -> None:
    """Vote on everything, and tell each vote that was acknowledged; then wait to be killed."""
    store = VoteStore.open(folder)
    while trial := store.next_trial(rater):
        store.vote(rater, trial.id, "left", trial.id)
        told.send(trial.id)
    told.send(None)
    told.recv()


def acknowledged(pipe) -> set[str]:
    """What a process told until it was done or killed."""
    found = set()
    try:
        while (said := pipe.recv()) is not None:
            found.add(said)
    except EOFError:
        pass
    return found


def test_processes_that_vote_at_once_lose_nothing_even_if_killed(tmp_path):
    tiny_study.make(tmp_path, trials=60)
    store, spawn = VoteStore.create(tmp_path), multiprocessing.get_context("spawn")
    store.invite(3)
    pipes, started = [], []
    for rater in range(3):
        here, there = spawn.Pipe()
        process = spawn.Process(target=vote_in_a_process, args=(str(tmp_path), rater, there))
        process.start()
        there.close()
        pipes.append(here)
        started.append(process)
    first = pipes[0].recv()
    os.kill(started[0].pid, signal.SIGKILL)
    done = [acknowledged(pipes[0]) | {first}, acknowledged(pipes[1]), acknowledged(pipes[2])]
    for process, pipe in zip(started, pipes, strict=True):
        pipe.close()
        process.kill()
        process.join()
    votes = store.votes()
    assert not votes.duplicated(["rater", "trial"]).any()
    for rater, told in enumerate(done):
        stored = set(votes.trial[votes.rater == rater])
        assert told <= stored and len(stored - told) <= 1  # one may be stored but not yet told
    assert store.progress(1).done == store.progress(1).total == 66
    vote_all(VoteStore.open(tmp_path), 0)  # goes on where the killed one stopped
    assert store.progress(0).done == 66


def test_a_forked_process_is_told_to_open_the_store_itself(store):
    store.progress(0)
    child = os.fork()
    if child == 0:
        try:
            store.progress(0)
        except UserError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
