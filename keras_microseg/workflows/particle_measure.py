"""Workflow `particles measure`: labels of cathodes to tables of detachment and damage, tests, figures, report."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import __version__, io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.image import Image, PixelSize, normalize_unit
from keras_microseg.measurement.cathode_quantities import CATHODE_QUANTITIES, describe_cathode
from keras_microseg.measurement.cathode_table import CathodeMeasures, measure_cathode
from keras_microseg.measurement.group_tests import group_differences, group_means, rank_correlations, summarize_sweep
from keras_microseg.measurement.particle_crops import PhaseClasses
from keras_microseg.segmentation.voxel_classes import Thresholds, fit_multi_otsu
from keras_microseg.workflows.steps import Progress, RunFolder, Step, item_names, plain, run_steps, write_json

logger = logging.getLogger(__name__)

TABLES = ("particles", "sweep", "contacts", "crack_profile")
AGAINST = (
    "volume", "axis_ratio", "sphericity", "damage", "coordination_number", "contact_share", "packing_density",
    "neighbour_distance", "collector_depth", "grey_mean", "homogeneity", "group",
)  # fmt: skip
"""Columns whose rank correlation with detachment and damage is given."""


@dataclasses.dataclass(frozen=True)
class CathodeMeasureRun:
    """What to measure.

    Attributes:
        labels: label volumes, one per sample.
        phases: phase volumes, one per label volume in the same order; or one word: `otsu` makes void, CBD and particle
            from `grey` by multi-Otsu thresholds. None = no detachment.
        thresholds: two rising grey values instead: below the first void, below the second CBD, above particle.
        grey: grey volumes, one per label volume; for electron density, thresholds and pictures.
        groups: one label per volume (number of cycles, rate); or the path of a table with columns `label` and `group`
            for a single volume.
        measures: see `CathodeMeasures`.
        unit: of all lengths where the voxel size is known.
        voxel_size: instead of what the files say.
        seed: of bootstraps and permutations.
    """

    labels: tuple[str, ...]
    phases: tuple[str, ...] = ()
    thresholds: tuple[float, ...] = ()
    grey: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    measures: CathodeMeasures = dataclasses.field(default_factory=CathodeMeasures)
    unit: str = "um"
    voxel_size: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.labels:
            raise UserError("Name at least one label volume.")
        object.__setattr__(self, "unit", normalize_unit(self.unit))
        for name in ("phases", "grey", "groups"):
            given = getattr(self, name)
            single = (name == "phases" and given == ("otsu",)) or (name == "groups" and self.has_group_table)
            if given and not single and len(given) != len(self.labels):
                raise UserError(
                    f"`{name}` needs one entry per label volume, in the same order. Received: {len(given)} for "
                    f"{len(self.labels)} volumes"
                )
        if self.thresholds and (len(self.thresholds) != 2 or self.thresholds[0] >= self.thresholds[1]):
            raise UserError(
                f"`thresholds` are two rising grey values, void < first < CBD < second < particle. Received: "
                f"{self.thresholds}"
            )
        if self.thresholds and self.phases:
            raise UserError("Give `phases` or `thresholds`, not both.")
        if (self.thresholds or self.phases == ("otsu",)) and not self.grey:
            raise UserError("Phases from grey values need the grey volume. Pass `grey` (--grey).")
        check_number("seed", self.seed, minimum=0, integer=True)

    @property
    def has_group_table(self) -> bool:
        return len(self.groups) == 1 and Path(self.groups[0]).suffix.lower() == ".csv"


def measure_cathodes(
    settings: CathodeMeasureRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Measure the particles of one or more cathodes.

    Args:
        settings: what and how.
        out: folder; gets a folder per volume with `particles.csv`, `sweep.csv`, `contacts.csv` and `crack_profile.csv`;
            of all volumes `particles.csv`, `particles.xlsx` (with the sheets sweep, groups, differences, correlations,
            volumes, definitions), the same sheets as `.csv`, `figures/`, `report.html` and `run.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The folder; `failures()` names volumes that could not be measured, the others are complete.
    """
    if len(settings.labels) == 1:  # nothing is begun that cannot end well; of several volumes the others go on
        open_inputs(settings, 0, fit=False)
    folder = RunFolder(
        out, settings, command="particles measure", resume=resume, overwrite=overwrite, progress=progress
    )
    return run_steps(folder, [Step("measure", _measure_each), Step("sum up", _sum_up, always=True)])


