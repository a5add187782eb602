"""The part of the port that spreads one training over several devices of a machine (data parallel).

Every device works on its share of each batch; gradients are averaged, so a step equals that of one device on the whole
batch for networks whose samples do not see each other. Batch normalization sees the whole batch on JAX; elsewhere the
share of its device, as is common, and its running statistics are averaged.

`run(fn, devices, *args)` calls `fn(index, *args)` and returns what it returned for index 0: once on JAX and TensorFlow,
    in one process per device on PyTorch (`fn` and `args` must be picklable; only index 0 may leave files behind).
    Models, optimizers and data are made inside `fn`. Batches stay whole: every process makes them all.
`value_and_grad(loss_fn, arrays, variables, state=())` is `backend.value_and_grad` for a `loss_fn(*arrays)` that gives
    `(loss, *others)`: the loss is a mean over samples, the others have the batch as first axis and come back whole.
    With one device it does exactly what the plain one does.
`count()` is the number of devices in use.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from keras_microseg import backend
from keras_microseg.checks import check_number

__all__ = ["count", "run", "value_and_grad"]

_devices = 1


def run(fn: Callable, devices: int, *args: Any) -> Any:
    """Call `fn` on several devices; see the module.

    Raises:
        UserError: fewer devices than asked for.
    """
    global _devices
    check_number("devices", devices, minimum=1, integer=True)
    if devices == 1:
        return fn(0, *args)
    _devices = devices
    try:
        return _port().run(fn, devices, *args)
    finally:
        _devices = 1


def value_and_grad(
    loss_fn: Callable, arrays: Sequence[Any], variables: Sequence, state: Sequence = ()
) -> tuple[Any, list]:
    """Value and gradients over all devices; see the module."""
    if _devices == 1:
        return backend.value_and_grad(lambda: loss_fn(*arrays), variables, state=state)
    return _port().value_and_grad(loss_fn, list(arrays), list(variables), list(state))


def count() -> int:
    """Devices in use."""
    return _devices


def join(devices: int) -> None:
    """Take part in a run, called in the processes that `run` starts."""
    global _devices
    _devices = devices


def _port() -> Any:
    return importlib.import_module(f"{__name__}.{backend.select()}")
