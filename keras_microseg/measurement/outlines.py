"""How alike two sets of outlines are: shape statistics, their distance, copies and variety."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from scipy import stats

from keras_microseg.checks import UserError
from keras_microseg.measurement.particles import measure_particles
from keras_microseg.metrics.texture import kernel_distance
from keras_microseg.simulation.outlines import OutlineSet

SHAPE = ("equivalent_diameter", "feret_min", "feret_max", "aspect_ratio", "solidity", "circularity", "convexity")
ORDERS = range(2, 9)
COPY = 0.98
_COLUMNS = 8


@dataclasses.dataclass(frozen=True)
class OutlineComparison:
    """Generated outlines beside real ones.

    Attributes:
        table: a row per quantity: median, 5 and 95 % quantile of both sets, Kolmogorov-Smirnov distance and its
            p-value, and the Wasserstein distance over the standard deviation of the real set.
        distance: `kernel_distance` of all quantities together.
        reference: the same between two halves of the real set, mean of several splits: what "alike" comes to.
        diversity: mean of 1 - IoU over pairs of generated outlines, over that of real ones (with their mirror images);
            1 = as different from each other as real ones are, 0 = all the same.
        nearest: (N,) highest IoU of each generated outline with any real one or its mirror images and quarter turns.
        nearest_real: (M,) the same of each real outline with the other real ones.
        copies: share of generated outlines whose `nearest` is above 0.98.
    """

    table: pd.DataFrame
    distance: float
    reference: float
    diversity: float
    nearest: np.ndarray
    nearest_real: np.ndarray
    copies: float

    def facts(self) -> dict[str, float]:
        """The single numbers."""
        names = ("distance", "reference", "diversity", "copies")
        medians = {"nearest_median": float(np.median(self.nearest))}
        medians["nearest_real_median"] = float(np.median(self.nearest_real))
        medians["copies_real"] = float(np.mean(self.nearest_real > COPY))
        return {name: float(getattr(self, name)) for name in names} | medians


def measure_outlines(outlines: OutlineSet) -> pd.DataFrame:
    """Shape quantities of each outline.

    Returns:
        A row per outline: area and the quantities of `SHAPE` (px), and `fourier_2`... `fourier_8`: amplitude of the
        waves around the outline (2 = elongated, 3 = triangular, ...) over its mean radius.
    """
    count, size = len(outlines), outlines.size
    rows = -(-count // _COLUMNS)
    sheet = np.zeros((rows * (size + 1), _COLUMNS * (size + 1)), np.int32)
    for number, mask in enumerate(outlines.masks):
        y, x = (place * (size + 1) for place in divmod(number, _COLUMNS))
        sheet[y : y + size, x : x + size] = mask * np.int32(number + 1)
    measured = measure_particles(sheet, quantities=("area", *SHAPE))[["area", *SHAPE]]
    profile = outlines.shapes().profile
    waves = np.abs(np.fft.rfft(profile, axis=1))
    for order in ORDERS:
        measured[f"fourier_{order}"] = 2 * waves[:, order] / waves[:, 0]
    measured.index = list(outlines.names)
    return measured


def compare_outlines(real: OutlineSet, generated: OutlineSet, *, splits: int = 20, seed: int = 0) -> OutlineComparison:
    """Compare two sets of outlines, see `OutlineComparison`.

    Args:
        real, generated: at least two outlines each.
        splits: random halvings of `real` for the reference.
        seed: of the halvings.
    """
    if len(real) < 2 or len(generated) < 2:
        raise UserError(f"At least two outlines of each kind are needed. Received: {len(real)} and {len(generated)}")
    ours, theirs = measure_outlines(real), measure_outlines(generated)
    rows = []
    for name in ours:
        a, b = ours[name].to_numpy(), theirs[name].to_numpy()
        test = stats.ks_2samp(a, b)
        row = {"quantity": name}
        for kind, values in (("real", a), ("generated", b)):
            low, median, high = np.percentile(values, (5, 50, 95))
            row |= {f"{kind}_median": median, f"{kind}_5": low, f"{kind}_95": high}
        spread = a.std() or 1.0
        rows.append(
            row | {"ks": test.statistic, "p": test.pvalue, "wasserstein": stats.wasserstein_distance(a, b) / spread}
        )
    x, y = ours.to_numpy(), theirs.to_numpy()
    rng = np.random.default_rng(seed)
    halves = []
    if len(x) >= 4:
        for _ in range(splits):
            order = rng.permutation(len(x))
            halves.append(kernel_distance(x[order[: len(x) // 2]], x[order[len(x) // 2 :]]))
    size = max(real.size, generated.size)
    turned = orientations(_padded(real.masks, size))
    nearest = overlap(_padded(generated.masks, size), turned).max(axis=1)
    among = overlap(_padded(real.masks, size), turned)
    among[np.tile(np.eye(len(real), dtype=bool), (1, 8))] = 0
    nearest_real = among.max(axis=1)
    return OutlineComparison(
        pd.DataFrame(rows),
        kernel_distance(x, y),
        float(np.mean(halves)) if halves else float("nan"),
        relative_diversity(real.masks, generated.masks),
        nearest,
        nearest_real,
        float(np.mean(nearest > COPY)),
    )


def relative_diversity(real: np.ndarray, generated: np.ndarray) -> float:
    """Mean of 1 - IoU over all pairs of `generated`, over that of `real` and its mirror images.

    Args:
        real, generated: (N, H, W) bool. Empty masks are like each other.
    """
    return _spread(generated) / max(_spread(np.concatenate([real, real[:, ::-1], real[:, :, ::-1]])), 1e-6)


def overlap(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(N, M) IoU of every mask of `one`, (N, H, W), with every mask of `other`, (M, H, W); 1 for two empty ones."""
    a, b = (np.asarray(masks, np.float32).reshape(len(masks), -1) for masks in (one, other))
    common = a @ b.T
    union = a.sum(axis=1)[:, None] + b.sum(axis=1) - common
    return np.where(union > 0, common / np.maximum(union, 1), 1.0)


def orientations(masks: np.ndarray) -> np.ndarray:
    """(8 N, S, S): the masks, then their quarter turns, then the mirror images of all those."""
    turned = [np.rot90(masks, turns, axes=(1, 2)) for turns in range(4)]
    return np.concatenate([*turned, *(t[:, :, ::-1] for t in turned)])


def _spread(masks: np.ndarray) -> float:
    if len(masks) < 2:
        return 0.0
    iou = overlap(masks, masks)
    return float(1 - (iou.sum() - np.trace(iou)) / (len(iou) * (len(iou) - 1)))


def _padded(masks: np.ndarray, size: int) -> np.ndarray:
    before = (size - masks.shape[1]) // 2
    after = size - masks.shape[1] - before
    return np.pad(masks, ((0, 0), (before, after), (before, after)))
