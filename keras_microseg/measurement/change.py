"""From the masks of a filament to its areas, diameters, volumes and conversion over time.

The segment is taken as a hollow cylinder of fixed length L: mean outer diameter D1 = A1 / L, inner D2 = A2 / L, volumes
V1 = pi A1^2 / (4 L), V2 = pi A2^2 / (4 L), wall volume V = V1 - V2. L stays what it was at time 0, although a burning
segment also gets shorter; late volumes mix both. The conversion does not depend on L.

Reference: Niu et al. (2026), MultiTaskDeltaNet, Digital Discovery, doi 10.1039/d5dd00333d (spreadsheets of the code
repository).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.image import PixelSize

NORMALIZATIONS = ("range", "start")
CURVES = ("A1", "A2", "D1", "D2", "V1", "V2", "V")
_POWER = {"A1": 2, "A2": 2, "D1": 1, "D2": 1, "V1": 3, "V2": 3, "V": 3}
CONFIDENCE = 0.95


def measure_areas(masks: Mapping[str, Any]) -> pd.DataFrame:
    """Number of carbon pixels per frame and task, from masks (N, H, W) or lazy ones."""
    return pd.DataFrame(
        {task: [int(np.count_nonzero(frames[i])) for i in range(frames.shape[0])] for task, frames in masks.items()}
    )


def segment_length(mask: np.ndarray, valid: np.ndarray | None = None, method: str = "axis") -> float:
    """Length of the segment in pixels, from its first frame.

    Args:
        mask: (H, W) mask of the whole filament, A1.
        valid: (H, W) visible region; needed by `"columns"`.
        method: `"axis"` = arc length of the filament's axis (a parabola through the middle of the mask, between its
            ends), `"columns"` = number of columns of the visible region, as the cut lines of the source lie.

    Raises:
        UserError: an empty mask or region.
    """
    check_choice("method", method, ("axis", "columns"))
    if method == "columns":
        shown = np.flatnonzero(np.asarray(valid).any(axis=0)) if valid is not None else np.zeros(0)
        if not len(shown):
            raise UserError("The length from columns needs a visible region. Pass the length in pixels.")
        return float(shown[-1] - shown[0] + 1)
    points = np.argwhere(mask).astype(np.float64)
    if len(points) < 3:
        raise UserError("The segment has no length: its first mask is empty. Pass the length in pixels.")
    centred = points - points.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    along, aside = centred @ vectors[:, 1], centred @ vectors[:, 0]
    low, high = along.min() - 0.5, along.max() + 0.5
    if high - low < 4:
        return float(high - low)
    bend = np.polynomial.Polynomial.fit(along, aside, 2)
    # A slanted cut reaches further on one side: the axis ends where half of the mask's width is left.
    edges = np.arange(low, high + 1)
    counts = np.histogram(along, edges)[0].astype(float)
    half = np.median(counts[counts > 0]) / 2
    full = np.flatnonzero(counts >= half)
    first, last = edges[full[0]], edges[full[-1] + 1]
    at = np.linspace(first, last, 200)
    return float(np.hypot(np.diff(at), np.diff(bend(at))).sum())


def tube_curves(a1: Any, a2: Any, length: float) -> pd.DataFrame:
    """Diameters and volumes of the hollow cylinder: columns A1, A2, D1, D2, V1, V2, V, in pixels.

    Args:
        a1, a2: (N,) areas of filament and core, px^2.
        length: length L of the segment, px.
    """
    check_number("length", length, minimum=0, exclusive=True)
    a1, a2 = np.asarray(a1, np.float64), np.asarray(a2, np.float64)
    v1, v2 = np.pi * a1**2 / (4 * length), np.pi * a2**2 / (4 * length)
    return pd.DataFrame({"A1": a1, "A2": a2, "D1": a1 / length, "D2": a2 / length, "V1": v1, "V2": v2, "V": v1 - v2})


def conversion(volumes: Any, normalization: str = "range") -> np.ndarray:
    """Share of the wall that is gone, from wall volumes (N,).

    Args:
        volumes: wall volume per frame, from time 0 on.
        normalization: `"range"` = (Vmax - V) / (Vmax - Vmin), as the source; `"start"` = 1 - V / V(first frame).

    Returns:
        (N,) float64; NaN throughout when the volume does not change (`"range"`) or is 0 at the start (`"start"`).
    """
    check_choice("normalization", normalization, NORMALIZATIONS)
    volumes = np.asarray(volumes, np.float64)
    if not len(volumes):
        return volumes
    if normalization == "range":
        span = volumes.max() - volumes.min()
        return (volumes.max() - volumes) / span if span > 0 else np.full(len(volumes), np.nan)
    return 1 - volumes / volumes[0] if volumes[0] > 0 else np.full(len(volumes), np.nan)


def measure_change(
    numbers: Any,
    times: Any,
    areas: Mapping[str, Any],
    length: float,
    *,
    pixel_size: PixelSize | None = None,
    members: Mapping[str, np.ndarray] | None = None,
    normalization: str = "range",
) -> pd.DataFrame:
    """Everything over time of one video.

    Args:
        numbers: (N,) frame numbers.
        times: (N,) times; below 0 before the reaction.
        areas: `"A1"` and, if known, `"A2"` -> (N,) pixel counts; without A2 the filament counts as solid.
        length: length of the segment, px.
        pixel_size: adds columns in its unit.
        members: task -> (N, M) areas that the members of an ensemble found; adds `_low` and `_high`, the limits that
            95 % of the members lie between.
        normalization: see `conversion`; NaN before time 0.

    Returns:
        One row per frame: `frame`, `time`, A1 ... V in px (and `A1_nm2`, `D1_nm`, `V_nm3`, ...), `conversion`.
        `attrs["length"]` is L in px, `attrs["units"]` column -> unit.
    """
    a1 = np.asarray(areas["A1"], np.float64)
    a2 = np.asarray(areas["A2"], np.float64) if "A2" in areas else np.zeros_like(a1)
    curves = tube_curves(a1, a2, length)
    times = np.asarray(times, np.float64)
    reacting = times >= 0
    share = np.full(len(times), np.nan)
    share[reacting] = conversion(curves["V"].to_numpy()[reacting], normalization)
    table = pd.DataFrame({"frame": np.asarray(numbers, np.int64), "time": times, **curves, "conversion": share})
    if members:
        spread = member_curves(members, length, reacting, normalization)
        for name, values in spread.items():
            limits = np.full((2, len(values)), np.nan)
            known = np.isfinite(values).any(axis=1)
            limits[:, known] = np.nanquantile(values[known], ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2), axis=1)
            table[f"{name}_low"], table[f"{name}_high"] = limits
    units = {name: f"px{_POWER[name]}".replace("px1", "px") for name in CURVES}
    units = {column: units.get(column.split("_")[0], "") for column in table.columns}
    if pixel_size is not None:
        edge = pixel_size.mean
        for name in [column for column in table.columns if column.split("_")[0] in CURVES]:
            power = _POWER[name.split("_")[0]]
            suffix = f"{pixel_size.unit}{power}".removesuffix("1")
            base, _, limit = name.partition("_")
            column = "_".join(filter(None, [base, suffix, limit]))
            table[column] = table[name] * edge**power
            units[column] = suffix
    units.update(frame="", conversion="1")
    table.attrs = {"length": float(length), "units": {name: unit for name, unit in units.items() if unit}}
    return table


def member_curves(
    members: Mapping[str, np.ndarray], length: float, reacting: np.ndarray, normalization: str = "range"
) -> dict[str, np.ndarray]:
    """A1 ... V and conversion (N, M) of every member of an ensemble; NaN where a member says nothing."""
    a1 = np.asarray(members["A1"], np.float64)
    a2 = np.asarray(members.get("A2", np.zeros_like(a1)), np.float64)
    count = min(a1.shape[1], a2.shape[1])
    columns: dict[str, list[np.ndarray]] = {name: [] for name in (*CURVES, "conversion")}
    for j in range(count):
        curves = tube_curves(a1[:, j], a2[:, j], length)
        share = np.full(len(a1), np.nan)
        volumes = curves["V"].to_numpy()[reacting]
        known = np.isfinite(volumes)
        if known.any():
            part = np.full(len(volumes), np.nan)
            part[known] = conversion(volumes[known], normalization)
            share[reacting] = part
        for name in CURVES:
            columns[name].append(curves[name].to_numpy())
        columns["conversion"].append(share)
    return {name: np.stack(values, axis=1) for name, values in columns.items()}
