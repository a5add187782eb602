"""MultiRes U-Net (Ibtehaz and Rahman 2020, Neural Networks 121, 74, arXiv:1902.04049)."""

from __future__ import annotations

from collections.abc import Sequence

import keras

from keras_microseg import layers
from keras_microseg.checks import check_number
from keras_microseg.layers.padding import CropToMatch, PadToMultiple


def multires_unet(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    num_outputs: int = 1,
    filters: int = 16,
    *,
    activation: str | None = None,
    legacy: bool = False,
    name: str = "multires_unet",
) -> keras.Model:
    """U-Net of MultiRes blocks with residual skip paths; any height and width (padded by reflection inside).

    Args:
        input_shape: (height, width, channels).
        num_outputs: channels of the result.
        filters: width U of the finest level; each deeper level doubles it.
        activation: of the result. None = sigmoid for one output, softmax for several.
        legacy: decoder widths of the source system, 256, 128, 64 whatever `filters` is (right for 32 alone), instead of
            8, 4, 2 times `filters`. With `filters=16` it has 2 429 491 parameters.
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs) float32. A single output is normalized before the
        sigmoid, as published; several come from a 1 x 1 convolution.
    """
    check_number("filters", filters, minimum=4, integer=True)
    check_number("num_outputs", num_outputs, minimum=1, integer=True)
    inputs = keras.Input(input_shape, name="image")
    x = PadToMultiple(16, name="pad")(inputs)
    skips = []
    for level in range(4):
        width = filters * 2**level
        x = _multires_block(x, width, f"down{level}")
        skips.append(_res_path(x, width, 4 - level, f"skip{level}"))
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = _multires_block(x, 16 * filters, "bottom")
    decoder: Sequence[int] = (filters, 64, 128, 256) if legacy else [filters * 2**level for level in range(4)]
    for level in reversed(range(4)):
        x = layers.Conv2DTranspose(filters * 2**level, 2, strides=2, padding="same", name=f"up{level}_upsample")(x)
        x = keras.layers.Concatenate(name=f"up{level}_join")([x, skips[level]])
        x = _multires_block(x, decoder[level], f"up{level}")
    activation = activation or ("sigmoid" if num_outputs == 1 else "softmax")
    if num_outputs == 1:
        x = _conv_bn(x, 1, 1, None, "head")
        x = keras.layers.Activation(activation, dtype="float32", name="maps")(x)
    else:
        x = layers.Conv2D(num_outputs, 1, activation=activation, dtype="float32", name="maps")(x)
    outputs = CropToMatch(dtype="float32", name="crop")([x, inputs])
    return keras.Model(inputs, outputs, name=name)


def _conv_bn(x, width: int, kernel: int, activation: str | None, name: str):
    x = layers.Conv2D(width, kernel, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNorm(scale=False, name=f"{name}_norm")(x)
    return keras.layers.Activation(activation, name=f"{name}_{activation}")(x) if activation else x


def _multires_block(x, width: int, name: str):
    """Three 3 x 3 convolutions in a row, joined (receptive fields 3, 5, 7), plus a 1 x 1 shortcut."""
    wide = 1.67 * width
    widths = [int(wide * 0.167), int(wide * 0.333), int(wide * 0.5)]
    shortcut = _conv_bn(x, sum(widths), 1, None, f"{name}_shortcut")
    parts = []
    for part, number in zip("abc", widths, strict=True):
        x = _conv_bn(x, number, 3, "relu", f"{name}_{part}")
        parts.append(x)
    x = layers.BatchNorm(name=f"{name}_join_norm")(keras.layers.Concatenate(name=f"{name}_join_parts")(parts))
    x = keras.layers.Add(name=f"{name}_add")([shortcut, x])
    x = keras.layers.Activation("relu", name=f"{name}_relu")(x)
    return layers.BatchNorm(name=f"{name}_norm")(x)


def _res_path(x, width: int, length: int, name: str):
    """`length` residual 3 x 3 convolutions between encoder and decoder."""
    for step in range(length):
        shortcut = _conv_bn(x, width, 1, None, f"{name}_{step}_shortcut")
        x = _conv_bn(x, width, 3, "relu", f"{name}_{step}")
        x = keras.layers.Add(name=f"{name}_{step}_add")([shortcut, x])
        x = keras.layers.Activation("relu", name=f"{name}_{step}_relu2")(x)
        x = layers.BatchNorm(name=f"{name}_{step}_norm2")(x)
    return x
