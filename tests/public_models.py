"""The public models in small: random weights in the formats of the real repositories.

They lie in a Hugging Face cache under their real names and revisions, so that everything finds
them as it would find the real ones, without a network. Beside them: photographs as web data.
"""

import io
import json
import tarfile
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from safetensors.torch import save_file
from tiny_chat import write_chat_model
from tiny_coca import public_model
from tiny_vision import write_vision_model
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForQuestionAnswering,
    BlipImageProcessor,
    BlipProcessor,
    T5Config,
    T5ForConditionalGeneration,
)

from dalle3lib import captioner, plan, pretrained, recaption, text
from dalle3lib.automatic_evaluation import BOUND
from dalle3lib.evals import compbench

WORDS = ["a dog on the grass", "two people in a red car", "a plate of food on a table"] * 20


def snapshot(hub: Path, role: str, name: str) -> Path:
    """The empty directory of a model in a cache, at its pinned revision."""
    model = pretrained.find(role, name)
    where = hub / f"models--{name.replace('/', '--')}" / "snapshots" / model.revision
    where.mkdir(parents=True)
    return where


def write_vae(where: Path) -> None:
    """Stable Diffusion's autoencoder: its blocks, few channels."""
    torch.manual_seed(0)
    config = plan.SD_VAE | {"block_out_channels": (32, 32, 64, 64)}
    AutoencoderKL(**config, sample_size=256).save_pretrained(where)


def write_t5(where: Path, width: int) -> None:
    """T5 1.1 with a head of its own: ``pytorch_model.bin`` and a SentencePiece tokenizer.

    Where the library that trains such tokenizers is not installed, another format takes its place.
    """
    torch.manual_seed(0)
    sizes = {"d_model": width, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2}
    gated = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    config = T5Config(vocab_size=512, **sizes, **gated)
    T5Config.save_pretrained(config, where)
    torch.save(T5ForConditionalGeneration(config).state_dict(), where / "pytorch_model.bin")
    marks = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    (where / "special_tokens_map.json").write_text(json.dumps(marks))
    try:
        import sentencepiece
    except ImportError:
        text.train_tokenizer(WORDS, 400).save_pretrained(where)
        (where / "spiece.model").write_bytes(b"")
        return
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=50, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (where / "spiece.model").write_bytes(model.getvalue())
    settings = marks | {"extra_ids": 100, "tokenizer_class": "T5Tokenizer"}
    (where / "tokenizer_config.json").write_text(json.dumps(settings))


