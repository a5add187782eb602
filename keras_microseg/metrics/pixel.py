"""Scores of masks and class maps: count once, then score many ways.

`count` gives true and false positives and negatives per class; they add up over images, and every score is a one-line
formula of them. A score whose denominator is 0 is 1 when nothing was to be found and nothing was found, else 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number

AVERAGES = ("none", "macro", "micro", "weighted")


@dataclasses.dataclass(frozen=True)
class Counts:
    """Pixels by outcome, one entry per class; two `Counts` can be added.

    Attributes:
        tp, fp, fn, tn: (num_classes,) int64 true positives, false positives, false negatives, true negatives.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, name) + getattr(other, name) for name in ("tp", "fp", "fn", "tn")))


def count(truth: np.ndarray, predicted: np.ndarray, *, num_classes: int | None = None) -> Counts:
    """Compare two masks or two class maps pixel by pixel.

    Args:
        truth, predicted: arrays of one shape. Without `num_classes`: masks, non-zero = object, counted as one class.
            With it: class numbers 0..num_classes - 1; other numbers in `truth` (255, -1) mark pixels to leave out.
        num_classes: number of classes, background included.

    Raises:
        UserError: shapes differ, or `predicted` holds a number that is no class.
    """
    classes = 2 if num_classes is None else check_number("num_classes", num_classes, minimum=1, integer=True)
    if num_classes is None:
        truth, predicted = np.asarray(truth) != 0, np.asarray(predicted) != 0
    counts = counts_of(confusion_matrix(truth, predicted, classes))
    return Counts(counts.tp[1:], counts.fp[1:], counts.fn[1:], counts.tn[1:]) if num_classes is None else counts


def counts_of(table: np.ndarray) -> Counts:
    """The counts that a table (K, K) of true x predicted pixels holds."""
    tp = np.diagonal(table)
    fp, fn = table.sum(axis=0) - tp, table.sum(axis=1) - tp
    return Counts(tp, fp, fn, table.sum() - tp - fp - fn)


