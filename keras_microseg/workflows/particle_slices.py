"""Workflow `particles detect --volume`: a detector over the slices of a volume, for `particles link`."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.image import Image, PixelSize
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_facts, run_steps

TABLE = "detections.csv"
_LOOK = 16


@dataclasses.dataclass(frozen=True)
class SliceSettings:
    """What to detect.

    Attributes:
        volume: anything `io.open_volume` knows.
        model: file of `particles train`.
        axis: direction in which the slices follow each other: "z", "y" or "x".
        min_score: least score of an object; None = the model's.
        voxel_size: edge lengths, where the volume does not tell.
        scale: factor by which slices are enlarged; None = the model's.
    """

    volume: str
    model: str
    axis: str = "z"
    min_score: float | None = None
    voxel_size: str | None = None
    scale: float | None = None

    def __post_init__(self) -> None:
        check_choice("axis", self.axis, ("z", "y", "x"))
        if self.min_score is not None:
            check_number("min_score", self.min_score, minimum=0, maximum=1)
        if self.scale is not None:
            check_number("scale", self.scale, minimum=0, exclusive=True)


def detect_slices(
    volume: str | os.PathLike,
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    axis: str = "z",
    min_score: float | None = None,
    pixel_size: str | None = None,
    scale: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Detect particles slice by slice; one slice is in memory at a time.

    Grey values are stretched by percentiles of the whole volume (16 slices of it), so that all slices look alike.

    Args:
        volume, model, axis, min_score, scale: see `SliceSettings`.
        pixel_size: its `voxel_size`.
        out: folder; gets `labels/` (a label image per slice, labels count anew in each) and `detections.csv` (`slice`,
            `label`, `score`, `class`, `area`, `border`, `cut`, box): what `particles link` reads.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress("detect", done, total, item)`.

    Returns:
        The folder of the labels.

    Raises:
        UserError, FileError: not a volume, not a detector.
    """
    settings = SliceSettings(os.fspath(volume), os.fspath(model), axis, min_score, pixel_size, scale)
    image = io.open_volume(settings.volume, voxel_size=settings.voxel_size)
    if len(image.spatial_axes) != 3:
        raise UserError(f"{volume}: is no volume (axes {image.axes}). Leave out --volume for images.")
    folder = RunFolder(out, settings, command="particles detect", resume=resume, overwrite=overwrite, progress=progress)
    place = image.spatial_axes.index(axis.upper())
    count = image.spatial_shape[place]
    width = len(str(count - 1))
    names = {f"{axis}{index:0{width}d}": index for index in range(count)}
    source = Path(settings.volume)

    def detect(folder: RunFolder) -> None:
        from keras_microseg import backend

        backend.select()
        from keras_microseg.inference.instances import InstancePredictor
        from keras_microseg.intensity import stretch

        folder.manifest.update(run_facts(), device=str(backend.configure_device()))
        predictor = InstancePredictor(settings.model)
        chosen = np.unique(np.linspace(0, count - 1, min(count, _LOOK)).astype(int))
        values = np.concatenate([_slice(image, place, int(k)).ravel()[::7] for k in chosen])
        limits = tuple(float(v) for v in np.nanpercentile(values, predictor.contrast))
        size = image.pixel_size
        plane = None if size is None else _plane_size(size, place)
        least = predictor.card.get("min_score", 0.5) if settings.min_score is None else settings.min_score
        enlarged = float(predictor.card.get("scale", 1.0)) if settings.scale is None else settings.scale

        def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
            grey = stretch(_slice(image, place, names[name]), limits)
            found = predictor(grey, min_score=least, scale=enlarged, stretched=True)
            labels = folder.file("labels", f"{name}.tif")
            io.write_labels(labels, found.labels, pixel_size=plane, origin={"source": str(source), "slice": name})
            table = folder.file("tables", f"{name}.csv")
            found.table.insert(0, "slice", names[name])
            with io.atomic_path(table) as temporary:
                found.table.to_csv(temporary, index=False)
            facts = {"objects": len(found.table), "full_tiles": found.full_tiles}
            return facts, [labels, table]

        folder.for_each("detect", dict.fromkeys(names, source), work)

    def collect(folder: RunFolder) -> None:
        parts = [pd.read_csv(path) for name in names if (path := folder.path / "tables" / f"{name}.csv").is_file()]
        table = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()
        facts = {"command": "particles detect", "axis": axis, **run_facts()}
        io.write_table(folder.file(TABLE), table, facts=facts)

    run_steps(folder, [Step("detect", detect), Step("collect", collect, always=True)])
    return folder.path / "labels"


def _slice(image: Image, place: int, index: int) -> np.ndarray:
    window = tuple(slice(index, index + 1) if k == place else slice(None) for k in range(3))
    array = np.asarray(image.read(window))
    return array.squeeze(place) if array.ndim == 3 else array.squeeze(place).mean(axis=-1, dtype=np.float32)


def _plane_size(size: PixelSize, place: int) -> PixelSize:
    values = tuple(value for k, value in enumerate(size.size) if k != place)
    return dataclasses.replace(size, size=values)
