"""Workflow `mineral evaluate`: class maps, or a network, against the truth, beside methods that need no training."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import check_choice, check_number
from keras_microseg.io.palettes import IGNORE
from keras_microseg.metrics.class_maps import MapScores, MapTally, score_maps, tally_maps
from keras_microseg.workflows.mineral_judged import Case, open_case
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json

PARTS = ("held-out", "train", "validation", "test", "all")
METHOD, CONFUSION, CLASSES = "prediction", "confusion.json", "classes.csv"
_PICTURES = 6
_MISSED = 0.4  # recall of a class whose outlines say nothing any more
_OVERALL = {
    "method": "method", "mean_iou": "mean IoU", "mean_iou_low": "from", "mean_iou_high": "to", "accuracy": "accuracy",
    "weighted_iou": "weighted IoU", "kappa": "kappa", "mcc": "MCC", "boundary_f1": "boundary F1",
}  # fmt: skip
_CLASSES = {
    "class": "class", "iou": "IoU", "iou_low": "from", "iou_high": "to", "dice": "Dice", "precision": "precision",
    "recall": "recall", "boundary_f1": "boundary F1", "true_fraction": "true %", "predicted_fraction": "predicted %",
    "error_points": "error, points",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is compared and how.

    Attributes:
        predicted: a network of `mineral train`; a folder (or one file) of class maps named like their images; or the
            map of a whole micrograph (an image, a folder of `mineral predict`) whose `mineral tiles` are the truth.
        truth: data folder as for `mineral train`, or a folder of class maps alone.
        part: which pairs of the data folder: "held-out" (what is not for training), "train", "validation", "test",
            "all". A network brings its split with it.
        palette, groups, classes, tolerance: meaning of the colours or numbers of the truth, see `TrainSettings`; a
            network brings its own.
        block: edge of the blocks of the bootstrap, px; None = an eighth of the shortest image edge, 32 at least.
        tolerances: widths of the bands along boundaries that are left out, px.
        boundary: tolerance of the boundary F1, px.
        baselines: also score thresholds and a random forest, fitted on the training pairs.
        seed: of the bootstrap and the forest.
    """

    predicted: str
    truth: str
    part: str = "held-out"
    palette: str | None = None
    groups: str | None = None
    classes: tuple[str, ...] = ()
    tolerance: float = 0.0
    block: int | None = None
    tolerances: tuple[int, ...] = (1, 2, 4)
    boundary: float = 2.0
    baselines: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("part", self.part, PARTS)
        for name in ("classes", "tolerances"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        check_number("boundary", self.boundary, minimum=0)
        if self.block is not None:
            check_number("block", self.block, minimum=1, integer=True)


def evaluate(
    settings: EvaluateSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Score.

    Args:
        settings: what and how.
        out: folder; gets `scores.csv` (a row per method), `classes.csv` (per method and class, with intervals),
            `samples.csv` (per sample), `confusion_METHOD.csv`, `confusion.json` (pixels true x predicted of every
            block: `mineral quantify` corrects shares by it), `maps/NAME.png` (predicted class numbers), `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: nothing to compare, or classes that do not fit.
        FileError: prediction and truth of different shape.
    """
    folder = RunFolder(out, settings, command="mineral evaluate", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("evaluate", _evaluate)])


def _evaluate(folder: RunFolder) -> None:
    asked: EvaluateSettings = folder.settings
    case = open_case(asked)
    judged, table = case.judged, case.table
    names = table.names
    block = asked.block or max(32, case.edge // 8)
    methods: dict[str, Callable[[int, Any], np.ndarray]] = {METHOD: case.predict}
    if asked.baselines and case.training:
        methods |= _baselines(case, asked.seed)
    tallies: dict[str, MapTally] = {}
    samples: list[dict[str, Any]] = []
    pictures = []
    for number, item in enumerate(judged):
        if folder.progress:
            folder.progress("evaluate", number, len(judged), item.pair.name)
        for method, run in methods.items():
            found = run(number, item)
            tally = tally_maps(
                item.classes, found, len(names), block=block, tolerances=asked.tolerances,
                boundary_tolerance=asked.boundary,
            )  # fmt: skip
            tallies[method] = tallies[method] + tally if method in tallies else tally
            scores = score_maps(tally, names, resamples=0)
            rows = {f"iou_{row['class']}": row["iou"] for row in scores.classes.to_dict("records")}
            samples.append({"image": item.pair.name, "sample": item.pair.sample, "method": method,
                            "mean_iou": scores.overall["mean_iou"], "accuracy": scores.overall["accuracy"],
                            **rows})  # fmt: skip
            if method == METHOD:
                io.write_image(folder.file("maps", f"{item.pair.name}.png"), found.astype(np.uint8))
                if len(pictures) < _PICTURES:
                    pictures.append((item, found))
    scores = {method: score_maps(tally, names, seed=asked.seed) for method, tally in tallies.items()}
    pd.DataFrame([{"method": m, **s.overall} for m, s in scores.items()]).to_csv(
        folder.file("scores.csv"), index=False, float_format="%.6g"
    )
    pd.concat([s.classes.assign(method=m) for m, s in scores.items()]).to_csv(
        folder.file(CLASSES), index=False, float_format="%.6g"
    )
    pd.DataFrame(samples).to_csv(folder.file("samples.csv"), index=False, float_format="%.6g")
    for method, tally in tallies.items():
        name = f"confusion_{method.replace(' ', '_').lower()}.csv"
        pd.DataFrame(tally.matrix, index=names, columns=names).to_csv(folder.file(name), index_label="truth")
    write_json(
        folder.file(CONFUSION),
        {"classes": names, "rows": "true", "columns": "predicted", "block": block, "regions": tallies[METHOD].blocks},
    )
    _report(folder, scores, tallies[METHOD].matrix, pd.DataFrame(samples), pictures, table, block)


def doubts(folder: Path) -> list[str]:
    """What a reader of the map should know, from its scores: other methods are as good, classes are missed.

    Args:
        folder: of `evaluate`.
    """
    overall = pd.read_csv(folder / "scores.csv").set_index("method")["mean_iou"]
    classes = pd.read_csv(folder / CLASSES)
    found, others = [], overall.drop(METHOD)
    if len(others) and others.max() >= overall[METHOD]:
        found.append(
            f"On held-out tiles the {others.idxmax()} method has a mean IoU of {others.max():.2f}, this map "
            f"{overall[METHOD]:.2f}. A network that is no better has not learned enough: train it longer."
        )
    own = classes[(classes["method"] == METHOD) & (classes["true_fraction"] > 0)]
    missed = own[own["recall"] < _MISSED]
    if len(missed):
        shown = ", ".join(f"{row['class']} ({100 * row['recall']:.0f} %)" for row in missed.to_dict("records"))
        found.append(
            f"Of these classes the map shows only a part (recall): {shown}. Their shares are corrected for it; their "
            "contacts, chords and grain sizes are not, and mean little."
        )
    return found


def _baselines(case: Case, seed: int) -> dict[str, Callable[[int, Any], np.ndarray]]:
    """Methods that need no network, on grey values scaled as the network's are."""
    from keras_microseg.segmentation.class_baselines import fit_baselines

    def scaled(item: Any) -> np.ndarray:
        grey = case.scaling(item)(item.image if item.image.ndim == 2 else item.image.mean(axis=-1))
        return np.rint(255 * np.clip(grey, 0, 1)).astype(np.uint8)

    pairs = [(scaled(item), item.classes) for item in case.training]
    found = fit_baselines(pairs, len(case.table.names), ignore=IGNORE, seed=seed)
    return {name: lambda number, item, fn=fn: fn(scaled(item)) for name, fn in found.items()}


def _report(
    folder: RunFolder,
    scores: dict[str, MapScores],
    matrix: np.ndarray,
    samples: pd.DataFrame,
    pictures: Sequence[tuple[Any, np.ndarray]],
    table: Any,
    block: int,
) -> None:
    from keras_microseg.report import map_figures
    from keras_microseg.report.mineral_figures import confusion_figure
    from keras_microseg.report.page import Chart, Picture, Section, Table, colour_legend, write_page

    overall = pd.DataFrame([{"method": method, **s.overall} for method, s in scores.items()])
    own = scores[METHOD]
    colours = [mineral.colour for mineral in table.palette.minerals]
    panels = []
    for item, found in pictures:
        grey = item.image if item.image.ndim == 2 else item.image.mean(axis=-1)
        low, high = np.percentile(grey, [0.5, 99.5])
        grey = np.clip((grey.astype(np.float32) - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
        step = max(1, max(grey.shape) // 512)
        shown = map_figures.map_panels(
            grey[::step, ::step], item.classes[::step, ::step], found[::step, ::step], colours
        )
        panels.append(Picture(shown, f"{item.pair.name}: image, truth, prediction, errors (orange)"))
    legend = colour_legend({m.name: tuple(m.colour) for m in table.palette.minerals})
    classes = own.classes.assign(**{name: 100 * own.classes[name] for name in ("true_fraction", "predicted_fraction")})
    sections = [
        Section("Scores", [
            Table(overall[list(_OVERALL)].rename(columns=_OVERALL),
                  "Means over the classes that occur; from, to: 95 % intervals from blocks", 3),
            Chart(map_figures.method_figure({m: s.classes for m, s in scores.items()}), "IoU of every class"),
            Table(classes[list(_CLASSES)].rename(columns=_CLASSES), "Classes of the prediction", 3),
            f"Intervals: blocks of {block} x {block} px drawn with replacement. Bands: "
            + ", ".join(f"without {name.rsplit('_', 1)[1]} px along boundaries mean IoU {value:.3f}"
                        for name, value in own.overall.items() if "band" in name) + ".",
        ]),
        Section("Confusion", [
            Chart(confusion_figure(matrix, table.names), "Percent of each true class"),
            Chart(map_figures.fraction_figure(own.classes), "Area fractions; numbers are errors in points"),
        ]),
        Section("Images", [legend, *panels, Table(samples, "Every image", 3)]),
    ]  # fmt: skip
    cards = {
        "Mean IoU": own.overall["mean_iou"],
        "Accuracy": own.overall["accuracy"],
        "Largest fraction error (points)": float(own.classes["error_points"].abs().max()),
    }
    write_page(folder.file("report.html"), "Class maps against truth", sections, cards=cards,
               subtitle=f"{folder.settings.predicted} on {folder.settings.truth}")  # fmt: skip
