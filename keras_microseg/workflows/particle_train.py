"""Workflow `particles train`: annotated images become a Mask R-CNN that `particles detect` and `segment` use."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_choice, check_names, check_number
from keras_microseg.io import annotations as notes
from keras_microseg.workflows.particle_data import load_data, split_objects
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json
from keras_microseg.workflows.training_folders import refuse_other_training

logger = logging.getLogger(__name__)

MODEL = "model.keras"
PRESETS = {
    "light": {"network": "light", "tile": 256, "batch_size": 4, "learning_rate": 1e-3, "minutes": "auto"},
    "default": {"network": "default", "tile": 512, "batch_size": 2, "learning_rate": 2e-4},
    "gpu": {
        "network": "default",
        "tile": 512,
        "batch_size": 8,
        "learning_rate": 4e-4,
        "mixed_precision": True,
        "workers": 8,
    },
}
SCHEDULES = ("one-stage", "heads-then-all")
_MAX_OVERLAP = 0.5


@dataclasses.dataclass(frozen=True)
class ParticleTrainSettings:
    """How to train a detector.

    Attributes:
        data: folder with `images/` and `labels/` (or `masks/`), or with images and an annotation file (VIA, COCO), or
            of the images alone when `annotations` is given.
        annotations: annotation file or folder; None = looked for in `data`.
        preset: "light" (a CPU, 10 to 35 minutes), "default" (ResNet-50), "gpu" (the same in bfloat16).
        categories: names of the classes; empty = those of the annotations when `use_categories`, else one class.
        use_categories: tell the annotations' classes apart.
        validation: share of the images kept for validation, or names of them. Tiles and planes of one specimen stay
            together where there are several specimens; a single image is cut in two with a gap.
        network: preset of `models.mask_rcnn`.
        tile: side of the tiles, px; a multiple of 32 (light) or 64.
        scale: factor by which images are enlarged; None = 1, or one that brings the objects to a size the tile suits.
        channels: 1 = grey; 3 = colour.
        epochs: passes; with `minutes` the most.
        steps_per_epoch: None: as many as cover every pixel about once, 20 to 200.
        batch_size: tiles per step.
        learning_rate: highest; falls along a cosine to 1 %.
        optimizer: "adamw" or "sgd" (momentum 0.9).
        schedule: "one-stage", or "heads-then-all": a third of the time for all but the backbone, the rest for all
            layers at a tenth of the learning rate (for pretrained backbones).
        weights: `.keras` file of an earlier detector to start from.
        minutes: budget; "auto" = 10 for a few small images to 35 for 2 megapixels and more; None = none.
        patience: epochs without better average precision until the end; None = never.
        min_score: score from which the trained model reports objects; None = the one with the best F1 on validation.
        mixed_precision: compute in bfloat16.
        workers: threads that prepare tiles ahead; the results do not depend on it.
        changes: further fields of `MaskRCNNSettings`, such as {"mask_size": 56}.
        seed: of everything.
    """

    data: str
    annotations: str | None = None
    preset: str = "light"
    categories: tuple[str, ...] = ()
    use_categories: bool = False
    validation: float | tuple[str, ...] = 0.2
    network: str = "light"
    tile: int = 256
    scale: float | None = None
    channels: int = 1
    epochs: int = 200
    steps_per_epoch: int | None = None
    batch_size: int = 4
    learning_rate: float = 1e-3
    optimizer: str = "adamw"
    schedule: str = "one-stage"
    weights: str | None = None
    minutes: float | str | None = None
    patience: int | None = None
    min_score: float | None = None
    mixed_precision: bool = False
    workers: int = 2
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("preset", self.preset, PRESETS)
        check_choice("schedule", self.schedule, SCHEDULES)
        check_choice("optimizer", self.optimizer, ("adamw", "sgd"))
        for name in ("epochs", "batch_size", "channels", "tile"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        for name in ("learning_rate", "scale", "minutes"):
            if getattr(self, name) is not None and (name, self.minutes) != ("minutes", "auto"):
                check_number(name, getattr(self, name), minimum=0, exclusive=True)
        if isinstance(self.validation, (int, float)):
            check_number("validation", self.validation, minimum=0, maximum=0.5)
        for name in ("seed", "workers"):
            check_number(name, getattr(self, name), minimum=0, integer=True)

    @classmethod
    def of_preset(cls, data: str, preset: str = "light", **changes: Any) -> ParticleTrainSettings:
        """The settings of a preset with changes, by name."""
        check_choice("preset", preset, PRESETS)
        check_names(changes, [field.name for field in dataclasses.fields(cls)])
        return cls(os.fspath(data), **{"preset": preset, **PRESETS[preset], **changes})


@dataclasses.dataclass(frozen=True)
class TrainedDetector:
    """Outcome of `train_particles`.

    Attributes:
        model_path: the model of the best epoch.
        scores: of the validation images: `ap50`, `ap75`, `ap`, `precision`, `recall`, `f1` at `min_score`.
        history: a row per epoch.
        card: the facts stored in the model.
        problems: what was wrong with the annotations.
    """

    model_path: Path
    scores: dict[str, float]
    history: list[dict[str, float]]
    card: dict[str, Any]
    problems: tuple[notes.Problem, ...]


def train_particles(
    settings: ParticleTrainSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TrainedDetector:
    """Train a Mask R-CNN on annotated particles.

    Args:
        settings: see `ParticleTrainSettings.of_preset`.
        out: folder for `model.keras`, logs, scores and what `resume` needs.
        resume: go on with an interrupted training; it ends where an uninterrupted one does.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress("train", epochs done, epochs, losses)`.

    Raises:
        UserError: nothing to learn from, settings out of range, a folder that holds another training.
        FileError: annotations that cannot be read at all.
    """
    out = Path(out)
    _claim(out, settings, resume=resume, overwrite=overwrite)
    from keras_microseg import backend

    backend.select()

    from keras_microseg.data.boxes import CONTRAST, DetectionTiles
    from keras_microseg.inference.detector_scores import DetectorScores
    from keras_microseg.layers.anchors import anchor_scales
    from keras_microseg.models.mask_rcnn import MaskRCNNSettings, mask_rcnn
    from keras_microseg.models.saving import load_model, save_model

    images, categories, problems = load_data(settings)
    training, held = split_objects(images, settings.validation, settings.seed)
    sizes = np.concatenate([_sizes(one.boxes[one.classes > 0]) for one in training])
    if not len(sizes):
        raise UserError("No object to learn from in the training images. Check the annotations and their image names.")
    side = np.sqrt(sizes.prod(axis=1))
    scale = settings.scale or _fitting_scale(side, settings.tile)
    seeds = np.random.SeedSequence(settings.seed).generate_state(3)
    pixels = sum(one.image.shape[0] * one.image.shape[1] for one in training) * scale**2
    steps = settings.steps_per_epoch or int(
        np.clip(math.ceil(pixels / (settings.tile**2 * settings.batch_size)), 20, 200)
    )
    changes = {"tile_size": settings.tile, "channels": settings.channels, "num_classes": len(categories) + 1}
    base = MaskRCNNSettings.preset(settings.network, **changes)
    changes["anchor_scales"] = anchor_scales(sizes * scale, base.strides)
    options = {"tile": settings.tile, "channels": settings.channels, "scale": scale}
    probe = DetectionTiles(training, 1, 1, int(seeds[0]), anchors=np.zeros((1, 4)), max_instances=1, **options)
    changes["max_instances"] = int(np.ceil(max(16, 1.4 * probe.count_objects(128)) / 8) * 8)
    changes["detections"] = max(base.detections, int(np.ceil(1.5 * changes["max_instances"] / 8) * 8))
    changes["min_score"] = 0.05  # of what the network reports; the threshold for results is chosen afterwards
    changes |= settings.changes

    backend.seed_everything(int(seeds[2]))
    precision = "mixed_bfloat16" if settings.mixed_precision else None
    if settings.weights is None:
        model = mask_rcnn(settings.network, dtype=precision, **changes)
    else:
        earlier, _ = load_model(settings.weights)
        model = mask_rcnn(dataclasses.replace(earlier.settings, **changes), dtype=precision)
        taken = _take_weights(model, earlier)
        logger.info("%d of %d weights come from %s.", taken, len(model.weights), settings.weights)
    train_data = DetectionTiles(
        training, steps, settings.batch_size, int(seeds[0]), anchors=model.anchors,
        max_instances=model.settings.max_instances, rpn_samples=model.settings.rpn_samples,
        mini_mask_size=model.settings.mini_mask_size, **options,
    )  # fmt: skip
    reach = float(np.quantile(sizes.max(axis=1), 0.99)) * scale
    overlap = int(np.clip(math.ceil(reach * 1.1 / 2) * 2, 32, settings.tile * _MAX_OVERLAP))
    card = {
        "kind": "detector",
        "name": f"Mask R-CNN ({settings.network}) trained on {Path(settings.data).name}",
        "contrast": list(CONTRAST),
        "categories": list(categories),
        "overlap": overlap,
        "scale": round(float(scale), 4),
        "diameter": {"typical": round(float(np.median(side)) * scale, 2)},
        "training": {**plain(settings), "images": len(training), "validation_images": len(held),
                     "objects": len(sizes)},
        "made": {**run_facts(), "at": now()},
    }  # fmt: skip
    path = out / "train_settings.json"
    earlier_card = read_json(path).get("card") if resume and path.is_file() else None
    card = {**card, "made": earlier_card["made"]} if earlier_card else card
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {**plain(settings), "card": card, "problems": [str(problem) for problem in problems]})
    scorer = DetectorScores(held, card) if held else None
    minutes = _fitting_minutes(pixels) if settings.minutes == "auto" else settings.minutes
    logger.info(
        "%d images with %d objects to learn from, %d for validation; %s.", len(training), len(sizes), len(held),
        f"at most {minutes:.0f} minutes" if minutes else f"{settings.epochs} epochs",
    )  # fmt: skip
    planned = dataclasses.replace(settings, minutes=minutes)
    history = _train(model, train_data, planned, scorer, card, out, int(seeds[2]), resume, progress)
    stage = "all" if settings.schedule == "heads-then-all" else "train"
    best, _ = load_model(out / stage / "best.keras")
    scores: dict[str, float] = {}
    card["min_score"] = settings.min_score or 0.5
    if scorer is not None:
        scores = scorer.full(best, settings.min_score)
        card["min_score"] = scores["min_score"]
    card["scores"] = scores
    save_model(best, out / MODEL, card)
    finished = {"scores": scores, "sha256": file_hash(out / MODEL), "finished": now()}
    write_json(path, {**plain(settings), "card": card, "problems": [str(p) for p in problems], **finished})
    return TrainedDetector(out / MODEL, scores, history, card, problems)


def _sizes(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 1)


def _fitting_scale(side: np.ndarray, tile: int) -> float:
    """1, unless objects are too small to be found at stride 4 or too large for the tile."""
    typical, large = float(np.median(side)), float(np.quantile(side, 0.95))
    if typical < 14:
        return min(4.0, 20 / typical)
    return 1.0 if large < 0.6 * tile else 0.6 * tile / large


def _fitting_minutes(pixels: float) -> float:
    """A budget that a set of images is worth: few pixels are learned, and then by heart, sooner."""
    return 10 + 25 * min(1.0, pixels / 2e6)


def _take_weights(model: Any, earlier: Any) -> int:
    """Copy weights layer by layer where name and shapes agree; returns how many."""
    known = {layer.name: layer for layer in earlier.weighted_layers()}
    taken = 0
    for layer in model.weighted_layers():
        source = known.get(layer.name)
        if source is not None and [w.shape for w in source.weights] == [w.shape for w in layer.weights]:
            layer.set_weights(source.get_weights())
            taken += len(layer.weights)
    return taken


def _train(
    model: Any,
    data: Any,
    settings: ParticleTrainSettings,
    scorer: Any,
    card: dict[str, Any],
    out: Path,
    seed: int,
    resume: bool,
    progress: Progress | None,
) -> list[dict[str, float]]:
    from keras_microseg.training.detection import train_detector
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import EarlyStopping, OptimizerSettings

    rate, epochs, minutes = settings.learning_rate, settings.epochs, settings.minutes
    stages = [("train", "all", 1.0, 1.0)]
    if settings.schedule == "heads-then-all":
        stages = [("heads", "heads", 1 / 3, 1.0), ("all", "all", 2 / 3, 0.1)]
    history: list[dict[str, float]] = []
    for name, group, share, factor in stages:
        model.set_trainable(group)
        options = {"momentum": 0.9} if settings.optimizer == "sgd" else {}
        planned = max(1, round(epochs * share))
        optimizer = OptimizerSettings(
            settings.optimizer, rate * factor, "cosine", warmup_epochs=min(1.0, planned / 10), clip_norm=5.0,
            options=options,
        )  # fmt: skip
        calls: list[Any] = []
        monitor = "loss" if scorer is None else "ap50"
        if settings.patience is not None:
            calls.append(EarlyStopping(monitor, settings.patience))
        if progress is not None:
            calls.append(EpochProgress(progress, shown=("loss", "ap50")))
        result = train_detector(
            model, data, epochs=planned, out_dir=out / name, optimizer=optimizer,
            scorers=[scorer] if scorer else [], monitor=monitor,
            minutes=None if minutes is None else minutes * share, seed=seed, resume=resume, callbacks=calls,
            checkpoint_steps=50, workers=settings.workers, card=card,
        )  # fmt: skip
        history += result.history
    return history


def _claim(out: Path, settings: ParticleTrainSettings, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with another training, unless asked to go on with it or to replace it."""
    path = out / "train_settings.json"
    if not path.is_file():
        return
    if overwrite and not resume:
        for name in ("train", "heads", "all"):
            shutil.rmtree(out / name, ignore_errors=True)
        for name in (MODEL, "train_settings.json"):
            (out / name).unlink(missing_ok=True)
        return
    refuse_other_training(out, settings, resume=resume, free=("workers",))
