"""Settings and presets of `mineral translate-train`."""

from __future__ import annotations

import dataclasses
from typing import Any

from keras_microseg.checks import UserError, check_choice, check_number

_CORRECTED = {"normalization": "group", "average": 0.999, "num_levels": 6}
_SOURCE = {
    "normalization": "batch", "average": 0.0, "num_levels": 7, "tile": 768, "batch_size": 1, "augment": False,
    "focus": 0.0, "epochs": 25, "signed": False,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {
    "labels": {"direction": "labels", "content": "dice-crossentropy", "content_weight": 10.0, **_CORRECTED},
    "images": {"direction": "images", "content": "l1", **_CORRECTED},
    "source-labels": {"direction": "labels", "content": "l1", "activation": "tanh", **_SOURCE, "epochs": 75},
    "source-categorical": {
        "direction": "labels", "content": "crossentropy", "content_weight": 1.0, "adversarial": "categorical",
        **_SOURCE,
    },
    "source-images": {"direction": "images", "content": "l1", "label_input": "index", **_SOURCE},
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TranslateSettings:
    """What is translated and how; see `preset`.

    Attributes:
        data: folder of `mineral tiles`, or another layout of `data.map_pairs.find_map_pairs`.
        direction: "labels": micrograph -> classes; "images": classes -> micrograph.
        palette, groups, classes, split, validation, hold, guard: as those of `mineral_train.TrainSettings`.
        normalization, num_levels, filters: of the networks, see `models.generators.pix2pix_generator`.
        activation: of the generator; None = "softmax" for classes, "tanh" for micrographs.
        spectral: bound the gain of the discriminator, see `layers.SpectralConv2D`; goes with adversarial="hinge".
        adversarial, content, content_weight, signed: see `training.pix2pix.Pix2Pix`.
        label_input: classes as input: "one-hot", or their number ("index", as the source has it).
        tile, batch_size, epochs, steps_per_epoch: None for the latter: as many as cover every pixel about once.
        learning_rate: of Adam (beta_1 0.5) for both networks.
        average: momentum of the average of the generator's weights; 0 = none.
        augment: turn, mirror and vary training tiles; micrographs that are *made* are never varied in grey.
        focus: share of crops around a pixel of a random class.
        mixed_precision: compute in bfloat16.
        seed: of everything.
    """

    data: str
    direction: str = "labels"
    palette: str | None = None
    groups: str | None = None
    classes: tuple[str, ...] = ()
    split: str = "given"
    validation: float = 0.2
    hold: str | None = None
    guard: int = 64
    normalization: str = "group"
    num_levels: int = 6
    filters: int = 32
    activation: str | None = None
    spectral: bool = False
    adversarial: str = "least-squares"
    content: str = "dice-crossentropy"
    content_weight: float = 100.0
    signed: bool = True
    label_input: str = "one-hot"
    tile: int = 256
    batch_size: int = 4
    epochs: int = 40
    steps_per_epoch: int | None = None
    learning_rate: float = 2e-4
    average: float = 0.999
    augment: bool = True
    focus: float = 0.2
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        check_choice("direction", self.direction, ("labels", "images"))
        check_choice("label_input", self.label_input, ("one-hot", "index"))
        for name in ("tile", "batch_size", "epochs", "filters", "num_levels"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("average", self.average, minimum=0, maximum=1)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        if self.tile < 2**self.num_levels:
            raise UserError(
                f"`tile` must be at least 2^num_levels = {2**self.num_levels}. Received: tile={self.tile}. Use a "
                "larger tile or fewer levels."
            )


def preset(name: str, data: str, **changes: Any) -> TranslateSettings:
    """Settings by name.

    Args:
        name: "labels", "images": the corrected objectives (least squares, cross-entropy + Dice or L1, group
            normalization, averaged weights); "source-labels", "source-categorical", "source-images": as published.
        data: see `TranslateSettings`.
        changes: other fields.

    Raises:
        UserError: no such preset or setting, or a value out of range.
    """
    check_choice("preset", name, tuple(PRESETS))
    unknown = set(changes) - {field.name for field in dataclasses.fields(TranslateSettings)}
    if unknown:
        raise UserError(f"There is no setting {sorted(unknown)[0]!r}. See workflows.mineral_translate_settings.")
    return TranslateSettings(data=data, **{**PRESETS[name], **changes})
