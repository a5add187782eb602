"""Optimizer settings, learning-rate schedules, and callbacks that act on a monitored value."""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from typing import Any

import keras

from keras_microseg.checks import check_choice, check_number

logger = logging.getLogger(__name__)

SCHEDULES = ("constant", "cosine", "linear", "steps", "plateau", "exponential")


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """The optimizer and its learning rate over time.

    Attributes:
        name: a Keras optimizer ("adamw", "adam", "sgd", ...).
        learning_rate: the highest learning rate.
        schedule: "constant"; "cosine", down to `final_factor` at the last step; "linear", constant
            until `decay_start`, then straight down to `final_factor` at the end; "steps", times `factor` after each of
            `decay_epochs`; "plateau", times `factor` when the monitored value has not improved for `plateau_patience`
            epochs, down to `final_factor`; "exponential", constant for `decay_start` epochs (their number),
            then times exp(-0.1) each epoch, down to `final_factor`.
        warmup_epochs: linear rise from 0, for "cosine"; a fraction of an epoch is allowed.
        restart_epochs: length of the first cosine; each later one is `restart_growth` times as long and starts at the
            full rate (Loshchilov & Hutter 2017, arXiv:1608.03983). None = one cosine over all epochs.
        restart_growth: see `restart_epochs`.
        final_factor: lowest learning rate / `learning_rate`.
        decay_start: fraction of the epochs after which "linear" falls, rounded down to whole epochs.
        factor: see `schedule`.
        decay_epochs: see `schedule`.
        plateau_patience: see `schedule`.
        by_epoch: "linear" falls from epoch to epoch instead of from step to step.
        weight_decay: decoupled, for every weight but vectors (biases, normalization); None = the optimizer's default.
        decay_all: decay vectors too, as PyTorch does.
        clip_norm: largest norm of all gradients together; None = no limit.
        options: further arguments of the optimizer, such as {"beta_2": 0.99}.
    """

    name: str = "adamw"
    learning_rate: float = 1e-3
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    final_factor: float = 0.01
    factor: float = 0.5
    decay_epochs: tuple[float, ...] = ()
    plateau_patience: int = 5
    weight_decay: float | None = None
    clip_norm: float | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    decay_start: float = 0.5
    by_epoch: bool = False
    decay_all: bool = False
    restart_epochs: float | None = None
    restart_growth: float = 1.0

    def __post_init__(self) -> None:
        check_choice("schedule", self.schedule, SCHEDULES)
        check_number("learning_rate", self.learning_rate, minimum=0, exclusive=True)
        check_number("warmup_epochs", self.warmup_epochs, minimum=0)
        check_number("final_factor", self.final_factor, minimum=0, maximum=1)
        check_number("decay_start", self.decay_start, minimum=0, maximum=None if self.schedule == "exponential" else 1)
        check_number("restart_growth", self.restart_growth, minimum=1)
        if self.restart_epochs is not None:
            check_number("restart_epochs", self.restart_epochs, minimum=0, exclusive=True)
        check_number("factor", self.factor, minimum=0, maximum=1, exclusive=True)
        check_number("plateau_patience", self.plateau_patience, minimum=1, integer=True)

    def rate(self, epochs: int, steps_per_epoch: int) -> Any:
        """The learning rate as Keras takes it: a number, or a schedule over optimizer steps."""
        schedules, total = keras.optimizers.schedules, epochs * steps_per_epoch
        if self.schedule == "cosine":
            warmup = min(round(self.warmup_epochs * steps_per_epoch), total - 1)
            if self.restart_epochs is not None:
                length = max(round(self.restart_epochs * steps_per_epoch), 1)
                return CosineRestarts(self.learning_rate, length, self.final_factor, self.restart_growth, warmup)
            rise = {"warmup_target": self.learning_rate, "warmup_steps": warmup} if warmup else {}
            start = 0.0 if warmup else self.learning_rate
            return schedules.CosineDecay(start, max(total - warmup, 1), alpha=self.final_factor, **rise)
        if self.schedule == "linear":
            start = int(self.decay_start * epochs) * steps_per_epoch
            every = steps_per_epoch if self.by_epoch else 1
            return LinearDecay(self.learning_rate, start, total, self.final_factor, every)
        if self.schedule == "steps" and self.decay_epochs:
            boundaries = [round(epoch * steps_per_epoch) for epoch in self.decay_epochs]
            values = [self.learning_rate * self.factor**i for i in range(len(boundaries) + 1)]
            return schedules.PiecewiseConstantDecay(boundaries, values)
        if self.schedule == "exponential":
            start = round(self.decay_start * steps_per_epoch)
            return ExponentialDecayFrom(self.learning_rate, start, steps_per_epoch, self.final_factor)
        return self.learning_rate

    def build(self, variables: list, epochs: int, steps_per_epoch: int) -> keras.optimizers.Optimizer:
        """The optimizer, built for `variables`."""
        config = dict(self.options)
        config["learning_rate"] = self.rate(epochs, steps_per_epoch)
        for key, value in (("weight_decay", self.weight_decay), ("global_clipnorm", self.clip_norm)):
            if value is not None:
                config[key] = value
        cls = keras.optimizers.get(self.name).__class__
        optimizer = cls(**config)
        if optimizer.weight_decay and not self.decay_all:
            optimizer.exclude_from_weight_decay(var_list=[v for v in variables if len(v.shape) < 2])
        optimizer.build(variables)
        return optimizer


