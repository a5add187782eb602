"""Images stitched from fields: find the fields of a map, put them where they belong, even out their brightness."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """How the fields of an image are laid out.

    Attributes:
        pitch: (rows, columns) from field to field, px of the image.
        first: (row, column) of the first border after the frame, 0 < first <= pitch.
        overlap: rows and columns that a field repeats of the one before.
        shear: (rows per field column, columns per field row) by which neighbouring fields are set off.
        agreement: share of equal pixels in what fields repeat, (rows, columns); NaN where nothing repeats.
        shape: of the image.
    """

    pitch: tuple[int, int]
    first: tuple[int, int]
    overlap: tuple[int, int]
    shear: tuple[int, int]
    agreement: tuple[float, float]
    shape: tuple[int, int]

    @property
    def borders(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of each row of fields and first column of each column of fields, from 0."""
        return tuple(
            np.concatenate([[0], np.arange(f, n, p)]) if f < n else np.zeros(1, int)
            for f, n, p in zip(self.first, self.shape, self.pitch, strict=True)
        )

    def offset(self, row: int, column: int) -> tuple[int, int]:
        """What a pixel of the field (row, column) moves by when the mosaic is repaired."""
        return (
            -row * self.overlap[0] + column * self.shear[0],
            -column * self.overlap[1] + row * self.shear[1],
        )


def find_mosaic(labels: np.ndarray, *, max_overlap: int = 12, max_shear: int = 8, min_pitch: int = 24) -> Mosaic:
    """Pitch, overlap and shear of the fields of a class map.

    Grains break off at the borders of fields, so more pixels differ from their neighbour there: the pitch and the
    first border are those of the comb through this profile that stands out most, against its spread. Overlap and shear
    are the shift at which the first rows (columns) of all fields agree best with the last ones of the fields before;
    without any repeat, the shift at which outlines go on best. Fields set off by less than about a quarter of a grain
    need many borders to stand out.

    Args:
        labels: (H, W) classes.
        max_overlap, max_shear: largest values to look for, px.
        min_pitch: smallest pitch to look for, px.

    Raises:
        UserError: no periodic borders; the map is no mosaic or was repaired already.
    """
    if labels.ndim != 2:
        raise UserError(f"A class map has two axes. Received: shape {labels.shape}")
    found = []
    for name, turned in (("rows", labels), ("columns", labels.T)):
        changes = _changes(turned)
        pitch, first, strength = find_comb(changes, min_pitch)
        if strength < 6:
            raise UserError(
                f"No periodic field borders were found along the {name} (strength {strength:.1f}, needed 6). "
                "The map may be repaired already, or too small; pass the layout by hand."
            )
        found.append((pitch, first, *_repeat(turned, pitch, first, max_overlap, max_shear)))
    (pitch_y, first_y, over_y, shear_x, agree_y), (pitch_x, first_x, over_x, shear_y, agree_x) = found
    return Mosaic(
        (pitch_y, pitch_x), (first_y, first_x), (over_y, over_x), (shear_y, shear_x), (agree_y, agree_x), labels.shape
    )


def _changes(labels: np.ndarray) -> np.ndarray:
    """(H - 1,) share of each row that differs from the next one; where the sample's straight edge lies: the median."""
    edge = labels[[0, -1]].ravel().astype(np.int64)
    ground = int(np.bincount(edge).argmax())
    changes = (labels[1:] != labels[:-1]).mean(axis=1)
    if (edge == ground).mean() > 0.9:
        inside = (labels != ground).mean(axis=1)
        changes[np.abs(np.diff(inside)) > 0.3] = np.median(changes)
    return changes


