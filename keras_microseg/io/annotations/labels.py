"""Label images and label volumes as annotations."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.io.annotations.drawing import draw_regions, trace_labels
from keras_microseg.io.annotations.labelme import file_stem
from keras_microseg.io.annotations.records import AnnotatedImage, Annotations, Collector, Region
from keras_microseg.io.files import find_images
from keras_microseg.io.labels import read_labels, write_labels


def read(path: str | os.PathLike, *, axis: str = "z") -> Annotations:
    """Objects of label images (each traced along the edges of its pixels) and of the planes of label volumes.

    Args:
        path: a label image or volume, or a folder of them; see `read_labels`.
        axis: direction in which volumes are cut into planes: `"z"`, `"y"` or `"x"`.

    Returns:
        An image per file, or per plane with objects or without; files that are no labels are listed as problems.

    Raises:
        FileError: nothing there, or a single file that is no label image.
    """
    path = Path(path)
    check_choice("axis", axis, ("z", "y", "x"))
    collector = Collector(path, "labels")
    for file in find_images(path):
        try:
            image = read_labels(file)
        except FileError as error:
            if not path.is_dir():
                raise
            collector.note(file.name, "", "unreadable file", str(error))
            continue
        facts = image.metadata.get("origin")
        names = facts.get("categories", {}) if isinstance(facts, Mapping) else {}
        labels = image.read()
        if image.axes == "YX":
            collector.add(AnnotatedImage(file.name, _regions(labels, names), labels.shape))
            continue
        for index, plane in enumerate(np.moveaxis(labels, "zyx".index(axis), 0)):
            collector.add(AnnotatedImage(file.name, _regions(plane, names), plane.shape, plane=(axis, index)))
    return collector.result()


def write(folder: str | os.PathLike, annotations: Annotations, *, order: str = "later_on_top") -> None:
    """Write a label TIFF per image, one per volume where there are planes, into a folder.

    Labels are the whole-number keys of the objects where all of an image have different ones (in volumes an object
    keeps its label from plane to plane), else 1, 2, ... The names of the categories stand in the file.

    Args:
        folder: for the files, named after the images.
        annotations: every image needs its size.
        order: which object wins where several overlap, see `draw_regions`.

    Raises:
        UserError: an image of unknown size, or planes that do not fit together.
    """
    volumes: dict[tuple[str, str], list[AnnotatedImage]] = {}
    for image in annotations.images:
        if image.size is None:
            raise UserError(f"{image.name}: its size is not known. Give the folder of the images.")
        if image.plane is not None:
            volumes.setdefault((image.name, image.plane[0]), []).append(image)
            continue
        numbers = _numbers(image)
        labels = draw_regions(image.regions, image.size, order=order, numbers=numbers)
        write_labels(Path(folder) / f"{file_stem(image)}.tif", labels, origin=_facts([image], [numbers]))
    for (name, axis), planes in volumes.items():
        if len({plane.size for plane in planes}) > 1:
            raise UserError(f"{name}: its planes have different sizes.")
        depth = max(plane.plane[1] for plane in planes) + 1
        volume = np.zeros((depth, *planes[0].size), np.int32)
        numbers = [_numbers(plane) for plane in planes]
        for plane, known in zip(planes, numbers, strict=True):
            volume[plane.plane[1]] = draw_regions(plane.regions, plane.size, order=order, numbers=known)
        volume = np.moveaxis(volume, 0, "zyx".index(axis))
        write_labels(Path(folder) / f"{Path(name).stem}.tif", volume, origin=_facts(planes, numbers))


def _regions(labels: np.ndarray, names: Mapping[str, str]) -> tuple[Region, ...]:
    regions = trace_labels(labels)
    return tuple(dataclasses.replace(r, category=str(names[str(r.key)])) if str(r.key) in names else r for r in regions)


def _numbers(image: AnnotatedImage) -> list[int]:
    keys = [region.key for region in image.regions]
    usable = all(isinstance(key, int) and not isinstance(key, bool) and 0 < key < 2**31 for key in keys)
    return keys if usable and len(set(keys)) == len(keys) else list(range(1, len(keys) + 1))


def _facts(images: list[AnnotatedImage], numbers: list[list[int]]) -> dict[str, Any]:
    categories = {
        str(number): region.category
        for image, known in zip(images, numbers, strict=True)
        for number, region in zip(known, image.regions, strict=True)
        if region.category
    }
    return {"method": "annotations", "source": images[0].name, **({"categories": categories} if categories else {})}
