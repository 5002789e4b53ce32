"""The recount of OpenAI's released verdicts: made-up answers by hand, and the released files."""

import io
import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib import UserError, claims, ledger, paths, released_prompts
from dalle3lib.evals import drawbench, judge_rules, paper_tables, published
from dalle3lib.evals import published_files as public

PROMPTS = ["a purple giraffe", "three yellow bananas", "some wooden chair", "one silver spoon"]


def answers(first: int, prompts=PROMPTS, images=4, right=lambda number, image: image < number):
    """Answers to every image of every prompt, whose numbers in file names begin at ``first``."""
    return {
        f"/root/x/{number + first}_{image}.png": {
            "correct": right(number, image),
            "response": f"It shows {prompt}.\n\n{'C' if right(number, image) else 'Inc'}orrect",
        }
        for number, prompt in enumerate(prompts)
        for image in range(images)
    }


def table(**systems) -> pd.DataFrame:
    """Answers of systems in the form of ``verdicts``."""
    found = [
        published.attach(some, PROMPTS).assign(**{"system": name, "drawn from": "original"})
        for name, some in systems.items()
    ]
    return pd.concat(found)


@pytest.fixture(scope="module")
def released(benchmarks):
    return benchmarks / "dalle3-eval-samples"


@pytest.fixture(scope="module")
def found(released) -> pd.DataFrame:
    return published.verdicts(released)


@pytest.fixture(scope="module")
def right(found) -> pd.DataFrame:
    return published.by_prompt(found)


# --- joining answers with prompts ----------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1])
def test_both_ways_to_count_end_at_the_same_prompts(first):
    made = published.attach(answers(first), PROMPTS)
    assert made.number.tolist() == np.repeat([0, 1, 2, 3], 4).tolist()
    assert made.prompt.tolist() == np.repeat(PROMPTS, 4).tolist()
    assert made.correct.tolist() == [i < n for n in range(4) for i in range(4)]
    assert all(row.prompt in row.answer for row in made.itertuples())


@pytest.mark.parametrize("first", [-1, 2])
def test_any_other_number_of_the_first_prompt_is_an_error(first):
    some = {name.replace("/-1_", "/9_"): entry for name, entry in answers(first).items()}
    with pytest.raises(UserError, match=r"neither .* counted from 0 .* nor from 1"):
        published.attach(some, PROMPTS)


def test_another_list_of_prompts_is_an_error():
    for wrong in (PROMPTS[1:], PROMPTS[::-1], ["nothing like it"] * 4):
        with pytest.raises(UserError, match="is this the right list of prompts"):
            published.attach(answers(0), wrong)


def test_an_odd_file_name_is_named():
    with pytest.raises(UserError, match="x/cat.png"):
        published.attach({"x/cat.png": {"correct": True, "response": "Correct"}}, PROMPTS)


def test_systems_are_joined_by_prompt_and_a_gap_is_an_error():
    counts = published.by_prompt(table(**{"DALL-E 3": answers(0), "DALL-E 2": answers(1)}))
    assert list(counts) == ["DALL-E 3", "DALL-E 2"]
    assert counts["DALL-E 3"].tolist() == counts["DALL-E 2"].tolist() == [0, 1, 2, 3]
    assert counts.index.get_level_values("prompt").tolist() == PROMPTS
    made = table(**{"DALL-E 3": answers(0), "DALL-E 2": answers(1)})
    with pytest.raises(UserError, match=r"Prompt 3 \('one silver spoon'\) lacks answers"):
        published.by_prompt(made.iloc[:-1])
    other = made.assign(prompt=made.prompt.where(made.number != 2, made.prompt + made.system))
    with pytest.raises(UserError, match="Prompt 2"):  # the number alone is not enough
        published.by_prompt(other)


