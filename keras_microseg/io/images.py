"""Opening images of many formats lazily, and writing them.

Pixels keep their stored type (8 to 64 bits, integer or float); nothing is scaled. Axes come out as `T Z Y X C`,
channels last.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import FileError, UserError
from keras_microseg.image import Image, LazyArray, PixelSize
from keras_microseg.io import files, formats, metadata, sources
from keras_microseg.io.units import imagej_unit

RARE_COLOUR = 0.01
"""Largest share of pixels that may use coloured entries of a grey palette (marks drawn by the microscope)."""


def open_image(
    path: str | os.PathLike,
    *,
    series: int = 0,
    dataset: str | None = None,
    pixel_size: PixelSize | str | Sequence[float] | None = None,
    axes: str | None = None,
    raw_palette: bool = False,
    keep_inverted: bool = False,
) -> Image:
    """Open an image without reading its pixels.

    TIFF (8/16/32/64-bit integer and float, palette, RGB(A), tiled, multi-page, BigTIFF, ImageJ, OME), HDF5, Zarr
    (OME-Zarr), `.npy`: read by window. PNG, JPEG, BMP, GIF: decoded whole at the first read.

    A palette that is a grey ramp gives the stored index as grey value; entries of another colour that hardly any pixel
    uses (marks drawn by the microscope) become their mean. Other grey palettes give their grey value, colour palettes
    RGB. Grey values stored with 0 as white are inverted.

    Args:
        path: the file, or the folder of a Zarr array.
        series: which series of a TIFF.
        dataset: name of the array inside an HDF5 file or a Zarr group; needed when there are several.
        pixel_size: size to use instead of what the header says, for example `"1.2nm"`.
        axes: one letter per stored axis (out of `TZYXC`) instead of what the header says or the shape suggests.
        raw_palette: give the stored indices of a palette (label images).
        keep_inverted: give values stored with 0 as white as they are stored (volumes, where numbers matter).

    Returns:
        An `Image` with lazy data; `metadata` holds `format`, instrument facts and `warnings`.

    Raises:
        FileError: missing, unreadable, truncated or of an unknown format.
    """
    path = Path(path)
    kind = formats.kind_of(path)
    with sources.reading(path):
        opened = formats.OPENERS[kind](str(path), series=series, dataset=dataset)
        _drop_single_axes(opened)
        if axes is not None:
            _rename_axes(opened, axes.upper(), path)
        _canonical_axes(opened, path)
        _check_type(opened, path)
        _resolve_palette(opened, raw_palette)
        if opened.white_is_zero and keep_inverted:
            opened.found.facts["inverted"] = "no: the header calls 0 white, the values are as stored"
        elif opened.white_is_zero and opened.data.dtype.kind in "ub":
            opened.data = sources.Inverted(opened.data)
            opened.found.facts["inverted"] = "stored with 0 as white"
    shape = dict(zip(opened.axes, opened.data.shape, strict=False))
    opened.found.merge(metadata.sidecar_facts(path, shape["Y"]))
    ndim = sum(letter in "ZYX" for letter in opened.axes)
    given = None if pixel_size is None else PixelSize.parse(pixel_size, ndim=ndim)
    if given is not None:
        if len(given.size) != ndim:
            raise UserError(f"`pixel_size` of {path.name} needs {ndim} numbers. Received: pixel_size={pixel_size!r}")
        opened.found.sizes.insert(0, given)
    size, facts = metadata.choose_pixel_size(opened.found, ndim)
    return Image(opened.data, opened.axes, size, str(path), metadata={"format": kind, **facts})


def read_grey(image: Image, window: tuple[slice, ...] | None = None) -> np.ndarray:
    """Grey values of a single image.

    Args:
        image: axes `YX` or `YXC` (other axes of length 1 are dropped; use `Image.planes` for stacks).
        window: one slice per spatial axis; None = all.

    Returns:
        (height, width) array: the stored type for grey images (bool becomes uint8); float32 mean of the channels for
        colour, without alpha. NaN and infinity are kept.

    Raises:
        UserError: the image is a stack.
    """
    array = image.read(window)
    lengths = zip(image.axes, array.shape, strict=True)
    stacked = [f"{letter} ({n})" for letter, n in lengths if letter in "TZ" and n != 1]
    if stacked:
        raise UserError(f"{image.name}: a single image is needed, this is a stack along {', '.join(stacked)}.")
    array = array.squeeze(tuple(axis for axis, letter in enumerate(image.axes) if letter in "TZ"))
    if "C" in image.axes:
        has_alpha = image.metadata.get("alpha", array.shape[-1] == 4)
        colours = array[..., :-1] if has_alpha and array.shape[-1] > 1 else array
        array = colours[..., 0] if colours.shape[-1] == 1 else colours.mean(axis=-1, dtype=np.float32)
    return array.astype(np.uint8) if array.dtype == bool else array


def write_image(
    path: str | os.PathLike, array: np.ndarray, *, axes: str | None = None, pixel_size: PixelSize | None = None
) -> None:
    """Write pixels with their size; the name's ending chooses `.tif`, `.png` (8 or 16 bit) or `.npy`.

    TIFF files carry the pixel size the way ImageJ reads it; PNG as pixels per metre; `.npy` not at all.

    Args:
        path: the new file. An old one is replaced when the new one is complete.
        array: pixels, any NumPy type TIFF knows.
        axes: letters of `TZYXC` per axis; None = `YX`, `YXC` (last axis 3 or 4) or `ZYX`.
        pixel_size: edge lengths of the spatial axes.

    Raises:
        FileError: unwritable output or full disk.
        UserError: an ending or data type that cannot be written.
    """
    path, array = Path(path), np.asarray(array)
    axes = formats.guess_axes(array.shape, path) if axes is None else axes
    if len(axes) != array.ndim:
        raise UserError(f"`axes` must name every axis. Received: axes={axes!r} for shape {array.shape}")
    suffix = path.suffix.lower()
    if suffix in (".tif", ".tiff"):
        write_tiff(path, array, axes, pixel_size)
    elif suffix == ".npy":
        with files.atomic_path(path) as temporary:
            np.save(temporary, array)
    elif suffix == ".png":
        if array.dtype == bool:
            array = array.astype(np.uint8) * 255
        if axes not in ("YX", "YXC") or array.dtype not in (np.uint8, np.uint16) or array.shape[-1] == 0:
            raise UserError(
                f"{path.name}: PNG holds 8 or 16 bit images of one plane. Use the ending .tif. "
                f"Received: {array.dtype} {axes}"
            )
        import imagecodecs

        data = bytearray(imagecodecs.png_encode(array, out=array.nbytes + array.nbytes // 64 + 8 * len(array) + 1024))
        if pixel_size is not None:
            data = _with_png_size(data, pixel_size)
        with files.atomic_path(path) as temporary:
            temporary.write_bytes(data)
    else:
        raise UserError(f"{path.name}: cannot write this kind of image. Use an ending out of .tif, .png, .npy.")


def write_tiff(
    path: Path, array: np.ndarray, axes: str, pixel_size: PixelSize | None, *, info: str = "", compress: bool = False
) -> None:
    """Write a TIFF that Fiji opens with its pixel size.

    Types ImageJ does not have (32-bit integers, 64-bit floats) are written as ordinary TIFF with the same description.

    Args:
        path: the new file.
        array: pixels; a lazy array is written in bands, uncompressed (for what does not fit into memory).
        axes: letters of `TZYXC`, one per axis.
        pixel_size: edge lengths of the spatial axes, or None.
        info: text for the image's info window in ImageJ.
        compress: deflate the pixels (label images shrink about 50 times).
    """
    import tifffile

    is_lazy = isinstance(array, LazyArray)
    array = array.astype(np.uint8) * 255 if array.dtype == bool else array
    array = array.astype(np.float32) if array.dtype == np.float16 else array
    if array.dtype.kind not in "uif":
        raise UserError(f"{path.name}: TIFF cannot hold the data type {array.dtype}.")
    if axes == "ZYX" and array.shape[0] == 1 and not is_lazy:
        array, axes = array[0], "YX"  # readers take a stack of one slice, one pixel wide, for something else
    is_rgb = axes.endswith("YXC") and array.shape[-1] in (3, 4) and array.dtype.kind == "u"
    header: dict[str, Any] = {}
    resolution = None
    if pixel_size is not None:
        header["unit"] = imagej_unit(pixel_size.unit)
        resolution = (1 / pixel_size.size[-1], 1 / pixel_size.size[-2])
        if len(pixel_size.size) == 3:
            header["spacing"] = pixel_size.size[0]
    if info:
        header["Info"] = info
    options: dict[str, Any] = {"resolution": resolution, "photometric": "rgb" if is_rgb else "minisblack"}
    if compress and axes == "YX" and not is_lazy:
        options["compression"] = "zlib"
    is_imagej = (
        array.dtype in (np.uint8, np.uint16, np.float32) and array.nbytes < 2**31
        and (is_rgb or "C" not in axes) and (not is_rgb or array.dtype == np.uint8)
        and (is_rgb or array.ndim == 2 or array.shape[-1] > 1)  # columns of one pixel are read back as something else
    )  # fmt: skip
    with files.atomic_path(path) as temporary:
        if is_lazy:
            _write_bands(temporary, array, info, header, is_imagej, options)
            return
        if is_imagej:
            tifffile.imwrite(
                temporary, array.astype(array.dtype.newbyteorder("="), copy=False), imagej=True,
                metadata={"axes": axes.replace("C", "S"), **header}, **options,
            )  # fmt: skip
            return
        lines = ["ImageJ=1.54f"] + [f"{key}={value}" for key, value in header.items() if key != "Info"]
        if len(axes) == 3 and not is_rgb:
            lines[1:1] = [f"images={len(array)}", f"{'frames' if axes[0] == 'T' else 'slices'}={len(array)}"]
        extra = [_imagej_info_tag(info)] if info else []
        has_stacks = axes.strip("TZ") in ("YX", "YXC")
        description = "\n".join(lines) + "\n" if has_stacks and array.ndim <= 3 else None
        tifffile.imwrite(
            temporary, array, description=description, metadata=None if description else {"axes": axes},
            extratags=[tag for tags in extra for tag in tags], bigtiff=array.nbytes > 2**32 - 2**25, **options,
        )  # fmt: skip


def _write_bands(
    path: Path, array: LazyArray, info: str, header: dict[str, Any], is_imagej: bool, options: dict[str, Any]
) -> None:
    """Write a two-dimensional lazy array as one uncompressed block, a band of rows at a time."""
    import tifffile

    if is_imagej:
        described = {"imagej": True, "metadata": {"axes": "YX", **header}}
    else:
        lines = ["ImageJ=1.54f"] + [f"{key}={value}" for key, value in header.items() if key != "Info"]
        tags = _imagej_info_tag(info) if info else []
        described = {"description": "\n".join(lines) + "\n", "metadata": None, "extratags": tags}
        described["bigtiff"] = array.nbytes > 2**32 - 2**25
    stored = array.dtype.newbyteorder("<")
    offset, _ = tifffile.imwrite(
        path, shape=array.shape, dtype=array.dtype, byteorder="<", returnoffset=True, **described, **options
    )
    rows = max(1, 2**24 // array.shape[1])
    with open(path, "r+b") as file:
        file.seek(offset)
        for first in range(0, array.shape[0], rows):
            file.write(np.ascontiguousarray(array[first : first + rows], stored).tobytes())


def _imagej_info_tag(info: str) -> list[tuple]:
    """The tags in which ImageJ keeps the text of an image's info window."""
    import tifffile

    return list(tifffile.tifffile.imagej_metadata_tag({"Info": info}, "<"))


