"""Pictures and tables of what a detector does, stage by stage: anchors, proposals, regions, masks, weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from keras_microseg.report.overlays import to_grey8
from keras_microseg.report.page import Chart, Picture, Section, Table

_DEAD = 1e-4
_HUGE = 1e3


def draw_boxes(
    image: np.ndarray, boxes: np.ndarray, values: np.ndarray | None = None, *, centres: bool = False
) -> np.ndarray:
    """Boxes on an image.

    Args:
        image: (H, W) float or uint8.
        boxes: (n, 4) `yxyx`, pixels, half-open; may reach outside.
        values: (n,) in 0..1 for their colours, blue to yellow; None = one colour.
        centres: also mark the centres.

    Returns:
        (H, W, 3) uint8.
    """
    picture = np.repeat(to_grey8(image)[..., None], 3, axis=-1)
    height, width = picture.shape[:2]
    colours = np.full((len(boxes), 3), (255, 170, 0), np.uint8)
    if values is not None and len(boxes):
        colours = (mpl.colormaps["plasma"](np.clip(values, 0, 1))[:, :3] * 255).astype(np.uint8)
    for box, colour in zip(np.asarray(boxes, float), colours, strict=True):
        top, left = (int(round(v)) for v in box[:2])
        bottom, right = (int(round(v)) - 1 for v in box[2:])
        rows, columns = slice(max(top, 0), max(bottom + 1, 0)), slice(max(left, 0), max(right + 1, 0))
        for row in (top, bottom):
            if 0 <= row < height:
                picture[row, columns] = colour
        for column in (left, right):
            if 0 <= column < width:
                picture[rows, column] = colour
        if centres:
            y, x = int((top + bottom) / 2), int((left + right) / 2)
            picture[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2] = colour
    return picture


def mask_sheet(masks: np.ndarray, *, columns: int = 10, limit: int = 60, gap: int = 2) -> np.ndarray:
    """Small masks side by side, (H, W) uint8; `masks` are (n, k, k) in 0..1."""
    masks = np.asarray(masks)[:limit]
    side = masks.shape[1] if masks.ndim == 3 else 28
    rows = max(1, -(-len(masks) // columns))
    sheet = np.full((rows * (side + gap) + gap, columns * (side + gap) + gap), 96, np.uint8)
    for k, mask in enumerate(masks):
        y, x = (gap + place * (side + gap) for place in divmod(k, columns))
        sheet[y : y + side, x : x + side] = np.clip(mask * 255, 0, 255)
    return sheet


def weight_table(weights: Mapping[str, Sequence[np.ndarray]]) -> pd.DataFrame:
    """Range and spread of every weight array, and what looks wrong with it.

    Args:
        weights: layer -> its arrays, kernel first.

    Returns:
        Columns `layer`, `array`, `shape`, `min`, `max`, `std`, `note`: "dead" when all values of a kernel are within
        1e-4, "overflow" when one exceeds 1000 or is not finite.
    """
    rows = []
    for layer, arrays in weights.items():
        for number, array in enumerate(arrays):
            array = np.asarray(array, np.float64)
            notes = []
            if array.ndim > 1 and np.ptp(array) < _DEAD:
                notes.append("dead")
            if not np.isfinite(array).all() or np.abs(array).max(initial=0) > _HUGE:
                notes.append("overflow")
            shape = " x ".join(map(str, array.shape))
            rows.append((layer, number, shape, array.min(), array.max(), array.std(), ", ".join(notes)))
    return pd.DataFrame(rows, columns=["layer", "array", "shape", "min", "max", "std", "note"])


def activation_sheet(maps: np.ndarray, *, limit: int = 16, columns: int = 8, side: int = 96) -> np.ndarray:
    """The most varied channels of a feature map (h, w, C), each stretched to its range; (H, W) uint8."""
    maps = np.asarray(maps, np.float32)
    chosen = np.argsort(-maps.std(axis=(0, 1)))[:limit]
    step = max(1, -(-max(maps.shape[:2]) // side))
    small = maps[::step, ::step, chosen]
    low, high = small.min(axis=(0, 1)), small.max(axis=(0, 1))
    tiles = np.moveaxis((small - low) / np.maximum(high - low, 1e-9), -1, 0)
    enlarge = max(1, side // max(tiles.shape[1:]))
    return mask_sheet(np.kron(tiles, np.ones((1, enlarge, enlarge))), columns=columns, limit=limit)


def stage_sections(
    image: np.ndarray,
    stages: Mapping[str, np.ndarray],
    *,
    strides: Sequence[int],
    ratios: int,
    weights: Mapping[str, Sequence[np.ndarray]],
    activations: Mapping[str, np.ndarray],
    outlines: np.ndarray,
    truth: np.ndarray | None = None,
) -> list[Section]:
    """The page's sections.

    Args:
        image: (S, S) the tile, 0..1.
        stages: of `MaskRCNN.inspect`, without the batch axis (`anchors` as they are).
        strides: of the levels with anchors.
        ratios: anchors per place.
        weights: see `weight_table`.
        activations: name -> (h, w, C).
        outlines: (S, S, 3) uint8, the detections drawn.
        truth: (n, 4) true boxes in pixels.
    """
    size = len(image)
    anchors = stages["anchors"] * size
    counts = [(-(-size // stride)) ** 2 * ratios for stride in strides]
    levels = np.split(anchors, np.cumsum(counts)[:-1])
    rows = [(f"P{k + 2}", stride, count, float(np.sqrt((level[0, 2:] - level[0, :2]).prod())))
            for k, (stride, count, level) in enumerate(zip(strides, counts, levels, strict=True))]  # fmt: skip
    middle = [level[(len(level) // 2 // ratios) * ratios :][:ratios] for level in levels]
    scores = stages["rpn_scores"]
    top = np.argsort(-scores)[:100]
    kept = stages["proposal_valid"] > 0
    valid = stages["valid"] > 0
    histogram = Figure(figsize=(6, 2.4), layout="constrained")
    axes = histogram.add_subplot()
    axes.hist(scores, bins=40, range=(0, 1), log=True)
    axes.set_xlabel("probability of an object")
    axes.set_ylabel("anchors")
    blocks = [_shown(draw_boxes(image, np.concatenate(middle)), "One place of every level, all ratios.")]
    if truth is not None:
        blocks.append(_shown(draw_boxes(image, truth), f"True boxes ({len(truth)})."))
    candidates = stages["candidates"] * size
    order = np.argsort(-stages["candidate_scores"])[:100]
    probabilities = stages["class_probabilities"][:, 1:].max(axis=-1)
    shown = kept & (probabilities > 0.5)
    numbers = {
        "anchors": len(anchors), "anchors above 0.5": int((scores > 0.5).sum()), "candidates": len(candidates),
        "proposals after suppression": int(kept.sum()),
        "proposals that look like an object": int(shown.sum()),
        "detections": int(valid.sum()),
    }  # fmt: skip
    table = weight_table(weights)
    return [
        Section("Anchors", [Table(pd.DataFrame(rows, columns=["level", "stride", "anchors", "side"])), *blocks]),
        Section(
            "Region proposals",
            [
                Table(numbers, "How many are left"),
                Chart(histogram, "Scores of all anchors."),
                _shown(draw_boxes(image, anchors[top], scores[top]), "The 100 best anchors, as they are."),
                _shown(
                    draw_boxes(image, candidates[order], stages["candidate_scores"][order]),
                    "The 100 best candidates: anchors moved and clipped, before suppression.",
                ),
                _shown(
                    draw_boxes(image, stages["proposals"][kept] * size, stages["proposal_scores"][kept]),
                    "Proposals after suppression.",
                ),
            ],
        ),
        Section(
            "Regions and classes",
            [
                _shown(
                    draw_boxes(image, stages["proposals"][shown] * size, probabilities[shown]),
                    "Proposals that are called an object, before their boxes are refined.",
                ),
                _shown(
                    draw_boxes(image, stages["refined"][shown] * size, probabilities[shown]),
                    "The same, refined, before the last suppression.",
                ),
                _shown(draw_boxes(image, stages["boxes"][valid] * size, stages["scores"][valid]), "Detections."),
            ],
        ),
        Section(
            "Masks",
            [
                Picture(mask_sheet(stages["masks"][valid]), "Predicted masks, each within its box, best first."),
                _shown(outlines, "Pasted: each object once, smaller ones on top."),
            ],
        ),
        Section("Activations", [Picture(activation_sheet(maps), name) for name, maps in activations.items()]),
        Section("Weights", [Table(table, f"{int((table['note'] != '').sum())} arrays are worth a look.")]),
    ]


def _shown(picture: np.ndarray, caption: str) -> Picture:
    """Small tiles enlarged on the page."""
    return Picture(picture, caption, width=max(512, picture.shape[1]))