def test_the_released_answers_find_their_prompts(released, found):
    assert len(found) == 2415
    assert found[found["drawn from"] == "upsampled"].system.unique().tolist() == ["SDXL"]
    skittles = found[found.prompt == "some skittles"]
    assert set(skittles.number) == {153}
    assert skittles.answer.str.contains("kittles").sum() >= 0.8 * len(skittles)
    numbering = published.numbering(released)
    assert numbering.loc["DALL-E 2, original prompts", ["lowest", "highest"]].tolist() == [1, 200]
    words = numbering[["words found, first is 0", "words found, first is 1"]].to_numpy()
    assert words.argmax(axis=1).tolist() == [0, 1, 0, 0]
    assert (words.max(axis=1) > 3 * words.min(axis=1)).all()


def test_renumbered_answers_of_the_release_are_refused(released):
    prompts = public.read(released, published.PROMPTS).splitlines()
    some = json.loads(public.read(released, published.ANSWERS["SDXL", "upsampled"]))
    moved = {}
    for name, entry in some.items():
        number, image = name.rpartition("/")[2].split("_")
        moved[f"/root/{int(number) + 5}_{image}"] = entry
    assert len(published.attach(some, prompts)) == 15
    with pytest.raises(UserError, match="fit the prompts neither"):
        published.attach(moved, prompts)


# --- counting ------------------------------------------------------------------------------------


def test_a_summary_by_hand():
    counts = pd.DataFrame({"a": [0, 4, 2, 2], "b": [4, 4, 4, 4]})
    made = published.summarise(counts)
    assert made.loc["a", ["prompts", "verdicts", "correct"]].tolist() == [4, 16, 8]
    assert made.share.tolist() == [50, 100] and made.mixed.tolist() == [50, 0]
    # prompt means 0, 1, .5, .5 have variance 1/6, so their mean 1/24; one verdict has 1/4
    assert made.worth["a"] == pytest.approx(6)
    assert made.loc["b", ["low", "high"]].tolist() == [100, 100] and np.isnan(made.worth["b"])


def test_answers_that_agree_within_a_prompt_are_worth_a_quarter():
    counts = pd.DataFrame({"a": np.repeat([0, 4], 100)})
    made = published.summarise(counts).loc["a"]
    assert made.worth == pytest.approx(200, rel=0.01)  # 800 verdicts, but 200 prompts
    assert made.high - made.low == pytest.approx(2 * (made["alone high"] - made["alone low"]), 0.1)


def test_differences_by_hand():
    counts = pd.DataFrame({"DALL-E 3": [4, 4, 3], "DALL-E 2": [2, 4, 0], "SDXL": [2, 4, 1]})
    made = published.differences(counts)
    first = made["DALL-E 3 over DALL-E 2"]
    assert first["effect"] == pytest.approx((50 + 0 + 75) / 3)
    assert first["p"] == 1 / 4  # of the signs of 2, 0 and 3 only + + reaches 5
    assert (first["seeds"], first["unit"], first["prompts"]) == (0, "% points", 3)
    assert made["DALL-E 2 over SDXL"]["effect"] == pytest.approx(-25 / 3)
    assert made["DALL-E 2 over SDXL"]["p"] == 1


@given(st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=2, max_size=8))
def test_the_third_difference_follows_from_the_others(rows):
    counts = pd.DataFrame(rows, columns=list(published.SYSTEMS))
    one, two, three = (entry["effect"] for entry in published.differences(counts).values())
    assert two - one == pytest.approx(three)


def test_table_1_is_recounted(released):
    made = published.recount(released)
    assert made.share.to_dict() == {"DALL-E 3": 70.375, "DALL-E 2": 49.0, "SDXL": 46.875}
    assert made.correct.tolist() == [563, 392, 375] and (made.verdicts == 800).all()
    assert (made.share.sub(made.printed).abs() <= 0.05).all()
    assert ((made.low < made["alone low"]) & (made.high > made["alone high"])).all()
    assert made.mixed.between(40, 50).all()
    assert published.recount(released).equals(made)


