"""Joint augmentation: image and labels move together, grey values change in the image alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import PIL.Image
import PIL.ImageFilter
from scipy import ndimage

from keras_microseg.checks import check_choice, check_number


@dataclasses.dataclass(frozen=True)
class AugmentSettings:
    """Strength of the augmentation; 0 or False switches a part off.

    Attributes:
        flips: flips and quarter turns, each of the eight equally likely; "mirror": left and right only, where up is not
            down (layers).
        zoom: largest change of scale as a factor: 1.25 draws from 0.8..1.25 (log-uniform).
        rotate: rotation (labels: nearest neighbour), reflecting at the frame: True by any angle, a number by at most
            so many degrees.
        contrast: largest relative change of the span of grey values.
        gamma: standard deviation of ln(gamma).
        noise: largest standard deviation of added Gaussian noise (images are 0..1).
        blur: largest sigma of a Gaussian blur, px.
        invert: probability of contrast inversion.
    """

    flips: bool | str = True
    zoom: float = 1.25
    rotate: bool | float = False
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.05
    blur: float = 0.7
    invert: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.flips, bool):
            check_choice("flips", self.flips, ("mirror",))
        if not isinstance(self.rotate, bool):
            check_number("rotate", self.rotate, minimum=0, maximum=180)
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
    outside: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """A random crop of fixed size of an image and its labels, zoomed and rotated together.

    Args:
        rng: random source.
        image: (H, W) or (H, W, C) float32.
        labels: (H, W) or (H, W, L) integer; interpolated by nearest neighbour.
        size: (height, width) of the result; images smaller than it are reflected.
        settings: `zoom`, `rotate` and `flips` are used here.
        scale: factor by which every image is enlarged besides the random zoom.
        outside: grey value beyond the image, where labels are 0 then; None = image and labels are reflected, so that
            an object can appear twice.

    Returns:
        Image and labels of `size`; label ids are those of the input.
    """
    zoom = scale * float(np.exp(rng.uniform(-1, 1) * np.log(settings.zoom)))
    angle = 0.0
    if settings.rotate is True:
        angle = float(rng.uniform(0, 2 * np.pi))
    elif settings.rotate:
        angle = float(np.deg2rad(rng.uniform(-settings.rotate, settings.rotate)))
    height, width = labels.shape[:2]
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
        sigma = 0.4 / zoom if zoom < 0.8 else 0.0  # average before thinning out
        window, start = _seen(grid, (height, width), margin=int(4 * sigma + 0.5) + 1)
        image, labels, grid = image[window], labels[window], grid - start[:, None, None]
        if sigma:
            image = ndimage.gaussian_filter(image, [sigma] * 2 + [0] * (image.ndim - 2))
        channels = image[..., None] if image.ndim == 2 else image
        layers = labels[..., None] if labels.ndim == 2 else labels
        beyond = {"mode": "mirror"} if outside is None else {"mode": "constant", "cval": outside}
        moved = [ndimage.map_coordinates(channels[..., c], grid, order=1, **beyond) for c in range(channels.shape[-1])]
        image = moved[0] if image.ndim == 2 else np.stack(moved, axis=-1)
        beyond = beyond | ({} if outside is None else {"cval": 0})
        moved = [ndimage.map_coordinates(layers[..., c], grid, order=0, **beyond) for c in range(layers.shape[-1])]
        labels = moved[0] if labels.ndim == 2 else np.stack(moved, axis=-1)
    if settings.flips:
        turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
        if settings.flips == "mirror":
            turns = 0
        elif size[0] != size[1]:
            turns = 2 * (turns // 2)
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
        if mirrored:
            image, labels = image[:, ::-1], labels[:, ::-1]
    return np.ascontiguousarray(image, dtype=np.float32), np.ascontiguousarray(labels)


def _seen(grid: np.ndarray, shape: tuple[int, int], margin: int) -> tuple[tuple[slice, slice], np.ndarray]:
    """The part of an image that coordinates need, those reflected at its edges too, and where that part begins.

    With it the cost of a crop does not grow with the image.
    """
    window, start = [], []
    for axis, length in zip(grid, shape, strict=True):
        low, high = float(axis.min()), float(axis.max())
        low, high = min(low, 2 * (length - 1) - high), max(high, -low)
        start.append(int(np.clip(np.floor(low) - margin, 0, length - 1)))
        window.append(slice(start[-1], int(np.clip(np.ceil(high) + margin + 1, start[-1] + 1, length))))
    return tuple(window), np.array(start)


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


@dataclasses.dataclass(frozen=True)
class FrameAugmentSettings:
    """Strength of the augmentation of video frames; the defaults are those of MultiTaskDeltaNet.

    Attributes:
        flips: left-right, up-down (each with probability 1/2), and with probability 1/2 a turn by 90, 180 or 270
            degrees, each equally likely.
        zoom: smallest and largest magnification; drawn log-uniformly.
        rotate: largest further rotation, degrees.
        cut: probability that a frame is cut anew: only a random band of it between two lines, and between two lines
            across, stays visible, as where a segment was chosen by hand.
        blur: sigma of a Gaussian blur is drawn from 0..blur px, one for all frames.
        brightness, contrast: factors are drawn from 1 - x..1 + x, for every frame anew, in random order.
        noise: standard deviation of added noise is drawn from 0..noise grey values, for every frame anew.
        focus: crops are centred on a random visible pixel; otherwise uniform.
    """

    flips: bool = True
    zoom: tuple[float, float] = (1.0, 1.2)
    rotate: float = 0.0
    cut: float = 0.0
    blur: float = 1.0
    brightness: float = 0.3
    contrast: float = 0.3
    noise: float = 0.0
    focus: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "zoom", tuple(self.zoom))
        low, high = self.zoom
        check_number("zoom", low, minimum=0.1)
        check_number("zoom", high, minimum=low, maximum=10)
        check_number("rotate", self.rotate, minimum=0, maximum=180)
        check_number("cut", self.cut, minimum=0, maximum=1)
        for name in ("blur", "noise"):
            check_number(name, getattr(self, name), minimum=0)
        for name in ("brightness", "contrast"):
            check_number(name, getattr(self, name), minimum=0, maximum=1)


VALID = 128
"""Bit of the visible pixels in the codes of `augment_frames`."""


def augment_frames(
    rng: np.random.Generator,
    frames: list[np.ndarray],
    codes: list[np.ndarray],
    size: tuple[int, int],
    settings: FrameAugmentSettings,
    fill: int,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """One random geometry and blur for several frames with their masks; grey values change for each frame anew.

    Args:
        rng: random source.
        frames: (H, W) uint8 each, of one shape.
        codes: (H, W) uint8 each: masks as bits, bit `VALID` where the frame shows the specimen. Outside of the image
            all bits are 0.
        size: (height, width) of the results.
        settings: see `FrameAugmentSettings`.
        fill: grey outside of the image and of the cuts.

    Returns:
        Frames and codes of `size`, uint8. Frames are interpolated by bicubic convolution, codes by nearest neighbour.
    """
    height, width = frames[0].shape
    matrix = np.eye(2)
    if settings.flips:
        flipped = rng.random(2) < 0.5
        turns = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
        matrix = np.diag(np.where(flipped, -1.0, 1.0)) @ np.linalg.matrix_power(np.array([[0, -1], [1, 0]]), turns)
    if settings.rotate:
        angle = np.deg2rad(rng.uniform(-settings.rotate, settings.rotate))
        matrix = matrix @ np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    zoom = float(np.exp(rng.uniform(*np.log(settings.zoom))))
    matrix = matrix / zoom
    centre = []
    if settings.focus:
        visible = np.flatnonzero(codes[int(rng.integers(len(codes)))] & VALID)
        focus = np.divmod(visible[rng.integers(len(visible))], width) if len(visible) else (height / 2, width / 2)
    for axis, whole in enumerate((height, width)):
        half = np.abs(matrix[axis]) @ np.asarray(size) / 2
        limits = sorted((half, whole - half))
        drawn = rng.uniform(*limits)
        centre.append(float(np.clip(focus[axis] + 0.5, *limits)) if settings.focus else drawn)
    offset = np.asarray(centre) - matrix @ (np.asarray(size) / 2)
    # Pillow wants (x, y) of the source for (x, y) of the result, both at pixel centres
    affine = (matrix[1, 1], matrix[1, 0], offset[1], matrix[0, 1], matrix[0, 0], offset[0])

    def move(array: np.ndarray, resample: int, outside: int) -> PIL.Image.Image:
        image = PIL.Image.fromarray(array)
        return image.transform(size[::-1], PIL.Image.Transform.AFFINE, affine, resample, fillcolor=outside)

    sigma = rng.uniform(0, settings.blur) if settings.blur else 0.0
    moved_frames, moved_codes = [], []
    for frame, code in zip(frames, codes, strict=True):
        if settings.cut and rng.random() < settings.cut:
            kept = _random_cut(rng, code & VALID > 0)
            frame, code = np.where(kept, frame, np.uint8(fill)), code * kept.astype(np.uint8)
        image = move(frame, PIL.Image.Resampling.BICUBIC, fill)
        if sigma:
            image = image.filter(PIL.ImageFilter.GaussianBlur(sigma))
        moved_codes.append(np.asarray(move(code, PIL.Image.Resampling.NEAREST, 0)))
        moved_frames.append(_jitter(rng, np.asarray(image), settings))
    return moved_frames, moved_codes


def _jitter(rng: np.random.Generator, frame: np.ndarray, settings: FrameAugmentSettings) -> np.ndarray:
    """Random brightness and contrast in random order, then noise."""
    values = frame.astype(np.float32)
    for part in rng.permutation(2):
        strength = (settings.brightness, settings.contrast)[part]
        if strength:
            factor = np.float32(rng.uniform(1 - strength, 1 + strength))
            level = np.float32(0 if part == 0 else np.rint(values.mean()))
            values = np.clip(level + factor * (values - level), 0, 255)
    if settings.noise:
        values = values + np.float32(rng.uniform(0, settings.noise)) * rng.standard_normal(values.shape, np.float32)
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _random_cut(rng: np.random.Generator, visible: np.ndarray) -> np.ndarray:
    """A random parallelogram that keeps at least a tenth or so of the visible pixels; (H, W) bool."""
    y, x = np.nonzero(visible)
    kept = np.ones(visible.shape, bool)
    if not len(y):
        return kept
    rows, columns = np.ogrid[: visible.shape[0], : visible.shape[1]]
    tilt = np.tan(np.deg2rad(rng.uniform(-30, 30)))
    for place, grid, least in ((x, columns, 0.2), (y - tilt * x, rows - tilt * columns, 0.4)):
        low, high = place.min(), place.max()
        share = rng.uniform(least, 1)
        start = low + rng.uniform(0, 1 - share) * (high - low)
        kept &= (grid >= start) & (grid <= start + share * (high - low))
    return kept
