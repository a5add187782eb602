"""Workflow `mineral translate-train`: pix2pix between micrographs and class maps.

train      a generator and a discriminator learn from the training tiles
evaluate   tiles that were held out, and no others: confusion matrix of class maps, likeness of micrographs
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.data.map_tiles import TEST, TRAIN, VALIDATION
from keras_microseg.intensity import Normalizer
from keras_microseg.io.palettes import Palette, write_palette
from keras_microseg.workflows import mineral_train
from keras_microseg.workflows.mineral_translate_scores import HeldOut
from keras_microseg.workflows.mineral_translate_settings import PRESETS, TranslateSettings, preset
from keras_microseg.workflows.steps import (
    Progress,
    RunFolder,
    Step,
    plain,
    read_json,
    run_facts,
    run_steps,
    write_json,
)
from keras_microseg.workflows.training_folders import epoch_progress

__all__ = ["PRESETS", "TranslateSettings", "build", "preset", "read_parts", "train"]

MODEL, SCORES, CONFUSION, PALETTE, TRAINING = (
    "generator.keras", "scores.json", "confusion.csv", "classes.csv", "training",
)  # fmt: skip
TASK = "mineral translation"
MODEL, SCORES, CONFUSION, PALETTE, TRAINING = (
    "generator.keras", "scores.json", "confusion.csv", "classes.csv", "training",
)  # fmt: skip


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


def read_parts(settings: TranslateSettings) -> tuple[dict[str, list[Any]], Any, dict[str, Any]]:
    """Images by part, their `ClassTable`, and the rule of grey values."""
    from keras_microseg.data import map_pairs

    pairs, table = map_pairs.open_pairs(
        settings.data, palette=settings.palette, groups=settings.groups, names=settings.classes, split=settings.split,
        validation=settings.validation, hold=settings.hold, guard=settings.guard, seed=settings.seed,
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
        (None, None, given + made), maps, settings.filters, normalization=settings.normalization,
        spectral=settings.spectral,
    )  # fmt: skip
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
    parts, table, rule = read_parts(settings)
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
        callbacks=[SamplePictures(shown, out / "previews"), *epoch_progress(folder, "train")],
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
    parts, table, rule = read_parts(settings)
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


def _normalizers(rule: dict[str, Any], images: Sequence[Any]) -> list[Normalizer]:
    return mineral_train.normalize(mineral_train.TrainSettings(".", normalization="fixed"), images, rule)[1]
