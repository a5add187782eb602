"""The whole state of a training in one file, written atomically: what an interrupted run needs to go on exactly."""

from __future__ import annotations

import glob
import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_microseg import backend, io
from keras_microseg.checks import FileError, UserError

_FORMAT = 1


def save_checkpoint(
    path: str | Path,
    variables: Mapping[str, Sequence],
    state: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write variables, the framework's random state, and `state`.

    A reader finds the old file or the new one, never a part of it.

    Args:
        path: file, `.npz`.
        variables: lists of `keras.Variable` by name (weights, seed generators, optimizer, metrics).
        state: JSON values (epoch, step, history, callbacks).
        arrays: what else there is by name, of any shape (image pools).

    Raises:
        FileError: the folder is not writable or the disk is full.
    """
    others = {f"arrays/{name}": np.asarray(array) for name, array in (arrays or {}).items()}
    values = {
        f"{name}/{i:05d}": keras.ops.convert_to_numpy(variable.value)
        for name, group in variables.items()
        for i, variable in enumerate(group)
    }
    values["random"] = backend.get_random_state()
    header = {"format": _FORMAT, "groups": {name: len(group) for name, group in variables.items()}, "state": state}
    with io.atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, header=np.frombuffer(json.dumps(header).encode(), np.uint8), **values, **others)
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(path: str | Path) -> None:
    """Remove what a process that was killed while writing `path` left behind; only one process may use the folder."""
    path = Path(path)
    for part in path.parent.glob(f".{glob.escape(path.stem)}.*.part{glob.escape(path.suffix)}"):
        part.unlink(missing_ok=True)


def load_checkpoint(path: str | Path, variables: Mapping[str, Sequence]) -> dict[str, Any]:
    """Restore `variables` and the random state, and return `state`. Nothing is changed when the file does not fit.

    Stored arrays are in the state under "arrays".

    Raises:
        FileError: missing, damaged, or written for another network or optimizer.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        header, random = json.loads(arrays.pop("header").tobytes()), arrays.pop("random")
    except FileNotFoundError:
        raise FileError(path, "does not exist.", "Start without resume.") from None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise FileError(path, f"the checkpoint is damaged ({error}).", "Start the training again.") from error
    for name, group in variables.items():
        stored = [arrays.get(f"{name}/{i:05d}") for i in range(header["groups"].get(name, 0))]
        if len(stored) != len(group):
            raise FileError(
                path,
                f"holds {len(stored)} variables of {name!r}, this run has {len(group)}.",
                "Resume with the same network, optimizer and metrics.",
            )
        for value, variable in zip(stored, group, strict=True):
            if value is None or value.shape != tuple(variable.shape):
                raise FileError(
                    path,
                    f"{variable.path} has shape {tuple(variable.shape)}, stored is "
                    f"{None if value is None else value.shape}.",
                    "Resume with the same network and optimizer.",
                )
    for name, group in variables.items():
        for i, variable in enumerate(group):
            variable.assign(arrays[f"{name}/{i:05d}"])
    backend.set_random_state(random)
    others = {name.removeprefix("arrays/"): array for name, array in arrays.items() if name.startswith("arrays/")}
    return header["state"] | ({"arrays": others} if others else {})


def seed_generators(variables: Sequence, seed: int) -> None:
    """Give every Keras seed generator among `variables` a stream of its own drawn from `seed`."""
    generators = [variable for variable in variables if variable.name == "seed_generator_state"]
    for variable, sequence in zip(generators, np.random.SeedSequence(seed).spawn(len(generators)), strict=True):
        variable.assign(sequence.generate_state(2, np.uint32) >> 1)  # below 2**31: a signed integer on some backends


def check_same(settings: Mapping[str, Any], stored: Mapping[str, Any], out_dir: Path) -> None:
    """Refuse to go on with other settings than a run began with.

    Options of nested settings that the version of the stored run did not know are not compared.

    Raises:
        UserError: names the settings that differ.
    """
    changed = [name for name in settings if not _is_same(_jsonable(settings[name]), stored.get(name))]
    if changed:
        raise UserError(
            f"{out_dir}: cannot go on with other settings than it began with ({', '.join(changed)} differ). "
            "Use the old ones, see run.json, or start in another folder."
        )


def _is_same(value: Any, stored: Any) -> bool:
    if isinstance(value, dict) and isinstance(stored, dict):
        return all(key in value and _is_same(value[key], stored[key]) for key in stored)
    return value == stored


def _jsonable(value: Any) -> Any:
    """Tuples as the lists that JSON gives back."""
    if isinstance(value, (tuple, list)):
        return [_jsonable(v) for v in value]
    return {k: _jsonable(v) for k, v in value.items()} if isinstance(value, dict) else value
