"""Registered layers: stock layers without layout copies, fused batch normalization, and the blocks built of them."""

from keras_microseg.layers.convolution import (
    Conv2D,
    Conv2DTranspose,
    Conv3D,
    Conv3DTranspose,
    MaxPooling2D,
    MaxPooling3D,
    UpSampling2D,
    UpSampling3D,
)
from keras_microseg.layers.normalization import BatchNorm

__all__ = [
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "MaxPooling2D",
    "MaxPooling3D",
    "UpSampling2D",
    "UpSampling3D",
]
