"""Cutting network input out of raw frames: a window that follows the segment, two cut lines, a polygon.

A table names, per frame, the corner of the window (y, x), the columns kept (left, right; the right one included) and,
if wanted, a polygon that leaves out neighbouring filaments; all in pixels of the raw frame. Outside is filled with one
grey. Nothing is resampled and no grey value changes.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_number, standardize_tuple
from keras_microseg.image import LazyArray
from keras_microseg.io.frames import FrameSeries, read_frames

if TYPE_CHECKING:
    import pandas

COLUMNS = ("frame", "y", "x", "left", "right", "polygon")
DEFAULT_FILL = 178


@dataclasses.dataclass(frozen=True)
class FrameCut:
    """What is kept of a raw frame.

    Attributes:
        y, x: upper left corner of the window.
        left, right: first and last column kept; None = to the window's edge.
        polygon: (K, 2) vertices (y, x) of the region kept, or None.
    """

    y: int
    x: int
    left: int | None = None
    right: int | None = None
    polygon: np.ndarray | None = None

    def visible(self, size: tuple[int, int], frame_shape: tuple[int, int]) -> np.ndarray:
        """(height, width) bool of the window: inside the raw frame, between the lines, inside the polygon."""
        rows, columns = self.y + np.arange(size[0]), self.x + np.arange(size[1])
        inside = (rows >= 0) & (rows < frame_shape[0])
        between = (columns >= 0) & (columns < frame_shape[1])
        between &= columns >= (-np.inf if self.left is None else self.left)
        between &= columns <= (np.inf if self.right is None else self.right)
        kept = inside[:, None] & between
        if self.polygon is not None:
            from skimage.draw import polygon2mask

            kept &= polygon2mask(size, np.asarray(self.polygon, float) - (self.y, self.x))
        return kept


class CutFrames(LazyArray):
    """Windows of a series of raw frames or masks: (N, height, width).

    Args:
        source: (N, H, W) array or lazy array.
        cuts: one per frame.
        size: (height, width) of the window.
        fill: value outside what is kept.
        only_visible: give the visible region instead of pixels (bool).
    """

    def __init__(
        self, source: Any, cuts: Sequence[FrameCut], size: tuple[int, int], fill: Any, *, only_visible: bool = False
    ):
        self.source, self.cuts, self.window, self.fill = source, tuple(cuts), size, fill
        self.only_visible = only_visible
        self.shape = (len(self.cuts), *size)
        self.dtype = np.dtype(bool) if only_visible else np.dtype(source.dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        frame_shape = tuple(self.source.shape[1:])
        out = np.full(
            (block[0].stop - block[0].start, *self.window), False if self.only_visible else self.fill, self.dtype
        )
        for i, cut in enumerate(self.cuts[block[0]]):
            visible = cut.visible(self.window, frame_shape)
            if self.only_visible:
                out[i] = visible
                continue
            y0, x0 = max(cut.y, 0), max(cut.x, 0)
            part = read_frames(
                self.source, [block[0].start + i],
                (slice(y0, max(y0, cut.y + self.window[0])), slice(x0, max(x0, cut.x + self.window[1]))),
            )[0]  # fmt: skip
            place = (slice(y0 - cut.y, y0 - cut.y + part.shape[0]), slice(x0 - cut.x, x0 - cut.x + part.shape[1]))
            view = out[i][place]
            view[visible[place]] = part[visible[place]]
        return out[(slice(None), *block[1:])]


def cut_series(
    series: FrameSeries,
    cuts: Mapping[int, FrameCut],
    *,
    size: int | tuple[int, int] = 256,
    fill: int = DEFAULT_FILL,
    name: str | None = None,
) -> FrameSeries:
    """Network input from raw frames and layers, unread: images, masks (inside what is kept only) and valid region.

    Args:
        series: raw frames with or without masks.
        cuts: frame number -> `FrameCut`. Frames between two given ones get the window and lines in proportion and the
            polygon of the earlier one; frames outside the given range stop the run.
        size: (height, width) of the window, px.
        fill: grey outside.
        name: of the new series.

    Raises:
        UserError: frames without a cut, a window that lies outside the frame, cut lines that leave nothing.
    """
    height, width = standardize_tuple(size, 2, "size", minimum=16)
    check_number("fill", fill, minimum=0, maximum=255, integer=True)
    chosen = _cuts_of(series, cuts)
    for number, cut in zip(series.numbers, chosen, strict=True):
        if not cut.visible((height, width), series.shape[1:]).any():
            raise UserError(
                f"{series.name}: nothing of frame {number} is left by its window (y={cut.y}, x={cut.x}, {height} x "
                f"{width}), lines ({cut.left}, {cut.right}) and polygon; the frame is {series.shape[1]} x "
                f"{series.shape[2]} pixels."
            )
    cut = {"cuts": chosen, "size": (height, width)}
    return dataclasses.replace(
        series,
        name=name or series.name,
        images=CutFrames(series.images, **cut, fill=fill),
        masks={task: CutFrames(masks, **cut, fill=False) for task, masks in series.masks.items()},
        valid=CutFrames(series.images, **cut, fill=fill, only_visible=True),
        fill=int(fill),
        metadata={**series.metadata, "layout": "cut", "windows": [[cut.y, cut.x] for cut in chosen]},
    )


def _cuts_of(series: FrameSeries, cuts: Mapping[int, FrameCut]) -> list[FrameCut]:
    """A cut for every frame, those between given ones in proportion."""
    given = np.array(sorted(cuts), np.int64)
    if not len(given):
        raise UserError(f"{series.name}: no window is given for any frame.")
    absent = series.numbers[(series.numbers < given[0]) | (series.numbers > given[-1])]
    if len(absent):
        raise UserError(
            f"{series.name}: no window is given for frame {absent[0]}; the table goes from frame {given[0]} to "
            f"{given[-1]}. Add rows for the first and last frame; those between are interpolated."
        )
    chosen = []
    for number in series.numbers:
        if int(number) in cuts:
            chosen.append(cuts[int(number)])
            continue
        after = int(np.searchsorted(given, number))
        low, high = cuts[int(given[after - 1])], cuts[int(given[after])]
        part = float(number - given[after - 1]) / float(given[after] - given[after - 1])
        values = {}
        for key in ("y", "x", "left", "right"):
            ends = getattr(low, key), getattr(high, key)
            values[key] = None if None in ends else round(ends[0] + part * (ends[1] - ends[0]))
        moved = None
        if low.polygon is not None:
            moved = np.asarray(low.polygon) + (values["y"] - low.y, values["x"] - low.x)
        chosen.append(FrameCut(values["y"], values["x"], values["left"], values["right"], moved))
    return chosen


def follow_masks(series: FrameSeries, *, size: int | tuple[int, int] = 256, margin: int = 0) -> dict[int, FrameCut]:
    """Windows that follow the filament's own mask A1, for labelled raw frames without a table.

    The window is centred on the mask's bounding box and kept inside the frame; the cut lines are its first and last
    column, `margin` pixels further out. A frame without carbon keeps the window of the frame before.

    Raises:
        UserError: no masks of A1, or none with carbon.
    """
    height, width = standardize_tuple(size, 2, "size", minimum=16)
    cuts: dict[int, FrameCut] = {}
    last = None
    for i, number in enumerate(series.numbers):
        rows, columns = np.nonzero(series.read_masks("A1", [i])[0])
        if len(rows):
            y = int(np.clip((rows.min() + rows.max() + 1 - height) // 2, 0, max(0, series.shape[1] - height)))
            x = int(np.clip((columns.min() + columns.max() + 1 - width) // 2, 0, max(0, series.shape[2] - width)))
            last = FrameCut(y, x, int(columns.min()) - margin, int(columns.max()) + margin)
        if last is not None:
            cuts[int(number)] = last
    if last is None:
        raise UserError(f"{series.name}: no mask holds carbon, so no window can follow it. Give a table of windows.")
    return {**{int(number): cuts[min(cuts)] for number in series.numbers}, **cuts}


def read_cuts(path: str | os.PathLike, numbers: Sequence[int] | np.ndarray) -> dict[int, FrameCut]:
    """Read a table of windows, CSV or Excel.

    Two forms are understood: the columns `frame, y, x` and optionally `left, right, polygon` (a polygon as
    `"y x; y x; ..."`); and the ROI list of ImageJ (`Type, X, Y, Width, Height, Pos`), one rectangle and two straight
    lines per position, where position 1 is the first frame.

    Args:
        path: the table.
        numbers: frame numbers of the series, for the ROI list.

    Raises:
        FileError: not such a table, or values that are no numbers.
    """
    import pandas

    path = Path(path)
    try:
        excel = path.suffix.lower() in (".xlsx", ".xls")
        table = pandas.read_excel(path) if excel else pandas.read_csv(path, comment="#", sep=None, engine="python")
    except Exception as error:  # parsers raise anything
        raise FileError(path, f"cannot be read as a table ({error}).", "Save it as CSV or .xlsx.") from error
    table.columns = [str(column).strip().lower() for column in table.columns]
    try:
        if {"frame", "y", "x"} <= set(table.columns):
            return {int(row["frame"]): _cut_of(row) for row in table.to_dict("records")}
        if {"type", "x", "y", "pos"} <= set(table.columns):
            return _cuts_of_rois(table, np.asarray(numbers), path)
    except (ValueError, TypeError, KeyError) as error:
        if isinstance(error, UserError):
            raise
        raise FileError(path, f"holds a value that is no number ({error}).", "Correct the table.") from error
    raise FileError(path, f"has the columns {', '.join(table.columns)}.", f"Needed are {', '.join(COLUMNS[:3])}.")


def _cut_of(row: Mapping[str, Any]) -> FrameCut:
    def number(key: str) -> int | None:
        value = row.get(key)
        return None if value is None or value != value or value == "" else int(value)

    text, polygon = row.get("polygon"), None
    if isinstance(text, str) and text.strip():
        polygon = np.array(
            [[float(v) for v in re.split(r"[\s,]+", pair.strip())] for pair in text.split(";") if pair.strip()]
        )
        if polygon.ndim != 2 or polygon.shape[1] != 2 or len(polygon) < 3:
            raise ValueError(f"polygon {text!r}")
    return FrameCut(int(row["y"]), int(row["x"]), number("left"), number("right"), polygon)


def _cuts_of_rois(table: pandas.DataFrame, numbers: np.ndarray, path: Path) -> dict[int, FrameCut]:
    cuts = {}
    for position, rows in table.groupby("pos"):
        kinds = rows["type"].astype(str).str.lower()
        boxes, lines = rows[kinds.str.contains("rect")], rows[kinds.str.contains("line")]
        if not 1 <= int(position) <= len(numbers) or len(boxes) != 1 or len(lines) not in (0, 2):
            raise FileError(
                path,
                f"position {position} has {len(boxes)} rectangles and {len(lines)} lines, for {len(numbers)} frames.",
                "Each position needs one rectangle and two straight lines (or none).",
            )
        x, y = int(boxes["x"].iloc[0]), int(boxes["y"].iloc[0])
        left, right = (int(lines["x"].min()), int(lines["x"].max())) if len(lines) else (None, None)
        cuts[int(numbers[int(position) - 1])] = FrameCut(y, x, left, right)
    return cuts
