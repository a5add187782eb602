"""Workflow `filament measure`: masks of a filament video become areas, kinetics and a report. Needs no keras.

`steps_after_masks` are also the last steps of `filament run`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.io.frame_layouts import open_series, open_series_set
from keras_microseg.io.frames import TASK_FOLDERS, FrameSeries, read_members
from keras_microseg.measurement.change import (
    NORMALIZATIONS,
    measure_areas,
    measure_change,
    member_curves,
    segment_length,
)
from keras_microseg.measurement.kinetics import LAWS, fit_rate_laws, member_fits
from keras_microseg.measurement.monotone import fit_monotone
from keras_microseg.metrics.change import score_masks
from keras_microseg.report.filament_figures import draw_overlay, write_figures
from keras_microseg.report.filaments import FilamentRecord, kinetics_table, write_curves, write_filament_page
from keras_microseg.report.overlays import write_picture
from keras_microseg.workflows.steps import Progress, RunFolder, Step, now, plain, read_json, run_steps, write_json

LENGTHS = ("axis", "columns")
RUN_FACTS = ("package", "python", "platform", "backend", "settings_hash", "started", "finished", "command")


@dataclasses.dataclass(frozen=True)
class CurveSettings:
    """How areas become kinetics.

    Attributes:
        length: length L of the segment in pixels, one for all videos or name -> number; None = from the first mask.
        length_method: where it comes from then, see `measurement.change.segment_length`.
        normalization: of the conversion, "range" (the source's) or "start"; see `measurement.change.conversion`.
        laws: rate laws to compare, names in `measurement.kinetics.LAWS`.
        monotone: replace the areas of A1 by the nearest curve that never grows (the reaction only removes carbon).
        overlays: write every frame with its outlines as a picture, too.
    """

    length: float | Mapping[str, float] | None = None
    length_method: str = "axis"
    normalization: str = "range"
    laws: tuple[str, ...] = tuple(LAWS)
    monotone: bool = False
    overlays: bool = True

    def __post_init__(self) -> None:
        check_choice("length_method", self.length_method, LENGTHS)
        check_choice("normalization", self.normalization, NORMALIZATIONS)
        object.__setattr__(self, "laws", tuple(self.laws))
        for law in self.laws:
            check_choice("laws", law, LAWS)
        if "avrami" not in self.laws:
            object.__setattr__(self, "laws", ("avrami", *self.laws))
        lengths = self.length.values() if isinstance(self.length, Mapping) else [self.length]
        for length in lengths:
            if length is not None:
                check_number("length", length, minimum=0, exclusive=True)


@dataclasses.dataclass(frozen=True)
class FilamentMeasureSettings:
    """What to measure.

    Attributes:
        videos: folders, stacks or videos, or one folder that holds a folder per video.
        names: which of them; empty = all.
        masks: folder of the masks, or of a folder per video with them, or of a `filament run`; None = those beside the
            frames. Where the videos have masks of their own as well, those count as the truth.
        video: further arguments of `io.frame_layouts.open_series`.
        measure: fields of `CurveSettings`.
    """

    videos: tuple[str, ...]
    names: tuple[str, ...] = ()
    masks: str | None = None
    video: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.videos:
            raise UserError("`videos` must name at least one video or folder.")
        CurveSettings(**self.measure)


def measure(
    settings: FilamentMeasureSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Measure masks that exist: curves, fits, figures and report into `out`.

    Args:
        settings: what to measure.
        out: folder; gets `curves/NAME.csv` and `.xlsx`, `kinetics.csv` and `.xlsx`, `figures/`, `overlays/`,
            `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: no video or masks, or a folder that cannot be written.
    """
    folder = RunFolder(out, settings, command="filament measure", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, steps_after_masks(settings))


def steps_after_masks(settings: Any) -> list[Step]:
    """The steps from masks to report, for any settings with `videos`, `names`, `video` and `measure`.

    Masks are looked for in `predictions/NAME` of the run folder, then where `settings.masks` says, then beside the
    frames.
    """
    records: dict[str, FilamentRecord] = {}

    def read(folder: RunFolder) -> None:
        found = open_series_set(list(settings.videos), settings.names or None, **settings.video)
        videos = {series.name: series for series in found}

        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            records[name] = _record(folder, settings, videos[name])
            return _write_record(folder, records[name], CurveSettings(**settings.measure))

        folder.for_each("measure", {name: Path(series.path or name) for name, series in videos.items()}, work)

    def report(folder: RunFolder) -> None:
        done = folder.facts("measure")
        if len(records) < len(done):
            found = open_series_set(list(settings.videos), settings.names or None, **settings.video)
            for series in found:
                if series.name in done and series.name not in records:
                    records[series.name] = _record(folder, settings, series)
        write_results(folder, [records[name] for name in done])

    return [Step("measure", read), Step("report", report, always=True)]


def write_results(folder: RunFolder, records: Sequence[FilamentRecord]) -> None:
    """Write what holds for all videos: the table of kinetics, the report, and `run.json`."""
    facts = {key: folder.manifest[key] for key in RUN_FACTS if folder.manifest.get(key)}
    facts["finished"] = now()
    table = kinetics_table(records)
    for suffix in (".csv", ".xlsx"):
        io.write_table(folder.file(f"kinetics{suffix}"), table, facts=facts)
    for record in records:
        for task, scores in record.scores.items():
            name = f"{record.name}_{TASK_FOLDERS.get(task, task)}.csv"
            io.write_table(folder.file("scores", name), scores.frames, facts={**facts, **scores.summary()})
    settings = plain(folder.settings)
    failures = [failure.message for failure in folder.failures()]
    write_filament_page(folder.file("report.html"), records, settings=settings, facts=facts, failures=failures)
    summary = {record.name: _summary(record) for record in records}
    write_json(folder.file("run.json"), {**facts, "settings": settings, "videos": summary, "failures": failures})


def measure_series(
    series: FrameSeries,
    settings: CurveSettings,
    *,
    members: Mapping[str, np.ndarray] | None = None,
    truth: Mapping[str, Any] | None = None,
) -> FilamentRecord:
    """Measure one video in memory.

    Args:
        series: frames with masks A1 and, if known, A2.
        settings: how.
        members: task -> (N, M) areas that the members of an ensemble found.
        truth: task -> (N, H, W) true masks, for scores.

    Raises:
        UserError: no masks of A1.
    """
    if "A1" not in series.masks:
        raise UserError(
            f"{series.name}: it has no masks of the filament (folder area1/). Predict them (keras-microseg filament "
            "run), or say where they are (--masks)."
        )
    warnings = list(series.warnings)
    areas = {name: values.to_numpy(float) for name, values in measure_areas(series.masks).items()}
    if settings.monotone:
        areas["A1"] = fit_monotone(areas["A1"])
    if not areas["A1"].any():
        warnings.append("All masks are empty: there is nothing to measure. Check the masks and their polarity.")
    if len(series) == 1:
        warnings.append("A video with one frame has areas, but no change and no kinetics.")
    if series.times[-1] < 0:
        warnings.append("All frames lie before time 0: there are no kinetics. Check zero_frame.")
    outside = sum(int(np.count_nonzero(series.masks["A2"][i] & ~series.masks["A1"][i])) for i in range(len(series))) \
        if "A2" in series.masks else 0  # fmt: skip
    if outside > 0.02 * max(areas.get("A2", np.zeros(1)).sum(), 1):
        warnings.append(f"{outside} pixels of the core A2 lie outside the filament A1.")
    length, source = _length(series, settings, areas["A1"], warnings)
    options = {"pixel_size": series.pixel_size, "members": members, "normalization": settings.normalization}
    table = measure_change(series.numbers, series.times, areas, length, **options)
    reacting = table["time"].to_numpy() >= 0
    times, share = table["time"].to_numpy()[reacting], table["conversion"].to_numpy()[reacting]
    fits = fit_rate_laws(times, share, settings.laws)
    spread = None
    if members:
        curves = member_curves(members, length, reacting, settings.normalization)["conversion"][reacting]
        spread = member_fits(times, curves)
    if not any(fit.converged for fit in fits):
        warnings.append(f"No rate law could be fitted: {fits[0].reason}. The measured curve is in the tables.")
    if series.pixel_size is None:
        warnings.append("The pixel size is unknown: areas and volumes are in pixels. Pass --pixel-size.")
    if series.time_unit != "s":
        warnings.append("The frame rate is unknown: times are in frames. Pass --frame-rate.")
    scores = {}
    for task in series.tasks:
        if truth and task in truth:
            masks = (np.asarray(one[reacting] if isinstance(one, np.ndarray) else one[...][reacting])
                     for one in (truth[task], series.masks[task]))  # fmt: skip
            numbers = series.numbers[reacting]
            scores[task] = score_masks(*masks, frames=numbers, video=series.name, pixel_size=series.pixel_size)
    return FilamentRecord(series, table, fits, length, source, spread, truth or {}, scores, tuple(warnings))


def mask_folder(root: str | os.PathLike, name: str) -> Path | None:
    """Where the masks of video `name` lie under `root`: the folder that holds area1/ or area2/, or None."""
    root = Path(root)
    for place in (root / "predictions" / name, root / name / "results", root / name, root / "predictions", root):
        if any((place / folder).is_dir() for folder in TASK_FOLDERS.values()):
            return place
    return None


def rebuild_report(out: str | os.PathLike) -> Path:
    """Write tables and report of a finished `filament measure` or `filament run` again, from its masks.

    Raises:
        FileError: the folder holds no such run.
    """
    known = read_json(Path(out) / "settings.json") if (Path(out) / "settings.json").is_file() else {}
    command = known.pop("command", None)
    if command == "filament measure":
        settings: Any = FilamentMeasureSettings(**_tuples(known))
    elif command in ("filament run", "filament predict"):
        from keras_microseg.workflows.filament_change import FilamentSettings

        settings = FilamentSettings(**_tuples(known))
    else:
        raise FileError(out, "holds no run of filament measure or filament run.", "Name the --out folder of one.")
    folder = RunFolder(out, settings, command=command, resume=True)
    run_steps(folder, steps_after_masks(settings))
    return folder.path / "report.html"


def _tuples(known: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in known.items()}


def _record(folder: RunFolder, settings: Any, series: FrameSeries) -> FilamentRecord:
    """One video with the masks to measure, in memory."""
    own = folder.path / "predictions" / series.name
    elsewhere = getattr(settings, "masks", None)
    place = own if own.is_dir() else None
    if place is None and elsewhere is not None:
        place = mask_folder(elsewhere, series.name)
        if place is None:
            raise FileError(elsewhere, f"holds no masks of {series.name}.", "It should hold area1/ and area2/.")
    curves = CurveSettings(**settings.measure)
    if place is None:
        return measure_series(series.load(), curves)
    options = {key: value for key, value in settings.video.items() if key not in ("masks", "tasks", "foreground")}
    measured = open_series(series.path or series.name, name=series.name, masks=place, **options)
    truth, loaded = None, measured.load()
    if series.masks:
        index = np.searchsorted(series.numbers, loaded.numbers)
        truth = {task: series.read_masks(task, index) for task in series.tasks if task in loaded.masks}
    members = read_members(place / "members.csv", loaded) if (place / "members.csv").is_file() else None
    return measure_series(loaded, curves, members=members, truth=truth)


def _length(series: FrameSeries, settings: CurveSettings, areas: np.ndarray, warnings: list[str]) -> tuple[float, str]:
    """Length of the segment in px, and how it is known."""
    given = settings.length.get(series.name) if isinstance(settings.length, Mapping) else settings.length
    if given is not None:
        return float(given), "given"
    start = int(np.flatnonzero(series.times >= 0)[0]) if (series.times >= 0).any() else 0
    if settings.length_method == "axis":
        if not areas.any():
            return 1.0, "unknown: all masks are empty"
        if not areas[start]:
            start = int(np.flatnonzero(areas)[0])
            warnings.append(f"The first mask is empty; the length comes from frame {series.numbers[start]}.")
        length = segment_length(series.read_masks("A1", [start])[0])
        return length, f"arc length of the filament's axis in frame {series.numbers[start]}"
    length = segment_length(np.zeros((1, 1), bool), series.read_valid([start])[0], "columns")
    return length, f"columns of the visible region in frame {series.numbers[start]}"


def _write_record(
    folder: RunFolder, record: FilamentRecord, settings: CurveSettings
) -> tuple[dict[str, Any], list[Path]]:
    """Files of one video, and what the manifest says about it."""
    facts = {key: folder.manifest[key] for key in RUN_FACTS if folder.manifest.get(key)}
    facts = {"video": record.name, "length_px": record.length, "length": record.length_source, **facts}
    paths = [folder.file("curves", f"{record.name}{suffix}") for suffix in (".csv", ".xlsx")]
    io.write_table(paths[0], record.table, facts=facts)
    write_curves(paths[1], record, facts)
    for kind in ("curves", "conversion"):
        for suffix in (".svg", ".png"):
            folder.file("figures", f"{record.name}_{kind}{suffix}")
    paths += write_figures(folder.path / "figures", record)
    if settings.overlays:
        paths += _write_overlays(folder, record)
    return _summary(record), paths


def _write_overlays(folder: RunFolder, record: FilamentRecord) -> list[Path]:
    paths = []
    for i, file in enumerate(record.series.files):
        path = folder.file("overlays", record.name, f"{Path(file).stem}.png")
        write_picture(path, draw_overlay(record, i))
        paths.append(path)
    return paths


def _summary(record: FilamentRecord) -> dict[str, Any]:
    best = next((fit for fit in record.fits if fit.converged), None)
    return {
        "frames": len(record.series),
        "length_px": record.length,
        "best_law": best.law if best else None,
        "t50": best.t50 if best else None,
        "avrami": record.avrami.parameters,
        "avrami_r2": record.avrami.r2,
        "reason": "" if best else record.fits[0].reason,
        "scores": {task: scores.summary() for task, scores in record.scores.items()},
        "warnings": list(record.warnings),
    }
