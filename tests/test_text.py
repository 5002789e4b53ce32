"""The text encoder: a tokenizer that reads anything, span corruption, states without neighbours."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, T5EncoderModel

from dalle3lib import UserError, paths, text
from dalle3lib.captions import by_kind
from dalle3lib.randomness import rng
from dalle3lib.world import World

torch.set_num_threads(1)
CAPTIONS = by_kind(list(World("foundation", 100)))
TEXTS = [caption for kind in CAPTIONS.values() for caption in kind]
PLAIN = text.train_tokenizer(TEXTS, 500)
STARTED = text.train_tokenizer(TEXTS, 500, start=True)
SENTINELS = range(3, 3 + text.SENTINELS)


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    """A tiny random T5 and its tokenizer, written and loaded as the shipped one is."""
    directory = tmp_path_factory.mktemp("t5")
    torch.manual_seed(0)
    T5EncoderModel(text.build(len(PLAIN)).config).save_pretrained(directory)
    PLAIN.save_pretrained(directory)
    return text.load(directory)


# ---- the tokenizer -------------------------------------------------------------------------------


@given(st.text())
def test_any_text_can_be_read_and_written_back(caption):
    for tokenizer in (PLAIN, STARTED):
        written = tokenizer.decode(tokenizer(caption).input_ids, skip_special_tokens=True)
        assert written in (caption, f" {caption}")


@given(st.text())
def test_special_tokens_stand_at_the_ends_only(caption):
    plain, started = PLAIN(caption).input_ids, STARTED(caption).input_ids
    assert plain[-1] == text.END and started[-1] == text.END and started[0] == text.START
    body = PLAIN(caption, add_special_tokens=False).input_ids
    assert plain == [*body, text.END] and started == [text.START, *body, text.END]
    assert all(token >= 3 + text.SENTINELS for token in body)


def test_ids_of_special_tokens():
    assert PLAIN.convert_tokens_to_ids(["<pad>", "</s>", "<s>"]) == [0, 1, 2]
    assert (text.PAD, text.END, text.START) == (0, 1, 2)
    assert (PLAIN.pad_token_id, PLAIN.eos_token_id, PLAIN.bos_token_id) == (0, 1, 2)
    names = [f"<extra_id_{i}>" for i in range(32)]
    assert PLAIN.convert_tokens_to_ids(names) == list(SENTINELS)


def test_frequent_words_are_single_tokens():
    assert len(PLAIN) == 500
    assert len(PLAIN("the background", add_special_tokens=False).input_ids) == 2
    assert len(PLAIN("Zürich", add_special_tokens=False).input_ids) >= 5  # bytes, mostly


def test_the_same_texts_give_the_same_tokenizer():
    again = text.train_tokenizer(TEXTS, 500)
    assert again.backend_tokenizer.to_str() == PLAIN.backend_tokenizer.to_str()


def test_saved_tokenizers_read_alike(tmp_path):
    for name, tokenizer in (("plain", PLAIN), ("started", STARTED)):
        tokenizer.save_pretrained(tmp_path / name)
        loaded = AutoTokenizer.from_pretrained(tmp_path / name)
        assert loaded(TEXTS).input_ids == tokenizer(TEXTS).input_ids
        assert (loaded.pad_token_id, loaded.eos_token_id) == (0, 1)


# ---- span corruption -----------------------------------------------------------------------------


def hidden(shown: list[int], tokens: list[int]) -> list[int] | None:
    """How many tokens stand behind each sentinel, if ``shown`` is ``tokens`` with spans hidden."""
    counts, rest = [], list(tokens)
    for token, following in zip(shown, [*shown[1:], None], strict=True):
        if token in SENTINELS:
            counts.append(rest.index(following) if following is not None else len(rest))
            rest = rest[counts[-1] :]
        elif not rest or rest.pop(0) != token:
            return None
    return counts if not rest else None


@given(st.integers(1, 200), st.integers(0, 2**32))
def test_what_is_shown_is_the_text_without_its_spans(length, seed):
    tokens = list(range(100, 100 + length))
    shown = text.hide_spans(tokens, rng(seed, "test"))
    counts = hidden(shown, tokens)
    assert counts and all(counts)  # something is hidden
    sentinels = [t for t in shown if t in SENTINELS]
    assert sentinels == list(range(3, 3 + len(sentinels)))  # from the first, in order
    assert length == 1 or len(shown) > len(sentinels)  # and something is shown


@pytest.mark.parametrize("length", [10, 20, 40, 120])
def test_about_fifteen_per_cent_are_hidden_in_spans_of_three(length):
    counts = []
    for i in range(400):
        shown = text.hide_spans([50] * length, rng(i, "test"))
        counts.append((length - shown.count(50), len(shown) - shown.count(50)))
    gone, spans = np.sum(counts, axis=0)
    assert 0.10 < gone / (400 * length) < 0.20
    assert 1.5 < gone / spans < 4.5


class Chosen:
    """A generator whose only choice is known."""

    def __init__(self, *starts: int):
        self.starts = starts

    def choice(self, length, count, replace):
        assert count == len(self.starts) and not replace
        return np.array(self.starts)


def test_hidden_spans_by_hand():
    tokens = list(range(100, 120))  # 20 tokens: 3 hidden, in one span
    assert text.hide_spans(tokens, Chosen(4)) == [100, 101, 102, 103, 3, *range(107, 120)]
    tokens = list(range(100, 140))  # 40 tokens: 6 hidden, in two spans
    shown = text.hide_spans(tokens, Chosen(38, 0))  # the second ends with the text
    assert shown == [3, *range(103, 138), 4]
    shown = text.hide_spans(tokens, Chosen(10, 12))  # overlapping spans are one
    assert shown == [*range(100, 110), 3, *range(115, 140)]
    assert text.hide_spans([50], Chosen(0)) == [3]


class Reader:
    """A T5 that only notes what it is shown."""

    def __init__(self):
        self.shown = []

    def __call__(self, source, attention_mask, labels):
        assert torch.equal(attention_mask, source != text.PAD)
        assert not (labels == text.PAD).any()
        for row, target in zip(source.tolist(), labels.tolist(), strict=True):
            row = [token for token in row if token != text.PAD]
            self.shown.append((row, [token for token in target if token != -100]))
        return SimpleNamespace(loss=torch.zeros(()))


def test_kinds_of_caption_give_equally_many_tokens():
    texts = {"long": [[100] * 40], "short": [[200] * 10], "mixed": [[300] * 5, [300] * 35]}
    corpora = {kind: [(text, text) for text in texts] for kind, texts in texts.items()}
    reader = Reader()
    at = text.step_loss(reader, corpora, seed=0, batch=400)
    for step in range(20):
        at(step)
    written = Counter(token // 100 for _, target in reader.shown for token in target)
    for kind in (1, 2, 3):
        assert written[kind] / (20 * 400) == pytest.approx(1, abs=0.05)


def test_half_of_the_tasks_are_to_say_the_same_in_other_words():
    """The rest are to write the whole text after reading it with spans hidden."""
    said, again, reader = list(range(100, 140)), list(range(200, 230)), Reader()
    at = text.step_loss(reader, {"only": [(said, again)]}, seed=0, batch=4000)
    for step in range(4):
        at(step)
    assert len(reader.shown) == 400
    reworded = reader.shown.count(([*said, text.END], [*again, text.END]))
    assert 150 < reworded < 250
    for source, target in reader.shown:
        if target[0] != again[0]:
            assert target == [*said, text.END] and source[-1] == text.END
            assert hidden(source[:-1], said)


def test_attention_starts_with_preferences_for_positions():
    torch.manual_seed(0)
    biases = [w for n, w in text.build(500).named_parameters() if "relative_attention_bias" in n]
    assert len(biases) == 2  # the encoder's and the decoder's
    assert all(w.std().item() == pytest.approx(2, rel=0.2) for w in biases)


def test_step_loss_is_a_function_of_the_step():
    torch.manual_seed(0)
    model = text.build(len(PLAIN))
    ids = {k: PLAIN(c, add_special_tokens=False).input_ids for k, c in CAPTIONS.items()}
    corpora = {
        kind: [(caption, caption[::-1]) for caption in captions] for kind, captions in ids.items()
    }
    at = text.step_loss(model, corpora, seed=0, batch=40)
    values = [at(step)["loss"].item() for step in (3, 4, 3)]
    assert values[0] == values[2] != values[1]
    assert text.step_loss(model, corpora, seed=1, batch=40)(3)["loss"].item() != values[0]
    at(0)["loss"].backward()
    assert model.shared.weight.grad.any()


# ---- states --------------------------------------------------------------------------------------


def test_encoder_and_full_model_load_by_the_same_call(tmp_path):
    torch.manual_seed(0)
    full = text.build(len(PLAIN)).eval()
    encoder = T5EncoderModel(full.config).eval()
    encoder.load_state_dict(full.state_dict(), strict=False)
    for name, model in (("full", full), ("encoder", encoder.half())):
        model.save_pretrained(tmp_path / name)
        PLAIN.save_pretrained(tmp_path / name)
    states = {}
    for name in ("full", "encoder"):
        loaded, tokenizer = text.load(tmp_path / name)
        assert isinstance(loaded, T5EncoderModel) and loaded.dtype == torch.float32
        assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
        states[name] = text.encode(loaded, tokenizer, TEXTS[:5])
    with torch.no_grad():
        ids = torch.tensor([PLAIN(TEXTS[0]).input_ids])
        expected = full.encoder(ids).last_hidden_state[0]
    assert torch.allclose(states["full"][0], expected, atol=1e-5)
    for a, b in zip(*states.values(), strict=True):
        assert torch.allclose(a, b, atol=0.02)  # half precision


def test_the_foundation_loads(foundations):
    encoder, tokenizer = text.load(paths.foundation("t5"))
    (state,) = text.encode(encoder, tokenizer, ["a red circle."])
    assert state.shape == (len(tokenizer("a red circle.").input_ids), 128)


def test_states_do_not_depend_on_neighbours(t5):
    captions = [*TEXTS[::30], "x", " a" * 90]  # of very different lengths
    together = text.encode(*t5, captions)
    assert [len(s) for s in together] == [len(PLAIN(c).input_ids) for c in captions]
    for batch in (1, 3):
        for a, b in zip(together, text.encode(*t5, captions, batch=batch), strict=True):
            assert torch.allclose(a, b, atol=1e-5)
    for caption, state in zip(captions, together, strict=True):
        (alone,) = text.encode(*t5, [caption])
        assert torch.allclose(alone, state, atol=1e-5)
        assert state.dtype == torch.float32


def test_states_depend_on_the_words_and_their_order(t5):
    one, other = text.encode(*t5, ["red circle blue star", "blue circle red star"])
    assert one.shape == other.shape and not torch.allclose(one, other, atol=1e-3)


def test_long_captions_are_cut_and_keep_their_end(t5):
    encoder, tokenizer = t5
    seen = []
    hook = encoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    (state,) = text.encode(encoder, tokenizer, ["red circle " * 200])
    hook.remove()
    (ids,) = seen[0].tolist()
    assert len(ids) == len(state) == text.MAX_TOKENS and ids[-1] == text.END


def test_longer_captions_than_the_limit_differ_at_their_beginning(t5):
    one, other = text.encode(*t5, ["red " + "circle " * 200, "blue " + "circle " * 200])
    assert not torch.allclose(one[-1], other[-1], atol=1e-4)  # the end token has seen it


@pytest.mark.parametrize("empty", ["", " ", "\n\t"])
def test_empty_caption(t5, empty):
    with pytest.raises(UserError, match="Caption number 1 is empty"):
        text.encode(*t5, ["a red circle.", empty])


def test_pad():
    long, short, dropped = torch.ones(3, 2).half(), torch.full((1, 2), 5.0), torch.zeros(0, 2)
    states, mask = text.pad([long, short, dropped])
    assert states.shape == (3, 3, 2) and states.dtype == torch.float32
    assert mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    assert states[1].tolist() == [[5, 5], [0, 0], [0, 0]]
    assert not states[2].any()  # no caption: one state of zeros


def test_pad_to_a_multiple():
    states = [torch.ones(3, 2), torch.ones(5, 2)]
    for multiple, length in ((1, 5), (4, 8), (5, 5), (32, 32)):
        padded, mask = text.pad(states, multiple=multiple)
        assert padded.shape == (2, length, 2) and mask.sum(1).tolist() == [3, 5]
        assert torch.equal(padded[:, :5], text.pad(states)[0]) and not padded[:, 5:].any()


def test_pad_of_nothing_but_dropped_captions():
    states, mask = text.pad([torch.zeros(0, 4)] * 2)
    assert states.shape == (2, 1, 4) and not states.any() and mask.all()


def test_mean_tokens_are_those_that_are_encoded(t5):
    captions = ["a", TEXTS[0], TEXTS[1] * 50]
    counted = text.mean_tokens(t5[1], captions)
    assert counted == np.mean([len(s) for s in text.encode(*t5, captions)])
    assert text.mean_tokens(t5[1], []) == 0
