"""Joint augmentation: image and labels move together, grey values change in the image alone."""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import ndimage

from keras_microseg.checks import check_number


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Strength of the augmentation; 0 or False switches a part off.

    Attributes:
        flips: flips and quarter turns, each of the eight equally likely.
        zoom: largest change of scale as a factor: 1.25 draws from 0.8..1.25 (log-uniform).
        rotate: rotation by any angle (labels: nearest neighbour), reflecting at the frame.
        contrast: largest relative change of the span of grey values.
        gamma: standard deviation of ln(gamma).
        noise: largest standard deviation of added Gaussian noise (images are 0..1).
        blur: largest sigma of a Gaussian blur, px.
        invert: probability of contrast inversion.
    """

    flips: bool = True
    zoom: float = 1.25
    rotate: bool = False
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.05
    blur: float = 0.7
    invert: float = 0.0

    def __post_init__(self) -> None:
        check_number("zoom", self.zoom, minimum=1)
        check_number("contrast", self.contrast, minimum=0, maximum=0.95)
        for name in ("gamma", "noise", "blur"):
            check_number(name, getattr(self, name), minimum=0)
        check_number("invert", self.invert, minimum=0, maximum=1)


NO_AUGMENTATION = AugmentSettings(False, 1.0, False, 0.0, 0.0, 0.0, 0.0, 0.0)


def crop_pair(
    rng: np.random.Generator,
    image: np.ndarray,
    labels: np.ndarray,
    size: tuple[int, int],
    settings: AugmentSettings = NO_AUGMENTATION,
    *,
    scale: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of fixed size of an image and its labels, zoomed and rotated together.

    Args:
        rng: random source.
        image: (H, W) or (H, W, C) float32.
        labels: (H, W) integer; interpolated by nearest neighbour.
        size: (height, width) of the result; images smaller than it are reflected.
        settings: `zoom`, `rotate` and `flips` are used here.
        scale: factor by which every image is enlarged besides the random zoom.

    Returns:
        Image and labels of `size`; label ids are those of the input.
    """
    zoom = scale * float(np.exp(rng.uniform(-1, 1) * np.log(settings.zoom)))
    angle = float(rng.uniform(0, 2 * np.pi)) if settings.rotate else 0.0
    height, width = labels.shape
    free_y, free_x = max(height - size[0] / zoom, 0), max(width - size[1] / zoom, 0)
    centre_y = (height - free_y) / 2 + rng.uniform(0, free_y) - 0.5
    centre_x = (width - free_x) / 2 + rng.uniform(0, free_x) - 0.5
    if zoom == 1 and angle == 0 and height >= size[0] and width >= size[1]:
        y, x = int(round(centre_y + 0.5 - size[0] / 2)), int(round(centre_x + 0.5 - size[1] / 2))
        window = (slice(y, y + size[0]), slice(x, x + size[1]))
        image, labels = image[window], labels[window]
    else:
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        dy = np.arange(size[0])[:, None] - (size[0] - 1) / 2
        dx = np.arange(size[1])[None, :] - (size[1] - 1) / 2
        grid = np.stack([centre_y + cos * dy - sin * dx, centre_x + sin * dy + cos * dx])
        if zoom < 0.8:  # average before thinning out
            image = ndimage.gaussian_filter(image, [0.4 / zoom] * 2 + [0] * (image.ndim - 2))
        channels = image[..., None] if image.ndim == 2 else image
        moved = [
            ndimage.map_coordinates(channels[..., c], grid, order=1, mode="mirror") for c in range(channels.shape[-1])
        ]
        image = moved[0] if image.ndim == 2 else np.stack(moved, axis=-1)
        labels = ndimage.map_coordinates(labels, grid, order=0, mode="mirror")
    if settings.flips:
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        if size[0] != size[1]:
            turns = 2 * (turns // 2)
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
        if mirrored:
            image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)


def vary_grey(rng: np.random.Generator, image: np.ndarray, settings: AugmentSettings) -> np.ndarray:
    """Random contrast, gamma, blur, noise and inversion of a float32 image in 0..1; the result is in 0..1."""
    if settings.blur:
        sigma = rng.uniform(0, settings.blur)
        image = ndimage.gaussian_filter(image, [sigma, sigma] + [0] * (image.ndim - 2))
    if settings.gamma:
        image = np.clip(image, 0, 1) ** np.float32(np.exp(rng.normal(0, settings.gamma)))
    if settings.contrast:
        span = 1 - rng.uniform(0, settings.contrast)
        image = image * np.float32(span) + np.float32(rng.uniform(0, 1 - span))
    if settings.noise:
        image = image + np.float32(rng.uniform(0, settings.noise)) * rng.standard_normal(image.shape, np.float32)
    if settings.invert and rng.random() < settings.invert:
        image = 1 - image
    return np.clip(image, 0, 1).astype(np.float32)
