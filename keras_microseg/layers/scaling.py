"""What stands between an image in 0..1 and a network: scaling of grey values, and a check of the size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_microseg.checks import UserError, check_number

_register = keras.saving.register_keras_serializable(package="keras_microseg")


@_register
class ScaleInput(keras.layers.Layer):
    """`image * scale + offset` per channel, after repeating a grey image and reversing the order of channels.

    Args:
        scale, offset: one number, or one per channel of the result.
        repeat: make so many channels of a grey image; 1 = none.
        reverse: reverse the channels (RGB to BGR) before scaling.
    """

    def __init__(
        self,
        scale: float | Sequence[float] = 1.0,
        offset: float | Sequence[float] = 0.0,
        repeat: int = 1,
        reverse: bool = False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.scale, self.offset = (
            [float(v) for v in values] if isinstance(values, (list, tuple)) else float(values)
            for values in (scale, offset)
        )
        self.repeat = check_number("repeat", repeat, minimum=1, integer=True)
        self.reverse = bool(reverse)

    def call(self, x: Any) -> Any:
        if self.repeat > 1:
            x = ops.repeat(x, self.repeat, axis=-1)
        if self.reverse:
            x = ops.flip(x, axis=-1)
        scale, offset = (ops.convert_to_tensor(v, dtype=x.dtype) for v in (self.scale, self.offset))
        return x * scale + offset

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], input_shape[-1] * self.repeat)

    def get_config(self):
        own = {"scale": self.scale, "offset": self.offset, "repeat": self.repeat, "reverse": self.reverse}
        return {**super().get_config(), **own}


@_register
class AddScaled(keras.layers.Layer):
    """`a + scale * b` of two tensors (the residual of Inception-ResNet)."""

    def __init__(self, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.scale = float(scale)

    def call(self, inputs: Any) -> Any:
        return inputs[0] + inputs[1] * self.scale

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@_register
class RequireMultiple(keras.layers.Layer):
    """Hands images on whose height and width are multiples of `multiple`; others are refused with the size to use.

    Args:
        multiple: at least 1.
    """

    def __init__(self, multiple: int, **kwargs):
        super().__init__(**kwargs)
        self.multiple = check_number("multiple", multiple, minimum=1, integer=True)

    def call(self, x: Any) -> Any:
        check_size(x.shape[1:3], self.multiple)
        return x

    def compute_output_shape(self, input_shape):
        check_size(input_shape[1:3], self.multiple)
        return input_shape

    def get_config(self):
        return {**super().get_config(), "multiple": self.multiple}


def check_size(size: Sequence[int | None], multiple: int) -> None:
    """`UserError` that names the next larger size, unless all known lengths are multiples."""
    if any(isinstance(n, int) and n % multiple for n in size):
        better = " x ".join("any" if not isinstance(n, int) else str(n + -n % multiple) for n in size)
        shown = " x ".join(str(n) for n in size)
        raise UserError(
            f"This network needs heights and widths that are multiples of {multiple}. Received: {shown}. Use {better} "
            "(reflect the border), or `mineral predict`, which does so."
        )
