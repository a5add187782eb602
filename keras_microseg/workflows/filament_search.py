"""Workflow `filament search`: the best settings of `filament train`, by trials that are pruned and can be shared."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_microseg.checks import UserError
from keras_microseg.workflows import filament_train
from keras_microseg.workflows.filament_train import TrainSettings, change_settings
from keras_microseg.workflows.steps import plain, run_facts, write_json

SPACE: dict[str, dict[str, Any]] = {
    "optimizer.learning_rate": {"low": 1e-5, "high": 1e-2, "log": True},
    "batch_size": {"values": (4, 8, 16)},
}
"""What the original search varied."""


def search(
    data: str | os.PathLike,
    out: str | os.PathLike,
    settings: TrainSettings,
    *,
    space: Mapping[str, Mapping[str, Any]] | None = None,
    num_trials: int = 100,
    pruner: str = "halving",
    grace: int = 10,
    workers: int = 1,
    scheduler: str | None = None,
    storage: str | None = None,
) -> Any:
    """Search; called again with the same folder it goes on.

    Args:
        data: folder of labelled videos, reachable for all workers.
        out: folder: `trials.journal`, `trial_0000/` and so on, `trials.csv`, `search.html`, `best.json`.
        settings: what stays the same; their `learning_rate` and the like are tried first.
        space: name (dotted for nested settings) -> arguments of `training.search.Range` or `Choice`; None = `SPACE`.
        num_trials, pruner, grace: see `training.search.search`; a trial reports its validation score after each epoch.
        workers: processes, or tasks on the cluster.
        scheduler: address of a `dask.distributed` scheduler ("tcp://host:8786"); None = this machine.
        storage: database URL instead of the journal file.

    Returns:
        `training.search.SearchResult`.
    """
    from keras_microseg.report.searches import write_search
    from keras_microseg.training import search as searching

    if not settings.validation:
        raise UserError("A search needs validation videos (`validation`) to score its trials.")
    out = Path(out)
    ranges = {name: _range(searching, name, part) for name, part in (SPACE if space is None else space).items()}
    first = {name: _get(settings, name) for name in ranges}
    change_settings(settings, first)  # names are checked before hours of trials
    objective = functools.partial(run_trial, os.fspath(Path(data).resolve()), os.fspath(out.resolve()), plain(settings))
    inside = {
        name: value
        for name, value in first.items()
        if value is not None and (not isinstance(ranges[name], searching.Choice) or value in ranges[name].values)
    }
    client = None
    if scheduler is not None:
        client = _connect(scheduler)
    try:
        result = searching.search(
            objective,
            ranges,
            out,
            num_trials=num_trials,
            name="filament",
            pruner=pruner,
            grace=grace,
            seed=settings.seed,
            workers=workers,
            client=client,
            storage=storage,
            first=inside,
        )
    finally:
        if client is not None:
            client.close()
    facts = run_facts()
    write_search(out, result, facts=facts, title="Search of the settings of filament train")
    write_json(out / "best.json", {"score": result.score, "settings": plain(change_settings(settings, result.best))})
    return result


def run_trial(
    data: str, out: str, base: Mapping[str, Any], values: Mapping[str, Any], number: int, report: Any
) -> float:
    """One training; the best validation score. A trial that is run again goes on from its checkpoint."""
    import keras

    settings = change_settings(TrainSettings(**base), values)

    class Reporter(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
            report(epoch + 1, float((logs or {})["val_f1"]))

    folder = Path(out) / f"trial_{number:04d}"
    trained = filament_train.train(data, folder, settings, resume=True, callbacks=[Reporter()])
    (folder / "checkpoint.npz").unlink(missing_ok=True)  # large, and of no more use
    return trained.scores["val_f1"]


def _range(searching: Any, name: str, part: Mapping[str, Any]) -> Any:
    known = {"low", "high", "log", "integer"}
    if "values" in part and len(part) == 1:
        return searching.Choice(tuple(part["values"]))
    if {"low", "high"} <= set(part) <= known:
        return searching.Range(**part)
    raise UserError(f"`space`: {name} needs low and high (and log, integer), or values. Received: {dict(part)}")


def _get(settings: TrainSettings, name: str) -> Any:
    whole, _, part = name.partition(".")
    value = getattr(settings, whole, None)
    return (value or {}).get(part) if part else value


def _connect(address: str) -> Any:
    from keras_microseg.checks import MissingPackageError

    try:
        from distributed import Client
    except ImportError:
        raise MissingPackageError("distributed", "A search on a cluster", extra="search") from None
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise UserError(f"scheduler={address!r}: no dask scheduler answers there ({error}).") from error
