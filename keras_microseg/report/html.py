"""The report: one HTML file that holds everything, opens without a network, and prints."""

from __future__ import annotations

import base64
import datetime
import io as streams
import math
import os
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image as Picture

from keras_microseg import io
from keras_microseg.measurement.quantities import QUANTITIES
from keras_microseg.report import figures, overlays
from keras_microseg.report.classes import class_cells

if TYPE_CHECKING:
    from keras_microseg.report.results import ImageRecord, Results

# (up to so many images, longest side of a picture in pixels): keeps the file small enough to send
_PICTURE_SIDES = ((12, 1600), (60, 1200), (200, 800), (math.inf, 400))
_MAX_PICTURES = 400
_OPEN_AT_FIRST = 4
_TINY = 320
_TITLES = {
    "equivalent_diameter": "Equivalent circular diameter", "feret_min": "Min. Feret diameter",
    "feret_max": "Max. Feret diameter", "area": "Area", "perimeter": "Perimeter", "aspect_ratio": "Aspect ratio",
    "circularity": "Circularity", "solidity": "Solidity",
}  # fmt: skip


def write_report(path: str | os.PathLike, results: Results) -> None:
    """Write `results` as one self-contained HTML file, all or nothing.

    Raises:
        FileError: the file cannot be written.
    """
    text = render_report(results)
    with io.atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")


def render_report(results: Results) -> str:
    """The report as HTML text: pictures and styles inside, no scripts, nothing loaded from elsewhere."""
    import jinja2
    from markupsafe import Markup

    folder = resources.files("keras_microseg.report").joinpath("templates")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(folder.joinpath("report.html").read_text(encoding="utf-8"))
    pictured = results.images[:_MAX_PICTURES]
    return template.render(
        css=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        title="Particle report",
        subtitle=_subtitle(results),
        facts=results.facts,
        cards=_cards(results),
        inputs=len(results.images) + len(results.failures),
        failures=results.failures,
        warnings=results.warnings,
        unit=overlays.unit_text(results.unit),
        **_distribution(results, Markup),
        summary=_summary(results),
        classes=class_cells(results.classes, number),
        images=[_image(results, record, number, len(pictured)) for number, record in enumerate(pictured)],
        image_note=""
        if len(pictured) == len(results.images)
        else f"The first {len(pictured)} of {len(results.images)} images are shown; the others are in overlays/.",
        files=_files(results),
        edge_note=_edge_note(results),
        definitions=_definitions(results),
        method=results.method,
        settings=[(key, _plain_text(value)) for key, value in results.settings.items()],
        versions=_versions(results.facts),
        footer=f"Written by {results.facts.get('package', 'keras_microseg')}. "
        "All numbers are also in particles.csv, particles.xlsx and run.json beside this file.",
    )


def number(value: float, digits: int = 4) -> str:
    """A number for reading: `digits` significant digits, no exponent up to a million, a dash for NaN."""
    if value is None or not math.isfinite(value):
        return "\u2013"
    if value and (abs(value) >= 1e6 or abs(value) < 1e-3):
        return f"{value:.{digits - 1}e}"
    places = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{places}f}".replace(",", "\u2009")


def data_uri(picture: np.ndarray, kind: str = "png") -> str:
    """An 8-bit picture as a `data:` address.

    Args:
        picture: (Y, X), (Y, X, 3) or (Y, X, 4) uint8 array.
        kind: `"png"` (exact) or `"jpeg"` (smaller).
    """
    stream = streams.BytesIO()
    image = Picture.fromarray(picture)
    if kind == "jpeg":
        image.save(stream, format="JPEG", quality=86, optimize=True)
    elif picture.ndim == 3 and picture.shape[2] == 4:
        _as_palette(picture).save(stream, format="PNG", optimize=True)
    else:
        image.save(stream, format="PNG", optimize=True)
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode('ascii')}"


