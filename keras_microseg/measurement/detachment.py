"""Degree of detachment: how much of a particle's surroundings is void instead of carbon/binder (CBD).

Two definitions, both for several distances d from the filled particle i:

- surface: every triangle of the marching-cubes surface asks for the phase at the distance d along its normal;
  D_i = area over void / (area over void + area over CBD). What lies over other particles is contact;
- shell: S_i(d) = dilate(particle i, d) minus all particles; D_i = |S_i in void| / (|S_i in void| + |S_i in CBD|).

A phase map by thresholds has a false layer of CBD, about the blur wide, wherever void meets a particle: its grey values
pass those of the CBD. The surface definition looks past it; `skip` takes it out of the shell.

References:
    Jiang et al. (2020), Nature Communications 11, 2310 (detachment of NMC particles; the exact formula is not given
    there, these definitions are ours); Lewiner et al. (2003), marching cubes; Cochran (1977), Sampling Techniques,
    chapter 6 (variance of a ratio over clusters).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage import measure

from keras_microseg.checks import UserError
from keras_microseg.measurement.particle_crops import Crop

_PATCHES = 32


class Detachment(NamedTuple):
    """One particle; arrays have one entry per distance. NaN where there is neither void nor CBD.

    Attributes:
        value: share of void among void and CBD.
        error: standard error over 32 patches of the surface: how far the value would scatter between surfaces covered
            in patches as these are (not the accuracy of the phase map).
        contact: share of the surroundings (shell or surface) taken by other particles.
        seen: share of the surface inside the volume.
    """

    value: np.ndarray
    error: np.ndarray
    contact: np.ndarray
    seen: np.ndarray


def shell_detachment(crop: Crop, distances: Sequence[float], *, skip: float = 0.0) -> Detachment:
    """Detachment from voxels in shells.

    Args:
        crop: with phases, its margin at least the greatest distance.
        distances: of the shells' outer faces, real units, counted between voxel centres.
        skip: leave out what is not farther than this, real units; shells within it are NaN.
    """
    limits = _check_distances(distances)
    distance = crop.distance
    near = np.nonzero((distance > skip) & (distance <= limits.max()))
    bins = np.searchsorted(limits, distance[near])
    is_other = crop.others[near]
    void = crop.is_phase("void", "crack")[near] & ~is_other
    cbd = crop.is_phase("cbd")[near] & ~is_other
    patch = _patches(np.stack(near, axis=1) * crop.size - _centre(crop))
    sums = [_bin_sums(kind, bins, patch, len(limits)) for kind in (void, cbd, is_other)]
    order = np.argsort(np.argsort(distances, kind="stable"), kind="stable")
    part = [total[order] for total in sums]
    everything = np.bincount(bins, minlength=len(limits)).cumsum()[order]
    seen = np.ones(len(order))
    return _ratio(*part[:2], part[2].sum(axis=1), everything, seen)


def surface_detachment(crop: Crop, distances: Sequence[float], *, smoothing: float = 1.0) -> Detachment:
    """Detachment from the phase along the normals of the surface.

    Args:
        crop: with phases, its margin at least the greatest distance.
        distances: along the normal, real units.
        smoothing: of the outline before the surface is made, voxels.
    """
    limits = _check_distances(distances)[np.argsort(np.argsort(distances, kind="stable"), kind="stable")]
    points, normals, areas = surface_of(crop.filled, crop.size, smoothing)
    patch = _patches(points - _centre(crop))
    void_map, cbd_map = crop.is_phase("void", "crack"), crop.is_phase("cbd")
    totals = np.zeros((3, len(limits), _PATCHES))
    seen = np.zeros(len(limits))
    for row, distance in enumerate(limits):
        place = np.rint((points + distance * normals) / crop.size).astype(int)
        inside = ((place >= 0) & (place < crop.labels.shape)).all(axis=1)
        place = tuple(place[inside].T)
        area, own_patch = areas[inside], patch[inside]
        other = crop.others[place]
        free = ~other & ~crop.filled[place]
        for total, kind in zip(totals, (void_map[place] & free, cbd_map[place] & free, other), strict=True):
            total[row] = np.bincount(own_patch, area * kind, _PATCHES)
        seen[row] = area.sum()
    total = max(float(areas.sum()), 1e-300)
    return _ratio(*totals[:2], totals[2].sum(axis=1), seen, seen / total)


def surface_of(
    mask: np.ndarray, size: Sequence[float], smoothing: float = 1.0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Middles, outward unit normals and areas of the triangles of a solid's surface.

    Args:
        mask: (d, h, w) boolean; beyond its border it is taken to go on, so nothing there is surface.
        size: edge lengths of a voxel.
        smoothing: Gaussian, voxels.

    Returns:
        (n, 3) in real units from the centre of the first voxel, (n, 3), and (n,).
    """
    size = np.asarray(size, float)
    soft = ndimage.gaussian_filter(mask.astype(np.float32), smoothing, mode="nearest") if smoothing else mask
    soft = np.asarray(soft, np.float32)
    if not (soft.min() < 0.5 < soft.max()):
        empty = np.zeros((0, 3))
        return empty, empty, np.zeros(0)
    corners, faces, _, _ = measure.marching_cubes(soft, 0.5, spacing=tuple(size))
    triangles = corners[faces].astype(np.float64)
    across = np.cross(triangles[:, 1] - triangles[:, 0], triangles[:, 2] - triangles[:, 0])
    areas = np.linalg.norm(across, axis=1) / 2
    kept = areas > 1e-12 * size.min() ** 2
    middles = triangles[kept].mean(axis=1)
    normals = across[kept] / (2 * areas[kept, None])
    # triangles turn one way; which one shows where the smoothed solid falls off
    step = 0.5 * size.min()
    ahead = ndimage.map_coordinates(soft, ((middles + step * normals) / size).T, order=1, mode="nearest")
    behind = ndimage.map_coordinates(soft, ((middles - step * normals) / size).T, order=1, mode="nearest")
    if (areas[kept] * np.sign(behind - ahead)).sum() < 0:
        normals = -normals
    return middles, normals, areas[kept]


