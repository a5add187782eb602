"""The scale at which a model works: particles as large in pixels as those it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from keras_microseg.segmentation.labeling import touches_border

LARGEST_SCALE = 4.0


def find_scale(
    diameter_at: Callable[[float], float | None],
    sizes: Mapping[str, Any],
    *,
    start: float = 1.0,
    smallest: float = 0.02,
    largest: float = LARGEST_SCALE,
    max_refinements: int = 2,
) -> float:
    """Factor by which an image is enlarged before the network sees it.

    Looks at the particles found at `start`; when their diameter lies outside the trained range, rescales so that it
    becomes the typical one and looks again, `max_refinements` times at most. When nothing is found, half the scale is
    tried (particles too large to be seen as such), then double.

    Args:
        diameter_at: median particle diameter found at a scale, in pixels at that scale; None when nothing is found.
        sizes: `typical`, `minimum` and `maximum` diameter of the training, px (a card's `diameter`).
        start: first scale.
        smallest, largest: limits of the result.
        max_refinements: number of further looks.
    """
    minimum, typical, maximum = (float(sizes[name]) for name in ("minimum", "typical", "maximum"))
    scale, untried = start, [start / 2, start * 2]
    for look in range(max_refinements + 1):
        diameter = diameter_at(scale)
        if diameter is not None and minimum <= diameter <= maximum:
            return scale
        if diameter is None:
            if not untried or look == max_refinements:
                return start
            scale = untried.pop(0)
        else:
            scale *= typical / diameter
        scale = float(np.clip(scale, smallest, largest))
    return scale


def scale_for_diameter(diameter: float, sizes: Mapping[str, Any]) -> float:
    """Scale for particles of a known diameter (px): 1 inside the trained range, else what makes them typical."""
    if float(sizes["minimum"]) <= diameter <= float(sizes["maximum"]):
        return 1.0
    return min(float(sizes["typical"]) / diameter, LARGEST_SCALE)


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
