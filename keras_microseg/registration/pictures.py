"""Pictures that show whether a map lies on its micrograph."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from keras_microseg.checks import UserError
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.registration.alignment import Registration


def checkerboard(grey: np.ndarray, classes_rgb: np.ndarray, *, square: int = 64) -> np.ndarray:
    """Micrograph and painted map in alternate squares; outlines go on across them when the map lies right.

    Args:
        grey: (H, W) micrograph on the grid of the map (`Transform.resample_sem`).
        classes_rgb: (H, W, 3) uint8 painted map.
        square: edge of a square, px.

    Returns:
        (H, W, 3) uint8.
    """
    base = _as_rgb(grey, classes_rgb)
    rows, columns = (np.arange(n) // square for n in grey.shape)
    return np.where(((rows[:, np.newaxis] + columns) % 2 == 0)[..., np.newaxis], base, classes_rgb)


def edge_overlay(grey: np.ndarray, classes: np.ndarray, *, colour: tuple[int, int, int] = (255, 0, 0)) -> np.ndarray:
    """The borders between classes drawn over the micrograph, (H, W, 3) uint8; both (H, W) on one grid."""
    out = _as_rgb(grey, classes).copy()
    edges = np.zeros(classes.shape, bool)
    edges[:-1] |= classes[1:] != classes[:-1]
    edges[:, :-1] |= classes[:, 1:] != classes[:, :-1]
    out[edges] = colour
    return out


def residual_chart(registration: Registration) -> Figure:
    """Shift that every window still asks for, as arrows (lengthened), and how the lengths spread."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    arrows, spread = figure.subplots(1, 2)
    used, moves, points = registration.used, registration.residuals, registration.points
    # a typical arrow is a thirtieth of the map long, whatever the residuals are
    typical = float(np.median(np.hypot(*moves[used].T))) if used.any() else 1.0
    reach = np.ptp(points, axis=0).max() / 30 / max(typical, 1e-3) if len(points) else 1.0
    arrows.quiver(
        points[used, 1], points[used, 0], moves[used, 1] * reach, moves[used, 0] * reach,
        angles="xy", scale_units="xy", scale=1, width=0.003,
    )  # fmt: skip
    arrows.plot(points[~used, 1], points[~used, 0], "x", color="tab:red", ms=3, label="left out")
    arrows.invert_yaxis()
    arrows.set(
        aspect="equal", title=f"residuals, lengthened {reach:.0f} times", xlabel="x / map px", ylabel="y / map px"
    )
    spread.hist(np.hypot(*moves[used].T), bins=30, range=(0, 2), alpha=0.6, label="windows")
    spread.hist(registration.held_out, bins=30, range=(0, 2), histtype="step", label="held out")
    spread.set(xlabel="error / map px", ylabel="windows")
    spread.legend()
    return figure


def _as_rgb(grey: np.ndarray, other: np.ndarray) -> np.ndarray:
    if grey.shape != other.shape[:2]:
        raise UserError(f"Image and map must have one shape. Received: {grey.shape} and {other.shape[:2]}")
    return np.repeat((stretch(grey, percentile_limits(grey)) * 255).astype(np.uint8)[..., np.newaxis], 3, axis=2)
