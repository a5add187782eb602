"""Trains the model that ships with the package: on simulated micrographs alone, so that it carries nobody's licence."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from keras_microseg import io
from keras_microseg.checks import check_number
from keras_microseg.workflows.steps import now, plain, run_facts

NAME = "particles-1"
MODEL = "model.keras"


@dataclasses.dataclass(frozen=True)
class DefaultModelSettings:
    """Settings of the shipped model.

    Attributes:
        epochs: number of epochs; every epoch renders new images.
        steps_per_epoch: batches per epoch.
        batch_size: images per batch.
        size: edge of the square images, px.
        filters: channels per level of the U-Net, finest first.
        outputs: maps the network learns, see `data.targets.instance_maps`.
        diameter: range of the median particle diameter, px.
        contrast: percentiles of an image that become 0 and 1 when the model is used.
        learning_rate: highest learning rate (cosine, one epoch of warm-up).
        mixed_precision: compute in bfloat16 with float32 weights.
        seed: of start weights and images.
    """

    epochs: int = 30
    steps_per_epoch: int = 100
    batch_size: int = 8
    size: int = 256
    filters: tuple[int, ...] = (16, 32, 64, 96, 128, 160)
    outputs: tuple[str, ...] = ("foreground", "boundary", "distance")
    diameter: tuple[float, float] = (9.0, 70.0)
    contrast: tuple[float, float] = (0.1, 99.9)
    learning_rate: float = 1.5e-3
    mixed_precision: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("seed", self.seed, minimum=0, integer=True)


def train_default(out: str | os.PathLike, *, resume: bool = False, **settings: Any) -> Path:
    """Train the default model; goes on exactly after an interruption.

    Args:
        out: folder for `model.keras`, checkpoint, log and preview pictures.
        resume: go on with an interrupted training.
        **settings: fields of `DefaultModelSettings`.

    Returns:
        Path of the model.
    """
    chosen = DefaultModelSettings(**settings)
    out = Path(out)

    from keras_microseg import backend

    backend.select()
    import keras
    import numpy as np

    from keras_microseg.data.datasets import SimulatedMicrographs
    from keras_microseg.layers.heads import MapsActivation
    from keras_microseg.models import unet
    from keras_microseg.training.previews import PreviewPictures

    start_seed, data_seed, validation_seed = (int(n) for n in np.random.SeedSequence(chosen.seed).generate_state(3))
    options = {"size": (chosen.size, chosen.size), "diameter": chosen.diameter, "outputs": chosen.outputs}
    training = SimulatedMicrographs(chosen.steps_per_epoch, chosen.batch_size, data_seed, **options)
    validation = SimulatedMicrographs(
        max(1, chosen.steps_per_epoch // 10), chosen.batch_size, validation_seed, fixed=True, **options
    )
    backend.seed_everything(start_seed % 2**31)
    if any(name.startswith("flow") for name in chosen.outputs):
        network = unet(num_outputs=len(chosen.outputs), filters=chosen.filters, activation=None)
        activation = MapsActivation(chosen.outputs, dtype="float32", name="activation")
        model = keras.Model(network.input, activation(network.output), name=network.name)
    else:
        model = unet(num_outputs=len(chosen.outputs), filters=chosen.filters)
    low, high = chosen.diameter
    card = {
        "name": NAME,
        "description": "U-Net for particles in SEM, TEM and STEM images, trained on simulated micrographs alone.",
        "outputs": list(chosen.outputs),
        "contrast": list(chosen.contrast),
        "diameter": {"typical": 22.0, "minimum": low + 1, "maximum": high - 10},
        "polarity": "both",
        "multiple_of": 2 ** (len(chosen.filters) - 1),
        "halo": 32,
        "decode": {"seed_threshold": 0.6, "boundary_weight": 0.0},
    }
    return train_on_simulation(
        model,
        training,
        validation,
        chosen,
        card,
        out,
        resume=resume,
        callbacks=[PreviewPictures(validation[0], out / "previews", every=5)],
        checkpoint_steps=50,
        workers=2,
    )


def train_on_simulation(
    model: Any,
    training: Any,
    validation: Any,
    settings: Any,
    card: dict[str, Any],
    out: Path,
    *,
    resume: bool,
    callbacks: Sequence[Any] = (),
    checkpoint_steps: int = 25,
    workers: int = 1,
) -> Path:
    """What the trainings of all shipped models share: the loss of instance maps, AdamW with a cosine, the model file.

    Args:
        model: network with random weights.
        training, validation: simulated data.
        settings: with `outputs`, `epochs`, `learning_rate`, `seed` and `mixed_precision`.
        card: what is particular about the model; completed here.
        out: folder of the run.
        resume, callbacks, checkpoint_steps, workers: see `training.supervised.train`.

    Returns:
        Path of the model of the last epoch.
    """
    from keras_microseg.losses import InstanceMapsLoss
    from keras_microseg.training import supervised
    from keras_microseg.training.schedules import OptimizerSettings

    card = {
        **card,
        "training": plain(settings),
        "made": {**run_facts(), "at": now()},
        "licence": "Apache-2.0; no image of anybody was used for training",
    }
    result = supervised.train(
        model,
        training,
        validation_data=validation,
        loss=InstanceMapsLoss(settings.outputs, weights={"distance": 2.0}, boundary_weight=5.0),
        epochs=settings.epochs,
        out_dir=out,
        optimizer=OptimizerSettings(
            learning_rate=settings.learning_rate, warmup_epochs=1, weight_decay=1e-4, clip_norm=1.0
        ),
        seed=settings.seed,
        resume=resume,
        mixed_precision=settings.mixed_precision,
        callbacks=callbacks,
        checkpoint_steps=checkpoint_steps,
        workers=workers,
        card=card,
    )
    with io.atomic_path(out / MODEL) as temporary:
        shutil.copyfile(result.last_path, temporary)
    return out / MODEL