def _check_distances(distances: Sequence[float]) -> np.ndarray:
    values = np.sort(np.asarray(distances, float))
    if not len(values) or not np.isfinite(values).all() or values[0] <= 0:
        raise UserError(f"`distances` must be greater than 0. Received: {list(distances)}")
    return values


def _centre(crop: Crop) -> np.ndarray:
    return np.array([np.mean(index) for index in np.nonzero(crop.filled)]) * crop.size


def _patches(offsets: np.ndarray) -> np.ndarray:
    """Which of 32 parts of the sphere a direction belongs to."""
    z = 1 - (2 * np.arange(_PATCHES) + 1) / _PATCHES
    turn = np.arange(_PATCHES) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - z**2)
    return (offsets @ np.stack([z, flat * np.sin(turn), flat * np.cos(turn)])).argmax(axis=1)


def _bin_sums(kind: np.ndarray, bins: np.ndarray, patch: np.ndarray, count: int) -> np.ndarray:
    """(count, patches) voxels of a kind up to each distance."""
    counts = np.bincount(bins[kind] * _PATCHES + patch[kind], minlength=count * _PATCHES)
    return counts.reshape(count, _PATCHES).cumsum(axis=0).astype(float)


def _ratio(
    void: np.ndarray, cbd: np.ndarray, other: np.ndarray, everything: np.ndarray, seen: np.ndarray
) -> Detachment:
    """Ratio of sums over patches and its standard error."""
    both = void + cbd
    total = both.sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = void.sum(axis=1) / total
        used = np.maximum((both > 0).sum(axis=1), 2)
        rest = np.square(void - value[:, None] * both).sum(axis=1)
        error = np.sqrt(used / (used - 1) * rest) / total
        contact = other / np.asarray(everything, float)
    return Detachment(value, error, contact, seen)
