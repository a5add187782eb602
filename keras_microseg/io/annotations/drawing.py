"""Objects to label images and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from keras_microseg.checks import UserError, check_choice, standardize_tuple
from keras_microseg.io.annotations.records import Region


def fill_rings(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies inside closed rings, even-odd: a ring within a ring is a hole.

    Centres on a left or upper edge are inside, on a right or lower edge outside, so polygons that share an edge share
    no pixel. COCO's own program does the same after rounding the vertices to a fifth of a pixel.

    Args:
        rings: (N, 2) vertices (y, x); pixel centres are whole numbers.
        shape: (height, width).

    Returns:
        (H, W) bool.
    """
    height, width = shape
    crossings = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        start = np.asarray(ring, np.float64)
        end = np.roll(start, -1, axis=0)
        down = start[:, 0] <= end[:, 0]
        upper, lower = np.where(down[:, None], start, end), np.where(down[:, None], end, start)
        # rows r of an edge: upper <= r < lower
        first = np.clip(np.ceil(upper[:, 0]), 0, height).astype(np.int64)
        last = np.clip(np.ceil(lower[:, 0]), 0, height).astype(np.int64)
        count = np.maximum(last - first, 0)
        edge = np.repeat(np.arange(len(start)), count)
        row = np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count) + first[edge]
        run, rise = (lower - upper)[edge, 1], (lower - upper)[edge, 0]
        x = upper[edge, 1] + (row - upper[edge, 0]) * run / rise
        np.add.at(crossings, (row, np.clip(np.ceil(x), 0, width).astype(np.int64)), 1)  # parity survives the overflow
    return np.cumsum(crossings[:, :width], axis=1, dtype=np.uint8) % 2 == 1


