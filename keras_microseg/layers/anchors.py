"""Anchors: the template boxes of a feature pyramid, and sizes for them from labelled objects. NumPy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from keras_microseg.checks import UserError, check_number


def pyramid_anchors(
    tile_size: int, scales: Sequence[float], ratios: Sequence[float], strides: Sequence[int], *, legacy: bool = False
) -> list[np.ndarray]:
    """Template boxes of all levels: at every feature a box of each ratio, of the level's scale.

    A box of scale s and ratio r (width / height) is s / sqrt(r) high and s sqrt(r) wide. Order: y, x, ratio. Boxes
    that cross the border are kept.

    Args:
        tile_size: S, side of the square tile in pixels.
        scales: one per level, pixels.
        ratios: width / height.
        strides: one per level, pixels between features.
        legacy: centres at (i stride, j stride) as in the original Matterport code, not at (i + 1/2) stride.

    Returns:
        Per level (A, 4) float32 `yxyx` divided by `tile_size`.
    """
    levels = []
    root = np.sqrt(np.asarray(ratios, np.float64))
    for scale, stride in zip(scales, strides, strict=True):
        centres = (np.arange(-(-tile_size // stride)) + (0.0 if legacy else 0.5)) * stride
        y, x, half_height = np.meshgrid(centres, centres, scale / root / 2, indexing="ij")
        half_width = np.broadcast_to(scale * root / 2, y.shape)
        boxes = np.stack([y - half_height, x - half_width, y + half_height, x + half_width], axis=-1)
        levels.append((boxes.reshape(-1, 4) / tile_size).astype(np.float32))
    return levels


def anchor_scales(sizes: np.ndarray, strides: Sequence[int], *, iterations: int = 50) -> tuple[float, ...]:
    """Scales for the levels of a pyramid from the sizes of labelled objects: k-means of their logarithms.

    The means start at quantiles, so the result is the same on every run. A scale is at least twice its level's stride:
    below, objects fall between the anchors.

    Args:
        sizes: (n, 2) heights and widths of boxes in pixels, at the scale the network sees. Not positive or not finite
            ones are left out.
        strides: of the levels, pixels, ascending.
        iterations: of Lloyd's algorithm, at most.

    Returns:
        One scale per level, ascending, to 0.1 pixel.

    Raises:
        UserError: no box of positive size.

    Reference: Redmon and Farhadi (2017), arXiv:1612.08242, section 2 (there with IoU in place of log sizes).
    """
    check_number("iterations", iterations, minimum=1, integer=True)
    sizes = np.asarray(sizes, np.float64).reshape(-1, 2)
    sizes = sizes[np.isfinite(sizes).all(axis=1) & (sizes > 0).all(axis=1)]
    if not len(sizes):
        raise UserError("Anchor sizes need at least one labelled box of positive height and width. Received none.")
    values = np.log(np.sqrt(sizes.prod(axis=1)))
    count = len(strides)
    means = np.quantile(values, (np.arange(count) + 0.5) / count)
    for _ in range(iterations):
        nearest = np.abs(values[:, None] - means).argmin(axis=1)
        members = np.bincount(nearest, minlength=count)
        sums = np.bincount(nearest, weights=values, minlength=count)
        updated = np.where(members > 0, sums / np.maximum(members, 1), means)
        if np.allclose(updated, means, atol=1e-6):
            break
        means = updated
    scales = np.maximum(np.sort(np.exp(means)), 2 * np.asarray(strides))
    return tuple(float(scale) for scale in np.round(scales, 1))
