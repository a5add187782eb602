"""Boxes, suppression, ROI align and sampling against NumPy references."""

import keras
import numpy as np
import pytest
from harness import to_numpy

from keras_microseg import backend
from keras_microseg.layers.anchors import anchor_scales, pyramid_anchors
from keras_microseg.layers.boxes import box_iou, decode_boxes, encode_boxes, from_legacy, to_legacy
from keras_microseg.layers.nms import non_maximum_suppression, top_indices
from keras_microseg.layers.roi import Detections, Proposals, ROIAlign, SampleROIs

DEVIATIONS = (0.1, 0.1, 0.2, 0.2)


def random_boxes(rng, *shape, size=(0.05, 0.4)):
    start = rng.uniform(0, 0.7, (*shape, 2))
    return np.concatenate([start, start + rng.uniform(*size, (*shape, 2))], axis=-1).astype(np.float32)


def iou_of(a, b):
    """IoU of (..., 4) with (..., 4), broadcast, in float32 as the layers compute it."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.maximum(size, 0).prod(axis=-1)
    area = [np.maximum(x[..., 2:] - x[..., :2], 0).prod(axis=-1) for x in (a, b)]
    return common / np.maximum(area[0] + area[1] - common, np.float32(1e-12))


def greedy(boxes, scores, valid, threshold, classes):
    """The greedy algorithm for a batch of cases: (B, N) rank of each kept box, -1 for others."""
    rank = np.full(scores.shape, -1)
    alive, cases, count = valid > 0, np.arange(len(boxes)), np.zeros(len(boxes), int)
    for _ in range(boxes.shape[1]):
        best = np.argmax(np.where(alive, scores, -np.inf), axis=1)  # the first of equals
        found = alive[cases, best]
        rank[cases[found], best[found]] = count[found]
        count += found
        chosen = boxes[cases, best][:, None]
        close = (iou_of(boxes, chosen) > threshold) & (classes == classes[cases, best][:, None])
        close[cases, best] = True
        alive &= ~(close & found[:, None])
    return rank


class Suppression(keras.Model):
    """(B, N, 7): box, score, validity, class -> (B, K, 2): index, kept."""

    def __init__(self, threshold, outputs):
        super().__init__()
        self.threshold, self.outputs_ = threshold, outputs
        self.built = True

    def call(self, x, training=None):
        boxes, score, valid, classes = x[..., :4], x[..., 4], x[..., 5], x[..., 6]
        found = non_maximum_suppression(boxes, score, valid, self.threshold, self.outputs_, classes)
        return keras.ops.stack([keras.ops.cast(part, "float32") for part in found], axis=-1)


def test_suppression_is_the_greedy_algorithm_on_ten_thousand_cases():
    rng, cases, count, slots = np.random.default_rng(0), 500, 20, 24
    run = {t: backend.compile_predict(Suppression(t, slots)) for t in (0.3, 0.7)}
    kept_in_all = 0
    for round_ in range(20):
        threshold = (0.3, 0.7)[round_ % 2]
        boxes = random_boxes(rng, cases, count, size=(0.1, 0.5))
        scores = rng.random((cases, count)).astype(np.float32)
        if round_ % 4 == 0:
            scores = np.round(scores * 5) / 5  # many equal scores
        if round_ % 5 == 0:
            boxes[:, ::3] = boxes[:, 1:2]  # many equal boxes
        valid = (rng.random((cases, count)) < 0.9).astype(np.float32)
        valid[0] = 0
        classes = rng.integers(1, 1 + round_ % 3 + 1, (cases, count)).astype(np.float32)
        packed = np.concatenate([boxes, np.stack([scores, valid, classes], axis=-1)], axis=-1)
        index, kept = np.moveaxis(run[threshold](packed.astype(np.float32)), -1, 0)
        index = index.astype(int)
        expected = greedy(boxes, scores, valid, threshold, classes)
        assert np.array_equal(kept.sum(axis=1), (expected >= 0).sum(axis=1))
        assert np.all(np.diff(kept, axis=1) <= 0)  # kept slots come first
        ranks = np.take_along_axis(expected, np.clip(index, 0, count - 1), axis=1)
        assert np.array_equal(np.where(kept > 0, ranks, 0), np.where(kept > 0, np.arange(slots), 0))
        kept_in_all += kept.sum()
    assert kept_in_all > 30_000


def test_suppression_twice_is_suppression_once():
    rng = np.random.default_rng(1)
    boxes, scores = random_boxes(rng, 3, 60), rng.random((3, 60)).astype("f")
    index, kept = map(to_numpy, non_maximum_suppression(boxes, scores, np.ones((3, 60)), 0.4, 60))
    assert 3 * 5 < kept.sum() < 3 * 60
    again = np.take_along_axis(boxes, index[..., None], axis=1), np.take_along_axis(scores, index, axis=1)
    index_2, kept_2 = map(to_numpy, non_maximum_suppression(*again, kept, 0.4, 60))
    assert np.array_equal(kept, kept_2)
    assert np.array_equal(index_2[kept > 0], np.broadcast_to(np.arange(60), index.shape)[kept > 0])


def test_equal_scores_keep_their_order():
    scores = np.zeros((2, 3000), "f")
    scores[1, 1234] = 1
    first = to_numpy(top_indices(scores, 5))
    assert first.tolist() == [[0, 1, 2, 3, 4], [1234, 0, 1, 2, 3]]


def test_decoding_undoes_encoding():
    rng = np.random.default_rng(2)
    boxes, references = random_boxes(rng, 200), random_boxes(rng, 200)
    back = to_numpy(decode_boxes(encode_boxes(boxes, references, DEVIATIONS), references, DEVIATIONS))
    np.testing.assert_allclose(back, boxes, atol=1e-6)
    np.testing.assert_allclose(to_numpy(from_legacy(to_legacy(boxes, 64), 64)), boxes, atol=1e-6)
    pixels = np.array([[0, 0, 64, 64], [8, 16, 10, 20]], "f")
    np.testing.assert_allclose(to_numpy(to_legacy(pixels / 64, 64)), (pixels - [0, 0, 1, 1]) / 63, atol=1e-6)


def test_decoding_is_the_formula_and_bounded():
    reference = np.array([[0.2, 0.3, 0.4, 0.7]], "f")
    found = to_numpy(decode_boxes(np.array([[1, -2, 0.5, 1]], "f"), reference, DEVIATIONS))[0]
    y, x, h, w = 0.3 + 0.1 * 0.2, 0.5 - 0.2 * 0.4, 0.2 * np.exp(0.1), 0.4 * np.exp(0.2)
    np.testing.assert_allclose(found, [y - h / 2, x - w / 2, y + h / 2, x + w / 2], rtol=1e-5)
    huge = to_numpy(decode_boxes(np.full((1, 4), 1e4, "f"), reference, (0.1, 0.1, 0.2, 0.2)))
    assert np.isfinite(huge).all() and np.isclose(huge[0, 2] - huge[0, 0], 0.2 * 62.5, rtol=1e-3)


def test_boxes_without_area_stay_finite():
    zero = np.zeros((2, 4), "f")
    assert to_numpy(box_iou(zero, zero)).tolist() == [[0, 0], [0, 0]]
    assert np.isfinite(to_numpy(encode_boxes(zero, zero, DEVIATIONS))).all()
    pooled = ROIAlign(3, 32)([np.ones((1, 8, 8, 2), "f")], zero[None])
    assert np.allclose(to_numpy(pooled), 1)


def align_reference(features, box, pool, tile, samples, canonical, legacy):
    """One box, by plain loops in float64."""
    y1, x1, y2, x2 = box.astype(np.float64)
    size = np.sqrt(max((y2 - y1) * (x2 - x1), 1e-12)) * tile / canonical
    level = int(np.clip(np.round(4 + np.log2(size)) - 2, 0, len(features) - 1))
    grid = features[level].astype(np.float64)
    height, width, channels = grid.shape
    out = np.zeros((pool, pool, channels))

    def sample(y, x):
        if legacy and not (-1e-4 <= y <= height - 1 + 1e-4 and -1e-4 <= x <= width - 1 + 1e-4):
            return 0.0
        y, x = np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)
        i, j = int(y), int(x)
        k, m = min(i + 1, height - 1), min(j + 1, width - 1)
        v, u = y - i, x - j
        top, bottom = grid[i, j] * (1 - u) + grid[i, m] * u, grid[k, j] * (1 - u) + grid[k, m] * u
        return top * (1 - v) + bottom * v

    for p in range(pool):
        for q in range(pool):
            if legacy:
                step_y, step_x = (y2 - y1) / (pool - 1), (x2 - x1) / (pool - 1)
                out[p, q] = sample((y1 + p * step_y) * (height - 1), (x1 + q * step_x) * (width - 1))
                continue
            parts = (np.arange(samples) + 0.5) / samples
            values = [
                sample(
                    (y1 + (y2 - y1) * (p + a) / pool) * height - 0.5, (x1 + (x2 - x1) * (q + b) / pool) * width - 0.5
                )
                for a in parts
                for b in parts
            ]
            out[p, q] = np.mean(values, axis=0)
    return out


@pytest.mark.parametrize(("samples", "legacy"), [(2, False), (1, False), (1, True)])
def test_align_is_the_reference(samples, legacy):
    rng = np.random.default_rng(3)
    tile, pool = 64, 5
    features = [rng.random((2, tile // s, tile // s, 3), dtype="f") for s in (4, 8, 16, 32)]
    boxes = random_boxes(rng, 2, 40, size=(0.02, 0.3))
    boxes[:, 30:] = random_boxes(rng, 2, 10, size=(0.3, 1.2))  # over the border
    boxes[0, :3] = [[0, 0, 1, 1], [-0.2, -0.1, 0.3, 0.2], [0.5, 0.5, 0.5, 0.5]]
    layer = ROIAlign(pool, tile, samples=samples, canonical_size=28.0, legacy=legacy)
    found = to_numpy(layer(features, boxes))
    expected = np.array(
        [
            [align_reference([f[b] for f in features], box, pool, tile, samples, 28.0, legacy) for box in boxes[b]]
            for b in range(2)
        ]
    )
    assert found.shape == (2, 40, pool, pool, 3)
    levels = np.round(4 + np.log2(np.sqrt((boxes[..., 2:] - boxes[..., :2]).prod(axis=-1)) * tile / 28 + 1e-9)) - 2
    assert {0, 1, 2, 3} <= set(np.clip(levels, 0, 3).ravel())  # all levels are read
    np.testing.assert_allclose(found, expected, atol=2e-5)
    copy = ROIAlign.from_config(layer.get_config())
    np.testing.assert_allclose(to_numpy(copy(features, boxes)), found, atol=1e-6)


def test_align_sends_gradients_to_features_and_none_to_boxes():
    features = keras.Variable(np.random.default_rng(4).random((1, 8, 8, 2), dtype="f"))
    boxes = keras.Variable(np.array([[[0.1, 0.1, 0.6, 0.7]]], "f"))
    layer = ROIAlign(2, 32)
    _, (to_features, to_boxes) = backend.value_and_grad(
        lambda: keras.ops.sum(layer([features.value], boxes.value)), [features, boxes]
    )
    assert np.isclose(to_numpy(to_features).sum(), 2 * 2 * 2, rtol=1e-5)  # weights of each bin add up to one
    assert not to_numpy(to_boxes).any()


def test_legacy_anchors_are_those_of_the_original():
    levels = pyramid_anchors(1024, (32, 64, 128, 256, 512), (0.5, 1, 2), (4, 8, 16, 32, 64), legacy=True)
    assert [len(level) for level in levels] == [196608, 49152, 12288, 3072, 768]
    first = [[-22.627, -11.314, 22.627, 11.314], [-16, -16, 16, 16], [-11.314, -22.627, 11.314, 22.627]]
    np.testing.assert_allclose(levels[0][:3] * 1024, first, atol=1e-3)
    normalized = to_numpy(to_legacy(np.concatenate(levels), 1024))
    np.testing.assert_allclose([normalized.min(), normalized.max()], [-0.3539, 1.2913], atol=1e-4)


def test_anchors_cover_the_tile_symmetrically():
    (level,) = pyramid_anchors(64, (16,), (1.0,), (8,))
    np.testing.assert_allclose(level[0] * 64, [-4, -4, 12, 12])
    np.testing.assert_allclose(level, 1 - level[::-1, [2, 3, 0, 1]], atol=1e-6)


def test_anchor_scales_follow_the_sizes():
    rng = np.random.default_rng(5)
    sides = np.concatenate([rng.normal(mean, 1, 200) for mean in (20, 40, 90, 200)])
    scales = anchor_scales(np.stack([sides, sides], axis=1), (4, 8, 16, 32))
    np.testing.assert_allclose(scales, [20, 40, 90, 200], rtol=0.05)
    assert anchor_scales(np.full((5, 2), 20.0), (4, 8, 16, 32)) == (20.0, 20.0, 32.0, 64.0)
    with pytest.raises(ValueError, match="at least one labelled box"):
        anchor_scales(np.zeros((3, 2)), (4, 8, 16, 32))


def test_proposals_take_the_best_and_drop_copies():
    anchors = [np.array([[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.31, 0.3], [0.5, 0.5, 0.9, 0.9], [0.9, 0.9, 1.2, 1.2]], "f")]
    logits = np.array([[2.0, 1.0, 3.0, -5.0]], "f")
    deltas = np.zeros((1, 4, 4), "f")
    layer = Proposals(anchors, pre_nms=4, max_outputs=6)
    boxes, scores, valid = map(to_numpy, layer([logits], [deltas]))
    assert valid.tolist() == [[1, 1, 1, 0, 0, 0]]
    np.testing.assert_allclose(boxes[0, :3], [[0.5, 0.5, 0.9, 0.9], [0.1, 0.1, 0.3, 0.3], [0.9, 0.9, 1, 1]], atol=1e-6)
    assert scores[0, :3].tolist() == [3, 2, -5] and not boxes[0, 3:].any()
    copy = Proposals.from_config(layer.get_config())
    np.testing.assert_array_equal(to_numpy(copy([logits], [deltas])[0]), boxes)
    outside = [np.array([[2, 2, 3, 3]], "f")]
    assert not to_numpy(Proposals(outside, 1, 2)([np.ones((1, 1), "f")], [np.zeros((1, 1, 4), "f")])[2]).any()


def sampling_case():
    """Two images: objects at two corners, one crowd region; the second image has none."""
    boxes = np.zeros((2, 4, 4), "f")
    boxes[0, :3] = [[0.1, 0.1, 0.3, 0.3], [0.6, 0.6, 0.9, 0.9], [0.1, 0.6, 0.3, 0.9]]
    classes = np.array([[1, 2, -1, 0], [0, 0, 0, 0]], "int32")
    masks = np.zeros((2, 4, 8, 8), "f")
    masks[0, 0, :4] = 1  # upper half
    masks[0, 1] = 1
    proposals = np.zeros((2, 6, 4), "f")
    proposals[:, :5] = [
        [0.1, 0.1, 0.3, 0.3],
        [0.6, 0.6, 0.85, 0.9],
        [0.1, 0.62, 0.3, 0.9],
        [0.4, 0.1, 0.6, 0.3],
        [0.7, 0.1, 0.9, 0.3],
    ]
    valid = np.array([[1, 1, 1, 1, 1, 0]] * 2, "f")
    return proposals, valid, boxes, classes, masks


def test_samples_fill_quotas_with_the_right_targets():
    layer = SampleROIs(8, positive_share=0.5, mask_size=4, append_truth=False)
    found = {name: to_numpy(value) for name, value in layer(*sampling_case(), random=False).items()}
    assert found["positive"].tolist() == [[1, 1, 0, 0], [0, 0, 0, 0]]
    assert found["weights"].tolist() == [[1, 1, 0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1, 1]]  # crowd: neither
    assert found["classes"][0].tolist() == [1, 2, 0, 0, 0, 0, 0, 0]
    proposals, _, boxes, *_ = sampling_case()
    np.testing.assert_allclose(found["rois"][0, :2], proposals[0, :2])
    expected = to_numpy(encode_boxes(boxes[0, 1], proposals[0, 1], DEVIATIONS))
    np.testing.assert_allclose(found["deltas"][0, 1], expected, atol=1e-5)
    np.testing.assert_allclose(found["masks"][0, 0, :, 0], [1, 1, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found["masks"][0, 1], 1)
    assert all(np.isfinite(value).all() for value in found.values())


def test_samples_are_drawn_within_the_quota_and_repeatable_by_seed():
    case = sampling_case()
    draws = [SampleROIs(4, mask_size=4, seed=7) for _ in range(2)]
    first, second = ({k: to_numpy(v) for k, v in layer(*case).items()} for layer in draws)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert first["weights"].shape == (2, 4) and first["positive"].shape == (2, 1)
    many = {tuple(to_numpy(draws[0](*case)["rois"])[0, 0]) for _ in range(20)}
    assert len(many) > 1  # appended truth and proposals take turns


def test_legacy_sampling_counts_empty_slots_and_limits_negatives():
    layer = SampleROIs(9, positive_share=0.33, mask_size=4, append_truth=False, legacy=True)
    found = {name: to_numpy(value) for name, value in layer(*sampling_case(), random=False).items()}
    assert found["weights"].all()
    assert not found["rois"][1].any()  # no object: no negatives either


def test_detections_are_sorted_separate_and_padded():
    proposals = np.array([[[0.1, 0.1, 0.3, 0.3], [0.1, 0.1, 0.32, 0.3], [0.5, 0.5, 0.9, 0.9], [0, 0, 0, 0]]], "f")
    logits = np.array([[[0, 3, 0], [0, 4, 0], [0, 0, 2.5], [0, 9, 0]]], "f")
    deltas = np.zeros((1, 4, 3, 4), "f")
    deltas[0, 2, 2] = [0, 0, 5 * np.log(0.5), 5 * np.log(0.5)]
    layer = Detections(5, min_score=0.6)
    found = {k: to_numpy(v) for k, v in layer(proposals, np.array([[1, 1, 1, 0]], "f"), logits, deltas).items()}
    assert found["valid"].tolist() == [[1, 1, 0, 0, 0]]
    assert found["classes"].tolist() == [[1, 2, 0, 0, 0]] and found["classes"].dtype == np.int32
    np.testing.assert_allclose(found["boxes"][0, :2], [[0.1, 0.1, 0.32, 0.3], [0.6, 0.6, 0.8, 0.8]], atol=1e-6)
    np.testing.assert_allclose(found["scores"][0, 0], np.exp(4) / (np.exp(4) + 2), rtol=1e-5)
    copy = Detections.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
