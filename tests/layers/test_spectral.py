"""Convolutions of bounded gain: the layer's habits, the singular value and the gradient against NumPy."""

import keras
import numpy as np
import pytest
from harness import check_layer, sample, to_numpy
from keras import ops

from keras_microseg import backend, layers
from keras_microseg.models import pix2pix_discriminator

pytestmark = pytest.mark.network


def test_it_behaves_like_other_layers():
    check_layer(
        layers.SpectralConv2D,
        {"filters": 3, "kernel_size": 4, "strides": 2, "padding": "same"},
        (2, 8, 7, 2),
        (2, 4, 4, 3),
    )


def test_the_gain_and_its_gradient_are_those_of_numpy():
    x = sample((1, 6, 6, 2))
    layer, plain = (kind(3, 3, use_bias=False) for kind in (layers.SpectralConv2D, layers.Conv2D))
    for one in (layer, plain):
        one.build(x.shape)
    kernel = sample((3, 3, 2, 3), 1) * 4
    layer.kernel.assign(kernel)
    for _ in range(60):
        layer(x, training=True)
    u, s, vt = np.linalg.svd(kernel.reshape(18, 3).astype("float64"), full_matrices=False)
    plain.set_weights([(kernel / s[0]).astype("float32")])
    np.testing.assert_allclose(to_numpy(layer(x, training=False)), to_numpy(plain(x)), rtol=1e-4, atol=1e-5)

    def loss_of(one):
        return lambda: ops.sum(one(x, training=True) ** 2 if one is layer else one(x) ** 2)

    _, (found,) = backend.value_and_grad(loss_of(layer), [layer.kernel], state=layer.non_trainable_variables)
    _, (outer,) = backend.value_and_grad(loss_of(plain), [plain.kernel])
    outer = to_numpy(outer).reshape(18, 3).astype("float64")
    normal = kernel.reshape(18, 3) / s[0]
    expected = (outer - (outer * normal).sum() * np.outer(u[:, 0], vt[0])) / s[0]  # Miyato et al. 2018, eq. 12
    np.testing.assert_allclose(to_numpy(found).reshape(18, 3), expected, rtol=2e-3, atol=2e-3 * np.abs(expected).max())
    np.testing.assert_array_equal(to_numpy(layer.kernel.value), kernel)  # what is trained stays as it was


def test_discriminators_have_it_on_request():
    plain, bounded = (pix2pix_discriminator((None, None, 4), filters=4, spectral=s) for s in (False, True))
    assert len(bounded.trainable_variables) == len(plain.trainable_variables)
    vectors = [v for v in bounded.non_trainable_variables if v.path.endswith("vector")]
    assert [v.shape for v in vectors] == [(1, 4), (1, 8), (1, 16), (1, 32), (1, 1)]
    assert isinstance(bounded.get_layer("scores"), keras.layers.Conv2D)