def test_categories_add_up_to_the_row_and_agree_with_the_table_of_numbers(right):
    numbers = pd.read_csv(paths.ROOT / "data" / "paper.csv", index_col="id").value
    slugs = [name[10:-8] for name in numbers.index if re.fullmatch("drawbench-.+-prompts", name)]
    for name, short in {"DALL-E 3": "dalle3", "DALL-E 2": "dalle2", "SDXL": "sdxl"}.items():
        made = published.by_category(right)[name]
        parts = made.drop("all")
        assert parts.prompts.tolist() == list(drawbench.CATEGORIES.values())
        assert parts.correct.sum() == made.correct["all"] == right[name].sum()
        assert parts.correct.tolist() == [
            numbers[f"recount-drawbench-{slug}-{short}"] for slug in slugs
        ]


def test_the_differences_of_the_release(right):
    made = published.differences(right)
    effects = [round(entry["effect"], 3) for entry in made.values()]
    assert effects == [21.375, 23.5, 2.125]
    low, high = made["DALL-E 2 over SDXL"]["interval"]
    assert low < 0 < high


def test_fifteen_verdicts_are_all_there_is_of_the_upsampled_row(found):
    some = found[found["drawn from"] == "upsampled"]
    assert (len(some), some.correct.sum()) == (15, 14)
    assert some.answer.map(judge_rules.verdict).tolist() == some.correct.tolist()


# --- from the count to the ledger ----------------------------------------------------------------


def test_the_claims_of_the_family_and_no_others_get_evidence(released, right):
    known = {claim.id: claim for claim in claims.load()}
    made = published.claims(published.recount(released), published.differences(right))
    assert set(made) == {name for name, c in known.items() if c.family == "table-1-recount"}
    for name, entry in made.items():
        assert ledger._problem(known[name], entry, "11_released_verdicts") is None


def test_printed_tables_hold_the_papers_cells():
    made = paper_tables.printed("Table 1")
    assert made.shape == (6, 3) and made.notna().all(axis=None)
    assert made.loc[published.ROW].to_dict() == {"DALL-E 2": 49.0, "DALL-E 3": 70.4, "SDXL": 46.9}
    assert paper_tables.printed("Table 2").shape == (4, 4)


def test_win_rates_are_those_of_the_table_of_numbers():
    made = paper_tables.win_rates(paper_tables.printed("Table 2")).value
    numbers = pd.read_csv(paths.ROOT / "data" / "paper.csv", index_col="id").value
    assert len(made) == 4 * 3
    for label, name in {
        "prompt following: DALL-E 3 over Midjourney 5.2": "following-dalle3-beats-midjourney",
        "style: DALL-E 3 over SDXL": "style-dalle3-beats-sdxl",
        "coherence: DALL-E 3 over Midjourney 5.2": "coherence-dalle3-beats-midjourney",
        "DrawBench: DALL-E 3 over DALL-E 2": "drawbench-dalle3-beats-dalle2",
    }.items():
        assert made[label] == pytest.approx(numbers[f"table2-{name}"], abs=0.05)
    assert (made > 50).all()  # the higher rating stands first


def test_only_differences_of_elo_count():
    ratings = paper_tables.printed("Table 2")
    moved = paper_tables.win_rates(ratings + 1000)
    pd.testing.assert_frame_equal(paper_tables.win_rates(ratings), moved)


def test_verdicts_as_win_rates_by_hand():
    """Two of four right against one of four: of 16 pairs 6 are won, 2 lost and 8 tied."""
    counts = pd.DataFrame({"DALL-E 3": [2, 2], "DALL-E 2": [1, 1], "SDXL": [2, 2]})
    made = published.judged_win_rates(published.differences(counts))
    assert made.value["DrawBench: DALL-E 3 over DALL-E 2"] == 100 * (6 + 8 / 2) / 16
    assert made.value["DrawBench: SDXL over DALL-E 2"] == 62.5
    assert made.loc["DrawBench: DALL-E 2 over SDXL"].tolist() == [37.5] * 3
    assert (made.low <= made.value).all() and (made.value <= made.high).all()


