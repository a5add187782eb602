"""Networks that segment two frames of a video by the change between them (MultiTaskDeltaNet).

One U-Net branch with shared weights encodes both frames; per task, a head compares the two feature maps and gives the
logits of four change classes 2 f + g (f, g = foreground in the first, second frame). A frame is encoded once for all
its pairs: the first convolution of a head is linear in the concatenated maps, so it splits into one part per frame, and
only what follows has to be computed for every pair (`PairNetwork`).

Reference: Niu, Li, Zhu, Yang (2026), Digital Discovery, doi:10.1039/d5dd00333d.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from keras_microseg import backend, layers
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.layers import pairs
from keras_microseg.models.folding import fold_batch_norm

TASKS = ("A1", "A2")
HEADS, FUSIONS = ("classes", "product"), ("ordered", "symmetric")


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Architecture of a delta-net or of its U-Net baseline; the defaults are the published network.

    Attributes:
        tasks: names of the heads; one name gives the single-task ablation.
        features: channels of the finest level; doubled at each of the `levels` below.
        levels: number of poolings.
        in_channels: channels of one frame: 3 = grey repeated, 1 = grey, 2 = grey and valid-region mask.
        stride: the network works on blocks of stride x stride pixels (1 = full resolution) and gives full-size masks.
        head_filters: channels of the head's convolutions before its last; None = (2 f, f, f / 2, 3), f = `features`.
        head_kernel: edge of their windows, 3 or 1.
        head: "classes", four free logits; "product", two binary masks whose product are the four classes.
        fusion: "ordered", the head sees (first, second); "symmetric", exchanging the frames exchanges the result.
        one_batch: both frames in one pass, so that batch statistics are shared by them.
    """

    tasks: tuple[str, ...] = TASKS
    features: int = 32
    levels: int = 4
    in_channels: int = 3
    stride: int = 1
    head_filters: tuple[int, ...] | None = None
    head_kernel: int = 3
    head: str = "classes"
    fusion: str = "ordered"
    one_batch: bool = False

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise UserError(f"`tasks` must be distinct names, at least one. Received: tasks={self.tasks}")
        for name in ("features", "levels", "in_channels", "stride", "head_kernel"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_choice("head", self.head, HEADS)
        check_choice("fusion", self.fusion, FUSIONS)
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if self.head_filters is not None:
            object.__setattr__(self, "head_filters", tuple(self.head_filters))

    @property
    def multiple_of(self) -> int:
        """Heights and widths must be multiples of it."""
        return self.stride * 2**self.levels

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the head's convolutions but the last."""
        f = self.features
        return self.head_filters if self.head_filters is not None else (2 * f, f, max(f // 2, 1), 3)

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> NetworkSettings:
        """Settings of the network in a model file."""
        network = card.get("network")
        if not isinstance(network, Mapping):
            raise UserError("The model's card has no entry 'network': it is no network for frame pairs.")
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in network.items()})


def delta_net(settings: NetworkSettings = NetworkSettings(), *, name: str = "delta_net") -> keras.Model:  # noqa: B008
    """Siamese U-Net with one head per task; 7,884,172 parameters by default.

    Returns:
        Functional model (N, H, W, 2 c) -> {task: (N, H, W, 4) float32 logits}: channels of the first frame, then those
        of the second; c = `in_channels`.
    """
    c = settings.in_channels
    inputs = keras.Input((None, None, 2 * c), name="frames")
    first = pairs.SelectChannels(0, c, name="first")(inputs)
    second = pairs.SelectChannels(c, 2 * c, name="second")(inputs)
    branch = _branch(settings)
    if settings.one_batch:
        both = branch(keras.layers.Concatenate(axis=0, name="both")([first, second]))
        maps = [pairs.SelectHalf(i, name=f"features_{i + 1}")(both) for i in range(2)]
    else:
        maps = [branch(first), branch(second)]
    join = keras.layers.Concatenate(name="pair")
    joined = join(maps)
    swapped = join(maps[::-1]) if settings.fusion == "symmetric" else None
    outputs = {}
    for task in settings.tasks:
        widths = settings.widths
        start = layers.Conv2D(widths[0], settings.head_kernel, padding="same", use_bias=False, name=f"{task}_1")
        rest = _head(settings, task)
        finish = _finish(settings, task)
        outputs[task] = finish(rest(start(joined)), None if swapped is None else rest(start(swapped)))
    return keras.Model(inputs, outputs, name=name)


def frame_unet(settings: NetworkSettings = NetworkSettings(), num_outputs: int = 2, *, name: str = "frame_unet"):  # noqa: B008
    """The single-frame baseline: the branch with a 1x1 convolution per task; 7,763,074 parameters with one task.

    Args:
        settings: what concerns heads is not used.
        num_outputs: classes; 2 = background 0, foreground 1.

    Returns:
        Functional model (N, H, W, c) -> {task: (N, H, W, num_outputs) float32 logits}.
    """
    inputs = keras.Input((None, None, settings.in_channels), name="frame")
    x = _branch(settings)(inputs)
    return keras.Model(inputs, {task: _output(settings, task, num_outputs)(x) for task in settings.tasks}, name=name)


def transfer_branch(source: keras.Model, target: keras.Model) -> list[str]:
    """Copy the U-Net branch of `source` into `target`, layer by layer name, batch statistics included.

    Heads and output convolutions keep their values (the published variants init1 and init2 start so).

    Returns:
        Names of the layers that were copied.

    Raises:
        UserError: a layer of the target's branch is missing in `source` or has another shape.
    """
    known = {layer.name: layer for layer in source.layers if layer.weights}
    copied = []
    for layer in target.layers:
        if not layer.weights or not layer.name.startswith(_BRANCH):
            continue
        other = known.get(layer.name)
        shapes = [[tuple(w.shape) for w in x.weights] for x in (layer, other or layer)]
        if other is None or shapes[0] != shapes[1]:
            problem = "is missing" if other is None else f"has the shapes {shapes[1]}, not {shapes[0]}"
            raise UserError(
                f"Initial weights: layer {layer.name!r} {problem} in {source.name!r}. "
                "Train the U-Net with the same features, levels, stride and channels."
            )
        layer.set_weights(other.get_weights())
        copied.append(layer.name)
    return copied


class PairNetwork:
    """A delta-net for inference, cut in three: encode a frame, project it, compare two projected frames.

    Batch normalization is folded into the convolutions. Takes and gives NumPy arrays.

    Args:
        model: a trained `delta_net`.
        settings: its settings.
    """

    def __init__(self, model: keras.Model, settings: NetworkSettings):
        self.settings = settings
        self._parts = _inference_parts(settings, model)
        self._encode, self._project, self._compare = (backend.compile_predict(part) for part in self._parts)

    def update(self, model: keras.Model) -> None:
        """Take over the present weights of `model`."""
        for part, new in zip(self._parts, _inference_parts(self.settings, model), strict=True):
            part.set_weights(new.get_weights())

    @property
    def channels(self) -> int:
        """k, the channels of a projected frame for each of its two roles."""
        return len(self.settings.tasks) * self.settings.widths[0]

    def encode(self, frames: np.ndarray) -> np.ndarray:
        """(n, H, W, c) -> (n, h, w, features) float32; h = H / stride."""
        return self._encode(np.ascontiguousarray(frames, np.float32))

    def project(self, features: np.ndarray) -> np.ndarray:
        """Features -> (n, h, w, 2 k): their share in the first convolution of all heads, as first and second frame."""
        return self._project(np.ascontiguousarray(features, np.float32))

    def join(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Input of `read` for projected frames (..., h, w, 2 k); their leading axes broadcast."""
        k = self.channels
        joined = first[..., :k] + second[..., k:]
        if self.settings.fusion == "symmetric":
            joined = np.concatenate([joined, second[..., :k] + first[..., k:]], axis=-1)
        return joined

    def read(self, joined: np.ndarray) -> dict[str, np.ndarray]:
        """(n, h, w, ...) of `join` -> {task: (n, H, W, 4)}, see `layers.pairs.ReadMasks`."""
        return self._compare(np.ascontiguousarray(joined))

    def compare(self, first: np.ndarray, second: np.ndarray) -> dict[str, np.ndarray]:
        """`read(join(first, second))` for projected frames (n, h, w, 2 k); one frame may be compared with many."""
        return self.read(self.join(first, second))


_BRANCH = ("enc", "bottom", "up", "dec")


def _norm(name: str) -> keras.layers.Layer:
    return layers.BatchNorm(momentum=0.9, epsilon=1e-5, name=f"{name}_norm")


def _block(width: int, name: str) -> Callable[[Any], Any]:
    """Twice convolution, normalization, ReLU; one set of weights for all calls."""
    return _chain(
        *(
            layer
            for part in ("a", "b")
            for layer in (
                layers.Conv2D(width, 3, padding="same", use_bias=False, name=f"{name}_{part}"),
                _norm(f"{name}_{part}"),
                keras.layers.ReLU(name=f"{name}_{part}_relu"),
            )
        )
    )


def _chain(*parts: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def call(x: Any) -> Any:
        for part in parts:
            x = part(x)
        return x

    return call


def _branch(settings: NetworkSettings) -> Callable[[Any], Any]:
    """The U-Net without its output convolution."""
    widths = [settings.features * 2**level for level in range(settings.levels + 1)]
    count = settings.levels
    down = [_block(width, f"enc{level + 1}") for level, width in enumerate(widths[:-1])]
    pool = [layers.MaxPooling2D(2, name=f"enc{level + 1}_pool") for level in range(count)]
    bottom = _block(widths[-1], "bottom")
    up = [layers.Conv2DTranspose(widths[level], 2, strides=2, name=f"up{level + 1}") for level in range(count)]
    join = [keras.layers.Concatenate(name=f"dec{level + 1}_skip") for level in range(count)]
    back = [_block(widths[level], f"dec{level + 1}") for level in range(count)]
    stem = pairs.SpaceToDepth(settings.stride, name="stem") if settings.stride > 1 else None

    def call(x: Any) -> Any:
        x = x if stem is None else stem(x)
        skips = []
        for level in range(count):
            skips.append(down[level](x))
            x = pool[level](skips[-1])
        x = bottom(x)
        for level in reversed(range(count)):
            x = back[level](join[level]([up[level](x), skips[level]]))
        return x

    return call


def _head(settings: NetworkSettings, task: str, *, folded: bool = False) -> Callable[[Any], Any]:
    """A head after its first convolution, up to the logits."""
    parts = [] if folded else [_norm(f"{task}_1")]
    parts.append(keras.layers.ReLU(name=f"{task}_1_relu"))
    for i, width in enumerate(settings.widths[1:], start=2):
        parts += [
            layers.Conv2D(width, settings.head_kernel, padding="same", use_bias=False, name=f"{task}_{i}"),
            _norm(f"{task}_{i}"),
            keras.layers.ReLU(name=f"{task}_{i}_relu"),
        ]
    product = settings.head == "product"
    channels = (1 if settings.fusion == "symmetric" else 2) if product else 4
    plain = not product and settings.fusion == "ordered"
    return _chain(*parts, _output(settings, task, channels, f"{task}_logits" if plain else f"{task}_maps"))


def _output(settings: NetworkSettings, task: str, channels: int, name: str | None = None) -> Callable[[Any], Any]:
    """1x1 convolution to full-size logits; the last layer computes in float32 whatever the precision policy."""
    name = name or f"{task}_logits"
    if settings.stride == 1:
        return layers.Conv2D(channels, 1, dtype="float32", name=name)
    blocks = layers.Conv2D(channels * settings.stride**2, 1, name=f"{task}_blocks")
    return _chain(blocks, pairs.DepthToSpace(settings.stride, dtype="float32", name=name))


def _finish(settings: NetworkSettings, task: str) -> Callable[[Any, Any], Any]:
    """Logits of the four classes from what the head gives for a pair and, in symmetric networks, the swapped pair."""
    if settings.fusion == "ordered" and settings.head == "classes":
        return lambda there, back: there
    name = f"{task}_logits"
    if settings.head == "classes":
        mean = pairs.SymmetricLogits(dtype="float32", name=name)
        return lambda there, back: mean([there, back])
    product = pairs.ProductLogits(dtype="float32", name=name)
    if settings.fusion == "ordered":
        return lambda there, back: product(there)
    masks = keras.layers.Concatenate(dtype="float32", name=f"{task}_masks")
    return lambda there, back: product(masks([there, back]))


def _inference_parts(settings: NetworkSettings, model: keras.Model) -> list[keras.Model]:
    """Encoder, projection and comparison with the weights of `model`."""
    frame = keras.Input((None, None, settings.in_channels), name="frame")
    encoder = keras.Model(frame, _branch(settings)(frame), name="encode")
    for layer in encoder.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())

    f, size, k = settings.features, settings.head_kernel, settings.widths[0]
    features = keras.Input((None, None, f), name="features")
    project = layers.Conv2D(2 * k * len(settings.tasks), size, padding="same", name="project")
    projection = keras.Model(features, project(features), name="project")
    kernels, biases = {0: [], 1: []}, []
    for task in settings.tasks:
        (kernel,), norm = model.get_layer(f"{task}_1").get_weights(), model.get_layer(f"{task}_1_norm")
        gamma, beta, mean, variance = (np.asarray(w, np.float64) for w in norm.get_weights())
        factor = gamma / np.sqrt(variance + norm.epsilon)
        for role in (0, 1):
            kernels[role].append(np.asarray(kernel, np.float64)[:, :, role * f : (role + 1) * f] * factor)
        biases.append(beta - mean * factor)
    bias = np.concatenate([*biases, np.zeros(k * len(settings.tasks))])
    project.set_weights([np.concatenate(kernels[0] + kernels[1], axis=-1), bias])

    symmetric = settings.fusion == "symmetric"
    count = len(settings.tasks)
    joined = keras.Input((None, None, k * count * (2 if symmetric else 1)), name="joined")
    outputs = {}
    for i, task in enumerate(settings.tasks):
        there = pairs.SelectChannels(i * k, (i + 1) * k, name=f"{task}_there")(joined)
        back = None
        if symmetric:
            back = pairs.SelectChannels((count + i) * k, (count + i + 1) * k, name=f"{task}_back")(joined)
        head = _head(settings, task, folded=True)
        logits = _finish(settings, task)(head(there), None if back is None else head(back))
        outputs[task] = pairs.ReadMasks(name=f"{task}_read")(logits)
    comparison = keras.Model(joined, outputs, name="compare")
    for layer in comparison.layers:
        if layer.weights:
            layer.set_weights(model.get_layer(layer.name).get_weights())
    return [fold_batch_norm(encoder), projection, fold_batch_norm(comparison)]
