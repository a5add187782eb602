"""Workflow `classify apply`: every measured particle gets a class; statistics and report per class."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.classification.instances import InstanceClassifier
from keras_microseg.image import PixelSize
from keras_microseg.io.annotations import ClassList
from keras_microseg.io.pairing import match_names
from keras_microseg.report.overlays import write_picture
from keras_microseg.report.results import ImageRecord, Results, check_unit
from keras_microseg.workflows.measure_labels import METHOD as MEASURED
from keras_microseg.workflows.measure_labels import (
    assemble,
    folder_facts,
    read_record,
    record_facts,
    record_of,
    write_columns,
)
from keras_microseg.workflows.steps import (
    MANIFEST,
    Progress,
    RunFolder,
    Step,
    file_hash,
    item_names,
    read_json,
    run_facts,
    run_steps,
)


@dataclasses.dataclass(frozen=True)
class ClassifySettings:
    """How to classify.

    Attributes:
        source: folder of a `segment` or `measure` run, or label images (then `images` is needed).
        model: `classifier.json` or `classifier.keras` of `classify train`.
        images: the micrographs (folder or files), paired with label images by name; None: those of the run.
        combine: weight of every class in `keep_score`, for example `{"whole": 0.9, "doubtful": 0.5}`; classes that are
            not named weigh 0. None: no such column.
        pixel_size: edge length with unit; None takes it from the files.
        exclude_border: leave out particles that touch the image edge.
        unit: unit of lengths; None chooses nm, um or mm.
    """

    source: str
    model: str
    images: str | None = None
    combine: Mapping[str, float] | None = None
    pixel_size: str | None = None
    exclude_border: bool = False
    unit: str | None = None

    def __post_init__(self) -> None:
        if self.pixel_size is not None:
            object.__setattr__(self, "pixel_size", str(PixelSize.parse(self.pixel_size)))
        object.__setattr__(self, "unit", check_unit(self.unit))


def classify(
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    model: str | os.PathLike,
    images: str | os.PathLike | None = None,
    combine: Mapping[str, float] | None = None,
    pixel_size: Any = None,
    exclude_border: bool = False,
    unit: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Give particles their classes and measure them class by class.

    Args:
        source, model, images, combine, pixel_size, exclude_border, unit: see `ClassifySettings`.
        out: folder for tables, class images, overlays and report.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        `Results`; `.table` has the columns `class`, `class_score`, `p_NAME` per class, and `keep_score` with `combine`;
        `.classes` holds the statistics per class.

    Raises:
        UserError: no labels or micrographs, a model that cannot be used, settings out of range.
    """
    settings = ClassifySettings(
        os.fspath(source), str(find_model(model)), None if images is None else os.fspath(images),
        None if combine is None else dict(combine), pixel_size, exclude_border, unit,
    )  # fmt: skip
    records = _records(settings)
    classifier = load_classifier(settings.model)
    weights = check_weights(settings.combine, classifier.classes)
    folder = RunFolder(out, settings, command="classify", resume=resume, overwrite=overwrite, progress=progress)

    def find(folder: RunFolder) -> None:
        facts = {"path": Path(settings.model).name, "sha256": file_hash(settings.model)}
        if folder.manifest.get("model", facts) != facts:
            raise UserError(f"{settings.model}: the model has changed since this run began. Begin again (--overwrite).")
        folder.manifest.update(model=facts, **run_facts())

        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            record = classified_record(records[name](), classifier, weights)
            labels = folder.file("labels", f"{record.name}.tif")
            array = record.read_labels()
            io.write_labels(labels, array, pixel_size=record.pixel_size, origin={"source": record.source})
            picture = folder.file("classes", f"{record.name}.png")
            write_picture(picture, classifier.classes.paint(_class_map(array, record.columns, classifier.classes)))
            columns = write_columns(folder, record)
            relative = [one.relative_to(folder.path) for one in (labels, *columns)]
            return record_facts(record, *relative), [labels, picture, *columns]

        folder.for_each("classify", _inputs(settings, records), work)

    holder: list[Results] = []

    def report(folder: RunFolder) -> None:
        found = [record_of(folder, facts) for facts in folder.facts("classify").values()]
        text = [describe_method(classifier, settings), MEASURED]
        results = assemble(
            "classify", found, settings, text, folder.failures(), facts=folder_facts(folder), progress=progress
        )
        holder.append(results.write(folder.path, place=folder.file))

    run_steps(folder, [Step("classify", find), Step("report", report, always=True)])
    return holder[0]


def load_classifier(path: str | os.PathLike) -> Any:
    """The classifier in a `.json` or `.keras` file; both have `classes` and `predict(labels, grey, pixel_size=...)`.

    Raises:
        FileError: missing, or of another kind.
    """
    path = find_model(path)
    if path.suffix.lower() != ".keras":
        return InstanceClassifier.load(path)
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.pixel_classes import PixelClassifier

    return PixelClassifier(path)


def find_model(path: str | os.PathLike) -> Path:
    """The file itself, or the classifier in a folder of `classify train`; `FileError` when there is not one."""
    path = Path(path)
    if not path.is_dir():
        return path
    inside = [path / name for name in ("classifier.json", "classifier.keras") if (path / name).is_file()]
    if len(inside) != 1:
        raise FileError(path, "holds no single classifier.", "Name classifier.json or classifier.keras in it.")
    return inside[0]


