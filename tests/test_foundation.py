"""Foundations: manifests and damage, and each one trained for three steps on forty scenes."""

import errno
import json
import os
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from dalle3lib import (
    UserError,
    captioner,
    captioner_training,
    foundation,
    paths,
    quality,
    text,
    vae,
)
from dalle3lib.evals import clip_score
from dalle3lib.images import stack, to_tensor
from dalle3lib.splits import overlap
from dalle3lib.world import World
from dalle3lib.world.questions import KINDS

torch.set_num_threads(1)
STATED = ("background", "shape", "colour", "texture", "size", "place", "printed word")
READ = ("colour-shape", "texture-shape", "size-shape", "colour-shape-place", "background", "word")
QUALITY = {
    "vae": {"psnr_db", "read_count", *(f"read_{kind}" for kind in READ)},
    "clip": {"retrieval_alt-text", "retrieval_short", "retrieval_descriptive"},
    "judge": {*KINDS, "all"},
    "t5": {"loss", "pairs_kept"},
    "coca-base": {"nats_per_token"},
    "coca-dsc": {"nats_per_token", *(f"states_{kind}" for kind in STATED)},
    "coca-ssc": {"nats_per_token", "states_colour", "states_shape"},
    "upsampler": {"loss", "kept", "contradicted", "objects_whole", "like_training"},
}
WEIGHTS = {
    "vae": "diffusion_pytorch_model.safetensors",
    "t5": "model.safetensors",
    "clip": "open_clip_model.safetensors",
    "judge": "model.safetensors",
    "coca-dsc": "open_clip_model.safetensors",
    "upsampler": "model.safetensors",
}


@contextmanager
def small_recipes():
    """Recipes of three steps, worlds of forty scenes, qualities of a hundred at most."""
    tiny = {"steps": 3, "batch": 8, "scenes": 40}
    recipes = {name: recipe | tiny for name, recipe in foundation.RECIPES.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foundation, "RECIPES", recipes)
        for name in ("held_out", "held_out_scenes"):
            every = getattr(quality, name)
            patch.setattr(quality, name, lambda count, every=every: every(min(count, 100)))
        unseen = foundation.held_out(count=30)
        patch.setattr(foundation, "held_out", lambda noise=0.5: unseen)
        yield patch


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """All trained by ``train_one``, as the notebook does: their directory."""
    directory = tmp_path_factory.mktemp("trained")
    with small_recipes():
        for name in foundation.RECIPES:
            foundation.train_one(name, directory)
    return directory


@pytest.fixture
def shipped(trained, monkeypatch):
    """What was trained, in the place of ``data/foundation``."""
    monkeypatch.setenv("DALLE3_FOUNDATION", str(trained))
    return trained


def checkpoint(directory, name: str, part: str) -> dict[str, torch.Tensor]:
    """The last checkpoint of a training: its weights (part "model") or their average ("ema")."""
    checkpoints = directory / "checkpoints" / name / "checkpoints"
    return load_file(checkpoints / "step-000003" / f"{part}.safetensors")


# ---- manifests -----------------------------------------------------------------------------------


def test_a_manifest_is_written_and_accepted(tmp_path, monkeypatch):
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    directory = tmp_path / "thing"
    directory.mkdir()
    (directory / "weights").write_bytes(b"abc")
    (directory / "config.json").write_text("{}")
    started = quality.clock()
    quality.write_manifest(directory, started, seed=3, steps=7, measured={"psnr_db": 30.5})
    assert paths.foundation("thing") == directory
    manifest = json.loads((directory / "manifest.json").read_text())
    assert (manifest["name"], manifest["seed"], manifest["steps"]) == ("thing", 3, 7)
    assert manifest["quality"] == {"psnr_db": 30.5} and manifest["threads"] >= 1
    assert 0 <= manifest["wall_seconds"] < 60 and 0 <= manifest["cpu_seconds"] < 60
    sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # of "abc"
    assert manifest["files"]["weights"] == {"sha256": sha256, "size": 3}
    assert set(manifest["files"]) == {"weights", "config.json"}
    # a second manifest does not list the first
    quality.write_manifest(directory, started, seed=3, steps=8, measured={})
    assert paths.foundation("thing") == directory


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("bit", [7, 1_234_567])
def test_one_flipped_bit(tiny_foundation, tmp_path, monkeypatch, flip, name, bit):
    shutil.copytree(tiny_foundation / name, tmp_path / name)
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    assert paths.foundation(name) == tmp_path / name
    flip(tmp_path / name / WEIGHTS[name], bit)
    with pytest.raises(UserError, match=f"{WEIGHTS[name]} is damaged.*git checkout"):
        paths.foundation(name)


