"""Scores of instance label images: one sparse overlap table, then many ways to count it.

Label images hold integers, 0 = background; ids need be neither consecutive nor in the same order. Wherever a function
takes `(truth, predicted)` it accepts two label images, two equally long sequences of label images (counts are pooled
over the images before a ratio is formed), or, as `truth` alone, one `OverlapTable` or a sequence of them, so that the
pixels are read once however many scores are wanted.

A true and a predicted object *match* when their score is greater than the threshold; each object is used at most once.
Nothing to find and nothing found scores 1; otherwise a ratio without a denominator scores 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.segmentation.slice_graph import assign_pairs

CRITERIA = ("iou", "iot", "iop")
AP_THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


class OverlapTable(NamedTuple):
    """Common areas of every true and predicted object that touch the same pixels, as a sparse table.

    Attributes:
        true_labels: (T,) int64 ascending ids of the true objects.
        predicted_labels: (P,) int64 ascending ids of the predicted objects.
        true_areas: (T,) int64 pixels per true object.
        predicted_areas: (P,) int64 pixels per predicted object.
        true_index: (K,) index into `true_labels` of each overlapping pair, ascending.
        predicted_index: (K,) index into `predicted_labels`.
        overlap: (K,) int64 common pixels, all > 0.
    """

    true_labels: np.ndarray
    predicted_labels: np.ndarray
    true_areas: np.ndarray
    predicted_areas: np.ndarray
    true_index: np.ndarray
    predicted_index: np.ndarray
    overlap: np.ndarray

    def scores(self, criterion: str = "iou") -> np.ndarray:
        """(K,) float64 score of each overlapping pair.

        Args:
            criterion: `"iou"` |t AND p| / |t OR p|; `"iot"` |t AND p| / |t|; `"iop"` |t AND p| / |p|.
        """
        check_choice("criterion", criterion, CRITERIA)
        true_area, predicted_area = self.true_areas[self.true_index], self.predicted_areas[self.predicted_index]
        if criterion == "iot":
            return self.overlap / true_area
        if criterion == "iop":
            return self.overlap / predicted_area
        return self.overlap / (true_area + predicted_area - self.overlap)

    def transposed(self) -> OverlapTable:
        """The table with truth and prediction exchanged."""
        order = np.lexsort((self.true_index, self.predicted_index))
        pairs = self.predicted_index[order], self.true_index[order], self.overlap[order]
        return OverlapTable(self.predicted_labels, self.true_labels, self.predicted_areas, self.true_areas, *pairs)


class Match(NamedTuple):
    """Outcome of `match`.

    Attributes:
        tp, fp, fn: matched pairs, predicted objects without and true objects without a partner.
        precision: tp / (tp + fp).
        recall: tp / (tp + fn).
        f1: 2 tp / (2 tp + fp + fn).
        accuracy: tp / (tp + fp + fn), the average precision at one threshold in the sense of StarDist and DSB 2018.
        mean_iou: mean score of the matched pairs (segmentation quality); 0 without any.
        panoptic_quality: `mean_iou * f1` (Kirillov et al. 2019; that paper asks for the criterion IoU > 0.5).
        pairs: (tp, 2) int64 labels (true, predicted); when pooled, (image, true, predicted).
        pair_scores: (tp,) float64 score of each pair.
        threshold, criterion: as asked for.
    """

    tp: int
    fp: int
    fn: int
    precision: float
    recall: float
    f1: float
    accuracy: float
    mean_iou: float
    panoptic_quality: float
    pairs: np.ndarray
    pair_scores: np.ndarray
    threshold: float
    criterion: str


class SplitMerge(NamedTuple):
    """Outcome of `count_split_merge`: numbers of objects."""

    split: int
    merged: int
    missed: int
    spurious: int


class Interval(NamedTuple):
    """A value and the limits of its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def overlap_table(truth: np.ndarray, predicted: np.ndarray) -> OverlapTable:
    """Count the common pixels of all pairs of objects in one pass over the pixels.

    Pixels are first gathered into runs of constant (truth, predicted), so the cost is a comparison of neighbours plus
    a sort of the runs, whatever the ids.

    Args:
        truth, predicted: integer or boolean label images of one shape, any number of axes; 0 is background.

    Raises:
        UserError: shapes differ, labels are not integers, or are negative.
    """
    truth, predicted = _check_labels(truth, "truth"), _check_labels(predicted, "predicted")
    if truth.shape != predicted.shape:
        raise UserError(
            f"`truth` and `predicted` must have one shape. Received: truth {truth.shape}, predicted {predicted.shape}"
        )
    truth, predicted = truth.ravel(), predicted.ravel()
    changes = truth[1:] != truth[:-1]
    changes |= predicted[1:] != predicted[:-1]
    starts = np.concatenate([np.zeros(min(1, truth.size), np.int64), np.flatnonzero(changes) + 1])
    lengths = np.diff(starts, append=truth.size)
    true_runs, predicted_runs = truth[starts].astype(np.int64), predicted[starts].astype(np.int64)
    occupied = (true_runs != 0) | (predicted_runs != 0)
    lengths = lengths[occupied]
    true_labels, true_of_run, true_areas = _index_runs(true_runs[occupied], lengths)
    predicted_labels, predicted_of_run, predicted_areas = _index_runs(predicted_runs[occupied], lengths)
    both = (true_of_run >= 0) & (predicted_of_run >= 0)
    keys = true_of_run[both] * max(len(predicted_labels), 1) + predicted_of_run[both]
    keys, pair_of_run = np.unique(keys, return_inverse=True)
    overlap = np.bincount(pair_of_run, weights=lengths[both], minlength=len(keys)).astype(np.int64)
    true_index, predicted_index = np.divmod(keys, max(len(predicted_labels), 1))
    return OverlapTable(
        true_labels, predicted_labels, true_areas, predicted_areas, true_index, predicted_index, overlap
    )


