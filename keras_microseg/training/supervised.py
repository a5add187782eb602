"""Supervised training whose interrupted runs end where uninterrupted ones do.

The loop runs on the backend port rather than on `Model.fit`: `fit` hides the position in the data (each backend draws
batches ahead in its own way) and resets metrics on its own terms, so that a run cannot go on from the middle of an
epoch with the same numbers. Losses, metrics, optimizers and callbacks are those of Keras.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number
from keras_microseg.models.saving import save_model
from keras_microseg.training.batches import batches
from keras_microseg.training.checkpoints import check_same, load_checkpoint, save_checkpoint, seed_generators
from keras_microseg.training.precision import in_bfloat16
from keras_microseg.training.records import EventFile, RunRecord, hash_data, hash_model, write_history
from keras_microseg.training.schedules import EarlyStopping, Monitor, OptimizerSettings, ReduceOnPlateau

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.npz"


@dataclasses.dataclass(frozen=True)
class TrainingResult:
    """What a training gives.

    Attributes:
        history: one row per epoch: "epoch" (from 1), "loss", metrics, "val_..." values, "learning_rate", "seconds".
        best_epoch: number of the epoch (from 1) of `best_path`.
        best_path: model of the best monitored value.
        last_path: model of the last epoch, the state of the trained model object.
        stopped_early: a callback ended the training before its last epoch.
    """

    history: list[dict[str, float]]
    best_epoch: int | None
    best_path: Path
    last_path: Path
    stopped_early: bool


def train(
    model: keras.Model,
    train_data: Any,
    *,
    loss: keras.losses.Loss,
    epochs: int,
    out_dir: str | Path,
    validation_data: Any = None,
    metrics: Sequence[keras.metrics.Metric] = (),
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
        optimizer: optimizer and learning rate.
        steps_per_epoch: batches per epoch; None = the length of `train_data`. Longer passes go on in the next epoch.
        seed: of the order of batches and of dropout: the model's seed generators and, on PyTorch, the global generator.
        resume: go on from `checkpoint.npz`; starts anew when there is none.
        monitor: logged value that chooses the best model; None = "val_loss", or "loss" without validation data.
        monitor_mode: "min", "max", or None to guess from the name.
        patience: epochs without improvement after which to stop; None = never.
        mixed_precision: compute in bfloat16 (for GPUs), with float32 weights, statistics and outputs.
        callbacks: `keras.callbacks.Callback` objects; those with `get_state() -> JSON` and `set_state` are resumed
            exactly. The model is not compiled: the optimizer is `callback.params["optimizer"]`.
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
    out_dir = Path(out_dir)
    checkpoint = out_dir / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise UserError(f"{out_dir} holds a training already. Go on with it (resume=True), or choose another folder.")
    monitor = monitor or ("loss" if validation_data is None else "val_loss")
    if not isinstance(loss, keras.losses.Loss):
        raise UserError(f"`loss` must be a keras.losses.Loss object. Received: loss={loss!r}")

    device = backend.configure_device(deterministic=True)
    network = in_bfloat16(model) if mixed_precision else model
    backend.set_random_state(seed)
    seed_generators(network.variables, seed)
    run = _Run(network, loss, list(metrics), optimizer, epochs, steps)
    best = Monitor(monitor, monitor_mode)
    callbacks = [*_own_callbacks(optimizer, patience, monitor, monitor_mode), *callbacks]
    settings = {
        "optimizer": dataclasses.asdict(optimizer),
        "loss": keras.saving.serialize_keras_object(loss),
        "steps_per_epoch": steps,
        "seed": seed,
        "mixed_precision": mixed_precision,
        "monitor": monitor,
        "patience": patience,
    } | ({"epochs": epochs} if optimizer.schedule == "cosine" else {})
    position = {"epoch": 0, "step": 0, "history": [], "stopped": False, "settings": settings}

    def save() -> None:
        state = position | {
            "best": best.get_state(),
            "callbacks": [c.get_state() if hasattr(c, "get_state") else None for c in callbacks],
        }
        save_checkpoint(checkpoint, run.variables(), state)

    if checkpoint.exists():
        state = load_checkpoint(checkpoint, run.variables())
        check_same(settings, state["settings"], out_dir)
        position |= {key: state[key] for key in ("epoch", "step", "history", "stopped")}
        best.set_state(state["best"])
        for callback, kept in zip(callbacks, state["callbacks"], strict=False):
            if kept is not None:
                callback.set_state(kept)
        logger.info("Going on after epoch %d, step %d (%s).", position["epoch"], position["step"], checkpoint)
    else:
        save()  # the initial weights, so that a run killed early starts from them again

    record = RunRecord(
        out_dir / "run.json",
        {
            "task": "supervised training",
            "settings": settings | {"epochs": epochs, "validation": validation_data is not None},
            "metrics": [metric.name for metric in metrics],
            "device": device,
            "data": {
                "training": hash_data(train_data),
                "validation": None if validation_data is None else hash_data(validation_data),
            },
            "model": {"name": model.name, "parameters": model.count_params(), "start": hash_model(network)},
            "resumed_at": position["epoch"] if resume else None,
        },
    )
    events = EventFile(out_dir / "tensorboard", position["history"]) if tensorboard else None
    params = {"epochs": epochs, "steps": steps, "verbose": 0, "optimizer": run.optimizer}
    calls = keras.callbacks.CallbackList(callbacks, model=network, **params)
    network.stop_training = position["stopped"]
    calls.on_train_begin()
    status = "interrupted"
    try:
        while position["epoch"] < epochs and not network.stop_training:
            epoch, start = position["epoch"], time.perf_counter()
            if position["step"] == 0:
                run.reset()
            calls.on_epoch_begin(epoch)
            first = epoch * steps + position["step"]
            for index, batch in _pairs(train_data, first, (epoch + 1) * steps, seed, workers):
                done = index - epoch * steps + 1
                calls.on_train_batch_begin(done - 1)
                run.train_step(*batch)
                calls.on_train_batch_end(done - 1)
                if checkpoint_steps and done % checkpoint_steps == 0 and done < steps:
                    position["step"] = done
                    save()
            logs, rate = run.results(), float(run.optimizer.learning_rate)
            if not math.isfinite(logs["loss"]):
                raise UserError(
                    f"The loss is {logs['loss']} in epoch {epoch + 1}: lower the learning rate "
                    f"({optimizer.learning_rate}), limit gradients (clip_norm=1), or check the data for NaN."
                )
            if validation_data is not None:
                logs |= {f"val_{name}": value for name, value in run.evaluate(validation_data, workers).items()}
            calls.on_epoch_end(epoch, dict(logs))
            row = {"epoch": epoch + 1, **logs, "learning_rate": rate}
            position["history"].append(row | {"seconds": round(time.perf_counter() - start, 3)})
            if best.update(epoch, logs) or not (out_dir / "best.keras").exists():
                _save(network, model, out_dir / "best.keras", card)
            write_history(out_dir / "log.csv", position["history"])
            if events is not None:
                events.write(row)
            position |= {"epoch": epoch + 1, "step": 0, "stopped": bool(network.stop_training)}
            save()
            logger.info(
                "Epoch %d/%d: %s", epoch + 1, epochs, ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
            )
        calls.on_train_end()
        _save(network, model, out_dir / "last.keras", card)
        status = "finished"
    finally:
        best_epoch = None if best.best_epoch is None else best.best_epoch + 1
        record.update(status=status, epochs_done=position["epoch"], best_epoch=best_epoch, best=best.best)
    record.update(model=record.facts["model"] | {"end": hash_model(model)})
    return TrainingResult(
        position["history"],
        best_epoch,
        out_dir / "best.keras",
        out_dir / "last.keras",
        position["stopped"] and position["epoch"] < epochs,
    )


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


class _Run:
    """The compiled steps of one training and the variables they change."""

    def __init__(self, model, loss, metrics, settings: OptimizerSettings, epochs: int, steps: int):
        self.model, self.loss, self.metrics = model, loss, metrics
        self.mean_loss = keras.metrics.Mean(name="loss")
        self.optimizer = settings.build(model.trainable_variables, epochs, steps)
        tracked = [*model.variables, *self._metric_variables()]
        self.train_step = backend.compile_step(self._train, [*tracked, *self.optimizer.variables])
        self.test_step = backend.compile_step(self._test, tracked, gradients=False)

    def variables(self) -> dict[str, list]:
        return {
            "model": list(self.model.variables),
            "optimizer": list(self.optimizer.variables),
            "metrics": self._metric_variables(),
        }

    def reset(self) -> None:
        for metric in (self.mean_loss, *self.metrics):
            metric.reset_state()

    def evaluate(self, data: Any, workers: int) -> dict[str, float]:
        self.reset()
        for _, batch in _pairs(data, 0, len(data), None, workers):
            self.test_step(*batch)
        return self.results()

    def results(self) -> dict[str, float]:
        return {metric.name: float(metric.result()) for metric in (self.mean_loss, *self.metrics)}

    def _metric_variables(self) -> list:
        return [variable for metric in (self.mean_loss, *self.metrics) for variable in metric.variables]

    def _train(self, x: Any, y: Any, weights: Any = None) -> None:
        def loss_fn() -> tuple[Any, Any]:
            return self._loss(x, y, weights, training=True)

        variables = self.model.trainable_variables
        value, gradients = backend.value_and_grad(loss_fn, variables, state=self.model.non_trainable_variables)
        backend.apply_gradients(self.optimizer, gradients, variables)
        self._count(y, weights, *value)

    def _test(self, x: Any, y: Any, weights: Any = None) -> None:
        self._count(y, weights, *self._loss(x, y, weights, training=False))

    def _loss(self, x: Any, y: Any, weights: Any, training: bool) -> tuple[Any, Any]:
        predicted = self.model(x, training=training)
        return sum(self.model.losses, self.loss(y, predicted, sample_weight=weights)), predicted

    def _count(self, y: Any, weights: Any, loss: Any, predicted: Any) -> None:
        self.mean_loss.update_state(loss, sample_weight=float(y.shape[0]))
        for metric in self.metrics:
            metric.update_state(y, predicted, sample_weight=weights)


def _pairs(data: Any, start: int, stop: int, seed: int | None, workers: int) -> Iterator[tuple[int, tuple]]:
    for number, batch in batches(data, start, stop, seed, workers):
        if len(batch) not in (2, 3):
            raise UserError(f"A batch must be (x, y) or (x, y, weights). Received: {len(batch)} arrays")
        yield number, batch


def _save(network: keras.Model, model: keras.Model, path: Path, card: Mapping[str, Any] | None) -> None:
    """Write `model` with the weights of `network`, its copy in another precision or itself."""
    if network is not model:
        model.set_weights(network.get_weights())
    save_model(model, path, dict(card or {}))
