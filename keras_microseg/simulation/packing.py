"""Where the objects of phantoms lie: spheres one by one or pushed apart, fibres through random points."""

from __future__ import annotations

import math

import numpy as np
from scipy.spatial import cKDTree

from keras_microseg.checks import UserError

_TRIES = 40


def place_spheres(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    diameter: float,
    spread: float,
    fraction: float,
    *,
    touching: float = 0.0,
    forbidden: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii of hard spheres, by random sequential addition, in a box and the margin around it.

    Args:
        rng: random source.
        shape: (z, y, x) of the box.
        diameter: mean, voxels.
        spread: standard deviation / mean; diameters are cut off at 2.5 standard deviations.
        fraction: volume fraction to stop at.
        touching: probability that a sphere is set into contact with an earlier one.
        forbidden: (Z, Y, X) signed distance to places without spheres, positive where they may lie; None = nowhere.

    Returns:
        (N, 3) centres and (N,) radii, float64, voxels; the first voxel's centre is 0.
    """
    margin = diameter / 2
    low, high = -margin, np.array(shape) - 1 + margin
    volume = float(np.prod(high - low))
    count = int(fraction * volume / (np.pi / 6 * diameter**3))
    deviations = np.clip(rng.standard_normal(count), -2.5, 2.5)
    wanted = np.sort(diameter / 2 * (1 + spread * deviations))[::-1]
    centres, radii = np.empty((count, 3)), np.empty(count)
    placed = 0
    for radius in wanted:
        candidates = rng.uniform(low, high, (_TRIES, 3))
        if placed and touching:
            beside = rng.random(_TRIES) < touching
            to = rng.integers(placed, size=_TRIES)
            direction = rng.standard_normal((_TRIES, 3))
            direction /= np.linalg.norm(direction, axis=1, keepdims=True)
            at_contact = centres[to] + direction * (radii[to] + radius + rng.uniform(0, 0.3))[:, np.newaxis]
            candidates = np.where(beside[:, np.newaxis], at_contact, candidates)
        free = np.all((candidates >= low) & (candidates <= high), axis=1)
        if placed:
            gaps = np.linalg.norm(candidates[:, np.newaxis] - centres[:placed], axis=2) - radii[:placed] - radius
            free &= (gaps >= 0).all(axis=1)
        if forbidden is not None:
            nearest = tuple(np.clip(np.rint(candidates).astype(int), 0, np.array(shape) - 1).T)
            free &= forbidden[nearest] > radius
        if free.any():
            first = int(np.argmax(free))
            centres[placed], radii[placed] = candidates[first], radius
            placed += 1
    return centres[:placed], radii[:placed]


def _draw_radii(rng: np.random.Generator, diameter: float, spread: float, count: int) -> np.ndarray:
    return diameter / 2 * (1 + np.clip(rng.standard_normal(count), -2, 2) * spread)


def pack_spheres(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    diameter: float,
    spread: float,
    fraction: float,
    *,
    gap: float = 0.0,
    clustering: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Centres and radii of spheres: random, then pushed apart until no two are closer than `gap`.

    The arrangement repeats beyond the volume, so objects cut by its border continue on the other side (as objects of
    their own) and the volume share is the wanted one up to the rounding of their number.

    Args:
        rng: random source.
        shape: (z, y, x) of the box.
        diameter: mean, voxels.
        spread: standard deviation / mean; diameters are cut off at two standard deviations.
        fraction: volume fraction.
        gap: least distance between surfaces; negative lets spheres overlap.
        clustering: share of the spheres that start in contact with another one.

    Returns:
        (N, 3) centres and (N,) radii, float64, voxels.

    Raises:
        UserError: no room.
    """
    widest = diameter * (1 + 2 * spread)
    period = np.maximum(np.array(shape, float), 2.2 * widest)
    volume = math.pi / 6 * diameter**3 * (1 + 3 * spread**2)
    count = max(1, round(fraction * float(np.prod(period)) / volume))
    radii = _draw_radii(rng, diameter, spread, count)
    centres = rng.uniform(0, period, (count, 3))
    for number in range(1, count):
        if rng.random() < clustering:
            host = int(rng.integers(number))
            direction = rng.standard_normal(3)
            direction *= (radii[host] + radii[number] + gap) / np.linalg.norm(direction)
            centres[number] = centres[host] + direction
    reach, overlap = 2 * radii.max() + gap, np.zeros(0)
    for _ in range(600):
        centres %= period
        centres[centres >= period] = 0  # rounding
        first, second = cKDTree(centres, boxsize=period).query_pairs(reach, output_type="ndarray").T
        apart = centres[second] - centres[first]
        apart -= period * np.rint(apart / period)
        distance = np.linalg.norm(apart, axis=1)
        overlap = radii[first] + radii[second] + gap - distance
        close = overlap > 0
        if overlap.max(initial=0) < 0.01:
            break
        step = apart[close] / np.maximum(distance[close], 1e-6)[:, None] * (0.5 * overlap[close] + 0.003)[:, None]
        for axis in range(3):
            centres[:, axis] += np.bincount(second[close], step[:, axis], count)
            centres[:, axis] -= np.bincount(first[close], step[:, axis], count)
    if overlap.max(initial=0) > 0.05 * diameter:
        raise UserError(
            f"No room for a share of {fraction:.2f} of objects of diameter {diameter:g}. "
            f"Received: fraction={fraction:.4g}, gap={gap:.4g}. Lower one of them."
        )
    return _with_images(centres, radii, period, np.array(shape), 1.25 * widest / 2)


def _with_images(
    centres: np.ndarray, radii: np.ndarray, period: np.ndarray, shape: np.ndarray, reach: float
) -> tuple[np.ndarray, np.ndarray]:
    """The objects and those of their periodic images that come near the volume."""
    all_centres, all_radii = [], []
    for shift in np.ndindex(3, 3, 3):
        moved = centres + (np.array(shift) - 1) * period
        near = ((moved > -reach - 8) & (moved < shape + reach + 8)).all(axis=1)
        all_centres.append(moved[near])
        all_radii.append(radii[near])
    return np.concatenate(all_centres), np.concatenate(all_radii)


def place_fibres(
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    diameter: float,
    spread: float,
    fraction: float,
    *,
    tilt_range: float = 90.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Straight cylinders through random points; those that cross share the voxels by depth.

    Args:
        rng, shape, diameter, spread, fraction: as for `pack_spheres`.
        tilt_range: largest angle out of the y-x plane, degrees.

    Returns:
        (N, 3) points of the axes, (N,) radii, (N, 3) unit vectors along the axes.
    """
    shape = np.array(shape, float)
    reach = np.linalg.norm(shape) / 2 + diameter
    # lines through a sphere around the volume: isotropic in position; the share they cover adds up as 1 - exp(-n v)
    volume = math.pi * diameter**2 / 4 * (1 + spread**2)
    density = -math.log(1 - fraction)
    count = max(1, round(density * math.pi * reach**2 / volume))
    radii = _draw_radii(rng, diameter, spread, count)
    azimuth = rng.uniform(0, 2 * math.pi, count)
    rise = np.radians(rng.uniform(-tilt_range, tilt_range, count))
    directions = np.stack([np.sin(rise), np.cos(rise) * np.sin(azimuth), np.cos(rise) * np.cos(azimuth)], axis=1)
    helper = np.where(np.abs(directions[:, :1]) < 0.9, [[1.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]])
    across = np.cross(directions, helper)
    across /= np.linalg.norm(across, axis=1, keepdims=True)
    other = np.cross(directions, across)
    distance, turn = reach * np.sqrt(rng.random(count)), rng.uniform(0, 2 * math.pi, count)
    offset = (across * np.cos(turn)[:, None] + other * np.sin(turn)[:, None]) * distance[:, None]
    return (shape - 1) / 2 + offset, radii, directions
