"""Chapter 12's measures by hand: places, numbers, printed words, invented detail; its claims."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dalle3lib import limitation_evidence as evidence
from dalle3lib import limitations, paths, prompt_facts, study_evidence
from dalle3lib.study_results import Results
from dalle3lib.text import load as load_encoder
from dalle3lib.world import World
from dalle3lib.world.prompts import HELD_OUT_WORDS, probe, satisfied
from dalle3lib.world.scene import SHAPES, WORDS

torch.set_num_threads(1)


def thing(shape: str, colour: str = "red", place: str = "left") -> dict:
    """An object's facts."""
    return {"shape": shape, "colour": colour, "texture": "plain", "size": "small", "place": place}


def facts(*things: dict, word: str | None = None, background: str = "snow") -> dict:
    """A picture's facts."""
    return {"background": background, "objects": list(things), "word": word}


@pytest.fixture(scope="module")
def tokenizer():
    return load_encoder(paths.foundation("t5"))[1]


# ---- shares and prompts --------------------------------------------------------------------------


def test_percent_leaves_out_what_does_not_arise():
    table = pd.DataFrame({"a": [1, 0, 1, np.nan], "b": np.nan})
    found = limitations.percent(table, "x")
    assert found.value["a"] == pytest.approx(200 / 3)
    assert found.low["a"] <= found.value["a"] <= found.high["a"]
    assert found.loc["b"].isna().all()
    sums = limitations.percent(pd.DataFrame({"a": [1, 2]}), "x", pd.DataFrame({"a": [2, 2]}))
    assert sums.value["a"] == 75


def test_places_say_the_same_of_the_same_scene():
    for one in probe("spatial", 8):
        said = prompt_facts.facts_of(limitations.placed(one))
        assert [o["shape"] for o in said["objects"]] == [o["shape"] for o in one.ask["objects"]]
        assert satisfied(one.ask, said)  # the places are those that the relation asks for


def test_every_wording_is_asked_of_the_same_scenes():
    sets, texts = limitations.prompts(list(World("dev", 3)), 4)
    assert {k: len(t) for k, t in texts.items()} == {
        "descriptive": 3, "short": 3, "spatial": 4, "counting": 4, "text": 4, "places": 4,
        "described": 4,
    }  # fmt: skip
    for one, said in zip(sets["spatial"], texts["described"], strict=True):
        assert satisfied(one.ask, prompt_facts.facts_of(said))


def test_an_arm_that_has_drawn_is_not_asked_again(tmp_path, monkeypatch):
    calls = []

    def sample(unet, vae, states, **options):
        calls.append(options["guidance"])
        return np.full((len(states), 64, 64, 3), len(calls), np.uint8)

    monkeypatch.setattr(limitations, "sample", sample)
    monkeypatch.setattr(limitations.trained_arms, "network", lambda cfg, name: (None, 2.5))
    on = SimpleNamespace(states={"a": [0], "b": [0, 0]}, autoencoder=None, dtype=torch.float32)
    cfg = SimpleNamespace(seed=0, sampling_steps=3)
    first = limitations.draw(cfg, "dsc-95-0", on, tmp_path)
    again = limitations.draw(cfg, "dsc-95-0", on, tmp_path)
    assert calls == [2.5, 2.5] and [len(p) for p in again.values()] == [1, 2]
    assert all((first[kind] == again[kind]).all() for kind in "ab")
    assert [path.name for path in tmp_path.iterdir()] == ["dsc-95-0.npz"]


# ---- places, numbers, words ----------------------------------------------------------------------


def test_a_relation_is_judged_where_both_objects_are_there():
    (one,) = probe("spatial", 1)  # "… to the left of …"
    left, right = one.scene.facts()["objects"]
    exact = one.scene.facts()
    swapped = facts(left | {"place": "right"}, right | {"place": "left"})
    table = limitations.related([one] * 3, [exact, swapped, facts(left)])
    assert table.words.tolist() == ["to the left of"] * 3
    assert table.pairs.tolist() == [1, 1, 0.5] and table.both.tolist() == [1, 1, 0]
    assert table.right.tolist()[:2] == [1, 0] and np.isnan(table.right[2])


