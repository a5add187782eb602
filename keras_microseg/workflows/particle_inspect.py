"""Workflow `particles inspect`: one page that shows every stage of a detector on one tile of an image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_microseg import io
from keras_microseg.checks import UserError


def inspect_particles(
    image: str | os.PathLike,
    model: str | os.PathLike,
    out: str | os.PathLike,
    *,
    corner: tuple[int, int] | None = None,
    min_score: float | None = None,
    labels: str | os.PathLike | None = None,
) -> Path:
    """Write `inspect.html`: anchors, scores, proposals, regions, masks, activations, weights.

    Args:
        image: file of an image.
        model: `.keras` file of `particles train` or `convert-weights`.
        out: folder for the page.
        corner: (y, x) of the tile, pixels of the image at the model's scale; None = the middle of the image.
        min_score: least score of the objects pasted; None = the model's.
        labels: true label image, to show the true boxes.

    Returns:
        Path of the page.

    Raises:
        UserError: a corner outside of the image; no detector.
    """
    from keras_microseg import backend

    backend.select()
    from keras_microseg.data.boxes import object_image_from_labels, read_channels, stretch_contrast
    from keras_microseg.inference.instances import InstancePredictor
    from keras_microseg.report.overlays import draw_outlines
    from keras_microseg.report.page import write_page
    from keras_microseg.report.stages import stage_sections

    predictor = InstancePredictor(model)
    network, size, scale = predictor.model, predictor.tile, float(predictor.card.get("scale", 1.0))
    opened = io.open_image(image)
    values = stretch_contrast(read_channels(opened, predictor.channels), predictor.contrast)
    truth = None
    if labels is not None:
        boxes = object_image_from_labels(str(labels), values, np.asarray(io.read_labels(labels).data)).boxes
        truth = boxes * scale
    if scale != 1:
        from skimage.transform import rescale

        values = rescale(values, scale, order=1, channel_axis=-1 if values.ndim == 3 else None).astype(np.float32)
    height, width = values.shape[:2]
    if corner is None:
        corner = (max(0, (height - size) // 2), max(0, (width - size) // 2))
    y, x = corner
    if not (0 <= y < height and 0 <= x < width):
        raise UserError(f"`corner` must lie within {height} x {width} pixels. Received: corner={corner}")
    tile = np.full((size, size, *values.shape[2:]), values.mean(), np.float32)
    part = values[y : y + size, x : x + size]
    tile[: part.shape[0], : part.shape[1]] = part
    batch = np.repeat(tile[None, ..., None], predictor.channels, axis=-1) if tile.ndim == 2 else tile[None]
    stages = {key: value if key == "anchors" else value[0] for key, value in network.inspect(batch).items()}
    features = backend.compile_predict(network.pyramid)(batch)
    activations = {
        f"P{level + 2}, {maps.shape[1]} x {maps.shape[2]}: the channels that vary most": maps[0]
        for level, maps in enumerate(features[:4])
    }
    least = predictor.card.get("min_score", 0.5) if min_score is None else min_score
    found = predictor(tile, min_score=least, stretched=True)
    grey = tile if tile.ndim == 2 else tile.mean(axis=-1)
    if truth is not None:
        truth = truth - np.array([y, x, y, x])
        centres = (truth[:, :2] + truth[:, 2:]) / 2
        truth = truth[((centres >= 0) & (centres < size)).all(axis=1)]
    sections = stage_sections(
        grey,
        stages,
        strides=network.settings.strides,
        ratios=len(network.settings.anchor_ratios),
        weights={layer.name: layer.get_weights() for layer in network.weighted_layers()},
        activations=activations,
        outlines=draw_outlines(grey, found.labels),
        truth=truth,
    )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    return write_page(
        out / "inspect.html",
        f"{Path(image).name}: what the detector does",
        sections,
        subtitle=f"{predictor.card.get('name', model)}; tile of {size} px at ({y}, {x}), scale {scale:g}",
        cards={"detections": int((stages["valid"] > 0).sum()), f"objects above {least:g}": len(found.table)},
    )
