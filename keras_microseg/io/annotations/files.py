"""Which format a file has, and reading and writing by the name of the format."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from keras_microseg.checks import FileError, check_choice
from keras_microseg.io.annotations import coco, imagej, labelme, labels, via
from keras_microseg.io.annotations.records import Annotations, Problem, read_json
from keras_microseg.io.files import find_images
from keras_microseg.io.images import open_image

FORMATS = ("via", "coco", "labelme", "imagej", "labels")
"""What `read_annotations` reads."""

_WRITERS: dict[str, tuple[Callable[..., None], dict[str, Any]]] = {
    "via": (via.write, {}),
    "via-export": (via.write, {"layout": "export"}),
    "via1": (via.write, {"layout": "via1"}),
    "via3": (via.write, {"layout": "via3"}),
    "coco": (coco.write, {}),
    "coco-runs": (coco.write, {"runs": True}),
    "labelme": (labelme.write, {}),
    "imagej": (imagej.write, {}),
    "labels": (labels.write, {}),
}
TARGETS = tuple(_WRITERS)
"""What `write_annotations` writes; labelme, imagej and labels into a folder, the others into a file."""

FOLDER_TARGETS = ("labelme", "imagej", "labels")


def guess_format(path: str | os.PathLike) -> str:
    """The format of an annotation file or folder, one of `FORMATS`.

    Raises:
        FileError: absent, or none of them.
    """
    path = Path(path)
    if not path.exists():
        raise FileError(path, "does not exist.", "Check the name.")
    if path.is_dir():
        endings = {file.suffix.lower() for file in path.iterdir()}
        if endings & {".roi", ".zip"}:
            return "imagej"
        return "labelme" if ".json" in endings else "labels"
    ending = path.suffix.lower()
    if ending in (".roi", ".zip", ".csv"):
        return "via" if ending == ".csv" else "imagej"
    if ending != ".json":
        return "labels"
    content = read_json(path, "annotation file")
    if coco.is_coco(content):
        return "coco"
    return "labelme" if labelme.is_labelme(content) else "via"


def read_annotations(
    path: str | os.PathLike,
    *,
    format: str | None = None,
    images: str | os.PathLike | Iterable[str | os.PathLike] | None = None,
    category: str | None = None,
    drop_absent: bool = False,
) -> Annotations:
    """Read annotations of any format.

    Args:
        path: a file, or a folder of labelme files, ROI sets or label images.
        format: one of `FORMATS`; None = by ending and content.
        images: folder, files or pattern of the annotated images: sizes and full names are taken from them, and images
            that are listed but absent are noted.
        category: for VIA: the region attribute that names the class.
        drop_absent: leave out what is not among `images`.

    Returns:
        All that could be read; `problems` lists the rest by file, image and object.

    Raises:
        FileError: the file as a whole is unreadable or of another format.
    """
    format = guess_format(path) if format is None else check_choice("format", format, FORMATS)
    if format == "via":
        found = via.read(path, category=category)
    else:
        found = {"coco": coco, "labelme": labelme, "imagej": imagej, "labels": labels}[format].read(path)
    return found if images is None else match_images(found, images, drop_absent=drop_absent)


def write_annotations(path: str | os.PathLike, annotations: Annotations, format: str) -> None:
    """Write annotations.

    Args:
        path: a `.json` file, or a folder for the formats in `FOLDER_TARGETS`.
        annotations: what `read_annotations` returns.
        format: one of `TARGETS`.

    Raises:
        UserError: what the format needs is missing, as a rule the size of an image.
        FileError: unwritable.
    """
    check_choice("format", format, TARGETS)
    write, options = _WRITERS[format]
    write(path, annotations, **options)


def match_images(
    annotations: Annotations, images: str | os.PathLike | Iterable[str | os.PathLike], *, drop_absent: bool = False
) -> Annotations:
    """Annotations with the sizes and names of the images they belong to.

    Names are compared with their endings, and without (ImageJ sets) where exactly one image fits.

    Args:
        annotations: what was read.
        images: folder, files or pattern of images.
        drop_absent: leave out what has no image; the problems list it as a note, else as an error.
    """
    files = find_images(images)
    by_name = {file.name: file for file in files}
    by_stem: dict[str, list[Path]] = {}
    for file in files:
        by_stem.setdefault(file.stem, []).append(file)
    source, matched, problems = str(annotations.path), [], list(annotations.problems)
    for image in annotations.images:
        alike = by_stem.get(image.name, []) or by_stem.get(Path(image.name).stem, [])
        file = by_name.get(image.name) or (alike[0] if len(alike) == 1 else None)
        if file is None:
            message = "is listed, but is not among the images."
            problems.append(Problem(source, image.name, "", "absent image", message, not drop_absent))
            if not drop_absent:
                matched.append(image)
            continue
        try:
            shape = dict(zip(*_axes_and_shape(file), strict=True))
        except FileError as error:
            problems.append(Problem(source, image.name, "", "unreadable image", str(error)))
            matched.append(image)
            continue
        cut = image.plane[0].upper() if image.plane else "Z"
        size = tuple(shape[axis] for axis in "ZYX" if axis in shape and axis != cut)
        if image.size is not None and image.size != size:
            message = f"the annotations say {image.size[0]} x {image.size[1]} pixels, the image has {size}."
            problems.append(Problem(source, image.name, "", "size differs", message))
        name = image.name if image.name in by_name or annotations.format == "labels" else file.name
        matched.append(dataclasses.replace(image, name=name, size=size if image.size is None else image.size))
    return dataclasses.replace(annotations, images=tuple(matched), problems=tuple(problems))


def _axes_and_shape(file: Path) -> tuple[str, tuple[int, ...]]:
    image = open_image(file)
    return image.axes.replace("T", "Z") if "Z" not in image.axes else image.axes, image.shape
