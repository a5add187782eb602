"""Labels of slices become objects of a volume: assignment on overlap, over gaps, with splits and merges repaired.

Every slice is compared with the slices before it. Objects are paired one to one so that the number of pairs and then
the sum of IoU is greatest; an object missing in a few slices is found again behind the gap. A label that merges objects
in a few slices is cut along the outlines interpolated from both sides; chains that begin and end inside another one, or
are short and touch one so, are parts of it (see `slice_graph`). Only a window of a few slices is in memory, and the
overlaps are small tables, so stacks of any size are linked slice by slice.

References:
    Kuhn (1955), the assignment problem; Crocker and Grier (1996) and Jaqaman et al. (2008), linking with gap closing.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.segmentation.slice_graph import GOOD_IOU, Overlaps, SliceGraph
from keras_microseg.segmentation.stitching import LabelUnion


@dataclasses.dataclass(frozen=True)
class LinkSettings:
    """When objects of two slices are one.

    Attributes:
        min_iou: pairs need an IoU greater than this (the gate).
        max_gap: slices an object may be missing in between.
        min_inside: objects lie inside another one of the next slice when more than this share does: parts of a split
            object are joined, merged ones cut apart; 1 = no repair.
        neck: an object is cut where its area falls below this share of the maxima on both sides: particles that lie on
            top of each other; 0 = never (solids with waists).
        min_slices: shorter objects are removed.
        fill_gaps: fill the slices of a gap with the overlap of both sides (needs the slices as an array).
    """

    min_iou: float = 0.2
    max_gap: int = 2
    min_inside: float = 0.7
    neck: float = 0.65
    min_slices: int = 1
    fill_gaps: bool = True

    def __post_init__(self) -> None:
        check_number("min_iou", self.min_iou, minimum=0, maximum=1)
        check_number("max_gap", self.max_gap, minimum=0, integer=True)
        check_number("min_inside", self.min_inside, minimum=0, maximum=1)
        check_number("neck", self.neck, minimum=0, maximum=1)
        check_number("min_slices", self.min_slices, minimum=1, integer=True)


class Links(NamedTuple):
    """Outcome of `link_slices`.

    Attributes:
        tables: for every slice a (largest label + 1,) int64 array from its label to the object, 0 = removed.
        num_objects: objects are 1..n in the order of their first slice.
        gaps: (g, 3) int64 `(object, last slice before, first slice behind)` of every bridged gap.
        repaired: number of parts joined to the object they were split from.
        cuts: labels that hold other objects: `(slice, label, [(object, slice before, slice behind), ...])`. Where the
            label has no object of its own, all of it goes to these.
    """

    tables: list[np.ndarray]
    num_objects: int
    gaps: np.ndarray
    repaired: int
    cuts: list[tuple[int, int, list[tuple[int, int, int]]]]


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
    graph = SliceGraph(settings.max_gap)
    window: deque[_Slice] = deque(maxlen=settings.max_gap + 1)
    for number, plane in enumerate(slices):
        here = _Slice.read(plane, number, graph)
        if window and window[-1].labels.shape != here.labels.shape:
            raise UserError(
                f"All slices must have one size. Received: {window[-1].labels.shape}, then {here.labels.shape} in "
                f"slice {number}"
            )
        for before in window:
            graph.overlaps[before.number, number] = _overlaps(before, here)
        window.append(here)
    return _resolve(graph, settings)


def _resolve(graph: SliceGraph, settings: LinkSettings) -> Links:
    """Links from the graph of all overlaps."""
    union = LabelUnion()
    union.reserve(graph.num_nodes - 1)
    repairs = settings.min_inside < 1
    gates = [GOOD_IOU] if repairs and settings.min_iou < GOOD_IOU else []
    followed, preceded, bridges = graph.link(union, [*gates, settings.min_iou])
    repaired, merged, held = 0, [], {}
    if repairs:
        chain = union.resolve()
        held = graph.held_bridges(bridges, settings.min_inside)
        merged = [cut.node for cut in graph.find_merged(chain, held)]
        repaired = graph.join_fragments(union, chain, followed, preceded, settings.min_inside, set(merged))
    slices = graph.slice_of()
    objects = union.resolve()
    objects[merged] = 0
    objects[np.concatenate(graph.areas) == 0] = 0  # numbers that no pixel has
    objects = graph.cut_necks(objects, settings.neck)
    bridges = bridges[objects[bridges[:, 0]] == objects[bridges[:, 1]]]
    objects, gaps = _remove_short(objects, slices, bridges, settings.min_slices)
    tables = [
        np.concatenate([[0], objects[offset + 1 : offset + size]])
        for offset, size in zip(graph.offsets, graph.sizes, strict=True)
    ]
    cuts = []
    for node, parts in sorted(held.items()):
        found = {(int(objects[a]), int(slices[a]), int(slices[b])) for a, b in parts if objects[a] == objects[b]}
        found = sorted(part for part in found if part[0] and part[0] != objects[node])
        if found:
            cuts.append((int(slices[node]), node - graph.offsets[slices[node]], found))
    return Links(tables, int(objects.max(initial=0)), gaps, repaired, cuts)


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
    shared = set()
    for number, label, parts in links.cuts:
        _cut_label(np.asarray(slices[number]) == label, number, int(links.tables[number][label]), parts, out)
        shared.update((part[0], number) for part in parts)
    if not fill_gaps:
        return
    for label, last, behind in links.gaps.tolist():
        missing = [number for number in range(last + 1, behind) if (label, number) not in shared]
        ends = [np.asarray(out[k]) == label for k in (last, behind)] if missing else []
        if not missing or not (ends[0].any() and ends[1].any()):
            continue
        box = _box(ends[0] | ends[1])
        signed = [_signed(end[box]) for end in ends]
        for number in missing:
            share = (number - last) / (behind - last)
            plane = np.array(out[number])
            view = plane[box]
            view[((1 - share) * signed[0] + share * signed[1] > 0) & (view == 0)] = label
            out[number] = plane


def _cut_label(mask: np.ndarray, number: int, own: int, parts: list[tuple[int, int, int]], out: Any) -> None:
    """Give the pixels of a label to the objects in whose interpolated outline they lie deepest.

    A label with an object of its own keeps what is outside of their outlines, or deeper inside its own.
    """
    box = _box(mask)
    best, owner = np.full(mask[box].shape, -np.inf if own == 0 else 0.0), np.full(mask[box].shape, own)
    if own:
        near = [k for k in (number - 1, number + 1) if 0 <= k < len(out)]
        sides = [np.asarray(out[k])[box] == own for k in near]
        best = np.maximum(best, np.mean([_signed(side) for side in sides if side.any()] or [best], axis=0))
    for label, last, behind in parts:
        ends = [np.asarray(out[k])[box] == label for k in (last, behind)]
        if not (ends[0].any() and ends[1].any()):
            continue
        share = (number - last) / (behind - last)
        inside = (1 - share) * _signed(ends[0]) + share * _signed(ends[1])
        deeper = inside > best
        best[deeper], owner[deeper] = inside[deeper], label
    plane = np.array(out[number])
    view = plane[box]
    chosen = mask[box]
    view[chosen] = owner[chosen].astype(view.dtype)
    out[number] = plane


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Bounding box with a margin of one pixel."""
    box = ndimage.find_objects(mask.astype(np.int8))[0]
    return tuple(slice(max(s.start - 1, 0), min(s.stop + 1, n)) for s, n in zip(box, mask.shape, strict=True))


