"""One reader per file format: finds pixels, axes and headers without reading the pixels.

The format is known from the first bytes, not from the name.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.image import LazyArray, normalize_unit
from keras_microseg.io import files, hdf5, metadata, sources

_SIGNATURES = {
    b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF", b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"GIF8": "GIF", b"\x89HDF\r\n\x1a\n": "HDF5", b"\x93NUMPY": "NumPy",
}  # fmt: skip


@dataclasses.dataclass
class Opened:
    """What a format's reader finds: pixels, their axes and the headers."""

    data: LazyArray
    axes: str
    found: metadata.HeaderFacts
    palette: np.ndarray | None = None
    white_is_zero: bool = False


def guess_axes(shape: Sequence[int], path: Any = "array") -> str:
    """Axes of a bare array: 2-D `YX`; 3-D `YXC` when the last axis is at most 4, else `ZYX`; 4-D `TZYX` or `ZYXC`."""
    has_channels = len(shape) > 2 and shape[-1] <= 4 < min(shape[-3:-1])
    axes = {2: "YX", 3: "YXC" if has_channels else "ZYX", 4: "ZYXC" if has_channels else "TZYX"}.get(len(shape))
    if axes is None:
        raise FileError(path, f"an array of {len(shape)} axes is not an image.", "2 to 4 axes can be read.")
    return axes


def kind_of(path: Path) -> str:
    """The format, told by the first bytes."""
    if files.is_zarr(path):
        return "Zarr"
    if path.is_dir():
        raise FileError(path, "is a folder, not an image.", "Name a file, or use find_images for the files in it.")
    with sources.reading(path):
        with open(path, "rb") as file:
            head = file.read(1024)
    if not head:
        raise FileError(path, "is empty (0 bytes).", "Copy or export the file again.")
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature) and (signature != b"BM" or len(head) > 26):
            return kind
    is_text = not any(byte < 9 or 13 < byte < 27 for byte in head)
    looks = "It looks like text." if is_text else "Its content is of an unknown format."
    remedy = f"Save it as {'TIFF, PNG or another image format'}; known are TIFF, PNG, JPEG, BMP, GIF, HDF5, Zarr, .npy."
    raise FileError(path, f"is not an image. {looks}", remedy)


def _open_tiff(path: str, *, series: int, dataset: str | None) -> Opened:
    import tifffile

    with sources.tifffile_messages() as messages, tifffile.TiffFile(path) as tif:
        number = len(tif.series)
        if not number:
            raise FileError(path, "holds no image.", "Copy or export the file again.")
        check_number("series", series, minimum=0, maximum=number - 1, integer=True)
        chosen = tif.series[series]
        shape, axes = _shape_and_axes(chosen)
        page = chosen.keyframe
        if chosen.dtype is None:
            raise FileError(path, "has pixels of an unknown type.", "Save it as 8, 16 or 32 bit TIFF.")
        _check_complete(path, chosen, tif)
        found = metadata.tiff_facts(tif, series)
        is_mapped = chosen.dataoffset is not None and not getattr(chosen, "is_multifile", False)
        is_plain = shape[len(shape) - len(page.shape) :] == tuple(page.shape)
        pages = int(np.prod(shape[: len(shape) - len(page.shape)], dtype=np.int64)) if is_plain else -1
        dtype = np.dtype(chosen.dtype)
        if is_mapped:
            data: LazyArray = sources.MappedFile(path, chosen.dataoffset, dtype.newbyteorder(tif.byteorder), shape)
        elif is_plain and pages == len(chosen) and not getattr(chosen, "is_multifile", False):
            data = sources.TiffSegments(path, series, shape, dtype)
        else:
            decode = functools.partial(sources.decode_tiff_series, series=series, shape=shape)
            data = sources.DecodedFile(path, decode, shape, dtype.newbyteorder("="))
        palette = page.colormap if page.photometric == 3 else None
        if {"S", "C"} & set(axes):
            extra = page.extrasamples
            found.facts["alpha"] = bool(extra) and (page.photometric == 2 or extra[-1] in (1, 2))
        if page.compression not in (None, 1):
            found.facts["compression"] = getattr(page.compression, "name", str(page.compression)).lower()
        if int(page.tags.valueof(274, default=1)) != 1:
            found.warnings.append("the header asks to turn the image; it is read as stored")
        if number > 1:
            found.facts["series"] = f"{series} of 0..{number - 1}"
        found.warnings += [f"TIFF header: {message}" for message in messages]
        description = tif.imagej_metadata or {}
        if "Info" in description:
            found.facts["info"] = str(description["Info"])
        return Opened(data, axes, found, palette, white_is_zero=page.photometric == 0)


