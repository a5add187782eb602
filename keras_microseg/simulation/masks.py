"""Masks with exactly known particles: what a translation network turns into micrographs.

Every option of the system this follows has its place here (see `MaskSettings.from_legacy`). Besides, coverage, sizes
and clustering can be set to those of real images, the order of overlap is random, and every particle keeps its label.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number, standardize_tuple
from keras_microseg.simulation.outlines import OutlineSet
from keras_microseg.simulation.particles import Shapes, draw_shapes
from keras_microseg.simulation.placement import PlacementSettings, lognormal_diameters, place, rasterize

KINDS = {"blob": 4.0, "polygon": 3.0, "ellipse": 2.0, "superellipse": 1.0}


@dataclasses.dataclass(frozen=True)
class Particles:
    """The stock from which particles are drawn, with replacement.

    Attributes:
        shapes: N shapes.
        diameters: (N,) their equivalent circular diameters, px.
    """

    shapes: Shapes
    diameters: np.ndarray

    def __post_init__(self) -> None:
        if len(self.shapes) == 0 or len(self.shapes) != len(self.diameters):
            raise UserError(f"Particles need shapes and a diameter for each. Received: {len(self.shapes)} shapes.")

    def __len__(self) -> int:
        return len(self.shapes)

    @classmethod
    def from_outlines(cls, outlines: OutlineSet) -> Particles:
        """Outlines as they are: read from files, or generated and cleaned."""
        return cls(outlines.shapes(), outlines.diameters)

    @classmethod
    def analytic(
        cls,
        seed: int = 0,
        count: int = 500,
        kinds: Mapping[str, float] = KINDS,
        median: float = 25.0,
        spread: float = 0.3,
    ) -> Particles:
        """Shapes by formula, for users without outlines.

        Args:
            seed: of the shapes and sizes.
            count: size of the stock.
            kinds: kind (key of `simulation.SHAPES`) -> relative frequency.
            median, spread: of the diameters, px and standard deviation of ln(d).
        """
        rng = np.random.default_rng(seed)
        return cls(draw_shapes(rng, count, kinds), lognormal_diameters(rng, count, median, spread))

    def save(self, path: str | os.PathLike) -> None:
        """Write the stock as `.npz`."""
        with io.atomic_path(path) as temporary:
            np.savez_compressed(
                temporary, profile=self.shapes.profile, bend=self.shapes.bend, kind=self.shapes.kind.astype(str),
                diameters=self.diameters,
            )  # fmt: skip

    @classmethod
    def load(cls, path: str | os.PathLike) -> Particles:
        """Read what `save` wrote."""
        try:
            with np.load(path) as file:
                return cls(Shapes(file["profile"], file["bend"], file["kind"]), file["diameters"])
        except (OSError, KeyError, ValueError) as error:
            raise FileError(path, f"holds no particles ({error}).", "Make it again.") from error


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How masks are made.

    Attributes:
        size: (height, width), px.
        count: least and greatest number of particles whose centre lies in the mask; they are also placed around it.
            Lattices have their own number.
        coverage: None, or the share of the mask that particles cover, for which `count` is given up: quantiles at equal
            steps of probability between which each mask draws its own: (0.2,) = always 0.2, (0.1, 0.3) = uniform,
            (lowest, ..., median, ..., highest) as measured.
        mode: see `PlacementSettings`.
        max_overlap: largest covered share of a new particle; about 0.5 in SEM, 0.05 in TEM.
        diameter: None = the sizes of the stock, or (median, standard deviation of ln(d)) of a log-normal distribution
            that replaces them, px.
        scaling: distribution of a further size factor: `normal` (cut at 3 standard deviations) or `uniform`.
        scale_mean, scale_spread: mean, and standard deviation (normal) or half width (uniform), of that factor.
        rotation: `none`, `random`, or `correlated` (neighbours share their direction).
        patches: particles of any mode only inside the patches of a noise field.
        noise_threshold: share of the area outside patches.
        noise_frequency: number of patches along the width.
        spacing, jitter, touch, cluster_size, order: see `PlacementSettings`.
        gap: px of background between touching particles in the mask (not in the labels), 0, 1 or 2.
        min_area: smallest visible piece of a particle, px.
    """

    size: tuple[int, int] = (384, 384)
    count: tuple[int, int] = (100, 150)
    coverage: tuple[float, ...] | None = None
    mode: str = "random"
    max_overlap: float = 0.5
    diameter: tuple[float, float] | None = None
    scaling: str = "normal"
    scale_mean: float = 1.0
    scale_spread: float = 0.1
    rotation: str = "random"
    patches: bool = False
    noise_threshold: float = 0.5
    noise_frequency: float = 4.0
    spacing: float = 1.1
    jitter: float = 0.05
    touch: float = 0.9
    cluster_size: float = 12.0
    order: str = "random"
    gap: int = 2
    min_area: int = 10

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", standardize_tuple(self.size, 2, "size", minimum=16))
        object.__setattr__(self, "count", standardize_tuple(self.count, 2, "count", minimum=0))
        if self.count[0] > self.count[1]:
            raise UserError(f"`count` must be (least, greatest). Received: count={self.count!r}")
        if self.coverage is not None:
            coverage = tuple(float(value) for value in np.atleast_1d(self.coverage))
            for value in coverage:
                check_number("coverage", value, minimum=0, maximum=0.95)
            if not coverage or list(coverage) != sorted(coverage):
                raise UserError(f"`coverage` must be rising quantiles. Received: coverage={self.coverage!r}")
            object.__setattr__(self, "coverage", coverage)
            if self.order == "scan":
                raise UserError("`coverage` needs order='random': a scan would leave the lower part of masks empty.")
        if self.diameter is not None:
            object.__setattr__(self, "diameter", tuple(float(value) for value in self.diameter))
            check_number("diameter", self.diameter[0], minimum=2)
            check_number("diameter", self.diameter[1], minimum=0, maximum=2)
        check_choice("scaling", self.scaling, ("normal", "uniform"))
        check_number("scale_mean", self.scale_mean, minimum=0, exclusive=True)
        check_number("scale_spread", self.scale_spread, minimum=0, maximum=self.scale_mean * 0.99)
        check_number("noise_frequency", self.noise_frequency, minimum=0, exclusive=True)
        check_choice("gap", self.gap, (0, 1, 2))
        check_number("min_area", self.min_area, minimum=1, integer=True)
        self.placement(10.0)

    def placement(self, diameter: float) -> PlacementSettings:
        """The part that concerns positions, for particles of this median diameter, px."""
        names = ("mode", "max_overlap", "touch", "cluster_size", "noise_threshold", "patches", "spacing", "jitter",
                 "rotation", "order")  # fmt: skip
        scale = self.size[1] / (self.noise_frequency * diameter)
        return PlacementSettings(**{name: getattr(self, name) for name in names}, noise_scale=scale)

    @classmethod
    def sem(cls, **changes: Any) -> MaskSettings:
        """Agglomerates seen from above: particles hide up to half of each other."""
        return cls(**({"mode": "clusters", "max_overlap": 0.5} | changes))

    @classmethod
    def tem(cls, **changes: Any) -> MaskSettings:
        """A self-assembled layer in transmission: next to no overlap, neighbours turned alike."""
        defaults = {
            "mode": "hexagonal",
            "max_overlap": 0.05,
            "rotation": "correlated",
            "spacing": 1.05,
            "patches": True,
        }
        return cls(**(defaults | changes))

    @classmethod
    def paper(cls, **changes: Any) -> MaskSettings:
        """What the defaults of the source system come to: a dense jittered lattice in patches, drawn in scan order.

        It asks for 100 to 150 particles but places a lattice of 8 px whenever it limits the overlap.
        """
        return cls.from_legacy(grid_type="HEXAGONAL", **changes)

    @classmethod
    def from_legacy(cls, *, outline_size: int = 64, diameter: float = 32.0, **options: Any) -> MaskSettings:
        """Settings from the options of the source system, by their names there.

        Args:
            outline_size: width of the outline images, px: lattices of the source are fractions of it.
            diameter: mean diameter of the outlines, px: ours are multiples of that.
            options: `min_no_of_particles`, `max_no_of_particles`, `use_normal_distribution`, `mu`, `sigma`,
                `min_scaling`, `max_scaling`, `use_perlin_noise`, `perlin_noise_threshold`, `perlin_noise_frequency`,
                `use_random_rotation` (DISABLE, RANDOM, PERLIN), `grid_type` (DISABLE, HEXAGONAL, CUBIC),
                `grid_spacing_factor`, `grid_noise_factor`, `max_overlap` (None = no limit), `img_width`, `img_height`,
                `MAX_PARTICLE_OVERLAP`, `TILE_SIZE_W`, `TILE_SIZE_H`; or fields of `MaskSettings`.

        Raises:
            UserError: an option that neither system has.
        """
        old: dict[str, Any] = {
            "min_no_of_particles": 100, "max_no_of_particles": 150, "use_normal_distribution": True, "mu": 1.0,
            "sigma": 0.1, "min_scaling": 0.75, "max_scaling": 1.25, "use_perlin_noise": True,
            "perlin_noise_threshold": 0.5, "perlin_noise_frequency": 4, "use_random_rotation": "DISABLE",
            "grid_type": "DISABLE", "grid_spacing_factor": 0.125, "grid_noise_factor": 0.05, "max_overlap": 0.5,
            "img_width": 384, "img_height": 384,
        }  # fmt: skip
        same = {"MAX_PARTICLE_OVERLAP": "max_overlap", "TILE_SIZE_W": "img_width", "TILE_SIZE_H": "img_height"}
        fields = {field.name for field in dataclasses.fields(cls)}
        changes = {}
        for name, value in options.items():
            if same.get(name, name) in old:
                old[same.get(name, name)] = value
            elif name in fields:
                changes[name] = value
            else:
                raise UserError(f"There is no option {name!r}. Known: {', '.join([*old, *same])}.")
        mode = str(check_choice("grid_type", str(old["grid_type"]).upper(), ("DISABLE", "HEXAGONAL", "CUBIC")))
        rotations = {"DISABLE": "none", "RANDOM": "random", "PERLIN": "correlated"}
        rotation = check_choice("use_random_rotation", str(old["use_random_rotation"]).upper(), rotations)
        low, high = float(old["min_scaling"]), float(old["max_scaling"])
        normal = bool(old["use_normal_distribution"])
        grid = mode != "DISABLE"
        spacing = old["grid_spacing_factor"] * outline_size / diameter
        settings = {
            "size": (old["img_height"], old["img_width"]),
            "count": (old["min_no_of_particles"], old["max_no_of_particles"]),
            "mode": mode.lower() if grid else "noise" if old["use_perlin_noise"] else "random",
            "max_overlap": 1.0 if old["max_overlap"] is None else old["max_overlap"],
            "scaling": "normal" if normal else "uniform",
            "scale_mean": old["mu"] if normal else (low + high) / 2,
            "scale_spread": old["sigma"] if normal else (high - low) / 2,
            "rotation": rotations[rotation],
            "patches": grid and bool(old["use_perlin_noise"]),
            "noise_threshold": old["perlin_noise_threshold"],
            "noise_frequency": old["perlin_noise_frequency"],
            "spacing": max(spacing, 0.1),
            # integers uniform on +-n have a standard deviation of n / sqrt(3)
            "jitter": old["grid_noise_factor"] / old["grid_spacing_factor"] / math.sqrt(3),
            "order": "scan" if grid else "random",
        }
        return cls(**(settings | changes))


