"""The scale at which a model works: particles as large in pixels as those it was trained on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.data.targets import relative_distance
from keras_microseg.segmentation.labeling import touches_border

LARGEST_SCALE = 2.0
STEP = 2**0.5
SIZE_WEIGHT = 0.015
_STOP = 1.3  # particles this much larger than typical: finer scales are looked at only while they get better
_DROP = 0.005  # what counts as worse
_PATIENCE = 2  # looks in a row that are worse
_SMALL = 0.6  # particles this much smaller than typical: the image may be enlarged


@dataclasses.dataclass(frozen=True)
class Look:
    """What a model found at one scale.

    Attributes:
        diameter: area-weighted median diameter, px at that scale; None when nothing was found.
        agreement: how well the predicted distance map fits the particles decoded from it, 0..1.
    """

    diameter: float | None
    agreement: float = 0.0

    def score(self, typical: float) -> float:
        """Rank of the scale; -inf when nothing was found."""
        if self.diameter is None:
            return -np.inf
        return self.agreement - SIZE_WEIGHT * abs(np.log(self.diameter / typical))


def judge(maps: np.ndarray, outputs: Sequence[str], labels: np.ndarray) -> Look:
    """How consistent the maps of an image are with the particles found in them.

    A network that sees particles at the size it knows predicts distance maps that rise from the edge of every particle
    to one hill; too large ones fall apart, too small ones melt together, and the prediction disagrees with the distance
    computed from its own labels. `agreement` is 1 - mean |predicted - computed relative distance| over the particles.

    Args:
        maps: (H, W, C) float32, 0..1.
        outputs: names of the channels; without `distance`, the mean foreground probability takes its place.
        labels: (H, W) int32 decoded from `maps`.
    """
    diameter = median_diameter(labels)
    inside = labels > 0
    if diameter is None or (labels.max() == 1 and inside.mean() > 0.95):
        return Look(None)  # nothing, or one particle that is the whole image: nothing to measure
    return Look(diameter, float(agreement_map(maps, outputs, labels)[inside].mean()))


def agreement_map(maps: np.ndarray, outputs: Sequence[str], labels: np.ndarray) -> np.ndarray:
    """(H, W) float32: 1 - |predicted - computed relative distance|; the foreground probability without `distance`."""
    if "distance" not in outputs:
        return maps[..., list(outputs).index("foreground")]
    return 1 - np.abs(maps[..., list(outputs).index("distance")] - relative_distance(labels))


def find_scale(
    look_at: Callable[[float], Look],
    sizes: Mapping[str, Any],
    *,
    smallest: float = 0.05,
    largest: float = LARGEST_SCALE,
) -> float:
    """Factor by which an image is enlarged before the network sees it.

    Goes from coarse (cheap) to fine in steps of sqrt(2) up to the image itself, keeps the scale of the highest
    `Look.score`, and stops early once particles are larger than typical and the score has fallen twice. Goes beyond the
    image's own scale only while particles stay small. When nothing is found anywhere, the image's own scale.

    Args:
        look_at: predicts and judges the image at a scale.
        sizes: `typical` diameter of the training, px (a card's `diameter`).
        smallest, largest: limits of the result.
    """
    typical = float(sizes["typical"])
    steps = int(np.floor(np.log(1 / min(smallest, 1.0)) / np.log(STEP) + 1e-9))
    scales = [0.5 ** (k // 2) / (STEP if k % 2 else 1) for k in range(steps, -1, -1)]
    best, best_score, worse, look = 1.0, -np.inf, 0, None
    for scale in scales:
        look = look_at(scale)
        score = look.score(typical)
        if score > best_score:
            best, best_score, worse = scale, score, 0
        elif look.diameter is not None and look.diameter > _STOP * typical and score < best_score - _DROP:
            worse += 1
            if worse == _PATIENCE:
                return best
    scale = STEP
    while best == scale / STEP and look.diameter and look.diameter < _SMALL * typical and scale <= largest * 1.001:
        look = look_at(scale)
        if look.score(typical) <= best_score:
            break
        best, best_score, scale = scale, look.score(typical), scale * STEP
    return best


def add_small_particles(
    labels: np.ndarray,
    fine: np.ndarray,
    maps: np.ndarray,
    outputs: Sequence[str],
    *,
    largest: float,
    min_agreement: float = 0.9,
    min_foreground: float = 0.95,
) -> np.ndarray:
    """Particles of a finer scale that the working scale could not show: small, sure, and on free ground.

    Args:
        labels: (H, W) int32 of the image.
        fine: (H', W') int32 labels found at a finer scale.
        maps: (H', W', C) maps of the finer scale.
        outputs: names of the channels.
        largest: largest equivalent diameter of a particle to add, px of the image.
        min_agreement: least mean agreement between predicted and computed distance within a particle.
        min_foreground: least mean foreground probability within a particle.

    Returns:
        `labels` with the particles added under new numbers.
    """
    ratios = [n / full for n, full in zip(fine.shape, labels.shape, strict=True)]
    rows, columns = (
        np.minimum(((np.arange(full) + 0.5) * ratio).astype(np.intp), n - 1)
        for full, ratio, n in zip(labels.shape, ratios, fine.shape, strict=True)
    )
    on_image = fine[np.ix_(rows, columns)]
    count = int(fine.max()) + 1
    area = np.bincount(on_image.ravel(), minlength=count)
    free = np.bincount(on_image[labels == 0], minlength=count)
    pixels = np.maximum(np.bincount(fine.ravel(), minlength=count), 1)
    agreement = np.bincount(fine.ravel(), agreement_map(maps, outputs, fine).ravel(), minlength=count) / pixels
    foreground = maps[..., list(outputs).index("foreground")]
    probability = np.bincount(fine.ravel(), foreground.ravel(), minlength=count) / pixels
    wanted = (area > 0) & (free >= 0.8 * area) & (area <= np.pi / 4 * largest**2)
    wanted &= (agreement >= min_agreement) & (probability >= min_foreground)
    wanted[0] = False
    numbers = np.where(wanted, labels.max() + np.cumsum(wanted), 0).astype(np.int32)
    return np.where(labels == 0, numbers[on_image], labels)


def scale_for_diameter(diameter: float, sizes: Mapping[str, Any]) -> float:
    """Scale for particles of a known diameter (px): 1 when it is near the typical one, else what makes it typical."""
    typical = float(sizes["typical"])
    if typical / 1.5 <= diameter <= typical * 1.5:
        return 1.0
    return min(typical / diameter, LARGEST_SCALE)


def median_diameter(labels: np.ndarray) -> float | None:
    """Equivalent diameter in px that halves the particles' total area; None without particles.

    Weighted by area, so that specks do not count; particles cut by the frame are left out when others exist.
    """
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    inner = areas.copy()
    inner[touches_border(labels)] = 0
    return diameter_of_areas(inner if inner.any() else areas)


def diameter_of_areas(areas: np.ndarray) -> float | None:
    """Area-weighted median of the equivalent diameters `2 sqrt(area / pi)`; None when all areas are 0."""
    areas = np.sort(areas[areas > 0])
    if not len(areas):
        return None
    cumulated = np.cumsum(areas)
    return float(2 * np.sqrt(areas[np.searchsorted(cumulated, cumulated[-1] / 2)] / np.pi))
