"""A vision-language model with random weights, in the format that transformers saves."""

from pathlib import Path

import torch
from tiny_chat import MARKS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% for p in m['content'] %}"
    "{% if p['type'] == 'image' %}<image>{% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
BLIND = TEMPLATE.replace("<image>", "")  # forgets the pictures
SIDE, PATCH = 32, 8  # pixels
PLAIN = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32}


def write_vision_model(folder: Path, seed: int = 0, template: str | None = TEMPLATE) -> Path:
    """A LLaVA of two small layers on either side, with a byte-level tokenizer."""
    signs = [*MARKS, "<image>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({sign: i for i, sign in enumerate(signs)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=MARKS[0], pad_token=MARKS[0]
    )
    fast.add_special_tokens({"additional_special_tokens": [*MARKS[1:], "<image>"]})
    size = {"height": SIDE, "width": SIDE}
    processor = LlavaProcessor(
        CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size),
        fast,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    torch.manual_seed(seed)
    marks = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            **PLAIN, intermediate_size=64, image_size=SIDE, patch_size=PATCH
        ),
        text_config=LlamaConfig(
            **PLAIN,
            vocab_size=len(signs),
            intermediate_size=64,
            max_position_embeddings=8192,
            **marks,
        ),
        image_token_index=signs.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    model = LlavaForConditionalGeneration(config)
    for parameter in model.model.multi_modal_projector.parameters():
        parameter.data.mul_(20)  # so that what is seen changes what is said
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
