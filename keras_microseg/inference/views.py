"""Arrays read window by window: grey values of a file, an image at another scale, maps and labels on disk."""

from __future__ import annotations

import errno
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.image import Image
from keras_microseg.intensity import invert, percentile_limits, stretch

Slices = tuple[slice, ...]
_SOURCE_PIXELS = 8_000_000  # read at once to make a window of a scaled view


class GreyView:
    """Grey values of a 2D image above its info bar, float32, read as asked for; non-finite pixels are `fill`.

    Args:
        image: axes `YX`, or `YXC` for colours (one frame: time series and stacks are refused).
        rows: number of rows that belong to the picture; None = all.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, image: Image, rows: int | None = None):
        extra = [letter for letter, n in zip(image.axes, image.shape, strict=True) if letter in "TZ" and n > 1]
        if extra or "Y" not in image.axes or "X" not in image.axes:
            raise UserError(f"{image.name}: one 2D image is needed. Received: axes={image.axes}, shape={image.shape}.")
        self.image = image
        height, width = image.spatial_shape[-2:]
        self.shape = (height if rows is None else rows, width)
        if min(self.shape) < 1:
            raise UserError(f"{image.name}: the image has no pixels. Received: shape={image.shape}")
        self.fill = percentile_limits(self)[0] if image.dtype.kind == "f" else None

    def __getitem__(self, key: Slices) -> np.ndarray:
        window = [slice(*part.indices(n)) for part, n in zip(key, self.shape, strict=True)]
        if len(self.image.spatial_axes) == 3:
            window.insert(0, slice(0, 1))
        values = np.asarray(io.read_grey(self.image, tuple(window)), np.float32)
        values = values.reshape([part.stop - part.start for part in window[-2:]])
        if getattr(self, "fill", None) is not None:
            values = np.where(np.isfinite(values), values, np.float32(self.fill))
        return values


class ScaledView:
    """A 2D or 3D array (or one channel of maps) enlarged or reduced by linear interpolation, read as asked for.

    Reducing averages over the pixels that fall into one (a triangle twice as wide), so that no detail aliases.
    Any window equals the same window of the whole scaled array.

    Args:
        array: (H, W) or (Z, H, W) array, NumPy or lazy.
        scale: factor per axis is `shape / array.shape` with `shape = round(scale * array.shape)`, at least one pixel.
        shape: the shape itself, instead of `scale`.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, array: Any, scale: float = 1.0, shape: Sequence[int] | None = None):
        self.array = array
        self.shape = scaled_shape(array.shape, scale, len(array.shape)) if shape is None else tuple(shape)

    def __getitem__(self, key: Slices) -> np.ndarray:
        window = [slice(*part.indices(n)) for part, n in zip(key, self.shape, strict=True)]
        places = [_weights(w, n, m) for w, n, m in zip(window, self.shape, self.array.shape, strict=True)]
        source = tuple(positions for positions, _ in places)
        height = window[0].stop - window[0].start
        if math.prod(p.stop - p.start for p in source) > _SOURCE_PIXELS and height > 1:
            middle = window[0].start + height // 2  # a much reduced image draws on many pixels
            parts = (slice(window[0].start, middle), slice(middle, window[0].stop))
            return np.concatenate([self[part, *window[1:]] for part in parts])
        values = np.asarray(self.array[source], np.float32)
        for axis, (_, weights) in enumerate(places):
            moved = np.moveaxis(values, axis, 0)
            scaled = weights @ moved.reshape(len(moved), -1)
            values = np.moveaxis(scaled.reshape(-1, *moved.shape[1:]), 0, axis)
        return values.astype(np.float32, copy=False)