def region_mask(region: Region, shape: tuple[int, int]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Pixels of a region within an image.

    Args:
        region: the object.
        shape: (height, width) of the image.

    Returns:
        `(mask, window)`: a boolean mask and the part of the image it belongs to, as slices; empty when outside.

    Raises:
        UserError: the object is a mask of another image size.
    """
    height, width = shape
    if region.mask is not None:
        if region.mask.shape != (height, width):
            raise UserError(f"a mask of {region.mask.shape} pixels does not fit an image of {(height, width)}.")
        return region.mask.decode(), (slice(0, height), slice(0, width))
    points = np.concatenate([part[0] for part in region.polygons])
    low = np.clip(np.floor(points.min(axis=0)) - 1, 0, shape).astype(int)
    high = np.clip(np.ceil(points.max(axis=0)) + 2, low, shape).astype(int)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    inner = (int(high[0] - low[0]), int(high[1] - low[1]))
    mask = np.zeros(inner, bool)
    if mask.size:
        for part in region.polygons:
            rings = [np.asarray(ring, np.float64) - low for ring in part]
            mask |= fill_rings(rings, inner) if region.fill == "centres" else _draw_outline(rings, inner)
    return mask, window


def _draw_outline(rings: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Pixels inside the first ring or on it, drawn as lines one pixel wide, less what lies inside the others."""
    canvas = PillowImage.new("L", (shape[1], shape[0]))
    pen = ImageDraw.Draw(canvas)
    points = [(float(x), float(y)) for y, x in rings[0]]
    if len(points) > 1:
        pen.polygon(points, fill=1, outline=1)
    else:
        pen.point(points, fill=1)
    mask = np.array(canvas, bool)
    for hole in rings[1:]:
        mask &= ~fill_rings([hole], shape)
    return mask


def draw_regions(
    regions: Sequence[Region],
    shape: tuple[int, int],
    *,
    order: str = "later_on_top",
    numbers: Sequence[int] | None = None,
) -> np.ndarray:
    """Label image of regions; region k (from 1) has label k.

    Which pixels a region covers is the convention of its source (`Region.fill`). A region that is covered entirely by
    others, or lies outside the image, has no pixel, so ids may have gaps.

    Args:
        regions: objects of one image.
        shape: (height, width).
        order: which region wins where several overlap, `"later_on_top"` or `"small_on_top"` (by area).
        numbers: labels of the regions, instead of 1, 2, ...

    Returns:
        (H, W) int32 labels.
    """
    check_choice("order", order, ("later_on_top", "small_on_top"))
    height, width = standardize_tuple(shape, 2, "shape")
    labels = np.zeros((height, width), np.int32)
    sequence = list(range(len(regions)))
    if order == "small_on_top":
        sequence.sort(key=lambda k: -regions[k].area)
    for k in sequence:
        mask, window = region_mask(regions[k], (height, width))
        labels[window][mask] = k + 1 if numbers is None else numbers[k]
    return labels


# Sides of a pixel, walked clockwise: top (to the right), right (down), bottom (to the left), left (up).
_AHEAD = np.array([(0, 1), (1, 0), (0, -1), (-1, 0)])
_ASIDE = np.array([(-1, 1), (1, 1), (1, -1), (-1, -1)])
_CORNER = np.array([(-0.5, 0.5), (0.5, 0.5), (0.5, -0.5), (-0.5, -0.5)])  # where a side ends


def trace_labels(labels: np.ndarray) -> list[Region]:
    """Outlines of the objects of a label image along the edges of their pixels, with holes, exactly.

    Parts that touch only at a corner are separate parts of one object. `draw_regions(regions, shape, numbers=keys)` of
    the result gives the label image again.

    Args:
        labels: (H, W) whole numbers, 0 = background.

    Returns:
        One `Region` per label in rising order; `key` is the label, `fill` is `"centres"`.
    """
    from skimage.measure import label as label_parts

    labels = np.asarray(labels)
    height, width = labels.shape
    padded = np.pad(labels, 1)
    size = padded.size
    flat = padded.ravel()
    steps_ahead, steps_aside = (offsets @ np.array([width + 2, 1]) for offsets in (_AHEAD, _ASIDE))
    inside = np.flatnonzero(flat)
    follow = np.zeros(4 * size, np.int64)  # side s of pixel p is edge s * size + p
    edges = []
    for side in range(4):
        outward = steps_ahead[side - 1]
        pixel = inside[flat[inside + outward] != flat[inside]]
        ahead, aside = pixel + steps_ahead[side], pixel + steps_aside[side]
        same_ahead = flat[ahead] == flat[pixel]
        same_aside = same_ahead & (flat[aside] == flat[pixel])
        following = np.where(same_ahead, side * size + ahead, (side + 1) % 4 * size + pixel)
        follow[side * size + pixel] = np.where(same_aside, (side - 1) % 4 * size + aside, following)
        edges.append(side * size + pixel)
    component = label_parts(padded, connectivity=1).ravel()
    objects: dict[int, dict[int, list[np.ndarray]]] = {}
    for edge, ring in _rings(follow, np.concatenate(edges), size):
        side, pixel = ring // size, ring % size
        points = np.column_stack(np.divmod(pixel, width + 2)) - 1 + _CORNER[side]
        rings = objects.setdefault(int(flat[edge % size]), {}).setdefault(int(component[edge % size]), [])
        y, x = points.T
        if np.dot(x, np.roll(y, -1)) > np.dot(y, np.roll(x, -1)):
            rings.insert(0, points)  # clockwise on the screen: the outer one
        else:
            rings.append(points)
    regions = []
    for key in sorted(objects):
        first, *others = (tuple(rings) for rings in objects[key].values())
        regions.append(Region(first[0], holes=first[1:], parts=tuple(others), key=key, fill="centres"))
    return regions


def _rings(follow: np.ndarray, edges: np.ndarray, size: int) -> list[tuple[int, np.ndarray]]:
    """Closed walks over the edges: first edge, and the edges after which the walk turns."""
    index = np.full(len(follow), -1, np.int64)
    index[edges] = np.arange(len(edges))
    after = index[follow[edges]].tolist()
    turns = edges // size != follow[edges] // size
    seen = np.zeros(len(edges), bool)
    walks = []
    for start in range(len(edges)):
        if seen[start]:
            continue
        walk, here = [], start
        while not walk or here != start:
            walk.append(here)
            here = after[here]
        walk = np.array(walk)
        seen[walk] = True
        walks.append((int(edges[start]), edges[walk[turns[walk]]]))
    return walks
