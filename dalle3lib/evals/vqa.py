"""The judge: a visual question answering model (BLIP; Li et al. 2022) that looks at a picture.

The network is transformers' ``BlipForQuestionAnswering`` of any size: a vision transformer reads
the picture, a text encoder reads the question while it attends to the picture, and a text decoder
writes the answer while it attends to the question. The world's is a tiny one (``vqa_training``);
``load("Salesforce/blip-vqa-base")`` gives a public one, and the same functions then ask it.

Two traps of that class are avoided here. A picture is encoded once however many questions are
asked of it. And questions of one length are read together and never padded: ``generate`` lets the
decoder attend to pads, and transformers 5 drops every mask of BLIP's cross-attention, so that an
answer would change with the questions beside it.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import (
    BlipForQuestionAnswering,
    BlipProcessor,
)

from dalle3lib import UserError, pretrained, world
from dalle3lib.randomness import rng

MAX_ANSWER = 10  # tokens


def load(name: Path | str, **options) -> tuple[BlipForQuestionAnswering, BlipProcessor]:
    """Model (float32, frozen, evaluation mode) and processor, from a directory or a public name.

    ``options`` (``revision``, ...) go to both ``from_pretrained`` calls. Raises UserError if there
    is no such model or its files are damaged.
    """
    with pretrained.loading(f"the judge {name}"):
        model = BlipForQuestionAnswering.from_pretrained(name, **options)
        processor = BlipProcessor.from_pretrained(name, **options)
    return model.float().eval().requires_grad_(False), processor


# ---- the network, step by step -------------------------------------------------------------------


def look(model: BlipForQuestionAnswering, processor: BlipProcessor, images: np.ndarray) -> Tensor:
    """What the vision transformer sees in pictures uint8 [N, H, W, 3]: states [N, patches + 1, d].

    The processor resizes the pictures to its own size and normalises them. Where that is not the
    model's size, the position embeddings are interpolated; else they are taken as they are.
    """
    options = {"input_data_format": "channels_last", "return_tensors": "pt"}
    prepared = processor.image_processor(list(images), **options).pixel_values.to(model.device)
    return model.vision_model(
        pixel_values=prepared, interpolate_pos_encoding=True
    ).last_hidden_state


def by_length(
    processor: BlipProcessor, texts: Sequence[str]
) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The texts in groups of one length: yields (their numbers [n], their token ids [n, L])."""
    ids = processor.tokenizer(list(texts)).input_ids
    lengths = np.array([len(tokens) for tokens in ids])
    for length in np.unique(lengths):
        rows = np.flatnonzero(lengths == length)
        yield rows, torch.tensor([ids[i] for i in rows])


def read(model: BlipForQuestionAnswering, ids: Tensor, seen: Tensor) -> Tensor:
    """The states [n, L, d] of questions with token ids [n, L], each read before what was seen."""
    return model.text_encoder(ids.to(model.device), encoder_hidden_states=seen).last_hidden_state


# ---- asking --------------------------------------------------------------------------------------


def _states(model, processor, images: np.ndarray, questions: Sequence[str], of, batch: int):
    """Yields the numbers of some questions of one length and their states, until all were read."""
    of = np.arange(len(images)) if of is None else np.asarray(of)
    if len(of) != len(questions):
        raise UserError(
            f"There are {len(of)} pictures but {len(questions)} questions: give one picture each."
        )
    used = np.unique(of)
    for which in (used[i : i + batch] for i in range(0, len(used), batch)):
        seen = look(model, processor, images[which])
        rows = np.flatnonzero(np.isin(of, which))
        for part, ids in by_length(processor, [questions[i] for i in rows]):
            here = np.searchsorted(which, of[rows[part]])
            yield rows[part], read(model, ids, seen[here])


@torch.no_grad()
def answer(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    images: np.ndarray,
    questions: Sequence[str],
    of: Sequence[int] | None = None,
    batch: int = 32,
) -> list[str]:
    """The judge's most likely answer, token by token, to each question: N strings.

    ``images`` are uint8 [N, H, W, 3], one for each question; or ``of`` [N] gives the number of the
    image that each question is about, and an image is encoded once for all its questions, ``batch``
    images at a time. Raises UserError if there are not as many.
    """
    answers = [""] * len(questions)
    end = model.config.text_config.sep_token_id
    for rows, states in _states(model, processor, images, questions, of, batch):
        ids = torch.full((len(rows), 1), model.decoder_start_token_id, device=model.device)
        done = torch.zeros(len(rows), dtype=torch.bool, device=model.device)
        while not done.all() and ids.shape[1] <= MAX_ANSWER:
            logits = model.text_decoder(ids, encoder_hidden_states=states).logits
            following = logits[:, -1].argmax(-1)
            following[done] = end
            done |= following == end
            ids = torch.cat([ids, following[:, None]], 1)
        texts = processor.tokenizer.batch_decode(ids[:, 1:], skip_special_tokens=True)
        for row, said in zip(rows, texts, strict=True):
            answers[row] = said.strip()
    return answers


@torch.no_grad()
def p_yes(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    images: np.ndarray,
    questions: Sequence[str],
    of: Sequence[int] | None = None,
    batch: int = 32,
) -> np.ndarray:
    """How surely the answer is yes, rather than no: float64 [N] in [0, 1].

    p(yes) / (p(yes) + p(no)) of the answer's first token, as BLIP-VQA of T2I-CompBench (Huang et
    al. 2023). Arguments and errors as ``answer``; a tokenizer must give both words tokens of their
    own.
    """
    yes, no = (processor.tokenizer(w, add_special_tokens=False).input_ids[0] for w in ("yes", "no"))
    if yes == no:
        raise UserError('The tokenizer begins "yes" and "no" alike: train it on these answers.')
    values = np.empty(len(questions))
    for rows, states in _states(model, processor, images, questions, of, batch):
        start = torch.full((len(rows), 1), model.decoder_start_token_id, device=model.device)
        logits = model.text_decoder(start, encoder_hidden_states=states).logits[:, 0].double()
        values[rows] = (logits[:, yes] - logits[:, no]).sigmoid().cpu().numpy()
    return values


def accuracy(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    specs: Sequence[world.Scene],
    seed: int = 0,
) -> dict[str, float]:
    """The share of right answers to all questions on rendered scenes, by kind and of "all" kinds.

    An answer is right if it equals the true one letter by letter.
    """
    asked = [world.questions(spec, rng(seed, "judge/test", i)) for i, spec in enumerate(specs)]
    of = np.repeat(np.arange(len(specs)), [len(questions) for questions in asked])
    flat = [question for questions in asked for question in questions]
    pictures = np.stack([world.render(spec) for spec in specs])
    right = defaultdict(list)
    said = answer(model, processor, pictures, [q.text for q in flat], of)
    for question, reply in zip(flat, said, strict=True):
        for kind in (question.kind, "all"):
            right[kind].append(reply == question.answer)
    return {kind: float(np.mean(right[kind])) for kind in sorted(right)}
