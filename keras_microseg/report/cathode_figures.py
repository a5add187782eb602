"""Figures of cathode particles: detachment against size, group and distance, contacts, cracks with depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from skimage.segmentation import find_boundaries

from keras_microseg.image import Image
from keras_microseg.measurement.group_tests import group_means, order_groups
from keras_microseg.report import overlays
from keras_microseg.report.figures import ACCENT, INK, SECOND, style_axes
from keras_microseg.report.overlays import unit_text

COLORS = (ACCENT, SECOND, "#4a9d5b", "#9057b5", "#c0444f", "#7a6a4f", "#2aa5a0", "#b0892b")
PHASE_COLORS = {"void": (22, 26, 34), "cbd": (92, 112, 150), "particle": (205, 205, 205), "crack": (240, 190, 50)}


def value_against_figure(table: pd.DataFrame, value: str, against: str, *, by: str | None = None) -> Figure:
    """Scatter of one column against another with error bars where known, and medians of equally full classes.

    Args:
        table: particles, units in `attrs["units"]`.
        value: column of the y axis.
        against: column of the x axis; logarithmic for volumes that differ by more than a factor of 5.
        by: column whose groups get colours.
    """
    figure, axes = _figure()
    groups = [(None, table)] if by is None else [(n, table[table[by] == n]) for n in order_groups(table[by].unique())]
    for number, (name, part) in enumerate(groups):
        axes.plot(part[against], part[value], "o", markersize=4, alpha=0.65, color=COLORS[number % len(COLORS)],
                  markeredgewidth=0, label=None if name is None else str(name))  # fmt: skip
    pairs = table[[against, value]].dropna().sort_values(against)
    if len(pairs) >= 12:
        parts = np.array_split(pairs.to_numpy(), min(8, len(pairs) // 6))
        medians = np.array([np.median(part, axis=0) for part in parts])
        axes.plot(*medians.T, color=INK, linewidth=1.6, marker="s", markersize=4, label="median of classes")
    is_volume = against in ("volume", "filled_volume") and len(pairs) and pairs[against].gt(0).all()
    axes.set_xlabel(_name(table, against))
    axes.set_ylabel(_name(table, value))
    _finish(figure, axes, log=bool(is_volume and pairs[against].max() > 5 * pairs[against].min()))
    return figure


def group_figure(table: pd.DataFrame, value: str, by: str) -> Figure:
    """All values of every group, its mean and the 95 % interval of the mean."""
    figure, axes = _figure()
    means = group_means(table, value, by)
    rng = np.random.default_rng(0)
    for place, row in enumerate(means.itertuples(index=False)):
        values = table.loc[table[by] == row[0], value].dropna().to_numpy()
        axes.plot(place + rng.uniform(-0.16, 0.16, len(values)), values, "o", markersize=3.5, alpha=0.45,
                  color=COLORS[place % len(COLORS)], markeredgewidth=0)  # fmt: skip
        if len(values):
            axes.plot([place + 0.28] * 2, [row.low, row.high], color=INK, linewidth=2)
            axes.plot(place + 0.28, row.mean, "s", color=INK, markersize=5)
    axes.set_xticks(range(len(means)), [f"{name}\nN = {count}" for name, count in zip(means[by], means["particles"],
                                                                                      strict=True)])  # fmt: skip
    axes.set_xlim(-0.5, len(means) - 0.3)
    axes.set_xlabel(by.replace("_", " "))
    axes.set_ylabel(_name(table, value))
    style_axes(axes)
    axes.grid(axis="x", visible=False)
    return figure


def sweep_figure(sweeps: dict[str, pd.DataFrame], unit: str, main: float | None = None) -> Figure:
    """Mean detachment with its 95 % interval, and quartiles, against the distance.

    Args:
        sweeps: name -> table of `group_tests.summarize_sweep`.
        unit: of the distances.
        main: main distance, drawn as a line.
    """
    figure, axes = _figure()
    for number, (name, table) in enumerate(sweeps.items()):
        color = COLORS[number % len(COLORS)]
        axes.fill_between(table["distance"], table["quartile_1"], table["quartile_3"], color=color, alpha=0.12, lw=0)
        axes.fill_between(table["distance"], table["low"], table["high"], color=color, alpha=0.35, lw=0)
        axes.plot(table["distance"], table["mean"], "o-", color=color, markersize=4, label=name)
    if main is not None:
        axes.axvline(main, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"Distance from the particle ({unit_text(unit)})")
    axes.set_ylabel("Degree of detachment")
    _finish(figure, axes)
    return figure


def degree_figure(table: pd.DataFrame) -> Figure:
    """How many particles touch how many others."""
    figure, axes = _figure()
    counts = np.bincount(table["coordination_number"].to_numpy(int)) if len(table) else np.zeros(1)
    axes.bar(np.arange(len(counts)), counts, color=ACCENT, alpha=0.8, width=0.85)
    axes.margins(y=0.14)  # room for the mean's number
    mean = float(table["coordination_number"].mean()) if len(table) else 0.0
    axes.axvline(mean, color=SECOND, linewidth=1.3, linestyle=(0, (4, 3)))
    axes.annotate(f" mean {mean:.2f}", (mean, 0.95), xycoords=("data", "axes fraction"), color=INK, fontsize=9)
    axes.set_xlabel("Particles in contact with a particle")
    axes.set_ylabel("Particles")
    style_axes(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def crack_profile_figure(profile: pd.DataFrame, groups: pd.Series | None = None) -> Figure:
    """Share of cracks at depths from the outline (0) to the middle (1), all particles of a group together.

    Args:
        profile: table `crack_profile` of `measure_cathode`.
        groups: group of every label (index = label), or None.
    """
    figure, axes = _figure()
    named = profile.assign(group="all" if groups is None else profile["label"].map(groups))
    for number, name in enumerate(order_groups(named["group"].dropna().unique())):
        part = named[named["group"] == name].groupby(["depth_from", "depth_to"])[["cracks", "filled"]].sum()
        share = part["cracks"] / part["filled"].where(part["filled"] > 0)
        edges = [*part.index.get_level_values(0), part.index.get_level_values(1)[-1]]
        axes.stairs(share, edges, color=COLORS[number % len(COLORS)], linewidth=2, label=str(name))
    axes.set_xlim(0, 1)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("Depth in the particle (0 = outline, 1 = middle)")
    axes.set_ylabel("Cracks / volume")
    _finish(figure, axes)
    return figure


def detachment_map(labels: Image, phases: np.ndarray | None, values: pd.Series, place: int, roles: dict) -> np.ndarray:
    """One slice with every particle in the colour of its value: blue 0, white 0.5, red 1; edge particles grey.

    Args:
        labels: label volume.
        phases: the same slice of the phase volume, or None.
        values: value 0..1 of every label (index = label); labels that are missing stay grey.
        place: index of the slice.
        roles: phase name -> values.

    Returns:
        (Y, X, 3) uint8.
    """
    plane = np.asarray(labels.data[place]).astype(np.int64)
    picture = np.full((*plane.shape, 3), 40, np.uint8)
    for name, numbers in roles.items():
        if phases is not None:
            picture[np.isin(phases, numbers)] = PHASE_COLORS[name]
    ids, index = np.unique(plane, return_inverse=True)
    level = np.array([values.get(label, np.nan) for label in ids.tolist()], float)
    low, middle, high = (np.array(color, float) for color in ((50, 100, 190), (245, 245, 240), (190, 40, 40)))
    share = np.clip(level, 0, 1)[:, None]
    colors = np.where(share < 0.5, low + (middle - low) * 2 * share, middle + (high - middle) * (2 * share - 1))
    colors[np.isnan(level)] = 165
    inside = plane > 0
    if phases is not None:
        inside &= ~np.isin(phases, [*roles.get("crack", ()), *roles.get("void", ())])
    picture[inside] = colors[index.reshape(plane.shape)[inside]].astype(np.uint8)
    zoom = max(1, 640 // max(plane.shape))
    picture, plane = (array.repeat(zoom, axis=0).repeat(zoom, axis=1) for array in (picture, plane))
    picture[find_boundaries(plane, mode="inner")] = (20, 20, 20)
    size = labels.pixel_size
    if size is None:
        return picture
    return overlays.draw_scale_bar(picture, type(size)(size.size[1:], size.unit).scaled(zoom))


def _figure() -> tuple[Figure, object]:
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    return figure, figure.subplots()


def _finish(figure: Figure, axes: object, *, log: bool = False) -> None:
    style_axes(axes, log=log)
    if axes.get_legend_handles_labels()[0]:
        legend = axes.legend(frameon=False, fontsize=9)
        for text in legend.get_texts():
            text.set_color(INK)


def _name(table: pd.DataFrame, column: str) -> str:
    unit = table.attrs.get("units", {}).get(column, "")
    text = column.replace("_", " ").capitalize()
    return f"{text} ({unit.replace('um', 'µm')})" if unit else text
