"""Workflows `mineral translate-train` and `translate-apply`: pix2pix between micrographs and class maps.

    train      a generator and a discriminator learn from the training tiles
    evaluate   tiles that were held out, and no others: confusion matrix of class maps, texture of micrographs

Class maps become micrographs mainly to enlarge a training set: `translate` writes a folder that `mineral train` reads.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.data.map_tiles import TEST, TRAIN, VALIDATION, plan_tiles
from keras_microseg.intensity import Normalizer
from keras_microseg.io.palettes import IGNORE, Palette, read_palette, write_palette
from keras_microseg.metrics.pixel import accuracy, confusion_matrix, counts_of, iou
from keras_microseg.metrics.texture import compare_textures, texture_statistics
from keras_microseg.workflows import mineral_train
from keras_microseg.workflows.steps import (
    Progress,
    RunFolder,
    Step,
    item_names,
    plain,
    read_json,
    run_facts,
    run_steps,
    write_json,
)

logger = logging.getLogger(__name__)

MODEL, SCORES, CONFUSION, PALETTE, TRAINING = (
    "generator.keras", "scores.json", "confusion.csv", "classes.csv", "training",
)  # fmt: skip
TASK = "mineral translation"
_MOST_TILES = 64
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
        raise UserError(
            f"There is no setting {sorted(unknown)[0]!r}. See workflows.mineral_translate.TranslateSettings."
        )
    return TranslateSettings(data=data, **{**PRESETS[name], **changes})


def train(
    settings: TranslateSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train and score on held-out tiles.

    Args:
        settings: see `preset`.
        out: folder; gets `generator.keras` (the best epoch), `scores.json`, `confusion.csv` (classes) or texture
            scores (micrographs), `training/` with logs and pictures per epoch.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The scores.

    Raises:
        UserError: nothing is held out, classes or data that do not fit.
    """
    folder = RunFolder(
        out, settings, command="mineral translate-train", resume=resume, overwrite=overwrite, progress=progress
    )
    run_steps(folder, [Step("train", _train), Step("evaluate", _evaluate)])
    return read_json(folder.path / SCORES)


def _read(settings: TranslateSettings) -> tuple[dict[str, list[Any]], Any, dict[str, Any]]:
    """Images by part, their `ClassTable`, and the rule of grey values."""
    from keras_microseg.data import map_pairs
    from keras_microseg.io.palettes import read_groups

    pairs = map_pairs.find_map_pairs(settings.data)
    groups = None if settings.groups is None else read_groups(settings.groups)
    table = map_pairs.find_classes(
        settings.data, pairs, palette=settings.palette, groups=groups, names=settings.classes
    )
    pairs = map_pairs.split_pairs(
        pairs, settings.split, validation=settings.validation, hold=settings.hold, guard=settings.guard,
        seed=settings.seed,
    )  # fmt: skip
    images = [map_pairs.read_pair(dataclasses.replace(pair, soft=None), table) for pair in pairs]
    parts = {part: [i for i in images if i.pair.part == part] for part in (TRAIN, VALIDATION, TEST)}
    if not parts[TRAIN]:
        raise UserError("No image is left to train on. Use less validation, or another split.")
    if not parts[VALIDATION]:
        raise UserError("Nothing is held out: scores on training tiles say nothing. Use validation=0.2, or a split.")
    rule, _ = mineral_train.normalize(mineral_train.TrainSettings(settings.data, normalization="fixed"), parts[TRAIN])
    return parts, table, rule


def build(settings: TranslateSettings, num_classes: int) -> Any:
    """`Pix2Pix` with start weights drawn on the host: equal on all backends."""
    from keras_microseg.models.discriminators import pix2pix_discriminator
    from keras_microseg.models.generators import pix2pix_generator
    from keras_microseg.models.initialization import draw_kernels
    from keras_microseg.training.pix2pix import Pix2Pix
    from keras_microseg.training.schedules import OptimizerSettings

    to_labels = settings.direction == "labels"
    given = 1 if to_labels or settings.label_input == "index" else num_classes
    made = num_classes if to_labels else 1
    generator = pix2pix_generator(
        (None, None, given), made, settings.filters, settings.num_levels, normalization=settings.normalization,
        activation=settings.activation or ("softmax" if to_labels else "tanh"),
    )  # fmt: skip
    maps = num_classes if settings.adversarial == "categorical" else 1
    judge = pix2pix_discriminator(
        (None, None, given + made), maps, settings.filters, normalization=settings.normalization
    )
    for number, network in enumerate((generator, judge)):
        draw_kernels(network, settings.seed + number)
    return Pix2Pix(
        generator,
        judge,
        direction=settings.direction,
        num_classes=num_classes,
        adversarial=settings.adversarial,
        content=settings.content,
        content_weight=settings.content_weight,
        signed=settings.signed,
        optimizer=OptimizerSettings("adam", settings.learning_rate, schedule="constant", options={"beta_1": 0.5}),
    )


