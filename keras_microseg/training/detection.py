"""Training of detectors: the steps of a `MaskRCNN` in the loop that all trainings share, with exact resume.

The model also learns by plain `fit`; this adds what long runs need: checkpoints within epochs, average precision on
whole images after each epoch, averaged weights, a budget in minutes.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number
from keras_microseg.models.mask_rcnn import TRAINING_KEYS, MaskRCNN
from keras_microseg.models.saving import save_model
from keras_microseg.training.checkpoints import seed_generators
from keras_microseg.training.epochs import EpochLoop, claim_folder
from keras_microseg.training.records import hash_model
from keras_microseg.training.schedules import Monitor, OptimizerSettings
from keras_microseg.training.supervised import TrainingResult

logger = logging.getLogger(__name__)

_WHOLE = ("classes", "rpn_match")


class InKeyOrder:
    """A dataset of dictionaries as one of tuples, in the order of `TRAINING_KEYS`."""

    def __init__(self, data: Any):
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        (inputs,) = self.data[index]
        return tuple(inputs[key] for key in TRAINING_KEYS)

    def set_epoch(self, epoch: int) -> None:
        self.data.set_epoch(epoch)


def train_detector(
    model: MaskRCNN,
    train_data: Any,
    *,
    epochs: int,
    out_dir: str | Path,
    optimizer: OptimizerSettings,
    scorers: Sequence[Callable[[keras.Model, int], Mapping[str, float]]] = (),
    monitor: str = "loss",
    average: float | None = 0.99,
    minutes: float | None = None,
    seed: int = 0,
    resume: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_steps: int | None = None,
    workers: int = 1,
    card: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a detector; go on with an interrupted run exactly (same machine, backend and number of threads).

    Args:
        model: in its precision; layers that shall not learn are switched off before (`MaskRCNN.set_trainable`).
        train_data: `data.boxes.DetectionTiles`.
        epochs: number of epochs; with `minutes` the most.
        out_dir: receives `best.keras`, `last.keras`, `log.csv`, `run.json`, `checkpoint.npz`.
        optimizer: optimizer and learning rate.
        scorers: after each epoch, `scorer(model, epoch) -> {name: number}`; the model has its averaged weights then.
        monitor: logged value that chooses the best model.
        average: momentum of the running mean of the weights, which is what is scored and saved; None = none.
        minutes: budget of the training: a few steps are timed first, and as many epochs planned as fit, so that the
            learning rate falls to its end within it. A resumed run keeps the plan.
        seed, resume, callbacks, checkpoint_steps, workers, card: see `supervised.train`.

    Raises:
        UserError: `out_dir` holds another run, or the loss is not finite any more.
    """
    epochs = check_number("epochs", epochs, minimum=1, integer=True)
    steps = len(train_data)
    out_dir = claim_folder(out_dir, resume)
    device = backend.configure_device(deterministic=True)
    backend.set_random_state(seed)
    seed_generators(model.variables, seed)
    data = InKeyOrder(train_data)
    planned = _planned_epochs(out_dir)
    if planned is not None:
        epochs = planned
    elif minutes is not None:
        epochs = _fitting_epochs(model, data, optimizer, epochs, steps, minutes, seed, average)
        out_dir.mkdir(parents=True, exist_ok=True)
        (out_dir / "epochs.txt").write_text(str(epochs))
    run = _Run(model, optimizer, epochs, steps, list(scorers), Monitor(monitor), average, out_dir, card)
    settings = {
        "optimizer": dataclasses.asdict(optimizer),
        "steps_per_epoch": steps,
        "seed": seed,
        "average": average,
        "monitor": monitor,
        "epochs": epochs,
    }
    loop = EpochLoop(
        run,
        epochs=epochs,
        steps=steps,
        out_dir=out_dir,
        settings=settings,
        callbacks=callbacks,
        checkpoint_steps=checkpoint_steps,
    )
    loop.restore()
    facts = {
        "task": "detector training",
        "settings": settings,
        "device": device,
        "model": {"name": model.name, "parameters": model.count_params(), "start": hash_model(model)},
    }
    loop.run(data, seed=seed, workers=workers, model=model, params={"optimizer": run.optimizer}, facts=facts)
    return TrainingResult(
        loop.history,
        run.best_epoch,
        out_dir / "best.keras",
        out_dir / "last.keras",
        loop.stopped_early,
        loop.stop_reason,
    )


def _planned_epochs(out_dir: Path) -> int | None:
    path = out_dir / "epochs.txt"
    return int(path.read_text()) if path.is_file() else None


