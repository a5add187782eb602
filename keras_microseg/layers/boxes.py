"""Box arithmetic on tensors: overlap, coding against reference boxes, conventions.

Boxes are (..., 4) float32 `(y1, x1, y2, x2)`, half-open, divided by the tile's height and width: 0..1 spans the tile.
Everything is computed in float32 whatever the precision policy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from keras import ops

MAX_LOG_RATIO = math.log(1000 / 16)
_SMALLEST = 1e-6


def encode_boxes(boxes: Any, references: Any, deviations: Sequence[float]) -> Any:
    """What a network must say to turn `references` into `boxes`: the inverse of `decode_boxes`.

    `(dy, dx) = (centre - reference centre) / reference size`, `(dh, dw) = log(size / reference size)`, all divided by
    `deviations` (Girshick et al. 2014, arXiv:1311.2524). Sizes below 1e-6 count as 1e-6, so nothing is infinite.

    Args:
        boxes, references: (..., 4), shapes that broadcast.
        deviations: four divisors that bring the deltas to about unit size.

    Returns:
        (..., 4) float32 deltas (dy, dx, dh, dw).
    """
    y, x, h, w = _centre_and_size(boxes)
    ry, rx, rh, rw = _centre_and_size(references)
    h, w, rh, rw = (ops.maximum(size, _SMALLEST) for size in (h, w, rh, rw))
    deltas = (y - ry) / rh, (x - rx) / rw, ops.log(h / rh), ops.log(w / rw)
    return ops.stack([d / s for d, s in zip(deltas, deviations, strict=True)], axis=-1)


def decode_boxes(deltas: Any, references: Any, deviations: Sequence[float]) -> Any:
    """Boxes that `deltas` describe: the inverse of `encode_boxes`.

    Sizes grow by at most a factor of 1000/16, which keeps the exponential finite.

    Returns:
        (..., 4) float32, not clipped to the tile.
    """
    ry, rx, rh, rw = _centre_and_size(references)
    deltas = ops.cast(deltas, "float32")
    dy, dx, dh, dw = (deltas[..., i] * s for i, s in enumerate(deviations))
    y, x = ry + dy * rh, rx + dx * rw
    h = rh * ops.exp(ops.minimum(dh, MAX_LOG_RATIO))
    w = rw * ops.exp(ops.minimum(dw, MAX_LOG_RATIO))
    return ops.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], axis=-1)


def box_iou(first: Any, second: Any) -> Any:
    """Overlap of every box of `first` with every box of `second`: common area / area of the union.

    Args:
        first: (..., N, 4).
        second: (..., M, 4).

    Returns:
        (..., N, M) float32 in 0..1; 0 where both areas vanish.
    """
    common, areas = _common_and_areas(first, second)
    return common / ops.maximum(areas - common, 1e-12)


def overlaps(first: Any, second: Any, threshold: float) -> Any:
    """`box_iou(first, second) > threshold` without the division: (..., N, M) bool."""
    common, areas = _common_and_areas(first, second)
    return common * (1 + threshold) > areas * threshold


def clip_boxes(boxes: Any) -> Any:
    """Boxes cut at the border of the tile."""
    return ops.clip(boxes, 0.0, 1.0)


def has_area(boxes: Any) -> Any:
    """(...) bool: height and width are positive."""
    return ops.logical_and(boxes[..., 2] > boxes[..., 0], boxes[..., 3] > boxes[..., 1])


def to_legacy(boxes: Any, size: int) -> Any:
    """Boxes in the convention of the original Matterport code: `(y1, x1, y2 - 1, x2 - 1) / (size - 1)` of pixels."""
    return (ops.cast(boxes, "float32") * size - _last_pixel()) / (size - 1)


def from_legacy(boxes: Any, size: int) -> Any:
    """The inverse of `to_legacy`."""
    return (ops.cast(boxes, "float32") * (size - 1) + _last_pixel()) / size


def _last_pixel() -> Any:
    return ops.convert_to_tensor([0.0, 0.0, 1.0, 1.0], dtype="float32")


def _centre_and_size(boxes: Any) -> tuple[Any, Any, Any, Any]:
    boxes = ops.cast(boxes, "float32")
    y1, x1, y2, x2 = (boxes[..., i] for i in range(4))
    return (y1 + y2) / 2, (x1 + x2) / 2, y2 - y1, x2 - x1


def _common_and_areas(first: Any, second: Any) -> tuple[Any, Any]:
    """(..., N, M) area of the intersection, and sum of the two areas."""
    first, second = ops.cast(first, "float32")[..., :, None, :], ops.cast(second, "float32")[..., None, :, :]
    height = ops.minimum(first[..., 2], second[..., 2]) - ops.maximum(first[..., 0], second[..., 0])
    width = ops.minimum(first[..., 3], second[..., 3]) - ops.maximum(first[..., 1], second[..., 1])
    return ops.relu(height) * ops.relu(width), _area(first) + _area(second)


def _area(boxes: Any) -> Any:
    return ops.maximum(boxes[..., 2] - boxes[..., 0], 0.0) * ops.maximum(boxes[..., 3] - boxes[..., 1], 0.0)
