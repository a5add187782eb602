"""The port on PyTorch. `keras_microseg.backend` documents the names."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import torch
from keras.src.backend.torch import core

from keras_microseg.checks import UserError, check_choice, check_number

logger = logging.getLogger(__name__)

COPIES_LAYOUT = True
conv = None
conv_transpose = None
_LARGE_MAP = 4096
_CACHED = 2**16


def configure_device(*, device: str | None = None, threads: int | None = None, deterministic: bool = False) -> str:
    """Set device, CPU threads and kernels; see `keras_microseg.backend`."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    if device is not None:
        check_choice("device", device, ("cpu", "gpu"))
        if device == "gpu" and not torch.cuda.is_available():
            raise UserError("device='gpu': PyTorch finds no GPU. Use device='cpu', or install a build with CUDA.")
        core.DEFAULT_DEVICE = {"cpu": "cpu", "gpu": "cuda"}[device]  # keras reads KERAS_TORCH_DEVICE only at its import
    if threads is not None:
        torch.set_num_threads(check_number("threads", threads, minimum=1, integer=True))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid, one more kernel per tensor
    if device != "cpu" and torch.cuda.is_available():
        return f"GPU {torch.cuda.get_device_name()}"
    return f"CPU, {torch.get_num_threads()} threads"


def value_and_grad(loss_fn: Callable[[], Any], variables: Sequence, state: Sequence = ()) -> tuple[Any, list]:
    """Value of `loss_fn()` and the gradients of its loss; see `keras_microseg.backend`."""
    value = loss_fn()
    loss = value[0] if isinstance(value, tuple) else value
    tensors = [variable.value for variable in variables]
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True)
    gradients = [torch.zeros_like(t) if g is None else g for t, g in zip(tensors, gradients, strict=True)]
    return _detach(value), gradients


def apply_gradients(optimizer: keras.optimizers.Optimizer, gradients: Sequence, variables: Sequence) -> None:
    """One optimizer update; see `keras_microseg.backend`."""
    with torch.no_grad():
        optimizer.apply(list(gradients), list(variables))


def input_gradient(fn: Callable, x: Any) -> torch.Tensor:
    """Differentiable d sum(fn(x)) / dx; see `keras_microseg.backend`."""
    x = keras.ops.convert_to_tensor(x).detach().requires_grad_(True)
    with torch.enable_grad():
        return torch.autograd.grad(fn(x).sum(), x, create_graph=True)[0]


def compile_step(fn: Callable, variables: Sequence, *, gradients: bool = True) -> Callable:
    """`fn` on tensors, its outputs cut off from the graph; see `keras_microseg.backend`."""
    _arrange_kernels(variables)

    def step(*arrays: Any) -> Any:
        with torch.set_grad_enabled(gradients):
            return _detach(fn(*(keras.ops.convert_to_tensor(array) for array in arrays)))

    return step


