"""The graph of slice linking: one node per label of every slice, one edge per pair of labels that overlap.

Nothing here sees pixels, so the graph of a whole volume is small: about 40 bytes per overlap. Resolved in this order:

1. *Chains*: one-to-one links by assignment on IoU, nearest slices first, over gaps. Only good links at first, so that a
   slice in which an object is split or merged with another is bridged like a gap; then all above the gate.
2. *Merged labels*: short chains that hold two or more bridged objects are shared out among them.
3. *Fragments*: a chain that begins and ends inside the same other chain, or most of whose slices lie inside the nearest
   slices of one, is part of it (a crack parts a particle in some slices); a piece that begins inside the end of one
   chain and ends inside the begin of another joins both.
4. *Necks*: solids that lie on top of each other follow one another like slices of one. Where the area of an object
   falls and rises again, it is cut at the worst link.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage, sparse
from scipy.sparse import csgraph

from keras_microseg.segmentation.stitching import LabelUnion

GOOD_IOU = 0.6
"""Links above this are made first."""
_LEAST_NECK = 8  # slices of an object that may have a neck
_MOSTLY = 0.7  # share of its slices in which a fragment lies inside another chain


class Overlaps(NamedTuple):
    """Overlapping nodes of two slices: ids of both, share of each inside the other, IoU."""

    first: np.ndarray
    second: np.ndarray
    first_inside: np.ndarray
    second_inside: np.ndarray
    iou: np.ndarray


class Cut(NamedTuple):
    """A label that merges several objects.

    Attributes:
        node: of the label.
        parts: `(node before, node behind)` of every object in it.
    """

    node: int
    parts: list[tuple[int, int]]


@dataclasses.dataclass
class SliceGraph:
    """Nodes and overlaps of a stack, filled slice by slice.

    Attributes:
        max_gap: see `LinkSettings`.
        offsets, sizes: node of label 0 of every slice (itself no node), and largest label + 1.
        areas: pixels of every node; entry 0 is empty.
        overlaps: `(slice before, slice behind) -> Overlaps`.
    """

    max_gap: int
    offsets: list[int] = dataclasses.field(default_factory=list)
    sizes: list[int] = dataclasses.field(default_factory=list)
    areas: list[np.ndarray] = dataclasses.field(default_factory=lambda: [np.zeros(1, np.int64)])
    overlaps: dict[tuple[int, int], Overlaps] = dataclasses.field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        return self.offsets[-1] + self.sizes[-1] if self.offsets else 1

    def add_slice(self, areas: np.ndarray) -> int:
        """Add the labels of the next slice (areas by label, entry 0 unused); returns the offset from label to node."""
        offset = self.offsets[-1] + self.sizes[-1] - 1 if self.offsets else 0
        self.offsets.append(offset)
        self.sizes.append(len(areas))
        self.areas.append(areas[1:])
        return offset

    def slice_of(self) -> np.ndarray:
        """Slice of every node."""
        counts = [size - 1 for size in self.sizes]
        return np.concatenate([[-1], np.repeat(np.arange(len(counts)), counts)]).astype(np.int64)

    # Chains

    def link(self, union: LabelUnion, gates: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One-to-one links into `union`, above the first of `gates` (IoU), then among what is free above the next.

        Returns:
            `(followed, preceded, bridges)`: flags of every node, and (g, 2) nodes before and behind every gap.
        """
        followed, preceded = np.zeros(self.num_nodes, bool), np.zeros(self.num_nodes, bool)
        bridges = [np.zeros((0, 2), np.int64)]
        for gate in gates:
            for distance in range(1, self.max_gap + 2):
                for number in range(distance, len(self.offsets)):
                    pairs = self.overlaps[number - distance, number]
                    free = ~followed[pairs.first] & ~preceded[pairs.second] & (pairs.iou > gate)
                    rows, columns = pairs.first[free], pairs.second[free]
                    kept = assign_pairs(rows, columns, pairs.iou[free])
                    a, b = rows[kept], columns[kept]
                    followed[a] = preceded[b] = True
                    union.join(a, b)
                    if distance > 1:
                        bridges.append(np.stack([a, b], axis=1))
        return followed, preceded, np.concatenate(bridges)

    # Merged labels

    def held_bridges(self, bridges: np.ndarray, min_inside: float) -> dict[int, list[tuple[int, int]]]:
        """Node -> bridges `(before, behind)` over its slice whose object lies inside it."""
        behind_of = dict(map(tuple, bridges.tolist()))
        before_of = {b: a for a, b in behind_of.items()}
        slices = self.slice_of()
        held: dict[int, set[tuple[int, int]]] = defaultdict(set)
        for pairs in self.overlaps.values():
            for inner, outer, share, partner, sign in (
                (pairs.first, pairs.second, pairs.first_inside, behind_of, 1),
                (pairs.second, pairs.first, pairs.second_inside, before_of, -1),
            ):
                for part, whole in zip(
                    inner[share > min_inside].tolist(), outer[share > min_inside].tolist(), strict=True
                ):
                    other = partner.get(part)
                    if other is not None and (slices[other] - slices[whole]) * sign > 0:
                        held[whole].add((part, other) if sign > 0 else (other, part))
        return {node: sorted(found) for node, found in held.items()}

    def find_merged(self, chain: np.ndarray, held: dict[int, list[tuple[int, int]]]) -> list[Cut]:
        """Chains of at most `max_gap` slices all of whose labels hold two or more other, bridged objects."""
        length = np.bincount(chain)
        nodes: dict[int, list[int]] = defaultdict(list)
        for node, parts in held.items():
            if length[chain[node]] <= self.max_gap and len({int(chain[a]) for a, _ in parts}) > 1:
                nodes[int(chain[node])].append(node)
        return [
            Cut(node, held[node])
            for number, members in sorted(nodes.items())
            if len(members) == length[number]
            for node in members
        ]

    # Fragments

    def join_fragments(
        self, union: LabelUnion, chain: np.ndarray, followed: np.ndarray, preceded: np.ndarray, min_inside: float,
        left_out: set[int],
    ) -> int:  # fmt: skip
        """Join chains that are parts of others into `union`; returns how many."""
        barred = np.zeros(self.num_nodes, bool)
        barred[list(left_out)] = True
        ends: dict[int, list[set[int]]] = defaultdict(lambda: [set(), set()])  # chain -> hosts of its begin and end
        inside: list[np.ndarray] = []  # (node, host chain) of every node inside another chain
        for pairs in self.overlaps.values():
            free = ~barred[pairs.first] & ~barred[pairs.second] & (chain[pairs.first] != chain[pairs.second])
            for nodes, hosts, share, side, loose in (
                (pairs.second, pairs.first, pairs.second_inside, 0, ~preceded),
                (pairs.first, pairs.second, pairs.first_inside, 1, ~followed),
            ):
                chosen = free & (share > min_inside)
                inside.append(np.stack([nodes[chosen], chain[hosts[chosen]]], axis=1))
                chosen &= loose[nodes]
                for part, host in zip(chain[nodes[chosen]].tolist(), chain[hosts[chosen]].tolist(), strict=True):
                    ends[part][side].add(host)
        length = np.bincount(chain)
        slices = self.slice_of()
        first, last = np.full(len(length), len(self.offsets)), np.full(len(length), -1)
        np.minimum.at(first, chain, slices)
        np.maximum.at(last, chain, slices)
        pairs_inside = np.unique(np.concatenate(inside), axis=0) if inside else np.zeros((0, 2), np.int64)
        kinds, counts = np.unique(np.stack([chain[pairs_inside[:, 0]], pairs_inside[:, 1]], 1), axis=0,
                                  return_counts=True)  # fmt: skip
        within = defaultdict(set)  # chain -> chains that its nodes lie inside
        for (part, host), count in zip(kinds.tolist(), counts.tolist(), strict=True):
            if count >= _MOSTLY * length[part] and length[host] >= length[part]:
                within[part].add(host)
        head = np.zeros(len(length), np.int64)  # a node of every chain
        head[chain[1:]] = np.arange(1, len(chain))
        joined = 0
        for part, (begin, end) in sorted(ends.items()):
            hosts = (begin & end) or ((begin | end) & within[part])
            if hosts:
                union.join(head[[part]], head[[max(hosts, key=lambda host: (length[host], -host))]])
                joined += 1
                continue
            for before in sorted(begin):  # a piece between the two ends of one object
                for behind in sorted(end):
                    if 0 < first[behind] - last[before] <= 2 * self.max_gap + 1:
                        union.join(head[[part, part]], head[[before, behind]])
                        joined += 1
        return joined

    # Necks

    def cut_necks(self, objects: np.ndarray, neck: float) -> np.ndarray:
        """Objects of every node, cut where their area falls below `neck` times the smaller of the maxima around.

        Dips of up to `max_gap` slices are no necks: a part may be missing there. Cuts lie at the link of least IoU.
        """
        if neck <= 0:
            return objects
        areas, slices = np.concatenate(self.areas), self.slice_of()
        links = self._link_quality(objects)
        result, fresh = objects.copy(), int(objects.max(initial=0))
        order = np.lexsort((slices, objects))
        starts = np.searchsorted(objects[order], np.arange(1, fresh + 2))
        for start, stop in zip(starts[:-1], starts[1:], strict=True):
            nodes = order[start:stop]
            if not len(nodes):
                continue
            places, index = np.unique(slices[nodes], return_inverse=True)
            profile = np.bincount(index, areas[nodes])
            quality = np.array([links.get((int(objects[nodes[0]]), int(p)), 0.0) for p in places])
            for place in _necks(profile, quality, neck, self.max_gap):
                fresh += 1
                result[nodes[slices[nodes] >= places[place]]] = fresh
        return result

    def _link_quality(self, objects: np.ndarray) -> dict[tuple[int, int], float]:
        """`(object, slice) -> best IoU` with the slice before."""
        best: dict[tuple[int, int], float] = {}
        for (before, behind), pairs in self.overlaps.items():
            if behind - before != 1:
                continue
            same = (objects[pairs.first] == objects[pairs.second]) & (objects[pairs.first] > 0)
            for label, iou in zip(objects[pairs.second[same]].tolist(), pairs.iou[same].tolist(), strict=True):
                best[label, behind] = max(best.get((label, behind), 0.0), iou)
        return best


