"""The three scores of the source system, computed as its script `Calculate_Scores.py` computes them.

Image IoU, instance IoU and Youden index of a separated mask against a true mask, then the best average over the
thresholds 0, 0.1, ..., 1. They serve comparison with published numbers only: they do not see true particles that nobody
predicts, and true particles that touch by a corner count as one (on the TiO2 masks perfect separation reaches an
instance IoU of 0.817). Judge by `metrics.instance` instead.

The source traces outlines with OpenCV (all 8-connected outlines, of holes as well) and fills them. Here the same filled
regions and polygon areas come from connected regions, without OpenCV:
an outer outline fills its component and everything inside; a hole outline fills the hole, everything inside and the
object pixels that share an edge with the hole; the area of the polygon through pixel centres is summed over 2 x 2
cells.

Reference: Ruehle, Krumrey, Hodoroaba (2021), Sci. Rep. 11, 4942; code of the scores in the repository
github.com/BAMresearch/automatic-sem-image-segmentation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import sparse

from keras_microseg.checks import UserError
from keras_microseg.segmentation.labeling import label_components, split_as_published, touches_border

THRESHOLDS = tuple(round(0.1 * step, 1) for step in range(11))


class PublishedScores(NamedTuple):
    """Scores of one image, or averages over images.

    Attributes:
        image_iou: |p AND g| / |p OR g|; 1 when both are empty.
        instance_iou: mean over predicted outlines with polygon area > 0 of the best IoU with a true outline; 0 if none.
        instance_iou_filtered: the same over outlines with polygon area > 9.
        youden: true positive rate + true negative rate - 1; the rate of a missing class counts 0.
    """

    image_iou: float
    instance_iou: float
    instance_iou_filtered: float
    youden: float


class Outlines(NamedTuple):
    """Filled outlines of a mask.

    Attributes:
        filled: (num_outlines, num_pixels) sparse 0/1 float32 matrix of the pixels of each filled outline.
        polygon_area: (num_outlines,) float64 area of the polygon through the pixel centres of the outline.
        is_hole: (num_outlines,) bool.
    """

    filled: sparse.csr_array
    polygon_area: np.ndarray
    is_hole: np.ndarray


def trace_outlines(mask: np.ndarray) -> Outlines:
    """Filled regions and polygon areas of all outlines that `cv2.findContours(..., RETR_LIST, ...)` returns.

    Args:
        mask: (H, W), non-zero = object.
    """
    mask = np.asarray(mask) != 0
    if mask.ndim != 2:
        raise UserError(f"`mask` must be 2D. Received: shape {mask.shape}")
    height, width = mask.shape
    objects, gaps = label_components(mask, 8), label_components(~mask, 4)
    num_objects, num_gaps = int(objects.max(initial=0)), int(gaps.max(initial=0))
    # One tree of regions: node 0 is the outside, then objects, then holes.
    node_of_gap = np.zeros(num_gaps + 1, np.int64)
    holes = np.setdiff1d(np.arange(1, num_gaps + 1), touches_border(gaps))
    node_of_gap[holes] = num_objects + 1 + np.arange(len(holes))
    node = np.where(mask, objects, node_of_gap[gaps]).ravel()
    num_nodes = 1 + num_objects + len(holes)
    first = np.full(num_nodes, mask.size)
    np.minimum.at(first, node, np.arange(mask.size))
    above = first[1:] - width  # the pixel above the first pixel of a region belongs to the region around it
    parent = np.concatenate([[0], np.where(above >= 0, node[np.maximum(above, 0)], 0)]).astype(np.int64)

    owners, pixels = [], []
    pixel = np.flatnonzero(node)
    owner = node[pixel]
    while len(pixel):
        owners.append(owner)
        pixels.append(pixel)
        owner = parent[owner]
        pixel, owner = pixel[owner > 0], owner[owner > 0]
    owner = np.concatenate(owners) if owners else np.zeros(0, np.int64)
    pixel = np.concatenate(pixels) if pixels else np.zeros(0, np.int64)
    is_hole = np.arange(num_nodes) > num_objects
    polygon_area = _polygon_areas(owner, pixel, width, is_hole)

    rim_owners, rim_pixels = [owner], [pixel]
    grid = node.reshape(height, width)
    index = np.arange(mask.size).reshape(height, width)
    for axis in (0, 1):
        here, there = np.moveaxis(grid, axis, 0)[:-1], np.moveaxis(grid, axis, 0)[1:]
        index_here, index_there = np.moveaxis(index, axis, 0)[:-1], np.moveaxis(index, axis, 0)[1:]
        for hole, neighbour, position in ((here, there, index_there), (there, here, index_here)):
            edge = (hole > num_objects) & (neighbour > 0) & (neighbour != hole)
            rim_owners.append(hole[edge])
            rim_pixels.append(position[edge])
    owner, pixel = np.concatenate(rim_owners), np.concatenate(rim_pixels)
    filled = sparse.csr_array((np.ones(len(owner), np.float32), (owner - 1, pixel)), shape=(num_nodes - 1, mask.size))
    filled.sum_duplicates()
    filled.data[:] = 1
    return Outlines(filled, polygon_area[1:], is_hole[1:])


def score_mask(predicted: np.ndarray, truth: np.ndarray) -> PublishedScores:
    """The scores of one image whose particles are already separated.

    Args:
        predicted, truth: (H, W) masks, non-zero = particle. For label images pass
            `separate_8_to_4(cut_touching(labels))`, so that 8-connected tracing sees the particles apart.
    """
    predicted, truth = np.asarray(predicted) != 0, np.asarray(truth) != 0
    if predicted.shape != truth.shape:
        raise UserError(
            f"`predicted` and `truth` must have one shape. Received: {predicted.shape} and {truth.shape}. "
            "Cut both to the rows above the info bar."
        )
    both, either = np.count_nonzero(predicted & truth), np.count_nonzero(predicted | truth)
    positives = np.count_nonzero(truth)
    negatives = truth.size - positives
    true_positive_rate = both / positives if positives else 0.0
    true_negative_rate = (truth.size - either) / negatives if negatives else 0.0
    of_predicted, of_truth = trace_outlines(predicted), trace_outlines(truth)
    best = _best_iou(of_predicted.filled, of_truth.filled)
    instance = [
        float(best[chosen].mean()) if chosen.any() else 0.0
        for chosen in (of_predicted.polygon_area > 0, of_predicted.polygon_area > 9)
    ]
    return PublishedScores(both / either if either else 1.0, *instance, true_positive_rate + true_negative_rate - 1)


def score_probabilities(
    probabilities: Iterable[np.ndarray], truths: Iterable[np.ndarray], thresholds: Sequence[float] = THRESHOLDS
) -> PublishedScores:
    """Best average over the thresholds, as published; each score chooses its own threshold.

    Args:
        probabilities: per image an (H, W) map, float in 0..1 or uint8 in 0..255.
        truths: per image an (H, W) mask.
        thresholds: particles are where the map is greater; they are separated by `split_as_published(archive=True)`.
    """
    scores = []
    for probability, truth in zip(probabilities, truths, strict=True):
        probability = np.asarray(probability)
        if probability.dtype == np.uint8:
            probability = probability / 255.0
        scores.append(
            [score_mask(split_as_published(probability > value, archive=True), truth) for value in thresholds]
        )
    if not scores:
        raise UserError("Nothing to score: no image was passed.")
    return PublishedScores(*(float(value) for value in np.mean(scores, axis=0).max(axis=0)))


def _polygon_areas(owner: np.ndarray, pixel: np.ndarray, width: int, is_hole: np.ndarray) -> np.ndarray:
    """Shoelace areas per node, from the number of its pixels in every 2 x 2 cell of neighbouring pixel centres.

    An object fills a cell by four of its pixels and half of it by three. A hole's polygon runs through the pixels
    around it: it takes half of a cell with one pixel and all of a cell with more.
    """
    row, column = np.divmod(pixel, width)
    corner = row * (width + 1) + column
    num_cells = (int(row.max(initial=0)) + 2) * (width + 1)
    keys = np.concatenate([owner * num_cells + corner + step for step in (0, 1, width + 1, width + 2)])
    keys, count = np.unique(keys, return_counts=True)
    cell_owner = keys // num_cells
    of_object = np.array([0, 0, 0, 0.5, 1.0])[count]
    of_hole = np.array([0, 0.5, 1.0, 1.0, 1.0])[count]
    return np.bincount(cell_owner, weights=np.where(is_hole[cell_owner], of_hole, of_object), minlength=len(is_hole))


def _best_iou(filled: sparse.csr_array, others: sparse.csr_array) -> np.ndarray:
    """For each row of `filled` the highest IoU with any row of `others`; 0 without overlap."""
    common = sparse.coo_array(filled @ others.T)
    area, other_area = filled.sum(axis=1), others.sum(axis=1)
    best = np.zeros(filled.shape[0])
    union = area[common.row] + other_area[common.col] - common.data
    np.maximum.at(best, common.row, common.data.astype(np.float64) / union)
    return best
