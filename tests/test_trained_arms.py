"""Trained arms: runs and what is shipped in their place, their outcomes, several seeds."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from test_arm import parameters

from dalle3lib import UserError, arm, paths, quality, runs, trained_arms, unet

torch.set_num_threads(1)


def live(root: Path, name: str = "dsc-95-0"):
    """A finished run of an arm under ``root``, as notebook 04a leaves it: (directory, U-Net)."""
    kind, ratio, seed = name.rsplit("-", 2)
    cfg = parameters(root, kind=kind, ratio=int(ratio), seed=int(seed))
    run = runs.open_run(cfg, "kind", "ratio", "seed")
    torch.manual_seed(5)
    model = unet.build((16, 32, 32))
    arm.save(model, run.path / "unet")
    table = pd.DataFrame({"kind": ["original"], "prompt": ["a"], "score": [1.5], "step": [6]})
    table.to_parquet(run.path / "scores.parquet")
    np.save(run.path / "pictures-original.npy", np.zeros((1, 64, 64, 3), np.uint8))
    results = {"claims": {}, "clip": {"original": 1.5}, "guidance": 3.0}
    results["facts"] = {"descriptive": {"colour-shape": 0.25}, "original": {"colour-shape": 0.125}}
    run.finish(results | {"training_seconds": {"wall": 120, "processor": 60}})
    return run.path, model


def test_a_live_run_goes_before_the_shipped_arm(foundations, tmp_path):
    cfg = parameters(tmp_path)
    assert trained_arms.live_run(cfg, "dsc-95-0", first=True) is None
    stands_in = trained_arms.outcome(cfg, "dsc-95-0", None)
    assert stands_in.about["source"] == "shipped" and stands_in.about["guidance"] == 2
    assert len(stands_in.scores) == 6 and set(stands_in.pictures) == {"original", "descriptive"}
    path, _ = live(tmp_path)
    assert trained_arms.live_run(cfg, "dsc-95-0", first=True) == path
    assert trained_arms.live_run(cfg, "dsc-95-0") is None
    found = trained_arms.outcome(cfg, "dsc-95-0", path)
    assert found.scores.score.tolist() == [1.5] and list(found.pictures) == ["original"]
    assert found.about["processor minutes"] == 1 and found.about["guidance"] == 3


@pytest.mark.parametrize(
    "name, data", [("dsc-65-0", "world"), ("dsc-95-7", "world"), ("dsc-95-0", "x")]
)
def test_an_arm_that_is_neither_live_nor_shipped(foundations, tmp_path, name, data):
    with pytest.raises(UserError, match="python -m dalle3lib run 04a_train_arm"):
        trained_arms.live_run(parameters(tmp_path, data=data), name)


def test_shipping_an_arm_and_loading_it(tmp_path, monkeypatch):
    path, model = live(tmp_path)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert trained_arms.ship(path) == tmp_path / "data" / "foundation" / "unet-dsc-95"
    loaded, guidance = arm.load("dsc-95")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name
    assert guidance == 3 and not loaded.training
    manifest = quality.manifest("unet-dsc-95")
    assert manifest["quality"] == {"guidance": 3, "clip_original": 1.5, "read_colour-shape": 0.25}
    assert (manifest["seed"], manifest["steps"]) == (0, 6)
    assert manifest["cpu_seconds"] == pytest.approx(60, abs=5)


def test_the_network_of_an_arm_is_that_of_its_run_or_the_shipped_one(foundations, tmp_path):
    shipped, guidance = trained_arms.network(parameters(tmp_path), "dsc-95-0")
    assert guidance == 2 and not shipped.training
    path, model = live(tmp_path, "dsc-95-7")
    found, guidance = trained_arms.network(parameters(tmp_path), "dsc-95-7")
    assert guidance == 3 and not found.training
    for name, value in found.state_dict().items():
        assert torch.equal(value, model.state_dict()[name].half().float()), name


@pytest.mark.parametrize("name", ["dsc-95", "dsc"])
def test_a_name_without_a_seed_is_refused_in_a_sentence(tmp_path, name):
    for ask in (trained_arms.live_run, trained_arms.network):
        with pytest.raises(UserError, match=f"'{name}' names no arm.*such as dsc-95-0"):
            ask(parameters(tmp_path), name)
    with pytest.raises(UserError, match="names no arm"):
        arm.label(name)


def test_over_seeds_by_hand(tmp_path):
    for seed, score in ((1, 10.0), (2, 12.0), (3, 17.0)):
        path = tmp_path / "04a_train_arm" / f"dsc-95-{seed}"
        cfg = parameters(tmp_path, seed=seed)
        run = runs.open_run(cfg, "kind", "ratio", "seed")
        assert run.path == path
        run.finish({"clip": {"original": score, "descriptive": 2 * score}})
    names = [f"dsc-95-{seed}" for seed in (1, 2, 3)]
    table = trained_arms.over_seeds(parameters(tmp_path), names)
    assert table[["arm", "kind", "seeds", "mean"]].values.tolist() == [
        ["DSC 95 %", "original", 3, 13.0],
        ["DSC 95 %", "descriptive", 3, 26.0],
    ]
    half = 4.3027 * 13**0.5 / 3**0.5  # Student's, variance 13
    assert table.low[0] == pytest.approx(13 - half, abs=1e-3)
    assert table.high[0] == pytest.approx(13 + half, abs=1e-3)
    assert (
        trained_arms.over_seeds(parameters(tmp_path), names[:1])[["low", "high"]]
        .isna()
        .all(axis=None)
    )
    assert trained_arms.over_seeds(parameters(tmp_path), []).empty
    with pytest.raises(UserError, match="No complete run"):
        trained_arms.over_seeds(parameters(tmp_path), ["dsc-95-4"])