def _necks(profile: np.ndarray, quality: np.ndarray, neck: float, max_gap: int) -> list[int]:
    """Places where a new object begins, ascending.

    Args:
        profile: area in every slice.
        quality: IoU of every slice with the one before.
        neck: see `SliceGraph.cut_necks`.
        max_gap: dips of so many slices are passed over.
    """
    if len(profile) < _LEAST_NECK:
        return []
    width = min(2 * max_gap + 1, len(profile) // 4 // 2 * 2 + 1)
    smooth = ndimage.median_filter(profile.astype(float), width, mode="nearest")
    found, low, high = [], 0, len(smooth)
    pending = [(low, high)]
    while pending:
        low, high = pending.pop()
        if high - low < 3:
            continue
        part = smooth[low:high]
        rise = np.minimum(np.maximum.accumulate(part), np.maximum.accumulate(part[::-1])[::-1])
        depth = part / np.maximum(rise, 1e-9)
        place = int(np.argmin(depth))
        if depth[place] >= neck or place in (0, high - low - 1):
            continue
        reach = width // 2 + 1
        near = np.arange(max(low + place - reach + 1, low + 1), min(low + place + reach + 1, high))
        cut = int(near[np.argmin(quality[near])])
        found.append(cut)
        pending += [(low, cut), (cut, high)]
    return sorted(found)


class _Pair:
    """Two counters read together."""

    def __init__(self, after: dict[int, int], before: dict[int, int]):
        self.after, self.before = after, before

    def __getitem__(self, node: int) -> tuple[int, int]:
        return self.after[node], self.before[node]


def assign_pairs(rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Positions of the pairs kept so that rows and columns are unique: most pairs first, then largest sum of scores."""
    if not len(rows):
        return np.zeros(0, np.int64)
    rows, columns = rows - rows.min(), columns - columns.min()
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
