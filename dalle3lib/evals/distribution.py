"""How far drawn pictures are, as a whole, from real ones: KID and CMMD.

CLIP score, judge and B-VQA look at one picture and its prompt at a time; a system that draws the
right things badly can pass them all. These two compare distributions of features instead. Both are
squared maximum mean discrepancies (MMD) without bias, so that two samples of the same pictures are
0 apart on average whatever their number, which the better known FID is not.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dalle3lib import UserError

CMMD_SIGMA = 10.0  # of the Gaussian kernel, and the factor that makes values readable
CMMD_SCALE = 1000.0  # (Jayasumana et al. 2024, section 4)
INCEPTION = 299  # pixels of a side that Inception v3 reads


def polynomial_kernel(x: Tensor, y: Tensor) -> Tensor:
    """(x·y / d + 1)³ of all pairs of features [N, d] and [M, d]: [N, M] (KID's kernel)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """The Gaussian of the distance of all pairs of features [N, d] and [M, d]: [N, M] (CMMD's)."""
    return torch.exp(-torch.cdist(x, y).square() / (2 * CMMD_SIGMA**2))


def mmd(within_x: Tensor, within_y: Tensor, between: Tensor) -> float:
    """The unbiased squared MMD from kernel values [N, N], [M, M], [N, M] (Gretton et al. 2012, 3).

    A feature is not compared with itself, hence it may come out a little below 0.
    """
    n, m = between.shape
    x = (within_x.sum() - within_x.diagonal().sum()) / (n * (n - 1))
    y = (within_y.sum() - within_y.diagonal().sum()) / (m * (m - 1))
    return float(x + y - 2 * between.mean())


def _distance(x: Tensor, y: Tensor, kernel: Callable[[Tensor, Tensor], Tensor]) -> float:
    x, y = x.double(), y.double()
    if min(len(x), len(y)) < 2 or x.shape[1] != y.shape[1]:
        raise UserError(
            f"Distributions need 2 or more pictures each and features of one model, not "
            f"{list(x.shape)} and {list(y.shape)}."
        )
    return mmd(kernel(x, x), kernel(y, y), kernel(x, y))


def kid(x: Tensor, y: Tensor) -> float:
    """The kernel inception distance of two sets of features [N, d], [M, d]; 0 if alike.

    Bińkowski et al. (2018, section 4) on Inception's features, here on any model's. Customarily
    multiplied by 1000. Raises UserError for fewer than two features, or of different models.
    """
    return _distance(x, y, polynomial_kernel)


def cmmd(x: Tensor, y: Tensor) -> float:
    """CMMD of two sets of CLIP's unit features [N, d], [M, d]: 1000 times the MMD; 0 if alike.

    Jayasumana et al. (2024); theirs is the estimate with bias, this one is without. Errors as
    ``kid``.
    """
    return CMMD_SCALE * _distance(x, y, gaussian_kernel)


def interval(
    x: Tensor,
    y: Tensor,
    distance: Callable[[Tensor, Tensor], float],
    random: np.random.Generator,
    draws: int = 200,
    level: float = 0.95,
) -> tuple[float, float]:
    """A subsampling interval (low, high) of a distance between features [N, d] and [M, d].

    Half of each set is drawn without replacement, ``draws`` times: a feature drawn twice would
    seem to have a twin, which a bootstrap mistakes for likeness. Halves of n vary with about the
    deviation of the estimate from all n (the variance falls with n, and the finite population
    halves it again), so deviations are used as they are, around the estimate.
    """
    whole, found = distance(x, y), []
    for _ in range(draws):
        halves = (part[random.permutation(len(part))[: max(2, len(part) // 2)]] for part in (x, y))
        found.append(distance(*halves))
    low, high = np.quantile(found - np.mean(found), (0.5 - level / 2, 0.5 + level / 2))
    return float(whole + low), float(whole + high)


def inception(device: str = "cpu") -> torch.nn.Module:
    """Inception v3 without its last layer (torchvision's ImageNet weights): to features [N, 2048].

    KID is defined on these features; the weights (109 MB) are downloaded. UserError where they
    cannot be.
    """
    from torchvision.models import Inception_V3_Weights, inception_v3

    try:
        model = inception_v3(weights=Inception_V3_Weights.IMAGENET1K_V1, transform_input=False)
    except OSError as error:
        raise UserError(
            f"Inception v3 cannot be downloaded ({error}): run once where there is a network, and "
            "copy ~/.cache/torch (or set TORCH_HOME) if that is another machine."
        ) from error
    model.fc = torch.nn.Identity()
    return model.eval().requires_grad_(False).to(device)


@torch.no_grad()
def inception_features(model: torch.nn.Module, images: np.ndarray, batch: int = 32) -> Tensor:
    """Features [N, 2048] of pictures uint8 [N, H, W, 3], scaled to 299 pixels and to [-1, 1].

    The original network took them so, and torchvision's converted weights do.
    """
    device, found = next(model.parameters()).device, []
    for first in range(0, len(images), batch):
        x = torch.from_numpy(images[first : first + batch]).permute(0, 3, 1, 2).float().to(device)
        sized = F.interpolate(x, (INCEPTION, INCEPTION), mode="bilinear", antialias=True)
        found.append(model(sized / 127.5 - 1).cpu())
    return torch.cat(found)
