import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from keras_microseg.checks import UserError
from keras_microseg.metrics import pixel

class_maps = hnp.arrays(np.uint8, (5, 6), elements=st.integers(0, 3))


def test_known_answer():
    truth, predicted = np.zeros((10, 10), bool), np.zeros((10, 10), bool)
    truth[0:4], predicted[2:5] = True, True  # 20 common, 10 false, 20 missed, 50 background
    counts = pixel.count(truth, predicted)
    assert [int(getattr(counts, name)[0]) for name in ("tp", "fp", "fn", "tn")] == [20, 10, 20, 50]
    assert pixel.iou(counts) == pytest.approx(20 / 50) and pixel.dice(counts) == pytest.approx(40 / 70)
    assert pixel.precision(counts) == pytest.approx(2 / 3) and pixel.recall(counts) == 0.5
    assert pixel.specificity(counts) == pytest.approx(5 / 6) and pixel.youden(counts) == pytest.approx(1 / 3)
    assert pixel.accuracy(counts) == pytest.approx(0.7)


@given(class_maps, class_maps)
def test_counts_add_up_per_class(truth, predicted):
    counts = pixel.count(truth, predicted, num_classes=4)
    for k in range(4):
        expected = pixel.count(truth == k, predicted == k)
        assert all(getattr(counts, name)[k] == getattr(expected, name)[0] for name in ("tp", "fp", "fn", "tn"))
    # Of single-label maps every wrong pixel is one false positive and one false negative.
    assert pixel.precision(counts, "micro") == pytest.approx(np.mean(truth == predicted))
    doubled = pixel.pool([counts, counts])
    assert pixel.iou(doubled) == pytest.approx(pixel.iou(counts))


@given(class_maps, class_maps)
def test_scores_are_symmetric_and_bounded(truth, predicted):
    forth, back = pixel.count(truth, predicted), pixel.count(predicted, truth)
    assert pixel.iou(forth) == pixel.iou(back) and pixel.precision(forth) == pixel.recall(back)
    assert 0 <= pixel.iou(forth) <= pixel.dice(forth) <= 1 and -1 <= pixel.youden(forth) <= 1


def test_ignored_pixels_and_averages():
    truth = np.array([0, 0, 1, 255])
    counts = pixel.count(truth, np.array([0, 1, 1, 7 % 2]), num_classes=2)
    assert counts.tp.tolist() == [1, 1] and pixel.iou(counts, "none").tolist() == [0.5, 0.5]
    assert pixel.recall(counts, "weighted") == pytest.approx((0.5 * 2 + 1) / 3)
    with pytest.raises(UserError, match="class numbers"):
        pixel.count(np.array([0]), np.array([2]), num_classes=2)


def test_nothing_to_find():
    empty, some = np.zeros((3, 3)), np.ones((3, 3))
    assert pixel.iou(pixel.count(empty, empty)) == pixel.dice(pixel.count(empty, empty)) == 1
    assert pixel.iou(pixel.count(empty, some)) == pixel.recall(pixel.count(empty, some)) == 0


def test_boundary_within_tolerance():
    truth, predicted = np.zeros((20, 20), int), np.zeros((20, 20), int)
    truth[4:12, 4:12], predicted[6:14, 4:12] = 1, 1
    assert pixel.boundary_f1(pixel.count_boundary(truth, predicted, 2)) == 1
    # Shifted by 2 rows: of the 28 contour pixels 12 on the two sides coincide (rows 6 to 11).
    assert pixel.boundary_f1(pixel.count_boundary(truth, predicted, 0)) == pytest.approx(12 / 28)
    assert pixel.boundary_f1(pixel.count_boundary(truth, np.zeros_like(truth))) == 0
    assert pixel.boundary_f1(pixel.count_boundary(predicted * 0, truth * 0)) == 1


def test_boundary_between_touching_objects_counts():
    split, joined = np.repeat([[1, 1, 2, 2]], 4, axis=0), np.ones((4, 4), int)
    counts = pixel.count_boundary(split, joined)
    assert (counts.true, counts.predicted) == (8, 0)


def test_confusion_matrix_and_balanced_accuracy():
    truth, predicted = np.array([0, 0, 0, 1, 1, 2, 255]), np.array([0, 0, 1, 1, 0, 2, 0])
    table = pixel.confusion_matrix(truth, predicted, 4)
    np.testing.assert_array_equal(table, [[2, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    assert pixel.balanced_accuracy(table) == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert np.isnan(pixel.balanced_accuracy(np.zeros((2, 2))))
