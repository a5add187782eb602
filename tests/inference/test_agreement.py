"""Stability of segmentations, without a network."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_microseg.checks import UserError
from keras_microseg.inference import agreement
from keras_microseg.inference.agreement import compare_runs, measure_stability, nearest_labels


def squares(*boxes, shape=(60, 80)):
    labels = np.zeros(shape, np.int32)
    for number, (y, x, size) in enumerate(boxes, start=1):
        labels[y : y + size, x : x + size] = number
    return labels


def test_known_answers():
    labels = squares((10, 10, 10), (10, 40, 10), (40, 10, 10))
    labels[labels == 2] = 7
    half = squares((10, 10, 10), (10, 45, 10))  # the second moved by half its width: IoU 1/3
    found = compare_runs(labels, [half])
    np.testing.assert_array_equal(found.ids, [1, 3, 7])
    np.testing.assert_allclose(found.particles, [1, 0, 1 / 3], rtol=1e-6)
    assert found.f1 == pytest.approx(2 * 1 / (3 + 2)) and found.pq == pytest.approx(found.f1)
    both = compare_runs(labels, [half, labels])
    np.testing.assert_allclose(both.particles, [1, 0.5, 2 / 3], rtol=1e-6)
    assert both.f1 == pytest.approx((0.4 + 1) / 2)


def test_nothing_found():
    empty, one = np.zeros((60, 80), np.int32), squares((5, 5, 5))
    assert np.isnan(compare_runs(empty, [empty]).f1) and len(compare_runs(empty, [one]).ids) == 0
    assert compare_runs(empty, [one]).f1 == compare_runs(one, [empty]).f1 == 0
    with pytest.raises(UserError, match="Another segmentation"):
        compare_runs(one, [])


@given(st.integers(0, 2**32), st.integers(17, 70))
def test_blocks_change_nothing(seed, block):
    rng = np.random.default_rng(seed)
    labels, other = (
        squares(
            *zip(rng.integers(0, 90, 25), rng.integers(0, 140, 25), rng.integers(3, 9, 25), strict=True),
            shape=(100, 150),
        )
        for _ in range(2)
    )
    other = np.where(rng.random() < 0.5, labels, other)
    whole = measure_stability(labels, lambda window, factor: other[window], factors=(1,))
    parts = measure_stability(labels, lambda window, factor: other[window], factors=(1,), block=block, margin=20)
    np.testing.assert_array_equal(whole.ids, parts.ids)
    np.testing.assert_allclose(whole.particles, parts.particles)
    assert whole.f1 == pytest.approx(parts.f1) and whole.pq == pytest.approx(parts.pq)


def test_numbers_follow_the_labels():
    found = compare_runs(squares((0, 0, 5), (20, 20, 5), (40, 40, 5)), [squares((0, 0, 5), (20, 20, 4))])
    moved = found.renumbered(np.array([0, 2, 0, 1]))
    np.testing.assert_array_equal(moved.ids, [1, 2])
    np.testing.assert_allclose(moved.particles, [0, 1])


def test_nearest_labels():
    labels = squares((10, 10, 20))
    np.testing.assert_array_equal(nearest_labels(nearest_labels(labels, (120, 160)), labels.shape), labels)


def test_the_estimate_stays_between_0_and_1():
    for f1 in (0.0, 0.5, 1.0):
        assert 0 <= agreement.Stability(np.zeros(0), np.zeros(0), f1, f1).expected_f1 <= 1
