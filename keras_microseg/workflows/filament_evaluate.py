"""Workflow `filament evaluate`: masks of videos against the truth, with the published score and honest ones."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.io.frame_layouts import open_series, open_series_set
from keras_microseg.io.frames import FrameSeries
from keras_microseg.measurement.change import segment_length, tube_curves
from keras_microseg.metrics.change import (
    ChangeScores,
    change_matrix,
    join_scores,
    published_f1,
    score_masks,
    volume_error,
)
from keras_microseg.workflows.filament_measure import mask_folder
from keras_microseg.workflows.steps import Progress, run_facts, write_json

POOLED = "all"


@dataclasses.dataclass(frozen=True)
class FilamentScores:
    """Scores of masks over videos.

    Attributes:
        table: one row per video and task, and per task one row `all` over the pixels of all videos.
        volumes: video -> mean absolute error of the wall volume, relative to the first true value.
        frames: one row per video, task and frame.
    """

    table: pd.DataFrame
    volumes: dict[str, float]
    frames: pd.DataFrame


def evaluate(
    predicted: str | os.PathLike,
    truth: str | os.PathLike | Sequence[str | os.PathLike],
    out: str | os.PathLike | None = None,
    *,
    names: Sequence[str] = (),
    video: Mapping[str, Any] | None = None,
    change: bool = False,
    distances: bool = True,
    progress: Progress | None = None,
) -> FilamentScores:
    """Score masks, frames from time 0 on.

    Args:
        predicted: folder of a `filament run`, or one that holds `NAME/area1/`, `NAME/area2/` (or these themselves, when
            there is one video or the file names tell the videos apart).
        truth: videos with masks, or one folder that holds a folder per video.
        out: also write the scores there, `.json`; and the tables beside it as `.csv`.
        names: which videos; default all of `truth` that have masks and are found in `predicted`.
        video: further arguments of `open_series` for the truth (frame_rate, zero_frame, pixel_size, foreground).
        change: also score the four change classes over all pairs of frames, as the source selects by (slow).
        distances: compute HD95.
        progress: see `steps.Progress`.

    Raises:
        FileError: no masks of a video, masks missing for frames of the reaction, or sizes that differ.
        UserError: nothing to compare.
    """
    options = dict(video or {})
    given = [truth] if isinstance(truth, (str, os.PathLike)) else list(truth)
    videos = [series for series in open_series_set(given, list(names) or None, **options) if series.masks or names]
    found: dict[str, list[ChangeScores]] = {}
    rows, volumes, matrices = [], {}, {}
    compared = 0
    for number, series in enumerate(videos):
        if progress:
            progress("evaluate", number, len(videos), series.name)
        place = mask_folder(predicted, series.name)
        if place is None or not series.masks:
            if names:
                side, what = (predicted, "predicted") if place is None else (series.path, "true")
                raise FileError(side, f"holds no {what} masks of {series.name}.", "It should hold area1/ and area2/.")
            continue
        true, guess = _pair(series, place, options)
        compared += 1
        for task in guess.tasks:
            if task not in true.tasks:
                continue
            masks = true.read_masks(task), guess.read_masks(task)
            size = {"frames": true.numbers, "video": series.name, "pixel_size": series.pixel_size}
            scores = score_masks(*masks, **size, distances=distances)
            found.setdefault(task, []).append(scores)
            row = {"video": series.name, "task": task, "frames": len(true), **scores.summary()}
            if change:
                matrix = change_matrix(*masks)
                matrices.setdefault(task, []).append(matrix)
                row["change_f1"] = published_f1(matrix)
            rows.append(row)
        if set(true.tasks) == set(guess.tasks) >= {"A1", "A2"} and true.read_masks("A1", [0]).any():
            volumes[series.name] = volume_error(*(_volumes(one, true) for one in (true, guess)))
    if not compared:
        raise UserError(f"Nothing to compare: {predicted} holds no masks of any video of {', '.join(map(str, given))}.")
    for task, scores in found.items():
        pooled = join_scores(scores)
        row = {"video": POOLED, "task": task, "frames": len(pooled.frames), **pooled.summary()}
        if change:
            row["change_f1"] = published_f1(np.sum(matrices[task], axis=0))
        rows.append(row)
    parts = [scores.frames.assign(task=task) for task, listed in found.items() for scores in listed]
    result = FilamentScores(pd.DataFrame(rows), volumes, pd.concat(parts, ignore_index=True))
    if out is not None:
        _write(Path(out), result, predicted, given)
    return result


def _pair(series: FrameSeries, place: Path, options: Mapping[str, Any]) -> tuple[FrameSeries, FrameSeries]:
    """Truth and prediction of the same frames, from time 0 on, in memory."""
    kept = {key: value for key, value in options.items() if key not in ("masks", "foreground", "tasks")}
    guess = open_series(series.path or series.name, name=series.name, masks=place, skip_missing=True, **kept)
    true = series.reaction
    absent = np.setdiff1d(true.numbers, guess.numbers)
    if len(absent):
        listed = ", ".join(map(str, absent[:6]))
        raise FileError(place, f"has no masks of frames {listed} ({len(absent)} in all) of {series.name}.", "Add them.")
    return true, guess.take(np.isin(guess.numbers, true.numbers))


def _volumes(series: FrameSeries, true: FrameSeries) -> np.ndarray:
    areas = [series.read_masks(task).sum(axis=(1, 2)) for task in ("A1", "A2")]
    return tube_curves(*areas, segment_length(true.read_masks("A1", [0])[0]))["V"].to_numpy()


def _write(path: Path, result: FilamentScores, predicted: Any, truth: Sequence[Any]) -> None:
    facts = {**run_facts(), "predicted": str(predicted), "truth": [str(one) for one in truth]}
    if path.suffix != ".json":
        raise UserError(f"{path.name}: scores are written as .json. Use that ending.")
    rows = result.table.to_dict("records")
    write_json(path, {**facts, "scores": rows, "wall_volume_error": result.volumes})
    io.write_table(path.with_suffix(".csv"), result.table, facts=facts, sheets={"frames": result.frames})
