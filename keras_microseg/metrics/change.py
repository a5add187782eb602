"""Scores of masks over a video: the published macro F1 exactly, and beside it what that number hides.

The published score is the plain mean of the F1 of carbon and of background. Background covers 90 to 99 % of a frame and
scores about 0.995 whatever happens to the filament, and a frame without carbon scores 0.5 even when nothing was
predicted. The other scores look at carbon only, count an empty frame found empty as right, and say by how much areas
and volumes (what kinetics uses) are wrong.

Reference: Niu et al. (2026), MultiTaskDeltaNet, Digital Discovery, doi 10.1039/d5dd00333d; code of its metric in
github.com/niuyushuo/MultiTaskDeltaNet (`misc/metric_tool.py`).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_choice
from keras_microseg.image import PixelSize
from keras_microseg.metrics.pixel import confusion_matrix
from keras_microseg.metrics.surface import score_surfaces

PUBLISHED_EPS = 1.1920929e-7
EMPTY_RULES = ("perfect", "published")


def published_f1(matrix: np.ndarray) -> float:
    """Macro F1 as published: the mean over the classes of 2 r p / (r + p + eps).

    Recall r = tp / (row + eps), precision p = tp / (column + eps), eps = `PUBLISHED_EPS`. A class that is
    neither there nor predicted counts 0.

    Args:
        matrix: (K, K) counts, row = truth, column = prediction. Add matrices for pooled scores.
    """
    matrix = np.asarray(matrix, np.float64)
    tp = np.diagonal(matrix)
    recall = tp / (matrix.sum(axis=1) + PUBLISHED_EPS)
    precision = tp / (matrix.sum(axis=0) + PUBLISHED_EPS)
    return float(np.mean(2 * recall * precision / (recall + precision + PUBLISHED_EPS)))


def frame_matrices(truth: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """(N, 2, 2) int64 confusion matrices of masks (N, H, W); class 1 = carbon, row = truth."""
    truth, predicted = np.asarray(truth) != 0, np.asarray(predicted) != 0
    if truth.shape != predicted.shape or truth.ndim != 3:
        raise UserError(
            f"`truth` and `predicted` must be (frame, y, x) of one shape. Received: {truth.shape} and {predicted.shape}"
        )
    both = np.count_nonzero(truth & predicted, axis=(1, 2))
    of_truth, of_predicted = np.count_nonzero(truth, axis=(1, 2)), np.count_nonzero(predicted, axis=(1, 2))
    size = truth.shape[1] * truth.shape[2]
    cells = [size - of_truth - of_predicted + both, of_predicted - both, of_truth - both, both]
    return np.stack(cells, axis=1).reshape(-1, 2, 2).astype(np.int64)


def change_matrix(truth: np.ndarray, predicted: np.ndarray, pairs: np.ndarray | None = None) -> np.ndarray:
    """(4, 4) confusion matrix of the change maps 2 f + g of frame pairs, made from masks.

    Args:
        truth, predicted: (N, H, W) masks.
        pairs: (P, 2) indices of first and second frame; None = all N^2.
    """
    truth, predicted = np.asarray(truth, bool), np.asarray(predicted, bool)
    if pairs is None:
        pairs = np.stack(np.meshgrid(np.arange(len(truth)), np.arange(len(truth)), indexing="ij"), -1).reshape(-1, 2)
    total = np.zeros((4, 4), np.int64)
    for first, second in np.asarray(pairs):
        maps = [2 * masks[first].astype(np.int64) + masks[second] for masks in (truth, predicted)]
        total += confusion_matrix(*maps, 4)
    return total


def distance_95(truth: np.ndarray, predicted: np.ndarray, sampling: float | tuple[float, ...] = 1.0) -> float:
    """95th percentile of the distances between two outlines, the larger of both directions (HD95).

    Distances run from every outline pixel of one mask to the nearest outline pixel of the other; an outline pixel is a
    mask pixel with a 4-connected neighbour outside (the image edge is outside).

    Args:
        truth, predicted: (H, W) masks.
        sampling: pixel edge length, per axis or one.

    Returns:
        0 when both are empty, NaN when one is.
    """
    return score_surfaces(truth, predicted, sampling).hausdorff_95


@dataclasses.dataclass(frozen=True)
class ChangeScores:
    """Scores of one task over one video (or several, joined by `join_scores`).

    Attributes:
        frames: one row per frame: `video`, `frame`, `area_true`, `area_predicted` (px), `published_f1`,
            `foreground_f1`, `iou`, `hd95` (in `unit`; NaN when one of the masks is empty).
        matrix: (2, 2) pooled counts, class 1 = carbon, row = truth.
        unit: unit of `hd95`.
    """

    frames: pd.DataFrame
    matrix: np.ndarray
    unit: str = "px"

    @property
    def published_f1(self) -> float:
        """Macro F1 of the pooled counts, as published per video and per split."""
        return published_f1(self.matrix)

    @property
    def published_f1_frames(self) -> float:
        """Mean over the frames of the published score of each."""
        return float(self.frames["published_f1"].mean())

    @property
    def precision(self) -> float:
        return _share(self.matrix[1, 1], self.matrix[:, 1].sum(), self.matrix[1].sum())

    @property
    def recall(self) -> float:
        return _share(self.matrix[1, 1], self.matrix[1].sum(), self.matrix[:, 1].sum())

    @property
    def foreground_f1(self) -> float:
        """F1 (Dice) of carbon, pooled over all pixels; 1 when there is none and none was predicted."""
        return _share(2 * self.matrix[1, 1], self.matrix[1].sum() + self.matrix[:, 1].sum(), 0)

    @property
    def foreground_f1_frames(self) -> float:
        """Mean over the frames of the F1 of carbon; an empty frame found empty counts 1."""
        return float(self.frames["foreground_f1"].mean())

    @property
    def iou(self) -> float:
        return _share(self.matrix[1, 1], self.matrix.sum() - self.matrix[0, 0], 0)

    @property
    def hd95(self) -> float:
        """Mean HD95 over the frames in which both masks hold carbon or neither does."""
        return float(np.nanmean(self.frames["hd95"])) if self.frames["hd95"].notna().any() else float("nan")

    @property
    def empty_mismatches(self) -> int:
        """Frames in which one of the masks is empty and the other is not; HD95 has no value there."""
        return int(self.frames["hd95"].isna().sum())

    @property
    def area_bias(self) -> float:
        """(sum of predicted areas - sum of true areas) / sum of true areas."""
        truth = self.frames["area_true"].sum()
        return float((self.frames["area_predicted"].sum() - truth) / truth) if truth else float("nan")

    @property
    def area_error(self) -> float:
        """Mean absolute area error relative to the first true area of the video."""
        return _relative_error(self.frames, "area_true", "area_predicted")

    def summary(self) -> dict[str, float]:
        """All scores by name."""
        names = (
            "published_f1", "published_f1_frames", "foreground_f1", "foreground_f1_frames", "precision", "recall",
            "iou", "hd95", "area_error", "area_bias",
        )  # fmt: skip
        return {**{name: float(getattr(self, name)) for name in names}, "empty_mismatches": self.empty_mismatches}


def score_masks(
    truth: np.ndarray,
    predicted: np.ndarray,
    *,
    frames: np.ndarray | None = None,
    video: str = "",
    pixel_size: PixelSize | None = None,
    empty: str = "perfect",
    distances: bool = True,
) -> ChangeScores:
    """Score the masks of one task over one video.

    Args:
        truth, predicted: (N, H, W) masks, True = carbon.
        frames: (N,) frame numbers for the table; default 0, 1, ...
        video: name for the table.
        pixel_size: HD95 comes in its unit; None = px.
        empty: F1 and IoU of carbon in a frame where truth and prediction are both empty: `"perfect"` = 1, `"published"`
            = 0 as in the source. (The published macro F1 always follows the source.)
        distances: compute HD95 (the slow part).

    Raises:
        UserError: shapes differ.
    """
    check_choice("empty", empty, EMPTY_RULES)
    matrices = frame_matrices(truth, predicted)
    tn, fp, fn, tp = matrices.reshape(-1, 4).T.astype(np.float64)
    nothing = 1.0 if empty == "perfect" else 0.0
    filled = tp + fp + fn > 0
    f1 = np.where(filled, 2 * tp / np.maximum(2 * tp + fp + fn, 1), nothing)
    iou = np.where(filled, tp / np.maximum(tp + fp + fn, 1), nothing)
    sampling = 1.0 if pixel_size is None else pixel_size.size[-2:]
    hd95 = [distance_95(t, p, sampling) if distances else np.nan for t, p in zip(truth, predicted, strict=True)]
    table = pd.DataFrame(
        {
            "video": video,
            "frame": np.arange(len(matrices)) if frames is None else np.asarray(frames, np.int64),
            "area_true": (tp + fn).astype(np.int64),
            "area_predicted": (tp + fp).astype(np.int64),
            "published_f1": [published_f1(matrix) for matrix in matrices],
            "foreground_f1": f1,
            "iou": iou,
            "hd95": np.asarray(hd95, np.float64),
        }
    )
    return ChangeScores(table, matrices.sum(axis=0), "px" if pixel_size is None else pixel_size.unit)


def join_scores(scores: list[ChangeScores]) -> ChangeScores:
    """The scores over several videos together: counts are added (the source's "pooled" score of a split)."""
    if not scores:
        raise UserError("Nothing to score: no video was passed.")
    units = {one.unit for one in scores}
    if len(units) > 1:
        raise UserError(f"Videos have pixel sizes in different units ({', '.join(sorted(units))}).")
    tables = pd.concat([one.frames for one in scores], ignore_index=True)
    return ChangeScores(tables, np.sum([one.matrix for one in scores], axis=0), units.pop())


def volume_error(truth: Any, predicted: Any) -> float:
    """Mean absolute error of a quantity over time relative to its first true value; NaN when that is 0.

    Args:
        truth, predicted: (N,) values, for example wall volumes.
    """
    truth, predicted = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    return float(np.mean(np.abs(predicted - truth)) / truth[0]) if len(truth) and truth[0] else float("nan")


def _relative_error(table: pd.DataFrame, truth: str, predicted: str) -> float:
    parts = [(volume_error(rows[truth], rows[predicted]), len(rows)) for _, rows in table.groupby("video", sort=False)]
    values, weights = np.array([v for v, _ in parts]), np.array([w for _, w in parts])
    known = np.isfinite(values)
    return float(np.average(values[known], weights=weights[known])) if known.any() else float("nan")


def _share(part: float, whole: float, other: float) -> float:
    """`part / whole`; with nothing in `whole`: 1 when `other` is 0 too, else 0."""
    return float(part / whole) if whole else float(other == 0)
