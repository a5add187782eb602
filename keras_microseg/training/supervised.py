"""Supervised training whose interrupted runs end where uninterrupted ones do.

The loop runs on the backend port rather than on `Model.fit`: `fit` hides the position in the data (each backend draws
batches ahead in its own way) and resets metrics on its own terms, so that a run cannot go on from the middle of an
epoch with the same numbers. Losses, metrics, optimizers and callbacks are those of Keras.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_microseg import backend
from keras_microseg.backend import parallel
from keras_microseg.checks import UserError, check_number
from keras_microseg.training.batches import batches
from keras_microseg.training.checkpoints import seed_generators
from keras_microseg.training.epochs import CHECKPOINT, EpochLoop, claim_folder
from keras_microseg.training.precision import in_bfloat16
from keras_microseg.training.records import hash_data, hash_model
from keras_microseg.training.schedules import EarlyStopping, Monitor, OptimizerSettings, ReduceOnPlateau
from keras_microseg.training.single_network import SingleNetwork, TrainingResult

__all__ = ["CHECKPOINT", "TrainingResult", "train"]


def train(
    model: keras.Model,
    train_data: Any,
    *,
    loss: keras.losses.Loss,
    epochs: int,
    out_dir: str | Path,
    validation_data: Any = None,
    metrics: Sequence[keras.metrics.Metric] = (),
    scorers: Sequence[Callable[[keras.Model, int], Mapping[str, float]]] = (),
    optimizer: OptimizerSettings = OptimizerSettings(),  # noqa: B008  (frozen)
    steps_per_epoch: int | None = None,
    seed: int = 0,
    resume: bool = False,
    monitor: str | None = None,
    monitor_mode: str | None = None,
    patience: int | None = None,
    mixed_precision: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_steps: int | None = None,
    tensorboard: bool = False,
    workers: int = 1,
    card: Mapping[str, Any] | None = None,
) -> TrainingResult:
    """Train a model; go on with an interrupted run exactly (same machine, backend and number of threads).

    Written to `out_dir`: `best.keras`, `last.keras`, `log.csv`, `run.json`, `checkpoint.npz` (everything that resuming
    needs: weights, optimizer, seed generators, metrics, position, callbacks), `tensorboard/` on demand.

    Data order is a pure function of (seed, epoch, step) as far as the dataset's is: when it has `set_epoch(epoch)`, its
    batch is asked for by `data[step]` after `set_epoch`, possibly from another thread and ahead of time; otherwise all
    epochs use the same batches, in an order drawn from (seed, epoch). `on_epoch_end` of a dataset is never called.

    Args:
        model: built functional model; it is trained in place and ends with the weights of the last epoch.
        train_data: `keras.utils.PyDataset`, or anything with a length and `data[i]` giving (x, y) or (x, y, weights)
            NumPy batches of one fixed shape.
        loss: `keras.losses.Loss` object.
        epochs: number of epochs in all, resumed ones included.
        out_dir: folder of the run.
        validation_data: like `train_data`; evaluated after each epoch, always the same batches.
        metrics: `keras.metrics.Metric` objects, logged as NAME and val_NAME.
        scorers: after each epoch, before the callbacks: `scorer(model, epoch) -> {name: number}`, epochs from 0. The
            numbers join the logs and `log.csv`, and may be monitored.
        optimizer: optimizer and learning rate.
        steps_per_epoch: batches per epoch; None = the length of `train_data`. Longer passes go on in the next epoch.
        seed: of the order of batches and of dropout: the model's seed generators and, on PyTorch, the global generator.
        resume: go on from `checkpoint.npz`; starts anew when there is none.
        monitor: logged value that chooses the best model; None = "val_loss", or "loss" without validation data.
        monitor_mode: "min", "max", or None to guess from the name.
        patience: epochs without improvement after which to stop; None = never.
        mixed_precision: compute in bfloat16 (for GPUs), with float32 weights, statistics and outputs.
        callbacks: `keras.callbacks.Callback` objects; those with `get_state() -> JSON` and `set_state` are resumed
            exactly. The model is not compiled: the optimizer is `callback.params["optimizer"]`. A callback ends the
            training by raising `epochs.StopTraining(reason)`, or after the epoch by `model.stop_training = True`.
        checkpoint_steps: also write the checkpoint each so many steps within an epoch.
        tensorboard: write scalars for TensorBoard.
        workers: threads that prepare batches ahead; the results do not depend on it. 0 = none.
        card: facts stored in the model files, see `models.saving.save_model`.

    Raises:
        UserError: `out_dir` holds another run, settings differ from those of the run to resume, or the loss is not
            finite any more.
        FileError: unwritable folder, damaged checkpoint.
    """
    epochs = check_number("epochs", epochs, minimum=1, integer=True)
    steps = len(train_data) if steps_per_epoch is None else steps_per_epoch
    steps = check_number("steps_per_epoch", steps, minimum=1, integer=True)
    out_dir = claim_folder(out_dir, resume)
    monitor = monitor or ("loss" if validation_data is None else "val_loss")
    if not isinstance(loss, keras.losses.Loss):
        raise UserError(f"`loss` must be a keras.losses.Loss object. Received: loss={loss!r}")

    device = backend.configure_device(deterministic=True)
    network = in_bfloat16(model) if mixed_precision else model
    backend.set_random_state(seed)
    seed_generators(network.variables, seed)
    run = _Run(
        network,
        model,
        loss,
        optimizer,
        Monitor(monitor, monitor_mode),
        validation_data,
        workers=workers,
        metrics=metrics,
        scorers=scorers,
        epochs=epochs,
        steps=steps,
        out_dir=out_dir,
        card=card,
    )
    settings = {
        "optimizer": dataclasses.asdict(optimizer),
        "loss": keras.saving.serialize_keras_object(loss),
        "steps_per_epoch": steps,
        "seed": seed,
        "mixed_precision": mixed_precision,
        "monitor": monitor,
        "patience": patience,
    } | ({"epochs": epochs} if optimizer.schedule in ("cosine", "linear") and optimizer.restart_epochs is None else {})
    loop = EpochLoop(
        run,
        epochs=epochs,
        steps=steps,
        out_dir=out_dir,
        settings=settings,
        callbacks=[*_own_callbacks(optimizer, patience, monitor, monitor_mode), *callbacks],
        checkpoint_steps=checkpoint_steps,
    )
    loop.restore()
    facts = {
        "task": "supervised training",
        "settings": settings | {"epochs": epochs, "validation": validation_data is not None},
        "metrics": [metric.name for metric in metrics],
        "device": device,
        "data": {
            "training": hash_data(train_data),
            "validation": None if validation_data is None else hash_data(validation_data),
        },
        "model": {"name": model.name, "parameters": model.count_params(), "start": hash_model(network)},
    }
    params = {"optimizer": run.optimizer}
    loop.run(
        train_data,
        seed=seed,
        workers=workers,
        model=network,
        params=params,
        facts=facts,
        tensorboard=tensorboard,
    )
    return run.result_of(loop)


def _own_callbacks(
    optimizer: OptimizerSettings, patience: int | None, monitor: str, mode: str | None
) -> list[keras.callbacks.Callback]:
    """Those that the settings ask for."""
    callbacks: list[keras.callbacks.Callback] = []
    if optimizer.schedule == "plateau":
        minimum = optimizer.learning_rate * optimizer.final_factor
        callbacks.append(ReduceOnPlateau(monitor, optimizer.factor, optimizer.plateau_patience, minimum, mode))
    if patience is not None:
        callbacks.append(EarlyStopping(monitor, patience, mode))
    return callbacks


class _Run(SingleNetwork):
    """The compiled steps of a network that learns from (x, y) or (x, y, weights)."""

    def __init__(
        self,
        model: keras.Model,
        original: keras.Model,
        loss: keras.losses.Loss,
        optimizer: OptimizerSettings,
        best: Monitor,
        validation_data: Any,
        *,
        workers: int,
        **common: Any,
    ):
        super().__init__(model, optimizer, best, **common)
        self.original, self.loss, self.validation_data, self.workers = original, loss, validation_data, workers
        self._forward = backend.make_forward(model)
        tracked = [*model.variables, *self.metric_variables()]
        self._compiled_step = backend.compile_step(self._train, [*tracked, *self.optimizer.variables])
        self._compiled_test = backend.compile_step(self._test, tracked, gradients=False)

    def step(self, number: int, batch: tuple) -> None:
        self._compiled_step(*_check_pair(batch))

    def score(self, epoch: int) -> dict[str, float]:
        logs: dict[str, float] = {}
        if self.validation_data is not None:
            self.begin_epoch()
            for _, batch in batches(self.validation_data, 0, len(self.validation_data), None, self.workers):
                self._compiled_test(*_check_pair(batch))
            logs = {f"val_{name}": value for name, value in self.results().items()}
        return logs | super().score(epoch)

    @property
    def saved_model(self) -> keras.Model:
        """The original, with the weights of the model: its copy in another precision, or itself."""
        if self.model is not self.original:
            self.original.set_weights(self.model.get_weights())
        return self.original

    def _train(self, x: Any, y: Any, weights: Any = None) -> None:
        def loss_fn(x: Any, y: Any, weights: Any) -> tuple[Any, Any]:
            return self._loss(x, y, weights, training=True)

        variables, others = self.model.trainable_variables, self.model.non_trainable_variables
        value, gradients = parallel.value_and_grad(loss_fn, (x, y, weights), variables, state=others)
        backend.apply_gradients(self.optimizer, gradients, variables)
        self._count(y, weights, *value)

    def _test(self, x: Any, y: Any, weights: Any = None) -> None:
        self._count(y, weights, *self._loss(x, y, weights, training=False))

    def _loss(self, x: Any, y: Any, weights: Any, training: bool) -> tuple[Any, Any]:
        predicted = self._forward(x, training=training)
        return sum(self.model.losses, self.loss(y, predicted, sample_weight=weights)), predicted

    def _count(self, y: Any, weights: Any, loss: Any, predicted: Any) -> None:
        self.mean_loss.update_state(loss, sample_weight=float(y.shape[0]))
        for metric in self.metrics[1:]:
            metric.update_state(y, predicted, sample_weight=weights)


def _check_pair(batch: tuple) -> tuple:
    if len(batch) not in (2, 3):
        raise UserError(f"A batch must be (x, y) or (x, y, weights). Received: {len(batch)} arrays")
    return batch
