"""Labels of slices become objects of a volume: assignment on overlap, over gaps, with splits and merges repaired.

Every slice is compared with the slices before it. Objects are paired one to one so that the number of pairs and then
the sum of IoU is greatest; an object missing in a few slices is found again behind the gap. What then still lies inside
an object of the next slice and has no partner is a part that was split off or has merged, and is joined to it. Only a
window of a few slices is in memory, and the links are one table, so stacks of any size are linked slice by slice.

References:
    Kuhn (1955), the assignment problem; Crocker and Grier (1996) and Jaqaman et al. (2008), linking with gap closing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from keras_microseg.checks import UserError, check_number
from keras_microseg.segmentation.stitching import LabelUnion


@dataclasses.dataclass(frozen=True)
class LinkSettings:
    """When objects of two slices are one.

    Attributes:
        min_iou: pairs need an IoU greater than this (the gate).
        max_gap: slices an object may be missing in between.
        min_inside: an object without a partner is joined to an object of the next slice (split or merge) when more
            than this share of it lies inside; 1 = no repair.
        min_slices: shorter objects are removed.
        fill_gaps: fill the slices of a gap with the overlap of both sides (needs the slices as an array).
    """

    min_iou: float = 0.2
    max_gap: int = 2
    min_inside: float = 0.7
    min_slices: int = 1
    fill_gaps: bool = True

    def __post_init__(self) -> None:
        check_number("min_iou", self.min_iou, minimum=0, maximum=1)
        check_number("max_gap", self.max_gap, minimum=0, integer=True)
        check_number("min_inside", self.min_inside, minimum=0, maximum=1)
        check_number("min_slices", self.min_slices, minimum=1, integer=True)


class Links(NamedTuple):
    """Outcome of `link_slices`.

    Attributes:
        tables: for every slice a (largest label + 1,) int64 array from its label to the object, 0 = removed.
        num_objects: objects are 1..n in the order of their first slice.
        gaps: (g, 3) int64 `(object, last slice before, first slice behind)` of every bridged gap.
        repaired: number of parts joined as splits or merges.
    """

    tables: list[np.ndarray]
    num_objects: int
    gaps: np.ndarray
    repaired: int


def link_slices(slices: Iterable[np.ndarray], settings: LinkSettings | None = None) -> Links:
    """Which labels of the slices are the same object.

    Args:
        slices: (H, W) label images in order, 0 = background; each read once (a generator, a lazy volume, masks of a
            detector painted slice by slice).
        settings: see `LinkSettings`.

    Raises:
        UserError: slices of different size, or labels that are no whole numbers.
    """
    settings = settings or LinkSettings()
    union = LabelUnion()
    window: deque[_Slice] = deque(maxlen=settings.max_gap + 1)
    offsets, sizes, joins, repaired = [], [], [], 0
    for number, plane in enumerate(slices):
        here = _Slice.read(plane, number, union)
        if window and window[-1].labels.shape != here.labels.shape:
            raise UserError(
                f"All slices must have one size. Received: {window[-1].labels.shape}, then {here.labels.shape} in "
                f"slice {number}"
            )
        offsets.append(here.offset)
        sizes.append(len(here.areas))
        for distance, before in enumerate(reversed(window)):
            first, second, common, iou = _overlaps(before, here)
            free = ~before.followed[first] & ~here.preceded[second] & (iou > settings.min_iou)
            pairs = np.flatnonzero(free)[assign_pairs(first[free], second[free], iou[free])]
            a, b = first[pairs], second[pairs]
            before.followed[a] = here.preceded[b] = True
            union.join(a + before.offset, b + here.offset)
            if distance:
                joins.append(np.stack([b + here.offset, np.full(len(a), before.number), np.full(len(a), number)], 1))
            elif settings.min_inside < 1:
                inside = (common > settings.min_inside * before.areas[first]) & ~before.followed[first]
                inside |= (common > settings.min_inside * here.areas[second]) & ~here.preceded[second]
                a, b = first[inside], second[inside]
                before.followed[a] = here.preceded[b] = True
                union.join(a + before.offset, b + here.offset)
                repaired += len(a)
        window.append(here)
    objects = union.resolve()
    objects, gaps = _remove_short(objects, offsets, sizes, joins, settings.min_slices)
    tables = [
        np.concatenate([[0], objects[offset + 1 : offset + size]]) for offset, size in zip(offsets, sizes, strict=True)
    ]
    return Links(tables, int(objects.max(initial=0)), gaps, repaired)


def apply_links(slices: Any, links: Links, out: Any, *, fill_gaps: bool = True) -> None:
    """Write the objects slice by slice.

    Args:
        slices: (D, H, W) array or lazy array, or a sequence of label images, as linked.
        links: from `link_slices`.
        out: writable integer array (D, H, W); uint32 holds any number of objects.
        fill_gaps: in the slices of a gap, background inside the interpolated outline gets the object.
    """
    for number, table in enumerate(links.tables):
        out[number] = table[np.asarray(slices[number])].astype(out.dtype)
    if not fill_gaps:
        return
    for label, last, behind in links.gaps.tolist():
        ends = [np.asarray(out[k]) == label for k in (last, behind)]
        if not (ends[0].any() and ends[1].any()):
            continue
        box = ndimage.find_objects((ends[0] | ends[1]).astype(np.int8))[0]
        box = tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, ends[0].shape, strict=True))
        signed = [
            ndimage.distance_transform_edt(np.pad(e[box], 1))[1:-1, 1:-1]
            - ndimage.distance_transform_edt(np.pad(~e[box], 1, constant_values=True))[1:-1, 1:-1]
            for e in ends
        ]
        for number in range(last + 1, behind):
            share = (number - last) / (behind - last)
            plane = np.array(out[number])
            view = plane[box]
            view[((1 - share) * signed[0] + share * signed[1] > 0) & (view == 0)] = label
            out[number] = plane


def link_labels(labels: Any, settings: LinkSettings | None = None) -> np.ndarray:
    """Link the slices of a label volume in memory: (D, H, W) labels per slice -> (D, H, W) uint32 objects 1..n."""
    settings = settings or LinkSettings()
    if len(np.shape(labels)) != 3:
        raise UserError(f"`labels` must be (D, H, W), one label image per slice. Received: shape {np.shape(labels)}")
    links = link_slices((np.asarray(labels[z]) for z in range(len(labels))), settings)
    out = np.zeros(np.shape(labels), np.uint32)
    apply_links(labels, links, out, fill_gaps=settings.fill_gaps)
    return out


@dataclasses.dataclass
class _Slice:
    """One slice of the window: labels, global offset, areas, and which labels have a partner before and after."""

    number: int
    labels: np.ndarray
    offset: int
    areas: np.ndarray
    followed: np.ndarray
    preceded: np.ndarray

    @classmethod
    def read(cls, plane: np.ndarray, number: int, union: LabelUnion) -> _Slice:
        labels = np.asarray(plane)
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise UserError(
                f"Slice {number} must be a label image (H, W) of whole numbers >= 0. Received: shape {labels.shape}, "
                f"dtype {labels.dtype}"
            )
        areas = np.bincount(labels.ravel().astype(np.int64), minlength=1)
        offset = union.reserve(len(areas) - 1)
        return cls(number, labels, offset, areas, np.zeros(len(areas), bool), np.zeros(len(areas), bool))


def _overlaps(first: _Slice, second: _Slice) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Labels of every overlapping pair, common pixels and IoU."""
    both = (first.labels != 0) & (second.labels != 0)
    width = len(second.areas)
    keys = first.labels[both].astype(np.int64) * width + second.labels[both].astype(np.int64)
    keys, common = np.unique(keys, return_counts=True)
    a, b = np.divmod(keys, width)
    return a, b, common, common / (first.areas[a] + second.areas[b] - common)


