"""pix2pix (Isola et al. 2017, arXiv:1611.07004): micrographs to class maps and back, learned from pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.losses import DiceCrossentropy
from keras_microseg.training.phases import ADAM, Phase, Step
from keras_microseg.training.schedules import OptimizerSettings

DIRECTIONS = ("labels", "images")
ADVERSARIAL = ("least-squares", "hinge", "categorical")
CONTENT = ("l1", "dice-crossentropy", "crossentropy")


class Pix2Pix:
    """Phases of pix2pix, for `train_adversarial`. A batch is `(x, y)` of `data.map_crops.MapCrops`.

    x (N, H, W, C) are micrographs in 0..1; y (N, H, W, K + 1) one-hot classes and a weight, 0 where the class is not
    known. Unknown pixels are hidden from the content loss, and shown to the discriminator as zeros on both sides.

    With direction "labels" the generator makes classes of micrographs, with "images" micrographs of classes. First the
    generator learns, from `adversarial + content_weight x content`; then the discriminator judges the true pair and
    the pair that the generator has just made, by the mean of both losses. The source instead updates it twice, with
    images made by moving statistics that the generator was never trained with.

    Args:
        generator: input -> result. For "images" its input is one-hot (K channels), or the class number (1 channel), as
            the source has it.
        discriminator: result and input, joined -> scores.
        direction: "labels" or "images".
        num_classes: K.
        adversarial: "least-squares" (targets 1 and 0); "hinge"; "categorical", the source's: cross-entropy of an
            all-ones target against linear scores per class that are divided by their sum. Nothing adversarial can be
            learned from it (its optimum is the same for real and made images); it is here to repeat published runs.
        content: "dice-crossentropy" or "crossentropy" (probabilities of classes), or "l1" (mean absolute error).
        content_weight: its factor.
        signed: micrographs as *results* lie in -1..1 (tanh); False leaves them in 0..1, as the source does.
        optimizer: of both networks.
    """

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        *,
        direction: str = "labels",
        num_classes: int = 5,
        adversarial: str = "least-squares",
        content: str = "dice-crossentropy",
        content_weight: float = 100.0,
        signed: bool = True,
        optimizer: OptimizerSettings = ADAM,
    ):
        self.direction = check_choice("direction", direction, DIRECTIONS)
        self.num_classes = check_number("num_classes", num_classes, minimum=2, integer=True)
        self.adversarial = check_choice("adversarial", adversarial, ADVERSARIAL)
        self.content = check_choice("content", content, CONTENT)
        self.content_weight = check_number("content_weight", content_weight, minimum=0)
        self.signed = bool(signed)
        self.networks = {"generator": generator, "discriminator": discriminator}
        self.pools: dict[str, Any] = {}
        self.optimizer = optimizer
        channels = generator.input_shape[-1]
        if direction == "images" and channels not in (1, num_classes):
            raise UserError(
                f"A generator of micrographs takes one-hot classes ({num_classes} channels) or class numbers "
                f"(1 channel). Received: {channels} channels"
            )
        if direction == "images" and content != "l1":
            raise UserError(f"Micrographs are compared by content='l1'. Received: content={content!r}")
        if direction == "labels" and generator.output_shape[-1] != num_classes:
            raise UserError(f"The generator makes {generator.output_shape[-1]} classes, not {num_classes}.")
        joined = channels + generator.output_shape[-1]
        if discriminator.input_shape[-1] != joined:
            raise UserError(
                f"The discriminator sees the result and its input, {joined} channels. Received: "
                f"{discriminator.input_shape[-1]}"
            )
        self._dice_crossentropy = DiceCrossentropy(exclusive=True, dice_weight=float(content == "dice-crossentropy"))

    @property
    def settings(self) -> dict[str, Any]:
        names = ("direction", "num_classes", "adversarial", "content", "content_weight", "signed")
        return {name: getattr(self, name) for name in names}

    def phases(self) -> list[Phase]:
        return [
            Phase("generator", ["generator"], self.generator_loss, optimizer=self.optimizer),
            Phase("discriminator", ["discriminator"], self.discriminator_loss, 1, self._with_made, self.optimizer),
        ]

    def generator_loss(self, x: Any, y: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Loss of the generator; its output is "made"."""
        given, wanted, weight = self._arrange(x, y)
        made = self.networks["generator"](given, training=True)
        scores = self.networks["discriminator"](ops.concatenate([made * weight, given], axis=-1), training=True)
        logs = {"adversarial": self._fooled(scores), "content": self._content_loss(y, wanted, made, weight)}
        return logs["adversarial"] + self.content_weight * logs["content"], logs, {"made": made}

    def discriminator_loss(self, x: Any, y: Any, made: Any) -> tuple[Any, dict[str, Any]]:
        """Loss of the discriminator on true pairs ("real") and on those of the generator ("fake")."""
        given, wanted, weight = self._arrange(x, y)
        judge = self.networks["discriminator"]
        real = judge(ops.concatenate([wanted * weight, given], axis=-1), training=True)
        fake = judge(ops.concatenate([made * weight, given], axis=-1), training=True)
        logs = {"real": self._judged(real, True), "fake": self._judged(fake, False)}
        return 0.5 * (logs["real"] + logs["fake"]), logs

    def samples(self, predict: Callable, x: np.ndarray, y: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of three panels (H, W) in -1..1: input, truth, result; classes as steps of grey."""
        steps = max(self.num_classes - 1, 1)
        classes = 2 * y[..., : self.num_classes].argmax(axis=-1) / steps - 1
        made = predict("generator", self.prepare(x, y))
        if self.direction == "labels":
            found = 2 * made.argmax(axis=-1) / steps - 1
            return [list(row) for row in zip(2 * x[..., 0] - 1, classes, found, strict=True)]
        made = made[..., 0] if self.signed else 2 * made[..., 0] - 1
        return [list(row) for row in zip(classes, 2 * x[..., 0] - 1, made, strict=True)]

    def prepare(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Input of the generator, from arrays of a batch."""
        if self.direction == "labels":
            return x
        classes = y[..., : self.num_classes]
        if self.networks["generator"].input_shape[-1] == 1 < self.num_classes:
            return classes.argmax(axis=-1)[..., np.newaxis].astype(np.float32)
        return classes

    def _arrange(self, x: Any, y: Any) -> tuple[Any, Any, Any]:
        """(input, wanted result, weight of pixels)."""
        classes, weight = y[..., : self.num_classes], y[..., self.num_classes :]
        if self.direction == "labels":
            return x, classes, weight
        if self.networks["generator"].input_shape[-1] == 1 < self.num_classes:
            classes = ops.cast(ops.expand_dims(ops.argmax(classes, axis=-1), axis=-1), x.dtype)
        return classes, (2 * x - 1 if self.signed else x), weight

    def _content_loss(self, y: Any, wanted: Any, made: Any, weight: Any) -> Any:
        if self.content == "l1":
            return ops.sum(weight * ops.mean(ops.abs(wanted - made), axis=-1, keepdims=True)) / ops.maximum(
                ops.sum(weight), 1.0
            )
        return self._dice_crossentropy(y, made)

    def _fooled(self, scores: Any) -> Any:
        return -ops.mean(scores) if self.adversarial == "hinge" else self._judged(scores, True)

    def _judged(self, scores: Any, real: bool) -> Any:
        if self.adversarial == "least-squares":
            return ops.mean((scores - float(real)) ** 2)
        if self.adversarial == "hinge":
            return ops.mean(ops.relu(1 - scores if real else 1 + scores))
        if not real:
            return 0.0 * ops.mean(scores)  # no target, no loss
        shares = scores / ops.sum(scores, axis=-1, keepdims=True)
        return -ops.mean(ops.sum(ops.log(ops.clip(shares, 1e-7, 1 - 1e-7)), axis=-1))

    def _with_made(self, step: Step) -> tuple[Any, ...]:
        return *step.batch, step.outputs["made"]
