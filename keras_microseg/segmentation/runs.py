"""Label images and volumes as runs: everything a particle table needs, without touching background pixels twice.

A run is a stretch of equal label inside one line along the last axis. A particle of 400 pixels has about 23 of them, so
sums over runs in closed form are exact and some twenty times cheaper than sums over pixels; connected components are
found among the runs as well. The image is read once, in strips, so it may be a memory map or any lazy array; memory
grows with the objects, not with the image. Any number of axes >= 2.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from keras_microseg.checks import UserError, check_choice

_STRIP_PIXELS = 1 << 19
_RUNS_AT_ONCE = 1 << 16


def segment_sum(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum of each stretch `values[starts[i]:starts[i + 1]]`; `starts` is (n + 1,), no stretch is empty."""
    return segment_reduce(np.add, values, starts)


def segment_reduce(ufunc: np.ufunc, values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`ufunc.reduce` of each stretch; an empty array when there is no stretch."""
    return ufunc.reduceat(values, starts[:-1]) if len(starts) > 1 else values[:0]


def expand(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices `starts[0], ..., starts[0] + lengths[0] - 1, starts[1], ...` (lengths >= 0) as one int64 array."""
    stops = np.cumsum(lengths, dtype=np.int64)
    total = int(stops[-1]) if len(stops) else 0
    return np.repeat(starts - (stops - lengths), lengths) + np.arange(total)


def object_chunks(starts: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges `(first, stop)` of objects with at most `limit` elements together, or one object.

    Working in such pieces keeps temporaries small: in the cache of the processor, and in memory for huge images.
    """
    first = 0
    while first < len(starts) - 1:
        stop = max(int(np.searchsorted(starts, starts[first] + limit, side="right")) - 1, first + 1)
        yield first, stop
        first = stop


@dataclasses.dataclass(frozen=True)
class LabelRuns:
    """Runs of a label image in image order, and the order that groups them by object.

    Attributes:
        shape: lengths of the axes in pixels; (height, width) in 2D.
        labels: (n,) the labels present, ascending, 0 left out.
        owner: (m,) int32 index into `labels` of every run; runs are ordered by line, then column.
        line: (m,) int32 number of the line along the last axis, in raster order; in 2D the row.
        x0, x1: (m,) int32 first column and one past the last column of every run.
        values: grey values of the object pixels in image order, or None.
    """

    shape: tuple[int, ...]
    labels: np.ndarray
    owner: np.ndarray
    line: np.ndarray
    x0: np.ndarray
    x1: np.ndarray
    values: np.ndarray | None = None

    @cached_property
    def order(self) -> np.ndarray:
        """(m,) permutation of the runs by object, then row, then column."""
        n = len(self.owner)  # a sparse matrix sorts its entries by row in linear time
        entries = (np.ones(n, bool), (self.owner, np.arange(n, dtype=np.int32)))
        return sparse.coo_array(entries, shape=(len(self.labels), n)).tocsr().indices

    @cached_property
    def starts(self) -> np.ndarray:
        """(n + 1,) first run of each object in `order`."""
        counts = np.bincount(self.owner, minlength=len(self.labels))
        return np.concatenate([[0], np.cumsum(counts)])

    @cached_property
    def sorted(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(owner, line, x0, x1) as int64, grouped by object."""
        return tuple(part[self.order].astype(np.int64) for part in (self.owner, self.line, self.x0, self.x1))

    @cached_property
    def sorted_lines(self) -> tuple[np.ndarray, ...]:
        """Position of the runs in `sorted` along every axis but the last, int64."""
        return tuple(np.unravel_index(self.sorted[1], self.shape[:-1]))

    @cached_property
    def adjacency(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How runs meet runs of the next row; 2D.

        Returns:
            `(vertical, diagonal, touching)`: per object the number of pixel pairs one step apart down a column and
            along both diagonals with both pixels in the object, (n,) int64 each; and (k, 2) index pairs of different
            objects that share an edge or a corner, each pair once, smaller index first.
        """
        n = len(self.labels)
        pitch = self.shape[1] + 2  # longer than a row, so that runs of different rows never seem to meet
        base = self.line.astype(np.int64) * pitch
        begin, end = base + self.x0, base + self.x1
        beside = np.flatnonzero(end[:-1] == begin[1:])
        met = [np.stack([self.owner[beside], self.owner[beside + 1]])]
        vertical, diagonal = np.zeros(n), np.zeros(n)
        for start in range(0, len(begin), _RUNS_AT_ONCE):
            part = slice(start, start + _RUNS_AT_ONCE)
            first = np.searchsorted(end, begin[part] + pitch, side="left")
            last = np.searchsorted(begin, end[part] + pitch, side="right")
            lengths = np.maximum(last - first, 0)
            upper, lower = np.repeat(np.arange(start, start + len(first)), lengths), expand(first, lengths)
            same = self.owner[upper] == self.owner[lower]
            met.append(np.stack([self.owner[upper[~same]], self.owner[lower[~same]]]))

            upper, lower = upper[same], lower[same]
            left, right, left_b, right_b = self.x0[upper], self.x1[upper], self.x0[lower], self.x1[lower]
            straight, falling, rising = (
                np.maximum(np.minimum(right + shift, right_b) - np.maximum(left + shift, left_b), 0)
                for shift in (0, 1, -1)
            )
            vertical += np.bincount(self.owner[upper], weights=straight, minlength=n)
            diagonal += np.bincount(self.owner[upper], weights=falling + rising, minlength=n)

        one, two = np.sort(np.concatenate(met, axis=1).astype(np.int64), axis=0)
        touching = np.stack(np.divmod(np.unique(one * max(n, 1) + two), max(n, 1)), axis=1)
        return vertical.astype(np.int64), diagonal.astype(np.int64), touching


def meeting_runs(
    runs: LabelRuns, connectivity: int = 8, limit: int = 1 << 13
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of runs that touch: `(first, second)` indices in image order, piece by piece.

    Args:
        runs: any number of axes.
        connectivity: 4 = by faces, 8 = by edges and corners too.
        limit: runs worked on at once.
    """
    lead = runs.shape[:-1]
    pitch = runs.shape[-1] + 2  # longer than a line, so that runs of different lines never seem to meet
    strides = [int(np.prod([n + 2 for n in lead[axis + 1 :]])) * pitch for axis in range(len(lead))]
    position = np.unravel_index(runs.line, lead)
    small = pitch * int(np.prod([n + 2 for n in lead])) < np.iinfo(np.int32).max  # half the memory to search
    key = np.int32 if small else np.int64
    base = sum(p.astype(key) * key(stride) for p, stride in zip(position, strides, strict=True))
    begin, end = base + runs.x0, base + runs.x1
    beside = np.flatnonzero(end[:-1] == begin[1:])
    yield beside, beside + 1
    sides = ("left", "right") if connectivity == 8 else ("right", "left")
    for step in itertools.product((-1, 0, 1), repeat=len(lead)):
        if step <= (0,) * len(lead) or (connectivity == 4 and np.abs(step).sum() > 1):
            continue
        shift = key(np.dot(step, strides))
        for start in range(0, len(begin), limit):
            part = slice(start, start + limit)
            # only a short stretch can meet these runs, and a search in it stays in the cache
            low = int(np.searchsorted(end, begin[start] + shift))
            high = int(np.searchsorted(begin, end[part][-1] + shift, side="right"))
            first = low + np.searchsorted(end[low:high], begin[part] + shift, side=sides[0])
            last = low + np.searchsorted(begin[low:high], end[part] + shift, side=sides[1])
            lengths = np.maximum(last - first, 0)
            yield np.repeat(np.arange(start, start + len(first)), lengths), expand(first, lengths)


def connect_runs(runs: LabelRuns, connectivity: int = 4) -> LabelRuns:
    """The same pixels with their connected components as objects, labels 1..n in raster order of the first pixels.

    Args:
        runs: objects that touch become one, whatever their labels.
        connectivity: 4 (shared faces) or 8 (edges and corners too).
    """
    check_choice("connectivity", connectivity, (4, 8))
    pairs = [np.stack(pair).astype(np.int32) for pair in meeting_runs(runs, connectivity)]
    first, second = np.concatenate(pairs, axis=1)
    graph = sparse.coo_array((np.ones(len(first), bool), (first, second)), shape=(len(runs.line),) * 2)
    count, owner = csgraph.connected_components(graph, directed=False)
    return dataclasses.replace(runs, labels=np.arange(1, count + 1, dtype=np.int32), owner=owner.astype(np.int32))


def paint_runs(runs: LabelRuns) -> np.ndarray:
    """The label image of the runs, int32."""
    size = int(np.prod(runs.shape))
    begin = runs.line.astype(np.int64) * runs.shape[-1] + runs.x0
    stop = begin + (runs.x1 - runs.x0)
    ids = runs.labels.astype(np.int32)[runs.owner]
    out = np.empty(size, np.int32)
    changes = np.empty(min(size, _STRIP_PIXELS) + 1, np.int32)
    for start in range(0, size, _STRIP_PIXELS):  # pieces that stay in the cache: changes from pixel to pixel, their sum
        piece = out[start : start + _STRIP_PIXELS]
        first = int(np.searchsorted(stop, start, side="right"))
        last = int(np.searchsorted(begin, start + len(piece)))
        changes[: len(piece) + 1] = 0
        changes[np.maximum(begin[first:last] - start, 0)] = ids[first:last]
        changes[np.minimum(stop[first:last] - start, len(piece))] -= ids[first:last]
        np.cumsum(changes[: len(piece)], out=piece)
    return out.reshape(runs.shape)


def find_runs(labels: Any, intensity: Any = None) -> LabelRuns:
    """Read a label image or volume, and the grey values of its objects, once.

    Args:
        labels: (H, W) or (D, H, W) integer array or lazy array; 0 = background, any positive labels, gaps allowed.
        intensity: real array or lazy array of the same shape, or None.

    Raises:
        UserError: fewer than two axes, not integer, negative labels, shapes that differ, or grey values not real.
    """
    shape, dtype = tuple(labels.shape), np.dtype(labels.dtype)
    if len(shape) < 2:
        raise UserError(f"`labels` must be a label image (H, W) or volume (D, H, W). Received: shape {shape}")
    if dtype.kind not in "iu":
        remedy = "Label the mask first (segmentation.labeling.label_components)." if dtype.kind == "b" else ""
        raise UserError(f"`labels` must hold whole numbers, 0 = background. Received: dtype {dtype}. {remedy}".strip())
    check_grey(intensity, shape)
    width, plane = shape[-1], int(np.prod(shape[1:]))
    lines = plane // max(width, 1)  # of one entry of the first axis
    parts, values = [], []
    rows = max(1, _STRIP_PIXELS // max(plane, 1))
    for top in range(0, shape[0] if plane else 0, rows):
        strip = np.asarray(labels[top : top + rows])
        padded = np.zeros((*strip.shape[:-1], width + 1), dtype)  # a column of background ends every run at its line
        padded[..., :width] = strip
        flat = padded.ravel()
        edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        if flat[0]:
            edges = np.concatenate([[0], edges])
        ids = flat[edges]
        is_object = ids != 0
        begin, stop = edges[is_object], edges[1:][is_object[:-1]]
        line, x0 = np.divmod(begin, width + 1)
        if intensity is not None:
            values.append(np.asarray(intensity[top : top + rows])[strip != 0])
        line += top * lines
        parts.append((ids[is_object], line.astype(np.int32), x0.astype(np.int32), (stop - begin).astype(np.int32)))
    if not parts:
        parts = [(np.zeros(0, dtype), *(np.zeros(0, np.int32),) * 3)]
    ids, line, x0, length = (np.concatenate(part) for part in zip(*parts, strict=True))
    if dtype.kind == "i" and len(ids) and ids.min() < 0:
        raise UserError(f"`labels` must not be negative. Received: smallest label {ids.min()}")
    grey = None
    if intensity is not None:
        grey = np.concatenate(values) if values else np.zeros(0, np.float32)
    present, owner = _index_labels(ids)
    return LabelRuns(shape, present, owner, line, x0, x0 + length, grey)


def check_grey(intensity: Any, shape: tuple[int, ...]) -> None:
    """`UserError` unless `intensity` is None or a real image of `shape`."""
    if intensity is None:
        return
    if tuple(intensity.shape) != shape:
        raise UserError(
            f"`intensity` must be a grey image of the size of the labels, {shape}. Received: {tuple(intensity.shape)}"
        )
    if np.dtype(intensity.dtype).kind not in "biuf":
        raise UserError(f"`intensity` must hold real numbers. Received: dtype {intensity.dtype}")


def _index_labels(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct `ids`, ascending, and the int32 index of each; a table look-up when the ids are small."""
    highest = int(ids.max()) if len(ids) else 0
    if highest > max(8 * len(ids), 1 << 16):
        present, owner = np.unique(ids, return_inverse=True)
        return present, owner.astype(np.int32)
    is_present = np.zeros(highest + 1, bool)
    is_present[ids] = True
    lookup = np.cumsum(is_present, dtype=np.int32) - 1
    return np.flatnonzero(is_present).astype(ids.dtype), lookup[ids].astype(np.int32)
