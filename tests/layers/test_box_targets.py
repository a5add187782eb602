"""Targets of the region proposal network against the rules, one by one."""

import numpy as np

from keras_microseg.layers.anchors import pyramid_anchors
from keras_microseg.layers.box_targets import rpn_targets

ANCHORS = np.concatenate(pyramid_anchors(128, (16, 32), (0.7, 1.0, 1.4), (4, 8)))


def iou_table(a, b):
    size = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    common = np.maximum(size, 0).prod(axis=-1)
    areas = [(x[:, 2:] - x[:, :2]).prod(axis=-1) for x in (a, b)]
    return common / (areas[0][:, None] + areas[1] - common)


def decode(deltas, anchors):
    size = anchors[:, 2:] - anchors[:, :2]
    centre = (anchors[:, :2] + anchors[:, 2:]) / 2 + deltas[:, :2] * 0.1 * size
    half = size * np.exp(deltas[:, 2:] * 0.2) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def random_objects(rng, count):
    start = rng.uniform(0, 0.8, (count, 2))
    return np.concatenate([start, start + rng.uniform(0.08, 0.3, (count, 2))], axis=1).clip(0, 1).astype(np.float32)


def test_rules_hold_for_random_objects():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        boxes = random_objects(rng, 12)
        match, deltas = rpn_targets(ANCHORS, boxes, np.ones(12, int), rng, samples=10**6)
        table = iou_table(ANCHORS.astype(np.float64), boxes.astype(np.float64))
        best = table.max(axis=1)
        forced = (table >= table.max(axis=0) - 1e-6).any(axis=1)
        clear = np.abs(best - 0.3) > 1e-5
        assert (match[best > 0.7001] == 1).all() and (match[forced] == 1).all()
        assert (match[(best < 0.3) & clear & ~forced] == -1).all()
        assert (match[(best > 0.3) & clear & (best < 0.6999) & ~forced] == 0).all()
        positive = match == 1
        assert not deltas[~positive].any()
        answered = iou_table(decode(deltas[positive], ANCHORS[positive]), boxes.astype(np.float64)).max(axis=1)
        np.testing.assert_allclose(answered, 1, atol=1e-3)  # every positive regresses to an object
        reached = iou_table(decode(deltas[positive], ANCHORS[positive]), boxes).argmax(axis=1)
        assert len(set(reached)) >= 11  # each object has an anchor that answers for it, unless two share the anchor


def test_forced_anchor_regresses_to_the_object_that_forced_it():
    """A small object within a large one: its best anchor overlaps the large one more."""
    boxes = np.array([[0.1, 0.1, 0.4, 0.4], [0.2, 0.2, 0.23, 0.23]], "f")
    match, deltas = rpn_targets(ANCHORS, boxes, np.ones(2, int), np.random.default_rng(0), samples=10**6)
    table = iou_table(ANCHORS, boxes)
    best = np.flatnonzero(table[:, 1] >= table[:, 1].max() - 1e-7)
    assert (match[best] == 1).all()
    np.testing.assert_allclose(decode(deltas[best], ANCHORS[best]), np.tile(boxes[1], (len(best), 1)), atol=1e-4)


def test_objects_that_no_anchor_touches_change_nothing():
    rng = np.random.default_rng(1)
    boxes = np.array([[5, 5, 6, 6], [0.3, 0.3, 0.3, 0.5]], "f")  # far outside; without area
    match, deltas = rpn_targets(ANCHORS, boxes, np.array([1, 1]), rng)
    assert (match == -1).sum() == 256 and not (match == 1).any() and not deltas.any()


def test_empty_image_gives_negatives_only():
    match, deltas = rpn_targets(ANCHORS, np.zeros((4, 4)), np.zeros(4, int), np.random.default_rng(2), samples=64)
    assert (match == -1).sum() == 64 and (match == 1).sum() == 0 and not deltas.any()
    match, _ = rpn_targets(ANCHORS, np.zeros((0, 4)), np.zeros(0, int), np.random.default_rng(2))
    assert (match == -1).sum() == 256


def test_crowd_regions_are_no_background():
    boxes = np.array([[0.0, 0.0, 0.5, 1.0]], "f")
    match, _ = rpn_targets(ANCHORS, boxes, np.array([-1]), np.random.default_rng(3), samples=10**6)
    touching = iou_table(ANCHORS, boxes)[:, 0] > 1e-3
    assert (match[touching] == 0).all() and (match[~touching] == -1).all() and touching.any()


def test_sample_is_limited_and_drawn():
    rng = np.random.default_rng(4)
    boxes = random_objects(rng, 60)
    match, deltas = rpn_targets(ANCHORS, boxes, np.ones(60, int), np.random.default_rng(0), samples=40)
    again, _ = rpn_targets(ANCHORS, boxes, np.ones(60, int), np.random.default_rng(0), samples=40)
    other, _ = rpn_targets(ANCHORS, boxes, np.ones(60, int), np.random.default_rng(1), samples=40)
    assert (match == 1).sum() == 20 and (match == -1).sum() == 20
    assert np.array_equal(match, again) and not np.array_equal(match, other)
    assert match.dtype == np.int8 and deltas.dtype == np.float32
