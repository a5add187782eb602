"""Tiles of two image domains that know nothing of each other: micrographs and simulated masks, for CycleGAN.

Three habits keep the two domains comparable, which a translation without pairs needs. Grey values are stretched by
limits of the whole image, so that a tile of bare background stays dark. Tiles are drawn where there are particles, as
far as a threshold can tell. And each micrograph tile is joined by that mask tile, of several, which covers most nearly
the same share of its area: otherwise the discriminator learns density, and the generators learn to invent or to hide
particles.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.transform import resize

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.data.datasets import SeededDataset
from keras_microseg.image import Image
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.segmentation.labeling import threshold_value

log = logging.getLogger(__name__)

_TRIES = 8


@dataclasses.dataclass(frozen=True)
class Micrograph:
    """A real image, in its own grey values.

    Attributes:
        name: for messages.
        grey: (H, W) array of any real type, without the info bar.
        limits: grey values that become 0 and 1.
        foreground: (H, W) bool, roughly where particles are.
    """

    name: str
    grey: np.ndarray
    limits: tuple[float, float]
    foreground: np.ndarray

    def tile(self, window: tuple[slice, slice]) -> np.ndarray:
        """(h, w) float32 in 0..1."""
        return stretch(self.grey[window], self.limits)


def read_micrograph(
    path: str | Path | Image,
    *,
    info_bar: int | str | None = "auto",
    contrast: tuple[float, float] = (0.1, 99.9),
    polarity: str = "bright",
    foreground: np.ndarray | None = None,
    scale: float = 1.0,
) -> Micrograph:
    """Read an image for training.

    Args:
        path: file or `Image`; colours become grey.
        info_bar: first row of the microscope's data bar, "auto" to find it, None = none.
        contrast: percentiles of the whole image that become 0 and 1.
        polarity: "bright" particles on dark ground or "dark" on bright.
        foreground: (H, W) bool or labels, where particles are (rows beyond the info bar may be missing); None = found
            here, by a Gaussian of 1 px and Li's threshold.
        scale: factor by which the image is enlarged.

    Raises:
        FileError: unreadable file.
        UserError: an image without contrast.
    """
    check_choice("polarity", polarity, ("bright", "dark"))
    image = path if isinstance(path, Image) else io.open_image(path)
    row = io.find_info_bar(image) if info_bar == "auto" else info_bar
    grey = io.read_grey(image)
    if row is not None:
        grey = grey[:row]
    limits = percentile_limits(grey, *contrast)
    if not limits[1] > limits[0]:
        raise UserError(f"{image.name}: the image has one grey value only ({limits[0]:g}). Leave it out.")
    if foreground is None:
        smooth = ndimage.gaussian_filter(stretch(grey, limits), 1)
        level = threshold_value(smooth, "li")
        foreground = smooth > level if polarity == "bright" else smooth < level
    else:
        foreground = np.asarray(foreground)[: len(grey)] > 0
    if foreground.shape != grey.shape:
        raise UserError(f"{image.name}: `foreground` must be {grey.shape}. Received: {foreground.shape}")
    if scale != 1:
        shape = tuple(max(round(n * scale), 1) for n in grey.shape)
        grey = resize(grey.astype(np.float32), shape, order=1, anti_aliasing=scale < 1)
        foreground = resize(foreground, shape, order=0, anti_aliasing=False)
    return Micrograph(image.name, grey, limits, foreground)


class UnpairedTiles(SeededDataset):
    """Batches `(micrographs, masks)` of unpaired tiles, (B, H, W, 1) float32: micrographs in -1..1, masks 1 or -1.

    Args:
        micrographs: real images, of any sizes; those smaller than a tile are left out and named in the log.
        masks: (H, W) bool, touching particles parted by lines.
        num_batches, batch_size, seed: see `SeededDataset`.
        size: (height, width) of the tiles, px.
        min_foreground: least share of particle pixels in a micrograph tile; where a few tries find none, the fullest
            of them is taken.
        low: value of the background in masks; 0 for comparisons by cross-entropy.
        match_coverage: choose mask tiles that cover the same share of the area as the micrograph tile.
        kwargs: further arguments of `SeededDataset`.

    Raises:
        UserError: no image or mask is large enough for a tile.
    """

    def __init__(
        self,
        micrographs: Sequence[Micrograph],
        masks: Sequence[np.ndarray],
        num_batches: int,
        batch_size: int,
        seed: int,
        *,
        size: tuple[int, int] = (192, 192),
        min_foreground: float = 0.05,
        match_coverage: bool = True,
        low: float = -1.0,
        **kwargs,
    ):
        super().__init__(num_batches, batch_size, seed, **kwargs)
        self.size = standardize_tuple(size, 2, "size")
        self.min_foreground = check_number("min_foreground", min_foreground, minimum=0, maximum=1)
        self.match_coverage = match_coverage
        self.low = np.float32(low)
        small = [m.name for m in micrographs if not self._fits(m.grey)]
        if small:
            log.warning("Smaller than a tile of %s px and left out: %s", self.size, ", ".join(small))
        self.micrographs = [m for m in micrographs if self._fits(m.grey)]
        self.masks = [np.asarray(mask, bool) for mask in masks if self._fits(mask)]
        if not self.micrographs:
            raise UserError(f"No micrograph is as large as a tile of {self.size} px. Use a smaller tile.")
        if not self.masks:
            raise UserError(f"No mask is as large as a tile of {self.size} px. Simulate larger masks.")
        areas = np.array([m.grey.size for m in self.micrographs], float)
        self._chances = areas / areas.sum()

    def sample(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        micrograph, window, coverage = self._choose(rng)
        mask = self._mask_tile(rng, coverage)
        return 2 * _flip(rng, micrograph.tile(window))[..., None] - 1, _flip(rng, mask)[..., None]

    def _choose(self, rng: np.random.Generator) -> tuple[Micrograph, tuple[slice, slice], float]:
        best, fullest = None, -1.0
        for _ in range(_TRIES):
            micrograph = self.micrographs[rng.choice(len(self.micrographs), p=self._chances)]
            window = self._window(rng, micrograph.grey.shape)
            share = float(micrograph.foreground[window].mean())
            if share > fullest:
                best, fullest = (micrograph, window), share
            if share >= self.min_foreground:
                break
        return *best, fullest

    def _mask_tile(self, rng: np.random.Generator, coverage: float) -> np.ndarray:
        best, error = None, np.inf
        for _ in range(_TRIES if self.match_coverage else 1):
            mask = self.masks[rng.integers(len(self.masks))]
            tile = mask[self._window(rng, mask.shape)]
            off = abs(float(tile.mean()) - coverage)
            if off < error:
                best, error = tile, off
        return np.where(best, np.float32(1), self.low)

    def _window(self, rng: np.random.Generator, shape: Sequence[int]) -> tuple[slice, slice]:
        y, x = (int(rng.integers(n - t + 1)) for n, t in zip(shape, self.size, strict=True))
        return slice(y, y + self.size[0]), slice(x, x + self.size[1])

    def _fits(self, array: np.ndarray) -> bool:
        return all(n >= t for n, t in zip(array.shape, self.size, strict=True))


class GuideTiles(UnpairedTiles):
    """Batches `(micrographs, rough masks, masks, rough micrographs)` for `training.cyclegan.GuidedStart`.

    Rough masks are the foreground that a threshold (or whatever filled `Micrograph.foreground`) gave; rough micrographs
    are masks in the mean grey values of particles and ground, a little blurred.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        levels = []
        for micrograph in self.micrographs:
            grey, inside = stretch(micrograph.grey, micrograph.limits), micrograph.foreground
            if inside.any() and not inside.all():
                levels.append((grey[inside].mean(), grey[~inside].mean()))
        self.levels = tuple(np.float32(level) for level in np.mean(levels, axis=0)) if levels else (0.75, 0.25)

    def __getitem__(self, index: int) -> tuple[np.ndarray, ...]:
        epoch = 0 if self.fixed else self.epoch
        rngs = [np.random.default_rng([self.seed, epoch, index, place]) for place in range(self.batch_size)]
        return tuple(np.stack(arrays)[..., None] for arrays in zip(*map(self._guided, rngs), strict=True))

    def _guided(self, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        micrograph, window, coverage = self._choose(rng)
        mask = self._mask_tile(rng, coverage)
        rough_mask = np.where(micrograph.foreground[window], np.float32(1), self.low)
        painted = np.where(mask > 0, *self.levels)
        rough_image = 2 * ndimage.gaussian_filter(painted.astype(np.float32), 1) - 1
        return 2 * micrograph.tile(window) - 1, rough_mask, mask, rough_image


def _flip(rng: np.random.Generator, tile: np.ndarray) -> np.ndarray:
    """Mirrored at random, not turned: the detector stands on one side of an image, and shadows show it."""
    return tile[:: 1 - 2 * int(rng.integers(2)), :: 1 - 2 * int(rng.integers(2))]
