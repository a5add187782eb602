"""Networks for class maps: U-Net and LinkNet on backbones, and one door for all of them (`class_map_network`).

Decoders are those of segmentation_models 1.0.x, block by block: five doublings of the size, four skips, a 3 x 3
convolution to the classes. U-Net: Ronneberger et al. 2015, arXiv:1505.04597; LinkNet: Chaurasia & Culurciello 2017,
arXiv:1707.03718; attention gates: Oktay et al. 2018, arXiv:1804.03999.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import keras

from keras_microseg import layers
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.layers.scaling import check_size
from keras_microseg.models import small_networks
from keras_microseg.models.backbones import backbone as make_backbone
from keras_microseg.models.deep_supervision import check_levels, coarse_maps, join_maps
from keras_microseg.models.multires_unet import multires_unet
from keras_microseg.models.two_branch import two_branch
from keras_microseg.models.unet import unet

ARCHITECTURES = ("unet", "linknet", "two_branch", "multires_unet", "resunet", "custom_unet", "segnet", "custom")
SUPERVISED = ("unet", "linknet")  # whose coarser decoder levels can be trained too
UPSAMPLINGS = ("nearest", "transpose")
DECODER_FILTERS = (256, 128, 64, 32, 16)
_MOMENTUM = 0.95  # Keras' 0.99 lags behind a training of a few hundred steps
_DECODER = ("decoder", "centre", "maps", "logits", "level")  # first words of the names of layers behind the encoder


def class_map_network(
    architecture: str,
    num_classes: int,
    *,
    channels: int = 1,
    backbone: str | None = None,
    encoder_weights: str | os.PathLike | None = None,
    filters: Sequence[int] | int | None = None,
    dropout: float = 0.0,
    deep_supervision: int = 0,
    input_size: int | None = None,
) -> keras.Model:
    """A network (N, H, W, channels) in 0..1 -> (N, H, W, num_classes) float32 probabilities that sum to 1.

    Args:
        architecture: one of `ARCHITECTURES`. "unet" without a backbone is the plain one of `models.unet`.
        num_classes: K, at least 2.
        channels: of the image.
        backbone: encoder of "unet" and "linknet", see `models.backbones`.
        encoder_weights: of the backbone.
        filters: widths, finest first ("unet" without backbone, "two_branch", "resunet"); of the first level (the small
            networks); of the decoder, coarsest first ("unet" with backbone). None = the usual ones.
        dropout: share of channels dropped before the last layer, in training.
        deep_supervision: number of coarser decoder levels with results of their own, as further channels, for "unet"
            and "linknet"; see `models.deep_supervision`.
        input_size: only checked: an edge that the network must take.

    Raises:
        UserError: what does not go together.
    """
    check_choice("architecture", architecture, ARCHITECTURES)
    check_number("num_classes", num_classes, minimum=2, integer=True)
    if backbone is None and (architecture == "linknet" or encoder_weights is not None):
        raise UserError(f"{architecture!r} with these settings needs a backbone, for example backbone='resnet18'.")
    if backbone is not None and architecture not in ("unet", "linknet"):
        raise UserError(f"{architecture!r} takes no backbone; 'unet' and 'linknet' do. Received: backbone={backbone!r}")
    if deep_supervision and architecture not in SUPERVISED:
        raise UserError(f"`deep_supervision` is for {', '.join(SUPERVISED)}. Received: architecture={architecture!r}")
    shape, deep = (None, None, channels), {"deep_supervision": deep_supervision}
    if backbone is not None:
        build = backbone_unet if architecture == "unet" else backbone_linknet
        options = {} if filters is None or architecture == "linknet" else {"filters": filters}
        model = build(backbone, num_classes, channels, encoder_weights, dropout=dropout, **deep, **options)
    elif architecture == "unet":
        model = unet(shape, num_classes, filters or (16, 32, 64, 128, 256), "softmax", **deep)
    elif architecture == "two_branch":
        model = two_branch(shape, num_classes, **({} if filters is None else {"filters": filters}))
    elif architecture == "multires_unet":
        width = filters[0] if isinstance(filters, (tuple, list)) else filters
        model = multires_unet(shape, num_classes, width or 16)
    else:
        build = getattr(small_networks, architecture)
        options = {} if filters is None else {"filters": filters}
        if architecture != "resunet" and isinstance(filters, (tuple, list)):
            options = {"filters": filters[0]}
        model = build(shape, num_classes, **options)
    if backbone is None:
        for layer in model.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                layer.momentum = _MOMENTUM
        model = _with_dropout(model, dropout) if dropout else model
    if input_size is not None:
        check_size((input_size, input_size), total_stride(model))
    return model


def backbone_unet(
    backbone: str,
    num_classes: int = 4,
    channels: int = 3,
    encoder_weights: str | os.PathLike | None = None,
    *,
    filters: Sequence[int] = DECODER_FILTERS,
    upsampling: str = "nearest",
    attention: bool = False,
    dropout: float = 0.0,
    deep_supervision: int = 0,
    activation: str | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> keras.Model:
    """U-Net with a backbone.

    Args:
        backbone, channels, encoder_weights, size: see `models.backbones.backbone`.
        num_classes: channels of the result.
        filters: widths of the decoder, coarsest first.
        upsampling: "nearest", then two convolutions; "transpose": a 4 x 4 transposed convolution, then one.
        attention: weigh the skips by attention gates.
        dropout, deep_supervision: see `class_map_network`.
        activation: None = softmax, sigmoid for one class.
    """
    check_choice("upsampling", upsampling, UPSAMPLINGS)
    check_levels(deep_supervision, 4)
    activation = activation or ("sigmoid" if num_classes == 1 else "softmax")
    encoder = make_backbone(backbone, channels, encoder_weights, size=size)
    x, coarser = _centre(encoder), []
    for stage, width in enumerate(filters):
        name = f"decoder{stage}"
        skip = encoder.pyramid[f"P{4 - stage}"] if stage < 4 else None
        if upsampling == "nearest":
            x = layers.UpSampling2D(2, name=f"{name}_upsample")(x)
        else:
            x = _norm_relu(
                layers.Conv2DTranspose(
                    width, 4, strides=2, padding="same", use_bias=False, kernel_initializer="he_uniform",
                    name=f"{name}_transposed",
                )(x),
                f"{name}_transposed",
            )  # fmt: skip
        if skip is not None:
            if attention:
                skip = _gate(skip, x, f"{name}_gate")
            x = keras.layers.Concatenate(name=f"{name}_skip")([x, skip])
        for part in "ab" if upsampling == "nearest" else "b":
            x = _conv(x, width, 3, f"{name}_{part}")
        if 0 < (level := 4 - stage) <= deep_supervision:
            coarser.insert(0, coarse_maps(x, num_classes, activation, level))
    return _finish(encoder, x, num_classes, activation, dropout, coarser, f"unet_{backbone}")


def backbone_linknet(
    backbone: str,
    num_classes: int = 4,
    channels: int = 3,
    encoder_weights: str | os.PathLike | None = None,
    *,
    last_filters: int = 16,
    upsampling: str = "nearest",
    dropout: float = 0.0,
    deep_supervision: int = 0,
    activation: str | None = None,
    size: tuple[int | None, int | None] = (None, None),
) -> keras.Model:
    """LinkNet with a backbone: skips are added, not joined.

    Args:
        last_filters: width of the last stage, which has no skip.
        backbone, num_classes, channels, encoder_weights, upsampling, dropout, deep_supervision, activation, size: see
            `backbone_unet`.
    """
    check_choice("upsampling", upsampling, UPSAMPLINGS)
    check_levels(deep_supervision, 4)
    activation = activation or ("sigmoid" if num_classes == 1 else "softmax")
    encoder = make_backbone(backbone, channels, encoder_weights, size=size)
    x, coarser = _centre(encoder), []
    for stage in range(5):
        name = f"decoder{stage}"
        skip = encoder.pyramid[f"P{4 - stage}"] if stage < 4 else None
        narrow, width = x.shape[-1] // 4, last_filters if skip is None else skip.shape[-1]
        x = _conv(x, narrow, 1, f"{name}_reduce")
        if upsampling == "nearest":
            x = _conv(layers.UpSampling2D(2, name=f"{name}_upsample")(x), narrow, 3, f"{name}_conv")
        else:
            x = layers.Conv2DTranspose(
                narrow, 4, strides=2, padding="same", use_bias=False, kernel_initializer="he_uniform",
                name=f"{name}_transposed",
            )(x)  # fmt: skip
            x = _norm_relu(x, f"{name}_transposed")
        x = _conv(x, width, 1, f"{name}_expand")
        if skip is not None:
            x = keras.layers.Add(name=f"{name}_skip")([x, skip])
        if 0 < (level := 4 - stage) <= deep_supervision:
            coarser.insert(0, coarse_maps(x, num_classes, activation, level))
    return _finish(encoder, x, num_classes, activation, dropout, coarser, f"linknet_{backbone}")


def freeze_encoder(model: keras.Model, frozen: bool = True, *, train_batch_norm: bool = True) -> None:
    """Fix, or free, the encoder of a network with a backbone.

    Args:
        model: of `backbone_unet` or `backbone_linknet`.
        frozen: False = everything learns.
        train_batch_norm: normalization layers of a frozen encoder still learn and follow the batch statistics, as in
            segmentation_models; False = they keep the statistics of the pretrained ones.

    Raises:
        UserError: the network has no backbone.
    """
    if not any(layer.name.startswith("decoder") for layer in model.layers):
        raise UserError(f"{model.name} has no backbone to freeze. Choose one (--backbone), or the regime 'random'.")
    for layer in model.layers:
        if layer.name.startswith(_DECODER) or not layer.weights:
            continue
        is_norm = isinstance(layer, keras.layers.BatchNormalization)
        layer.trainable = not frozen or (is_norm and train_batch_norm)


def total_stride(model: keras.Model) -> int:
    """The number that heights and widths must be multiples of (1 where the network pads by itself)."""
    for layer in model.layers:
        if isinstance(layer, layers.RequireMultiple):
            return layer.multiple
        if isinstance(layer, layers.PadToMultiple):
            return 1
    return 2 ** sum(isinstance(layer, keras.layers.MaxPooling2D) for layer in model.layers)


def _centre(encoder: Any) -> Any:
    x = encoder.pyramid["P5"]
    if encoder.ends_in_pooling:
        for part in "ab":
            x = _conv(x, 512, 3, f"centre_{part}")
    return x


def _conv(x: Any, width: int, size: int, name: str) -> Any:
    x = layers.Conv2D(width, size, padding="same", use_bias=False, kernel_initializer="he_uniform", name=f"{name}")(x)
    return _norm_relu(x, name)


def _norm_relu(x: Any, name: str) -> Any:
    return keras.layers.ReLU(name=f"{name}_relu")(layers.BatchNorm(name=f"{name}_norm")(x))


def _gate(skip: Any, signal: Any, name: str) -> Any:
    """The skip times a map in 0..1 that skip and decoder agree on."""
    width = max(skip.shape[-1] // 2, 8)
    a = layers.Conv2D(width, 1, use_bias=False, name=f"{name}_skip")(skip)
    b = layers.Conv2D(width, 1, name=f"{name}_signal")(signal)
    x = keras.layers.ReLU(name=f"{name}_relu")(keras.layers.Add(name=f"{name}_add")([a, b]))
    return keras.layers.Multiply(name=f"{name}_weigh")(
        [skip, layers.Conv2D(1, 1, activation="sigmoid", name=f"{name}_map")(x)]
    )


def _finish(
    encoder: Any, x: Any, num_classes: int, activation: str, dropout: float, coarser: list[Any], name: str
) -> keras.Model:
    if dropout:
        x = keras.layers.SpatialDropout2D(dropout, name="decoder_dropout")(x)
    x = layers.Conv2D(num_classes, 3, padding="same", activation=activation, dtype="float32", name="maps")(x)
    return keras.Model(encoder.input, join_maps(x, coarser), name=name)


def _with_dropout(model: keras.Model, rate: float) -> keras.Model:
    """The same network with dropout before its layer `maps`."""

    def call(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        if layer.name == "maps":
            x = keras.layers.SpatialDropout2D(rate, name="maps_dropout")(args[0])
            return layer(x, *args[1:], **kwargs)
        return layer(*args, **kwargs)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)
