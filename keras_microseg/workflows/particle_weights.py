"""Workflow `particles convert-weights`: a Matterport weight file becomes a model for `particles detect`."""

from __future__ import annotations

import os

from keras_microseg.checks import UserError
from keras_microseg.workflows.steps import file_hash, now, run_facts


def convert_weights(weights: str | os.PathLike, out: str | os.PathLike, *, tile: int = 1024) -> list[str]:
    """Read a weight file, write a `.keras` model that also detects by itself.

    Args:
        weights: `.h5` of the Matterport code with both heads; backbone and number of classes are read from it.
        out: `.keras` file.
        tile: side of the tiles, a multiple of 64. Results differ from the original, which resizes whole images to one
            canvas: here images keep their resolution and are cut into tiles.

    Returns:
        Lines that tell what was loaded.

    Raises:
        FileError: not such a file; missing or unfitting layers are named.
    """
    if not str(out).endswith(".keras"):
        raise UserError(f"`out` must end in .keras. Received: out={os.fspath(out)!r}")
    from keras_microseg import backend

    backend.select()
    from keras_microseg.models.matterport_weights import model_from_matterport
    from keras_microseg.models.saving import save_model

    model, report = model_from_matterport(weights, tile_size=tile)
    names = ["particle"] if model.settings.num_classes == 2 else [
        f"class_{k}" for k in range(1, model.settings.num_classes)
    ]  # fmt: skip
    card = {
        "kind": "detector",
        "name": f"Mask R-CNN of {os.path.basename(os.fspath(weights))}",
        "contrast": [0.0, 100.0],
        "categories": names,
        "overlap": tile // 4,
        "scale": 1.0,
        "min_score": model.settings.min_score,
        "source": {"weights": os.path.basename(os.fspath(weights)), "sha256": file_hash(weights)},
        "made": {**run_facts(), "at": now()},
    }
    save_model(model, out, card)
    return str(report).splitlines()