def match(truth: Any, predicted: Any = None, threshold: float = 0.5, criterion: str = "iou") -> Match:
    """Pair true with predicted objects and count.

    Pairs need a score greater than `threshold`. Where an object has several candidates (possible below IoU 0.5 and for
    the one-sided criteria), the assignment has the largest number of pairs and, among those, the largest sum of scores.

    Args:
        truth, predicted: see the module text; sequences are pooled.
        threshold: score that must be exceeded, 0 <= threshold < 1.
        criterion: see `OverlapTable.scores`.
    """
    check_number("threshold", threshold, minimum=0, maximum=1)
    tables, is_sequence = _tables(truth, predicted)
    matches = [_match_table(table, threshold, criterion) for table in tables]
    return pool(matches) if is_sequence else matches[0]


def pool(matches: Sequence[Match]) -> Match:
    """One `Match` of all images: counts are summed before ratios are formed, so crowded images weigh more."""
    if not matches:
        raise UserError("Nothing to pool: no image was scored.")
    pairs = [np.column_stack([np.full(m.tp, image), m.pairs]) for image, m in enumerate(matches)]
    scores = np.concatenate([m.pair_scores for m in matches])
    return _make_match(
        sum(m.tp for m in matches),
        sum(m.fp for m in matches),
        sum(m.fn for m in matches),
        np.concatenate(pairs).astype(np.int64),
        scores,
        matches[0].threshold,
        matches[0].criterion,
    )


def average_precision(truth: Any, predicted: Any = None, thresholds: Sequence[float] = AP_THRESHOLDS) -> float:
    """Mean over IoU thresholds of tp / (tp + fp + fn).

    This is the average precision of StarDist and of the Data Science Bowl 2018. Label images carry no scores by which
    objects could be ranked, so the area under a precision-recall curve (COCO) does not exist for them; AP50 is
    `match(...).accuracy`.

    Args:
        truth, predicted: see the module text; sequences are pooled per threshold.
        thresholds: IoU thresholds; default 0.5, 0.55, ..., 0.95.
    """
    tables, _ = _tables(truth, predicted)
    return float(np.mean([match(tables, threshold=threshold).accuracy for threshold in thresholds]))


def panoptic_quality(truth: Any, predicted: Any = None) -> float:
    """Sum of IoU over pairs with IoU > 0.5, divided by tp + fp / 2 + fn / 2 (Kirillov et al. 2019, one class)."""
    return match(truth, predicted).panoptic_quality


