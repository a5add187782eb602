"""Distances between the outlines or surfaces of two masks, in any number of axes.

References: Huttenlocher et al. (1993), Hausdorff distance; Heimann et al. (2009), mean surface distance; Nikolov et al.
(2018), arXiv:1809.04430, surface Dice.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from keras_microseg.checks import UserError


@dataclasses.dataclass(frozen=True)
class SurfaceScores:
    """How far two surfaces are apart, in the unit of the sampling; NaN when one of the masks is empty.

    Attributes:
        mean_distance: mean over the surface voxels of both masks (average symmetric surface distance).
        hausdorff: the largest distance.
        hausdorff_95: 95th percentile of the distances, the larger of both directions.
        surface_dice: share of the surface voxels of both masks within `tolerance` of the other surface.
        tolerance: see `surface_dice`.
    """

    mean_distance: float
    hausdorff: float
    hausdorff_95: float
    surface_dice: float
    tolerance: float


def surface_voxels(mask: np.ndarray) -> np.ndarray:
    """(N, ndim) indices of the voxels of a mask that have a neighbour by a face outside it (the border is outside)."""
    mask = np.asarray(mask, bool)
    inner = (slice(1, -1),) * mask.ndim
    return np.argwhere(mask & ~ndimage.binary_erosion(np.pad(mask, 1))[inner])


def surface_distances(
    truth: np.ndarray, predicted: np.ndarray, sampling: float | tuple[float, ...] = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Distance of every surface voxel of one mask to the nearest surface voxel of the other.

    Args:
        truth, predicted: masks of one shape; non-zero = object.
        sampling: edge lengths of a voxel, per axis or one.

    Returns:
        `(of the truth to the prediction, of the prediction to the truth)`; infinite where the other mask is empty.

    Raises:
        UserError: shapes differ.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise UserError(f"`truth` and `predicted` must have one shape. Received: {truth.shape} and {predicted.shape}")
    size = np.broadcast_to(np.asarray(sampling, float), truth.ndim)
    points = [surface_voxels(mask != 0) * size for mask in (truth, predicted)]
    return _nearest(points[0], points[1]), _nearest(points[1], points[0])


def score_surfaces(
    truth: np.ndarray,
    predicted: np.ndarray,
    sampling: float | tuple[float, ...] = 1.0,
    *,
    tolerance: float | None = None,
) -> SurfaceScores:
    """Score the surface of a mask; arguments as `surface_distances`.

    Args:
        truth, predicted, sampling: see there.
        tolerance: of the surface Dice; None = the longest edge of a voxel.
    """
    tolerance = float(np.max(sampling)) if tolerance is None else tolerance
    there, back = surface_distances(truth, predicted, sampling)
    if not len(there) and not len(back):
        return SurfaceScores(0.0, 0.0, 0.0, 1.0, tolerance)
    if not len(there) or not len(back):
        return SurfaceScores(*[float("nan")] * 3, 0.0, tolerance)
    both = np.concatenate([there, back])
    return SurfaceScores(
        mean_distance=float(both.mean()),
        hausdorff=float(both.max()),
        hausdorff_95=float(max(np.percentile(there, 95), np.percentile(back, 95))),
        surface_dice=float((both <= tolerance).mean()),
        tolerance=tolerance,
    )


def _nearest(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    if not len(points) or not len(others):
        return np.full(len(points), np.inf)
    return cKDTree(others).query(points)[0]
