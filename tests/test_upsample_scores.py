"""Kinds of prompt judged by the facts of the short one: scenes, texts, pictures, comparisons."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from dalle3lib import arm, diffusion, trained_arms, unet
from dalle3lib import upsample_scores as judged
from dalle3lib.caption_facts import parse
from dalle3lib.config import Parameters
from dalle3lib.images import stack
from dalle3lib.world import World

torch.set_num_threads(1)
RECORDS = list(World("dev", 40))


def parameters(root: Path = Path("nowhere"), **changes) -> Parameters:
    values = {"data": "world", "noise": 0.5, "seed": 0} | changes
    return Parameters("06_upsampling", "smoke", values, root=root)


# ---- scenes and prompts --------------------------------------------------------------------------


def test_scenes_of_equal_difficulty():
    equal = judged.held_out(parameters(), 12)
    harder = judged.held_out(parameters(), 12, every=False)
    assert len(equal) == len(harder) == 12
    for record in equal:
        assert len(parse(record.short).objects) == len(record.facts["objects"])
    for record in harder:
        assert len(parse(record.short).objects) == 1 and len(record.facts["objects"]) == 2
    keys = [r.key for r in equal]
    assert keys == sorted(keys) and not set(keys) & {r.key for r in harder}


def test_the_upsampler_is_asked_until_it_names_as_many_objects():
    calls = []

    def upsample(prompts, seed):
        calls.append((list(prompts), seed))
        answers = {
            "a red circle.": ["a red circle and a blue star.", "a red circle on snow."],
            "a star.": ["a large star."] * 2,
            "two moons.": ["a moon."] * judged.TRIES,
        }
        return [answers[p][min(seed, len(answers[p]) - 1)] for p in prompts]

    prompts = ["a red circle.", "a star.", "two moons."]
    texts = judged.same_objects(prompts, upsample)
    assert texts == ["a red circle on snow.", "a large star.", "a moon."]
    assert calls[:3] == [
        (prompts, 0), (["a red circle.", "two moons."], 1), (["two moons."], 2),
    ]  # fmt: skip
    assert len(calls) == judged.TRIES


# ---- pictures ------------------------------------------------------------------------------------


def on(records, texts=None) -> arm.Studio:
    texts = texts or {"short": [r.short for r in records]}
    return arm.studio(records, parameters(), texts)


def test_true_pictures_show_what_the_short_prompt_asks(foundations):
    table = judged.measure(stack(RECORDS), [r.descriptive for r in RECORDS], on(RECORDS))
    assert (table[["facts", "whole", "own facts"]].mean() > 0.99).all()
    assert table["chance"].mean() < 0.4
    wrong = judged.measure(
        stack(RECORDS[1:] + RECORDS[:1]), [r.short for r in RECORDS], on(RECORDS)
    )
    assert wrong["facts"].mean() == pytest.approx(judged.kept(
        [r.short for r in RECORDS], [r.facts for r in RECORDS[1:] + RECORDS[:1]]
    ).mean(), abs=0.02)  # fmt: skip
    assert table["own score"].notna().all() and len(table) == 40


def test_without_facts_there_are_only_clip_scores(foundations):
    bare = [replace(r, facts=None, short=None) for r in RECORDS[:3]]
    studio = on(bare, {"short": [r.alt for r in bare]})
    table = judged.measure(stack(bare), [r.alt for r in bare], studio)
    assert list(table) == ["scene", "score", "own score"]
    assert table["score"].tolist() == pytest.approx(table["own score"].tolist())
    table = table.assign(kind="short")
    assert list(judged.views(table, table)) == ["CLIP score with its own text, all scenes"]
    assert list(judged.by_kind({"DSC 95 %": table}, {"score": "S"})["short"]) == [
        "S", "S low", "S high",
    ]  # fmt: skip


def test_every_kind_starts_from_the_same_noise(foundations):
    records = RECORDS[:3]
    same = [r.descriptive for r in records]
    studio = on(records, {"short": same, "again": same, "descriptive": [r.short for r in records]})
    torch.manual_seed(0)
    model = unet.build((16, 32, 32)).eval()
    options = {"seed": 5, "steps": 2, "guidance": 2.0}
    table, pictures = judged.score(model, studio, **options)
    assert table.kind.unique().tolist() == ["short", "again", "descriptive"] and len(table) == 9
    assert np.array_equal(pictures["short"], pictures["again"])
    assert judged.gain(table, "again").tolist() == [0, 0, 0]


def test_backends_are_compared_on_the_scenes_that_all_have_texts_for(foundations):
    arms = {name: trained_arms.network(parameters(), f"{name}-0") for name in ("dsc-95", "ssc-95")}
    same = [r.short for r in RECORDS[:3]]
    texts = {"parrot": same, "two words": ["red", "blue"], "long": [RECORDS[0].descriptive] * 5}
    found = judged.backends(arms, RECORDS, texts, parameters(sampling_steps=1))
    assert list(found.index) == [f"{arm}, {kind}" for arm in arms for kind in texts]
    assert found.loc["dsc-95, parrot", "effect"] == 0  # the same text from the same noise
    assert set(found.unit) == {"% points"}
    assert judged.backends(arms, RECORDS, {}, parameters()).empty


# ---- comparisons ---------------------------------------------------------------------------------


def table(kinds: dict[str, list[float]]) -> pd.DataFrame:
    rows = [(k, i, v) for k, values in kinds.items() for i, v in enumerate(values)]
    return pd.DataFrame(rows, columns=["kind", "scene", "facts"])


def test_gains_are_paired_by_scene():
    scores = table({"upsampled": [1, 0.5, 1], "short": [0.5, 0.5, 0]})
    assert judged.gain(scores, "upsampled").tolist() == [50, 0, 100]
    shuffled = scores.sample(frac=1, random_state=1)
    assert judged.gain(shuffled, "upsampled").tolist() == [50, 0, 100]
    (entry,) = judged.gains({"A": scores}, ["upsampled"]).values()
    assert entry["effect"] == 50 and entry["interval"][0] < 50 < entry["interval"][1]
    clip = scores.rename(columns={"facts": "score"})
    assert judged.gain(clip, "upsampled").tolist() == [0.5, 0, 1]  # points, not per cent


def test_claims_by_hand():
    kinds = ["short", "upsampled", "descriptive"]
    dsc = table(dict(zip(kinds, ([0.5, 0.5], [1, 0.5], [1, 1]), strict=True)))
    original = table(dict(zip(kinds, ([0.5, 0], [0.5, 0], [0.5, 0]), strict=True)))
    lost = np.array([0, 0, 0.5, 0])
    found = judged.claims({"DSC 95 %": dsc, "original only": original}, lost)
    assert {name: entry["effect"] for name, entry in found.items()} == {
        "upsampling-keeps-what-was-asked": 12.5,
        "short-prompts-off-distribution": 50,
        "upsampling-helps-on-short-prompts": 25,
        "upsampling-helps-dsc-more-than-original": 25,
    }
    assert all(e["seeds"] == 1 and e["unit"] == "% points" for e in found.values())
    assert list(judged.claims({"SSC 95 %": dsc}, lost)) == ["upsampling-keeps-what-was-asked"]


def test_views_by_hand():
    kinds = {"short": [0.5, 0.5], "descriptive": [1.0, 0.5]}
    equal = table(kinds).assign(**{"own facts": 1.0, "own score": 30.0})
    harder = table({k: [0, 0] for k in kinds}).assign(**{"own facts": 0.0, "own score": 40.0})
    found = judged.views(equal, harder)
    assert found.loc["descriptive"].tolist() == [35, 50, 0, 75]
    assert found.loc["short"].tolist() == [35, 50, 0, 50]


# ---- what a caption is worth ---------------------------------------------------------------------


def test_what_a_caption_is_worth_by_hand(monkeypatch):
    """A network whose error is 1 without a caption and falls by a tenth with each token."""
    torch.manual_seed(0)
    model = unet.build((16, 32, 32))
    clean = torch.randn(3, 4, 8, 8)

    def predict(model, noised, t, states, mask):
        noise, _ = diffusion.noise_and_times(7, seen.pop(0), (3, 4, 8, 8))
        told = states.abs().sum((1, 2)) > 0
        lost = torch.where(told, 1 - 0.1 * mask.sum(1), torch.ones(3)).sqrt()
        return diffusion.velocity(clean, noise, t) + lost[:, None, None, None]

    seen = [0, 1] * 3
    monkeypatch.setattr(diffusion, "predict", predict)
    states = {"one": [torch.ones(1, 128)] * 3, "many": [torch.ones(n, 128) for n in (1, 2, 4)]}
    worth = judged.worth(model, clean, states, seed=7, draws=2)
    assert worth["one"] == pytest.approx([10, 10, 10], abs=1e-3)
    assert worth["many"] == pytest.approx([10, 20, 40], abs=1e-3)
