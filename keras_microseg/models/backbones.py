"""Encoders for class maps behind one contract: an image in 0..1 goes in, the levels P1 to P5 come out.

Level Pn has 1/2^n of the height and width. Scaling of grey values as the pretrained weights expect it is part of the
network. Inception networks have "same" padding everywhere, so that their levels fit a decoder; shapes and order of the
weights are those of keras.applications, and so are the weight files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_microseg import layers
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.layers.scaling import check_size
from keras_microseg.models.resnet18 import resnet18

log = logging.getLogger(__name__)

CACHE_VARIABLE = "MICROSEG_WEIGHTS"
"""Environment variable that names the folder of weight files; default ~/.keras/models."""
STRIDE = 32
_STORE = "https://storage.googleapis.com/tensorflow/keras-applications"
_MEAN, _SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1
_BGR_MEAN = (103.939, 116.779, 123.68)


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A file of ImageNet weights without the classifier.

    Attributes:
        name: file name.
        url: where it can be had.
        md5: checksum, None = not known.
    """

    name: str
    url: str
    md5: str | None = None


@dataclasses.dataclass(frozen=True)
class _Family:
    """How a kind of backbone is made: its builder, input scaling of pretrained weights, and the levels.

    `levels` are layer names P1 to P5; numbers are places among the layers of the original; None = the last layer of
    each size.
    """

    build: Callable[..., keras.Model]
    scaling: str
    levels: tuple[str | int, ...] | None
    weights: WeightFile | None = None


@dataclasses.dataclass(frozen=True)
class Backbone:
    """An encoder.

    Attributes:
        name: which.
        input: symbolic image, (N, H, W, C) in 0..1.
        pyramid: {"P1": ..., "P5": ...}, symbolic features.
        ends_in_pooling: the encoder's last layer pools (VGG); decoders put a block behind it.
        model: the encoder from `input` to P5.
    """

    name: str
    input: Any
    pyramid: dict[str, Any]
    ends_in_pooling: bool
    model: keras.Model


def _file(name: str, folder: str, md5: str | None) -> WeightFile:
    return WeightFile(name, f"{_STORE}/{folder}/{name}" if folder else f"{_STORE}/{name}", md5)


def _vgg(number: int, md5: str, last: int) -> _Family:
    name = f"vgg{number}"
    levels = ("block2_conv2", f"block3_conv{last}", f"block4_conv{last}", f"block5_conv{last}", "block5_pool")
    file = _file(f"{name}_weights_tf_dim_ordering_tf_kernels_notop.h5", name, md5)
    return _Family(getattr(keras.applications, f"VGG{number}"), "caffe", levels, file)


def _efficientnet(number: int, md5: str | None = None) -> _Family:
    levels = tuple(f"block{k}a_expand_activation" for k in (2, 3, 4, 6)) + ("top_activation",)
    url = f"https://storage.googleapis.com/keras-applications/efficientnetb{number}_notop.h5"
    file = WeightFile(f"efficientnetb{number}_notop.h5", url, md5)
    return _Family(getattr(keras.applications, f"EfficientNetB{number}"), "efficientnet", levels, file)


def _other(name: str, scaling: str, levels: tuple[str, ...] | None = None) -> _Family:
    return _Family(getattr(keras.applications, name), scaling, levels)


_RESNET18 = WeightFile(
    "resnet18_imagenet_1000_no_top.h5",
    "https://github.com/qubvel/classification_models/releases/download/0.0.1/resnet18_imagenet_1000_no_top.h5",
    "318e3ac0cd98d51e917526c9f62f0b50",
)
_INCEPTION3 = _file(
    "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5", "inception_v3", "bcbd6486424b2319ff4ef7d526e38f63"
)
_INCEPTION_RESNET = _file(
    "inception_resnet_v2_weights_tf_dim_ordering_tf_kernels_notop.h5",
    "inception_resnet_v2",
    "d19885ff4a710c122648d3b5c3b684e4",
)
_B3, _B4 = "af6d107764bb5b1abb91932881670226", "ebc24e6d6c33eaebbd558eafbeedf1ba"
_FAMILIES: dict[str, _Family] = {
    "vgg16": _vgg(16, "6d6bbae143d832006294945121d1f1fc", 3),
    "vgg19": _vgg(19, "253f8cb515780f3b799900260a226db6", 4),
    "resnet18": _Family(
        resnet18,
        "raw",
        ("relu0", "stage2_unit1_relu1", "stage3_unit1_relu1", "stage4_unit1_relu1", "relu1"),
        _RESNET18,
    ),
    "inceptionv3": _Family(keras.applications.InceptionV3, "tf", (9, 16, 86, 228, "mixed10"), _INCEPTION3),
    "inceptionresnetv2": _Family(
        keras.applications.InceptionResNetV2, "tf", (9, 16, 260, 594, "conv_7b_ac"), _INCEPTION_RESNET
    ),
    **{f"efficientnetb{k}": _efficientnet(k, {3: _B3, 4: _B4}.get(k)) for k in range(8)},
    **{f"resnet{k}": _other(f"ResNet{k}", "caffe") for k in (50, 101, 152)},
    **{f"resnet{k}v2": _other(f"ResNet{k}V2", "tf") for k in (50, 101, 152)},
    **{f"densenet{k}": _other(f"DenseNet{k}", "torch") for k in (121, 169, 201)},
    **{f"efficientnetv2{k}": _other(f"EfficientNetV2{k.upper()}", "v2") for k in ("b0", "b1", "b2", "b3", "s", "m")},
    "mobilenetv2": _other("MobileNetV2", "tf"),
}
BACKBONES = tuple(_FAMILIES)


