"""Training a network that makes outlines: settings, the watch over it, and drawing from it."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_microseg import backend
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.data.outlines import OutlineImages
from keras_microseg.measurement.outlines import relative_diversity
from keras_microseg.models import outline_critic, outline_generator
from keras_microseg.models.initialization import draw_kernels
from keras_microseg.models.saving import load_model
from keras_microseg.simulation.outlines import OutlineSet, clean_outlines
from keras_microseg.training.adversarial import AdversarialResult, StopTraining, train_adversarial
from keras_microseg.training.previews import SamplePictures
from keras_microseg.training.schedules import OptimizerSettings
from keras_microseg.training.wgan_gp import WGANGP

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class OutlineSettings:
    """How outlines are learned. The defaults are the values of the source system.

    Attributes:
        epochs: passes over all images (outlines and their mirror images).
        batch_size: images per step.
        size: edge length of the images in training, px; None = that of the outlines.
        filters: channels of the first layer of the critic and of the last of the generator.
        latent_size: length of the noise vectors.
        critic_updates: of each step, before one of the generator.
        penalty_weight, mixing: see `WGANGP`.
        learning_rate: of both networks (Adam, beta 0.5 and 0.9).
        average: momentum of the exponential average of the generator's weights; 0 = its last weights.
        flips, turns: see `OutlineImages`.
        mixed_precision: compute in bfloat16.
        samples: outlines to generate at the end.
        check_every: epochs between the checks; also between sample pictures.
        min_diversity: least diversity of generated outlines over that of the real ones.
        patience: checks in a row below it that end the training as collapsed.
        warm_up: share of the epochs that is not judged.
    """

    epochs: int = 1000
    batch_size: int = 64
    size: int | None = None
    filters: int = 64
    latent_size: int = 128
    critic_updates: int = 3
    penalty_weight: float = 10.0
    mixing: str = "normal"
    learning_rate: float = 2e-4
    average: float = 0.0
    flips: bool = True
    turns: bool = False
    mixed_precision: bool = False
    samples: int = 1000
    check_every: int = 20
    min_diversity: float = 0.3
    patience: int = 3
    warm_up: float = 0.2

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "filters", "latent_size", "critic_updates", "samples", "check_every"):
            check_number(name, getattr(self, name), minimum=1, integer=True)
        check_number("patience", self.patience, minimum=1, integer=True)
        for name in ("average", "min_diversity", "warm_up"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        check_choice("mixing", self.mixing, ("uniform", "normal"))
        if self.size is not None and (check_number("size", self.size, minimum=16, integer=True) % 8):
            raise UserError(f"`size` must be a multiple of 8. Received: size={self.size!r}")


PRESETS: Mapping[str, OutlineSettings] = {
    "paper": OutlineSettings(),
    "fast": OutlineSettings(
        epochs=80, batch_size=32, size=32, filters=16, latent_size=32, mixing="uniform", learning_rate=5e-4,
        average=0.99, turns=True, check_every=10,
    ),
    "gpu": OutlineSettings(epochs=1500, mixing="uniform", average=0.999, turns=True, critic_updates=5, check_every=50),
}  # fmt: skip
"""`paper`: the values of the source system. `fast`: minutes on two CPU cores, at half the resolution. `gpu`: the full
network, averaged weights, more variety."""


def outline_settings(settings: OutlineSettings | str, **changes: Any) -> OutlineSettings:
    """The settings, or the preset of this name, with changes."""
    if isinstance(settings, str):
        settings = PRESETS[check_choice("preset", settings, tuple(PRESETS))]
    return dataclasses.replace(settings, **changes)


class OutlineScores:
    """A scorer: "diversity" of generated outlines, see `relative_diversity`, and the share that is "usable".

    Args:
        data: the training images.
        latent: (N, latent) noise vectors, the same at each check.
        every: epochs between the checks.
    """

    def __init__(self, data: OutlineImages, latent: np.ndarray, *, every: int = 1):
        self.data, self.latent, self.every = data, latent, every
        self._real = data.images[..., 0] > 0

    def __call__(self, predict: Callable[[str, np.ndarray], np.ndarray], epoch: int) -> dict[str, float]:
        if (epoch + 1) % self.every:
            return {}
        pictures = predict("generator", self.latent)
        try:
            usable = len(clean_outlines(pictures, areas=(4, np.inf))) / len(pictures)
        except UserError:
            usable = 0.0
        return {"diversity": relative_diversity(self._real, pictures[..., 0] > 0), "usable": usable}


class StopOnCollapse(keras.callbacks.Callback):
    """Ends the training when generated outlines have looked alike in several checks in a row.

    Args:
        settings: `min_diversity`, `patience` and `warm_up` are used.
    """

    def __init__(self, settings: OutlineSettings):
        super().__init__()
        self.settings = settings
        self._bad = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        settings = self.settings
        if "diversity" not in (logs or {}) or epoch + 1 <= settings.warm_up * settings.epochs:
            return
        self._bad = self._bad + 1 if logs["diversity"] < settings.min_diversity else 0
        if not self._bad:
            return
        problem = (
            f"mode collapse: generated outlines differ from each other {logs['diversity']:.2f} times as much as real "
            f"ones do (limit {settings.min_diversity:g})"
        )
        if self._bad >= settings.patience:
            raise StopTraining(
                f"{problem}. Train with another seed, a lower learning rate or more outlines; the outlines themselves "
                "can be used directly."
            )
        logger.warning("Epoch %d: %s.", epoch + 1, problem)

    def get_state(self) -> dict[str, Any]:
        return {"bad": self._bad}

    def set_state(self, state: dict[str, Any]) -> None:
        self._bad = int(state["bad"])


def train_generator(
    outlines: OutlineSet,
    out_dir: str | Path,
    settings: OutlineSettings | str = "fast",
    *,
    seed: int = 0,
    resume: bool = False,
    callbacks: tuple[keras.callbacks.Callback, ...] = (),
) -> AdversarialResult:
    """Train WGAN-GP on outlines.

    Args:
        outlines: single particles.
        out_dir: folder of the run, see `train_adversarial`; sample pictures go to `pictures/` inside.
        settings: or the name of a preset.
        seed: of start weights, order, noise.
        resume: go on with the run in `out_dir`.
        callbacks: called before the watch over the training.

    Returns:
        The result; `paths["generator"]` opens with `generate_outlines`. `stop_reason` speaks of a collapse.
    """
    settings = outline_settings(settings)
    data = OutlineImages(
        outlines, settings.batch_size, seed, flips=settings.flips, turns=settings.turns, size=settings.size
    )
    generator = draw_kernels(outline_generator(data.size, settings.latent_size, settings.filters), seed)
    critic = draw_kernels(outline_critic(data.size, settings.filters), seed + 1)
    system = WGANGP(
        generator,
        critic,
        repeats=settings.critic_updates,
        penalty_weight=settings.penalty_weight,
        mixing=settings.mixing,
        optimizer=OptimizerSettings(
            "adam", settings.learning_rate, schedule="constant", options={"beta_1": 0.5, "beta_2": 0.9}
        ),
    )
    areas = outlines.masks.sum(axis=(1, 2))
    latent = system.draw_latent(np.random.default_rng([seed, 1]), 64)
    card = {
        "task": "outlines",
        "outlines": {
            "scale": data.scale,
            "size": outlines.size,
            "areas": [float(areas.min()) * 0.5, float(areas.max()) * 1.5],
            "trained_on": len(outlines),
        },
        "settings": dataclasses.asdict(settings),
    }
    watch = (
        SamplePictures([latent[:24]], Path(out_dir) / "pictures", every=settings.check_every),
        StopOnCollapse(settings),
    )
    return train_adversarial(
        system,
        data,
        epochs=settings.epochs,
        out_dir=out_dir,
        seed=seed,
        resume=resume,
        average={"generator": settings.average} if settings.average else None,
        mixed_precision=settings.mixed_precision,
        callbacks=(*callbacks, *watch),
        scorers=(OutlineScores(data, latent, every=settings.check_every),),
        checkpoint_epochs=min(settings.check_every, 10),
        cards={"generator": card, "critic": {"task": "critic of outlines"}},
    )


def generate_outlines(
    generator: keras.Model | str | Path,
    count: int,
    *,
    seed: int = 0,
    facts: Mapping[str, Any] | None = None,
    batch_size: int = 64,
) -> OutlineSet:
    """Draw outlines from a trained generator, cleaned.

    Args:
        generator: model or model file.
        count: pictures to draw; fragments among them are rejected and counted in `problems`.
        seed: of the noise.
        facts: "scale", "size" and "areas" of the outlines learned from; None = as the model file says.
        batch_size: pictures at once.

    Raises:
        UserError: no picture shows a particle, or the model is no generator of outlines.
    """
    check_number("count", count, minimum=1, integer=True)
    if not isinstance(generator, keras.Model):
        generator, card = load_model(generator)
        facts = card.get("outlines") if facts is None else facts
    if len(generator.input_shape) != 2 or generator.output_shape[-1] != 1:
        raise UserError(f"{generator.name} is no generator of outlines: it takes {generator.input_shape}.")
    facts = facts or {}
    latent = np.random.default_rng([seed, 2]).standard_normal((count, generator.input_shape[-1]), dtype=np.float32)
    padded = np.concatenate([latent, np.zeros((-count % batch_size, latent.shape[1]), np.float32)])
    predict = backend.compile_predict(generator)
    pictures = [predict(padded[i : i + batch_size])[..., 0] for i in range(0, len(padded), batch_size)]
    return clean_outlines(
        np.concatenate(pictures)[:count],
        scale=float(facts.get("scale", 1.0)),
        areas=tuple(facts.get("areas", (16, np.inf))),
        size=None,
    )
