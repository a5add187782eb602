"""Workflow `mineral simulate`: a synthetic micrograph of any size with its true classes, made chunk by chunk."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
from pathlib import Path

from keras_microseg import io
from keras_microseg.checks import FileError
from keras_microseg.image import PixelSize
from keras_microseg.inference.ledger import Block, Ledger
from keras_microseg.io.map_store import CLASSES, GREY, MapStore
from keras_microseg.simulation import Rock, RockSettings
from keras_microseg.simulation.rock_files import rock_palette
from keras_microseg.workflows.steps import Progress, plain

CHUNK = 1024


def simulate(
    settings: RockSettings,
    out: str | os.PathLike,
    *,
    pixel_size: str = "0.3um",
    workers: int = 1,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> MapStore:
    """Write the micrograph as OME-Zarr and its true classes as its label image.

    Any window of a simulated rock is made by itself, so memory holds one chunk per process.

    Args:
        settings: of the rock; `shape` is the size.
        out: folder, ending in `.zarr`. Beside it, `NAME.ledger` lists the finished chunks while it grows.
        pixel_size: edge of a pixel.
        workers: processes.
        resume: go on with an interrupted simulation.
        overwrite: replace what is there.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        FileError: another name, something is there already, a ledger of other settings, or a full disk.
    """
    import shutil

    out, size = Path(out), PixelSize.parse(pixel_size)
    if out.suffix != ".zarr":
        raise FileError(out, "is no name for a micrograph in chunks.", "Let it end in .zarr.")
    notes = out.with_name(out.name + ".ledger")
    if overwrite:
        for path in (out, notes):
            shutil.rmtree(path, ignore_errors=True)
    if out.exists() and not (resume and io.is_zarr(out)):
        raise FileError(out, "is there already.", "Go on with --resume, or replace it with --overwrite.")
    key = {"rock": plain(settings), "pixel_size": pixel_size, "chunk": CHUNK}
    if out.exists() and not notes.exists():
        return MapStore(out)  # finished
    ledger = Ledger(notes, key)
    store = MapStore.create(out, settings.shape, [min(CHUNK, n) for n in settings.shape])
    counts = [math.ceil(n / CHUNK) for n in settings.shape]
    done = ledger.records()
    blocks = [(y, x) for y in range(counts[0]) for x in range(counts[1]) if (y, x) not in done]
    arguments = (settings, str(out), str(notes), key)
    if workers > 1 and len(blocks) > 1:
        context = multiprocessing.get_context("spawn")
        with context.Pool(workers, _begin, arguments) as pool:
            for count, _ in enumerate(pool.imap_unordered(_make, blocks, chunksize=4), start=1):
                if progress is not None:
                    progress("simulate", count, len(blocks), out.name)
    else:
        _begin(*arguments)
        for count, block in enumerate(blocks, start=1):
            _make(block)
            if progress is not None:
                progress("simulate", count, len(blocks), out.name)
    for name in (GREY, CLASSES):
        for count, total in store.build_levels(name):
            if progress is not None:
                progress("levels", count, total, out.name)
    store.describe(rock_palette(), size, {"rock": plain(dataclasses.asdict(settings))}, name="simulated rock")
    shutil.rmtree(notes)
    return store


_state: dict[str, object] = {}


def _begin(settings: RockSettings, out: str, notes: str, key: dict) -> None:
    _state.update(rock=Rock(settings), store=MapStore(out, "r+"), ledger=Ledger(notes, key))


def _make(block: Block) -> Block:
    rock, store, ledger = _state["rock"], _state["store"], _state["ledger"]
    shape = rock.settings.shape
    place = tuple(slice(i * CHUNK, min((i + 1) * CHUNK, n)) for i, n in zip(block, shape, strict=True))
    grey, classes = rock.both(place)
    with io.write_errors(store.path):
        store.array(GREY)[place] = grey
        store.array(CLASSES)[place] = classes
    ledger.append(block, status="done")
    return block
