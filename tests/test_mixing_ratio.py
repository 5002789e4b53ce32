"""Scores by share of synthetic captions: by hand from results made by rule; kept pictures."""

import numpy as np
import pandas as pd
import pytest
from test_study import KINDS, fill, folder, scores  # noqa: F401 - folder is a fixture

from dalle3lib import UserError, mixing_ratio, study_pictures, study_plots, study_results
from dalle3lib.study_evidence import PAIRS


@pytest.fixture
def results(folder):  # noqa: F811
    """Arms weigh 0 (original), 1 (SSC 95), 2 to 7 (DSC 50 to 100), seeds hundredths of that."""
    fill(folder, seeds=range(100, 103))
    return study_results.load("main")


def test_shares_are_those_of_descriptive_captions_and_none(results):
    assert list(mixing_ratio.shares(results)) == [0, 50, 65, 80, 90, 95, 100]
    assert mixing_ratio.shares(results)[0] == "original-0"


def test_means_by_hand(results):
    """A prompt weighs 0.1 of its number 0, 1, 2; "short" is the second kind."""
    table = mixing_ratio.means(results, ["original", "short"])
    assert len(table) == 7 * 2 * 3
    one = table[(table.share == 95) & (table.kind == "short") & (table.seed == 102)]
    assert one.value.item() == pytest.approx(10 + 6 + 0.1 + 0.03 * 6, abs=1e-4)
    facts = mixing_ratio.means(results, ["short"], PAIRS)  # a hundredth of it, in per cent
    assert facts.value.tolist() == pytest.approx(table[table.kind == "short"].value.tolist())


def test_gains_are_over_original_only_with_the_same_seed(results):
    del results.tables["original-0"][102]
    gains = mixing_ratio.over_original(mixing_ratio.means(results, ["original"]))
    assert set(gains.seed) == {100, 101}
    one = gains[(gains.share == 80) & (gains.seed == 101)]
    assert one.value.item() == pytest.approx(4 + 0.02 * 4, abs=1e-4)
    assert gains[gains.share == 0].value.eq(0).all()


def test_intervals_are_over_seeds(results):
    summary = mixing_ratio.over_seeds(mixing_ratio.means(results, ["original"])).set_index("share")
    assert summary.seeds.eq(3).all()
    assert summary["mean"][100] == pytest.approx(7 + 0.1 + 0.02 * 7, abs=1e-4)
    assert summary.low[100] < summary["mean"][100] < summary.high[100]
    assert summary.low[0] == summary.high[0]  # all seeds alike
    single = mixing_ratio.over_seeds(mixing_ratio.means(results, ["original"])[:1])
    assert single.seeds.item() == 1 and np.isnan(single.low.item())


def test_facts_of_photographs_are_not_known(results):
    assert mixing_ratio.facts_are_known(results)
    results.tables["dsc-95"][101] = results.tables["dsc-95"][101].drop(columns=PAIRS)
    assert not mixing_ratio.facts_are_known(results)


def test_curves_are_those_of_runs_scored_on_the_way(results):
    table = scores("dsc-80", 100)
    early = table[table.kind == "original"].assign(step=400)
    about = results.about["dsc-80"][100]
    study_results.write("main", "dsc-80-100", pd.concat([early, table], ignore_index=True), about)
    curves = mixing_ratio.curves("main", ["dsc-80", "dsc-95", "dsc-70"], 100)
    assert list(curves) == ["dsc-80"]
    assert set(curves["dsc-80"].kind) == {"original"} and set(curves["dsc-80"].step) == {400, 2000}


def test_the_papers_axes_stand_beside_ours():
    table = mixing_ratio.axes(pd.DataFrame({"mean": [40.0, 47.5], "step": [400, 2000]}))
    assert table.iloc[:, 0].tolist() == [29.1, 29.8, 200_000, 500_000]
    assert table.here.tolist() == [40.0, 47.5, 400, 2000]


# ---- pictures ------------------------------------------------------------------------------------


def test_pictures_are_kept_as_they_were(folder, tmp_path):  # noqa: F811
    random = np.random.default_rng(0)
    made = {k: random.integers(0, 256, (9, 8, 8, 3), np.uint8) for k in KINDS}
    for kind, pictures in made.items():
        np.save(tmp_path / f"pictures-{kind}.npy", pictures)
    assert study_pictures.kept("main", "dsc-95-100") is None
    path = study_pictures.keep(tmp_path, "main", "dsc-95-100")
    found = study_pictures.kept("main", "dsc-95-100")
    assert set(found) == set(study_pictures.SHOWN)
    for kind, pictures in found.items():
        assert (pictures == made[kind][: study_pictures.KEPT]).all()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"dsc-95-100\.png is damaged"):
        study_pictures.kept("main", "dsc-95-100")


# ---- figures -------------------------------------------------------------------------------------


def test_a_figure_shows_every_seed_and_every_mean(results):
    values = mixing_ratio.means(results, ["original", "short"])
    figure = study_plots.by_share(values, mixing_ratio.over_seeds(values), "score")
    dots = figure.axes[1].lines[0].get_ydata()
    assert sorted(dots) == pytest.approx(sorted(values[values.kind == "short"].value))
    assert figure.axes[0].get_title() == "original prompts"
