"""Layers of networks that compare two frames: choosing and exchanging them, coarse stems, and reading masks."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_microseg.checks import standardize_tuple

_register = keras.saving.register_keras_serializable(package="keras_microseg")


@_register
class SelectChannels(keras.layers.Layer):
    """Channels `start` to `stop` of (N, H, W, C) maps.

    Args:
        start, stop: half-open range.
    """

    def __init__(self, start: int, stop: int, **kwargs):
        super().__init__(**kwargs)
        self.start, self.stop = int(start), int(stop)

    def call(self, x: Any) -> Any:
        return x[..., self.start : self.stop]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], self.stop - self.start)

    def get_config(self) -> dict:
        return {**super().get_config(), "start": self.start, "stop": self.stop}


@_register
class SelectHalf(keras.layers.Layer):
    """One half of the batch of (2 N, H, W, C) maps; undoes a concatenation of two batches.

    Args:
        index: 0 = first half, 1 = second.
    """

    def __init__(self, index: int, **kwargs):
        super().__init__(**kwargs)
        self.index = int(index)

    def call(self, x: Any) -> Any:
        half = (ops.shape(x)[0] if x.shape[0] is None else x.shape[0]) // 2
        return x[half:] if self.index else x[:half]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        batch = input_shape[0]
        return (None if batch is None else batch // 2, *input_shape[1:])

    def get_config(self) -> dict:
        return {**super().get_config(), "index": self.index}


@_register
class SpaceToDepth(keras.layers.Layer):
    """(N, H, W, C) -> (N, H / s, W / s, s s C): each block of s x s pixels becomes the channels of one.

    Args:
        size: s; height and width must be multiples of it.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = standardize_tuple(size, 1, "size")[0]

    def call(self, x: Any) -> Any:
        channels = x.shape[-1]
        s = self.size
        rows, columns = _sizes(x)
        x = ops.reshape(x, (-1, rows // s, s, columns // s, s, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows // s, columns // s, s * s * channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        batch, *sizes, channels = input_shape
        return (batch, *(None if n is None else n // self.size for n in sizes), channels * self.size**2)

    def get_config(self) -> dict:
        return {**super().get_config(), "size": self.size}


@_register
class DepthToSpace(keras.layers.Layer):
    """(N, H, W, s s C) -> (N, s H, s W, C); undoes `SpaceToDepth`.

    Args:
        size: s; the number of channels must be a multiple of s s.
    """

    def __init__(self, size: int, **kwargs):
        super().__init__(**kwargs)
        self.size = standardize_tuple(size, 1, "size")[0]

    def call(self, x: Any) -> Any:
        s, channels = self.size, x.shape[-1] // self.size**2
        rows, columns = _sizes(x)
        x = ops.reshape(x, (-1, rows, columns, s, s, channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows * s, columns * s, channels))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        batch, *sizes, channels = input_shape
        return (batch, *(None if n is None else n * self.size for n in sizes), channels // self.size**2)

    def get_config(self) -> dict:
        return {**super().get_config(), "size": self.size}


@_register
class ProductLogits(keras.layers.Layer):
    """Logits of the four change classes from those of two masks: (N, H, W, 2) -> (N, H, W, 4).

    With f and g the logits of "foreground in the first (second) frame" the class 2 f + g gets 0, g, f, f + g: the
    softmax of these is the product of the two sigmoids.
    """

    def call(self, x: Any) -> Any:
        first, second = x[..., :1], x[..., 1:]
        return ops.concatenate([ops.zeros_like(first), second, first, first + second], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], 4)


@_register
class SymmetricLogits(keras.layers.Layer):
    """Mean of the change logits of a pair and of the swapped pair, whose classes 1 and 2 are exchanged."""

    def call(self, inputs: list) -> Any:
        there, back = inputs
        back = ops.concatenate([back[..., :1], back[..., 2:3], back[..., 1:2], back[..., 3:]], axis=-1)
        return (there + back) / 2

    def compute_output_shape(self, input_shape: list) -> tuple:
        return tuple(input_shape[0])


@_register
class ReadMasks(keras.layers.Layer):
    """Foreground of both frames from the logits of the four change classes: (N, H, W, 4) -> (N, H, W, 4).

    Channels of the result: probability of foreground in the first frame (p2 + p3) and in the second (p1 + p3), then 1
    where the likeliest class says foreground in the first frame (2, 3) and in the second (1, 3), else 0.
    """

    def call(self, x: Any) -> Any:
        p = ops.softmax(ops.cast(x, "float32"), axis=-1)
        soft = [p[..., 2] + p[..., 3], p[..., 1] + p[..., 3]]
        best = ops.argmax(x, axis=-1)
        hard = [ops.cast(best >= 2, "float32"), ops.cast(ops.equal(best % 2, 1), "float32")]
        return ops.stack([*soft, *hard], axis=-1)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (*input_shape[:-1], 4)


def _sizes(x: Any) -> tuple[Any, Any]:
    """Height and width; -1 cannot stand for both, so unknown ones are asked for."""
    known = x.shape[1:3]
    if None not in known:
        return known
    shape = ops.shape(x)
    return tuple(shape[axis] if known[axis - 1] is None else known[axis - 1] for axis in (1, 2))
