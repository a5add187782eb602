"""Windows of a class map found again in grey values, and the transform that fits what they say.

A window is moved over the grey values until its classes explain most of them. As long as the greys of the classes are
unknown that is the correlation ratio, summed from correlations with every class; afterwards the correlation with the
expected grey.

References: Roche et al. (1998), correlation ratio; Lewis (1995), fast normalized cross-correlation.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import ndimage
from skimage.feature import match_template

from keras_microseg.registration.transform import Transform


class Matches(NamedTuple):
    """What windows say.

    Attributes:
        points: (N, 2) middles, map px.
        moves: (N, 2) shifts asked for, map px.
        scores: (N,) correlations.
        fields: (N, 2) row and column of the field.
    """

    points: np.ndarray
    moves: np.ndarray
    scores: np.ndarray
    fields: np.ndarray


def match_windows(numbers, grey, transform, expected, level, search, size, known) -> Matches:
    """Shift of every window of the map against the grey values resampled under it, map px."""
    edge = size * (level if level > 1 else 2)
    margin = max(2, int(np.ceil(search / level)))
    points, moves, scores, fields = [], [], [], []
    for field, ((top, bottom), (left, right)) in transform.fields():
        # two windows a side at least, so that every field tells about the linear part
        count = tuple(max(1, n // max(12 * level, min(edge, n // 2))) for n in (bottom - top, right - left))
        rows, columns = np.linspace(top, bottom, count[0] + 1), np.linspace(left, right, count[1] + 1)
        for y0, y1 in zip(rows[:-1].astype(int), rows[1:].astype(int), strict=True):
            for x0, x1 in zip(columns[:-1].astype(int), columns[1:].astype(int), strict=True):
                y1, x1 = y0 + (y1 - y0) // level * level, x0 + (x1 - x0) // level * level
                if min(y1 - y0, x1 - x0) < 8 * level:
                    continue
                window = numbers[y0:y1, x0:x1]
                if not known[window].mean() > 0.5 or (window != window.flat[0]).mean() < 0.02:
                    continue
                scene = _around(grey, (y0, y1), (x0, x1), margin * level, transform, field)
                move, score = _best_shift(window, _blocks(scene, level), expected, level, margin, known)
                points.append(((y0 + y1 - 1) / 2, (x0 + x1 - 1) / 2))
                moves.append(np.array(move) * level)
                scores.append(score)
                fields.append(field)
    if not points:
        return Matches(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.zeros((0, 2), int))
    return Matches(np.array(points), np.array(moves), np.array(scores), np.array(fields))


def _around(grey, rows, columns, margin, transform, field) -> np.ndarray:
    """The resampled grey values of a window and its margin, all as this field sees them.

    Beyond the border of the field the picture of another field lies there, set off; windows at the frame are padded.
    """
    out = _take(grey, rows[0] - margin, rows[1] + margin, columns[0] - margin, columns[1] + margin)
    own = transform.shifts[field]
    row0, col0 = (
        np.clip(np.searchsorted(b, (lo - margin, hi + margin - 1), side="right") - 1, 0, len(b) - 1)
        for b, (lo, hi) in zip(transform.borders, (rows, columns), strict=True)
    )
    if row0[0] == row0[1] and col0[0] == col0[1]:
        return out
    inverse = np.linalg.inv(transform.linear)
    ends = [np.append(b[1:], n + 10**6) for b, n in zip(transform.borders, transform.shape, strict=True)]
    y = np.arange(rows[0] - margin, rows[1] + margin)
    x = np.arange(columns[0] - margin, columns[1] + margin)
    for i in range(row0[0], row0[1] + 1):
        for j in range(col0[0], col0[1] + 1):
            if (i, j) == tuple(field):
                continue
            in_y = np.flatnonzero((y >= (transform.borders[0][i] if i else -(10**6))) & (y < ends[0][i]))
            in_x = np.flatnonzero((x >= (transform.borders[1][j] if j else -(10**6))) & (x < ends[1][j]))
            if not len(in_y) or not len(in_x):
                continue
            # the same place of the sample in the neighbour's rows and columns
            dy, dx = inverse @ (own - transform.shifts[i, j])
            at = np.meshgrid(y[in_y] + dy, x[in_x] + dx, indexing="ij")
            out[np.ix_(in_y, in_x)] = ndimage.map_coordinates(grey, at, order=1, mode="nearest")
    return out


def _take(grey, top, bottom, left, right) -> np.ndarray:
    rows = np.clip(np.arange(top, bottom), 0, grey.shape[0] - 1)
    columns = np.clip(np.arange(left, right), 0, grey.shape[1] - 1)
    return grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1][np.ix_(rows - rows[0], columns - columns[0])]


def _blocks(array: np.ndarray, level: int) -> np.ndarray:
    if level == 1:
        return np.asarray(array, np.float32)
    height, width = (n // level for n in array.shape)
    return (
        array[: height * level, : width * level]
        .reshape(height, level, width, level)
        .mean(axis=(1, 3), dtype=np.float32)
    )


def _best_shift(window, scene, expected, level, margin, known) -> tuple[tuple[float, float], float]:
    """Shift in px of the level, and its correlation."""
    if expected is not None:
        means = np.where(known, expected, 0)
        template = means[window]
        if not known.all():
            good = known[window]
            template = np.where(good, template, template[good].mean())
        template = _blocks(template, level)
        if template.std() < 1e-6:
            return (0.0, 0.0), 0.0
        surface = match_template(scene, template)
    else:
        squares, present = 0.0, np.bincount(window.ravel())
        for k in np.flatnonzero(present):
            share = present[k] / window.size
            indicator = _blocks((window == k).astype(np.float32), level)
            if known[k] and share > 0.005 and indicator.std() > 1e-6:
                squares = squares + (1 - share) * match_template(scene, indicator) ** 2
        if np.isscalar(squares):
            return (0.0, 0.0), 0.0
        surface = np.sqrt(squares)
    y, x = np.unravel_index(np.argmax(surface), surface.shape)
    score = float(surface[y, x])
    if not (0 < y < surface.shape[0] - 1 and 0 < x < surface.shape[1] - 1):
        return (0.0, 0.0), 0.0  # at the edge of the search: no maximum was seen
    fine = []
    for line in (surface[y - 1 : y + 2, x], surface[y, x - 1 : x + 2]):
        bend = line[0] - 2 * line[1] + line[2]
        fine.append(float(0.5 * (line[0] - line[2]) / bend) if bend < 0 else 0.0)
    return (y - margin + fine[0], x - margin + fine[1]), score


def fit_transform(transform: Transform, found: Matches, min_score: float, level: int) -> tuple[Transform, np.ndarray]:
    """Linear part common to all fields, one shift per field; robust. Also which windows agree."""
    good = found.scores >= min_score
    rows, columns = transform.shifts.shape[:2]
    index = found.fields[:, 0] * columns + found.fields[:, 1]
    at = found.points @ transform.linear.T + transform.shifts[tuple(found.fields.T)]
    target = at + found.moves @ transform.linear.T
    scale = transform.scale
    linear, weights = transform.linear, np.where(good, found.scores**2, 0.0)
    base = weights.copy()
    middle = found.points.mean(axis=0)
    shifts = transform.shifts.reshape(-1, 2)
    for _ in range(12):
        # linear part: from differences within fields, held near the old one when they are few
        totals = np.bincount(index, weights, rows * columns)
        mean = np.maximum(totals, 1e-9)[:, np.newaxis]
        p_mean, q_mean = (
            np.stack([np.bincount(index, weights * v[:, a], rows * columns) for a in (0, 1)], axis=1) / mean
            for v in (found.points - middle, target)
        )
        p, q = found.points - middle - p_mean[index], target - q_mean[index]
        hold = 0.02 * level**2 * float(np.median(base[good])) * max(100.0, float(np.ptp(found.points, axis=0).max()))
        normal = (p * weights[:, None]).T @ p + hold * np.eye(2)
        linear = np.linalg.solve(normal, (p * weights[:, None]).T @ q + hold * transform.linear.T).T
        shifts = _field_shifts(found, target - found.points @ linear.T, weights, index, (rows, columns), scale)
        away = np.hypot(*(target - found.points @ linear.T - shifts[index]).T) / scale
        spread = 1.48 * float(np.median(away[good])) if good.any() else 1.0
        limit = max(4.7 * spread / 1.18, 1.0 * level)
        weights = np.where(away < limit, base * (1 - (away / limit) ** 2) ** 2, 0)
    used = good & (away < limit)
    return dataclasses.replace(transform, linear=linear, shifts=shifts.reshape(rows, columns, 2)), used


def _field_shifts(found, rest, weights, index, shape, scale) -> np.ndarray:
    """(fields, 2): the weighted mean of each field, drawn to the plane through all of them where windows are few."""
    count = shape[0] * shape[1]
    grid = np.stack(np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij"), -1).reshape(count, 2)
    totals = np.bincount(index, weights, count)
    own = np.stack([np.bincount(index, weights * rest[:, a], count) for a in (0, 1)], axis=1)
    own /= np.maximum(totals, 1e-9)[:, np.newaxis]
    has = totals > 0
    plane = np.zeros((count, 2))
    if has.any():
        terms = np.column_stack([np.ones(count), grid - grid[has].mean(axis=0)])
        keep = np.sqrt(totals * has)
        for _ in range(6):
            held = np.vstack([terms * keep[:, None], np.diag([0, 1e-3, 1e-3]) * keep.max()])
            slopes = np.linalg.lstsq(held, np.vstack([own * keep[:, None], np.zeros((3, 2))]), rcond=None)[0]
            plane = terms @ slopes
            away = np.hypot(*(own - plane).T) / scale
            limit = max(4.7 * 1.25 * float(np.median(away[has])), 1.0)
            keep = np.sqrt(totals * has) * np.where(away < limit, 1 - (away / limit) ** 2, 0)
    typical = float(np.median(weights[weights > 0])) if (weights > 0).any() else 1.0
    trust = (totals / (totals + 0.3 * typical))[:, np.newaxis]
    return np.where(has[:, None], trust * own + (1 - trust) * plane, plane)


def held_out_distances(transform: Transform, found: Matches, used: np.ndarray, min_score: float) -> np.ndarray:
    """Distances of every other window from the fit to the rest, map px."""
    distances = []
    index = found.fields[:, 0] * transform.shifts.shape[1] + found.fields[:, 1]
    order = np.zeros(len(used), int)  # as on a chessboard, so that each half tells about both axes
    for field in np.unique(index):
        own = index == field
        order[own] = sum(np.unique(found.points[own, a], return_inverse=True)[1] for a in (0, 1)) % 2
    for part in (0, 1):
        fit = used & (order == part)
        if fit.sum() < 3:
            continue
        subset = Matches(*(values[fit] for values in found))
        model, _ = fit_transform(transform, subset, min_score, 1)
        # a field of which no window is left has no shift of its own to be judged
        test = used & (order != part) & np.isin(index, index[fit])
        at = found.points[test] @ transform.linear.T + transform.shifts[tuple(found.fields[test].T)]
        target = at + found.moves[test] @ transform.linear.T
        away = (target - model(found.points[test])) @ np.linalg.inv(transform.linear).T
        distances.append(np.hypot(*away.T))
    return np.concatenate(distances) if distances else np.zeros(0)
