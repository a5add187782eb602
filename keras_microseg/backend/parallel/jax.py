"""Data parallel training on JAX: weights on all devices, batches split between them, the rest is the compiler's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras

from keras_microseg import backend
from keras_microseg.checks import UserError

_sharding: jax.sharding.Sharding | None = None


def run(fn: Callable, devices: int, *args: Any) -> Any:
    """See `keras_microseg.backend.parallel`."""
    global _sharding
    found = keras.distribution.list_devices()
    if len(found) < devices:
        raise UserError(
            f"devices={devices}: JAX finds {len(found)} ({', '.join(found)}). For a trial on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={devices} before the start."
        )
    before = keras.distribution.distribution()
    mesh = jax.sharding.Mesh(jax.devices()[:devices], ("batch",))
    _sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch"))
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=found[:devices]))
    try:
        return fn(0, *args)
    finally:
        keras.distribution.set_distribution(before)
        _sharding = None


def value_and_grad(loss_fn: Callable, arrays: list, variables: list, state: list) -> tuple[Any, list]:
    """See `keras_microseg.backend.parallel`."""
    split = [None if array is None else jax.lax.with_sharding_constraint(array, _sharding) for array in arrays]
    return backend.value_and_grad(lambda: loss_fn(*split), variables, state=state)
