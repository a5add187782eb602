"""Units of length as other formats write them; `image.METRES` has ours."""

from __future__ import annotations

OME_ZARR_UNITS = {
    "pm": "picometer", "angstrom": "angstrom", "nm": "nanometer", "um": "micrometer", "mm": "millimeter",
    "cm": "centimeter", "m": "meter", "inch": "inch",
}  # fmt: skip
"""Of OME-Zarr axes: full names."""


def ome_xml_unit(unit: str) -> str:
    """Of OME-XML (`PhysicalSizeXUnit`): symbols."""
    return {"um": "\u00b5m", "angstrom": "\u00c5", "inch": "in"}.get(unit, unit)


def imagej_unit(unit: str) -> str:
    """Of ImageJ's TIFF header, which is ASCII: what is not, escaped."""
    return {"um": "\\u00B5m", "angstrom": "\\u00C5"}.get(unit, unit)
