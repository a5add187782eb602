"""Batches as an endless sequence that does not depend on where a training starts or on the number of threads."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from keras_microseg.checks import UserError


def batches(data: Any, start: int, stop: int, seed: int | None, workers: int) -> Iterator[tuple[int, tuple]]:
    """Batches number `start` to `stop` of the endless sequence of passes through `data`, prepared ahead in threads.

    Pass p holds the batches of `set_epoch(p)`, or those of `data` shuffled by (seed, p); unshuffled for seed None.

    Args:
        data: `len(data)`, `data[i]` (an array or a tuple of arrays; None among them is left out), `set_epoch(epoch)`
            where it has it.
        start, stop: numbers of batches, counted from the first one of pass 0.
        seed: see above.
        workers: threads; 0 = none.

    Yields:
        `(number, arrays)`: a tuple of float32 arrays; tensors of the backend stay as they are.
    """
    length = len(data)
    moves = hasattr(data, "set_epoch")
    for number in range(start // length, (stop - 1) // length + 1):
        indices = range(max(start - number * length, 0), min(stop - number * length, length))
        order = np.arange(length)
        if moves:
            data.set_epoch(0 if seed is None else number)
        elif seed is not None:
            order = np.random.default_rng([seed, number]).permutation(length)
        for i, batch in zip(indices, _ahead(data, [int(order[i]) for i in indices], workers), strict=True):
            yield number * length + i, _float32(batch)


def _ahead(data: Any, indices: list[int], workers: int) -> Iterator[Any]:
    """`data[i]` in order, up to `workers` + 1 batches ahead of the consumer."""
    if workers < 1:
        yield from (data[i] for i in indices)
        return
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(data.__getitem__, i) for i in indices[: workers + 1]]
        try:
            for following in range(workers + 1, len(indices) + workers + 1):
                batch = waiting.pop(0).result()
                if following < len(indices):
                    waiting.append(pool.submit(data.__getitem__, indices[following]))
                yield batch
                if not waiting:
                    return
        finally:
            for future in waiting:
                future.cancel()


def _float32(batch: Any) -> tuple[Any, ...]:
    if isinstance(batch, np.ndarray) or keras.ops.is_tensor(batch):
        batch = (batch,)
    if not isinstance(batch, (tuple, list)):
        raise UserError(f"A batch must be an array or a tuple of arrays. Received: {type(batch).__name__}")
    return tuple(
        array if keras.ops.is_tensor(array) else np.asarray(array, np.float32) for array in batch if array is not None
    )
