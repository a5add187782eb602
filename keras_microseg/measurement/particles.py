"""`measure_particles`: from a label image or label volume to one row of numbers per particle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from operator import attrgetter
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, standardize_tuple
from keras_microseg.image import METRES, Image, PixelSize, buffer_planes, normalize_unit
from keras_microseg.measurement.objects import ObjectMeasurer
from keras_microseg.measurement.quantities import Quantity, describe_formulas, quantities_of, select_quantities
from keras_microseg.measurement.shape import (
    Calipers,
    Polygons,
    fold_angle,
    measure_calipers,
    pixel_hulls,
    polygon_areas,
    polygon_perimeters,
)
from keras_microseg.measurement.solids import SOLID_FORMULAS, SolidMeasurer
from keras_microseg.segmentation.components import label_runs
from keras_microseg.segmentation.runs import LabelRuns, find_runs, paint_runs, segment_reduce


def measure_particles(
    labels: Any,
    *,
    intensity: Any = None,
    pixel_size: PixelSize | None = None,
    origin: tuple[int, ...] | None = None,
    quantities: Iterable[str] | None = None,
) -> pd.DataFrame:
    """Measure every particle of a label image or label volume.

    Args:
        labels: (H, W) or (D, H, W) integers, 0 = background, any positive labels, gaps allowed; an array, a lazy
            array, or an `Image` with axes "YX" or "ZYX" (then its pixel size and origin are used unless given).
        intensity: grey values of the same shape, array or `Image`; non-finite pixels are left out of the statistics.
        pixel_size: edge lengths of a pixel (voxel), equal or not; one number stands for all axes. None = unknown:
            lengths are in "px", areas in "px²", volumes in "px³", all edges taken as equal.
        origin: position of the first pixel in the whole image, added to centroids and bounding boxes; default 0.
        quantities: names of the columns wanted, see below; None = all but those marked "on request". Only what is
            needed is computed.

    Returns:
        DataFrame with one row per particle, ascending `label` first. `attrs` holds `unit`, `pixel_size` (one edge per
        axis, or None), `pixel_size_source`, `origin`, `frame_shape` and `units` (unit of every column).

    Raises:
        UserError: labels not 2D or 3D or not whole numbers, an image of another shape, an unknown quantity, a voxel
            size without z.

    Conventions: a pixel is a square of its full size, so a row of N pixels is N long; a voxel is a box likewise.
    Positions are in pixels with pixel centres at whole numbers. Angles are in degrees from +x, counter-clockwise on the
    screen. Pixels that are not square are handled in every quantity. skimage.measure differs by convention in two
    places: its moments are those of pixel centres (here 1/12 of a squared pixel is added per axis), its hull joins the
    middles of pixel edges (here corners).
    """
    if isinstance(labels, Image):
        if pixel_size is None and labels.pixel_size is None and "pixel_size_yx" in labels.metadata:
            raise UserError(
                f"{labels.name}: the file tells the pixel size in the slices but not the distance of the slices. "
                "Pass the voxel size, for example '2 x 0.65 x 0.65 um' (z, y, x)."
            )
        pixel_size = labels.pixel_size if pixel_size is None else pixel_size
        origin = labels.origin if origin is None else origin
        labels = labels.data
    intensity = intensity.data if isinstance(intensity, Image) else intensity
    labels = labels if hasattr(labels, "dtype") else np.asarray(labels)
    intensity = np.asarray(intensity) if intensity is not None and not hasattr(intensity, "dtype") else intensity
    labels, intensity = buffer_planes(labels), buffer_planes(intensity)
    ndim = len(labels.shape)
    if ndim not in (2, 3):
        raise UserError(f"`labels` must be a 2-D label image or a 3-D label volume. Received: shape {labels.shape}")
    chosen = select_quantities(quantities, has_intensity=intensity is not None, ndim=ndim)
    needs_grey = any(quantity.kind == "grey" for quantity in chosen)
    runs = find_runs(labels, intensity if needs_grey else None)
    return _measure(runs, labels, pixel_size, origin, chosen)


def label_particles(
    mask: np.ndarray,
    *,
    connectivity: int = 8,
    intensity: np.ndarray | None = None,
    pixel_size: PixelSize | None = None,
    quantities: Iterable[str] | None = None,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Number the connected components of a mask and measure them, in one reading of the mask.

    Args:
        mask: 2D or 3D, non-zero = object.
        connectivity: 4 (shared edges; faces in 3D) or 8 (corners as well).
        intensity, pixel_size, quantities: as for `measure_particles`.

    Returns:
        `(labels, table)`: int32 labels 1..n as `label_components` gives them, and the table of `measure_particles`.
    """
    mask = np.asarray(mask)
    chosen = select_quantities(quantities, has_intensity=intensity is not None, ndim=mask.ndim)
    needs_grey = any(quantity.kind == "grey" for quantity in chosen)
    runs = label_runs(mask, connectivity, intensity if needs_grey else None)
    labels = paint_runs(runs)
    return labels, _measure(runs, labels, pixel_size, None, chosen)


