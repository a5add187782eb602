"""Annotations drawn by hand: VGG Image Annotator (VIA 2) projects read as label images.

A region becomes one instance. Regions may overlap; one label per pixel is kept, so a later region lies on top of an
earlier one (or, with `order="small_on_top"`, a smaller one on top of a larger one).
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw

from keras_microseg.checks import FileError, UserError, check_choice, standardize_tuple

_ELLIPSE_POINTS = 128


@dataclasses.dataclass(frozen=True)
class Region:
    """One annotated object.

    Attributes:
        outline: (N, 2) float64 vertices (y, x) of a closed polygon, in pixels; pixel centres are whole numbers.
        attributes: what the annotator noted about it.
    """

    outline: np.ndarray
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_via(path: str | os.PathLike) -> dict[str, list[Region]]:
    """Read the regions of a VIA 2 project or of its JSON export.

    Polygons, polylines, rectangles, circles and ellipses are read as outlines; points are left out.

    Args:
        path: `.json` file, a project (`_via_img_metadata`) or an export (the same entries at the top level).

    Returns:
        File name of each image -> its regions in the order of the file.

    Raises:
        FileError: not readable as JSON, or not a VIA project.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileError(
            path, f"cannot be read ({error.strerror or error}).", "Check the name and the rights."
        ) from error
    except ValueError as error:
        raise FileError(path, f"is not JSON ({error}).", "Save the VIA project again.") from error
    entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and "filename" in e for e in entries.values()):
        raise FileError(path, "is not a VIA 2 project.", "Expected entries with 'filename' and 'regions'.")
    images: dict[str, list[Region]] = {}
    for entry in entries.values():
        regions = entry.get("regions", [])
        if isinstance(regions, dict):  # VIA 1 numbers them by keys
            regions = list(regions.values())
        listed = images.setdefault(entry["filename"], [])
        for number, region in enumerate(regions, start=1):
            try:
                outline = _outline(region["shape_attributes"])
            except (KeyError, TypeError, ValueError) as error:
                where = f"{entry['filename']}, region {number}"
                raise FileError(
                    path, f"has a damaged shape ({where}: {error}).", "Delete or redraw it in VIA."
                ) from error
            if outline is not None:
                listed.append(Region(outline, region.get("region_attributes", {}) or {}))
    return images


def draw_regions(regions: Sequence[Region], shape: tuple[int, int], *, order: str = "later_on_top") -> np.ndarray:
    """Label image of regions; region k (from 1) has label k.

    Pixels whose centre lies inside or on the outline belong to the region. A region that is covered entirely by
    others, or lies outside the image, has no pixel, so ids may have gaps.

    Args:
        regions: what `read_via` returns for one image.
        shape: (height, width).
        order: which region wins where several overlap, `"later_on_top"` or `"small_on_top"` (by polygon area).

    Returns:
        (H, W) int32 labels.
    """
    check_choice("order", order, ("later_on_top", "small_on_top"))
    height, width = standardize_tuple(shape, 2, "shape")
    canvas = PillowImage.new("I", (width, height))
    pen = ImageDraw.Draw(canvas)
    sequence = list(range(len(regions)))
    if order == "small_on_top":
        sequence.sort(key=lambda k: -polygon_area(regions[k].outline))
    for k in sequence:
        points = [(float(x), float(y)) for y, x in regions[k].outline]
        if len(points) > 1:
            pen.polygon(points, fill=k + 1, outline=k + 1)
        else:
            pen.point(points, fill=k + 1)
    return np.array(canvas, np.int32)


def polygon_area(outline: np.ndarray) -> float:
    """Shoelace area of a closed outline of (y, x) vertices, in px^2."""
    y, x = np.asarray(outline, np.float64).T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def _outline(shape: Mapping[str, Any]) -> np.ndarray | None:
    """(N, 2) vertices (y, x) of a VIA shape; None for a point."""
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.column_stack([shape["all_points_y"], shape["all_points_x"]]).astype(np.float64)
    elif kind == "rect":
        top, left = float(shape["y"]), float(shape["x"])
        bottom, right = top + float(shape["height"]), left + float(shape["width"])
        points = np.array([(top, left), (top, right), (bottom, right), (bottom, left)])
    elif kind in ("circle", "ellipse"):
        radius_x = float(shape.get("rx", shape.get("r")))
        radius_y = float(shape.get("ry", shape.get("r")))
        turn, angle = float(shape.get("theta", 0.0)), np.linspace(0, 2 * np.pi, _ELLIPSE_POINTS, endpoint=False)
        x, y = radius_x * np.cos(angle), radius_y * np.sin(angle)
        points = np.column_stack(
            [
                float(shape["cy"]) + x * np.sin(turn) + y * np.cos(turn),
                float(shape["cx"]) + x * np.cos(turn) - y * np.sin(turn),
            ]
        )
    elif kind == "point":
        return None
    else:
        raise UserError(f"unknown shape {kind!r}")
    if not len(points) or not np.isfinite(points).all():
        raise UserError("its vertices are missing or not finite")
    return points
