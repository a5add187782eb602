"""Damage of particles: cracks and pores inside their outline, where they lie, and the surfaces they make.

Damage is crack volume / filled volume, the filled particle being the label closed with a ball and its holes filled.
Surfaces are Crofton areas (free of the bias of voxel faces): outer is that of the filled particle; inner is the face
between solid and cracks, (A(solid) + A(cracks) - A(filled)) / 2, because each such face belongs to two of the three.
Roughness compares a surface after a 3 x 3 x 3 median with that before: 1 = smooth.

References:
    Li et al. (2022), Science 376, 517 (damage, inner and outer surface, roughness of NMC particles); Ohser and
    Muecklich (2000), Statistical Analysis of Microstructures in Materials Science (Crofton's formula).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from keras_microseg.measurement.particle_crops import Crop
from keras_microseg.measurement.surfaces import surface_sums

DEPTH_BINS = 5


class Damage(NamedTuple):
    """One particle, real units.

    Attributes:
        filled_volume, crack_volume: volumes.
        damage: crack volume / filled volume.
        crack_depth: mean distance of crack voxels from the outline over the greatest such distance in the particle.
        outer_surface, inner_surface: areas.
        outer_roughness, inner_roughness: area after / before the median; NaN without that surface.
        profile: (DEPTH_BINS, 2) crack and filled voxels at relative depths 0..1 in equal steps, outline first.
    """

    filled_volume: float
    crack_volume: float
    damage: float
    crack_depth: float
    outer_surface: float
    inner_surface: float
    outer_roughness: float
    inner_roughness: float
    profile: np.ndarray


def measure_damage(crop: Crop, *, rim: float = 0.0) -> Damage:
    """Damage of one particle.

    Args:
        crop: the particle.
        rim: empty voxels not deeper than this under the outline are no cracks, real units: where outline and phase map
            do not quite agree.
    """
    filled, cracks = crop.filled, crop.cracks
    voxel = float(np.prod(crop.size))
    if rim > 0:
        cracks = cracks & (crop.depth > rim)
    count, total = int(cracks.sum()), int(filled.sum())
    profile, depth = np.zeros((DEPTH_BINS, 2), np.int64), np.nan
    relative = crop.depth / max(float(crop.depth.max()), 1e-300)
    bins = np.minimum((relative * DEPTH_BINS).astype(int), DEPTH_BINS - 1)
    profile[:, 1] = np.bincount(bins[filled], minlength=DEPTH_BINS)
    if count:
        profile[:, 0] = np.bincount(bins[cracks], minlength=DEPTH_BINS)
        depth = float(relative[cracks].mean())
    outer, inner = _surfaces(filled, cracks, crop.size)
    smooth_outer, smooth_inner = _surfaces(_median(filled), _median(cracks) if count else cracks, crop.size)
    return Damage(
        total * voxel, count * voxel, count / max(total, 1), depth, outer, inner,
        smooth_outer / outer if outer > 0 else np.nan,
        smooth_inner / inner if inner > 0 else np.nan, profile,
    )  # fmt: skip


def _surfaces(filled: np.ndarray, cracks: np.ndarray, size: tuple[float, float, float]) -> tuple[float, float]:
    """Outer area, and area between solid and cracks."""
    outer = _area(filled, size)
    if not cracks.any():
        return outer, 0.0
    inner = (_area(filled & ~cracks, size) + _area(cracks & filled, size) - outer) / 2
    return outer, max(inner, 0.0)


def _area(mask: np.ndarray, size: tuple[float, float, float]) -> float:
    return float(surface_sums(mask.view(np.uint8), np.array([1]), size).crofton[0]) if mask.any() else 0.0


def _median(mask: np.ndarray) -> np.ndarray:
    """Median of 3 x 3 x 3 voxels of a mask."""
    return ndimage.uniform_filter(mask.astype(np.float32), 3, mode="nearest") > 0.5
