"""Several processes train the model that one trains."""

import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parameters_to_vector
from train_together import tiny_arm, tiny_loss

from dalle3lib import UserError, parallel
from dalle3lib.train import accumulate

torch.set_num_threads(1)


def launch(directory: Path, processes: int = 2) -> subprocess.Popen:
    """Start ``train_together.py`` in several processes."""
    command, environment = parallel.launch_command(processes)
    command += [str(Path(__file__).with_name("train_together.py")), str(directory)]
    log = open(directory.with_suffix(".log"), "a")
    return subprocess.Popen(command, stdout=log, stderr=log, env=environment)


def finished(process: subprocess.Popen, directory: Path) -> None:
    assert process.wait(timeout=300) == 0, directory.with_suffix(".log").read_text()[-3000:]


def content(directory: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of the last checkpoint and the snapshot."""
    last = max((directory / "checkpoints").glob("step-*"))
    return {
        path.stem: load_file(path)
        for path in [*last.glob("*.safetensors"), *directory.glob("*.safetensors")]
    }


def largest_difference(some: dict, others: dict) -> float:
    assert some.keys() == others.keys()
    pairs = [(some[p][k], others[p][k]) for p in some for k in some[p].keys() | others[p].keys()]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two") / "run"
    finished(launch(directory), directory)
    return directory


def test_two_processes_train_what_one_does(together, tmp_path):
    """The one takes the same parts, one after the other: the rounding is that of the same sums."""
    tiny_arm(tmp_path / "parts", micro_batch=3)
    assert largest_difference(content(tmp_path / "parts"), content(together)) < 1e-6
    log = tiny_arm(tmp_path / "whole")
    assert len(log["loss"]) == 12 and log["held_out_step"] == [4, 8, 12]
    # AdamW makes full steps of the rounding errors of gradients that are zero: only losses compare.
    shared = content(together)["log"]["loss"]
    np.testing.assert_allclose(log["loss"], shared, rtol=1e-4)
    assert "is damaged" not in together.with_suffix(".log").read_text()


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 4])
def test_parts_of_a_batch_have_the_gradient_of_the_whole(micro_batch):
    gradients = []
    for size in (None, micro_batch):
        model, loss = tiny_loss(size)
        accumulate(model, loss(5))
        gradients.append(parameters_to_vector([p.grad for p in model.parameters()]))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_a_killed_process_takes_the_others_along_and_nothing_is_lost(together, tmp_path):
    directory = tmp_path / "run"
    process = launch(directory)
    while not list(directory.glob("checkpoints/step-*")):
        assert process.poll() is None, directory.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.01)
    workers = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "train_together.py" in " ".join(child.cmdline())
    ]
    workers[-1].kill()
    assert process.wait(timeout=120) != 0
    psutil.wait_procs(workers, timeout=60)
    finished(launch(directory), directory)
    assert largest_difference(content(directory), content(together)) == 0


def test_a_batch_that_cannot_be_shared_is_one_sentence(monkeypatch):
    assert parallel.micro_batches(5) == [slice(0, 5)]
    assert parallel.micro_batches(5, 2) == [slice(0, 2), slice(2, 4), slice(4, 5)]
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert parallel.micro_batches(7) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    with pytest.raises(UserError, match="A batch of 4 in parts of 2 leaves some of 3 processes"):
        parallel.micro_batches(4)
    with pytest.raises(UserError, match="has 1 part, too few for 3 processes"):
        parallel.own([dict])
