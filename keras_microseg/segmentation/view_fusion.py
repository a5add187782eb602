"""One label volume from objects linked along z, y and x: a vote of views after their labels were made consistent.

Objects of different views are the same when their IoU is high; pairs are joined best first, and no joined object holds
two objects of one view, so a particle merged in one view does not merge its neighbours in the others. Every voxel then
goes to the object most views name there. All is done in slabs; overlaps are small tables.

Reference: Li et al. (2022), Science 376, 517, fuse one network per orientation by the sum of probabilities; here whole
objects vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_number

_SLAB_VOXELS = 1 << 22


def fuse_views(
    views: Sequence[Any], out: Any, *, min_iou: float = 0.3, min_votes: int | None = None, min_voxels: int = 0
) -> int:
    """Fuse label volumes of one stack.

    Args:
        views: two or more label volumes (D, H, W), arrays or lazy arrays, 0 = background; best view first.
        out: writable (D, H, W) integer array; uint32 holds any number of objects.
        min_iou: objects of two views are one when their IoU is greater.
        min_votes: views that must name an object for a voxel to be its; default more than half of the views.
        min_voxels: smaller objects are left out.

    Returns:
        Number of objects, 1..n in `out`.

    Raises:
        UserError: fewer than two views, or shapes that differ.
    """
    shapes = {tuple(view.shape) for view in views}
    if len(views) < 2 or len(shapes) > 1:
        raise UserError(f"Fusion needs two or more label volumes of one shape. Received: {sorted(shapes)}")
    votes = len(views) // 2 + 1 if min_votes is None else min_votes
    check_number("min_votes", votes, minimum=1, maximum=len(views), integer=True)
    check_number("min_iou", min_iou, minimum=0, maximum=1)
    tables = match_views(views, min_iou)
    count = max(int(table.max(initial=0)) for table in tables)
    sizes = np.zeros(count + 1, np.int64)
    for slab in _slabs(views[0].shape):
        fused = _vote([table[np.asarray(view[slab])] for table, view in zip(tables, views, strict=True)], votes)
        sizes += np.bincount(fused.ravel(), minlength=count + 1)
        out[slab] = fused.astype(out.dtype)
    kept = sizes >= max(min_voxels, 1)
    kept[0] = False
    if kept[1:].all():
        return count
    numbers = np.where(kept, np.cumsum(kept), 0)
    for slab in _slabs(views[0].shape):
        out[slab] = numbers[np.asarray(out[slab])].astype(out.dtype)
    return int(kept.sum())


def match_views(views: Sequence[Any], min_iou: float) -> list[np.ndarray]:
    """For every view the table from its labels to objects common to all views, 1..n."""
    sizes: list[np.ndarray] = [np.zeros(1, np.int64) for _ in views]
    overlaps: dict[tuple[int, int], dict[int, int]] = {}
    for slab in _slabs(views[0].shape):
        parts = [np.asarray(view[slab]).ravel().astype(np.int64) for view in views]
        for number, part in enumerate(parts):
            counts = np.bincount(part, minlength=len(sizes[number]))
            counts[: len(sizes[number])] += sizes[number]
            sizes[number] = counts
        for a in range(len(views)):
            for b in range(a + 1, len(views)):
                both = (parts[a] != 0) & (parts[b] != 0)
                keys, common = np.unique((parts[a][both] << 32) + parts[b][both], return_counts=True)
                total = overlaps.setdefault((a, b), {})
                for key, voxels in zip(keys.tolist(), common.tolist(), strict=True):
                    total[key] = total.get(key, 0) + voxels
    edges = []
    for (a, b), total in overlaps.items():
        for key, common in total.items():
            first, second = key >> 32, key & 0xFFFFFFFF
            iou = common / (sizes[a][first] + sizes[b][second] - common)
            if iou > min_iou:
                edges.append((iou, a, first, b, second))
    edges.sort(key=lambda edge: (-edge[0], edge[1:]))
    offsets = np.cumsum([0, *(len(size) for size in sizes)])
    parent = np.arange(offsets[-1])
    members = {int(node): 1 << view for view in range(len(views)) for node in range(offsets[view], offsets[view + 1])}

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    for _, a, first, b, second in edges:
        one, other = root(int(offsets[a] + first)), root(int(offsets[b] + second))
        if one != other and not members[one] & members[other]:  # never two objects of one view
            parent[other] = one
            members[one] |= members[other]
    roots: dict[int, int] = {}
    tables = []
    for view, size in enumerate(sizes):
        table = np.zeros(len(size), np.int64)
        for label in np.flatnonzero(size[1:]) + 1:
            table[label] = roots.setdefault(root(int(offsets[view] + label)), len(roots) + 1)
        tables.append(table)
    return tables


def _vote(named: list[np.ndarray], votes: int) -> np.ndarray:
    """The object that at least `votes` views name, and no other as often in an earlier view; else 0."""
    best, most = np.zeros_like(named[0]), np.zeros(named[0].shape, np.int8)
    for candidate in named:
        agree = np.zeros(named[0].shape, np.int8)
        for other in named:
            agree += (other == candidate).view(np.int8)
        better = (candidate != 0) & (agree >= votes) & (agree > most)
        best[better], most[better] = candidate[better], agree[better]
    return best


def _slabs(shape: Sequence[int]) -> list[slice]:
    planes = max(_SLAB_VOXELS // max(int(shape[1]) * int(shape[2]), 1), 1)
    return [slice(top, min(top + planes, shape[0])) for top in range(0, shape[0], planes)]
