"""Scores of masks over videos: the published formula to the digit, and honest scores with known answers."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra import numpy as arrays

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.metrics.change import (
    change_matrix,
    distance_95,
    frame_matrices,
    join_scores,
    published_f1,
    score_masks,
    volume_error,
)
from keras_microseg.metrics.pixel import confusion_matrix

MASKS = arrays.arrays(bool, (3, 6, 7))


def source_formula(truth, predicted):
    """The metric of the source, written down from its definition: one confusion matrix, two classes, their mean F1."""
    eps = np.finfo(np.float32).eps
    matrix = np.zeros((2, 2))
    for t, p in zip(truth.ravel(), predicted.ravel(), strict=True):
        matrix[int(t), int(p)] += 1
    scores = []
    for c in (0, 1):
        recall = matrix[c, c] / (matrix[c].sum() + eps)
        precision = matrix[c, c] / (matrix[:, c].sum() + eps)
        scores.append(2 * recall * precision / (recall + precision + eps))
    return np.mean(scores)


@settings(max_examples=20)
@given(MASKS, MASKS)
def test_the_published_score(truth, predicted):
    scores = score_masks(truth, predicted)
    assert scores.published_f1 == pytest.approx(source_formula(truth, predicted), abs=1e-12)
    each = [source_formula(t, p) for t, p in zip(truth, predicted, strict=True)]
    np.testing.assert_allclose(scores.frames["published_f1"], each, atol=1e-12)
    assert scores.published_f1_frames == pytest.approx(np.mean(each))


def test_published_values_follow_from_their_counts():
    # init2, A2, test videos pooled: foreground precision 0.561, recall 0.875 give macro F1 0.8408 with a background F1
    # of 0.998, as the published tables state (to the digits that precision and recall carry).
    carbon = 10_000
    tp = 0.875 * carbon
    fp = tp / 0.561 - tp
    background = 41 * 256 * 256 - carbon - fp
    matrix = np.array([[background, fp], [carbon - tp, tp]])
    assert published_f1(matrix) == pytest.approx(0.8408, abs=1e-3)


def test_what_the_published_score_hides():
    empty = np.zeros((2, 20, 20), bool)
    scores = score_masks(empty, empty)
    assert scores.published_f1 == pytest.approx(0.5, abs=1e-6)  # perfect, and yet
    assert scores.foreground_f1 == 1 and scores.foreground_f1_frames == 1 and scores.iou == 1 and scores.hd95 == 0
    assert score_masks(empty, empty, empty="published").frames["foreground_f1"].tolist() == [0, 0]
    truth = empty.copy()
    truth[0, 0, 0] = True  # one pixel of 400, missed
    scores = score_masks(truth, empty)
    assert scores.published_f1_frames == pytest.approx(0.4997, abs=1e-3) and scores.foreground_f1_frames == 0.5
    assert scores.recall == 0 and np.isnan(scores.frames["hd95"][0]) and scores.empty_mismatches == 1


def test_known_answers():
    truth, predicted = np.zeros((2, 10, 10), bool), np.zeros((2, 10, 10), bool)
    truth[:, 2:6, 2:6] = True  # 16
    predicted[0, 2:6, 2:6] = predicted[1, 2:6, 4:8] = True  # 8 of 16 overlap
    scores = score_masks(truth, predicted, frames=[88, 150], video="a", pixel_size=PixelSize((0.5, 0.5), "nm"))
    assert scores.foreground_f1 == pytest.approx(48 / 64) and scores.iou == pytest.approx(24 / 40)
    assert scores.precision == scores.recall == pytest.approx(24 / 32)
    assert scores.frames["foreground_f1"].tolist() == [1, 0.5] and scores.frames["frame"].tolist() == [88, 150]
    assert scores.frames["hd95"].tolist() == [0, 1.0] and scores.unit == "nm"  # two pixels of 0.5 nm
    assert scores.area_bias == 0 and scores.area_error == 0
    predicted[1, 0] = True  # ten pixels too much
    scores = score_masks(truth, predicted)
    assert scores.area_error == pytest.approx(10 / 16 / 2) and scores.area_bias == pytest.approx(10 / 32)


def test_videos_are_pooled_by_pixel():
    rng = np.random.default_rng(0)
    truth, predicted = rng.random((6, 8, 8)) > 0.5, rng.random((6, 8, 8)) > 0.5
    parts = [score_masks(truth[s], predicted[s], video=str(i)) for i, s in enumerate((slice(0, 2), slice(2, 6)))]
    whole, joined = score_masks(truth, predicted), join_scores(parts)
    assert joined.published_f1 == pytest.approx(whole.published_f1) and joined.iou == pytest.approx(whole.iou)
    assert joined.published_f1_frames == pytest.approx(whole.published_f1_frames)
    with pytest.raises(UserError, match="no video"):
        join_scores([])


@settings(max_examples=20)
@given(MASKS, MASKS)
def test_change_classes_are_two_masks(truth, predicted):
    matrix = change_matrix(truth, predicted)
    assert matrix.sum() == 9 * 42
    fold = np.zeros((4, 2))  # first-frame carbon of classes 0..3
    fold[[2, 3], 1] = fold[[0, 1], 0] = 1
    np.testing.assert_array_equal(fold.T @ matrix @ fold, 3 * frame_matrices(truth, predicted).sum(axis=0))
    one = change_matrix(truth, predicted, np.array([[0, 2]]))
    maps = [2 * masks[0].astype(int) + masks[2] for masks in (truth, predicted)]
    np.testing.assert_array_equal(one, confusion_matrix(*maps, 4))


@settings(max_examples=20)
@given(MASKS, MASKS)
def test_distances_are_symmetric_and_zero_only_when_equal_in_outline(truth, predicted):
    t, p = truth[0], predicted[0]
    assert distance_95(t, t) == 0
    forth, back = distance_95(t, p), distance_95(p, t)
    assert forth == back or (np.isnan(forth) and np.isnan(back))
    assert not forth < 0


def test_distance_of_shifted_squares():
    square = np.zeros((40, 40), bool)
    square[10:20, 10:20] = True
    # the two sides that move away lie 5 px from the other outline: 18 of 36 outline pixels
    assert distance_95(square, np.roll(square, 5, axis=1)) == 5
    assert distance_95(square, np.roll(square, 5, axis=1), (1.0, 0.52)) == pytest.approx(2.6)
    full = np.ones((40, 40), bool)
    assert distance_95(square, full) == distance_95(full, square) > 10  # the image edge is an outline, too


def test_volume_error():
    assert volume_error([10, 5, 0], [11, 5, 2]) == pytest.approx(0.1)
    assert np.isnan(volume_error([0, 1], [1, 1]))


def test_shapes_must_agree():
    with pytest.raises(UserError, match="one shape"):
        score_masks(np.zeros((2, 4, 4), bool), np.zeros((3, 4, 4), bool))
