"""Size distributions: weighted quantiles with intervals, histogram, log-normal fit, how many particles suffice.

A distribution by number counts every particle once, by area with its area A, by volume with A^1.5 (the sphere of equal
projected area). Quantiles are those of the undersize curve: D10 is the size that 10 % of the particles (of the area, of
the volume) lie below.

References:
    ISO 9276-1:1998 and 9276-2:2014 (representation of size distributions); ISO 13322-1:2014 (edge correction, number of
    particles); Efron and Tibshirani (1993), percentile bootstrap.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.measurement.lognormal import LognormalFit, fit_lognormal

WEIGHTS = ("number", "area", "volume")
BORDERS = ("correct", "exclude", "include")
_POWER = {"number": 0.0, "area": 2.0, "volume": 3.0}
_STATISTICS = ("D10", "D50", "D90", "mean", "sd", "span")


class Histogram(NamedTuple):
    """Binned distribution.

    Attributes:
        edges: (k + 1,) ascending bin edges in the unit of x.
        fraction: (k,) share of the weight per bin, sum 1.
        density: (k,) fraction / bin width, per unit of x.
        counts: (k,) int64 number of measured particles per bin, unweighted.
    """

    edges: np.ndarray
    fraction: np.ndarray
    density: np.ndarray
    counts: np.ndarray


@dataclasses.dataclass(frozen=True)
class SizeDistribution:
    """A weighted size distribution with its uncertainty.

    Attributes:
        column: what was measured.
        unit: unit of the sizes.
        weight: "number", "area" or "volume".
        border: how particles at the frame were treated: "correct", "exclude" or "include".
        values: (n,) float64 sizes, ascending.
        weights: (n,) float64 share of each, sum 1.
        D10, D50, D90: sizes below which 10, 50, 90 % lie.
        mean, sd: weighted mean and standard deviation.
        span: (D90 - D10) / D50.
        intervals: for each of the six numbers `(low, high)`, percentile bootstrap; NaN with fewer than two particles.
        confidence: confidence level of the intervals.
        num_border: particles at the frame that were left out.
        num_missing: values that are not finite.
    """

    column: str
    unit: str
    weight: str
    border: str
    values: np.ndarray
    weights: np.ndarray
    D10: float
    D50: float
    D90: float
    mean: float
    sd: float
    span: float
    intervals: dict[str, tuple[float, float]]
    confidence: float
    num_border: int = 0
    num_missing: int = 0

    @property
    def num_particles(self) -> int:
        """Particles that enter."""
        return len(self.values)

    @property
    def num_effective(self) -> float:
        """(sum w)^2 / sum w^2: how many equally weighted particles would be as certain."""
        return float(1 / np.sum(np.square(self.weights))) if len(self.weights) else 0.0

    def quantile(self, fraction: Any) -> np.ndarray:
        """Size below which `fraction` (0..1, any shape) of the weight lies, interpolated between particles."""
        return weighted_quantiles(self.values, self.weights, fraction)

    def undersize(self) -> tuple[np.ndarray, np.ndarray]:
        """`(sizes, fraction)` of the undersize curve: at each particle, half of its own weight included."""
        return self.values, np.cumsum(self.weights) - self.weights / 2

    def histogram(self, bins: int | str | np.ndarray = "auto", *, log: bool = False) -> Histogram:
        """Bin the sizes.

        Args:
            bins: number of bins, ascending edges, or "auto" (Freedman and Diaconis, 5 to 100 bins).
            log: bins of equal ratio instead of equal width (sizes must be > 0).
        """
        return bin_sizes(self.values, self.weights, bins, log=log)

    def fit_lognormal(self) -> LognormalFit:
        """Fit a log-normal distribution; see `fit_lognormal`."""
        return fit_lognormal(self.values, self.weights)

    def summary(self) -> dict[str, Any]:
        """Flat row for a table: facts, the six numbers and `<name>_low`, `<name>_high`."""
        row = {"column": self.column, "unit": self.unit, "weight": self.weight, "border": self.border}
        row |= {"num_particles": self.num_particles, "num_border": self.num_border}
        for name in _STATISTICS:
            low, high = self.intervals[name]
            row |= {name: getattr(self, name), f"{name}_low": low, f"{name}_high": high}
        return row


class ParticlesNeeded(NamedTuple):
    """How many particles a wanted precision takes.

    Attributes:
        total: particles needed in all, those measured included.
        more: particles still to be measured.
        half_width: present half-width of the confidence interval, as a fraction of the value.
    """

    total: int
    more: int
    half_width: float


def size_distribution(
    table: pd.DataFrame | np.ndarray,
    column: str = "equivalent_diameter",
    weight: str = "number",
    *,
    border: str | None = None,
    groups: str | np.ndarray | None = None,
    confidence: float = 0.95,
    num_bootstrap: int = 1000,
    seed: int = 0,
    unit: str | None = None,
) -> SizeDistribution:
    """Distribution of one column of a particle table.

    Args:
        table: particle table of `measure_particles`, of one image or of several (`combine_tables`), or (n,) sizes.
        column: the size, for example "equivalent_diameter" or "feret_min".
        weight: "number"; "area" weighs each particle with its column `area` (plain sizes: x^2); "volume" with area^1.5
            (plain sizes: x^3). Tables of volumes have the column `volume`: weights volume^(2/3) and volume.
        border: "correct" leaves out particles that touch the frame and weighs the others after Miles and Lantuejoul
            (needs the columns `edge_weight` and `touches_border`); "exclude" only leaves them out; "include" takes all.
            None: "correct" when the columns are there, else "include".
        groups: column or (n,) array telling which image a particle is from; then whole images are drawn in the
            bootstrap, which is right when images differ more than chance.
        confidence: level of the intervals, between 0 and 1.
        num_bootstrap: number of bootstrap samples; 0 = no intervals (NaN).
        seed: seed of the bootstrap.
        unit: unit of plain sizes; tables carry their own ("" when it was lost).

    Returns:
        `SizeDistribution`; all numbers are NaN when no particle is left.

    Raises:
        UserError: missing column, unknown choice, negative sizes where a weight needs them positive.
    """
    check_choice("weight", weight, WEIGHTS)
    check_number("confidence", confidence, minimum=0, maximum=1, exclusive=True)
    check_number("num_bootstrap", num_bootstrap, minimum=0, integer=True)
    values, weights, is_cut = _values_and_weights(table, column, weight, border)
    border = border or ("correct" if _has_edge_columns(table) else "include")
    if isinstance(groups, str):
        _check_columns(table, [groups])
        groups = table[groups].to_numpy()
    if groups is not None and len(groups) != len(values):
        raise UserError(f"`groups` must have one entry per particle. Received: {len(groups)} for {len(values)}")
    if unit is None:
        attrs = getattr(table, "attrs", {})
        unit = attrs.get("units", {}).get(column) or attrs.get("unit", "")

    finite = np.isfinite(values) & np.isfinite(weights)
    used = np.flatnonzero(finite & ~is_cut)
    used = used[np.argsort(values[used], kind="stable")]
    values, weights = values[used], weights[used]
    draws = np.full((num_bootstrap, len(_STATISTICS)), np.nan)
    if len(values) > 1:
        codes = None if groups is None else np.unique(np.asarray(groups)[used], return_inverse=True)[1]
        draws = _bootstrap(values, weights, codes, num_bootstrap, np.random.default_rng(seed))
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    finite_draws = [draws[np.isfinite(draws[:, i]), i] for i in range(len(_STATISTICS))]
    bounds = [np.quantile(d, tails) if len(d) else (np.nan, np.nan) for d in finite_draws]
    return SizeDistribution(
        column=column,
        unit=unit,
        weight=weight,
        border=border,
        values=values,
        weights=weights / weights.sum() if len(weights) else weights,
        **dict(zip(_STATISTICS, _statistics(values, weights), strict=True)),
        intervals={n: (float(b[0]), float(b[1])) for n, b in zip(_STATISTICS, bounds, strict=True)},
        confidence=confidence,
        num_border=int(np.count_nonzero(is_cut)),
        num_missing=int(np.count_nonzero(~finite & ~is_cut)),
    )


def miles_lantuejoul_weights(
    heights: np.ndarray, widths: np.ndarray, frame_shape: tuple[int, int], touches_border: np.ndarray
) -> np.ndarray:
    """Weights that undo the loss of large particles at the frame: the larger, the more often cut and left out.

    A particle of h x w pixels lies in a frame of H x W pixels without touching its first or last row or column in
    (H - h - 1)(W - w - 1) of H W positions. Weight = H W / ((H - h - 1)(W - w - 1)), and 0 for particles that touch.
    (ISO writes Z1 Z2 / ((Z1 - x_F1)(Z2 - x_F2)) for particles cut by the frame; the further pixel is here because a
    particle ending in the outermost row cannot be told from a cut one.)

    Args:
        heights, widths: (n,) sides of the bounding boxes (Feret diameters along y and x), pixels.
        frame_shape: (H, W) of the image in pixels.
        touches_border: (n,) bool.

    Returns:
        (n,) float64 weights, 0 or > 1.

    Reference: Miles (1974); Lantuejoul (1980); ISO 13322-1:2014, correction for particles cut by the edge.
    """
    return edge_weights(np.stack([heights, widths], axis=-1), frame_shape, touches_border)


def edge_weights(sides: np.ndarray, frame_shape: tuple[int, ...], touches_border: np.ndarray) -> np.ndarray:
    """`miles_lantuejoul_weights` for any number of axes.

    Args:
        sides: (n, ndim) sides of the bounding boxes, pixels.
        frame_shape: lengths of the axes, pixels.
        touches_border: (n,) bool.

    Returns:
        (n,) float64 weights: the product over the axes of N / (N - side - 1), 0 for objects at the border.
    """
    inside = ~np.asarray(touches_border, bool)
    shape = np.array(frame_shape, np.float64)
    places = np.where(inside, np.prod(shape - sides - 1.0, axis=-1), 1.0)
    return np.where(inside, np.prod(shape) / places, 0.0)


def summarize_sizes(
    table: pd.DataFrame,
    columns: Iterable[str] = ("equivalent_diameter", "feret_min", "feret_max"),
    weights: Iterable[str] = WEIGHTS,
    **options: Any,
) -> pd.DataFrame:
    """One row per column and weight with D10, D50, D90, mean, sd, span and their intervals (for a report).

    Args:
        table: particle table of `measure_particles`.
        columns: sizes to summarize; those absent from the table are passed over.
        weights: some of "number", "area", "volume".
        **options: further arguments of `size_distribution`.
    """
    weights = tuple(weights)
    present = [column for column in columns if column in table.columns]
    rows = [size_distribution(table, column, weight, **options).summary() for column in present for weight in weights]
    return pd.DataFrame(rows)


def weighted_quantiles(values: np.ndarray, weights: np.ndarray, fraction: Any) -> np.ndarray:
    """Quantiles of weighted values: each value sits at the middle of its share of the weight, linear in between.

    Args:
        values: (n,) ascending.
        weights: (n,) >= 0, not all 0.
        fraction: 0..1, any shape.

    Returns:
        float64 of the shape of `fraction`; NaN when there are no values. With equal weights this is the rule of Hazen
        (`numpy.quantile(..., method="hazen")`).
    """
    fraction = np.asarray(fraction, np.float64)
    if not len(values):
        return np.full(fraction.shape, np.nan)
    total = np.cumsum(weights)
    return np.interp(fraction * total[-1], total - weights / 2, values)


def _statistics(values: np.ndarray, weights: np.ndarray) -> tuple[float, ...]:
    """(D10, D50, D90, mean, sd, span) of ascending values."""
    if not len(values):
        return (math.nan,) * len(_STATISTICS)
    low, middle, high = weighted_quantiles(values, weights, (0.1, 0.5, 0.9))
    total = weights.sum()
    mean = weights @ values / total
    sd = math.sqrt(weights @ np.square(values - mean) / total)
    span = (high - low) / middle if middle > 0 else math.nan
    return float(low), float(middle), float(high), float(mean), sd, float(span)


def _bootstrap(
    values: np.ndarray, weights: np.ndarray, codes: np.ndarray | None, num_draws: int, rng: np.random.Generator
) -> np.ndarray:
    """(num_draws, 6) statistics of samples drawn with replacement; whole groups when `codes` (n,) are given."""
    draws = np.empty((num_draws, len(_STATISTICS)))
    units = len(values) if codes is None else int(codes.max()) + 1
    for draw in draws:
        times = np.bincount(rng.integers(units, size=units), minlength=units)
        times = times if codes is None else times[codes]
        drawn = times > 0
        draw[:] = _statistics(values[drawn], weights[drawn] * times[drawn])
    return draws


def _has_edge_columns(table: Any) -> bool:
    return isinstance(table, pd.DataFrame) and {"edge_weight", "touches_border"} <= set(table.columns)


def _check_columns(table: Any, names: Iterable[str]) -> None:
    missing = [name for name in names if not isinstance(table, pd.DataFrame) or name not in table.columns]
    if missing:
        raise UserError(f"The table has no column {', '.join(missing)}. Measure it: measure_particles(quantities=...).")


def _values_and_weights(
    table: Any, column: str, weight: str, border: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes, weights and which particles are left out at the frame, (n,) each in the order of the table."""
    if border is not None:
        check_choice("border", border, BORDERS)
    if isinstance(table, pd.DataFrame):
        _check_columns(table, [column])
        values = table[column].to_numpy(np.float64)
    else:
        values = np.asarray(table, np.float64)
        if values.ndim != 1:
            raise UserError(f"Sizes must be a 1-D array or a particle table. Received: shape {values.shape}")
    if weight == "number":
        weights = np.ones(len(values))
    elif isinstance(table, pd.DataFrame) and "volume" in table.columns:
        weights = table["volume"].to_numpy(np.float64) ** (_POWER[weight] / 3)
    elif isinstance(table, pd.DataFrame) and "area" in table.columns:
        weights = table["area"].to_numpy(np.float64) ** (_POWER[weight] / 2)
    else:
        if (values < 0).any():
            raise UserError(f"`{column}` has negative values and cannot be weighted by {weight}.")
        weights = values ** _POWER[weight]
    is_cut = np.zeros(len(values), bool)
    if border == "correct" or (border is None and _has_edge_columns(table)):
        _check_columns(table, ["edge_weight", "touches_border"])
        weights = weights * table["edge_weight"].to_numpy(np.float64)
        is_cut = table["touches_border"].to_numpy(bool)
    elif border == "exclude":
        _check_columns(table, ["touches_border"])
        is_cut = table["touches_border"].to_numpy(bool)
    return values, weights, is_cut


