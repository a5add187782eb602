"""Workflow `particles evaluate`: detections against annotations of any format, with scores COCO and others define.

Needs no keras. Beside the scores of `evaluate` (F1, PQ, outlines, with intervals): average precision by score, objects
split and merged, count and size errors, and all of it per stratum, such as intact, cracked and shattered particles.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import UserError, check_number
from keras_microseg.io import annotations as notes
from keras_microseg.io.pairing import match_names
from keras_microseg.metrics import instance
from keras_microseg.metrics.detection import AveragePrecision, average_precision, scored_image
from keras_microseg.workflows.steps import Failure, describe, now, run_facts, write_json


@dataclasses.dataclass(frozen=True)
class DetectionScores:
    """Outcome of `evaluate_particles`.

    Attributes:
        summary: name -> (value, low, high); intervals by bootstrap over the images, NaN where there is one image.
        images: a row per image: counts.
        strata: a row per stratum: objects, recall, mean best IoU, split.
        failures: images that could not be compared.
    """

    summary: dict[str, tuple[float, float, float]]
    images: pd.DataFrame
    strata: pd.DataFrame
    failures: list[Failure]

    def __getitem__(self, name: str) -> float:
        return self.summary[name][0]


@dataclasses.dataclass(frozen=True)
class Compared:
    """One image: the tables that every score is made of."""

    name: str
    scored: Any
    table: instance.OverlapTable
    match: instance.Match
    split: instance.SplitMerge
    ndim: int = 2


def compare_labels(
    name: str,
    truth: np.ndarray,
    predicted: np.ndarray,
    scores: np.ndarray | None = None,
    *,
    ignore: np.ndarray | None = None,
    threshold: float = 0.5,
) -> Compared:
    """Compare two label images (H, W), or volumes (D, H, W).

    Args:
        name: of the image.
        truth, predicted: labels, 0 = background.
        scores: of the predicted labels 1..P; None = all alike, which makes average precision a mere point.
        ignore: (H, W) bool; predicted objects that lie in it by more than half are left out.
        threshold: IoU from which an object counts as found.
    """
    count = int(predicted.max(initial=0))
    scores = np.ones(count) if scores is None else np.asarray(scores, float)
    if ignore is not None and ignore.any() and count:
        inside = np.bincount(predicted[ignore], minlength=count + 1) / np.maximum(
            np.bincount(predicted.ravel(), minlength=count + 1), 1
        )
        inside[0] = 0
        predicted = np.where((inside > 0.5)[predicted], 0, predicted)
    table = instance.overlap_table(truth, predicted)
    return Compared(
        name,
        scored_image(truth, predicted, scores),
        table,
        instance.match(table, threshold=threshold - 1e-9 if threshold else 0.0),
        instance.count_split_merge(table),
        truth.ndim,
    )


def score_compared(compared: list[Compared], *, resamples: int = 500, seed: int = 0) -> dict[str, tuple]:
    """All scores of all images together, with bootstrap intervals over the images.

    Returns:
        `ap`, `ap50`, `ap75` (COCO), `precision`, `recall`, `f1`, `pq`, `split` and `merged` (share of the true
        objects), `count_error` ((found - true) / true) and `diameter_error` (of the median equivalent diameter,
        relative) -> (value, low, high).
    """
    formulas = {
        "ap": lambda c: average_precision([one.scored for one in c]).ap,
        "ap50": lambda c: average_precision([one.scored for one in c], (0.5,)).ap50,
        "ap75": lambda c: average_precision([one.scored for one in c], (0.75,)).ap75,
        "precision": lambda c: instance.pool([one.match for one in c]).precision,
        "recall": lambda c: instance.pool([one.match for one in c]).recall,
        "f1": lambda c: instance.pool([one.match for one in c]).f1,
        "pq": lambda c: instance.pool([one.match for one in c]).panoptic_quality,
        "split": lambda c: sum(one.split.split for one in c) / max(_true(c), 1),
        "merged": lambda c: sum(one.split.merged for one in c) / max(_true(c), 1),
        "count_error": lambda c: sum(len(one.table.predicted_labels) for one in c) / max(_true(c), 1) - 1,
        "diameter_error": _diameter_error,
    }
    scores = {}
    for name, formula in formulas.items():
        if len(compared) > 1 and resamples:
            scores[name] = tuple(instance.bootstrap_interval(compared, formula, resamples=resamples, seed=seed))
        else:
            scores[name] = (float(formula(compared)), float("nan"), float("nan"))
    return scores


def score_strata(
    compared: list[Compared], strata: Mapping[str, Mapping[int, str]], threshold: float = 0.5
) -> pd.DataFrame:
    """Recall, mean best IoU and share of split objects per stratum.

    Args:
        compared: images.
        strata: image name -> label -> stratum.
        threshold: IoU from which an object counts as found.
    """
    rows: dict[str, list[tuple[bool, float, bool]]] = {}
    for one in compared:
        names = strata.get(one.name, {})
        found = {int(pair[0]) for pair in one.match.pairs}
        best = np.zeros(len(one.table.true_labels))
        np.maximum.at(best, one.table.true_index, one.table.scores())
        inside = (one.table.scores("iop") > 0.5) & (one.table.scores("iot") >= 0.1)
        parts = np.bincount(one.table.true_index[inside], minlength=len(best))
        for k, label in enumerate(one.table.true_labels):
            row = (int(label) in found, float(best[k]), bool(parts[k] > 1))
            rows.setdefault(names.get(int(label), "unknown"), []).append(row)
    return pd.DataFrame(
        [(name, len(v), *np.mean(np.array(v, float), axis=0).round(4)) for name, v in sorted(rows.items())],
        columns=["stratum", "objects", "recall", "mean_iou", "split"],
    )


def evaluate_particles(
    predicted: str | os.PathLike,
    truth: str | os.PathLike,
    out: str | os.PathLike | None = None,
    *,
    images: str | os.PathLike | None = None,
    strata: str | os.PathLike | None = None,
    threshold: float = 0.5,
    min_area: int = 0,
    resamples: int = 500,
    seed: int = 0,
) -> DetectionScores:
    """Score the result of `particles detect` (or any label images).

    Args:
        predicted: folder of a run, or of label images; scores are taken from its `particles.csv`.
        truth: label images, or an annotation file or folder of any format.
        out: `.json` file for the scores.
        images: folder of the images, where the annotations do not tell their sizes.
        strata: CSV with the columns `image`, `label` and `stratum` (or `state`) for the true objects.
        threshold: IoU from which an object counts as found.
        min_area: objects of fewer pixels are left out on both sides.
        resamples, seed: of the bootstrap over images.

    Raises:
        UserError: no pair at all.
    """
    check_number("threshold", threshold, minimum=0, maximum=1)
    folder = Path(predicted)
    labels = folder / "labels" if (folder / "labels").is_dir() else folder
    files = io.find_images(labels)
    truths = _read_truth(Path(truth), images)
    if len(truths) == len(files) == 1:  # two files are a pair whatever they are called
        partners = {Path(name): files[0] for name in truths}
    else:
        partners = match_names([Path(name) for name in truths], files)
    scores_of = _read_scores(folder)
    compared, failures = [], []
    for name, (draw, ignore) in truths.items():
        file = partners.get(Path(name))
        if file is None:
            failures.append(Failure(name, "pair", f"{name}: no label image of this name in {labels}."))
            continue
        try:
            found = np.asarray(io.read_labels(file).data)
            wanted, mask = draw(found.shape), ignore(found.shape)
            rows = min(len(found), len(wanted))
            if wanted.shape[1:] != found.shape[1:] or rows < 0.8 * max(len(found), len(wanted)):
                raise UserError(f"{file.name} has {found.shape} pixels, the truth {wanted.shape}. They must agree.")
            found, wanted = found[:rows], wanted[:rows]
            if min_area:
                found, wanted = _without_small(found, min_area), _without_small(wanted, min_area)
            compared.append(
                compare_labels(
                    Path(name).stem, wanted, found, _scores_for(scores_of, file.stem, found),
                    ignore=None if mask is None else mask[:rows], threshold=threshold,
                )
            )  # fmt: skip
        except (UserError, OSError) as error:
            failures.append(describe(error, name, "evaluate"))
    if not compared:
        told = "; ".join(f.message for f in failures[:3]) or f"{truth} names no object."
        raise UserError(f"No image could be compared: {told} Predicted labels were looked for in {labels}.")
    summary = score_compared(compared, resamples=resamples, seed=seed)
    table = pd.DataFrame(
        [
            (one.name, one.match.tp + one.match.fn, one.match.tp + one.match.fp, one.match.tp, one.split.split,
             one.split.merged)
            for one in compared
        ],
        columns=["image", "true", "predicted", "found", "split", "merged"],
    )  # fmt: skip
    listed = pd.DataFrame() if strata is None else score_strata(compared, _read_strata(Path(strata)), threshold)
    result = DetectionScores(summary, table, listed, failures)
    if out is not None:
        facts = {"finished": now(), **run_facts(), "threshold": threshold, "min_area": min_area}
        write_json(
            out,
            {**facts, "scores": {k: list(v) for k, v in summary.items()}, "images": table.to_dict("records"),
             "strata": listed.to_dict("records"), "failures": failures},
        )  # fmt: skip
    return result


def coco(compared: list[Compared]) -> AveragePrecision:
    """Average precision of all images together."""
    return average_precision([one.scored for one in compared])


def _true(compared: list[Compared]) -> int:
    return sum(len(one.table.true_labels) for one in compared)


def _diameter_error(compared: list[Compared]) -> float:
    true = np.concatenate([one.table.true_areas for one in compared])
    found = np.concatenate([one.table.predicted_areas for one in compared])
    if not len(true) or not len(found):
        return float("nan")
    return float((np.median(found) / np.median(true)) ** (1 / compared[0].ndim) - 1)


def _read_truth(truth: Path, images: Any) -> dict[str, tuple[Any, Any]]:
    """Name -> functions of a shape: label image, and what to ignore or None."""
    folder = truth / "labels" if (truth / "labels").is_dir() else truth
    is_image = folder.is_file() and folder.suffix.lower() not in (".json", ".csv", ".zip", ".roi")
    if is_image or (folder.is_dir() and notes.guess_format(folder) == "labels"):

        def reader(path: Path) -> Any:
            return lambda shape: np.asarray(io.read_labels(path).data)

        return {path.name: (reader(path), lambda shape: None) for path in io.find_images(folder)}
    found = notes.drop_unusable(notes.read_annotations(truth, images=images, drop_absent=images is not None))

    def drawers(image: notes.AnnotatedImage) -> tuple[Any, Any]:
        crowds = [region for region in image.regions if region.crowd]
        plain = [region for region in image.regions if not region.crowd]
        return (
            lambda shape: notes.draw_regions(plain, image.size or shape, order="small_on_top"),
            lambda shape: notes.draw_regions(crowds, image.size or shape) > 0 if crowds else None,
        )

    return {image.name: drawers(image) for image in found.images if image.regions}


def _read_scores(folder: Path) -> pd.DataFrame | None:
    path = folder / "particles.csv"
    if not path.is_file():
        return None
    table = pd.read_csv(path, comment="#")
    return table if {"image", "label", "score"} <= set(table.columns) else None


def _scores_for(table: pd.DataFrame | None, name: str, labels: np.ndarray) -> np.ndarray | None:
    if table is None:
        return None
    part = table[table["image"].astype(str).map(lambda text: Path(text).stem) == name]
    scores = np.zeros(int(labels.max(initial=0)))
    inside = part["label"].to_numpy(int) <= len(scores)
    scores[part["label"].to_numpy(int)[inside] - 1] = part["score"].to_numpy(float)[inside]
    return scores


def _read_strata(path: Path) -> dict[str, dict[int, str]]:
    table = pd.read_csv(path, comment="#")
    column = "stratum" if "stratum" in table.columns else "state"
    if not {"image", "label", column} <= set(table.columns):
        raise UserError(f"{path}: needs the columns image, label and stratum. Found: {list(table.columns)}")
    result: dict[str, dict[int, str]] = {}
    for image, label, stratum in zip(table["image"], table["label"], table[column], strict=True):
        result.setdefault(Path(str(image)).stem, {})[int(label)] = str(stratum)
    return result


def _without_small(labels: np.ndarray, min_area: int) -> np.ndarray:
    small = np.bincount(labels.ravel()) < min_area
    small[0] = False
    return np.where(small[labels], 0, labels)
