"""The port on TensorFlow. `keras_microseg.backend` documents the names."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_microseg.checks import UserError, check_choice, check_number

logger = logging.getLogger(__name__)

COPIES_LAYOUT = False
conv = None
conv_transpose = None
fused_batch_norm = None
pad_reflect = None
upsample_nearest = None


def configure_device(*, device: str | None = None, threads: int | None = None, deterministic: bool = False) -> str:
    """Set device, CPU threads and kernels; see `keras_microseg.backend`."""
    tf.config.experimental.enable_tensor_float_32_execution(False)
    gpus = tf.config.list_physical_devices("GPU")
    try:
        if device is not None:
            check_choice("device", device, ("cpu", "gpu"))
            if device == "gpu" and not gpus:
                raise UserError(
                    "device='gpu': TensorFlow finds no GPU. Use device='cpu', or install tensorflow[and-cuda]."
                )
            tf.config.set_visible_devices([] if device == "cpu" else gpus[:1], "GPU")
        if threads is not None:
            tf.config.threading.set_intra_op_parallelism_threads(
                check_number("threads", threads, minimum=1, integer=True)
            )
            tf.config.threading.set_inter_op_parallelism_threads(1)
        if device != "cpu":
            for gpu in gpus:
                tf.config.experimental.set_memory_growth(gpu, True)
    except RuntimeError as error:  # TensorFlow has started already
        logger.warning("Device settings come too late for TensorFlow: %s", error)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if gpus and device != "cpu":
        return f"GPU {tf.config.experimental.get_device_details(gpus[0]).get('device_name', gpus[0].name)}"
    return f"CPU, {tf.config.threading.get_intra_op_parallelism_threads() or 'all'} threads"


def value_and_grad(loss_fn: Callable[[], Any], variables: Sequence, state: Sequence = ()) -> tuple[Any, list]:
    """Value of `loss_fn()` and the gradients of its loss; see `keras_microseg.backend`."""
    tensors = [variable.value for variable in variables]
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        for tensor in tensors:
            tape.watch(tensor)
        value = loss_fn()
        loss = value[0] if isinstance(value, tuple) else value
    return value, tape.gradient(loss, tensors, unconnected_gradients=tf.UnconnectedGradients.ZERO)


def apply_gradients(optimizer: keras.optimizers.Optimizer, gradients: Sequence, variables: Sequence) -> None:
    """One optimizer update; see `keras_microseg.backend`."""
    optimizer.apply(list(gradients), list(variables))


def input_gradient(fn: Callable, x: Any) -> tf.Tensor:
    """Differentiable d sum(fn(x)) / dx; see `keras_microseg.backend`."""
    x = tf.stop_gradient(keras.ops.convert_to_tensor(x))
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(x)
        total = tf.reduce_sum(fn(x))
    return tape.gradient(total, x)


def compile_step(fn: Callable, variables: Sequence, *, gradients: bool = True) -> Callable:
    """`fn` as one `tf.function`; see `keras_microseg.backend`."""
    compiled = tf.function(fn, reduce_retracing=False)

    def step(*arrays: Any) -> Any:
        return compiled(*(tf.convert_to_tensor(array) for array in arrays))

    return step


def compile_predict(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """NumPy-to-NumPy inference as one `tf.function` per shape; see `keras_microseg.backend`."""

    @tf.function(reduce_retracing=False)
    def forward(x: tf.Tensor) -> Any:
        return model(x, training=False)

    def predict(array: np.ndarray) -> np.ndarray:
        return keras.tree.map_structure(lambda tensor: tensor.numpy(), forward(tf.convert_to_tensor(array)))

    return predict


def make_forward(model: keras.Model) -> Callable[..., Any]:
    """`model` as it is; see `keras_microseg.backend`."""
    return lambda x, *, training: model(x, training=training)


def get_random_state() -> np.ndarray:
    """Nothing: Keras keeps all random state in variables here; see `keras_microseg.backend`."""
    return np.zeros(0, np.uint8)


def set_random_state(state: int | np.ndarray) -> None:
    """Nothing to do, see `get_random_state`."""
