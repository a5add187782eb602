"""A hyperparameter search as tables, figures and a page."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from keras_microseg import io
from keras_microseg.report.figures import ACCENT, INK, SECOND, figure_png, style_axes
from keras_microseg.report.page import Chart, Section, Table, write_page

_OWN = ("trial", "state", "score", "epochs", "seconds")


def search_figure(table: pd.DataFrame, direction: str = "maximize") -> Figure:
    """Scores of all trials in order, and the best so far."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for state, marker, color in (("complete", "o", ACCENT), ("pruned", "x", INK)):
        rows = table[(table["state"] == state) & np.isfinite(table["score"])]
        axes.plot(rows["trial"], rows["score"], marker, color=color, markersize=4, label=state)
    complete = table[table["state"] == "complete"]
    best = complete["score"].cummax() if direction == "maximize" else complete["score"].cummin()
    axes.step(complete["trial"], best, where="post", color=SECOND, linewidth=1.2, label="best so far")
    axes.set_xlabel("Trial")
    axes.set_ylabel("Score")
    axes.legend(frameon=False, fontsize=8)
    style_axes(axes)
    return figure


def curves_figure(curves: Mapping[int, Sequence[tuple[int, float]]], best: int | None = None) -> Figure:
    """Score of every trial over its epochs; the best one stands out."""
    figure = Figure(figsize=(6.4, 3.2), layout="constrained")
    axes = figure.subplots()
    for number, points in curves.items():
        if points:
            is_best = number == best
            color, width = (SECOND, 1.8) if is_best else (INK, 0.6)
            axes.plot(*zip(*points, strict=True), color=color, linewidth=width, alpha=1.0 if is_best else 0.45)
    axes.set_xlabel("Epoch")
    axes.set_ylabel("Score")
    style_axes(axes)
    return figure


def settings_figure(table: pd.DataFrame) -> Figure:
    """Score against every setting that was varied."""
    names = varied(table)
    columns = min(3, max(1, len(names)))
    rows = -(-max(1, len(names)) // columns)
    figure = Figure(figsize=(2.9 * columns, 2.5 * rows), layout="constrained")
    panels = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    done = table[table["state"].isin(("complete", "pruned")) & np.isfinite(table["score"])]
    for axes, name in zip(panels, names, strict=False):
        values = done[name]
        is_number = all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in values)
        places = values.astype(float) if is_number else values.map(str)
        complete = (done["state"] == "complete").to_numpy()
        for chosen, color in ((complete, ACCENT), (~complete, INK)):
            axes.plot(places[chosen], done["score"][chosen], "o", color=color, markersize=3.5, alpha=0.8)
        axes.set_xlabel(name)
        wide = is_number and len(places) and places.min() > 0 and places.max() / places.min() > 20
        style_axes(axes, log=bool(wide))
    for axes in panels[len(names) :]:
        axes.set_visible(False)
    return figure


def importance(table: pd.DataFrame) -> pd.Series:
    """How much the ranks of the score depend on each setting: squared Spearman correlation of complete trials.

    Choices count by the share of the variance of ranks between them. It sees single settings, no interplay.
    """
    done = table[table["state"] == "complete"]
    found = {}
    for name in varied(table):
        ranks = stats.rankdata(done["score"])
        total = float(np.var(ranks))
        if len(done) < 3 or total == 0:
            found[name] = np.nan
            continue
        values = done[name]
        if all(isinstance(v, (int, float, np.number)) and not isinstance(v, bool) for v in values):
            place = stats.rankdata(values)
            found[name] = float(np.corrcoef(place, ranks)[0, 1] ** 2) if np.var(place) > 0 else 0.0
        else:
            groups = pd.Series(ranks).groupby(values.map(str).to_numpy())
            found[name] = float((groups.count() * (groups.mean() - ranks.mean()) ** 2).sum() / (len(ranks) * total))
    return pd.Series(found, name="importance", dtype=float).sort_values(ascending=False)


def varied(table: pd.DataFrame) -> list[str]:
    """Names of the settings in a table of trials."""
    return [name for name in table.columns if name not in _OWN]


def write_search(out: str | os.PathLike, result: Any, *, facts: Mapping[str, Any], title: str = "Search") -> list[Path]:
    """Write `trials.csv`, `search.html` and the figures as PNG.

    Args:
        out: folder.
        result: `training.search.SearchResult`, or anything with its attributes.
        facts: what the table and the page should say about the run.
        title: of the page.
    """
    out = Path(out)
    table = result.table
    sign = 1 if result.direction == "maximize" else -1
    complete = table[table["state"] == "complete"]
    best = int(complete.loc[(sign * complete["score"]).idxmax(), "trial"])
    figures = {
        "search_history": (
            search_figure(table, result.direction),
            "Score of every trial; the line is the best so far.",
        ),
        "search_curves": (curves_figure(result.curves, best), f"Score over epochs; trial {best} stands out."),
        "search_settings": (settings_figure(table), "Score against each setting (dark: pruned trials, last score)."),
    }
    paths = [out / "trials.csv", out / "search.html"]
    io.write_table(paths[0], table.map(lambda v: str(v) if isinstance(v, (list, dict)) else v), facts=dict(facts))
    states = table["state"].value_counts()
    ranked = table.sort_values("score", ascending=sign < 0).head(20)
    sections = [
        Section("Best settings", [Table(dict(result.best), digits=6)]),
        Section("Trials", [Chart(figure, caption) for figure, caption in figures.values()]),
        Section("Which settings matter", [Table(importance(table).to_dict(), "Share of the variance of ranks")]),
        Section("The best twenty", [Table(ranked.map(lambda v: str(v) if isinstance(v, (list, dict)) else v))]),
    ]
    cards = {"best score": result.score, "trials": len(table), "pruned": int(states.get("pruned", 0))}
    write_page(paths[1], title, sections, cards=cards, subtitle=str(facts.get("package", "")))
    for name, (figure, _) in figures.items():
        path = out / f"{name}.png"
        with io.atomic_path(path) as temporary:
            Path(temporary).write_bytes(figure_png(figure, 150))
        paths.append(path)
    return paths