def open_inputs(settings: CathodeMeasureRun, number: int, *, fit: bool = True) -> tuple[Image, Any, Image | None]:
    """`(labels, phases, grey)` of volume `number`; phases as an array, lazy, or None.

    Phases by `"otsu"` need all grey values; `fit=False` leaves them out.
    """
    labels = io.open_volume(settings.labels[number], voxel_size=settings.voxel_size)
    if labels.dtype.kind not in "iu":
        raise FileError(settings.labels[number], f"holds {labels.dtype}, no labels.", "Label the particles first.")
    io.check_voxel_size(labels)
    if labels.pixel_size is not None:
        labels = dataclasses.replace(labels, pixel_size=labels.pixel_size.to(settings.unit))
    grey = io.open_volume(settings.grey[number]) if settings.grey else None
    phases: Any = None
    if settings.thresholds:
        phases = ClassView(grey.data, Thresholds(tuple(settings.thresholds)))
    elif settings.phases == ("otsu",):
        phases = ClassView(grey.data, fit_multi_otsu(grey.data, 3)) if fit else None
    elif settings.phases:
        phases = io.open_volume(settings.phases[number]).data
        if np.dtype(phases.dtype).kind not in "iub":
            raise FileError(
                settings.phases[number], f"holds {phases.dtype}, no classes.", "Give whole numbers, one per phase."
            )
    for name, part in (("phases", phases), ("grey", grey)):
        if part is not None and tuple(part.shape) != tuple(labels.shape):
            path = _phase_source(settings, number) if name == "phases" else settings.grey[number]
            raise FileError(
                path, f"has the shape {tuple(part.shape)}, the labels {labels.shape}.", "They must be one volume."
            )
    if phases is not None:
        _check_classes(phases, settings, number)
    return labels, phases, grey


def _phase_source(settings: CathodeMeasureRun, number: int) -> str:
    """The file that the phases of a volume come from."""
    made = settings.thresholds or settings.phases == ("otsu",)
    return settings.grey[number] if made else settings.phases[number]


def _check_classes(phases: Any, settings: CathodeMeasureRun, number: int) -> None:
    """`FileError` when no plane of the middle of a phase volume has void or CBD, or values without a role."""
    classes = settings.measures.classes
    planes = [np.unique(np.asarray(phases[z])) for z in np.linspace(0, phases.shape[0] - 1, 5).astype(int)]
    found = set(np.concatenate(planes).tolist())
    known = {value for role in dataclasses.astuple(classes) for value in role}
    where = _phase_source(settings, number)
    if not found & {*classes.void, *classes.cbd}:
        raise FileError(
            where, f"has neither void {classes.void} nor CBD {classes.cbd}; it has the values {sorted(found)[:8]}.",
            "Name the values with --void, --cbd, --particle and --crack.",
        )  # fmt: skip
    if classes.particle and found - known:
        raise FileError(
            where, f"has values without a role: {sorted(found - known)[:8]}.",
            "Name them with --void, --cbd, --particle and --crack.",
        )  # fmt: skip


