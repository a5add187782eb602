"""Running a network over an image or volume, tile by tile, each tile in one of very few fixed shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg import backend
from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.inference.views import quantize
from keras_microseg.tiling import Batch, Tile, TileGrid, round_up

Progress = Callable[[int, int], None]

TILE = 512
VOLUME_TILE = 112
HALO = 32
BLENDINGS = ("linear", "hann", "gaussian")
_MAX_SHAPES = 4
_PLANES = 16  # written at once
_WASTE = 1.3  # a compiled shape is used again when it costs at most this much more than the best one


class Predictor:
    """A model ready for inference: normalisations folded, compiled once per tile shape.

    Args:
        model: functional `keras.Model`, (n, h, w, c) float32 in 0..1 -> (n, h, w, C); (n, z, h, w, c) for volumes.
        card: the model's card. `outputs` names the channels; `multiple_of` (default 16) is the size that heights and
            widths must be a multiple of, `halo` (default 32) the context in pixels that a tile needs on each side; with
            `ndim` 3 both may be lists (z, y, x).
        fold: fold batch normalisation into the convolutions (same outputs to 1e-5, fewer operations).

    Attributes:
        ndim: spatial axes of its tiles, 2 or 3.
        shapes: tile shapes used so far; every one of them was compiled once.
    """

    def __init__(self, model: Any, card: Mapping[str, Any], *, fold: bool = True):
        backend.select()
        if fold:
            from keras_microseg.models.folding import fold_batch_norm

            model = fold_batch_norm(model)
        self.card = dict(card)
        self.outputs = list(self.card["outputs"])
        self.ndim = int(self.card.get("ndim", 2))
        self.multiple_of = _per_axis(self.card.get("multiple_of", 16))
        self.halo = _per_axis(self.card.get("halo", HALO))
        self.shapes: list[tuple[int, ...]] = []
        self._predict = backend.compile_predict(model)

    def __call__(self, batch: np.ndarray) -> np.ndarray:
        """(n, h, w, c) float32 in 0..1 -> (n, h, w, C) float32, C = number of `outputs`."""
        shape = tuple(batch.shape)
        if shape not in self.shapes:
            self.shapes.append(shape)
        maps = np.asarray(self._predict(np.ascontiguousarray(batch, np.float32)), np.float32)
        if maps.shape != (*shape[:-1], len(self.outputs)):
            raise UserError(
                f"The model turns tiles of {shape[1:]} into maps of {maps.shape[1:]}; its card names "
                f"{len(self.outputs)} outputs. Use the card that belongs to the model."
            )
        return maps


def choose_tile(
    shape: Sequence[int],
    halo: int | Sequence[int],
    multiple_of: int | Sequence[int],
    *,
    used: Sequence[tuple[int, ...]] = (),
    largest: int | None = None,
) -> tuple[int, ...]:
    """Tile shape that covers an image of `shape` with the fewest computed pixels.

    Small images become one tile; larger ones are shared out evenly so that hardly any tile reaches over the border. A
    shape in `used` (compiled already) is preferred when it wastes little, and is kept once four shapes are compiled.

    Args:
        shape: (height, width) of the image, or (z, y, x) of a volume.
        halo: context on each side, one number or one per axis.
        multiple_of: the network's total stride, likewise.
        used: tile shapes that are compiled already.
        largest: about the longest side of a tile; None = 512, in volumes 112.
    """
    halos = standardize_tuple(halo, len(shape), "halo", minimum=0)
    multiples = standardize_tuple(multiple_of, len(shape), "multiple_of")
    largest = largest or (TILE if len(shape) == 2 else VOLUME_TILE)

    def cost(tile: Sequence[int]) -> int:
        return len(TileGrid.cover(shape, tile, halo, multiple_of)) * math.prod(tile)

    per_axis = []
    for n, h, m in zip(shape, halos, multiples, strict=True):
        inner = max(m, largest - 2 * h)
        fewest = math.ceil(n / (1.5 * inner))
        counts = range(fewest, math.ceil(n / inner) + 1)
        # A halo that is no multiple itself still has to fit on both sides of a whole number of strides.
        per_axis.append({round_up(math.ceil(n / count), m) + round_up(2 * h, m) for count in counts})
    best = min(itertools.product(*per_axis), key=lambda tile: (cost(tile), -math.prod(tile)))
    fitting = [tile for tile in used if all(t - 2 * h >= m for t, h, m in zip(tile, halos, multiples, strict=True))]
    if fitting:
        known = min(fitting, key=cost)
        if len(used) >= _MAX_SHAPES or cost(known) <= _WASTE * cost(best):
            return known
    return best


def predict_maps(
    predictor: Predictor,
    array: Any,
    *,
    tile: int | tuple[int, ...] | None = None,
    halo: int | tuple[int, ...] | None = None,
    batch_size: int = 1,
    flips: bool | int = False,
    spread: bool = False,
    blend: str | None = None,
    maps: Sequence[str] | None = None,
    out: Any = None,
    done: Any = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Maps of a whole image or volume.

    Tiles overlap by `halo` on each side. They keep their inner part, so the result equals that of one tile over the
    whole image when the halo is at least the network's receptive field (half of it, to one side); or they are blended
    (`blend`), which hides the seams that a smaller halo leaves. Borders are continued by reflection; no part of the
    image is left out or stretched. Memory holds one batch; with `blend`, also the tiles of one row or slab.

    Args:
        predictor: the network.
        array: (H, W), (H, W, c), or for a network of volumes (Z, H, W), in 0..1, NumPy or lazy (asked for windows).
        tile: tile shape, halo included; None chooses one by `choose_tile`.
        halo: context on each side in pixels; None takes the model's.
        batch_size: tiles per call; the last call is padded to it.
        flips: average over mirrored and turned copies. Images: True or 4 for 4 flips, 8 with turns (square tiles).
            Volumes: True or 4 for flips in the plane, 8 for flips along z too, 16 with turns in the plane. Flow
            channels turn with the image.
        spread: one more channel: twice the standard deviation of the first map over the copies, 0..1.
        blend: None; `"linear"`: weights fall linearly across the seams; `"hann"`, `"gaussian"` (sigma = tile / 8):
            weights fall from the middle of the tile on, at least 1e-3.
        maps: names of the channels to keep, in order; None = all (and `spread`).
        out: array to fill, (*shape, C): float32, float16, or uint8 as `quantize` stores maps; None makes a float32
            array. With `blend`, it gets whole planes in order.
        done: one flag per unit of `count_units`, read and set (NumPy or on disk): what is marked is left out. With
            `blend` the unit is a row or slab of tiles, and what reaches into the next one is computed again.
        progress: called with (units done, units in all).

    Returns:
        `out`.
    """
    ndim = getattr(predictor, "ndim", 2)
    shape = tuple(array.shape[:ndim])
    halo = standardize_tuple(predictor.halo if halo is None else halo, ndim, "halo", minimum=0)
    batch_size = check_number("batch_size", batch_size, minimum=1, integer=True)
    check_choice("blend", blend, (None, *BLENDINGS))
    if tile is None:
        used = [s[1 : 1 + ndim] for s in predictor.shapes if s[0] == batch_size]
        tile = choose_tile(shape, halo, predictor.multiple_of, used=used)
    grid = TileGrid.cover(shape, tile, halo, predictor.multiple_of)
    views = mirrored_views(flips, grid.tile)
    if spread and len(views) == 1:
        raise UserError("`spread` compares mirrored copies and needs `flips`. Received: flips=False")
    made = [*predictor.outputs, *(["spread"] if spread else [])]
    names = made if maps is None else [check_choice("maps", name, made) for name in maps]
    kept = None if names == made else [made.index(name) for name in names]
    if out is None:
        out = np.empty((*shape, len(names)), np.float32)
    as_bytes = np.dtype(out.dtype) == np.uint8

    def predict(batch: Batch) -> np.ndarray:
        found = predict_averaged(predictor, batch.read(array), views, ndim, spread)
        return found if kept is None else found[..., kept]

    def convert(values: np.ndarray) -> np.ndarray:
        return quantize(values, names) if as_bytes else values.astype(out.dtype, copy=False)

    if blend is not None:
        _predict_blended(grid, predict, convert, blend, batch_size, len(names), out, done, progress)
        return out
    total = math.ceil(len(grid) / batch_size)
    for number, batch in enumerate(grid.batches(batch_size)):
        if done is None or not int(done[number]):
            batch.write(out, convert(predict(batch)))
            if done is not None:
                done[number] = 1
        if progress is not None:
            progress(number + 1, total)
    return out


