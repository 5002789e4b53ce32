"""One arm: its name, its snapshots, training, the two sets of prompts, scores and their summary."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from dalle3lib import UserError, arm, latents
from dalle3lib.config import Parameters
from dalle3lib.latents import Cache
from dalle3lib.sample import sample
from dalle3lib.world import World

torch.set_num_threads(1)
VALUES = {
    "data": "world", "noise": 0.5, "prompts": 3, "kind": "dsc", "ratio": 95, "seed": 0,
    "channels": [16, 32, 32], "batch": 4, "steps": 6, "lr": 1e-3, "dropout": 0.1,
    "checkpoint_every": 3, "evaluations": 2, "sampling_steps": 2, "guidances": [1, 3],
    "tuning": 2,
}  # fmt: skip


def parameters(root: Path = Path("nowhere"), **changes) -> Parameters:
    return Parameters("04a_train_arm", "smoke", VALUES | changes, root=root)


def tiny_cache(count: int = 8, width: int = 128) -> Cache:
    generator = torch.Generator().manual_seed(0)

    def states() -> list[torch.Tensor]:
        return [torch.randn(3 + i % 4, width, generator=generator).half() for i in range(count)]

    latents = torch.randn(count, 4, 8, 8, generator=generator)
    return Cache(latents, {kind: states() for kind in ("original", "ssc", "dsc")})


def weights(directory, **changes) -> torch.Tensor:
    """All final weights of a small arm in one vector."""
    model, _ = arm.train_arm(parameters(**changes), tiny_cache(), directory)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- names and steps -----------------------------------------------------------------------------


def test_label():
    assert arm.label("dsc-95-0") == "DSC 95 %"
    assert arm.label("ssc-80-12") == "SSC 80 %"
    assert arm.label("original-0-3") == "original only"


def test_snapshot_steps_by_hand():
    assert arm.snapshot_steps(40, 2) == [20, 40]
    assert arm.snapshot_steps(10, 4) == [2, 5, 8, 10]
    assert arm.snapshot_steps(1, 5) == [1]


@given(st.integers(1, 10**6), st.integers(1, 50))
def test_snapshot_steps(steps, count):
    found = arm.snapshot_steps(steps, count)
    assert found == sorted(set(found)) and 1 <= len(found) <= count
    assert found[0] >= 1 and found[-1] == steps
    if steps >= 2 * count:
        gaps = np.diff([0, *found])
        assert len(found) == count and max(gaps) - min(gaps) <= 2  # equally spaced


@pytest.mark.parametrize(
    "changes", [{"kind": "dcs"}, {"kind": "alt"}, {"ratio": -1}, {"ratio": 101}]
)
def test_unknown_arms(tmp_path, changes):
    with pytest.raises(UserError, match="There is no arm.*original, ssc or dsc.*0 to 100"):
        arm.train_arm(parameters(**changes), tiny_cache(), tmp_path)
    assert not any(tmp_path.iterdir())


# ---- training ------------------------------------------------------------------------------------


def test_training_leaves_snapshots_and_the_average(tmp_path):
    model, log = arm.train_arm(parameters(), tiny_cache(), tmp_path)
    assert list(log) == ["loss"] and len(log["loss"]) == 6 and np.isfinite(log["loss"]).all()
    assert sorted(p.name for p in tmp_path.glob("ema-*")) == [
        "ema-000003.safetensors", "ema-000006.safetensors",
    ]  # fmt: skip
    last = load_file(tmp_path / "ema-000006.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(value.half(), last[name]), name


def test_the_seed_decides_alone(tmp_path):
    torch.manual_seed(1)
    one = weights(tmp_path / "a")
    torch.manual_seed(2)
    assert torch.equal(weights(tmp_path / "b"), one)
    assert not torch.equal(weights(tmp_path / "c", seed=1), one)


def test_arms_differ_in_nothing_but_their_captions(tmp_path):
    original = weights(tmp_path / "original", kind="original", ratio=0)
    assert torch.equal(weights(tmp_path / "dsc-0", kind="dsc", ratio=0), original)
    assert torch.equal(weights(tmp_path / "original-95", kind="original", ratio=95), original)
    ssc, dsc = (weights(tmp_path / kind, kind=kind, ratio=100) for kind in ("ssc", "dsc"))
    assert not torch.equal(ssc, original) and not torch.equal(ssc, dsc)


def test_a_finished_arm_takes_no_step(tmp_path, monkeypatch):
    first = weights(tmp_path)

    def never(*_, **__):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(arm.diffusion, "loss", never)
    assert torch.equal(weights(tmp_path), first)


def test_two_processes_train_the_same_arm(foundations, tmp_path):
    """Started as from a notebook; against one process that takes the same parts by itself."""
    cfg = parameters(tmp_path, scenes=12, processes=2, device="cpu")
    cache = latents.load(latents.build(cfg))
    both, log = arm.train_arm(cfg, cache, tmp_path / "two")
    alone = parameters(tmp_path, scenes=12, micro_batch=2)
    model, expected = arm.train_arm(alone, cache, tmp_path / "one")
    assert len(log["loss"]) == 6 and log["loss"] == pytest.approx(expected["loss"])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(both.state_dict()[name], value, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match="2 processes that train this arm ended with code"):
        arm.train_arm(replace(cfg, values=cfg.values | {"batch": 1}), cache, tmp_path / "none")


def test_computing_activations_twice_trains_the_same_arm(tmp_path):
    again = weights(tmp_path / "b", grad_checkpointing=True)
    assert torch.equal(weights(tmp_path / "a"), again)


def test_a_compiled_network_trains_the_same_arm(tmp_path, monkeypatch):
    """The graph is captured whole, but run as it is: fusing it takes minutes (see below)."""
    compile_ = partial(torch.compile, backend="eager", fullgraph=True)
    monkeypatch.setattr(arm.torch, "compile", compile_)
    check_compiled(tmp_path)


@pytest.mark.soak
def test_a_fused_network_trains_the_same_arm(tmp_path):
    check_compiled(tmp_path)


def check_compiled(directory: Path) -> None:
    """Losses agree, and those of the second step come from weights that the first one moved."""
    cache, losses = tiny_cache(), {}
    for compile_ in (False, True):
        cfg = parameters(compile=compile_, steps=2)
        losses[compile_] = arm.train_arm(cfg, cache, directory / str(compile_))[1]["loss"]
    assert np.allclose(losses[True], losses[False], rtol=1e-5)
    assert sum(torch._dynamo.utils.counters["stats"].values()), "nothing was compiled"


def test_compiling_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match="compile needs a C.. compiler"):
        arm.train_arm(parameters(compile=True), tiny_cache(), tmp_path)


def test_micro_batches_train_the_same_arm(tmp_path):
    """Up to the rounding of sums, which AdamW's first steps magnify."""
    whole = weights(tmp_path / "whole", steps=2, lr=1e-4)
    parts = weights(tmp_path / "parts", steps=2, lr=1e-4, micro_batch=3)
    assert torch.allclose(whole, parts, atol=1e-4) and not torch.equal(whole, parts)


