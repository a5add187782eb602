"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) of static shapes, trained by plain `fit` on every backend.

Image -> feature pyramid -> region proposals -> class and box of each -> mask of each detection. All lists have fixed
lengths and a 0/1 weight per slot, so each batch shape compiles once and nothing depends on how many objects there are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg import backend, layers
from keras_microseg.checks import UserError
from keras_microseg.layers.anchors import pyramid_anchors
from keras_microseg.layers.boxes import clip_boxes, from_legacy, to_legacy
from keras_microseg.layers.roi import Detections, Proposals, ROIAlign, SampleROIs
from keras_microseg.models.mask_rcnn_settings import LOSSES, MaskRCNNSettings
from keras_microseg.models.resnet_fpn import feature_pyramid

__all__ = ["GROUPS", "TRAINING_KEYS", "MaskRCNN", "MaskRCNNSettings", "mask_rcnn"]

TRAINING_KEYS = ("image", "boxes", "classes", "masks", "rpn_match", "rpn_deltas")
GROUPS = {
    "heads": r"(mrcnn_|rpn_|fpn_).*",
    "5+": r"(res5|bn5|mrcnn_|rpn_|fpn_).*",
    "4+": r"(res[45]|bn[45]|mrcnn_|rpn_|fpn_).*",
    "3+": r"(res[345]|bn[345]|mrcnn_|rpn_|fpn_).*",
    "all": r".*",
}


def mask_rcnn(settings: MaskRCNNSettings | str = "light", *, dtype: Any = None, **changes: Any) -> MaskRCNN:
    """A Mask R-CNN with random weights.

    Args:
        settings: settings, or the name of a preset.
        dtype: precision policy of backbone and heads, such as "mixed_bfloat16"; None = the global one. Boxes, losses
            and outputs are float32 whatever it is.
        changes: fields of the settings that differ, by name: `mask_rcnn("light", tile_size=256, num_classes=3)`.
    """
    if isinstance(settings, str):
        settings = MaskRCNNSettings.preset(settings, **changes)
    elif changes:
        settings = dataclasses.replace(settings, **changes)
    return MaskRCNN(settings, precision=dtype)


