"""Workflow `filter masks`: masks without the particles that the images of the same names do not show, as files."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import ndimage

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.io.pairing import match_names
from keras_microseg.segmentation.filtering import filter_by_brightness
from keras_microseg.segmentation.labeling import (
    cut_touching,
    label_components,
    split_as_published,
    threshold_value,
)
from keras_microseg.workflows.steps import Failure, Progress, RunFolder, Step, item_names, run_steps

LABELS, MASKS, IMAGES = "labels", "masks", "images"


@dataclasses.dataclass(frozen=True)
class FilterSettings:
    """How particles are judged.

    Attributes:
        images: folder of micrographs (made or real).
        masks: folder of masks, label images or, with `split`, grey pictures of masks; same names.
        threshold: "li", "otsu" or a grey value, see `filter_by_brightness`.
        polarity: "bright" or "dark" particles.
        split: cut the masks at Otsu's threshold and separate their particles by watershed first.
        min_distance: of the seeds of that watershed, px.
        blur: standard deviation, px, of a Gaussian with which the images are written smoothed (against checkerboards
            and rims that are too sharp); 0 = images are not written.
    """

    images: str
    masks: str
    threshold: str | float = "li"
    polarity: str = "bright"
    split: bool = False
    min_distance: int = 9
    blur: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.threshold, str):
            check_choice("threshold", self.threshold, ("li", "otsu"))
        check_choice("polarity", self.polarity, ("bright", "dark"))
        check_number("min_distance", self.min_distance, minimum=1, integer=True)
        check_number("blur", self.blur, minimum=0)


def filter_masks(
    images: str | os.PathLike,
    masks: str | os.PathLike,
    out: str | os.PathLike,
    *,
    threshold: str | float = "li",
    polarity: str = "bright",
    split: bool = False,
    min_distance: int = 9,
    blur: float = 0.0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> tuple[Path, list[Failure]]:
    """Filter every mask by the image of its name.

    Args:
        images, masks, threshold, polarity, split, min_distance, blur: see `FilterSettings`.
        out: folder; gets `labels/NAME.tif`, `masks/NAME.tif` (uint8, 255 = particle), `images/NAME.tif` with `blur`,
            and `filtered.csv` (particles kept and removed, threshold).
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The folder, and what failed: images without a mask, and unreadable files.

    Raises:
        UserError: no image has a mask of its name.
    """
    settings = FilterSettings(str(images), str(masks), threshold, polarity, split, min_distance, blur)
    found = io.find_images(images)
    partners = match_names(found, io.find_images(masks))
    if not any(partners.values()):
        raise UserError(f"No image in {images} has a mask of the same name in {masks}. Name them alike.")
    folder = RunFolder(out, settings, command="filter masks", resume=resume, overwrite=overwrite, progress=progress)

    def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        if partners[path] is None:
            raise FileError(path, "has no mask of the same name.", f"Put one into {masks}.")
        grey = io.read_grey(io.open_image(path))
        labels = _read_particles(partners[path], settings)
        result = filter_by_brightness(labels, grey, threshold=threshold, polarity=polarity)
        files = [folder.file(LABELS, f"{name}.tif"), folder.file(MASKS, f"{name}.tif")]
        io.write_labels(files[0], result.labels)
        io.write_image(files[1], cut_touching(result.labels), axes="YX")
        if settings.blur:
            files.append(folder.file(IMAGES, f"{name}.tif"))
            soft = ndimage.gaussian_filter(grey.astype(np.float32), settings.blur)
            whole = np.issubdtype(grey.dtype, np.integer)
            io.write_image(files[-1], np.rint(soft).astype(grey.dtype) if whole else soft, axes="YX")
        total = np.count_nonzero(np.bincount(labels.ravel())[1:])
        facts = {"kept": total - len(result.removed), "removed": len(result.removed), "threshold": result.threshold}
        return facts, files

    def sum_up(folder: RunFolder) -> None:
        table = pd.DataFrame([{"image": name, **facts} for name, facts in folder.facts("filter").items()])
        io.write_table(folder.file("filtered.csv"), table, facts={"package": folder.manifest["package"]})

    inputs = item_names(found)
    run_steps(
        folder,
        [Step("filter", lambda folder: folder.for_each("filter", inputs, work)), Step("sum up", sum_up, always=True)],
    )
    return folder.path, folder.failures()


def _read_particles(path: Path, settings: FilterSettings) -> np.ndarray:
    if not settings.split:
        return np.asarray(io.read_labels(path).data)
    grey = io.read_grey(io.open_image(path))
    parts = split_as_published(grey > threshold_value(grey, "otsu"), min_distance=settings.min_distance)
    return label_components(parts, 4)
