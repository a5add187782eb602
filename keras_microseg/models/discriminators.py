"""Networks that judge images: the critic of WGAN-GP, the PatchGANs of CycleGAN and of pix2pix."""

from __future__ import annotations

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.models.generators import normalize


def outline_critic(
    size: int | tuple[int, int] = (64, 64), filters: int = 64, *, name: str = "outline_critic"
) -> keras.Model:
    """Unbounded score of outlines: four convolutions of stride 2 without normalization, which the penalty forbids.

    Args:
        size: (height, width) of the outlines.
        filters: channels of the first convolution; doubled three times.
        name: model name.

    Returns:
        Functional model (N, height, width, 1) in -1..1 -> (N, 1) float32; 4 311 553 parameters
        with the defaults.
    """
    check_number("filters", filters, minimum=1, integer=True)
    inputs = keras.Input((*standardize_tuple(size, 2, "size"), 1), name="outline")
    x = inputs
    for i, dropout in enumerate((0.0, 0.3, 0.3, 0.0), start=1):
        x = layers.Conv2D(filters * 2 ** (i - 1), 5, strides=2, padding="same", name=f"down{i}_conv")(x)
        x = keras.layers.LeakyReLU(0.2, name=f"down{i}_relu")(x)
        if dropout:
            x = keras.layers.Dropout(dropout, name=f"down{i}_dropout")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    x = keras.layers.Dropout(0.2, name="dropout")(x)
    return keras.Model(inputs, layers.Dense(1, name="score")(x), name=name)


def patchgan_discriminator(
    input_shape: tuple[int | None, int | None, int] = (None, None, 1),
    filters: int = 128,
    num_blocks: int = 3,
    *,
    noise: float = 0.0,
    name: str = "patchgan_discriminator",
) -> keras.Model:
    """A score for every patch of an image (Isola et al. 2017): convolutions 4 x 4 without padding.

    Args:
        input_shape: (height, width, channels).
        filters: channels of the first block; doubled in each later one.
        num_blocks: the first three halve the size; a fourth and later ones keep it.
        noise: standard deviation of Gaussian noise added before every convolution in training; 0 = none.
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, h, w, 1) float32, not bounded; with the defaults a score sees
        46 x 46 pixels, 384 x 384 pixels give 43 x 43 scores, and there are 2 633 345 parameters.

    Raises:
        UserError: an image smaller than one patch.

    Reference: arXiv:1611.07004.
    """
    check_number("filters", filters, minimum=1, integer=True)
    check_number("num_blocks", num_blocks, minimum=1, integer=True)
    check_number("noise", noise, minimum=0)
    field = 4
    for i in reversed(range(num_blocks)):
        field = 4 + (field - 1) * (2 if i < 3 else 1)
    if any(n is not None and n < field for n in input_shape[:2]):
        raise UserError(
            f"`input_shape` must be at least {field} pixels high and wide for {num_blocks} blocks. "
            f"Received: input_shape={tuple(input_shape)}"
        )

    def noisy(x, name):
        return keras.layers.GaussianNoise(noise, name=name)(x) if noise else x

    inputs = keras.Input(input_shape, name="image")
    x = inputs
    for i in range(1, num_blocks + 1):
        x = layers.Conv2D(
            filters * 2 ** (i - 1), 4, strides=2 if i <= 3 else 1, use_bias=i == 1, name=f"block{i}_conv"
        )(noisy(x, f"block{i}_noise"))
        if i > 1:
            x = layers.GroupNorm(groups=-1, epsilon=1e-5, name=f"block{i}_norm")(x)
        x = keras.layers.LeakyReLU(0.2, name=f"block{i}_relu")(x)
    return keras.Model(inputs, layers.Conv2D(1, 4, name="scores")(noisy(x, "scores_noise")), name=name)


def pix2pix_discriminator(
    input_shape: tuple[int | None, int | None, int] = (None, None, 6),
    num_maps: int = 1,
    filters: int = 32,
    num_blocks: int = 4,
    *,
    normalization: str = "group",
    spectral: bool = False,
    name: str = "pix2pix_discriminator",
) -> keras.Model:
    """A score for every patch of an image joined with the input it was made from (conditional PatchGAN).

    Args:
        input_shape: (height, width, channels of the image to judge and of its input together).
        num_maps: scores per patch; 1 but in the source's categorical variant.
        filters: channels of the first block; doubled in each later one.
        num_blocks: convolutions 4 x 4 of stride 2.
        normalization: see `models.generators.pix2pix_generator`; the first block has none.
        spectral: bound the gain of every convolution, see `layers.SpectralConv2D`.
        name: model name.

    Returns:
        Functional model (N, H, W, channels) -> (N, H / 2^blocks, W / 2^blocks, num_maps) float32, not bounded: 768 px
        give 48 x 48 scores of 94 x 94 pixels each. With batch normalization it has 697 569 parameters (6 -> 1),
        713 957 (6 -> 5) and 695 521 (2 -> 1).

    Reference: arXiv:1611.07004.
    """
    check_number("filters", filters, minimum=1, integer=True)
    check_number("num_blocks", num_blocks, minimum=1, integer=True)
    check_number("num_maps", num_maps, minimum=1, integer=True)
    convolution = layers.SpectralConv2D if spectral else layers.Conv2D
    inputs = keras.Input(input_shape, name="image_and_input")
    x = inputs
    for i in range(1, num_blocks + 1):
        x = convolution(filters * 2 ** (i - 1), 4, strides=2, padding="same", name=f"block{i}_conv")(x)
        x = keras.layers.LeakyReLU(0.2, name=f"block{i}_relu")(x)
        x = normalize(x, normalization, f"block{i}_norm") if i > 1 else x
    return keras.Model(inputs, convolution(num_maps, 4, padding="same", name="scores")(x), name=name)
