"""Table 1: its systems and benchmarks, a row for each picture, effects by hand, the ceiling."""

import numpy as np
import pandas as pd
import pytest
import torch

from dalle3lib import UserError
from dalle3lib import automatic_evaluation as table1
from dalle3lib import evaluation_table as means
from dalle3lib.config import Parameters
from dalle3lib.world import render, scene
from dalle3lib.world.prompts import satisfied

torch.set_num_threads(1)
VALUES = {
    "arms": ["original-0-0", "ssc-95-0", "dsc-95-0"],
    "systems": [],
    "seed": 0,
    "captions": 5,
    "drawbench": 20,
    "images": 2,
    "compositions": 3,
    "data": "world",
    "device": "cpu",
    "clip": "world",
    "vqa": "world",
    "judge": "world",
}


def cfg(**changes) -> Parameters:
    return Parameters("10_automatic_evaluation", "smoke", VALUES | changes)


@pytest.fixture(scope="module")
def sets():
    return table1.benchmarks(cfg())


def test_each_system_adds_one_step_and_the_last_shows_the_truth():
    found = table1.systems(VALUES["arms"])
    assert [one.name for one in found] == [
        "original only",
        "SSC 95 %",
        "DSC 95 %",
        "+ upsampling",
        "+ consistency decoder",
        "rendered scenes",
    ]
    assert [(one.arm, one.upsampled, one.consistency) for one in found[2:]] == [
        ("dsc-95-0", False, False),
        ("dsc-95-0", True, False),
        ("dsc-95-0", True, True),
        (None, False, False),
    ]
    some = table1.chosen(cfg(systems=["+ upsampling"]))
    assert some == [found[3]] and table1.chosen(cfg()) == found
    with pytest.raises(UserError, match="no system 'DSC'.*DSC 95 %"):
        table1.chosen(cfg(systems=["DSC"]))


def test_benchmarks_have_the_numbers_asked_for_and_prompts_that_their_scenes_satisfy(sets):
    assert list(sets) == list(table1.BENCHMARKS)
    sizes = {name: len(table) for name, table in sets.items()}
    assert sizes["captions"] == 5 and sizes["drawbench"] == 40
    assert all(sizes[name] == 3 for name in table1.BENCHMARKS[2:])
    drawn = sets["drawbench"]
    assert (drawn.groupby("prompt").seed.apply(sorted) == pd.Series([[0, 1]] * 20).values).all()
    for table in list(sets.values())[1:]:
        assert all(satisfied(p.ask, p.scene.facts()) for p in table.probe)


def test_captions_are_sampled_without_repetition_by_the_seed():
    one, again, other = (table1.captions(40, seed) for seed in (0, 0, 1))
    assert [p.scene for p in one] == [p.scene for p in again] != [p.scene for p in other]
    assert len({p.scene for p in one}) == 40


def test_rendered_scenes_get_what_the_instruments_can_give(sets):
    by = table1.instruments(cfg())
    (ceiling,) = table1.chosen(cfg(systems=[table1.CEILING]))
    on = table1.Studio((), (), {}, {})
    for name in ("captions", "drawbench", "colour", "spatial", "numeracy", "text"):
        images, texts = table1.draw(ceiling, sets[name], on, steps=1, seed=0)
        assert texts == list(sets[name].prompt)
        table = table1.score(name, sets[name], images, by)
        assert {"prompt", "seed", "image", "score", "reason", "clip", "reader"} <= set(table)
        assert len(table) == len(sets[name]) and table.reason.str.len().min() > 0
        if name == "captions":
            assert np.allclose(table.score, table["clip"]) and table.reader.isna().all()
        else:
            assert (table.reader == 1).all()
        if name in ("colour", "spatial", "numeracy", "text"):
            assert table.score.min() > 0.9
    wrong = table1.score("colour", sets["colour"], images[::-1].copy()[: len(sets["colour"])], by)
    assert wrong.score.max() < 0.5
    assert (wrong["score 2023"] == wrong.score).all()  # two phrases: both protocols ask the same


def test_an_interrupted_evaluation_goes_on(sets, foundations, tmp_path, monkeypatch):
    some = table1.chosen(cfg(systems=["+ consistency decoder"]))
    on, by = table1.studio(cfg(), some), table1.instruments(cfg())
    few = {name: sets[name] for name in ("captions", "colour")}
    asked, score = [], table1.score

    def counted(name, *rest):
        asked.append(name)
        if asked == ["captions", "colour"]:
            raise KeyboardInterrupt
        return score(name, *rest)

    monkeypatch.setattr(table1, "score", counted)
    options = {"steps": 1, "seed": 0}
    with pytest.raises(KeyboardInterrupt):
        table1.evaluate(some[0], few, on, by, tmp_path, **options)
    rows, pictures = table1.evaluate(some[0], few, on, by, tmp_path, **options)
    assert asked == ["captions", "colour", "colour"]
    assert len(rows) == 8 and pictures.shape == (5, 64, 64, 3)
    assert set(rows.system) == {"+ consistency decoder"}
    assert (rows.drawn_from != rows.prompt).any()  # upsampled