def _signed(mask: np.ndarray) -> np.ndarray:
    """Distance inside the outline, negative outside; the frame counts as outside."""
    inside = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    return inside - ndimage.distance_transform_edt(np.pad(~mask, 1, constant_values=True))[1:-1, 1:-1]


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
    """One slice of the window: its labels, their areas, and the offset from label to node."""

    number: int
    labels: np.ndarray
    offset: int
    areas: np.ndarray

    @classmethod
    def read(cls, plane: np.ndarray, number: int, graph: SliceGraph) -> _Slice:
        labels = np.asarray(plane)
        if labels.ndim != 2 or labels.dtype.kind not in "iu" or labels.min(initial=0) < 0:
            raise UserError(
                f"Slice {number} must be a label image (H, W) of whole numbers >= 0. Received: shape {labels.shape}, "
                f"dtype {labels.dtype}"
            )
        areas = np.bincount(labels.ravel().astype(np.int64), minlength=1)
        return cls(number, labels, graph.add_slice(areas), areas)


def _overlaps(first: _Slice, second: _Slice) -> Overlaps:
    """Nodes of every overlapping pair."""
    both = (first.labels != 0) & (second.labels != 0)
    width = len(second.areas)
    keys = first.labels[both].astype(np.int64) * width + second.labels[both].astype(np.int64)
    keys, common = np.unique(keys, return_counts=True)
    a, b = np.divmod(keys, width)
    areas = first.areas[a], second.areas[b]
    iou = common / (areas[0] + areas[1] - common)
    return Overlaps(a + first.offset, b + second.offset, common / areas[0], common / areas[1], iou)


def _remove_short(
    objects: np.ndarray, slices: np.ndarray, bridges: np.ndarray, min_slices: int
) -> tuple[np.ndarray, np.ndarray]:
    """Objects numbered by first slices, without those in fewer than `min_slices` slices, and the gaps of the rest."""
    total = int(objects.max(initial=0))
    base = int(slices.max()) + 2
    present = np.unique(objects * base + slices + 1)
    kept = np.bincount(present // base, minlength=total + 1) >= min_slices
    first = np.full(total + 1, len(objects))
    np.minimum.at(first, objects, np.arange(len(objects)))
    kept &= first < len(objects)
    kept[0] = False
    table = np.zeros(total + 1, np.int64)
    order = np.argsort(np.where(kept, first, len(objects)), kind="stable")[: int(kept.sum())]
    table[order] = np.arange(1, len(order) + 1)
    gaps = np.column_stack([table[objects[bridges[:, 1]]], slices[bridges[:, 0]], slices[bridges[:, 1]]])
    return table[objects], gaps[gaps[:, 0] > 0]
