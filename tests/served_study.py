"""A real server of a study, as a process of its own."""

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

from dalle3lib import paths


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return tried.getsockname()[1]


def start(folder: Path, *options: str) -> tuple[subprocess.Popen, list[str]]:
    """The process of ``python -m dalle3lib rate --out folder``, listening, and its links."""
    path = os.pathsep.join(filter(None, [str(paths.ROOT), os.environ.get("PYTHONPATH")]))
    with open(folder.parent / "server.log", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "dalle3lib", "rate", "--out", str(folder), *options],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        )
    links = []
    for line in process.stdout:
        links += re.findall(r"Rater \d+: (\S+)", line)
        if line.startswith("Listening"):
            return process, links
    raise AssertionError((folder.parent / "server.log").read_text()[-2000:])
