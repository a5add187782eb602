"""Figures, overlays and film strips of filament videos."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from keras_microseg import io
from keras_microseg.measurement.kinetics import LAWS
from keras_microseg.report import overlays
from keras_microseg.report.figures import ACCENT, INK, SECOND, figure_png, figure_svg, style_axes
from keras_microseg.report.films import FilmFrame, choose_frames, film_strip
from keras_microseg.report.page import Widget

if TYPE_CHECKING:
    from keras_microseg.report.filaments import FilamentRecord

TASKS = {"A1": "filament A1", "A2": "hollow core A2"}
COLORS = {"A1": (255, 196, 0), "A2": (0, 200, 255)}
_LINES = {"A1": ACCENT, "A2": SECOND, "V": "#2f8f5b"}
_MISSED, _FALSE = (255, 60, 90, 150), (170, 90, 255, 150)
_STYLES = ("-", (0, (5, 2)), (0, (2, 2)), (0, (5, 2, 1, 2)), (0, (1, 1)))


def curves_figure(record: FilamentRecord) -> Figure:
    """Areas above and wall volume below over time, with what the ensemble leaves open and the truth where known."""
    figure = Figure(figsize=(7.4, 5.2), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    table, unit = record.table, overlays.unit_text(record.unit)
    for ax, names in ((upper, ("A1", "A2")), (lower, ("V",))):
        for name in names:
            column = record.column(name)
            title = TASKS.get(name, "wall volume V")
            ax.plot(table["time"], table[column], "o-", color=_LINES[name], markersize=3.5, linewidth=1.2, label=title)
            low, high = record.column(name, "low"), record.column(name, "high")
            if low in table:
                ax.fill_between(table["time"], table[low], table[high], color=_LINES[name], alpha=0.22, linewidth=0,
                                label="95 % of the ensemble")  # fmt: skip
            if name in record.scores:
                frames = record.scores[name].frames
                edge = 1.0 if record.unit == "px" else record.series.pixel_size.mean
                when = table.set_index("frame")["time"].reindex(frames["frame"])
                ax.plot(when, frames["area_true"] * edge**2, "x", color=INK, markersize=4, label=f"truth {name}")
        ax.set_ylim(bottom=0)
        ax.legend(frameon=False, fontsize=9, labelcolor=INK)
    upper.set_ylabel(f"Area in {unit}\u00b2")
    lower.set_ylabel(f"Volume in {unit}\u00b3")
    lower.set_xlabel(_time_label(record))
    style_axes(upper, lower)
    return figure


def conversion_figure(record: FilamentRecord) -> Figure:
    """Conversion over time with the fitted laws, the band of the best, and t50."""
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    ax = figure.subplots()
    table = record.reacting
    if "conversion_low" in table:
        low, high = (table[f"conversion_{end}"].clip(-0.1, 1.1) for end in ("low", "high"))
        ax.fill_between(table["time"], low, high, color=ACCENT, alpha=0.15, linewidth=0, label="95 % of the ensemble")
    ax.plot(table["time"], table["conversion"], "o", color=INK, markersize=4, label="measured")
    fits = [fit for fit in record.fits if fit.converged]
    if len(table) and table["time"].iloc[-1] > 0:
        at = np.linspace(0, float(table["time"].iloc[-1]), 240)
        for i, fit in enumerate(fits):
            values = ", ".join(f"{name} = {value:.3g}" for name, value in fit.parameters.items())
            ax.plot(at, fit.predict(at), color=ACCENT if i == 0 else INK, alpha=1 if i == 0 else 0.55,
                    linestyle=_STYLES[i % len(_STYLES)], linewidth=1.8 if i == 0 else 1,
                    label=f"{LAWS[fit.law].title}: {values}")  # fmt: skip
        if fits:
            low, high = fits[0].band(at)
            ax.fill_between(at, low, high, color=ACCENT, alpha=0.3, linewidth=0, label="95 % band of the fit")
            if fits[0].t50 <= at[-1]:
                ax.plot([fits[0].t50] * 2, [0, 0.5], color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
                ax.annotate(f"t50 = {fits[0].t50:.4g} {record.series.time_unit}", (fits[0].t50, 0.02), xytext=(5, 0),
                            textcoords="offset points", color=INK, fontsize=9)  # fmt: skip
    ax.set_ylim(-0.04, 1.06)
    ax.set_ylabel("Conversion")
    ax.set_xlabel(_time_label(record))
    ax.legend(frameon=False, fontsize=8.5, labelcolor=INK, loc="lower right")
    style_axes(ax)
    return figure


def write_figures(folder: str | os.PathLike, record: FilamentRecord) -> list[Path]:
    """Write both figures as SVG and PNG: `NAME_curves.*`, `NAME_conversion.*`."""
    paths = []
    for kind, figure in (("curves", curves_figure(record)), ("conversion", conversion_figure(record))):
        stem = Path(folder) / f"{record.name}_{kind}"
        svg = figure_svg(figure, title=f"{kind} of {record.name}", name=kind)
        for path, data in (
            (stem.with_suffix(".svg"), svg.encode()),
            (stem.with_suffix(".png"), figure_png(figure, 200)),
        ):
            with io.atomic_path(path) as temporary:
                Path(temporary).write_bytes(data)
            paths.append(path)
    return paths


def _time_label(record: FilamentRecord) -> str:
    unit = record.series.time_unit
    return "Time in s" if unit == "s" else f"Time in {unit}s (frame rate unknown)"


def overlay_layer(masks: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
    """Outlines of one frame's masks on a transparent ground: A1 yellow, A2 blue.

    Args:
        masks: task -> (Y, X) bool.
        truth: true masks of A1: missed carbon is painted red, false carbon violet.

    Returns:
        (Y, X, 4) uint8.
    """
    shape = next(iter(masks.values())).shape
    layer = np.zeros((*shape, 4), np.uint8)
    for task, true in (truth or {}).items():
        if task in masks and task == "A1":
            layer[true & ~masks[task]] = _MISSED
            layer[~true & masks[task]] = _FALSE
    for task in masks:
        labels = masks[task].astype(np.int32)
        line = overlays.outline_layer(labels, width=1, colors=np.zeros(2, np.intp))[..., 3] == 255
        layer[line] = (*COLORS.get(task, (120, 220, 60)), 255)
    return layer


def draw_overlay(record: FilamentRecord, index: int) -> np.ndarray:
    """Picture of one whole frame with the outlines of its masks and a scale bar: (Y, X, 3) uint8."""
    series = record.series
    frame, valid = series.read_images([index])[0], series.read_valid([index])[0]
    grey = overlays.to_grey8(frame, _limits(frame, valid))
    picture = np.repeat(grey[..., None], 3, axis=2)
    layer = overlay_layer({task: series.read_masks(task, [index])[0] for task in series.tasks})
    line = layer[..., 3] == 255
    picture[line] = layer[line, :3]
    return overlays.draw_scale_bar(picture, series.pixel_size)


def film_of(record: FilamentRecord) -> Widget:
    """The film strip of a video, cut to what any frame shows."""
    series = record.series
    index = choose_frames(len(series))
    images, valid = series.read_images(index), series.read_valid(index)
    window = _window(valid)
    masks = {task: series.read_masks(task, index) for task in series.tasks}
    truth = {task: np.asarray(frames[index]) for task, frames in record.truth.items()}
    limits = _limits(images, valid)
    frames = []
    for i, number in enumerate(index):
        row = record.table.iloc[int(number)]
        picture = overlays.to_grey8(images[i], limits)[window]
        layer = overlay_layer(
            {task: one[i][window] for task, one in masks.items()}, {task: one[i][window] for task, one in truth.items()}
        )
        parts = [f"frame {int(row['frame'])}", f"t = {row['time']:g} {series.time_unit}"]
        unit = overlays.unit_text(record.unit)
        parts += [
            f"{name} = {row[record.column(name)]:,.0f} {unit}\u00b2".replace(",", "\u2009") for name in series.tasks
        ]
        if np.isfinite(row["conversion"]):
            parts.append(f"conversion {row['conversion']:.2f}")
        frames.append(FilmFrame(picture, layer, str(int(row["frame"])), " \u00b7 ".join(parts)))
    colors = "yellow: outer edge of the filament (A1)"
    if "A2" in series.tasks:
        colors += "; blue: hollow core (A2)"
    if truth:
        colors += "; red: missed, violet: false carbon of A1, against the truth"
    left_out = f" {len(index)} of {len(series)} frames are shown." if len(index) < len(series) else ""
    text = f"{record.name}: {colors}. Drag the slider, use the arrow keys, or click a thumbnail.{left_out}"
    return film_strip(record.name, frames, caption=text)


def _window(valid: np.ndarray) -> tuple[slice, slice]:
    """The rows and columns that any frame shows, with a margin."""
    shown = valid.any(axis=0)
    if not shown.any():
        return slice(None), slice(None)
    rows, columns = np.flatnonzero(shown.any(axis=1)), np.flatnonzero(shown.any(axis=0))
    return (
        slice(max(0, rows[0] - 6), min(shown.shape[0], rows[-1] + 7)),
        slice(max(0, columns[0] - 6), min(shown.shape[1], columns[-1] + 7)),
    )


def _limits(images: np.ndarray, valid: np.ndarray) -> tuple[float, float]:
    values = images[valid]
    if not values.size:
        return 0.0, 255.0
    low, high = np.percentile(values[:: max(1, values.size // 1_000_000)], (0.5, 99.5))
    return (float(low), float(high)) if high > low else (float(low), float(low) + 1)
