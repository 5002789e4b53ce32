"""Greedy decoding of CoCa with key/value caches, for any open_clip CoCa model.

To write the next token, a transformer needs of all earlier tokens only their keys and values in
each layer. ``generate_uncached`` is the plain definition: run the whole model on the caption so
far, take the most probable next token, repeat. ``generate`` gives the same tokens, but encodes the
image once, projects its keys and values once, passes each token through the network once, and
drops a caption from the batch when it ends. A step then costs the same however long the caption.
"""

from dataclasses import dataclass

import open_clip
import torch
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from dalle3lib import UserError


@dataclass
class Cache:
    """What has been read so far of B captions, as the attention layers need it.

    ``text``, ``decoder`` and ``image`` hold one tensor per layer: keys and values
    [2, B, heads, places, head width] of the tokens in the text encoder and in the decoder (filled
    up to the current position), and of the image vectors. ``visible`` [B, places + 1] says which
    places the text encoder may look at.
    """

    text: list[Tensor]
    decoder: list[Tensor]
    image: list[Tensor]
    visible: Tensor

    def keep(self, rows: Tensor) -> None:
        """Only the captions ``rows`` stay (indices into the batch)."""
        for layers in (self.text, self.decoder, self.image):
            layers[:] = [keys_values[:, rows] for keys_values in layers]
        self.visible = self.visible[rows]


def _project(attn: nn.MultiheadAttention, x: Tensor, first: int, last: int) -> Tensor:
    """Projections of x [B, T, width] split into heads: [last - first, B, heads, T, head width].

    ``attn`` stacks its three projections in one matrix: 0 is the query, 1 the key, 2 the value.
    """
    rows = slice(first * attn.embed_dim, last * attn.embed_dim)
    x = F.linear(x, attn.in_proj_weight[rows], attn.in_proj_bias[rows])
    return x.unflatten(-1, (last - first, attn.num_heads, attn.head_dim)).permute(2, 0, 3, 1, 4)


