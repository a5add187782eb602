"""Workflow `filament run`: videos of burning filaments become masks, curves and a report; with or without training.

Steps: prepare (open every video and check it) - train (only when no model is given) - predict (masks) - and those of
`filament_measure` (areas, kinetics, report).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.io.frames import FrameSeries, write_masks, write_members
from keras_microseg.measurement.tracking import drop_pieces
from keras_microseg.workflows import filament_train
from keras_microseg.workflows.steps import Progress, RunFolder, Step, file_hash, read_json, run_steps

TRAINING = "training"


@dataclasses.dataclass(frozen=True)
class FilamentSettings:
    """What to do.

    Attributes:
        videos: folders, stacks or video files, or one folder that holds a folder per video; see
            `io.frame_layouts.open_series`.
        names: which of them; empty = all.
        model: a file of `filament train`; None = train first, on `data`.
        data: labelled videos to train on when `model` is None.
        preset: of that training, see `filament_train.PRESETS`.
        mode: fields of `inference.change.ModeSettings`.
        probabilities: also write the probability maps (`probabilities/NAME.npz`).
        video: further arguments of `open_series` (pixel_size, frame_rate, zero_frame, fill).
        measure: fields of the settings of `filament_measure`.
        follow: drop pieces of the masks that lie where the filament was not in the frame before (the reaction only
            removes carbon); see `measurement.tracking`. The published masks are without.
        model_sha256: of `model`, filled in by `run`.
    """

    videos: tuple[str, ...]
    names: tuple[str, ...] = ()
    model: str | None = None
    data: str | None = None
    preset: str = "cpu"
    mode: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probabilities: bool = False
    video: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    measure: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    follow: bool = True
    model_sha256: str | None = None

    def __post_init__(self) -> None:
        if not self.videos:
            raise UserError("`videos` must name at least one video or folder.")
        check_choice("preset", self.preset, filament_train.PRESETS)
        if self.model is None and self.data is None:
            raise UserError(
                "Neither a model nor labelled videos to train one were given. Pass model=FILE (of `filament train`) or "
                "data=FOLDER (videos with masks; some ten minutes on two cores)."
            )


def run(
    settings: FilamentSettings,
    out: str | os.PathLike,
    *,
    measure: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Do all steps into `out`.

    Args:
        settings: what to do.
        out: folder for the results: `predictions/NAME/area1/FRAME.png` (0/255, black = carbon), and after measuring
            `curves/`, `figures/`, `overlays/`, `report.html`.
        measure: False ends after the masks.
        resume: go on with an interrupted run.
        overwrite: replace an earlier run in `out`.
        progress: see `steps.Progress`.

    Raises:
        UserError: nothing to read, a model of another kind, a folder in use.
    """
    from keras_microseg import backend

    backend.select()
    if settings.model is not None:
        settings = dataclasses.replace(settings, model_sha256=_hash(Path(settings.model)))
    command = "filament run" if measure else "filament predict"
    folder = RunFolder(out, settings, command=command, resume=resume, overwrite=overwrite, progress=progress)
    steps = [Step("prepare", _prepare, always=True)]
    if settings.model is None:
        steps.append(Step("train", _train))
    steps.append(Step("predict", _predict, always=True))
    if measure:
        from keras_microseg.workflows import filament_measure

        steps += filament_measure.steps_after_masks(settings)
    return run_steps(folder, steps)


def open_videos(settings: FilamentSettings) -> dict[str, FrameSeries]:
    """The videos by name, unread."""
    from keras_microseg.io.frame_layouts import open_series_set

    found = open_series_set(list(settings.videos), settings.names or None, **settings.video)
    if not found:
        raise FileError(settings.videos[0], "holds no video.", "Name a folder of frames, a stack or a video file.")
    return {series.name: series for series in found}


def _prepare(folder: RunFolder) -> None:
    """Note what the videos are, so that a fault shows before hours of training."""
    videos = open_videos(folder.settings)
    facts = {}
    for name, series in videos.items():
        _check(series)
        facts[name] = {
            "frames": len(series),
            "shape": list(series.shape[1:]),
            "from": float(series.times[0]),
            "to": float(series.times[-1]),
            "time_unit": series.time_unit,
            "pixel_size": None if series.pixel_size is None else str(series.pixel_size),
            "path": series.path,
            "warnings": list(series.warnings),
        }
    folder.manifest["videos"] = facts


