"""The text encoder: T5 (paper App. A; Raffel et al. 2020), frozen, its states cross-attended.

A public checkpoint and the world's tiny one are loaded by the same call. The world's is trained
on the text of captions alone, with a mixture of tasks as T5 is: write out a caption of which spans
are hidden, and say a caption in other words. The world's facts are independent of each other, so
that nothing around a hidden word helps to guess it; from guessing spans alone the states did not
learn which colour belongs to which shape (EXPERIMENTS.md).
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
)

from dalle3lib import UserError
from dalle3lib.pretrained import loading
from dalle3lib.randomness import rng

PAD, END, START = 0, 1, 2
SENTINELS = 32  # <extra_id_0> ..., the names of hidden spans
MAX_TOKENS = 120  # the longest caption kept, as in PixArt's use of T5


def train_tokenizer(
    texts: Sequence[str], vocab_size: int = 1024, start: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from ``texts``: it can read any string.

    Token 0 pads, 1 ends a text, 2 starts one; the sentinels of span corruption follow. With
    ``start`` it puts the start token in front (for CoCa and CLIP), without it does not (for T5).
    """
    special = ["<pad>", "</s>", "<s>", *(f"<extra_id_{i}>" for i in range(SENTINELS))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=special, initial_alphabet=alphabet
        ),
    )
    template = "<s> $A </s>" if start else "$A </s>"
    ends = [("</s>", END), ("<s>", START)]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ends)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", bos_token="<s>"
    )


def build(vocab_size: int) -> T5ForConditionalGeneration:
    """An untrained tiny T5 with encoder states of width 128.

    Its attention starts with preferences for relative positions of deviation 2, a tilt by a factor
    of e². T5's own start is nearly blind to positions, and Adam would need thousands of steps to
    tell a word's neighbours from the rest.
    """
    model = T5ForConditionalGeneration(
        T5Config(
            vocab_size=vocab_size,
            d_model=128,
            d_kv=32,
            d_ff=384,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
        )
    )
    for name, weight in model.named_parameters():
        if "relative_attention_bias" in name:
            torch.nn.init.normal_(weight, std=2.0)
    return model


def hide_spans(
    tokens: Sequence[int], random: np.random.Generator, rate: float = 0.15, span: int = 3
) -> list[int]:
    """The token ids with about ``rate`` of them hidden in spans of ``span`` on average.

    Each span becomes one sentinel, as in T5 (Raffel et al. 2020, §3.1.4).
    """
    length = len(tokens)
    hidden = min(max(1, round(rate * length)), length - 1) if length > 1 else length
    spans = min(max(1, round(hidden / span)), SENTINELS)
    starts = np.sort(random.choice(length, spans, replace=False))
    mask = np.zeros(length, bool)
    for start in starts:
        mask[start : start + max(1, round(hidden / spans))] = True
    shown, sentinel = [], START
    for position, token in enumerate(tokens):
        if not mask[position]:
            shown.append(token)
        elif position == 0 or not mask[position - 1]:
            sentinel += 1
            shown.append(sentinel)
    return shown


def pairs_of(texts: Sequence[tuple], random: np.random.Generator) -> tuple[Tensor, Tensor]:
    """What T5 reads and what it should write, one of two tasks for each text: padded ids [B, L].

    Each of ``texts`` is a pair of token ids: a text, and the same in other words. Half of the time
    the other words are to be written, half of the time the whole text whose spans are hidden
    (Raffel et al. 2020, table 3, "BERT-style"). Writing out what is *not* hidden takes states that
    know their neighbours, since the decoder sees no positions.
    """
    pairs = [
        ([*said, END], [*again, END])
        if random.random() < 0.5
        else ([*hide_spans(said, random), END], [*said, END])
        for said, again in texts
    ]
    return tuple(
        pad_sequence([torch.tensor(ids) for ids in side], batch_first=True, padding_value=PAD)
        for side in zip(*pairs, strict=True)
    )


