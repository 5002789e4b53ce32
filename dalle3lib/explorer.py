"""The explorer's data: the first held-out scenes, all their captions, and what every arm draws.

``make`` captions a few scenes, asks the shipped arms for each of them in four ways, and writes one
strip of pictures a scene, a table and ``explorer.json``. The book's explorer and the picture on its
front page (``explorer_page``) show these files and compute nothing.
"""

import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from dalle3lib import UserError, arm, config, files, playground, runs
from dalle3lib.decoder import ConsistencyDecoder
from dalle3lib.evals import clip_score
from dalle3lib.foundation import ARMS
from dalle3lib.images import Record
from dalle3lib.prompt_kinds import prompts
from dalle3lib.recaption import KINDS, synthetic_captions
from dalle3lib.sample import decode, draw_latents
from dalle3lib.world import World, reader

SPLIT = "dev"  # the scenes that nothing is tested on
SCENES = {"smoke": 3}  # by preset
MORE_SCENES = 12  # with any other
# A row of pictures: the kind of prompt, and what decodes. Two rows share their latents.
ROWS = (
    ("original", "VAE"),
    ("short", "VAE"),
    ("upsampled", "VAE"),
    ("upsampled", "consistency"),
    ("descriptive", "VAE"),
)


def directory(root: Path) -> Path:
    """Where the explorer's files of the runs under ``root`` are."""
    return root / "explorer"


def read(root: Path) -> dict | None:
    """The content of ``explorer.json``, or None if ``make`` has not finished for these runs.

    Raises UserError if a file that it lists is missing or damaged.
    """
    index = directory(root) / "explorer.json"
    if not index.is_file():
        return None
    content = files.read_json(index)
    if problem := files.damage(index.parent, content["files"]):
        raise UserError(f"The explorer cannot be shown: {problem}; delete {index.parent}.")
    return content


def make(root: Path, preset: str) -> Path:
    """Write the explorer's files for a preset and return the path of ``explorer.json``.

    The scenes are the first of the dev split, whatever they show; how many depends on the preset,
    and DDIM takes the steps of chapter 13. ``explorer.json`` is written last.
    """
    began, out = time.time(), directory(root)
    steps = config.from_preset("13_playground", preset=preset).sampling_steps
    records = list(World(SPLIT, SCENES.get(preset, MORE_SCENES)))
    captions = {kind: synthetic_captions(records, kind) for kind in KINDS}
    texts = prompts(records, tuple(dict.fromkeys(kind for kind, _ in ROWS)))
    pictures, table = draw(records, texts, steps)
    with files.guard(out):
        out.mkdir(parents=True, exist_ok=True)
        for old in out.glob("*"):
            old.unlink()
        for i, record in enumerate(records):
            strip(record.image, pictures[:, i]).save(out / f"scene-{i:02d}.png")
        table.to_csv(out / "explorer.csv", index=False)
    commit, dirty = runs.git_state()
    content = {
        "preset": preset,
        "commit": commit,
        "dirty": dirty,
        "steps": steps,
        "seconds": round(time.time() - began, 1),
        "arms": [arm.label(f"{name}-0") for name in ARMS],
        "rows": [list(row) for row in ROWS],
        "scenes": [
            _scene(i, record, {kind: texts[i] for kind, texts in (captions | texts).items()})
            for i, record in enumerate(records)
        ],
        "pictures": json.loads(table.to_json(orient="records")),
        "files": files.listing(out, sorted(out.iterdir())),
    }
    files.write_atomic(out / "explorer.json", files.to_json(content).encode())
    return out / "explorer.json"


def _scene(number: int, record: Record, texts: dict[str, str]) -> dict:
    """What the pages tell of one scene: its strip of pictures, what it shows, and its texts."""
    shows = playground.describe(reader.read(record.image[None])[0])
    return {"file": f"scene-{number:02d}.png", "shows": shows, "texts": texts}


def draw(
    records: list[Record], texts: dict[str, list[str]], steps: int
) -> tuple[np.ndarray, pd.DataFrame]:
    """Every arm's pictures of every scene: uint8 [rows x arms, scenes, 64, 64, 3], and a table.

    The table has one line for a picture, in the order scene, row of ``ROWS``, arm. All pictures of
    a scene start from the same noise. ``clip_score`` (100 × cosine) is the picture's with the text
    it was drawn from, ``reading`` what the reader sees in it, and ``facts_found`` the mean share of
    the scene's facts among it, whether the text asked for them or not. From an upsampled text
    the score is that with the short one it was made from.
    """
    on, two_steps = arm.studio(records, texts=texts), ConsistencyDecoder(model="world")
    strips: dict[tuple[int, int], np.ndarray] = {}
    tables = []
    for column, name in enumerate(tqdm(ARMS, desc="explorer: arms", mininterval=1)):
        network, guidance = arm.load(name)
        options = {"seed": 0, "steps": steps, "guidance": guidance}
        latents = {kind: draw_latents(network, on.states[kind], **options) for kind in texts}
        for row, (kind, decoder) in enumerate(ROWS):
            images = decode(latents[kind], on.autoencoder if decoder == "VAE" else two_steps)
            strips[row, column] = images
            about = {"arm": arm.label(f"{name}-0"), "guidance": guidance}
            about |= {"row": row, "column": column, "prompt": kind, "decoder": decoder}
            tables.append(_read(images, on, kind).assign(**about))
    table = pd.concat(tables).sort_values(["scene", "row", "column"], ignore_index=True)
    order = ["scene", "prompt", "decoder", "arm", "guidance", "clip_score", "facts_found"]
    return np.stack([strips[key] for key in sorted(strips)]), table[[*order, "reading", "text"]]


def _read(images: np.ndarray, on: arm.Studio, kind: str) -> pd.DataFrame:
    """One line for each scene's picture: scene, text, clip_score, reading, facts_found."""
    asked = on.texts["short" if kind == "upsampled" else kind]
    found = reader.read(images)
    shares = [reader.recall(f, r.facts).values() for f, r in zip(found, on.records, strict=True)]
    return pd.DataFrame(
        {
            "scene": range(len(images)),
            "text": on.texts[kind],
            "clip_score": clip_score.clip_scores(*on.scorer, images, asked).round(1),
            "reading": [playground.describe(facts) for facts in found],
            "facts_found": [round(float(np.mean([*share])), 3) for share in shares],
        }
    )


def strip(truth: np.ndarray, pictures: np.ndarray) -> Image.Image:
    """The true picture and those of the arms, uint8 [N, H, W, 3], side by side in one image."""
    return Image.fromarray(np.concatenate([truth, *pictures], axis=1))
