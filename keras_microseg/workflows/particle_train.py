"""Workflow `particles train`: annotated images become a Mask R-CNN that `particles detect` and `segment` use."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.io import annotations as notes
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json
from keras_microseg.workflows.training_folders import refuse_other_training

logger = logging.getLogger(__name__)

MODEL = "model.keras"
PRESETS = {
    "light": {"network": "light", "tile": 256, "batch_size": 4, "learning_rate": 1e-3, "minutes": 35.0},
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
        preset: "light" (a CPU, 35 minutes), "default" (ResNet-50), "gpu" (the same in bfloat16).
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
        minutes: budget; None = none.
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
    minutes: float | None = None
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
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=0, exclusive=True)
        if isinstance(self.validation, (int, float)):
            check_number("validation", self.validation, minimum=0, maximum=0.5)
        for name in ("seed", "workers"):
            check_number(name, getattr(self, name), minimum=0, integer=True)

    @classmethod
    def of_preset(cls, data: str, preset: str = "light", **changes: Any) -> ParticleTrainSettings:
        """The settings of a preset with changes, by name."""
        check_choice("preset", preset, PRESETS)
        unknown = sorted(set(changes) - {field.name for field in dataclasses.fields(cls)})
        if unknown:
            raise UserError(f"Unknown settings: {', '.join(unknown)}. See ParticleTrainSettings.")
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
    import keras

    from keras_microseg.data.boxes import CONTRAST, DetectionTiles
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

    keras.utils.set_random_seed(int(seeds[2]))
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
    scorer = _Scorer(held, card, scale) if held else None
    history = _train(model, train_data, settings, scorer, card, out, int(seeds[2]), resume, progress)
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


def load_data(settings: ParticleTrainSettings) -> tuple[list[Any], tuple[str, ...], tuple[notes.Problem, ...]]:
    """Images with objects, names of the classes, problems of the annotations.

    Raises:
        UserError: no annotation is found, or none that has an image.
    """
    from keras_microseg.data.boxes import load_objects, object_image_from_labels, read_channels
    from keras_microseg.io.pairing import pair_files

    folder, source = Path(settings.data), settings.annotations
    images = folder / "images" if (folder / "images").is_dir() else folder
    if source is None:
        has_labels = any((folder / name).is_dir() for name in ("labels", "masks"))
        if has_labels and images != folder and not settings.use_categories:
            loaded = []
            for pair in pair_files(folder):
                pixels = read_channels(io.open_image(pair.image), settings.channels)
                labels = np.asarray(io.read_labels(pair.labels).data)
                rows = min(len(pixels), len(labels))
                if labels.shape[1] != pixels.shape[1] or rows < 0.8 * len(pixels):
                    raise FileError(
                        pair.labels, f"has {labels.shape} pixels, its image {pixels.shape[:2]}.", "They must agree."
                    )
                loaded.append(object_image_from_labels(pair.image.name, pixels[:rows], labels[:rows]))
            return loaded, ("particle",), ()
        source = _find_annotations(folder, images)
    found = notes.read_annotations(source, images=images, drop_absent=True)
    problems = tuple(notes.check_annotations(found, categories=settings.categories or None))
    usable = notes.drop_unusable(found)
    files = {path.name: path for path in io.find_images(images)}
    files |= {path.stem: path for path in files.values()}
    names = settings.categories or (usable.categories if settings.use_categories else ())
    loaded = load_objects(usable, files, channels=settings.channels, categories=names)
    if not loaded:
        raise UserError(f"{source}: none of its images lies in {images}. Name the folder of the images as `data`.")
    for problem in problems:
        logger.log(logging.WARNING if problem.is_error else logging.INFO, "%s", problem)
    return loaded, tuple(names) or ("particle",), problems


def _find_annotations(folder: Path, images: Path) -> Path:
    found = sorted({*folder.glob("*.json"), *images.glob("*.json"), *(folder / "annotations").glob("*.json")})
    if len(found) == 1:
        return found[0]
    if len(found) > 1 and all(notes.guess_format(path) == "labelme" for path in found):
        return found[0].parent
    listed = f" Found: {', '.join(path.name for path in found[:5])}." if found else ""
    raise UserError(
        f"{folder}: needs images/ and labels/, or one annotation file (VIA or COCO .json).{listed} Name it with "
        "--annotations FILE."
    )


def split_objects(images: list[Any], validation: float | Sequence[str], seed: int) -> tuple[list[Any], list[Any]]:
    """(training, validation) images.

    Raises:
        UserError: a name that is no image, or nothing left to train on.
    """
    if not isinstance(validation, (int, float)):
        wanted = {Path(name).stem for name in validation}
        held = [one for one in images if Path(one.name).stem in wanted]
        missing = wanted - {Path(one.name).stem for one in held}
        if missing or len(held) == len(images):
            raise UserError(
                f"`validation` names {sorted(missing) or 'every image'}: "
                f"use some of {[one.name for one in images][:6]}."
            )
        return [one for one in images if one not in held], held
    if not validation:
        return images, []
    if len(images) == 1:
        return _halves(images[0], float(validation))
    names = [f"{k}" for k in range(len(images))]
    places = {name: notes.place_of(one.name).source for name, one in zip(names, images, strict=True)}
    group = places.get if len(set(places.values())) > 1 else None
    shares = {"train": 1 - validation, "validation": validation}
    parts = notes.split_images(names, shares, seed=seed, group=group)
    return [images[int(k)] for k in parts["train"]], [images[int(k)] for k in parts["validation"]]


def _halves(one: Any, share: float) -> tuple[list[Any], list[Any]]:
    """One image cut along its longer side, with a gap as wide as the largest object."""
    boxes = one.boxes[one.classes > 0]
    axis = int(np.argmax(one.image.shape[:2]))
    gap = int((boxes[:, 2 + axis] - boxes[:, axis]).max()) if len(boxes) else 0
    windows = notes.cut_blocks(
        one.image.shape[:2], {"train": 1 - share, "validation": share}, axis=axis, guard=min(gap, 64)
    )
    return tuple([_cut(one, windows[part])] for part in ("train", "validation"))


def _cut(one: Any, window: tuple[slice, ...]) -> Any:
    layers = one.layers[window]
    counts = sum(np.bincount(layer.ravel(), minlength=len(one.classes) + 1) for layer in np.moveaxis(layers, -1, 0))
    kept = np.flatnonzero(counts[1:] > 0) + 1
    numbers = np.zeros(len(one.classes) + 1, np.int32)
    numbers[kept] = np.arange(1, len(kept) + 1)
    return dataclasses.replace(
        one, image=one.image[window], layers=numbers[layers], classes=one.classes[kept - 1], areas=counts[kept]
    )


def _sizes(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2:] - boxes[:, :2], 1)


def _fitting_scale(side: np.ndarray, tile: int) -> float:
    """1, unless objects are too small to be found at stride 4 or too large for the tile."""
    typical, large = float(np.median(side)), float(np.quantile(side, 0.95))
    if typical < 14:
        return min(4.0, 20 / typical)
    return 1.0 if large < 0.6 * tile else 0.6 * tile / large


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
    import keras

    from keras_microseg.training.detection import train_detector
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
            calls.append(_reporter(keras, progress, planned))
        result = train_detector(
            model, data, epochs=planned, out_dir=out / name, optimizer=optimizer,
            scorers=[scorer] if scorer else [], monitor=monitor,
            minutes=None if minutes is None else minutes * share, seed=seed, resume=resume, callbacks=calls,
            checkpoint_steps=50, workers=settings.workers, card=card,
        )  # fmt: skip
        history += result.history
    return history


class _Scorer:
    """Average precision on whole validation images, on at most `limit` pixels after each epoch."""

    def __init__(self, images: list[Any], card: dict[str, Any], scale: float, limit: float = 1.2e6):
        self.images, self.card, self.scale = images, card, scale
        self.quick, total = [], 0.0
        for one in images:
            window = tuple(slice(0, max(1, int(n * min(1.0, math.sqrt(limit / one.image.size))))) for n in
                           one.image.shape[:2])  # fmt: skip
            self.quick.append(_cut(one, window))
            total += self.quick[-1].image.size
            if total >= limit:
                break
        self._predictor: Any = None

    def __call__(self, model: Any, epoch: int) -> dict[str, float]:
        from keras_microseg.metrics.detection import average_precision

        if self._predictor is None or self._predictor.model is not model:
            from keras_microseg.inference.instances import InstancePredictor

            self._predictor = InstancePredictor(model, self.card)
        return {"ap50": average_precision(self._score(self._predictor, self.quick)).ap50}

    def full(self, model: Any, min_score: float | None) -> dict[str, float]:
        """All scores on all validation images, and the threshold with the best F1."""
        from keras_microseg.inference.instances import InstancePredictor
        from keras_microseg.metrics.detection import average_precision, match_scored

        scored = self._score(InstancePredictor(model, self.card, large_tiles=True), self.images)
        precision = average_precision(scored)
        total = sum(one.iou.shape[1] for one in scored)
        best = (-1.0, 0.5, 0.0, 0.0)
        for threshold in [min_score] if min_score else np.round(np.arange(0.1, 0.96, 0.05), 2):
            hits = found = 0
            for one in scored:
                keep = one.scores >= threshold
                part = one._replace(scores=one.scores[keep], iou=one.iou[keep], ignored=one.ignored[keep])
                partner = match_scored(part, 0.5)
                hits += int((partner >= 0).sum())
                found += int(((partner >= 0) | (part.ignored <= 0.5)).sum())
            f1 = 2 * hits / max(found + total, 1)
            if f1 > best[0]:
                best = (f1, float(threshold), hits / max(found, 1), hits / max(total, 1))
        return {
            "ap": precision.ap, "ap50": precision.ap50, "ap75": precision.ap75, "f1": best[0], "precision": best[2],
            "recall": best[3], "min_score": best[1], "objects": total,
        }  # fmt: skip

    def _score(self, predictor: Any, images: list[Any]) -> list[Any]:
        from keras_microseg.metrics.detection import scored_masks

        scored = []
        for one in images:
            found = predictor(one.image, min_score=0.05, scale=self.scale, stretched=True)
            ignore = np.isin(one.layers, np.flatnonzero(one.classes < 0) + 1).any(axis=-1)
            truth = one.label_image()
            if found.shape != truth.shape:  # the masks are at the model's scale
                rows, columns = (
                    np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1)
                    for n, m in zip(found.shape, truth.shape, strict=True)
                )
                truth, ignore = truth[np.ix_(rows, columns)], ignore[np.ix_(rows, columns)]
            masks = [(piece.top, piece.left, piece.mask) for piece in found.found]
            scored.append(scored_masks(truth, masks, [piece.score for piece in found.found], ignore=ignore))
        return scored


def _reporter(keras: Any, progress: Progress, epochs: int) -> Any:
    class Reporter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            shown = {key: value for key, value in (logs or {}).items() if key in ("loss", "ap50")}
            progress("train", epoch + 1, epochs, ", ".join(f"{key} {value:.4f}" for key, value in shown.items()))

    return Reporter()


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
