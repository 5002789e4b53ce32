"""The CLIP score: 100 times the cosine, texts cut at their end, the loss, bad files."""

import json
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from dalle3lib import UserError, captioner, paths, text
from dalle3lib.evals import clip_score
from dalle3lib.world import World

torch.set_num_threads(1)
RECORDS = list(World("dev", 12))
IMAGES = np.stack([record.image for record in RECORDS])
TEXTS = [record.descriptive for record in RECORDS]
TOKENIZER = text.train_tokenizer(TEXTS * 5, 400, start=True)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random scorer in open_clip's layout."""
    path = tmp_path_factory.mktemp("clip")
    captioner.save(clip_score.build(TOKENIZER, seed=3), TOKENIZER, path)
    return path


@pytest.fixture(scope="module")
def scorer(directory):
    return clip_score.load(directory)


def test_weights_depend_on_the_seed_alone():
    def weights(seed, noise):
        torch.manual_seed(noise)
        return torch.cat([p.flatten() for p in clip_score.build(TOKENIZER, seed).parameters()])

    assert torch.equal(weights(0, 1), weights(0, 2))
    assert not torch.equal(weights(0, 1), weights(1, 1))


def test_what_is_loaded_is_what_was_saved(directory, scorer):
    model, tokenizer = scorer
    assert isinstance(model, open_clip.CLIP) and not model.training
    assert not any(p.requires_grad for p in model.parameters())
    built = clip_score.build(TOKENIZER, seed=3).state_dict()
    for name, value in model.state_dict().items():
        assert torch.equal(value, built[name].half().float()), name
    assert torch.equal(tokenizer(TEXTS), captioner.encode(TOKENIZER, TEXTS, 48))


def test_the_foundation_loads(foundations):
    model, tokenizer = clip_score.load(paths.foundation("clip"))
    assert np.isfinite(clip_score.clip_scores(model, tokenizer, IMAGES[:2], TEXTS[:2])).all()


@torch.no_grad()
def test_scores_are_a_hundred_times_the_cosine(directory, scorer):
    scores = clip_score.clip_scores(*scorer, IMAGES, TEXTS)
    assert scores.shape == (12,) and scores.dtype == np.float64
    # by open_clip alone, one pair at a time
    model, _, prepare = open_clip.create_model_and_transforms(f"local-dir:{directory}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{directory}")
    for image, caption, score in zip(IMAGES[:4], TEXTS, scores, strict=False):
        a = model.eval().encode_image(prepare(Image.fromarray(image))[None])[0].double().numpy()
        b = model.encode_text(tokenizer([caption]))[0].double().numpy()
        assert score == pytest.approx(100 * a @ b / np.sqrt((a @ a) * (b @ b)), abs=1e-3)
    assert abs(scores).max() <= 100 and scores.std() > 0


def test_scores_do_not_depend_on_the_batch_or_on_neighbours(scorer):
    image = clip_score.image_features(scorer[0], IMAGES)
    words = clip_score.text_features(*scorer, TEXTS)
    assert torch.allclose(image.norm(dim=1), torch.ones(12)) and image.shape == words.shape
    assert torch.allclose(clip_score.image_features(scorer[0], IMAGES, batch=5), image, atol=1e-5)
    assert torch.allclose(clip_score.text_features(*scorer, TEXTS, batch=5), words, atol=1e-5)
    backwards = clip_score.clip_scores(*scorer, IMAGES[::-1], TEXTS[::-1])
    assert np.allclose(backwards[::-1], clip_score.clip_scores(*scorer, IMAGES, TEXTS), atol=1e-3)


def test_hessel_s_variant_is_another_number(scorer, monkeypatch):
    prefixed = clip_score.clip_scores(*scorer, IMAGES, [f"A photo depicts {t}" for t in TEXTS])
    found = clip_score.clip_scores(*scorer, IMAGES, TEXTS, "hessel")
    assert np.allclose(found, 2.5 * np.maximum(0, prefixed / 100))
    opposite = Given(torch.eye(2), -torch.eye(2), 1.0)  # cosine -1 is 0 there, -100 here
    monkeypatch.setattr(clip_score, "image_features", lambda m, _: m.image)
    monkeypatch.setattr(clip_score, "text_features", lambda m, *_: m.words)
    for variant, value in {"paper": -100, "hessel": 0}.items():
        scores = clip_score.clip_scores(opposite, None, IMAGES[:2], TEXTS[:2], variant)
        assert scores.tolist() == [value, value]
    with pytest.raises(UserError, match="choose paper or hessel"):
        clip_score.clip_scores(*scorer, IMAGES, TEXTS, "glide")


