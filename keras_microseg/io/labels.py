"""Label images: one whole number per particle, 0 for background."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import Image, LazyArray, PixelSize
from keras_microseg.io.images import open_image, write_tiff

_NOTE = "keras_microseg labels"


def read_labels(
    path: str | os.PathLike, *, dataset: str | None = None, pixel_size: PixelSize | str | None = None
) -> Image:
    """Read a label image or a mask as instance labels.

    Images with one single value besides 0 (boolean, 0/1, 0/255) are masks: their connected parts, 4-connected in the
    plane and 6-connected in volumes, are numbered. JPEG masks are cut at half of full scale first. Label images keep
    their numbers, gaps included; palette files give their indices.

    Args:
        path: TIFF, PNG, HDF5, Zarr, `.npy` or any other format of `open_image`.
        dataset: name of the array in HDF5 and Zarr files.
        pixel_size: size to use instead of what the header says.

    Returns:
        `Image` of axes `YX` or `ZYX` with int32 data; origin and notes as written by `write_labels`.

    Raises:
        FileError: colours, fractions, NaN, negative or too large numbers: no labels.
    """
    image = open_image(path, dataset=dataset, pixel_size=pixel_size, raw_palette=True)
    array = image.read()
    axes = image.axes
    if axes.endswith("C"):
        colours = array[..., : array.shape[-1] - int(image.metadata.get("alpha", False))]
        if not (colours == colours[..., :1]).all():
            raise FileError(
                image.path, "is a colour image, not a label image.", "Save labels as grey values, one number each."
            )
        array, axes = colours[..., 0], axes[:-1]
    if "T" in axes:  # pages of unknown meaning
        axes = axes.replace("T", "Z") if "Z" not in axes else axes
        if len(axes) > 3:
            raise FileError(image.path, f"has axes {image.axes}.", "Save one label image per file.")
    if image.metadata["format"] == "JPEG":
        array = array >= 128
    note = _read_note(image.metadata.get("info", ""))
    labels = _as_labels(array, image.path)
    if note is None and is_mask(labels):
        labels = _label(labels)
    note = note or {}
    origin = tuple(note.get("first_pixel", ())) or (0,) * len(axes)
    size = image.pixel_size if image.pixel_size is None or len(image.pixel_size.size) == len(axes) else None
    facts = {**image.metadata, **({"origin": note["origin"]} if "origin" in note else {})}
    if size is not None and note.get("pixel_size_source") and size.source.startswith("ImageJ header"):
        size = PixelSize(size.size, size.unit, str(note["pixel_size_source"]))
    if len(origin) != len(axes):
        raise FileError(image.path, f"has a damaged note: first_pixel {origin}.", "Write the labels again.")
    return Image(labels, axes, size, image.path, origin, facts)


def write_labels(
    path: str | os.PathLike,
    labels: np.ndarray,
    *,
    pixel_size: PixelSize | None = None,
    origin: Mapping[str, Any] | Sequence[int] | str | None = None,
) -> None:
    """Write instance labels as a TIFF that Fiji opens with its pixel size.

    uint16 up to 65,535 labels, int32 above; deflated when two-dimensional.

    Args:
        path: name ending in `.tif` or `.tiff`.
        labels: (Y, X) or (Z, Y, X) whole numbers, 0 = background; a lazy (Y, X) array is written in bands.
        pixel_size: edge lengths, noted in the ImageJ header together with where they come from.
        origin: where the labels come from: facts (method, settings, source image; JSON values) or text; or the index
            of the first pixel in the source image as a sequence of whole numbers. `{"first_pixel": [y, x]}` among the
            facts is read back as `Image.origin`.

    Raises:
        FileError: unwritable output, full disk.
        UserError: not labels, or not a TIFF name.
    """
    path = Path(path)
    labels = labels if isinstance(labels, LazyArray) else np.asarray(labels)
    if path.suffix.lower() not in (".tif", ".tiff"):
        raise UserError(f"{path.name}: label images are written as TIFF. Use the ending .tif.")
    if labels.ndim not in (2, 3) or labels.size == 0:
        raise UserError(f"`labels` must have axes YX or ZYX and at least one pixel. Received: shape {labels.shape}")
    if labels.dtype == bool:
        labels = labels.astype(np.uint8)
    low, high = (0, 0) if labels.dtype.kind not in "ui" else _range(labels)
    if labels.dtype.kind not in "ui" or low < 0 or high >= 2**31:
        raise UserError(f"`labels` must be whole numbers from 0 to {2**31 - 1}. Received: {labels.dtype}")
    note: dict[str, Any] = {}
    if isinstance(origin, str):
        note["origin"] = origin
    elif isinstance(origin, Mapping):
        note["origin"] = {key: value for key, value in origin.items() if key != "first_pixel"}
        if "first_pixel" in origin:
            note["first_pixel"] = [int(value) for value in origin["first_pixel"]]
    elif origin is not None:
        note["first_pixel"] = [int(value) for value in origin]
    if "first_pixel" in note and len(note["first_pixel"]) != labels.ndim:
        raise UserError(f"`origin` needs {labels.ndim} whole numbers. Received: origin={origin!r}")
    if pixel_size is not None:
        note["pixel_size_source"] = pixel_size.source
    info = f"{_NOTE}\n{json.dumps(note, default=str)}"
    kind = np.uint16 if high < 2**16 else np.int32
    stored = _Cast(labels, kind) if isinstance(labels, LazyArray) else labels.astype(kind)
    write_tiff(path, stored, "ZYX"[-labels.ndim :], pixel_size, info=info, compress=True)


class _Cast(LazyArray):
    """A lazy array in another data type."""

    def __init__(self, source: LazyArray, dtype: Any):
        self.source, self.shape, self.dtype = source, source.shape, np.dtype(dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return self.source[block].astype(self.dtype)


def _range(labels: Any) -> tuple[int, int]:
    """Smallest and largest value, read in bands."""
    rows = max(1, 2**24 // max(1, math.prod(labels.shape[1:])))
    bands = (labels[first : first + rows] for first in range(0, labels.shape[0], rows))
    limits = [(int(band.min()), int(band.max())) for band in bands]
    return min(low for low, _ in limits), max(high for _, high in limits)


def is_mask(labels: np.ndarray) -> bool:
    """True when only one value besides 0 occurs."""
    top = labels.max(initial=0)
    return bool(top > 0 and np.logical_or(labels == 0, labels == top).all())


def _label(mask: np.ndarray) -> np.ndarray:
    """Number the parts of a mask that touch by an edge (a face in volumes)."""
    from scipy import ndimage

    return ndimage.label(mask)[0].astype(np.int32, copy=False)


def _as_labels(array: np.ndarray, path: Any) -> np.ndarray:
    """The numbers as int32, or an error that says why they are no labels."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.rint(array)).any():
            raise FileError(path, "has fractions or NaN, so it is not a label image.", "Save labels as whole numbers.")
    if array.size and (array.min() < 0 or array.max() >= 2**31):
        raise FileError(path, f"has numbers outside 0..{2**31 - 1}.", "Number the particles from 1 on.")
    return array.astype(np.int32)


def _read_note(info: str) -> dict[str, Any] | None:
    """The note of `write_labels`, or None."""
    title, _, text = info.partition("\n")
    if title != _NOTE:
        return None
    try:
        return dict(json.loads(text))
    except ValueError:
        return {}
