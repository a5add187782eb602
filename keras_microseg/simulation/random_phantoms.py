"""Sphere phantoms of random appearance, to train networks on: quick, and wider than any one scanner.

`simulation.phantoms` imitates a given measurement; here every phantom draws its own contrast, rims, blur, noise and
artefacts, so that a network learns what all have in common: closed surfaces of spheres.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from keras_microseg.checks import standardize_tuple
from keras_microseg.simulation.packing import place_spheres
from keras_microseg.simulation.phantoms import PhantomPlan, surface_profile


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
    plan = PhantomPlan.of_spheres(shape, centres, radii)
    return _render(rng, plan, mean, air), plan.read_labels(tuple(slice(0, n) for n in shape))


def _render(rng: np.random.Generator, plan: PhantomPlan, mean: float, air: np.ndarray | None) -> np.ndarray:
    shape = plan.settings.shape
    grey = np.full(shape, rng.uniform(0.35, 0.65), np.float32)
    contrast = rng.normal(0, 0.01) if rng.random() < 0.35 else rng.uniform(0.08, 0.5) * rng.choice([-1, 1])
    rim = 0.0 if abs(contrast) > 0.05 and rng.random() < 0.25 else rng.uniform(0.1, 0.6) * rng.choice([-1, 1])
    width = rng.uniform(0.5, min(1.6, mean / 8))
    fringes = rng.uniform(0, 0.5) * rng.integers(2)
    blur = rng.uniform(0.35, 1.1)
    sphere_variation = rng.choice([0.0, 0.05])
    look = {"rim": rim, "blur": blur, "width": float(np.hypot(width, blur)), "fringes": fringes}
    for _, window, depth in plan.visible(tuple(slice(0, n) for n in shape), 4 * width + 2):
        own = contrast * (1 + sphere_variation * rng.standard_normal())
        grey[window] += surface_profile(depth, own, **look)
    if air is not None:
        outside = rng.uniform(-0.4, 0.0)
        grey += surface_profile(-air, outside, **look)
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
