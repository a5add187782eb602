"""Outlines as training images for a network that makes more of them."""

from __future__ import annotations

import hashlib

import numpy as np
from scipy import ndimage

from keras_microseg.checks import check_number
from keras_microseg.simulation.outlines import OutlineSet


class OutlineImages:
    """Batches of outlines and their mirror images, particle = 1, ground = -1, for `train_adversarial`.

    Every epoch holds each image once in an order of its own; the last batch is filled up from the beginning of that
    order. Batches are pure functions of (seed, epoch, index).

    Args:
        outlines: single particles.
        batch_size: images per batch.
        seed: of the order.
        flips: with the three mirror images of each outline: 160 images from 40.
        turns: with the quarter turns of all these.
        size: edge length of the images, px, a multiple of 8; smaller than the outlines, they are scaled down, and their
            rims become grey, so that little of their form is lost. None = as they are.
    """

    def __init__(
        self,
        outlines: OutlineSet,
        batch_size: int = 64,
        seed: int = 0,
        *,
        flips: bool = True,
        turns: bool = False,
        size: int | None = None,
    ):
        self.batch_size = check_number("batch_size", batch_size, minimum=1, integer=True)
        self.seed = check_number("seed", seed, minimum=0, integer=True)
        self.size = outlines.size if size is None else check_number("size", size, minimum=16, integer=True)
        self.scale = outlines.size / self.size
        images = outlines.masks.astype(np.float32)
        if self.size != outlines.size:
            images = np.stack([_resized(image, self.size) for image in images])
        images = images * 2 - 1
        if flips:
            images = np.concatenate([images, images[:, :, ::-1], images[:, ::-1], images[:, ::-1, ::-1]])
        if turns:
            images = np.concatenate([images, np.rot90(images, axes=(1, 2))])
        self.images = np.ascontiguousarray(images[..., None])
        self.set_epoch(0)

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Go to the batches of `epoch` (0-based)."""
        rng = np.random.default_rng([self.seed, int(epoch)])
        self._order = rng.permutation(len(self.images))

    def __getitem__(self, index: int) -> np.ndarray:
        """Batch `index` of the current epoch, (B, S, S, 1) float32."""
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size) % len(self.images)
        return self.images[self._order[places]]

    def fingerprint(self) -> str:
        """Stands for the images and their order."""
        return f"outlines {hashlib.sha256(self.images.tobytes()).hexdigest()} {self.batch_size} {self.seed}"


def _resized(image: np.ndarray, size: int) -> np.ndarray:
    """Square image of another size; pixels are averaged where it becomes smaller."""
    factor = size / len(image)
    if factor < 1:
        whole = round(1 / factor)
        if whole * size == len(image):
            return image.reshape(size, whole, size, whole).mean(axis=(1, 3))
        image = ndimage.gaussian_filter(image, 0.4 / factor)
    return np.clip(ndimage.zoom(image, factor, order=1, grid_mode=True, mode="nearest")[:size, :size], 0, 1)
