"""Networks trained against each other: phases, the image pool, and the one loop that runs them.

A system says *what* to optimize: named networks and a list of phases, each a loss and the networks it updates. The loop
here says *how*, on every backend: one compiled step per phase, an optimizer per updated network, averages of weights,
bfloat16, and checkpoints after which a run goes on exactly as if it had never stopped. Between phases the host has its
turn, so that pools of past images work on every backend.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number
from keras_microseg.models.saving import save_model
from keras_microseg.training.batches import batches
from keras_microseg.training.checkpoints import check_same, load_checkpoint, save_checkpoint, seed_generators
from keras_microseg.training.precision import in_bfloat16
from keras_microseg.training.records import RunRecord, hash_data, hash_model, write_history
from keras_microseg.training.schedules import OptimizerSettings

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint.npz"
ADAM = OptimizerSettings("adam", 2e-4, schedule="constant", options={"beta_1": 0.5})
_PENDING = 16


@dataclasses.dataclass
class Step:
    """What the host knows when a phase begins.

    Attributes:
        batch: arrays of the data.
        rng: random numbers of this phase; a pure function of (seed, step of the training, phase, repeat).
        outputs: tensors that earlier phases of this step returned, by name.
    """

    batch: tuple[np.ndarray, ...]
    rng: np.random.Generator
    outputs: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Phase:
    """One optimization inside an adversarial step.

    Attributes:
        name: in logs.
        updates: names of the networks that are changed.
        loss: `loss(*arrays)` on tensors, in `keras.ops`; returns `(loss, logs)` or `(loss, logs, outputs)`: a scalar, a
            dictionary of scalars, a dictionary of tensors for the phases after.
        repeats: times per step.
        before: runs on the host and returns the arrays for `loss`; None = those of the batch. Random numbers and pools
            belong here: what enters as data is equal on all backends.
        optimizer: of each network in `updates`, which each has one of its own.
    """

    name: str
    updates: Sequence[str]
    loss: Callable[..., tuple]
    repeats: int = 1
    before: Callable[[Step], Sequence[Any]] | None = None
    optimizer: OptimizerSettings = ADAM

    def __post_init__(self) -> None:
        check_number("repeats", self.repeats, minimum=1, integer=True)
        if isinstance(self.updates, str) or not self.updates:
            raise UserError(f"`updates` must be a list of names of networks. Received: updates={self.updates!r}")


class System(Protocol):
    """What `train_adversarial` trains.

    Attributes:
        networks: by name; the loop may replace them by copies in another precision, so losses look them up here.
        pools: image pools by name; their content is part of the checkpoint.
        settings: JSON values of the losses, which a resumed run must share.
    """

    networks: dict[str, keras.Model]
    pools: dict[str, ImagePool]
    settings: dict[str, Any]

    def phases(self) -> list[Phase]:
        """In the order in which they run."""

    def samples(self, predict: Callable[[str, np.ndarray], np.ndarray], *inputs: np.ndarray) -> list[list[np.ndarray]]:
        """Rows of panels (H, W) in -1..1 for `training.previews.SamplePictures`; `predict(network, array)`."""


class ImagePool:
    """Past generated images, so that a discriminator does not forget them (Shrivastava et al. 2017).

    Args:
        size: images to keep; 0 gives every image back as it comes.
    """

    def __init__(self, size: int = 50):
        self.size = check_number("size", size, minimum=0, integer=True)
        self._images: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self._images)

    def __call__(self, images: Any, rng: np.random.Generator) -> np.ndarray:
        """Store images and give back as many, new or old.

        Until the pool is full it keeps and returns each image. Then, with probability 1/2, an image takes the place of
        a random stored one, which is returned instead.

        Args:
            images: (N, ...) array or tensor.
            rng: random numbers.

        Returns:
            (N, ...) array.
        """
        images = np.array(ops.convert_to_numpy(images))
        if self.size == 0:
            return images
        for i, image in enumerate(images):
            if len(self._images) < self.size:
                self._images.append(image.copy())
            elif rng.random() < 0.5:
                place = int(rng.integers(self.size))
                old, self._images[place] = self._images[place], image.copy()
                images[i] = old
        return images

    def get_state(self) -> np.ndarray:
        """Stored images, (n, ...); n = 0 when there are none yet."""
        return np.stack(self._images) if self._images else np.zeros(0, np.float32)

    def set_state(self, images: np.ndarray) -> None:
        """Take over the images of `get_state`."""
        if len(images) > self.size:
            raise UserError(f"The pool holds {self.size} images. Received: {len(images)} stored ones")
        self._images = [np.array(image) for image in images]


@dataclasses.dataclass(frozen=True)
class AdversarialResult:
    """What an adversarial training gives.

    Attributes:
        history: one row per epoch: "epoch" (from 1), "<phase>_loss" and the logs of the phases (means over the epoch),
            "<network>_learning_rate" (of the last step), "seconds".
        paths: model file of each network; of averaged ones the file holds the average.
        stopped_early: a callback ended the training before its last epoch.
    """

    history: list[dict[str, float]]
    paths: dict[str, Path]
    stopped_early: bool


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
    mixed_precision: bool = False,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    checkpoint_steps: int | None = None,
    workers: int = 1,
    cards: Mapping[str, Mapping[str, Any]] | None = None,
) -> AdversarialResult:
    """Train the networks of a system against each other. A run that was interrupted ends as it would have without.

    `out_dir` receives `<network>.keras` for every network after the last epoch, `log.csv` (a row per epoch), `run.json`
    (settings, versions, seed, hashes) and `checkpoint.npz` (weights, averages, optimizers, seed generators, pools and
    position), one file, rewritten after each epoch.

    Args:
        system: networks and phases, changed in place.
        data: batches: `len(data)`, `data[i]` -> array or tuple of arrays, and `set_epoch(epoch)` where it has it.
        epochs: passes of `steps_per_epoch` batches.
        out_dir: folder of the run.
        steps_per_epoch: batches per epoch; None = the length of `data`. Longer passes go on in the next epoch.
        seed: of the order of batches, of `Step.rng`, and of dropout and noise layers. Start weights are the caller's.
        resume: go on from `checkpoint.npz`; starts anew when there is none.
        average: momentum of the exponential average of weights by network, such as {"generator": 0.999}; early in the
            training it is smaller, (1 + n) / (10 + n) at update n. The model file holds the average; the network of the
            system keeps its last weights.
        mixed_precision: compute in bfloat16 (for GPUs), with float32 weights and outputs.
        callbacks: `keras.callbacks.Callback` objects; those with `get_state() -> JSON` and `set_state` are resumed
            exactly. `callback.model` is the first network; `callback.params["system"]` the system and
            `callback.params["optimizers"]` the optimizers by network. `callback.model.stop_training = True` ends it.
        checkpoint_steps: also write the checkpoint each so many steps within an epoch.
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
    out_dir = Path(out_dir)
    checkpoint = out_dir / CHECKPOINT
    if checkpoint.exists() and not resume:
        raise UserError(f"{out_dir} holds a training already. Go on with it (resume=True), or choose another folder.")
    device = backend.configure_device(deterministic=True)
    originals = dict(system.networks)
    if mixed_precision:
        system.networks.update({name: in_bfloat16(network) for name, network in originals.items()})
    try:
        backend.set_random_state(seed)
        seed_generators([v for network in system.networks.values() for v in network.variables], seed)
        run = _Run(system, epochs, steps, seed, average or {})
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
        position = {"epoch": 0, "step": 0, "history": [], "stopped": False, "settings": settings}

        def save() -> None:
            kept = [c.get_state() if hasattr(c, "get_state") else None for c in callbacks]
            pools = {name: pool.get_state() for name, pool in system.pools.items()}
            save_checkpoint(checkpoint, run.variables(), position | run.get_sums() | {"callbacks": kept}, pools)

        if checkpoint.exists():
            state = load_checkpoint(checkpoint, run.variables())
            check_same(settings, state["settings"], out_dir)
            position |= {key: state[key] for key in ("epoch", "step", "history", "stopped")}
            run.set_sums(state)
            for name, pool in system.pools.items():
                pool.set_state(state["arrays"][name])
            for callback, kept in zip(callbacks, state["callbacks"], strict=False):
                if kept is not None:
                    callback.set_state(kept)
            logger.info("Going on after epoch %d, step %d (%s).", position["epoch"], position["step"], checkpoint)
        else:
            save()  # the start weights, so that a run killed early starts from them again

        record = RunRecord(
            out_dir / "run.json",
            {
                "task": "adversarial training",
                "settings": settings | {"epochs": epochs},
                "device": device,
                "data": hash_data(data),
                "models": {
                    name: {"parameters": network.count_params(), "start": hash_model(network)}
                    for name, network in system.networks.items()
                },
                "resumed_at": position["epoch"] if resume else None,
            },
        )
        model = next(iter(system.networks.values()))
        params = {"epochs": epochs, "steps": steps, "verbose": 0, "system": system, "optimizers": run.optimizers}
        calls = keras.callbacks.CallbackList(list(callbacks), model=model, **params)
        model.stop_training = position["stopped"]
        calls.on_train_begin()
        status = "interrupted"
        try:
            while position["epoch"] < epochs and not model.stop_training:
                epoch, start = position["epoch"], time.perf_counter()
                calls.on_epoch_begin(epoch)
                first = epoch * steps + position["step"]
                for number, batch in batches(data, first, (epoch + 1) * steps, seed, workers):
                    done = number - epoch * steps + 1
                    calls.on_train_batch_begin(done - 1)
                    run.step(number, batch)
                    position["step"] = done
                    calls.on_train_batch_end(done - 1)
                    if checkpoint_steps and done % checkpoint_steps == 0 and done < steps:
                        save()
                logs = run.take_means()
                _check_finite(logs, epoch)
                calls.on_epoch_end(epoch, dict(logs))
                row = {"epoch": epoch + 1, **logs, **run.learning_rates()}
                position["history"].append(row | {"seconds": round(time.perf_counter() - start, 3)})
                write_history(out_dir / "log.csv", position["history"])
                position |= {"epoch": epoch + 1, "step": 0, "stopped": bool(model.stop_training)}
                save()
                logger.info("Epoch %d/%d: %s", epoch + 1, epochs, ", ".join(f"{k} {v:.4g}" for k, v in logs.items()))
            calls.on_train_end()
            status = "finished"
        finally:
            record.update(status=status, epochs_done=position["epoch"])
        paths = {name: out_dir / f"{name}.keras" for name in originals}
        for name, original in originals.items():
            trained = [_copy(variable) for variable in system.networks[name].variables]
            for variable, value in zip(original.variables, run.averaged(name) or trained, strict=True):
                variable.assign(value)
            save_model(original, paths[name], dict((cards or {}).get(name, {})))
            for variable, value in zip(original.variables, trained, strict=True):
                variable.assign(value)
        record.update(ends={name: hash_model(network) for name, network in originals.items()})
    finally:
        system.networks.update(originals)
    return AdversarialResult(position["history"], paths, position["stopped"] and position["epoch"] < epochs)


