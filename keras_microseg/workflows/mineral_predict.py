"""Workflow `mineral predict`: micrographs of any size to class maps, in bounded memory, by one process or many."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number, format_bytes, parse_bytes
from keras_microseg.image import Image, PixelSize
from keras_microseg.inference.prediction import BLENDINGS
from keras_microseg.io.class_tiff import write_class_tiff
from keras_microseg.io.map_store import CLASSES, CONFIDENCE, GREY, MapStore
from keras_microseg.io.micrographs import open_micrograph
from keras_microseg.io.palettes import IGNORE, Mineral, Palette, write_palette
from keras_microseg.io.raw_volumes import DATA_SUFFIXES
from keras_microseg.io.sources import DecodedFile
from keras_microseg.tiling import TileGrid
from keras_microseg.workflows.failures import Failure, describe, disk_full_error, is_disk_full
from keras_microseg.workflows.steps import Progress, file_hash, item_names, plain, read_json, run_facts, write_json

logger = logging.getLogger(__name__)

STORE, TIFF, FACTS, LEDGER = "map.ome.zarr", "classes.ome.tif", "map.json", "ledger"
_LOCK = "finishing.lock"
_TILE = 512
_BASE, _BYTES_PER_PIXEL, _BLOCKS_HELD = 800 * 10**6, 600, 7
_COLOURS = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
            (204, 121, 167), (153, 153, 153), (120, 60, 20))  # fmt: skip


@dataclasses.dataclass(frozen=True)
class MapSettings:
    """What to map and how.

    Attributes:
        images: files, folders or patterns.
        model: `.keras` file of `mineral train`.
        working_pixel_size: edge of a pixel at which the network works and of the map, like "1um", or "3px" for three
            pixels of the image, or "native"; None = that of the training images where it is known, else native.
        pixel_size: of the images, like "0.3um", instead of what their headers say; "px" = unknown on purpose.
        tile: edge of the blocks the network sees, px of the map; None = about 512, shared out evenly.
        overlap: of neighbouring tiles, px; None = twice the halo that the model asks for.
        blend: "none": tiles keep their middle; "linear", "hann", "gaussian": weighted means where they overlap.
        flips: average over 4 mirrored copies, or 8 with turns; 0 = none.
        confidence: also write the probability of the class of every pixel.
        probabilities: also write the probability of every class.
        tiff: write `classes.ome.tif` too.
        batch_size: tiles per call of the network.
        chunk: about the edge of the output's chunks, the pieces that a stopped run keeps or does again, px; None = 1024
            where the memory allows.
        max_ram: memory of one process.
        workers: processes on this machine; 0 = this one alone.
        scheduler: address of a `dask.distributed` scheduler whose workers compute, instead.
        shard: (i, n): compute the i-th of n parts only, for job arrays; the last to finish completes the map.
        device, threads: see `backend.configure_device`.
    """

    images: tuple[str, ...]
    model: str
    working_pixel_size: str | None = None
    pixel_size: str | None = None
    tile: int | None = None
    overlap: int | None = None
    blend: str = "none"
    flips: int = 0
    confidence: bool = False
    probabilities: bool = False
    tiff: bool = True
    batch_size: int = 4
    chunk: int | None = None
    max_ram: str = "2GB"
    workers: int = 0
    scheduler: str | None = None
    shard: tuple[int, int] | None = None
    device: str | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        images = (self.images,) if isinstance(self.images, (str, os.PathLike)) else self.images
        object.__setattr__(self, "images", tuple(str(path) for path in images))
        check_choice("blend", self.blend, ("none", *BLENDINGS))
        check_choice("flips", self.flips, (0, 4, 8))
        check_number("batch_size", self.batch_size, minimum=1, integer=True)
        check_number("workers", self.workers, minimum=0, integer=True)
        for name, least in (("tile", 16), ("overlap", 0), ("chunk", 16)):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=least, integer=True)
        if parse_bytes(self.max_ram) < 1.2 * _BASE:
            raise UserError(f"`max_ram` must be 1GB or more, most of it for the framework. Received: {self.max_ram!r}")
        if self.shard is not None and not 1 <= self.shard[0] <= self.shard[1]:
            raise UserError(f"`shard` must be i/n with 1 <= i <= n. Received: {self.shard[0]}/{self.shard[1]}")


@dataclasses.dataclass(frozen=True)
class MapResult:
    """One map.

    Attributes:
        folder: holds `map.ome.zarr`, `classes.ome.tif`, `map.json`.
        complete: False while other shards still work.
        facts: what `map.json` says (empty while incomplete).
    """

    folder: Path
    complete: bool
    facts: dict[str, Any]

    @property
    def failed_blocks(self) -> list[Any]:
        return self.facts.get("failed_blocks", [])


@dataclasses.dataclass(frozen=True)
class Maps:
    """Outcome of `predict`: the maps, and the images that could not be mapped."""

    results: list[MapResult]
    failures: list[Failure]


def predict(
    settings: MapSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Maps:
    """Class maps of one image, into `out`, or of several, each into a folder of `out`.

    Args:
        settings: see `MapSettings`.
        out: folder.
        resume: go on with an interrupted run of the same settings; finished blocks are kept, failed ones tried again.
        overwrite: remove an earlier map first.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        FileError: no such image or model, another run's ledger, a full disk, or the only image cannot be mapped.
        UserError: settings that contradict each other.
    """
    from keras_microseg.inference.map_workers import connect

    paths = find_micrographs(settings.images)
    out = Path(out)
    if len(paths) > 1 and settings.shard is not None:
        raise UserError("`shard` splits one image. Give every job its own images, or one image to all of them.")
    names = {"": paths[0]} if len(paths) == 1 else item_names(paths)
    results, failures = [], []
    many = settings.workers > 1 or settings.scheduler is not None
    with connect(settings.workers, settings.scheduler) if many else contextlib.nullcontext() as client:
        for name, path in names.items():
            try:
                results.append(_Job(settings, path, out / name, client, progress).run(resume, overwrite))
            except Exception as error:  # one bad image must not end the batch
                if is_disk_full(error):
                    raise disk_full_error(out, error) from error
                if len(names) == 1:
                    raise
                failures.append(describe(error, path, "predict"))
                logger.warning("%s", failures[-1].message)
    for result in results:
        failed = result.failed_blocks
        if failed:
            text = f"{len(failed)} blocks could not be read and are unknown in the map: {failed[0]['problem']}"
            failures.append(Failure(str(result.folder), "predict", f"{result.folder}: {text} Try again with --resume."))
    return Maps(results, failures)


def find_micrographs(images: tuple[str, ...]) -> list[Path]:
    """The files meant by `images`, raw pixels included."""
    found = []
    for given in images:
        is_raw = Path(given).suffix.lower() in DATA_SUFFIXES and Path(given).is_file()
        found += [Path(given)] if is_raw else io.find_images(given)
    return list(dict.fromkeys(found))


def card_palette(card: Mapping[str, Any]) -> Palette:
    """Names and colours of a model's classes, numbered as its outputs."""
    names = list(card["outputs"])
    listed = {entry.get("name"): entry for entry in card.get("classes") or () if isinstance(entry, Mapping)}
    minerals = []
    for k, name in enumerate(names):
        entry = listed.get(name, {})
        colour = entry.get("colour") or _COLOURS[k % len(_COLOURS)]
        density = entry.get("density")
        minerals.append(Mineral(k, name, tuple(int(v) for v in colour),
                                density=math.nan if density is None else float(density),
                                micro_porosity=float(entry.get("micro_porosity") or 0.0)))  # fmt: skip
    try:
        return Palette(tuple(minerals))
    except UserError:  # two classes of one colour
        return Palette(tuple(dataclasses.replace(m, colour=_COLOURS[m.id % len(_COLOURS)]) for m in minerals))


