"""Grey values: contrast limits, stretching to 0..1, colour to grey, inversion. The same at training and inference.

For volumes: statistics in one or two passes over slabs, and normalization that travels with a model.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes

SAMPLE_PIXELS = 4_000_000
HISTOGRAM_BINS = 65_536
NORMALIZATIONS = ("minmax", "percentile", "zscore", "fixed")
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


# ------------------------------------------------------------------------------------------------------------ volumes


@dataclasses.dataclass(frozen=True)
class VolumeStatistics:
    """Grey values of a volume in numbers; see `volume_statistics`.

    Attributes:
        count: finite voxels.
        num_nonfinite: NaN and infinite voxels, left out of everything else.
        mean, std: exact (population standard deviation).
        minimum, maximum: exact; NaN without any finite voxel.
        counts: int64 voxels per bin.
        first: value of the first bin: the value itself for exact histograms, else the lower edge.
        bin_width: 0 when every bin is one integer value (all further figures are exact), else the width of a bin, the
            scale of the error of percentiles and thresholds.
    """

    count: int
    num_nonfinite: int
    mean: float
    std: float
    minimum: float
    maximum: float
    counts: np.ndarray
    first: float
    bin_width: float

    @property
    def is_exact(self) -> bool:
        """True when the bins are the integer values themselves."""
        return self.bin_width == 0

    @property
    def centres(self) -> np.ndarray:
        """(bins,) grey value that stands for every bin."""
        if self.is_exact:
            return self.first + np.arange(len(self.counts), dtype=np.float64)
        return self.first + self.bin_width * (np.arange(len(self.counts)) + 0.5)

    def percentile(self, percent: float) -> float:
        """Grey value below which `percent` of the finite voxels lie, as `numpy.percentile` (linear interpolation).

        Exact for exact histograms; otherwise off by at most half a `bin_width`.
        """
        check_number("percent", percent, minimum=0, maximum=100)
        if self.count == 0:
            return math.nan
        if percent in (0, 100):
            return self.minimum if percent == 0 else self.maximum
        cumulative = np.cumsum(self.counts)
        rank = (self.count - 1) * percent / 100
        places = [np.searchsorted(cumulative, edge, side="right") for edge in (math.floor(rank), math.ceil(rank))]
        low, high = self.centres[places]
        value = low + (high - low) * (rank - math.floor(rank))
        return float(min(max(value, self.minimum), self.maximum))

    def grouped(self, num_bins: int) -> tuple[np.ndarray, np.ndarray]:
        """`(counts, centres)` from the smallest to the largest value in at most about `num_bins` bins."""
        counts, centres = self.counts, self.centres
        if self.is_exact:
            used = np.flatnonzero(counts)
            counts, centres = counts[used[0] : used[-1] + 1], centres[used[0] : used[-1] + 1]
        group = max(1, len(counts) // num_bins)
        padded = np.pad(counts, (0, -len(counts) % group)).reshape(-1, group).sum(axis=1)
        step = centres[1] - centres[0] if len(centres) > 1 else 0.0
        return padded, centres[0] + step * (np.arange(len(padded)) * group + (group - 1) / 2)

    def otsu(self, num_bins: int | None = None) -> float:
        """Otsu's threshold: maximizes w0 w1 (m0 - m1)^2 over the histogram; object = greater.

        Args:
            num_bins: group the histogram first; None = all bins. 256 for floats is what scikit-image does.

        Reference: Otsu (1979), IEEE Trans. SMC 9, 62.
        """
        if not self.minimum < self.maximum:
            return self.minimum
        counts, centres = self.grouped(num_bins or len(self.counts))
        counts = counts.astype(np.float64)
        below, above = np.cumsum(counts), np.cumsum(counts[::-1])[::-1]
        mean_below = np.cumsum(counts * centres) / np.maximum(below, 1)
        mean_above = (np.cumsum((counts * centres)[::-1]) / np.maximum(above[::-1], 1))[::-1]
        between = below[:-1] * above[1:] * (mean_below[:-1] - mean_above[1:]) ** 2
        return float(centres[int(np.argmax(between))])

    def halfway(self) -> float:
        """Half way between the peaks of the histogram below and above Otsu's threshold (ISO 50 of dimensional XCT).

        A blurred edge crosses that grey value where the surface is, whatever the shares of the phases; Otsu's threshold
        is pulled towards the larger phase, which moves every surface.
        """
        level = self.otsu()
        counts, centres = self.grouped(256)
        counts = ndimage.gaussian_filter1d(counts.astype(np.float64), 2.0, mode="constant")
        peaks = [
            float(centres[side][counts[side].argmax()]) for side in (centres <= level, centres > level) if side.any()
        ]
        return sum(peaks) / len(peaks) if peaks else level

    def multi_otsu(self, classes: int) -> tuple[float, ...]:
        """`classes - 1` rising thresholds that minimize the variance within the classes (histogram of 256 bins)."""
        from skimage import filters

        check_number("classes", classes, minimum=2, maximum=5, integer=True)
        counts, centres = self.grouped(256)
        if np.count_nonzero(counts) < classes:
            raise UserError(f"`classes` must not exceed the number of grey values. Received: classes={classes}")
        return tuple(float(t) for t in filters.threshold_multiotsu(classes=classes, hist=(counts, centres)))


def volume_statistics(
    array: Any, *, region: np.ndarray | None = None, max_ram: str | int = "256MB"
) -> VolumeStatistics:
    """Statistics and a histogram of a volume that need not fit in memory.

    Integers of at most 16 bits: one pass, one bin per value, everything exact. Other types: two passes, 65,536 equal
    bins from the smallest to the largest value (exact too for integers that span fewer values).

    Args:
        array: real numbers or booleans, NumPy or lazy; read in bands along the first axis.
        region: (y, x) booleans; only these columns count.
        max_ram: bytes to work with.
    """
    _check_real(array)
    dtype = np.dtype(array.dtype)
    voxels = max(1, parse_bytes(max_ram) // (dtype.itemsize + 25))
    if dtype.kind == "b" or (dtype.kind in "ui" and dtype.itemsize <= 2):
        first = 0 if dtype.kind == "b" else int(np.iinfo(dtype).min)
        counts = np.zeros(2 if dtype.kind == "b" else 2 ** (8 * dtype.itemsize), np.int64)
        for band in _selected(array, region, voxels):
            shifted = band.astype(np.int32) - first if first else band
            counts += np.bincount(shifted.astype(np.intp, copy=False), minlength=len(counts))
        values = first + np.arange(len(counts), dtype=np.float64)
        count = int(counts.sum())
        if count == 0:
            return VolumeStatistics(0, 0, math.nan, math.nan, math.nan, math.nan, counts, first, 0.0)
        mean = float(np.dot(counts, values) / count)
        std = math.sqrt(max(0.0, float(np.dot(counts, (values - mean) ** 2)) / count))
        used = np.flatnonzero(counts)
        low, high = float(values[used[0]]), float(values[used[-1]])
        return VolumeStatistics(count, 0, mean, std, low, high, counts, first, 0.0)
    return _statistics_in_bins(array, region, voxels)


def _statistics_in_bins(array: Any, region: np.ndarray | None, voxels: int) -> VolumeStatistics:
    count = seen = 0
    mean = squares = 0.0
    low, high = math.inf, -math.inf
    for band in _selected(array, region, voxels):
        seen += band.size
        values = _finite(band)
        if not values.size:
            continue
        low, high = min(low, float(values.min())), max(high, float(values.max()))
        band_mean = float(values.mean())
        band_squares = float(np.dot(values - band_mean, values - band_mean))
        total = count + values.size  # Chan, Golub and LeVeque: exact merging of means and squares
        shift = band_mean - mean
        mean += shift * values.size / total
        squares += band_squares + shift**2 * count * values.size / total
        count = total
    counts = np.zeros(HISTOGRAM_BINS, np.int64)
    if count == 0:
        return VolumeStatistics(0, seen, math.nan, math.nan, math.nan, math.nan, counts, math.nan, math.nan)
    is_exact = np.dtype(array.dtype).kind in "ui" and high - low < HISTOGRAM_BINS
    width = 1.0 if is_exact else (high - low) / HISTOGRAM_BINS or 1.0
    for band in _selected(array, region, voxels):
        places = np.minimum(((_finite(band) - low) / width).astype(np.intp), HISTOGRAM_BINS - 1)
        counts += np.bincount(places, minlength=HISTOGRAM_BINS)
    std = math.sqrt(squares / count)
    return VolumeStatistics(count, seen - count, mean, std, low, high, counts, low, 0.0 if is_exact else width)


def _selected(array: Any, region: np.ndarray | None, voxels: int) -> Iterator[np.ndarray]:
    """Flat values of pieces of about `voxels` voxels, inside `region`; pieces are whole chunks where there are any."""
    depth, height, width = (array.shape[0], *array.shape[1:2], *array.shape[2:3], 1, 1)[:3]
    chunks = getattr(array, "chunks", None)
    planes, rows = max(1, voxels // max(1, math.prod(array.shape[1:]))), max(1, height)
    if chunks is not None and len(array.shape) == 3 and planes < chunks[0]:
        planes = min(chunks[0], max(1, voxels // (width * min(chunks[1], height))))
        rows = max(1, voxels // (width * planes) // chunks[1]) * chunks[1]
    for z in range(0, depth, planes):
        for y in range(0, height, rows):
            piece = (slice(z, z + planes),) if rows >= height else (slice(z, z + planes), slice(y, y + rows))
            values = np.asarray(array[piece])
            yield values.ravel() if region is None else values[:, region[y : y + rows]].ravel()


@dataclasses.dataclass(frozen=True)
class Normalizer:
    """Linear grey value scaling that is stored with a model and used again at prediction.

    `(value - low) / (high - low)`; `percentile` and `fixed` clip to 0..1. Values that are not finite become 0.

    Attributes:
        mode: `minmax` (0..1, unclipped), `percentile`, `zscore` (`low` = mean, `high` = mean + standard deviation),
            `fixed`.
        low, high: grey values that become 0 and 1.
    """

    mode: str
    low: float
    high: float

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, NORMALIZATIONS)

    @classmethod
    def fit(
        cls,
        source: Any,
        mode: str = "percentile",
        *,
        lower: float = 0.1,
        upper: float = 99.9,
        limits: tuple[float, float] | None = None,
        max_ram: str | int = "256MB",
    ) -> Normalizer:
        """Scaling for a volume.

        Args:
            source: the volume, NumPy or lazy, or its `VolumeStatistics`.
            mode: one of `NORMALIZATIONS`.
            lower, upper: percentages of mode `percentile`.
            limits: `(low, high)` of mode `fixed`.
            max_ram: bytes to work with.
        """
        check_choice("mode", mode, NORMALIZATIONS)
        if mode == "fixed":
            if limits is None or not limits[0] < limits[1]:
                raise UserError(f"`limits` must be (low, high) with low < high. Received: limits={limits}")
            return cls(mode, float(limits[0]), float(limits[1]))
        found = source if isinstance(source, VolumeStatistics) else volume_statistics(source, max_ram=max_ram)
        if found.count == 0:
            raise UserError("The volume holds no finite voxel (all are NaN or infinite). Check its reconstruction.")
        if mode == "minmax":
            return cls(mode, found.minimum, found.maximum)
        if mode == "zscore":
            return cls(mode, found.mean, found.mean + found.std)
        low, high = found.percentile(lower), found.percentile(upper)
        return cls(mode, low, high) if low < high else cls(mode, found.minimum, found.maximum)

    def __call__(self, array: Any) -> np.ndarray:
        """float32 of the same shape; constant volumes become 0."""
        if self.mode in ("percentile", "fixed"):
            return stretch(array, (self.low, self.high))
        _check_real(array)
        values = np.asarray(array, np.float64 if np.dtype(array.dtype).itemsize > 2 else np.float32)
        span = self.high - self.low
        values = (values - values.dtype.type(self.low)) / values.dtype.type(span if span > 0 else np.inf)
        return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0).astype(np.float32, copy=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON values for a model card."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Normalizer:
        """What `to_dict` gave."""
        return cls(str(values["mode"]), float(values["low"]), float(values["high"]))


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