def test_all_objects_are_counted_and_those_of_the_kind():
    two = probe("counting", 3)[1]
    own = two.scene.facts()
    other = next(s for s in SHAPES if s != own["objects"][0]["shape"])
    more = facts(*own["objects"], thing(other))
    table = limitations.counted([two] * 3, [own, more, facts()])
    assert table.asked.tolist() == [2, 2, 2] and table.seen.tolist() == [2, 2, 0]
    assert table.objects.tolist() == [2, 3, 0] and table.exact.tolist() == [1, 1, 0]
    assert table.kind[0] == 1 and table.kind[1] == pytest.approx(2 / 3) and np.isnan(table.kind[2])


def test_numbers_asked_against_numbers_seen():
    table = pd.DataFrame({"asked": [1, 1, 2], "objects": [1, 2, 2]})
    shares = limitations.asked_seen(table)
    assert list(shares.columns) == ["0 seen", "1 seen", "2 seen", "3 seen"]
    assert shares.loc["1 asked"].tolist() == [0, 0.5, 0.5, 0]
    assert shares.loc["2 asked", "2 seen"] == 1


def test_pieces_of_a_word_hold_its_letters_and_nothing_else(tokenizer):
    for word in (*WORDS, *HELD_OUT_WORDS):
        prompt = f'a red word. the word "{word}" is printed below.'
        spans = tokenizer(prompt, return_offsets_mapping=True)["offset_mapping"]
        found = limitations.pieces(tokenizer, prompt, word)
        assert "".join(prompt[slice(*spans[i])] for i in found) == word


def test_a_printed_word_by_hand(tokenizer):
    probes = probe("text", 2)
    word, other = (one.ask["word"] for one in probes)
    table = limitations.printed(probes, [facts(word=word), facts()], tokenizer)
    assert table.word.tolist() == [word, other] and table.letters[0] == len(word)
    assert table.known.tolist() == [True, False]
    assert table.some.tolist() == [1, 0] and table.right.tolist() == [1, 0]
    assert table.errors.tolist() == [0, 1]  # without a word all letters are missing
    assert table["first by chance"][0] == float(word[0] == other[0])


def test_captions_are_held_against_printed_words():
    said = ['a star. it says "cat".', 'a star. it says "bat".', "a star."]
    true = [facts(word="cat"), facts(word="cat"), facts()]
    assert limitations.transcribed(said, true).right.tolist() == [1, 0]


def test_stations_are_told_for_known_and_new_words():
    arm = pd.DataFrame({"right": [1.0, 0, 1, 1], "known": [True, True, False, False]})
    captions = pd.DataFrame({"right": [1.0, 1], "known": True})
    found = limitations.stations({"arm": arm, "captions": captions})
    assert found["words of the world"].value.to_dict() == {"arm": 50, "captions": 100}
    assert found["new words"].value.to_dict() == {"arm": 100}


def test_a_linear_reader_spells_words_whose_letters_the_states_hold(tokenizer, monkeypatch):
    def encode(encoder, tokens, texts):
        """States that name a token's letter if it is a single one, and else are zero."""
        states = []
        for said in texts:
            ids = tokens(said).input_ids
            state = torch.zeros(len(ids), 26)
            for row, token in zip(state, tokens.convert_ids_to_tokens(ids), strict=True):
                if len(token) == 1 and "a" <= token <= "z":
                    row[ord(token) - 97] = 1
            states.append(state)
        return states

    monkeypatch.setattr(limitations.text, "encode", encode)
    words = [*WORDS, *HELD_OUT_WORDS]
    table = limitations.spelled(None, tokenizer, words, 3000)
    single = table.pieces == table.word.str.len()
    assert table.right[single].mean() > 0.9 and single.sum() >= 10
    assert (table.right[table.pieces == 1] == 0).all()  # nothing is there to be read
    assert (table["letters right"][table.right == 1] == 1).all()


