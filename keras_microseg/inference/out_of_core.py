"""Segmenting images that do not fit in memory: tile by tile to disk, then block by block to labels."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg.image import Image
from keras_microseg.inference.agreement import measure_stability
from keras_microseg.inference.block_labels import BLOCK, HALO, decode_large
from keras_microseg.inference.prediction import Progress, choose_tile, count_batches, predict_maps
from keras_microseg.inference.scale import diameter_of_areas
from keras_microseg.inference.segmenter import (
    Clock,
    Prepared,
    SegmentationResult,
    Segmenter,
    labels_at_full_size,
    open_grey,
    polarity_of,
)
from keras_microseg.inference.views import DiskArray, dequantize
from keras_microseg.segmentation.stitching import blocks

logger = logging.getLogger(__name__)

Slices = tuple[slice, slice]


def segment_large(
    segmenter: Segmenter,
    image: Image,
    scratch_dir: str | Path | None = None,
    *,
    polarity: str = "auto",
    diameter: float | None = None,
    scale: float | None = None,
    threshold: float | str | None = None,
    min_area: float | None = None,
    flips: bool | int = False,
    info_bar: bool = True,
    quality: bool = False,
    block: int = BLOCK,
    halo: int = HALO,
    progress: Progress | None = None,
) -> SegmentationResult:
    """Label the particles of an image of any size; arguments as in `Segmenter.segment`.

    Memory depends on `block`, not on the image. `scratch_dir` takes about 20 bytes per pixel while running. A run
    that was interrupted goes on where its maps ended when called again with the same folder, image and settings.

    Args:
        segmenter: the model.
        image: lazy `Image`, axes `YX` or `YXC`.
        scratch_dir: folder for scratch files, made when missing. When done, only `labels.dat` stays; it holds the
            result and is the caller's to remove. None takes the system's folder for temporary files; `labels.dat` is
            removed with the last reference to the result then.
        block: side of a block, px at the working scale.
        halo: context on each side in which touching particles are flooded; more than the largest of them.
        progress: called with (batches done, batches in all) of the network.

    Returns:
        Result whose `labels` are a `DiskArray`: (H, W) int32, read by windows.
    """
    clock = Clock()
    image, grey, bar = open_grey(image, info_bar)
    prepared = Prepared(segmenter, grey, polarity, flips)
    scale = prepared.find_scale(diameter) if scale is None else scale
    view = prepared.input_view(scale)
    clock.note("scale")
    outputs = segmenter.predictor.outputs
    tile = segmenter.tile or choose_tile(view.shape, segmenter.predictor.halo, segmenter.predictor.multiple_of)
    folder = Path(tempfile.mkdtemp(prefix="keras_microseg_") if scratch_dir is None else scratch_dir)
    height, width = image.spatial_shape[-2:]
    labels = DiskArray(folder / "labels.dat", (height, width), np.int32)
    if scratch_dir is None:
        weakref.finalize(labels, shutil.rmtree, folder, ignore_errors=True)
    batches = count_batches(segmenter.predictor, view.shape, tile, segmenter.batch_size)
    key = {
        "image": [image.path, list(image.shape), str(image.dtype)], "limits": view.limits, "inverted": view.inverted,
        "scale": scale, "tile": tile, "flips": flips, "batch": segmenter.batch_size, "model": segmenter.source,
        "sample": hashlib.sha256(np.ascontiguousarray(view[:64, :64])).hexdigest(), "card": segmenter.card,
    }  # fmt: skip
    maps, done = _open_maps(folder, key, (*view.shape, len(outputs)), batches)
    predict_maps(
        segmenter.predictor, view, tile=tile, batch_size=segmenter.batch_size, flips=flips, out=maps, done=done,
        progress=progress,
    )  # fmt: skip
    clock.note("network")
    settings = segmenter.settings(scale, min_area, None, np.zeros(0))
    if threshold is not None:
        values = _histogram_sample(maps, segmenter.foreground, block)
        settings = segmenter.settings(scale, min_area, threshold, values)
    small, areas = decode_large(maps, outputs, settings, folder, block=block, halo=halo)
    foreground = _ForegroundView(maps, outputs, segmenter.foreground)
    samples: list[tuple[np.ndarray, np.ndarray]] = []
    for number, window in enumerate(blocks(grey.shape, block)):
        part = labels_at_full_size(small, foreground, settings.threshold, grey.shape, window)
        labels[window] = part
        if number % max(1, (height * width) // (block**2 * 8)) == 0:
            samples.append((grey[window].ravel()[::7], part.ravel()[::7]))
    for path in ("maps.dat", "done.dat", "key.json", "small.dat"):
        (folder / path).unlink(missing_ok=True)
    clock.note("labels")
    stability = None
    if quality:
        above = _Rows(labels, grey.shape[0])
        stability = measure_stability(above, prepared.relabel(scale, min_area, settings.threshold))
        clock.note("quality")
    found = diameter_of_areas(areas)
    logger.info("%s: %d particles, scale %.3g, %.0f s.", image.name, np.count_nonzero(areas), scale, clock.total)
    return SegmentationResult(
        labels=labels,
        scale=scale,
        diameter=None if found is None else found / scale,
        polarity=polarity_of(*(np.concatenate(values) for values in zip(*samples, strict=True))),
        threshold=settings.threshold,
        info_bar_row=bar,
        stability=stability,
        seconds=clock.seconds,
    )


class _Rows:
    """The first rows of an array, read by windows."""

    def __init__(self, array: Any, rows: int):
        self.array, self.shape, self.dtype = array, (rows, array.shape[1]), array.dtype

    def __getitem__(self, key: Slices) -> np.ndarray:
        return self.array[key]


class _ForegroundView:
    """One channel of maps on disk, 0..1."""

    def __init__(self, maps: DiskArray, outputs: Sequence[str], channel: int):
        self.maps, self.name, self.channel, self.shape = maps, outputs[channel], channel, maps.shape[:2]

    def __getitem__(self, key: Slices) -> np.ndarray:
        return dequantize(self.maps[(*key, slice(self.channel, self.channel + 1))], [self.name])[..., 0]


def _open_maps(folder: Path, key: dict, shape: tuple[int, ...], batches: int) -> tuple[DiskArray, DiskArray]:
    """Scratch files of the maps and of the batches done; those of an interrupted run when they belong to `key`."""
    note, text = folder / "key.json", json.dumps(key, sort_keys=True, default=str)
    same = note.is_file() and note.read_text() == text
    maps = DiskArray(folder / "maps.dat", shape, np.uint8, keep=same)
    done = DiskArray(folder / "done.dat", (batches,), np.uint8, keep=same)
    note.write_text(text)
    if same and done[...].any():
        logger.info("Going on with %d of %d batches done.", np.count_nonzero(done[...]), batches)
    return maps, done


def _histogram_sample(maps: DiskArray, channel: int, block: int) -> np.ndarray:
    """Foreground values of every 4th pixel in both directions, float32, for an automatic threshold."""
    parts = [maps[window][::4, ::4, channel].ravel() for window in blocks(maps.shape[:2], block)]
    return dequantize(np.concatenate(parts)[:, np.newaxis], ["foreground"])[:, 0]
