"""Claims that are well formed, the paper's numbers, and verdicts by hand."""

import csv
import dataclasses
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import UserError, claims, paths

CLAIMS = {claim.id: claim for claim in claims.load()}
GREATER = CLAIMS["dsc-over-original-on-descriptive-prompts"]  # points, smallest effect 0.5
GREATER = dataclasses.replace(GREATER, frozen=None)
EQUAL = CLAIMS["short-prompts-score-like-original-prompts"]  # the same, as an equality
with (paths.ROOT / "data" / "paper.csv").open(encoding="utf-8", newline="") as file:
    PAPER = {row["id"]: row for row in csv.DictReader(file)}


def value(name):
    return float(PAPER[name]["value"])


# --- the paper's numbers -------------------------------------------------------------------------


def test_papers_numbers_are_numbers_and_say_where_they_come_from():
    marks = ("printed", "axis", "implied", "recomputed", "released", "counted")
    for row in PAPER.values():
        assert row["note"].startswith(marks), row["id"]
        assert all(row.values()) and float(row["value"]) == value(row["id"])
        assert re.fullmatch(r"[a-z0-9-]+", row["id"])


@pytest.mark.parametrize("system", ["dalle3", "dalle2", "sdxl"])
def test_recounted_drawbench_agrees_with_itself_and_with_table_1(system):
    total = value(f"recount-drawbench-{system}-correct")
    slugs = [name[10:-8] for name in PAPER if re.fullmatch(r"drawbench-.+-prompts", name)]
    assert sum(value(f"recount-drawbench-{slug}-{system}") for slug in slugs) == total
    assert sum(value(f"drawbench-{slug}-prompts") for slug in slugs) == 200
    assert value(f"recount-drawbench-{system}") == total / 8
    assert abs(value(f"table1-drawbench-{system}") - total / 8) <= 0.05


def test_win_rates_follow_from_elo():
    pairs = [re.fullmatch(r"table2-(.+)-dalle3-beats-(.+)", name) for name in PAPER]
    for row, other in [match.groups() for match in pairs if match]:
        gap = value(f"table2-{row}-dalle3") - value(f"table2-{row}-{other}")
        rate = 100 / (1 + 10 ** (-gap / 400))
        assert value(f"table2-{row}-dalle3-beats-{other}") == pytest.approx(rate, abs=0.05)


def test_every_number_a_claim_quotes_from_the_paper_is_in_the_table():
    known = {float(row["value"]) for row in PAPER.values()}
    for claim in CLAIMS.values():
        for number in re.findall(r"-?\d+\.?\d*", claim.paper):
            assert float(number) in known, claim.id


# --- the claims file -----------------------------------------------------------------------------


def test_chapters_of_this_repository_are_known_to_the_claims():
    document = yaml.safe_load((paths.ROOT / "data" / "claims.yaml").read_text())
    stems = {path.stem for path in (paths.ROOT / "notebooks").glob("*.ipynb")}
    assert stems <= set(document["chapters"])


def test_claims_cover_the_papers_parts_and_what_we_add():
    sections = " ".join(claim.section for claim in CLAIMS.values())
    for part in (
        "§2",
        "§3.1",
        "§3.3",
        "§3.4",
        "§3.5",
        "§4",
        "§4.1",
        "§4.2",
        "§5.1",
        "§5.2",
        "§5.3",
    ):
        assert part in sections
    assert "App. B" in sections
    assert {claim.source for claim in CLAIMS.values()} == set(claims.SOURCES)
    trained = [claim for claim in CLAIMS.values() if claim.min_seeds]
    assert all(claim.min_seeds >= 10 for claim in trained)


def written(tmp_path, change):
    """A small claims file after a change to its document."""
    entry = dataclasses.asdict(GREATER)
    document = {
        "chapters": {"04_caption_kind": "caption kind"},
        "families": {"caption-kind": "arms", "another": "more"},
        "claims": [entry, {**entry, "id": "second", "family": "another"}],
    }
    change(document)
    path = tmp_path / "claims.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_a_small_file_loads(tmp_path):
    first, second = claims.load(written(tmp_path, lambda document: None))
    assert first == GREATER and second.id == "second"