@keras.saving.register_keras_serializable(package="keras_microseg")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """`learning_rate` until step `start`, then a straight line to `final_factor * learning_rate` at step `stop`.

    At the first step of epoch e this is lr (1 - (e - e0) / (E - e0)) for `final_factor` 0, as CycleGAN decays; with
    `every` = steps per epoch it stays so for the whole epoch.
    """

    def __init__(self, learning_rate: float, start: int, stop: int, final_factor: float = 0.0, every: int = 1):
        self.learning_rate, self.start, self.stop, self.final_factor = learning_rate, start, stop, final_factor
        self.every = every

    def __call__(self, step: Any) -> Any:
        step = keras.ops.cast(step, "float32")
        if self.every > 1:
            step = keras.ops.floor((step + 0.5) / self.every) * self.every
        passed = (step - self.start) / max(self.stop - self.start, 1)
        return self.learning_rate * (1 - (1 - self.final_factor) * keras.ops.clip(passed, 0.0, 1.0))

    def get_config(self) -> dict[str, Any]:
        names = ("learning_rate", "start", "stop", "final_factor", "every")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_microseg")
class CosineRestarts(keras.optimizers.schedules.LearningRateSchedule):
    """Cosine annealing with warm restarts, from step to step: `low + (high - low) (1 + cos(pi t / T)) / 2`.

    Args:
        learning_rate: high.
        period: T of the first cosine, steps.
        final_factor: low / high.
        growth: T of each cosine over that of the one before.
        warmup: steps of a linear rise from 0 before the first cosine.
    """

    def __init__(
        self, learning_rate: float, period: int, final_factor: float = 0.0, growth: float = 1.0, warmup: int = 0
    ):
        self.learning_rate, self.period, self.final_factor = learning_rate, period, final_factor
        self.growth, self.warmup = growth, warmup

    def __call__(self, step: Any) -> Any:
        ops = keras.ops
        step = ops.cast(step, "float32")
        passed = ops.maximum(step - self.warmup, 0.0) / self.period
        if self.growth == 1:
            share = passed - ops.floor(passed + 1e-6)
        else:
            number = ops.floor(ops.log(1 + passed * (self.growth - 1)) / math.log(self.growth) + 1e-5)
            scale = ops.exp(number * math.log(self.growth))
            share = (passed - (scale - 1) / (self.growth - 1)) / scale
        cosine = 0.5 * (1 + ops.cos(math.pi * ops.clip(share, 0.0, 1.0)))
        rate = self.learning_rate * (self.final_factor + (1 - self.final_factor) * cosine)
        if not self.warmup:
            return rate
        return ops.where(step < self.warmup, self.learning_rate * step / self.warmup, rate)

    def get_config(self) -> dict[str, Any]:
        names = ("learning_rate", "period", "final_factor", "growth", "warmup")
        return {name: getattr(self, name) for name in names}


@keras.saving.register_keras_serializable(package="keras_microseg")
class ExponentialDecayFrom(keras.optimizers.schedules.LearningRateSchedule):
    """Constant until step `start`, then times exp(-0.1) every `every` steps: from epoch `start / every` on, per epoch.

    With start = 10 epochs this is the reference's rule: epochs 0 to 9 at the full rate, epoch 10 at exp(-0.1) of it.
    """

    def __init__(self, learning_rate: float, start: int, every: int, final_factor: float = 0.0):
        self.learning_rate, self.start, self.every, self.final_factor = learning_rate, start, every, final_factor

    def __call__(self, step: Any) -> Any:
        ops = keras.ops
        epochs = ops.floor((ops.cast(step, "float32") - self.start + 0.5) / self.every) + 1
        return self.learning_rate * ops.maximum(ops.exp(-0.1 * ops.maximum(epochs, 0.0)), self.final_factor)

    def get_config(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("learning_rate", "start", "every", "final_factor")}


