"""The network of a class map as one compiled call: grey values in, class numbers and confidence in bytes out.

Scaling, averaging over mirrored copies, arg max and rounding are part of the graph: one byte per pixel travels to the
device, one or two come back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_microseg import backend
from keras_microseg.checks import UserError
from keras_microseg.inference.prediction import mirrored_views
from keras_microseg.intensity import Normalizer


class Answer(NamedTuple):
    """What the network says about a batch; None where it was not asked.

    Attributes:
        classes: (n, h, w) uint8 number of the most probable class.
        confidence: (n, h, w) uint8, its probability, 255 = certain.
        probabilities: (n, h, w, C) uint8.
        maps: (n, h, w, C) float32, for blending.
    """

    classes: np.ndarray | None = None
    confidence: np.ndarray | None = None
    probabilities: np.ndarray | None = None
    maps: np.ndarray | None = None


class MapNetwork:
    """A model file ready for maps.

    Args:
        path: `.keras` file with a card that names its `outputs` (classes), `normalization`, `multiple_of`, `halo`.
        normalizer: scaling of grey values to 0..1.
        tile: (height, width) of its blocks.
        flips: average over mirrored copies: 4, or 8 with turns; 0 = none.
        confidence, probabilities: return them too.
        blend: return the maps, unrounded, instead.
        uint8: blocks come as uint8, else as float32.
        device, threads: see `backend.configure_device`.
    """

    def __init__(
        self,
        path: str | Path,
        normalizer: Normalizer,
        tile: tuple[int, int],
        *,
        flips: int = 0,
        confidence: bool = False,
        probabilities: bool = False,
        blend: bool = False,
        uint8: bool = True,
        device: str | None = None,
        threads: int | None = None,
    ):
        backend.select()
        self.device = backend.configure_device(device=device, threads=threads)
        import keras
        from keras import ops

        from keras_microseg.models import saving
        from keras_microseg.models.folding import fold_batch_norm

        model, self.card = saving.load_model(path)
        self.dtype = np.uint8 if uint8 else np.float32
        channels = model.inputs[0].shape[-1]
        network = fold_batch_norm(model)
        grey = keras.Input((*tile, channels), dtype="uint8" if uint8 else "float32")
        low, span = float(normalizer.low), float(normalizer.high - normalizer.low)
        scaled = (ops.cast(grey, "float32") - low) * (1 / span if span > 0 else 0.0)
        if normalizer.mode in ("percentile", "fixed"):
            scaled = ops.clip(scaled, 0.0, 1.0)
        total, views = None, mirrored_views(flips, tile)
        for turned, *flipped in views:
            axes = [axis for axis, flip in zip((1, 2), flipped, strict=True) if flip]
            x = ops.transpose(scaled, (0, 2, 1, 3)) if turned else scaled
            y = network(ops.flip(x, axes) if axes else x)
            y = ops.cast(_main(y), "float32")
            y = ops.flip(y, axes) if axes else y
            y = ops.transpose(y, (0, 2, 1, 3)) if turned else y
            total = y if total is None else total + y
        maps = total if len(views) == 1 else total * (1 / len(views))
        if maps.shape[1:] != (*tile, len(self.card["outputs"])):
            raise UserError(
                f"{Path(path).name} turns tiles of {tile} into maps of {maps.shape[1:]}; its card names "
                f"{len(self.card['outputs'])} classes. Use the card that belongs to the model."
            )
        if blend:
            outputs = {"maps": maps}
        else:
            outputs = {"classes": ops.cast(ops.argmax(maps, axis=-1), "uint8")}
            if confidence:
                outputs["confidence"] = to_bytes(ops.max(maps, axis=-1), ops)
            if probabilities:
                outputs["probabilities"] = to_bytes(maps, ops)
        names = list(outputs)
        self._names = names
        self._predict = backend.compile_predict(keras.Model(grey, [outputs[name] for name in names]))

    def __call__(self, batch: np.ndarray) -> Answer:
        """(n, h, w) or (n, h, w, c) grey values to bytes; keep to one n."""
        batch = batch[..., np.newaxis] if batch.ndim == 3 else batch
        found = self._predict(np.ascontiguousarray(batch, self.dtype))
        found = found if isinstance(found, (list, tuple)) else [found]
        return Answer(**dict(zip(self._names, found, strict=True)))


@functools.lru_cache(maxsize=2)
def open_network(path: str, normalizer: Normalizer, tile: tuple[int, int], **options: Any) -> MapNetwork:
    """A `MapNetwork`; the last two are kept, so that images alike need one compilation."""
    return MapNetwork(path, normalizer, tile, **options)


def to_bytes(maps: Any, ops: Any = np) -> Any:
    """0..1 in steps of 1/255, as `views.quantize` stores maps; for arrays (`ops` = NumPy) or tensors."""
    if ops is np:
        return np.clip(np.rint(maps * np.float32(255)), 0, 255).astype(np.uint8)
    return ops.cast(ops.clip(ops.round(maps * 255.0), 0.0, 255.0), "uint8")


def fit_normalizer(rule: Mapping[str, Any] | None, image: Any) -> Normalizer:
    """The scaling that a card asks for: of all images alike, or by percentiles of `image`.

    Args:
        rule: `normalization` of the card; None divides by the range of the type.
        image: (H, W) array or lazy array at the scale at which the network works.
    """
    from keras_microseg.intensity import percentile_limits

    if rule is None:
        return Normalizer("fixed", 0.0, 1.0 if image.dtype.kind == "f" else float(np.iinfo(image.dtype).max))
    if "low" in rule:
        return Normalizer.from_dict(rule)
    return Normalizer(rule["mode"], *percentile_limits(image, rule.get("lower", 0.1), rule.get("upper", 99.9)))


def _main(outputs: Any) -> Any:
    """The full-size map of a network that may have others for training."""
    if isinstance(outputs, dict):
        return next(iter(outputs.values()))
    return outputs[0] if isinstance(outputs, (list, tuple)) else outputs