def _with_png_size(data: bytearray, pixel_size: PixelSize) -> bytearray:
    """Insert a pHYs chunk (pixels per metre) behind the PNG header."""
    import struct
    import zlib

    size = pixel_size.to("m").size
    per_metre = [round(1 / value) for value in (size[-1], size[-2])]
    if max(per_metre) >= 2**32 or min(per_metre) < 1:  # below 0.23 nm the number does not fit
        return data
    body = b"pHYs" + struct.pack(">IIB", *per_metre, 1)
    chunk = struct.pack(">I", 9) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunk + data[33:]


# ------------------------------------------------------------------------------------------- to our axes and colours


def _drop_single_axes(opened: formats.Opened) -> None:
    """Leave out axes of length 1 that are neither Y nor X."""
    lengths = opened.data.shape
    order = [i for i, letter in enumerate(opened.axes.upper()) if letter in "YX" or lengths[i] != 1]
    if len(order) < len(lengths):
        opened.data = sources.Transposed(opened.data, order)
        opened.axes = "".join(opened.axes[i] for i in order)


def _rename_axes(opened: formats.Opened, axes: str, path: Path) -> None:
    """Take the user's word for what the axes are."""
    if len(set(axes)) != len(axes) or len(axes) != len(opened.axes) or not {"Y", "X"} <= set(axes) <= set("TZYXC"):
        raise UserError(
            f"`axes` must name each of the {len(opened.axes)} axes of {path.name}, shape {opened.data.shape}, once, "
            f"with letters of TZYXC. Received: axes={axes!r}"
        )
    opened.axes = axes


