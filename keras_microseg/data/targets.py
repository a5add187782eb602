"""Instance labels -> the maps a network learns: foreground, contact boundary, distance, flow."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from keras_microseg.checks import check_choice

MAPS = ("foreground", "boundary", "distance", "flow_y", "flow_x")
VOLUME_MAPS = ("foreground", "boundary", "distance")


def instance_maps(labels: np.ndarray, outputs: Sequence[str] = MAPS) -> np.ndarray:
    """Target maps of a label image.

    - `foreground`: 1 inside any instance.
    - `boundary`: 1 where two instances touch: both are found in the 3 x 3 (x 3) window of the pixel (two pixels wide).
    - `distance`: distance to the edge of the own instance over its largest value there, 0..1; the image frame is no
      edge, so that particles cut by it keep their maximum.
    - `flow_y`, `flow_x`: direction to the centre of mass of the instance, of length r / (r + 2 px).

    Args:
        labels: (H, W) or (Z, H, W) integer instance labels, 0 = background.
        outputs: which maps, in order; names out of `MAPS`, in 3D out of `VOLUME_MAPS`.

    Returns:
        (*shape of labels, len(outputs)) float32.
    """
    labels = np.asarray(labels)
    for name in outputs:
        check_choice("outputs", name, MAPS if labels.ndim == 2 else VOLUME_MAPS)
    inside = labels > 0
    maps: dict[str, np.ndarray] = {"foreground": inside}
    if "boundary" in outputs:
        maps["boundary"] = contact_boundary(labels)
    if "distance" in outputs:
        maps["distance"] = relative_distance(labels)
    if "flow_y" in outputs or "flow_x" in outputs:
        maps["flow_y"], maps["flow_x"] = centre_flow(labels)
    return np.stack([maps[name] for name in outputs], axis=-1).astype(np.float32)


def contact_boundary(labels: np.ndarray) -> np.ndarray:
    """Bool, shape of `labels`: pixels of an instance with one of another instance in their 3 x 3 (x 3) window."""
    window = ndimage.maximum_filter(labels, 3)
    low = np.where(labels > 0, labels, np.iinfo(labels.dtype).max)
    return (labels > 0) & (window != ndimage.minimum_filter(low, 3))


def relative_distance(labels: np.ndarray) -> np.ndarray:
    """float32, shape of `labels`: distance to the own instance's edge over its maximum in the instance, 0 outside.

    The nearest pixel that differs from an instance is reached through its own rim, so one distance transform to the rim
    pixels of all instances serves them all.
    """
    rim = np.zeros(labels.shape, bool)
    for axis in range(labels.ndim):
        front, back = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        step = front != back
        view = np.moveaxis(rim, axis, 0)
        view[:-1] |= step
        view[1:] |= step
    if not rim.any():
        return (labels > 0).astype(np.float32)
    distance = (ndimage.distance_transform_edt(~rim) + 0.5).astype(np.float32)
    distance[labels == 0] = 0
    largest = np.zeros(int(labels.max()) + 1, np.float32)
    np.maximum.at(largest, labels.ravel(), distance.ravel())
    largest[0] = 1
    return distance / largest[labels]


def class_maps(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """One-hot (*shape, num_classes) float32 of class numbers 0..num_classes - 1; other numbers are all zero."""
    return (np.asarray(labels)[..., np.newaxis] == np.arange(num_classes)).astype(np.float32)


def centre_flow(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(dy, dx) towards the centre of mass of the instance, of length r / (r + 2), r in pixels; 0 outside."""
    flat = labels.ravel()
    count = np.maximum(np.bincount(flat), 1)
    rows, columns = np.indices(labels.shape, dtype=np.float32)
    dy = (np.bincount(flat, rows.ravel()) / count).astype(np.float32)[labels] - rows
    dx = (np.bincount(flat, columns.ravel()) / count).astype(np.float32)[labels] - columns
    scale = (labels > 0) / (np.hypot(dy, dx) + 2)
    return dy * scale, dx * scale
