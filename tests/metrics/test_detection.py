"""COCO's average precision against numbers worked out by hand."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.metrics.detection import (
    ScoredImage,
    average_precision,
    best_threshold,
    match_scored,
    scored_image,
    scored_masks,
)


def image(scores, iou, ignored=None):
    scores = np.asarray(scores, float)
    return ScoredImage(
        scores, np.asarray(iou, float), np.zeros(len(scores)) if ignored is None else np.asarray(ignored)
    )


def test_perfect_detections_score_one():
    labels = np.kron(np.arange(1, 5).reshape(2, 2), np.ones((8, 8), int))
    result = average_precision([scored_image(labels, labels, [0.9, 0.8, 0.7, 0.6])])
    assert result.ap == result.ap50 == result.ap75 == 1


def test_a_false_alarm_counts_by_its_rank():
    # two objects; ranks: hit, false, hit -> precision 1 up to recall 0.5, then 2/3: (51 * 1 + 50 * 2/3) / 101
    one = image([0.9, 0.8, 0.7], [[0.9, 0], [0.1, 0.2], [0, 0.9]])
    assert average_precision([one], (0.5,)).ap50 == pytest.approx((51 + 50 * 2 / 3) / 101)
    last = image([0.9, 0.8, 0.7], [[0.9, 0], [0, 0.9], [0.1, 0.2]])
    assert average_precision([last], (0.5,)).ap50 == 1


def test_thresholds_are_separate_and_reached_by_equality():
    one = image([0.9], [[0.75]])
    result = average_precision([one])
    np.testing.assert_allclose(result.by_threshold, [1] * 6 + [0] * 4)
    assert result.ap == pytest.approx(0.6) and result.ap75 == 1


def test_images_are_pooled_by_score():
    first, second = image([0.9], [[1.0]]), image([0.95, 0.5], [[0.0], [1.0]])
    # ranks over both: false (0.95), hit (0.9), hit (0.5): precisions 0, 1/2, 2/3 -> 2/3 everywhere
    assert average_precision([first, second], (0.5,)).ap50 == pytest.approx(2 / 3)


def test_each_object_is_found_once_and_missed_ones_count():
    one = image([0.9, 0.8], [[0.9, 0, 0], [0.95, 0, 0]])
    assert match_scored(one, 0.5).tolist() == [0, -1]
    assert average_precision([one], (0.5,)).ap50 == pytest.approx(34 / 101)  # recall 1/3: 0, 0.01, ..., 0.33


def test_the_threshold_with_the_best_f1_is_found():
    # hits at 0.9 and 0.6, false alarms at 0.7 and 0.3, one object missed
    one = image([0.9, 0.7, 0.6, 0.3], [[0.8, 0, 0], [0.1, 0, 0], [0, 0.9, 0], [0, 0, 0.2]])
    best = best_threshold([one], (0.2, 0.4, 0.5, 0.65, 0.8))
    assert best.threshold == 0.4  # 2 of 3 found are right, as at 0.5
    assert (best.precision, best.recall) == pytest.approx((2 / 3, 2 / 3)) and best.f1 == pytest.approx(2 / 3)
    assert best_threshold([one], (0.8,)) == pytest.approx((0.8, 1, 1 / 3, 0.5))
    doubtful = one._replace(ignored=np.array([0, 0.9, 0, 0]))
    assert best_threshold([doubtful, one], (0.5,)).precision == pytest.approx(4 / 5)
    with pytest.raises(UserError, match="at least one"):
        best_threshold([one], ())


def test_detections_in_ignored_regions_count_neither_way():
    one = image([0.9, 0.8], [[0.0], [0.9]], [0.8, 0.0])
    assert average_precision([one], (0.5,)).ap50 == 1


def test_empty_and_wrong_input():
    assert np.isnan(average_precision([image([], np.zeros((0, 0)))]).ap)
    assert average_precision([image([], np.zeros((0, 2)))]).ap == 0
    with pytest.raises(UserError, match="Nothing to score"):
        average_precision([])
    labels = np.ones((4, 4), int)
    with pytest.raises(UserError, match="scores"):
        scored_image(labels, labels * 3, [0.5])


def test_masks_may_overlap():
    truth = np.zeros((20, 20), int)
    truth[2:12, 2:12] = 7
    square, part = np.ones((10, 10), bool), np.ones((10, 5), bool)
    one = scored_masks(truth, [(2, 2, square), (2, 2, part), (15, 15, part[:5])], [0.9, 0.6, 0.5], ignore=truth == 0)
    np.testing.assert_allclose(one.iou[:, 0], [1, 0.5, 0])
    np.testing.assert_allclose(one.ignored, [0, 0, 1])
    labels = np.where(truth > 0, 1, 0)
    same = scored_image(truth, labels, [0.9])
    np.testing.assert_allclose(same.iou, scored_masks(truth, [(2, 2, square)], [0.9]).iou)
