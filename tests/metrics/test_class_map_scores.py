"""Scores of class maps: against formulas on small tables, intervals, bands, boundaries; baselines on an easy image."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.metrics.class_maps import counts_of, kappa, matthews, score_maps, tally_maps
from keras_microseg.segmentation.class_baselines import fit_baselines

TABLE = np.array([[50, 10, 0], [5, 20, 5], [0, 0, 10]])


def test_kappa_and_matthews_are_those_of_the_formulas():
    agree, chance = 80 / 100, (55 * 60 + 30 * 30 + 15 * 10) / 100**2
    assert kappa(TABLE) == pytest.approx((agree - chance) / (1 - chance))
    # of two classes, Matthews' coefficient is the correlation of the two masks
    two = np.array([[30, 10], [5, 55]])
    a = np.repeat([0, 0, 1, 1], two.ravel())
    b = np.repeat([0, 1, 0, 1], two.ravel())
    assert matthews(two) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert kappa(np.diag([3, 4])) == pytest.approx(1) and matthews(np.diag([3, 4])) == pytest.approx(1)
    assert matthews(np.array([[5, 0], [5, 0]])) == 0 and kappa(np.array([[9, 0], [0, 0]])) == 1


def test_scores_of_a_map():
    truth = np.zeros((64, 64), int)
    truth[:, 32:] = 1
    truth[:8, :8] = 255  # not judged
    predicted = np.zeros_like(truth)
    predicted[:, 30:] = 1  # two columns too far
    predicted[:8, :8] = 2
    tally = tally_maps(truth, predicted, 3, block=16, tolerances=(1, 3))
    np.testing.assert_array_equal(tally.matrix, [[32 * 64 - 64 - 128, 128, 0], [0, 2048, 0], [0, 0, 0]])
    scores = score_maps(tally, ["a", "b", "c"])
    row = scores.classes.set_index("class").loc["b"]
    assert row["iou"] == pytest.approx(2048 / (2048 + 128)) and row["precision"] == row["iou"] and row["recall"] == 1
    assert row["error_points"] == pytest.approx(100 * 128 / (4096 - 64))
    assert row["iou_low"] < row["iou"] < row["iou_high"]
    known = [scores.classes["iou"][k] for k in (0, 1)]  # the third class does not occur
    assert scores.overall["mean_iou"] == pytest.approx(np.mean(known))
    assert scores.overall["mean_iou_low"] < scores.overall["mean_iou"] < scores.overall["mean_iou_high"]
    # columns 30 and 31 lie 1 and 0 px from the contour of the truth
    assert scores.overall["mean_iou_band_1"] > scores.overall["mean_iou"]
    assert scores.overall["mean_iou_band_3"] == 1
    assert scores.overall["boundary_f1"] == 1  # within 2 px
    far = tally_maps(truth, np.roll(predicted, -5, axis=1), 3, block=16)
    assert score_maps(far, ["a", "b", "c"], resamples=0).overall["boundary_f1"] < 0.9
    both = tally + tally
    np.testing.assert_array_equal(both.matrix, 2 * tally.matrix)
    assert counts_of(both.matrix).tp[1] == 4096
    with pytest.raises(UserError, match="one shape"):
        tally_maps(truth, predicted[:-1], 3)


def test_intervals_cover_the_accuracy_of_independent_blocks():
    """Blocks of accuracy 0.5 or 1 at random: the 90 % interval holds 0.75 in about 90 % of the cases."""
    covered = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        good = rng.random((8, 8)) < 0.5
        right = np.kron(good, np.ones((8, 8))) + np.kron(~good, np.tile([[1, 0], [0, 1]], (4, 4)))
        truth = np.ones((64, 64), int)
        tally = tally_maps(truth, np.where(right > 0, 1, 0), 2, block=8, tolerances=())
        overall = score_maps(tally, ["a", "b"], level=0.9, seed=seed).overall
        covered += overall["accuracy_low"] <= 0.75 <= overall["accuracy_high"]
    assert 80 <= covered <= 98  # 90 +- 3 standard errors


def test_baselines_find_classes_of_different_grey_values():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    classes = (((y // 16) + (x // 24)) % 3).astype(np.uint8)
    grey = np.clip(np.array([150, 40, 220])[classes] + rng.normal(0, 6, classes.shape), 0, 255).astype(np.uint8)
    labelled = classes.copy()
    labelled[:10] = 255
    found = fit_baselines([(grey, labelled), (grey[:80], classes[:80])], 3)
    assert list(found) == ["multi-Otsu", "best thresholds", "random forest"]
    for name, baseline in found.items():
        assert (baseline(grey) == classes).mean() > (0.8 if name == "best thresholds" else 0.97), name
    with pytest.raises(UserError, match="at least one"):
        fit_baselines([], 3)