@keras.saving.register_keras_serializable(package="keras_microseg")
class MaskRCNN(keras.Model):
    """The network. `compile(optimizer)` without a loss, then `fit`, `evaluate`, `predict`.

    With S = `tile_size`, C = `channels`, G = `max_instances`, A = number of anchors, m = `mini_mask_size`:

    Training input, one dictionary: `image` (B, S, S, C) float32; `boxes` (B, G, 4) float32 `yxyx` in 0..1, half-open;
    `classes` (B, G) int32, 0 = empty slot, -1 = crowd or ignored region; `masks` (B, G, m, m) float32, each cropped to
    its box; `rpn_match` (B, A) and `rpn_deltas` (B, A, 4) of `layers.box_targets.rpn_targets(model.anchors, ...)`.

    Inference input: `image` alone, or a dictionary with it and without `boxes`. Output, a dictionary, with D =
    `detections` slots, best first: `boxes` (B, D, 4), `classes` (B, D) int32, `scores` (B, D), `valid` (B, D) 1 or 0
    for empty slots, `masks` (B, D, k, k) probabilities of the detected class within the box, k = `mask_size`.

    Args:
        settings: of the graph, or its dictionary.
        precision: policy of backbone and heads; not saved.

    Attributes:
        settings: `MaskRCNNSettings`.
        anchors: (A, 4) float32, all levels.
        tile_size: S.
        pyramid, rpn, box_head, mask_head: the four functional parts.
    """

    def __init__(
        self, settings: MaskRCNNSettings | Mapping[str, Any], name: str = "mask_rcnn", precision: Any = None, **kwargs
    ):
        kwargs.pop("dtype", None)
        super().__init__(name=name, dtype="float32", **kwargs)  # boxes must not be rounded to 16 bits
        if not isinstance(settings, MaskRCNNSettings):
            settings = MaskRCNNSettings(**settings)
        self.settings, self.tile_size = settings, settings.tile_size
        policy = keras.dtype_policies.get(precision or keras.config.dtype_policy())
        strides, legacy = settings.strides, settings.legacy
        levels = pyramid_anchors(
            settings.tile_size, settings.anchor_scales, settings.anchor_ratios, strides, legacy=legacy
        )
        self.anchors = np.concatenate(levels)
        if legacy:
            levels = [keras.ops.convert_to_numpy(to_legacy(level, settings.tile_size)) for level in levels]

        self.pyramid = feature_pyramid(
            settings.backbone,
            settings.tile_size,
            settings.channels,
            width=settings.pyramid_width,
            num_levels=len(strides),
            train_batch_norm=settings.train_batch_norm,
            input_scale=settings.input_scale,
            input_mean=settings.input_mean,
            light_widths=settings.light_widths,
            dtype=policy,
        )
        self.rpn = _rpn(settings, policy)
        self.box_head = _box_head(settings, policy)
        self.mask_head = _mask_head(settings, policy)

        common = {"pre_nms": settings.pre_nms, "iou_threshold": settings.proposal_iou, "per_level": not legacy}
        common["deviations"] = settings.deviations
        self.train_proposals = Proposals(levels, max_outputs=settings.train_proposals, **common)
        self.proposals = Proposals(levels, max_outputs=settings.proposals, **common)
        self.sample_rois = SampleROIs(
            settings.rois,
            settings.positive_share,
            mask_size=settings.mask_size,
            deviations=settings.deviations,
            append_truth=settings.append_truth,
            round_masks=settings.round_masks,
            legacy=legacy,
        )
        self.detections = Detections(
            settings.detections, settings.min_score, settings.detection_iou, settings.deviations, legacy
        )
        align = {"tile_size": settings.tile_size, "samples": settings.roi_samples, "legacy": legacy}
        size = settings.canonical_size
        self.box_align = ROIAlign(settings.box_pool, canonical_size=size, **align)
        self.mask_align = ROIAlign(settings.mask_pool, canonical_size=settings.mask_canonical_size or size, **align)
        self.loss_means = [keras.metrics.Mean(name=name) for name in LOSSES]
        self.random_rois = True
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Detections; with objects among the inputs, what `compute_loss` needs."""
        if not isinstance(inputs, Mapping):
            inputs = {"image": inputs}
        if "boxes" in inputs:
            return self._train(inputs, bool(training))
        outputs = self._detect(inputs["image"])
        return {name: outputs[name] for name in ("boxes", "classes", "scores", "valid", "masks")}

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None, training: bool = True
    ) -> Any:
        """Weighted sum of the five losses; each is a mean over what counts, 0 where nothing does."""
        missing = [key for key in TRAINING_KEYS if not isinstance(x, Mapping) or key not in x]
        if missing:
            raise UserError(
                f"Training takes one dictionary with {', '.join(TRAINING_KEYS)}. Missing: {', '.join(missing)}."
            )
        match, rpn_deltas = (ops.convert_to_tensor(x[name], dtype="float32") for name in ("rpn_match", "rpn_deltas"))
        found = y_pred["rpn_logits"]
        is_positive = ops.cast(match > 0, "float32")
        weights, positive = y_pred["weights"], y_pred["positive"]
        classes = ops.one_hot(y_pred["target_classes"], self.settings.num_classes, dtype="float32")
        own = classes[:, : positive.shape[1]]
        log_probabilities = ops.log_softmax(y_pred["class_logits"], axis=-1)
        deltas = ops.sum(own[..., None] * y_pred["box_deltas"], axis=2)
        masks = ops.sum(own[:, :, None, None, :] * y_pred["mask_logits"], axis=-1)
        terms = (
            _mean(_cross_entropy(is_positive, found), ops.abs(match)),
            _mean(ops.mean(_smooth_l1(y_pred["rpn_deltas"] - rpn_deltas), axis=-1), is_positive),
            _mean(-ops.sum(classes * log_probabilities, axis=-1), weights),
            _mean(ops.mean(_smooth_l1(deltas - y_pred["target_deltas"]), axis=-1), positive),
            _mean(ops.mean(_cross_entropy(y_pred["target_masks"], masks), axis=(2, 3)), positive),
        )
        for mean, term in zip(self.loss_means, terms, strict=True):
            mean.update_state(ops.stop_gradient(term))
        total = sum(weight * term for weight, term in zip(self.settings.loss_weights, terms, strict=True))
        return sum(self.losses, total)

    def inspect(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """All stages of inference, for looking at them.

        Args:
            image: (B, S, S, C) float32.

        Returns:
            Arrays: the outputs of `predict`, and `anchors` (A, 4); `rpn_scores` (B, A) probability of an object;
            `rpn_deltas` (B, A, 4); `candidates` (B, N, 4) and `candidate_scores` (B, N), the anchors taken, moved and
            clipped, before suppression; `proposals` (B, K, 4), `proposal_scores`, `proposal_valid` (B, K);
            `class_probabilities` (B, K, classes); `refined` (B, K, 4) proposals moved by their likeliest class.
        """
        if getattr(self, "_inspect", None) is None:
            object.__setattr__(self, "_inspect", backend.compile_predict(_Stages(self)))
        stages = self._inspect(np.asarray(image, np.float32))
        return {"anchors": self.anchors} | {name: np.asarray(value) for name, value in stages.items()}

    def for_tile(self, tile_size: int, **changes: Any) -> MaskRCNN:
        """The same network for tiles of another size, with slots in proportion to the area; weights are copied.

        Larger tiles have fewer overlaps to compute twice; sizes in pixels, of anchors for example, stay as they are.

        Args:
            tile_size: side of the new tiles.
            changes: settings that differ, by name.
        """
        share = (tile_size / self.tile_size) ** 2
        slots = {
            name: max(1, round(getattr(self.settings, name) * share))
            for name in ("max_instances", "detections", "proposals", "train_proposals", "pre_nms", "rois")
        }
        slots["pre_nms"] = min(slots["pre_nms"], max(1024, self.settings.pre_nms))
        copy = MaskRCNN(dataclasses.replace(self.settings, **(slots | {"tile_size": tile_size} | changes)))
        for ours, theirs in zip(copy.weighted_layers(), self.weighted_layers(), strict=True):
            ours.set_weights(theirs.get_weights())
        return copy

    def set_trainable(self, group: str) -> list[str]:
        """Choose the layers that learn; compile afterwards.

        Args:
            group: "heads" (all but the backbone), "5+", "4+", "3+" (heads and the backbone from that stage on), "all",
                or a regular expression of layer names. Batch normalization of other layers keeps its statistics.

        Returns:
            Names of the layers with weights that learn.
        """
        pattern = re.compile(GROUPS.get(group, group))
        chosen = []
        for layer in self.weighted_layers():
            layer.trainable = bool(pattern.fullmatch(layer.name))
            if layer.trainable:
                chosen.append(layer.name)
        if not chosen:
            raise UserError(
                f"No layer is called like {group!r}. Use one of {', '.join(GROUPS)} or an expression of layer names."
            )
        return chosen

    def weighted_layers(self) -> list[keras.Layer]:
        """Layers that own weights, in order; their names are unique."""
        parts = (self.pyramid, self.rpn, self.box_head, self.mask_head)
        return [layer for part in parts for layer in part.layers if layer.weights]

    def get_config(self) -> dict[str, Any]:
        return {"settings": dataclasses.asdict(self.settings), "name": self.name}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> MaskRCNN:
        return cls(**config)

    def _features(self, image: Any, training: bool) -> tuple[list[Any], list[Any], list[Any]]:
        """Pyramid, and per level RPN logits (B, A_l) and deltas (B, A_l, 4)."""
        size, channels = self.tile_size, self.settings.channels
        if tuple(image.shape[1:]) != (size, size, channels):
            raise UserError(
                f"The model takes images of (batch, {size}, {size}, {channels}). Received: {tuple(image.shape)}"
            )
        features = self.pyramid(image, training=training)
        logits, deltas = [], []
        for level in features:
            raw, moves = self.rpn(level, training=training)
            raw = ops.reshape(raw, (-1, int(np.prod(raw.shape[1:])) // 2, 2))
            logits.append(raw[..., 1] - raw[..., 0])
            deltas.append(ops.reshape(moves, (-1, int(np.prod(moves.shape[1:])) // 4, 4)))
        return features, logits, deltas

    def _train(self, inputs: Mapping[str, Any], training: bool) -> dict[str, Any]:
        features, logits, deltas = self._features(inputs["image"], training)
        proposals, _, valid = self.train_proposals(logits, deltas)
        boxes = ops.cast(inputs["boxes"], "float32")
        boxes = to_legacy(boxes, self.tile_size) if self.settings.legacy else boxes
        random = training and self.random_rois
        rois = self.sample_rois(proposals, valid, boxes, inputs["classes"], inputs["masks"], random=random)
        count = self.sample_rois.max_positive
        class_logits, box_deltas = self._classify(features, rois["rois"], training)
        return {
            "rpn_logits": ops.concatenate(logits, axis=1),
            "rpn_deltas": ops.concatenate(deltas, axis=1),
            "class_logits": class_logits,
            "box_deltas": box_deltas[:, :count],
            "mask_logits": self._masks(features, rois["rois"][:, :count], training),
            "target_classes": rois["classes"],
            "target_deltas": rois["deltas"],
            "target_masks": rois["masks"],
            "weights": rois["weights"],
            "positive": rois["positive"],
        }

    def _detect(self, image: Any, stages: bool = False) -> dict[str, Any]:
        features, logits, deltas = self._features(image, False)
        proposals, scores, valid = self.proposals(logits, deltas)
        class_logits, box_deltas = self._classify(features, proposals, False)
        found = self.detections(proposals, valid, class_logits, box_deltas)
        masks = self._masks(features, found["boxes"], False)
        own = ops.one_hot(found["classes"], self.settings.num_classes, dtype="float32")
        masks = ops.sigmoid(ops.sum(own[:, :, None, None, :] * masks, axis=-1))
        outputs = {**found, "masks": masks * found["valid"][:, :, None, None]}
        convert = self._to_plain
        outputs["boxes"] = convert(found["boxes"]) * found["valid"][..., None]
        if not stages:
            return outputs
        candidates, candidate_scores = self.proposals.candidates(logits, deltas)
        return {name: outputs[name] for name in ("boxes", "classes", "scores", "valid", "masks")} | {
            "rpn_scores": ops.sigmoid(ops.concatenate(logits, axis=1)),
            "rpn_deltas": ops.concatenate(deltas, axis=1),
            "candidates": convert(candidates),
            "candidate_scores": ops.sigmoid(candidate_scores),
            "proposals": convert(proposals) * valid[..., None],
            "proposal_scores": ops.sigmoid(scores) * valid,
            "proposal_valid": valid,
            "class_probabilities": found["probabilities"],
            "refined": convert(found["refined"]) * valid[..., None],
        }

    def _to_plain(self, boxes: Any) -> Any:
        return clip_boxes(from_legacy(boxes, self.tile_size)) if self.settings.legacy else boxes

    def _classify(self, features: list[Any], boxes: Any, training: bool) -> tuple[Any, Any]:
        """(B, R, classes) logits and (B, R, classes, 4) deltas."""
        count, classes = boxes.shape[1], self.settings.num_classes
        pooled = self.box_align(features[:4], boxes)
        pooled = ops.reshape(pooled, (-1, *pooled.shape[2:]))
        logits, deltas = self.box_head(pooled, training=training)
        return ops.reshape(logits, (-1, count, classes)), ops.reshape(deltas, (-1, count, classes, 4))

    def _masks(self, features: list[Any], boxes: Any, training: bool) -> Any:
        """(B, R, k, k, classes) logits."""
        count, size = boxes.shape[1], self.settings.mask_size
        pooled = self.mask_align(features[:4], boxes)
        pooled = ops.reshape(pooled, (-1, *pooled.shape[2:]))
        logits = self.mask_head(pooled, training=training)
        return ops.reshape(logits, (-1, count, size, size, self.settings.num_classes))


class _Stages(keras.Model):
    """The stages of a model's inference as outputs."""

    def __init__(self, model: MaskRCNN):
        super().__init__(name="stages", dtype="float32")
        self.model = model
        self.built = True

    def call(self, image: Any, training: bool | None = None) -> dict[str, Any]:
        return self.model._detect(image, stages=True)


