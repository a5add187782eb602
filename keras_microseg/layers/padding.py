"""Reflection padding of feature maps, of fixed width or up to a multiple."""

from __future__ import annotations

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import standardize_tuple


def _pad(x, heights, widths):
    """(N, H, W, C) maps with mirrored borders, `heights` and `widths` being (before, after)."""
    if heights == (0, 0) and widths == (0, 0):
        return x
    sizes = x.shape[1:3]
    is_fixed = all(isinstance(n, int) for n in (*sizes, *heights, *widths))
    if is_fixed and max(heights) < sizes[0] and max(widths) < sizes[1]:
        if backend.pad_reflect is not None:
            return backend.pad_reflect(x, heights, widths)
        return ops.pad(x, ((0, 0), heights, widths, (0, 0)), mode="reflect")
    return _reflect(_reflect(x, *heights, axis=1), *widths, axis=2)


def _reflect(x, before: int, after, axis: int):
    """Extend `axis` by mirroring without repeating the edge, as often as needed."""
    size = x.shape[axis]
    if size is not None and isinstance(after, int):
        if before == 0 and after == 0:
            return x
        index = np.arange(-before, size + after)
        period = max(2 * (size - 1), 1)
        index = np.abs(index) % period
        return ops.take(x, np.minimum(index, period - index).astype("int32"), axis=axis)
    size = ops.shape(x)[axis]
    index = ops.arange(-before, size + after, dtype="int32")
    period = ops.maximum(2 * (size - 1), 1)
    index = ops.mod(ops.abs(index), period)
    return ops.take(x, ops.minimum(index, period - index), axis=axis)


@keras.saving.register_keras_serializable(package="keras_microseg")
class ReflectionPadding2D(keras.layers.Layer):
    """Mirror the border of (N, H, W, C) maps without repeating the edge pixel.

    Args:
        padding: width in pixels: one number, (height, width), or ((top, bottom), (left, right)).
    """

    def __init__(self, padding=(1, 1), **kwargs):
        super().__init__(**kwargs)
        pairs = np.asarray(padding).tolist()
        if np.ndim(padding) < 2:
            pairs = [(n, n) for n in standardize_tuple(padding, 2, "padding", minimum=0)]
        self.padding = tuple(standardize_tuple(pair, 2, "padding", minimum=0) for pair in pairs)

    def call(self, x):
        return _pad(x, *self.padding)

    def compute_output_shape(self, input_shape):
        sizes = [n if n is None else n + sum(pair) for n, pair in zip(input_shape[1:3], self.padding, strict=True)]
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


@keras.saving.register_keras_serializable(package="keras_microseg")
class PadToMultiple(keras.layers.Layer):
    """Mirror the lower and right border of (N, H, W, C) maps until both sizes are multiples of `multiple`.

    Args:
        multiple: at least 1.
    """

    def __init__(self, multiple: int, **kwargs):
        super().__init__(**kwargs)
        self.multiple = standardize_tuple(multiple, 1, "multiple")[0]

    def call(self, x):
        sizes = [ops.shape(x)[axis] if x.shape[axis] is None else x.shape[axis] for axis in (1, 2)]
        return _pad(x, *((0, -size % self.multiple) for size in sizes))

    def compute_output_shape(self, input_shape):
        sizes = [n if n is None else n + (-n) % self.multiple for n in input_shape[1:3]]
        return (input_shape[0], *sizes, input_shape[3])

    def get_config(self):
        return {**super().get_config(), "multiple": self.multiple}


@keras.saving.register_keras_serializable(package="keras_microseg")
class CropToMatch(keras.layers.Layer):
    """Cut the first of two (N, H, W, C) maps to height and width of the second; undoes `PadToMultiple`."""

    def call(self, inputs):
        x, reference = inputs
        height, width = (reference.shape[axis] for axis in (1, 2))
        if height is None or width is None:
            height, width = ops.shape(reference)[1], ops.shape(reference)[2]
        return x[:, :height, :width]

    def compute_output_shape(self, input_shape):
        shape, reference = input_shape
        return (shape[0], *reference[1:3], shape[3])
