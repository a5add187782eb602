"""Tiles with objects for detectors: boxes, classes and masks in arrays of fixed length, from any annotations."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.data.augment import NO_AUGMENTATION, AugmentSettings, crop_pair, vary_grey
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.image import Image
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.io import annotations as notes
from keras_microseg.layers.box_targets import rpn_targets

logger = logging.getLogger(__name__)

CONTRAST = (0.5, 99.5)
DETECTOR_AUGMENTATION = AugmentSettings(zoom=1.4, rotate=True)
_SLIVER = 0.15


@dataclasses.dataclass(frozen=True)
class ObjectImage:
    """An image with its objects, ready for cutting tiles.

    Attributes:
        name: of the image.
        image: (H, W) or (H, W, C) float32, contrast stretched to 0..1.
        layers: (H, W, L) int32; object k (from 1) has the id k in one layer. Objects that overlap lie in different
            layers, so each keeps all its pixels.
        classes: (n,) int; class of each object from 1 on, -1 = crowd or region to ignore.
        areas: (n,) pixels of each object.
    """

    name: str
    image: np.ndarray
    layers: np.ndarray
    classes: np.ndarray
    areas: np.ndarray

    @property
    def boxes(self) -> np.ndarray:
        """(n, 4) `yxyx` half-open boxes in pixels; zero for an object without a pixel."""
        boxes = np.zeros((len(self.classes), 4), np.int64)
        for layer in np.moveaxis(self.layers, -1, 0):
            for k, window in enumerate(ndimage.find_objects(layer, len(self.classes))):
                if window is not None:
                    boxes[k] = (window[0].start, window[1].start, window[0].stop, window[1].stop)
        return boxes

    def label_image(self) -> np.ndarray:
        """(H, W) int32, one id per pixel: smaller objects lie on top, ignored regions are left out."""
        labels = np.zeros(self.layers.shape[:2], np.int32)
        for k in np.argsort(-self.areas, kind="stable"):
            if self.classes[k] > 0:
                labels[(self.layers == k + 1).any(axis=-1)] = k + 1
        return labels

    def ignored(self) -> np.ndarray:
        """(H, W) bool; crowds and regions to ignore."""
        return np.isin(self.layers, np.flatnonzero(self.classes < 0) + 1).any(axis=-1)

    def crop(self, window: tuple[slice, ...]) -> ObjectImage:
        """The part in `window` (rows, columns); objects without a pixel in it are gone, the others renumbered."""
        layers = self.layers[window]
        number = len(self.classes) + 1
        counts = sum(np.bincount(layer.ravel(), minlength=number) for layer in np.moveaxis(layers, -1, 0))
        kept = np.flatnonzero(counts[1:] > 0) + 1
        numbers = np.zeros(number, np.int32)
        numbers[kept] = np.arange(1, len(kept) + 1)
        return ObjectImage(self.name, self.image[window], numbers[layers], self.classes[kept - 1], counts[kept])


def stretch_contrast(image: np.ndarray, contrast: tuple[float, float] = CONTRAST) -> np.ndarray:
    """Any grey depth to float32 in 0..1: the percentiles `contrast` of the whole image become 0 and 1."""
    return stretch(image, percentile_limits(image, *contrast))


def read_channels(image: Image, channels: int, window: tuple[slice, ...] | None = None) -> np.ndarray:
    """Pixels for a detector: (H, W) for one channel (the mean of colours), else (H, W, channels).

    Args:
        image: a single image, or with a `window` one plane of a volume.
        channels: of the model; a grey image is repeated.
        window: one slice per spatial axis.

    Raises:
        FileError: the image has fewer channels.
    """
    if window is None and channels == 1:
        return io.read_grey(image)
    array = image.read(window)
    array = array.squeeze(tuple(k for k, letter in enumerate(image.axes) if letter != "C" and array.shape[k] == 1))
    if "C" not in image.axes:
        return array if channels == 1 else np.repeat(array[..., None], channels, axis=-1)
    if channels == 1:
        return array.mean(axis=-1, dtype=np.float32)
    if array.shape[-1] < channels:
        raise FileError(
            image.path or image.name, f"has {array.shape[-1]} channels, the model takes {channels}.", "Train anew."
        )
    return array[..., :channels]


def object_image(
    name: str,
    image: np.ndarray,
    regions: Sequence[notes.Region],
    classes: Sequence[int],
    *,
    contrast: tuple[float, float] = CONTRAST,
) -> ObjectImage:
    """Draw the regions of an image.

    Regions without a pixel inside the image are left out and told.

    Args:
        name: for messages.
        image: (H, W) or (H, W, C), any depth.
        regions: objects.
        classes: class of each, from 1 on; -1 = ignore. Crowds are ignored whatever their class.
        contrast: percentiles that become 0 and 1.
    """
    shape = image.shape[:2]
    layers: list[np.ndarray] = []
    kept_classes, areas, lost = [], [], 0
    for region, number in zip(regions, classes, strict=True):
        mask, window = notes.region_mask(region, shape)
        area = int(np.count_nonzero(mask))
        if not area:
            lost += 1
            continue
        kept_classes.append(-1 if region.crowd else int(number))
        areas.append(area)
        for layer in layers:
            if not layer[window][mask].any():
                break
        else:
            layer = np.zeros(shape, np.int32)
            layers.append(layer)
        layer[window][mask] = len(areas)
    if lost:
        logger.warning("%s: %d objects have no pixel inside the image and are left out.", name, lost)
    stack = np.stack(layers, axis=-1) if layers else np.zeros((*shape, 1), np.int32)
    return ObjectImage(
        name,
        stretch_contrast(np.asarray(image), contrast),
        stack,
        np.array(kept_classes, np.int64),
        np.array(areas, np.int64),
    )


def object_image_from_labels(
    name: str, image: np.ndarray, labels: np.ndarray, *, contrast: tuple[float, float] = CONTRAST
) -> ObjectImage:
    """The same from a label image (H, W), 0 = background; every object has class 1."""
    labels = np.asarray(labels)
    if labels.shape != np.asarray(image).shape[:2]:
        raise FileError(name, f"has {image.shape[:2]} pixels, its label image {labels.shape}.", "They must agree.")
    ids, index = np.unique(labels, return_inverse=True)
    index = index.reshape(labels.shape) + (0 if len(ids) and ids[0] == 0 else 1)
    areas = np.bincount(index.ravel())[1:]
    return ObjectImage(
        name,
        stretch_contrast(np.asarray(image), contrast),
        index.astype(np.int32)[..., None],
        np.ones(len(areas), np.int64),
        areas,
    )


def load_objects(
    annotations: notes.Annotations,
    files: Mapping[str, Path],
    *,
    channels: int = 1,
    categories: Sequence[str] = (),
    contrast: tuple[float, float] = CONTRAST,
) -> list[ObjectImage]:
    """Read annotated images.

    Args:
        annotations: of any format; planes of volumes are read plane by plane.
        files: name -> file of the image.
        channels: of the model.
        categories: names of the classes 1, 2, ...; empty = all objects are of class 1.
        contrast: percentiles that become 0 and 1.

    Raises:
        UserError: an object of a class that is not listed.
    """
    numbers = {name: k for k, name in enumerate(categories, start=1)}
    loaded = []
    for note in annotations.images:
        file = files.get(note.name) or files.get(Path(note.name).stem)
        if file is None:
            continue
        image = io.open_image(file)
        window = None
        if note.plane is not None:
            image = io.open_volume(file)
            axis, index = note.plane
            window = tuple(slice(index, index + 1) if letter == axis.upper() else slice(None)
                           for letter in image.spatial_axes)  # fmt: skip
        pixels = read_channels(image, channels, window)
        unknown = sorted({r.category for r in note.regions if numbers and r.category not in numbers and not r.crowd})
        if unknown:
            raise UserError(
                f"{note.name}: objects of the classes {unknown}, which are not among {list(categories)}. "
                "Add them to the classes, or correct the annotations."
            )
        classes = [numbers.get(region.category, 1) for region in note.regions]
        loaded.append(object_image(note.name, pixels, note.regions, classes, contrast=contrast))
    return loaded


class DetectionTiles(SeededDataset):
    """Random tiles of images with objects, for `models.mask_rcnn`; a batch is `(inputs,)` with its training inputs.

    Tiles are cut at the images' own resolution (times `scale`), with joint augmentation. What lies beyond an image has
    the grey of its mean and no object. Objects of which less than 15 % is left are ignored (class -1), as are those
    that find no slot: these are drawn at random, counted in `lost`, and told once.

    Args:
        images: see `object_image`.
        num_batches, batch_size, seed: see `SeededDataset`.
        anchors: (A, 4) of the model.
        tile: side of the tiles, px.
        max_instances: slots G.
        channels: of the model.
        mini_mask_size: side m of the masks.
        rpn_samples: anchors that count per tile.
        augment: None = `DETECTOR_AUGMENTATION`, or nothing in a `fixed` dataset.
        scale: factor by which images are enlarged.
        focus: share of the tiles that are centred near an object; the others lie anywhere.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        images: Sequence[ObjectImage],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        anchors: np.ndarray,
        tile: int,
        max_instances: int,
        channels: int = 1,
        mini_mask_size: int = 56,
        rpn_samples: int = 256,
        augment: AugmentSettings | None = None,
        scale: float = 1.0,
        focus: float = 0.0,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.images = list(images)
        if not self.images or not any((one.classes > 0).any() for one in self.images):
            raise UserError("No object to learn from. Check that the annotations name the images as their files do.")
        self.anchors = np.asarray(anchors, np.float32)
        self.tile = check_number("tile", tile, minimum=16, integer=True)
        self.max_instances = check_number("max_instances", max_instances, minimum=1, integer=True)
        self.channels, self.mini_mask_size, self.rpn_samples = channels, mini_mask_size, rpn_samples
        self.augment = augment or (NO_AUGMENTATION if self.fixed else DETECTOR_AUGMENTATION)
        self.scale = check_number("scale", scale, minimum=0, exclusive=True)
        self.focus = check_number("focus", focus, minimum=0, maximum=1)
        self.lost = 0
        pixels = np.array([one.image.shape[0] * one.image.shape[1] for one in self.images], float)
        self._shares = pixels / pixels.sum()

    def __getitem__(self, index: int) -> tuple[dict[str, np.ndarray]]:
        """Batch `index` of the current epoch."""
        epoch = 0 if self.fixed else self.epoch
        samples = [
            self.sample(np.random.default_rng([self.seed, epoch, index, position]))
            for position in range(self.batch_size)
        ]
        return ({key: np.stack([sample[key] for sample in samples]) for key in samples[0]},)

    def sample(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Inputs of one tile, without the batch axis."""
        one = self.images[int(rng.choice(len(self.images), p=self._shares))]
        image, layers = one.image, one.layers
        if self.focus and rng.random() < self.focus and len(one.classes):
            image, layers = self._around(rng, one)
        size = (self.tile, self.tile)
        outside = float(one.image.mean())
        image, layers = crop_pair(rng, image, layers, size, self.augment, scale=self.scale, outside=outside)
        if image.ndim == 2:
            image = image[..., None]
        image = vary_grey(rng, image, self.augment)
        boxes, classes, masks = self._objects(rng, one, layers)
        match, deltas = rpn_targets(self.anchors, boxes / self.tile, classes, rng, samples=self.rpn_samples)
        boxes, classes, masks = self._slots(rng, one.name, boxes, classes, masks)
        if image.shape[-1] != self.channels:
            image = np.repeat(image[..., :1], self.channels, axis=-1)
        return {
            "image": image.astype(np.float32),
            "boxes": (boxes / self.tile).astype(np.float32),
            "classes": classes.astype(np.int32),
            "masks": masks,
            "rpn_match": match.astype(np.int32),
            "rpn_deltas": deltas,
        }

    def count_objects(self, tiles: int = 64) -> int:
        """Most objects met in so many random tiles."""
        most = 0
        for k in range(tiles):
            rng = np.random.default_rng([self.seed, 1 << 20, k])
            one = self.images[int(rng.choice(len(self.images), p=self._shares))]
            _, layers = crop_pair(
                rng, one.image, one.layers, (self.tile, self.tile), self.augment, scale=self.scale, outside=0.0
            )
            most = max(most, len(self._objects(rng, one, layers)[1]))
        return most

    def _around(self, rng: np.random.Generator, one: ObjectImage) -> tuple[np.ndarray, np.ndarray]:
        """A window of the image, somewhat larger than a tile, about a random object."""
        box = one.boxes[int(rng.integers(len(one.classes)))]
        reach = int(np.ceil(self.tile / self.scale * self.augment.zoom * (1.42 if self.augment.rotate else 1)))
        window = []
        for axis in (0, 1):
            length = one.image.shape[axis]
            centre = (box[axis] + box[axis + 2]) / 2 + rng.uniform(-0.4, 0.4) * self.tile / self.scale
            start = int(np.clip(centre - reach / 2, 0, max(length - reach, 0)))
            window.append(slice(start, min(start + reach, length)))
        return one.image[tuple(window)], one.layers[tuple(window)]

    def _objects(
        self, rng: np.random.Generator, one: ObjectImage, layers: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Boxes in pixels, classes and masks of what the tile shows."""
        boxes, classes, masks = [], [], []
        for layer in np.moveaxis(layers, -1, 0):
            counts = np.bincount(layer.ravel(), minlength=len(one.classes) + 1)
            for k, window in enumerate(ndimage.find_objects(layer)):
                if window is None:
                    continue
                rows, columns = window
                number = int(one.classes[k])
                whole = one.areas[k] * self.scale**2
                if counts[k + 1] < _SLIVER * whole / self.augment.zoom**2:
                    number = -1
                boxes.append((rows.start, columns.start, rows.stop, columns.stop))
                classes.append(number)
                masks.append(layer[window] == k + 1)
        return np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), masks

    def _slots(
        self, rng: np.random.Generator, name: str, boxes: np.ndarray, classes: np.ndarray, masks: list[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Arrays of fixed length; with more objects than slots a random choice."""
        slots, size = self.max_instances, self.mini_mask_size
        chosen = np.arange(len(classes))
        if len(chosen) > slots:
            if not self.lost:
                logger.warning(
                    "%s: a tile shows %d objects, the model has %d slots; a random choice of them is used. "
                    "Train with a larger max_instances or smaller tiles.", name, len(chosen), slots,
                )  # fmt: skip
            self.lost += len(chosen) - slots
            order = rng.permutation(len(chosen))
            chosen = np.sort(order[np.argsort(classes[order] < 0, kind="stable")][:slots])
        full_boxes, full_classes = np.zeros((slots, 4), np.float32), np.zeros(slots, np.int64)
        full_masks = np.zeros((slots, size, size), np.float32)
        full_boxes[: len(chosen)], full_classes[: len(chosen)] = boxes[chosen], classes[chosen]
        for slot, k in enumerate(chosen):
            full_masks[slot] = resample_mask(masks[k], size)
        return full_boxes, full_classes, full_masks


def resample_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """A mask at `size` x `size`: bilinear between pixel centres, averaged before where it is much larger.

    Args:
        mask: (h, w) bool or float.
        size: side of the result.

    Returns:
        (size, size) float32 in 0..1.
    """
    values = np.asarray(mask, np.float32)
    for axis in (0, 1):
        length = values.shape[axis]
        if length > 2 * size:
            values = ndimage.uniform_filter1d(values, int(length / size), axis=axis, mode="nearest")
        position = np.clip((np.arange(size) + 0.5) * length / size - 0.5, 0, length - 1)
        low = np.minimum(position.astype(np.int64), max(length - 2, 0))
        share = (position - low).astype(np.float32)
        high = np.minimum(low + 1, length - 1)
        shape = (-1, 1) if axis == 0 else (1, -1)
        values = np.take(values, low, axis) * (1 - share).reshape(shape) + np.take(values, high, axis) * share.reshape(
            shape
        )
    return values
