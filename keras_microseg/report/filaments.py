"""Results about filament videos: curves in the source's spreadsheet and as CSV, figures, one page with film strips."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg import io
from keras_microseg.io.frames import FrameSeries
from keras_microseg.measurement.kinetics import LAWS, RateFit, compare_fits, half_time
from keras_microseg.metrics.change import ChangeScores
from keras_microseg.report import overlays
from keras_microseg.report.figures import ACCENT, INK, SECOND, figure_png, figure_svg, style_axes
from keras_microseg.report.films import FilmFrame, choose_frames, film_strip
from keras_microseg.report.page import Chart, Section, Table, write_page

TASKS = {"A1": "filament A1", "A2": "hollow core A2"}
COLORS = {"A1": (255, 196, 0), "A2": (0, 200, 255)}
_LINES = {"A1": ACCENT, "A2": SECOND, "V": "#2f8f5b"}
_MISSED, _FALSE = (255, 60, 90, 150), (170, 90, 255, 150)
_STYLES = ("-", (0, (5, 2)), (0, (2, 2)), (0, (5, 2, 1, 2)), (0, (1, 1)))
HEADINGS = ("Length", "Frame", "Time", "A1", "A2", "V1", "V2", "V=V1-V2")
"""Column headings of the source's spreadsheet "kinetic curves parameters.xlsx"."""


@dataclasses.dataclass(frozen=True)
class FilamentRecord:
    """What was found about one video.

    Attributes:
        series: frames with the masks that were measured.
        table: result of `measure_change`, all frames.
        fits: rate laws, best first.
        length: of the segment, px, and how it is known.
        member_fits: Avrami parameters of every member of the ensemble, or None.
        truth: task -> (N, H, W) true masks, when known.
        scores: task -> scores against the truth.
        warnings: what the user should know.
    """

    series: FrameSeries
    table: pd.DataFrame
    fits: Sequence[RateFit]
    length: float
    length_source: str
    member_fits: pd.DataFrame | None = None
    truth: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scores: Mapping[str, ChangeScores] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def name(self) -> str:
        return self.series.name

    @property
    def avrami(self) -> RateFit:
        return next(fit for fit in self.fits if fit.law == "avrami")

    @property
    def unit(self) -> str:
        return "px" if self.series.pixel_size is None else self.series.pixel_size.unit

    def column(self, name: str, limit: str = "") -> str:
        """Name of a column of `table` in the length unit: `V` -> `V_nm3`."""
        power = {"A": 2, "D": 1, "V": 3}[name[0]]
        suffix = "" if self.unit == "px" else f"{self.unit}{power}".removesuffix("1")
        return "_".join(filter(None, [name, suffix, limit]))

    @property
    def reacting(self) -> pd.DataFrame:
        """The rows from time 0 on."""
        return self.table[self.table["time"] >= 0]


# ------------------------------------------------------------------------------------------------------------- tables


def kinetics_table(records: Sequence[FilamentRecord]) -> pd.DataFrame:
    """One row per video and rate law, with the spread over the ensemble beside the Avrami row."""
    tables = []
    for record in records:
        table = compare_fits(record.fits)
        table.insert(0, "video", record.name)
        reacting = record.reacting
        table["t50_measured"] = half_time(reacting["time"], reacting["conversion"])
        table["length_px"] = record.length
        spread = record.member_fits
        for name in ("k", "n", "t50"):
            known = spread is not None and len(spread) > 1
            values = np.where(table["law"] == "avrami", spread[name].std(ddof=1) if known else np.nan, np.nan)
            table[f"{name}_ensemble_sd"] = values
        tables.append(table)
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def source_columns(record: FilamentRecord) -> pd.DataFrame:
    """The source's table: length, frame, time, A1, A2, V1, V2, V in pixels, an empty column, the same in the unit.

    The second half is empty without a pixel size.
    """
    table, size = record.table, record.series.pixel_size
    pixels = [np.full(len(table), record.length), table["frame"], table["time"]]
    pixels += [table[name] for name in ("A1", "A2", "V1", "V2", "V")]
    edge = np.nan if size is None else size.mean
    scaled = [np.full(len(table), record.length * edge), table["frame"], table["time"]]
    scaled += [table[name] * edge**power for name, power in (("A1", 2), ("A2", 2), ("V1", 3), ("V2", 3), ("V", 3))]
    if size is None:
        scaled = [np.full(len(table), np.nan)] * len(scaled)
    columns = [*pixels, np.full(len(table), np.nan), *scaled]
    names = [*HEADINGS, "", *(f"{name} " for name in HEADINGS)]
    return pd.DataFrame(dict(zip(names, (np.asarray(c) for c in columns), strict=True)))


