"""The data set's metadata and the models' cards: up to date, complete, and true of the files."""

import json
import shutil

import pandas as pd
import pytest
import torch
from diffusers import UNet2DConditionModel

from dalle3lib import (
    UserError,
    arm,
    captioner,
    croissant,
    decoder_network,
    files,
    foundation,
    model_cards,
    paths,
    text,
    upsampler,
    vae,
)
from dalle3lib.evals import clip_score, vqa
from dalle3lib.world import SPLITS, World

torch.set_num_threads(1)
DATA = paths.ROOT / "data"
AGAIN = "run `python -m dalle3lib cards` and commit what it writes"


@pytest.fixture(scope="module")
def metadata() -> dict:
    return json.loads((DATA / "croissant.json").read_text())


@pytest.fixture
def copy(tmp_path):
    """The data folder's captions and one stage of the study, to be changed."""
    shutil.copytree(DATA / "captions", tmp_path / "captions")
    stage = min((DATA / "study").glob("*/prompts.parquet")).parent
    shutil.copytree(stage, tmp_path / "study" / stage.name)
    return tmp_path


def test_both_are_up_to_date(metadata):
    assert json.loads(files.to_json(croissant.document())) == metadata, AGAIN
    cards = (DATA / "foundation" / "README.md").read_text()
    assert model_cards.document() == cards, AGAIN


# ---- the data set --------------------------------------------------------------------------------


def test_the_metadata_has_what_croissant_requires(metadata):
    assert metadata["conformsTo"] == "http://mlcommons.org/croissant/1.0"
    assert metadata["@type"] == "sc:Dataset"
    for name in ("name", "description", "license", "creator", "version", "citeAs"):
        assert metadata[name]
    for used in ("recordSet", "field", "source", "extract", "column", "fileSet", "includes"):
        assert metadata["@context"][used] == f"cr:{used}"


def test_every_reference_leads_somewhere_and_ids_are_unique(metadata):
    sources = {entry["@id"]: entry for entry in metadata["distribution"]}
    fields = [field for record_set in metadata["recordSet"] for field in record_set["field"]]
    ids = [*sources, *(r["@id"] for r in metadata["recordSet"]), *(f["@id"] for f in fields)]
    assert len(ids) == len(set(ids)) and not any(" " in name for name in ids)
    for field in fields:
        (named,) = [s for k, s in field.get("source", {}).items() if k != "extract"] or [None]
        assert named is None or named["@id"] in sources
        assert field["description"] and field["dataType"].startswith("sc:")


def test_patterns_cover_every_result_of_the_study_once(metadata):
    patterns = [e["includes"] for e in metadata["distribution"] if e["@type"] == "cr:FileSet"]
    found = [path for pattern in patterns for path in DATA.glob(pattern)]
    assert sorted(found) == sorted((DATA / "study").rglob("*.parquet"))


def test_a_further_result_changes_nothing_and_another_caption_does(copy):
    before = croissant.document(copy)
    result = next(copy.glob("study/*/*-*-*.parquet"))
    shutil.copy(result, result.with_name("dsc-95-999.parquet"))
    assert croissant.document(copy) == before
    table = pd.read_parquet(copy / croissant.CAPTIONS)
    table.loc[0, "dsc"] = "another caption"
    table.to_parquet(copy / croissant.CAPTIONS)
    after = croissant.document(copy)["distribution"][0]
    assert after["sha256"] == files.sha256(copy / croissant.CAPTIONS)
    assert after["contentSize"] == f"{(copy / croissant.CAPTIONS).stat().st_size} B"


def test_a_column_that_nobody_described_is_an_error(copy):
    table = pd.read_parquet(copy / croissant.CAPTIONS).assign(mood="good")
    table.to_parquet(copy / croissant.CAPTIONS)
    with pytest.raises(UserError, match=r"\['mood'\].*describe"):
        croissant.document(copy)


def test_columns_have_the_types_of_the_files(metadata):
    kinds = {
        field["@id"]: field["dataType"]
        for record_set in metadata["recordSet"]
        for field in record_set["field"]
    }
    assert kinds["captions/dsc"] == kinds["results/kind"] == "sc:Text"
    assert (kinds["results/score"], kinds["results/step"]) == ("sc:Float", "sc:Integer")
    assert kinds["prompts/named"] == "sc:Boolean"


def test_the_records_shown_are_the_worlds(metadata):
    rows = metadata["recordSet"][0]["data"]
    assert [row["world/split"] for row in rows[:: croissant.SHOWN]] == list(SPLITS)
    for row in rows:
        index = int(row["world/key"].rpartition("-")[2])
        record = World(row["world/split"], index + 1)[index]
        assert row["world/descriptive"] == record.descriptive and row["world/alt"] == record.alt


def test_the_card_for_people_names_every_column():
    card = (DATA / "README.md").read_text()
    for columns in croissant.COLUMNS.values():
        assert [name for name in columns if f"`{name}`" not in card] == []


# ---- the models ----------------------------------------------------------------------------------


def test_every_shipped_model_has_one_card():
    shipped = {path.parent.name for path in (DATA / "foundation").glob("*/manifest.json")}
    assert shipped == set(foundation.NAMES)
    cards = model_cards.document()
    assert [cards.count(f"\n## {name}\n") for name in foundation.NAMES] == [1] * len(shipped)


def test_numbers_come_from_the_manifest(tmp_path):
    shutil.copytree(paths.foundation("vae"), tmp_path / "vae")
    made = json.loads((tmp_path / "vae" / "manifest.json").read_text())
    made |= {"seed": 77, "steps": 1234, "cpu_seconds": 600, "quality": {"psnr_db": 12.5}}
    (tmp_path / "vae" / "manifest.json").write_text(json.dumps(made))
    card = model_cards.card("vae", tmp_path / "vae")
    for part in ("1,234 steps", "seed 77", "10 minutes", "| Quality | PSNR in dB 12.5 |"):
        assert part in card


@pytest.mark.parametrize("name", foundation.NAMES)
def test_the_way_to_load_a_model_that_its_card_gives_works(name):
    known = {"paths": paths, "arm": arm, "vae": vae, "text": text, "upsampler": upsampler}
    known |= {"captioner": captioner, "clip_score": clip_score, "vqa": vqa}
    known |= {"decoder_network": decoder_network, "UNet2DConditionModel": UNet2DConditionModel}
    loaded = eval(model_cards.card_of(name).load, known)  # noqa: S307 - our own text
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    counted = sum(p.numel() for p in model.parameters())
    stored = model_cards.parameters(paths.foundation(name))
    assert stored == pytest.approx(counted, rel=0.1)  # tied weights and buffers count once


def test_a_model_without_a_card_is_missed():
    with pytest.raises(KeyError):
        model_cards.card_of("sculptor")
