"""Regions of interest on static shapes: features of boxes, proposals, samples for training, detections.

Every list of boxes has a fixed length; what is no box is carried along with weight 0. All of it is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg.layers.box_targets import DEVIATIONS
from keras_microseg.layers.boxes import box_iou, clip_boxes, decode_boxes, encode_boxes, has_area
from keras_microseg.layers.nms import non_maximum_suppression, take_rows, top_indices

_register = keras.saving.register_keras_serializable(package="keras_microseg")


class _BoxLayer(keras.layers.Layer):
    """A layer that computes in float32, whatever the precision policy, and has no weights to train."""

    def __init__(self, **kwargs: Any):
        super().__init__(**({"dtype": "float32"} | kwargs))
        self.built = True


@_register
class ROIAlign(keras.layers.Layer):
    """Features of boxes, resampled to a fixed size, each box from the pyramid level that fits its size.

    A box of height h and width w pixels belongs to level `4 + log2(sqrt(h w) / canonical_size)`, rounded, within the
    levels there are (Lin et al. 2017, arXiv:1612.03144, eq. 1). By default a bin is the mean of `samples` x `samples`
    bilinear samples at the centres of its parts, with feature (i, j) at ((i + 1/2) stride, (j + 1/2) stride) and border
    features repeated outwards (He et al. 2017, arXiv:1703.06870, with the half-pixel shift of later versions). With
    `legacy`, one sample per bin on a grid from corner to corner of the box, first and last feature at 0 and 1, zero
    outside: TensorFlow's crop-and-resize.

    Levels are laid end to end and read by flat index, so the work does not depend on where boxes lie. Gradients flow to
    the features, not to the boxes.

    Args:
        pool_size: P.
        tile_size: side of the network's input in pixels.
        samples: per bin and axis.
        canonical_size: pixels; side of a box that belongs to level 4.
        first_level: level of the first of the feature maps.
        legacy: see above.

    Call with `(features, boxes)`: list of (B, H, W, C) per level, and (B, R, 4) in 0..1; returns (B, R, P, P, C).
    """

    def __init__(
        self,
        pool_size: int,
        tile_size: int,
        samples: int = 2,
        canonical_size: float = 224.0,
        first_level: int = 2,
        legacy: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**({"autocast": False} | kwargs))
        self.pool_size, self.tile_size, self.samples = pool_size, tile_size, samples
        self.canonical_size, self.first_level, self.legacy = canonical_size, first_level, legacy
        self.built = True

    def call(self, features: Sequence[Any], boxes: Any) -> Any:
        boxes = ops.stop_gradient(ops.cast(boxes, "float32"))
        batch, count = ops.shape(features[0])[0], boxes.shape[1]
        channels = features[0].shape[-1]
        sizes = [tuple(level.shape[1:3]) for level in features]
        flat = ops.concatenate([ops.reshape(level, (-1, channels)) for level in features], axis=0)

        level = self._levels(boxes, len(features))
        height = ops.take(np.array([h for h, _ in sizes], "int32"), level)
        width = ops.take(np.array([w for _, w in sizes], "int32"), level)
        cells = np.array([h * w for h, w in sizes], "int32")
        earlier = (np.cumsum(cells) - cells).astype("int32")  # features of one image in the levels before
        image = ops.arange(batch, dtype="int32")[:, None]
        start = ops.take(earlier, level) * ops.cast(batch, "int32") + ops.take(cells, level) * image

        rows = self._positions(boxes[..., 0], boxes[..., 2], height)
        columns = self._positions(boxes[..., 1], boxes[..., 3], width)
        total = None
        for row_index, row_weight in rows:
            row_start = start[..., None] + row_index * width[..., None]
            for column_index, column_weight in columns:
                index = row_start[..., :, None] + column_index[..., None, :]
                weight = (row_weight[..., :, None] * column_weight[..., None, :])[..., None]
                part = ops.take(flat, ops.reshape(index, (-1,)), axis=0)
                part = ops.reshape(part, (-1, count, self.pool_size, self.pool_size, channels))
                part = part * ops.cast(weight, part.dtype)
                total = part if total is None else total + part
        return total

    def _levels(self, boxes: Any, count: int) -> Any:
        """(B, R) int32 index of each box's feature map."""
        size = ops.sqrt(ops.maximum((boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1]), 1e-12))
        level = ops.round(4 + ops.log2(size * (self.tile_size / self.canonical_size)))
        return ops.cast(ops.clip(level - self.first_level, 0, count - 1), "int32")

    def _positions(self, low: Any, high: Any, size: Any) -> list[tuple[Any, Any]]:
        """Pairs of (B, R, P) index and weight along one axis; their sum is the mean of the bilinear samples."""
        last = ops.cast(size - 1, "float32")[..., None]
        bins = np.arange(self.pool_size, dtype="float32")
        low, length = low[..., None], (high - low)[..., None]
        pairs = []
        samples = 1 if self.legacy else self.samples
        for sample in range(samples):
            if self.legacy:
                position = (low + length * (bins / (self.pool_size - 1))) * last
                inside = ops.logical_and(position >= -1e-4, position <= last + 1e-4)
                share = ops.cast(inside, "float32")
            else:
                position = low + length * ((bins + (sample + 0.5) / samples) / self.pool_size)
                position = position * ops.cast(size, "float32")[..., None] - 0.5
                share = 1.0 / samples
            position = ops.clip(position, 0.0, last)
            lower = ops.floor(position)
            upper_weight = position - lower
            upper = ops.minimum(lower + 1, last)
            pairs.append((ops.cast(lower, "int32"), (1 - upper_weight) * share))
            pairs.append((ops.cast(upper, "int32"), upper_weight * share))
        return pairs

    def get_config(self) -> dict[str, Any]:
        names = ("pool_size", "tile_size", "samples", "canonical_size", "first_level", "legacy")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@_register
