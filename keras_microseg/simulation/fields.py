"""Smooth random fields: the noise behind agglomeration, textures and uneven backgrounds."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_CELL = 32  # edge of the cells that noise is drawn in


def noise_field(
    rng: np.random.Generator,
    shape: tuple[int, int],
    scale: float,
    octaves: int = 1,
    stretch: float = 1.0,
) -> np.ndarray:
    """Random field with zero mean and unit standard deviation.

    White noise on a coarse grid, enlarged by cubic splines (value noise); each further octave has half the scale and
    half the weight.

    Args:
        rng: random source.
        shape: (height, width), px.
        scale: correlation length, px.
        octaves: number of layers.
        stretch: correlation length along x over that along y.

    Returns:
        float32 array of `shape`.
    """
    height, width = shape
    total = np.zeros(shape, np.float32)
    for octave in range(octaves):
        step = max(scale / 2**octave, 1.0)
        step_y, step_x = max(step / np.sqrt(stretch), 1.0), max(step * np.sqrt(stretch), 1.0)
        rows, columns = int(np.ceil(height / step_y)) + 3, int(np.ceil(width / step_x)) + 3
        coarse = rng.standard_normal((rows, columns), dtype=np.float32)
        if step_y > 1 or step_x > 1:
            offset_y, offset_x = rng.random(2)
            y = np.arange(height) / step_y + offset_y + 0.5
            x = np.arange(width) / step_x + offset_x + 0.5
            coarse = _spline_rows(_spline_rows(coarse, y).T, x).T
        total += coarse[:height, :width] * np.float32(0.5**octave)
    total -= total.mean()
    deviation = total.std()
    return total / deviation if deviation > 0 else total


def _spline_rows(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Cubic Catmull-Rom interpolation along the first axis at positions `at` (>= 0.5, <= len - 1.5)."""
    base = np.floor(at).astype(int)
    t = (at - base).astype(np.float32)[:, None]
    last = len(values) - 1
    p0, p1, p2, p3 = (values[np.clip(base + shift, 0, last)] for shift in (-1, 0, 1, 2))
    return p1 + 0.5 * t * (p2 - p0 + t * (2 * p0 - 5 * p1 + 4 * p2 - p3 + t * (3 * (p1 - p2) + p3 - p0)))


def curve_field(rng: np.random.Generator, shape: tuple[int, int], scale: float, width: float) -> np.ndarray:
    """Thin bright curves (wrinkles, scratches, film edges) in patches.

    1 on the zero lines of a noise field, falling off sideways.

    Args:
        rng: random source.
        shape: (height, width), px.
        scale: correlation length of the underlying field, px.
        width: half width of the lines, px.

    Returns:
        float32 array in 0..1.
    """
    return line_field(rng, shape, scale, width) * np.clip(noise_field(rng, shape, scale * 2), 0, 1)


def line_field(rng: np.random.Generator, shape: tuple[int, int], scale: float, width: float) -> np.ndarray:
    """As `curve_field`, but everywhere: a net of lines with meshes of about `scale` pixels."""
    field = noise_field(rng, shape, scale)
    slope = np.hypot(*np.gradient(field)) + 0.3 / scale
    return np.exp(-((field / (slope * width)) ** 2)).astype(np.float32)


def smooth_steps(rng: np.random.Generator, shape: tuple[int, int], scale: float) -> np.ndarray:
    """A field of soft-edged regions, roughly two-valued (phases of a substrate, film thickness), -1..1."""
    return np.tanh(4 * noise_field(rng, shape, scale, octaves=2)).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with reflection at the frame; `sigma` <= 0 returns the input."""
    return ndimage.gaussian_filter(image, sigma, mode="reflect", truncate=3.0) if sigma > 0 else image


def smoothing_gain(sigma: float) -> np.float32:
    """Standard deviation of white noise over that of the same noise after a 3D Gaussian filter."""
    kernel = np.zeros(8 * math.ceil(sigma) + 3)
    kernel[len(kernel) // 2] = 1
    return np.float32((ndimage.gaussian_filter1d(kernel, sigma) ** 2).sum() ** -1.5)


def white_noise(seed: int, box: Sequence[slice], stream: int = 4) -> np.ndarray:
    """Standard normal float32 that depends on the position only: drawn per cell, each with a seed of its own.

    Args:
        seed: start of all random numbers.
        box: a slice without step per axis of the volume; positions may be negative.
        stream: another number gives another, independent noise.
    """
    out = np.empty([part.stop - part.start for part in box], np.float32)
    ranges = [range(part.start // _CELL, (part.stop - 1) // _CELL + 1) for part in box]
    for index in np.ndindex(*(len(r) for r in ranges)):
        cell = [r[i] for r, i in zip(ranges, index, strict=True)]
        entropy = [seed, stream, *(c + 2**20 for c in cell)]  # cells before the origin count too
        values = np.random.Generator(np.random.SFC64(np.random.SeedSequence(entropy))).standard_normal(
            (_CELL,) * 3, dtype=np.float32
        )
        source, target = [], []
        for part, c in zip(box, cell, strict=True):
            low, high = max(part.start, c * _CELL), min(part.stop, (c + 1) * _CELL)
            source.append(slice(low - c * _CELL, high - c * _CELL))
            target.append(slice(low - part.start, high - part.start))
        out[tuple(target)] = values[tuple(source)]
    return out


def block_field(seed: int, box: Sequence[slice], scale: float, stream: int) -> np.ndarray:
    """One block of a smooth random field without end: value noise, mean 0, standard deviation about 1.

    Every block equals the same part of the whole. Args as for `white_noise`; `scale` is the correlation length, voxels.
    """
    scale = max(float(scale), 1.0)
    low = [math.floor(part.start / scale) - 1 for part in box]
    coarse = [slice(a, math.floor((part.stop - 1) / scale) + 3) for a, part in zip(low, box, strict=True)]
    values = white_noise(seed, coarse, stream)
    for axis, (start, part) in enumerate(zip(low, box, strict=True)):
        rows = np.moveaxis(values, axis, 0)
        flat = _spline_rows(rows.reshape(len(rows), -1), np.arange(part.start, part.stop) / scale - start)
        values = np.moveaxis(flat.reshape(-1, *rows.shape[1:]), 0, axis)
    return np.ascontiguousarray(values) * np.float32(1.36)  # interpolation takes a quarter of the deviation
