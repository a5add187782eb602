"""The report on cathode particles: detachment, damage, contacts, groups, pictures, a turning view."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg import io
from keras_microseg.image import Image
from keras_microseg.report import cathode_figures as figures
from keras_microseg.report.figures import figure_png
from keras_microseg.report.page import Chart, Picture, Section, Table, write_page
from keras_microseg.report.turning import turning_view
from keras_microseg.report.volumes import orthogonal_views, volume_facts

_UNITS = {"um": "µm"}


def write_cathode_report(
    folder: Path,
    tables: dict[str, pd.DataFrame],
    sheets: dict[str, pd.DataFrame],
    settings: Any,
    inputs: tuple[Image, Any, Image | None],
    samples: Sequence[str],
    *,
    failures: Sequence[str] = (),
    note: Callable[..., Path],
) -> Path:
    """Write `report.html` and `figures/*.png`.

    Args:
        folder: of the run.
        tables: particles, sweep, contacts, crack_profile of all samples.
        sheets: sweep, groups, differences, correlations, volumes, definitions.
        settings: with `measures`.
        inputs: labels, phases and grey volume of the sample to show.
        samples: names of the measured samples; the first is shown.
        failures: messages about volumes that could not be measured.
        note: gives the path of a file by its parts, and notes it as an output.
    """
    table = tables["particles"]
    inner = table[~table["is_edge"]]
    inner.attrs = table.attrs
    unit = table.attrs["unit"]
    charts = make_figures(tables, sheets, inner, settings.measures)
    for name, (figure, _) in charts.items():
        path = note("figures", f"{name}.png")
        with io.atomic_path(path) as temporary:
            Path(temporary).write_bytes(figure_png(figure, 200))
    labels, phases, grey = inputs
    sections = [_detachment(charts, sheets, unit), _damage(charts), _groups(charts, sheets)]
    sections.append(Section("Contacts", [Chart(*charts["contacts"]), _contact_facts(tables, inner)]))
    sections.append(Section("Slices", _slices(table, labels, phases, settings.measures, samples[0])))
    if grey is not None:
        sections.append(Section("Orthogonal views", orthogonal_views(_sized(grey, labels), labels=labels)))
    view = turning_view("particles", labels, caption="Particles in colours that tell neighbours apart.")
    sections.append(Section("3D view", [view if view is not None else "Nothing to show."]))
    facts = volume_facts(labels)
    sections.append(Section("Volumes", [Table(facts), Table(sheets["volumes"], "All volumes.")]))
    sections.append(Section("Definitions", [Table(sheets["definitions"], "Columns of particles.csv."),
                                            Table(_settings(settings.measures), "Settings.")]))  # fmt: skip
    cards: dict[str, Any] = {"particles": len(table), "of them whole": len(inner)}
    for name, text in (("detachment", "mean detachment"), ("damage", "mean damage")):
        if name in inner and inner[name].notna().any():
            cards[text] = float(inner[name].mean())
    warnings = []
    if "detachment" not in table:
        warnings.append("No phases were given, so there is no detachment; cracks are what closing adds to the labels.")
    if table.attrs["unit"] == "px":
        warnings.append("The voxel size is unknown: lengths are in voxels.")
    if len(inner) < 20:
        warnings.append(f"Whole particles: only {len(inner)}; means and tests over so few say little.")
    return write_page(
        note("report.html"), "Cathode particles", [section for section in sections if section.blocks], cards=cards,
        subtitle=", ".join(samples), warnings=warnings, failures=failures,
    )  # fmt: skip


def make_figures(
    tables: dict[str, pd.DataFrame], sheets: dict[str, pd.DataFrame], inner: pd.DataFrame, measures: Any
) -> dict[str, tuple[Figure, str]]:
    """Name -> (figure, caption)."""
    found: dict[str, tuple[Figure, str]] = {}
    by = next((name for name in ("group", "sample") if name in inner and 1 < inner[name].nunique() < 9), None)
    whole = "Particles cut by the border are left out."
    if "detachment" in inner and inner["detachment"].notna().any():
        found["detachment_volume"] = (
            figures.value_against_figure(inner, "detachment", "volume", by=by),
            f"Degree of detachment against volume. {whole}",
        )
        found["detachment_size_class"] = (
            figures.group_figure(inner, "detachment", "size_class"),
            "Degree of detachment by size class; squares and bars: mean and its 95 % interval.",
        )
        if by:
            found["detachment_group"] = (
                figures.group_figure(inner, "detachment", by), f"Degree of detachment by {by}.",
            )  # fmt: skip
        if "collector_depth" in inner:
            found["detachment_depth"] = (
                figures.value_against_figure(inner, "detachment", "collector_depth"),
                "Degree of detachment against the distance from the current collector.",
            )
        sweeps = {name: part for name, part in sheets["sweep"].groupby("sample")}
        distances = np.sort(tables["sweep"]["distance"].unique())
        main = distances[np.argmin(np.abs(np.array(measures.distances) - measures.distance))]
        found["sweep"] = (
            figures.sweep_figure(sweeps, inner.attrs["unit"], float(main)),
            "Mean detachment against the distance at which the phase is asked for; dark: 95 % interval of the mean, "
            "light: quartiles of the particles, dashed: main distance.",
        )
    found["damage_volume"] = (
        figures.value_against_figure(inner, "damage", "volume", by=by), f"Crack fraction against volume. {whole}",
    )  # fmt: skip
    labels = set(zip(inner["sample"], inner["label"], strict=True))
    profile = tables["crack_profile"]
    keep = [pair in labels for pair in zip(profile["sample"], profile["label"], strict=True)]
    found["crack_profile"] = (
        figures.crack_profile_figure(profile[keep]), "Share of cracks against depth, all whole particles together.",
    )  # fmt: skip
    found["contacts"] = (figures.degree_figure(inner), f"Number of contacts per particle. {whole}")
    return found


def _detachment(charts: dict[str, Any], sheets: dict[str, pd.DataFrame], unit: str) -> Section:
    names = ("detachment_volume", "detachment_depth", "sweep")
    blocks: list[Any] = [Chart(*charts[name]) for name in names if name in charts]
    if "sweep" in sheets:
        shown = sheets["sweep"].rename(columns={"distance": f"distance ({_UNITS.get(unit, unit)})"})
        blocks.append(Table(shown, "Detachment at several distances: mean over particles with its 95 % interval."))
    return Section("Detachment", blocks)


def _damage(charts: dict[str, Any]) -> Section:
    return Section("Damage", [Chart(*charts[name]) for name in ("damage_volume", "crack_profile")])


def _groups(charts: dict[str, Any], sheets: dict[str, pd.DataFrame]) -> Section:
    blocks: list[Any] = [Chart(*charts[n]) for n in ("detachment_size_class", "detachment_group") if n in charts]
    texts = {
        "groups": "Means of groups with 95 % bootstrap intervals.",
        "differences": "Differences between groups: bootstrap interval, p from permutations, corrected after Holm.",
        "correlations": "Spearman's rank correlation with bootstrap interval; p corrected after Holm.",
    }
    blocks += [Table(sheets[name], text, 3) for name, text in texts.items() if name in sheets and len(sheets[name])]
    return Section("Groups and correlations", blocks)


def _contact_facts(tables: dict[str, pd.DataFrame], inner: pd.DataFrame) -> Table:
    unit = inner.attrs["unit"]
    edges = tables["contacts"]
    facts: dict[str, Any] = {"Contacts": len(edges), "Contacts per whole particle": inner["coordination_number"].mean()}
    if len(edges):
        facts[f"Median contact area ({_UNITS.get(unit, unit)}²)"] = float(edges["area"].median())
    groups = tables["particles"].groupby(["sample", "cluster"]).size()
    facts["Largest group of connected particles"] = int(groups.max()) if len(groups) else 0
    return Table(facts, "Contact graph; all edges are in contacts.csv.")


def _slices(table: pd.DataFrame, labels: Image, phases: Any, measures: Any, sample: str) -> list[Any]:
    value = "detachment" if "detachment" in table else "damage"
    own = table[(table["sample"] == sample) & ~table["is_edge"]].set_index("label")[value]
    roles = {name: getattr(measures.classes, name) for name in ("void", "cbd", "particle", "crack")}
    blocks = []
    numbers = io.slice_numbers(labels)
    for share in (0.3, 0.5, 0.7):
        place = min(int(share * labels.shape[0]), labels.shape[0] - 1)
        plane = None if phases is None else np.asarray(phases[place : place + 1])[0]
        picture = figures.detachment_map(labels, plane, own, place, roles)
        text = f"Slice {numbers[place]}: particles by {value}, blue 0, white 0.5, red 1; grey: cut by the border."
        if phases is not None:
            text += " Black: void, dark blue: carbon/binder, light grey: particle without a label, yellow: cracks."
        blocks.append(Picture(picture, text))
    return blocks


def _settings(measures: Any) -> dict[str, str]:
    """The settings as a person would write them; those that were left out are left out here."""
    values = {field.name: getattr(measures, field.name) for field in dataclasses.fields(measures)}
    classes = dataclasses.asdict(values.pop("classes"))
    shown = {f"values of {role}": _listed(numbers) for role, numbers in classes.items()}
    return shown | {name: _listed(value) for name, value in values.items() if value is not None}


def _listed(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return ", ".join(map(str, value)) or "none"
    return str(value)


def _sized(grey: Image, labels: Image) -> Image:
    return grey if grey.pixel_size is not None else dataclasses.replace(grey, pixel_size=labels.pixel_size)