def write_curves(path: str | os.PathLike, record: FilamentRecord, facts: Mapping[str, Any]) -> None:
    """Write the workbook of one video: `Sheet1` as the source lays it out, then curves, fits, and how they were made.

    Row 1 holds the units, row 2 the headings, the data begin in row 3; columns A to H in pixels, J to Q in the unit.
    """
    import openpyxl

    book = openpyxl.Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")
    size = record.series.pixel_size
    title = "unknown pixel size" if size is None else f"{size.unit}(pixel resolution:{size.mean:g}{size.unit}/pixel)"
    sheet.append(["pixel", *[None] * 8, title])
    sheet.append([*HEADINGS, None, *HEADINGS])
    for row in source_columns(record).itertuples(index=False, name=None):
        sheet.append([_cell(value) for value in row])
    units = record.table.attrs.get("units", {})
    lines = pd.DataFrame({"name": list(facts), "value": [str(value) for value in facts.values()]})
    for name, table in {"curves": record.table, "fits": compare_fits(record.fits), "facts": lines}.items():
        sheet = book.create_sheet(name)
        headings = [
            f"{column} [{units[column]}]" if name == "curves" and column in units else column for column in table
        ]
        sheet.append(headings)
        for row in table.itertuples(index=False, name=None):
            sheet.append([_cell(value) for value in row])
    with io.atomic_path(path) as temporary:
        book.save(temporary)


