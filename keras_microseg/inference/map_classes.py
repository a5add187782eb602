"""Classes of a micrograph of any size by a network, made window by window."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from keras_microseg.image import LazyArray
from keras_microseg.inference.prediction import Predictor, predict_maps
from keras_microseg.intensity import Normalizer

_PIECE = 1 << 22


def open_map_predictor(path: str | os.PathLike) -> Predictor:
    """The network in a file of `mineral train`, ready to predict."""
    from keras_microseg.models.saving import load_model

    return Predictor(*load_model(path))


class PredictedClasses(LazyArray):
    """Most probable class of every pixel, uint8.

    Args:
        image: (H, W) grey values, array or lazy array.
        predictor: see `open_map_predictor`; its card names a fixed normalization.
    """

    def __init__(self, image: Any, predictor: Predictor):
        self.image, self.predictor = image, predictor
        self.normalizer = Normalizer.from_dict(predictor.card["normalization"])
        self.shape, self.dtype = tuple(image.shape), np.dtype(np.uint8)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        halo = int(np.max(self.predictor.halo))
        out = np.empty(tuple(b.stop - b.start for b in block), np.uint8)
        step = max(64, _PIECE // max(out.shape[1], 1))
        for top in range(0, len(out), step):
            rows = slice(block[0].start + top, min(block[0].start + top + step, block[0].stop))
            parts = (rows, block[1])
            low = [max(p.start - halo, 0) for p in parts]
            high = [min(p.stop + halo, n) for p, n in zip(parts, self.shape, strict=True)]
            grey = np.asarray(self.image[low[0] : high[0], low[1] : high[1]])
            maps = predict_maps(self.predictor, np.atleast_3d(self.normalizer(grey)))
            inner = tuple(slice(p.start - o, p.stop - o) for p, o in zip(parts, low, strict=True))
            out[top : top + rows.stop - rows.start] = maps[inner].argmax(axis=-1)
        return out
