"""Workflow `measure`: label images or masks become a particle table, statistics and a report. Needs no keras."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from skimage.measure import label

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.io.pairing import match_names
from keras_microseg.measurement import measure_particles
from keras_microseg.report.results import ImageRecord, Results, check_unit, choose_unit, join_tables
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

METHOD = (
    "Particles were measured on their pixel squares, in the pixel size given with every image. Definitions follow "
    "ISO 13322-1 and ISO 9276-6 where these define the quantity; each is listed under Definitions."
)


@dataclasses.dataclass(frozen=True)
class MeasureSettings:
    """How to measure.

    Attributes:
        labels: label images, masks, or folders of them.
        images: the micrographs (folder or files), paired by file name, or None.
        pixel_size: edge length with unit, for example `"1.2 nm"`; None takes it from label image, then micrograph.
        exclude_border: leave out particles that touch the image edge.
        unit: unit of lengths; None chooses nm, um or mm.
    """

    labels: tuple[str, ...]
    images: str | None = None
    pixel_size: str | None = None
    exclude_border: bool = False
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.pixel_size is not None:
            object.__setattr__(self, "pixel_size", str(PixelSize.parse(self.pixel_size)))
        object.__setattr__(self, "unit", check_unit(self.unit))


def measure(
    labels: Any,
    out: str | os.PathLike | None = None,
    *,
    images: Any = None,
    pixel_size: Any = None,
    exclude_border: bool = False,
    unit: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Measure the particles of label images.

    Args:
        labels: label image files or masks, folders, or one (Y, X) int array or `Image` (or a list of them).
        out: folder for tables, overlays and report; None gives the results in memory only.
        images: micrographs for grey values and pictures: a folder or files paired by name, or an array (list of
            arrays) beside arrays of labels.
        pixel_size, exclude_border, unit: see `MeasureSettings`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        `Results`; `.table` is the particle table, `.failures` lists files that could not be read.

    Raises:
        UserError: no file found, settings out of range, a folder that cannot be written.

    Example:
        >>> import numpy as np, keras_microseg as km
        >>> square = np.pad(np.ones((10, 10), np.int32), 5)
        >>> float(km.measure(square, pixel_size="2 nm").table["area"][0])
        400.0
    """
    if _in_memory(labels):
        settings = MeasureSettings(("(array)",), None, pixel_size, exclude_border, unit)
        records = _array_records(labels, images, settings)
        results = assemble("measure", records, settings, [METHOD])
        return results if out is None else results.write(out)
    listed = [labels] if isinstance(labels, (str, os.PathLike)) else list(labels)
    given = None if images is None else os.fspath(images)
    settings = MeasureSettings(tuple(os.fspath(path) for path in listed), given, pixel_size, exclude_border, unit)
    inputs = item_names(io.find_images(listed))
    partners = {} if images is None else match_names(inputs.values(), io.find_images(images))
    if out is None:
        records, failures = [], []
        for name, path in inputs.items():
            try:
                records.append(read_record(name, path, partners, settings))
            except (UserError, OSError) as error:
                failures.append(describe(error, path, "read"))
        return assemble("measure", records, settings, [METHOD], failures)

    folder = RunFolder(out, settings, command="measure", resume=resume, overwrite=overwrite, progress=progress)

    def read(folder: RunFolder) -> None:
        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            record = read_record(name, path, partners, settings)
            copy = folder.file("labels", f"{name}.tif")
            io.write_labels(copy, record.labels, pixel_size=record.pixel_size, origin={"source": str(path)})
            return record_facts(record, copy.relative_to(folder.path)), [copy]

        folder.for_each("read", inputs, work)

    holder: list[Results] = []

    def report(folder: RunFolder) -> None:
        records = [record_of(folder, facts) for facts in folder.facts("read").values()]
        facts = folder_facts(folder)
        found = assemble("measure", records, settings, [METHOD], folder.failures(), facts=facts, progress=progress)
        holder.append(found.write(folder.path, place=folder.file))

    run_steps(folder, [Step("read", read), Step("report", report, always=True)])
    return holder[0]


