"""Pixel scores as `keras.metrics`, summed over all batches of an epoch: count first, then score."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

_register = keras.saving.register_keras_serializable(package="keras_microseg")


class _PixelScore(keras.metrics.Metric):
    """Counts true positives, false positives and false negatives of one channel; subclasses score them.

    Args:
        channel: channel of y_true and y_pred to look at.
        threshold: a pixel is positive where the value is > threshold, in y_true too.
        weight_channel: channel of y_true that weighs pixels (0 = ignore); None = there is none.
        name, dtype: see `keras.metrics.Metric`.
    """

    def __init__(
        self,
        channel: int = 0,
        threshold: float = 0.5,
        weight_channel: int | None = None,
        name: str | None = None,
        dtype: Any = None,
    ):
        super().__init__(name=name, dtype=dtype)
        self.weight_channel = weight_channel
        self.channel = int(channel)
        self.threshold = float(threshold)
        # float32 sums of exact batch counts: relative error 1e-7, and no overflow
        self.hits = self.add_variable((), keras.initializers.Zeros(), name="hits")
        self.false = self.add_variable((), keras.initializers.Zeros(), name="false")
        self.missed = self.add_variable((), keras.initializers.Zeros(), name="missed")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch.

        Args:
            y_true, y_pred: (N, *spatial, C).
            sample_weight: (N,), (N, *spatial) or None; weighs pixels.
        """
        truth = ops.cast(y_true[..., self.channel] > self.threshold, self.dtype)
        found = ops.cast(y_pred[..., self.channel] > self.threshold, self.dtype)
        weight = 1.0
        if sample_weight is not None:
            weight = ops.cast(sample_weight, self.dtype)
            missing = len(truth.shape) - len(weight.shape)
            weight = ops.reshape(weight, (*weight.shape, *(1,) * missing))
        if self.weight_channel is not None:
            weight = weight * ops.cast(y_true[..., self.weight_channel], self.dtype)
        self.hits.assign_add(ops.sum(weight * truth * found))
        self.false.assign_add(ops.sum(weight * (1 - truth) * found))
        self.missed.assign_add(ops.sum(weight * truth * (1 - found)))

    def get_config(self) -> dict:
        return {
            "name": self.name,
            "dtype": self.dtype,
            "channel": self.channel,
            "threshold": self.threshold,
            "weight_channel": self.weight_channel,
        }

    def _ratio(self, numerator: Any, denominator: Any) -> Any:
        """1 where there is nothing to find and nothing was found."""
        return ops.where(denominator > 0, numerator / ops.maximum(denominator, keras.config.epsilon()), 1.0)


@_register
class ForegroundIoU(_PixelScore):
    """TP / (TP + FP + FN), see `_PixelScore` for the arguments."""

    def result(self) -> Any:
        return self._ratio(self.hits.value, self.hits + self.false + self.missed)


@_register
class ForegroundDice(_PixelScore):
    """2 TP / (2 TP + FP + FN), which is F1 of the pixels."""

    def result(self) -> Any:
        return self._ratio(2 * self.hits, 2 * self.hits + self.false + self.missed)


@_register
class ForegroundPrecision(_PixelScore):
    """TP / (TP + FP)."""

    def result(self) -> Any:
        return self._ratio(self.hits.value, self.hits + self.false)


@_register
class ForegroundRecall(_PixelScore):
    """TP / (TP + FN)."""

    def result(self) -> Any:
        return self._ratio(self.hits.value, self.hits + self.missed)
