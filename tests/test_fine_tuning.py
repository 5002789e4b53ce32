"""Fine-tuning a public captioner: the user's whole path, with a coca_ViT-L-14 in small."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from tiny_coca import public_model

from dalle3lib import UserError, captioner, captioner_training, files, fine_tuning, images, paths
from dalle3lib.caption_sets import DESCRIPTIONS, pairs

torch.set_num_threads(1)
NAME = "coca_ViT-L-14"
CLIP = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A directory with a narrow coca_ViT-L-14: real tokenizer, real image size and preparation."""
    model = public_model(NAME, image_size=224)
    model.visual.preprocess_cfg |= CLIP
    directory = tmp_path_factory.mktemp("base")
    captioner.save(model, open_clip.get_tokenizer(NAME), directory)
    return directory


def tune(base, data, out, kind="ssc", **changes):
    settings = {"steps": 12, "batch": 6, "lr": 3e-3, "warmup": 2, "held_out_every": 4, "unseen": 3}
    settings |= {"micro_batch": 3, "bfloat16": True, "grad_checkpointing": True}
    return fine_tuning.fine_tune(kind, base, data, out, **settings | changes)


@pytest.fixture(scope="module")
def tuned(base, benchmarks, tmp_path_factory):
    """Fine-tuned on the 26 photographs: (directory, manifest, photographs)."""
    folder, out = benchmarks / "coco-mini", tmp_path_factory.mktemp("tuned") / "ssc"
    return out, tune(base, folder, out), folder


def test_photographs_are_prepared_as_open_clip_does(base, benchmarks):
    """Up to half a pixel: open_clip scales first and then crops, to whole pixels."""
    model, _ = captioner.load(base)
    _, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{base}")
    found = sorted((benchmarks / "coco-mini").rglob("*.jpg"))
    assert len(found) == 26
    for path in found:
        ours = captioner.pixels(model, images.decode(path, 224)[None])[0]
        theirs = prepare(Image.open(path))
        assert ours.shape == theirs.shape == (3, 224, 224)
        wide = Image.open(path).width > Image.open(path).height
        one_pixel = theirs.diff(dim=2 if wide else 1).abs().mean()  # a shift of what is cropped
        assert (ours - theirs).abs().mean() < 0.7 * one_pixel, path


def test_a_captioner_learns_from_photographs(tuned, base):
    out, manifest, folder = tuned
    quality = manifest["quality"]
    assert quality["nats_per_token"] < quality["nats_per_token_before"]
    assert manifest["steps"] <= 12 and manifest["data"]["pairs"] == len(
        pairs(folder, "train", "ssc").captions
    )
    assert manifest["data"]["set"].startswith("COCO 2017") and manifest["data"]["truncated"] == 0
    assert files.damage(out, manifest["files"]) is None
    curve = pd.read_csv(out / "training.csv")
    assert curve["held_out"].min() == pytest.approx(quality["nats_per_token"], abs=0.05)

    model, tokenizer = captioner.load(out)  # and through open_clip's own calls
    public, _, _ = open_clip.create_model_and_transforms(f"local-dir:{out}")
    assert model.visual.preprocess_cfg["mean"] == list(CLIP["mean"])
    before, _ = captioner.load(base)
    key = "text_decoder.text_projection"
    assert torch.equal(public.state_dict()[key], model.state_dict()[key])
    assert not torch.equal(before.state_dict()[key], model.state_dict()[key])
    unseen = pairs(folder, "dev", "ssc", every=False)
    pictures = np.stack([images.decode(path, 224) for path in unseen.paths[:3]])
    nats = captioner_training.token_log_likelihood(model, tokenizer, pictures, unseen.captions[:3])
    assert nats == pytest.approx(quality["nats_per_token"], rel=0.01)  # saved in half precision


