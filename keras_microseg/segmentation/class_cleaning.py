"""Class maps without salt and pepper: majority filter and removal of small islands.

Maps of automated mineralogy name every pixel from its own spectrum, so mixed or noisy pixels carry stray names.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number


def majority_filter(classes: np.ndarray, size: int = 3, *, ignore: int = 255) -> np.ndarray:
    """The most frequent class in a square around each pixel; a tie leaves the pixel as it is.

    Args:
        classes: (H, W) uint8 class numbers.
        size: edge of the square, odd, px.
        ignore: number that has no vote and stays where it is.
    """
    check_number("size", size, minimum=1, integer=True)
    if size % 2 == 0:
        raise UserError(f"`size` must be odd. Received: size={size}. Use {size + 1}.")
    classes = np.asarray(classes)
    if size == 1:
        return classes.copy()
    out, best = classes.copy(), np.full(classes.shape, -1, np.int32)
    present = [k for k in np.flatnonzero(np.bincount(classes.ravel())) if k != ignore]
    kernel = np.ones(size, np.int32)
    votes = {}
    for k in present:  # the votes of a pixel's own class first, so that only a true majority changes it
        count = (classes == k).astype(np.int32)
        for axis in (0, 1):
            count = ndimage.convolve1d(count, kernel, axis, mode="constant")
        votes[k] = count.astype(np.uint16)
        own = classes == k
        best[own] = count[own]
    for k, count in votes.items():
        wins = (count > best) & (classes != ignore)
        out[wins], best[wins] = k, count[wins]
    return out


def remove_islands(classes: np.ndarray, min_size: int, *, ignore: int = 255) -> tuple[np.ndarray, int]:
    """Give connected pieces (4 neighbours) below `min_size` pixels to the nearest piece that stays.

    Args:
        classes: (H, W) uint8 class numbers.
        min_size: smallest piece that stays, px.
        ignore: number that is neither removed nor spreads.

    Returns:
        The cleaned map and how many pieces were removed.
    """
    check_number("min_size", min_size, minimum=0, integer=True)
    classes = np.asarray(classes)
    small, removed = np.zeros(classes.shape, bool), 0
    for k in np.flatnonzero(np.bincount(classes.ravel())):
        if k == ignore:
            continue
        labels, count = ndimage.label(classes == k)
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        is_small = sizes < min_size
        is_small[0] = False
        removed += int(is_small.sum())
        small |= is_small[labels]
    source = ~small & (classes != ignore)
    if not removed or not source.any():
        return classes.copy(), 0
    nearest = ndimage.distance_transform_edt(~source, return_distances=False, return_indices=True)
    out = classes.copy()
    out[small] = classes[tuple(axis[small] for axis in nearest)]
    return out, removed
