"""Average precision of scored detections, as COCO defines it, pooled over images; NumPy.

Detections are ranked by score over all images; each takes the true object of highest IoU that is still free, if that
IoU reaches the threshold. Precision is made non-increasing from the right and averaged at 101 recall values.

Reference: Lin et al. (2014), arXiv:1405.0312; the definition of the COCO detection task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.metrics.instance import overlap_table

THRESHOLDS = tuple(np.round(np.arange(0.5, 1.0, 0.05), 2).tolist())
_RECALLS = np.linspace(0, 1, 101)


class ScoredImage(NamedTuple):
    """What average precision needs of one image.

    Attributes:
        scores: (P,) of the detections.
        iou: (P, T) of detections and true objects.
        ignored: (P,) share of each detection that lies in regions to ignore.
    """

    scores: np.ndarray
    iou: np.ndarray
    ignored: np.ndarray


class AveragePrecision(NamedTuple):
    """`ap` mean over IoU 0.50 to 0.95, `ap50`, `ap75`, and `by_threshold`, one per threshold; NaN without truth."""

    ap: float
    ap50: float
    ap75: float
    by_threshold: np.ndarray


class ThresholdScores(NamedTuple):
    """Precision, recall and F1 of the detections with a score of at least `threshold`, pooled over images."""

    threshold: float
    precision: float
    recall: float
    f1: float


def scored_image(
    truth: np.ndarray, predicted: np.ndarray, scores: Sequence[float], *, ignore: np.ndarray | None = None
) -> ScoredImage:
    """From label images.

    Args:
        truth: (H, W) labels.
        predicted: (H, W) labels 1..P.
        scores: (P,) score of each label.
        ignore: (H, W) bool; detections that lie in it by more than half count neither way.

    Raises:
        UserError: more labels than scores, or shapes that differ.
    """
    scores = np.asarray(scores, np.float64)
    table = overlap_table(truth, predicted)
    if len(table.predicted_labels) and table.predicted_labels[-1] > len(scores):
        raise UserError(f"`predicted` has the label {table.predicted_labels[-1]}, but {len(scores)} scores are given.")
    iou = np.zeros((len(scores), len(table.true_labels)))
    iou[table.predicted_labels[table.predicted_index] - 1, table.true_index] = table.scores()
    ignored = np.zeros(len(scores))
    if ignore is not None and len(scores):
        counts = np.bincount(predicted.ravel(), minlength=len(scores) + 1)[1:]
        inside = np.bincount(predicted[ignore].ravel(), minlength=len(scores) + 1)[1:]
        ignored = inside / np.maximum(counts, 1)
    drawn = np.zeros(len(scores), bool)
    drawn[table.predicted_labels - 1] = True
    return ScoredImage(scores[drawn], iou[drawn], ignored[drawn])


def scored_masks(
    truth: np.ndarray,
    masks: Sequence[tuple[int, int, np.ndarray]],
    scores: Sequence[float],
    *,
    ignore: np.ndarray | None = None,
) -> ScoredImage:
    """From masks that may overlap, so that doubtful detections cover no better ones.

    Args:
        truth: (H, W) labels.
        masks: (top, left, (h, w) bool mask) of each detection, inside the image.
        scores: of each.
        ignore: see `scored_image`.
    """
    labels, flat = np.unique(truth, return_inverse=True)
    index = flat.reshape(truth.shape)
    areas = np.bincount(index.ravel(), minlength=len(labels))
    iou, ignored = np.zeros((len(masks), len(labels))), np.zeros(len(masks))
    for k, (top, left, mask) in enumerate(masks):
        window = (slice(top, top + mask.shape[0]), slice(left, left + mask.shape[1]))
        common = np.bincount(index[window][mask], minlength=len(labels))
        area = int(mask.sum())
        iou[k] = common / np.maximum(areas + area - common, 1)
        if ignore is not None and area:
            ignored[k] = np.count_nonzero(ignore[window] & mask) / area
    return ScoredImage(np.asarray(scores, np.float64), iou[:, labels != 0], ignored)


def average_precision(images: Sequence[ScoredImage], thresholds: Sequence[float] = THRESHOLDS) -> AveragePrecision:
    """COCO's average precision of all images together.

    Args:
        images: see `scored_image`.
        thresholds: IoU thresholds; `ap` is their mean, `ap50` and `ap75` need 0.5 and 0.75 among them.
    """
    if not images:
        raise UserError("Nothing to score: no image was given.")
    total = sum(image.iou.shape[1] for image in images)
    values = np.array([_ap_at(images, threshold, total) for threshold in thresholds])
    at = {round(float(t), 2): float(value) for t, value in zip(thresholds, values, strict=True)}
    return AveragePrecision(float(values.mean()), at.get(0.5, np.nan), at.get(0.75, np.nan), values)


def match_scored(image: ScoredImage, threshold: float) -> np.ndarray:
    """(P,) index of the true object of each detection, -1 without one; better scores choose first."""
    partner = np.full(len(image.scores), -1)
    free = np.ones(image.iou.shape[1], bool)
    for k in np.argsort(-image.scores, kind="stable"):
        row = np.where(free, image.iou[k], -1.0)
        best = int(row.argmax()) if len(row) else -1
        if best >= 0 and row[best] >= threshold:
            partner[k], free[best] = best, False
    return partner


def best_threshold(images: Sequence[ScoredImage], thresholds: Sequence[float], *, iou: float = 0.5) -> ThresholdScores:
    """The threshold with the best F1, the lowest of equals.

    Args:
        images: to pool.
        thresholds: to try, rising; with one this gives its scores.
        iou: from which a detection is right. Those in regions to ignore count neither way.

    Raises:
        UserError: no threshold.
    """
    if not len(thresholds):
        raise UserError("`thresholds` needs at least one score. Received: none")
    total = sum(image.iou.shape[1] for image in images)
    best: ThresholdScores | None = None
    for threshold in thresholds:
        hits = found = 0
        for image in images:
            keep = image.scores >= threshold
            part = ScoredImage(image.scores[keep], image.iou[keep], image.ignored[keep])
            is_hit = match_scored(part, iou) >= 0
            hits += int(is_hit.sum())
            found += int((is_hit | (part.ignored <= 0.5)).sum())
        scores = hits / max(found, 1), hits / max(total, 1), 2 * hits / max(found + total, 1)
        if best is None or scores[2] > best.f1:
            best = ThresholdScores(float(threshold), *scores)
    return best


def _ap_at(images: Sequence[ScoredImage], threshold: float, total: int) -> float:
    if not total:
        return float("nan")
    scores, hits = [], []
    for image in images:
        partner = match_scored(image, threshold)
        counts = (partner >= 0) | (image.ignored <= 0.5)
        scores.append(image.scores[counts])
        hits.append(partner[counts] >= 0)
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hit = np.concatenate(hits)[order]
    if not len(hit):
        return 0.0
    tp = np.cumsum(hit)
    recall, precision = tp / total, tp / np.arange(1, len(hit) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(recall, _RECALLS, side="left")
    return float(np.append(precision, 0.0)[np.minimum(place, len(precision))].mean())
