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
from keras_microseg.layers.heads import MapsActivation
from keras_microseg.layers.normalization import BatchNorm, GroupNorm
from keras_microseg.layers.padding import CropToMatch, PadToMultiple, ReflectionPadding2D
from keras_microseg.layers.scaling import AddScaled, RequireMultiple, ScaleInput
from keras_microseg.layers.spectral import SpectralConv2D
from keras_microseg.layers.weights import Dense

__all__ = [
    "AddScaled",
    "BatchNorm",
    "Conv2D",
    "Conv2DTranspose",
    "Conv3D",
    "Conv3DTranspose",
    "CropToMatch",
    "Dense",
    "GroupNorm",
    "MapsActivation",
    "MaxPooling2D",
    "MaxPooling3D",
    "PadToMultiple",
    "ReflectionPadding2D",
    "RequireMultiple",
    "ScaleInput",
    "SpectralConv2D",
    "UpSampling2D",
    "UpSampling3D",
]
