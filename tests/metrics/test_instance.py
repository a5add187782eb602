import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import linear_sum_assignment

from keras_microseg.checks import UserError
from keras_microseg.metrics import instance

label_images = hnp.arrays(np.int32, (6, 7), elements=st.integers(0, 5))


def scalar_table(truth, predicted):
    """Every pair of objects, one mask at a time."""
    pairs = {}
    for t in set(truth.ravel()) - {0}:
        for p in set(predicted.ravel()) - {0}:
            both = int(((truth == t) & (predicted == p)).sum())
            if both:
                pairs[t, p] = both, int(((truth == t) | (predicted == p)).sum())
    return pairs


def scalar_aji(truth, predicted):
    """Kumar et al. (2017), algorithm 1."""
    pairs = scalar_table(truth, predicted)
    common = union = 0
    used = set()
    for t in sorted(set(truth.ravel()) - {0}):
        best = max(((i / u, -p, i, u) for (k, p), (i, u) in pairs.items() if k == t), default=None)
        if best is None:
            union += int((truth == t).sum())
        else:
            common, union = common + best[2], union + best[3]
            used.add(-best[1])
    union += sum(int((predicted == p).sum()) for p in set(predicted.ravel()) - {0} - used)
    return common / union if union else 1.0


@given(label_images, label_images)
def test_table_is_that_of_the_scalar_count(truth, predicted):
    table = instance.overlap_table(truth, predicted)
    found = {
        (table.true_labels[t], table.predicted_labels[p]): (n, table.scores()[k])
        for k, (t, p, n) in enumerate(zip(table.true_index, table.predicted_index, table.overlap, strict=True))
    }
    expected = {pair: (i, i / u) for pair, (i, u) in scalar_table(truth, predicted).items()}
    assert found == expected
    assert table.true_areas.tolist() == [int((truth == t).sum()) for t in table.true_labels]


@given(label_images)
def test_perfect_match(labels):
    result = instance.match(labels, labels)
    assert (result.fp, result.fn) == (0, 0) and result.tp == len(np.unique(labels[labels > 0]))
    assert result.precision == result.recall == result.f1 == result.mean_iou == result.panoptic_quality == 1
    assert instance.average_precision(labels, labels) == instance.aggregated_jaccard(labels, labels) == 1
    assert instance.count_split_merge(labels, labels) == (0, 0, 0, 0)
    assert instance.mean_best_iou(labels, labels) == (1, 1)


@given(label_images, label_images, st.sampled_from([0, 0.2, 0.5, 0.75]))
def test_iou_is_symmetric(truth, predicted, threshold):
    table = instance.overlap_table(truth, predicted)
    swapped = instance.overlap_table(predicted, truth)
    for one, other in zip(table.transposed(), swapped, strict=True):
        assert np.array_equal(one, other)
    forth, back = instance.match(table, threshold=threshold), instance.match(swapped, threshold=threshold)
    assert (forth.tp, forth.fp, forth.fn) == (back.tp, back.fn, back.fp)
    assert forth.mean_iou == pytest.approx(back.mean_iou) and forth.f1 == pytest.approx(back.f1)


@given(label_images, label_images, st.permutations(range(1, 6)))
def test_label_order_is_irrelevant(truth, predicted, order):
    renamed = np.array([0, *(1000 * k for k in order)])[predicted]
    assert instance.match(truth, predicted)[:9] == pytest.approx(instance.match(truth, renamed)[:9])
    assert instance.aggregated_jaccard(truth, predicted, one_to_one=True) == pytest.approx(
        instance.aggregated_jaccard(truth, renamed, one_to_one=True)
    )


@given(label_images, label_images, st.sampled_from([0, 0.1, 0.3, 0.5]), st.sampled_from(["iou", "iot", "iop"]))
def test_assignment_is_optimal(truth, predicted, threshold, criterion):
    table = instance.overlap_table(truth, predicted)
    dense = np.zeros((len(table.true_labels), len(table.predicted_labels)))
    dense[table.true_index, table.predicted_index] = table.scores(criterion)
    gain = np.where(dense > threshold, 1 + dense / (2 * max(min(dense.shape), 1)), 0)
    rows, columns = linear_sum_assignment(gain, maximize=True)
    result = instance.match(table, threshold=threshold, criterion=criterion)
    assert result.tp == np.count_nonzero(dense[rows, columns] > threshold)
    kept = dense[rows, columns] > threshold
    assert result.pair_scores.sum() == pytest.approx(dense[rows, columns][kept].sum())
    assert len(set(result.pairs[:, 0])) == len(set(result.pairs[:, 1])) == result.tp


