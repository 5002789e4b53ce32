"""The second stage: views, encoding by bucket, both starts, equal compute, scores, shipping."""

import numpy as np
import pandas as pd
import pytest
import torch

from dalle3lib import (
    UserError,
    arm,
    buckets,
    foundation,
    paths,
    quality,
    recipe,
    recipe_scores,
    recipe_training,
    vae,
)
from dalle3lib.diffusion import loss
from dalle3lib.images import stack, to_tensor
from dalle3lib.sample import sample
from dalle3lib.world import CANVASES, LANDSCAPE, PORTRAIT, SQUARE, World, render, scene

torch.set_num_threads(1)
COUNT = 14


@pytest.fixture
def records(foundations) -> list:
    return list(recipe.pictures("train", COUNT))


@pytest.fixture
def data(records, tmp_path) -> recipe.Encoded:
    return recipe.encode(records, tmp_path / "cache", recipe.autoencoder())


# ---- pictures and views --------------------------------------------------------------------------


def test_pictures_are_the_scenes_of_the_first_stage():
    finer = recipe.pictures("train", 30)
    assert [r.descriptive for r in finer] == [r.descriptive for r in World("train", 30)]
    sizes, groups = recipe.by_size(list(finer))
    assert sizes == [(96, 160), (128, 128), (160, 96)]
    assert sorted(np.concatenate([*groups.values()])) == list(range(30))
    for bucket, rows in groups.items():
        assert {finer[i].image.shape[:2] for i in rows} == {sizes[bucket][::-1]}


def test_a_view_of_a_square_is_the_picture_averaged():
    image = render(scene("dev", 3), SQUARE, 2)
    blocks = image.reshape(64, 2, 64, 2, 3).astype(float).mean((1, 3))
    assert abs(recipe.view(image) - blocks).max() <= 0.5


@pytest.mark.parametrize("canvas", [LANDSCAPE, PORTRAIT], ids=["landscape", "portrait"])
def test_a_view_keeps_the_size_of_things(canvas):
    spec = next(s for s in (scene("dev", i) for i in range(99)) if canvas.holds(s) and not s.word)
    seen = recipe.view(render(spec, canvas, 2)).astype(int)
    assert seen.shape == (64, 64, 3)
    inner = render(spec, SQUARE, 2).reshape(64, 2, 64, 2, 3).mean((1, 3))
    for thing in spec.objects:  # each stands where it stands on a square
        where = SQUARE.square(thing.place, False)
        assert abs(seen[where] - inner[where]).mean() < 1
    middle = seen if canvas is LANDSCAPE else seen.transpose(1, 0, 2)
    assert np.array_equal(middle[:8], middle[8:16][::-1])  # mirrored where nothing was
    assert np.array_equal(middle[-8:], middle[-16:-8][::-1])


# ---- encoding ------------------------------------------------------------------------------------


def test_encoding_keeps_every_picture_in_its_place(records, data):
    autoencoder = recipe.autoencoder()
    for record, latents in zip(records, data.latents, strict=True):
        alone = autoencoder.encode(to_tensor(record.image[None])).latent_dist.mean[0]
        alone *= autoencoder.config.scaling_factor
        assert torch.allclose(latents, alone, atol=5e-3)  # kept in half precision
    assert len(data.states["original"]) == len(data.states["dsc"]) == COUNT
    shapes = {b: {tuple(data.latents[i].shape) for i in rows} for b, rows in data.groups.items()}
    assert [*shapes.values()] == [{(4, 12, 20)}, {(4, 16, 16)}, {(4, 20, 12)}]


