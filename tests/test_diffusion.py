"""The method: schedule, velocity, loss, sampler against diffusers' DDIM, guidance, paired arms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dalle3lib import diffusion, unet
from dalle3lib.randomness import batch_indices

torch.set_num_threads(1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Network:
    """A network that notes what it is shown and answers with a function of it."""

    def __init__(self, answer=lambda z, t, states, mask: torch.zeros_like(z)):
        self.answer, self.calls = answer, []

    def __call__(self, z, t, states, encoder_attention_mask):
        self.calls.append(SimpleNamespace(z=z, t=t, states=states, mask=encoder_attention_mask))
        return SimpleNamespace(sample=self.answer(z, t, states, encoder_attention_mask))


# ---- schedule and velocity -----------------------------------------------------------------------


def test_alpha_bar_falls_from_one_to_almost_nothing():
    a = diffusion.alpha_bar(torch.linspace(0, 1, 1001))
    assert a[0] == 1 and a[-1].item() == pytest.approx(1e-5)
    assert (a.diff() <= 0).all() and (a[:-3].diff() < 0).all()  # its last values are bounded
    expected = np.cos(0.508 / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    assert a[500].item() == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.integers(0, 99))
def test_image_and_noise_come_back_from_latent_and_velocity(times, seed):
    t = torch.tensor(times)
    x, noise = normal(3, 4, 2, 2, seed=seed), normal(3, 4, 2, 2, seed=seed + 100)
    z, v = diffusion.add_noise(x, noise, t), diffusion.velocity(x, noise, t)
    a = diffusion.alpha_bar(t)[:, None, None, None]
    assert torch.allclose(a.sqrt() * z - (1 - a).sqrt() * v, x, atol=1e-5)
    assert torch.allclose((1 - a).sqrt() * z + a.sqrt() * v, noise, atol=1e-5)


def test_ends_of_the_way():
    x, noise = normal(2, 4, 8, 8), normal(2, 4, 8, 8, seed=1)
    start, end = torch.zeros(2), torch.ones(2)
    assert torch.equal(diffusion.add_noise(x, noise, start), x)
    assert torch.equal(diffusion.velocity(x, noise, start), noise)
    assert torch.allclose(diffusion.add_noise(x, noise, end), noise, atol=0.02)
    assert torch.allclose(diffusion.velocity(x, noise, end), -x, atol=0.02)


def test_each_sample_has_its_own_time():
    x, noise, t = torch.ones(2, 1), torch.zeros(2, 1), torch.tensor([0.0, 1.0])
    assert diffusion.add_noise(x, noise, t)[:, 0].tolist() == pytest.approx([1, 1e-5**0.5])


# ---- loss ----------------------------------------------------------------------------------------


def test_loss_by_hand():
    x, noise, t = torch.zeros(2, 1, 1, 2), torch.full((2, 1, 1, 2), 2.0), torch.tensor([0.0, 0.5])
    states, mask = torch.ones(2, 3, 5), torch.ones(2, 3, dtype=torch.bool)
    network = Network()  # answers 0: the error is the velocity, sqrt(a) times the noise
    a = diffusion.alpha_bar(torch.tensor(0.5)).item()
    value = diffusion.loss(network, x, noise, t, states, mask)
    assert value.item() == pytest.approx((4 + 4 * a) / 2)
    (call,) = network.calls
    assert call.t.tolist() == [0, 500] and call.states is states and call.mask is mask
    assert torch.allclose(call.z[1], torch.full((1, 1, 2), 2 * (1 - a) ** 0.5))


def test_a_perfect_network_has_no_loss():
    x, noise = normal(3, 4, 8, 8), normal(3, 4, 8, 8, seed=1)
    t = torch.tensor([0.1, 0.5, 0.9])
    network = Network(lambda z, t, *_: diffusion.velocity(x, noise, t / 1000))
    assert diffusion.loss(network, x, noise, t, None, None).item() < 1e-10


# ---- one arm against another ---------------------------------------------------------------------

LATENTS = normal(30, 4, 8, 8)
ORIGINAL = [torch.full((2 + i % 3, 5), 1.0 + i) for i in range(30)]  # positive: original
SYNTHETIC = [torch.full((4 - i % 2, 5), -1.0 - i) for i in range(30)]  # negative: synthetic


def shown(steps: int = 10, batch: int = 20, seed: int = 0, ratio=50.0, dropout=0.0) -> Network:
    network = Network()
    at = diffusion.step_loss(
        network, LATENTS, ORIGINAL, SYNTHETIC, seed=seed, batch=batch, ratio=ratio, dropout=dropout
    )
    for step in range(steps):
        at(step)
    return network


def first_states(network: Network) -> np.ndarray:
    """The first number of each caption the network was shown, step by step: [steps, batch]."""
    return np.stack([call.states[:, 0, 0].numpy() for call in network.calls])


def test_ratio_0_shows_originals_and_100_synthetic_captions():
    rows = np.stack([batch_indices(0, step, 20, 30) for step in range(10)])
    assert np.array_equal(first_states(shown(ratio=0)), 1 + rows)
    assert np.array_equal(first_states(shown(ratio=100)), -1 - rows)


def test_the_blend_has_the_ratio():
    for ratio in (20, 50, 95):
        share = (first_states(shown(steps=100, ratio=ratio)) < 0).mean()
        assert abs(share - ratio / 100) < 4 * (0.25 / 2000) ** 0.5


def test_arms_are_paired():
    networks = [shown(ratio=ratio) for ratio in (0, 50, 95)]
    for calls in zip(*(n.calls for n in networks), strict=True):
        assert all(torch.equal(calls[0].z, c.z) and torch.equal(calls[0].t, c.t) for c in calls)
    low, high = (first_states(n) < 0 for n in networks[1:])
    assert not (low & ~high).any()  # a higher ratio takes no synthetic caption back


def test_seeds_and_steps_differ():
    one, other = shown(), shown(seed=1)
    assert not torch.equal(one.calls[0].z, other.calls[0].z)
    assert not torch.equal(one.calls[0].t, other.calls[0].t)
    assert not torch.equal(one.calls[0].t, one.calls[1].t)
    times = torch.cat([call.t for call in shown(steps=100).calls])
    assert times.min() >= 0 and times.max() <= 1000
    assert times.mean().item() == pytest.approx(500, abs=4 * 1000 / (12 * 2000) ** 0.5)


def test_captions_are_masked_to_their_lengths():
    for call in shown(ratio=0).calls:
        row = (call.states[:, 0, 0] - 1).long()
        assert torch.equal(call.mask.sum(1), torch.tensor([2 + i % 3 for i in row.tolist()]))


def test_dropped_captions_are_the_zero_state_at_the_given_rate():
    network = shown(steps=100, dropout=0.1)
    dropped = first_states(network) == 0
    assert abs(dropped.mean() - 0.1) < 4 * (0.09 / 2000) ** 0.5
    call = network.calls[0]
    for row in np.flatnonzero(dropped[0]):
        assert not call.states[row].any() and call.mask[row].tolist()[:2] == [True, False]
    with_all = first_states(shown(steps=100))
    assert np.array_equal(first_states(network)[~dropped], with_all[~dropped])  # the rest as ever


def test_no_noise_is_left_out():
    """What the network sees is the latent with the noise of the step, nothing else."""
    (call,) = shown(steps=1).calls
    x = LATENTS[batch_indices(0, 0, 20, 30)]
    a = diffusion.alpha_bar(call.t / 1000)[:, None, None, None]
    noise = (call.z - a.sqrt() * x) / (1 - a).sqrt()
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert abs(noise.mean().item()) < 0.06


# ---- sampler and guidance ------------------------------------------------------------------------


def curved(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Some velocity, smooth and not linear."""
    return torch.sin(2 * z) * (1 + t.view(-1, 1, 1, 1)) - 0.3 * z


