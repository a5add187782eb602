"""CycleGAN (Zhu et al. 2017, arXiv:1703.10593): translation between micrographs (A) and masks (B) without pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg.checks import UserError, check_number
from keras_microseg.training.phases import ADAM, ImagePool, Phase, Step
from keras_microseg.training.schedules import OptimizerSettings


class CycleGAN:
    """Phases of CycleGAN, for `train_adversarial`. A batch is `(a, b)`: micrographs and masks, (N, H, W, C) in -1..1.

    Adversarial losses are least squares; cycle and identity losses are mean absolute errors. Both generators minimize
    the sum of both directions from one forward pass; then both discriminators judge real images and those of the pools.

    A mask says nothing about grain, substrate and noise, so a function of the mask alone can only draw smooth pictures.
    A `generator_b` with one input channel more than masks have gets Gaussian noise in it: fresh noise where the
    discriminator judges the result, zeros where the result must be equal to a given micrograph (cycle, identity).

    Args:
        generator_a: A -> B, makes masks of micrographs.
        generator_b: B -> A, makes micrographs of masks, or of masks and noise.
        discriminator_a: judges micrographs.
        discriminator_b: judges masks.
        cycle_weight: of the there-and-back errors.
        identity_weights: of the leave-own-domain-alone errors of `generator_a` (on masks) and `generator_b` (on
            micrographs), as fractions of `cycle_weight`; one number for both; 0 leaves the calls out.
        label_smoothing: s; real images shall score 1 - s / 2 and generated ones s / 2.
        pool_size: past images that each discriminator is shown again; 0 = none.
        cross_entropy: compare masks by cross-entropy instead: b and the output of `generator_a` (sigmoid) lie in 0..1.
            Meant for identity weights of 0.
        optimizer: of all four networks.
    """

    def __init__(
        self,
        generator_a: keras.Model,
        generator_b: keras.Model,
        discriminator_a: keras.Model,
        discriminator_b: keras.Model,
        *,
        cycle_weight: float = 10.0,
        identity_weights: float | tuple[float, float] = 0.5,
        label_smoothing: float = 0.0,
        pool_size: int = 50,
        cross_entropy: bool = False,
        optimizer: OptimizerSettings = ADAM,
    ):
        self.networks = {
            "generator_a": generator_a,
            "generator_b": generator_b,
            "discriminator_a": discriminator_a,
            "discriminator_b": discriminator_b,
        }
        self.pools = {"a": ImagePool(pool_size), "b": ImagePool(pool_size)}
        self.cycle_weight = check_number("cycle_weight", cycle_weight, minimum=0)
        pair = identity_weights if isinstance(identity_weights, (tuple, list)) else (identity_weights,) * 2
        self.identity_weights = tuple(check_number("identity_weights", weight, minimum=0) for weight in pair)
        self.label_smoothing = check_number("label_smoothing", label_smoothing, minimum=0, maximum=1)
        self.cross_entropy = bool(cross_entropy)
        self.uses_noise = generator_b.input_shape[-1] == generator_a.output_shape[-1] + 1
        self.optimizer = optimizer

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "cycle_weight": self.cycle_weight,
            "identity_weights": self.identity_weights,
            "label_smoothing": self.label_smoothing,
            "pool_size": self.pools["a"].size,
            "cross_entropy": self.cross_entropy,
            "uses_noise": self.uses_noise,
        }

    def phases(self) -> list[Phase]:
        discriminators = ["discriminator_a", "discriminator_b"]
        return [
            Phase("generators", ["generator_a", "generator_b"], self.generators_loss, 1, self._check, self.optimizer),
            Phase("discriminators", discriminators, self.discriminators_loss, 1, self._pool, self.optimizer),
        ]

    def generators_loss(self, a: Any, b: Any, noise: Any = None) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Sum of the losses of both generators; the outputs are the generated images "fake_a" and "fake_b"."""
        to_b = self.networks["generator_a"]

        def to_a(masks: Any, noise: Any = None) -> Any:
            if self.uses_noise:
                masks = ops.concatenate([masks, ops.zeros_like(masks[..., :1]) if noise is None else noise], axis=-1)
            return self.networks["generator_b"](masks, training=True)

        fake_b, fake_a = to_b(a, training=True), to_a(b, noise)
        wanted = 1 - self.label_smoothing / 2
        logs = {
            "adversarial_a": _squares(wanted, self.networks["discriminator_b"](fake_b, training=True)),
            "adversarial_b": _squares(wanted, self.networks["discriminator_a"](fake_a, training=True)),
            "cycle_a": self._mask_error(b, to_b(fake_a, training=True)),
            "cycle_b": ops.mean(ops.abs(a - to_a(fake_b))),
        }
        totals = [
            logs["adversarial_a"] + self.cycle_weight * logs["cycle_a"],
            logs["adversarial_b"] + self.cycle_weight * logs["cycle_b"],
        ]
        if self.identity_weights[0]:
            logs["identity_a"] = self._mask_error(b, to_b(b, training=True))
            totals[0] = totals[0] + self.cycle_weight * self.identity_weights[0] * logs["identity_a"]
        if self.identity_weights[1]:
            logs["identity_b"] = ops.mean(ops.abs(a - to_a(a)))
            totals[1] = totals[1] + self.cycle_weight * self.identity_weights[1] * logs["identity_b"]
        logs |= {"generator_a_loss": totals[0], "generator_b_loss": totals[1]}
        return totals[0] + totals[1], logs, {"fake_a": fake_a, "fake_b": fake_b}

    def discriminators_loss(self, a: Any, b: Any, fake_a: Any, fake_b: Any) -> tuple[Any, dict[str, Any]]:
        """Sum of the losses of both discriminators on real images and images of the pools."""
        low, logs = self.label_smoothing / 2, {}
        for name, real, fake in (("a", a, fake_a), ("b", b, fake_b)):
            judge = self.networks[f"discriminator_{name}"]
            logs[f"real_{name}"] = _squares(1 - low, judge(real, training=True))
            logs[f"fake_{name}"] = _squares(low, judge(fake, training=True))
            logs[f"discriminator_{name}_loss"] = 0.5 * (logs[f"real_{name}"] + logs[f"fake_{name}"])
        return logs["discriminator_a_loss"] + logs["discriminator_b_loss"], logs

    def samples(self, predict: Callable, a: np.ndarray, b: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of three images (H, W) in -1..1: micrograph, its mask, and back; then mask, its micrograph, and back.

        Args:
            predict: `predict(name of a network, array)`.
            a, b: micrographs and masks as in a batch, all of one size.
        """

        def to_a(masks: np.ndarray, noise: float = 0.0) -> np.ndarray:
            return predict("generator_b", self.with_noise(masks, np.random.default_rng(0), noise))

        fake_b, fake_a = predict("generator_a", a), to_a(b, 1.0)
        cycled_a, cycled_b = to_a(fake_b), predict("generator_a", fake_a)
        if self.cross_entropy:
            b, fake_b, cycled_b = (2 * masks - 1 for masks in (b, fake_b, cycled_b))
        rows = [*zip(a, fake_b, cycled_a, strict=True), *zip(b, fake_a, cycled_b, strict=True)]
        return [[image[..., 0] for image in row] for row in rows]

    def _mask_error(self, b: Any, made: Any) -> Any:
        if self.cross_entropy:
            return ops.mean(ops.binary_crossentropy(b, made))
        return ops.mean(ops.abs(b - made))

    def with_noise(self, masks: np.ndarray, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
        """Input of `generator_b`: the masks, with a channel of Gaussian noise where it has one."""
        return _with_noise(masks, rng, scale) if self.uses_noise else masks

    def _check(self, step: Step) -> tuple[Any, ...]:
        a, b = step.batch
        if self.cross_entropy and isinstance(b, np.ndarray) and (b.min() < 0 or b.max() > 1):
            raise UserError(
                f"With cross_entropy=True masks must lie in 0..1. Received: a batch in {b.min():g}..{b.max():g}"
            )
        return (a, b, step.rng.standard_normal((*b.shape[:-1], 1), np.float32)) if self.uses_noise else (a, b)

    def _pool(self, step: Step) -> tuple[Any, ...]:
        a, b = step.batch
        fakes = [self.pools[name](step.outputs[f"fake_{name}"], step.rng) for name in ("a", "b")]
        return a, b, *fakes


class GuidedStart:
    """Phases that show two generators which way round things are, before a `CycleGAN` trains them.

    Nothing in the losses of a CycleGAN says that particles become white: "black particles on white" is as consistent,
    and a run that takes this turn early never comes back. So each generator first imitates a rough guess: a threshold
    of the micrograph, and the mask painted in two grey values. A batch is `(a, rough b of a, b, rough a of b)`.

    Args:
        generator_a, generator_b: see `CycleGAN`.
        optimizer: of both.
    """

    def __init__(self, generator_a: keras.Model, generator_b: keras.Model, *, optimizer: OptimizerSettings = ADAM):
        self.networks = {"generator_a": generator_a, "generator_b": generator_b}
        self.pools: dict[str, ImagePool] = {}
        self.settings: dict[str, Any] = {}
        self.uses_noise = generator_b.input_shape[-1] == generator_a.output_shape[-1] + 1
        self.optimizer = optimizer

    def phases(self) -> list[Phase]:
        return [
            Phase("masks", ["generator_a"], self.masks_loss, 1, lambda step: step.batch[:2], self.optimizer),
            Phase("micrographs", ["generator_b"], self.micrographs_loss, 1, self._with_noise, self.optimizer),
        ]

    def masks_loss(self, a: Any, rough: Any) -> tuple[Any, dict[str, Any]]:
        """Mean absolute error of the masks."""
        return ops.mean(ops.abs(self.networks["generator_a"](a, training=True) - rough)), {}

    def micrographs_loss(self, b: Any, rough: Any) -> tuple[Any, dict[str, Any]]:
        """Mean absolute error of the micrographs."""
        return ops.mean(ops.abs(self.networks["generator_b"](b, training=True) - rough)), {}

    def samples(self, predict: Callable, a: np.ndarray, b: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of two: micrograph and mask, then mask and micrograph; see `CycleGAN.samples`."""
        made = zip([*a, *b], [*predict("generator_a", a), *predict("generator_b", self._add(b, 0))], strict=True)
        return [[image[..., 0] for image in row] for row in made]

    def _with_noise(self, step: Step) -> tuple[Any, ...]:
        b, rough = step.batch[2:]
        return self._add(b, step.rng), rough

    def _add(self, b: np.ndarray, rng: Any) -> np.ndarray:
        return _with_noise(b, np.random.default_rng(rng)) if self.uses_noise else b


def _with_noise(masks: np.ndarray, rng: np.random.Generator, scale: float = 1.0) -> np.ndarray:
    noise = np.float32(scale) * rng.standard_normal((*masks.shape[:-1], 1), np.float32)
    return np.concatenate([masks, noise], axis=-1)


def _squares(wanted: float, scores: Any) -> Any:
    return ops.mean((scores - wanted) ** 2)
