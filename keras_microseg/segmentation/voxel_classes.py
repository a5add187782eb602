"""Classical methods that give every voxel a class or a value, slab by slab: k-means, multi-Otsu, depth maps, forest.

All share one interface: `fit_*` looks at a sample of a volume that may be larger than memory and returns a small frozen
object; calling it with a slab (and its halo) gives the classes of the slab, uint8, numbered by rising mean grey value.
`classify_volume` runs one over a whole volume. Scores are those of `metrics.pixel` (give `num_classes`).

References:
    MacQueen (1967), k-means; Sculley (2010), mini-batch k-means; Arthur and Vassilvitskii (2007), k-means++; Otsu
    (1979) and Liao et al. (2001), multi-Otsu; Breiman (2001), random forests; Geurts et al. (2006), random cuts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes
from keras_microseg.intensity import volume_statistics
from keras_microseg.segmentation.pixel_forest import Forest, fit_forest
from keras_microseg.tiling import slab_thickness, slabs

FEATURES = ("intensity", "smooth", "smooth2", "gradient", "laplacian", "z", "y", "x")
_SIGMA = {
    "intensity": 0.0,
    "smooth": 1.0,
    "smooth2": 3.0,
    "gradient": 1.0,
    "laplacian": 1.5,
    "z": 0.0,
    "y": 0.0,
    "x": 0.0,
}


def feature_halo(features: Sequence[str]) -> int:
    """Voxels that the features reach beyond a slab."""
    return int(np.ceil(4 * max(_SIGMA[name] for name in features))) + 1


def voxel_features(block: np.ndarray, features: Sequence[str], origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
    """(D, H, W, F) float32 features of a block.

    Args:
        block: (D, H, W) real.
        features: some of `FEATURES`: grey value, smoothed by 1 and 3 voxels, gradient magnitude (1 voxel), Laplacian of
            Gaussian (1.5 voxels), coordinates in voxels.
        origin: position of the block in the volume, for the coordinates.
    """
    grey = block.astype(np.float32)
    result = np.empty((*block.shape, len(features)), np.float32)
    for index, name in enumerate(features):
        check_choice("features", name, FEATURES)
        if name in ("z", "y", "x"):
            axis = "zyx".index(name)
            line = np.arange(block.shape[axis], dtype=np.float32) + origin[axis]
            result[..., index] = line.reshape([-1 if a == axis else 1 for a in range(3)])
        elif name == "gradient":
            result[..., index] = ndimage.gaussian_gradient_magnitude(grey, _SIGMA[name])
        elif name == "laplacian":
            result[..., index] = -ndimage.gaussian_laplace(grey, _SIGMA[name])
        else:
            result[..., index] = ndimage.gaussian_filter(grey, _SIGMA[name]) if _SIGMA[name] else grey
    return result


@dataclasses.dataclass(frozen=True)
class KMeans:
    """Clusters of voxel features, numbered by rising mean grey value.

    Attributes:
        centres: (k, F) in standardized units.
        features: names of the features.
        mean, scale: (F,) standardization; scale holds the weight of each feature.
    """

    centres: np.ndarray
    features: tuple[str, ...]
    mean: np.ndarray
    scale: np.ndarray

    @property
    def halo(self) -> int:
        return feature_halo(self.features)

    @property
    def num_classes(self) -> int:
        return len(self.centres)

    def __call__(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """uint8 class of every voxel of a block."""
        values = (voxel_features(block, self.features, origin) - self.mean) * self.scale
        return _nearest(values.reshape(-1, len(self.features)), self.centres).reshape(block.shape).astype(np.uint8)


def fit_kmeans(
    volume: Any,
    num_classes: int = 2,
    *,
    features: Sequence[str] = ("intensity", "smooth"),
    weights: Sequence[float] | None = None,
    sample: int = 1_000_000,
    batch: int = 8192,
    rounds: int = 150,
    seed: int = 0,
) -> KMeans:
    """Mini-batch k-means on a random sample of the voxels.

    Args:
        volume: (D, H, W) array or lazy array.
        num_classes: k >= 2.
        features: see `voxel_features`.
        weights: weight of each feature after standardization; None = 1 each.
        sample: voxels looked at, in random boxes.
        batch: voxels per round.
        rounds: updates of the centres.
        seed: of the sample, the start (k-means++) and the batches.
    """
    num_classes = check_number("num_classes", num_classes, minimum=2, maximum=255, integer=True)
    weights = np.ones(len(features)) if weights is None else np.array(weights, np.float64)
    if len(weights) != len(features):
        raise UserError(f"`weights` needs one number per feature, {len(features)}. Received: {weights.tolist()}")
    rng = np.random.default_rng(seed)
    values, grey = _sample(volume, features, sample, rng)
    mean, spread = values.mean(axis=0), values.std(axis=0)
    scale = weights / np.where(spread > 0, spread, 1)
    values = ((values - mean) * scale).astype(np.float32)
    centres = values[[rng.integers(len(values))]]
    subset = values[rng.integers(0, len(values), min(len(values), 20_000))]
    while len(centres) < num_classes:  # k-means++
        away = np.square(subset[:, None] - centres).sum(axis=-1).min(axis=1)
        chosen = rng.choice(len(subset), p=away / away.sum()) if away.sum() > 0 else rng.integers(len(subset))
        centres = np.concatenate([centres, subset[[chosen]]])
    counts = np.zeros(num_classes)
    for _ in range(rounds):
        part = values[rng.integers(0, len(values), min(batch, len(values)))]
        cluster = _nearest(part, centres)
        number = np.bincount(cluster, minlength=num_classes)
        counts += number
        for axis in range(values.shape[1]):
            total = np.bincount(cluster, weights=part[:, axis], minlength=num_classes)
            centres[:, axis] += (total - number * centres[:, axis]) / np.maximum(counts, 1)
    cluster = _nearest(values, centres)
    number = np.bincount(cluster, minlength=num_classes)
    level = np.bincount(cluster, weights=grey, minlength=num_classes) / np.maximum(number, 1)
    order = np.argsort(np.where(number > 0, level, np.inf), kind="stable")
    return KMeans(centres[order], tuple(features), mean.astype(np.float32), scale.astype(np.float32))


@dataclasses.dataclass(frozen=True)
class Thresholds:
    """Classes between ascending grey values; `num_classes` is one more than the thresholds.

    Attributes:
        values: ascending.
    """

    values: tuple[float, ...]
    halo: int = 0

    @property
    def num_classes(self) -> int:
        return len(self.values) + 1

    def __call__(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """uint8 class of every voxel: number of thresholds below its grey value."""
        return np.searchsorted(np.array(self.values), block.ravel(), side="left").reshape(block.shape).astype(np.uint8)


def fit_multi_otsu(volume: Any, num_classes: int = 2, *, max_ram: str | int = "256MB") -> Thresholds:
    """Thresholds of least variance within the classes, from the histogram of all voxels."""
    check_number("num_classes", num_classes, minimum=2, maximum=5, integer=True)
    statistics = volume_statistics(volume, max_ram=max_ram)
    values = statistics.multi_otsu(num_classes) if num_classes > 2 else (statistics.otsu(),)
    return Thresholds(tuple(float(value) for value in values))


def fit_halfway(volume: Any, *, max_ram: str | int = "256MB") -> Thresholds:
    """Threshold half way between the peaks of the histogram, see `VolumeStatistics.halfway`."""
    return Thresholds((volume_statistics(volume, max_ram=max_ram).halfway(),))


@dataclasses.dataclass(frozen=True)
class PixelForest:
    """Random forest on voxel features.

    Attributes:
        forest: see `pixel_forest`.
        features: names of the features.
        num_classes: classes 0..n - 1 as in the labels it was trained with.
    """

    forest: Forest
    features: tuple[str, ...]
    num_classes: int

    @property
    def halo(self) -> int:
        return feature_halo(self.features)

    def __call__(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """uint8 class of every voxel."""
        return self.probabilities(block, origin).argmax(axis=-1).astype(np.uint8)

    def probabilities(self, block: np.ndarray, origin: Sequence[int] = (0, 0, 0)) -> np.ndarray:
        """(D, H, W, num_classes) float32, sum 1."""
        values = voxel_features(block, self.features, origin).reshape(-1, len(self.features))
        return self.forest.predict(values).reshape(*block.shape, -1)


def fit_pixel_forest(
    volume: np.ndarray,
    classes: np.ndarray,
    *,
    ignore: int = 255,
    features: Sequence[str] = ("intensity", "smooth", "smooth2", "gradient", "laplacian"),
    num_trees: int = 20,
    depth: int = 10,
    sample: int = 100_000,
    seed: int = 0,
) -> PixelForest:
    """Train a forest on a few annotated voxels (a slice, some strokes).

    Args:
        volume: (D, H, W) grey values.
        classes: (D, H, W) class of every voxel, `ignore` = not annotated.
        ignore: see `classes`.
        features: see `voxel_features`.
        num_trees, depth: size of the forest.
        sample: most voxels used, the same number per class.
        seed: of sample and forest.
    """
    if volume.shape != np.shape(classes):
        raise UserError(f"`classes` must have the shape of the volume, {volume.shape}. Received: {np.shape(classes)}")
    flat = np.asarray(classes).ravel()
    known = np.flatnonzero(flat != ignore)
    present = np.unique(flat[known])
    if len(present) < 2:
        raise UserError(f"A forest needs voxels of at least two classes. Received: {present.tolist()}")
    rng = np.random.default_rng(seed)
    share = max(sample // len(present), 1)
    groups = [known[flat[known] == one] for one in present]
    chosen = np.concatenate([rng.choice(group, min(share, len(group)), replace=False) for group in groups])
    values = voxel_features(np.asarray(volume), features).reshape(-1, len(features))[chosen]
    num_classes = int(present.max()) + 1
    forest = fit_forest(values, flat[chosen].astype(np.int64), num_classes, num_trees=num_trees, depth=depth, seed=seed)
    return PixelForest(forest, tuple(features), num_classes)


def classify_volume(volume: Any, out: Any, method: Callable[..., np.ndarray], *, max_ram: str | int = "1GB") -> None:
    """Run a fitted method over a volume slab by slab.

    Args:
        volume: (D, H, W) array or lazy array.
        out: writable array of the same shape; uint8 for classes.
        method: `KMeans`, `Thresholds`, `PixelForest`, `GradientEnergy`, `StructureCoherence`, or any callable of a
            block and its origin with an attribute `halo`.
        max_ram: bytes to work with.
    """
    shape = tuple(volume.shape)
    if tuple(out.shape) != shape:
        raise UserError(f"`out` must have the shape of the volume, {shape}. Received: {tuple(out.shape)}")
    per_voxel = 24 + 8 * len(getattr(method, "features", ())) + 16
    thickness = slab_thickness(shape, parse_bytes(max_ram), per_voxel, halo=method.halo)
    for slab in slabs(shape[0], thickness, halo=method.halo):
        block = np.asarray(volume[slab.read])
        out[slab.write] = method(block, (slab.read.start, 0, 0))[slab.crop]


def _nearest(values: np.ndarray, centres: np.ndarray) -> np.ndarray:
    away = np.stack([np.square(values - centre).sum(axis=1) for centre in centres])
    return away.argmin(axis=0)


def _sample(
    volume: Any, features: Sequence[str], count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Features and grey values of about `count` voxels in random boxes, with a halo so that nothing is cut."""
    shape = tuple(volume.shape)
    if len(shape) != 3:
        raise UserError(f"`volume` must be (D, H, W). Received: shape {shape}")
    halo = feature_halo(features)
    edge = tuple(min(n, 32) for n in shape)
    number = int(np.clip(np.ceil(count / np.prod(edge)), 1, 64))
    each = max(count // number, 1)
    values, grey = [], []
    for _ in range(number):
        start = [int(rng.integers(0, n - e + 1)) for n, e in zip(shape, edge, strict=True)]
        outer = tuple(slice(max(a - halo, 0), min(a + e + halo, n)) for a, e, n in zip(start, edge, shape, strict=True))
        inner = tuple(slice(a - o.start, a - o.start + e) for a, o, e in zip(start, outer, edge, strict=True))
        block = np.asarray(volume[outer])
        found = voxel_features(block, features, [o.start for o in outer])[inner].reshape(-1, len(features))
        level = block[inner].ravel().astype(np.float32)
        chosen = rng.choice(len(found), min(each, len(found)), replace=False)
        chosen = chosen[np.isfinite(found[chosen]).all(axis=1)]
        values.append(found[chosen])
        grey.append(level[chosen])
    values, grey = np.concatenate(values), np.concatenate(grey)
    if not len(values):
        raise UserError("The volume has no finite voxel to learn from. Replace NaN first (volume stack --nan zero).")
    return values, grey
