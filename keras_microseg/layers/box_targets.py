"""Targets of a region proposal network: which anchor answers for which object. NumPy, on the host."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)
_CROWD_OVERLAP = 1e-3


def rpn_targets(
    anchors: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    rng: np.random.Generator,
    *,
    samples: int = 256,
    positive_iou: float = 0.7,
    negative_iou: float = 0.3,
    deviations: Sequence[float] = DEVIATIONS,
) -> tuple[np.ndarray, np.ndarray]:
    """Match anchors with objects.

    An anchor is positive when it overlaps an object by `positive_iou` or more, or when no anchor overlaps that object
    more (it then answers for *that* object, also where it overlaps another one more); negative when it overlaps none by
    `negative_iou` and no crowd region; all others do not count. At most half of `samples` positives and as many
    negatives as fill `samples` are drawn, the rest does not count. Objects that no anchor touches are left out.

    Args:
        anchors: (A, 4) `yxyx`, divided by the tile's size.
        boxes: (G, 4) in the same unit.
        classes: (G,) int; 0 = padding, negative = crowd or ignored region.
        rng: draws the sample.
        samples: anchors that count, per image.
        positive_iou, negative_iou: see above.
        deviations: divisors of the deltas.

    Returns:
        `(match, deltas)`: (A,) int8 with 1 positive, -1 negative, 0 does not count; (A, 4) float32, zero where `match`
        is not 1.

    Reference: Ren et al. (2015), arXiv:1506.01497, section 3.1.2.
    """
    anchors = np.asarray(anchors, np.float32)
    boxes, classes = np.asarray(boxes, np.float32).reshape(-1, 4), np.asarray(classes).reshape(-1)
    match, deltas = np.zeros(len(anchors), np.int8), np.zeros((len(anchors), 4), np.float32)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    objects, crowds = boxes[(classes > 0) & has_area], boxes[(classes < 0) & has_area]
    owner = np.full(len(anchors), -1)
    best = np.zeros(len(anchors), np.float32)
    forced = []
    sides = np.ascontiguousarray(anchors.T)
    for i, box in enumerate(objects):  # few, and each touches few anchors: faster and smaller than the whole table
        near, overlap = _overlaps(sides, box)
        if not len(near):
            continue
        closer = overlap > best[near]
        best[near[closer]], owner[near[closer]] = overlap[closer], i
        forced.append((near[overlap >= overlap.max() - 1e-5], i, overlap.max()))
    match[best < negative_iou] = -1
    for crowd in crowds:
        near, _ = _overlaps(sides, crowd, _CROWD_OVERLAP)
        match[near] = np.maximum(match[near], 0)
    match[best >= positive_iou] = 1
    for near, i, _ in sorted(forced, key=lambda entry: entry[2]):  # the larger overlap has the last word
        match[near], owner[near] = 1, i
    positive = _thin(match, 1, samples // 2, rng)
    _thin(match, -1, samples - len(positive), rng)
    deltas[positive] = _encode(objects[owner[positive]], anchors[positive], deviations)
    return match, deltas


def _overlaps(sides: np.ndarray, box: np.ndarray, least: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Indices of anchors (their four coordinates, each a row) that overlap `box` by more than `least`; their IoU."""
    top, left, bottom, right = sides
    near = np.flatnonzero((top < box[2]) & (bottom > box[0]) & (left < box[3]) & (right > box[1]))
    top, left, bottom, right = sides[:, near]
    height = np.minimum(bottom, box[2]) - np.maximum(top, box[0])
    width = np.minimum(right, box[3]) - np.maximum(left, box[1])
    common = height * width
    overlap = common / ((bottom - top) * (right - left) + (box[2] - box[0]) * (box[3] - box[1]) - common)
    enough = overlap > least
    return near[enough], overlap[enough]


def _thin(match: np.ndarray, value: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Leave `count` random entries of `value`, set the others to 0; returns those left, ascending."""
    found = np.flatnonzero(match == value)
    if len(found) <= count:
        return found
    kept = np.sort(rng.choice(found, count, replace=False))
    match[found] = 0
    match[kept] = value
    return kept


def _encode(boxes: np.ndarray, references: np.ndarray, deviations: Sequence[float]) -> np.ndarray:
    """`layers.boxes.encode_boxes` in NumPy."""
    size, reference = boxes[:, 2:] - boxes[:, :2], references[:, 2:] - references[:, :2]
    shift = (boxes[:, :2] + boxes[:, 2:] - references[:, :2] - references[:, 2:]) / 2 / reference
    return np.concatenate([shift, np.log(size / reference)], axis=1) / np.asarray(deviations, np.float32)
