"""Connected components of masks as runs, ready for painting and measuring.

For volumes with 26 neighbours the mask is packed to one bit per voxel, and lines are taken together in bundles of
2 x 2: all voxels of a bundle that share a column touch each other, and so do those of columns side by side. So a run of
a bundle is one connected piece, there are about four times fewer of them than runs, and most of the work is logic on
bits. What is left to join: bundles that meet by a face, and the few pairs that touch across an edge alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from keras_microseg.segmentation.runs import LabelRuns, check_grey, connect_runs, find_runs

_COUNTS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, np.newaxis], axis=1).sum(axis=1, dtype=np.int32)


def label_runs(mask: np.ndarray, connectivity: int = 8, intensity: Any = None) -> LabelRuns:
    """Runs of a mask with its connected components as objects, labels 1..n in raster order of the first pixels.

    Args:
        mask: (H, W) or (D, H, W), non-zero = object.
        connectivity: 4 (shared faces) or 8 (edges and corners too); in 3D these mean 6 and 26.
        intensity: real array of the same shape, or None.
    """
    mask = np.asarray(mask)
    mask = np.ascontiguousarray(mask if mask.dtype == bool else mask != 0)
    if mask.ndim != 3 or connectivity != 8 or not mask.size:
        return connect_runs(find_runs(mask.view(np.uint8), intensity), connectivity)
    check_grey(intensity, mask.shape)
    bits = _pack(mask)
    line, x0, x1 = _read_runs(bits)
    count, owner = _number_pieces(bits, line, x0, mask.shape)
    values = None if intensity is None else np.asarray(intensity)[mask]
    return LabelRuns(mask.shape, np.arange(1, count + 1, dtype=np.int32), owner, line, x0, x1, values)


def _pack(mask: np.ndarray) -> np.ndarray:
    """(Z, Y, B) uint8, eight voxels a byte, the first the highest bit; every line ends with at least one 0."""
    bits = np.zeros((*mask.shape[:2], mask.shape[2] // 8 + 1), np.uint8)
    bits[..., : -(-mask.shape[2] // 8)] = np.packbits(mask, axis=2)
    return bits


def _from_left(bits: np.ndarray) -> np.ndarray:
    """At every place the bit one place before."""
    moved = bits >> 1
    moved.reshape(-1)[1:] |= bits.reshape(-1)[:-1] << 7
    return moved


def _from_right(bits: np.ndarray) -> np.ndarray:
    """At every place the bit one place after; the padding of a line may receive the first bit of the next."""
    moved = bits << 1
    moved.reshape(-1)[:-1] |= bits.reshape(-1)[1:] >> 7
    return moved


def _kind(bits: np.ndarray) -> type:
    """The smallest type of places."""
    return np.int32 if bits.size < 1 << 27 else np.int64


def _positions(bits: np.ndarray) -> np.ndarray:
    """Places of the ones in the flat bits, ascending."""
    flat = bits.reshape(-1)
    kind = _kind(flat)
    filled = np.flatnonzero(flat != 0)
    inside = np.flatnonzero(np.unpackbits(flat[filled]).view(bool)).astype(kind)
    return (filled.astype(kind) << 3)[inside >> 3] + (inside & 7)


def _read_runs(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(line, x0, x1) of the runs, int32, in image order."""
    edges = _positions(bits ^ _from_left(bits))
    pitch = bits.shape[2] * 8
    line = edges[::2] // pitch
    base = line * pitch
    return tuple(part.astype(np.int32, copy=False) for part in (line, edges[::2] - base, edges[1::2] - base))


