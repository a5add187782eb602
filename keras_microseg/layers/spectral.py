"""Convolution of bounded gain, for discriminators."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg.layers.convolution import Conv2D

_register = keras.saving.register_keras_serializable(package="keras_microseg")


@_register
class SpectralConv2D(Conv2D):
    """`Conv2D` whose kernel is divided by its largest singular value, as a (window x inputs, filters) matrix.

    That value is followed by one power iteration per call in training, from a vector (`vector`, not trained) that is
    the same on every backend; the gradient flows through the division. `keras.layers.SpectralNormalization` overwrites
    the trained kernel instead, which gradients computed outside of it must not see.

    Args:
        args, kwargs: see `keras.layers.Conv2D`.

    Reference: Miyato et al. (2018), arXiv:1802.05957.
    """

    def build(self, input_shape: Any) -> None:
        super().build(input_shape)
        start = np.random.default_rng(0).standard_normal((1, self.filters)).astype("float32")
        self.vector = self.add_weight(
            name="vector", shape=start.shape, trainable=False, dtype="float32", autocast=False,
            initializer=lambda shape, dtype=None: ops.convert_to_tensor(start / np.linalg.norm(start), dtype=dtype),
        )  # fmt: skip

    def call(self, inputs: Any, training: bool = False) -> Any:
        kernel = ops.convert_to_tensor(self.kernel)
        matrix = ops.reshape(ops.cast(kernel, "float32"), (-1, self.filters))
        fixed = ops.stop_gradient(matrix)
        right = ops.convert_to_tensor(self.vector)
        left = _unit(ops.matmul(right, ops.transpose(fixed)))
        if training:
            right = _unit(ops.matmul(left, fixed))
            self.vector.assign(right)
        # at the singular vectors d sigma / d W = left^T right, so both are constants here
        gain = ops.sum(ops.matmul(ops.stop_gradient(left), matrix) * ops.stop_gradient(right))
        outputs = self.convolution_op(inputs, kernel / ops.cast(ops.maximum(gain, 1e-12), kernel.dtype))
        if self.use_bias:
            outputs = outputs + self.bias
        return outputs if self.activation is None else self.activation(outputs)


def _unit(vector: Any) -> Any:
    return vector / ops.maximum(ops.sqrt(ops.sum(ops.square(vector))), 1e-12)