class Proposals(_BoxLayer):
    """The best anchors, moved by the network's deltas, without duplicates.

    Args:
        anchors: per level (A_l, 4), in 0..1 (or legacy convention).
        pre_nms: candidates before suppression, per level (in all, without `per_level`).
        max_outputs: K.
        iou_threshold: of the suppression.
        deviations: factors of the deltas.
        per_level: see `pre_nms`.

    Call with per level logits (B, A_l) and deltas (B, A_l, 4); returns (B, K, 4) boxes within 0..1, best first, (B, K)
    their logits and (B, K) float32 1 for boxes, 0 for empty slots. Gradients do not flow.
    """

    def __init__(
        self,
        anchors: Sequence[Any],
        pre_nms: int,
        max_outputs: int,
        iou_threshold: float = 0.7,
        deviations: Sequence[float] = DEVIATIONS,
        per_level: bool = True,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.anchors = [np.asarray(level, np.float32).reshape(-1, 4) for level in anchors]
        self.pre_nms, self.max_outputs, self.per_level = pre_nms, max_outputs, per_level
        self.iou_threshold, self.deviations = iou_threshold, tuple(deviations)

    def call(self, logits: Sequence[Any], deltas: Sequence[Any]) -> tuple[Any, Any, Any]:
        boxes, scores = self.candidates(logits, deltas)
        kept, valid = non_maximum_suppression(boxes, scores, has_area(boxes), self.iou_threshold, self.max_outputs)
        return take_rows(boxes, kept) * valid[..., None], take_rows(scores, kept), valid

    def candidates(self, logits: Sequence[Any], deltas: Sequence[Any]) -> tuple[Any, Any]:
        """(B, N, 4) boxes within 0..1 and (B, N) logits before suppression."""
        anchors = self.anchors
        if not self.per_level:
            logits, deltas = [ops.concatenate(logits, axis=1)], [ops.concatenate(deltas, axis=1)]
            anchors = [np.concatenate(anchors)]
        boxes, scores = [], []
        for level_anchors, level_logits, level_deltas in zip(anchors, logits, deltas, strict=True):
            level_logits = ops.stop_gradient(ops.cast(level_logits, "float32"))
            best = top_indices(level_logits, min(self.pre_nms, len(level_anchors)))
            chosen = take_rows(ops.stop_gradient(level_deltas), best)
            boxes.append(clip_boxes(decode_boxes(chosen, ops.take(level_anchors, best, axis=0), self.deviations)))
            scores.append(take_rows(level_logits, best))
        return ops.concatenate(boxes, axis=1), ops.concatenate(scores, axis=1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "anchors": [level.tolist() for level in self.anchors],
            "pre_nms": self.pre_nms,
            "max_outputs": self.max_outputs,
            "iou_threshold": self.iou_threshold,
            "deviations": list(self.deviations),
            "per_level": self.per_level,
        }


@_register
class SampleROIs(_BoxLayer):
    """Draws the regions that train the heads, and what the heads should say about them.

    A proposal is positive when it overlaps an object by `positive_iou` or more, negative when it overlaps none so much
    and no crowd region. Of the R slots, the first `round(R * positive_share)` are for positives, the others for
    negatives; slots that cannot be filled have weight 0.

    Args:
        count: R.
        positive_share: share of the slots for positives.
        positive_iou: see above.
        mask_size: side of the mask targets.
        deviations: divisors of the deltas.
        append_truth: the objects' own boxes are proposals too, which gives the heads positives from the first step.
        round_masks: mask targets are 0 or 1 instead of shares.
        legacy: as the original: at most two negatives per positive, unfilled slots are trained as background, masks
            sampled from corner to corner.
        seed: of the draws.

    Call with proposals (B, N, 4), their validity (B, N), objects (B, G, 4), classes (B, G) int (0 padding, negative
    crowd), masks (B, G, m, m) of the objects cropped to their boxes, and `random`: False takes the first proposals
    instead of drawing (repeatable). Returns a dictionary of
    `rois` (B, R, 4), `weights` (B, R), `classes` (B, R) int32, `deltas` (B, P, 4), `masks` (B, P, k, k) and `positive`
    (B, P) 0 or 1, where P = slots for positives, the first of the R. Gradients do not flow.
    """

    def __init__(
        self,
        count: int,
        positive_share: float = 0.25,
        positive_iou: float = 0.5,
        mask_size: int = 28,
        deviations: Sequence[float] = DEVIATIONS,
        append_truth: bool = True,
        round_masks: bool = False,
        legacy: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.count, self.positive_share, self.positive_iou = count, positive_share, positive_iou
        self.mask_size, self.deviations, self.append_truth = mask_size, tuple(deviations), append_truth
        self.round_masks, self.legacy, self.seed = round_masks, legacy, seed
        self.max_positive = min(max(int(count * positive_share), 1), count)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(
        self, proposals: Any, valid: Any, boxes: Any, classes: Any, masks: Any, random: bool = True
    ) -> dict[str, Any]:
        proposals, boxes = (ops.stop_gradient(ops.cast(x, "float32")) for x in (proposals, boxes))
        classes, valid = ops.cast(classes, "int32"), ops.cast(valid, "float32")
        masks = ops.cast(masks, "float32")
        areas = ops.cast(has_area(boxes), "float32")
        is_object = ops.cast(classes > 0, "float32") * areas
        is_crowd = ops.cast(classes < 0, "float32") * areas
        if self.append_truth:
            proposals = ops.concatenate([boxes, proposals], axis=1)
            valid = ops.concatenate([is_object, valid], axis=1)
        missing = self.count - proposals.shape[1]
        if missing > 0:
            proposals = ops.pad(proposals, ((0, 0), (0, missing), (0, 0)))
            valid = ops.pad(valid, ((0, 0), (0, missing)))
        overlap = box_iou(proposals, boxes)
        in_crowd = ops.max(overlap * is_crowd[:, None, :], axis=-1)
        overlap = overlap * is_object[:, None, :]
        best, owner = ops.max(overlap, axis=-1), ops.argmax(overlap, axis=-1)
        positive = valid * ops.cast(best >= self.positive_iou, "float32")
        negative = valid * ops.cast(ops.logical_and(best < self.positive_iou, in_crowd < 1e-3), "float32")
        if random:
            key = keras.random.uniform(ops.shape(positive), dtype="float32", seed=self.seed_generator)
        else:
            key = ops.zeros_like(positive)
        first = top_indices(positive * (1 + key), self.max_positive)
        second = top_indices(negative * (1 + key), self.count - self.max_positive)
        is_positive, is_negative = take_rows(positive, first), take_rows(negative, second)
        if self.legacy:
            found = ops.sum(is_positive, axis=1, keepdims=True)
            room = ops.floor(found / self.positive_share) - found
            rank = ops.arange(self.count - self.max_positive, dtype="float32")
            is_negative = is_negative * ops.cast(rank < room, "float32")
        rois = take_rows(proposals, first)
        owner = ops.cast(take_rows(owner, first), "int32")
        target = take_rows(boxes, owner)
        target_class = take_rows(classes, owner) * ops.cast(is_positive, "int32")
        deltas = encode_boxes(target, rois, self.deviations) * is_positive[..., None]
        rois = rois * is_positive[..., None]
        others = take_rows(proposals, second) * is_negative[..., None]
        weights = ops.concatenate([is_positive, is_negative], axis=1)
        return {
            "rois": ops.concatenate([rois, others], axis=1),
            "weights": ops.ones_like(weights) if self.legacy else weights,
            "classes": ops.concatenate([target_class, ops.zeros_like(second)], axis=1),
            "deltas": deltas,
            "masks": self._mask_targets(masks, owner, target, rois) * is_positive[..., None, None],
            "positive": is_positive,
        }

    def _mask_targets(self, masks: Any, owner: Any, boxes: Any, rois: Any) -> Any:
        """(B, P, k, k): the mask of each region's object, seen in the region."""
        batch, (count, size) = ops.shape(masks)[0], masks.shape[1:3]
        flat = ops.reshape(masks, (-1,))
        start = (ops.arange(batch, dtype="int32")[:, None] * count + owner) * (size * size)
        rows = self._mask_positions(boxes[..., 0], boxes[..., 2], rois[..., 0], rois[..., 2], size)
        columns = self._mask_positions(boxes[..., 1], boxes[..., 3], rois[..., 1], rois[..., 3], size)
        total = 0.0
        for row, row_weight in rows:
            for column, column_weight in columns:
                index = start[..., None, None] + row[..., :, None] * size + column[..., None, :]
                weight = row_weight[..., :, None] * column_weight[..., None, :]
                total = total + ops.take(flat, index) * weight
        return ops.cast(total >= 0.5, "float32") if self.round_masks else total

    def _mask_positions(self, low: Any, high: Any, roi_low: Any, roi_high: Any, size: int) -> list[tuple[Any, Any]]:
        pixels = np.arange(self.mask_size, dtype="float32")
        inner = pixels / (self.mask_size - 1) if self.legacy else (pixels + 0.5) / self.mask_size
        length = ops.maximum(high - low, 1e-6)[..., None]
        position = (roi_low[..., None] + (roi_high - roi_low)[..., None] * inner - low[..., None]) / length
        inside = ops.cast(ops.logical_and(position >= -1e-5, position <= 1 + 1e-5), "float32")
        position = ops.clip(position * (size - 1) if self.legacy else position * size - 0.5, 0.0, size - 1.0)
        lower = ops.floor(position)
        upper = ops.minimum(lower + 1, size - 1.0)
        share = position - lower
        return [(ops.cast(lower, "int32"), (1 - share) * inside), (ops.cast(upper, "int32"), share * inside)]

    def get_config(self) -> dict[str, Any]:
        names = (
            "count",
            "positive_share",
            "positive_iou",
            "mask_size",
            "append_truth",
            "round_masks",
            "legacy",
            "seed",
        )
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **config, "deviations": list(self.deviations)}


@_register
class Detections(_BoxLayer):
    """Proposals, moved by the deltas of their likeliest object class, without doubtful ones and duplicates.

    Args:
        max_outputs: D.
        min_score: least probability of the class.
        iou_threshold: of the suppression within a class.
        deviations: factors of the deltas.
        legacy: a proposal that is likelier background than anything else is none, as in the original; otherwise
            `min_score` alone decides, which differs below 0.5.

    Call with proposals (B, N, 4), their validity (B, N), class logits (B, N, K) with background 0, and deltas
    (B, N, K, 4). Returns a dictionary of `boxes` (B, D, 4) within 0..1, `classes` (B, D) int32, `scores` (B, D),
    `valid` (B, D) 0 or 1, best first and zero in empty slots; `refined` (B, N, 4) the moved proposals; `probabilities`
    (B, N, K).
    """

    def __init__(
        self,
        max_outputs: int,
        min_score: float = 0.5,
        iou_threshold: float = 0.5,
        deviations: Sequence[float] = DEVIATIONS,
        legacy: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.max_outputs, self.min_score, self.legacy = max_outputs, min_score, legacy
        self.iou_threshold, self.deviations = iou_threshold, tuple(deviations)

    def call(self, proposals: Any, valid: Any, logits: Any, deltas: Any) -> dict[str, Any]:
        probabilities = ops.softmax(ops.cast(logits, "float32"), axis=-1)
        first = 0 if self.legacy else 1
        classes = ops.cast(ops.argmax(probabilities[..., first:], axis=-1), "int32") + first
        scores = ops.max(probabilities[..., first:], axis=-1)
        own = ops.sum(ops.one_hot(classes, logits.shape[-1], dtype="float32")[..., None] * deltas, axis=2)
        refined = clip_boxes(decode_boxes(own, proposals, self.deviations))
        good = ops.cast(ops.logical_and(classes > 0, scores >= self.min_score), "float32")
        good = good * ops.cast(valid, "float32") * ops.cast(has_area(refined), "float32")
        kept, found = non_maximum_suppression(refined, scores, good, self.iou_threshold, self.max_outputs, classes)
        return {
            "boxes": take_rows(refined, kept) * found[..., None],
            "classes": take_rows(classes, kept) * ops.cast(found, "int32"),
            "scores": take_rows(scores, kept) * found,
            "valid": found,
            "refined": refined,
            "probabilities": probabilities,
        }

    def get_config(self) -> dict[str, Any]:
        names = ("max_outputs", "min_score", "iou_threshold", "legacy")
        config = {name: getattr(self, name) for name in names}
        return {**super().get_config(), **config, "deviations": list(self.deviations)}