def _fitting_epochs(
    model: MaskRCNN,
    data: InKeyOrder,
    optimizer: OptimizerSettings,
    epochs: int,
    steps: int,
    minutes: float,
    seed: int,
    average: float | None,
) -> int:
    """As many epochs as fit into the budget, judged by a few steps whose effects are undone."""
    before = [np.array(value) for value in model.get_weights()]
    trial = _Run(model, optimizer, epochs, steps, [], Monitor("loss"), average, Path(), None)
    data.set_epoch(0)
    begin = time.perf_counter()
    trial.step(0, _floats(data[0]))
    trial.end_epoch(0)  # waits for the device
    compiled = time.perf_counter() - begin
    start = time.perf_counter()
    count = min(6, max(2, steps // 2))
    for k in range(count):
        trial.step(k, _floats(data[k % len(data)]))
    trial.end_epoch(0)
    seconds = (time.perf_counter() - start) / count
    model.set_weights(before)
    backend.set_random_state(seed)
    seed_generators(model.variables, seed)
    # 15 % for scores, checkpoints and other work; compilation happens again
    budget = max(minutes * 60 * 0.85 - 2 * compiled, seconds * steps)
    fitting = int(max(1, min(epochs, budget / (seconds * steps))))
    logger.info("One step takes %.3f s: %d epochs of %d steps fit into %.1f minutes.", seconds, fitting, steps, minutes)
    return fitting


def _floats(batch: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(array, np.float32) for array in batch)


class _Run:
    """See `epochs.Training`."""

    def __init__(
        self,
        model: MaskRCNN,
        optimizer: OptimizerSettings,
        epochs: int,
        steps: int,
        scorers: list[Callable],
        best: Monitor,
        average: float | None,
        out_dir: Path,
        card: Mapping[str, Any] | None,
    ):
        self.model, self.settings, self.scorers, self.best = model, optimizer, scorers, best
        self.out_dir, self.card, self.momentum = out_dir, dict(card or {}), average
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.optimizer = optimizer.build(model.trainable_variables, epochs, steps)
        self.averages = []
        if average is not None:
            self.averages = [
                keras.Variable(ops.convert_to_numpy(v), trainable=False, dtype="float32", name=f"average_{k}")
                for k, v in enumerate(model.trainable_variables)
            ]
        self.seen = keras.Variable(0.0, trainable=False, dtype="float32", name="steps_averaged")
        tracked = [*model.variables, *self._metric_variables(), *self.averages, self.seen, *self.optimizer.variables]
        self._compiled = backend.compile_step(self._train, _unique(tracked))

    def variables(self) -> dict[str, list]:
        return {
            "model": _unique(self.model.variables),
            "optimizer": list(self.optimizer.variables),
            "metrics": self._metric_variables(),
            "averages": [*self.averages, self.seen],
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
        for metric in self._metrics():
            metric.reset_state()

    def step(self, number: int, batch: tuple) -> None:
        self._compiled(*batch)

    def end_epoch(self, epoch: int) -> dict[str, float]:
        logs = {metric.name: float(metric.result()) for metric in self._metrics()}
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"The loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate "
                f"({self.settings.learning_rate}), limit gradients (clip_norm), or check the images for NaN."
            )
        return logs

    def score(self, epoch: int) -> dict[str, float]:
        logs: dict[str, float] = {}
        if self.scorers:
            with _Averaged(self):
                for scorer in self.scorers:
                    logs |= {name: float(value) for name, value in scorer(self.model, epoch).items()}
        return logs

    def rates(self) -> dict[str, float]:
        return {"learning_rate": float(self.optimizer.learning_rate)}

    def keep(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self.best.update(epoch, dict(logs)) or not (self.out_dir / "best.keras").exists():
            self._save("best.keras")

    def finish(self) -> dict[str, Any]:
        self._save("last.keras")
        return {"best_epoch": self.best_epoch, "best": self.best.best, "end": hash_model(self.model)}

    @property
    def best_epoch(self) -> int | None:
        return None if self.best.best_epoch is None else self.best.best_epoch + 1

    def _save(self, name: str) -> None:
        with _Averaged(self):
            save_model(self.model, self.out_dir / name, self.card)

    def _metrics(self) -> list[keras.metrics.Metric]:
        return [self.mean_loss, *self.model.loss_means]

    def _metric_variables(self) -> list:
        return [variable for metric in self._metrics() for variable in metric.variables]

    def _train(self, *arrays: Any) -> None:
        inputs = dict(zip(TRAINING_KEYS, arrays, strict=True))
        for key in _WHOLE:
            inputs[key] = ops.cast(inputs[key], "int32")

        def loss_fn() -> tuple[Any, Any]:
            loss = self.model.compute_loss(x=inputs, y_pred=self.model(inputs, training=True))
            return loss, ()

        variables, others = self.model.trainable_variables, self.model.non_trainable_variables
        (loss, _), gradients = backend.value_and_grad(
            loss_fn, variables, state=_unique([*others, *self._metric_variables()])
        )
        backend.apply_gradients(self.optimizer, gradients, variables)
        self.mean_loss.update_state(loss)
        if self.momentum is not None:
            self.seen.assign(self.seen + 1.0)
            # the start weights fade fast: early on this is a mean over all steps so far
            momentum = ops.minimum(self.momentum, 1.0 - 1.0 / (1.0 + self.seen))
            for average, variable in zip(self.averages, variables, strict=True):
                average.assign(momentum * average + (1.0 - momentum) * ops.cast(variable, "float32"))


class _Averaged:
    """Within it, the model has its averaged weights."""

    def __init__(self, run: _Run):
        self.run = run

    def __enter__(self) -> None:
        if self.run.averages:
            variables = self.run.model.trainable_variables
            self.kept = [ops.convert_to_numpy(variable).copy() for variable in variables]
            for variable, average in zip(variables, self.run.averages, strict=True):
                variable.assign(average)

    def __exit__(self, *error: Any) -> None:
        if self.run.averages:
            for variable, value in zip(self.run.model.trainable_variables, self.kept, strict=True):
                variable.assign(value)


def _unique(variables: Sequence) -> list:
    return list({id(variable): variable for variable in variables}.values())
