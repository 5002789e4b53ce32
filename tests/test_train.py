"""The training loop: it learns, and a run killed at any moment ends with the same bits."""

import json
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from dalle3lib import UserError, diffusion, unet
from dalle3lib.checkpoints import load_checkpoint, save_checkpoint
from dalle3lib.train import accumulate, learning_rate, train, update_ema

torch.set_num_threads(1)
STEPS = 40


def small_arm(directory: Path, steps: int = STEPS) -> dict[str, list[float]]:
    """Train a tiny arm of the real network by the real loss, with everything that a run saves."""
    random_numbers = np.random.default_rng(0)
    latents = torch.from_numpy(random_numbers.standard_normal((30, 4, 8, 8), dtype="float32"))
    lengths = random_numbers.integers(1, 9, size=30)
    states = [torch.from_numpy(random_numbers.standard_normal((n, 32))).half() for n in lengths]
    torch.manual_seed(0)
    model = unet.build((16, 32, 32), text_width=32).to(memory_format=torch.channels_last)
    options = {"seed": 0, "batch": 4, "ratio": 80, "dropout": 0.2}
    loss = diffusion.step_loss(model, latents, states, states[::-1], **options)
    return train(
        model,
        loss,
        steps=steps,
        lr=1e-3,
        directory=directory,
        warmup=5,
        ema_decay=0.9,
        checkpoint_every=7,
        snapshots=(steps // 2, steps),
    )


def start(work: Callable[[], object]) -> int:
    """Do ``work`` in a forked process; return its id."""
    child = os.fork()
    if child:
        return child
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars of many children
        work()
    finally:
        os._exit(0)


def killed(child: int, after: float) -> bool:
    """Send SIGKILL after some seconds; say whether the process was still at work."""
    time.sleep(after)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def bits(directory: Path) -> dict[str, bytes]:
    """Everything a finished run has written: last checkpoint and snapshots, byte for byte."""
    last = max((directory / "checkpoints").glob("step-*"))
    files = [*last.glob("*.safetensors"), *directory.glob("ema-*.safetensors")]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> dict[str, bytes]:
    directory = tmp_path_factory.mktemp("uninterrupted")
    os.waitpid(start(lambda: small_arm(directory)), 0)
    found = bits(directory)
    assert len(found) == 4 + 2  # model, EMA, optimizer, log; two snapshots
    return found


@pytest.mark.parametrize(
    "kills", [10, pytest.param(100, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path, uninterrupted, kills):
    moment, hits, runs = random.Random(kills), 0, 0
    while hits < kills:
        runs += 1
        directory = tmp_path / str(runs)
        for _ in range(3):
            hits += killed(start(lambda where=directory: small_arm(where)), moment.uniform(0.05, 2))
        os.waitpid(start(lambda where=directory: small_arm(where)), 0)
        assert bits(directory) == uninterrupted


def test_finished_training_is_not_repeated(tmp_path):
    first = small_arm(tmp_path, steps=14)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert small_arm(tmp_path, steps=14) == first
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("name", ["model", "ema", "optimizer", "log", "manifest"])
@pytest.mark.parametrize("damage", ["delete", "truncate", "flip"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    tmp_path, capsys, flip, name, damage
):
    for step in (1, 2):
        parts = {part: {"x": torch.full((50,), float(step))} for part in ("model", "ema")}
        save_checkpoint(tmp_path, step, parts | {"optimizer": parts["ema"], "log": parts["ema"]})
    path = next((tmp_path / "step-000002").glob(f"{name}.*"))
    if damage == "delete":
        path.unlink()
    elif damage == "truncate":
        path.write_bytes(path.read_bytes()[:-20])
    else:
        flip(path, 8 * path.stat().st_size // 2)
    step, parts = load_checkpoint(tmp_path)
    assert step == 1 and all(part["x"].eq(1).all() for part in parts.values())
    assert "step-000002 is damaged" in capsys.readouterr().out


def test_training_goes_on_from_the_previous_checkpoint_to_the_same_end(
    tmp_path, uninterrupted, flip
):
    small_arm(tmp_path)
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    flip(newest / "optimizer.safetensors", 12345)
    small_arm(tmp_path)
    assert bits(tmp_path) == uninterrupted


def write_forever(directory: Path) -> None:
    """Write checkpoint after checkpoint, noting each finished one in ``done``."""
    for step in range(1, 1000):
        save_checkpoint(directory, step, {"model": {"x": torch.full((300_000,), float(step))}})
        (directory / "done").write_text(str(step))


@pytest.mark.parametrize(
    "kills", [15, pytest.param(150, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]
)
def test_killed_while_writing_a_checkpoint_the_last_one_still_loads(tmp_path, kills):
    moment = random.Random(kills)
    for kill in range(kills):
        directory = tmp_path / str(kill)
        directory.mkdir()
        child = start(lambda where=directory: write_forever(where))
        while not (directory / "done").is_file():
            time.sleep(0.001)
        assert killed(child, moment.uniform(0, 0.1))
        finished = int((directory / "done").read_text() or 0)
        step, parts = load_checkpoint(directory)
        assert step >= finished
        assert parts["model"]["x"].eq(step).all()


def test_a_full_disk_is_one_sentence_and_keeps_the_previous_checkpoint(tmp_path):
    save_checkpoint(tmp_path, 1, {"model": {"x": torch.ones(1000)}})

    def fill() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        try:
            save_checkpoint(tmp_path, 2, {"model": {"x": torch.ones(100_000)}})
        except UserError as error:
            (tmp_path / "said").write_text(str(error))

    os.waitpid(start(fill), 0)
    assert "the disk is full" in (tmp_path / "said").read_text()
    step, parts = load_checkpoint(tmp_path)
    assert step == 1 and parts["model"]["x"].eq(1).all()


def test_the_loss_falls_and_the_average_follows_the_weights(tmp_path):
    target = torch.tensor([1.0, -2.0])
    model = nn.Linear(2, 1, bias=False)

    def loss(step: int) -> dict[str, torch.Tensor]:
        return {"loss": (model.weight - target).square().sum()}

    log = train(model, loss, steps=300, lr=0.05, directory=tmp_path, warmup=1, weight_decay=0)
    assert log["loss"][0] > 1 > 1e-4 > log["loss"][-1]
    assert len(log["loss"]) == 300


def test_the_moving_average_by_hand():
    model = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    model.weight.data.fill_(1.0)
    update_ema(average, model, decay=0.5, step=1000)
    assert average["weight"].item() == 0.5
    update_ema(average, model, decay=0.5, step=1000)
    assert average["weight"].item() == 0.75
    average["weight"].zero_()
    update_ema(average, model, decay=0.999, step=0)  # early on the decay is 1/10
    assert average["weight"].item() == pytest.approx(0.9)


def test_the_learning_rate_by_hand():
    rates = [learning_rate(step, 100, 1.0, 10) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.05 + 0.95 / 2)  # half way down the cosine
    assert rates[10:] == sorted(rates[10:], reverse=True) and rates[-1] > 0.05


def test_a_loss_that_explodes_is_one_sentence(tmp_path):
    model = nn.Linear(1, 1)
    with pytest.raises(UserError, match="not finite at step 0"):
        train(
            model,
            lambda step: {"loss": model.weight.sum() * float("inf")},
            steps=3,
            lr=1,
            directory=tmp_path,
        )


def test_tied_weights_are_saved_and_stay_tied(tmp_path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight

    def loss(step: int) -> dict[str, torch.Tensor]:
        return {"loss": (model["b"].weight - 1).square().sum()}

    train(model, loss, steps=4, lr=0.1, directory=tmp_path)
    train(model, loss, steps=8, lr=0.1, directory=tmp_path)
    saved = load_file(tmp_path / "checkpoints" / "step-000008" / "model.safetensors")
    assert saved["a.weight"].equal(saved["b.weight"])
    assert json.loads((tmp_path / "checkpoints/step-000008/manifest.json").read_text())["step"] == 8


# ---- measuring on held-out data, and stopping early ----------------------------------------------


def climb(
    directory: Path, best_at: float = 0.2, measured: bool = True, die_at: int = -1, **options
):
    """A weight is pulled from 0 to 1, past ``best_at``, where the held-out loss is least.

    Returns the weight that training leaves and the log; or is killed at the step ``die_at``.
    """
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)

    def loss(step: int) -> dict[str, torch.Tensor]:
        if step == die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        noise = np.random.default_rng(step).standard_normal()
        return {"loss": (model.weight - 1).square().sum() + 0.01 * noise * model.weight.sum()}

    def held_out() -> float:
        assert not model.training and not torch.is_grad_enabled()
        return float((model.weight - best_at).square())

    common = {"steps": 60, "lr": 0.01, "warmup": 1, "weight_decay": 0, "held_out_every": 5}
    if measured:
        options["held_out"] = held_out
    log = train(model, loss, directory=directory, **common | options)
    assert not measured or model.training
    return model.weight.item(), log


def test_training_stops_when_nothing_gets_better_and_keeps_the_best(tmp_path):
    weight, log = climb(tmp_path, patience=2)
    values = log["held_out"]
    best = values.index(min(values))
    assert 0 < best == len(values) - 3  # two measurements later it stopped
    assert log["held_out_step"] == [5 * (i + 1) for i in range(len(values))]
    assert len(log["loss"]) == log["held_out_step"][-1] < 60
    assert (weight - 0.2) ** 2 == pytest.approx(min(values))
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()}
    assert climb(tmp_path, patience=2) == (weight, log)  # stopped is finished
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_held_out_loss_that_still_falls_stops_nothing(tmp_path):
    weight, log = climb(tmp_path, best_at=5, patience=1)
    assert len(log["loss"]) == 60 and log["held_out"] == sorted(log["held_out"], reverse=True)
    assert (weight - 5) ** 2 == pytest.approx(log["held_out"][-1])


@pytest.mark.parametrize("ema_decay", [None, 0.8])
def test_measuring_alone_changes_no_bit(tmp_path, ema_decay):
    weight, log = climb(tmp_path / "a", ema_decay=ema_decay, steps=33)
    plain, without = climb(tmp_path / "b", ema_decay=ema_decay, steps=33, measured=False)
    assert weight == plain and log["loss"] == without["loss"] and set(without) == {"loss"}
    assert log["held_out_step"] == [5, 10, 15, 20, 25, 30, 33]
    assert log["held_out"][-1] == pytest.approx((weight - 0.2) ** 2)  # of the average, if any
    assert not list(tmp_path.rglob("best.safetensors"))


def test_the_best_average_is_what_stays(tmp_path):
    weight, log = climb(tmp_path, ema_decay=0.8, patience=1)
    assert len(log["loss"]) < 60
    assert (weight - 0.2) ** 2 == pytest.approx(min(log["held_out"]), rel=1e-4)


def test_history_and_best_weights_survive_kills(tmp_path):
    """Killed at several steps, training stops where it would have, with the same bits."""
    options = {"patience": 4, "checkpoint_every": 3, "ema_decay": 0.8}
    _, whole = climb(tmp_path / "whole", **options)
    expected, steps = bits(tmp_path / "whole"), len(whole["loss"])
    assert "best.safetensors" in expected and steps > 20
    where = tmp_path / "killed"
    for step in (4, 5, 11, steps - 7, steps - 1):
        child = start(lambda step=step: climb(where, die_at=step, **options))
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    weight, log = climb(where, **options)
    assert bits(where) == expected and log == whole
    assert (weight - 0.2) ** 2 == pytest.approx(min(log["held_out"]), rel=1e-4)


def test_a_held_out_loss_that_is_no_number_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="held-out loss is not finite"):
        climb(tmp_path, best_at=float("nan"))


# ---- a step in parts -----------------------------------------------------------------------------


def test_parts_of_a_step_add_up():
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    model = nn.ParameterList([weight])

    def part(scale, gradient):
        # made one after the other: the ones before have given their gradient
        assert (weight.grad is None and not gradient) or weight.grad[0] == gradient
        return {"loss": (scale * weight).sum(), "other": torch.tensor(scale)}

    parts = [partial(part, *of) for of in ((1.0, 0.0), (2.0, 1.0), (3.0, 3.0))]
    assert accumulate(model, parts) == {"loss": -6.0, "other": 6.0}
    assert weight.grad.tolist() == [6, 6]
    assert accumulate(model, {"loss": weight.sum()}) == {"loss": -1.0}
    assert weight.grad.tolist() == [7, 7]
