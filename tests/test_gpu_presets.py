"""The presets gpu, paper and world-gpu run end to end on a processor, at tiny size.

The models are small ones in the formats of the real repositories, under their real names in a
Hugging Face cache; the images are photographs packed as web data. A preset ``tiny-gpu`` extends
``gpu`` and changes nothing but sizes, the device and where the folders are.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from public_models import (
    photographs,
    write_captions,
    write_coco,
    write_hub,
    write_page_models,
    write_web_data,
)
from safetensors.torch import load_file

from dalle3lib import config, paths, runs

torch.set_num_threads(1)
ARM = {"steps": 2, "batch": 4, "micro_batch": 4, "channels": [32, 32, 32], "checkpoint_every": 1,
       "evaluations": 1, "sampling_steps": 2, "guidances": [2.0], "tuning": 1}  # fmt: skip
COMMON = {"device": "cpu", "scenes": 8, "prompts": 3, "shown": 2}
FOLDERS = {
    "captions_from": "cc3m-captions",
    "prompts_from": "coco2014",
    "prompt_captions": "coco2014-captions",
    **dict.fromkeys(("base", "ssc", "dsc"), "coca"),
}


@pytest.fixture(scope="module")
def site(benchmarks, tmp_path_factory) -> Path:
    """A machine with models, tars, captions, COCO and a copy of the notebooks; runs go there."""
    where = tmp_path_factory.mktemp("site")
    photos = photographs(benchmarks)
    write_hub(where / "huggingface" / "hub")
    write_web_data(where, photos[:12])
    write_coco(where, photos[12:18])
    write_captions(where)
    write_page_models(where, benchmarks)
    shutil.copytree(paths.ROOT / "notebooks", where / "notebooks")
    return where


def coco_annotations(where: Path) -> list[dict]:
    """The captions of the machine's COCO folder."""
    (file,) = (where / "coco2014").rglob("captions*.json")
    return json.loads(file.read_text())["annotations"]


