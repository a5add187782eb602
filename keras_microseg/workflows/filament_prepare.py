"""Workflows `filament prepare` and `filament simulate`: folders of network input from raw frames, or from nothing."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice, check_number, standardize_tuple
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.io.frame_cuts import DEFAULT_FILL, cut_series, follow_masks, read_cuts
from keras_microseg.io.frame_layouts import open_series_set
from keras_microseg.io.frames import SIDECAR, TASK_FOLDERS, FrameSeries, write_series
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json


@dataclasses.dataclass(frozen=True)
class PrepareSettings:
    """How raw frames become network input.

    Attributes:
        videos: folders of raw frames (with layers or masks if there are any), stacks, video files.
        names: which of them; empty = all.
        windows: table of windows, cut lines and polygons (see `io.frame_cuts.read_cuts`), or a folder of tables
            `NAME.csv` or `NAME.xlsx`; None follows the masks of A1, or keeps whole frames where there are none.
        size: (height, width) of the window, px.
        fill: grey outside what is kept.
        margin: pixels kept beside the filament when the masks are followed.
        video: further arguments of `open_series`.
    """

    videos: tuple[str, ...]
    names: tuple[str, ...] = ()
    windows: str | None = None
    size: tuple[int, int] = (256, 256)
    fill: int = DEFAULT_FILL
    margin: int = 0
    video: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.videos:
            raise UserError("`videos` must name at least one video or folder.")
        object.__setattr__(self, "size", standardize_tuple(self.size, 2, "size", minimum=16))
        check_number("fill", self.fill, minimum=0, maximum=255, integer=True)
        check_number("margin", self.margin, minimum=0, integer=True)


def prepare(
    settings: PrepareSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Write `out/NAME/img`, `area1`, `area2` and `series.json` for every video.

    8-bit grey values stay as they are; others are stretched between the 0.5 and 99.5 percentiles of the whole video.

    Raises:
        UserError: nothing to read, frames without a window, a folder that cannot be written.
    """
    folder = RunFolder(out, settings, command="filament prepare", resume=resume, overwrite=overwrite, progress=progress)

    def cut(folder: RunFolder) -> None:
        found = open_series_set(list(settings.videos), settings.names or None, **settings.video)
        videos = {series.name: series for series in found}

        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            return _write(folder, cut_video(videos[name], settings))

        folder.for_each("prepare", {name: Path(series.path or name) for name, series in videos.items()}, work)

    return run_steps(folder, [Step("prepare", cut)])


def cut_video(series: FrameSeries, settings: PrepareSettings) -> FrameSeries:
    """Network input of one video, 8 bit; unread where the frames are 8 bit already."""
    if settings.windows is not None:
        cuts = read_cuts(_table_of(Path(settings.windows), series.name), series.numbers)
    elif "A1" in series.masks:
        cuts = follow_masks(series, size=settings.size, margin=settings.margin)
    else:
        cuts = None
    named = dataclasses.replace(series, files=_frame_files(series))
    prepared = named if cuts is None else cut_series(named, cuts, size=settings.size, fill=settings.fill)
    return to_8bit(prepared)


def to_8bit(series: FrameSeries) -> FrameSeries:
    """The series with uint8 frames; other types are stretched by percentiles of all visible pixels, in memory."""
    if np.dtype(series.images.dtype) == np.uint8:
        return series
    images, valid = series.read_images(), series.read_valid()
    limits = percentile_limits(images[valid])
    grey = np.rint(np.asarray(stretch(images, limits)) * 255).astype(np.uint8)
    fill = None if series.fill is None else min(int(series.fill), 255)
    if fill is not None:
        grey[~valid] = fill
    facts = {**series.metadata, "stretched_from": [float(limit) for limit in limits]}
    return dataclasses.replace(series, images=grey, valid=valid, fill=fill, metadata=facts)


@dataclasses.dataclass(frozen=True)
class SimulateFilamentSettings:
    """What to draw; see `simulation.filaments.simulate_video`.

    Attributes:
        count: number of videos; video `i` has the seed `seed + i`.
        num_frames: frames of each from time 0 on.
        size: (height, width) of a frame.
        mode: of burning, one of `simulation.filaments.MODES`, or None for all in turn.
        seed: of the first video.
    """

    count: int = 3
    num_frames: int = 20
    size: tuple[int, int] = (256, 256)
    mode: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        from keras_microseg.simulation.filaments import MODES

        check_number("count", self.count, minimum=1, integer=True)
        check_number("num_frames", self.num_frames, minimum=1, integer=True)
        check_number("seed", self.seed, minimum=0, integer=True)
        object.__setattr__(self, "size", standardize_tuple(self.size, 2, "size", minimum=48))
        if self.mode is not None:
            check_choice("mode", self.mode, MODES)


def simulate(
    settings: SimulateFilamentSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Write simulated videos in the prepared layout, each with `truth.json` (law, sizes and areas of every frame)."""
    from keras_microseg.simulation.filaments import MODES, simulate_video

    folder = RunFolder(
        out, settings, command="filament simulate", resume=resume, overwrite=overwrite, progress=progress
    )
    modes = list(MODES) if settings.mode is None else [settings.mode]

    def draw(folder: RunFolder) -> None:
        def work(name: str, _: Path) -> tuple[dict[str, Any], list[Path]]:
            seed = int(name.removeprefix("sim"))
            mode = modes[(seed - settings.seed) % len(modes)]
            video = simulate_video(
                seed, num_frames=settings.num_frames, shape=settings.size, mode=mode, num_before=1, name=name
            )
            facts, paths = _write(folder, video.series)
            truth = folder.file(name, "truth.json")
            write_json(truth, {**video.facts, "frames": video.truth.to_dict("list")})
            return {**facts, **video.facts}, [*paths, truth]

        names = [f"sim{settings.seed + i:03d}" for i in range(settings.count)]
        folder.for_each("simulate", {name: Path(name) for name in names}, work)

    return run_steps(folder, [Step("simulate", draw)])


def _write(folder: RunFolder, series: FrameSeries) -> tuple[dict[str, Any], list[Path]]:
    for file in series.files:
        for part in ("img", *(TASK_FOLDERS.get(task, task) for task in series.tasks)):
            folder.file(series.name, part, f"{Path(file).stem}.png")
    folder.file(series.name, SIDECAR)
    paths = write_series(folder.path / series.name, series)
    facts = {"frames": len(series), "tasks": list(series.tasks), "shape": list(series.shape[1:])}
    return {**facts, "windows": series.metadata.get("windows"), "warnings": list(series.warnings)}, paths


def _frame_files(series: FrameSeries) -> tuple[str, ...]:
    """Names with the video and the frame number, so that frames of several videos can share a folder."""
    width = max(6, len(str(int(series.numbers[-1]))))
    return tuple(f"{series.name}_r1_{int(number):0{width}d}.png" for number in series.numbers)


def _table_of(path: Path, name: str) -> Path:
    if not path.is_dir():
        return path
    for suffix in (".csv", ".xlsx"):
        if (path / f"{name}{suffix}").is_file():
            return path / f"{name}{suffix}"
    raise FileError(path, f"holds no table {name}.csv or {name}.xlsx.", "Add it, or name one table for all videos.")
