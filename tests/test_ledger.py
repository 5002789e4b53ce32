"""The ledger: evidence taken from runs only, corrected by family, shown as it is."""

import json

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from test_claims import CLAIMS, EQUAL, GREATER

from dalle3lib import UserError, config, ledger, runs


@pytest.fixture
def finish(tmp_path, monkeypatch):
    """A function that makes a complete run of a tiny notebook with the given claims."""
    monkeypatch.setenv("DALLE3_NOTEBOOKS", str(tmp_path / "notebooks"))
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path / "runs"))
    (tmp_path / "notebooks" / "presets").mkdir(parents=True)
    (tmp_path / "notebooks" / "presets" / "smoke.yaml").write_text("common:\n  steps: 1\n")
    cell = new_code_cell("preset: str = 'smoke'  # which\nsteps: int = None  # training steps")
    cell["metadata"]["tags"] = ["parameters"]
    for stem in ("04_caption_kind", "05_mixing_ratio", "11_released_verdicts"):
        nbformat.write(new_notebook(cells=[cell]), tmp_path / "notebooks" / f"{stem}.ipynb")

    def finish(found, notebook="04_caption_kind", **explicit):
        run = runs.open_run(config.from_preset(notebook, **explicit))
        run.finish({"claims": found})
        return run

    finish.root = tmp_path / "runs" / "smoke"
    return finish


def entry(**changes):
    return {"effect": 0.8, "interval": [0.3, 1.2], "seeds": 1, "unit": "points"} | changes


def row(finish, name):
    return next(row for row in ledger.rows(finish.root) if row["id"] == name)


@pytest.mark.parametrize("root", [None, "absent"])
def test_without_runs_nothing_is_tested(tmp_path, root):
    rows = ledger.rows(root and tmp_path / root)
    assert [row["id"] for row in rows] == list(CLAIMS)
    needed = {row["verdict"] for row in rows if row["id"] == GREATER.id}
    assert needed == {f"not tested (needs {GREATER.needs})"}
    assert ledger.tally(rows) == {"not tested": len(rows)}


def test_a_finished_run_enters_the_ledger(finish):
    finish({GREATER.id: entry(note="one seed")})
    assert row(finish, GREATER.id) == {
        "id": GREATER.id,
        "source": "paper",
        "section": GREATER.section,
        "claim": GREATER.claim,
        "paper": GREATER.paper,
        "ours": 0.8,
        "interval": [0.3, 1.2],
        "seeds": 1,
        "verdict": "no verdict (1 of 10 seeds)",
        "chapter": "04_caption_kind",
        "run": "04_caption_kind/main",
        "unit": "points",
    }
    assert ledger.tally(ledger.rows(finish.root)) == {
        "no verdict": 1,
        "not tested": len(CLAIMS) - 1,
    }


def test_an_unfinished_run_and_an_exploration_do_not(finish):
    run = finish({GREATER.id: entry()})
    finish({GREATER.id: entry(effect=9)}, steps=2)  # not the preset's own parameters
    assert row(finish, GREATER.id)["ours"] == 0.8
    (run.path / "manifest.json").unlink()
    assert row(finish, GREATER.id)["run"] is None


def test_a_damaged_run_is_an_error(finish):
    results = finish({GREATER.id: entry()}).path / "results.json"
    results.write_text(results.read_text().replace("0.8", "0.9"))
    with pytest.raises(UserError, match="results.json is damaged"):
        ledger.rows(finish.root)


@pytest.mark.parametrize(
    ("name", "found", "message"),
    [
        ("dsc-over-orignal-on-descriptive-prompts", entry(), f"unknown claim.*{GREATER.id}"),
        (GREATER.id, entry(unit="words"), "its unit is 'points', not 'words'"),
        (GREATER.id, entry(interval=[1.2, 0.3]), "an interval"),
        (GREATER.id, entry(interval=None), "an interval"),
        (GREATER.id, entry(effect="0.8"), "a finite effect"),
        (GREATER.id, entry(seeds=1.5), "seeds"),
        (GREATER.id, entry(p=1.5), "must give"),
        (GREATER.id, {"effect": 0.8}, "must give"),
        (GREATER.id, 0.8, "must give"),
        ("dsc95-over-dsc90-on-original-prompts", entry(), "belongs to chapter 05_mixing_ratio"),
    ],
)
def test_evidence_that_does_not_fit_its_claim_is_an_error(finish, name, found, message):
    finish({name: found})
    with pytest.raises(UserError, match=message):
        ledger.rows(finish.root)


