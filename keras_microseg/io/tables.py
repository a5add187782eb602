"""Tables with the facts they rest on, as CSV or Excel files."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_microseg.checks import MissingPackageError, UserError
from keras_microseg.io.files import atomic_path

if TYPE_CHECKING:
    import pandas

EXCEL_ROWS = 2**20


def write_table(
    path: str | os.PathLike,
    table: pandas.DataFrame,
    *,
    facts: Mapping[str, Any],
    sheets: Mapping[str, pandas.DataFrame] | None = None,
) -> None:
    """Write a table together with how it was made.

    CSV: UTF-8; facts and units as lines `# name: value` above the header (`pandas.read_csv(..., comment="#")` skips
    them); every further sheet becomes a file `NAME_SHEET.csv`. Excel: the sheets `table`, those of `sheets`, `facts`,
    and `units` when `table.attrs["units"]` gives the unit of every column. The index is not written. NaN is an empty
    cell, infinity the word `inf`. Text that begins with `=` stays text in Excel.

    Args:
        path: name ending in `.csv` or `.xlsx`.
        table: one row per thing; `table.attrs` may hold `units` (column -> unit), `unit` and `pixel_size`.
        facts: method, settings, versions; any JSON values.
        sheets: further tables by name.

    Raises:
        FileError: unwritable output or full disk; nothing half-written stays.
        UserError: another ending, or more rows than a sheet can have.
    """
    path, sheets = Path(path), dict(sheets or {})
    units = {str(name): str(unit) for name, unit in dict(table.attrs.get("units", {})).items() if name in table.columns}
    known = {key: table.attrs[key] for key in ("unit", "pixel_size") if table.attrs.get(key) is not None}
    facts = {**{key: str(value) for key, value in known.items() if key not in facts}, **facts}
    if path.suffix.lower() == ".csv":
        notes = {**facts, **({"units": units} if units else {})}
        _write_csv(path, table, notes)
        for name, sheet in sheets.items():
            _write_csv(path.with_name(f"{path.stem}_{re.sub(r'[^0-9A-Za-z_-]+', '_', name)}.csv"), sheet, {})
    elif path.suffix.lower() == ".xlsx":
        _write_excel(path, table, facts, units, sheets)
    else:
        raise UserError(f"{path.name}: tables are written as .csv or .xlsx.")


def _text(value: Any) -> str:
    """A fact in one line."""
    if not isinstance(value, str):
        value = json.dumps(value, default=str, ensure_ascii=False)
    return re.sub(r"\s*[\r\n]+\s*", " ", value)


def _write_csv(path: Path, table: pandas.DataFrame, notes: Mapping[str, Any]) -> None:
    with atomic_path(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        for name, value in notes.items():
            file.write(f"# {_text(str(name))}: {_text(value)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_comment_safe(str(name)) for name in table.columns])
        if len(table.columns):
            safe = table.copy(deep=False)
            for name, dtype in table.dtypes.items():
                if getattr(dtype, "kind", "O") not in "biuf":
                    safe[name] = table[name].map(_comment_safe)
            safe.to_csv(file, header=False, index=False, lineterminator="\n")


def _comment_safe(value: Any) -> Any:
    """`#` would end the line for readers that skip comments."""
    return value.replace("#", "\uff03") if isinstance(value, str) else value


def _write_excel(
    path: Path,
    table: pandas.DataFrame,
    facts: Mapping[str, Any],
    units: Mapping[str, str],
    sheets: Mapping[str, pandas.DataFrame],
) -> None:
    try:
        import openpyxl
    except ImportError as error:
        raise MissingPackageError("openpyxl", "Writing .xlsx tables") from error
    for name, sheet in {"table": table, **sheets}.items():
        if len(sheet) >= EXCEL_ROWS:
            raise UserError(
                f"{path.name}: {len(sheet)} rows of {name!r} do not fit on an Excel sheet ({EXCEL_ROWS - 1} do). "
                "Write .csv."
            )
    parts: list[tuple[str, list[str], Iterable]] = [("table", list(map(str, table.columns)), _rows(table))]
    parts += [(name, list(map(str, sheet.columns)), _rows(sheet)) for name, sheet in sheets.items()]
    parts.append(("facts", ["name", "value"], [(str(name), _text(value)) for name, value in facts.items()]))
    if units:
        parts.append(("units", ["column", "unit"], list(units.items())))
    taken: set[str] = set()
    with atomic_path(path) as temporary:
        book = openpyxl.Workbook(write_only=True)  # keeps the sheets in files of its own
        for name, header, rows in parts:
            sheet = book.create_sheet(_sheet_name(name, taken))
            sheet.freeze_panes = "A2"
            sheet.append([_cell(sheet, value) for value in header])
            for row in rows:
                sheet.append([_cell(sheet, value) for value in row])
        packed = io.BytesIO()  # a disk that fills up while openpyxl packs leaves it complaining long after our message
        book.save(packed)
        Path(temporary).write_bytes(packed.getbuffer())


def _rows(table: pandas.DataFrame) -> Iterator[tuple]:
    return table.itertuples(index=False, name=None)


def _sheet_name(name: str, taken: set[str]) -> str:
    """A name Excel accepts: at most 31 letters, no reserved signs, unique."""
    base = re.sub(r"[\[\]:*?/\\]+", "_", str(name))[:31].strip("'") or "sheet"
    unique, number = base, 1
    while unique.lower() in taken:
        number += 1
        unique = f"{base[: 30 - len(str(number))]}_{number}"
    taken.add(unique.lower())
    return unique


def _cell(sheet: Any, value: Any) -> Any:
    """The value as Excel can hold it: numbers, text that stays text, empty for NaN."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else str(value)
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", "", str(value))[:32767]
    if text[:1] != "=":
        return text
    from openpyxl.cell import WriteOnlyCell

    cell = WriteOnlyCell(sheet, value=text)
    cell.data_type = "s"
    return cell
