"""The consistency decoder: method, network, training, drop-in, measures."""

import re
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import numpy as np
import pytest
import torch
import torchvision
from diffusers import AutoencoderKL, ConsistencyDecoderVAE
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dalle3lib import (
    UserError,
    consistency,
    decoder,
    decoder_network,
    decoder_samples,
    decoder_scores,
    paths,
    plan,
    pretrained,
    vae,
)
from dalle3lib import decoder_training as training
from dalle3lib.config import Parameters
from dalle3lib.diffusion import add_noise, alpha_bar
from dalle3lib.randomness import rng
from dalle3lib.world import Scene, Thing
from dalle3lib.world.render import render

torch.set_num_threads(1)


def network(seed: int = 0):
    return decoder_network.build((16, 16), patch=8, seed=seed)


def draws(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(rng(seed, "test").standard_normal(shape, dtype="float32"))


class Knows(torch.nn.Module):
    """A network whose denoiser always answers ``x``, whatever it is shown."""

    dtype = torch.float32

    def __init__(self, x):
        super().__init__()
        self.x = x

    def forward(self, seen, t):
        skip, out, scale = consistency.scalings(t / 1024)
        z = seen[:, :3] / scale
        return SimpleNamespace(sample=(self.x - skip * z) / out)


# ---- the method ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 63))
def test_scalings_are_karras_et_al_table_1_for_this_schedule(n):
    t = consistency.times(torch.tensor([n]))
    a = float(alpha_bar(t.double()))
    sigma, data = (1 / a - 1) ** 0.5, 0.5
    skip, out, scale = (float(c) for c in consistency.scalings(t))
    assert skip == pytest.approx(data**2 / (sigma**2 + data**2) / a**0.5, rel=1e-5)
    assert out == pytest.approx(sigma * data / (sigma**2 + data**2) ** 0.5, rel=1e-5)
    assert scale == pytest.approx(1 / (a * (sigma**2 + data**2)) ** 0.5, rel=1e-5)


def test_they_agree_with_the_released_scheduler():
    from diffusers.schedulers import ConsistencyDecoderScheduler

    known = ConsistencyDecoderScheduler()
    for n in (63, 32):  # its index i stands for the time (i + 1) / 1024
        t = torch.tensor([(16 * n + 1) / 1024])
        wanted = [known.c_skip[16 * n], known.c_out[16 * n], known.c_in[16 * n]]
        for mine, theirs in zip(consistency.scalings(t), wanted, strict=True):
            assert float(mine) == pytest.approx(float(theirs), rel=2e-3)


def test_at_time_zero_the_picture_is_itself_whatever_the_network_says():
    z, latents = draws(2, 3, 16, 16), draws(2, 4, 2, 2)
    assert torch.allclose(consistency.denoise(network(), z, torch.zeros(2), latents), z)


def test_the_network_sees_seven_channels_and_gives_three():
    model, seen = network(), draws(2, 7, 16, 32)
    assert model(seen, torch.tensor([5.0, 900.0])).sample.shape == (2, 3, 16, 32)
    assert model.patch == 8 and decoder_network.build((16, 16), patch=4).patch == 4


def test_latents_are_repeated_over_their_pixels():
    latents = torch.arange(8.0).view(1, 2, 2, 2)
    seen = consistency.condition(latents, 16)
    assert seen.shape == (1, 2, 16, 16)
    assert (seen[0, 0, :8, 8:] == latents[0, 0, 0, 1]).all()


def test_the_ode_step_follows_a_known_picture():
    x, noise = draws(2, 3, 8, 8), draws(2, 3, 8, 8, seed=1)
    t, earlier = torch.full((2,), 0.75), torch.full((2,), 0.5)
    z = add_noise(x, noise, t)
    assert torch.allclose(
        consistency.ode_step(x, z, t, earlier), add_noise(x, noise, earlier), atol=1e-5
    )
    assert torch.allclose(consistency.ode_step(x, z, t, torch.zeros(2)), x, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 16])
