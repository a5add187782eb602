"""Pairs of a micrograph and a coarse mineral map of one polished rock, with exactly known truth, of any size.

Everything is a pure function of the seed and the position: any window of the micrograph, of its classes and of the map
is made on its own and equals that part of the whole, so images of 10^10 pixels need no memory. Grains are Voronoi cells
of a jittered lattice whose outlines are bent by noise; pores and accessories come from a finer lattice. The map is what
an instrument with its own stage gives: a mosaic of fields that repeat a few rows and columns and are set off against
each other, another scale, a rotation, one spectrum per pixel, wrong names here and there.

Reference: Worley (1996), cellular texture basis function; lattice noise by hashing after Perlin (1985).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
from scipy import special

from keras_microseg.checks import UserError, check_number, standardize_tuple
from keras_microseg.image import LazyArray

MINERALS = ("background", "pore", "quartz", "albite", "clay", "feldspar", "accessory")
COLOURS = (
    (0, 0, 0), (255, 255, 255), (255, 192, 192), (0, 255, 255), (0, 255, 0), (128, 128, 255), (128, 0, 0),
)  # fmt: skip
_GREYS = np.array([0, 22, 93, 92, 85, 110, 170], np.float32)  # mean grey of each mineral in back-scattered electrons
_MOTTLE = np.array([0, 12, 2, 3, 10, 3, 12], np.float32)  # standard deviation of its texture
_COARSE, _FINE = (2, 3, 4, 5), (1, 6)  # classes of the two lattices
_BAND = 1 << 18


@dataclasses.dataclass(frozen=True)
class RockSettings:
    """What the rock and the two instruments are like.

    Attributes:
        shape: (height, width) of the micrograph, px.
        seed: random seed.
        grain_size: mean edge of a grain, px of the micrograph; pores have half of it.
        abundances: area fractions expected of pore, quartz, albite, clay, feldspar, accessory; they sum to 1.
        disc: diameter of the round sample over the shorter side of the micrograph; 0 = the rock fills the image.
        noise: standard deviation of the noise, grey values.
        offset: grey value of black, everywhere.
        sem_field: edge of the fields of the micrograph, px; 0 = no mosaic.
        sem_steps: standard deviation of gain (relative) and, times 100, of offset between these fields.
        charging: height of horizontal streaks, grey values.
        scale: micrograph px per map px.
        rotation: of the map against the micrograph, degrees.
        pitch: edge of a field of the map (rows, columns), map px.
        overlap: rows and columns that a field repeats of the one before.
        shear: (rows per field column, columns per field row) by which fields are set off, map px.
        jitter: standard deviation of further shifts of each field, map px.
        mixing: share of clay pixels that the map names otherwise (salt and pepper).
        errors: share of all pixels with a wrong name.

    Raises:
        UserError: abundances that do not sum to 1, or sizes that are not positive.
    """

    shape: tuple[int, int] = (2000, 2000)
    seed: int = 0
    grain_size: float = 200.0
    abundances: tuple[float, ...] = (0.123, 0.421, 0.257, 0.13, 0.06, 0.009)
    disc: float = 0.96
    noise: float = 6.0
    offset: float = 16.0
    sem_field: int = 1024
    sem_steps: float = 0.03
    charging: float = 3.0
    scale: float = 19.8
    rotation: float = 0.48
    pitch: tuple[int, int] = (360, 360)
    overlap: tuple[int, int] = (3, 5)
    shear: tuple[float, float] = (1.0, 3.0)
    jitter: float = 0.7
    mixing: float = 0.3
    errors: float = 0.01

    def __post_init__(self) -> None:
        for name in ("shape", "pitch"):
            object.__setattr__(self, name, standardize_tuple(getattr(self, name), 2, name))
        for name in ("grain_size", "scale"):
            check_number(name, getattr(self, name), minimum=1)
        values = np.asarray(self.abundances, float)
        if values.shape != (6,) or (values < 0).any() or abs(values.sum() - 1) > 1e-6 or values[[0, 5]].sum() >= 1:
            raise UserError(f"`abundances` must be six shares that sum to 1. Received: abundances={self.abundances}")
        if any(not 0 <= o < p / 2 for o, p in zip(self.overlap, self.pitch, strict=True)):
            raise UserError(f"`overlap` must be below half of `pitch`. Received: overlap={self.overlap}")


class Rock:
    """The pair: `sem` (uint8 grey), `classes` (uint8, its truth) and `mineral_map` (uint8, the coarse map); all lazy.

    Class numbers are indices of `MINERALS`; colours of the map are `COLOURS`.
    """

    def __init__(self, settings: RockSettings | None = None):
        self.settings = s = settings or RockSettings()
        angle = np.deg2rad(s.rotation)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        self._linear = s.scale * turn
        rows, columns = (int(np.ceil(n / s.scale * 1.04)) + 2 for n in s.shape)
        # fields overlap, so the raw map is longer than what it shows
        rows, columns = (
            n + o * (n // (p - o)) + 2 for n, o, p in zip((rows, columns), s.overlap, s.pitch, strict=True)
        )
        self.map_shape = (int(rows), int(columns))
        self._fields = tuple(-(-n // p) for n, p in zip(self.map_shape, s.pitch, strict=True))
        corners = np.array([[0, 0], [rows - 1, 0], [0, columns - 1], [rows - 1, columns - 1]], float)
        self._shift = np.zeros(2)
        self._shift = (np.array(s.shape) - 1) / 2 - self.map_to_sem(corners).mean(axis=0)
        self.sem = _Window(s.shape, lambda y, x: self._grey(y, x, self.class_at(y, x)))
        self.classes = _Window(s.shape, self.class_at)
        self.mineral_map = _Window(self.map_shape, self._name)

    @property
    def field_borders(self) -> tuple[np.ndarray, np.ndarray]:
        """First row of each row of fields and first column of each column of fields of the map."""
        return tuple(np.arange(n) * p for n, p in zip(self._fields, self.settings.pitch, strict=True))

    def map_to_sem(self, points: np.ndarray) -> np.ndarray:
        """Where map pixels lie in the micrograph: (..., 2) (y, x) to (..., 2), exact."""
        s = self.settings
        points = np.asarray(points, float)
        field = np.clip(np.floor(points / s.pitch), 0, np.array(self._fields) - 1)
        moved = points - field * s.overlap + field[..., ::-1] * s.shear
        for axis in (0, 1):
            bits = _hash(s.seed, 90 + axis, field[..., 0], field[..., 1])
            moved[..., axis] += s.jitter * _normal(bits)
        return moved @ self._linear.T + self._shift

    def class_at(self, y: np.ndarray, x: np.ndarray) -> np.ndarray:
        """uint8 class at positions of the micrograph (arrays of one shape, px)."""
        return self._grain(np.asarray(y, float), np.asarray(x, float))[0]

    def both(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Grey values and classes of a window of the micrograph, in one go."""
        rows, columns = window
        x = np.arange(columns.start, columns.stop, dtype=float)[np.newaxis]
        grey, classes = (np.empty((rows.stop - rows.start, x.shape[1]), np.uint8) for _ in range(2))
        for top, bottom in _bands(len(grey), max(1, _BAND // max(1, x.shape[1]))):
            y = np.arange(rows.start + top, rows.start + bottom, dtype=float)[:, np.newaxis]
            places = np.broadcast_arrays(y, x)
            classes[top:bottom] = self.class_at(*places)
            grey[top:bottom] = self._grey(*places, classes[top:bottom])
        return grey, classes

    def fractions(self) -> dict[str, float]:
        """Area share of each mineral inside the sample, counted pixel by pixel."""
        counts = np.zeros(len(MINERALS), np.int64)
        rows = max(1, (1 << 22) // self.settings.shape[1])
        for top in range(0, self.settings.shape[0], rows):
            counts += np.bincount(self.classes[top : top + rows].ravel(), minlength=len(MINERALS))
        return dict(zip(MINERALS[1:], (counts[1:] / max(counts[1:].sum(), 1)).tolist(), strict=True))

    def _grain(self, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Class, and 32 random bits of the grain."""
        s = self.settings
        bend = s.grain_size / 5
        warped_y = y + bend * self._smooth(y, x, s.grain_size / 2, 1)
        warped_x = x + bend * self._smooth(y, x, s.grain_size / 2, 2)
        share = np.array(s.abundances)
        coarse, fine = share[[1, 2, 3, 4]], share[[0, 5]]
        bits = _cells(warped_y / s.grain_size, warped_x / s.grain_size, s.seed, 3)
        table = np.cumsum(coarse / coarse.sum())[:-1]
        found = np.array(_COARSE, np.uint8)[np.searchsorted(table, _uniform(bits), side="right")]
        small = _cells(warped_y * (2 / s.grain_size), warped_x * (2 / s.grain_size), s.seed, 4)
        chance = _uniform(small)
        found[chance < fine.sum()] = _FINE[1]
        found[chance < fine[0]] = _FINE[0]
        if s.disc:
            centre = (np.array(s.shape) - 1) / 2
            radius = s.disc * min(s.shape) / 2
            found[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 > radius**2] = 0
        return found, bits

    def _grey(self, y: np.ndarray, x: np.ndarray, classes: np.ndarray) -> np.ndarray:
        s = self.settings
        grey = _GREYS[classes] + _MOTTLE[classes] * self._smooth(y, x, 6, 5)
        # albite: cleavage lines along one direction per neighbourhood, and pits
        phase = (y * 0.8 + x * 0.6) / 9 + self._smooth(y, x, s.grain_size, 6)
        pits = (self._smooth(y, x, 5, 7) > 1.6) & (classes == 3)
        grey -= np.where((classes == 3) & (np.sin(2 * np.pi * phase) > 0.93), 14, 0) + 35 * pits
        inside = classes > 0
        if s.charging:
            streaks = self._smooth(y * 4, x / 64, 8, 8)
            grey += s.charging * inside * np.maximum(streaks, 0)
        if s.sem_field and s.sem_steps:
            row, column = np.floor(y / s.sem_field), np.floor(x / s.sem_field)
            gain = 1 + s.sem_steps * _normal(_hash(s.seed, 9, row, column))
            step = 100 * s.sem_steps * _normal(_hash(s.seed, 10, row, column))
            grey = np.where(inside, grey * gain + step, grey)
        grey += s.offset + s.noise * _normal(_hash(s.seed, 11, y, x))
        return np.clip(np.rint(grey), 0, 255).astype(np.uint8)

    def _name(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        s = self.settings
        at = self.map_to_sem(np.stack([row, column], axis=-1))
        classes = self.class_at(at[..., 0], at[..., 1])
        outside = ((at < 0) | (at > np.array(s.shape) - 1)).any(axis=-1)
        other = np.array([1, 2, 5, 6], np.uint8)[_hash(s.seed, 12, row, column) % 4]
        chance = _uniform(_hash(s.seed, 13, row, column))
        wrong = (classes > 0) & ((chance < s.errors) | ((classes == 4) & (chance < s.mixing)))
        return np.where(outside, 0, np.where(wrong, other, classes)).astype(np.uint8)

    def _smooth(self, y: np.ndarray, x: np.ndarray, scale: float, layer: int) -> np.ndarray:
        """Lattice noise, mean 0, deviation about 1, float32."""
        y, x = np.broadcast_arrays(y / scale, x / scale)
        row, column = np.floor(y), np.floor(x)
        weights = []
        for t in ((y - row).astype(np.float32), (x - column).astype(np.float32)):
            weights.append(t * t * (3 - 2 * t))
        table, r, c = _lattice(row, column, 0, 1, lambda i, j: _normal(_hash(self.settings.seed, layer, i, j)))
        top = table[r, c] + weights[1] * (table[r, c + 1] - table[r, c])
        low = table[r + 1, c] + weights[1] * (table[r + 1, c + 1] - table[r + 1, c])
        return np.float32(1.35) * (top + weights[0] * (low - top))


class _Window(LazyArray):
    """uint8 image given by a function of pixel positions; made in bands."""

    dtype = np.dtype(np.uint8)

    def __init__(self, shape, at):
        self.shape, self._at = tuple(shape), at

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        rows, columns = (range(part.start, part.stop) for part in block)
        out = np.empty((len(rows), len(columns)), np.uint8)
        for top, bottom in _bands(len(rows), max(1, _BAND // max(1, len(columns)))):
            y = np.arange(rows.start + top, rows.start + bottom, dtype=float)[:, np.newaxis]
            x = np.arange(columns.start, columns.stop, dtype=float)[np.newaxis]
            out[top:bottom] = self._at(*np.broadcast_arrays(y, x))
        return out


def _bands(length: int, step: int) -> Iterator[tuple[int, int]]:
    return ((top, min(top + step, length)) for top in range(0, length, step))


def _cells(y: np.ndarray, x: np.ndarray, seed: int, layer: int) -> np.ndarray:
    """Random bits (uint32) of the Voronoi cell at each position; one seed point per unit square."""
    row, column = np.floor(y), np.floor(x)
    bits, r, c = _lattice(row, column, 1, 1, lambda i, j: _hash(seed, 20 + layer, i, j))
    shift_y = (_uniform(_scramble(bits ^ np.uint32(0x9E3779B9)))).astype(np.float32)
    shift_x = (_uniform(_scramble(bits ^ np.uint32(0x85EBCA6B)))).astype(np.float32)
    inner_y, inner_x = (y - row).astype(np.float32), (x - column).astype(np.float32)
    best = np.full(y.shape, np.inf, np.float32)
    found = np.zeros(y.shape, np.uint32)
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = (r + dy, c + dx)
            distance = (shift_y[at] + np.float32(dy) - inner_y) ** 2 + (shift_x[at] + np.float32(dx) - inner_x) ** 2
            nearer = distance < best
            best[nearer] = distance[nearer]
            found[nearer] = bits[at][nearer]
    return found


def _lattice(row, column, before: int, after: int, values):
    """A table of `values(i, j)` over all lattice points needed, and the index of each position in it."""
    low_r, low_c = int(row.min()) - before, int(column.min()) - before
    rows, columns = int(row.max()) - low_r + after + 1, int(column.max()) - low_c + after + 1
    i, j = np.arange(low_r, low_r + rows)[:, None], np.arange(low_c, low_c + columns)[None]
    return values(i, j), (row - low_r).astype(np.intp), (column - low_c).astype(np.intp)


def _scramble(bits: np.ndarray) -> np.ndarray:
    """Mix 32 bits (the finalizer of MurmurHash3)."""
    bits = bits ^ (bits >> np.uint32(16))
    bits = bits * np.uint32(0x85EBCA6B)
    bits = bits ^ (bits >> np.uint32(13))
    bits = bits * np.uint32(0xC2B2AE35)
    return bits ^ (bits >> np.uint32(16))


def _hash(seed: int, layer: int, row, column) -> np.ndarray:
    """uint32 of whole positions (also negative ones); the same for the same arguments on every machine."""
    key = int(np.random.SeedSequence([seed, layer]).generate_state(1)[0])
    row, column = (np.asarray(v).astype(np.int64).astype(np.uint32) for v in (row, column))
    bits = _scramble(row ^ np.uint32(key))
    return _scramble((bits + column * np.uint32(0x27D4EB2F)) ^ np.uint32(key >> 7))


def _uniform(bits: np.ndarray) -> np.ndarray:
    return bits * (1 / 2**32)


_NORMAL = special.ndtri((np.arange(1 << 16) + 0.5) / (1 << 16)).astype(np.float32)


def _normal(bits: np.ndarray) -> np.ndarray:
    """Standard normal numbers, float32, cut off at 4.2."""
    return _NORMAL[bits >> np.uint32(16)]
