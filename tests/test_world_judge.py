"""The world's judge: one question for each thing asked, correct only if every answer fits."""

import numpy as np
import pytest
from PIL import Image

from dalle3lib import UserError
from dalle3lib.evals import judge_calibration, world_judge
from dalle3lib.evals.world_judge import checks, verdict
from dalle3lib.randomness import rng
from dalle3lib.world import drawbench, questions, render, scene
from dalle3lib.world.prompts import PROBES, probe
from dalle3lib.world.questions import VALUES
from dalle3lib.world.scene import BACKGROUNDS, WORDS

RED = {"colour": "red", "shape": "circle"}
ORANGE = {"colour": "orange", "shape": "cross"}


def ask(*things, **stated):
    nothing = {"relation": None, "count": None, "word": None, "background": None}
    return {"objects": list(things), **nothing, **stated}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ask(RED), [("is there a red circle?", "yes")]),
        (
            ask(RED, ORANGE, relation=(1, "above", 0)),
            [
                ("is there a red circle?", "yes"),
                ("is there an orange cross?", "yes"),
                ("is the cross above the circle?", "yes"),
            ],
        ),
        (
            ask(RED, RED | {"colour": "blue"}, relation=(0, "left of", 1)),
            [
                ("is there a red circle?", "yes"),
                ("is there a blue circle?", "yes"),
                ("is the red circle to the left of the blue circle?", "yes"),
            ],
        ),
        (
            ask(ORANGE, ORANGE, relation=(0, "above", 1)),  # words cannot tell them apart
            [
                ("is there an orange cross?", "yes"),
                ("how many crosses are there?", "two", "three"),
                ("which shape is at the top?", "cross"),
                ("which shape is at the bottom?", "cross"),
            ],
        ),
        (
            ask(RED, RED, RED, count=3),
            [("is there a red circle?", "yes"), ("how many circles are there?", "three")],
        ),
        (
            ask(RED, word="hi", background="snow"),
            [
                ("is there a red circle?", "yes"),
                ("which word is printed?", "hi"),
                ("is the background snow?", "yes"),
            ],
        ),
        (
            ask(RED | {"size": "large", "texture": "dotted", "place": "centre"}),
            [
                ("is there a large dotted red circle?", "yes"),
                ("where is the circle?", "centre"),
            ],
        ),
        (
            ask(RED | {"place": "left"}, RED | {"place": "centre"}),
            [
                ("is there a red circle?", "yes"),
                ("how many circles are there?", "two", "three"),
                ("which shape is at the left?", "circle"),
                ("which shape is in the centre?", "circle"),
            ],
        ),
    ],
)
def test_what_is_asked_about_a_picture(wanted, expected):
    assert checks(wanted) == [(question, tuple(fitting)) for question, *fitting in expected]


def test_the_questions_are_those_that_the_judge_was_trained_on():
    values = {v for options in VALUES.values() for v in options} | {*BACKGROUNDS, *WORDS}

    def form(question: str) -> str:
        words = question.removesuffix("?").split()
        plural = {f"{s}s": "#s" for s in VALUES["shape"]} | {"crosses": "#s"}
        return " ".join(
            "#" if w in values else plural.get(w, w.replace("an", "a") if len(w) < 3 else w)
            for w in words
        )

    known = {
        form(q.text) for i in range(600) for q in questions(scene("foundation", i), rng(0, "q", i))
    }
    asked = [p for name in PROBES if name != "three" for p in probe(name, 30)]
    asked += [p for _, p in drawbench.prompts(100)]
    for found in asked:
        assert {form(question) for question, _ in checks(found.ask)} <= known, found.prompt


def test_correct_only_if_every_answer_fits():
    asked = [
        ("is there a red circle?", ("yes",)),
        ("how many circles are there?", ("two", "three")),
    ]
    assert verdict(asked, ["yes", "three"]) == (
        1.0,
        "is there a red circle? yes; how many circles are there? three",
    )
    score, reason = verdict(asked, ["yes", "one"])
    assert score == 0 and reason.endswith("how many circles are there? one (not two or three)")
    assert verdict(asked, ["no", "two"]).score == 0


def test_questions_reach_the_model_with_their_pictures(monkeypatch, tmp_path):
    def answer(model, processor, images, flat, of):
        assert images.dtype == np.uint8 and len(flat) == len(of)
        return ["yes" if images[i, 0, 0, 0] == 255 else "no" for i in of]

    monkeypatch.setattr(world_judge.vqa, "answer", answer)
    monkeypatch.setattr(world_judge, "CHUNK", 2)
    red = np.full((64, 64, 3), (255, 0, 0), np.uint8)
    Image.fromarray(red).save(tmp_path / "red.png")
    judge, both = world_judge.judge(None, None), ask(RED, ORANGE)
    verdicts = judge([red, 0 * red, tmp_path / "red.png"], ["a", "b", "c"], [both] * 3)
    assert [v.score for v in verdicts] == [1, 0, 1]
    assert verdicts[1].reason.startswith("is there a red circle? no (not yes); is there an orange")
    assert judge([], [], []) == []


def test_what_nothing_can_be_asked_about_is_refused():
    judge = world_judge.judge(None, None)
    with pytest.raises(UserError, match="1 prompts do not say .'a car'"):
        judge([np.zeros((64, 64, 3), np.uint8)], ["a car"], None)
    with pytest.raises(UserError, match="as many prompts"):
        judge([], ["a car"], None)
    sizes = [np.zeros((side, side, 3), np.uint8) for side in (64, 32)]
    with pytest.raises(UserError, match="of one size, not of 2"):
        judge(sizes, ["a", "b"], [ask(RED)] * 2)


def test_the_shipped_judge_knows_a_scene_from_one_that_differs_in_a_fact():
    cases = judge_calibration.cases([e for e in drawbench.prompts(60) if e[0] != "Text"])
    table = judge_calibration.calibrate(world_judge.load(), cases)
    assert ((table.score == 1) == table.truth).mean() > 0.9
    assert table.reason.str.contains(r"\?").all()
    alone = judge_calibration.calibrate(world_judge.load(), cases[:1])
    assert alone.iloc[0].equals(table.iloc[0])  # whatever else is judged beside it
    assert np.array_equal(judge_calibration.pictures(cases[:1])[0], render(cases[0].scene))
