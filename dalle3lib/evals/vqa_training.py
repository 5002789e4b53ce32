"""Training the world's judge (``vqa``): a tiny BLIP that describes scenes, then answers questions.

The weights of a new vision model have a deviation of 1e-10 by default, from which nothing is
learned; here it is the usual one.
"""

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
)

from dalle3lib import text, world
from dalle3lib.evals.vqa import by_length, look, read
from dalle3lib.randomness import rng
from dalle3lib.world.questions import Question

# The world's judge, in transformers' configuration schema.
VISION = {
    "image_size": 64,
    "patch_size": 8,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "initializer_range": 0.02,
}
TEXT = {  # of the question's encoder and of the answer's decoder alike
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": text.PAD,
    "bos_token_id": text.START,
    "eos_token_id": text.END,
    "sep_token_id": text.END,  # ends an answer
}


# ---- the model -----------------------------------------------------------------------------------


def train_tokenizer(world_scene: Callable[[int], world.Scene], count: int = 3000):
    """A byte-level tokenizer learned from questions, answers and captions of ``count`` scenes."""
    texts = []
    for i in range(count):
        spec, random = world_scene(i), rng(0, "judge/tokenizer", i)
        texts += [t for question in world.questions(spec, random) for t in question[:2]]
        texts.append(world.descriptive_caption(spec, random))
    return text.train_tokenizer(texts, start=True)


def make_processor(tokenizer) -> BlipProcessor:
    """The world's processor: pictures of 64 pixels to [-1, 1], texts through ``tokenizer``."""
    half, side = [0.5, 0.5, 0.5], {"height": 64, "width": 64}
    return BlipProcessor(BlipImageProcessor(size=side, image_mean=half, image_std=half), tokenizer)


def build(tokenizer, seed: int) -> BlipForQuestionAnswering:
    """An untrained judge; its weights depend on ``seed`` alone, its words on the tokenizer."""
    config = BlipConfig(vision_config=VISION, text_config=TEXT | {"vocab_size": len(tokenizer)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BlipForQuestionAnswering(config)


def save(model: BlipForQuestionAnswering, processor: BlipProcessor, directory: Path | str) -> None:
    """Writes weights (fp16), configuration, tokenizer and image processor as transformers does."""
    copy.deepcopy(model).half().save_pretrained(directory)
    processor.save_pretrained(directory)


# ---- losses --------------------------------------------------------------------------------------


def targets(processor: BlipProcessor, start: int, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it should write: token ids and labels [N, L].

    The decoder starts from the token ``start``, in BLIP not the one that starts a question; pads
    have the label -100, which losses pass over.
    """
    batch = processor.tokenizer(list(texts), padding=True, return_tensors="pt")
    labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
    ids = batch.input_ids.clone()
    ids[:, 0] = start
    return ids[:, :-1], labels[:, 1:]


def answer_loss(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    seen: Tensor,
    questions: Sequence[str],
    answers: Sequence[str],
) -> Tensor:
    """Mean negative log-likelihood of the answers' tokens, end token included: a scalar, in nats.

    ``seen`` [N, patches + 1, d] is what the picture of each question shows.
    """
    ids, labels = (
        t.to(model.device) for t in targets(processor, model.decoder_start_token_id, answers)
    )
    total = 0
    for rows, asked in by_length(processor, questions):
        states = read(model, asked, seen[rows])
        logits = model.text_decoder(ids[rows], encoder_hidden_states=states).logits
        total += F.cross_entropy(logits.flatten(0, 1), labels[rows].flatten(), reduction="sum")
    return total / (labels != -100).sum()


def caption_loss(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    seen: Tensor,
    captions: Sequence[str],
) -> Tensor:
    """Mean negative log-likelihood of the tokens of pictures' captions: a scalar, in nats.

    The decoder attends to what is seen instead of to a question: BLIP's pretraining with a
    language modelling loss, from which its question answering starts (Li et al. 2022, §3.1).
    """
    start = model.decoder_start_token_id
    ids, labels = (t.to(model.device) for t in targets(processor, start, captions))
    logits = model.text_decoder(ids, encoder_hidden_states=seen).logits
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def step_loss(
    model: BlipForQuestionAnswering,
    processor: BlipProcessor,
    world_scene: Callable[[int], world.Scene],
    *,
    seed: int,
    batch: int,
    pretraining: int,
) -> Callable[[int], dict[str, Tensor]]:
    """The loss as a function of the step, for ``train.train``.

    Each step renders ``batch`` scenes never seen before, number ``step * batch`` and following of
    ``world_scene``. In the first ``pretraining`` steps they are described, for from answers alone a
    network takes long to learn to see. From then on one question of every kind is asked about
    each scene in every other step, and those between describe on.
    """

    def at(step: int) -> dict[str, Tensor]:
        random = rng(seed, "judge/questions", step)
        specs = [world_scene(step * batch + i) for i in range(batch)]
        if step < pretraining or step % 2:
            seen = look(model, processor, np.stack([world.render(spec) for spec in specs]))
            captions = [world.descriptive_caption(spec, random) for spec in specs]
            return {"loss": caption_loss(model, processor, seen, captions)}
        asked = [ask(spec, random) for spec in specs]
        of = np.repeat(np.arange(batch), [len(a) for a in asked])
        flat = [q for a in asked for q in a]
        pictures = np.stack([world.render(spec) for spec in specs])
        seen = look(model, processor, pictures)[of]
        texts, answers, _ = zip(*flat, strict=True)
        return {"loss": answer_loss(model, processor, seen, texts, answers)}

    return at


def ask(spec: world.Scene, random: np.random.Generator) -> list[Question]:
    """One question of every kind that a scene allows, in the order of their names."""
    by_kind = defaultdict(list)
    for question in world.questions(spec, random):
        by_kind[question.kind].append(question)
    return [same[int(random.integers(len(same)))] for _, same in sorted(by_kind.items())]
