"""Tiles of micrographs and their class maps: where they lie, which part of the data they belong to, how they are cut.

Images are reduced by means, labels by the most frequent class or to the shares of all classes. Tiles of one sample next
to each other show the same grains, so validation and test tiles are whole bands of the sample, and training tiles that
come nearer to them than the guard band are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_number

SPLITS = ("block", "sample", "leave-one-out", "none")
TRAIN, VALIDATION, TEST, GUARD = "train", "validation", "test", "guard"


@dataclasses.dataclass(frozen=True)
class TilePlace:
    """A tile of a sample.

    Attributes:
        sample: number of the sample.
        origin: (y, x) of its first pixel, px of the reduced image.
        part: "train", "validation", "test", or "guard" (left out).
        fold: number of the sample that is held out when this tile is validated (leave-one-out), else 0.
    """

    sample: int
    origin: tuple[int, int]
    part: str = TRAIN
    fold: int = 0


def plan_tiles(shape: tuple[int, int], tile: int, overlap: float = 0.0) -> list[tuple[int, int]]:
    """(y, x) of tiles that cover an image; the last ones of a row or column are moved inside.

    Raises:
        UserError: the tile is larger than the image.
    """
    check_number("tile", tile, minimum=8, integer=True)
    check_number("overlap", overlap, minimum=0, maximum=0.9)
    if tile > min(shape):
        raise UserError(
            f"`tile` must not exceed the image. Received: tile={tile} for shape {tuple(shape)}. "
            f"Use at most {min(shape)}."
        )
    stride = max(1, round(tile * (1 - overlap)))
    rows, columns = (np.append(np.arange(0, n - tile, stride), n - tile) for n in shape)
    return [(int(y), int(x)) for y in rows for x in columns]


def split_tiles(
    places: Sequence[TilePlace],
    tile: int,
    *,
    split: str = "block",
    validation: float = 0.2,
    test: float = 0.0,
    guard: int = 0,
    seed: int = 0,
) -> list[TilePlace]:
    """Say for each tile which part it belongs to.

    Args:
        places: tiles of all samples.
        tile: their edge, px.
        split: "block": the last rows of tiles of every sample validate, the first ones test; "sample": whole samples
            drawn at random; "leave-one-out": every sample validates once (`fold`); "none": all train.
        validation, test: shares of tiles (of samples).
        guard: least distance of training tiles from others of their sample, px; overlapping ones are always left out.
        seed: of the draw.

    Raises:
        UserError: too few tiles or samples, or nothing left to train.
    """
    check_choice("split", split, SPLITS)
    check_number("validation", validation, minimum=0, maximum=0.9)
    check_number("test", test, minimum=0, maximum=0.9)
    check_number("guard", guard, minimum=0)
    samples = sorted({p.sample for p in places})
    if split == "none":
        return list(places)
    if split == "leave-one-out":
        if len(samples) < 2:
            raise UserError("Leaving one sample out needs two samples at least. Use split='block'.")
        return [dataclasses.replace(p, fold=p.sample) for p in places]
    if split == "sample":
        order = list(np.random.default_rng(seed).permutation(samples))
        held = max(1, round(validation * len(order))) if validation else 0
        tested = max(1, round(test * len(order))) if test else 0
        if held + tested >= len(order):
            raise UserError(f"Too few samples ({len(order)}) for a split by sample. Use split='block'.")
        part = dict.fromkeys(order[:held], VALIDATION) | dict.fromkeys(order[held : held + tested], TEST)
        return [dataclasses.replace(p, part=part.get(p.sample, TRAIN)) for p in places]
    out = []
    for sample in samples:
        out += _split_bands([p for p in places if p.sample == sample], tile, validation, test, guard)
    if not any(p.part == TRAIN for p in out):
        raise UserError("No tile is left to train on. Use smaller tiles, a narrower guard band or less validation.")
    if validation and not any(p.part == VALIDATION for p in out):
        raise UserError("No tile is left to validate on. Use smaller tiles or more validation.")
    return out


def _split_bands(places: list[TilePlace], tile: int, validation: float, test: float, guard: int) -> list[TilePlace]:
    rows = np.array([p.origin[0] for p in places])
    parts = np.full(len(places), TRAIN, dtype=object)
    if validation:
        last = np.sort(rows)[::-1][: max(1, round(validation * len(rows)))].min()
        parts[rows >= last] = VALIDATION
    if test:
        first = np.sort(rows)[: max(1, round(test * len(rows)))].max()
        parts[(rows <= first) & (parts == TRAIN)] = TEST
    for one, others in ((TRAIN, (VALIDATION, TEST)), (TEST, (VALIDATION,))):
        held = rows[np.isin(parts.astype(str), others)]
        if len(held):
            near = (np.abs(rows[:, np.newaxis] - held) < tile + guard).any(axis=1)
            parts[near & (parts == one)] = GUARD
    return [dataclasses.replace(p, part=str(part)) for p, part in zip(places, parts, strict=True)]


def block_means(image: np.ndarray, factor: int) -> np.ndarray:
    """(H / f, W / f) means of `factor` x `factor` pixels, in the type of `image` (rounded when it is whole numbers)."""
    if factor == 1:
        return image
    height, width = (n // factor for n in image.shape)
    blocks = image[: height * factor, : width * factor].reshape(height, factor, width, factor)
    means = blocks.mean(axis=(1, 3), dtype=np.float32)
    return np.rint(means).astype(image.dtype) if image.dtype.kind in "ui" else means.astype(image.dtype)


def class_shares(classes: np.ndarray, factor: int, num_classes: int) -> np.ndarray:
    """(H / f, W / f, K) float32 share of each class among the known pixels of each block; 0 where none is known."""
    height, width = (n // factor for n in classes.shape)
    blocks = classes[: height * factor, : width * factor].reshape(height, factor, width, factor)
    counts = np.stack([(blocks == k).sum(axis=(1, 3)) for k in range(num_classes)], axis=-1).astype(np.float32)
    return counts / np.maximum(counts.sum(axis=-1, keepdims=True), 1)


def block_modes(classes: np.ndarray, factor: int, num_classes: int, *, ignore: int = 255) -> np.ndarray:
    """(H / f, W / f) uint8 most frequent known class of each block; `ignore` where less than half is known."""
    if factor == 1:
        return np.where(classes < num_classes, classes, ignore).astype(np.uint8)
    shares = class_shares(classes, factor, num_classes)
    known = block_means((classes < num_classes).astype(np.float32), factor)
    return np.where(known >= 0.5, shares.argmax(axis=-1), ignore).astype(np.uint8)


def check_pair(image: Any, mask: Any, names: tuple[str, str]) -> None:
    """`UserError` unless image and mask have one shape."""
    if tuple(image.shape) != tuple(mask.shape):
        raise UserError(
            f"{names[1]} has {mask.shape[0]} x {mask.shape[1]} pixels, its image {names[0]} {image.shape[0]} x "
            f"{image.shape[1]}. Bring the map onto the micrograph first (mineral register, mineral masks)."
        )
