"""BatchNorm equals keras.layers.BatchNormalization, running statistics with the biased variance included."""

import keras
import numpy as np
import pytest
from harness import check_layer, sample, to_numpy

from keras_microseg.layers import BatchNorm, GroupNorm

pytestmark = pytest.mark.network


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"momentum": 0.9, "epsilon": 1e-5}, (4, 5, 3, 2)),
        ({"scale": False}, (3, 4, 4, 3)),
        ({"center": False, "axis": 3}, (3, 4, 4, 3)),
        ({}, (6, 2)),
        ({}, (2, 3, 4, 2, 2)),
        ({"axis": 1}, (2, 3, 4, 4)),
    ],
)
def test_equals_stock_layer(arguments, shape):
    check_layer(BatchNorm, arguments, shape, shape, same_as=keras.layers.BatchNormalization)


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ({"groups": -1, "epsilon": 1e-5}, (2, 5, 3, 4)),
        ({"groups": -1, "scale": False}, (1, 3, 4, 2, 3)),
        ({"groups": 2, "center": False}, (2, 3, 4, 4)),
        ({"groups": -1}, (2, 1, 1, 3)),
    ],
)
def test_group_norm_equals_stock_layer(arguments, shape):
    check_layer(GroupNorm, arguments, shape, shape, same_as=keras.layers.GroupNormalization)


def test_running_variance_is_the_biased_one():
    layer = BatchNorm(momentum=0.0)
    x = np.array([[1.0], [2.0], [6.0]], "float32")
    y = to_numpy(layer(x, training=True))
    np.testing.assert_allclose(layer.moving_mean.numpy(), [3.0], rtol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [14 / 3], rtol=1e-5)  # unbiased: 7
    np.testing.assert_allclose(y.ravel(), (x.ravel() - 3) / np.sqrt(14 / 3 + 1e-3), rtol=1e-5)


def test_frozen_layer_uses_and_keeps_its_statistics():
    layer = BatchNorm()
    layer.build((None, 2))
    layer.trainable = False
    x = sample((8, 2))
    np.testing.assert_allclose(to_numpy(layer(x, training=True)), x / np.sqrt(1.001), rtol=1e-4)
    np.testing.assert_array_equal(layer.moving_mean.numpy(), [0, 0])


def test_one_value_per_channel_and_masks_take_the_stock_path():
    x = sample((1, 3))
    np.testing.assert_allclose(to_numpy(BatchNorm()(x, training=True)), np.zeros((1, 3)), atol=1e-5)
    x, mask = sample((2, 3, 4)), np.array([[True, False, True], [True, True, False]])
    ours, stock = BatchNorm(momentum=0.5), keras.layers.BatchNormalization(momentum=0.5)
    np.testing.assert_allclose(
        to_numpy(ours(x, training=True, mask=mask)), to_numpy(stock(x, training=True, mask=mask)), atol=1e-6
    )
    np.testing.assert_allclose(ours.moving_mean.numpy(), stock.moving_mean.numpy(), atol=1e-7)


def test_weights_of_the_stock_layer_fit():
    stock, ours = keras.layers.BatchNormalization(), BatchNorm()
    stock.build((None, 4))
    ours.build((None, 4))
    assert [v.name for v in ours.weights] == [v.name for v in stock.weights]
