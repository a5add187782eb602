"""Sample pictures during training: what goes in, what is wanted, what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from keras_microseg import backend, io
from keras_microseg.checks import check_number


class PreviewPictures(keras.callbacks.Callback):
    """Writes `epoch_0001.png`...: one row per image with the image, its target maps and the predicted maps.

    Args:
        batch: (x, y, ...) of arrays: (N, H, W, C) float in 0..1, y (N, H, W, K).
        out_dir: folder for the pictures.
        every: write after each so many epochs.
        count: rows.
    """

    def __init__(self, batch: tuple, out_dir: str | Path, *, every: int = 1, count: int = 4):
        super().__init__()
        self.every = check_number("every", every, minimum=1, integer=True)
        count = check_number("count", count, minimum=1, integer=True)
        self.x, self.y = (np.asarray(array)[:count] for array in batch[:2])
        self.out_dir = Path(out_dir)
        self._predict = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        if self._predict is None:
            self._predict = backend.compile_predict(self.model)
        picture = preview_picture(self.x, self.y, self._predict(self.x))
        io.write_image(self.out_dir / f"epoch_{epoch + 1:04d}.png", picture, axes="YX")


class SamplePictures(keras.callbacks.Callback):
    """Writes `epoch_0001.png`... of an adversarial training: the panels that the system's `samples` gives.

    Args:
        inputs: arrays for `samples`, such as latent vectors or a few images; the same in every epoch.
        out_dir: folder for the pictures.
        every: write after each so many epochs.
    """

    def __init__(self, inputs: Sequence[np.ndarray], out_dir: str | Path, *, every: int = 1):
        super().__init__()
        self.every = check_number("every", every, minimum=1, integer=True)
        self.inputs = [np.asarray(array, np.float32) for array in inputs]
        self.out_dir = Path(out_dir)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if (epoch + 1) % self.every:
            return
        panels = self.params["system"].samples(self.params["predict"], *self.inputs)
        rows = [np.concatenate([np.pad(p, (0, 2), constant_values=1) for p in row], axis=1) for row in panels]
        picture = np.clip(np.nan_to_num(np.concatenate(rows)) / 2 + 0.5, 0, 1)
        io.write_image(self.out_dir / f"epoch_{epoch + 1:04d}.png", np.rint(picture * 255).astype(np.uint8), axes="YX")


def preview_picture(x: np.ndarray, y: np.ndarray, predicted: np.ndarray, gap: int = 2) -> np.ndarray:
    """Panels side by side: first channel of `x`, each channel of `y`, each of `predicted`.

    Args:
        x, y, predicted: (N, H, W, channels). Maps with negative values (flow) are shown as (map + 1) / 2.
        gap: white pixels between the panels.

    Returns:
        (rows, columns) uint8.
    """
    rows = []
    for image, truth, result in zip(x, y, predicted, strict=True):
        panels = [image[..., 0], *np.moveaxis(truth, -1, 0), *np.moveaxis(result, -1, 0)]
        panels = [panel / 2 + 0.5 if panel.min() < 0 else panel for panel in panels]
        panels = [np.pad(np.clip(np.nan_to_num(p), 0, 1), (0, gap), constant_values=1) for p in panels]
        rows.append(np.concatenate(panels, axis=1))
    return np.rint(np.concatenate(rows) * 255).astype(np.uint8)
