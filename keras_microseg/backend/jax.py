"""The port on JAX. `keras_microseg.backend` documents the names.

A stateful step becomes a pure function by tracing it inside a `keras.StatelessScope` seeded with every variable it may
read or change; a variable that was not listed is an error, because its value would be frozen into the compiled code.
"""

from __future__ import annotations

import functools
import logging
import math
import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import keras
import numpy as np
from jax import lax
from keras.src.backend.common.backend_utils import compute_conv_transpose_padding_args_for_jax
from keras.src.backend.common.stateless_scope import get_stateless_scope

from keras_microseg.checks import UserError, check_choice, check_number

logger = logging.getLogger(__name__)
logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)  # its notes tell of accelerators that are not there

COPIES_LAYOUT = False
fused_batch_norm = None
pad_reflect = None
upsample_nearest = None
_repeatable = {"kernels": False}


def configure_device(*, device: str | None = None, threads: int | None = None, deterministic: bool = False) -> str:
    """Set device, CPU threads and kernels; see `keras_microseg.backend`."""
    jax.config.update("jax_default_matmul_precision", "highest")  # no TF32
    if threads is not None:
        # XLA sizes its thread pool by NPROC when the first array is made.
        os.environ["NPROC"] = str(check_number("threads", threads, minimum=1, integer=True))
    _repeatable.update(kernels=_repeatable["kernels"] or deterministic)
    if deterministic and "xla_gpu_deterministic_ops" not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
    if device is not None:
        check_choice("device", device, ("cpu", "gpu"))
        try:
            jax.config.update("jax_default_device", jax.devices(device)[0])
        except RuntimeError as error:
            raise UserError(
                f"device={device!r}: JAX finds no such device. Use device='cpu', or install a build with CUDA."
            ) from error
    used = jax.config.jax_default_device or jax.devices()[0]
    if used.platform != "cpu":
        return f"GPU {used.device_kind}"
    return f"CPU, {os.environ.get('NPROC', os.cpu_count())} threads"


def _jit(function: Callable, **options: Any) -> Callable:
    """`jax.jit` with repeatable kernels where they were asked for; flags of the environment are read only once."""
    if _repeatable["kernels"] and jax.default_backend() == "gpu":
        options["compiler_options"] = {"xla_gpu_deterministic_ops": True}
    return jax.jit(function, **options)


class _ClosedScope(keras.StatelessScope):
    """A stateless scope that knows its variables, and refuses others; inside another one it starts from that."""

    def __init__(self, variables: Sequence, values: Sequence, outer: keras.StatelessScope | None = None):
        super().__init__(list(zip(variables, values, strict=True)), collect_losses=True)
        self._outer = outer
        self.variables = list(variables)
        self._listed = set(self.state_mapping)

    def get_current_value(self, variable: Any) -> Any:
        value = super().get_current_value(variable)
        if value is None and self._outer is not None:
            return self._outer.get_current_value(variable)
        if value is None:
            raise ValueError(
                f"The step uses the variable {variable.path!r}, which is not in its list: pass it to `variables` of "
                "`compile_step` (or `state` of `value_and_grad`)."
            )
        return value

    def add_update(self, update: tuple) -> None:
        variable, _ = update
        if id(variable) not in self._listed:
            raise ValueError(
                f"The step changes the variable {variable.path!r}, which is not in its list: pass it to `variables` "
                "of `compile_step` (or `state` of `value_and_grad`)."
            )
        super().add_update(update)

    def values(self, variables: Sequence) -> list:
        return [self.state_mapping[id(variable)] for variable in variables]


def value_and_grad(loss_fn: Callable[[], Any], variables: Sequence, state: Sequence = ()) -> tuple[Any, list]:
    """Value of `loss_fn()` and the gradients of its loss; see `keras_microseg.backend`."""
    variables = list(variables)
    state = _without(_listed(state), variables)

    def pure(trained: list, others: list) -> tuple[Any, tuple]:
        scope = _scope(variables + state, trained + others)
        with scope:
            value = loss_fn()
        loss = value[0] if isinstance(value, tuple) else value
        return loss, (value, scope.values(state))

    differentiate = jax.value_and_grad(pure, has_aux=True)
    (_, (value, updates)), gradients = differentiate(_values(variables), _values(state))
    _assign(state, updates)
    return value, gradients