def step_loss(model: T5ForConditionalGeneration, corpora: dict[str, list], *, seed, batch):
    """The loss of T5's mixture of tasks (Raffel et al. 2020, §3.5.3) as a function of the step.

    ``corpora`` holds, by kind of caption, pairs of token ids (without end token) as ``pairs_of``
    takes them. Each step reads about ``batch`` tokens of every kind, each kind by itself, so that
    short texts are not padded to the length of long ones, and the kinds count alike.
    """
    rows = {k: max(1, round(batch / np.mean([len(t) for t, _ in c]))) for k, c in corpora.items()}

    def of(kind: str, step: int) -> Tensor:
        random = rng(seed, f"t5/{kind}", step)
        drawn = random.integers(len(corpora[kind]), size=rows[kind])
        source, target = pairs_of([corpora[kind][i] for i in drawn], random)
        labels = target.masked_fill(target == PAD, -100)
        return model(source, attention_mask=source != PAD, labels=labels).loss

    return lambda step: {"loss": torch.stack([of(kind, step) for kind in corpora]).mean()}


def load(
    name: str | Path, dtype: torch.dtype = torch.float32, **options
) -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    """Encoder (frozen, of precision ``dtype``) and tokenizer from a directory or a public name.

    ``options`` (``revision``, ...) go to both ``from_pretrained`` calls. Raises UserError where a
    library is missing that reads the tokenizer of the public checkpoints, if there is no such model
    or its files are damaged.
    """
    files = {path.name for path in Path(name).glob("*")}
    if "spiece.model" in files and "tokenizer.json" not in files and not find_spec("sentencepiece"):
        raise UserError(
            f"The tokenizer in {name} is a SentencePiece model, which needs two more libraries: "
            "pip install sentencepiece protobuf"
        )
    with loading(f"the text encoder {name}"):
        encoder = T5EncoderModel.from_pretrained(name, dtype=dtype, **options)
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    return encoder.to(dtype).eval().requires_grad_(False), tokenizer


@torch.no_grad()
def encode(
    encoder: T5EncoderModel, tokenizer, captions: Sequence[str], batch: int = 256
) -> list[Tensor]:
    """The states of each caption's real tokens, end token included: list of [L, d] in memory.

    Captions are batched by length and padding is masked, so a caption's states do not depend on
    its neighbours. Captions of more than ``MAX_TOKENS`` tokens are cut (the end token stays).
    Raises UserError for an empty caption.
    """
    for number, caption in enumerate(captions):
        if not caption.strip():
            raise UserError(f"Caption number {number} is empty: give it a text or remove it.")
    tokens = tokenizer(list(captions), truncation=True, max_length=MAX_TOKENS).input_ids
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    states: list[Tensor] = [torch.empty(0)] * len(tokens)
    for rows in (order[i : i + batch] for i in range(0, len(order), batch)):
        ids = pad_sequence([torch.tensor(tokens[i]) for i in rows], batch_first=True)
        mask = pad_sequence([torch.ones(len(tokens[i])) for i in rows], batch_first=True)
        hidden = encoder(ids.to(encoder.device), mask.to(encoder.device)).last_hidden_state.cpu()
        for i, state in zip(rows, hidden, strict=True):
            states[i] = state[: len(tokens[i])].clone()
    return states


def mean_tokens(tokenizer, captions: Sequence[str]) -> float:
    """The mean number of tokens that ``encode`` makes states of; 0 for no captions."""
    if not captions:
        return 0.0
    tokens = tokenizer(list(captions), truncation=True, max_length=MAX_TOKENS).input_ids
    return sum(map(len, tokens)) / len(tokens)


def pad(
    states: Sequence[Tensor], device: str | torch.device = "cpu", multiple: int = 1
) -> tuple[Tensor, Tensor]:
    """Ragged states as one batch: (float32 [B, L, d] zero padded, bool mask [B, L] of real ones).

    Both are on ``device``; the states travel there in the precision they are stored in. L is the
    longest caption's length, rounded up to a ``multiple``.

    A caption dropped for guidance is an empty [0, d] tensor: it becomes one all-zero state that
    the mask lets through, the network's "no caption".
    """
    states = [s if len(s) else s.new_zeros(1, s.shape[1]) for s in states]
    mask = pad_sequence([torch.ones(len(s), dtype=torch.bool) for s in states], batch_first=True)
    padded, more = pad_sequence(states, batch_first=True), -mask.shape[1] % multiple
    padded, mask = functional.pad(padded, (0, 0, 0, more)), functional.pad(mask, (0, more))
    return padded.to(device).float(), mask.to(device)
