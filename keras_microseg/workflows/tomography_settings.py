"""What `volume train` is asked: settings, presets, and the option names of older scripts."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.intensity import NORMALIZATIONS

ARCHITECTURES = ("default", "large", "vfp_2level", "vfp_4level", "2.5d")
LABELS = ("instances", "mask", "classes")
LOSSES = ("auto", "dice", "dice_crossentropy", "focal_tversky", "crossentropy")
PRESETS: dict[str, dict[str, Any]] = {
    # a few minutes on two CPU cores; sees 44 voxels
    "fast": {
        "filters": (8, 16, 32), "pools": ((2, 2, 2),) * 2, "patch": 48, "epochs": 10, "steps_per_epoch": 20,
        "learning_rate": 3e-3,
    },
    # 20 to 30 minutes on a CPU; sees 96 voxels
    "standard": {},
    # full-resolution spheres, on a GPU of 16 GB or more
    "gpu": {
        "architecture": "large", "patch": (64, 128, 128), "batch_size": 4, "epochs": 60, "steps_per_epoch": 200,
        "mixed_precision": True,
    },
    # as the older scripts trained
    "paper": {
        "labels_are": "mask", "architecture": "vfp_2level", "loss": "dice", "normalization": "minmax",
        "epochs": 100, "batch_size": 1, "learning_rate": 1e-4, "patience": 10, "augment": 0.0, "epoch_files": True,
        "patch": (10, 256, 256), "validation": 0.2, "gap": 21,
    },
}  # fmt: skip
"""How long to train what; the values are changes to the defaults of `TrainVolumeSettings`."""
_OLD_NAMES = {
    "input_image": "volume", "image_path": "volume", "input_mask": "labels", "mask_path": "labels",
    "chunk_size": "patch", "batch_size": "batch_size", "epochs": "epochs", "learning_rate": "learning_rate",
    "num_z_slices": "slices", "resize_factor": None, "output_path": None,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainVolumeSettings:
    """How to train a network on volumes.

    Attributes:
        volume: one volume or several, anything `io.open_volume` knows.
        labels: their labels or masks, as many.
        labels_are: `"instances"` (objects numbered from 1), `"mask"` (0 and anything else), or `"classes"` (0, 1, ...).
        architecture: a preset of `models.unet3d`, or `"2.5d"` (slices with their neighbours as channels).
        filters, pools: other widths and poolings than the preset's.
        norm: `"batch"`, `"instance"`, `"group"` or `"none"`. With several devices the statistics of `"batch"` are those
            of each device's own patches on TensorFlow and torch; `"group"` is the same on any number of devices.
        residual, dropout, deep_supervision: see `models.unet3d`.
        num_slices: of `"2.5d"`, odd.
        outputs: maps to learn; None = foreground, boundary and distance of instances, foreground of masks.
        num_classes: of `"classes"`; None = the largest found + 1.
        patch: (z, y, x) of the patches, or one number; multiples of the network's total stride.
        labelled: slices that are annotated (others are ignored); None = all.
        ignore: label of voxels without annotation; None = there are none.
        slices: use only the first so many slices; None = all.
        validation: share of the slices kept for validation, one block; 0 = none; None = 0.2 where the volume has the
            slices for both parts, else none.
        held: pairs of a volume and its labels kept for validation as a whole; then none of `volume` is, unless
            `validation` says so.
        gap: slices left out between training and validation; None = the network's receptive field.
        epochs, steps_per_epoch, batch_size, learning_rate, patience, seed: as in `train`; `batch_size` is per device.
        loss: `"auto"`: that of instance maps, or Dice + cross-entropy.
        normalization: `"percentile"`, `"minmax"`, `"zscore"`.
        augment: strength of the augmentation, 0 (none) to 2; 1 = the defaults.
        mixed_precision: compute in bfloat16 with float32 outputs.
        devices: devices that share every batch; 1 = no distribution.
        epoch_files: write `epoch_info_epoch_N.json` per epoch as older scripts did.
    """

    volume: str | tuple[str, ...]
    labels: str | tuple[str, ...]
    labels_are: str = "instances"
    architecture: str = "default"
    filters: tuple[int, ...] | None = None
    pools: tuple[tuple[int, int, int], ...] | None = None
    norm: str = "batch"
    residual: bool = False
    dropout: float = 0.0
    deep_supervision: int = 0
    num_slices: int = 5
    outputs: tuple[str, ...] | None = None
    num_classes: int | None = None
    patch: int | tuple[int, int, int] = 64
    labelled: tuple[int, ...] | None = None
    ignore: int | None = None
    slices: int | None = None
    validation: float | None = None
    held: tuple[tuple[str, str], ...] = ()
    gap: int | None = None
    epochs: int = 30
    steps_per_epoch: int = 50
    batch_size: int = 2
    learning_rate: float = 1e-3
    patience: int | None = None
    loss: str = "auto"
    normalization: str = "percentile"
    augment: float = 1.0
    mixed_precision: bool = False
    devices: int = 1
    epoch_files: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("labels_are", self.labels_are, LABELS)
        check_choice("architecture", self.architecture, ARCHITECTURES)
        check_choice("loss", self.loss, LOSSES)
        check_choice("normalization", self.normalization, tuple(n for n in NORMALIZATIONS if n != "fixed"))
        if len(listed(self.volume)) != len(listed(self.labels)):
            raise UserError(
                f"As many label volumes as volumes are needed. Received: {len(listed(self.volume))} volumes, "
                f"{len(listed(self.labels))} labels"
            )
        for name in ("epochs", "steps_per_epoch", "batch_size", "devices"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        standardize_tuple(self.patch, 3, "patch")
        if self.validation is not None:
            check_number("validation", self.validation, minimum=0, maximum=0.5)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        check_number("augment", self.augment, minimum=0, maximum=2)
        check_number("seed", self.seed, minimum=0, integer=True)

    @classmethod
    def from_preset(cls, preset: str, volume: Any, labels: Any, **changes: Any) -> TrainVolumeSettings:
        """Settings of a preset in `PRESETS`; a change of the architecture takes that one's own filters and pools.

        Raises:
            UserError: no such preset, or no such setting.
        """
        values = {**PRESETS[check_choice("preset", preset, PRESETS)], **changes}
        if "architecture" in changes:
            for name in ("filters", "pools"):
                values[name] = changes.get(name)
        known = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            check_choice("setting", name, known)
        return cls(volume, labels, **values)

    @classmethod
    def from_legacy(cls, options: Mapping[str, Any], **changes: Any) -> TrainVolumeSettings:
        """Settings from the option names of the older scripts, which trained `vfp_2level` on a mask with Dice.

        Known: input_image, input_mask, chunk_size, batch_size, epochs, learning_rate, num_z_slices, resize_factor (1
        only), output_path (give it as the output folder).

        Raises:
            UserError: an unknown name, or a resize factor other than 1.
        """
        values = dict(PRESETS["paper"])
        for name, value in options.items():
            key = name.lower()
            check_choice("option", key, _OLD_NAMES)
            if key == "resize_factor" and value not in (1, 1.0, None):
                raise UserError(
                    f"resize_factor={value}: volumes are no longer resized. Bin the slices, or leave it at 1."
                )
            if key == "chunk_size":
                value = (int(value), 256, 256)
            if _OLD_NAMES[key] is not None:
                values[_OLD_NAMES[key]] = value
        return cls(**values | changes)


def listed(value: Any) -> list[str]:
    """One path or several as a list."""
    return [os.fspath(value)] if isinstance(value, str | os.PathLike) else [os.fspath(v) for v in value]