def _rpn(settings: MaskRCNNSettings, policy: Any) -> keras.Model:
    """Per feature: (background, object) logits and deltas of each ratio; one set of weights for all levels."""
    count = len(settings.anchor_ratios)
    features = keras.Input((None, None, settings.pyramid_width), dtype=policy.compute_dtype, name="features")
    x = layers.Conv2D(settings.rpn_width, 3, padding="same", activation="relu", name="rpn_conv_shared", dtype=policy)(
        features
    )
    logits = layers.Conv2D(2 * count, 1, name="rpn_class_raw", dtype="float32")(x)
    deltas = layers.Conv2D(4 * count, 1, name="rpn_bbox_pred", dtype="float32")(x)
    return keras.Model(features, [logits, deltas], name="rpn_model")


def _box_head(settings: MaskRCNNSettings, policy: Any) -> keras.Model:
    """Class logits and per class deltas of a region."""
    pool, classes = settings.box_pool, settings.num_classes
    features = keras.Input((pool, pool, settings.pyramid_width), dtype=policy.compute_dtype, name="features")
    x = features
    for number, size in ((1, pool), (2, 1)):
        x = layers.Conv2D(settings.box_width, size, name=f"mrcnn_class_conv{number}", dtype=policy)(x)
        x = _head_norm(x, f"mrcnn_class_bn{number}", settings, policy)
        x = keras.layers.ReLU(name=f"mrcnn_class_relu{number}", dtype=policy)(x)
    x = keras.layers.Flatten(name="mrcnn_class_flat", dtype=policy)(x)
    logits = layers.Dense(classes, name="mrcnn_class_logits", dtype="float32")(x)
    deltas = layers.Dense(4 * classes, name="mrcnn_bbox_fc", dtype="float32")(x)
    return keras.Model(features, [logits, deltas], name="box_head")


