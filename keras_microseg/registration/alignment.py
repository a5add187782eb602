"""Bring a micrograph and a coarse class map of the same sample onto each other.

The map is a mosaic of fields; each field has its own shift, all share one linear part (scale, rotation, shear):
`micrograph = linear @ map + shift[field]`. Coarse: the disc of the sample in both images, or what the caller knows.
Then a pyramid over the map, from windows of half a field to windows of 64 pixels: each is moved over the micrograph
until its classes explain most of the grey values there. As long as the greys of the classes are unknown that is the
correlation ratio, summed from correlations with every class; afterwards the correlation with the expected grey. Shifts
of windows that do not fit their field (Tukey) count nothing; fields without good windows follow the others.

References: Roche et al. (1998), correlation ratio; Lewis (1995), fast normalized cross-correlation; Maes et al. (1997),
mutual information.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage
from skimage.feature import match_template

from keras_microseg.checks import UserError, check_number
from keras_microseg.registration.sample import find_disc, reduce_image

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Transform:
    """Where map pixels lie in a micrograph.

    Attributes:
        linear: (2, 2) micrograph px per map px, (y, x) to (y, x).
        shifts: (rows, columns, 2) shift of each field, micrograph px.
        borders: first row of each row of fields and first column of each column of fields.
        shape: of the map.
    """

    linear: np.ndarray
    shifts: np.ndarray
    borders: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def similarity(
        cls,
        scale: float,
        rotation: float = 0.0,
        shift: Sequence[float] = (0.0, 0.0),
        *,
        shape: tuple[int, int],
        borders: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Transform:
        """Scale, rotation (degrees) and shift, the same for all fields."""
        angle = np.deg2rad(rotation)
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        rows, columns = (np.zeros(1, int),) * 2 if borders is None else (np.asarray(b, int) for b in borders)
        return cls(
            linear, np.broadcast_to(np.array(shift, float), (len(rows), len(columns), 2)).copy(), (rows, columns), shape
        )

    @property
    def scale(self) -> float:
        """Micrograph px per map px."""
        return float(np.sqrt(abs(np.linalg.det(self.linear))))

    @property
    def rotation(self) -> float:
        """Degrees."""
        return float(np.rad2deg(np.arctan2(self.linear[1, 0] - self.linear[0, 1], np.trace(self.linear))))

    def field_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the field of map positions (..., 2)."""
        return tuple(
            np.clip(np.searchsorted(b, points[..., a], side="right") - 1, 0, len(b) - 1)
            for a, b in enumerate(self.borders)
        )

    def __call__(self, points: Any) -> np.ndarray:
        """(..., 2) map positions (y, x) to micrograph positions."""
        points = np.asarray(points, float)
        return points @ self.linear.T + self.shifts[self.field_of(points)]

    def resample_sem(self, image: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Grey values under every map pixel, float32 (bilinear; positions outside take the nearest pixel).

        Args:
            image: micrograph, or one reduced `factor` times (`reduce_image`).
            factor: micrograph px per px of `image`.
        """
        out = np.empty(self.shape, np.float32)
        for (i, j), (rows, columns) in self.fields():
            grid = np.stack(np.meshgrid(np.arange(*rows), np.arange(*columns), indexing="ij"), -1)
            at = (grid @ self.linear.T + self.shifts[i, j] - (factor - 1) / 2) / factor
            out[slice(*rows), slice(*columns)] = ndimage.map_coordinates(
                image, at.transpose(2, 0, 1), order=1, mode="nearest"
            )
        return out

    def resample_labels(
        self,
        labels: np.ndarray,
        shape: tuple[int, int],
        *,
        factor: float = 1.0,
        origin: tuple[int, int] = (0, 0),
        fill: int = 0,
    ) -> np.ndarray:
        """The map on the grid of the micrograph: nearest class; where fields overlap, the one whose middle is nearer.

        Args:
            labels: (H, W) the map.
            shape: (height, width) of the result.
            factor: micrograph px per px of the result.
            origin: first pixel of the result, in px of the result.
            fill: value of what no field covers.
        """
        if tuple(labels.shape) != tuple(self.shape):
            raise UserError(f"The transform is that of a map of shape {self.shape}. Received: shape {labels.shape}")
        out = np.full(shape, fill, labels.dtype)
        nearest = np.full(shape, np.inf, np.float32)
        inverse = np.linalg.inv(self.linear)
        for (i, j), (rows, columns) in self.fields():
            corners = np.array(
                [[y, x] for y in (rows[0] - 0.5, rows[1] - 0.5) for x in (columns[0] - 0.5, columns[1] - 0.5)]
            )
            placed = ((corners @ self.linear.T + self.shifts[i, j]) - (factor - 1) / 2) / factor - origin
            low = np.clip(np.floor(placed.min(axis=0)).astype(int), 0, shape)
            high = np.clip(np.ceil(placed.max(axis=0)).astype(int) + 1, 0, shape)
            if (high <= low).any():
                continue
            y, x = (
                (np.arange(a, b) + o) * factor + (factor - 1) / 2 for a, b, o in zip(low, high, origin, strict=True)
            )
            y, x = y[:, np.newaxis] - self.shifts[i, j, 0], x - self.shifts[i, j, 1]
            row, column = (np.rint(inverse[k, 0] * y + inverse[k, 1] * x).astype(int) for k in (0, 1))
            inside = (row >= rows[0]) & (row < rows[1]) & (column >= columns[0]) & (column < columns[1])
            away = np.maximum(np.abs(row - sum(rows) / 2), np.abs(column - sum(columns) / 2)).astype(np.float32)
            block = np.s_[low[0] : high[0], low[1] : high[1]]
            wins = inside & (away < nearest[block])
            out[block][wins] = labels[row[wins], column[wins]]
            nearest[block][wins] = away[wins]
        return out

    def fields(self):
        """`(row, column), ((top, bottom), (left, right))` of every field."""
        ends = [np.append(b[1:], n) for b, n in zip(self.borders, self.shape, strict=True)]
        for i, j in np.ndindex(self.shifts.shape[:2]):
            yield (
                (i, j),
                ((int(self.borders[0][i]), int(ends[0][i])), (int(self.borders[1][j]), int(ends[1][j]))),
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "linear": self.linear.tolist(),
            "shifts": self.shifts.tolist(),
            "borders": [b.tolist() for b in self.borders],
            "shape": [int(n) for n in self.shape],
            "scale": self.scale,
            "rotation_degrees": self.rotation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """What `to_dict` gave."""
        borders = tuple(np.array(b, int) for b in values["borders"])
        return cls(
            np.array(values["linear"], float), np.array(values["shifts"], float), borders, tuple(values["shape"])
        )


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """How to align.

    Attributes:
        search: how far the start may be off, map px.
        window: edge of a window in px of its pyramid level; the finest windows are twice as large, where fields have
            room for two of them.
        levels: reductions of the map, coarse to fine; None = as the fields allow.
        rounds: repeats at the finest level.
        min_score: correlation below which a window does not count.
        ignore: class of the map that means "unknown".
    """

    search: float = 40.0
    window: int = 32
    levels: tuple[int, ...] | None = None
    rounds: int = 2
    min_score: float = 0.15
    ignore: int | None = None

    def __post_init__(self) -> None:
        check_number("search", self.search, minimum=1)
        check_number("window", self.window, minimum=8, integer=True)
        check_number("rounds", self.rounds, minimum=1, integer=True)


class Registration(NamedTuple):
    """An alignment and how good it is.

    Attributes:
        transform: map to micrograph.
        points: (N, 2) middles of the windows, map px.
        residuals: (N, 2) shift that each window still asks for, map px.
        used: (N,) bool, windows that agree with their field; the others are put down to wrong matches.
        held_out: (M,) distances of windows that took no part in the fit they are compared with, map px.
        mutual_information: of classes and grey values before and after, bit.
        expected: grey value of each class.
    """

    transform: Transform
    points: np.ndarray
    residuals: np.ndarray
    used: np.ndarray
    held_out: np.ndarray
    mutual_information: tuple[float, float]
    expected: np.ndarray

    def figures(self) -> dict[str, float]:
        """Errors in map px and the numbers of the transform, for a table."""
        own = np.hypot(*self.residuals[self.used].T)
        errors = {
            f"{name}_{kind}": float(value(of)) if len(of) else float("nan")
            for name, of in (("residual", own), ("held_out", self.held_out))
            for kind, value in (("mean", np.mean), ("p95", lambda v: np.percentile(v, 95)))
        }
        return {
            **errors,
            "windows": len(self.points),
            "windows_used": int(self.used.sum()),
            "scale": self.transform.scale,
            "rotation_degrees": self.transform.rotation,
            "mutual_information_before": self.mutual_information[0],
            "mutual_information_after": self.mutual_information[1],
        }


def align(
    sem: Any,
    labels: np.ndarray,
    *,
    borders: tuple[np.ndarray, np.ndarray] | None = None,
    initial: Transform | None = None,
    settings: AlignmentSettings | None = None,
) -> Registration:
    """Transform from a class map to a micrograph.

    Args:
        sem: (H, W) grey values, array or lazy array of any size; read once, in bands.
        labels: (h, w) classes of the map, 0 = outside the sample.
        borders: first rows and columns of the fields (`Mosaic.borders`); None = one field.
        initial: start; None = from the disc of the sample in both images.
        settings: see there.

    Raises:
        UserError: no start can be found, or too few windows match.
    """
    settings = settings or AlignmentSettings()
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(sem.shape) != 2:
        raise UserError(f"Both images need two axes. Received: shapes {tuple(sem.shape)} and {labels.shape}")
    if initial is None:
        try:
            here, there = find_disc(labels, is_mask=True), find_disc(sem)
        except UserError as error:
            raise UserError(
                f"{error} The alignment has no start; pass `initial` (scale, rotation and shift)."
            ) from error
        scale = there.radius / here.radius
        shift = np.array(there.centre) - scale * np.array(here.centre)
        initial = Transform.similarity(scale, 0.0, shift, shape=labels.shape, borders=borders)
    elif tuple(initial.shape) != labels.shape:
        raise UserError(f"`initial` is that of a map of shape {initial.shape}. Received: shape {labels.shape}")
    elif borders is not None:
        start, (rows, columns) = initial, (np.asarray(b, int) for b in borders)
        shifts = start(np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).astype(float))
        shifts -= np.stack(np.meshgrid(rows, columns, indexing="ij"), -1) @ start.linear.T
        initial = dataclasses.replace(start, shifts=shifts, borders=(rows, columns))
    factor = max(1, int(initial.scale // 2))
    small = reduce_image(sem, factor)
    if initial.scale / factor > 1.2:  # so that one map pixel is the mean of what it covers
        small = ndimage.gaussian_filter(small, initial.scale / factor / 3.5)
    classes, numbers = np.unique(labels, return_inverse=True)
    numbers = numbers.reshape(labels.shape)
    known = np.ones(len(classes), bool) if settings.ignore is None else classes != settings.ignore
    field = min(min(b - a for a, b in box) for _, box in initial.fields())
    levels = settings.levels or tuple(n for n in (16, 8, 4, 2, 1) if n == 1 or field // n >= settings.window)
    transform, expected, search = initial, None, settings.search
    before, found = None, None
    for level, _ in [(n, k) for n in levels for k in range(settings.rounds if n == 1 else 1)]:
        grey = transform.resample_sem(small, factor)
        if before is None:
            before = mutual_information(numbers, grey, known)
        found = _match(numbers, grey, transform, expected, level, max(search, 2.5 * level), settings, known)
        if (found.scores >= settings.min_score).sum() < 1:
            raise UserError(
                f"No part of the map matches the micrograph (best correlation {found.scores.max(initial=0):.2f}). "
                "Check that both show the same sample; raise `search` or pass a better `initial`."
            )
        transform, used = _fit(transform, found, settings.min_score, level)
        grey = transform.resample_sem(small, factor)
        sums = np.bincount(numbers.ravel(), grey.ravel(), len(classes))
        expected = (sums / np.bincount(numbers.ravel(), minlength=len(classes))).astype(np.float32)
        search = 2.5 * level
        _log.info("Level %d: %d of %d windows agree.", level, used.sum(), len(used))
    final = _match(numbers, grey, transform, expected, 1, 3.0, settings, known)
    _, used = _fit(transform, final, settings.min_score, 1)
    held_out = _held_out(transform, final, used, settings.min_score)
    after = mutual_information(numbers, grey, known)
    table = np.full(int(classes.max()) + 1, np.nan)
    table[classes[classes >= 0]] = expected[classes >= 0]
    return Registration(transform, final.points, final.moves, used, held_out, (before, after), table)


def mutual_information(
    classes: np.ndarray, grey: np.ndarray, known: np.ndarray | None = None, *, bins: int = 64
) -> float:
    """What classes tell about grey values, in bit; (H, W) class numbers from 0 and grey values of one shape."""
    if classes.shape != grey.shape:
        raise UserError(f"Classes and grey values must have one shape. Received: {classes.shape} and {grey.shape}")
    low, high = np.percentile(grey, (0.5, 99.5))
    level = np.clip((grey - low) / max(high - low, 1e-6) * bins, 0, bins - 1).astype(np.intp)
    count = int(classes.max()) + 1
    table = (
        np.bincount(classes.ravel() * bins + level.ravel(), minlength=count * bins).reshape(count, bins).astype(float)
    )
    if known is not None:
        table = table[known[:count]]
    table /= table.sum()
    apart = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
    some = table > 0
    return float((table[some] * np.log2(table[some] / apart[some])).sum())


class _Matches(NamedTuple):
    points: np.ndarray
    moves: np.ndarray
    scores: np.ndarray
    fields: np.ndarray


def _match(numbers, grey, transform, expected, level, search, settings, known) -> _Matches:
    """Shift of every window of the map against the grey values resampled under it, map px."""
    edge = settings.window * (level if level > 1 else 2)
    margin = max(2, int(np.ceil(search / level)))
    points, moves, scores, fields = [], [], [], []
    for field, ((top, bottom), (left, right)) in transform.fields():
        # two windows a side at least, so that every field tells about the linear part
        count = tuple(max(1, n // max(12 * level, min(edge, n // 2))) for n in (bottom - top, right - left))
        rows, columns = np.linspace(top, bottom, count[0] + 1), np.linspace(left, right, count[1] + 1)
        for y0, y1 in zip(rows[:-1].astype(int), rows[1:].astype(int), strict=True):
            for x0, x1 in zip(columns[:-1].astype(int), columns[1:].astype(int), strict=True):
                y1, x1 = y0 + (y1 - y0) // level * level, x0 + (x1 - x0) // level * level
                if min(y1 - y0, x1 - x0) < 8 * level:
                    continue
                window = numbers[y0:y1, x0:x1]
                if not known[window].mean() > 0.5 or (window != window.flat[0]).mean() < 0.02:
                    continue
                scene = _around(grey, (y0, y1), (x0, x1), margin * level, transform, field)
                move, score = _best_shift(window, _blocks(scene, level), expected, level, margin, known)
                points.append(((y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2))
                moves.append(np.array(move) * level)
                scores.append(score)
                fields.append(field)
    if not points:
        return _Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2), int))
    return _Matches(np.array(points), np.array(moves), np.array(scores), np.array(fields))


def _around(grey, rows, columns, margin, transform, field) -> np.ndarray:
    """The resampled grey values of a window and its margin, all as this field sees them.

    Beyond the border of the field the picture of another field lies there, set off; windows at the frame are padded.
    """
    out = _take(grey, rows[0] - margin, rows[1] + margin, columns[0] - margin, columns[1] + margin)
    own = transform.shifts[field]
    row0, col0 = (
        np.clip(np.searchsorted(b, (lo - margin, hi + margin - 1), side="right") - 1, 0, len(b) - 1)
        for b, (lo, hi) in zip(transform.borders, (rows, columns), strict=True)
    )
    if row0[0] == row0[1] and col0[0] == col0[1]:
        return out
    inverse = np.linalg.inv(transform.linear)
    ends = [np.append(b[1:], n + 10**6) for b, n in zip(transform.borders, transform.shape, strict=True)]
    y = np.arange(rows[0] - margin, rows[1] + margin)
    x = np.arange(columns[0] - margin, columns[1] + margin)
    for i in range(row0[0], row0[1] + 1):
        for j in range(col0[0], col0[1] + 1):
            if (i, j) == tuple(field):
                continue
            in_y = np.flatnonzero((y >= (transform.borders[0][i] if i else -(10**6))) & (y < ends[0][i]))
            in_x = np.flatnonzero((x >= (transform.borders[1][j] if j else -(10**6))) & (x < ends[1][j]))
            if not len(in_y) or not len(in_x):
                continue
            # the same place of the sample in the neighbour's rows and columns
            dy, dx = inverse @ (own - transform.shifts[i, j])
            at = np.meshgrid(y[in_y] + dy, x[in_x] + dx, indexing="ij")
            out[np.ix_(in_y, in_x)] = ndimage.map_coordinates(grey, at, order=1, mode="nearest")
    return out


def _take(grey, top, bottom, left, right) -> np.ndarray:
    rows = np.clip(np.arange(top, bottom), 0, grey.shape[0] - 1)
    columns = np.clip(np.arange(left, right), 0, grey.shape[1] - 1)
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][np.ix_(rows - rows[0], columns - columns[0])]


def _blocks(array: np.ndarray, level: int) -> np.ndarray:
    if level == 1:
        return np.asarray(array, np.float32)
    height, width = (n // level for n in array.shape)
    return (
        array[: height * level, : width * level]
        .reshape(height, level, width, level)
        .mean(axis=(1, 3), dtype=np.float32)
    )


def _best_shift(window, scene, expected, level, margin, known) -> tuple[tuple[float, float], float]:
    """Shift in px of the level, and its correlation."""
    if expected is not None:
        means = np.where(known, expected, 0)
        template = means[window]
        if not known.all():
            good = known[window]
            template = np.where(good, template, template[good].mean())
        template = _blocks(template, level)
        if template.std() < 1e-6:
            return (0.0, 0.0), 0.0
        surface = match_template(scene, template)
    else:
        squares, present = 0.0, np.bincount(window.ravel())
        for k in np.flatnonzero(present):
            share = present[k] / window.size
            indicator = _blocks((window == k).astype(np.float32), level)
            if known[k] and share > 0.005 and indicator.std() > 1e-6:
                squares = squares + (1 - share) * match_template(scene, indicator) ** 2
        if np.isscalar(squares):
            return (0.0, 0.0), 0.0
        surface = np.sqrt(squares)
    y, x = np.unravel_index(np.argmax(surface), surface.shape)
    score = float(surface[y, x])
    if not (0 < y < surface.shape[0] - 1 and 0 < x < surface.shape[1] - 1):
        return (0.0, 0.0), 0.0  # at the edge of the search: no maximum was seen
    fine = []
    for line in (surface[y - 1 : y + 2, x], surface[y, x - 1 : x + 2]):
        bend = line[0] - 2 * line[1] + line[2]
        fine.append(float(0.5 * (line[0] - line[2]) / bend) if bend < 0 else 0.0)
    return (y - margin + fine[0], x - margin + fine[1]), score


def _fit(transform: Transform, found: _Matches, min_score: float, level: int) -> tuple[Transform, np.ndarray]:
    """Linear part common to all fields, one shift per field; robust. Also which windows agree."""
    good = found.scores >= min_score
    rows, columns = transform.shifts.shape[:2]
    index = found.fields[:, 0] * columns + found.fields[:, 1]
    at = found.points @ transform.linear.T + transform.shifts[tuple(found.fields.T)]
    target = at + found.moves @ transform.linear.T
    scale = transform.scale
    linear, weights = transform.linear, np.where(good, found.scores**2, 0.0)
    base = weights.copy()
    middle = found.points.mean(axis=0)
    shifts = transform.shifts.reshape(-1, 2)
    for _ in range(12):
        # linear part: from differences within fields, held near the old one when they are few
        totals = np.bincount(index, weights, rows * columns)
        mean = np.maximum(totals, 1e-9)[:, np.newaxis]
        p_mean, q_mean = (
            np.stack([np.bincount(index, weights * v[:, a], rows * columns) for a in (0, 1)], axis=1) / mean
            for v in (found.points - middle, target)
        )
        p, q = found.points - middle - p_mean[index], target - q_mean[index]
        hold = 0.02 * level**2 * float(np.median(base[good])) * max(100.0, float(np.ptp(found.points, axis=0).max()))
        normal = (p * weights[:, None]).T @ p + hold * np.eye(2)
        linear = np.linalg.solve(normal, (p * weights[:, None]).T @ q + hold * transform.linear.T).T
        shifts = _field_shifts(found, target - found.points @ linear.T, weights, index, (rows, columns), scale)
        away = np.hypot(*(target - found.points @ linear.T - shifts[index]).T) / scale
        spread = 1.48 * float(np.median(away[good])) if good.any() else 1.0
        limit = max(4.7 * spread / 1.18, 1.0 * level)
        weights = np.where(away < limit, base * (1 - (away / limit) ** 2) ** 2, 0)
    used = good & (away < limit)
    return dataclasses.replace(transform, linear=linear, shifts=shifts.reshape(rows, columns, 2)), used


def _field_shifts(found, rest, weights, index, shape, scale) -> np.ndarray:
    """(fields, 2): the weighted mean of each field, drawn to the plane through all of them where windows are few."""
    count = shape[0] * shape[1]
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1).reshape(count, 2)
    totals = np.bincount(index, weights, count)
    own = np.stack([np.bincount(index, weights * rest[:, a], count) for a in (0, 1)], axis=1)
    own /= np.maximum(totals, 1e-9)[:, np.newaxis]
    has = totals > 0
    plane = np.zeros((count, 2))
    if has.any():
        terms = np.column_stack([np.ones(count), grid - grid[has].mean(axis=0)])
        keep = np.sqrt(totals * has)
        for _ in range(6):
            held = np.vstack([terms * keep[:, None], np.diag([0, 1e-3, 1e-3]) * keep.max()])
            slopes = np.linalg.lstsq(held, np.vstack([own * keep[:, None], np.zeros((3, 2))]), rcond=None)[0]
            plane = terms @ slopes
            away = np.hypot(*(own - plane).T) / scale
            limit = max(4.7 * 1.25 * float(np.median(away[has])), 1.0)
            keep = np.sqrt(totals * has) * np.where(away < limit, 1 - (away / limit) ** 2, 0)
    typical = float(np.median(weights[weights > 0])) if (weights > 0).any() else 1.0
    trust = (totals / (totals + 0.3 * typical))[:, np.newaxis]
    return np.where(has[:, None], trust * own + (1 - trust) * plane, plane)


def _held_out(transform: Transform, found: _Matches, used: np.ndarray, min_score: float) -> np.ndarray:
    """Distances of every other window from the fit to the rest, map px."""
    distances = []
    order = np.arange(len(used)) % 2
    for part in (0, 1):
        fit = used & (order == part)
        if fit.sum() < 3:
            continue
        subset = _Matches(*(values[fit] for values in found))
        model, _ = _fit(transform, subset, min_score, 1)
        test = used & (order != part)
        at = found.points[test] @ transform.linear.T + transform.shifts[tuple(found.fields[test].T)]
        target = at + found.moves[test] @ transform.linear.T
        away = (target - model(found.points[test])) @ np.linalg.inv(transform.linear).T
        distances.append(np.hypot(*away.T))
    return np.concatenate(distances) if distances else np.zeros(0)
