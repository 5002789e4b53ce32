"""Controls by hand, what is kept of them, and the map of where the claims hold."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from test_study import ABOUT, fill, folder, scores  # noqa: F401

from dalle3lib import UserError, study_controls, study_map, study_plots, study_results
from dalle3lib.__main__ import main
from dalle3lib.study_stages import SENSITIVITY, STAGES

torch.set_num_threads(1)
SIX = range(100, 106)


def trained_again(seeds=SIX, shift=0.0, parameters=None) -> None:
    """The arms of the main stage with another order: their scores, and those shifted."""
    given = {"steps": 2000, "data_order": 1} if parameters is None else parameters
    fill(study_results.FOLDER, STAGES["order"].arms, seeds, "order", parameters=given)
    for seed in seeds:
        table = scores("dsc-95", seed)
        table.loc[table.kind == "original", "score"] += shift
        about = ABOUT | {"arm": "dsc-95", "seed": seed, "parameters": given}
        study_results.write("order", f"dsc-95-{seed}", table, about)


# ---- an arm against itself -----------------------------------------------------------------------


def test_an_arm_that_is_itself_passes(folder):  # noqa: F811
    fill(folder, STAGES["order"].arms, SIX)
    trained_again()
    found = study_controls.a_a()
    assert [c.name for c in found[:2]] == [
        "A/A: original-0 on original prompts",
        "A/A: original-0 on descriptive prompts",
    ]
    assert len(found) == 4 and {c.outcome for c in found} == {"passed"}
    assert all(c.value == c.low == c.high == 0 for c in found)


def test_an_arm_that_differs_from_itself_fails(folder):  # noqa: F811
    """Six seeds all above by half a point: p is 2 / 2^6."""
    fill(folder, STAGES["order"].arms, SIX)
    trained_again(shift=0.5)
    found = {c.name: c for c in study_controls.a_a()}
    failed = found["A/A: dsc-95 on original prompts"]
    assert failed.outcome == "failed" and failed.source.endswith("6 seeds, p 0.03")
    assert failed.value == pytest.approx(0.5, abs=1e-5) and failed.unit == "points"
    assert found["A/A: dsc-95 on descriptive prompts"].outcome == "passed"


def test_too_few_seeds_cannot_fail_and_so_do_not_pass(folder):  # noqa: F811
    told = {c.outcome for c in study_controls.a_a()}
    assert told == {"not run yet (0 of 6 seeds)"}
    fill(folder, STAGES["order"].arms, SIX)
    assert {c.outcome for c in study_controls.a_a()} == told
    trained_again(range(100, 105), shift=9)
    assert {c.outcome for c in study_controls.a_a()} == {"not run yet (5 of 6 seeds)"}


def test_an_order_stage_that_differs_in_more_is_no_control(folder):  # noqa: F811
    fill(folder, STAGES["order"].arms, SIX)
    trained_again(parameters={"steps": 1000, "data_order": 1})
    with pytest.raises(UserError, match="no A/A control, because their parameters differ"):
        study_controls.controls()


# ---- pictures and simulated studies --------------------------------------------------------------


def test_shifting_leaves_nothing_in_its_place():
    assert study_controls.shifted([1, 2, 3]) == [3, 1, 2]


def test_the_weakest_arm_speaks_for_all():
    """Arm b gains 1 on average, a scene without a fact does not count; c loses."""
    a, b = np.array([5.0, 6.0, 7.0]), np.array([0.5, np.nan, 1.5])
    by_arm = {"a": {"shuffled prompts": a}, "b": {"shuffled prompts": b}}
    control = study_controls._least("shuffled prompts", by_arm, 3)
    assert control.value == 1 and (control.low, control.high) == (0.5, 1.5)
    assert control.outcome == "passed" and "(b, seed 0), 3 dev prompts" in control.source
    c = {"x read": np.array([1.0, -2.0, -3.0, -2.0])}
    worse = study_controls._least("x read", {"c": c}, 4)
    assert worse.outcome == "failed" and worse.unit == "% points" and worse.value == -1.5


@pytest.mark.parametrize(
    ("column", "share", "outcome"),
    [
        ("false positives", 0.05, "passed"),
        ("false positives", 0.01, "passed"),
        ("false positives", 0.10, "failed"),
        ("seed interval covers", 0.95, "passed"),
        ("seed interval covers", 0.99, "passed"),
        ("seed interval covers", 0.90, "failed"),
    ],
)
def test_error_rates_by_hand(folder, monkeypatch, column, share, outcome):  # noqa: F811
    """Of two measures together 1,000 studies; the binomial interval is about 1.4 % to each side."""
    fill(folder, ["dsc-95", "ssc-95"], [10, 11], "pilot")
    rates = pd.DataFrame({column: [share - 0.005, share + 0.005]})
    monkeypatch.setattr(study_controls.planning, "controls", lambda results, count: rates)
    (control,) = study_controls.of_simulation(500)
    assert control.value == pytest.approx(100 * share) and control.outcome == outcome
    assert control.low < 100 * share < control.high
    assert "2 × 500 simulated studies of 10 seeds, variances of 2 pilot seeds" in control.source


def test_controls_are_kept_and_go_out_of_date(folder, foundations, capsys, monkeypatch):  # noqa: F811
    """Untrained foundations, so nothing is expected of the outcomes, only that all are there."""
    fill(folder, ["dsc-95", "ssc-95"], [10, 11], "pilot")
    before = study_controls.controls()
    assert before.outcome.str.startswith("not run yet").all() and len(before) == 6
    measure = study_controls.measure
    monkeypatch.setattr(study_controls, "measure", lambda: measure(prompts=3, count=5))
    assert main(["study", "controls"]) == 0
    assert "controls.json" in capsys.readouterr().out
    table = study_controls.controls()
    assert len(table) == 4 + 5 + 3
    assert set(table.outcome[4:]) <= {"passed", "failed"}
    assert table.value[4:].notna().all() and (table.low <= table.value)[4:].all()
    shown = study_controls.readable(table)
    assert shown.found[0] == "–" and shown.found.str.contains("%").sum() >= 3
    fill(folder, ["dsc-95", "ssc-95"], [12], "pilot")
    stale = study_controls.controls().outcome
    assert stale[9:].str.startswith("out of date (was ").all()
    assert set(stale[4:9]) <= {"passed", "failed"}  # pictures do not depend on the pilot
    monkeypatch.setattr(study_controls, "of_pictures", None)  # nor are they made again
    assert main(["study", "controls"]) == 0
    assert set(study_controls.controls().outcome[4:]) <= {"passed", "failed"}


def test_the_committed_controls_are_readable():
    table = study_controls.readable(study_controls.controls())
    assert {"shuffled original prompts", "simulated: false positives"} <= set(table.control)


# ---- where the claims hold -----------------------------------------------------------------------


def test_the_map_by_hand(folder):  # noqa: F811
    """DSC 95 has number 6, original 0, and a seed adds 0.01 (seed - 99) of the number."""
    assert study_map.effects().empty and len(study_map.missing(study_map.effects())) == 9
    fill(folder)
    fill(folder, STAGES["truth"].arms, STAGES["truth"].seeds, "truth")
    fill(folder, ["dsc-95", "original-0"], [100, 101], "steps-1000")
    fill(folder, ["dsc-95", "original-0"], [100], "steps-4000")  # one seed says nothing
    table = study_map.effects()
    assert len(table) == 11 + 11 + 4
    row = table[(table.claim == "dsc-over-original-on-original-prompts") & (table.stage == "truth")]
    (row,) = row.to_dict("records")
    assert row["by seed"] == pytest.approx([6.06, 6.12, 6.18], abs=1e-5)
    assert row["effect"] == pytest.approx(6.12, abs=1e-5)
    assert row["low"] == pytest.approx(6.12 - 4.3027 * 0.06 / 3**0.5, abs=1e-3)
    assert row["worth"] == "sensitivity, 3 seeds" and row["setting"] == "captions from truth"
    assert row["smallest"] == 0.2 and row["unit"] == "points"
    wide = study_map.summary(table)
    assert list(wide.columns) == [
        "the study (4 seeds)",
        "captions from truth (sensitivity, 3 seeds)",
        "half the training (sensitivity, 2 seeds)",
    ]
    fill(folder, ["ssc-95", "original-0"], range(104, 106))  # a stage on its way: 4 to 6 seeds
    assert list(study_map.summary(study_map.effects()))[0] == "the study (4 to 6 seeds)"
    assert wide.iloc[1, 1] == "+6.12 [+5.97, +6.27]"
    assert wide.loc["dsc-over-ssc-on-descriptive-prompts"].iloc[2] == "–"
    lacking = study_map.missing(table)
    assert len(lacking) == len(SENSITIVITY) - 2
    assert lacking.loc["twice the training", "command"] == "make study STAGE=steps-4000"


def test_the_map_is_drawn_with_a_panel_for_each_claim(folder):  # noqa: F811
    fill(folder)
    fill(folder, ["dsc-95", "original-0"], [100, 101], "steps-1000")
    figure = study_plots.effects_by_setting(study_map.effects())
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == 11
    assert panels[0].get_title() == "ssc over original on original\nprompts"
    assert [t.get_text() for t in panels[0].get_yticklabels()] == [
        "the study\n(4 seeds)",
        "half the training\n(sensitivity, 2 seeds)",
    ]
    seeds, _, mean = panels[1].lines[1:4]
    assert len(seeds.get_xdata()) == 4 and mean.get_xdata()[0] == pytest.approx(6.15, abs=1e-4)
    plt.close(figure)


def test_the_map_of_shares_and_the_lead_of_all_synthetic_by_noise(folder):  # noqa: F811
    """DSC 100 has number 7, DSC 95 has 6: a point between them, 0.01 more for every later seed."""
    fill(folder)
    fill(folder, STAGES["noise-0"].arms, [100, 101], "noise-0")
    claims = study_map.effects(study_map.MIXING_RATIO)
    assert set(claims[claims.stage == "noise-0"].claim) == {"some-originals-regularise"}
    here = claims[claims.claim == "some-originals-regularise"]
    assert here.effect.tolist() == pytest.approx([-1.025, -1.015], abs=1e-4)
    lead = study_map.lead_by_noise()
    assert list(lead) == [
        "no fact, noise 0 (1 prompts)",
        "no fact, noise 0.5 (1 prompts)",
        "one or two, noise 0 (2 prompts)",
        "one or two, noise 0.5 (2 prompts)",
    ]
    assert lead["one or two, noise 0 (2 prompts)"]["by_seed"] == pytest.approx(
        [1.01, 1.02], abs=1e-4
    )


def test_nothing_to_map_is_no_error(folder):  # noqa: F811
    assert study_map.summary(study_map.effects()).empty