def count_batches(predictor: Predictor, shape: Sequence[int], tile: Any, batch_size: int) -> int:
    """Number of calls that `predict_maps` makes, the length of its `done`."""
    return math.ceil(len(TileGrid.cover(shape, tile, predictor.halo, predictor.multiple_of)) / batch_size)


def count_units(grid: TileGrid, batch_size: int, blend: str | None) -> int:
    """Length of the `done` of `predict_maps`: its batches, or with `blend` the rows or slabs of tiles."""
    return grid.counts[0] if blend else math.ceil(len(grid) / batch_size)


def _predict_blended(
    grid: TileGrid,
    predict: Callable[[Batch], np.ndarray],
    convert: Callable[[np.ndarray], np.ndarray],
    blend: str,
    batch_size: int,
    channels: int,
    out: Any,
    done: Any,
    progress: Progress | None,
) -> None:
    """Weighted means of overlapping tiles, in a slab of sums that moves along the first axis.

    A slab of tiles (all those of one place on the first axis) completes the planes that no later slab reaches; they are
    written and leave the sums.
    """
    total = grid.counts[0]
    reach = [contribution(grid, grid[(i, *(0,) * (len(grid.shape) - 1))], blend)[0][0] for i in range(total)]
    final = [min(part.start for part in reach[i + 1 :]) if i + 1 < total else grid.shape[0] for i in range(total)]
    first = 0
    if done is not None:
        while first < total and int(done[first]):
            first += 1
        if first == total:
            if progress is not None:
                progress(total, total)
            return
    written = final[first - 1] if first else 0
    begin = next(i for i in range(total) if reach[i].stop > written)  # slabs that reach into what is not written yet
    low = max(reach[begin].start, written)
    length = max(reach[i].stop - max(low, final[i - 1] if i > first else low) for i in range(begin, total))
    sums = np.zeros((length, *grid.shape[1:], channels), np.float32)
    weights = np.zeros((length, *grid.shape[1:], 1), np.float32)
    for i in range(begin, total):
        places = itertools.product((i,), *(range(count) for count in grid.counts[1:]))
        while group := tuple(grid[place] for place in itertools.islice(places, batch_size)):
            maps = predict(Batch(group, batch_size))
            for tile, block in zip(group, maps, strict=False):
                region, weight = contribution(grid, tile, blend)
                known = max(low - region[0].start, 0)  # planes of an earlier run
                region, weight = (slice(region[0].start + known, region[0].stop), *region[1:]), weight[known:]
                inner = tuple(slice(r.start - o, r.stop - o) for r, o in zip(region, tile.origin, strict=True))
                place = (slice(region[0].start - low, region[0].stop - low), *region[1:])
                weight = weight[..., np.newaxis]
                sums[place] += weight * block[inner]
                weights[place] += weight
        if i >= first:
            for start in range(written, final[i], _PLANES):
                part = slice(start - low, min(start + _PLANES, final[i]) - low)
                out[part.start + low : part.stop + low] = convert(sums[part] / weights[part])
            written = max(written, final[i])
            if done is not None:
                done[i] = 1
        low = _move_down(sums, weights, low, max(written, low))
        if progress is not None:
            progress(i + 1, total)


