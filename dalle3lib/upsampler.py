"""The embedded upsampler: a small T5 that turns a short prompt into a descriptive one (paper §3.5).

The paper lets GPT-4 do it. Here a sequence-to-sequence model has read what the two captioners wrote
of the same training picture, and learned to go from the short caption to the descriptive one. What
the short one leaves open it must invent; what it states it should keep.

The short captioner has one way of saying things and hardly ever states a texture; people do. A
model that had read its captions alone kept 82 % of the textures that people state, and half of what
longer prompts state (EXPERIMENTS.md). So half of the texts to start from are the captioner's, a
quarter are the human short captions of the same training pictures, and a quarter their alt-text
without noise, which says more or less of a picture in few words.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    T5ForConditionalGeneration,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from dalle3lib import UserError, paths, text
from dalle3lib.prompt_facts import agree
from dalle3lib.randomness import batch_indices, rng
from dalle3lib.recaption import FILE, captions_dir, committed
from dalle3lib.world import World

MAX_TOKENS = 64  # of what is written; the longest descriptive training caption has 48


# ---- training ------------------------------------------------------------------------------------


def examples(scenes: int) -> tuple[list[str], list[str]]:
    """What the upsampler learns from: short texts and the descriptive caption of the same picture.

    They are of the first ``scenes`` training pictures with committed captions, whose descriptive
    captions are the captioner's. Pairs that do not agree (one captioner erred) are left out.
    Raises UserError if no captions are committed.
    """
    if not any(committed().values()):
        raise UserError("The upsampler learns from the captions in data/captions: restore them.")
    written = pq.read_table(captions_dir() / FILE).slice(0, scenes).to_pylist()
    world = World("train", scenes, noise=0.0)
    pairs = []
    for row in written:
        alt, short, _ = world.captions(int(row["key"].removeprefix("train-")))
        for said, times in ((row["ssc"], 2), (short, 1), (alt, 1)):
            pairs += [(said, row["dsc"])] * times * agree(said, row["dsc"])
    return tuple(zip(*pairs, strict=True))


def build(encoder: Path) -> tuple[T5ForConditionalGeneration, object]:
    """The text encoder in directory ``encoder`` with an untrained decoder, and its tokenizer."""
    states, tokenizer = text.load(encoder)
    model = text.build(len(tokenizer))
    model.load_state_dict(states.state_dict(), strict=False)
    return model, tokenizer


def tokens(tokenizer, texts: Sequence[str]) -> list[Tensor]:
    """The token ids of each text, the end token included."""
    return [torch.tensor(ids) for ids in tokenizer(list(texts)).input_ids]


def loss(model: T5ForConditionalGeneration, sources: list[Tensor], targets: list[Tensor]) -> Tensor:
    """Mean negative log-likelihood of the targets' tokens given the sources, in nats."""
    source = pad_sequence(sources, batch_first=True, padding_value=text.PAD)
    labels = pad_sequence(targets, batch_first=True, padding_value=-100)
    return model(source, attention_mask=source != text.PAD, labels=labels).loss


def step_loss(
    model, sources: list[Tensor], targets: list[Tensor], *, seed: int, batch: int
) -> Callable[[int], dict[str, Tensor]]:
    """The loss of a batch of pairs as a function of the step, for ``train.train``."""

    def at(step: int) -> dict[str, Tensor]:
        rows = batch_indices(seed, step, batch, len(sources))
        return {"loss": loss(model, [sources[i] for i in rows], [targets[i] for i in rows])}

    return at


# ---- writing -------------------------------------------------------------------------------------


class SeededNoise(LogitsProcessor):
    """Gumbel noise on the logits, so that the most likely token is a sample (Gumbel-max trick).

    The noise is a function of seed, prompt and position alone.
    """

    def __init__(self, prompts: Sequence[str], seed: int):
        self.prompts, self.seed = prompts, seed

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The scores [B, vocabulary] plus noise."""
        position, width = input_ids.shape[1], scores.shape[1]
        noise = [rng(self.seed, f"upsample/{p}", position).gumbel(size=width) for p in self.prompts]
        return scores + torch.from_numpy(np.stack(noise)).to(scores)


def load(path: str | Path | None = None) -> tuple[T5ForConditionalGeneration, object]:
    """The upsampler (float32, frozen) and its tokenizer from a directory; None is the shipped one.

    Raises UserError if the shipped one is missing or damaged.
    """
    where = paths.foundation("upsampler") if path is None else Path(path)
    model = T5ForConditionalGeneration.from_pretrained(where, dtype=torch.float32)
    return model.eval().requires_grad_(False), AutoTokenizer.from_pretrained(where)


@torch.no_grad()
def write(
    model: T5ForConditionalGeneration,
    tokenizer,
    prompts: Sequence[str],
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 0.95,
    batch: int = 64,
) -> list[str]:
    """A descriptive text for each prompt: the same for the same prompt, seed and options.

    Tokens are drawn at ``temperature`` from the likeliest that together have probability ``top_p``
    (nucleus sampling, Holtzman et al. 2020); other prompts of the call make no difference.
    A text ends at ``MAX_TOKENS`` tokens at the latest. Raises UserError for an empty prompt.
    """
    for number, prompt in enumerate(prompts):
        if not prompt.strip():
            raise UserError(f"Prompt number {number} is empty: say what the picture should show.")
    written = []
    for start in range(0, len(prompts), batch):
        some = list(prompts[start : start + batch])
        draw = [TemperatureLogitsWarper(temperature), TopPLogitsWarper(top_p)]
        given = tokenizer(some, padding=True, return_tensors="pt")
        ids = model.generate(
            given.input_ids.to(model.device),
            attention_mask=given.attention_mask.to(model.device),
            logits_processor=LogitsProcessorList([*draw, SeededNoise(some, seed)]),
            max_new_tokens=MAX_TOKENS,
            do_sample=False,
        )
        written += tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [one.strip() for one in written]
