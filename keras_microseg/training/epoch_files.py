"""One JSON file per epoch, with the fields of the older volume scripts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import keras

from keras_microseg import io


class EpochFiles(keras.callbacks.Callback):
    """Writes `epoch_info_epoch_N.json`: epoch, loss, dice_coefficient, val_loss, val_dice_coefficient, contains_nan.

    Args:
        out_dir: folder; None = set by the caller before training.
    """

    def __init__(self, out_dir: str | Path | None = None):
        super().__init__()
        self.out_dir = out_dir

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        logs = logs or {}
        values = {
            "epoch": epoch + 1,
            "loss": logs.get("loss"),
            "dice_coefficient": logs.get("dice"),
            "val_loss": logs.get("val_loss"),
            "val_dice_coefficient": logs.get("val_dice"),
        }
        values["contains_nan"] = any(isinstance(v, float) and not math.isfinite(v) for v in values.values())
        path = Path(self.out_dir) / f"epoch_info_epoch_{epoch + 1}.json"
        with io.atomic_path(path) as temporary:
            Path(temporary).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