def read_record(name: str, path: Path, partners: Mapping[Path, Path | None], settings: Any) -> ImageRecord:
    """A label image and its micrograph as a record.

    Raises:
        FileError: unreadable, a volume, no partner in the folder of images, or a partner of another size.
    """
    labels = io.read_labels(path, pixel_size=settings.pixel_size)
    if labels.axes != "YX":
        raise FileError(path, f"is a volume of axes {labels.axes}.", "Pass its planes as single label images.")
    size, image, warnings = labels.pixel_size, None, list(labels.metadata.get("warnings", ()))
    if partners:
        partner = partners.get(path)
        if partner is None:
            raise FileError(path, "has no micrograph of the same name.", "Add it, or leave out --images.")
        image = io.open_image(partner, pixel_size=settings.pixel_size)
        rows, columns = image.spatial_shape[-2:]
        if columns != labels.shape[1] or rows < labels.shape[0]:
            shapes = f"{labels.shape[0]} x {labels.shape[1]} labels, {rows} x {columns} image"
            raise FileError(path, f"does not fit its micrograph {partner} ({shapes}).", "Check the pairing.")
        size = size or image.pixel_size
        image = partner
    if not labels.data.any():
        warnings.append("It holds no particle.")
    elif "origin" not in labels.metadata and is_scattered(np.asarray(labels.data)):
        warnings.append("Most numbers lie in many separate pieces. Is it a micrograph instead of a label image?")
    return ImageRecord(name, str(path), np.asarray(labels.data), image, size, warnings=tuple(warnings))


def is_scattered(labels: np.ndarray) -> bool:
    """True when a number stands for more than four separate pieces on average, as grey values do."""
    _, pieces = label(labels, background=0, connectivity=2, return_num=True)
    return pieces > 4 * np.count_nonzero(np.unique(labels))


def assemble(
    command: str,
    records: Sequence[ImageRecord],
    settings: Any,
    method: Sequence[str],
    failures: Sequence[Failure] = (),
    *,
    facts: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Results:
    """Measure the particles of all records in one unit and put everything known about the run together."""
    unit = choose_unit([record.pixel_size for record in records], settings.unit)
    tables, kept, failed = {}, [], list(failures)
    for number, record in enumerate(records):
        if progress:
            progress("measure", number, len(records), record.name)
        try:
            tables[record.name] = measure_record(record, unit, exclude_border=settings.exclude_border)
        except (UserError, OSError, MemoryError) as error:
            failed.append(describe(error, record.source, "measure"))
            continue
        kept.append(record)
    if progress:
        progress("measure", len(records), len(records), "")
    facts = {"started": now(), **run_facts(), "settings_hash": settings_hash(settings)} if facts is None else facts
    return Results(
        command=command,
        images=kept,
        table=join_tables(tables, unit or "px"),
        unit=unit or "px",
        failures=failed,
        settings={field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)},
        facts={**facts, "finished": now()},
        method=list(method),
    )


def measure_record(record: ImageRecord, unit: str | None, *, exclude_border: bool = False) -> pd.DataFrame:
    """Particle table of one record, rows of the info bar left out, lengths in `unit` where the pixel size is known."""
    size = record.pixel_size
    if size is not None and unit is not None:
        size = size.to(unit)
    labels = io.open_image(record.labels).data if isinstance(record.labels, (str, Path)) else record.labels
    grey = None
    image = record.open()
    if image is not None:
        rows = record.info_bar or record.shape[0]
        window = (slice(0, rows), slice(0, record.shape[1]))
        grey = image.crop(window).data if "C" not in image.axes else io.read_grey(image, window)
    if record.info_bar is not None:
        labels = Image(labels, "YX").crop((slice(0, record.info_bar), slice(None))).data
    table = measure_particles(labels, intensity=grey, pixel_size=size)
    added = record.read_columns()
    if added is not None:
        attrs = table.attrs
        table = table.merge(added, on="label", how="left")
        table.attrs = attrs
    if exclude_border and len(table):
        attrs = table.attrs
        table = table[~table["touches_border"].astype(bool)].reset_index(drop=True)
        table.attrs = attrs
    return table


