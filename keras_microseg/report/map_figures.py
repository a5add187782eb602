"""Figures of class maps: truth, prediction and errors side by side; confusion matrix; fractions; a training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg.report.figures import style_axes

_WRONG, _UNKNOWN = (213, 94, 0), (127, 127, 127)


def map_panels(
    grey: np.ndarray, truth: np.ndarray, predicted: np.ndarray, colours: Sequence[Sequence[int]], *, gap: int = 8
) -> np.ndarray:
    """(H, 4 W + 3 gap, 3) uint8: image, truth, prediction, errors (orange on the dimmed image).

    Args:
        grey: (H, W) uint8.
        truth: (H, W) class numbers; others are shown grey.
        predicted: (H, W) class numbers.
        colours: (r, g, b) per class.
        gap: white pixels between the panels.
    """
    table = np.full((256, 3), _UNKNOWN, np.uint8)
    table[: len(colours)] = np.asarray(colours, np.uint8)
    picture = np.repeat(grey[..., np.newaxis], 3, axis=-1).astype(np.uint8)
    errors = (picture * 0.6).astype(np.uint8)
    wrong = (truth < len(colours)) & (truth != predicted)
    errors[wrong] = _WRONG
    between = np.full((len(grey), gap, 3), 255, np.uint8)
    panels = [picture, table[truth.astype(np.uint8)], table[predicted.astype(np.uint8)], errors]
    parts = [part for panel in panels for part in (panel, between)][:-1]
    return np.concatenate(parts, axis=1)


def fraction_figure(classes: pd.DataFrame) -> Figure:
    """True and predicted area fraction of each class, from `metrics.class_maps.score_maps`."""
    figure = Figure(figsize=(max(7.2, 0.8 * len(classes) + 1.4), 2.9), layout="constrained")
    axes = figure.subplots()
    x = np.arange(len(classes))
    axes.bar(x - 0.2, 100 * classes["true_fraction"], 0.38, label="truth", color="#7f7f7f")
    axes.bar(x + 0.2, 100 * classes["predicted_fraction"], 0.38, label="prediction", color="#0072b2")
    for at, row in zip(x, classes.to_dict("records"), strict=True):
        top = 100 * max(row["true_fraction"], row["predicted_fraction"])
        axes.text(at, top, f"{row['error_points']:+.2f}", ha="center", va="bottom", size=8)
    axes.set_xticks(x, list(classes["class"]), rotation=25, ha="right")
    axes.set_ylabel("area fraction (%)")
    axes.margins(y=0.12)
    axes.legend(frameon=False)
    style_axes(axes)
    return figure


def method_figure(scores: Mapping[str, pd.DataFrame]) -> Figure:
    """IoU of each class for several methods, with the intervals of the bootstrap."""
    first = next(iter(scores.values()))
    figure = Figure(figsize=(max(7.2, 0.42 * len(first) * len(scores) + 1.6), 3.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(scores)
    colours = ("#0072b2", "#7f7f7f", "#bdbdbd", "#e69f00", "#009e73")
    for number, (name, table) in enumerate(scores.items()):
        x = np.arange(len(table)) - 0.4 + width * (number + 0.5)
        value, low, high = (table[key].to_numpy() for key in ("iou", "iou_low", "iou_high"))
        error = np.nan_to_num(np.stack([value - low, high - value])).clip(0)
        axes.bar(x, value, 0.9 * width, yerr=error, label=name, color=colours[number % 5], ecolor="#333333", capsize=2)
    axes.set_xticks(range(len(first)), list(first["class"]), rotation=25, ha="right")
    axes.set_ylabel("IoU")
    axes.set_ylim(0, 1)
    axes.legend(frameon=False, fontsize=8, ncols=2, loc="upper center", bbox_to_anchor=(0.5, 1.3))
    style_axes(axes)
    return figure


def training_figure(log: pd.DataFrame) -> Figure:
    """Loss, learning rate and validation scores over the epochs, from `log.csv`."""
    scores = [name for name in log if name.startswith("val_")]
    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log["epoch"], log["loss"], color="#0072b2", label="loss")
    left.set_xlabel("epoch")
    left.set_ylabel("training loss")
    rate = left.twinx()
    rate.plot(log["epoch"], log["learning_rate"], color="#e69f00", lw=1)
    rate.set_ylabel("learning rate", color="#b87f00")
    for name in scores:
        main = name == "val_mean_iou"
        shown = name.removeprefix("val_").replace("_", " ")
        right.plot(log["epoch"], log[name], lw=2 if main else 1, color="black" if main else None, label=shown)
    right.set_xlabel("epoch")
    right.set_ylabel("validation IoU")
    right.set_ylim(0, 1)
    right.legend(frameon=False, fontsize=7)
    style_axes(left, right)
    return figure
