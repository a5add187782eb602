"""Workflow `volume predict`: a network over a volume of any size; probability maps on disk, resumably."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import UserError, check_choice, check_number, parse_bytes
from keras_microseg.inference.views import ThresholdView
from keras_microseg.intensity import Normalizer, volume_statistics
from keras_microseg.tiling import slab_thickness, slabs
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps, write_json
from keras_microseg.workflows.tomography_prepare import KINDS

BLENDINGS = ("linear", "hann", "gaussian", "none")
_HOW: dict[str, Any] = {"metadata": {"lasting": False}}  # settings that do not decide about the result


@dataclasses.dataclass(frozen=True)
class PredictVolumeSettings:
    """What to predict, and how.

    Attributes:
        volume: anything `io.open_volume` knows.
        model: `"spheres3d"` (ships with the package) or the path of a model file.
        diameter: typical diameter of the objects, voxels; the volume is brought to the scale that the model works at.
        scale: that factor itself.
        maps: maps to write; None = all that the model makes.
        flips: 0, 4, 8 or 16 mirrored and turned copies to average over.
        spread: write how far the copies disagree (`spread`), twice their standard deviation.
        planes: 1, or 3 to average a 2D or 2.5D model over slices along z, y and x.
        blend: `"linear"`, `"hann"`, `"gaussian"`, or `"none"` (windows keep their inner part).
        tile, halo: window of the network and voxels that windows share; None = by `max_ram` and by the model.
        normalization: `"volume"`: by the model's rule, from this volume; `"model"`: the grey values of the training.
        precision: `"uint8"` (0..255 stands for 0..1) or `"float16"`.
        kind: format of the maps, `zarr`, `tif` or `npy`.
        voxel_size, dataset: see `StackSettings`.
        max_ram: bytes to work with.
        report: write `report.html`.
    """

    volume: str
    model: str = "spheres3d"
    diameter: float | None = None
    scale: float | None = None
    maps: tuple[str, ...] | None = None
    flips: int = 0
    spread: bool = False
    planes: int = 1
    blend: str = "linear"
    tile: int | tuple[int, int, int] | None = None
    halo: int | tuple[int, int, int] | None = None
    normalization: str = "volume"
    precision: str = "uint8"
    kind: str = "zarr"
    voxel_size: str | None = None
    dataset: str | None = None
    max_ram: str = dataclasses.field(default="2GB", **_HOW)
    report: bool = dataclasses.field(default=True, **_HOW)

    def __post_init__(self) -> None:
        check_choice("flips", self.flips, (0, 4, 8, 16))
        check_choice("planes", self.planes, (1, 3))
        check_choice("blend", self.blend, BLENDINGS)
        check_choice("normalization", self.normalization, ("volume", "model"))
        check_choice("precision", self.precision, ("uint8", "float16"))
        check_choice("kind", self.kind, KINDS)
        parse_bytes(self.max_ram)
        for name in ("diameter", "scale"):
            if getattr(self, name) is not None:
                check_number(name, getattr(self, name), minimum=0, exclusive=True)
        if self.spread and not self.flips:
            raise UserError("`spread` compares mirrored copies and needs `flips` (4, 8 or 16).")


def predict(
    settings: PredictVolumeSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Probability maps of a volume.

    Args:
        settings: what and how.
        out: folder; gets `<map>.zarr` per map, `classes.zarr` for models of classes, `prediction.json`, `report.html`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Returns:
        Path of every map by name.

    Raises:
        UserError, FileError: see `inference.volumes.predict_volume`.
    """
    source = io.open_volume(settings.volume, dataset=settings.dataset, voxel_size=settings.voxel_size)
    folder = RunFolder(out, settings, command="volume predict", resume=resume, overwrite=overwrite, progress=progress)

    def run(folder: RunFolder) -> None:
        from keras_microseg.inference.volumes import open_volume_predictor, predict_volume

        predictor = open_volume_predictor(settings.model, planes=settings.planes)
        names = [*predictor.outputs, *(["spread"] if settings.spread else [])]
        wanted = [check_choice("maps", name, names) for name in settings.maps or names]
        for name in wanted:
            folder.file(f"{name}.{settings.kind}")
        if settings.scale is not None and settings.diameter is not None:
            raise UserError("Give `scale` or `diameter`, not both.")
        result = predict_volume(
            predictor,
            source,
            folder.path,
            suffix=f".{settings.kind}",
            maps=wanted,
            normalizer=_of_training(predictor.card) if settings.normalization == "model" else None,
            diameter=settings.diameter,
            scale=settings.scale,
            tile=settings.tile,
            halo=settings.halo,
            flips=settings.flips,
            spread=settings.spread,
            blend=None if settings.blend == "none" else settings.blend,
            dtype=settings.precision,
            max_ram=settings.max_ram,
            resume=True,  # the folder has been checked; finished slabs of these settings are kept
            progress=lambda done, total: folder.progress and folder.progress("predict", done, total, source.name),
        )
        classes = predictor.card.get("classes")
        if classes:
            _write_classes(result.paths, classes, folder.file(f"classes.{settings.kind}"), settings.max_ram)
        facts = {
            "volume": settings.volume, "model": predictor.source, "name": predictor.card.get("name"),
            "normalization": result.normalizer.to_dict(), "scale": result.scale, "tile": result.tile,
            "threshold": predictor.card.get("decode", {}).get("threshold", 0.5),
            "blend": result.blend, "maps": {name: path.name for name, path in result.paths.items()}, "classes": classes,
        }  # fmt: skip
        write_json(folder.file("prediction.json"), facts)

    def report(folder: RunFolder) -> None:
        _report(folder, settings, source)

    run_steps(folder, [Step("predict", run), *([Step("report", report)] if settings.report else [])])

    state = read_json(folder.path / "prediction.json")
    paths = {name: folder.path / file for name, file in state["maps"].items()}
    return paths | ({"classes": folder.path / f"classes.{settings.kind}"} if state["classes"] else {})


