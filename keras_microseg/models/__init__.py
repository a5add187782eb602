"""Networks: functions that return plain functional `keras.Model`s, and the Mask R-CNN."""

from keras_microseg.models.discriminators import outline_critic, patchgan_discriminator, pix2pix_discriminator
from keras_microseg.models.generators import outline_generator, pix2pix_generator, resnet_generator
from keras_microseg.models.mask_rcnn import MaskRCNN, MaskRCNNSettings, mask_rcnn
from keras_microseg.models.multires_unet import multires_unet
from keras_microseg.models.unet import unet
from keras_microseg.models.unet3d import unet3d, unet25d

__all__ = [
    "MaskRCNN",
    "MaskRCNNSettings",
    "mask_rcnn",
    "multires_unet",
    "outline_critic",
    "outline_generator",
    "patchgan_discriminator",
    "pix2pix_discriminator",
    "pix2pix_generator",
    "resnet_generator",
    "unet",
    "unet25d",
    "unet3d",
]
