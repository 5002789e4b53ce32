"""Differences taken apart: by hand, from scores whose cause is known because we made it."""

import numpy as np
import pandas as pd
import pytest

from dalle3lib import study_causes
from dalle3lib.study_evidence import PAIRS
from dalle3lib.study_results import Results

ORIGINALS = ["red circle", "red circle on sand", 'a star "fox"', "shop now and save"]
BACKGROUNDS = {"original-0": [1.0, 1.0, 1.0, 0.0], "ssc-95": [1.0, 0.0, 0.0, 0.0]}
SCORES = {  # by arm and kind of prompt; SSC is one point ahead where backgrounds are equal
    ("original-0", "original"): [40.0, 50.0, 50.0, 30.0],
    ("ssc-95", "original"): [42.0, 40.0, 44.0, 32.0],
    ("original-0", "descriptive"): [60.0, 62.0, 64.0, 20.0],
    ("ssc-95", "descriptive"): [63.0, 20.0, 21.0, 22.0],
}


@pytest.fixture
def results():
    """Two seeds of both arms, the second with all scores a point higher for SSC."""
    kinds = ["original", "descriptive"]
    prompts = pd.DataFrame(
        {"kind": np.repeat(kinds, 4), "prompt": ORIGINALS + [f"{t}, on sand" for t in ORIGINALS]}
    )

    def table(arm, more):
        score = np.concatenate([SCORES[arm, kind] for kind in kinds]) + more
        return pd.DataFrame(
            {
                "kind": prompts.kind,
                "score": score,
                "background": BACKGROUNDS[arm] * 2,
                PAIRS: 0.0,
                "step": 9,
            }
        )

    tables = {arm: {s: table(arm, s * (arm == "ssc-95")) for s in (0, 1)} for arm in BACKGROUNDS}
    return Results("main", tables, {}, prompts)


def test_prompts_are_parted_by_what_short_captions_never_say():
    assert study_causes.names_more_than_objects(ORIGINALS).tolist() == [False, True, True, False]


def test_parts_by_hand(results):
    found = study_causes.parts(results)
    by_seed = {name: entry["by_seed"] for name, entry in found.items()}
    assert by_seed == {
        "original prompts: all": [-3.0, -2.0],  # (2 - 10 - 6 + 2) / 4
        "… that name a background or a word": [-8.0, -7.0],
        "… that name neither": [2.0, 3.0],
        "descriptive prompts: all": [-20.0, -19.0],  # (3 - 42 - 43 + 2) / 4
        # right: 63 - (60 + 62 + 64) / 3 = 1, counts three times; wrong: (20 + 21 + 22) / 3 - 20 = 1
        "… with backgrounds right as often": [1.0, 2.0],
    }
    assert [entry["prompts"] for entry in found.values()] == [4, 2, 2, 4, 4]
    assert found["… that name neither"]["effect"] == 2.5


def test_a_group_that_one_arm_lacks_is_left_out(results):
    for seed in (0, 1):
        results.tables["ssc-95"][seed]["background"] = 1.0
    found = study_causes.parts(results)["… with backgrounds right as often"]["by_seed"]
    assert found == pytest.approx([-30.5, -29.5])  # 31.5 less 62, in right backgrounds alone


def test_parts_without_prompts_are_left_out(results):
    results.prompts["prompt"] = "shop now and save"
    assert "… that name a background or a word" not in study_causes.parts(results)


def test_the_share_of_right_backgrounds_alone_is_no_difference(results):
    """Arms that score alike wherever the background is alike differ by nothing once equal."""
    for tables in results.tables.values():
        for table in tables.values():
            table["score"] = 50 + 10 * table.background
    found = study_causes.parts(results)
    assert found["descriptive prompts: all"]["by_seed"] == [-5.0, -5.0]
    assert found["… with backgrounds right as often"]["by_seed"] == pytest.approx([0, 0])


def test_nothing_is_found_without_two_seeds_or_without_facts(results):
    photographs = {a: {s: t.drop(columns=PAIRS) for s, t in by.items()} for a, by in
                   results.tables.items()}  # fmt: skip
    assert study_causes.parts(Results("runs", photographs, {}, results.prompts)) == {}
    del results.tables["ssc-95"][1]
    assert study_causes.parts(results) == {}
    del results.tables["ssc-95"]
    assert study_causes.parts(results) == {}


def test_rises_by_hand(results):
    found = study_causes.rises(results)
    assert {name: entry["by_seed"] for name, entry in found.items()} == {
        "original only": [9.0, 9.0],  # (20 + 12 + 14 - 10) / 4, the same for both seeds
        "SSC 95 %": [-8.0, -8.0],  # (21 - 20 - 23 - 10) / 4
    }
    del results.tables["ssc-95"][1]
    assert list(study_causes.rises(results)) == ["original only"]


def test_scores_by_what_original_prompts_state(results):
    results.prompts["facts"] = [2, 3, 2, 0, *[4] * 4]
    results.tables["dsc-50"] = results.tables.pop("ssc-95")  # the only share above 0
    found = study_causes.by_facts_stated(results).set_index(["kind", "share", "seed"]).value
    assert found.to_dict() == {
        ("that state no fact (1)", 0, 0): 30.0,
        ("that state no fact (1)", 0, 1): 30.0,
        ("that state no fact (1)", 50, 0): 32.0,
        ("that state no fact (1)", 50, 1): 33.0,
        ("that state one or two (2)", 0, 0): 45.0,
        ("that state one or two (2)", 0, 1): 45.0,
        ("that state one or two (2)", 50, 0): 43.0,
        ("that state one or two (2)", 50, 1): 44.0,
        ("that state more (1)", 0, 0): 50.0,
        ("that state more (1)", 0, 1): 50.0,
        ("that state more (1)", 50, 0): 40.0,
        ("that state more (1)", 50, 1): 41.0,
    }
    results.prompts["facts"] = 4
    assert set(study_causes.by_facts_stated(results).kind) == {"that state more (4)"}
    for table in results.tables["dsc-50"].values():  # photographs
        del table[PAIRS]
    assert study_causes.by_facts_stated(results).empty


def test_the_lead_of_all_synthetic_by_hand(results):
    """SSC's scores taken as those of 100 %, original only's as those of 95 %."""
    results.prompts["facts"] = [2, 3, 2, 0, *[4] * 4]
    results.tables["dsc-100"] = results.tables.pop("ssc-95")
    results.tables["dsc-95"] = results.tables.pop("original-0")
    found = study_causes.lead_of_all(results)
    assert {g: (e["by_seed"], e["prompts"]) for g, e in found.items()} == {
        "that state no fact": ([2.0, 3.0], 1),
        "that state one or two": ([-2.0, -1.0], 2),  # (2 - 6) / 2
        "that state more": ([-10.0, -9.0], 1),
    }
    results.prompts["facts"] = 0
    assert list(study_causes.lead_of_all(results)) == ["that state no fact"]
    del results.tables["dsc-100"][1]
    assert study_causes.lead_of_all(results) == {}
