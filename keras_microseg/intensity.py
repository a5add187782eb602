"""Grey values: contrast limits, stretching to 0..1, colour to grey, inversion. The same at training and inference."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_number

SAMPLE_PIXELS = 4_000_000
_BAND_BYTES = 32 * 2**20
_LARGEST = np.finfo(np.float64).max / 4  # differences of clipped values stay finite


def percentile_limits(
    array: Any, lower: float = 0.5, upper: float = 99.5, *, sample_pixels: int = SAMPLE_PIXELS
) -> tuple[float, float]:
    """Grey values below which `lower` and `upper` percent of the finite pixels lie.

    Larger arrays are sub-sampled with one fixed stride along every long axis, so that the result depends on neither the
    machine nor the way of reading. Lazy arrays are read once, in bands along the first axis.

    Args:
        array: real numbers or booleans of any shape; NumPy, or anything with `shape`, `dtype` and slicing.
        lower, upper: percentages, 0 <= lower < upper <= 100.
        sample_pixels: number of values above which the stride sets in.

    Returns:
        `(low, high)`, finite, low <= high. Where both percentiles coincide although the pixels differ (few bright
        pixels on a flat ground), the smallest and largest value. `(0.0, 0.0)` without any finite pixel.

    Raises:
        UserError: percentages out of order, or pixels that are not real numbers.
    """
    check_number("lower", lower, minimum=0, maximum=100)
    check_number("upper", upper, minimum=0, maximum=100)
    if lower >= upper:
        raise UserError(f"`lower` must be smaller than `upper`. Received: lower={lower}, upper={upper}")
    _check_real(array)
    parts = [_finite(part) for part in _strided(array, _sample_stride(tuple(array.shape), sample_pixels))]
    values = np.concatenate(parts) if parts else np.zeros(0)
    if values.size == 0:
        return 0.0, 0.0
    low, high = (float(value) for value in np.percentile(values, (lower, upper)))
    if low >= high:
        low, high = float(values.min()), float(values.max())
    return low, high


def stretch(array: Any, limits: tuple[float, float]) -> np.ndarray:
    """Map grey values linearly so that `limits` become 0 and 1, and clip.

    Args:
        array: real numbers or booleans of any shape.
        limits: `(low, high)` of `percentile_limits`.

    Returns:
        float32 of the same shape in 0..1. NaN becomes 0, as do infinities; without contrast (low >= high) all is 0.
    """
    _check_real(array)
    array = np.asarray(array)
    low, high = (min(max(float(value), -_LARGEST), _LARGEST) for value in limits)
    out = np.zeros(array.shape, np.float32)
    if not low < high:
        return out
    # Bands keep the float64 working copy small; float32 arithmetic would lose the contrast of large 32-bit integers.
    source, target = np.atleast_1d(array), np.atleast_1d(out)
    rows = _band_rows(source.shape, itemsize=8)
    for start in range(0, len(source), rows):
        band = source[start : start + rows]
        values = band.astype(np.float64)
        np.clip(values, low, high, out=values)
        values -= low
        values /= high - low
        if band.dtype.kind == "f":
            values[~np.isfinite(band)] = 0
        target[start : start + rows] = values
    return out


def to_grey(array: Any, channel_axis: int | None = None) -> np.ndarray:
    """Grey image of a colour image: the mean of its colour channels, alpha left out.

    Args:
        array: grey image, or image with 1 to 4 channels (grey, grey + alpha, RGB, RGB + alpha).
        channel_axis: the axis of the channels; None = the array has none.

    Returns:
        float32 without the channel axis, in the range of the input; NaN is kept.

    Raises:
        UserError: more than four channels.
    """
    _check_real(array)
    array = np.asarray(array)
    if channel_axis is None:
        return array.astype(np.float32, copy=False)
    channels = np.moveaxis(array, channel_axis, -1)
    count = channels.shape[-1]
    if not 1 <= count <= 4:
        raise UserError(
            f"A grey or colour image has 1 to 4 channels. Received: shape={array.shape}. Choose one channel."
        )
    colours = {1: 1, 2: 1, 3: 3, 4: 3}[count]
    return channels[..., :colours].mean(axis=-1, dtype=np.float64).astype(np.float32)


def invert(array: Any, limits: tuple[float, float] = (0.0, 1.0)) -> np.ndarray:
    """Exchange dark and bright: `low + high - value`, float32. With the default limits for stretched images."""
    _check_real(array)
    return (float(limits[0]) + float(limits[1]) - np.asarray(array, np.float64)).astype(np.float32)


def _check_real(array: Any) -> None:
    dtype = np.dtype(getattr(array, "dtype", None) or np.asarray(array).dtype)
    if dtype.kind not in "buif":
        raise UserError(f"Pixels must be real numbers or booleans. Received: dtype={dtype}")


def _sample_stride(shape: tuple[int, ...], sample_pixels: int) -> tuple[int, ...]:
    """Smallest equal stride along the axes longer than 4 that leaves at most `sample_pixels` values."""
    size = math.prod(shape)
    long_axes = [axis for axis, n in enumerate(shape) if n > 4]
    stride = 1
    if size > sample_pixels and long_axes:
        stride = max(2, math.floor((size / sample_pixels) ** (1 / len(long_axes))))
        while math.prod(-(-n // stride) if n > 4 else n for n in shape) > sample_pixels and stride < max(shape):
            stride += 1
    return tuple(stride if axis in long_axes else 1 for axis in range(len(shape)))


def _strided(array: Any, stride: tuple[int, ...]) -> Iterator[np.ndarray]:
    """`array[::stride, ...]` in pieces; a lazy array is only ever asked for whole windows."""
    if not stride:
        yield np.asarray(array[()])
        return
    inner = tuple(slice(None, None, step) for step in stride[1:])
    if isinstance(array, np.ndarray):
        yield array[(slice(None, None, stride[0]), *inner)]
        return
    rows = _band_rows(tuple(array.shape), np.dtype(array.dtype).itemsize)
    rows = max(stride[0], rows // stride[0] * stride[0])
    whole = tuple(slice(0, n) for n in array.shape[1:])
    for start in range(0, array.shape[0], rows):
        band = np.asarray(array[(slice(start, min(start + rows, array.shape[0])), *whole)])
        yield band[(slice(None, None, stride[0]), *inner)]


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.ravel(values)
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    return np.clip(values.astype(np.float64), -_LARGEST, _LARGEST)


def _band_rows(shape: tuple[int, ...], itemsize: int) -> int:
    return max(1, _BAND_BYTES // max(1, math.prod(shape[1:]) * itemsize))