def apply_gradients(optimizer: keras.optimizers.Optimizer, gradients: Sequence, variables: Sequence) -> None:
    """One optimizer update; see `keras_microseg.backend`."""
    optimizer.apply(list(gradients), list(variables))


def input_gradient(fn: Callable, x: Any) -> jax.Array:
    """Differentiable d sum(fn(x)) / dx; see `keras_microseg.backend`."""
    state = _listed(())

    def total(x: jax.Array, values: list) -> tuple[Any, list]:
        scope = _scope(state, values)
        with scope:
            y = fn(x)
        return y.sum(), scope.values(state)

    gradient, updates = jax.grad(total, has_aux=True)(keras.ops.convert_to_tensor(x), _values(state))
    _assign(state, updates)
    return gradient


def compile_step(fn: Callable, variables: Sequence, *, gradients: bool = True) -> Callable:
    """`fn` jitted, with donated state; see `keras_microseg.backend`."""
    variables = _without(variables, ())

    def pure(values: list, *arrays: Any) -> tuple[Any, list]:
        with _ClosedScope(variables, values) as scope:
            outputs = fn(*arrays)
        return outputs, scope.values(variables)

    compiled = _jit(pure, donate_argnums=0)

    def step(*arrays: Any) -> Any:
        outputs, updates = compiled([variable.value for variable in variables], *arrays)
        _assign(variables, updates)
        return outputs

    return step


