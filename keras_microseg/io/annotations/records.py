"""What an annotation file says, whatever its format: images with objects, and the problems met on the way.

Coordinates are (y, x) in pixels and whole at pixel centres, so pixel (0, 0) covers -0.5 to 0.5. Formats that count from
the corner of the first pixel (COCO, ImageJ) are shifted by half a pixel when read and written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError

FILLS = ("outline", "centres")
Rings = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Rle:
    """Runs of a mask in column order (COCO): `counts` pixels outside, inside, outside, ... down the columns.

    Attributes:
        shape: (height, width) of the mask.
        counts: lengths of the runs; their sum is height * width.
    """

    shape: tuple[int, int]
    counts: tuple[int, ...]

    @classmethod
    def encode(cls, mask: np.ndarray) -> Rle:
        """Runs of a (H, W) boolean mask."""
        flat = np.asarray(mask, bool).ravel(order="F")
        changes = np.flatnonzero(np.diff(flat.astype(np.int8))) + 1
        counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
        return cls(mask.shape, tuple([0, *counts] if flat.size and flat[0] else counts))

    def decode(self) -> np.ndarray:
        """The (H, W) boolean mask."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.shape, order="F")


@dataclasses.dataclass(frozen=True)
class Region:
    """One annotated object: a polygon, with holes and further parts where it has them, or the runs of a mask.

    Attributes:
        outline: (N, 2) float64 vertices (y, x) of a closed polygon, in pixels; pixel centres are whole numbers. None
            for an object given by `mask`.
        attributes: what the annotator noted about it.
        category: name of its class; "" = none given.
        holes: outlines cut out of it.
        parts: further separate parts, each a tuple of an outline and its holes.
        mask: runs, instead of an outline.
        crowd: stands for a group of objects that were not drawn one by one.
        key: number or name of the object in its file; the label in a label image.
        fill: which pixels it covers: `"outline"`, those inside or on the drawn outline (VIA, labelme); `"centres"`,
            those whose centre lies inside (COCO, ImageJ, label images).
    """

    outline: np.ndarray | None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    category: str = ""
    holes: Rings = ()
    parts: tuple[Rings, ...] = ()
    mask: Rle | None = None
    crowd: bool = False
    key: int | str | None = None
    fill: str = "outline"

    @property
    def polygons(self) -> tuple[Rings, ...]:
        """Every part as (outline, hole, hole, ...); a mask is traced along the edges of its pixels."""
        if self.outline is not None:
            return ((np.asarray(self.outline, np.float64), *self.holes), *self.parts)
        if self.mask is None:
            return ()
        from keras_microseg.io.annotations.drawing import trace_labels

        traced = trace_labels(self.mask.decode().astype(np.int32))
        return traced[0].polygons if traced else ()

    @property
    def area(self) -> float:
        """Area in px^2: of the mask, else of the parts less their holes."""
        if self.mask is not None:
            return float(sum(self.mask.counts[1::2]))
        return sum(polygon_area(outer) - sum(map(polygon_area, holes)) for outer, *holes in self.polygons)


@dataclasses.dataclass(frozen=True)
class AnnotatedImage:
    """One image and its objects; none is a valid answer (a negative image).

    Attributes:
        name: file name without folder.
        regions: in the order of the file.
        size: (height, width), None where the file does not tell.
        attributes: notes about the whole image.
        plane: (axis, index) for a plane of a volume, such as `("z", 12)`.
    """

    name: str
    regions: tuple[Region, ...] = ()
    size: tuple[int, int] | None = None
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    plane: tuple[str, int] | None = None


@dataclasses.dataclass(frozen=True)
class Problem:
    """Something wrong with one object, image or file; the rest is read all the same.

    Attributes:
        file: the annotation file.
        image: name of the image in it, "" = the whole file.
        object: which object, like `region 3`, "" = the whole image.
        kind: short name of the problem, such as `damaged shape`.
        message: what is wrong, for people.
        is_error: False for a mere note.
    """

    file: str
    image: str
    object: str
    kind: str
    message: str
    is_error: bool = True

    def __str__(self) -> str:
        where = ", ".join(part for part in (self.image, self.object) if part)
        return f"{self.file}: {where + ': ' if where else ''}{self.kind}: {self.message}"


@dataclasses.dataclass(frozen=True)
class Annotations:
    """All images of one annotation file or folder.

    Attributes:
        images: each name (and plane) once.
        categories: names of the classes, in the order of the file.
        path: where it was read.
        format: one of `FORMATS`.
        problems: what had to be left out or looks wrong.
    """

    images: tuple[AnnotatedImage, ...]
    categories: tuple[str, ...] = ()
    path: Path = Path()
    format: str = ""
    problems: tuple[Problem, ...] = ()

    @property
    def num_regions(self) -> int:
        return sum(len(image.regions) for image in self.images)


class Collector:
    """Gathers images, categories and problems while a file is read."""

    def __init__(self, path: Path, format: str):
        self.path, self.format = path, format
        self.images: dict[tuple[str, Any], AnnotatedImage] = {}
        self.categories: dict[str, None] = {}
        self.problems: list[Problem] = []

    def note(self, image: str, item: str, kind: str, message: str, *, is_error: bool = True) -> None:
        """Record a problem."""
        self.problems.append(Problem(str(self.path), image, item, kind, message, is_error))

    def add(self, image: AnnotatedImage, categories: Sequence[str] = ()) -> None:
        """Add an image; regions of one that is there already are joined, and that is noted."""
        key = (image.name, image.plane)
        known = self.images.get(key)
        if known is not None:
            self.note(image.name, "", "duplicate image", "is listed more than once; its objects are joined.")
            image = dataclasses.replace(known, regions=(*known.regions, *image.regions), size=known.size or image.size)
        self.images[key] = image
        self.categories.update(dict.fromkeys([*categories, *(r.category for r in image.regions if r.category)]))

    def result(self) -> Annotations:
        """All of it."""
        images, names = tuple(self.images.values()), tuple(self.categories)
        if not images:
            self.note("", "", "empty file", "lists no image.")
        return Annotations(images, names, self.path, self.format, tuple(self.problems))


def polygon_area(outline: np.ndarray) -> float:
    """Shoelace area of a closed outline of (y, x) vertices, in px^2."""
    y, x = np.asarray(outline, np.float64).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def ellipse(
    centre: tuple[float, float], radii: tuple[float, float], turn: float = 0.0, points: int = 128
) -> np.ndarray:
    """(N, 2) outline of an ellipse; `turn` in radians from x towards y; centre and radii are (y, x)."""
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    x, y = radii[1] * np.cos(angle), radii[0] * np.sin(angle)
    turned = [x * np.sin(turn) + y * np.cos(turn), x * np.cos(turn) - y * np.sin(turn)]
    return np.column_stack([centre[0] + turned[0], centre[1] + turned[1]])


def rectangle(top: float, left: float, bottom: float, right: float) -> np.ndarray:
    """(4, 2) outline of a rectangle."""
    return np.array([(top, left), (top, right), (bottom, right), (bottom, left)], np.float64)


def read_json(path: Path, what: str) -> Any:
    """Content of a JSON file.

    Raises:
        FileError: unreadable, or not JSON.
    """
    import json

    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileError(
            path, f"cannot be read ({error.strerror or error}).", "Check the name and the rights."
        ) from error
    except ValueError as error:
        raise FileError(path, f"is not JSON ({error}).", f"Save the {what} again.") from error
