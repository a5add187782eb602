"""Surfaces of labelled volumes: everything that follows from the 2 x 2 x 2 neighbourhoods, in one pass over slabs.

Around every corner of the voxel grid lie eight voxels. Seen from one object they form one of 256 configurations, and
marching-cubes area, Crofton area and Euler number are sums of a fixed number per configuration. So the volume is read
once, only cells that hold a boundary are looked at, and no mesh is made.

References:
    Lorensen and Cline (1987) and Lewiner et al. (2003), marching cubes; Lindblad (2005), surface area from weighted
    local configurations; Ohser and Muecklich (2000), Statistical Analysis of Microstructures in Materials Science,
    chapters 3 and 4 (Crofton's formula, Euler number); Coope (1993), circle fitting by linear least squares.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.spatial import SphericalVoronoi
from skimage import measure

_SLAB_VOXELS = 1 << 20
_FEW_OBJECTS = 5000  # whose configurations are counted, not summed one by one
_CORNERS = tuple(itertools.product((0, 1), repeat=3))  # (z, y, x); bit k of a configuration is corner k


class SurfaceSums(NamedTuple):
    """Sums over the surface of every object.

    Attributes:
        marching_cubes: (n,) area of the mesh halfway between voxel centres, real units.
        crofton: (n,) area by Crofton's formula in 13 directions, real units.
        euler_number: (n,) int64, voxels taken as closed boxes (26-connected).
    """

    marching_cubes: np.ndarray
    crofton: np.ndarray
    euler_number: np.ndarray


@lru_cache(maxsize=16)
def marching_cubes_areas(size: tuple[float, float, float]) -> np.ndarray:
    """(256,) area of the marching-cubes triangles of every configuration, at the middles of voxel distances."""
    areas = np.zeros(256)
    for code in range(1, 255):
        cell = np.array([code >> bit & 1 for bit in range(8)], np.float32).reshape(2, 2, 2)
        vertices, faces, _, _ = measure.marching_cubes(cell, 0.5, spacing=size)
        areas[code] = measure.mesh_surface_area(vertices, faces)
    return areas


@lru_cache(maxsize=16)
def crofton_areas(size: tuple[float, float, float]) -> np.ndarray:
    """(256,) share of every configuration in S = 2 sum_k c_k N_k V / d_k over the 13 directions of a voxel.

    c_k is the share of the unit sphere nearer to direction k (and its opposite) than to any other.
    """
    steps = np.array([step for step in itertools.product((-1, 0, 1), repeat=3) if any(step)])
    vectors = steps * np.array(size)
    lengths = np.linalg.norm(vectors, axis=1)
    shares = SphericalVoronoi(vectors / lengths[:, None]).calculate_areas() / (4 * np.pi)
    areas = np.zeros(256)
    bits = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    for i, j in itertools.combinations(range(8), 2):
        step = np.subtract(_CORNERS[j], _CORNERS[i])
        k = int(np.flatnonzero((steps == step).all(axis=1))[0])
        cells = 2 ** (3 - np.count_nonzero(step))  # cells that share this pair of voxels
        weight = 2 * 2 * shares[k] * np.prod(size) / lengths[k] / cells
        areas += weight * (bits[:, i] != bits[:, j])
    return areas


@lru_cache(maxsize=1)
def euler_numbers() -> np.ndarray:
    """(256,) eighths of the Euler number per configuration: vertices - edges + faces - boxes at one grid corner."""
    bits = (np.arange(256)[:, None] >> np.arange(8) & 1).astype(bool)
    corners = np.array(_CORNERS)
    total = 8 * bits.any(axis=1).astype(np.int64)
    for axis, side in itertools.product(range(3), (0, 1)):  # six half edges at the corner
        total -= 4 * bits[:, corners[:, axis] == side].any(axis=1)
    for first, second in itertools.combinations(range(3), 2):  # twelve quarter faces
        for a, b in itertools.product((0, 1), repeat=2):
            total += 2 * bits[:, (corners[:, first] == a) & (corners[:, second] == b)].any(axis=1)
    return total - bits.sum(axis=1)


def label_slabs(labels: Any, lookup: np.ndarray | None, ids: np.ndarray, before: int, after: int) -> Iterator:
    """`(top, slab)` of a label volume, ids replaced by index + 1, padded by background outside the volume.

    Args:
        labels: (D, H, W) array or lazy array.
        lookup: table from label to index + 1, or None to search in `ids`.
        ids: (n,) labels, ascending.
        before, after: further planes at both ends of a slab; rows and columns are padded by one on each side.
    """
    depth, plane = labels.shape[0], max(int(np.prod(labels.shape[1:])), 1)
    planes = max(_SLAB_VOXELS // plane, 1)
    for top in range(0, depth + (1 if before else 0), planes):
        stop = min(top + planes, depth + (1 if before else 0))
        first, last = max(top - before, 0), min(stop + after, depth)
        part = np.asarray(labels[first:last])
        if len(ids) == 0 or int(ids[-1]) == len(ids):  # labels 1..n are their own index
            index = part
        else:
            index = lookup[part] if lookup is not None else np.where(part != 0, np.searchsorted(ids, part) + 1, 0)
        yield (
            top,
            np.pad(index.astype(np.int32, copy=False), [(before - (top - first), stop + after - last), (1, 1), (1, 1)]),
        )


def index_table(ids: np.ndarray) -> np.ndarray | None:
    """Table from label to index + 1; None when the labels are too sparse for a table."""
    if not len(ids) or int(ids[-1]) > max(8 * len(ids), 1 << 24):
        return None if len(ids) else np.zeros(1, np.int32)
    table = np.zeros(int(ids[-1]) + 1, np.int32)
    table[ids] = np.arange(1, len(ids) + 1, dtype=np.int32)
    return table


def surface_sums(labels: Any, ids: np.ndarray, size: tuple[float, float, float]) -> SurfaceSums:
    """Areas and Euler numbers of all objects; solids are closed where the frame cuts them.

    Args:
        labels: (D, H, W) label volume or lazy array.
        ids: (n,) its labels, ascending.
        size: edge lengths of a voxel (z, y, x).
    """
    n = len(ids)
    tables = marching_cubes_areas(size), crofton_areas(size), euler_numbers()
    totals = np.zeros((3, n + 1))
    lookup = index_table(ids)
    counts = np.zeros((n + 1) * 256, np.int64) if n < _FEW_OBJECTS else None
    for _, slab in label_slabs(labels, lookup, ids, 1, 0):
        for owner, code in configurations(slab):
            if counts is not None:
                counts += np.bincount(owner * 256 + code, minlength=len(counts))
                continue
            for total, table in zip(totals, tables, strict=True):
                total += np.bincount(owner, weights=table[code], minlength=n + 1)
    if counts is not None:
        totals = np.stack(tables) @ counts.reshape(-1, 256).T
    return SurfaceSums(totals[0, 1:], totals[1, 1:], np.rint(totals[2, 1:] / 8).astype(np.int64))


def configurations(slab: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`(owner, code)` of every object in every cell of 2 x 2 x 2 voxels that is not all one value.

    Args:
        slab: (d, h, w) int32, 0 = background.
    """
    views = [slab[z : z - 1 or None, y : y - 1 or None, x : x - 1 or None] for z, y, x in _CORNERS]
    mixed = np.zeros(views[0].shape, bool)
    for axis in range(3):  # a cell is of one value when its voxels equal their neighbours along the axes
        here, there = (np.moveaxis(slab, axis, 0)[part] for part in (slice(None, -1), slice(1, None)))
        differs = np.moveaxis(here != there, 0, axis)
        others = [a for a in range(3) if a != axis]
        for a in others:
            low, high = (np.moveaxis(differs, a, 0)[part] for part in (slice(None, -1), slice(1, None)))
            differs = np.moveaxis(low | high, 0, a)
        mixed |= differs
    places = np.flatnonzero(mixed)
    if not len(places):
        return
    width, plane = slab.shape[2], slab.shape[1] * slab.shape[2]
    z, rest = np.divmod(places, mixed.shape[1] * mixed.shape[2])
    y, x = np.divmod(rest, mixed.shape[2])
    base = z * plane + y * width + x
    flat = slab.ravel()
    corners = [flat[base + (dz * plane + dy * width + dx)] for dz, dy, dx in _CORNERS]
    code, number = np.zeros(len(base), np.uint8), np.zeros(len(base), np.int32)
    owner, total = np.zeros(len(base), np.int32), np.zeros(len(base), np.int64)
    for k, own in enumerate(corners):
        inside = (own != 0).view(np.uint8)
        code |= inside << np.uint8(k)
        number += inside
        total += own
        np.maximum(owner, own, out=owner)
    single = total == owner.astype(np.int64) * number
    yield owner[single], code[single]
    rest = np.flatnonzero(~single)  # cells where objects meet
    if not len(rest):
        return
    corners = [own[rest] for own in corners]
    for k, own in enumerate(corners):
        fresh = own != 0
        for earlier in corners[:k]:
            fresh &= earlier != own
        code = np.full(len(own), 1 << k, np.uint8)
        for later in range(k + 1, 8):
            code |= (corners[later] == own).view(np.uint8) << np.uint8(later)
        yield own[fresh], code[fresh]


