"""The stages beside the study: what each changes and nothing else, and one run of each kind."""

import argparse
import shlex

import pytest
import torch
import yaml
from test_arm import parameters, tiny_cache
from test_study import PROMPTS, fill, folder, make_tiny  # noqa: F401

from dalle3lib import (
    UserError,
    arm,
    latents,
    pairs,
    recaption,
    study,
    study_captions,
    study_results,
    study_stages,
)
from dalle3lib.__main__ import _recaption_options, main
from dalle3lib.config import Parameters
from dalle3lib.study_stages import SENSITIVITY, STAGES, Job
from dalle3lib.world import World

torch.set_num_threads(1)

# ---- the runs ------------------------------------------------------------------------------------


def test_stages_beside_the_study_pair_with_it():
    whole = STAGES["main"]
    for name in ("order", *SENSITIVITY):
        stage = STAGES[name]
        assert set(stage.arms) <= set(whole.arms) and set(stage.seeds) <= set(whole.seeds), name
        assert stage.varies and len(stage.given) == 1, name
    assert not STAGES["pilot"].given and not whole.given
    assert {len(STAGES[name].seeds) for name in SENSITIVITY} == {3}
    assert study_stages.worth("truth") == "sensitivity, 3 seeds"
    assert study_stages.worth("order", [2, 2]) == "control, 2 seeds"


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_changes_one_parameter_and_nothing_else(stage):
    one = study_stages.jobs(stage)[0]
    plain = study_stages.parameters(Job("main", one.arm, one.seed)).values
    cfg = study_stages.parameters(one)
    changed = {k: v for k, v in cfg.values.items() if plain[k] != v}
    assert changed == STAGES[stage].given
    assert ("evaluations" in one.given) == (stage == "main")  # a curve is the main stage's alone


def test_the_same_arm_and_seed_has_a_directory_in_every_stage(runs_root):
    same = [Job(stage, "dsc-95", 100) for stage in STAGES if stage != "pilot"]
    made = {study_stages.run_directory(study_stages.parameters(one)) for one in same}
    assert len(made) == len(same)


def test_a_name_alone_means_the_study():
    assert study.job("dsc-95-100") == Job("main", "dsc-95", 100)
    assert study.job("dsc-95-100", "truth") == Job("truth", "dsc-95", 100)
    with pytest.raises(UserError, match="no run 'dsc-95-103'; did you mean"):
        study.job("dsc-95-103", "truth")
    assert study.again(Job("guidance-3", "ssc-95", 101)) == [
        "  python -m dalle3lib run 04a_train_arm -p preset study -p kind ssc -p ratio 95 -p seed "
        "101 -p guidances '[3.0]'",
        "  python -m dalle3lib study check ssc-95-101 --stage guidance-3",
    ]


def test_the_plan_and_the_evidence_say_what_they_are_worth(folder, capsys):  # noqa: F811
    fill(folder, STAGES["noise-25"].arms, STAGES["noise-25"].seeds, "noise-25")
    assert main("study plan --stage noise-25".split()) == 0
    assert "12 runs, 12 finished" in (said := capsys.readouterr().out)
    assert "differs from the main stage in this: alt-text noise .25. sensitivity, 3 seeds" in said
    assert main("study evidence --stage noise-25".split()) == 0
    assert capsys.readouterr().out.startswith("alt-text noise .25: sensitivity, 3 seeds")
    assert main("study evidence --stage truth".split()) == 1
    assert "`make study STAGE=truth` makes them" in capsys.readouterr().err


# ---- another order of data -----------------------------------------------------------------------


def test_the_order_of_data_is_the_arms_own_unless_another_is_asked_for():
    assert arm.training_seed(parameters(seed=3)) == 3
    assert arm.training_seed(parameters(seed=3, data_order=0)) == 3
    others = {arm.training_seed(parameters(seed=s, data_order=o)) for s in (3, 4) for o in (1, 2)}
    assert len(others) == 4 and min(others) > 1000
    assert arm.training_seed(parameters(seed=3, data_order=1)) in others


def test_another_order_is_another_training_of_the_same_arm(tmp_path):
    logs, begun = {}, {}
    for name, given in {"old": {}, "0": {"data_order": 0}, "1": {"data_order": 1}}.items():
        cfg = parameters(steps=2, evaluations=1, **given)
        model, log = arm.train_arm(cfg, tiny_cache(), tmp_path / name)
        logs[name] = log["loss"]
        still = parameters(steps=2, evaluations=1, lr=0.0, **given)
        model, _ = arm.train_arm(still, tiny_cache(), tmp_path / f"{name} begun")
        begun[name] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert logs["old"] == logs["0"] != logs["1"]
    assert torch.equal(begun["old"], begun["1"])  # the same weights before the first step


def test_results_older_than_a_parameter_stay_comparable(folder):  # noqa: F811
    given = {"steps": 2000, "seed": 1, "kind": "dsc", "ratio": 95, "evaluations": 1}
    assert study_results.compared(given) == {"steps": 2000}
    assert study_results.compared(given | {"data_order": 0}) == {"steps": 2000}
    other = study_results.compared(given | {"data_order": 1})
    assert other == {"steps": 2000, "data_order": 1}
    fill(folder, ["ssc-95", "dsc-95"])
    fill(folder, ["dsc-95"], [104], parameters=other)
    with pytest.raises(UserError, match="its parameters differ"):
        study_results.load("main")


@pytest.mark.parametrize("stage", ["pilot", "main"])
def test_committed_results_load(stage):
    if study_results.names(stage):
        results = study_results.load(stage)
        one = next(iter(next(iter(results.about.values())).values()))
        assert "data_order" not in one["parameters"]


