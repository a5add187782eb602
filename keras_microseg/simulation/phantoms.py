"""Tomography phantoms with exactly known labels: spheres in a matrix, packed grains, fibres.

Objects are planned first (`plan_phantom`: centres, sizes, directions); voxels follow block by block. Every block equals
the same part of the whole, noise included, so volumes of any size can be written piece by piece.

The grey value across a surface is that of a reconstructed phase object: an absorption step blurred to `blur`, plus a
fringe, the Laplacian of the blurred step, bright inside and dark outside. Noise is Gaussian with a part that grows with
the grey value (Poisson in the limit of many counts); rings lie about the rotation axis.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import ndimage
from scipy.special import erf

from keras_microseg.checks import check_choice, check_number, standardize_tuple
from keras_microseg.simulation.fields import smoothing_gain, white_noise
from keras_microseg.simulation.packing import pack_spheres, place_fibres

KINDS = ("spheres", "grains", "fibres")
_STEPS = 64  # entries per voxel of the table of surface profiles
Box = tuple[slice, slice, slice]


@dataclasses.dataclass(frozen=True)
class PhantomSettings:
    """What a phantom looks like. Lengths in voxels, grey values as shares of full scale.

    Attributes:
        kind: `spheres`; `grains` (packed, bumpy, flattened where they touch); `fibres` (long cylinders).
        shape: (z, y, x).
        fraction: wanted volume share of the objects, inside the sample.
        diameter: mean diameter (of fibres: their thickness).
        spread: standard deviation of the diameter over its mean; cut off at `2 * spread` on both sides.
        clustering: share of the spheres that start in contact with another one.
        gap: least distance between surfaces; negative lets objects press into each other.
        tilt_range: fibres: largest angle out of the y-x plane, degrees.
        matrix, air: grey values around the objects and outside the sample.
        contrast: grey of the objects minus that of the matrix; 0 leaves only the fringes.
        fringe: height of the rim fringes. The phase filter a = 4.13 fringe fringe_width^2 / contrast undoes it.
        fringe_width: distance of the fringe's peak from the surface.
        blur: standard deviation of the blurred surface.
        noise: standard deviation of the noise in the matrix.
        noise_correlation: Gaussian smoothing of the noise (its strength stays).
        poisson: share of the noise variance that grows with the grey value, 0..1.
        rings: standard deviation of ring artefacts.
        cupping: fall of the grey value from the edge of the field to its centre.
        sample: side of the square sample over the smaller side of the field; None = the sample fills the field.
        tilt: rotation of the square sample in the y-x plane, degrees.
        dtype: `uint8`, `uint16` (grey 0..1 becomes the full range, clipped) or `float32`.
        seed: start of all random numbers.
    """

    kind: str = "spheres"
    shape: tuple[int, int, int] = (128, 128, 128)
    fraction: float = 0.2
    diameter: float = 24.0
    spread: float = 0.05
    clustering: float = 0.0
    gap: float = 0.0
    tilt_range: float = 15.0
    matrix: float = 0.4
    air: float = 0.25
    contrast: float = 0.1
    fringe: float = 0.12
    fringe_width: float = 1.5
    blur: float = 0.8
    noise: float = 0.05
    noise_correlation: float = 0.0
    poisson: float = 0.5
    rings: float = 0.01
    cupping: float = 0.0
    sample: float | None = None
    tilt: float = 0.0
    dtype: str = "uint16"
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("kind", self.kind, KINDS)
        check_choice("dtype", self.dtype, ("uint8", "uint16", "float32"))
        object.__setattr__(self, "shape", standardize_tuple(self.shape, 3, "shape"))
        check_number("fraction", self.fraction, minimum=0, maximum=0.75 if self.kind == "grains" else 0.55)
        check_number("diameter", self.diameter, minimum=2)
        check_number("spread", self.spread, minimum=0, maximum=0.45)
        check_number("clustering", self.clustering, minimum=0, maximum=1)
        check_number("tilt_range", self.tilt_range, minimum=0, maximum=90)
        check_number("gap", self.gap, minimum=-self.diameter / 2)
        for name in ("fringe_width", "blur"):
            check_number(name, getattr(self, name), minimum=0.05, maximum=50)
        for name in ("noise", "noise_correlation", "rings"):
            check_number(name, getattr(self, name), minimum=0, maximum=10)
        check_number("poisson", self.poisson, minimum=0, maximum=1)
        if self.sample is not None:
            check_number("sample", self.sample, minimum=0.05, maximum=2)


PRESETS = {
    "near": {"contrast": 0.12, "fringe": 0.10, "fringe_width": 1.5},
    "far": {"contrast": 0.01, "fringe": 0.25, "fringe_width": 3.0},
    "clean": {"contrast": 0.3, "fringe": 0.0, "noise": 0.01, "rings": 0.0},
}
"""Looks: `near` and `far` detector (25 and 60 mm in the glass sphere scans: at 60 mm only the rims show), `clean`."""


@dataclasses.dataclass(frozen=True)
class Phantom:
    """A phantom in memory.

    Attributes:
        volume: (Z, Y, X) grey values.
        labels: (Z, Y, X) int32, 0 = matrix: voxels whose centre lies inside an object.
        table: one row per object that meets the volume: `label`, `z`, `y`, `x` of the centre, `diameter`, `whole`.
        settings: as asked.
    """

    volume: np.ndarray
    labels: np.ndarray
    table: pd.DataFrame
    settings: PhantomSettings


def make_phantom(settings: PhantomSettings) -> Phantom:
    """A whole phantom in memory."""
    plan = plan_phantom(settings)
    volume, labels = plan.read(tuple(slice(0, n) for n in settings.shape))
    return Phantom(volume, labels, plan.table(), settings)


def plan_phantom(settings: PhantomSettings) -> PhantomPlan:
    """Choose the objects of a phantom; see `PhantomPlan.read` for their voxels."""
    rng = np.random.default_rng(np.random.SeedSequence([settings.seed, 1]))
    if not settings.fraction:
        return PhantomPlan(settings, np.zeros((0, 3)), np.zeros(0), np.zeros((0, 3)), None)
    how = settings.shape, settings.diameter, settings.spread
    if settings.kind == "fibres":
        centres, radii, directions = place_fibres(rng, *how, settings.fraction, tilt_range=settings.tilt_range)
    else:
        gap, wanted = settings.gap, settings.fraction
        if settings.kind == "grains":  # packed grains press flat against each other; what overlaps counts once
            gap, wanted = gap - 0.1 * settings.diameter, 1.08 * wanted
        centres, radii = pack_spheres(rng, *how, wanted, gap=gap, clustering=settings.clustering)
        if settings.sample is not None:
            inside = _inside_sample(settings, centres, radii)
            centres, radii = centres[inside], radii[inside]
        directions = np.zeros_like(centres)
    bumps = None
    if settings.kind == "grains":
        normals = rng.standard_normal((len(radii), 6, 3))
        bumps = normals / np.linalg.norm(normals, axis=2, keepdims=True) * rng.uniform(0.5, 1.5, (len(radii), 6, 1))
    return PhantomPlan(settings, centres, radii, directions, bumps)


@dataclasses.dataclass(frozen=True)
class PhantomPlan:
    """The objects of a phantom.

    Attributes:
        settings: as asked.
        centres: (N, 3) z, y, x of the objects, voxels.
        radii: (N,).
        directions: (N, 3) unit vectors along fibres, zero for others.
        bumps: (N, 6, 3) bump directions of grains, or None.
    """

    settings: PhantomSettings
    centres: np.ndarray
    radii: np.ndarray
    directions: np.ndarray
    bumps: np.ndarray | None

    @classmethod
    def of_spheres(cls, shape: tuple[int, int, int], centres: np.ndarray, radii: np.ndarray) -> PhantomPlan:
        """Given spheres, in the default look."""
        return cls(PhantomSettings(shape=shape), centres, radii, np.zeros_like(centres), None)

    def read(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        """`(grey values, int32 labels)` of one block (a slice without step per axis)."""
        labels, grey = self._objects(box)
        self._add_field(box, grey)
        self._add_noise(box, grey)
        scale = {"uint8": 255, "uint16": 65535}.get(self.settings.dtype)
        if scale is None:
            return grey, labels
        np.clip(grey, 0, 1, out=grey)
        grey *= scale
        return np.rint(grey, out=grey).astype(self.settings.dtype), labels

    def read_labels(self, box: Box) -> np.ndarray:
        """The labels of one block alone."""
        shape = tuple(part.stop - part.start for part in box)
        labels, deepest = np.zeros(shape, np.int32), np.full(shape, -1, np.float32)
        for number, window, depth in self.visible(box):
            deeper = (depth >= 0) & (depth > deepest[window])
            deepest[window][deeper] = depth[deeper]
            labels[window][deeper] = number + 1
        sample = self._sample(box)
        return labels if sample is None else np.where(sample < 0, 0, labels)

    def table(self) -> pd.DataFrame:
        """Objects that meet the volume; `whole`: not cut by its border."""
        last = np.array(self.settings.shape) - 1
        low, high = self._bounds(np.zeros(3), last, 0.0)
        meets, whole = ((high >= 0) & (low <= last)).all(axis=1), ((low >= 0) & (high <= last)).all(axis=1)
        values = {"label": np.arange(1, len(self.radii) + 1)}
        values.update(zip("zyx", self.centres.T, strict=True))
        values.update(diameter=2 * self.radii, whole=whole)
        return pd.DataFrame(values)[meets].reset_index(drop=True)

    def _bounds(self, low: np.ndarray, high: np.ndarray, margin: float) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3) lowest and highest position of every object inside a box grown by `margin` (of fibres: their part)."""
        bump = 1.25 if self.bumps is not None else 1.0
        reach = (self.radii * bump + margin)[:, None]
        if self.settings.kind != "fibres":
            return self.centres - reach, self.centres + reach
        slope = np.where(np.abs(self.directions) < 1e-9, 1e-9, self.directions)
        ends = np.stack([(low - reach - self.centres) / slope, (high + reach - self.centres) / slope])
        enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
        points = self.centres + self.directions * np.stack([enter, leave])[:, :, None]
        missed = np.where(enter > leave, np.inf, 0)[:, None]
        return points.min(axis=0) - reach + missed, points.max(axis=0) + reach - missed

    def visible(self, box: Box, margin: float = 0.0) -> Iterator[tuple[int, Box, np.ndarray]]:
        """Objects whose surface is less than `margin` voxels from a block.

        Yields:
            `(number, window, depth)`: index of the object, a box inside the block around it, and the distance inside
            its surface there (negative outside), float32.
        """
        start, stop = np.array([(part.start, part.stop) for part in box]).T
        low, high = self._bounds(start, stop, margin)
        low = np.maximum(np.ceil(np.clip(low, -1e9, 1e9)).astype(int), start)
        high = np.minimum(np.floor(np.clip(high, -1e9, 1e9)).astype(int) + 1, stop)
        for number in np.flatnonzero((low < high).all(axis=1)):
            window = tuple(slice(a, b) for a, b in zip(low[number] - start, high[number] - start, strict=True))
            yield int(number), window, self._depth(number, low[number], high[number])

    def _objects(self, box: Box) -> tuple[np.ndarray, np.ndarray]:
        settings = self.settings
        shape = tuple(part.stop - part.start for part in box)
        labels, grey = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        margin = 4 * max(settings.blur, settings.fringe_width if settings.fringe else 0)
        profile = _profile_table(settings, margin, float(self.radii.max(initial=0)) * 1.3)
        deepest = np.full(shape, -margin, np.float32)
        adds = settings.kind == "spheres"  # the phases of neighbours add up; objects that overlap count once
        last = len(profile) - 1
        for number, window, depth in self.visible(box, margin):
            if adds:
                place = ((depth + margin) * _STEPS).astype(np.int32)
                grey[window] += profile[np.clip(place, 0, last, out=place)]
            deeper = depth > deepest[window]
            deepest[window][deeper] = depth[deeper]
            labels[window][deeper & (depth >= 0)] = number + 1
        if adds:
            np.minimum(grey, settings.contrast + settings.fringe, out=grey)
        else:
            grey = profile[((deepest + margin) * _STEPS).astype(np.int32).clip(0, last)]
        sample = self._sample(box)
        if sample is not None:
            outside = sample < 0
            labels[np.broadcast_to(outside, shape)] = 0
            edge = _surface(settings, sample, settings.matrix - settings.air)
            grey = np.where(outside, 0, grey) + settings.air + edge
        else:
            grey += settings.matrix
        return labels, grey.astype(np.float32, copy=False)

    def _depth(self, number: int, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """Distance inside the surface of one object (negative outside), float32, in a window."""
        z, y, x = (
            (np.arange(a, b) - c).astype(np.float32).reshape([-1 if axis == k else 1 for k in range(3)])
            for axis, (a, b, c) in enumerate(zip(low, high, self.centres[number], strict=True))
        )
        square = z * z + y * y + x * x
        radius = np.float32(self.radii[number])
        direction = self.directions[number].astype(np.float32)
        if direction.any():
            along = z * direction[0] + y * direction[1] + x * direction[2]
            square -= along * along
            np.maximum(square, 0, out=square)
        distance = np.sqrt(square, out=square)
        if self.bumps is None:
            return radius - distance
        shape = np.zeros_like(distance)
        for normal in self.bumps[number].astype(np.float32):
            facing = (z * normal[0] + y * normal[1] + x * normal[2]) / np.maximum(distance, 1e-3)
            shape += facing * facing
        # the sum over 6 directions of cos^2 has the mean 2.17 (a third of the mean squared length)
        return radius * (1 + 0.12 * (shape - np.float32(2.1667))).clip(0.8, 1.25) - distance

    def _sample(self, box: Box) -> np.ndarray | None:
        """(1, Y, X) depth inside the square sample, or None."""
        if self.settings.sample is None:
            return None
        _, height, width = self.settings.shape
        y = np.arange(box[1].start, box[1].stop)[:, None] - (height - 1) / 2
        x = np.arange(box[2].start, box[2].stop) - (width - 1) / 2
        angle = math.radians(self.settings.tilt)
        u, v = y * math.cos(angle) - x * math.sin(angle), y * math.sin(angle) + x * math.cos(angle)
        half = self.settings.sample * min(height, width) / 2
        return (half - np.maximum(np.abs(u), np.abs(v)))[None].astype(np.float32)

    def _add_field(self, box: Box, grey: np.ndarray) -> None:
        """Rings and cupping."""
        settings = self.settings
        if not settings.rings and not settings.cupping:
            return
        _, height, width = settings.shape
        y = np.arange(box[1].start, box[1].stop)[:, None] - (height - 1) / 2
        x = np.arange(box[2].start, box[2].stop) - (width - 1) / 2
        radius = np.hypot(y, x)
        farthest = math.hypot(height, width) / 2
        if settings.cupping:
            grey += (settings.cupping * ((radius / farthest) ** 2 - 1)).astype(np.float32)
        if settings.rings:
            count = int(farthest) + 2
            place = radius.astype(np.intp)
            lasting = _rings(np.random.default_rng(np.random.SeedSequence([settings.seed, 2])), count)
            for plane, z in zip(grey, range(box[0].start, box[0].stop), strict=True):
                own = _rings(np.random.default_rng(np.random.SeedSequence([settings.seed, 3, z])), count)
                plane += (settings.rings * (0.8 * lasting + 0.6 * own)).astype(np.float32)[place]

    def _add_noise(self, box: Box, grey: np.ndarray) -> None:
        settings = self.settings
        if not settings.noise:
            return
        sigma = settings.noise_correlation
        margin = math.ceil(4 * sigma)
        noise = white_noise(settings.seed, tuple(slice(p.start - margin, p.stop + margin) for p in box))
        if margin:
            inner = tuple(slice(margin, -margin) for _ in box)
            noise = ndimage.gaussian_filter(noise, sigma)[inner] * smoothing_gain(sigma)
        if settings.poisson:
            share = np.clip(grey * np.float32(settings.poisson / max(settings.matrix, 1e-3)), 0, None)
            noise *= np.sqrt(share + np.float32(1 - settings.poisson))
        noise *= np.float32(settings.noise)
        grey += noise


def surface_profile(
    depth: np.ndarray, contrast: float, rim: float, *, blur: float, width: float, fringes: float = 0.0
) -> np.ndarray:
    """Grey values across a surface.

    Args:
        depth: distance inside the surface, voxels, negative outside.
        contrast: height of the step, blurred to the standard deviation `blur`.
        rim: height of the rim, bright inside and dark outside, `width` voxels from the surface.
        fringes: strength of further fringes that die away, over that of the rim.
    """
    step = 0.5 * contrast * (1 + erf(depth / (blur * math.sqrt(2))))
    scaled = depth / width
    edge = rim * scaled * np.exp(0.5 * (1 - scaled**2))
    if fringes:
        edge = edge + rim * fringes * np.sin(2.2 * scaled) * np.exp(-np.abs(scaled) / 2)
    return step + edge


def _surface(settings: PhantomSettings, depth: np.ndarray, contrast: float) -> np.ndarray:
    return surface_profile(depth, contrast, settings.fringe, blur=settings.blur, width=settings.fringe_width)


def _profile_table(settings: PhantomSettings, margin: float, deepest: float) -> np.ndarray:
    depth = np.arange(int((margin + deepest) * _STEPS) + 1) / _STEPS - margin
    table = _surface(settings, depth, settings.contrast)
    table[0] = 0.0
    return table.astype(np.float32)


def _rings(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ring strength per radius, variance about 1: faint everywhere, strong in some places."""
    strong = rng.standard_normal(count) * (rng.random(count) < 0.06) * 3.5
    return 0.5 * rng.standard_normal(count) + strong


def _inside_sample(settings: PhantomSettings, centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    _, height, width = settings.shape
    angle = math.radians(settings.tilt)
    y, x = centres[:, 1] - (height - 1) / 2, centres[:, 2] - (width - 1) / 2
    u, v = y * math.cos(angle) - x * math.sin(angle), y * math.sin(angle) + x * math.cos(angle)
    return np.maximum(np.abs(u), np.abs(v)) + radii < settings.sample * min(height, width) / 2
