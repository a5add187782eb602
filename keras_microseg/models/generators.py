"""Networks that make images: outlines from noise (WGAN-GP), and images from images (CycleGAN, pix2pix)."""

from __future__ import annotations

import math
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.layers.padding import CropToMatch, PadToMultiple, ReflectionPadding2D


def outline_generator(
    size: int | tuple[int, int] = (64, 64),
    latent_size: int = 128,
    filters: int = 64,
    *,
    name: str = "outline_generator",
) -> keras.Model:
    """Particle outlines from latent vectors: a dense layer, then three times nearest up-sampling and convolution.

    Args:
        size: (height, width) of the outlines, multiples of 8.
        latent_size: length of the latent vector.
        filters: channels of the last feature map; the earlier ones have 2 and 4 times as many.
        name: model name.

    Returns:
        Functional model (N, latent_size), drawn from N(0, 1) -> (N, height, width, 1) float32 in -1..1. With the
        defaults it has 2 532 676 parameters.

    Raises:
        UserError: a size that is no multiple of 8.
    """
    height, width = standardize_tuple(size, 2, "size")
    if height % 8 or width % 8:
        raise UserError(
            f"`size` must be multiples of 8. Received: size={size!r}. Use {(height + -height % 8, width + -width % 8)}."
        )
    check_number("latent_size", latent_size, minimum=1, integer=True)
    check_number("filters", filters, minimum=1, integer=True)
    inputs = keras.Input((latent_size,), name="latent")
    x = layers.Dense(height * width // 64 * 4 * filters, use_bias=False, name="dense")(inputs)
    x = layers.BatchNorm(name="dense_norm")(x)
    x = keras.layers.LeakyReLU(0.2, name="dense_relu")(x)
    x = keras.layers.Reshape((height // 8, width // 8, 4 * filters), name="map")(x)
    for i, channels in enumerate((2 * filters, filters, 1), start=1):
        x = layers.UpSampling2D(2, name=f"up{i}_upsample")(x)
        x = layers.Conv2D(channels, 3, padding="same", use_bias=False, name=f"up{i}_conv")(x)
        x = layers.BatchNorm(name=f"up{i}_norm")(x)
        if i < 3:
            x = keras.layers.LeakyReLU(0.2, name=f"up{i}_relu")(x)
    return keras.Model(inputs, keras.layers.Activation("tanh", name="outline")(x), name=name)


def resnet_generator(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    filters: int = 64,
    num_blocks: int = 9,
    *,
    num_levels: int = 3,
    num_outputs: int = 1,
    skip: bool = False,
    resize_convolution: bool = False,
    activation: str = "tanh",
    name: str = "resnet_generator",
) -> keras.Model:
    """Image-to-image network of residual blocks at a fraction of the size (Johnson et al. 2016; Zhu et al. 2017).

    Any height and width: sizes that do not fit the levels are extended by reflection inside and come back as they were.

    Args:
        input_shape: (height, width, channels).
        filters: channels of the first convolution; doubled at each level.
        num_blocks: residual blocks.
        num_levels: how often the size is halved before the blocks; 3 = they see an eighth of it. Fewer levels keep
            finer texture with far fewer parameters.
        num_outputs: channels of the result.
        skip: let the last convolution also see features of the input itself.
        resize_convolution: nearest up-sampling and a convolution instead of a transposed convolution; it leaves no
            checkerboard patterns (Odena et al. 2016).
        activation: of the result, "tanh" (-1..1), "sigmoid" (0..1) or "linear".
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs) float32. With the defaults it has 45 591 425
        parameters, with `filters=32` 11 404 737.

    Reference: Zhu et al. (2017), arXiv:1703.10593.
    """
    check_number("filters", filters, minimum=1, integer=True)
    check_number("num_blocks", num_blocks, minimum=0, integer=True)
    check_number("num_levels", num_levels, minimum=1, integer=True)
    check_number("num_outputs", num_outputs, minimum=1, integer=True)
    check_choice("activation", activation, ("tanh", "sigmoid", "linear"))
    inputs = keras.Input(input_shape, name="image")
    padded = PadToMultiple(2**num_levels, name="pad")(inputs)
    x = ReflectionPadding2D(3, name="first_pad")(padded)
    x = _conv_norm(x, filters, 7, "first")
    for i in range(1, num_levels + 1):
        x = layers.Conv2D(filters * 2**i, 3, strides=2, padding="same", use_bias=False, name=f"down{i}_conv")(x)
        x = _norm(x, f"down{i}")
    for i in range(1, num_blocks + 1):
        x = _residual_block(x, filters * 2**num_levels, f"block{i}")
    for i in range(num_levels, 0, -1):
        x = _upsample(x, filters * 2 ** (i - 1), resize_convolution, f"up{i}")
    x = ReflectionPadding2D(3, name="last_pad")(x)
    x = layers.Conv2D(num_outputs, 7, name="last_conv")(x)
    if skip:
        point = _conv_norm(padded, filters, 1, "skip_point")
        near = _conv_norm(ReflectionPadding2D(1, name="skip_near_pad")(padded), filters, 3, "skip_near")
        features = _norm(keras.layers.Add(name="skip_add")([point, near]), "skip")
        x = keras.layers.Concatenate(name="skip_join")([x, features])
        x = layers.Conv2D(num_outputs, 1, use_bias=False, name="skip_conv")(x)
    x = CropToMatch(name="crop")([x, inputs])
    return keras.Model(inputs, keras.layers.Activation(activation, name="translated")(x), name=name)


def pix2pix_generator(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    num_outputs: int = 5,
    filters: int = 32,
    num_levels: int = 7,
    *,
    normalization: str = "group",
    activation: str = "softmax",
    name: str = "pix2pix_generator",
) -> keras.Model:
    """U-Net of pix2pix with 4 x 4 convolutions (Isola et al. 2017), for classes of a micrograph or the other way round.

    Any height and width: sizes that are no multiple of 2^levels are extended by reflection and come back as they were.
    The innermost map needs several pixels: images should be at least 2^(levels + 1) high and wide.

    Args:
        input_shape: (height, width, channels).
        num_outputs: channels of the result.
        filters: channels of the first level; doubled three times, then kept.
        num_levels: how often the size is halved.
        normalization: "batch" (momentum 0.8, as the source), "instance", or "group" (up to 8 channels together).
        activation: of the result: "softmax", "tanh" (-1..1), "sigmoid" or "linear".
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, H, W, num_outputs) float32. With batch normalization and 7 levels it
        has 10 469 701 parameters (1 -> 5) and 10 465 601 (1 -> 1).

    Reference: arXiv:1611.07004.
    """
    check_number("filters", filters, minimum=1, integer=True)
    check_number("num_levels", num_levels, minimum=2, integer=True)
    check_number("num_outputs", num_outputs, minimum=1, integer=True)
    check_choice("activation", activation, ("softmax", "tanh", "sigmoid", "linear"))
    inputs = keras.Input(input_shape, name="image")
    x = PadToMultiple(2**num_levels, name="pad")(inputs)
    skips, widths = [], [filters * 2 ** min(i, 3) for i in range(num_levels)]
    for i, width in enumerate(widths, start=1):
        x = layers.Conv2D(width, 4, strides=2, padding="same", name=f"down{i}_conv")(x)
        x = keras.layers.LeakyReLU(0.2, name=f"down{i}_relu")(x)
        x = normalize(x, normalization, f"down{i}_norm") if i > 1 else x
        skips.append(x)
    for i, (skip, width) in enumerate(zip(skips[-2::-1], widths[-2::-1], strict=True), start=1):
        x = layers.UpSampling2D(2, name=f"up{i}_upsample")(x)
        x = layers.Conv2D(width, 4, padding="same", activation="relu", name=f"up{i}_conv")(x)
        x = normalize(x, normalization, f"up{i}_norm")
        x = keras.layers.Concatenate(name=f"up{i}_join")([x, skip])
    x = layers.UpSampling2D(2, name="last_upsample")(x)
    x = layers.Conv2D(num_outputs, 4, padding="same", name="last_conv")(x)
    x = CropToMatch(name="crop")([x, inputs])
    return keras.Model(inputs, keras.layers.Activation(activation, name="translated")(x), name=name)


def normalize(x: Any, kind: str, name: str) -> Any:
    """Normalization of pix2pix networks: "batch", "instance" or "group"."""
    check_choice("normalization", kind, ("batch", "instance", "group"))
    if kind == "batch":
        return layers.BatchNorm(momentum=0.8, name=name)(x)
    groups = -1 if kind == "instance" else math.gcd(x.shape[-1], 8)
    return layers.GroupNorm(groups=groups, epsilon=1e-5, name=name)(x)


def _residual_block(x: Any, filters: int, name: str) -> Any:
    y = _conv_norm(ReflectionPadding2D(1, name=f"{name}_pad1")(x), filters, 3, f"{name}_first")
    y = _conv_norm(ReflectionPadding2D(1, name=f"{name}_pad2")(y), filters, 3, f"{name}_second", relu=False)
    return keras.layers.Add(name=f"{name}_add")([x, y])


def _upsample(x: Any, filters: int, resize_convolution: bool, name: str) -> Any:
    if resize_convolution:
        x = layers.UpSampling2D(2, name=f"{name}_upsample")(x)
        return _conv_norm(ReflectionPadding2D(1, name=f"{name}_pad")(x), filters, 3, name)
    x = layers.Conv2DTranspose(filters, 3, strides=2, padding="same", use_bias=False, name=f"{name}_conv")(x)
    return _norm(x, name)


def _conv_norm(x: Any, filters: int, size: int, name: str, relu: bool = True) -> Any:
    return _norm(layers.Conv2D(filters, size, use_bias=False, name=f"{name}_conv")(x), name, relu)


def _norm(x: Any, name: str, relu: bool = True) -> Any:
    x = layers.GroupNorm(groups=-1, epsilon=1e-5, name=f"{name}_norm")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x) if relu else x
