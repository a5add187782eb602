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
CERTAINTY_WEIGHT = 0.2
SIZE_WEIGHT = 0.02
_STOP = 1.1  # particles this much larger than typical: finer scales are looked at only while they get better
_SMALL = 0.6  # particles this much smaller than typical: the image may be enlarged


@dataclasses.dataclass(frozen=True)
class Look:
    """What a model found at one scale.

    Attributes:
        diameter: area-weighted median diameter, px at that scale; None when nothing was found.
        agreement: how well the predicted distance map fits the particles decoded from it, 0..1.
        certainty: mean distance of the foreground probability from 1/2, 0..1.
    """

    diameter: float | None
    agreement: float = 0.0
    certainty: float = 0.0

    def score(self, typical: float) -> float:
        """Rank of the scale; -inf when nothing was found."""
        if self.diameter is None:
            return -np.inf
        off = abs(np.log(self.diameter / typical))
        return self.agreement + CERTAINTY_WEIGHT * self.certainty - SIZE_WEIGHT * off


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
    foreground = maps[..., list(outputs).index("foreground")]
    certainty = float(2 * np.abs(foreground - 0.5).mean())
    inside = labels > 0
    if diameter is None or (labels.max() == 1 and inside.mean() > 0.95):
        return Look(None, 0.0, certainty)  # nothing, or one particle that is the whole image: nothing to measure
    if "distance" in outputs:
        predicted = maps[..., list(outputs).index("distance")]
        agreement = 1 - float(np.abs(predicted - relative_distance(labels))[inside].mean())
    else:
        agreement = float(foreground[inside].mean())
    return Look(diameter, agreement, certainty)


def find_scale(
    look_at: Callable[[float], Look],
    sizes: Mapping[str, Any],
    *,
    smallest: float = 0.05,
    largest: float = LARGEST_SCALE,
) -> float:
    """Factor by which an image is enlarged before the network sees it.

    Goes from coarse (cheap) to fine in steps of sqrt(2) up to the image itself, keeps the scale of the highest
    `Look.score`, and stops early once particles are larger than typical and the score falls. Goes beyond the image's
    own scale only while particles stay small. When nothing is found anywhere, the image's own scale.

    Args:
        look_at: predicts and judges the image at a scale.
        sizes: `typical` diameter of the training, px (a card's `diameter`).
        smallest, largest: limits of the result.
    """
    typical = float(sizes["typical"])
    steps = int(np.floor(np.log(1 / min(smallest, 1.0)) / np.log(STEP) + 1e-9))
    scales = [0.5 ** (k // 2) / (STEP if k % 2 else 1) for k in range(steps, -1, -1)]
    best, best_score, look = 1.0, -np.inf, None
    for scale in scales:
        look = look_at(scale)
        score = look.score(typical)
        if score > best_score:
            best, best_score = scale, score
        elif look.diameter is not None and look.diameter > _STOP * typical:
            return best
    scale = STEP
    while best == scale / STEP and look.diameter and look.diameter < _SMALL * typical and scale <= largest * 1.001:
        look = look_at(scale)
        if look.score(typical) <= best_score:
            break
        best, best_score, scale = scale, look.score(typical), scale * STEP
    return best


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
