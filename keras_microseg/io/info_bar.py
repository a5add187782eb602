"""The data bar that microscopes print below an image: where it begins.

A bar is a strip over the full width with one flat background (black, white or grey) and some text. Its first row is a
sharp change: the row below is nearly one value, the row above is picture. A bar that only shades or frames the picture
without text is not taken for one.
"""

from __future__ import annotations

import numpy as np

from keras_microseg.image import Image
from keras_microseg.io.images import read_grey

SEARCHED = 0.25
"""Share of the height, from the bottom, in which a bar may begin."""
SMALLEST = 64
"""Images with fewer rows or columns than this have no bar."""
TOLERANCES = (0, 8)
"""Grey levels of 255 by which a bar's background may differ from its commonest value: stored exactly, or as JPEG."""


def find_info_bar(image: Image) -> int | None:
    """First row of the vendor's data bar; rows from there on are no picture.

    Where the header states the height of the scan (FEI, JEOL, Hitachi, TESCAN), that is taken; otherwise the pixels
    of the lowest quarter decide.

    Args:
        image: axes `YX` or `YXC`, any type.

    Returns:
        Row index counted in `image`, or None when there is no bar (also for stacks and images below 64 pixels).
    """
    if set(image.axes) - set("YXC"):
        return None
    height, width = image.spatial_shape
    stated = image.metadata.get("scan_height")
    if stated is not None:
        row = int(stated) - image.origin[0]
        return row if 0 < row < height else None
    if min(height, width) < SMALLEST:
        return None
    first = height - int(height * SEARCHED) - 4
    levels = _levels(_bottom(image, first))
    for tolerance in TOLERANCES:
        row = _first_row(levels, tolerance, smallest_bar=max(8, height // 100))
        if row is not None:
            return first + row
    return None


def _bottom(image: Image, first: int) -> np.ndarray:
    """Rows from `first` on, at most about 2048 columns of them, read in strips."""
    height, width = image.spatial_shape
    step = max(1, width // 2048)
    rows = max(1, 2**24 // width)
    strips = [
        read_grey(image, (slice(start, min(start + rows, height)), slice(None)))[:, ::step]
        for start in range(first, height, rows)
    ]
    return np.concatenate(strips)


def _levels(grey: np.ndarray) -> np.ndarray:
    """The pixels as whole numbers 0..255 (8-bit images as they are, others from their own minimum to maximum)."""
    if grey.dtype == np.uint8:
        return grey.astype(np.int16)
    values = np.nan_to_num(grey.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 255 and high > 1:
        return np.rint(values).astype(np.int16)
    return np.rint((values - low) * (255 / max(high - low, 1e-30))).astype(np.int16)


def _first_row(levels: np.ndarray, tolerance: int, smallest_bar: int) -> int | None:
    """First row of a bar at the bottom of `levels`, or None."""
    rows, columns = levels.shape
    counts = np.bincount(levels[-smallest_bar:].ravel(), minlength=256)
    background = int(np.argmax(np.convolve(counts, np.ones(2 * tolerance + 1), "same")))
    flat = (np.abs(levels - background) <= tolerance).mean(axis=1)  # share of background in every row
    near = np.ones(7)  # share of any one value in every row, within 3 levels
    plain = np.array([np.convolve(np.bincount(row, minlength=256), near, "same").max() for row in levels]) / columns
    belongs = (flat >= 0.3) | (plain >= 0.8)
    last = rows - 1
    while last > rows - 1 - smallest_bar // 2 and flat[last] < 0.3:  # rows of picture may show below a bar
        last -= 1
    top = last
    while top > 0 and belongs[top]:
        top -= 1
    best, best_drop = None, 0.35
    for row in range(max(top, 3), last - smallest_bar + 2):
        below, above = flat[row : row + 3].min(), flat[row - 3 : row].max()
        if below >= 0.6 and below - above > best_drop:
            best, best_drop = row, below - above
    if best is None:
        return None
    framed = best
    while framed > best - 5 and framed > 1 and plain[framed - 1] >= 0.9:  # a line of up to 4 rows frames the bar
        framed -= 1
    first = framed if best - 4 <= framed else best
    ink = np.abs(levels[best : last + 1] - background) > 64
    has_text = 0.003 <= ink.mean() <= 0.6 and ink.any(axis=1).mean() >= 0.2
    # text is many short strokes: count the changes along its busiest rows
    strokes = np.count_nonzero(np.diff(ink.astype(np.int8), axis=1), axis=1)
    return first if has_text and np.sort(strokes)[-3:].min() >= 12 else None
