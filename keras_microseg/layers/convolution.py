"""Convolution, pooling and up-sampling without layout copies.

On PyTorch, Keras brings the input of every channels-last convolution or pooling into channels-first memory order and,
for convolutions, back again: two copies of each feature map forward and two backward. PyTorch needs neither: it
computes directly on channels-last memory seen through a transposed view. The layers here pass such views to
`keras.ops`; a U-Net's training step takes half the time. On JAX they take the convolutions of the port, because XLA's
gradients of transposed convolutions, and second gradients of all, are many times slower on CPUs than they need to be.
Otherwise, and with `data_format="channels_first"`, they are the stock layers. Arguments, weights and results are those
of the stock layers everywhere; start values are drawn by NumPy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from keras_microseg import backend
from keras_microseg.layers.weights import HostDrawn

_register = keras.saving.register_keras_serializable(package="keras_microseg")


class _ThroughView:
    """Runs a channels-last layer on a channels-first view of the same memory where the backend gains by it."""

    def _through_view(self, function: Callable[[Any, str], Any], inputs: Any) -> Any:
        """`function(inputs, data_format)` gives the same numbers for both formats."""
        if self.data_format != "channels_last" or not backend.COPIES_LAYOUT:
            return function(inputs, self.data_format)
        rank = len(inputs.shape)
        to_first = (0, rank - 1, *range(1, rank - 1))
        to_last = (0, *range(2, rank), 1)
        return ops.transpose(function(ops.transpose(inputs, to_first), "channels_first"), to_last)


class _Convolution(HostDrawn, _ThroughView):
    def convolution_op(self, inputs: Any, kernel: Any) -> Any:
        if backend.conv is not None and self.data_format == "channels_last" and self.groups == 1:
            return backend.conv(inputs, kernel, self.strides, self.padding, self.dilation_rate)

        def convolve(x: Any, data_format: str) -> Any:
            return ops.conv(
                x,
                kernel,
                strides=list(self.strides),
                padding=self.padding,
                dilation_rate=self.dilation_rate,
                data_format=data_format,
            )

        return self._through_view(convolve, inputs)


class _TransposedConvolution(HostDrawn, _ThroughView):
    def call(self, inputs: Any) -> Any:
        def convolve(x: Any, data_format: str) -> Any:
            if backend.conv_transpose is not None and data_format == "channels_last":
                return backend.conv_transpose(
                    x, self.kernel, self.strides, self.padding, self.output_padding, self.dilation_rate
                )
            return ops.conv_transpose(
                x,
                self.kernel,
                strides=list(self.strides),
                padding=self.padding,
                output_padding=self.output_padding,
                dilation_rate=self.dilation_rate,
                data_format=data_format,
            )

        outputs = self._through_view(convolve, inputs)
        if self.use_bias:
            channels_first = self.data_format == "channels_first"
            outputs = outputs + (ops.reshape(self.bias, (-1, *(1,) * self.rank)) if channels_first else self.bias)
        return outputs if self.activation is None else self.activation(outputs)


class _MaxPooling(_ThroughView):
    def call(self, inputs: Any) -> Any:
        def pool(x: Any, data_format: str) -> Any:
            return ops.max_pool(x, self.pool_size, self.strides, self.padding, data_format=data_format)

        return self._through_view(pool, inputs)


class _UpSampling:
    def call(self, inputs: Any) -> Any:
        repeat = backend.upsample_nearest
        nearest = getattr(self, "interpolation", "nearest") == "nearest"
        if repeat is None or not nearest or self.data_format != "channels_last":
            return super().call(inputs)
        return repeat(inputs, self.size)


@_register
class Conv2D(_Convolution, keras.layers.Conv2D):
    """`keras.layers.Conv2D` without layout copies."""


@_register
class Conv3D(_Convolution, keras.layers.Conv3D):
    """`keras.layers.Conv3D` without layout copies."""


@_register
class Conv2DTranspose(_TransposedConvolution, keras.layers.Conv2DTranspose):
    """`keras.layers.Conv2DTranspose` without layout copies."""


@_register
class Conv3DTranspose(_TransposedConvolution, keras.layers.Conv3DTranspose):
    """`keras.layers.Conv3DTranspose` without layout copies."""


@_register
class MaxPooling2D(_MaxPooling, keras.layers.MaxPooling2D):
    """`keras.layers.MaxPooling2D` without layout copies."""


@_register
class MaxPooling3D(_MaxPooling, keras.layers.MaxPooling3D):
    """`keras.layers.MaxPooling3D` without layout copies."""


@_register
class UpSampling2D(_UpSampling, keras.layers.UpSampling2D):
    """`keras.layers.UpSampling2D` in one kernel for `interpolation="nearest"`."""


@_register
class UpSampling3D(_UpSampling, keras.layers.UpSampling3D):
    """`keras.layers.UpSampling3D` in one kernel."""
