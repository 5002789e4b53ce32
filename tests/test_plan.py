"""The plan: its arithmetic, what it lists, what it refuses."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dalle3lib import UserError, config, plan, unet, vae

torch.set_num_threads(1)


def cfg(preset: str = "gpu", **changes):
    return config.from_preset("04a_train_arm", preset=preset, **changes)


def test_operations_of_a_product_by_hand():
    a, b = torch.zeros(3, 4, device="meta"), torch.zeros(4, 5, device="meta")
    assert plan.flops(lambda: a @ b) == 2 * 3 * 4 * 5


def test_operations_of_the_network_are_those_of_a_real_pass():
    given = cfg("cpu")
    model = unet.build(tuple(given.channels))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 20, 128))
    assert plan.unet_flops(given, 128, 20) == pytest.approx(counter.get_total_flops(), rel=0.02)
    assert plan.unet_flops(given, 128, 40) > plan.unet_flops(given, 128, 20)


def test_operations_of_the_world_s_models(foundations):
    encoding, decoding = plan.vae_flops("world", 64)
    with FlopCounterMode(display=False) as counter:
        vae.load(foundations / "vae").encode(torch.zeros(1, 3, 64, 64))
    assert encoding == pytest.approx(counter.get_total_flops(), rel=0.05) and decoding > 0
    assert 0 < plan.t5_flops("world") < plan.t5_flops("google/t5-v1_1-large") / 100


def test_known_sizes():
    """Two operations for each weight of T5's encoder and token, a little more for attention."""
    assert plan.t5_flops("google/t5-v1_1-large") == pytest.approx(2 * 308e6, rel=0.05)
    assert plan.t5_flops("google/t5-v1_1-xxl") == pytest.approx(2 * 4631e6, rel=0.05)
    encoding, decoding = plan.vae_flops("stabilityai/sd-vae-ft-mse", 256)
    assert 2e11 < encoding < 4e11 and encoding < decoding < 1e12
    assert plan.coca_flops(76) > plan.coca_flops(16) > 1.5e11


@pytest.mark.parametrize("preset", ["world-gpu", "gpu", "paper"])
def test_hours_follow_from_the_arithmetic(preset):
    given = cfg(preset)
    arms = len(plan.arm_names(given))
    rows = {what: operations for what, _, operations in plan.work(given, arms)}
    width = plan.t5_config(given.t5).d_model
    tokens = plan.mean_tokens(given)
    once = plan.unet_flops(given, width, (tokens["original"] + tokens["dsc"]) / 2)
    assert rows[f"train {arms} arms"] == arms * given.steps * given.batch * 3 * once
    total = sum(rows.values()) / (100 * 1e12 * 0.5) / 3600
    assert f"together {total:,.1f} GPU-hours at 50%" in plan.report(given, 100, 0.5)


def test_every_arm_of_the_experiment_has_ten_seeds():
    names = plan.arm_names(cfg("world-gpu"))
    assert len(names) == len(set(names)) == 80
    seeds = {}
    for name in names:
        kind, ratio, seed = name.rsplit("-", 2)
        seeds.setdefault((kind, ratio), set()).add(int(seed))
    assert set(map(frozenset, seeds.values())) == {frozenset(range(100, 110))}


def test_the_report_lists_what_is_needed():
    said = " ".join(plan.report(cfg("gpu")).split())
    for part in ("stabilityai/sd-vae-ft-mse@31f26fd", "google/t5-v1_1-large@a98b0fc", "315.4 GB",
                 "hf download pixparse/cc3m-wds", "val2014.zip", "coco2014-captions",
                 "give the folder of tars", "CoCa-ViT-L-14", "--kind both"):  # fmt: skip
        assert part in said
    assert "google/t5-v1_1-xxl" in plan.report(cfg("paper"))
    assert "download" not in plan.report(cfg("world-gpu"))


def test_a_preset_that_lacks_its_folders_does_not_start(monkeypatch):
    monkeypatch.setattr(plan.pretrained, "missing", lambda model: [])
    with pytest.raises(UserError, match="cannot start: prompts_from: .*; short_captions: .*docci"):
        plan.check(cfg("gpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds none"):
        plan.check(cfg("world-gpu"))
    plan.check(cfg("cpu"))