def _canonical_axes(opened: formats.Opened, path: Path) -> None:
    """Rename, reorder and drop axes until they are a selection of `TZYXC` in this order."""
    shape, letters = opened.data.shape, list(opened.axes.upper())
    if 0 in shape:
        raise FileError(path, f"holds no pixel (shape {shape}).", "Export the file again.")
    if "S" in letters:  # samples of a pixel are its channels; a second channel axis only when it has length 1
        if "C" in letters and shape[letters.index("C")] > 1:
            raise FileError(path, "has channels of colour images.", "Save the channels as grey images.")
        letters = ["q" if letter == "C" else "C" if letter == "S" else letter for letter in letters]
    for axis, letter in enumerate(letters):
        if letter not in "TZYXC" and shape[axis] > 1:
            free = [other for other in "TZC" if other not in letters or shape[letters.index(other)] == 1]
            if not free:
                raise FileError(path, f"has too many axes ({opened.axes}, {shape}).", "Save single images or stacks.")
            if free[0] in letters:
                letters[letters.index(free[0])] = "q"
            letters[axis] = free[0]
    if not {"Y", "X"} <= set(letters):
        raise FileError(path, f"has no image axes (found {opened.axes}).", "Pass axes=, for example 'ZYX'.")
    order = [
        letters.index(letter) for letter in "TZYXC"
        if letter in letters and (letter in "YX" or shape[letters.index(letter)] > 1)
    ]  # fmt: skip
    if order != list(range(len(shape))):
        opened.data = sources.Transposed(opened.data, order)
    opened.axes = "".join(letters[axis] for axis in order)


