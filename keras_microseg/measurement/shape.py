"""Geometry of many outlines at once: convex hulls, Feret diameters, least rectangles, polygon area and length.

All functions work on *packed* polygons: the vertices of all objects in one (N, 2) array of (y, x), and `starts`, the
(n + 1,) index of the first vertex of each. There is no loop over objects.

References:
    Toussaint (1983), Solving geometric problems with the rotating calipers. Freeman and Shapira (1975), Determining the
    minimum-area encasing rectangle for an arbitrary closed curve. ISO 13322-1:2014, ISO 9276-6:2008.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.segmentation.runs import LabelRuns, object_chunks, segment_sum

_CHUNK = 1 << 15  # runs or vertices worked on together
_TIE = 1e-9  # relative difference below which two widths count as equal


class Polygons(NamedTuple):
    """Packed closed polygons.

    Attributes:
        vertices: (N, 2) array of (y, x); the last vertex of a polygon joins its first.
        starts: (n + 1,) int64 index of the first vertex of each polygon; none is empty.
    """

    vertices: np.ndarray
    starts: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """(n,) number of vertices of each polygon."""
        return np.diff(self.starts)

    @property
    def following(self) -> np.ndarray:
        """(N,) index of the next vertex around each polygon."""
        index = np.arange(1, len(self.vertices) + 1)
        index[self.starts[1:] - 1] = self.starts[:-1]
        return index

    @property
    def local(self) -> np.ndarray:
        """(N, 2) vertices relative to the first one of their polygon: no digits are lost far from the origin."""
        return self.vertices - np.repeat(self.vertices[self.starts[:-1]], self.counts, axis=0)

    def scaled(self, size: tuple[float, float]) -> Polygons:
        """The same polygons with (y, x) multiplied by `size`, for example the pixel size."""
        return Polygons(self.vertices * np.asarray(size, dtype=np.float64), self.starts)


class Calipers(NamedTuple):
    """Widths of convex polygons, (n,) float64 each; angles in degrees, 0 = +x, counter-clockwise on the screen.

    Attributes:
        feret_min: least width between two parallel tangents.
        feret_max: greatest distance of two points.
        feret_90: width at right angles to `feret_min` (the larger one where several directions tie).
        feret_angle: direction of `feret_max`, 0 <= angle < 180.
        rectangle_width: short side of the enclosing rectangle of least area.
        rectangle_length: its long side.
        rectangle_angle: direction of the long side, 0 <= angle < 180.
    """

    feret_min: np.ndarray
    feret_max: np.ndarray
    feret_90: np.ndarray
    feret_angle: np.ndarray
    rectangle_width: np.ndarray
    rectangle_length: np.ndarray
    rectangle_angle: np.ndarray


def fold_angle(degrees: np.ndarray) -> np.ndarray:
    """Angle of an undirected line, 0 <= angle < 180."""
    folded = np.mod(degrees, 180.0)
    return np.where(folded >= 180.0 - 1e-9, 0.0, folded)


def pixel_hulls(runs: LabelRuns) -> Polygons:
    """Convex hull of the pixel squares of every object, exact.

    Args:
        runs: the label image as runs.

    Returns:
        Polygons with int64 vertices (y, x) at pixel corners: pixel (i, j) is the square [i, i + 1] x [j, j + 1].
    """
    parts = [Polygons(np.zeros((0, 2), np.int64), np.zeros(1, np.int64))]
    for first, stop in object_chunks(runs.starts, _CHUNK):
        owner, y, x0, x1 = (part[runs.starts[first] : runs.starts[stop]] for part in runs.sorted)
        parts.append(_pixel_hulls(owner - first, y, x0, x1))
    counts = np.concatenate([part.counts for part in parts])
    return Polygons(np.concatenate([part.vertices for part in parts]), np.concatenate([[0], np.cumsum(counts)]))


def _pixel_hulls(owner: np.ndarray, y: np.ndarray, x0: np.ndarray, x1: np.ndarray) -> Polygons:
    """Hulls of objects 0 ... n - 1 from their runs, (m,) int64 each, ordered by object, row, column."""
    new_row = np.ones(len(owner) + 1, bool)
    new_row[1:-1] = (owner[1:] != owner[:-1]) | (y[1:] != y[:-1])
    first, last = np.flatnonzero(new_row[:-1]), np.flatnonzero(new_row[1:])
    owner, y, low, high = owner[first], y[first], x0[first], x1[last]

    # Corner rows: every pixel row gives its upper corner row; its lower one only where no pixel row follows directly.
    joined = np.zeros(len(owner) + 1, bool)  # row i continues row i - 1
    joined[1:-1] = (owner[1:] == owner[:-1]) & (y[1:] == y[:-1] + 1)
    is_last = ~joined[1:]
    top = np.arange(len(owner)) + np.concatenate([[0], np.cumsum(is_last)[:-1]])
    bottom = top[is_last] + 1
    size = len(owner) + len(bottom)
    corner_owner, corner_y, corner_low, corner_high = (np.empty(size, np.int64) for _ in range(4))
    above_low, above_high = low.copy(), high.copy()
    inner = np.flatnonzero(joined[:-1])
    above_low[inner] = np.minimum(low[inner], low[inner - 1])
    above_high[inner] = np.maximum(high[inner], high[inner - 1])
    for target, upper, lower in (
        (corner_owner, owner, owner),
        (corner_y, y, y + 1),
        (corner_low, above_low, low),
        (corner_high, above_high, high),
    ):
        target[top], target[bottom] = upper, lower[is_last]
    return convex_hulls(corner_owner, corner_y, corner_low, corner_high)


def convex_hulls(owner: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> Polygons:
    """Convex hulls of objects given as horizontal stretches.

    Args:
        owner: (m,) object index 0 ... n - 1, ascending, every index present.
        y: (m,) ordinate of each stretch, strictly ascending inside an object.
        low, high: (m,) ends of each stretch, low <= high; integers below 2**31 are handled exactly.

    Returns:
        Polygons whose vertices run down the left side and up the right one (counter-clockwise on the screen), without
        repeated vertices and without vertices inside an edge.
    """
    count = int(owner[-1]) + 1
    chain = np.concatenate([owner, owner + count])
    keep = _convex_vertices(chain, np.concatenate([y, y]), np.concatenate([low, -high]))
    left, right = np.flatnonzero(keep[: len(y)]), np.flatnonzero(keep[len(y) :])
    # Top and bottom may be single points (never for pixel squares): they belong to the left side only.
    is_end = np.zeros(len(y), bool)
    is_end[np.flatnonzero(np.diff(owner, prepend=-1))] = True
    is_end[np.flatnonzero(np.diff(owner, append=count))] = True
    right = right[~(is_end[right] & (low[right] == high[right]))]

    num_left, num_right = np.bincount(owner[left], minlength=count), np.bincount(owner[right], minlength=count)
    starts = np.concatenate([[0], np.cumsum(num_left + num_right)])
    rank_left = np.arange(len(left)) - np.repeat(np.cumsum(num_left) - num_left, num_left)
    rank_right = np.arange(len(right)) - np.repeat(np.cumsum(num_right) - num_right, num_right)
    vertices = np.empty((starts[-1], 2), np.result_type(y, low, high))
    place = starts[owner[left]] + rank_left
    vertices[place, 0], vertices[place, 1] = y[left], low[left]
    place = starts[owner[right] + 1] - 1 - rank_right
    vertices[place, 0], vertices[place, 1] = y[right], high[right]
    return Polygons(vertices, starts)


def _convex_vertices(chain: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Which points of each chain (ascending y) are vertices of its hull towards small x; the ends always are.

    A point on or behind the chord of two other points of its chain is no vertex, so all such points can go at once;
    passes are repeated on the chains that still changed. Chords to the neighbours decide, wider chords only speed up.
    """
    keep = np.ones(len(y), bool)
    index = np.arange(len(y))
    for stride in itertools.chain((4, 2), itertools.repeat(1)):
        if len(index) <= 2 * stride:
            if stride == 1:
                break
            continue
        before, at, after = slice(0, -2 * stride), slice(stride, -stride), slice(2 * stride, None)
        height, width = y[after] - y[before], x[after] - x[before]
        behind = height * (x[at] - x[before]) >= (y[at] - y[before]) * width
        behind &= chain[after] == chain[before]
        stay = np.ones(len(index), bool)
        stay[at] = ~behind
        keep[index[~stay]] = False
        if stride == 1:
            changed = np.zeros(int(chain[-1]) + 1, bool)
            changed[chain[~stay]] = True
            stay &= changed[chain]
        index, chain, y, x = index[stay], chain[stay], y[stay], x[stay]
    return keep


