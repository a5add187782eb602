"""Depth maps: how much the grey value changes along z. The literal cumulative map of the source, and one free of drift.

The source adds |dI/dz| up from the first slice, so its map grows with z whatever the sample; it is kept for comparison
(`CumulativeDepth`). `GradientEnergy` adds within a window of slices instead, which marks edges and textures alike in
every slice.
"""

from __future__ import annotations

import dataclasses
import math
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


@dataclasses.dataclass(frozen=True)
class StructureCoherence:
    """How much the grey values around a voxel change along one direction alone, 0 (none or all alike) to 1.

    The structure tensor is the outer product of the gradient with itself, averaged over a Gaussian window; with its
    eigenvalues l the coherence is sqrt(sum (li - lj)^2 / (2 sum li^2)), their fractional anisotropy: 1 at a flat
    surface, 0.71 along a straight fibre, near 0 in noise. It needs no eigenvalues: the sums are
    3 |J|^2 - trace(J)^2 and |J|^2.

    Reference: Weickert (1998), Anisotropic diffusion in image processing; Basser and Pierpaoli (1996).

    Attributes:
        scale: Gaussian smoothing before the gradient, voxels.
        window: standard deviation of the averaging window, voxels.
        noise: gradient (grey value per voxel) that counts as none: below it the coherence falls to 0.
    """

    scale: float = 1.0
    window: float = 3.0
    noise: float = 0.0

    def __post_init__(self) -> None:
        check_number("scale", self.scale, minimum=0, maximum=50)
        check_number("window", self.window, minimum=0.3, maximum=50)
        check_number("noise", self.noise, minimum=0)

    @property
    def halo(self) -> int:
        return math.ceil(4 * self.scale) + math.ceil(4 * self.window) + 2

    def __call__(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """float32 coherence of a block (D, H, W) with its halo."""
        grey = block.astype(np.float32)
        if self.scale:
            grey = ndimage.gaussian_filter(grey, self.scale)
        gradient = [_gradient(grey, axis) for axis in range(3)]
        norm, trace = np.zeros_like(grey), np.zeros_like(grey)
        for i in range(3):
            for j in range(i, 3):
                entry = ndimage.gaussian_filter(gradient[i] * gradient[j], self.window)
                if i == j:
                    trace += entry
                norm += (1 if i == j else 2) * np.square(entry)
        spread = np.maximum(3 * norm - np.square(trace), 0)
        floor = 2 * np.float32(self.noise) ** 4 + np.finfo(np.float32).tiny
        return np.sqrt(spread / (2 * norm + floor))


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
    method: str | GradientEnergy | StructureCoherence = "cumulative",
    percentile: float = PERCENTILE,
    per_slice: bool = False,
    connectivity: int = 4,
) -> tuple[np.ndarray, np.ndarray]:
    """Components above a percentile of a depth map.

    Args:
        volume: (D, H, W).
        method: "cumulative" (the source), a `GradientEnergy` or a `StructureCoherence`.
        percentile: of the whole (smoothed) map, 0..100.
        per_slice: take the percentile in every slice by itself, so that a map that grows with z selects in all.
        connectivity: 4 (6 neighbours, the source) or 8 (26).

    Returns:
        `(labels, map)`: int32 labels, never rescaled, and the map without smoothing.
    """
    check_number("percentile", percentile, minimum=0, maximum=100)
    if method == "cumulative":
        depth, smooth = cumulative_depth(volume)
    elif isinstance(method, GradientEnergy | StructureCoherence):
        depth = method(np.asarray(volume))
        smooth = ndimage.gaussian_filter(depth, SMOOTHING)
    else:
        raise UserError(f"`method` must be 'cumulative', GradientEnergy or StructureCoherence. Received: {method!r}")
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
