"""Weights of the original PyTorch networks (U-Net, MultiTaskDeltaNet) in the networks of `models.delta_net`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from keras_microseg.backend.torch_state import read_torch_state
from keras_microseg.checks import FileError
from keras_microseg.models.delta_net import NetworkSettings, delta_net, frame_unet

_BLOCK = re.compile(r"(?:^|\.)(encoder|decoder|bottleneck)(\d?)\.\w*?(conv|norm)(\d)$")
_UP = re.compile(r"(?:^|\.)upconv(\d)$")
_NAMES = {"encoder": "enc", "decoder": "dec", "bottleneck": "bottom"}
_ORDER = ("weight", "bias", "running_mean", "running_var")  # as Keras lists them


def load_torch_weights(path: str | Path, tasks: Sequence[str] = ("A1", "A2")) -> tuple[keras.Model, dict]:
    """A state file of the original as one of our models with its card.

    The U-Net layers are known by their names (`encoder1.enc1conv1.weight`, `upconv4.weight`, `conv.weight`, after any
    prefix; the wrapper of the original keeps the same tensors under several names). What else has weights belongs to
    the heads, in file order: per head four convolutions with normalization and a 1x1 convolution. A file without heads
    is a U-Net; its classes are foreground 0 and background 1 and are exchanged here.

    Args:
        path: `.pt` or `.pth` file; needs torch installed.
        tasks: names of the heads (of a U-Net: the first).

    Returns:
        `(model, card)`, ready for `inference.change.ChangePredictor` and `models.saving.save_model`.

    Raises:
        FileError: another layout; the message names what does not fit.
    """
    state = {name: value for name, value in read_torch_state(path).items() if not name.endswith("num_batches_tracked")}
    branch, rest = _sort(state)
    if "enc1_a" not in branch:
        raise FileError(path, "holds no layer encoder1.enc1conv1.", "Only states of the original networks are read.")
    channels, features = branch["enc1_a"]["weight"].shape[1], branch["enc1_a"]["weight"].shape[0]
    output = branch.pop("out", None)
    heads = _split_heads(rest)
    if heads and len(heads) < len(tasks):
        raise FileError(path, f"holds {len(heads)} heads, {len(tasks)} tasks were asked for.", "Pass tasks=(...).")
    network = NetworkSettings(tuple(tasks) if heads else tuple(tasks)[:1], features, 4, channels)
    if heads:
        model = delta_net(network)
        for task, head in zip(network.tasks, heads, strict=False):
            for i, part in enumerate(head[:-1]):
                branch[f"{task}_{i // 2 + 1}" + ("_norm" if i % 2 else "")] = part
            branch[f"{task}_logits"] = head[-1]
    elif output is not None:
        model = frame_unet(network, output["weight"].shape[0])
        branch[f"{network.tasks[0]}_logits"] = {name: values[::-1] for name, values in output.items()}
    else:
        raise FileError(path, "holds a U-Net without its output convolution.", "Pass the whole state.")
    for layer in model.layers:
        if layer.weights:
            _assign(path, layer, branch.pop(layer.name, None))
    card = {
        "name": f"weights of {Path(path).name}",
        "kind": "delta_net" if heads else "frame_unet",
        "network": {"tasks": list(network.tasks), "features": int(features), "in_channels": int(channels)},
        "frame_input": {"channels": int(channels), "normalization": "half"},
        "outputs": list(network.tasks),
    }
    return model, card


def _sort(state: Mapping[str, np.ndarray]) -> tuple[dict[str, dict], list[dict]]:
    """Parameters of the U-Net by our layer name, and those of other modules in file order; shared tensors once."""
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state.items():
        module, _, parameter = name.rpartition(".")
        modules.setdefault(module, {})[parameter] = value
    branch, rest, seen = {}, [], set()
    for module, values in modules.items():
        place = values["weight"].__array_interface__["data"][0] if "weight" in values else module
        if place in seen:
            continue  # an alias: torch keeps shared tensors shared
        seen.add(place)
        block, up = _BLOCK.search(module), _UP.search(module)
        if block:
            part, level, kind, number = block.groups()
            branch[f"{_NAMES[part]}{level}_{'ab'[int(number) - 1]}" + ("_norm" if kind == "norm" else "")] = values
        elif up:
            branch[f"up{up[1]}"] = values
        elif module.split(".")[-1] == "conv" and "out" not in branch:
            branch["out"] = values
        else:
            rest.append(values)
    return branch, rest


def _split_heads(modules: Sequence[dict[str, np.ndarray]]) -> list[list[dict[str, np.ndarray]]]:
    """Modules of the heads in file order, each head ending with its 1x1 convolution."""
    heads, current = [], []
    for values in modules:
        current.append(values)
        if "bias" in values and "weight" in values and values["weight"].ndim == 4 and values["weight"].shape[-1] == 1:
            heads.append(current)
            current = []
    return [head for head in heads if len(head) == 9]


def _assign(path: str | Path, layer: keras.layers.Layer, values: Mapping[str, np.ndarray] | None) -> None:
    if values is None:
        raise FileError(path, f"lacks the weights of {layer.name}.", "Pass the whole state.")
    found = [values[name] for name in _ORDER if name in values]
    if found[0].ndim == 4:  # (out, in, h, w) -> (h, w, in, out); transposed ones (in, out, h, w) -> (h, w, out, in)
        found[0] = found[0].transpose(2, 3, 1, 0)
    shapes = [tuple(w.shape) for w in layer.weights]
    if [value.shape for value in found] != shapes:
        raise FileError(path, f"{layer.name} has {[v.shape for v in found]}, expected {shapes}.", "")
    layer.set_weights(found)
