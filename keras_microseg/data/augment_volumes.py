"""Joint augmentation in 3D: grey patch and labels move together; scanner artefacts change the grey values alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import check_number
from keras_microseg.simulation.random_phantoms import ring_artefacts, stripe_artefacts
from keras_microseg.tiling import reflected_positions

Region = tuple[tuple[int, int], ...]


@dataclasses.dataclass(frozen=True)
class VolumeAugmentSettings:
    """Strength of the augmentation of volumes; 0 or False switches a part off. Grey values are 0..1.

    Attributes:
        flips: flips along every axis and quarter turns in the plane, each of the sixteen equally likely.
        rotate: largest rotation in the plane, degrees.
        zoom: largest change of scale as a factor: 1.2 draws from 0.83..1.2 (log-uniform), equal along all axes.
        elastic: largest displacement of a smooth random deformation, voxels.
        contrast: largest relative change of the span of grey values.
        gamma: standard deviation of ln(gamma).
        noise: largest standard deviation of added Gaussian noise.
        blur: largest sigma of a Gaussian blur, voxels.
        rings: largest amplitude of ring artefacts: offsets that depend on the distance from a rotation axis along z.
        stripes: largest amplitude of straight stripes through the plane, equal in all slices of the patch.
        dropped_slices: probability that one slice is lost: replaced by noise about its mean.
    """

    flips: bool = True
    rotate: float = 15.0
    zoom: float = 1.2
    elastic: float = 0.0
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.05
    blur: float = 0.7
    rings: float = 0.1
    stripes: float = 0.05
    dropped_slices: float = 0.05

    def __post_init__(self) -> None:
        check_number("zoom", self.zoom, minimum=1)
        check_number("contrast", self.contrast, minimum=0, maximum=0.95)
        for name in ("rotate", "elastic", "gamma", "noise", "blur", "rings", "stripes"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("dropped_slices", self.dropped_slices, minimum=0, maximum=1)


NO_VOLUME_AUGMENTATION = VolumeAugmentSettings(False, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
FLIPS_ONLY = dataclasses.replace(NO_VOLUME_AUGMENTATION, flips=True)


def take_patch(
    rng: np.random.Generator,
    arrays: Sequence[Any],
    centre: Sequence[float],
    size: Sequence[int],
    region: Region,
    settings: VolumeAugmentSettings = NO_VOLUME_AUGMENTATION,
    orders: Sequence[int] = (1, 0),
) -> list[np.ndarray]:
    """The same patch of several volumes, rotated, zoomed, deformed and flipped together.

    Args:
        rng: random source.
        arrays: (Z, Y, X) NumPy or lazy; only the box that is needed is asked for.
        centre: (z, y, x) of the patch; moved so far that an unrotated, unzoomed patch lies within `region`.
        size: (z, y, x) of the result.
        region: half-open range per axis that may be read; what lies outside is reflected about its borders.
        settings: `flips`, `rotate`, `zoom` and `elastic` are used here.
        orders: of the interpolation, per array: 1 = linear for grey values, 0 = nearest neighbour for labels.

    Returns:
        One array of `size` per volume; linear ones are float32, others keep their type.
    """
    size = tuple(size)
    start = []
    for middle, n, (low, high) in zip(centre, size, region, strict=True):
        start.append(int(np.clip(round(middle - n / 2), low, max(low, high - n))))
    angle = float(np.deg2rad(rng.uniform(-settings.rotate, settings.rotate))) if settings.rotate else 0.0
    zoom = float(np.exp(rng.uniform(-1, 1) * np.log(settings.zoom))) if settings.zoom > 1 else 1.0
    bend = float(rng.uniform(0, settings.elastic)) if settings.elastic else 0.0
    if angle == 0 and zoom == 1 and bend == 0:
        patches = [_read_reflected(array, start, size, region) for array in arrays]
    else:
        grid = _coordinates(rng, start, size, angle, zoom, bend)
        low = [int(np.floor(axis.min())) for axis in grid]
        box = [int(np.ceil(axis.max())) + 1 - first for axis, first in zip(grid, low, strict=True)]
        grid = grid - np.reshape(low, (3, 1, 1, 1)).astype(np.float32)
        patches = []
        for array, order in zip(arrays, orders, strict=True):
            block = _read_reflected(array, low, box, region)
            block = block.astype(np.float32, copy=False) if order else block
            patches.append(ndimage.map_coordinates(block, grid, order=order, mode="nearest"))
    if settings.flips:
        signs = [-1 if rng.integers(2) else 1 for _ in range(3)]
        turn = bool(rng.integers(2)) and size[1] == size[2]
        patches = [patch[:: signs[0], :: signs[1], :: signs[2]] for patch in patches]
        patches = [patch.swapaxes(1, 2) if turn else patch for patch in patches]
    return [
        np.ascontiguousarray(patch, np.float32 if order else None) for patch, order in zip(patches, orders, strict=True)
    ]


def vary_volume_grey(rng: np.random.Generator, patch: np.ndarray, settings: VolumeAugmentSettings) -> np.ndarray:
    """Random blur, gamma, contrast, rings, stripes, lost slices and noise of a (Z, Y, X) float32 patch in 0..1."""
    patch = patch.astype(np.float32, copy=True)
    if settings.blur:
        patch = ndimage.gaussian_filter(patch, rng.uniform(0, settings.blur))
    if settings.gamma:
        patch = np.clip(patch, 0, 1) ** np.float32(np.exp(rng.normal(0, settings.gamma)))
    if settings.contrast:
        span = 1 - rng.uniform(0, settings.contrast)
        patch = patch * np.float32(span) + np.float32(rng.uniform(0, 1 - span))
    if settings.rings:
        patch += ring_artefacts(rng, patch.shape[1:], rng.uniform(0, settings.rings))
    if settings.stripes:
        patch += stripe_artefacts(rng, patch.shape[1:], rng.uniform(0, settings.stripes))
    if settings.dropped_slices and rng.random() < settings.dropped_slices:
        lost = int(rng.integers(len(patch)))
        patch[lost] = patch[lost].mean() + 0.05 * rng.standard_normal(patch.shape[1:], np.float32)
    if settings.noise:
        patch += np.float32(rng.uniform(0, settings.noise)) * rng.standard_normal(patch.shape, np.float32)
    return np.clip(patch, 0, 1)


def _coordinates(rng, start, size, angle: float, zoom: float, bend: float) -> np.ndarray:
    """(3, Z, Y, X) float32 positions in the volume of every voxel of the patch."""
    dz, dy, dx = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in size)
    dz, dy, dx = np.meshgrid(dz / zoom, dy / zoom, dx / zoom, indexing="ij", copy=False)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    grid = np.stack([dz, cos * dy - sin * dx, sin * dy + cos * dx])
    grid += np.reshape([first + (n - 1) / 2 for first, n in zip(start, size, strict=True)], (3, 1, 1, 1))
    if bend:
        knots = [max(3, n // 16) for n in size]
        for axis in range(3):
            field = ndimage.zoom(rng.uniform(-bend, bend, knots), [n / k for n, k in zip(size, knots, strict=True)])
            grid[axis] += field[: size[0], : size[1], : size[2]]
    return grid.astype(np.float32)


def _read_reflected(array: Any, start: Sequence[int], size: Sequence[int], region: Region) -> np.ndarray:
    """A block of `size` at `start`; positions outside `region` are reflected into it."""
    positions = [
        reflected_positions(first - low, first - low + n, high - low) + low
        for first, n, (low, high) in zip(start, size, region, strict=True)
    ]
    block = np.asarray(array[tuple(slice(int(p.min()), int(p.max()) + 1) for p in positions)])
    for axis, (p, first, n) in enumerate(zip(positions, start, size, strict=True)):
        if p[0] != first or p[-1] != first + n - 1 or len(p) != block.shape[axis]:
            block = np.take(block, p - p.min(), axis=axis)
    return block
