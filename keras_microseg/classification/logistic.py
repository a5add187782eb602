"""Multinomial logistic regression with a ridge penalty, in NumPy: convex, so equal data give equal models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import optimize

from keras_microseg.checks import UserError, check_number

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_CLIP = 5.0  # standard deviations: an outlier among the features moves no product of them further


@dataclasses.dataclass(frozen=True)
class LogisticModel:
    """Probabilities `softmax(bias + expand((x - center) / scale) @ weights)`; missing features count as their centre.

    Attributes:
        center, scale: (F,) median and standard deviation of the training features.
        weights: (E, K) of the E expanded features.
        bias: (K,).
        degree: 1 = the features, 2 = also their squares and products.
    """

    center: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    degree: int = 1

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N, F) features -> (N, K) probabilities."""
        logits = _expand(features, self.center, self.scale, self.degree) @ self.weights + self.bias
        return _softmax(logits)


def fit_logistic(
    features: np.ndarray,
    classes: np.ndarray,
    num_classes: int,
    *,
    ridge: float = 10.0,
    degree: int = 1,
    balanced: bool = True,
) -> LogisticModel:
    """Fit by L-BFGS.

    Minimises `sum_i w_i (-log p_i[class_i]) + ridge / 2 sum(weights^2)` over standardized features; the bias is free.

    Args:
        features: (N, F) float, NaN where missing.
        classes: (N,) numbers 0..num_classes - 1.
        num_classes: K.
        ridge: strength of the penalty, > 0.
        degree: 1 or 2, see `LogisticModel`.
        balanced: w_i = N / (K_present n_class), so that rare classes count as much as frequent ones; else 1.

    Raises:
        UserError: fewer than two classes occur, or shapes do not fit.
    """
    features, classes = np.asarray(features, np.float64), np.asarray(classes, np.int64)
    check_number("ridge", ridge, minimum=0, exclusive=True)
    if features.ndim != 2 or len(features) != len(classes):
        raise UserError(f"`features` (N, F) and `classes` (N,) do not fit: {features.shape}, {classes.shape}")
    present = np.bincount(classes, minlength=num_classes)
    if np.count_nonzero(present) < 2:
        raise UserError("At least two classes must occur among the examples, else there is nothing to tell apart.")
    known = [column[np.isfinite(column)] for column in features.T]
    center = np.array([np.median(column) if len(column) else 0.0 for column in known])
    filled = np.where(np.isfinite(features), features, center)
    scale = filled.std(axis=0)
    scale[scale < 1e-9] = 1.0
    x = _expand(features, center, scale, degree)
    weight = len(x) / (np.count_nonzero(present) * present[classes]) if balanced else np.ones(len(x))
    target = np.eye(num_classes)[classes]
    size = x.shape[1] * num_classes

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = flat[:size].reshape(x.shape[1], num_classes), flat[size:]
        logits = x @ weights + bias
        logits -= logits.max(axis=1, keepdims=True)
        total = np.log(np.exp(logits).sum(axis=1))
        value = np.sum(weight * (total - logits[np.arange(len(x)), classes])) + ridge / 2 * np.sum(weights**2)
        error = weight[:, np.newaxis] * (np.exp(logits - total[:, np.newaxis]) - target)
        return value, np.concatenate([(x.T @ error + ridge * weights).ravel(), error.sum(axis=0)])

    start = np.concatenate([np.zeros(size), np.log(np.maximum(present, 0.5) / len(x)) * (not balanced)])
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    weights = found.x[:size].reshape(x.shape[1], num_classes)
    return LogisticModel(center, scale, weights, found.x[size:], degree)


def choose_ridge(
    features: np.ndarray,
    classes: np.ndarray,
    groups: Sequence[object],
    num_classes: int,
    *,
    ridges: Sequence[float] = RIDGES,
    degree: int = 1,
    folds: int = 5,
    seed: int = 0,
) -> tuple[float, np.ndarray]:
    """Ridge of the least balanced log loss in cross-validation, and the probabilities found by it.

    Whole groups (images) are held out together. With one group, single examples are.

    Returns:
        `(ridge, held_out)`: held_out (N, K) are probabilities for every example from models that did not see its group;
        NaN where too few groups are left to learn from.
    """
    classes = np.asarray(classes, np.int64)
    fold = _folds(groups, folds, seed)
    present = np.bincount(classes, minlength=num_classes)
    weight = 1 / np.maximum(present, 1)[classes]
    best = (np.inf, ridges[len(ridges) // 2], np.full((len(classes), num_classes), np.nan))
    for ridge in ridges:
        held_out = np.full((len(classes), num_classes), np.nan)
        for number in np.unique(fold):
            inside = fold != number
            if len(np.unique(classes[inside])) < 2:
                continue  # without this fold there is one class left: nothing can be learned
            model = fit_logistic(features[inside], classes[inside], num_classes, ridge=ridge, degree=degree)
            held_out[~inside] = model.predict(features[~inside])
        judged = np.isfinite(held_out[:, 0])
        if not judged.any():
            continue
        chosen = held_out[judged, classes[judged]]
        loss = float(np.sum(-np.log(np.maximum(chosen, 1e-9)) * weight[judged]) / weight[judged].sum())
        if loss < best[0] - 1e-9:
            best = (loss, ridge, held_out)
    return best[1:]


def _folds(groups: Sequence[object], folds: int, seed: int) -> np.ndarray:
    """(N,) fold of every example; examples of one group share a fold when there are several groups."""
    _, numbers = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    if numbers.max(initial=0) == 0:
        numbers = np.arange(len(numbers))
    order = np.random.default_rng(seed).permutation(int(numbers.max(initial=0)) + 1)
    return order[numbers] % min(folds, len(order))


def _expand(features: np.ndarray, center: np.ndarray, scale: np.ndarray, degree: int) -> np.ndarray:
    features = np.asarray(features, np.float64)
    x = np.where(np.isfinite(features), (features - center) / scale, 0)
    x = np.clip(x, -_CLIP, _CLIP)
    if degree == 1:
        return x
    first, second = np.triu_indices(x.shape[1])
    return np.concatenate([x, x[:, first] * x[:, second] / 2], axis=1)


def _softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)
