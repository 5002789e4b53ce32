"""The captioner: CoCa, a contrastive captioner (paper section 2, equations 1 and 2).

A language model gives a text the probability of its tokens, one after the other (equation 1);
a captioner is a language model that also sees the image (equation 2). Pixels are too many to
condition on, so the image is first compressed to a few vectors, which is what CLIP's image
encoder does well. CoCa (Yu et al. 2022) therefore trains an image encoder, a text encoder and a
multimodal decoder together, with CLIP's contrastive loss and the captioning loss in one step.
The text encoder is causal and never sees the image, and the decoder above it reads the image
through cross-attention, so one pass over a caption serves both losses. The paper trains this
captioner once and fine-tunes it twice: on short captions of the main subject (SSC) and on long
captions that describe everything (DSC).

The network is open_clip's ``CoCa`` class, of any size; ``WORLD_COCA`` is ours for 64 x 64 images.
Decoding is ours: ``caption_decoding`` says what may come next, ``caption_search`` chooses.
"""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.model import set_model_preprocess_cfg
from open_clip.transformer import TextTransformer
from safetensors.torch import save_file
from torch import LongTensor, Tensor, nn
from tqdm.auto import tqdm

from dalle3lib import UserError
from dalle3lib.caption_search import (
    generate,
    generate_uncached,
    log_probability,
    token_log_probabilities,
)
from dalle3lib.images import to_tensor
from dalle3lib.pretrained import loading

__all__ = [
    "WORLD_COCA",
    "Captions",
    "build",
    "caption",
    "decode",
    "encode",
    "extend_context",
    "generate",
    "generate_uncached",
    "load",
    "log_probability",
    "pixels",
    "save",
    "to_bfloat16",
    "token_log_probabilities",
    "write",
]

# open_clip's configuration schema. The sizes are those of the world's CLIP too; heads are 32 wide.
VISION = {
    "image_size": 64,
    "patch_size": 8,
    "width": 128,
    "layers": 3,
    "head_width": 32,
    "mlp_ratio": 3.0,
}
TEXT = {"context_length": 48, "width": 128, "heads": 4, "layers": 2}
# The image becomes 32 vectors for the decoder plus one for the contrastive loss
# (``attn_pooler_queries``); ``embed_cls`` puts a learned token after the text whose state is the
# contrastive text feature. ``hf_tokenizer_name`` makes ``open_clip.get_tokenizer`` read the
# tokenizer files beside the weights.
WORLD_COCA = {
    "embed_dim": 128,
    "vision_cfg": {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_queries": 33,
        "attn_pooler_heads": 4,
        "output_tokens": True,
    },
    "text_cfg": {
        **TEXT,
        "embed_cls": True,
        "pad_id": 0,
        "output_tokens": True,
        "hf_tokenizer_name": "dalle3lib-world",
    },
    "multimodal_cfg": {**TEXT},
    "pad_id": 0,
    "custom_text": True,
}
PREPROCESS = {"size": 64, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}


# ---- the model, on disk and in memory ------------------------------------------------------------


def build(tokenizer, seed: int = 0, config: dict = WORLD_COCA) -> open_clip.CoCa:
    """A new CoCa; its weights depend on ``seed`` alone, its vocabulary is the tokenizer's.

    ``tokenizer`` puts a start token in front of a text and an end token behind it.
    """
    config = copy.deepcopy(config)
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    config["text_cfg"]["vocab_size"] = len(getattr(inner, "encoder", inner))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CoCa(**{k: v for k, v in config.items() if k != "custom_text"})
        # open_clip leaves this matrix uninitialised (whatever was in memory).
        nn.init.normal_(model.text_decoder.text_projection, std=model.text_decoder.width**-0.5)
    set_model_preprocess_cfg(model, PREPROCESS | {"size": model.visual.image_size})
    return _annotate(model, config, tokenizer)


def _annotate(model: open_clip.CoCa, config: dict, tokenizer) -> open_clip.CoCa:
    """Notes on the model what ``save`` and ``generate`` need: its configuration and token ids."""
    model.model_cfg = config
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    if hasattr(inner, "sot_token_id"):  # open_clip's CLIP tokenizer
        model.start_id, model.end_id = inner.sot_token_id, inner.eot_token_id
    else:
        model.start_id, model.end_id = inner.bos_token_id, inner.eos_token_id
    return model


