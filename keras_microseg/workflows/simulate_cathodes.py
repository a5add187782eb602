"""Workflow `particles simulate`: battery cathodes with exactly known particles, slices to train on or a volume."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.image import PixelSize
from keras_microseg.simulation.cathodes import CRACK, PHASES, CathodePlan, CathodeSettings, plan_cathode
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json

_SLAB = 64


@dataclasses.dataclass(frozen=True)
class CathodeRun:
    """What to draw.

    Attributes:
        count: number of slices, each through a cathode of its own; None = one volume of `cathode.shape`.
        cathode: what they look like; of slices, the last two numbers of `shape` are the size.
        voxel_size: edge length given to the voxels, with unit.
        kind: of a volume: `zarr`, `tif` or `npy`.
    """

    count: int | None = 20
    cathode: CathodeSettings = dataclasses.field(default_factory=CathodeSettings)
    voxel_size: str = "70 nm"
    kind: str = "zarr"

    def __post_init__(self) -> None:
        if self.count is not None:
            check_number("count", self.count, minimum=1, integer=True)
        check_choice("kind", self.kind, ("zarr", "tif", "npy"))
        object.__setattr__(self, "voxel_size", str(PixelSize.parse(self.voxel_size, ndim=3)))
        if len(set(PixelSize.parse(self.voxel_size, ndim=3).size)) > 1:
            raise UserError(f"Cathodes are drawn in cubic voxels. Received: voxel_size={self.voxel_size!r}")


def simulate_cathodes(
    settings: CathodeRun,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw cathodes and write them with their truth.

    Args:
        settings: what to draw.
        out: folder. Of slices: `images/NAME.tif`, `labels/NAME.tif`, `phases/NAME.tif` and `objects.csv` (one row per
            particle of every slice). Of a volume: `grey`, `labels`, `phases` (`.zarr`, `.tif` or `.npy`, written slab
            by slab) and `particles.csv` (one row per particle, see `CathodePlan.table`, with `volume` and `damage` as
            counted). Both: `run.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The folder.
    """
    folder = RunFolder(
        out, settings, command="particles simulate", resume=resume, overwrite=overwrite, progress=progress
    )
    steps = [Step("draw", _draw_volume)] if settings.count is None else [Step("draw", _draw_slices)]
    run_steps(folder, [*steps, Step("sum up", _sum_up, always=True)])
    return folder.path


def draw_slice(settings: CathodeSettings, number: int) -> tuple[Any, pd.DataFrame]:
    """Slice `number`: the middle plane of a cathode of its own, and a table of its particles.

    Returns:
        `(block, table)`: arrays (Y, X); `label`, `state`, `whole`, `area` (px), `crack_fraction` of the section, and
        the `detachment` of the whole particle.
    """
    depth = int(np.ceil(2 * settings.diameter * (1 + 2 * settings.spread)))
    seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    plan = plan_cathode(dataclasses.replace(settings, shape=(depth, *settings.shape[1:]), seed=seed))
    middle = depth // 2
    block = plan.read((slice(middle, middle + 1), *(slice(0, n) for n in settings.shape[1:])))
    block = type(block)(*(part[0] for part in block))
    counts, cracks = _count(block.labels, block.phases, len(plan.radii))
    table = plan.table(np.flatnonzero(counts[1:]) + 1)[["label", "state", "detachment"]]
    table.insert(2, "area", counts[table["label"]])
    table.insert(3, "crack_fraction", cracks[table["label"]] / np.maximum(counts[table["label"]], 1))
    edge = np.concatenate([block.labels[[0, -1]].ravel(), block.labels[:, [0, -1]].ravel()])
    table.insert(4, "whole", ~table["label"].isin(edge))
    return block, table


def _draw_slices(folder: RunFolder) -> None:
    settings: CathodeRun = folder.settings
    size = PixelSize.parse(settings.voxel_size, ndim=3)
    size = PixelSize(size.size[:1] * 2, size.unit)
    names = {f"cathode_{number:04d}": Path(f"cathode_{number:04d}.tif") for number in range(settings.count)}

    def draw(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        block, table = draw_slice(settings.cathode, int(name.removeprefix("cathode_")))
        paths = [folder.file(part, path.name) for part in ("images", "labels", "phases")]
        io.write_image(paths[0], block.grey, axes="YX", pixel_size=size)
        io.write_labels(paths[1], block.labels, pixel_size=size)
        io.write_image(paths[2], block.phases, axes="YX", pixel_size=size)
        return {"particles": len(table), "objects": table.to_dict("list")}, paths

    folder.for_each("draw", names, draw)


def _draw_volume(folder: RunFolder) -> None:
    settings: CathodeRun = folder.settings
    plan = plan_cathode(settings.cathode)
    shape, size = settings.cathode.shape, PixelSize.parse(settings.voxel_size, ndim=3)
    types = {"grey": settings.cathode.dtype, "labels": np.uint32, "phases": np.uint8}
    facts = {"command": "particles simulate", "classes": list(PHASES)}
    options = {"voxel_size": size, "facts": facts, "key": dataclasses.asdict(settings)}
    writers = [
        io.create_volume(folder.file(f"{name}.{settings.kind}"), shape, dtype, **options)
        for name, dtype in types.items()
    ]
    counts = np.zeros(len(plan.radii) + 1, np.int64)
    cracks = np.zeros_like(counts)
    starts = range(0, shape[0], _SLAB)
    for place, top in enumerate(starts):
        if folder.progress:
            folder.progress("draw", place, len(starts), f"slice {top}")
        slab = slice(top, min(top + _SLAB, shape[0]))
        block = plan.read((slab, slice(0, shape[1]), slice(0, shape[2])))
        for writer, part in zip(writers, block, strict=True):
            writer[slab] = part
        for total, part in zip((counts, cracks), _count(block.labels, block.phases, len(plan.radii)), strict=True):
            total += part
    for writer in writers:
        writer.finish()
    table = volume_truth(plan, counts, cracks)
    io.write_table(folder.file("particles.csv"), table, facts={"command": "particles simulate", "unit": "voxels"})


def volume_truth(plan: CathodePlan, counts: np.ndarray, cracks: np.ndarray) -> pd.DataFrame:
    """`CathodePlan.table` with counted `volume` (voxels, cracks included) and `damage` (cracks / volume).

    Args:
        plan: of the volume.
        counts, cracks: (N + 1,) voxels of every label, and those of its cracks.
    """
    table = plan.table(np.flatnonzero(counts[1:]) + 1)
    table["volume"] = counts[table["label"]]
    table["damage"] = cracks[table["label"]] / table["volume"]
    return table


def _count(labels: np.ndarray, phases: np.ndarray, largest: int) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(labels.ravel(), minlength=largest + 1)
    return counts, np.bincount(labels[phases == CRACK], minlength=largest + 1)


def _sum_up(folder: RunFolder) -> None:
    record = {key: value for key, value in folder.manifest.items() if key not in ("steps", "outputs")}
    record |= {"settings": folder.settings, "phases": dict(enumerate(PHASES))}
    if folder.settings.count is not None:
        facts = folder.facts("draw")
        tables = [pd.DataFrame(one["objects"]).assign(image=name) for name, one in facts.items()]
        table = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=["image", "label"])
        table.insert(0, "image", table.pop("image"))
        io.write_table(folder.file("objects.csv"), table, facts={"command": "particles simulate"})
        record["particles"] = {name: one["particles"] for name, one in facts.items()}
    write_json(folder.file("run.json"), record)
