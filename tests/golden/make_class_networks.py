"""Stored predictions of networks for class maps whose weights NumPy draws; run this file to make them anew.

Every backend must give them to 1e-4 (tests/models/test_encoder_decoder.py). Made on PyTorch.
"""

import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

NETWORKS = {
    "unet": dict(architecture="unet", filters=(4, 8, 16)),
    "resunet": dict(architecture="resunet", filters=(4, 8, 16)),
    "segnet": dict(architecture="segnet", filters=4),
    "custom_unet": dict(architecture="custom_unet", filters=4),
    "custom": dict(architecture="custom", filters=4),
    "unet_resnet18": dict(architecture="unet", backbone="resnet18", channels=3),
    "two_branch": dict(architecture="two_branch", filters=(4, 8, 16)),
    "deep_unet": dict(architecture="unet", filters=(4, 8, 16), deep_supervision=1),
    "linknet_resnet18": dict(architecture="linknet", backbone="resnet18", channels=3),
}


def draw_weights(model, seed=0):
    """Kernels of the spread He gives, statistics near 0 and 1, all from NumPy and in float32."""
    import keras

    rng = np.random.default_rng(seed)
    weights = []
    for variable in model.weights:
        shape = tuple(variable.shape)
        if len(shape) > 1:
            gain = 0.7 if "stage" in variable.path else 2  # residual sums grow by themselves
            values = rng.normal(0, (gain / np.prod(shape[:-1])) ** 0.5, shape)
        elif variable.path.endswith(("variance", "gamma")):
            values = rng.uniform(0.8, 1.2, shape)
        else:
            values = rng.normal(0, 0.1, shape)
        if variable.path.startswith("bn_data"):  # of grey values 0 to 255
            values = values + (5000 if "variance" in variable.path else 127 if "mean" in variable.path else 0)
        weights.append(values.astype(np.float32))
    model.set_weights(weights)
    maps = model.get_layer("maps")
    features = keras.Model(model.inputs[0], maps.input).predict(picture(model.inputs[0].shape[-1]), verbose=0)
    spread = float(features.std())
    kernel, bias = maps.get_weights()
    maps.set_weights([kernel * np.float32(2.0 ** np.round(np.log2(1 / max(spread, 1e-6)))), bias])  # logits of order 1


def build(name):
    from keras_microseg.models.encoder_decoder import class_map_network

    model = class_map_network(num_classes=4, **NETWORKS[name])
    draw_weights(model)
    return model


def picture(channels):
    return np.random.default_rng(1).random((1, 64, 64, channels), dtype=np.float32)


def predict(name):
    """(64, 64, channels) probabilities; every fourth pixel is stored."""
    model = build(name)
    return np.asarray(model.predict(picture(model.inputs[0].shape[-1]), verbose=0))[0, ::4, ::4]


if __name__ == "__main__":
    np.savez_compressed(Path(__file__).with_name("class_networks.npz"), **{name: predict(name) for name in NETWORKS})