def test_every_shipped_file_is_guarded(tiny_foundation):
    for name in foundation.RECIPES:
        manifest = json.loads((tiny_foundation / name / "manifest.json").read_text())
        present = {p.name for p in (tiny_foundation / name).iterdir()}
        assert set(manifest["files"]) == present - {"manifest.json"}


# ---- training ------------------------------------------------------------------------------------


def test_recipes_are_complete_and_in_order():
    assert set(foundation.RECIPES) == set(QUALITY)
    assert sorted(sum(foundation.HALVES, ())) == sorted(foundation.RECIPES)
    for half in foundation.HALVES:  # fine-tunes come after their base, in the same process
        tuned = [i for i, name in enumerate(half) if name in ("coca-dsc", "coca-ssc")]
        assert not tuned or half.index("coca-base") < min(tuned)
    assert foundation.RECIPES["clip"]["seed"] != foundation.RECIPES["coca-base"]["seed"]


def test_each_foundation_is_trained_measured_and_whole(shipped):
    assert list(foundation.TRAINING) == list(foundation.RECIPES)
    for name in foundation.RECIPES:
        manifest = quality.manifest(name)
        assert manifest["name"] == name and manifest["steps"] == 3
        assert manifest["seed"] == foundation.RECIPES[name]["seed"]
        assert set(manifest["quality"]) == QUALITY[name]
        assert all(np.isfinite(list(manifest["quality"].values())))
        assert manifest["cpu_seconds"] > 0


def test_quality_now_is_quality_then(shipped):
    with small_recipes():
        report = quality.report(100)
        manifests = {name: quality.manifest(name) for name in report}
    assert set(report) == set(QUALITY) - {"t5"}  # measured with the decoder, which is not shipped
    for name, values in report.items():
        then = {kind: manifests[name]["quality"][kind] for kind in values}  # but the training loss
        assert values == pytest.approx(then, abs=0.011)


def test_quality_of_fewer_scenes_than_a_pool(shipped):
    with small_recipes():
        model, tokenizer = clip_score.load(paths.foundation("clip"))
        measured = quality.scorer(model, tokenizer, count=20)
    assert all(0 <= share <= 1 for share in measured.values())


def test_files_hold_what_was_trained(shipped):
    average = checkpoint(shipped, "vae", "ema")
    for name, value in vae.load(paths.foundation("vae")).state_dict().items():
        if "quant_conv" not in name:  # which take up the standard latents
            assert torch.equal(value, average[name].half().float()), name
    weights = checkpoint(shipped, "t5", "model")
    encoder, _ = text.load(paths.foundation("t5"))
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, weights[name].half().float()), name
    weights = checkpoint(shipped, "clip", "model")
    scorer, _ = clip_score.load(paths.foundation("clip"))
    for name, value in scorer.state_dict().items():
        assert torch.equal(value, weights[name].half().float()), name


def test_only_the_encoder_of_t5_is_shipped(shipped):
    names = load_file(shipped / "t5" / WEIGHTS["t5"])
    assert names and not [name for name in names if name.startswith(("decoder", "lm_head"))]


def test_weights_are_half_precision_and_small(shipped):
    for name in foundation.RECIPES:
        file = shipped / name / WEIGHTS.get(name, "open_clip_model.safetensors")
        assert {v.dtype for v in load_file(file).values() if v.is_floating_point()} == {torch.half}
        assert sum(p.stat().st_size for p in (shipped / name).iterdir()) < 15e6  # bytes


def test_latents_have_unit_deviation(shipped):
    model = vae.load(paths.foundation("vae"))
    images = to_tensor(stack(World("foundation", 40)))
    scaled = model.encode(images).latent_dist.mean * model.config.scaling_factor
    assert scaled.std().item() == pytest.approx(1, abs=0.01)


def test_fine_tunes_start_from_the_base_and_part(shipped):
    weights = {
        name: load_file(shipped / name / "open_clip_model.safetensors")
        for name in ("coca-base", "coca-ssc", "coca-dsc")
    }
    base = weights.pop("coca-base")
    for tuned in weights.values():  # three steps of warm-up move little
        gap = max((tuned[k].float() - base[k].float()).abs().max().item() for k in base)
        assert 0 < gap < 0.01
    ssc, dsc = weights.values()
    assert any(not torch.equal(ssc[name], dsc[name]) for name in base)


