"""The status page of the book: what failed or is not finished, the finished runs, the machine."""

import platform
from typing import Any

from dalle3lib.pages import RunState, commit, duration, page_link, plain, table


def page(
    states: list[RunState],
    failures: dict[str, list[str]],
    published: set[str],
    left_out: dict[str, str] | None = None,
) -> str:
    """Return the status page: what failed or is not finished, the finished runs, the machine.

    ``failures`` maps the stem of a failed notebook to what went wrong; ``published`` holds the
    stems that have a page in this book; ``left_out`` maps chapters that its data cannot have to the
    reason.
    """
    text = (
        "# Status of the runs\n\nEvery number in this book comes from one of these runs. A run's "
        "manifest is written last, so a run without one is not finished.\n"
    )
    open_rows = [
        [page_link(stem, published), "–", "[failed]{.state .failed}", plain(problem)]
        for stem, problems in failures.items()
        for problem in problems
    ] + [
        [page_link(s.notebook, published), f"`{s.run}`", "[not finished]{.state}", plain(s.problem)]
        for s in states
        if not s.manifest
    ]
    if open_rows:
        header = ["Notebook", "Run", "State", "What is wrong"]
        text += "\n## Failed or not finished\n\n" + table(header, open_rows, "unfinished wide")
    if left_out:
        rows = [[f"`{stem}`", plain(reason)] for stem, reason in left_out.items()]
        text += "\n## Chapters that these images cannot have\n\n"
        text += table(["Chapter", "Why it is left out"], rows, "wide")
    done = [state for state in states if state.manifest]
    if done:
        header = ["Notebook", "Run", "Wall", "CPU", "Memory", "Commit", "Finished (UTC)"]
        rows = [_finished_row(state, published) for state in done]
        text += "\n## Finished\n\n" + table(header, rows, "status wide")
        text += (
            "\n*Wall* is elapsed time, *CPU* the time of all cores together, *memory* the largest "
            "resident size. A commit with `+` had uncommitted changes.\n"
        )
        text += _machine([state.manifest for state in done])
    return text


def _finished_row(state: RunState, published: set[str]) -> list[str]:
    """Return the row of a finished run."""
    made = state.manifest
    return [
        page_link(state.notebook, published),
        f"`{state.run}`",
        duration(made["wall_seconds"]),
        duration(made["cpu_seconds"]),
        f"{made['peak_memory_bytes'] / 2**20:,.0f} MiB",
        f"`{commit(made)}`",
        str(made["finished"])[:16].replace("T", " "),
    ]


def _machine(manifests: list[dict[str, Any]]) -> str:
    """Return what the runs were made with: processors, threads, package versions, total time."""
    latest = max(manifests, key=lambda made: str(made["finished"]))
    cpus = sorted({made["cpu"]["model"] for made in manifests})
    total = sum(made["wall_seconds"] for made in manifests)
    versions = ", ".join(f"{name} {version}" for name, version in latest["packages"].items())
    return (
        "\n## Made with\n\n"
        f"Processor\n: {'; '.join(cpus)}\n\n"
        f"Threads a run\n: {', '.join(sorted({str(made['threads']) for made in manifests}))}\n\n"
        f"Sum of wall times\n: {duration(total)} in {len(manifests)} runs\n\n"
        f"Packages (latest run)\n: {versions}\n\n"
        f"Python (this build)\n: {platform.python_version()}\n"
    )