@pytest.mark.parametrize("steps", [1, 4, 20])
def test_ddim_is_that_of_diffusers(steps):
    fine = 10 * steps
    a = diffusion.alpha_bar(torch.arange(fine + 1, dtype=torch.float64) / fine)
    scheduler = DDIMScheduler(
        num_train_timesteps=fine,
        trained_betas=(1 - a[1:] / a[:-1]).tolist(),
        prediction_type="v_prediction",
        set_alpha_to_one=True,
        clip_sample=False,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(steps)
    noise = z = normal(2, 4, 8, 8)
    for index in scheduler.timesteps:
        t = (index + 1) / fine
        z = scheduler.step(curved(z, t.expand(2)), index, z).prev_sample
    assert torch.allclose(diffusion.ddim(curved, noise, steps), z, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7])
def test_ddim_finds_the_only_image_there_is(steps):
    x, estimates = normal(2, 4, 8, 8, seed=1), []

    def oracle(z, t):
        a = diffusion.alpha_bar(t)[:, None, None, None]
        noise = (z - a.sqrt() * x) / (1 - a).sqrt()
        return a.sqrt() * noise - (1 - a).sqrt() * x

    def note(step, estimate):
        estimates.append((step, estimate))

    found = diffusion.ddim(oracle, normal(2, 4, 8, 8), steps, note)
    assert torch.allclose(found, x, atol=1e-4)
    assert [step for step, _ in estimates] == list(range(steps))
    assert all(torch.allclose(estimate, x, atol=2e-2) for _, estimate in estimates)
    assert torch.allclose(estimates[-1][1], found, atol=1e-5)


