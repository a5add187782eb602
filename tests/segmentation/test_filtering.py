import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.segmentation.filtering import filter_by_brightness
from keras_microseg.segmentation.labeling import threshold_value

LABELS = np.zeros((40, 60), np.int32)
LABELS[5:15, 5:15], LABELS[5:15, 25:35], LABELS[25:35, 5:15], LABELS[30, 50] = 1, 2, 7, 9


def picture(**greys):
    image = np.full(LABELS.shape, 20.0) + np.random.default_rng(0).normal(0, 2, LABELS.shape)
    for label, grey in greys.items():
        image[LABELS == int(label[1:])] += grey
    return image


def test_unpainted_particles_go():
    image = picture(l1=100, l7=80, l9=90)
    found = filter_by_brightness(LABELS, image)
    assert found.removed.tolist() == [2] and np.unique(found.labels).tolist() == [0, 1, 7, 9]
    assert found.threshold == threshold_value(image, "li")
    assert abs(found.means[1] - image[LABELS == 1].mean()) < 1e-9 and np.isnan(found.means[[0, 3]]).all()
    assert filter_by_brightness(LABELS, image, min_area=2).removed.tolist() == [2, 9]
    assert set(filter_by_brightness(LABELS, image, threshold=110.0).removed) >= {2, 7}


def test_dark_particles_on_bright_ground():
    image = 255 - picture(l1=100, l2=100, l9=100)
    for threshold in ("li", "otsu"):
        assert filter_by_brightness(LABELS, image, threshold=threshold, polarity="dark").removed.tolist() == [7]


def test_pixels_that_are_no_numbers_do_not_count():
    image = picture(l1=100, l2=100, l7=100, l9=100)
    image[5:10, 5:15] = np.nan
    assert filter_by_brightness(LABELS, image).removed.tolist() == []


def test_shapes_must_agree():
    with pytest.raises(UserError, match="one 2-D shape"):
        filter_by_brightness(LABELS, np.zeros((4, 4)))
