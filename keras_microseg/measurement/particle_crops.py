"""One particle of a volume at a time: its surroundings cut out of labels, phases and grey values.

Particles come in the order of their first plane, so a volume on disk is read in slabs, each plane about once, whatever
the number of particles.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError


@dataclasses.dataclass(frozen=True)
class PhaseClasses:
    """Which values of a phase volume mean what; a role may have several values, or none.

    Attributes:
        void: empty space.
        cbd: carbon and binder.
        particle: active material; may be left empty, then it is whatever is no other phase.
        crack: empty space inside particles, where it is a class of its own.
    """

    void: tuple[int, ...] = (0,)
    cbd: tuple[int, ...] = (1,)
    particle: tuple[int, ...] = (2,)
    crack: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        roles = {name: tuple(int(v) for v in np.atleast_1d(value)) for name, value in self.__dict__.items()}
        for name, values in roles.items():
            object.__setattr__(self, name, values)
        every = [value for values in roles.values() for value in values]
        if len(set(every)) != len(every) or min(every, default=0) < 0 or max(every, default=0) > 65535:
            raise UserError(f"Every phase value (0..65535) may have one role only. Received: {roles}")
        if not self.void or not self.cbd:
            raise UserError(f"Detachment needs the values of void and of carbon/binder (cbd). Received: {roles}")


@dataclasses.dataclass(frozen=True)
class Crop:
    """A particle and its surroundings.

    Attributes:
        label: of the particle.
        labels: (d, h, w) labels.
        phases: the same of the phase volume, or None.
        grey: the same of the grey volume, or None.
        size: edge lengths of a voxel (z, y, x), real units.
        start: first voxel of the crop in the volume.
        fill_radius: of the ball that closes cracks, real units.
        classes: meaning of `phases`.
    """

    label: int
    labels: np.ndarray
    phases: np.ndarray | None
    grey: np.ndarray | None
    size: tuple[float, float, float]
    start: tuple[int, int, int]
    fill_radius: float
    classes: PhaseClasses

    @cached_property
    def own(self) -> np.ndarray:
        """Voxels of the label."""
        return self.labels == self.label

    @cached_property
    def others(self) -> np.ndarray:
        """Voxels of other particles."""
        return (self.labels != 0) & ~self.own

    @cached_property
    def filled(self) -> np.ndarray:
        """The whole particle: the label closed with a ball and its holes filled, never into other particles."""
        whole = fill_particle(self.own, self.fill_radius, self.size)
        return whole & ~self.others if self.others.any() else whole

    @cached_property
    def solid(self) -> np.ndarray:
        """Active material of the particle: its voxels of the particle phase, or its label where no phases are known."""
        if self.phases is None:
            return self.own
        if self.classes.particle:
            return self.filled & self.is_phase("particle")
        return self.filled & ~self.is_phase("void", "cbd", "crack")

    @cached_property
    def cracks(self) -> np.ndarray:
        """What is not solid inside the label, and empty space that closing and filling added to it."""
        if self.phases is None:
            return self.filled & ~self.own
        return (self.own & ~self.solid) | (self.filled & ~self.own & self.is_phase("void", "crack"))

    @cached_property
    def distance(self) -> np.ndarray:
        """Distance of every voxel from the nearest voxel of the filled particle, real units; 0 inside."""
        return ndimage.distance_transform_edt(~self.filled, sampling=self.size)

    @cached_property
    def depth(self) -> np.ndarray:
        """Distance of every voxel of the filled particle from the nearest voxel outside, real units; 0 outside."""
        padded = np.pad(self.filled, 1)
        return ndimage.distance_transform_edt(padded, sampling=self.size)[1:-1, 1:-1, 1:-1]

    def is_phase(self, *roles: str) -> np.ndarray:
        """Voxels of the phases in these roles."""
        table = np.zeros(65536 if self.phases.dtype.itemsize > 1 else 256, bool)
        values = [value for role in roles for value in getattr(self.classes, role)]
        table[[value for value in values if value < len(table)]] = True
        return table[self.phases]


def fill_particle(mask: np.ndarray, radius: float, size: tuple[float, ...] = (1.0, 1.0, 1.0)) -> np.ndarray:
    """Close with a ball, then fill the holes.

    Args:
        mask: (d, h, w) boolean. Beyond its border it is taken to be empty.
        radius: of the ball, real units; 0 = only fill holes.
        size: edge lengths of a voxel.
    """
    mask = np.asarray(mask, bool)
    if radius > 0 and mask.any():
        box = ndimage.find_objects(mask.astype(np.uint8))[0]
        margin = [int(np.ceil(radius / edge)) + 1 for edge in size]
        inner = np.pad(mask[box], [(m, m) for m in margin])
        grown = ndimage.distance_transform_edt(~inner, sampling=size) <= radius
        shrunk = ndimage.distance_transform_edt(grown, sampling=size) > radius
        mask = mask.copy()
        mask[box] |= shrunk[tuple(slice(m, -m) for m in margin)]
    return ndimage.binary_fill_holes(mask)


def crops(
    labels: Any,
    phases: Any,
    grey: Any,
    ids: np.ndarray,
    boxes: np.ndarray,
    *,
    size: tuple[float, float, float],
    margin: float,
    fill_radius: float,
    classes: PhaseClasses | None = None,
    max_bytes: int = 1 << 30,
) -> Iterator[tuple[int, Crop]]:
    """Every particle with its surroundings, in the order of first planes.

    Args:
        labels, phases, grey: arrays or lazy arrays (D, H, W) of one shape; the last two may be None.
        ids: (n,) labels.
        boxes: (n, 6) first voxel and one past the last, per particle.
        size: edge lengths of a voxel, real units.
        margin: width of the surroundings, real units.
        fill_radius: see `Crop`.
        classes: see `PhaseClasses`.
        max_bytes: memory for planes kept from disk.

    Yields:
        `(row of ids, crop)`.
    """
    classes = classes or PhaseClasses()
    shape = tuple(labels.shape)
    widths = [int(np.ceil(margin / edge)) + 1 for edge in size]
    sources = [source for source in (labels, phases, grey) if source is not None]
    per_plane = sum(np.dtype(source.dtype).itemsize for source in sources) * shape[1] * shape[2]
    planes = max(int(max_bytes // max(per_plane, 1)), 1)
    in_memory = all(isinstance(source, np.ndarray) for source in sources)
    slabs: list[np.ndarray | None] = [None, None, None]
    first = last = 0
    for row in np.argsort(boxes[:, 0], kind="stable"):
        low = np.maximum(boxes[row, :3] - widths, 0)
        high = np.minimum(boxes[row, 3:] + widths, shape)
        if in_memory:
            slabs, first = [labels, phases, grey], 0
        elif low[0] < first or high[0] > last:
            first, last = int(low[0]), int(min(max(high[0], low[0] + planes), shape[0]))
            slabs = [None if part is None else np.asarray(part[first:last]) for part in (labels, phases, grey)]
        window = (slice(low[0] - first, high[0] - first), slice(low[1], high[1]), slice(low[2], high[2]))
        parts = [None if slab is None else slab[window] for slab in slabs]
        yield int(row), Crop(int(ids[row]), *parts, size, tuple(int(v) for v in low), fill_radius, classes)
