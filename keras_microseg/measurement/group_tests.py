"""Do groups of particles differ, does a value go with another: means with intervals, rank correlation, permutations.

Nothing is assumed about distributions. Intervals are percentile bootstraps over particles; p values of differences come
from permutations of the group labels (with 1 added to both counts), and are corrected for the number of comparisons.

References:
    Efron and Tibshirani (1993), An Introduction to the Bootstrap; Phipson and Smyth (2010), permutation p values;
    Holm (1979), a simple sequentially rejective multiple test procedure.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from keras_microseg.checks import UserError


def group_means(table: pd.DataFrame, value: str, by: str, *, num_bootstrap: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Mean of `value` in every group of the column `by`.

    Returns:
        `by`, `particles`, `mean`, `low`, `high` (95 % bootstrap interval of the mean), `median`, `std`; groups in the
        order of their numbers, or of the alphabet (small, medium, large by size).
    """
    _check(table, value, by)
    rng = np.random.default_rng(seed)
    rows = []
    for name in order_groups(table[by].unique()):
        values = table.loc[table[by] == name, value].dropna().to_numpy(float)
        low, high = _interval(_bootstrap_means(values, rng, num_bootstrap))
        std = values.std(ddof=1) if len(values) > 1 else np.nan
        mean, median = (values.mean(), np.median(values)) if len(values) else (np.nan, np.nan)
        rows.append((name, len(values), mean, low, high, median, std))
    return pd.DataFrame(rows, columns=[by, "particles", "mean", "low", "high", "median", "std"])


def group_differences(
    table: pd.DataFrame, value: str, by: str, *, num_bootstrap: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Differences of the means of `value` between all pairs of groups.

    Returns:
        `first`, `second`, `difference` (second - first), `low`, `high` (95 % bootstrap interval), `p` (permutations),
        `p_adjusted` (Holm, over the pairs). Groups of fewer than two particles are passed over.
    """
    _check(table, value, by)
    rng = np.random.default_rng(seed)
    parts = {name: table.loc[table[by] == name, value].dropna().to_numpy(float) for name in table[by].unique()}
    names = [name for name in order_groups(parts) if len(parts[name]) > 1]
    rows = []
    for a, b in itertools.combinations(names, 2):
        first, second = parts[a], parts[b]
        draws = _bootstrap_means(second, rng, num_bootstrap) - _bootstrap_means(first, rng, num_bootstrap)
        difference = second.mean() - first.mean()
        both = np.concatenate([first, second])
        order = rng.permuted(np.tile(both, (num_bootstrap, 1)), axis=1)
        apart = order[:, len(first) :].mean(axis=1) - order[:, : len(first)].mean(axis=1)
        p = (1 + (np.abs(apart) >= abs(difference) - 1e-12).sum()) / (num_bootstrap + 1)
        rows.append((a, b, difference, *_interval(draws), p))
    result = pd.DataFrame(rows, columns=["first", "second", "difference", "low", "high", "p"])
    result["p_adjusted"] = holm(result["p"].to_numpy(float))
    return result


def rank_correlations(
    table: pd.DataFrame, value: str, against: Iterable[str], *, num_bootstrap: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Spearman's rank correlation of `value` with other columns.

    Returns:
        `quantity`, `particles`, `rho`, `low`, `high` (95 % bootstrap interval), `p` (t distribution), `p_adjusted`
        (Holm). Columns that are no numbers, or the same everywhere, are passed over.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name in against:
        if name == value or name not in table or table[name].dtype.kind not in "iuf":
            continue
        pair = table[[value, name]].dropna().to_numpy(float)
        if len(pair) < 4 or np.ptp(pair, axis=0).min() == 0:
            continue
        found = stats.spearmanr(pair[:, 0], pair[:, 1])
        draws = rng.integers(0, len(pair), (num_bootstrap, len(pair)))
        ranks = [stats.rankdata(pair[draws, column], axis=1) for column in (0, 1)]
        a, b = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
        with np.errstate(invalid="ignore", divide="ignore"):
            rho = (a * b).sum(axis=1) / np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
        rows.append((name, len(pair), float(found.statistic), *_interval(rho[np.isfinite(rho)]), float(found.pvalue)))
    result = pd.DataFrame(rows, columns=["quantity", "particles", "rho", "low", "high", "p"])
    result["p_adjusted"] = holm(result["p"].to_numpy(float))
    return result


def summarize_sweep(
    sweep: pd.DataFrame,
    labels: Iterable[int],
    value: str = "detachment",
    *,
    num_bootstrap: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Mean detachment of the particles `labels` at every distance, with a 95 % bootstrap interval over particles."""
    chosen = sweep[sweep["label"].isin(list(labels))]
    rng = np.random.default_rng(seed)
    rows = []
    for distance, part in chosen.groupby("distance"):
        values = part[value].dropna().to_numpy(float)
        if not len(values):
            continue
        low, high = _interval(_bootstrap_means(values, rng, num_bootstrap))
        quarters = np.quantile(values, [0.25, 0.5, 0.75])
        rows.append((distance, len(values), values.mean(), low, high, *quarters))
    columns = ["distance", "particles", "mean", "low", "high", "quartile_1", "median", "quartile_3"]
    result = pd.DataFrame(rows, columns=columns)
    result.attrs = {**sweep.attrs}
    return result


def order_groups(names: Iterable) -> list:
    """Groups in the order a reader expects: by number, small-medium-large, else by alphabet."""
    sizes = {"small": 0, "medium": 1, "large": 2}

    def key(name: object) -> tuple:
        try:
            return (0, float(name), "")  # type: ignore[arg-type]
        except (TypeError, ValueError):
            return (1, float(sizes.get(str(name), 3)), str(name))

    return sorted(names, key=key)


def holm(p: np.ndarray) -> np.ndarray:
    """Corrected p values that keep the chance of any false rejection: Holm's step-down procedure."""
    p = np.asarray(p, float)
    order = np.argsort(p)
    steps = p[order] * np.arange(len(p), 0, -1)
    result = np.empty_like(p)
    result[order] = np.minimum(np.maximum.accumulate(steps), 1.0) if len(p) else steps
    return result


def _bootstrap_means(values: np.ndarray, rng: np.random.Generator, count: int) -> np.ndarray:
    if not len(values):
        return np.full(count, np.nan)
    means = np.empty(count)
    step = max(1, 1_000_000 // len(values))
    for start in range(0, count, step):
        draws = rng.integers(0, len(values), (min(step, count - start), len(values)))
        means[start : start + step] = values[draws].mean(axis=1)
    return means


def _interval(draws: Sequence[float] | np.ndarray) -> tuple[float, float]:
    if not len(draws) or np.isnan(draws).all():
        return np.nan, np.nan
    low, high = np.quantile(draws, [0.025, 0.975])
    return float(low), float(high)


def _check(table: pd.DataFrame, *columns: str) -> None:
    missing = [name for name in columns if name not in table]
    if missing:
        raise UserError(f"The table has no column {missing[0]!r}. It has: {', '.join(map(str, table.columns))}")
