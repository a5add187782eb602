"""Leaves out particles of a mask that the image belonging to it does not show."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.segmentation.labeling import threshold_value


class BrightnessFilter(NamedTuple):
    """What `filter_by_brightness` found.

    Attributes:
        labels: (H, W) int32, the particles that stay, ids unchanged.
        threshold: grey value they were judged by.
        removed: ascending ids of the particles that were left out.
        means: id -> mean grey value is `means[id]`; NaN for ids that do not occur.
    """

    labels: np.ndarray
    threshold: float
    removed: np.ndarray
    means: np.ndarray


def filter_by_brightness(
    labels: np.ndarray,
    image: np.ndarray,
    *,
    threshold: str | float = "li",
    polarity: str = "bright",
    min_area: int = 0,
) -> BrightnessFilter:
    """Keep particles whose mean grey value is on the particles' side of a threshold.

    A translation network does not paint every particle of a mask; those it left out would be false truth. The source
    system traces outlines and judges those of holes like particles; here a hole belongs to no particle.

    Args:
        labels: (H, W) int, 0 = background. Number the parts of a mask first (`label_components`).
        image: (H, W) real grey values; those that are not finite are left out.
        threshold: `"li"` or `"otsu"`, found from the image, or a number. A particle stays where its mean reaches it.
        polarity: `"bright"` particles on dark ground or `"dark"` ones.
        min_area: smaller particles are left out as well, px.

    Raises:
        UserError: shapes that differ.
    """
    check_choice("polarity", polarity, ("bright", "dark"))
    check_number("min_area", min_area, minimum=0)
    labels, image = np.asarray(labels), np.asarray(image)
    if labels.shape != image.shape or labels.ndim != 2:
        raise UserError(f"`labels` and `image` must have one 2-D shape. Received: {labels.shape} and {image.shape}")
    level = threshold_value(image, threshold)
    finite = np.isfinite(image)
    flat = labels.ravel()
    areas = np.bincount(flat)
    counts = np.bincount(flat, weights=finite.ravel(), minlength=len(areas))
    sums = np.bincount(flat, weights=np.where(finite, image, 0).ravel().astype(np.float64), minlength=len(areas))
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums / counts
        shown = means >= level if polarity == "bright" else means <= level
    keep = shown & (areas >= min_area)
    keep[0] = False
    means[0] = np.nan
    removed = np.flatnonzero((areas > 0) & ~keep)
    return BrightnessFilter(
        np.where(keep, np.arange(len(areas)), 0).astype(np.int32)[labels], level, removed[removed > 0], means
    )