def _check_type(opened: formats.Opened, path: Path) -> None:
    if opened.data.dtype.kind not in "buif":
        raise FileError(path, f"has pixels of type {opened.data.dtype}.", "Save integers or real numbers.")


def _resolve_palette(opened: formats.Opened, raw: bool) -> None:
    """Replace palette indices by grey values or colours, as `open_image` states."""
    if opened.palette is None or raw or opened.axes.endswith("C"):
        return
    table = np.asarray(opened.palette).T  # (N, 3) uint16
    is_grey = (table == table[:, :1]).all(axis=1)
    steps = 65535 // max(len(table) - 1, 1) if len(table) > 1 else 1
    is_ramp = np.abs(table.astype(np.int64) - np.arange(len(table))[:, None] * steps).max(axis=1) <= 256
    if (is_grey & is_ramp).all():
        return
    counts = np.zeros(len(table), np.int64)
    rows = max(1, sources.BLOCK_MEMORY // max(1, opened.data.nbytes // max(1, opened.data.shape[-2])))
    axis = len(opened.data.shape) - 2
    for start in range(0, opened.data.shape[axis], rows):
        block = opened.data[(slice(None),) * axis + (slice(start, start + rows),)]
        counts += np.bincount(np.minimum(block, len(table) - 1).ravel(), minlength=len(table))
    used = counts > 0
    if (is_ramp & is_grey)[used].all() and used.any() and (is_ramp & is_grey).sum() > len(table) // 2:
        return  # grey apart from entries that do not occur
    values = table.astype(np.float64).mean(axis=1)
    is_ramp_mostly = (is_ramp & is_grey).sum() > 0.75 * len(table) and len(table) == 256
    if is_ramp_mostly and counts[~is_grey].sum() <= RARE_COLOUR * counts.sum():
        marked = np.where(is_grey & is_ramp, np.arange(len(table)), np.rint(values / 257)).astype(np.uint8)
        opened.data = sources.LookedUp(opened.data, marked)
        opened.found.facts["palette"] = f"grey, {int(counts[~(is_grey & is_ramp)].sum())} marked pixels resolved"
    elif is_grey[used].all():
        fits = bool((table[used] % 257 == 0).all())
        grey = (table[:, 0] // 257).astype(np.uint8) if fits else table[:, 0].astype(np.uint16)
        opened.data = sources.LookedUp(opened.data, grey)
        opened.found.facts["palette"] = "grey values of the palette"
    else:
        fits = bool((table[used] % 257 == 0).all() or (table[used] % 256 == 0).all())
        colours = (table // 256).astype(np.uint8) if fits else table.astype(np.uint16)
        opened.data = sources.LookedUp(opened.data, colours)
        opened.axes += "C"
        opened.found.facts.update(palette="colour", alpha=False)
