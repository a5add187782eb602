"""Results of coarser decoder levels beside the result of a network, for training only.

The channels of the output are those of the result, then as many for every coarser level, enlarged to full size;
`losses.DeepSupervision` trains such a network, `main_maps` cuts the extra channels off afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_number

_NAME = "supervised"


def check_levels(levels: int, available: int) -> int:
    """`levels` as a number that does not exceed the coarser decoder levels of a network.

    Raises:
        UserError: it does.
    """
    if not 0 <= check_number("deep_supervision", levels, minimum=0, integer=True) <= available:
        raise UserError(f"`deep_supervision` can use {available} coarser levels here. Received: {levels}")
    return levels


def coarse_maps(x: Any, num_outputs: int, activation: str | None, level: int) -> Any:
    """The maps of an image's decoder level 2^`level` times coarser than the result, enlarged to its size.

    Args:
        x: (N, h, w, C) features.
        num_outputs, activation: of the result.
        level: at least 1.
    """
    x = layers.Conv2D(num_outputs, 1, activation=activation, dtype="float32", name=f"maps_level{level}")(x)
    return layers.UpSampling2D(2**level, dtype="float32", name=f"maps_level{level}_upsample")(x)


def join_maps(result: Any, coarser: Sequence[Any]) -> Any:
    """The result with those of the coarser levels as further channels, the finest first.

    Args:
        result: (N, ..., K) output of the layer `maps`.
        coarser: tensors of that shape; none = the result alone.
    """
    if not coarser:
        return result
    return keras.layers.Concatenate(dtype="float32", name=_NAME)([result, *coarser])


def main_maps(model: keras.Model) -> keras.Model:
    """The model without the outputs of deep supervision; it shares all weights. Others come back unchanged."""
    if _NAME not in {layer.name for layer in model.layers}:
        return model
    return keras.Model(model.input, model.get_layer("maps").output, name=model.name)
