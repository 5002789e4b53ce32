"""The judge's rules, on answers written by hand and on the released ones."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dalle3lib.evals import judge_rules, published

ANSWERS = [
    ("A red car.\n\nCorrect", True),
    ("A red car. CORRECT.", True),
    ("A blue car, not a red one.\n\n**Incorrect**.", False),
    ("The colour is correct but not the shape.\nIncorrect", False),
    ("The spelling is incorrect, the picture is not. Correct!", True),
    ("I cannot tell.", None),
    ("Correct, I think", None),
    ("", None),
    ("...", None),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_the_last_word_decides(answer, expected):
    assert judge_rules.verdict(answer) is expected


def test_other_parsers_go_wrong_where_they_must():
    answers = [answer for answer, _ in ANSWERS[:5]]
    assert [judge_rules.first_mention(answer) for answer in answers] == [
        *(True, True, False),
        *(True, False),  # both mention the other verdict first
    ]
    assert all(judge_rules.mentions_correct(answer) for answer in answers)
    assert judge_rules.first_mention("A car.") is judge_rules.mentions_correct("A car.") is None


@given(st.text(alphabet="abc \n.,", max_size=60), st.sampled_from(["Correct", "incorrect."]))
def test_whatever_is_thought_the_verdict_is_found(thought, last):
    answer = f"{thought}\n\n{last}"
    assert judge_rules.verdict(answer) is last.startswith("C")
    assert judge_rules.thinking(answer).split() == thought.split()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("A car. Correct.", [False, False, False]),
        ("word " * 49 + "Correct", [False, False, False]),
        ("word " * 50 + "Correct", [False, False, True]),  # 50 are not under 50
        ("word " * 50, [True, False, True]),
        ("Correct", [False, True, False]),
        ("", [True, True, False]),
    ],
)
def test_broken_rules_by_hand(answer, expected):
    assert list(judge_rules.broken(answer).values()) == expected


def test_the_released_field_is_the_last_word(benchmarks):
    table = published.verdicts(benchmarks / "dalle3-eval-samples")
    assert (table.answer.map(judge_rules.verdict) == table.correct).all()
    found = published.audit(table)
    original = found.xs("original", level="drawn from")
    assert (original["answers"] == 800).all()
    assert original["50 words of thinking or more"].to_dict() == {
        "DALL-E 3": 35,
        "DALL-E 2": 45,
        "SDXL": 17,
    }
    assert not found[["no verdict at the end", "no thinking before it"]].any(axis=None)
    assert not found["misread: last word, incorrect first"].any()
    # "incorrect" holds "correct", so the hasty parser misreads every "incorrect"
    wrong = (~table.correct).groupby([table.system, table["drawn from"]], sort=False).sum()
    assert found["misread: contains correct"].to_dict() == wrong.to_dict()
