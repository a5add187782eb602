"""Composition of rocks: known answers, coverage of the intervals, correction by the confusion matrix."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize
from keras_microseg.measurement.class_maps import block_widening, two_point_functions
from keras_microseg.measurement.composition import (
    association_matrix,
    block_counts,
    chord_lengths,
    compare_shares,
    correct_shares,
    detection_limits,
    mass_shares,
    modal_composition,
    porosity,
)
from keras_microseg.metrics.pixel import confusion_matrix
from keras_microseg.simulation.rocks import MINERALS, Rock, RockSettings

NAMES = MINERALS[1:]


def test_counts_of_blocks():
    classes = np.random.default_rng(0).integers(0, 5, (33, 47))
    counts = block_counts(classes, 4, 10)
    assert counts.shape == (4 * 5, 4)
    np.testing.assert_array_equal(counts.sum(axis=0), np.bincount(classes.ravel())[:4])
    np.testing.assert_array_equal(counts[6], np.bincount(classes[10:20, 10:20].ravel(), minlength=5)[:4])


def misnamed(rock, seed):
    """Classes of a rock and what a classifier with correlated errors makes of them: patches of 5 pixels change name."""
    truth = rock.classes[...].astype(int) - 1
    y, x = np.indices(truth.shape) // 5
    chance = np.random.default_rng(seed).random((y.max() + 1, x.max() + 1))[y, x]
    found = truth.copy()
    for old, new, rate in ((1, 2, 0.15), (2, 1, 0.2), (3, 0, 0.15), (0, 3, 0.05)):
        found[(truth == old) & (chance < rate)] = new
    return truth, found


def coverage(repeats, confidence=0.9):
    """Share of intervals, per class, that hold the abundances of the rocks: counted, and corrected for errors."""
    counted, corrected, stratified = [], [], []
    for seed in range(repeats):
        settings = RockSettings((240, 240), seed + 1000, grain_size=8, disc=0)
        truth_shares = np.array(settings.abundances)
        truth, found = misnamed(Rock(settings), seed)
        checked, named = misnamed(Rock(RockSettings((180, 180), seed + 9000, grain_size=8, disc=0)), seed + 1)
        tiles = [np.s_[i : i + 60, j : j + 60] for i in (0, 60, 120) for j in (0, 60, 120)]
        confusion = np.array([confusion_matrix(checked[t], named[t], 6) for t in tiles])
        for classes, table, method, into in (
            (truth, None, "inversion", counted),
            (found, confusion, "inversion", corrected),
            (found, confusion, "stratified", stratified),
        ):
            widen = block_widening(two_point_functions(classes, NAMES, max_distance=40), NAMES, 40)
            shares = modal_composition(
                block_counts(classes, 6, 40), NAMES,
                confusion=table, confidence=confidence, num_draws=300, seed=seed, widen=widen, method=method,
            ).table  # fmt: skip
            into.append((shares["low"] <= truth_shares) & (truth_shares <= shares["high"]))
    return tuple(np.mean(part, axis=0) for part in (counted, corrected, stratified))


def test_intervals_cover_the_truth():
    """Nominal 0.90; of 60 repeats with 6 classes about 300 are independent: standard error below 0.02."""
    counted, corrected, stratified = coverage(60)
    assert 0.86 <= counted.mean() <= 0.96
    assert 0.86 <= corrected.mean() <= 0.97
    assert 0.84 <= stratified.mean() <= 0.97


@pytest.mark.slow
def test_intervals_cover_the_truth_in_many_repeats():
    """Every class by itself, standard error 0.017."""
    counted, corrected, stratified = coverage(300)
    print("nominal 0.9:", counted.round(3), "inversion", corrected.round(3), "stratified", stratified.round(3))
    assert (abs(counted - 0.9) < 0.05).all()
    assert ((corrected > 0.85) & (corrected < 0.97)).all()
    assert ((stratified > 0.83) & (stratified < 0.97)).all()


def test_confusion_is_undone():
    truth = np.array([0.1, 0.6, 0.3])
    rates = np.array([[0.8, 0.2, 0.0], [0.05, 0.85, 0.1], [0.0, 0.1, 0.9]])
    np.testing.assert_allclose(correct_shares(truth @ rates, rates * 1000), truth, atol=1e-6)
    same_rock = truth[:, np.newaxis] * rates
    np.testing.assert_allclose(correct_shares(truth @ rates, same_rock, "stratified"), truth, atol=1e-12)
    rng = np.random.default_rng(1)
    counts = rng.multinomial(500, truth @ rates, 50)
    regions = np.stack([[rng.multinomial(200, row) for row in rates] for _ in range(12)])
    for confusion in (regions, regions.sum(axis=0)):
        table = modal_composition(counts, "abc", confusion=confusion, num_draws=200).table
        assert ((table["low"] <= truth) & (truth <= table["high"])).all()
        assert abs(table["share"] - truth).max() < 0.02 < abs(table["raw"] - truth).max()


def test_porosity_mass_and_comparison():
    counts = np.tile([20, 60, 20], (10, 1))
    found = modal_composition(counts, ("pore", "quartz", "clay"), num_draws=50)
    assert porosity(found, ["pore"]) == pytest.approx((0.2, 0.2, 0.2))
    assert porosity(found, ["pore"], {"clay": 0.5})[0] == pytest.approx(0.3)
    mass = mass_shares(found, {"quartz": 2.65, "clay": 2.6})
    np.testing.assert_allclose(mass["mass"], [0, 0.6 * 2.65 / 2.11, 0.2 * 2.6 / 2.11])
    table = compare_shares(found, {"pore": 0.18, "quartz": 0.6})
    np.testing.assert_allclose(table["points"], [2, 0], atol=1e-9)
    assert table["inside"].tolist() == [False, True]


def test_shares_below_the_detection_limit_are_no_more_than_false_alarms():
    rng = np.random.default_rng(0)
    rates = rng.normal(0.02, 0.004, 400).clip(0)  # false alarms of class 1 among class 0, between regions
    regions = np.array([[[1000 * (1 - r), 1000 * r], [20, 80]] for r in rates])
    limits = detection_limits(regions)
    assert limits[1] == pytest.approx(3.29 * 0.004 / 20 / 0.8, rel=0.1)
    assert np.isnan(detection_limits(regions[:1])).all()


def test_contacts_and_chords_of_rectangles():
    classes = np.zeros((12, 20), int)
    classes[2:6, 3:13] = 1
    classes[6:8, 3:13] = 2
    size = PixelSize((2.0, 3.0), "um")
    table = association_matrix(classes, "abc", pixel_size=size)
    assert table.loc["b", "c"] == table.loc["c", "b"] == pytest.approx(10 * 3 * np.pi / 4)
    assert table.loc["a", "b"] == pytest.approx((10 * 3 + 2 * 4 * 2) * np.pi / 4)
    assert table.loc["a", "a"] == 0
    np.testing.assert_allclose(chord_lengths(classes == 1, pixel_size=size), [30] * 4)
    np.testing.assert_allclose(chord_lengths(classes == 1, axis=0, pixel_size=size), [8] * 10)
    assert len(chord_lengths(classes == 0, axis=0)) == 0


def test_bad_input():
    good = np.tile([1, 2], (4, 1))
    for call, message in (
        (lambda: modal_composition(good, "abc"), "column per class"),
        (lambda: modal_composition(good[:1], "ab"), "two blocks"),
        (lambda: modal_composition(good, "ab", confusion=np.ones((3, 3))), "confusion"),
        (lambda: modal_composition(good, "ab", confusion=np.array([[1, 1], [0, 0]])), "without validation pixels: b"),
        (lambda: porosity(modal_composition(good, "ab"), ["gold"]), "No such class: gold"),
        (lambda: mass_shares(modal_composition(good, "ab"), {}), "density"),
    ):
        with pytest.raises(UserError, match=message):
            call()