def polygon_areas(polygons: Polygons) -> np.ndarray:
    """(n,) float64 area of each polygon by the shoelace formula, in the squared unit of the vertices."""
    y, x = polygons.local[:, 0], polygons.local[:, 1]
    after = polygons.following
    return np.abs(segment_sum(x * y[after] - x[after] * y, polygons.starts)) / 2


def polygon_perimeters(polygons: Polygons) -> np.ndarray:
    """(n,) float64 length of each outline, in the unit of the vertices."""
    steps = polygons.vertices[polygons.following] - polygons.vertices
    return segment_sum(np.hypot(steps[:, 0], steps[:, 1]), polygons.starts)


def measure_calipers(hulls: Polygons) -> Calipers:
    """Exact Feret diameters and least rectangles of convex polygons by rotating calipers.

    The least width and the least rectangle have a side along a hull edge, and the two points of the greatest distance
    are met while a caliper lies on an edge; so it is enough to look at every edge and the vertices it faces. Those are
    found by binary search among the edge directions.

    Args:
        hulls: convex polygons as `convex_hulls` makes them, scaled to real units if wanted; at least two vertices each.

    Returns:
        `Calipers` in the unit of the vertices.
    """
    parts = [Calipers(*(np.zeros(0) for _ in Calipers._fields))]
    for first, stop in object_chunks(hulls.starts, _CHUNK):
        starts = hulls.starts[first : stop + 1]
        parts.append(_measure_calipers(Polygons(hulls.vertices[starts[0] : starts[-1]], starts - starts[0])))
    return Calipers(*(np.concatenate(field) for field in zip(*parts, strict=True)))


