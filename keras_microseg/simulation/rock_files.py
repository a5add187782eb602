"""A simulated rock on disk: the micrograph and the colour-coded map as two instruments would leave them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from keras_microseg import io
from keras_microseg.image import PixelSize
from keras_microseg.io.images import write_tiff
from keras_microseg.io.palettes import Mineral, Palette, write_palette
from keras_microseg.simulation.rocks import COLOURS, MINERALS, Rock, RockSettings

_DENSITIES = (0, 0, 2.65, 2.62, 2.6, 2.56, 4.5)


def rock_palette() -> Palette:
    """The minerals of simulated rocks, numbered as in `Rock.classes`; number 0 is the background."""
    return Palette(
        tuple(
            Mineral(k, name, COLOURS[k], density=_DENSITIES[k], micro_porosity=float(name == "pore"))
            for k, name in enumerate(MINERALS)
        )
    )


def write_rock(
    folder: str | os.PathLike, settings: RockSettings | None = None, *, pixel_size: str = "0.5um", truth: bool = False
) -> Rock:
    """Write `sem.tif`, `map.png` and `palette.csv`, and `truth.tif` (class of every pixel of the micrograph) if asked.

    The micrograph is written in bands, so its size does not matter for memory.

    Args:
        folder: made when missing.
        settings: of the rock.
        pixel_size: of the micrograph.
        truth: see above.

    Returns:
        The rock, with its exact classes, fractions and transform.
    """
    folder, rock = Path(folder), Rock(settings)
    folder.mkdir(parents=True, exist_ok=True)
    size = PixelSize.parse(pixel_size)
    write_tiff(folder / "sem.tif", rock.sem, "YX", size)
    if truth:
        write_tiff(folder / "truth.tif", rock.classes, "YX", size)
    io.write_image(folder / "map.png", np.array(COLOURS, np.uint8)[rock.mineral_map[...]])
    write_palette(folder / "palette.csv", rock_palette())
    return rock


def write_rock_pairs(folder: str | os.PathLike, parts: Mapping[str, Sequence[RockSettings]]) -> Path:
    """Micrographs with their exact classes, laid out for `mineral train`: `PART/rockSEED.tif`, `PART_annot/...` and
    `classes.csv`.

    Args:
        folder: made when missing.
        parts: "train", "val", "test" -> rocks. Where none has a background (`disc` 0), pores are class 0.
    """
    folder = Path(folder)
    first = 0 if any(settings.disc for rocks in parts.values() for settings in rocks) else 1
    for part, rocks in parts.items():
        for settings in rocks:
            rock, name = Rock(settings), f"rock{settings.seed}.tif"
            io.write_image(folder / part / name, rock.sem[...])
            io.write_image(folder / f"{part}_annot" / name, rock.classes[...] - np.uint8(first))
    minerals = rock_palette().minerals[first:]
    write_palette(folder / "classes.csv", Palette(tuple(replace(m, id=k) for k, m in enumerate(minerals))))
    return folder