def _check_finite(logs: Mapping[str, float], epoch: int) -> None:
    broken = [name for name, value in logs.items() if not math.isfinite(value)]
    if broken:
        raise UserError(
            f"{broken[0]} is {logs[broken[0]]} in epoch {epoch + 1}: lower the learning rate, limit gradients "
            "(clip_norm=1), or check the data for NaN."
        )


class _Run:
    """Compiled phases, and the state that they change."""

    def __init__(self, system: System, epochs: int, steps: int, seed: int, average: Mapping[str, float]):
        self.system, self.seed = system, seed
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
        everything = [v for network in system.networks.values() for v in network.variables]
        self._compiled = []
        for phase in self.phases:
            own = [v for name in phase.updates for v in self.optimizers[name].variables + self.averages.get(name, [])]
            self._compiled.append(backend.compile_step(self._write_step(phase), everything + own))
        self._pending: list[dict[str, Any]] = []
        self.set_sums({"sums": {}, "counts": {}})

    def variables(self) -> dict[str, list]:
        return {
            **{f"network/{name}": list(network.variables) for name, network in self.system.networks.items()},
            **{f"optimizer/{name}": list(optimizer.variables) for name, optimizer in self.optimizers.items()},
            **{f"average/{name}": variables for name, variables in self.averages.items()},
        }

    def averaged(self, name: str) -> list[np.ndarray] | None:
        """Values of all variables of a network, averaged where there is an average; None for networks without."""
        if name not in self.averages:
            return None
        network = self.system.networks[name]
        known = {id(v): a for v, a in zip(_floats(network), self.averages[name], strict=True)}
        return [_copy(known.get(id(v), v)) for v in network.variables]

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

    def learning_rates(self) -> dict[str, float]:
        """Of the update made last: Keras counts `iterations` up after each, a schedule is read at the one before."""
        rates = {}
        for name, optimizer in self.optimizers.items():
            schedule = getattr(optimizer, "_learning_rate", None)
            if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
                rates[f"{name}_learning_rate"] = float(schedule(max(int(optimizer.iterations) - 1, 0)))
            else:
                rates[f"{name}_learning_rate"] = float(optimizer.learning_rate)
        return rates

    def get_sums(self) -> dict[str, Any]:
        self._collect()
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def set_sums(self, state: Mapping[str, Any]) -> None:
        self._sums, self._counts = dict(state["sums"]), dict(state["counts"])

    def take_means(self) -> dict[str, float]:
        """Means of all logs since the last call."""
        self._collect()
        means = {name: total / self._counts[name] for name, total in self._sums.items()}
        self.set_sums({"sums": {}, "counts": {}})
        return means

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

        def step(*arrays: Any) -> tuple[dict[str, Any], dict[str, Any]]:
            (loss, logs, *outputs), gradients = backend.value_and_grad(
                lambda: tuple(phase.loss(*arrays)), trained, state
            )
            gradients = iter(gradients)
            for name, group in groups.items():
                backend.apply_gradients(self.optimizers[name], [next(gradients) for _ in group], group)
                if name in self.averages:
                    self._average(name)
            return {f"{phase.name}_loss": loss, **logs}, (outputs[0] if outputs else {})

        return step

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
