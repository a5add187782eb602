"""What is wrong with annotations that could be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator

import numpy as np

from keras_microseg.io.annotations.records import AnnotatedImage, Annotations, Problem, Region

_PAIRS = 2**22
_UNUSABLE = ("zero area", "too few points", "outside", "size differs")


def check_annotations(annotations: Annotations, *, categories: Collection[str] | None = None) -> tuple[Problem, ...]:
    """All problems: those met while reading, and those of the objects themselves.

    Looked for are outlines of less than three points or of no area, outlines that cross themselves, lie outside the
    image or reach beyond it (needs the size), objects drawn twice, unknown or missing categories, and images without
    objects (a note: they are valid negatives).

    Args:
        annotations: what was read.
        categories: the only names allowed; None = those of the file.

    Returns:
        Problems in the order of the images.
    """
    allowed = set(annotations.categories if categories is None else categories)
    found = list(annotations.problems)
    for image in annotations.images:
        where = str(annotations.path), image.name + (f" {image.plane[0]}={image.plane[1]}" if image.plane else "")
        if not image.regions:
            found.append(Problem(*where, "", "no objects", "has no objects.", is_error=False))
        seen: dict[bytes, str] = {}
        for place, region in enumerate(image.regions, start=1):
            item = f"object {place}" + ("" if region.key in (None, place) else f" ({region.key})")
            for kind, message, is_error in _region_problems(region, image):
                found.append(Problem(*where, item, kind, message, is_error))
            content = b"".join(ring.tobytes() for part in region.polygons for ring in part)
            if content in seen and content:
                found.append(Problem(*where, item, "drawn twice", f"has the same outline as {seen[content]}."))
            seen.setdefault(content, item)
            if region.category and region.category not in allowed:
                listed = ", ".join(sorted(allowed)) or "none"
                message = f"is of category {region.category!r}; known: {listed}."
                found.append(Problem(*where, item, "unknown category", message))
            elif not region.category and allowed:
                found.append(Problem(*where, item, "no category", "has no category.", is_error=False))
    return tuple(found)


def drop_unusable(annotations: Annotations) -> Annotations:
    """Annotations without the objects of which no pixel can be drawn; `check_annotations` names them."""
    images = []
    for image in annotations.images:
        good = (r for r in image.regions if not any(kind in _UNUSABLE for kind, _, _ in _region_problems(r, image)))
        images.append(dataclasses.replace(image, regions=tuple(good)))
    return dataclasses.replace(annotations, images=tuple(images))


def _region_problems(region: Region, image: AnnotatedImage) -> Iterator[tuple[str, str, bool]]:
    """Kind, message and whether it is an error."""
    if region.mask is not None:
        if not region.area:
            yield "zero area", "has no pixel.", True
        if image.size is not None and region.mask.shape != tuple(image.size):
            yield "size differs", f"its mask has {region.mask.shape} pixels, the image {image.size}.", True
        return
    polygons = region.polygons
    if any(len(ring) < 3 for part in polygons for ring in part):
        yield "too few points", "an outline has less than three points.", True
    crossings = sum(count_crossings(ring) for part in polygons for ring in part if len(ring) > 3)
    if region.area <= 0 and not crossings and all(len(part[0]) > 2 for part in polygons):
        yield "zero area", "its outline encloses no area.", True
    if crossings:
        yield "self-crossing", f"its outline crosses itself {crossings} times; even-odd parts of it are used.", False
    if image.size is not None:
        points = np.concatenate([part[0] for part in polygons])
        slack = 0.5 if region.fill == "outline" else 1e-3  # a drawn outline may end at the corner of the last pixel
        limits = np.array(image.size) - 0.5
        low, high = points.min(axis=0), points.max(axis=0)
        if (high < -0.5).any() or (low > limits).any():
            yield "outside", f"lies outside the image of {image.size[0]} x {image.size[1]} pixels.", True
        elif (low < -0.5 - slack).any() or (high > limits + slack).any():
            beyond = float(max((-0.5 - low).max(), (high - limits).max()))
            yield "partly outside", f"reaches {beyond:.1f} px beyond the image and is cut there.", False


def count_crossings(ring: np.ndarray) -> int:
    """How often the edges of a closed polygon cross each other; touching does not count."""
    a = np.asarray(ring, np.float64)
    b = np.roll(a, -1, axis=0)
    count, rows = 0, max(1, _PAIRS // len(a))
    for first in range(0, len(a), rows):
        block = slice(first, first + rows)
        p, q = a[block, None], b[block, None]
        apart = _side(p, q, a[None]) * _side(p, q, b[None]) < 0
        apart &= _side(a[None], b[None], p) * _side(a[None], b[None], q) < 0
        count += int(np.count_nonzero(np.triu(apart, 1 + first)))
    return count


def _side(p: np.ndarray, q: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Sign of the side of the line pq on which a point lies."""
    return np.sign((q[..., 0] - p[..., 0]) * (point[..., 1] - p[..., 1])
                   - (q[..., 1] - p[..., 1]) * (point[..., 0] - p[..., 0]))  # fmt: skip