def test_the_samplers_end_at_what_the_network_knows(steps):
    x = draws(2, 3, 8, 8).clamp(-1, 1)
    latents, noise = draws(2, 4, 1, 1), draws(2, 3, 8, 8, seed=1)
    known = Knows(x)
    assert torch.allclose(consistency.diffusion_sample(known, latents, noise, steps), x, atol=1e-3)
    grid = consistency.TIMES.get(steps, (63, 32))
    drawn = consistency.consistency_sample(known, latents, lambda _: noise, grid)
    assert torch.allclose(drawn, x, atol=1e-3)


def test_losses_are_zero_for_who_knows_the_picture_and_not_otherwise():
    x, latents, noise = draws(2, 3, 8, 8), draws(2, 4, 1, 1), draws(2, 3, 8, 8, seed=1)
    n, known = torch.tensor([20, 50]), Knows(x)
    assert float(consistency.diffusion_loss(known, x, latents, noise, n)) < 1e-6
    assert float(consistency.distillation_loss(known, known, known, x, latents, noise, n)) < 1e-4
    assert float(consistency.training_loss(known, known, x, latents, noise, n)) < 1e-4
    assert float(consistency.diffusion_loss(Knows(x + 1), x, latents, noise, n)) > 1
    assert float(consistency.training_loss(Knows(x + 1), known, x, latents, noise, n)) > 1


def test_distance_is_quadratic_when_small_and_linear_when_large():
    zero = torch.zeros(1, 3, 8, 8)
    c = consistency.HUBER * 192**0.5
    small, large = torch.full_like(zero, 1e-5), torch.full_like(zero, 10.0)
    assert float(consistency.distance(small, zero)) == pytest.approx(192e-10 / (2 * c), rel=1e-2)
    assert float(consistency.distance(large, zero)) == pytest.approx(10 * 192**0.5, rel=1e-2)


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    images = rng(0, "pictures").integers(0, 256, (12, 16, 16, 3)).astype(np.uint8)
    return training.Pairs(images, draws(12, 4, 2, 2))


def test_a_draw_depends_on_seed_and_step_only_and_half_of_the_latents_are_clean(data):
    first, again = (training.draw(data, 0, 7, 12) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[2], training.draw(data, 0, 8, 12)[2])
    clean = sum(
        any(torch.equal(z, known) for known in data.latents)
        for step in range(20)
        for z in training.draw(data, 0, step, 12)[1]
    )
    assert 80 < clean < 160  # of 240
    assert int(first[3].min()) >= 1 and int(first[3].max()) <= 63


SETTING = {"seed": 0, "batch": 4, "lr": 1e-3}


def test_teacher_and_student_learn(data, tmp_path):
    teacher, _ = training.train_teacher(
        data, tmp_path / "t", steps=80, channels=(16, 16), **SETTING
    )
    before = decoder_network.build((16, 16), patch=4, seed=SETTING["seed"])

    @torch.no_grad()
    def error(model):  # on the same pictures, noise and times, none of them the training's
        at = training.teacher_loss(model, data, seed=1, batch=8)
        return np.mean([at(step)["loss"].item() for step in range(6)])

    assert error(teacher) < 0.95 * error(before)
    student, log = training.train_student(
        teacher, teacher, data, tmp_path / "s", steps=6, **SETTING
    )
    moved = zip(student.parameters(), teacher.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in moved) and np.isfinite(log["loss"]).all()


def test_a_network_starts_from_an_autoencoder_s_decoder():
    source = vae.build((32, 64))
    model = decoder_network.start_from(source, decoder_network.build((32, 64)))
    ours, theirs = model.up_blocks[0].resnets[0], source.decoder.up_blocks[0].resnets[0]
    x, skipped = draws(2, 64, 8, 8), draws(2, 64, 8, 8, seed=1)
    assert torch.allclose(ours.conv_shortcut(torch.cat([x, skipped], 1)), x, atol=1e-6)
    assert torch.equal(ours.conv1.weight[:, :64], theirs.conv1.weight)
    assert ours.conv1.weight[:, 64:].abs().mean() < 0.2 * ours.conv1.weight[:, :64].abs().mean()
    times = draws(2, 128)
    both = torch.cat([x, skipped], 1)
    assert torch.allclose(ours(both, times), ours(both, 0 * times), atol=1e-6)
    assert torch.allclose(
        consistency.SIGMA_DATA * model.conv_out.weight, source.decoder.conv_out.weight
    )


