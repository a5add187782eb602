"""Workflow `mineral tiles`: registered pairs become a folder that `mineral train` reads."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.data.map_tiles import (
    GUARD,
    SPLITS,
    TRAIN,
    TilePlace,
    block_means,
    block_modes,
    check_pair,
    class_shares,
    plan_tiles,
    split_tiles,
)
from keras_microseg.io.palettes import IGNORE, Palette, read_palette, write_palette
from keras_microseg.workflows.mineral_register import CLASSES, MASK_FACTS
from keras_microseg.workflows.steps import Progress, RunFolder, Step, item_names, read_json, run_steps, write_json

TILES = "tiles.json"
ABSENT = ("error", "allow")


@dataclasses.dataclass(frozen=True)
class TileSettings:
    """What is cut and how.

    Attributes:
        samples: folders of `mineral masks`.
        tile: edge of a tile, px after reduction.
        overlap: share of a tile that the next one repeats.
        reduce: working pixels per pixel of the tiles.
        soft: also write the share of each class in every pixel (`soft/`), for labels coarser than the image.
        min_known: tiles with a smaller share of known pixels are left out.
        split, validation, test, guard: see `data.map_tiles.split_tiles`; None for `guard` = a quarter of a tile.
        absent: what to do with a class that no training tile holds: "error" or "allow".
        seed: of the split.
    """

    samples: tuple[str, ...]
    tile: int = 256
    overlap: float = 0.0
    reduce: int = 1
    soft: bool = False
    min_known: float = 0.5
    split: str = "block"
    validation: float = 0.2
    test: float = 0.0
    guard: int | None = None
    absent: str = "error"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(str(s) for s in self.samples))
        if not self.samples:
            raise UserError("Name at least one folder of `mineral masks`.")
        check_choice("split", self.split, SPLITS)
        check_choice("absent", self.absent, ABSENT)
        check_number("reduce", self.reduce, minimum=1, integer=True)
        check_number("min_known", self.min_known, minimum=0, maximum=1)


def tiles(
    settings: TileSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Cut tiles.

    Args:
        settings: what and how.
        out: folder; gets `images/NAME.tif` (grey, with pixel size), `masks/NAME.png` (class numbers from 0, 255 = not
            known), `soft/NAME.npy` ((H, W, K) uint8 shares times 255) on request, `classes.csv` (a palette: number,
            name, colour, density) and `tiles.json`: for each tile its files, sample, place, part ("train",
            "validation", "test"), fold, pixels per class; and the statistics of the classes.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: image and mask of different shape, samples with different classes, tiles larger than an image, a
            class that no training tile holds.
    """
    folder = RunFolder(out, settings, command="mineral tiles", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("tiles", _tiles)])


def _open(folder: str) -> tuple[Any, Any, Palette]:
    path = Path(folder)
    if not (path / MASK_FACTS).is_file():
        raise FileError(folder, f"holds no {MASK_FACTS}.", "Run `mineral masks` first and name its folder.")
    facts = read_json(path / MASK_FACTS)
    image, mask = io.open_image(path / facts["image"]), io.open_image(path / facts["mask"])
    check_pair(image, mask, (image.name, mask.name))
    return image, mask, read_palette(path / CLASSES)


def _tiles(folder: RunFolder) -> None:
    asked = folder.settings
    opened = {name: _open(str(path)) for name, path in item_names(asked.samples).items()}
    legend = next(iter(opened.values()))[2]
    names = [m.name for m in legend.minerals]
    for name, (_, _, other) in opened.items():
        if [m.name for m in other.minerals] != names:
            raise UserError(f"The classes of {name} differ from those of the first sample. Merge them alike.")
    places = []
    for number, (image, _, _) in enumerate(opened.values()):
        reduced = tuple(n // asked.reduce for n in image.shape)
        places += [TilePlace(number, origin) for origin in plan_tiles(reduced, asked.tile, asked.overlap)]
    samples = list(opened)
    cut, kept = {}, []
    for place in places:
        image, mask, _ = opened[samples[place.sample]]
        window = tuple(slice(o * asked.reduce, (o + asked.tile) * asked.reduce) for o in place.origin)
        classes = mask.read(window)
        labels = block_modes(classes, asked.reduce, len(names), ignore=IGNORE)
        if (labels != IGNORE).mean() >= asked.min_known:
            kept.append(place)
            cut[place.sample, place.origin] = np.bincount(labels.ravel(), minlength=256)[: len(names)]
    if not kept:
        raise UserError("No tile holds enough known pixels. Use smaller tiles or a smaller `min_known`.")
    guard = asked.tile // 4 if asked.guard is None else asked.guard
    kept = split_tiles(
        kept, asked.tile, split=asked.split, validation=asked.validation, test=asked.test, guard=guard, seed=asked.seed
    )
    totals = {part: np.zeros(len(names), np.int64) for part in sorted({p.part for p in kept} - {GUARD})}
    for place in kept:
        if place.part != GUARD:
            totals[place.part] += cut[place.sample, place.origin]
    absent = [name for name, count in zip(names, totals.get(TRAIN, np.zeros(len(names))), strict=True) if not count]
    if absent and asked.absent == "error":
        raise UserError(
            f"Classes in no training tile: {', '.join(absent)}. A network cannot learn them: merge them into others "
            "(--groups of `mineral clean`), use smaller tiles, or allow it (--absent allow)."
        )
    entries = []
    written = [p for p in kept if p.part != GUARD]
    for number, place in enumerate(written):
        sample = samples[place.sample]
        name = f"{sample}_y{place.origin[0]:06d}_x{place.origin[1]:06d}"
        if folder.progress:
            folder.progress("tiles", number, len(written), name)
        image, mask, _ = opened[sample]
        window = tuple(slice(o * asked.reduce, (o + asked.tile) * asked.reduce) for o in place.origin)
        size = None if image.pixel_size is None else image.pixel_size.scaled(1 / asked.reduce)
        classes = mask.read(window)
        grey = block_means(image.read(window), asked.reduce)
        io.write_image(folder.file("images", f"{name}.tif"), grey, axes="YX", pixel_size=size)
        io.write_image(folder.file("masks", f"{name}.png"), block_modes(classes, asked.reduce, len(names)))
        entry = {
            "name": name,
            "image": f"images/{name}.tif",
            "mask": f"masks/{name}.png",
            "sample": sample,
            "origin": place.origin,
            "part": place.part,
            "fold": place.fold,
            "pixels": cut[place.sample, place.origin],
        }
        if asked.soft:
            shares = np.rint(class_shares(classes, asked.reduce, len(names)) * 255).astype(np.uint8)
            io.write_image(folder.file("soft", f"{name}.npy"), shares, axes="YXC")
            entry["soft"] = f"soft/{name}.npy"
        entries.append(entry)
        folder.save()
    write_palette(folder.file(CLASSES), legend)
    first = next(iter(opened.values()))[0]
    size = None if first.pixel_size is None else first.pixel_size.scaled(1 / asked.reduce)
    write_json(
        folder.file(TILES),
        {
            "classes": names,
            "ignore": IGNORE,
            "tile": asked.tile,
            "reduce": asked.reduce,
            "pixel_size": None if size is None else {"size": size.size, "unit": size.unit},
            "split": asked.split,
            "guard": guard,
            "left_out_for_guard": len(kept) - len(written),
            "absent_from_training": absent,
            "statistics": {
                part: {"tiles": sum(p.part == part for p in written), "pixels": dict(zip(names, count, strict=True))}
                for part, count in totals.items()
            },
            "tiles": entries,
        },
    )
