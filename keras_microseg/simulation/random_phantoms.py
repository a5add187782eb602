"""Sphere phantoms of random appearance, to train networks on: quick, and wider than any one scanner.

`simulation.phantoms` imitates a given measurement; here every phantom draws its own contrast, rims, blur, noise and
artefacts, so that a network learns what all have in common: closed surfaces of spheres.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage, special

from keras_microseg.checks import standardize_tuple

_TRIES = 40


def random_phantom(
    rng: np.random.Generator,
    shape: int | tuple[int, int, int],
    diameter: tuple[float, float] = (10.0, 26.0),
    fraction: tuple[float, float] = (0.0, 0.4),
) -> tuple[np.ndarray, np.ndarray]:
    """Spheres that do not overlap but often touch, as a tomograph might show them, and their exact labels.

    Drawn for every phantom: mean diameter (log-uniform) and its spread, volume fraction, share of touching spheres;
    grey of the interior (in a third of the phantoms that of the matrix, so that only rims show); bright and dark rims
    with fringes; blur; white and correlated noise; rings and streaks; shading; the edge of the sample against air.

    Args:
        rng: random source.
        shape: (z, y, x) voxels.
        diameter: range of the mean diameter, voxels.
        fraction: range of the volume fraction that is aimed at; random packing ends at about 0.4.

    Returns:
        (Z, Y, X) float32 grey values about 0..1, and int32 labels, 0 = matrix. Spheres cut by the border are included.
    """
    shape = standardize_tuple(shape, 3, "shape")
    mean = float(np.exp(rng.uniform(*np.log(diameter))))
    spread = rng.choice([0.0, 0.03, 0.08, 0.25])
    wanted = rng.uniform(*fraction)
    air = _air_distance(rng, shape) if rng.random() < 0.2 else None
    centres, radii = place_spheres(
        rng, shape, mean, spread, wanted, touching=rng.choice([0.0, 0.3, 0.8]), forbidden=air
    )
    labels = label_spheres(shape, centres, radii)
    grey = _render(rng, shape, centres, radii, mean, air)
    return grey, labels


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


def label_spheres(shape: tuple[int, int, int], centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """int32 labels 1..n in the order of the spheres that reach into the box; a voxel belongs when its centre does."""
    labels = np.zeros(shape, np.int32)
    number = 0
    for centre, radius in zip(centres, radii, strict=True):
        window, distance = _box(shape, centre, radius, 0)
        if window is None:
            continue
        inside = (distance <= radius) & (labels[window] == 0)
        if inside.any():
            number += 1
            labels[window][inside] = number
    return labels


def _render(rng, shape, centres, radii, mean: float, air: np.ndarray | None) -> np.ndarray:
    grey = np.full(shape, rng.uniform(0.35, 0.65), np.float32)
    contrast = rng.normal(0, 0.01) if rng.random() < 0.35 else rng.uniform(0.08, 0.5) * rng.choice([-1, 1])
    rim = 0.0 if abs(contrast) > 0.05 and rng.random() < 0.25 else rng.uniform(0.1, 0.6) * rng.choice([-1, 1])
    width = rng.uniform(0.5, min(1.6, mean / 8))
    fringes = rng.uniform(0, 0.5) * rng.integers(2)
    blur = rng.uniform(0.35, 1.1)
    sphere_variation = rng.choice([0.0, 0.05])
    for centre, radius in zip(centres, radii, strict=True):
        window, distance = _box(shape, centre, radius, 4 * width + 2)
        if window is None:
            continue
        own = contrast * (1 + sphere_variation * rng.standard_normal())
        grey[window] += _profile(radius - distance, own, rim, width, fringes, blur)
    if air is not None:
        outside = rng.uniform(-0.4, 0.0)
        grey += _profile(-air, outside, rim, width, fringes, blur)
    grey += _shading(rng, shape, rng.uniform(0, 0.06))
    signal = max(abs(contrast), abs(rim) * 0.7)
    strength = signal * rng.uniform(0.02, 0.55)
    noise = rng.standard_normal(shape, np.float32)
    correlation = rng.uniform(0, 1.0)
    if rng.random() < 0.5 and correlation > 0.3:
        noise = ndimage.gaussian_filter(noise, correlation)
        noise /= noise.std()
    grey += np.float32(strength) * noise
    if rng.random() < 0.5:
        grey += ring_artefacts(rng, shape[1:], signal * rng.uniform(0, 0.7))
    if rng.random() < 0.2:
        grey += stripe_artefacts(rng, shape[1:], signal * rng.uniform(0, 0.5))
    return grey


def ring_artefacts(rng: np.random.Generator, shape: tuple[int, int], amplitude: float) -> np.ndarray:
    """(Y, X) float32 offsets of ring artefacts: sparse sharp rings about an axis within twice the plane's size."""
    centre = rng.uniform(-0.5, 1.5, 2) * shape
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    radius = np.hypot(rows - centre[0], columns - centre[1])
    return _sparse_profile(rng, radius, amplitude)