def _measure_calipers(hulls: Polygons) -> Calipers:
    """`measure_calipers` for at least one polygon, all at once."""
    starts = hulls.starts
    local = hulls.local.astype(np.float64)
    x, y = local[:, 1].copy(), -local[:, 0]  # y upwards
    counts, after = hulls.counts, hulls.following
    owner = np.repeat(np.arange(len(counts)), counts)
    first, count = starts[:-1][owner], counts[owner]
    edge_x, edge_y = x[after] - x, y[after] - y
    angle = np.arctan2(edge_y + 0.0, edge_x)  # ascending over each polygon, -pi < angle <= pi
    edge = np.hypot(edge_x, edge_y)
    edge_x, edge_y = edge_x / edge, edge_y / edge
    keys = owner * 8.0 + angle

    def facing(turn: float) -> list[np.ndarray]:
        """Vertices touched by a tangent turned by `turn` against each edge; neighbours guard against rounding."""
        wanted = angle + turn
        wanted = np.where(wanted > np.pi, wanted - 2 * np.pi, wanted)
        found = np.searchsorted(keys, owner * 8.0 + wanted) - first
        found = np.where(found >= count, 0, found)
        return [
            first + np.where(found == 0, count, found) - 1,
            first + found,
            first + np.where(found + 1 == count, 0, found + 1),
        ]

    def reach(vertices: list[np.ndarray], along_x: np.ndarray, along_y: np.ndarray) -> np.ndarray:
        """Greatest projection of the candidate vertices on a direction per edge."""
        projections = [x[v] * along_x + y[v] * along_y for v in vertices]
        return np.maximum(np.maximum(projections[0], projections[1]), projections[2])

    opposite = facing(np.pi)
    height = reach(opposite, -edge_y, edge_x) - (edge_x * y - edge_y * x)
    length = reach(facing(np.pi / 2), edge_x, edge_y) + reach(facing(1.5 * np.pi), -edge_x, -edge_y)

    feret_min = np.minimum.reduceat(height, starts[:-1])
    ties = height <= feret_min[owner] * (1 + _TIE)
    feret_90 = np.maximum.reduceat(np.where(ties, length, 0.0), starts[:-1])

    spans = np.stack([np.square(x[v] - x[w]) + np.square(y[v] - y[w]) for v in opposite for w in (slice(None), after)])
    widest = spans.max(axis=0)
    feret_max = np.maximum.reduceat(widest, starts[:-1])
    at = _first_of_each(widest >= feret_max[owner], owner, len(counts))
    pick = spans[:, at].argmax(axis=0)
    far = np.stack(opposite)[pick // 2, at]
    near = np.where(pick % 2 == 0, at, after[at])
    feret_angle = fold_angle(np.degrees(np.arctan2(y[far] - y[near], x[far] - x[near])))

    box = height * length
    least = np.minimum.reduceat(box, starts[:-1])
    longest = np.where(box <= least[owner] * (1 + _TIE), np.maximum(height, length), -1.0)
    longest_of_object = np.maximum.reduceat(longest, starts[:-1])
    at = _first_of_each(longest >= longest_of_object[owner] * (1 - _TIE), owner, len(counts))
    turned = np.where(length[at] >= height[at], 0.0, 90.0)
    return Calipers(
        feret_min,
        np.sqrt(feret_max),
        feret_90,
        feret_angle,
        np.minimum(height[at], length[at]),
        np.maximum(height[at], length[at]),
        fold_angle(np.degrees(angle[at]) + turned),
    )


def _first_of_each(mask: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """(count,) index of the first True of every object; each object has one."""
    places = np.flatnonzero(mask)[::-1]
    first = np.empty(count, np.int64)
    first[owner[places]] = places
    return first


def hull_of_points(points: np.ndarray) -> Polygons:
    """Convex hull of one set of points.

    Args:
        points: (N, 2) finite (y, x), N >= 1.

    Returns:
        One packed polygon with the vertices of the hull.
    """
    points = np.asarray(points, dtype=np.float64)
    points = points[np.lexsort((points[:, 1], points[:, 0]))]
    first = np.flatnonzero(np.diff(points[:, 0], prepend=-np.inf))
    last = np.append(first[1:], len(points)) - 1
    zeros = np.zeros(len(first), np.int64)
    return convex_hulls(zeros, points[first, 0], points[first, 1], points[last, 1])


def feret_diameters(contour: np.ndarray) -> tuple[float, float]:
    """Smallest and largest caliper width of a closed outline.

    Args:
        contour: (N, 2) float array of (y, x) vertices, N >= 3, either orientation, any length unit.

    Returns:
        `(min, max)` in the unit of `contour`; the minimum is exact over the edge directions of the convex hull.

    Raises:
        UserError: fewer than three distinct vertices, or non-finite values.

    Reference: ISO 13322-1:2014; Toussaint (1983), rotating calipers.
    """
    contour = np.asarray(contour, dtype=np.float64)
    if contour.ndim != 2 or contour.shape[1] != 2 or not np.isfinite(contour).all():
        raise UserError(f"`contour` must be an (N, 2) array of finite numbers. Received: shape {contour.shape}")
    if len(np.unique(contour, axis=0)) < 3:
        raise UserError("`contour` needs at least three distinct vertices.")
    calipers = measure_calipers(hull_of_points(contour))
    return float(calipers.feret_min[0]), float(calipers.feret_max[0])