@given(label_images, label_images)
def test_aggregated_jaccard_is_that_of_the_paper(truth, predicted):
    pairs = scalar_table(truth, predicted)
    ties = [[i / u for (k, _), (i, u) in pairs.items() if k == t] for t in set(truth.ravel()) - {0}]
    if all(scores.count(max(scores)) == 1 for scores in ties if scores):
        assert instance.aggregated_jaccard(truth, predicted) == pytest.approx(scalar_aji(truth, predicted))


def test_known_answer():
    truth, predicted = np.zeros((10, 20), np.int32), np.zeros((10, 20), np.int32)
    truth[0:4, 0:5] = 9  # 20 px, found with 16 of them: IoU 0.8
    predicted[0:4, 0:4] = 3
    truth[5:9, 0:5] = 4  # 20 px, cut into 10 + 10: IoU 0.5 each, which is not greater than 0.5
    predicted[5:7, 0:5], predicted[7:9, 0:5] = 1, 2
    predicted[0:2, 10:12] = 8  # nothing there
    truth[8, 18] = 5  # overlooked
    result = instance.match(truth, predicted)
    assert (result.tp, result.fp, result.fn) == (1, 3, 2)
    assert result.precision == 0.25 and result.recall == pytest.approx(1 / 3) and result.f1 == pytest.approx(2 / 7)
    assert result.pairs.tolist() == [[9, 3]] and result.mean_iou == pytest.approx(0.8)
    assert result.panoptic_quality == pytest.approx(0.8 * 2 / 7) == instance.panoptic_quality(truth, predicted)
    assert result.accuracy == pytest.approx(1 / 6)
    # 0.8 exceeds 0.5, ..., 0.75 but not 0.8: six of ten thresholds.
    assert instance.average_precision(truth, predicted) == pytest.approx(0.6 / 6)
    assert instance.count_split_merge(truth, predicted) == (1, 0, 1, 1)
    assert instance.count_split_merge(predicted, truth) == (0, 1, 1, 1)
    # AJI: common 16 + 10, united 20 + 20, missed 1, unused 10 + 4.
    assert instance.aggregated_jaccard(truth, predicted) == pytest.approx(26 / 55)
    assert instance.mean_best_iou(truth, predicted) == pytest.approx((1.3 / 3, 1.8 / 4))


def test_pooling_sums_counts_before_ratios():
    good, empty = np.array([[1, 1, 0, 2]]), np.zeros((1, 4), int)
    pooled = instance.match([good, good], [good, empty])
    assert (pooled.tp, pooled.fp, pooled.fn, pooled.recall, pooled.precision) == (2, 0, 2, 0.5, 1)
    assert pooled.pairs.tolist() == [[0, 1, 1], [0, 2, 2]]
    assert instance.average_precision([good, good], [good, empty]) == 0.5


def test_nothing_to_find():
    empty, some = np.zeros((3, 3), int), np.eye(3, dtype=int)
    assert instance.match(empty, empty).f1 == instance.panoptic_quality(empty, empty) == 1
    assert instance.match(empty, some)[:6] == (0, 1, 0, 0, 0, 0)
    assert instance.match(np.zeros((0, 3), int), np.zeros((0, 3), int)).f1 == 1


def test_hundred_thousand_objects_in_seconds():
    side, edge = 320, 4
    truth = np.kron(np.arange(1, side * side + 1).reshape(side, side), np.ones((edge, edge), int))
    predicted = np.roll(np.random.default_rng(0).permutation(side * side + 1)[truth] * 11, 1, axis=1)
    start = time.process_time()
    result = instance.match(truth, predicted)
    assert time.process_time() - start < 5
    assert result.tp >= side * side - 1 and result.mean_iou == pytest.approx(3 / 5, abs=1e-3)


def test_bootstrap_interval():
    values = np.random.default_rng(0).normal(5, 1, 400)
    interval = instance.bootstrap_interval(values, seed=3)
    # The standard error is 1 / sqrt(400) = 0.05, so the interval is about 4 * 0.05 wide.
    assert interval.value == pytest.approx(values.mean()) and interval.high - interval.low == pytest.approx(
        0.2, abs=0.04
    )
    assert interval == instance.bootstrap_interval(values, seed=3) != instance.bootstrap_interval(values, seed=4)
    assert instance.bootstrap_interval([2.0]) == (2, 2, 2) and str(interval).count("[") == 1


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        (np.zeros((2, 2)), np.zeros((2, 2), int), "integers"),
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "one shape"),
        (np.full((2, 2), -1), np.zeros((2, 2), int), ">= 0"),
    ],
)
def test_refused_input(truth, predicted, message):
    with pytest.raises(UserError, match=message):
        instance.match(truth, predicted)