def _shape_and_axes(series: Any) -> tuple[tuple[int, ...], str]:
    """Of a TIFF series, with axes of length 1 where this version of tifffile tells them."""
    if hasattr(series, "get_shape"):
        return tuple(series.get_shape(False)), series.get_axes(False)
    return tuple(series.shape), series.axes


def _check_complete(path: str, series: Any, tif: Any) -> None:
    """Refuse a TIFF whose pixels do not lie inside the file."""
    size = tif.filehandle.size
    end = 0
    if series.dataoffset is not None:
        end = series.dataoffset + math.prod(series.shape) * np.dtype(series.dtype).itemsize
    elif not getattr(series, "is_multifile", False):
        for page in series.pages:
            if page is not None and page.dataoffsets:
                end = max(end, max(map(sum, zip(page.dataoffsets, page.databytecounts, strict=False))))
    if end > size:
        raise FileError(
            path, f"is truncated: its pixels end at byte {end}, the file at {size}.", "Copy or export the file again."
        )


def _open_with_pillow(path: str, *, series: int, dataset: str | None) -> Opened:
    with _pillow(path) as opened:
        mode, (width, height) = opened.mode, opened.size
        frames = getattr(opened, "n_frames", 1) if opened.format != "MPO" else 1
        info, palette = dict(opened.info), None
        deep = _png_depth(path) == 16 and mode not in ("I;16", "I;16B", "I")
        if frames == 1 and mode == "P" and not deep:
            flat = np.array(opened.getpalette("RGB"), np.uint8).reshape(-1, 3)
            palette = flat.T.astype(np.uint16) * 257
    channels, dtype = _PILLOW_TYPES.get(mode, (3, np.uint8))
    if frames > 1:
        channels, dtype = 3, np.uint8
    if deep:
        channels, dtype = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode], np.uint16
    shape = ((frames,) if frames > 1 else ()) + (height, width) + ((channels,) if channels > 1 else ())
    axes = ("T" if frames > 1 else "") + "YX" + ("C" if channels > 1 else "")
    found = metadata.HeaderFacts()
    if channels > 1:
        found.facts["alpha"] = channels in (2, 4)
    dpi = info.get("dpi")
    if dpi and len(dpi) == 2:
        found.merge(metadata.resolution_facts(float(dpi[1]), float(dpi[0]), "inch", "resolution in the file header"))
    decode = functools.partial(_decode_picture, frames=frames, deep=deep)
    return Opened(sources.DecodedFile(path, decode, shape, dtype), axes, found, palette)


_PILLOW_TYPES = {
    "1": (1, bool), "L": (1, np.uint8), "P": (1, np.uint8), "I;16": (1, np.uint16), "I;16B": (1, np.uint16),
    "I": (1, np.int32), "F": (1, np.float32), "LA": (2, np.uint8), "RGB": (3, np.uint8), "RGBA": (4, np.uint8),
    "PA": (4, np.uint8), "RGBX": (3, np.uint8),
}  # fmt: skip


def _decode_picture(path: str, frames: int, deep: bool) -> np.ndarray:
    """All pixels of a PNG, JPEG, BMP or GIF."""
    if deep:  # Pillow would squeeze 16-bit colour to 8 bits
        import imagecodecs

        return imagecodecs.png_decode(Path(path).read_bytes())
    with _pillow(path) as opened:
        if frames > 1:
            pictures = []
            for frame in range(frames):
                opened.seek(frame)
                pictures.append(np.asarray(opened.convert("RGB")))
            return np.stack(pictures)
        opened.load()
        kind = "RGBA" if opened.mode == "PA" else opened.mode if opened.mode in _PILLOW_TYPES else "RGB"
        kind = "RGB" if kind == "RGBX" else kind
        picture = opened if kind == opened.mode else opened.convert(kind)
        array = np.asarray(picture)
        return array.astype(array.dtype.newbyteorder("="), copy=False)


@contextlib.contextmanager
def _pillow(path: str) -> Iterator[Any]:
    """An open `PIL.Image` without the limit on size (micrographs are not decompression bombs)."""
    import PIL.Image

    limit = PIL.Image.MAX_IMAGE_PIXELS
    PIL.Image.MAX_IMAGE_PIXELS = None
    try:
        with PIL.Image.open(path) as opened:
            yield opened
    finally:
        PIL.Image.MAX_IMAGE_PIXELS = limit


