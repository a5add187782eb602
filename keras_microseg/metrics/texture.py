"""Do two sets of images look alike? Texture statistics and a kernel distance between sets.

The kernel inception distance of Binkowski et al. (2018) compares features of a network trained on photographs, which is
a download of 90 MB and knows nothing of micrographs. The same unbiased kernel distance is taken here between plain
texture statistics: grey levels, edges, and energy per band of size. It is zero in expectation for two sets of one
kind, and a number of one run is comparable with another number for the same real images only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number

SIGMAS = (0.6, 1.2, 2.4, 4.8, 9.6)
_LEVELS = (2, 10, 25, 50, 75, 90, 98)
NAMES = (
    *(f"grey_{level}" for level in _LEVELS),
    "grey_sd",
    *(f"edge_{level}" for level in (50, 75, 90, 98)),
    *(f"band_{i}" for i in range(len(SIGMAS))),
    *(f"tail_{i}" for i in range(len(SIGMAS) - 1)),
    *(f"skew_{i}" for i in range(len(SIGMAS) - 1)),
    "noise_lag_y",
    "noise_lag_x",
)


def texture_statistics(images: Sequence[np.ndarray]) -> np.ndarray:
    """Statistics that tell textures apart, one row per image.

    Grey quantiles and spread; quantiles of the gradient magnitude; for each band of size (difference of Gaussians) the
    log of its standard deviation, its kurtosis and its skewness; correlation of the finest band between neighbours.

    Args:
        images: (H, W) float arrays in 0..1, each at least 8 px high and wide.

    Returns:
        (N, len(NAMES)) float64.
    """
    return np.stack([_statistics(np.asarray(image, np.float32)) for image in images])


def _statistics(image: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or min(image.shape) < 8:
        raise UserError(f"`images` must be 2-D and at least 8 px high and wide. Received: shape {image.shape}")
    values = [*np.percentile(image, _LEVELS), image.std()]
    gradient = np.hypot(*np.gradient(image))
    values += [*np.log(np.percentile(gradient, (50, 75, 90, 98)) + 1e-3)]
    bands, finer = [], image
    for sigma in SIGMAS:
        coarser = ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3)
        bands.append(finer - coarser)
        finer = coarser
    spreads = [band.std() + 1e-4 for band in bands]
    values += [np.log(spread) for spread in spreads]
    scaled = [(band - band.mean()) / spread for band, spread in zip(bands[:-1], spreads, strict=False)]
    values += [np.log((z**4).mean() + 1e-3) for z in scaled]
    values += [np.cbrt((z**3).mean()) for z in scaled]
    z = scaled[0]
    return np.array([*values, (z[1:] * z[:-1]).mean(), (z[:, 1:] * z[:, :-1]).mean()], float)


def kernel_distance(real: np.ndarray, other: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy, kernel (x . y / d + 1)^3, of two sets of feature vectors.

    Features are centred and scaled by the mean and standard deviation of `real` and cut at 5 of the latter, so that no
    single feature rules. Near 0 for sets of one kind (it may be negative); 1 is already a plain difference.

    Args:
        real: (N, d) features, N >= 2.
        other: (M, d) features, M >= 2.

    Reference: Binkowski et al. (2018), arXiv:1801.01401.
    """
    if len(real) < 2 or len(other) < 2 or real.shape[1] != other.shape[1]:
        raise UserError(f"Two sets of at least two vectors each are needed. Received: {real.shape} and {other.shape}")
    centre, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    x, y = (np.clip((features - centre) / spread, -5, 5) for features in (real, other))

    def kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return (a @ b.T / x.shape[1] + 1) ** 3

    def without_diagonal(k: np.ndarray) -> float:
        return float((k.sum() - np.trace(k)) / (len(k) * (len(k) - 1)))

    return without_diagonal(kernel(x, x)) + without_diagonal(kernel(y, y)) - 2 * float(kernel(x, y).mean())


@dataclasses.dataclass(frozen=True)
class Likeness:
    """How a set of images compares with real ones.

    Attributes:
        distance: `kernel_distance` of their texture statistics.
        reference: the same between two halves of the real images, mean of several splits: what "alike" looks like.
        variety: spread of the statistics over that of the real images (median over the statistics); well below 1, the
            images are all the same.
        furthest: names of the statistics that differ most, in standard deviations of the real images.
    """

    distance: float
    reference: float
    variety: float
    furthest: dict[str, float]


def compare_textures(real: np.ndarray, other: np.ndarray, *, splits: int = 8, seed: int = 0) -> Likeness:
    """Compare the texture statistics of two sets of images.

    Args:
        real, other: results of `texture_statistics`, four rows or more of `real`, two or more of `other`.
        splits: random halvings of `real` for the reference.
        seed: of the halvings.
    """
    check_number("splits", splits, minimum=1, integer=True)
    if len(real) < 4:
        raise UserError(f"At least four real images are needed. Received: {len(real)}")
    rng = np.random.default_rng(seed)
    halves = []
    for _ in range(splits):
        order = rng.permutation(len(real))
        halves.append(kernel_distance(real[order[: len(real) // 2]], real[order[len(real) // 2 :]]))
    spread = real.std(axis=0) + 1e-6
    shift = (other.mean(axis=0) - real.mean(axis=0)) / spread
    worst = np.argsort(-np.abs(shift))[:3]
    return Likeness(
        kernel_distance(real, other),
        float(np.mean(halves)),
        float(np.median(other.std(axis=0) / spread)),
        {NAMES[i]: round(float(shift[i]), 2) for i in worst},
    )
