"""The micrograph renderer: a layout of particles becomes an SEM, TEM or STEM image with exact instance truth.

It is not a physical simulation. Each effect that makes real micrographs hard (edge brightening, shading, topography,
charging, uneven substrate, noise, blur, scan lines, thickness contrast, captions) has a simple model with random
strength, so that a network trained on the images meets a wider range of looks than any one microscope produces (domain
randomisation; Tobin et al. 2017, arXiv:1703.06907).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import numpy as np
from scipy import ndimage

from keras_microseg.checks import check_choice
from keras_microseg.simulation.fields import blur, curve_field, line_field, noise_field, smooth_steps
from keras_microseg.simulation.particles import draw_shapes
from keras_microseg.simulation.placement import (
    Layout,
    PlacementSettings,
    Raster,
    lognormal_diameters,
    place,
    rasterize,
)

PRESETS = ("any", "sem", "powder", "tem", "stem")
_MODALITY_SHARE = {"sem": 0.5, "powder": 0.17, "tem": 0.23, "stem": 0.1}


@dataclasses.dataclass(frozen=True)
class Micrograph:
    """A simulated image and its truth.

    Attributes:
        image: (H, W) float32 in 0..1.
        labels: (H, W) int32 instance labels 1..n, 0 = background.
        facts: modality, median diameter (px), polarity, number of particles, settings drawn.
    """

    image: np.ndarray
    labels: np.ndarray
    facts: Mapping[str, object]


def simulate_micrograph(
    rng: np.random.Generator,
    shape: tuple[int, int] = (384, 384),
    preset: str = "any",
    *,
    diameter: tuple[float, float] = (9.0, 70.0),
    captions: bool = True,
) -> Micrograph:
    """One image with exact truth.

    Args:
        rng: random source; equal generators give equal images.
        shape: (height, width), px.
        preset: `sem` secondary-electron images of fine particles, `powder` rough spheres, `tem` dark on bright,
            `stem` bright on dark, or `any` of them.
        diameter: range of the median equivalent diameter, px (log-uniform).
        captions: sometimes draw scale bars, letters and insets as in published figures.
    """
    check_choice("preset", preset, PRESETS)
    if preset == "any":
        preset = str(rng.choice(list(_MODALITY_SHARE), p=list(_MODALITY_SHARE.values())))
    layout, raster = draw_particles(rng, shape, preset, diameter)
    if preset in ("tem", "stem"):
        image = _transmission(rng, raster, layout, bright=preset == "stem")
    else:
        image = _secondary_electrons(rng, raster, layout, powder=preset == "powder")
    labels = raster.labels
    image = _instrument(rng, image, labels)
    if captions and rng.random() < 0.25:
        image, labels = _captions(rng, image, labels)
    inside = labels > 0
    dark = bool(inside.any() and not inside.all() and image[inside].mean() < image[~inside].mean())
    facts = {
        "modality": preset,
        "particles": int(labels.max()),
        "median_diameter_px": float(np.median(layout.diameter)) if len(layout) else 0.0,
        "polarity": "dark" if dark else "bright",
        "coverage": float(inside.mean()),
    }
    return Micrograph(image, labels, facts)


def draw_particles(
    rng: np.random.Generator, shape: tuple[int, int], preset: str, diameter: tuple[float, float]
) -> tuple[Layout, Raster]:
    """Sizes, shapes, positions and pixels of one image for a modality."""
    median = float(np.exp(rng.uniform(*np.log(diameter))))
    spreads = [0.2, 0.35, 0.5, 0.65] if preset == "powder" else [0.05, 0.15, 0.3, 0.45]
    spread = float(rng.choice(spreads, p=[0.2, 0.25, 0.35, 0.2]) * rng.uniform(0.6, 1.2))
    modes = {
        "sem": {"clusters": 0.55, "noise": 0.15, "random": 0.12, "packed": 0.1, "hexagonal": 0.05, "cubic": 0.03},
        "powder": {"random": 0.3, "packed": 0.35, "clusters": 0.25, "noise": 0.1},
        "tem": {"random": 0.35, "clusters": 0.4, "packed": 0.1, "hexagonal": 0.1, "noise": 0.05},
        "stem": {"random": 0.4, "clusters": 0.4, "packed": 0.1, "noise": 0.1},
    }[preset]
    mode = str(rng.choice(list(modes), p=list(modes.values())))
    kinds = {
        "sem": {
            "blob": 4,
            "polygon": 3,
            "ellipse": 2,
            "superellipse": 1,
            "cube": 1,
            "rod": 0.7,
            "crystal": 1,
            "disc": 1,
        },
        "powder": {"disc": 3, "ellipse": 3, "blob": 1.5},
        "tem": {"disc": 3, "ellipse": 2, "polygon": 2, "rod": 1.2, "cube": 1, "crystal": 1, "blob": 2},
        "stem": {"disc": 3, "ellipse": 2, "polygon": 2, "rod": 1, "crystal": 1, "blob": 2},
    }[preset]
    if rng.random() < 0.6:  # mostly one or two kinds per image, as in real samples
        names = list(kinds)
        share = np.array(list(kinds.values()), float)
        chosen = rng.choice(len(names), size=2, replace=False, p=share / share.sum())
        kinds = {names[chosen[0]]: 1.0, names[chosen[1]]: float(rng.uniform(0, 0.5))}
    covered = {"packed": rng.uniform(0.7, 1.0), "clusters": rng.uniform(0.05, 0.7)}.get(mode, rng.uniform(0.03, 0.55))
    area = shape[0] * shape[1]
    mean_area = np.pi / 4 * median**2 * np.exp(2 * spread**2)
    count = int(np.clip(covered * area / mean_area, 1, 4000))
    in_transmission = preset in ("tem", "stem")
    settings = PlacementSettings(
        mode=mode,
        max_overlap=float(rng.uniform(0.0, 0.25) if in_transmission else rng.uniform(0.25, 0.8)),
        touch=float(rng.uniform(0.92, 1.06) if in_transmission else rng.uniform(0.62, 1.0)),
        cluster_size=float(np.exp(rng.uniform(np.log(2), np.log(40)))),
        noise_scale=float(rng.uniform(2, 8)),
        noise_threshold=float(rng.uniform(0.3, 0.8)),
        spacing=float(rng.uniform(0.98, 1.5)),
        jitter=float(rng.uniform(0, 0.12)),
        rotation=str(rng.choice(["random", "correlated", "none"], p=[0.8, 0.15, 0.05])),
    )
    diameters = lognormal_diameters(rng, count, median, spread)
    if rng.random() < 0.25:  # a second, finer population
        fine = rng.random(count) < rng.uniform(0.1, 0.5)
        diameters[fine] = np.maximum(diameters[fine] * rng.uniform(0.25, 0.6), 5.0)
    layout = place(rng, shape, diameters, draw_shapes(rng, count, kinds), settings)
    if preset == "powder" and rng.random() < 0.6:
        layout = layout.with_satellites(rng, rng.uniform(0.1, 2.0), (0.07, 0.3))
    elif preset == "sem" and rng.random() < 0.06:  # raspberries
        layout = layout.with_satellites(rng, rng.uniform(4, 20), (0.08, 0.22), (0.1, 0.95))
    return layout, rasterize(layout, shape, max_overlap=settings.max_overlap, min_area=8)


def _per_particle(raster: Raster, values: np.ndarray, background: float = 0.0) -> np.ndarray:
    """Map of a quantity given per entry of the layout."""
    return np.append(values, background).astype(np.float32)[raster.drawn]  # index -1, the background, is the last


def _offset(raster: Raster, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Position of each pixel relative to the centre of its particle, in radii."""
    height, width = raster.labels.shape
    radius = layout.diameter / 2
    inverse = _per_particle(raster, 1 / radius)
    dy = np.arange(height, dtype=np.float32)[:, None] - _per_particle(raster, layout.y)
    dx = np.arange(width, dtype=np.float32)[None, :] - _per_particle(raster, layout.x)
    return dy * inverse, dx * inverse


