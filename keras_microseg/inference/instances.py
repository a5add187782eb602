"""Objects of whole images by a detector that sees tiles: any size, any number of objects."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import backend
from keras_microseg.checks import UserError, check_number
from keras_microseg.data.boxes import CONTRAST, stretch_contrast
from keras_microseg.segmentation.pasting import Piece, draw_pieces, paste_mask, resolve
from keras_microseg.tiling import Tile, TileGrid, read_tile

_TOUCH = 1.5
LARGE_TILE = 512


@dataclasses.dataclass(frozen=True)
class InstanceResult:
    """Objects of one image.

    Attributes:
        labels: (H, W) int32, 0 = background.
        table: a row per label: `label`, `score`, `class`, `area` in pixels, `border` (touches the image's edge), `cut`
            (was seen in pieces only), `y1`, `x1`, `y2`, `x2` half-open box.
        seconds: spent in the network and behind it: `{"network": ..., "post": ...}`.
        full_tiles: tiles in which every slot was used, so that objects may be missing.
        pieces: the objects with all their pixels, also those that others cover, in the order of the labels.
        found: the same with those that others cover altogether, in pixels of the enlarged image.
        shape: (height, width) of the enlarged image.
    """

    labels: np.ndarray
    table: pd.DataFrame
    seconds: dict[str, float]
    full_tiles: int
    pieces: list[Piece] = dataclasses.field(default_factory=list, repr=False)
    found: list[Piece] = dataclasses.field(default_factory=list, repr=False)
    shape: tuple[int, int] = (0, 0)


class InstancePredictor:
    """A detector ready for images.

    Args:
        model: `MaskRCNN`, or the path of its file.
        card: facts that go with it: `contrast` percentiles, `overlap` of tiles in pixels (None = a quarter of the
            tile), `categories`; None = those in the file.
        batch_size: tiles at once.
        large_tiles: cut images that are larger than the model's tile into tiles of 512 px, so that more objects are
            seen whole and less is computed twice; None = when `model` is a path (weights are copied once).

    Attributes:
        model, card: as given or loaded.
        tile: side of the model's tiles.
    """

    def __init__(
        self,
        model: Any,
        card: Mapping[str, Any] | None = None,
        *,
        batch_size: int = 1,
        large_tiles: bool | None = None,
    ):
        backend.select()
        large_tiles = isinstance(model, (str, os.PathLike)) if large_tiles is None else large_tiles
        if isinstance(model, (str, os.PathLike)):
            from keras_microseg.models.saving import load_model

            model, found = load_model(model)
            card = found if card is None else card
        if not hasattr(model, "settings") or not hasattr(model, "anchors"):
            raise UserError(
                "This model is no detector. Use a file of `particles train`; models of `train` go with `segment`."
            )
        self.model, self.card = model, dict(card or {})
        self.batch_size = check_number("batch_size", batch_size, minimum=1, integer=True)
        self.tile = int(model.tile_size)
        self.channels = int(model.settings.channels)
        self.contrast = tuple(self.card.get("contrast", CONTRAST))
        self.overlap = int(self.card.get("overlap") or self.tile // 4)
        self.large_tiles = large_tiles and self.tile < LARGE_TILE
        self._networks = {self.tile: backend.compile_predict(model)}

    def __call__(
        self,
        image: np.ndarray,
        *,
        min_score: float = 0.5,
        scale: float = 1.0,
        iou: float = 0.5,
        stretched: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> InstanceResult:
        """Find the objects of an image.

        Args:
            image: (H, W) or (H, W, channels), any depth.
            min_score: least score of an object.
            scale: factor by which the image is enlarged first; results are in pixels of the image as given.
            iou: overlap from which two detections are the same object.
            stretched: the image is in 0..1 already.
            progress: called as `progress(tiles done, tiles)`.
        """
        image = np.asarray(image)
        original = image.shape[:2]
        values = image.astype(np.float32, copy=False) if stretched else stretch_contrast(image, self.contrast)
        if scale != 1:
            values = _resized(values, scale)
        if values.ndim == 2:
            values = np.repeat(values[..., None], self.channels, axis=-1)
        if values.shape[-1] != self.channels:
            raise UserError(f"The model takes {self.channels} channels. Received: an image of {image.shape}.")
        pieces, network, full = self._pieces(values, min_score, progress)
        start = time.perf_counter()
        found = resolve(pieces, iou=iou)
        labels, drawn = draw_pieces(found, values.shape[:2])
        if scale != 1:
            labels, drawn = _at_size(labels, drawn, original)
        table = _table(labels, drawn)
        post = time.perf_counter() - start + network.pop("paste")
        return InstanceResult(labels, table, {**network, "post": post}, full, drawn, found, values.shape[:2])

    def raw(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """The network's own outputs for (B, S, S, C) float32 tiles."""
        return self._networks[self.tile](np.ascontiguousarray(image, np.float32))

    def _network_for(self, shape: tuple[int, ...]) -> tuple[int, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """Side of the tiles for an image, and the compiled network for them."""
        side = LARGE_TILE if self.large_tiles and max(shape) > 1.25 * self.tile else self.tile
        if side not in self._networks:
            self._networks[side] = backend.compile_predict(self.model.for_tile(side))
        return side, self._networks[side]

    def _pieces(
        self, values: np.ndarray, min_score: float, progress: Callable[[int, int], None] | None
    ) -> tuple[list[Piece], dict[str, float], int]:
        shape = values.shape[:2]
        side, network = self._network_for(shape)
        halo = 0 if max(shape) <= side else min(self.overlap // 2, side // 2 - 1)
        grid = TileGrid.cover(shape, side, halo)
        outside = values.mean(axis=(0, 1))
        pieces: list[Piece] = []
        seconds, full, done = {"network": 0.0, "paste": 0.0}, 0, 0
        for batch in grid.batches(self.batch_size):
            start = time.perf_counter()
            blocks = np.zeros((self.batch_size, side, side, self.channels), np.float32)
            for k, tile in enumerate(batch.tiles):
                blocks[k] = _read(values, tile, outside, self.overlap // 2)
            found = network(blocks)
            middle = time.perf_counter()
            for k, tile in enumerate(batch.tiles):
                valid = (found["valid"][k] > 0) & (found["scores"][k] >= min_score)
                full += bool((found["valid"][k] > 0).all())
                boxes = found["boxes"][k][valid] * side
                number = done + k
                for box, mask, score, category in zip(
                    boxes, found["masks"][k][valid], found["scores"][k][valid], found["classes"][k][valid], strict=True
                ):
                    piece = _piece(box, mask, float(score), int(category), tile, number, shape)
                    if piece is not None:
                        pieces.append(piece)
            end = time.perf_counter()
            seconds["network"] += middle - start
            seconds["paste"] += end - middle
            done += len(batch.tiles)
            if progress is not None:
                progress(done, len(grid))
        return pieces, seconds, full


def _read(values: np.ndarray, tile: Tile, outside: np.ndarray, margin: int) -> np.ndarray:
    """The block of a tile. Beyond the image it is reflected for `margin` pixels, then has the mean grey.

    What the border cuts is found better when it goes on than when it ends; farther out, copies would only take slots.
    """
    block = np.array(read_tile(values, tile))
    for axis, (before, after) in enumerate(tile.pad):
        length = block.shape[axis]
        for part in (slice(0, max(before - margin, 0)), slice(length - max(after - margin, 0), length)):
            window = [slice(None)] * block.ndim
            window[axis] = part
            block[tuple(window)] = outside
    return block


def _piece(
    box: np.ndarray, mask: np.ndarray, score: float, category: int, tile: Tile, number: int, shape: tuple[int, int]
) -> Piece | None:
    origin = np.array([*tile.origin, *tile.origin], np.float32)
    cut = False
    for axis in (0, 1):
        first, last = tile.origin[axis], tile.origin[axis] + tile.shape[axis]
        cut |= bool(box[axis] < _TOUCH and first > 0)
        cut |= bool(box[axis + 2] > tile.shape[axis] - _TOUCH and last < shape[axis])
    top, left, pasted = paste_mask(mask, box + origin, shape)
    return Piece(top, left, pasted, score, category, cut, number) if pasted.any() else None


def _table(labels: np.ndarray, drawn: list[Piece]) -> pd.DataFrame:
    areas = np.bincount(labels.ravel(), minlength=len(drawn) + 1)[1:]
    edge = np.zeros(len(drawn) + 1, bool)
    for line in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        edge[line] = True
    rows = [
        (
            k + 1,
            round(p.score, 4),
            p.category,
            int(areas[k]),
            bool(edge[k + 1]),
            p.cut,
            p.top,
            p.left,
            p.bottom,
            p.right,
        )
        for k, p in enumerate(drawn)
    ]
    columns = ["label", "score", "class", "area", "border", "cut", "y1", "x1", "y2", "x2"]
    kinds = dict(zip(columns, (int, float, int, int, bool, bool, int, int, int, int), strict=True))
    return pd.DataFrame(rows, columns=columns).astype(kinds)


def _resized(values: np.ndarray, scale: float) -> np.ndarray:
    from skimage.transform import resize

    size = tuple(max(1, round(n * scale)) for n in values.shape[:2])
    return resize(values, (*size, *values.shape[2:]), order=1, anti_aliasing=scale < 1).astype(np.float32)


def _at_size(labels: np.ndarray, drawn: list[Piece], shape: tuple[int, int]) -> tuple[np.ndarray, list[Piece]]:
    """Labels and pieces at another size, by nearest neighbour."""
    index = [
        np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in zip(shape, labels.shape, strict=True)
    ]
    moved = []
    for piece in drawn:
        rows = np.flatnonzero((index[0] >= piece.top) & (index[0] < piece.bottom))
        columns = np.flatnonzero((index[1] >= piece.left) & (index[1] < piece.right))
        if not len(rows) or not len(columns):
            moved.append(None)
            continue
        mask = piece.mask[np.ix_(index[0][rows] - piece.top, index[1][columns] - piece.left)]
        moved.append(dataclasses.replace(piece, top=int(rows[0]), left=int(columns[0]), mask=mask))
    labels = labels[np.ix_(*index)]
    visible = np.bincount(labels.ravel(), minlength=len(drawn) + 1)[1:] > 0
    keep = [k for k, piece in enumerate(moved) if piece is not None and visible[k]]
    numbers = np.zeros(len(drawn) + 1, np.int32)
    numbers[[k + 1 for k in keep]] = np.arange(1, len(keep) + 1)
    return numbers[labels], [moved[k] for k in keep]
