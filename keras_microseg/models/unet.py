"""U-Net (Ronneberger et al. 2015, arXiv:1505.04597) with batch normalization and "same" padding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.models.deep_supervision import check_levels, coarse_maps, join_maps


def unet(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    num_outputs: int = 1,
    filters: Sequence[int] = (16, 32, 64, 128, 256),
    activation: str | None = "sigmoid",
    name: str = "unet",
    *,
    deep_supervision: int = 0,
) -> keras.Model:
    """Encoder-decoder with skip connections.

    Args:
        input_shape: (height, width, channels); height and width may be None, and must be multiples of
            `2 ** (len(filters) - 1)` when the model is called.
        num_outputs: channels of the result.
        filters: channels per level, finest first; the last is the bottom.
        activation: of the result; it is computed in float32 whatever the precision policy.
        name: model name.
        deep_supervision: number of coarser decoder levels with results of their own, see `models.deep_supervision`.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs * (1 + deep_supervision)) float32.

    Raises:
        UserError: more coarser levels than there are.
    """
    check_levels(deep_supervision, max(len(filters) - 2, 0))
    inputs = keras.Input(input_shape, name="image")
    coarser: list[Any] = []

    def supervise(level: int, features: Any) -> None:
        if 0 < level <= deep_supervision:
            coarser.insert(0, coarse_maps(features, num_outputs, activation, level))

    x = u_path(inputs, filters, supervise)
    outputs = layers.Conv2D(num_outputs, 1, activation=activation, dtype="float32", name="maps")(x)
    return keras.Model(inputs, join_maps(outputs, coarser), name=name)


def u_path(x: Any, filters: Sequence[int], each: Callable[[int, Any], None] | None = None) -> Any:
    """Down by pooling and up again with skips: features (B, H, W, filters[0]).

    Args:
        x: (B, H, W, C); H and W divisible by `2 ** (len(filters) - 1)`.
        filters: channels of the levels.
        each: told `(level, features)` of every level on the way up; level 0 is the finest.
    """
    skips = []
    for level, width in enumerate(filters[:-1]):
        x = double_conv(x, width, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling2D(2, name=f"down{level}_pool")(x)
    x = double_conv(x, filters[-1], "bottom")
    for level in reversed(range(len(skips))):
        x = layers.UpSampling2D(2, name=f"up{level}_upsample")(x)
        x = keras.layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = double_conv(x, filters[level], f"up{level}")
        if each is not None:
            each(level, x)
    return x


def conv_norm_relu(x: Any, width: int, name: str) -> Any:
    """3 x 3 convolution, batch normalization, ReLU."""
    x = layers.Conv2D(width, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(x)
    return keras.layers.ReLU(name=f"{name}_relu")(layers.BatchNorm(name=f"{name}_norm")(x))


def double_conv(x: Any, width: int, name: str) -> Any:
    """`conv_norm_relu` twice."""
    return conv_norm_relu(conv_norm_relu(x, width, f"{name}_a"), width, f"{name}_b")
