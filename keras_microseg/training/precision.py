"""Mixed precision: copies of networks that compute in 16 bits, and the loss scale that float16 needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_microseg.checks import check_choice


def half_precision(mixed_precision: bool | str) -> str | None:
    """Name of the type: "bfloat16" for True, "float16" where named so, None for False."""
    if isinstance(mixed_precision, bool) or mixed_precision is None:
        return "bfloat16" if mixed_precision else None
    return check_choice("mixed_precision", mixed_precision, ("bfloat16", "float16"))


def in_bfloat16(model: keras.Model) -> keras.Model:
    """See `in_half_precision`."""
    return in_half_precision(model, "bfloat16")


def in_half_precision(model: keras.Model, dtype: str) -> keras.Model:
    """A copy that computes in "bfloat16" or "float16", but for its output layers; weights stay float32.

    Output layers are those that make the outputs, and where such a layer has no weights (it joins or activates), the
    layers before it up to and including those with weights.
    """
    outputs = _output_layers(model)

    def clone(layer: keras.Layer) -> keras.Layer:
        config = keras.saving.serialize_keras_object(layer)
        if layer.name not in outputs and not isinstance(layer, keras.layers.InputLayer):
            config["config"]["dtype"] = f"mixed_{dtype}"
        return keras.saving.deserialize_keras_object(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy


def _output_layers(model: keras.Model) -> set[str]:
    names = set()
    waiting = [tensor._keras_history for tensor in keras.tree.flatten(model.outputs)]
    while waiting:
        layer, node, _ = waiting.pop()
        names.add(layer.name)
        if not layer.weights:
            waiting += [tensor._keras_history for tensor in layer._inbound_nodes[node].input_tensors]
    return names


class LossScale:
    """Factor on a loss that keeps gradients in float16 from vanishing (Micikevicius et al. 2018, arXiv:1710.03740).

    A step whose gradients are not finite is undone and halves the factor; it doubles after `GROWTH` good steps.
    """

    START, GROWTH = 2.0**15, 1000

    def __init__(self) -> None:
        self.factor = keras.Variable(self.START, trainable=False, dtype="float32", name="loss_scale")
        self.good_steps = keras.Variable(0.0, trainable=False, dtype="float32", name="good_steps")
        self.variables = [self.factor, self.good_steps]

    def unscale(self, gradients: Sequence) -> tuple[list, Any]:
        """Gradients of the loss itself, and whether all are finite (scalar bool tensor)."""
        unscaled = [ops.cast(gradient, "float32") / self.factor for gradient in gradients]
        return unscaled, ops.isfinite(sum(ops.sum(ops.abs(gradient)) for gradient in unscaled))

    def update(self, is_finite: Any) -> None:
        good = ops.where(is_finite, self.good_steps + 1.0, 0.0)
        grows = good >= self.GROWTH
        change = ops.where(is_finite, ops.where(grows, 2.0, 1.0), 0.5)
        self.factor.assign(ops.clip(self.factor * change, 1.0, 2.0**126))
        self.good_steps.assign(ops.where(grows, 0.0, good))
