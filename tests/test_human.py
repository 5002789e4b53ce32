"""What raters are shown: blind, balanced, the same whenever it is asked; what is read for it."""

import json
from collections import Counter
from itertools import combinations

import numpy as np
import pandas as pd
import pytest
import tiny_study
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle3lib import UserError, human, human_samples, human_study
from dalle3lib.human_samples import from_arrays, pixels


@pytest.fixture(scope="module")
def plan(tmp_path_factory) -> human.Plan:
    return tiny_study.make(tmp_path_factory.mktemp("human") / "study")


def drawn_by(trial: human.Trial, plan: human.Plan) -> tuple[str, str]:
    """Who drew what is shown left and right, told by the pixels alone."""
    found = []
    for name in (trial.left, trial.right):
        shown = pixels(plan.folder / "images" / name)
        for system in tiny_study.SYSTEMS:
            pictures = tiny_study.samples(system).pictures.values()
            found += [system for picture in pictures if np.array_equal(shown, picture)]
    return tuple(found)


# ---- the plan ------------------------------------------------------------------------------------


def test_every_pair_of_systems_is_compared_on_every_prompt(plan):
    rows = Counter((r["question"], r["prompt"], *sorted(plan.key[r["id"]])) for r in plan.pairs)
    prompts = [f"{i:05d}" for i in range(tiny_study.PROMPTS)]
    pairs = combinations(tiny_study.SYSTEMS, 2)
    assert rows == Counter((q, n, *two) for two in pairs for n in prompts for q in human.QUESTIONS)
    assert plan.systems == list(tiny_study.SYSTEMS) and plan.questions == list(human.QUESTIONS)


def test_the_key_says_who_drew_what(plan):
    for trial in human.trials(plan, 0):
        if trial.role != "check":
            assert plan.sides(trial) == drawn_by(trial, plan)


def test_a_check_shows_a_picture_and_its_own_pixels_in_another_order(plan):
    checks = [t for rater in range(4) for t in human.trials(plan, rater) if t.role == "check"]
    assert {plan.expected(t) for t in checks} == {"left", "right"}
    for trial in checks:
        names = {"left": trial.left, "right": trial.right}
        right = names.pop(plan.expected(trial))
        (wrong,) = names.values()
        one, two = (pixels(plan.folder / "images" / n).reshape(-1, 3) for n in (right, wrong))
        assert not np.array_equal(one, two)
        assert sorted(map(tuple, one)) == sorted(map(tuple, two))


def test_with_true_pictures_a_check_of_prompt_following_asks_for_the_right_one(tmp_path):
    true = tiny_study.samples("truth")
    plan = tiny_study.make(tmp_path, references=true)
    for row in plan.checks:
        kinds = dict(zip(plan.key[row["id"]], row["images"], strict=True))
        if row["question"] == "prompt following":
            shown = pixels(tmp_path / "images" / kinds["true picture"])
            assert np.array_equal(shown, true.pictures[row["prompt"]])
            other = pixels(tmp_path / "images" / kinds[human.OTHER])
            assert any(np.array_equal(other, p) for p in true.pictures.values())
        else:
            assert human.SCRAMBLED in kinds
    with pytest.raises(UserError, match="no true picture of prompt"):
        few = tiny_study.samples("truth", prompts=2)
        tiny_study.make(tmp_path / "few", references=few, checks=8)


