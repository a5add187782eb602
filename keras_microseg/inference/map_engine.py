"""The engine of large class maps: blocks of tiles read ahead, put through the network in full batches, written behind.

A block is a square of tiles and one chunk of the output. All tiles come from one grid over the whole image, so a block
computed by itself equals that part of the whole, whoever computes it and in which order. Finished blocks stand in a
ledger; memory holds a few blocks, whatever the size of the image.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from keras_microseg.checks import UserError
from keras_microseg.image import LazyArray
from keras_microseg.inference.ledger import Block, Ledger
from keras_microseg.inference.map_network import Answer, open_network, to_bytes
from keras_microseg.inference.prediction import contribution
from keras_microseg.inference.views import AreaView, ScaledView
from keras_microseg.intensity import Normalizer
from keras_microseg.io.map_store import CLASSES, CONFIDENCE, GREY, PROBABILITIES, MapStore
from keras_microseg.io.palettes import IGNORE
from keras_microseg.tiling import Tile, TileGrid, read_tile

logger = logging.getLogger(__name__)

RETRIES = 3
_PAUSE = 0.2
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class MapPlan:
    """All that a process needs to compute blocks of a map; pickles.

    Attributes:
        image: (H, W) or (H, W, c) lazy array.
        factor: pixels of the image per pixel of the map, along an edge.
        shape: (y, x) of the map.
        tile, halo, multiple_of: of the grid, px of the map.
        block: tiles along an edge of a block.
        model: path of the `.keras` file.
        normalizer: scaling of grey values.
        store, ledger: folders.
        key: of the ledger.
        blend: None, "linear", "hann" or "gaussian".
        flips: 0, 4 or 8 mirrored copies.
        batch_size: tiles per call of the network.
        confidence, probabilities: write them too.
        device, threads: of the network.
    """

    image: Any
    factor: float
    shape: tuple[int, int]
    tile: tuple[int, int]
    halo: tuple[int, int]
    multiple_of: int
    block: int
    model: str
    normalizer: Normalizer
    store: str
    ledger: str
    key: dict[str, Any]
    blend: str | None = None
    flips: int = 0
    batch_size: int = 4
    confidence: bool = False
    probabilities: bool = False
    device: str | None = None
    threads: int | None = None

    @property
    def grid(self) -> TileGrid:
        return TileGrid.cover(self.shape, self.tile, self.halo, self.multiple_of)

    @property
    def view(self) -> Any:
        """The image at the scale of the map."""
        return scaled_view(self.image, self.factor)

    @property
    def counts(self) -> tuple[int, int]:
        """Blocks along y and x."""
        return tuple(-(-n // self.block) for n in self.grid.counts)  # type: ignore[return-value]

    def blocks(self) -> list[Block]:
        """All blocks, row by row."""
        return list(itertools.product(*map(range, self.counts)))


@dataclasses.dataclass
class Timings:
    """Where the time of a run went, seconds; `reading` and `writing` happen beside the network.

    Attributes:
        network: inside the network's calls, the first of which compiles.
        first: of the first call.
        waiting: the network waited for tiles.
        reading, writing: of the other threads.
        total: from the first tile to the last byte.
        tiles, pixels: computed; pixels of the map.
    """

    network: float = 0.0
    first: float = 0.0
    waiting: float = 0.0
    reading: float = 0.0
    writing: float = 0.0
    total: float = 0.0
    tiles: int = 0
    pixels: int = 0

    @property
    def overhead(self) -> float:
        """Everything but the network, over the network's time."""
        return (self.total - self.network) / max(self.network, 1e-9)

    def add(self, other: Timings) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


@dataclasses.dataclass
class _Work:
    """A block on its way: its grey values, its tiles, what is known of it."""

    block: Block
    place: tuple[slice, slice]
    tiles: list[Tile]
    pixels: list[np.ndarray | None]
    grey: np.ndarray
    problems: list[str]
    out: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    left: int = 0


