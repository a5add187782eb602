"""What is known about each class of particles: numbers, sizes, areas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.measurement import size_distribution
from keras_microseg.report import overlays

SIZE = "equivalent_diameter"
KEPT = "kept (score from 0.5 on)"


def class_table(table: pd.DataFrame, *, groups: str | None = None) -> pd.DataFrame:
    """One row per class, in order of numbers; a last row for the particles to keep when the table has `keep_score`.

    Args:
        table: particle table with a column `class`; lengths in one unit.
        groups: column by which the bootstrap draws (`"image"`), see `size_distribution`.

    Returns:
        DataFrame: `class`, `particles`, `share`, `area_share` (0..1, of all rows), `mean_score`, and of the equivalent
        diameter by number `D10`, `D50`, `D50_low`, `D50_high` (95 %), `D90`, `mean`, corrected for the image edge as
        `size_distribution` does; NaN where no particle is left to size. Empty without the column `class`.
    """
    columns = (
        "class",
        "particles",
        "share",
        "area_share",
        "mean_score",
        "D10",
        "D50",
        "D50_low",
        "D50_high",
        "D90",
        "mean",
    )
    if "class" not in table.columns or not len(table):
        return pd.DataFrame({name: [] for name in columns})
    named = table["class"].fillna("")
    parts = [(name or "(none)", named == name) for name in named.value_counts(sort=True).index]
    if "keep_score" in table.columns:
        parts.append((KEPT, table["keep_score"] >= 0.5))
    rows = []
    for name, inside in parts:
        part = table[inside]
        part.attrs = dict(table.attrs)
        chosen = groups if groups is not None and part[groups].nunique() > 1 else None
        found = size_distribution(part, SIZE, "number", groups=chosen, num_bootstrap=300)
        low, high = found.intervals["D50"]
        score = float(part["class_score"].mean()) if "class_score" in part.columns else np.nan
        rows.append(
            (name, len(part), len(part) / len(table), part["area"].sum() / table["area"].sum(), score,
             found.D10, found.D50, low, high, found.D90, found.mean)
        )  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def class_lines(classes: pd.DataFrame, unit: str) -> list[str]:
    """A sentence per class."""
    lines = []
    for row in classes.to_dict("records"):
        between = ""
        if np.isfinite([row["D50_low"], row["D50_high"]]).all():
            between = f" (95 %: {row['D50_low']:.4g} to {row['D50_high']:.4g})"
        size = f", D50 = {row['D50']:.4g}{between} {overlays.unit_text(unit)}" if np.isfinite(row["D50"]) else ""
        lines.append(f"Class {row['class']}: {row['particles']} particles ({row['share'] * 100:.0f} %){size}")
    return lines


def class_cells(classes: pd.DataFrame, number: Any) -> list[dict[str, Any]]:
    """The rows as text for the report."""
    return [
        {
            "name": row["class"],
            "cells": [
                str(row["particles"]), f"{row['share'] * 100:.1f} %", f"{row['area_share'] * 100:.1f} %",
                *(number(row[name], 3) for name in ("D10", "D50", "D90", "mean")),
                number(row["mean_score"], 2),
            ],
        }
        for row in classes.to_dict("records")
    ]  # fmt: skip
