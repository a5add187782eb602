"""Workflow `segment`: micrographs become label images, a particle table, statistics and a report."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.image import METRES, Image, LazyArray, PixelSize, normalize_unit
from keras_microseg.report.results import ImageRecord, Results, check_unit
from keras_microseg.workflows.measure_labels import METHOD as MEASURED
from keras_microseg.workflows.measure_labels import assemble, folder_facts, record_facts, record_of, write_columns
from keras_microseg.workflows.segmenters import (
    LARGE_PIXELS,
    SegmentPlane,
    default_model_path,
    describe_method,
    is_detector,
    make_segmenter,
)
from keras_microseg.workflows.steps import (
    Failure,
    Progress,
    RunFolder,
    Step,
    describe,
    item_names,
    now,
    run_facts,
    run_steps,
    settings_hash,
)

__all__ = [
    "LARGE_PIXELS",
    "METHODS",
    "POLARITIES",
    "CleanLabels",
    "SegmentPlane",
    "SegmentSettings",
    "as_image",
    "default_model_path",
    "describe_method",
    "is_detector",
    "make_segmenter",
    "parse_length",
    "segment",
    "segment_file",
    "segment_plane",
    "to_pixels",
]

METHODS = ("network", "classical")
POLARITIES = ("auto", "bright", "dark")


@dataclasses.dataclass(frozen=True)
class SegmentSettings:
    """How to find the particles.

    Attributes:
        images: files and folders, as given.
        method: `"network"`, or `"classical"` (smoothing, threshold, watershed; needs no keras).
        model: path of a `.keras` file; `"default"` is the one in the package.
        pixel_size: edge length with unit, for example `"1.2 nm"`; None takes it from the file.
        info_bar: first row of the microscope's data bar, `"auto"` to find it, None when there is none.
        polarity: `"bright"` or `"dark"` particles, or `"auto"`.
        diameter: typical particle size with unit or in px (`"80 nm"`, `"40 px"`); None finds it.
        min_diameter: leave out particles of a smaller equivalent diameter, with unit or in px.
        flips: average over mirrored images (network).
        exclude_border: leave out particles that touch the image edge.
        unit: unit of lengths; None chooses nm, um or mm.
        quality: also segment at a smaller and a larger scale and say how far the results agree: a column `stability`
            per particle and an estimate of F1 per image, see `inference.agreement`.
        min_score: least score of a particle (detectors of `particles train` only); None = as the model says.
    """

    images: tuple[str, ...]
    method: str = "network"
    model: str = "default"
    pixel_size: str | None = None
    info_bar: str | int | None = "auto"
    polarity: str = "auto"
    diameter: str | None = None
    min_diameter: str | None = None
    flips: bool = False
    exclude_border: bool = False
    unit: str | None = None
    quality: bool = False
    min_score: float | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        if self.min_score is not None:
            check_number("min_score", self.min_score, minimum=0, maximum=1)
        check_choice("polarity", self.polarity, POLARITIES)
        if isinstance(self.info_bar, str):
            if self.info_bar != "auto":
                raise UserError(
                    "`info_bar` must be 'auto', the number of a pixel row from 1 on, or None ('none' on the command "
                    f"line). Received: {self.info_bar!r}"
                )
        elif self.info_bar is not None:
            check_number("info_bar", self.info_bar, minimum=1, integer=True)
        if self.pixel_size is not None:
            object.__setattr__(self, "pixel_size", str(PixelSize.parse(self.pixel_size)))
        for name in ("diameter", "min_diameter"):
            value = getattr(self, name)
            if value is not None:
                length, unit = parse_length(value, name)
                object.__setattr__(self, name, f"{length:g} {unit}")
        object.__setattr__(self, "unit", check_unit(self.unit))
        object.__setattr__(self, "model", str(self.model))


def segment(
    images: Any,
    out: str | os.PathLike | None = None,
    *,
    method: str = "network",
    model: Any = "default",
    pixel_size: Any = None,
    info_bar: str | int | None = "auto",
    polarity: str = "auto",
    diameter: str | float | None = None,
    min_diameter: str | float | None = None,
    flips: bool = False,
    exclude_border: bool = False,
    unit: str | None = None,
    quality: bool = False,
    min_score: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Find, separate and measure the particles in micrographs.

    Args:
        images: files, folders, or one (Y, X) array or `Image` (or a list of them).
        out: folder for labels, tables, overlays and report; None gives the results in memory only.
        model: see `SegmentSettings`; also an `inference.Segmenter` that is loaded already.
        method, pixel_size, info_bar, polarity, diameter, min_diameter, flips, exclude_border, unit, quality,
            min_score: see `SegmentSettings`. Plain numbers as diameters are pixels.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        `Results`: `.table`, `.images[i].read_labels()`, `.distributions`, `.failures` (files that could not be
        processed; the others are done), `.report_path`.

    Raises:
        UserError: no image found, a setting out of range, a model or folder that cannot be used.

    Example:
        >>> import keras_microseg as km
        >>> results = km.segment("IMAGES", "RESULT", pixel_size="1.2 nm")  # doctest: +SKIP
        >>> results.distributions["number"].D50  # doctest: +SKIP
    """
    ready = None if isinstance(model, (str, os.PathLike)) else model
    listed = list(images) if isinstance(images, (list, tuple)) else [images]
    in_memory = bool(listed) and all(isinstance(one, (np.ndarray, Image)) for one in listed)
    names = tuple(_source(one, number) for number, one in enumerate(listed, start=1))
    settings = SegmentSettings(
        names, method, "loaded" if ready is not None else model, pixel_size, info_bar, polarity, diameter,
        min_diameter, flips, exclude_border, unit, quality, min_score,
    )  # fmt: skip
    inputs = {} if in_memory else item_names(io.find_images(listed))
    if in_memory or out is None:
        sources = [as_image(one, settings) for one in listed] if in_memory else list(inputs.values())
        results = _segment_in_memory(sources, names if in_memory else list(inputs), settings, ready, progress)
        return results if out is None else results.write(out)

    folder = RunFolder(out, settings, command="segment", resume=resume, overwrite=overwrite, progress=progress)
    holder: list[Results] = []

    def find(folder: RunFolder) -> None:
        plane_segmenter, facts = make_segmenter(settings, ready, folder.path / "scratch")
        earlier = folder.manifest.get("model")
        if earlier and facts.get("model") != earlier:
            raise UserError(f"{settings.model}: the model has changed since this run began. Begin again (--overwrite).")
        folder.manifest.update(facts, **run_facts())

        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            return segment_file(folder, name, path, plane_segmenter, settings)

        folder.for_each("segment", inputs, work)

    def report(folder: RunFolder) -> None:
        planes = [plane for item in folder.facts("segment").values() for plane in item["planes"]]
        records = [record_of(folder, facts) for facts in planes]
        method_text = [describe_method(settings, folder.manifest), MEASURED]
        found = assemble(
            "segment", records, settings, method_text, folder.failures(), facts=folder_facts(folder), progress=progress
        )
        holder.append(found.write(folder.path, place=folder.file))

    run_steps(folder, [Step("segment", find), Step("report", report, always=True)])
    return holder[0]