def test_captioners_write_their_curves(shipped):
    for name in quality.LEARNED:
        assert "training.csv" in quality.manifest(name)["files"]
        curve = pd.read_csv(shipped / name / "training.csv")
        assert list(curve.columns) == ["step", "captioning", "contrastive", "held_out"]
        assert curve["step"].tolist() == [1, 2, 3]
        assert curve["held_out"].notna().tolist() == [False, False, True]
        assert (curve["contrastive"] > 0).all() == (name == "coca-base")


def test_captioners_are_measured_on_scenes_of_their_own():
    unseen = foundation.held_out(0.1)
    assert len(unseen) == 500 and {r.key[:3] for r in unseen} == {"dev"}
    assert overlap(unseen, quality.held_out(500)).get("keys") == 0


def test_captioners_share_a_tokenizer(shipped):
    tokens = []
    for name in ("coca-base", "coca-ssc", "coca-dsc"):
        _, tokenizer = captioner.load(shipped / name)
        tokens.append(tokenizer(["a red circle on snow."]).tolist())
    assert tokens[0] == tokens[1] == tokens[2]


def test_a_finished_foundation_is_not_trained_again(shipped, monkeypatch):
    def never(*_, **__):
        raise AssertionError("trained again")

    for name in foundation.TRAINING:
        monkeypatch.setitem(foundation.TRAINING, name, never)
    for name in foundation.RECIPES:
        manifest = foundation.train_one(name, shipped)
        assert manifest["name"] == name


def test_an_interrupted_training_goes_on_where_it_was(trained, tmp_path, monkeypatch):
    """Killed after the last step and before the files were written: no step is taken again."""
    shutil.copytree(trained / "checkpoints" / "vae", tmp_path / "checkpoints" / "vae")

    def never(*_, **__):
        raise AssertionError("a step was taken")

    monkeypatch.setattr(vae, "loss", never)
    with small_recipes():
        manifest = foundation.train_one("vae", tmp_path)
    before = json.loads((trained / "vae" / "manifest.json").read_text())
    assert manifest["files"] == before["files"] and manifest["quality"] == before["quality"]


def test_training_again_gives_the_same_bytes(trained, tmp_path):
    with small_recipes():
        for name in ("t5", "clip"):
            manifest = foundation.train_one(name, tmp_path)
            before = json.loads((trained / name / "manifest.json").read_text())
            assert manifest["files"] == before["files"]


def test_a_full_disk_is_one_sentence(trained, tmp_path, monkeypatch):
    """The weights are written by diffusers: its error becomes ours, and nothing looks finished."""
    shutil.copytree(trained / "checkpoints" / "vae", tmp_path / "checkpoints" / "vae")

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(vae.PatchAutoencoderKL, "save_pretrained", full)
    with small_recipes(), pytest.raises(UserError, match="disk is full"):
        foundation.train_one("vae", tmp_path)
    assert not (tmp_path / "vae" / "manifest.json").exists()


def test_a_fine_tune_is_measured_checked_and_leaves_the_base_alone(shipped, tmp_path, capsys):
    shutil.copytree(shipped / "coca-base", tmp_path / "coca-base")
    before = (tmp_path / "coca-base" / "open_clip_model.safetensors").read_bytes()
    unseen = foundation.held_out(count=12)
    recipe = {"seed": 0, "steps": 4, "batch": 4, "lr": 1e-3, "held_out_every": 2}
    with small_recipes() as patch:
        patch.setattr(foundation, "held_out", lambda: unseen)
        work, out = tmp_path / "work", tmp_path / "coca-dsc"
        foundation.train_fine_tune("dsc", work, out, scenes=16, **recipe)
    assert "Degenerate captions: 12 of 12" in capsys.readouterr().out  # it has learned nothing
    curve = pd.read_csv(out / "training.csv").dropna(subset="held_out")
    assert curve["step"].tolist() == [2, 4] and (curve["contrastive"] == 0).all()
    model, tokenizer = captioner.load(out)
    human = [record.descriptive for record in unseen]
    nats = captioner_training.token_log_likelihood(model, tokenizer, stack(unseen), human)
    assert nats == pytest.approx(curve["held_out"].iloc[-1], abs=0.01)  # saved in half precision
    assert (tmp_path / "coca-base" / "open_clip_model.safetensors").read_bytes() == before
