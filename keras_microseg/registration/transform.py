"""Where the pixels of a class map lie in a micrograph: one linear part, a shift for every field of the mosaic."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError
from keras_microseg.image import LazyArray


@dataclasses.dataclass(frozen=True)
class Transform:
    """Where map pixels lie in a micrograph.

    Attributes:
        linear: (2, 2) micrograph px per map px, (y, x) to (y, x).
        shifts: (rows, columns, 2) shift of each field, micrograph px.
        borders: first row of each row of fields and first column of each column of fields.
        shape: of the map.
    """

    linear: np.ndarray
    shifts: np.ndarray
    borders: tuple[np.ndarray, np.ndarray]
    shape: tuple[int, int]

    @classmethod
    def similarity(
        cls,
        scale: float,
        rotation: float = 0.0,
        shift: Sequence[float] = (0.0, 0.0),
        *,
        shape: tuple[int, int],
        borders: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Transform:
        """Scale, rotation (degrees) and shift, the same for all fields."""
        angle = np.deg2rad(rotation)
        linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        rows, columns = (np.zeros(1, int),) * 2 if borders is None else (np.asarray(b, int) for b in borders)
        return cls(
            linear, np.broadcast_to(np.array(shift, float), (len(rows), len(columns), 2)).copy(), (rows, columns), shape
        )

    @property
    def scale(self) -> float:
        """Micrograph px per map px."""
        return float(np.sqrt(abs(np.linalg.det(self.linear))))

    @property
    def rotation(self) -> float:
        """Degrees."""
        return float(np.rad2deg(np.arctan2(self.linear[1, 0] - self.linear[0, 1], np.trace(self.linear))))

    def field_of(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Row and column of the field of map positions (..., 2)."""
        return tuple(
            np.clip(np.searchsorted(b, points[..., a], side="right") - 1, 0, len(b) - 1)
            for a, b in enumerate(self.borders)
        )

    def __call__(self, points: Any) -> np.ndarray:
        """(..., 2) map positions (y, x) to micrograph positions."""
        points = np.asarray(points, float)
        return points @ self.linear.T + self.shifts[self.field_of(points)]

    def inverse(self, points: Any) -> tuple[np.ndarray, np.ndarray]:
        """(..., 2) micrograph positions to map positions, and whether a field covers them (else NaN).

        Where fields overlap, the one whose middle is nearer counts, as in `resample_labels`.
        """
        points = np.asarray(points, float)
        found, nearest = np.full(points.shape, np.nan), np.full(points.shape[:-1], np.inf)
        inverse = np.linalg.inv(self.linear)
        for (i, j), (rows, columns) in self.fields():
            at = (points - self.shifts[i, j]) @ inverse.T
            low, high = np.array([rows[0], columns[0]]), np.array([rows[1], columns[1]])
            away = np.abs(at - (low + high) / 2).max(axis=-1)
            wins = ((at >= low - 0.5) & (at < high - 0.5)).all(axis=-1) & (away < nearest)
            found[wins], nearest[wins] = at[wins], away[wins]
        return found, np.isfinite(nearest)

    def with_borders(self, borders: tuple[np.ndarray, np.ndarray]) -> Transform:
        """The same transform with a shift for every field of other borders."""
        rows, columns = (np.asarray(b, int) for b in borders)
        corners = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1)
        shifts = self(corners.astype(float)) - corners @ self.linear.T
        return dataclasses.replace(self, shifts=shifts, borders=(rows, columns))

    def rescaled(self, factor: float) -> Transform:
        """The transform to the micrograph reduced `factor` times; below 1 to the larger one it was reduced from."""
        shifts = (self.shifts - (factor - 1) / 2) / factor
        return dataclasses.replace(self, linear=self.linear / factor, shifts=shifts)

    def resample_sem(self, image: np.ndarray, factor: float = 1.0) -> np.ndarray:
        """Grey values under every map pixel, float32 (bilinear; positions outside take the nearest pixel).

        Args:
            image: micrograph, or one reduced `factor` times (`reduce_image`).
            factor: micrograph px per px of `image`.
        """
        out = np.empty(self.shape, np.float32)
        for (i, j), (rows, columns) in self.fields():
            grid = np.stack(np.meshgrid(np.arange(*rows), np.arange(*columns), indexing="ij"), -1)
            at = (grid @ self.linear.T + self.shifts[i, j] - (factor - 1) / 2) / factor
            out[slice(*rows), slice(*columns)] = ndimage.map_coordinates(
                image, at.transpose(2, 0, 1), order=1, mode="nearest"
            )
        return out

    def resample_labels(
        self,
        labels: np.ndarray,
        shape: tuple[int, int],
        *,
        factor: float = 1.0,
        origin: tuple[int, int] = (0, 0),
        fill: int = 0,
    ) -> np.ndarray:
        """The map on the grid of the micrograph: nearest class; where fields overlap, the one whose middle is nearer.

        Args:
            labels: (H, W) the map.
            shape: (height, width) of the result.
            factor: micrograph px per px of the result.
            origin: first pixel of the result, in px of the result.
            fill: value of what no field covers.
        """
        if tuple(labels.shape) != tuple(self.shape):
            raise UserError(f"The transform is that of a map of shape {self.shape}. Received: shape {labels.shape}")
        out = np.full(shape, fill, labels.dtype)
        nearest = np.full(shape, np.inf, np.float32)
        inverse = np.linalg.inv(self.linear)
        for (i, j), (rows, columns) in self.fields():
            corners = np.array(
                [[y, x] for y in (rows[0] - 0.5, rows[1] - 0.5) for x in (columns[0] - 0.5, columns[1] - 0.5)]
            )
            placed = ((corners @ self.linear.T + self.shifts[i, j]) - (factor - 1) / 2) / factor - origin
            low = np.clip(np.floor(placed.min(axis=0)).astype(int), 0, shape)
            high = np.clip(np.ceil(placed.max(axis=0)).astype(int) + 1, 0, shape)
            if (high <= low).any():
                continue
            y, x = (
                (np.arange(a, b) + o) * factor + (factor - 1) / 2 for a, b, o in zip(low, high, origin, strict=True)
            )
            y, x = y[:, np.newaxis] - self.shifts[i, j, 0], x - self.shifts[i, j, 1]
            row, column = (np.rint(inverse[k, 0] * y + inverse[k, 1] * x).astype(int) for k in (0, 1))
            inside = (row >= rows[0]) & (row < rows[1]) & (column >= columns[0]) & (column < columns[1])
            away = np.maximum(np.abs(row - sum(rows) / 2), np.abs(column - sum(columns) / 2)).astype(np.float32)
            block = np.s_[low[0] : high[0], low[1] : high[1]]
            wins = inside & (away < nearest[block])
            out[block][wins] = labels[row[wins], column[wins]]
            nearest[block][wins] = away[wins]
        return out

    def fields(self):
        """`(row, column), ((top, bottom), (left, right))` of every field."""
        ends = [np.append(b[1:], n) for b, n in zip(self.borders, self.shape, strict=True)]
        for i, j in np.ndindex(self.shifts.shape[:2]):
            yield (
                (i, j),
                ((int(self.borders[0][i]), int(ends[0][i])), (int(self.borders[1][j]), int(ends[1][j]))),
            )

    def to_dict(self) -> dict[str, Any]:
        """JSON values, with the formula for programs that do not know this class."""
        return {
            "convention": "positions are (y, x) in pixels, pixel centres at whole numbers, fields (row, column)",
            "map_to_micrograph": "micrograph = linear @ map + shifts[field]",
            "micrograph_to_map": "map = inverse_linear @ (micrograph - shifts[field]); the field is the one that then "
            "holds the map position: borders[0][row] <= y + 0.5 < next border, the same for x; of several the one "
            "whose middle is nearer",
            "inverse_linear": np.linalg.inv(self.linear).tolist(),
            "linear": self.linear.tolist(),
            "shifts": self.shifts.tolist(),
            "borders": [b.tolist() for b in self.borders],
            "shape": [int(n) for n in self.shape],
            "scale": self.scale,
            "rotation_degrees": self.rotation,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Transform:
        """What `to_dict` gave."""
        borders = tuple(np.array(b, int) for b in values["borders"])
        return cls(
            np.array(values["linear"], float), np.array(values["shifts"], float), borders, tuple(values["shape"])
        )


class ResampledLabels(LazyArray):
    """A class map on the grid of its micrograph, made window by window (`Transform.resample_labels`).

    Args:
        labels: (h, w) the map.
        transform: to the micrograph.
        shape: (H, W) of the micrograph.
        fill: value of what no field covers.
    """

    def __init__(self, labels: np.ndarray, transform: Transform, shape: tuple[int, int], *, fill: int = 255):
        self.labels, self.transform, self.fill = labels, transform, fill
        self.shape, self.dtype = tuple(shape), np.dtype(labels.dtype)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        origin, shape = tuple(b.start for b in block), tuple(b.stop - b.start for b in block)
        return self.transform.resample_labels(self.labels, shape, origin=origin, fill=self.fill)
