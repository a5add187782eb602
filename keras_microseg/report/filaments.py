"""Results about filament videos: curves in the source's spreadsheet and as CSV, figures, one page with film strips."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.io.frames import FrameSeries
from keras_microseg.measurement.kinetics import LAWS, RateFit, compare_fits, half_time
from keras_microseg.metrics.change import ChangeScores
from keras_microseg.report import overlays
from keras_microseg.report.filament_figures import conversion_figure, curves_figure, film_of
from keras_microseg.report.page import Chart, Section, Table, write_page

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
                "A1 at start": round(reacting["A1"].iloc[0]) if len(reacting) else np.nan,
                "A1 at end": round(reacting["A1"].iloc[-1]) if len(reacting) else np.nan,
                "A2 at start": round(reacting["A2"].iloc[0]) if len(reacting) else np.nan,
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
    blocks.append(Chart(conversion_figure(record), "Conversion and rate laws, the best by AICc first."))
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
                "Weight": [f"{weight:.3f}" for weight in shown["weight"]],
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
