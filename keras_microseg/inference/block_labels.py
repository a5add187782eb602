"""Maps on disk to instance labels on disk, the same as in memory; images and volumes.

Components and seeds are numbered per block and joined over block faces, so every particle has one number for the whole
image before any flooding starts. A component with one seed is filled whatever its size; only touching particles are
flooded, per block with a halo.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.inference.views import DiskArray, dequantize
from keras_microseg.segmentation.decode import DecodeSettings, separation_landscape
from keras_microseg.segmentation.labeling import label_components, seeded_watershed
from keras_microseg.segmentation.stitching import LabelUnion, blocks

BLOCK = 1024
HALO = 128
Slices = tuple[slice, ...]


def decode_large(
    maps: Any,
    outputs: Sequence[str],
    settings: DecodeSettings,
    folder: str | Path,
    *,
    block: int = BLOCK,
    halo: int = HALO,
) -> tuple[DiskArray, np.ndarray]:
    """`segmentation.decode.labels_from_maps` for maps on disk: the same particles under the same numbers.

    Equal where the boundary between two touching particles depends on nothing farther than `halo`; particles themselves
    may be of any size.

    Args:
        maps: (H, W, C) or (D, H, W, C), NumPy or lazy, float or as `quantize` stores them.
        outputs: name of each channel.
        settings: as for `labels_from_maps`.
        folder: for scratch files, 12 bytes per pixel; `small.dat` stays and holds the labels.
        block: side of a block, px; for volumes 128 to 256.
        halo: context of the flooding, px.

    Returns:
        int32 labels on disk, and the area of every label.
    """
    shape = tuple(maps.shape[:-1])
    if settings.by_shape:
        raise UserError(
            "A model that predicts the foreground alone separates particles by a watershed of the whole image, which "
            "works in memory only. Use a model with instance outputs for images of this size, or cut the image."
        )
    folder = Path(folder)
    components = DiskArray(folder / "components.dat", shape, np.int32)
    seeds = DiskArray(folder / "seeds.dat", shape, np.int32)
    labels = DiskArray(folder / "small.dat", shape, np.int32)
    try:

        def read(window: Slices) -> tuple[np.ndarray, np.ndarray]:
            return separation_landscape(dequantize(maps[window], outputs), outputs, settings)

        regions, kernels = _Joined(shape), _Joined(shape)
        owner: list[np.ndarray] = [np.zeros(1, np.int64)]  # component of every seed
        for window in blocks(shape, block):
            mask, landscape = read(window)
            numbers = regions.add(window, label_components(mask, 4))
            kernel = kernels.add(window, label_components(mask & (landscape > settings.seed_threshold), 4))
            components[window], seeds[window] = numbers, kernel
            owner.append(_owners(kernel, numbers))
        seed_ids, region_ids = _number(regions, kernels, np.concatenate(owner), settings.min_seed_area)
        whole, contested = region_ids
        for window in blocks(shape, block):
            _flood_block(window, shape, halo, components, seeds, labels, seed_ids, whole, contested, read)
        while any([_flood_rest(w, shape, halo, components, labels, contested, read) for w in blocks(shape, block)]):
            pass  # particles larger than the halo grow on from block to block
        count = int(max(seed_ids.max(), whole.max()))
        filler = _hole_table(labels, shape, block) if settings.fill else None
        areas = np.zeros(count + 1, np.int64)
        for window in blocks(shape, block):
            part = labels[window]
            if filler is not None:
                holes = label_components(part == 0, 4)
                part = np.where(part != 0, part, filler(window, holes)).astype(np.int32)
                labels[window] = part
            areas += np.bincount(part.ravel(), minlength=count + 1)
        kept = areas >= settings.min_area
        kept &= areas > 0
        kept[0] = False
        table = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
        for window in blocks(shape, block):
            labels[window] = table[labels[window]]
        return labels, np.concatenate([[0], areas[kept]])
    finally:
        components.path.unlink(missing_ok=True)
        seeds.path.unlink(missing_ok=True)


class _Joined:
    """Connected components numbered block by block, and which of the numbers are one component of the whole image.

    Blocks come in row-major order. Numbers start at 1 and run through the image.
    """

    def __init__(self, shape: tuple[int, ...]):
        self.shape = shape
        self.union = LabelUnion()
        # position (row-major) of the first pixel of every number
        self.first: list[np.ndarray] = [np.zeros(1, np.int64)]
        self.areas: list[np.ndarray] = [np.zeros(1, np.int64)]
        self.offsets: dict[tuple[int, ...], int] = {}
        self._faces: dict[tuple[int, ...], np.ndarray] = {}  # last planes of blocks, by axis and start of the next one

    def add(self, window: Slices, numbers: np.ndarray) -> np.ndarray:
        """Take the local components (1..n) of a block; returns their numbers in the image."""
        starts = tuple(part.start for part in window)
        count = int(numbers.max(initial=0))
        offset = self.offsets[starts] = self.union.reserve(count)
        flat = numbers.ravel()
        position = np.flatnonzero(flat)[::-1]
        first = np.zeros(count + 1, np.int64)
        first[flat[position]] = position  # the last assignment, the first pixel, stays
        place = tuple(p + start for p, start in zip(np.unravel_index(first[1:], numbers.shape), starts, strict=True))
        self.first.append(np.ravel_multi_index(place, self.shape))
        self.areas.append(np.bincount(flat, minlength=count + 1)[1:])
        shifted = np.where(numbers > 0, numbers + np.int32(offset), 0)
        for axis, part in enumerate(window):
            before = self._faces.pop((axis, *starts), None)
            if before is not None:
                self.union.join(before, np.take(shifted, 0, axis))
            if part.stop < self.shape[axis]:
                following = tuple(part.stop if a == axis else start for a, start in enumerate(starts))
                self._faces[(axis, *following)] = np.take(shifted, -1, axis)
        return shifted

    def join(self) -> tuple[np.ndarray, np.ndarray]:
        """`(group, areas)`: group of every number (0 = none, then in order of first pixels), and pixels per group."""
        group = self.union.resolve()
        first = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(first, group, np.concatenate(self.first))
        first[0] = -1
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        group = rank[group]
        return group, np.bincount(group, np.concatenate(self.areas)).astype(np.int64)


def _number(
    regions: _Joined, kernels: _Joined, owner: np.ndarray, min_seed_area: float
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Final number of every seed, of every component that is one particle, and which ones several share."""
    region_of, region_areas = regions.join()
    seed_of, seed_areas = kernels.join()
    large = seed_areas >= min_seed_area
    large[0] = False
    seed_ids = np.where(large, np.arange(len(large)), 0)[seed_of]
    groups = len(region_areas)
    lowest, highest = np.full(groups, np.iinfo(np.int64).max), np.zeros(groups, np.int64)
    used = seed_ids > 0
    np.minimum.at(lowest, region_of[owner[used]], seed_ids[used])
    np.maximum.at(highest, region_of[owner[used]], seed_ids[used])
    whole = np.where(lowest == highest, highest, 0)
    contested = highest > lowest
    return seed_ids.astype(np.int32), (whole[region_of].astype(np.int32), contested[region_of])


