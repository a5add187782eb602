"""Mixed precision: bfloat16 copies of networks."""

from __future__ import annotations

import keras


def in_bfloat16(model: keras.Model) -> keras.Model:
    """A copy that computes in bfloat16, but for its output layers; weights stay float32."""
    outputs = set(model.output_names)

    def clone(layer: keras.Layer) -> keras.Layer:
        config = keras.saving.serialize_keras_object(layer)
        if layer.name not in outputs and not isinstance(layer, keras.layers.InputLayer):
            config["config"]["dtype"] = "mixed_bfloat16"
        return keras.saving.deserialize_keras_object(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy
