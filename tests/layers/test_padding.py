"""Reflection padding equals numpy.pad, also along the path that PyTorch takes on GPUs."""

import importlib

import keras
import numpy as np
import pytest
from harness import check_layer, sample, to_numpy

from keras_microseg import backend
from keras_microseg.layers.padding import ReflectionPadding2D

pytestmark = pytest.mark.network


def test_equals_numpy():
    x = sample((2, 5, 6, 3))
    layer = check_layer(ReflectionPadding2D, {"padding": ((1, 3), (2, 0))}, x.shape, (2, 9, 8, 3))
    layer = layer or ReflectionPadding2D(((1, 3), (2, 0)))
    np.testing.assert_array_equal(to_numpy(layer(x)), np.pad(x, ((0, 0), (1, 3), (2, 0), (0, 0)), mode="reflect"))


@pytest.mark.skipif(backend.pad_reflect is None, reason="this backend pads by keras.ops")
def test_slices_that_pytorch_joins_on_gpus():
    port = importlib.import_module("keras_microseg.backend.torch")
    x = keras.ops.convert_to_tensor(sample((1, 5, 6, 2)))
    y = port.join_reflection(keras.ops.transpose(x, (0, 3, 1, 2)), (2, 1), (0, 4))
    expected = np.pad(to_numpy(x), ((0, 0), (2, 1), (0, 4), (0, 0)), mode="reflect")
    np.testing.assert_array_equal(to_numpy(y).transpose(0, 2, 3, 1), expected)
