"""What a rock consists of, from its class map: shares with intervals, porosity, mass, contacts, chords, surfaces.

References: Chayes (1956), modal analysis; Efron and Tibshirani (1993), bootstrap, here over blocks because neighbouring
pixels are not independent; Buonaccorsi (2010) and Olofsson et al. (2014), correction for errors of classification;
Torquato (2002), chords; Underwood (1970), S_V = 4 / pi L_A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import optimize, stats

from keras_microseg.checks import UserError, check_choice, check_number
from keras_microseg.image import PixelSize
from keras_microseg.measurement.particles import edge_lengths

_BAND_PIXELS = 1 << 24


class Composition(NamedTuple):
    """Shares of classes.

    Attributes:
        table: a row per class: `class`, `pixels`, `raw` (counted), `share` (corrected where a confusion matrix was
            given, else as `raw`), `low`, `high`.
        draws: (D, K) bootstrap draws of `share`; functions of several shares get their intervals from these.
        num_blocks: independent blocks behind the intervals.
        confidence: level.
    """

    table: pd.DataFrame
    draws: np.ndarray
    num_blocks: int
    confidence: float

    def interval(self, value: float, draws: np.ndarray) -> tuple[float, float]:
        """Interval of a number computed from the shares, given its value for every draw."""
        return _interval(value, draws, self.num_blocks, self.confidence)


def block_counts(classes: Any, num_classes: int, block: int) -> np.ndarray:
    """(B, K) pixels of each class in blocks of `block` x `block`; other numbers (ignored ones) count nothing.

    Args:
        classes: (H, W) array or lazy array, read in bands of blocks.
        num_classes: K; classes are 0 to K - 1.
        block: edge, px.
    """
    check_number("block", block, minimum=1, integer=True)
    height, width = classes.shape
    across = -(-width // block)
    parts = []
    for top in range(0, height, block):
        counts = np.zeros(across * (num_classes + 1), np.int64)
        step = max(1, _BAND_PIXELS // width)
        for row in range(top, min(top + block, height), step):
            band = np.asarray(classes[row : min(row + step, top + block, height)])
            kept = np.where((band >= 0) & (band < num_classes), band, num_classes).astype(np.int64)
            index = kept + (np.arange(width) // block) * (num_classes + 1)
            counts += np.bincount(index.ravel(), minlength=len(counts))
        parts.append(counts.reshape(across, -1)[:, :num_classes])
    return np.concatenate(parts)


def modal_composition(
    counts: np.ndarray,
    names: Sequence[str],
    *,
    confusion: np.ndarray | None = None,
    confidence: float = 0.95,
    num_draws: int = 1000,
    seed: int = 0,
    widen: float = 1.0,
    method: str = "inversion",
) -> Composition:
    """Area shares of the rock that a map samples, with intervals.

    Blocks are drawn with replacement; intervals are widened from the normal to Student's t of the number of blocks.
    With a confusion matrix the shares of the predictions are turned into true shares (`correct_shares`). Its own
    uncertainty enters by drawing it anew.

    Args:
        counts: (B, K) of `block_counts`; blocks should be several grains wide.
        names: of the K classes.
        confusion: pixels of a validation set, (K, K) true x predicted, or (V, K, K) for V independent regions (tiles,
            samples); a single matrix counts its pixels as independent, which they seldom are.
        confidence: level of the intervals.
        num_draws: bootstrap draws.
        seed: random seed.
        widen: factor for the sampling error, since neighbouring blocks are not quite independent: that of
            `class_maps.block_widening`.
        method: of the correction, see `correct_shares`.

    Raises:
        UserError: fewer than two blocks with pixels, shapes that do not fit, or a class without validation pixels.
    """
    counts = np.asarray(counts, float)
    check_number("confidence", confidence, minimum=0, maximum=1, exclusive=True)
    if counts.ndim != 2 or counts.shape[1] != len(names):
        raise UserError(f"`counts` needs a column per class. Received: shape {counts.shape} for {len(names)} names")
    pixels = counts.sum(axis=0)
    counts = counts[counts.sum(axis=1) > 0]
    if len(counts) < 2:
        raise UserError("Intervals need at least two blocks with pixels. Choose smaller blocks.")
    rng = np.random.default_rng(seed)
    number = len(counts)
    drawn = rng.multinomial(number, np.full(number, 1 / number), num_draws) @ counts
    raw, draws = pixels / pixels.sum(), drawn / drawn.sum(axis=1, keepdims=True)
    if widen != 1:
        draws = np.maximum(raw + (draws - raw) * check_number("widen", widen, minimum=1), 0)
        draws /= draws.sum(axis=1, keepdims=True)
    share = raw
    if confusion is not None:
        regions = np.asarray(confusion, float)
        if regions.ndim not in (2, 3) or regions.shape[-2:] != (len(names),) * 2:
            raise UserError(f"`confusion` must be (K, K) or (V, K, K) for K = {len(names)}. Received: {regions.shape}")
        total = regions if regions.ndim == 2 else regions.sum(axis=0)
        empty = [name for name, row in zip(names, total, strict=True) if not row.sum()]
        if empty:
            raise UserError(f"Classes without validation pixels: {', '.join(empty)}. Leave them out or merge them.")
        share = correct_shares(raw, total, method)
        draws = np.array([correct_shares(p, _redraw(rng, regions, total), method) for p in draws])
    limits = [_interval(value, draws[:, k], number, confidence) for k, value in enumerate(share)]
    low, high = np.clip(np.array(limits).T, 0, 1)
    table = pd.DataFrame(
        {"class": list(names), "pixels": pixels.astype(np.int64), "raw": raw, "share": share, "low": low, "high": high}
    )
    return Composition(table, draws, number, confidence)


def correct_shares(shares: np.ndarray, confusion: np.ndarray, method: str = "inversion") -> np.ndarray:
    """(K,) true shares that explain predicted ones.

    Args:
        shares: (K,) of the predictions, p.
        confusion: (K, K) pixels true x predicted.
        method: "inversion": the t on the simplex with the smallest |C t - p|, column k of C being how class k is
            predicted; right also where the validation data hold other shares, but unsteady for classes that are hardly
            ever found. "stratified": t = U p, column k of U being what is true where class k is predicted (Olofsson et
            al. 2014); steady, for validation data from the same rock.
    """
    check_choice("method", method, ("inversion", "stratified"))
    confusion = np.asarray(confusion, float)
    if method == "stratified":
        found = confusion.sum(axis=0)
        rates = np.where(found > 0, confusion / np.maximum(found, 1e-12), np.eye(len(shares)))
        return rates @ shares
    rates = (confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1e-12)).T
    heavy = 1e3  # holds the sum at 1
    system, target = np.vstack([rates, np.full(len(shares), heavy)]), np.append(shares, heavy)
    found = optimize.nnls(system, target)[0]
    return found / found.sum()


def detection_limits(regions: np.ndarray) -> np.ndarray:
    """(K,) smallest share of each class that is told from none, after Currie (1968): 3.29 s / recall.

    s is the standard error of the share of other pixels that are called by the class's name, from its spread between
    regions; 5 % of false alarms and 5 % of misses. NaN with fewer than two regions, or for a class never found.

    Args:
        regions: (V, K, K) pixels true x predicted.
    """
    regions = np.asarray(regions, float)
    total, hits = regions.sum(axis=0), np.diagonal(regions, axis1=1, axis2=2)
    others = regions.sum(axis=(1, 2))[:, np.newaxis] - regions.sum(axis=2)
    known = others > 0
    rates = np.where(known, (regions.sum(axis=1) - hits) / np.maximum(others, 1), np.nan)
    recall = np.diag(total) / np.maximum(total.sum(axis=1), 1e-12)
    count = known.sum(axis=0)
    out = np.full(len(total), np.nan)
    for k in np.flatnonzero((count >= 2) & (recall > 0)):
        out[k] = 3.29 * np.nanstd(rates[:, k], ddof=1) / np.sqrt(count[k]) / recall[k]
    return out


def porosity(
    composition: Composition, pores: Sequence[str], micro_porosity: Mapping[str, float] | None = None
) -> tuple[float, float, float]:
    """Share of pore space and its interval: pores, and what classes hold inside (share 0..1 of each)."""
    weights = _weights(composition, dict.fromkeys(pores, 1.0) | dict(micro_porosity or {}), 0.0)
    value = float(composition.table["share"].to_numpy() @ weights)
    return value, *composition.interval(value, composition.draws @ weights)


def mass_shares(composition: Composition, densities: Mapping[str, float]) -> pd.DataFrame:
    """Mass shares with intervals: `class`, `mass`, `low`, `high`; classes without density (pores: 0) weigh nothing.

    Raises:
        UserError: a name that is no class, or no class with a density.
    """
    weights = _weights(composition, densities, 0.0)
    if not weights.any():
        raise UserError("No class has a density. Pass densities in g/cm3.")
    value = composition.table["share"].to_numpy() * weights
    draws = composition.draws * weights
    value, draws = value / value.sum(), draws / np.maximum(draws.sum(axis=1, keepdims=True), 1e-12)
    limits = [composition.interval(v, d) for v, d in zip(value, draws.T, strict=True)]
    low, high = np.clip(np.array(limits).T, 0, 1)
    return pd.DataFrame({"class": composition.table["class"], "mass": value, "low": low, "high": high})


def compare_shares(composition: Composition, reference: Mapping[str, float]) -> pd.DataFrame:
    """Shares beside those of another method: `class`, `share`, `reference`, `points`, `relative`, `inside`.

    Raises:
        UserError: a name that is no class.
    """
    _weights(composition, reference, 0.0)
    table = composition.table[composition.table["class"].isin(list(reference))].reset_index(drop=True)
    other = table["class"].map(dict(reference)).astype(float)
    away = table["share"] - other
    return pd.DataFrame(
        {
            "class": table["class"],
            "share": table["share"],
            "reference": other,
            "points": 100 * away,
            "relative": away / other.where(other != 0),
            "inside": (other >= table["low"]) & (other <= table["high"]),
        }
    )


def association_matrix(
    classes: np.ndarray, names: Sequence[str], *, pixel_size: PixelSize | None = None
) -> pd.DataFrame:
    """Length of the contact between every two classes, symmetric, from pixel edges times pi / 4 (isotropic outlines).

    Row sums over the area give the boundary length per area L_A of a class; `4 / pi * L_A` is its specific surface.

    Args:
        classes: (H, W); numbers that are no class have no contacts.
        names: of the classes 0 to K - 1.
        pixel_size: edge lengths; None = px.
    """
    size, count = edge_lengths(pixel_size, 2), len(names)
    total = np.zeros((count, count))
    for one, other, length in (
        (classes[1:], classes[:-1], size[1]),
        (classes[:, 1:], classes[:, :-1], size[0]),
    ):
        differ = (one != other) & (one >= 0) & (other >= 0) & (one < count) & (other < count)
        pairs = np.bincount(one[differ].astype(np.int64) * count + other[differ], minlength=count**2)
        total += length * np.pi / 4 * pairs.reshape(count, count)
    return pd.DataFrame(total + total.T, index=list(names), columns=list(names))


def chord_lengths(mask: np.ndarray, *, axis: int = 1, pixel_size: PixelSize | None = None) -> np.ndarray:
    """Lengths of all runs of a phase along an axis, those that the frame cuts left out; (N,) float64."""
    lines = np.pad(np.moveaxis(np.asarray(mask) != 0, axis, -1), ((0, 0), (1, 1))).astype(np.int8)
    row, start = np.nonzero(np.diff(lines, axis=1) == 1)
    end = np.nonzero(np.diff(lines, axis=1) == -1)[1]
    whole = (start > 0) & (end < lines.shape[1] - 2)
    return (end - start)[whole] * edge_lengths(pixel_size, 2)[axis]


def _redraw(rng: np.random.Generator, regions: np.ndarray, total: np.ndarray) -> np.ndarray:
    if regions.ndim == 3:
        weights = rng.multinomial(len(regions), np.full(len(regions), 1 / len(regions)))
        drawn = np.tensordot(weights, regions, 1)
        return np.where(drawn.sum(axis=1, keepdims=True) > 0, drawn, total)
    return np.array([rng.multinomial(int(row.sum()), row / row.sum()) for row in total], float)


def _interval(value: float, draws: np.ndarray, num_blocks: int, confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws, (tail, 1 - tail))
    wider = stats.t.ppf(1 - tail, num_blocks - 1) / stats.norm.ppf(1 - tail) * np.sqrt(num_blocks / (num_blocks - 1))
    return float(value + (low - value) * wider), float(value + (high - value) * wider)


def _weights(composition: Composition, values: Mapping[str, float], default: float) -> np.ndarray:
    names = composition.table["class"].tolist()
    unknown = [name for name in values if name not in names]
    if unknown:
        raise UserError(f"No such class: {', '.join(map(str, unknown))}. Classes are {', '.join(names)}.")
    found = np.array([values.get(name, default) for name in names], float)
    return np.where(np.isfinite(found), found, default)
