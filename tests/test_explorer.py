"""The explorer's data, made by untrained models of the real classes, and its pages."""

import re
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dalle3lib import UserError, explorer, explorer_page, recaption
from dalle3lib.world import World


@pytest.fixture(scope="module")
def made(tiny_foundation, tmp_path_factory):
    """The explorer of preset smoke with untrained models: the directory of its runs."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DALLE3_FOUNDATION", str(tiny_foundation))
        recaption.load_captioner.cache_clear()
        explorer.make(root, "smoke")
        recaption.load_captioner.cache_clear()
    return root


def test_every_scene_has_its_texts_its_pictures_and_a_row_for_each(made):
    found = explorer.read(made)
    table = pd.read_csv(explorer.directory(made) / "explorer.csv")
    assert len(found["scenes"]) == explorer.SCENES["smoke"] == 3
    assert len(table) == len(found["pictures"]) == 3 * len(explorer.ROWS) * len(explorer.ARMS)
    order = [(s, *row, arm) for s in range(3) for row in explorer.ROWS for arm in found["arms"]]
    columns = ["scene", "prompt", "decoder", "arm"]
    assert list(table[columns].itertuples(index=False, name=None)) == order
    record = World("dev", 1)[0]
    texts = found["scenes"][0]["texts"]
    assert texts.keys() == {"ssc", "dsc", "original", "short", "upsampled", "descriptive"}
    assert (texts["original"], texts["descriptive"]) == (record.alt, record.descriptive)
    assert set(table[table.prompt == "short"].text[:4]) == {record.short}
    assert table.facts_found.between(0, 1).all() and table.clip_score.between(-100, 100).all()
    strip = np.asarray(Image.open(explorer.directory(made) / "scene-00.png"))
    assert strip.shape == (64, 64 * 21, 3) and (strip[:, :64] == record.image).all()


def test_a_table_and_its_strip_tell_of_the_same_picture(made):
    """The reader reads in each part of a strip what the table says of it."""
    strip = np.asarray(Image.open(explorer.directory(made) / "scene-02.png"))
    parts = np.stack(np.split(strip, 21, axis=1))[1:]
    rows = pd.read_csv(explorer.directory(made) / "explorer.csv").query("scene == 2")
    read = [explorer.playground.describe(facts) for facts in explorer.reader.read(parts)]
    assert read == rows.reading.tolist()


def test_a_damaged_file_is_said_and_a_missing_explorer_names_its_command(made, tmp_path):
    none = explorer_page.front_picture(tmp_path / "none", "cpu", data="photographs")
    assert "No pictures in this copy" in none and "--preset" not in none
    assert "python -m dalle3lib explorer --preset cpu" in explorer_page.page(tmp_path / "no", "cpu")
    shutil.copytree(explorer.directory(made), explorer.directory(tmp_path))
    (explorer.directory(tmp_path) / "scene-01.png").write_bytes(b"")
    with pytest.raises(UserError, match="scene-01.png"):
        explorer.read(tmp_path)


def test_every_picture_has_a_text_and_shows_its_part_of_the_strip(made):
    page = explorer_page.page(made, "smoke")
    images = re.findall(
        r"<img class='tile' src='([^']+)' alt='([^']+)'.*?position: ([\d.]+)%", page
    )
    assert len(images) == 3 * (1 + 1 + 20)  # the picker's, the true one, the arms'
    assert all(
        src.startswith("_static/explorer/scene-0") and len(alt) > 20 for src, alt, _ in images
    )
    places = sorted({float(place) for _, _, place in images})
    assert places == [5 * i for i in range(21)]
    steps = explorer_page.front_picture(made, "smoke")
    assert steps.count("<img") == 3 * 6 and "The first 3 held-out scenes" in steps
