"""Losses that Keras lacks. Binary and categorical cross-entropy, focal, Dice and Tversky losses are Keras' own.

All are registered classes with `get_config`, so that they can be saved; all follow Keras' rules for `reduction` and
`sample_weight`. Shapes: y_true and y_pred (N, *spatial, C), float; sums are taken in float32. In `SoftDice`,
`WeightedBinaryCrossentropy`, `FocalTversky`, `DiceCrossentropy`, `DiceFocal` and `InstanceMapsLoss`, y_true may carry
one channel more than y_pred: a weight >= 0 per pixel, 0 = ignore (pixels without annotation).
"""

from keras_microseg.losses.levels import DeepSupervision, LabelGrid
from keras_microseg.losses.pixel import (
    DiceCrossentropy,
    DiceFocal,
    FocalClassLoss,
    FocalTversky,
    InstanceMapsLoss,
    SoftDice,
    WeightedBinaryCrossentropy,
)

__all__ = [
    "DeepSupervision",
    "DiceCrossentropy",
    "DiceFocal",
    "FocalClassLoss",
    "FocalTversky",
    "InstanceMapsLoss",
    "LabelGrid",
    "SoftDice",
    "WeightedBinaryCrossentropy",
]
