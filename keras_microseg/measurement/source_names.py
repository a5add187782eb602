"""The measured quantities of two older tools by their names there: the label-free particle system, and ImageJ.

| source | here | differs |
|---|---|---|
| Area | area | there the polygon through pixel centres, median 8 % smaller; here the pixel squares |
| Perimeter | perimeter | there the polygon through pixel centres; here Crofton's |
| minFeret, maxFeret | feret_min, feret_max | there between pixel centres, 1.3 px smaller; the minimum often too small |
| Convexness (dimension 2) | solidity | area over hull area |
| Convexness (dimension 1) | convexity | hull perimeter over perimeter |
| Completeness | completeness | there the ellipse is fitted to the outline; here it has the same second moments |
| Mean Intensity | intensity_mean | there divided by the squared pixel size by mistake |
| min-area rectangle | rectangle_width, rectangle_length | |
| min-Feret rectangle | feret_min, feret_90 | |
"""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from keras_microseg.checks import UserError, check_choice

SOURCE: Mapping[str, str] = {
    "Area": "area",
    "Perimeter": "perimeter",
    "minFeret": "feret_min",
    "maxFeret": "feret_max",
    "Convexness": "solidity",
    "Convexness1D": "convexity",
    "Completeness": "completeness",
    "MeanIntensity": "intensity_mean",
    "minAreaRectWidth": "rectangle_width",
    "minAreaRectLength": "rectangle_length",
    "minFeretRectWidth": "feret_min",
    "minFeretRectLength": "feret_90",
}
IMAGEJ: Mapping[str, str] = {
    "Area": "area",
    "Perim.": "perimeter",
    "Feret": "feret_max",
    "MinFeret": "feret_min",
    "FeretAngle": "feret_angle",
    "Major": "ellipse_major",
    "Minor": "ellipse_minor",
    "Angle": "ellipse_angle",
    "Circ.": "circularity",
    "Round": "roundness",
    "Solidity": "solidity",
    "X": "centroid_x",
    "Y": "centroid_y",
    "Mean": "intensity_mean",
    "Median": "intensity_median",
    "Min": "intensity_min",
    "Max": "intensity_max",
    "StdDev": "intensity_std",
}
NAMES = {"source": SOURCE, "imagej": IMAGEJ}
RESULT_COLUMNS = ("file", "minFeret", "Area", "maxFeret")
"""Columns of the `Results_<model>.csv` files of the source, which have no header and `; ` between values."""


def rename_columns(table: pd.DataFrame, names: str = "source", *, back: bool = False) -> pd.DataFrame:
    """A particle table with the column names of another tool, or such a table with ours.

    Args:
        table: of `measure_particles`; with `back`, one of the other tool.
        names: "source" or "imagej", see the tables of this module.
        back: from the other tool's names to ours; columns it does not know stay.

    Returns:
        A new table. Towards the other tool only columns that it has are kept, in its order, and `image` and `label`.

    Raises:
        UserError: no column that the other tool knows.
    """
    known = NAMES[check_choice("names", names, tuple(NAMES))]
    if back:
        ours: dict[str, str] = {}
        for theirs, name in known.items():
            if theirs in table and name not in ours.values() and name not in table:
                ours[theirs] = name
        if not ours:
            raise UserError(f"None of the columns is known. Expected some of: {', '.join(known)}.")
        return table.rename(columns=ours)
    first = [name for name in ("image", "label") if name in table]
    found = {theirs: table[name] for theirs, name in known.items() if name in table}
    if not found:
        raise UserError(f"None of the columns is known. Expected some of: {', '.join(dict.fromkeys(known.values()))}.")
    renamed = pd.concat([table[first], pd.DataFrame(found, index=table.index)], axis=1)
    units = table.attrs.get("units", {})
    renamed.attrs = dict(table.attrs) | {"units": {theirs: units.get(known[theirs], "") for theirs in found}}
    return renamed
