"""What a run will do, how long it will take here and how much memory it needs: the dry run."""

from __future__ import annotations

import dataclasses
import math
import time
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.workflows.sem_particles.settings import Settings

_BACKWARD = 3.0  # a training step costs about three predictions


@dataclasses.dataclass(frozen=True)
class PlannedStep:
    """One step of the plan.

    Attributes:
        name: of the step.
        work: what it does, in words.
        seconds: estimate.
        memory: peak memory beside the program itself, GB, estimate.
    """

    name: str
    work: str
    seconds: float
    memory: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A dry run.

    Attributes:
        images: number of image files.
        steps: in order.
        speed: measured multiply-adds per second of a convolution on this machine and backend, training precision.
    """

    images: int
    steps: tuple[PlannedStep, ...]
    speed: float

    @property
    def seconds(self) -> float:
        return sum(step.seconds for step in self.steps)

    def rows(self) -> list[tuple[str, str, str, str]]:
        """(step, what it does, time, memory) as text, with a last row for the whole."""
        rows = [(s.name, s.work, format_duration(s.seconds), f"{s.memory:.1f} GB") for s in self.steps]
        return [*rows, ("all", f"{self.images} images", format_duration(self.seconds), "")]


def format_duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def make_plan(settings: Settings) -> Plan:
    """Estimate every step from the sizes of the networks and a short measurement of this machine.

    Nothing is written. The estimate is good to a factor of about two; the progress bar knows better after a minute.
    """
    from keras_microseg.training.outlines import outline_settings
    from keras_microseg.workflows.sem_particles.masks import check_outlines
    from keras_microseg.workflows.sem_particles.network import start_network
    from keras_microseg.workflows.sem_particles.translation import build_system

    images = io.find_images(list(settings.images))
    check_outlines(settings)
    shapes = [io.open_image(path).spatial_shape[-2:] for path in images[:20]]
    pixels = float(np.mean([math.prod(shape) for shape in shapes])) * len(images)
    speed = measure_speed()
    steps = [PlannedStep("look", f"a first segmentation of {len(images)} images", 2 + 4e-6 * pixels, 0.5)]

    if settings.particles == "wgan":
        chosen = outline_settings(settings.outline_preset)
        epochs = settings.outline_epochs or chosen.epochs
        batch = settings.outline_batch_size or chosen.batch_size
        size = chosen.size or 64
        passes = 160 / batch * epochs * batch * (chosen.critic_updates * 3 + 2)
        cost = 2 * (size / 64) ** 2 * (chosen.filters / 64) ** 2 * 45e6
        steps.append(PlannedStep("outlines", f"WGAN-GP, {epochs} epochs", passes * cost * _BACKWARD / speed + 10, 0.5))
    else:
        steps.append(PlannedStep("outlines", f"{settings.particles} particles, no training", 1, 0.1))

    size = math.prod(settings.masks.size)
    steps.append(PlannedStep("masks", f"{settings.num_masks} masks", settings.num_masks * size / 147456 / 15, 0.2))

    chosen = settings.translation
    system = build_system(chosen, 0)
    costs = {name: multiply_adds(network, chosen.tile) for name, network in system.networks.items()}
    generators = costs["generator_a"] + costs["generator_b"]
    judges = costs["discriminator_a"] + costs["discriminator_b"]
    passes = 2 + sum(weight > 0 for weight in chosen.identity_weights) / 2
    per_sample = _BACKWARD * (passes * generators + judges) + _BACKWARD * 2 * judges
    count = chosen.epochs * chosen.steps_per_epoch * chosen.batch_size
    memory = 4e-9 * chosen.batch_size * 3 * sum(activations(n, chosen.tile) for n in system.networks.values())
    work = f"CycleGAN, {chosen.epochs} epochs of {chosen.steps_per_epoch} steps of {chosen.batch_size} tiles"
    steps.append(PlannedStep("translate", work, count * per_sample / speed, memory))
    one = multiply_adds(system.networks["generator_b"], max(settings.masks.size))
    checking = 1.0 if settings.pairs.check == "network" else 0.2
    steps.append(
        PlannedStep(
            "pairs", f"{settings.pairs.count} micrographs", settings.pairs.count * (one / speed + checking), 0.5
        )
    )

    network, _ = start_network(settings, {"diameter": 25.0, "polarity": "bright"})
    chosen = settings.network
    cost = multiply_adds(network, chosen.tile)
    count = chosen.epochs * chosen.steps_per_epoch * chosen.batch_size
    memory = 4e-9 * 3 * chosen.batch_size * activations(network, chosen.tile)
    work = f"{network.name}, {chosen.epochs} epochs of {chosen.steps_per_epoch} steps of {chosen.batch_size} tiles"
    steps.append(PlannedStep("train", work, count * cost * _BACKWARD / speed, memory))
    steps.append(PlannedStep("segment", f"{len(images)} images", 2 + 6e-6 * pixels, 0.7))
    steps.append(PlannedStep("report", "pages and tables", 10, 0.3))
    return Plan(len(images), tuple(steps), speed)


def measure_speed(seconds: float = 1.0) -> float:
    """Multiply-adds per second of a trained convolution (64 channels) here, measured."""
    import keras

    from keras_microseg import backend
    from keras_microseg.layers import Conv2D

    inputs = keras.Input((None, None, 64))
    x = inputs
    for _ in range(4):
        x = Conv2D(64, 3, padding="same", activation="relu")(x)
    model = keras.Model(inputs, x)
    predict = backend.compile_predict(model)
    batch = np.zeros((1, 96, 96, 64), np.float32)
    predict(batch)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        predict(batch)
        count += 1
    return count * multiply_adds(model, 96) / (time.perf_counter() - start)


def multiply_adds(model: Any, size: int) -> float:
    """Multiply-adds of one prediction of a (size, size) image, convolutions and dense layers."""
    return sum(
        math.prod(layer.kernel.shape) * math.prod(n or 1 for n in shape[1:-1])
        for layer, shape in _shapes(model, size)
        if hasattr(layer, "kernel")
    )


def activations(model: Any, size: int) -> float:
    """Numbers that all feature maps of one image hold."""
    return sum(math.prod(n or 1 for n in shape[1:]) for _, shape in _shapes(model, size))


def _shapes(model: Any, size: int) -> list[tuple[Any, tuple[int, ...]]]:
    """Layers and the shapes of their outputs for an image of this size."""
    import keras

    fixed = keras.Input((size, size, model.input_shape[-1]), batch_size=1)
    copy = keras.models.clone_model(model, input_tensors=fixed)
    return [
        (layer, tuple(layer.output.shape)) for layer in copy.layers if not isinstance(layer, keras.layers.InputLayer)
    ]
