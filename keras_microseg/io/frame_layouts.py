"""Opening a video as a `FrameSeries`: folders of frames with masks or layers, TIFF stacks, video files."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.image import PixelSize
from keras_microseg.io.files import SUFFIXES, find_images, natural_key
from keras_microseg.io.frames import (
    SIDECAR,
    TASK_FOLDERS,
    FrameFiles,
    FrameSeries,
    MaskFiles,
    StackFrames,
    find_fill,
    find_valid,
)
from keras_microseg.io.images import open_image
from keras_microseg.io.video import VIDEO_SUFFIXES, open_video

RECORDED_NAME = re.compile(r"^\w+_r\d+_(\d+)$", re.IGNORECASE)
"""File names of the MultiTaskDeltaNet data set, VIDEO_rREGION_FRAME; they stand for `RECORDED`."""
RECORDED = {"pixel_size": "0.52 nm", "frame_rate": 2.0, "zero_frame": 88, "fill": 178}
_SOURCE = "the recordings of the MultiTaskDeltaNet data set, known by the file names"
_FEW = 6


def open_series(
    path: str | os.PathLike,
    *,
    name: str | None = None,
    pixel_size: Any = None,
    frame_rate: float | None = None,
    zero_frame: int | None = None,
    times: Sequence[float] | None = None,
    fill: int | str | None = "auto",
    tasks: Sequence[str] | None = None,
    masks: str | os.PathLike | None = None,
    foreground: str = "black",
    skip_missing: bool = False,
) -> FrameSeries:
    """Open a video without reading its pixels.

    What may be opened: a folder in the prepared layout (`img/`, `area1/`, `area2/`; also `results/` around them), one
    in the original layout (`original/img/` with transparent layers `NUMBER_layerA1.png`), a folder of images, a stack
    (TIFF and whatever `open_image` reads), a video file (needs the package `av`).

    Frame numbers are the integers in the names (the last in an image's name, the first in a layer's, so `0000044` and
    `000044` are the same frame), else 0, 1, ... A `series.json` beside the frames gives what names cannot say; what is
    passed here goes before it. Names like `103_r1_000088.png` (and layers of the original layout) stand for 2 frames/s,
    time 0 at frame 88, 0.52 nm and fill 178.

    Args:
        path: file or folder.
        name: name of the series; default: of the folder that is not called `results`, `original` or `img`.
        pixel_size: edge length with unit, for example `"0.52 nm"`.
        frame_rate: frame numbers per second; None and unknown: time is counted in frames.
        zero_frame: frame number of time 0; default: the first frame.
        times: time of every frame in seconds instead of `frame_rate` and `zero_frame`.
        fill: grey outside the chosen segment, None when everything shows the specimen, `"auto"` to find it.
        tasks: names of the masks wanted; None = those there are.
        masks: folder of the mask folders, when they lie elsewhere.
        foreground: `"black"` (the data set's convention) or `"white"` pixels of mask files are carbon.
        skip_missing: leave out frames that lack a mask instead of stopping.

    Raises:
        FileError: nothing to read, frames of different size, a damaged file, missing masks, inverted masks.
        UserError: times or frame numbers that do not increase, arguments out of range.
    """
    path = Path(path)
    check_choice("foreground", foreground, ("black", "white"))
    if frame_rate is not None:
        check_number("frame_rate", frame_rate, minimum=0, exclusive=True)
    if not path.exists():
        raise FileError(path, "does not exist.", "Check the path and the spelling.")
    found = _open_folder(path) if path.is_dir() else _open_file(path)
    known = _read_sidecar(found.root)
    is_recorded = bool(found.files) and all(RECORDED_NAME.match(Path(file).stem) for file in found.files)
    preset = RECORDED if is_recorded or found.layout == "original" else {}

    size = _first_size((pixel_size, "user"), (known.get("pixel_size"), None), (found.pixel_size, None),
                       (preset.get("pixel_size"), _SOURCE))  # fmt: skip
    rate = next(
        (r for r in (frame_rate, known.get("frame_rate"), found.frame_rate, preset.get("frame_rate")) if r), None
    )
    zero = next((z for z in (zero_frame, known.get("zero_frame")) if z is not None), None)
    if zero is None:
        has_preset = preset and preset["zero_frame"] <= found.numbers[-1]
        zero = preset["zero_frame"] if has_preset else int(found.numbers[0])
    unit = "s" if rate or times is not None else "frame"
    clock = (found.numbers - zero) / (rate or 1.0)
    if times is None and frame_rate is None and zero_frame is None and known.get("times"):
        clock = np.array([known["times"].get(str(number), np.nan) for number in found.numbers], float)
        unit = known.get("time_unit", "s")
        if not np.isfinite(clock).all():
            absent = found.numbers[~np.isfinite(clock)]
            raise FileError(found.root / SIDECAR, f"gives no time for {_some(absent, 'frame')}.", "Add it.")
    if times is not None:
        clock = np.asarray(times, float)
        if clock.shape != found.numbers.shape:
            raise UserError(f"`times` must have one entry per frame ({len(found.numbers)}). Received: {len(clock)}")

    warnings = list(found.warnings)
    if fill == "auto" and "fill" in known:
        fill = known["fill"]
    elif fill == "auto" and found.layout == "original":
        fill = None
    elif fill == "auto":
        fill = preset["fill"] if preset else find_fill(np.asarray(found.images[0]))
    layers, keep = _find_masks(found, tasks, None if masks is None else Path(masks), foreground, skip_missing, warnings)
    series = FrameSeries(
        name=name or known.get("name") or found.name,
        images=found.images,
        numbers=found.numbers,
        times=clock,
        files=tuple(found.files),
        time_unit=unit,
        pixel_size=size,
        masks=layers,
        fill=None if fill is None else int(fill),
        path=str(path),
        metadata={"layout": found.layout, "zero_frame": zero, "frame_rate": rate, "warnings": warnings},
    )
    if keep is not None and not keep.all():
        series = series.take(keep)
    _check_polarity(series, foreground)
    return series


def open_series_set(
    paths: str | os.PathLike | Sequence[str | os.PathLike], names: Sequence[str] | None = None, **options: Any
) -> list[FrameSeries]:
    """Open several videos: a list of them, or the folders of videos inside one folder.

    Args:
        paths: videos, or one folder that holds a folder per video.
        names: which of them, by name; None = all.
        options: see `open_series`.

    Raises:
        FileError: no video found, or a name that is not there.
        UserError: two videos of one name.
    """
    listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    found: list[Path] = []
    for given in map(Path, listed):
        inside = [] if _is_video(given) or not given.is_dir() else sorted(given.iterdir(), key=natural_key)
        videos = [path for path in inside if _is_video(path)]
        found += videos or [given]
    by_name: dict[str, Path] = {}
    for path in found:
        label = _name_of(path)
        if label in by_name:
            raise UserError(f"Two videos are called {label!r}: {by_name[label]} and {path}. Rename one folder.")
        by_name[label] = path
    for wanted in names or ():
        if wanted not in by_name:
            raise FileError(listed[0], f"holds no video {wanted!r}.", f"There are {', '.join(by_name) or 'none'}.")
    return [open_series(by_name[label], name=label, **options) for label in (names or by_name)]


# ----------------------------------------------------------------------------------------------- finding the frames


@dataclasses.dataclass
class _Found:
    """Frames as they lie on disk."""

    name: str
    root: Path
    layout: str
    images: Any
    numbers: np.ndarray
    files: list[str]
    pixel_size: PixelSize | None = None
    frame_rate: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


def _is_video(path: Path) -> bool:
    if path.is_file():
        return path.suffix.lower() in VIDEO_SUFFIXES or path.suffix.lower() in (".tif", ".tiff", ".btf")
    if not path.is_dir() or path.name.startswith("."):
        return False
    if any((path / part / "img").is_dir() for part in (".", "results", "original")):
        return True
    return any(entry.suffix.lower() in SUFFIXES for entry in path.iterdir() if entry.is_file())


def _name_of(path: Path) -> str:
    path = path.resolve()
    while path.name in ("img", "results", "original") and path.parent != path:
        path = path.parent
    return path.stem if path.is_file() else path.name


def _open_folder(path: Path) -> _Found:
    for root, layout in ((path, None), (path / "results", "prepared"), (path / "original", "original")):
        if (root / "img").is_dir():
            has_layers = any(_layers_in(root / folder) for folder in TASK_FOLDERS.values())
            layout = layout or ("original" if has_layers or root.name == "original" else "prepared")
            return _frames_of(root, root / "img", layout)
    return _frames_of(path.parent if path.name == "img" else path, path, "folder")


def _layers_in(folder: Path) -> bool:
    return folder.is_dir() and any("layer" in entry.name.lower() for entry in folder.iterdir())


def _frames_of(root: Path, folder: Path, layout: str) -> _Found:
    paths = find_images(folder)
    numbers = frame_numbers(paths, last=layout != "original")
    order = np.argsort(numbers, kind="stable")
    paths, numbers = [paths[i] for i in order], numbers[order]
    opened = [open_image(path) for path in paths]
    for image, path in zip(opened, paths, strict=True):
        if any(letter in "TZ" for letter in image.axes):
            raise FileError(path, "is a stack among single frames.", "Open the stack by itself.")
    shapes = [image.spatial_shape for image in opened]
    different = [path.name for path, shape in zip(paths, shapes, strict=True) if shape != shapes[0]]
    if different:
        sizes = sorted({" x ".join(map(str, shape)) for shape in shapes})
        raise FileError(
            folder,
            f"frames are of different size ({', '.join(sizes[:4])}); {_some(different, 'file')} differ from the first.",
            "Cut all to one window (`filament prepare` does, from a table of windows).",
        )
    dtypes = {np.dtype(image.dtype) for image in opened}
    dtype = np.dtype(np.uint8) if dtypes == {np.dtype(bool)} else np.result_type(*dtypes)
    sizes = [image.pixel_size for image in opened if image.pixel_size is not None]
    return _Found(
        _name_of(root), root, layout, FrameFiles(paths, shapes[0], dtype), numbers, [path.name for path in paths],
        sizes[0] if sizes else None,
    )  # fmt: skip


def frame_numbers(paths: Sequence[Path], *, last: bool = True) -> np.ndarray:
    """The frame number in every file name: the last integer of the stem, or the first; 0, 1, ... without any.

    Raises:
        UserError: some names have a number and others none, or two files have the same.
    """
    found = [re.findall(r"\d+", path.stem) for path in paths]
    if not any(found):
        return np.arange(len(paths), dtype=np.int64)
    bare = [path.name for path, parts in zip(paths, found, strict=True) if not parts]
    if bare:
        raise UserError(f"{paths[0].parent}: {_some(bare, 'file')} have no frame number in their name. Add it.")
    numbers = np.array([int(parts[-1 if last else 0]) for parts in found], np.int64)
    first: dict[int, Path] = {}
    for number, path in zip(numbers, paths, strict=True):
        if int(number) in first:
            raise UserError(
                f"{path.parent}: {first[int(number)].name} and {path.name} are both frame {number}. "
                "Keep one, and the frames of another region in a folder of their own."
            )
        first[int(number)] = path
    return numbers


def _open_file(path: Path) -> _Found:
    if path.suffix.lower() in VIDEO_SUFFIXES:
        images, rate = open_video(path)
        stack: Any = images
        return _Found(path.stem, path.parent / path.stem, "video", stack, np.arange(images.shape[0]),
                      _file_names(path.stem, images.shape[0]), None, rate)  # fmt: skip
    image = open_image(path)
    if sum(letter in "TZ" for letter in image.axes) > 1:
        raise FileError(path, f"is a stack along {image.axes}.", "Save one channel and one plane per time point.")
    frames = StackFrames(image)
    size = None if image.pixel_size is None else next(image.planes()).pixel_size
    return _Found(path.stem, path.parent / path.stem, "stack", frames, np.arange(frames.shape[0]),
                  _file_names(path.stem, frames.shape[0]), size)  # fmt: skip


def _file_names(stem: str, count: int) -> list[str]:
    return [f"{stem}_{number:06d}.png" for number in range(count)]


def _read_sidecar(root: Path) -> dict[str, Any]:
    path = root / SIDECAR
    if not path.is_file():
        return {}
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if known.get("pixel_size") is not None:
            known["pixel_size"] = PixelSize(**known["pixel_size"])
        return {key: value for key, value in known.items() if value is not None or key == "fill"}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise FileError(path, f"cannot be read ({error}).", "Correct or delete it.") from error


def _first_size(*candidates: tuple[Any, str | None]) -> PixelSize | None:
    for value, source in candidates:
        if value is not None:
            size = PixelSize.parse(value)
            return size if source is None else dataclasses.replace(size, source=source)
    return None


# ------------------------------------------------------------------------------------------------ finding the masks


def _find_masks(
    found: _Found, tasks: Sequence[str] | None, elsewhere: Path | None, foreground: str, skip: bool,
    warnings: list[str],
) -> tuple[dict[str, Any], np.ndarray | None]:  # fmt: skip
    """Masks per task, and which frames have all of them (None when nothing was left out)."""
    root = elsewhere or found.root
    if elsewhere is not None and not elsewhere.exists():
        raise FileError(elsewhere, "does not exist.", "It should hold the folders area1/ and area2/.")
    if elsewhere is not None and elsewhere.is_dir() and (elsewhere / "results").is_dir():
        root = elsewhere / "results"
    have = {task: root / folder for task, folder in TASK_FOLDERS.items() if (root / folder).is_dir()}
    for task in tasks or ():
        if task not in have:
            folder = TASK_FOLDERS.get(task, task)
            if not (root / folder).is_dir():
                raise FileError(root, f"has no masks of {task} (folder {folder}/).", "Add them or leave the task out.")
            have[task] = root / folder
    if elsewhere is not None and not have:
        raise FileError(elsewhere, "holds no folder area1/ or area2/.", "Give the folder that holds these.")
    chosen = {task: have[task] for task in (tasks if tasks is not None else have)}
    keep = np.ones(len(found.numbers), bool)
    pairs = {}
    for task, folder in chosen.items():
        paths = find_images(folder)
        stems = {Path(file).stem for file in found.files}
        if any(path.stem in stems for path in paths):  # masks of several videos may share a folder
            starts = {re.sub(r"\d+$", "", stem) for stem in stems}
            paths = [path for path in paths if re.sub(r"\d+$", "", path.stem) in starts]
        is_layer = ["layer" in path.name.lower() for path in paths]
        numbers = frame_numbers(paths, last=not any(is_layer))
        index = dict(zip(map(int, numbers), paths, strict=True))
        absent = np.array([int(number) not in index for number in found.numbers])
        extra = sorted(set(index) - set(map(int, found.numbers)))
        if extra:
            warnings.append(f"{folder.name}/ has masks of {_some(extra, 'frame')} that have no image; they are unused.")
        if absent.any():
            text = f"has no mask of {_some(found.numbers[absent], 'frame')}"
            if not skip or absent.all():
                remedy = "Add them, or pass skip_missing=True (--skip-missing) to leave these frames out."
                raise FileError(folder, f"{text}.", remedy)
            warnings.append(f"{folder.name}/ {text}; left out.")
            keep &= ~absent
        pairs[task] = (index, "alpha" if all(is_layer) and found.layout == "original" else foreground)
    masks: dict[str, Any] = {}
    height, width = found.images.shape[1:]
    for task, (index, meaning) in pairs.items():
        placeholder = next(iter(index.values()))
        paths = [index.get(int(number), placeholder) for number in found.numbers]
        for path in {*paths}:
            shape = open_image(path).spatial_shape
            if shape != (height, width):
                raise FileError(
                    path, f"is {shape[0]} x {shape[1]}, its frame {height} x {width}.", "Export both in one size."
                )
        masks[task] = MaskFiles(paths, (height, width), meaning)
    return masks, keep


def _check_polarity(series: FrameSeries, foreground: str) -> None:
    """Stop when masks are inverted: carbon where the frame is filled, or over most of every frame."""
    other = {"black": "white", "white": "black"}[foreground]
    index = np.unique([0, len(series) // 2, len(series) - 1])
    outside = ~np.stack([find_valid(frame, series.fill) for frame in series.read_images(index)])
    shares = {}
    for task in series.masks:
        masks = series.read_masks(task, index)
        rim = np.concatenate(
            [masks[:, [0, -1]].reshape(len(index), -1), masks[:, :, [0, -1]].reshape(len(index), -1)], 1
        )
        in_fill = masks[outside].mean() if outside.sum() > 0.05 * outside.size else 0.0
        shares[task] = masks.mean()
        if in_fill > 0.5 or (shares[task] > 0.5 and rim.mean() > 0.5):
            what = (
                f"{in_fill:.0%} of the grey outside the segment"
                if in_fill > 0.5
                else f"{shares[task]:.0%} of the frame"
            )
            raise FileError(
                Path(series.path or series.name) / TASK_FOLDERS.get(task, task),
                f"the masks of {task} look inverted: {what} counts as carbon.",
                f"Carbon is taken to be {foreground} in these files. If it is {other}, pass foreground={other!r} "
                f"(--foreground {other}).",
            )
    if {"A1", "A2"} <= set(shares) and shares["A2"] > shares["A1"]:
        series.metadata["warnings"].append(  # type: ignore[union-attr]
            "The hollow core A2 is larger than the filament A1. Are the folders area1/ and area2/ exchanged?"
        )


def _some(values: Sequence[Any] | np.ndarray, noun: str) -> str:
    """`frames 44, 88, ... (12 in all)`."""
    listed = ", ".join(str(value) for value in list(values)[:_FEW])
    more = f", ... ({len(values)} in all)" if len(values) > _FEW else ""
    return f"{noun}{'s' if len(values) != 1 else ''} {listed}{more}"