def test_a_plan_is_the_same_bytes_for_the_same_seed(plan, tmp_path):
    def content(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    again = tiny_study.make(tmp_path / "again")
    assert content(again.folder) == content(plan.folder)
    other = tiny_study.make(tmp_path / "other", seed=1)
    assert other.digest != plan.digest
    assert not {p.name for p in (other.folder / "images").iterdir()} & plan.images


def test_what_a_rater_sees_names_no_system_and_no_role(plan):
    shown = [trial.shown() for rater in range(3) for trial in human.trials(plan, rater)]
    assert {key for one in shown for key in one} == {
        *("id", "question", "ask", "hint", "caption", "left", "right"),
    }
    told = json.dumps(shown)
    assert not any(word in told for word in (*tiny_study.SYSTEMS, *human.ROLES, "scrambled"))
    for one in shown:
        assert (one["caption"] is None) == (one["question"] != "prompt following")
    public = (plan.folder / "plan.json").read_text()
    assert not any(system in public for system in tiny_study.SYSTEMS)


# ---- who sees what -------------------------------------------------------------------------------


def test_a_rater_gets_what_the_plan_promises(plan):
    for rater in range(9):
        shown = human.trials(plan, rater)
        assert Counter(t.role for t in shown) == {"main": 12, "check": 3, "repeat": 3}
        assert len({t.id for t in shown}) == len(shown)
        assert Counter(t.question for t in shown if t.role == "main") == dict.fromkeys(
            human.QUESTIONS, 4
        )
        blocks = [t.question for t in shown]
        assert sum(a != b for a, b in zip(blocks, blocks[1:], strict=False)) == 2


def test_each_question_gets_its_share_of_repeats(tmp_path):
    plan = tiny_study.make(tmp_path, trials=18, repeats=4)
    shown = [t for rater in range(3) for t in human.trials(plan, rater) if t.role == "repeat"]
    assert Counter(t.question for t in shown) == dict.fromkeys(human.QUESTIONS, 4)


def test_a_repeat_is_an_earlier_pair_with_sides_swapped(plan):
    for rater in range(9):
        seen = {}
        for trial in human.trials(plan, rater):
            if trial.role == "repeat":
                before = seen[trial.pair]
                assert (trial.left, trial.right) == (before.right, before.left)
            seen[trial.pair] = trial


@settings(max_examples=20)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 5))
def test_raters_take_turns_and_sides_balance(plan, raters, trials, seed):
    """Whatever the number of raters: each pair is shown equally often, within one, and no side of
    a pair more than once more than the other; within a rater, a system stands left as often as
    right, give or take one for each pair of systems and question."""
    numbers = {"main": min(trials, len(plan.pairs)), "check": 0, "repeat": 0}
    values = vars(plan) | {"per_rater": numbers, "seed": seed}
    names = human.Plan.__dataclass_fields__
    some = human.Plan(**{name: values[name] for name in names})
    shown = [trial for rater in range(raters) for trial in human.trials(some, rater)]
    times = Counter({row["id"]: 0 for row in some.pairs})
    times.update(trial.pair for trial in shown)
    assert max(times.values()) - min(times.values()) <= 1
    flips = Counter((t.pair, t.flipped) for t in shown)
    assert all(abs(flips[p, True] - flips[p, False]) <= 1 for p in times)
    left = Counter((t.question, some.sides(t)) for t in human.trials(some, 0))
    for (question, (a, b)), count in left.items():
        assert abs(count - left[question, (b, a)]) <= 1


def test_raters_have_an_order_of_their_own(plan):
    everything = human_study.human.trials
    orders = {tuple(t.pair for t in everything(plan, rater)) for rater in range(6)}
    assert len(orders) == 6
    again = human.load(plan.folder)
    assert human.trials(again, 5) == human.trials(plan, 5)
    with pytest.raises(UserError, match="numbered from 0"):
        human.trials(plan, -1)


# ---- mistakes ------------------------------------------------------------------------------------


def test_prompts_that_not_all_systems_have_are_counted(tmp_path):
    some = tiny_study.systems(("alpha",)) | tiny_study.systems(("beta",), prompts=5)
    some["beta"].pop("coherence")
    plan = human_study.make(tmp_path, some, seed=0)
    assert plan.questions == ["prompt following", "style"]
    assert plan.left_out == [
        "prompt following: 3 prompts that not every system has drawn",
        "style: 3 prompts that not every system has drawn",
        "coherence is not asked: nothing to ask about beta",
    ]
    assert {row["prompt"] for row in plan.pairs} == {f"{i:05d}" for i in range(5)}


def test_mistakes_in_one_sentence(plan, tmp_path):
    two = tiny_study.systems(("alpha", "beta"))
    with pytest.raises(UserError, match="holds a study already"):
        human_study.make(plan.folder, two, seed=0)
    with pytest.raises(UserError, match="two or more systems"):
        human_study.make(tmp_path, tiny_study.systems(("alpha",)), seed=0)
    for wrong in ({"trials": 0}, {"size": 0}):
        with pytest.raises(UserError, match="must be 1 or more"):
            human_study.make(tmp_path, two, seed=0, **wrong)
    other = from_arrays(np.zeros((8, 4, 4, 3), np.uint8), list("abcdefgh"))
    with pytest.raises(UserError, match="different captions for 0000"):
        human_study.make(tmp_path, two | {"c": {"prompt following": other}}, seed=0)
    with pytest.raises(UserError, match="choose a size for all"):
        human_study.make(tmp_path, {"a": two["alpha"], "c": {"style": other}}, seed=0)
    plan = human_study.make(tmp_path, {"a": two["alpha"], "c": {"style": other}}, seed=0, size=16)
    assert pixels(tmp_path / "images" / min(plan.images)).shape == (16, 16, 3)
    renamed = human_samples.Samples({"x": other.pictures["00000"]}, {})
    with pytest.raises(UserError, match="no prompt in common"):
        human_study.make(tmp_path / "x", two | {"c": {"style": renamed}}, seed=0)
    with pytest.raises(UserError, match="holds no study"):
        human.load(tmp_path / "nowhere")