def compile_predict(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """NumPy-to-NumPy inference without a graph; see `keras_microseg.backend`."""
    forward = make_forward(model)

    def predict(array: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            outputs = forward(keras.ops.convert_to_tensor(array), training=False)
        return keras.tree.map_structure(lambda tensor: tensor.cpu().numpy(), outputs)

    return predict


def get_random_state() -> np.ndarray:
    """State of the global generators, which unseeded Keras layers draw from; see `keras_microseg.backend`."""
    states = [torch.get_rng_state()] + ([torch.cuda.get_rng_state()] if torch.cuda.is_available() else [])
    return torch.cat(states).numpy()


def set_random_state(state: int | np.ndarray) -> None:
    """Seed the global generators or restore their state; see `keras_microseg.backend`."""
    if isinstance(state, int):
        torch.manual_seed(state)
        return
    size = len(torch.get_rng_state())
    torch.set_rng_state(torch.from_numpy(np.array(state[:size])))
    if torch.cuda.is_available() and len(state) > size:
        torch.cuda.set_rng_state(torch.from_numpy(np.array(state[size:])))


def fused_batch_norm(
    x: torch.Tensor, gamma: Any, beta: Any, epsilon: float, mean: Any = None, variance: Any = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalize (..., C) in one kernel; see `keras_microseg.backend`.

    The kernel keeps its statistics in float32 also for float16 and bfloat16 inputs. It reports those of the batch as
    running statistics of momentum 1, whose variance is the unbiased one: n / (n - 1) times what Keras keeps.

    On CPUs it adds up all values of a channel one by one: over a micrograph of 1024 x 704 pixels the variance is wrong
    by 3e-4 of itself. There, the statistics of large float32 maps are taken by PyTorch's pairwise sums in two passes
    (1e-7), and the kernel only applies them.
    """
    channels = x.shape[-1]
    training = mean is None
    exact = torch.promote_types(x.dtype, torch.float32) == x.dtype
    if training and exact and x.device.type == "cpu" and x.numel() > _LARGE_MAP * channels:
        return _LargeMapNorm.apply(x, _tensor(gamma), _tensor(beta), epsilon)
    kind = torch.promote_types(x.dtype, torch.float32)
    mean = torch.zeros(channels, dtype=kind, device=x.device) if training else _tensor(mean)
    variance = torch.zeros_like(mean) if training else _tensor(variance)
    y = torch.nn.functional.batch_norm(
        x.movedim(-1, 1), mean, variance, _tensor(gamma), _tensor(beta), training, momentum=1.0, eps=epsilon
    )
    if training:
        count = x.numel() // channels
        variance = variance * ((count - 1) / count)
    return y.movedim(1, -1), mean, variance


class _LargeMapNorm(torch.autograd.Function):
    """`fused_batch_norm` by statistics that do not suffer from the size of the map."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, gamma: Any, beta: Any, epsilon: float) -> tuple[torch.Tensor, ...]:
        values = x.reshape(-1, x.shape[-1])
        mean, squares = values.mean(0), torch.zeros(x.shape[-1], dtype=x.dtype)
        for part in values.split(max(_CACHED // x.shape[-1], 1)):  # one copy of the whole map would cost more
            squares += (part - mean).square_().sum(0)
        variance = squares / len(values)
        y = torch.nn.functional.batch_norm(x.movedim(-1, 1), mean, variance, gamma, beta, False, eps=epsilon)
        ctx.save_for_backward(x, gamma, beta, mean, variance)
        ctx.epsilon = epsilon
        ctx.mark_non_differentiable(mean, variance)
        return y.movedim(1, -1), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor, *_: Any) -> tuple[Any, ...]:
        x, gamma, beta, mean, variance = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # the gradient shall be differentiated again
            axes = tuple(range(x.ndim - 1))
            centred = x - x.mean(axes)
            y = centred * torch.rsqrt(centred.square().mean(axes) + ctx.epsilon)
            y = y if gamma is None else y * gamma
            y = y if beta is None else y + beta
            sources = [tensor for tensor, is_wanted in zip((x, gamma, beta), wanted, strict=True) if is_wanted]
            found = iter(torch.autograd.grad(y, sources, gradient, create_graph=True))
            return *(next(found) if is_wanted else None for is_wanted in wanted), None
        gradients = torch.ops.aten.native_batch_norm_backward(
            gradient.movedim(-1, 1), x.movedim(-1, 1), gamma, None, None, mean,
            torch.rsqrt(variance + ctx.epsilon), True, ctx.epsilon, list(wanted),
        )  # fmt: skip
        return None if gradients[0] is None else gradients[0].movedim(1, -1), *gradients[1:], None


def pad_reflect(x: torch.Tensor, heights: tuple[int, int], widths: tuple[int, int]) -> torch.Tensor:
    """Mirror borders; see `keras_microseg.backend`.

    PyTorch's kernel is the fastest, but adds up its gradients on GPUs in any order; there, joined slices are used.
    """
    x = x.movedim(-1, 1)
    if x.device.type == "cpu":
        return torch.nn.functional.pad(x, (*widths, *heights), mode="reflect").movedim(1, -1)
    return join_reflection(x, heights, widths).movedim(1, -1)


def join_reflection(x: torch.Tensor, heights: tuple[int, int], widths: tuple[int, int]) -> torch.Tensor:
    """(N, C, H, W) with mirrored borders, from slices."""
    for axis, (before, after) in ((2, heights), (3, widths)):
        size = x.shape[axis]
        parts = [x.narrow(axis, 1, before).flip(axis)] if before else []
        parts.append(x)
        parts += [x.narrow(axis, size - 1 - after, after).flip(axis)] if after else []
        x = torch.cat(parts, axis)
    return x


def upsample_nearest(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Repeat pixels; see `keras_microseg.backend`."""
    factors = [float(factor) for factor in size]
    return torch.nn.functional.interpolate(x.movedim(-1, 1), scale_factor=factors, mode="nearest").movedim(1, -1)


def make_forward(model: keras.Model) -> Callable[..., Any]:
    """`model` that frees each feature map after its last use; see `keras_microseg.backend`.

    Keras keeps all of them to the end of the call. For functional models of one input; others run as Keras does.
    """
    nodes = getattr(model, "_nodes_by_depth", None)
    inputs, outputs = (getattr(model, name, None) for name in ("_inputs_struct", "_outputs_struct"))
    sources, results = keras.tree.flatten(inputs), keras.tree.flatten(outputs)
    adds_loss = any(getattr(layer, "activity_regularizer", None) is not None for layer in model._flatten_layers())
    if nodes is None or isinstance(inputs, dict) or len(sources) != 1 or adds_loss:
        return lambda x, *, training: model(x, training=training)
    (source,), kept = sources, {id(tensor) for tensor in results}
    plan, known, last_use = [], {id(source)}, {}
    for node in (node for depth in sorted(nodes, reverse=True) for node in nodes[depth]):
        if node.operation and not node.is_input and all(id(tensor) in known for tensor in node.input_tensors):
            last_use.update({id(tensor): len(plan) for tensor in node.input_tensors if id(tensor) not in kept})
            known.update(id(tensor) for tensor in node.outputs)
            plan.append((node, [id(tensor) for tensor in node.outputs]))
    finished = [[key for key, use in last_use.items() if use == i] for i in range(len(plan))]

    def forward(x: torch.Tensor, *, training: bool) -> Any:
        values = {id(source): x}
        del x
        for (node, names), keys in zip(plan, finished, strict=True):
            arguments, options = node.arguments.fill_in(values)
            if "training" in getattr(node.operation, "_call_context_args", {}):
                options["training"] = training
            values.update(zip(names, keras.tree.flatten(node.operation(*arguments, **options)), strict=True))
            del arguments, options
            for key in keys:
                del values[key]
        return keras.tree.map_structure(lambda tensor: values[id(tensor)], outputs)

    return forward


def _arrange_kernels(variables: Sequence) -> None:
    """Keep kernels, and the optimizer's copies of their shape, in the memory order that convolutions want.

    Keras' (*size, in, out) becomes (out, in, *size) by a view; were its memory not ordered for that, every call would
    copy the kernel, which costs as much as the convolution where maps are small and channels are many.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for variable in variables:
        tensor = variable.value
        if tensor.ndim in formats and tensor.is_floating_point():
            size = range(tensor.ndim - 2)
            first = tensor.data.permute(tensor.ndim - 1, tensor.ndim - 2, *size)
            arranged = first.contiguous(memory_format=formats[tensor.ndim])
            tensor.data = arranged.permute(*(2 + i for i in size), 1, 0)


def _tensor(value: Any) -> Any:
    return value.value if isinstance(value, keras.Variable) else value


def _detach(value: Any) -> Any:
    return keras.tree.map_structure(lambda v: v.detach() if isinstance(v, torch.Tensor) else v, value)
