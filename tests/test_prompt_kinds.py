"""What arms are asked: two kinds of prompt by default, short and upsampled ones on request."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from test_arm import parameters

from dalle3lib import UserError, arm, prompt_kinds, trained_arms, upsampler
from dalle3lib.images import Record
from dalle3lib.prompt_kinds import prompts
from dalle3lib.world import World

torch.set_num_threads(1)
RECORDS = list(World("dev", 3))


def test_by_default_the_kinds_of_figure_4():
    assert prompts(RECORDS) == {
        "original": [r.alt for r in RECORDS],
        "descriptive": [r.descriptive for r in RECORDS],
    }


@pytest.mark.parametrize("lacking", [[0, 1, 2], [1]])
def test_prompts_without_descriptive_captions_are_the_captioners(monkeypatch, lacking):
    records = list(RECORDS)
    for i in lacking:
        records[i] = replace(records[i], descriptive=None)
    asked = []

    def write(given: list[Record], kind: str) -> list[str]:
        asked.append((kind, [r.key for r in given]))
        return [f"written {i}" for i in range(len(given))]

    monkeypatch.setattr(prompt_kinds, "synthetic_captions", write)
    found = prompts(records)
    assert found["descriptive"] == ["written 0", "written 1", "written 2"]
    assert asked == [("dsc", [r.key for r in records])]
    assert found["original"] == [r.alt for r in records]


def test_short_and_upsampled_prompts_on_request(foundations):
    found = prompts(RECORDS, ["upsampled", "short"])
    assert list(found) == ["upsampled", "short"]
    assert found["short"] == [r.short for r in RECORDS]
    assert found["upsampled"] == upsampler.write(*upsampler.load(), found["short"], seed=0)


def test_photographs_have_no_short_prompts(foundations):
    records = [replace(r, short=None) for r in RECORDS]
    with pytest.raises(UserError, match="no short captions"):
        prompts(records, ["short"])
    upsampled = prompts(records, ["upsampled"])["upsampled"]
    assert upsampled == upsampler.write(*upsampler.load(), [r.alt for r in records], seed=0)


def test_an_unknown_kind_is_one_sentence():
    with pytest.raises(UserError, match="no descripive prompts; did you mean 'descriptive'"):
        prompts(RECORDS, ["descripive"])


def test_an_arm_is_asked_with_the_kinds_that_its_run_names(foundations, monkeypatch):
    kinds = ["short", "descriptive"]
    assert list(arm.studio(RECORDS, parameters(prompt_kinds=kinds)).states) == kinds
    assert list(arm.studio(RECORDS, parameters()).states) == list(prompt_kinds.FIGURE_4)
    given = arm.studio(RECORDS, parameters(), {"mine": ["a", "b", "c"]})
    assert given.texts == {"mine": ["a", "b", "c"]} and len(given.states["mine"]) == 3

    def score(model, on, **_):
        assert list(on.texts) == list(prompt_kinds.FIGURE_4)
        return pd.DataFrame({"score": [1.0]}), {}

    monkeypatch.setattr(arm, "score", score)  # the guidance stays what it would be without them
    arm.choose_guidance(parameters(prompt_kinds=kinds), None)


def test_chapter_04_reads_the_kinds_of_figure_4_alone(tmp_path, monkeypatch):
    """A run that was asked with further kinds looks to chapter 04 like one that was not."""
    scores = pd.DataFrame({"kind": ["original", "descriptive", "short"], "score": [1.0, 2.0, 3.0]})
    scores.to_parquet(tmp_path / "scores.parquet")
    for kind in prompt_kinds.FIGURE_4:
        np.save(tmp_path / f"pictures-{kind}.npy", np.zeros((1, 2, 2, 3), np.uint8))
    made = {"run": "x", "parameters": {"steps": 1}}
    monkeypatch.setattr(trained_arms.runs, "load", lambda _: made)
    results = {"guidance": 1.0, "training_seconds": {"processor": 60}}
    monkeypatch.setattr(trained_arms.runs, "results", lambda _: results)
    outcome = trained_arms.outcome(parameters(), "dsc-95-0", tmp_path)
    assert outcome.scores.kind.tolist() == ["original", "descriptive"]
    assert list(outcome.pictures) == ["original", "descriptive"]
