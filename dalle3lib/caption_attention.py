"""Where a captioner looks while it writes: the attention of each word over the image.

CoCa's decoder never sees the patches. It attends to the vectors into which the attentional pooler
has gathered them, and a pooled vector has no place in the picture. Two attentions therefore have
to be put one behind the other: how much a word takes from each pooled vector, times how much that
vector took from each patch. The weights are those that PyTorch's own attention layers compute, so
this works for every CoCa with open_clip's own image encoder, of whatever size.

A map says which patches the last layers read, not why a word was chosen: patches have exchanged
what they know in the image encoder, and a weight says nothing of what it carries
(Jain and Wallace 2019).
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import numpy as np
import open_clip
import torch
from open_clip.transformer import VisionTransformer
from torch import LongTensor, Tensor, nn

from dalle3lib import UserError
from dalle3lib.caption_decoding import all_logits, encode_images, is_causal
from dalle3lib.captioner import decode, generate, pixels


@contextmanager
def watched(layer: nn.MultiheadAttention) -> Iterator[list[Tensor]]:
    """The attention weights of each call of a layer: a list of [B, heads, queries, keys].

    Within the ``with`` block the layer is told to return its weights beside what it computes; the
    list grows by one entry a call. Each row of weights sums to 1.
    """
    calls: list[Tensor] = []
    wanted = {"need_weights": True, "average_attn_weights": False}
    hooks = (
        layer.register_forward_pre_hook(
            lambda module, args, options: (args, options | wanted), with_kwargs=True
        ),
        layer.register_forward_hook(lambda module, args, result: calls.append(result[1])),
    )
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


class Looked(NamedTuple):
    """What ``over_image`` returns. Token t of a caption is entry t - 1: the first is given."""

    patches: Tensor  # float32 [B, L - 1, rows, columns], share of the attention on each patch
    class_token: Tensor  # float32 [B, L - 1], what is left: the encoder's token without a place


@torch.no_grad()
def over_image(model: open_clip.CoCa, images: Tensor, tokens: LongTensor) -> Looked:
    """The attention over the patches of the image while each token of its caption was chosen.

    ``images`` float [B, 3, H, W] as the model wants them, ``tokens`` int64 [B, L] as ``generate``
    returns them. The decoder's weights are averaged over its layers and heads, the pooler's over
    its heads, and the two averages multiplied: the mean over all paths that combine one decoder
    head of one layer with one pooler head. Patches and class token together sum to 1.

    Where the decoder sees the patches themselves (coca_roberta-ViT-B-32 has no pooler), only the
    first average is needed. Raises ``UserError`` for an image encoder other than open_clip's own.
    """
    visual = model.visual
    if not isinstance(visual, VisionTransformer):
        raise UserError(
            f"This model's image encoder is a {type(visual).__name__}, whose attention cannot be "
            "traced back to patches: use a CoCa such as coca_ViT-L-14."
        )
    with ExitStack() as watching:
        pooler = visual.attn_pool and watching.enter_context(watched(visual.attn_pool.attn))
        vectors = encode_images(model, images)
    words_to_vectors = _decoder_attention(model, vectors, tokens)
    if pooler:
        vectors_to_image = torch.cat(pooler).float().mean(dim=1)
    else:
        vectors_to_image = torch.eye(len(visual.positional_embedding), device=vectors.device)
    # The contrastive query, or the class token, comes first and may be hidden from the decoder.
    shares = words_to_vectors @ vectors_to_image[..., -words_to_vectors.shape[-1] :, :]
    rows, columns = model.visual.grid_size
    return Looked(shares[..., 1:].unflatten(-1, (rows, columns)), shares[..., 0])


def _decoder_attention(model: open_clip.CoCa, vectors: Tensor, tokens: LongTensor) -> Tensor:
    """Each token's attention over the image's vectors [B, M, width]: float32 [B, L - 1, M].

    A token is chosen at the place of the one before it, so the last token is never read.
    """
    # A text encoder that looks both ways must not see the words that come later: see is_causal.
    lengths = [tokens.shape[1] - 1] if is_causal(model) else range(1, tokens.shape[1])
    with ExitStack() as watching:
        layers = [
            watching.enter_context(watched(block.attn)) for block in model.text_decoder.cross_attn
        ]
        for length in lengths:
            all_logits(model, vectors, tokens[:, :length])
    passes = zip(*layers, strict=True)  # in each: one tensor [B, heads, places, M] per layer
    weights = [torch.stack(layer).float().mean(dim=(0, 2)) for layer in passes]
    if is_causal(model):
        return weights[0][:, : lengths[0]]
    return torch.stack([w[:, n - 1] for n, w in zip(lengths, weights, strict=True)], dim=1)


# A word, a quotation as a whole, or a mark: "heart." ends in a token of its own.
WORD = re.compile(r"""\"[^"]*\"|\w+(?:[-'’]\w+)*|[^\w\s]""")


class Word(NamedTuple):
    """A word of a caption and the places of its tokens in the row that ``generate`` returned."""

    text: str
    places: list[int]


def words(tokenizer, tokens: LongTensor, end_id: int) -> list[Word]:
    """The words of one caption, tokens int64 [L], with the places of their tokens.

    Marks count as words of their own, and what stands in double quotes is one word.
    A token that begins one word and ends another, which few tokenizers know, belongs to both.
    """
    tokens = tokens.cpu()
    ended = (tokens[1:] == end_id).nonzero()
    length = int(ended[0]) + 1 if len(ended) else len(tokens)
    begun = tokens[:length].repeat(length, 1)
    begun[torch.ones_like(begun).triu(1).bool()] = end_id  # row i keeps the tokens up to place i
    texts = decode(tokenizer, begun, end_id)
    reached = [len(text) for text in texts]
    found = []
    for match in WORD.finditer(texts[-1]):
        places = [
            place
            for place in range(1, length)
            if reached[place - 1] < match.end() and reached[place] > match.start()
        ]
        found.append(Word(match.group(), places))
    return found


def word_maps(words: Sequence[Word], patches: Tensor) -> np.ndarray:
    """Each word's attention over the patches: float64 [words, rows, columns], each sums to 1.

    ``patches`` [L - 1, rows, columns] is one caption's entry of ``over_image``. A word of several
    tokens gets their mean; what went to the class token is left out.
    """
    places = [[place - 1 for place in word.places] for word in words]
    maps = torch.stack([patches[at].mean(dim=0) for at in places]).double().cpu().numpy()
    return maps / maps.sum(axis=(1, 2), keepdims=True)


class Trace(NamedTuple):
    """Captions written anew, and where their words looked: what ``trace`` returns."""

    tokens: LongTensor  # [N, max_len], as generate returns them
    words: list[list[Word]]  # of each caption
    patches: Tensor  # [N, max_len - 1, rows, columns], see Looked
    class_token: Tensor  # [N, max_len - 1]


def trace(
    model: open_clip.CoCa, tokenizer, images: np.ndarray, *, max_len: int, batch_size: int = 128
) -> Trace:
    """Greedy captions of images uint8 [N, H, W, 3] with the attention of every token."""
    tokens, looked = [], []
    for first in range(0, len(images), batch_size):
        batch = pixels(model, images[first : first + batch_size])
        tokens.append(generate(model, batch, max_len=max_len))
        looked.append(over_image(model, batch, tokens[-1]))
    patches, class_token = (torch.cat(part) for part in zip(*looked, strict=True))
    rows = torch.cat(tokens)
    said = [words(tokenizer, row, model.end_id) for row in rows]
    return Trace(rows, said, patches, class_token)
