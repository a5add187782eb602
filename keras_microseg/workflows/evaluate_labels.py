"""Workflow `evaluate`: label images against the truth, scores with bootstrap intervals over images. Needs no keras."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.io.pairing import match_names
from keras_microseg.metrics import instance, pixel
from keras_microseg.metrics.published import score_mask
from keras_microseg.segmentation import labeling
from keras_microseg.workflows.steps import Failure, Progress, describe, now, run_facts, write_json

LARGEST_CUT = 0.2
"""The label image may leave out an info bar of at most this share of the rows."""


@dataclasses.dataclass(frozen=True)
class Score:
    """One score over all images.

    Attributes:
        name: key in the JSON file.
        title: name for people.
        value: of all images together (counts are added up before a ratio is formed).
        low, high: 95 % percentile bootstrap interval, drawing whole images.
        meaning: the definition in words.
    """

    name: str
    title: str
    value: float
    low: float
    high: float
    meaning: str


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Outcome of `evaluate`.

    Attributes:
        rows: the scores.
        images: per image: name and counts.
        true_objects, predicted_objects: objects counted.
        failures: files without partner or unreadable.
    """

    rows: list[Score]
    images: list[dict[str, Any]]
    true_objects: int
    predicted_objects: int
    failures: list[Failure]

    @property
    def num_images(self) -> int:
        """Pairs that were compared."""
        return len(self.images)

    def __getitem__(self, name: str) -> float:
        """Value of a score by its name, for example `scores["f1"]`."""
        return next(row.value for row in self.rows if row.name == name)


@dataclasses.dataclass(frozen=True)
class _Counts:
    """What one image contributes; every score is a formula of sums of these."""

    matches: np.ndarray  # (thresholds, 4): tp, fp, fn, sum of IoU over matched pairs
    chosen: np.ndarray  # (4,) the same at the chosen threshold
    pixels: np.ndarray  # (4,) tp, fp, fn, tn
    boundary: np.ndarray  # (4,) true, true found, predicted, predicted found
    published: np.ndarray  # (4,) scores of the image as in `metrics.published`; empty unless asked for


