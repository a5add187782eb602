"""labelme: one JSON file per image with polygons, rectangles, circles and masks."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations.drawing import trace_labels
from keras_microseg.io.annotations.pieces import join_pieces, read_note, split_pieces
from keras_microseg.io.annotations.records import (
    AnnotatedImage,
    Annotations,
    Collector,
    Region,
    ellipse,
    read_json,
    rectangle,
)
from keras_microseg.io.files import atomic_path, natural_key

_LEFT_OUT = ("point", "points", "line", "linestrip")


def read(path: str | os.PathLike) -> Annotations:
    """Read a labelme file, or all of a folder.

    Shapes of one label with the same `group_id` are parts of one object. Points and lines are left out and listed.

    Args:
        path: `.json` file, or a folder of them; files of a folder that are not labelme's are listed as problems.

    Raises:
        FileError: unreadable, or a single file that is not labelme's.
    """
    path = Path(path)
    collector = Collector(path, "labelme")
    if path.is_dir():
        for file in sorted(path.glob("*.json"), key=natural_key):
            try:
                _read_file(file, collector)
            except FileError as error:
                collector.note(file.name, "", "unreadable file", str(error))
    else:
        _read_file(path, collector)
    return collector.result()


def write(folder: str | os.PathLike, annotations: Annotations) -> None:
    """Write a labelme file per image into a folder.

    Holes and parts become shapes of one `group_id` with a note in `description`.

    Raises:
        UserError: an image of unknown size.
    """
    for image in annotations.images:
        if image.size is None:
            raise UserError(
                f"{image.name}: its size is not known, and labelme needs it. Give the folder of the images."
            )
        shapes = []
        for number, region in enumerate(image.regions, start=1):
            for ring, note in split_pieces(region, number):
                shape = {"label": region.category or "object", "points": np.asarray(ring)[:, ::-1].tolist(),
                         "group_id": note.get("object"), "shape_type": "polygon", "flags": {},
                         "description": json.dumps(note) if note else "", "mask": None}  # fmt: skip
                shapes.append(shape)
        content = {"version": "5.5.0", "flags": dict(image.attributes), "shapes": shapes, "imagePath": image.name,
                   "imageData": None, "imageHeight": int(image.size[0]), "imageWidth": int(image.size[1])}  # fmt: skip
        with atomic_path(Path(folder) / f"{file_stem(image)}.json") as temporary:
            temporary.write_text(json.dumps(content, default=str), encoding="utf-8")


def file_stem(image: AnnotatedImage) -> str:
    """Name for a file about one image, without ending; a plane of a volume adds its axis and index."""
    return Path(image.name).stem + ("" if image.plane is None else f"_{image.plane[0]}{image.plane[1]:04d}")


def is_labelme(content: Any) -> bool:
    """True for the content of a labelme file."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list) and "imagePath" in content


def _read_file(path: Path, collector: Collector) -> None:
    content = read_json(path, "labelme file")
    if not is_labelme(content):
        raise FileError(path, "is not a labelme file.", "Expected 'shapes' and 'imagePath'.")
    name = str(content["imagePath"]).replace("\\", "/").rsplit("/", 1)[-1]
    pieces = []
    for number, shape in enumerate(content["shapes"], start=1):
        item, kind = f"shape {number}", shape.get("shape_type") or "polygon"
        if kind in _LEFT_OUT:
            collector.note(name, item, "no area", f"is a {kind} and is left out.", is_error=False)
            continue
        try:
            region = _region(shape, kind, number)
        except (KeyError, TypeError, ValueError, IndexError, OSError) as error:
            message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            collector.note(name, item, "damaged shape", message)
            continue
        note = read_note(shape.get("description"))
        if not note and shape.get("group_id") is not None:
            note = {"object": (shape.get("label"), shape["group_id"])}
        pieces.append((region, note))
    try:
        size = int(content["imageHeight"]), int(content["imageWidth"])
    except (KeyError, TypeError, ValueError):
        size = None
    flags = content.get("flags")
    collector.add(AnnotatedImage(name, join_pieces(pieces), size, flags if isinstance(flags, Mapping) else {}))


def _region(shape: Mapping[str, Any], kind: str, number: int) -> Region:
    points = np.asarray(shape["points"], np.float64).reshape(-1, 2)[:, ::-1]
    if not len(points) or not np.isfinite(points).all():
        raise UserError("its points are missing or not finite")
    facts = {"attributes": dict(shape.get("flags") or {}), "category": str(shape.get("label") or ""), "key": number}
    if kind == "mask":
        return _from_mask(shape["mask"], points[0], facts)
    if kind == "circle":
        radius = float(np.hypot(*(points[1] - points[0])))
        outline = ellipse(tuple(points[0]), (radius, radius))
    elif kind == "rectangle":
        outline = rectangle(*points.min(axis=0), *points.max(axis=0))
    elif kind in ("polygon", "oriented_rectangle"):
        outline = points
    else:
        raise UserError(f"unknown shape {kind!r}")
    return Region(outline, **facts)


def _from_mask(text: str, corner: Sequence[float], facts: Mapping[str, Any]) -> Region:
    """An object from the picture of its pixels; `corner` is the place of the first."""
    mask = np.array(PillowImage.open(io.BytesIO(base64.b64decode(text)))).astype(bool)
    if mask.ndim != 2 or not mask.any():
        raise UserError("its mask is empty")
    first, *others = (tuple(ring + np.rint(corner) for ring in part) for part in trace_labels(mask * 1)[0].polygons)
    return Region(first[0], holes=first[1:], parts=tuple(others), fill="centres", **facts)
