"""Training crops of micrographs with class maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.data.augment import NO_AUGMENTATION, AugmentSettings, crop_pair, vary_grey
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.data.map_pairs import MapImage
from keras_microseg.intensity import Normalizer

_POINTS = 20_000


class MapCrops(SeededDataset):
    """Random crops, augmented; the image and its classes (nearest neighbour) or their shares (linear) move together.

    Batches are (x, y): x (B, H, W, C) float32 in 0..1; y (B, H, W, K + 1): the classes one-hot or as shares, and last a
    weight, 0 where the class is not known and 1 elsewhere.

    Args:
        images: see `data.map_pairs.read_pair`.
        num_batches, batch_size, seed: see `SeededDataset`.
        num_classes: K.
        normalizers: scaling of each image.
        size: (height, width) of the crops.
        augment: see `AugmentSettings`.
        focus: share of the crops that are centred on a random pixel of a random class, so that rare ones are met.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        images: Sequence[MapImage],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        num_classes: int,
        normalizers: Sequence[Normalizer],
        size: tuple[int, int] = (128, 128),
        augment: AugmentSettings | None = None,
        focus: float = 0.3,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        if not images:
            raise UserError("No image with a class map was given.")
        self.images, self.normalizers = list(images), list(normalizers)
        self.num_classes = check_number("num_classes", num_classes, minimum=2, integer=True)
        self.size = standardize_tuple(size, 2, "size")
        self.augment = augment if augment is not None else (NO_AUGMENTATION if self.fixed else AugmentSettings())
        self.focus = check_number("focus", focus, minimum=0, maximum=1)
        areas = np.array([image.classes.size for image in self.images], float)
        self._chances = areas / areas.sum()
        self._places = [_places(image.classes, num_classes) for image in self.images] if focus else []
        # of each class the images that hold it
        self._holders = [[i for i, places in enumerate(self._places) if k in places] for k in range(num_classes)]
        self._present = [k for k, holders in enumerate(self._holders) if holders]

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        number = int(rng.choice(len(self.images), p=self._chances))
        window = (slice(None), slice(None))
        if self._present and rng.random() < self.focus:
            k = self._present[int(rng.integers(len(self._present)))]
            number = self._holders[k][int(rng.integers(len(self._holders[k])))]
            places = self._places[number][k]
            at = np.divmod(int(places[rng.integers(len(places))]), self.images[number].classes.shape[1])
            window = self._around(at, self.images[number].classes.shape, rng)
        item = self.images[number]
        classes = item.classes[window]
        image = np.atleast_3d(self.normalizers[number](item.image[window]))
        channels = image.shape[-1]
        if item.soft is not None:
            image = np.concatenate([image, item.soft[window].astype(np.float32) / 255], axis=-1)
        image, classes = crop_pair(rng, image, classes, self.size, self.augment)
        known = (classes < self.num_classes).astype(np.float32)
        if item.soft is None:
            target = (classes[..., np.newaxis] == np.arange(self.num_classes)).astype(np.float32)
        else:
            target = image[..., channels:]
            target = target / np.maximum(target.sum(axis=-1, keepdims=True), 1e-6)
        return vary_grey(rng, image[..., :channels], self.augment), np.concatenate(
            [target * known[..., np.newaxis], known[..., np.newaxis]], axis=-1
        )

    def _around(self, at: tuple[int, int], shape: tuple[int, int], rng: np.random.Generator) -> tuple[slice, slice]:
        """A window about as large as a crop before zooming, with `at` somewhere in its middle half."""
        window = []
        for place, length, size in zip(at, shape, self.size, strict=True):
            edge = min(length, int(np.ceil(size * self.augment.zoom)))
            start = int(np.clip(place - rng.uniform(0.25, 0.75) * edge, 0, length - edge))
            window.append(slice(start, start + edge))
        return tuple(window)


def _places(classes: np.ndarray, num_classes: int) -> dict[int, np.ndarray]:
    """Flat positions of pixels of each class that occurs, at most `_POINTS`, evenly drawn."""
    flat, found = classes.ravel(), {}
    for k in range(num_classes):
        places = np.flatnonzero(flat == k)
        if len(places):
            found[k] = places[:: max(1, len(places) // _POINTS)]
    return found
