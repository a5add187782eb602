"""VGG Image Annotator: exports of versions 1 and 2 (JSON, CSV), projects of version 2, projects of version 3."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.io.annotations.pieces import NOTE, join_pieces, read_note, split_pieces
from keras_microseg.io.annotations.records import (
    AnnotatedImage,
    Annotations,
    Collector,
    Region,
    ellipse,
    read_json,
    rectangle,
)
from keras_microseg.io.files import atomic_path

LAYOUTS = ("project", "export", "via1", "via3")
_CATEGORY_NAMES = ("category", "class", "category_name", "class_name", "name", "label", "type")
_VIA3_SHAPES = {1: "point", 2: "rect", 3: "circle", 4: "ellipse", 5: "line", 6: "polyline", 7: "polygon"}
_DAMAGED = "damaged shape"


def read_via(path: str | os.PathLike) -> dict[str, list[Region]]:
    """Read the regions of a VIA project or of its export; see `read` for the whole record.

    Polygons, polylines, rectangles, circles and ellipses are read as outlines; points are left out.

    Args:
        path: `.json` file, a project or an export.

    Returns:
        File name of each image -> its regions in the order of the file.

    Raises:
        FileError: not readable as JSON, not a VIA project, or a damaged shape.
    """
    found = read(path)
    for problem in found.problems:
        if problem.kind == _DAMAGED:
            where = f"{problem.image}, {problem.object}"
            raise FileError(path, f"has a damaged shape ({where}: {problem.message}).", "Delete or redraw it in VIA.")
    return {image.name: list(image.regions) for image in found.images}


def read(path: str | os.PathLike, *, category: str | None = None) -> Annotations:
    """Read a VIA file of any version.

    Args:
        path: `.json` or `.csv` file.
        category: the region attribute that names the class; None = `category`, `class`, `name`, `label` or `type`.

    Returns:
        Images in the order of the file; damaged shapes are left out and listed among the problems.

    Raises:
        FileError: unreadable, or no VIA file.
    """
    path = Path(path)
    collector = Collector(path, "via")
    if path.suffix.lower() == ".csv":
        entries = _csv_entries(path)
    else:
        content = read_json(path, "VIA project")
        if is_via3(content):
            entries = _via3_entries(content, collector)
        else:
            entries = content.get("_via_img_metadata", content) if isinstance(content, dict) else None
            entries = list(entries.values()) if isinstance(entries, dict) else None
            if entries is None or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
                raise FileError(path, "is not a VIA 2 project.", "Expected entries with 'filename' and 'regions'.")
    for entry in entries:
        name = str(entry["filename"])
        listed = entry.get("regions") or []
        if isinstance(listed, dict):  # VIA 1 numbers them by keys
            listed = list(listed.values())
        pieces = []
        for number, region in enumerate(listed, start=1):
            try:
                outline = _outline(region["shape_attributes"])
                attributes = dict(region.get("region_attributes") or {})
            except (KeyError, TypeError, ValueError) as error:
                message = f"{error} is missing" if isinstance(error, KeyError) else str(error)
                collector.note(name, f"region {number}", _DAMAGED, message)
                continue
            if outline is None:
                kind = region["shape_attributes"]["name"]
                collector.note(name, f"region {number}", "no area", f"is a {kind} and is left out.", is_error=False)
                continue
            note = read_note(attributes.pop(NOTE, None))
            pieces.append((Region(outline, attributes, _category(attributes, category), key=number), note))
        attributes = entry.get("file_attributes") or {}
        collector.add(AnnotatedImage(name, join_pieces(pieces), attributes=attributes))
    return collector.result()


def write(path: str | os.PathLike, annotations: Annotations, *, layout: str = "project") -> None:
    """Write a VIA file.

    Args:
        path: `.json` file.
        annotations: what to write; holes and parts become regions of their own that carry a note.
        layout: `"project"` (VIA 2), `"export"` (VIA 2 without settings), `"via1"` or `"via3"`.
    """
    check_choice("layout", layout, LAYOUTS)
    entries: dict[str, dict[str, Any]] = {}
    for image in annotations.images:
        regions = []
        for number, region in enumerate(image.regions, start=1):
            attributes = dict(region.attributes)
            if region.category and _category(attributes, None) != region.category:
                attributes["category"] = region.category
            for ring, note in split_pieces(region, number):
                xs, ys = ([float(v) if v % 1 else int(v) for v in ring[:, axis]] for axis in (1, 0))
                shape = {"name": "polygon", "all_points_x": xs, "all_points_y": ys}
                noted = {**attributes, NOTE: json.dumps(note)} if note else attributes
                regions.append({"shape_attributes": shape, "region_attributes": noted})
        listed = {str(k): region for k, region in enumerate(regions)} if layout == "via1" else regions
        entry = {"filename": image.name, "size": -1, "regions": listed, "file_attributes": dict(image.attributes)}
        entries[f"{image.name}-1" if image.plane is None else f"{image.name}-1#{image.plane}"] = entry
    content: dict[str, Any] = entries
    if layout == "project":
        content = {
            "_via_settings": {"project": {"name": Path(path).stem}},
            "_via_img_metadata": entries,
            "_via_attributes": {"region": {"category": {"type": "text"}}, "file": {}},
            "_via_data_format_version": "2.0.10",
            "_via_image_id_list": list(entries),
        }
    elif layout == "via3":
        content = _via3_content(list(entries.values()), Path(path).stem)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content), encoding="utf-8")


def is_via3(content: Any) -> bool:
    """True for the content of a VIA 3 project."""
    return isinstance(content, dict) and {"file", "view", "metadata"} <= set(content)


def _category(attributes: Mapping[str, Any], name: str | None) -> str:
    """The class among region attributes; of a checkbox the first that is ticked."""
    lower = {str(key).lower(): value for key, value in attributes.items()}
    for key in [name.lower()] if name else _CATEGORY_NAMES:
        value = lower.get(key)
        if isinstance(value, Mapping):
            value = next((str(option) for option, ticked in value.items() if ticked), "")
        if value not in (None, ""):
            return str(value)
    return ""


def _outline(shape: Mapping[str, Any]) -> np.ndarray | None:
    """(N, 2) vertices (y, x) of a VIA shape; None for a point or line."""
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        points = np.column_stack([shape["all_points_y"], shape["all_points_x"]]).astype(np.float64)
    elif kind == "rect":
        top, left = float(shape["y"]), float(shape["x"])
        points = rectangle(top, left, top + float(shape["height"]), left + float(shape["width"]))
    elif kind in ("circle", "ellipse"):
        radii = float(shape.get("ry", shape.get("r"))), float(shape.get("rx", shape.get("r")))
        points = ellipse((float(shape["cy"]), float(shape["cx"])), radii, float(shape.get("theta", 0.0)))
    elif kind in ("point", "line"):
        return None
    else:
        raise UserError(f"unknown shape {kind!r}")
    if not len(points) or not np.isfinite(points).all():
        raise UserError("its vertices are missing or not finite")
    return points


def _csv_entries(path: Path) -> list[dict[str, Any]]:
    """Entries of a CSV export, one line per region."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = [{str(k).lstrip("#"): v for k, v in row.items()} for row in csv.DictReader(file)]
        entries: dict[str, dict[str, Any]] = {}
        for row in rows:
            fresh = {"filename": row["filename"], "regions": [], "file_attributes": json.loads(row["file_attributes"])}
            entry = entries.setdefault(row["filename"], fresh)
            shape = json.loads(row["region_shape_attributes"])
            if shape:
                noted = json.loads(row["region_attributes"])
                entry["regions"].append({"shape_attributes": shape, "region_attributes": noted})
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check the name and rights.") from error
    except (KeyError, TypeError, ValueError) as error:
        raise FileError(path, f"is not a VIA export ({error}).", "Export the annotations as CSV or JSON.") from error
    return list(entries.values())


