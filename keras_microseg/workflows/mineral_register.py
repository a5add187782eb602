"""Workflows `mineral register` and `mineral masks`: where the map lies on its micrograph, and its classes there."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.image import LazyArray
from keras_microseg.io.images import write_tiff
from keras_microseg.io.palettes import IGNORE, read_palette, write_palette
from keras_microseg.registration import (
    AlignmentSettings,
    Registration,
    ResampledLabels,
    Transform,
    align,
    checkerboard,
    edge_overlay,
    residual_chart,
)
from keras_microseg.report.figures import figure_png
from keras_microseg.workflows.mineral_clean import CLASSES, FACTS, MAP, OUTSIDE, SEM, paint, read_correction
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps, write_json

TRANSFORM, MASK, MASK_FACTS = "transform.json", "mask.tif", "mask.json"
STARTS = ("disc", "extent")
_PICTURE_EDGE = 900


@dataclasses.dataclass(frozen=True)
class RegisterSettings:
    """How the map is registered.

    Attributes:
        clean_dir: folder of `mineral clean`.
        start: "disc": from the round sample in both images; "extent": both images show the same area.
        search: how far the start may be off, map px.
        min_score: correlation below which a window does not count.
    """

    clean_dir: str
    start: str = "disc"
    search: float = 40.0
    min_score: float = 0.15

    def __post_init__(self) -> None:
        check_choice("start", self.start, STARTS)
        check_number("search", self.search, minimum=1)
        check_number("min_score", self.min_score, minimum=0, maximum=1)


def register(
    settings: RegisterSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Find the transform from map pixels to micrograph pixels.

    Args:
        settings: what and how.
        out: folder; gets `transform.json` (for the micrograph as it was given, and for the working one), `windows.csv`
            (what every window still asks for), `registration.json` (errors), `checkerboard.png`, `edges.png`,
            `residuals.png`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: no start, or nothing matches.
    """
    _need(settings.clean_dir, FACTS, "mineral clean")
    folder = RunFolder(out, settings, command="mineral register", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("register", _register)])


def _register(folder: RunFolder) -> None:
    asked, source = folder.settings, Path(folder.settings.clean_dir)
    facts, factor = read_json(source / FACTS), read_correction(source)[1]
    sem, classes = io.open_image(source / SEM), io.open_image(source / MAP).read()
    legend = read_palette(source / CLASSES)
    mosaic = facts["map"]["mosaic"]
    borders = None if mosaic is None else tuple(np.array(b, int) for b in mosaic["borders"])
    initial = None
    pores = [m.id for m in legend.minerals if m.micro_porosity == 1]
    sample = ~np.isin(classes, [OUTSIDE, IGNORE, *([] if (classes == OUTSIDE).any() else pores)])
    if asked.start == "extent":
        initial = _extent_start(sem.shape, classes != OUTSIDE, borders)
    try:
        found = align(
            sem.data, classes, borders=borders, initial=initial, sample=sample,
            settings=AlignmentSettings(search=asked.search, min_score=asked.min_score, ignore=IGNORE),
        )  # fmt: skip
    except UserError as error:
        share = facts["map"]["unknown_pixels"] / classes.size
        raise UserError(
            f"{error} Things to look at: does the palette fit the map ({share:.0%} of its pixels have a colour that "
            f"the palette does not list, see {source / 'unknown_colours.csv'}; the ground is a class called "
            "'background')? Do map and micrograph show the same area? Then use --start extent, or "
            '--config with {"register": {"start": "extent"}} in `mineral run`.'
        ) from error
    original = found.transform.rescaled(1 / factor)
    write_json(
        folder.file(TRANSFORM),
        {"micrograph": facts["sem"], "transform": original.to_dict(), "working_factor": factor,
         "working_transform": found.transform.to_dict()},
    )  # fmt: skip
    figures = found.figures()
    expected = {m.name: float(v) for m, v in zip(legend.minerals, found.expected, strict=False)}
    write_json(
        folder.file("registration.json"),
        {**figures, "scale": original.scale, "error_unit": "map px", "expected_grey": expected},
    )
    table = pd.DataFrame(
        {
            "map_y": found.points[:, 0],
            "map_x": found.points[:, 1],
            "residual_y": found.residuals[:, 0],
            "residual_x": found.residuals[:, 1],
            "used": found.used,
        }
    )
    io.write_table(folder.file("windows.csv"), table, facts={"unit": "map px"})
    _draw(folder, found, sem, classes, legend)


def _extent_start(shape: tuple[int, ...], shown: np.ndarray, borders: Any) -> Transform:
    """The part of the map that shows anything covers the micrograph."""
    ends = [np.flatnonzero(shown.any(axis=1 - axis))[[0, -1]] for axis in (0, 1)]
    low, high = np.array(ends).T
    scale = float(np.sqrt(np.prod(np.array(shape) / (high - low + 1))))
    shift = (np.array(shape) - 1) / 2 - scale * (low + high) / 2
    return Transform.similarity(scale, 0.0, shift, shape=shown.shape, borders=borders)


