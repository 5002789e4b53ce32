"""CLIP score: how well an image fits a text (paper §3.3; Radford et al. 2021).

The paper's variant is plain: 100 times the cosine of the image's and the text's features. Hessel
et al. (2021), whom it cites, have a weight of 2.5, no negative values, and the prefix "A photo
depicts". Numbers of one never compare with the other's, so tables say which they hold.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from dalle3lib import UserError, captioner, captioner_training, stats
from dalle3lib.images import centre_square
from dalle3lib.pretrained import loading
from dalle3lib.randomness import rng

# The world's scorer: a small CLIP for 64 x 64 images, in open_clip's configuration schema. Its
# text feature is the state of the end token (id 1 of the world's tokenizer).
WORLD_CLIP = {
    "embed_dim": 128,
    "vision_cfg": {**captioner.VISION},
    "text_cfg": {
        **captioner.TEXT,
        "pool_type": "eos",
        "eos_id": 1,
        "hf_tokenizer_name": "dalle3lib-world",
    },
}
PREFIX = "A photo depicts "  # of Hessel et al., for which the text's own beginning may be small


def build(tokenizer, seed: int) -> open_clip.CLIP:
    """An untrained scorer; its weights depend on ``seed`` alone, its words on the tokenizer."""
    text_cfg = {**WORLD_CLIP["text_cfg"], "vocab_size": len(tokenizer)}
    config = {**WORLD_CLIP, "text_cfg": text_cfg}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    model.model_cfg, model.visual.preprocess_cfg = config, captioner.PREPROCESS
    return model


def contrastive_loss(model: torch.nn.Module, images: Tensor, tokens: Tensor) -> Tensor:
    """CLIP's loss: each image must pick its text among the batch's, and each text its image.

    ``images`` float [B, 3, H, W], ``tokens`` int64 [B, L]; a scalar (Radford et al. 2021, Fig. 3).
    """
    image = model.encode_image(images, normalize=True)
    text = model.encode_text(tokens, normalize=True)
    return captioner_training.contrastive_loss(image, text, model.logit_scale)


def load(name: str | Path, pretrained: str | None = None) -> tuple[torch.nn.Module, object]:
    """A CLIP model (evaluation mode) and its tokenizer by open_clip's own calls.

    ``name`` is a local directory in open_clip's layout, or an architecture with the tag of its
    weights: ``load("ViT-B-32", "openai")``. Raises UserError if it cannot be loaded.
    """
    local = f"local-dir:{name}" if Path(name).is_dir() else str(name)
    with loading(f"the CLIP model {name}"):
        model, _, _ = open_clip.create_model_and_transforms(local, pretrained)
        return model.eval().requires_grad_(False), open_clip.get_tokenizer(local)


@torch.no_grad()
def image_features(model: torch.nn.Module, images: np.ndarray, batch: int = 256) -> Tensor:
    """Unit-length image features [N, d] of images uint8 [N, H, W, 3].

    Of images of another size than the model's, the centre squares are scaled (``resized``).
    """
    parts = (resized(model, images[i : i + batch]) for i in range(0, len(images), batch))
    return torch.cat(
        [model.encode_image(captioner.pixels(model, p), normalize=True) for p in parts]
    )


@torch.no_grad()
def text_features(
    model: torch.nn.Module, tokenizer, texts: Sequence[str], batch: int = 256
) -> Tensor:
    """Unit-length text features [N, d]; long texts are cut but keep their end token."""
    parts = [list(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    device = model.logit_scale.device
    return torch.cat([model.encode_text(tokenizer(p).to(device), normalize=True) for p in parts])


def resized(model: torch.nn.Module, images: np.ndarray) -> np.ndarray:
    """The centre squares of images uint8 [N, H, W, 3], scaled to the size that the model reads."""
    size = model.visual.image_size[0]
    if images.shape[1:3] == (size, size):
        return images
    return np.stack([centre_square(Image.fromarray(image), size) for image in images])


def truncated(model: torch.nn.Module, tokenizer, texts: Sequence[str]) -> np.ndarray:
    """Which texts are longer than the scorer's context, so that it sees their beginning only.

    Bool [N].
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    tokens = tokenizer(list(texts), context_length=model.context_length + 1)
    return (tokens[:, -1] != (getattr(inner, "pad_token_id", 0) or 0)).numpy()


def clip_scores(
    model: torch.nn.Module,
    tokenizer,
    images: np.ndarray,
    texts: Sequence[str],
    variant: str = "paper",
) -> np.ndarray:
    """The CLIP score of each image with its own text: float64 array [N].

    Variant "paper": 100 × cosine, in [-100, 100] (section 3.2); "hessel": 2.5 × max(0, cosine) of
    the text behind "A photo depicts", in [0, 2.5] (Hessel et al. 2021, equation 1). Images are
    uint8 [N, H, W, 3]. Raises UserError if there are not as many texts as images, or for another
    variant.
    """
    if len(images) != len(texts):
        raise UserError(f"There are {len(images)} images but {len(texts)} texts: give one each.")
    if variant not in ("paper", "hessel"):
        raise UserError(f"There is no CLIP score {variant!r}: choose paper or hessel.")
    said = [PREFIX + t for t in texts] if variant == "hessel" else texts
    features = image_features(model, images), text_features(model, tokenizer, said)
    cosine = F.cosine_similarity(*features).double().cpu().numpy()
    return 2.5 * cosine.clip(0) if variant == "hessel" else 100 * cosine


def score_images(
    model: torch.nn.Module,
    tokenizer,
    images: np.ndarray,
    prompts: Sequence[str],
    seed: int = 0,
    variant: str = "paper",
) -> pd.DataFrame:
    """A row for each image: prompt, seed, image (its number), score, and the reason for it.

    The reason says which variant it is, and whether the scorer saw the prompt's beginning only.
    """
    scores = clip_scores(model, tokenizer, images, prompts, variant)
    cut = truncated(model, tokenizer, prompts)
    notes = np.where(cut, "; the prompt is longer than the scorer's context and was cut", "")
    name = {"paper": "100 x cosine", "hessel": "2.5 x max(0, cosine), A photo depicts"}[variant]
    table = pd.DataFrame({"prompt": list(prompts), "seed": seed, "image": range(len(images))})
    return table.assign(score=scores, reason=[name + note for note in notes])


def by_kind(
    model: torch.nn.Module, tokenizer, images: np.ndarray, texts: dict[str, Sequence[str]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The CLIP scores of several kinds of caption of the same images [N], and their summary.

    The scores have a row per image and a column per kind; the summary a row per kind with the
    mean "CLIP score", its 95 % interval over images, and the "share cut" by the scorer's context.
    """
    scores = {kind: clip_scores(model, tokenizer, images, found) for kind, found in texts.items()}
    rows = {}
    for kind, found in texts.items():
        low, high = stats.mean_interval(scores[kind], rng(0, kind))
        cut = truncated(model, tokenizer, found).mean()
        rows[kind] = {"CLIP score": scores[kind].mean(), "low": low, "high": high, "share cut": cut}
    return pd.DataFrame(scores), pd.DataFrame(rows).T
