"""Workflows `volume label`, `volume measure` and `volume evaluate`: from masks or maps to objects, tables and scores.

All read and write block by block and keep to `max_ram`, apart from what is said to need the volume in memory.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import __version__, io
from keras_microseg.checks import FileError, UserError, check_choice, check_number, parse_bytes
from keras_microseg.image import Image, buffer_planes
from keras_microseg.inference.block_labels import decode_large
from keras_microseg.inference.views import DiskArray, ThresholdView
from keras_microseg.intensity import volume_statistics
from keras_microseg.measurement import measure_particles, size_distribution, summarize_sizes
from keras_microseg.measurement import phases as phase
from keras_microseg.measurement.particles import edge_lengths
from keras_microseg.metrics import instance, pixel
from keras_microseg.metrics.surface import score_surfaces
from keras_microseg.segmentation.decode import DecodeSettings
from keras_microseg.segmentation.linking import LinkSettings, apply_links, link_slices
from keras_microseg.segmentation.pseudo_labels import check_finite_slices
from keras_microseg.segmentation.separation import SeparationSettings, separate_blocks
from keras_microseg.segmentation.stitching import blocks, label_blocks
from keras_microseg.segmentation.voxel_classes import classify_volume, fit_halfway, fit_kmeans
from keras_microseg.workflows.steps import Progress, RunFolder, Step, plain, run_steps, write_json

logger = logging.getLogger(__name__)

METHODS = ("separate", "components", "maps", "slices")
KINDS = ("zarr", "tif", "npy")
_HOW: dict[str, Any] = {"metadata": {"lasting": False}}
_BYTES = 60  # per voxel of a block with its halo
_IN_MEMORY = 48  # bytes per voxel of two-point function and local thickness


@dataclasses.dataclass(frozen=True)
class LabelRun:
    """What to label and how.

    Attributes:
        source: mask, probability map, grey volume, or labels per slice (method "slices").
        method: "separate" cuts touching objects at their necks, "components" does not, "maps" decodes the maps of a
            network (foreground and distance), "slices" links labels that count anew in every slice.
        distance: distance map beside the foreground map; for "maps".
        threshold: grey value or probability above which a voxel is object; "otsu"; "halfway" between the two peaks of
            the histogram; "kmeans" (two classes); None = 0, or probability 0.5 for the method "maps".
        dark: objects are darker than the threshold.
        sigma, merge_ratio, min_size: see `SeparationSettings`.
        connectivity: 6 or 26 neighbours, for "components".
        halo: context of a block, voxels: more than the radius of the largest object and the smoothing.
        links: for "slices".
        kind, voxel_size, dataset, max_ram: see `StackSettings`.
    """

    source: str
    method: str = "separate"
    distance: str | None = None
    threshold: float | str | None = None
    dark: bool = False
    sigma: float = 2.0
    merge_ratio: float = 0.78
    min_size: int = 0
    connectivity: int = 26
    halo: int = 48
    links: LinkSettings = dataclasses.field(default_factory=LinkSettings)
    kind: str = "zarr"
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("connectivity", self.connectivity, (6, 26))
        check_choice("kind", self.kind, KINDS)
        check_number("halo", self.halo, minimum=0, integer=True)
        if isinstance(self.threshold, str):
            check_choice("threshold", self.threshold, ("otsu", "halfway", "kmeans"))
        if self.method == "maps" and self.distance is None:
            raise UserError("Decoding maps needs the distance map as well. Pass `distance`.")
        SeparationSettings(self.sigma, self.merge_ratio, self.min_size)
        parse_bytes(self.max_ram)


@dataclasses.dataclass(frozen=True)
class MeasureRun:
    """What to measure.

    Attributes:
        labels: label volume or mask (a mask has a phase and no particles).
        intensity: grey volume of the same shape, or None.
        particles: measure every particle.
        phases: measure the phase (all that is not 0): fraction, surface, connectivity, representative volume.
        structure: also two-point function and local thickness; these need the volume in memory.
        quantities: columns wanted; None = the default ones.
        voxel_size, dataset, max_ram: see `StackSettings`.
    """

    labels: str
    intensity: str | None = None
    particles: bool = True
    phases: bool = True
    structure: bool = False
    quantities: tuple[str, ...] | None = None
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)


def label(
    settings: LabelRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Number the objects of a volume.

    Args:
        settings: what and how.
        out: folder; gets `labels.zarr` (uint32, 0 = background) and `labels.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        Path of the labels.

    Raises:
        UserError, FileError: NaN slices, maps of different shape, too little memory for the halo.
    """
    source = io.open_volume(settings.source, dataset=settings.dataset, voxel_size=settings.voxel_size)
    folder = RunFolder(out, settings, command="volume label", resume=resume, overwrite=overwrite, progress=progress)
    target = folder.file(f"labels.{settings.kind}")

    def run(folder: RunFolder) -> None:
        if source.dtype.kind == "f":
            check_finite_slices(source.data, numbers=io.slice_numbers(source).tolist())
        facts = {"command": "volume label", "settings": plain(settings), "version": f"keras_microseg {__version__}"}
        chunks = (4, 512, 512) if settings.method == "slices" else None  # linked slices are written one by one
        with io.create_volume(
            target, source.shape, np.uint32, chunks=chunks, voxel_size=source.pixel_size, facts=facts,
            key=plain(settings),
        ) as labels:  # fmt: skip
            count = _label(source, labels, settings, folder)
            labels.add_facts({"objects": count})
        write_json(folder.file("labels.json"), {"objects": count, **facts})
        logger.info("%s: %d objects.", source.name, count)

    run_steps(folder, [Step("label", run)])
    return target