def test_such_a_start_is_an_advantage(tmp_path):
    source, data, error = vae.load(paths.foundation("vae")), training.pictures(24), {}
    for name, start in {"from": source, "without": None}.items():
        model, _ = training.train_teacher(
            data, tmp_path / name, steps=30, autoencoder=start, **SETTING
        )
        with torch.no_grad():
            at = training.teacher_loss(model, data, seed=1, batch=8)
            error[name] = np.mean([at(step)["loss"].item() for step in range(4)])
    assert error["from"] < error["without"]


@pytest.mark.parametrize("taught", [True, False])
def test_an_interrupted_distillation_ends_with_the_same_weights(
    data, tmp_path, monkeypatch, taught
):
    model = network()
    setting = {**SETTING, "steps": 4}

    def student(name):
        teacher = model if taught else None
        return training.train_student(model, teacher, data, tmp_path / name, **setting)[0]

    whole = student("whole")
    loss_of, train = training.student_loss, training.train

    def breaking(*args, **options):
        at = loss_of(*args, **options)
        return lambda step: at(step) if step < 2 else 1 / 0

    with monkeypatch.context() as patch:
        patch.setattr(training, "student_loss", breaking)
        patch.setattr(training, "train", lambda *a, **o: train(*a, **o, checkpoint_every=1))
        with pytest.raises(ZeroDivisionError):
            student("broken")
    resumed = student("broken")
    pairs = zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


# ---- the drop-in ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    where = tmp_path_factory.mktemp("decoder")
    network().save_pretrained(where)
    return where


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    where = tmp_path_factory.mktemp("released")
    torch.manual_seed(0)
    ConsistencyDecoderVAE(
        encoder_block_out_channels=(32, 32, 32, 32),
        encoder_layers_per_block=1,
        decoder_block_out_channels=(32, 32, 32, 32),
        decoder_layers_per_block=1,
        sample_size=64,
    ).save_pretrained(where)
    return where


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["ours", "released"])
def test_latents_become_pictures(kind, dtype, request):
    decode = decoder.ConsistencyDecoder(model=request.getfixturevalue(kind), dtype=dtype)
    latents = draws(2, 4, 4, 8)
    pictures = decode(latents)
    assert pictures.shape == (2, 3, 32, 64) and pictures.dtype == torch.float32
    assert pictures.isfinite().all() and pictures.abs().max() <= 1.01
    assert torch.equal(pictures, decode(latents)) and not torch.equal(pictures, decode(latents, 1))
    assert torch.equal(decode.decode(latents).sample, pictures)


def test_the_released_decoder_is_called_as_diffusers_does(released):
    latents = draws(1, 4, 4, 4)
    mine = decoder.ConsistencyDecoder(model=released)(latents, seed=3)
    number = int(rng(3, "decode/0/[0, 0]").integers(2**31))
    model = ConsistencyDecoderVAE.from_pretrained(released)
    with torch.no_grad():
        theirs = model.decode(latents, generator=torch.Generator().manual_seed(number)).sample
    assert torch.allclose(mine, theirs.clamp(-1, 1), atol=1e-5)


def test_sides_of_an_odd_number_of_latents_are_decoded_too(ours):
    assert decoder.ConsistencyDecoder(model=ours)(draws(1, 4, 3, 5)).shape == (1, 3, 24, 40)


def test_pictures_do_not_depend_on_how_many_are_decoded_at_once(ours):
    latents = draws(5, 4, 4, 4)
    one, all_ = (decoder.ConsistencyDecoder(model=ours, at_once=n)(latents) for n in (1, 5))
    assert torch.allclose(one, all_, atol=1e-4)


def test_the_network_never_sees_more_than_the_stated_bound(ours):
    decode = decoder.ConsistencyDecoder(model=ours, at_once=2, tile=12)
    seen = []
    decode.network.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape))
    assert decode(draws(3, 4, 30, 12)).shape == (3, 3, 240, 96)
    assert max(shape[0] for shape in seen) == 2
    assert max(shape[2] * shape[3] for shape in seen) == (8 * 12) ** 2


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 200), tile=st.integers(9, 64))
def test_tiles_cover_a_side_and_overlap(length, tile):
    found = decoder.spans(length, tile)
    assert found[0][0] == 0 and found[-1][1] == length
    for (_, end), (start, _) in zip(found[:-1], found[1:], strict=True):
        assert end - start >= decoder.OVERLAP
    assert all(end - start <= tile for start, end in found)


