"""Watches over adversarial trainings: numbers per epoch, and a clean end when a run has gone wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_microseg.checks import check_number
from keras_microseg.metrics.texture import compare_textures, texture_statistics
from keras_microseg.training.adversarial import StopTraining

logger = logging.getLogger(__name__)


class TranslationScores:
    """A scorer for `train_adversarial`: do the generated micrographs look real, and do they show their masks?

    Logs "texture_distance" (0 = alike; compare with `.reference`), "variety" (1 = as various as real tiles) and
    "contrast": mean grey value of particle pixels minus that of the rest, over the standard deviation of the tile,
    positive where particles have the polarity of the real images, near 0 where the mask is ignored.

    Args:
        micrographs: (N, H, W, 1) real tiles in -1..1; 16 or more.
        masks: (M, H, W, 1) masks in -1..1 (or 0..1 for a system with cross-entropy).
        prepare: `prepare(masks, rng)` gives the input of the generator, as `CycleGAN.with_noise` does; None: masks.
        polarity: "bright" or "dark" particles.
        every: score each so many epochs.
    """

    def __init__(
        self,
        micrographs: np.ndarray,
        masks: np.ndarray,
        *,
        prepare: Callable[[np.ndarray, np.random.Generator], np.ndarray] | None = None,
        polarity: str = "bright",
        every: int = 1,
    ):
        self.every = check_number("every", every, minimum=1, integer=True)
        self.masks = np.asarray(masks, np.float32)
        rng = np.random.default_rng(0)
        self.inputs = self.masks if prepare is None else prepare(self.masks, rng)
        self.sign = 1.0 if polarity == "bright" else -1.0
        self._real = texture_statistics(np.asarray(micrographs)[..., 0] / 2 + 0.5)
        self.reference = compare_textures(self._real, self._real).reference

    def __call__(self, predict: Callable[[str, np.ndarray], np.ndarray], epoch: int) -> dict[str, float]:
        if (epoch + 1) % self.every:
            return {}
        fakes = np.concatenate([predict("generator_b", self.inputs[i : i + 4]) for i in range(0, len(self.masks), 4)])
        images = np.clip(fakes[..., 0] / 2 + 0.5, 0, 1)
        likeness = compare_textures(self._real, texture_statistics(images))
        inside = self.masks[..., 0] > (self.masks.max() + self.masks.min()) / 2
        contrasts = [
            (image[mask].mean() - image[~mask].mean()) / (image.std() + 1e-6)
            for image, mask in zip(images, inside, strict=True)
            if mask.any() and not mask.all()
        ]
        contrast = self.sign * float(np.mean(contrasts)) if contrasts else 0.0
        logger.info(
            "Epoch %d: texture distance %.3g (real among themselves %.3g), variety %.2f, contrast %.2f; most apart: %s",
            epoch + 1, likeness.distance, self.reference, likeness.variety, contrast, likeness.furthest,
        )  # fmt: skip
        return {"texture_distance": likeness.distance, "variety": likeness.variety, "contrast": contrast}


class StopOnDrift(keras.callbacks.Callback):
    """Ends a translation training whose generator has collapsed or has come to ignore its masks.

    It reads what `TranslationScores` logs and raises `StopTraining` after `patience` bad scores in a row: too little
    variety (mode collapse), or particles that are not brighter (darker) than the ground (drift, or the wrong polarity).

    Args:
        min_variety: least spread of the texture statistics over that of real tiles.
        min_contrast: least contrast.
        patience: bad scores in a row that end the training.
        start: epochs at the beginning that are not judged.
    """

    def __init__(self, *, min_variety: float = 0.1, min_contrast: float = 0.3, patience: int = 3, start: int = 4):
        super().__init__()
        self.min_variety = check_number("min_variety", min_variety, minimum=0)
        self.min_contrast = check_number("min_contrast", min_contrast)
        self.patience = check_number("patience", patience, minimum=1, integer=True)
        self.start = check_number("start", start, minimum=0, integer=True)
        self._bad = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if epoch < self.start or "variety" not in (logs or {}):
            return
        problem = None
        if logs["variety"] < self.min_variety:
            problem = (
                f"mode collapse: generated micrographs have {logs['variety']:.2f} of the variety of real ones "
                f"(limit {self.min_variety:g}). Train with a lower learning rate or a larger image pool."
            )
        elif logs["contrast"] < self.min_contrast:
            problem = (
                f"drift: particles stand out of the ground by {logs['contrast']:.2f} standard deviations in the "
                f"generated micrographs (limit {self.min_contrast:g}), so images do not show their masks. Check the "
                "polarity and that masks cover about as much as the particles of the images do."
            )
        self._bad = self._bad + 1 if problem else 0
        if problem and self._bad >= self.patience:
            raise StopTraining(problem)
        if problem:
            logger.warning("Epoch %d: %s", epoch + 1, problem)

    def get_state(self) -> dict[str, Any]:
        return {"bad": self._bad}

    def set_state(self, state: dict[str, Any]) -> None:
        self._bad = int(state["bad"])
