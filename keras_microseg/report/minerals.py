"""The page about a mineral map: the map, fractions, contacts, sizes, and how far all of that is to be trusted."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.image import PixelSize
from keras_microseg.report import mineral_figures as figures
from keras_microseg.report.overlays import draw_scale_bar, unit_text
from keras_microseg.report.page import Chart, Picture, Section, Table, Text, Widget, colour_legend, write_page


@dataclasses.dataclass(frozen=True)
class MineralRecord:
    """What is known about one map.

    Attributes:
        title: name of the sample.
        names, colours: of the classes.
        quantities: facts of `mineral quantify`.
        tables: its tables by name (`fractions`, `association`, ...); those that lack are left out of the page.
        map_classes: (H, W) class numbers reduced for the page, others than 0 to K - 1 = no sample.
        grey: (H, W) micrograph on the same grid, or None.
        picture_size: pixel size of these two.
        zoom_link: file of the zoomable map, relative to the page, or None.
        registration: errors and facts of the registration, or None; pictures by caption.
        confusion: (K, K) pixels true x predicted of held-out tiles, or None.
        scores: table of scores per class, or None.
        errors_link: page with all scores, relative to this one, or None.
        method: how the map was made, in words.
        facts: what the numbers rest on, for the last section.
        warnings: what a reader should know.
    """

    title: str
    names: Sequence[str]
    colours: Sequence[tuple[int, int, int]]
    quantities: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    map_classes: np.ndarray
    grey: np.ndarray | None = None
    picture_size: PixelSize | None = None
    zoom_link: str | None = None
    registration: Mapping[str, Any] | None = None
    registration_pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    confusion: np.ndarray | None = None
    scores: pd.DataFrame | None = None
    errors_link: str | None = None
    method: str = ""
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()

    @property
    def palette(self) -> dict[str, tuple[int, int, int]]:
        """Class -> colour."""
        return dict(zip(self.names, self.colours, strict=True))


def write_mineral_page(path: str | os.PathLike, record: MineralRecord) -> Path:
    """Write the page, all or nothing; returns its path."""
    q = record.quantities
    percent = round(100 * q["confidence"])
    cards = {}
    if "porosity" in q:
        low, high = (100 * q[f"porosity_{end}"] for end in ("low", "high"))
        cards[f"porosity ({percent} %: {low:.1f} to {high:.1f} %)"] = f"{100 * q['porosity']:.1f} %"
    for row in record.tables["fractions"].sort_values("share", ascending=False).head(3).to_dict("records"):
        if row["class"] not in q["pores"]:
            cards[f"{row['class']} ({100 * row['low']:.1f} to {100 * row['high']:.1f} %)"] = (
                f"{100 * row['share']:.1f} %"
            )
    unit = unit_text(q["unit"])
    cards[f"sample area, {unit}\u00b2" if q["unit"] != "px" else "sample area, px"] = q["sample_area"]
    sections = [_map(record), _fractions(record, percent), _area(record), _contacts(record), _grains(record)]
    sections += [_functions(record), _registration(record), _errors(record)]
    sections.append(Section("How this was made", [Text(record.method), Table(dict(record.facts))]))
    return write_page(
        path, record.title, [s for s in sections if s is not None], cards=cards,
        subtitle="Mineral map: modal mineralogy, porosity, texture", warnings=[*record.warnings, *q.get("notes", [])],
    )  # fmt: skip


def _legend(record: MineralRecord) -> Widget:
    shares = record.tables["fractions"].set_index("class")["share"]
    entries = colour_legend({f"{name} {100 * shares[name]:.1f} %": c for name, c in record.palette.items()}).markup
    link = ""
    if record.zoom_link:
        target = html.escape(record.zoom_link, quote=True)
        link = f'<p><a href="{target}">Open the map to zoom into it</a> (full resolution, no server needed)</p>'
    return Widget(f"{entries}{link}")


def _map(record: MineralRecord) -> Section:
    picture = figures.map_picture(record.map_classes, record.colours, record.picture_size)
    blocks: list[Any] = [_legend(record), Picture(picture, "Minerals; dark: outside of the sample or unknown.", 900)]
    if record.grey is not None:
        grey = np.repeat(record.grey[..., np.newaxis], 3, axis=2)
        blocks.append(
            Picture(draw_scale_bar(grey, record.picture_size), "Micrograph, black and fields corrected.", 900, "jpeg")
        )
    return Section("Map", blocks)


def _fractions(record: MineralRecord, percent: int) -> Section:
    table, q = record.tables["fractions"], record.quantities
    compared = record.tables.get("comparison")
    references: dict[str, dict[str, float]] = {}
    if compared is not None:
        for row in compared.to_dict("records"):
            references.setdefault(str(row["method"]), {})[row["class"]] = row["reference"]
    chart = figures.fractions_figure(table, record.colours, references)
    how = f"{percent} % intervals for the rock from {q['blocks']} blocks of {q['block_px']} px"
    if q["correction"]:
        how += (
            f"; corrected for errors of classification ({q['correction']}), whose uncertainty is part of the interval"
        )
    shown = pd.DataFrame(
        {
            "mineral": table["class"],
            "counted %": table["raw"] * 100,
            "area %": table["share"] * 100,
            "from": table["low"] * 100,
            "to": table["high"] * 100,
        }
    )
    if "mass" in table:
        shown["mass %"] = table["mass"] * 100
    if "detection_limit" in table:
        shown["detected from %"] = table["detection_limit"] * 100
    shown["worth points"] = table["effective_number"].round()
    blocks: list[Any] = [
        Chart(chart, f"Shares: {how}."),
        Table(shown, "Shares", 3),
        Text(
            "Detected from: a smaller share cannot be told from false alarms (5 % of either error). "
            "Worth points: as many independent points would tell the share as exactly as the whole map does."
        ),
    ]
    if compared is not None and len(compared):
        blocks.append(
            Table(
                pd.DataFrame(
                    {
                        "method": compared["method"],
                        "class": compared["class"],
                        "this map %": compared["share"] * 100,
                        "reference %": compared["reference"] * 100,
                        "difference, points": compared["points"],
                        "inside the interval": compared["inside"].map({True: "yes", False: "no"}),
                    }
                ),
                "Comparison with other methods",
                3,
            )
        )
    return Section("Fractions", blocks)


def _area(record: MineralRecord) -> Section | None:
    area, grown = record.tables.get("representative_area"), record.tables.get("convergence")
    if area is None or grown is None or not len(area):
        return None
    chart = figures.representative_figure(area, grown, record.palette, record.quantities["unit"])
    caption = "Left: spread between squares of an edge, one standard deviation. Right: shares as the area grows."
    return Section("Representative area", [Chart(chart, caption)])


def _contacts(record: MineralRecord) -> Section | None:
    contacts = record.tables.get("association")
    if contacts is None:
        return None
    table = contacts.set_index("class")
    blocks: list[Any] = [
        Chart(figures.association_figure(table), "Mineral association: percent of the row's boundary.")
    ]
    fractions, unit = record.tables["fractions"], unit_text(record.quantities["unit"])
    shown = pd.DataFrame(
        {
            "mineral": fractions["class"],
            f"L_A, 1/{unit}": fractions["boundary_per_area"],
            f"S_V, 1/{unit}": fractions["specific_surface"],
            f"S/V, 1/{unit}": fractions["surface_per_class"],
            f"chord x, {unit}": fractions["chord_x"],
            f"chord y, {unit}": fractions["chord_y"],
        }
    )
    caption = (
        "L_A: boundary per area of the sample; S_V: surface per volume of the sample, 4/pi L_A; S/V: per volume of the "
        "mineral; mean lengths of uncut chords along x and y"
    )
    blocks.append(Table(shown, caption, 3))
    return Section("Contacts and surfaces", blocks)


def _grains(record: MineralRecord) -> Section | None:
    grains, sizes = record.tables.get("grains"), record.tables.get("grain_sizes")
    if grains is None or sizes is None or not len(sizes):
        return None
    unit = record.quantities["unit"]
    names = {
        "class": "mineral",
        "grains": "grains",
        "D10": f"D10, {unit_text(unit)}",
        "D50": "D50",
        "D50_low": "from",
        "D50_high": "to",
        "D90": "D90",
        "mean_3d": "mean in 3D",
        "phi_mean": "mean, phi",
        "phi_sorting": "sorting, phi",
        "phi_skewness": "skewness",
        "size": "size",
        "sorted": "sorting",
    }
    shown = sizes[[name for name in names if name in sizes]].rename(columns=names)
    return Section(
        "Grains",
        [
            Chart(
                figures.grain_size_figure(grains, record.palette, unit), "Grain sizes by area; number of whole grains."
            ),
            Table(shown, "Grain sizes: by area; mean in 3D: spheres with these sections, by number", 3),
        ],
    )


def _functions(record: MineralRecord) -> Section | None:
    tables, unit = record.tables, record.quantities["unit"]
    if any(name not in tables for name in ("two_point", "lineal_path", "chords", "pore_sizes")):
        return None
    first = figures.distance_figure(tables["two_point"], tables["lineal_path"], record.palette, unit)
    second = figures.chord_figure(tables["chords"], tables["pore_sizes"], record.palette, unit)
    return Section(
        "Texture",
        [
            Chart(first, "Left: autocorrelation of each mineral. Right: probability that a line lies in one mineral."),
            Chart(second, "Left: chord lengths. Right: local width of the pores (largest disc inside)."),
        ],
    )


def _registration(record: MineralRecord) -> Section | None:
    found = record.registration
    if found is None:
        return None
    rows = {
        "error of held-out windows, mean": f"{found['held_out_mean']:.3f} map px",
        "error of held-out windows, 95 % below": f"{found['held_out_p95']:.3f} map px",
        "residual of the fit, mean": f"{found['residual_mean']:.3f} map px",
        "windows that agree": f"{found['windows_used']} of {found['windows']}",
        "scale": f"{found['scale']:.4f} micrograph px per map px",
        "rotation": f"{found['rotation_degrees']:.3f}\u00b0",
        "mutual information, before and after": f"{found['mutual_information_before']:.3f}, "
        f"{found['mutual_information_after']:.3f} bit",
    }
    blocks: list[Any] = [Table(rows, "Registration of the mineral map")]
    blocks += [Picture(p, caption, 700, "jpeg") for caption, p in record.registration_pictures.items()]
    return Section("Registration", blocks)


def _errors(record: MineralRecord) -> Section | None:
    if record.confusion is None:
        return None
    blocks: list[Any] = [
        Chart(
            figures.confusion_figure(record.confusion, record.names),
            "Held-out tiles: percent of each true class. The truth is the registered mineral map with its own errors.",
        )
    ]
    if record.scores is not None:
        caption = "Scores on held-out tiles; IoU with 95 % intervals from tiles drawn with replacement"
        blocks.append(Table(record.scores, caption, 3))
    if record.errors_link:
        target = html.escape(record.errors_link, quote=True)
        blocks.append(Widget(f'<p><a href="{target}">Held-out tiles beside their truth, all scores</a></p>'))
    return Section("Errors of classification", blocks)
