"""Running networks over volumes of any size: window by window, in bounded memory, to one file per map, resumably."""

from __future__ import annotations

import dataclasses
import logging
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import backend, io
from keras_microseg.checks import UserError, check_choice, check_number, format_bytes, parse_bytes
from keras_microseg.image import Image
from keras_microseg.inference.prediction import BLENDINGS, Predictor, Progress, choose_tile, predict_maps
from keras_microseg.inference.views import ScaledView
from keras_microseg.intensity import Normalizer
from keras_microseg.tiling import TileGrid

logger = logging.getLogger(__name__)

DEFAULT_MODEL = Path(__file__).parents[1] / "models" / "weights" / "spheres3d.keras"
_BYTES_PER_VOXEL = 500  # of a tile inside a network of 8 to 64 channels, and its copies
_TILES = (160, 128, 112, 96, 80, 64, 48, 32, 16)


class SlicePredictor:
    """A 2D or 2.5D network as a predictor of volumes: slice by slice along z, or averaged over three planes.

    Args:
        predictor: network (n, h, w, k) -> (n, h, w, C); its k channels are neighbouring slices.
        planes: 1 = slices along z; 3 = the mean over slices along z, y and x, for volumes with cubic voxels.
        slices_per_call: slices that go through the network at once.
    """

    ndim = 3

    def __init__(self, predictor: Predictor, planes: int = 1, slices_per_call: int = 8):
        self.predictor = predictor
        self.planes = check_choice("planes", planes, (1, 3))
        self.num_slices = int(predictor.card.get("num_slices", 1))
        self.slices_per_call = slices_per_call
        self.card, self.outputs = predictor.card, predictor.outputs
        if any(name.startswith("flow") for name in self.outputs):
            raise UserError(f"Flow maps have no meaning across planes. Received: outputs={self.outputs}")
        side = self.num_slices // 2
        if self.planes == 3:
            self.halo = (max(side, predictor.halo),) * 3
            self.multiple_of = (predictor.multiple_of,) * 3
        else:
            self.halo = (side, predictor.halo, predictor.halo)
            self.multiple_of = (1, predictor.multiple_of, predictor.multiple_of)
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, z, y, x, 1) float32 in 0..1 -> (n, z, y, x, C); slices beyond the block are its mirror image."""
        if tuple(batch.shape) not in self.shapes:
            self.shapes.append(tuple(batch.shape))
        total = None
        for axis in range(self.planes):
            maps = np.stack([self._along_first(np.moveaxis(block[..., 0], axis, 0)) for block in batch])
            maps = np.moveaxis(maps, 1, axis + 1)
            total = maps if total is None else total + maps
        return total if self.planes == 1 else total / self.planes

    def _along_first(self, block: np.ndarray) -> np.ndarray:
        side, depth = self.num_slices // 2, len(block)
        padded = np.pad(block, ((side, side), (0, 0), (0, 0)), mode="reflect" if depth > side else "edge")
        stacked = np.stack([padded[k : k + depth] for k in range(self.num_slices)], axis=-1)
        maps = []
        for start in range(0, depth, self.slices_per_call):
            part = stacked[start : start + self.slices_per_call]
            missing = self.slices_per_call - len(part)
            filled = np.concatenate([part, np.repeat(part[-1:], missing, axis=0)]) if missing else part
            maps.append(self.predictor(filled)[: len(part)])
        return np.concatenate(maps)


def open_volume_predictor(
    model: Any = "spheres3d", *, card: Mapping[str, Any] | None = None, planes: int = 1
) -> Predictor | SlicePredictor:
    """A model for volumes, ready for `predict_maps` and `predict_volume`.

    Args:
        model: `"spheres3d"` (ships with the package), the path of a `.keras` file, or a `keras.Model` with its `card`.
        card: of a model given as an object, or instead of the one in the file.
        planes: of 2D and 2.5D models, see `SlicePredictor`.

    Raises:
        FileError: the file is missing, damaged, unsafe or without a card.
        UserError: a model for images alone.
    """
    backend.select()
    from keras_microseg.models import saving
    from keras_microseg.models.deep_supervision import main_maps

    source = None
    if isinstance(model, str | Path):
        path = DEFAULT_MODEL if str(model) == "spheres3d" else Path(model)
        model, card = saving.load_model(path, card)
        source = {"path": path.name, "sha256": saving.sha256(path)}
    elif card is None:
        raise UserError("`card` is needed with a model given as an object.")
    if card.get("ndim", 2) != 3 and "num_slices" not in card:
        raise UserError(
            f"{card.get('name', 'The model')} works on images, not on volumes. Use a model of `volume train`, or one "
            "whose card names `num_slices`."
        )
    predictor = Predictor(main_maps(model), card)
    predictor.source = source
    if predictor.ndim == 3:
        if planes != 1:
            raise UserError(f"`planes` is for 2D and 2.5D models. Received: planes={planes}")
        return predictor
    slices = SlicePredictor(predictor, planes)
    slices.source = source
    return slices


class NormalizedView:
    """A lazy volume scaled by a `Normalizer`, read window by window; optionally at another scale.

    Args:
        volume: (Z, Y, X) NumPy or lazy.
        normalizer: see `intensity.Normalizer`.
        scale: factor per axis; below 1 voxels are averaged.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, volume: Any, normalizer: Normalizer, scale: float = 1.0):
        self.normalizer = normalizer
        self.array = volume if scale == 1 else ScaledView(_Finite(volume), scale)
        self.shape = tuple(self.array.shape)

    def __getitem__(self, key: tuple[slice, ...]) -> np.ndarray:
        return self.normalizer(np.asarray(self.array[key]))


