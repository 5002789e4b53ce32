"""One arm trained by several processes of this machine, one for each GPU.

A notebook that has used a GPU can start no further process on it, so the processes are started from
outside, by ``accelerate launch``; the notebook waits and reads their checkpoint.
"""

import subprocess
import sys
from pathlib import Path

from dalle3lib import UserError, arm, files, latents, parallel, paths
from dalle3lib.config import Parameters


def train_together(cfg: Parameters, directory: Path) -> None:
    """Train the arm that ``cfg`` names in ``cfg.processes`` processes; its checkpoints are left in
    ``directory``, where ``arm.train_arm`` finds it finished.

    Raises UserError if they fail; the same call goes on from their last checkpoint.
    """
    about = {"notebook": cfg.notebook, "preset": cfg.preset, "values": cfg.values}
    with files.guard(directory):
        directory.mkdir(parents=True, exist_ok=True)
    given = directory / "processes.json"
    files.write_atomic(given, files.to_json(about | {"root": str(cfg.root)}).encode())
    command, environment = parallel.launch_command(cfg.processes, cfg.get("device", "cpu"))
    command += ["-m", "dalle3lib.arm_processes", str(given)]
    if code := subprocess.run(command, env=environment, cwd=paths.ROOT).returncode:
        raise UserError(
            f"The {cfg.processes} processes that train this arm ended with code {code}; what went "
            "wrong is said above. Run the notebook again: it goes on from their last checkpoint."
        )


def main(given: Path) -> None:
    """What each of the processes does."""
    about = files.read_json(given)
    cfg = Parameters(about["notebook"], about["preset"], about["values"], root=Path(about["root"]))
    parallel.state()  # each process takes a GPU of its own
    arm.train_arm(cfg, latents.load(latents.build(cfg)), given.parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