def aggregated_jaccard(truth: Any, predicted: Any = None, *, one_to_one: bool = False) -> float:
    """Aggregated Jaccard index: common pixels over united pixels of all objects.

    Every true object is paired with the predicted object of highest IoU; intersections and unions are summed over the
    true objects, and predicted objects that nobody chose are added to the denominator (Kumar et al. 2017).

    Args:
        truth, predicted: see the module text; sums run over all images.
        one_to_one: use each predicted object at most once (AJI+, Graham et al. 2019); pairs are chosen by `match`
            with threshold 0.
    """
    tables, _ = _tables(truth, predicted)
    intersection = union = 0
    for table in tables:
        if one_to_one:
            pairs = _match_table(table, 0.0, "iou").pairs
            rows = np.searchsorted(table.true_labels, pairs[:, 0])
            columns = np.searchsorted(table.predicted_labels, pairs[:, 1])
            width = max(len(table.predicted_labels), 1)
            keys = table.true_index * width + table.predicted_index
            chosen = np.searchsorted(keys, rows * width + columns)
        else:
            order = np.lexsort((-table.scores(), table.true_index))
            chosen = order[np.unique(table.true_index[order], return_index=True)[1]]
        common = int(table.overlap[chosen].sum())
        used = np.unique(table.predicted_index[chosen])
        repeated = int(table.predicted_areas[table.predicted_index[chosen]].sum() - table.predicted_areas[used].sum())
        intersection += common
        union += int(table.true_areas.sum() + table.predicted_areas.sum()) + repeated - common
    return intersection / union if union else 1.0


def count_split_merge(truth: Any, predicted: Any = None, *, min_share: float = 0.1) -> SplitMerge:
    """Count objects cut into several parts, joined, overlooked and invented.

    An object is *part of* another when more than half of it lies inside the other and it covers at least `min_share` of
    the other. `split`: true objects with two or more predicted parts. `merged`: predicted objects with two or more true
    parts. `missed`: true objects that have no predicted part and are part of none. `spurious`: the same for predicted.

    Args:
        truth, predicted: see the module text; counts are summed over images.
        min_share: parts smaller than this share of the whole do not count as parts.
    """
    total = np.zeros(4, np.int64)
    for table in _tables(truth, predicted)[0]:
        of_true, of_predicted = table.scores("iot"), table.scores("iop")
        inside_true = (of_predicted > 0.5) & (of_true >= min_share)
        inside_predicted = (of_true > 0.5) & (of_predicted >= min_share)
        parts_of_true = np.bincount(table.true_index[inside_true], minlength=len(table.true_labels))
        parts_of_predicted = np.bincount(table.predicted_index[inside_predicted], minlength=len(table.predicted_labels))
        related = inside_true | inside_predicted
        total += (
            np.count_nonzero(parts_of_true > 1),
            np.count_nonzero(parts_of_predicted > 1),
            len(table.true_labels) - len(np.unique(table.true_index[related])),
            len(table.predicted_labels) - len(np.unique(table.predicted_index[related])),
        )
    return SplitMerge(*(int(count) for count in total))


def mean_best_iou(truth: Any, predicted: Any = None) -> tuple[float, float]:
    """Mean over true objects of their best IoU with any predicted object, and the same the other way round.

    Returns:
        `(of_true, of_predicted)`, each 0..1; pooled over images. 1 where there is no object to judge on either side.
    """
    best = ([], [])
    for table in _tables(truth, predicted)[0]:
        scores = table.scores()
        for side, (index, labels) in enumerate(
            ((table.true_index, table.true_labels), (table.predicted_index, table.predicted_labels))
        ):
            best_of = np.zeros(len(labels))
            np.maximum.at(best_of, index, scores)
            best[side].append(best_of)
    of_true, of_predicted = (np.concatenate(values) for values in best)
    if not len(of_true) and not len(of_predicted):
        return 1.0, 1.0
    return tuple(float(values.mean()) if len(values) else 0.0 for values in (of_true, of_predicted))