def _as_palette(layer: np.ndarray) -> Picture.Image:
    """An RGBA layer of few colours as a palette picture with opacity, a tenth of the size."""
    packed = np.ascontiguousarray(layer).view(np.uint32)[..., 0]
    colors, index = np.unique(packed, return_inverse=True)
    if len(colors) > 256:
        return Picture.fromarray(layer)
    table = colors.view(np.uint8).reshape(-1, 4)
    image = Picture.fromarray(index.reshape(packed.shape).astype(np.uint8))
    image.putpalette(table[:, :3].tobytes(), "RGB")
    image.info["transparency"] = table[:, 3].tobytes()
    return image


def _subtitle(results: Results) -> str:
    when = results.facts.get("finished") or results.facts.get("started")
    try:
        date = datetime.datetime.fromisoformat(str(when)).strftime("%d %B %Y, %H:%M")
    except ValueError:
        date = ""
    verbs = {"segment": "Segmented and measured", "measure": "Measured", "classify": "Classified and measured"}
    verb = verbs.get(results.command, "Measured")
    return " \u00b7 ".join(filter(None, [verb, date, results.facts.get("package", "")]))


def _cards(results: Results) -> list[dict[str, str]]:
    cards = [
        {"value": f"{len(results.table):,}".replace(",", "\u2009"), "unit": "", "label": "particles"},
        {"value": str(len(results.images)), "unit": "", "label": "image" if len(results.images) == 1 else "images"},
    ]
    found = results.distributions.get("number")
    if found is not None:
        low, high = found.intervals["D50"]
        between = f", 95 %: {low:.3g} to {high:.3g}" if np.isfinite([low, high]).all() else ""
        unit = overlays.unit_text(results.unit)
        cards.append({"value": f"{found.D50:.3g}", "unit": unit, "label": f"median diameter by number{between}"})
    sizes = {str(record.pixel_size) for record in results.images if record.pixel_size is not None}
    if len(sizes) == 1 and all(record.pixel_size is not None for record in results.images):
        text = next(iter(sizes)).rsplit(" ", 1)
        cards.append({"value": text[0], "unit": overlays.unit_text(text[1]), "label": "pixel size"})
    elif results.images:
        known = all(record.pixel_size is not None for record in results.images)
        value = f"{len(sizes)} values" if known else "partly unknown" if sizes else "unknown"
        cards.append({"value": value, "unit": "", "label": "pixel size" + (", see the file list" if sizes else "")})
    return cards


def _distribution(results: Results, markup: Any) -> dict[str, Any]:
    charts, rows, notes, caption = [], [], [], ""
    for weight, found in results.distributions.items():
        figure = figures.size_distribution_figure(found)
        unit = overlays.unit_text(found.unit)
        title = (
            f"Size distribution by {weight}: D10 {found.D10:.3g}, D50 {found.D50:.3g}, D90 {found.D90:.3g} {unit}, "
            f"{found.num_particles} particles"
        )
        svg = figures.figure_svg(figure, title=title, name=f"size-{weight}", adaptive=True)
        charts.append({"weight": weight, "svg": markup(svg)})
        cells = []
        for name in figures.QUANTILES:
            low, high = found.intervals[name]
            between = f"{number(low, 3)} to {number(high, 3)}" if np.isfinite([low, high]).all() else ""
            cells.append({"value": number(getattr(found, name), 4), "interval": between})
        count = f"{found.num_particles:,}".replace(",", "\u2009")
        mean, span = number(found.mean), number(found.span, 3)
        rows.append({"weight": weight, "count": count, "cells": cells, "mean": mean, "span": span})
        caption = (
            f"Equivalent circular diameter. D10, D50, D90: sizes that 10, 50, 90 % lie below, with "
            f"{found.confidence * 100:g} % bootstrap intervals over {results.resampled()}. "
            "Span = (D90 \u2212 D10) / D50."
        )
    for text in (_border_note(results), results.precision(), results.quality()):
        if text:
            notes.append(text)
    return {
        "charts": charts,
        "quantile_rows": rows,
        "quantile_names": list(figures.QUANTILES),
        "quantile_caption": caption,
        "distribution_notes": notes,
    }