def choose_factor(image: Image, card: Mapping[str, Any], asked: str | None, *, waived: bool = False) -> float:
    """Pixels of the image per pixel of the map, along an edge.

    Args:
        image: with its pixel size, if known.
        card: of the model; its `pixel_size` is that of the training images.
        asked: see `MapSettings.working_pixel_size`.
        waived: the user said that the pixel size is unknown.

    Raises:
        FileError: the pixel size is needed and not known.
    """
    if asked == "native":
        return 1.0
    if asked is not None and asked.strip().lower().endswith("px"):
        try:
            return check_number("working_pixel_size", float(asked.strip()[:-2]), minimum=1)
        except ValueError:
            raise UserError(f"`working_pixel_size` must be like 1um, 3px or native. Received: {asked!r}") from None
    known = card.get("pixel_size")
    if asked is None and (known is None or waived):
        return 1.0
    if image.pixel_size is None:
        why = "the model was trained at a known one" if asked is None else "a working pixel size was asked for"
        raise FileError(
            image.path, f"does not tell its pixel size, and {why}.", "Pass --pixel-size, like 0.3um, or 'px' to map "
            "pixel by pixel on purpose."
        )  # fmt: skip
    size = PixelSize(tuple(known["size"]), known["unit"]) if asked is None else PixelSize.parse(asked)
    factor = size.to(image.pixel_size.unit).mean / image.pixel_size.mean
    if factor < 0.25:
        raise UserError(f"{image.name}: {size} is far finer than its pixels ({image.pixel_size}). Use native.")
    if abs(factor - 1) < 0.02:
        return 1.0
    return float(round(factor)) if abs(factor - round(factor)) < 1e-4 else factor