def dalle3(
    where: Path, *words: str, entry: Sequence[str] = ("-m", "dalle3lib"), **changes: str
) -> tuple[int, str]:
    """Run the command line on that machine, without a network: exit code and output."""
    environment = os.environ | {
        "HF_HOME": str(where / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "DALLE3_RUNS": str(where / "runs"),
        "DALLE3_NOTEBOOKS": str(where / "notebooks"),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        [sys.executable, *entry, *words],
        cwd=where,
        env=environment | changes,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


def tiny(where: Path, preset: str, **changes) -> str:
    """Write a preset that makes another one tiny; its name."""
    common = COMMON | changes
    asked = {name: changes[name] for name in ("prompts_from",) if name in changes}
    arms = {"04a_train_arm": ARM | asked, "04_caption_kind": {"sampling_steps": 2} | asked}
    text = yaml.safe_dump({"extends": preset, "common": common} | arms | pages(where))
    (where / "notebooks" / "presets" / f"tiny-{preset}.yaml").write_text(text)
    return f"tiny-{preset}"


def pages(where: Path) -> dict[str, dict]:
    """Small numbers and models for the pages on photographs."""
    few = {"captions": 4, "compositions": 2, "drawbench": 2, "images": 2, "sampling_steps": 2}
    names = {"vqa": "blip", "judge": "llava", "phrases": "phrases.json"}
    return {
        "02_captioning": {"captioned": 3, "traced": 2},
        "03_ssc_dsc": {"held_out": 3, "counted": 3},
        "06a_photographs": {"prompts": 3, "sampling_steps": 2, "llm": str(where / "chat")},
        "07a_photographs": {"count": 2, "decoder": str(where / "decoder"), "lpips": "none"},
        "10a_photographs": few | {name: str(where / file) for name, file in names.items()},
        "13_playground": {"sampling_steps": 2, "variations": 2, "guidances": [1, 2]},
    }


def here(where: Path) -> dict[str, str]:
    """Where the folders and captioners that the preset names lie."""
    return {name: str(where / folder) for name, folder in FOLDERS.items()}


def run(where: Path, notebook: str, preset: str, **values: str) -> str:
    """Run a notebook on the tars and return what was said."""
    given = {"preset": preset, "data": "cc3m"} | values
    words = [word for name, value in given.items() for word in ("-p", name, value)]
    code, said = dalle3(where, "run", notebook, *words)
    assert code == 0, said
    return said


@pytest.mark.timeout(1200)
def test_preset_gpu_from_tars_to_compared_arms(site):
    names = ["original-0-0", "dsc-95-0"]
    preset = tiny(site, "gpu", size=128, arms=names, **here(site))
    code, said = dalle3(site, "plan", "--preset", preset, "--data", "cc3m")
    assert code == 0 and "GPU-hours" in said and "google/t5-v1_1-large@a98b0fc" in said
    code, said = dalle3(site, "cache", "--preset", preset, "--data", "cc3m")
    assert code == 0 and "The cache takes about" in said, said
    for kind, ratio in (("original", "0"), ("dsc", "95")):
        run(site, "04a_train_arm", preset, kind=kind, ratio=ratio)
    run(site, "04_caption_kind", preset)
    (root,) = (site / "runs").glob(f"{preset}-cc3m-*")
    for name in names:
        path = root / "04a_train_arm" / name
        found = runs.results(path)
        assert np.isfinite(found["loss"]) and set(found["clip"]) == {"original", "descriptive"}
        pictures = np.load(path / "pictures-descriptive.npy")
        assert pictures.shape == (3, 128, 128, 3) and pictures.std() > 0
        prompts = pd.read_parquet(path / "scores.parquet").groupby("kind").prompt
        written = pd.read_parquet(site / "coco2014-captions" / "data").dsc
        assert set(prompts.get_group("descriptive")) <= set(written)
        config = json.loads((path / "unet" / "config.json").read_text())
        assert config["cross_attention_dim"] == 32 and config["sample_size"] == 16
        assert config["layers_per_block"] == 2
    (cache,) = (path for path in root.glob("cache/*") if path.is_dir())
    assert json.loads((cache / "manifest.json").read_text())["records"] == 8
    left_out = [json.loads(line) for line in (cache / "left-out.jsonl").read_text().splitlines()]
    assert {entry["key"] for entry in left_out} == {"90000", "90001", "90002"}
    shard = load_file(next(cache.glob("shard-*")))
    assert shard["states.dsc"].dtype == torch.bfloat16 and shard["latents"].shape[1:] == (4, 16, 16)
    compared = runs.results(root / "04_caption_kind" / "main")
    assert set(compared["arms"]) == {"original only", "DSC 95 %"}
    assert not any(compared["facts"].values())  # photographs have none
    assert "dsc-over-original-on-original-prompts" in compared["claims"]


@pytest.mark.timeout(1200)
def test_pages_on_photographs(site):
    """They take the arms of the test before, prompts of the folder, and models of the real classes.

    Upsampled prompts come from a chat model, verdicts from a vision-language model, answers from a
    BLIP, decoded pictures from a consistency decoder.
    """
    preset = tiny(site, "gpu", size=128, arms=["original-0-0", "dsc-95-0"], **here(site))
    (root,) = (site / "runs").glob(f"{preset}-cc3m-*")
    labels = {"original only", "DSC 95 %"}

    run(site, "06a_photographs", preset)
    found = runs.results(root / "06a_photographs" / "main")
    kinds = ("upsampled", "descriptive")
    assert set(found["gains"]) == {f"{arm}, {kind}" for arm in labels for kind in kinds}
    assert found["llm"]["prompts"] == 3 and set(found["scores"]) == {"short", *kinds}

    run(site, "07a_photographs", preset)
    found = runs.results(root / "07a_photographs" / "main")
    assert found["pictures"] == 2 and set(found["differences"]) == {"PSNR (dB)", "SSIM"}

    run(site, "10a_photographs", preset)
    found = runs.results(root / "10a_photographs" / "main")
    rows = pd.read_csv(root / "10a_photographs" / "main" / "images.csv")
    assert found["lacking"] == {} and set(rows.system) == labels
    numbers = {"captions": 4, "colour": 2, "shape": 2, "texture": 2, "drawbench": 4}
    assert rows.groupby(["benchmark", "system"]).size().unstack()["DSC 95 %"].to_dict() == numbers
    texts = {a["caption"].strip() for a in coco_annotations(site)}
    asked = rows[(rows.benchmark == "captions") & (rows.system == "DSC 95 %")]
    assert asked.prompt.is_unique and set(asked.prompt) <= texts
    means = {r["system"]: r["mean"] for r in found["table"] if r["benchmark"] == "captions"}
    assert means["DSC 95 %"] == pytest.approx(asked.score.mean())
    assert (asked.score > 0).any() or (asked.hessel == 0).all()

    run(site, "13_playground", preset)
    found = runs.results(root / "13_playground" / "main")
    assert set(found["arms"]) == labels and found["beyond"] == found["upsampled"] == {}
    assert all(drawn["reading"] is None for drawn in found["arms"].values())


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_first_chapters_read_tars(site, benchmarks):
    """Alt-text as it is on the web, counted; real captioners opened; what they wrote, counted."""
    preset = tiny(site, "gpu", size=128, **here(site))
    (site / "many").mkdir()
    write_web_data(site / "many", 8 * photographs(benchmarks)[:12])  # so that no split is empty
    for notebook in ("01_world", "02_captioning", "03_ssc_dsc"):
        run(site, notebook, preset, data="many/cc3m")
    root = config.root(preset, str(site / "many" / "cc3m"))
    root = site / "runs" / root.name
    assert runs.results(root / "01_world" / "main")["facts_stated"] == {}
    habits = runs.results(root / "03_ssc_dsc" / "main")["habits"]
    assert {"alt-text", "SSC", "DSC"} <= set(habits)


@pytest.mark.timeout(600)
def test_preset_paper_takes_two_steps(site):
    preset = tiny(site, "paper", size=256, **here(site))
    file = site / "notebooks" / "presets" / f"{preset}.yaml"
    file.write_text(file.read_text().replace("micro_batch: 4", "micro_batch: 2"))
    values = {"preset": preset, "data": "cc3m", "kind": "ssc"}
    words = [word for name, value in values.items() for word in ("-p", name, value)]
    code, said = dalle3(site, "run", "04a_train_arm", *words)
    assert code == 0, said
    (path,) = (site / "runs").glob(f"{preset}-*/04a_train_arm/ssc-95-0")
    assert runs.load(path)["parameters"]["t5"] == "google/t5-v1_1-xxl"
    config = json.loads((path / "unet" / "config.json").read_text())
    assert config["cross_attention_dim"] == 48 and config["sample_size"] == 32
    assert config["layers_per_block"] == 3


@pytest.mark.timeout(600)
def test_preset_world_gpu_trains_seeds_and_compares_them(site):
    names = ["dsc-95-100", "dsc-95-101"]
    preset = tiny(site, "world-gpu", arms=names[:1])
    file = site / "notebooks" / "presets" / f"{preset}.yaml"
    content = yaml.safe_load(file.read_text())
    content["common"]["replicas"] = names[1:]
    file.write_text(yaml.safe_dump(content))
    for seed in ("100", "101"):
        code, said = dalle3(
            site, "run", "04a_train_arm", "-p", "preset", preset, "-p", "seed", seed
        )  # fmt: skip
        assert code == 0, said
    for chapter in ("04_caption_kind", "05_mixing_ratio"):
        code, said = dalle3(site, "run", chapter, "-p", "preset", preset)
        assert code == 0, said
    root = site / "runs" / preset
    scores = [runs.results(root / "04a_train_arm" / name)["clip"]["original"] for name in names]
    assert scores[0] != scores[1]
    rows = runs.results(root / "04_caption_kind" / "main")["over_seeds"]
    (row,) = (r for r in rows if r["kind"] == "original")
    assert row["seeds"] == 2 and row["mean"] == pytest.approx(np.mean(scores))
    assert row["low"] < min(scores) and max(scores) < row["high"]  # of two seeds it is wide
    shares = runs.results(root / "05_mixing_ratio" / "main")["scores"]
    assert {(r["share"], r["seeds"]) for r in shares} == {(95, 2)}


# ---- what is missing is said before anything starts ----------------------------------------------


def test_offline_lists_what_is_missing(site, tmp_path):
    preset = tiny(site, "gpu", **here(site))
    words = ("graph", "--preset", preset, "--data", "cc3m")
    code, said = dalle3(site, *words, HF_HOME=str(tmp_path / "empty"))
    assert code == 1
    for part in ("HF_HUB_OFFLINE is set", "stabilityai/sd-vae-ft-mse@31f26fd, 0.3 GB",
                 "hf download google/t5-v1_1-large config.json pytorch_model.bin",
                 "--revision a98b0fcd0b8137ded40cdf0c0cf0ee884e7c9726",
                 "timm/vit_base_patch32_clip_224.openai@a6f597a, 0.6 GB"):  # fmt: skip
        assert part in said, said


def test_without_a_gpu_or_folders_the_preset_does_not_start(site):
    code, said = dalle3(site, "graph", "--preset", "gpu", "--data", "cc3m")
    assert code == 1 and "GPU-hours" in said
    assert "error: Preset gpu cannot start: prompts_from: there is no folder" in said
    assert (
        "short_captions: there is no folder" in said
        and "captions_from" not in said.splitlines()[-1]
    )
    preset = tiny(site, "gpu", **here(site) | {"device": "cuda"})
    code, said = dalle3(site, "graph", "--preset", preset, "--data", "cc3m")
    assert code == 1
    assert "torch finds none" in said.splitlines()[-1] and "set device to cpu" in said
