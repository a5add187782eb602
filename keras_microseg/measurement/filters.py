"""Choosing particles of a table: ranges of any quantity, the image border, outliers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_number


def keep_ranges(table: pd.DataFrame, ranges: Mapping[str, tuple[float | None, float | None]]) -> pd.Series:
    """Which rows lie inside all ranges.

    Args:
        table: of `measure_particles`.
        ranges: column -> (least, greatest), in the unit of the column; None = no limit. A greatest below the least
            switches a range off, as in the source system. Empty values are outside of any limit.

    Returns:
        Boolean series.

    Raises:
        UserError: an unknown column.
    """
    keep = np.ones(len(table), bool)
    for name, (low, high) in ranges.items():
        if name not in table:
            raise UserError(f"The table has no column {name!r}. It has: {', '.join(map(str, table.columns))}.")
        if low is not None and high is not None and high < low:
            continue
        values = table[name].to_numpy(float)
        if low is not None:
            keep &= values >= low
        if high is not None:
            keep &= values <= high
    return pd.Series(keep, index=table.index, name="keep")


def keep_inside(table: pd.DataFrame) -> pd.Series:
    """Which particles no image border cuts; boolean series."""
    if "touches_border" not in table:
        raise UserError("The table has no column 'touches_border'. Measure with it.")
    return ~table["touches_border"].astype(bool).rename("keep")


def keep_common(table: pd.DataFrame, column: str = "equivalent_diameter", limit: float = 3.5) -> pd.Series:
    """Which particles are no outliers in size.

    The modified z-score 0.6745 |ln x - median| / MAD of the logarithms, which are nearly symmetric for sizes, must not
    exceed `limit`.

    Args:
        table: of `measure_particles`.
        column: a positive quantity.
        limit: 3.5 as advised.

    Returns:
        Boolean series; all True where more than half of the values are equal.

    Reference: Iglewicz and Hoaglin (1993), How to Detect and Handle Outliers.
    """
    if column not in table:
        raise UserError(f"The table has no column {column!r}.")
    check_number("limit", limit, minimum=0, exclusive=True)
    values = table[column].to_numpy(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        logarithms = np.log(values)
    finite = np.isfinite(logarithms)
    keep = finite.copy()
    if finite.any():
        distance = np.abs(logarithms - np.median(logarithms[finite]))
        scale = np.median(distance[finite])
        if scale > 0:
            keep &= 0.6745 * distance <= limit * scale
    return pd.Series(keep, index=table.index, name="keep")
