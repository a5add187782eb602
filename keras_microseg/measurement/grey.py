"""Grey-value statistics of many objects at once, without a loop over objects."""

from __future__ import annotations

import numpy as np

from keras_microseg.segmentation.runs import expand, segment_reduce, segment_sum

_NAMES = ("mean", "median", "min", "max", "std")


def grey_statistics(values: np.ndarray, counts: np.ndarray, *, median: bool = True) -> dict[str, np.ndarray]:
    """Statistics of stretches of grey values.

    Args:
        values: (N,) real values, the stretches one after the other; non-finite ones are left out.
        counts: (n,) length >= 1 of each stretch.
        median: compute it too; it costs more than all others together.

    Returns:
        "mean", "median", "min", "max", "std" (population), (n,) float64 each; NaN where no value is finite.
    """
    starts = np.concatenate([[0], np.cumsum(counts)])
    valid = counts
    if values.dtype.kind == "f":
        finite = np.isfinite(values)
        if not finite.all():
            valid = segment_sum(finite.astype(np.int64), starts)
            kept = valid > 0
            result = {name: np.full(len(counts), np.nan) for name in _NAMES}
            if kept.any():
                for name, numbers in grey_statistics(values[finite], valid[kept], median=median).items():
                    result[name][kept] = numbers
            return result
    floats = values.astype(np.float64)
    mean = segment_sum(floats, starts) / counts
    floats -= np.repeat(mean, counts)
    np.square(floats, out=floats)
    return {
        "mean": mean,
        "median": _medians(values, starts) if median else np.full(len(counts), np.nan),
        "min": segment_reduce(np.minimum, values, starts).astype(np.float64),
        "max": segment_reduce(np.maximum, values, starts).astype(np.float64),
        "std": np.sqrt(segment_sum(floats, starts) / counts),
    }


def _medians(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Median of each stretch: stretches of similar length are sorted together as the rows of a matrix."""
    counts = np.diff(starts)
    if values.dtype.itemsize <= 2:
        values = values.astype(np.float32)  # exact, and sorted several times faster
    fill = np.inf if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    medians = np.empty(len(counts))
    sizes = 2.0 ** (np.ceil(np.log2(counts) * 2) / 2)  # at most 41 % of padding
    for size in np.unique(sizes):
        rows = np.flatnonzero(sizes == size)
        lengths = counts[rows]
        matrix = np.full((len(rows), lengths.max()), fill, values.dtype)
        matrix[np.arange(lengths.max()) < lengths[:, None]] = values[expand(starts[rows], lengths)]
        matrix.sort(axis=1)
        at = np.arange(len(rows))
        low, high = matrix[at, (lengths - 1) // 2].astype(np.float64), matrix[at, lengths // 2].astype(np.float64)
        medians[rows] = low + (high - low) / 2
    return medians