def _border_note(results: Results) -> str:
    found = results.distributions.get("number")
    if found is None or found.border != "correct":
        return ""
    cut = f"{found.num_border} particles that" if found.num_border != 1 else "1 particle that"
    touch = "touch" if found.num_border != 1 else "touches"
    return (
        f"{cut} {touch} the image edge cannot be sized and {'are' if found.num_border != 1 else 'is'} left out here. "
        "Large particles are cut more often than small ones; Miles-Lantuejoul weights (ISO 13322-1) correct for that."
    )


def _edge_note(results: Results) -> str:
    cut = sum(results.counts(record)[1] for record in results.images)
    if results.settings.get("exclude_border"):
        return "Particles cut by the image edge were removed (setting exclude_border)."
    return (
        f"{cut} particles touch an image edge. They are in the table (touches_border), with edge_weight 0, "
        "and are left out of the size distribution."
    )


def _summary(results: Results) -> list[dict[str, Any]]:
    table = results.sized
    if len(table):
        table = table[~table["touches_border"].astype(bool)]
    rows = []
    for name, title in _TITLES.items():
        if not len(table) or name not in table.columns:
            continue
        values = table[name].to_numpy(float)
        values = values[np.isfinite(values)]
        if not len(values):
            continue
        deviation = values.std(ddof=1) if len(values) > 1 else math.nan
        cells = [values.mean(), deviation, *np.percentile(values, (10, 50, 90))]
        unit = QUANTITIES[name].unit(overlays.unit_text(results.unit))
        rows.append({"title": title, "unit": unit, "cells": [number(value, 3) for value in cells]})
    return rows


def _image(results: Results, record: ImageRecord, index: int, total: int) -> dict[str, Any]:
    count, cut = results.counts(record)
    ground, outlines, width = _pictures(results, record, total)
    size = record.pixel_size
    rows, columns = record.shape
    facts = [
        ("Size", f"{columns} \u00d7 {rows} px" + ("" if size is None else _extent(columns, rows, size))),
        ("Pixel size", "unknown" if size is None else f"{_pretty(size)}, from {size.source}"),
        ("Particles", f"{count}, of these {cut} cut by the edge"),
    ]
    if record.facts.get("agreement") is not None:
        text = f"agreement {record.facts['agreement']:.2f}, expected F1 about {record.facts['expected_f1']:.2f}"
        facts.append(("Quality", text))
    if record.info_bar is not None:
        facts.append(("Info bar", f"left out from row {record.info_bar}"))
    facts += [("Note", text) for text in record.warnings]
    noun = "particle" if count == 1 else "particles"
    return {
        "title": Path(record.source).name + ("" if record.plane is None else f", plane {record.plane + 1}"),
        "count": f"{count} {noun}",
        "open": index < _OPEN_AT_FIRST,
        "ground": ground,
        "outlines": outlines,
        "width": width * (3 if width < _TINY else 1.5),
        "style": "pixelated" if width < _TINY else "",
        "alt": f"{Path(record.source).name} with the outlines of {count} {noun} and a scale bar",
        "facts": facts,
    }