# ---- invented detail -----------------------------------------------------------------------------


def test_what_is_there_without_being_asked():
    asked = [facts(thing("star")), facts(thing("star"), word="cat"), facts(thing("star"))]
    shown = [facts(thing("star"), thing("moon")), facts(), facts(thing("star"), word="dog")]
    table = limitations.beyond(shown, asked)
    assert table["an object too many"].tolist() == [1, 0, 0]
    assert table["an object missing"].tolist() == [0, 1, 0]
    assert table["a word out of nothing"].dropna().tolist() == [0, 1]
    assert table["the word left out"].dropna().tolist() == [1]


def test_wrong_facts_by_kind():
    said = ["a red star, on snow.", "a red star.", "a red moon."]
    shown = [facts(thing("star", "blue")), facts(thing("star")), facts()]
    table = limitations.wrong(said, shown, "x")
    assert table.value["colour"] == pytest.approx(200 / 3)
    assert table.value["shape"] == pytest.approx(100 / 3) and table.value["background"] == 0
    assert np.isnan(table.value["size"])


def test_confusions_and_their_likeness():
    said = ["a red star."] * 4 + ["a red moon."]
    shown = [facts(thing(s)) for s in ("star", "star", "star", "circle", "moon")]
    table = limitations.confusions(said, shown, "shape", SHAPES)
    assert table.loc["star", "star"] == 0.75 and table.loc["star", "circle"] == 0.25
    assert table.loc["moon", "moon"] == 1 and table.loc["heart"].isna().all()
    assert limitations.likeness(table, table) == pytest.approx(1)
    assert np.isnan(limitations.likeness(table, pd.DataFrame(np.eye(8), SHAPES, SHAPES)))
    other = limitations.confusions(
        said, [*shown[:3], facts(thing("heart")), shown[4]], "shape", SHAPES
    )
    assert limitations.likeness(table, other) == pytest.approx(-1 / 13)  # of 14 pairs, two differ


def test_what_a_prompt_leaves_open_is_filled():
    shown = [facts(thing("star"), thing("moon")), facts(thing("star"), background="sand")]
    shares = limitations.filled(["a star.", "a star, on sand."], shown, ["background", "objects"])
    assert shares["background: snow"] == 1 and shares["objects: 2"] == 0.5
    said = "a red star. there is snow."
    assert prompt_facts.invented("a star.", said) == prompt_facts.added(
        "a star.", prompt_facts.facts_of(said)
    )


# ---- claims --------------------------------------------------------------------------------------


def test_claims_about_captions_by_hand():
    true = [facts(thing("star", place="left"))] * 2
    long = ["a small red star at the left, on snow.", "a small blue moon at the left, on sand."]
    found = evidence.captions(long, ["a red star.", "a blue star."], true)
    place = found["captioner-spatial-below-attributes"]
    assert place["effect"] == pytest.approx(100 * (0 + (1 / 3 - 1)) / 2)  # size right, of three
    assert place["unit"] == "% points" and place["seeds"] == 1
    assert found["dsc-invents-more-than-ssc"]["effect"] == pytest.approx((0 + 3 - 1) / 2)