def save(
    model: open_clip.CoCa, tokenizer, directory: Path | str, dtype: torch.dtype = torch.float16
) -> None:
    """Writes the model as open_clip's ``local-dir:`` layout: configuration, weights, tokenizer."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model.model_cfg, "preprocess_cfg": model.visual.preprocess_cfg}
    (directory / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = {name: value.to(dtype).contiguous() for name, value in model.state_dict().items()}
    save_file(weights, directory / "open_clip_model.safetensors")
    if hasattr(tokenizer, "save_pretrained"):  # open_clip's own CLIP tokenizer needs no file
        tokenizer.save_pretrained(str(directory))


def load(name: Path | str, pretrained: str | None = None) -> tuple[open_clip.CoCa, object]:
    """A trained CoCa (float32, evaluation mode) and its tokenizer, through open_clip's own calls.

    ``name`` is a directory written by ``save``, or the name of a public architecture with the tag
    of its weights: ``load("coca_ViT-L-14", "laion2b_s13b_b90k")``. Raises ``UserError`` if there is
    no such model or its files are damaged.
    """
    local = Path(name).is_dir()
    if not local and pretrained is None:
        raise UserError(
            f"There is no captioner in {name}: give a directory made by captioner.save, or an "
            "open_clip model name with the tag of its weights."
        )
    name = f"local-dir:{name}" if local else str(name)
    with loading(f"the captioner {name}"):
        model, _, _ = open_clip.create_model_and_transforms(name, pretrained)
        tokenizer = open_clip.get_tokenizer(name)
    if not isinstance(model, open_clip.CoCa):
        raise UserError(f"{name} is a {type(model).__name__}, not a CoCa captioner.")
    return _annotate(model.eval(), open_clip.get_model_config(name), tokenizer), tokenizer


def to_bfloat16(model: open_clip.CoCa) -> open_clip.CoCa:
    """The model, changed in place, with text encoder and decoder in bfloat16; returns it.

    Its next token is that of float32 in 999 of 1,000 cases. The image encoder stays as it is: run
    once per image it is less work than the rest, and rounded too it would double the differences.
    """
    model.text.bfloat16()
    model.text_decoder.bfloat16()
    return model


def extend_context(model: open_clip.CoCa, length: int) -> open_clip.CoCa:
    """Makes room for captions of ``length`` tokens, in place; returns the model.

    Descriptive captions outgrow the 76 tokens of the public checkpoints. The new places begin as
    copies of the last one, so that a caption that goes on there finds something it knows;
    fine-tuning tells them apart. The last row belongs to the CLS token after the text and stays
    last. What the model makes of texts that fitted before does not change. ``save`` and ``load``
    keep the new length. To be called before an optimizer is made, as the parameter is a new one.

    Raises ``UserError`` if the context is longer already, or for a text encoder other than
    open_clip's own.
    """
    text, decoder = model.text, model.text_decoder
    if not isinstance(text, TextTransformer):
        raise UserError(
            "Only the context of open_clip's own text encoder can be extended, and this model has "
            f"a {type(text).__name__}: use another CoCa, such as coca_ViT-L-14."
        )
    if length < max(text.context_length, decoder.context_length):
        raise UserError(
            f"This captioner's context holds {max(text.context_length, decoder.context_length)} "
            f"tokens already: it cannot be shortened to {length}."
        )
    places, cls_place = text.positional_embedding.detach().split(
        [text.context_length, text.num_pos - text.context_length]
    )
    new = places[-1:].expand(length - len(places), -1)
    text.positional_embedding = nn.Parameter(torch.cat([places, new, cls_place]))
    text.num_pos = len(text.positional_embedding)
    model.context_length = text.context_length = decoder.context_length = length
    if text.attn_mask is not None:
        text.attn_mask = text.build_causal_mask().to(text.attn_mask)
    decoder.attn_mask = decoder.build_attention_mask().to(decoder.attn_mask)
    for tower in ("text_cfg", "multimodal_cfg"):
        model.model_cfg[tower]["context_length"] = length
    return model


def encode(tokenizer, captions: list[str], length: int) -> LongTensor:
    """Token ids of captions, int64 [N, length]: start, text, end, pads; a long text is cut.

    ``tokenizer`` is what ``load`` returned or a transformers tokenizer that adds start and end.
    """
    for number, caption in enumerate(captions):
        if not caption.strip():
            raise UserError(
                f"Caption number {number} is empty, and a captioner learns nothing from it: "
                "remove the image or write a caption."
            )
    if not hasattr(tokenizer, "bos_token_id"):  # open_clip's wrapper
        return tokenizer(captions, context_length=length)
    clean = [" ".join(caption.split()) for caption in captions]
    options = {"max_length": length, "padding": "max_length", "truncation": True}
    return tokenizer(clean, return_tensors="pt", **options).input_ids


def pixels(model: open_clip.CoCa, images: np.ndarray) -> Tensor:
    """Images uint8 [B, H, W, 3] as this model wants them: float32 [B, 3, H, W], on its device."""
    height, width = model.visual.image_size
    if images.shape[1:3] != (height, width):
        raise UserError(
            f"The captioner reads images of {height} x {width} pixels, these have "
            f"{images.shape[1]} x {images.shape[2]}: resize them first."
        )
    wanted = model.visual.preprocess_cfg
    mean, std = (torch.tensor(wanted[key])[:, None, None] for key in ("mean", "std"))
    # to_tensor gives [-1, 1], which is mean 0.5 and deviation 0.5.
    return ((to_tensor(images) - (2 * mean - 1)) / (2 * std)).to(model.logit_scale.device)


# ---- captioning ----------------------------------------------------------------------------------


def decode(tokenizer, tokens: LongTensor, end_id: int) -> list[str]:
    """The text of each row of token ids [N, L]: after the start token, before the end token."""
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    options = {} if hasattr(inner, "sot_token_id") else {"skip_special_tokens": True}
    texts = []
    for _, *row in tokens.tolist():
        row = row[: row.index(end_id)] if end_id in row else row
        texts.append(inner.decode(row, **options).strip())
    return texts


class Captions(NamedTuple):
    """What ``write`` returns: one entry per image in each field."""

    texts: list[str]
    log_probability: np.ndarray  # float32, nats, of the whole caption given the image
    truncated: np.ndarray  # bool: cut at max_len; its mean is the share to report


def _written(
    model: open_clip.CoCa,
    images: np.ndarray | Tensor,
    *,
    max_len: int,
    batch_size: int = 128,
    progress: bool = True,
    **options,
) -> Iterator:
    """What ``generate`` returns for the images, batch by batch."""
    for first in tqdm(range(0, len(images), batch_size), "captions", disable=not progress):
        batch = images[first : first + batch_size]
        batch = batch if isinstance(batch, Tensor) else pixels(model, batch)
        yield generate(model, batch, max_len=max_len, **options)


def caption(model: open_clip.CoCa, tokenizer, images: np.ndarray | Tensor, **options) -> list[str]:
    """Captions, one per image, of at most ``max_len`` tokens (start and end included).

    ``images`` are uint8 [N, H, W, 3], or a float tensor [N, 3, H, W] prepared for this model.
    Options: ``max_len``, ``batch_size`` (128; changes no caption), ``progress`` (True), and how
    ``generate`` chooses, such as the strategy. Raises ``UserError`` as ``generate`` and ``pixels``.
    """
    batches = _written(model, images, **options)
    return [text for tokens in batches for text in decode(tokenizer, tokens, model.end_id)]


def write(model: open_clip.CoCa, tokenizer, images: np.ndarray | Tensor, **options) -> Captions:
    """As ``caption``, with the log-probability of each caption and whether it was cut.

    A caption is cut when it comes to ``max_len`` tokens without having ended.
    """
    texts, scores, cut = [], [], []
    for tokens, score in _written(model, images, return_log_probability=True, **options):
        texts += decode(tokenizer, tokens, model.end_id)
        scores.append(score.cpu().numpy())
        cut.append((tokens[:, 1:] != model.end_id).all(dim=1).cpu().numpy())
    join = np.concatenate if texts else np.array
    return Captions(texts, join(scores).astype(np.float32), join(cut).astype(bool))