def test_what_it_cannot_do_is_said(ours, tmp_path):
    sdxl = SimpleNamespace(config=SimpleNamespace(scaling_factor=0.13025))
    with pytest.raises(UserError, match="SDXL"):
        decoder.ConsistencyDecoder(model=ours, vae=sdxl)
    with pytest.raises(UserError, match="1 or 2 or 4 steps, not 3"):
        decoder.ConsistencyDecoder(model=ours, steps=3)
    with pytest.raises(UserError, match="Tiles have an even side of more than 8"):
        decoder.ConsistencyDecoder(model=ours, tile=8)
    with pytest.raises(UserError, match="no model .*nowhere"):
        decoder.ConsistencyDecoder(model=tmp_path / "nowhere")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be loaded"):
        decoder.ConsistencyDecoder(model=tmp_path)
    with pytest.raises(UserError, match=r"\[B, 4, h, w\]"):
        decoder.ConsistencyDecoder(model=ours)(draws(1, 3, 4, 4))


def test_the_users_snippet_runs_with_another_import(released, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(render(SCENE)).resize((100, 80)).save("gt1.png")
    from dalle3lib.decoder import ConsistencyDecoder, load_image, save_image

    model = ConsistencyDecoderVAE.from_pretrained(released)
    decoder_consistency = ConsistencyDecoder(device="cpu", model=released)
    image = load_image("gt1.png", size=(64, 64), center_crop=True)
    with torch.no_grad():
        latent = model.encode(image).latent_dist.mean
    sample_consistency = decoder_consistency(latent)
    save_image(sample_consistency, "con.png")
    with Image.open("con.png") as written:
        assert written.size == (64, 64)


def test_pictures_are_loaded_whole_or_cropped(tmp_path):
    Image.fromarray(render(SCENE)).resize((100, 80)).save(tmp_path / "a.png")
    assert decoder.load_image(tmp_path / "a.png", (64, 32)).shape == (1, 3, 32, 64)
    square = decoder.load_image(tmp_path / "a.png", (40, 40), center_crop=True)
    assert square.shape == (1, 3, 40, 40) and square.abs().max() <= 1
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright
    Image.fromarray(render(SCENE)).resize((100, 50)).save(tmp_path / "c.jpg", exif=turned)
    upright = decoder.load_image(tmp_path / "c.jpg", (50, 100))
    flat = np.asarray(Image.fromarray(render(SCENE)).resize((100, 50)))
    seen = decoder.to_uint8(upright)[0].astype(float)
    assert np.abs(seen - np.rot90(flat, -1)).mean() < 10
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="b.png cannot be read"):
        decoder.load_image(tmp_path / "b.png", (64, 64))
    with pytest.raises(UserError, match="give equal sides"):
        decoder.load_image(tmp_path / "a.png", (64, 32), center_crop=True)


# ---- measures ------------------------------------------------------------------------------------

SCENE = Scene("snow", (Thing("circle", "red", "striped", "large", "centre", 1, -1),), "fox")


def test_a_true_picture_is_right_in_all_and_a_wrong_one_is_not():
    true, wrong = render(SCENE)[None], render(Scene("night", (), None))[None]
    good, bad = (decoder_scores.measure(x, [SCENE]).iloc[0] for x in (true, wrong))
    for name in ("letter pixels", "texture pixels", "words", "textures", "ssim"):
        assert good[name] == pytest.approx(1) and bad[name] < 0.5
    assert good["psnr"] == decoder_scores.EXACT and bad["psnr"] < 10


def test_what_is_redrawn_is_the_scene_with_its_jitter():
    soft = decoder_scores.sharpened(render(SCENE)[None], -0.5)
    assert np.array_equal(decoder_scores.redrawn(soft)[0], render(SCENE))


