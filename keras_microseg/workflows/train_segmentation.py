"""Workflow `train`: images with masks or label images become a model file that `segment` uses."""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.workflows.steps import Progress, file_hash, now, plain, read_json, run_facts, write_json
from keras_microseg.workflows.training_folders import refuse_other_training

ARCHITECTURES = ("unet", "multires_unet")
OUTPUTS = ("foreground", "boundary", "distance")
CONTRAST = (0.1, 99.9)
WORKING_DIAMETER = (8.0, 30.0, 60.0)
"""Smallest, preferred and largest typical particle diameter in px that a network is trained at."""
MODEL = "model.keras"
_FILES = ("model.keras", "best.keras", "last.keras", "checkpoint.npz", "log.csv", "run.json", "train_settings.json")
_MAX_STEPS = 400
_VALIDATION_STEPS = 24


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        data: folder with `images/` and `labels/` (or `masks/`).
        architecture: `"unet"` or `"multires_unet"`.
        filters: width of the finest level.
        epochs: passes over the data.
        batch_size: tiles per step.
        tile: edge of the square tiles, pixels; a multiple of 16.
        learning_rate: largest learning rate (falls to 1 % along a cosine).
        validation: share of the images kept for validation, 0 to 0.5.
        steps_per_epoch: None: as many as cover every pixel about once, 16 to 400.
        patience: stop after so many epochs without improvement; None never stops early.
        mixed_precision: compute in bfloat16.
        seed: of split, order, augmentation and start weights.
    """

    data: str
    architecture: str = "unet"
    filters: int = 16
    epochs: int = 50
    batch_size: int = 8
    tile: int = 256
    learning_rate: float = 1e-3
    validation: float = 0.15
    steps_per_epoch: int | None = None
    patience: int | None = None
    mixed_precision: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("architecture", self.architecture, ARCHITECTURES)
        for name, least in (("filters", 4), ("epochs", 1), ("batch_size", 1), ("tile", 32), ("seed", 0)):
            check_number(name, getattr(self, name), minimum=least, integer=True)
        if self.tile % 16:
            raise UserError(
                f"`tile` must be a multiple of 16. Received: tile={self.tile}. Use {-(-self.tile // 16) * 16}."
            )
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        check_number("validation", self.validation, minimum=0, maximum=0.5)
        for name in ("steps_per_epoch", "patience"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=1, integer=True)


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Outcome of `train`.

    Attributes:
        model_path: the model of the best epoch, ready for `segment(model=...)`.
        scores: losses of that epoch.
        history: one row per epoch.
        card: the facts stored in the model.
    """

    model_path: Path
    scores: dict[str, float]
    history: list[dict[str, float]]
    card: dict[str, Any]


