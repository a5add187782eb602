"""Losses around another loss: on coarser results of a network too, or on the grid of coarser labels."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_microseg.checks import UserError, check_number
from keras_microseg.losses.pixel import split_weight

_register = keras.saving.register_keras_serializable(package="keras_microseg")


@_register
class DeepSupervision(keras.losses.Loss):
    """A loss on the result and, with falling weight, on the coarser results that a network gives beside it.

    `sum_l decay^l loss(y, p_l) / sum_l decay^l` (Lee et al. 2015, arXiv:1409.5185). The channels of y_pred are those of
    the result, then as many per coarser level, see `models.deep_supervision`.

    Args:
        loss: a `keras.losses.Loss` for one level.
        levels: number of coarser levels.
        decay: weight of a level over that of the next finer one, > 0.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(self, loss: Any, levels: int, decay: float = 0.5, name: str = "deep_supervision", **kwargs):
        super().__init__(name=name, **kwargs)
        self.loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        self.levels = check_number("levels", levels, minimum=0, integer=True)
        self.decay = float(check_number("decay", decay, minimum=0, exclusive=True))

    def call(self, y_true: Any, y_pred: Any) -> Any:
        count = y_pred.shape[-1] // (self.levels + 1)
        weights = [self.decay**level for level in range(self.levels + 1)]
        total = 0.0
        for level, weight in enumerate(weights):
            part = y_pred[..., level * count : (level + 1) * count]
            total = total + weight / sum(weights) * self.loss.call(y_true, part)
        return total

    def get_config(self) -> dict:
        own = {"loss": keras.saving.serialize_keras_object(self.loss), "levels": self.levels, "decay": self.decay}
        return {**super().get_config(), **own}


@_register
class LabelGrid(keras.losses.Loss):
    """A loss of shares of classes in squares of `factor` x `factor` pixels, for labels coarser than the image.

    Probabilities and labels are averaged over the known pixels of each square before `loss` compares them, so that a
    network may draw finer outlines than the labels have, as long as each pixel of the labels keeps its composition.

    Args:
        loss: a `keras.losses.Loss` of maps, such as `DiceFocal`; y_true may carry a weight per pixel as last channel.
        factor: image pixels per label pixel, at least 1; heights and widths must be multiples of it.
        name, reduction, kwargs: see `keras.losses.Loss`.
    """

    def __init__(self, loss: Any, factor: int, name: str = "label_grid", **kwargs):
        super().__init__(name=name, **kwargs)
        self.loss = keras.saving.deserialize_keras_object(loss) if isinstance(loss, dict) else loss
        self.factor = check_number("factor", factor, minimum=1, integer=True)

    def call(self, y_true: Any, y_pred: Any) -> Any:
        y, weight = split_weight(y_true, y_pred)
        weight = ops.ones_like(y[..., :1]) if weight is None else weight
        known = self._means(weight)
        scale = 1 / ops.maximum(known, keras.config.epsilon())
        shares = self._means(weight * y) * scale
        return self.loss.call(ops.concatenate([shares, known], axis=-1), self._means(weight * y_pred) * scale)

    def _means(self, x: Any) -> Any:
        _, height, width, channels = x.shape
        f = self.factor
        if height % f or width % f:
            raise UserError(f"Heights and widths must be multiples of {f} here. Received: {height} x {width}")
        return ops.mean(ops.reshape(x, (-1, height // f, f, width // f, f, channels)), axis=(2, 4))

    def get_config(self) -> dict:
        return {**super().get_config(), "loss": keras.saving.serialize_keras_object(self.loss), "factor": self.factor}