def bootstrap_interval(
    items: Sequence[Any],
    statistic: Callable[[list[Any]], float] = np.mean,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap over images: whole images are drawn with replacement, so objects of one image stay together.

    Args:
        items: one entry per image, for example numbers or `Match` results.
        statistic: maps a list of entries to a number, for example `lambda matches: pool(matches).f1`.
        level: coverage of the interval, 0 < level < 1.
        resamples: number of draws.
        seed: seed of the draws; equal seeds give equal intervals.

    Reference: Efron and Tibshirani (1993), An Introduction to the Bootstrap.
    """
    check_number("level", level, minimum=0, maximum=1, exclusive=True)
    check_number("resamples", resamples, minimum=1, integer=True)
    items = list(items)
    if not items:
        raise UserError("A bootstrap interval needs at least one image. Received none.")
    draws = np.random.default_rng(seed).integers(0, len(items), (resamples, len(items)))
    values = [float(statistic([items[i] for i in draw])) for draw in draws]
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(items)), float(low), float(high))


def _check_labels(labels: np.ndarray, name: str) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.dtype == bool:
        return labels.view(np.uint8) if labels.flags.c_contiguous else labels.astype(np.uint8)
    if not np.issubdtype(labels.dtype, np.integer):
        raise UserError(f"`{name}` must be a label image of integers. Received: {name} of dtype {labels.dtype}")
    if labels.size and np.issubdtype(labels.dtype, np.signedinteger) and labels.min() < 0:
        raise UserError(f"`{name}` must have labels >= 0. Received: smallest label {labels.min()}")
    return labels


def _index_runs(values: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids without 0, the index of each run's id (-1 for 0), and pixels per id."""
    labels, index = np.unique(values, return_inverse=True)
    areas = np.bincount(index, weights=lengths, minlength=len(labels)).astype(np.int64)
    if len(labels) and labels[0] == 0:
        return labels[1:], index - 1, areas[1:]
    return labels, index, areas


def _tables(truth: Any, predicted: Any) -> tuple[list[OverlapTable], bool]:
    """Overlap tables of the accepted forms of input, and whether the input was a sequence of images."""
    if isinstance(truth, OverlapTable):
        return [truth], False
    if predicted is None:
        tables = list(truth)
        if not tables or not all(isinstance(table, OverlapTable) for table in tables):
            raise UserError("Pass `truth` and `predicted` label images, or one or several OverlapTable.")
        return tables, True
    if isinstance(truth, np.ndarray) and isinstance(predicted, np.ndarray):
        return [overlap_table(truth, predicted)], False
    truth, predicted = list(truth), list(predicted)
    if len(truth) != len(predicted) or not truth:
        raise UserError(
            f"`truth` and `predicted` must hold equally many images, at least one. "
            f"Received: {len(truth)} and {len(predicted)}"
        )
    return [overlap_table(*pair) for pair in zip(truth, predicted, strict=True)], True


def _match_table(table: OverlapTable, threshold: float, criterion: str) -> Match:
    scores = table.scores(criterion)
    candidates = np.flatnonzero(scores > threshold)
    chosen = candidates[
        assign_pairs(table.true_index[candidates], table.predicted_index[candidates], scores[candidates])
    ]
    tp = len(chosen)
    pairs = np.column_stack(
        [table.true_labels[table.true_index[chosen]], table.predicted_labels[table.predicted_index[chosen]]]
    )
    return _make_match(
        tp, len(table.predicted_labels) - tp, len(table.true_labels) - tp, pairs, scores[chosen], threshold, criterion
    )


def _make_match(
    tp: int, fp: int, fn: int, pairs: np.ndarray, scores: np.ndarray, threshold: float, criterion: str
) -> Match:
    def ratio(numerator: float, denominator: float) -> float:
        return float(numerator / denominator) if denominator else 0.0

    if tp + fp + fn == 0:
        return Match(0, 0, 0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, pairs, scores, threshold, criterion)
    f1, mean_iou = ratio(2 * tp, 2 * tp + fp + fn), ratio(scores.sum(), tp)
    return Match(
        tp=int(tp),
        fp=int(fp),
        fn=int(fn),
        precision=ratio(tp, tp + fp),
        recall=ratio(tp, tp + fn),
        f1=f1,
        accuracy=ratio(tp, tp + fp + fn),
        mean_iou=mean_iou,
        panoptic_quality=f1 * mean_iou,
        pairs=pairs,
        pair_scores=scores,
        threshold=threshold,
        criterion=criterion,
    )
