"""What a training tells a progress bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

import keras

from keras_microseg.training.schedules import TimeBudget

_SECONDS_BETWEEN = 1.0


class EpochProgress(keras.callbacks.Callback):
    """Calls `progress(step, done, total, item)` before each epoch, about once a second within it, and after it.

    `done` counts epochs, a fraction for the one that runs, of the `total` that the training plans (which a budget of
    minutes may have cut). It keeps no state; put it last in the list of callbacks, so that a run resumes with and
    without it.

    Args:
        progress: what to call.
        step: name of the step.
        shown: logs to show, by name, as they were after the last epoch.
        budget: the budget that ends the training; then `done` is the share of it that is spent, in per cent.
    """

    def __init__(
        self,
        progress: Callable[[str, float, int, str], None],
        step: str = "train",
        *,
        shown: Collection[str] = ("loss",),
        budget: TimeBudget | None = None,
    ):
        super().__init__()
        self.progress, self.step, self.shown, self.budget = progress, step, tuple(shown), budget
        self._epoch, self._text, self._told = 0, "", 0.0
        self._share = 0.9  # of an epoch's time for its steps; scores and previews follow

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._epoch = epoch
        self._begun = self._stepped = time.monotonic()
        self._tell(0)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._stepped = time.monotonic()
        if self._stepped - self._told >= _SECONDS_BETWEEN or batch + 1 == self.params.get("steps"):
            self._tell(batch + 1)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._share = (self._stepped - self._begun) / max(time.monotonic() - self._begun, 1e-9)
        shown = {name: value for name, value in (logs or {}).items() if name in self.shown}
        self._text = ", ".join(f"{name} {value:.4f}" for name, value in shown.items())
        self._epoch = epoch + 1
        self._tell(0)

    def _tell(self, batch: int) -> None:
        self._told = time.monotonic()
        epochs, steps = self.params["epochs"], max(self.params.get("steps") or 1, 1)
        if self.budget is not None:
            done: float = 100 * self.budget.share(self._epoch, batch)
            total, words = 100, [f"% of the time, epoch {min(self._epoch + 1, epochs)}"]
        else:
            done = self._epoch + self._share * batch / steps
            total, words = epochs, ["epochs"]
        self.progress(self.step, done, total, ", ".join([*words, *filter(None, [self._text])]))