def _draw(folder: RunFolder, found: Registration, sem: Any, classes: np.ndarray, legend: Any) -> None:
    """Pictures of the middle of the map, enlarged so that outlines can be judged."""
    transform = found.transform
    edge = [min(n, 220) for n in transform.shape]
    low = transform([(n - e) / 2 for n, e in zip(transform.shape, edge, strict=True)])
    span = [int(e * transform.scale) for e in edge]
    top, left = (int(np.clip(v, 0, max(n - s, 0))) for v, n, s in zip(low, sem.shape, span, strict=True))
    shape = tuple(min(s, n) for s, n in zip(span, sem.shape, strict=True))
    grey = sem.data[top : top + shape[0], left : left + shape[1]]
    labels = transform.resample_labels(classes, shape, origin=(top, left), fill=IGNORE)
    step = max(1, max(shape) // _PICTURE_EDGE)
    grey, labels = grey[::step, ::step], labels[::step, ::step]
    io.write_image(folder.file("checkerboard.png"), checkerboard(grey, paint(legend, labels), square=80))
    io.write_image(folder.file("edges.png"), edge_overlay(grey, labels))
    with io.atomic_path(folder.file("residuals.png")) as temporary:
        Path(temporary).write_bytes(figure_png(residual_chart(found), dpi=110))


@dataclasses.dataclass(frozen=True)
class MaskSettings:
    """Which map is brought onto which micrograph.

    Attributes:
        clean_dir: folder of `mineral clean`.
        register_dir: folder of `mineral register`.
        margin: rim of the sample left out, where grey values and labels are unsure, map px.
    """

    clean_dir: str
    register_dir: str
    margin: float = 1.0

    def __post_init__(self) -> None:
        check_number("margin", self.margin, minimum=0)


def masks(
    settings: MaskSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Write the classes of the map on the grid of the working micrograph.

    Args:
        settings: what.
        out: folder; gets `mask.tif` (class numbers, 255 = outside the sample or unknown), `classes.csv`, `mask.json`
            (which image it belongs to).
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.
    """
    _need(settings.clean_dir, FACTS, "mineral clean")
    _need(settings.register_dir, TRANSFORM, "mineral register")
    folder = RunFolder(out, settings, command="mineral masks", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("masks", _masks)])


def _masks(folder: RunFolder) -> None:
    asked, source = folder.settings, Path(folder.settings.clean_dir)
    facts = read_json(source / FACTS)
    sem, classes = io.open_image(source / SEM), io.open_image(source / MAP).read()
    transform = Transform.from_dict(read_json(Path(asked.register_dir) / TRANSFORM)["working_transform"])
    if transform.shape != classes.shape:
        raise UserError(
            f"The transform in {asked.register_dir} is that of a map of shape {transform.shape}, the map in "
            f"{asked.clean_dir} has shape {classes.shape}. Register that map."
        )
    correction, factor = read_correction(source)
    labels = ResampledLabels(np.where(classes == OUTSIDE, IGNORE, classes), transform, sem.shape, fill=IGNORE)
    inside = SampleOnly(labels, correction.disc, factor, asked.margin * transform.scale * factor)
    io.check_disk_space(folder.path, inside.nbytes, "the mask")
    write_tiff(folder.file(MASK), inside, "YX", sem.pixel_size)
    write_palette(folder.file(CLASSES), read_palette(source / CLASSES))
    image = os.path.relpath(source / SEM, folder.path)
    write_json(folder.file(MASK_FACTS), {"image": Path(image).as_posix(), "mask": MASK, "source": facts["sem"]})


class SampleOnly(LazyArray):
    """Class numbers, 255 outside the disc of the sample.

    Args:
        labels: (H, W) uint8 array or lazy array on a grid reduced `factor` times.
        disc: in px of the image before reduction, or None.
        factor: see there.
        margin: rim left out, px before reduction.
    """

    def __init__(self, labels: Any, disc: Any, factor: int, margin: float = 0.0):
        self.labels, self.factor, self.shape, self.dtype = labels, factor, tuple(labels.shape), np.dtype(np.uint8)
        self.disc = None if disc is None else dataclasses.replace(disc, radius=max(disc.radius - margin, 1.0))
        self.chunks = getattr(labels, "chunks", None)

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        out = np.array(self.labels[block], np.uint8)
        if self.disc is not None:
            origin = tuple(part.start for part in block)
            out[~self.disc.mask(out.shape, origin=origin, factor=self.factor)] = IGNORE
        return out


def _need(folder: str, name: str, command: str) -> None:
    if not (Path(folder) / name).is_file():
        raise FileError(folder, f"holds no {name}.", f"Run `{command}` first and name its folder.")
