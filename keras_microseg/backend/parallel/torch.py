"""Data parallel training on PyTorch: one process per device that exchange gradients (`torch.distributed`).

This is what `DistributedDataParallel` computes, without its wrapper, which hooks into `loss.backward()` and a forward
call of its own; Keras models have neither.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import keras
import torch
import torch.distributed as dist

from keras_microseg import backend
from keras_microseg.checks import UserError


def run(fn: Callable, devices: int, *args: Any) -> Any:
    """See `keras_microseg.backend.parallel`. The processes are new ones; errors of any of them are raised here."""
    gpus = torch.cuda.device_count()
    if 0 < gpus < devices:
        raise UserError(f"devices={devices}: PyTorch finds {gpus} GPUs. Ask for at most so many.")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="keras_microseg_") as folder:
        meeting = Path(folder) / "meeting"
        work = pickle.dumps((fn, args))
        processes, ends = [], []
        for index in range(devices):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(index, devices, str(meeting), work, there), daemon=False)
            process.start()
            there.close()
            processes.append(process)
            ends.append(here)
        try:
            return _collect(processes, ends)
        finally:
            for process in processes:
                if process.is_alive():
                    process.terminate()
                process.join()


def _collect(processes: list, ends: list) -> Any:
    """The result of process 0, or the first error."""
    waiting, result = dict(zip(ends, processes, strict=True)), None
    while waiting:
        for end in wait(list(waiting)):
            process = waiting.pop(end)
            try:
                kind, value = pickle.loads(end.recv_bytes())
            except EOFError:
                process.join()
                raise UserError(
                    f"A process of the training ended with exit code {process.exitcode}. See its messages above."
                ) from None
            if kind == "error":
                raise value
            if kind == "result":
                result = value
    return result


def _child(index: int, devices: int, meeting: str, work: bytes, end: Any) -> None:
    os.environ["KERAS_BACKEND"] = "torch"
    from keras.src.backend.torch import core

    from keras_microseg.backend import parallel

    try:
        on_gpu = torch.cuda.is_available()
        if on_gpu:
            torch.cuda.set_device(index)
            core.DEFAULT_DEVICE = f"cuda:{index}"
        else:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // devices))
        dist.init_process_group(
            "nccl" if on_gpu else "gloo", init_method=Path(meeting).as_uri(), rank=index, world_size=devices
        )
        parallel.join(devices)
        fn, args = pickle.loads(work)
        value = fn(index, *args)
        message = ("result", value) if index == 0 else ("done", None)
        dist.barrier()
    except BaseException as error:  # crosses a process border
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:  # whatever an error of another package does when it is pickled: its text gets across
            error = UserError(f"{type(error).__name__}: {error}")
        message = ("error", error)
    end.send_bytes(pickle.dumps(message))
    end.close()
    if dist.is_initialized():
        dist.destroy_process_group()


def value_and_grad(loss_fn: Callable, arrays: list, variables: list, state: list) -> tuple[Any, list]:
    """See `keras_microseg.backend.parallel`."""
    count, rank = dist.get_world_size(), dist.get_rank()
    share = [None if array is None else array.chunk(count)[rank] for array in arrays]
    value, gradients = backend.value_and_grad(lambda: loss_fn(*share), variables, state=state)
    values = value if isinstance(value, tuple) else (value,)
    moving = [variable.value for variable in state if "float" in variable.dtype]
    with torch.no_grad():
        loss = values[0].clone()
        _average([loss, *gradients, *moving], count)
        others = [keras.tree.map_structure(_gather, part) for part in values[1:]]
    return ((loss, *others) if len(values) > 1 else loss), gradients


def _average(tensors: list[torch.Tensor], count: int) -> None:
    """Replace tensors by their means over all processes, in one message."""
    flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in tensors])
    dist.all_reduce(flat)
    flat /= count
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].reshape(tensor.shape))
        start += tensor.numel()


def _gather(tensor: torch.Tensor) -> torch.Tensor:
    """The parts of all processes, joined along the batch."""
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
