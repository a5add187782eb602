"""Particle outlines with known geometry: ellipses, rounded polygons, rods, cubes, crystals, or outlines from masks.

A shape is a *radial profile*: the distance from its centre to its edge for `ANGLES` directions, in units of its
equivalent circular radius, so that a particle drawn with diameter `d` has the area of a disc of diameter `d` whatever
its shape.
Dividing the distance of a pixel by the profile gives the *edge coordinate* `u`: 0 at the centre, 1 on the edge.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy import ndimage

from keras_microseg.checks import UserError, check_choice, check_number

ANGLES = 360
_THETA = np.arange(ANGLES) * (2 * np.pi / ANGLES)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A set of particle shapes.

    Attributes:
        profile: (N, ANGLES) float32, distance centre - edge over the equivalent circular radius; direction 0 is +x,
            angles grow towards +y (downwards).
        bend: (N,) float32, parabolic bending of the long axis in units of 1 / radius; 0 = straight.
        kind: (N,) names.
    """

    profile: np.ndarray
    bend: np.ndarray
    kind: np.ndarray

    def __len__(self) -> int:
        return len(self.profile)

    def take(self, index: np.ndarray) -> Shapes:
        """Shapes at `index`, repetitions allowed."""
        return Shapes(self.profile[index], self.bend[index], self.kind[index])


def _equal_area(profile: np.ndarray, kind: str, bend: np.ndarray | None = None) -> Shapes:
    """Scale profiles to the area of the unit disc; area = 1/2 integral r^2 dtheta."""
    area = 0.5 * np.sum(profile**2, axis=1) * (2 * np.pi / ANGLES)
    profile = (profile / np.sqrt(area / np.pi)[:, None]).astype(np.float32)
    count = len(profile)
    bend = np.zeros(count, np.float32) if bend is None else bend.astype(np.float32)
    return Shapes(profile, bend, np.full(count, kind))


def ellipses(rng: np.random.Generator, count: int, aspect: tuple[float, float] = (0.55, 1.0)) -> Shapes:
    """Ellipses; `aspect` is the range of minor over major axis."""
    ratio = rng.uniform(*aspect, (count, 1))
    return _equal_area(1 / np.sqrt(np.cos(_THETA) ** 2 + (np.sin(_THETA) / ratio) ** 2), "ellipse")


def discs(rng: np.random.Generator, count: int) -> Shapes:
    """Circles."""
    return _equal_area(np.ones((count, ANGLES)), "disc")


def polygons(
    rng: np.random.Generator,
    count: int,
    sides: tuple[int, int] = (4, 8),
    aspect: tuple[float, float] = (0.6, 1.0),
    sharpness: tuple[float, float] = (6.0, 40.0),
) -> Shapes:
    """Convex facetted particles with rounded corners.

    The outline is `(sum_k max(cos(theta - phi_k) / d_k, 0)^p)^(-1/p)`: for p -> infinity the polygon bounded by lines
    at distance d_k in direction phi_k, for smaller p (`sharpness`) its rounded version.
    """
    most = sides[1]
    number = rng.integers(sides[0], most + 1, count)
    k = np.arange(most)
    used = k[None, :] < number[:, None]
    direction = 2 * np.pi * (k[None, :] + rng.uniform(-0.28, 0.28, (count, most))) / number[:, None]
    ratio = rng.uniform(*aspect, (count, 1))
    distance = rng.uniform(0.82, 1.18, (count, most))
    distance *= np.sqrt(np.cos(direction) ** 2 + (ratio * np.sin(direction)) ** 2)
    power = rng.uniform(*np.log(sharpness), (count, 1, 1))
    power = np.exp(power)
    facing = np.maximum(np.cos(_THETA[None, None, :] - direction[:, :, None]), 0) / distance[:, :, None]
    facing *= used[:, :, None]
    # the last term is a bounding circle: three facets on one side do not close a polygon
    return _equal_area(((facing**power).sum(axis=1) + 1.6 ** -power[:, 0]) ** (-1 / power[:, 0]), "polygon")


