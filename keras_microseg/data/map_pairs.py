"""Micrographs with class maps of the same size: finding, reading, splitting and weighing them.

Three layouts are understood: a folder of `mineral tiles` (`tiles.json`); `images/` with `masks/` (or `labels/`); and
`train/` with `train_annot/`, `val/` with `val_annot/`. A class map holds class numbers, or a colour for each class that
a palette explains.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.data.map_tiles import TEST, TRAIN, VALIDATION
from keras_microseg.image import PixelSize
from keras_microseg.io.annotations.splits import cut_blocks, split_images
from keras_microseg.io.pairing import pair_files
from keras_microseg.io.palettes import IGNORE, Mineral, Palette, read_groups, read_mineral_map, read_palette

log = logging.getLogger(__name__)

SPLITS = ("given", "image", "block", "leave-one-out", "none")
WEIGHTS = ("none", "inverse", "sqrt", "median", "effective")
_ANNOTATED = {"train": TRAIN, "val": VALIDATION, "validation": VALIDATION, "test": TEST}
_COLOURS = ((128, 128, 128), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0))


@dataclasses.dataclass(frozen=True)
class MapPair:
    """Files of a micrograph and its class map.

    Attributes:
        name: short name.
        image, mask: the files.
        sample: the specimen it belongs to; what shares a sample must not be split.
        part: "train", "validation" or "test".
        soft: `.npy` with the share of each class, uint8 times 255, or None.
        window: part of the image that is used, None = all.
    """

    name: str
    image: Path
    mask: Path
    sample: str
    part: str = TRAIN
    soft: Path | None = None
    window: tuple[slice, slice] | None = None


class MapImage(NamedTuple):
    """A micrograph with its classes in memory.

    Attributes:
        pair: its files.
        image: (H, W) or (H, W, C), as stored.
        classes: (H, W) uint8 0..K-1, 255 = not known.
        soft: (H, W, K) uint8 shares times 255, or None.
        pixel_size: of the micrograph, or None.
    """

    pair: MapPair
    image: np.ndarray
    classes: np.ndarray
    soft: np.ndarray | None
    pixel_size: PixelSize | None


class ClassTable(NamedTuple):
    """What the numbers or colours in masks mean.

    Attributes:
        palette: the classes, numbered 0..K-1.
        source: palette of the masks, or None when masks hold class numbers.
        table: (256,) uint8 from numbers in the masks to classes.
    """

    palette: Palette
    source: Palette | None
    table: np.ndarray

    @property
    def names(self) -> list[str]:
        return [mineral.name for mineral in self.palette.minerals]


def find_map_pairs(data: str | os.PathLike) -> list[MapPair]:
    """All pairs of a folder, with the part that the folder gives them (else "train").

    Raises:
        UserError: no pair, or a layout that is not understood.
    """
    data = Path(data)
    if (data / "tiles.json").is_file():
        try:
            tiles = json.loads((data / "tiles.json").read_text(encoding="utf-8"))["tiles"]
        except (OSError, ValueError, KeyError) as error:
            raise FileError(data / "tiles.json", f"is damaged ({error}).", "Run `mineral tiles` again.") from error
        return [
            MapPair(
                tile["name"], data / tile["image"], data / tile["mask"], str(tile["sample"]), tile["part"],
                data / tile["soft"] if tile.get("soft") else None,
            )
            for tile in tiles
        ]  # fmt: skip
    annotated = [name for name in _ANNOTATED if (data / name).is_dir() and (data / f"{name}_annot").is_dir()]
    if annotated:
        return [
            MapPair(pair.image.stem, pair.image, pair.labels, pair.image.stem, _ANNOTATED[name])
            for name in annotated
            for pair in pair_files(data / name, data / f"{name}_annot")
        ]
    if not data.is_dir():
        raise UserError(f"{data}: there is no such folder.")
    return [MapPair(pair.image.stem, pair.image, pair.labels, pair.image.stem) for pair in pair_files(data)]


def find_classes(
    data: str | os.PathLike,
    pairs: Sequence[MapPair],
    *,
    palette: str | os.PathLike | None = None,
    groups: Mapping[str, Sequence[str | int]] | None = None,
    names: Sequence[str] = (),
) -> ClassTable:
    """The classes of the masks.

    Args:
        data: the folder; its `classes.csv` or `palette.csv` serves when `palette` is None.
        pairs: what was found there.
        palette: file, see `io.palettes.read_palette`.
        groups: how minerals are merged, see `Palette.merge_table`; None = the groups of the palette.
        names: names of the classes 0, 1, ... of masks that hold numbers, when there is no palette.

    Raises:
        UserError, FileError: no palette where one is needed, or one that does not fit.
    """
    data = Path(data)
    if palette is None:
        palette = next((data / n for n in ("classes.csv", "palette.csv") if (data / n).is_file()), None)
    if palette is not None:
        source = read_palette(palette)
        _, table = source.merge_table(groups)
        return ClassTable(source.merged(groups), source, table)
    highest = 0
    for pair in pairs:
        numbers = _numbers(pair.mask)
        if numbers is None:
            raise UserError(
                f"{pair.mask} shows classes as colours. Say which is which: --palette FILE with the columns id, name, "
                "colour (takes_others = yes at the class that gets every other colour)."
            )
        known = numbers[numbers != IGNORE]
        highest = max(highest, int(known.max(initial=0)))
    count = max(highest + 1, len(names), 2)
    if count > 64:
        raise UserError(
            f"The masks hold numbers up to {highest}, more than 64 classes. Are they instance labels or grey values? "
            "Name their meaning with --palette."
        )
    if names and len(names) != count:
        raise UserError(f"The masks hold classes 0 to {highest}, but {len(names)} names were given.")
    minerals = [
        Mineral(k, names[k] if names else f"class{k}", _COLOURS[k] if k < len(_COLOURS) else (k * 4 % 256, 40, k))
        for k in range(count)
    ]
    table = np.full(256, IGNORE, np.uint8)
    table[:count] = np.arange(count)
    return ClassTable(Palette(tuple(minerals)), None, table)


def read_pair(
    pair: MapPair, classes: ClassTable, *, channels: str = "grey", tolerance: float = 0.0, with_image: bool = True
) -> MapImage:
    """Read a micrograph and its class map.

    Args:
        pair: the files.
        classes: see `find_classes`.
        channels: "grey": the mean of the channels; "all": every channel of the file (detectors).
        tolerance: of colours, see `io.palettes.read_mineral_map`.
        with_image: False where only the map exists; the image is then black.

    Raises:
        FileError: image and map of different shape, or an unreadable file.
    """
    check_choice("channels", channels, ("grey", "all"))
    found = read_map(pair.mask, classes, tolerance=tolerance)
    opened = io.open_image(pair.image)
    if not with_image:
        image = np.zeros(found.shape, np.uint8)
    elif channels == "all":
        image = np.atleast_3d(opened.read())
    else:
        image = io.read_grey(opened)
        if image.dtype.kind == "f" and np.dtype(opened.dtype) == np.uint8:
            image = np.rint(image).astype(np.uint8)
    if found.shape != image.shape[:2]:
        raise FileError(
            pair.mask,
            f"has {found.shape[0]} x {found.shape[1]} pixels, its image {image.shape[0]} x {image.shape[1]}.",
            "Align the two first (mineral register), or pair the right files.",
        )
    soft = None if pair.soft is None else np.load(pair.soft)
    if soft is not None and soft.shape != (*found.shape, len(classes.names)):
        raise FileError(pair.soft, f"has shape {soft.shape}.", f"It should be {(*found.shape, len(classes.names))}.")
    window = pair.window or (slice(None), slice(None))
    return MapImage(pair, image[window], found[window], None if soft is None else soft[window], opened.pixel_size)


def read_map(path: Path, classes: ClassTable, *, tolerance: float = 0.0) -> np.ndarray:
    """(H, W) uint8 classes 0..K-1 of a map of numbers or colours, 255 where they are not known.

    A grey map holds numbers of the palette if all its values are such numbers (or 255), else colours.

    Raises:
        FileError: colours without a palette, or an unreadable file.
    """
    ids = _numbers(path)
    if ids is not None and _are_ids(ids, classes):
        return classes.table[ids]
    if classes.source is None:
        raise FileError(path, "holds no class numbers.", "Name the colours with --palette.")
    found = read_mineral_map(path, classes.source, tolerance=tolerance)
    if len(found.unknown):
        first = found.unknown.iloc[0]
        log.warning(
            "%s: %d colours are in no class and are left out (%d pixels); most frequent %s, nearest to %s.",
            path, len(found.unknown), found.unknown["pixels"].sum(), first["colour"], first["nearest"],
        )  # fmt: skip
    return classes.table[found.ids]


def split_pairs(
    pairs: Sequence[MapPair],
    split: str = "given",
    *,
    validation: float = 0.2,
    hold: str | None = None,
    guard: int = 64,
    seed: int = 0,
) -> list[MapPair]:
    """Say which pairs train and which validate.

    Args:
        pairs: what was found.
        split: "given": as the folder says, or "image" where it does not; "image": samples at random; "block": the
            lower part of every image validates, with a guard band between; "leave-one-out": the sample `hold`
            validates; "none": all train.
        validation: share that validates.
        hold: name of a sample, or its number from 0.
        guard: width of the guard band, px.
        seed: of the draw.

    Raises:
        UserError: too few samples, or no such sample.
    """
    check_choice("split", split, SPLITS)
    check_number("validation", validation, minimum=0, maximum=0.9)
    samples = list(dict.fromkeys(pair.sample for pair in pairs))
    if split == "given":
        if any(pair.part != TRAIN for pair in pairs):
            return list(pairs)
        split = "image" if validation and len(samples) > 1 else "block" if validation else "none"
    if split == "leave-one-out":
        chosen = samples[int(hold)] if hold is not None and hold.isdigit() and int(hold) < len(samples) else hold
        if chosen not in samples or len(samples) < 2:
            raise UserError(f"`hold` must name one of the samples {', '.join(samples)}. Received: {hold!r}")
        parts = dict.fromkeys(samples, TRAIN) | {chosen: VALIDATION}
        return [dataclasses.replace(pair, part=parts[pair.sample]) for pair in pairs]
    if split == "image" and validation:
        groups = {pair.name: pair.sample for pair in pairs}
        found = split_images(
            list(groups), {TRAIN: 1 - validation, VALIDATION: validation}, seed=seed, group=groups.__getitem__
        )
        held = set(found[VALIDATION])
        return [dataclasses.replace(p, part=VALIDATION if p.name in held else TRAIN) for p in pairs]
    if split == "block" and validation:
        out = []
        for pair in pairs:
            shape = io.open_image(pair.image).shape[:2]
            windows = cut_blocks(shape, {TRAIN: 1 - validation, VALIDATION: validation}, guard=guard)
            out += [dataclasses.replace(pair, part=part, window=window) for part, window in windows.items()]
        return out
    return [dataclasses.replace(pair, part=TRAIN) for pair in pairs]


def open_pairs(
    data: str | os.PathLike,
    *,
    palette: str | os.PathLike | None = None,
    groups: str | os.PathLike | None = None,
    names: Sequence[str] = (),
    split: str = "given",
    **options: Any,
) -> tuple[list[MapPair], ClassTable]:
    """What a folder holds, split, and its classes.

    Args:
        data: the folder, see `find_map_pairs`.
        palette, names: see `find_classes`.
        groups: JSON file of merged classes, see `io.palettes.read_groups`.
        split, options: see `split_pairs`.
    """
    pairs = find_map_pairs(data)
    merged = None if groups is None else read_groups(groups)
    table = find_classes(data, pairs, palette=palette, groups=merged, names=names)
    return split_pairs(pairs, split, **options), table


def count_classes(images: Sequence[MapImage], num_classes: int) -> np.ndarray:
    """(K,) int64 pixels of each class."""
    total = np.zeros(256, np.int64)
    for image in images:
        total += np.bincount(image.classes.ravel(), minlength=256)
    return total[:num_classes]


def class_weights(pixels: Sequence[int] | np.ndarray, kind: str = "inverse", *, beta: float = 0.9999) -> np.ndarray:
    """Weights of classes with mean 1 over the classes that occur; 0 for the others.

    With the share f_k: "inverse" 1 / f_k; "sqrt" 1 / sqrt(f_k); "median" median(f) / f_k (the same as "inverse" once
    the mean is 1); "effective" (1 - beta) / (1 - beta^n_k) with n_k pixels in thousands (Cui et al. 2019,
    arXiv:1901.05555); "none" 1.
    """
    check_choice("kind", kind, WEIGHTS)
    pixels = np.asarray(pixels, float)
    present = pixels > 0
    shares = np.where(present, pixels, 1) / max(pixels.sum(), 1)
    weights = {
        "none": lambda: np.ones(len(pixels)),
        "inverse": lambda: 1 / shares,
        "sqrt": lambda: 1 / np.sqrt(shares),
        "median": lambda: np.median(shares[present]) / shares,
        "effective": lambda: (1 - beta) / -np.expm1(np.maximum(pixels / 1000, 1e-3) * np.log(beta)),
    }[kind]()
    weights = np.where(present, weights, 0)
    return weights / weights[present].mean() if present.any() else weights


def _numbers(path: Path) -> np.ndarray | None:
    """(H, W) uint8 numbers of a grey or palette mask; None for colours."""
    opened = io.open_image(path, raw_palette=True)
    array = opened.read()
    if opened.axes.endswith("C"):
        if array.shape[-1] != 1:
            return None
        array = array[..., 0]
    if array.dtype == bool or (array.dtype.kind in "iu" and array.size and 0 <= array.min() and array.max() < 256):
        return array.astype(np.uint8)
    raise FileError(path, f"holds {array.dtype} values outside of 0 to 255.", "Store class numbers in 8 bits.")


def _are_ids(numbers: np.ndarray, classes: ClassTable) -> bool:
    """Whether a grey mask holds numbers of the palette (and not grey values that stand for colours)."""
    found = np.flatnonzero(np.bincount(numbers.ravel(), minlength=256))
    return classes.source is None or bool(np.all((classes.table[found] != IGNORE) | (found == IGNORE)))


def describe_pixels(pixels: np.ndarray, names: Sequence[str]) -> dict[str, Any]:
    """Shares of classes by name, for a card."""
    return {name: float(share) for name, share in zip(names, pixels / max(pixels.sum(), 1), strict=True)}