def check_weights(combine: Mapping[str, float] | None, classes: ClassList) -> np.ndarray | None:
    """(K,) weight of every class, or None."""
    if combine is None:
        return None
    unknown = sorted(set(combine) - set(classes.names))
    values = [combine.get(name, 0.0) for name in classes.names]
    if unknown or not all(isinstance(v, (int, float)) and 0 <= v <= 1 for v in values):
        raise UserError(
            f"`combine` must give classes ({', '.join(classes.names)}) weights from 0 to 1. Received: {dict(combine)}"
        )
    return np.array(values, float)


def classified_record(record: ImageRecord, classifier: Any, weights: np.ndarray | None = None) -> ImageRecord:
    """The record with the columns `class`, `class_score`, `p_NAME` and, with weights, `keep_score`.

    Raises:
        FileError: there is no micrograph.
    """
    labels, grey = record.read_labels(), record.read_grey()
    if grey is None:
        raise FileError(record.source, "has no micrograph, which classifying needs.", "Pass --images.")
    rows = min(len(labels), record.info_bar or len(labels))
    ids, probabilities = classifier.predict(labels[:rows], grey[:rows], pixel_size=record.pixel_size)
    names = np.array(classifier.classes.names, object)
    best = probabilities.argmax(axis=1) if len(ids) else np.zeros(0, np.int64)
    columns = pd.DataFrame(
        {"label": ids, "class": names[best], "class_score": probabilities[np.arange(len(ids)), best]}
    )
    for k, name in enumerate(names):
        columns[f"p_{name}"] = probabilities[:, k]
    if weights is not None:
        columns["keep_score"] = probabilities @ weights
    earlier = record.read_columns()
    if earlier is not None:
        kept = [name for name in earlier.columns if name == "label" or name not in columns.columns]
        columns = earlier[kept].merge(columns, on="label", how="right")
    return dataclasses.replace(record, columns=columns)


def describe_method(classifier: Any, settings: ClassifySettings) -> str:
    """What was done, in sentences."""
    names = ", ".join(classifier.classes.names)
    if isinstance(classifier, InstanceClassifier):
        how = f"from {len(classifier.features)} measured features by a logistic regression"
    else:
        how = "by a network that sees micrograph and segmentation; its output was averaged inside every outline"
    keep = ""
    if settings.combine:
        weights = ", ".join(f"{name} {weight:g}" for name, weight in settings.combine.items())
        keep = f" keep_score is the mean of the class probabilities with the weights {weights}; others weigh 0."
    return f"Every particle was given the most probable of the classes {names}, {how}.{keep}"


def _records(settings: ClassifySettings) -> dict[str, Any]:
    """Name -> function that reads the record."""
    source = Path(settings.source)
    if (source / MANIFEST).is_file():
        return _records_of_run(source, settings)
    if settings.images is None:
        raise UserError(f"{source}: is no folder of a run, so the micrographs are needed too. Pass --images.")
    inputs = item_names(io.find_images(source))
    partners = match_names(inputs.values(), io.find_images(settings.images))

    def reader(name: str, path: Path) -> Any:
        def read() -> ImageRecord:
            record = read_record(name, path, partners, settings)
            return dataclasses.replace(record, info_bar=_rows(record))

        return read

    return {name: reader(name, path) for name, path in inputs.items()}


def _rows(record: ImageRecord) -> int | None:
    """Rows of the label image when it leaves out some of the micrograph."""
    image = record.open()
    return None if image is None or image.spatial_shape[-2] == len(record.labels) else len(record.labels)


def _records_of_run(source: Path, settings: ClassifySettings) -> dict[str, Any]:
    manifest = read_json(source / MANIFEST)
    steps = manifest.get("steps", {})
    step = next((steps[name] for name in ("segment", "read", "classify") if name in steps), {})
    found: dict[str, Any] = {}
    for item in step.get("items", {}).values():
        if item.get("status") != "done":
            continue
        for facts in item["facts"].get("planes", [item["facts"]]):
            found[facts["name"]] = _reader_of(source, facts, settings)
    if not found:
        raise FileError(source, "holds no label image of a segment or measure run.", "Segment first, or pass labels.")
    return found


def _reader_of(source: Path, facts: dict[str, Any], settings: ClassifySettings) -> Any:
    class _Folder:
        path = source

    def read() -> ImageRecord:
        record = record_of(_Folder, facts)
        if settings.pixel_size is not None:
            record = dataclasses.replace(record, pixel_size=PixelSize.parse(settings.pixel_size))
        if settings.images is not None and record.image is None:
            partner = match_names([record.labels], io.find_images(settings.images))[record.labels]
            record = dataclasses.replace(record, image=partner)
        return record

    read.path = source / facts["labels"]
    return read


def _inputs(settings: ClassifySettings, records: Mapping[str, Any]) -> dict[str, Path]:
    """Name -> the label image, by which a resumed run knows whether its input has changed."""
    if all(hasattr(read, "path") for read in records.values()):
        return {name: read.path for name, read in records.items()}
    return item_names(io.find_images(settings.source))


def _class_map(labels: np.ndarray, columns: pd.DataFrame, classes: ClassList) -> np.ndarray:
    table = np.zeros(int(labels.max(initial=0)) + 1, np.int32)
    table[columns["label"].to_numpy(int)] = [classes.names.index(name) + 1 for name in columns["class"]]
    return table[labels]