# ---- reading samples -----------------------------------------------------------------------------


def write_folder(folder, names=("b/two.png", "one.JPG"), **files):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (i * 200, 0, 0)).save(folder / name)
    for name, text in files.items():
        told = text if isinstance(text, bytes) else text.encode()
        (folder / name.replace("_", ".")).write_bytes(told)
    return folder


def test_a_folder_without_captions_serves_the_questions_that_show_none(tmp_path):
    found = human_samples.read(write_folder(tmp_path))
    assert list(found) == ["style", "coherence"]
    assert list(found["style"].pictures) == ["b/two", "one"]
    assert pixels(found["style"].pictures["b/two"]).shape == (4, 6, 3)
    assert pixels(found["style"].pictures["one"], 2).shape == (2, 2, 3)


@pytest.mark.parametrize(
    "files",
    [
        {"prompts_txt": "two things\none thing\n"},
        {"metadata_csv": 'file_name,text\none.JPG,one thing\nb/two.png,"two things"\n'},
        {
            "metadata_jsonl": '{"file_name": "one.JPG", "prompt": " one thing"}\n\n'
            '{"file_name": "b/two.png", "prompt": "two things"}'
        },
    ],
)
def test_captions_of_a_folder(tmp_path, files):
    found = human_samples.read(write_folder(tmp_path, **files))
    assert list(found) == list(human.QUESTIONS)
    assert found["style"].captions == {"b/two": "two things", "one": "one thing"}


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"prompts_txt": "one line\n"}, "1 lines for 2 images"),
        ({"prompts_txt": "zwei Dinge, schön\nein Ding\n".encode("latin-1")}, "is not UTF-8"),
        ({"metadata_csv": "file_name,text\none.JPG,one thing\n"}, "1 images have no caption"),
        ({"metadata_csv": "file_name,size\none.JPG,4\n"}, "no column text"),
        ({"metadata_jsonl": "{"}, "cannot be read"),
        ({"names": ("one.png", "one.jpg")}, "two images called one"),
        ({"names": ()}, "holds no images"),
    ],
)
def test_a_folder_with_a_mistake(tmp_path, files, complaint):
    with pytest.raises(UserError, match=complaint):
        human_samples.read(write_folder(tmp_path, **files))


def test_a_run_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no folder .*dsc-95-0: give a run, or a folder"):
        human_samples.read(tmp_path / "dsc-95-0")


def test_the_last_pictures_of_a_run(tmp_path, monkeypatch):
    """A run's table also holds the scores of earlier steps, which have no pictures."""
    monkeypatch.setattr(human_samples.runs, "load", lambda path: {"run": path})
    kinds, captions = ("original", "descriptive"), ["a circle", "a star"]
    rows = [
        {"kind": kind, "prompt": f"{kind} {said}", "score": 1.0, "step": step}
        for step in (10, 20)
        for kind in kinds
        for said in captions
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "scores.parquet")
    (tmp_path / "manifest.json").write_text("{}")
    for value, kind in enumerate(kinds):
        np.save(tmp_path / f"pictures-{kind}.npy", np.full((2, 8, 8, 3), value, np.uint8))
    found = human_samples.read(tmp_path)
    assert found["coherence"].captions == {"00000": "original a circle", "00001": "original a star"}
    assert found["style"].captions["00001"] == "descriptive a star"
    assert found["style"].pictures["00001"].max() == 1
    (tmp_path / "pictures-original.npy").unlink()
    with pytest.raises(UserError, match="no pictures to compare"):
        human_samples.read(tmp_path)


def test_two_systems_need_two_names(tmp_path):
    for name in ("x/same", "y/same", "y/other"):
        write_folder(tmp_path / name)
    found = human_samples.read_all([tmp_path / "x/same", tmp_path / "y/other"])
    assert list(found) == ["same", "other"]
    with pytest.raises(UserError, match="Two systems are called 'same'"):
        human_samples.read_all([tmp_path / "x/same", tmp_path / "y/same"])


def test_pictures_are_blind_and_bare(tmp_path):
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    name = human_samples.save_blinded(image, tmp_path, "1")
    assert name == human_samples.save_blinded(image, tmp_path, "1")
    assert name != human_samples.save_blinded(image, tmp_path, "2")
    assert np.array_equal(pixels(tmp_path / name), image)
    with Image.open(tmp_path / name) as file:
        assert not file.info
    (tmp_path / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="replace it"):
        pixels(tmp_path / "bad.png")
