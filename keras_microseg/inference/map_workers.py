"""Blocks of a large map computed by `dask.distributed` workers, on this machine or on many with a common folder.

Every worker opens the model once, reads the image, writes its chunks and its own ledger; only block numbers travel. A
worker that dies loses nothing but its current task, which another one does again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from keras_microseg import backend
from keras_microseg.checks import MissingPackageError, UserError
from keras_microseg.inference.ledger import Block
from keras_microseg.inference.map_engine import MapEngine, MapPlan, Progress, Timings

_TASKS_PER_WORKER = 8
_MOST_BLOCKS = 32
_THREAD_LIMITS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_engines: dict[str, MapEngine] = {}


@contextlib.contextmanager
def connect(workers: int = 0, scheduler: str | None = None) -> Iterator[Any]:
    """A `dask.distributed.Client`: of a scheduler that runs somewhere, or of `workers` processes on this machine.

    Raises:
        MissingPackageError: dask is not installed.
        UserError: no scheduler answers, or it has no workers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise MissingPackageError("distributed", "Work on several processes", extra="search") from None
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="10s")
        except (OSError, ValueError) as error:
            raise UserError(f"scheduler={scheduler!r}: no dask scheduler answers there ({error}).") from error
        with client:
            if not client.scheduler_info(n_workers=-1)["workers"]:
                raise UserError(f"scheduler={scheduler!r} has no workers. Start some: dask worker {scheduler}")
            yield client
        return
    threads = str(threads_per_worker(workers))
    environment = {name: threads for name in _THREAD_LIMITS} | {"KERAS_BACKEND": backend.select()}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH", ""), *sys.path[:1]]))
    with (
        LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None,
            env=environment, silence_logs="ERROR",
        ) as cluster,
        Client(cluster) as client,
    ):  # fmt: skip
        yield client


def threads_per_worker(workers: int) -> int:
    """The processors of this machine shared out, at least one."""
    return max(1, len(os.sched_getaffinity(0)) // workers) if hasattr(os, "sched_getaffinity") else 1


def run_on_workers(
    plan: MapPlan, blocks: Sequence[Block], client: Any, *, progress: Progress | None = None
) -> list[Timings]:
    """Compute `blocks` on the workers of `client`; the timings of every task.

    Raises:
        FileError, UserError: what a worker could not do; tasks of a worker that died are done again, three times at
            most.
    """
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    count = max(1, len(client.scheduler_info(n_workers=-1)["workers"]))
    size = min(_MOST_BLOCKS, max(1, len(blocks) // (count * _TASKS_PER_WORKER)))
    parts = [list(blocks[i : i + size]) for i in range(0, len(blocks), size)]
    name = backend.select()
    # the plan goes with every task: data that were scattered would die with the worker that holds them
    futures = [client.submit(_work, plan, name, part, pure=False) for part in parts]
    sizes = dict(zip((future.key for future in futures), map(len, parts), strict=True))
    found, done = [], 0
    for future in as_completed(futures):
        try:
            found.append(future.result())
        except KilledWorker as error:
            client.cancel(futures)
            raise UserError(
                "Workers died again and again on the same task, for want of memory perhaps. Use fewer workers or a "
                "smaller --max-ram, then go on with --resume."
            ) from error
        except BaseException:
            client.cancel(futures)
            raise
        done += sizes[future.key]
        if progress is not None:
            progress(done, len(blocks))
    return found


def _work(plan: MapPlan, name: str, blocks: list[Block]) -> Timings:
    """In a worker: compute some blocks with the engine that this process keeps."""
    os.environ["KERAS_BACKEND"] = name
    key = repr((plan.store, plan.key, dataclasses.astuple(plan.normalizer)))
    if key not in _engines:
        _engines.clear()
        _engines[key] = MapEngine(plan)
    return _engines[key].run(blocks)
