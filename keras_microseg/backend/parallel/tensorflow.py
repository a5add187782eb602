"""Data parallel training on TensorFlow: one copy of the computation per device in one graph, weights on the first.

`tf.distribute.MirroredStrategy` would need every variable to be made in its scope and sums gradients after clipping;
the copies here work on the variables as they are, and clipping sees the averaged gradients, as on one device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from keras_microseg import backend
from keras_microseg.checks import UserError

_names: list[str] = []


def run(fn: Callable, devices: int, *args: Any) -> Any:
    """See `keras_microseg.backend.parallel`."""
    global _names
    found = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    if len(found) < devices:
        raise UserError(
            f"devices={devices}: TensorFlow finds {len(found)} ({', '.join(device.name for device in found)})."
        )
    _names = [device.name for device in found[:devices]]
    try:
        return fn(0, *args)
    finally:
        _names = []


def value_and_grad(loss_fn: Callable, arrays: list, variables: list, state: list) -> tuple[Any, list]:
    """See `keras_microseg.backend.parallel`."""
    count = len(_names)
    shares = [[None] * count if array is None else tf.split(array, count) for array in arrays]
    moving = [variable for variable in state if "float" in variable.dtype]  # seed states simply go on
    starts = [tf.identity(variable.value) for variable in moving]
    ends: list[list[tf.Tensor]] = [[] for _ in moving]
    values, gradients = [], []
    for name, share in zip(_names, zip(*shares, strict=True), strict=True):
        with tf.device(name):
            value, gradient = backend.value_and_grad(lambda share=share: loss_fn(*share), variables, state=state)
        values.append(value if isinstance(value, tuple) else (value,))
        gradients.append(gradient)
        for variable, start, seen in zip(moving, starts, ends, strict=True):
            seen.append(tf.identity(variable.value))
            variable.assign(start)
    for variable, seen in zip(moving, ends, strict=True):
        variable.assign(tf.add_n(seen) / count)
    loss = tf.add_n([value[0] for value in values]) / count
    others = [keras.tree.map_structure(lambda *t: tf.concat(t, axis=0), *parts) for parts in _after_first(values)]
    mean = [tf.add_n(list(parts)) / count for parts in zip(*gradients, strict=True)]
    return ((loss, *others) if len(values[0]) > 1 else loss), mean


def _after_first(values: list[tuple]) -> list[tuple]:
    return list(zip(*(value[1:] for value in values), strict=True))
