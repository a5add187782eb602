"""Who touches whom, how much, and how particles lie among their neighbours.

The area of a contact is the length of the sum of its voxel faces as vectors: steps of the voxel grid cancel, so a flat
contact has its true area whatever its direction (the plain sum of faces is up to 1.7 times too large). A contact that
bends counts as the flat area it spans.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.sparse import csgraph
from scipy.spatial import cKDTree

from keras_microseg.measurement.surfaces import index_table, label_slabs

NEIGHBOURS = 6


def contact_edges(labels: Any, ids: np.ndarray, size: tuple[float, float, float]) -> pd.DataFrame:
    """All pairs of particles that share voxel faces, from one reading in slabs.

    Args:
        labels: (D, H, W) label volume or lazy array.
        ids: (n,) its labels, ascending.
        size: edge lengths of a voxel (z, y, x).

    Returns:
        One row per pair: `label_a` < `label_b`, `area` (see above), `faces` (plain sum of face areas), and the unit
        vector `normal_z`, `normal_y`, `normal_x` from a to b.
    """
    n = len(ids)
    lookup = index_table(ids)
    depth = labels.shape[0]
    face_areas = [size[1] * size[2], size[0] * size[2], size[0] * size[1]]
    found: list[tuple[np.ndarray, np.ndarray]] = []  # pair keys, (k, 4) signed sums per axis and plain sum
    for top, slab in label_slabs(labels, lookup, ids, 0, 1):
        slab = slab[:, 1:-1, 1:-1]
        if top + len(slab) - 1 >= depth:  # the last plane is padding
            slab = slab[:-1]
            planes = len(slab)
        else:
            planes = len(slab) - 1
        for axis in range(3):
            part = slab if axis == 0 else slab[:planes]
            here, there = (np.moveaxis(part, axis, 0)[s] for s in (slice(None, -1), slice(1, None)))
            places = np.nonzero((here != there) & (here != 0) & (there != 0))
            if not len(places[0]):
                continue
            a, b = here[places].astype(np.int64), there[places].astype(np.int64)
            keys, index = np.unique(np.minimum(a, b) * (n + 1) + np.maximum(a, b), return_inverse=True)
            sums = np.zeros((len(keys), 4))
            sums[:, axis] = np.bincount(index, np.where(a < b, 1.0, -1.0), len(keys)) * face_areas[axis]
            sums[:, 3] = np.bincount(index, minlength=len(keys)) * face_areas[axis]
            found.append((keys, sums))
    keys = np.concatenate([part for part, _ in found]) if found else np.zeros(0, np.int64)
    sums = np.concatenate([part for _, part in found]) if found else np.zeros((0, 4))
    pairs, index = np.unique(keys, return_inverse=True)
    totals = np.stack([np.bincount(index, column, len(pairs)) for column in sums.T], axis=1)
    a, b = np.divmod(pairs, n + 1)
    area = np.linalg.norm(totals[:, :3], axis=1)
    normals = totals[:, :3] / np.maximum(area, 1e-300)[:, None]
    columns = {"label_a": ids[a - 1], "label_b": ids[b - 1], "area": area, "faces": totals[:, 3]}
    columns |= {f"normal_{letter}": normals[:, axis] for axis, letter in enumerate("zyx")}
    return pd.DataFrame(columns)


def degrees(edges: pd.DataFrame, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Number of contacts and sum of contact areas of every particle."""
    first = np.searchsorted(ids, edges["label_a"])
    second = np.searchsorted(ids, edges["label_b"])
    both = np.concatenate([first, second])
    areas = np.concatenate([edges["area"], edges["area"]])
    return np.bincount(both, minlength=len(ids)), np.bincount(both, areas, len(ids))


