"""Statistics of a phase in a volume: fraction with interval, surface, connectivity, correlation, thickness, size of a
representative volume; and of its particles: number density and radial distribution.

A phase is a mask, non-zero = phase; give `mask == 0` for the pores. All work slab by slab where a name does not say
otherwise, on arrays larger than memory.

References:
    Torquato (2002), Random Heterogeneous Materials (two-point function, specific surface); Ohser and Muecklich (2000);
    Hildebrand and Rueegsegger (1997), local thickness; Kanit et al. (2003), representative volume from the spread of
    block fractions.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import fft, ndimage, stats
from scipy.spatial import cKDTree

from keras_microseg.checks import UserError, check_number
from keras_microseg.image import PixelSize
from keras_microseg.measurement.particles import edge_lengths
from keras_microseg.measurement.surfaces import configurations, crofton_areas, marching_cubes_areas
from keras_microseg.segmentation.runs import connect_runs, find_runs

_SLAB_VOXELS = 1 << 20


class Fraction(NamedTuple):
    """Share of a phase.

    Attributes:
        value: share of all voxels.
        low, high: confidence interval of the mean, from the spread between blocks (Student's t).
        profile: (D,) share in every slice.
        block_values: share in every block.
        confidence: level of the interval.
    """

    value: float
    low: float
    high: float
    profile: np.ndarray
    block_values: np.ndarray
    confidence: float


def phase_fraction(mask: Any, *, num_blocks: int = 4, confidence: float = 0.95) -> Fraction:
    """Volume fraction with an interval.

    Blocks next to each other are not independent when the structure is coarser than they are; then the interval is too
    narrow, and the blocks should be larger (`representative_volume` shows it).

    Args:
        mask: (D, H, W) array or lazy array.
        num_blocks: blocks along each axis, at least 2 in all.
        confidence: level of the interval.
    """
    shape = _check_volume(mask)
    check_number("confidence", confidence, minimum=0, maximum=1, exclusive=True)
    edges = [np.linspace(0, n, min(num_blocks, n) + 1).round().astype(int) for n in shape]
    counts = np.zeros([len(e) - 1 for e in edges])
    profile = np.zeros(shape[0])
    for z, plane in _planes(mask):
        profile[z] = plane.mean()
        k = int(np.searchsorted(edges[0], z, side="right")) - 1
        rows = np.add.reduceat(plane, edges[1][:-1], axis=0)
        counts[k] += np.add.reduceat(rows, edges[2][:-1], axis=1)
    sizes = np.einsum("i,j,k->ijk", *(np.diff(e) for e in edges))
    values = (counts / sizes).ravel()
    value = float(counts.sum() / np.prod(shape))
    half = np.nan
    if len(values) > 1:
        half = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Fraction(value, max(value - half, 0.0), min(value + half, 1.0), profile, values, confidence)


class SurfaceDensity(NamedTuple):
    """Surface of a phase inside a volume; the frame is no surface.

    Attributes:
        area: by Crofton's formula, unit^2.
        area_marching_cubes: by marching cubes, 8 to 9 % larger for smooth surfaces.
        per_volume: `area` per volume of the whole array, 1 / unit.
        per_phase: `area` per volume of the phase, 1 / unit.
    """

    area: float
    area_marching_cubes: float
    per_volume: float
    per_phase: float


def specific_surface(mask: Any, *, pixel_size: PixelSize | None = None) -> SurfaceDensity:
    """Surface between a phase and the rest, in real units (voxels when the size is unknown)."""
    shape = _check_volume(mask)
    size = edge_lengths(pixel_size, 3)
    tables = crofton_areas(size), marching_cubes_areas(size)
    areas, count = np.zeros(2), 0
    planes = max(_SLAB_VOXELS // max(shape[1] * shape[2], 1), 1)
    for top in range(0, shape[0], planes):
        slab = (np.asarray(mask[top : top + planes + 1]) != 0).astype(np.int32)
        count += int(slab[:planes].sum())
        for _, code in configurations(slab):
            areas += [table[code].sum() for table in tables]
    volume = float(np.prod(size))
    # cells lie between voxel centres: (D - 1)(H - 1)(W - 1) of them stand for all D H W voxels
    areas *= np.prod(shape) / max(np.prod([n - 1 for n in shape]), 1)
    phase = count * volume
    return SurfaceDensity(
        *areas.tolist(), areas[0] / (np.prod(shape) * volume), float(areas[0] / phase) if phase else np.nan
    )


class Connectivity(NamedTuple):
    """Parts of a phase.

    Attributes:
        num_parts: connected parts.
        largest_share: voxels of the largest part over all of the phase.
        percolates: along z, y, x: whether a part reaches from face to face.
        connected_share: voxels of parts that touch two opposite faces over all of the phase (effective porosity).
    """

    num_parts: int
    largest_share: float
    percolates: tuple[bool, bool, bool]
    connected_share: float


def phase_connectivity(mask: Any, *, connectivity: int = 4) -> Connectivity:
    """How a phase hangs together; memory grows with its surface (runs), not with the volume.

    Args:
        mask: (D, H, W) array or lazy array.
        connectivity: 4 = faces (6 neighbours), 8 = edges and corners too (26).
    """
    shape = _check_volume(mask)
    runs = connect_runs(find_runs(_AsLabels(mask)), connectivity)
    n = len(runs.labels)
    lengths = np.bincount(runs.owner, weights=runs.x1 - runs.x0, minlength=n)
    z, y = np.divmod(runs.line, shape[1])
    reaches, through = [], np.zeros(n, bool)
    for low, high in ((z == 0, z == shape[0] - 1), (y == 0, y == shape[1] - 1), (runs.x0 == 0, runs.x1 == shape[2])):
        both = np.zeros(n, bool)
        both[np.intersect1d(runs.owner[low], runs.owner[high])] = True
        reaches.append(bool(both.any()))
        through |= both
    total = lengths.sum()
    return Connectivity(
        n,
        float(lengths.max(initial=0) / total) if total else 0.0,
        tuple(reaches),
        float(lengths[through].sum() / total) if total else 0.0,
    )


def two_point_function(
    mask: np.ndarray, *, max_distance: float | None = None, pixel_size: PixelSize | None = None
) -> pd.DataFrame:
    """Probability that two points a distance r apart both lie in the phase, in memory (about 40 bytes per voxel).

    Exact over all pairs of voxels inside the volume (no periodic images). S2(0) = fraction, S2(inf) = fraction^2; its
    slope at 0 is minus a quarter of the surface per volume.

    Args:
        mask: (D, H, W).
        max_distance: greatest r; None = a quarter of the shortest edge.
        pixel_size: edge lengths of a voxel.

    Returns:
        Columns `distance`, `probability` (all directions), and `along_z`, `along_y`, `along_x` (NaN beyond the volume
        and at distances between voxels along that axis).
    """
    shape = _check_volume(mask)
    size = np.array(edge_lengths(pixel_size, 3))
    inside = (np.asarray(mask) != 0).astype(np.float32)
    limit = float(np.min(size * shape)) / 4 if max_distance is None else max_distance
    reach = [min(int(limit / s), n - 1) for s, n in zip(size, shape, strict=True)]
    padded = [fft.next_fast_len(n + r, real=True) for n, r in zip(shape, reach, strict=True)]
    pairs = fft.irfftn(np.square(np.abs(fft.rfftn(inside, padded))), padded)
    kept = [np.r_[0 : r + 1, p - r : p] if r else np.array([0]) for r, p in zip(reach, padded, strict=True)]
    lags = [np.r_[0 : r + 1, -r:0] if r else np.array([0]) for r in reach]
    pairs = pairs[np.ix_(*kept)]
    number = np.ones(1)
    for n, lag in zip(shape, lags, strict=True):
        number = np.multiply.outer(number, n - np.abs(lag))
    number = number[0]
    away = np.sqrt(
        sum(np.square(g) for g in np.meshgrid(*(s * a for s, a in zip(size, lags, strict=True)), indexing="ij"))
    )
    step = size.min()
    index = np.rint(away / step).astype(int).ravel()
    top = int(limit / step) + 1
    chosen = index < top
    weight = np.bincount(index[chosen], weights=number.ravel()[chosen], minlength=top)
    total = np.bincount(index[chosen], weights=pairs.ravel()[chosen], minlength=top)
    table = pd.DataFrame({"distance": np.arange(top) * step, "probability": total / weight})
    for axis, letter in enumerate("zyx"):
        line = np.full(top, np.nan)
        along = np.arange(reach[axis] + 1)
        place = tuple(along if a == axis else 0 for a in range(3))
        at = along * size[axis] / step
        whole = np.abs(at - np.rint(at)) < 1e-6
        rows = np.rint(at[whole]).astype(int)
        line[rows[rows < top]] = (pairs[place] / number[place])[whole][rows < top]
        table[f"along_{letter}"] = line
    table.attrs = {"unit": "px" if pixel_size is None else pixel_size.unit}
    return table


def representative_volume(mask: Any, *, sizes: Sequence[int] | None = None) -> pd.DataFrame:
    """How the fraction of a phase varies between cubes of growing edge: where it becomes small, a cube represents it.

    Args:
        mask: (D, H, W) array or lazy array.
        sizes: edges of the cubes, voxels; None = eight steps from 1/16 of the shortest edge to half of it.

    Returns:
        Columns `edge` (voxels), `num_cubes` (side by side, uncut), `mean`, `std` (between cubes), `relative_error`
        (1.96 std / (mean sqrt(num_cubes))).
    """
    shape = _check_volume(mask)
    shortest = min(shape)
    if sizes is None:
        sizes = np.unique(np.geomspace(max(shortest / 16, 2), max(shortest // 2, 2), 8).round().astype(int))
    sizes = [check_number("sizes", int(s), minimum=1, maximum=shortest, integer=True) for s in sizes]
    sums = {s: np.zeros([n // s for n in shape]) for s in sizes}
    for z, plane in _planes(mask):
        for s, total in sums.items():
            if z // s < len(total):
                rows, columns = shape[1] // s * s, shape[2] // s * s
                total[z // s] += plane[:rows, :columns].reshape(rows // s, s, columns // s, s).sum(axis=(1, 3))
    rows = []
    for s, total in sums.items():
        values = total.ravel() / s**3
        spread = float(values.std(ddof=1)) if len(values) > 1 else np.nan
        mean = float(values.mean())
        rows.append((s, len(values), mean, spread, 1.96 * spread / (mean * np.sqrt(len(values))) if mean else np.nan))
    return pd.DataFrame(rows, columns=["edge", "num_cubes", "mean", "std", "relative_error"])


def local_thickness(mask: np.ndarray, *, pixel_size: PixelSize | None = None, num_sizes: int = 24) -> np.ndarray:
    """Diameter of the largest sphere inside the phase that covers each voxel, in memory.

    Args:
        mask: 2D or 3D, non-zero = phase; outside of the array is not background.
        pixel_size: edge lengths; None = voxels.
        num_sizes: steps of the diameter between the least and the greatest (rounded down to a step).

    Returns:
        float32 of the same shape, 0 outside the phase, in units of `pixel_size`. Exact for flat walls an odd number of
        voxels thick; others come out up to a voxel, balls up to two voxels, too thin.
    """
    mask = np.asarray(mask) != 0
    size = edge_lengths(pixel_size, mask.ndim)
    thickness = np.zeros(mask.shape, np.float32)
    if not mask.any():
        return thickness
    if mask.all():
        raise UserError("The phase fills the whole volume; it has no thickness.")
    distance = ndimage.distance_transform_edt(mask, sampling=size)
    # the surface lies half a voxel before the nearest background voxel
    half = min(size) / 2
    for radius in np.geomspace(distance[mask].min(), distance.max(), num_sizes):
        centres = distance >= radius * (1 - 1e-9)
        covered = ndimage.distance_transform_edt(~centres, sampling=size) < radius
        thickness[covered & mask] = 2 * (radius - half) if radius > half else 2 * half
    return thickness


class NumberDensity(NamedTuple):
    """Particles per volume.

    Attributes:
        value: per unit^3, corrected for particles cut by the frame (each corner rule: Miles-Lantuejoul weights).
        low, high: 95 % interval of counting (Poisson).
        count: particles whole inside.
        unit: of lengths.
    """

    value: float
    low: float
    high: float
    count: int
    unit: str


def number_density(table: pd.DataFrame) -> NumberDensity:
    """Particles per volume of a particle table of a volume (columns `edge_weight`, `touches_border`)."""
    size = table.attrs.get("pixel_size") or (1.0,) * len(table.attrs["frame_shape"])
    volume = float(np.prod(size) * np.prod(table.attrs["frame_shape"], dtype=float))
    whole = ~table["touches_border"].to_numpy(bool)
    count, weighted = int(whole.sum()), float(table["edge_weight"].to_numpy()[whole].sum())
    low, high = stats.chi2.ppf(0.025, 2 * count) / 2 if count else 0.0, stats.chi2.ppf(0.975, 2 * count + 2) / 2
    factor = weighted / count if count else 1.0
    return NumberDensity(
        weighted / volume, low * factor / volume, high * factor / volume, count, table.attrs.get("unit", "px")
    )


def radial_distribution(table: pd.DataFrame, *, max_distance: float | None = None, num_bins: int = 50) -> pd.DataFrame:
    """Radial distribution function g(r) of the centres: density of neighbours at r over the mean density.

    Every centre is counted up to the distance of the nearest face of the volume only (minus sampling), so nothing
    outside is missed; g = 1 where there is no order.

    Args:
        table: particle table of a volume.
        max_distance: greatest r; None = a third of the shortest edge.
        num_bins: bins of equal width.

    Returns:
        Columns `distance` (middle of the bin), `g`, `num_centres` that count there, `num_pairs`.
    """
    shape = np.array(table.attrs["frame_shape"], float)
    size = np.array(table.attrs.get("pixel_size") or (1.0,) * len(shape))
    origin = np.array(table.attrs.get("origin", np.zeros(len(shape))))
    points = (table[["centroid_z", "centroid_y", "centroid_x"]].to_numpy(float) - origin + 0.5) * size
    edge = shape * size
    limit = edge.min() / 3 if max_distance is None else max_distance
    edges = np.linspace(0, limit, num_bins + 1)
    room = np.minimum(points, edge - points).min(axis=1) if len(points) else np.zeros(0)
    density = len(points) / edge.prod()
    pairs, centres = np.zeros(num_bins), np.zeros(num_bins, int)
    if len(points) > 1:
        tree = cKDTree(points)
        found = tree.sparse_distance_matrix(tree, limit, output_type="ndarray")
        found = found[found["i"] != found["j"]]
        bins = np.minimum((found["v"] / limit * num_bins).astype(int), num_bins - 1)
        valid = room[found["i"]] >= edges[bins + 1]
        pairs = np.bincount(bins[valid], minlength=num_bins)
    centres = (room[:, None] >= edges[1:]).sum(axis=0)
    shells = 4 / 3 * np.pi * np.diff(edges**3)
    expected = centres * shells * density
    return pd.DataFrame(
        {
            "distance": (edges[:-1] + edges[1:]) / 2,
            "g": np.divide(pairs, expected, out=np.full(num_bins, np.nan), where=expected > 0),
            "num_centres": centres,
            "num_pairs": pairs,
        }
    )


class _AsLabels:
    """A mask read as labels 0 and 1."""

    dtype = np.dtype(np.uint8)

    def __init__(self, mask: Any):
        self.mask, self.shape = mask, tuple(mask.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (np.asarray(self.mask[key]) != 0).view(np.uint8)


def _planes(mask: Any):
    """`(z, plane)` of a mask as 0 and 1, read in slabs."""
    shape = tuple(mask.shape)
    planes = max(_SLAB_VOXELS // max(shape[1] * shape[2], 1), 1)
    for top in range(0, shape[0], planes):
        slab = (np.asarray(mask[top : top + planes]) != 0).astype(np.int64)
        yield from zip(itertools.count(top), slab, strict=False)


def _check_volume(mask: Any) -> tuple[int, ...]:
    shape = tuple(mask.shape)
    if len(shape) != 3 or 0 in shape:
        raise UserError(f"`mask` must be a volume (D, H, W). Received: shape {shape}")
    return shape
