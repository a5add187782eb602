"""Workflow `mineral translate-apply`: class maps of micrographs, or micrographs of class maps, for whole folders.

Made micrographs mainly enlarge a training set: the result is a folder that `mineral train` reads.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError
from keras_microseg.data.map_tiles import TEST, TRAIN, VALIDATION
from keras_microseg.intensity import Normalizer
from keras_microseg.io.palettes import IGNORE, read_palette, write_palette
from keras_microseg.metrics.texture import compare_images
from keras_microseg.workflows.mineral_translate import MODEL, PALETTE, read_parts
from keras_microseg.workflows.mineral_translate_scores import cut_pictures, to_grey
from keras_microseg.workflows.mineral_translate_settings import TranslateSettings
from keras_microseg.workflows.steps import Progress, RunFolder, Step, item_names, run_steps, write_json

LIKENESS = "likeness.json"


def translate(
    inputs: str | os.PathLike,
    out: str | os.PathLike,
    *,
    model: str | os.PathLike,
    real: str | os.PathLike | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Class maps of micrographs, or micrographs of class maps, for every file of a folder.

    Args:
        inputs: folder or file; micrographs, or masks of class numbers, as the model wants.
        out: folder. Classes: `masks/NAME.png`. Micrographs: a training set, `train/NAME.tif` with
            `train_annot/NAME.png` and `classes.csv`; with `real` also `likeness.json`, how far the made micrographs are
            from the real training images, see `metrics.texture.compare_images`.
        model: `generator.keras` of `train`, or its folder.
        real: data folder whose pairs join the training set (for a model of micrographs): its training pairs beside the
            made ones, its validation and test pairs in `val/`, `test/`, so that nothing made is ever scored.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError, FileError: no such model, or one of another kind.
    """
    path = Path(model) / MODEL if Path(model).is_dir() else Path(model)
    settings = ApplySettings(str(inputs), str(path), None if real is None else str(real))
    folder = RunFolder(
        out, settings, command="mineral translate-apply", resume=resume, overwrite=overwrite, progress=progress
    )
    steps = [Step("translate", _translate)]
    if real is not None:
        steps += [Step("join", _join), Step("compare", _compare)]
    return run_steps(folder, steps)


@dataclasses.dataclass(frozen=True)
class ApplySettings:
    """What `translate` was asked."""

    inputs: str
    model: str
    real: str | None = None


def _translate(folder: RunFolder) -> None:
    from keras_microseg import backend

    backend.select()
    from keras_microseg.inference.prediction import Predictor, predict_maps
    from keras_microseg.models.saving import load_model

    asked: ApplySettings = folder.settings
    generator, card = load_model(asked.model)
    if "direction" not in card:
        raise FileError(asked.model, "is no translation.", "Use `mineral predict` for other networks.")
    predictor = Predictor(generator, card, fold=False)
    stride = card["multiple_of"]
    tile = -(-card["training"]["tile"] // stride) * stride  # normalization over other sizes would change the picture
    view = {"tile": tile, "halo": tile // 4, "blend": "linear"}
    count = len(card["classes"])
    to_labels = card["direction"] == "labels"
    if to_labels and asked.real:
        raise UserError("A model that makes class maps adds nothing to a training set: leave `real` out.")

    def work(name: str, path: Path) -> tuple[dict[str, Any], list[Path]]:
        if to_labels:
            image = io.open_image(path)
            grey = np.atleast_3d(Normalizer.from_dict(card["normalization"])(np.asarray(io.read_grey(image))))
            classes = predict_maps(predictor, grey, **view).argmax(axis=-1).astype(np.uint8)
            target = folder.file("masks", f"{name}.png")
            io.write_image(target, classes)
            return {"pixels": np.bincount(classes.ravel(), minlength=count)}, [target]
        classes = read_mask(path, count)
        given: np.ndarray = np.where(classes < count, classes, 0)[..., np.newaxis].astype(np.float32)
        if generator.input_shape[-1] > 1:
            given = (classes[..., np.newaxis] == np.arange(count)).astype(np.float32)
        grey = to_grey(predict_maps(predictor, given, **view), card["signed"])
        files = [folder.file("train", f"made_{name}.tif"), folder.file("train_annot", f"made_{name}.png")]
        _write_grey(files[0], grey, card)
        io.write_image(files[1], classes)
        return {"pixels": np.bincount(classes.ravel(), minlength=256)[:count]}, files

    inputs = item_names(io.find_images(asked.inputs))
    folder.for_each("translate", inputs, work)
    palette = Path(asked.model).parent / PALETTE
    if palette.is_file():
        write_palette(folder.file(PALETTE), read_palette(palette))


def _join(folder: RunFolder) -> None:
    """Copies of the real pairs, in the part that they belong to."""
    from keras_microseg.data import map_pairs
    from keras_microseg.models.saving import read_card

    asked: ApplySettings = folder.settings
    card = read_card(Path(asked.model)) or {}
    trained = {**card["training"], "data": asked.real}
    parts, _, _ = read_parts(TranslateSettings(**trained))
    places = {TRAIN: "train", VALIDATION: "val", TEST: "test"}
    for part, images in parts.items():
        for image in images:
            name = f"real_{image.pair.name}" + ("" if image.pair.window is None else f"_{part}")
            scaled = Normalizer.from_dict(card["normalization"])(image.image)
            _write_grey(folder.file(places[part], f"{name}.tif"), scaled, card)
            io.write_image(folder.file(f"{places[part]}_annot", f"{name}.png"), image.classes)
    assert map_pairs.find_map_pairs(folder.path)


def _compare(folder: RunFolder) -> None:
    """Likeness of made and real training images, in tiles of the training size."""
    from keras_microseg.models.saving import read_card

    tile = (read_card(Path(folder.settings.model)) or {})["training"]["tile"]
    images = {
        kind: [
            np.asarray(io.read_grey(io.open_image(path)), np.float32) / 255
            for path in sorted((folder.path / "train").glob(f"{kind}_*.tif"))
        ]
        for kind in ("made", "real")
    }
    tile = min([tile, *(n for both in images.values() for image in both for n in image.shape)])
    real, made = (cut_pictures(images[kind], tile) for kind in ("real", "made"))
    facts = {"tile": tile, "real": len(real), "made": len(made)}
    if len(real) >= 4 and len(made) >= 2:
        facts |= compare_images(real, made)
    write_json(folder.file(LIKENESS), facts)


def _write_grey(path: Path, grey: np.ndarray, card: dict[str, Any]) -> None:
    from keras_microseg.image import PixelSize

    size = card.get("pixel_size")
    io.write_image(
        path, np.rint(np.clip(grey, 0, 1) * 255).astype(np.uint8), axes="YX",
        pixel_size=None if size is None else PixelSize(tuple(size["size"]), size["unit"]),
    )  # fmt: skip


def read_mask(path: Path, num_classes: int) -> np.ndarray:
    """(H, W) uint8 class numbers, 255 = not known.

    Raises:
        FileError: colours, or numbers that are no class of the model.
    """
    opened = io.open_image(path, raw_palette=True)
    array = np.squeeze(np.asarray(opened.read()))
    if array.ndim != 2 or array.dtype.kind not in "bui":
        raise FileError(path, "holds no class numbers.", "Use masks as `mineral tiles` writes them.")
    found = np.unique(array)
    strange = [int(n) for n in found if n >= num_classes and n != IGNORE]
    if strange:
        raise FileError(
            path, f"holds the number {strange[0]}, but the model knows {num_classes} classes.",
            "Use masks of the classes it was trained with.",
        )  # fmt: skip
    return array.astype(np.uint8)
