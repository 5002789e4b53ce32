"""One process of several that train an arm, one for each GPU; ``arm.train_arm`` starts them.

A notebook that has used a GPU can start no further process on it, so the processes are started from
outside, by ``accelerate launch``; the notebook waits and reads their checkpoint.
"""

import sys
from pathlib import Path

from dalle3lib import arm, files, latents, parallel
from dalle3lib.config import Parameters


def main(given: Path) -> None:
    """Train the arm whose parameters are in the file ``given``; checkpoints go beside it."""
    about = files.read_json(given)
    cfg = Parameters(about["notebook"], about["preset"], about["values"], root=Path(about["root"]))
    parallel.state()  # each process takes a GPU of its own
    arm.train_arm(cfg, latents.load(latents.build(cfg)), given.parent)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
