"""Cutting images and volumes into tiles of one fixed shape, and joining what a network makes of them.

A tile *reads* a block of fixed shape, reflected where it reaches over the border, and *writes* the part it owns. Write
regions share out the image: every pixel has exactly one owner. The `halo` is context that is read but not written.

```
grid = TileGrid.cover(image.shape, tile=(512, 512), halo=32, multiple_of=16)
for batch in grid.batches(8):
    batch.write(out, predict(batch.read(image)))
```
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_number, format_bytes, parse_bytes, standardize_tuple

Slices = tuple[slice, ...]


@dataclasses.dataclass(frozen=True)
class Tile:
    """One block of a `TileGrid`. All positions are pixels of the image, half-open.

    Attributes:
        index: place in the grid, one number per axis.
        origin: position of the block's first pixel; negative where it reaches over the border.
        shape: shape of the block, the same for all tiles of a grid.
        read: image region that holds every pixel the block needs, reflected ones included.
        pad: pixels per axis and side by which the block reaches over the border.
        write: image region the tile owns.
        crop: the same region in coordinates of the block.
    """

    index: tuple[int, ...]
    origin: tuple[int, ...]
    shape: tuple[int, ...]
    read: Slices
    pad: tuple[tuple[int, int], ...]
    write: Slices
    crop: Slices


@dataclasses.dataclass(frozen=True)
class TileGrid:
    """Tiles of one shape that cover an image. Build it with `cover`.

    Attributes:
        shape: spatial shape of the image.
        tile: shape of every block.
        halo: least context around every write region, per axis.
        stride: distance between tiles per axis, a multiple of the network's total stride.
        counts: number of tiles per axis.
        lead: distance from a block's first pixel to its write region (>= halo).
    """

    shape: tuple[int, ...]
    tile: tuple[int, ...]
    halo: tuple[int, ...]
    stride: tuple[int, ...]
    counts: tuple[int, ...]
    lead: tuple[int, ...]

    @classmethod
    def cover(
        cls,
        shape: Sequence[int],
        tile: int | Sequence[int],
        halo: int | Sequence[int] = 0,
        multiple_of: int | Sequence[int] = 1,
    ) -> TileGrid:
        """Lay tiles over an image of `shape` (2D or 3D).

        The write regions of one axis have about equal lengths. All blocks start at the same phase modulo `multiple_of`,
        so that a network that halves its input several times sees every pixel in the same phase in any tile.

        Args:
            shape: spatial shape, (y, x) or (z, y, x).
            tile: shape of the blocks, halo included; one number stands for all axes.
            halo: context on each side, one number or one per axis.
            multiple_of: the network's total stride, one number or one per axis; `tile` must be a multiple of it.

        Raises:
            UserError: a tile that is no multiple, or too small for its halo; the message names a size that fits.
        """
        shape = standardize_tuple(shape, len(tuple(shape)), "shape")
        tile = standardize_tuple(tile, len(shape), "tile")
        halo = standardize_tuple(halo, len(shape), "halo", minimum=0)
        multiples = standardize_tuple(multiple_of, len(shape), "multiple_of")
        if any(t % m for t, m in zip(tile, multiples, strict=True)):
            fitting = tuple(round_up(t, m) for t, m in zip(tile, multiples, strict=True))
            wanted = multiples[0] if len(set(multiples)) == 1 else multiples
            raise UserError(f"`tile` must be a multiple of {wanted}. Received: tile={tile}. Use {fitting}.")
        if any(t - 2 * h < m for t, h, m in zip(tile, halo, multiples, strict=True)):
            fitting = tuple(round_up(max(t, 2 * h + m), m) for t, h, m in zip(tile, halo, multiples, strict=True))
            raise UserError(
                f"`tile` leaves no room inside the halo {halo}. Received: tile={tile}. Use at least {fitting}."
            )
        strides, counts, leads = [], [], []
        for n, t, h, m in zip(shape, tile, halo, multiples, strict=True):
            longest = (t - 2 * h) // m * m
            count = math.ceil(n / longest)
            stride = round_up(math.ceil(n / count), m)
            strides.append(stride)
            counts.append(math.ceil(n / stride))
            leads.append(h + ((t - stride) // 2 - h) // m * m)  # spare context on both sides
        return cls(shape, tile, halo, tuple(strides), tuple(counts), tuple(leads))

    def __len__(self) -> int:
        return math.prod(self.counts)

    def __iter__(self) -> Iterator[Tile]:
        for index in itertools.product(*(range(count) for count in self.counts)):
            yield self[index]

    def __getitem__(self, index: tuple[int, ...]) -> Tile:
        """The tile at one place of the grid."""
        origin, read, pad, write, crop = [], [], [], [], []
        for i, n, t, s, lead in zip(index, self.shape, self.tile, self.stride, self.lead, strict=True):
            start, stop = i * s, min((i + 1) * s, n)
            first = start - lead
            positions = reflected_positions(first, first + t, n)
            origin.append(first)
            read.append(slice(int(positions.min()), int(positions.max()) + 1))
            pad.append((max(0, -first), max(0, first + t - n)))
            write.append(slice(start, stop))
            crop.append(slice(start - first, stop - first))
        return Tile(tuple(index), tuple(origin), self.tile, tuple(read), tuple(pad), tuple(write), tuple(crop))

    def batches(self, size: int) -> Iterator[Batch]:
        """Groups of `size` tiles in grid order; the last group may hold fewer, its array is padded all the same."""
        size = check_number("size", size, minimum=1, integer=True)
        tiles = iter(self)
        while group := tuple(itertools.islice(tiles, size)):
            yield Batch(group, size)

    def blend(self, out: np.ndarray, tile: Tile, values: np.ndarray) -> None:
        """Add a block to `out` with weights that fall linearly across the seams.

        The weights of all tiles sum to one at every pixel, so the sum over the grid is a weighted mean.

        Args:
            out: float array of `shape` plus any trailing axes, zero before the first tile.
            tile: the block's tile.
            values: array of the block's shape plus the same trailing axes.
        """
        region, weights = self.blending_weights(tile)
        block = tuple(slice(r.start - o, r.stop - o) for r, o in zip(region, tile.origin, strict=True))
        extra = values.ndim - len(self.shape)
        out[region] += weights.reshape(weights.shape + (1,) * extra) * values[block]

    def blending_weights(self, tile: Tile) -> tuple[Slices, np.ndarray]:
        """Image region a tile contributes to when blended, and its float32 weights there."""
        region, profiles = [], []
        for owned, n, h in zip(tile.write, self.shape, self.halo, strict=True):
            start = owned.start - h if owned.start > 0 else 0
            stop = owned.stop + h if owned.stop < n else n
            start, stop = max(start, 0), min(stop, n)
            centres = np.arange(start, stop) + 0.5
            profile = _ramp(centres - owned.start, h) if owned.start > 0 else np.ones(stop - start)
            if owned.stop < n:
                profile = profile - _ramp(centres - owned.stop, h)
            region.append(slice(start, stop))
            profiles.append(profile)
        return tuple(region), _outer(profiles)


@dataclasses.dataclass(frozen=True)
class Batch:
    """Tiles that go through the network together; `size` is the fixed length of the array."""

    tiles: tuple[Tile, ...]
    size: int

    def read(self, array: Any) -> np.ndarray:
        """(size, *tile, ...) array of the blocks; places without a tile repeat the last one."""
        blocks = [read_tile(array, tile) for tile in self.tiles]
        return np.stack(blocks + [blocks[-1]] * (self.size - len(blocks)))

    def write(self, out: Any, values: np.ndarray) -> None:
        """Put the owned part of every block into `out` (image shape plus any trailing axes)."""
        for tile, block in zip(self.tiles, values, strict=False):
            out[tile.write] = block[tile.crop]


def read_tile(array: Any, tile: Tile) -> np.ndarray:
    """The block of one tile as NumPy: fixed shape, reflected at the borders as often as needed.

    Args:
        array: image, NumPy or lazy, of the grid's shape plus any trailing axes; only `tile.read` is asked for.
        tile: one tile of the grid.
    """
    block = np.asarray(array[tile.read])
    if not any(before or after for before, after in tile.pad):
        return block
    for axis, (first, length, region) in enumerate(zip(tile.origin, tile.shape, tile.read, strict=True)):
        if any(tile.pad[axis]):
            positions = reflected_positions(first, first + length, array.shape[axis])
            block = np.take(block, positions - region.start, axis=axis)
    return block


@dataclasses.dataclass(frozen=True)
class Slab:
    """A run of planes along the first axis; all positions half-open.

    Attributes:
        read: planes to load, context included.
        write: planes the slab owns.
        crop: the same planes counted from the first one loaded.
    """

    read: slice
    write: slice
    crop: slice


def slabs(length: int, thickness: int, halo: int = 0) -> Iterator[Slab]:
    """Slabs of `thickness` planes that share out `length` planes, each read with up to `halo` planes of context."""
    for start in range(0, length, thickness):
        stop = min(start + thickness, length)
        first = max(0, start - halo)
        yield Slab(slice(first, min(stop + halo, length)), slice(start, stop), slice(start - first, stop - first))


def slab_thickness(
    shape: Sequence[int], max_ram: str | int, bytes_per_voxel: float, *, halo: int = 0, multiple_of: int = 1
) -> int:
    """Planes per slab for a memory budget.

    Args:
        shape: (z, y, x) of the volume.
        max_ram: bytes, or text such as `"4GB"`.
        bytes_per_voxel: all that is held at once for every voxel that is read (input, working copies, output).
        halo: planes of context on both sides, held too.
        multiple_of: the thickness is a multiple of this (chunks of the output) where the budget allows one.

    Returns:
        Thickness with `(thickness + 2 * halo) * plane * bytes_per_voxel <= max_ram`, at most the planes there are.

    Raises:
        UserError: not even one plane fits; the message says how much is needed.
    """
    budget = parse_bytes(max_ram)
    plane = math.prod(shape[1:]) * bytes_per_voxel
    fitting = int(budget // plane) - 2 * halo
    if shape[0] * plane <= budget:
        return shape[0]
    if fitting < 1:
        needed = format_bytes(plane * (1 + 2 * halo) * 1.01)
        raise UserError(
            f"`max_ram` is too small for planes of {shape[1]} x {shape[2]} voxels. Received: max_ram={max_ram!r}. "
            f"Use at least {needed}."
        )
    return fitting // multiple_of * multiple_of or fitting


def reflected_positions(start: int, stop: int, length: int) -> np.ndarray:
    """Positions `start..stop` of a line of `length` pixels continued by reflection about its end pixels (no repeat).

    A single pixel continues as itself. Equals `numpy.pad(mode="reflect")`.
    """
    if length == 1:
        return np.zeros(stop - start, np.intp)
    period = 2 * (length - 1)
    positions = np.arange(start, stop) % period
    return np.where(positions < length, positions, period - positions)


def blending_window(shape: int | Sequence[int], halo: int | Sequence[int]) -> np.ndarray:
    """Weights of an inner block, float32 of `shape`: linear ramps over `2 * halo` pixels on every side.

    Blocks laid out at distance `shape - 2 * halo` have weights that sum to one.
    """
    shape = standardize_tuple(shape, 1 if np.isscalar(shape) else len(tuple(shape)), "shape")
    halo = standardize_tuple(halo, len(shape), "halo", minimum=0)
    profiles = []
    for n, h in zip(shape, halo, strict=True):
        if 2 * h >= n:
            raise UserError(f"`halo` must be smaller than half the shape {shape}. Received: halo={halo}")
        centres = np.arange(n) + 0.5
        profiles.append(_ramp(centres - h, h) - _ramp(centres - (n - h), h))
    return _outer(profiles)


def round_up(value: int, multiple: int) -> int:
    """Smallest multiple of `multiple` that is >= `value`."""
    return -(-value // multiple) * multiple


def _ramp(distance: np.ndarray, half_width: int) -> np.ndarray:
    """0 to 1 across a seam at distance 0, linear over `2 * half_width`; a step for half_width 0."""
    if half_width == 0:
        return (distance > 0).astype(float)
    return np.clip((distance + half_width) / (2 * half_width), 0, 1)


def _outer(profiles: Sequence[np.ndarray]) -> np.ndarray:
    weights = np.ones((1,) * len(profiles))
    for axis, profile in enumerate(profiles):
        weights = weights * profile.reshape([-1 if a == axis else 1 for a in range(len(profiles))])
    return weights.astype(np.float32)