@dataclasses.dataclass(frozen=True)
class VolumePrediction:
    """What `predict_volume` wrote.

    Attributes:
        paths: file of every map by name.
        normalizer: scaling of the grey values that was used.
        scale: working scale.
        tile: window of the network, voxels.
        blend: how windows were joined.
    """

    paths: dict[str, Path]
    normalizer: Normalizer
    scale: float
    tile: tuple[int, ...]
    blend: str | None


def predict_volume(
    predictor: Predictor | SlicePredictor,
    volume: Image,
    out_dir: str | Path,
    *,
    suffix: str = ".zarr",
    maps: Sequence[str] | None = None,
    normalizer: Normalizer | None = None,
    diameter: float | None = None,
    scale: float | None = None,
    tile: int | Sequence[int] | None = None,
    halo: int | Sequence[int] | None = None,
    batch_size: int = 1,
    flips: bool | int = False,
    spread: bool = False,
    blend: str | None = "linear",
    dtype: str = "uint8",
    max_ram: str | int = "2GB",
    resume: bool = False,
    progress: Progress | None = None,
) -> VolumePrediction:
    """Maps of a volume of any size, one file per map, in memory that `max_ram` bounds.

    An interrupted prediction goes on where it ended when called again with `resume` and the same arguments.

    Args:
        predictor: of `open_volume_predictor`.
        volume: lazy `Image` with axes ZYX.
        out_dir: folder for `<map>.zarr` (or `.tif`, `.npy`).
        suffix: format of the files.
        maps: which maps to write; None = all of the model, and `spread` when asked for.
        normalizer: scaling of grey values; None fits the rule of the model's card on this volume.
        diameter: typical diameter of the objects in voxels: the volume is brought to the size that the model works at.
        scale: that factor itself; None = 1, or by `diameter`. Maps have the size of the volume all the same.
        tile: window of the network; None = the largest that fits `max_ram`.
        halo: voxels on each side that neighbouring windows share; None takes the model's.
        batch_size, flips, spread, blend: see `predict_maps`.
        dtype: `"uint8"` (0..255 stands for 0..1) or `"float16"`.
        max_ram: bytes for windows and slabs.
        resume: go on with an interrupted prediction.
        progress: called with (slabs done, slabs in all).

    Raises:
        UserError: arguments out of range, a volume that is no volume, or too little memory for any window.
        FileError: unwritable folder, full disk.
    """
    if volume.axes != "ZYX":
        raise UserError(f"{volume.name}: a volume with axes ZYX is needed. Received: axes={volume.axes}")
    check_choice("blend", blend, (None, *BLENDINGS))
    check_choice("dtype", dtype, ("uint8", "float16", "float32"))
    card = predictor.card
    normalizer = normalizer or fit_normalizer(volume.data, card)
    scale = working_scale(card, diameter) if scale is None else check_number("scale", scale, minimum=0, exclusive=True)
    view = NormalizedView(volume.data, normalizer, scale)
    names = [*predictor.outputs, *(["spread"] if spread else [])]
    wanted = [check_choice("maps", name, names) for name in maps or names]
    tile, halo = choose_window(predictor, view.shape, tile, halo, batch_size, blend, max_ram, len(wanted))
    grid = TileGrid.cover(view.shape, tile, halo, predictor.multiple_of)
    key = {
        "model": getattr(predictor, "source", None), "normalizer": normalizer.to_dict(), "scale": scale, "tile": tile,
        "halo": halo, "flips": int(flips), "spread": spread, "blend": blend, "batch": batch_size, "maps": wanted,
        "volume": [str(volume.path), list(volume.shape), str(volume.data.dtype)],
        "planes": getattr(predictor, "planes", 0),
    }  # fmt: skip
    out_dir = Path(out_dir)
    facts = {"prediction": key, "model": card.get("name")}
    final = _MapFiles(out_dir, suffix, wanted, volume.shape, dtype, volume.pixel_size, facts, key, resume, grid)
    if final.complete:
        return VolumePrediction(final.paths, normalizer, scale, tile, blend)
    options = {
        "tile": tile, "halo": halo, "batch_size": batch_size, "flips": flips, "spread": spread, "blend": blend,
        "maps": wanted, "progress": progress,
    }  # fmt: skip
    logger.info("%s: windows of %s voxels, %d slabs, scale %.3g.", volume.name, tile, grid.counts[0], scale)
    if scale == 1:
        with final:
            predict_maps(predictor, view, out=final, done=final.flags(), **options)
    else:
        work = _MapFiles(out_dir / "working_scale", ".zarr", wanted, view.shape, dtype, None, facts, key, resume, grid)
        if not work.complete:
            with work:
                predict_maps(predictor, view, out=work, done=work.flags(), **options)
        with final:
            _enlarge(work, final, max_ram)
        work.remove()
    return VolumePrediction(final.paths, normalizer, scale, tile, blend)