class AreaView:
    """An image reduced by area averages, read as asked for: every pixel is the mean of the area it covers.

    Any window equals the same window of the whole reduced image. Unsigned integers are rounded to their own type.

    Args:
        array: (H, W) or (H, W, c), NumPy or lazy.
        factor: edge of a pixel in pixels of the array, >= 1, whole or not. A last row or column that is covered by less
            than half is left out.
    """

    def __init__(self, array: Any, factor: float):
        self.array, self.factor = array, float(check_number("factor", factor, minimum=1))
        height, width = (max(1, int(n / factor + 0.5)) for n in array.shape[:2])
        self.shape = (height, width, *array.shape[2:])
        self.dtype = np.dtype(array.dtype if np.dtype(array.dtype).kind == "u" else np.float32)

    def __getitem__(self, key: Slices) -> np.ndarray:
        rows, columns = (slice(*part.indices(n)) for part, n in zip(key, self.shape, strict=False))
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start, *self.shape[2:]), self.dtype)
        source = _covered(columns, self.factor, self.array.shape[1])
        step = max(1, int(_SOURCE_PIXELS / (self.factor * max(source.stop - source.start, 1))))
        for top in range(rows.start, rows.stop, step):
            part = slice(top, min(top + step, rows.stop))
            taken = _covered(part, self.factor, self.array.shape[0])
            means = self._average(np.asarray(self.array[taken, source]), part, columns)
            out[part.start - rows.start : part.stop - rows.start] = np.rint(means) if self.dtype.kind == "u" else means
        return out

    def _average(self, values: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
        factor = int(self.factor)
        counts = rows.stop - rows.start, columns.stop - columns.start
        is_small = values.dtype.kind == "u" and values.dtype.itemsize <= 2
        if factor == self.factor and values.shape[:2] == (counts[0] * factor, counts[1] * factor):
            exact = np.uint32 if is_small and factor < 256 else np.float32
            sums = values.reshape(counts[0], factor, *values.shape[1:]).sum(axis=1, dtype=exact)
            sums = sums.reshape(*counts, factor, *values.shape[2:]).sum(axis=2, dtype=np.float64)
            return sums / factor**2
        values = values.astype(np.float32, copy=False)
        for axis, window in enumerate((rows, columns)):
            weights = _area_weights(window, self.factor, self.array.shape[axis])
            moved = np.moveaxis(values, axis, 0)
            means = weights @ moved.reshape(len(moved), -1)
            values = np.moveaxis(means.reshape(-1, *moved.shape[1:]), 0, axis)
        return values


class StretchedView:
    """An array stretched to 0..1 by fixed limits, read as asked for; `inverted` exchanges dark and bright."""

    dtype = np.dtype(np.float32)

    def __init__(self, array: Any, limits: tuple[float, float], inverted: bool = False):
        self.array, self.limits, self.inverted, self.shape = array, limits, inverted, tuple(array.shape)

    def __getitem__(self, key: Slices) -> np.ndarray:
        values = stretch(self.array[key], self.limits)
        return invert(values) if self.inverted else values


class ThresholdView:
    """Where an array exceeds a threshold, uint8 0 and 1, read as asked for."""

    dtype = np.dtype(np.uint8)

    def __init__(self, array: Any, threshold: float):
        self.array, self.threshold, self.shape = array, threshold, tuple(array.shape)
        self.ndim, self.nbytes = len(self.shape), math.prod(self.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        return (np.asarray(self.array[key]) > self.threshold).astype(np.uint8)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


class DiskArray:
    """An array in a scratch file that never occupies memory beyond the window in use.

    The file is mapped for one access at a time. Its space is reserved when it is made, so a full disk is an error then
    and not a crash later. `shape`, `dtype`, windows in and out as NumPy.

    Raises:
        FileError: not enough space, or the folder is not writable.
    """

    def __init__(self, path: str | Path, shape: Sequence[int], dtype: Any, *, keep: bool = False):
        self.path, self.shape, self.dtype = Path(path), tuple(int(n) for n in shape), np.dtype(dtype)
        size = math.prod(self.shape) * self.dtype.itemsize
        if keep and self.path.is_file() and self.path.stat().st_size == size:
            return
        with io.write_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(self.path.parent).free < size:
                problem = f"the disk is full ({size / 1e9:.1f} GB of scratch space are needed)."
                raise FileError(self.path, problem, "Free some space or choose another output folder.")
            with open(self.path, "wb") as file:
                file.truncate(size)
                if hasattr(os, "posix_fallocate") and size:
                    try:
                        os.posix_fallocate(file.fileno(), 0, size)
                    except OSError as error:
                        if error.errno == errno.ENOSPC:
                            raise

    def __getitem__(self, key: Any) -> np.ndarray:
        return np.array(np.memmap(self.path, self.dtype, "r", shape=self.shape)[key])

    def __setitem__(self, key: Any, values: Any) -> None:
        np.memmap(self.path, self.dtype, "r+", shape=self.shape)[key] = values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[...], dtype)


def scaled_shape(shape: Sequence[int], scale: float, ndim: int = 2) -> tuple[int, ...]:
    """The first `ndim` sizes of an image or volume enlarged by `scale`, at least one pixel."""
    return tuple(max(1, round(n * scale)) for n in shape[:ndim])


def quantize(maps: np.ndarray, outputs: Sequence[str]) -> np.ndarray:
    """Maps as uint8: 0..1 in steps of 1/255; flow components -1..1 in steps of 1/127 about 128."""
    is_flow = np.array([name.startswith("flow") for name in outputs])
    factor, offset = np.where(is_flow, 127, 255).astype(np.float32), np.where(is_flow, 128, 0).astype(np.float32)
    return np.clip(np.rint(maps * factor + offset), is_flow.astype(np.float32), 255).astype(np.uint8)


def dequantize(maps: np.ndarray, outputs: Sequence[str]) -> np.ndarray:
    """float32 maps of what `quantize` stored; other types are only converted."""
    if maps.dtype != np.uint8:
        return maps.astype(np.float32, copy=False)
    is_flow = np.array([name.startswith("flow") for name in outputs])
    factor, offset = np.where(is_flow, 127, 255).astype(np.float32), np.where(is_flow, 128, 0).astype(np.float32)
    return (maps - offset) / factor


def _covered(window: slice, factor: float, source_size: int) -> slice:
    """Source pixels under a window of a reduced axis."""
    return slice(math.floor(window.start * factor), min(math.ceil(window.stop * factor), source_size))


def _area_weights(window: slice, factor: float, source_size: int) -> sparse.csr_array:
    """(window, source pixels under it): share of each source pixel in the mean; rows sum to one."""
    source = _covered(window, factor, source_size)
    low = np.arange(window.start, window.stop) * factor
    high = np.minimum(low + factor, source_size)
    first = np.floor(low).astype(np.intp)
    positions = first[:, np.newaxis] + np.arange(math.ceil(factor) + 1)
    weights = np.minimum(high[:, np.newaxis], positions + 1) - np.maximum(low[:, np.newaxis], positions)
    weights = np.where(positions < source.stop, np.maximum(weights, 0), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    positions = np.clip(positions, source.start, source.stop - 1) - source.start
    rows = np.repeat(np.arange(len(low)), positions.shape[1])
    return sparse.csr_array(
        (weights.astype(np.float32).ravel(), (rows, positions.ravel())), shape=(len(low), source.stop - source.start)
    )


def _weights(window: slice, size: int, source_size: int) -> tuple[slice, sparse.csr_array]:
    """Source pixels that a window of the scaled axis needs, and the (window, source) matrix of their weights."""
    ratio = source_size / size
    radius = max(1.0, ratio)
    centres = (np.arange(window.start, window.stop) + 0.5) * ratio - 0.5
    first = np.floor(centres - radius).astype(np.intp) + 1
    positions = first[:, np.newaxis] + np.arange(math.ceil(2 * radius))
    weights = np.maximum(0, 1 - np.abs(positions - centres[:, np.newaxis]) / radius)
    weights[(positions < 0) | (positions >= source_size)] = 0
    weights /= weights.sum(axis=1, keepdims=True)
    positions = np.clip(positions, 0, source_size - 1)
    start, stop = int(positions.min(initial=source_size)), int(positions.max(initial=0)) + 1
    rows = np.repeat(np.arange(len(centres)), positions.shape[1])
    matrix = sparse.csr_array(
        (weights.astype(np.float32).ravel(), (rows, (positions - start).ravel())), shape=(len(centres), stop - start)
    )
    return slice(start, stop), matrix
