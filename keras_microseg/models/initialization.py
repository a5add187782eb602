"""Start values that are the same on every backend."""

from __future__ import annotations

import math

import keras
import numpy as np

from keras_microseg.checks import check_number


def draw_kernels(model: keras.Model, seed: int) -> keras.Model:
    """Draw all kernels anew, Glorot uniform; other weights keep the values they were built with.

    The streams of Keras differ by backend; these come from NumPy.

    Args:
        model: built model; changed in place.
        seed: any non-negative integer.

    Returns:
        `model`.

    Reference: Glorot and Bengio (2010), AISTATS.
    """
    rng = np.random.default_rng(check_number("seed", seed, minimum=0, integer=True))
    for variable in model.trainable_variables:
        if variable.path.endswith("kernel"):
            *window, inputs, outputs = variable.shape
            limit = math.sqrt(6 / (math.prod(window) * (inputs + outputs)))
            variable.assign(rng.uniform(-limit, limit, variable.shape).astype("float32"))
    return model
