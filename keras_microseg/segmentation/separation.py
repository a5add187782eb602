"""Touching objects apart: a mask becomes instances by the hills of its distance map, in memory or block by block.

The distance to the background is smoothed, every voxel climbs to a peak (`basins.climb`), and regions whose common neck
is nearly as wide as the narrower of the two are joined. Any number of axes, edges of any length. The version for blocks
gives the very same labels: distances are exact as long as no object is thicker than the halo (else it says so),
climbing needs direct neighbours only, and regions, necks and sizes of the whole volume are gathered in one table before
anything is joined.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.segmentation.basins import (
    RegionGraph,
    RegionTable,
    climb_block,
    merge_table,
    region_table,
)
from keras_microseg.segmentation.stitching import Box, blocks

_TRUNCATE = 4.0  # standard deviations that the smoothing reaches


@dataclasses.dataclass(frozen=True)
class SeparationSettings:
    """How touching objects are cut apart.

    Attributes:
        sigma: Gaussian smoothing of the distance map, in shortest voxel edges. More joins rough parts; about an eighth
            of the radius of the objects is good.
        merge_ratio: regions are joined when neck / lower peak (both distances to the background) is greater.
        min_size: smaller regions are given to the neighbour with the largest contact, or removed when they have none,
            pixels.
        spacing: edge lengths of a pixel, only their proportions matter; None = equal.
    """

    sigma: float = 2.0
    merge_ratio: float = 0.78
    min_size: int = 0
    spacing: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, minimum=0)
        check_number("merge_ratio", self.merge_ratio, minimum=0, maximum=1)
        check_number("min_size", self.min_size, minimum=0, integer=True)
        for edge in self.spacing or ():
            check_number("spacing", edge, minimum=0, exclusive=True)

    def edges(self, ndim: int) -> np.ndarray:
        """(ndim,) edge lengths, the shortest = 1."""
        edges = np.ones(ndim) if self.spacing is None else np.array(self.spacing, np.float64)
        if len(edges) != ndim:
            raise UserError(f"`spacing` needs {ndim} numbers. Received: spacing={self.spacing}")
        return edges / edges.min()

    def reach(self, ndim: int) -> tuple[int, ...]:
        """Pixels per axis that the smoothing reaches."""
        return tuple(int(_TRUNCATE * self.sigma / edge + 0.5) for edge in self.edges(ndim))


def smooth_distance(mask: np.ndarray, settings: SeparationSettings) -> tuple[np.ndarray, np.ndarray]:
    """`(height, distance)`: smoothed and plain distance to the background in shortest edges, float32, 0 outside.

    The outside of the array is not background; without any background the distance is infinite.
    """
    edges = settings.edges(mask.ndim)
    if mask.all():
        return np.ones(mask.shape, np.float32), np.full(mask.shape, np.inf, np.float32)
    distance = ndimage.distance_transform_edt(mask, sampling=None if (edges == 1).all() else edges).astype(np.float32)
    if settings.sigma == 0:
        return distance, distance
    height = ndimage.gaussian_filter(distance, settings.sigma / edges, truncate=_TRUNCATE)
    return np.where(mask, height, np.float32(0)), distance


def separate(mask: np.ndarray, settings: SeparationSettings | None = None) -> np.ndarray:
    """Cut the touching objects of a mask apart.

    Args:
        mask: 2D or 3D, non-zero = object.
        settings: see `SeparationSettings`.

    Returns:
        int32 labels 1..n of the same shape, in the order of the highest points of their first regions.
    """
    settings = settings or SeparationSettings()
    mask = np.asarray(mask) != 0
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    height, _ = smooth_distance(mask, settings)
    labels = climb_block(height, mask, settings.edges(mask.ndim)).labels
    table = join_regions(region_table(labels, height), settings)
    return table.astype(np.int32)[labels]


def join_regions(regions: RegionTable, settings: SeparationSettings) -> np.ndarray:
    """(n + 1,) int64 final label 1..m (0 = removed) of every region: `merge_table`, then the small ones."""
    roots = merge_table(regions, settings.merge_ratio)
    if settings.min_size > 1:
        roots = _absorb_small(regions, roots, settings.min_size)
    present = np.unique(roots[regions.area > 0])
    present = present[present > 0]
    final = np.zeros(len(roots), np.int64)
    final[present] = np.arange(1, len(present) + 1)
    return final[roots]


def _absorb_small(regions: RegionTable, roots: np.ndarray, min_size: int) -> np.ndarray:
    """Give unions below `min_size`, smallest first, to the neighbour they share most contact with."""
    area = np.bincount(roots, weights=regions.area, minlength=len(roots))
    contacts: dict[int, dict[int, int]] = {}
    first, second = roots[regions.first], roots[regions.second]
    small = area < min_size
    for a, b, contact in zip(first.tolist(), second.tolist(), regions.contact.tolist(), strict=True):
        if a != b and (small[a] or small[b]):
            for one, other in ((a, b), (b, a)):
                row = contacts.setdefault(one, {})
                row[other] = row.get(other, 0) + contact
    target = np.arange(len(roots))
    for label in np.argsort(area, kind="stable").tolist():
        if label == 0 or not 0 < area[label] < min_size:
            continue
        row: dict[int, int] = {}
        for other, contact in contacts.get(label, {}).items():
            while target[other] != other:
                other = int(target[other])
            if other != label:
                row[other] = row.get(other, 0) + contact
        best = max(row.items(), key=lambda entry: (entry[1], -entry[0]), default=(0, 0))[0]
        target[label] = best
        if best:
            area[best] += area[label]
            merged = contacts.setdefault(best, {})
            for other, contact in row.items():
                merged[other] = merged.get(other, 0) + contact
    while not np.array_equal(target, target[target]):
        target = target[target]
    return target[roots]


def separate_blocks(
    mask: Any,
    out: Any,
    settings: SeparationSettings | None = None,
    *,
    block: int | Sequence[int] = 256,
    halo: int = 64,
    heights: Any = None,
) -> int:
    """`separate` for a mask that need not fit in memory: the very same labels.

    In memory are one block with its halo (about 60 bytes per voxel) and the table of regions.

    Args:
        mask: array or lazy array, non-zero = object.
        out: writable integer array of the same shape (uint32 is enough); receives the labels.
        settings: see `SeparationSettings`.
        block: edge lengths of the blocks, pixels.
        halo: context read on every side, pixels; more than the largest distance to the background plus the smoothing.
        heights: writable float32 array of the same shape for the smoothed distance (a memory map); None = compute it
            twice instead of keeping it.

    Returns:
        Number of objects; their labels are 1..n.

    Raises:
        UserError: an object is thicker than the halo allows, or `out` cannot hold the numbers of the regions.
    """
    settings = settings or SeparationSettings()
    shape = tuple(mask.shape)
    if tuple(out.shape) != shape:
        raise UserError(f"`out` must have the shape of the mask, {shape}. Received: {tuple(out.shape)}")
    limit = np.iinfo(np.dtype(out.dtype)).max
    count = 1
    peaks, parents = [np.zeros(1, np.int64)], []
    for box in blocks(shape, block):
        height, inside, inner = _landscape(mask, box, shape, settings, halo)
        part = climb_block(height, inside, settings.edges(len(shape)), inner)
        number = len(part.roots)
        if count + number > limit:
            raise UserError(f"`out` of type {out.dtype} cannot hold the regions. Use uint32, or a larger `sigma`.")
        out[box] = np.where(part.labels > 0, part.labels.astype(np.int64) + (count - 1), 0).astype(out.dtype)
        if heights is not None:
            heights[box] = height[inner]
        start = np.array([b.start - i.start for b, i in zip(box, inner, strict=True)])
        peaks.append(np.ravel_multi_index(tuple((part.roots + start).T), shape))
        parents.append((part.exits.astype(np.int64) + count - 1, part.targets + start))
        count += number
    parent = np.arange(count)
    for (exits, targets), box in zip(parents, blocks(shape, block), strict=True):
        if len(exits):
            outer = _grown(box, 1, shape)
            around = np.asarray(out[outer])
            parent[exits] = around[tuple((targets - [s.start for s in outer]).T)]
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    position = np.concatenate(peaks)
    roots = np.unique(parent)[1:]
    number = np.zeros(count, np.int64)
    number[roots[np.argsort(position[roots], kind="stable")]] = np.arange(1, len(roots) + 1)
    number = number[parent]
    graph = RegionGraph()
    for box in blocks(shape, block):
        outer = _grown(box, 1, shape)
        inner = tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))
        labels = number[np.asarray(out[outer])]
        if not labels[inner].any():
            continue
        if heights is not None:
            height = np.asarray(heights[outer])
        else:
            height, _, place = _landscape(mask, box, shape, settings, halo)
            height = height[
                tuple(slice(p.start - i.start, p.start - i.start + n) for p, i, n in
                      zip(place, inner, labels.shape, strict=True))
            ]  # fmt: skip
        graph.add(labels, height, inner)
    final = join_regions(graph.table(), settings)[number]
    for box in blocks(shape, block):
        out[box] = final[np.asarray(out[box])].astype(out.dtype)
    return int(final.max(initial=0))


def _landscape(
    mask: Any, box: Box, shape: tuple[int, ...], settings: SeparationSettings, halo: int
) -> tuple[np.ndarray, np.ndarray, Box]:
    """Smoothed distance and mask of a block with its halo, right on the block and one pixel around; its place."""
    outer = _grown(box, halo, shape)
    inner = tuple(slice(b.start - o.start, b.stop - o.start) for b, o in zip(box, outer, strict=True))
    inside = np.asarray(mask[outer]) != 0
    height, distance = smooth_distance(inside, settings)
    reach = settings.reach(len(shape))
    needed = tuple(
        slice(max(i.start - r - 1, 0), min(i.stop + r + 1, n))
        for i, r, n in zip(inner, reach, inside.shape, strict=True)
    )
    room = min(
        ((halo - r - 1) * edge for r, edge, o, n in zip(reach, settings.edges(len(shape)), outer, shape, strict=True)
         if o.start > 0 or o.stop < n),
        default=np.inf,
    )  # fmt: skip
    deepest = float(distance[needed].max(initial=0))
    if inside[inner].any() and deepest > room:
        wanted = "the whole object" if np.isinf(deepest) else f"about {int(deepest + max(reach) + 2)}"
        raise UserError(
            f"An object is thicker than the context of a block: raise `halo` (--halo) to {wanted}, or work in memory. "
            f"Received: halo={halo}"
        )
    return height, inside, inner


def _grown(box: Box, margin: int, shape: tuple[int, ...]) -> Box:
    """`box` enlarged by `margin` on all sides, inside an array of `shape`."""
    return tuple(slice(max(s.start - margin, 0), min(s.stop + margin, n)) for s, n in zip(box, shape, strict=True))