def _train(folder: RunFolder) -> None:
    from keras_microseg import backend

    backend.select()
    from keras_microseg.data.augment import NO_AUGMENTATION, AugmentSettings
    from keras_microseg.data.map_crops import MapCrops
    from keras_microseg.training.adversarial import train_adversarial
    from keras_microseg.training.previews import SamplePictures

    settings: TranslateSettings = folder.settings
    parts, table, rule = _read(settings)
    system = build(settings, len(table.names))
    grey = {} if settings.direction == "labels" else {"contrast": 0.0, "gamma": 0.0, "noise": 0.0, "blur": 0.0}
    augment = AugmentSettings(**grey) if settings.augment else NO_AUGMENTATION
    covered = sum(image.classes.size for image in parts[TRAIN])
    area = settings.tile**2 * settings.batch_size
    steps = settings.steps_per_epoch or int(np.clip(math.ceil(covered / area), 8, 2500))
    seeds = [int(s) for s in np.random.SeedSequence([settings.seed, 7]).generate_state(2)]
    options = {"num_classes": len(table.names), "size": (settings.tile,) * 2}
    data = MapCrops(
        parts[TRAIN], steps, settings.batch_size, seeds[0], normalizers=_normalizers(rule, parts[TRAIN]),
        augment=augment, focus=settings.focus, **options,
    )  # fmt: skip
    shown = MapCrops(
        parts[VALIDATION], 1, 4, seeds[1], normalizers=_normalizers(rule, parts[VALIDATION]), fixed=True, focus=0.0,
        **options,
    )[0]  # fmt: skip
    pixel_size = next((image.pixel_size for image in parts[TRAIN] if image.pixel_size is not None), None)
    card = {
        "name": f"pix2pix ({settings.direction}) trained on {Path(settings.data).name}",
        "task": mineral_train.TASK if settings.direction == "labels" else TASK,
        "direction": settings.direction,
        "outputs": table.names if settings.direction == "labels" else ["grey"],
        "classes": [
            {"id": k, "name": m.name, "colour": m.colour} for k, m in enumerate(table.palette.minerals)
        ],
        "normalization": rule,
        "channels": "grey",
        "num_channels": 1,
        "signed": settings.signed,
        "pixel_size": None if pixel_size is None else {"size": pixel_size.size, "unit": pixel_size.unit},
        "multiple_of": 2**settings.num_levels,
        "halo": 48,
        "training": plain(settings),
        "made": {**run_facts(), "at": folder.manifest["started"]},
    }  # fmt: skip
    scorer = HeldOut(system, parts[VALIDATION], _normalizers(rule, parts[VALIDATION]), table.names, settings.tile)
    out = folder.directory(TRAINING)
    result = train_adversarial(
        system,
        data,
        epochs=settings.epochs,
        out_dir=out,
        seed=settings.seed,
        resume=True,
        average={"generator": settings.average} if settings.average else None,
        mixed_precision=settings.mixed_precision,
        scorers=[scorer],
        monitor=scorer.monitor,
        monitor_mode=scorer.mode,
        callbacks=[SamplePictures(shown, out / "previews"), *_reporters(folder, settings.epochs)],
        checkpoint_steps=100,
        workers=1,
        cards={"generator": plain(card)},
    )
    with io.atomic_path(folder.file(MODEL)) as temporary:
        shutil.copyfile(result.best_paths["generator"], temporary)
    write_palette(folder.file(PALETTE), Palette(table.palette.minerals))
    folder.manifest["trained"] = {"epochs": len(result.history), "best_epoch": result.best_epoch}


def _evaluate(folder: RunFolder) -> None:
    """Scores of the best epoch on test tiles; on those that chose it where there are none."""
    from keras_microseg import backend
    from keras_microseg.models.saving import load_model

    settings: TranslateSettings = folder.settings
    parts, table, rule = _read(settings)
    part = TEST if parts[TEST] else VALIDATION
    system = build(settings, len(table.names))
    system.networks["generator"], _ = load_model(folder.path / MODEL)
    predict = backend.compile_predict(system.networks["generator"])
    judge = HeldOut(system, parts[part], _normalizers(rule, parts[part]), table.names, settings.tile)
    scores = judge(lambda _, array: predict(array), 0)
    write_json(folder.file(SCORES), {"part": part, "tiles": len(judge.tiles), **scores})
    if settings.direction == "labels":
        frame = pd.DataFrame(judge.table, index=table.names, columns=table.names).rename_axis("truth").reset_index()
        io.write_table(folder.file(CONFUSION), frame, facts={"part": part, "unit": "pixels", "columns": "predicted"})


