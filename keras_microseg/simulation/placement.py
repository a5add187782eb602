"""The mask simulator: where particles lie, how much they overlap, and which one is on top.

Positions come first (`place`), pixels afterwards (`rasterize`); every particle keeps its own instance label.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.spatial import cKDTree
from skimage.measure import label as label_regions

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.simulation.fields import noise_field
from keras_microseg.simulation.particles import Shapes, concatenate, edge_coordinate, ellipses

MODES = ("random", "noise", "clusters", "packed", "hexagonal", "cubic")
ROTATIONS = ("none", "random", "correlated")


@dataclasses.dataclass(frozen=True)
class PlacementSettings:
    """How particles are laid out.

    Attributes:
        mode: `random` uniform; `noise` inside the patches of a noise field; `clusters` agglomerates that grow by
            touching; `packed` a dense random layer; `hexagonal`, `cubic` lattices with jitter.
        max_overlap: largest covered share of a new particle, 0..1.
        touch: in `clusters`, centre distance over the sum of the radii: 1 = just touching, less = overlapping.
        cluster_size: mean number of particles per cluster.
        noise_scale: correlation length of the noise patches, in particle diameters.
        noise_threshold: share of the area without particles in mode `noise` and with `patches`, 0..1.
        patches: keep the particles of any mode only inside the patches of a noise field.
        spacing: lattice constant over mean diameter.
        jitter: standard deviation of lattice positions over the lattice constant.
        rotation: `none`, `random`, or `correlated` (neighbours share their direction).
        order: `random` or `scan`: which of two overlapping particles lies on top.
    """

    mode: str = "random"
    max_overlap: float = 0.5
    touch: float = 0.9
    cluster_size: float = 12.0
    noise_scale: float = 5.0
    noise_threshold: float = 0.5
    patches: bool = False
    spacing: float = 1.1
    jitter: float = 0.05
    rotation: str = "random"
    order: str = "random"

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("rotation", self.rotation, ROTATIONS)
        check_choice("order", self.order, ("random", "scan"))
        check_number("max_overlap", self.max_overlap, minimum=0, maximum=1)
        check_number("touch", self.touch, minimum=0.05, maximum=3)
        check_number("cluster_size", self.cluster_size, minimum=1)
        check_number("noise_scale", self.noise_scale, minimum=0, exclusive=True)
        check_number("noise_threshold", self.noise_threshold, minimum=0, maximum=0.99)
        check_number("spacing", self.spacing, minimum=0.1)
        check_number("jitter", self.jitter, minimum=0)


@dataclasses.dataclass(frozen=True)
class Layout:
    """Particles of one image, bottom first.

    Attributes:
        y, x: centres, px (pixel centres are whole numbers).
        diameter: equivalent circular diameters, px.
        angle: rotations, radians.
        shapes: one shape per particle.
        owner: index of the particle an entry belongs to: its own, or that of its host (satellites, bumps), which stands
            before it. None = every entry is a particle.
    """

    y: np.ndarray
    x: np.ndarray
    diameter: np.ndarray
    angle: np.ndarray
    shapes: Shapes
    owner: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.y)

    def with_satellites(
        self,
        rng: np.random.Generator,
        mean_count: float,
        size: tuple[float, float],
        reach: tuple[float, float] = (0.2, 1.0),
    ) -> Layout:
        """Small round bumps on the particles, drawn with their host and part of it.

        Args:
            rng: random source.
            mean_count: mean number per particle (Poisson).
            size: range of their diameter over that of the host.
            reach: range of their distance from the centre over the radius of the host.
        """
        host = np.repeat(np.arange(len(self)), rng.poisson(mean_count, len(self)))
        count = len(host)
        radius = self.diameter[host] / 2 * np.sqrt(rng.uniform(reach[0] ** 2, reach[1] ** 2, count))
        direction = rng.uniform(0, 2 * np.pi, count)
        order = np.argsort(np.concatenate([np.arange(len(self)), host + 0.5]), kind="stable")
        place_of_host = np.argsort(order, kind="stable")[: len(self)]

        def merged(own: np.ndarray, new: np.ndarray) -> np.ndarray:
            return np.concatenate([own, new])[order]

        return Layout(
            merged(self.y, self.y[host] + radius * np.sin(direction)),
            merged(self.x, self.x[host] + radius * np.cos(direction)),
            merged(self.diameter, self.diameter[host] * rng.uniform(*size, count)),
            merged(self.angle, direction),
            concatenate([self.shapes, ellipses(rng, count, (0.75, 1.0))]).take(order),
            merged(place_of_host, place_of_host[host]),
        )


@dataclasses.dataclass(frozen=True)
class Raster:
    """Pixels of a layout.

    Attributes:
        labels: (H, W) int32, instance label of the topmost particle, 0 = background; labels run 1..n without gaps, and
            each is one 4-connected region.
        edge: (H, W) float32 edge coordinate of the topmost particle (0 centre, 1 edge); > 1 background.
        source: (n + 1,) index into the layout for each label; entry 0 is -1.
        drawn: (H, W) int32 index into the layout of the topmost entry (particle or bump), -1 = background.
        depth: (H, W) int16 number of particles above each other.
    """

    labels: np.ndarray
    edge: np.ndarray
    source: np.ndarray
    drawn: np.ndarray
    depth: np.ndarray


def lognormal_diameters(rng: np.random.Generator, count: int, median: float, spread: float) -> np.ndarray:
    """Log-normal diameters, px; `spread` is the standard deviation of ln(d), cut at 2.5 of it on either side."""
    return median * np.exp(spread * np.clip(rng.standard_normal(count), -2.5, 2.5))


def place(
    rng: np.random.Generator,
    shape: tuple[int, int],
    diameters: np.ndarray,
    shapes: Shapes,
    settings: PlacementSettings | None = None,
) -> Layout:
    """Choose a position, rotation and order for every particle.

    Args:
        rng: random source.
        shape: (height, width) of the image, px. Centres may lie up to half a diameter outside.
        diameters: (N,) equivalent circular diameters, px.
        shapes: N shapes.
        settings: see `PlacementSettings`.

    Returns:
        The layout. Lattices fill the image whatever N is: sizes and shapes are then drawn from those given.
    """
    settings = settings or PlacementSettings()
    diameters = np.asarray(diameters, float)
    if len(diameters) != len(shapes):
        raise UserError(f"{len(diameters)} diameters for {len(shapes)} shapes; there must be one for each.")
    if len(diameters) == 0:
        empty = np.zeros(0)
        return Layout(empty, empty, empty, empty, shapes)
    height, width = shape
    margin = float(np.median(diameters)) / 2
    if settings.mode in ("hexagonal", "cubic"):
        y, x = _lattice(rng, shape, float(diameters.mean()), settings)
        if settings.order == "random":
            order = rng.permutation(len(y))
            y, x = y[order], x[order]
        index = rng.integers(0, len(diameters), len(y))
        diameters, shapes = diameters[index], shapes.take(index)
    elif settings.mode == "clusters":
        y, x = _clusters(rng, shape, diameters, settings, margin)
    elif settings.mode == "packed":
        y, x = _packed(rng, shape, diameters, margin)
    else:
        y = rng.uniform(-margin, height + margin, len(diameters))
        x = rng.uniform(-margin, width + margin, len(diameters))
        if settings.mode == "noise":
            y, x = _in_patches(rng, shape, float(np.median(diameters)), len(diameters), settings, margin)
    if settings.patches and settings.mode != "noise":
        kept = _inside_patches(rng, shape, y, x, float(np.median(diameters)), settings, margin)
        y, x, diameters, shapes = y[kept], x[kept], diameters[kept], shapes.take(kept)
    count = len(y)
    if settings.rotation == "none":
        angle = np.zeros(count)
    elif settings.rotation == "random":
        angle = rng.uniform(0, 2 * np.pi, count)
    else:
        field = noise_field(rng, shape, max(shape) / 3)
        rows = np.clip(y.astype(int), 0, height - 1)
        columns = np.clip(x.astype(int), 0, width - 1)
        angle = np.pi * 0.5 * field[rows, columns]
    return Layout(y, x, diameters, angle, shapes)


def _lattice(rng, shape, diameter, settings):
    step = max(settings.spacing * diameter, 1.0)
    row_step = step * (np.sqrt(3) / 2 if settings.mode == "hexagonal" else 1.0)
    rows = np.arange(-1, int(shape[0] / row_step) + 3)
    columns = np.arange(-1, int(shape[1] / step) + 3)
    y, x = np.meshgrid(rows * row_step, columns * step, indexing="ij")
    if settings.mode == "hexagonal":
        x = x + (rows % 2)[:, None] * step / 2
    y = y.ravel() - rng.uniform(0, row_step) + rng.normal(0, settings.jitter * step, y.size)
    x = x.ravel() - rng.uniform(0, step) + rng.normal(0, settings.jitter * step, x.size)
    return y, x


def _in_patches(rng, shape, diameter, count, settings, margin):
    """Positions where a noise field is high; `noise_threshold` is the share of the area left empty."""
    pad = int(np.ceil(margin))
    is_patch = _patches(rng, shape, diameter, settings, pad)
    accepted = np.flatnonzero(is_patch)
    chosen = accepted[rng.integers(0, len(accepted), count)]
    y, x = np.unravel_index(chosen, is_patch.shape)
    return y - pad + rng.random(count), x - pad + rng.random(count)


def _inside_patches(rng, shape, y, x, diameter, settings, margin):
    """Indices of the positions that lie in patches."""
    pad = int(np.ceil(margin))
    is_patch = _patches(rng, shape, diameter, settings, pad)
    rows = np.clip(np.floor(y).astype(int) + pad, 0, is_patch.shape[0] - 1)
    columns = np.clip(np.floor(x).astype(int) + pad, 0, is_patch.shape[1] - 1)
    return np.flatnonzero(is_patch[rows, columns])


def _patches(rng, shape, diameter, settings, pad):
    """Where a noise field over the image and `pad` pixels around it is high."""
    field = noise_field(rng, (shape[0] + 2 * pad, shape[1] + 2 * pad), settings.noise_scale * diameter, octaves=2)
    return field >= np.quantile(field, settings.noise_threshold)


def _clusters(rng, shape, diameters, settings, margin):
    """Agglomerates: each new particle of a cluster touches one that is already there."""
    count = len(diameters)
    y, x = np.empty(count), np.empty(count)
    starts = rng.random(count) < 1 / settings.cluster_size
    starts[0] = True
    members: list[int] = []
    elongation = 0.0
    for i in range(count):
        if starts[i]:
            members = []
            elongation = rng.random()
            y[i] = rng.uniform(-margin, shape[0] + margin)
            x[i] = rng.uniform(-margin, shape[1] + margin)
        else:
            recent = members[-3:] if rng.random() < elongation else members
            j = recent[rng.integers(len(recent))]
            reach = settings.touch * rng.uniform(0.85, 1.1) * (diameters[i] + diameters[j]) / 2
            direction = rng.uniform(0, 2 * np.pi)
            y[i], x[i] = y[j] + reach * np.sin(direction), x[j] + reach * np.cos(direction)
        members.append(i)
    return y, x


def _packed(rng, shape, diameters, margin, rounds: int = 30):
    """A dense layer: random positions, then overlapping neighbours push each other apart."""
    count = len(diameters)
    position = np.column_stack(
        [rng.uniform(-margin, shape[0] + margin, count), rng.uniform(-margin, shape[1] + margin, count)]
    )
    radius = diameters / 2
    for _ in range(rounds):
        pairs = cKDTree(position).query_pairs(2 * radius.max(), output_type="ndarray")
        if not len(pairs):
            break
        a, b = pairs.T
        offset = position[a] - position[b]
        distance = np.maximum(np.hypot(*offset.T), 1e-3)
        push = np.maximum(radius[a] + radius[b] - distance, 0) / 2
        step = offset / distance[:, None] * push[:, None] * 0.6
        np.add.at(position, a, step)
        np.add.at(position, b, -step)
    return position[:, 0], position[:, 1]


def rasterize(
    layout: Layout,
    shape: tuple[int, int],
    *,
    max_overlap: float = 1.0,
    min_area: int = 6,
    coverage: float | None = None,
) -> Raster:
    """Draw a layout, later particles on top.

    A particle is left out when more than `max_overlap` of it would lie on particles already drawn. What remains visible
    of each particle is split into 4-connected pieces; pieces smaller than `min_area` pixels go to the background.

    Args:
        layout: particles, bottom first.
        shape: (height, width), px.
        max_overlap: largest covered share of a new particle, 0..1.
        min_area: smallest visible piece that keeps a label, px.
        coverage: stop when this share of the image is covered, 0..1; None = draw the whole layout.
    """
    height, width = shape
    count = len(layout)
    owner = np.arange(count) if layout.owner is None else layout.owner
    top = np.zeros(shape, np.int32)
    drawn = np.full(shape, -1, np.int32)
    edge = np.full(shape, 2.0, np.float32)
    depth = np.zeros(shape, np.int16)
    rows, columns = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None, :]
    radius = layout.diameter / 2
    reach = layout.shapes.profile.max(axis=1, initial=0) * radius * (1 + np.abs(layout.shapes.bend)) + 1
    y0 = np.maximum(np.floor(layout.y - reach), 0).astype(int)
    y1 = np.minimum(np.ceil(layout.y + reach) + 1, height).astype(int)
    x0 = np.maximum(np.floor(layout.x - reach), 0).astype(int)
    x1 = np.minimum(np.ceil(layout.x + reach) + 1, width).astype(int)
    is_left_out = np.zeros(count, bool)
    missing = np.inf if coverage is None else coverage * height * width
    for i in np.flatnonzero((y1 > y0) & (x1 > x0)):
        is_host = owner[i] == i
        if not is_host and is_left_out[owner[i]]:
            continue
        box = (slice(y0[i], y1[i]), slice(x0[i], x1[i]))
        u = edge_coordinate(
            layout.shapes.profile[i],
            radius[i],
            layout.angle[i],
            layout.shapes.bend[i],
            rows[box[0]] - np.float32(layout.y[i]),
            columns[:, box[1]] - np.float32(layout.x[i]),
        )
        inside = u < 1
        if is_host and (max_overlap < 1 or coverage is not None):
            pixels = np.count_nonzero(inside)
            covered = np.count_nonzero(top[box][inside])
            if pixels == 0 or covered > max_overlap * pixels:
                is_left_out[i] = True
                continue
            if missing < (pixels - covered) / 2:
                break
            missing -= pixels - covered
        top[box][inside] = owner[i] + 1
        drawn[box][inside] = i
        edge[box][inside] = u[inside]
        if is_host:
            depth[box] += inside
    labels, source = _visible_pieces(top, min_area)
    gone = (labels == 0) & (top > 0)
    edge[gone], drawn[gone] = 2.0, -1
    return Raster(labels, edge, source, drawn, depth)


def _visible_pieces(top: np.ndarray, min_area: int) -> tuple[np.ndarray, np.ndarray]:
    """4-connected pieces of equal value, small ones removed, numbered 1..n; and the particle index of each."""
    pieces, found = label_regions(top, background=0, connectivity=1, return_num=True)
    keep = np.bincount(pieces.ravel(), minlength=found + 1) >= min_area
    keep[0] = False
    new = np.where(keep, np.cumsum(keep), 0).astype(np.int32)
    first = np.zeros(found + 1, np.int64)
    first[pieces.ravel()] = top.ravel()
    return new[pieces], np.concatenate([[-1], first[keep] - 1])
