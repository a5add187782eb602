"""Hills of a landscape: every pixel climbs to a peak, and hills whose pass is nearly as high as a peak are joined.

A watershed without flooding: each pixel points to its steepest higher neighbour, so a region is the set of pixels whose
path ends at one peak. The pointer depends on the direct neighbours alone and the joining on one table of peaks and
passes, so any cut into blocks gives exactly the regions of the whole. Works in any number of dimensions and with edge
lengths that differ.

References:
    Beucher and Lantuejoul (1979), catchment basins by steepest descent; Roerdink and Meijster (2000), the watershed
    transform: definitions, algorithms; Najman and Schmitt (1996), dynamics of contours (joining by pass and peak).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_microseg.checks import UserError

_SLAB_PIXELS = 1 << 21


def half_neighbourhood(ndim: int, connectivity: int = 8) -> list[tuple[int, ...]]:
    """One of every two opposite steps to the neighbours: 2 or 4 in 2D, 3 or 13 in 3D, in lexical order."""
    steps = [step for step in itertools.product((-1, 0, 1), repeat=ndim) if step > (0,) * ndim]
    return steps if connectivity == 8 else [step for step in steps if np.abs(step).sum() == 1]


def shifted_pair(shape: Sequence[int], step: Sequence[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Slices `(here, there)` of an array of `shape` with `there` = `here` moved by `step`."""
    here = tuple(slice(max(0, -s), n - max(0, s)) for s, n in zip(step, shape, strict=True))
    there = tuple(slice(max(0, s), n - max(0, -s)) for s, n in zip(step, shape, strict=True))
    return here, there


