"""Workflow `particles link`: labels of slices, detected one by one, to the particles of a volume."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import __version__, io
from keras_microseg.checks import FileError, check_choice, check_number, parse_bytes
from keras_microseg.image import LazyArray, PixelSize
from keras_microseg.inference.views import DiskArray
from keras_microseg.io.volume_writer import CHUNKS
from keras_microseg.segmentation.linking import Links, LinkSettings, apply_links, link_slices
from keras_microseg.segmentation.view_fusion import fuse_views
from keras_microseg.workflows.steps import Progress, RunFolder, Step, plain, run_steps, write_json

logger = logging.getLogger(__name__)

AXES = ("z", "y", "x")
_SUFFIXES = (".zarr", ".tif", ".tiff", ".npy", ".h5")
_TABLES = ("detections.csv", "objects.csv", "instances.csv")


@dataclasses.dataclass(frozen=True)
class LinkRun:
    """What to link and how.

    Attributes:
        source: folder of label images (one per slice, natural order), a label volume whose labels count anew in every
            slice, or a folder that holds one of these as `labels` (as `particles detect` writes it). A folder with `z`,
            `y` and `x` (or `labels_z`, ...), two or three of them, is linked along each axis and fused. Label volumes
            are in the order z, y, x whatever the axis; label images are the slices along their axis.
        axis: along which the slices of a single source follow each other.
        min_score: labels with a lower score are left out; needs `detections.csv` or `objects.csv` beside the labels,
            with columns `slice` (or `image`), `label`, `score`.
        links: see `segmentation.linking.LinkSettings`.
        min_votes: views that must agree on a voxel; None = more than half.
        min_size: smaller particles are left out, voxels.
        kind: of the result: `zarr`, `tif` or `npy`.
        voxel_size: see `StackSettings`.
    """

    source: str
    axis: str = "z"
    min_score: float = 0.0
    links: LinkSettings = dataclasses.field(default_factory=lambda: LinkSettings(min_slices=3))
    min_votes: int | None = None
    min_size: int = 0
    kind: str = "zarr"
    voxel_size: str | None = None
    max_ram: str = dataclasses.field(default="1GB", metadata={"lasting": False})

    def __post_init__(self) -> None:
        check_choice("axis", self.axis, AXES)
        check_choice("kind", self.kind, ("zarr", "tif", "npy"))
        check_number("min_score", self.min_score, minimum=0, maximum=1)
        check_number("min_size", self.min_size, minimum=0, integer=True)
        parse_bytes(self.max_ram)


def link(
    settings: LinkRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Link the slices of a volume.

    Args:
        settings: what and how.
        out: folder; gets `labels.zarr` (uint32, 0 = background), `objects.csv` (first and last slice, slices, gaps and
            voxels of every particle) and `run.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        Path of the labels.

    Raises:
        UserError, FileError: no labels, slices of different size, scores asked for but not there.
    """
    views = open_views(settings)
    if min(len(view) for view in views) < 2:
        raise FileError(
            settings.source, "holds one slice; there is nothing to link.",
            "Name the folder with the label images of all slices (`particles detect --volume` writes it).",
        )  # fmt: skip
    folder = RunFolder(out, settings, command="particles link", resume=resume, overwrite=overwrite, progress=progress)
    target = folder.file(f"labels.{settings.kind}")
    voxel_size = next((view.size for view in views if view.size is not None), None)
    facts: dict[str, Any] = {}

    def run(folder: RunFolder) -> None:
        shape = views[0].shape
        linked: list[DiskArray] = []
        try:
            for number, view in enumerate(views):
                scratch = DiskArray(folder.path / f"linked_{view.axis}.dat", shape, np.uint32)
                linked.append(scratch)
                facts[f"along_{view.axis}"] = _link_view(view, scratch, settings, folder, number, len(views))
            note = {
                "command": "particles link",
                "settings": plain(settings),
                "version": f"keras_microseg {__version__}",
            }
            with io.create_volume(
                target, shape, np.uint32, voxel_size=voxel_size, facts=note, key=plain(settings)
            ) as labels:
                if len(linked) > 1:
                    fused = DiskArray(folder.path / "fused.dat", shape, np.uint32)
                    linked.append(fused)
                    fuse_views(linked[:-1], fused, min_votes=settings.min_votes)
                count = _keep_large(linked[-1], labels, settings.min_size)
                labels.add_facts({"objects": count})
            facts["objects"] = count
        finally:
            for scratch in linked:
                scratch.path.unlink(missing_ok=True)
        table = object_table(io.open_volume(target).data)
        io.write_table(folder.file("objects.csv"), table, facts={"command": "particles link", "slices": "along z"})
        record = {key: value for key, value in folder.manifest.items() if key not in ("steps", "outputs")}
        write_json(folder.file("run.json"), {**record, "settings": settings, **facts})
        logger.info("%s: %d particles.", settings.source, count)

    run_steps(folder, [Step("link", run)])
    return target