def fit_normalizer(volume: Any, card: Mapping[str, Any]) -> Normalizer:
    """The rule of a model's card (`normalization`: mode, lower, upper, low, high) applied to a volume."""
    rule = dict(card.get("normalization", {"mode": "percentile"}))
    if rule["mode"] == "fixed":
        return Normalizer("fixed", float(rule["low"]), float(rule["high"]))
    limits = {name: rule[name] for name in ("lower", "upper") if name in rule}
    return Normalizer.fit(volume, rule["mode"], **limits)


def working_scale(card: Mapping[str, Any], diameter: float | None) -> float:
    """Factor that brings objects of `diameter` voxels to a size that the model was trained at; 1 within its range.

    Larger objects come just below the largest size of the training: the fewer voxels an object has, the less exact its
    surface (spheres of 62 voxels: Dice 0.954 to 0.966 at 16 voxels, 0.978 to 0.980 at 24).
    """
    sizes = card.get("diameter")
    if diameter is None or not sizes:
        return 1.0
    check_number("diameter", diameter, minimum=0, exclusive=True)
    if sizes["minimum"] <= diameter <= sizes["maximum"]:
        return 1.0
    return (sizes["typical"] if diameter < sizes["minimum"] else 0.9 * sizes["maximum"]) / diameter