class ClassView:
    """Classes of grey values, uint8, made as they are read."""

    dtype = np.dtype(np.uint8)

    def __init__(self, grey: Any, method: Thresholds):
        self.grey, self.method, self.shape = grey, method, tuple(grey.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.asarray(self.method(np.asarray(self.grey[key])), np.uint8)


def _names(settings: CathodeMeasureRun) -> dict[str, Path]:
    """A name for every sample: that of its file, or of the folder where the file is called `labels`."""
    paths = [Path(path) for path in settings.labels]
    parts = [path.absolute().parent if path.stem == "labels" else path.with_suffix("") for path in paths]
    return dict(zip(item_names(parts), paths, strict=True))


def _measure_each(folder: RunFolder) -> None:
    settings: CathodeMeasureRun = folder.settings
    names = list(_names(settings))

    def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        number = names.index(name)
        labels, phases, grey = open_inputs(settings, number)

        def report(done: int, total: int) -> None:
            if folder.progress and done % 8 == 0:
                folder.progress("particles", done, total, name)

        tables = measure_cathode(
            labels.data, phases, None if grey is None else grey.data, settings.measures,
            voxel_size=labels.pixel_size, progress=report,
        )  # fmt: skip
        table = tables.particles
        group = None
        if settings.has_group_table:
            table["group"] = _user_groups(Path(settings.groups[0]), table["label"])
        elif settings.groups:
            table["group"] = group = settings.groups[number]
        if not len(table):
            raise FileError(path, "holds no particle of the least size.", "Look at --min-size and at the labels.")
        notes = {"command": "particles measure", "labels": str(path), "version": f"keras_microseg {__version__}"}
        files = []
        for kind in TABLES:
            one = table if kind == "particles" else getattr(tables, kind)
            files.append(folder.file(name, f"{kind}.csv"))
            io.write_table(files[-1], one, facts=notes)
        inner = table[~table["is_edge"]]
        facts = {
            "particles": len(table), "edge_particles": int(table["is_edge"].sum()), "group": group,
            "voxel_size": None if labels.pixel_size is None else str(labels.pixel_size),
            "shape": list(labels.shape), "unit": table.attrs["unit"],
            **{f"mean_{key}": float(inner[key].mean()) for key in ("detachment", "damage") if key in inner},
        }  # fmt: skip
        if settings.phases == ("otsu",):
            facts["thresholds"] = list(phases.method.values)
        return facts, files

    folder.for_each("measure", _names(settings), work)


def _user_groups(path: Path, labels: pd.Series) -> pd.Series:
    try:
        table = pd.read_csv(path, comment="#")
    except (OSError, ValueError) as error:
        raise FileError(path, f"cannot be read ({error}).", "Give a CSV file with columns label and group.") from error
    if not {"label", "group"} <= set(table):
        raise FileError(path, f"has the columns {', '.join(table)}.", "It needs `label` and `group`.")
    return labels.map(table.drop_duplicates("label").set_index("label")["group"]).astype(object)


def read_tables(folder: RunFolder) -> dict[str, pd.DataFrame]:
    """The tables of all measured volumes, with a first column `sample`, and units in `attrs`."""
    facts = folder.facts("measure")
    joined = {}
    for kind in TABLES:
        parts = [pd.read_csv(folder.path / name / f"{kind}.csv", comment="#").assign(sample=name) for name in facts]
        table = pd.concat(parts, ignore_index=True)
        table.insert(0, "sample", table.pop("sample"))
        joined[kind] = table
    units = {one["unit"] for one in facts.values()}
    if len(units) > 1:
        raise UserError(
            f"Some volumes have a voxel size and others none ({', '.join(sorted(units))}). Pass --voxel-size."
        )
    unit = units.pop()
    particles = joined["particles"]
    particles.attrs = {
        "unit": unit,
        "units": {name: CATHODE_QUANTITIES[name].unit(unit) for name in particles if name in CATHODE_QUANTITIES},
    }
    joined["sweep"].attrs = {"unit": unit, "units": {"distance": unit}}
    return joined


def _sum_up(folder: RunFolder) -> None:
    settings: CathodeMeasureRun = folder.settings
    facts = folder.facts("measure")
    record = {key: value for key, value in folder.manifest.items() if key not in ("steps", "outputs")}
    record |= {"settings": plain(settings), "volumes": facts, "failures": [f.message for f in folder.failures()]}
    if facts:
        tables = read_tables(folder)
        sheets = summaries(tables, settings)
        notes = {"command": "particles measure", "version": f"keras_microseg {__version__}",
                 "edge_particles": "in the table (is_edge), left out of all statistics"}  # fmt: skip
        sheets["volumes"] = pd.DataFrame([{"sample": name, **one} for name, one in facts.items()])
        sheets["definitions"] = describe_cathode(tables["particles"], tables["particles"].attrs["unit"])
        io.write_table(folder.file("particles.csv"), tables["particles"], facts=notes)
        io.write_table(folder.file("particles.xlsx"), tables["particles"], facts=notes, sheets=sheets)
        for name, sheet in sheets.items():
            io.write_table(folder.file(f"{name}.csv"), sheet, facts=notes)
        from keras_microseg.report.cathodes import write_cathode_report

        number = list(_names(settings)).index(next(iter(facts)))
        write_cathode_report(
            folder.path, tables, sheets, settings, open_inputs(settings, number), list(facts),
            failures=record["failures"], note=folder.file,
        )  # fmt: skip
        inner = tables["particles"][~tables["particles"]["is_edge"]]
        record["particles"], record["inner_particles"] = len(tables["particles"]), len(inner)
    write_json(folder.file("run.json"), record)


def summaries(tables: dict[str, pd.DataFrame], settings: CathodeMeasureRun) -> dict[str, pd.DataFrame]:
    """Sheets sweep, groups, differences and correlations of the particles that are no edge particles."""
    table = tables["particles"]
    inner = table[~table["is_edge"]]
    values = [name for name in ("detachment", "damage") if name in inner and inner[name].notna().any()]
    by = ["size_class"]
    if "group" in inner and inner["group"].nunique() > 1:
        by.append("group")
    if inner["sample"].nunique() > 1:
        by.append("sample")
    sheets: dict[str, pd.DataFrame] = {}
    if "detachment" in values:
        parts = []
        for name, part in inner.groupby("sample"):
            sweep = tables["sweep"][tables["sweep"]["sample"] == name]
            found = summarize_sweep(sweep, part["label"], seed=settings.seed)
            parts.append(found.assign(sample=name))
        sheets["sweep"] = _first(pd.concat(parts, ignore_index=True), "sample")
    groups, differences = [], []
    for value in values:
        for column in by:
            found = group_means(inner, value, column, seed=settings.seed).rename(columns={column: "group"})
            groups.append(_first(found.assign(quantity=value, by=column), "by", "quantity"))
            found = group_differences(inner, value, column, seed=settings.seed)
            differences.append(_first(found.assign(quantity=value, by=column), "by", "quantity"))
    if groups:
        sheets["groups"] = pd.concat(groups, ignore_index=True)
        sheets["differences"] = pd.concat(differences, ignore_index=True)
    numeric = inner.copy()
    if "group" in numeric:
        numeric["group"] = pd.to_numeric(numeric["group"], errors="coerce")
    found = [
        _first(rank_correlations(numeric, value, AGAINST, seed=settings.seed).assign(value=value), "value")
        for value in values
    ]
    if found:
        sheets["correlations"] = pd.concat(found, ignore_index=True)
    return sheets


def _first(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    return table[[*columns, *(name for name in table if name not in columns)]]


def class_roles(classes: PhaseClasses) -> dict[str, Sequence[int]]:
    """Phase name -> values, for pictures."""
    return {name: getattr(classes, name) for name in ("void", "cbd", "particle", "crack")}


__all__ = ["CathodeMeasureRun", "ClassView", "PixelSize", "class_roles", "measure_cathodes", "open_inputs", "summaries"]
