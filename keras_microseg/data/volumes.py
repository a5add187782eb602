"""Training data from volumes: random 3D patches, sparse labels, splits with a guard gap, and endless phantoms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.data.augment_volumes import (
    FLIPS_ONLY,
    NO_VOLUME_AUGMENTATION,
    VolumeAugmentSettings,
    take_patch,
    vary_volume_grey,
)
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.data.targets import VOLUME_MAPS, class_maps, instance_maps
from keras_microseg.intensity import Normalizer
from keras_microseg.simulation.random_phantoms import random_phantom

IGNORE = -1
_POSITIONS = 4096


@dataclasses.dataclass(frozen=True)
class LabelledVolume:
    """A volume with its labels, and where in z it may be used.

    Attributes:
        grey: (Z, Y, X) grey values, NumPy or lazy.
        labels: (Z, Y, X) integers, NumPy or lazy: instances (0 = background), a mask, or class numbers.
        normalizer: scaling of the grey values to 0..1; see `intensity.Normalizer`.
        slices: half-open ranges of z from which patches are taken; None = all.
        labelled: z of the slices that are annotated; None = all. Voxels of other slices are ignored.
        ignore: label of voxels without annotation; None = there are none.
        name: in messages.
    """

    grey: Any
    labels: Any
    normalizer: Callable[[np.ndarray], np.ndarray]
    slices: tuple[tuple[int, int], ...] | None = None
    labelled: tuple[int, ...] | None = None
    ignore: int | None = None
    name: str = "volume"

    def __post_init__(self) -> None:
        if len(self.grey.shape) != 3 or tuple(self.grey.shape) != tuple(self.labels.shape):
            raise UserError(
                f"{self.name}: volume and labels must be (z, y, x) of one shape. "
                f"Received: volume {tuple(self.grey.shape)}, labels {tuple(self.labels.shape)}"
            )
        depth = self.grey.shape[0]
        if self.slices is not None and any(not 0 <= low < high <= depth for low, high in self.slices):
            raise UserError(f"{self.name}: `slices` must lie in 0..{depth}. Received: {self.slices}")
        if self.labelled is not None and (not self.labelled or not all(0 <= z < depth for z in self.labelled)):
            raise UserError(f"{self.name}: `labelled` must name slices in 0..{depth - 1}. Received: {self.labelled}")

    @property
    def is_sparse(self) -> bool:
        return self.labelled is not None or self.ignore is not None


def split_slices(
    depth: int, share: float, gap: int, *, least: int = 1, seed: int = 0
) -> tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]:
    """Split a volume by z into training and validation slices with a guard gap between them.

    The validation block is one piece, so that no validation slice has training slices as neighbours; where it lies is
    drawn from `seed`.

    Args:
        depth: number of slices.
        share: part of the slices for validation, 0..0.5; 0 = none.
        gap: slices left out on each side of the block; at least the network's receptive field keeps both parts apart.
        least: slices that every part needs, usually the depth of a patch.
        seed: of the position.

    Returns:
        `(training, validation)`, tuples of half-open ranges.

    Raises:
        UserError: the volume is too thin for both parts; the message says how thick it must be.
    """
    check_number("share", share, minimum=0, maximum=0.5)
    if share == 0:
        if depth < least:
            raise UserError(f"The volume has {depth} slices, a patch needs {least}. Use a thinner patch.")
        return ((0, depth),), ()
    block = max(least, round(depth * share))
    if depth < block + gap + least:
        raise UserError(
            f"The volume has {depth} slices; training and validation need {block + gap + least} "
            f"({least} each at least, and a gap of {gap}). Use a thinner patch, a smaller gap, or no validation (0)."
        )
    starts = [z for z in range(depth - block + 1) if max(z, depth - block - z) - gap >= least]
    start = starts[int(np.random.default_rng(seed).integers(len(starts)))]
    parts = ((0, start - gap), (start + block + gap, depth))
    return tuple(part for part in parts if part[1] - part[0] >= least), ((start, start + block),)


class VolumePatches(SeededDataset):
    """Random patches of labelled volumes, jointly augmented.

    A batch is (patches (B, z, y, x, 1) in 0..1, targets (B, z, y, x, K)); with sparse labels the targets carry one
    channel more, the weight of every voxel (0 = ignore), which the losses of `keras_microseg.losses` know.

    Args:
        volumes: one or more; patches are drawn in proportion to their numbers of usable voxels.
        num_batches, batch_size, seed: see `SeededDataset`.
        size: (z, y, x) of the patches.
        outputs: target maps, names out of `VOLUME_MAPS`; sparse labels give `foreground` only.
        num_classes: instead of `outputs`: labels are class numbers and targets are one-hot.
        foreground_share: part of the patches that are centred on a foreground voxel.
        augment: see `VolumeAugmentSettings`; None = the defaults, and nothing when `fixed`.
        num_slices: for 2.5D networks: patches are one slice thick and carry so many neighbouring slices as channels,
            (B, y, x, num_slices); targets are those of the middle slice, (B, y, x, K).
        kwargs: further arguments of `SeededDataset`.

    Raises:
        UserError: a volume thinner than a patch, no foreground or no labelled voxel, maps that labels cannot give.
    """

    def __init__(
        self,
        volumes: Sequence[LabelledVolume],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        size: int | tuple[int, int, int] = (64, 64, 64),
        outputs: Sequence[str] = VOLUME_MAPS,
        num_classes: int | None = None,
        foreground_share: float = 0.5,
        augment: VolumeAugmentSettings | None = None,
        num_slices: int | None = None,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.volumes = list(volumes)
        if not self.volumes:
            raise UserError("No labelled volumes were given.")
        self.size = standardize_tuple(size, 3, "size")
        if num_slices is not None:
            self.size = (num_slices, *self.size[1:])
        self.outputs, self.num_classes, self.num_slices = tuple(outputs), num_classes, num_slices
        self.foreground_share = check_number("foreground_share", foreground_share, minimum=0, maximum=1)
        default = NO_VOLUME_AUGMENTATION if self.fixed else VolumeAugmentSettings()
        self.augment = default if augment is None else augment
        self.is_sparse = any(volume.is_sparse for volume in self.volumes)
        if self.is_sparse and num_classes is None and self.outputs != ("foreground",):
            raise UserError(
                "Sparse labels do not say where objects end outside of the annotated voxels; "
                f"they train outputs=('foreground',). Received: outputs={self.outputs}"
            )
        for volume in self.volumes:
            _check_fits(volume, self.size)
        self._places = [_find_places(volume, self.size, num_classes, seed) for volume in self.volumes]
        sizes = np.array([places.voxels for places in self._places], float)
        self._shares = np.cumsum(sizes / sizes.sum())

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        index = min(int(np.searchsorted(self._shares, rng.random(), side="right")), len(self.volumes) - 1)
        volume, places = self.volumes[index], self._places[index]
        centre, (low, high) = places.draw(rng, volume, self.size, self.foreground_share)
        region = ((low, high), *((0, n) for n in volume.grey.shape[1:]))
        arrays = [volume.grey, _Known(volume) if volume.is_sparse else volume.labels]
        grey, labels = take_patch(rng, arrays, centre, self.size, region, self.augment)
        grey = vary_volume_grey(rng, volume.normalizer(grey), self.augment)
        known = labels != IGNORE
        if self.num_slices is not None:
            middle = self.num_slices // 2
            grey, labels, known = np.moveaxis(grey, 0, -1), labels[middle], known[middle]
        else:
            grey = grey[..., np.newaxis]
        if self.num_classes is not None:
            targets = class_maps(labels, self.num_classes)
        else:
            targets = instance_maps(np.where(known, labels, 0), self.outputs)
        if self.is_sparse:
            targets = np.concatenate([targets, known[..., np.newaxis].astype(np.float32)], axis=-1)
        return grey, targets

    def fingerprint(self) -> str:
        """What tells two data sets apart, for `run.json`."""
        facts = [[v.name, tuple(v.grey.shape), v.slices, v.labelled, v.ignore] for v in self.volumes]
        samples = [np.asarray(v.grey[:1, :16, :16]).sum(dtype=np.float64) for v in self.volumes]
        return repr([facts, samples, self.size, self.outputs, self.num_classes, self.seed, self.batch_size])


class SimulatedPhantoms(SeededDataset):
    """Freshly made sphere phantoms with exact target maps; none is seen twice.

    Args:
        num_batches, batch_size, seed: see `SeededDataset`.
        size: (z, y, x) of the phantoms.
        diameter: range of the mean sphere diameter, voxels.
        fraction: range of the volume fraction of the spheres.
        outputs: target maps.
        kwargs: further arguments of `SeededDataset`.
    """

    def __init__(
        self,
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        size: int | tuple[int, int, int] = (64, 64, 64),
        diameter: tuple[float, float] = (10.0, 26.0),
        fraction: tuple[float, float] = (0.0, 0.4),
        outputs: Sequence[str] = VOLUME_MAPS,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.size = standardize_tuple(size, 3, "size")
        self.diameter, self.fraction, self.outputs = diameter, fraction, tuple(outputs)

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        grey, labels = random_phantom(rng, self.size, self.diameter, self.fraction)
        limits = np.percentile(grey, [rng.uniform(0.0, 0.5), rng.uniform(99.5, 100)])
        grey = Normalizer("percentile", float(limits[0]), float(limits[1]))(grey)
        region = tuple((0, n) for n in self.size)
        centre = [n / 2 for n in self.size]
        grey, labels = take_patch(rng, [grey, labels], centre, self.size, region, FLIPS_ONLY)
        return grey[..., np.newaxis], instance_maps(labels, self.outputs)

    def fingerprint(self) -> str:
        """What tells two data sets apart, for `run.json`."""
        return repr([self.size, self.diameter, self.fraction, self.outputs, self.seed, self.batch_size, self._length])


@dataclasses.dataclass(frozen=True)
class _Places:
    """Where patches may be centred: ranges of z, and known foreground voxels in them."""

    ranges: np.ndarray
    foreground: np.ndarray
    voxels: int

    def draw(
        self, rng: np.random.Generator, volume: LabelledVolume, size: Sequence[int], share: float
    ) -> tuple[list[float], tuple[int, int]]:
        """Centre of a patch and the range of z that it must stay in."""
        shape = volume.grey.shape
        if len(self.foreground) and rng.random() < share:
            place = self.foreground[int(rng.integers(len(self.foreground)))]
            centre = [p + rng.uniform(-n / 4, n / 4) for p, n in zip(place, size, strict=True)]
            z = place[0]
        elif volume.labelled is not None:
            usable = [z for z in volume.labelled if any(low <= z < high for low, high in self.ranges)]
            z = usable[int(rng.integers(len(usable)))]
            centre = [z + rng.uniform(-size[0] / 4, size[0] / 4), *(rng.uniform(0, n) for n in shape[1:])]
        else:
            lengths = np.cumsum(self.ranges[:, 1] - self.ranges[:, 0])
            position = rng.uniform(0, lengths[-1])
            number = int(np.searchsorted(lengths, position, side="right"))
            z = min(self.ranges[number, 1] - 1, self.ranges[number, 1] - (lengths[number] - position))
            centre = [z, *(rng.uniform(0, n) for n in shape[1:])]
        (inside,) = [i for i, (low, high) in enumerate(self.ranges) if low <= z < high][:1]
        return centre, tuple(int(end) for end in self.ranges[inside])


class _Known:
    """Labels of a sparsely annotated volume, int32, with `IGNORE` where nothing is known."""

    def __init__(self, volume: LabelledVolume):
        self.labels, self.ignore, self.labelled = volume.labels, volume.ignore, volume.labelled
        self.shape = tuple(volume.labels.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        block = np.asarray(self.labels[key]).astype(np.int32)
        if self.ignore is not None:
            block[block == self.ignore] = IGNORE
        if self.labelled is not None:
            z = np.arange(self.shape[0])[key[0]]
            block[~np.isin(z, self.labelled)] = IGNORE
        return block


def _check_fits(volume: LabelledVolume, size: Sequence[int]) -> None:
    ranges = volume.slices or ((0, volume.grey.shape[0]),)
    thinnest = min(high - low for low, high in ranges)
    if thinnest < size[0]:
        raise UserError(
            f"{volume.name}: a block of {thinnest} slices is thinner than a patch. "
            f"Received: size={tuple(size)}. Use at most {thinnest} slices, or a network that pools in the plane only."
        )
    if any(n < k for n, k in zip(volume.grey.shape[1:], size[1:], strict=True)):
        raise UserError(
            f"{volume.name}: planes of {tuple(volume.grey.shape[1:])} voxels are smaller than a patch. "
            f"Received: size={tuple(size)}"
        )


def _find_places(volume: LabelledVolume, size: Sequence[int], num_classes: int | None, seed: int) -> _Places:
    """A sample of foreground voxels, read slice by slice."""
    ranges = np.array(volume.slices or ((0, volume.grey.shape[0]),))
    known = _Known(volume) if volume.is_sparse else volume.labels
    rng = np.random.default_rng([seed, 1])
    slices = [z for low, high in ranges for z in range(low, high)]
    if volume.labelled is not None:
        slices = [z for z in slices if z in set(volume.labelled)]
        if not slices:
            raise UserError(f"{volume.name}: none of the annotated slices {volume.labelled} lies in {ranges.tolist()}.")
    looked = slices if len(slices) <= 64 else sorted(rng.choice(slices, 64, replace=False).tolist())
    found, annotated = [], 0
    for z in looked:
        plane = np.asarray(known[z : z + 1, 0 : volume.grey.shape[1], 0 : volume.grey.shape[2]])[0]
        annotated += int(np.count_nonzero(plane != IGNORE)) if volume.is_sparse else plane.size
        rows, columns = np.nonzero(plane > 0)
        keep = rng.permutation(len(rows))[: max(1, _POSITIONS // len(looked))]
        found.append(np.stack([np.full(len(keep), z), rows[keep], columns[keep]], axis=1))
    foreground = np.concatenate(found)
    if annotated == 0:
        raise UserError(f"{volume.name}: no voxel is annotated. Check `ignore` and `labelled`.")
    if len(foreground) == 0 and num_classes is None:
        raise UserError(f"{volume.name}: the labels hold no foreground in the slices {ranges.tolist()}.")
    voxels = int(sum(high - low for low, high in ranges)) * int(np.prod(volume.grey.shape[1:]))
    return _Places(ranges, foreground, voxels)