def _label(source: Image, labels: Any, settings: LabelRun, folder: RunFolder) -> int:
    memory = parse_bytes(settings.max_ram)
    if settings.method == "slices":
        links = link_slices((np.asarray(source.data[z]) for z in range(source.shape[0])), settings.links)
        apply_links(source.data, links, labels, fill_gaps=settings.links.fill_gaps)
        return links.num_objects
    if settings.method == "maps":
        distance = io.open_volume(settings.distance)
        if distance.shape != source.shape:
            raise FileError(settings.distance, f"has the shape {distance.shape}, the foreground {source.shape}.",
                            "Both maps must be of one volume.")  # fmt: skip
        maps = _StackedMaps([source.data, distance.data])
        level = 0.5 if settings.threshold is None else settings.threshold
        how = DecodeSettings(threshold=level, min_area=settings.min_size)
        block = _block(memory, settings.halo)
        decoded, areas = decode_large(
            maps, ["foreground", "distance"], how, folder.path / "scratch", block=block, halo=settings.halo
        )
        for box in blocks(source.shape, labels.chunks):
            labels[box] = decoded[box].astype(np.uint32)
        decoded.path.unlink()
        decoded.path.parent.rmdir()
        return len(areas) - 1
    mask = object_mask(source, settings, folder)
    if settings.method == "components":
        block = max(int((memory / 24) ** (1 / 3)), 16)
        count = label_blocks(mask, labels, block, connectivity=4 if settings.connectivity == 6 else 8)
        return _drop_small(labels, count, settings.min_size) if settings.min_size > 1 else count
    spacing = None if source.pixel_size is None else source.pixel_size.size
    how = SeparationSettings(settings.sigma, settings.merge_ratio, settings.min_size, spacing)
    heights = DiskArray(folder.path / "heights.dat", source.shape, np.float32)
    try:
        return separate_blocks(
            mask, labels, how, block=_block(memory, settings.halo), halo=settings.halo, heights=heights
        )
    finally:
        heights.path.unlink(missing_ok=True)


def object_mask(source: Image, settings: LabelRun, folder: RunFolder) -> Any:
    """Lazy mask of the objects by the threshold of `settings`."""
    threshold = settings.threshold
    if threshold == "kmeans":
        classes = DiskArray(folder.path / "classes.dat", source.shape, np.uint8)
        classify_volume(source.data, classes, fit_kmeans(source.data, 2), max_ram=settings.max_ram)
        mask = ThresholdView(classes, 0.5)
    else:
        if threshold == "otsu":
            threshold = volume_statistics(source.data, max_ram="256MB").otsu()
        elif threshold == "halfway":
            threshold = fit_halfway(source.data).values[0]
        mask = ThresholdView(source.data, 0.0 if threshold is None else threshold)
    return _Inverted(mask) if settings.dark else mask


def _block(memory: int, halo: int) -> int:
    edge = int((memory / _BYTES) ** (1 / 3)) - 2 * halo
    if edge < 16:
        least = (16 + 2 * halo) ** 3 * _BYTES / 1e6
        raise UserError(f"A context of {halo} voxels needs --max-ram {least:.0f}MB or more. Or use a smaller --halo.")
    return min(edge, 512)


