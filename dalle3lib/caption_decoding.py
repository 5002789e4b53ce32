"""What a CoCa expects next: the network step of caption decoding, for any open_clip CoCa model.

A reader holds a batch of captions in progress. Called with their tokens it returns the logits of
the token that follows each; ``keep`` drops, copies and reorders captions. There are three readers
and they compute the same numbers:

``WholeModel`` is the plain definition: open_clip's own forward on the captions so far, every time.

``CachedReader``: to write the next token, a causal transformer needs of all earlier tokens only
their keys and values in each layer. The image is encoded once, its keys and values are projected
once, each token passes through the network once, and only the last place is projected to the
vocabulary. A step then costs nearly the same however long the caption.

``RereadingReader``: a text encoder that looks both ways (roberta's) changes its mind about all
earlier tokens with each new one, so neither its keys and values nor those of the decoder above it
can be kept. What can is kept: the image, its keys and values, and the projection of one place.

How the next token is chosen is another matter, see ``caption_search``.
"""

import open_clip
import torch
from open_clip.hf_model import ClsPooler
from open_clip.transformer import ResidualAttentionBlock, TextTransformer
from torch import LongTensor, Tensor, nn
from torch.nn import functional as F

from dalle3lib import UserError

IMAGES_AT_ONCE = 32  # encoded together: what they need in between fits a processor's cache


def is_causal(model: open_clip.CoCa) -> bool:
    """Whether no token of the text changes the state of an earlier one, in blocks we know."""
    text = model.text
    if not isinstance(text, TextTransformer) or text.attn_mask is None:
        return False
    return all(isinstance(b, ResidualAttentionBlock) for b in text.transformer.resblocks)


def reader(model: open_clip.CoCa, images: Tensor, places: int, beams: int = 1):
    """The fastest exact reader of this model for images [B, 3, H, W].

    It holds B * ``beams`` captions of up to ``places`` tokens, those of one image side by side.
    """
    make = CachedReader if is_causal(model) else RereadingReader
    return make(model, images, places, beams)


def encode_images(model: open_clip.CoCa, images: Tensor) -> Tensor:
    """What the decoder sees of images [B, 3, H, W]: vectors [B, M, width], of its own type."""
    first_convolution = next(weight for weight in model.visual.parameters() if weight.ndim == 4)
    parts = images.to(first_convolution.dtype).split(IMAGES_AT_ONCE)
    vectors = torch.cat([model.visual(part)[1] for part in parts])
    return vectors.to(model.text_decoder.get_cast_dtype())


# ---- the definition ------------------------------------------------------------------------------


class WholeModel:
    """The whole model on the whole caption for each token: the definition of the other readers."""

    def __init__(self, model: open_clip.CoCa, images: Tensor, places: int, beams: int = 1):
        self.model = model
        self.images = encode_images(model, images).repeat_interleave(beams, dim=0)

    def keep(self, rows: Tensor) -> None:
        """The captions become those numbered ``rows``; each image keeps its number of them."""
        self.images = self.images[rows]

    def __call__(self, tokens: LongTensor) -> Tensor:
        """Logits [N, vocabulary] of what follows tokens [N, T]."""
        return all_logits(self.model, self.images, tokens)[:, -1]


def all_logits(model: open_clip.CoCa, image_vectors: Tensor, tokens: LongTensor) -> Tensor:
    """Logits [N, T, vocabulary] of what follows each token, by open_clip's forward.

    Images are given as ``encode_images`` returns them [N, M, width].
    """
    seen = {"image_latent": image_vectors, "image_embs": image_vectors}  # only the second is used
    logits = model(None, _readable(model, tokens), output_labels=False, **seen)["logits"]
    return logits[:, : tokens.shape[1]]


def _readable(model: open_clip.CoCa, tokens: LongTensor) -> LongTensor:
    """The tokens, with pads behind where open_clip reads texts at full length only."""
    text = model.text
    if isinstance(text, TextTransformer) and text.cls_emb is None and text.attn_mask is not None:
        return F.pad(tokens, (0, text.context_length - tokens.shape[1]), value=model.pad_id)
    return tokens