def clusters(edges: pd.DataFrame, ids: np.ndarray) -> np.ndarray:
    """(n,) number of the group of connected particles each one belongs to, from 1, largest group first."""
    n = len(ids)
    if not n:
        return np.zeros(0, np.int64)
    first, second = (np.searchsorted(ids, edges[name]) for name in ("label_a", "label_b"))
    graph = sparse.coo_array((np.ones(len(first)), (first, second)), shape=(n, n))
    _, group = csgraph.connected_components(graph, directed=False)
    sizes = np.bincount(group)
    rank = np.empty(len(sizes), np.int64)
    rank[np.argsort(-sizes, kind="stable")] = np.arange(1, len(sizes) + 1)
    return rank[group]


def neighbourhood(
    centres: np.ndarray, axes: np.ndarray, quantities: dict[str, np.ndarray], count: int = NEIGHBOURS
) -> dict[str, np.ndarray]:
    """How every particle lies among its nearest ones.

    Args:
        centres: (n, 3) real units.
        axes: (n, 3) unit vectors of the longest axes.
        quantities: name -> (n,) values whose scatter among the neighbours is wanted.
        count: number of neighbours; fewer where there are fewer particles.

    Returns:
        `neighbour_distance` (mean distance of the centres), `alignment` (mean |cos| between own and neighbours' axis;
        0.5 for random directions, 1 for parallel ones), and `std_NAME` per quantity; NaN for a single particle.
    """
    n = len(centres)
    count = min(count, n - 1)
    if count < 1:
        names = ["neighbour_distance", "alignment", *(f"std_{name}" for name in quantities)]
        return {name: np.full(n, np.nan) for name in names}
    distance, index = cKDTree(centres).query(centres, k=count + 1)
    own = index == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # centres that coincide
    keep = ~own
    keep &= np.cumsum(keep, axis=1) <= count
    distance, index = distance[keep].reshape(n, count), index[keep].reshape(n, count)
    result = {"neighbour_distance": distance.mean(axis=1)}
    result["alignment"] = np.abs(np.einsum("ij,ikj->ik", axes, axes[index])).mean(axis=1)
    result |= {f"std_{name}": values[index].std(axis=1) for name, values in quantities.items()}
    return result


def packing_density(labels: Any, centres: np.ndarray, side: float, size: tuple[float, float, float]) -> np.ndarray:
    """Share of particle voxels in a cube about every centre, cut at the border of the volume.

    Cubes are read in the order of their first planes and share a slab, so a volume on disk is read about once.

    Args:
        labels: (D, H, W) array or lazy array.
        centres: (n, 3) in voxels.
        side: of the cube, real units.
        size: edge lengths of a voxel.
    """
    shape = np.array(labels.shape)
    half = np.maximum(np.rint(side / 2 / np.array(size)).astype(int), 1)
    low = np.maximum(np.rint(centres).astype(int) - half, 0)
    high = np.minimum(np.rint(centres).astype(int) + half, shape)
    result = np.zeros(len(centres))
    first = last = 0
    sums: np.ndarray | None = None
    for row in np.argsort(low[:, 0], kind="stable"):
        if sums is None or low[row, 0] < first or high[row, 0] > last:
            first = int(low[row, 0])
            last = int(min(max(high[row, 0], first + 2 * half[0] + 32), shape[0]))
            sums = _integral(np.asarray(labels[first:last]) != 0)
        z0, y0, x0 = low[row] - (first, 0, 0)
        z1, y1, x1 = high[row] - (first, 0, 0)
        total = sums[z1, y1, x1] - sums[z0, y1, x1] - sums[z1, y0, x1] - sums[z1, y1, x0]
        total += sums[z0, y0, x1] + sums[z0, y1, x0] + sums[z1, y0, x0] - sums[z0, y0, x0]
        result[row] = total / max((z1 - z0) * (y1 - y0) * (x1 - x0), 1)
    return result


def _integral(mask: np.ndarray) -> np.ndarray:
    """Sums over all boxes that begin at the origin, int64, one longer than `mask` along every axis."""
    sums = np.zeros([n + 1 for n in mask.shape], np.int64)
    inner = sums[1:, 1:, 1:]
    inner[...] = mask
    for axis in range(3):
        np.cumsum(inner, axis=axis, out=inner)
    return sums