class AsTorchmetricsTakesIt:
    """A scorer behind the two interfaces that torchmetrics calls: model and processor."""

    def __init__(self, model, tokenizer):
        self.model, self.tokenizer = model, tokenizer
        self.config = SimpleNamespace(
            text_config=SimpleNamespace(max_position_embeddings=model.context_length)
        )

    def __call__(self, text=None, images=None, **_):
        if text is None:
            array = np.stack([image.permute(1, 2, 0).numpy() for image in images])
            return {"pixel_values": captioner.pixels(self.model, array)}
        tokens = self.tokenizer(list(text), context_length=200)
        tokens = tokens[:, : int((tokens != 0).sum(1).max())]
        return {"input_ids": tokens, "attention_mask": (tokens != 0).long()}

    def to(self, _):
        return self

    def get_image_features(self, pixel_values):
        return self.model.encode_image(pixel_values)

    def get_text_features(self, input_ids, _):
        short = self.model.context_length - input_ids.shape[1]
        return self.model.encode_text(F.pad(input_ids, (0, short)))


def test_scores_are_those_of_torchmetrics_where_captions_fit(scorer):
    reference = pytest.importorskip("torchmetrics.functional.multimodal.clip_score")
    adapter = AsTorchmetricsTakesIt(*scorer)

    def theirs(images, texts):
        pictures = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        return reference._clip_score_update(pictures, texts, adapter, adapter)[0].numpy()

    short = [" ".join(t.split()[:6]) for t in TEXTS]
    assert not clip_score.truncated(*scorer, short).any()
    mine = clip_score.clip_scores(*scorer, IMAGES, short)
    assert np.allclose(mine, theirs(IMAGES, short), atol=1e-4)
    one = np.repeat(IMAGES[:1], 2, axis=0)  # theirs loses the end token of what it cuts, mine not
    long = ["red circle " * 60, "red circle " * 59 + "blue star"]
    kept = ["red circle " * 60, "red circle " * 15 + "blue star " * 45]
    assert not np.allclose(*clip_score.clip_scores(*scorer, one, kept), atol=1e-4)
    assert not np.allclose(clip_score.clip_scores(*scorer, one, long), theirs(one, long), atol=1e-4)


def test_a_row_for_each_image_with_its_reason(scorer):
    texts = [TEXTS[0], "red circle " * 60]
    table = clip_score.score_images(*scorer, IMAGES[:2], texts, seed=4)
    assert list(table) == ["prompt", "seed", "image", "score", "reason"]
    assert table.score.tolist() == pytest.approx(clip_score.clip_scores(*scorer, IMAGES[:2], texts))
    assert table.seed.tolist() == [4, 4] and table.image.tolist() == [0, 1]
    assert "cut" not in table.reason[0] and "cut" in table.reason[1]


def test_long_texts_are_cut_and_keep_their_end(scorer):
    """The text feature is the state of the end token: without it all long texts would be one."""
    _, tokenizer = scorer
    long = ["red circle " * 60, "blue star " * 60]
    tokens = tokenizer(long)
    assert tokens.shape == (2, 48) and (tokens[:, -1] == text.END).all()
    one, other = clip_score.text_features(*scorer, long)
    assert not torch.allclose(one, other, atol=1e-3)
    same_start = ["red circle " * 60, "red circle " * 60 + "blue star"]  # differ beyond the cut
    one, other = clip_score.text_features(*scorer, same_start)
    assert torch.allclose(one, other, atol=1e-6)


def test_one_text_for_each_image(scorer):
    with pytest.raises(UserError, match="3 images but 2 texts"):
        clip_score.clip_scores(*scorer, IMAGES[:3], TEXTS[:2])


