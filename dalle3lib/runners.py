"""Who does the work: processes of this machine, or a Ray cluster.

Both call one function for each job and give the results as they come. The function must do no harm
when it is done twice: a worker that dies (out of memory, killed, its machine gone) has its job
done again by another.
"""

import multiprocessing
import os
import traceback
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from dalle3lib import UserError

DEATHS = 3  # so many workers may die of one job before it is given up


def one_thread(function: Callable[[Any], Any], job: Any) -> Any:
    """``function(job)`` with one torch thread: a sum then has the same bits in every run."""
    import torch

    torch.set_num_threads(1)
    return function(job)


def _worker(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker process: do jobs until there are no more, or until their giver is gone."""
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        try:
            outcome = one_thread(function, job)
        except (KeyboardInterrupt, SystemExit):
            return
        except BaseException as error:
            outcome = (
                error if isinstance(error, UserError) else RuntimeError(traceback.format_exc())
            )
        try:
            connection.send(outcome)
        except OSError:
            return


def run_local(function: Callable[[Any], Any], jobs: Sequence[Any], workers: int) -> Iterator[Any]:
    """Results of ``function(job)`` by processes of one thread each, in the order they come.

    With one worker everything happens in this process. Raises what the function raises, and
    UserError when a job has ended three workers.
    """
    if workers == 1:
        yield from (one_thread(function, job) for job in jobs)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dalle3lib.captioning"])  # imported once, not by each worker
    waiting = deque(enumerate(jobs))
    deaths: Counter[int] = Counter()
    active: dict[Connection, tuple[Any, tuple[int, Any]]] = {}

    def give(connection: Connection, process: Any) -> None:
        """The next job for a worker; without one, its connection ends and so does it."""
        if not waiting:
            connection.close()
            return
        active[connection] = (process, waiting.popleft())
        try:
            connection.send(active[connection][1][1])
        except OSError:
            pass  # it has just died, which receiving from it will show

    def hire() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_worker, args=(theirs, function), daemon=True)
        process.start()
        theirs.close()  # so that its death ends the connection
        give(ours, process)

    try:
        for _ in range(min(workers, len(jobs))):
            hire()
        while active:
            for connection in wait(list(active)):
                process, job = active.pop(connection)
                try:
                    outcome = connection.recv()
                except (EOFError, OSError):
                    deaths[job[0]] += 1
                    if deaths[job[0]] == DEATHS:
                        raise UserError(
                            f"{DEATHS} workers died of {job[1]} (out of memory?): use fewer at a "
                            "time, or smaller batches or images, and run it again."
                        ) from None
                    waiting.appendleft(job)
                    hire()
                    continue
                if isinstance(outcome, BaseException):
                    raise outcome
                yield outcome
                give(connection, process)
    finally:
        for process, _ in active.values():
            process.terminate()
            process.join()


def run_ray(
    function: Callable[[Any], Any], jobs: Sequence[Any], address: str | None = None, gpus: float = 0
) -> Iterator[Any]:
    """Results of ``function(job)`` by tasks on a Ray cluster, in the order they come.

    ``address`` is the cluster's ("auto": the one this machine belongs to); None starts one on this
    machine. All machines must see the same files. Ray gives a task of a dead worker to another.
    """
    try:
        import ray
    except ImportError:
        raise UserError("This runner needs Ray: pip install 'dalle3lib[cluster]'.") from None
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    started = not ray.is_initialized()
    if started:
        local = {} if address else {"include_dashboard": False}
        ray.init(address=address, log_to_driver=False, **local)
    task = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=DEATHS)(one_thread)
    waiting, running = deque(jobs), set()
    try:
        while waiting or running:
            places = max(2, 2 * int(ray.cluster_resources().get("CPU", 1)))
            while waiting and len(running) < places:
                running.add(task.remote(function, waiting.popleft()))
            done, _ = ray.wait(list(running), num_returns=1)
            running.difference_update(done)
            try:
                yield ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise error.cause from None
            except ray.exceptions.RayError as error:
                raise UserError(f"A Ray task failed {DEATHS + 1} times ({error}).") from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if started:
            ray.shutdown()
