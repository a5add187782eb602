"""Depth maps: how much the grey value changes along z. The literal cumulative map of the source, and one free of drift.

The source adds |dI/dz| up from the first slice, so its map grows with z whatever the sample; it is kept for comparison
(`CumulativeDepth`). `GradientEnergy` adds within a window of slices instead, which marks edges and textures alike in
every slice.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.intensity import volume_statistics
from keras_microseg.segmentation.labeling import label_components

SMOOTHING, PERCENTILE = 0.8, 75.0  # of the source


@dataclasses.dataclass(frozen=True)
class GradientEnergy:
    """E(z) = sum over |dz| <= half_width of |dI/dz|, on the whole gradient (`isotropic`) or along z alone.

    Attributes:
        half_width: slices on each side.
        isotropic: sum the gradient magnitude instead of |dI/dz|.
    """

    half_width: int = 5
    isotropic: bool = False

    def __post_init__(self) -> None:
        check_number("half_width", self.half_width, minimum=0, integer=True)

    @property
    def halo(self) -> int:
        return self.half_width + 1

    def __call__(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """float32 energy of a block (D, H, W) with its halo; outside the volume nothing changes."""
        grey = block.astype(np.float32)
        if self.isotropic:
            energy = np.sqrt(sum(np.square(_gradient(grey, axis)) for axis in range(3)))
        else:
            energy = np.abs(_gradient(grey, 0))
        window = 2 * self.half_width + 1
        return ndimage.correlate1d(energy, np.ones(window, np.float32), axis=0, mode="constant")


def cumulative_depth(volume: np.ndarray, *, sigma: float = SMOOTHING) -> tuple[np.ndarray, np.ndarray]:
    """The map of the source: running sum over z of |central differences|, from slice 0.

    Args:
        volume: (D, H, W), D >= 2; integers are promoted to float64 as there.
        sigma: Gaussian smoothing of the second result, voxels.

    Returns:
        `(map, smoothed)`, float64 of the same shape.
    """
    volume = np.asarray(volume)
    if volume.ndim != 3 or volume.shape[0] < 2:
        raise UserError(f"`volume` must be (D, H, W) with at least two slices. Received: shape {volume.shape}")
    depth = np.cumsum(np.abs(np.gradient(volume.astype(np.float64, copy=False), axis=0)), axis=0)
    return depth, ndimage.gaussian_filter(depth, sigma)


def depth_labels(
    volume: np.ndarray,
    *,
    method: str | GradientEnergy = "cumulative",
    percentile: float = PERCENTILE,
    per_slice: bool = False,
    connectivity: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Components above a percentile of a depth map.

    Args:
        volume: (D, H, W).
        method: "cumulative" (the source) or a `GradientEnergy`.
        percentile: of the whole (smoothed) map, 0..100.
        per_slice: take the percentile in every slice by itself, so that a map that grows with z selects in all.
        connectivity: 4 (6 neighbours, the source) or 8 (26).

    Returns:
        `(labels, map)`: int32 labels, never rescaled, and the map without smoothing.
    """
    check_number("percentile", percentile, minimum=0, maximum=100)
    if method == "cumulative":
        depth, smooth = cumulative_depth(volume)
    elif isinstance(method, GradientEnergy):
        depth = method(np.asarray(volume))
        smooth = ndimage.gaussian_filter(depth, SMOOTHING)
    else:
        raise UserError(f"`method` must be 'cumulative' or a GradientEnergy. Received: {method!r}")
    level = (
        np.percentile(smooth, percentile, axis=(1, 2), keepdims=True)
        if per_slice
        else np.percentile(smooth, percentile)
    )
    return label_components(smooth > level, connectivity), depth


def fit_energy_threshold(energy: Any, *, max_ram: str | int = "256MB") -> float:
    """Otsu's threshold of an energy map that need not fit in memory."""
    return float(volume_statistics(energy, max_ram=max_ram).otsu())


def _gradient(grey: np.ndarray, axis: int) -> np.ndarray:
    if grey.shape[axis] < 2:
        return np.zeros_like(grey)
    return np.gradient(grey, axis=axis)
