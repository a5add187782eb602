"""COCO instance files: polygons, runs as lists and as compressed text, any category numbers (0 too)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError
from keras_microseg.io.annotations.drawing import region_mask
from keras_microseg.io.annotations.records import AnnotatedImage, Annotations, Collector, Region, Rle, read_json
from keras_microseg.io.files import atomic_path


def read(path: str | os.PathLike) -> Annotations:
    """Read a COCO file.

    Several polygons of one annotation are parts of one object; vertices count from the corner of the first pixel.
    Folders in `file_name` are dropped. What cannot be read is left out and listed among the problems: damaged shapes,
    annotations of images or categories that the file does not list (the latter stay, without a category), and numbers
    given twice.

    Raises:
        FileError: unreadable, or no COCO file.
    """
    path = Path(path)
    content = read_json(path, "COCO file")
    if not is_coco(content):
        raise FileError(path, "is not a COCO file.", "Expected the lists 'images' and 'annotations'.")
    collector = Collector(path, "coco")
    categories: dict[Any, str] = {}
    for category in content.get("categories") or []:
        if category.get("id") in categories:
            collector.note("", f"category {category.get('id')}", "duplicate id", "its number is given twice.")
        categories[category.get("id")] = str(category.get("name", category.get("id")))
    images: dict[Any, Mapping[str, Any]] = {}
    for entry in content["images"]:
        if entry.get("id") in images:
            collector.note(_name(entry), "", "duplicate id", f"image number {entry.get('id')} is given twice.")
            continue
        images[entry.get("id")] = entry
    regions: dict[Any, list[Region]] = {number: [] for number in images}
    seen: set[Any] = set()
    for place, entry in enumerate(content["annotations"], start=1):
        number, owner = entry.get("id", f"at place {place}"), entry.get("image_id")
        item = f"annotation {number}"
        if owner not in images:
            collector.note("", item, "absent image", f"belongs to image {owner}, which the file does not list.")
            continue
        name = _name(images[owner])
        if number in seen:
            collector.note(name, item, "duplicate id", "its number is given twice.")
        seen.add(number)
        category = categories.get(entry.get("category_id"), "")
        if entry.get("category_id") not in categories:
            collector.note(name, item, "unknown category", f"category {entry.get('category_id')} is not listed.")
        try:
            regions[owner].append(_region(entry, category, number, _size(images[owner])))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            collector.note(name, item, "damaged shape", str(error))
    for number, entry in images.items():
        notes = {key: entry[key] for key in ("license", "date_captured") if key in entry}
        collector.add(AnnotatedImage(_name(entry), tuple(regions[number]), _size(entry), notes), categories.values())
    return collector.result()


def write(path: str | os.PathLike, annotations: Annotations, *, runs: bool = False, first_category: int = 1) -> None:
    """Write a COCO file.

    Objects without holes become polygons; those with holes, crowds and masks become runs (compressed text; lists for
    crowds, as in the published files). COCO leaves out pixels that only touch the outline, so objects of VIA and
    labelme lose about half a pixel all around as polygons; as runs they keep every pixel.

    Args:
        path: `.json` file.
        annotations: every image needs its size.
        runs: write every object as runs.
        first_category: number of the first category.

    Raises:
        UserError: an image of unknown size.
    """
    names = list(annotations.categories)
    if any(not region.category for image in annotations.images for region in image.regions):
        names += [name for name in ["object"] if name not in names]
    numbers = {name: k for k, name in enumerate(names, start=first_category)}
    images, entries = [], []
    for k, image in enumerate(annotations.images, start=1):
        if image.size is None:
            raise UserError(f"{image.name}: its size is not known, and COCO needs it. Give the folder of the images.")
        height, width = (int(edge) for edge in image.size)
        images.append({"id": k, "file_name": image.name, "height": height, "width": width})
        for region in image.regions:
            entry = {"id": len(entries) + 1, "image_id": k, "category_id": numbers[region.category or "object"]}
            entries.append({**entry, **_shape(region, (height, width), runs)})
            if region.attributes:
                entries[-1]["attributes"] = dict(region.attributes)
    listed = [{"id": number, "name": name, "supercategory": name} for name, number in numbers.items()]
    with atomic_path(path) as temporary:
        content = {"images": images, "annotations": entries, "categories": listed}
        temporary.write_text(json.dumps(content, default=str), encoding="utf-8")


def is_coco(content: Any) -> bool:
    """True for the content of a COCO file."""
    return isinstance(content, dict) and all(isinstance(content.get(key), list) for key in ("images", "annotations"))


def compress_runs(counts: Sequence[int]) -> str:
    """Runs as COCO's text: differences to the run before last, six bits per letter."""
    letters = []
    for k, count in enumerate(counts):
        value = int(count) - (int(counts[k - 2]) if k > 2 else 0)
        more = True
        while more:
            bits = value & 0x1F
            value >>= 5
            more = value != -1 if bits & 0x10 else value != 0
            letters.append(chr((bits | 0x20 if more else bits) + 48))
    return "".join(letters)


