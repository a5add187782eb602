import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from keras_microseg.checks import UserError
from keras_microseg.metrics import published
from keras_microseg.segmentation.labeling import separate_8_to_4

masks = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=14))


def test_outlines_of_a_ring_with_an_island():
    mask = np.zeros((11, 11), bool)
    mask[1:10, 1:10] = True
    mask[3:8, 3:8] = False
    mask[5, 5] = True
    outlines = published.trace_outlines(mask)
    found = sorted(zip(outlines.polygon_area.tolist(), outlines.filled.sum(axis=1).tolist(), strict=True))
    # Island: a point. Hole: the 6 x 6 octagon (corners cut) about 5 x 5 px and its 20 edge neighbours. Ring: 8 x 8.
    assert found == [(0, 1), (34, 45), (64, 81)]
    assert outlines.is_hole.sum() == 1


def test_perfect_and_empty():
    mask = np.zeros((20, 20), bool)
    mask[3:9, 3:9] = mask[12:18, 5:15] = True
    assert published.score_mask(mask, mask) == (1, 1, 1, 1)
    assert published.score_mask(np.zeros_like(mask), mask) == (0, 0, 0, 0)
    assert published.score_mask(mask, np.zeros_like(mask))[:3] == (0, 0, 0)


def test_two_squares_that_touch_by_a_corner_are_one_true_outline():
    truth = np.zeros((12, 12), bool)
    truth[1:6, 1:6] = truth[6:11, 6:11] = True
    opened = separate_8_to_4(truth)
    scores = published.score_mask(opened, truth)
    # One corner pixel is cleared; each part is compared with the union of 50 px.
    assert opened.sum() == 49
    assert scores.image_iou == pytest.approx(49 / 50) and scores.instance_iou == pytest.approx(49 / 100)


def test_thresholds_are_chosen_per_score():
    truth = np.zeros((50, 50), bool)
    truth[15:36, 15:36] = True
    probability = np.where(truth, 0.65, 0.2)
    scores = published.score_probabilities([probability], [truth])
    assert scores.image_iou == pytest.approx(1, abs=0.02) and scores.youden == pytest.approx(1, abs=0.02)
    assert published.score_probabilities([(probability * 255).astype(np.uint8)], [truth]) == scores


def test_shapes_must_agree():
    with pytest.raises(UserError, match="info bar"):
        published.score_mask(np.zeros((3, 3)), np.zeros((4, 3)))


@given(masks, masks)
def test_equal_to_opencv(predicted, truth):
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed; it is only the reference of this test")
    if predicted.shape != truth.shape:
        truth = np.resize(truth, predicted.shape)

    def outlines(mask):
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        filled = [cv2.drawContours(np.zeros(mask.shape, np.uint8), [c], -1, 1, -1) > 0 for c in contours]
        return [cv2.contourArea(c) for c in contours], filled

    (areas, filled), (_, true_filled) = outlines(predicted), outlines(truth)
    ours = published.trace_outlines(predicted)
    assert sorted(areas) == sorted(ours.polygon_area)
    dense = ours.filled.toarray() > 0
    assert sorted(f.tobytes() for f in filled) == sorted(row.tobytes() for row in dense)
    best = [max(((f & t).sum() / (f | t).sum() for t in true_filled), default=0) for f in filled]
    scores = published.score_mask(predicted, truth)
    for value, least in ((scores.instance_iou, 0), (scores.instance_iou_filtered, 9)):
        chosen = [b for a, b in zip(areas, best, strict=True) if a > least]
        assert value == pytest.approx(np.mean(chosen) if chosen else 0, abs=1e-6)
