"""Videos of a hollow filament that burns away on a support, with exactly known areas, volumes and rate law.

A tube of circular section runs along a smooth axis. Between its outer diameter D1 and the length L of the segment the
projected areas are exact: a strip of half width w along a curve that bends less than 1/w has the area 2 w L.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.spatial import cKDTree

from keras_microseg.checks import UserError, check_choice, check_number, standardize_tuple
from keras_microseg.image import PixelSize
from keras_microseg.io.frames import FrameSeries
from keras_microseg.simulation.fields import blur, noise_field

MODES = {"catalytic": 1.0, "cooperative": 0.65, "non-catalytic": 0.35}
"""Share of the loss that shortens the filament; the rest thins its wall."""


class SimulatedVideo(NamedTuple):
    """A video and its truth.

    Attributes:
        series: frames in memory (uint8, fill grey outside the segment) with exact masks of A1 and A2.
        truth: one row per frame, pixels and seconds: `frame`, `time`, `length`, `D1`, `D2` of the tube, `A1`, `A2` its
            exact projected areas, `V` the wall volume pi (A1^2 - A2^2) / (4 L) of the fixed segment, `conversion`.
        facts: `L` (length of the segment, px), `k`, `n`, `t_end` of the rate law, `mode`, `seed`.
    """

    series: FrameSeries
    truth: pd.DataFrame
    facts: dict[str, float | int | str]


class Field(NamedTuple):
    """Where every pixel of the world lies relative to the axis of the filament.

    Attributes:
        along: (H, W) arc length of the nearest axis point from the start of the segment, px.
        aside: (H, W) distance from the axis, px.
        x: (M,) column of the axis at `arc`.
        arc: (M,) arc lengths.
    """

    along: np.ndarray
    aside: np.ndarray
    x: np.ndarray
    arc: np.ndarray


def simulate_video(
    seed: int,
    *,
    num_frames: int = 20,
    shape: int | tuple[int, int] = (256, 256),
    mode: str | None = None,
    length: float | None = None,
    diameters: tuple[float, float] | None = None,
    k: float | None = None,
    n: float | None = None,
    drift: float = 6.0,
    noise: float = 1.0,
    spacing: int = 50,
    num_before: int = 0,
    fill: int = 178,
    name: str | None = None,
) -> SimulatedVideo:
    """One video of a burning filament; what is not given is drawn from `seed`.

    The wall volume follows V = V0 exp(-k tau^n), tau = time / last time. `mode` says how much of the loss shortens the
    filament (eaten by a particle at its tip) and how much thins its wall, a quarter of it from inside.

    Args:
        seed: equal seeds give equal videos.
        num_frames: frames from time 0 on.
        shape: (height, width) of a frame, px.
        mode: a name in `MODES`.
        length: length of the segment at time 0, px.
        diameters: (outer, inner) at time 0, px.
        k, n: Avrami rate and exponent, in units of tau.
        drift: largest step of the window between frames, px; the filament moves by whole pixels.
        noise: strength of texture and noise, 1 = as in the recordings.
        spacing: frame numbers between frames; 2 frames are a second, frame 88 is time 0.
        num_before: frames before time 0.
        fill: grey outside the segment.
        name: of the series; default `sim` and the seed.

    Raises:
        UserError: an argument out of range, or a filament that does not fit.

    Example:
        >>> video = simulate_video(1, num_frames=5, shape=96)
        >>> video.series.shape, video.series.tasks
        ((5, 96, 96), ('A1', 'A2'))
    """
    check_number("num_frames", num_frames, minimum=1, integer=True)
    check_number("spacing", spacing, minimum=1, integer=True)
    check_number("num_before", num_before, minimum=0, maximum=4, integer=True)
    height, width = standardize_tuple(shape, 2, "shape", minimum=48)
    rng = np.random.default_rng(seed)
    mode = check_choice("mode", str(rng.choice(list(MODES))) if mode is None else mode, MODES)
    length = float(length or width * rng.uniform(0.5, 0.72))
    outer, inner = diameters or (height * rng.uniform(0.11, 0.2), 0.0)
    inner = inner if diameters else outer * rng.uniform(0.35, 0.55)
    k, n = float(k or rng.uniform(3, 8)), float(n or rng.uniform(1.3, 3))
    if not 0 < inner < outer or outer > 0.5 * height or length > 0.85 * width:
        raise UserError(
            f"The filament does not fit: needs 0 < inner < outer <= {0.5 * height:g} and length <= {0.85 * width:g}. "
            f"Received: diameters={(outer, inner)}, length={length:g}"
        )

    numbers = np.concatenate([np.array([1, 22, 44, 66])[:num_before], 88 + spacing * np.arange(num_frames)])
    times = (numbers - 88) / 2.0
    truth = _burn(times, MODES[mode], length, outer, inner, k, n)
    truth.insert(0, "frame", numbers)

    margin = int(np.ceil(drift * np.sqrt(num_frames))) + 4
    world = (height + 2 * margin, width + 2 * margin)
    field = _axis(rng, world, length, margin)
    ground = 168 + noise * 8 * noise_field(rng, world, 4.0, octaves=3)
    speckles = noise_field(rng, world, 9.0)
    ground -= noise * 60 * np.clip(speckles - 2.4, 0, 1)  # dark grains of catalyst on the support
    band = 0.75 * outer + 0.05 * height

    shift = np.zeros(2)
    images, masks1, masks2, valids = [], [], [], []
    for row in truth.itertuples():
        shift = np.clip(shift + rng.uniform(-drift, drift, 2), -margin, margin)
        top, left = np.round(shift).astype(int) + margin
        view = slice(top, top + height), slice(left, left + width)
        along, aside = field.along[view], field.aside[view]
        columns = left + np.arange(width)
        start, tip = np.interp((0, row.length), field.arc, field.x)
        # The cut at the start is vertical: of a tilted strip it takes as much on one side as it adds on the other.
        on = (columns >= start) & (along > -outer) & (along < row.length)
        a1, a2 = on & (aside < row.D1 / 2), on & (aside < row.D2 / 2)
        valid = (aside < band) & (columns >= start) & (columns <= tip + 6 + 0.4 * row.D1)
        image = _expose(rng, ground[view], on, along, aside, row, mode, noise)
        images.append(np.where(valid, np.clip(np.rint(image), 0, 255), fill).astype(np.uint8))
        masks1.append(a1 & valid)
        masks2.append(a2 & valid)
        valids.append(valid)

    name = name or f"sim{seed:03d}"
    series = FrameSeries(
        name=name,
        images=np.stack(images),
        numbers=numbers,
        times=times,
        files=tuple(f"{name}_r1_{number:06d}.png" for number in numbers),
        pixel_size=PixelSize((0.52, 0.52), "nm", "simulated"),
        masks={"A1": np.stack(masks1), "A2": np.stack(masks2)},
        fill=fill,
        valid=np.stack(valids),
        metadata={"layout": "simulated", "zero_frame": 88, "frame_rate": 2.0, "warnings": []},
    )
    facts = {"L": length, "k": k, "n": n, "t_end": float(times[-1]), "mode": mode, "seed": int(seed)}
    return SimulatedVideo(series, truth, facts)


def _burn(
    times: np.ndarray, shortening: float, length: float, outer: float, inner: float, k: float, n: float
) -> pd.DataFrame:
    """Exact sizes over time."""
    tau = np.clip(times / max(times[-1], 1e-9), 0, None)
    left = np.exp(-k * tau**n)  # V / V0
    now = length * left ** (shortening / 2)
    wall = (outer**2 - inner**2) * left ** (1 - shortening)
    d2 = np.sqrt(inner**2 + 0.25 * (outer**2 - inner**2 - wall))
    d1 = np.sqrt(d2**2 + wall)
    a1, a2 = d1 * now, d2 * now
    return pd.DataFrame(
        {
            "time": times, "length": now, "D1": d1, "D2": d2, "A1": a1, "A2": a2,
            "V": np.pi * (a1**2 - a2**2) / (4 * length), "conversion": 1 - left,
        }
    )  # fmt: skip


def _axis(rng: np.random.Generator, world: tuple[int, int], length: float, margin: int) -> Field:
    """A gently bent axis through the middle of the world, and where all pixels lie relative to it."""
    height, width = world
    x = np.linspace(-0.3 * width, 1.3 * width, 8 * width)
    slope, bend = rng.uniform(-0.5, 0.5), rng.uniform(-0.06, 0.06) * (height - 2 * margin)
    middle = (x - width / 2) / (width - 2 * margin)
    y = height / 2 + slope * (x - width / 2) + bend * np.cos(np.pi * middle)
    arc = np.concatenate([[0], np.cumsum(np.hypot(np.diff(x), np.diff(y)))])
    arc -= np.interp(width / 2 - length / 2, x, arc)  # the segment lies in the middle of the frame
    pixels = np.indices(world).reshape(2, -1).T
    aside, nearest = cKDTree(np.stack([y, x], 1)).query(pixels)
    return Field(arc[nearest].reshape(world), aside.reshape(world), x, arc)


def _expose(
    rng: np.random.Generator, ground: np.ndarray, on: np.ndarray, along: np.ndarray, aside: np.ndarray, row: tuple,
    mode: str, noise: float,
) -> np.ndarray:  # fmt: skip
    """Bright-field picture: absorption in the wall, a bright fringe of defocus, a particle at the tip, blur, noise."""

    def chord(diameter: float) -> np.ndarray:
        return 2 * np.sqrt(np.clip((diameter / 2) ** 2 - aside**2, 0, None))

    longest = max(np.sqrt(max(row.D1**2 - row.D2**2, 0)), 6.0)
    path = np.where(on, chord(row.D1) - chord(row.D2), 0) / longest
    wall = on & (aside < row.D1 / 2) & (aside >= row.D2 / 2)
    image = ground * np.exp(-0.22 * path - 0.05 * wall)
    image = image + 26 * np.exp(-(((aside - row.D1 / 2 - 1.5) / 1.6) ** 2)) * on
    if mode != "non-catalytic" and row.D1 > 2:
        radius = 0.38 * row.D1
        away = np.hypot(along - row.length - radius, aside)
        image = image - 75 * (away < radius) + 30 * np.exp(-(((away - radius - 1.5) / 1.6) ** 2))
    image = blur(image.astype(np.float32), 0.9)
    return image + noise * 10 * blur(rng.standard_normal(image.shape, dtype=np.float32), 0.5) / 0.55
