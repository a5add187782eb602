"""Reduction by area averages: exact means, any window by itself, rounding, channels."""

import numpy as np
import pytest

from keras_microseg.checks import UserError
from keras_microseg.inference.views import AreaView


@pytest.mark.parametrize("factor", [1.0, 2.0, 2.5, 3.0])
def test_every_pixel_is_the_mean_of_the_area_it_covers(factor):
    image = np.random.default_rng(0).random((60, 40)).astype(np.float32)
    view = AreaView(image, factor)
    fine = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)  # half pixels make 2.5 a whole number
    step = int(2 * factor)
    rows, columns = 120 // step, 80 // step
    expected = fine[: rows * step, : columns * step].reshape(rows, step, columns, step).mean(axis=(1, 3))
    whole = view[:, :]
    assert view.shape == whole.shape == (rows, columns)
    np.testing.assert_allclose(whole, expected, atol=1e-6)
    np.testing.assert_allclose(view[3:11, 2:9], whole[3:11, 2:9], atol=1e-6)


def test_borders_types_and_channels():
    image = np.full((7, 8, 2), 100, np.uint8)
    image[..., 1] = 201
    view = AreaView(image, 3)
    assert view.shape == (2, 3, 2) and view.dtype == np.uint8  # 7 rows: a third would be a third covered
    np.testing.assert_array_equal(view[:, :], np.broadcast_to([100, 201], (2, 3, 2)))
    assert AreaView(np.full((8, 8), 65535, np.uint16), 300)[:, :].tolist() == [[65535]]
    with pytest.raises(UserError, match="factor"):
        AreaView(image, 0.5)
