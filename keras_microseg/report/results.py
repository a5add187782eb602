"""`Results`: what a run found in its images, and the files that say so (tables, overlays, report, record)."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import intensity, io
from keras_microseg.image import METRES, Image, PixelSize
from keras_microseg.measurement import (
    SizeDistribution,
    describe_quantities,
    particles_needed,
    size_distribution,
    summarize_sizes,
)
from keras_microseg.measurement.distributions import WEIGHTS
from keras_microseg.measurement.quantities import QUANTITIES
from keras_microseg.report import figures, html, overlays
from keras_microseg.report.classes import class_lines, class_table

SIZE = "equivalent_diameter"
SUMMARY = (SIZE, "feret_min", "feret_max", "area", "perimeter", "aspect_ratio", "circularity", "solidity")
OWN_COLUMNS = {
    "image": "file that the particle was found in",
    "label": "number of the particle in the label image of that file",
    "unit": "unit of the lengths in this row; px where the pixel size is unknown",
}
ADDED_COLUMNS = {
    "stability": "best IoU of the particle with those found at other scales, averaged; 1 = found again exactly, below "
    "0.5 = doubtful",
    "class": "class of the particle",
    "class_score": "probability of that class, 0..1",
    "keep_score": "weighted mean of the class probabilities, 0..1; the particle is to be kept from 0.5 on",
}
"""Columns that some runs add to the table."""
_EXCEL_ROWS = 2**20 - 1
_BAND_ROWS = 1024
_MIN_GROUPS = 6


@dataclasses.dataclass(frozen=True)
class ImageRecord:
    """One measured image.

    Attributes:
        name: distinct name in the run; the stem of the files written about it.
        source: the file as the user knows it.
        labels: (Y, X) int32 array, a lazy one, or the path of a label image.
        image: the micrograph as `Image` or path, or None when only labels were given.
        pixel_size: as measured with, or None when unknown.
        info_bar: first row of the data bar left out, or None.
        plane: index of the plane of a stack, or None.
        facts: further facts for the record (seconds, thresholds, scale), JSON values.
        warnings: what the user should know about this image.
        columns: table with further columns per particle and `label`, or the path of such a `.csv`, or None.
    """

    name: str
    source: str
    labels: Any
    image: Image | Path | None = None
    pixel_size: PixelSize | None = None
    info_bar: int | None = None
    plane: int | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    columns: pd.DataFrame | Path | None = None

    def read_columns(self) -> pd.DataFrame | None:
        """`label` and the further columns, or None."""
        if isinstance(self.columns, (str, Path)):
            return pd.read_csv(self.columns, comment="#", keep_default_na=False, na_values=[""], dtype={"class": str})
        return self.columns

    def read_labels(self, step: int = 1) -> np.ndarray:
        """(Y, X) int32 labels, every `step`-th pixel."""
        if not isinstance(self.labels, (str, Path)):
            return np.asarray(self.labels[::step, ::step])
        if step == 1:
            return np.asarray(io.read_labels(self.labels).data)
        return _read_every(io.open_image(self.labels, raw_palette=True), step).astype(np.int32)

    def read_grey(self, step: int = 1) -> np.ndarray | None:
        """(Y, X) grey values with the info bar, every `step`-th pixel, or None without an image."""
        image = self.open()
        return None if image is None else _read_every(image, step)

    def open(self) -> Image | None:
        """The micrograph, one plane, unread; None without one."""
        if self.image is None:
            return None
        image = self.image if isinstance(self.image, Image) else io.open_image(self.image)
        planes = list(image.planes())
        return planes[self.plane or 0]

    @functools.cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of the picture above the info bar, where the labels are."""
        if not isinstance(self.labels, (str, Path)):
            return self.labels.shape
        return io.open_image(self.labels, raw_palette=True).spatial_shape[-2:]

    def shown_limits(self, grey: np.ndarray, step: int = 1) -> tuple[float, float]:
        """Grey values shown as black and white, from the rows above the info bar of `read_grey(step)`."""
        rows = grey.shape[0] if self.info_bar is None else max(1, -(-self.info_bar // step))
        return intensity.percentile_limits(grey[:rows])


@dataclasses.dataclass(frozen=True)
class Results:
    """What a run found.

    Attributes:
        command: `"segment"` or `"measure"`.
        images: one record per image that could be processed.
        table: one row per particle: `image`, `label`, the quantities of `measure_particles`, `unit`.
        unit: unit of lengths in statistics, `"px"` when no pixel size is known.
        failures: what could not be processed; objects with `item` and `message`.
        settings: the settings of the run, JSON values.
        facts: versions, backend, model, times; JSON values.
        method: what was done, in sentences.
        out: folder with the files, or None.
    """

    command: str
    images: Sequence[ImageRecord]
    table: pd.DataFrame
    unit: str
    failures: Sequence[Any] = ()
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    method: Sequence[str] = ()
    out: Path | None = None

    @property
    def report_path(self) -> Path | None:
        """`report.html`, when it was written."""
        path = None if self.out is None else self.out / "report.html"
        return path if path is not None and path.is_file() else None

    @functools.cached_property
    def sized(self) -> pd.DataFrame:
        """The rows of `table` whose lengths are in `unit`."""
        if not len(self.table):
            return self.table
        rows = self.table[self.table["unit"] == self.unit]
        rows.attrs = dict(self.table.attrs)
        return rows

    @functools.cached_property
    def distributions(self) -> dict[str, SizeDistribution]:
        """Distribution of the equivalent diameter by number, area and volume; empty without particles to count."""
        if not len(self.sized):
            return {}
        groups = "image" if self.resampled() == "images" else None
        found = {weight: size_distribution(self.sized, SIZE, weight, groups=groups) for weight in WEIGHTS}
        return {weight: one for weight, one in found.items() if one.num_particles}

    def resampled(self) -> str:
        """What the bootstrap draws: whole images where there are enough of them, else particles."""
        return "images" if self.sized["image"].nunique() >= _MIN_GROUPS else "particles"

    @functools.cached_property
    def warnings(self) -> list[str]:
        """What the user should know before using the numbers."""
        notes = [f"{record.source}: {text}" for record in self.images for text in record.warnings]
        unknown = [record for record in self.images if record.pixel_size is None]
        if unknown and len(unknown) == len(self.images):
            notes.insert(
                0, "The pixel size is unknown: all lengths are in pixels. Pass it with --pixel-size, like 1.2nm."
            )
        elif unknown:
            names = ", ".join(record.source for record in unknown[:5]) + (" ..." if len(unknown) > 5 else "")
            notes.insert(
                0,
                f"The pixel size of {len(unknown)} of {len(self.images)} images is unknown ({names}). Their particles "
                "are in the table, in px, but not in the statistics. Pass it with --pixel-size.",
            )
        if self.images and not len(self.table):
            notes.append("No particle was found in any image.")
        return notes

    def highlights(self) -> list[str]:
        """The main numbers as lines of text."""
        lines = []
        for weight, found in self.distributions.items():
            low, high = found.intervals["D50"]
            unit = overlays.unit_text(found.unit)
            between = f" (95 %: {low:.4g} to {high:.4g})" if np.isfinite([low, high]).all() else ""
            lines.append(
                f"By {weight}: D10 = {found.D10:.4g}, D50 = {found.D50:.4g}{between}, D90 = {found.D90:.4g} {unit}"
            )
        return [*lines, *class_lines(self.classes, self.unit), *filter(None, [self.quality()])]

    @functools.cached_property
    def classes(self) -> pd.DataFrame:
        """One row per class of particles, see `class_table`; empty when particles have no classes."""
        groups = "image" if len(self.sized) and self.resampled() == "images" else None
        return class_table(self.sized, groups=groups)

    def quality(self) -> str:
        """The label-free estimate of quality in a sentence; empty when it was not asked for."""
        judged = [record for record in self.images if record.facts.get("agreement") is not None]
        if not judged:
            return ""
        weights = [max(1, self.counts(record)[0]) for record in judged]
        means = [np.average([record.facts[name] for record in judged], weights=weights)
                 for name in ("agreement", "expected_f1")]  # fmt: skip
        text = f"Quality: agreement with runs at other scales F1 = {means[0]:.2f}"
        text += f", expected F1 with the truth about {means[1]:.2f}"
        worst = min(judged, key=lambda record: record.facts["agreement"])
        if len(judged) > 1:
            text += f"; least in {Path(worst.source).name}: {worst.facts['agreement']:.2f}"
        if "stability" in self.table.columns and len(self.table):
            doubtful = int((self.table["stability"] < 0.5).sum())
            text += f"; {doubtful} of {len(self.table)} particles are doubtful (stability < 0.5)"
        return text

    def counts(self, record: ImageRecord) -> tuple[int, int]:
        """Particles in an image, and how many of them the edge cuts."""
        if not len(self.table):
            return 0, 0
        rows = self.table[self.table["image"] == record.name]
        return len(rows), int(rows["touches_border"].sum())

    def definitions(self) -> pd.DataFrame:
        """Columns of `table`: quantity, unit, formula, meaning, reference."""
        added = {name: text for name, text in ADDED_COLUMNS.items() if name in self.table.columns}
        if "class" in added:
            names = [name for name in self.table.columns if name.startswith("p_")]
            added |= {name: f"probability of the class {name[2:]}, 0..1" for name in names}
        own = pd.DataFrame(
            [(name, "", "", text, "keras_microseg") for name, text in {**OWN_COLUMNS, **added}.items()],
            columns=["quantity", "unit", "formula", "meaning", "reference"],
        )
        known = [name for name in self.table.columns if name in QUANTITIES] or [
            quantity.name for quantity in QUANTITIES.values() if quantity.is_default and quantity.kind != "grey"
        ]
        return pd.concat([own, describe_quantities(known, unit=self.unit)], ignore_index=True)

    def image_table(self) -> pd.DataFrame:
        """One row per image: file, particles, pixel size and where it is known from, info bar."""
        rows = []
        for record in self.images:
            count, cut = self.counts(record)
            size = record.pixel_size
            judged = {name: record.facts[name] for name in ("agreement", "expected_f1") if name in record.facts}
            rows.append(
                {
                    "image": record.name,
                    "file": record.source,
                    "particles": count,
                    "cut_by_edge": cut,
                    "pixel_size": "unknown" if size is None else str(size),
                    "pixel_size_source": "" if size is None else size.source,
                    "info_bar_from_row": record.info_bar,
                    **judged,
                    "notes": " ".join(record.warnings),
                }
            )
        return pd.DataFrame(rows)

    def origin(self) -> dict[str, Any]:
        """The facts every table carries: versions, settings, model, unit."""
        keys = ("package", "settings_hash", "model", "backend")
        known = {key: self.facts[key] for key in keys if self.facts.get(key) is not None}
        return {"command": self.command, **known, "unit of lengths": self.unit, "settings": dict(self.settings)}

    def write(self, out: str | os.PathLike, *, place: Callable[..., Path] | None = None) -> Results:
        """Write all files: `particles.csv`, `particles.xlsx`, `size_distribution.*`, overlays, report, `run.json`.

        Label images are written where the records still hold arrays.

        Args:
            out: folder, made when missing.
            place: gives the path of a file from its parts; default below `out`.

        Returns:
            The same results with `out` set.

        Raises:
            FileError: a file cannot be written.
        """
        out = Path(out)
        place = place or out.joinpath
        for record in self.images:
            if not isinstance(record.labels, (str, Path)):
                facts = {**self.origin(), "source": record.source}
                io.write_labels(
                    place("labels", f"{record.name}.tif"), record.labels, pixel_size=record.pixel_size, origin=facts
                )
        self.write_tables(place)
        self.write_figures(place)
        for record in self.images:
            self.write_overlay(record, place("overlays", f"{record.name}.png"))
        html.write_report(place("report.html"), self)
        self.write_record(place("run.json"))
        object.__setattr__(self, "out", out)  # the numbers computed so far stay
        return self

    def write_tables(self, place: Callable[..., Path]) -> None:
        """`particles.csv` and `particles.xlsx` with sheets on sizes, images, method and definitions."""
        io.write_table(place("particles.csv"), self.table, facts=self.origin())
        rows = [("method", text) for text in self.method]
        rows += [(f"setting: {key}", _text(value)) for key, value in self.settings.items()]
        rows += [("unit of lengths", self.unit), *((key, _text(value)) for key, value in self.facts.items())]
        rows += [("not processed", failure.message) for failure in self.failures]
        rows += [("note", text) for text in self.warnings]
        sheets = {
            "sizes": self.size_table(),
            **({"classes": self.classes} if len(self.classes) else {}),
            "images": self.image_table(),
            "method": pd.DataFrame(rows, columns=["name", "value"]),
            "definitions": self.definitions(),
        }
        table = self.table
        if len(table) > _EXCEL_ROWS:
            attrs, table = table.attrs, table.head(_EXCEL_ROWS)
            table.attrs = attrs
        io.write_table(place("particles.xlsx"), table, facts=self.origin(), sheets=sheets)

    def size_table(self) -> pd.DataFrame:
        """D10, D50, D90, mean and span of diameters by number, area and volume, with intervals."""
        if not self.distributions:
            return pd.DataFrame({"weight": [], "D10": [], "D50": [], "D90": []})
        groups = "image" if self.resampled() == "images" else None
        others = summarize_sizes(self.sized, ("feret_min", "feret_max"), groups=groups, num_bootstrap=200)
        own = pd.DataFrame([found.summary() for found in self.distributions.values()])
        return pd.concat([own, others], ignore_index=True)

    def write_figures(self, place: Callable[..., Path]) -> None:
        """`size_distribution_WEIGHT.png` (300 dpi) and `.svg`."""
        for weight, found in self.distributions.items():
            figure = figures.size_distribution_figure(found)
            with io.atomic_path(place("figures", f"size_distribution_{weight}.png")) as temporary:
                Path(temporary).write_bytes(figures.figure_png(figure))
            title = f"Size distribution by {weight}"
            with io.atomic_path(place("figures", f"size_distribution_{weight}.svg")) as temporary:
                text = figures.figure_svg(figure, title=title, name=weight)
                Path(temporary).write_text(text, encoding="utf-8")

    def write_overlay(self, record: ImageRecord, path: Path) -> None:
        """The image with outlines and scale bar at full size (above 40 megapixels every n-th pixel)."""
        overlays.write_picture(path, self.overlay(record))

    def overlay(self, record: ImageRecord) -> np.ndarray:
        """(Y, X, 3) uint8 picture of an image with outlines and scale bar; of the labels alone without an image."""
        step = overlays.view_step(record.shape)
        labels, grey = record.read_labels(step), record.read_grey(step)
        grey = np.zeros(labels.shape, np.uint8) if grey is None else grey
        size = None if record.pixel_size is None else record.pixel_size.scaled(1 / step)
        limits = record.shown_limits(grey, step)
        picture = overlays.draw_outlines(grey, labels, limits=limits, scale_bar=False)
        rows = record.info_bar // step if record.info_bar else None
        return overlays.draw_scale_bar(picture, size, rows=rows)

    def write_record(self, path: Path) -> None:
        """`run.json`: everything but the particles."""
        record = {
            **self.facts,
            "command": self.command,
            "settings": dict(self.settings),
            "method": list(self.method),
            "unit": self.unit,
            "particles": len(self.table),
            "sizes": [found.summary() for found in self.distributions.values()],
            "classes": self.classes.to_dict("records"),
            "images": [
                {**row, **dict(record.facts)}
                for row, record in zip(self.image_table().to_dict("records"), self.images, strict=True)
            ],
            "failures": [dataclasses.asdict(failure) for failure in self.failures],
            "warnings": self.warnings,
        }
        with io.atomic_path(path) as temporary:
            text = json.dumps(_finite(record), indent=1, ensure_ascii=False, default=_plain)
            Path(temporary).write_text(text + "\n", encoding="utf-8")

    def precision(self) -> str:
        """How many more particles would make the median size good to 5 %."""
        found = self.distributions.get("number")
        if found is None or not np.isfinite(found.intervals["D50"]).all():
            return ""
        needed = particles_needed(found, 0.05, quantity="D50")
        if not needed.more:
            return f"D50 by number is known to \u00b1{needed.half_width * 100:.1f} % (95 % confidence)."
        return (
            f"D50 by number is known to \u00b1{needed.half_width * 100:.0f} % (95 % confidence); "
            f"\u00b15 % would take about {needed.total:,} particles, {needed.more:,} more."
        )


def choose_unit(sizes: Iterable[PixelSize | None], wanted: str | None = None) -> str | None:
    """One length unit for all images: `wanted`, else nm, um or mm after the median pixel; None when none is known."""
    metres = [size.mean * METRES[size.unit] for size in sizes if size is not None]
    if not metres:
        return None
    if wanted:
        return wanted
    middle = float(np.median(metres))
    return "nm" if middle < 25e-9 else "um" if middle < 25e-6 else "mm"


def join_tables(tables: Mapping[str, pd.DataFrame], unit: str) -> pd.DataFrame:
    """One table of the particle tables of several images: `image` first, `unit` of every row last.

    Args:
        tables: image name -> table of `measure_particles`.
        unit: unit of lengths for the `attrs` of the result.
    """
    if not tables:
        return pd.DataFrame({name: [] for name in ("image", "label", "touches_border", "unit")})
    parts = []
    for name, table in tables.items():
        part = table.copy()
        part.insert(0, "image", name)
        part["unit"] = table.attrs.get("unit", "px")
        part.attrs = {}
        parts.append(part)
    filled = [part for part in parts if len(part)] or parts[:1]
    joined = pd.concat(filled, ignore_index=True)
    units = {name: QUANTITIES[name].unit(unit) for name in joined.columns if name in QUANTITIES}
    joined.attrs = {"unit": unit, "units": units}
    return joined


def check_unit(unit: str | None) -> str | None:
    """The unit in its usual spelling; `UserError` when it is not a length."""
    if unit is None:
        return None
    return PixelSize((1.0, 1.0), unit).unit


def _read_every(image: Image, step: int) -> np.ndarray:
    """Every `step`-th pixel of a single image, read in bands."""
    if step == 1:
        return io.read_grey(image)
    rows, columns = image.spatial_shape
    size = max(step, _BAND_ROWS // step * step)
    bands = (io.read_grey(image, (slice(y, min(rows, y + size)), slice(0, columns))) for y in range(0, rows, size))
    return np.concatenate([band[::step, ::step] for band in bands])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _finite(value: Any) -> Any:
    """NaN and infinity, which JSON does not know, become None."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