def test_encoding_in_shards_changes_nothing_and_is_done_once(records, data, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe, "SHARD", 5)
    parts = recipe.encode(records, tmp_path / "shards", recipe.autoencoder())
    for one, other in zip(data.latents, parts.latents, strict=True):
        assert torch.allclose(one, other, atol=5e-3)
    for kind in data.states:
        assert [len(s) for s in data.states[kind]] == [len(s) for s in parts.states[kind]]
    assert {b: r.tolist() for b, r in data.groups.items()} == {
        b: r.tolist() for b, r in parts.groups.items()
    }

    def never(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(recipe, "encode_shard", never)
    again = recipe.encode(records, tmp_path / "shards", recipe.autoencoder())
    assert all(torch.equal(a, b) for a, b in zip(parts.latents, again.latents, strict=True))


# ---- training ------------------------------------------------------------------------------------


def test_a_step_shows_one_bucket_and_both_starts_the_same(data, monkeypatch):
    seen = []

    def noted(model, x, noise, t, states, mask):
        seen.append((x, noise, t, states, mask))
        return loss(model, x, noise, t, states, mask)

    monkeypatch.setattr(recipe.diffusion, "loss", noted)
    for start in recipe.STARTS:
        at = recipe.step_loss(recipe.network(start, 0), data, seed=0, batch=4)
        for step in range(3):
            assert torch.isfinite(at(step)["loss"])
    for first, second in zip(seen[:3], seen[3:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    for step, (x, *_) in enumerate(seen[:3]):
        _, rows = buckets.batch_at(0, step, 4, data.groups)
        assert torch.equal(x, torch.stack([data.latents[i] for i in rows]))


def test_starts(foundations):
    shipped = recipe.first_stage()
    model = recipe.network("progressive", 0)
    assert model.config.sample_size == 16 and all(p.requires_grad for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, shipped.state_dict()[name]), name
    torch.manual_seed(1)
    one = recipe.network("scratch", 0).state_dict()
    torch.manual_seed(2)
    other = recipe.network("scratch", 0).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {n: v.shape for n, v in one.items()} == {
        n: v.shape for n, v in shipped.state_dict().items()
    }
    assert not torch.equal(one["conv_in.weight"], shipped.state_dict()["conv_in.weight"])
    assert not torch.equal(one["conv_in.weight"], recipe.network("scratch", 1).conv_in.weight)
    with pytest.raises(UserError, match="There is no start 'low': choose progressive or scratch"):
        recipe.network("low", 0)


def test_an_interrupted_stage_ends_with_the_same_bits(data, tmp_path, monkeypatch):
    options = {"seed": 0, "steps": 5, "batch": 4, "lr": 1e-3}
    monkeypatch.setattr(recipe, "train", _saving_often(recipe.train))
    whole, log = recipe.train_stage("progressive", data, tmp_path / "whole", **options)
    assert len(log["loss"]) == 5
    real = recipe.step_loss

    def broken(*arguments, **given):
        at = real(*arguments, **given)

        def stops(step: int):
            if step == 3:
                raise KeyboardInterrupt
            return at(step)

        return stops

    monkeypatch.setattr(recipe, "step_loss", broken)
    with pytest.raises(KeyboardInterrupt):
        recipe.train_stage("progressive", data, tmp_path / "broken", **options)
    monkeypatch.setattr(recipe, "step_loss", real)
    resumed, again = recipe.train_stage("progressive", data, tmp_path / "broken", **options)
    assert again == log
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def _saving_often(train):
    return lambda *arguments, **given: train(*arguments, **given | {"checkpoint_every": 2})


def test_the_autoencoder_goes_on_from_the_shipped_one(foundations, tmp_path):
    before = vae.load(paths.foundation("vae"))
    model, log = recipe.adapt_autoencoder(tmp_path, scenes=30, steps=2, batch=4)
    assert len(log["loss"]) == 2 and model.config.scaling_factor == 1
    assert not torch.equal(model.decoder.conv_out.bias, before.decoder.conv_out.bias)
    found = [r for r in recipe.pictures("foundation", 30) if r.image.shape[:2] == (128, 128)]
    z = model.encode(to_tensor(stack(found))).latent_dist.mean
    assert z.mean((0, 2, 3)).abs().max() < 1e-2 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-2


# ---- equal compute -------------------------------------------------------------------------------


def test_operations_are_counted(foundations):
    model = recipe.network("progressive", 0)
    small, large = (recipe_training.training_flops(model, s, s, 20) for s in (8, 16))
    assert 3 < large / small < 4  # the text's share does not grow with the picture
    a, b, c = (recipe_training.training_flops(model, 8, 8, n) for n in (10, 20, 30))
    assert b - a == c - b > 0  # attention to the text is counted, and linear in its length
    assert recipe_training.training_flops(model, 12, 20, 20) < large
    # a convolution of k channels into k: 2 · 9 · k² a position forward, twice that backward
    widest = model.config.block_out_channels[0]
    assert small > 3 * 2 * 9 * widest**2 * 64
    assert all(p.grad is None for p in model.parameters())


def test_equal_compute_by_hand():
    assert recipe_training.steps_from_scratch(100, 4, first=80.0, image=2.0) == 110
    assert recipe_training.steps_from_scratch(100, 4, first=0.0, image=2.0) == 100


def test_what_the_first_stage_cost(data, tmp_path, monkeypatch):
    arm.save(recipe.first_stage(), tmp_path)
    quality.write_manifest(tmp_path, quality.clock(), seed=0, steps=10, measured={}, batch=5)
    monkeypatch.setattr(recipe_training, "training_flops", lambda m, h, w, tokens: h * w)
    first, image = recipe_training.compute(data, tmp_path)
    assert first == 64 * 10 * 5
    squares = sum(x.shape[1:] == (16, 16) for x in data.latents)
    assert image == pytest.approx((squares * 256 + (COUNT - squares) * 240) / COUNT)


# ---- scores --------------------------------------------------------------------------------------


def test_held_out_records_are_of_their_canvas():
    for canvas in CANVASES:
        found = recipe_scores.held_out(canvas, 5)
        assert len(found) == 5 and all(r.key.startswith("dev-") for r in found)
        assert {r.image.shape for r in found} == {(2 * canvas.height, 2 * canvas.width, 3)}


def test_latents_in_common(foundations):
    first = vae.load(paths.foundation("vae"))
    assert np.allclose(recipe_scores.latents_in_common(first, first, 3), 1)
    other = recipe_scores.latents_in_common(first, recipe.autoencoder(), 3)
    assert other.shape == (4,) and abs(other).max() < 0.99


def test_true_pictures_get_every_fact(foundations, monkeypatch):
    on = recipe_scores.studio(3)
    true = {name: stack(records) for name, records in on.records.items()}
    monkeypatch.setattr(recipe_scores, "draw", lambda m, a, s, canvas, **o: true[canvas.name])
    table, pictures = recipe_scores.score(None, on)
    assert pictures == true and table.canvas.tolist() == [c.name for c in CANVASES for _ in "123"]
    assert (table[["colour-shape", "background", "count"]] == 1).all(axis=None)
    assert table.score.between(-100, 100).all()
    worse = recipe_scores.measure({n: np.roll(x, 1, axis=0) for n, x in true.items()}, on)
    assert worse["colour-shape"].mean() < 0.5


def test_pictures_are_drawn_at_every_aspect(foundations):
    model, about = recipe_training.load("scratch")
    assert about["batch"] == 4 and not model.training
    states = recipe_scores.encode({"a": ["a red circle.", "two blue stars."]})["a"]
    options = {"seed": 0, "steps": 2, "guidance": 2.0}
    for canvas in CANVASES:
        drawn = recipe_scores.draw(model, recipe.autoencoder(), states, canvas, **options)
        assert drawn.shape == (2, 2 * canvas.height, 2 * canvas.width, 3)
    square = sample(model, recipe.autoencoder(), states, **options)  # the network's own size
    assert np.array_equal(
        square, recipe_scores.draw(model, recipe.autoencoder(), states, SQUARE, **options)
    )


def test_summary_by_hand():
    table = pd.DataFrame(
        {"canvas": ["square", "square", "portrait"], "a": [0.0, 1.0, 0.5], "b": [1.0, np.nan, 1.0]}
    )
    table = pd.concat([table, table], ignore_index=True)
    found = recipe_scores.summarise(table, ["a", "b"]).set_index(["canvas", "measure"])
    assert found["mean"].to_dict() == {
        ("all", "a"): 0.5, ("all", "b"): 1.0, ("square", "a"): 0.5, ("square", "b"): 1.0,
        ("portrait", "a"): 0.5, ("portrait", "b"): 1.0,
    }  # fmt: skip
    assert found.loc[("portrait", "a"), ["low", "high"]].tolist() == [0.5, 0.5]
    assert found.loc[("square", "a"), "low"] < 0.5 < found.loc[("square", "a"), "high"]


def test_differences_by_hand():
    first = pd.DataFrame({"score": [60.0, 50.0], "colour-shape": [1.0, 0.5]})
    second = pd.DataFrame({"score": [58.0, 50.0], "colour-shape": [0.5, 0.0]})
    found = recipe_scores.differences(first, second, ("score", "colour-shape"))
    assert found["CLIP score (points)"]["effect"] == 1
    assert found["CLIP score (points)"]["interval"] == (0, 2)
    assert found["colour-shape (% points)"] == {"effect": 50, "interval": (50, 50)}
    with pytest.raises(UserError, match="equal lengths"):
        recipe_scores.differences(first, pd.concat([second, second]), ["score"])


# ---- training it all again -----------------------------------------------------------------------


def test_everything_can_be_trained_again(foundations, tmp_path, monkeypatch):
    tiny = {"seed": 0, "scenes": 12, "steps": 2, "batch": 4, "lr": 1e-3}
    small = {"scenes": 12, "steps": 3, "batch": 4, "channels": [16, 32, 32], "tuning": 2}
    monkeypatch.setattr(recipe_training, "RECIPE", tiny)
    monkeypatch.setattr(recipe_training, "FIRST", recipe_training.FIRST | small)
    monkeypatch.setenv("DALLE3_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(recipe_training, "PROMPTS", 2)
    monkeypatch.setattr(recipe_training, "EVERY", 2)
    monkeypatch.setattr(recipe_training, "compute", lambda *_: (4e9, 1e9))  # a step's worth
    monkeypatch.setattr(recipe_scores.stats, "RESAMPLES", 99)
    adapt, reconstruct = recipe.adapt_autoencoder, recipe_scores.reconstruction
    monkeypatch.setattr(
        recipe, "adapt_autoencoder", lambda d, **o: adapt(d, scenes=12, steps=2, batch=4)
    )
    monkeypatch.setattr(
        recipe_scores, "reconstruction", lambda m, c, n, **o: reconstruct(m, c, 2, **o)
    )
    made = recipe_training.train_again(tmp_path)
    assert {name: m["steps"] for name, m in made.items()} == {
        "vae-recipe": 2, "unet-recipe-first": 3, "unet-recipe-progressive": 2,
        "unet-recipe-scratch": 3, "unet-recipe-squares": 2,
    }  # fmt: skip
    assert set(made) == set(foundation.STAGES) and made["unet-recipe-first"]["batch"] == 4
    stamps = {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/manifest.json")}
    assert recipe_training.train_again(tmp_path) == made  # nothing is done twice
    assert stamps == {p: p.stat().st_mtime_ns for p in tmp_path.glob("*/manifest.json")}
    monkeypatch.setenv("DALLE3_FOUNDATION", str(tmp_path))
    assert recipe_scores.guidance() == made["unet-recipe-first"]["quality"]["guidance"]
    for name, steps in (("progressive", 2), ("scratch", 3), ("squares", 2)):
        _, about = recipe_training.load(name)
        curve = pd.DataFrame(about["curve"])
        assert sorted(curve.step.unique()) == sorted({2, steps})
        assert set(curve.canvas) == {"all", "square", "landscape", "portrait"}
        before = 0 if name == "scratch" else 4e9
        assert about["first_flops"] == before and len(about["loss"]) == steps
        assert np.allclose(curve.flops, before + curve.step * 4e9)
        assert curve.flops.max() == 12e9  # equal compute