def confusion_matrix(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """How often each true class was called each class.

    Args:
        truth, predicted: class numbers 0..num_classes - 1, of one shape: class maps, or one number per object. Other
            numbers in `truth` (255, -1) are left out.
        num_classes: number of classes, background included.

    Returns:
        (num_classes, num_classes) int64; row = truth, column = prediction.

    Raises:
        UserError: shapes differ, or `predicted` holds a number that is no class.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise UserError(f"`truth` and `predicted` must have one shape. Received: {truth.shape} and {predicted.shape}")
    judged = (truth >= 0) & (truth < num_classes)
    truth, predicted = truth[judged], predicted[judged]
    if predicted.size and not (0 <= predicted.min() and predicted.max() < num_classes):
        raise UserError(
            f"`predicted` must hold class numbers 0..{num_classes - 1}. Received: {predicted.min()}..{predicted.max()}"
        )
    keys = truth.astype(np.int64).ravel() * num_classes + predicted.astype(np.int64).ravel()
    return np.bincount(keys, minlength=num_classes**2).reshape(num_classes, num_classes)


def balanced_accuracy(table: np.ndarray) -> float:
    """Mean over the classes that occur of the share called rightly, of a `confusion_matrix`; NaN without any."""
    table = np.asarray(table)
    total = table.sum(axis=1)
    return float(np.mean(np.diagonal(table)[total > 0] / total[total > 0])) if total.any() else float("nan")


def pool(counts: Iterable[Counts]) -> Counts:
    """Sum of the counts of several images."""
    counts = list(counts)
    if not counts:
        raise UserError("Nothing to pool: no image was counted.")
    return sum(counts[1:], start=counts[0])


def iou(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Intersection over union (Jaccard): tp / (tp + fp + fn)."""
    return _score(counts, average, lambda c: _ratio(c.tp, c.tp + c.fp + c.fn, c))


def dice(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Dice coefficient (F1): 2 tp / (2 tp + fp + fn)."""
    return _score(counts, average, lambda c: _ratio(2 * c.tp, 2 * c.tp + c.fp + c.fn, c))


def precision(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Share of predicted pixels that are true: tp / (tp + fp)."""
    return _score(counts, average, lambda c: _ratio(c.tp, c.tp + c.fp, c))


def recall(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Share of true pixels that are predicted (sensitivity, true positive rate): tp / (tp + fn)."""
    return _score(counts, average, lambda c: _ratio(c.tp, c.tp + c.fn, c))


def specificity(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Share of true background that is predicted as such (true negative rate): tn / (tn + fp)."""
    return _score(counts, average, lambda c: np.where(c.tn + c.fp > 0, c.tn / np.maximum(c.tn + c.fp, 1), 1.0))


def accuracy(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Share of pixels judged rightly: (tp + tn) / (tp + fp + fn + tn); of several classes, each against the rest."""
    return _score(counts, average, lambda c: _ratio(c.tp + c.tn, c.tp + c.fp + c.fn + c.tn, c))


def youden(counts: Counts, average: str = "macro") -> float | np.ndarray:
    """Youden's index: recall + specificity - 1, from -1 to 1; 0 is chance (Youden 1950)."""
    return _score(counts, average, lambda c: recall(c, "none") + specificity(c, "none") - 1)


@dataclasses.dataclass(frozen=True)
class BoundaryCounts:
    """Contour pixels of truth and prediction and how many lie near the other's contour; can be added."""

    true: int
    true_found: int
    predicted: int
    predicted_found: int

    def __add__(self, other: BoundaryCounts) -> BoundaryCounts:
        return BoundaryCounts(
            *(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True))
        )


def count_boundary(truth: np.ndarray, predicted: np.ndarray, tolerance: float = 2.0) -> BoundaryCounts:
    """Compare contours.

    A contour pixel belongs to an object and has a 4-neighbour of another label (another object or background); the
    image frame makes no contour.

    Args:
        truth, predicted: masks or label images of one shape.
        tolerance: largest distance to a contour pixel of the other image, in pixels.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise UserError(f"`truth` and `predicted` must have one shape. Received: {truth.shape} and {predicted.shape}")
    check_number("tolerance", tolerance, minimum=0)
    contours = _contour(truth), _contour(predicted)
    found = []
    for contour, other in (contours, contours[::-1]):
        near = ndimage.distance_transform_edt(~other) <= tolerance if other.any() else np.zeros(other.shape, bool)
        found.append((int(contour.sum()), int((contour & near).sum())))
    return BoundaryCounts(*found[0], *found[1])


def boundary_f1(counts: BoundaryCounts) -> float:
    """Harmonic mean of the shares of true and of predicted contour pixels that lie near the other (Csurka et al. 2013).

    1 when neither image has a contour.
    """
    if not counts.true and not counts.predicted:
        return 1.0
    found = counts.true_found / max(counts.true, 1), counts.predicted_found / max(counts.predicted, 1)
    return 2 * found[0] * found[1] / sum(found) if sum(found) else 0.0


def _contour(labels: np.ndarray) -> np.ndarray:
    contour = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        here, there = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        differs = here != there
        rim = np.moveaxis(contour, axis, 0)
        rim[:-1] |= differs
        rim[1:] |= differs
    return contour & (labels != 0)


def _ratio(numerator: np.ndarray, denominator: np.ndarray, counts: Counts) -> np.ndarray:
    empty = np.where(counts.tp + counts.fp + counts.fn == 0, 1.0, 0.0)
    return np.where(denominator > 0, numerator / np.maximum(denominator, 1), empty)


def _score(counts: Counts, average: str, formula: Callable[[Counts], np.ndarray]) -> float | np.ndarray:
    """Apply a formula per class, then average.

    `none`: one value per class; `macro`: their mean; `micro`: of the summed counts; `weighted`: by true pixels.
    """
    check_choice("average", average, AVERAGES)
    if average == "micro":
        counts = Counts(*(np.atleast_1d(np.sum(getattr(counts, name))) for name in ("tp", "fp", "fn", "tn")))
    values = np.asarray(formula(counts), np.float64)
    if average == "none":
        return values
    if average == "weighted":
        weights = counts.tp + counts.fn
        return float(np.average(values, weights=weights)) if weights.sum() else float(values.mean())
    return float(values.mean())