def _check(series: FrameSeries) -> None:
    if len(series) < 2:
        raise UserError(f"{series.name}: a video needs at least two frames to compare. It has {len(series)}.")
    if not any(np.asarray(series.read_valid(slice(i, i + 1))).any() for i in range(len(series))):
        raise UserError(
            f"{series.name}: no frame shows the specimen, all are the fill grey {series.fill}. "
            "Check the files, or pass fill=None."
        )


def _train(folder: RunFolder) -> None:
    settings = folder.settings
    out = folder.file(TRAINING, filament_train.MODEL).parent
    filament_train.train(
        settings.data,
        out,
        filament_train.preset(settings.preset),
        resume=(out / "checkpoint.npz").exists(),
        progress=folder.progress,
    )


def _predict(folder: RunFolder) -> None:
    from keras_microseg import backend
    from keras_microseg.inference.change import ChangePredictor, ModeSettings, predict_series
    from keras_microseg.models.saving import load_model

    settings, videos = folder.settings, open_videos(folder.settings)
    mode = ModeSettings(**settings.mode)
    path = folder.path / TRAINING / filament_train.MODEL if settings.model is None else Path(settings.model)
    device = backend.configure_device()
    predictor: list[Any] = []  # opened for the first video that needs it

    def work(name: str, source: Path) -> tuple[dict[str, Any], Sequence[Path]]:
        if not predictor:
            predictor.append(ChangePredictor(*load_model(path)))
        series = videos[name]

        def report(done: int, total: int) -> None:
            if folder.progress:
                folder.progress("predict", list(videos).index(name), len(videos), f"{name}: pair {done} of {total}")

        found = predict_series(predictor[0], series, mode, progress=report)
        if settings.follow:
            found = _followed(found)
        files = []
        for task, masks in found.masks.items():
            for file in series.files:
                part = io.frames.TASK_FOLDERS.get(task, task)
                folder.file("predictions", name, part, f"{Path(file).stem}.png")
            files += write_masks(folder.path / "predictions" / name, series, task, masks)
        members = folder.file("predictions", name, "members.csv")
        write_members(members, series, found.member_areas)
        files.append(members)
        if settings.probabilities:
            maps = folder.file("probabilities", f"{name}.npz")
            arrays = {task: p.astype(np.float16) for task, p in found.probabilities.items()}
            with io.atomic_path(maps) as temporary, open(temporary, "wb") as file:
                np.savez_compressed(file, frames=series.numbers, **arrays)
            files.append(maps)
        facts = {
            "frames": len(series),
            "empty": {task: int((~masks.any(axis=(1, 2))).sum()) for task, masks in found.masks.items()},
            "members": {task: int(areas.shape[1]) for task, areas in found.member_areas.items()},
            "device": device,
        }
        return facts, files

    folder.for_each("predict", {name: Path(series.path or name) for name, series in videos.items()}, work)


def _followed(found: Any) -> Any:
    """The prediction without pieces that cannot belong to the filament; areas of members lose the same share."""
    masks, areas = drop_pieces(found.masks), {}
    for task, table in found.member_areas.items():
        before, after = (np.count_nonzero(one[task], axis=(1, 2)) for one in (found.masks, masks))
        areas[task] = table * (after / np.maximum(before, 1))[:, None]
    return dataclasses.replace(found, masks=masks, member_areas=areas)


def read_model_facts(folder: RunFolder) -> dict[str, Any]:
    """Scores and settings of the training in a run folder, or {} when a model was given."""
    path = folder.path / TRAINING / filament_train.SETTINGS
    return read_json(path) if path.is_file() else {}


def _hash(path: str | os.PathLike) -> str:
    if not Path(path).is_file():
        raise FileError(path, "there is no such model file.", "Train one with: keras-microseg filament train")
    return file_hash(path)
