"""Shared by all tests: places that are not the repository, tiny notebooks, one torch thread."""

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import nbformat
import pytest
from hypothesis import settings
from PIL import Image

from dalle3lib import paths

os.environ["OMP_NUM_THREADS"] = "1"  # read by torch when a test first imports it
for variable in ("DALLE3_RUNS", "DALLE3_NOTEBOOKS", "DALLE3_FOUNDATION"):
    os.environ.pop(variable, None)

# Random examples are the same in every run, and a busy machine fails no test.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")

# What the training of a second stage leaves beside its weights.
POINT = {"canvas": "all", "mean": 0.5, "low": 0.4, "high": 0.6, "step": 2, "flops": 2e12}
TRAINING = {
    "first_flops": 1e12,
    "image_flops": 1e9,
    "batch": 4,
    "loss": [1.0, 0.9],
    "curve": [POINT | {"measure": name} for name in ("score", "colour-shape")],
}

PARAMETERS = 'preset: str = "smoke"  # preset file\ndata: str = None  # "world" or a folder\n'


@pytest.fixture(scope="session")
def benchmarks() -> Path:
    """The directory of public benchmark files; the test is left out where there is none."""
    directory = paths.benchmarks()
    if directory is None or not directory.is_dir():
        pytest.skip("needs the public benchmark files: set DALLE3_BENCHMARKS to their directory")
    return directory


@pytest.fixture
def runs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory that takes the place of ``runs/``."""
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path / "runs"))
    return tmp_path / "runs"


def write_tiny(directory: Path, stem: str, parameters: str, *cells: str) -> Path:
    """Write a notebook whose parameters begin with ``preset`` and ``data``; return its path."""
    tagged = nbformat.v4.new_code_cell(PARAMETERS + parameters)
    tagged.metadata["tags"] = ["parameters"]
    prose = nbformat.v4.new_markdown_cell(f"# {stem}")
    notebook = nbformat.v4.new_notebook(
        cells=[prose, tagged, *map(nbformat.v4.new_code_cell, cells)],
        metadata={"kernelspec": {"name": "python3", "display_name": "", "language": "python"}},
    )
    directory.mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, directory / f"{stem}.ipynb")
    return directory / f"{stem}.ipynb"


def write_folder(folder: Path, captions: list[str]) -> None:
    """A folder of small pictures with one COCO-format caption each."""
    folder.mkdir()
    for number in range(len(captions)):
        Image.new("RGB", (70, 80), (9 * number, 50, 200)).save(folder / f"{number}.png")
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(len(captions))],
        "annotations": [
            {"id": n, "image_id": n, "caption": caption} for n, caption in enumerate(captions)
        ],
    }
    (folder / "captions.json").write_text(json.dumps(content))


@pytest.fixture
def tiny(tmp_path: Path, runs_root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """A writer of tiny notebooks, into a directory that takes the place of ``notebooks/``.

    Its preset ``smoke`` sets ``data`` only; tests write more into ``presets/smoke.yaml``.
    """
    directory = tmp_path / "notebooks"
    monkeypatch.setenv("DALLE3_NOTEBOOKS", str(directory))
    (directory / "presets").mkdir(parents=True)
    (directory / "presets" / "smoke.yaml").write_text("common:\n  data: world\n")
    return lambda stem, parameters="", *cells: write_tiny(directory, stem, parameters, *cells)


@pytest.fixture
def flip() -> Callable[[Path, int], None]:
    """A function that flips one bit of a file; the bit's number is taken modulo the file's bits."""

    def flip_bit(path: Path, bit: int) -> None:
        data = bytearray(path.read_bytes())
        bit %= 8 * len(data)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)

    return flip_bit


@pytest.fixture(scope="session")
def tiny_foundation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of untrained foundations, all of them, in the format of the shipped ones.

    With ``DALLE3_FOUNDATION`` pointing at it everything runs fast, at the quality of chance. Its
    captioners write words up to the longest caption: they know no special token and no byte.
    """
    import torch  # here and below, because most tests need none of the models

    from dalle3lib import arm, captioner, decoder_network, foundation, quality, text, unet, vae
    from dalle3lib.captions import by_kind
    from dalle3lib.evals import clip_score, vqa_training
    from dalle3lib.world import World, scene

    root = tmp_path_factory.mktemp("foundation")
    captions = by_kind(list(World("foundation", 200)))
    texts = [caption for kind in captions.values() for caption in kind]
    reader, writer = (text.train_tokenizer(texts, 512, start=start) for start in (False, True))
    config = copy.deepcopy(captioner.WORLD_COCA)
    config["vision_cfg"] |= {"patch_size": 16, "layers": 1}
    config["text_cfg"]["layers"] = config["multimodal_cfg"]["layers"] = 1
    qualities = {
        "vae": {"psnr_db": 5.0},
        "t5": {"loss": 6.2},
        "upsampler": {"loss": 6.2},
        "clip": {f"retrieval_{kind}": 0.01 for kind in captions},
        "judge": {"all": 0.01},
        **{f"coca-{kind}": {"nats_per_token": 6.2} for kind in ("base", "ssc", "dsc")},
        **{f"unet-{name}": {"guidance": 2.0} for name in foundation.ARMS},
        **{name: {"guidance": 2.0} for name in foundation.STAGES},
        **{name: {"psnr": 5.0} for name in foundation.DECODERS},
    }
    started = quality.clock()
    for seed, (name, measured) in enumerate(qualities.items()):
        torch.manual_seed(seed)
        if name.startswith("vae"):
            vae.build((16, 32)).half().save_pretrained(root / name)
        elif name in foundation.DECODERS:
            decoder_network.build((16, 16), seed=seed).half().save_pretrained(root / name)
        elif name == "t5":
            text.T5EncoderModel(text.build(len(reader)).config).half().save_pretrained(root / name)
            reader.save_pretrained(root / name)
        elif name == "upsampler":
            text.build(len(reader)).half().save_pretrained(root / name)
            reader.save_pretrained(root / name)
        elif name == "judge":
            asked = vqa_training.train_tokenizer(lambda i: scene("foundation", i), 300)
            processor = vqa_training.make_processor(asked)
            vqa_training.save(vqa_training.build(asked, seed), processor, root / name)
        elif name.startswith("unet-"):
            second = name in foundation.STAGES and name != "unet-recipe-first"
            arm.save(unet.build((16, 32, 32), latent_size=16 if second else 8), root / name)
            if second:
                (root / name / "training.json").write_text(json.dumps(TRAINING))
        elif name == "clip":
            captioner.save(clip_score.build(writer, seed), writer, root / name)
        else:
            model = captioner.build(writer, seed, config)
            model.text_decoder.text_projection.data[:, : 3 + text.SENTINELS + 256] = 0
            captioner.save(model, writer, root / name)
        quality.write_manifest(
            root / name, started, seed=seed, steps=0, measured=measured, batch=64
        )
    return root


@pytest.fixture
def foundations(
    tiny_foundation: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """``tiny_foundation`` in the place of ``data/foundation``, and no committed captions."""
    from dalle3lib import recaption

    monkeypatch.setenv("DALLE3_FOUNDATION", str(tiny_foundation))
    monkeypatch.setattr(recaption, "captions_dir", lambda: tmp_path / "captions")
    for cached in (recaption.committed, recaption.load_captioner):
        cached.cache_clear()
    yield tiny_foundation
    for cached in (recaption.committed, recaption.load_captioner):
        cached.cache_clear()
