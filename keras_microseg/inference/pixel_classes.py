"""The classifier of pixels: a network that sees micrograph and segmentation and gives every particle a class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import backend
from keras_microseg.checks import FileError, UserError
from keras_microseg.classification.instances import scores_of_instances
from keras_microseg.inference.agreement import nearest_labels
from keras_microseg.inference.prediction import Predictor, predict_maps
from keras_microseg.inference.scale import median_diameter, scale_for_diameter
from keras_microseg.inference.views import ScaledView
from keras_microseg.io.annotations import ClassList

TASK = "classes of pixels"


class PixelClassifier:
    """Gives every particle the class that its pixels are given by a network.

    Args:
        model: path of a `.keras` file made by `classify train`, or a `keras.Model` with its `card`.
        card: the card of a model given as an object.

    Attributes:
        classes: names and colours.
        card: the model's card.

    Raises:
        FileError: no such file, or a model for another task.
    """

    def __init__(self, model: Any, card: Mapping[str, Any] | None = None):
        backend.select()
        from keras_microseg.models import saving

        name = "model"
        if isinstance(model, str | Path):
            name = str(model)
            model, card = saving.load_model(model, card)
        if not card or card.get("task") != TASK:
            raise FileError(name, "is no classifier of pixels.", "Use a model made by keras-microseg classify train.")
        self.card = dict(card)
        try:
            entries = [(entry["name"], entry["colour"]) for entry in card["classes"]]
            self.classes = ClassList(*zip(*entries, strict=True))
            self.contrast = tuple(float(value) for value in card["contrast"])
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(name, f"has a damaged card ({error}).", "Train the classifier again.") from error
        self.predictor = Predictor(model, self.card)

    def maps(self, labels: np.ndarray, grey: np.ndarray) -> np.ndarray:
        """(H, W, K) float32 probability of every class, of pixels inside particles: they add up to 1.

        Args:
            labels: (H, W) instance labels.
            grey: (H, W) grey values.
        """
        labels, grey = np.asarray(labels), np.asarray(grey)
        if labels.shape != grey.shape:
            raise UserError(f"`labels` and `grey` must be of one size. Received: {labels.shape}, {grey.shape}")
        from keras_microseg.data.class_maps import classifier_input

        raw = predict_maps(self.predictor, classifier_input(grey, labels, self.contrast))
        if len(self.classes) == 2:
            return np.concatenate([raw, 1 - raw], axis=-1)
        classes = raw[..., :-1]  # the last is the background, of which the segmentation has decided already
        return classes / np.maximum(classes.sum(axis=-1, keepdims=True), 1e-6)

    def predict(self, labels: np.ndarray, grey: np.ndarray, **_: Any) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the classes of every particle: means of the network's output inside its outline.

        Images whose particles are 1.5 times larger or smaller than in training are reduced or enlarged first.

        Args:
            labels: (H, W) integers, 0 = background.
            grey: (H, W) grey values.

        Returns:
            `(ids, probabilities)`: (N,) ascending labels and (N, K) float64.
        """
        labels, grey = np.asarray(labels), np.asarray(grey, np.float32)
        ids, numbers = np.unique(labels, return_inverse=True)
        numbers = numbers.reshape(labels.shape) + (0 if len(ids) and ids[0] == 0 else 1)
        ids = ids[ids != 0].astype(np.int64)
        found = np.full((len(ids), len(self.classes)), 1 / len(self.classes))
        diameter = median_diameter(numbers)
        if diameter is None:
            return ids, found
        scale = scale_for_diameter(diameter, self.card["diameter"])
        if scale != 1:
            finite = np.nan_to_num(grey, nan=float(np.nanmedian(grey)) if np.isfinite(grey).any() else 0.0)
            grey = ScaledView(finite, scale)[:, :]
            numbers = nearest_labels(numbers, grey.shape)
        there, scores = scores_of_instances(numbers, self.maps(numbers, grey))
        found[there - 1] = scores
        return ids, found