def _attend(
    attn: nn.MultiheadAttention, query: Tensor, keys_values: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Softmax attention of one query per caption [B, heads, 1, head width]: [B, 1, width]."""
    key, value = keys_values
    x = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attn.out_proj(x.transpose(1, 2).flatten(2))


def self_attention_step(
    block: ResidualAttentionBlock,
    x: Tensor,
    past: Tensor,
    position: int,
    mask: Tensor | None = None,
) -> Tensor:
    """One causal transformer block for the token at ``position``: x [B, 1, width] to the same.

    The token's own key and value are written into ``past`` [2, B, heads, places, head width].
    """
    projected = _project(block.attn, block.ln_1(x), 0, 3)
    past[:, :, :, position] = projected[1:, :, :, 0]
    x = x + block.ls_1(_attend(block.attn, projected[0], past[:, :, :, : position + 1], mask))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def cross_attention_step(block: ResidualAttentionBlock, x: Tensor, image: Tensor) -> Tensor:
    """One block that reads the image: x [B, 1, width], image [2, B, heads, M, head width]."""
    query = _project(block.attn, block.ln_1(x), 0, 1)[0]
    x = x + block.ls_1(_attend(block.attn, query, image))
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def start_cache(model: open_clip.CoCa, images: Tensor, places: int) -> Cache:
    """Encodes images [B, 3, H, W] once and makes room for captions of up to ``places`` tokens."""
    _, image_tokens = model.visual(images)

    def room(block: ResidualAttentionBlock) -> Tensor:
        heads, width = block.attn.num_heads, block.attn.head_dim
        return image_tokens.new_empty(2, len(images), heads, places, width)

    decoder = model.text_decoder
    return Cache(
        text=[room(block) for block in model.text.transformer.resblocks],
        decoder=[room(block) for block in decoder.resblocks],
        image=[_project(b.attn, b.ln_1_kv(image_tokens), 1, 3) for b in decoder.cross_attn],
        visible=torch.ones(len(images), places + 1, dtype=torch.bool, device=images.device),
    )


def encode_text_step(
    text: TextTransformer, cache: Cache, tokens: LongTensor, position: int
) -> Tensor:
    """The text encoder's state [B, 1, width] of ``tokens`` [B], which stand at ``position``."""
    if text.cls_emb is not None:
        # With a CLS token, open_clip hides pads as keys; in all released weights the mask is
        # shifted by one, so that what is hidden is the place after a pad.
        cache.visible[:, position + (not text.correct_cls_mask)] = tokens != text.pad_id
    visible = cache.visible[:, : position + 1]
    mask = None if visible.all() else visible[:, None, None]
    x = (text.token_embedding(tokens) + text.positional_embedding[position])[:, None]
    for block, past in zip(text.transformer.resblocks, cache.text, strict=True):
        x = self_attention_step(block, x, past, position, mask)
    return x if text.cls_emb is not None else text.ln_final(x)


def decode_step(model: open_clip.CoCa, cache: Cache, tokens: LongTensor, position: int) -> Tensor:
    """Logits [B, vocabulary] of what follows ``tokens`` [B], which stand at ``position``.

    All tokens before that position must be in the cache; these are added to it.
    """
    x = encode_text_step(model.text, cache, tokens, position)
    decoder = model.text_decoder
    layers = zip(decoder.resblocks, decoder.cross_attn, cache.decoder, cache.image, strict=True)
    for block, cross, past, image in layers:
        x = self_attention_step(block, x, past, position)
        x = cross_attention_step(cross, x, image)
    return decoder.ln_final(x[:, 0]) @ decoder.text_projection


@torch.no_grad()
def generate(
    model: open_clip.CoCa,
    images: Tensor,
    *,
    max_len: int,
    prompt: LongTensor | None = None,
    start_id: int | None = None,
    end_id: int | None = None,
) -> LongTensor:
    """Captions of images float [B, 3, H, W] by greedy decoding: token ids int64 [B, max_len].

    Each caption begins with ``prompt`` [B, P] (default: the start token), goes on with the most
    probable token until the end token or ``max_len`` tokens in all, and is filled up with pads; a
    row without end token was cut. ``start_id`` and ``end_id`` default to the model's own. The
    model should be in evaluation mode. Raises ``UserError`` if ``max_len`` exceeds the model's
    context, or for a text encoder other than open_clip's own causal one.
    """
    prompt, end_id = _checked(model, images, max_len, prompt, start_id, end_id)
    tokens = F.pad(prompt, (0, max_len - prompt.shape[1]), value=model.pad_id)
    rows = (prompt[:, -1] != end_id).nonzero()[:, 0]  # captions not finished yet
    cache = start_cache(model, images[rows], max_len) if len(rows) else None
    for position in range(max_len - 1):
        if not len(rows):
            break
        logits = decode_step(model, cache, tokens[rows, position], position)
        if position + 1 < prompt.shape[1]:
            continue  # the prompt says what follows
        following = logits.argmax(dim=-1)
        tokens[rows, position + 1] = following
        going = (following != end_id).nonzero()[:, 0]
        if len(going) < len(rows):
            rows = rows[going]
            cache.keep(going)
    return tokens


@torch.no_grad()
def generate_uncached(
    model: open_clip.CoCa,
    images: Tensor,
    *,
    max_len: int,
    prompt: LongTensor | None = None,
    start_id: int | None = None,
    end_id: int | None = None,
) -> LongTensor:
    """The definition of what ``generate`` computes: the whole model on each growing caption."""
    tokens, end_id = _checked(model, images, max_len, prompt, start_id, end_id)
    seen = dict(zip(("image_latent", "image_embs"), model.visual(images), strict=True))
    finished = tokens[:, -1] == end_id
    while tokens.shape[1] < max_len:
        logits = model(images, tokens, output_labels=False, **seen)["logits"]
        following = logits[:, -1].argmax(dim=-1).masked_fill(finished, model.pad_id)
        tokens = torch.cat([tokens, following[:, None]], dim=1)
        finished |= following == end_id
    return tokens


def _checked(
    model: open_clip.CoCa,
    images: Tensor,
    max_len: int,
    prompt: LongTensor | None,
    start_id: int | None,
    end_id: int | None,
) -> tuple[LongTensor, int]:
    """The prompt [B, P] and the end token with defaults filled in, or why it cannot be done."""
    text = model.text
    blocks = text.transformer.resblocks if isinstance(text, TextTransformer) else []
    plain = blocks and all(isinstance(block, ResidualAttentionBlock) for block in blocks)
    if not plain or text.attn_mask is None:
        raise UserError(
            "Cached decoding needs open_clip's own causal text encoder, which this model does not "
            "have (a Hugging Face encoder such as roberta's?): use another CoCa, such as "
            "coca_ViT-L-14."
        )
    context = min(text.context_length, model.text_decoder.context_length)
    if not 1 <= max_len <= context:
        raise UserError(
            f"max_len is {max_len}, but this captioner's context holds 1 to {context} tokens."
        )
    start_id = getattr(model, "start_id", None) if start_id is None else start_id
    end_id = getattr(model, "end_id", None) if end_id is None else end_id
    if end_id is None or (prompt is None and start_id is None):
        raise UserError(
            "The start and end tokens of this model are not known: load it with captioner.load or "
            "give start_id and end_id."
        )
    if prompt is None:
        prompt = torch.full((len(images), 1), start_id)
    if prompt.shape[0] != len(images) or not 1 <= prompt.shape[1] <= max_len:
        raise UserError(
            f"The prompt has shape {list(prompt.shape)}; for {len(images)} images and max_len "
            f"{max_len} it needs {len(images)} rows of 1 to {max_len} tokens."
        )
    return prompt.to(images.device), end_id
