"""Grains of each mineral of a class map: cut apart, measured, sorted on the phi scale; sizes of pores; true sizes.

References: Miles (1974) and Lantuejoul (1980), grains cut by the frame; Krumbein (1934), phi scale; Folk and Ward
(1957), graphic moments; Saltykov (1967) and Wicksell (1925), spheres from their sections; Hildebrand and Rueegsegger
(1997), local thickness.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize

from keras_microseg.checks import UserError, check_number
from keras_microseg.image import METRES, PixelSize
from keras_microseg.measurement.class_maps import spread_windows
from keras_microseg.measurement.distributions import size_distribution, weighted_quantiles
from keras_microseg.measurement.particles import edge_lengths, measure_particles
from keras_microseg.measurement.phases import local_thickness
from keras_microseg.segmentation.separation import SeparationSettings, separate

_QUANTITIES = ("area", "equivalent_diameter", "feret_min", "feret_max", "aspect_ratio", "touches_border", "edge_weight")
_SIZES = (  # Wentworth (1922): upper limit of phi, name
    (-8, "boulder"), (-6, "cobble"), (-2, "pebble"), (-1, "granule"), (0, "very coarse sand"), (1, "coarse sand"),
    (2, "medium sand"), (3, "fine sand"), (4, "very fine sand"), (8, "silt"), (np.inf, "clay"),
)  # fmt: skip
_SORTING = (
    (0.35, "very well sorted"), (0.5, "well sorted"), (0.71, "moderately well sorted"), (1.0, "moderately sorted"),
    (2.0, "poorly sorted"), (4.0, "very poorly sorted"), (np.inf, "extremely poorly sorted"),
)  # fmt: skip


def measure_grains(
    classes: Any,
    names: Sequence[str],
    *,
    pixel_size: PixelSize | None = None,
    window: int = 2048,
    max_windows: int = 9,
    min_size: int = 16,
    separation: SeparationSettings | None = None,
    leave_out: Sequence[str] = (),
) -> pd.DataFrame:
    """A row per grain: neighbouring regions of a mineral, cut apart at their necks.

    Large maps are measured in windows spread over them; `edge_weight` undoes that large grains are cut by a window more
    often. Grains that touch pixels of no class (the ground) count as cut.

    Args:
        classes: (H, W) array or lazy array of class numbers.
        names: of the classes 0 to K - 1.
        pixel_size: edge lengths; None = px.
        window: edge of the windows, px.
        max_windows: how many of them at most.
        min_size: smaller pieces are noise and left out, px.
        separation: how grains are cut apart; None = smoothing by an eighth of the typical half chord of the mineral.
        leave_out: classes that have no grains.

    Returns:
        Columns `class`, `window`, and `area`, `equivalent_diameter`, `feret_min`, `feret_max`, `aspect_ratio`,
        `touches_border`, `edge_weight` as `measure_particles` gives them; `attrs` likewise. No row without grains.
    """
    check_number("min_size", min_size, minimum=1, integer=True)
    tables = []
    for number, place in enumerate(spread_windows(classes.shape, window, max_windows)):
        part = np.asarray(classes[place])
        known = (part >= 0) & (part < len(names))
        for k, name in enumerate(names):
            mask = part == k
            if name in leave_out or not mask.any():
                continue
            labels = separate(mask, separation or SeparationSettings(_smoothing(mask), min_size=min_size))
            table = measure_particles(labels, pixel_size=pixel_size, quantities=_QUANTITIES)
            cut = np.unique(labels[_beside(~known)])
            is_cut = table["label"].isin(cut)
            table["touches_border"] |= is_cut
            table.loc[is_cut, "edge_weight"] = 0.0
            table.insert(0, "class", name)
            table.insert(1, "window", number)
            tables.append(table.drop(columns="label"))
    if not tables:  # the columns alone
        nothing = measure_particles(np.zeros((4, 4), np.int32), pixel_size=pixel_size, quantities=_QUANTITIES)
        nothing.insert(0, "class", "")
        nothing.insert(1, "window", 0)
        tables.append(nothing.drop(columns="label"))
    joined = pd.concat(tables, ignore_index=True)
    joined.attrs = dict(tables[0].attrs)
    return joined


def _smoothing(mask: np.ndarray) -> float:
    starts = (mask[:, 1:] & ~mask[:, :-1]).sum() + mask[:, 0].sum()
    return float(np.clip(mask.sum() / max(starts, 1) / 16, 1.0, 16.0))


def _beside(mask: np.ndarray) -> np.ndarray:
    out = np.zeros(mask.shape, bool)
    out[1:] |= mask[:-1]
    out[:-1] |= mask[1:]
    out[:, 1:] |= mask[:, :-1]
    out[:, :-1] |= mask[:, 1:]
    return out


class FolkWard(NamedTuple):
    """Graphic moments of grain sizes on the phi scale, phi = -log2(d / mm).

    Attributes:
        mean, sorting, skewness, kurtosis: in phi units.
        size, sorted: their names.
    """

    mean: float
    sorting: float
    skewness: float
    kurtosis: float
    size: str
    sorted: str


def folk_ward(diameters: np.ndarray, weights: np.ndarray, unit: str) -> FolkWard:
    """Folk and Ward's moments.

    mean = (p16 + p50 + p84) / 3, sorting = (p84 - p16) / 4 + (p95 - p5) / 6.6, skewness = (p16 + p84 - 2 p50) / (2 (p84
    - p16)) + (p5 + p95 - 2 p50) / (2 (p95 - p5)), kurtosis = (p95 - p5) / (2.44 (p75 - p25)).

    Args:
        diameters: (N,) positive sizes.
        weights: (N,) what each counts; areas are nearest to the mass that sieves weigh.
        unit: length unit of the sizes.

    Raises:
        UserError: no grain, or sizes in pixels.
    """
    if unit not in METRES:
        raise UserError(f"The phi scale needs real lengths, pass the pixel size. Received: sizes in {unit!r}")
    if not len(diameters):
        raise UserError("No grain is left to size.")
    phi = -np.log2(np.asarray(diameters, float) * METRES[unit] / METRES["mm"])
    order = np.argsort(phi, kind="stable")
    p5, p16, p25, p50, p75, p84, p95 = weighted_quantiles(
        phi[order], np.asarray(weights, float)[order], np.array([5, 16, 25, 50, 75, 84, 95]) / 100
    )
    mean, sorting = (p16 + p50 + p84) / 3, (p84 - p16) / 4 + (p95 - p5) / 6.6
    with np.errstate(invalid="ignore", divide="ignore"):
        skewness = (p16 + p84 - 2 * p50) / (2 * (p84 - p16)) + (p5 + p95 - 2 * p50) / (2 * (p95 - p5))
        kurtosis = (p95 - p5) / (2.44 * (p75 - p25))
    return FolkWard(
        float(mean), float(sorting), float(skewness), float(kurtosis),
        next(name for limit, name in _SIZES if mean <= limit),
        next(name for limit, name in _SORTING if sorting <= limit),
    )  # fmt: skip


def grain_summary(grains: pd.DataFrame, *, num_bootstrap: int = 300, seed: int = 0) -> pd.DataFrame:
    """One row per mineral of `measure_grains`, corrected for the windows' edges.

    Returns:
        `class`, `grains` (whole ones), `D10`, `D50`, `D50_low`, `D50_high` (95 %), `D90` of the equivalent diameter
        weighted by area, `feret_max` (median by number), `mean_3d` (mean diameter of spheres with these sections), and,
        when the unit is a length, `phi_mean`, `phi_sorting`, `phi_skewness`, `phi_kurtosis`, `size`, `sorted`.
    """
    unit = grains.attrs.get("unit", "px")
    rows = []
    for name in dict.fromkeys(grains["class"]):
        part = grains[grains["class"] == name]
        part.attrs = dict(grains.attrs)
        by_area = size_distribution(part, weight="area", num_bootstrap=num_bootstrap, seed=seed)
        low, high = by_area.intervals["D50"]
        whole = part[part["edge_weight"] > 0]
        row = {
            "class": name,
            "grains": len(whole),
            "D10": by_area.D10,
            "D50": by_area.D50,
            "D50_low": low,
            "D50_high": high,
            "D90": by_area.D90,
            "feret_max": size_distribution(part, "feret_max", num_bootstrap=0).D50,
            "mean_3d": np.nan,
        }
        if len(whole) >= 30:
            true = unfold_spheres(whole["equivalent_diameter"].to_numpy(), whole["edge_weight"].to_numpy())
            row["mean_3d"] = float(np.average(true["diameter"], weights=true["density"]))
        if unit in METRES and len(whole):
            weights = whole["edge_weight"].to_numpy() * whole["area"].to_numpy()
            found = folk_ward(whole["equivalent_diameter"].to_numpy(), weights, unit)
            row |= {f"phi_{key}": getattr(found, key) for key in ("mean", "sorting", "skewness", "kurtosis")}
            row |= {"size": found.size, "sorted": found.sorted}
        rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs = {"unit": unit}
    return table


def unfold_spheres(diameters: np.ndarray, weights: np.ndarray | None = None, *, num_bins: int = 12) -> pd.DataFrame:
    """Diameters of spheres whose sections have these diameters.

    A sphere of diameter D is cut with a section between a and b in proportion to sqrt(D^2 - a^2) - sqrt(D^2 - b^2);
    the numbers of spheres are the non-negative least-squares solution.

    Args:
        diameters: (N,) of the sections, any length unit.
        weights: (N,) numbers that each stands for; None = 1.
        num_bins: bins of equal width.

    Returns:
        Columns `diameter` (upper limit of the bin) and `density` (number of spheres per volume, up to a factor).
    """
    diameters = np.asarray(diameters, float)
    if not len(diameters) or not (diameters > 0).all():
        raise UserError("Sections need positive diameters.")
    edges = np.linspace(0, diameters.max() * (1 + 1e-9), num_bins + 1)
    sections = np.histogram(diameters, edges, weights=weights)[0]
    sphere = edges[1:][np.newaxis]
    system = np.sqrt(np.maximum(sphere**2 - edges[:-1, np.newaxis] ** 2, 0)) - np.sqrt(
        np.maximum(sphere**2 - edges[1:, np.newaxis] ** 2, 0)
    )
    return pd.DataFrame({"diameter": edges[1:], "density": optimize.nnls(system, sections.astype(float))[0]})


def pore_sizes(
    classes: Any,
    pores: Sequence[int],
    *,
    pixel_size: PixelSize | None = None,
    window: int = 768,
    max_windows: int = 4,
    num_bins: int = 20,
) -> pd.DataFrame:
    """Sizes of pores: the diameter of the largest disc inside the pore that covers each of its pixels.

    Args:
        classes: (H, W) array or lazy array of class numbers.
        pores: class numbers that are pores.
        pixel_size: edge lengths; None = px.
        window: edge of the windows, px; max_windows: how many of them at most.
        num_bins: bins, equal on a logarithmic axis.

    Returns:
        Columns `diameter` (middle of the bin) and `share` (of the pore area); empty without pores.
    """
    found = []
    for place in spread_windows(classes.shape, window, max_windows):
        mask = np.isin(np.asarray(classes[place]), list(pores))
        if mask.any() and not mask.all():
            found.append(local_thickness(mask, pixel_size=pixel_size)[mask])
    if not found:
        return pd.DataFrame({"diameter": [], "share": []})
    values = np.concatenate(found)
    low, high = min(edge_lengths(pixel_size, 2)) * 0.99, values.max() * 1.01
    edges = np.geomspace(min(low, values.min() * 0.99), high, num_bins + 1)
    counts = np.histogram(values, edges)[0]
    return pd.DataFrame({"diameter": np.sqrt(edges[:-1] * edges[1:]), "share": counts / counts.sum()})
