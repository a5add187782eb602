"""Figures of mineral maps: fractions, representative area, contacts, grain sizes, functions of distance, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg.image import PixelSize
from keras_microseg.report.figures import ACCENT, INK, SECOND, style_axes
from keras_microseg.report.overlays import draw_scale_bar, unit_text

Colour = tuple[int, int, int]


def map_picture(
    classes: np.ndarray, colours: Sequence[Colour], pixel_size: PixelSize | None, *, ground: Colour = (35, 38, 44)
) -> np.ndarray:
    """(H, W, 3) uint8 picture of class numbers with a scale bar; numbers that are no class show the ground."""
    table = np.array([*colours, ground], np.uint8)
    picture = table[np.where(classes < len(colours), classes, len(colours))]
    return draw_scale_bar(picture, pixel_size)


def fractions_figure(
    table: pd.DataFrame, colours: Sequence[Colour], references: Mapping[str, Mapping[str, float]] | None = None
) -> Figure:
    """Bars of the shares with their intervals; a tick where the raw count lies, marks of other methods."""
    figure = Figure(figsize=(7.4, 0.55 * len(table) + 1.1), layout="constrained")
    ax = figure.subplots()
    places = np.arange(len(table))[::-1]
    share = table["share"].to_numpy() * 100
    ax.barh(places, share, 0.62, color=[_part(c) for c in colours], edgecolor=INK, linewidth=0.6)
    errors = np.abs(np.stack([share - table["low"] * 100, table["high"] * 100 - share]))
    ax.errorbar(share, places, xerr=errors, fmt="none", ecolor=INK, capsize=4, linewidth=1.4)
    if not np.allclose(table["raw"], table["share"]):
        ax.plot(table["raw"] * 100, places, "|", color=ACCENT, markersize=18, markeredgewidth=2, label="counted")
    for marker, (method, values) in zip("oDs^v", (references or {}).items(), strict=False):
        known = [(values[name] * 100, y) for name, y in zip(table["class"], places, strict=True) if name in values]
        if known:
            ax.plot(*zip(*known, strict=True), marker, color=SECOND, markersize=6, label=method)
    ax.set_yticks(places, table["class"])
    ax.set_xlabel("share of the sample, %")
    ax.set_xlim(0, None)
    style_axes(ax)
    ax.set_yticks(places, table["class"])
    ax.grid(axis="y", visible=False)
    _legend(ax)
    return figure


def representative_figure(area: pd.DataFrame, grown: pd.DataFrame, colours: Mapping[str, Colour], unit: str) -> Figure:
    """Left: how much a square of an edge is off; right: the shares inside a square that grows from the middle."""
    figure = Figure(figsize=(7.4, 3.2), layout="constrained")
    off, shares = figure.subplots(1, 2)
    for name, part in area.groupby("class", sort=False):
        off.plot(part["edge"], part["std"] * 100, "o-", color=_line(colours[name]), markersize=3, label=name)
    off.set(xlabel=f"edge of the square, {unit_text(unit)}", ylabel="spread of the share, points")
    off.set_xscale("log")
    off.set_yscale("log")
    for name in colours:
        shares.plot(np.sqrt(grown["area"]), grown[name] * 100, color=_line(colours[name]), linewidth=1.4, label=name)
    shares.set(xlabel=f"edge of the square analysed, {unit_text(unit)}", ylabel="share, %")
    style_axes(shares)
    style_axes(off)
    _plain_log(off)
    _legend(shares, beside=True)
    return figure


def association_figure(contacts: pd.DataFrame) -> Figure:
    """Of the boundary of the row's mineral, the share that it has with the column's, percent."""
    names = list(contacts.columns)
    values = contacts.to_numpy(float)
    shares = 100 * values / np.maximum(values.sum(axis=1, keepdims=True), 1e-12)
    return _heat(shares, names, names, "shares its boundary with", "", "{:.0f}")


def confusion_figure(table: np.ndarray, names: Sequence[str]) -> Figure:
    """Of the pixels of the row's true class, the share predicted as the column's, percent."""
    table = np.asarray(table, float)
    shares = 100 * table / np.maximum(table.sum(axis=1, keepdims=True), 1e-12)
    return _heat(shares, names, names, "predicted as", "true", "{:.0f}")


def grain_size_figure(grains: pd.DataFrame, colours: Mapping[str, Colour], unit: str) -> Figure:
    """Area of grains finer than a diameter, whole grains weighted for the edges of the windows, per mineral."""
    figure = Figure(figsize=(7.4, 3.4), layout="constrained")
    ax = figure.subplots()
    for name, part in grains.groupby("class", sort=False):
        whole = part[part["edge_weight"] > 0].sort_values("equivalent_diameter")
        if len(whole) < 5:
            continue
        weights = (whole["edge_weight"] * whole["area"]).to_numpy()
        label = f"{name} ({len(whole)})"
        undersize = np.cumsum(weights) / weights.sum() * 100
        ax.plot(whole["equivalent_diameter"], undersize, color=_line(colours[name]), linewidth=1.5, label=label)
    ax.set(xlabel=f"equivalent circular diameter, {unit_text(unit)}", ylabel="area of finer grains, %", ylim=(0, 100))
    ax.set_xscale("log")
    style_axes(ax)
    _plain_log(ax, only_x=True)
    _legend(ax)
    return figure


def distance_figure(two_point: pd.DataFrame, path: pd.DataFrame, colours: Mapping[str, Colour], unit: str) -> Figure:
    """Left: two-point functions less their end, over their start; right: lineal path."""
    figure = Figure(figsize=(7.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in colours.items():
        values = two_point[name].to_numpy()
        spread = values[0] * (1 - values[0])
        if spread > 0:
            left.plot(two_point["distance"], (values - values[0] ** 2) / spread, color=_line(colour), label=name)
        positive = path[name] > 0
        right.plot(path["distance"][positive], path[name][positive], color=_line(colour), label=name)
    left.set(xlabel=f"distance, {unit_text(unit)}", ylabel="autocorrelation")
    right.set(xlabel=f"length, {unit_text(unit)}", ylabel="probability of a line inside")
    right.set_yscale("log")
    right.set_ylim(max(1e-4, right.get_ylim()[0]), 1)
    style_axes(left)
    style_axes(right)
    _plain_log(right, only_y=True)
    _legend(left, beside=True)
    return figure


def chord_figure(chords: pd.DataFrame, pores: pd.DataFrame, colours: Mapping[str, Colour], unit: str) -> Figure:
    """Left: densities of chord lengths; right: sizes of the pores by area."""
    figure = Figure(figsize=(7.4, 3.1), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, colour in colours.items():
        shown = chords[name] > 0
        left.plot(chords["length"][shown], chords[name][shown], color=_line(colour), label=name)
    left.set(xlabel=f"chord length, {unit_text(unit)}", ylabel=f"density, 1/{unit_text(unit)}")
    left.set_yscale("log")
    if len(pores):
        ratio = np.sqrt(pores["diameter"].iloc[1] / pores["diameter"].iloc[0]) if len(pores) > 1 else 1.1
        edges = np.append(pores["diameter"] / ratio, pores["diameter"].iloc[-1] * ratio)
        right.stairs(pores["share"] * 100, edges, fill=True, color=ACCENT, alpha=0.75)
        right.set_xscale("log")
    right.set(xlabel=f"local width of pores, {unit_text(unit)}", ylabel="pore area, %")
    style_axes(right)
    style_axes(left)
    _plain_log(left, only_y=True)
    if len(pores):
        _plain_log(right, only_x=True)
    _legend(left)
    return figure


def _heat(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], across: str, down: str, form: str) -> Figure:
    from matplotlib.colors import LinearSegmentedColormap

    edge = 0.62 * len(columns) + 1.8
    figure = Figure(figsize=(min(edge + 1.2, 7.4), 0.52 * len(rows) + 1.5), layout="constrained")
    ax = figure.subplots()
    shades = LinearSegmentedColormap.from_list("shades", ["#eef3f8", ACCENT])
    ax.imshow(values, cmap=shades, vmin=0, vmax=100, aspect="auto")
    for i, j in np.ndindex(values.shape):
        text = form.format(values[i, j]) if values[i, j] >= 0.5 else "\u00b7"
        ax.text(j, i, text, ha="center", va="center", fontsize=9, color="white" if values[i, j] > 60 else "#1c2733")
    ax.set_xticks(range(len(columns)), columns, rotation=30, ha="left", color=INK, fontsize=9)
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_yticks(range(len(rows)), rows, color=INK, fontsize=9)
    ax.tick_params(length=0, colors=INK)
    ax.set_xlabel(across, color=INK)
    ax.set_ylabel(down, color=INK)
    ax.patch.set_visible(False)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return figure


def _plain_log(ax: object, *, only_x: bool = False, only_y: bool = False) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in ([] if only_y else [ax.xaxis]) + ([] if only_x else [ax.yaxis]):
        low, high = axis.get_view_interval()
        subs = (1, 2, 5) if high / max(low, 1e-12) < 300 else (1,)
        axis.set_major_locator(LogLocator(subs=subs, numticks=12))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _legend(ax: object, *, beside: bool = False) -> None:
    """Names of the lines of an axes; `beside`: at the right of the whole figure, for both of its axes."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    options = {"frameon": False, "fontsize": 8, "labelcolor": INK}
    if beside:
        ax.figure.legend(handles, labels, loc="outside right center", **options)
    else:
        ax.legend(**options)


def _part(colour: Colour) -> tuple[float, float, float]:
    return tuple(v / 255 for v in colour)


def _line(colour: Colour) -> tuple[float, float, float]:
    """The colour, darkened until it can be seen as a line on white, lightened until it can on black."""
    import colorsys

    hue, lightness, saturation = colorsys.rgb_to_hls(*_part(colour))
    return colorsys.hls_to_rgb(hue, min(max(lightness, 0.3), 0.55), saturation)