def compile_predict(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """NumPy-to-NumPy inference, jitted, weights passed as arguments; see `keras_microseg.backend`."""

    def infer(trainable: list, others: list, x: Any) -> Any:
        return model.stateless_call(trainable, others, x, training=False)[0]

    forward = _jit(infer)

    def predict(array: np.ndarray) -> np.ndarray:
        outputs = forward(_values(model.trainable_variables), _values(model.non_trainable_variables), array)
        return keras.tree.map_structure(np.asarray, outputs)

    return predict


def make_forward(model: keras.Model) -> Callable[..., Any]:
    """`model` as it is; see `keras_microseg.backend`."""
    return lambda x, *, training: model(x, training=training)


def get_random_state() -> np.ndarray:
    """Nothing: Keras keeps all random state in variables here; see `keras_microseg.backend`."""
    return np.zeros(0, np.uint8)


def set_random_state(state: int | np.ndarray) -> None:
    """Nothing to do, see `get_random_state`."""


def conv(x: Any, kernel: Any, strides: Sequence[int], padding: str, dilation: Sequence[int]) -> jax.Array:
    """Convolution whose derivatives of any order are fast; see `keras_microseg.backend`."""
    x, kernel = _in_one_type(x, kernel)
    return _conv(x, kernel, (tuple(strides), padding.upper(), tuple(dilation)))


def conv_transpose(
    x: Any,
    kernel: Any,
    strides: Sequence[int],
    padding: str,
    output_padding: Sequence[int] | None,
    dilation: Sequence[int],
) -> jax.Array:
    """Transposed convolution whose derivatives of any order are fast; see `keras_microseg.backend`."""
    x, kernel = _in_one_type(x, kernel)
    pads = compute_conv_transpose_padding_args_for_jax(
        x.shape, kernel.shape, tuple(strides), padding, output_padding, tuple(dilation)
    )
    reach = [(k - 1) * d for k, d in zip(kernel.shape[:-2], dilation, strict=True)]
    sizes = [(n - 1) * s + 1 + sum(pair) - r for n, s, pair, r in zip(x.shape[1:-1], strides, pads, reach, strict=True)]
    borders = tuple((r - left, r - right) for r, (left, right) in zip(reach, pads, strict=True))
    window = (tuple(strides), borders, tuple(dilation))
    return _conv_back_to_input(x, kernel, window, (x.shape[0], *sizes, kernel.shape[-2]))


# A convolution y(x, w) is bilinear, so its adjoints x(y, w) and w(x, y) and all derivatives of the three are again
# these three. XLA differentiates an adjoint into an equal but much slower operation (on CPUs ten times and more: the
# kernel's gradient of a transposed convolution, and a gradient penalty); said in this way every derivative is fast.


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv(x: jax.Array, kernel: jax.Array, window: tuple) -> jax.Array:
    """(N, *spatial, C), (*size, C, F) -> (N, *spatial, F); `window` = (strides, padding, dilation)."""
    strides, padding, dilation = window
    spatial = "DHW"[-len(strides) :]
    numbers = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return lax.conv_general_dilated(x, kernel, strides, padding, rhs_dilation=dilation, dimension_numbers=numbers)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_back_to_input(y: jax.Array, kernel: jax.Array, window: tuple, shape: tuple) -> jax.Array:
    """Adjoint of `_conv` in its input, which has the given shape."""
    if math.prod(y.shape[1:-1]) < math.prod(kernel.shape[:-2]):
        return _small_conv_back_to_input(y, kernel, window, shape)
    x = jax.ShapeDtypeStruct(shape, y.dtype)
    return jax.linear_transpose(lambda x: _conv.fun(x, kernel, window), x)(y)[0]


def _small_conv_back_to_input(y: jax.Array, kernel: jax.Array, window: tuple, shape: tuple) -> jax.Array:
    """The same by a matrix product: XLA swaps the operands of convolutions whose input is smaller than the kernel,
    which takes CPUs 70 times as long.
    """
    strides, padding, dilation = window
    *size, channels, features = kernel.shape
    reach = [(k - 1) * d + 1 for k, d in zip(size, dilation, strict=True)]
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(shape[1:-1], reach, strides, padding)
    parts = y.reshape(-1, features) @ kernel.reshape(-1, features).T
    parts = parts.reshape(*y.shape[:-1], math.prod(size), channels)
    zero = jnp.zeros((), parts.dtype)
    full = [(n - 1) * s + r for n, s, r in zip(y.shape[1:-1], strides, reach, strict=True)]
    total = jnp.zeros((y.shape[0], *full, channels), parts.dtype)
    for i, tap in enumerate(np.ndindex(*size)):
        starts = [t * d for t, d in zip(tap, dilation, strict=True)]
        edges = [(b, r - 1 - b, s - 1) for b, r, s in zip(starts, reach, strides, strict=True)]
        total = total + lax.pad(parts[..., i, :], zero, [(0, 0, 0), *edges, (0, 0, 0)])
    crop = [(-left, n + left - f, 0) for (left, _), n, f in zip(padding, shape[1:-1], full, strict=True)]
    return lax.pad(total, zero, [(0, 0, 0), *crop, (0, 0, 0)])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_back_to_kernel(x: jax.Array, y: jax.Array, window: tuple, shape: tuple) -> jax.Array:
    """Adjoint of `_conv` in its kernel, which has the given shape."""
    kernel = jax.ShapeDtypeStruct(shape, x.dtype)
    return jax.linear_transpose(lambda kernel: _conv.fun(x, kernel, window), kernel)(y)[0]


def _define_derivatives() -> None:
    def conv_back(window, kept, dy):
        x, w = kept
        return _conv_back_to_input(dy, w, window, x.shape), _conv_back_to_kernel(x, dy, window, w.shape)

    def input_back(window, shape, kept, dx):
        y, w = kept
        return _conv(dx, w, window), _conv_back_to_kernel(dx, y, window, w.shape)

    def kernel_back(window, shape, kept, dw):
        x, y = kept
        return _conv_back_to_input(y, dw, window, x.shape), _conv(x, dw, window)

    for function, back in (
        (_conv, conv_back),
        (_conv_back_to_input, input_back),
        (_conv_back_to_kernel, kernel_back),
    ):
        function.defvjp(lambda a, b, *static, function=function: (function(a, b, *static), (a, b)), back)


_define_derivatives()


def _in_one_type(x: Any, kernel: Any) -> tuple[jax.Array, jax.Array]:
    kernel = keras.ops.convert_to_tensor(kernel)
    return keras.ops.convert_to_tensor(x, dtype=kernel.dtype), kernel


def _scope(variables: Sequence, values: Sequence) -> keras.StatelessScope:
    return _ClosedScope(variables, values, outer=get_stateless_scope())


def _listed(state: Sequence) -> list:
    """Variables that a loss may change: those given, and in a compiled step all of its list."""
    scope = get_stateless_scope()
    return _without(state, ()) + _without(getattr(scope, "variables", []), state)


def _without(variables: Sequence, excluded: Sequence) -> list:
    """`variables` in order, each once, without those of `excluded`."""
    seen = {id(variable) for variable in excluded}
    return [v for v in variables if not (id(v) in seen or seen.add(id(v)))]


def _values(variables: Sequence) -> list:
    return [variable.value for variable in variables]


def _assign(variables: Sequence, values: Sequence) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