def uphill_steps(height: np.ndarray, mask: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Which neighbour each pixel climbs to.

    Args:
        height: float array, finite.
        mask: bool array of the same shape; only pixels inside climb, and only to pixels inside.
        spacing: edge lengths of a pixel; slopes are per length. None = 1.

    Returns:
        int8 array: 0 = stays (a peak, or outside the mask), else +k / -k for the k-th of `half_neighbourhood` forwards
        or backwards. Of equal slopes the first in the order +1, -1, +2, -2, ... is taken; of pixels of equal height
        with nothing higher around, the pixel goes forwards.
    """
    steps = half_neighbourhood(height.ndim)
    lengths = np.sqrt(np.square(np.array(steps) * (np.ones(height.ndim) if spacing is None else spacing)).sum(axis=1))
    code = np.zeros(height.shape, np.int8)
    plane = max(int(np.prod(height.shape[1:])), 1)
    rows = max(_SLAB_PIXELS // plane, 1)
    height = np.where(mask, height, -np.inf).astype(np.float32, copy=False)
    for top in range(0, height.shape[0], rows):
        first, last = max(top - 1, 0), min(top + rows + 1, height.shape[0])
        part, inside = height[first:last], mask[first:last]
        own = slice(top - first, min(top + rows, height.shape[0]) - first)
        best = np.zeros(part.shape, np.float32)
        chosen = np.zeros(part.shape, np.int8)
        level = np.zeros(part.shape, np.int8)
        with np.errstate(invalid="ignore"):  # -inf - -inf outside
            for number, (step, length) in enumerate(zip(steps, lengths, strict=True), start=1):
                here, there = shifted_pair(part.shape, step)
                rise = part[there] - part[here]
                np.copyto(level[here], number, where=(rise == 0) & (level[here] == 0))
                rise /= np.float32(length)
                for at, sign in ((here, 1), (there, -1)):
                    steeper = rise > best[at]
                    np.copyto(best[at], rise, where=steeper)
                    np.copyto(chosen[at], sign * number, where=steeper)
                    if sign == 1:
                        np.negative(rise, out=rise)
        chosen = np.where(chosen != 0, chosen, level)
        code[top : top + rows] = np.where(inside, chosen, 0)[own]
    return code


def climb(height: np.ndarray, mask: np.ndarray, spacing: Sequence[float] | None = None) -> np.ndarray:
    """Regions of the mask whose pixels climb to the same peak.

    Flat tops may give several regions; `merge_basins` joins them at any ratio.

    Args:
        height: finite float array, for example the distance to the background.
        mask: non-zero = may be part of a region.
        spacing: edge lengths of a pixel, None = 1.

    Returns:
        int32 labels 1..n in the order of the peaks, 0 outside the mask.
    """
    mask = np.asarray(mask) != 0
    if mask.shape != np.shape(height):
        raise UserError(f"`height` and `mask` must have one shape. Received: {np.shape(height)} and {mask.shape}")
    return climb_block(np.asarray(height, np.float32), mask, spacing).labels


class Climb(NamedTuple):
    """Regions of a part of an array, and where paths leave it.

    Attributes:
        labels: int32 labels 1..n of the part.
        roots: (n, ndim) pixel where the paths of each region end inside the part, in pixels of the array given.
        exits: (k,) int32 labels whose path goes on outside.
        targets: (k, ndim) the pixels they go on to.
    """

    labels: np.ndarray
    roots: np.ndarray
    exits: np.ndarray
    targets: np.ndarray


def climb_block(
    height: np.ndarray,
    mask: np.ndarray,
    spacing: Sequence[float] | None = None,
    inner: tuple[slice, ...] | None = None,
) -> Climb:
    """`climb` inside a part of an array.

    Args:
        height, mask, spacing: as for `climb`; a margin of one pixel about `inner` where the whole array has one.
        inner: the part; None = everything.
    """
    inner = tuple(slice(0, n) for n in height.shape) if inner is None else inner
    code = uphill_steps(height, mask, spacing)[inner]
    inside = mask[inner]
    shape = inside.shape
    steps = np.array([(0,) * len(shape), *half_neighbourhood(len(shape))])
    steps = np.concatenate([steps, -steps[:0:-1]])  # indexed by code, negative codes from the end
    strides = np.array([int(np.prod(shape[axis + 1 :])) for axis in range(len(shape))])
    inside = np.flatnonzero(inside)
    rank = np.zeros(code.size, np.int32)
    rank[inside] = np.arange(len(inside), dtype=np.int32)
    moves = code.ravel()[inside]
    leaves = np.zeros(len(inside), bool)
    for axis, size in enumerate(shape):  # only pixels at a face can leave
        position = inside // strides[axis] % size
        move = steps[:, axis].astype(np.int8)[moves]
        leaves |= ((position == 0) & (move < 0)) | ((position == size - 1) & (move > 0))
    target = inside + (steps @ strides)[np.where(leaves, 0, moves)]
    parent = rank[target]
    del target
    while True:  # pointer jumping: every path is halved in each round
        further = parent[parent]
        if np.array_equal(further, parent):
            break
        parent = further
    is_root = parent == np.arange(len(parent), dtype=np.int32)
    number = np.cumsum(is_root, dtype=np.int32)
    labels = np.zeros(code.size, np.int32)
    labels[inside] = number[parent]
    start = np.array([part.start for part in inner])
    roots = np.stack(np.unravel_index(inside[is_root], shape), axis=1) + start
    exits = np.flatnonzero(leaves)
    targets = np.stack(np.unravel_index(inside[exits], shape), axis=1) + steps[moves[exits]] + start
    return Climb(labels.reshape(shape), roots, number[exits], targets)


class RegionGraph:
    """Peaks, areas and passes of labelled regions, gathered block by block.

    Args:
        connectivity: 8 = regions meet over corners too, 4 = over faces only.
    """

    def __init__(self, connectivity: int = 8):
        self.connectivity = connectivity
        self._peak, self._area = np.full(1, -np.inf, np.float32), np.zeros(1, np.int64)
        self._passes: list[tuple[np.ndarray, ...]] = []

    def add(self, labels: np.ndarray, height: np.ndarray, inner: tuple[slice, ...] | None = None) -> None:
        """Take in a block.

        Args:
            labels, height: a block, with a margin of one pixel on every side where the whole array has one.
            inner: the block itself; None = everything.
        """
        inner = tuple(slice(0, n) for n in labels.shape) if inner is None else inner
        own = labels[inner].ravel()
        size = int(own.max(initial=0)) + 1
        if size > len(self._peak):
            self._peak = np.pad(self._peak, (0, size - len(self._peak)), constant_values=-np.inf)
            self._area = np.pad(self._area, (0, size - len(self._area)))
        np.maximum.at(self._peak, own, height[inner].ravel())
        self._area[:size] += np.bincount(own, minlength=size)
        for step in half_neighbourhood(labels.ndim, self.connectivity):
            here = tuple(
                slice(max(i.start, -s), min(i.stop, n - max(s, 0)))
                for i, s, n in zip(inner, step, labels.shape, strict=True)
            )
            there = tuple(slice(h.start + s, h.stop + s) for h, s in zip(here, step, strict=True))
            a, b = labels[here], labels[there]
            places = np.flatnonzero((a != b) & (a != 0) & (b != 0))
            if not len(places):
                continue
            places = np.unravel_index(places, a.shape)
            low = np.minimum(height[here][places], height[there][places])
            a, b = a[places], b[places]
            self._passes.append(_strongest(np.minimum(a, b), np.maximum(a, b), low, np.ones(len(a), np.int64)))

    def table(self) -> RegionTable:
        """What was gathered so far."""
        area, peak = self._area.copy(), np.where(self._area > 0, self._peak, 0)
        area[0] = peak[0] = 0
        if not self._passes:
            empty = np.zeros(0, np.int64)
            return RegionTable(peak, area, empty, empty, np.zeros(0, np.float32), empty)
        return RegionTable(peak, area, *_strongest(*(np.concatenate(p) for p in zip(*self._passes, strict=True))))


class RegionTable(NamedTuple):
    """Regions and who meets whom.

    Attributes:
        peak: (n + 1,) float32 greatest height of every label, 0 for the background.
        area: (n + 1,) int64 pixels.
        first, second: (k,) labels of each pair of neighbours, first < second.
        saddle: (k,) float32 pass: the highest, over the pixel pairs where they meet, of the lower pixel.
        contact: (k,) int64 number of those pixel pairs.
    """

    peak: np.ndarray
    area: np.ndarray
    first: np.ndarray
    second: np.ndarray
    saddle: np.ndarray
    contact: np.ndarray


def region_table(labels: np.ndarray, height: np.ndarray, connectivity: int = 8) -> RegionTable:
    """`RegionTable` of a whole label image, gathered in slabs."""
    graph = RegionGraph(connectivity)
    plane = max(int(np.prod(labels.shape[1:])), 1)
    rows = max(_SLAB_PIXELS // plane, 1)
    for top in range(0, labels.shape[0], rows):
        first, last = max(top - 1, 0), min(top + rows + 1, labels.shape[0])
        own = slice(top - first, min(top + rows, labels.shape[0]) - first)
        graph.add(labels[first:last], height[first:last], (own, *(slice(0, n) for n in labels.shape[1:])))
    return graph.table()


def merge_table(regions: RegionTable, ratio: float) -> np.ndarray:
    """Which regions become one.

    Of all neighbours the pair with the highest pass / lower peak is joined first; the peak of a union is the higher of
    its two. No length enters: objects of any size are judged by their outline alone. Pairs whose pass is as high as
    the lower peak (two parts of a flat top) are joined at any ratio.

    Args:
        regions: see `RegionTable`.
        ratio: pairs with pass / lower peak > ratio are joined.

    Returns:
        (n + 1,) int64 label of every label; a union has the label of its highest member.
    """
    peak, first, second, saddle = regions.peak, regions.first, regions.second, regions.saddle
    parent = list(range(len(peak)))
    lower = np.minimum(peak[first], peak[second])
    quotient = np.divide(saddle, lower, out=np.ones(len(saddle)), where=lower > 0)
    candidates = np.flatnonzero(quotient >= min(ratio, 1))  # a union is never lower than its parts
    candidates = candidates[np.argsort(-quotient[candidates], kind="stable")]
    heights = peak.tolist()
    for a, b, level in zip(
        first[candidates].tolist(), second[candidates].tolist(), saddle[candidates].tolist(), strict=True
    ):
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        least = min(heights[a], heights[b])
        if a != b and (level > ratio * least or level >= least):
            low, high = (a, b) if heights[a] < heights[b] else (b, a)
            parent[low] = high
    roots = np.array(parent)
    while not np.array_equal(roots, roots[roots]):
        roots = roots[roots]
    return roots


def merge_basins(labels: np.ndarray, height: np.ndarray, ratio: float) -> np.ndarray:
    """Join neighbouring regions whose pass is nearly as high as the lower of their peaks (`merge_table`).

    Args:
        labels: int labels of any number of dimensions, for example of a watershed or of `climb`.
        height: float, high inside the objects (distance to the background).
        ratio: pairs with pass / lower peak > ratio are joined.

    Returns:
        int32 labels; a union has the id of its highest member.
    """
    labels = np.asarray(labels)
    if not labels.size:
        return labels.astype(np.int32)
    return merge_table(region_table(labels, height), ratio).astype(np.int32)[labels]


def _strongest(
    first: np.ndarray, second: np.ndarray, saddle: np.ndarray, contact: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Pairs once each, in order, with the greatest `saddle` and the sum of `contact`."""
    order = np.lexsort((second, first))
    first, second = first[order].astype(np.int64), second[order].astype(np.int64)
    starts = np.flatnonzero((np.diff(first, prepend=-1) != 0) | (np.diff(second, prepend=-1) != 0))
    return (
        first[starts],
        second[starts],
        np.maximum.reduceat(saddle[order], starts),
        np.add.reduceat(contact[order], starts),
    )