def test_ddim_asks_at_even_times_from_one():
    asked = []

    def velocity_of(z, t):
        asked.append(t)
        return torch.zeros_like(z)

    diffusion.ddim(velocity_of, normal(3, 4, 2, 2), 4)
    assert torch.stack(asked).tolist() == [[t] * 3 for t in (1.0, 0.75, 0.5, 0.25)]


def test_guidance_is_linear_in_its_scale():
    def answer(z, t, states, mask):
        return z + (states * mask[..., None]).sum((1, 2))[:, None, None, None]

    z, t = normal(2, 4, 2, 2), torch.full((2,), 0.5)
    states, mask = torch.ones(2, 3, 5), torch.tensor([[True] * 3, [True, False, False]])
    conditional = z + torch.tensor([15.0, 5.0])[:, None, None, None]
    for scale in (0.0, 1.0, 2.5):
        network = Network(answer)
        guided = diffusion.guided(network, states, mask, scale)(z, t)
        assert torch.allclose(guided, z + scale * (conditional - z), atol=1e-5)
        assert len(network.calls) == (1 if scale == 1 else 2)
        for call in network.calls:
            assert call.mask.any(1).all()  # a softmax over nothing would be NaN


@torch.no_grad()
def test_guidance_leaves_out_what_training_dropped():
    """The unconditional answer is that of the network to a dropped caption, padding and all."""
    from dalle3lib import text

    torch.manual_seed(0)
    model = unet.build((16, 32, 32), text_width=16).eval()
    z, t = normal(2, 4, 8, 8), torch.full((2,), 0.5)
    states, mask = text.pad([normal(3, 16), normal(2, 16)])
    dropped = text.pad([torch.zeros(0, 16), torch.zeros(0, 16)])
    padded = text.pad([torch.zeros(0, 16), normal(4, 16)])  # the same beside a longer caption
    nothing = diffusion.predict(model, z, t, *dropped)
    assert torch.allclose(diffusion.guided(model, states, mask, 0.0)(z, t), nothing, atol=1e-5)
    assert torch.allclose(diffusion.predict(model, z, t, *padded)[0], nothing[0], atol=1e-5)


# ---- what a GPU changes --------------------------------------------------------------------------