def superellipses(
    rng: np.random.Generator,
    count: int,
    exponent: tuple[float, float] = (2.5, 8.0),
    aspect: tuple[float, float] = (0.7, 1.0),
) -> Shapes:
    """`|x/a|^n + |y/b|^n = 1`: rounded squares and rectangles."""
    n = rng.uniform(*exponent, (count, 1))
    ratio = rng.uniform(*aspect, (count, 1))
    return _equal_area((np.abs(np.cos(_THETA)) ** n + np.abs(np.sin(_THETA) / ratio) ** n) ** (-1 / n), "superellipse")


def cubes(rng: np.random.Generator, count: int) -> Shapes:
    """Nearly square faces with rounded corners."""
    shapes = superellipses(rng, count, (4.0, 12.0), (0.88, 1.0))
    return dataclasses.replace(shapes, kind=np.full(count, "cube"))


def rods(
    rng: np.random.Generator,
    count: int,
    aspect: tuple[float, float] = (1.6, 5.0),
    bend: float = 0.0,
) -> Shapes:
    """Straight or slightly bent capsules; `aspect` is length over width, `bend` the largest bending."""
    half = rng.uniform(*aspect, (count, 1)) - 1.0  # half length of the straight part, for radius 1
    cos, sin = np.abs(np.cos(_THETA)), np.abs(np.sin(_THETA))
    with np.errstate(divide="ignore", invalid="ignore"):
        side = 1 / sin
        cap = half * cos + np.sqrt(np.maximum(1 - (half * sin) ** 2, 0))
    profile = np.where(side * cos <= half, side, cap)
    return _equal_area(profile, "rod", rng.uniform(-bend, bend, count))


def blobs(
    rng: np.random.Generator,
    count: int,
    aspect: tuple[float, float] = (0.6, 1.0),
    roughness: tuple[float, float] = (0.02, 0.12),
    orders: int = 9,
) -> Shapes:
    """Ellipses with a random low-order Fourier outline: rounded irregular grains."""
    base = ellipses(rng, count, aspect).profile
    order = np.arange(2, 2 + orders)
    amplitude = rng.normal(size=(count, orders)) * rng.uniform(*roughness, (count, 1)) * 2 / order**1.1
    phase = rng.uniform(0, 2 * np.pi, (count, orders))
    ripple = (amplitude[:, :, None] * np.cos(order[None, :, None] * _THETA + phase[:, :, None])).sum(1)
    return _equal_area(base * np.maximum(1 + ripple, 0.35), "blob")


def crystals(rng: np.random.Generator, count: int) -> Shapes:
    """Sharp facetted crystals: triangles to hexagons."""
    shapes = polygons(rng, count, (3, 6), (0.75, 1.0), (15.0, 80.0))
    return dataclasses.replace(shapes, kind=np.full(count, "crystal"))


SHAPES: Mapping[str, Callable[..., Shapes]] = {
    "disc": discs,
    "ellipse": ellipses,
    "polygon": polygons,
    "superellipse": superellipses,
    "cube": cubes,
    "rod": rods,
    "blob": blobs,
    "crystal": crystals,
}


def draw_shapes(rng: np.random.Generator, count: int, weights: Mapping[str, float]) -> Shapes:
    """`count` shapes, their kinds drawn with the given relative weights, in random order.

    Args:
        rng: random source.
        count: number of shapes.
        weights: kind (a key of `SHAPES`) -> relative frequency.
    """
    for kind in weights:
        check_choice("shape", kind, SHAPES)
    check_number("count", count, minimum=0, integer=True)
    share = np.array(list(weights.values()), float)
    kinds = rng.multinomial(count, share / share.sum())
    parts = [SHAPES[kind](rng, int(number)) for kind, number in zip(weights, kinds, strict=True) if number]
    if not parts:
        return _equal_area(np.ones((0, ANGLES)), "disc")
    return concatenate(parts).take(rng.permutation(count))