class _Job:
    """One image."""

    def __init__(self, settings: MapSettings, path: Path, folder: Path, client: Any, progress: Progress | None):
        self.settings, self.path, self.folder, self.client = settings, path, folder, client
        self.progress = progress

    def run(self, resume: bool, overwrite: bool) -> MapResult:
        from keras_microseg.inference.ledger import Ledger
        from keras_microseg.inference.map_engine import MapEngine, Timings, split_shards

        asked, folder = self.settings, self.folder
        if overwrite and asked.shard is None:
            self._remove()
        begun = (folder / LEDGER / "job.json").is_file()
        if begun and not resume and asked.shard is None:
            raise FileError(folder, "holds an earlier map.", "Go on with --resume, or begin again with --overwrite.")
        plan, card, image = self._plan()
        with io.write_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        ledger = Ledger(plan.ledger, plan.key)
        edges = tuple(plan.block * s for s in plan.grid.stride)
        MapStore.create(
            plan.store, plan.shape, [min(e, n) for e, n in zip(edges, plan.shape, strict=True)],
            grey_type=plan.view.dtype, confidence=plan.confidence,
            probabilities=len(card["outputs"]) if plan.probabilities else 0,
        )  # fmt: skip
        before = ledger.records()
        left = [b for b in split_shards(plan.blocks(), asked.shard) if before.get(b, {}).get("status") != "done"]
        if not left and (folder / FACTS).is_file() and len(before) == math.prod(plan.counts):
            facts = read_json(folder / FACTS)
            if facts.get("complete"):
                return MapResult(folder, True, facts)
        if begun and left:
            logger.info(
                "Going on: %d of %d blocks are done.", math.prod(plan.counts) - len(left), math.prod(plan.counts)
            )
        times, engine = Timings(), None
        if left and self.client is not None:
            from keras_microseg.inference.map_workers import run_on_workers

            for part in run_on_workers(plan, left, self.client, progress=self._say("predict")):
                times.add(part)
        elif left:
            engine = MapEngine(plan)
            times = engine.run(left, progress=self._say("predict"))
        after = ledger.records()
        if len(after) < math.prod(plan.counts) or not self._may_finish():
            return MapResult(folder, False, {})
        facts = self._finish(plan, card, image, after, times, engine)
        return MapResult(folder, True, facts)

    def _plan(self) -> tuple[Any, dict[str, Any], Image]:
        from keras_microseg.inference.map_engine import MapPlan, scaled_view
        from keras_microseg.inference.map_network import fit_normalizer
        from keras_microseg.inference.prediction import HALO, choose_tile
        from keras_microseg.models import saving

        asked = self.settings
        card = saving.read_card(asked.model)
        if card is None or not (card.get("outputs") or saving.command_for(card)):
            raise FileError(asked.model, "has no card that names its classes.", "Use a model of `mineral train`.")
        command = saving.command_for(card)
        if command not in (None, "mineral predict"):
            raise FileError(
                asked.model, f"is no model for class maps, but one for `{command}`.", "Use a model of `mineral train`."
            )
        image = open_micrograph(self.path, asked.pixel_size)
        self._check_decodable(image)
        factor = choose_factor(image, card, asked.working_pixel_size, waived=asked.pixel_size == "px")
        data = _channels(image, card)
        view = scaled_view(data, factor)
        shape = tuple(int(n) for n in view.shape[:2])
        multiple = card.get("multiple_of", 16)
        multiple = int(multiple) if np.isscalar(multiple) else int(max(multiple))
        halo = int(np.max(card.get("halo", HALO))) if asked.overlap is None else -(-asked.overlap // 2)
        tile = (asked.tile,) * 2 if asked.tile else choose_tile(shape, halo, multiple, largest=_TILE)
        if asked.flips == 8:
            tile = (max(tile),) * 2
        earlier = self.folder / LEDGER / "job.json"
        block = read_json(earlier).get("block") if earlier.is_file() else None
        grid = TileGrid.cover(shape, tile, halo, multiple)
        batch, fitting = fit_memory(grid, asked.max_ram, asked.batch_size, len(card["outputs"]), asked.blend != "none")
        if asked.chunk is not None:
            fitting = max(1, min(fitting, round(asked.chunk / max(grid.stride))))
        normalizer = fit_normalizer(card.get("normalization"), view)
        facts = os.stat(self.path)
        key = {
            "image": {"name": self.path.name, "shape": list(image.shape), "dtype": str(image.dtype),
                      "bytes": facts.st_size if self.path.is_file() else 0, "modified": facts.st_mtime_ns},
            "model": file_hash(asked.model), "scaling": normalizer.to_dict(), "working_factor": round(factor, 9),
            "pixel_size": plain(image.pixel_size), "tile": list(tile), "halo": halo, "block": int(block or fitting),
            "blend": asked.blend, "flips": asked.flips, "confidence": asked.confidence,
            "probabilities": asked.probabilities,
        }  # fmt: skip
        plan = MapPlan(
            data, factor, shape, tile, (halo, halo), multiple, int(block or fitting), str(asked.model), normalizer,
            str(self.folder / STORE), str(self.folder / LEDGER), key, None if asked.blend == "none" else asked.blend,
            asked.flips, batch, asked.confidence, asked.probabilities, asked.device, asked.threads,
        )  # fmt: skip
        return plan, card, image

    def _check_decodable(self, image: Image) -> None:
        source = image.data
        while not isinstance(source, DecodedFile) and getattr(source, "source", None) is not None:
            source = source.source
        limit = parse_bytes(self.settings.max_ram) - _BASE
        if isinstance(source, DecodedFile) and source.nbytes > limit:
            raise FileError(
                self.path,
                f"can only be unpacked whole ({format_bytes(source.nbytes)}), which is more than --max-ram leaves.",
                "Save it as tiled TIFF or OME-Zarr, or allow more memory.",
            )

    def _say(self, step: str) -> Any:
        name = self.path.name
        return lambda done, total: self.progress and self.progress(step, done, total, name)

    def _may_finish(self) -> bool:
        """True for one shard only; without shards always."""
        if self.settings.shard is None:
            return True
        try:
            with open(self.folder / _LOCK, "x", encoding="utf-8") as file:
                file.write(str(os.getpid()))
        except FileExistsError:
            return False
        return True

    def _finish(self, plan: Any, card: Mapping[str, Any], image: Image, records: Any, times: Any, engine: Any) -> dict:
        from keras_microseg.inference.map_engine import MapEngine
        from keras_microseg.inference.novelty import confidence_facts, grey_distance
        from keras_microseg.inference.seam_audit import audit_seams

        folder, palette = self.folder, card_palette(card)
        store = MapStore(plan.store, "r+")
        size = None if image.pixel_size is None else image.pixel_size.scaled(1 / plan.factor)
        for name, step in ((CLASSES, "levels of the map"), (GREY, "levels of the image")):
            say = self._say(step)
            for done, total in store.build_levels(name):
                say(done, total)
        classes = store.array(CLASSES)
        say = self._say("audit")
        say(0, 1)
        if plan.blend is None and engine is None and min(plan.grid.counts) > 1:
            engine = MapEngine(plan)
        audit = audit_seams(
            classes, plan.grid, multiple_of=plan.multiple_of,
            predict_at=None if engine is None or plan.blend is not None else engine.predict_at,
        )  # fmt: skip
        say(1, 1)
        failed = [
            {"block": list(block), "problem": record.get("problem", "")}
            for block, record in sorted(records.items())
            if record.get("status") != "done"
        ]
        scale = 1 / plan.factor
        facts = {
            "image": str(self.path), "model": {"name": card.get("name"), "sha256": plan.key["model"]},
            "shape": plan.shape, "pixel_size": size, "classes": {m.id: m.name for m in palette.minerals},
            "colours": {m.id: m.colour for m in palette.minerals}, "ignore": IGNORE,
            "image_to_map": {
                "scale": scale, "formula": "map = (image + 0.5) * scale - 0.5, pixels (y, x)",
                "affine": [[scale, 0, scale / 2 - 0.5], [0, scale, scale / 2 - 0.5]],
            },
            "settings": plan.key, "blocks": math.prod(plan.counts), "failed_blocks": failed, "seams": audit.to_dict(),
            "timings": {**dataclasses.asdict(times), "overhead": times.overhead if times.tiles else None},
            "made": run_facts(),
        }  # fmt: skip
        if card.get("grey_histogram") and len(plan.view.shape) == 2:
            facts["grey_values"] = grey_distance(store.array(GREY), plan.normalizer, card["grey_histogram"])
        if plan.confidence:
            facts["confidence"] = confidence_facts(store.array(CONFIDENCE), classes, IGNORE)
        facts = plain(facts)
        store.describe(palette, size, facts, name=self.path.stem)
        if self.settings.tiff:
            say = self._say("tiff")
            say(0, 1)
            levels = [store.lazy(CLASSES, level) for level in range(store.num_levels(CLASSES))]
            write_class_tiff(folder / TIFF, levels, palette, size, facts={"model": card.get("name", "")})
            say(1, 1)
        write_palette(folder / "classes.csv", palette)
        write_json(folder / FACTS, {**facts, "complete": True})
        return {**facts, "complete": True}

    def _remove(self) -> None:
        for name in (FACTS, TIFF, "classes.csv", _LOCK):
            (self.folder / name).unlink(missing_ok=True)
        for name in (LEDGER, STORE, "view"):
            path = self.folder / name
            if name == "view" or path.is_dir():
                shutil.rmtree(path, ignore_errors=True)


def fit_memory(grid: Any, max_ram: str, batch_size: int, classes: int, blended: bool) -> tuple[int, int]:
    """(tiles per call, tiles along an edge of a block) for a memory budget; blocks are at least one tile.

    The framework takes about 0.8 GB, the network `_BYTES_PER_PIXEL` for every pixel of a batch, and up to
    `_BLOCKS_HELD` blocks are on their way.
    """
    free = parse_bytes(max_ram) - _BASE
    batch = max(1, min(batch_size, int(0.6 * free / (math.prod(grid.tile) * _BYTES_PER_PIXEL))))
    stride = max(grid.stride)
    spread = math.prod(grid.tile) / math.prod(grid.stride)
    per_pixel = 3 + classes + 3 * spread + (4 * (classes + 1) if blended else 0)
    edge = math.sqrt(0.25 * free / (_BLOCKS_HELD * per_pixel))
    wanted = 2048 if blended else 1024
    block = max(1, min(int(edge // stride), -(-wanted // stride)))
    return batch, min(block, max(grid.counts))


def _channels(image: Image, card: Mapping[str, Any]) -> Any:
    """The lazy array the network reads: one grey plane, or all channels."""
    wanted = int(card.get("num_channels", 1))
    found = image.shape[-1] if "C" in image.axes else 1
    if wanted == found:
        return image.data if wanted > 1 or "C" not in image.axes else _Grey(image)
    if wanted == 1:
        return _Grey(image)
    raise FileError(image.path, f"has {found} channels, the model needs {wanted}.", "Use the images it was made for.")


class _Grey:
    """Grey values of an image with colours, read by window."""

    def __init__(self, image: Image):
        self.image, self.shape = image, tuple(image.spatial_shape[-2:])
        self.dtype = np.dtype(io.read_grey(image, (slice(0, 1), slice(0, 1))).dtype)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        window = tuple(slice(*part.indices(n)) for part, n in zip(key, self.shape, strict=True))
        return io.read_grey(self.image, window)