class SphereFits(NamedTuple):
    """Best-fit spheres, real units; NaN where the surface does not fix one.

    Attributes:
        centre: (n, 3) in real units from the centre of the first voxel of the array.
        radius: (n,).
        residual: (n,) root mean square distance of the surface from the sphere.
    """

    centre: np.ndarray
    radius: np.ndarray
    residual: np.ndarray


def face_sums(
    labels: Any, ids: np.ndarray, size: tuple[float, float, float], middles: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Contact areas and the sums for sphere fits, from the faces between voxels of different label.

    Args:
        labels, ids, size: as for `surface_sums`.
        middles: (n, 3) a point near each object, real units; coordinates are taken from there.

    Returns:
        `(contact, sums)`: (n,) area of the faces shared with other objects; (n, 14) sums over all inner faces of
        1, z, y, x, zz, yy, xx, zy, zx, yx, zr, yr, xr, rr with r = zz + yy + xx of the middles of the faces.
    """
    n = len(ids)
    contact, sums = np.zeros(n + 1), np.zeros((14, n + 1))
    lookup = index_table(ids)
    depth, height, width = labels.shape
    origin = np.concatenate([np.zeros((1, 3)), middles])
    face_areas = [size[1] * size[2], size[0] * size[2], size[0] * size[1]]
    for top, slab in label_slabs(labels, lookup, ids, 0, 1):
        slab = slab[:, 1:-1, 1:-1]
        if top + len(slab) - 1 >= depth:  # the last plane is padding
            slab = slab[:-1]
            planes = len(slab)
        else:
            planes = len(slab) - 1
        for axis in range(3):
            part = slab if axis == 0 else slab[:planes]
            here, there = (np.moveaxis(part, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
            here, there = np.moveaxis(here, 0, axis), np.moveaxis(there, 0, axis)
            places = np.flatnonzero(here != there)
            if not len(places):
                continue
            position = np.stack(np.unravel_index(places, here.shape), axis=0).astype(np.float64)
            position[0] += top
            position[axis] += 0.5
            position *= np.array(size)[:, None]
            a, b = here.ravel()[places], there.ravel()[places]
            shared = (a != 0) & (b != 0)
            for own in (a, b):
                contact += face_areas[axis] * np.bincount(own[shared], minlength=n + 1)
                chosen = own != 0
                owner = own[chosen]
                z, y, x = position[:, chosen] - origin[owner].T
                r = z * z + y * y + x * x
                terms = (None, z, y, x, z * z, y * y, x * x, z * y, z * x, y * x, z * r, y * r, x * r, r * r)
                for total, term in zip(sums, terms, strict=True):
                    total += np.bincount(owner, weights=term, minlength=n + 1)
    return contact[1:], sums[:, 1:].T


def fit_spheres(sums: np.ndarray, middles: np.ndarray) -> SphereFits:
    """Least squares of |p - c|^2 - r^2 over the surface points, from the sums of `face_sums`."""
    count, z, y, x, zz, yy, xx, zy, zx, yx, zr, yr, xr, rr = sums.T
    matrix = np.stack(
        [np.stack(row, -1) for row in ((zz, zy, zx, z), (zy, yy, yx, y), (zx, yx, xx, x), (z, y, x, count))], axis=-2
    )
    right = np.stack([zr, yr, xr, zz + yy + xx], axis=-1)
    scale = np.maximum(np.trace(matrix[:, :3, :3], axis1=1, axis2=2), 1e-300)
    smallest = np.linalg.eigvalsh(matrix / scale[:, None, None])[:, 0] if len(matrix) else np.zeros(0)
    fixed = (count >= 4) & (smallest > 1e-12)
    centre, radius, residual = np.full((len(sums), 3), np.nan), np.full(len(sums), np.nan), np.full(len(sums), np.nan)
    if fixed.any():
        solution = np.linalg.solve(matrix[fixed], right[fixed][..., None])[..., 0]  # 2c and r^2 - |c|^2
        half = solution[:, :3] / 2
        square = solution[:, 3] + np.square(half).sum(axis=1)
        good = square > 0
        root = np.sqrt(np.where(good, square, np.nan))
        left_over = rr[fixed] - (solution * right[fixed]).sum(axis=1)
        centre[fixed] = np.where(good[:, None], half, np.nan) + middles[fixed]
        radius[fixed] = root
        residual[fixed] = np.sqrt(np.maximum(left_over, 0) / count[fixed]) / (2 * root)
    return SphereFits(centre, radius, residual)
