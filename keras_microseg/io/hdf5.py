"""What HDF5 files of beamlines say about themselves: the default array and its voxel size (data exchange, NeXus)."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from keras_microseg.image import METRES, normalize_unit
from keras_microseg.io import metadata

USUAL = (
    "exchange/data", "entry/data/data", "entry1/tomo_entry/data/data", "entry/reconstruction/data",
    "entry/final_result_tomo/data", "entry/result/data", "reconstruction", "volume",
)  # fmt: skip
"""Where reconstructions usually stand: data exchange (APS), NeXus (NXtomo, NXtomoproc, Savu)."""


def default_datasets(file: Any, names: Sequence[str]) -> list[str]:
    """The array a file means when none is named: NeXus `default` and `signal` attributes, else a usual place.

    Args:
        file: open `h5py.File`.
        names: the arrays to choose from.

    Returns:
        List of one name, or empty.
    """
    chosen = _nexus_signal(file)
    if chosen in names:
        return [chosen]
    for usual in USUAL:
        if usual in names:
            return [usual]
    signals = [name for name in names if _is_signal(file[name])]
    return signals if len(signals) == 1 else []


def facts(file: Any, array: Any) -> metadata.HeaderFacts:
    """Voxel size and remarks about one array of a file."""
    found = metadata.HeaderFacts()
    name = array.name.strip("/")
    size = array.attrs.get("element_size_um")
    if size is not None and np.ndim(size) == 1 and len(size) in (2, 3):
        found.add_size(size, "um", f"HDF5 attribute element_size_um of {name}")
    for attribute in ("voxel_size", "resolution"):
        size = array.attrs.get(attribute)
        unit = _text(array.attrs.get("unit", array.attrs.get("units", "")))
        if size is not None and np.size(size) in (1, array.ndim) and _is_length(unit):
            sizes = np.broadcast_to(np.ravel(size), array.ndim)
            found.add_size(sizes, unit, f"HDF5 attribute {attribute} of {name}")
    _add_axis_steps(array, found, name)
    for path in (
        "measurement/instrument/detection_system/objective/resolution",
        "measurement/instrument/detector/resolution",
    ):
        if name.startswith("exchange") and path in file and np.size(file[path]) == 1:
            unit = _text(file[path].attrs.get("units", "um"))
            if _is_length(unit):
                edge = float(np.ravel(file[path][()])[0])
                found.add_size([edge] * array.ndim, unit, f"HDF5 {path}")
    if name == "exchange/data" and "exchange/theta" in file:
        found.warnings.append("the file also holds angles (exchange/theta): these may be projections, not a volume")
    found.facts["dataset"] = name
    return found


def _nexus_signal(file: Any) -> str | None:
    """Name of the array that the NeXus attributes `default` (file, entry) and `signal` (NXdata) lead to."""
    group = file
    with contextlib.suppress(KeyError, TypeError, AttributeError):
        for _ in range(8):
            if "signal" in group.attrs:
                return group[_text(group.attrs["signal"])].name.strip("/")
            group = group[_text(group.attrs["default"])]
    return None


def _is_signal(array: Any) -> bool:
    parent = array.parent.attrs
    own = _text(array.attrs.get("signal", ""))
    is_named = _text(parent.get("signal", "")) == array.name.rpartition("/")[2]
    return own == "1" or (_text(parent.get("NX_class", "")) == "NXdata" and is_named)


def _add_axis_steps(array: Any, found: metadata.HeaderFacts, name: str) -> None:
    """NeXus: coordinates of every axis, evenly spaced, with units."""
    axes = array.parent.attrs.get("axes")
    names = [_text(axis) for axis in np.ravel(axes)] if axes is not None else list("zyx")[-array.ndim :]
    steps, unit = [], ""
    for axis, length in zip(names, array.shape, strict=False):
        values = array.parent.get(axis)
        if values is None or getattr(values, "shape", None) != (length,) or length < 2:
            return
        unit = _text(values.attrs.get("units", ""))
        numbers = values[()].astype(np.float64)
        step = float(numbers[-1] - numbers[0]) / (length - 1)
        if not _is_length(unit) or not np.allclose(np.diff(numbers), step, rtol=1e-3):
            return
        steps.append(abs(step) * METRES[normalize_unit(unit)])
    if len(steps) == array.ndim:
        unit = normalize_unit(unit)
        found.add_size([step / METRES[unit] for step in steps], unit, f"NeXus axes of {name}")


def _is_length(unit: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(normalize_unit(unit))
    return False


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