@dataclasses.dataclass
class SliceView:
    """Label slices of a volume along one axis.

    Attributes:
        labels: (D, H, W) lazy array, z first; or single images (N, rows, columns) in order along `axis`.
        axis: along which labels count anew.
        size: voxel size or None.
        dropped: slice -> labels to leave out.
    """

    labels: Any
    axis: str
    size: PixelSize | None
    dropped: dict[int, np.ndarray]

    @property
    def shape(self) -> tuple[int, ...]:
        """(z, y, x) of the volume."""
        if not isinstance(self.labels, LabelFiles):
            return tuple(self.labels.shape)
        count, *plane = self.labels.shape
        plane.insert(AXES.index(self.axis), count)
        return tuple(plane)

    def __len__(self) -> int:
        return self.shape[AXES.index(self.axis)]

    def __getitem__(self, number: int) -> np.ndarray:
        index: list[Any] = [slice(None)] * 3
        index[0 if isinstance(self.labels, LabelFiles) else AXES.index(self.axis)] = int(number)
        plane = np.asarray(self.labels[tuple(index)])
        gone = self.dropped.get(int(number))
        return plane if gone is None else np.where(np.isin(plane, gone), 0, plane)


class _Turned:
    """A volume seen as slices along another axis."""

    def __init__(self, volume: Any, axis: str):
        self.volume, self.place = volume, AXES.index(axis)
        self.shape, self.dtype = tuple(volume.shape), np.dtype(volume.dtype)

    def __len__(self) -> int:
        return self.shape[self.place]

    def _index(self, number: int) -> tuple[Any, ...]:
        return tuple(int(number) if axis == self.place else slice(None) for axis in range(3))

    def __getitem__(self, number: int) -> np.ndarray:
        return np.asarray(self.volume[self._index(number)])

    def __setitem__(self, number: int, plane: np.ndarray) -> None:
        self.volume[self._index(number)] = plane


def open_views(settings: LinkRun) -> list[SliceView]:
    """The label slices that `settings.source` holds, one entry per axis."""
    source = Path(settings.source)
    found = {axis: _part(source, axis, f"labels_{axis}") for axis in AXES} if source.is_dir() else {}
    found = {axis: path for axis, path in found.items() if path is not None}
    if len(found) < 2:
        found = {settings.axis: _part(source, "labels") or source}
    views = []
    for axis, path in found.items():
        labels, size, names = open_slices(path, settings.voxel_size)
        dropped = {}
        if settings.min_score > 0:
            dropped = _low_scores(path, source, names, settings.min_score)
        view = SliceView(labels, axis, size, dropped)
        middle = view[len(view) // 2]
        if len(np.unique(middle)) > middle.size / 16 + 16:
            raise FileError(
                path, f"holds {len(np.unique(middle))} different values in its middle slice: grey values, no labels.",
                "Detect or label the particles first (particles detect, volume label).",
            )  # fmt: skip
        views.append(view)
    if len({view.shape for view in views}) > 1:
        shapes = ", ".join(f"{view.axis}: {view.shape}" for view in views)
        raise FileError(
            source, f"holds views of different shape ({shapes}).", "Each must be the whole volume, z first."
        )
    return views


def open_slices(path: Path, voxel_size: str | None) -> tuple[Any, PixelSize | None, list[str]]:
    """`(labels, voxel size, names of the slices)` of a label volume or a folder of label images."""
    if path.is_dir() and not io.is_zarr(path):
        files = [file for file in io.find_images(path) if file.suffix.lower() not in (".json", ".csv")]
        labels = LabelFiles(files)
        size = None if voxel_size is None else PixelSize.parse(voxel_size, ndim=3)
        return labels, size, [file.stem for file in files]
    image = io.open_volume(path, voxel_size=voxel_size)
    if image.dtype.kind not in "iub":
        raise FileError(path, f"holds {image.dtype}, no whole numbers.", "Give labels, one number per particle.")
    return image.data, image.pixel_size, [str(number) for number in io.slice_numbers(image)]


class LabelFiles(LazyArray):
    """One label image per slice; types may differ from file to file, as few or many labels need them.

    Raises:
        FileError: a file that is no label image, or of another size than the first.
    """

    dtype = np.dtype(np.uint32)

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)
        first = io.open_image(self.paths[0])
        self.shape = (len(self.paths), *first.spatial_shape[-2:])

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([part.stop - part.start for part in block], self.dtype)
        for place, number in enumerate(range(block[0].start, block[0].stop)):
            image = io.open_image(self.paths[number])
            if image.axes != "YX" or image.dtype.kind not in "iub":
                raise FileError(
                    self.paths[number], f"is no label image (axes {image.axes}, {image.dtype}).",
                    "Labels are whole numbers, one per particle, 0 = background.",
                )  # fmt: skip
            if tuple(image.shape) != self.shape[1:]:
                raise FileError(
                    self.paths[number], f"has the size {image.shape}, {self.paths[0].name} has {self.shape[1:]}.",
                    "All slices must have one size.",
                )  # fmt: skip
            out[place] = np.asarray(image.data[block[1:]])
        return out


