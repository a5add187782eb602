"""The images of a detector's training with their objects: from labels or annotations, in two parts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.io import annotations as notes
from keras_microseg.io.pairing import pair_files

if TYPE_CHECKING:
    from keras_microseg.workflows.particle_train import ParticleTrainSettings

logger = logging.getLogger(__name__)


def load_data(settings: ParticleTrainSettings) -> tuple[list[Any], tuple[str, ...], tuple[notes.Problem, ...]]:
    """Images with objects, names of the classes, problems of the annotations.

    Raises:
        UserError: no annotation is found, or none that has an image.
    """
    from keras_microseg.data.boxes import load_objects, object_image_from_labels, read_channels

    folder, source = Path(settings.data), settings.annotations
    if not folder.is_dir():
        raise FileError(
            folder, "is no folder, or does not exist.", "Name the folder of the images and their annotations."
        )
    images = folder / "images" if (folder / "images").is_dir() else folder
    if source is None:
        has_labels = any((folder / name).is_dir() for name in ("labels", "masks"))
        if has_labels and images != folder and not settings.use_categories:
            loaded = []
            for pair in pair_files(folder):
                pixels = read_channels(io.open_image(pair.image), settings.channels)
                labels = np.asarray(io.read_labels(pair.labels).data)
                rows = min(len(pixels), len(labels))
                if labels.shape[1] != pixels.shape[1] or rows < 0.8 * len(pixels):
                    raise FileError(
                        pair.labels, f"has {labels.shape} pixels, its image {pixels.shape[:2]}.", "They must agree."
                    )
                loaded.append(object_image_from_labels(pair.image.name, pixels[:rows], labels[:rows]))
            return loaded, ("particle",), ()
        source = _find_annotations(folder, images)
    found = notes.read_annotations(source, images=images, drop_absent=True)
    problems = tuple(notes.check_annotations(found, categories=settings.categories or None))
    usable = notes.drop_unusable(found)
    files = {path.name: path for path in io.find_images(images)}
    files |= {path.stem: path for path in files.values()}
    names = settings.categories or (usable.categories if settings.use_categories else ())
    loaded = load_objects(usable, files, channels=settings.channels, categories=names)
    if not loaded:
        raise UserError(f"{source}: none of its images lies in {images}. Name the folder of the images as `data`.")
    for problem in problems:
        logger.log(logging.WARNING if problem.is_error else logging.INFO, "%s", problem)
    return loaded, tuple(names) or ("particle",), problems


def _find_annotations(folder: Path, images: Path) -> Path:
    found = sorted({*folder.glob("*.json"), *images.glob("*.json"), *(folder / "annotations").glob("*.json")})
    if len(found) == 1:
        return found[0]
    if len(found) > 1 and all(notes.guess_format(path) == "labelme" for path in found):
        return found[0].parent
    listed = f" Found: {', '.join(path.name for path in found[:5])}." if found else ""
    raise UserError(
        f"{folder}: needs images/ and labels/, or one annotation file (VIA or COCO .json).{listed} Name it with "
        "--annotations FILE."
    )


def split_objects(images: list[Any], validation: float | Sequence[str], seed: int) -> tuple[list[Any], list[Any]]:
    """(training, validation) images.

    Raises:
        UserError: a name that is no image, or nothing left to train on.
    """
    if not isinstance(validation, (int, float)):
        wanted = {Path(name).stem for name in validation}
        held = [one for one in images if Path(one.name).stem in wanted]
        missing = wanted - {Path(one.name).stem for one in held}
        if missing or len(held) == len(images):
            raise UserError(
                f"`validation` names {sorted(missing) or 'every image'}: "
                f"use some of {[one.name for one in images][:6]}."
            )
        return [one for one in images if one not in held], held
    if not validation:
        return images, []
    if len(images) == 1:
        return _halves(images[0], float(validation))
    names = [f"{k}" for k in range(len(images))]
    places = {name: notes.place_of(one.name).source for name, one in zip(names, images, strict=True)}
    group = places.get if len(set(places.values())) > 1 else None
    shares = {"train": 1 - validation, "validation": validation}
    parts = notes.split_images(names, shares, seed=seed, group=group)
    return [images[int(k)] for k in parts["train"]], [images[int(k)] for k in parts["validation"]]


def _halves(one: Any, share: float) -> tuple[list[Any], list[Any]]:
    """One image cut along its longer side, with a gap as wide as the largest object."""
    boxes = one.boxes[one.classes > 0]
    axis = int(np.argmax(one.image.shape[:2]))
    gap = int((boxes[:, 2 + axis] - boxes[:, axis]).max()) if len(boxes) else 0
    windows = notes.cut_blocks(
        one.image.shape[:2], {"train": 1 - share, "validation": share}, axis=axis, guard=min(gap, 64)
    )
    return tuple([one.crop(windows[part])] for part in ("train", "validation"))