def _flood_block(window, shape, halo, components, seeds, labels, seed_ids, whole, contested, read) -> None:
    """Labels of one block: whole components by table, shared ones flooded from their seeds within the halo."""
    numbers = components[window]
    part = whole[numbers]
    own = contested[numbers]
    if own.any():
        outer, inner = _grown(window, halo, shape)
        shared = contested[components[outer]]
        _, landscape = read(outer)
        flooded = seeded_watershed(-landscape, np.where(shared, seed_ids[seeds[outer]], 0), shared, connectivity=4)
        part = np.where(own, flooded[inner], part)
    labels[window] = part


def _flood_rest(window, shape, halo, components, labels, contested, read) -> bool:
    """Grow the labels around into shared components that no seed within the halo has reached; True when any grew."""
    rest = contested[components[window]] & (labels[window] == 0)
    if not rest.any():
        return False
    outer, inner = _grown(window, halo, shape)
    shared = contested[components[outer]]
    present = labels[outer]
    _, landscape = read(outer)
    part = np.where(rest, seeded_watershed(-landscape, present, shared, connectivity=4)[inner], present[inner])
    labels[window] = part
    return bool((part[rest] != 0).any())


def _hole_table(labels: DiskArray, shape: tuple[int, ...], block: int) -> Callable[[Slices, np.ndarray], np.ndarray]:
    """Function (window, local background components) -> label of the particle that encloses each pixel, 0 for none."""
    ground = _Joined(shape)
    edges: list[np.ndarray] = []
    frame: list[np.ndarray] = []
    for window in blocks(shape, block):
        outer, inner = _grown(window, 1, shape)
        around = labels[outer]
        numbers = np.zeros(around.shape, np.int64)
        local = ground.add(window, label_components(around[inner] == 0, 4))
        numbers[inner] = local
        for axis in range(len(shape)):
            pairs = [(np.moveaxis(a, axis, 0)[:-1], np.moveaxis(a, axis, 0)[1:]) for a in (numbers, around)]
            for here, there in ((pairs[0][0], pairs[1][1]), (pairs[0][1], pairs[1][0])):
                edge = (here > 0) & (there > 0)
                edges.append(np.unique(np.stack([here[edge], there[edge]], axis=1), axis=0))
        for axis, part in enumerate(window):
            at_frame = [0] * (part.start == 0) + [-1] * (part.stop == shape[axis])
            frame += [np.unique(np.take(local, side, axis)) for side in at_frame]
    group, areas = ground.join()
    lowest, highest = np.full(len(areas), np.iinfo(np.int64).max), np.zeros(len(areas), np.int64)
    number, label = np.concatenate(edges).T
    np.minimum.at(lowest, group[number], label)
    np.maximum.at(highest, group[number], label)
    is_hole = lowest == highest
    is_hole[group[np.concatenate(frame)]] = False
    is_hole[0] = False
    filling = np.where(is_hole, highest, 0)[group]
    offsets = ground.offsets

    def fill(window: Slices, local: np.ndarray) -> np.ndarray:
        offset = offsets[tuple(part.start for part in window)]
        return filling[np.where(local > 0, local + offset, 0)]

    return fill


def _owners(kernel: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Component that each seed of a block lies in, in the order of the seeds' numbers."""
    inside = kernel > 0
    if not inside.any():
        return np.zeros(0, np.int64)
    seeds = kernel[inside]
    owner = np.zeros(int(seeds.max() - seeds.min()) + 1, np.int64)
    owner[seeds - seeds.min()] = numbers[inside]
    return owner


def _grown(window: Slices, margin: int, shape: tuple[int, ...]) -> tuple[Slices, Slices]:
    """A window with a margin inside the image, and the window's place in it."""
    outer = tuple(slice(max(0, w.start - margin), min(n, w.stop + margin)) for w, n in zip(window, shape, strict=True))
    inner = tuple(slice(w.start - o.start, w.stop - o.start) for w, o in zip(window, outer, strict=True))
    return outer, inner
