import keras
import numpy as np
import pytest

from keras_microseg import backend
from keras_microseg.models import multires_unet, unet
from keras_microseg.models.folding import fold_batch_norm

pytestmark = pytest.mark.network
L = keras.layers


def randomize(model, seed=0):
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        values = rng.normal(0, 0.3, variable.shape)
        variable.assign(np.abs(values) + 0.2 if "variance" in variable.path else values)
    return model


def outputs(model, seed=1):
    x = np.random.default_rng(seed).normal(size=(2, 12, 11, *model.input_shape[3:])).astype("float32")
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def check_fold(model, norms_left):
    before = [np.array(w) for w in model.get_weights()]
    folded = fold_batch_norm(randomize(model) if not before else model)
    for expected, received in zip(outputs(model), outputs(folded), strict=True):
        np.testing.assert_allclose(received, expected, rtol=1e-5, atol=1e-5)
    assert sum(isinstance(la, L.BatchNormalization) for la in folded._flatten_layers()) == norms_left
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    return folded


def test_conv_norm_relu_chains_fold_completely():
    inputs = x = L.Input((None, None, 2))
    for i, (bias, groups) in enumerate([(True, 1), (False, 2), (True, 1)]):
        x = L.Conv2D(4, 3, padding="same", use_bias=bias, groups=groups, strides=1 + i % 2)(x)
        x = L.BatchNormalization(scale=i != 1, center=i != 2, epsilon=1e-5)(x)
        x = L.ReLU()(x)
    folded = check_fold(randomize(keras.Model(inputs, x)), norms_left=0)
    assert not any("norm" in layer.name for layer in folded.layers)


class SubclassedNorm(L.BatchNormalization):
    pass


def test_a_subclass_of_the_norm_folds():
    inputs = L.Input((None, None, 1))
    x = SubclassedNorm(momentum=0.9)(L.Conv2D(3, 3, padding="same")(inputs))
    check_fold(randomize(keras.Model(inputs, x)), norms_left=0)


def test_what_is_used_elsewhere_stays():
    inputs = L.Input((None, None, 3))
    skipped = L.Conv2D(3, 3, padding="same")(inputs)  # also feeds the sum
    x = L.Add()([L.BatchNormalization()(skipped), skipped])
    shown = L.Conv2D(3, 1)(x)  # also an output
    x = L.BatchNormalization()(shown)
    shared = L.Conv2D(3, 3, padding="same")  # applied twice
    x = L.BatchNormalization()(shared(shared(x)))
    x = L.BatchNormalization()(L.Conv2D(3, 1, activation="relu")(x))  # not linear
    x = L.BatchNormalization()(L.ReLU()(x))  # no convolution
    x = L.BatchNormalization()(L.Conv2D(2, 1)(x))  # this one folds
    check_fold(randomize(keras.Model(inputs, [x, shown])), norms_left=5)


def test_nested_models_fold():
    inner_in = L.Input((None, None, 2))
    inner = keras.Model(inner_in, L.BatchNormalization()(L.Conv2D(2, 3, padding="same")(inner_in)), name="inner")
    inputs = L.Input((None, None, 2))
    x = L.BatchNormalization()(L.Conv2D(2, 3, padding="same")(inner(inputs)))
    check_fold(randomize(keras.Model(inputs, x)), norms_left=0)


@pytest.mark.parametrize("network", [unet, multires_unet])
def test_networks_of_the_package_give_the_same_maps(network):
    model = network((None, None, 1), filters=(4, 8, 8) if network is unet else 4)
    rng = np.random.default_rng(0)
    for norm in (layer for layer in model._flatten_layers() if isinstance(layer, L.BatchNormalization)):
        norm.set_weights([value + rng.uniform(-0.2, 0.2, value.shape) for value in norm.get_weights()])
    folded = fold_batch_norm(model)
    x = np.random.default_rng(1).random((1, 32, 32, 1)).astype("float32")
    expected, received = (backend.compile_predict(m)(x) for m in (model, folded))
    np.testing.assert_allclose(received, expected, atol=1e-5)
    norms = [sum(isinstance(la, L.BatchNormalization) for la in m._flatten_layers()) for m in (model, folded)]
    assert norms[1] <= norms[0] // 2
