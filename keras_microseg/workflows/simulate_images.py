"""Workflow `simulate`: micrographs with exactly known particles, as files to train on and to test with."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import check_choice, check_number, standardize_tuple
from keras_microseg.image import PixelSize
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json


@dataclasses.dataclass(frozen=True)
class SimulateSettings:
    """What to draw.

    Attributes:
        count: number of micrographs.
        seed: start of all random numbers; image `i` depends on `seed` and `i` only.
        preset: kind of micrograph, one of `keras_microseg.simulation.render.PRESETS`.
        size: (rows, columns) in pixels.
        pixel_size: edge length given to the pixels, with unit.
        diameter: smallest and largest median diameter of the particles of an image, pixels.
        captions: now and then draw letters, scale bars and insets over the image, as in published figures.
    """

    count: int = 10
    seed: int = 0
    preset: str = "any"
    size: tuple[int, int] = (712, 1024)
    pixel_size: str = "2 nm"
    diameter: tuple[float, float] = (9.0, 70.0)
    captions: bool = False

    def __post_init__(self) -> None:
        from keras_microseg.simulation.render import PRESETS

        check_number("count", self.count, minimum=1, integer=True)
        check_number("seed", self.seed, minimum=0, integer=True)
        check_choice("preset", self.preset, PRESETS)
        object.__setattr__(self, "size", standardize_tuple(self.size, 2, "size", minimum=16))
        object.__setattr__(self, "pixel_size", str(PixelSize.parse(self.pixel_size)))
        low, high = self.diameter
        check_number("diameter", low, minimum=2)
        check_number("diameter", high, minimum=low)


def simulate(
    count: int,
    out: str | os.PathLike,
    *,
    seed: int = 0,
    preset: str = "any",
    size: int | tuple[int, int] = (712, 1024),
    pixel_size: str = "2 nm",
    diameter: tuple[float, float] = (9.0, 70.0),
    captions: bool = False,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Draw micrographs and their particles.

    Args:
        count, seed, preset, size, pixel_size, diameter, captions: see `SimulateSettings`.
        out: folder; gets `images/NAME.tif` (16 bit), `labels/NAME.tif` (same names), `facts.csv`, `run.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        The folder.

    Raises:
        UserError: a setting out of range, or a folder that cannot be written.

    Example:
        >>> import keras_microseg as km
        >>> data = km.simulate(4, "DATA", preset="sem", seed=1)  # doctest: +SKIP
    """
    settings = SimulateSettings(count, seed, preset, size, pixel_size, tuple(diameter), captions)
    folder = RunFolder(out, settings, command="simulate", resume=resume, overwrite=overwrite, progress=progress)
    run_steps(folder, [Step("simulate", draw_images), Step("sum up", sum_up, always=True)])
    return folder.path


def draw_images(folder: RunFolder) -> None:
    """Step: draw every image that is not there yet."""
    from keras_microseg.simulation.render import simulate_micrograph

    settings: SimulateSettings = folder.settings
    pixel_size = PixelSize.parse(settings.pixel_size)
    digits = max(4, len(str(settings.count - 1)))
    names = [f"sim_{number:0{digits}d}" for number in range(settings.count)]

    def draw(name: str, _: Path) -> tuple[dict[str, Any], list[Path]]:
        rng = np.random.default_rng([settings.seed, int(name.removeprefix("sim_"))])
        micrograph = simulate_micrograph(
            rng, settings.size, settings.preset, diameter=settings.diameter, captions=settings.captions
        )
        image_path, labels_path = folder.file("images", f"{name}.tif"), folder.file("labels", f"{name}.tif")
        pixels = np.round(np.clip(micrograph.image, 0, 1) * 65535).astype(np.uint16)
        io.write_image(image_path, pixels, axes="YX", pixel_size=pixel_size)
        io.write_labels(labels_path, micrograph.labels, pixel_size=pixel_size)
        return dict(micrograph.facts), [image_path, labels_path]

    folder.for_each("simulate", {name: Path(f"{name}.tif") for name in names}, draw)


def sum_up(folder: RunFolder) -> None:
    """Step: one table of the facts about all images, and the record of the run."""
    facts = folder.facts("simulate")
    table = pd.DataFrame([{"image": name, **values} for name, values in facts.items()])
    io.write_table(
        folder.file("facts.csv"), table, facts={"package": folder.manifest["package"], "command": "simulate"}
    )
    record = {key: value for key, value in folder.manifest.items() if key not in ("steps", "outputs")}
    write_json(folder.file("run.json"), {**record, "settings": folder.settings, "images": facts})