# --- the files -----------------------------------------------------------------------------------


def test_a_folder_is_found_named_or_fetched(tmp_path, monkeypatch, runs_root):
    monkeypatch.delenv("DALLE3_BENCHMARKS", raising=False)
    assert public.folder("benchmarks") is None
    monkeypatch.setenv("DALLE3_BENCHMARKS", str(tmp_path))
    assert public.folder("benchmarks") is None
    for name in public.RELEASED.files:
        file = tmp_path / "dalle3-eval-samples" / name.replace("t2i comp", "t2i_comp")
        file.parent.mkdir(parents=True, exist_ok=True)
        assert public.folder("benchmarks") is None  # the prompts alone, say, are not enough
        file.touch()
    assert public.folder("benchmarks") == tmp_path / "dalle3-eval-samples"
    assert public.folder(str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="No folder 'nowhere'.*dalle3-eval-samples.*'download'"):
        public.folder("nowhere")
    asked = []
    monkeypatch.setattr(released_prompts, "download", lambda file, path: asked.append(path))
    assert public.folder("download").is_relative_to(runs_root)
    assert len(asked) == len(public.RELEASED.files)


def test_the_public_addresses_are_pinned_and_quoted():
    name = "prompts/t2i compbench/color_val.txt"
    assert public.RELEASED.files[name].url == (
        "https://raw.githubusercontent.com/openai/dalle3-eval-samples/"
        "d7c88c07b492ad7b9fd3003126d00719a2edabb1/prompts/t2i%20compbench/color_val.txt"
    )
    for collection in (public.RELEASED, public.COMPBENCH):
        for file in collection.files.values():
            assert " " not in file.url and len(file.sha256) == 64 and file.size > 0
    # both modules pin two of the files
    for file in (released_prompts.ORIGINAL, released_prompts.UPSAMPLED):
        assert file in public.RELEASED.files.values()


def test_what_is_fetched_is_what_is_read(released, tmp_path, monkeypatch):
    """From the public layout, with the space in a folder's name, as from the renamed copy."""
    asked = []

    def served(url, timeout):
        asked.append(url)
        name = url.split("d7c88c07b492ad7b9fd3003126d00719a2edabb1/")[1].replace("%20", "_")
        return io.BytesIO((released / name).read_bytes())

    monkeypatch.setattr(released_prompts.urllib.request, "urlopen", served)
    where = public.fetch(tmp_path / "fetched")
    assert (where / "prompts" / "t2i compbench" / "color_val.txt").is_file()
    assert len(asked) == len(public.RELEASED.files)
    for name, file in public.RELEASED.files.items():
        assert public.read(where, name) == public.read(released, name)
        assert (where / name).stat().st_size == file.size
    (where / published.PROMPTS).write_text("A dog.\n")
    with pytest.raises(UserError, match=r"drawbench.txt is missing or altered"):
        published.verdicts(where)
    public.fetch(where)
    assert len(asked) == len(public.RELEASED.files) + 1  # the altered one alone comes again


def test_missing_altered_and_unknown_files_are_named(released, tmp_path):
    with pytest.raises(UserError, match="drawbench.txt is missing or altered.*12,977 bytes"):
        published.verdicts(tmp_path)
    with pytest.raises(UserError, match="did you mean 'prompts/drawbench.txt'"):
        public.read(released, "prompts/drawbnch.txt")
    copy = shutil.copytree(released / "drawbench", tmp_path / "drawbench")
    (tmp_path / "prompts").mkdir()
    shutil.copy(released / "prompts" / "drawbench.txt", tmp_path / "prompts")
    file = copy / "3" / "drawbench_results.json"
    file.write_text(file.read_text().replace("false", "true ", 1))
    with pytest.raises(UserError, match="3/drawbench_results.json is missing or altered"):
        published.recount(tmp_path)
