"""From detections (boxes with small masks) to one label image: pasting, joining over tiles, overlaps resolved.

Detections of overlapping tiles name the same objects several times, whole and cut off. Whole ones come first, better
scores before worse; what repeats one that is kept, or is a part of it, is dropped; two cut pieces that agree where
their tiles overlap become one object. Masks live in the window of their box only: cost follows the objects.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from keras_microseg.checks import UserError, check_number

_CELL = 64


@dataclasses.dataclass
class Piece:
    """One detection in image coordinates.

    Attributes:
        top, left: corner of its window, pixels; inside the image.
        mask: (h, w) bool.
        score: 0..1.
        category: class, from 1 on.
        cut: it touches the inner edge of its tile, so part of it may be missing.
        tile: number of its tile.
    """

    top: int
    left: int
    mask: np.ndarray
    score: float
    category: int = 1
    cut: bool = False
    tile: int = 0

    @property
    def bottom(self) -> int:
        return self.top + self.mask.shape[0]

    @property
    def right(self) -> int:
        return self.left + self.mask.shape[1]

    @property
    def area(self) -> int:
        return int(np.count_nonzero(self.mask))


def paste_mask(
    mask: np.ndarray, box: Sequence[float], shape: tuple[int, int], threshold: float = 0.5
) -> tuple[int, int, np.ndarray]:
    """A small mask of probabilities drawn at the size of its box.

    Args:
        mask: (k, k) probabilities.
        box: `(y1, x1, y2, x2)` in pixels, half-open: pixel (0, 0) spans 0 to 1.
        shape: (height, width) of the image; what lies outside is cut off.
        threshold: a pixel is inside when the probability, bilinear at its centre, reaches it.

    Returns:
        `(top, left, mask)`: window corner and (h, w) bool; size 0 for an empty box.
    """
    samples, corner = [], []
    for axis in (0, 1):
        start, stop = float(box[axis]), float(box[axis + 2])
        first, last = max(int(np.floor(start)), 0), min(int(np.ceil(stop)), shape[axis])
        if stop <= start or last <= first:
            return 0, 0, np.zeros((0, 0), bool)
        side = mask.shape[axis]
        centres = np.arange(first, last) + 0.5
        position = (centres - start) / (stop - start) * side - 0.5
        inside = (centres >= start) & (centres <= stop)
        position = np.clip(position, 0, side - 1)
        low = np.minimum(position.astype(np.int64), max(side - 2, 0))
        samples.append((low, np.minimum(low + 1, side - 1), (position - low).astype(np.float32), inside))
        corner.append(first)
    (y0, y1, fy, in_y), (x0, x1, fx, in_x) = samples
    rows = mask[y0] * (1 - fy)[:, None] + mask[y1] * fy[:, None]
    values = rows[:, x0] * (1 - fx) + rows[:, x1] * fx
    return corner[0], corner[1], (values >= threshold) & in_y[:, None] & in_x[None, :]


def resolve(
    pieces: Sequence[Piece],
    *,
    iou: float = 0.5,
    containment: float = 0.8,
    min_ratio: float = 0.2,
) -> list[Piece]:
    """The objects that the pieces show, each once, best first.

    A piece is dropped when it overlaps a kept one by more than `iou`, or lies inside it by more than `containment` and
    is a cut piece or at least `min_ratio` of its size (a fragment; much smaller things on top of an object stay).

    Args:
        pieces: of all tiles; those without a pixel are left out.
        iou: see above; also the least agreement, of what two cut pieces have in their common window, for joining them.
        containment, min_ratio: see above.
    """
    for name, value in (("iou", iou), ("containment", containment), ("min_ratio", min_ratio)):
        check_number(name, value, minimum=0, maximum=1)
    order = sorted((piece for piece in pieces if piece.mask.any()), key=lambda piece: (piece.cut, -piece.score))
    kept: list[Piece] = []
    areas: list[int] = []
    cells: dict[tuple[int, int], list[int]] = {}
    for piece in order:
        area, verdict = piece.area, "keep"
        near = sorted({k for cell in _cells(piece) for k in cells.get(cell, ())})
        for k in near:
            other = kept[k]
            common = _common(piece, other)
            if not common:
                continue
            if piece.cut and other.cut and piece.tile != other.tile and _agreement(piece, other) > iou:
                kept[k] = _joined(other, piece)
                areas[k] = kept[k].area
                for cell in _cells(kept[k]):
                    if k not in cells.setdefault(cell, []):
                        cells[cell].append(k)
                verdict = "joined"
                break
            inside, ratio = common / area, area / areas[k]
            if common > iou * (area + areas[k] - common) or (
                inside > containment and (piece.cut or ratio >= min_ratio)
            ):
                verdict = "drop"
                break
        if verdict == "keep":
            for cell in _cells(piece):
                cells.setdefault(cell, []).append(len(kept))
            kept.append(piece)
            areas.append(area)
    return kept


def draw_pieces(
    pieces: Sequence[Piece], shape: tuple[int, int], *, min_visible: float = 0.3
) -> tuple[np.ndarray, list[Piece]]:
    """Label image of objects, one label per pixel: smaller objects lie on top of larger ones.

    Args:
        pieces: objects, see `resolve`.
        shape: (height, width).
        min_visible: objects of which less is left uncovered are left out.

    Returns:
        `(labels, drawn)`: (H, W) int32, label k (from 1) belongs to `drawn[k - 1]`, in the order of `pieces`.
    """
    labels = np.zeros(shape, np.int32)
    for k in sorted(range(len(pieces)), key=lambda k: -pieces[k].area):
        piece = pieces[k]
        window = labels[piece.top : piece.bottom, piece.left : piece.right]
        if window.shape != piece.mask.shape:
            raise UserError(f"A detection at {(piece.top, piece.left)} reaches outside the image of {shape} pixels.")
        window[piece.mask] = k + 1
    visible = np.bincount(labels.ravel(), minlength=len(pieces) + 1)[1:]
    enough = [bool(visible[k] > 0 and visible[k] >= min_visible * piece.area) for k, piece in enumerate(pieces)]
    numbers = np.zeros(len(pieces) + 1, np.int32)
    numbers[1:][enough] = np.arange(1, sum(enough) + 1)
    return numbers[labels], [piece for piece, stays in zip(pieces, enough, strict=True) if stays]


def _cells(piece: Piece) -> list[tuple[int, int]]:
    rows = range(piece.top // _CELL, (piece.bottom - 1) // _CELL + 1)
    return [(y, x) for y in rows for x in range(piece.left // _CELL, (piece.right - 1) // _CELL + 1)]


def _windows(a: Piece, b: Piece) -> tuple[np.ndarray, np.ndarray] | None:
    """Both masks in the common window."""
    top, left = max(a.top, b.top), max(a.left, b.left)
    bottom, right = min(a.bottom, b.bottom), min(a.right, b.right)
    if bottom <= top or right <= left:
        return None
    return tuple(p.mask[top - p.top : bottom - p.top, left - p.left : right - p.left] for p in (a, b))


def _common(a: Piece, b: Piece) -> int:
    windows = _windows(a, b)
    return 0 if windows is None else int(np.count_nonzero(windows[0] & windows[1]))


def _agreement(a: Piece, b: Piece) -> float:
    """IoU of two masks within their common window."""
    windows = _windows(a, b)
    if windows is None:
        return 0.0
    union = np.count_nonzero(windows[0] | windows[1])
    return np.count_nonzero(windows[0] & windows[1]) / union if union else 0.0


def _joined(a: Piece, b: Piece) -> Piece:
    top, left = min(a.top, b.top), min(a.left, b.left)
    mask = np.zeros((max(a.bottom, b.bottom) - top, max(a.right, b.right) - left), bool)
    for piece in (a, b):
        mask[piece.top - top : piece.bottom - top, piece.left - left : piece.right - left] |= piece.mask
    better = a if a.score >= b.score else b
    return Piece(top, left, mask, better.score, better.category, True, b.tile)