def concatenate(parts: Sequence[Shapes]) -> Shapes:
    """Several sets of shapes as one."""
    return Shapes(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("profile", "bend", "kind")))


def shapes_from_masks(masks: Sequence[np.ndarray], names: Sequence[str] | None = None) -> Shapes:
    """Radial profiles of single-particle outlines.

    Each mask holds one particle (holes are filled; of several components the largest is taken). The profile is the
    largest distance from the centre of mass in each direction, which is exact for star-shaped particles; the steps of
    the pixels are smoothed.

    Args:
        masks: 2-D arrays, true or > half of their maximum inside the particle.
        names: file names for messages.

    Raises:
        UserError: a mask without a particle, or one whose particle touches the frame (its outline is cut).
    """
    profiles = []
    for index, mask in enumerate(masks):
        name = names[index] if names is not None else f"mask {index}"
        mask = np.asarray(mask)
        if mask.ndim != 2:
            raise UserError(f"{name}: an outline mask must be a 2-D image. Received shape {mask.shape}.")
        inside = mask if mask.dtype == bool else mask > mask.max() / 2
        labels, found = ndimage.label(ndimage.binary_fill_holes(inside))
        if not found:
            raise UserError(f"{name}: no particle in this mask. Draw one filled particle, white on black.")
        largest = labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1
        if largest[0].any() or largest[-1].any() or largest[:, 0].any() or largest[:, -1].any():
            raise UserError(f"{name}: the particle touches the frame, so its outline is cut. Leave it out.")
        profiles.append(_radial_profile(largest))
    if not profiles:
        raise UserError("No outline masks were given.")
    return _equal_area(np.array(profiles), "outline")


def _radial_profile(mask: np.ndarray, step: float = 0.25) -> np.ndarray:
    """(ANGLES,) distance, px, of the outermost point of a mask on rays from its centre of mass."""
    y, x = np.nonzero(mask)
    centre_y, centre_x = y.mean(), x.mean()
    soft = ndimage.gaussian_filter(
        np.pad(mask, 4)[y.min() : y.max() + 9, x.min() : x.max() + 9].astype(np.float32), 0.7
    )
    distance = np.arange(0, np.hypot(y - centre_y, x - centre_x).max() + 3, step)
    rows = centre_y - y.min() + 4 + np.sin(_THETA)[:, None] * distance
    columns = centre_x - x.min() + 4 + np.cos(_THETA)[:, None] * distance
    grey = ndimage.map_coordinates(soft, [rows, columns], order=1)
    is_inside = grey >= 0.5
    last = len(distance) - 1 - np.argmax(is_inside[:, ::-1], axis=1)
    last = np.where(is_inside.any(axis=1), last, 0)
    index = np.arange(ANGLES)
    here, beyond = grey[index, last], grey[index, np.minimum(last + 1, len(distance) - 1)]
    return distance[last] + step * np.clip((here - 0.5) / np.maximum(here - beyond, 1e-6), 0, 1)


def edge_coordinate(
    profile: np.ndarray, radius: float, angle: float, bend: float, dy: np.ndarray, dx: np.ndarray
) -> np.ndarray:
    """Edge coordinate `u` of pixels around one particle: < 1 inside, 1 on the edge.

    Args:
        profile: (ANGLES,) radial profile.
        radius: equivalent circular radius, px.
        angle: rotation, radians, from +x towards +y.
        bend: see `Shapes`.
        dy, dx: broadcastable offsets of the pixels from the centre, px.

    Returns:
        float32 array of the broadcast shape.
    """
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along = dx * cos + dy * sin
    across = dy * cos - dx * sin
    if bend:
        across = across - np.float32(bend / radius) * (along * along - np.float32(0.3 * radius * radius))
    direction = np.arctan2(across, along) * np.float32(ANGLES / (2 * np.pi))
    index = direction.astype(np.int32)  # towards zero: within one degree
    return np.hypot(across, along) / (np.float32(radius) * profile[index % ANGLES])
