"""Micrographs of any size: an image file, or raw pixels with a header beside them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from keras_microseg.checks import FileError
from keras_microseg.image import Image, PixelSize
from keras_microseg.io.images import open_image
from keras_microseg.io.raw_volumes import DATA_SUFFIXES, open_raw


def open_micrograph(
    path: str | os.PathLike, pixel_size: str | None = None, *, grey: bool = False, sized: bool = False
) -> Image:
    """One micrograph, opened lazily.

    Args:
        path: image file, or raw pixels with a header beside them.
        pixel_size: like "0.3um", instead of that of the file; "px" waives it.
        grey: refuse colours.
        sized: refuse an image without a pixel size that was not waived.

    Returns:
        With the axes `YX`, or `YXC` unless `grey`.

    Raises:
        FileError: not a single image, colours, no pixel size; what to do stands in the message.
        UserError: `pixel_size` is no length.
    """
    asked = None if pixel_size in (None, "px") else PixelSize.parse(pixel_size)
    image = next(open_raw(path).planes()) if Path(path).suffix.lower() in DATA_SUFFIXES else open_image(path)
    kind = f"(axes {image.axes}, {image.dtype})"
    if grey and image.axes == "YXC":
        raise FileError(path, f"is no grey image {kind}.", "Save it as grey, 8 or 16 bits.")
    if image.axes not in ("YX", "YXC") or image.dtype.kind not in "uf":
        raise FileError(path, f"is no single image {kind}.", "Save planes as files, in grey of 8 or 16 bits.")
    if pixel_size is not None:
        return dataclasses.replace(image, pixel_size=asked)
    if sized and image.pixel_size is None:
        raise FileError(
            path, "does not tell its pixel size.",
            "Pass it, like 0.3um (--pixel-size), or 'px' to measure in pixels on purpose.",
        )  # fmt: skip
    return image
