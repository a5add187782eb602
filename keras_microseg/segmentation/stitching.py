"""Join labels across the faces of blocks: exact connected components and joined instances, out of core, 2D and 3D.

Three passes over the blocks: label each by itself, with ids made global by an offset; compare the ids on both sides of
every face and gather in a union-find which belong together; rewrite the ids. In memory are one block, two planes and
the table of ids.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from keras_microseg.checks import UserError, standardize_tuple
from keras_microseg.segmentation.labeling import label_components

Box = tuple[slice, ...]


class LabelUnion:
    """Union-find over the ids 1, 2, ... that `reserve` hands out; 0 is background and joins nothing."""

    def __init__(self) -> None:
        self._num_ids = 1
        self._pairs: list[np.ndarray] = []

    def reserve(self, count: int) -> int:
        """Hand out `count` new ids; returns the offset to add to local ids 1..count."""
        offset = self._num_ids - 1
        self._num_ids += int(count)
        return offset

    def join(self, first: np.ndarray, second: np.ndarray) -> None:
        """State that `first[i]` and `second[i]` are one object; entries where either is 0 are skipped."""
        first, second = np.ravel(first), np.ravel(second)
        both = (first != 0) & (second != 0)
        if both.any():
            self._pairs.append(np.unique(np.stack([first[both], second[both]], axis=1).astype(np.int64), axis=0))

    def resolve(self) -> np.ndarray:
        """(ids + 1,) int64 array from global id to final id; final ids are 1..n in the order of the first global id."""
        pairs = np.concatenate(self._pairs) if self._pairs else np.zeros((0, 2), np.int64)
        ones = np.ones(len(pairs), np.int8)
        graph = sparse.coo_array((ones, (pairs[:, 0], pairs[:, 1])), shape=(self._num_ids, self._num_ids))
        _, component = csgraph.connected_components(graph.tocsr(), directed=False)
        _, first, index = np.unique(component, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return rank[index]


def blocks(shape: Sequence[int], block_size: int | Sequence[int]) -> Iterator[Box]:
    """Boxes of at most `block_size` that cover an array of `shape` once, in row-major order."""
    sizes = standardize_tuple(block_size, len(shape), "block_size")
    ranges = [range(0, length, size) for length, size in zip(shape, sizes, strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(slice(a, min(a + b, n)) for a, b, n in zip(starts, sizes, shape, strict=True))


def label_blocks(mask: Any, out: Any, block_size: int | Sequence[int], *, connectivity: int = 4) -> int:
    """Connected components of a mask that need not fit in memory.

    Equal to `label_components` of the whole mask up to the numbering.

    Args:
        mask: array or lazy array (`shape`, `__getitem__` with slices), 2D or 3D; non-zero = object.
        out: writable integer array of the same shape (NumPy, `numpy.memmap`, Zarr, HDF5); receives the labels.
        block_size: edge lengths of the blocks, pixels.
        connectivity: 4 or 8; in 3D these mean 6 and 26.

    Returns:
        Number of components; their labels are 1..n.
    """
    return stitch_blocks(
        lambda box: label_components(np.asarray(mask[box]), connectivity),
        out,
        block_size,
        connectivity=connectivity,
    )


def stitch_blocks(
    label_block: Callable[[Box], np.ndarray],
    out: Any,
    block_size: int | Sequence[int],
    *,
    joined: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
    connectivity: int = 4,
) -> int:
    """Label an array block by block and join what meets at the faces.

    Args:
        label_block: maps a box to an integer label image of that box, ids from 1.
        out: writable integer array, 2D or 3D; its shape is the shape of the whole.
        block_size: edge lengths of the blocks, pixels.
        joined: decides which facing pairs of global ids (two arrays of equal shape, 0 = background) are one object;
            default: all pairs of objects.
        connectivity: which pixels face each other: 4 across the face only, 8 also by edges and corners.

    Returns:
        Number of objects; their labels are 1..n in the order of the blocks.

    Raises:
        UserError: a block has the wrong shape, or `out` cannot hold the ids.
    """
    shape = tuple(out.shape)
    limit = np.iinfo(np.dtype(out.dtype)).max
    union = LabelUnion()
    for box in blocks(shape, block_size):
        labels = np.asarray(label_block(box))
        if labels.shape != tuple(s.stop - s.start for s in box):
            raise UserError(f"`label_block` must return the shape of its box. Received: {labels.shape} for {box}")
        count = int(labels.max(initial=0))
        offset = union.reserve(count)
        if offset + count > limit:
            raise UserError(f"`out` of type {out.dtype} cannot hold {offset + count} labels. Use a wider integer type.")
        out[box] = np.where(labels != 0, labels.astype(np.int64) + offset, 0).astype(out.dtype)
    for box in blocks(shape, block_size):
        for axis in range(len(shape)):
            if box[axis].start > 0:
                _join_face(out, box, axis, union, joined, connectivity)
    final = union.resolve()
    for box in blocks(shape, block_size):
        out[box] = final[np.asarray(out[box])].astype(out.dtype)
    return int(final.max(initial=0))


def join_overlap(union: LabelUnion, first: np.ndarray, second: np.ndarray, *, min_iou: float = 0.5) -> None:
    """Join instances that two tiles saw in the same pixels.

    Args:
        union: receives the joins.
        first, second: global ids of one region, as labelled by two overlapping tiles.
        min_iou: instances are one when their IoU inside the region is greater.
    """
    first, second = np.ravel(first), np.ravel(second)
    both = (first != 0) & (second != 0)
    if not both.any():
        return
    pairs, common = np.unique(np.stack([first[both], second[both]]), axis=1, return_counts=True)
    areas = []
    for ids, wanted in ((first, pairs[0]), (second, pairs[1])):
        present, count = np.unique(ids, return_counts=True)
        areas.append(count[np.searchsorted(present, wanted)])
    same = common > min_iou * (areas[0] + areas[1] - common)
    union.join(pairs[0][same], pairs[1][same])


def _join_face(
    out: Any,
    box: Box,
    axis: int,
    union: LabelUnion,
    joined: Callable[[np.ndarray, np.ndarray], np.ndarray] | None,
    connectivity: int,
) -> None:
    """Compare the first plane of `box` with the plane before it, one pixel further sideways for corners."""
    margin = 1 if connectivity == 8 else 0
    here = tuple(slice(s.start, s.start + 1) if a == axis else s for a, s in enumerate(box))
    there = tuple(
        slice(s.start - 1, s.start) if a == axis else slice(max(s.start - margin, 0), min(s.stop + margin, n))
        for a, (s, n) in enumerate(zip(box, out.shape, strict=True))
    )
    plane, before = np.asarray(out[here]), np.asarray(out[there])
    widths = [
        (0, 0) if a == axis else (margin - (h.start - t.start), margin - (t.stop - h.stop))
        for a, (h, t) in enumerate(zip(here, there, strict=True))
    ]
    before = np.pad(before, widths)
    steps = [range(1) if a == axis else range(2 * margin + 1) for a in range(plane.ndim)]
    for step in itertools.product(*steps):
        other = before[tuple(slice(k, k + n) for k, n in zip(step, plane.shape, strict=True))]
        both = (plane != 0) & (other != 0)
        if joined is not None:
            both &= joined(plane, other)
        union.join(plane[both], other[both])
