"""Training data of the pixel classifier: micrograph and binary segmentation in, class of every pixel out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.data.augment import NO_AUGMENTATION, AugmentSettings, crop_pair, vary_grey
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.segmentation.labeling import cut_touching

BACKGROUND_WEIGHT = 0.1
"""Weight of background pixels, which the second input gives away, against 1 for the average pixel of a particle."""


def classifier_input(grey: np.ndarray, labels: np.ndarray, contrast: tuple[float, float]) -> np.ndarray:
    """What the pixel classifier sees.

    Args:
        grey: (H, W) grey values.
        labels: (H, W) instance labels.
        contrast: percentiles of `grey` that become 0 and 1.

    Returns:
        (H, W, 2) float32: stretched grey values, and 1 inside particles, with a line of 0 between touching ones.
    """
    image = stretch(grey, percentile_limits(grey, *contrast))
    return np.stack([image, (cut_touching(labels) > 0).astype(np.float32)], axis=-1)


class ClassifiedImages(SeededDataset):
    """Random crops of classified images.

    Batches are (x, y, weights): x (B, H, W, 2) see `classifier_input`; y one-hot classes and last the background, or
    for two classes one channel, 1 in the first of them; weights (B, H, W): classes count alike over all images,
    particles without a class not at all.

    Args:
        samples: (grey, labels, class_map) per image; class_map (H, W) holds 1..num_classes inside particles, 0
            elsewhere (a particle of 0 has no class).
        num_batches, batch_size, seed: see `SeededDataset`.
        num_classes: K.
        size: (height, width) of the crops.
        contrast: see `classifier_input`.
        augment: see `AugmentSettings`.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        samples: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        num_classes: int,
        size: tuple[int, int] = (192, 192),
        contrast: tuple[float, float] = (0.1, 99.9),
        augment: AugmentSettings | None = None,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        if not samples:
            raise UserError("No classified images were given.")
        self.num_classes = check_number("num_classes", num_classes, minimum=2, integer=True)
        self.size = standardize_tuple(size, 2, "size")
        self.augment = augment if augment is not None else (NO_AUGMENTATION if self.fixed else AugmentSettings())
        self._samples = []
        pixels = np.zeros(num_classes + 1, np.int64)
        for grey, labels, class_map in samples:
            classes = np.where(labels > 0, class_map, num_classes + 1)  # 0: a particle without class; K + 1: background
            self._samples.append((classifier_input(grey, labels, contrast), classes.astype(np.int32)))
            pixels += np.bincount(classes.ravel(), minlength=num_classes + 2)[: num_classes + 1]
        present = pixels[1:] > 0
        balance = pixels[1:].sum() / np.maximum(pixels[1:] * np.count_nonzero(present), 1)
        self.pixel_weights = np.array([0, *np.where(present, balance, 0), BACKGROUND_WEIGHT], np.float32)

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        image, classes = self._samples[int(rng.integers(len(self._samples)))]
        image, classes = crop_pair(rng, image, classes, self.size, self.augment)
        grey = vary_grey(rng, image[..., 0], self.augment)
        image = np.stack([grey, (image[..., 1] > 0.5).astype(np.float32)], axis=-1)
        if self.num_classes == 2:
            targets = (classes == 1)[..., np.newaxis]
        else:
            targets = classes[..., np.newaxis] == np.arange(1, self.num_classes + 2)
        return image, targets.astype(np.float32), self.pixel_weights[classes]
