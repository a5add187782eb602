"""Slices of cathodes as a detector gives them: labels that count anew, some missing, split or merged."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def renumber(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """Labels of a volume numbered anew, and at random, in every slice."""
    rng = np.random.default_rng(seed)
    planes = np.zeros(labels.shape, np.int32)
    for z, plane in enumerate(labels):
        ids = np.unique(plane[plane > 0])
        table = np.zeros(int(labels.max()) + 1, np.int32)
        table[ids] = rng.permutation(len(ids)) + 1
        planes[z] = table[plane]
    return planes


def spoil(planes: np.ndarray, kind: str, share: float, seed: int = 0) -> np.ndarray:
    """Spoil a share of the labels of inner slices: `missing`, `split` in two, or `merged` with a neighbour."""
    rng, out = np.random.default_rng(seed), planes.copy()
    for plane in out[1:-1]:
        for label in np.unique(plane[plane > 0]):
            mask = plane == label
            if rng.random() > share or mask.sum() < 40:
                continue
            y, x = np.nonzero(mask)
            if kind == "missing":
                plane[mask] = 0
            elif kind == "split":
                turn = rng.uniform(0, np.pi)
                side = (y - y.mean()) * np.cos(turn) + (x - x.mean()) * np.sin(turn)
                plane[y[side > 1], x[side > 1]] = plane.max() + 1
                plane[y[np.abs(side) <= 1], x[np.abs(side) <= 1]] = 0
            else:
                ring = ndimage.binary_dilation(mask, iterations=2) & ~mask & (plane > 0)
                if ring.any():
                    plane[plane == np.bincount(plane[ring]).argmax()] = label
    return out


def large(labels: np.ndarray, size: int = 200) -> np.ndarray:
    """Labels of at least `size` voxels."""
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] >= size, labels, 0).astype(np.int64)
