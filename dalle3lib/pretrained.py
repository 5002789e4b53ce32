"""Public models in the place of the world's foundations, each at a fixed revision; the device.

The parameters ``vae``, ``t5`` and ``clip`` of a notebook name a model each: "world" (the shipped
foundation), a public model of the list below, or a directory in the same format. Nothing is run
that comes with a model: weights and configurations are read, ``trust_remote_code`` stays False.
"""

import contextlib
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import huggingface_hub
import torch

from dalle3lib import UserError, config, paths
from dalle3lib.config import Parameters

ROLES = ("vae", "t5", "clip")  # the parameters that name a model
SHIPPED = Parameters("", "", {})  # names no model: the world's, on the processor
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Model:
    """A public model: where it is, which commit, the files needed and their size in bytes."""

    role: str
    name: str
    revision: str
    files: tuple[str, ...]
    size: int
    licence: str

    def __str__(self) -> str:
        return f"{self.name}@{self.revision[:7]}, {self.size / 1e9:.1f} GB, {self.licence}"

    def command(self) -> str:
        """The shell command that downloads it."""
        words = ["hf", "download", self.name, *self.files, "--revision", self.revision]
        return shlex.join(words)


# T5's public repositories hold no safetensors; torch reads their weights without running pickles
# (``weights_only``), and only the encoder is kept.
T5_FILES = ("config.json", "pytorch_model.bin", "spiece.model", "tokenizer_config.json")
T5_FILES += ("special_tokens_map.json",)
MODELS = (
    Model(
        "vae",
        "stabilityai/sd-vae-ft-mse",
        "31f26fdeee1355a5c34592e401dd41e45d25a493",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        334_643_823,
        "MIT",
    ),
    Model(
        "t5",
        "google/t5-v1_1-large",
        "a98b0fcd0b8137ded40cdf0c0cf0ee884e7c9726",
        T5_FILES,
        3_132_600_000,
        "Apache-2.0",
    ),
    Model(
        "t5",
        "google/t5-v1_1-xxl",
        "3db67ab1af984cf10548a73467f0e5bca2aaaeb2",
        T5_FILES,
        44_541_000_000,
        "Apache-2.0",
    ),
    Model(
        "clip",
        "timm/vit_base_patch32_clip_224.openai",
        "a6f597a30f7b82c51704746581f9a4e41421e878",
        ("open_clip_config.json", "open_clip_model.safetensors"),
        605_144_000,
        "MIT",
    ),
    Model(
        "coca",
        "laion/CoCa-ViT-L-14-laion2B-s13B-b90k",
        "74207cb7fde8eafc9864451ebd332fa8e75b150f",
        ("open_clip_config.json", "open_clip_pytorch_model.bin"),
        2_554_000_000,
        "MIT",
    ),
    Model(
        "decoder",
        "openai/consistency-decoder",
        "63b7a48896d92b6f56772f4111d0860b1bee3dd3",
        ("config.json", "diffusion_pytorch_model.safetensors"),
        2_490_000_000,
        "MIT",
    ),
)


def find(role: str, name: str) -> Model:
    """The public model of a name; UserError naming the nearest if the list has none."""
    known = {model.name: model for model in MODELS if model.role == role}
    if name not in known:
        raise UserError(
            f"There is no model {name!r} for {role}{config.nearest(name, [*known, 'world'])} "
            "A directory in the format of the public one will do as well."
        )
    return known[name]


def directory(role: str, name: str) -> Path:
    """The directory of a model: "world", a directory, or a public name (downloaded if need be).

    Raises UserError for an unknown name, and where the model is not here and cannot be fetched.
    """
    if name == "world":
        return paths.foundation(role)
    if paths.folder(name).is_dir():
        return paths.folder(name)
    model = find(role, name)
    try:
        found = huggingface_hub.snapshot_download(
            model.name, revision=model.revision, allow_patterns=list(model.files)
        )
    except Exception as error:  # no network, no such revision, a full disk: a dozen kinds
        raise UserError(f"{absent([model])} ({' '.join(str(error).split())[:200]})") from error
    if gone := missing(model):
        raise UserError(f"{absent([model])} (not there: {', '.join(gone)})")
    return Path(found)


def missing(model: Model) -> list[str]:
    """The files of a public model that are not on this machine (Hugging Face's cache)."""
    cached = huggingface_hub.try_to_load_from_cache
    places = {f: cached(model.name, f, revision=model.revision) for f in model.files}
    return [name for name, place in places.items() if not isinstance(place, str)]


def absent(models: Iterable[Model]) -> str:
    """What is missing, with sizes, and the commands that fetch it: several lines of text."""
    lines = ["These models are not on this machine; where there is a network, run"]
    lines += [f"  {model.command()}\n    # {model.role}: {model}" for model in models]
    return "\n".join([*lines, "and copy ~/.cache/huggingface (or set HF_HOME) if it is another."])


def chosen(cfg: Parameters) -> dict[str, str]:
    """The model named for each role by a notebook's parameters; "world" where it names none."""
    return {role: cfg.get(role, "world") for role in ROLES}


def public(cfg: Parameters) -> list[Model]:
    """The public models that a notebook's parameters name; UserError for an unknown name."""
    named = [(r, name) for r, name in chosen(cfg).items() if name != "world"]
    return [find(r, name) for r, name in named if not paths.folder(name).is_dir()]


def require(models: Iterable[Model]) -> None:
    """Raise UserError listing every missing model when HF_HUB_OFFLINE forbids to fetch any."""
    gone = [model for model in models if missing(model)]
    if gone and huggingface_hub.constants.HF_HUB_OFFLINE:
        raise UserError(f"HF_HUB_OFFLINE is set, so nothing is downloaded. {absent(gone)}")


@contextlib.contextmanager
def loading(what: str) -> Iterator[None]:
    """Turn whatever goes wrong while ``what``, such as "the judge x", is read into a UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # transformers, diffusers, open_clip, safetensors: a dozen kinds
        said = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what[0].upper()}{what[1:]} cannot be loaded ({said}): restore it or name another."
        ) from error


# ---- the machine ---------------------------------------------------------------------------------


def device(cfg: Parameters) -> str:
    """Where a notebook computes: "cpu" or "cuda"; UserError if the GPU asked for is not there."""
    name = cfg.get("device", "cpu")
    if name not in ("cpu", "cuda") and not name.startswith("cuda:"):
        raise UserError(f"There is no device {name!r}: choose cpu or cuda.")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(
            f"{cfg.notebook} is to run on a GPU (device {name}), and torch finds none: check the "
            "driver with nvidia-smi and that torch is a CUDA build, or set device to cpu."
        )
    return name


def dtype(cfg: Parameters) -> torch.dtype:
    """In which precision matrices are multiplied: "float32" or "bfloat16"."""
    name = cfg.get("precision", "float32")
    if name not in DTYPES:
        raise UserError(f"There is no precision {name!r}: choose {' or '.join(DTYPES)}.")
    return DTYPES[name]
