"""Workflow `classify train`: micrographs, label images and class images become a classifier of particles."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.classification.features import instance_features
from keras_microseg.classification.instances import classes_of_instances, fit_instances
from keras_microseg.image import PixelSize
from keras_microseg.io.annotations import ClassList, colour_text, find_class_list, read_class_image, read_class_list
from keras_microseg.io.pairing import match_names
from keras_microseg.metrics.pixel import balanced_accuracy, confusion_matrix
from keras_microseg.segmentation.labeling import remove_small
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json

METHODS = ("features", "pixels")
OTHER = "other"
CONTRAST = (0.1, 99.9)
SETTINGS = "classifier_settings.json"
_LARGEST_CUT = 0.2
_FILES = (
    SETTINGS, "classifier.json", "classifier.keras", "evaluation.json", "confusion.csv", "best.keras", "last.keras",
    "checkpoint.npz", "log.csv", "run.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ClassifyTrainSettings:
    """How to train a classifier.

    Attributes:
        images, labels, classes: folders of micrographs, of label images (or masks) and of class images.
        method: `"features"`: measured numbers and a logistic regression, seconds, needs no keras; `"pixels"`: a network
            that sees micrograph and segmentation, minutes to hours.
        class_list: file with names and colours of the classes; None names the colours that occur.
        unmarked: class of particles that the class image leaves in the background's colour; None: they have no class
            and are left out. With one class in the images they are "other".
        held_out: names of images kept for the evaluation; empty: chosen by `validation` and `seed`.
        validation: share of the images held out when none is named, 0 to 0.5.
        pixel_size: edge length with unit; None takes it from the files.
        min_area: particles of fewer pixels are left out.
        degree: of the features in the logistic regression, 1 or 2 (products of two).
        epochs, batch_size, tile, filters, learning_rate, steps_per_epoch: of the network.
        seed: of split, folds, crops and start weights.
    """

    images: str
    labels: str
    classes: str
    method: str = "features"
    class_list: str | None = None
    unmarked: str | None = None
    held_out: tuple[str, ...] = ()
    validation: float = 0.15
    pixel_size: str | None = None
    min_area: int = 10
    degree: int = 1
    epochs: int = 30
    batch_size: int = 8
    tile: int = 192
    filters: int = 12
    learning_rate: float = 2e-3
    steps_per_epoch: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("degree", self.degree, (1, 2))
        check_number("validation", self.validation, minimum=0, maximum=0.5)
        check_number("min_area", self.min_area, minimum=0)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        for name, least in (("epochs", 1), ("batch_size", 1), ("tile", 32), ("filters", 2), ("seed", 0)):
            check_number(name, getattr(self, name), minimum=least, integer=True)
        if self.tile % 8:
            raise UserError(
                f"`tile` must be a multiple of 8. Received: tile={self.tile}. Use {-(-self.tile // 8) * 8}."
            )
        if self.pixel_size is not None:
            object.__setattr__(self, "pixel_size", str(PixelSize.parse(self.pixel_size)))
        object.__setattr__(self, "held_out", tuple(str(name) for name in self.held_out))


@dataclasses.dataclass(frozen=True)
class ClassifiedImage:
    """An image with its particles and their classes.

    Attributes:
        name: stem of the micrograph.
        grey: (H, W) grey values.
        labels: (H, W) int32.
        ids, classes: (N,) labels and the class of each, 1..K, 0 = none.
        pixel_size: or None.
    """

    name: str
    grey: np.ndarray
    labels: np.ndarray
    ids: np.ndarray
    classes: np.ndarray
    pixel_size: PixelSize | None

    def class_map(self) -> np.ndarray:
        """(H, W) int32: the class of the particle at each pixel."""
        table = np.zeros(int(self.ids.max(initial=0)) + 1, np.int32)
        table[self.ids] = self.classes
        return table[self.labels]


@dataclasses.dataclass(frozen=True)
class TrainedClassifier:
    """Outcome of `train_classifier`.

    Attributes:
        model_path: the classifier, for `classify`.
        classes: names and colours.
        confusion: (K, K) counts on the images held out: row = truth, column = prediction.
        cross_validation: the same for every training image, from models that did not see it (features only).
        examples: particles per class in the training images.
        held_out: names of the images held out.
    """

    model_path: Path
    classes: ClassList
    confusion: np.ndarray
    cross_validation: np.ndarray | None
    examples: np.ndarray
    held_out: tuple[str, ...]

    @property
    def balanced_accuracy(self) -> float:
        """Mean share of each class called rightly, on the images held out; NaN without any."""
        return balanced_accuracy(self.confusion)


def train_classifier(
    data: str | os.PathLike | None,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainedClassifier:
    """Train a classifier of particles.

    Args:
        data: folder with `images/`, `labels/` (or `masks/`) and `classes/`; or None with `images`, `labels` and
            `classes` among the settings. Files are paired by name, see `io.pairing.match_names`.
        out: folder for `classifier.json` or `classifier.keras`, `evaluation.json` and `confusion.csv`.
        resume: go on with an interrupted training of a network.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress(step, done, total, item)`.
        **settings: fields of `ClassifyTrainSettings`.

    Raises:
        UserError: files missing or unfit (all of them are named), a class without example, settings out of range.
    """
    chosen = _settings(data, settings)
    out = Path(out)
    _check_folder(out, chosen, resume=resume, overwrite=overwrite)
    triples = find_triples(chosen.images, chosen.labels, chosen.classes)
    class_list = (
        find_class_list(triple[2] for triple in triples)
        if chosen.class_list is None
        else read_class_list(chosen.class_list)
    )
    class_list, unmarked = with_unmarked(class_list, chosen.unmarked)
    images = []
    problems = []
    for number, triple in enumerate(triples):
        if progress:
            progress("read", number, len(triples), triple[0].name)
        try:
            images.append(read_classified(*triple, class_list, unmarked, chosen))
        except (UserError, OSError) as error:
            problems.append(str(error))
    if progress:
        progress("read", len(triples), len(triples), "")
    if problems:
        more = f" ({len(problems) - 8} more)" if len(problems) > 8 else ""
        raise UserError(
            "Nothing was trained, for these files must be put right first:\n" + "\n".join(problems[:8]) + more
        )
    training, held = split_images(images, chosen)
    if overwrite and not resume:
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
    write_json(out / SETTINGS, {**plain(chosen), "started": now()})
    examples = sum(np.bincount(one.classes, minlength=len(class_list) + 1)[1:] for one in training)
    facts = {
        "examples": examples.tolist(), "images": [one.name for one in training], "held_out": [one.name for one in held],
        "made": {**run_facts(), "at": now()},
    }  # fmt: skip
    fit = _fit_features if chosen.method == "features" else _fit_pixels
    path, classifier, cross = fit(training, class_list, chosen, out, facts, resume, progress)
    size = len(class_list)
    confusion = np.zeros((size, size), np.int64)
    rows = []
    for one in held:
        table = _confusion_of(one, classifier, size)
        rows.append({"image": one.name, "particles": int(table.sum()), "right": int(np.trace(table)),
                     "balanced_accuracy": balanced_accuracy(table)})  # fmt: skip
        confusion += table
    trained = TrainedClassifier(path, class_list, confusion, cross, examples, tuple(one.name for one in held))
    _write_evaluation(out, trained, rows, facts)
    return trained


def find_triples(images: str, labels: str, classes: str) -> list[tuple[Path, Path, Path]]:
    """Micrograph, label image and class image of every class image, in natural order.

    Raises:
        UserError: a folder is missing, or a class image has no partner; the message names all of them.
    """
    marked = io.find_images(classes)
    partners = [match_names(marked, io.find_images(folder)) for folder in (images, labels)]
    missing = [
        f"{path.name} (in {folder})"
        for path in marked
        for folder, found in zip((images, labels), partners, strict=True)
        if found[path] is None
    ]
    if missing:
        raise UserError(
            f"{len(missing)} files that belong to class images in {classes} were not found: {', '.join(missing[:8])}"
            f"{' ...' if len(missing) > 8 else ''}. Name image, label image and class image alike."
        )
    return [(partners[0][path], partners[1][path], path) for path in marked]


def with_unmarked(classes: ClassList, unmarked: str | None) -> tuple[ClassList, int]:
    """The class list with the class of unmarked particles, and its number; 0 when there is none."""
    if unmarked is None and len(classes) > 1:
        return classes, 0
    name = OTHER if unmarked is None else unmarked
    if name in classes.names:
        return classes, classes.names.index(name) + 1
    free = next(grey for grey in range(128, 256) if (grey, grey, grey) not in classes.colours)
    colours = (*classes.colours, (free, free, free))
    return ClassList((*classes.names, name), colours, classes.background), len(classes) + 1


def read_classified(
    image: Path, labels: Path, classes: Path, class_list: ClassList, unmarked: int, settings: ClassifyTrainSettings
) -> ClassifiedImage:
    """Read and check one triple; label and class image may leave out an info bar at the bottom.

    Raises:
        FileError: shapes that do not fit, unknown colours, no particle, or none with a class.
    """
    opened = io.open_image(image, pixel_size=settings.pixel_size)
    grey = io.read_grey(opened)
    numbers = io.read_labels(labels)
    if numbers.axes != "YX":
        raise FileError(labels, f"is a volume of axes {numbers.axes}.", "Pass its planes as single label images.")
    class_map = read_class_image(classes, class_list)
    rows = min(len(grey), len(numbers.data), len(class_map))
    for path, shape in ((labels, numbers.shape), (classes, class_map.shape)):
        if shape[1] != grey.shape[1] or not (1 - _LARGEST_CUT) * len(grey) <= shape[0] <= len(grey):
            raise FileError(
                path,
                f"has {shape[0]} x {shape[1]} pixels, its image {image.name} has {grey.shape[0]} x {grey.shape[1]}.",
                "They must agree (an info bar at the bottom may be left out).",
            )  # fmt: skip
    kept = remove_small(np.asarray(numbers.data)[:rows], settings.min_area)
    if not kept.any():
        raise FileError(labels, f"holds no particle of at least {settings.min_area} px.", "Leave it out.")
    ids, found = classes_of_instances(kept, class_map[:rows], len(class_list), unmarked=unmarked)
    if not found.any():
        raise FileError(
            classes, "marks no particle of its label image with a class.",
            "Paint particles in the colours of the classes, or pass --unmarked NAME.",
        )  # fmt: skip
    return ClassifiedImage(image.stem, grey[:rows], kept, ids, found, opened.pixel_size or numbers.pixel_size)


def split_images(
    images: list[ClassifiedImage], settings: ClassifyTrainSettings
) -> tuple[list[ClassifiedImage], list[ClassifiedImage]]:
    """(training, held out) images."""
    names = [one.name for one in images]
    if settings.held_out:
        unknown = sorted(set(settings.held_out) - set(names))
        if unknown:
            raise UserError(f"No image to hold out is called {', '.join(unknown)}. There are: {', '.join(names)}")
        held = {names.index(name) for name in settings.held_out}
        if len(held) == len(images):
            raise UserError("All images are held out. Leave some for training.")
    else:
        count = round(len(images) * settings.validation)
        if settings.validation > 0 and len(images) > 1:
            count = min(max(1, count), len(images) - 1)
        held = set(np.random.default_rng(settings.seed).permutation(len(images))[:count].tolist())
    return [one for i, one in enumerate(images) if i not in held], [one for i, one in enumerate(images) if i in held]


def _fit_features(training, class_list, settings, out, facts, resume, progress):
    unit = next((one.pixel_size.unit for one in training if one.pixel_size is not None), None)
    sizes = [None if one.pixel_size is None else one.pixel_size.to(unit) for one in training]
    tables = [
        instance_features(one.labels, one.grey, pixel_size=size) for one, size in zip(training, sizes, strict=True)
    ]
    classifier, held_out = fit_instances(
        tables, [one.classes for one in training], class_list, degree=settings.degree, seed=settings.seed, card=facts
    )
    size = len(class_list)
    cross = np.zeros((size, size), np.int64)
    for one, probabilities in zip(training, held_out, strict=True):
        judged = np.isfinite(probabilities).all(axis=1) & (one.classes > 0)
        cross += confusion_matrix(one.classes[judged] - 1, probabilities[judged].argmax(axis=1), size)
    return classifier.save(out / "classifier.json"), classifier, cross


def _fit_pixels(training, class_list, settings, out, facts, resume, progress):
    from keras_microseg import backend

    backend.select()
    import keras

    from keras_microseg import losses, models
    from keras_microseg.data.class_maps import ClassifiedImages
    from keras_microseg.inference.pixel_classes import TASK, PixelClassifier
    from keras_microseg.inference.scale import median_diameter
    from keras_microseg.training import supervised
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import OptimizerSettings

    size = len(class_list)
    missing = [name for k, name in enumerate(class_list.names) if not facts["examples"][k]]
    if missing:
        raise UserError(f"No particle of class {', '.join(missing)} in the training images. Mark some.")
    covering = sum(one.labels.size for one in training) / (settings.tile**2 * settings.batch_size)
    steps = settings.steps_per_epoch or int(np.clip(math.ceil(covering), 8, 200))
    samples = [(one.grey, one.labels, one.class_map()) for one in training]
    data = ClassifiedImages(
        samples,
        steps,
        settings.batch_size,
        settings.seed,
        num_classes=size,
        size=(settings.tile,) * 2,
        contrast=CONTRAST,
    )
    backend.seed_everything(settings.seed)
    outputs = [class_list.names[0]] if size == 2 else [*class_list.names, "background"]
    model = models.unet(
        (None, None, 2), num_outputs=len(outputs), filters=tuple(settings.filters * 2**level for level in range(4)),
        activation="sigmoid" if size == 2 else "softmax", name="class_unet",
    )  # fmt: skip
    typical = float(np.median([median_diameter(one.labels) for one in training]))
    card = {
        "task": TASK, "outputs": outputs, "contrast": list(CONTRAST), "multiple_of": 8, "halo": 32,
        "classes": [{"name": name, "colour": colour_text(colour)}
                    for name, colour in zip(class_list.names, class_list.colours, strict=True)],
        "diameter": {"typical": typical, "minimum": typical / 2.5, "maximum": typical * 2.5},
        "training": plain(settings), **facts,
    }  # fmt: skip
    settings_path = out / SETTINGS
    result = supervised.train(
        model,
        data,
        loss=losses.WeightedBinaryCrossentropy() if size == 2 else keras.losses.CategoricalCrossentropy(),
        epochs=settings.epochs,
        out_dir=out,
        optimizer=OptimizerSettings(learning_rate=settings.learning_rate, warmup_epochs=min(1.0, settings.epochs / 10)),
        seed=settings.seed,
        resume=resume,
        callbacks=[EpochProgress(progress)] if progress else [],
        checkpoint_steps=50,
        card=card,
    )
    path = out / "classifier.keras"
    with io.atomic_path(path) as temporary:
        shutil.copyfile(result.last_path, temporary)  # the rate falls to nothing, so the last epoch is the steadiest
    write_json(settings_path, {**plain(settings), "sha256": file_hash(path), "finished": now()})
    return path, PixelClassifier(path), None


def _confusion_of(one: ClassifiedImage, classifier: Any, size: int) -> np.ndarray:
    _, probabilities = classifier.predict(one.labels, one.grey, pixel_size=one.pixel_size)
    judged = one.classes > 0
    return confusion_matrix(one.classes[judged] - 1, probabilities[judged].argmax(axis=1), size)


def _write_evaluation(out: Path, trained: TrainedClassifier, rows: list, facts: Mapping[str, Any]) -> None:
    names = list(trained.classes.names)
    cross = trained.cross_validation
    write_json(
        out / "evaluation.json",
        {
            "classes": names, "examples": trained.examples, "held_out": trained.held_out,
            "confusion": trained.confusion, "balanced_accuracy": trained.balanced_accuracy, "images": rows,
            "cross_validation": cross,
            "cross_validation_balanced_accuracy": None if cross is None else balanced_accuracy(cross),
            "made": facts["made"],
        },
    )  # fmt: skip
    table = pd.DataFrame(trained.confusion, columns=[f"called {name}" for name in names])
    table.insert(0, "truth", names)
    io.write_table(out / "confusion.csv", table, facts={"images held out": ", ".join(trained.held_out)})


def _settings(data: str | os.PathLike | None, settings: dict[str, Any]) -> ClassifyTrainSettings:
    unknown = set(settings) - {field.name for field in dataclasses.fields(ClassifyTrainSettings)}
    if unknown:
        raise UserError(f"Unknown settings {sorted(unknown)}. See ClassifyTrainSettings.")
    folders = {name: settings.pop(name, None) for name in ("images", "labels", "classes")}
    if data is not None:
        root = Path(data)
        folders["images"] = folders["images"] or root / "images"
        folders["labels"] = folders["labels"] or root / ("labels" if (root / "labels").is_dir() else "masks")
        folders["classes"] = folders["classes"] or root / "classes"
    missing = [
        f"{name} ({path})" if path else name for name, path in folders.items() if not path or not Path(path).exists()
    ]
    if missing:
        raise UserError(
            f"Folders are missing: {', '.join(missing)}. Training needs a folder with images/, labels/ (or masks/) and "
            "classes/ inside, or --images, --labels and --classes."
        )
    return ClassifyTrainSettings(**{name: os.fspath(path) for name, path in folders.items()}, **settings)


def _check_folder(out: Path, settings: ClassifyTrainSettings, *, resume: bool, overwrite: bool) -> None:
    path = out / SETTINGS
    if not path.is_file() or (overwrite and not resume):
        return
    if not resume:
        raise FileError(out, "already holds a training.", "Use --resume, --overwrite, or another folder.")
    earlier = read_json(path)
    changed = [f"{key}={earlier[key]!r} -> {value!r}" for key, value in plain(settings).items()
               if key in earlier and earlier[key] != value]  # fmt: skip
    if changed:
        raise FileError(
            out, f"holds a training with other settings ({'; '.join(changed)}).", "Repeat them, or --overwrite."
        )