def _measure(
    runs: LabelRuns,
    labels: Any,
    pixel_size: PixelSize | None,
    origin: tuple[int, ...] | None,
    chosen: list[Quantity],
) -> pd.DataFrame:
    ndim = len(runs.shape)
    origin = standardize_tuple((0,) * ndim if origin is None else origin, ndim, "origin", minimum=None)
    size = edge_lengths(pixel_size, ndim)
    if ndim == 2:
        formulas, measurer = FORMULAS, ParticleMeasurer(runs, size, origin)
    else:
        formulas, measurer = SOLID_FORMULAS, SolidMeasurer(runs, size, origin, labels)
    measurer.needs_median = any(quantity.name == "intensity_median" for quantity in chosen)
    huge = len(runs.labels) and int(runs.labels[-1]) > np.iinfo(np.int64).max
    columns = {"label": runs.labels.astype(np.uint64 if huge else np.int64)}
    columns |= {quantity.name: formulas[quantity.name](measurer) for quantity in chosen}

    table = pd.DataFrame(columns)
    unit = "px" if pixel_size is None else pixel_size.unit
    table.attrs = {
        "unit": unit,
        "pixel_size": None if pixel_size is None else list(size),
        "pixel_size_source": "unknown" if pixel_size is None else pixel_size.source,
        "origin": list(origin),
        "frame_shape": list(runs.shape),
        "units": {"label": ""} | {quantity.name: quantity.unit(unit) for quantity in chosen},
    }
    return table


def edge_lengths(pixel_size: PixelSize | None, ndim: int) -> tuple[float, ...]:
    """(s_y, s_x) or (s_z, s_y, s_x); 1 pixel when unknown; `UserError` when the number of axes does not fit."""
    if pixel_size is None:
        return (1.0,) * ndim
    if not isinstance(pixel_size, PixelSize):
        raise UserError(f"`pixel_size` must be a PixelSize or None, e.g. PixelSize.parse('1.2nm'). Got {pixel_size!r}")
    if len(pixel_size.size) == 1:
        return pixel_size.size * ndim
    if len(pixel_size.size) != ndim:
        what = "2-D image" if ndim == 2 else "volume (z, y, x)"
        raise UserError(f"`pixel_size` must have 1 or {ndim} numbers for a {what}. Received: {pixel_size.size}")
    return pixel_size.size


def convert_table(table: pd.DataFrame, unit: str) -> pd.DataFrame:
    """The same particle table with lengths in another unit.

    Args:
        table: from `measure_particles`, with a known pixel size.
        unit: length unit, for example "um".

    Raises:
        UserError: the pixel size of the table is unknown, or `unit` is not a length.
    """
    unit, old = normalize_unit(unit), table.attrs.get("unit", "px")
    if old not in METRES:
        raise UserError(
            f"The pixel size of this table is unknown; it cannot be given in {unit}. Measure with pixel_size."
        )
    factor = METRES[old] / METRES[unit]
    converted = table.copy()
    quantities = quantities_of(len(table.attrs.get("frame_shape") or (0, 0)))
    known = {name: quantities[name] for name in table.columns if name in quantities}
    for name, quantity in known.items():
        if quantity.kind in ("length", "area", "volume"):
            converted[name] = table[name] * factor ** ("length", "area", "volume").index(quantity.kind) * factor
    size = table.attrs.get("pixel_size")
    converted.attrs |= {"unit": unit, "pixel_size": None if size is None else [edge * factor for edge in size]}
    converted.attrs["units"] = table.attrs.get("units", {}) | {name: q.unit(unit) for name, q in known.items()}
    return converted


