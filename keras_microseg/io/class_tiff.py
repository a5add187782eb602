"""Class maps of any size as pyramidal OME-TIFF: tiles, smaller levels, colour table, class names, pixel size."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.image import PixelSize, buffer_planes
from keras_microseg.io import files
from keras_microseg.io.palettes import Palette
from keras_microseg.io.units import ome_xml_unit

TILE = 512


def write_class_tiff(
    path: str | os.PathLike,
    levels: Sequence[Any],
    palette: Palette,
    pixel_size: PixelSize | None,
    *,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a map with its smaller levels as sub-images, a row of tiles at a time.

    Args:
        path: the new file, `.ome.tif`; BigTIFF.
        levels: (H, W) uint8 class numbers and the same at 1/2, 1/4, ...; lazy arrays, read in bands of rows.
        palette: names and colours of the classes; numbers without a class are grey.
        pixel_size: of the first level; None = not written.
        facts: key and value pairs for the annotation in the header.

    Raises:
        FileError: unwritable place or full disk.
    """
    import tifffile

    colours = palette.paint(np.arange(256)).T.astype(np.uint16) * 257
    names = {f"class {m.id}": m.name for m in palette.minerals}
    described: dict[str, Any] = {
        "axes": "YX",
        "MapAnnotation": {
            "Namespace": "keras_microseg/classes",
            **names,
            **{key: str(value) for key, value in (facts or {}).items()},
        },
    }
    if pixel_size is not None:
        unit = ome_xml_unit(pixel_size.unit)
        for axis, edge in zip("YX", pixel_size.size[-2:], strict=True):
            described |= {f"PhysicalSize{axis}": edge, f"PhysicalSize{axis}Unit": unit}
    options: dict[str, Any] = {
        "photometric": "palette", "colormap": colours, "tile": (TILE, TILE), "compression": "zlib", "dtype": np.uint8,
    }  # fmt: skip
    with files.atomic_path(path) as temporary, tifffile.TiffWriter(temporary, bigtiff=True, ome=True) as tif:
        for number, level in enumerate(levels):
            size = None if pixel_size is None else pixel_size.to("cm").scaled(1 / 2**number).size[-2:]
            resolution = {} if size is None else {"resolution": (1 / size[1], 1 / size[0]), "resolutionunit": 3}
            kind = {"subifds": len(levels) - 1, "metadata": described} if number == 0 else {"subfiletype": 1}
            tif.write(_tiles(level), shape=tuple(level.shape), **options, **resolution, **kind)


def _tiles(array: Any) -> Iterator[np.ndarray]:
    """Tiles in the order of the file, filled up with 0 at the border."""
    array = buffer_planes(array)
    height, width = array.shape
    for top in range(0, height, TILE):
        band = np.asarray(array[top : top + TILE])
        for left in range(0, width, TILE):
            tile = band[:, left : left + TILE]
            if tile.shape != (TILE, TILE):
                tile = np.pad(tile, [(0, TILE - n) for n in tile.shape])
            yield np.ascontiguousarray(tile)
