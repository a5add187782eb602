"""Settings and presets of `mineral train`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_microseg.checks import UserError, check_choice, check_names, check_number

NORMALIZATIONS = ("fixed", "percentile")
SAME_GREY = {"zoom": 1.1, "contrast": 0.1, "gamma": 0.1, "noise": 0.01, "blur": 0.3}
"""Augmentation where grey values mean the same everywhere (one instrument, fields evened out): minerals that differ by
a few grey values, or by a faint texture, stay apart."""
REGIMES = ("fine-tune", "frozen", "random", "two-stage")


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train. The defaults are those of the preset `cpu`.

    Attributes:
        data: folder of `mineral tiles`; or with `images/` and `masks/`; or `train/`, `train_annot/`, `val/` and so on.
        palette: which colour is which class, see `io.palettes.read_palette`; None = `classes.csv` of the folder, or
            masks that hold class numbers.
        groups: JSON of how classes are merged, see `io.palettes.read_groups`; None = the groups of the palette.
        classes: names of the classes of numbered masks.
        tolerance: largest distance of a colour that still counts as the nearest class.
        soft: learn the shares of classes that `mineral tiles --soft` wrote.
        channels: "grey", or "all" channels of the files (several detectors).
        normalization: "fixed": grey values are divided by 255 (or by what covers all images); "percentile": every
            sample is stretched between its own 0.1 and 99.9 percentiles, for images whose brightness differs; None =
            "fixed" for `mineral tiles`, else "percentile".
        split, validation, hold, guard: see `data.map_pairs.split_pairs`.
        architecture, backbone, filters, dropout, deep_supervision: the network, see
            `models.encoder_decoder.class_map_network`; "two_branch" sees fine texture and coarse context.
        encoder_weights: None, "imagenet" or a file, see `models.backbones`.
        regime: "fine-tune" (all weights from pretrained ones), "frozen" (pretrained encoder fixed), "random",
            "two-stage" (frozen for `warm_epochs`, then fine-tuned at a tenth of the rate).
        train_batch_norm: normalization layers of a frozen encoder still learn.
        warm_epochs: of the first stage.
        tile, batch_size: crops per step and their edge, px.
        epochs, steps_per_epoch: None for the latter: as many as cover every pixel about once.
        minutes: end within this time, with the learning rate annealed to its end by then; None = after all epochs.
        optimizer: fields of `training.schedules.OptimizerSettings`.
        loss: fields of `losses.DiceFocal` except the class weights.
        label_grid: image pixels per pixel of the labels where these are coarser: the loss then compares the shares of
            classes in squares of that size, and the map may be finer than the labels, see `losses.LabelGrid`.
        class_weights: "none" (Dice counts every class alike already), "inverse", "sqrt", "median", "effective", see
            `data.map_pairs.class_weights`.
        augment: fields of `data.augment.AugmentSettings`; None = none.
        focus: share of crops around a pixel of a random class.
        monitor: classes whose mean IoU chooses the best epoch; () = all.
        patience: epochs without improvement after which to stop; None = never.
        mixed_precision: compute in bfloat16.
        workers: threads that prepare crops.
        tensorboard: write scalars for TensorBoard, too.
        seed: of split, crops, augmentation and start weights.
    """

    data: str
    palette: str | None = None
    groups: str | None = None
    classes: tuple[str, ...] = ()
    tolerance: float = 0.0
    soft: bool = False
    channels: str = "grey"
    normalization: str | None = None
    split: str = "given"
    validation: float = 0.2
    hold: str | None = None
    guard: int = 64
    architecture: str = "unet"
    backbone: str | None = None
    filters: tuple[int, ...] | int | None = (12, 24, 48, 96, 128)
    dropout: float = 0.0
    deep_supervision: int = 0
    encoder_weights: str | None = None
    regime: str = "random"
    train_batch_norm: bool = True
    warm_epochs: int = 5
    tile: int = 128
    batch_size: int = 8
    epochs: int = 60
    steps_per_epoch: int | None = None
    minutes: float | None = None
    optimizer: Mapping[str, Any] = dataclasses.field(
        default_factory=lambda: {"learning_rate": 3e-3, "warmup_epochs": 1.0, "weight_decay": 1e-4}
    )
    loss: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"smooth": 1.0, "weighted_focal": True})
    label_grid: int = 1
    class_weights: str = "none"
    augment: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    focus: float = 0.3
    monitor: tuple[str, ...] = ()
    patience: int | None = None
    mixed_precision: bool = False
    workers: int = 2
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("classes", "monitor"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if isinstance(self.filters, list):
            object.__setattr__(self, "filters", tuple(self.filters))
        check_choice("normalization", self.normalization, (None, *NORMALIZATIONS))
        check_choice("regime", self.regime, REGIMES)
        least = {"tile": 32, "seed": 0, **dict.fromkeys(("batch_size", "epochs", "warm_epochs", "label_grid"), 1)}
        for name, minimum in least.items():
            check_number(name, getattr(self, name), minimum=minimum, integer=True)
        for name in ("steps_per_epoch", "patience"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=1, integer=True)
        if self.minutes is not None:
            check_number("minutes", self.minutes, minimum=0, exclusive=True)
        if self.tile % self.label_grid:
            raise UserError(
                f"`tile` must be a multiple of `label_grid`. Received: tile={self.tile}, label_grid={self.label_grid}."
            )
        if self.regime != "random" and self.encoder_weights is None:
            raise UserError(
                f"The regime {self.regime!r} starts from a pretrained encoder. Name its weights "
                "(--encoder-weights imagenet, or a file), or use the regime 'random'."
            )


PRESETS: dict[str, dict[str, Any]] = {
    "cpu": {},
    "gpu": {
        "filters": (32, 64, 128, 256, 512),
        "tile": 256,
        "batch_size": 16,
        "epochs": 200,
        "optimizer": {"learning_rate": 1e-3, "warmup_epochs": 2.0, "weight_decay": 1e-3},
        "augment": {"rotate": True, "zoom": 1.4, "contrast": 0.3, "gamma": 0.3},
        "mixed_precision": True,
        "workers": 8,
    },
    "paper": {
        "backbone": "inceptionv3",
        "filters": None,
        "tile": 256,
        "epochs": 300,
        "optimizer": {"name": "adam", "learning_rate": 5e-4, "final_factor": 0.2},
        "loss": {"smooth": 1e-5},
        "class_weights": "inverse",
        "augment": {"zoom": 1.3, "contrast": 0.0, "gamma": 0.0, "noise": 0.0, "blur": 0.0},
        "focus": 0.0,
    },
}
"""`cpu`: a small U-Net with skips at full size, minutes. `gpu`: a wide one. `paper`: backbone, loss and schedule of the
source (its learning rate 5e-4 to 1e-4 over 300 epochs); it names no batch size and no class weights."""


def preset(name: str, data: str, **changes: Any) -> TrainSettings:
    """Settings of a preset with changes; a dotted name changes one entry, `"optimizer.learning_rate"`.

    Raises:
        UserError: unknown preset or setting.
    """
    base = TrainSettings(data)
    values = {field.name: getattr(base, field.name) for field in dataclasses.fields(base)}
    for key, value in [*PRESETS[check_choice("preset", name, PRESETS)].items(), *changes.items()]:
        whole, _, part = key.partition(".")
        check_names([whole], values)
        values[whole] = {**(values[whole] or {}), part: value} if part else value
    return TrainSettings(**values)
