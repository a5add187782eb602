"""The layers without layout copies equal the stock layers: outputs, gradients, weights, training statistics."""

import keras
import numpy as np
import pytest
from harness import check_layer, check_model, sample, to_numpy
from keras import ops

from keras_microseg import backend, layers

pytestmark = pytest.mark.network
CASES = {
    "same": ("Conv2D", {"filters": 3, "kernel_size": 3, "padding": "same"}, (2, 7, 6, 2), (2, 7, 6, 3)),
    "strided": (
        "Conv2D",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 8, 7, 2),
        (2, 4, 4, 3),
    ),
    "even kernel": ("Conv2D", {"filters": 3, "kernel_size": 4, "padding": "same"}, (1, 6, 5, 2), (1, 6, 5, 3)),
    "dilated": ("Conv2D", {"filters": 2, "kernel_size": 3, "dilation_rate": 2}, (1, 8, 8, 1), (1, 4, 4, 2)),
    "activation": ("Conv2D", {"filters": 2, "kernel_size": 1, "activation": "relu"}, (1, 3, 4, 2), (1, 3, 4, 2)),
    "volume": ("Conv3D", {"filters": 2, "kernel_size": 3, "padding": "same"}, (1, 4, 5, 3, 2), (1, 4, 5, 3, 2)),
    "up 2": (
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": 2, "strides": 2, "padding": "same"},
        (2, 3, 4, 2),
        (2, 6, 8, 3),
    ),
    "up 3": (
        "Conv2DTranspose",
        {"filters": 3, "kernel_size": 3, "strides": 2, "padding": "same", "use_bias": False},
        (2, 3, 4, 2),
        (2, 6, 8, 3),
    ),
    "up volume": ("Conv3DTranspose", {"filters": 2, "kernel_size": 2, "strides": 2}, (1, 2, 3, 2, 2), (1, 4, 6, 4, 2)),
    "pool": ("MaxPooling2D", {"pool_size": 2}, (2, 6, 7, 3), (2, 3, 3, 3)),
    "pool same": ("MaxPooling2D", {"pool_size": 2, "padding": "same"}, (2, 7, 5, 3), (2, 4, 3, 3)),
    "pool volume": ("MaxPooling3D", {"pool_size": 2}, (1, 4, 4, 6, 2), (1, 2, 2, 3, 2)),
    "nearest": ("UpSampling2D", {"size": (2, 3)}, (2, 3, 4, 3), (2, 6, 12, 3)),
    "bilinear": ("UpSampling2D", {"size": 2, "interpolation": "bilinear"}, (1, 3, 4, 2), (1, 6, 8, 2)),
    "nearest volume": ("UpSampling3D", {"size": 2}, (1, 2, 3, 2, 2), (1, 4, 6, 4, 2)),
}


ONE_PER_CLASS = list({name: case for case, (name, *_) in CASES.items()}.values())


@pytest.mark.parametrize(
    "case", CASES if backend.COPIES_LAYOUT else ONE_PER_CLASS
)  # elsewhere they are the stock layers
def test_equals_stock_layer(case):
    name, arguments, input_shape, output_shape = CASES[case]
    check_layer(getattr(layers, name), arguments, input_shape, output_shape, same_as=getattr(keras.layers, name))


def test_known_answer_of_stride_two_same_padding():
    # Keras pads one more at the end: with a kernel of ones, output i sums inputs 2i, 2i + 1, 2i + 2.
    layer = layers.Conv2D(1, (1, 3), strides=(1, 2), padding="same", kernel_initializer="ones", use_bias=False)
    x = np.arange(1, 7, dtype="float32").reshape(1, 1, 6, 1)
    np.testing.assert_allclose(to_numpy(layer(x)).ravel(), [1 + 2 + 3, 3 + 4 + 5, 5 + 6])


