"""Quantities of the particles of a volume; see `measure_particles`."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np

from keras_microseg.measurement.objects import ObjectMeasurer
from keras_microseg.measurement.surfaces import SphereFits, SurfaceSums, face_sums, fit_spheres, surface_sums
from keras_microseg.segmentation.runs import LabelRuns, meeting_runs, segment_reduce

_DIRECTIONS = 400


class SolidMeasurer(ObjectMeasurer):
    """Computes quantities of all solids when asked, each intermediate result once.

    Args:
        runs, size, origin: as for `ObjectMeasurer`, three axes.
        volume: the label volume itself, read again in slabs for surfaces.
    """

    def __init__(self, runs: LabelRuns, size: tuple[float, ...], origin: tuple[int, ...], volume: Any):
        super().__init__(runs, size, origin)
        self.volume = volume

    @cached_property
    def surfaces(self) -> SurfaceSums:
        return surface_sums(self.volume, self.runs.labels, self.size)

    @cached_property
    def faces(self) -> tuple[np.ndarray, np.ndarray]:
        return face_sums(self.volume, self.runs.labels, self.size, self.middles)

    @cached_property
    def middles(self) -> np.ndarray:
        return self.centroids * self.size

    @cached_property
    def spheres(self) -> SphereFits:
        return fit_spheres(self.faces[1], self.middles)

    @cached_property
    def inertia(self) -> tuple[np.ndarray, np.ndarray]:
        """(n, 3) full axes, longest first, and (n, 3) unit vectors (z, y, x) of the longest with z >= 0."""
        scale = np.outer(self.size, self.size)
        values, vectors = np.linalg.eigh(self.second_moments * scale)
        longest = vectors[:, :, 2]
        leading = np.where(np.abs(longest) > 1e-9, longest, 0)
        first = np.take_along_axis(leading, (leading != 0).argmax(axis=1)[:, None], axis=1)
        return 2 * np.sqrt(5 * np.maximum(values[:, ::-1], 0)), longest * np.where(first < 0, -1, 1)

    @cached_property
    def neighbours(self) -> np.ndarray:
        """(k, 2) index pairs of objects that share a face, edge or corner, smaller index first."""
        owner, n = self.runs.owner, max(len(self.runs.labels), 1)
        found = [np.zeros(0, np.int64)]
        for first, second in meeting_runs(self.runs):
            a, b = owner[first].astype(np.int64), owner[second].astype(np.int64)
            differ = a != b
            a, b = a[differ], b[differ]
            found.append(np.unique(np.minimum(a, b) * n + np.maximum(a, b)))
        return np.stack(np.divmod(np.unique(np.concatenate(found)), n), axis=1)

    @cached_property
    def widths(self) -> tuple[np.ndarray, np.ndarray]:
        """Least and greatest distance of parallel tangent planes over directions spread over the half sphere."""
        _, _, x0, x1 = self.runs.sorted
        lead = [part * self.size[axis] for axis, part in enumerate(self.runs.sorted_lines)]
        low, high = x0 * self.size[2], (x1 - 1) * self.size[2]
        least, greatest = np.full(len(self.runs.labels), np.inf), np.zeros(len(self.runs.labels))
        for z, y, x in half_sphere(_DIRECTIONS):
            base = z * lead[0] + y * lead[1]
            near, far = (low, high) if x > 0 else (high, low)
            width = segment_reduce(np.maximum, base + x * far, self.runs.starts)
            width = width - segment_reduce(np.minimum, base + x * near, self.runs.starts)
            width += abs(z) * self.size[0] + abs(y) * self.size[1] + abs(x) * self.size[2]  # the voxels themselves
            np.minimum(least, width, out=least)
            np.maximum(greatest, width, out=greatest)
        return least, greatest


def half_sphere(count: int) -> np.ndarray:
    """(count + 3, 3) unit vectors: the three axes and an even spread over the half sphere z > 0 (golden spiral)."""
    z = (np.arange(count) + 0.5) / count
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - z**2)
    return np.concatenate([np.eye(3), np.stack([z, flat * np.sin(turn), flat * np.cos(turn)], axis=1)])


def _sphericity(volume: np.ndarray, area: np.ndarray) -> np.ndarray:
    return np.pi ** (1 / 3) * (6 * volume) ** (2 / 3) / area


SOLID_FORMULAS: dict[str, Callable[[SolidMeasurer], np.ndarray]] = {
    "volume": lambda m: m.content,
    "equivalent_diameter": lambda m: np.cbrt(6 / np.pi * m.content),
    "surface_area": lambda m: m.surfaces.marching_cubes,
    "surface_area_crofton": lambda m: m.surfaces.crofton,
    "sphericity": lambda m: _sphericity(m.content, m.surfaces.marching_cubes),
    "sphericity_crofton": lambda m: _sphericity(m.content, m.surfaces.crofton),
    "ellipsoid_major": lambda m: m.inertia[0][:, 0],
    "ellipsoid_middle": lambda m: m.inertia[0][:, 1],
    "ellipsoid_minor": lambda m: m.inertia[0][:, 2],
    "elongation": lambda m: m.inertia[0][:, 1] / m.inertia[0][:, 0],
    "flatness": lambda m: m.inertia[0][:, 2] / m.inertia[0][:, 1],
    "axis_z": lambda m: m.inertia[1][:, 0],
    "axis_y": lambda m: m.inertia[1][:, 1],
    "axis_x": lambda m: m.inertia[1][:, 2],
    "sphere_diameter": lambda m: 2 * m.spheres.radius,
    "sphere_residual": lambda m: m.spheres.residual,
    **{
        f"sphere_{letter}": lambda m, axis=axis: m.spheres.centre[:, axis] / m.size[axis] + m.origin[axis]
        for axis, letter in enumerate("zyx")
    },
    "feret_min": lambda m: m.widths[0],
    "feret_max": lambda m: m.widths[1],
    "euler_number": lambda m: m.surfaces.euler_number,
    **{
        f"centroid_{letter}": lambda m, axis=axis: m.centroids[:, axis] + m.origin[axis]
        for axis, letter in enumerate("zyx")
    },
    **{
        f"bbox_{letter}{end}": lambda m, axis=axis, end=end: m.box[:, axis + 3 * end] + m.origin[axis]
        for end in (0, 1)
        for axis, letter in enumerate("zyx")
    },
    "touches_border": lambda m: m.touches_border,
    "edge_weight": lambda m: m.edge_weight,
    "coordination_number": lambda m: np.bincount(m.neighbours.ravel(), minlength=len(m.runs.labels)),
    "contact_area": lambda m: m.faces[0],
    "nearest_distance": lambda m: m.nearest_distance,
    **{f"intensity_{name}": lambda m, name=name: m.intensity[name] for name in ("mean", "median", "min", "max", "std")},
}