def _move_down(sums: np.ndarray, weights: np.ndarray, low: int, new: int) -> int:
    """Let the slab begin at plane `new` instead of `low`; its upper planes become 0."""
    step, count = new - low, len(sums)
    if step:
        for array in (sums, weights):
            for plane in range(count - step):
                array[plane] = array[plane + step]
            array[max(count - step, 0) :] = 0
    return new


def contribution(grid: TileGrid, tile: Tile, blend: str) -> tuple[tuple[slice, ...], np.ndarray]:
    """Region of the image that a tile takes part in, and its float32 weights there."""
    if blend == "linear":
        region, weights = grid.blending_weights(tile)
        return region, weights
    region, profiles = [], []
    for first, length, n in zip(tile.origin, tile.shape, grid.shape, strict=True):
        position = (np.arange(length) + 0.5) / length
        if blend == "hann":
            profile = np.sin(np.pi * position) ** 2
        else:
            profile = np.exp(-0.5 * ((position - 0.5) * 8) ** 2)
        start, stop = max(first, 0), min(first + length, n)
        region.append(slice(start, stop))
        profiles.append(np.maximum(profile, 1e-3)[start - first : stop - first])
    weights = profiles[0]
    for profile in profiles[1:]:
        weights = weights[..., np.newaxis] * profile
    return tuple(region), weights.astype(np.float32)