# ---- other captions ------------------------------------------------------------------------------


def test_captions_of_records_by_hand(foundations, tmp_path):
    records = list(World("train", 3))
    told = pairs.of_records(records, "truth")
    assert told == {
        "ssc": [r.short for r in records],
        "dsc": [r.descriptive for r in records],
    }
    made = tmp_path / "others"
    recaption.caption_dataset("world:train:3", made)
    rows = pairs.open_captions(str(made)).all()
    found = pairs.of_records(records, str(made))
    assert found["dsc"] == [rows[r.key]["dsc"] for r in records]
    assert found == pairs.of_records(records, "written")  # by the same captioners
    with pytest.raises(UserError, match=r"1 of 4 images \(train-000003, …\) have no ssc caption"):
        pairs.of_records(list(World("train", 4)), str(made))
    other = arm.dataclasses.replace(records[0], image=records[1].image)
    with pytest.raises(UserError, match="train-000000 is not the image that was captioned"):
        pairs.of_records([other], str(made))
    lacking = arm.dataclasses.replace(records[0], descriptive=None)
    with pytest.raises(UserError, match="have no dsc caption in truth: set captions_from to"):
        pairs.of_records([lacking], "truth")


def test_an_arm_reads_the_captions_that_are_asked_for(foundations, tmp_path):
    """The cache holds as many tokens as the captions have, whoever wrote them."""
    made = tmp_path / "others"
    recaption.caption_dataset("world:train:5", made)
    for where in ("truth", str(made)):
        values = {"data": "world", "scenes": 5, "noise": 0.5, "captions_from": where}
        cfg = Parameters("04a_train_arm", "smoke", values, root=tmp_path / "world")
        cache, (records, said) = latents.load(latents.build(cfg)), latents.first_records(cfg, 5)
        expected = pairs.of_records(records, where)
        assert {kind: said[kind] for kind in ("ssc", "dsc")} == expected
        tensors = latents.encode_records(records, *latents._models(cfg), expected)
        lengths = tensors["lengths.dsc"].tolist()
        assert [len(s) for s in cache.states["dsc"]] == lengths
        whole = torch.cat(list(cache.states["dsc"])).float()
        assert torch.allclose(whole, tensors["states.dsc"].float(), atol=5e-3)


def test_the_recipe_of_other_captions_leads_to_them(runs_root):
    """Its commands are read as the command line reads them, and each finds what the last left."""
    lines = [shlex.split(line) for line in study_captions.commands("captioner")]
    assert study_captions.commands("captioner") and len(lines) == 3
    parser = argparse.ArgumentParser()
    _recaption_options(parser)
    options = parser.parse_args(lines[2][3:])
    assert options.source == "world:train:20000"
    assert options.destination == study_captions.folder("captioner")
    for line, (kind, directory) in zip(lines[:2], options.captioner, strict=True):
        given = {line[i + 1]: line[i + 2] for i, word in enumerate(line) if word == "-p"}
        assert line[2:4] == ["run", "02a_fine_tune"] and given.pop("preset") == "cpu"
        assert given.pop("kind") == kind and given["seed"] == "1"
        values = {name: yaml.safe_load(value) for name, value in given.items()}
        cfg = study_captions.config.from_preset("02a_fine_tune", preset="cpu", kind=kind, **values)
        made = cfg.root / "02a_fine_tune" / study_captions.runs.run_id(cfg, "kind")
        assert directory == str(made / "captioner")


def test_a_stage_without_its_captions_says_how_to_make_them(folder, capsys, tmp_path, monkeypatch):  # noqa: F811
    assert study_captions.told("truth") == study_captions.told("main") == []
    where = {"captions_from": str(tmp_path / "others")}
    monkeypatch.setitem(STAGES, "captioner", STAGES["captioner"]._replace(given=where))
    assert main("study --stage captioner".split()) == 1
    said = capsys.readouterr().err
    assert "captions of stage captioner are not there yet" in said and "recaption world:" in said
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "manifest.json").write_text("{}")
    assert study_captions.told("captioner") == []


# ---- one run of a stage to the end ---------------------------------------------------------------

REHEARSED = {
    "order": {},
    "truth": {},
    "captioner": {},
    "noise-75": {},
    "steps-4000": {"steps": 6},
    "guidance-3": {},
}


@pytest.mark.parametrize(
    "stage",
    [s if s == "order" else pytest.param(s, marks=pytest.mark.soak) for s in REHEARSED],
)
def test_a_tiny_run_of_a_stage(foundations, folder, runs_root, tmp_path, monkeypatch, stage):  # noqa: F811
    """Everything small but real, as in test_study: chapter 04a in a process of its own."""
    make_tiny(tmp_path, monkeypatch)
    given = STAGES[stage].given | REHEARSED[stage]
    if stage == "captioner":
        given = {"captions_from": str(tmp_path / "others")}
        recaption.caption_dataset("world:train:8", tmp_path / "others")
    monkeypatch.setitem(STAGES, stage, STAGES[stage]._replace(given=given))
    job = Job(stage, "dsc-95", 100)
    outcome = study.execute(job)
    assert not outcome.problem
    table, about = study_results.read(study_results.path_of(stage, job.name))
    assert table.step.unique().tolist() == [given.get("steps", 4)]
    ((name, value),) = given.items()
    assert about["parameters"][name] == value and about["arm"] == "dsc-95"
    if stage == "truth":
        assert about["captions"] == "truth"
    if stage == "guidance-3":
        assert about["guidance"] == 3
    assert len(study_results.load(stage).prompts) == 15
    assert len(PROMPTS) == 15  # five kinds of three prompts, as here
