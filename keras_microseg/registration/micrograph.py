"""A micrograph corrected and reduced while it is read: grey value of black, brightness of stitched fields, means.

Nothing is held but the rows asked for, so micrographs of 10^10 pixels pass through a few megabytes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_number
from keras_microseg.image import LazyArray
from keras_microseg.registration.mosaic import FieldGains, match_fields
from keras_microseg.registration.sample import Disc, find_disc, reduce_image

_WORK_EDGE = 4096  # px; fields are looked for in an image reduced to this
_CLEAR = 8.0  # standard errors by which a comb of steps must stand out
_PIECE = 1 << 23  # pixels read at once


@dataclasses.dataclass(frozen=True)
class Correction:
    """What is done to the grey values of a micrograph.

    Attributes:
        black: grey value subtracted.
        gains: brightness of the fields, or None.
        disc: the round sample, or None when it fills the image.
    """

    black: float = 0.0
    gains: FieldGains | None = None
    disc: Disc | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        gains = None
        if self.gains is not None:
            gains = {
                "borders": [b.tolist() for b in self.gains.borders],
                "gains": self.gains.gains.tolist(),
                "black": self.gains.black,
            }
        return {
            "black": self.black,
            "gains": gains,
            "disc": None if self.disc is None else dataclasses.asdict(self.disc),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Correction:
        """What `to_dict` gave."""
        gains, disc = values["gains"], values["disc"]
        if gains is not None:
            borders = tuple(np.array(b, int) for b in gains["borders"])
            gains = FieldGains(borders, np.array(gains["gains"]), None, gains["black"])
        if disc is not None:
            disc = Disc(tuple(disc["centre"]), disc["radius"], disc["error"], disc["background"])
        return cls(values["black"], gains, disc)


def estimate_correction(image: Any, *, fields: bool = True) -> Correction:
    """Ground, disc and field brightness of a micrograph, from one reading.

    Without a disc the sample is taken to fill the image, and black is left as it is.

    Args:
        image: (H, W) grey values, array or lazy array.
        fields: look for stitched fields and even out their brightness.
    """
    factor = max(1, -(-max(image.shape) // _WORK_EDGE))
    small = reduce_image(image, factor)
    try:
        found = find_disc(small)
    except UserError:
        found = None
    mask = np.ones(small.shape, bool)
    black, disc = 0.0, None
    if found is not None:
        mask = found.mask(small.shape)
        black = found.background
        centre = tuple(c * factor + (factor - 1) / 2 for c in found.centre)
        disc = Disc(centre, found.radius * factor, found.error * factor, black)
    gains = None
    borders = find_fields(small) if fields else None
    if borders is not None:
        bright = mask & (small > black + 0.25 * max(float(np.median(small[mask])) - black, 1e-6))
        fit = match_fields(small, borders, mask=bright, black=black)
        gains = FieldGains(tuple(b * factor for b in fit.borders), fit.gains, None, black)
    return Correction(float(black), gains, disc)


def find_fields(image: np.ndarray, *, min_pitch: int = 48) -> tuple[np.ndarray, np.ndarray] | None:
    """First rows and columns of the stitched fields of a micrograph, from steps of brightness; None without any.

    Three borders at least, all of them clear, and nearly square fields: streaks of charging are as strong as steps but
    keep no distance.

    Args:
        image: (H, W) grey values.
        min_pitch: smallest field, px.
    """
    if min(image.shape) < 4 * min_pitch:
        return None
    profiles = []
    for turned in (image, image.T):
        near, far = _row_changes(turned, 1, min_pitch), _row_changes(turned, 9, min_pitch)
        steps = np.zeros(len(turned) - 1)
        # a step shows from row to row and stays; a streak goes back
        steps[4:-4] = np.minimum(np.abs(near[4:-4]), np.abs(far)).mean(axis=1)
        profiles.append(steps)
    found = [_regular_steps(steps, min_pitch, len(steps) // 3) for steps in profiles]
    clear = int(np.argmax([strength for *_, strength in found]))
    if found[clear][2] < _CLEAR:
        return None
    # fields are nearly square: the other axis need not find its pitch by itself
    pitch = found[clear][0]
    found[1 - clear] = _regular_steps(profiles[1 - clear], int(0.98 * pitch), int(np.ceil(1.02 * pitch)))
    if found[1 - clear][2] < _CLEAR / 2:
        return None
    return tuple(
        np.concatenate([[0], np.arange(first, n, pitch)])
        for (pitch, first, _), n in zip(found, image.shape, strict=True)
    )


def _row_changes(image: np.ndarray, reach: int, min_pitch: int) -> np.ndarray:
    """(H - reach, parts) mean change over `reach` rows in stretches of columns; few pixels change grain on that way."""
    width = image.shape[1]
    change = np.asarray(image[reach:] - image[:-reach], np.float32)
    limit = 3 * 1.48 * float(np.median(np.abs(change[:, :: max(1, width // 256)]))) + 1
    np.clip(change, -limit, limit, out=change)
    edge = max(min_pitch, width // 16)
    starts = np.arange(0, width, edge)
    return np.add.reduceat(change, starts, axis=1) / np.diff(np.append(starts, width))


def _regular_steps(steps: np.ndarray, min_pitch: int, max_pitch: int) -> tuple[int, int, float]:
    """Period, first row after a border and strength of the comb whose weaker teeth (lower quartile) stand out most."""
    rest = steps - ndimage.median_filter(steps, size=15, mode="nearest")
    spread = 1.48 * np.median(np.abs(rest - np.median(rest))) + 1e-9
    excess = np.clip(rest / spread, -3, 12)
    best = (0, 0, -np.inf)
    for pitch in range(min_pitch, max_pitch + 1):
        rows = -(-len(excess) // pitch)
        padded = np.pad(excess, (0, rows * pitch - len(excess)), constant_values=np.inf).reshape(rows, pitch)
        counts = np.isfinite(padded).sum(axis=0)
        weak = np.sort(padded, axis=0)[(counts - 1) // 4, np.arange(pitch)]
        score = weak * np.sqrt(counts) * (counts >= 3)
        place = int(np.argmax(score))
        if score[place] > best[2] + 1e-9:
            best = pitch, place + 1, float(score[place])
    return best


class CorrectedMicrograph(LazyArray):
    """A micrograph corrected, and reduced by means of `factor` x `factor` pixels; uint8 or the type of the source.

    Args:
        image: (H, W) uint8 or uint16 grey values, array or lazy array.
        correction: see `Correction`; None = none.
        factor: pixels of the source per pixel along an edge; rows and columns left over at the end are dropped.
    """

    def __init__(self, image: Any, correction: Correction | None = None, *, factor: int = 1):
        check_number("factor", factor, minimum=1, integer=True)
        self.image, self.correction, self.factor = image, correction or Correction(), factor
        self.shape = tuple(n // factor for n in image.shape)
        self.dtype = np.dtype(image.dtype)
        if 0 in self.shape:
            raise UserError(f"`factor` must not exceed the image. Received: factor={factor} for shape {image.shape}")
        chunks = getattr(image, "chunks", None)
        self.chunks = None if chunks is None else tuple(max(1, c // factor) for c in chunks)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        (rows, columns), f = block, self.factor
        out = np.empty((rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        step = max(1, _PIECE // (max(out.shape[1], 1) * f * f))
        for top in range(0, len(out), step):
            end = min(top + step, len(out))
            origin = ((rows.start + top) * f, columns.start * f)
            part = np.asarray(self.image[origin[0] : (rows.start + end) * f, origin[1] : columns.stop * f])
            grey = part.astype(np.float32)
            if self.correction.gains is not None:
                grey = self.correction.gains.apply(grey, origin)
            if self.correction.black:
                grey = grey - np.float32(self.correction.black)
            if f > 1:
                grey = grey.reshape(end - top, f, out.shape[1], f).mean(axis=(1, 3))
            if self.dtype.kind == "u":
                grey = np.clip(np.rint(grey), 0, np.iinfo(self.dtype).max)
            out[top:end] = grey
        return out
