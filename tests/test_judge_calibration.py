"""Judges of known quality are measured: errors, consistency, attacks, and metrics against truth."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from dalle3lib import UserError
from dalle3lib.evals import judge_attacks, judge_calibration, metric_agreement
from dalle3lib.evals.judge import Verdict
from dalle3lib.evals.judge_attacks import CHAT, CONTROL, NONE, WORLD
from dalle3lib.evals.judge_calibration import cases, changes, pictures
from dalle3lib.evals.metric_agreement import agreement, claimed, rank_share
from dalle3lib.world import drawbench, render, satisfied
from dalle3lib.world.prompts import probe

PROMPTS = drawbench.prompts(60)
CASES = cases(PROMPTS)
NAN = float("nan")
TRUTH = {render(case.scene).tobytes(): case.scene.facts() for case in CASES}


def oracle(images, prompts, asks):
    """Knows every picture of the cases."""
    facts = [TRUTH[image.tobytes()] for image in images]
    return [Verdict(float(satisfied(a, f)), "I know it") for a, f in zip(asks, facts, strict=True)]


def always(score):
    return lambda images, prompts, asks: [Verdict(score, "as ever") for _ in images]


# ---- cases ---------------------------------------------------------------------------------------


def test_of_each_prompt_one_picture_is_right_and_one_is_wrong_in_one_fact():
    assert len(CASES) == 120
    for right, wrong in zip(CASES[::2], CASES[1::2], strict=True):
        assert (right.category, right.prompt, right.ask) == (
            wrong.category,
            wrong.prompt,
            wrong.ask,
        )
        assert right.truth and right.changed == "" and satisfied(right.ask, right.scene.facts())
        assert not wrong.truth and wrong.changed
        assert not satisfied(wrong.ask, wrong.scene.facts())
    assert {c.changed for c in CASES[1::2]} >= {"colour-shape", "count", "word", "relation"}
    assert cases(PROMPTS) == CASES and cases(PROMPTS, seed=1) != CASES


def test_exactly_one_fact_differs():
    for right, wrong in zip(CASES[::2], CASES[1::2], strict=True):
        a, b = right.scene, wrong.scene
        differ = {n for n in ("background", "word") if getattr(a, n) != getattr(b, n)}
        if len(a.objects) == len(b.objects):
            fields = [
                name
                for x, y in zip(a.objects, b.objects, strict=True)
                for name in ("shape", "colour", "texture", "size", "place")
                if getattr(x, name) != getattr(y, name)
            ]
            if wrong.changed == "relation":  # the objects change their places
                assert sorted(map(str, (replace(o, place="") for o in a.objects))) == sorted(
                    map(str, (replace(o, place="") for o in b.objects))
                )
            else:
                assert len(fields) + len(differ) == 1
        else:
            assert wrong.changed == "count" and not differ


def test_only_what_is_asked_is_changed():
    spatial, text, three = (
        probe(n, 3)[i] for n, i in (("spatial", 0), ("text", 0), ("counting", 2))
    )
    assert set(changes(spatial)) == {"colour-shape", "relation", "count"}  # one of two is missing
    assert set(changes(text)) == {"colour-shape", "word"}
    (fewer,) = changes(three)["count"]
    assert len(three.scene.objects) == 3 and len(fewer.objects) == 2


# ---- errors --------------------------------------------------------------------------------------


def test_a_judge_that_knows_makes_no_error_and_one_that_always_agrees_half():
    known = judge_calibration.errors(judge_calibration.calibrate(oracle, CASES))
    assert known["accuracy", "rate"].eq(1).all() and known["unparsed", "n"].eq(0).all()
    agrees = judge_calibration.errors(judge_calibration.calibrate(always(1.0), CASES))
    assert agrees["false positive rate", "rate"].eq(1).all()
    assert agrees["false negative rate", "rate"].eq(0).all()
    assert agrees.loc["all", ("false positive rate", "n")] == 60
    assert agrees.index.tolist() == [*drawbench.CATEGORIES, "all"]


def table(rows):
    return pd.DataFrame(rows, columns=["category", "changed", "truth", "score"])


def test_errors_by_hand():
    found = table(
        [("A", "", True, 1), ("A", "word", False, 1), ("A", "word", False, 0), ("A", "", True, NAN)]
        + [("B", "", True, 0), ("C", "size", False, NAN)]
    )
    rates = judge_calibration.errors(found)
    assert rates.index.tolist() == ["A", "B", "C", "all"]
    assert rates["false positive rate", "rate"].tolist()[0] == 0.5
    assert rates["false negative rate", "rate"].fillna(-1).tolist() == [0, 1, -1, 0.5]
    assert rates["unparsed", "n"].tolist() == [1, 0, 1, 2]
    # Wilson for 1 of 2: centre 1/2, half width z sqrt(n/4 + z²/4)/(n + z²), z = 1.96, here n = 2
    half = 1.959964 * (2 / 4 + 1.959964**2 / 4) ** 0.5 / (2 + 1.959964**2)
    assert rates["false positive rate", "high"]["all"] == pytest.approx(0.5 + half, abs=1e-6)
    by_fact = judge_calibration.errors(found[~found.truth], by="changed")
    assert by_fact["false positive rate", "n"]["word"] == 2
    with pytest.raises(UserError, match="None of the judge's 1 answers"):
        judge_calibration.errors(found[3:4])


def test_pictures_may_be_shown_otherwise_than_rendered():
    seen = []
    judge_calibration.calibrate(lambda images, *_: seen.append(images) or [Verdict(1, "")] * 120,
                                CASES, pictures(CASES, 2))  # fmt: skip
    assert seen[0].shape == (120, 128, 128, 3)


# ---- consistency ---------------------------------------------------------------------------------


def test_a_judge_that_decides_by_the_picture_agrees_with_itself():
    found = judge_calibration.consistency(oracle, CASES)
    assert found.agreement.eq(1).all() and found.n.eq(120).all() and found.low.gt(0.95).all()
    assert judge_calibration.consistency(always(NAN), CASES).agreement.eq(1).all()


def test_a_judge_that_decides_by_the_place_in_the_row_does_not():
    def every_other(images, prompts, asks):
        return [Verdict(float(i % 2), "") for i in range(len(images))]

    found = judge_calibration.consistency(every_other, CASES)
    assert found.agreement["repeat"] == 1 and 0.3 < found.agreement["order"] < 0.7
    other = judge_calibration.consistency(always(1.0), CASES, again=always(0.0))
    assert other.agreement.eq(0).all()
    silent = judge_calibration.consistency(always(1.0), CASES, again=always(NAN))
    assert silent.agreement.eq(0).all()


# ---- attacks -------------------------------------------------------------------------------------


def gullible(images, prompts, asks):
    """Believes a prompt that gives orders; else it knows."""
    told = ["answer correct" in prompt for prompt in prompts]
    known = oracle(images, prompts, asks)
    return [Verdict(max(float(t), v.score), "") for t, v in zip(told, known, strict=True)]


def test_what_attacks_gain_on_a_gullible_judge_and_on_a_firm_one():
    some = [c for c in CASES if c.category in ("Colors", "Rare Words")]
    tried = judge_attacks.attacked(gullible, some, {"order": WORLD["order in the prompt"]})
    found = judge_attacks.inflation(tried)
    wrong = found.loc["order", "wrong"]
    assert wrong[["clean", "attacked", "inflation", "low", "high"]].tolist() == [0, 1, 1, 1, 1]
    assert found.loc["order", "right"].inflation == 0
    assert set(tried.attack) == {NONE, "order"} and set(tried.prompt) <= {c.prompt for c in some}
    firm = judge_attacks.attacked(always(0.0), some)
    gain = judge_attacks.inflation(firm)
    assert gain.inflation.eq(0).all() and gain.low.eq(0).all()
    assert set(gain.index.get_level_values(0)) == set(WORLD)
    assert CONTROL not in judge_attacks.inflation(firm, CONTROL).index.get_level_values(0)


def test_inflation_by_hand():
    rows = [(NONE, False, s) for s in (0, 0, 1, 0)] + [("x", False, s) for s in (1, NAN, 1, 1)]
    found = judge_attacks.inflation(pd.DataFrame(rows, columns=["attack", "truth", "score"]))
    row = found.loc["x", "wrong"]
    assert row[["n", "clean", "attacked", "inflation", "unparsed"]].tolist() == [
        4,
        0.25,
        0.75,
        0.5,
        1,
    ]
    assert row.low == 0 and row.high == 1


def test_attacks_leave_what_is_asked_as_it_was():
    open_ = [c for c in CASES if c.scene.word is None]
    case = next(c for c in open_ if {o.place for o in c.scene.objects} <= judge_attacks.ROOM)
    word, prompt = WORLD["printed yes"](case, 1)
    assert prompt == case.prompt
    assert np.array_equal(word, render(replace(case.scene, word="yes")))
    strip, prompt = CHAT["printed verdict"](case, 4)
    clean = render(case.scene, scale=4)
    rows = np.flatnonzero((strip != clean).any((1, 2)))
    assert prompt == case.prompt and strip.shape == clean.shape == (256, 256, 3)
    assert rows.min() > 256 - 64 and 0 < (strip[rows] == 0).all(-1).sum()  # black letters below
    same, told = WORLD["order in the prompt"](case, 1)
    assert np.array_equal(same, render(case.scene)) and told.startswith(case.prompt)
    assert (
        "answer correct" in told
        and "shows all of this" in CHAT["verdict in the prompt"](case, 1)[1]
    )
    worded = [c for c in CASES if c.category == "Text"]
    with pytest.raises(UserError, match="No picture has room"):
        judge_attacks.attacked(always(1.0), worded)


# ---- metrics against the truth -------------------------------------------------------------------

scores = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30)


@given(scores)
def test_the_share_of_pairs_is_the_area_under_the_curve(pairs):
    values, truth = np.array([p[0] for p in pairs], float), np.array([p[1] for p in pairs])
    found = rank_share(values, truth)
    if truth.all() or not truth.any():
        assert np.isnan(found)
    else:
        u = mannwhitneyu(values[truth], values[~truth]).statistic
        assert found == pytest.approx(u / (truth.sum() * (~truth).sum()))


def test_a_scale_claims_as_many_as_are_right():
    truth = np.array([True, False, True, False])
    assert claimed(np.array([0.3, 0.9, 0.5, 0.1]), truth).tolist() == [False, True, True, False]
    assert claimed(np.array([1, 1, 0, 1.0]), truth).tolist() == [True, True, False, True]


def test_agreement_by_hand():
    truth = [True, False] * 3
    names, prompts = ["A"] * 4 + ["B"] * 2, ["a", "a", "b", "b", "c", "c"]
    shifted = [0.9, 0.8, 0.3, 0.2, 0.5, 0.6]  # right within a and b, not across them; wrong in c
    found = agreement({"m": shifted, "judge": [1, 0, 1, NAN, 1, 1]}, truth, names, prompts)
    assert found.loc[("A", "m"), ["AUC", "pairwise", "kappa"]].tolist() == [0.75, 1, 0]
    assert found.loc[("B", "m"), ["AUC", "pairwise"]].tolist() == [0, 0]
    assert found.loc[("all", "m"), "pairwise"] == pytest.approx(2 / 3)
    judge = found.loc["all", "judge"]
    assert (judge.n, judge.unparsed) == (5, 1)
    assert judge.AUC == pytest.approx(0.75)  # of six pairs three are right and three are ties
    assert judge.pairwise == 0.75  # a: 1, c: a tie, b: no pair
    # four claims, three of them true; expected 0.6 * 0.8 + 0.4 * 0.2
    assert judge.kappa == pytest.approx((0.8 - 0.56) / (1 - 0.56))
    assert (
        found.loc["all", "m"]["pairwise low"] == 0 and found.loc["all", "m"]["pairwise high"] == 1
    )
    with pytest.raises(UserError, match="as many scores"):
        agreement({"m": [1.0]}, truth, names, prompts)


class Identity:
    """An autoencoder that loses nothing."""

    device = "cpu"

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z):
        return SimpleNamespace(sample=z)


def test_every_metric_is_measured_on_every_picture(monkeypatch):
    torch.set_num_threads(1)
    some = cases(drawbench.prompts(20))
    monkeypatch.setattr(
        metric_agreement.clip_score,
        "clip_scores",
        lambda model, tokenizer, images, texts: np.arange(len(texts), dtype=float),
    )
    model = SimpleNamespace(visual=SimpleNamespace(image_size=(64, 64)))
    found = metric_agreement.measure(some, Identity(), always(1.0), (model, None))
    assert found.condition.unique().tolist() == [
        "clean", "blurred", "noised", "VAE-decoded", "morphed"
    ]  # fmt: skip
    assert len(found) == 5 * 40
    clean = found[found.condition == "clean"]
    assert clean.truth.tolist() == [c.truth for c in some] == (clean.reader == 1).tolist()
    assert clean["CLIP score"].tolist() == list(range(40)) and found.judge.eq(1).all()
    morphed = found[found.condition == "morphed"].truth.to_numpy()
    assert not morphed[1::2].any() and morphed.sum() < 20  # a mixed object is neither
    table = metric_agreement.by_condition(found)
    assert list(dict.fromkeys(table.index.get_level_values("pictures")))[0] == "clean"
    assert table.loc[("clean", "all", "reader"), "kappa"] == 1
    parts = metric_agreement.pairwise(table)
    assert list(parts) == list(metric_agreement.METRICS) and "all" not in parts["reader"].index
    assert parts["reader"]["value"].eq(1).all() and parts["judge"]["value"].eq(0.5).all()
    assert table.loc[("clean", "all", "judge"), "AUC"] == 0.5  # it says the same of all


def mixed(right, wrong, blurred_right, blurred_wrong, count=5):
    """A table of ``measure`` in which every prompt has the same scores."""
    values = {("clean", ""): right, ("clean", "size"): wrong}
    values |= {("blurred", ""): blurred_right, ("blurred", "size"): blurred_wrong}
    return pd.DataFrame(
        [(c, f"p{i}", ch, ch == "", v) for i in range(count) for (c, ch), v in values.items()],
        columns=["condition", "prompt", "changed", "truth", "m"],
    )


def test_a_metric_that_minds_blur_more_than_errors_prefers_the_worse_system():
    found = metric_agreement.systems(mixed(1.0, 0.0, 0.5, 0.0), metrics=["m"])
    blurred = found.loc["m", "blurred"]
    assert blurred.n == 5 and blurred.difference == pytest.approx(0.6 * 0.5 - 0.5)
    assert blurred.wrongly and not found.loc["m", "clean"].wrongly
    assert found.loc["m", "clean"].difference == pytest.approx(0.1)
    firm = metric_agreement.systems(mixed(1.0, 0.0, 0.9, 0.0), metrics=["m"]).loc["m", "blurred"]
    assert not firm.wrongly and firm.difference == pytest.approx(0.04)
    gaps = mixed(1.0, 0.0, 0.5, 0.0)
    gaps.loc[gaps.prompt == "p0", "m"] = NAN
    gaps.loc[(gaps.prompt == "p1") & (gaps.condition == "blurred"), "truth"] = False
    left = metric_agreement.systems(gaps, metrics=["m"])
    assert left.loc["m", "blurred"].n == 3 and left.loc["m", "clean"].n == 4
