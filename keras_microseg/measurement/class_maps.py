"""One reading of a class map of any size: pixels per block, contacts between classes, run lengths along x and y.

Maps are read in bands of rows, so that memory depends on the width of the map only. What is gathered here is what
`composition` turns into shares with intervals, association, chords, lineal paths and the size of a representative area.

References: Torquato (2002), Random Heterogeneous Materials (chords, lineal path, two-point function); Underwood (1970),
S_V = 4 / pi L_A; Kanit et al. (2003) and Lantuejoul (1991), representative size and integral range.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_number
from keras_microseg.image import PixelSize
from keras_microseg.measurement.particles import edge_lengths

_BAND_PIXELS = 1 << 21
_READ_PIXELS = 1 << 26


@dataclasses.dataclass(frozen=True)
class MapScan:
    """What one reading of a map gathers; K classes, lengths in pixels.

    Attributes:
        shape: of the map.
        block: edge of the blocks.
        counts: (rows, columns, K) int64 pixels of each class in each block.
        contacts: (2, K, K) int64 pairs of different neighbours below each other and beside each other, symmetric.
        runs: (2, K, n) int64 runs of each length along y and x.
        whole_runs: the same without runs that the frame or an ignored pixel cuts.
        inside: (2, n) int64 runs of pixels of any class.
    """

    shape: tuple[int, int]
    block: int
    counts: np.ndarray
    contacts: np.ndarray
    runs: np.ndarray
    whole_runs: np.ndarray
    inside: np.ndarray

    @property
    def pixels(self) -> int:
        """Pixels of all classes."""
        return int(self.counts.sum())


def scan_class_map(classes: Any, num_classes: int, *, block: int) -> MapScan:
    """Read a map once.

    Args:
        classes: (H, W) whole numbers, array or lazy array; numbers that are no class (0 to K - 1) belong to no sample.
        num_classes: K, up to 254.
        block: edge of the blocks, px.
    """
    check_number("num_classes", num_classes, minimum=1, maximum=254, integer=True)
    check_number("block", block, minimum=1, integer=True)
    height, width = classes.shape
    longest = max(height, width)
    grid = np.zeros((-(-height // block), -(-width // block), num_classes), np.int64)
    contacts = np.zeros((2, num_classes, num_classes), np.int64)
    along_x, inside_x = _Runs(num_classes, longest), _Runs(1, longest)
    along_y, inside_y = _Runs(num_classes, longest), _Runs(1, longest)
    above = None
    for top, band in row_bands(classes, max(1, _BAND_PIXELS // width), cut=block):
        code = np.where((band >= 0) & (band < num_classes), band, num_classes).astype(np.uint8)
        outside = (code == num_classes).astype(np.uint8)
        index = code + (np.arange(width) // block * (num_classes + 1)).astype(np.int32)
        counted = np.bincount(index.ravel(), minlength=grid.shape[1] * (num_classes + 1))
        grid[top // block] += counted.reshape(grid.shape[1], -1)[:, :num_classes]
        joined = code if above is None else np.concatenate([above, code])
        contacts[0] += _pairs(joined[1:], joined[:-1], num_classes)
        contacts[1] += _pairs(code[:, 1:], code[:, :-1], num_classes)
        above = code[-1:].copy()
        for runs, lines in ((along_x, code), (inside_x, outside)):
            runs.add(lines)
            runs.close()
        along_y.add(np.ascontiguousarray(code.T))
        inside_y.add(np.ascontiguousarray(outside.T))
    along_y.close()
    inside_y.close()
    return MapScan(
        (height, width),
        block,
        grid,
        contacts + contacts.transpose(0, 2, 1),
        np.stack([along_y.every, along_x.every]),
        np.stack([along_y.whole, along_x.whole]),
        np.stack([inside_y.every[0], inside_x.every[0]]),
    )


def join_blocks(counts: np.ndarray, factor: int) -> np.ndarray:
    """Counts (rows, columns, K) of blocks, those of `factor` x `factor` of them together; the last may be smaller."""
    rows, columns = (np.arange(0, n, factor) for n in counts.shape[:2])
    return np.add.reduceat(np.add.reduceat(counts, rows, axis=0), columns, axis=1)


def row_bands(array: Any, rows: int, *, cut: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """`(first row, rows of the array)` of bands of at most `rows` rows; no band crosses a multiple of `cut`.

    Chunked arrays are read a row of chunks at a time where that fits, so that no chunk is decoded twice.
    """
    height, width = array.shape
    chunk = (getattr(array, "chunks", None) or (1,))[0]
    step = max(rows, min(chunk, max(rows, _READ_PIXELS // width)))
    for start in range(0, height, step):
        part = np.asarray(array[start : start + step])
        top = start
        while top < start + len(part):
            end = min(top + rows, start + len(part), height if cut is None else (top // cut + 1) * cut)
            yield top, part[top - start : end - start]
            top = end


class _Runs:
    """Lengths of runs of equal codes along lines that come in pieces; the code K stands for what is no class."""

    def __init__(self, num_classes: int, longest: int):
        self.count, self.longest = num_classes, longest
        self.every = np.zeros((num_classes, longest + 1), np.int64)
        self.whole = np.zeros((num_classes, longest + 1), np.int64)
        self._code = None

    def add(self, lines: np.ndarray) -> None:
        """(N, n) uint8 codes: the next piece of each of the N lines."""
        change = np.empty(lines.shape, bool)
        change[:, 0] = True
        np.not_equal(lines[:, 1:], lines[:, :-1], out=change[:, 1:])
        at = np.flatnonzero(change)
        code = lines.ravel()[at]
        length = np.diff(np.append(at, lines.size))
        first = np.searchsorted(at, np.arange(len(lines)) * lines.shape[1])
        last = np.append(first[1:], len(at)) - 1
        begun = np.empty(len(at), bool)  # a class lies before the run
        begun[1:] = code[:-1] < self.count
        begun[first] = False
        if self._code is not None:
            same = code[first] == self._code
            length[first] += np.where(same, self._length, 0)
            begun[first] = np.where(same, self._begun, self._code < self.count)
            ended = ~same
            self._record(self._code[ended], self._length[ended], self._begun[ended] & (code[first][ended] < self.count))
        done = np.ones(len(at), bool)
        done[last] = False
        follows = np.zeros(len(at), bool)
        follows[:-1] = code[1:] < self.count
        self._record(code[done], length[done], (begun & follows)[done])
        self._code, self._length, self._begun = code[last], length[last], begun[last]

    def close(self) -> None:
        """The lines end here; what follows are other lines."""
        if self._code is not None:
            self._record(self._code, self._length, np.zeros(len(self._code), bool))
        self._code = None

    def _record(self, code: np.ndarray, length: np.ndarray, is_whole: np.ndarray) -> None:
        kept = code < self.count
        index = code[kept].astype(np.int64) * (self.longest + 1) + length[kept]
        for table, chosen in ((self.every, index), (self.whole, index[is_whole[kept]])):
            numbers, times = np.unique(chosen, return_counts=True)
            table.reshape(-1)[numbers] += times


def _pairs(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    differ = (one != other) & (one < count) & (other < count)
    return np.bincount(one[differ].astype(np.int64) * count + other[differ], minlength=count**2).reshape(count, count)


def choose_block(classes: Any, num_classes: int, *, chords: float = 15.0, at_least: int = 30) -> int:
    """Edge of blocks that are several grains wide (`chords` mean chord lengths), px, but so that there are enough."""
    runs, pixels = 0, 0
    for window in spread_windows(classes.shape, 512, 9):
        part = np.asarray(classes[window])
        inside = (part >= 0) & (part < num_classes)
        pixels += int(inside.sum())
        runs += int((inside[:, 1:] & (part[:, 1:] != part[:, :-1])).sum() + inside[:, 0].sum())
    mean = pixels / max(runs, 1)
    most = int(np.sqrt(np.prod(classes.shape, dtype=float) / at_least))
    return int(np.clip(round(chords * mean), 1, max(most, 1)))


def spread_windows(shape: Sequence[int], edge: int, most: int) -> list[tuple[slice, slice]]:
    """At most `most` windows of `edge` x `edge` px: the whole array where that suffices, else evenly spread."""
    counts = [max(1, -(-n // edge)) for n in shape]
    if np.prod(counts) > most:
        ratio = np.sqrt(most / np.prod(counts))
        counts = [max(1, int(c * ratio)) for c in counts]
    starts = [np.linspace(0, max(n - edge, 0), c).round().astype(int) for n, c in zip(shape, counts, strict=True)]
    return [
        (slice(y, min(y + edge, shape[0])), slice(x, min(x + edge, shape[1]))) for y in starts[0] for x in starts[1]
    ]


def association(scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None) -> pd.DataFrame:
    """Length of the contact between every two classes, as `composition.association_matrix` gives it."""
    size = edge_lengths(pixel_size, 2)
    length = np.pi / 4 * (scan.contacts[0] * size[1] + scan.contacts[1] * size[0])
    return pd.DataFrame(length, index=list(names), columns=list(names))


def surface_table(scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None) -> pd.DataFrame:
    """Boundary and chords of each class.

    Returns:
        Columns `class`, `boundary_per_area` (L_A, length per area of the sample), `specific_surface` (4 / pi L_A: area
        per volume of the sample), `surface_per_class` (area per volume of the class), `chord_x`, `chord_y` (mean length
        of uncut chords), `num_chords` (both directions). NaN where there is none.
    """
    size = edge_lengths(pixel_size, 2)
    area = scan.pixels * size[0] * size[1]
    boundary = association(scan, names, pixel_size=pixel_size).to_numpy().sum(axis=1)
    share = scan.counts.sum(axis=(0, 1)) / max(scan.pixels, 1)
    lengths = np.arange(scan.whole_runs.shape[-1])
    numbers = scan.whole_runs.sum(axis=-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = scan.whole_runs @ lengths / numbers * np.array(size)[:, np.newaxis]
        per_area = boundary / area
        return pd.DataFrame(
            {
                "class": list(names),
                "boundary_per_area": per_area,
                "specific_surface": 4 / np.pi * per_area,
                "surface_per_class": 4 / np.pi * per_area / share,
                "chord_x": means[1],
                "chord_y": means[0],
                "num_chords": numbers.sum(axis=0),
            }
        )


def chord_distribution(
    scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None, num_bins: int = 30
) -> pd.DataFrame:
    """Chord lengths of each class along x and y together: `length` (middle of the bin, geometric) and a density each.

    Densities are per unit of length and integrate to 1 over all uncut chords of the class.
    """
    size = edge_lengths(pixel_size, 2)
    lengths = np.arange(scan.whole_runs.shape[-1])
    used = np.flatnonzero(scan.whole_runs.sum(axis=(0, 1)))
    if not len(used):
        return pd.DataFrame({"length": [], **{name: [] for name in names}})
    low, high = min(size), (used[-1] + 1) * max(size)
    # every bin holds a whole length at least, or short chords would fall between bins
    edges = np.unique(np.ceil(np.geomspace(low, high, num_bins + 1) / max(size)) * max(size)) - max(size) / 2
    table = {"length": np.sqrt(np.maximum(edges[:-1], max(size) / 4) * edges[1:])}
    for k, name in enumerate(names):
        density = np.zeros(len(edges) - 1)
        for axis in (0, 1):
            density += np.histogram(lengths * size[axis], edges, weights=scan.whole_runs[axis, k])[0]
        table[name] = density / max(density.sum(), 1) / np.diff(edges)
    return pd.DataFrame(table)


def lineal_path(
    scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None, max_distance: int | None = None
) -> pd.DataFrame:
    """Probability that a line of a length, thrown into the sample, lies in one class; mean over x and y.

    L(r) = sum over runs of max(l - r, 0), over the same sum of the runs of the sample; L(0) is the share of the class.

    Args:
        scan: see `scan_class_map`.
        names: of the classes.
        pixel_size: square pixels; None = px.
        max_distance: longest line, px; None = where the last class falls below 1e-4, at most half the map.
    """
    size = edge_lengths(pixel_size, 2)
    limit = min(scan.shape) // 2 if max_distance is None else max_distance
    steps = np.unique(np.concatenate([np.arange(min(limit, 32) + 1), np.geomspace(1, max(limit, 2), 60).astype(int)]))
    steps = steps[steps <= limit]
    lengths = np.arange(scan.runs.shape[-1])
    room = np.maximum(lengths - steps[:, np.newaxis], 0)  # (R, n)
    inside = room @ scan.inside.sum(axis=0)
    values = room @ scan.runs.sum(axis=0).T / np.maximum(inside, 1)[:, np.newaxis]
    kept = inside > 0
    if max_distance is None:
        kept &= np.append(True, (values[:-1] > 1e-4).any(axis=1))
    table = pd.DataFrame(values[kept], columns=list(names))
    table.insert(0, "distance", steps[kept] * np.sqrt(size[0] * size[1]))
    return table


def two_point_functions(
    classes: Any,
    names: Sequence[str],
    *,
    max_distance: int = 200,
    window: int = 1024,
    max_windows: int = 16,
    pixel_size: PixelSize | None = None,
) -> pd.DataFrame:
    """Probability that two points at a distance lie in the same class, for each class; radial mean.

    Counted over all pairs of pixels within windows spread over the map (the whole map where it is small), by FFT; pairs
    with a pixel of no class are left out. Starts at the share of the class and ends at its square without long order.

    Args:
        classes: (H, W) array or lazy array of class numbers.
        names: of the classes 0 to K - 1.
        max_distance: px, at most a third of the window.
        window: edge of the windows, px.
        max_windows: how many of them at most.
        pixel_size: square pixels; None = px.

    Returns:
        Columns `distance` and one per class.
    """
    check_number("max_distance", max_distance, minimum=1, integer=True)
    window = min(window, max(classes.shape))
    reach = min(max_distance, min(window, *classes.shape) // 3)
    if reach < 1:
        raise UserError(f"The map is too small for a two-point function. Received: shape {tuple(classes.shape)}")
    pairs, number = np.zeros((len(names), 2 * reach + 1, 2 * reach + 1)), np.zeros((2 * reach + 1,) * 2)
    for place in spread_windows(classes.shape, window, max_windows):
        part = np.asarray(classes[place])
        number += _autocorrelation((part >= 0) & (part < len(names)), reach)
        for k in range(len(names)):
            pairs[k] += _autocorrelation(part == k, reach)
    lag = np.arange(-reach, reach + 1)
    away = np.rint(np.hypot(lag[:, np.newaxis], lag)).astype(int).ravel()
    weight = np.bincount(away, number.ravel())[: reach + 1]
    size = edge_lengths(pixel_size, 2)
    table = {"distance": np.arange(reach + 1) * np.sqrt(size[0] * size[1])}
    for k, name in enumerate(names):
        table[name] = np.bincount(away, pairs[k].ravel())[: reach + 1] / np.maximum(weight, 1e-9)
    return pd.DataFrame(table)


def _autocorrelation(mask: np.ndarray, reach: int) -> np.ndarray:
    """(2 r + 1, 2 r + 1) number of pairs of True pixels at each lag up to `reach`."""
    from scipy import fft

    shape = [fft.next_fast_len(n + reach, real=True) for n in mask.shape]
    spectrum = fft.rfft2(mask.astype(np.float32), shape)
    found = fft.irfft2(np.abs(spectrum) ** 2, shape)
    lag = np.arange(-reach, reach + 1)
    return np.maximum(np.rint(found[np.ix_(lag % shape[0], lag % shape[1])]), 0)


def covariance_errors(scan: MapScan, two_point: pd.DataFrame, names: Sequence[str], pixel: float = 1.0) -> pd.DataFrame:
    """Standard error of each share from its covariance, an independent check of the bootstrap.

    var = (1 / A) integral of (S2(r) - p^2) dA, taken up to the first zero of the covariance (integral range).

    Args:
        scan: gives A.
        two_point: of `two_point_functions`, with distances in units of `pixel`.
        names: of the classes.
        pixel: edge of a pixel in the unit of the distances.

    Returns:
        `class`, `standard_error`, `effective_number` (p (1 - p) / var: independent points the map is worth).
    """
    distance = two_point["distance"].to_numpy() / pixel
    rows = []
    for name in names:
        values = two_point[name].to_numpy()
        share = values[0]
        covariance = values - share**2
        below = np.flatnonzero(covariance <= 0)
        end = below[0] if len(below) else len(values)
        integral = covariance[0] + np.sum(2 * np.pi * distance[1:end] * covariance[1:end])
        variance = integral / max(scan.pixels, 1)
        effective = share * (1 - share) / variance if variance > 0 else np.nan
        rows.append((name, float(np.sqrt(variance)), float(effective)))
    return pd.DataFrame(rows, columns=["class", "standard_error", "effective_number"])


def block_widening(two_point: pd.DataFrame, names: Sequence[str], block: int, pixel: float = 1.0) -> float:
    """Factor by which standard errors from the spread between square blocks are too small, from the covariance.

    The spread sees covariance within blocks only: sqrt(int C dA / int C g dA) with g(r) = 1 - 4 r / (pi B) +
    r^2 / (pi B^2), the isotropic covariogram of a square of edge B; one factor for all classes, at most 1.5.

    Args:
        two_point: of `two_point_functions`, with distances in units of `pixel`.
        names: of the classes.
        block: B, px.
        pixel: edge of a pixel in the unit of the distances.
    """
    distance = two_point["distance"].to_numpy() / pixel
    within = np.where(distance < block, 1 - 4 * distance / (np.pi * block) + distance**2 / (np.pi * block**2), 0)
    ring = np.where(distance > 0, 2 * np.pi * distance, 1.0)
    whole = seen = 0.0
    for name in names:
        covariance = two_point[name].to_numpy() - two_point[name].iloc[0] ** 2
        below = np.flatnonzero(covariance <= 0)
        part = slice(0, below[0] if len(below) else None)
        whole += float(np.sum(ring[part] * covariance[part]))
        seen += float(np.sum(ring[part] * covariance[part] * np.maximum(within[part], 0)))
    return float(np.clip(np.sqrt(whole / seen), 1.0, 1.5)) if seen > 0 else 1.0


def representative_area(scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None) -> pd.DataFrame:
    """How shares vary between squares of growing edge: where that is small, a square represents the sample.

    Squares are put together from the blocks of the scan; those with less than 90 % sample are left out.

    Returns:
        One row per edge and class: `edge` (length), `area`, `class`, `num_squares`, `mean`, `std` (between squares),
        `relative_error` (1.96 std / mean: what one such square would be off by).
    """
    size = edge_lengths(pixel_size, 2)
    counts = scan.counts
    sizes = np.unique(np.geomspace(1, max(min(counts.shape[:2]) // 2, 1), 12).round().astype(int))
    rows = []
    for n in sizes:
        parts = [counts.shape[axis] // n * n for axis in (0, 1)]
        sums = counts[: parts[0], : parts[1]].reshape(parts[0] // n, n, parts[1] // n, n, -1).sum(axis=(1, 3))
        totals = sums.sum(axis=-1)
        full = totals >= 0.9 * (n * scan.block) ** 2
        if full.sum() < 2:
            continue
        shares = sums[full] / totals[full][:, np.newaxis]
        edge = n * scan.block * np.sqrt(size[0] * size[1])
        for k, name in enumerate(names):
            mean, spread = float(shares[:, k].mean()), float(shares[:, k].std(ddof=1))
            rows.append((edge, edge**2, name, int(full.sum()), mean, spread, 1.96 * spread / mean if mean else np.nan))
    return pd.DataFrame(rows, columns=["edge", "area", "class", "num_squares", "mean", "std", "relative_error"])


def convergence(scan: MapScan, names: Sequence[str], *, pixel_size: PixelSize | None = None) -> pd.DataFrame:
    """Shares inside a square that grows from the middle of the map: `area` (of sample) and a column per class."""
    size = edge_lengths(pixel_size, 2)
    rows, columns = scan.counts.shape[:2]
    y, x = np.arange(rows) - (rows - 1) / 2, np.arange(columns) - (columns - 1) / 2
    ring = np.maximum(np.abs(y)[:, np.newaxis], np.abs(x))
    out = []
    for reach in np.unique(ring):
        sums = scan.counts[ring <= reach].sum(axis=0)
        if sums.sum():
            out.append((sums.sum() * size[0] * size[1], *(sums / sums.sum())))
    return pd.DataFrame(out, columns=["area", *names])
