"""What a preset needs before it starts: downloads, data, disk and GPU-hours, with the arithmetic.

Operations are counted by PyTorch on networks without memory (the meta device). Hours follow from
them and from two assumptions that are printed: the peak rate of the GPU and the share of it that
is reached. Both are arguments, because nobody knows them for a machine that has not been measured.
"""

from collections.abc import Callable

import open_clip
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from transformers import T5Config, T5EncoderModel

from dalle3lib import (
    UserError,
    config,
    latents,
    pairs,
    paths,
    pretrained,
    runs,
    text,
    training_captions,
    unet,
    vae,
)
from dalle3lib.config import Parameters
from dalle3lib.recaption import LENGTH
from dalle3lib.splits import open_source

PEAK = 990.0  # TFLOP/s: an H100 in bfloat16, dense
# The share of the peak that training reaches. Stable Diffusion's U-Net at 256 px ran at about 24 %
# of an A100; the world's networks are so small that starting kernels costs more than running them.
UTILISATION, UTILISATION_WORLD = 0.25, 0.05
# Assumed until the captions are there; DOCCI's descriptions, which dsc learns from, are cut there.
TOKENS = {"original": 15.0, "ssc": 15.0, "dsc": float(text.MAX_TOKENS)}
# T5 v1.1: width, inner width, layers, heads (google/t5-v1_1-*/config.json)
T5_SIZES = {
    "google/t5-v1_1-large": (1024, 2816, 24, 16),
    "google/t5-v1_1-xxl": (4096, 10240, 24, 64),
}
SD_VAE = {
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
}
STEPS = """\
1. Images with alt-text. CC3M as tars (576, 2.9 million images of about 90 kB: 260 GB): hf download
   pixparse/cc3m-wds --repo-type dataset --include 'cc3m-train-*.tar' --local-dir cc3m
   --revision 46f3d69f840e59d77d52e8decfe5baec97e94c7f
   or CC12M, pixparse/cc12m-wds (2,176 tars, 11.0 million images, four times that)
2. COCO 2014 val, for evaluation only: val2014.zip (6.2 GB) and annotations_trainval2014.zip (0.24
   GB) from cocodataset.org into {prompts_from}, of the annotations captions_val2014.json alone
3. COCO 2014 train (13.3 GB) into {short_captions} and DOCCI (7.6 GB) into {long_captions}, from
   which two captioners learn; notebook 02a says where to get them. Or name captioners that you
   have: parameters ssc and dsc of the notebooks 02 and 03
4. make book PRESET={preset} DATA={images}
   It fine-tunes the captioners from {coca},
   writes the captions of both folders of images, trains the arms and builds the book. On several
   machines, caption before: run 02a_fine_tune with -p kind ssc, then dsc, and
   python -m dalle3lib recaption {images} {captions_from} --kind both --device cuda
   --captioner ssc=… --captioner dsc=… --max-len ssc=76 --max-len dsc={longest}
   python -m dalle3lib recaption {prompts_from} {prompt_captions} --kind dsc --device cuda
   --captioner dsc=… --max-len dsc={longest}
   where … is captioner/ in the run directory of 02a"""
LONGEST = 256  # tokens of a descriptive caption: the context that preset gpu fine-tunes


def flops(call: Callable[[], object]) -> float:
    """The floating-point operations of a call (a multiplication and an addition are two)."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


def unet_flops(cfg: Parameters, width: int, tokens: float) -> float:
    """Of one image's forward pass through the U-Net, with a caption of ``tokens`` tokens."""
    side = cfg.size // 8
    with torch.device("meta"):
        model = unet.build(tuple(cfg.channels), width, side, cfg.layers)
        z, t = torch.zeros(1, 4, side, side), torch.zeros(1)
        states = torch.zeros(1, max(1, round(tokens)), width)
        mask = torch.ones(states.shape[:2], dtype=torch.bool)
        return flops(lambda: model(z, t, states, encoder_attention_mask=mask))


def t5_config(name: str) -> T5Config:
    """The configuration of a text encoder by its name; a public one needs no download for that."""
    if name not in T5_SIZES:
        return T5Config.from_pretrained(pretrained.directory("t5", name))
    width, inner, layers, heads = T5_SIZES[name]
    sizes = {"d_model": width, "d_ff": inner, "num_layers": layers, "num_heads": heads}
    return T5Config(vocab_size=32128, d_kv=64, feed_forward_proj="gated-gelu", **sizes)


def t5_flops(name: str) -> float:
    """Of the text encoder for one token (of a caption of 32)."""
    with torch.device("meta"):
        model = T5EncoderModel(t5_config(name))
        return flops(lambda: model(torch.zeros(1, 32, dtype=torch.long))) / 32


