"""The classifier of instances: features and logistic regression as one model, in one JSON file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.classification.features import FEATURES, instance_features
from keras_microseg.classification.logistic import LogisticModel, choose_ridge, fit_logistic
from keras_microseg.image import METRES, PixelSize
from keras_microseg.io.annotations import ClassList, colour_text

FORMAT = "keras_microseg instance classifier"


@dataclasses.dataclass(frozen=True)
class InstanceClassifier:
    """Gives every particle a class from its features.

    Attributes:
        classes: names and colours.
        model: the fitted model; its columns are the classes in order.
        unit: unit of `log_diameter` in training, `"px"` where no pixel size was known.
        features: names of the features used.
        card: how it was made: images, examples, scores; JSON values.
    """

    classes: ClassList
    model: LogisticModel
    unit: str
    features: tuple[str, ...] = tuple(FEATURES)
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def predict(
        self, labels: np.ndarray, grey: np.ndarray, *, pixel_size: PixelSize | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Probabilities of the classes of every particle of an image.

        Args:
            labels: (H, W) integers, 0 = background.
            grey: (H, W) grey values.
            pixel_size: needed when the classifier was trained with lengths in real units.

        Returns:
            `(ids, probabilities)`: (N,) ascending labels, and (N, K) float64.

        Raises:
            UserError: shapes differ, or the pixel size is unknown here but was known in training, or the reverse.
        """
        size = pixel_size
        if self.unit == "px":
            size = None
        elif size is None:
            raise UserError(
                f"This classifier was trained on sizes in {self.unit}, but the pixel size of the image is unknown. "
                "Pass it (--pixel-size)."
            )
        else:
            size = size.to(self.unit)
        table = instance_features(labels, grey, pixel_size=size)
        return table["label"].to_numpy(), self.model.predict(table[list(self.features)].to_numpy(float))

    def save(self, path: str | os.PathLike) -> Path:
        """Write the classifier as JSON, all or nothing."""
        path = Path(path)
        if path.suffix.lower() != ".json":
            raise UserError(f"A classifier of instances is written as .json. Received: {path.name}")
        record = {
            "format": FORMAT,
            "version": 1,
            "classes": [
                {"name": name, "colour": colour_text(colour)}
                for name, colour in zip(self.classes.names, self.classes.colours, strict=True)
            ],
            "unit": self.unit,
            "features": list(self.features),
            "degree": self.model.degree,
            **{name: getattr(self.model, name).tolist() for name in ("center", "scale", "weights", "bias")},
            "card": dict(self.card),
        }
        with io.atomic_path(path) as temporary:
            Path(temporary).write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, path: str | os.PathLike) -> InstanceClassifier:
        """Read a classifier.

        Raises:
            FileError: unreadable, of another format, or its parts do not fit together.
        """
        path = Path(path)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check the path.") from error
        except ValueError as error:
            raise FileError(path, f"is not JSON ({error}).", "Train the classifier again.") from error
        again = "Train the classifier again (keras-microseg classify train)."
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise FileError(path, "is no classifier of instances.", again)
        try:
            classes = [(entry["name"], entry["colour"]) for entry in record["classes"]]
            features = tuple(record["features"])
            parts = {name: np.array(record[name], np.float64) for name in ("center", "scale", "weights", "bias")}
            model = LogisticModel(**parts, degree=int(record["degree"]))
            found = cls(ClassList(*zip(*classes, strict=True)), model, record["unit"], features, record["card"])
            width = len(features) if model.degree == 1 else len(features) * (len(features) + 3) // 2
            fits = model.center.shape == model.scale.shape == (len(features),)
            fits &= model.weights.shape == (width, len(classes)) and model.bias.shape == (len(classes),)
            fits &= all(np.isfinite(part).all() for part in parts.values())
            fits &= found.unit == "px" or found.unit in METRES
        except (KeyError, TypeError, ValueError) as error:
            raise FileError(path, f"is damaged ({type(error).__name__}: {error}).", again) from error
        unknown = sorted(set(features) - set(FEATURES))
        if unknown:
            raise FileError(path, f"needs features unknown here: {', '.join(unknown)}.", "Use a newer package.")
        if not fits:
            raise FileError(path, "is damaged (its numbers do not fit together).", again)
        return found


