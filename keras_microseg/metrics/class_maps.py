"""Scores of class maps: one confusion matrix per block, then everything from sums of them.

Pixels whose true class is not known count nowhere. Rows are truth, columns prediction.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.metrics.pixel import (
    BoundaryCounts,
    Counts,
    boundary_f1,
    confusion_matrix,
    count_boundary,
    dice,
    iou,
    precision,
    recall,
)


@dataclasses.dataclass(frozen=True)
class MapTally:
    """What one or several compared maps say; two can be added.

    Attributes:
        blocks: (B, K, K) int64 confusion matrix of each block.
        boundary: per class the counts of contour pixels.
        bands: tolerance in px -> (K, K) confusion matrix without the pixels that near to a boundary of the truth.
    """

    blocks: np.ndarray
    boundary: tuple[BoundaryCounts, ...]
    bands: dict[int, np.ndarray]

    def __add__(self, other: MapTally) -> MapTally:
        return MapTally(
            np.concatenate([self.blocks, other.blocks]),
            tuple(a + b for a, b in zip(self.boundary, other.boundary, strict=True)),
            {t: self.bands[t] + other.bands[t] for t in self.bands},
        )

    @property
    def matrix(self) -> np.ndarray:
        """(K, K) int64 confusion matrix of all blocks."""
        return self.blocks.sum(axis=0)


class MapScores(NamedTuple):
    """Scores of class maps.

    Attributes:
        overall: name -> value: `mean_iou` and `mean_dice` over the classes that occur in the truth, `weighted_iou`,
            `accuracy`, `kappa`, `mcc`, `boundary_f1`, `mean_iou_band_T`, and `mean_iou_low`, `_high`, `accuracy_low`,
            `_high` from the bootstrap.
        classes: one row per class: IoU with interval, Dice, precision, recall, boundary F1, fractions, their errors.
    """

    overall: dict[str, float]
    classes: pd.DataFrame


def tally_maps(
    truth: np.ndarray,
    predicted: np.ndarray,
    num_classes: int,
    *,
    block: int = 128,
    tolerances: Sequence[int] = (1, 2, 4),
    boundary_tolerance: float = 2.0,
) -> MapTally:
    """Compare two class maps.

    Args:
        truth, predicted: (H, W) class numbers 0..K-1; other numbers in `truth` are not judged.
        num_classes: K.
        block: edge of the blocks that the bootstrap draws, px; several times the size of a grain.
        tolerances: widths of the bands along boundaries of the truth that are left out, px.
        boundary_tolerance: see `metrics.pixel.count_boundary`.

    Raises:
        UserError: shapes differ, or `predicted` holds a number that is no class.
    """
    truth, predicted = np.asarray(truth), np.asarray(predicted)
    if truth.shape != predicted.shape:
        raise UserError(f"`truth` and `predicted` must have one shape. Received: {truth.shape} and {predicted.shape}")
    check_number("block", block, minimum=1, integer=True)
    blocks = [
        confusion_matrix(truth[y : y + block, x : x + block], predicted[y : y + block, x : x + block], num_classes)
        for y in range(0, truth.shape[0], block)
        for x in range(0, truth.shape[1], block)
    ]
    known = (truth >= 0) & (truth < num_classes)
    contours = tuple(
        count_boundary(known & (truth == k), known & (predicted == k), boundary_tolerance) for k in range(num_classes)
    )
    edges = np.zeros(truth.shape, bool)
    edges[:-1] |= truth[:-1] != truth[1:]
    edges[1:] |= truth[:-1] != truth[1:]
    edges[:, :-1] |= truth[:, :-1] != truth[:, 1:]
    edges[:, 1:] |= truth[:, :-1] != truth[:, 1:]
    away = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(truth.shape, np.inf)
    bands = {}
    for tolerance in tolerances:
        far = away >= tolerance  # contour pixels are at 0
        bands[int(tolerance)] = confusion_matrix(truth[far], predicted[far], num_classes)
    kept = [table for table in blocks if table.any()] or blocks[:1]
    return MapTally(np.stack(kept), contours, bands)


def score_maps(
    tally: MapTally, names: Sequence[str], *, resamples: int = 500, level: float = 0.95, seed: int = 0
) -> MapScores:
    """All scores.

    Args:
        tally: sum over the maps.
        names: of the classes.
        resamples: draws of the bootstrap: blocks are drawn with replacement, so that the pixels of one grain stay
            together; 0 = no intervals.
        level: of the intervals.
        seed: of the draws.
    """
    table = tally.matrix
    counts = counts_of(table)
    present = table.sum(axis=1) > 0
    ious = iou(counts, "none")
    total = max(table.sum(), 1)
    true, found = table.sum(axis=1) / total, table.sum(axis=0) / total
    contours = [boundary_f1(one) for one in tally.boundary]
    overall = {
        "mean_iou": _mean(ious, present),
        "mean_dice": _mean(dice(counts, "none"), present),
        "weighted_iou": float((true * ious).sum()),
        "accuracy": float(np.trace(table) / total),
        "kappa": kappa(table),
        "mcc": matthews(table),
        "boundary_f1": _mean(np.array(contours), present),
    }
    for tolerance, band in tally.bands.items():
        overall[f"mean_iou_band_{tolerance}"] = _mean(iou(counts_of(band), "none"), band.sum(axis=1) > 0)
    low = high = np.full(len(names), np.nan)
    if resamples:
        rng = np.random.default_rng(seed)
        number = len(tally.blocks)
        draws = rng.multinomial(number, np.full(number, 1 / number), size=resamples)
        tables = np.tensordot(draws, tally.blocks, axes=1)
        limits = [50 * (1 - level), 50 * (1 + level)]
        values = np.array([iou(counts_of(one), "none") for one in tables])
        low, high = np.percentile(values, limits, axis=0)
        means = [_mean(v, one.sum(axis=1) > 0) for v, one in zip(values, tables, strict=True)]
        right = np.trace(tables, axis1=1, axis2=2) / np.maximum(tables.sum(axis=(1, 2)), 1)
        for name, drawn in (("mean_iou", means), ("accuracy", right)):
            overall[f"{name}_low"], overall[f"{name}_high"] = (float(v) for v in np.percentile(drawn, limits))
    classes = pd.DataFrame(
        {
            "class": list(names),
            "iou": ious,
            "iou_low": low,
            "iou_high": high,
            "dice": dice(counts, "none"),
            "precision": precision(counts, "none"),
            "recall": recall(counts, "none"),
            "boundary_f1": contours,
            "true_fraction": true,
            "predicted_fraction": found,
            "error_points": 100 * (found - true),
            "relative_error": np.where(true > 0, (found - true) / np.where(true > 0, true, 1), np.nan),
        }
    )
    return MapScores(overall, classes)


def counts_of(table: np.ndarray) -> Counts:
    """Counts per class of a confusion matrix, for the scores of `metrics.pixel`."""
    tp = np.diagonal(table)
    fp, fn = table.sum(axis=0) - tp, table.sum(axis=1) - tp
    return Counts(tp, fp, fn, table.sum() - tp - fp - fn)


def kappa(table: np.ndarray) -> float:
    """Cohen's kappa (1960): agreement beyond that of independent maps with these fractions; 1 if both are one class."""
    table = np.asarray(table, float)
    total = table.sum()
    if not total:
        return float("nan")
    chance = float((table.sum(axis=0) * table.sum(axis=1)).sum() / total**2)
    return 1.0 if chance == 1 else float((np.trace(table) / total - chance) / (1 - chance))


def matthews(table: np.ndarray) -> float:
    """Matthews' correlation of K classes (Gorodkin 2004), -1..1; 0 when one of the maps is a single class."""
    table = np.asarray(table, float)
    total, right = table.sum(), np.trace(table)
    true, found = table.sum(axis=1), table.sum(axis=0)
    spread = np.sqrt(total**2 - (true**2).sum()) * np.sqrt(total**2 - (found**2).sum())
    return float((right * total - (true * found).sum()) / spread) if spread > 0 else 0.0


def _mean(values: np.ndarray, chosen: np.ndarray) -> float:
    return float(np.mean(values[chosen])) if chosen.any() else float("nan")
