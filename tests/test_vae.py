"""The autoencoder: diffusers' interface, files of both kinds, loss, standard latents, PSNR."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from dalle3lib import paths, vae
from dalle3lib.images import to_tensor
from dalle3lib.randomness import batch_indices
from dalle3lib.world import World

torch.set_num_threads(1)


def random_model(seed: int = 0) -> vae.PatchAutoencoderKL:
    torch.manual_seed(seed)
    return vae.build((16, 32)).eval()


def random_images(count: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, size, size, generator=generator) * 2 - 1


@torch.no_grad()
def test_it_has_the_interface_of_autoencoderkl():
    model, images = random_model(), random_images()
    assert isinstance(model, AutoencoderKL)
    posterior = model.encode(images).latent_dist
    assert posterior.mean.shape == posterior.std.shape == posterior.sample().shape == (2, 4, 8, 8)
    pictures = model.decode(posterior.mean).sample
    assert pictures.shape == images.shape
    assert torch.equal(model(images).sample, pictures)  # diffusers' own forward pass
    assert torch.equal(model.encode(images, return_dict=False)[0].mean, posterior.mean)
    assert torch.equal(model.decode(posterior.mean, return_dict=False)[0], pictures)
    assert model.encode(random_images(1, 32)).latent_dist.mean.shape == (1, 4, 4, 4)


@torch.no_grad()
def test_patches_are_all_that_differs_from_autoencoderkl():
    ours = random_model()
    plain = AutoencoderKL(**{k: v for k, v in ours.config.items() if not k.startswith("_")}).eval()
    plain.load_state_dict(ours.state_dict())
    images = random_images()
    z = plain.encode(F.pixel_unshuffle(images, 4)).latent_dist.mean
    assert torch.equal(ours.encode(images).latent_dist.mean, z)
    assert torch.equal(F.pixel_unshuffle(ours.decode(z).sample, 4), plain.decode(z).sample)


def test_patches_lose_no_pixel():
    images = random_images()
    assert torch.equal(F.pixel_shuffle(F.pixel_unshuffle(images, vae.PATCH), vae.PATCH), images)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_our_files_load_as_our_class(tmp_path, dtype):
    model = random_model()
    model.register_to_config(scaling_factor=0.5)
    model.to(dtype).save_pretrained(tmp_path)
    loaded = vae.load(tmp_path)
    assert type(loaded) is vae.PatchAutoencoderKL and loaded.config.scaling_factor == 0.5
    assert loaded.dtype == torch.float32 and not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    images = random_images()
    same = model.float().encode(images).latent_dist.mean
    assert torch.equal(loaded.encode(images).latent_dist.mean, same)


@torch.no_grad()
def test_public_files_load_as_autoencoderkl(tmp_path):
    """The layout of a real checkpoint, such as stabilityai/sd-vae-ft-mse: no patches, 8 x down."""
    torch.manual_seed(0)
    public = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        norm_num_groups=4,
    ).eval()
    public.save_pretrained(tmp_path)
    loaded, images = vae.load(tmp_path), random_images(1)
    assert type(loaded) is AutoencoderKL
    latents = loaded.encode(images).latent_dist.mean
    assert latents.shape == (1, 4, 8, 8) and loaded.decode(latents).sample.shape == images.shape
    assert torch.equal(latents, public.encode(images).latent_dist.mean)


def test_the_foundation_loads(foundations):
    assert type(vae.load(paths.foundation("vae"))) is vae.PatchAutoencoderKL


class Constant:
    """An autoencoder that answers 0.5 everywhere and says which latents it was asked about."""

    def encode(self, images):
        mean = torch.arange(8.0).view(2, 1, 2, 2)  # standard deviation sqrt(6)
        dist = SimpleNamespace(mean=mean, std=torch.full_like(mean, 2), kl=lambda: torch.ones(2))
        return SimpleNamespace(latent_dist=dist)

    def decode(self, z):
        self.asked = z
        return SimpleNamespace(sample=torch.full((2, 3, 16, 16), 0.5))


def test_loss_by_hand():
    model, noise = Constant(), torch.stack([torch.ones(2, 1, 2, 2), torch.full((2, 1, 2, 2), 3.0)])
    values = vae.loss(model, torch.full((2, 3, 16, 16), -0.5), noise, kl_weight=0.25)
    # error 1 everywhere: MSE 1, L1 1; KL 1
    assert values["loss"].item() == pytest.approx(1 + 0.2 + 0.25)
    assert values["mse"].item() == 1 and values["kl"].item() == 1
    expected = torch.arange(8.0).view(2, 1, 2, 2) + 2 * 1 + 0.05 * 6**0.5 * 3
    assert torch.allclose(model.asked, expected)


def test_loss_reaches_every_weight():
    model = random_model().train()
    vae.loss(model, random_images(), torch.zeros(2, 2, 4, 8, 8))["loss"].backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_step_loss_is_a_function_of_the_step():
    images = np.stack([record.image for record in World("dev", 12)])
    model = random_model()

    def batch_at(step: int) -> np.ndarray:
        return images[batch_indices(0, step, 5, len(images))]

    at = vae.step_loss(model, batch_at, seed=0)
    values = [at(step)["loss"].item() for step in (3, 4, 3)]
    assert values[0] == values[2] != values[1]
    other = vae.step_loss(model, batch_at, seed=1)
    assert other(3)["loss"].item() != values[0]
    assert set(at(0)) == {"loss", "mse", "kl"} and at(0)["loss"].requires_grad


@torch.no_grad()
def test_standardised_latents_decode_to_the_same_images():
    model, images = random_model(), random_images(8)
    before = model.encode(images).latent_dist
    noise = torch.randn(before.mean.shape, generator=torch.Generator().manual_seed(1))
    images_before = model.decode(before.mean + before.std * noise).sample
    vae.standardise(model, images)
    after = model.encode(images).latent_dist
    assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(4), atol=1e-5)
    assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(4), atol=1e-5)
    assert not torch.allclose(before.mean.std((0, 2, 3)), torch.ones(4), atol=0.05)
    images_after = model.decode(after.mean + after.std * noise).sample  # the spread moves along
    assert torch.allclose(images_after, images_before, atol=1e-4)
    assert model.config.scaling_factor == 1


def test_psnr_by_hand():
    black = torch.full((3, 3, 8, 8), -1.0)
    other = black.clone()
    other[1] += 0.2  # an error of 0.2 everywhere: 10 log10(4 / 0.04) = 20 dB
    other[2] = 5.0  # clipped to 1, an error of 2 everywhere: 0 dB
    values = vae.psnr(black, other)
    assert values[0] == float("inf")
    assert values[1:].tolist() == pytest.approx([20, 0], abs=1e-4)


def test_psnr_is_that_of_eight_bit_images():
    records = list(World("dev", 2))
    a, b = (record.image[None] for record in records)
    mse = np.mean((a.astype(float) - b) ** 2)
    expected = 10 * np.log10(255**2 / mse)
    assert vae.psnr(to_tensor(a), to_tensor(b)).item() == pytest.approx(expected, abs=1e-3)
