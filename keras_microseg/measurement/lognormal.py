"""Log-normal fit of sizes, with a test of how well it fits.

References:
    Lilliefors (1967) and Dallal and Wilkinson (1986), test of a fitted normal distribution; Stephens (1974), modified
    statistic.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from keras_microseg.checks import UserError


class LognormalFit(NamedTuple):
    """Log-normal distribution fitted by (weighted) maximum likelihood.

    Attributes:
        median: exp(mean of ln x), in the unit of x.
        geometric_sd: exp(standard deviation of ln x), >= 1.
        ks_distance: greatest distance between the measured and the fitted undersize curve, 0..1.
        p_value: probability of such a distance or a larger one if the sizes were log-normal (Lilliefors). Small =
            not log-normal; with weights, for the effective number (sum w)^2 / sum w^2, so a guide only.
    """

    median: float
    geometric_sd: float
    ks_distance: float
    p_value: float

    def undersize(self, x: np.ndarray) -> np.ndarray:
        """Fraction below `x` under the fit; `x` > 0."""
        if self.geometric_sd == 1:
            return (np.asarray(x) >= self.median).astype(np.float64)
        return ndtr(np.log(np.asarray(x, np.float64) / self.median) / math.log(self.geometric_sd))

    def density(self, x: np.ndarray) -> np.ndarray:
        """Probability density per unit of `x`; `x` > 0, geometric_sd > 1."""
        x, sigma = np.asarray(x, np.float64), math.log(self.geometric_sd)
        return np.exp(-0.5 * (np.log(x / self.median) / sigma) ** 2) / (x * sigma * math.sqrt(2 * math.pi))


def fit_lognormal(values: np.ndarray, weights: np.ndarray | None = None) -> LognormalFit:
    """Log-normal fit by weighted maximum likelihood with a test of its fit.

    ln(median) = sum w ln x / sum w, ln(geometric sd)^2 = sum w (ln x - ln median)^2 / sum w.

    Args:
        values: (n,) sizes > 0.
        weights: (n,) >= 0, or None for equal ones.

    Returns:
        `LognormalFit`; NaN throughout without values, a p-value of NaN below five (effective) particles.

    Raises:
        UserError: sizes that are not positive.
    """
    values = np.asarray(values, np.float64)
    if not len(values):
        return LognormalFit(math.nan, math.nan, math.nan, math.nan)
    if not (values > 0).all():
        raise UserError("A log-normal distribution needs finite sizes above 0.")
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    order = np.argsort(values)
    logs, weights = np.log(values[order]), weights[order] / weights.sum()
    mean = float(weights @ logs)
    sigma = math.sqrt(weights @ np.square(logs - mean))
    if sigma <= 1e-12 * max(abs(mean), 1.0):
        return LognormalFit(math.exp(mean), 1.0, math.nan, math.nan)
    above = np.cumsum(weights)
    fitted = ndtr((logs - mean) / sigma)
    distance = float(max(np.max(above - fitted), np.max(fitted - (above - weights))))
    return LognormalFit(
        math.exp(mean), math.exp(sigma), distance, lilliefors_p(distance, 1 / float(np.sum(np.square(weights))))
    )


def lilliefors_p(distance: float, n: float) -> float:
    """p-value of the Kolmogorov-Smirnov distance from a normal distribution with fitted mean and deviation.

    Formula of Dallal and Wilkinson (1986) below 0.1, and above it the polynomials in Stephens' modified statistic that
    the R package nortest uses. NaN for n < 5.
    """
    if n < 5:
        return math.nan
    scaled, size = (distance * (n / 100) ** 0.49, 100.0) if n > 100 else (distance, n)
    exponent = (
        -7.01256 * scaled**2 * (size + 2.78019)
        + 2.99587 * scaled * math.sqrt(size + 2.78019)
        - 0.122119
        + 0.974598 / math.sqrt(size)
        + 1.67997 / size
    )
    p = math.exp(min(exponent, 0.0))
    if p <= 0.1:
        return p
    modified = (math.sqrt(n) - 0.01 + 0.85 / math.sqrt(n)) * distance
    if modified <= 0.302:
        return 1.0
    for limit, coefficients in (
        (0.5, (2.76773, -19.828315, 80.709644, -138.55152, 81.218052)),
        (0.9, (-4.901232, 40.662806, -97.490286, 94.029866, -32.355711)),
        (1.31, (6.198765, -19.558097, 23.186922, -12.234627, 2.423045)),
    ):
        if modified <= limit:
            return float(np.clip(np.polynomial.polynomial.polyval(modified, coefficients), 0.0, 1.0))
    return 0.0