def choose_window(
    predictor: Any,
    shape: Sequence[int],
    tile: int | Sequence[int] | None,
    halo: int | Sequence[int] | None,
    batch_size: int,
    blend: str | None,
    max_ram: str | int,
    num_maps: int | None = None,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(tile, halo) for `predict_maps`: the given ones, or the largest window whose working set fits `max_ram`.

    Raises:
        UserError: none fits; the message says what would.
    """
    if halo is None:
        halo = predictor.halo
    halo = (halo,) * 3 if np.isscalar(halo) else tuple(halo)
    limit = parse_bytes(max_ram)
    if tile is not None:
        tile = (tile,) * 3 if np.isscalar(tile) else tuple(tile)
        TileGrid.cover(shape, tile, halo, predictor.multiple_of)
        return tile, halo
    multiples = np.broadcast_to(predictor.multiple_of, 3)
    least = math.inf
    for largest in _TILES:
        if any(largest < 2 * h + m for h, m in zip(halo, multiples, strict=True)):
            break
        tile = choose_tile(shape, halo, predictor.multiple_of, largest=largest)
        needed = working_set(predictor, shape, tile, halo, batch_size, blend, num_maps)
        if needed <= limit:
            return tuple(tile), halo
        least = min(least, needed)
    if least is math.inf:
        tile = choose_tile(shape, halo, predictor.multiple_of, largest=_TILES[0])
        least = working_set(predictor, shape, tile, halo, batch_size, blend, num_maps)
        if least <= limit:
            return tuple(tile), halo
    raise UserError(
        f"A volume of {tuple(shape)} voxels needs max_ram={format_bytes(least)} with blend={blend!r}. "
        f"Received: max_ram={max_ram}. Allow more, use blend=None (no slab is kept), or a smaller halo than {halo}."
    )


def working_set(
    predictor: Any,
    shape: Sequence[int],
    tile: Sequence[int],
    halo: Sequence[int],
    batch_size: int,
    blend: str | None,
    num_maps: int | None = None,
) -> int:
    """Estimated bytes of a prediction: windows inside the network, and the slab of sums when windows are blended."""
    inside = batch_size * math.prod(tile) * _BYTES_PER_VOXEL
    if not blend:
        return inside
    count = len(predictor.outputs) if num_maps is None else num_maps
    planes = min(tile[0], shape[0]) + 16  # and those that are being written
    return inside + planes * shape[1] * shape[2] * (count + 1) * 4


class _Finite:
    """A lazy volume with 0 where values are not finite, so that averaging does not spread them."""

    def __init__(self, array: Any):
        self.array, self.shape = array, tuple(array.shape)

    def __getitem__(self, key: Any) -> np.ndarray:
        values = np.asarray(self.array[key], np.float32)
        return values if np.isfinite(values).all() else np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)


class _MapFiles:
    """One `VolumeWriter` per map behind the face of one (Z, Y, X, C) array; the finished slabs are flags."""

    def __init__(self, folder, suffix, names, shape, dtype, voxel_size, facts, key, resume, grid: TileGrid):
        self.names, self.shape, self.dtype = list(names), (*shape, len(names)), np.dtype(dtype)
        thickness = math.gcd(*grid.stride[:1], grid.lead[0] or grid.stride[0], grid.halo[0] or grid.stride[0])
        thickness = max(n for n in range(1, 17) if thickness % n == 0)  # slabs end between chunks
        chunks = (thickness, 256, 256)
        self.writers = {
            name: io.create_volume(
                folder / f"{name}{suffix}", shape, dtype, chunks=chunks, voxel_size=voxel_size,
                facts={**facts, "map": name}, key={**key, "map": name}, resume=resume,
            )
            for name in names
        }  # fmt: skip
        self.folder = folder

    @property
    def complete(self) -> bool:
        return all(writer.complete for writer in self.writers.values())

    @property
    def paths(self) -> dict[str, Path]:
        return {name: writer.path for name, writer in self.writers.items()}

    def __setitem__(self, key: Any, values: np.ndarray) -> None:
        for name, writer in self.writers.items():
            if not writer.complete:
                writer[key] = values[..., self.names.index(name)]

    def flags(self) -> _Flags:
        return _Flags(list(self.writers.values()))

    def __enter__(self) -> _MapFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        for writer in self.writers.values():
            writer.__exit__(*error)

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


class _Flags:
    """Finished units of several writers, as `predict_maps` reads and sets them."""

    def __init__(self, writers: list[Any]):
        self.writers = writers

    def __getitem__(self, unit: int) -> bool:
        return all(writer.is_done(f"unit {unit}") for writer in self.writers)

    def __setitem__(self, unit: int, value: int) -> None:
        for writer in self.writers:
            if not writer.complete:
                writer.mark_done(f"unit {unit}")


def _enlarge(work: _MapFiles, final: _MapFiles, max_ram: str | int) -> None:
    """Maps of the working scale on the voxels of the volume, by linear interpolation."""
    shape = final.shape[:3]
    planes = max(1, min(shape[0], int(parse_bytes(max_ram) // (shape[1] * shape[2] * 40))))
    for name, writer in final.writers.items():
        if writer.complete:
            continue
        source = ScaledView(io.open_volume(work.paths[name]).data, shape=shape)
        for number, start in enumerate(range(0, shape[0], planes)):
            if not writer.is_done(f"enlarged {number}"):
                stop = min(start + planes, shape[0])
                values = source[start:stop, :, :]
                writer[start:stop] = np.rint(values) if final.dtype == np.uint8 else values
                writer.mark_done(f"enlarged {number}")


def binary_entropy(probability: np.ndarray) -> np.ndarray:
    """Uncertainty of a foreground probability in bits, 0 (certain) to 1 (p = 1/2), float32."""
    p = np.clip(np.asarray(probability, np.float32), 1e-6, 1 - 1e-6)
    return -(p * np.log2(p) + (1 - p) * np.log2(1 - p))
