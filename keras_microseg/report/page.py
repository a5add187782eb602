"""A page of sections: the one way in which workflows write HTML reports other than the particle report.

A page is one file that holds everything, opens without a network, follows the reader's light or dark setting, and
prints. Sections hold text, tables, pictures, charts, and parts with a script of their own (film strips, 3D views).
"""

from __future__ import annotations

import dataclasses
import html
import math
import os
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg import __version__, io
from keras_microseg.report.figures import figure_svg
from keras_microseg.report.html import data_uri, number


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph; plain text."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        rows: a `DataFrame`, or a mapping of names to values (two columns).
        caption: above it.
        digits: significant digits of numbers.
    """

    rows: pd.DataFrame | Mapping[str, Any]
    caption: str = ""
    digits: int = 4


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        pixels: (Y, X), (Y, X, 3) or (Y, X, 4) uint8.
        caption: below it; also its description for readers who cannot see it.
        width: shown width, px of the screen; None = as wide as it is, at most the page.
        kind: "png" (exact) or "jpeg" (smaller).
    """

    pixels: np.ndarray
    caption: str
    width: int | None = None
    kind: str = "png"


@dataclasses.dataclass(frozen=True)
class Chart:
    """A figure as SVG, in the colours of the page.

    Attributes:
        figure: of matplotlib.
        caption: below it; also its description.
    """

    figure: Figure
    caption: str


@dataclasses.dataclass(frozen=True)
class Widget:
    """HTML of ours with a script, as it stands: never put text of a user in it unescaped.

    Attributes:
        markup: HTML.
        script: JavaScript, run once the page is there; it can load nothing.
        caption: below it.
    """

    markup: str
    script: str = ""
    caption: str = ""


def colour_legend(entries: Mapping[str, tuple[int, int, int]]) -> Widget:
    """Patches of colour with their texts, side by side."""
    patch = (
        "display:inline-block;width:1.1em;height:1.1em;border:1px solid #8888;border-radius:3px;"
        "vertical-align:-0.2em;margin-right:.4em;background:rgb({},{},{})"
    )
    shown = "".join(
        f'<span style="white-space:nowrap;margin-right:1.2em"><span style="{patch.format(*colour)}"></span>'
        f"{html.escape(text)}</span>"
        for text, colour in entries.items()
    )
    return Widget(f'<p style="line-height:1.9">{shown}</p>')


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the page with a heading and a link in the menu.

    Attributes:
        title: heading.
        blocks: `Text`, `Table`, `Picture`, `Chart`, `Widget`; plain strings are paragraphs.
    """

    title: str
    blocks: Sequence[Any]


def write_page(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    cards: Mapping[str, Any] | None = None,
    warnings: Sequence[str] = (),
    failures: Sequence[str] = (),
) -> Path:
    """Write a page, all or nothing.

    Args:
        path: of the `.html` file.
        title: of the page.
        sections: in order.
        subtitle: below the title.
        cards: label -> value of the most important results, shown large.
        warnings: what a reader should know.
        failures: what could not be done.

    Returns:
        The path.

    Raises:
        FileError: the file cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    folder = resources.files("keras_microseg.report").joinpath("templates")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    scripts = [b.script for s in sections for b in s.blocks if isinstance(b, Widget) and b.script]
    text = template.render(
        css=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        title=title,
        subtitle=subtitle,
        cards=[(label, _cell(value, 4)) for label, value in (cards or {}).items()],
        warnings=warnings,
        failures=failures,
        sections=[
            {
                "id": f"part-{i}",
                "title": s.title,
                "blocks": [Markup(_block(b, f"p{i}-{j}")) for j, b in enumerate(s.blocks)],
            }
            for i, s in enumerate(sections)
        ],
        scripts=[Markup(f"(() => {{\n{script}\n}})();") for script in scripts],
        package=f"keras_microseg {__version__}",
    )  # fmt: skip
    with io.atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")
    return Path(path)


def _block(block: Any, name: str) -> str:
    """HTML of one block."""
    if isinstance(block, str):
        block = Text(block)
    if isinstance(block, Text):
        return f"<p>{html.escape(block.text)}</p>"
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Widget):
        return f'<figure class="widget">{block.markup}{_caption(block.caption)}</figure>'
    if isinstance(block, Chart):
        svg = figure_svg(block.figure, title=block.caption, name=name, adaptive=True)
        return f'<figure class="chart">{svg}{_caption(block.caption)}</figure>'
    width = block.width or block.pixels.shape[1]
    source = data_uri(np.ascontiguousarray(block.pixels), block.kind)
    image = (
        f'<img src="{source}" alt="{html.escape(block.caption, quote=True)}" style="width:{width}px;max-width:100%">'
    )
    return f"<figure>{image}{_caption(block.caption)}</figure>"


def _caption(text: str) -> str:
    return f'<figcaption class="soft small">{html.escape(text)}</figcaption>' if text else ""


def _table(table: Table) -> str:
    caption = f"<caption>{html.escape(table.caption)}</caption>" if table.caption else ""
    if isinstance(table.rows, pd.DataFrame):
        numeric = [pd.api.types.is_numeric_dtype(table.rows[name]) for name in table.rows]
        head = "".join(
            f'<th scope="col"{_NUMBER if right else ""}>{html.escape(str(name))}</th>'
            for name, right in zip(table.rows, numeric, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{_NUMBER if right else ''}>{html.escape(_cell(value, table.digits))}</td>"
                for value, right in zip(row, numeric, strict=True)
            )
            + "</tr>"
            for row in table.rows.itertuples(index=False)
        )
        head = f"<thead><tr>{head}</tr></thead>"
    else:
        head = ""
        body = "".join(
            f'<tr><th scope="row">{html.escape(str(name))}</th>'
            f'<td class="wide">{html.escape(_cell(value, table.digits))}</td></tr>'
            for name, value in table.rows.items()
        )
    return f'<div class="scroll"><table>{caption}{head}<tbody>{body}</tbody></table></div>'


_NUMBER = ' class="number"'


def _cell(value: Any, digits: int) -> str:
    if value is None or (isinstance(value, (float, np.floating)) and math.isnan(value)):
        return "\u2013"
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return f"{int(value):,}".replace(",", "\u2009")
    if isinstance(value, (float, np.floating)):
        return number(float(value), digits)
    return str(value)