def _via3_entries(content: Mapping[str, Any], collector: Collector) -> list[dict[str, Any]]:
    """Entries of a VIA 3 project in the form of VIA 2."""
    files, views = content["file"], content["view"]
    attributes = content.get("attribute") or {}
    entries = {}
    for fid, file in files.items():
        entries[str(fid)] = {"filename": str(file.get("fname") or file.get("src") or fid), "regions": []}
    for key, item in content["metadata"].items():
        view = views.get(str(item.get("vid")), {})
        owner = next((str(fid) for fid in view.get("fid_list", ())), None)
        if owner not in entries:
            collector.note("", f"metadata {key}", "absent image", "belongs to a file that the project does not list.")
            continue
        noted = {}
        for number, value in (item.get("av") or {}).items():
            attribute = attributes.get(str(number), {})
            options = attribute.get("options")
            options = options if isinstance(options, Mapping) else {}
            noted[attribute.get("aname", str(number))] = options.get(str(value), value)
        xy = item.get("xy") or []
        if not xy:
            entries[owner].setdefault("file_attributes", {}).update(noted)
            continue
        entries[owner]["regions"].append({"shape_attributes": _via3_shape(xy), "region_attributes": noted})
    return list(entries.values())


def _via3_shape(xy: Sequence[Any]) -> dict[str, Any]:
    kind, values = _VIA3_SHAPES.get(xy[0], f"number {xy[0]}"), list(xy[1:])
    if kind in ("polygon", "polyline"):
        return {"name": kind, "all_points_x": values[0::2], "all_points_y": values[1::2]}
    names = {"rect": ("x", "y", "width", "height"), "circle": ("cx", "cy", "r"), "ellipse": ("cx", "cy", "rx", "ry")}
    return {"name": kind, **dict(zip(names.get(kind, ()), values, strict=False))}


def _via3_content(entries: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    regions = [(k, region) for k, entry in enumerate(entries, start=1) for region in entry["regions"]]
    names = sorted({key for _, region in regions for key in region["region_attributes"]})
    numbers = {key: str(k) for k, key in enumerate(names, start=1)}
    metadata = {}
    for k, (owner, region) in enumerate(regions, start=1):
        shape = region["shape_attributes"]
        xy = [7, *(v for point in zip(shape["all_points_x"], shape["all_points_y"], strict=True) for v in point)]
        values = {numbers[key]: value for key, value in region["region_attributes"].items()}
        metadata[f"{owner}_{k}"] = {"vid": str(owner), "flg": 0, "z": [], "xy": xy, "av": values}
    text = {"anchor_id": "FILE1_Z0_XY1", "type": 1, "desc": "", "options": {}, "default_option_id": ""}
    count = range(1, len(entries) + 1)
    return {
        "project": {"pid": "__VIA_PROJECT_ID__", "pname": name, "data_format_version": "3.1.1",
                    "vid_list": [str(k) for k in count]},
        "config": {},
        "attribute": {number: {"aname": key, **text} for key, number in numbers.items()},
        "file": {str(k): {"fid": k, "fname": entry["filename"], "type": 2, "loc": 1, "src": entry["filename"]}
                 for k, entry in zip(count, entries, strict=True)},
        "view": {str(k): {"fid_list": [k]} for k in count},
        "metadata": metadata,
    }  # fmt: skip