class HeldOut:
    """Scores of a `Pix2Pix` generator on tiles it has not seen, for `train_adversarial`.

    Class maps: pooled argmax confusion matrix (`table`), `mean_iou` over the classes that occur, `iou_CLASS`,
    `accuracy`. Micrographs: `texture_distance` to the real tiles with its `texture_reference` (real tiles among
    themselves), `variety`, `grey_error` (mean absolute error, 0..1).

    Args:
        system: `training.pix2pix.Pix2Pix`.
        images: `data.map_pairs.MapImage` of the held-out part.
        normalizers: of the images.
        names: of the classes.
        tile: edge of the tiles, px; at most `_MOST_TILES` evenly chosen ones.
    """

    def __init__(
        self, system: Any, images: Sequence[Any], normalizers: Sequence[Normalizer], names: Sequence[str], tile: int
    ):
        self.system, self.names = system, list(names)
        self.to_labels = system.direction == "labels"
        self.monitor, self.mode = ("mean_iou", "max") if self.to_labels else ("texture_distance", "min")
        places = []
        for item, normalizer in zip(images, normalizers, strict=True):
            edge = min(tile, *item.classes.shape)
            places += [
                (item, normalizer, (slice(y, y + edge), slice(x, x + edge)))
                for y, x in plan_tiles(item.classes.shape, edge)
            ]
        chosen = places[:: max(1, math.ceil(len(places) / _MOST_TILES))]
        self.tiles = [
            (np.atleast_3d(scale(item.image[window])), item.classes[window]) for item, scale, window in chosen
        ]
        if not self.to_labels and len(self.tiles) < 4:
            raise UserError(
                f"Textures are compared over four held-out tiles or more. Received: {len(self.tiles)} of {tile} px. "
                "Use a smaller tile, or hold out more."
            )
        self.table = np.zeros((len(self.names),) * 2, np.int64)

    def __call__(self, predict: Callable[[str, np.ndarray], np.ndarray], epoch: int) -> dict[str, float]:
        made = []
        for image, classes in self.tiles:
            one_hot = (classes[..., np.newaxis] == np.arange(len(self.names))).astype(np.float32)
            given = self.system.prepare(image[np.newaxis], one_hot[np.newaxis])
            made.append(predict("generator", given)[0])
        if self.to_labels:
            self.table = sum(
                confusion_matrix(classes, result.argmax(axis=-1), len(self.names))
                for (_, classes), result in zip(self.tiles, made, strict=True)
            )
            counts = counts_of(self.table)
            scores, present = iou(counts, "none"), counts.tp + counts.fn > 0
            named = {f"iou_{name}": float(score) for name, score in zip(self.names, scores, strict=True)}
            return {"mean_iou": float(scores[present].mean()), "accuracy": float(accuracy(counts, "micro")), **named}
        pictures = [to_grey(result, self.system.signed) for result in made]
        real = [image[..., 0] for image, _ in self.tiles]
        likeness = compare_textures(texture_statistics(real), texture_statistics(pictures))
        error = np.mean([np.abs(a - b).mean() for a, b in zip(real, pictures, strict=True)])
        return {
            "texture_distance": likeness.distance, "texture_reference": likeness.reference,
            "variety": likeness.variety, "grey_error": float(error),
        }  # fmt: skip


def to_grey(made: np.ndarray, signed: bool) -> np.ndarray:
    """(H, W) in 0..1 from what a generator of micrographs returns, (H, W, 1)."""
    return np.clip(made[..., 0] / 2 + 0.5 if signed else made[..., 0], 0, 1)


