"""Training of detectors: the steps of a `MaskRCNN` in the loop that all trainings share, with exact resume.

The model also learns by plain `fit`; this adds what long runs need: checkpoints within epochs, average precision on
whole images after each epoch, averaged weights, a budget in minutes.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import check_number
from keras_microseg.models.mask_rcnn import TRAINING_KEYS, MaskRCNN
from keras_microseg.training.checkpoints import seed_generators
from keras_microseg.training.epochs import EpochLoop, claim_folder
from keras_microseg.training.records import hash_model
from keras_microseg.training.schedules import Monitor, OptimizerSettings
from keras_microseg.training.single_network import SingleNetwork, TrainingResult, unique

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
    run = _Run(model, optimizer, Monitor(monitor), average=average, scorers=scorers, epochs=epochs, steps=steps,
               out_dir=out_dir, card=card)  # fmt: skip
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
    return run.result_of(loop)


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
    trial = _Run(model, optimizer, Monitor("loss"), average=average, epochs=epochs, steps=steps, out_dir=Path(),
                 card=None)  # fmt: skip
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


class _Run(SingleNetwork):
    """The compiled steps of a detector; scores and files are those of its averaged weights."""

    model: MaskRCNN

    def __init__(
        self, model: MaskRCNN, optimizer: OptimizerSettings, best: Monitor, *, average: float | None, **common: Any
    ):
        super().__init__(model, optimizer, best, metrics=model.loss_means, **common)
        self.momentum, self.averages = average, []
        if average is not None:
            self.averages = [
                keras.Variable(ops.convert_to_numpy(v), trainable=False, dtype="float32", name=f"average_{k}")
                for k, v in enumerate(model.trainable_variables)
            ]
        self.seen = keras.Variable(0.0, trainable=False, dtype="float32", name="steps_averaged")
        tracked = [*model.variables, *self.metric_variables(), *self.averages, self.seen, *self.optimizer.variables]
        self._compiled = backend.compile_step(self._train, unique(tracked))

    def variables(self) -> dict[str, list]:
        return super().variables() | {"averages": [*self.averages, self.seen]}

    def step(self, number: int, batch: tuple) -> None:
        self._compiled(*batch)

    def score(self, epoch: int) -> dict[str, float]:
        with _Averaged(self):
            return super().score(epoch)

    def save(self, name: str) -> None:
        with _Averaged(self):
            super().save(name)

    def _train(self, *arrays: Any) -> None:
        inputs = dict(zip(TRAINING_KEYS, arrays, strict=True))
        for key in _WHOLE:
            inputs[key] = ops.cast(inputs[key], "int32")

        def loss_fn() -> tuple[Any, Any]:
            loss = self.model.compute_loss(x=inputs, y_pred=self.model(inputs, training=True))
            return loss, ()

        variables, others = self.model.trainable_variables, self.model.non_trainable_variables
        (loss, _), gradients = backend.value_and_grad(
            loss_fn, variables, state=unique([*others, *self.metric_variables()])
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