def _png_depth(path: str) -> int:
    """Bits per channel of a PNG, 0 for other formats."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head[24] if head.startswith(b"\x89PNG") and len(head) == 26 else 0


def _open_numpy(path: str, *, series: int, dataset: str | None) -> Opened:
    with open(path, "rb") as file:
        version = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        offset = file.tell()
    if dtype.hasobject:
        raise FileError(path, "holds Python objects, not pixels.", "Save a plain numeric array.")
    if offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize > os.path.getsize(path):
        raise FileError(path, "is truncated.", "Copy or save the file again.")
    axes = guess_axes(shape, path)
    data: LazyArray = sources.MappedFile(path, offset, dtype, shape[::-1] if is_fortran else shape)
    if is_fortran:
        data = sources.Transposed(data, range(len(shape))[::-1])
    return Opened(data, axes, metadata.HeaderFacts())


def _open_hdf5(path: str, *, series: int, dataset: str | None) -> Opened:
    import h5py

    with h5py.File(path, "r") as file:
        names: list[str] = []
        if dataset is None:
            file.visititems(lambda name, item: names.append(name) if _is_picture(item, h5py.Dataset) else None)
        elif dataset in file and isinstance(file[dataset], h5py.Dataset):
            names = [dataset]
        if len(names) > 1:
            names = hdf5.default_datasets(file, names) or names
        name = _only(names, dataset, path)
        array = file[name]
        found = hdf5.facts(file, array)
        return Opened(
            sources.Hdf5Dataset(path, name, array.shape, array.dtype, array.chunks),
            guess_axes(array.shape, path),
            found,
        )


def _is_picture(item: Any, kind: type) -> bool:
    return isinstance(item, kind) and 2 <= len(item.shape) <= 4 and item.dtype.kind in "buif"


def _only(names: list[str], asked: str | None, path: str) -> str:
    """The one array of a file, or an error that lists the choice."""
    if len(names) == 1:
        return names[0]
    if asked is not None:
        raise FileError(path, f"has no dataset {asked!r}.", "Open it without `dataset` to see the names.")
    if not names:
        raise FileError(path, "holds no array of 2 to 4 axes.", "Check the file.")
    raise FileError(path, f"holds several arrays: {', '.join(names[:20])}.", f"Choose one, e.g. dataset={names[0]!r}.")


def _open_zarr(path: str, *, series: int, dataset: str | None) -> Opened:
    import zarr

    opened, found, axes, name = zarr.open(path, mode="r"), metadata.HeaderFacts(), None, ""
    if isinstance(opened, zarr.Group):
        scales = dict(opened.attrs.get("ome", opened.attrs)).get("multiscales")
        if scales and dataset is None:
            first = scales[0]["datasets"][0]
            name = first["path"]
            named = [axis if isinstance(axis, dict) else {"name": axis} for axis in scales[0].get("axes", [])]
            axes = "".join(str(axis["name"])[:1].upper() for axis in named) or None
            found.facts.update({"alpha": False} if axes and "C" in axes else {})
            for step in first.get("coordinateTransformations", []):
                spatial = [i for i, axis in enumerate(named) if str(axis["name"]).lower() in "zyx"]
                if step.get("type") == "scale" and spatial:
                    with contextlib.suppress(UserError):
                        unit = normalize_unit(named[spatial[-1]].get("unit", "px"))
                        sizes = [step["scale"][i] for i in spatial]
                        found.add_size(sizes, unit, "OME-Zarr, coordinateTransformations")
        elif dataset is None:
            name = _only([key for key, item in opened.members(None) if _is_picture(item, zarr.Array)], None, path)
        else:
            name = dataset if dataset in opened else _only([], dataset, path)
        found.facts["dataset"] = name
    array = opened[name] if name else opened
    if not isinstance(array, zarr.Array):
        raise FileError(path, f"{name!r} is a group, not an array.", "Name one of its arrays with `dataset`.")
    data = sources.ZarrArray(path, name, array.shape, array.dtype, array.chunks)
    return Opened(data, axes or guess_axes(array.shape, path), found)


OPENERS: dict[str, Callable[..., Opened]] = {
    "TIFF": _open_tiff, "PNG": _open_with_pillow, "JPEG": _open_with_pillow, "BMP": _open_with_pillow,
    "GIF": _open_with_pillow, "HDF5": _open_hdf5, "Zarr": _open_zarr, "NumPy": _open_numpy,
}  # fmt: skip
