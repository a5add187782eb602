"""Hyperparameter search for any training: an objective, ranges, trials that are pruned, shared and resumed.

Trials live in a storage (Optuna's journal file by default, or a database): every process that opens it takes part in
the same search, on one machine or many. A trial that was killed is tried again when the search goes on.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import logging
import multiprocessing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import MissingPackageError, UserError, check_choice, check_number

logger = logging.getLogger(__name__)

DIRECTIONS = ("maximize", "minimize")
PRUNERS = ("halving", "median", "none")
JOURNAL = "trials.journal"


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included.

    Attributes:
        low, high: limits.
        log: drawn uniformly in the logarithm.
        integer: whole numbers.
    """

    low: float
    high: float
    log: bool = False
    integer: bool = False

    def __post_init__(self) -> None:
        check_number("high", self.high, minimum=self.low, exclusive=self.low == self.high)
        if self.log:
            check_number("low", self.low, minimum=0, exclusive=True)


@dataclasses.dataclass(frozen=True)
class Choice:
    """One of some JSON values; lists and dictionaries are allowed."""

    values: tuple[Any, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(self.values))
        if not self.values:
            raise UserError("`Choice` needs at least one value.")


Space = Mapping[str, Range | Choice]
Report = Callable[[int, float], None]
Objective = Callable[[dict[str, Any], int, Report], float]
"""`objective(values, number, report) -> score`: one training with the drawn values; `number` names its folder.

It calls `report(epoch, score)` after every epoch, which raises an exception when the trial is not worth going on; that
exception must pass through. Objectives must be picklable where there are several workers (a function of a module, or a
`functools.partial` of one).
"""


@dataclasses.dataclass(frozen=True)
class SearchResult:
    """Outcome of a search.

    Attributes:
        table: one row per trial: number, state ("complete", "pruned", "failed", "running"), score, last epoch reported,
            seconds, and the values drawn.
        best: values of the best complete trial.
        score: its score.
        curves: trial number -> [(epoch, score)] as reported.
        direction: "maximize" or "minimize".
    """

    table: pd.DataFrame
    best: dict[str, Any]
    score: float
    curves: dict[int, list[tuple[int, float]]]
    direction: str


def search(
    objective: Objective,
    space: Space,
    out_dir: str | Path,
    *,
    num_trials: int,
    name: str = "search",
    direction: str = "maximize",
    pruner: str = "halving",
    grace: int = 10,
    seed: int = 0,
    workers: int = 1,
    client: Any = None,
    storage: str | None = None,
    first: Mapping[str, Any] | None = None,
) -> SearchResult:
    """Find good settings by sequential trials (tree-structured Parzen estimator) that are pruned early.

    A search that was interrupted goes on where it stood: call it again with the same folder. Trials that were running
    are tried again; those that are done count towards `num_trials`.

    Args:
        objective: see `Objective`.
        space: what to vary; names are up to the objective (dotted ones for nested settings).
        out_dir: folder of the storage.
        num_trials: in all, pruned ones included; failed ones do not count.
        name: of the study in the storage.
        direction: of the score.
        pruner: "halving", asynchronous successive halving that lets the better half go on at `grace` epochs, twice as
            many, and so on; "median", stops what is worse than the median; "none".
        grace: epochs that every trial may run.
        seed: of the draws; with one worker the search is repeatable.
        workers: processes on this machine.
        client: `dask.distributed.Client`: `workers` tasks on its cluster instead of processes; `out_dir` must then be
            a folder that all can write, or `storage` a database that all can reach.
        storage: database URL instead of the journal file (`"postgresql://..."`, `"sqlite:///..."`).
        first: values to try first, such as those of a preset.

    Returns:
        `SearchResult`.

    Raises:
        MissingPackageError: optuna is not installed.
        UserError: no trial was completed, or another search in the folder.
    """
    check_number("num_trials", num_trials, minimum=1, integer=True)
    check_number("workers", workers, minimum=1, integer=True)
    check_number("grace", grace, minimum=1, integer=True)
    check_choice("direction", direction, DIRECTIONS)
    check_choice("pruner", pruner, PRUNERS)
    if not space:
        raise UserError("`space` must name at least one setting to vary.")
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    plan = _Plan(dict(space), str(out_dir), num_trials, name, direction, pruner, grace, seed, storage)
    study = plan.open()
    known = study.user_attrs.get("space")
    if known is not None and known != plan.describe():
        raise UserError(
            f"{out_dir} holds a search over other ranges ({', '.join(known)}). Use another folder, or the same ranges."
        )
    study.set_user_attr("space", plan.describe())
    _take_up(study)
    if first and not study.trials:
        study.enqueue_trial(plan.encode({key: first[key] for key in space if key in first}))
    if client is not None:
        futures = [client.submit(_work, plan, objective, i, pure=False) for i in range(workers)]
        client.gather(futures)
    elif workers == 1:
        _work(plan, objective, 0)
    else:
        _in_processes(plan, objective, workers)
    return plan.result()


def read_search(out_dir: str | Path, name: str = "search", storage: str | None = None) -> SearchResult:
    """The state of a search, finished or running.

    Raises:
        UserError: no search in the folder, or no trial completed so far.
    """
    out_dir = Path(out_dir)
    if storage is None and not (out_dir / JOURNAL).is_file():
        raise UserError(f"{out_dir} holds no search ({JOURNAL} is missing).")
    return _Plan({}, str(out_dir), 1, name, "maximize", "none", 1, 0, storage).result()