def expand_runs(text: str) -> list[int]:
    """Runs of `compress_runs`.

    Raises:
        UserError: letters that do not occur in it, or a cut end.
    """
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64:
            raise UserError(f"compressed runs with the letter {letter!r}")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift:
        raise UserError("compressed runs that end in the middle of a number")
    return counts


def _name(entry: Mapping[str, Any]) -> str:
    return str(entry.get("file_name", entry.get("id"))).replace("\\", "/").rsplit("/", 1)[-1]


def _size(entry: Mapping[str, Any]) -> tuple[int, int] | None:
    try:
        return int(entry["height"]), int(entry["width"])
    except (KeyError, TypeError, ValueError):
        return None


def _region(entry: Mapping[str, Any], category: str, number: Any, size: tuple[int, int] | None) -> Region:
    shape = entry["segmentation"]
    facts = {
        "attributes": entry.get("attributes") or {},
        "category": category,
        "crowd": bool(entry.get("iscrowd", 0)),
        "key": number,
        "fill": "centres",
    }
    if isinstance(shape, Mapping):
        height, width = (int(edge) for edge in shape["size"])
        counts = shape["counts"]
        counts = expand_runs(counts) if isinstance(counts, str) else [int(count) for count in counts]
        if min(counts, default=0) < 0 or sum(counts) != height * width:
            raise UserError(f"its runs do not add up to {height} x {width} pixels")
        if size is not None and size != (height, width):
            raise UserError(f"its mask has {height} x {width} pixels, the image {size[0]} x {size[1]}")
        return Region(None, mask=Rle((height, width), tuple(counts)), **facts)
    if not shape:
        raise UserError("it has no polygon")
    parts = []
    for numbers in shape:
        points = np.asarray(numbers, np.float64)
        if points.ndim != 1 or len(points) % 2 or len(points) < 6 or not np.isfinite(points).all():
            raise UserError(f"a polygon needs three or more pairs of numbers, it has {points.size} numbers")
        parts.append((points.reshape(-1, 2)[:, ::-1] - 0.5,))
    return Region(parts[0][0], parts=tuple(parts[1:]), **facts)


def _shape(region: Region, size: tuple[int, int], as_runs: bool) -> dict[str, Any]:
    polygons = region.polygons
    if not as_runs and region.mask is None and not region.crowd and all(len(part) == 1 for part in polygons):
        rings = [part[0][:, ::-1] + 0.5 for part in polygons]
        points = np.concatenate(rings)
        low, high = points.min(axis=0), points.max(axis=0)
        box = [*low.tolist(), *(high - low).tolist()]
        return {"segmentation": [ring.ravel().tolist() for ring in rings], "area": region.area, "bbox": box,
                "iscrowd": 0}  # fmt: skip
    inside, window = region_mask(region, size)
    mask = np.zeros(size, bool)
    mask[window] = inside
    runs = Rle.encode(mask)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = [0, 0, 0, 0]
    if len(rows):
        box = [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]
    counts = list(runs.counts) if region.crowd else compress_runs(runs.counts)
    return {"segmentation": {"size": [int(edge) for edge in size], "counts": counts}, "area": int(mask.sum()),
            "bbox": box, "iscrowd": int(region.crowd)}  # fmt: skip