class SimulatedMask(NamedTuple):
    """One mask.

    Attributes:
        labels: (H, W) int32 instance labels 1..n.
        mask: (H, W) uint8, 255 = particle; touching particles are parted by a line of background.
        facts: number of particles, coverage, median visible diameter, share of hidden area.
    """

    labels: np.ndarray
    mask: np.ndarray
    facts: dict[str, float]


def simulate_mask(
    rng: np.random.Generator, particles: Particles, settings: MaskSettings | None = None
) -> SimulatedMask:
    """Draw particles from the stock and lay them out.

    Args:
        rng: random source; the mask is a pure function of it, of the stock and of the settings.
        particles: the stock.
        settings: see `MaskSettings`.
    """
    settings = settings or MaskSettings()
    height, width = settings.size
    median = settings.diameter[0] if settings.diameter else float(np.median(particles.diameters) * settings.scale_mean)
    goal = None
    if settings.coverage is not None:
        goal = float(np.interp(rng.random(), np.linspace(0, 1, len(settings.coverage)), settings.coverage))
        # what overlap and the rim leave of them is enough; drawing ends when the goal is reached
        mean_area = np.pi / 4 * median**2 * math.exp(2 * (settings.diameter[1] if settings.diameter else 0.3) ** 2)
        enough = -(3 / (1 - goal) if settings.mode == "clusters" else 3) * math.log(1 - goal)
        number = math.ceil(enough * height * width / mean_area) + 10 if goal > 0 else 0
    else:
        number = int(rng.integers(settings.count[0], settings.count[1], endpoint=True))
    largest = median * math.exp(2 * settings.diameter[1]) if settings.diameter else particles.diameters.max()
    pad = max(int(largest * 0.75 - median / 2), 0)
    placed = (height + 2 * pad, width + 2 * pad)
    number = round(number * (placed[0] + median) * (placed[1] + median) / (height * width))
    index = rng.integers(0, len(particles), number)
    if settings.diameter:
        diameters = lognormal_diameters(rng, number, *settings.diameter)
    else:
        diameters = particles.diameters[index]
    diameters = diameters * _size_factors(rng, number, settings)
    layout = place(rng, placed, diameters, particles.shapes.take(index), settings.placement(median))
    layout = dataclasses.replace(layout, y=layout.y - pad, x=layout.x - pad)
    raster = rasterize(
        layout, settings.size, max_overlap=settings.max_overlap, min_area=settings.min_area, coverage=goal
    )
    labels = raster.labels
    areas = np.bincount(labels.ravel())[1:]
    facts = {
        "particles": len(areas),
        "coverage": float(areas.sum() / labels.size),
        "median_diameter": float(np.sqrt(4 / np.pi * np.median(areas))) if len(areas) else math.nan,
        "hidden": float(1 - np.count_nonzero(raster.depth) / max(int(raster.depth.sum()), 1)),
    }
    return SimulatedMask(labels, part_touching(labels, settings.gap), facts)


