"""Mixed precision: bfloat16 copies of networks."""

from __future__ import annotations

import keras


def in_bfloat16(model: keras.Model) -> keras.Model:
    """A copy that computes in bfloat16, but for its output layers; weights stay float32.

    Output layers are those that make the outputs, and where such a layer has no weights (it joins or activates), the
    layers before it up to and including those with weights.
    """
    outputs = _output_layers(model)

    def clone(layer: keras.Layer) -> keras.Layer:
        config = keras.saving.serialize_keras_object(layer)
        if layer.name not in outputs and not isinstance(layer, keras.layers.InputLayer):
            config["config"]["dtype"] = "mixed_bfloat16"
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