# ---- layers --------------------------------------------------------------------------------------
#
# With bfloat16 weights, the products of matrices are computed in bfloat16, but what the layers add
# up, x, is kept in float32, and so are the logits: of two logits near 10 that differ by less than
# 0.06, bfloat16 would make one.


def _project(attn: nn.MultiheadAttention, x: Tensor, first: int = 0, last: int = 3) -> Tensor:
    """Projections of x [..., width] split into heads: [..., last - first, heads, head width].

    ``attn`` stacks its three projections in one matrix: 0 is the query, 1 the key, 2 the value.
    """
    weight, bias = attn.in_proj_weight, attn.in_proj_bias
    if last - first < 3:
        rows = slice(first * attn.embed_dim, last * attn.embed_dim)
        weight, bias = weight[rows], bias[rows]
    return F.linear(x, weight, bias).unflatten(-1, (-1, attn.num_heads, attn.head_dim))


def _attend(query: Tensor, keys_values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax attention of queries [B, T, heads, head width], in the same shape.

    ``keys_values`` is [B, places, 2, heads, head width].
    """
    key, value = keys_values.transpose(1, 3).unbind(2)
    x = F.scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
    return x.transpose(1, 2)


def _rest(block: ResidualAttentionBlock, x: Tensor, attended: Tensor) -> Tensor:
    """The rest of a transformer block: what was attended to joins x, then the two-layer network."""
    x = x + block.ls_1(block.attn.out_proj(attended.reshape(x.shape)))
    return x + block.ls_2(block.mlp(block.ln_2(x.to(attended.dtype))))


def self_attention_step(
    block: ResidualAttentionBlock,
    x: Tensor,
    past: Tensor,
    position: int,
    mask: Tensor | None = None,
) -> Tensor:
    """One causal transformer block for the token at ``position``: x [N, width] to the same.

    The token's own key and value are written into ``past`` [N, places, 2, heads, head width].
    """
    projected = _project(block.attn, block.ln_1(x.to(past.dtype)))
    past[:, position] = projected[:, 1:]
    return _rest(block, x, _attend(projected[:, :1], past[:, : position + 1], mask))


def cross_attention_step(block: ResidualAttentionBlock, x: Tensor, image: Tensor) -> Tensor:
    """One block that reads the image: x [N, width] or [N, T, width] to the same.

    ``image`` [B, M, 2, heads, head width] holds keys and values of B images; the N captions are
    N / B for each image, side by side, so that all queries of an image meet its keys at once.
    """
    query = _project(block.attn, block.ln_1(x.to(image.dtype)), 0, 1)
    query = query.reshape(len(image), -1, block.attn.num_heads, block.attn.head_dim)
    return _rest(block, x, _attend(query, image))


def image_keys_values(model: open_clip.CoCa, images: Tensor) -> list[Tensor]:
    """For each layer of the decoder the images' keys and values [B, M, 2, heads, head width]."""
    vectors = encode_images(model, images)
    blocks = model.text_decoder.cross_attn
    return [_project(block.attn, block.ln_1_kv(vectors), 1, 3) for block in blocks]


# ---- readers that remember -----------------------------------------------------------------------


class CachedReader:
    """Reads each token once, keeping keys and values: for causal text encoders.

    ``text`` and ``decoder`` hold one tensor per layer [N, places, 2, heads, head width], keys and
    values of the tokens read so far (the first ``position`` places); ``image`` holds the images'.
    ``visible`` [N, places + 1] says which places the text encoder may look at.
    """

    def __init__(self, model: open_clip.CoCa, images: Tensor, places: int, beams: int = 1):
        self.model, self.beams, self.position = model, beams, 0
        self.image = image_keys_values(model, images)
        count = beams * len(images)

        def room(block: ResidualAttentionBlock) -> Tensor:
            shape = (count, places, 2, block.attn.num_heads, block.attn.head_dim)
            return self.image[0].new_empty(shape)

        self.text = [room(block) for block in model.text.transformer.resblocks]
        self.decoder = [room(block) for block in model.text_decoder.resblocks]
        self.visible = torch.ones(count, places + 1, dtype=torch.bool, device=images.device)
        self.all_visible = True

    def keep(self, rows: Tensor) -> None:
        """The captions become those numbered ``rows``; each image keeps its number of them."""
        self.visible = self.visible[rows]
        for layers in (self.text, self.decoder):
            for i, past in enumerate(layers):
                kept = past.new_empty(len(rows), *past.shape[1:])
                kept[:, : self.position] = past[rows, : self.position]
                layers[i] = kept
        images = rows[:: self.beams] // self.beams
        if len(images) < len(self.image[0]):
            self.image = [keys_values[images] for keys_values in self.image]

    def __call__(self, tokens: LongTensor) -> Tensor:
        """Logits [N, vocabulary] of what follows tokens [N, T]; only the new ones are read."""
        while self.position < tokens.shape[1]:
            x = self._decode(self._encode(tokens[:, self.position]))
            self.position += 1
        return _vocabulary(self.model, x)

    def _encode(self, token: LongTensor) -> Tensor:
        """The text encoder's state [N, width] of tokens [N] at the current position."""
        text, position = self.model.text, self.position
        mask = None
        if text.cls_emb is not None:
            # With a CLS token, open_clip hides pads as keys; in all released weights the mask is
            # shifted by one, so that what is hidden is the place after a pad.
            shown = token != text.pad_id
            self.visible[:, position + (not text.correct_cls_mask)] = shown
            self.all_visible = self.all_visible and bool(shown.all())
            if not self.all_visible:
                mask = self.visible[:, None, None, : position + 1]
        x = text.token_embedding(token).float() + text.positional_embedding[position]
        for block, past in zip(text.transformer.resblocks, self.text, strict=True):
            x = self_attention_step(block, x, past, position, mask)
        return x if text.cls_emb is not None else text.ln_final(x.to(past.dtype)).float()

    def _decode(self, x: Tensor) -> Tensor:
        """The decoder's state [N, width] above the text encoder's x, at the current position."""
        decoder = self.model.text_decoder
        layers = zip(decoder.resblocks, decoder.cross_attn, self.decoder, self.image, strict=True)
        for block, cross, past, image in layers:
            x = self_attention_step(block, x, past, self.position)
            x = cross_attention_step(cross, x, image)
        return x


class RereadingReader:
    """Reads the whole caption for each token, but the image once: for text encoders of any kind."""

    def __init__(self, model: open_clip.CoCa, images: Tensor, places: int, beams: int = 1):
        self.model, self.beams = model, beams
        self.image = image_keys_values(model, images)

    def keep(self, rows: Tensor) -> None:
        """The captions become those numbered ``rows``; each image keeps its number of them."""
        images = rows[:: self.beams] // self.beams
        if len(images) < len(self.image[0]):
            self.image = [keys_values[images] for keys_values in self.image]

    def __call__(self, tokens: LongTensor) -> Tensor:
        """Logits [N, vocabulary] of what follows tokens [N, T]."""
        decoder, length = self.model.text_decoder, tokens.shape[1]
        x = self.model.text(_readable(self.model, tokens))[1][:, :length]
        mask = decoder.attn_mask[:length, :length]
        layers = zip(decoder.resblocks, decoder.cross_attn, self.image, strict=True)
        for block, cross, image in layers:
            x = cross_attention_step(cross, block(x.to(image.dtype), attn_mask=mask), image)
        return _vocabulary(self.model, x[:, -1])


def _vocabulary(model: open_clip.CoCa, x: Tensor) -> Tensor:
    """Logits float32 [N, vocabulary] of the decoder's states [N, width]."""
    decoder = model.text_decoder
    x = decoder.ln_final(x.to(decoder.ln_final.weight.dtype))
    return x.float() @ decoder.text_projection.float()


# ---- what can be decoded -------------------------------------------------------------------------


def context_length(model: open_clip.CoCa) -> int:
    """The longest caption the model can read, in tokens.

    Raises ``UserError`` for a text encoder that hands no state of its own per token to the decoder.
    """
    if not isinstance(model.text, TextTransformer):
        pooler = getattr(model.text, "pooler", None)
        if pooler is None or type(pooler) is ClsPooler:
            raise UserError(
                f"The text encoder of this model ({type(model.text).__name__}) does not give the "
                "decoder one state per token, so no next token can be read off: use another CoCa, "
                "such as coca_ViT-L-14, or a Hugging Face text encoder with mean pooling."
            )
    return min(model.text.context_length, model.text_decoder.context_length)
