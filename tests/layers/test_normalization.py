"""BatchNorm equals keras.layers.BatchNormalization, running statistics with the biased variance included."""

import keras
import numpy as np
import pytest
from harness import check_layer, sample, to_numpy
from keras import ops

from keras_microseg import backend
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


@pytest.mark.parametrize("layer", [GroupNorm(groups=-1, epsilon=1e-5), BatchNorm(epsilon=1e-5, momentum=0.0)])
def test_statistics_of_large_maps_are_not_lost_in_rounding(layer):
    """A sum of 262144 float32 numbers one by one would be wrong by 1e-4 of itself."""
    if isinstance(layer, BatchNorm) and backend.fused_batch_norm is None:
        pytest.skip("the stock layer takes the statistics of a batch here")
    x = np.random.default_rng(0).normal(0.2, 0.1, (1, 512, 512, 2)).astype("float32")
    exact = x.astype("float64")
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    exact = (exact - mean) / np.sqrt(variance + 1e-5)
    y = to_numpy(layer(x) if isinstance(layer, GroupNorm) else layer(x, training=True))
    np.testing.assert_allclose(y, exact, rtol=0, atol=1e-5)
    if isinstance(layer, BatchNorm):
        np.testing.assert_allclose(to_numpy(layer.moving_mean), mean, rtol=1e-6)
        np.testing.assert_allclose(to_numpy(layer.moving_variance), variance, rtol=2e-6)


def test_gradients_of_large_maps():
    """First and second ones against differences of the same loss in float64."""
    rng = np.random.default_rng(1)
    x, weights = rng.normal(1, 0.5, (1, 72, 72, 2)).astype("float32"), rng.normal(0, 1, (1, 72, 72, 2))
    layer = GroupNorm(groups=-1, epsilon=1e-3)
    layer.build(x.shape)
    layer.gamma.assign([1.5, 0.5])

    def loss(x, gamma=(1.5, 0.5)):
        y = (x - x.mean((1, 2))) / np.sqrt(x.var((1, 2)) + 1e-3) * np.array(gamma)
        return (weights * y**3).sum()

    def slope(function, step=1e-5):
        return (function(step) - function(-step)) / (2 * step)

    factors = weights.astype("float32")
    step = backend.compile_step(
        lambda x: backend.value_and_grad(
            lambda: (ops.sum(ops.convert_to_tensor(factors) * layer(x) ** 3), {}), layer.trainable_variables
        ),
        layer.variables,
    )
    value, (gamma, beta) = step(x)
    exact = x.astype("float64")
    assert float(value[0]) == pytest.approx(loss(exact), rel=1e-4)
    expected = [slope(lambda h, i=i: loss(exact, np.array([1.5, 0.5]) + h * np.eye(2)[i])) for i in range(2)]
    np.testing.assert_allclose(to_numpy(gamma), expected, rtol=1e-3)

    def first(x, gamma=(1.5, 0.5)):
        """Analytic gradient of the loss with respect to x."""
        n, mean, deviation = x.shape[1] * x.shape[2], x.mean((1, 2)), np.sqrt(x.var((1, 2)) + 1e-3)
        z = (x - mean) / deviation
        outer = 3 * weights * (z * gamma) ** 2 * gamma
        return (outer - outer.mean((1, 2)) - z * (outer * z).sum((1, 2)) / n) / deviation

    def penalty(x):
        gradient = backend.input_gradient(lambda x: ops.convert_to_tensor(factors) * layer(x) ** 3, x)
        return ops.sum(gradient**2), {"gradient": gradient}

    twice = backend.compile_step(
        lambda x: backend.value_and_grad(lambda: penalty(x), layer.trainable_variables), layer.variables
    )
    (_, logs), (gamma, _) = twice(x)
    np.testing.assert_allclose(to_numpy(logs["gradient"]), first(exact), atol=1e-3 * np.abs(first(exact)).max())
    start = np.array([1.5, 0.5])
    expected = [slope(lambda h, i=i: (first(exact, start + h * np.eye(2)[i]) ** 2).sum()) for i in range(2)]
    np.testing.assert_allclose(to_numpy(gamma), expected, rtol=1e-3)


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