@dataclasses.dataclass(frozen=True)
class _Plan:
    """What every worker needs."""

    space: dict[str, Range | Choice]
    out_dir: str
    num_trials: int
    name: str
    direction: str
    pruner: str
    grace: int
    seed: int
    storage: str | None

    def open(self, worker: int = 0) -> Any:
        optuna = _optuna()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if self.storage is None:
            journal = optuna.storages.journal
            storage = optuna.storages.JournalStorage(journal.JournalFileBackend(str(Path(self.out_dir) / JOURNAL)))
        else:
            storage = self.storage
        pruners = {
            "halving": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=self.grace, reduction_factor=2),
            "median": lambda: optuna.pruners.MedianPruner(n_warmup_steps=self.grace),
            "none": optuna.pruners.NopPruner,
        }
        sampler = optuna.samplers.TPESampler(seed=self.seed + worker, n_startup_trials=min(10, self.num_trials))
        return optuna.create_study(
            study_name=self.name,
            storage=storage,
            sampler=sampler,
            pruner=pruners[self.pruner](),
            direction=self.direction,
            load_if_exists=True,
        )

    def describe(self) -> dict[str, Any]:
        """The ranges as JSON."""
        return json.loads(json.dumps({key: dataclasses.asdict(part) for key, part in self.space.items()}))

    def encode(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Values as the storage holds them: choices as JSON texts."""
        return {
            key: json.dumps(value, sort_keys=True) if isinstance(self.space[key], Choice) else value
            for key, value in values.items()
        }

    def draw(self, trial: Any) -> dict[str, Any]:
        values = {}
        for key, part in self.space.items():
            if isinstance(part, Choice):
                texts = [json.dumps(value, sort_keys=True) for value in part.values]
                values[key] = json.loads(trial.suggest_categorical(key, texts))
            elif part.integer:
                values[key] = trial.suggest_int(key, int(part.low), int(part.high), log=part.log)
            else:
                values[key] = trial.suggest_float(key, part.low, part.high, log=part.log)
        return values

    def result(self) -> SearchResult:
        study = self.open()
        chosen = {key for key, part in study.user_attrs.get("space", {}).items() if "values" in part}
        rows, curves = [], {}
        for trial in study.trials:
            values = {k: json.loads(v) if k in chosen else v for k, v in trial.params.items()}
            curves[trial.number] = sorted(trial.intermediate_values.items())
            seconds = np.nan if trial.duration is None else trial.duration.total_seconds()
            state = {"FAIL": "failed", "WAITING": "running"}.get(trial.state.name, trial.state.name.lower())
            last = max(trial.intermediate_values, default=np.nan)
            score = trial.value if trial.value is not None else np.nan
            if state == "pruned" and curves[trial.number]:
                score = curves[trial.number][-1][1]
            rows.append(
                {"trial": trial.number, "state": state, "score": score, "epochs": last, "seconds": seconds} | values
            )
        table = pd.DataFrame(rows)
        complete = table[table["state"] == "complete"] if len(table) else table
        if not len(complete):
            failed = [str(t.user_attrs.get("error", "")) for t in study.trials if t.user_attrs.get("error")]
            raise UserError(
                f"No trial of the search was completed ({len(table)} begun)."
                + (f" Last error: {failed[-1]}" if failed else "")
            )
        direction = study.direction.name.lower()
        best = complete["score"].idxmax() if direction == "maximize" else complete["score"].idxmin()
        number = int(table.loc[best, "trial"])
        values = {k: json.loads(v) if k in chosen else v for k, v in study.trials[number].params.items()}
        return SearchResult(table, values, float(table.loc[best, "score"]), curves, direction)


def _work(plan: _Plan, objective: Objective, worker: int) -> int:
    """Run trials until there are enough in all; returns how many this worker ran."""
    optuna = _optuna()
    study = plan.open(worker)
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    failures = ran = 0
    while sum(trial.state in states for trial in study.get_trials(deepcopy=False)) < plan.num_trials:
        trial = study.ask()
        values = plan.draw(trial)
        report = functools.partial(_report, optuna, trial)
        try:
            score = objective(values, trial.number, report)
            study.tell(trial, float(score))
            failures = 0
        except optuna.TrialPruned:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        except (UserError, ArithmeticError, MemoryError) as error:  # settings that cannot work; others may
            trial.set_user_attr("error", str(error))
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            logger.warning("Trial %d failed: %s", trial.number, error)
            failures += 1
            if failures >= 3:
                raise UserError(f"Three trials in a row failed. The last one: {error}") from error
        ran += 1
        logger.info("Trial %d: %s", trial.number, values)
    return ran


def _report(optuna: Any, trial: Any, epoch: int, score: float) -> None:
    trial.report(float(score), int(epoch))
    if trial.should_prune():
        raise optuna.TrialPruned


def _take_up(study: Any) -> None:
    """Give up trials that a killed process left running, and try their values again."""
    state = _optuna().trial.TrialState
    for trial in study.get_trials(deepcopy=False, states=(state.RUNNING,)):
        study.tell(trial.number, state=state.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params)


def _in_processes(plan: _Plan, objective: Objective, workers: int) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(plan, objective, i)) for i in range(workers)]
    for process in processes:
        process.start()
    try:
        for process in processes:
            process.join()
    except KeyboardInterrupt:
        for process in processes:
            process.terminate()
        raise
    if all(process.exitcode for process in processes):
        raise UserError("All workers of the search failed; run it with workers=1 to see why.")


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingPackageError("optuna", "The hyperparameter search", extra="search") from None
    return optuna