@pytest.mark.parametrize(
    ("field", "wrong", "message"),
    [
        ("direction", "higher", "unknown direction 'higher'"),
        ("source", "papers", "did you mean 'paper'"),
        ("chapter", "04_caption_kid", "did you mean '04_caption_kind'"),
        ("family", "anoter", "did you mean 'another'"),
        ("smallest_effect", "half", "must be float"),
        ("smallest_effect", -1, "negative"),
        ("smallest_effect", float("nan"), "negative"),
        ("min_seeds", True, "must be int"),
        ("min_seeds", 2.5, "must be int"),
        ("needs", " ", "must be str"),
        ("frozen", "0" * 64, "changed after it was frozen"),
        ("colour", "red", "unknown field 'colour'"),
    ],
)
def test_a_wrong_field_is_an_error_that_names_the_claim(tmp_path, field, wrong, message):
    path = written(tmp_path, lambda document: document["claims"][1].update({field: wrong}))
    with pytest.raises(UserError, match="second.*" + message):
        claims.load(path)


def test_a_missing_field_is_an_error_that_names_the_claim(tmp_path):
    path = written(tmp_path, lambda document: document["claims"][1].pop("unit"))
    with pytest.raises(UserError, match="'second' has no field 'unit'"):
        claims.load(path)


@pytest.mark.parametrize("name", ["Second", "second_", "two words", "-a"])
def test_an_id_is_kebab_case(tmp_path, name):
    path = written(tmp_path, lambda document: document["claims"][1].update(id=name))
    with pytest.raises(UserError, match=name):
        claims.load(path)


def test_an_id_is_used_once(tmp_path):
    path = written(tmp_path, lambda document: document["claims"][1].update(id=GREATER.id))
    with pytest.raises(UserError, match=f"{GREATER.id}' is there 2 times"):
        claims.load(path)


def test_a_family_has_at_most_six_claims(tmp_path):
    def grow(document):
        entry = document["claims"].pop()
        document["claims"] += [{**entry, "id": f"more-{i}"} for i in range(7)]

    with pytest.raises(UserError, match="'more-6' makes family 'another' 7 claims"):
        claims.load(written(tmp_path, grow))


@pytest.mark.parametrize("text", ["", "claims: [1", "claims: []", "- a", "claims: 3"])
def test_a_file_that_is_no_list_of_claims_is_a_clear_error(tmp_path, text):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UserError, match="not a readable list of claims"):
        claims.load(tmp_path / "claims.yaml")
    with pytest.raises(UserError, match="not a readable list of claims"):
        claims.load(tmp_path / "absent.yaml")


def test_the_hash_freezes_what_is_judged_and_nothing_else(tmp_path):
    frozen = claims.claim_hash(GREATER)
    for field in dataclasses.fields(claims.Claim):
        old = getattr(GREATER, field.name)
        new = f"{old} " if isinstance(old, str) else (old or 0) + 1
        changed = claims.claim_hash(dataclasses.replace(GREATER, **{field.name: new}))
        assert (changed == frozen) == (field.name in ("chapter", "needs", "frozen"))
    path = written(tmp_path, lambda document: document["claims"][0].update(frozen=frozen))
    assert claims.load(path)[0].frozen == frozen