def _part(folder: Path, *names: str) -> Path | None:
    for name in names:
        for path in (folder / name, *(folder / f"{name}{suffix}" for suffix in _SUFFIXES)):
            if path.is_dir() and not io.is_zarr(path) and (path / "labels").is_dir():
                return path / "labels"
            if path.exists():
                return path
    return None


def _low_scores(path: Path, source: Path, names: list[str], least: float) -> dict[int, np.ndarray]:
    """Slice -> labels whose score is below `least`."""
    places = [folder / name for folder in (path, path.parent, source) for name in _TABLES]
    table_path = next((place for place in places if place.is_file()), None)
    if table_path is None:
        raise FileError(source, f"holds no scores ({', '.join(_TABLES)}).", "Leave --min-score out.")
    table = pd.read_csv(table_path, comment="#")
    key = next((name for name in ("slice", "image") if name in table), None)
    if key is None or not {"label", "score"} <= set(table):
        raise FileError(table_path, f"has the columns {', '.join(table)}.", "It needs slice or image, label, score.")
    low = table[table["score"] < least]
    index = {name: place for place, name in enumerate(names)}
    dropped: dict[int, np.ndarray] = {}
    for name, part in low.groupby(key):
        place = index.get(str(name)) if key == "image" or str(name) in index else int(name)
        if place is None:
            place = index.get(Path(str(name)).stem)
        if place is not None:
            dropped[place] = part["label"].to_numpy()
    return dropped


def _link_view(
    view: SliceView, out: DiskArray, settings: LinkRun, folder: RunFolder, number: int, total: int
) -> dict[str, Any]:
    def planes() -> Any:
        for place in range(len(view)):
            if folder.progress and place % 16 == 0:
                folder.progress("link", number * len(view) + place, total * len(view), f"{view.axis} = {place}")
            yield view[place]

    links: Links = link_slices(planes(), settings.links)
    apply_links(view, links, _Turned(out, view.axis), fill_gaps=settings.links.fill_gaps)
    return {
        "slices": len(view), "labels": int(sum((table > 0).sum() for table in links.tables)),
        "objects": links.num_objects, "gaps_bridged": len(links.gaps), "parts_joined": links.repaired,
        "merged_cut": len(links.cuts),
    }  # fmt: skip


def _keep_large(source: Any, out: Any, min_size: int) -> int:
    """Copy labels without those below `min_size` voxels, renumbered; returns their number."""
    sizes = np.zeros(1, np.int64)
    step = CHUNKS[0]
    for top in range(0, source.shape[0], step):
        counts = np.bincount(np.asarray(source[top : top + step]).ravel(), minlength=len(sizes))
        counts[: len(sizes)] += sizes
        sizes = counts
    kept = sizes >= max(min_size, 1)
    kept[0] = False
    table = np.where(kept, np.cumsum(kept), 0).astype(np.uint32)
    for top in range(0, source.shape[0], step):
        out[top : min(top + step, source.shape[0])] = table[np.asarray(source[top : top + step])]
    return int(kept.sum())


def object_table(labels: Any) -> pd.DataFrame:
    """`label`, `first_slice`, `last_slice`, `slices` (in which it is) and `voxels` of every label, plane by plane."""
    parts = []
    for z in range(labels.shape[0]):
        ids, counts = np.unique(np.asarray(labels[z]), return_counts=True)
        parts.append(pd.DataFrame({"label": ids.astype(np.int64), "slice": z, "voxels": counts}))
    table = pd.concat(parts, ignore_index=True)
    table = table[table["label"] > 0]
    found = table.groupby("label").agg(
        first_slice=("slice", "min"), last_slice=("slice", "max"), slices=("slice", "size"), voxels=("voxels", "sum")
    )
    return found.reset_index()