def table(**scores: list[float]) -> pd.DataFrame:
    """Rows of a benchmark with two pictures of each of two prompts."""
    rows = [
        {"benchmark": "drawbench", "system": name, "prompt": f"prompt {i // 2}", "score": value}
        for name, values in scores.items()
        for i, value in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_effects_are_means_over_prompts_of_means_over_pictures():
    rows = table(a=[1, 0, 1, 1], b=[0, 0, 1, 1])
    found = means.effect(rows, "drawbench", "a", "b")
    assert found["effect"] == pytest.approx(25) and found["unit"] == "% points"
    assert found["interval"][0] >= 0 and found["interval"][1] <= 50
    table_of = means.summarise(rows)
    assert table_of.loc[("drawbench", "a"), "mean"] == pytest.approx(75)
    assert table_of.loc[("drawbench", "a"), "images"] == 4
    unread = table(a=[np.nan, np.nan, 1, 1, 1, 1])  # a prompt without a verdict
    assert means.summarise(unread).loc[("drawbench", "a"), "mean"] == pytest.approx(100)


def test_steps_are_named_after_what_they_add():
    names = [one.name for one in table1.systems(VALUES["arms"])]
    assert means.steps(names) == {
        "SSC 95 % over original only": ("SSC 95 %", "original only"),
        "DSC 95 % over SSC 95 %": ("DSC 95 %", "SSC 95 %"),
        "+ upsampling": ("+ upsampling", "DSC 95 %"),
        "+ consistency decoder": ("+ consistency decoder", "+ upsampling"),
        "all over original only": ("+ consistency decoder", "original only"),
    }
    assert means.steps(["original only", "rendered scenes"]) == {}
    rows = table(a=[1, 0, 1, 1], b=[0, 0, 1, 1])
    assert means.worth(rows, ["a", "rendered scenes"], ["drawbench"]).empty
    assert means.worth(rows, ["b", "a"], ["drawbench"]).value.tolist() == [25]


def test_image_quality_knows_blur_and_noise_from_the_real_thing():
    real, other = (
        np.stack([render(scene("test", first + i)) for i in range(60)]) for first in (0, 60)
    )
    pictures = {"rendered": real, "grey": np.full_like(real, 128)}
    pictures["noise"] = np.random.default_rng(0).integers(0, 256, real.shape).astype(np.uint8)
    clip = means.features_of("clip", table1.instruments(cfg()).scorer[0])
    found = means.image_quality(pictures, other, {"KID": clip, "CMMD": clip})
    assert found.loc["rendered", "KID"] < found.loc["noise", "KID low"]
    assert found.loc["rendered", "CMMD"] < found.loc["grey", "CMMD low"]
    assert found.loc["rendered", "sharpness"] == pytest.approx(1, abs=0.2)
    assert found.loc["grey", "sharpness"] == 0


def test_records_hold_the_index_and_null_for_nan():
    table = pd.DataFrame({"a": [1.0, np.nan]}, index=pd.Index(["x", "y"], name="row"))
    assert means.records(table) == [{"row": "x", "a": 1.0}, {"row": "y", "a": None}]


def test_features_by_name(monkeypatch):
    class Mean(torch.nn.Linear):
        def forward(self, x):
            return x.mean((2, 3))

    monkeypatch.setattr(means.distribution, "inception", lambda device: Mean(1, 1))
    black = np.zeros((2, 64, 64, 3), np.uint8)
    assert torch.equal(means.features_of("inception", None)(black), -torch.ones(2, 3))
    with pytest.raises(UserError, match="choose clip or inception"):
        means.features_of("dino", None)


def test_a_row_s_command_names_preset_seed_and_system():
    assert table1.command(cfg(seed=3), "+ upsampling") == (
        "papermill notebooks/10_automatic_evaluation.ipynb row.ipynb -p preset smoke -p seed 3 "
        "-y \"systems: ['+ upsampling']\""
    )


def test_judges_by_name(monkeypatch):
    asked = []
    monkeypatch.setattr(table1.chat_server, "client", lambda model: asked.append(("server", model)))
    monkeypatch.setattr(table1.vision_model, "client", lambda *a: asked.append(("local", *a)))
    table1.judge_of("server:gpt-4o")
    table1.judge_of("/models/vlm", "cuda")
    assert asked == [("server", "gpt-4o"), ("local", "/models/vlm", None, "cuda")]
