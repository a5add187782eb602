"""Running a network over an image, tile by tile, each tile in one of very few fixed shapes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.inference.views import quantize
from keras_microseg.tiling import TileGrid, round_up

Progress = Callable[[int, int], None]

TILE = 512
HALO = 32
_MAX_SHAPES = 4
_WASTE = 1.3  # a compiled shape is used again when it costs at most this much more than the best one


class Predictor:
    """A model ready for inference: normalisations folded, compiled once per tile shape.

    Args:
        model: functional `keras.Model`, (n, h, w, c) float32 in 0..1 -> (n, h, w, C).
        card: the model's card. `outputs` names the channels; `multiple_of` (default 16) is the size that heights and
            widths must be a multiple of, `halo` (default 32) the context in pixels that a tile needs on each side.
        fold: fold batch normalisation into the convolutions (same outputs to 1e-5, fewer operations).

    Attributes:
        shapes: tile shapes used so far; every one of them was compiled once.
    """

    def __init__(self, model: Any, card: Mapping[str, Any], *, fold: bool = True):
        backend.select()
        if fold:
            from keras_microseg.models.folding import fold_batch_norm

            model = fold_batch_norm(model)
        self.card = dict(card)
        self.outputs = list(self.card["outputs"])
        self.multiple_of = int(self.card.get("multiple_of", 16))
        self.halo = int(self.card.get("halo", HALO))
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
    shape: Sequence[int], halo: int, multiple_of: int, *, used: Sequence[tuple[int, ...]] = (), largest: int = TILE
) -> tuple[int, int]:
    """Tile shape that covers an image of `shape` with the fewest computed pixels.

    Small images become one tile; larger ones are shared out evenly so that hardly any tile reaches over the border. A
    shape in `used` (compiled already) is preferred when it wastes little, and is kept once four shapes are compiled.

    Args:
        shape: (height, width) of the image.
        halo: context on each side.
        multiple_of: the network's total stride.
        used: tile shapes, (height, width), that are compiled already.
        largest: about the longest side of a tile.
    """

    def cost(tile: Sequence[int]) -> int:
        return len(TileGrid.cover(shape, tile, halo, multiple_of)) * math.prod(tile)

    per_axis = []
    for n in shape:
        inner = max(multiple_of, largest - 2 * halo)
        fewest = math.ceil(n / (1.5 * inner))
        counts = range(fewest, math.ceil(n / inner) + 1)
        per_axis.append({round_up(math.ceil(n / count), multiple_of) for count in counts})
    # A halo that is no multiple itself still has to fit on both sides of a whole number of strides.
    candidates = [
        tuple(inner + round_up(2 * halo, multiple_of) for inner in pair) for pair in itertools.product(*per_axis)
    ]
    best = min(candidates, key=lambda tile: (cost(tile), -math.prod(tile)))
    fitting = [tile for tile in used if all(t - 2 * halo >= multiple_of for t in tile)]
    if fitting:
        known = min(fitting, key=cost)
        if len(used) >= _MAX_SHAPES or cost(known) <= _WASTE * cost(best):
            return known
    return best


def predict_maps(
    predictor: Predictor,
    array: Any,
    *,
    tile: int | tuple[int, int] | None = None,
    halo: int | tuple[int, int] | None = None,
    batch_size: int = 1,
    flips: bool | int = False,
    out: Any = None,
    done: Any = None,
    progress: Progress | None = None,
) -> np.ndarray:
    """Maps of a whole image.

    Tiles overlap by `halo` and keep their inner part, so the result equals that of one tile over the whole image when
    the halo is at least the network's receptive field (half of it, to one side). Borders are continued by reflection.

    Args:
        predictor: the network.
        array: (H, W) or (H, W, c) in 0..1, NumPy or lazy (asked for windows only).
        tile: tile shape, halo included; None chooses one by `choose_tile`.
        halo: context on each side in pixels; None takes the model's.
        batch_size: tiles per call; the last call is padded to it.
        flips: average over mirrored (and, for square tiles, turned) copies: True or 4 for 4 flips, 8 for all eight.
            Flow channels turn with the image.
        out: array to fill, (H, W, C): float32, float16, or uint8 as `quantize` stores maps; None makes a float32 array.
        done: one flag per batch, read and set (NumPy or on disk): batches that are marked are left out.
        progress: called with (batches done, batches in all).

    Returns:
        `out`.
    """
    shape = tuple(array.shape[:2])
    halo = standardize_tuple(predictor.halo if halo is None else halo, 2, "halo", minimum=0)
    batch_size = check_number("batch_size", batch_size, minimum=1, integer=True)
    if tile is None:
        used = [s[1:3] for s in predictor.shapes if s[0] == batch_size]
        tile = choose_tile(shape, max(halo), predictor.multiple_of, used=used)
    grid = TileGrid.cover(shape, tile, halo, predictor.multiple_of)
    views = _transforms(flips, grid.tile)
    if out is None:
        out = np.empty((*shape, len(predictor.outputs)), np.float32)
    as_bytes = np.dtype(out.dtype) == np.uint8
    total = math.ceil(len(grid) / batch_size)
    for number, batch in enumerate(grid.batches(batch_size)):
        if done is None or not int(done[number]):
            maps = _predict_averaged(predictor, batch.read(array), views)
            batch.write(out, quantize(maps, predictor.outputs) if as_bytes else maps)
            if done is not None:
                done[number] = 1
        if progress is not None:
            progress(number + 1, total)
    return out


def count_batches(predictor: Predictor, shape: Sequence[int], tile: Any, batch_size: int) -> int:
    """Number of calls that `predict_maps` makes, the length of its `done`."""
    return math.ceil(len(TileGrid.cover(shape, tile, predictor.halo, predictor.multiple_of)) / batch_size)


def _transforms(flips: bool | int, tile: Sequence[int]) -> list[tuple[bool, bool, bool]]:
    """(transpose, flip y, flip x) of every view that is averaged."""
    if flips not in (False, True, 0, 1, 4, 8):
        raise UserError(f"`flips` must be False, True, 4 or 8. Received: flips={flips!r}")
    if not flips:
        return [(False, False, False)]
    if flips == 8 and tile[0] != tile[1]:
        raise UserError(f"`flips=8` turns tiles by 90 degrees and needs square ones. Received: tile={tuple(tile)}")
    return list(itertools.product((False, True) if flips == 8 else (False,), (False, True), (False, True)))


def _predict_averaged(predictor: Predictor, batch: np.ndarray, views: list[tuple[bool, bool, bool]]) -> np.ndarray:
    if batch.ndim == 3:
        batch = batch[..., np.newaxis]
    total = None
    for view in views:
        maps = _untransform(predictor(_transform(batch, view)), view, predictor.outputs)
        total = maps if total is None else total + maps
    return total if len(views) == 1 else total / len(views)


def _transform(batch: np.ndarray, view: tuple[bool, bool, bool]) -> np.ndarray:
    transpose, flip_y, flip_x = view
    batch = batch.swapaxes(1, 2) if transpose else batch
    return batch[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _untransform(maps: np.ndarray, view: tuple[bool, bool, bool], outputs: list[str]) -> np.ndarray:
    """Undo `_transform` on maps; vectors are mirrored and exchanged with the axes."""
    transpose, flip_y, flip_x = view
    maps = maps[:, :: -1 if flip_y else 1, :: -1 if flip_x else 1]
    signs = [-1 if (flip_y and name == "flow_y") or (flip_x and name == "flow_x") else 1 for name in outputs]
    if -1 in signs:
        maps = maps * np.float32(signs)
    if transpose:
        exchanged = {"flow_y": "flow_x", "flow_x": "flow_y"}
        maps = maps.swapaxes(1, 2)[..., [outputs.index(exchanged.get(name, name)) for name in outputs]]
    return maps
