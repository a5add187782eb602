"""Exact non-maximum suppression of static shape, for whole batches, on every backend."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_microseg.layers.boxes import overlaps


def top_indices(scores: Any, count: int) -> Any:
    """Positions of the `count` highest scores, best first; of equal scores the earlier one, on every backend.

    `ops.top_k` leaves the order of equal scores to the backend; sorting is stable everywhere.

    Args:
        scores: (B, N).
        count: at most N.

    Returns:
        (B, count) int32.
    """
    return ops.argsort(-scores, axis=-1)[..., :count]


def take_rows(values: Any, indices: Any) -> Any:
    """`values[b, indices[b]]` for each image b: (B, N) or (B, N, k) and (B, M) -> (B, M) or (B, M, k)."""
    if len(values.shape) == 2:
        return ops.take_along_axis(values, indices, axis=1)
    return ops.take_along_axis(values, ops.repeat(indices[..., None], values.shape[-1], axis=-1), axis=1)


def non_maximum_suppression(
    boxes: Any, scores: Any, valid: Any, iou_threshold: float, max_outputs: int, classes: Any = None
) -> tuple[Any, Any]:
    """Keep boxes, best first, that overlap no better kept box by more than the threshold.

    With M_ij = 1 where i is better than j and IoU_ij > t, the kept boxes solve keep_j = [sum_i keep_i M_ij = 0]. By
    induction over the order of scores the solution is unique and is that of the greedy algorithm. It is found by
    iteration from keep = 1, which is right for the first n boxes after n rounds at the latest; 3 to 10 rounds are
    usual. Memory B N^2 floats. Gradients do not flow.

    Args:
        boxes: (B, N, 4).
        scores: (B, N), any monotonous score; of equal scores the earlier box is the better one.
        valid: (B, N) 0 or 1 (any dtype); others are never kept and suppress nothing.
        iou_threshold: see above.
        max_outputs: K, slots per image.
        classes: (B, N) int; boxes of different classes do not suppress each other. None = one class.

    Returns:
        (B, K) int32 positions in `boxes`, best first, and (B, K) float32 1 for kept boxes, 0 for empty slots (whose
        position is some valid index).
    """
    boxes, scores = ops.stop_gradient(ops.cast(boxes, "float32")), ops.stop_gradient(ops.cast(scores, "float32"))
    count = boxes.shape[1]
    valid = ops.cast(valid, "float32")
    order = top_indices(ops.where(valid > 0, scores, ops.full_like(scores, -3e38)), count)
    boxes, valid = take_rows(boxes, order), take_rows(valid, order)
    better = ops.arange(count)[:, None] < ops.arange(count)[None, :]
    suppresses = ops.logical_and(overlaps(boxes, boxes, iou_threshold), better)
    if classes is not None:
        classes = take_rows(ops.cast(classes, "int32"), order)
        suppresses = ops.logical_and(suppresses, classes[..., :, None] == classes[..., None, :])
    suppresses = ops.cast(suppresses, "float32")

    def iterate(keep: Any, _: Any) -> tuple[Any, Any]:
        worse = ops.squeeze(ops.matmul(keep[:, None, :], suppresses), axis=1)
        kept = valid * ops.cast(worse < 0.5, "float32")
        return kept, ops.any(kept != keep)

    keep, _ = ops.while_loop(lambda keep, changed: changed, iterate, iterate(valid, None), maximum_iterations=count + 1)
    rank = ops.arange(count, dtype="float32")[None]
    first = top_indices(-(rank + (1 - keep) * count), min(max_outputs, count))
    kept = take_rows(keep, first)
    indices = take_rows(order, first)
    missing = max_outputs - count
    if missing > 0:
        indices, kept = (ops.pad(x, ((0, 0), (0, missing))) for x in (indices, kept))
    return ops.cast(indices, "int32"), kept