def test_sharpening_adds_power_at_high_frequencies_and_blur_takes_it():
    images = np.stack([render(SCENE)] * 2)
    crisp, true, soft = (
        decoder_scores.spectrum(decoder_scores.sharpened(images, amount))[20:].sum()
        for amount in (0.7, 0, -0.7)
    )
    assert crisp > true > soft


def test_the_gap_closed_is_a_share_and_nothing_where_there_is_no_gap():
    def table(value, words):
        return decoder_scores.pd.DataFrame({"letter pixels": [value] * 3, "words": [words] * 3})

    tables = {"VAE decoder": table(0.8, 1), "redrawn": table(1.0, 1), "mine": table(0.9, 1)}
    summary = decoder_scores.summarise(tables)
    assert decoder_scores.gap_closed(summary, "mine", "letter pixels") == pytest.approx(0.5)
    assert np.isnan(decoder_scores.gap_closed(summary, "mine", "words"))
    effect = decoder_scores.effect(tables, "mine", "VAE decoder", ["letter pixels"])
    assert effect["effect"] == pytest.approx(10)


# ---- at work -------------------------------------------------------------------------------------


def test_the_peak_is_what_is_held_at_once_not_what_was_taken_in_all():
    def how(z, noise):
        for _ in range(3):
            held = torch.zeros(2**20)  # 4 MiB, freed before the next
            del held

    assert decoder_samples.peak(how, draws(1, 4, 8, 8)) == pytest.approx(4, abs=0.3)


@pytest.fixture
def trunk(tmp_path, monkeypatch):
    """LPIPS's smallest trunk with random weights, where torchvision looks for the downloaded."""
    pytest.importorskip("torchmetrics")
    place = tmp_path / "torch" / "hub" / "checkpoints"
    place.mkdir(parents=True)
    name = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(torchvision.models.squeezenet1_1().state_dict(), place / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return "squeeze"


def test_lpips_is_nil_for_the_same_picture_and_grows_with_the_difference(trunk):
    true = draws(2, 3, 64, 64).clamp(-1, 1)
    near, far = (true + amount * draws(2, 3, 64, 64, seed=1) for amount in (0.1, 1.0))
    found = [decoder_samples.lpips(x, true, trunk) for x in (true, near, far)]
    assert found[0].shape == (2,) and found[0].abs().max() < 1e-6
    assert (found[0] < found[1]).all() and (found[1] < found[2]).all()


def test_lpips_without_its_weights_says_what_to_do(tmp_path, monkeypatch):
    pytest.importorskip("torchmetrics")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "urlopen", Mock(side_effect=OSError("no network")))
    with pytest.raises(UserError, match="weights of squeeze .*no network"):
        decoder_samples.lpips(draws(1, 3, 64, 64), draws(1, 3, 64, 64), "squeeze")


def test_the_released_decoder_is_pinned_and_its_absence_explained(monkeypatch):
    model = pretrained.find("decoder", decoder.RELEASED)
    assert re.fullmatch(r"[0-9a-f]{40}", model.revision)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=OSError("offline")))
    with pytest.raises(UserError, match=f"hf download {decoder.RELEASED}.*{model.revision}"):
        decoder.ConsistencyDecoder()


def test_public_latents_are_decoded_both_ways_and_those_of_sdxl_refused(released, trunk, tmp_path):
    torch.manual_seed(0)
    family = plan.SD_VAE | {"block_out_channels": (32, 32, 32, 32)}
    for name, scale in {"sd": 0.18215, "sdxl": 0.13025}.items():
        AutoencoderKL(**family | {"scaling_factor": scale}).save_pretrained(tmp_path / name)

    def through(name):
        values = {"vae": str(tmp_path / name), "decoder": str(released), "device": "cpu"}
        return decoder_samples.released([SCENE], Parameters("", "", values), trunk)

    table = through("sd")
    assert {name for _, name in table} == {"VAE decoder", "consistency, 2 steps"}
    assert {name for name, _ in table} == {"PSNR (dB)", "SSIM", "LPIPS"}
    assert table.shape == (1, 6) and np.isfinite(table.to_numpy()).all()
    with pytest.raises(UserError, match="SDXL"):
        through("sdxl")
