"""Workflow `volume run`: slices to a table of objects - stack, mask, train, predict, label, measure, report.

Every step reads files and writes files into a folder of its own, so that each can be repeated, replaced or looked at;
an interrupted run goes on where it ended.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number, parse_bytes
from keras_microseg.measurement import measure_particles
from keras_microseg.segmentation.pseudo_labels import MaskSettings
from keras_microseg.workflows import (
    tomography_measure,
    tomography_predict,
    tomography_prepare,
    tomography_settings,
    tomography_train,
)
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps

_HOW: dict[str, Any] = {"metadata": {"lasting": False}}


@dataclasses.dataclass(frozen=True)
class TomographySettings:
    """The whole path.

    Attributes:
        source: folder or pattern of slices, or any volume `io.open_volume` knows.
        model: `"spheres3d"`, the path of a model file, or `"train"` to train one on this volume.
        labels: labels or mask to train on; None makes an automatic mask (pseudo-labels).
        labels_are: see `TrainVolumeSettings`.
        diameter: typical diameter of the objects, voxels; sets the working scale and the separation.
        mask: how the automatic mask is made.
        preset: of `tomography_settings.PRESETS`: how long to train what.
        train: changes to that preset, such as `{"epochs": 10}`.
        predict: changes to `PredictVolumeSettings`, such as `{"flips": 4}`.
        threshold: probability above which a voxel belongs to an object, 0..1; None = the model's.
        separate: cut touching objects apart; False keeps what touches as one object.
        min_size: smaller objects are left out, voxels; None = 5 % of a sphere of `diameter`.
        voxel_size, dataset, max_ram: see `StackSettings`.
    """

    source: str
    model: str = "spheres3d"
    labels: str | None = None
    labels_are: str = "mask"
    diameter: float | None = None
    mask: MaskSettings = dataclasses.field(default_factory=MaskSettings)
    preset: str = "fast"
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    predict: dict[str, Any] = dataclasses.field(default_factory=dict)
    threshold: float | None = None
    separate: bool = True
    min_size: int | None = None
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)

    def __post_init__(self) -> None:
        if self.threshold is not None:
            check_number("threshold", self.threshold, minimum=0, maximum=1)
        if self.diameter is not None:
            check_number("diameter", self.diameter, minimum=0, exclusive=True)
        if self.labels is not None and self.model != "train":
            raise UserError(f"`labels` are for model='train'. Received: model={self.model!r}")
        check_choice("preset", self.preset, tomography_settings.PRESETS)
        parse_bytes(self.max_ram)


def run(
    settings: TomographySettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Run all steps that the settings ask for.

    Args:
        settings: what and how.
        out: folder; gets `stack/`, `mask/`, `model/` as needed, `maps/`, `labels/`, `tables/` and `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError, FileError: see the steps.
    """
    image = io.open_volume(settings.source, dataset=settings.dataset, voxel_size=settings.voxel_size)
    if image.shape[0] < 2:
        raise FileError(
            settings.source, "is one slice, not a volume.",
            "Name the folder of all slices; single images are measured by `keras-microseg segment`.",
        )  # fmt: skip
    folder = RunFolder(out, settings, command="volume run", resume=resume, overwrite=overwrite, progress=progress)
    steps = [Step("predict", _predict), Step("label", _label), Step("measure", _measure), Step("report", _report)]
    if settings.model == "train":
        steps.insert(0, Step("train", _train))
        if settings.labels is None:
            steps.insert(0, Step("mask", _mask))
    if " slices, " in image.metadata.get("format", ""):  # single files stay as they are
        steps.insert(0, Step("stack", _stack))
    return run_steps(folder, steps)


def _volume(folder: RunFolder) -> str:
    """The stack when there is one, else the source."""
    made = sorted((folder.path / "stack").glob("tomographic_image_*"))
    made = [path for path in made if path.suffix in (".zarr", ".tif", ".tiff", ".npy") and ".part" not in path.name]
    return str(made[0]) if made else folder.settings.source


