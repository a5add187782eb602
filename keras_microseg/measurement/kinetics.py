"""Rate laws fitted to conversion curves, compared by information criteria, with intervals.

Time is counted in tau = t / t_end, so that rate constants have no unit and videos compare. Laws, alpha = conversion:

    avrami               alpha = 1 - exp(-k tau^n)     nucleation and growth, k outside the power
    first_order          alpha = 1 - exp(-k tau)
    zero_order           alpha = k tau                 constant rate; all end at alpha = 1
    shrinking_core       alpha = 1 - (1 - k tau)^3     sphere, rate set by the shrinking surface
    contracting_cylinder alpha = 1 - (1 - k tau)^2     cylinder burning from its side

References: Avrami (1939, 1940); Levenspiel, Chemical Reaction Engineering, chapter 25; Burnham and Anderson (2002),
model selection (AICc, weights); Seber and Wild (2003), nonlinear regression (intervals from the Jacobian).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from keras_microseg.checks import UserError, check_choice

_K_RANGE = (1e-3, 1e3)
_N_RANGE = (0.1, 15.0)
_CONFIDENCE = 0.95
_RESOLUTION = 1e-6
"""Errors of conversion below this count as none: they come from rounding, not from a law."""


@dataclasses.dataclass(frozen=True)
class RateLaw:
    """A rate law.

    Attributes:
        name: as in the table of the module.
        title: for people.
        formula: alpha of tau, as text.
        parameters: their names.
        alpha: function (tau, *parameters) -> conversion 0..1, tau >= 0.
        half: function (*parameters) -> tau at which alpha = 0.5.
    """

    name: str
    title: str
    formula: str
    parameters: tuple[str, ...]
    alpha: Callable[..., np.ndarray]
    half: Callable[..., float]


def _avrami(tau: np.ndarray, k: float, n: float) -> np.ndarray:
    return -np.expm1(-k * np.asarray(tau, float) ** n)


def _first_order(tau: np.ndarray, k: float) -> np.ndarray:
    return -np.expm1(-k * np.asarray(tau, float))


def _contracting(power: int) -> Callable[..., np.ndarray]:
    def alpha(tau: np.ndarray, k: float) -> np.ndarray:
        return 1 - np.clip(1 - k * np.asarray(tau, float), 0, 1) ** power

    return alpha


LAWS = {
    law.name: law
    for law in (
        RateLaw("avrami", "Avrami", "1 - exp(-k tau^n)", ("k", "n"), _avrami,
                lambda k, n: (math.log(2) / k) ** (1 / n)),
        RateLaw("first_order", "First order", "1 - exp(-k tau)", ("k",), _first_order, lambda k: math.log(2) / k),
        RateLaw("zero_order", "Zero order", "k tau", ("k",), _contracting(1), lambda k: 0.5 / k),
        RateLaw("shrinking_core", "Shrinking core (sphere)", "1 - (1 - k tau)^3", ("k",), _contracting(3),
                lambda k: (1 - 0.5 ** (1 / 3)) / k),
        RateLaw("contracting_cylinder", "Contracting cylinder", "1 - (1 - k tau)^2", ("k",), _contracting(2),
                lambda k: (1 - 0.5**0.5) / k),
    )
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class RateFit:
    """One law fitted to one conversion curve.

    Attributes:
        law: name in `LAWS`.
        converged: False when there is no fit; `reason` says why, and all numbers are NaN.
        reason: empty when converged.
        parameters: name -> value; `k` and `n` belong to tau = t / t_end.
        intervals: name -> (low, high), 95 % from the Jacobian; they take the errors of frames as independent.
        r2: 1 - residual sum of squares / total sum of squares.
        rmse: root mean square residual.
        aicc, bic: information criteria for Gaussian errors; lower is better.
        t50: time of half conversion in the unit of the times, with `t50_interval`.
        t_end: time that tau = 1 stands for.
        num_points: frames fitted.
    """

    law: str
    converged: bool
    reason: str
    parameters: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    r2: float
    rmse: float
    aicc: float
    bic: float
    t50: float
    t50_interval: tuple[float, float]
    t_end: float
    num_points: int
    covariance: np.ndarray | None = dataclasses.field(default=None, repr=False)

    def predict(self, times: Any) -> np.ndarray:
        """Conversion at `times`; NaN without a fit."""
        times = np.asarray(times, np.float64)
        if not self.converged:
            return np.full(times.shape, np.nan)
        return LAWS[self.law].alpha(np.clip(times / self.t_end, 0, None), *self.parameters.values())

    def band(self, times: Any) -> tuple[np.ndarray, np.ndarray]:
        """95 % confidence band of the fitted curve at `times` (delta method)."""
        times = np.asarray(times, np.float64)
        fitted = self.predict(times)
        if not self.converged or self.covariance is None:
            return np.full(times.shape, np.nan), np.full(times.shape, np.nan)
        values = np.array(list(self.parameters.values()))
        tau = np.clip(times / self.t_end, 0, None)
        jacobian = _slopes(lambda p: LAWS[self.law].alpha(tau, *p), values)
        width = _quantile(self.num_points - len(values)) * np.sqrt(
            np.clip(np.einsum("ip,pq,iq->i", jacobian, self.covariance, jacobian), 0, None)
        )
        return np.clip(fitted - width, 0, 1), np.clip(fitted + width, 0, 1)


def fit_rate_law(times: Any, conversion: Any, law: str = "avrami", *, t_end: float | None = None) -> RateFit:
    """Fit one law by least squares.

    Args:
        times: (N,) times >= 0, increasing; the frames before time 0 left out.
        conversion: (N,) conversion; NaN are left out.
        law: a name in `LAWS`.
        t_end: time of tau = 1; default the last time.

    Returns:
        A `RateFit`; where no fit is possible it says why instead of raising.

    Raises:
        UserError: unequal lengths, negative or not increasing times, unknown law.
    """
    check_choice("law", law, LAWS)
    times, alpha = np.asarray(times, np.float64), np.asarray(conversion, np.float64)
    if times.shape != alpha.shape or times.ndim != 1:
        raise UserError(f"`times` and `conversion` must have one length. Received: {times.shape} and {alpha.shape}")
    if len(times) and (times[0] < 0 or (np.diff(times) <= 0).any()):
        raise UserError("`times` must be >= 0 and increase. Leave out the frames before time 0.")
    known = np.isfinite(alpha)
    end = float(t_end or (times[-1] if len(times) else 0.0))
    tau, y = times[known] / end if end > 0 else times[known], alpha[known]
    count, size = len(y), len(LAWS[law].parameters)
    reason = _obstacle(tau, y, size, known)
    if reason:
        return _no_fit(law, reason, end, count)
    best = None
    for start in _starts(tau, y, size):
        try:
            found = optimize.least_squares(
                lambda p: _alpha(law, tau, p) - y, start, bounds=_bounds(size), x_scale=1.0, max_nfev=400, xtol=1e-12,
                ftol=1e-12,
            )  # fmt: skip
        except (ValueError, FloatingPointError):
            continue
        if np.isfinite(found.cost) and (best is None or found.cost < best.cost * (1 - 1e-9)):
            best = found
        if best is not None and 2 * best.cost < 0.2 * np.sum((y - y.mean()) ** 2):
            break  # an explained curve; further starts are for searches that went astray
    if best is None or best.status <= 0:
        return _no_fit(law, "the least-squares search did not settle", end, count)
    values = _natural(best.x)
    limit = _at_limit(law, values)
    if limit:
        return _no_fit(law, limit, end, count)
    return _finish(law, values, tau, y, end)


def fit_rate_laws(
    times: Any, conversion: Any, laws: Sequence[str] = tuple(LAWS), *, t_end: float | None = None
) -> list[RateFit]:
    """All laws, best first by AICc; those without a fit last."""
    fits = [fit_rate_law(times, conversion, law, t_end=t_end) for law in laws]
    return sorted(fits, key=lambda fit: fit.aicc if fit.converged else math.inf)


def compare_fits(fits: Sequence[RateFit]) -> pd.DataFrame:
    """One row per law: parameters, intervals, criteria, and the Akaike weight (share of support among these laws)."""
    best = min((fit.aicc for fit in fits if fit.converged), default=math.nan)
    weights = np.array([math.exp(-0.5 * (fit.aicc - best)) if fit.converged else 0.0 for fit in fits])
    total = weights.sum()
    rows = []
    for fit, weight in zip(fits, weights, strict=True):
        k, n = fit.parameters.get("k", math.nan), fit.parameters.get("n", math.nan)
        k_low, k_high = fit.intervals.get("k", (math.nan, math.nan))
        n_low, n_high = fit.intervals.get("n", (math.nan, math.nan))
        rows.append(
            {
                "law": fit.law, "k": k, "k_low": k_low, "k_high": k_high, "n": n, "n_low": n_low, "n_high": n_high,
                "r2": fit.r2, "rmse": fit.rmse, "aicc": fit.aicc,
                "delta_aicc": fit.aicc - best if fit.converged else math.nan,
                "weight": weight / total if total else math.nan, "bic": fit.bic, "t50": fit.t50,
                "t50_low": fit.t50_interval[0], "t50_high": fit.t50_interval[1], "t_end": fit.t_end,
                "num_points": fit.num_points, "converged": fit.converged, "reason": fit.reason,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def half_time(times: Any, conversion: Any) -> float:
    """First time at which the measured conversion reaches 0.5, by linear interpolation; NaN when it never does."""
    times, alpha = np.asarray(times, np.float64), np.asarray(conversion, np.float64)
    known = np.isfinite(alpha)
    times, alpha = times[known], alpha[known]
    above = np.flatnonzero(alpha >= 0.5)
    if not len(above):
        return math.nan
    i = int(above[0])
    if i == 0:
        return float(times[0])
    part = (0.5 - alpha[i - 1]) / (alpha[i] - alpha[i - 1])
    return float(times[i - 1] + part * (times[i] - times[i - 1]))


def member_fits(
    times: Any, conversions: np.ndarray, law: str = "avrami", *, t_end: float | None = None
) -> pd.DataFrame:
    """The law fitted to every member's curve (N, M): one row per member with its parameters and t50.

    The spread over the rows is the uncertainty that comes from segmentation.
    """
    rows = []
    for j in range(conversions.shape[1]):
        fit = fit_rate_law(times, conversions[:, j], law, t_end=t_end)
        if fit.converged:
            rows.append({"member": j, **fit.parameters, "t50": fit.t50})
    return pd.DataFrame(rows, columns=["member", *LAWS[law].parameters, "t50"])


# --------------------------------------------------------------------------------------------------------- the search


def _obstacle(tau: np.ndarray, y: np.ndarray, size: int, known: np.ndarray) -> str:
    if not len(y):
        return (
            "there is no conversion: all masks are empty or the wall volume never changes"
            if len(known) else "there is no frame at or after time 0"
        )  # fmt: skip
    if len(y) < size + 2:
        return (
            f"{len(y)} frames are too few for {size} parameter{'s' if size > 1 else ''}; at least {size + 2} are needed"
        )
    if tau[-1] <= 0:
        return "all frames are at time 0"
    if np.ptp(y) == 0:
        return "the conversion never changes"
    if np.max(y) < 0.05:
        return f"the conversion reaches only {np.max(y):.3f}: nothing that could be fitted has burnt"
    if not ((y > 0.05) & (y < 0.95)).any():
        i = int(np.argmax(y >= 0.95))
        if i == 1 and len(y) > 1:
            return "everything is gone before the second frame; frames between the first two are missing"
        return f"the curve is a step: frames between tau = {tau[max(i - 1, 0)]:.3g} and {tau[i]:.3g} are missing"
    return ""


def _starts(tau: np.ndarray, y: np.ndarray, size: int) -> list[np.ndarray]:
    """Points to search from, as logarithms."""
    rates = np.log(np.array([0.3, 1.0, 3.0, 8.0]))
    if size == 1:
        return [np.array([rate]) for rate in rates]
    inside = (y > 0.02) & (y < 0.98) & (tau > 0)
    starts = [np.array([rate, np.log(n)]) for rate, n in ((1.0, 1.0), (1.5, 2.0), (2.5, 4.0))]
    if np.count_nonzero(inside) >= 2 and np.ptp(np.log(tau[inside])) > 0:
        n, log_k = np.polyfit(np.log(tau[inside]), np.log(-np.log1p(-y[inside])), 1)
        guess = np.array([log_k, np.log(np.clip(n, 0.3, 8))])
        starts.insert(0, np.clip(guess, *(np.array(b) for b in _bounds(2))) * 0.999)
    return starts


def _bounds(size: int) -> tuple[list[float], list[float]]:
    ranges = (_K_RANGE, _N_RANGE)[:size]
    return [math.log(low) for low, _ in ranges], [math.log(high) for _, high in ranges]


def _natural(logs: np.ndarray) -> np.ndarray:
    return np.exp(np.asarray(logs, np.float64))


def _alpha(law: str, tau: np.ndarray, logs: np.ndarray) -> np.ndarray:
    return LAWS[law].alpha(tau, *_natural(logs))


def _at_limit(law: str, values: np.ndarray) -> str:
    for name, value, (low, high) in zip(LAWS[law].parameters, values, (_K_RANGE, _N_RANGE), strict=False):
        if value > 0.98 * high or value < 1.02 * low:
            end = high if value > 0.98 * high else low
            return f"{name} runs to its limit {end:g}: the curve has no shape that this law can follow"
    return ""


def _finish(law: str, values: np.ndarray, tau: np.ndarray, y: np.ndarray, end: float) -> RateFit:
    names, count, size = LAWS[law].parameters, len(y), len(values)
    fitted = LAWS[law].alpha(tau, *values)
    rss, tss = float(np.sum((y - fitted) ** 2)), float(np.sum((y - y.mean()) ** 2))
    jacobian = _slopes(lambda p: LAWS[law].alpha(tau, *p), values)
    try:
        covariance = np.linalg.inv(jacobian.T @ jacobian) * rss / (count - size)
    except np.linalg.LinAlgError:
        covariance = np.full((size, size), np.nan)
    errors = np.sqrt(np.clip(np.diagonal(covariance), 0, None))
    quantile = _quantile(count - size)
    intervals = {
        name: (max(float(value - quantile * error), 0.0), float(value + quantile * error))
        for name, value, error in zip(names, values, errors, strict=True)
    }
    half = float(LAWS[law].half(*values))
    slope = _slopes(lambda p: np.atleast_1d(LAWS[law].half(*p)), values)[0]
    width = quantile * math.sqrt(max(float(slope @ covariance @ slope), 0.0))
    terms = size + 1  # the variance of the errors is estimated too
    log_likelihood = count * math.log(max(rss / count, _RESOLUTION**2))
    correction = 2 * terms * (terms + 1) / (count - terms - 1) if count > terms + 1 else math.inf
    return RateFit(
        law=law, converged=True, reason="",
        parameters={name: float(value) for name, value in zip(names, values, strict=True)},
        intervals=intervals, r2=1 - rss / tss, rmse=math.sqrt(rss / count),
        aicc=log_likelihood + 2 * terms + correction, bic=log_likelihood + terms * math.log(count),
        t50=half * end, t50_interval=(max(half - width, 0.0) * end, (half + width) * end), t_end=end, num_points=count,
        covariance=covariance,
    )  # fmt: skip


def _no_fit(law: str, reason: str, end: float, count: int) -> RateFit:
    nan = math.nan
    names = LAWS[law].parameters
    return RateFit(
        law, False, reason, dict.fromkeys(names, nan), dict.fromkeys(names, (nan, nan)), nan, nan, nan, nan, nan,
        (nan, nan), end, count,
    )  # fmt: skip


def _slopes(function: Callable[[np.ndarray], np.ndarray], values: np.ndarray) -> np.ndarray:
    """Jacobian (outputs, parameters) by central differences."""
    columns = []
    for i, value in enumerate(values):
        step = max(abs(value), 1e-6) * 1e-5
        up, down = values.copy(), values.copy()
        up[i], down[i] = value + step, value - step
        columns.append((np.asarray(function(up)) - np.asarray(function(down))) / (2 * step))
    return np.stack(columns, axis=-1)


def _quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + _CONFIDENCE) / 2, max(freedom, 1)))