def _cell(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value


# ------------------------------------------------------------------------------------------------------------ figures


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


# --------------------------------------------------------------------------------------------------------- film strips


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


def film_of(record: FilamentRecord) -> Any:
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


# ------------------------------------------------------------------------------------------------------------- the page


def write_filament_page(
    path: str | os.PathLike,
    records: Sequence[FilamentRecord],
    *,
    settings: Mapping[str, Any],
    facts: Mapping[str, Any],
    failures: Sequence[str] = (),
) -> Path:
    """Write the report: summary, then per video curves, fits, film strip and scores, then method and settings."""
    sections = [Section("Summary", _summary(records))]
    sections += [Section(record.name, _video(record)) for record in records]
    if any(record.scores for record in records):
        sections.append(Section("Scores", [_scores(records), *_SCORE_NOTES]))
    versions = {
        key: value for key, value in facts.items() if key in ("package", "python", "platform", "backend", "model")
    }
    sections.append(Section("Method and settings", [*_METHOD, Table(_flat(settings)), Table(_flat(versions))]))
    frames = sum(len(record.series) for record in records)
    halves = [fit.t50 for record in records for fit in record.fits[:1] if fit.converged]
    cards: dict[str, Any] = {"videos" if len(records) != 1 else "video": len(records), "frames": frames}
    if len(records) == 1 and halves:
        cards[f"t50 in {records[0].series.time_unit}"] = halves[0]
        avrami = records[0].avrami
        cards["Avrami n"] = avrami.parameters["n"]
        cards["Avrami k (tau = t / t end)"] = avrami.parameters["k"]
    warnings = [f"{record.name}: {text}" for record in records for text in record.warnings]
    title = "Gasification of carbon filaments"
    subtitle = " \u00b7 ".join(
        filter(None, [str(facts.get("finished", ""))[:16].replace("T", " "), facts.get("package")])
    )
    return write_page(path, title, sections, subtitle=subtitle, cards=cards, warnings=warnings, failures=failures)


def _summary(records: Sequence[FilamentRecord]) -> list[Any]:
    rows = []
    for record in records:
        reacting, best = record.reacting, next((fit for fit in record.fits if fit.converged), None)
        avrami, times = record.avrami, record.table["time"]
        rows.append(
            {
                "Video": record.name,
                "Frames": len(record.series),
                "Time": f"{times.iloc[0]:g} to {times.iloc[-1]:g} {record.series.time_unit}",
                "A1 at start": reacting["A1"].iloc[0] if len(reacting) else np.nan,
                "A1 at end": reacting["A1"].iloc[-1] if len(reacting) else np.nan,
                "A2 at start": reacting["A2"].iloc[0] if len(reacting) else np.nan,
                "Best law (AICc)": LAWS[best.law].title if best else "none",
                "t50": best.t50 if best else np.nan,
                "Avrami k": avrami.parameters["k"],
                "Avrami n": avrami.parameters["n"],
                "R\u00b2": avrami.r2,
            }
        )
    if not rows:
        return ["No video could be measured."]
    caption = (
        "Areas in px\u00b2. k and n belong to conversion = 1 \u2212 exp(\u2212k \u03c4^n), "
        "\u03c4 = t / time of the last frame."
    )
    return [Table(pd.DataFrame(rows), caption)]


def _video(record: FilamentRecord) -> list[Any]:
    size = record.series.pixel_size
    facts = {
        "Source": record.series.path or "",
        "Pixel size": "unknown: lengths are in pixels" if size is None else f"{size} ({size.source})",
        "Segment length L": f"{record.length:.1f} px"
        + ("" if size is None else f" = {record.length * size.mean:.1f} {overlays.unit_text(size.unit)}")
        + f", {record.length_source}",
        "Time 0": f"frame {record.series.metadata.get('zero_frame')}",
    }
    blocks: list[Any] = [film_of(record), Chart(curves_figure(record), "Areas and wall volume over time.")]
    blocks.append(
        Chart(conversion_figure(record), "Conversion and rate laws; the first in the list fits best by AICc.")
    )
    failed = [fit for fit in record.fits if not fit.converged]
    table = compare_fits(record.fits)
    shown = table[table["converged"]]
    if len(shown):
        rows = pd.DataFrame(
            {
                "Rate law": [LAWS[law].title for law in shown["law"]],
                "k": [_between(*v) for v in zip(shown["k"], shown["k_low"], shown["k_high"], strict=True)],
                "n": [_between(*v) for v in zip(shown["n"], shown["n_low"], shown["n_high"], strict=True)],
                f"t50 in {record.series.time_unit}": [
                    _between(*v) for v in zip(shown["t50"], shown["t50_low"], shown["t50_high"], strict=True)
                ],
                "R\u00b2": shown["r2"].to_numpy(),
                "\u0394AICc": shown["delta_aicc"].to_numpy(),
                "Weight": shown["weight"].to_numpy(),
                "BIC": shown["bic"].to_numpy(),
            }
        )
        blocks.append(Table(rows, "Rate laws with 95 % intervals, frames taken as independent."))
    for reason in dict.fromkeys(fit.reason for fit in failed):
        names = ", ".join(LAWS[fit.law].title for fit in failed if fit.reason == reason)
        blocks.append(f"No fit of {names}: {reason}. The measured curve is above and in the tables.")
    spread = record.member_fits
    if spread is not None and len(spread) > 1:
        values = ", ".join(
            f"{name} {spread[name].mean():.3g} \u00b1 {spread[name].std(ddof=1):.2g}" for name in ("k", "n", "t50")
        )
        blocks.append(
            f"Avrami fits of the {len(spread)} members of the ensemble: {values} (mean and standard deviation). This "
            "is what the choice of partner frames changes; a common error of all members is not in it."
        )
    return [*blocks, Table(facts)]


def _between(value: float, low: float, high: float) -> str:
    if not np.isfinite(value):
        return "\u2013"
    return f"{value:.3g}" + (f" ({low:.3g} to {high:.3g})" if np.isfinite([low, high]).all() else "")


def _scores(records: Sequence[FilamentRecord]) -> Table:
    rows = []
    for record in records:
        for task, scores in record.scores.items():
            rows.append(
                {
                    "Video": record.name, "Task": task, "Macro F1, published": scores.published_f1,
                    "F1 of carbon": scores.foreground_f1, "mean over frames": scores.foreground_f1_frames,
                    "Precision": scores.precision, "Recall": scores.recall, "IoU": scores.iou,
                    f"HD95 in {overlays.unit_text(scores.unit)}": scores.hd95,
                    "Area error": f"{scores.area_error:.1%}", "Area bias": f"{scores.area_bias:+.1%}",
                }
            )  # fmt: skip
    return Table(pd.DataFrame(rows), "Against the true masks, frames from time 0 on.")


_SCORE_NOTES = (
    "The published score is the mean of the F1 of carbon and of background, from pixels pooled over the frames; "
    "background fills most of every frame and lifts it, and a frame without carbon counts 0.5. The F1 of carbon "
    "counts an empty frame found empty as 1. Area error: mean absolute error relative to the first true area. Area "
    "bias: summed predicted over summed true area, minus 1.",
)
_METHOD = (
    "Areas are counts of carbon pixels. The segment is taken as a hollow cylinder of fixed length L: D = A / L, "
    "V1 = \u03c0 A1\u00b2 / (4 L), V2 = \u03c0 A2\u00b2 / (4 L), wall volume V = V1 \u2212 V2. The segment gets "
    "shorter while it burns, so late volumes mix shortening and thinning; the conversion does not depend on L.",
    "Rate laws are fitted by least squares to the conversion; AICc and BIC assume independent Gaussian errors of equal "
    "size. Frames of one video are not independent, so intervals are narrower than repeats of the experiment would be.",
)


def _flat(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): "\u2013" if value is None else str(value) for key, value in values.items()}