def part_touching(labels: np.ndarray, gap: int = 2) -> np.ndarray:
    """0/255 mask of labels in which `gap` pixels of background part particles that share an edge.

    With a gap, particles that meet at a corner are parted as well, so 8-connected parts are single particles.

    Args:
        labels: (H, W) int.
        gap: 0; 1 = one of two pixels that meet is cleared; 2 = both.
    """
    keep = labels != 0
    if gap:
        for axis in (0, 1):
            lab, out = np.moveaxis(labels, axis, 0), np.moveaxis(keep, axis, 0)
            meet = (lab[1:] != lab[:-1]) & (lab[1:] != 0) & (lab[:-1] != 0)
            out[1:] &= ~meet
            if gap == 2:
                out[:-1] &= ~meet
        for here, there in ((slice(-1), slice(1, None)), (slice(1, None), slice(-1))):  # both diagonals
            upper, lower = labels[:-1, here], labels[1:, there]
            keep[:-1, here] &= (upper == lower) | (upper == 0) | (lower == 0)
    return keep.astype(np.uint8) * np.uint8(255)


def _size_factors(rng: np.random.Generator, count: int, settings: MaskSettings) -> np.ndarray:
    mean, spread = settings.scale_mean, settings.scale_spread
    if settings.scaling == "uniform":
        return rng.uniform(mean - spread, mean + spread, count)
    return np.maximum(mean + spread * np.clip(rng.standard_normal(count), -3, 3), 0.05)