def segment_file(
    folder: RunFolder, name: str, path: Path, plane_segmenter: SegmentPlane, settings: SegmentSettings
) -> tuple[dict[str, Any], list[Path]]:
    """All planes of one file: label images on disk, and the facts about them."""
    image = io.open_image(path, pixel_size=settings.pixel_size)
    planes = list(image.planes())
    facts, files = [], []
    for number, plane in enumerate(planes):
        plane_name = name if len(planes) == 1 else f"{name}_p{number + 1:0{len(str(len(planes)))}d}"
        record = segment_plane(plane, plane_name, path, plane_segmenter, settings, number if len(planes) > 1 else None)
        labels_path = folder.file("labels", f"{plane_name}.tif")
        origin = {"source": str(path), "method": settings.method, "settings": settings_hash(settings)}
        io.write_labels(labels_path, record.labels, pixel_size=record.pixel_size, origin=origin)
        columns = write_columns(folder, record)
        relative = [path.relative_to(folder.path) for path in columns]
        facts.append(record_facts(record, labels_path.relative_to(folder.path), *relative))
        files += [labels_path, *columns]
        shutil.rmtree(folder.path / "scratch", ignore_errors=True)  # labels of a large image, now in their file
    return {"planes": facts}, files


def segment_plane(
    plane: Image, name: str, source: Any, plane_segmenter: SegmentPlane, settings: SegmentSettings, number: int | None
) -> ImageRecord:
    """Labels of one image: info bar left out, small and (when asked) cut particles removed.

    Raises:
        UserError: lengths in real units without a pixel size, an info bar outside the image.
    """
    start = time.perf_counter()
    rows = plane.spatial_shape[0]
    bar = io.find_info_bar(plane) if settings.info_bar == "auto" else settings.info_bar
    if bar is not None and settings.info_bar != "auto" and bar >= rows:
        raise UserError(f"{source}: `info_bar` row {bar} lies outside the image of {rows} rows.")
    picture = plane if bar is None else plane.crop((slice(0, bar), slice(None)))
    diameter = to_pixels(settings.diameter, plane.pixel_size, "diameter")
    least = to_pixels(settings.min_diameter, plane.pixel_size, "min_diameter")
    min_area = None if least is None else math.pi / 4 * least**2
    labels, facts = plane_segmenter(picture, diameter, min_area)
    whole = CleanLabels(labels, plane.spatial_shape, settings.exclude_border)
    warnings = list(plane.metadata.get("warnings", ()))
    if not whole.count:
        warnings.append("No particle was found.")
    numbers = whole.numbers
    if isinstance(labels, np.ndarray):
        whole = whole[...]
    facts = {**facts, "seconds": round(time.perf_counter() - start, 3)}
    stability, columns = facts.pop("stability", None), facts.pop("columns", None)
    if columns is not None:  # per label of the segmenter, some of which are left out
        listed = columns["label"].to_numpy()
        numbered = np.where(listed < len(numbers), numbers[np.minimum(listed, len(numbers) - 1)], 0)
        columns = columns.assign(label=numbered)[numbered > 0].reset_index(drop=True)
    if stability is not None:
        kept = stability.renumbered(numbers)
        columns = pd.DataFrame({"label": kept.ids, "stability": kept.particles.astype(float)})
        if np.isfinite(stability.f1):
            facts.update(agreement=stability.f1, expected_f1=stability.expected_f1)
    image = Path(source) if plane.path else plane
    return ImageRecord(name, str(source), whole, image, plane.pixel_size, bar, number, facts, tuple(warnings), columns)