def mirrored_views(flips: bool | int, tile: Sequence[int]) -> list[tuple[bool, ...]]:
    """(transpose y and x, flip axis 0, flip axis 1, ...) of every view that is averaged."""
    ndim = len(tile)
    known = (4, 8) if ndim == 2 else (4, 8, 16)
    if flips not in (False, True, 0, 1, *known):
        raise UserError(f"`flips` must be False, True, {' or '.join(map(str, known))}. Received: flips={flips!r}")
    if not flips:
        return [(False,) * (ndim + 1)]
    turns = flips == known[-1]
    if turns and tile[-2] != tile[-1]:
        raise UserError(
            f"`flips={flips}` turns tiles by 90 degrees and needs square ones. Received: tile={tuple(tile)}"
        )
    along_z = ndim == 3 and flips in (8, 16)
    choices = [(False, True) if turns else (False,), *[(False, True) if along_z else (False,)] * (ndim - 2)]
    return list(itertools.product(*choices, (False, True), (False, True)))


def predict_averaged(
    predictor: Predictor, batch: np.ndarray, views: list[tuple[bool, ...]], ndim: int, spread: bool
) -> np.ndarray:
    """Maps of a batch, averaged over `views`; with `spread`, one more channel (see `predict_maps`)."""
    if batch.ndim == ndim + 1:
        batch = batch[..., np.newaxis]
    total, squares = None, 0.0
    for view in views:
        maps = _untransform(predictor(_transform(batch, view)), view, predictor.outputs)
        total = maps if total is None else total + maps
        if spread:
            squares = squares + np.square(maps[..., :1])
    total = total if len(views) == 1 else total / len(views)
    if not spread:
        return total
    deviation = np.sqrt(np.maximum(squares / len(views) - np.square(total[..., :1]), 0))
    return np.concatenate([total, np.minimum(2 * deviation, 1)], axis=-1)


def _transform(batch: np.ndarray, view: tuple[bool, ...]) -> np.ndarray:
    transpose, *mirrored = view
    batch = batch.swapaxes(-3, -2) if transpose else batch
    return batch[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in mirrored))]


def _untransform(maps: np.ndarray, view: tuple[bool, ...], outputs: list[str]) -> np.ndarray:
    """Undo `_transform` on maps; vectors are mirrored and exchanged with the axes."""
    transpose, *mirrored = view
    flip_y, flip_x = mirrored[-2:]
    maps = maps[(slice(None), *(slice(None, None, -1 if flip else 1) for flip in mirrored))]
    signs = [-1 if (flip_y and name == "flow_y") or (flip_x and name == "flow_x") else 1 for name in outputs]
    if -1 in signs:
        maps = maps * np.float32(signs)
    if transpose:
        exchanged = {"flow_y": "flow_x", "flow_x": "flow_y"}
        maps = maps.swapaxes(-3, -2)[..., [outputs.index(exchanged.get(name, name)) for name in outputs]]
    return maps


def _per_axis(value: Any) -> int | tuple[int, ...]:
    return int(value) if np.isscalar(value) else tuple(int(v) for v in value)
