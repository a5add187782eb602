"""Outlines of single particles as masks: reading the files of a user, cleaning those that a network made.

What can be wrong with a mask (cut by the frame, empty, several particles) is said of each file by name; the rest is
used.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from keras_microseg import io
from keras_microseg.checks import UserError, check_number
from keras_microseg.simulation.particles import Shapes, shapes_from_masks

logger = logging.getLogger(__name__)

MULTIPLE = 16
_EIGHT = np.ones((3, 3), bool)
_NAMED = 8


@dataclasses.dataclass(frozen=True)
class OutlineSet:
    """Single particles, each filled and in the middle of a square of one common size.

    Attributes:
        masks: (N, S, S) bool, S a multiple of 16.
        names: N file names, or numbers for generated outlines.
        problems: file name -> why it could not be used and what to do.
    """

    masks: np.ndarray
    names: tuple[str, ...]
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.masks)

    @property
    def size(self) -> int:
        """Edge length S of the squares, px."""
        return self.masks.shape[1]

    @cached_property
    def diameters(self) -> np.ndarray:
        """(N,) equivalent circular diameters, px."""
        return np.sqrt(self.masks.sum(axis=(1, 2)) * (4 / np.pi))

    def shapes(self) -> Shapes:
        """Radial profiles for the mask simulator."""
        return shapes_from_masks(list(np.pad(self.masks, ((0, 0), (1, 1), (1, 1)))), self.names)

    def take(self, index: Sequence[int] | np.ndarray) -> OutlineSet:
        """Outlines at `index`, repetitions allowed."""
        return OutlineSet(self.masks[index], tuple(np.array(self.names, object)[index]), self.problems)


def read_outlines(
    paths: str | os.PathLike | Iterable[str | os.PathLike],
    *,
    size: int | None = None,
    min_area: int = 16,
    invert: bool = False,
    split: bool = False,
) -> OutlineSet:
    """Read masks of single particles: white on black, one particle per file, of any size and number type.

    Grey values are cut half-way between their least and greatest; holes are filled; specks of less than a twentieth of
    the particle are dropped. Every particle is moved to the middle of a square that holds the largest one with a rim of
    two pixels.

    Args:
        paths: a folder, files, or a pattern; a folder with `Input_Masks` in it stands for that.
        size: edge length of the squares, px, a multiple of 16; None = the smallest that fits.
        min_area: smaller particles are left out, px.
        invert: particles are black on white.
        split: take every particle of a file that holds several; otherwise such files are left out.

    Returns:
        The outlines; files that could not be used stand in `problems` and in the log.

    Raises:
        UserError: no usable outline at all, or `size` too small.
    """
    files = io.find_images(reference_folder(paths, "Input_Masks"))
    check_number("min_area", min_area, minimum=1)
    cuts: list[np.ndarray] = []
    names: list[str] = []
    problems: dict[str, str] = {}
    for path in files:
        try:
            grey = io.read_grey(io.open_image(path))
            parts = _particles_in(grey, min_area, invert, split)
        except UserError as error:
            problems[path.name] = str(error).removeprefix(f"{path}: ")
            logger.warning("%s: %s Left out.", path.name, problems[path.name])
            continue
        cuts += parts
        names += [path.name] if len(parts) == 1 else [f"{path.name} #{i}" for i in range(1, len(parts) + 1)]
    if not cuts:
        listed = "; ".join(f"{name}: {problem}" for name, problem in list(problems.items())[:_NAMED])
        raise UserError(f"None of {len(files)} files holds a usable outline. {listed}")
    return OutlineSet(_centred(cuts, names, size), tuple(names), problems)


def reference_folder(paths, name: str):
    """The sub-folder `name` of a folder that has one (upper and lower case alike), else `paths` itself."""
    if isinstance(paths, (str, os.PathLike)) and Path(paths).is_dir():
        for entry in sorted(Path(paths).iterdir()):
            if entry.is_dir() and entry.name.casefold() == name.casefold():
                return entry
    return paths


def clean_outlines(
    images: np.ndarray,
    *,
    scale: float = 1.0,
    areas: tuple[float, float] = (16, math.inf),
    min_share: float = 0.8,
    min_thickness: float = 3.0,
    size: int | None = None,
) -> OutlineSet:
    """Generated pictures of outlines -> particles: the largest part, filled; fragments are rejected.

    Args:
        images: (N, H, W) or (N, H, W, 1) float, particle > 0.
        scale: pixels of the result per pixel of `images`; the picture is interpolated before it is cut.
        areas: least and greatest area of a particle, px of the result.
        min_share: share of the foreground that the largest part must have.
        min_thickness: parts thinner than this many px of the result are removed first.
        size: see `read_outlines`.

    Returns:
        The particles that passed, named by their number; `problems` says why the others did not.

    Raises:
        UserError: none passed.
    """
    images = np.asarray(images, np.float32)
    images = images[..., 0] if images.ndim == 4 else images
    check_number("scale", scale, minimum=0, exclusive=True)
    cuts, names, problems = [], [], {}
    for number, picture in enumerate(images):
        if scale != 1:
            picture = ndimage.zoom(
                np.pad(picture, 1, constant_values=-1), scale, order=1, grid_mode=True, mode="nearest"
            )
        inside = ndimage.binary_fill_holes(picture > 0)
        total = int(inside.sum())
        radius = int((min_thickness - 1) / 2)
        if radius > 0:
            inside = ndimage.binary_opening(np.pad(inside, radius), _disc(radius))[radius:-radius, radius:-radius]
        labels, found = ndimage.label(inside)
        areas_found = np.bincount(labels.ravel(), minlength=2)[1:]
        largest = labels == 1 + int(np.argmax(areas_found))
        area = int(areas_found.max(initial=0))
        if not found:
            problem = "empty"
        elif area < min_share * total:
            problem = "fragments"
        elif _touches(largest):
            problem = "cut by the frame"
        elif area < areas[0]:
            problem = "too small"
        elif area > areas[1]:
            problem = "too large"
        else:
            cuts.append(largest[ndimage.find_objects(largest.astype(np.uint8))[0]])
            names.append(str(number))
            continue
        problems[str(number)] = problem
    if not cuts:
        raise UserError(f"None of {len(images)} generated outlines is a particle ({count_problems(problems)}).")
    return OutlineSet(_centred(cuts, names, size), tuple(names), problems)


def count_problems(problems: dict[str, str]) -> str:
    """Such as "3 fragments, 1 empty"."""
    kinds = list(problems.values())
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "none"


def _particles_in(grey: np.ndarray, min_area: int, invert: bool, split: bool) -> list[np.ndarray]:
    """Boolean cut-outs of the particles of one file; `UserError` without the file name when it cannot be used."""
    if grey.ndim != 2:
        raise UserError(f"is no single picture (shape {grey.shape}). Save one mask per file.")
    values = np.nan_to_num(np.asarray(grey, np.float64), posinf=0, neginf=0)
    values = -values if invert else values
    low, high = values.min(initial=0), values.max(initial=0)
    if low == high or values.min() == high:
        raise UserError("no particle in this mask. Draw one filled particle, white on black.")
    inside = values > (values.min() + high) / 2
    frame = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    if frame.all():
        raise UserError("the particle is black on white, or fills the frame. Draw it white on black (or invert=True).")
    labels, found = ndimage.label(ndimage.binary_fill_holes(inside), _EIGHT)
    area = np.bincount(labels.ravel())[1:]
    chosen = np.flatnonzero(area >= max(area.max() / 20, 1)) + 1
    if len(chosen) > 1 and not split:
        raise UserError(f"holds {len(chosen)} particles. Save one particle per file, or read them all with split=True.")
    if area.max() < min_area:
        raise UserError(f"its particle has {area.max()} pixels, fewer than {min_area}. Draw it larger.")
    boxes = ndimage.find_objects(labels)
    parts = []
    for label in chosen:
        if _touches(labels == label):
            if split:
                continue
            raise UserError("the particle touches the frame, so its outline is cut. Leave a black rim around it.")
        if area[label - 1] >= min_area:
            parts.append(labels[boxes[label - 1]] == label)
    if not parts:
        raise UserError("every particle in it touches the frame or is too small.")
    return parts


def _touches(mask: np.ndarray) -> bool:
    return bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())


def _centred(cuts: list[np.ndarray], names: Sequence[str], size: int | None) -> np.ndarray:
    """Cut-outs in the middle of squares of one size; (N, S, S) bool."""
    extent = [max(cut.shape) for cut in cuts]
    largest = int(np.argmax(extent))
    if size is None:
        size = MULTIPLE * math.ceil((extent[largest] + 4) / MULTIPLE)
    elif size % MULTIPLE or size < extent[largest]:
        raise UserError(
            f"`size` must be a multiple of {MULTIPLE} and at least {extent[largest]}, the extent of {names[largest]}. "
            f"Received: size={size!r}"
        )
    masks = np.zeros((len(cuts), size, size), bool)
    for mask, cut in zip(masks, cuts, strict=True):
        y, x = (size - cut.shape[0]) // 2, (size - cut.shape[1]) // 2
        mask[y : y + cut.shape[0], x : x + cut.shape[1]] = cut
    return masks


def _disc(radius: int) -> np.ndarray:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return y * y + x * x <= radius * (radius + 0.8)
