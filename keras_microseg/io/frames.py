"""`FrameSeries`: the frames of one video with their numbers, times, masks and valid region, unread until asked for."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import LazyArray, PixelSize
from keras_microseg.io.files import atomic_path, write_errors
from keras_microseg.io.images import open_image, read_grey, write_image

TASK_FOLDERS = {"A1": "area1", "A2": "area2"}
"""Folder of the masks of each task: A1 = whole filament (outer outline, filled), A2 = its hollow core, inside A1."""
MIN_FILL = 64
"""Pixels of fill grey that must hang together to count as outside; single pixels of that grey are image."""
SIDECAR = "series.json"
MEMBERS = ("frame", "task", "member", "area_px")


class FrameFiles(LazyArray):
    """Grey frames from one file each: (N, H, W), decoded when asked for.

    Args:
        paths: one image file per frame, all of one size.
        shape: (height, width) of every frame.
        dtype: type of the grey values; colour is averaged and rounded to it.
    """

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int], dtype: Any):
        self.paths, self.shape, self.dtype = tuple(paths), (len(paths), *shape), np.dtype(dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], self.dtype)
        for i, path in enumerate(self.paths[block[0]]):
            grey = read_grey(open_image(path), block[1:])
            is_rounded = grey.dtype.kind == "f" and self.dtype.kind == "u"
            out[i] = np.rint(grey) if is_rounded else grey
        return out


class MaskFiles(LazyArray):
    """Masks from one file each: (N, H, W) bool, True = carbon.

    Args:
        paths: one file per frame.
        shape: (height, width) of every mask.
        foreground: `"black"` or `"white"` pixels are carbon, or `"alpha"`: where a transparent layer is painted.
    """

    def __init__(self, paths: Sequence[Path], shape: tuple[int, int], foreground: str):
        self.paths, self.shape, self.dtype = tuple(paths), (len(paths), *shape), np.dtype(bool)
        self.foreground = foreground

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], bool)
        for i, path in enumerate(self.paths[block[0]]):
            image = open_image(path)
            if self.foreground == "alpha":
                if "C" not in image.axes or image.shape[-1] not in (2, 4):
                    raise FileError(path, "is no transparent layer (no alpha channel).", "Export the layer as RGBA.")
                out[i] = image.read(block[1:])[..., -1] > 0
                continue
            grey = read_grey(image, block[1:])
            top = max(1, int(np.max(grey, initial=0)))
            between = np.count_nonzero((grey != 0) & (grey != top))
            if between > 0.05 * grey.size:
                raise FileError(
                    path,
                    f"is no mask: {between / grey.size:.0%} of its pixels are neither 0 nor 255.",
                    "Masks are black (0) where there is carbon and white (255) elsewhere; is this the image?",
                )
            dark = grey < top / 2
            out[i] = dark if self.foreground == "black" else ~dark
        return out


class StackFrames(LazyArray):
    """The planes of an opened stack as grey frames (N, H, W).

    Args:
        image: an `Image` with one of the axes T or Z, with or without colour.
    """

    def __init__(self, image: Any):
        self.planes = list(image.planes())
        grey = "C" not in image.axes
        self.dtype = np.dtype(image.dtype if grey or image.dtype.kind in "ui" else np.float32)
        self.shape = (len(self.planes), *self.planes[0].spatial_shape)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], self.dtype)
        for i, plane in enumerate(self.planes[block[0]]):
            grey = read_grey(plane, block[1:])
            out[i] = np.rint(grey) if grey.dtype.kind == "f" and self.dtype.kind in "ui" else grey
        return out


class TakenFrames(LazyArray):
    """Some frames of another array, in the order asked for.

    Args:
        source: (N, H, W) array or lazy array.
        index: (M,) whole numbers.
    """

    def __init__(self, source: Any, index: np.ndarray):
        self.source, self.index = source, tuple(int(i) for i in index)
        self.shape, self.dtype = (len(self.index), *source.shape[1:]), np.dtype(source.dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return read_frames(self.source, self.index[block[0]], block[1:])


def read_frames(source: Any, index: Any = None, window: tuple[slice, ...] = ()) -> np.ndarray:
    """The frames `index` (slice, whole numbers, or None = all) of an array or lazy array, as NumPy."""
    if index is None or isinstance(index, slice):
        return np.asarray(source[(index or slice(None), *window)])
    index = np.asarray(index, np.int64).ravel()
    out = np.empty((len(index), *np.asarray(source[(slice(0, 0), *window)]).shape[1:]), source.dtype)
    for i, frame in enumerate(index):
        out[i] = source[(int(frame), *window)]
    return out


def find_valid(frame: np.ndarray, fill: float | None) -> np.ndarray:
    """Where a frame shows the specimen: everything but connected regions of the fill grey.

    Args:
        frame: (H, W) grey values.
        fill: grey painted outside the chosen segment; None = all is valid.

    Returns:
        (H, W) bool. Groups of fewer than `MIN_FILL` 4-connected pixels of that grey belong to the image.
    """
    if fill is None:
        return np.ones(frame.shape, bool)
    labels, _ = ndimage.label(frame == fill)
    is_fill = np.bincount(labels.ravel()) >= MIN_FILL
    is_fill[0] = False
    return ~is_fill[labels]


def find_fill(frame: np.ndarray) -> int | None:
    """The grey that fills the surroundings of the chosen segment, or None.

    It must be the most frequent grey, cover a tenth of the frame, and half of that in one piece at the image edge.
    """
    if frame.dtype.kind != "u":
        return None
    counts = np.bincount(frame.ravel())
    fill = int(counts.argmax())
    if counts[fill] < 0.1 * frame.size or counts[fill] == frame.size:
        return None
    labels, _ = ndimage.label(frame == fill)
    rim = np.unique(np.concatenate([labels[0], labels[-1], labels[:, 0], labels[:, -1]]))
    sizes = np.bincount(labels.ravel())
    return fill if max((sizes[i] for i in rim if i), default=0) >= 0.05 * frame.size else None


@dataclasses.dataclass(frozen=True)
class FrameSeries:
    """The frames of one video.

    Attributes:
        name: distinct within a run; stem of the files written about it.
        images: (N, H, W) grey values, array or lazy array, uint8, uint16 or float32.
        numbers: (N,) int64 frame numbers of the recording, strictly increasing.
        times: (N,) float64, in `time_unit`, strictly increasing; below 0 before the reaction.
        files: file name of every frame without folder. Masks written about a frame get this name.
        time_unit: `"s"`, or `"frame"` when the frame rate is unknown.
        pixel_size: edge lengths (y, x), or None when unknown.
        masks: task -> (N, H, W) bool, True = carbon; empty without labels. In files carbon is black.
        fill: grey outside the chosen segment, or None.
        valid: (N, H, W) bool where it is not found from `fill`.
        path: where it came from.
        metadata: plain JSON values: `layout`, `zero_frame`, `frame_rate`, `warnings`.
    """

    name: str
    images: Any
    numbers: np.ndarray
    times: np.ndarray
    files: tuple[str, ...]
    time_unit: str = "s"
    pixel_size: PixelSize | None = None
    masks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fill: int | None = None
    valid: Any = None
    path: str | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numbers", np.asarray(self.numbers, np.int64))
        object.__setattr__(self, "times", np.asarray(self.times, np.float64))
        if len(self.images.shape) != 3:
            raise UserError(f"{self.name}: `images` must be (frame, y, x). Received: shape {tuple(self.images.shape)}")
        check_increasing(self.name, self.numbers, "frame numbers")
        check_increasing(self.name, self.times, "times")
        for key, length in (("numbers", len(self.numbers)), ("times", len(self.times)), ("files", len(self.files))):
            if length != self.shape[0]:
                raise UserError(f"{self.name}: `{key}` must have one entry per frame ({self.shape[0]}, not {length}).")
        for task, masks in self.masks.items():
            if tuple(masks.shape) != self.shape:
                raise UserError(f"{self.name}: masks of {task} are {tuple(masks.shape)}, the frames are {self.shape}.")

    def __len__(self) -> int:
        return int(self.images.shape[0])

    @property
    def shape(self) -> tuple[int, int, int]:
        """(number of frames, height, width)."""
        return tuple(int(n) for n in self.images.shape)  # type: ignore[return-value]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have masks, `("A1", "A2")`."""
        return tuple(self.masks)

    @property
    def warnings(self) -> tuple[str, ...]:
        return tuple(self.metadata.get("warnings", ()))

    def read_images(self, index: Any = None) -> np.ndarray:
        """(n, H, W) grey values of the frames `index`: a slice, whole numbers, or None for all."""
        return read_frames(self.images, index)

    def read_masks(self, task: str, index: Any = None) -> np.ndarray:
        """(n, H, W) bool masks of `task`, True = carbon.

        Raises:
            UserError: no masks of that task.
        """
        if task not in self.masks:
            have = f"It has {', '.join(self.masks)}." if self.masks else "It has no masks."
            raise UserError(f"{self.name}: no masks of task {task!r}. {have}")
        return read_frames(self.masks[task], index)

    def read_valid(self, index: Any = None) -> np.ndarray:
        """(n, H, W) bool, True where the frame shows the specimen."""
        if self.valid is not None:
            return read_frames(self.valid, index)
        return np.stack([find_valid(frame, self.fill) for frame in self.read_images(index)])

    def take(self, index: Any) -> FrameSeries:
        """Some frames (slice, whole numbers or bool array), unread.

        Raises:
            UserError: nothing is left.
        """
        chosen = np.arange(len(self))[index]
        if not len(chosen):
            raise UserError(f"{self.name}: no frame is left of {len(self)}.")

        def some(source: Any) -> Any:
            return source[chosen] if isinstance(source, np.ndarray) else TakenFrames(source, chosen)

        return dataclasses.replace(
            self,
            images=some(self.images),
            numbers=self.numbers[chosen],
            times=self.times[chosen],
            files=tuple(self.files[i] for i in chosen),
            masks={task: some(masks) for task, masks in self.masks.items()},
            valid=None if self.valid is None else some(self.valid),
        )

    @property
    def reaction(self) -> FrameSeries:
        """The frames from time 0 on: those before show the filament as it was."""
        if self.times[0] >= 0:
            return self
        if self.times[-1] < 0:
            raise UserError(
                f"{self.name}: all {len(self)} frames lie before time 0 (frame {self.metadata.get('zero_frame')}). "
                "Pass the number of the first frame of the reaction as zero_frame."
            )
        return self.take(self.times >= 0)

    def load(self) -> FrameSeries:
        """The same series with everything in memory, every file decoded once."""
        images = self.read_images()
        if self.valid is not None:
            valid = self.read_valid()
        else:
            valid = np.stack([find_valid(frame, self.fill) for frame in images])
        masks = {task: self.read_masks(task) for task in self.masks}
        return dataclasses.replace(self, images=images, masks=masks, valid=valid)

    def with_masks(self, masks: Mapping[str, Any]) -> FrameSeries:
        """The same frames with other masks, task -> (N, H, W) bool."""
        return dataclasses.replace(self, masks=dict(masks))


