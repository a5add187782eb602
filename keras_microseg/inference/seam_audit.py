"""Do the tiles of a finished map show? Two checks, made after every run.

Along seams a class changes from one pixel to the next as often as anywhere else; where seams cut grains it changes more
often. And a tile laid over the crossing of four seams must say what the four tiles said.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from keras_microseg.io.palettes import IGNORE
from keras_microseg.tiling import TileGrid

_WINDOW = 128


@dataclasses.dataclass(frozen=True)
class SeamAudit:
    """What was found.

    Attributes:
        seam_changes, seam_pairs: neighbours of different classes, and all neighbours, across seams.
        other_changes, other_pairs: the same within tiles, near by, at rows of the same phase of the network's stride.
        ratio: rate across seams over the rate elsewhere; 1 = no seam, None = nothing to compare.
        z: the difference in standard deviations of counting; above 4 is more than chance.
        recomputed_pixels, recomputed_differences: pixels around crossings of seams predicted again with the crossing in
            the middle of a tile, and how many got another class.
    """

    seam_changes: int
    seam_pairs: int
    other_changes: int
    other_pairs: int
    ratio: float | None
    z: float
    recomputed_pixels: int = 0
    recomputed_differences: int = 0

    @property
    def passed(self) -> bool:
        """No more changes across seams than chance allows; at most 1 % of pixels at crossings get another class."""
        return not (self.z > 4 and (self.ratio or 0) > 1.1) and (
            self.recomputed_differences <= 0.01 * max(self.recomputed_pixels, 1)
        )

    def to_dict(self) -> dict[str, Any]:
        return {**dataclasses.asdict(self), "passed": self.passed}


def audit_seams(
    classes: Any,
    grid: TileGrid,
    *,
    predict_at: Callable[[tuple[int, int]], np.ndarray] | None = None,
    multiple_of: int = 1,
    max_windows: int = 200,
    max_again: int = 8,
    seed: int = 0,
) -> SeamAudit:
    """Compare seams with what lies between them.

    Args:
        classes: (H, W) map, array or lazy array.
        grid: of the tiles.
        predict_at: classes of a block of the tile's shape that begins at an origin (inside the map), for the second
            check; None leaves it out.
        multiple_of: the network's total stride.
        max_windows, max_again: places looked at by the two checks.
        seed: of their choice.
    """
    rng = np.random.default_rng(seed)
    changes, pairs = np.zeros(2, np.int64), np.zeros(2, np.int64)  # across seams, elsewhere
    for axis in (0, 1):
        other = 1 - axis
        seams = np.arange(1, grid.counts[axis]) * grid.stride[axis]
        if not len(seams):
            continue
        spots = max(1, -(-grid.shape[other] // _WINDOW))
        chosen = rng.permutation(len(seams) * spots)[: max_windows // 2]
        reach = min(max(_WINDOW // 2, 2 * multiple_of), grid.stride[axis])
        for number in chosen:
            seam, spot = int(seams[number // spots]), int(number % spots) * _WINDOW
            place = [slice(0), slice(0)]
            place[axis] = slice(max(0, seam - reach), min(seam + reach, grid.shape[axis]))
            place[other] = slice(spot, min(spot + _WINDOW, grid.shape[other]))
            window = np.moveaxis(np.asarray(classes[tuple(place)]), axis, 0)
            known = (window[1:] != IGNORE) & (window[:-1] != IGNORE)
            differ = ((window[1:] != window[:-1]) & known).sum(axis=1)
            at = seam - place[axis].start - 1
            # a network that halves its input prefers borders at some rows: compare rows of one phase
            alike = [i for i in range(at % multiple_of, len(differ), multiple_of) if i != at]
            for kind, lines in enumerate(([at], alike)):
                changes[kind] += differ[lines].sum()
                pairs[kind] += known[lines].sum()
    rates = changes / np.maximum(pairs, 1)
    pooled = changes.sum() / max(pairs.sum(), 1)
    # neighbouring pairs along a seam belong to one grain border: about three of them count as one
    spread = np.sqrt(3 * pooled * (1 - pooled) * (1 / np.maximum(pairs, 1)).sum())
    z = float((rates[0] - rates[1]) / spread) if spread > 0 else 0.0
    again = (0, 0) if predict_at is None else _again(classes, grid, predict_at, multiple_of, max_again, rng)
    ratio = float(rates[0] / rates[1]) if changes[1] else None
    return SeamAudit(*(int(v) for pair in zip(changes, pairs, strict=True) for v in pair), ratio, z, *again)


def _again(
    classes: Any, grid: TileGrid, predict_at: Callable, multiple_of: int, most: int, rng: np.random.Generator
) -> tuple[int, int]:
    """Pixels within a halo of a crossing, predicted with the crossing in the middle of a tile: (all, different)."""
    half = [s // 2 // multiple_of * multiple_of for s in grid.stride]  # the network's phase stays
    crossings = [(y, x) for y in range(1, grid.counts[0]) for x in range(1, grid.counts[1])]
    pixels = differences = 0
    for number in rng.permutation(len(crossings))[: most if min(half) else 0]:
        places = list(zip(crossings[number], grid.stride, grid.lead, half, grid.halo, strict=True))
        origin = tuple(i * s - lead - s + h for i, s, lead, h, _ in places)
        if any(o < 0 or o + t > n for o, t, n in zip(origin, grid.tile, grid.shape, strict=True)):
            continue
        near = [slice(i * s - min(max(halo, 1), s - h), i * s + min(max(halo, 1), h)) for i, s, _, h, halo in places]
        stored = np.asarray(classes[tuple(near)])
        try:
            block = predict_at(origin)
        except Exception:  # noqa: BLE001, S112 - a part of the image that cannot be read was reported already
            continue
        fresh = block[tuple(slice(p.start - o, p.stop - o) for p, o in zip(near, origin, strict=True))]
        known = stored != IGNORE
        pixels += int(known.sum())
        differences += int(((stored != fresh) & known).sum())
    return pixels, differences