# ---- prompts -------------------------------------------------------------------------------------


def test_evaluation_records_are_held_out():
    records = arm.evaluation_records(parameters(prompts=4, noise=0))
    assert [r.key for r in records] == [f"dev-{i:06d}" for i in range(4)]
    assert [r.alt for r in records] == [r.alt for r in World("dev", 4, noise=0)]


# ---- scores --------------------------------------------------------------------------------------


def test_every_snapshot_is_scored_with_both_sets_of_prompts(foundations, tmp_path, monkeypatch):
    cfg, used = parameters(), []
    model, _ = arm.train_arm(cfg, tiny_cache(), tmp_path)

    def noted(network, *arguments, **options):
        used.append(network.conv_out.weight.clone())
        return sample(network, *arguments, **options)

    monkeypatch.setattr(arm, "sample", noted)
    table, pictures = arm.score_snapshots(cfg, model, tmp_path, guidance=3.0)
    for weight, step in zip(used, (3, 3, 6, 6), strict=True):  # each with its own weights
        snapshot = load_file(tmp_path / f"ema-{step:06d}.safetensors")
        assert torch.equal(weight, snapshot["conv_out.weight"].float())
    assert not torch.equal(used[0], used[2])
    assert list(table.columns)[:3] == ["kind", "prompt", "score"] and "step" in table
    assert {"colour-shape", "background", "count"} <= set(table.columns)
    assert table.groupby(["step", "kind"]).size().to_dict() == {
        (step, kind): 3 for step in (3, 6) for kind in ("original", "descriptive")
    }
    assert table.score.between(-100, 100).all()
    records = list(World("dev", 3))
    descriptive = table[(table.step == 6) & (table.kind == "descriptive")]
    assert descriptive.prompt.tolist() == [r.descriptive for r in records]
    assert set(pictures) == {"original", "descriptive"}
    for images in pictures.values():
        assert images.shape == (3, 64, 64, 3) and images.dtype == np.uint8
    # the pictures are those of the last snapshot: scored again, they give its scores
    scorer = arm.clip_score.load(foundations / "clip")
    again = arm.clip_score.clip_scores(
        *scorer, pictures["descriptive"], descriptive.prompt.tolist()
    )
    assert again == pytest.approx(descriptive.score.to_numpy(), abs=1e-4)


