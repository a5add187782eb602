"""ResNet-18 with pre-activation units, layer by layer as in the classification_models package.

Names, order and shapes are those of its weight files, so that `resnet18_imagenet_1000_no_top.h5` loads.
Reference: He et al. (2016), Identity mappings in deep residual networks, arXiv:1603.05027.
"""

from __future__ import annotations

from typing import Any

import keras

from keras_microseg import layers

_WIDTHS = (64, 128, 256, 512)


def resnet18(inputs: Any) -> keras.Model:
    """ResNet-18 without the classifier.

    Args:
        inputs: symbolic (N, H, W, C) tensor of grey values 0 to 255; the first layer normalizes them.

    Returns:
        Functional model from the sources of `inputs` to features of 1/32 of the size, 512 channels. With 3 channels it
        has 11 186 889 weights.
    """
    x = _norm(inputs, "bn_data", scale=False)
    x = _conv(x, 64, 7, "conv0", strides=2, pad=3)
    x = _relu(_norm(x, "bn0"), "relu0")
    x = keras.layers.ZeroPadding2D(1, name="pooling0_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="valid", name="pooling0")(x)
    for stage, width in enumerate(_WIDTHS, start=1):
        for unit in (1, 2):
            x = _unit(
                x, width, f"stage{stage}_unit{unit}", strides=2 if unit == 1 and stage > 1 else 1, first=unit == 1
            )
    x = _relu(_norm(x, "bn1"), "relu1")
    return keras.Model(keras.utils.get_source_inputs(inputs), x, name="resnet18")


def _unit(x: Any, width: int, name: str, strides: int, first: bool) -> Any:
    shortcut = x
    x = _relu(_norm(x, f"{name}_bn1"), f"{name}_relu1")
    if first:
        shortcut = _conv(x, width, 1, f"{name}_sc", strides=strides)
    x = _conv(x, width, 3, f"{name}_conv1", strides=strides, pad=1)
    x = _relu(_norm(x, f"{name}_bn2"), f"{name}_relu2")
    x = _conv(x, width, 3, f"{name}_conv2", pad=1)
    return keras.layers.Add(name=f"{name}_add")([x, shortcut])


def _conv(x: Any, width: int, size: int, name: str, *, strides: int = 1, pad: int = 0) -> Any:
    if pad:
        x = keras.layers.ZeroPadding2D(pad, name=f"{name}_pad")(x)
    return layers.Conv2D(
        width, size, strides=strides, padding="valid", use_bias=False, kernel_initializer="he_uniform", name=name
    )(x)


def _norm(x: Any, name: str, scale: bool = True) -> Any:
    return layers.BatchNorm(epsilon=2e-5, momentum=0.99, scale=scale, name=name)(x)


def _relu(x: Any, name: str) -> Any:
    return keras.layers.ReLU(name=name)(x)
