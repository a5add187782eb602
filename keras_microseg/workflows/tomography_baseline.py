"""Workflow `volume baseline`: classes of a volume without a network, slab by slab, for comparison or as a result."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import __version__, io
from keras_microseg.checks import FileError, UserError, check_choice, check_number, parse_bytes
from keras_microseg.image import Image
from keras_microseg.intensity import volume_statistics
from keras_microseg.segmentation.depth_maps import (
    GradientEnergy,
    StructureCoherence,
    cumulative_depth,
    fit_energy_threshold,
)
from keras_microseg.segmentation.pseudo_labels import check_finite_slices
from keras_microseg.segmentation.voxel_classes import (
    FEATURES,
    PixelForest,
    Thresholds,
    classify_volume,
    fit_halfway,
    fit_kmeans,
    fit_multi_otsu,
    fit_pixel_forest,
)
from keras_microseg.workflows.steps import Progress, RunFolder, Step, plain, read_json, run_steps, write_json

logger = logging.getLogger(__name__)

METHODS = ("kmeans", "otsu", "halfway", "forest", "gradient", "coherence", "depth")
_MAPS = ("gradient", "coherence", "depth")
_HOW: dict[str, Any] = {"metadata": {"lasting": False}}
_DEPTH_BYTES = 40  # per voxel of the cumulative map, in memory


@dataclasses.dataclass(frozen=True)
class BaselineRun:
    """What to classify and how.

    Attributes:
        source: grey volume.
        method: `"kmeans"`; `"otsu"` (multi-Otsu above two classes); `"halfway"` between the peaks of the histogram;
            `"forest"` (random forest, learns from `labels`); `"gradient"` (energy of the grey gradient within
            `half_width` slices), `"coherence"` (structure tensor), both cut by Otsu; `"depth"` (the cumulative map of
            the older scripts, above its 75th percentile).
        classes: number of classes, for k-means and Otsu.
        features: of k-means and forest, out of `voxel_classes.FEATURES`; None = the method's own.
        labels: classes of some voxels (others 255), or labels of some slices named by `labelled`; for the forest.
        labelled: annotated slices, counted from 0; None = all voxels that are not 255.
        half_width, isotropic: see `GradientEnergy`.
        window: see `StructureCoherence`.
        seed: of k-means and forest.
        kind, voxel_size, dataset, max_ram, report: see `StackSettings`.
    """

    source: str
    method: str = "kmeans"
    classes: int = 2
    features: tuple[str, ...] | None = None
    labels: str | None = None
    labelled: tuple[int, ...] | None = None
    half_width: int = 5
    isotropic: bool = False
    window: float = 3.0
    seed: int = 0
    kind: str = "zarr"
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)
    report: bool = dataclasses.field(default=True, **_HOW)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        check_choice("kind", self.kind, ("zarr", "tif", "npy"))
        check_number("classes", self.classes, minimum=2, maximum=255 if self.method == "kmeans" else 5, integer=True)
        if self.classes > 2 and self.method not in ("kmeans", "otsu", "forest"):
            raise UserError(f"method={self.method!r} gives two classes. Received: classes={self.classes}")
        for name in self.features or ():
            check_choice("features", name, FEATURES)
        if (self.labels is None) == (self.method == "forest"):
            raise UserError("`labels` are what the forest learns from; method='forest' needs them, others do not.")
        GradientEnergy(self.half_width)
        StructureCoherence(window=self.window)
        parse_bytes(self.max_ram)


def baseline(
    settings: BaselineRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Classes of a volume by a classical method.

    Args:
        settings: what and how.
        out: folder; gets `classes.zarr` (uint8, 0 = lowest grey value or map), for the maps also `map.zarr` (float32),
            `baseline.json` and `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        Path of the classes.

    Raises:
        UserError, FileError: NaN slices, labels of another shape, too little memory.
    """
    source = io.open_volume(settings.source, dataset=settings.dataset, voxel_size=settings.voxel_size)
    if settings.method == "depth" and source.data.size * _DEPTH_BYTES > parse_bytes(settings.max_ram):
        raise UserError(
            f"The cumulative map is made in memory and needs --max-ram {source.data.size * _DEPTH_BYTES / 1e9:.1f}GB. "
            "Raise it, or use the method 'gradient', which works slab by slab."
        )
    folder = RunFolder(out, settings, command="volume baseline", resume=resume, overwrite=overwrite, progress=progress)
    target = folder.file(f"classes.{settings.kind}")
    facts = {"command": "volume baseline", "settings": plain(settings), "version": f"keras_microseg {__version__}"}
    common = {"voxel_size": source.pixel_size, "facts": facts, "key": plain(settings)}

    def run(folder: RunFolder) -> None:
        check_finite_slices(source.data, numbers=io.slice_numbers(source).tolist(), max_ram=settings.max_ram)
        grey, found = source.data, {}
        if settings.method in _MAPS:
            path = folder.file(f"map.{settings.kind}")
            with io.create_volume(path, source.shape, np.float32, **common) as values:
                _write_map(source, values, settings)
            grey = io.open_volume(path).data
        method = _fit(source, grey, settings)
        found["thresholds"] = list(getattr(method, "values", ()))
        with io.create_volume(target, source.shape, np.uint8, **common) as classes:
            classify_volume(grey, classes, method, max_ram=settings.max_ram)
        shares = volume_statistics(io.open_volume(target).data, max_ram="256MB")
        found["shares"] = (shares.counts / shares.count)[: method.num_classes].tolist()
        write_json(folder.file("baseline.json"), {**facts, **found})
        logger.info("%s: %s, shares %s.", source.name, settings.method, found["shares"])

    def report(folder: RunFolder) -> None:
        _write_page(folder, source, target, settings)

    run_steps(folder, [Step("classify", run), *([Step("report", report)] if settings.report else [])])
    return target