def test_the_facts_of_a_table_are_what_the_reader_finds(foundations, monkeypatch):
    """A sampler that paints the true images gets every fact, whatever the prompt."""
    records = list(World("dev", 3))
    monkeypatch.setattr(arm, "sample", lambda *_, **__: np.stack([r.image for r in records]))
    table, _ = arm.score(None, arm.studio(records), seed=0, steps=1, guidance=1.0)
    assert len(table) == 6 and (table[["colour-shape", "background", "count"]] == 1).all(axis=None)
    bare = [replace(r, facts=None) for r in records]
    table, _ = arm.score(None, arm.studio(bare), seed=0, steps=1, guidance=1.0)
    assert list(table.columns) == ["kind", "prompt", "score"]


def test_guidance_is_chosen_by_score_on_prompts_of_its_own(foundations, monkeypatch):
    seen = []

    def score(model, on, *, seed, steps, guidance):
        seen.append([r.key for r in on.records])
        return pd.DataFrame({"score": [guidance, 10 * guidance]}), {}

    monkeypatch.setattr(arm, "score", score)
    tried = arm.choose_guidance(parameters(guidances=[3, 1]), None)
    assert tried.to_dict() == {3: 16.5, 1: 5.5} and tried.idxmax() == 3
    assert seen == [["dev-000003", "dev-000004"]] * 2  # the three before are for evaluation


# ---- summaries -----------------------------------------------------------------------------------


def test_summary_by_hand():
    def table(**scores) -> pd.DataFrame:
        rows = [
            {"prompt": str(i), "score": score, "kind": kind, "step": step}
            for kind, steps in scores.items()
            for step, values in steps.items()
            for i, score in enumerate(values)
        ]
        return pd.DataFrame(rows)

    scores = {
        "DSC 95 %": table(original={10: [1.0, 3.0]}, descriptive={10: [5.0, 5.0]}),
        "original only": table(original={10: [0.0, 4.0, 8.0], 20: [2.0, 2.0, 2.0]}),
    }
    summary = arm.summarise(scores)
    assert list(summary.columns) == ["arm", "kind", "step", "mean", "low", "high"]
    assert summary[["arm", "kind", "step", "mean"]].values.tolist() == [
        ["DSC 95 %", "original", 10, 2.0],
        ["DSC 95 %", "descriptive", 10, 5.0],
        ["original only", "original", 10, 4.0],
        ["original only", "original", 20, 2.0],
    ]
    spread = summary.iloc[0]
    assert (spread.low, spread.high) == (1, 3)  # of two values: both ends are drawn often
    assert summary.iloc[1][["low", "high"]].tolist() == [5, 5]  # equal scores leave no doubt
    assert 0 <= summary.iloc[2].low < 4 < summary.iloc[2].high <= 8
    pd.testing.assert_frame_equal(arm.summarise(scores), summary)  # no hidden randomness
