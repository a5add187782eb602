"""Figures: size distributions as histogram and cumulative curve, for the screen (SVG) and for print (PNG, SVG).

Matplotlib through its object interface only: no window, no global state, safe in threads and in notebooks.
"""

from __future__ import annotations

import io as streams
import math
import re

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from keras_microseg.checks import UserError
from keras_microseg.measurement import SizeDistribution
from keras_microseg.report.overlays import unit_text

INK, ACCENT, SECOND = "#1a2b3c", "#3b82c4", "#e07b39"
QUANTILES = {"D10": 10, "D50": 50, "D90": 90}
_LOG_ABOVE = 8.0


def size_distribution_figure(
    distribution: SizeDistribution, *, quantity: str = "Equivalent circular diameter"
) -> Figure:
    """Histogram above, cumulative undersize curve below, with D10, D50 and D90 and their intervals.

    Classes have equal widths, or equal ratios (logarithmic axis) when the 1 to 99 percent range spans more than a
    factor of eight.

    Args:
        distribution: result of `keras_microseg.size_distribution`.
        quantity: name of the size for the axis.

    Returns:
        A `matplotlib.figure.Figure` (7.4 by 4.9 inch) with no canvas of a window system.

    Raises:
        UserError: the distribution holds no particle.
    """
    values, weight = distribution.values, distribution.weight
    if not len(values):
        raise UserError("A size distribution needs at least one particle. Received none.")
    figure = Figure(figsize=(7.4, 4.9), layout="constrained")
    density, cumulative = figure.subplots(2, 1, sharex=True, height_ratios=(1.15, 1))
    log = _is_wide(values)
    bins = max(len(distribution.histogram(log=log).fraction), min(24, math.ceil(math.sqrt(len(values)))))
    histogram = distribution.histogram(bins, log=log)
    density.stairs(histogram.fraction * 100, histogram.edges, fill=True, color=ACCENT, alpha=0.75)
    density.stairs(histogram.fraction * 100, histogram.edges, color=ACCENT, linewidth=1)
    density.set_ylabel(f"% of {weight}\nper class")
    count = f"{len(values):,}".replace(",", "\u2009")
    density.set_title(f"N = {count} particles, weighted by {weight}", loc="left", color=INK, fontsize=10)

    cumulative.plot(*_thin(values, np.cumsum(distribution.weights) * 100 - distribution.weights * 50), color=ACCENT)
    cumulative.set_ylabel(f"Cumulative\n% of {weight}")
    cumulative.set_ylim(0, 108)
    cumulative.set_yticks((0, 10, 50, 90, 100))
    edges = histogram.edges
    margin = (edges[-1] / edges[0]) ** 0.02 if log else (edges[-1] - edges[0]) * 0.02
    limits = (edges[0] / margin, edges[-1] * margin) if log else (edges[0] - margin, edges[-1] + margin)
    for name, height in QUANTILES.items():
        value, interval = getattr(distribution, name), distribution.intervals[name]
        if not np.isfinite(value):
            continue
        density.axvline(value, color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
        cumulative.axvline(value, color=SECOND, linewidth=1, linestyle=(0, (4, 3)), ymin=height / 108)
        if np.isfinite(interval).all():
            cumulative.plot(interval, (height, height), color=SECOND, linewidth=5, alpha=0.45, solid_capstyle="butt")
        cumulative.plot(value, height, "o", color=SECOND, markersize=5)
        low, high, at = np.log([*limits, value]) if log else (*limits, value)
        late = (at - low) / (high - low) > 0.8
        cumulative.annotate(
            f"{name} = {value:.3g}",
            (value, height),
            xytext=(-9 if late else 9, 5 if late else -4),
            textcoords="offset points",
            ha="right" if late else "left",
            va="bottom" if late else "top",
            color=INK,
            fontsize=9,
        )
    cumulative.set_xlabel(f"{quantity} in {unit_text(distribution.unit)}")
    style_axes(density, cumulative, log=log)
    cumulative.set_xlim(limits)
    return figure


def value_histogram_figure(
    values: np.ndarray, *, quantity: str, unit: str = "", bin_width: float | None = None
) -> Figure:
    """Plain histogram of counts with N, mean, median and standard deviation written into it.

    Args:
        values: one value per particle; those that are not finite are left out.
        quantity: name for the axis, such as "Minimum Feret diameter".
        unit: of the values and the bin width.
        bin_width: None = by the rule of Freedman and Diaconis; one or two pixels are usual for Feret diameters.

    Raises:
        UserError: no finite value, or a bin width that is not positive.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        raise UserError("A histogram needs at least one value. Received none.")
    if bin_width is None:
        edges = np.histogram_bin_edges(values, "fd" if np.ptp(values) > 0 else 1)
    elif bin_width > 0:
        first, last = math.floor(values.min() / bin_width), math.floor(values.max() / bin_width) + 1
        edges = np.arange(first, last + 1) * bin_width
    else:
        raise UserError(f"`bin_width` must be a number > 0. Received: bin_width={bin_width!r}")
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    ax = figure.subplots()
    counts, edges = np.histogram(values, edges)
    ax.stairs(counts, edges, fill=True, color=ACCENT, alpha=0.75)
    ax.axvline(np.median(values), color=SECOND, linewidth=1, linestyle=(0, (4, 3)))
    unit = unit_text(unit)
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    numbers = (("mean", values.mean()), ("median", np.median(values)), ("sd", spread))
    lines = [f"N = {len(values)}", *(f"{name} = {value:.4g} {unit}".rstrip() for name, value in numbers)]
    ax.annotate("\n".join(lines), (0.985, 0.96), xycoords="axes fraction", ha="right", va="top", color=INK, fontsize=9)
    ax.set_xlabel(f"{quantity} in {unit}" if unit else quantity)
    ax.set_ylabel("Particles")
    style_axes(ax, log=False)
    return figure


def figure_png(figure: Figure, dpi: int = 300) -> bytes:
    """The figure as PNG on white."""
    stream = streams.BytesIO()
    canvas = FigureCanvasAgg(figure)
    canvas.print_figure(stream, format="png", dpi=dpi, facecolor="white")
    return stream.getvalue()


def figure_svg(figure: Figure, *, title: str, name: str, adaptive: bool = False) -> str:
    """The figure as an SVG element without XML header.

    Args:
        figure: what to draw.
        title: read out by screen readers.
        name: distinct in the page; makes the element's ids distinct and the text the same on every run.
        adaptive: lines and text in the colour of the surrounding text (for a page with a dark mode), no ground.
    """
    stream = streams.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        canvas = FigureCanvasSVG(figure)
        facecolor = "none" if adaptive else "white"
        canvas.print_figure(stream, format="svg", facecolor=facecolor, metadata={"Date": None, "Creator": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'id="(?!p[0-9a-f]{10}|m[0-9a-f]{10})([^"]+)"', lambda match: f'id="{name}-{match[1]}"', text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px; font-family: inherit", text)
    if adaptive:
        text = text.replace(INK, "currentColor")
        text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
        text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    else:
        text = text.replace("font-family: inherit", "font-family: 'DejaVu Sans', Arial, sans-serif")
    escaped = title.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return text.replace("<svg", f'<svg role="img" aria-label="{escaped}"', 1)


def _is_wide(values: np.ndarray) -> bool:
    low, high = np.percentile(values, (1, 99))
    return bool(low > 0 and high / low > _LOG_ABOVE)


def _thin(xs: np.ndarray, ys: np.ndarray, limit: int = 2000) -> tuple[np.ndarray, np.ndarray]:
    """At most `limit` points of a rising curve, evenly spread in height."""
    if len(xs) <= limit:
        return xs, ys
    keep = np.unique(np.searchsorted(ys, np.linspace(ys[0], ys[-1], limit)).clip(0, len(ys) - 1))
    return xs[keep], ys[keep]


def style_axes(*axes: mpl.axes.Axes, log: bool = False) -> None:
    """The look of our figures: few lines, colours of the page; `log` for the last axes' x."""
    for ax in axes:
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            ax.spines[side].set_color(INK)
        ax.tick_params(colors=INK, labelsize=9)
        ax.grid(color=INK, alpha=0.14, linewidth=0.6)
        ax.set_axisbelow(True)
        ax.patch.set_visible(False)
        for text in (ax.xaxis.label, ax.yaxis.label):
            text.set_color(INK)
            text.set_fontsize(10)
    axes[0].yaxis.set_major_locator(MaxNLocator(4, min_n_ticks=3))
    if log:
        ax = axes[-1]
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5), numticks=20))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_minor_formatter(NullFormatter())
