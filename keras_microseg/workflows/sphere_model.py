"""Trains the volume model that ships with the package: on simulated sphere phantoms alone."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from keras_microseg.checks import check_number
from keras_microseg.workflows.default_model import train_on_simulation

NAME = "spheres3d-1"
HALO = 24
"""Voxels read around every window: half of the overlap of windows, which is half of the receptive field of 96."""


@dataclasses.dataclass(frozen=True)
class SphereModelSettings:
    """Settings of the shipped volume model.

    Attributes:
        epochs: number of epochs; every epoch renders new phantoms.
        steps_per_epoch: batches per epoch.
        batch_size: phantoms per batch.
        size: edge of the cubic phantoms, voxels.
        outputs: maps the network learns, see `data.targets.instance_maps`.
        diameter: range of the mean sphere diameter, voxels.
        fraction: range of the volume fraction of the spheres.
        normalization: percentiles of a volume that become 0 and 1 when the model is used.
        learning_rate: highest learning rate (cosine, one epoch of warm-up).
        mixed_precision: compute in bfloat16 with float32 weights and outputs.
        seed: of start weights and phantoms.
    """

    epochs: int = 32
    steps_per_epoch: int = 50
    batch_size: int = 2
    size: int = 48
    outputs: tuple[str, ...] = ("foreground", "boundary", "distance")
    diameter: tuple[float, float] = (9.0, 26.0)
    fraction: tuple[float, float] = (0.0, 0.45)
    normalization: tuple[float, float] = (0.1, 99.9)
    learning_rate: float = 2e-3
    mixed_precision: bool = True
    seed: int = 1

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("seed", self.seed, minimum=0, integer=True)


def train_spheres(out: str | os.PathLike, *, resume: bool = False, **settings: Any) -> Path:
    """Train the default model for volumes; goes on exactly after an interruption.

    Args:
        out: folder for `model.keras`, checkpoint and log.
        resume: go on with an interrupted training.
        **settings: fields of `SphereModelSettings`.

    Returns:
        Path of the model.
    """
    chosen = SphereModelSettings(**settings)
    out = Path(out)

    from keras_microseg import backend

    backend.select()
    import numpy as np

    from keras_microseg.data.volumes import SimulatedPhantoms
    from keras_microseg.models.unet3d import PRESETS, total_stride, unet3d

    start_seed, data_seed, validation_seed = (int(n) for n in np.random.SeedSequence(chosen.seed).generate_state(3))
    options = {
        "size": chosen.size,
        "diameter": chosen.diameter,
        "fraction": chosen.fraction,
        "outputs": chosen.outputs,
    }
    training = SimulatedPhantoms(chosen.steps_per_epoch, chosen.batch_size, data_seed, **options)
    validation = SimulatedPhantoms(
        max(1, chosen.steps_per_epoch // 10), chosen.batch_size, validation_seed, fixed=True, **options
    )
    backend.seed_everything(start_seed % 2**31)
    model = unet3d("default", num_outputs=len(chosen.outputs), name="spheres3d")
    low, high = chosen.diameter
    lower, upper = chosen.normalization
    card = {
        "name": NAME,
        "description": "3D U-Net for spheres in X-ray tomography volumes, trained on simulated phantoms alone.",
        "ndim": 3,
        "outputs": list(chosen.outputs),
        "normalization": {"mode": "percentile", "lower": lower, "upper": upper},
        "diameter": {"typical": 16.0, "minimum": low, "maximum": high},
        "multiple_of": list(total_stride(PRESETS["default"]["pools"])),
        "halo": [HALO] * 3,
        "decode": {"threshold": 0.4, "seed_threshold": 0.6, "boundary_weight": 0.0},
    }
    return train_on_simulation(model, training, validation, chosen, card, out, resume=resume)
