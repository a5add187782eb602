"""Batch and group normalization through the fused kernel of the framework."""

from __future__ import annotations

import math
from typing import Any

import keras
from keras import ops

from keras_microseg import backend


@keras.saving.register_keras_serializable(package="keras_microseg")
class BatchNorm(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, computed by the framework's fused kernel where that is faster (PyTorch).

    Arguments, weights and results are those of the stock layer: the running variance is the biased one on every
    backend (PyTorch's own layer keeps the unbiased), and float16 or bfloat16 inputs are normalized in float32.
    Masked inputs, batch renormalization and synchronized statistics take the stock path.
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:
        fused = backend.fused_batch_norm
        special = mask is not None or self.renorm or self.synchronized
        if fused is None or special or not self._is_last_axis(inputs) or _is_symbolic(inputs):
            return super().call(inputs, training=training, mask=mask)
        learns = training and self.trainable
        if learns and math.prod(inputs.shape[:-1]) == 1:
            return super().call(inputs, training=training)  # the kernel refuses a single value per channel
        gamma = self.gamma if self.scale else None
        beta = self.beta if self.center else None
        if learns:
            outputs, mean, variance = fused(inputs, gamma, beta, self.epsilon)
            keep = self.momentum
            self.moving_mean.assign(self.moving_mean * keep + mean * (1.0 - keep))
            self.moving_variance.assign(self.moving_variance * keep + variance * (1.0 - keep))
        else:
            outputs, _, _ = fused(inputs, gamma, beta, self.epsilon, self.moving_mean, self.moving_variance)
        return ops.cast(outputs, self.compute_dtype)

    def _is_last_axis(self, inputs: Any) -> bool:
        rank = len(inputs.shape)
        return rank in (2, 3, 4, 5) and self.axis in (-1, rank - 1)


@keras.saving.register_keras_serializable(package="keras_microseg")
class GroupNorm(keras.layers.GroupNormalization):
    """`keras.layers.GroupNormalization`; per channel (`groups=-1`) by the framework's fused kernel where it is faster.

    Arguments, weights and results are those of the stock layer. Per channel, a group is an image of one channel, and
    group normalization of one image is batch normalization by its own statistics. These are taken in float32, in two
    passes and axis by axis: summed up in one go, as TensorFlow does, a map of 512 x 512 loses three digits.
    """

    def call(self, inputs: Any) -> Any:
        fused, rank = backend.fused_batch_norm, len(inputs.shape)
        if rank not in (4, 5) or self.axis not in (-1, rank - 1) or self.groups != inputs.shape[-1]:
            return super().call(inputs)
        gamma = self.gamma if self.scale else None
        beta = self.beta if self.center else None
        if fused is None or _is_symbolic(inputs) or math.prod(inputs.shape[1:-1]) == 1:
            return ops.cast(_normalize_channels(inputs, gamma, beta, self.epsilon), self.compute_dtype)
        images = [inputs] if inputs.shape[0] == 1 else [inputs[i : i + 1] for i in range(inputs.shape[0])]
        outputs = [fused(image, gamma, beta, self.epsilon)[0] for image in images]
        return ops.cast(outputs[0] if len(outputs) == 1 else ops.concatenate(outputs), self.compute_dtype)


def _normalize_channels(x: Any, gamma: Any, beta: Any, epsilon: float) -> Any:
    """(N, *spatial, C) with mean 0 and variance 1 over the spatial axes."""
    x = ops.cast(x, _wide_type(x))
    centred = x - _spatial_mean(x)
    factor = ops.rsqrt(_spatial_mean(ops.square(centred)) + epsilon)
    if gamma is not None:
        factor = factor * ops.cast(gamma, factor.dtype)
    y = centred * factor
    return y if beta is None else y + ops.cast(beta, y.dtype)


def _spatial_mean(x: Any) -> Any:
    for axis in range(len(x.shape) - 2, 0, -1):
        x = ops.mean(x, axis=axis, keepdims=True)
    return x


def _wide_type(x: Any) -> str:
    """float64 stays, everything else is computed in float32."""
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"


def _is_symbolic(inputs: Any) -> bool:
    return isinstance(inputs, keras.KerasTensor) or getattr(getattr(inputs, "device", None), "type", "") == "meta"
