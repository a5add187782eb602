"""Start values of kernels drawn by NumPy: the same on every backend for the same seed, and nothing to compile.

JAX compiles the drawing of random numbers anew for every shape, half a second apiece; a network has dozens.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np


class HostDrawn:
    """Mixin of layers whose uniform kernels (Glorot, the default, and He) come from NumPy; others are as they are."""

    def add_weight(self, *args: Any, initializer: Any = None, **kwargs: Any) -> keras.Variable:
        return super().add_weight(*args, initializer=_on_host(initializer), **kwargs)


def _on_host(initializer: Any) -> Any:
    """`(shape, dtype) -> array` of the same distribution; the initializer itself where that is not known."""
    kinds = (keras.initializers.GlorotUniform, keras.initializers.HeUniform)
    if type(initializer) not in kinds or not isinstance(initializer.seed, int):
        return initializer
    is_glorot = type(initializer) is kinds[0]

    def draw(shape: tuple[int, ...], dtype: str | None = None) -> Any:
        *window, inputs, outputs = shape if len(shape) > 1 else (*shape, *shape)
        limit = math.sqrt(6 / max(math.prod(window) * (inputs + (outputs if is_glorot else 0)), 1))
        values = np.random.default_rng(initializer.seed).uniform(-limit, limit, shape).astype("float32")
        return keras.ops.convert_to_tensor(values, dtype=dtype)

    return draw


@keras.saving.register_keras_serializable(package="keras_microseg")
class Dense(HostDrawn, keras.layers.Dense):
    """`keras.layers.Dense` with start values drawn by NumPy."""
