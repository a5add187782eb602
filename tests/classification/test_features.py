import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.classification import FEATURES, instance_features
from keras_microseg.image import PixelSize


def scene(shape=(80, 120)):
    """A bright square and a dim one side by side, and a small square alone."""
    labels, grey = np.zeros(shape, np.int32), np.full(shape, 20.0)
    labels[20:40, 20:40], labels[20:40, 40:60], labels[60:70, 90:100] = 5, 2, 9
    grey[labels == 5], grey[labels == 2], grey[labels == 9] = 100, 60, 80
    return labels, grey


def test_known_answers():
    table = instance_features(*scene()).set_index("label")
    assert list(table.index) == [2, 5, 9] and list(table.columns) == list(FEATURES)
    assert table.attrs["unit"] == "px"
    np.testing.assert_allclose(table["grey_mean"], [0.5, 1.0, 0.75])  # 20..100 becomes 0..1
    np.testing.assert_allclose(table["contrast"], [0.5, 1.0, 0.75])
    np.testing.assert_allclose(table["grey_std"], 0, atol=1e-9)
    np.testing.assert_array_equal(table["contacts"], [1, 1, 0])
    # each square borders on the other along one of its four sides, grown by 2 px above and below: 24 of 88 edges
    np.testing.assert_allclose(table["contact_share"], [24 / 88, 24 / 88, 0], atol=0.02)
    np.testing.assert_allclose(table["neighbour_grey"], [-0.5, 0.5, np.nan])
    np.testing.assert_allclose(table["contact_step"], [-0.5, 0.5, np.nan])
    np.testing.assert_allclose(table["neighbour_size"], [0, 0, np.nan], atol=1e-12)
    np.testing.assert_allclose(table["relative_size"], [0, 0, np.log(0.5)], atol=1e-12)
    np.testing.assert_allclose(np.exp(table["log_diameter"]), np.sqrt(4 / np.pi) * np.array([20, 20, 10]))


def test_do_not_depend_on_numbers_brightness_or_flips():
    labels, grey = scene()
    grey = grey + np.random.default_rng(0).normal(0, 3, grey.shape)
    first = instance_features(labels, grey)
    brighter = instance_features(labels * 3, 7 + 2.5 * grey)
    np.testing.assert_allclose(first[list(FEATURES)], brighter[list(FEATURES)], atol=1e-5)
    flipped = instance_features(labels[::-1, ::-1], grey[::-1, ::-1])
    np.testing.assert_allclose(first[list(FEATURES)], flipped[list(FEATURES)], atol=1e-5)


def test_pixel_size_moves_the_diameter_alone():
    labels, grey = scene()
    first = instance_features(labels, grey)
    sized = instance_features(labels, grey, pixel_size=PixelSize.parse("4 nm"))
    assert sized.attrs["unit"] == "nm"
    np.testing.assert_allclose(sized["log_diameter"] - first["log_diameter"], np.log(4))
    others = [name for name in FEATURES if name != "log_diameter"]
    np.testing.assert_allclose(first[others], sized[others])


@pytest.mark.parametrize(
    "labels, grey",
    [
        (np.zeros((6, 7), int), np.zeros((6, 7))),
        (np.ones((6, 7), int), np.full((6, 7), np.nan)),
        (np.eye(6, 7, dtype=int), np.arange(42).reshape(6, 7)),
        (np.arange(1, 43).reshape(6, 7), np.ones((6, 7), np.uint16)),
    ],
)
def test_extreme_images(labels, grey):
    table = instance_features(labels, grey)
    assert len(table) == len(np.unique(labels[labels > 0]))
    assert not np.isinf(table.to_numpy(float)).any()


def test_shapes_must_agree():
    with pytest.raises(UserError, match="one size"):
        instance_features(np.zeros((3, 4), int), np.zeros((4, 4)))