def test_p_values_are_corrected_for_the_whole_family(finish):
    others = ["dsc-over-ssc-on-descriptive-prompts", "ssc-over-original-on-descriptive-prompts"]
    found = {GREATER.id: entry(seeds=10, p=0.008), others[0]: entry(seeds=10, p=0.011)}
    finish(found | {others[1]: entry(seeds=10)})
    # six claims: 6 × 0.008 = 0.048 passes, 5 × 0.011 = 0.055 does not, no p value never does
    assert row(finish, GREATER.id)["verdict"] == "replicated"
    assert row(finish, others[0])["verdict"] == "direction only"
    assert row(finish, others[1])["verdict"] == "direction only"


def test_pilots_and_tests_of_equality_reach_the_verdict(finish):
    wide = entry(effect=0.1, interval=[-0.6, 0.7], seeds=10, equivalence_p=0.03)
    finish({GREATER.id: entry(seeds=4, pilot=True), EQUAL.id: wide})
    assert row(finish, GREATER.id)["verdict"] == "pilot"
    assert row(finish, EQUAL.id)["verdict"] == "replicated"


RECOUNTED = {  # minus printed
    "recount-drawbench-dalle3": -0.025,
    "recount-drawbench-dalle2": 0.0,
    "recount-drawbench-sdxl": -0.025,
}
COMPARED = {  # made-up effects, intervals and p values over prompts
    "released-dalle3-over-dalle2-on-drawbench": (20, [15, 25], 1e-9),
    "released-dalle3-over-sdxl-on-drawbench": (3, [1, 5], 0.011),
    "released-dalle2-over-sdxl-on-drawbench": (2, [-3, 7], 0.2),
}


def recounted(**changes):
    """Evidence for the whole family of the recount: no seeds, and no p value for the counts."""
    count = {"seeds": 0, "unit": "% points"}
    found = {name: {"effect": x, "interval": [x, x]} | count for name, x in RECOUNTED.items()}
    for name, (effect, interval, p) in COMPARED.items():
        found[name] = {"effect": effect, "interval": interval, "p": p} | count
    return {name: entry | changes.get(name, {}) for name, entry in found.items()}


def test_a_family_that_trains_nothing_gets_its_verdicts_without_seeds(finish):
    finish(recounted(), "11_released_verdicts")
    said = {name: row(finish, name)["verdict"] for name in recounted()}
    assert {said[name] for name in RECOUNTED} == {"replicated"}
    # six claims in the family, three of which have no p value and count as p = 1
    assert [said[name] for name in COMPARED] == ["replicated", "direction only", "inconclusive"]
    assert ledger.cells(row(finish, "recount-drawbench-sdxl"))["seeds"] == "–"


def test_a_recount_that_is_not_the_printed_number_contradicts_it(finish):
    off = {"effect": 0.1, "interval": [0.1, 0.1]}
    finish(recounted(**{"recount-drawbench-sdxl": off}), "11_released_verdicts")
    assert row(finish, "recount-drawbench-sdxl")["verdict"] == "contradicted"


def test_the_table_has_a_line_per_claim_and_counts_them(finish):
    finish({GREATER.id: entry()})
    rows = ledger.rows(finish.root)
    lines = ledger.table(rows).splitlines()
    line = next(line for line in lines if line.startswith(GREATER.id + " "))
    for text in ("markedly better", "+0.8 points", "[+0.3, +1.2]", "no verdict (1 of 10 seeds)"):
        assert text in line
    assert sum(line.startswith(tuple(CLAIMS)) for line in lines) == len(CLAIMS)
    assert lines[-1] == f"{len(rows)} claims: 1 no verdict, {len(rows) - 1} not tested."


def test_it_is_printed_as_a_table_or_json(finish, capsys):
    ledger.show(finish.root, as_json=False)
    said = capsys.readouterr().out
    assert "No finished run under" in said and "not tested" in said
    finish({GREATER.id: entry()})
    capsys.readouterr()
    ledger.show(finish.root, as_json=True)
    assert json.loads(capsys.readouterr().out) == ledger.rows(finish.root)
