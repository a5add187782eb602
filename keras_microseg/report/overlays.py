"""Overlays: particle outlines in colour and a scale bar, drawn into the image pixel by pixel (no plotting library)."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from typing import Any

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

from keras_microseg import intensity, io
from keras_microseg.checks import UserError, check_number
from keras_microseg.image import METRES, PixelSize

# Vivid, far apart in hue, and all of similar lightness, so that they stand out on any grey.
PALETTE = np.array(
    [
        (255, 196, 0), (0, 200, 255), (255, 92, 138), (120, 220, 60), (255, 128, 20), (150, 130, 255),
        (0, 224, 160), (255, 110, 255), (210, 230, 40), (70, 160, 255), (255, 84, 66), (64, 224, 224),
    ],
    np.uint8,
)  # fmt: skip
MAX_OVERLAY_PIXELS = 40_000_000
_UNITS = ("pm", "nm", "um", "mm", "m")


@dataclasses.dataclass(frozen=True)
class ScaleBar:
    """A bar of round length.

    Attributes:
        pixels: width in the image, float.
        text: its length with unit, for example `"200 nm"`; `"100 px"` when the pixel size is unknown.
    """

    pixels: float
    text: str


def to_grey8(image: np.ndarray, limits: tuple[float, float] | None = None) -> np.ndarray:
    """Contrast-stretched 8-bit picture of a grey image, for showing only.

    Args:
        image: (Y, X) number array; non-finite pixels become black.
        limits: values shown as black and white; default the 0.5 and 99.5 percentiles.

    Returns:
        (Y, X) uint8 array.
    """
    limits = intensity.percentile_limits(image) if limits is None else limits
    return np.round(np.asarray(intensity.stretch(image, limits)) * 255).astype(np.uint8)


def particle_colors(labels: np.ndarray) -> np.ndarray:
    """Palette index of every label; particles that touch or nearly touch differ wherever possible.

    Args:
        labels: (Y, X) int array, 0 = background.

    Returns:
        (max label + 1,) intp array of indices into `PALETTE`.
    """
    count = int(labels.max(initial=0)) + 1
    present = np.unique(labels)
    colors = np.zeros(count, np.intp)
    colors[present] = np.arange(len(present)) * 5 % len(PALETTE)
    earlier: dict[int, list[int]] = {}
    for first, second in _neighbour_pairs(labels).tolist():
        earlier.setdefault(second, []).append(first)
    for label in sorted(earlier):
        used = {int(colors[other]) for other in earlier[label]}
        options = ((colors[label] + step) % len(PALETTE) for step in range(len(PALETTE)))
        colors[label] = next((option for option in options if option not in used), colors[label])
    return colors


def outline_layer(labels: np.ndarray, *, width: int | None = None, colors: np.ndarray | None = None) -> np.ndarray:
    """Outlines on a transparent ground: a coloured line just inside every particle and a dark edge around it.

    Args:
        labels: (Y, X) int array, 0 = background.
        width: thickness of the coloured line in pixels; default one per 900 pixels of image size.
        colors: palette index per label, default `particle_colors(labels)`.

    Returns:
        (Y, X, 4) uint8 array, RGB and opacity.
    """
    labels = np.asarray(labels)
    if labels.ndim != 2:
        raise UserError(f"`labels` must be two-dimensional. Received: shape {labels.shape}")
    width = max(1, int(max(labels.shape) / 900)) if width is None else check_number("width", width, minimum=1)
    layer = np.zeros((*labels.shape, 4), np.uint8)
    if not labels.size or not labels.any():
        return layer
    line = _inner_line(labels, int(width))
    edge = _grow(line, 1) & ~line & (labels == 0)
    layer[edge] = (0, 0, 0, 90)
    colors = particle_colors(labels) if colors is None else colors
    layer[line, :3] = PALETTE[colors[labels[line]]]
    layer[line, 3] = 255
    return layer


def draw_outlines(
    image: np.ndarray,
    labels: np.ndarray,
    *,
    pixel_size: PixelSize | None = None,
    limits: tuple[float, float] | None = None,
    width: int | None = None,
    scale_bar: bool = True,
) -> np.ndarray:
    """Picture of `image` with the outline of every particle and a scale bar, one picture pixel per image pixel.

    Args:
        image: (Y, X) number array, any type and range.
        labels: (Y, X) int array of the same shape or, where an info bar was left out, of fewer rows.
        pixel_size: for the scale bar; None draws it in px.
        limits: grey values shown as black and white; see `to_grey8`.
        width: line thickness in pixels; see `outline_layer`.
        scale_bar: draw it.

    Returns:
        (Y, X, 3) uint8 array.

    Raises:
        UserError: the shapes do not fit together.
    """
    if labels.shape[0] > image.shape[0] or labels.shape[1:] != image.shape[1:]:
        raise UserError(f"`labels` do not fit the image. Received: shapes {labels.shape} and {image.shape}")
    picture = np.repeat(to_grey8(image, limits)[..., None], 3, axis=2)
    layer = outline_layer(labels, width=width)
    part = picture[: labels.shape[0]]
    for opacity in (90, 255):
        mask = layer[..., 3] == opacity
        mixed = part[mask] * ((255 - opacity) / 255) + layer[mask, :3] * (opacity / 255)
        part[mask] = np.round(mixed).astype(np.uint8)
    return draw_scale_bar(picture, pixel_size, rows=labels.shape[0]) if scale_bar else picture


def choose_scale_bar(width: int, pixel_size: PixelSize | None, *, share: float = 0.22) -> ScaleBar:
    """A bar of 1, 2 or 5 times a power of ten, at most `share` of the image width, in a readable unit.

    Args:
        width: image width in pixels.
        pixel_size: None = unknown; the bar is then in px.
        share: largest part of `width`, 0..1.

    Example:
        >>> choose_scale_bar(1024, PixelSize((1.2, 1.2), "nm")).text
        '200 nm'
        >>> choose_scale_bar(1024, None)
        ScaleBar(pixels=200.0, text='200 px')
    """
    room = max(1.0, width * share)
    if pixel_size is None:
        length = max(1.0, _round_down(room))
        return ScaleBar(float(length), f"{length:.0f} px")
    metres = _round_down(room * pixel_size.size[-1] * METRES[pixel_size.unit])
    pixels = metres / (pixel_size.size[-1] * METRES[pixel_size.unit])
    unit = next((unit for unit in reversed(_UNITS) if metres >= METRES[unit] * 0.9999), "pm")
    return ScaleBar(pixels, f"{metres / METRES[unit]:.4g} {unit_text(unit)}")


def draw_scale_bar(picture: np.ndarray, pixel_size: PixelSize | None, *, rows: int | None = None) -> np.ndarray:
    """Draw a scale bar on a dark plate into the lower right corner.

    Args:
        picture: (Y, X, 3) uint8 array.
        pixel_size: None = unknown.
        rows: use only the first `rows` rows (above an info bar).

    Returns:
        New (Y, X, 3) uint8 array; a picture smaller than 48 pixels comes back without a bar.
    """
    height, width = picture.shape[0] if rows is None else rows, picture.shape[1]
    if min(height, width) < 48:
        return picture.copy()
    bar = choose_scale_bar(width, pixel_size)
    unit = max(1.0, min(height, width) / 100)
    font = _font(max(10, round(3.4 * unit)))
    canvas = Picture.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    left, top, right, bottom = draw.textbbox((0, 0), bar.text, font=font)
    pad, thick, gap = round(1.6 * unit), max(2, round(0.9 * unit)), max(2, round(0.9 * unit))
    length = max(1, round(bar.pixels))
    plate_width = max(length, right - left) + 2 * pad
    plate_height = bottom - top + gap + thick + 2 * pad
    x, y = width - plate_width - pad, height - plate_height - pad
    if x < 0 or y < 0:
        return picture.copy()
    plate = (x, y, x + plate_width - 1, y + plate_height - 1)
    draw.rounded_rectangle(plate, radius=round(1.2 * unit), fill=(10, 14, 20, 225))
    middle = x + plate_width / 2
    draw.text((middle - (right - left) / 2 - left, y + pad - top), bar.text, font=font, fill=(255, 255, 255, 255))
    start = round(middle - length / 2)
    line = y + plate_height - pad - thick
    draw.rectangle((start, line, start + length - 1, line + thick - 1), fill=(255, 255, 255, 255))
    return np.array(canvas)


def write_picture(path: str | os.PathLike, picture: np.ndarray) -> None:
    """Write an 8-bit picture as PNG, all or nothing.

    Args:
        path: file to write.
        picture: (Y, X), (Y, X, 3) or (Y, X, 4) uint8 array.
    """
    with io.atomic_path(path) as temporary:
        Picture.fromarray(picture).save(temporary, format="PNG", compress_level=4)


def view_step(shape: tuple[int, ...], max_pixels: int = MAX_OVERLAY_PIXELS) -> int:
    """Every how many-th pixel to show so that a picture of `shape` has at most `max_pixels`."""
    return max(1, math.ceil(math.sqrt(math.prod(shape[:2]) / max_pixels)))


def unit_text(unit: str) -> str:
    """The unit as printed: `um` as the micro sign with m, `angstrom` as its letter."""
    return {"um": "\u00b5m", "angstrom": "\u00c5"}.get(unit, unit)


@functools.cache
def _font(size: int) -> Any:
    import matplotlib

    return ImageFont.truetype(os.path.join(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"), size)


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value) + 1e-9)
    return next(factor for factor in (5, 2, 1) if factor * power <= value * (1 + 1e-9)) * power


def _neighbour_pairs(labels: np.ndarray) -> np.ndarray:
    """(N, 2) pairs (smaller, larger) of labels with at most two pixels between them along a row or column."""
    pairs = []
    for step in (1, 2, 3):
        for first, second in ((labels[step:], labels[:-step]), (labels[:, step:], labels[:, :-step])):
            touch = (first != second) & (first > 0) & (second > 0)
            pairs.append(np.sort(np.stack([first[touch], second[touch]], axis=1), axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def _inner_line(labels: np.ndarray, width: int) -> np.ndarray:
    """Pixels of a particle at most `width` steps from a pixel that is not its own; image borders are no edge."""
    line = np.zeros(labels.shape, bool)
    differs = labels[1:] != labels[:-1]
    line[1:] |= differs
    line[:-1] |= differs
    differs = labels[:, 1:] != labels[:, :-1]
    line[:, 1:] |= differs
    line[:, :-1] |= differs
    return _grow(line, width - 1) & (labels > 0) if width > 1 else line & (labels > 0)


def _grow(mask: np.ndarray, steps: int) -> np.ndarray:
    for _ in range(steps):
        grown = mask.copy()
        grown[1:] |= mask[:-1]
        grown[:-1] |= mask[1:]
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        mask = grown
    return mask
