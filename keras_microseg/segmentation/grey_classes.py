"""Classes from grey values alone: the baseline that needs no network.

Every grey value gets the class that is most probable there, from histograms of known pixels; with two classes that is
the best threshold, with more the best set of thresholds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.image import LazyArray


@dataclasses.dataclass(frozen=True)
class GreyClasses:
    """A class for each grey value.

    Attributes:
        table: (256,) uint8 class of each grey value.
        sigma: smoothing of the image before, px.
    """

    table: np.ndarray
    sigma: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"table": self.table.tolist(), "sigma": self.sigma}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GreyClasses:
        """What `to_dict` gave."""
        return cls(np.array(values["table"], np.uint8), float(values["sigma"]))


def fit_grey_classes(
    pairs: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int, *, sigma: float = 1.5, spread: float = 2.0
) -> GreyClasses:
    """Choose the most probable class for each grey value.

    Args:
        pairs: (grey, classes) images of one shape, uint8; numbers that are no class (0 to K - 1) do not count.
        num_classes: K.
        sigma: smoothing of the images, px.
        spread: smoothing of the histograms, grey values.

    Raises:
        UserError: no known pixel.
    """
    check_number("sigma", sigma, minimum=0)
    histograms = np.zeros((num_classes, 256))
    for grey, classes in pairs:
        known = (classes >= 0) & (classes < num_classes)
        value = _smooth(grey, sigma)[known].astype(np.int64)
        counts = np.bincount(classes[known].astype(np.int64) * 256 + value, minlength=num_classes * 256)
        histograms += counts.reshape(num_classes, 256)
    if not histograms.any():
        raise UserError("The pairs hold no known pixel.")
    smooth = ndimage.gaussian_filter1d(histograms, spread, axis=1, mode="nearest", truncate=6)
    table = smooth.argmax(axis=0)
    seen = np.flatnonzero(smooth.sum(axis=0) > 1e-9)
    nearest = seen[np.abs(np.arange(256)[:, np.newaxis] - seen).argmin(axis=1)]  # grey values never met
    return GreyClasses(table[nearest].astype(np.uint8), float(sigma))


class GreyClassified(LazyArray):
    """Classes of an image of any size by grey values, made window by window.

    Args:
        image: (H, W) uint8 grey values, array or lazy array.
        classes: see `fit_grey_classes`.
    """

    def __init__(self, image: Any, classes: GreyClasses):
        if np.dtype(image.dtype) != np.uint8:
            raise UserError(f"Grey classes need 8-bit images. Received: {image.dtype}")
        self.image, self.classes = image, classes
        self.shape, self.dtype, self.chunks = tuple(image.shape), np.dtype(np.uint8), getattr(image, "chunks", None)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        halo = int(np.ceil(4 * self.classes.sigma))
        low = [max(b.start - halo, 0) for b in block]
        high = [min(b.stop + halo, n) for b, n in zip(block, self.shape, strict=True)]
        part = _smooth(np.asarray(self.image[low[0] : high[0], low[1] : high[1]]), self.classes.sigma)
        inner = tuple(slice(b.start - o, b.stop - o) for b, o in zip(block, low, strict=True))
        return self.classes.table[part[inner]]


def _smooth(grey: np.ndarray, sigma: float) -> np.ndarray:
    if not sigma:
        return grey
    return np.rint(ndimage.gaussian_filter(grey.astype(np.float32), sigma, truncate=4)).astype(np.uint8)