def check_increasing(name: str, values: np.ndarray, what: str) -> None:
    """`UserError` unless `values` are finite and each is greater than the one before."""
    values = np.asarray(values)
    if not np.isfinite(values).all():
        raise UserError(f"{name}: {what} must be finite numbers.")
    wrong = np.flatnonzero(np.diff(values) <= 0)
    if len(wrong):
        i = int(wrong[0])
        raise UserError(
            f"{name}: {what} must increase from frame to frame; entry {i + 2} is {values[i + 1]:g} after "
            f"{values[i]:g}" + (f" ({len(wrong)} such steps)." if len(wrong) > 1 else ".")
            + " Check the file names, or the table of times."
        )  # fmt: skip


def write_masks(folder: str | os.PathLike, series: FrameSeries, task: str, masks: np.ndarray) -> list[Path]:
    """Write the masks of one task as `folder/area1/NAME.png`: 8-bit grey, 0 (black) = carbon, 255 elsewhere.

    Args:
        folder: the folder of the task folders.
        series: gives the file names (ending `.png`).
        task: a name in `TASK_FOLDERS`, or another folder name.
        masks: (N, H, W) bool, True = carbon.
    """
    masks = np.asarray(masks, bool)
    if masks.shape != series.shape:
        raise UserError(f"{series.name}: masks are {masks.shape}, the frames are {series.shape}.")
    paths = []
    for name, mask in zip(series.files, masks, strict=True):
        path = Path(folder) / TASK_FOLDERS.get(task, task) / f"{Path(name).stem}.png"
        write_image(path, np.where(mask, 0, 255).astype(np.uint8))
        paths.append(path)
    return paths


