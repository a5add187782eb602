"""The round sample in its image: where the disc lies, and how bright the ground around it is."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage
from skimage import filters

from keras_microseg.checks import UserError, check_number

_WORK_EDGE = 800  # px; a disc is found in an image reduced to this
_ROWS_BYTES = 1 << 26


@dataclasses.dataclass(frozen=True)
class Disc:
    """A round sample.

    Attributes:
        centre: (y, x), px of the image it was found in.
        radius: px.
        error: median distance of the outline from the circle, px (chips and flats count little).
        background: grey value that is most frequent outside; what an instrument adds to black.
    """

    centre: tuple[float, float]
    radius: float
    error: float
    background: float

    def mask(self, shape: tuple[int, int], *, origin: tuple[int, int] = (0, 0), factor: float = 1.0) -> np.ndarray:
        """(H, W) True inside; pixel (0, 0) is `origin` of an image whose pixels are `factor` times as large."""
        middle = (factor - 1) / 2
        y, x = ((np.arange(n) + o) * factor + middle - c for n, o, c in zip(shape, origin, self.centre, strict=True))
        return y[:, np.newaxis] ** 2 + x**2 <= self.radius**2


def reduce_image(image: Any, factor: int) -> np.ndarray:
    """Means of blocks of `factor` x `factor` pixels, float32; rows and columns left over at the end are dropped.

    Args:
        image: (H, W) array or lazy array; it is read in bands of whole rows.
        factor: whole number.
    """
    check_number("factor", factor, minimum=1, integer=True)
    height, width = (n // factor for n in image.shape)
    if not height or not width:
        raise UserError(f"`factor` must not exceed the image. Received: factor={factor} for shape {image.shape}")
    out = np.empty((height, width), np.float32)
    step = max(1, _ROWS_BYTES // (8 * factor * image.shape[1]))
    for top in range(0, height, step):
        rows = min(step, height - top)
        band = np.asarray(image[top * factor : (top + rows) * factor, : width * factor])
        sums = np.add.reduceat(band, np.arange(0, band.shape[0], factor), axis=0, dtype=np.float32)
        out[top : top + rows] = np.add.reduceat(sums, np.arange(0, sums.shape[1], factor), axis=1) / factor**2
    return out


def find_disc(image: Any, *, is_mask: bool = False) -> Disc:
    """The largest bright area as a circle, tolerant of chips, flats and a cut-off side.

    The image is reduced to at most 800 pixels, smoothed and divided by Otsu's threshold between ground and sample. A
    circle is fitted to the outline by iterated least squares in which distant points lose their weight (Tukey).

    Args:
        image: (H, W) grey values, array or lazy array.
        is_mask: `image` is True (or non-zero) on the sample already.

    Raises:
        UserError: nothing stands out, or its outline is no circle.
    """
    factor = max(1, -(-max(image.shape) // _WORK_EDGE))
    small = reduce_image(_NonZero(image) if is_mask else image, factor)
    smooth = ndimage.median_filter(small, 5)
    if not smooth.min() < smooth.max():
        raise UserError("No sample stands out: the image has one grey value only. Pass the sample mask.")
    level = 0.5 if is_mask else filters.threshold_otsu(smooth)
    mask = smooth > level
    labels, count = ndimage.label(mask)
    largest = int(np.argmax(np.bincount(labels.ravel(), minlength=count + 1)[1:])) + 1
    filled = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(labels == largest, 8), iterations=5))[8:-8, 8:-8]
    outline = filled & ~ndimage.binary_erosion(filled, border_value=1)
    y, x = np.nonzero(outline)
    if len(y) < 20:
        raise UserError(
            "No disc was found: the sample fills the image or is too small. Pass the transform or the mask."
        )
    middle, radius = _fit_circle(y.astype(float), x.astype(float))
    distance = np.abs(np.hypot(y - middle[0], x - middle[1]) - radius)
    error = float(np.median(distance))
    if error > 0.05 * radius or radius > 2 * max(small.shape):
        raise UserError(f"The sample is no disc (outline off by {error * factor:.0f} px in the median). Pass its mask.")
    # of the outermost pixels that lie inside the area, half lies outside a circle through their centres
    radius += 0.5
    outside = ~Disc(tuple(middle), radius * 1.02, 0, 0).mask(small.shape)
    values = np.rint(small[outside]).astype(int) if outside.any() and not is_mask else np.zeros(1, int)
    ground = float(np.bincount(values - values.min()).argmax() + values.min())
    centre = tuple(float(v) * factor + (factor - 1) / 2 for v in middle)
    return Disc(centre, float(radius * factor), error * factor, ground)


def _fit_circle(y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, float]:
    weights = np.ones(len(y))
    for _ in range(30):
        system = np.stack([y, x, np.ones(len(y))], axis=1) * weights[:, np.newaxis]
        a, b, c = np.linalg.lstsq(system, -(y**2 + x**2) * weights, rcond=None)[0]
        middle, radius = np.array([-a / 2, -b / 2]), float(np.sqrt(max(a**2 / 4 + b**2 / 4 - c, 0.0)))
        away = np.abs(np.hypot(y - middle[0], x - middle[1]) - radius)
        limit = max(4.7 * 1.48 * float(np.median(away)), 1.5)
        weights = np.where(away < limit, 1 - (away / limit) ** 2, 0)
    return middle, radius


class _NonZero:
    """1 where another image is not 0, lazily."""

    def __init__(self, image: Any):
        self.image, self.shape = image, tuple(image.shape)

    def __getitem__(self, index: Any) -> np.ndarray:
        return (np.asarray(self.image[index]) != 0).astype(np.float32)