def test_micro_batches_sum_to_the_batch():
    torch.manual_seed(0)
    model = unet.build((32, 32, 32), text_width=5)
    options = {"seed": 0, "batch": 5, "ratio": 50, "dropout": 0.1}
    latents = normal(30, 4, 8, 8)
    whole = diffusion.step_loss(model, latents, ORIGINAL, SYNTHETIC, **options)(2)["loss"]
    whole.backward()
    wanted = model.conv_in.weight.grad.clone()
    model.zero_grad()
    parts = diffusion.step_loss(model, latents, ORIGINAL, SYNTHETIC, **options, micro_batch=2)
    losses = []
    for part in parts(2):
        loss = part()["loss"]
        loss.backward()
        losses.append(loss.item())
    assert len(losses) == 3 and sum(losses) == pytest.approx(whole.item(), rel=1e-5)
    assert torch.allclose(model.conv_in.weight.grad, wanted, rtol=1e-3, atol=1e-6)
    same = diffusion.step_loss(model, latents, ORIGINAL, SYNTHETIC, **options, micro_batch=5)(2)
    assert torch.equal(same["loss"], whole)


def test_bfloat16_is_close_and_changes_no_weight():
    torch.manual_seed(0)
    model = unet.build((32, 32, 32), text_width=5)
    options = {"seed": 0, "batch": 4, "ratio": 50, "dropout": 0.1}
    at = [
        diffusion.step_loss(model, normal(30, 4, 8, 8), ORIGINAL, SYNTHETIC, **options, dtype=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    ]
    exact, rounded = (f(0)["loss"] for f in at)
    assert rounded.item() == pytest.approx(exact.item(), rel=0.03) and rounded != exact
    rounded.backward()
    assert all(p.dtype == p.grad.dtype == torch.float32 for p in model.parameters())


def test_drawing_ahead_changes_nothing():
    asked = []

    def draw(step: int) -> int:
        asked.append(step)
        return 10 * step

    ahead = diffusion.drawn_ahead(draw)
    assert [ahead(step) for step in (0, 1, 2, 7, 8, 3)] == [0, 10, 20, 70, 80, 30]
    assert set(range(10)) - {5, 6} >= set(asked) >= {0, 1, 2, 3, 7, 8}


# ---- min-SNR weighting ---------------------------------------------------------------------------


def test_min_snr_weights_by_hand():
    """Half signal, half noise: the ratio is 1. No noise: nothing to predict, the weight is 0."""
    half = torch.tensor([x for x in torch.linspace(0, 1, 10001) if diffusion.alpha_bar(x) <= 0.5])[
        0
    ]
    assert diffusion.min_snr_weight(half[None], 5).item() == pytest.approx(0.5, abs=1e-3)
    assert diffusion.min_snr_weight(half[None], 0.2).item() == pytest.approx(0.1, abs=1e-3)
    assert diffusion.min_snr_weight(torch.zeros(1), 5).item() == 0


@given(st.floats(0, 1), st.floats(0.1, 20))
def test_min_snr_weights_are_those_of_diffusers(t, gamma):
    """Its example script: min(SNR, gamma) / (SNR + 1) for the velocity."""
    weight = diffusion.min_snr_weight(torch.tensor([t], dtype=torch.float64), gamma).item()
    a = diffusion.alpha_bar(torch.tensor(t, dtype=torch.float64)).item()
    assert weight == pytest.approx(min(a / (1 - a), gamma) / (a / (1 - a) + 1) if a < 1 else 0)


def test_min_snr_weighs_each_sample_of_a_batch():
    torch.manual_seed(0)
    model = unet.build((16, 32, 32), text_width=32)
    x, noise = torch.randn(2, 3, 4, 8, 8)
    t, states, mask = torch.tensor([0.1, 0.5, 0.9]), torch.randn(3, 2, 32), torch.ones(3, 2).bool()
    batch = (x, noise, t, states, mask)
    with torch.no_grad():
        each = [diffusion.loss(model, *(v[[i]] for v in batch)) for i in range(3)]
        weights = diffusion.min_snr_weight(t, 5)
        expected = sum(w * e for w, e in zip(weights, each, strict=True)) / 3
        torch.testing.assert_close(diffusion.loss(model, *batch, min_snr=5), expected)
    latents, told = torch.randn(8, 4, 8, 8), [torch.randn(2, 32)] * 8
    options = {"seed": 0, "batch": 4, "ratio": 50, "dropout": 0.1}
    plain, weighed = (
        diffusion.step_loss(model, latents, told, told, **options, min_snr=g)(0)["loss"].item()
        for g in (None, 5)
    )
    assert weighed < plain  # every weight is below 1