def train(
    data: str | os.PathLike,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> TrainedModel:
    """Train a network on images with known particles.

    Args:
        data: folder with `images/` and `labels/` or `masks/`, paired by file name; masks (one value besides 0) are
            split into their connected parts.
        out: folder for `model.keras`, logs, preview pictures and what `resume` needs.
        resume: go on with an interrupted training; it ends where an uninterrupted one does.
        overwrite: replace an earlier training in `out`.
        progress: called as `progress("train", epochs done, epochs, losses)`.
        **settings: fields of `TrainSettings`, for example `epochs=20`.

    Returns:
        `TrainedModel`.

    Raises:
        UserError: no pair of image and labels, settings out of range, a folder that holds another training.
        FileError: image and labels that do not fit, unwritable folder.

    Example:
        >>> import keras_microseg as km
        >>> model = km.train("DATA", "MODEL", epochs=20)  # doctest: +SKIP
        >>> km.segment("IMAGES", "RESULT", model=model.model_path)  # doctest: +SKIP
    """
    unknown = set(settings) - {field.name for field in dataclasses.fields(TrainSettings)}
    if unknown:
        raise UserError(f"Unknown settings {sorted(unknown)}. See TrainSettings.")
    chosen = TrainSettings(os.fspath(data), **settings)
    out = Path(out)
    _check_folder(out, chosen, resume=resume, overwrite=overwrite)

    from keras_microseg import backend

    backend.select()

    from keras_microseg import losses, models
    from keras_microseg.data.datasets import LabelledImages
    from keras_microseg.io.pairing import pair_files
    from keras_microseg.training import supervised
    from keras_microseg.training.previews import PreviewPictures
    from keras_microseg.training.progress import EpochProgress
    from keras_microseg.training.schedules import OptimizerSettings

    training, held = split_pairs(pair_files(data), chosen.validation, chosen.seed)
    facts = look_at(training)
    if overwrite and not resume:
        for name in _FILES:
            (out / name).unlink(missing_ok=True)
    scale, sizes = working_scale(facts["diameter"])
    options = {"size": (chosen.tile, chosen.tile), "outputs": OUTPUTS, "contrast": CONTRAST, "scale": scale}
    covering = facts["pixels"] * scale**2 / (chosen.tile**2 * chosen.batch_size)
    steps = chosen.steps_per_epoch or int(np.clip(math.ceil(covering), 16, _MAX_STEPS))
    seeds = np.random.SeedSequence(chosen.seed).generate_state(3)
    train_data = LabelledImages(training, steps, chosen.batch_size, int(seeds[0]), **options)
    validation_data = None
    if held:
        count = min(_VALIDATION_STEPS, max(1, steps // 4))
        validation_data = LabelledImages(held, count, chosen.batch_size, int(seeds[1]), fixed=True, **options)

    backend.seed_everything(int(seeds[2]))
    if chosen.architecture == "unet":
        widths = tuple(chosen.filters * 2**level for level in range(5))
        model = models.unet(num_outputs=len(OUTPUTS), filters=widths)
    else:
        model = models.multires_unet(num_outputs=len(OUTPUTS), filters=chosen.filters, activation="sigmoid")
    card = {
        "name": f"{chosen.architecture} trained on {Path(data).name}",
        "outputs": list(OUTPUTS),
        "contrast": list(CONTRAST),
        "diameter": sizes,
        "polarity": facts["polarity"],
        "training": {**plain(chosen), "images": len(training), "validation_images": len(held), "scale": scale},
        "made": {**run_facts(), "at": now()},
    }
    settings_path = out / "train_settings.json"
    earlier = read_json(settings_path).get("card") if resume and settings_path.is_file() else None
    card = {**card, "made": earlier["made"]} if earlier else card
    write_json(settings_path, {**plain(chosen), "card": card})
    result = supervised.train(
        model,
        train_data,
        validation_data=validation_data,
        loss=losses.InstanceMapsLoss(OUTPUTS),
        epochs=chosen.epochs,
        out_dir=out,
        optimizer=OptimizerSettings(learning_rate=chosen.learning_rate, warmup_epochs=min(1.0, chosen.epochs / 10)),
        seed=chosen.seed,
        resume=resume,
        patience=chosen.patience,
        mixed_precision=chosen.mixed_precision,
        callbacks=[
            PreviewPictures((validation_data or train_data)[0], out / "previews", every=max(1, chosen.epochs // 10)),
            *([EpochProgress(progress, shown=("loss", "val_loss"))] if progress else []),
        ],
        checkpoint_steps=50,
        workers=1,
        card=card,
    )
    with io.atomic_path(out / MODEL) as temporary:
        shutil.copyfile(result.best_path, temporary)
    best = result.history[(result.best_epoch or len(result.history)) - 1]
    scores = {key: float(value) for key, value in best.items() if "loss" in key}
    write_json(
        out / "train_settings.json",
        {**plain(chosen), "card": card, "scores": scores, "sha256": file_hash(out / MODEL), "finished": now()},
    )
    return TrainedModel(out / MODEL, scores, result.history, card)


def split_pairs(pairs: list[Any], share: float, seed: int) -> tuple[list[Any], list[Any]]:
    """(training, validation) pairs, drawn by `seed`; at least one of each when there are two and `share` > 0."""
    count = round(len(pairs) * share)
    if share > 0 and len(pairs) > 1:
        count = min(max(1, count), len(pairs) - 1)
    order = np.random.default_rng(seed).permutation(len(pairs))
    held = set(order[:count].tolist())
    return [p for i, p in enumerate(pairs) if i not in held], [p for i, p in enumerate(pairs) if i in held]


def look_at(pairs: list[Any], limit: int = 24) -> dict[str, Any]:
    """Typical particle diameter (px), number of pixels and polarity, from up to `limit` pairs.

    Raises:
        UserError: no particle in any label image.
    """
    from keras_microseg.inference.scale import median_diameter

    chosen = pairs[:: max(1, math.ceil(len(pairs) / limit))]
    diameters, pixels, brighter = [], 0, []
    for pair in chosen:
        labels = np.asarray(io.read_labels(pair.labels).data)
        grey = io.read_grey(io.open_image(pair.image))[: len(labels)]
        if labels.shape != grey.shape:
            raise FileError(pair.labels, f"has {labels.shape} pixels, its image {grey.shape}.", "They must agree.")
        pixels += labels.size
        diameter = median_diameter(labels)
        if diameter is not None:
            diameters.append(diameter)
            if (labels == 0).any():
                brighter.append(np.nanmean(grey[labels > 0]) > np.nanmean(grey[labels == 0]))
    if not diameters:
        raise UserError("No particle in any label image. Check that particles are numbered from 1, background 0.")
    share = float(np.mean(brighter)) if brighter else 0.5
    polarity = "bright" if share > 0.9 else "dark" if share < 0.1 else "both"
    scaled = pixels * len(pairs) / len(chosen)
    return {"diameter": float(np.median(diameters)), "pixels": scaled, "polarity": polarity}


def working_scale(diameter: float) -> tuple[float, dict[str, float]]:
    """Factor that images are enlarged by for training, and the card's `diameter` (px at that scale)."""
    least, preferred, largest = WORKING_DIAMETER
    scale = 1.0 if least <= diameter <= largest else preferred / diameter
    typical = diameter * scale
    sizes = {"typical": typical, "minimum": typical / 2.5, "maximum": typical * 2.5}
    return scale, {key: round(value, 2) for key, value in sizes.items()}


def _check_folder(out: Path, settings: TrainSettings, *, resume: bool, overwrite: bool) -> None:
    """Refuse a folder with another training, unless asked to go on with it or to replace it."""
    path = out / "train_settings.json"
    if not path.is_file() or (overwrite and not resume):
        return
    refuse_other_training(out, settings, resume=resume)
