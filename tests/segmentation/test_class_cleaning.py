"""Salt and pepper out of class maps."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.segmentation.class_cleaning import majority_filter, remove_islands


def test_stray_names_give_way_to_the_majority():
    truth = np.repeat([[1, 2, 3]], 60, axis=0).repeat(20, axis=1).astype(np.uint8)
    rng = np.random.default_rng(0)
    noisy = np.where(rng.random(truth.shape) < 0.15, rng.integers(1, 4, truth.shape), truth).astype(np.uint8)
    noisy[:5, :5] = 255
    cleaned = majority_filter(noisy, 5)
    known = noisy != 255
    assert (cleaned[known] == truth[known]).mean() > 0.98 > (noisy[known] == truth[known]).mean()
    assert (cleaned[~known] == 255).all() and (cleaned[known] != 255).all()
    np.testing.assert_array_equal(majority_filter(truth, 3), truth)  # straight borders stay where they are
    np.testing.assert_array_equal(majority_filter(noisy, 1), noisy)
    with pytest.raises(UserError, match="odd"):
        majority_filter(noisy, 4)


def test_islands_take_the_name_of_what_is_near():
    classes = np.zeros((30, 30), np.uint8)
    classes[:, 15:] = 1
    classes[5, 5] = 2
    classes[20:24, 20:24] = 2
    classes[0, :3] = 255
    cleaned, removed = remove_islands(classes, 4)
    assert removed == 1 and cleaned[5, 5] == 0
    assert (cleaned[20:24, 20:24] == 2).all() and (cleaned[0, :3] == 255).all()
    assert (cleaned != classes).sum() == 1
    same, removed = remove_islands(classes, 0)
    assert removed == 0 and (same == classes).all()