def translate(
    inputs: str | os.PathLike,
    out: str | os.PathLike,
    *,
    model: str | os.PathLike,
    real: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Class maps of micrographs, or micrographs of class maps, for every file of a folder.

    Args:
        inputs: folder or file; micrographs, or masks of class numbers, as the model wants.
        out: folder. Classes: `masks/NAME.png`. Micrographs: a training set, `train/NAME.tif` with
            `train_annot/NAME.png` and `classes.csv`.
        model: `generator.keras` of `train`, or its folder.
        real: data folder whose pairs join the training set (for a model of micrographs): its training pairs beside the
            made ones, its validation and test pairs in `val/`, `test/`, so that nothing made is ever scored.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError, FileError: no such model, or one of another kind.
    """
    path = Path(model) / MODEL if Path(model).is_dir() else Path(model)
    settings = ApplySettings(str(inputs), str(path), None if real is None else str(real))
    folder = RunFolder(
        out, settings, command="mineral translate-apply", resume=resume, overwrite=overwrite, progress=progress
    )
    return run_steps(folder, [Step("translate", _translate), *([Step("join", _join)] if real is not None else [])])


@dataclasses.dataclass(frozen=True)
class ApplySettings:
    """What `translate` was asked."""

    inputs: str
    model: str
    real: str | None = None


def _translate(folder: RunFolder) -> None:
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.prediction import Predictor, predict_maps
    from keras_microseg.models.saving import load_model

    asked: ApplySettings = folder.settings
    generator, card = load_model(asked.model)
    if "direction" not in card:
        raise FileError(asked.model, "is no translation.", "Use `mineral predict` for other networks.")
    predictor = Predictor(generator, card, fold=False)
    stride = card["multiple_of"]
    tile = -(-card["training"]["tile"] // stride) * stride  # normalization over other sizes would change the picture
    view = {"tile": tile, "halo": tile // 4, "blend": "linear"}
    count = len(card["classes"])
    to_labels = card["direction"] == "labels"
    if to_labels and asked.real:
        raise UserError("A model that makes class maps adds nothing to a training set: leave `real` out.")

    def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        if to_labels:
            image = io.open_image(path)
            grey = np.atleast_3d(Normalizer.from_dict(card["normalization"])(np.asarray(io.read_grey(image))))
            classes = predict_maps(predictor, grey, **view).argmax(axis=-1).astype(np.uint8)
            target = folder.file("masks", f"{name}.png")
            io.write_image(target, classes)
            return {"pixels": np.bincount(classes.ravel(), minlength=count)}, [target]
        classes = read_mask(path, count)
        given: np.ndarray = np.where(classes < count, classes, 0)[..., np.newaxis].astype(np.float32)
        if generator.input_shape[-1] > 1:
            given = (classes[..., np.newaxis] == np.arange(count)).astype(np.float32)
        grey = to_grey(predict_maps(predictor, given, **view), card["signed"])
        files = [folder.file("train", f"made_{name}.tif"), folder.file("train_annot", f"made_{name}.png")]
        _write_grey(files[0], grey, card)
        io.write_image(files[1], classes)
        return {"pixels": np.bincount(classes.ravel(), minlength=256)[:count]}, files

    inputs = item_names(io.find_images(asked.inputs))
    folder.for_each("translate", inputs, work)
    palette = Path(asked.model).parent / PALETTE
    if palette.is_file():
        write_palette(folder.file(PALETTE), read_palette(palette))


def _join(folder: RunFolder) -> None:
    """Copies of the real pairs, in the part that they belong to."""
    from keras_microseg.data import map_pairs
    from keras_microseg.models.saving import read_card

    asked: ApplySettings = folder.settings
    card = read_card(Path(asked.model)) or {}
    trained = {**card["training"], "data": asked.real}
    parts, _, _ = _read(TranslateSettings(**trained))
    places = {TRAIN: "train", VALIDATION: "val", TEST: "test"}
    for part, images in parts.items():
        for image in images:
            name = f"real_{image.pair.name}" + ("" if image.pair.window is None else f"_{part}")
            scaled = Normalizer.from_dict(card["normalization"])(image.image)
            _write_grey(folder.file(places[part], f"{name}.tif"), scaled, card)
            io.write_image(folder.file(f"{places[part]}_annot", f"{name}.png"), image.classes)
    assert map_pairs.find_map_pairs(folder.path)


def _write_grey(path: Path, grey: np.ndarray, card: dict[str, Any]) -> None:
    from keras_microseg.image import PixelSize

    size = card.get("pixel_size")
    io.write_image(
        path, np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8), axes="YX",
        pixel_size=None if size is None else PixelSize(tuple(size["size"]), size["unit"]),
    )  # fmt: skip


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """(H, W) uint8 class numbers, 255 = not known.

    Raises:
        FileError: colours, or numbers that are no class of the model.
    """
    opened = io.open_image(path, raw_palette=True)
    array = np.squeeze(np.asarray(opened.read()))
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise FileError(path, "holds no class numbers.", "Use masks as `mineral tiles` writes them.")
    found = np.unique(array)
    strange = [int(n) for n in found if n >= num_classes and n != IGNORE]
    if strange:
        raise FileError(
            path, f"holds the number {strange[0]}, but the model knows {num_classes} classes.",
            "Use masks of the classes it was trained with.",
        )  # fmt: skip
    return array.astype(np.uint8)


def _normalizers(rule: dict[str, Any], images: Sequence[Any]) -> list[Normalizer]:
    return mineral_train.normalize(mineral_train.TrainSettings(".", normalization="fixed"), images, rule)[1]


def _reporters(folder: RunFolder, epochs: int) -> list[Any]:
    from keras_microseg.workflows.sem_particles.translation import progress_callbacks

    return progress_callbacks(folder, "train", epochs)
