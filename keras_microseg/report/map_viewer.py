"""A page to walk through a class map of any size over its micrograph: a folder that opens from the disk, offline.

Classes are stored as grey tiles whose value is the class number; the page paints them by a lookup table, so classes
can be switched on and off. Tiles are only ever enlarged on the screen: a colour on the page is a class of the map.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.image import PixelSize, buffer_planes
from keras_microseg.io import files
from keras_microseg.io.palettes import Palette

TILE = 512
PAGE = "index.html"


def write_map_viewer(
    folder: Path,
    grey: Sequence[Any],
    classes: Sequence[Any],
    palette: Palette,
    *,
    pixel_size: PixelSize | None = None,
    shares: Mapping[int, float] | None = None,
    title: str = "Mineral map",
    max_pixels: float = 4e8,
) -> Iterator[tuple[int, int]]:
    """Write the page and its tiles; yields (tiles written, tiles in all).

    Args:
        folder: of the page; an earlier one is replaced.
        grey, classes: (H, W) arrays or lazy arrays at 1, 1/2, 1/4, ... of the size, equally many.
        palette: names and colours of the classes.
        pixel_size: of the first level.
        shares: area of each class, for the legend.
        title: of the page.
        max_pixels: levels with more pixels are left out; the page says so.

    Raises:
        UserError: not even the smallest level is allowed.
        FileError: unwritable place or full disk.
    """
    import imagecodecs

    used = [k for k, level in enumerate(classes) if math.prod(level.shape) <= max_pixels]
    if not used:
        raise UserError(f"`max_pixels` leaves no level of the map. Use at least {math.prod(classes[-1].shape)}.")
    counts = [math.prod(-(-n // TILE) for n in classes[k].shape) for k in used]
    limits = _limits(grey[-1])
    total, done = 2 * sum(counts), 0
    with files.write_errors(folder):
        shutil.rmtree(folder, ignore_errors=True)
        for place, k in enumerate(used):
            for name, levels in (("grey", grey), ("classes", classes)):
                target = folder / name / str(place)
                target.mkdir(parents=True)
                for row, column, tile in _tiles(levels[k]):
                    if name == "grey" and tile.dtype != np.uint8:
                        tile = np.clip((tile.astype(np.float32) - limits[0]) / (limits[1] - limits[0]) * 255, 0, 255)
                    encoded = imagecodecs.png_encode(np.ascontiguousarray(tile, np.uint8), level=5)
                    (target / f"{row}_{column}.png").write_bytes(encoded)
                    done += 1
                    yield done, total
    finest = 2 ** used[0]
    note = "Drag to move, wheel or + and \u2212 to zoom, 0 for the whole map."
    if finest > 1:
        note += f" Finest level on this page: one pixel for {finest} \u00d7 {finest} of the map."
    facts = {
        "shape": classes[0].shape, "tile": TILE, "note": note,
        "levels": [{"shape": classes[k].shape, "factor": 2**k} for k in used],
        "pixel_size": None if pixel_size is None else {"size": pixel_size.mean, "unit": pixel_size.unit},
        "classes": [
            {"id": m.id, "name": m.name, "colour": list(m.colour), "share": (shares or {}).get(m.id)}
            for m in palette.minerals
        ],
    }  # fmt: skip
    from jinja2 import Environment, PackageLoader

    page = Environment(loader=PackageLoader("keras_microseg.report"), autoescape=True).get_template("map_viewer.html")
    from markupsafe import Markup

    text = json.dumps(facts).replace("<", "\\u003c")
    with files.atomic_path(folder / PAGE) as temporary:
        temporary.write_text(page.render(title=title, facts=Markup(text)), encoding="utf-8")


def _tiles(array: Any) -> Iterator[tuple[int, int, np.ndarray]]:
    array = buffer_planes(array)
    for top in range(0, array.shape[0], TILE):
        band = np.asarray(array[top : top + TILE])
        for left in range(0, array.shape[1], TILE):
            yield top // TILE, left // TILE, band[:, left : left + TILE]


def _limits(level: Any) -> tuple[float, float]:
    values = np.asarray(level[...], np.float32)
    low, high = np.nanpercentile(values, (0.5, 99.5))
    return float(low), float(max(high, low + 1e-6))