def combine_tables(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """One table of the particles of several images, all in the unit of the first.

    (`pandas.concat` alone drops the units as soon as two images differ in anything.)

    Args:
        tables: image name -> table of `measure_particles`; at least one.

    Returns:
        DataFrame with the image name in a first column `image`. `attrs` holds `unit` and `units`; what differs between
        the images, such as the pixel size, is None.

    Raises:
        UserError: no table, or some images have a pixel size and others have none.
    """
    if not tables:
        raise UserError("There is no table to combine.")
    units = {name: table.attrs.get("unit", "px") for name, table in tables.items()}
    unit = next(iter(units.values()))
    unknown = [name for name, other in units.items() if other == "px"]
    if unknown and len(unknown) < len(units):
        raise UserError(
            f"No pixel size for {', '.join(unknown[:5])}{' ...' if len(unknown) > 5 else ''}, but for other images. "
            "Pass a pixel size for all, or measure all in px."
        )
    same = [table if units[name] == unit else convert_table(table, unit) for name, table in tables.items()]
    attrs = {
        key: value if all(table.attrs.get(key) == value for table in same) else None
        for key, value in same[0].attrs.items()
    }
    filled = [table for table in same if len(table)] or same[:1]
    combined = pd.concat(filled, ignore_index=True)
    names = np.repeat(np.array(list(tables), dtype=object), [len(table) for table in same])
    combined.insert(0, "image", names)
    combined.attrs = attrs | {"unit": unit, "units": {"image": ""} | same[0].attrs.get("units", {})}
    return combined


class ParticleMeasurer(ObjectMeasurer):
    """Quantities of the particles of an image, computed when asked, each intermediate result once."""

    @cached_property
    def moments(self) -> tuple[np.ndarray, ...]:
        """Centroid (y, x) in pixels of the array and central second moments (yy, xx, xy) / area in pixels squared."""
        centre, second = self.centroids, self.second_moments
        return centre[:, 0], centre[:, 1], second[:, 0, 0], second[:, 1, 1], second[:, 0, 1]

    @cached_property
    def ellipse(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Major and minor axis (full lengths) and angle of the ellipse of equal second moments."""
        _, _, yy, xx, xy = self.moments
        size_y, size_x = self.size
        yy, xx, xy = yy * size_y**2, xx * size_x**2, -xy * size_y * size_x  # y upwards
        half = np.hypot((xx - yy) / 2, xy)
        middle = (xx + yy) / 2
        minor = np.maximum((yy * xx - xy**2) / (middle + half), 0)  # product over the larger one: no cancellation
        angle = fold_angle(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))
        return 4 * np.sqrt(middle + half), 4 * np.sqrt(minor), np.where(half > 1e-9 * middle, angle, np.nan)

    @cached_property
    def hulls(self) -> Polygons:
        return pixel_hulls(self.runs)

    @cached_property
    def hull_area(self) -> np.ndarray:
        return polygon_areas(self.hulls) * (self.size[0] * self.size[1])

    @cached_property
    def hull_perimeter(self) -> np.ndarray:
        return polygon_perimeters(self.hulls.scaled(self.size))

    @cached_property
    def calipers(self) -> Calipers:
        return measure_calipers(self.hulls.scaled(self.size))

    def _crofton(self, rows: np.ndarray, columns: np.ndarray, diagonals: np.ndarray) -> np.ndarray:
        """Perimeter from the boundary crossings of grid lines along rows, columns and both diagonals together."""
        size_y, size_x = self.size
        slope = np.arctan2(size_y, size_x) / np.pi  # share of all directions that the rows stand for
        spacing = (self.size[0] * self.size[1]) / np.hypot(size_y, size_x)
        total = slope * size_y * rows + (0.5 - slope) * size_x * columns + 0.25 * spacing * diagonals
        return np.pi / 2 * total

    @cached_property
    def perimeter(self) -> np.ndarray:
        vertical, diagonal, _ = self.runs.adjacency
        num_runs = np.diff(self.runs.starts)
        return self._crofton(2 * num_runs, 2 * (self.pixel_count - vertical), 4 * self.pixel_count - 2 * diagonal)

    @cached_property
    def convexity(self) -> np.ndarray:
        """Crofton perimeter of the hull, from the grid lines between its extreme pixels, over that of the particle."""
        _, y, x0, x1 = self.runs.sorted
        spans = 2
        for low, high in ((x0 - y, x1 - y), (x0 + y, x1 + y)):
            spans = spans + segment_reduce(np.maximum, high - 1, self.runs.starts)
            spans = spans - segment_reduce(np.minimum, low, self.runs.starts)
        y_first, x_first, y_stop, x_stop = self.box.T
        hull = self._crofton(2 * (y_stop - y_first), 2 * (x_stop - x_first), 2 * spans)
        return np.minimum(hull / self.perimeter, 1.0)

    @cached_property
    def geodesic(self) -> tuple[np.ndarray, np.ndarray]:
        """Length and thickness of a fibre from area = length * thickness and perimeter = 2 * (length + thickness)."""
        root = self.perimeter**2 - 16 * self.content
        root = np.sqrt(np.where(root >= 0, root, np.nan))
        return (self.perimeter + root) / 4, (self.perimeter - root) / 4

    @cached_property
    def touching_neighbours(self) -> np.ndarray:
        return np.bincount(self.runs.adjacency[2].ravel(), minlength=len(self.runs.labels))


FORMULAS: dict[str, Callable[[ParticleMeasurer], np.ndarray]] = {
    "area": lambda m: m.content,
    "equivalent_diameter": lambda m: np.sqrt(4 / np.pi * m.content),
    "perimeter": lambda m: m.perimeter,
    **{name: attrgetter(f"calipers.{name}") for name in Calipers._fields},
    "ellipse_major": lambda m: m.ellipse[0],
    "ellipse_minor": lambda m: m.ellipse[1],
    "ellipse_angle": lambda m: m.ellipse[2],
    "hull_area": lambda m: m.hull_area,
    "hull_perimeter": lambda m: m.hull_perimeter,
    "aspect_ratio": lambda m: m.calipers.feret_min / m.calipers.feret_max,
    "ellipse_ratio": lambda m: m.ellipse[1] / m.ellipse[0],
    "circularity": lambda m: np.minimum(4 * np.pi * m.content / m.perimeter**2, 1.0),
    "circularity_iso": lambda m: np.minimum(np.sqrt(4 * np.pi * m.content) / m.perimeter, 1.0),
    "roundness": lambda m: 4 / np.pi * m.content / m.calipers.feret_max**2,
    "compactness": lambda m: np.sqrt(4 / np.pi * m.content) / m.calipers.feret_max,
    "extent": lambda m: m.content / (m.calipers.feret_min * m.calipers.feret_max),
    "convexity": lambda m: m.convexity,
    "solidity": lambda m: m.content / m.hull_area,
    "completeness": lambda m: 4 / np.pi * m.content / (m.ellipse[0] * m.ellipse[1]),
    "geodesic_length": lambda m: m.geodesic[0],
    "geodesic_thickness": lambda m: m.geodesic[1],
    "elongation": lambda m: m.geodesic[1] / m.geodesic[0],
    "centroid_y": lambda m: m.moments[0] + m.origin[0],
    "centroid_x": lambda m: m.moments[1] + m.origin[1],
    "bbox_y0": lambda m: m.box[:, 0] + m.origin[0],
    "bbox_x0": lambda m: m.box[:, 1] + m.origin[1],
    "bbox_y1": lambda m: m.box[:, 2] + m.origin[0],
    "bbox_x1": lambda m: m.box[:, 3] + m.origin[1],
    "touches_border": lambda m: m.touches_border,
    "edge_weight": lambda m: m.edge_weight,
    "touching_neighbours": lambda m: m.touching_neighbours,
    "nearest_distance": lambda m: m.nearest_distance,
    "intensity_mean": lambda m: m.intensity["mean"],
    "intensity_median": lambda m: m.intensity["median"],
    "intensity_min": lambda m: m.intensity["min"],
    "intensity_max": lambda m: m.intensity["max"],
    "intensity_std": lambda m: m.intensity["std"],
}


if measure_particles.__doc__:  # absent under python -OO
    measure_particles.__doc__ = "".join(
        f"{part}\n" for part in (
            measure_particles.__doc__.rstrip(), "", "    Quantities of images:", describe_formulas(2), "",
            "    Quantities of volumes:", describe_formulas(3), "    ",
        )
    ).rstrip("\n")  # fmt: skip
