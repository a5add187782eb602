"""3D U-Nets for tomography volumes, and their 2.5D variant.

3D U-Net: Cicek et al. 2016, arXiv:1606.06650. Every level may be pooled by its own factors, so that a network can keep
all slices (pooling (1, 2, 2)) while it halves the planes. Deep supervision: Lee et al. 2015, arXiv:1409.5185.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.models.deep_supervision import check_levels, join_maps
from keras_microseg.models.unet import unet

NORMS = ("batch", "instance", "group", None)
PRESETS: dict[str, dict[str, Any]] = {
    # the coded network of the source system, 1,414,145 parameters with one output
    "vfp_2level": {
        "filters": (32, 64, 128),
        "pools": ((1, 2, 2),) * 2,
        "norm_first": False,
        "momentum": 0.99,
        "epsilon": 1e-3,
    },
    # the network its paper describes in the text, 23,544,065 parameters with one output
    "vfp_4level": {
        "filters": (32, 64, 128, 256, 512),
        "pools": ((1, 2, 2),) * 4,
        "norm_first": False,
        "momentum": 0.99,
        "epsilon": 1e-3,
    },
    # sees 96 x 96 x 96 voxels around each voxel: objects up to about 48 voxels in diameter with their surroundings
    "default": {"filters": (8, 16, 32, 48), "pools": ((2, 2, 2),) * 3},
    # sees 200 px in the plane and 104 slices: the spheres of the source system at full resolution
    "large": {"filters": (16, 32, 64, 128, 192), "pools": ((1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2))},
}


def unet3d(
    preset: str | None = None,
    *,
    input_shape: Sequence[int | None] = (None, None, None, 1),
    num_outputs: int = 1,
    filters: Sequence[int] = (8, 16, 32, 48),
    pools: Sequence[int | Sequence[int]] = ((2, 2, 2),) * 3,
    norm: str | None = "batch",
    norm_first: bool = True,
    momentum: float = 0.9,
    epsilon: float = 1e-5,
    activation: str = "relu",
    residual: bool = False,
    dropout: float = 0.0,
    deep_supervision: int = 0,
    output_activation: str | None = "sigmoid",
    name: str = "unet3d",
) -> keras.Model:
    """Encoder-decoder over volumes with skip connections: two 3 x 3 x 3 convolutions per level, "same" padding.

    Args:
        preset: name in `PRESETS`, whose values replace those of the arguments `filters`, `pools`, `norm_first`,
            `momentum` and `epsilon`.
        input_shape: (z, y, x, channels); sizes may be None, and must be multiples of `total_stride(pools)` in a call.
        num_outputs: channels of the result: maps, or classes with `output_activation="softmax"`.
        filters: channels per level, finest first; the last is the bottom.
        pools: (z, y, x) factors between the levels, one entry less than `filters`; (1, 2, 2) keeps all slices.
        norm: `"batch"`, `"instance"`, `"group"` (of 8 channels; statistics per sample, equal on several devices), None.
        norm_first: normalize before the activation; False: after it, with a bias in the convolutions.
        momentum, epsilon: of the normalization.
        activation: of the hidden layers.
        residual: add the input of every level (projected by 1 x 1 x 1) to its output.
        dropout: rate of spatial dropout at the bottom.
        deep_supervision: number of coarser decoder levels with outputs of their own: the channels of the result are
            `num_outputs` for the finest level, then as many per coarser level, see `models.deep_supervision`.
        output_activation: of the result, which is computed in float32 whatever the precision.
        name: model name.

    Returns:
        Functional model (N, z, y, x, channels) -> (N, z, y, x, num_outputs * (1 + deep_supervision)) float32.

    Raises:
        UserError: arguments that do not fit together.
    """
    if preset is not None:
        chosen = PRESETS[check_choice("preset", preset, PRESETS)]
        filters, pools = chosen["filters"], chosen["pools"]
        norm_first = chosen.get("norm_first", norm_first)
        momentum, epsilon = chosen.get("momentum", momentum), chosen.get("epsilon", epsilon)
    filters = standardize_tuple(tuple(filters), len(tuple(filters)), "filters")
    pools = [standardize_tuple(pool, 3, "pools") for pool in pools]
    if len(pools) != len(filters) - 1 or not pools:
        raise UserError(
            f"`pools` needs one entry less than `filters`. Received: {len(pools)} pools, {len(filters)} filters"
        )
    check_choice("norm", norm, NORMS)
    check_number("dropout", dropout, minimum=0, maximum=0.9)
    check_levels(deep_supervision, len(filters) - 2)

    def block(x: Any, width: int, part: str) -> Any:
        start = x
        for letter in ("a", "b"):
            x = layers.Conv3D(
                width,
                3,
                padding="same",
                activation=None if norm_first else activation,
                use_bias=norm is None or not norm_first,
                kernel_initializer="he_normal",
                name=f"{part}_{letter}",
            )(x)
            x = _normalize(x, norm, momentum, epsilon, f"{part}_{letter}_norm")
            if residual and letter == "b":
                if start.shape[-1] != width:
                    start = layers.Conv3D(width, 1, use_bias=False, name=f"{part}_project")(start)
                x = keras.layers.Add(name=f"{part}_add")([x, start])
            if norm_first:
                x = keras.layers.Activation(activation, name=f"{part}_{letter}_activation")(x)
        return x

    inputs = keras.Input(tuple(input_shape), name="volume")
    x, skips = inputs, []
    for level, (width, pool) in enumerate(zip(filters, pools, strict=False)):
        x = block(x, width, f"down{level}")
        skips.append(x)
        x = layers.MaxPooling3D(pool, name=f"down{level}_pool")(x)
    x = block(x, filters[-1], "bottom")
    if dropout:
        x = keras.layers.SpatialDropout3D(dropout, name="bottom_dropout")(x)
    coarse, heads = [1, 1, 1], []
    for level in reversed(range(len(skips))):
        x = layers.UpSampling3D(pools[level], name=f"up{level}_upsample")(x)
        x = keras.layers.Concatenate(name=f"up{level}_skip")([x, skips[level]])
        x = block(x, filters[level], f"up{level}")
        if 0 < level <= deep_supervision:
            head = _head(num_outputs, output_activation, f"maps_level{level}")(x)
            coarse = [_product(pools[:level], axis) for axis in range(3)]
            heads.insert(0, layers.UpSampling3D(coarse, dtype="float32", name=f"maps_level{level}_upsample")(head))
    outputs = _head(num_outputs, output_activation, "maps")(x)
    return keras.Model(inputs, join_maps(outputs, heads), name=name)


def unet25d(
    num_slices: int = 5,
    *,
    num_outputs: int = 1,
    filters: Sequence[int] = (16, 32, 64, 128),
    output_activation: str | None = "sigmoid",
    name: str = "unet25d",
) -> keras.Model:
    """A 2D U-Net that sees an odd number of neighbouring slices as channels and maps the middle one.

    Args:
        num_slices: 1 (plain 2D), 3, 5, ...
        num_outputs, output_activation, name: as in `unet3d`.
        filters: channels per level; planes must be multiples of `2 ** (len(filters) - 1)`.

    Returns:
        Functional model (N, y, x, num_slices) -> (N, y, x, num_outputs) float32.
    """
    if check_number("num_slices", num_slices, minimum=1, integer=True) % 2 == 0:
        raise UserError(f"`num_slices` must be odd, so that there is a middle one. Received: num_slices={num_slices}")
    return unet((None, None, num_slices), num_outputs, filters, output_activation, name)


def total_stride(pools: Sequence[int | Sequence[int]]) -> tuple[int, int, int]:
    """(z, y, x) factors that sizes must be multiples of."""
    pools = [standardize_tuple(pool, 3, "pools") for pool in pools]
    return tuple(_product(pools, axis) for axis in range(3))


def receptive_field(pools: Sequence[int | Sequence[int]]) -> tuple[int, int, int]:
    """Voxels (z, y, x) that one voxel of the result depends on, at most: `unet3d` with two convolutions per level.

    A convolution at a level of stride s adds 2 s voxels, and the way down and up between strides s and t adds t - s.
    """
    pools = [standardize_tuple(pool, 3, "pools") for pool in pools]
    field = []
    for axis in range(3):
        strides = [_product(pools[:level], axis) for level in range(len(pools) + 1)]
        convolutions = 2 * (4 * sum(strides[:-1]) + 2 * strides[-1])
        field.append(convolutions + strides[-1])
    return tuple(field)


def _normalize(x: Any, norm: str | None, momentum: float, epsilon: float, name: str) -> Any:
    if norm == "batch":
        return layers.BatchNorm(momentum=momentum, epsilon=epsilon, name=name)(x)
    if norm == "instance":
        return keras.layers.GroupNormalization(-1, epsilon=epsilon, name=name)(x)
    if norm == "group":
        groups = max(1, x.shape[-1] // 8)
        return keras.layers.GroupNormalization(groups, epsilon=epsilon, name=name)(x)
    return x


def _head(num_outputs: int, activation: str | None, name: str) -> keras.Layer:
    return layers.Conv3D(num_outputs, 1, activation=activation, dtype="float32", name=name)


def _product(pools: Sequence[Sequence[int]], axis: int) -> int:
    result = 1
    for pool in pools:
        result *= pool[axis]
    return result
