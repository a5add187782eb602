"""Small networks for class maps: the ones of the source, with exactly its numbers of weights, and ResUNet.

`reference=True` builds them as published: 2 x 2 kernels in U-Net and SegNet, which shift maps by half a pixel per
layer; the default has 3 x 3. ResUNet: Zhang et al. 2018, arXiv:1711.10684; SegNet: Badrinarayanan et al. 2017,
arXiv:1511.00561 (here, as in the source, without pooling indices).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, standardize_tuple

Shape = tuple[int | None, int | None, int]


def custom(
    input_shape: Shape = (None, None, 1), num_outputs: int = 4, filters: int = 16, *, activation: str | None = None
) -> keras.Model:
    """Encoder-decoder without skips, three levels; sizes are multiples of 8.

    Args:
        input_shape: (height, width, channels).
        num_outputs: channels of the result.
        filters: width of the first level.
        activation: None = softmax, sigmoid for one class.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs) float32.
    """
    image = keras.Input(input_shape, name="image")
    x = layers.RequireMultiple(8, name="size")(image)
    for level in range(3):
        x = _plain(x, filters * 2**level, 3, f"down{level}")
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = _plain(x, filters * 8, 3, "bottom")
    for level in reversed(range(3)):
        width = filters * 2**level
        x = layers.Conv2DTranspose(
            width, 3, strides=2, padding="same", kernel_initializer="he_normal", name=f"up{level}_transposed"
        )(x)
        x = _plain(x, width, 3, f"up{level}", relu=level > 0)
    return _head(image, x, num_outputs, activation, "custom")


def custom_unet(
    input_shape: Shape = (None, None, 1),
    num_outputs: int = 1,
    filters: int = 32,
    *,
    dropout: float = 0.5,
    reference: bool = False,
    activation: str | None = None,
) -> keras.Model:
    """U-Net with dropout after every pooling and join (half of it after the first pooling); multiples of 16.

    Args:
        dropout: rate.
        reference: 2 x 2 kernels.
        input_shape, num_outputs, filters, activation: see `custom`.
    """
    size = 2 if reference else 3
    image = keras.Input(input_shape, name="image")
    x = layers.RequireMultiple(16, name="size")(image)
    skips = []
    for level in range(4):
        x = _block(x, filters * 2**level, size, 2, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
        x = _drop(x, dropout / 2 if level == 0 else dropout, f"down{level}_dropout")
    x = _block(x, filters * 16, size, 2, "bottom")
    for level in reversed(range(4)):
        width = filters * 2**level
        x = layers.Conv2DTranspose(width, size, strides=2, padding="same", name=f"up{level}_transposed")(x)
        x = keras.layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = _block(_drop(x, dropout, f"up{level}_dropout"), width, size, 2, f"up{level}")
    return _head(image, x, num_outputs, activation, "custom_unet")


def segnet(
    input_shape: Shape = (None, None, 1),
    num_outputs: int = 1,
    filters: int = 16,
    *,
    reference: bool = False,
    activation: str | None = None,
) -> keras.Model:
    """Encoder-decoder without skips, four levels of 2, 2, 3, 3 convolutions; sizes are multiples of 16.

    Args:
        reference: 2 x 2 kernels.
        input_shape, num_outputs, filters, activation: see `custom`.
    """
    size, repeats = 2 if reference else 3, (2, 2, 3, 3)
    image = keras.Input(input_shape, name="image")
    x = layers.RequireMultiple(16, name="size")(image)
    for level, count in enumerate(repeats):
        x = _block(x, filters * 2**level, size, count, f"down{level}")
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    for level, count in reversed(list(enumerate(repeats))):
        x = layers.UpSampling2D(2, name=f"up{level}_upsample")(x)
        x = _block(x, filters * 2**level, size, count, f"up{level}")
    return _head(image, x, num_outputs, activation, "segnet")


def resunet(
    input_shape: Shape = (None, None, 1),
    num_outputs: int = 5,
    filters: Sequence[int] = (16, 32, 64, 128, 256),
    *,
    activation: str | None = None,
) -> keras.Model:
    """U-Net of pre-activation residual blocks; sizes are multiples of 16 with five widths.

    Args:
        filters: widths, finest first; the last is the bottom. The decoder has those of the encoder but for the first.
        input_shape, num_outputs, activation: see `custom`.
    """
    filters = tuple(filters)
    if len(filters) < 2:
        raise UserError(f"`filters` needs at least two widths. Received: {filters}")
    standardize_tuple(filters, len(filters), "filters")
    image = keras.Input(input_shape, name="image")
    x = layers.RequireMultiple(2 ** (len(filters) - 1), name="size")(image)
    y = _linear(_pre(_linear(x, filters[0], 3, "stem_a"), "stem_b"), filters[0], 3, "stem_b")
    x = keras.layers.Add(name="stem_add")([y, _shortcut(x, filters[0], 1, "stem")])
    skips = [x]
    for level, width in enumerate(filters[1:], start=1):
        x = _residual(x, width, 2, f"down{level}")
        skips.append(x)
    for part in "ab":
        x = _linear(_pre(x, f"bridge_{part}"), filters[-1], 3, f"bridge_{part}")
    for level in reversed(range(len(filters) - 1)):
        x = layers.UpSampling2D(2, name=f"up{level}_upsample")(x)
        x = keras.layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = _residual(x, filters[level + 1], 1, f"up{level}")
    return _head(image, x, num_outputs, activation, "resunet")


def _plain(x: Any, width: int, size: int, name: str, relu: bool = True) -> Any:
    x = layers.Conv2D(width, size, padding="same", kernel_initializer="he_normal", name=name)(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x


def _block(x: Any, width: int, size: int, count: int, name: str) -> Any:
    """`count` times convolution with bias, normalization, ReLU."""
    for part in "abc"[:count]:
        x = layers.Conv2D(width, size, padding="same", kernel_initializer="he_normal", name=f"{name}_{part}")(x)
        x = layers.BatchNorm(name=f"{name}_{part}_norm")(x)
        x = keras.layers.ReLU(name=f"{name}_{part}_relu")(x)
    return x


def _linear(x: Any, width: int, size: int, name: str, strides: int = 1) -> Any:
    return layers.Conv2D(width, size, strides=strides, padding="same", name=name)(x)


def _pre(x: Any, name: str) -> Any:
    return keras.layers.ReLU(name=f"{name}_relu")(layers.BatchNorm(name=f"{name}_norm")(x))


def _shortcut(x: Any, width: int, strides: int, name: str) -> Any:
    return layers.BatchNorm(name=f"{name}_shortcut_norm")(_linear(x, width, 1, f"{name}_shortcut", strides))


def _residual(x: Any, width: int, strides: int, name: str) -> Any:
    y = _linear(_pre(x, f"{name}_a"), width, 3, f"{name}_a", strides)
    y = _linear(_pre(y, f"{name}_b"), width, 3, f"{name}_b")
    return keras.layers.Add(name=f"{name}_add")([y, _shortcut(x, width, strides, name)])


def _drop(x: Any, rate: float, name: str) -> Any:
    return keras.layers.Dropout(rate, name=name)(x) if rate else x


def _head(image: Any, x: Any, num_outputs: int, activation: str | None, name: str) -> keras.Model:
    activation = activation or ("sigmoid" if num_outputs == 1 else "softmax")
    x = layers.Conv2D(num_outputs, 1, activation=activation, dtype="float32", name="maps")(x)
    return keras.Model(image, x, name=name)
