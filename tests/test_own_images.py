"""Your own images: a folder of photographs becomes a book; what is wrong with it is one sentence.

A preset ``own`` extends ``gpu`` and changes nothing but sizes, the device, and where models lie.
The models are small ones of the real classes, saved as the real ones are and read by the same
calls; the photographs are the 26 of COCO that lie among the public benchmark files.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from conftest import write_folder as small_folder
from public_models import (
    photographs,
    write_blip,
    write_coca,
    write_coco,
    write_decoder,
    write_folder,
    write_hub,
    write_page_models,
    write_vae,
)
from test_gpu_presets import dalle3

from dalle3lib import (
    UserError,
    decoder_samples,
    images,
    ledger,
    pairs,
    paths,
    photo_evaluation,
    runs,
    splits,
    training_captions,
    upsample,
    vae,
    which_chapters,
)
from dalle3lib.__main__ import main
from dalle3lib.automatic_evaluation import BOUND
from dalle3lib.config import Parameters
from dalle3lib.evals import compbench
from dalle3lib.evals.judge import Verdict

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
        "04a_train_arm": ARM | {"prompts_from": str(where / "coco2014")},
        "04_caption_kind": {"sampling_steps": 2, "prompts_from": str(where / "coco2014")},
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
    write_page_models(where, benchmarks)
    shutil.copytree(paths.ROOT / "notebooks", where / "notebooks")
    write_preset(where, folder)
    yield where
    for root in (where / "runs").glob("own-*"):  # the book is built in the repository
        shutil.rmtree(paths.ROOT / "book" / "_build" / root.name, ignore_errors=True)


# ---- from a folder to a book ---------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3000)
def test_a_folder_of_photographs_becomes_a_book(site):
    """One command: captioners, captions, arms, pages. A second call does nothing."""
    words = ("graph", "--preset", "own", "--data", "my photos")
    code, said = dalle3(site, *words)
    assert code == 0, said[-6000:]
    (root,) = (site / "runs").glob("own-my_photos-*")
    made = {path.parent.parent.name for path in root.glob("[0-9]*/*/manifest.json")}
    assert made == {*which_chapters.of("my photos", "runs"), "02a_fine_tune", "04a_train_arm"}
    for stem, reason in which_chapters.left_out("my photos", "runs").items():
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

    rows = ledger.rows(root)
    judged = {row["chapter"] for row in rows if row["run"]}
    assert judged == {"11_released_verdicts"}  # counted in what others released
    html = paths.ROOT / "book" / "_build" / root.name / "html"
    assert "06_upsampling" in (html / "status.html").read_text()
    assert (html / "chapters" / "10a_photographs.html").is_file()
    assert not (html / "chapters" / "08_recipe.html").exists()
    code, said = dalle3(site, *words)
    assert code == 0 and "started" not in said, said[-3000:]


# ---- what users get wrong ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures with captions; each test spoils something."""
    small_folder(tmp_path / "photos", [f"picture number {i}" for i in range(12)])
    return tmp_path / "photos"


def refused(folder: Path, runs_root: Path, capsys) -> str:
    """What ``make book`` says of a folder, which must be one line, before anything has started."""
    assert main(["graph", "--preset", "smoke", "--data", str(folder)]) == 1
    said = capsys.readouterr()
    assert said.out == "" and not list(runs_root.rglob("run.json"))
    (line,) = said.err.splitlines()
    return line.removeprefix("error: ")


def captions(folder: Path, change) -> None:
    """Change the content of the captions file."""
    content = json.loads((folder / "captions.json").read_text())
    change(content)
    (folder / "captions.json").write_text(json.dumps(content))


def test_a_missing_folder(tmp_path, runs_root, capsys):
    said = refused(tmp_path / "nowhere", runs_root, capsys)
    assert said.startswith("No data folder") and "'world' or a folder of images" in said


def test_no_captions_file(folder, runs_root, capsys):
    (folder / "captions.json").unlink()
    said = refused(folder, runs_root, capsys)
    assert "has no captions file (no *.json in it): add one COCO-format JSON" in said
    (folder / "1.txt").write_text("a picture")
    assert "`tar --sort=name -cf NEWFOLDER/images.tar" in refused(folder, runs_root, capsys)


def test_everything_wrong_is_counted_and_listed_at_once(folder, runs_root, capsys):
    for i in range(5):
        (folder / f"{i}.png").write_bytes((folder / f"{i}.png").read_bytes()[:60])
    (folder / "5.png").unlink()
    captions(folder, lambda content: content["annotations"][6].update(caption="  "))
    said = refused(folder, runs_root, capsys)
    assert "unreadable image × 5 (0.png" in said and "image file missing × 1 (5.png)" in said
    assert "empty caption × 1 (annotation 6 of 6.png)" in said
    (listing,) = runs_root.rglob("problems.txt")
    assert f"{listing} lists all of them" in said
    lines = listing.read_text().splitlines()
    assert sum(line.startswith("unreadable image\t") for line in lines) == 5
    assert {line.split("\t")[1].split(":")[0] for line in lines} >= {"4.png", "5.png", "6.png"}


