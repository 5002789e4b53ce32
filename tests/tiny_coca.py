"""CoCa models small enough to test with: random weights, 16 x 16 images."""

import copy
from pathlib import Path

import open_clip
import torch
from transformers import RobertaConfig

from dalle3lib import captioner, text

SIZE = 16
CAPTIONS = [
    "a red circle",
    "a blue square on a grey background",
    "two green triangles, one above the other",
    "a small yellow star to the left of a large purple cross",
    "an orange ring",
    "stripes",
    "the word HI on a black background",
    "a white circle inside a pink square",
]


def tiny_tokenizer():
    """A tokenizer of 400 tokens: pad 0, end 1, start 2."""
    return text.train_tokenizer(CAPTIONS * 20, vocab_size=400, start=True)


def tiny_config(**changes) -> dict:
    """A CoCa for 16 x 16 images; ``changes`` are entries of its three towers, as tower__name."""
    config = copy.deepcopy(captioner.WORLD_COCA)
    config["embed_dim"] = 48
    config["vision_cfg"].update(
        image_size=SIZE, patch_size=4, width=32, layers=2, head_width=16, attn_pooler_queries=9
    )
    config["text_cfg"].update(context_length=40, width=48, heads=3, layers=2)
    config["multimodal_cfg"].update(context_length=40, width=48, heads=2, layers=3)
    for name, value in changes.items():
        tower, name = name.split("__")
        config[tower][name] = value
    return config


def spread(model: open_clip.CoCa, seed: int) -> open_clip.CoCa:
    """The model with random outputs spread enough that captions differ and ties do not occur."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        if hasattr(model.text, "token_embedding"):
            model.text.token_embedding.weight.normal_()
            model.text.positional_embedding.normal_()
        model.text_decoder.text_projection.normal_()
        for block in model.text_decoder.cross_attn:
            block.attn.out_proj.weight.normal_()
    return model.eval()


def random_model(tokenizer, seed: int = 0, **changes) -> open_clip.CoCa:
    """A random CoCa; ``changes`` go to ``tiny_config``."""
    return spread(captioner.build(tokenizer, seed, tiny_config(**changes)), seed)


def public_model(name: str, seed: int = 0, **vision) -> open_clip.CoCa:
    """A public architecture, narrow and shallow; text length, vocabulary, tokenizer as they are.

    Images have two patches a side unless ``vision`` says something else of the image encoder.
    """
    config = open_clip.get_model_config(name)
    config["embed_dim"], patch = 64, config["vision_cfg"]["patch_size"]
    config["vision_cfg"] |= {"image_size": 2 * patch, "width": 64, "head_width": 16, "layers": 2}
    config["vision_cfg"] |= vision
    for tower in ("text_cfg", "multimodal_cfg"):
        config[tower] |= {"width": 64, "heads": 4, "layers": 2}
    return spread(captioner.build(open_clip.get_tokenizer(name), seed, config), seed)


def roberta_model(directory: Path, seed: int = 0, **text_cfg) -> open_clip.CoCa:
    """``coca_roberta-ViT-B-32`` in small: a Hugging Face text encoder with 120 tokens."""
    roberta = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {"vocab_size": 120, "intermediate_size": 64, "max_position_embeddings": 42}
    RobertaConfig(**roberta, **sizes).save_pretrained(directory)
    config = open_clip.get_model_config("coca_roberta-ViT-B-32")
    vision = {"image_size": 16, "patch_size": 4, "width": 32, "head_width": 16, "layers": 2}
    config["vision_cfg"] |= vision
    config["text_cfg"] |= {"hf_model_name": str(directory), "hf_model_pretrained": False}
    config["text_cfg"] |= {"vocab_size": 120, "width": 32, **text_cfg}
    config["multimodal_cfg"] |= {"width": 32, "heads": 2, "layers": 2, "context_length": 24}
    del config["custom_text"]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.CoCa(**config)
    model.start_id, model.end_id = 0, 2
    return spread(model, seed)


def random_images(count: int, seed: int = 0, size: int = SIZE) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