def _pictures(results: Results, record: ImageRecord, total: int) -> tuple[str, str, int]:
    """Ground with scale bar, outlines as a layer of its own, and their width in pixels."""
    side = next(side for limit, side in _PICTURE_SIDES if total <= limit)
    step = max(1, math.ceil(max(record.shape) / (2 * side)))
    labels, grey = record.read_labels(step), record.read_grey(step)
    if grey is None:
        picture = np.zeros(labels.shape, np.uint8)
    else:
        picture = overlays.to_grey8(grey, record.shown_limits(grey, step))
    scale = min(1.0, side / max(picture.shape))
    rows = labels.shape[0]
    clear = min(rows, record.info_bar // step) if record.info_bar else rows
    if scale < 1:
        height, width = (max(1, round(n * scale)) for n in picture.shape)
        rows, clear = max(1, round(rows * scale)), max(1, round(clear * scale))
        picture = np.array(Picture.fromarray(picture).resize((width, height), Picture.Resampling.LANCZOS))
        labels = labels[
            (np.arange(rows) / scale).astype(int).clip(0, labels.shape[0] - 1)[:, None],
            (np.arange(width) / scale).astype(int).clip(0, labels.shape[1] - 1),
        ]
    size = None if record.pixel_size is None else record.pixel_size.scaled(scale / step)
    shown = np.repeat(picture[..., None], 3, axis=2)
    if size is not None or (scale == 1 and step == 1):
        shown = overlays.draw_scale_bar(shown, size, rows=clear)
    layer = np.zeros((*picture.shape, 4), np.uint8)
    layer[:rows] = overlays.outline_layer(labels)
    plate = np.argwhere((shown != picture[..., None]).any(axis=2))
    if len(plate):  # nothing is drawn over the scale bar
        (y0, x0), (y1, x1) = plate.min(axis=0), plate.max(axis=0) + 1
        layer[y0:y1, x0:x1] = 0
    return data_uri(shown[..., 0], "jpeg"), data_uri(layer) if layer[..., 3].any() else "", picture.shape[1]


def _files(results: Results) -> list[dict[str, str]]:
    rows = []
    for record in results.images:
        count, cut = results.counts(record)
        size = record.pixel_size
        rows.append(
            {
                "file": record.source + ("" if record.plane is None else f" (plane {record.plane + 1})"),
                "count": str(count),
                "edge": str(cut),
                "pixel_size": "unknown" if size is None else _pretty(size),
                "source": "\u2013" if size is None else size.source,
                "info_bar": "\u2013" if record.info_bar is None else f"from row {record.info_bar}",
            }
        )
    rows += [
        {"file": f"{failure.item} (failed)", "count": "\u2013", "edge": "\u2013", "pixel_size": "\u2013",
         "source": "\u2013", "info_bar": "\u2013"}
        for failure in results.failures
    ]  # fmt: skip
    return rows


def _definitions(results: Results) -> list[dict[str, str]]:
    rows = []
    for row in results.definitions().to_dict("records"):
        text = row["meaning"][:1].upper() + row["meaning"][1:] + "."
        if row["formula"]:
            text = f"{row['formula']}. {text}"
        if row["reference"] and row["reference"] != "keras_microseg":
            text += f" [{row['reference']}]"
        rows.append({"name": row["quantity"], "unit": row["unit"].replace("um", "\u00b5m"), "text": text})
    return rows


def _versions(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("keras_microseg", str(facts.get("package", "")).removeprefix("keras_microseg ")),
            ("Python", f"{facts.get('python', '')} on {facts.get('platform', '')}")]  # fmt: skip
    if facts.get("backend"):
        rows.append(("Backend", str(facts["backend"])))
    if facts.get("model"):
        rows.append(("Model", _plain_text(facts["model"])))
    if facts.get("settings_hash"):
        rows.append(("Settings hash", str(facts["settings_hash"])))
    packages = ", ".join(f"{name} {version}" for name, version in dict(facts.get("versions", {})).items())
    return [*rows, ("Packages", packages)]


def _plain_text(value: Any) -> str:
    if value is None:
        return "\u2013"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain_text(entry)}" for key, entry in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain_text(entry) for entry in value)
    return str(value)


def _pretty(size: Any) -> str:
    numbers, unit = str(size).rsplit(" ", 1)
    numbers = numbers.replace(" x ", " \u00d7 ")
    return f"{numbers} {overlays.unit_text(unit)}"


def _extent(columns: int, rows: int, size: Any) -> str:
    unit = overlays.unit_text(size.unit)
    return f", {columns * size.size[-1]:.4g} \u00d7 {rows * size.size[0]:.4g} {unit}"