def backbone(
    name: str,
    channels: int = 1,
    weights: str | os.PathLike | None = None,
    *,
    size: tuple[int | None, int | None] = (None, None),
) -> Backbone:
    """Build an encoder.

    Args:
        name: one of `BACKBONES`.
        channels: of the image, in 0..1. A grey image is repeated to three channels. Other numbers than 1 and 3 (several
            detectors) get a first convolution of their own; with pretrained weights, the mean over its channels.
        weights: None = random; "imagenet" = the ImageNet weights, from the folder of `CACHE_VARIABLE` or from the
            internet; or a file (`.weights.h5`, or the legacy `.h5`) of such weights.
        size: (height, width) of the images; multiples of 32, None = any.

    Raises:
        UserError: unknown name, or a size that is no multiple.
        FileError: no such file, a wrong checksum, weights of another network, or no internet; the message names file,
            address and folder.
    """
    family = _FAMILIES[check_choice("backbone", name, BACKBONES)]
    check_number("channels", channels, minimum=1, integer=True)
    check_size(size, STRIDE)
    image = keras.Input((*size, channels), name="image")
    x = layers.RequireMultiple(STRIDE, name="size")(image)
    inner = 3 if channels in (1, 3) else channels
    x = _scaling(family.scaling, inner, channels, weights is not None)(x)
    original = _original(family, x)
    if weights is not None:
        path = find_weights(name) if os.fspath(weights) == "imagenet" else Path(weights)
        _load(original, family, path, inner)
    outputs = [_level_names(family, original)[f"P{k}"] for k in range(1, 6)]
    model, names = _clone(original, name)
    pyramid = {f"P{k}": model.get_layer(names[layer]).output for k, layer in enumerate(outputs, start=1)}
    return Backbone(name, model.inputs[0], pyramid, name.startswith("vgg"), model)


def find_weights(name: str) -> Path:
    """The file of ImageNet weights of a backbone, downloaded into the cache folder when it is not there yet.

    Raises:
        FileError: it is damaged, or cannot be had; the message says where to put it.
        UserError: no weights are known for this backbone.
    """
    file = _FAMILIES[check_choice("backbone", name, BACKBONES)].weights
    if file is None:
        raise UserError(
            f"For {name} name the file of its weights: encoder_weights='PATH', as keras.applications offers it "
            "(no-top). 'imagenet' is known for " + ", ".join(n for n, f in _FAMILIES.items() if f.weights) + "."
        )
    folder = Path(os.environ.get(CACHE_VARIABLE) or Path.home() / ".keras" / "models").expanduser()
    path = folder / file.name
    remedy = f"Get it from {file.url} on a computer with internet and put it at {path} (folder: {CACHE_VARIABLE})."
    if not path.is_file():
        log.info("Downloading %s.", file.url)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _download(file.url, path)
        except Exception as error:
            raise FileError(path, f"is not there and could not be downloaded ({error}).", remedy) from error
    if file.md5 is not None:
        with open(path, "rb") as opened:
            found = hashlib.file_digest(opened, "md5").hexdigest()
        if found != file.md5:
            raise FileError(path, f"is damaged (MD5 {found}, not {file.md5}).", f"Remove it. {remedy}")
    return path


def _download(url: str, path: Path) -> None:
    import shutil
    import urllib.request

    from keras_microseg.io import atomic_path

    with urllib.request.urlopen(url, timeout=30) as answer, atomic_path(path) as temporary:
        with open(temporary, "wb") as file:
            shutil.copyfileobj(answer, file)


