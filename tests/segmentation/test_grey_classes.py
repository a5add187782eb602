"""Thresholds fitted to known pixels; whole and windowed classification agree."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.segmentation.grey_classes import GreyClasses, GreyClassified, fit_grey_classes


def test_thresholds_lie_between_the_classes():
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(3), 400).reshape(1, -1).repeat(60, axis=0)
    grey = np.clip(rng.normal(np.array([20, 90, 170])[classes], 8), 0, 255).astype(np.uint8)
    classes[:, ::7] = 255
    found = fit_grey_classes([(grey, classes)], 3, sigma=0)
    change = np.flatnonzero(np.diff(found.table.astype(int)))
    np.testing.assert_allclose(change, [55, 130], atol=4)
    assert found.table[0] == 0 and found.table[255] == 2  # grey values never met follow their neighbours
    again = GreyClasses.from_dict(found.to_dict())
    np.testing.assert_array_equal(again.table, found.table)
    with pytest.raises(UserError, match="no known pixel"):
        fit_grey_classes([(grey, np.full_like(classes, 255))], 3)


def test_windows_are_those_of_the_whole():
    image = np.random.default_rng(1).integers(0, 255, (90, 70), np.uint8)
    lazy = GreyClassified(image, GreyClasses((np.arange(256) // 64).astype(np.uint8), 1.5))
    np.testing.assert_array_equal(lazy[20:50, 10:33], lazy[...][20:50, 10:33])
    with pytest.raises(UserError, match="8-bit"):
        GreyClassified(image.astype(np.uint16), lazy.classes)
