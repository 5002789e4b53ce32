"""Public models: which are known, where they are looked for, and what is said when they are not."""

import re
import shlex
import sys
from pathlib import Path

import huggingface_hub
import pytest
import torch
from public_models import WORDS, snapshot, write_clip, write_t5, write_vae

from dalle3lib import UserError, pretrained, text, vae
from dalle3lib.config import Parameters
from dalle3lib.evals import clip_score

torch.set_num_threads(1)


def cfg(**values) -> Parameters:
    return Parameters("04a_train_arm", "gpu", values)


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty Hugging Face cache, and no network."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def test_every_model_is_pinned_to_a_commit():
    assert {m.role for m in pretrained.MODELS} == {*pretrained.ROLES, "coca", "decoder"}
    for model in pretrained.MODELS:
        assert re.fullmatch("[0-9a-f]{40}", model.revision) and model.size > 10**8
        words = shlex.split(model.command())
        assert words[:3] == ["hf", "download", model.name] and words[-1] == model.revision
        assert set(words[3:-2]) == set(model.files)
        assert not [name for name in model.files if name.endswith(".py")]


def test_names(foundations, tmp_path, hub):
    assert pretrained.directory("vae", "world") == foundations / "vae"
    assert pretrained.directory("t5", str(tmp_path)) == tmp_path
    with pytest.raises(UserError, match="no model 'google/t5-v1_1-larg' for t5; did you mean "
                                        "'google/t5-v1_1-large'"):  # fmt: skip
        pretrained.directory("t5", "google/t5-v1_1-larg")
    with pytest.raises(UserError, match="no model"):
        pretrained.directory("vae", "google/t5-v1_1-large")
    assert pretrained.chosen(cfg(vae="x")) == {"vae": "x", "t5": "world", "clip": "world"}


def test_offline_says_what_is_missing_and_how_to_get_it(hub):
    wanted = cfg(vae="stabilityai/sd-vae-ft-mse", t5="google/t5-v1_1-xxl", clip="world")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE") as caught:
        pretrained.require(pretrained.public(wanted))
    said = str(caught.value)
    assert "hf download stabilityai/sd-vae-ft-mse" in said and "44.5 GB" in said
    assert "clip" not in said
    with pytest.raises(UserError, match="hf download stabilityai"):
        pretrained.directory("vae", "stabilityai/sd-vae-ft-mse")
    where = snapshot(hub, "vae", "stabilityai/sd-vae-ft-mse")
    (where / "config.json").write_text("{}")
    (model,) = pretrained.public(cfg(vae="stabilityai/sd-vae-ft-mse"))
    assert pretrained.missing(model) == ["diffusion_pytorch_model.safetensors"]
    with pytest.raises(UserError, match="not there: diffusion_pytorch_model.safetensors"):
        pretrained.directory("vae", "stabilityai/sd-vae-ft-mse")


def test_models_in_the_real_formats_load_from_the_cache(hub):
    write_vae(snapshot(hub, "vae", "stabilityai/sd-vae-ft-mse"))
    write_t5(snapshot(hub, "t5", "google/t5-v1_1-large"), 32)
    write_clip(snapshot(hub, "clip", "timm/vit_base_patch32_clip_224.openai"))
    pretrained.require(pretrained.MODELS[:2])
    found = {m.role: pretrained.directory(m.role, m.name)
             for m in (*pretrained.MODELS[:2], pretrained.MODELS[3])}  # fmt: skip
    autoencoder = vae.load(found["vae"])
    assert autoencoder.config.scaling_factor == 0.18215
    assert autoencoder.encode(torch.zeros(1, 3, 64, 64)).latent_dist.mean.shape == (1, 4, 8, 8)
    for dtype in (torch.float32, torch.bfloat16):
        encoder, tokenizer = text.load(found["t5"], dtype)
        assert {p.dtype for p in encoder.parameters()} == {dtype}
        states = text.encode(encoder, tokenizer, ["a dog on the grass", "a dog"])
        assert len(states[0]) > len(states[1]) and states[0].shape[1] == 32
        assert states[0].dtype == dtype and not any(p.requires_grad for p in encoder.parameters())
    scorer, words = clip_score.load(found["clip"])
    pictures = torch.randint(256, (2, 256, 256, 3), dtype=torch.uint8).numpy()
    resized = clip_score.resized(scorer, pictures)
    assert resized.shape == (2, 224, 224, 3)
    assert len(clip_score.clip_scores(scorer, words, resized, ["a dog", "grass"])) == 2


@pytest.mark.parametrize("load", [vae.load, text.load, clip_score.load])
def test_a_directory_without_a_model_is_said_in_a_sentence(tmp_path, load):
    with pytest.raises(UserError, match=f"{tmp_path} cannot be loaded .*: restore it or name"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        load(tmp_path)


def test_the_real_tokenizer_format(tmp_path):
    pytest.importorskip("sentencepiece", reason="its tokenizers need the library sentencepiece")
    write_t5(tmp_path, 32)
    _, tokenizer = text.load(tmp_path)
    ids = tokenizer(WORDS[0]).input_ids
    assert ids[-1] == tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 0
    assert tokenizer.decode(ids, skip_special_tokens=True) == WORDS[0]


def test_a_tokenizer_without_its_library_is_one_sentence(tmp_path, monkeypatch):
    write_t5(tmp_path, 32)
    (tmp_path / "tokenizer.json").unlink(missing_ok=True)
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setattr(text, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install sentencepiece protobuf"):
        text.load(tmp_path)


def test_device_and_precision(monkeypatch):
    assert pretrained.device(cfg()) == "cpu" and pretrained.dtype(cfg()) == torch.float32
    assert pretrained.dtype(cfg(precision="bfloat16")) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds none.*set device to cpu"):
        pretrained.device(cfg(device="cuda"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pretrained.device(cfg(device="cuda:1")) == "cuda:1"
    for wrong in (cfg(device="gpu"), cfg(device="cuda1")):
        with pytest.raises(UserError, match="choose cpu or cuda"):
            pretrained.device(wrong)
    with pytest.raises(UserError, match="choose float32 or bfloat16"):
        pretrained.dtype(cfg(precision="fp16"))