def test_two_captions_files(folder, runs_root, capsys):
    (folder / "more.json").write_bytes((folder / "captions.json").read_bytes())
    assert "has 2 captions files" in refused(folder, runs_root, capsys)


def test_alt_text_in_a_tar_is_read_with_its_splits(folder, tmp_path, capsys):
    """As the message says: text files beside images, packed; what cannot be used is counted."""
    for i in range(12):
        (folder / f"{i}.txt").write_text(f"alt {i}" if i else "")
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:60])
    (tmp_path / "tars").mkdir()
    packing = ["tar", "--sort=name", "-cf", "tars/images.tar", "-C", "photos", "."]
    subprocess.run(packing, cwd=tmp_path, check=True)
    found, said = {}, ""
    for split in splits.SPLITS:
        try:
            found[split] = splits.open_source(str(tmp_path / "tars"), split, 100, 32)
        except UserError as error:
            assert "so give more images" in str(error)
        said += capsys.readouterr().out
    records = [record for split in found for record in found[split]]
    assert sorted(r.alt for r in records) == sorted(
        f"alt {i}" for i in range(12) if i not in (0, 3)
    )
    assert all(splits.split_of(r.key) == split for split in found for r in found[split])
    assert "it has no alt-text × 1" in said and "truncated × 1" in said
    assert splits.open_source(str(tmp_path / "tars"), "test", 0, 32) == []


def test_prompts_held_out_of_the_data_are_never_trained_on(folder):
    """Where prompts come from the data itself, arms train on its train split alone."""
    values = {"data": str(folder), "prompts_from": "dev"}
    wanted = pairs.for_training(Parameters("", "", values))
    kept = {f"{i}.png" for i in range(12) if wanted(f"{i}.png")}
    assert kept == {record.key for record in splits.Folder(folder, "train")}
    assert all(map(pairs.for_training(Parameters("", "", values | {"prompts_from": "coco"})), kept))
    assert pairs.for_training(Parameters("", "", values | {"prompts_from": "coco"}))("x")


# ---- which captioners, which language model ------------------------------------------------------


def test_captioners_by_name(foundations, tmp_path, runs_root):
    given = {"base": "shipped", "ssc": "shipped", "dsc": "fine-tuned", "data": "world"}
    cfg = Parameters("03_ssc_dsc", "smoke", given, root=tmp_path)
    assert training_captions.place(cfg, "ssc") == str(foundations / "coca-ssc")
    with pytest.raises(UserError, match="02a_fine_tune -p preset smoke -p data world -p kind dsc"):
        training_captions.place(cfg, "dsc")
    with pytest.raises(UserError, match="02a_fine_tune"):
        training_captions.uses(cfg)
    named = Parameters("03_ssc_dsc", "smoke", given | {"ssc": "coca_ViT-L-14:x", "dsc": "shipped"})
    assert training_captions.uses(named) == []
    with pytest.raises(
        UserError, match="captioner ssc must be a directory .* not 'coca_ViT-L-14:x'"
    ):
        training_captions.lengths(named, ["ssc", "dsc"])
    assert training_captions.lengths(named, ["dsc"]) == {"dsc": 48}


def test_language_models_by_name(monkeypatch):
    monkeypatch.setattr("dalle3lib.chat_model.smollm2", lambda: None)
    assert upsample.named("none") is None and upsample.named("smollm2") is None
    assert upsample.named("server:gpt-4o") == {"backend": "openai", "model": "gpt-4o"}
    assert upsample.named("models/chat") == {"backend": "chat", "model": "models/chat"}


# ---- benchmarks on photographs -------------------------------------------------------------------


def evaluation(folder: Path, **changes) -> Parameters:
    """Parameters of notebook 10a as far as benchmarks are concerned."""
    values = {"data": str(folder), "prompts_from": "test", "prompt_captions": "written",
              "noise": 0.5, "size": 32, "seed": 0, "captions": 2, "compositions": 2,
              "compbench": str(folder / "lists"), "phrases": "spacy", "drawbench": 3, "images": 2,
              "judge": "none"}  # fmt: skip
    return Parameters("10a_photographs", "own", values | changes)


def test_a_benchmark_that_is_not_here_is_named_with_what_it_needs(folder):
    sets, lacking = photo_evaluation.benchmarks(evaluation(folder))
    assert list(sets) == ["captions"] and set(lacking) == {*BOUND, "drawbench"}
    assert set(sets["captions"].prompt) <= {f"picture number {i}" for i in range(12)}
    assert "T2I-CompBench's prompts are not here" in lacking["colour"]
    assert "DrawBench needs a judge: set judge to server:MODEL" in lacking["drawbench"]


