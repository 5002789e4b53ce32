"""Your own images: a folder of photographs becomes a book; what is wrong with it is one sentence.

A preset ``own`` extends ``gpu`` and changes nothing but sizes, the device, and where models lie.
The models are small ones of the real classes, saved as the real ones are and read by the same
calls; the photographs are the 26 of COCO that lie among the public benchmark files.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from public_models import (
    photographs,
    write_blip,
    write_coca,
    write_coco,
    write_decoder,
    write_folder,
    write_hub,
    write_phrases,
)
from tiny_chat import write_chat_model
from tiny_vision import write_vision_model

from dalle3lib import chapters, claims, paths, runs
from dalle3lib.automatic_evaluation import BOUND
from dalle3lib.evals import compbench

torch.set_num_threads(1)
ARMS = ["original-0-0", "dsc-95-0"]
ARM = {"steps": 2, "batch": 4, "micro_batch": 4, "channels": [32, 32, 32], "checkpoint_every": 1,
       "evaluations": 1, "sampling_steps": 2, "guidances": [2.0], "tuning": 1}  # fmt: skip


def write_preset(where: Path, folder: Path) -> None:
    """The preset ``own``: ``gpu`` with small sizes, on a processor."""
    common = {
        "device": "cpu", "scenes": 12, "prompts": 3, "shown": 2, "size": 64, "arms": ARMS,
        "prompts_from": str(where / "coco2014"), "prompt_captions": str(where / "said"),
        "base": str(where / "coca"), "precision": "float32",
    }  # fmt: skip
    lessons = {"short_captions": str(folder), "long_captions": str(folder), "examples": 8,
               "unseen": 3, "steps": 1, "batch": 2, "micro_batch": 2, "context": 76}  # fmt: skip
    sections = {
        "common": common,
        "02_captioning": {"captioned": 3, "traced": 2},
        "02a_fine_tune": lessons,
        "03_ssc_dsc": {"held_out": 4, "counted": 5},
        "04a_train_arm": ARM,
        "04_caption_kind": {"sampling_steps": 2},
        "06a_photographs": {"prompts": 3, "sampling_steps": 2, "llm": str(where / "chat")},
        "07a_photographs": {"count": 3, "decoder": str(where / "decoder"), "lpips": "none"},
        "10a_photographs": {
            "captions": 3, "compositions": 2, "drawbench": 2, "images": 2, "sampling_steps": 2,
            "vqa": str(where / "blip"), "judge": str(where / "llava"),
            "phrases": str(where / "phrases.json"),
        },
        "13_playground": {"sampling_steps": 2, "variations": 2, "guidances": [1, 2]},
    }  # fmt: skip
    text = yaml.safe_dump({"extends": "gpu"} | sections)
    (where / "notebooks" / "presets" / "own.yaml").write_text(text)


@pytest.fixture(scope="module")
def site(benchmarks, tmp_path_factory) -> Iterator[Path]:
    """A machine with photographs, models and a copy of the notebooks; runs go there."""
    where = tmp_path_factory.mktemp("own")
    photos = photographs(benchmarks)
    folder = write_folder(where / "my photos", photos[:20])
    write_coco(where, photos[20:])
    write_hub(where / "huggingface" / "hub")
    write_coca(where / "coca")
    write_decoder(where / "decoder")
    write_blip(where / "blip")
    write_chat_model(where / "chat")
    write_vision_model(where / "llava")
    sets = {name: compbench.prompts(name, benchmarks / "t2i-compbench") for name in BOUND}
    write_phrases(where / "phrases.json", sets)
    shutil.copytree(paths.ROOT / "notebooks", where / "notebooks")
    write_preset(where, folder)
    yield where
    for root in (where / "runs").glob("own-*"):  # the book is built in the repository
        shutil.rmtree(paths.ROOT / "book" / "_build" / root.name, ignore_errors=True)


def dalle3(where: Path, *words: str) -> tuple[int, str]:
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
        [sys.executable, "-m", "dalle3lib", *words],
        cwd=where,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


# ---- from a folder to a book ---------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_folder_of_photographs_becomes_a_book(site):
    """One command: captioners, captions, arms, pages. A second call does nothing."""
    words = ("graph", "--preset", "own", "--data", "my photos")
    code, said = dalle3(site, *words)
    assert code == 0, said[-6000:]
    (root,) = (site / "runs").glob("own-my_photos-*")
    made = {path.parent.parent.name for path in root.glob("*/*/manifest.json")}
    assert made == {*chapters.IMAGES, "02a_fine_tune", "04a_train_arm"}
    for stem, reason in chapters.left_out(str(site)).items():
        assert f"{stem}: {reason}" in said

    captions = pd.read_parquet(site / "my photos-captions" / "data")
    assert len(captions) == 20 and (captions.dsc.str.len() > 0).any()
    written = runs.load(root / "02_captioning" / "main")["parameters"]
    assert written["captions_from"] == str(site / "my photos-captions")

    gains = runs.results(root / "06a_photographs" / "main")
    assert set(gains["gains"]) == {
        f"{arm}, {kind}" for arm in ("original only", "DSC 95 %")
        for kind in ("upsampled", "descriptive")
    }  # fmt: skip
    assert gains["llm"]["prompts"] == 3
    decoded = runs.results(root / "07a_photographs" / "main")
    assert decoded["pictures"] == 3 and set(decoded["differences"]) == {"PSNR (dB)", "SSIM"}
    table = pd.read_csv(root / "10a_photographs" / "main" / "images.csv")
    assert set(table.benchmark) == {"captions", *BOUND, "drawbench"}
    assert len(table) == 2 * (3 + 3 * 2 + 2 * 2) and set(table.system) == {
        "original only", "DSC 95 %"
    }  # fmt: skip
    assert runs.results(root / "10a_photographs" / "main")["lacking"] == {}
    drawn = runs.results(root / "13_playground" / "main")
    assert set(drawn["arms"]) == {"original only", "DSC 95 %"} and not drawn["beyond"]

    rows = claims.ledger(root)
    judged = {row["chapter"] for row in rows if row["run"]}
    assert judged == {"11_released_verdicts"}  # counted in what others released
    html = paths.ROOT / "book" / "_build" / root.name / "html"
    assert "06_upsampling" in (html / "status.html").read_text()
    assert (html / "chapters" / "10a_photographs.html").is_file()
    assert not (html / "chapters" / "08_recipe.html").exists()
    code, said = dalle3(site, *words)
    assert code == 0 and "started" not in said, said[-3000:]
