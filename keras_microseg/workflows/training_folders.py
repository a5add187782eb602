"""The folder of a training: what it holds already, whether the settings are those of an earlier part, its progress."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from keras_microseg.checks import FileError
from keras_microseg.workflows.steps import RunFolder, plain, read_json


def refuse_other_training(
    out: Path, settings: Any, *, resume: bool, free: Collection[str] = (), record: str = "train_settings.json"
) -> None:
    """Refuse a folder that holds a training, unless it is to go on with the same settings.

    Args:
        out: the folder.
        settings: dataclass of the settings.
        resume: go on with what is there.
        free: names of settings that may differ.
        record: file in which a training keeps its settings.

    Raises:
        FileError: a training is there and `resume` is False, or its settings differ; the message names them.
    """
    path = out / record
    if not path.is_file():
        return
    if not resume:
        raise FileError(out, "already holds a training.", "Use --resume, --overwrite, or another folder.")
    earlier = read_json(path)
    changed = [
        f"{key}={earlier[key]!r} -> {value!r}"
        for key, value in plain(settings).items()
        if key in earlier and key not in free and earlier[key] != value
    ]
    if changed:
        raise FileError(
            out, f"holds a training with other settings ({'; '.join(changed)}).", "Repeat them, or --overwrite."
        )


def epoch_progress(folder: RunFolder, step: str) -> list[Any]:
    """A callback that reports the epochs of `step` to the progress of a run; none where nobody asked for it."""
    if folder.progress is None:
        return []
    from keras_microseg.training.progress import EpochProgress

    return [EpochProgress(folder.progress, step)]
