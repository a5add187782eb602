"""Workflow `mineral view`: the map of `mineral predict` as a page that opens in any browser."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from keras_microseg.checks import FileError
from keras_microseg.image import PixelSize
from keras_microseg.io.map_store import CLASSES, GREY, MapStore
from keras_microseg.io.palettes import Mineral, Palette
from keras_microseg.report.map_viewer import PAGE, write_map_viewer
from keras_microseg.workflows.mineral_predict import FACTS, STORE
from keras_microseg.workflows.steps import Progress, read_json

FOLDER = "view"


def view(
    result: str | os.PathLike, *, max_pixels: float = 4e8, title: str | None = None, progress: Progress | None = None
) -> Path:
    """Write `view/index.html` into the folder of a map.

    Args:
        result: folder of `mineral predict`.
        max_pixels: of the finest level on the page; the whole map where it has no more.
        title: of the page; None = name of the image.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        FileError: no finished map there.
    """
    result = Path(result)
    if not (result / FACTS).is_file():
        raise FileError(result, f"holds no finished map ({FACTS} is missing).", "Run `mineral predict` to its end.")
    facts = read_json(result / FACTS)
    store = MapStore(result / STORE)
    grey, classes = ([store.lazy(name, level) for level in range(store.num_levels(name))] for name in (GREY, CLASSES))
    palette = Palette(tuple(Mineral(int(k), name, tuple(facts["colours"][k])) for k, name in facts["classes"].items()))
    # shares from the finest level that is read in a moment
    level = next((level for level in classes if np.prod(level.shape) <= 2.5e7), classes[-1])
    counts = np.bincount(np.asarray(level[...]).ravel(), minlength=256)
    known = max(sum(int(counts[m.id]) for m in palette.minerals), 1)
    size = facts.get("pixel_size")
    for done, total in write_map_viewer(
        result / FOLDER, grey, classes, palette,
        pixel_size=None if size is None else PixelSize(tuple(size["size"]), size["unit"]),
        shares={m.id: counts[m.id] / known for m in palette.minerals},
        title=title or Path(facts["image"]).name, max_pixels=max_pixels,
    ):  # fmt: skip
        if progress is not None:
            progress("view", done, total, result.name)
    return result / FOLDER / PAGE
