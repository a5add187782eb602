"""The last layer of networks whose channels mean different things."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="keras_microseg")
class MapsActivation(keras.layers.Layer):
    """Sigmoid for probability and distance maps, tanh for flow.

    Args:
        outputs: name of each channel of the input (N, H, W, C); those that start with `flow` lie in -1..1.
    """

    def __init__(self, outputs: Sequence[str], **kwargs):
        super().__init__(**kwargs)
        self.outputs = tuple(outputs)

    def call(self, x):
        is_flow = ops.convert_to_tensor([float(name.startswith("flow")) for name in self.outputs], dtype=x.dtype)
        return ops.where(is_flow > 0, ops.tanh(x), ops.sigmoid(x))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {**super().get_config(), "outputs": list(self.outputs)}
