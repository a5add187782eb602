"""Class maps of any size as OME-Zarr: the grey image, its classes under `labels`, and smaller levels of both.

The store is filled chunk by chunk, in any order and by several processes; chunks are whole files, so none waits for
another. Its description (`multiscales`, colours, names) is written at the end, with the smaller levels: grey by
means, classes by the most frequent class of 2 x 2 pixels.

Layout: OME-NGFF 0.4, arrays `0`, `1`, ... (y, x) and `labels/classes/0`, `1`, ...; if wanted also the images
`confidence/` (y, x) and `probabilities/` (c, y, x), 255 = certain.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.image import PixelSize
from keras_microseg.io import files
from keras_microseg.io.palettes import IGNORE, Palette
from keras_microseg.io.sources import ZarrArray
from keras_microseg.io.units import OME_ZARR_UNITS

GREY, CLASSES, CONFIDENCE, PROBABILITIES = "", "labels/classes", "confidence", "probabilities"
SMALLEST = 512
_FACTS = "keras_microseg"


class MapStore:
    """An OME-Zarr of a class map; `create` begins one, `MapStore(path)` opens one.

    Attributes:
        path: of the folder.
        shape: (y, x) of level 0.
        chunk: (y, x) of the chunks, px.
    """

    def __init__(self, path: str | os.PathLike, mode: str = "r"):
        import zarr

        self.path = Path(path)
        self.group = zarr.open_group(self.path, mode=mode)
        first = self.array(CLASSES)
        self.shape, self.chunk = tuple(first.shape), tuple(int(n) for n in first.chunks)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike,
        shape: Sequence[int],
        chunk: Sequence[int],
        *,
        grey_type: Any = np.uint8,
        confidence: bool = False,
        probabilities: int = 0,
    ) -> MapStore:
        """Begin a store; one that is there already is left as it is.

        Args:
            path: new folder.
            shape: (y, x).
            chunk: (y, x) of the chunks, px. Whole chunks can be written by different processes.
            grey_type: of the image.
            confidence, probabilities: with the confidence; with this many probability planes.
        """
        import zarr

        path = Path(path)
        if not files.is_zarr(path):
            with files.atomic_path(path) as temporary:
                group = zarr.open_group(temporary, mode="w", zarr_format=2)
                parts = [(GREY, grey_type, 0, 0), (CLASSES, np.uint8, 0, IGNORE)]
                parts += [(CONFIDENCE, np.uint8, 0, 0)] if confidence else []
                parts += [(PROBABILITIES, np.uint8, probabilities, 0)] if probabilities else []
                for name, dtype, planes, fill in parts:
                    _add_level(group, name, 0, tuple(shape), tuple(chunk), dtype, planes, fill)
                group["labels"].attrs["labels"] = ["classes"]
                group.attrs[_FACTS] = {"complete": False}
        return cls(path, "r+")

    def array(self, name: str, level: int = 0) -> Any:
        """The array of `GREY`, `CLASSES`, `CONFIDENCE` or `PROBABILITIES` at a level."""
        return self.group[f"{name}/{level}".lstrip("/")]

    def lazy(self, name: str, level: int = 0) -> ZarrArray:
        """The same, opened anew whenever it is read; pickles."""
        array = self.array(name, level)
        return ZarrArray(
            str(self.path), f"{name}/{level}".lstrip("/"), array.shape, array.dtype, tuple(int(n) for n in array.chunks)
        )

    def has(self, name: str) -> bool:
        return f"{name}/0".lstrip("/") in self.group

    def names(self) -> list[str]:
        """Which of `GREY`, `CLASSES`, `CONFIDENCE` and `PROBABILITIES` it holds."""
        return [name for name in (GREY, CLASSES, CONFIDENCE, PROBABILITIES) if self.has(name)]

    def num_levels(self, name: str) -> int:
        """Levels that are there."""
        level = 0
        while f"{name}/{level}".lstrip("/") in self.group:
            level += 1
        return level

    @property
    def facts(self) -> dict[str, Any]:
        """What `describe` stored about the map."""
        return dict(self.group.attrs.get(_FACTS, {}))

    def build_levels(self, name: str, *, num_classes: int = 254) -> Iterator[tuple[int, int]]:
        """Make the smaller levels of `GREY` (means) or `CLASSES` (most frequent); yields (chunks made, chunks in all).

        Memory holds four chunks. Levels end when the longer side is at most `SMALLEST`.
        """
        shapes = level_shapes(self.shape)
        counts = [tuple(-(-n // c) for n, c in zip(shape, self.chunk, strict=True)) for shape in shapes[1:]]
        total, made = sum(rows * columns for rows, columns in counts), 0
        for level, (rows, columns) in enumerate(counts, start=1):
            source = self.array(name, level - 1)
            fill = IGNORE if name == CLASSES else 0
            out = _add_level(self.group, name, level, shapes[level], self.chunk, source.dtype, 0, fill)
            for row in range(rows):
                for column in range(columns):
                    place = tuple(
                        slice(i * c, min((i + 1) * c, n))
                        for i, c, n in zip((row, column), self.chunk, shapes[level], strict=True)
                    )
                    above = tuple(slice(2 * part.start, 2 * part.stop) for part in place)
                    values = _even(np.asarray(source[above]))
                    with files.write_errors(self.path):
                        out[place] = most_frequent(values) if name == CLASSES else _means(values)
                    made += 1
                    yield made, total

    def describe(
        self, palette: Palette, pixel_size: PixelSize | None, facts: Mapping[str, Any], *, name: str = "mineral map"
    ) -> None:
        """Write the description: levels with scale and translation, names and colours of the classes.

        Args:
            palette: classes numbered as in the map.
            pixel_size: of level 0; None = px.
            facts: JSON values about the run.
            name: of the image.
        """
        for part in (GREY, CLASSES, CONFIDENCE, PROBABILITIES):
            if self.has(part):
                group = self.group[part] if part else self.group
                group.attrs["multiscales"] = [self._multiscale(part, pixel_size, part.split("/")[-1] or name)]
        colours = [{"label-value": m.id, "rgba": [*map(int, m.colour), 255]} for m in palette.minerals]
        names = [{"label-value": m.id, "name": m.name} for m in palette.minerals]
        self.group[CLASSES].attrs["image-label"] = {
            "version": "0.4",
            "colors": [*colours, {"label-value": IGNORE, "rgba": [0, 0, 0, 0]}],
            "properties": names,
            "source": {"image": "../../"},
        }
        if self.has(PROBABILITIES):
            window = {"min": 0, "max": 255, "start": 0, "end": 255}
            channels = [
                {"label": m.name, "active": True, "color": bytes(m.colour).hex().upper(), "window": window}
                for m in palette.minerals
            ]
            self.group[PROBABILITIES].attrs["omero"] = {"channels": channels}
        self.group.attrs[_FACTS] = {**facts, "complete": True}

    def _multiscale(self, part: str, size: PixelSize | None, name: str) -> dict[str, Any]:
        edge = (1.0, 1.0) if size is None else size.size[-2:]
        axes: list[dict[str, str]] = [{"name": letter, "type": "space"} for letter in "yx"]
        for axis in axes if size is not None else ():
            axis["unit"] = OME_ZARR_UNITS[size.unit]
        planes = [1.0] if part == PROBABILITIES else []
        if planes:
            axes.insert(0, {"name": "c", "type": "channel"})
        datasets = []
        for level in range(self.num_levels(part)):
            factor = 2**level
            steps = [
                {"type": "scale", "scale": [*planes, *(e * factor for e in edge)]},
                {"type": "translation", "translation": [*(0.0 for _ in planes), *(e * (factor - 1) / 2 for e in edge)]},
            ]
            datasets.append({"path": str(level), "coordinateTransformations": steps})
        kind = {"type": "mode"} if part == CLASSES else {"type": "mean"}
        return {"version": "0.4", "name": name, "axes": axes, "datasets": datasets, **kind}


def level_shapes(shape: Sequence[int], smallest: int = SMALLEST) -> list[tuple[int, int]]:
    """Shapes of the levels, halved (rounded up) until the longer side is at most `smallest`."""
    shapes = [(int(shape[0]), int(shape[1]))]
    while max(shapes[-1]) > smallest:
        shapes.append((-(-shapes[-1][0] // 2), -(-shapes[-1][1] // 2)))
    return shapes


def most_frequent(classes: np.ndarray) -> np.ndarray:
    """Most frequent class of each 2 x 2 pixels of (2h, 2w) uint8; `IGNORE` only if all are; ties take the first."""
    a, b, c, d = (classes[i::2, j::2] for i in (0, 1) for j in (0, 1))
    other = np.where((b == c) | (b == d), b, np.where(c == d, c, a))
    out = np.where((a == b) | (a == c) | (a == d), a, other)
    hidden = out == IGNORE
    if hidden.any():  # a known class goes before unknown
        known = np.minimum(np.minimum(a, b), np.minimum(c, d))
        out = np.where(hidden, known, out)
    return out


def _means(values: np.ndarray) -> np.ndarray:
    sums = sum(values[i::2, j::2].astype(np.float32) for i in (0, 1) for j in (0, 1))
    return np.rint(sums / 4).astype(values.dtype) if values.dtype.kind == "u" else (sums / 4).astype(values.dtype)


def _even(values: np.ndarray) -> np.ndarray:
    """With the last row or column repeated where their number is odd."""
    pads = [(0, n % 2) for n in values.shape]
    return np.pad(values, pads, mode="edge") if any(p for _, p in pads) else values


def _add_level(
    group: Any,
    name: str,
    level: int,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: Any,
    planes: int,
    fill: int,
) -> Any:
    from numcodecs import Zstd

    lead = (planes,) if planes else ()
    return group.create_array(
        f"{name}/{level}".lstrip("/"), shape=(*lead, *shape), chunks=(*(1 for _ in lead), *chunk), dtype=dtype,
        fill_value=fill, compressors=[Zstd(level=1)], chunk_key_encoding={"name": "v2", "separator": "/"},
        overwrite=True,
    )  # fmt: skip
