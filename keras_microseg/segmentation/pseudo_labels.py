"""Automatic masks of volumes: CLAHE and Otsu, and what makes them usable. They are pseudo-labels, not ground truth.

`clahe_otsu` repeats the published procedure exactly. `make_mask` does the same block by block for volumes of any size,
with the options that procedure lacks: phase filter, smoothing, regions, more classes, morphology, filling, small parts.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import fft, ndimage
from skimage import draw, filters, morphology

from keras_microseg import __version__
from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes
from keras_microseg.image import LazyArray
from keras_microseg.intensity import VolumeStatistics, volume_statistics
from keras_microseg.io import check_disk_space
from keras_microseg.segmentation.clahe import GREY_LEVELS, Clahe
from keras_microseg.segmentation.labeling import fill_holes
from keras_microseg.segmentation.stitching import label_blocks
from keras_microseg.tiling import TileGrid, read_tile, slab_thickness, slabs

logger = logging.getLogger(__name__)

FILLS = ("z", "y", "x", "3d")
_BLOCK = 256


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """How a mask is made, in this order. The default is the published procedure without its centre square.

    Attributes:
        phase_filter: `a` of the low-pass 1 / (1 + a k^2), voxels^2, or None; see `phase_filter_strength`.
        sigma: Gaussian smoothing, voxels; 0 = none.
        clahe: equalize the contrast first.
        kernel_size: contextual region of CLAHE, (z, y, x); None = an eighth of every axis.
        clip_limit: of CLAHE.
        threshold: `"otsu"`, `"halfway"` between the peaks of the histogram (without CLAHE), or a number in grey values
            of the volume (of 0..1 after CLAHE); object = greater.
        classes: 2, or 3 to 5 for multi-Otsu.
        keep_classes: classes (0 = darkest) that count as object; None = the brightest for 2 classes, a class map
            0, 1, 2, ... for more.
        invert: `"slices"` (published rule: a slice that is more than half white is inverted), `"always"`, `"never"`.
        region: None, `"circle"` (found from the columns that never change, else inscribed) or the radius share of a
            centred circle, or (N, 2) corners (y, x) of a polygon.
        centre_square: side of a centred square, px; everything outside is background.
        erosion, dilation, opening, closing: radii of balls, voxels, in this order; 0 = none.
        fill: where to fill holes: any of `z`, `y`, `x` (every slice across this axis) and `3d` (closed cavities).
        min_size: smaller 6-connected parts are left out, voxels.
    """

    phase_filter: float | None = None
    sigma: float = 0.0
    clahe: bool = True
    kernel_size: tuple[int, int, int] | None = None
    clip_limit: float = 0.01
    threshold: str | float = "otsu"
    classes: int = 2
    keep_classes: tuple[int, ...] | None = None
    invert: str = "slices"
    region: str | float | tuple[tuple[float, float], ...] | None = None
    centre_square: int | None = None
    erosion: int = 0
    dilation: int = 0
    opening: int = 0
    closing: int = 0
    fill: tuple[str, ...] = ()
    min_size: int = 0

    def __post_init__(self) -> None:
        if self.phase_filter is not None:
            check_number("phase_filter", self.phase_filter, minimum=0)
        check_number("sigma", self.sigma, minimum=0, maximum=50)
        if isinstance(self.threshold, str):
            check_choice("threshold", self.threshold, ("otsu", "halfway"))
            if self.threshold == "halfway" and (self.clahe or self.classes > 2):
                raise UserError("threshold='halfway' is for two classes without CLAHE. Pass clahe=False and classes=2.")
        check_number("classes", self.classes, minimum=2, maximum=5, integer=True)
        check_choice("invert", self.invert, ("slices", "always", "never"))
        for name in ("erosion", "dilation", "opening", "closing"):
            check_number(name, getattr(self, name), minimum=0, maximum=20, integer=True)
        check_number("min_size", self.min_size, minimum=0, integer=True)
        for part in self.fill:
            check_choice("fill", part, FILLS)
        for number in self.keep_classes or ():
            check_number("keep_classes", number, minimum=0, maximum=self.classes - 1, integer=True)
        if isinstance(self.region, str):
            check_choice("region", self.region, ("circle",))
        if self.is_class_map and (self.fill or self.min_size or self.halo):
            raise UserError("Class maps cannot be filled or cleaned. Choose the object with keep_classes.")

    @property
    def is_class_map(self) -> bool:
        """The result holds classes 0, 1, 2, ... instead of 0 and 255."""
        return self.classes > 2 and self.keep_classes is None

    @property
    def halo(self) -> int:
        """Planes of context the morphology needs."""
        return self.erosion + self.dilation + 2 * (self.opening + self.closing)


def clahe_otsu(volume: np.ndarray, *, centre_square: int | None = None, invert: str = "slices") -> np.ndarray:
    """The published automatic mask of a small volume, exactly.

    CLAHE of the whole array (kernel an eighth of every axis, clip limit 0.01, 256 bins), one Otsu threshold (256 bins),
    slices with more white than black inverted, all but a centred square black.

    Args:
        volume: (z, y, x) real numbers.
        centre_square: side of the square, px (1800 for tomo_00088); None = no square.
        invert: see `MaskSettings`.

    Returns:
        uint8 mask, 0 and 255.
    """
    out = np.zeros(volume.shape, np.uint8)
    make_mask(volume, out, MaskSettings(centre_square=centre_square, invert=invert))
    return out


def phase_filter_strength(energy_kev: float, distance: float, delta_over_beta: float, voxel_size: float) -> float:
    """`a` of the low-pass 1 / (1 + a k^2) in voxels^2: wavelength x distance x (delta / beta) / (4 pi).

    Args:
        energy_kev: X-ray energy, keV.
        distance: sample to detector, m.
        delta_over_beta: refractive decrement over absorption index of the material.
        voxel_size: m.

    k counts radians per voxel. Reference: Paganin et al. (2002), J. Microsc. 206, 33.
    """
    wavelength = 1.239842e-9 / check_number("energy_kev", energy_kev, minimum=0, exclusive=True)
    return wavelength * distance * delta_over_beta / (4 * math.pi) / voxel_size**2


def make_mask(
    source: Any,
    out: Any,
    settings: MaskSettings | None = None,
    *,
    max_ram: str | int = "2GB",
    scratch_dir: str | Path | None = None,
    progress: Any = None,
) -> dict[str, Any]:
    """Make a mask of a volume of any size.

    Args:
        source: (z, y, x) real numbers, NumPy or lazy.
        out: uint8 array of the same shape to fill: NumPy, or a `VolumeWriter`, whose finished slabs are passed over.
        settings: default `MaskSettings()`.
        max_ram: bytes to work with.
        scratch_dir: for intermediate volumes (filters: 4 bytes per voxel; small parts and cavities: 4 bytes per voxel);
            default the system's folder for temporary files.
        progress: called as `progress(planes done, planes in all)`.

    Returns:
        Facts for the mask's provenance: settings, thresholds, white share per slice, inverted slices, version.

    Raises:
        UserError: shapes that differ, NaN voxels, too little memory.
    """
    settings = settings or MaskSettings()
    if tuple(out.shape) != tuple(source.shape) or len(source.shape) != 3:
        raise UserError(f"The mask needs the shape of the volume. Received: {tuple(out.shape)}, {tuple(source.shape)}")
    check_finite_slices(source, max_ram=max_ram)
    with tempfile.TemporaryDirectory(prefix="keras_microseg_", dir=scratch_dir) as folder:
        if settings.phase_filter or settings.sigma:
            source = _filtered(source, settings, Path(folder) / "filtered.npy", max_ram)
        region = region_mask(source, settings)
        binary = _Classes(source, settings, region, max_ram)
        _write_slabs(source, out, binary, settings, max_ram, progress)
        for axis, name in ((1, "y"), (2, "x")):
            if name in settings.fill:
                _fill_planes(out, axis, max_ram)
        if "3d" in settings.fill:
            _fill_cavities(out, Path(folder) / "cavities.npy", max_ram)
        if settings.min_size > 1:
            _remove_small_parts(out, settings.min_size, Path(folder) / "parts.npy", max_ram)
    white = [float(np.count_nonzero(out[z : z + 1]) / math.prod(out.shape[1:])) for z in range(out.shape[0])]
    return {
        "kind": "pseudo-labels",
        "method": "clahe_otsu" if settings.clahe else str(settings.threshold),
        "settings": dataclasses.asdict(settings),
        "thresholds": list(binary.thresholds),
        "inverted_slices": sorted(binary.inverted),
        "white_share": white,
        "version": f"keras_microseg {__version__}",
    }


def mask_slab(source: Any, settings: MaskSettings, max_ram: str | int, *, multiple_of: int = 1) -> int:
    """Planes of a volume that `make_mask` writes at once."""
    per_voxel = 3 * np.dtype(source.dtype).itemsize + 8  # stored pieces and slab; planes, mask and its copies
    return slab_thickness(source.shape, max_ram, per_voxel, halo=settings.halo, multiple_of=multiple_of)


def check_finite_slices(source: Any, *, numbers: Sequence[int] | None = None, max_ram: str | int = "256MB") -> None:
    """`UserError` that names the slices with NaN or infinite voxels.

    Args:
        source: (z, y, x), NumPy or lazy; integers are not read.
        numbers: true slice numbers for the message.
        max_ram: bytes to work with.
    """
    if np.dtype(source.dtype).kind != "f":
        return
    bad = []
    for slab in slabs(source.shape[0], slab_thickness(source.shape, max_ram, 2 * np.dtype(source.dtype).itemsize)):
        finite = np.isfinite(np.asarray(source[slab.write])).all(axis=(1, 2))
        bad += [int(z) + slab.write.start for z in np.flatnonzero(~finite)]
    if bad:
        named = [int(numbers[z]) if numbers is not None else z for z in bad]
        shown = ", ".join(map(str, named[:12])) + (f" and {len(named) - 12} more" if len(named) > 12 else "")
        raise UserError(
            f"{len(bad)} of {source.shape[0]} slices hold NaN or infinite voxels: {shown}. Leave them out, or stack "
            "the volume with nan='zero' (--nan zero) to replace them by 0."
        )


def region_mask(source: Any, settings: MaskSettings) -> np.ndarray | None:
    """(y, x) booleans of the region of interest, or None for everything."""
    shape = tuple(source.shape[1:])
    region = None
    if settings.region is not None:
        if isinstance(settings.region, (str, float, int)):
            radius = _circle_radius(source) if settings.region == "circle" else float(settings.region) * min(shape) / 2
            y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
            region = np.hypot(y[:, None], x) <= radius
        else:
            corners = np.asarray(settings.region, float)
            if corners.ndim != 2 or corners.shape[1] != 2 or len(corners) < 3:
                raise UserError(f"`region` needs at least 3 corners (y, x). Received: region={settings.region!r}")
            region = draw.polygon2mask(shape, corners)
        if not region.any():
            raise UserError(f"`region` leaves nothing of slices of {shape}. Received: region={settings.region!r}")
    if settings.centre_square is not None:
        side = check_number("centre_square", settings.centre_square, minimum=1, integer=True)
        square = np.zeros(shape, bool)
        (top, left), side_y, side_x = (max(0, (n - side) // 2) for n in shape), min(side, shape[0]), min(side, shape[1])
        square[top : top + side_y, left : left + side_x] = True
        region = square if region is None else region & square
    return region


def _circle_radius(source: Any) -> float:
    """Radius inside which every column changes along z; the reconstruction circle where there is one."""
    count = min(source.shape[0], 16)
    places = np.unique(np.linspace(0, source.shape[0] - 1, count).astype(int))
    first = np.asarray(source[int(places[0]) : int(places[0]) + 1])[0]
    constant = np.ones(first.shape, bool)
    for z in places[1:]:
        constant &= np.asarray(source[int(z) : int(z) + 1])[0] == first
    corner = first[0, 0]
    constant &= first == corner
    y, x = (np.arange(n) - (n - 1) / 2 for n in first.shape)
    inscribed = min(first.shape) / 2
    outside = ndimage.binary_opening(constant, iterations=1) if len(places) > 1 else np.zeros(first.shape, bool)
    distance = np.hypot(y[:, None], x)[outside]
    return float(min(inscribed, distance.min() - 1)) if distance.size else inscribed


class _Classes:
    """Class of every voxel, plane by plane; `thresholds` are those of the whole volume."""

    def __init__(self, source: Any, settings: MaskSettings, region: np.ndarray | None, max_ram: str | int):
        self.settings, self.region = settings, region
        self.inverted: set[int] = set()
        statistics = volume_statistics(source, max_ram=max_ram)
        self._clahe: Clahe | None = None
        self._table: np.ndarray | None = None
        if settings.clahe:
            planes = slab_thickness(source.shape, max_ram, 3 * np.dtype(source.dtype).itemsize + 2)
            self._clahe = Clahe(
                source, statistics, kernel_size=settings.kernel_size, clip_limit=settings.clip_limit, planes=planes
            )
            levels = np.zeros(GREY_LEVELS, np.int64)
            for slab in slabs(source.shape[0], planes):
                for z, plane in enumerate(np.asarray(source[slab.read]), start=slab.read.start):
                    levels += np.bincount(self._clahe.plane(z, plane).ravel(), minlength=GREY_LEVELS)
            used = np.flatnonzero(levels)
            values = self._clahe.scaled((int(used[0]), int(used[-1])))
            counts, edges = np.histogram(values[used], 256, weights=levels[used])
            histogram = counts, (edges[:-1] + edges[1:]) / 2
            self.thresholds = self._choose(None, histogram)
            self._table = np.digitize(values, self.thresholds, right=True).astype(np.uint8)
        else:
            if region is not None:
                statistics = volume_statistics(source, region=region, max_ram=max_ram)
            self.thresholds = self._choose(statistics, None)

    def _choose(self, statistics: VolumeStatistics | None, histogram: Any) -> tuple[float, ...]:
        settings = self.settings
        if not isinstance(settings.threshold, str):
            return (float(settings.threshold),)
        if settings.classes > 2:
            if statistics is not None:
                return statistics.multi_otsu(settings.classes)
            return tuple(float(t) for t in filters.threshold_multiotsu(classes=settings.classes, hist=histogram))
        if settings.threshold == "halfway":
            return (statistics.halfway(),)
        if statistics is not None:
            return (statistics.otsu(None if statistics.is_exact else 256),)
        return (float(filters.threshold_otsu(hist=histogram)),)

    def plane(self, z: int, values: np.ndarray) -> np.ndarray:
        """(y, x) uint8: class numbers of a class map, else 0 and 1."""
        settings = self.settings
        if self._clahe is not None:
            classes = self._table[self._clahe.plane(z, values)]
        else:
            classes = np.digitize(values, self.thresholds, right=True).astype(np.uint8)
        if settings.is_class_map:
            return classes if self.region is None else classes * self.region
        kept = (len(self.thresholds),) if settings.keep_classes is None else settings.keep_classes
        white = np.isin(classes, kept)
        if settings.invert == "always" or (settings.invert == "slices" and 2 * np.count_nonzero(white) > white.size):
            white = ~white
            self.inverted.add(z)
        if self.region is not None:
            white &= self.region
        return white.view(np.uint8)


def _write_slabs(
    source: Any, out: Any, binary: _Classes, settings: MaskSettings, max_ram: str | int, progress: Any
) -> None:
    thickness = mask_slab(source, settings, max_ram, multiple_of=getattr(out, "chunks", (1,))[0])
    for slab in slabs(source.shape[0], thickness, settings.halo):
        name = f"slab {slab.write.start}:{slab.write.stop}"
        if hasattr(out, "is_done") and out.is_done(name):
            binary.inverted |= {z for z in range(slab.write.start, slab.write.stop) if out.is_done(f"inverted {z}")}
            continue
        values = np.asarray(source[slab.read])
        planes = [binary.plane(z, plane) for z, plane in enumerate(values, start=slab.read.start)]
        mask = np.stack(planes)
        if not settings.is_class_map:
            mask = _morphology(mask.astype(bool), settings)[slab.crop]
            if "z" in settings.fill:
                mask = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
            mask = mask.astype(np.uint8) * 255
        else:
            mask = mask[slab.crop]
        out[slab.write] = mask
        if hasattr(out, "mark_done"):
            for z in sorted(binary.inverted & set(range(slab.write.start, slab.write.stop))):
                out.mark_done(f"inverted {z}")
            out.mark_done(name)
        if progress is not None:
            progress(slab.write.stop, source.shape[0])


def _morphology(mask: np.ndarray, settings: MaskSettings) -> np.ndarray:
    """Ball-shaped erosion, dilation, opening, closing; the outside continues the border."""
    for name in ("erosion", "dilation", "opening", "closing"):
        radius = getattr(settings, name)
        if radius:
            ball = morphology.ball(radius)
            grown = np.pad(mask, radius, mode="edge")
            result = getattr(ndimage, f"binary_{name}")(grown, ball)
            mask = result[(slice(radius, -radius),) * 3]
    return mask


# ------------------------------------------------------------------------------------------------- out-of-core parts


def _filtered(source: Any, settings: MaskSettings, path: Path, max_ram: str | int) -> np.ndarray:
    """Phase filter and smoothing of the volume, float32 on disk, tile by tile."""
    shape = tuple(source.shape)
    check_disk_space(path, math.prod(shape) * 4, "the filtered volume")
    out = np.lib.format.open_memmap(path, "w+", np.float32, shape)
    # the kernel of 1 / (1 + a k^2) falls as exp(-r / sqrt(a)): 8 lengths leave 0.03 %
    reach = 8 * math.sqrt(settings.phase_filter) if settings.phase_filter else 0
    halo = min(max(1, math.ceil(max(reach, 4 * settings.sigma))), 200)
    edge = int((parse_bytes(max_ram) / 40) ** (1 / 3))  # float32 tile, spectrum, copies
    tile = tuple(fft.next_fast_len(min(max(edge, 2 * halo + 8), n + 2 * halo), real=True) for n in shape)
    grid = TileGrid.cover(shape, tile, halo)
    for piece in grid:
        block = read_tile(source, piece).astype(np.float32)
        if settings.phase_filter:
            block = _low_pass(block, settings.phase_filter)
        if settings.sigma:
            block = ndimage.gaussian_filter(block, settings.sigma, mode="reflect", truncate=4.0)
        out[piece.write] = block[piece.crop]
    return out


def _low_pass(block: np.ndarray, strength: float) -> np.ndarray:
    """Multiply the spectrum by 1 / (1 + a k^2), k in radians per voxel."""
    square: Any = 0.0
    for axis, n in enumerate(block.shape):
        k = 2 * np.pi * (fft.rfftfreq(n) if axis == block.ndim - 1 else fft.fftfreq(n)).astype(np.float32)
        square = square + (k**2).reshape([-1 if a == axis else 1 for a in range(block.ndim)])
    spectrum = fft.rfftn(block)
    spectrum /= 1 + np.float32(strength) * square
    return fft.irfftn(spectrum, s=block.shape).astype(np.float32, copy=False)


def _fill_planes(out: Any, axis: int, max_ram: str | int) -> None:
    """Fill the holes of every plane across `axis` (1 or 2), in place."""
    order = (axis, *(a for a in range(3) if a != axis))
    shape = tuple(out.shape[a] for a in order)
    for slab in slabs(shape[0], slab_thickness(shape, max_ram, 4)):
        box = tuple(slab.write if a == axis else slice(0, out.shape[a]) for a in range(3))
        planes = np.moveaxis(np.array(out[box]), axis, 0)
        for number, plane in enumerate(planes):
            planes[number] = ndimage.binary_fill_holes(plane).astype(np.uint8) * 255
        out[box] = np.moveaxis(planes, 0, axis)


class _Ground(LazyArray):
    """The background of a mask on disk."""

    def __init__(self, mask: Any, inverted: bool):
        self.mask, self.inverted, self.shape, self.dtype = mask, inverted, tuple(mask.shape), np.dtype(bool)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        return (np.asarray(self.mask[block]) == 0) == self.inverted


def _components(out: Any, path: Path, max_ram: str | int, *, of_background: bool) -> tuple[np.ndarray, int]:
    """6-connected parts of the mask or its background, int32 on disk, and their number."""
    check_disk_space(path, math.prod(out.shape) * 4, "the numbered parts")
    labels = np.lib.format.open_memmap(path, "w+", np.int32, tuple(out.shape))
    edge = min(_BLOCK, int((parse_bytes(max_ram) / 24) ** (1 / 3)))
    return labels, label_blocks(_Ground(out, of_background), labels, edge, connectivity=4)


def _fill_cavities(out: Any, path: Path, max_ram: str | int) -> None:
    """Fill background that does not reach the border of the volume."""
    if math.prod(out.shape) * 30 <= parse_bytes(max_ram):
        out[...] = (fill_holes((np.asarray(out[...]) > 0).astype(np.int32)) > 0).astype(np.uint8) * 255
        return
    labels, count = _components(out, path, max_ram, of_background=True)
    open_air = np.zeros(count + 1, bool)
    for axis in range(3):
        for edge in (0, -1):
            open_air[np.unique(labels[(slice(None),) * axis + (edge,)])] = True
    closed = ~open_air
    closed[0] = False
    _replace(out, labels, closed, 255, max_ram)


def _remove_small_parts(out: Any, min_size: int, path: Path, max_ram: str | int) -> None:
    labels, count = _components(out, path, max_ram, of_background=False)
    sizes = np.zeros(count + 1, np.int64)
    for slab in slabs(out.shape[0], slab_thickness(out.shape, max_ram, 16)):
        sizes += np.bincount(labels[slab.write].ravel(), minlength=count + 1)
    small = sizes < min_size
    small[0] = False
    _replace(out, labels, small, 0, max_ram)


def _replace(out: Any, labels: np.ndarray, chosen: np.ndarray, value: int, max_ram: str | int) -> None:
    for slab in slabs(out.shape[0], slab_thickness(out.shape, max_ram, 8)):
        mask = np.array(out[slab.write])
        mask[chosen[labels[slab.write]]] = value
        out[slab.write] = mask
