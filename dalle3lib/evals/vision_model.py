"""A local vision-language model that answers messages with pictures, by transformers.

It stands where a server would: a ``send`` function for ``completions.Client``, so that a judge of
this machine is asked, cached and named as one behind a server. As in ``chat_model``, nothing is run
that comes with a model, and a model of the hub is named with its commit.
"""

import base64
import binascii
import io
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from dalle3lib import UserError, chat_model, completions, paths, pretrained
from dalle3lib.completion_cache import Answer


def client(
    model: str | Path, revision: str | None = None, device: str = "cpu", **settings: Any
) -> completions.Client:
    """A client for a local model; ``settings`` are those of ``completions.Client``.

    ``model`` is a folder, or a name of the hub with its ``revision``. The model is read when the
    first answer is not in the cache. Raises UserError as ``chat_model.name`` does.
    """

    def send(request: dict[str, Any]) -> Answer:
        return respond(*load(model, revision, device), request)

    name = chat_model.name(model, revision)
    return completions.Client(name, send, **({"workers": 1} | settings))


@cache
def load(model: str | Path, revision: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The network (its own precision on a GPU, float32 on a processor) and the processor.

    Raises UserError if it cannot be read, or if it has no chat template.
    """
    where = paths.folder(model)
    source: dict[str, Any] = {"trust_remote_code": False}
    source |= {} if where.is_dir() else {"revision": revision}
    name = str(where) if where.is_dir() else str(model)
    dtype = torch.float32 if device == "cpu" else "auto"
    with pretrained.loading(f"the vision model {model}"):
        processor = AutoProcessor.from_pretrained(name, **source)
        network = AutoModelForImageTextToText.from_pretrained(
            name, use_safetensors=True, dtype=dtype, **source
        )
    if not getattr(processor, "chat_template", None):
        raise UserError(f"{model} has no chat template for pictures and texts.")
    return network.eval().requires_grad_(False).to(device), processor


def turns(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Messages in OpenAI's format as processors take them: lists of texts and PIL pictures."""

    def part(given: dict[str, Any]) -> dict[str, Any]:
        if given["type"] == "text":
            return given
        return {"type": "image", "image": picture(given["image_url"]["url"])}

    return [
        {"role": m["role"], "content": [{"type": "text", "text": m["content"]}]}
        if isinstance(m["content"], str)
        else {"role": m["role"], "content": [part(p) for p in m["content"]]}
        for m in messages
    ]


def picture(url: str) -> Image.Image:
    """The picture in a data URL; UserError for another address, for nothing is fetched here."""
    head, _, data = url.partition(",")
    try:
        if not head.startswith("data:image/") or not head.endswith(";base64"):
            raise ValueError("it is no data URL")
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (ValueError, OSError, binascii.Error) as error:
        raise UserError(f"A picture in a message cannot be read ({error}).") from None


def respond(network: Any, processor: Any, request: dict[str, Any]) -> Answer:
    """The model's answer to a request: ``messages``, ``max_tokens``, ``temperature``, ``seed``.

    Drawn as by ``chat_model.respond``. Raises UserError if the chat template drops a picture: a
    judge that sees nothing would answer all the same.
    """
    asked = turns(request["messages"])
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    try:
        given = processor.apply_chat_template(asked, **how, return_tensors="pt")
    except Exception as error:  # chat templates and processors raise what they like
        said = " ".join(str(error).split())[:200]
        raise UserError(f"The model's processor refuses these messages ({said}).") from error
    shown = any(part["type"] == "image" for turn in asked for part in turn["content"])
    if shown and "pixel_values" not in given:
        raise UserError("The model's chat template leaves pictures out: it would judge blindly.")
    given = given.to(network.device, dtype=network.dtype)
    return chat_model.generate(network, processor, given, request)