class MapEngine:
    """Computes blocks of one plan; loads the network once.

    Args:
        plan: what to compute.
    """

    def __init__(self, plan: MapPlan):
        self.plan, self.grid, self.view = plan, plan.grid, plan.view
        self.network = open_network(
            plan.model, plan.normalizer, plan.tile, flips=plan.flips, confidence=plan.confidence,
            probabilities=plan.probabilities, blend=plan.blend is not None, uint8=self.view.dtype == np.uint8,
            device=plan.device, threads=plan.threads,
        )  # fmt: skip
        self.names = list(self.network.card["outputs"])

    def run(self, blocks: Sequence[Block], *, progress: Progress | None = None) -> Timings:
        """Compute `blocks` and note them in the ledger.

        A part of the image that cannot be read, after `RETRIES` more tries, is `IGNORE` in the map, its block is noted
        as failed, and the others go on.

        Raises:
            FileError: the output cannot be written (a full disk); what was finished stays.
        """
        times, start = Timings(), time.perf_counter()
        store = MapStore(self.plan.store, "r+")
        ledger = Ledger(self.plan.ledger, self.plan.key)
        stop = threading.Event()
        read: queue.Queue[Any] = queue.Queue(maxsize=2)
        done: queue.Queue[Any] = queue.Queue(maxsize=2)
        errors: list[BaseException] = []
        reader = threading.Thread(target=self._read, args=(blocks, read, stop, times), daemon=True)
        writer = threading.Thread(
            target=self._write, args=(store, ledger, done, stop, errors, times, len(blocks), progress), daemon=True
        )
        reader.start()
        writer.start()
        try:
            with contextlib.suppress(_Stopped):
                self._compute(read, done, stop, times)
                _put(done, None, stop)
            writer.join()
        finally:
            stop.set()
            reader.join()
            writer.join()
            ledger.close()
        if errors:
            raise errors[0]
        times.total = time.perf_counter() - start
        return times

    def predict_at(self, origin: tuple[int, int]) -> np.ndarray:
        """(h, w) uint8 classes of the tile-sized block that begins at `origin`, inside the map."""
        place = tuple(slice(o, o + t) for o, t in zip(origin, self.plan.tile, strict=True))
        tile = np.asarray(self.view[place])
        answer = self.network(np.stack([tile] * self.plan.batch_size))
        return answer.classes[0] if answer.maps is None else answer.maps[0].argmax(axis=-1).astype(np.uint8)

    # Reading

    def _read(self, blocks: Iterable[Block], read: queue.Queue, stop: threading.Event, times: Timings) -> None:
        try:
            for block in blocks:
                start = time.perf_counter()
                work = self._read_block(block)
                times.reading += time.perf_counter() - start
                if not _put(read, work, stop):
                    return
            _put(read, None, stop)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            _put(read, error, stop)

    def _read_block(self, block: Block) -> _Work:
        place, tiles = self.place(block), self._tiles_of(block)
        spans = [(min(t.read[a].start for t in tiles), max(t.read[a].stop for t in tiles)) for a in (0, 1)]
        region = tuple(slice(*span) for span in spans)
        problems: list[str] = []
        try:
            window = _Window(_insist(lambda: np.asarray(self.view[region])), region, self.view.shape)
            pixels: list[np.ndarray | None] = [read_tile(window, tile) for tile in tiles]
            grey = window[place]
        except Exception as error:  # noqa: BLE001 - decoders raise anything; what can be read is still used
            problems.append(str(error))
            pixels = []
            grey = np.zeros([p.stop - p.start for p in place] + list(self.view.shape[2:]), self.view.dtype)
            for tile in tiles:
                try:
                    pixels.append(read_tile(self.view, tile))
                    inside = _overlap(tile.write, place)
                    if inside is not None:
                        grey[_within(inside, place)] = pixels[-1][_within(inside, tile.origin)]
                except Exception:  # noqa: BLE001
                    pixels.append(None)
            logger.warning("Block %s: %s", block, problems[0])
        return _Work(block, place, tiles, pixels, grey, problems, left=len(tiles))

    def place(self, block: Block) -> tuple[slice, slice]:
        """Pixels of the map that belong to a block."""
        edges = (self.plan.block * s for s in self.grid.stride)
        return tuple(
            slice(i * edge, min((i + 1) * edge, n)) for i, edge, n in zip(block, edges, self.plan.shape, strict=True)
        )  # type: ignore[return-value]

    def _tiles_of(self, block: Block) -> list[Tile]:
        """Tiles that the block owns; blended, also those of others that reach into it."""
        k, place = self.plan.block, self.place(block)
        reach = 0 if self.plan.blend is None else max(
            -(-t // s) for t, s in zip(self.plan.tile, self.grid.stride, strict=True)
        )  # fmt: skip
        ranges = [
            range(max(0, i * k - reach), min(count, (i + 1) * k + reach))
            for i, count in zip(block, self.grid.counts, strict=True)
        ]
        tiles = [self.grid[index] for index in itertools.product(*ranges)]
        if self.plan.blend is None:
            return tiles
        return [t for t in tiles if _overlap(contribution(self.grid, t, self.plan.blend)[0], place) is not None]

    # The network

    def _compute(self, read: queue.Queue, done: queue.Queue, stop: threading.Event, times: Timings) -> None:
        waiting: list[tuple[_Work, int]] = []  # tiles, in order, of which a batch is made
        ended = False
        while not ended or waiting:
            while not ended and len(waiting) < self.plan.batch_size:
                start = time.perf_counter()
                work = _get(read, stop)
                times.waiting += time.perf_counter() - start
                if isinstance(work, BaseException):
                    raise work
                if work is None:
                    ended = True
                    break
                self._begin(work)
                readable = [(work, i) for i, pixels in enumerate(work.pixels) if pixels is not None]
                work.left = len(readable)
                waiting += readable
                if not readable:
                    self._finish(work, done, stop)
            batch, waiting = waiting[: self.plan.batch_size], waiting[self.plan.batch_size :]
            if not batch:
                continue
            blocks = [work.pixels[i] for work, i in batch]
            blocks += [blocks[-1]] * (self.plan.batch_size - len(blocks))  # one compiled shape
            start = time.perf_counter()
            answer = self.network(np.stack(blocks))
            spent = time.perf_counter() - start
            times.network += spent
            times.first = times.first or spent
            times.tiles += len(batch)
            for number, (work, i) in enumerate(batch):
                self._take(work, work.tiles[i], answer, number)
                work.pixels[i] = None
                work.left -= 1
                if not work.left:
                    self._finish(work, done, stop)

    def _begin(self, work: _Work) -> None:
        shape = tuple(part.stop - part.start for part in work.place)
        if self.plan.blend is not None:
            work.out["sums"] = np.zeros((*shape, len(self.names)), np.float32)
            work.out["weights"] = np.zeros(shape, np.float32)
            return
        work.out[CLASSES] = np.full(shape, IGNORE, np.uint8)
        if self.plan.confidence:
            work.out[CONFIDENCE] = np.zeros(shape, np.uint8)
        if self.plan.probabilities:
            work.out[PROBABILITIES] = np.zeros((len(self.names), *shape), np.uint8)

    def _take(self, work: _Work, tile: Tile, answer: Answer, number: int) -> None:
        if self.plan.blend is not None:
            region, weights = contribution(self.grid, tile, self.plan.blend)
            inside = _overlap(region, work.place)
            weights = weights[_within(inside, region)]
            target = _within(inside, work.place)
            maps = answer.maps[number][_within(inside, tile.origin)]
            work.out["sums"][target] += weights[..., np.newaxis] * maps
            work.out["weights"][target] += weights
            return
        target = _within(tile.write, work.place)
        work.out[CLASSES][target] = answer.classes[number][tile.crop]
        if self.plan.confidence:
            work.out[CONFIDENCE][target] = answer.confidence[number][tile.crop]
        if self.plan.probabilities:
            work.out[PROBABILITIES][(slice(None), *target)] = np.moveaxis(
                answer.probabilities[number][tile.crop], -1, 0
            )

    def _finish(self, work: _Work, done: queue.Queue, stop: threading.Event) -> None:
        if not _put(done, work, stop):
            raise _Stopped

    # Writing

    def _write(
        self,
        store: MapStore,
        ledger: Ledger,
        done: queue.Queue,
        stop: threading.Event,
        errors: list[BaseException],
        times: Timings,
        total: int,
        progress: Progress | None,
    ) -> None:
        from keras_microseg import io

        count, arrays = 0, {name: store.array(name) for name in store.names()}
        try:
            while (work := _get(done, stop)) is not None:
                if isinstance(work, _Stopped):
                    return
                start = time.perf_counter()
                out = self._settle(work)
                with io.write_errors(store.path):
                    arrays[GREY][work.place] = work.grey if work.grey.ndim == 2 else work.grey[..., 0]
                    for name, values in out.items():
                        lead = (slice(None),) if name == PROBABILITIES else ()
                        arrays[name][(*lead, *work.place)] = values
                facts = {"status": "failed", "problem": work.problems[0]} if work.problems else {"status": "done"}
                ledger.append(work.block, **facts)
                times.pixels += math.prod(part.stop - part.start for part in work.place)
                times.writing += time.perf_counter() - start
                count += 1
                if progress is not None:
                    progress(count, total)
        except BaseException as error:  # noqa: BLE001 - it is raised again in the thread that waits
            errors.append(error)
            stop.set()

    def _settle(self, work: _Work) -> dict[str, np.ndarray]:
        """The arrays to write: those of the tiles, or what the sums of blended tiles say."""
        if self.plan.blend is None:
            return work.out
        sums, weights = work.out["sums"], work.out["weights"]
        known = weights > 0
        sums /= np.where(known, weights, 1)[..., np.newaxis]
        out = {CLASSES: np.where(known, sums.argmax(axis=-1), IGNORE).astype(np.uint8)}
        if self.plan.confidence:
            out[CONFIDENCE] = to_bytes(sums.max(axis=-1))
        if self.plan.probabilities:
            out[PROBABILITIES] = np.moveaxis(to_bytes(sums), -1, 0)
        return out


class _Stopped(Exception):
    """Another thread failed; its error is the one to tell."""


class _Window(LazyArray):
    """A part of an array that answers with the places of the whole."""

    def __init__(self, values: np.ndarray, region: tuple[slice, ...], shape: Sequence[int]):
        self.values, self.region = values, region
        self.shape, self.dtype = tuple(shape), values.dtype

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return self.values[(*_within(block[:2], self.region), *block[2:])]


def scaled_view(image: Any, factor: float) -> Any:
    """`image` at a working scale: itself, reduced by area averages, or enlarged by linear interpolation."""
    if abs(factor - 1) < 1e-6:
        return image
    if factor > 1:
        return AreaView(image, factor)
    if len(image.shape) > 2:
        raise UserError("Images of several channels cannot be enlarged. Use their own pixel size.")
    return ScaledView(image, 1 / factor)


def _insist(read: Callable[[], np.ndarray]) -> np.ndarray:
    """`read()`, tried again after a pause when it fails: network disks recover."""
    for attempt in range(RETRIES + 1):
        try:
            return read()
        except Exception:  # noqa: BLE001
            if attempt == RETRIES:
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _overlap(one: Sequence[slice], other: Sequence[slice]) -> tuple[slice, ...] | None:
    parts = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(one, other, strict=True)]
    return tuple(parts) if all(part.start < part.stop for part in parts) else None


def _within(region: Sequence[slice], base: Sequence[Any]) -> tuple[slice, ...]:
    """`region` counted from the first pixel of `base` (slices or positions)."""
    starts = [part.start if isinstance(part, slice) else part for part in base]
    return tuple(slice(r.start - s, r.stop - s) for r, s in zip(region, starts, strict=True))


def _put(target: queue.Queue, item: Any, stop: threading.Event) -> bool:
    """Put `item`, unless another thread gave up meanwhile."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            target.put(item, timeout=0.2)
            return True
    return False


def _get(source: queue.Queue, stop: threading.Event) -> Any:
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            return source.get(timeout=0.2)
    return _Stopped()


def split_shards(blocks: Sequence[Block], shard: tuple[int, int] | None) -> Iterator[Block]:
    """The blocks of shard `(i, n)`, 1 <= i <= n: an unbroken part; None = all."""
    number, count = shard or (1, 1)
    yield from blocks[(number - 1) * len(blocks) // count : number * len(blocks) // count]
