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
from typing import Any, NamedTuple

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.registration.matching import fit_transform, held_out_distances, match_windows
from keras_microseg.registration.sample import Disc, find_disc, reduce_image
from keras_microseg.registration.transform import Transform

_log = logging.getLogger(__name__)
_MOST_PIXELS = 4_000_000  # rows are left out above this where all pixels are counted


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
    sample: np.ndarray | None = None,
    settings: AlignmentSettings | None = None,
) -> Registration:
    """Transform from a class map to a micrograph.

    Args:
        sem: (H, W) grey values, array or lazy array of any size; read once, in bands.
        labels: (h, w) classes of the map, 0 = outside the sample.
        borders: first rows and columns of the fields (`Mosaic.borders`); None = one field.
        initial: start; None = from the disc of the sample in both images.
        sample: (h, w) True where the map shows the sample, for its disc; None = where `labels` is not 0.
        settings: see there.

    Raises:
        UserError: no start can be found, or too few windows match.
    """
    settings = settings or AlignmentSettings()
    labels = np.asarray(labels)
    if labels.ndim != 2 or len(sem.shape) != 2:
        raise UserError(f"Both images need two axes. Received: shapes {tuple(sem.shape)} and {labels.shape}")
    if initial is not None and tuple(initial.shape) != labels.shape:
        raise UserError(f"`initial` is that of a map of shape {initial.shape}. Received: shape {labels.shape}")
    # all work is done at half a map pixel, so that memory depends on the map and not on the micrograph
    scale = initial.scale if initial else np.sqrt(np.prod(sem.shape, dtype=float) / labels.size)
    factor = max(1, int(scale // 2))
    small = reduce_image(sem, factor)
    if initial is None:
        initial = _disc_start(small, factor, labels if sample is None else sample, borders)
    elif borders is not None:
        initial = initial.with_borders(borders)
    if initial.scale / factor > 1.2:  # so that one map pixel is the mean of what it covers
        ndimage.gaussian_filter(small, initial.scale / factor / 3.5, output=small)
    classes, numbers = _number_classes(labels)
    known = np.ones(len(classes), bool) if settings.ignore is None else classes != settings.ignore
    field = min(min(b - a for a, b in box) for _, box in initial.fields())
    levels = settings.levels or tuple(n for n in (16, 8, 4, 2, 1) if n == 1 or field // n >= settings.window)
    transform, expected, search = initial, None, settings.search
    before, found = None, None
    for level, _ in [(n, k) for n in levels for k in range(settings.rounds if n == 1 else 1)]:
        grey = transform.resample_sem(small, factor)
        if before is None:
            before = mutual_information(numbers, grey, known)
        reach = max(search, 2.5 * level)
        found = match_windows(numbers, grey, transform, expected, level, reach, settings.window, known)
        if (found.scores >= settings.min_score).sum() < 1:
            raise UserError(
                f"No part of the map matches the micrograph (best correlation {found.scores.max(initial=0):.2f}). "
                "Check that both show the same sample; raise `search` or pass a better `initial`."
            )
        transform, used = fit_transform(transform, found, settings.min_score, level)
        grey = transform.resample_sem(small, factor)
        expected = _mean_greys(numbers, grey, len(classes))
        search = 2.5 * level
        _log.info("Level %d: %d of %d windows agree.", level, used.sum(), len(used))
    final = match_windows(numbers, grey, transform, expected, 1, 3.0, settings.window, known)
    _, used = fit_transform(transform, final, settings.min_score, 1)
    held_out = held_out_distances(transform, final, used, settings.min_score)
    after = mutual_information(numbers, grey, known)
    table = np.full(int(classes.max()) + 1, np.nan)
    table[classes[classes >= 0]] = expected[classes >= 0]
    return Registration(transform, final.points, final.moves, used, held_out, (before, after), table)


def _disc_start(small: np.ndarray, factor: int, sample: np.ndarray, borders: Any) -> Transform:
    """Scale and shift from the sample's disc in both images; no rotation."""
    try:
        here, there = find_disc(sample, is_mask=True), find_disc(small)
    except UserError as error:
        raise UserError(f"{error} The alignment has no start; pass `initial` (scale, rotation and shift).") from error
    there = Disc(
        tuple(c * factor + (factor - 1) / 2 for c in there.centre), there.radius * factor, 0.0, there.background
    )
    scale = there.radius / here.radius
    shift = np.array(there.centre) - scale * np.array(here.centre)
    return Transform.similarity(scale, 0.0, shift, shape=sample.shape, borders=borders)


def _number_classes(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The classes that occur, and the map as indices of them in the smallest type."""
    if labels.dtype == np.uint8:
        classes = np.flatnonzero(np.bincount(labels.ravel(), minlength=256))
        table = np.zeros(256, np.uint8)
        table[classes] = np.arange(len(classes))
        return classes, table[labels]
    classes, numbers = np.unique(labels, return_inverse=True)
    return classes, numbers.reshape(labels.shape).astype(np.min_scalar_type(len(classes)))


def _mean_greys(numbers: np.ndarray, grey: np.ndarray, count: int) -> np.ndarray:
    sums, pixels = np.zeros(count), np.zeros(count)
    for row, values in zip(numbers, grey, strict=True):
        sums += np.bincount(row, values, count)
        pixels += np.bincount(row, minlength=count)
    return (sums / np.maximum(pixels, 1)).astype(np.float32)


def mutual_information(
    classes: np.ndarray, grey: np.ndarray, known: np.ndarray | None = None, *, bins: int = 64
) -> float:
    """What classes tell about grey values, in bit; (H, W) class numbers from 0 and grey values of one shape."""
    if classes.shape != grey.shape:
        raise UserError(f"Classes and grey values must have one shape. Received: {classes.shape} and {grey.shape}")
    step = max(1, round(classes.size / _MOST_PIXELS))
    classes, grey = classes[::step], grey[::step]
    low, high = np.percentile(grey, (0.5, 99.5))
    level = np.clip((grey - low) / max(high - low, 1e-6) * bins, 0, bins - 1).astype(np.intp)
    count = int(classes.max()) + 1
    table = (
        np.bincount(classes.ravel().astype(np.intp) * bins + level.ravel(), minlength=count * bins)
        .reshape(count, bins)
        .astype(float)
    )
    if known is not None:
        table = table[known[:count]]
    table /= table.sum()
    apart = table.sum(axis=1, keepdims=True) * table.sum(axis=0, keepdims=True)
    some = table > 0
    return float((table[some] * np.log2(table[some] / apart[some])).sum())
