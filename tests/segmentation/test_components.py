"""Components found among bits and runs are those of scikit-image, for any density and any size."""

import numpy as np
import pytest
from scipy import ndimage
from skimage import measure

from keras_microseg.checks import UserError
from keras_microseg.segmentation.components import label_runs
from keras_microseg.segmentation.runs import paint_runs


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("density", [0.02, 0.1, 0.3, 0.6, 0.95])
def test_random_volumes(density, connectivity):
    rng = np.random.default_rng(int(density * 100) + connectivity)
    for _ in range(12):
        mask = rng.random(tuple(rng.integers(1, 21, 3))) < density
        mask.ravel()[rng.integers(mask.size)] = True
        runs = label_runs(mask, connectivity)
        expected = measure.label(mask, connectivity=1 if connectivity == 4 else 3)
        np.testing.assert_array_equal(paint_runs(runs), expected)
        assert len(runs.labels) == expected.max()


@pytest.mark.parametrize("offset", list(np.ndindex(3, 3, 3)))
@pytest.mark.parametrize("corner", list(np.ndindex(2, 2, 2)))
def test_two_voxels_touch_in_every_direction(offset, corner):
    mask = np.zeros((6, 6, 18), bool)
    first = np.array([2, 2, 7]) + corner  # x = 7 and 8: on both sides of a byte
    mask[tuple(first)] = mask[tuple(first + offset - 1)] = True
    assert len(label_runs(mask, 8).labels) == 1


def test_blobs_of_every_width():
    rng = np.random.default_rng(3)
    for width in (7, 8, 9, 31, 32, 64):
        mask = ndimage.gaussian_filter(rng.standard_normal((21, 30, width)), 1.5) > 0.1
        np.testing.assert_array_equal(paint_runs(label_runs(mask)), measure.label(mask, connectivity=3))


def test_grey_values_follow_the_runs():
    rng = np.random.default_rng(4)
    mask, grey = rng.random((9, 10, 17)) < 0.4, rng.random((9, 10, 17))
    np.testing.assert_array_equal(label_runs(mask, 8, grey).values, grey[mask])


def test_full_and_empty():
    assert len(label_runs(np.zeros((4, 5, 6), bool)).labels) == 0
    assert len(label_runs(np.ones((4, 5, 8), np.uint8)).labels) == 1
    assert len(label_runs(np.zeros((0, 5, 6), bool)).labels) == 0


def test_grey_of_another_shape():
    with pytest.raises(UserError, match="size of the labels"):
        label_runs(np.ones((4, 5, 6), bool), 8, np.zeros((4, 5, 7)))
