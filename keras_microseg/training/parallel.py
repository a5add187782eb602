"""One supervised training over several devices of a machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import keras

from keras_microseg.backend import parallel
from keras_microseg.training import supervised
from keras_microseg.training.epoch_files import EpochFiles
from keras_microseg.training.progress import EpochProgress

_SHOWN = ("loss", "val_loss", "val_dice")


class Task(Protocol):
    """What `train_on_devices` trains; picklable on PyTorch, where every device has a process."""

    def build(self) -> dict[str, Any]:
        """Arguments of `supervised.train`: model, data, loss, ... The same in every process: all follow from seeds."""


def train_on_devices(
    task: Task,
    devices: int,
    out_dir: str | Path,
    *,
    resume: bool = False,
    progress: Callable[[str, float, int, str], None] | None = None,
) -> supervised.TrainingResult:
    """`supervised.train` with every batch shared out between `devices`; see `backend.parallel`.

    Args:
        task: builds model, data and settings. Its batches hold the samples of all devices together.
        devices: number of them; 1 trains here and now.
        out_dir: folder of the run.
        resume: go on with the run in it.
        progress: called as `progress("train", epochs done, epochs, losses)`, with one process only.

    Raises:
        UserError: as `supervised.train`; a batch that cannot be shared out; fewer devices than asked for.
    """
    has_processes = devices > 1 and keras.config.backend() == "torch"
    return parallel.run(_train, devices, task, str(out_dir), resume, None if has_processes else progress)


def _train(index: int, task: Task, out_dir: str, resume: bool, progress: Any) -> supervised.TrainingResult:
    options = task.build()
    for callback in options.get("callbacks", []):
        if isinstance(callback, EpochFiles):
            callback.out_dir = out_dir
    if progress is not None:
        options["callbacks"] = [*options.get("callbacks", []), EpochProgress(progress, shown=_SHOWN)]
    if index == 0:
        return supervised.train(out_dir=out_dir, resume=resume, **options)
    with tempfile.TemporaryDirectory(prefix="keras_microseg_") as folder:  # other processes leave no files
        checkpoint = Path(out_dir) / supervised.CHECKPOINT
        if resume and checkpoint.is_file():
            shutil.copyfile(checkpoint, Path(folder) / supervised.CHECKPOINT)
        options["callbacks"] = [c for c in options.get("callbacks", []) if not isinstance(c, EpochFiles)]
        return supervised.train(out_dir=folder, resume=resume, **options)