def write_series(folder: str | os.PathLike, series: FrameSeries) -> list[Path]:
    """Write a series in the prepared layout: `img/`, `area1/`, `area2/`, and `series.json` with what names cannot say.

    Raises:
        UserError: frames that are not 8 bit.
        FileError: unwritable output or full disk.
    """
    folder = Path(folder)
    if np.dtype(series.images.dtype) != np.uint8:
        raise UserError(f"{series.name}: network input is 8 bit. Received: {series.images.dtype} frames.")
    paths = []
    for i, name in enumerate(series.files):
        path = folder / "img" / f"{Path(name).stem}.png"
        write_image(path, np.asarray(series.images[i]))
        paths.append(path)
    for task in series.tasks:
        paths += write_masks(folder, series, task, series.read_masks(task))
    size = series.pixel_size
    facts = {
        "name": series.name,
        "pixel_size": None if size is None else {"size": list(size.size), "unit": size.unit, "source": size.source},
        "time_unit": series.time_unit,
        "fill": series.fill,
        "zero_frame": series.metadata.get("zero_frame"),
        "frame_rate": series.metadata.get("frame_rate"),
        "times": {str(number): float(time) for number, time in zip(series.numbers, series.times, strict=True)},
    }
    with atomic_path(folder / SIDECAR) as temporary:
        Path(temporary).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    return [*paths, folder / SIDECAR]