def bin_sizes(values: np.ndarray, weights: np.ndarray, bins: int | str | np.ndarray, *, log: bool = False) -> Histogram:
    """Weighted histogram of finite sizes; see `SizeDistribution.histogram`.

    Raises:
        UserError: edges that do not ascend, or `log` with sizes <= 0.
    """
    values = np.asarray(values, np.float64)
    if log and len(values) and values.min() <= 0:
        raise UserError("A logarithmic histogram needs sizes above 0.")
    if isinstance(bins, np.ndarray | list | tuple):
        edges = np.asarray(bins, np.float64)
        if edges.ndim != 1 or len(edges) < 2 or not (np.diff(edges) > 0).all():
            raise UserError(f"`bins` must be ascending edges. Received: bins={bins!r}")
    else:
        scaled = np.log(values) if log else values
        low, high = (scaled.min(), scaled.max()) if len(scaled) else (0.0, 1.0)
        if low == high:
            margin = 0.5 if log else max(abs(low) * 0.5, 1e-12)
            low, high = low - margin, high + margin
        if bins == "auto":
            quarters = np.quantile(scaled, [0.25, 0.75]) if len(scaled) else (0.0, 0.0)
            width = 2 * (quarters[1] - quarters[0]) / max(len(scaled), 1) ** (1 / 3)
            bins = int(np.clip(np.ceil((high - low) / width) if width > 0 else 10, 5, 100))
        edges = np.linspace(low, high, check_number("bins", bins, minimum=1, integer=True) + 1)
        if log:
            edges = np.exp(edges)
            if len(values):
                edges[0], edges[-1] = min(edges[0], values.min()), max(edges[-1], values.max())
    mass = np.histogram(values, edges, weights=weights)[0].astype(np.float64)
    fraction = mass / mass.sum() if mass.sum() > 0 else mass
    return Histogram(edges, fraction, fraction / np.diff(edges), np.histogram(values, edges)[0])


