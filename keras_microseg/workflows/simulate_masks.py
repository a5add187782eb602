"""Workflow step `simulate masks`: label images and the masks a translation network sees, as files."""

from __future__ import annotations

import dataclasses
import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import check_number
from keras_microseg.simulation.masks import MaskSettings, Particles, simulate_mask
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps

LABELS, MASKS = "labels", "masks"


@dataclasses.dataclass(frozen=True)
class MaskRunSettings:
    """What a folder of masks depends on.

    Attributes:
        count: number of masks.
        seed: start of all random numbers; mask `i` depends on `seed`, the stock, the settings and `i` only.
        masks: see `MaskSettings`.
        particles: hash of the stock of particles.
    """

    count: int
    seed: int
    masks: MaskSettings
    particles: str


def simulate_masks(
    out_dir: str | os.PathLike,
    particles: Particles,
    settings: MaskSettings | None = None,
    count: int = 1000,
    *,
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Simulate masks into a folder; an interrupted run goes on where it stopped.

    Args:
        out_dir: gets `labels/00000.tif`... (instance labels, uint16), `masks/00000.tif`... (uint8, 255 = particle,
            touching particles parted), `masks.csv` (particles, coverage, sizes of each), `settings.json`,
            `manifest.json`.
        particles: the stock they are drawn from.
        settings: see `MaskSettings`.
        count: number of masks.
        seed: see `MaskRunSettings`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The folder.

    Raises:
        UserError: other settings, stock or seed than those of the run to resume, or a folder that cannot be written.
    """
    check_number("count", count, minimum=1, integer=True)
    check_number("seed", seed, minimum=0, integer=True)
    run = MaskRunSettings(count, seed, settings or MaskSettings(), _hash(particles))
    folder = RunFolder(out_dir, run, command="simulate masks", resume=resume, overwrite=overwrite, progress=progress)

    def draw(name: str, _: Path) -> tuple[dict[str, Any], list[Path]]:
        made = simulate_mask(np.random.default_rng([seed, int(name)]), particles, run.masks)
        paths = [folder.file(LABELS, f"{name}.tif"), folder.file(MASKS, f"{name}.tif")]
        io.write_labels(paths[0], made.labels)
        io.write_image(paths[1], made.mask, axes="YX")
        return made.facts, paths

    def draw_all(folder: RunFolder) -> None:
        digits = max(5, len(str(count - 1)))
        names = [f"{number:0{digits}d}" for number in range(count)]
        folder.for_each("simulate", {name: Path(f"{name}.tif") for name in names}, draw)

    def sum_up(folder: RunFolder) -> None:
        table = pd.DataFrame([{"mask": name, **facts} for name, facts in sorted(folder.facts("simulate").items())])
        io.write_table(folder.file("masks.csv"), table, facts={"package": folder.manifest["package"]})

    run_steps(folder, [Step("simulate", draw_all), Step("sum up", sum_up, always=True)])
    return folder.path


def _hash(particles: Particles) -> str:
    digest = hashlib.sha256()
    for array in (particles.shapes.profile, particles.shapes.bend, particles.diameters):
        digest.update(np.ascontiguousarray(array, np.float32).tobytes())
    return digest.hexdigest()[:12]
