"""Folding batch normalisation into convolutions: the same function with fewer operations, for inference only."""

from __future__ import annotations

import keras
import numpy as np

CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def fold_batch_norm(model: keras.Model) -> keras.Model:
    """A copy of a functional model in which normalised convolutions are plain convolutions with a bias.

    With moving mean m, variance v, scale g and shift b of the normalisation, `g * (conv(x) - m) / sqrt(v + eps) + b` is
    again a convolution: the kernel times `g / sqrt(v + eps)`, and the bias `(bias - m) * g / sqrt(v + eps) + b`. A pair
    is folded where the convolution is linear, applied once, and feeds nothing but that normalisation; every other
    normalisation stays. Nested functional models are folded too. Outputs agree to float32 rounding (1e-5 relative).

    Args:
        model: functional `keras.Model`, built. Its weights and outputs are left as they are.

    Returns:
        Functional model with the same inputs, outputs and names of layers with weights, less the folded normalisations;
        layers that do not change are shared with `model`. Its batch statistics are fixed: do not train it.
    """
    pairs = _foldable_pairs(model)
    norms = {norm.name: conv.name for conv, norm in pairs}
    folded = {conv.name: norm for conv, norm in pairs}

    def clone(layer: keras.Layer) -> keras.Layer:
        if _is_functional(layer):
            return fold_batch_norm(layer)
        if layer.name not in folded:
            return layer  # shared with the model: its weights are only read
        # spelled out, because `get_config` makes Keras import TensorFlow wherever it is installed (5 s, 400 MB)
        return layer.__class__(
            layer.filters,
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            dilation_rate=layer.dilation_rate,
            groups=layer.groups,
            use_bias=True,
            kernel_initializer="zeros",
            dtype=layer.dtype_policy,
            name=layer.name,
        )

    def call(layer: keras.Layer, *args, **kwargs):
        return args[0] if layer.name in norms else layer(*args, **kwargs)

    copy = keras.models.clone_model(model, clone_function=clone, call_function=call)
    for layer in copy.layers:
        if layer.name in folded:
            layer.set_weights(_folded_weights(model.get_layer(layer.name), folded[layer.name]))
    return copy


def _is_functional(layer: keras.Layer) -> bool:
    return isinstance(layer, keras.Model) and hasattr(layer, "_nodes_by_depth")


def _foldable_pairs(model: keras.Model) -> list[tuple[keras.Layer, keras.Layer]]:
    """(convolution, normalisation) pairs that are one after the other and touched by nothing else."""
    nodes = [node for depth in model._nodes_by_depth.values() for node in depth]
    uses: dict[int, int] = {}
    calls: dict[int, int] = {}
    for node in nodes:
        calls[id(node.operation)] = calls.get(id(node.operation), 0) + 1
        for tensor in node.input_tensors:
            uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    for tensor in keras.tree.flatten(model.outputs):
        uses[id(tensor)] = uses.get(id(tensor), 0) + 1
    pairs = []
    for node in nodes:
        norm = node.operation
        if not isinstance(norm, keras.layers.BatchNormalization) or len(node.input_tensors) != 1:
            continue
        tensor = node.input_tensors[0]
        conv = tensor._keras_history.operation
        if (
            isinstance(conv, CONVOLUTIONS)
            and conv.activation is keras.activations.linear
            and conv.data_format == "channels_last"
            and norm.axis in (-1, len(tensor.shape) - 1)
            and uses[id(tensor)] == 1
            and calls[id(conv)] == calls[id(norm)] == 1
        ):
            pairs.append((conv, norm))
    return pairs


def _folded_weights(conv: keras.Layer, norm: keras.Layer) -> list[np.ndarray]:
    """Kernel and bias of the folded pair, computed in float64."""

    def values(variable, default: float) -> np.ndarray:
        if variable is None:
            return np.float64(default)
        return keras.ops.convert_to_numpy(variable).astype(np.float64)

    factor = values(norm.gamma, 1) / np.sqrt(values(norm.moving_variance, 1) + norm.epsilon)
    kernel = values(conv.kernel, 0) * factor  # filters are the last axis
    bias = (values(conv.bias, 0) - values(norm.moving_mean, 0)) * factor + values(norm.beta, 0)
    return [kernel.astype(np.float32), bias.astype(np.float32)]