def _options(folder: RunFolder) -> dict[str, Any]:
    return {"resume": True, "progress": folder.progress}


def _common(folder: RunFolder) -> dict[str, Any]:
    return {"voxel_size": folder.settings.voxel_size, "max_ram": folder.settings.max_ram}


def _stack(folder: RunFolder) -> None:
    settings = tomography_prepare.StackSettings(
        folder.settings.source, dataset=folder.settings.dataset, report=False, **_common(folder)
    )
    tomography_prepare.stack(settings, folder.path / "stack", **_options(folder))


def _mask(folder: RunFolder) -> None:
    settings = tomography_prepare.MaskRun(_volume(folder), folder.settings.mask, **_common(folder))
    tomography_prepare.mask(settings, folder.path / "mask", **_options(folder))


def _train(folder: RunFolder) -> None:
    labels = folder.settings.labels or str(folder.path / "mask" / "mask.zarr")
    changes = {"labels_are": folder.settings.labels_are, **folder.settings.train}
    settings = tomography_settings.TrainVolumeSettings.from_preset(
        folder.settings.preset, _volume(folder), labels, **changes
    )
    tomography_train.train_volume(settings, folder.path / "model", **_options(folder))


def _predict(folder: RunFolder) -> None:
    asked = folder.settings
    trained = asked.model == "train"
    changes = {"diameter": None if trained else asked.diameter, "maps": ("foreground",), **asked.predict}
    settings = tomography_predict.PredictVolumeSettings(
        _volume(folder), str(folder.path / "model" / tomography_train.MODEL) if trained else asked.model,
        report=False, **changes, **_common(folder),
    )  # fmt: skip
    tomography_predict.predict(settings, folder.path / "maps", **_options(folder))


def _label(folder: RunFolder) -> None:
    asked = folder.settings
    maps = next((folder.path / "maps").glob("foreground.*"))
    prediction = read_json(folder.path / "maps" / "prediction.json")
    threshold = prediction["threshold"] if asked.threshold is None else asked.threshold
    full = 255 if io.open_volume(maps).dtype == np.uint8 else 1
    diameter = asked.diameter or 16.0
    least = asked.min_size if asked.min_size is not None else int(0.05 * np.pi / 6 * diameter**3)
    sigma = max(0.5, diameter / 16)  # an eighth of the radius
    settings = tomography_measure.LabelRun(
        str(maps), "separate" if asked.separate else "components", threshold=threshold * full, sigma=sigma,
        min_size=least, halo=int(np.ceil(0.75 * diameter + 4 * sigma)), **_common(folder),
    )  # fmt: skip
    tomography_measure.label(settings, folder.path / "labels", **_options(folder))


def _measure(folder: RunFolder) -> None:
    intensity = _volume(folder) if folder.settings.dataset is None else None
    settings = tomography_measure.MeasureRun(str(_labels(folder)), intensity, **_common(folder))
    tomography_measure.measure(settings, folder.path / "tables", **_options(folder))


def _labels(folder: RunFolder) -> Path:
    return folder.path / "labels" / "labels.zarr"