class Monitor:
    """Remembers the best value of a logged quantity. Its state is JSON, so a resumed run continues it.

    Args:
        name: key of the epoch's logs.
        mode: "min" or "max"; None guesses from the name: scores rise, losses and errors fall.
        min_delta: smaller changes are no improvement.
    """

    _RISING = ("iou", "dice", "acc", "precision", "recall", "f1", "auc", "pq", "ap50", "quality")

    def __init__(self, name: str, mode: str | None = None, min_delta: float = 0.0):
        if mode is None:
            mode = "max" if any(part in name.lower() for part in self._RISING) and "loss" not in name else "min"
        self.name = name
        self.mode = check_choice("mode", mode, ("min", "max"))
        self.min_delta = min_delta
        self.best: float | None = None
        self.best_epoch: int | None = None

    def update(self, epoch: int, logs: dict[str, float]) -> bool:
        """True when the value in `logs` is better than all before (not-a-number never is)."""
        value = logs.get(self.name)
        if value is None:
            known = ", ".join(sorted(logs))
            raise KeyError(f"`monitor` must be a logged value, one of {known}. Received: monitor={self.name!r}")
        if math.isnan(value):
            return False
        gain = math.inf if self.best is None else (value - self.best) * (1 if self.mode == "max" else -1)
        if gain <= self.min_delta:
            return False
        self.best, self.best_epoch = value, epoch
        return True

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class EarlyStopping(keras.callbacks.Callback):
    """Ends the training when the monitored value has not improved for `patience` epochs.

    Unlike Keras' own it keeps its state in the checkpoint (`get_state`, `set_state`).
    """

    def __init__(self, monitor: str, patience: int, mode: str | None = None, min_delta: float = 0.0):
        super().__init__()
        self.patience = check_number("patience", patience, minimum=1, integer=True)
        self.monitor = Monitor(monitor, mode, min_delta)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if not self.monitor.update(epoch, logs or {}) and epoch - (self.monitor.best_epoch or 0) >= self.patience:
            logger.info("%s has not improved for %d epochs: stopping.", self.monitor.name, self.patience)
            self.model.stop_training = True

    def get_state(self) -> dict[str, Any]:
        return self.monitor.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        self.monitor.set_state(state)


class ReduceOnPlateau(keras.callbacks.Callback):
    """Multiplies the learning rate by `factor` after `patience` epochs without improvement; its state is kept.

    The optimizer is `params["optimizer"]`, as `training.supervised.train` passes it.
    """

    def __init__(
        self,
        monitor: str,
        factor: float = 0.5,
        patience: int = 5,
        minimum: float = 0.0,
        mode: str | None = None,
        min_delta: float = 0.0,
    ):
        super().__init__()
        self.factor, self.patience, self.minimum = factor, patience, minimum
        self.monitor = Monitor(monitor, mode, min_delta)
        self.last_change = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        if self.monitor.update(epoch, logs or {}):
            self.last_change = epoch
        elif epoch - self.last_change >= self.patience:
            optimizer = self.params["optimizer"]
            rate = max(float(optimizer.learning_rate) * self.factor, self.minimum)
            optimizer.learning_rate = rate
            self.last_change = epoch
            logger.info("Learning rate %.3g from epoch %d on.", rate, epoch + 2)

    def get_state(self) -> dict[str, Any]:
        return {**self.monitor.get_state(), "last_change": self.last_change}

    def set_state(self, state: dict[str, Any]) -> None:
        self.monitor.set_state(state)
        self.last_change = state["last_change"]


class TimeBudget(keras.callbacks.Callback):
    """Ends a training within a number of minutes, with the learning rate annealed to its end by then.

    The rate follows a cosine from `learning_rate` to `final_factor` of it over the share of the epochs or of the time
    that is spent, whichever is larger, after a warm-up of `warmup` of the whole. The training ends with the last epoch
    that fits. Time counts while training; what was spent before an interruption is kept (`get_state`).

    The optimizer must have a constant schedule. Where time and not the number of epochs sets the end, two runs differ
    as their machines do.
    """

    def __init__(self, minutes: float, learning_rate: float, final_factor: float = 0.01, warmup: float = 0.03):
        super().__init__()
        self.seconds = 60 * check_number("minutes", minutes, minimum=0, exclusive=True)
        self.learning_rate, self.final_factor, self.warmup = learning_rate, final_factor, warmup
        self.spent = 0.0
        self.longest = 0.0
        self._since = self._epoch_since = time.monotonic()

    def share(self, epoch: int, batch: int) -> float:
        """What is spent of the training, 0..1."""
        steps = max(self.params.get("steps") or 1, 1)
        done = (epoch + batch / steps) / max(self.params["epochs"], 1)
        return min(max(done, (self.spent + time.monotonic() - self._since) / self.seconds), 1.0)

    def rate(self, share: float) -> float:
        """Learning rate at a share of the training."""
        if share < self.warmup:
            return self.learning_rate * max(share / self.warmup, 0.01)
        cosine = 0.5 * (1 + math.cos(math.pi * (share - self.warmup) / (1 - self.warmup)))
        return self.learning_rate * (self.final_factor + (1 - self.final_factor) * cosine)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._since = time.monotonic()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        self._epoch_since = time.monotonic()

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.params["optimizer"].learning_rate = self.rate(self.share(self._epoch, batch))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        now = time.monotonic()
        self.spent, self._since = self.spent + now - self._since, now
        self.longest = max(self.longest, now - self._epoch_since)
        if self.spent + 0.9 * self.longest > self.seconds and epoch + 1 < self.params["epochs"]:
            logger.info("%.1f minutes are spent: stopping after epoch %d.", self.spent / 60, epoch + 1)
            self.model.stop_training = True

    def get_state(self) -> dict[str, Any]:
        return {"spent": self.spent, "longest": self.longest}

    def set_state(self, state: dict[str, Any]) -> None:
        self.spent, self.longest = state["spent"], state["longest"]