def _drop_small(labels: Any, count: int, min_size: int) -> int:
    """Remove objects below `min_size` voxels chunk by chunk; returns how many are left."""
    sizes = np.zeros(count + 1, np.int64)
    boxes = list(blocks(labels.shape, labels.chunks))
    for box in boxes:
        sizes += np.bincount(np.asarray(labels[box]).ravel(), minlength=count + 1)
    kept = sizes >= min_size
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    for box in boxes:
        labels[box] = table[np.asarray(labels[box])]
    return int(kept.sum())


def measure(
    settings: MeasureRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Tables of a label volume.

    Args:
        settings: what to measure.
        out: folder; gets `particles.csv`, `sizes.csv`, `radial_distribution.csv`, `profile.csv`,
            `representative_volume.csv`, with `structure` also `two_point.csv` and `thickness.json`, and `volume.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The content of `volume.json`.

    Raises:
        UserError, FileError: a grey volume of another shape, voxel size known in the slices only, too little memory.
    """
    options = {"dataset": settings.dataset, "voxel_size": settings.voxel_size}
    labels = io.open_volume(settings.labels, **options)
    if labels.dtype.kind not in "iub":
        raise FileError(settings.labels, f"holds {labels.dtype}, no whole numbers.", "Label it first: volume label.")
    grey = None if settings.intensity is None else io.open_volume(settings.intensity)
    if grey is not None and grey.shape != labels.shape:
        raise FileError(
            settings.intensity, f"has the shape {grey.shape}, the labels {labels.shape}.", "Both must be one volume."
        )
    if settings.structure and parse_bytes(settings.max_ram) < labels.data.size * _IN_MEMORY:
        raise UserError(
            f"Two-point function and local thickness of {labels.shape} voxels need --max-ram "
            f"{labels.data.size * _IN_MEMORY / 1e9:.1f}GB. Raise it, measure a crop, or leave --structure out."
        )
    folder = RunFolder(out, settings, command="volume measure", resume=resume, overwrite=overwrite, progress=progress)
    facts: dict[str, Any] = {"labels": settings.labels, "shape": list(labels.shape)}
    facts["voxel_size"] = None if labels.pixel_size is None else str(labels.pixel_size)

    def particles(folder: RunFolder) -> None:
        table = measure_particles(labels, intensity=grey, quantities=settings.quantities)
        notes = {"command": "volume measure", "labels": settings.labels, "version": f"keras_microseg {__version__}"}
        io.write_table(folder.file("particles.csv"), table, facts=notes)
        facts["particles"] = len(table)
        facts["unit"] = table.attrs["unit"]
        if len(table) and "equivalent_diameter" in table:
            io.write_table(folder.file("sizes.csv"), summarize_sizes(table, ("equivalent_diameter",)), facts=notes)
            sizes = size_distribution(table, num_bootstrap=200)
            facts["equivalent_diameter"] = {"D10": sizes.D10, "D50": sizes.D50, "D90": sizes.D90, "mean": sizes.mean}
        if {"edge_weight", "touches_border"} <= set(table.columns):
            facts["number_density"] = phase.number_density(table)._asdict()
        if "centroid_z" in table and len(table) > 1:
            io.write_table(folder.file("radial_distribution.csv"), phase.radial_distribution(table), facts=notes)

    def phases(folder: RunFolder) -> None:
        planes = buffer_planes(labels.data)
        notes = {"command": "volume measure", "labels": settings.labels}
        share = phase.phase_fraction(planes)
        profile = pd.DataFrame({"slice": io.slice_numbers(labels), "fraction": share.profile})
        io.write_table(folder.file("profile.csv"), profile, facts=notes)
        facts["fraction"] = {"value": share.value, "low": share.low, "high": share.high}
        facts["porosity"] = 1 - share.value
        facts["surface"] = phase.specific_surface(planes, pixel_size=labels.pixel_size)._asdict()
        facts["connectivity"] = phase.phase_connectivity(planes)._asdict()
        io.write_table(folder.file("representative_volume.csv"), phase.representative_volume(planes), facts=notes)

    def structure(folder: RunFolder) -> None:
        mask = np.asarray(labels.data[...]) != 0
        pairs = phase.two_point_function(mask, pixel_size=labels.pixel_size)
        io.write_table(folder.file("two_point.csv"), pairs, facts={"command": "volume measure"})
        if mask.any() and not mask.all():
            thick = phase.local_thickness(mask, pixel_size=labels.pixel_size)[mask]
            facts["thickness"] = {"mean": float(thick.mean()), "median": float(np.median(thick))}

    def finish(folder: RunFolder) -> None:
        write_json(folder.file("volume.json"), facts)

    steps = [Step("particles", particles, always=True)] if settings.particles else []
    steps += [Step("phases", phases, always=True)] if settings.phases else []
    steps += [Step("structure", structure, always=True)] if settings.structure else []
    run_steps(folder, [*steps, Step("write", finish, always=True)])
    return plain(facts)


@dataclasses.dataclass(frozen=True)
class VolumeScores:
    """Scores of a label volume against the truth.

    Attributes:
        voxels: Dice, IoU, precision, recall, accuracy of all objects against the background.
        surface: distances between both surfaces (`metrics.surface.SurfaceScores`) in `unit`.
        unit: of the voxel size of the truth, else "px".
        objects: `metrics.instance.Match` at the threshold, without the pairs.
        average_precision: mean over IoU 0.5 to 0.95.
        split, merged, missed, spurious: see `count_split_merge`.
        true_objects, found_objects: numbers.
    """

    voxels: dict[str, float]
    surface: dict[str, float]
    unit: str
    objects: dict[str, float]
    average_precision: float
    split: int
    merged: int
    missed: int
    spurious: int
    true_objects: int
    found_objects: int


def evaluate(
    predicted: str | os.PathLike | np.ndarray,
    truth: str | os.PathLike | np.ndarray,
    out: str | os.PathLike | None = None,
    *,
    threshold: float = 0.5,
    min_size: int = 0,
    max_ram: str = "8GB",
) -> VolumeScores:
    """Score a label volume (both volumes are read into memory).

    Args:
        predicted, truth: label volumes: files or arrays of one shape.
        out: also write the scores to this JSON file.
        threshold: IoU above which two objects are one.
        min_size: ignore objects of fewer voxels.
        max_ram: refused when the volumes need more (24 bytes per voxel).

    Raises:
        UserError, FileError: shapes differ, no labels, too little memory.
    """
    arrays, size = [], None
    for value in (truth, predicted):
        if not isinstance(value, np.ndarray):
            image = io.open_volume(value)
            size = size or image.pixel_size
        array = value if isinstance(value, np.ndarray) else image.data
        if array.size * 24 > parse_bytes(max_ram):
            raise UserError(f"Scoring {tuple(array.shape)} voxels needs --max-ram {array.size * 24 / 1e9:.1f}GB.")
        arrays.append(np.asarray(array[...]))
    if arrays[0].shape != arrays[1].shape:
        raise UserError(
            f"Truth and prediction must be of one volume. Received: shapes {arrays[0].shape} and {arrays[1].shape}"
        )
    if min_size > 1:
        arrays = [_without_small(array, min_size) for array in arrays]
    table = instance.overlap_table(*arrays)
    found = instance.match(table, threshold=threshold)
    counts = pixel.count(*arrays)
    parts = instance.count_split_merge(table)
    surface = score_surfaces(*arrays, edge_lengths(size, 3))
    scores = VolumeScores(
        voxels={f.__name__: float(f(counts)) for f in (pixel.dice, pixel.iou, pixel.precision, pixel.recall,
                                                       pixel.accuracy)},
        surface=dataclasses.asdict(surface),
        unit="px" if size is None else size.unit,
        objects={name: getattr(found, name) for name in ("precision", "recall", "f1", "mean_iou", "panoptic_quality",
                                                         "tp", "fp", "fn", "threshold")},
        average_precision=instance.average_precision(table),
        **parts._asdict(),
        true_objects=len(table.true_labels),
        found_objects=len(table.predicted_labels),
    )  # fmt: skip
    if out is not None:
        source = None if isinstance(truth, np.ndarray) else str(truth)
        facts = {"command": "volume evaluate", "truth": source, "version": f"keras_microseg {__version__}"}
        write_json(out, {**facts, **plain(scores)})
    return scores


def _without_small(labels: np.ndarray, min_size: int) -> np.ndarray:
    ids, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    return np.where(counts >= min_size, ids, 0)[index].reshape(labels.shape)


class _StackedMaps:
    """Maps of one shape as channels of one lazy array."""

    def __init__(self, maps: list[Any]):
        self.maps, self.shape = maps, (*maps[0].shape, len(maps))

    def __getitem__(self, window: Any) -> np.ndarray:
        return np.stack([np.asarray(one[window]) for one in self.maps], axis=-1)


class _Inverted:
    """The background of a mask."""

    def __init__(self, mask: Any):
        self.mask, self.shape, self.dtype = mask, tuple(mask.shape), np.dtype(np.uint8)

    def __getitem__(self, key: Any) -> np.ndarray:
        return 1 - np.asarray(self.mask[key])
