"""The audit of prompt lists, on lines written by hand and on the released lists."""

from hypothesis import given
from hypothesis import strategies as st

from dalle3lib.evals import prompt_lists, published_files

LINES = ["a cat", "", "a dog", "a cat", "  ", "a cat", "A cat"]


def test_counts_by_hand():
    lines = prompt_lists.prompts("\n".join(LINES) + "\n")
    assert prompt_lists.count(lines) == {"lines": 7, "blank": 2, "distinct": 3, "repeated": 2}
    assert prompt_lists.repeated(lines).to_dict("list") == {"prompt": ["a cat"], "times": [3]}
    assert prompt_lists.prompts("a cat \r\na dog\r\n") == ["a cat", "a dog"]


def test_comparison_by_hand():
    found = prompt_lists.compare(["a", "b", "b", ""], ["a", "c", "d"])
    assert found == {"missing": ["c", "d"], "added": ["b"]}


@given(st.lists(st.sampled_from(["", "a", "b", "c"])))
def test_every_line_is_counted_once(lines):
    found = prompt_lists.count(lines)
    assert found["blank"] + found["distinct"] + found["repeated"] == found["lines"] == len(lines)
    often = prompt_lists.repeated(lines)
    assert (often.times - 1).sum() == found["repeated"]


def test_the_released_lists(benchmarks):
    released = benchmarks / "dalle3-eval-samples"
    table = prompt_lists.audit(released, benchmarks / "t2i-compbench")
    assert table.loc["8k_coco.txt", ["lines", "blank", "distinct"]].tolist() == [8213, 21, 8128]
    assert table.loc["dalle3_eval.txt", ["lines", "distinct"]].tolist() == [170, 170]
    colour = table.loc["t2i compbench/color_val.txt"]
    assert colour.tolist() == [300, 0, 295, 5, 5, 0]
    others = table[table.index.str.startswith("t2i") & (table.index != colour.name)]
    assert (others[["blank", "repeated", "missing", "added"]] == 0).all(axis=None)
    assert others.lines.sum() == 300 * 4 + 212 + 58
    assert table.missing.notna().sum() == 7
    alone = prompt_lists.audit(released)
    assert alone.missing.isna().all() and alone.lines.equals(table.lines)
    assert len(table) == sum(name.endswith(".txt") for name in published_files.RELEASED.files)