def _mask_head(settings: MaskRCNNSettings, policy: Any) -> keras.Model:
    """Mask logits of a region per class; each doubling of the size after the first halves the channels."""
    pool, width = settings.mask_pool, settings.mask_width
    features = keras.Input((pool, pool, settings.pyramid_width), dtype=policy.compute_dtype, name="features")
    x = features
    for number in range(1, settings.mask_convs + 1):
        x = layers.Conv2D(width, 3, padding="same", name=f"mrcnn_mask_conv{number}", dtype=policy)(x)
        x = _head_norm(x, f"mrcnn_mask_bn{number}", settings, policy)
        x = keras.layers.ReLU(name=f"mrcnn_mask_relu{number}", dtype=policy)(x)
    doublings, size = 0, pool
    while size < settings.mask_size:
        doublings, size = doublings + 1, size * 2
    if size != settings.mask_size:
        raise UserError(
            f"`mask_size` must be `mask_pool` times 2, 4 or 8. Received: mask_size={settings.mask_size}, "
            f"mask_pool={pool}"
        )
    for number in range(1, doublings + 1):
        name = "mrcnn_mask_deconv" + (str(number) if number > 1 else "")
        x = layers.Conv2DTranspose(
            max(width // 2 ** (number - 1), 8), 2, strides=2, activation="relu", name=name, dtype=policy
        )(x)
    logits = layers.Conv2D(settings.num_classes, 1, name="mrcnn_mask", dtype="float32")(x)
    return keras.Model(features, logits, name="mask_head")


def _head_norm(x: Any, name: str, settings: MaskRCNNSettings, policy: Any) -> Any:
    if not settings.head_norm:
        return x
    norm = layers.BatchNorm(epsilon=1e-3, name=name, dtype=policy)
    return norm(x) if settings.train_batch_norm else norm(x, training=False)


def _mean(values: Any, weights: Any) -> Any:
    return ops.sum(values * weights) / ops.maximum(ops.sum(weights), 1.0)


def _cross_entropy(target: Any, logits: Any) -> Any:
    return ops.maximum(logits, 0.0) - logits * target + ops.log1p(ops.exp(-ops.abs(logits)))


def _smooth_l1(difference: Any) -> Any:
    size = ops.abs(difference)
    return ops.where(size < 1.0, 0.5 * ops.square(size), size - 0.5)
