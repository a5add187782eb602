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
from scipy import fft, ndimage

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


def frechet_distance(real: np.ndarray, other: np.ndarray) -> float:
    """Frechet distance of normal distributions fitted to two sets of feature vectors, scaled as `kernel_distance` does.

    `|m - n|^2 + tr(C + D - 2 (C D)^(1/2))`, per feature. It grows as sets get smaller: compare it with that of two
    halves of the real images only.

    Args:
        real, other: (N, d) and (M, d) features, two vectors or more.

    Reference: Heusel et al. (2017), arXiv:1706.08500.
    """
    centre, spread = real.mean(axis=0), real.std(axis=0) + 1e-6
    x, y = (np.clip((features - centre) / spread, -5, 5) for features in (real, other))
    c, d = (np.cov(features, rowvar=False) for features in (x, y))
    # the eigenvalues of C D are those of the symmetric C^(1/2) D C^(1/2), and not negative
    values, vectors = np.linalg.eigh(c)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    mixed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ d @ root), 0)).sum()
    shift = np.square(x.mean(axis=0) - y.mean(axis=0)).sum()
    return float((shift + np.trace(c) + np.trace(d) - 2 * mixed) / len(centre))


def two_point_curves(images: Sequence[np.ndarray], max_distance: int) -> np.ndarray:
    """Autocorrelation of grey values over the distance of two points, one row per image.

    `C(r) / C(0)` with C the covariance of all pairs of pixels inside the image (no periodic images), mean over the
    directions; 1 at r = 0, near 0 beyond the largest structures.

    Args:
        images: (H, W) arrays.
        max_distance: greatest r, px, below half of the shortest edge.

    Returns:
        (N, max_distance + 1) float64.
    """
    rows = []
    for image in images:
        values = np.asarray(image, float)
        check_number("max_distance", max_distance, minimum=1, maximum=min(values.shape) // 2, integer=True)
        shape = [fft.next_fast_len(n + max_distance, real=True) for n in values.shape]
        lags = [np.r_[0 : max_distance + 1, -max_distance:0] for _ in shape]
        products = fft.irfftn(np.square(np.abs(fft.rfftn(values - values.mean(), shape))), shape)[np.ix_(*lags)]
        pairs = np.multiply.outer(*(n - np.abs(lag) for n, lag in zip(values.shape, lags, strict=True)))
        away = np.rint(np.hypot(*np.meshgrid(*lags, indexing="ij"))).astype(int)
        near = away <= max_distance
        curve = np.bincount(away[near], products[near]) / np.bincount(away[near], pairs[near])
        rows.append(curve / max(curve[0], 1e-12))
    return np.stack(rows)


def compare_images(
    real: Sequence[np.ndarray], other: Sequence[np.ndarray], *, splits: int = 8, seed: int = 0
) -> dict[str, float]:
    """How far a set of images is from real ones, by four measures, each beside that of two halves of the real images.

    Args:
        real, other: (H, W) float arrays in 0..1 of one size, four or more real ones, two or more of the others.
        splits: random halvings of `real` for the references.
        seed: of the halvings.

    Returns:
        `texture_distance` (`kernel_distance` of the texture statistics), `frechet_distance` of the same,
        `two_point_distance` (root mean square difference of the mean `two_point_curves`, up to a quarter of the edge),
        `grey_distance` (earth mover's distance of the grey values, in 0..1), each with `..._reference`; and `variety`,
        see `Likeness`.

    Raises:
        UserError: too few images.
    """
    if len(real) < 4 or len(other) < 2:
        raise UserError(f"Four real images and two others are needed at least. Received: {len(real)}, {len(other)}")
    reach = max(1, min(n for image in (*real, *other) for n in image.shape) // 4)
    levels = np.linspace(0.5, 99.5, 100)
    sets = []
    for images in (real, other):
        greys = np.stack([np.percentile(image, levels) for image in images])
        sets.append((texture_statistics(images), two_point_curves(images, reach), greys))

    def measure(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> np.ndarray:
        """Of two sets of (statistics, curves, quantiles of grey)."""
        curves = a[1].mean(axis=0) - b[1].mean(axis=0)
        greys = np.sort(a[2].ravel())[:: len(a[2])] - np.sort(b[2].ravel())[:: len(b[2])]
        return np.array(
            [kernel_distance(a[0], b[0]), frechet_distance(a[0], b[0]), np.sqrt(np.square(curves).mean()),
             np.abs(greys).mean()]
        )  # fmt: skip

    rng, halves = np.random.default_rng(seed), []
    for _ in range(check_number("splits", splits, minimum=1, integer=True)):
        order = rng.permutation(len(real))
        parts = order[: len(real) // 2], order[len(real) // 2 :]
        halves.append(measure(*([part[chosen] for part in sets[0]] for chosen in parts)))
    names = ("texture_distance", "frechet_distance", "two_point_distance", "grey_distance")
    found = dict(zip(names, measure(*sets).tolist(), strict=True))
    found |= {f"{name}_reference": float(v) for name, v in zip(names, np.mean(halves, axis=0), strict=True)}
    spread = sets[0][0].std(axis=0) + 1e-6
    return {**found, "variety": float(np.median(sets[1][0].std(axis=0) / spread))}
