"""WGAN with gradient penalty (Gulrajani et al. 2017, arXiv:1704.00028): particle outlines from noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import check_choice, check_number
from keras_microseg.training.phases import ImagePool, Phase, Step
from keras_microseg.training.schedules import OptimizerSettings

OPTIMIZER = OptimizerSettings("adam", 2e-4, schedule="constant", options={"beta_1": 0.5, "beta_2": 0.9})


class WGANGP:
    """Phases of WGAN-GP, for `train_adversarial`. A batch is one array of images, (N, H, W, C) in -1..1.

    The critic minimizes E[D(fake)] - E[D(real)] + w E[(|grad D(mixed)| - 1)^2], with the norm over all pixels and
    mixed = real + a (fake - real); the generator minimizes -E[D(fake)].

    Args:
        generator: (N, latent) -> (N, H, W, C).
        critic: (N, H, W, C) -> (N, 1).
        repeats: updates of the critic per step, each with fresh noise on the same real images.
        penalty_weight: w above.
        mixing: a above, one number per image: "uniform" on 0..1 as published, or "normal", N(0, 1), as the system whose
            workflow this follows.
        optimizer: of both networks.
    """

    def __init__(
        self,
        generator: keras.Model,
        critic: keras.Model,
        *,
        repeats: int = 3,
        penalty_weight: float = 10.0,
        mixing: str = "uniform",
        optimizer: OptimizerSettings = OPTIMIZER,
    ):
        self.networks = {"generator": generator, "critic": critic}
        self.pools: dict[str, ImagePool] = {}
        self.repeats = check_number("repeats", repeats, minimum=1, integer=True)
        self.penalty_weight = check_number("penalty_weight", penalty_weight, minimum=0)
        self.mixing = check_choice("mixing", mixing, ("uniform", "normal"))
        self.optimizer = optimizer
        self.latent_size = generator.input_shape[-1]

    @property
    def settings(self) -> dict[str, Any]:
        return {"penalty_weight": self.penalty_weight, "mixing": self.mixing}

    def phases(self) -> list[Phase]:
        return [
            Phase("critic", ["critic"], self.critic_loss, self.repeats, self._with_noise, self.optimizer),
            Phase("generator", ["generator"], self.generator_loss, 1, self._noise, self.optimizer),
        ]

    def critic_loss(self, real: Any, latent: Any, mix: Any) -> tuple[Any, dict[str, Any]]:
        """Wasserstein loss and penalty of `real` (N, H, W, C), `latent` (N, latent), `mix` (N, 1, 1, 1)."""
        generator, critic = self.networks["generator"], self.networks["critic"]
        fake = ops.stop_gradient(generator(latent, training=True))
        slope = backend.input_gradient(lambda x: critic(x, training=True), real + mix * (fake - real))
        slope = ops.cast(slope, "float32")
        norm = ops.sqrt(ops.sum(slope**2, axis=(1, 2, 3)) + 1e-12)
        penalty = ops.mean((norm - 1) ** 2)
        wasserstein = ops.mean(critic(fake, training=True)) - ops.mean(critic(real, training=True))
        logs = {"wasserstein": wasserstein, "penalty": penalty, "gradient_norm": ops.mean(norm)}
        return wasserstein + self.penalty_weight * penalty, logs

    def generator_loss(self, latent: Any) -> tuple[Any, dict[str, Any]]:
        fake = self.networks["generator"](latent, training=True)
        return -ops.mean(self.networks["critic"](fake, training=True)), {}

    def samples(self, predict: Callable, latent: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of generated images (H, W) in -1..1, as nearly square as the number of latent vectors allows.

        Args:
            predict: `predict(name of a network, array)`.
            latent: (n, latent).
        """
        images = predict("generator", latent)[..., 0]
        side = max(n for n in range(1, math.isqrt(len(images)) + 1) if len(images) % n == 0)
        return [list(row) for row in images.reshape(side, -1, *images.shape[1:])]

    def draw_latent(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """(count, latent) float32 from N(0, 1)."""
        return rng.standard_normal((count, self.latent_size), dtype=np.float32)

    def _with_noise(self, step: Step) -> tuple[np.ndarray, ...]:
        (real,) = step.batch
        shape = (len(real), *(1,) * (real.ndim - 1))
        mix = step.rng.random(shape) if self.mixing == "uniform" else step.rng.standard_normal(shape)
        return real, self.draw_latent(step.rng, len(real)), mix.astype(np.float32)

    def _noise(self, step: Step) -> tuple[np.ndarray, ...]:
        return (self.draw_latent(step.rng, len(step.batch[0])),)
