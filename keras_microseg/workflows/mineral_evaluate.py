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
from keras_microseg.checks import FileError, UserError, check_choice, check_number
from keras_microseg.io.palettes import IGNORE
from keras_microseg.metrics.class_maps import MapScores, MapTally, score_maps, tally_maps
from keras_microseg.workflows.mineral_train_settings import TrainSettings
from keras_microseg.workflows.steps import Progress, RunFolder, Step, run_steps, write_json

PARTS = ("held-out", "train", "validation", "test", "all")
METHOD = "prediction"
_PICTURES = 6


@dataclasses.dataclass(frozen=True)
class EvaluateSettings:
    """What is compared and how.

    Attributes:
        predicted: a network of `mineral train`, or a folder (or one file) of class maps named like their images.
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
            `samples.csv` (per sample), `confusion_METHOD.csv`, `maps/NAME.png` (predicted class numbers),
            `report.html`.
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
    is_network = asked.predicted.endswith(".keras")
    training, judged, table, predict, options = (_of_network if is_network else _of_maps)(asked)
    if not judged:
        raise UserError(f"No pair with truth is left to judge (part {asked.part!r}). Choose --part all, or another.")
    names = table.names
    block = asked.block or max(32, min(min(item.classes.shape) for item in judged) // 8)
    methods: dict[str, Callable[[int, Any], np.ndarray]] = {METHOD: predict}
    if asked.baselines and training:
        methods |= _baselines(training, judged, len(names), options, asked.seed)
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
        folder.file("classes.csv"), index=False, float_format="%.6g"
    )
    pd.DataFrame(samples).to_csv(folder.file("samples.csv"), index=False, float_format="%.6g")
    for method, tally in tallies.items():
        name = f"confusion_{method.replace(' ', '_').lower()}.csv"
        pd.DataFrame(tally.matrix, index=names, columns=names).to_csv(folder.file(name), index_label="truth")
    write_json(
        folder.file("confusion.json"),
        {"classes": names, "matrix": tallies[METHOD].matrix.tolist(), "pixels": int(tallies[METHOD].matrix.sum())},
    )
    _report(folder, scores, tallies[METHOD].matrix, pd.DataFrame(samples), pictures, table, block)


def _of_network(asked: EvaluateSettings) -> tuple[list, list, Any, Callable, dict[str, Any]]:
    """Training images, judged images, classes, prediction and settings, for a network and its data."""
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.prediction import Predictor
    from keras_microseg.models.saving import load_model
    from keras_microseg.workflows.mineral_train import TASK, classify, normalize, read_pairs

    model, card = load_model(asked.predicted)
    if card.get("task") != TASK:
        raise FileError(asked.predicted, "is no network for class maps.", "Use one of `mineral train`.")
    fields = {field.name for field in dataclasses.fields(TrainSettings)}
    known = {name: value for name, value in card["training"].items() if name in fields}
    changes = {"data": asked.truth, "soft": False, "regime": "random", "encoder_weights": None}
    for name in ("palette", "groups"):
        if getattr(asked, name) is not None:
            changes[name] = getattr(asked, name)
    settings = TrainSettings(**{**known, **changes})
    images, table = read_pairs(settings)
    if table.names != list(card["outputs"]):
        raise UserError(
            f"The network knows the classes {', '.join(card['outputs'])}, the truth {', '.join(table.names)}. "
            "Merge them alike (--groups)."
        )
    predictor = Predictor(model, card)
    rule = card["normalization"]
    judged = _choose(images, asked.part)
    scalings = normalize(settings, judged, rule)[1] if judged else []

    def predict(number: int, item: Any) -> np.ndarray:
        return classify(predictor, scalings[number](item.image))

    return _choose(images, "train"), judged, table, predict, {"settings": settings, "rule": rule}


def _of_maps(asked: EvaluateSettings) -> tuple[list, list, Any, Callable, dict[str, Any]]:
    """The same for class maps that exist already."""
    from keras_microseg.data.map_pairs import MapPair, find_classes, find_map_pairs, read_map, read_pair, split_pairs
    from keras_microseg.io.pairing import match_names
    from keras_microseg.io.palettes import read_groups

    truth = Path(asked.truth)
    try:
        pairs = split_pairs(find_map_pairs(truth), "given", validation=0)
        has_images = True
    except UserError:
        pairs = [MapPair(path.stem, path, path, path.stem, "validation") for path in io.find_images(truth)]
        has_images = False
    groups = None if asked.groups is None else read_groups(asked.groups)
    table = find_classes(
        truth if truth.is_dir() else truth.parent, pairs, palette=asked.palette, groups=groups, names=asked.classes
    )
    files = io.find_images(asked.predicted)
    if len(files) == 1 and len(pairs) == 1:
        partners = {pairs[0].image: files[0]}
    else:
        partners = match_names([pair.image for pair in pairs], files)
    read = [
        read_pair(pair, table, tolerance=asked.tolerance, with_image=has_images)
        for pair in pairs
        if asked.part == "all" or pair.part == "train" or partners.get(pair.image) is not None
    ]
    given = any(pair.part != "train" for pair in pairs)
    judged = [i for i in _choose(read, asked.part if given else "all") if partners.get(i.pair.image) is not None]
    if not judged and not any(partners.values()):
        raise UserError(f"No class map in {asked.predicted} has the name of an image in {asked.truth}.")

    def predict(number: int, item: Any) -> np.ndarray:
        path = partners[item.pair.image]
        found = read_map(path, table, tolerance=asked.tolerance)
        if found.shape != item.classes.shape:
            raise FileError(
                path, f"has {found.shape[0]} x {found.shape[1]} pixels, its truth {item.classes.shape}.",
                "Predict at the size of the truth.",
            )  # fmt: skip
        if (found >= len(table.names)).any():
            raise FileError(path, "holds numbers that are no class.", f"Classes are 0 to {len(table.names) - 1}.")
        return found

    training = _choose(read, "train") if has_images and given else []
    return training, judged, table, predict, {}


def _choose(images: Sequence[Any], part: str) -> list[Any]:
    if part == "all":
        return list(images)
    return [i for i in images if (i.pair.part != "train" if part == "held-out" else i.pair.part == part)]


def _baselines(
    training: Sequence[Any], judged: Sequence[Any], num_classes: int, options: dict[str, Any], seed: int
) -> dict[str, Callable[[int, Any], np.ndarray]]:
    """Methods that need no network, on grey values scaled as the network's are."""
    from keras_microseg.segmentation.class_baselines import fit_baselines

    def scaled(images: Sequence[Any]) -> list[np.ndarray]:
        from keras_microseg.workflows.mineral_train import normalize

        settings = options.get("settings") or TrainSettings("", normalization="percentile")
        scalings = normalize(settings, images, options.get("rule"))[1]
        grey = [scaling(i.image if i.image.ndim == 2 else i.image.mean(axis=-1))
                for scaling, i in zip(scalings, images, strict=True)]  # fmt: skip
        return [np.rint(255 * np.clip(g, 0, 1)).astype(np.uint8) for g in grey]

    pairs = [(grey, item.classes) for grey, item in zip(scaled(training), training, strict=True)]
    found = fit_baselines(pairs, num_classes, ignore=IGNORE, seed=seed)
    greys = scaled(judged)
    return {name: lambda number, item, fn=fn: fn(greys[number]) for name, fn in found.items()}


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
    from keras_microseg.report.page import Chart, Picture, Section, Table, write_page

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
    legend = ", ".join(f"{m.name} rgb{tuple(m.colour)}" for m in table.palette.minerals)
    sections = [
        Section("Scores", [
            Table(overall[["method", "mean_iou", "mean_iou_low", "mean_iou_high", "accuracy", "weighted_iou", "kappa",
                           "mcc", "boundary_f1"]], "Means over the classes that occur; 95 % intervals from blocks.", 3),
            Chart(map_figures.method_figure({m: s.classes for m, s in scores.items()}), "IoU of every class"),
            Table(own.classes.drop(columns=["relative_error"]), "Classes of the prediction", 3),
            f"Intervals: blocks of {block} x {block} px drawn with replacement. Bands: "
            + ", ".join(f"without {name.rsplit('_', 1)[1]} px along boundaries mean IoU {value:.3f}"
                        for name, value in own.overall.items() if "band" in name) + ".",
        ]),
        Section("Confusion", [
            Chart(map_figures.confusion_figure(matrix, table.names), "Confusion matrix of the prediction"),
            Chart(map_figures.fraction_figure(own.classes), "Area fractions; numbers are errors in points"),
        ]),
        Section("Images", [f"Colours: {legend}.", *panels, Table(samples, "Every image", 3)]),
    ]  # fmt: skip
    cards = {
        "Mean IoU": own.overall["mean_iou"],
        "Accuracy": own.overall["accuracy"],
        "Largest fraction error (points)": float(own.classes["error_points"].abs().max()),
    }
    write_page(folder.file("report.html"), "Class maps against truth", sections, cards=cards,
               subtitle=f"{folder.settings.predicted} on {folder.settings.truth}")  # fmt: skip