def _substrate(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """Background with zero mean and a random mixture of textures; standard deviation around one."""
    field = rng.uniform(0, 1) * noise_field(rng, shape, max(shape) / rng.uniform(1, 3))
    if rng.random() < 0.6:
        field += rng.uniform(0, 1.2) * noise_field(rng, shape, rng.uniform(1.5, 8), 2, np.exp(rng.normal(0, 0.6)))
    if rng.random() < 0.35:
        field += rng.uniform(0.4, 2.5) * curve_field(rng, shape, scale * rng.uniform(0.15, 1.2), rng.uniform(0.7, 1.6))
    if rng.random() < 0.12:
        field += rng.uniform(0.3, 1.5) * smooth_steps(rng, shape, scale * rng.uniform(2, 6))
    if rng.random() < 0.15:  # pits and stains, darker or brighter than the substrate, without label
        spots = noise_field(rng, shape, scale * rng.uniform(0.15, 0.5))
        field += rng.uniform(-3, 1.5) * np.clip(spots - rng.uniform(1.5, 2.5), 0, 1)
    return field


def _secondary_electrons(rng: np.random.Generator, raster: Raster, layout: Layout, powder: bool) -> np.ndarray:
    """Topographic contrast: bright edges, shading, overlaps, charging."""
    labels, u = raster.labels, raster.edge
    inside = labels > 0
    shape = labels.shape
    count = len(layout)
    scale = float(np.median(layout.diameter))
    level = rng.uniform(0.05, 0.45)
    contrast = float(np.exp(rng.uniform(np.log(0.06), np.log(0.6))))
    image = level + rng.uniform(0.0, 0.06) * _substrate(rng, shape, scale)

    # shape of the dome: (1 - u^q)^(1/q); q = 2 sphere, large q flat top
    q = float(np.exp(rng.uniform(np.log(1.7), np.log(2.6 if powder else 9.0))))
    uc = np.clip(u, 0, 0.995)
    dome = (1 - uc**q) ** (1 / q)
    slope = (uc / np.maximum(dome, 0.05)) ** (q - 1)
    yield_ = np.minimum(np.sqrt(1 + slope**2), rng.uniform(1.8, 5.0)) - 1  # ~ 1/cos(tilt) - 1
    brightness = np.maximum(1 + rng.normal(0, rng.uniform(0.02, 0.35), count), 0.25)
    if rng.random() < 0.5:  # neighbours share their brightness: charging, height
        field = noise_field(rng, shape, scale * rng.uniform(2, 6))
        rows = np.clip(layout.y.astype(int), 0, shape[0] - 1)
        columns = np.clip(layout.x.astype(int), 0, shape[1] - 1)
        brightness *= np.exp(rng.uniform(0, 0.4) * field[rows, columns])
    if layout.owner is not None:
        brightness = brightness[layout.owner] * (1 + rng.normal(0, 0.08, count))
    body = _per_particle(raster, contrast * brightness)
    rim = rng.uniform(0.02, 0.5) * (0.3 if powder else 1.0)
    signal = body * (1 + rim * yield_ * (1 if rng.random() < 0.9 else -0.5))
    if rng.random() < 0.6:  # the edge effect: a thin bright line, stronger on one side
        distance = _per_particle(raster, layout.diameter / 2) * (1 - uc)
        line = np.exp(-((distance / rng.uniform(0.8, 2.6)) ** 2))
        dy, dx = _offset(raster, layout)
        direction = rng.uniform(0, 2 * np.pi)
        uneven = 1 + rng.uniform(0, 0.8) * np.clip(dy * np.sin(direction) + dx * np.cos(direction), -1, 1)
        signal = signal + rng.uniform(0.1, 0.9) * (body * 0.7 + contrast * 0.3) * line * uneven
    if rng.random() < 0.3:  # steps, cracks and grain boundaries that do not separate particles
        lines = curve_field(rng, shape, scale * rng.uniform(0.4, 1.2), rng.uniform(0.7, 1.3))
        signal = signal * (1 + rng.uniform(-0.4, 0.5) * lines)
    if rng.random() < 0.7:  # light from one side
        dy, dx = _offset(raster, layout)
        direction = rng.uniform(0, 2 * np.pi)
        shade = (dy * np.sin(direction) + dx * np.cos(direction)) * np.minimum(uc ** (q - 1), 1)
        signal = signal * (1 + rng.uniform(0.05, 0.45) * np.clip(shade, -1.2, 1.2))
    if rng.random() < 0.4:  # each particle with its own gradient: facets
        dy, dx = _offset(raster, layout)
        own = rng.uniform(0, 2 * np.pi, count)
        tilt = dy * _per_particle(raster, np.sin(own)) + dx * _per_particle(raster, np.cos(own))
        signal = signal * (1 + rng.uniform(0.05, 0.3) * np.tanh(rng.uniform(1, 6) * tilt))
    if rng.random() < (0.9 if powder else 0.45):  # surface texture
        texture = noise_field(rng, shape, rng.uniform(1.2, max(0.35 * scale, 2.5)), 2)
        if rng.random() < 0.4:
            texture = np.abs(texture) * 1.3 - 1
        signal = signal * (1 + rng.uniform(0.03, 0.4 if powder else 0.3) * texture)
    if rng.random() < (0.5 if powder else 0.08):  # grains and dendrites: a net of lines
        net = line_field(rng, shape, max(scale * rng.uniform(0.06, 0.3), 2.0), rng.uniform(0.6, 1.2))
        signal = signal * (1 + rng.uniform(-0.5, 0.7) * net * rng.uniform(0.5, 1))
    if rng.random() < 0.35:  # buried or hollow particles show through the one on top
        signal = signal * (1 + rng.uniform(0.05, 0.4) * np.clip(raster.depth - 1, 0, 3))
    image = np.where(inside, image * rng.uniform(0, 0.6) + level * 0.4 + signal, image)

    rank = raster.drawn
    reach = int(np.clip(round(scale * rng.uniform(0.04, 0.16)), 1, 9))
    above = blur((ndimage.maximum_filter(rank, 2 * reach + 1) > rank).astype(np.float32), reach * 0.5)
    darkening = np.where(inside, rng.uniform(0.0, 0.6), rng.uniform(-0.25, 0.5))
    image = image * (1 - darkening * above * (above < 1.01))
    if rng.random() < 0.5:  # less signal escapes from the gaps of an agglomerate
        crowd = blur(inside.astype(np.float32), scale * rng.uniform(0.3, 0.8))
        image = image * np.where(inside, 1, 1 - rng.uniform(0, 0.7) * crowd)
    if rng.random() < 0.2:  # charging: bright or dark streaks along the scan direction
        tail = ndimage.uniform_filter1d(inside.astype(np.float32), max(int(scale * rng.uniform(1, 5)), 3), axis=1)
        image = image * (1 + rng.uniform(-0.3, 0.25) * tail)
    return image


def _transmission(rng: np.random.Generator, raster: Raster, layout: Layout, bright: bool) -> np.ndarray:
    """Thickness contrast: Beer-Lambert in bright field, proportional to thickness in dark field."""
    labels, u = raster.labels, raster.edge
    inside = labels > 0
    shape = labels.shape
    count = len(layout)
    scale = float(np.median(layout.diameter))
    uc = np.clip(u, 0, 1)
    q = float(np.exp(rng.uniform(np.log(1.8), np.log(14))))
    thickness = (1 - uc**q) ** (1 / q)
    density = np.maximum(1 + rng.normal(0, rng.uniform(0.02, 0.35), count), 0.3)
    thickness = thickness * _per_particle(raster, density)
    if rng.random() < 0.25:  # core and shell, either of them the denser
        wall = rng.uniform(0.55, 0.9)
        thickness = thickness * np.where(uc > wall, rng.uniform(0.3, 1.6), 1.0)
    thickness = thickness * np.maximum(raster.depth, 1) ** rng.uniform(0, 0.9)
    if rng.random() < 0.6:
        texture = noise_field(rng, shape, rng.uniform(1.0, max(0.3 * scale, 2.0)), 2)
        thickness = thickness * (1 + rng.uniform(0.02, 0.3) * texture)
    if rng.random() < 0.3:  # diffraction: stripes across a particle
        dy, dx = _offset(raster, layout)
        way = _per_particle(raster, rng.uniform(0, 2 * np.pi, count))
        along = dy * np.sin(way) + dx * np.cos(way)
        thickness = thickness * (1 + rng.uniform(0.05, 0.25) * np.sin(rng.uniform(3, 10) * along))
    film = _substrate(rng, shape, scale)
    if rng.random() < 0.5:
        film = film + rng.uniform(0.3, 1.5) * noise_field(rng, shape, rng.uniform(1.0, 3.0))
    strength = float(np.exp(rng.uniform(np.log(0.25), np.log(2.2))))
    if bright:
        image = rng.uniform(0.03, 0.3) + 0.03 * film + 0.35 * strength * thickness * inside
    else:
        image = rng.uniform(0.5, 0.9) * np.exp(rng.uniform(0.01, 0.07) * film - strength * thickness * inside)
    if rng.random() < 0.5:  # Fresnel fringes
        image = image + rng.uniform(0.1, 0.8) * (image - blur(image, rng.uniform(1.0, 2.5)))
    return image


def _instrument(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Focus, drift, noise, brightness and contrast; returns float32 in 0..1."""
    shape = image.shape
    image = blur(image.astype(np.float32), float(np.exp(rng.uniform(np.log(0.45), np.log(1.8)))))
    if rng.random() < 0.3:
        image = image * (1 + rng.uniform(0.02, 0.25) * noise_field(rng, shape, max(shape) / rng.uniform(1, 2)))
    low, high = np.percentile(image, [0.2, 99.8])
    image = (image - low) / max(high - low, 1e-6)
    dose = float(np.exp(rng.uniform(np.log(0.006), np.log(0.12))))
    noise = rng.standard_normal(shape, dtype=np.float32)
    if rng.random() < 0.4:
        noise = blur(noise, rng.uniform(0.4, 1.0))
        noise /= noise.std()
    image = image + dose * noise * np.sqrt(np.clip(image, 0.02, None) * rng.uniform(0.3, 1.5) + rng.uniform(0.05, 0.6))
    if rng.random() < 0.3:
        image = image + rng.uniform(0.002, 0.03) * rng.standard_normal((shape[0], 1), dtype=np.float32)
    if rng.random() < 0.1:  # horizontal jitter between scan lines
        shift = np.rint(rng.normal(0, rng.uniform(0.2, 0.6), shape[0])).astype(int)
        columns = np.clip(np.arange(shape[1])[None, :] + shift[:, None], 0, shape[1] - 1)
        image = np.take_along_axis(image, columns, axis=1)
    low, high = np.percentile(image, [rng.uniform(0, 1), 100 - rng.uniform(0, 1.5)])
    image = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
    image = image ** float(np.exp(rng.normal(0, 0.3)))
    if rng.random() < 0.08:
        image = 1 - image
    span = rng.uniform(0.5, 1.0)
    return (rng.uniform(0, 1 - span) + span * image).astype(np.float32)


@functools.lru_cache(maxsize=32)
def _glyphs(text: str, height: int) -> np.ndarray:
    """A text as a boolean picture."""
    from PIL import Image as Picture
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size=height)
    left, top, right, bottom = font.getbbox(text)
    picture = Picture.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(picture).text((1 - left, 1 - top), text, fill=255, font=font)
    return np.asarray(picture) > 127


def _captions(rng: np.random.Generator, image: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Letters and scale bars over the image, as in published figures; what they hide is background."""
    image, labels = image.copy(), labels.copy()
    for _ in range(int(rng.integers(1, 3))):
        size = int(rng.integers(10, 40))
        text = str(
            rng.choice(["a", "b", "(c)", "d", "200 nm", "100 nm", "1 um", "50 nm", "500nm", "2 um", "SE2", "(a)"])
        )
        glyphs = _glyphs(text, size)[: image.shape[0], : image.shape[1]]
        bar = rng.random() < 0.6 and "m" in text
        pad = int(rng.integers(2, 8))
        box = np.zeros((glyphs.shape[0] + 2 * pad + (pad + 4 if bar else 0), glyphs.shape[1] + 2 * pad), bool)
        box[pad : pad + glyphs.shape[0], pad : pad + glyphs.shape[1]] = glyphs
        if bar:
            box[-pad - 4 : -pad, pad:-pad] = True
        box = box[: image.shape[0], : image.shape[1]]
        y = int(rng.choice([0, image.shape[0] - box.shape[0]]))
        x = int(rng.integers(0, image.shape[1] - box.shape[1] + 1))
        area = (slice(y, y + box.shape[0]), slice(x, x + box.shape[1]))
        ink = float(rng.random() < 0.5)
        if rng.random() < 0.4:  # on a plate of the other colour
            image[area] = 1 - ink
            labels[area] = 0
        image[area][box] = ink
        labels[area][box] = 0
    keep = np.unique(labels)
    return image, np.searchsorted(keep, labels).astype(np.int32) if keep[0] == 0 else labels
