"""Every particle of a cathode in one table: detachment, damage, shape, contacts, neighbours, electron density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes
from keras_microseg.image import PixelSize
from keras_microseg.measurement import contacts
from keras_microseg.measurement.cathode_quantities import BASE, CATHODE_QUANTITIES
from keras_microseg.measurement.damage import DEPTH_BINS, measure_damage
from keras_microseg.measurement.detachment import shell_detachment, surface_detachment
from keras_microseg.measurement.particle_crops import Crop, PhaseClasses, crops
from keras_microseg.measurement.particles import edge_lengths, measure_particles

FACES = ("z0", "z1", "y0", "y1", "x0", "x1")


@dataclasses.dataclass(frozen=True)
class CathodeMeasures:
    """How the particles of a cathode are measured. Lengths in voxels: of the longest edge where edges differ.

    Attributes:
        classes: meaning of the values of the phase volume.
        distances: of the detachment sweep.
        distance: main distance, of the column `detachment`; one of `distances`.
        skip: leave out of shells what is not farther than this (1.5 for phase maps by thresholds).
        contact_distance: thickness of the shell for `contact_share`.
        fill_radius: of the ball that closes cracks; 0 = only fill holes.
        rim: see `measure_damage`.
        cube: edge of the cube of `packing_density`, mean equivalent diameters.
        collector: face of the volume at the current collector, one of z0, z1, y0, y1, x0, x1; None = not known.
        border: particles within this distance of the border of the volume are edge particles, as are those that touch.
        min_size: smaller objects are left out, voxels.
        max_ram: memory for planes kept from disk.
    """

    classes: PhaseClasses = dataclasses.field(default_factory=PhaseClasses)
    distances: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    distance: float = 3.0
    skip: float = 0.0
    contact_distance: float = 3.0
    fill_radius: float = 10.0
    rim: float = 0.0
    cube: float = 3.0
    collector: str | None = None
    border: int = 0
    min_size: int = 100
    max_ram: str = dataclasses.field(default="1GB", metadata={"lasting": False})

    def __post_init__(self) -> None:
        object.__setattr__(self, "distances", tuple(sorted({float(value) for value in np.atleast_1d(self.distances)})))
        if self.distance not in self.distances:
            object.__setattr__(self, "distances", tuple(sorted((*self.distances, float(self.distance)))))
        for name in ("skip", "fill_radius", "rim"):
            check_number(name, getattr(self, name), minimum=0, maximum=1000)
        if min(self.distances) < 1 or self.distance <= self.skip:
            raise UserError(
                f"`distances` must be at least 1 voxel and `distance` greater than skip={self.skip:g}. Received: "
                f"{self.distances}, distance={self.distance:g}"
            )
        check_number("contact_distance", self.contact_distance, minimum=1, maximum=1000)
        check_number("cube", self.cube, minimum=0.5, maximum=50)
        check_number("border", self.border, minimum=0, integer=True)
        check_number("min_size", self.min_size, minimum=1, integer=True)
        if self.collector is not None:
            check_choice("collector", self.collector, FACES)
        parse_bytes(self.max_ram)


@dataclasses.dataclass(frozen=True)
class CathodeTables:
    """Outcome of `measure_cathode`; every table has its units in `attrs["units"]`.

    Attributes:
        particles: one row per particle, columns as in `cathode_quantities`.
        sweep: one row per particle and distance: `label`, `distance`, both values with errors, contact.
        contacts: one row per pair in contact, see `contacts.contact_edges`.
        crack_profile: one row per particle and relative depth: `label`, `depth_from`, `depth_to`, `crack_fraction`.
    """

    particles: pd.DataFrame
    sweep: pd.DataFrame
    contacts: pd.DataFrame
    crack_profile: pd.DataFrame


def measure_cathode(
    labels: Any,
    phases: Any = None,
    grey: Any = None,
    settings: CathodeMeasures | None = None,
    *,
    voxel_size: PixelSize | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> CathodeTables:
    """Measure every particle of a label volume.

    Args:
        labels: (D, H, W) integer labels, array or lazy array; memory stays bounded for volumes on disk.
        phases: the same shape, integer classes; without it there is no detachment, and cracks are what closing and
            filling add to a label.
        grey: the same shape, or None.
        settings: see `CathodeMeasures`.
        voxel_size: edge lengths; None measures in voxels ("px").
        progress: called as `progress(done, total)`.

    Raises:
        UserError: shapes that differ, labels or phases that are no whole numbers, phases without void and CBD.
    """
    settings = settings or CathodeMeasures()
    shape = tuple(labels.shape)
    if len(shape) != 3 or np.dtype(labels.dtype).kind not in "iu":
        raise UserError(f"`labels` must be whole numbers (D, H, W). Received: shape {shape}, {labels.dtype}")
    for name, other in (("phases", phases), ("grey", grey)):
        if other is not None and tuple(other.shape) != shape:
            raise UserError(
                f"`{name}` has the shape {tuple(other.shape)}, the labels {shape}; they must be one volume."
            )
    if phases is not None and np.dtype(phases.dtype).kind not in "iub":
        raise UserError(
            f"`phases` must be whole numbers, one per class. Received: {phases.dtype}. Grey values become phases by "
            "thresholds (--thresholds), k-means, a forest or a network (volume train, volume predict)."
        )
    size = edge_lengths(voxel_size, 3)
    edge = max(size)
    wanted = [*BASE, "bbox_z0", "bbox_y0", "bbox_x0", "bbox_z1", "bbox_y1", "bbox_x1"]
    base = measure_particles(labels, pixel_size=voxel_size, quantities=wanted)
    voxel = float(np.prod(size))
    every = base["label"].to_numpy()
    base = base[np.rint(base["volume"] / voxel) >= settings.min_size].reset_index(drop=True)
    ids = base["label"].to_numpy()
    boxes = base[[f"bbox_{letter}{end}" for end in (0, 1) for letter in "zyx"]].to_numpy(np.int64)
    distances = np.array(settings.distances) * edge
    margin = max(*distances, settings.contact_distance * edge) + 2 * edge
    rows: dict[int, dict[str, float]] = {}
    sweep, profiles = [], []
    pieces = crops(
        labels, phases, grey, ids, boxes, size=size, margin=margin, fill_radius=settings.fill_radius * edge,
        classes=settings.classes, max_bytes=parse_bytes(settings.max_ram),
    )  # fmt: skip
    for done, (row, crop) in enumerate(pieces):
        if progress:
            progress(done, len(ids))
        rows[row], parts, profile = _measure_crop(crop, settings, distances, edge)
        sweep += parts
        profiles.append(profile)
    features = pd.DataFrame([rows[row] for row in range(len(ids))], index=range(len(ids)))
    table = pd.concat([base.drop(columns=wanted[len(BASE) :]), features], axis=1)
    unit = voxel_size.unit if voxel_size is not None else "px"
    edges = contacts.contact_edges(labels, every, size)
    edges = edges[edges["label_a"].isin(ids) & edges["label_b"].isin(ids)].reset_index(drop=True)
    _add_neighbours(table, edges, labels, boxes, settings, size)
    y, x = table["axis_y"], table["axis_x"]
    table["yaw"] = np.degrees(np.arctan2(y, x)) % 180
    table["pitch"] = np.degrees(np.arcsin(np.clip(table["axis_z"], -1, 1)))
    table["is_edge"] = table["touches_border"] | (
        (boxes[:, :3] < settings.border) | (boxes[:, 3:] > np.array(shape) - settings.border)
    ).any(axis=1)
    table["size_class"] = size_classes(table)
    order = ["label", *(name for name in CATHODE_QUANTITIES if name in table)]
    return CathodeTables(*_with_units(table[order], sweep, edges, profiles, unit, voxel_size))


def size_classes(table: pd.DataFrame) -> pd.Series:
    """small, medium, large: thirds by equivalent diameter of the particles that are no edge particles."""
    inner = table[~table["is_edge"]] if (~table["is_edge"]).sum() >= 3 else table
    if len(inner) < 3:
        return pd.Series(["all"] * len(table), index=table.index)
    low, high = np.quantile(inner["equivalent_diameter"], [1 / 3, 2 / 3])
    names = np.where(table["equivalent_diameter"] <= low, "small", "medium")
    return pd.Series(np.where(table["equivalent_diameter"] > high, "large", names), index=table.index)


def _measure_crop(
    crop: Crop, settings: CathodeMeasures, distances: np.ndarray, edge: float
) -> tuple[dict[str, float], list[dict[str, float]], pd.DataFrame]:
    values: dict[str, float] = {}
    parts: list[dict[str, float]] = []
    if crop.phases is not None:
        shell = shell_detachment(crop, distances, skip=settings.skip * edge)
        surface = surface_detachment(crop, distances)
        main = int(np.argmin(np.abs(distances - settings.distance * edge)))
        value, error = float(surface.value[main]), float(surface.error[main])
        values = {
            "detachment": value, "detachment_error": error,
            "detachment_low": max(value - 1.96 * error, 0.0) if value == value else np.nan,
            "detachment_high": min(value + 1.96 * error, 1.0) if value == value else np.nan,
            "detachment_shell": float(shell.value[main]), "surface_seen": float(surface.seen[main]),
        }  # fmt: skip
        for place, distance in enumerate(distances):
            parts.append(
                {
                    "label": crop.label, "distance": distance,
                    "detachment": surface.value[place], "detachment_error": surface.error[place],
                    "detachment_shell": shell.value[place], "detachment_shell_error": shell.error[place],
                    "contact_share": surface.contact[place], "contact_share_shell": shell.contact[place],
                }
            )  # fmt: skip
    near = (crop.distance > 0) & (crop.distance <= settings.contact_distance * edge)
    values["contact_share"] = float((crop.others & near).sum() / max(near.sum(), 1))
    damage = measure_damage(crop, rim=settings.rim * edge)
    values |= {name: value for name, value in damage._asdict().items() if name != "profile"}
    area = max(damage.outer_surface, 1e-300)
    values["sphericity"] = 36 * np.pi * damage.filled_volume**2 / area**3
    values["roll"] = _roll(crop)
    values["volume_to_surface"] = np.cbrt(damage.filled_volume) / np.sqrt(area)
    if crop.grey is not None:
        grey = crop.grey[crop.solid].astype(float)
        grey = grey[np.isfinite(grey)]
        values["grey_mean"] = float(grey.mean()) if len(grey) else np.nan
        values["grey_std"] = float(grey.std()) if len(grey) else np.nan
        values["homogeneity"] = 1 / values["grey_std"] if values["grey_std"] else np.nan
    steps = np.arange(DEPTH_BINS + 1) / DEPTH_BINS
    profile = pd.DataFrame(
        {
            "label": crop.label, "depth_from": steps[:-1], "depth_to": steps[1:],
            "cracks": damage.profile[:, 0] * np.prod(crop.size), "filled": damage.profile[:, 1] * np.prod(crop.size),
            "crack_fraction": damage.profile[:, 0] / np.maximum(damage.profile[:, 1], 1),
        }
    )  # fmt: skip
    return values, parts, profile


def _add_neighbours(
    table: pd.DataFrame, edges: pd.DataFrame, labels: Any, boxes: np.ndarray, settings: CathodeMeasures, size: Any
) -> None:
    ids = table["label"].to_numpy()
    table["axis_ratio"] = table["ellipsoid_major"] / table["ellipsoid_minor"]
    table["coordination_number"], table["contact_area"] = contacts.degrees(edges, ids)
    table["cluster"] = contacts.clusters(edges, ids)
    centres = table[["centroid_z", "centroid_y", "centroid_x"]].to_numpy()
    axes = table[["axis_z", "axis_y", "axis_x"]].to_numpy()
    scatter = {"axis_ratio": table["axis_ratio"].to_numpy(), "volume": table["volume"].to_numpy()}
    for name, values in contacts.neighbourhood(centres * size, axes, scatter).items():
        table[name] = values
    side = settings.cube * float(table["equivalent_diameter"].mean()) if len(table) else 1.0
    table["packing_density"] = contacts.packing_density(labels, centres, side, size)
    if settings.collector is not None:
        axis, end = "zyx".index(settings.collector[0]), settings.collector[1]
        depth = (centres[:, axis] + 0.5) * size[axis]
        table["collector_depth"] = depth if end == "0" else labels.shape[axis] * size[axis] - depth


def _roll(crop: Crop) -> float:
    """Turn of the middle axis about the longest one, degrees 0..180 from the plane of the slices."""
    places = np.stack(np.nonzero(crop.own), axis=1) * crop.size
    _, vectors = np.linalg.eigh(np.cov(places.T) if len(places) > 1 else np.eye(3))
    middle, longest = vectors[:, 1], vectors[:, 2]
    level = np.cross(longest, [1.0, 0.0, 0.0])
    if np.linalg.norm(level) < 1e-9:
        level = np.array([0.0, 0.0, 1.0])
    level /= np.linalg.norm(level)
    return float(np.degrees(np.arctan2(middle @ np.cross(longest, level), middle @ level)) % 180)


def _with_units(
    table: pd.DataFrame,
    sweep: list[dict[str, float]],
    edges: pd.DataFrame,
    profiles: list[pd.DataFrame],
    unit: str,
    voxel_size: PixelSize | None,
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    columns = ["label", "distance", "detachment", "detachment_error", "detachment_shell", "detachment_shell_error",
               "contact_share", "contact_share_shell"]  # fmt: skip
    sweeps = pd.DataFrame(sweep, columns=columns).sort_values(["label", "distance"], ignore_index=True)
    profile = pd.concat(profiles) if profiles else pd.DataFrame(columns=["label", "depth_from"])
    profile = profile.sort_values(["label", "depth_from"], ignore_index=True)
    attrs = {"unit": unit, "pixel_size": None if voxel_size is None else list(voxel_size.size)}
    units = {"label": ""} | {name: CATHODE_QUANTITIES[name].unit(unit) for name in table.columns if name != "label"}
    table.attrs = {**attrs, "units": units}
    sweeps.attrs = {**attrs, "units": {"distance": unit}}
    edges.attrs = {**attrs, "units": {"area": f"{unit}²", "faces": f"{unit}²"}}
    profile.attrs = {**attrs, "units": {"cracks": f"{unit}³", "filled": f"{unit}³"}}
    return table, sweeps, edges, profile