def test_images_of_another_size_are_scaled(scorer):
    large = IMAGES.repeat(2, 1).repeat(2, 2)
    wide = np.pad(large, ((0, 0), (0, 0), (16, 16), (0, 0)))  # whose centre square is the image
    scaled = clip_score.resized(scorer[0], large)
    assert scaled.shape == IMAGES.shape and np.abs(scaled.astype(int) - IMAGES).mean() < 8
    expected = clip_score.image_features(scorer[0], scaled)
    assert torch.equal(clip_score.image_features(scorer[0], large), expected)
    cropped = clip_score.image_features(scorer[0], wide)
    assert torch.allclose(cropped, expected, atol=0.02)  # the filter sees what was cropped off


# ---- the loss ------------------------------------------------------------------------------------


def test_loss_is_that_of_open_clip(scorer):
    model, _ = scorer
    images, tokens = captioner.pixels(model, IMAGES), captioner.encode(TOKENIZER, TEXTS, 48)
    out = model(images, tokens)
    reference = open_clip.loss.ClipLoss()(*out)
    assert clip_score.contrastive_loss(model, images, tokens).item() == pytest.approx(
        reference.item(), abs=1e-5
    )


class Given:
    """A model whose features are given."""

    def __init__(self, image, words, scale):
        self.image, self.words, self.logit_scale = image, words, torch.tensor(scale).log()

    def encode_image(self, _, normalize):
        return F.normalize(self.image, dim=-1) if normalize else self.image

    def encode_text(self, _, normalize):
        return F.normalize(self.words, dim=-1) if normalize else self.words


def test_loss_by_hand():
    images = torch.zeros(2, 3, 1, 1)
    perfect = Given(torch.eye(2), 5 * torch.eye(2), 2.0)  # cosines 1 and 0, temperature 1/2
    expected = np.log(1 + np.exp(-2))
    assert clip_score.contrastive_loss(perfect, images, None).item() == pytest.approx(expected)
    alike = Given(torch.ones(2, 2), torch.ones(2, 2), 2.0)
    assert clip_score.contrastive_loss(alike, images, None).item() == pytest.approx(np.log(2))
    swapped = Given(torch.eye(2), torch.eye(2).flip(0), 1000.0)  # CLIP bounds the scale at 100
    assert clip_score.contrastive_loss(swapped, images, None).item() == pytest.approx(100)


# ---- files that cannot be loaded -----------------------------------------------------------------


def test_models_that_do_not_exist(tmp_path):
    for name in (tmp_path, tmp_path / "nowhere", "ViT-Z-99"):
        with pytest.raises(UserError, match="cannot be loaded"):
            clip_score.load(name)


def test_damaged_files(directory, tmp_path):
    weights = directory / "open_clip_model.safetensors"
    for name, content in (
        ("open_clip_config.json", b'{"model_cfg": '),
        ("open_clip_model.safetensors", weights.read_bytes()[:1000]),
        ("tokenizer.json", b"{}"),
    ):
        broken = tmp_path / name
        broken.mkdir()
        for file in directory.iterdir():
            (broken / file.name).write_bytes(file.read_bytes())
        (broken / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be loaded"):
            clip_score.load(broken)


def test_configuration_is_that_of_a_public_model(directory):
    config = json.loads((directory / "open_clip_config.json").read_text())
    assert set(config) == {"model_cfg", "preprocess_cfg"}
    assert config["model_cfg"]["text_cfg"]["vocab_size"] == len(TOKENIZER)


def test_a_text_is_cut_where_the_context_ends(scorer):
    model, tokenizer = scorer

    def of(length):  # a text of so many tokens, with start and end
        text = "x"
        while (tokenizer([text], context_length=200) != 0).sum() < length:
            text += " x"
        return text

    lengths = (2, model.context_length, model.context_length + 1, 90)
    assert clip_score.truncated(model, tokenizer, [of(n) for n in lengths]).tolist() == [
        False, False, True, True
    ]  # fmt: skip


def test_kinds_of_caption_are_summarised(scorer):
    kinds = {"full": TEXTS, "none": ["x"] * len(TEXTS), "long": ["x " * 60] * len(TEXTS)}
    scores, summary = clip_score.by_kind(*scorer, IMAGES, kinds)
    assert np.array_equal(scores["full"], clip_score.clip_scores(*scorer, IMAGES, TEXTS))
    assert summary.loc["full", "CLIP score"] == pytest.approx(scores["full"].mean())
    assert (summary["low"] <= summary["CLIP score"]).all()
    assert (summary["CLIP score"] <= summary["high"]).all()
    assert summary["share cut"].tolist()[1:] == [0, 1]
