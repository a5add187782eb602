"""Workflow `mineral run`: from the pair of an SEM micrograph and a mineral map to modal mineralogy and a report.

clean -> register -> masks -> tiles -> train -> predict -> evaluate -> quantify -> report. Every step reads and writes
folders, so each can be repeated, replaced or looked at; an interrupted run goes on where it ended.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_choice
from keras_microseg.io.images import write_tiff
from keras_microseg.io.micrographs import open_micrograph
from keras_microseg.io.palettes import read_palette
from keras_microseg.segmentation.grey_classes import GreyClasses, GreyClassified, fit_grey_classes
from keras_microseg.workflows import (
    mineral_clean,
    mineral_evaluate,
    mineral_quantify,
    mineral_register,
    mineral_report,
    mineral_tiles,
)
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps, write_json

METHODS = ("network", "thresholds")
_PARTS = {
    "clean": mineral_clean.CleanSettings,
    "register": mineral_register.RegisterSettings,
    "tiles": mineral_tiles.TileSettings,
    "quantify": mineral_quantify.QuantifySettings,
}


@dataclasses.dataclass(frozen=True)
class MineralRunSettings:
    """The whole path.

    Attributes:
        sem: micrograph.
        mineral_map: colour-coded map of the same sample.
        method: "network": train one on the pair; "thresholds": grey values only, no training.
        pixel_size: of the micrograph, like "0.3um"; "px" measures in pixels; None = from its file.
        palette: of the map; None = the 24 colours of the package.
        references: tables to compare with, see `QuantifySettings`.
        clean, register, tiles, train, predict, quantify: changes to the settings of the steps; `train` also knows
            `preset`, and hardly varies grey values unless told to (`mineral_train_settings.SAME_GREY`).
    """

    sem: str
    mineral_map: str
    method: str = "network"
    pixel_size: str | None = None
    palette: str | None = None
    references: tuple[str, ...] = ()
    clean: dict[str, Any] = dataclasses.field(default_factory=dict)
    register: dict[str, Any] = dataclasses.field(default_factory=dict)
    tiles: dict[str, Any] = dataclasses.field(default_factory=dict)
    train: dict[str, Any] = dataclasses.field(default_factory=dict)
    predict: dict[str, Any] = dataclasses.field(default_factory=dict)
    quantify: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_choice("method", self.method, METHODS)
        object.__setattr__(self, "references", tuple(str(r) for r in self.references))
        for part, kind in _PARTS.items():
            unknown = set(getattr(self, part)) - {f.name for f in dataclasses.fields(kind)}
            if unknown:
                known = ", ".join(f.name for f in dataclasses.fields(kind))
                raise UserError(f"Unknown settings of {part}: {', '.join(sorted(unknown))}. Known are {known}.")
        if self.tiles.get("reduce", 1) != 1:
            raise UserError("In a run the working pixel is set by `clean`: use clean={'reduce': ...}, not tiles.")


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Settings of a run from a JSON file: fields of `MineralRunSettings`, parts as nested objects.

    Raises:
        FileError: unreadable, or names that are no setting.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check the name.") from error
    except ValueError as error:
        raise FileError(
            path, f"is no JSON ({error}).", 'Write {"method": "thresholds", "tiles": {"tile": 256}}.'
        ) from error
    known = {field.name for field in dataclasses.fields(MineralRunSettings)}
    unknown = sorted(set(values) - known) if isinstance(values, dict) else ["(not an object)"]
    if unknown:
        raise FileError(path, f"has unknown settings: {', '.join(unknown)}.", f"Known are {', '.join(sorted(known))}.")
    return values


def run(
    settings: MineralRunSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Run all steps.

    Args:
        settings: what and how.
        out: folder; gets `clean/`, `register/`, `masks/`, `tiles/`, `model/`, `maps/`, `evaluate/`, `tables/` and
            `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError, FileError: see the steps.
    """
    read_palette(settings.palette)
    open_micrograph(settings.sem, settings.pixel_size, grey=True, sized=True)
    if not Path(settings.mineral_map).is_file():
        raise FileError(settings.mineral_map, "does not exist.", "Check the path and the spelling.")
    folder = RunFolder(out, settings, command="mineral run", resume=resume, overwrite=overwrite, progress=progress)
    steps = [Step("clean", _clean), Step("register", _register), Step("masks", _masks), Step("tiles", _tiles)]
    if settings.method == "thresholds":
        steps += [Step("fit thresholds", _fit), Step("predict", _predict_thresholds)]
    else:
        steps += [Step("train", _train), Step("predict", _predict_network), Step("view", _view)]
    steps += [Step("evaluate", _evaluate), Step("quantify", _quantify), Step("report", _report, always=True)]
    return run_steps(folder, steps)


