"""Battery cathodes with exactly known particles: labels, phases, detachment and damage.

A cathode is a bed of near-spherical active particles in a porous carbon/binder domain (CBD). Particles are intact,
cracked (sheets and pores inside) or shattered (broken along the faces of a Voronoi partition, cracks open to the
surface); whatever is broken off stays part of its particle. Over a chosen fraction of its surface a particle is
separated from the CBD by a void shell. Objects are planned first (`plan_cathode`), voxels follow block by block; every
block equals the same part of the whole, noise included.

The detachment of a particle is known without voxels: points spread evenly over its smooth surface are moved outwards
along the normal, and the phase there is asked of the plan (`CathodePlan.detachment`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.spatial import cKDTree
from scipy.stats import norm

from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.simulation.fields import block_field, white_noise
from keras_microseg.simulation.packing import pack_spheres

PHASES = ("void", "cbd", "particle", "crack")
"""Classes of the phase map, 0..3. `crack`: empty space inside the outline of a particle."""
VOID, CBD, PARTICLE, CRACK = range(4)
STATES = ("intact", "cracked", "shattered")
_LOBES = 6
Box = tuple[slice, slice, slice]


@dataclasses.dataclass(frozen=True)
class CathodeSettings:
    """What a cathode looks like. Lengths in voxels, grey values as shares of full scale.

    Attributes:
        shape: (z, y, x).
        fraction: wanted volume share of the particles.
        diameter: mean diameter.
        spread: standard deviation of the diameter over its mean; cut off at `2 * spread` on both sides.
        touching: share of the particles that start in contact with another one.
        press: how far touching particles press into each other, share of the diameter.
        roughness: standard deviation of each of six lobes of the outline, share of the radius.
        cracked, shattered: shares of the particles in these states; the others are intact.
        crack_width: mean width of cracks; widths spread by 30 % about it.
        detachment: least and greatest fraction of the surface that a void shell covers, drawn evenly between.
        shell: thickness of the void shells; within this distance of a particle the rest is CBD.
        pores: share of void in the CBD farther than `shell` from every particle.
        void, cbd, particle: grey values.
        texture: standard deviation of the grey values inside the CBD.
        blur: standard deviation of the blurred edges.
        fringe, fringe_width: strength and width of the phase-contrast edges (bright inside, dark outside).
        noise: standard deviation of white noise.
        dtype: `uint8`, `uint16` (grey 0..1 becomes the full range, clipped) or `float32`.
        seed: start of all random numbers.
    """

    shape: tuple[int, int, int] = (128, 192, 192)
    fraction: float = 0.42
    diameter: float = 36.0
    spread: float = 0.2
    touching: float = 0.4
    press: float = 0.05
    roughness: float = 0.02
    cracked: float = 0.3
    shattered: float = 0.2
    crack_width: float = 2.5
    detachment: tuple[float, float] = (0.0, 0.9)
    shell: float = 5.0
    pores: float = 0.25
    void: float = 0.15
    cbd: float = 0.36
    particle: float = 0.68
    texture: float = 0.03
    blur: float = 0.8
    fringe: float = 0.35
    fringe_width: float = 2.0
    noise: float = 0.03
    dtype: str = "uint16"
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", standardize_tuple(self.shape, 3, "shape"))
        object.__setattr__(self, "detachment", tuple(float(value) for value in np.atleast_1d(self.detachment)))
        check_choice("dtype", self.dtype, ("uint8", "uint16", "float32"))
        check_number("fraction", self.fraction, minimum=0.01, maximum=0.55)
        check_number("diameter", self.diameter, minimum=8)
        check_number("spread", self.spread, minimum=0, maximum=0.45)
        for name in ("touching", "cracked", "shattered", "pores"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)
        check_number("press", self.press, minimum=0, maximum=0.2)
        check_number("roughness", self.roughness, minimum=0, maximum=0.05)
        if self.cracked + self.shattered > 1:
            raise UserError(
                f"`cracked` and `shattered` are shares of all particles and must not exceed 1 together. "
                f"Received: cracked={self.cracked}, shattered={self.shattered}"
            )
        check_number("crack_width", self.crack_width, minimum=0.5, maximum=self.diameter / 6)
        if len(self.detachment) != 2 or not 0 <= self.detachment[0] <= self.detachment[1] <= 1:
            raise UserError(f"`detachment` must be (least, greatest), each 0..1. Received: {self.detachment}")
        check_number("shell", self.shell, minimum=1, maximum=self.diameter)
        for name in ("texture", "noise", "fringe"):
            check_number(name, getattr(self, name), minimum=0, maximum=2)
        check_number("blur", self.blur, minimum=0.05, maximum=5)
        check_number("fringe_width", self.fringe_width, minimum=0.5, maximum=10)
        check_number("seed", self.seed, minimum=0, integer=True)


class CathodeBlock(NamedTuple):
    """One block of a cathode.

    Attributes:
        grey: grey values in the type asked for.
        labels: int32, the particle (cracks included) whose outline holds the voxel's centre; 0 = none.
        phases: uint8, see `PHASES`.
    """

    grey: np.ndarray
    labels: np.ndarray
    phases: np.ndarray


class Damage(NamedTuple):
    """What is broken in one particle; positions from its centre, voxels.

    Attributes:
        sheets: (m, 6) cracks: unit normal, offset, width, waviness.
        pores: (p, 4) centre and radius of round pores.
        sites: (s, 3) middles of the fragments; none unless shattered.
        width: gap between fragments.
    """

    sheets: np.ndarray
    pores: np.ndarray
    sites: np.ndarray
    width: float


def make_cathode(settings: CathodeSettings) -> tuple[CathodeBlock, pd.DataFrame]:
    """A whole cathode in memory, and its truth table (see `CathodePlan.table`)."""
    plan = plan_cathode(settings)
    return plan.read(tuple(slice(0, n) for n in settings.shape)), plan.table()


def plan_cathode(settings: CathodeSettings) -> CathodePlan:
    """Choose the particles of a cathode; see `CathodePlan.read` for their voxels."""
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 11]))
    centres, radii = pack_spheres(
        rng, settings.shape, settings.diameter, settings.spread, settings.fraction,
        gap=-settings.press * settings.diameter, clustering=settings.touching,
    )  # fmt: skip
    reach = (1.12 * radii + settings.shell)[:, None]
    near = ((centres + reach >= 0) & (centres - reach <= np.array(settings.shape) - 1)).all(axis=1)
    centres, radii = centres[near], radii[near]
    count = len(radii)
    lobes = _directions(rng, (count, _LOBES))
    heights = np.clip(rng.standard_normal((count, _LOBES)), -2, 2) * settings.roughness
    draw = rng.permutation(count) / max(count, 1)  # exact shares
    states = np.where(draw < settings.shattered, 2, np.where(draw < settings.shattered + settings.cracked, 1, 0))
    patches = _directions(rng, (count, 3))
    fractions = rng.uniform(*settings.detachment, count)
    damages = [_break(rng, int(state), radius, settings) for state, radius in zip(states, radii, strict=True)]
    plan = CathodePlan(settings, centres, radii, lobes, heights, states, patches, fractions, np.zeros(count), damages)
    even = even_directions(4000)
    for number in range(count):
        weights = plan.outline(number, even) ** 2
        order = np.argsort(value := -plan._patch(number, even))
        share = np.cumsum(weights[order]) / weights.sum()
        last = np.searchsorted(share, fractions[number])
        plan.levels[number] = -np.inf if fractions[number] >= 1 else -value[order[min(last, len(order) - 1)]]
        if fractions[number] <= 0:
            plan.levels[number] = np.inf
    return plan


@dataclasses.dataclass(frozen=True)
class CathodePlan:
    """The particles of a cathode, numbered from 0 here and from 1 in labels and tables.

    Attributes:
        settings: as asked.
        centres, radii: (N, 3) and (N,), voxels.
        lobes, heights: (N, 6, 3) and (N, 6) of the outline, see `outline`.
        states: (N,) index into `STATES`.
        patches, fractions, levels: (N, 3, 3), (N,) and (N,): where and how much of the surface has a void shell.
        damages: one `Damage` per particle.
    """

    settings: CathodeSettings
    centres: np.ndarray
    radii: np.ndarray
    lobes: np.ndarray
    heights: np.ndarray
    states: np.ndarray
    patches: np.ndarray
    fractions: np.ndarray
    levels: np.ndarray
    damages: list[Damage]

    def read(self, box: Box) -> CathodeBlock:
        """Grey values, labels and phases of one block (a slice without step per axis)."""
        settings = self.settings
        margin = int(np.ceil(4 * (settings.blur + (settings.fringe_width if settings.fringe else 0))))
        outer = tuple(slice(part.start - margin, part.stop + margin) for part in box)
        inner = (slice(margin, -margin),) * 3
        labels, phases = self.read_truth(outer)
        levels = np.array([settings.void, settings.cbd, settings.particle, settings.void], np.float32)
        grey = levels[phases]
        if settings.texture:
            texture = block_field(settings.seed, outer, 3.0, 6) * np.float32(settings.texture)
            grey += np.where(phases == CBD, texture, 0)
        grey = ndimage.gaussian_filter(grey, settings.blur)
        if settings.fringe:
            grey += np.float32(settings.fringe) * (grey - ndimage.gaussian_filter(grey, settings.fringe_width))
        grey = np.ascontiguousarray(grey[inner])
        if settings.noise:
            grey += white_noise(settings.seed, box, 4) * np.float32(settings.noise)
        scale = {"uint8": 255, "uint16": 65535}.get(settings.dtype)
        if scale is not None:
            grey = np.rint(np.clip(grey, 0, 1) * scale).astype(settings.dtype)
        return CathodeBlock(grey, labels[inner].copy(), phases[inner].copy())

    def read_truth(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """`(labels, phases)` of one block."""
        start = np.array([part.start for part in box])
        shape = tuple(part.stop - part.start for part in box)
        labels, phases = np.zeros(shape, np.int32), np.full(shape, CBD, np.uint8)
        if self.settings.pores:
            level = norm.ppf(self.settings.pores)
            phases[block_field(self.settings.seed, box, self.settings.diameter / 5, 5) < level] = VOID
        shell = self.settings.shell
        nearest = np.full(shape, -shell, np.float32)  # depth inside the nearest surface, negative outside
        reach = (1.12 * self.radii + shell)[:, None]
        low = np.maximum(np.ceil(self.centres - reach).astype(int), start)
        high = np.minimum(np.floor(self.centres + reach).astype(int) + 1, start + shape)
        for number in np.flatnonzero((low < high).all(axis=1)):
            window = tuple(slice(a, b) for a, b in zip(low[number] - start, high[number] - start, strict=True))
            grid = np.meshgrid(
                *(np.arange(a, b) - c for a, b, c in zip(low[number], high[number], self.centres[number], strict=True)),
                indexing="ij", sparse=True,
            )  # fmt: skip
            rough = self.radii[number] * 1.12 + shell - np.sqrt(sum(part * part for part in grid))
            place = np.nonzero(rough > np.maximum(nearest[window], -shell))
            points = np.stack([part.ravel()[index] for part, index in zip(grid, place, strict=True)], axis=1)
            depth = self.depth(number, points)
            own = depth > nearest[window][place]
            place = tuple(index[own] for index in place)
            points, depth = points[own], depth[own]
            nearest[window][place] = depth
            inside = depth >= 0
            labels[window][place] = np.where(inside, number + 1, labels[window][place])
            found = np.full(len(points), CBD, np.uint8)
            found[~inside] = np.where(self._is_detached(number, points[~inside]), VOID, CBD)
            found[inside] = np.where(self._is_broken(number, points[inside], depth[inside]), CRACK, PARTICLE)
            phases[window][place] = found
        return labels, phases

    def outline(self, number: int, directions: np.ndarray) -> np.ndarray:
        """Radius of particle `number` in unit directions (n, 3): r (1 + sum of heights times Legendre polynomials)."""
        facing = directions @ self.lobes[number].T
        even, odd = 1.5 * facing[:, :4] ** 2 - 0.5, 2.5 * facing[:, 4:] ** 3 - 1.5 * facing[:, 4:]
        return self.radii[number] * (1 + np.concatenate([even, odd], axis=1) @ self.heights[number])

    def depth(self, number: int, points: np.ndarray) -> np.ndarray:
        """Radial distance inside the surface (negative outside) of points (n, 3) from the centre of the particle."""
        distance = np.sqrt(np.einsum("ij,ij->i", points, points))
        return self.outline(number, points / np.maximum(distance, 1e-6)[:, None]) - distance

    def detachment(
        self, distances: Sequence[float] = (), samples: int = 2000, labels: Sequence[int] | None = None
    ) -> np.ndarray:
        """(N, k) true share of void among void and CBD at `distances` from the surface, by area; NaN where neither is.

        Args:
            distances: along the normal, voxels, at most `shell`; default half the shell.
            samples: points per particle.
            labels: only of these particles; None = all.
        """
        distances = tuple(distances) or (self.settings.shell / 2,)
        if max(distances) > self.settings.shell:
            raise UserError(f"The truth is known up to the shell of {self.settings.shell:g}. Received: {distances}")
        tree = cKDTree(self.centres) if len(self.radii) else None
        widest = 1.12 * float(self.radii.max(initial=0)) + 2 * self.settings.shell
        numbers = np.arange(len(self.radii)) if labels is None else np.asarray(labels, int) - 1
        result = np.full((len(numbers), len(distances)), np.nan)
        for row, number in enumerate(numbers):
            points, normals, areas = self.surface(number, samples)
            others = tree.query_ball_point(self.centres[number], 1.12 * self.radii[number] + widest)
            for column, distance in enumerate(distances):
                moved = points + distance * normals + self.centres[number]
                nearest, detached = np.full(len(moved), -np.inf), np.zeros(len(moved), bool)
                for other in others:
                    local = moved - self.centres[other]
                    depth = self.depth(other, local)
                    closer = depth > nearest
                    nearest[closer] = depth[closer]
                    detached[closer] = self._is_detached(other, local[closer])
                outside = nearest < 0
                if areas[outside].sum() > 0:
                    result[row, column] = areas[outside & detached].sum() / areas[outside].sum()
        return result

    def surface(self, number: int, samples: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Points of the surface from the centre, outward unit normals, and the area each stands for."""
        directions = even_directions(samples)
        radius = self.outline(number, directions)
        helper = np.where(np.abs(directions[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
        first = np.cross(directions, helper)
        first /= np.linalg.norm(first, axis=1, keepdims=True)
        second, step = np.cross(directions, first), 1e-3
        normals = directions.copy()
        for across in (first, second):
            ahead = self.outline(number, _unit(directions + step * across))
            behind = self.outline(number, _unit(directions - step * across))
            normals -= ((ahead - behind) / (2 * step) / radius)[:, None] * across
        slant = np.linalg.norm(normals, axis=1)
        areas = radius**2 * slant * (4 * np.pi / samples)
        return directions * radius[:, None], normals / slant[:, None], areas

    def table(self, labels: Sequence[int] | None = None) -> pd.DataFrame:
        """The truth about every particle that meets the volume, or about those of `labels`.

        `label`, `z`, `y`, `x` (centre, voxels), `diameter` (voxels), `state`, `covered` (fraction of the surface under
        a void shell of its own), `detachment` (see `detachment`, at half the shell; neighbours count), `whole` (not cut
        by the border).
        """
        last = np.array(self.settings.shape) - 1
        reach = (self.radii * (1 + np.abs(self.heights).sum(axis=1)))[:, None]
        low, high = self.centres - reach, self.centres + reach
        meets, whole = ((high >= 0) & (low <= last)).all(axis=1), ((low >= 0) & (high <= last)).all(axis=1)
        columns = {"label": np.arange(1, len(self.radii) + 1)}
        columns.update(zip("zyx", self.centres.T, strict=True))
        columns.update(diameter=2 * self.radii, state=np.array(STATES)[self.states], covered=self.fractions)
        columns.update(whole=whole)
        table = pd.DataFrame(columns)
        table = table[meets if labels is None else table["label"].isin(labels)].reset_index(drop=True)
        table.insert(len(table.columns) - 1, "detachment", self.detachment(labels=table["label"])[:, 0])
        return table

    def _patch(self, number: int, directions: np.ndarray) -> np.ndarray:
        """Field over the sphere whose upper part is detached: one broad slope and two bumps."""
        facing = directions @ self.patches[number].T
        return facing[:, 0] + 0.35 * np.exp(2 * (facing[:, 1] - 1)) + 0.15 * facing[:, 2] ** 2

    def _is_detached(self, number: int, points: np.ndarray) -> np.ndarray:
        return self._patch(number, _unit(points)) > self.levels[number]

    def _is_broken(self, number: int, points: np.ndarray, depth: np.ndarray) -> np.ndarray:
        damage = self.damages[number]
        broken = np.zeros(len(points), bool)
        radius = self.radii[number]
        for z, y, x, offset, width, wave in damage.sheets:
            normal = np.array([z, y, x])
            across = np.roll(normal, 1) - np.dot(np.roll(normal, 1), normal) * normal
            bend = wave * np.sin(points @ across * (4 / radius))
            broken |= (np.abs(points @ normal - offset + bend) < width / 2) & (depth > 0.12 * radius)
        for pore in damage.pores:
            broken |= np.square(points - pore[:3]).sum(axis=1) < pore[3] ** 2
        if len(damage.sites) > 1:
            square = np.square(points[:, None] - damage.sites).sum(axis=2)
            first, second = np.argsort(square, axis=1)[:, :2].T
            rows = np.arange(len(points))
            apart = np.linalg.norm(damage.sites[first] - damage.sites[second], axis=1)
            broken |= (square[rows, second] - square[rows, first]) / apart < damage.width  # twice the distance
        return broken


def even_directions(count: int) -> np.ndarray:
    """(count, 3) unit vectors spread evenly over the sphere (golden spiral)."""
    z = 1 - (2 * np.arange(count) + 1) / count
    turn = np.arange(count) * np.pi * (3 - np.sqrt(5))
    flat = np.sqrt(1 - z**2)
    return np.stack([z, flat * np.sin(turn), flat * np.cos(turn)], axis=1)


def _directions(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return _unit(rng.standard_normal((*shape, 3)))


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-9)


def _break(rng: np.random.Generator, state: int, radius: float, settings: CathodeSettings) -> Damage:
    """Draw the cracks of one particle; the same numbers are drawn whatever its state."""
    normals, offsets = _directions(rng, (3,)), rng.uniform(-0.45, 0.45, 3) * radius
    widths = settings.crack_width * np.clip(1 + 0.3 * rng.standard_normal(4), 0.4, 1.9)
    sheets = np.column_stack([normals, offsets, widths[:3], rng.uniform(0, 0.12, 3) * radius])
    centres = _directions(rng, (4,)) * (rng.uniform(0, 0.6, 4) * radius)[:, None]
    pores = np.column_stack([centres, rng.uniform(0.07, 0.15, 4) * radius])
    sites = _directions(rng, (8,)) * (np.cbrt(rng.uniform(0.05, 0.7, 8)) * radius)[:, None]
    counts = rng.integers([1, 0, 5], [4, 5, 9])
    if state == 0:
        counts[:] = 0
    elif state == 1:
        counts[2] = 0
    else:
        counts[0] = 0
    return Damage(sheets[: counts[0]], pores[: counts[1]], sites[: counts[2]], float(widths[3]))