def write_members(path: str | os.PathLike, series: FrameSeries, areas: Mapping[str, np.ndarray]) -> None:
    """Write the areas that each member of an ensemble found: CSV with the columns frame, task, member, area_px.

    Args:
        path: the file.
        series: gives the frame numbers.
        areas: task -> (N, M) pixel counts; NaN where a member says nothing.
    """
    with write_errors(path), atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(MEMBERS)
        for task, table in areas.items():
            for number, row in zip(series.numbers, np.asarray(table, float), strict=True):
                writer.writerows((int(number), task, j, f"{v:g}") for j, v in enumerate(row) if np.isfinite(v))


def read_members(path: str | os.PathLike, series: FrameSeries) -> dict[str, np.ndarray]:
    """The table of `write_members` for the frames of `series`: task -> (N, M) float64, NaN where nothing is said."""
    rows: dict[str, list[tuple[int, int, float]]] = {}
    place = {int(number): i for i, number in enumerate(series.numbers)}
    try:
        with open(path, encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if int(row["frame"]) in place:
                    entry = (place[int(row["frame"])], int(row["member"]), float(row["area_px"]))
                    rows.setdefault(row["task"], []).append(entry)
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise FileError(path, f"is no table of {', '.join(MEMBERS)} ({error}).", "Run the prediction again.") from error
    areas = {}
    for task, entries in rows.items():
        table = np.full((len(series), 1 + max(j for _, j, _ in entries)), np.nan)
        for i, j, value in entries:
            table[i, j] = value
        areas[task] = table
    return areas
