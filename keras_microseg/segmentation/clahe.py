"""Contrast-limited adaptive histogram equalization of volumes that need not fit in memory.

Equal to `skimage.exposure.equalize_adapthist` of the whole volume, bit by bit: grey values depend on the volume only
through its extremes and one small histogram per contextual region, so two passes over the planes are enough.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from skimage import exposure, util
from skimage.exposure import _adapthist

from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.intensity import VolumeStatistics
from keras_microseg.tiling import reflected_positions

GREY_LEVELS = 2**14
"""Levels the equalization works in."""


class Clahe:
    """Equalization of one volume.

    Args:
        source: (z, y, x) real numbers, NumPy or lazy; read twice (here and by the caller of `plane`).
        statistics: of `source`.
        kernel_size: contextual region, one length or (z, y, x); None = an eighth of every axis.
        clip_limit: 0..1, higher gives more contrast.
        num_bins: bins of the histograms.
        planes: planes read at once.

    Floating-point volumes outside -1..1, which scikit-image refuses, are mapped from their extremes to 0..1 first.

    Reference: Zuiderveld (1994), Graphics Gems IV, 474.
    """

    def __init__(
        self,
        source: Any,
        statistics: VolumeStatistics,
        *,
        kernel_size: int | Sequence[int] | None = None,
        clip_limit: float = 0.01,
        num_bins: int = 256,
        planes: int = 16,
    ):
        check_number("clip_limit", clip_limit, minimum=0, maximum=1)
        if statistics.num_nonfinite:
            raise UserError(f"CLAHE needs finite voxels; {statistics.num_nonfinite} are NaN or infinite.")
        self.shape = tuple(int(n) for n in source.shape)
        wanted = tuple(max(n // 8, 1) for n in self.shape) if kernel_size is None else kernel_size
        self.kernel = standardize_tuple(wanted, 3, "kernel_size")
        self.counts = tuple(-(-n // k) for n, k in zip(self.shape, self.kernel, strict=True))
        self._levels = _Levels(np.dtype(source.dtype), statistics)
        self._bin_size = 1 + GREY_LEVELS // num_bins
        self._num_bins = num_bins
        self._maps = self._equalizing_maps(source, clip_limit, planes)
        self._columns = [self._neighbours(axis, np.arange(self.shape[axis])) for axis in (1, 2)]

    def plane(self, z: int, values: np.ndarray) -> np.ndarray:
        """Equalized plane `z`: (y, x) uint16 in 0..16383, from the plane's voxels as stored."""
        index = self._bins(values).astype(np.intp)
        (first_z, share_z) = self._neighbours(0, np.array([z]))
        (first_y, share_y), (first_x, share_x) = self._columns
        total = np.zeros(values.shape, np.float32)
        for edge in itertools.product((0, 1), repeat=3):
            block = self._block_index(first_z + edge[0], 0)
            block = block * self.counts[1] + self._block_index(first_y + edge[1], 1)
            block = block[:, None] * self.counts[2] + self._block_index(first_x + edge[2], 2)
            x, y, w = (
                share if side else 1 - share
                for side, share in zip(edge[::-1], (share_x, share_y, share_z), strict=True)
            )
            weights = (x[None, :] * y[:, None]) * w  # in this order, as rounding decides about the last level
            mapped = self._maps.reshape(-1)[block * self._num_bins + index]
            total += (mapped * weights).astype(np.float32)
        return total.astype(np.uint16)

    def scaled(self, extremes: tuple[int, int]) -> np.ndarray:
        """(16384,) final value 0..1 of every level, given the smallest and largest level that occurs."""
        kind = self._levels.float_type
        levels = np.arange(GREY_LEVELS).astype(np.uint16).astype(kind)
        low, high = kind.type(extremes[0]), kind.type(extremes[1])
        return exposure.rescale_intensity(levels, in_range=(low, high))

    def _bins(self, values: np.ndarray) -> np.ndarray:
        return self._levels(values) // np.uint16(self._bin_size)

    def _neighbours(self, axis: int, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Region before every position (counted from one before the first) and the share of the one after it."""
        size = self.kernel[axis]
        shifted = position + size // 2
        return shifted // size, (shifted % size) / size

    def _block_index(self, neighbour: np.ndarray, axis: int) -> np.ndarray:
        return np.clip(neighbour - 1, 0, self.counts[axis] - 1)

    def _equalizing_maps(self, source: Any, clip_limit: float, planes: int) -> np.ndarray:
        """(regions z, y, x, bins) level that every bin becomes."""
        hist = np.zeros((*self.counts, self._num_bins), np.int64)
        reflected = [
            reflected_positions(0, n * k, s) for n, k, s in zip(self.counts, self.kernel, self.shape, strict=True)
        ]
        regions = np.arange(self.counts[1])[:, None] * self.counts[2] + np.arange(self.counts[2])
        regions = regions.repeat(self.kernel[1], axis=0).repeat(self.kernel[2], axis=1) * self._num_bins
        per_plane = self.counts[1] * self.counts[2] * self._num_bins
        times = [[] for _ in range(self.shape[0])]  # planes past the end are earlier ones, reflected
        for place, z in enumerate(reflected[0]):
            times[int(z)].append(place // self.kernel[0])
        for start in range(0, self.shape[0], planes):
            for z, values in enumerate(np.asarray(source[start : start + planes]), start=start):
                bins = self._bins(values)[reflected[1]][:, reflected[2]]
                counts = np.bincount((bins + regions).ravel(), minlength=per_plane).reshape(hist.shape[1:])
                for row in times[z]:
                    hist[row] += counts
        elements = math.prod(self.kernel)
        limit = max(1, int(clip_limit * elements)) if clip_limit > 0 else elements
        flat = hist.reshape(-1, self._num_bins)
        for row in flat:
            row[:] = _adapthist.clip_histogram(row, limit)
        return _adapthist.map_histogram(flat, 0, GREY_LEVELS - 1, elements).reshape(hist.shape)


class _Levels:
    """Voxels as stored to 14-bit levels, elementwise as scikit-image does it for the whole array."""

    def __init__(self, dtype: np.dtype, statistics: VolumeStatistics):
        self.dtype = dtype
        self.float_type = np.dtype(np.float32 if dtype in (np.float32, np.float16) else np.float64)
        self._span = None
        if dtype.kind == "f" and not -1 <= statistics.minimum <= statistics.maximum <= 1:
            self._span = statistics.minimum, (statistics.maximum - statistics.minimum) or 1.0
        ends = np.array([statistics.minimum, statistics.maximum])
        self._ends = tuple(self._as_uint(ends.astype(dtype)))
        self._table = None
        if dtype.kind in "ui" and dtype.itemsize <= 2:
            numbers = np.arange(2 ** (8 * dtype.itemsize)).astype(f"u{dtype.itemsize}").view(dtype)
            self._table = self._compute(numbers)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if self._table is not None:
            return self._table[values.view(f"u{self.dtype.itemsize}")]
        return self._compute(values)

    def _as_uint(self, values: np.ndarray) -> np.ndarray:
        if self._span is not None:
            values = (values.astype(np.float64) - self._span[0]) / self._span[1]
        return util.img_as_uint(values)

    def _compute(self, values: np.ndarray) -> np.ndarray:
        scaled = exposure.rescale_intensity(self._as_uint(values), in_range=self._ends, out_range=(0, GREY_LEVELS - 1))
        return np.round(scaled).astype(np.uint16)