def _report(folder: RunFolder) -> None:
    from keras_microseg.intensity import volume_statistics
    from keras_microseg.report.page import Chart, Section, Table, write_page
    from keras_microseg.report.volumes import volume_sections

    grey = io.open_volume(_volume(folder), dataset=folder.settings.dataset, voxel_size=folder.settings.voxel_size)
    labels = io.open_volume(_labels(folder))
    facts = read_json(folder.path / "tables" / "volume.json")
    statistics = volume_statistics(grey.data, max_ram=folder.settings.max_ram)
    sections = volume_sections(grey, statistics, labels=labels, facts={"Model": folder.settings.model})
    table = measure_particles(labels, quantities=["equivalent_diameter", "touches_border"])
    whole = table[~table.touches_border]
    table, which = (whole, "objects that are not cut by the border") if len(whole) else (table, "objects")
    found: list[Any] = [Table(result_rows(facts), "In brackets 95 % intervals.")]
    if len(table):
        found.insert(0, Chart(_histogram(table), f"Equivalent diameters of {which}."))
    sections.insert(0, Section("Objects", found))
    cards = {"objects": facts["particles"], "of the volume": f"{facts['fraction']['value']:.2%}"}
    if len(table):
        unit = table.attrs["unit"]
        cards[f"median diameter of {which} ({unit})"] = f"{table['equivalent_diameter'].median():.4g}"
    notes = []
    if not facts["particles"]:
        notes.append(
            "Nothing was found. The model that comes with the package knows spheres only: pass their size "
            "(--diameter), train on your own labels or on an automatic mask (--model train), or use `volume baseline`."
            if folder.settings.model == "spheres3d"
            else "Nothing was found: look at the probability maps in `maps`."
        )
    if folder.settings.model == "train" and folder.settings.labels is None:
        notes.append(
            "The network was trained on an automatic mask (pseudo-labels): it imitates a threshold, and scores "
            "against that mask do not say how true it is."
        )
    if folder.settings.model == "train":
        card = read_json(folder.path / "model" / tomography_train.SETTINGS)["card"]
        if not card["training"]["validation_slices"]:
            notes.append("The network was trained without validation slices: how well it generalizes was not measured.")
    write_page(
        folder.file("report.html"), "Volume", sections, cards=cards, warnings=notes,
        subtitle=f"{grey.name} \u00b7 {folder.manifest['package']}",
    )  # fmt: skip


def _histogram(table: Any) -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3), layout="constrained")
    axes = figure.subplots()
    axes.hist(table["equivalent_diameter"], bins=30, color="#30618c")
    axes.set_xlabel(f"Equivalent diameter ({table.attrs['unit']})")
    axes.set_ylabel("Objects")
    return figure


def result_rows(facts: dict[str, Any]) -> dict[str, str]:
    """`volume.json` as names with units and values with intervals; what could not be measured is left out."""
    unit = facts.get("unit", "px")
    rows = {"Objects": str(facts["particles"])}
    sizes = facts.get("equivalent_diameter") or {}
    known = {name: value for name, value in sizes.items() if value is not None and np.isfinite(value)}
    if known:
        rows[f"Equivalent diameter of whole objects: {', '.join(known)} ({unit})"] = ", ".join(
            f"{value:.4g}" for value in known.values()
        )
    if density := facts.get("number_density"):
        rows[f"Whole objects per volume (1/{unit}³)"] = _interval(density) + f", from {density['count']}"
    if share := facts.get("fraction"):
        rows["Share of the volume"] = _interval(share)
        rows["Porosity (the rest)"] = f"{facts['porosity']:.4g}"
    if surface := facts.get("surface"):
        rows[f"Surface (Crofton; marching cubes, {unit}²)"] = (
            f"{surface['area']:.5g}; {surface['area_marching_cubes']:.5g}"
        )
        rows[f"Surface per volume; per volume of the objects (1/{unit})"] = "; ".join(
            "-" if surface[key] is None else f"{surface[key]:.4g}" for key in ("per_volume", "per_phase")
        )
    if parts := facts.get("connectivity"):
        rows["Connected parts (6 neighbours)"] = str(parts["num_parts"])
        rows["Share of the largest part"] = f"{parts['largest_share']:.4g}"
        through = [axis for axis, found in zip("zyx", parts["percolates"], strict=True) if found]
        rows["A part goes through along"] = ", ".join(through) or "no axis"
    return rows


def _interval(value: dict[str, float]) -> str:
    return f"{value['value']:.4g} [{value['low']:.4g}, {value['high']:.4g}]"
