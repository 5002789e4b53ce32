"""Whether a run agrees with the study; by hand, and how often one more seed does."""

import numpy as np
import pandas as pd
import pytest
from test_study import PROMPTS, fill, folder, scores  # noqa: F401 - folder is a fixture

from dalle3lib import UserError, agreement, runs, study, study_results


def test_prediction_interval_by_hand():
    """Mean 2, deviation 1, t(2) = 4.3027, sqrt(1 + 1/3)."""
    assert agreement.prediction_interval([1, 2, 3]) == pytest.approx((-2.968, 6.968), abs=1e-3)
    with pytest.raises(UserError, match="two or more"):
        agreement.prediction_interval([1])


def test_prediction_intervals_hold_one_more_seed_as_often_as_they_say():
    drawn = np.random.default_rng(0).normal(3, 2, (2000, 11))
    ends = [agreement.prediction_interval(row[:10]) for row in drawn]
    inside = [low <= row[10] <= high for (low, high), row in zip(ends, drawn, strict=True)]
    assert np.mean(inside) == pytest.approx(0.95, abs=0.015)


def test_a_run_that_was_asked_other_prompts_cannot_be_compared(folder):  # noqa: F811
    fill(folder)
    table = scores("dsc-95", 100).assign(prompt="another")
    with pytest.raises(UserError, match="are not the study's"):
        agreement.agreement(table, "dsc-95", study_results.load("main"))


def built(arm: str, shift: float = 0.0, **given):
    """A finished run of this build (seed 0), its scores those of seed 101 and ``shift``."""
    cfg = study.parameters(study.Job("main", arm, 0), **given)
    run = runs.open_run(cfg, "kind", "ratio", "seed")
    table = scores(arm, 101).assign(prompt=PROMPTS.prompt)
    table.assign(score=table.score + shift).to_parquet(run.path / "scores.parquet")
    run.finish({})
    return run.path


def test_a_build_is_held_against_the_study_arm_by_arm(folder, runs_root):  # noqa: F811
    given = study.parameters(study.job("dsc-95-100")).values
    study_like = {k: v for k, v in given.items() if k not in study_results.FREE}
    fill(folder, parameters=study_like)
    found = {
        "dsc-95-0": built("dsc-95"),
        "dsc-80-0": built("dsc-80", shift=0.5),
        "ssc-95-0": None,
        "original-0-0": built("original-0", steps=40, batch=8),
    }
    table = agreement.of_build(found, study_results.load("main"))
    by_arm = dict(tuple(table.groupby("arm", sort=False)))
    assert by_arm["dsc-95-0"].agrees.all() and len(by_arm["dsc-95-0"]) == 5
    assert not by_arm["dsc-80-0"].agrees.any()
    assert by_arm["ssc-95-0"].remark.item() == "not trained in this build"
    assert by_arm["original-0-0"].remark.item() == "trained otherwise (batch, steps)"
    assert pd.isna(by_arm["original-0-0"].agrees.item())


def test_what_a_build_is_told():
    row = {"arm": "dsc-95-0", "kind": "original", "agrees": True, "remark": "10 seeds"}
    rows = [row, row | {"kind": "descriptive"}, {"arm": "ssc-95-0", "agrees": None}]
    assert agreement.sentences(rows) == ["Against the study (10 seeds): dsc-95-0 agrees."]
    rows[1]["agrees"] = False
    (said,) = agreement.sentences(rows)
    assert said.endswith("dsc-95-0 DOES NOT agree with descriptive prompts.")
    assert agreement.sentences([]) == []


def test_a_study_of_one_seed_expects_nothing(folder, runs_root):  # noqa: F811
    fill(folder, seeds=[100])
    table = agreement.of_build({"dsc-95-0": built("dsc-95")}, study_results.load("main"))
    assert table.remark.item() == "the study has 1 seed"
