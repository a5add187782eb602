"""Report on generated outlines: do they look like the real ones, and are they more than copies?"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg.measurement.outlines import OutlineComparison, measure_outlines
from keras_microseg.report.figures import ACCENT, SECOND
from keras_microseg.report.html import number
from keras_microseg.report.page import Chart, Picture, Section, Table, write_page
from keras_microseg.simulation.outlines import OutlineSet, count_problems

_TITLES = {
    "equivalent_diameter": "Equivalent diameter, px",
    "aspect_ratio": "Aspect ratio",
    "solidity": "Solidity",
    "circularity": "Circularity",
}


def write_outline_report(
    path: str | os.PathLike,
    real: OutlineSet,
    generated: OutlineSet,
    comparison: OutlineComparison,
    *,
    history: Sequence[Mapping[str, float]] = (),
    warnings: Sequence[str] = (),
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Write the comparison of real and generated outlines as a page.

    Args:
        path: HTML file.
        real, generated: the outlines.
        comparison: of the two.
        history: rows of the training's log.
        warnings: shown at the top.
        settings: shown at the end.
    """
    drawn = len(generated) + len(generated.problems)
    size = max(real.size, generated.size)
    order = np.argsort(-comparison.nearest)
    closest = generated.take(order[:12])
    sections = [
        Section(
            "Pictures",
            [
                f"{len(generated)} of {drawn} generated pictures hold one whole particle; left out: "
                f"{count_problems(generated.problems)}.",
                Picture(outline_sheet(real.masks, size=size, count=48), "Real outlines"),
                Picture(outline_sheet(generated.masks, size=size, count=96), "Generated outlines"),
                Picture(
                    outline_sheet(closest.masks, size=size, count=12),
                    "Generated outlines that come closest to a real one",
                ),
            ],
        ),
        Section(
            "Shapes",
            [
                "Distributions of both sets. A generated set cannot be told from the real one where the p-value of the "
                "Kolmogorov-Smirnov test is not small; with few real outlines small differences stay unseen.",
                "fourier_n is the amplitude of n waves around the outline over its mean radius: 2 = elongated, "
                "3 = triangular, and so on.",
                Chart(distribution_figure(real, generated), "Cumulative distributions"),
                Table(_table(comparison), "Wasserstein distances are in standard deviations of the real outlines."),
            ],
        ),
        Section(
            "Copies and variety",
            [
                "For every generated outline the most similar real one (IoU, mirror images and turns allowed), beside "
                "the most similar other real outline of each real one. If generated outlines were nearer to real ones "
                "than those are to each other, the network would have learned them by heart.",
                Chart(neighbour_figure(comparison), "Nearest neighbours"),
            ],
        ),
    ]
    if any("diversity" in row for row in history):
        sections.append(Section("Training", [Chart(training_figure(history), "Training")]))
    if settings:
        sections.append(Section("Settings", [Table(settings)]))
    facts = comparison.facts()
    write_page(
        path,
        "Generated outlines",
        sections,
        subtitle=f"{len(real)} real outlines, {drawn} generated",
        cards={
            f"distance of all shape quantities; {number(facts['reference'], 3)} between halves of the real outlines":
                number(facts["distance"], 3),
            "variety over that of the real outlines": number(facts["diversity"], 2),
            "copies of real outlines": f"{100 * facts['copies']:.1f} %",
            "of the generated pictures are usable": f"{100 * len(generated) / drawn:.0f} %",
        },
        warnings=warnings,
    )  # fmt: skip


def outline_sheet(masks: np.ndarray, *, size: int, count: int, columns: int = 12) -> np.ndarray:
    """Up to `count` masks side by side, uint8."""
    masks = masks[:count]
    before = (size - masks.shape[1]) // 2
    after = size - masks.shape[1] - before
    tiles = np.pad(
        np.where(masks, 235, 25).astype(np.uint8), ((0, 0), (before, after), (before, after)), constant_values=25
    )
    tiles = np.pad(tiles, ((0, -len(masks) % columns), (0, 2), (0, 2)), constant_values=90)
    rows = tiles.reshape(-1, columns, size + 2, size + 2).transpose(0, 2, 1, 3)
    return rows.reshape(-1, columns * (size + 2))


def distribution_figure(real: OutlineSet, generated: OutlineSet) -> Figure:
    """Cumulative distributions of four quantities."""
    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    tables = measure_outlines(real), measure_outlines(generated)
    for ax, (name, title) in zip(figure.subplots(2, 2).ravel(), _TITLES.items(), strict=True):
        for table, color, label in zip(tables, (SECOND, ACCENT), ("real", "generated"), strict=True):
            values = np.sort(table[name].to_numpy())
            ax.step(values, (np.arange(len(values)) + 1) / len(values) * 100, color=color, label=label, where="post")
        ax.set_xlabel(title)
        ax.set_ylabel("% of outlines")
        ax.grid(alpha=0.15)
    figure.axes[0].legend(frameon=False)
    return figure


def neighbour_figure(comparison: OutlineComparison) -> Figure:
    """Histograms of the IoU with the nearest real outline."""
    figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    ax = figure.subplots()
    edges = np.linspace(0.4, 1, 31)
    for values, color, label in (
        (comparison.nearest, ACCENT, "generated"),
        (comparison.nearest_real, SECOND, "real, among themselves"),
    ):
        share = np.histogram(np.clip(values, 0.4, 1), edges)[0] / max(len(values), 1) * 100
        ax.stairs(share, edges, color=color, label=label, linewidth=1.6)
    ax.set_xlabel("IoU with the most similar real outline")
    ax.set_ylabel("% of outlines")
    ax.grid(alpha=0.15)
    ax.legend(frameon=False)
    return figure


def training_figure(history: Sequence[Mapping[str, float]]) -> Figure:
    """Wasserstein distance, variety and usable share over the epochs."""
    figure = Figure(figsize=(7.4, 2.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["epoch"] for row in history], [-row["wasserstein"] for row in history], color=ACCENT)
    left.set_ylabel("Wasserstein estimate")
    checked = [row for row in history if "diversity" in row]
    for name, color in (("diversity", ACCENT), ("usable", SECOND)):
        right.plot([row["epoch"] for row in checked], [row[name] for row in checked], color=color, label=name)
    right.set_ylim(0, None)
    right.legend(frameon=False)
    for ax in (left, right):
        ax.set_xlabel("Epoch")
        ax.grid(alpha=0.15)
    return figure


def _table(comparison: OutlineComparison) -> pd.DataFrame:
    table = comparison.table
    return pd.DataFrame(
        {
            "Quantity": table["quantity"],
            "real: median": table["real_median"],
            "5 %": table["real_5"],
            "95 %": table["real_95"],
            "generated: median": table["generated_median"],
            "5 % ": table["generated_5"],
            "95 % ": table["generated_95"],
            "KS": table["ks"],
            "p": table["p"],
            "Wasserstein": table["wasserstein"],
        }
    )