WINDOWS = [  # input smaller than the kernel: the first and the last
    ("Conv2D", {"kernel_size": 5, "strides": 2, "padding": "same"}, (2, 5, 8, 2)),
    ("Conv2D", {"kernel_size": 4, "strides": 2}, (2, 9, 8, 2)),
    ("Conv2DTranspose", {"kernel_size": 3, "strides": (2, 1), "padding": "same"}, (2, 4, 3, 2)),
    ("Conv3DTranspose", {"kernel_size": (1, 2, 3), "strides": (1, 1, 2)}, (2, 2, 1, 2, 2)),
]


def test_second_derivatives_equal_those_of_stock_layers():
    """Values, gradients, and gradients of a gradient penalty, of all windows in one compiled step."""
    pairs = []
    for name, arguments, shape in WINDOWS:
        both = [getattr(module, name)(3, **arguments) for module in (layers, keras.layers)]
        for layer in both:
            layer.build(shape)
            for i, variable in enumerate(layer.variables):
                variable.assign(0.1 * sample(tuple(variable.shape), seed=i))
        pairs.append((*both, sample(shape)))

    def penalties():
        results = []
        for ours, stock, x in pairs:
            for layer in (ours, stock):

                def loss(layer=layer, x=x):
                    slope = backend.input_gradient(lambda x: layer(x) ** 2, ops.convert_to_tensor(x))
                    return ops.sum(slope**2) + ops.sum(layer(x) ** 2)

                results.append(backend.value_and_grad(loss, layer.trainable_variables))
        return results

    results = backend.compile_step(penalties, [v for *both, _ in pairs for layer in both for v in layer.variables])()
    for (ours, *_), a, b in zip(pairs, results[::2], results[1::2], strict=True):
        for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
            y = to_numpy(y)
            np.testing.assert_allclose(to_numpy(x), y, rtol=1e-4, atol=1e-5 * np.abs(y).max(), err_msg=ours.name)


def test_channels_first_is_left_to_keras():
    if keras.config.backend() == "tensorflow":
        pytest.skip("TensorFlow has no channels-first convolution on CPU")
    arguments = {"filters": 3, "kernel_size": 3, "padding": "same", "data_format": "channels_first"}
    check_layer(layers.Conv2D, arguments, (2, 2, 6, 5), (2, 3, 6, 5), same_as=keras.layers.Conv2D)


def test_pooling_is_differentiable_by_its_input():
    inputs = keras.Input((4, 4, 1))
    x = layers.Conv2D(2, 1)(inputs)
    model = keras.Model(inputs, layers.UpSampling2D(2)(layers.MaxPooling2D(2)(x)))
    model.compile("sgd", "mse")
    data = sample((2, 4, 4, 1))
    first = model.train_on_batch(data, np.repeat(data, 2, axis=-1))
    for _ in range(20):
        last = model.train_on_batch(data, np.repeat(data, 2, axis=-1))
    assert last < first


def small_network(channels):
    inputs = keras.Input((None, None, channels))
    x = layers.BatchNorm()(layers.Conv2D(4, 3, padding="same", use_bias=False)(inputs))
    skip = keras.layers.ReLU()(x)
    x = layers.Conv2D(4, 3, padding="same")(layers.MaxPooling2D(2)(skip))
    x = keras.layers.Concatenate()([skip, layers.UpSampling2D(2)(x), layers.Conv2DTranspose(2, 2, strides=2)(x)])
    return keras.Model(inputs, layers.Conv2D(1, 1, activation="sigmoid")(x))


def test_network_of_these_layers_is_saved_and_trained():
    parameters = 3 * 3 * 2 * 4 + 4 * 4 + (3 * 3 * 4 * 4 + 4) + (2 * 2 * 4 * 2 + 2) + (10 + 1)
    shapes = {(1, 6, 10, 2): (1, 6, 10, 1), (2, 8, 8, 2): (2, 8, 8, 1)}
    check_model(small_network, {"channels": 2}, shapes, parameters=parameters)