def vae_flops(name: str, size: int) -> tuple[float, float]:
    """Of encoding and of decoding one image of ``size`` pixels a side."""
    if name in {model.name for model in pretrained.MODELS}:
        with torch.device("meta"):
            model = AutoencoderKL(**SD_VAE)
    else:
        model = vae.load(pretrained.directory("vae", name)).to("meta")
    picture = torch.zeros(1, 3, size, size, device="meta")
    latent = torch.zeros(1, 4, size // 8, size // 8, device="meta")
    return flops(lambda: model.encode(picture)), flops(lambda: model.decode(latent))


def coca_flops(tokens: int) -> float:
    """Of captioning one image by CoCa ViT-L/14: its image encoder, then ``tokens`` steps.

    A step of the decoder reads each of its weights once: two operations a weight.
    """
    settings = open_clip.get_model_config("coca_ViT-L-14")
    with torch.device("meta"):
        model = open_clip.CoCa(**{k: v for k, v in settings.items() if k != "custom_text"})
        seen = flops(lambda: model.visual(torch.zeros(1, 3, 224, 224)))
    weights = [p for m in (model.text, model.text_decoder) for p in m.parameters() if p.dim() > 1]
    return seen + 2 * tokens * sum(p.numel() for p in weights)


def mean_tokens(cfg: Parameters) -> dict[str, float]:
    """The mean tokens of a caption by kind: counted for the world, assumed for anything else."""
    if cfg.data != "world" or cfg.t5 != "world":
        return TOKENS
    _, tokenizer = text.load(pretrained.directory("t5", "world"))
    records = open_source("world", "train", 200, noise=cfg.noise)
    said = {"original": "alt", "ssc": "short", "dsc": "descriptive"}
    return {
        kind: text.mean_tokens(tokenizer, [getattr(r, field) for r in records])
        for kind, field in said.items()
    }


def arm_names(cfg: Parameters) -> list[str]:
    """All arms of a preset: those that chapter 04 compares, and their further seeds."""
    chapter = config.from_preset("04_caption_kind", preset=cfg.preset, data=cfg.data)
    return [*chapter.arms, *chapter.replicas]


def work(cfg: Parameters, arms: int) -> list[tuple[str, str, float]]:
    """What is computed: (what, arithmetic, floating-point operations) of each stage."""
    tokens, width = mean_tokens(cfg), t5_config(cfg.t5).d_model
    mean = (tokens["original"] + tokens["dsc"]) / 2
    once = unet_flops(cfg, width, mean)
    encoding, decoding = vae_flops(cfg.vae, cfg.size)
    token, all_tokens = t5_flops(cfg.t5), sum(tokens.values())
    trained = arms * cfg.steps * cfg.batch
    pictures = 2 * (cfg.evaluations * cfg.prompts + len(cfg.guidances) * cfg.tuning) * arms
    one = 2 * cfg.sampling_steps * once + decoding
    stages = [
        (
            "encode images and captions once",
            f"{cfg.scenes:,} × ({encoding / 1e9:.1f} + {all_tokens:.0f} tokens × "
            f"{token / 1e9:.2f}) GFLOP",
            cfg.scenes * (encoding + all_tokens * token),
        ),
        (
            f"train {arms} arms",
            f"{arms} × {cfg.steps:,} steps × {cfg.batch} images × 3 × {once / 1e9:.2f} GFLOP",
            trained * 3 * once,
        ),
        (
            "sample and score",
            f"{pictures:,} pictures × (2 × {cfg.sampling_steps} × {once / 1e9:.2f} + "
            f"{decoding / 1e9:.1f}) GFLOP",
            pictures * one,
        ),
    ]
    if cfg.captions_from not in (pairs.WRITTEN, pairs.TRUTH):
        lengths = [LENGTH["ssc"], LONGEST]
        both = sum(map(coca_flops, lengths))
        stages.insert(
            0,
            (
                "write captions (recaption, before)",
                f"{cfg.scenes:,} × {both / 1e9:.0f} GFLOP (CoCa ViT-L/14, {lengths[0]} and "
                f"{lengths[1]} tokens)",
                cfg.scenes * both,
            ),
        )
    return stages


def disk(cfg: Parameters, arms: int) -> list[tuple[str, str, float]]:
    """What is written: (what, arithmetic, bytes)."""
    tokens, width, side = mean_tokens(cfg), t5_config(cfg.t5).d_model, cfg.size // 8
    with torch.device("meta"):
        model = unet.build(tuple(cfg.channels), width, side, cfg.layers)
    weights = sum(p.numel() for p in model.parameters())
    counted = " + ".join(f"{n:.0f} {kind}" for kind, n in tokens.items())
    half = (cfg.evaluations + 1) * 2
    pictures = 2 * cfg.prompts * 3 * cfg.size**2
    return [
        (
            "cache of latents and ragged text states",
            f"{cfg.scenes:,} × 2 bytes × (4 × {side} × {side} + ({counted}) tokens × {width})",
            latents.bytes_of(cfg.scenes, tokens, width, side),
        ),
        (
            "weights, checkpoints and pictures of the arms",
            f"{arms} × ({weights / 1e6:.0f} million weights × (2 checkpoints × 16 + {half}) bytes "
            f"+ {pictures / 1e9:.2f} GB)",
            arms * (weights * (32 + half) + pictures),
        ),
    ]


def folders(cfg: Parameters) -> list[str]:
    """The folders that a preset names and that are not there, as lines of text.

    Those of captions may be missing: they are written on the way.
    """
    named = {} if cfg.prompts_from in pairs.HELD_OUT else {"prompts_from": cfg.prompts_from}
    named |= teachers(cfg)
    there = {name: paths.folder(where) for name, where in named.items()}
    lines = [f"{name}: there is no folder {p}" for name, p in there.items() if not p.is_dir()]
    if cfg.captions_from not in (pairs.WRITTEN, pairs.TRUTH) and cfg.data == "world":
        lines.append("data: give the folder of tars with --data (make book … DATA=folder)")
    return lines


def teachers(cfg: Parameters) -> dict[str, str]:
    """The folders that captioners are yet to learn from, by the parameter that names them."""
    given = {"preset": cfg.preset, "data": cfg.data}
    chapter = config.from_preset("03_ssc_dsc", **given)
    lessons = config.from_preset("02a_fine_tune", **given)
    named = {"ssc": "short_captions", "dsc": "long_captions"}
    due = {k: n for k, n in named.items() if chapter.get(k, "") == training_captions.FINE_TUNED}
    made = {k: runs.run_path(cfg, "02a_fine_tune", k) / "manifest.json" for k in due}
    return {name: lessons.values[name] for k, name in due.items() if not made[k].is_file()}


def report(cfg: Parameters, peak: float = PEAK, utilisation: float | None = None) -> str:
    """The whole plan of a preset as text; ``cfg`` are the parameters of notebook 04a."""
    share = utilisation or (UTILISATION_WORLD if cfg.size == 64 else UTILISATION)
    arms = len(arm_names(cfg))
    lines = [f"Preset {cfg.preset}: {arms} arms on {cfg.device}, data {cfg.data}", "", "Models"]
    named = {model.name for model in pretrained.MODELS}
    decoder = config.from_preset("07_consistency_decoder", preset=cfg.preset, data="world").decoder
    for role, name in {**pretrained.chosen(cfg), "decoder": decoder}.items():
        if name in named:
            model = pretrained.find(role, name)
            here = "to download" if pretrained.missing(model) else "here"
            lines.append(f"  {role:<5} {model}: {here}")
        else:
            lines.append(f"  {role:<5} {name}: {'shipped' if name == 'world' else 'a directory'}")
    lines += ["", "Disk"] + [
        f"  {what}: {how} = {n / 1e9:,.1f} GB" for what, how, n in disk(cfg, arms)
    ]
    lines += ["", "Operations and hours"]
    total = 0.0
    for what, how, operations in work(cfg, arms):
        hours = operations / (peak * 1e12 * share) / 3600
        total += hours
        lines.append(f"  {what}: {how} = {operations / 1e15:,.0f} PFLOP = {hours:,.1f} GPU-hours")
    lines.append(
        f"  together {total:,.1f} GPU-hours at {share:.0%} of {peak:,.0f} TFLOP/s (assumed)"
    )
    if cfg.captions_from not in (pairs.WRITTEN, pairs.TRUTH):
        coca = next(model for model in pretrained.MODELS if model.role == "coca")
        images = "cc3m" if cfg.data == "world" else cfg.data
        named = {"coca": coca, "longest": LONGEST, "preset": cfg.preset, "images": images}
        named["captions_from"] = cfg.captions_from.replace("world-", "cc3m-")
        lessons = config.from_preset("02a_fine_tune", preset=cfg.preset, data=cfg.data)
        named |= {name: lessons.values[name] for name in ("short_captions", "long_captions")}
        lines += ["", "Before, in this order", *STEPS.format_map(cfg.values | named).splitlines()]
    if gone := folders(cfg):
        lines += ["", "Missing", *(f"  {line}" for line in gone)]
    return "\n".join(lines)


def check(cfg: Parameters) -> None:
    """Raise one UserError for what would stop the preset later: models, folders, the GPU."""
    pretrained.require(pretrained.public(cfg))
    if gone := folders(cfg):
        raise UserError(f"Preset {cfg.preset} cannot start: {'; '.join(gone)}.")
    pretrained.device(cfg)
    pretrained.dtype(cfg)
