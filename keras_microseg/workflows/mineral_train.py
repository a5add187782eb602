"""Workflow `mineral train`: micrographs with class maps become a network file that `mineral predict` uses."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice
from keras_microseg.intensity import Normalizer, percentile_limits
from keras_microseg.metrics.class_maps import counts_of
from keras_microseg.metrics.pixel import Counts, confusion_matrix, iou
from keras_microseg.report.figures import figure_png
from keras_microseg.report.map_figures import training_figure
from keras_microseg.tiling import round_up
from keras_microseg.workflows.mineral_train_settings import PRESETS, TrainSettings, preset
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json
from keras_microseg.workflows.training_folders import refuse_other_training

__all__ = ["PRESETS", "TrainSettings", "TrainedMapModel", "preset", "train"]

TASK = "mineral map"
MODEL, SETTINGS, CURVES = "model.keras", "train_settings.json", "training.png"
PERCENTILES = (0.1, 99.9)
_FILES = (MODEL, SETTINGS, CURVES, "best.keras", "last.keras", "checkpoint.npz", "log.csv", "run.json")
_MOST_VALIDATION = 16_000_000
_HALO = 48


@dataclasses.dataclass(frozen=True)
class TrainedMapModel:
    """Outcome of `train`.

    Attributes:
        model_path: the network of the best epoch.
        scores: its validation scores.
        history: one row per epoch.
        card: the facts stored in the file.
        warnings: what to doubt.
    """

    model_path: Path
    scores: dict[str, float]
    history: list[dict[str, float]]
    card: dict[str, Any]
    warnings: tuple[str, ...] = ()


def train(
    settings: TrainSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedMapModel:
    """Train a network on micrographs with class maps.

    Args:
        settings: see `TrainSettings` and `preset`.
        out: folder for `model.keras`, `log.csv`, `training.png` and what `resume` needs.
        resume: go on with an interrupted training.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress("train", epochs done, epochs, scores)`.

    Returns:
        `TrainedMapModel`. The file holds the network and a card: `outputs` (names of the classes), `classes` (number,
        name, colour, density, micro-porosity), `normalization`, `channels`, `pixel_size`, `multiple_of`, `halo`.

    Raises:
        UserError: no data, classes without training pixels to monitor, a folder that holds another training.
        FileError: image and map of different shape, weights that are not there.
    """
    out = Path(out)
    _check_folder(out, settings, resume=resume, overwrite=overwrite)

    from keras_microseg import backend

    backend.select()

    from keras_microseg import losses
    from keras_microseg.data.augment import AugmentSettings
    from keras_microseg.data.map_crops import MapCrops
    from keras_microseg.data.map_pairs import class_weights, count_classes, describe_pixels
    from keras_microseg.models.deep_supervision import main_maps
    from keras_microseg.models.encoder_decoder import class_map_network, freeze_encoder, total_stride
    from keras_microseg.models.saving import load_model, save_model

    training, held, table = read_data(settings)
    names, pixels = table.names, count_classes(training, len(table.names))
    _check_monitored(settings, names, pixels)
    warnings = _absent_classes(table.palette, pixels)
    weights = class_weights(pixels, settings.class_weights)
    rule, normalizers = normalize(settings, training)
    seeds = [int(s) for s in np.random.SeedSequence(settings.seed).generate_state(2)]
    covered = sum(image.classes.size for image in training)
    steps = settings.steps_per_epoch or int(
        np.clip(math.ceil(covered / (settings.tile**2 * settings.batch_size)), 8, 400)
    )
    data = MapCrops(
        training, steps, settings.batch_size, seeds[0], num_classes=len(names), normalizers=normalizers,
        size=(settings.tile, settings.tile), focus=settings.focus,
        augment=AugmentSettings(**settings.augment) if settings.augment is not None else AugmentSettings(
            False, 1.0, False, 0.0, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    channels = 1 if settings.channels == "grey" else training[0].image.shape[-1]
    backend.seed_everything(seeds[1] % 2**31)
    model = class_map_network(
        settings.architecture, len(names), channels=channels, backbone=settings.backbone, filters=settings.filters,
        dropout=settings.dropout, encoder_weights=settings.encoder_weights, input_size=settings.tile,
        deep_supervision=settings.deep_supervision,
    )  # fmt: skip
    if settings.tile % total_stride(model):
        raise UserError(
            f"`tile` must be a multiple of {total_stride(model)} for this network. Received: {settings.tile}. "
            f"Use {round_up(settings.tile, total_stride(model))}."
        )
    # the context of `two_branch` reaches further than the depth of the network says
    halo = max(_HALO, (4 if settings.architecture == "two_branch" else 2) * total_stride(model))
    pixel_size = next((image.pixel_size for image in training if image.pixel_size is not None), None)
    card = {
        "name": f"{model.name} trained on {Path(settings.data).name}",
        "task": TASK,
        "outputs": names,
        "classes": [
            {"id": k, "name": m.name, "colour": m.colour, "density": _number(m.density),
             "micro_porosity": m.micro_porosity}
            for k, m in enumerate(table.palette.minerals)
        ],
        "normalization": rule,
        "channels": settings.channels,
        "num_channels": channels,
        "pixel_size": None if pixel_size is None else {"size": pixel_size.size, "unit": pixel_size.unit},
        "multiple_of": total_stride(model),
        "halo": halo,
        "tile": max(512, settings.tile + 2 * halo),
        "class_shares": describe_pixels(pixels, names),
        "class_weights": dict(zip(names, plain(weights), strict=True)),
        "grey_histogram": _histogram(training, normalizers),
        "training": {**plain(settings), "images": len(training), "validation_images": len(held)},
        "made": {**run_facts(), "at": now()},
    }  # fmt: skip
    earlier = read_json(out / SETTINGS).get("card") if resume and (out / SETTINGS).is_file() else None
    card = plain({**card, "made": earlier["made"]} if earlier else card)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SETTINGS, {**plain(settings), "card": card})
    loss: Any = losses.DiceFocal([float(w) for w in weights], **settings.loss)
    if settings.label_grid > 1:
        loss = losses.LabelGrid(loss, settings.label_grid)
    if settings.deep_supervision:
        loss = losses.DeepSupervision(loss, settings.deep_supervision)
    scorer = MapScores(card, held, normalize(settings, held, rule)[1], settings.monitor) if held else None
    share = {"resume": resume, "loss": loss, "scorer": scorer, "card": card, "progress": progress}
    if settings.regime in ("frozen", "two-stage"):
        freeze_encoder(model, train_batch_norm=settings.train_batch_norm)
    if settings.regime == "two-stage":
        first = dataclasses.replace(settings, epochs=settings.warm_epochs, minutes=_part(settings.minutes, 0.25))
        _fit(model, data, out / "stage1", first, **{**share, "resume": True})
        freeze_encoder(model, frozen=False)
        rate = settings.optimizer.get("learning_rate", 1e-3) / 10
        settings = dataclasses.replace(
            settings, minutes=_part(settings.minutes, 0.75), optimizer={**settings.optimizer, "learning_rate": rate}
        )
    result = _fit(model, data, out, settings, **share)
    if settings.deep_supervision:
        save_model(main_maps(load_model(result.best_path)[0]), out / MODEL, card)
    else:
        with io.atomic_path(out / MODEL) as temporary:
            shutil.copyfile(result.best_path, temporary)
    best = result.history[(result.best_epoch or len(result.history)) - 1]
    scores = {name: float(value) for name, value in best.items() if name == "loss" or name.startswith("val_")}
    finished = {
        "scores": scores, "best_epoch": result.best_epoch, "epochs_done": len(result.history),
        "seconds": sum(row["seconds"] for row in result.history), "sha256": file_hash(out / MODEL), "finished": now(),
    }  # fmt: skip
    write_json(out / SETTINGS, {**read_json(out / SETTINGS), **finished})
    with io.atomic_path(out / CURVES) as temporary:
        Path(temporary).write_bytes(figure_png(training_figure(pd.DataFrame(result.history)), dpi=150))
    return TrainedMapModel(out / MODEL, scores, result.history, card, warnings)


def read_data(settings: TrainSettings) -> tuple[list[Any], list[Any], Any]:
    """(training images, validation images, `ClassTable`) as the settings say."""
    from keras_microseg.data.map_pairs import TRAIN, VALIDATION

    images, table = read_pairs(settings, but="test")
    training, held = ([i for i in images if i.pair.part == part] for part in (TRAIN, VALIDATION))
    if not training:
        raise UserError("No image is left to train on. Use less validation, or another split.")
    return training, held, table


def read_pairs(settings: TrainSettings, *, but: str | None = None) -> tuple[list[Any], Any]:
    """(images of all parts except `but`, `ClassTable`) as the settings say."""
    from keras_microseg.data import map_pairs

    pairs, table = map_pairs.open_pairs(
        settings.data, palette=settings.palette, groups=settings.groups, names=settings.classes, split=settings.split,
        validation=settings.validation, hold=settings.hold, guard=settings.guard, seed=settings.seed,
    )  # fmt: skip
    if settings.soft and all(pair.soft is None for pair in pairs):
        raise UserError("`soft` needs shares of classes. Cut the tiles with `mineral tiles --soft`.")
    images = [
        map_pairs.read_pair(pair if settings.soft else dataclasses.replace(pair, soft=None), table,
                            channels=settings.channels, tolerance=settings.tolerance)
        for pair in pairs
        if pair.part != but
    ]  # fmt: skip
    return images, table


def normalize(
    settings: TrainSettings, images: Sequence[Any], rule: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], list[Normalizer]]:
    """The rule for the card, and the scaling of each image by it.

    Percentiles are those of all images of a sample together, so that a tile without pores is not stretched.
    """
    kind = settings.normalization
    if rule is not None:
        kind = rule["mode"]
    elif kind is None:
        kind = "fixed" if (Path(settings.data) / "tiles.json").is_file() else "percentile"
    if kind == "percentile":
        lower, upper = PERCENTILES
        samples: dict[str, list[np.ndarray]] = {}
        for image in images:
            samples.setdefault(image.pair.sample, []).append(image.image[::2, ::2].ravel())
        limits = {name: percentile_limits(np.concatenate(parts), lower, upper) for name, parts in samples.items()}
        scalings = [Normalizer("percentile", *map(float, limits[image.pair.sample])) for image in images]
        return {"mode": "percentile", "lower": lower, "upper": upper}, scalings
    if rule is None:
        if all(image.image.dtype == np.uint8 for image in images):
            low, high = 0.0, 255.0
        else:
            ends = np.array([percentile_limits(image.image, *PERCENTILES) for image in images])
            low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
        rule = Normalizer("fixed", low, high).to_dict()
    return dict(rule), [Normalizer.from_dict(rule) for _ in images]


class MapScores:
    """Scores a network on whole validation images after every epoch.

    Args:
        card: of the model.
        images: see `data.map_pairs.MapImage`; of very many, evenly chosen ones.
        normalizers: of the images.
        monitor: names of the classes that `val_mean_iou` averages; () = all that occur.
    """

    def __init__(
        self, card: Mapping[str, Any], images: Sequence[Any], normalizers: Sequence[Normalizer], monitor: Sequence[str]
    ):
        self.card, self.names = dict(card), list(card["outputs"])
        stride = max(1, math.ceil(sum(image.classes.size for image in images) / _MOST_VALIDATION))
        self.images = list(zip(images, normalizers, strict=True))[::stride]
        self.monitor = [self.names.index(name) for name in monitor]
        self._predictor: Any = None

    def __call__(self, model: Any, epoch: int) -> dict[str, float]:
        """`val_mean_iou` and `val_iou_CLASS` of the pooled confusion matrix."""
        counts = self.counts(model)
        scores = iou(counts, "none")
        chosen = self.monitor or list(np.flatnonzero(counts.tp + counts.fn > 0))
        named = {f"val_iou_{name}": float(score) for name, score in zip(self.names, scores, strict=True)}
        return {"val_mean_iou": float(np.mean(scores[chosen])), **named}

    def counts(self, model: Any) -> Counts:
        """Pooled counts of all images."""
        from keras_microseg.inference.prediction import Predictor
        from keras_microseg.models.deep_supervision import main_maps

        if self._predictor is None:
            self._predictor = Predictor(main_maps(model), self.card, fold=False)
        table = np.zeros((len(self.names),) * 2, np.int64)
        for item, normalizer in self.images:
            table += confusion_matrix(item.classes, classify(self._predictor, normalizer(item.image)), len(self.names))
        return counts_of(table)


def classify(predictor: Any, image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 most probable class of a scaled image, (H, W) or (H, W, C), in tiles as large as the card says."""
    from keras_microseg.inference.prediction import choose_tile, predict_maps

    used = [shape[1:3] for shape in predictor.shapes]
    halo, multiple = predictor.halo, predictor.multiple_of
    tile = choose_tile(image.shape[:2], halo, multiple, used=used, largest=predictor.card.get("tile"))
    return predict_maps(predictor, np.atleast_3d(image), tile=tile).argmax(axis=-1).astype(np.uint8)


def _fit(
    model: Any,
    data: Any,
    out: Path,
    settings: TrainSettings,
    *,
    resume: bool,
    loss: Any,
    scorer: Callable | None,
    card: Mapping[str, Any],
    progress: Progress | None,
) -> Any:
    from keras_microseg.training import supervised
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import OptimizerSettings, TimeBudget

    options = dict(settings.optimizer)
    callbacks: list[Any] = []
    budget = None
    if settings.minutes is not None:
        rate, final = options.get("learning_rate", 1e-3), options.get("final_factor", 0.01)
        budget = TimeBudget(settings.minutes, rate, final)
        callbacks.append(budget)
        options = {**options, "schedule": "constant", "warmup_epochs": 0.0}
    if progress is not None:
        callbacks.append(EpochProgress(progress, shown=("loss", "val_mean_iou"), budget=budget))
    return supervised.train(
        model,
        data,
        loss=loss,
        epochs=settings.epochs,
        out_dir=out,
        scorers=[scorer] if scorer else [],
        monitor="val_mean_iou" if scorer else None,
        optimizer=OptimizerSettings(**options),
        seed=settings.seed,
        resume=resume,
        patience=settings.patience,
        mixed_precision=settings.mixed_precision,
        callbacks=callbacks,
        checkpoint_steps=50,
        workers=settings.workers,
        tensorboard=settings.tensorboard,
        card=card,
    )


def _absent_classes(palette: Any, pixels: np.ndarray) -> tuple[str, ...]:
    """A warning that names the classes without a training pixel; where one class takes all other colours, too."""
    absent = [m for m, count in zip(palette.minerals, pixels, strict=True) if not count]
    if not absent:
        return ()
    listed = ", ".join(f"{m.name} (#{bytes(m.colour).hex()})" for m in absent)
    taker = next((m.name for m in palette.minerals if m.takes_others), None)
    text = f"No training pixel of {listed}: the network cannot learn what it never sees. Check the palette."
    return (text if taker is None else f"{text} Colours that it does not list count as {taker}.",)


def _part(minutes: float | None, share: float) -> float | None:
    return None if minutes is None else minutes * share


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _histogram(images: Sequence[Any], normalizers: Sequence[Normalizer]) -> list[float]:
    """Shares of 64 steps of the scaled grey values 0..1 over all training images, to notice strange ones later."""
    total = np.zeros(64)
    for image, normalizer in zip(images, normalizers, strict=True):
        values = normalizer(image.image[::2, ::2])
        total += np.histogram(values, bins=64, range=(0, 1))[0]
    return [round(float(v), 6) for v in total / max(total.sum(), 1)]


def _check_monitored(settings: TrainSettings, names: Sequence[str], pixels: np.ndarray) -> None:
    for name in settings.monitor:
        check_choice("monitor", name, names)
    absent = [name for name, count in zip(names, pixels, strict=True) if not count]
    if absent:
        text = f"Classes without a training pixel: {', '.join(absent)}."
        if set(absent) & set(settings.monitor) or len(absent) >= len(names) - 1:
            raise UserError(f"{text} A network cannot learn them: merge them into others (--groups), or add images.")
        import logging

        logging.getLogger(__name__).warning("%s They will never be predicted well.", text)


def _check_folder(out: Path, settings: TrainSettings, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with another training, unless asked to go on with it or to replace it."""
    path = out / SETTINGS
    if overwrite and not resume:
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
        shutil.rmtree(out / "stage1", ignore_errors=True)
        return
    if not path.is_file():
        return
    refuse_other_training(out, settings, resume=resume, free=("epochs", "workers", "tensorboard"))
