"""Networks: functions that return plain functional `keras.Model`s."""

from keras_microseg.models.discriminators import outline_critic, patchgan_discriminator
from keras_microseg.models.generators import outline_generator, resnet_generator
from keras_microseg.models.multires_unet import multires_unet
from keras_microseg.models.unet import unet
from keras_microseg.models.unet3d import unet3d, unet25d

__all__ = [
    "multires_unet",
    "outline_critic",
    "outline_generator",
    "patchgan_discriminator",
    "resnet_generator",
    "unet",
    "unet25d",
    "unet3d",
]