def test_benchmarks_that_are_here_have_prompts_phrases_and_seeds(folder, tmp_path, benchmarks):
    (folder / "lists").mkdir()
    for name in BOUND:
        (folder / "lists" / compbench.FILES[name]).write_text("a red dog and a cat\na bird\nmore\n")
    phrases = tmp_path / "phrases.json"
    phrases.write_text(json.dumps({"a red dog and a cat": ["a red dog", "a cat"], "a bird": []}))
    cfg = evaluation(folder, phrases=str(phrases), judge="server:any")
    sets, lacking = photo_evaluation.benchmarks(cfg)
    assert lacking == {} and list(sets) == list(photo_evaluation.BENCHMARKS)
    assert list(sets["shape"].phrases) == [["a red dog", "a cat"], []]
    drawn = sets["drawbench"]
    assert len(drawn) == 6 and sorted(set(drawn.seed)) == [0, 1]
    phrases.write_text(json.dumps({"a bird": []}))
    lacking = photo_evaluation.benchmarks(cfg)[1]
    assert "no noun phrases for 1 prompts of T2I-CompBench's colour" in lacking["colour"]


def test_where_no_arm_was_trained_the_shipped_ones_draw(foundations, tmp_path):
    cfg = Parameters(
        "10a_photographs", "smoke", {"data": "world", "sampling_steps": 1}, root=tmp_path
    )
    prompts = pd.DataFrame({"prompt": ["a moon.", "a star.", "a moon."], "seed": [0, 0, 1]})
    on = photo_evaluation.instruments(cfg, {"captions": prompts}).studio
    pictures = photo_evaluation.draw(cfg, "dsc-95-0", "captions", prompts, on)
    assert pictures.shape == (3, 64, 64, 3) and not np.array_equal(pictures[0], pictures[2])


def test_scores_of_pictures_and_their_reasons(folder, tmp_path, monkeypatch):
    """A public BLIP sees 480 pixels; a judge's verdicts and both protocols stand in the rows."""
    cfg = evaluation(folder, clip="world", vqa=str(write_blip(tmp_path / "blip")), device="cpu")
    sets = {
        "captions": pd.DataFrame({"category": "all", "prompt": ["a dog", "a cat"], "seed": 0}),
        "colour": pd.DataFrame({"category": "all", "prompt": ["a dog"], "seed": 0}),
        "drawbench": pd.DataFrame({"category": "Colors", "prompt": ["a dog"], "seed": [3]}),
    }
    sets["colour"]["phrases"] = [["a red dog", "the dog", "a dog"]]

    def judge(pictures, prompts, asks):
        return [Verdict(1.0, f"{prompt}: correct") for prompt in prompts]

    monkeypatch.setattr(photo_evaluation, "judge_of", lambda name, device: judge)
    by = photo_evaluation.instruments(cfg, sets)
    assert by.vqa[1].image_processor.size["height"] == 480
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    rows = {n: photo_evaluation.score(n, t, pictures[: len(t)], by) for n, t in sets.items()}
    assert rows["captions"]["score"].tolist() == rows["captions"]["clip"].tolist()
    assert {"hessel", "cut"} <= set(rows["captions"])
    asked = rows["colour"].iloc[0]
    assert asked["score"] < asked["score 2023"] < 1 and asked.reason.count("?") == 3
    assert rows["drawbench"].iloc[0][["score", "reason", "seed"]].tolist() == [
        1.0, "a dog: correct", 3
    ]  # fmt: skip
    alone = photo_evaluation.instruments(cfg, {"captions": sets["captions"]})
    assert alone.vqa is None and alone.judge is None


# ---- decoders on photographs ---------------------------------------------------------------------


def test_pictures_decoded_both_ways_are_held_against_themselves(tmp_path):
    write_vae(tmp_path / "vae")
    values = {"vae": str(tmp_path / "vae"), "decoder": str(write_decoder(tmp_path / "decoder"))}
    cfg = Parameters("07a_photographs", "own", values | {"device": "cpu"})
    pictures = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3)).astype(np.uint8)
    table, made = decoder_samples.compared(pictures, cfg)
    plain, two = decoder_samples.PLAIN, decoder_samples.TWO
    assert set(table.columns) == {(m, d) for m in ("PSNR (dB)", "SSIM") for d in (plain, two)}
    for name, images_of in made.items():
        assert images_of.shape == pictures.shape and images_of.dtype == np.uint8
        by_hand = [vae.psnr(*map(images.to_tensor, (x[None], y[None]))).item()
                   for x, y in zip(images_of, pictures, strict=True)]  # fmt: skip
        assert table["PSNR (dB)"][name].tolist() == pytest.approx(by_hand, abs=0.1)
    assert not np.array_equal(made[plain], made[two])
