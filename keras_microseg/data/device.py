"""Fixed tiles kept in the memory of the device, for GPUs whose steps are shorter than the way of a batch to them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from keras_microseg.checks import UserError
from keras_microseg.data.datasets import SeededDataset


class DeviceTiles(SeededDataset):
    """Batches of tensors from sets of tiles that are sent to the device once; the sets are drawn from independently.

    Each epoch goes through shuffled copies of every set; each tile is mirrored at random along both axes, and square
    ones also along the diagonal. Which tiles come when is a pure function of (seed, epoch, index), as in
    `SeededDataset`, and equal on every backend.

    Args:
        sets: (n, H, W, C) arrays, n and sizes may differ; for `CycleGAN` micrographs and masks, both in -1..1.
        num_batches, batch_size, seed: see `SeededDataset`.
        augment: mirror the tiles.
        dtype: in which they are kept, "float32", or "float16" or "bfloat16" in half of the memory; batches are float32.

    Raises:
        UserError: a set is empty or no (n, H, W, C) array.
    """

    def __init__(
        self,
        sets: Sequence[np.ndarray],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        augment: bool = True,
        dtype: str = "float32",
    ):
        super().__init__(num_batches, batch_size, seed)
        for tiles in sets:
            if np.ndim(tiles) != 4 or len(tiles) == 0:
                raise UserError(f"`sets` must be (n, H, W, C) arrays, n >= 1. Received: shape {np.shape(tiles)}")
        digest = hashlib.sha256(f"{num_batches} {batch_size} {seed} {augment} {dtype}".encode())
        for tiles in sets:
            digest.update(np.ascontiguousarray(tiles).tobytes())
        self._fingerprint = digest.hexdigest()
        self.augment = augment
        self._shapes = [np.shape(tiles) for tiles in sets]
        self._sets = [ops.convert_to_tensor(tiles, dtype=dtype) for tiles in sets]

    def fingerprint(self) -> str:
        """Of the tiles and of how they are drawn."""
        return self._fingerprint

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        """Batch `index` of the current epoch: one (B, H, W, C) float32 tensor per set."""
        return tuple(self._draw(number, index) for number in range(len(self._sets)))

    def _draw(self, number: int, index: int) -> Any:
        tiles, shape = self._sets[number], self._shapes[number]
        places = np.arange(index * self.batch_size, (index + 1) * self.batch_size)
        chosen = [
            self._order(number, int(pass_))[place] for pass_, place in zip(*divmod(places, shape[0]), strict=True)
        ]
        batch = ops.cast(ops.take(tiles, np.asarray(chosen, "int32"), axis=0), "float32")
        if not self.augment:
            return batch
        rng = np.random.default_rng([self.seed, self.epoch, number, 1, index])
        for axis in (1, 2):
            batch = ops.where(_choices(rng, self.batch_size), ops.flip(batch, axis), batch)
        if shape[1] == shape[2]:
            batch = ops.where(_choices(rng, self.batch_size), ops.transpose(batch, (0, 2, 1, 3)), batch)
        return batch

    def _order(self, number: int, pass_: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.epoch, number, 0, pass_]).permutation(self._shapes[number][0])


def _choices(rng: np.random.Generator, count: int) -> np.ndarray:
    return (rng.random(count) < 0.5).reshape(-1, 1, 1, 1)