def fit_instances(
    tables: Sequence[pd.DataFrame],
    classes: Sequence[np.ndarray],
    class_list: ClassList,
    *,
    degree: int = 1,
    seed: int = 0,
    card: Mapping[str, Any] | None = None,
) -> tuple[InstanceClassifier, list[np.ndarray]]:
    """Train a classifier; ridge by cross-validation over images.

    Args:
        tables: one table of `instance_features` per image.
        classes: per image, (N,) class of every row: 1..K; 0 = leave out.
        class_list: the K classes.
        degree: 1 = linear in the features, 2 = with squares and products.
        seed: of the folds.
        card: facts for the file.

    Returns:
        The classifier, and per image the (N, K) held-out probabilities of the cross-validation (NaN where left out).

    Raises:
        UserError: tables in different units, or a class without an example.
    """
    units = {table.attrs["unit"] for table in tables}
    if len(units) != 1:
        raise UserError(
            f"The images have lengths in different units ({', '.join(sorted(units))}): the pixel size of some is "
            "unknown. Pass it for all (--pixel-size)."
        )
    target = np.concatenate([np.asarray(one, np.int64) for one in classes])
    missing = [name for k, name in enumerate(class_list.names, start=1) if not (target == k).any()]
    if missing:
        raise UserError(
            f"No particle of class {', '.join(missing)} among the {np.count_nonzero(target)} examples. "
            "Mark some, or leave the class out of the class list."
        )
    features = np.concatenate([table[list(FEATURES)].to_numpy(float) for table in tables])
    groups = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    used = target > 0
    ridge, held_out = choose_ridge(
        features[used], target[used] - 1, groups[used], len(class_list), degree=degree, seed=seed
    )
    model = fit_logistic(features[used], target[used] - 1, len(class_list), ridge=ridge, degree=degree)
    everywhere = np.full((len(target), len(class_list)), np.nan)
    everywhere[used] = held_out
    facts = {
        "ridge": ridge,
        "examples": np.bincount(target, minlength=len(class_list) + 1)[1:].tolist(),
        **(card or {}),
    }
    classifier = InstanceClassifier(class_list, model, next(iter(units)), card=facts)
    return classifier, np.split(everywhere, np.cumsum([len(table) for table in tables])[:-1])


def classes_of_instances(
    labels: np.ndarray, class_map: np.ndarray, num_classes: int, *, unmarked: int = 0, min_share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Class of every particle by the majority of its pixels.

    Args:
        labels: (H, W) integers, 0 = background.
        class_map: (H, W) class numbers, 0 = no class.
        num_classes: K; classes are 1..K.
        unmarked: class of particles most of whose pixels have no class; 0 = none.
        min_share: a particle has a class when more than this share of its pixels agree; others get 0.

    Returns:
        `(ids, classes)`: (N,) ascending labels and their classes, int64.

    Raises:
        UserError: shapes differ.
    """
    labels, class_map = np.asarray(labels), np.asarray(class_map)
    if labels.shape != class_map.shape:
        raise UserError(f"Labels and classes must have one shape. Received: {labels.shape} and {class_map.shape}")
    ids, numbers = np.unique(labels, return_inverse=True)
    keys = numbers.ravel().astype(np.int64) * (num_classes + 1) + class_map.ravel()
    votes = np.bincount(keys, minlength=len(ids) * (num_classes + 1)).reshape(len(ids), num_classes + 1)
    winner = votes.argmax(axis=1)
    classes = np.where(winner == 0, unmarked, winner)
    classes[votes.max(axis=1) <= min_share * votes.sum(axis=1)] = 0
    return ids[ids != 0].astype(np.int64), classes[ids != 0]


def scores_of_instances(labels: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean of every map over the pixels of each particle.

    Args:
        labels: (H, W) integers, 0 = background.
        maps: (H, W, C) float.

    Returns:
        `(ids, scores)`: (N,) ascending labels and (N, C) float64.
    """
    ids, numbers = np.unique(np.asarray(labels), return_inverse=True)
    numbers, pixels = numbers.ravel(), np.bincount(numbers.ravel(), minlength=len(ids))
    sums = [np.bincount(numbers, maps[..., c].ravel(), len(ids)) for c in range(maps.shape[-1])]
    scores = np.stack(sums, axis=1) / pixels[:, np.newaxis] if sums else np.zeros((len(ids), 0))
    return ids[ids != 0].astype(np.int64), scores[ids != 0]