def evaluate(
    predicted: Any,
    truth: Any,
    out: str | os.PathLike | None = None,
    *,
    min_area: int = 0,
    threshold: float = 0.5,
    boundary_tolerance: float = 2.0,
    published: bool = False,
    resamples: int = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Score label images against true ones.

    Args:
        predicted: label images, their folder, the folder of a `segment` run, or (Y, X) int arrays (a list of them).
        truth: true label images or masks of the same names, or arrays.
        out: `.json` file for the scores, or None.
        min_area: objects of fewer pixels are left out on both sides.
        threshold: an object counts as found when its IoU with a predicted one is greater, 0.5 <= threshold < 1.
        boundary_tolerance: how far outlines may lie apart to count as found, pixels.
        published: also the three scores of the system for label-free particles by Ruehle et al. (2021), means over the
            images, to compare with its numbers, see `metrics.published`.
        resamples: bootstrap samples.
        seed: of the bootstrap.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        `Evaluation`; every true image without a prediction is a failure, not a silent gap.

    Raises:
        UserError: no file, no pair at all, settings out of range.
    """
    check_number("threshold", threshold, minimum=0.5, maximum=0.999)
    check_number("min_area", min_area, minimum=0)
    if out is not None and Path(out).suffix.lower() != ".json":
        raise UserError(f"`out` must end in .json. Received: out={str(out)!r}")
    pairs, failures = _pairs(predicted, truth)
    counts: list[_Counts] = []
    images: list[dict[str, Any]] = []
    for number, (name, first, second) in enumerate(pairs):
        if progress:
            progress("evaluate", number, len(pairs), name)
        try:
            pair = _labels(first, min_area), _labels(second, min_area)
            one = _count(*pair, name, threshold, boundary_tolerance, published)
        except (UserError, OSError) as error:
            failures.append(describe(error, name, "evaluate"))
            continue
        counts.append(one)
        tp, fp, fn, _ = one.chosen
        images.append({"image": name, "true": int(tp + fn), "predicted": int(tp + fp), "found": int(tp)})
    if progress:
        progress("evaluate", len(pairs), len(pairs), "")
    if not counts:
        problems = "; ".join(failure.message for failure in failures[:3])
        raise UserError(f"No pair of label images could be compared. {problems}")
    rows = [
        Score(name, title, *_interval(counts, formula, resamples, seed), meaning)
        for name, title, formula, meaning in _formulas(threshold, boundary_tolerance, published)
    ]
    total = np.sum([one.chosen for one in counts], axis=0)
    scores = Evaluation(rows, images, int(total[0] + total[2]), int(total[0] + total[1]), failures)
    if out is not None:
        write_json(out, {"finished": now(), **run_facts(), "min_area": min_area, "threshold": threshold,
                         "boundary_tolerance": boundary_tolerance, "scores": rows, "images": images,
                         "failures": failures})  # fmt: skip
    return scores


def _formulas(
    threshold: float, tolerance: float, published: bool
) -> list[tuple[str, str, Callable[[list[_Counts]], float], str]]:
    at = f"IoU > {threshold:g}"

    def mean(index: int) -> Callable[[list[_Counts]], float]:
        return lambda c: float(np.mean([one.published[index] for one in c]))

    as_published = [
        ("published_image_iou", "Avg IoU (Img)", mean(0), "as published: mean of the image IoU over images"),
        ("published_instance_iou", "Avg IoU (Inst)", mean(1), "as published: best IoU of each predicted outline, mean"),
        ("published_instance_iou_9", "Avg IoU (Inst) > 9 px", mean(2), "the same for outlines above 9 px"),
        ("published_youden", "Avg Youden", mean(3), "as published: mean of the Youden index over images"),
    ]
    return [
        ("f1", "F1", lambda c: _f1(_sum(c, "chosen")), f"2 tp / (2 tp + fp + fn), objects matched at {at}"),
        ("precision", "Precision", lambda c: _part(_sum(c, "chosen"), 1), "found objects that are true"),
        ("recall", "Recall", lambda c: _part(_sum(c, "chosen"), 2), "true objects that are found"),
        ("pq", "PQ", lambda c: _quality(_sum(c, "chosen")), "panoptic quality: F1 x mean IoU of matched objects"),
        ("ap50", "AP50", lambda c: float(_ap(_sum(c, "matches"))[0]), "tp / (tp + fp + fn) at IoU > 0.5"),
        ("ap50_95", "AP50:95", lambda c: float(_ap(_sum(c, "matches")).mean()), "the same, mean over IoU 0.5 to 0.95"),
        ("iou", "Image IoU", lambda c: _iou(_sum(c, "pixels")), "common area / joint area of all particles"),
        ("youden", "Youden index", lambda c: _youden(_sum(c, "pixels")), "pixels: sensitivity + specificity - 1"),
        ("boundary_f1", "Boundary F1", lambda c: _boundary(_sum(c, "boundary")), f"outlines within {tolerance:g} px"),
        *(as_published if published else []),
    ]


def _count(
    truth: np.ndarray, predicted: np.ndarray, name: str, threshold: float, tolerance: float, published: bool
) -> _Counts:
    rows = min(len(truth), len(predicted))
    if truth.shape[1:] != predicted.shape[1:] or rows < (1 - LARGEST_CUT) * max(len(truth), len(predicted)):
        raise FileError(
            name, f"has {predicted.shape} pixels, the truth {truth.shape}.", "Both must show the same image."
        )
    truth, predicted = truth[:rows], predicted[:rows]
    table = instance.overlap_table(truth, predicted)
    matches = [_match(table, limit) for limit in instance.AP_THRESHOLDS]
    pixels = pixel.count(truth, predicted)
    edges = pixel.count_boundary(truth, predicted, tolerance)
    return _Counts(
        np.array(matches, float),
        np.array(_match(table, threshold), float),
        np.array([part[0] for part in (pixels.tp, pixels.fp, pixels.fn, pixels.tn)], float),
        np.array([edges.true, edges.true_found, edges.predicted, edges.predicted_found], float),
        np.array(_score_as_published(truth, predicted) if published else (), float),
    )


def _score_as_published(truth: np.ndarray, predicted: np.ndarray) -> tuple[float, ...]:
    """Outlines are traced 8-connected there: predicted particles are opened at corners, the truth stays as drawn."""
    return score_mask(labeling.separate_8_to_4(labeling.cut_touching(predicted)), labeling.cut_touching(truth))


def _match(table: instance.OverlapTable, threshold: float) -> tuple[float, ...]:
    found = instance.match(table, threshold=threshold)
    return found.tp, found.fp, found.fn, float(found.pair_scores.sum())


def _interval(
    counts: list[_Counts], formula: Callable[[list[_Counts]], float], resamples: int, seed: int
) -> instance.Interval:
    return instance.bootstrap_interval(counts, formula, resamples=resamples, seed=seed)


def _sum(counts: Sequence[_Counts], name: str) -> np.ndarray:
    return np.sum([getattr(one, name) for one in counts], axis=0)


def _ap(sums: np.ndarray) -> np.ndarray:
    total = sums[:, :3].sum(axis=1)
    return np.where(total > 0, sums[:, 0] / np.maximum(total, 1), 1.0)


def _f1(sums: np.ndarray) -> float:
    tp, fp, fn, _ = sums
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else 1.0


def _part(sums: np.ndarray, other: int) -> float:
    """Tp / (tp + fp) for `other` 1, tp / (tp + fn) for 2."""
    total = sums[0] + sums[other]
    return float(sums[0] / total) if total else float(not sums[:3].any())


def _quality(sums: np.ndarray) -> float:
    tp, fp, fn, iou = sums
    return float(iou / (tp + (fp + fn) / 2)) if tp + fp + fn else 1.0


def _iou(sums: np.ndarray) -> float:
    total = sums[:3].sum()
    return float(sums[0] / total) if total else 1.0


def _youden(sums: np.ndarray) -> float:
    return float(pixel.youden(pixel.Counts(*(np.array([value]) for value in sums))))


def _boundary(sums: np.ndarray) -> float:
    return float(pixel.boundary_f1(pixel.BoundaryCounts(*(int(value) for value in sums))))


def _pairs(predicted: Any, truth: Any) -> tuple[list[tuple[str, Any, Any]], list[Failure]]:
    """(name, truth, prediction) of every pair, and what has no partner."""
    arrays = [value if isinstance(value, (list, tuple)) else [value] for value in (predicted, truth)]
    if all(isinstance(one, np.ndarray) for listed in arrays for one in listed):
        if len(arrays[0]) != len(arrays[1]):
            raise UserError(f"`predicted` and `truth` differ in number. Received: {len(arrays[0])}, {len(arrays[1])}")
        return [(f"image {i}", t, p) for i, (p, t) in enumerate(zip(*arrays, strict=True), start=1)], []
    found = io.find_images(_label_folder(predicted))
    wanted = io.find_images(_label_folder(truth))
    partners = {wanted[0]: found[0]} if len(found) == len(wanted) == 1 else match_names(wanted, found)
    pairs, failures = [], []
    for path, partner in partners.items():
        if partner is None:
            failures.append(Failure(str(path), "pair", f"{path}: no label image of this name in {predicted}."))
        else:
            pairs.append((str(partner), path, partner))
    return pairs, failures


def _label_folder(value: Any) -> Any:
    """The folder `labels` of a run folder, else the value itself."""
    if isinstance(value, (str, os.PathLike)) and (Path(value) / "labels").is_dir():
        return Path(value) / "labels"
    return value


def _labels(value: Any, min_area: int) -> np.ndarray:
    labels = value if isinstance(value, np.ndarray) else np.asarray(io.read_labels(value).data)
    if labels.ndim != 2:
        raise FileError(value, f"is not a single label image (shape {labels.shape}).", "Pass one plane per file.")
    return labeling.remove_small(labels, min_area) if min_area > 1 else labels
