"""Weight files of the Matterport Mask R-CNN (Keras 2 `.h5`, also of Keras 1) in our network, and back.

Such a file has one group per layer, with the attribute `weight_names`; the data of `conv1/kernel:0` lies at
`conv1/conv1/kernel:0`. The region proposal network is one group, `rpn_model`. Keras 3 has no loader by name for it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np

from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.io.files import atomic_path
from keras_microseg.models.mask_rcnn import MaskRCNN, MaskRCNNSettings

PARTS = ("all", "shared", "backbone")
CLASS_LAYERS = ("mrcnn_class_logits", "mrcnn_bbox_fc", "mrcnn_mask")
_BACKBONE = re.compile(r"(conv1|bn_conv1|(res|bn)\d.*)")
_RGB_MEANS = np.array([123.7, 116.8, 103.9])
_KINDS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")
_OLD_KINDS = {"W": "kernel", "b": "bias", "running_mean": "moving_mean", "running_std": "moving_variance"}


@dataclasses.dataclass(frozen=True)
class WeightReport:
    """What was taken from a weight file.

    Attributes:
        path: the file.
        loaded: layers that took their weights from it.
        missing: layers of the model, among those asked for, that the file lacks.
        mismatched: layers whose shapes differ, with both shapes.
        unused: layers of the file that the model did not take.
    """

    path: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.path}: {len(self.loaded)} layers loaded."]
        for title, names in (("missing", self.missing), ("of other shape", self.mismatched), ("unused", self.unused)):
            if names:
                lines.append(f"{len(names)} {title}: {', '.join(names)}")
        return "\n".join(lines)


def load_matterport_weights(
    model: MaskRCNN,
    path: str | Path,
    *,
    part: str = "all",
    classes: Sequence[int] | None = None,
    channel_order: str = "rgb",
    skip_missing: bool = False,
) -> WeightReport:
    """Copy weights from a file into a model, layer by layer name.

    A first convolution for other channels than the file's is made from it: with c channels in 0..1 and without
    `input_mean`, kernels become `255 sum over RGB / c` (three channels: `255 kernel`) and the means go into the bias.
    Results differ from those of the RGB network only within 3 pixels of the border, which it pads with mean grey.

    Args:
        model: its weights are replaced.
        path: `.h5` file of weights, or of a whole model.
        part: "all"; "shared", all layers but those whose size is the number of classes (files of COCO with 81 classes);
            "backbone", the ResNet alone (files of ImageNet).
        classes: columns of the file that become the model's classes, background first: `(0, 15)`. None = all.
        channel_order: "rgb", or "bgr" for the ImageNet files of Keras.
        skip_missing: keep the model's weights where the file has none or others; the report tells.

    Returns:
        What was loaded and what not.

    Raises:
        FileError: not such a file, or layers are missing or of another shape (all are named).
    """
    check_choice("part", part, PARTS)
    check_choice("channel_order", channel_order, ("rgb", "bgr"))
    path = Path(path)
    stored = read_layers(path)
    wanted = {layer.name: layer for layer in model.weighted_layers()}
    if part == "backbone":
        wanted = {name: layer for name, layer in wanted.items() if _BACKBONE.fullmatch(name)}
    elif part == "shared":
        wanted = {name: layer for name, layer in wanted.items() if name not in CLASS_LAYERS}
    loaded, missing, mismatched, found = [], [], [], {}
    for name, layer in wanted.items():
        values = _in_order(stored.get(name, {}), layer)
        if values is None:
            missing.append(name)
            continue
        if classes is not None and name in CLASS_LAYERS:
            values = _choose_classes(path, name, values, classes)
        if name == "conv1" and values[0].ndim == 4:
            values = _adapt_stem(values, model.settings, channel_order)
        shapes = [[tuple(v.shape) for v in values], [tuple(w.shape) for w in layer.weights]]
        if shapes[0] != shapes[1]:
            mismatched.append(f"{name} (file {shapes[0][0]}, model {shapes[1][0]})")
            continue
        found[name] = values
        loaded.append(name)
    unused = sorted(set(stored) - set(loaded))
    report = WeightReport(str(path), *(tuple(names) for names in (loaded, missing, mismatched, unused)))
    if (missing or mismatched) and not skip_missing:
        raise FileError(path, _complaint(report), _remedy(report, model.settings))
    for name, values in found.items():
        wanted[name].set_weights(values)
    return report


def model_from_matterport(
    path: str | Path, *, classes: Sequence[int] | None = None, **changes: Any
) -> tuple[MaskRCNN, WeightReport]:
    """A legacy model made for a complete weight file: backbone and number of classes are read from it.

    Args:
        path: the file.
        classes: see `load_matterport_weights`.
        changes: settings that differ from the legacy preset, such as `tile_size=512, channels=1, min_score=0.5`.

    Raises:
        FileError: not a complete file of this layout.
    """
    stored = read_layers(Path(path))
    logits = stored.get("mrcnn_class_logits", {}).get("kernel")
    if logits is None:
        raise FileError(
            path,
            "holds no class head (mrcnn_class_logits).",
            'A backbone file serves as a start only: load_matterport_weights(model, path, part="backbone").',
        )
    backbone = "resnet101" if "res4w_branch2a" in stored else "resnet50"
    count = logits.shape[1] if classes is None else len(classes)
    settings = MaskRCNNSettings.preset("legacy", **({"backbone": backbone, "num_classes": count} | changes))
    model = MaskRCNN(settings)
    return model, load_matterport_weights(model, path, classes=classes)


def read_layers(path: Path) -> dict[str, dict[str, np.ndarray]]:
    """Layers of a weight file: {layer: {kind: values}}; unknown kinds are called "0", "1", ... in file order.

    Raises:
        FileError: missing, damaged, or not a weight file.
    """
    if not path.is_file():
        raise FileError(path, "there is no such weight file.", "Check the path.")
    try:
        with h5py.File(path) as file:
            root = file["model_weights"] if "model_weights" in file else file
            layers: dict[str, dict[str, np.ndarray]] = {}
            for group, names in _groups(root):
                for name in names:
                    layer, kind = _layer_and_kind(group, name)
                    entry = layers.setdefault(layer, {})
                    entry[kind or str(len(entry))] = np.asarray(root[group][name])
    except (OSError, KeyError, RuntimeError) as error:
        raise FileError(path, f"is no readable HDF5 weight file ({error}).", "Get the file anew.") from None
    if not layers:
        raise FileError(path, "holds no layers.", "Only Keras 1 and 2 weight files (.h5) are read here.")
    return layers


def write_matterport_weights(model: MaskRCNN, path: str | Path) -> Path:
    """Write the weights in the Matterport layout; what `load_matterport_weights` reads. Complete, or not at all."""
    path = Path(path)
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        order = []
        for layer in model.weighted_layers():
            group_name = "rpn_model" if layer.name.startswith("rpn_") else layer.name
            group = file.require_group(group_name)
            if group_name not in order:
                order.append(group_name)
            names = [bytes(name) for name in group.attrs.get("weight_names", [])]
            for weight in layer.weights:
                name = f"{layer.name}/{weight.name}:0"
                group[name] = keras.ops.convert_to_numpy(weight.value)
                names.append(name.encode())
            group.attrs["weight_names"] = np.array(names)
        file.attrs["layer_names"] = np.array([name.encode() for name in order])
        file.attrs["backend"], file.attrs["keras_version"] = b"tensorflow", b"2.2.5"
    return path


def _groups(root: h5py.Group) -> Iterator[tuple[str, list[str]]]:
    for group in root.attrs.get("layer_names", list(root)):
        group = group.decode() if isinstance(group, bytes) else str(group)
        if group in root:
            names = root[group].attrs.get("weight_names", [])
            yield group, [name.decode() if isinstance(name, bytes) else str(name) for name in names]


def _layer_and_kind(group: str, name: str) -> tuple[str, str | None]:
    """`rpn_model`, `rpn_class_raw/kernel:0` -> (`rpn_class_raw`, `kernel`); `conv1`, `conv1_W:0` -> (`conv1`, ...)."""
    *scopes, last = name.split(":")[0].split("/")
    layer = scopes[-1] if scopes and group == "rpn_model" else group
    layer = re.sub(r"^((?:rpn|mrcnn)_.*[a-z]\d?)_\d+$", r"\1", layer)
    last = re.sub(r"_\d+$", "", last)
    if last in _KINDS:
        return layer, last
    for suffix, kind in (_OLD_KINDS | {kind: kind for kind in _KINDS}).items():
        if last.endswith(f"_{suffix}") and (last == f"{layer}_{suffix}" or group == "rpn_model"):
            return last.removesuffix(f"_{suffix}"), kind
    return layer, None


def _in_order(values: dict[str, np.ndarray], layer: keras.Layer) -> list[np.ndarray] | None:
    """Values in the order of the layer's weights; None without them. A bias the layer does not have is no match."""
    kinds = [weight.name for weight in layer.weights]
    if all(kind in values for kind in kinds):
        return [values[kind] for kind in kinds]
    if len(values) == len(kinds) and all(kind.isdigit() for kind in values):
        return list(values.values())
    return None


