"""A prior over time: the reaction only removes carbon, so the area of the filament never grows.

Frames are not registered to each other (the window follows the segment), so the prior acts on areas, not on pixels: the
area curve is replaced by the nearest curve that never grows, and every mask is cut or widened to that area along its
own probability map. It holds for A1; the core A2 can widen while its wall burns from inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_microseg.checks import UserError, check_number


def fit_monotone(values: Any, weights: Any = None, *, increasing: bool = False) -> np.ndarray:
    """The monotone curve nearest to `values` in the (weighted) least-squares sense (isotonic regression).

    Args:
        values: (N,) finite numbers in the order of time.
        weights: (N,) > 0, or None for equal ones.
        increasing: never falling instead of never growing.

    Returns:
        (N,) float64. The pool-adjacent-violators algorithm; exact, O(N).

    Example:
        >>> fit_monotone([5, 3, 4, 1]).tolist()
        [5.0, 3.5, 3.5, 1.0]
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if values.shape != weights.shape or not np.isfinite(values).all() or not (weights > 0).all():
        raise UserError("`fit_monotone` needs finite values and positive weights of one length.")
    sign = 1.0 if increasing else -1.0
    means: list[float] = []
    masses: list[float] = []
    counts: list[int] = []
    for value, weight in zip(sign * values, weights, strict=True):
        mean, mass, count = float(value), float(weight), 1
        while means and means[-1] > mean:
            mass_before = masses.pop()
            mean = (means.pop() * mass_before + mean * mass) / (mass_before + mass)
            mass, count = mass_before + mass, count + counts.pop()
        means.append(mean)
        masses.append(mass)
        counts.append(count)
    return sign * np.repeat(means, counts)


def monotone_masks(
    probabilities: np.ndarray, *, threshold: float = 0.5, limits: tuple[float, float] = (0.2, 0.8)
) -> np.ndarray:
    """Masks whose areas never grow, from probability maps.

    The areas at `threshold` are replaced by `fit_monotone` of them; then the threshold of every frame is moved, within
    `limits`, to where its mask comes nearest to that area. Frames that already fit keep their mask.

    Args:
        probabilities: (N, H, W) float, probability of carbon, in the order of time.
        threshold: of the masks without the prior.
        limits: the prior never counts pixels below the first, nor drops pixels from the second on.

    Returns:
        (N, H, W) bool.
    """
    check_number("threshold", threshold, minimum=0, maximum=1)
    probabilities = np.asarray(probabilities)
    masks = probabilities > threshold
    areas = np.count_nonzero(masks, axis=(1, 2))
    wanted = np.rint(fit_monotone(areas)).astype(int) if len(areas) else areas
    for i in np.flatnonzero(wanted != areas):
        values = np.sort(probabilities[i].ravel())[::-1]
        low, high = (int(np.searchsorted(-values, -limit, side="left")) for limit in (limits[1], limits[0]))
        count = int(np.clip(wanted[i], min(low, areas[i]), max(high, areas[i])))
        masks[i] = probabilities[i] >= values[count - 1] if count else False
    return masks
