"""Class maps without a network, to judge one by: thresholds found blindly, the best thresholds, a random forest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from keras_microseg.checks import UserError
from keras_microseg.segmentation.grey_classes import GreyClassified, fit_grey_classes
from keras_microseg.segmentation.voxel_classes import fit_multi_otsu, fit_pixel_forest

Baseline = Callable[[np.ndarray], np.ndarray]
_MOST = 4_000_000


def fit_baselines(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], num_classes: int, *, ignore: int = 255, seed: int = 0
) -> dict[str, Baseline]:
    """Learn all baselines.

    Args:
        pairs: (grey, classes) training images, uint8, (H, W) each.
        num_classes: K.
        ignore: number of pixels that are not known.
        seed: of the forest.

    Returns:
        name -> function of a (H, W) uint8 image that gives its classes: "multi-Otsu" (thresholds from the histogram
        alone, for up to 5 classes; which class lies between which is chosen on the training images), "best thresholds"
        (most probable class of each smoothed grey value), "random forest" (grey value, smoothed, gradient, Laplacian).

    Raises:
        UserError: no pair.
    """
    if not pairs:
        raise UserError("Baselines need at least one training image.")
    grey, classes = _side_by_side(pairs, ignore)
    found: dict[str, Baseline] = {}
    if num_classes <= 5:
        otsu = fit_multi_otsu(grey[np.newaxis], num_classes)
        levels = otsu(grey)
        known = classes < num_classes
        table = np.bincount(
            levels[known].astype(np.int64) * num_classes + classes[known], minlength=num_classes**2
        ).reshape(num_classes, num_classes)
        union = table.sum(axis=1, keepdims=True) + table.sum(axis=0) - table
        rows, columns = linear_sum_assignment(-table / np.maximum(union, 1))
        order = np.zeros(num_classes, np.uint8)
        order[rows] = columns
        found["multi-Otsu"] = lambda image: order[otsu(image)]
    best = fit_grey_classes([(grey, classes)], num_classes)
    found["best thresholds"] = lambda image: GreyClassified(image, best)[:, :]
    forest = fit_pixel_forest(grey[np.newaxis], classes[np.newaxis], ignore=ignore, seed=seed)
    found["random forest"] = lambda image: forest(image[np.newaxis])[0]
    return found


def _side_by_side(pairs: Sequence[tuple[np.ndarray, np.ndarray]], ignore: int) -> tuple[np.ndarray, np.ndarray]:
    """Images joined along x, lower ones filled up by reflection with unknown classes; of very many, some."""
    step = max(1, int(np.ceil(sum(grey.size for grey, _ in pairs) / _MOST)))
    pairs = pairs[::step]
    height = max(len(grey) for grey, _ in pairs)
    greys = [np.pad(grey, ((0, height - len(grey)), (0, 0)), mode="symmetric") for grey, _ in pairs]
    maps = [np.pad(c, ((0, height - len(c)), (0, 0)), constant_values=ignore) for _, c in pairs]
    return np.concatenate(greys, axis=1), np.concatenate(maps, axis=1)