def record_facts(record: ImageRecord, labels: Path, columns: Path | None = None) -> dict[str, Any]:
    """A record as JSON values, for the manifest; `labels` and `columns` relative to the run folder."""
    size = record.pixel_size
    return {
        "name": record.name,
        "source": record.source,
        "labels": labels.as_posix(),
        "image": None if record.image is None else str(record.image),
        "pixel_size": None if size is None else {"size": list(size.size), "unit": size.unit, "source": size.source},
        "info_bar": record.info_bar,
        "plane": record.plane,
        "facts": dict(record.facts),
        "warnings": list(record.warnings),
        "columns": None if columns is None else columns.as_posix(),
    }


def record_of(folder: RunFolder, facts: Mapping[str, Any]) -> ImageRecord:
    """The record that `record_facts` wrote down."""
    size = facts["pixel_size"]
    return ImageRecord(
        name=facts["name"],
        source=facts["source"],
        labels=folder.path / facts["labels"],
        image=None if facts["image"] is None else Path(facts["image"]),
        pixel_size=None if size is None else PixelSize(**size),
        info_bar=facts["info_bar"],
        plane=facts["plane"],
        facts=facts["facts"],
        warnings=tuple(facts["warnings"]),
        columns=None if facts.get("columns") is None else folder.path / facts["columns"],
    )


def write_columns(folder: RunFolder, record: ImageRecord) -> list[Path]:
    """Write the further columns of a record that holds some as `columns/NAME.csv`; the file, or nothing."""
    if record.columns is None:
        return []
    path = folder.file("columns", f"{record.name}.csv")
    io.write_table(path, record.columns, facts={"source": record.source})
    return [path]


def folder_facts(folder: RunFolder) -> dict[str, Any]:
    """What a run folder knows about the run, without steps and files."""
    return {key: value for key, value in folder.manifest.items() if key not in ("steps", "outputs", "format")}


def _in_memory(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return bool(value) and _in_memory(value[0])
    return isinstance(value, (np.ndarray, Image))


def _array_records(labels: Any, images: Any, settings: MeasureSettings) -> list[ImageRecord]:
    listed = labels if isinstance(labels, (list, tuple)) else [labels]
    pictures: Iterable[Any] = [None] * len(listed)
    if images is not None:
        pictures = images if isinstance(images, (list, tuple)) else [images]
        if len(pictures) != len(listed):
            raise UserError(f"`images` must be as many as `labels`. Received: {len(pictures)} and {len(listed)}")
    size = None if settings.pixel_size is None else PixelSize.parse(settings.pixel_size)
    records = []
    for number, (one, picture) in enumerate(zip(listed, pictures, strict=True), start=1):
        array = np.asarray(one.data[...]) if isinstance(one, Image) else np.asarray(one)
        if array.ndim != 2 or array.dtype.kind not in "ui":
            raise UserError(f"`labels` must be (Y, X) whole numbers. Received: {array.dtype} of shape {array.shape}")
        known = size or (one.pixel_size if isinstance(one, Image) else None)
        source = one.path if isinstance(one, Image) and one.path else f"array {number}"
        if picture is not None and not isinstance(picture, Image):
            picture = np.asarray(picture)
            picture = Image(picture, "YX" if picture.ndim == 2 else "YXC")
        name = f"image_{number:03d}"
        records.append(ImageRecord(name, str(source), array.astype(np.int32, copy=False), picture, known))
    return records
