"""Scores of translations between micrographs and class maps, on tiles that were held out and no others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.data.map_tiles import plan_tiles
from keras_microseg.intensity import Normalizer
from keras_microseg.metrics.pixel import accuracy, confusion_matrix, counts_of, iou
from keras_microseg.metrics.texture import compare_images

MOST_TILES = 64


class HeldOut:
    """Scores of a `Pix2Pix` generator on tiles it has not seen, for `train_adversarial`.

    Class maps: pooled argmax confusion matrix (`table`), `mean_iou` over the classes that occur, `iou_CLASS`,
    `accuracy`. Micrographs: `metrics.texture.compare_images` with the real tiles, and `grey_error` (mean absolute
    error, 0..1).

    Args:
        system: `training.pix2pix.Pix2Pix`.
        images: `data.map_pairs.MapImage` of the held-out part.
        normalizers: of the images.
        names: of the classes.
        tile: edge of the tiles, px; at most `MOST_TILES` evenly chosen ones.
    """

    def __init__(
        self, system: Any, images: Sequence[Any], normalizers: Sequence[Normalizer], names: Sequence[str], tile: int
    ):
        self.system, self.names = system, list(names)
        self.to_labels = system.direction == "labels"
        self.monitor, self.mode = ("mean_iou", "max") if self.to_labels else ("texture_distance", "min")
        places = []
        for item, normalizer in zip(images, normalizers, strict=True):
            edge = min(tile, *item.classes.shape)
            places += [
                (item, normalizer, (slice(y, y + edge), slice(x, x + edge)))
                for y, x in plan_tiles(item.classes.shape, edge)
            ]
        chosen = places[:: max(1, math.ceil(len(places) / MOST_TILES))]
        self.tiles = [
            (np.atleast_3d(scale(item.image[window])), item.classes[window]) for item, scale, window in chosen
        ]
        if not self.to_labels and len(self.tiles) < 4:
            raise UserError(
                f"Textures are compared over four held-out tiles or more. Received: {len(self.tiles)} of {tile} px. "
                "Use a smaller tile, or hold out more."
            )
        self.table = np.zeros((len(self.names),) * 2, np.int64)

    def __call__(self, predict: Callable[[str, np.ndarray], np.ndarray], epoch: int) -> dict[str, float]:
        made = []
        for image, classes in self.tiles:
            one_hot = (classes[..., np.newaxis] == np.arange(len(self.names))).astype(np.float32)
            given = self.system.prepare(image[np.newaxis], one_hot[np.newaxis])
            made.append(predict("generator", given)[0])
        if self.to_labels:
            self.table = sum(
                confusion_matrix(classes, result.argmax(axis=-1), len(self.names))
                for (_, classes), result in zip(self.tiles, made, strict=True)
            )
            counts = counts_of(self.table)
            scores, present = iou(counts, "none"), counts.tp + counts.fn > 0
            named = {f"iou_{name}": float(score) for name, score in zip(self.names, scores, strict=True)}
            return {"mean_iou": float(scores[present].mean()), "accuracy": float(accuracy(counts, "micro")), **named}
        pictures = [to_grey(result, self.system.signed) for result in made]
        real = [image[..., 0] for image, _ in self.tiles]
        error = np.mean([np.abs(a - b).mean() for a, b in zip(real, pictures, strict=True)])
        return {**compare_images(real, pictures), "grey_error": float(error)}


def to_grey(made: np.ndarray, signed: bool) -> np.ndarray:
    """(H, W) in 0..1 from what a generator of micrographs returns, (H, W, 1)."""
    return np.clip(made[..., 0] / 2 + 0.5 if signed else made[..., 0], 0, 1)


def cut_pictures(images: Sequence[np.ndarray], tile: int) -> list[np.ndarray]:
    """At most `MOST_TILES` evenly chosen squares of `tile` px (or of the shortest edge) from (H, W) images."""
    edge = min([tile, *(n for image in images for n in image.shape)])
    places = [(image, y, x) for image in images for y, x in plan_tiles(image.shape, edge)]
    chosen = places[:: max(1, math.ceil(len(places) / MOST_TILES))]
    return [image[y : y + edge, x : x + edge] for image, y, x in chosen]
