"""Workers that die: their jobs are done again, one that always kills is given up, errors come."""

import os
import signal
import time
from pathlib import Path

import pytest

from dalle3lib import UserError, runners


def double(job):
    return 2 * job


def die_once(job):
    """Kill the worker the first time that a job (a path) is tried."""
    if not job.exists():
        job.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return job.name


def die(job):
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def fail(job):
    raise {1: UserError("a mistake"), 2: ZeroDivisionError("a bug")}[job]


def mark_and_wait(job):
    Path(job, str(os.getpid())).touch()
    time.sleep(60)


def threads(_):
    import torch

    return torch.get_num_threads()


@pytest.mark.parametrize("workers", [1, 3])
def test_every_job_once(workers):
    assert sorted(runners.run_local(double, range(20), workers)) == list(range(0, 40, 2))
    assert list(runners.run_local(double, [], workers)) == []
    assert set(runners.run_local(threads, range(3), workers)) == {1}


def test_jobs_of_killed_workers_are_done_again(tmp_path):
    jobs = [tmp_path / f"{i}" for i in range(6)]
    assert sorted(runners.run_local(die_once, jobs, 2)) == [f"{i}" for i in range(6)]


def test_a_job_that_kills_every_worker_is_given_up():
    with pytest.raises(UserError, match="3 workers died of 3 "):
        list(runners.run_local(die, range(5), 2))


@pytest.mark.parametrize("workers", [1, 2])
def test_errors_come_through(workers):
    with pytest.raises(UserError, match="^a mistake$"):
        list(runners.run_local(fail, [1, 1], workers))
    with pytest.raises((ZeroDivisionError, RuntimeError), match="a bug"):
        list(runners.run_local(fail, [2, 2], workers))


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


def test_whoever_stops_listening_leaves_no_worker_behind(tmp_path):
    jobs = [None, tmp_path, tmp_path]
    results = runners.run_local(wait_or_mark, jobs, 3)
    assert next(results) is None
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.05)
    results.close()
    assert not any(alive(int(path.name)) for path in tmp_path.iterdir())


def wait_or_mark(job):
    return mark_and_wait(job) if job else None
