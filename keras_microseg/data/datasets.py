"""Training data as `keras.utils.PyDataset`s whose every batch is a pure function of (seed, epoch, index).

Nothing depends on call order, worker count or time, so a training that was interrupted sees after `set_epoch` exactly
the batches it would have seen.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number, standardize_tuple
from keras_microseg.data.augment import NO_AUGMENTATION, AugmentSettings, crop_pair, vary_grey
from keras_microseg.data.targets import MAPS, instance_maps
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.io.pairing import Pair
from keras_microseg.simulation import simulate_micrograph


class SeededDataset(keras.utils.PyDataset):
    """Base: batches of samples drawn by `sample(rng)`.

    Args:
        num_batches: batches per epoch.
        batch_size: samples per batch.
        seed: any non-negative integer.
        fixed: every epoch is the same (validation).
        kwargs: of `PyDataset` (`workers`, ...).
    """

    def __init__(self, num_batches: int, batch_size: int, seed: int, *, fixed: bool = False, **kwargs):
        super().__init__(**kwargs)
        self._length = check_number("num_batches", num_batches, minimum=1, integer=True)
        self.batch_size = check_number("batch_size", batch_size, minimum=1, integer=True)
        self.seed = check_number("seed", seed, minimum=0, integer=True)
        self.fixed = fixed
        self.epoch = 0

    def __len__(self) -> int:
        return self._length

    def set_epoch(self, epoch: int) -> None:
        """Go to the batches of `epoch` (0-based)."""
        self.epoch = int(epoch)

    def on_epoch_end(self) -> None:
        self.epoch += 1

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        """Batch `index` of the current epoch: ((B, H, W, C) float32, (B, H, W, K) float32), and weights if any."""
        epoch = 0 if self.fixed else self.epoch
        samples = (
            self.sample(np.random.default_rng([self.seed, epoch, index, position]))
            for position in range(self.batch_size)
        )
        return tuple(np.stack(part) for part in zip(*samples, strict=True))

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """One image (H, W, C) in 0..1 and its target maps (H, W, K); also (H, W) weights, if pixels differ in them."""
        raise NotImplementedError("A dataset must define `sample`.")


class SimulatedMicrographs(SeededDataset):
    """Freshly rendered micrographs (see `simulation.render`) with exact target maps; no image is seen twice.

    Args:
        num_batches, batch_size, seed: see `SeededDataset`.
        size: (height, width) of the images, px.
        preset: modality, see `simulate_micrograph`.
        diameter: range of the median particle diameter, px.
        outputs: target maps.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        size: tuple[int, int] = (256, 256),
        preset: str = "any",
        diameter: tuple[float, float] = (9.0, 70.0),
        outputs: Sequence[str] = MAPS,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.size = standardize_tuple(size, 2, "size")
        self.preset = preset
        self.diameter = diameter
        self.outputs = tuple(outputs)

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        micrograph = simulate_micrograph(rng, self.size, self.preset, diameter=self.diameter)
        limits = np.percentile(micrograph.image, [rng.uniform(0, 1), rng.uniform(99, 100)])
        image = stretch(micrograph.image, tuple(limits))
        return image[..., None], instance_maps(micrograph.labels, self.outputs)


class Mixture(SeededDataset):
    """Samples of several datasets at random.

    Args:
        parts: (dataset, its share of the samples); all give samples of one shape.
        num_batches, batch_size, seed, kwargs: see `SeededDataset`.
    """

    def __init__(
        self, parts: Sequence[tuple[SeededDataset, float]], num_batches: int, batch_size: int, seed: int, **kwargs
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.parts = [part for part, share in parts if check_number("parts", share, minimum=0)]
        shares = np.array([share for _, share in parts if share], float)
        if not self.parts:
            raise UserError("A mixture needs a part with a share above zero.")
        self._shares = shares / shares.sum()

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return self.parts[rng.choice(len(self.parts), p=self._shares)].sample(rng)


class LabelledImages(SeededDataset):
    """Random crops of images with label images, with joint augmentation.

    Args:
        pairs: files, or (image, labels) arrays.
        num_batches, batch_size, seed: see `SeededDataset`.
        size: (height, width) of the crops, px.
        outputs: target maps.
        contrast: percentiles of the whole image that become 0 and 1.
        augment: see `AugmentSettings`.
        scale: factor by which images are enlarged before cropping (to bring particles to a model's working size).
        in_memory: keep decoded images; otherwise they are read again for every crop.
        kwargs: further arguments of `SeededDataset`.

    Raises:
        FileError: image and labels differ in shape; the message names the files.
    """

    def __init__(
        self,
        pairs: Sequence[Pair | tuple[np.ndarray, np.ndarray]],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        size: tuple[int, int] = (256, 256),
        outputs: Sequence[str] = MAPS,
        contrast: tuple[float, float] = (0.1, 99.9),
        augment: AugmentSettings | None = None,
        scale: float = 1.0,
        in_memory: bool = True,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        if not pairs:
            raise UserError("No labelled images were given.")
        self.pairs = list(pairs)
        self.size = standardize_tuple(size, 2, "size")
        self.outputs = tuple(outputs)
        self.contrast = contrast
        self.augment = augment if augment is not None else (NO_AUGMENTATION if self.fixed else AugmentSettings())
        self.scale = check_number("scale", scale, minimum=0, exclusive=True)
        self.in_memory = in_memory
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        image, labels = self.load(int(rng.integers(len(self.pairs))))
        image, labels = crop_pair(rng, image, labels, self.size, self.augment, scale=self.scale)
        image = vary_grey(rng, image, self.augment)
        return image[..., None], instance_maps(labels, self.outputs)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Whole image stretched to 0..1 and its labels."""
        if index not in self._cache:
            pair = self.pairs[index]
            if isinstance(pair, Pair):
                image = io.read_grey(io.open_image(pair.image))
                labels = np.asarray(io.read_labels(pair.labels).data)
                rows = min(len(image), len(labels))
                if image.shape[1] != labels.shape[1] or rows < 0.8 * len(image) or rows < len(labels):
                    raise FileError(
                        pair.labels,
                        f"has {labels.shape} pixels, its image {pair.image.name} has {image.shape}.",
                        "They must agree (the label image may leave out an info bar at the bottom).",
                    )
                image = image[:rows]
            else:
                image, labels = np.asarray(pair[0]), np.asarray(pair[1])
            loaded = stretch(image, percentile_limits(image, *self.contrast)), labels.astype(np.int32)
            if not self.in_memory:
                return loaded
            self._cache[index] = loaded
        return self._cache[index]