def test_finished_work_is_returned_and_other_settings_refused(tuned, base, monkeypatch):
    out, manifest, folder = tuned

    def never(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(captioner_training, "train_captioner", never)
    assert tune(base, folder, out) == manifest
    with pytest.raises(UserError, match="another lr, micro_batch: choose another directory"):
        tune(base, folder, out, lr=1e-3, micro_batch=2)


def test_an_interrupted_fine_tuning_goes_on(tuned, base, tmp_path, monkeypatch):
    out, manifest, folder = tuned
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(captioner, "save", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        tune(base, folder, tmp_path)
    assert not (tmp_path / "manifest.json").exists()
    again = tune(base, folder, tmp_path)
    weights = "open_clip_model.safetensors"
    assert again["files"][weights] == manifest["files"][weights]


def test_degenerate_captions_sound_the_alarm_and_lose_nothing(tuned, base):
    """Twelve steps teach no English: the run says so."""
    out, manifest, folder = tuned
    assert manifest["alarms"]
    (out / "training.csv").write_text("changed")
    with pytest.raises(UserError, match="training.csv"):
        tune(base, folder, out)


def test_a_public_name_and_its_weights_are_a_base_too(base, benchmarks, tmp_path):
    """As ("coca_ViT-L-14", "laion2b_s13b_b90k"), but with weights that need no download."""
    config = json.loads((base / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "coca_ViT-L-14-narrow.json").write_text(json.dumps(config))
    open_clip.add_model_config(tmp_path / "coca_ViT-L-14-narrow.json")
    weights = tmp_path / "weights.safetensors"
    shutil.copy(base / "open_clip_model.safetensors", weights)
    options = {"steps": 2, "batch": 3, "context": 90}
    folder, name = benchmarks / "coco-mini", f"coca_ViT-L-14-narrow:{weights}"
    manifest = tune(name, folder, tmp_path / "out", **options)
    model, _ = captioner.load(tmp_path / "out")
    assert model.context_length == 90 and manifest["steps"] == 2
    assert model.visual.preprocess_cfg["mean"] == list(CLIP["mean"])  # open_clip's for CoCa
    before, after = captioner.load(base)[0].state_dict(), model.state_dict()
    gap = max((before[k] - after[k]).abs().max() for k in before if "posit" not in k)
    assert 0 < gap < 0.02


def test_long_descriptions_get_a_longer_context(base, tmp_path, capsys):
    folder = tmp_path / "docci"
    (folder / "images").mkdir(parents=True)
    names = [*(f"train_{i:05d}" for i in range(6)), "qual_dev_00000", "qual_dev_00001"]
    lines = []
    for number, name in enumerate(names):
        Image.new("RGB", (60, 50), (30 * number, 90, 0)).save(folder / "images" / f"{name}.jpg")
        text = "A wall, photographed from the front. " * (20 if number < 3 else 10)
        lines.append({"example_id": name, "image_file": f"{name}.jpg", "description": text})
    (folder / DESCRIPTIONS).write_text("\n".join(map(json.dumps, lines)))
    manifest = tune(base, folder, tmp_path / "dsc", "dsc", context=100, steps=2, batch=3)
    # eight tokens a sentence, start and end: 162 or 82
    assert manifest["data"]["truncated"] == 0.5
    said = capsys.readouterr().out
    assert "50.0% of 6 captions are longer than 100 tokens" in said
    assert manifest["alarms"] and all(alarm in said for alarm in manifest["alarms"])
    model, _ = captioner.load(tmp_path / "dsc")
    assert model.context_length == 100 and len(model.text.positional_embedding) == 101
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="docci_images.tar.gz .7.6 GB"):
        tune(base, folder, tmp_path / "other", "dsc")


def test_the_world_s_captioner_learns_from_the_world(tmp_path):
    options = {"steps": 10, "batch": 8, "examples": 30, "unseen": 20, "held_out_every": 5}
    for kind in ("ssc", "dsc"):
        manifest = tune("shipped", "world", tmp_path / kind, kind, **options, micro_batch=None)
        assert manifest["data"]["pairs"] == 30 and manifest["data"]["truncated"] == 0
        quality = manifest["quality"]
        assert quality["nats_per_token"] < quality["nats_per_token_before"]
    images, texts = fine_tuning.lessons("ssc", "world", "dev", 64, 7)
    assert len(images) == len(texts) == 7 and images.dtype == np.uint8
    assert not set(texts) & set(fine_tuning.lessons("dsc", "world", "dev", 64, 7)[1])


@pytest.mark.timeout(600)
def test_the_notebook_at_preset_gpu(base, benchmarks, tmp_path):
    """The command a user types, on a processor and with a small captioner."""
    given = {"preset": "gpu", "kind": "ssc", "base": base, "device": "cpu", "steps": 4, "batch": 4}
    given |= {"short_captions": benchmarks / "coco-mini", "warmup": 1, "micro_batch": 2}
    given |= {"held_out_every": 2, "unseen": 3, "context": 90, "grad_checkpointing": True}
    words = [word for name, value in given.items() for word in ("-p", name, str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "dalle3lib", "run", "02a_fine_tune", *words],
        cwd=paths.ROOT,
        env=os.environ | {"DALLE3_RUNS": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (run,) = tmp_path.glob("gpu/02a_fine_tune/ssc*")
    model, _ = captioner.load(run / "captioner")
    assert model.context_length == 90
    results = files.read_json(run / "results.json")
    assert results["data"]["set"].startswith("COCO 2017") and results["steps"] == 4
