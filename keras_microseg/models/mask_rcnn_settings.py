"""Settings of a Mask R-CNN and their presets."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.models.resnet_fpn import BACKBONES, LIGHT_WIDTHS

PRESETS = ("light", "default", "legacy")
MASK_SIZES = (28, 56, 112)
LOSSES = ("rpn_class_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss")


@dataclasses.dataclass(frozen=True)
class MaskRCNNSettings:
    """Everything that decides the graph of a Mask R-CNN. Lengths in pixels of the tile.

    Attributes:
        tile_size: side of the square input.
        channels: of the input image. The image is float32; percentile contrast in 0..1 suits all presets.
        num_classes: with background, class 0.
        backbone: "light", "resnet50" or "resnet101".
        light_widths: channels of the light backbone at 1/2, 1/4, 1/8, 1/16 and 1/32.
        anchor_scales: one per pyramid level, finest (stride 4) first; 4 or 5 of them.
        anchor_ratios: width / height.
        max_instances: slots for objects of a tile in training.
        mini_mask_size: side of the masks, cropped to their boxes, that training takes.
        pre_nms: proposals per level before suppression.
        train_proposals, proposals: slots after suppression, in training and in inference.
        proposal_iou: threshold of that suppression.
        rpn_samples: anchors per tile that train the proposals.
        rois: regions per tile that train the heads; `positive_share` of them may be positive.
        append_truth: the objects' boxes are proposals too.
        detections: slots per tile for results.
        min_score: least probability of a detection.
        detection_iou: threshold of the last suppression, within a class.
        mask_size: side of predicted masks, 28, 56 or 112.
        pyramid_width, rpn_width, box_width, mask_width: channels.
        mask_convs: convolutions of the mask head before it grows.
        box_pool, mask_pool: side of the features of a region.
        roi_samples: samples per bin and axis of these features.
        canonical_size: side of a region that is read from level 4, see `layers.roi.ROIAlign`.
        mask_canonical_size: the same for masks; None = `canonical_size`. With `mask_pool` twice `box_pool`, twice the
            size reads a mask from a level that is fine enough for it.
        head_norm: batch normalization in the heads.
        train_batch_norm: False = use stored statistics in training too.
        round_masks: mask targets are 0 or 1 instead of shares.
        loss_weights: factors of `LOSSES`, in their order.
        deviations: sizes of typical box corrections.
        input_scale, input_mean: the network sees `image * input_scale - input_mean`.
        legacy: conventions of the Matterport code: anchors without half a stride of offset, boxes less one pixel,
            corner-aligned features, its sampling of regions, one list of proposals over all levels.
    """

    tile_size: int = 512
    channels: int = 1
    num_classes: int = 2
    backbone: str = "resnet50"
    light_widths: tuple[int, ...] = LIGHT_WIDTHS
    anchor_scales: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0, 256.0)
    anchor_ratios: tuple[float, ...] = (0.7, 1.0, 1.4)
    max_instances: int = 128
    mini_mask_size: int = 56
    pre_nms: int = 1000
    train_proposals: int = 1000
    proposals: int = 500
    proposal_iou: float = 0.7
    rpn_samples: int = 256
    rois: int = 256
    positive_share: float = 0.25
    append_truth: bool = True
    detections: int = 200
    min_score: float = 0.5
    detection_iou: float = 0.5
    mask_size: int = 56
    pyramid_width: int = 256
    rpn_width: int = 256
    box_width: int = 1024
    mask_width: int = 256
    mask_convs: int = 4
    box_pool: int = 7
    mask_pool: int = 14
    roi_samples: int = 2
    canonical_size: float = 224.0
    mask_canonical_size: float | None = None
    head_norm: bool = False
    train_batch_norm: bool = True
    round_masks: bool = False
    loss_weights: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0)
    deviations: tuple[float, ...] = (0.1, 0.1, 0.2, 0.2)
    input_scale: float = 1.0
    input_mean: tuple[float, ...] | None = None
    legacy: bool = False

    def __post_init__(self) -> None:
        for name in ("anchor_scales", "anchor_ratios", "loss_weights", "deviations", "input_mean"):
            value = getattr(self, name)
            if value is not None:  # lists come from JSON
                object.__setattr__(self, name, tuple(float(v) for v in value))
        object.__setattr__(self, "light_widths", standardize_tuple(self.light_widths, 5, "light_widths"))
        check_choice("backbone", self.backbone, BACKBONES)
        check_choice("mask_size", self.mask_size, MASK_SIZES)
        for name in ("channels", "max_instances", "pre_nms", "train_proposals", "proposals", "rpn_samples", "rois"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        for name in ("detections", "mini_mask_size", "roi_samples", "mask_convs", "box_pool"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("num_classes", self.num_classes, minimum=2, integer=True)
        for name in ("proposal_iou", "detection_iou", "min_score"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)
        check_number("positive_share", self.positive_share, minimum=0, maximum=1, exclusive=True)
        if len(self.anchor_scales) not in (4, 5) or min(self.anchor_scales) <= 0:
            raise UserError(
                "`anchor_scales` must be 4 or 5 lengths in pixels, for the strides 4, 8, 16, 32 (and 64). "
                f"Received: anchor_scales={self.anchor_scales}"
            )
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0:
            raise UserError(f"`anchor_ratios` must be positive. Received: anchor_ratios={self.anchor_ratios}")
        step = self.strides[-1]
        check_number("tile_size", self.tile_size, minimum=step, integer=True)
        if self.tile_size % step:
            raise UserError(
                f"`tile_size` must be a multiple of {step}, the largest stride. Received: tile_size={self.tile_size}. "
                f"Use {-(-self.tile_size // step) * step}."
            )
        if len(self.loss_weights) != len(LOSSES) or len(self.deviations) != 4:
            raise UserError("`loss_weights` must be five numbers and `deviations` four.")
        if self.input_mean is not None and self.channels not in (1, len(self.input_mean)):
            raise UserError(
                f"`input_mean` has {len(self.input_mean)} values, so `channels` must be 1 or {len(self.input_mean)}. "
                f"Received: channels={self.channels}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the features of each level with anchors."""
        return tuple(4 * 2**level for level in range(len(self.anchor_scales)))

    @classmethod
    def preset(cls, name: str = "light", **changes: Any) -> MaskRCNNSettings:
        """A preset with changes.

        "light": narrow, for a CPU: numbers of slots follow the tile's area. "default": ResNet-50 for tiles of 512
        pixels. "legacy": the original's particle configuration for its weight files (1024-pixel tiles, ResNet-101, RGB
        or grey in 0..1, sizes of the heads), 63,733,406 parameters with two classes; `backbone="resnet50"`:
        44,662,942.

        Args:
            name: "light", "default" or "legacy".
            changes: fields that differ, by name.

        Raises:
            UserError: unknown preset or field, or an impossible value.
        """
        check_choice("preset", name, PRESETS)
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(set(changes) - known)
        if unknown:
            raise UserError(f"Unknown settings: {', '.join(unknown)}. Known are {', '.join(sorted(known))}.")
        return cls(
            **({"light": _light, "default": dict, "legacy": _legacy}[name]() | _by_area(name, changes) | changes)
        )


