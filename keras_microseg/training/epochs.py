"""The loop over epochs that all trainings share: position, checkpoints, callbacks, the table of epochs, and its ends.

A kind of training says what a step and the logs of an epoch are (`Training`); `EpochLoop` does the rest, so that a run
which was interrupted at any point ends as it would have without.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np

from keras_microseg.checks import UserError, check_number
from keras_microseg.training.batches import batches
from keras_microseg.training.checkpoints import check_same, load_checkpoint, remove_unfinished, save_checkpoint
from keras_microseg.training.records import EventFile, RunRecord, write_history

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.npz"


class StopTraining(Exception):
    """Raised by a callback or scorer, ends the training cleanly: state and models are saved, `run.json` says why.

    At the end of an epoch that epoch counts as done; within one, the checkpoint holds the last step. A run that ended
    so stays ended: resumed, it gives its result again.

    Args:
        reason: for people, such as "mode collapse: all outlines look alike (spread 0.01)".
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = str(reason)


class Training(Protocol):
    """What `EpochLoop` asks of a kind of training."""

    def variables(self) -> dict[str, list]:
        """Everything that steps change, by name: weights, optimizers, seed generators, metrics."""

    def get_state(self) -> dict[str, Any]:
        """Further state as JSON."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Take over what `get_state` gave."""

    def get_arrays(self) -> dict[str, np.ndarray]:
        """Further state as arrays of any shape."""

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over what `get_arrays` gave."""

    def begin_epoch(self) -> None:
        """Before the first step of an epoch; not where a resumed run goes on within one."""

    def step(self, number: int, batch: tuple[np.ndarray, ...]) -> None:
        """One step; `number` counts from the start of the training."""

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Logs of the steps of epoch `epoch`, from 0."""

    def score(self, epoch: int) -> dict[str, float]:
        """Further logs, of the networks as they are after the epoch."""

    def rates(self) -> dict[str, float]:
        """Learning rates of the last step."""

    def keep(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Write the models when they are the best so far."""

    def finish(self) -> dict[str, Any]:
        """Write the models at the end; returns facts for `run.json`."""


def claim_folder(out_dir: str | Path, resume: bool) -> Path:
    """`out_dir`, when a training may begin or go on there.

    Raises:
        UserError: it holds a training and `resume` is False.
    """
    out_dir = Path(out_dir)
    if (out_dir / CHECKPOINT).exists() and not resume:
        raise UserError(f"{out_dir} holds a training already. Go on with it (resume=True), or choose another folder.")
    return out_dir


class EpochLoop:
    """A training in a folder: `restore` its state, then `run` it to its end.

    Args:
        training: what to run.
        epochs: in all, resumed ones included.
        steps: per epoch.
        out_dir: receives `checkpoint.npz`, `log.csv`, `run.json`.
        settings: JSON values that a resumed run must share.
        callbacks: Keras callbacks; the state of those with `get_state() -> JSON` and `set_state` is kept.
        checkpoint_steps: also write the checkpoint each so many steps within an epoch.
        checkpoint_epochs: write it after each so many epochs, and after the last.
    """

    def __init__(
        self,
        training: Training,
        *,
        epochs: int,
        steps: int,
        out_dir: Path,
        settings: Mapping[str, Any],
        callbacks: Sequence[keras.callbacks.Callback] = (),
        checkpoint_steps: int | None = None,
        checkpoint_epochs: int = 1,
    ):
        self.training, self.epochs, self.steps, self.out_dir = training, epochs, steps, out_dir
        self.callbacks = list(callbacks)
        self.checkpoint = out_dir / CHECKPOINT
        self.checkpoint_steps = checkpoint_steps
        self.checkpoint_epochs = check_number("checkpoint_epochs", checkpoint_epochs, minimum=1, integer=True)
        self.settings = dict(settings)
        self.epoch, self.done = 0, 0
        self.resumed_at: int | None = None
        self.history: list[dict[str, float]] = []
        self.stopped = False
        self.stop_reason: str | None = None

    @property
    def stopped_early(self) -> bool:
        return self.stopped and (self.epoch < self.epochs or self.stop_reason is not None)

    def restore(self) -> None:
        """Go on from the checkpoint; without one, write that of the start."""
        if not self.checkpoint.exists():
            self.save()  # the start weights, so that a run killed early starts from them again
            return
        remove_unfinished(self.checkpoint)
        state = load_checkpoint(self.checkpoint, self.training.variables())
        check_same(self.settings, state["settings"], self.out_dir)
        self.epoch, self.done, self.history = state["epoch"], state["step"], state["history"]
        self.resumed_at = self.epoch
        self.stopped, self.stop_reason = state["stopped"], state.get("stop_reason")
        self.training.set_state(state)
        self.training.set_arrays(state.get("arrays", {}))
        for callback, kept in zip(self.callbacks, state["callbacks"], strict=False):
            if kept is not None and hasattr(callback, "set_state"):
                callback.set_state(kept)
        logger.info("Going on after epoch %d, step %d (%s).", self.epoch, self.done, self.checkpoint)

    def save(self) -> None:
        """Write the checkpoint."""
        position = {
            "epoch": self.epoch,
            "step": self.done,
            "history": self.history,
            "stopped": self.stopped,
            "stop_reason": self.stop_reason,
            "settings": self.settings,
            "callbacks": [c.get_state() if hasattr(c, "get_state") else None for c in self.callbacks],
        }
        state = self.training.get_state() | position
        save_checkpoint(self.checkpoint, self.training.variables(), state, self.training.get_arrays())

    def run(
        self,
        data: Any,
        *,
        seed: int,
        workers: int,
        model: keras.Model,
        params: Mapping[str, Any],
        facts: Mapping[str, Any],
        tensorboard: bool = False,
    ) -> None:
        """Run all epochs that are left.

        Args:
            data: see `training.batches.batches`, as `seed` and `workers`.
            model: what callbacks see as `callback.model`; its `stop_training` ends the training after the epoch.
            params: for callbacks, beside "epochs", "steps" and "verbose".
            facts: for `run.json`.
            tensorboard: write `tensorboard/`.
        """
        record = RunRecord(self.out_dir / "run.json", {**facts, "resumed_at": self.resumed_at})
        events = EventFile(self.out_dir / "tensorboard", self.history) if tensorboard else None
        params = {"epochs": self.epochs, "steps": self.steps, "verbose": 0, **params}
        calls = keras.callbacks.CallbackList(self.callbacks, model=model, **params)
        model.stop_training = self.stopped
        outcome: dict[str, Any] = {"status": "interrupted"}
        try:
            self._guard(calls.on_train_begin)
            while self.epoch < self.epochs and not model.stop_training and self.stop_reason is None:
                self._run_epoch(data, seed, workers, calls, model, events)
            self._guard(calls.on_train_end)
            ended = self.stop_reason is not None
            outcome = {"status": "stopped" if ended else "finished"} | self.training.finish()
        except BaseException as error:
            outcome["error"] = f"{type(error).__name__}: {error}"
            raise
        finally:
            record.update(**outcome, stop_reason=self.stop_reason, epochs_done=self.epoch, steps_done=self.done)

    def _run_epoch(self, data, seed, workers, calls, model, events) -> None:
        start, epoch = time.perf_counter(), self.epoch
        if self.done == 0:
            self.training.begin_epoch()
        self._guard(calls.on_epoch_begin, epoch)
        first = epoch * self.steps
        for number, batch in batches(data, first + self.done, first + self.steps, seed, workers):
            if self.stop_reason is not None:
                break
            self._guard(calls.on_train_batch_begin, number - first)
            self.training.step(number, batch)
            self.done = number - first + 1
            self._guard(calls.on_train_batch_end, number - first)
            if self.checkpoint_steps and self.done % self.checkpoint_steps == 0 and self.done < self.steps:
                self.save()
        if self.done < self.steps:  # stopped within the epoch, which gets no row
            self.stopped = True
            self.save()
            return
        logs, rates = self.training.end_epoch(epoch), self.training.rates()
        logs |= self._guard(self.training.score, epoch) or {}
        self._guard(calls.on_epoch_end, epoch, dict(logs))
        row = {"epoch": epoch + 1, **logs, **rates}
        self.history.append(row | {"seconds": round(time.perf_counter() - start, 3)})
        write_history(self.out_dir / "log.csv", self.history)
        if events is not None:
            events.write(row)
        self.training.keep(epoch, logs)
        self.stopped = bool(model.stop_training) or self.stop_reason is not None
        self.epoch, self.done = epoch + 1, 0
        if self.epoch % self.checkpoint_epochs == 0 or self.epoch == self.epochs or self.stopped:
            self.save()
        shown = ", ".join(f"{name} {value:.4g}" for name, value in logs.items())
        logger.info("Epoch %d/%d: %s%s", self.epoch, self.epochs, shown, self._time_left())

    def _time_left(self) -> str:
        """'; 12 min left', by the last epochs; nothing at the end or when it is less than a minute."""
        recent = [row["seconds"] for row in self.history[-5:]]
        minutes = 0 if self.stopped else sorted(recent)[len(recent) // 2] * (self.epochs - self.epoch) / 60
        return f"; {minutes:.0f} min left" if minutes >= 1 else ""

    def _guard(self, call: Callable, *arguments: Any) -> Any:
        """Its result; None when it asked for the end of the training."""
        try:
            return call(*arguments)
        except StopTraining as stop:
            if self.stop_reason is None:
                self.stop_reason = stop.reason
                logger.warning("Training ends in epoch %d: %s", self.epoch + 1, stop.reason)
        return None