def write_clip(where: Path) -> None:
    """CLIP ViT-B/32 as open_clip stores it: 224 pixels, the real tokenizer, narrow towers."""
    config = open_clip.get_model_config("ViT-B-32-quickgelu")
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"width": 64, "head_width": 16, "layers": 1}
    config["text_cfg"] |= {"width": 64, "heads": 4, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CLIP(**config)
    preprocessing = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    settings = {"model_cfg": config, "preprocess_cfg": preprocessing}
    (where / "open_clip_config.json").write_text(json.dumps(settings))
    save_file(model.state_dict(), where / "open_clip_model.safetensors")


def write_hub(hub: Path) -> None:
    """All models that the presets gpu and paper name."""
    write_vae(snapshot(hub, "vae", "stabilityai/sd-vae-ft-mse"))
    write_t5(snapshot(hub, "t5", "google/t5-v1_1-large"), 32)
    write_t5(snapshot(hub, "t5", "google/t5-v1_1-xxl"), 48)
    write_clip(snapshot(hub, "clip", "timm/vit_base_patch32_clip_224.openai"))


def photographs(benchmarks: Path) -> list[tuple[Path, str]]:
    """Files of coco-mini, each with its first caption."""
    content = json.loads((benchmarks / "coco-mini" / "captions_train2017.json").read_text())
    names = {image["id"]: image["file_name"] for image in content["images"]}
    said: dict[str, str] = {}
    for entry in sorted(content["annotations"], key=lambda a: a["id"]):
        said.setdefault(names[entry["image_id"]], " ".join(entry["caption"].split()))
    found = {path.name: path for path in (benchmarks / "coco-mini").rglob("*.jpg")}
    return [(found[Path(name).name], caption) for name, caption in said.items()]


def write_tar(path: Path, samples: list[tuple[str, dict[str, bytes]]]) -> None:
    """A WebDataset tar of (key, {field: content})."""
    with tarfile.open(path, "w") as archive:
        for key, fields in samples:
            for field, content in fields.items():
                info = tarfile.TarInfo(f"{key}.{field}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def write_web_data(where: Path, photos: list[tuple[Path, str]]) -> None:
    """``cc3m``: two tars of images with alt-text, and three samples that cannot be used."""
    (where / "cc3m").mkdir(parents=True)
    samples = [
        (f"{i:05d}", {"jpg": path.read_bytes(), "txt": f"{path.name} | {said} for sale".encode()})
        for i, (path, said) in enumerate(photos)
    ]
    bad = [
        ("90000", {"jpg": samples[0][1]["jpg"]}),
        ("90001", {"jpg": samples[0][1]["jpg"][:3000], "txt": b"half a picture"}),
        ("90002", {"txt": b"no picture"}),
    ]
    half = len(samples) // 2
    write_tar(where / "cc3m" / "cc3m-train-0000.tar", samples[:half] + bad)
    write_tar(where / "cc3m" / "cc3m-train-0001.tar", samples[half:])


def write_coco(where: Path, photos: list[tuple[Path, str]]) -> None:
    """``coco2014``: val2014/ and annotations/, as the zip files unpack."""
    (where / "coco2014" / "val2014").mkdir(parents=True)
    (where / "coco2014" / "annotations").mkdir()
    for path, _ in photos:
        (where / "coco2014" / "val2014" / path.name).write_bytes(path.read_bytes())
    listed = [{"id": i, "file_name": path.name} for i, (path, _) in enumerate(photos)]
    said = [{"id": i, "image_id": i, "caption": text} for i, (_, text) in enumerate(photos)]
    content = json.dumps({"images": listed, "annotations": said})
    (where / "coco2014" / "annotations" / "captions_val2014.json").write_text(content)


def write_captions(where: Path) -> None:
    """Captions of both sources by a small CoCa ViT-L/14, as ``recaption`` writes them."""
    model = public_model("coca_ViT-L-14")
    captioner.save(model, open_clip.get_tokenizer("coca_ViT-L-14"), where / "coca")
    writers = {kind: where / "coca" for kind in recaption.KINDS}
    options = {"lengths": {"ssc": 8, "dsc": 12}, "max_bad": 1.0}
    recaption.caption_dataset(
        str(where / "cc3m"), where / "cc3m-captions", captioners=writers, **options
    )
    recaption.caption_dataset(
        str(where / "coco2014"),
        where / "coco2014-captions",
        ("dsc",),
        captioners={"dsc": where / "coca"},
        lengths={"dsc": 12},
        max_bad=1.0,
    )


# ---- what the pages on photographs need besides --------------------------------------------------


def write_blip(where: Path) -> Path:
    """A BLIP for visual questions with random weights and a word for each of a few questions."""
    states = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    states |= {"num_hidden_layers": 2}
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "yes", "no", "?", "a", "red", "the"]
    vision = {"image_size": 64, "patch_size": 32, "initializer_range": 0.02}
    text_sizes = {"vocab_size": len(words) + 2, "bos_token_id": len(words), "pad_token_id": 0}
    text_sizes |= {"sep_token_id": 3, "eos_token_id": 3, "max_position_embeddings": 128}
    torch.manual_seed(0)
    config = BlipConfig(vision_config=states | vision, text_config=states | text_sizes)
    BlipForQuestionAnswering(config).save_pretrained(where)
    images = BlipImageProcessor(size={"height": 64, "width": 64})
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    BlipProcessor(images, tokenizer).save_pretrained(where)
    return where


def write_decoder(where: Path) -> Path:
    """OpenAI's consistency decoder, narrow and shallow."""
    torch.manual_seed(0)
    sides = {name: (32, 32, 32, 32) for name in ("encoder", "decoder")}
    widths = {f"{name}_block_out_channels": size for name, size in sides.items()}
    layers = {f"{name}_layers_per_block": 1 for name in sides}
    ConsistencyDecoderVAE(**widths, **layers, sample_size=64).save_pretrained(where)
    return where


def write_coca(where: Path) -> Path:
    """CoCa ViT-L/14 in small, as ``captioner.save`` writes it."""
    captioner.save(public_model("coca_ViT-L-14"), open_clip.get_tokenizer("coca_ViT-L-14"), where)
    return where


def write_phrases(where: Path, sets: dict[str, list[str]]) -> Path:
    """Noun phrases of prompts in a file, without spaCy: a phrase for each "and" of a prompt."""
    found = {prompt: prompt.split(" and ") for prompts in sets.values() for prompt in prompts}
    where.write_text(json.dumps(found))
    return where


def write_folder(where: Path, photos: list[tuple[Path, str]]) -> Path:
    """A folder of photographs with one COCO-format captions file, as a user would bring it."""
    where.mkdir(parents=True)
    for path, _ in photos:
        (where / path.name).write_bytes(path.read_bytes())
    listed = [{"id": i, "file_name": path.name} for i, (path, _) in enumerate(photos)]
    said = [{"id": i, "image_id": i, "caption": text} for i, (_, text) in enumerate(photos)]
    (where / "captions.json").write_text(json.dumps({"images": listed, "annotations": said}))
    return where


def write_page_models(where: Path, benchmarks: Path) -> None:
    """All that the pages on photographs ask: decoder, BLIP, chat and vision-language models."""
    write_decoder(where / "decoder")
    write_blip(where / "blip")
    write_chat_model(where / "chat")
    write_vision_model(where / "llava")
    lists = {name: compbench.prompts(name, benchmarks / "t2i-compbench") for name in BOUND}
    write_phrases(where / "phrases.json", lists)
