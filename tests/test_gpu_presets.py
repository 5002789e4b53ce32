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
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from public_models import photographs, write_captions, write_coco, write_hub, write_web_data
from safetensors.torch import load_file

from dalle3lib import paths, runs

torch.set_num_threads(1)
ARM = {"steps": 2, "batch": 4, "micro_batch": 4, "channels": [32, 32, 32], "checkpoint_every": 1,
       "evaluations": 1, "sampling_steps": 2, "guidances": [2.0], "tuning": 1}  # fmt: skip
COMMON = {"device": "cpu", "scenes": 8, "prompts": 3, "shown": 2}
FOLDERS = {"captions_from": "cc3m-captions", "prompts_from": "coco2014",
           "prompt_captions": "coco2014-captions"}  # fmt: skip


@pytest.fixture(scope="module")
def site(benchmarks, tmp_path_factory) -> Iterator[Path]:
    """A machine with models, tars, captions, COCO and a copy of the notebooks; runs go there."""
    where = tmp_path_factory.mktemp("site")
    photos = photographs(benchmarks)
    write_hub(where / "huggingface" / "hub")
    write_web_data(where, photos[:12])
    write_coco(where, photos[12:18])
    write_captions(where)
    shutil.copytree(paths.ROOT / "notebooks", where / "notebooks")
    yield where
    for root in (where / "runs").glob("tiny-*"):  # the book is built in the repository
        shutil.rmtree(paths.ROOT / "book" / "_build" / root.name, ignore_errors=True)


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
    arms = {"04a_train_arm": ARM, "04_caption_kind": {"sampling_steps": 2}}
    text = yaml.safe_dump({"extends": preset, "common": common} | arms)
    (where / "notebooks" / "presets" / f"tiny-{preset}.yaml").write_text(text)
    return f"tiny-{preset}"


def here(where: Path) -> dict[str, str]:
    """Where the folders that the preset names lie."""
    return {name: str(where / folder) for name, folder in FOLDERS.items()}


@pytest.mark.timeout(1200)
def test_preset_gpu_from_tars_to_the_book(site):
    names = ["original-0-0", "dsc-95-0"]
    preset = tiny(site, "gpu", size=128, arms=names, **here(site))
    code, said = dalle3(site, "graph", "--preset", preset, "--data", "cc3m")
    assert code == 0, said
    assert "GPU-hours" in said and "google/t5-v1_1-large@a98b0fc" in said
    assert "The cache takes about" in said
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


SCORED = """
import sys
from pathlib import Path
from dalle3lib import config, photo_evaluation
cfg = config.from_preset("04a_train_arm", preset=sys.argv[1], data="cc3m")
table = photo_evaluation.evaluate(cfg, ["dsc-95-0"], 6, 3, Path("scored"))
print(table.to_json(orient="index"))
"""


@pytest.mark.timeout(600)
def test_arms_on_photographs_are_scored_with_coco_captions(site):
    """It takes the arms of the test before, the captions of the folder, and the public scorer."""
    preset = tiny(site, "gpu", size=128, arms=["original-0-0", "dsc-95-0"], **here(site))
    code, said = dalle3(site, preset, entry=("-c", SCORED))
    assert code == 0, said
    row = json.loads(said.splitlines()[-1])["dsc-95-0"]
    rows = pd.read_parquet(site / "scored" / "dsc-95-0.parquet")
    texts = [a["caption"].strip() for a in coco_annotations(site)]
    assert len(set(rows.prompt)) == len(rows) == 6 and set(rows.prompt) <= set(texts)
    assert row["mean"] == pytest.approx(rows.score.mean()) and row["low"] <= row["high"]
    assert (rows.score > 0).any() or row["hessel"] == 0


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
    content["04_caption_kind"]["replicas"] = names[1:]
    file.write_text(yaml.safe_dump(content))
    for seed in ("100", "101"):
        code, said = dalle3(
            site, "run", "04a_train_arm", "-p", "preset", preset, "-p", "seed", seed
        )  # fmt: skip
        assert code == 0, said
    code, said = dalle3(site, "run", "04_caption_kind", "-p", "preset", preset)
    assert code == 0, said
    root = site / "runs" / preset
    scores = [runs.results(root / "04a_train_arm" / name)["clip"]["original"] for name in names]
    assert scores[0] != scores[1]
    rows = runs.results(root / "04_caption_kind" / "main")["over_seeds"]
    (row,) = (r for r in rows if r["kind"] == "original")
    assert row["seeds"] == 2 and row["mean"] == pytest.approx(np.mean(scores))
    assert min(scores) - 1e-9 <= row["low"] <= row["high"] <= max(scores) + 1e-9


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
    assert "error: Preset gpu cannot start: captions_from: there is no folder" in said
    preset = tiny(site, "gpu", **here(site) | {"device": "cuda"})
    code, said = dalle3(site, "graph", "--preset", preset, "--data", "cc3m")
    assert code == 1
    assert "torch finds none" in said.splitlines()[-1] and "set device to cpu" in said
