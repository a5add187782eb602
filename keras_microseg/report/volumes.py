"""Parts of pages about volumes: orthogonal views and films with true slice numbers, histograms, rows to compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image as Picture_

from keras_microseg import io
from keras_microseg.checks import UserError
from keras_microseg.image import Image, PixelSize
from keras_microseg.intensity import VolumeStatistics
from keras_microseg.report import overlays
from keras_microseg.report.figures import ACCENT, INK, SECOND, style_axes
from keras_microseg.report.films import FilmFrame, choose_frames, film_strip
from keras_microseg.report.page import Chart, Picture, Section, Table, Widget
from keras_microseg.report.turning import turning_view

_PLANES = {0: ("y", "x"), 1: ("z", "x"), 2: ("z", "y")}


def orthogonal_views(
    image: Image,
    *,
    labels: Image | None = None,
    position: Sequence[int] | None = None,
    limits: tuple[float, float] | None = None,
    side: int = 640,
) -> list[Picture]:
    """The three planes through one voxel, in true proportions, with scale bars and true slice numbers.

    Args:
        image: grey volume, axes `ZYX`, lazy or not.
        labels: labels or mask of the same shape, drawn as outlines.
        position: (z, y, x); default the middle.
        limits: grey values shown as black and white; default the 0.5 and 99.5 percentiles of the first plane.
        side: longest side of a picture, px.
    """
    _check_shapes(image, labels)
    middle = tuple(n // 2 for n in image.shape) if position is None else tuple(int(p) for p in position)
    numbers = io.slice_numbers(image)
    pictures = []
    for axis, across in enumerate("zyx"):
        plane = _plane(image, axis, middle[axis])
        limits = _limits(plane) if limits is None else limits
        drawn = None if labels is None else _plane(labels, axis, middle[axis])
        size = None if image.pixel_size is None else [image.pixel_size.size[a] for a in range(3) if a != axis]
        unit = "" if image.pixel_size is None else image.pixel_size.unit
        shown = _draw(plane, drawn, limits, size, unit, side)
        place = int(numbers[middle[0]]) if axis == 0 else middle[axis] + image.origin[axis]
        what = f"Slice {place} (z)" if axis == 0 else f"{across} = {place}"
        if axis and numbers[0] != 0:
            what += f", slices {numbers[0]} to {numbers[-1]} from top to bottom"
        down, right = _PLANES[axis]
        pictures.append(Picture(shown, f"{what}: {down} down, {right} to the right.", kind="jpeg"))
    return pictures


def slice_film(
    name: str, image: Image, *, labels: Image | None = None, count: int = 24, side: int = 480, caption: str = ""
) -> Widget:
    """Slices chosen by slider or thumbnail, named by their true numbers, with outlines to switch on and off.

    Args:
        name: distinct in the page.
        image: grey volume, axes `ZYX`.
        labels: labels or mask of the same shape.
        count: slices shown, evenly spread.
        side: longest side, px.
        caption: below it.
    """
    _check_shapes(image, labels)
    numbers = io.slice_numbers(image)
    step = max(1, math.ceil(max(image.shape[1:]) / side))
    places = choose_frames(image.shape[0], count)
    limits = _limits(_plane(image, 0, image.shape[0] // 2))
    frames = []
    for z in places:
        grey = overlays.to_grey8(_plane(image, 0, z)[::step, ::step], limits)
        layer = None
        if labels is not None:
            layer = overlays.outline_layer(_as_labels(_plane(labels, 0, z)[::step, ::step]))
        depth = ""
        if image.pixel_size is not None:
            height = (z + image.origin[0]) * image.pixel_size.size[0]
            depth = f", z = {height:.4g} {overlays.unit_text(image.pixel_size.unit)}"
        frames.append(FilmFrame(grey, layer, str(numbers[z]), f"Slice {numbers[z]}{depth}"))
    return film_strip(name, frames, caption=caption)


def histogram_chart(
    statistics: VolumeStatistics, marks: Mapping[str, float] | None = None, *, caption: str = ""
) -> Chart:
    """Grey value histogram on a logarithmic axis.

    Args:
        statistics: of the volume.
        marks: name -> grey value, drawn as vertical lines (thresholds, percentiles).
        caption: below it.
    """
    figure = Figure(figsize=(7.4, 2.9), layout="constrained")
    axes = figure.subplots()
    if statistics.count:
        counts, centres = statistics.grouped(256)
        width = centres[1] - centres[0] if len(centres) > 1 else 1.0
        edges = np.append(centres - width / 2, centres[-1] + width / 2)
        axes.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.75)
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.5)
    top = 0.97
    for name, value in (marks or {}).items():
        axes.axvline(value, color=SECOND, linewidth=1.2, linestyle=(0, (4, 3)))
        axes.annotate(
            f" {name} {value:.5g}", (value, top), xycoords=("data", "axes fraction"), color=INK, fontsize=9, va="top"
        )
        top -= 0.11
    style_axes(axes)
    axes.set_yscale("log")
    axes.set_xlabel("Grey value")
    axes.set_ylabel("Voxels")
    return Chart(figure, caption or "Histogram of all voxels.")


def comparison_rows(
    image: Image,
    columns: Mapping[str, Image],
    *,
    slices: Sequence[int] | None = None,
    truth: str | None = None,
    side: int = 260,
) -> Picture:
    """Rows of slices: the image, every result in its own row, and where results differ from the truth.

    Args:
        image: grey volume.
        columns: name -> labels, masks or probability maps of the same shape; each is shown white on black, maps cut
            at one half, as they are scored.
        slices: true slice numbers; default four, evenly spread.
        truth: name among `columns`; the others then get a row of errors (red: too much, blue: missing).
        side: longest side of a slice, px.

    Raises:
        UserError: shapes that differ, or a slice number the volume does not have.
    """
    for part in columns.values():
        _check_shapes(image, part)
    numbers = io.slice_numbers(image)
    if slices is None:
        slices = [int(numbers[z]) for z in np.linspace(0, image.shape[0] - 1, 6).round().astype(int)[1:-1]]
    missing = [number for number in slices if number not in numbers]
    if missing:
        raise UserError(f"The volume has slices {numbers[0]} to {numbers[-1]}. Received: slices={list(slices)}")
    places = [int(np.flatnonzero(numbers == number)[0]) for number in slices]
    step = max(1, math.ceil(max(image.shape[1:]) / side))
    limits = _limits(_plane(image, 0, places[len(places) // 2]))
    rows: dict[str, list[np.ndarray]] = {"image": []}
    masks = {
        name: [_plane(part, 0, z)[::step, ::step] > _object_above(part) for z in places]
        for name, part in columns.items()
    }
    for z in places:
        rows["image"].append(
            np.repeat(overlays.to_grey8(_plane(image, 0, z)[::step, ::step], limits)[..., None], 3, axis=2)
        )
    for name, parts in masks.items():
        rows[name] = [np.repeat(part[..., None] * np.uint8(255), 3, axis=2) for part in parts]
        if truth is not None and name != truth:
            rows[f"{name}: errors"] = [_errors(part, true) for part, true in zip(parts, masks[truth], strict=True)]
    zoom = max(1, 200 // max(rows["image"][0].shape[:2]))
    rows = {name: [part.repeat(zoom, axis=0).repeat(zoom, axis=1) for part in parts] for name, parts in rows.items()}
    if image.pixel_size is not None:
        size = PixelSize(image.pixel_size.size[1:], image.pixel_size.unit).scaled(zoom / step)
        rows["image"] = [overlays.draw_scale_bar(part, size) for part in rows["image"]]
    height, width = rows["image"][0].shape[:2]
    sheet = np.full((len(rows) * (height + 22) + 4, len(places) * (width + 6) + 6, 3), 255, np.uint8)
    canvas = Picture_.fromarray(sheet)
    from PIL import ImageDraw

    draw = ImageDraw.Draw(canvas)
    font = overlays._font(13)
    for row, (name, parts) in enumerate(rows.items()):
        top = row * (height + 22) + 2
        for column, (part, number) in enumerate(zip(parts, slices, strict=True)):
            left = 6 + column * (width + 6)
            draw.text((left, top + 1), f"{name} {number}", font=font, fill=(26, 43, 60))
            canvas.paste(Picture_.fromarray(np.ascontiguousarray(part)), (left, top + 19))
    text = "Rows: " + ", ".join(rows) + "; with the number of the slice."
    if truth is not None:
        text += f" Errors against {truth}: red = too much, blue = missing."
    return Picture(np.asarray(canvas), text, kind="jpeg")


def volume_sections(
    image: Image,
    statistics: VolumeStatistics,
    *,
    labels: Image | None = None,
    marks: Mapping[str, float] | None = None,
    facts: Mapping[str, Any] | None = None,
    name: str = "volume",
    outlines: str = "labels",
) -> list[Section]:
    """Sections that show a volume: facts, views, film, histogram, and the turning view of `labels`."""
    views: list[Any] = list(orthogonal_views(image, labels=labels))
    views.append(slice_film(name, image, labels=labels, caption="Slices by their true numbers."))
    sections = [
        Section("Volume", [Table({**volume_facts(image), **(facts or {})})]),
        Section("Orthogonal views", views),
        Section("Histogram", [histogram_chart(statistics, marks)]),
    ]
    if labels is not None:
        view = turning_view(name, labels, caption=f"Surfaces of the {outlines}.")
        sections.append(Section("3D view", [view if view is not None else "Nothing to show: the volume is empty."]))
    return sections


def volume_facts(image: Image) -> dict[str, Any]:
    """What is known about a volume, for a table."""
    numbers, size = io.slice_numbers(image), image.pixel_size
    facts = {
        "File": image.path or "memory",
        "Format": image.metadata.get("format", "array"),
        "Voxels (z, y, x)": " \u00d7 ".join(map(str, image.shape)),
        "Type": str(image.dtype),
        "Slices": f"{numbers[0]} to {numbers[-1]}",
        "Voxel size": "unknown" if size is None else f"{_size_text(size)}, from {size.source}",
    }
    if size is not None:
        extent = " \u00d7 ".join(f"{n * edge:.4g}" for n, edge in zip(image.shape, size.size, strict=True))
        facts["Extent"] = f"{extent} {overlays.unit_text(size.unit)}"
    return facts


def _size_text(size: PixelSize) -> str:
    text = str(size)
    return text.replace(" x ", " \u00d7 ").replace(f" {size.unit}", f" {overlays.unit_text(size.unit)}")


def _plane(image: Image, axis: int, place: int) -> np.ndarray:
    index = tuple(int(place) if a == axis else slice(None) for a in range(3))
    return np.asarray(image.data[index])


def _limits(plane: np.ndarray) -> tuple[float, float]:
    from keras_microseg.intensity import percentile_limits

    return percentile_limits(plane)


def _as_labels(plane: np.ndarray) -> np.ndarray:
    """Small numbers for the outlines: 0..n of what is in the plane."""
    _, index = np.unique(plane, return_inverse=True)
    index = index.reshape(plane.shape)
    return index + (1 if plane.size and plane.min() > 0 else 0)


def _draw(
    plane: np.ndarray,
    labels: np.ndarray | None,
    limits: tuple[float, float],
    size: Sequence[float] | None,
    unit: str,
    side: int,
) -> np.ndarray:
    """A plane with square pixels, at most `side` long, outlines and scale bar."""
    edges = np.array(size if size is not None else (1.0, 1.0))
    lengths = np.array(plane.shape) * edges
    edge = max(float(lengths.max()) / side, float(edges.min()) / 4)  # small ones are enlarged four times at most
    shape = np.maximum(1, np.rint(lengths / edge)).astype(int)
    picture = Picture_.fromarray(overlays.to_grey8(plane, limits))
    smooth = Picture_.Resampling.LANCZOS if shape.prod() < plane.size else Picture_.Resampling.NEAREST
    grey = np.asarray(picture.resize((int(shape[1]), int(shape[0])), smooth))
    shown = np.repeat(grey[..., None], 3, axis=2)
    if labels is not None:
        index = [
            np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in zip(shape, plane.shape, strict=True)
        ]
        shown = overlays.draw_outlines(grey, _as_labels(labels[np.ix_(*index)]), limits=(0, 255), scale_bar=False)
    pixel = None if size is None else PixelSize((edge, edge), unit)
    if size is None and edge != 1:
        return shown  # a bar in px would count screen pixels
    return overlays.draw_scale_bar(shown, pixel)


def _object_above(image: Image) -> float:
    """Value above which a voxel is object: one half in probability maps, 0 in labels and masks."""
    if image.dtype.kind == "f":
        return 0.5
    is_map = "map" in image.metadata.get("provenance", {})
    return np.iinfo(image.dtype).max // 2 if is_map and image.dtype.kind == "u" else 0


def _errors(mask: np.ndarray, truth: np.ndarray) -> np.ndarray:
    picture = np.repeat((truth & mask)[..., None] * np.uint8(110), 3, axis=2)
    picture[mask & ~truth] = (235, 70, 60)
    picture[truth & ~mask] = (70, 140, 255)
    return picture


def _check_shapes(image: Image, labels: Image | None) -> None:
    if labels is not None and tuple(labels.shape) != tuple(image.shape):
        raise UserError(
            f"{labels.name} has the shape {labels.shape}, {image.name} has {image.shape}. Masks and labels need the "
            "shape of the volume they belong to."
        )
