"""Networks: functions that return plain functional `keras.Model`s."""

from keras_microseg.models.multires_unet import multires_unet
from keras_microseg.models.unet import unet

__all__ = ["multires_unet", "unet"]