def _number_pieces(
    bits: np.ndarray, line: np.ndarray, x0: np.ndarray, shape: tuple[int, ...]
) -> tuple[int, np.ndarray]:
    """Number of components, and the index of that of every run, int32, in the order of their first runs."""
    odd = [(0, n % 2) for n in shape[:2]]
    even = np.pad(bits, (*odd, (0, 0))) if shape[0] % 2 or shape[1] % 2 else bits
    lines = [[np.ascontiguousarray(even[dz::2, dy::2]) for dy in (0, 1)] for dz in (0, 1)]
    bundles = lines[0][0] | lines[0][1] | lines[1][0] | lines[1][1]
    begins = (bundles & ~_from_left(bundles)).reshape(-1)
    inside = _COUNTS[begins]
    before = np.cumsum(inside, dtype=np.int32)
    num_pieces = int(before[-1])
    before -= inside

    def piece(places: np.ndarray) -> np.ndarray:
        """Index of the piece that a voxel of it belongs to: pieces that begin up to there, less one."""
        byte = places >> 3
        upto = begins[byte] >> (~places.astype(np.uint8) & np.uint8(7))
        return before[byte] + (_COUNTS[upto] - np.int32(1))

    pairs = [np.stack([piece(places), piece(places + step)]) for places, step in _contacts(lines, bundles.shape)]
    first, second = np.concatenate(pairs, axis=1)
    count, component = _join(num_pieces, first, second)

    z = line // shape[1]
    bundle = (z >> 1) * bundles.shape[1] + ((line - z * shape[1]) >> 1)
    owner = component[piece(bundle.astype(_kind(bundles)) * (bits.shape[2] * 8) + x0)]
    first_run = np.zeros(count, np.int64)
    first_run[owner[::-1]] = np.arange(len(owner) - 1, -1, -1)
    rank = np.empty(count, np.int32)
    rank[np.argsort(first_run)] = np.arange(count, dtype=np.int32)
    return count, rank[owner]


def _join(count: int, first: np.ndarray, second: np.ndarray) -> tuple[int, np.ndarray]:
    """Number of components among pieces that touch, and that of every piece, int32; always `second < first`."""
    root = np.arange(count, dtype=np.int32)
    root[first] = second  # one neighbour before each piece makes a forest; its roots are found by doubling steps
    while True:
        above = root[root]
        if np.array_equal(above, root):
            break
        root = above
    roots = np.flatnonzero(root == np.arange(count))
    number = np.empty(count, np.int32)
    number[roots] = np.arange(len(roots))
    number = number[root]
    first, second = number[first], number[second]
    apart = first != second
    graph = sparse.coo_array((np.ones(apart.sum(), bool), (first[apart], second[apart])), shape=(len(roots),) * 2)
    count, component = csgraph.connected_components(graph, directed=False)
    return count, component[number]


def _contacts(lines: list[list[np.ndarray]], shape: tuple[int, ...]) -> Iterator[tuple[np.ndarray, int]]:
    """Where bundles touch bundles before them: `(places, step)`, a voxel at `place` touches one at `place + step`.

    Contacts that follow from others are left out: of a stretch of voxels opposite each other only the first is named,
    and voxels opposite by an edge or corner only where no voxel beside both joins them already.
    """
    (low_low, low_high), (high_low, high_high) = lines
    row, plane = 8 * shape[2], 8 * shape[1] * shape[2]
    rows = (slice(None), slice(1, None)), (slice(None), slice(None, -1))
    planes = (slice(1, None),), (slice(None, -1),)
    falling = (slice(1, None), slice(1, None)), (slice(None, -1), slice(None, -1))
    rising = (slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))

    def found(here: tuple[slice, ...], touching: np.ndarray) -> np.ndarray:
        bits = np.zeros(shape, np.uint8)
        bits[here] = touching
        return _positions(bits)

    for ours, theirs, (here, there), step in (
        (low_low | high_low, low_high | high_high, rows, row),
        (low_low | low_high, high_low | high_high, planes, plane),
    ):
        ours, opposite = ours[here].copy(), theirs[there].copy()
        both = ours & opposite
        yield found(here, both & ~_from_left(both)), -step
        alone = ours & ~opposite
        yield found(here, alone & _from_left(opposite) & ~_from_left(ours)), -step - 1
        yield found(here, alone & _from_right(opposite) & ~_from_right(ours)), -step + 1

    for ours, theirs, beside, before, (here, there), step in (
        (low_low, high_high, low_high, high_low, falling, plane + row),
        (low_high, high_low, low_low, high_high, rising, plane - row),
    ):
        # the two lines that have an edge of both in common: one in the plane of ours, one in the plane of theirs
        corner = ours[here] & ~beside[(here[0], there[1])] & ~before[(there[0], here[1])]
        opposite = theirs[there].copy()
        yield found(here, corner & opposite), -step
        yield found(here, corner & _from_left(opposite)), -step - 1
        yield found(here, corner & _from_right(opposite)), -step + 1
