"""Sampling: the noise of a prompt, pictures that do not depend on the batch."""

import numpy as np
import pytest
import torch

from dalle3lib import UserError, diffusion, unet, vae
from dalle3lib.images import to_uint8
from dalle3lib.sample import sample, start_noise

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    network, autoencoder = unet.build((16, 32, 32), text_width=16), vae.build((16, 32)).eval()
    autoencoder.register_to_config(scaling_factor=0.5)
    with torch.no_grad():
        autoencoder.decoder.conv_out.weight *= 8  # untrained pictures are nearly grey
    return network, autoencoder


def prompts(count: int = 5) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2 + 3 * i, 16, generator=generator) for i in range(count)]


def test_noise_depends_on_seed_and_prompt_only():
    noise = start_noise(0, range(5), (4, 8, 8))
    assert noise.shape == (5, 4, 8, 8) and noise.dtype == torch.float32
    assert torch.equal(start_noise(0, [3, 1], (4, 8, 8)), noise[[3, 1]])
    assert not torch.equal(start_noise(1, [3], (4, 8, 8)), noise[[3]])
    assert len({row.numpy().tobytes() for row in noise}) == 5


def test_states_of_another_width_are_refused(models):
    with pytest.raises(UserError, match="states of width 16, and the text encoder makes them 8"):
        sample(*models, [torch.zeros(3, 8)], seed=0, steps=1)


def test_pictures_do_not_depend_on_the_batch(models):
    at_once, in_twos, singly = (
        sample(*models, prompts(), seed=0, steps=3, batch=batch) for batch in (64, 2, 1)
    )
    assert at_once.shape == (5, 64, 64, 3) and at_once.dtype == np.uint8
    assert at_once.std() > 5  # something to compare
    for other in (in_twos, singly):
        assert abs(at_once.astype(int) - other).max() <= 1  # grey level


def test_seed_prompt_and_guidance_change_pictures(models):
    def picture(states, seed=0, guidance=3.0):
        return sample(*models, states, seed=seed, steps=2, guidance=guidance).astype(int)

    base = picture(prompts(2))
    assert abs(base - picture(prompts(2), seed=1)).max() > 5
    assert abs(base - picture([-s for s in prompts(2)])).max() > 0
    assert abs(base - picture(prompts(2), guidance=40.0)).max() > 0


@torch.no_grad()
def test_a_sample_is_ddim_then_the_decoder(models):
    network, autoencoder = models
    (state,) = prompts(1)
    told = diffusion.guided(network, state[None], torch.ones(1, 2, dtype=torch.bool), 2.0)
    latent = diffusion.ddim(told, start_noise(7, [0], (4, 8, 8)), 4)
    expected = to_uint8(autoencoder.decode(latent / 0.5).sample)
    assert np.array_equal(sample(*models, [state], seed=7, steps=4, guidance=2.0), expected)


def test_the_network_is_evaluated_not_trained(models):
    network, _ = models
    network.train()
    pictures = sample(*models, prompts(1), seed=0, steps=1)
    assert not network.training and pictures.shape == (1, 64, 64, 3)
