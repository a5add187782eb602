"""A report of any content as one self-contained HTML file: cards, then sections of text, pictures, charts and tables.

`report.html` writes the particle report; this is for everything else, in the same style.
"""

from __future__ import annotations

import dataclasses
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


@dataclasses.dataclass
class Section:
    """One part of a page.

    Attributes:
        title: heading, also in the navigation.
        text: paragraphs.
        pictures: caption -> (Y, X) or (Y, X, 3) uint8 picture.
        charts: caption -> Matplotlib figure.
        tables: caption ("" for none) -> table; its first column heads the rows, numbers are shortened for reading.
    """

    title: str
    text: Sequence[str] = ()
    pictures: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    charts: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    tables: Mapping[str, pd.DataFrame] = dataclasses.field(default_factory=dict)


def write_page(
    path: str | os.PathLike,
    title: str,
    sections: Sequence[Section],
    *,
    subtitle: str = "",
    cards: Sequence[tuple[str, str]] = (),
    warnings: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write a page, all or nothing.

    Args:
        path: HTML file.
        title: of the page.
        sections: its parts.
        subtitle: below the title.
        cards: (value, label) of the most important results.
        warnings: what the reader must not miss.
        settings: shown at the end.

    Raises:
        FileError: the file cannot be written.
    """
    import jinja2
    from markupsafe import Markup

    folder = resources.files("keras_microseg.report").joinpath("templates")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(folder.joinpath("page.html").read_text(encoding="utf-8"))
    shown = [
        {
            "title": section.title,
            "text": section.text,
            "pictures": [
                {"caption": caption, "source": data_uri(np.ascontiguousarray(picture))}
                for caption, picture in section.pictures.items()
            ],
            "charts": [
                Markup(figure_svg(figure, title=caption, name=f"chart-{index}-{i}", adaptive=True))
                for i, (caption, figure) in enumerate(section.charts.items())
            ],
            "tables": [
                {
                    "caption": caption,
                    "columns": list(table.columns),
                    "rows": [[_cell(value) for value in row] for row in table.itertuples(index=False)],
                }
                for caption, table in section.tables.items()
            ],
        }
        for index, section in enumerate(sections, start=1)
    ]
    text = template.render(
        css=Markup(folder.joinpath("report.css").read_text(encoding="utf-8")),
        generator=f"keras_microseg {__version__}",
        title=title,
        subtitle=subtitle,
        cards=cards,
        warnings=warnings,
        sections=shown,
        settings=[(str(key), _cell(value)) for key, value in (settings or {}).items()],
        footer=f"Written by keras_microseg {__version__}.",
    )
    with io.atomic_path(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")


def _cell(value: Any) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (int, np.integer)):
        return str(value)
    if isinstance(value, (float, np.floating)):
        return number(float(value), 3)
    return "\u2013" if value is None else str(value)
