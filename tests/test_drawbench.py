"""DrawBench: the 200 prompts and their categories, verdicts by row, shares with their intervals."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dalle3lib import UserError
from dalle3lib.evals import drawbench
from dalle3lib.evals.judge import Verdict, parse
from dalle3lib.world import drawbench as of_world
from dalle3lib.world import render

NAN = float("nan")


def red_is_correct(pictures, prompts, asks):
    """A judge who likes red files and arrays, and has no opinion of the prompt "dunno"."""
    verdicts = []
    for picture, prompt in zip(pictures, prompts, strict=True):
        array = picture if isinstance(picture, np.ndarray) else np.asarray(Image.open(picture))
        score = NAN if prompt == "dunno" else float(array[0, 0, 0] == 255)
        verdicts.append(Verdict(score, f"{prompt}: {array[0, 0].tolist()} {asks and 'asked'}"))
    return verdicts


# ---- the prompts ---------------------------------------------------------------------------------


def test_the_published_prompts_and_their_categories(benchmarks):
    table = drawbench.load()
    assert len(table) == table.prompt.nunique() == 200
    assert table.category.value_counts(sort=False).to_dict() == drawbench.CATEGORIES
    assert table.prompt[0] == "A red colored car." and table.category[199] == "Text"
    other = drawbench.load(benchmarks / "dalle3-eval-samples" / "prompts")  # OpenAI's text file
    assert other.equals(table)


def test_another_set_under_the_same_name_is_refused(benchmarks, tmp_path):
    source = pd.read_csv(benchmarks / "drawbench" / "drawbench.csv", keep_default_na=False)
    path = tmp_path / "drawbench.csv"
    for change in (source[::-1], source[:-1], source.replace("A red colored car.", "A red car.")):
        change.to_csv(path, index=False)
        with pytest.raises(UserError, match="200 prompts in their order.*dalle3-eval-samples"):
            drawbench.load(tmp_path)
    source.category = source.category.where(source.index != 30, "Counting")
    source.to_csv(path, index=False)
    with pytest.raises(UserError, match=r"prompt 30 is Conflicting, not Counting \(1 such\)"):
        drawbench.load(tmp_path)
    source[["prompt"]].to_csv(path, index=False)  # no categories: the order gives them
    assert drawbench.load(tmp_path).category[30] == "Conflicting"
    path.write_text("nothing\n1\n")
    with pytest.raises(UserError, match="cannot be read as a table"):
        drawbench.load(tmp_path)


def test_without_the_prompts_their_home_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("DALLE3_BENCHMARKS", raising=False)
    with pytest.raises(UserError, match="https://github.com/openai/dalle3-eval-samples"):
        drawbench.load()
    with pytest.raises(UserError, match="drawbench.txt"):
        drawbench.load(tmp_path)


# ---- pictures and verdicts -----------------------------------------------------------------------


def test_each_prompt_has_its_pictures():
    table = drawbench.layout([("Colors", "a"), ("Text", "b")], images=3)
    assert table.columns.tolist() == ["category", "prompt", "seed", "image"]
    assert table.iloc[4].tolist() == ["Text", "b", 1, "001-1.png"]
    assert len(drawbench.layout([("Colors", "a")])) == 4
    frame = pd.DataFrame({"category": ["Colors"], "prompt": ["a"]})
    assert drawbench.layout(frame).equals(drawbench.layout([("Colors", "a")]))
    with pytest.raises(UserError, match="twice"):
        drawbench.layout([("Colors", "a"), ("Text", "a")])


def test_one_row_for_each_picture_with_its_verdict(tmp_path):
    layout = drawbench.layout([("Colors", "a"), ("Text", "dunno")], images=2)
    colours = [(255, 0, 0), (0, 255, 0), (255, 0, 0), (0, 0, 0)]
    arrays = [np.full((2, 2, 3), c, np.uint8) for c in colours]
    table = drawbench.judged(layout, arrays, red_is_correct)
    assert table.columns.tolist() == ["category", "prompt", "seed", "image", "score", "reason"]
    np.testing.assert_array_equal(table.score, [1, 0, NAN, NAN])
    assert table.reason[1] == "a: [0, 255, 0] None"
    for array, name in zip(arrays, layout.image, strict=True):
        Image.fromarray(array).save(tmp_path / name)
    assert drawbench.judged(layout, tmp_path, red_is_correct).equals(table)
    (tmp_path / "000-1.png").unlink()
    with pytest.raises(UserError, match="1 of 4 pictures are missing.*000-1.png"):
        drawbench.judged(layout, tmp_path, red_is_correct)


def test_what_a_world_prompt_asks_reaches_the_judge():
    prompts = of_world.prompts(20)
    seen = []

    def judge(pictures, said, asks):
        seen.extend(zip(said, asks, strict=True))
        return [Verdict(1.0, "")] * len(said)

    layout = drawbench.layout(prompts, images=2)
    images = [render(probe.scene) for _, probe in prompts for _ in range(2)]
    table = drawbench.judged(layout, images, judge, {p.prompt: p.ask for _, p in prompts})
    assert seen == [(p.prompt, p.ask) for _, p in prompts for _ in range(2)]
    assert table.score.eq(1).all() and len(table) == 40


# ---- shares --------------------------------------------------------------------------------------


def scored(**scores) -> pd.DataFrame:
    rows = [("A" if p < "c" else "B", p, s) for p, values in scores.items() for s in values]
    return pd.DataFrame(rows, columns=["category", "prompt", "score"])


def test_shares_by_category_and_those_without_a_verdict():
    table = scored(a=[1, 1, 1, 0], b=[0, 0, NAN, NAN], c=[1, 1, 1, 1])
    found = drawbench.summary(table)
    assert found.index.tolist() == ["A", "B", "all"]
    assert found.loc["A", ["prompts", "images", "unparsed"]].tolist() == [2, 8, 2]
    assert found.correct.tolist() == [3 / 6, 1, 7 / 10]
    assert np.isnan(found.loc["B", ["low", "high"]].astype(float)).all()  # one prompt only
    assert found.loc["A", "low"] == 0 and found.loc["A", "high"] == 0.75  # only b, or only a
    nothing = drawbench.summary(scored(a=[NAN], b=[NAN])).loc["all"]
    assert (
        nothing.unparsed == 2 and np.isnan(nothing[["correct", "low", "high"]].astype(float)).all()
    )


def test_four_equal_pictures_of_a_prompt_are_worth_one():
    right = np.random.default_rng(0).integers(0, 2, 50)
    one, four = (
        drawbench.summary(scored(**{f"p{i}": [r] * n for i, r in enumerate(right)})) for n in (1, 4)
    )
    ends = ["correct", "low", "high"]
    assert one[ends].equals(four[ends]) and np.ptp(one.loc["all", ends]) > 0.2


def test_the_papers_numbers_come_out_of_the_released_verdicts(benchmarks):
    where = benchmarks / "dalle3-eval-samples" / "drawbench" / "3" / "drawbench_results.json"
    released = {k.rpartition("/")[2]: v for k, v in json.loads(where.read_text()).items()}
    layout = drawbench.layout(drawbench.load())
    answers = [released[f"{int(name[:3])}_{name[4]}.png"] for name in layout.image]
    verdicts = [Verdict(parse(a["response"]), a["response"]) for a in answers]
    table = drawbench.judged(layout, [None] * 800, lambda *_: verdicts)
    found = drawbench.summary(table)
    assert found.loc["all", "correct"] == 563 / 800  # the paper's table: 70.4
    assert found.loc["all", ["low", "high"]].tolist() == pytest.approx([0.654, 0.753], abs=0.006)
    assert found.correct["Text"] == pytest.approx(0.810, abs=5e-4)
    assert found.correct["Rare Words"] == pytest.approx(0.357, abs=5e-4)