# --- the verdict ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("effect", "interval", "p", "expected"),
    [
        (0.8, (0.3, 1.2), 0.01, "replicated"),
        (0.5, (0.1, 0.9), 0.05, "replicated"),  # each condition at its limit
        (0.8, (0.3, 1.2), 0.06, "direction only"),
        (0.8, (0.3, 1.2), None, "direction only"),
        (0.4, (0.3, 0.5), 0.01, "direction only"),  # real, but too small to matter
        (0.8, (-0.1, 1.6), 0.01, "inconclusive"),
        (0.8, (0.0, 1.6), 0.01, "inconclusive"),  # touching zero is not beyond it
        (0.1, (-0.2, 0.4), 0.3, "null"),
        (0.1, (-0.2, 0.6), 0.3, "inconclusive"),
        (-0.8, (-1.2, -0.3), 1, "contradicted"),
        (-0.1, (-0.2, -0.05), 1, "contradicted"),  # however small
    ],
)
def test_verdict_by_hand(effect, interval, p, expected):
    assert claims.verdict(GREATER, effect, interval, p, seeds=10) == expected
    mirrored = dataclasses.replace(GREATER, direction="less")
    flipped = (-interval[1], -interval[0])
    assert claims.verdict(mirrored, -effect, flipped, p, seeds=10) == expected


@pytest.mark.parametrize(
    ("effect", "interval", "p", "expected"),
    [
        (0.1, (-0.2, 0.4), None, "replicated"),
        (0.4, (0.3, 0.5), None, "replicated"),  # not zero, but within what matters
        (0.4, (-0.2, 0.9), None, "inconclusive"),
        (0.4, (-0.2, 0.9), 0.04, "replicated"),  # the test for equality decides if there is one
        (0.1, (-0.2, 0.4), 0.06, "inconclusive"),
        (0.8, (0.6, 1.0), 0.9, "contradicted"),
        (-0.8, (-1.0, -0.6), 0.9, "contradicted"),
    ],
)
def test_verdict_on_equality_by_hand(effect, interval, p, expected):
    assert claims.verdict(EQUAL, effect, interval, None, 10, equivalence_p=p) == expected


@pytest.mark.parametrize("sign", [1, -1])
def test_two_sided_claims_take_either_direction(sign):
    claim = dataclasses.replace(GREATER, direction="two-sided")
    interval = tuple(sorted((0.3 * sign, 1.2 * sign)))
    assert claims.verdict(claim, 0.8 * sign, interval, 0.01, 10) == "replicated"
    assert claims.verdict(claim, 0.8 * sign, interval, 0.2, 10) == "direction only"


@pytest.mark.parametrize(
    ("seeds", "said"), [(0, "0 of 10 seeds"), (1, "1 of 10 seeds"), (9, "9 of 10 seeds")]
)
def test_too_few_seeds_give_no_verdict(seeds, said):
    assert claims.verdict(GREATER, 9, (8, 10), 0.001, seeds) == f"no verdict ({said})"


def test_a_pilot_is_called_a_pilot_whatever_it_shows():
    assert claims.verdict(GREATER, 9, (8, 10), 0.001, 4, pilot=True) == "pilot"
    assert claims.verdict(GREATER, 9, (8, 10), 0.001, 12, pilot=True) == "pilot"


def test_a_count_needs_no_seeds():
    claim = CLAIMS["recount-drawbench-dalle3"]
    off = 70.375 - 70.4
    assert claims.verdict(claim, off, (off, off), None, seeds=0) == "replicated"
    assert claims.verdict(claim, 0.6, (0.6, 0.6), None, seeds=0) == "contradicted"


numbers = st.floats(-5, 5).map(lambda x: round(x, 2))
evidence = st.tuples(numbers, st.tuples(numbers, numbers).map(sorted), st.floats(0, 1))


@settings(deadline=None)
@given(evidence, st.integers(0, 20), st.sampled_from(claims.DIRECTIONS))
def test_verdicts_are_the_known_words_and_extensions_differ_in_one(found, seeds, direction):
    effect, interval, p = found
    ours = dataclasses.replace(GREATER, direction=direction, source="extension")
    theirs = dataclasses.replace(ours, source="paper")
    said = [claims.verdict(claim, effect, interval, p, seeds) for claim in (theirs, ours)]
    assert all(claims.word(text) in claims.VERDICTS for text in said)
    assert said[1] == said[0].replace("replicated", "supported")
    if said[0] == "replicated" and direction != "equal":
        assert seeds >= 10 and p <= 0.05 and abs(effect) >= 0.5
        assert interval[0] > 0 or interval[1] < 0
