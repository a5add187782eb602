"""Scores of a detector on whole images with known objects: quick after each epoch, in full at the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg.data.boxes import ObjectImage
from keras_microseg.inference.instances import InstancePredictor
from keras_microseg.metrics.detection import ScoredImage, average_precision, best_threshold, scored_masks

LEAST_SCORE = 0.05
THRESHOLDS = tuple(np.round(np.arange(0.1, 0.96, 0.05), 2).tolist())


class DetectorScores:
    """Average precision of a detector on images; a scorer for `training.detection.train_detector`.

    Args:
        images: with their objects.
        card: of the model, see `inference.instances.InstancePredictor`.
        scale: factor by which images are enlarged first; None = the card's.
        quick_pixels: about as many are scored after an epoch: the first images, or corners of large ones.
    """

    def __init__(
        self,
        images: Sequence[ObjectImage],
        card: Mapping[str, Any],
        *,
        scale: float | None = None,
        quick_pixels: float = 1.2e6,
    ):
        self.images, self.card = list(images), dict(card)
        self.scale = float(self.card.get("scale", 1.0)) if scale is None else scale
        self.quick: list[ObjectImage] = []
        total = 0.0
        for one in self.images:
            share = min(1.0, math.sqrt(quick_pixels / one.image.size))
            self.quick.append(one.crop(tuple(slice(0, max(1, int(n * share))) for n in one.image.shape[:2])))
            total += self.quick[-1].image.size
            if total >= quick_pixels:
                break
        self._predictor: InstancePredictor | None = None

    def __call__(self, model: Any, epoch: int) -> dict[str, float]:
        """`ap50` on the quick part."""
        if self._predictor is None or self._predictor.model is not model:
            self._predictor = InstancePredictor(model, self.card)
        return {"ap50": average_precision(self.compare(self._predictor, self.quick)).ap50}

    def full(self, model: Any, min_score: float | None = None) -> dict[str, float]:
        """All scores on all images.

        Args:
            model: the detector.
            min_score: from which a detection counts for precision, recall and F1; None = the one with the best F1.

        Returns:
            `ap`, `ap50`, `ap75` of all detections; `precision`, `recall`, `f1` at `min_score`; `objects`.
        """
        compared = self.compare(InstancePredictor(model, self.card, large_tiles=True))
        ranked = average_precision(compared)
        chosen = best_threshold(compared, [min_score] if min_score else THRESHOLDS)
        return {
            "ap": ranked.ap, "ap50": ranked.ap50, "ap75": ranked.ap75, "f1": chosen.f1, "precision": chosen.precision,
            "recall": chosen.recall, "min_score": chosen.threshold,
            "objects": sum(one.iou.shape[1] for one in compared),
        }  # fmt: skip

    def compare(self, predictor: InstancePredictor, images: Sequence[ObjectImage] | None = None) -> list[ScoredImage]:
        """Detections down to a score of 0.05 against the objects, masks that overlap included."""
        scored = []
        for one in self.images if images is None else images:
            found = predictor(one.image, min_score=LEAST_SCORE, scale=self.scale, stretched=True)
            truth, ignore = one.label_image(), one.ignored()
            if found.shape != truth.shape:  # the masks are at the model's scale
                rows, columns = (
                    np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
                    for n, m in zip(found.shape, truth.shape, strict=True)
                )
                truth, ignore = truth[np.ix_(rows, columns)], ignore[np.ix_(rows, columns)]
            masks = [(piece.top, piece.left, piece.mask) for piece in found.found]
            scored.append(scored_masks(truth, masks, [piece.score for piece in found.found], ignore=ignore))
        return scored