class CleanLabels(LazyArray):
    """Labels as they are stored: numbered 1..n without gaps, with empty rows where the info bar was left out.

    Args:
        labels: (Y, X) int array, or anything that gives windows of one.
        shape: shape of the whole image, at least that of `labels`.
        exclude_border: leave out particles that touch the edge of `labels`.

    Attributes:
        count: number of particles.
    """

    def __init__(self, labels: Any, shape: tuple[int, int], exclude_border: bool = False):
        self.source, self.shape, self.dtype = labels, tuple(shape), np.dtype(np.int32)
        rows = max(1, 2**23 // labels.shape[1])
        present = np.zeros(1, np.int64)
        for first in range(0, labels.shape[0], rows):
            present = np.union1d(present, _distinct(np.asarray(labels[first : first + rows])))
        if exclude_border:
            edges = [np.asarray(labels[part]).ravel() for part in (np.s_[:1], np.s_[-1:], np.s_[:, :1], np.s_[:, -1:])]
            present = np.setdiff1d(present, np.concatenate(edges))
        present = present[present > 0]
        self.count = len(present)
        self.numbers = np.zeros(int(present.max(initial=0)) + 1, np.int32)
        self.numbers[present] = np.arange(1, self.count + 1)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        rows, columns = block
        out = np.zeros((rows.stop - rows.start, columns.stop - columns.start), np.int32)
        part = np.asarray(self.source[rows.start : min(rows.stop, self.source.shape[0]), columns])
        out[: len(part)] = self.numbers[np.where(part < len(self.numbers), part, 0)]
        return out


def parse_length(text: str | float, name: str) -> tuple[float, str]:
    """`"5 nm"`, `"4px"` or a number (pixels) as (number, unit); `UserError` when it is neither."""
    match = re.fullmatch(r"\s*([0-9.]+(?:[eE][-+]?\d+)?)\s*([^\s\d]*)\s*", str(text))
    try:
        length = float(match[1])
        unit = match[2] or "px"
        unit = "px" if unit.lower() in ("px", "pixel", "pixels") else normalize_unit(unit)
    except (TypeError, ValueError):
        raise UserError(f"`{name}` must be a length like 5nm or 4px. Received: {name}={text!r}") from None
    check_number(name, length, minimum=0, exclusive=True)
    return length, unit


def to_pixels(length: str | None, pixel_size: PixelSize | None, name: str) -> float | None:
    """A length in pixels; `UserError` when it has a unit and the pixel size is unknown."""
    if length is None:
        return None
    number, unit = parse_length(length, name)
    if unit == "px":
        return number
    if pixel_size is None:
        raise UserError(f"`{name}`={length} needs the pixel size, which is unknown. Pass it, or give {name} in px.")
    return number * METRES[unit] / (pixel_size.mean * METRES[pixel_size.unit])


def as_image(value: Any, settings: SegmentSettings) -> Image:
    """An array or `Image` as `Image`, with the pixel size of the settings."""
    if not isinstance(value, Image):
        array = np.asarray(value)
        if array.ndim not in (2, 3) or array.dtype.kind not in "buif" or not array.size:
            raise UserError(f"An image must be a (Y, X) array of numbers. Received: {array.dtype}, shape {array.shape}")
        value = Image(array, "YX" if array.ndim == 2 else "YXC" if array.shape[-1] <= 4 else "TYX")
    if settings.pixel_size is not None:
        size = PixelSize.parse(settings.pixel_size, ndim=len(value.spatial_axes))
        value = dataclasses.replace(value, pixel_size=size)
    return value


def _segment_in_memory(
    sources: Sequence[Any],
    names: Sequence[str],
    settings: SegmentSettings,
    ready: Any,
    progress: Progress | None,
) -> Results:
    plane_segmenter, model_facts = make_segmenter(settings, ready)
    facts = {"started": now(), "settings_hash": settings_hash(settings), **run_facts(), **model_facts}
    records: list[ImageRecord] = []
    failures: list[Failure] = []
    for number, (source, name) in enumerate(zip(sources, names, strict=True)):
        if progress:
            progress("segment", number, len(sources), name)
        try:
            image = source if isinstance(source, Image) else io.open_image(source, pixel_size=settings.pixel_size)
            planes = list(image.planes())
            for index, plane in enumerate(planes):
                plane_name = name if len(planes) == 1 else f"{name}_p{index + 1}"
                plane_number = index if len(planes) > 1 else None
                shown = source if isinstance(source, Path) else name
                record = segment_plane(plane, plane_name, shown, plane_segmenter, settings, plane_number)
                if not isinstance(source, Path):
                    record = dataclasses.replace(record, image=plane, plane=None)
                records.append(record)
        except (UserError, OSError, MemoryError) as error:
            failures.append(describe(error, str(source) if isinstance(source, Path) else name, "segment"))
    if progress:
        progress("segment", len(sources), len(sources), "")
    method = [describe_method(settings, facts), MEASURED]
    return assemble("segment", records, settings, method, failures, facts=facts, progress=progress)


def _distinct(labels: np.ndarray) -> np.ndarray:
    """Distinct labels of a block, without sorting its pixels."""
    return np.flatnonzero(np.bincount(labels.ravel())) if labels.size else np.zeros(0, np.int64)


def _source(value: Any, number: int) -> str:
    if isinstance(value, Image):
        return value.path or f"image_{number:03d}"
    return f"image_{number:03d}" if isinstance(value, np.ndarray) else os.fspath(value)
