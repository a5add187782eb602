"""Backbones with a feature pyramid (Lin et al. 2017, arXiv:1612.03144): ResNet-50 and -101, and a light one for CPUs.

Layer names are those of Matterport's weight files (`res3a_branch2b`, `bn3a_branch2b`, `fpn_c3p3`, ...), for the light
backbone too, so that the same names choose what is trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import check_choice

BACKBONES = ("light", "resnet50", "resnet101")
_BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
_LIGHT_BLOCKS = (1, 2, 2, 2)
LIGHT_WIDTHS = (24, 32, 64, 96, 128)


def feature_pyramid(
    backbone: str,
    tile_size: int,
    channels: int,
    *,
    width: int = 256,
    num_levels: int = 5,
    train_batch_norm: bool = True,
    input_scale: float = 1.0,
    input_mean: Sequence[float] | None = None,
    light_widths: Sequence[int] = LIGHT_WIDTHS,
    dtype: Any = None,
) -> keras.Model:
    """Features of 1/4, 1/8, ... of the size of a square image.

    Args:
        backbone: one of `BACKBONES`.
        tile_size: S, a multiple of `2 ** (num_levels + 1)`.
        channels: C of the image.
        width: channels of every level.
        num_levels: 4 = P2..P5, 5 = also P6, every second feature of P5.
        train_batch_norm: normalize by the statistics of the batch in training; False = by the stored ones always, while
            scale and shift still learn.
        input_scale, input_mean: the network sees `image * input_scale - input_mean`; with means, a grey image is
            repeated to as many channels.
        light_widths: channels of the light backbone at 1/2, 1/4, 1/8, 1/16 and 1/32.
        dtype: precision policy of the layers.

    Returns:
        Functional model (N, S, S, C) -> [(N, S/4, S/4, width), ...].
    """
    check_choice("backbone", backbone, BACKBONES)
    build = _Builder(train_batch_norm, dtype)
    image = keras.Input((tile_size, tile_size, channels), name="image")
    x = image
    if input_mean is not None and channels == 1 and len(input_mean) > 1:
        x = keras.layers.Concatenate(name="repeat_grey", dtype="float32")([x] * len(input_mean))
    if input_scale != 1 or input_mean is not None:
        offset = 0.0 if input_mean is None else [-float(mean) for mean in input_mean]
        x = keras.layers.Rescaling(input_scale, offset, name="input_scale", dtype="float32")(x)
    stages = build.light(x, light_widths) if backbone == "light" else build.resnet(x, _BLOCKS[backbone])
    return keras.Model(image, build.pyramid(stages, width, num_levels), name="pyramid")


class _Builder:
    """Blocks with the names, biases and strides of the original."""

    def __init__(self, train_batch_norm: bool, dtype: Any):
        self.train_batch_norm, self.options = train_batch_norm, {} if dtype is None else {"dtype": dtype}

    def conv(self, x: Any, filters: int, size: int, name: str, **arguments: Any) -> Any:
        return layers.Conv2D(filters, size, name=name, **arguments, **self.options)(x)

    def norm(self, x: Any, name: str, momentum: float = 0.99, epsilon: float = 1e-3) -> Any:
        norm = layers.BatchNorm(momentum=momentum, epsilon=epsilon, name=name, **self.options)
        return norm(x) if self.train_batch_norm else norm(x, training=False)

    def relu(self, x: Any, name: str) -> Any:
        return keras.layers.ReLU(name=name, **self.options)(x)

    def resnet(self, x: Any, blocks: Sequence[int]) -> list[Any]:
        """C2..C5 (He et al. 2015, arXiv:1512.03385); strides on the first 1x1 convolution, all with biases."""
        x = keras.layers.ZeroPadding2D(3, name="conv1_pad", **self.options)(x)
        x = self.relu(self.norm(self.conv(x, 64, 7, "conv1", strides=2), "bn_conv1"), "conv1_relu")
        x = layers.MaxPooling2D(3, 2, padding="same", name="pool1", **self.options)(x)
        stages = []
        for stage, (count, filters) in enumerate(zip(blocks, (64, 128, 256, 512), strict=True), start=2):
            for number in range(count):
                stride = 2 if number == 0 and stage > 2 else 1
                x = self.bottleneck(x, filters, stride, f"{stage}{_letter(number)}", project=number == 0)
            stages.append(x)
        return stages

    def bottleneck(self, x: Any, filters: int, stride: int, name: str, project: bool) -> Any:
        shortcut = x
        if project:
            shortcut = self.conv(x, 4 * filters, 1, f"res{name}_branch1", strides=stride)
            shortcut = self.norm(shortcut, f"bn{name}_branch1")
        x = self.norm(self.conv(x, filters, 1, f"res{name}_branch2a", strides=stride), f"bn{name}_branch2a")
        x = self.relu(x, f"res{name}_branch2a_relu")
        x = self.norm(self.conv(x, filters, 3, f"res{name}_branch2b", padding="same"), f"bn{name}_branch2b")
        x = self.relu(x, f"res{name}_branch2b_relu")
        x = self.norm(self.conv(x, 4 * filters, 1, f"res{name}_branch2c"), f"bn{name}_branch2c")
        return self.relu(keras.layers.Add(name=f"res{name}_add", **self.options)([x, shortcut]), f"res{name}_out")

    def light(self, x: Any, widths: Sequence[int]) -> list[Any]:
        """C2..C5 of narrow two-convolution blocks."""
        x = self.conv(x, widths[0], 3, "conv1", strides=2, padding="same", use_bias=False)
        x = self.relu(self.norm(x, "bn_conv1", 0.9), "conv1_relu")
        stages = []
        for stage, (count, filters) in enumerate(zip(_LIGHT_BLOCKS, widths[1:], strict=True), start=2):
            for number in range(count):
                x = self.basic(x, filters, 2 if number == 0 else 1, f"{stage}{_letter(number)}")
            stages.append(x)
        return stages

    def basic(self, x: Any, filters: int, stride: int, name: str) -> Any:
        shortcut = x
        if stride > 1:
            shortcut = self.conv(x, filters, 1, f"res{name}_branch1", strides=stride, use_bias=False)
            shortcut = self.norm(shortcut, f"bn{name}_branch1", 0.9)
        for part, step in (("2a", stride), ("2b", 1)):
            x = self.conv(x, filters, 3, f"res{name}_branch{part}", strides=step, padding="same", use_bias=False)
            x = self.norm(x, f"bn{name}_branch{part}", 0.9)
            if part == "2a":
                x = self.relu(x, f"res{name}_branch2a_relu")
        return self.relu(keras.layers.Add(name=f"res{name}_add", **self.options)([x, shortcut]), f"res{name}_out")

    def pyramid(self, stages: Sequence[Any], width: int, num_levels: int) -> list[Any]:
        """P2..P5, and P6 when asked for."""
        x, levels = None, {}
        for stage in (5, 4, 3, 2):
            lateral = self.conv(stages[stage - 2], width, 1, f"fpn_c{stage}p{stage}")
            if x is not None:
                x = layers.UpSampling2D(2, name=f"fpn_p{stage + 1}upsampled", **self.options)(x)
                lateral = keras.layers.Add(name=f"fpn_p{stage}add", **self.options)([x, lateral])
            x = lateral
            levels[stage] = self.conv(x, width, 3, f"fpn_p{stage}", padding="same")
        outputs = [levels[stage] for stage in (2, 3, 4, 5)]
        if num_levels > 4:
            outputs.append(layers.MaxPooling2D(1, 2, name="fpn_p6", **self.options)(outputs[-1]))
        return outputs


def _letter(number: int) -> str:
    return chr(ord("a") + number)