def find_comb(changes: np.ndarray, min_pitch: int = 24) -> tuple[int, int, float]:
    """Period and place of regular peaks in a profile.

    Args:
        changes: (N,) entry k belongs to the step from row k to row k + 1.
        min_pitch: smallest period.

    Returns:
        Period, index of the first row after a border (0 < first <= period), and how many standard errors the mean of
        the peaks lies above the rest.
    """
    rest = changes - ndimage.median_filter(changes, size=min(15, len(changes)), mode="nearest")
    spread = 1.48 * np.median(np.abs(rest - np.median(rest))) + 1e-9
    excess = np.clip(rest / spread, -3, 12)  # one strong row must not make a comb
    best = (0, 0, -np.inf)
    for pitch in range(min_pitch, len(changes) // 2 + 1):
        rows = -(-len(excess) // pitch)
        padded = np.pad(excess, (0, rows * pitch - len(excess)), constant_values=np.nan).reshape(rows, pitch)
        counts = np.isfinite(padded).sum(axis=0)
        score = np.nansum(padded, axis=0) / np.sqrt(counts) * (counts >= 2)
        place = int(np.argmax(score))
        if score[place] > best[2] + 1e-9:
            best = pitch, place + 1, float(score[place])
    return best


def _repeat(labels: np.ndarray, pitch: int, first: int, max_overlap: int, max_shear: int) -> tuple[int, int, float]:
    """Overlap, shear and agreement along the rows."""
    borders = [b for b in range(first, len(labels) - max_overlap, pitch) if b >= max_overlap]
    inner = slice(max_shear, labels.shape[1] - max_shear)
    # what is the same everywhere (the ground) tells nothing
    ground = np.bincount(labels[[0, -1]].ravel().astype(np.int64) + 0).argmax()

    def agreement(rows: np.ndarray, before: np.ndarray, shear: int) -> float:
        one = labels[rows][:, inner]
        other = labels[before][:, inner.start + shear : inner.stop + shear]
        counted = (one != ground) | (other != ground)
        return float((one == other)[counted].mean()) if counted.any() else 0.0

    best, on = (0, 0, -1.0), (0, 0, -1.0)
    for shear in range(-max_shear, max_shear + 1):
        for overlap in range(1, max_overlap + 1):
            rows = np.concatenate([np.arange(b, b + overlap) for b in borders])
            score = agreement(rows, rows - overlap, shear)
            best = max(best, (overlap, shear, score), key=lambda entry: entry[2])
        rows = np.array(borders)
        score = agreement(rows, rows - 1, shear)
        on = max(on, (0, shear, score), key=lambda entry: entry[2])
    usual = np.setdiff1d(np.arange(1, len(labels), max(1, len(labels) // 400)), borders)
    natural = agreement(usual, usual - 1, 0)
    if best[:2] == (1, on[1]) and best[2] <= natural + 0.02:  # neighbours as anywhere else: nothing repeats
        return 0, on[1], np.nan
    return best


def repair_mosaic(labels: np.ndarray, mosaic: Mosaic, *, fill: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Every field of a map at its place, repeats left out.

    Args:
        labels: (H, W) map that `mosaic` describes.
        mosaic: its layout.
        fill: value of what no field covers.

    Returns:
        The repaired map, of the dtype of `labels`, and where a field covers it (True).
    """
    if tuple(labels.shape) != tuple(mosaic.shape):
        raise UserError(f"The layout is that of a map of shape {mosaic.shape}. Received: shape {labels.shape}")
    rows, columns = mosaic.borders
    corners = np.array([mosaic.offset(i, j) for i in range(len(rows)) for j in range(len(columns))])
    corners = corners.reshape(len(rows), len(columns), 2) + np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
    heights, widths = (np.diff(np.append(b, n)) for b, n in zip((rows, columns), labels.shape, strict=True))
    low = corners.reshape(-1, 2).min(axis=0)
    sizes = np.stack(np.meshgrid(heights, widths, indexing="ij"), -1)
    high = (corners + sizes).reshape(-1, 2).max(axis=0)
    out = np.full(tuple(high - low), fill, labels.dtype)
    valid = np.zeros(out.shape, bool)
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            y, x = corners[i, j] - low
            place = np.s_[y : y + heights[i], x : x + widths[j]]
            free = ~valid[place]  # the field measured first keeps what both show
            out[place][free] = labels[top : top + heights[i], left : left + widths[j]][free]
            valid[place] = True
    return out, valid


@dataclasses.dataclass(frozen=True)
class FieldGains:
    """Brightness of the fields of a micrograph, relative to their common mean.

    Attributes:
        borders: first row of each row of fields, first column of each column of fields, px.
        gains: (rows, columns) factors to divide by.
        shading: (h, w) factors inside every field to divide by, mean 1, or None.
        black: grey value that stays.
    """

    borders: tuple[np.ndarray, np.ndarray]
    gains: np.ndarray
    shading: np.ndarray | None
    black: float

    def apply(self, window: np.ndarray, origin: tuple[int, int] = (0, 0)) -> np.ndarray:
        """Corrected window of the micrograph, float32; `origin` is its first pixel."""
        index, inside = [], []
        for border, start, length in zip(self.borders, origin, window.shape, strict=True):
            at = np.arange(start, start + length)
            field = np.searchsorted(border, at, side="right") - 1
            index.append(field)
            inside.append(at - border[field])
        factor = self.gains[np.ix_(*index)]
        if self.shading is not None:
            factor = (
                factor
                * self.shading[np.ix_(*(np.minimum(i, n - 1) for i, n in zip(inside, self.shading.shape, strict=True)))]
            )
        return ((window - self.black) / factor + self.black).astype(np.float32)


def match_fields(
    image: np.ndarray,
    borders: tuple[np.ndarray, np.ndarray],
    *,
    mask: np.ndarray | None = None,
    black: float = 0.0,
    strip: int = 8,
    shading: bool = False,
) -> FieldGains:
    """Gains that make the steps between stitched fields vanish.

    The ratio across each border is the median over pairs of pixels on its two sides; the gains are the least-squares
    solution over all borders, with geometric mean 1.

    Args:
        image: (H, W) grey values (reduce large images first; then give the borders of the reduced one).
        borders: first row of each row of fields, first column of each column of fields.
        mask: (H, W) True on the sample; pairs elsewhere are not looked at.
        black: grey value of no signal.
        strip: pixels on each side of a border that are averaged.
        shading: also estimate a brightness profile common to all fields (lens, detector).

    Raises:
        UserError: image and mask of different shape.
    """
    image = np.asarray(image, np.float32) - np.float32(black)
    if mask is not None and mask.shape != image.shape:
        raise UserError(f"Image and mask must have one shape. Received: {image.shape} and {mask.shape}")
    mask = np.ones(image.shape, bool) if mask is None else mask
    rows, columns = (np.asarray(b, int) for b in borders)
    ends = np.append(rows[1:], image.shape[0]), np.append(columns[1:], image.shape[1])
    profile = None
    if shading:
        profile = _shading(image, mask, (rows, columns), ends)
        whole = FieldGains((rows, columns), np.ones((len(rows), len(columns))), profile, 0.0)
        image = whole.apply(image)
    equations, values, weights = [], [], []
    number = np.arange(len(rows) * len(columns)).reshape(len(rows), len(columns))
    for i, j in np.ndindex(number.shape):
        for di, dj in ((1, 0), (0, 1)):
            if i + di >= len(rows) or j + dj >= len(columns):
                continue
            here = np.s_[rows[i] : ends[0][i], columns[j] : ends[1][j]]
            there = np.s_[rows[i + di] : ends[0][i + di], columns[j + dj] : ends[1][j + dj]]
            one, other = image[here], image[there]
            inside, beyond = mask[here], mask[there]
            if dj:
                one, other, inside, beyond = one.T, other.T, inside.T, beyond.T
            good = inside[-strip:].all(axis=0) & beyond[:strip].all(axis=0)
            one, other = one[-strip:].mean(axis=0)[good], other[:strip].mean(axis=0)[good]
            bright = (one > 0) & (other > 0)
            if bright.sum() < 8:
                continue
            ratio = np.log(other[bright] / one[bright])
            spread = 1.48 * np.median(np.abs(ratio - np.median(ratio))) + 1e-3
            equations.append((number[i + di, j + dj], number[i, j]))
            values.append(np.median(ratio))
            weights.append(np.sqrt(bright.sum()) / spread)
    logs = np.zeros(number.size)
    if equations:
        system = np.zeros((len(equations) + number.size, number.size))
        pairs = np.array(equations)
        system[np.arange(len(pairs)), pairs[:, 0]] = weights
        system[np.arange(len(pairs)), pairs[:, 1]] = -np.array(weights)
        system[len(pairs) :] = np.eye(number.size) * 0.01 * np.median(weights)  # fields of no pair stay at 1
        target = np.concatenate([np.array(values) * weights, np.zeros(number.size)])
        logs = np.linalg.lstsq(system, target, rcond=None)[0]
    gains = np.exp(logs - logs.mean()).reshape(number.shape)
    return FieldGains((rows, columns), gains, profile, float(black))


def _shading(image: np.ndarray, mask: np.ndarray, starts: Any, ends: Any) -> np.ndarray:
    shape = tuple(int((e - s).max()) for s, e in zip(starts, ends, strict=True))
    stack = []
    for top, bottom in zip(starts[0], ends[0], strict=True):
        for left, right in zip(starts[1], ends[1], strict=True):
            part = image[top:bottom, left:right]
            if part.shape == shape and mask[top:bottom, left:right].all():
                stack.append(part / max(float(np.median(part)), 1e-6))
    if len(stack) < 3:
        return np.ones(shape, np.float32)
    smooth = ndimage.gaussian_filter(np.median(stack, axis=0), max(shape) / 12, mode="nearest")
    return (smooth / smooth.mean()).astype(np.float32)