def assign_pairs(rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Positions of the pairs kept so that rows and columns are unique: most pairs first, then largest sum of scores."""
    if not len(rows):
        return np.zeros(0, np.int64)
    unique = (np.bincount(rows)[rows] == 1) & (np.bincount(columns)[columns] == 1)
    rest = np.flatnonzero(~unique)
    if not len(rest):
        return np.arange(len(rows))
    row_ids, row = np.unique(rows[rest], return_inverse=True)
    column_ids, column = np.unique(columns[rest], return_inverse=True)
    # Sparse assignment with one spare column per row: a pair costs at most 1, staying alone costs 2.
    num_rows, num_columns = len(row_ids), len(column_ids)
    costs = np.concatenate([1 - scores[rest] / (2 * num_rows), np.full(num_rows, 2.0)])
    spare = np.arange(num_rows)
    graph = sparse.csr_array(
        (costs, (np.concatenate([row, spare]), np.concatenate([column, num_columns + spare]))),
        shape=(num_rows, num_columns + num_rows),
    )
    matched_row, matched_column = csgraph.min_weight_full_bipartite_matching(graph)
    partner = np.full(num_rows, -1)
    partner[matched_row] = matched_column
    return np.sort(np.concatenate([np.flatnonzero(unique), rest[partner[row] == column]]))


def _remove_short(
    objects: np.ndarray, offsets: list[int], sizes: list[int], joins: list[np.ndarray], min_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Objects renumbered without those in fewer than `min_slices` slices, and the bridged gaps with their objects."""
    present = [
        np.unique(objects[offset + 1 : offset + size]) for offset, size in zip(offsets, sizes, strict=True) if size > 1
    ]
    total = int(objects.max(initial=0))
    slices = np.bincount(np.concatenate(present), minlength=total + 1) if present else np.zeros(total + 1, int)
    kept = slices >= min_slices
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0)
    gaps = np.concatenate(joins) if joins else np.zeros((0, 3), np.int64)
    gaps = np.column_stack([table[objects[gaps[:, 0]]], gaps[:, 1:]])
    return table[objects], gaps[gaps[:, 0] > 0]