def stripe_artefacts(rng: np.random.Generator, shape: tuple[int, int], amplitude: float) -> np.ndarray:
    """(Y, X) float32 offsets of straight streaks in one random direction."""
    angle = rng.uniform(0, np.pi)
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    distance = rows * np.cos(angle) + columns * np.sin(angle)
    return _sparse_profile(rng, distance - distance.min(), amplitude)


def _sparse_profile(rng: np.random.Generator, position: np.ndarray, amplitude: float) -> np.ndarray:
    count = int(position.max()) + 2
    profile = rng.standard_normal(count) * (rng.random(count) < 0.15)
    profile = ndimage.gaussian_filter1d(profile, 0.6)
    return (amplitude * np.interp(position, np.arange(count), profile)).astype(np.float32)


def _profile(depth, contrast: float, rim: float, width: float, fringes: float, blur: float) -> np.ndarray:
    """Grey values over the depth below a surface: a blurred step, a bright-dark rim, and fringes that die away."""
    depth = depth.astype(np.float32)
    step = contrast * 0.5 * (1 + special.erf(depth / np.float32(np.sqrt(2) * blur)))
    near = np.float32(np.hypot(width, blur))
    scaled = depth / near
    edge = rim * scaled * np.exp(0.5 - 0.5 * scaled**2)  # extreme value `rim` at a depth of +- near
    if fringes:
        edge = edge + rim * fringes * np.sin(2.2 * scaled) * np.exp(-np.abs(scaled) / 2)
    return (step + edge).astype(np.float32)


def _box(shape, centre, radius: float, margin: float):
    """Window around a sphere and the distance of its voxels to the centre; (None, None) outside the volume."""
    low = np.maximum(np.floor(centre - radius - margin).astype(int), 0)
    high = np.minimum(np.ceil(centre + radius + margin).astype(int) + 1, shape)
    if (low >= high).any():
        return None, None
    axes = [np.arange(a, b, dtype=np.float32) - np.float32(c) for a, b, c in zip(low, high, centre, strict=True)]
    distance = np.sqrt(axes[0][:, None, None] ** 2 + axes[1][None, :, None] ** 2 + axes[2][None, None, :] ** 2)
    return tuple(slice(a, b) for a, b in zip(low, high, strict=True)), distance


def _air_distance(rng: np.random.Generator, shape: tuple[int, int, int]) -> np.ndarray:
    """(1, Y, X) signed distance to a straight edge of the sample parallel to z, positive inside the sample."""
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = (np.arange(n) - (n - 1) / 2 for n in shape[1:])
    distance = rows[:, None] * np.cos(angle) + columns[None, :] * np.sin(angle)
    offset = rng.uniform(0.0, 0.45) * min(shape[1:])
    return np.broadcast_to((distance + offset).astype(np.float32), shape)


def _shading(rng: np.random.Generator, shape: tuple[int, int, int], amplitude: float) -> np.ndarray:
    slopes = rng.uniform(-1, 1, 3)
    axes = [slope * np.linspace(-1, 1, n) for slope, n in zip(slopes, shape, strict=True)]
    return (amplitude * (axes[0][:, None, None] + axes[1][None, :, None] + axes[2][None, None, :])).astype(np.float32)