def _options(folder: RunFolder) -> dict[str, Any]:
    return {"resume": True, "progress": folder.progress}


def _clean(folder: RunFolder) -> None:
    asked = folder.settings
    common = {"palette": asked.palette, "pixel_size": asked.pixel_size}
    settings = mineral_clean.CleanSettings(asked.sem, asked.mineral_map, **{**common, **asked.clean})
    mineral_clean.clean(settings, folder.directory("clean"), **_options(folder))


def _register(folder: RunFolder) -> None:
    settings = mineral_register.RegisterSettings(str(folder.path / "clean"), **folder.settings.register)
    mineral_register.register(settings, folder.directory("register"), **_options(folder))


def _masks(folder: RunFolder) -> None:
    settings = mineral_register.MaskSettings(str(folder.path / "clean"), str(folder.path / "register"))
    mineral_register.masks(settings, folder.directory("masks"), **_options(folder))


def _tiles(folder: RunFolder) -> None:
    image = io.open_image(folder.path / "clean" / mineral_clean.SEM)
    edge = min(256, max(32, min(image.shape) // 6 // 32 * 32))
    changes = {"tile": edge, "absent": "allow", **folder.settings.tiles}
    settings = mineral_tiles.TileSettings((str(folder.path / "masks"),), **changes)
    mineral_tiles.tiles(settings, folder.directory("tiles"), **_options(folder))


def _listed(folder: RunFolder, part: str) -> list[dict[str, Any]]:
    return [tile for tile in read_json(folder.path / "tiles" / mineral_tiles.TILES)["tiles"] if tile["part"] == part]


def fit_thresholds(run_dir: Path) -> GreyClasses:
    """Thresholds from the training tiles of a run."""
    tiles = run_dir / "tiles"
    facts = read_json(tiles / mineral_tiles.TILES)
    pairs = (
        (io.open_image(tiles / tile["image"]).read(), io.open_image(tiles / tile["mask"], raw_palette=True).read())
        for tile in facts["tiles"]
        if tile["part"] == "train"
    )
    return fit_grey_classes(pairs, len(facts["classes"]))


def _fit(folder: RunFolder) -> None:
    write_json(folder.file("thresholds.json"), fit_thresholds(folder.path).to_dict())


def _predict_thresholds(folder: RunFolder) -> None:
    image = io.open_image(folder.path / "clean" / mineral_clean.SEM)
    classified = GreyClassified(image.data, GreyClasses.from_dict(read_json(folder.path / "thresholds.json")))
    io.check_disk_space(folder.path, classified.nbytes, "the map")
    write_tiff(folder.file("maps", "classes.tif"), classified, "YX", image.pixel_size)


def _train(folder: RunFolder) -> None:
    from keras_microseg.workflows import mineral_train
    from keras_microseg.workflows.mineral_train_settings import SAME_GREY, preset

    # one micrograph: every class where it occurs, at its own grey values
    changes = {"augment": SAME_GREY, "focus": 0.0, **folder.settings.train}
    name, data = changes.pop("preset", "cpu"), str(folder.path / "tiles")
    edge = read_json(folder.path / "tiles" / mineral_tiles.TILES)["tile"]
    changes.setdefault("tile", min(edge // 32 * 32, 256 if name == "gpu" else 128))
    settings = preset(name, data, **changes)
    mineral_train.train(settings, folder.directory("model"), **_options(folder))


def _predict_network(folder: RunFolder) -> None:
    from keras_microseg.workflows import mineral_predict
    from keras_microseg.workflows.mineral_train import MODEL

    image, model = folder.path / "clean" / mineral_clean.SEM, folder.path / "model" / MODEL
    # the tiles were cut from this very image, so the network works at its pixels
    options = {"working_pixel_size": "native", **folder.settings.predict}
    settings = mineral_predict.MapSettings((str(image),), str(model), **options)
    found = mineral_predict.predict(settings, folder.directory("maps"), **_options(folder))
    for failure in found.failures:
        raise UserError(failure.message)


def _view(folder: RunFolder) -> None:
    from keras_microseg.workflows import mineral_view

    mineral_view.view(folder.path / "maps", progress=folder.progress)


def map_path(run_dir: Path) -> Path:
    """The map of classes in the folder of a run."""
    found = mineral_quantify.find_map(run_dir / "maps")
    if found is None:
        raise FileError(run_dir / "maps", "holds no map of classes.", "Run the step again with --overwrite.")
    return found


def _evaluate(folder: RunFolder) -> None:
    """Errors on the held-out tiles, beside those of methods without a network."""
    if not _listed(folder, "validation") + _listed(folder, "test"):
        return
    edge = read_json(folder.path / "tiles" / mineral_tiles.TILES)["tile"]
    settings = mineral_evaluate.EvaluateSettings(str(map_path(folder.path)), str(folder.path / "tiles"), block=edge)
    mineral_evaluate.evaluate(settings, folder.directory("evaluate"), **_options(folder))


def _quantify(folder: RunFolder) -> None:
    asked = folder.settings
    confusion = folder.path / "evaluate" / mineral_evaluate.CONFUSION
    settings = mineral_quantify.QuantifySettings(
        str(map_path(folder.path)), str(folder.path / "tiles" / mineral_tiles.CLASSES), str(folder.path / "clean"),
        **{
            "confusion": str(confusion) if confusion.is_file() else None,
            "references": asked.references,
            "pixel_size": "px" if asked.pixel_size == "px" else None,
            **asked.quantify,
        },
    )  # fmt: skip
    mineral_quantify.quantify(settings, folder.directory("tables"), **_options(folder))


def _report(folder: RunFolder) -> None:
    asked = folder.settings
    cleaned = read_json(folder.path / "clean" / mineral_clean.FACTS)
    tiles = read_json(folder.path / "tiles" / mineral_tiles.TILES)
    registration = read_json(folder.path / "register" / "registration.json")
    mosaic, unknown = cleaned["map"]["mosaic"], cleaned["map"]["unknown_pixels"]
    counts = {part: s["tiles"] for part, s in tiles["statistics"].items()}
    facts = {
        "micrograph": asked.sem,
        "mineral map": asked.mineral_map,
        "working pixel": f"{cleaned['factor']} x {cleaned['factor']} micrograph pixels",
        "grey value of black": cleaned["correction"]["black"],
        "fields of the micrograph": "evened out" if cleaned["correction"]["gains"] else "none found",
        "fields of the map": f"pitch {mosaic['pitch']}, overlap {mosaic['overlap']}, shear {mosaic['shear']} px"
        if mosaic
        else "none found",
        "unknown colours": f"{cleaned['map']['unknown_colours']} colours, {unknown} pixels, ignored",
        "tiles": ", ".join(f"{n} {part}" for part, n in counts.items()) + f", edge {tiles['tile']} px",
        "program": folder.manifest["package"],
    }
    warnings = []
    if unknown:
        warnings.append(f"{unknown} pixels of the mineral map have colours that are not in the palette; see clean/.")
    if tiles["absent_from_training"]:
        warnings.append(f"Not in the training tiles, so never predicted: {', '.join(tiles['absent_from_training'])}.")
    if registration["held_out_p95"] > 1:
        warnings.append("The registration is off by more than a map pixel in places: see the section below.")
    if (folder.path / "evaluate" / mineral_evaluate.CONFUSION).is_file():
        warnings += mineral_evaluate.doubts(folder.path / "evaluate")
    method = (
        "Each grey value has the class that is most frequent there in the training tiles (no network)."
        if asked.method == "thresholds"
        else "A network was trained on tiles of this pair; beside it stand thresholds and a forest from these tiles."
    )
    path = folder.file("report.html")
    mineral_report.report(
        folder.path / "tables", path, run_dir=folder.path, title=Path(asked.sem).stem, method=method, facts=facts,
        warnings=tuple(warnings),
    )  # fmt: skip
