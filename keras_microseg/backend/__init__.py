"""The port: everything the package asks of TensorFlow, PyTorch or JAX beyond `keras.ops`.

The modules `tensorflow`, `torch` and `jax` hold the same names; no other file imports a framework, and only the module
of the active backend is ever imported. Importing this package loads neither keras nor a framework: `select()` runs
first and names the backend, the other names are resolved when used (`backend.compile_predict(model)`).

The port:
    `configure_device(*, device, threads, deterministic) -> str`
        Prepares the framework (call it before the first tensor): "cpu" or "gpu" (None takes a GPU when there is one),
        the number of CPU threads, repeatable kernels. TF32 is always off, so that results agree across backends.
        Once asked for, kernels stay repeatable until the process ends: on GPUs, two processes with the same input then
        compute the same bits (PyTorch: deterministic algorithms and cuBLAS workspace; TensorFlow: op determinism; JAX:
        `xla_gpu_deterministic_ops`, also for steps compiled after other work has started XLA). Returns the device in
        words.
    `value_and_grad(loss_fn, variables, state=()) -> (value, gradients)`
        Calls `loss_fn()`, which returns a scalar loss or a tuple `(loss, logs)` of tensors, and differentiates the loss
        with respect to the list `variables`. `value` has the structure of what `loss_fn` returned, cut off from the
        graph; a variable the loss does not depend on gets zeros. `state` lists the other variables that `loss_fn`
        changes (BatchNorm statistics, seed generators); inside a compiled step its list of variables serves.
    `apply_gradients(optimizer, gradients, variables)`
        One update of a built `keras.optimizers.Optimizer`, without loss scaling.
    `input_gradient(fn, x) -> tensor`
        d sum(fn(x)) / dx, itself differentiable (gradient penalties). `fn` maps a tensor to a tensor.
    `compile_step(fn, variables, *, gradients=True) -> step`
        `fn(*arrays)`, written in the ordinary stateful Keras style, as one compiled function: `step(*arrays)` takes
        NumPy arrays or tensors and returns the outputs of `fn` as tensors. `variables` lists *every* variable that `fn`
        reads or changes: weights, statistics, seed generators, optimizer variables, metrics. On JAX the use of a
        variable that is not listed is an error. Build optimizers before the first call. Say `gradients=False` where
        `fn` differentiates nothing (validation).
    `compile_predict(model) -> predict`
        `predict(array)`: NumPy in, NumPy out, one compiled inference call per input shape (keep to one or two shapes).
        The current weights are used, also after further training.
    `make_forward(model) -> forward`
        `forward(tensor, training=bool)`, the outputs of a functional model, for use inside a step. On PyTorch each
        feature map is let go after its last use, where Keras keeps all of them until the call ends.
    `get_random_state() -> uint8 array`, `set_random_state(seed or array)`
        Random state outside of variables: on PyTorch, layers without a seed of their own (dropout) draw from its global
        generators. Empty elsewhere.
    `conv(x, kernel, strides, padding, dilation)`,
    `conv_transpose(x, kernel, strides, padding, output_padding, dilation)`
        Convolutions of (batch, *spatial, channels), arguments as those of the Keras layers, whose derivatives of any
        order are fast. None where Keras' own are.
    `fused_batch_norm(x, gamma, beta, epsilon, mean=None, variance=None) -> (y, mean, variance)`
        Batch normalization over the last axis: by the given statistics, or, without them, by those of the batch, which
        are returned cut off from the graph (`variance` is the biased one). None where Keras' own path is as fast.
    `pad_reflect(x, heights, widths)`
        Mirrors the borders of (batch, height, width, channels) by (before, after) pixels, each less than the size, with
        gradients that are repeatable on GPUs too. None where those of `keras.ops.pad` are.
    `upsample_nearest(x, size)`
        Repeats the pixels of (batch, *spatial, channels) `size` times per axis. None where Keras' own is as fast.
    `COPIES_LAYOUT`
        True where Keras' channels-last convolutions and poolings copy their input to another memory layout and back.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from typing import Any

from keras_microseg.checks import MissingPackageError, UserError, check_choice

logger = logging.getLogger(__name__)

PREFERENCE = ("jax", "torch", "tensorflow")

_PORT = (
    "COPIES_LAYOUT",
    "apply_gradients",
    "compile_predict",
    "compile_step",
    "configure_device",
    "conv",
    "conv_transpose",
    "fused_batch_norm",
    "get_random_state",
    "input_gradient",
    "make_forward",
    "pad_reflect",
    "set_random_state",
    "upsample_nearest",
    "value_and_grad",
)

__all__ = ["PREFERENCE", "installed", "seed_everything", "select", *_PORT]


def installed() -> list[str]:
    """Names of the installed backends, in order of preference; nothing is imported."""
    return [name for name in PREFERENCE if importlib.util.find_spec(name) is not None]


def select() -> str:
    """Name the backend and make keras use it: `KERAS_BACKEND`, else the first installed of jax, torch, tensorflow.

    Call it before keras is imported; afterwards it returns the backend that keras already runs on.

    Raises:
        UserError: `KERAS_BACKEND` names something else.
        MissingPackageError: the backend, or keras, is not installed.
    """
    if "keras" in sys.modules and hasattr(sys.modules["keras"], "config"):
        return sys.modules["keras"].config.backend()
    name, reason = os.environ.get("KERAS_BACKEND"), "set by KERAS_BACKEND"
    if name:
        check_choice("KERAS_BACKEND", name, PREFERENCE)
        if importlib.util.find_spec(name) is None:
            raise MissingPackageError(name, f"KERAS_BACKEND={name}", extra=name)
    else:
        available = installed()
        if not available:
            raise UserError(
                "No backend is installed, and networks need one. Install it with: "
                'pip install "keras_microseg[jax]" (or [torch], [tensorflow]). '
                "`segment --method classical` works without one."
            )
        name, reason = available[0], f"first installed of {', '.join(PREFERENCE)}"
    if importlib.util.find_spec("keras") is None:
        raise MissingPackageError("keras", "Networks", extra=name)
    if os.environ.get("KERAS_BACKEND") != name:
        os.environ["KERAS_BACKEND"] = name
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logger.info("Backend: %s (%s).", name, reason)
    return name


def seed_everything(seed: int) -> None:
    """`keras.utils.set_random_seed`, which would load TensorFlow on any backend to seed it (2 CPU s, 300 MB)."""
    import keras

    is_kept_out = keras.config.backend() != "tensorflow" and "tensorflow" not in sys.modules
    if is_kept_out:
        sys.modules["tensorflow"] = None  # type: ignore[assignment]  # an import fails, as where it is not installed
    try:
        keras.utils.set_random_seed(seed)
    finally:
        if is_kept_out:
            del sys.modules["tensorflow"]


def __getattr__(name: str) -> Any:
    if name not in _PORT:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{select()}"), name)
    globals()[name] = value
    return value