def _by_area(name: str, changes: dict[str, Any]) -> dict[str, Any]:
    """Numbers of slots of the light preset, in proportion to the tile's area."""
    if name != "light":
        return {}
    share = (changes.get("tile_size", 512) / 512) ** 2

    def slots(count: int, least: int) -> int:
        return max(least, round(count * share / 8) * 8)

    return {
        "max_instances": slots(128, 48),
        "detections": slots(128, 48),
        "proposals": slots(256, 128),
        "train_proposals": slots(320, 160),
        "pre_nms": min(slots(384, 192), 1024),
        "rois": slots(128, 64),
    }


def _light() -> dict[str, Any]:
    return {
        "backbone": "light",
        "anchor_scales": (16.0, 32.0, 64.0, 128.0),
        "mask_size": 28,
        "pyramid_width": 64,
        "rpn_width": 64,
        "box_width": 256,
        "mask_width": 64,
        "mask_convs": 2,
        "roi_samples": 1,
        "canonical_size": 112.0,
        "mask_canonical_size": 224.0,
    }


def _legacy() -> dict[str, Any]:
    return {
        "tile_size": 1024,
        "channels": 3,
        "backbone": "resnet101",
        "anchor_scales": (32.0, 64.0, 128.0, 256.0, 512.0),
        "anchor_ratios": (0.5, 1.0, 2.0),
        "max_instances": 100,
        "pre_nms": 6000,
        "train_proposals": 2000,
        "proposals": 1000,
        "rois": 200,
        "positive_share": 0.33,
        "append_truth": False,
        "detections": 100,
        "min_score": 0.9,
        "detection_iou": 0.3,
        "mask_size": 28,
        "rpn_width": 512,
        "head_norm": True,
        "train_batch_norm": False,
        "round_masks": True,
        "input_scale": 255.0,
        "input_mean": (123.7, 116.8, 103.9),
        "legacy": True,
    }