def test_one_seed_is_compared_as_the_study_is():
    records = list(World("dev", 40))
    texts = {k: [getattr(r, k) for r in records] for k in limitations.KINDS}
    true = [record.facts for record in records]
    wordless = [f | {"word": None} for f in true]
    moved = [f | {"objects": [o | {"place": "top right"} for o in f["objects"]]} for f in true]
    for shown, printed, misplaced in ((true, 0, 0), (wordless, 100, 0), (moved, 0, 100)):
        read = {"dsc-95": dict.fromkeys(limitations.KINDS, shown)}
        found = evidence.one_seed(evidence.as_results(records, texts, read, 0))
        assert set(found) == set(evidence.STUDIED)
        assert found["printed-text-poor"]["effect"] == printed
        assert found["spatial-below-attributes"]["effect"] == misplaced
        assert found["counting-below-attributes"] | {"note": ""} == {
            "effect": 0, "interval": (0, 0), "seeds": 1, "unit": "% points", "note": "",
        }  # fmt: skip
    other = {"ssc-95": dict.fromkeys(limitations.KINDS, true)}
    assert evidence.one_seed(evidence.as_results(records, texts, other, 0)) == {}


def test_the_claims_are_said_in_the_measures_of_the_study():
    known = {claim.id: claim for claim in study_evidence.claims.load()}
    for name in evidence.STUDIED:
        assert name in study_evidence.CLAIMS and known[name].chapter == "12_limitations"
        assert known[name].frozen and known[name].unit == "% points"


def results() -> Results:
    """Two arms, two seeds, three descriptive prompts, of which the first two name two objects."""
    prompts = pd.DataFrame({"kind": "descriptive", "objects": [2, 2, 1]})
    one = pd.DataFrame({"kind": "descriptive", "step": 1, "colour-shape": [1.0, 0.5, 0.0]})
    one = one.assign(
        **{"colour-shape-place": [0.5, 0.25, 0]}, count=[1.0, 1, 0], word=[np.nan, 0, 1]
    )
    two = one.assign(count=0.0)
    return Results("main", {"dsc-95": {1: one, 2: two}, "original-0": {1: one}}, {}, prompts)


def test_shares_over_seeds_by_hand():
    found = evidence.seed_shares(results())
    assert list(found) == ["original only", "DSC 95 %"]
    table = found["DSC 95 %"].value
    assert table["colour and shape"] == pytest.approx(50) and table["printed word"] == 50
    assert table["number of objects"] == pytest.approx(100 / 3)  # 2/3 and 0
    assert table[evidence.PLACE_ROW] == pytest.approx(50)
    assert found["DSC 95 %"].low["number of objects"] < table["number of objects"]
    assert np.isnan(found["original only"].low["colour and shape"])


def test_the_summary_says_what_was_measured():
    keys = [("DSC 95 %", wording) for wording in ("relation words", "full description")]
    index = pd.MultiIndex.from_tuples(keys)
    places = pd.DataFrame({"pairs": [1, 2], "both": [16, 40], "right": [100.0, 98]}, index=index)
    asked = pd.MultiIndex.from_tuples([("DSC 95 %", 1), ("DSC 95 %", 2)], names=["arm", "asked"])
    numbers = pd.DataFrame({"exact": [57.5, 0.4]}, index=asked)
    kinds = ["shape", "colour", "texture", "printed word"]
    errors = {
        name: pd.DataFrame({"value": values}, index=kinds)
        for name, values in {"DSC captions": [8, 1, 2, 73], "DSC 95 %": [13, 14, 12, 99]}.items()
    }
    right = pd.Series({"autoencoder": 100.0, "DSC 95 %": 0.0})
    said = evidence.summary(places, numbers, right, errors, "DSC 95 %")
    assert "16 %" in said[0] and "40 %" in said[0] and "100 % and 98 %" in said[0]
    assert "58 % (1 asked), 0 % (2 asked)" in said[1]
    assert "autoencoder 100 %, DSC 95 % 0 %" in said[2]
    assert "DSC captions 8, 1, 2; DSC 95 % 13, 14, 12" in said[3] and "73 %" in said[3]
    places.loc[keys[0], "right"] = np.nan
    said = evidence.summary(places, numbers, right, errors, "DSC 95 %")
    assert "(no picture has both) and 98 %" in said[0]