def _scaling(kind: str, inner: int, channels: int, pretrained: bool) -> keras.Layer:
    """From 0..1 to what the encoder was trained on; without weights, to a span around 0."""
    scale: Any = 1.0
    offset: Any = 0.0
    reverse = False
    if kind in ("raw", "v2"):
        scale = 255.0
    elif kind == "efficientnet":  # the network divides by 255 and normalizes
        scale = 255.0
        if pretrained:  # its files hold the spread where the variance belongs
            scale = [255 / s**0.5 for s in _SPREAD]
            offset = [255 * m * (1 - 1 / s**0.5) for m, s in zip(_MEAN, _SPREAD, strict=True)]
    elif kind == "tf" or not pretrained:
        scale, offset = 2.0, -1.0
    elif kind == "caffe":
        scale, offset, reverse = 255.0, [-m for m in _BGR_MEAN], True
    elif kind == "torch":
        scale = [1 / s for s in _SPREAD]
        offset = [-m / s for m, s in zip(_MEAN, _SPREAD, strict=True)]
    if inner != 3:
        scale, offset, reverse = float(np.mean(scale)), float(np.mean(offset)), False
    return layers.ScaleInput(scale, offset, inner if channels == 1 else 1, reverse, name="scale")


def _original(family: _Family, x: Any) -> keras.Model:
    """The network of the library on top of `x`, with random weights."""
    if family.build is resnet18:
        return resnet18(x)
    options = {"include_top": False, "weights": None, "input_tensor": x}
    if family.scaling == "v2":
        options["include_preprocessing"] = True
    return family.build(**options)


def _load(model: keras.Model, family: _Family, path: Path, inner: int) -> None:
    if not path.is_file():
        raise FileError(path, "does not exist.", "Check the path, or use encoder_weights='imagenet'.")
    source = model
    if inner != 3:
        source = _original(family, _scaling(family.scaling, 3, 3, True)(keras.Input((None, None, 3))))
    try:
        source.load_weights(path)
    except Exception as error:  # h5py and Keras raise almost any type for a file that does not fit
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FileError(
            path, f"holds no weights of this backbone ({reason[0]}).", "Use a no-top weight file of the same network."
        ) from error
    if source is not model:
        model.set_weights([_fit(w, v.shape) for w, v in zip(source.get_weights(), model.weights, strict=True)])


def _fit(weight: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A weight for three channels made into one for more: the mean, scaled to the same sum."""
    if weight.shape == tuple(shape):
        return weight
    if weight.ndim == 4:
        mean = weight.mean(axis=2, keepdims=True) * weight.shape[2] / shape[2]
        return np.repeat(mean, shape[2], axis=2)
    return np.full(shape, weight.mean(), weight.dtype)


def _level_names(family: _Family, model: keras.Model) -> dict[str, str]:
    """Level -> name of its layer in the network of the library."""
    if family.levels is not None:
        # numbers count the library's layers: without `size` and `scale`, which lie behind the input
        own = [layer.name for layer in model.layers if layer.name not in ("size", "scale")]
        return {f"P{k}": own[n] if isinstance(n, int) else n for k, n in enumerate(family.levels, start=1)}
    sizes = _strides(model)
    found = {}
    for layer in model.layers:
        stride = sizes.get(layer.name)
        if stride in (2, 4, 8, 16, 32):
            found[f"P{stride.bit_length() - 1}"] = layer.name
    return found


def _strides(model: keras.Model) -> dict[str, int]:
    """Input size / output size of every layer that gives feature maps."""
    shapes: dict[str, int] = {}

    def record(layer: keras.Layer, *args: Any, **kwargs: Any) -> Any:
        out = layer(*args, **kwargs)
        if len(out.shape) == 4 and out.shape[1] and 256 % out.shape[1] == 0 and out.shape[1] > 1:
            shapes[layer.name] = 256 // out.shape[1]
        return out

    probe = keras.Input((256, 256, model.inputs[0].shape[-1]))
    keras.models.clone_model(model, input_tensors=[probe], clone_function=lambda layer: layer, call_function=record)
    return shapes


_AUTOMATIC = re.compile(
    r"^(conv2d|batch_normalization|activation|max_pooling2d|average_pooling2d|concatenate|rescaling|normalization"
    r"|custom_scale_layer|add|multiply|zero_padding2d|input_layer)(_\d+)?$"
)
_REPLACED = {
    keras.layers.Conv2D: layers.Conv2D,
    keras.layers.BatchNormalization: layers.BatchNorm,
    keras.layers.MaxPooling2D: layers.MaxPooling2D,
}


def _clone(model: keras.Model, name: str) -> tuple[keras.Model, dict[str, str]]:
    """The network with our layers, "same" padding where it is an Inception, and names that do not count up.

    Returns:
        The copy, with the weights, and old name -> new name.
    """
    same = name.startswith("inception")
    names = {
        layer.name: f"{name}_{number}" if _AUTOMATIC.match(layer.name) else layer.name
        for number, layer in enumerate(model.layers)
    }

    def clone(layer: keras.Layer) -> keras.Layer:
        config = {**layer.get_config(), "name": names[layer.name]}
        if same and config.get("padding") == "valid":
            config["padding"] = "same"
        cls = _REPLACED.get(type(layer), type(layer))
        if type(layer).__name__ == "CustomScaleLayer":
            cls = layers.AddScaled
        return cls.from_config(config)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.set_weights(model.get_weights())
    return copy, names