def particles_needed(
    distribution: SizeDistribution, precision: float = 0.05, *, quantity: str = "D50"
) -> ParticlesNeeded:
    """How many (more) particles make the confidence interval of a number as narrow as wanted.

    The half-width of the interval shrinks with the root of the number of particles, so
    n_needed = n (half_width / (precision value))^2, at the confidence level of `distribution`. Particles that touch the
    frame and are left out do not count.

    Args:
        distribution: with bootstrap intervals.
        precision: wanted half-width as a fraction of the value; 0.05 = plus or minus 5 %.
        quantity: "D10", "D50", "D90", "mean", "sd" or "span".

    Raises:
        UserError: unknown quantity, precision not above 0, or no intervals to extrapolate from.
    """
    check_choice("quantity", quantity, _STATISTICS)
    check_number("precision", precision, minimum=0, exclusive=True)
    low, high = distribution.intervals[quantity]
    value = getattr(distribution, quantity)
    if not np.isfinite([low, high, value]).all() or value == 0:
        raise UserError(
            f"{quantity} has no confidence interval: at least two particles and `num_bootstrap` > 0 are needed. "
            f"Received: {distribution.num_particles} particles"
        )
    half_width = (high - low) / 2 / abs(value)
    total = math.ceil(distribution.num_particles * (half_width / precision) ** 2 - 1e-9)
    return ParticlesNeeded(total, max(total - distribution.num_particles, 0), half_width)
