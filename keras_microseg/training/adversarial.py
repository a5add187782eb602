"""The one loop that runs networks trained against each other.

A system says *what* to optimize: named networks and a list of phases (`training.phases`), each a loss and the networks
it updates. The loop here says *how*, on every backend: one compiled step per phase, an optimizer per updated network,
averages of weights, bfloat16, and checkpoints after which a run goes on exactly as if it had never stopped. Between
phases the host has its turn, so that pools of past images work on every backend.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number
from keras_microseg.models.saving import save_model
from keras_microseg.training.checkpoints import seed_generators
from keras_microseg.training.epochs import CHECKPOINT, EpochLoop, StopTraining, claim_folder
from keras_microseg.training.phases import ADAM, ImagePool, Phase, Step, System
from keras_microseg.training.precision import LossScale, half_precision, in_half_precision
from keras_microseg.training.records import hash_data, hash_model
from keras_microseg.training.schedules import Monitor

__all__ = [
    "ADAM",
    "CHECKPOINT",
    "AdversarialResult",
    "ImagePool",
    "Phase",
    "Step",
    "StopTraining",
    "System",
    "train_adversarial",
]

_PENDING = 16


@dataclasses.dataclass(frozen=True)
class AdversarialResult:
    """What an adversarial training gives.

    Attributes:
        history: one row per epoch: "epoch" (from 1), "<phase>_loss" and the logs of the phases (means over the epoch),
            "<network>_learning_rate" (of the last step), "seconds".
        paths: model file of each network; of averaged ones the file holds the average.
        stopped_early: a callback ended the training before its last epoch.
        stop_reason: what it gave as the reason, see `epochs.StopTraining`.
        best_epoch: number of the epoch (from 1) of `best_paths`; None without `monitor`.
        best_paths: model files of the epoch with the best monitored value.
    """

    history: list[dict[str, float]]
    paths: dict[str, Path]
    stopped_early: bool
    stop_reason: str | None = None
    best_epoch: int | None = None
    best_paths: dict[str, Path] = dataclasses.field(default_factory=dict)


def train_adversarial(
    system: System,
    data: Any,
    *,
    epochs: int,
    out_dir: str | Path,
    steps_per_epoch: int | None = None,
    seed: int = 0,
    resume: bool = False,
    average: Mapping[str, float] | None = None,
    mixed_precision: bool | str = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    scorers: Sequence[Callable[[Callable[[str, np.ndarray], np.ndarray], int], Mapping[str, float]]] = (),
    monitor: str | None = None,
    monitor_mode: str | None = None,
    checkpoint_steps: int | None = None,
    checkpoint_epochs: int = 1,
    workers: int = 1,
    cards: Mapping[str, Mapping[str, Any]] | None = None,
) -> AdversarialResult:
    """Train the networks of a system against each other. A run that was interrupted ends as it would have without.

    `out_dir` receives `<network>.keras` for every network after the last epoch, with `monitor` also
    `best_<network>.keras`, `log.csv` (a row per epoch), `run.json` (settings, versions, seed, hashes, why it ended) and
    `checkpoint.npz` (weights, averages, optimizers, seed generators, pools and position): one file, rewritten after
    each epoch, of about three times the size of the weights (four with averages).

    Args:
        system: networks and phases, changed in place.
        data: batches: `len(data)`, `data[i]` -> array or tuple of arrays, and `set_epoch(epoch)` where it has it; also
            tensors on the device, see `data.device.DeviceTiles`.
        epochs: passes of `steps_per_epoch` batches.
        out_dir: folder of the run.
        steps_per_epoch: batches per epoch; None = the length of `data`. Longer passes go on in the next epoch.
        seed: of the order of batches, of `Step.rng`, and of dropout and noise layers. Start weights are the caller's.
        resume: go on from `checkpoint.npz`; starts anew when there is none.
        average: momentum of the exponential average of weights by network, such as {"generator": 0.999}; early in the
            training it is smaller, (1 + n) / (10 + n) at update n. The model file holds the average; the network of the
            system keeps its last weights.
        mixed_precision: compute in 16 bits (for GPUs), with float32 weights, outputs and losses: True or "bfloat16", or
            "float16" for GPUs without bfloat16, with loss scaling (log "<phase>_loss_scale").
        callbacks: `keras.callbacks.Callback` objects; those with `get_state() -> JSON` and `set_state` are resumed
            exactly. `callback.model` is the first network; `callback.params` holds "system", "optimizers" (by network)
            and "predict", as scorers get it. A callback ends the training by raising `epochs.StopTraining(reason)`, or
            after the epoch by `callback.model.stop_training = True`.
        scorers: after each epoch, before the callbacks: `scorer(predict, epoch) -> {name: number}`, epochs from 0. The
            numbers join the logs and `log.csv`; {} where an epoch is not scored. `predict(network, array) -> array`
            runs a network in inference, with averaged weights where there are. May raise `StopTraining`.
        monitor: log or score that chooses the best epoch, such as "kid"; None = keep the last only.
        monitor_mode: "min", "max", or None to guess from the name.
        checkpoint_steps: also write the checkpoint each so many steps within an epoch.
        checkpoint_epochs: write it after each so many epochs, and at the end.
        workers: threads that prepare batches ahead; the results do not depend on it. 0 = none.
        cards: facts stored in the model files by network, see `models.saving.save_model`.

    Raises:
        UserError: `out_dir` holds another run, settings differ from those of the run to resume, or a loss is not finite
            any more.
        FileError: unwritable folder, damaged checkpoint.
    """
    epochs = check_number("epochs", epochs, minimum=1, integer=True)
    steps = len(data) if steps_per_epoch is None else steps_per_epoch
    steps = check_number("steps_per_epoch", steps, minimum=1, integer=True)
    out_dir = claim_folder(out_dir, resume)
    device = backend.configure_device(deterministic=True)
    originals = dict(system.networks)
    half = half_precision(mixed_precision)
    if half:
        system.networks.update({name: in_half_precision(network, half) for name, network in originals.items()})
    try:
        backend.set_random_state(seed)
        seed_generators([v for network in system.networks.values() for v in network.variables], seed)
        run = _Run(
            system,
            originals,
            scorers,
            None if monitor is None else Monitor(monitor, monitor_mode),
            epochs=epochs,
            steps=steps,
            seed=seed,
            average=average or {},
            out_dir=out_dir,
            cards=cards or {},
            scales_loss=half == "float16",
        )
        settings = {
            "system": {"name": type(system).__name__, **system.settings},
            "phases": {
                phase.name: {"repeats": phase.repeats, "optimizer": dataclasses.asdict(phase.optimizer)}
                for phase in run.phases
            },
            "steps_per_epoch": steps,
            "seed": seed,
            "average": dict(average or {}),
            "mixed_precision": mixed_precision,
        }
        if any(phase.optimizer.schedule in ("cosine", "linear") for phase in run.phases):
            settings["epochs"] = epochs
        loop = EpochLoop(
            run,
            epochs=epochs,
            steps=steps,
            out_dir=out_dir,
            settings=settings,
            callbacks=callbacks,
            checkpoint_steps=checkpoint_steps,
            checkpoint_epochs=checkpoint_epochs,
        )
        loop.restore()
        facts = {
            "task": "adversarial training",
            "settings": settings | {"epochs": epochs, "monitor": monitor},
            "device": device,
            "data": hash_data(data),
            "models": {
                name: {"parameters": network.count_params(), "start": hash_model(network)}
                for name, network in system.networks.items()
            },
        }
        params = {"system": system, "optimizers": run.optimizers, "predict": run.predict}
        model = next(iter(system.networks.values()))
        loop.run(data, seed=seed, workers=workers, model=model, params=params, facts=facts)
    finally:
        system.networks.update(originals)
    return AdversarialResult(
        loop.history,
        {name: out_dir / f"{name}.keras" for name in originals},
        loop.stopped_early,
        loop.stop_reason,
        run.best_epoch,
        {name: out_dir / f"best_{name}.keras" for name in originals if run.best_epoch is not None},
    )


class _Run:
    """Compiled phases, and the state that they change."""

    def __init__(
        self,
        system: System,
        originals: Mapping[str, keras.Model],
        scorers: Sequence[Callable],
        best: Monitor | None,
        *,
        epochs: int,
        steps: int,
        seed: int,
        average: Mapping[str, float],
        out_dir: Path,
        cards: Mapping[str, Mapping[str, Any]],
        scales_loss: bool = False,
    ):
        self.system, self.originals, self.seed = system, originals, seed
        self.scorers, self.best, self.out_dir, self.cards = scorers, best, out_dir, cards
        self.phases = system.phases()
        self.optimizers: dict[str, keras.optimizers.Optimizer] = {}
        for phase in self.phases:
            for name in phase.updates:
                if name not in system.networks or name in self.optimizers:
                    known = ", ".join(system.networks)
                    raise UserError(f"`updates` must name networks ({known}), each in one phase. Received: {name!r}")
                variables = system.networks[name].trainable_variables
                self.optimizers[name] = phase.optimizer.build(variables, epochs, steps * phase.repeats)
        self.momentum: dict[str, float] = {}
        self.averages: dict[str, list] = {}
        for name, momentum in average.items():
            if name not in self.optimizers:
                raise UserError(f"`average` must name networks that are trained. Received: {name!r}")
            self.momentum[name] = check_number("average", momentum, minimum=0, maximum=1)
            self.averages[name] = [
                keras.Variable(_copy(v), trainable=False, name="average") for v in _floats(system.networks[name])
            ]
        self.scales = {phase.name: LossScale() for phase in self.phases} if scales_loss else {}
        everything = [v for network in system.networks.values() for v in network.variables]
        self._compiled = []
        for phase in self.phases:
            own = self.scales[phase.name].variables if scales_loss else []
            own = own + [
                v for name in phase.updates for v in self.optimizers[name].variables + self.averages.get(name, [])
            ]
            self._compiled.append(backend.compile_step(self._write_step(phase), everything + own))
        self._pending: list[dict[str, Any]] = []
        self._predictors: dict[str, Callable] = {}
        self._holds_averages, self._is_scored = False, True
        self.begin_epoch()

    def variables(self) -> dict[str, list]:
        return {
            **{f"network/{name}": list(network.variables) for name, network in self.system.networks.items()},
            **{f"optimizer/{name}": list(optimizer.variables) for name, optimizer in self.optimizers.items()},
            **{f"average/{name}": variables for name, variables in self.averages.items()},
            **{f"scale/{name}": scale.variables for name, scale in self.scales.items()},
        }

    @property
    def best_epoch(self) -> int | None:
        return None if self.best is None or self.best.best_epoch is None else self.best.best_epoch + 1

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Inside, networks hold their averages."""
        pairs = [
            (variable, average, _copy(variable))
            for name in (() if self._holds_averages else self.averages)
            for variable, average in zip(_floats(self.system.networks[name]), self.averages[name], strict=True)
        ]
        before, self._holds_averages = self._holds_averages, True
        for variable, average, _ in pairs:
            variable.assign(_copy(average))
        try:
            yield
        finally:
            self._holds_averages = before
            for variable, _, value in pairs:
                variable.assign(value)

    def predict(self, name: str, array: np.ndarray) -> np.ndarray:
        """Inference of a network, with averaged weights where there are."""
        if name not in self._predictors:
            self._predictors[name] = backend.compile_predict(self.system.networks[name])
        with self.averaged():
            return self._predictors[name](np.asarray(array, np.float32))

    def step(self, number: int, batch: tuple[np.ndarray, ...]) -> None:
        """All phases on one batch."""
        outputs: dict[str, Any] = {}
        for i, (phase, compiled) in enumerate(zip(self.phases, self._compiled, strict=True)):
            for repeat in range(phase.repeats):
                state = Step(batch, np.random.default_rng([self.seed, number, i, repeat]), outputs)
                arrays = batch if phase.before is None else phase.before(state)
                logs, new = compiled(*arrays)
                outputs.update(new)
                self._pending.append(logs)
        if len(self._pending) >= _PENDING:
            self._collect()

    def rates(self) -> dict[str, float]:
        """Of the update made last: Keras counts `iterations` up after each, a schedule is read at the one before."""
        rates = {}
        for name, optimizer in self.optimizers.items():
            schedule = getattr(optimizer, "_learning_rate", None)
            if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
                rates[f"{name}_learning_rate"] = float(schedule(max(int(optimizer.iterations) - 1, 0)))
            else:
                rates[f"{name}_learning_rate"] = float(optimizer.learning_rate)
        return rates

    def get_state(self) -> dict[str, Any]:
        self._collect()
        best = {} if self.best is None else {"best": self.best.get_state()}
        return {"sums": dict(self._sums), "counts": dict(self._counts)} | best

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])
        if self.best is not None and "best" in state:
            self.best.set_state(state["best"])

    def get_arrays(self) -> dict[str, np.ndarray]:
        return {name: pool.get_state() for name, pool in self.system.pools.items()}

    def set_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        for name, pool in self.system.pools.items():
            pool.set_state(arrays[name])

    def begin_epoch(self) -> None:
        self._sums, self._counts = {}, {}

    def end_epoch(self, epoch: int) -> dict[str, float]:
        """Means of all logs of the epoch."""
        self._collect()
        logs = {name: total / self._counts[name] for name, total in self._sums.items()}
        broken = [name for name, value in logs.items() if not math.isfinite(value)]
        if broken:
            raise UserError(
                f"{broken[0]} is {logs[broken[0]]} in epoch {epoch + 1}: lower the learning rate, limit gradients "
                "(clip_norm=1), or check the data for NaN."
            )
        return logs

    def score(self, epoch: int) -> dict[str, float]:
        scores: dict[str, float] = {}
        with self.averaged():
            for scorer in self.scorers:
                scores |= {name: float(value) for name, value in (scorer(self.predict, epoch) or {}).items()}
        self._is_scored = bool(scores) or not self.scorers
        return scores

    def keep(self, epoch: int, logs: Mapping[str, float]) -> None:
        if self.best is None or (self.best.name not in logs and not self._is_scored):
            return
        if self.best.name not in logs:
            raise UserError(
                f"`monitor` must be a logged value, one of {', '.join(sorted(logs))}. Received: "
                f"monitor={self.best.name!r}"
            )
        if self.best.update(epoch, dict(logs)):
            self._save_models("best_{}.keras")

    def finish(self) -> dict[str, Any]:
        self._save_models("{}.keras")
        return {
            "best_epoch": self.best_epoch,
            "ends": {name: hash_model(network) for name, network in self.originals.items()},
        }

    def _save_models(self, pattern: str) -> None:
        """Write the networks in float32 with their averages; the originals end with the last weights."""
        with self.averaged():
            self._update_originals()
            for name, network in self.originals.items():
                save_model(network, self.out_dir / pattern.format(name), dict(self.cards.get(name, {})))
        self._update_originals()

    def _update_originals(self) -> None:
        for name, original in self.originals.items():
            network = self.system.networks[name]
            if network is not original:
                for variable, value in zip(original.variables, network.variables, strict=True):
                    variable.assign(_copy(value))

    def _collect(self) -> None:
        """Fetch logs from the device: not after every phase, which would have to wait for it."""
        for logs in self._pending:
            for name, value in sorted(logs.items()):
                self._sums[name] = self._sums.get(name, 0.0) + float(ops.convert_to_numpy(value))
                self._counts[name] = self._counts.get(name, 0) + 1
        self._pending = []

    def _write_step(self, phase: Phase) -> Callable:
        networks = self.system.networks
        groups = {name: networks[name].trainable_variables for name in phase.updates}
        trained = [v for group in groups.values() for v in group]
        known = {id(v) for v in trained}
        state = [v for network in networks.values() for v in network.variables if id(v) not in known]

        def update(gradients: Sequence) -> None:
            gradients = iter(gradients)
            for name, group in groups.items():
                backend.apply_gradients(self.optimizers[name], [next(gradients) for _ in group], group)
                if name in self.averages:
                    self._average(name)

        def step(*arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            (loss, logs, *outputs), gradients = backend.value_and_grad(
                lambda: tuple(phase.loss(*arrays)), trained, state
            )
            update(gradients)
            return {f"{phase.name}_loss": loss, **logs}, (outputs[0] if outputs else {})

        def scaled_step(*arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            scale = self.scales[phase.name]
            own = [v for name in groups for v in self.optimizers[name].variables + self.averages.get(name, [])]
            changed = [v for v in trained + state + own if v.name != "seed_generator_state"]
            before = [ops.copy(ops.convert_to_tensor(variable)) for variable in changed]

            def loss_fn() -> tuple:
                loss, logs, *outputs = phase.loss(*arrays)
                return loss * scale.factor, {f"{phase.name}_loss": loss, **logs}, *outputs

            (_, logs, *outputs), gradients = backend.value_and_grad(loss_fn, trained, state)
            gradients, is_finite = scale.unscale(gradients)
            update(gradients)
            for variable, value in zip(changed, before, strict=True):
                variable.assign(ops.where(is_finite, ops.convert_to_tensor(variable), value))
            logs[f"{phase.name}_loss_scale"] = scale.factor * 1.0
            scale.update(is_finite)
            return logs, (outputs[0] if outputs else {})

        return scaled_step if self.scales else step

    def _average(self, name: str) -> None:
        done = ops.cast(self.optimizers[name].iterations, "float32")
        momentum = ops.minimum(self.momentum[name], (1 + done) / (10 + done))
        for average, variable in zip(self.averages[name], _floats(self.system.networks[name]), strict=True):
            average.assign(momentum * average + (1 - momentum) * ops.cast(variable, average.dtype))


def _copy(variable: Any) -> np.ndarray:
    """Its value in memory of its own: arrays of PyTorch and JAX may share theirs with the variable."""
    return np.array(ops.convert_to_numpy(variable.value))


def _floats(network: keras.Model) -> list:
    """All variables but seeds and counters."""
    return [v for v in network.variables if "float" in v.dtype]