def _write_page(folder: RunFolder, source: Image, target: Path, settings: BaselineRun) -> None:
    from keras_microseg.report.page import Section, write_page
    from keras_microseg.report.volumes import orthogonal_views, volume_sections

    found = read_json(folder.path / "baseline.json")
    statistics = volume_statistics(source.data, max_ram=settings.max_ram)
    is_map = settings.method in _MAPS
    marks = {} if is_map else {f"threshold {i + 1}": value for i, value in enumerate(found["thresholds"])}
    facts = {"Method": settings.method, "Thresholds": ", ".join(f"{value:.5g}" for value in found["thresholds"])}
    sections = volume_sections(
        source, statistics, labels=io.open_volume(target), marks=marks, facts=facts, outlines="mask"
    )
    if is_map:
        values = io.open_volume(folder.path / f"map.{settings.kind}")
        limits = [volume_statistics(values.data, max_ram=settings.max_ram).percentile(p) for p in (0.1, 99.9)]
        views = orthogonal_views(values, limits=tuple(limits))
        sections.insert(0, Section(f"Map from {limits[0]:.4g} (black) to {limits[1]:.4g} (white)", views))
    cards = {f"class {number}": f"{share:.2%}" for number, share in enumerate(found["shares"])}
    write_page(
        folder.file("report.html"), "Classes without a network", sections, cards=cards,
        subtitle=f"{source.name} \u00b7 {folder.manifest['package']}",
    )  # fmt: skip


def _write_map(source: Image, out: Any, settings: BaselineRun) -> None:
    if settings.method == "depth":
        depth = cumulative_depth(np.asarray(source.data[...]))[1]
        out[...] = depth.astype(np.float32)
        return
    method = (
        GradientEnergy(settings.half_width, settings.isotropic)
        if settings.method == "gradient"
        else StructureCoherence(window=settings.window)
    )
    classify_volume(source.data, out, method, max_ram=settings.max_ram)


def _fit(source: Image, grey: Any, settings: BaselineRun) -> Any:
    """The method, ready to be called on blocks of `grey`, the volume or its map."""
    if settings.method == "kmeans":
        options = {} if settings.features is None else {"features": settings.features}
        return fit_kmeans(grey, settings.classes, seed=settings.seed, **options)
    if settings.method == "otsu":
        return fit_multi_otsu(grey, settings.classes)
    if settings.method == "halfway":
        return fit_halfway(grey)
    if settings.method == "forest":
        return _fit_forest(source, settings)
    if settings.method == "depth":
        return Thresholds((volume_statistics(grey, max_ram="256MB").percentile(75),))
    return Thresholds((fit_energy_threshold(grey),))


def _fit_forest(source: Image, settings: BaselineRun) -> PixelForest:
    labels = io.open_volume(settings.labels)
    if labels.shape != source.shape:
        raise FileError(settings.labels, f"has {labels.shape} voxels, the volume {source.shape}.", "They must agree.")
    options = {} if settings.features is None else {"features": settings.features}
    if settings.labelled is None:
        return fit_pixel_forest(source.data[...], labels.data[...], seed=settings.seed, **options)
    far = [z for z in settings.labelled if not 0 <= z < source.shape[0]]
    if far:
        raise UserError(f"The volume has the slices 0 to {source.shape[0] - 1}. Received: labelled={far}")
    margin = 14  # more than any feature reaches
    grey, classes = [], []
    for z in settings.labelled:  # the slice with its surroundings, of which only the slice itself is annotated
        low, high = max(z - margin, 0), min(z + margin + 1, source.shape[0])
        grey.append(np.asarray(source.data[low:high]))
        known = np.full(grey[-1].shape, 255, np.uint8)
        known[z - low] = np.asarray(labels.data[z : z + 1])[0]
        classes.append(known)
    return fit_pixel_forest(np.concatenate(grey), np.concatenate(classes), seed=settings.seed, **options)