def _choose_classes(path: Path, name: str, values: list[np.ndarray], classes: Sequence[int]) -> list[np.ndarray]:
    width = 4 if name == "mrcnn_bbox_fc" else 1
    count = values[0].shape[-1] // width
    if min(classes) < 0 or max(classes) >= count:
        raise UserError(f"`classes` must be among 0..{count - 1}, the classes of {path}. Received: {tuple(classes)}")
    columns = np.concatenate([np.arange(width) + width * c for c in classes])
    return [value[..., columns] for value in values]


def _adapt_stem(values: list[np.ndarray], settings: MaskRCNNSettings, channel_order: str) -> list[np.ndarray]:
    """Kernel and bias for the channels and the scale of the model's input."""
    kernel = values[0][:, :, ::-1] if channel_order == "bgr" else values[0]
    if settings.input_mean is not None or kernel.shape[2] != 3:
        return [kernel, *values[1:]]
    bias = values[1] - np.einsum("hwcf,c->f", kernel, _RGB_MEANS) if len(values) > 1 else None
    if settings.channels != 3:
        kernel = np.repeat(kernel.sum(axis=2, keepdims=True) / settings.channels, settings.channels, axis=2)
    kernel = 255 * kernel
    return [kernel.astype(np.float32)] + ([] if bias is None else [bias.astype(np.float32)])


def _complaint(report: WeightReport) -> str:
    parts = []
    for title, names in (("lacks", report.missing), ("has other shapes for", report.mismatched)):
        if names:
            shown = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
            parts.append(f"{title} {len(names)} layers of the model: {shown}")
    return "; ".join(parts) + "."


def _remedy(report: WeightReport, settings: MaskRCNNSettings) -> str:
    names = set(report.missing) | {name.split(" ")[0] for name in report.mismatched}
    if names <= set(CLASS_LAYERS):
        return 'Other numbers of classes: pass part="shared", or choose classes=(0, ...).'
    if not any(_BACKBONE.fullmatch(name) for name in names):
        return 'Pass part="backbone" to start from the backbone alone.'
    if settings.backbone == "resnet101" and any(name.startswith("res4g") for name in names):
        return 'The file is of a ResNet-50: use backbone="resnet50".'
    return "Use the model the file was made for, or skip_missing=True to keep the other weights as they are."
