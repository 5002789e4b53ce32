"""KID and CMMD: by hand, against torchmetrics, unbiased, and their intervals."""

import numpy as np
import pytest
import torch
import torchvision

from dalle3lib import UserError
from dalle3lib.evals import distribution
from dalle3lib.randomness import rng

torch.set_num_threads(1)


def features(count: int, shift: float = 0.0, seed: int = 0, width: int = 16) -> torch.Tensor:
    drawn = rng(seed, "test/features").standard_normal((count, width)) + shift
    return torch.from_numpy(drawn)


def test_two_points_each_by_hand():
    """Kernel (x y + 1)³ in one dimension: 1 and 2 against 0 and 1."""
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [1.0]])
    within_x, within_y = (1 * 2 + 1) ** 3, 1  # the only pair of each
    between = np.mean([1, (1 + 1) ** 3, 1, (2 + 1) ** 3])
    assert distribution.kid(x, y) == pytest.approx(within_x + within_y - 2 * between)
    a, b = (np.exp(-d / 200) for d in (1, 4))
    wanted = 1000 * (a + a - 2 * np.mean([a, 1, b, a]))
    assert distribution.cmmd(x, y) == pytest.approx(wanted)


def test_kid_is_that_of_torchmetrics():
    kernel = pytest.importorskip("torchmetrics.image.kid")
    x, y = features(40), features(50, 0.3, seed=1)
    theirs = kernel.poly_mmd(x[:40], y[:40])
    assert distribution.kid(x, y[:40]) == pytest.approx(float(theirs), rel=1e-6)


@pytest.mark.parametrize("distance", [distribution.kid, distribution.cmmd])
def test_no_bias_and_growth(distance):
    """Of the same distribution: 0 on average, at any size; of others: the more the further."""
    alike = [distance(features(8, seed=2 * i), features(12, seed=2 * i + 1)) for i in range(300)]
    error = np.std(alike) / np.sqrt(len(alike))
    assert abs(np.mean(alike)) < 3 * error
    near, far = (distance(features(60), features(60, s, seed=1)) for s in (0.5, 1.0))
    assert 0 < near < far


def test_interval_covers_the_truth():
    """The true distance is that of large samples; a 95 % interval holds it in most draws."""
    true = distribution.kid(features(1500), features(1500, 0.5, seed=1))
    covered = []
    for i in range(30):
        pair = features(50, seed=10 + i), features(50, 0.5, seed=1000 + i)
        low, high = distribution.interval(*pair, distribution.kid, rng(i, "test"), draws=40)
        assert low < high
        covered.append(low <= true <= high)
    assert np.mean(covered) > 0.8


def test_bad_sets():
    with pytest.raises(UserError, match="2 or more pictures"):
        distribution.kid(features(1), features(5))
    with pytest.raises(UserError, match="one model"):
        distribution.cmmd(features(5), features(5, width=8))


def test_inception_from_the_file_that_torchvision_downloads(tmp_path, monkeypatch):
    place = tmp_path / "hub" / "checkpoints"
    place.mkdir(parents=True)
    name = torchvision.models.Inception_V3_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    torch.manual_seed(0)
    whole = torchvision.models.inception_v3(weights=None, init_weights=False)
    torch.save(whole.state_dict(), place / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = distribution.inception()
    images = rng(0, "test").integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    found = distribution.inception_features(model, images, batch=2)
    assert found.shape == (3, 2048) and torch.isfinite(found).all()
    assert torch.allclose(found[2:], distribution.inception_features(model, images[2:]), atol=1e-4)


def test_inception_without_a_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def refuse(*_):
        raise OSError("no network")

    monkeypatch.setattr(torch.hub, "urlopen", refuse)
    with pytest.raises(UserError, match="Inception v3 cannot be downloaded .*no network"):
        distribution.inception()
