"""Trainings of one network with one optimizer share this: logs of its metrics, its best model, files, result."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_microseg.checks import UserError
from keras_microseg.models.saving import save_model
from keras_microseg.training.epochs import EpochLoop
from keras_microseg.training.records import hash_model
from keras_microseg.training.schedules import Monitor, OptimizerSettings

BEST, LAST = "best.keras", "last.keras"


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training gives.

    Attributes:
        history: one row per epoch: "epoch" (from 1), "loss", metrics, "val_..." values, "learning_rate", "seconds".
        best_epoch: number of the epoch (from 1) of `best_path`.
        best_path: model of the best monitored value.
        last_path: model of the last epoch, the state of the trained model object.
        stopped_early: a callback ended the training before its last epoch.
        stop_reason: what it gave as the reason, see `epochs.StopTraining`.
    """

    history: list[dict[str, float]]
    best_epoch: int | None
    best_path: Path
    last_path: Path
    stopped_early: bool
    stop_reason: str | None = None


class SingleNetwork:
    """All of `epochs.Training` but the step, for one network; a subclass says what a step is (`step`).

    It may have more variables, compute in another model than the one it saves (`saved_model`), or score and save under
    other weights.

    Args:
        model: that learns.
        optimizer: built for its trainable variables.
        best: chooses the model to keep.
        metrics: logged beside the mean loss, `mean_loss`.
        scorers: `scorer(model, epoch) -> {name: number}` after each epoch.
        epochs, steps: of the schedule of the learning rate.
        out_dir: gets `best.keras` and `last.keras`.
        card: facts stored in them.
    """

    def __init__(
        self,
        model: keras.Model,
        optimizer: OptimizerSettings,
        best: Monitor,
        *,
        metrics: Sequence[keras.metrics.Metric] = (),
        scorers: Sequence[Callable[[keras.Model, int], Mapping[str, float]]] = (),
        epochs: int,
        steps: int,
        out_dir: Path,
        card: Mapping[str, Any] | None,
    ):
        self.model, self.settings, self.best = model, optimizer, best
        self.scorers, self.out_dir, self.card = list(scorers), out_dir, dict(card or {})
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.metrics = [self.mean_loss, *metrics]
        self.optimizer = optimizer.build(model.trainable_variables, epochs, steps)

    def metric_variables(self) -> list:
        return [variable for metric in self.metrics for variable in metric.variables]

    def variables(self) -> dict[str, list]:
        return {
            "model": unique(self.model.variables),
            "optimizer": list(self.optimizer.variables),
            "metrics": self.metric_variables(),
        }

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.best.set_state(state["best"])

    def get_arrays(self) -> dict[str, Any]:
        return {}

    def set_arrays(self, arrays: Mapping[str, Any]) -> None:
        """There are none."""

    def begin_epoch(self) -> None:
        for metric in self.metrics:
            metric.reset_state()

    def end_epoch(self, epoch: int) -> dict[str, float]:
        logs = self.results()
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"The loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate "
                f"({self.settings.learning_rate}), limit gradients (clip_norm=1), or check the data for NaN."
            )
        return logs

    def results(self) -> dict[str, float]:
        """Values of the metrics."""
        return {metric.name: float(metric.result()) for metric in self.metrics}

    def score(self, epoch: int) -> dict[str, float]:
        logs: dict[str, float] = {}
        for scorer in self.scorers:
            logs |= {name: float(value) for name, value in scorer(self.model, epoch).items()}
        return logs

    def rates(self) -> dict[str, float]:
        return {"learning_rate": float(self.optimizer.learning_rate)}

    def keep(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self.best.update(epoch, dict(logs)) or not (self.out_dir / BEST).exists():
            self.save(BEST)

    def finish(self) -> dict[str, Any]:
        self.save(LAST)
        return {"best_epoch": self.best_epoch, "best": self.best.best, "end": hash_model(self.saved_model)}

    @property
    def best_epoch(self) -> int | None:
        return None if self.best.best_epoch is None else self.best.best_epoch + 1

    @property
    def saved_model(self) -> keras.Model:
        return self.model

    def save(self, name: str) -> None:
        """Write the model as a file of `out_dir`."""
        save_model(self.saved_model, self.out_dir / name, self.card)

    def result_of(self, loop: EpochLoop) -> TrainingResult:
        """What the training gave, after `loop` has run it."""
        return TrainingResult(
            loop.history, self.best_epoch, self.out_dir / BEST, self.out_dir / LAST, loop.stopped_early,
            loop.stop_reason,
        )  # fmt: skip


def unique(variables: Sequence) -> list:
    """Each variable once, in order."""
    return list({id(variable): variable for variable in variables}.values())
