"""What particles in images and solids in volumes have in common: sizes, positions, moments, grey values from runs."""

from __future__ import annotations

from functools import cached_property

import numpy as np
from scipy.spatial import cKDTree

from keras_microseg.checks import UserError
from keras_microseg.measurement.distributions import edge_weights
from keras_microseg.measurement.grey import grey_statistics
from keras_microseg.segmentation.runs import LabelRuns, expand, object_chunks, segment_reduce

_CHUNK_PIXELS = 1 << 18


class ObjectMeasurer:
    """Computes quantities of all objects when asked, each intermediate result once; any number of axes.

    Args:
        runs: the label image as runs.
        size: edge lengths of a pixel in real units, one per axis.
        origin: position of the first pixel in the whole image, pixels.
    """

    def __init__(self, runs: LabelRuns, size: tuple[float, ...], origin: tuple[int, ...]):
        self.runs, self.size, self.origin = runs, size, origin
        self.ndim = len(runs.shape)

    def total(self, values: np.ndarray) -> np.ndarray:
        """Sums over the runs of every object, float64; whole numbers below 2**53 exactly."""
        return np.bincount(self.runs.owner, weights=values, minlength=len(self.runs.labels))

    @cached_property
    def lines(self) -> tuple[np.ndarray, ...]:
        """Position of the runs along every axis but the last, in image order."""
        rest, positions = self.runs.line, []
        for length in self.runs.shape[-2:0:-1]:
            above = rest // length
            positions.append(rest - above * length)
            rest = above
        return (rest, *reversed(positions))

    @cached_property
    def pixel_count(self) -> np.ndarray:
        return self.total(self.runs.x1 - self.runs.x0).astype(np.int64)

    @cached_property
    def content(self) -> np.ndarray:
        """Area or volume, real units."""
        return self.pixel_count * float(np.prod(self.size))

    @cached_property
    def box(self) -> np.ndarray:
        """(n, 2 ndim) int64, first pixel then one past the last pixel along every axis, pixels of the array."""
        starts = self.runs.starts
        _, _, x0, x1 = self.runs.sorted
        lead = self.runs.sorted_lines
        slow = lead[0]  # ascending inside an object
        low = [slow[starts[:-1]], *(segment_reduce(np.minimum, part, starts) for part in (*lead[1:], x0))]
        high = [slow[starts[1:] - 1] + 1, *(segment_reduce(np.maximum, part, starts) + 1 for part in lead[1:])]
        return np.stack([*low, *high, segment_reduce(np.maximum, x1, starts)], axis=1)

    @cached_property
    def touches_border(self) -> np.ndarray:
        low, high = self.box[:, : self.ndim], self.box[:, self.ndim :]
        return ((low == 0) | (high == np.array(self.runs.shape))).any(axis=1)

    @cached_property
    def edge_weight(self) -> np.ndarray:
        sides = self.box[:, self.ndim :] - self.box[:, : self.ndim]
        return edge_weights(sides, self.runs.shape, self.touches_border)

    @cached_property
    def centroids(self) -> np.ndarray:
        """(n, ndim) in pixels of the array; sums over a run in closed form."""
        x0, x1 = self.runs.x0, self.runs.x1
        length = (x1 - x0).astype(np.float64)
        sums = [self.total(length * part) for part in self.lines]
        return np.stack([*sums, self.total(length * (0.5 * (x0 + x1 - 1)))], axis=1) / self.pixel_count[:, None]

    @cached_property
    def second_moments(self) -> np.ndarray:
        """(n, ndim, ndim) central second moments / count in pixels squared.

        Sums over a run are closed forms, taken from the pixel next to the centroid so that nothing cancels; 1/12 is the
        moment of one pixel.
        """
        middle = np.rint(self.centroids).astype(np.int32)
        near = middle[self.runs.owner]
        lead = [(part - near[:, axis]).astype(np.float64) for axis, part in enumerate(self.lines)]
        x0, x1 = self.runs.x0 - near[:, -1], self.runs.x1 - near[:, -1]
        length = (x1 - x0).astype(np.float64)
        columns = length * (0.5 * (x0 + x1 - 1))
        squares = _sum_of_squares(x1) - _sum_of_squares(x0)
        centre = self.centroids - middle
        second = np.empty((len(centre), self.ndim, self.ndim))
        for i in range(self.ndim):
            along = length * lead[i] if i < self.ndim - 1 else columns
            for j in range(i + 1):
                raw = self.total(squares if j == self.ndim - 1 else along * lead[j]) / self.pixel_count
                central = raw - centre[:, i] * centre[:, j]
                second[:, i, j] = second[:, j, i] = np.maximum(central, 0) + 1 / 12 if i == j else central
        return second

    @cached_property
    def nearest_distance(self) -> np.ndarray:
        points = self.centroids * self.size
        if len(points) < 2:
            return np.full(len(points), np.nan)
        return cKDTree(points).query(points, k=2)[0][:, 1]

    needs_median = True

    @cached_property
    def intensity(self) -> dict[str, np.ndarray]:
        """Mean, median, least, greatest and standard deviation of the finite grey values; NaN where there is none."""
        runs, n = self.runs, len(self.runs.labels)
        if runs.values is None:
            raise UserError("Grey-value quantities need the image. Pass `intensity`, of the size of the labels.")
        lengths = (runs.x1 - runs.x0).astype(np.int64)
        begin = (np.cumsum(lengths) - lengths)[runs.order]
        lengths = lengths[runs.order]
        pixels = np.concatenate([[0], np.cumsum(self.pixel_count)])
        result = {name: np.full(n, np.nan) for name in ("mean", "median", "min", "max", "std")}
        for first, stop in object_chunks(pixels, _CHUNK_PIXELS):
            part = slice(runs.starts[first], runs.starts[stop])
            values = runs.values[expand(begin[part], lengths[part])]
            statistics = grey_statistics(values, self.pixel_count[first:stop], median=self.needs_median)
            for name, numbers in statistics.items():
                result[name][first:stop] = numbers
        return result


def _sum_of_squares(n: np.ndarray) -> np.ndarray:
    """0 + 1 + 4 + ... + (n - 1)**2 as float64."""
    n = n.astype(np.float64)
    return n * (n - 1) * (2 * n - 1) / 6