def _of_training(card: dict[str, Any]) -> Normalizer:
    rule = card.get("normalization", {})
    if "low" not in rule:
        raise UserError("The model does not store the grey values of its training. Use normalization='volume'.")
    return Normalizer("percentile" if rule["mode"] == "percentile" else rule["mode"], rule["low"], rule["high"])


def _write_classes(paths: dict[str, Path], classes: int, out_path: Path, max_ram: str) -> None:
    """The most probable class of every voxel, uint8."""
    sources = [io.open_volume(paths[f"class_{i}"]) for i in range(classes) if f"class_{i}" in paths]
    if len(sources) < classes:
        return
    first = sources[0]
    with io.create_volume(
        out_path, first.shape, np.uint8, voxel_size=first.pixel_size, facts={"classes": classes}
    ) as out:
        for slab in slabs(first.shape[0], slab_thickness(first.shape, max_ram, 6 * classes)):
            out[slab.write] = np.argmax(np.stack([np.asarray(s.data[slab.write]) for s in sources]), axis=0)


def _report(folder: RunFolder, settings: PredictVolumeSettings, source: Any) -> None:
    from keras_microseg.image import Image
    from keras_microseg.report.page import Section, Table, write_page
    from keras_microseg.report.volumes import orthogonal_views, volume_sections

    facts = read_json(folder.path / "prediction.json")
    name = "foreground" if "foreground" in facts["maps"] else next(iter(facts["maps"]))
    found = io.open_volume(folder.path / facts["maps"][name])
    mask = Image(ThresholdView(found.data, 127 if settings.precision == "uint8" else 0.5), "ZYX", found.pixel_size)
    statistics = volume_statistics(source.data, max_ram=settings.max_ram)
    shown = {"Model": facts["name"], "Scale": facts["scale"], "Windows": facts["tile"], "Blending": facts["blend"]}
    sections = volume_sections(source, statistics, labels=mask, facts=shown, outlines=f"{name} > 0.5")
    parts = [Section(f"Map: {key}", orthogonal_views(io.open_volume(folder.path / file), limits=None))
             for key, file in facts["maps"].items()]  # fmt: skip
    values = volume_statistics(found.data, max_ram=settings.max_ram)
    share = float(values.counts[values.centres > (127 if settings.precision == "uint8" else 0.5)].sum() / values.count)
    sections[2:2] = parts
    sections.append(Section("Settings", [Table({key: str(value) for key, value in facts.items()})]))
    write_page(
        folder.file("report.html"), "Prediction", sections, cards={f"of the voxels are {name}": f"{share:.2%}"},
        subtitle=f"{source.name} \u00b7 {folder.manifest['package']}",
    )  # fmt: skip
