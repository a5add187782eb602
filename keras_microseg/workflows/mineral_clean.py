"""Workflow `mineral clean`: a micrograph and its mineral map as they leave the instruments become fit for registration.

The map gets class numbers instead of colours, is freed of stray names, and its fields are found; the micrograph gets
black where nothing is, fields of one brightness, and the working pixel size.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

import numpy as np

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.io.images import write_tiff
from keras_microseg.io.micrographs import open_micrograph
from keras_microseg.io.palettes import IGNORE, read_groups, read_mineral_map, read_palette, write_palette
from keras_microseg.registration import CorrectedMicrograph, Correction, estimate_correction, find_mosaic, repair_mosaic
from keras_microseg.segmentation.class_cleaning import majority_filter, remove_islands
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps, write_json

OUTSIDE = 254
"""Number in `classes.tif` of what lies outside the sample; `palettes.IGNORE` (255) is what has no known name."""
OUTSIDE_NAMES = ("background", "outside")
MAP, SEM, CLASSES, FACTS = "classes.tif", "sem.tif", "classes.csv", "clean.json"
MAP_PIXELS = 4.0


@dataclasses.dataclass(frozen=True)
class CleanSettings:
    """What is cleaned and how.

    Attributes:
        sem: micrograph, any image or raw pixels with a header beside them.
        mineral_map: colour-coded map.
        palette: CSV or JSON of its colours; None = the 24 colours of the package.
        groups: JSON that merges minerals to classes; None = the groups of the palette.
        tolerance: largest distance of a colour that is still taken for a mineral.
        majority: edge of the majority filter, odd, map px; 1 = none.
        islands: smaller pieces take the name of what is near, map px; 0 = none.
        mosaic: look for the fields of the map; without, it counts as one field.
        fields: look for the fields of the micrograph and even out their brightness.
        reduce: micrograph pixels per working pixel; None = as leaves four to five working pixels per map pixel.
        pixel_size: of the micrograph, like "0.3um"; "px" measures in pixels; None = from its file.
    """

    sem: str
    mineral_map: str
    palette: str | None = None
    groups: str | None = None
    tolerance: float = 0.0
    majority: int = 1
    islands: int = 0
    mosaic: bool = True
    fields: bool = True
    reduce: int | None = None
    pixel_size: str | None = None

    def __post_init__(self) -> None:
        check_number("tolerance", self.tolerance, minimum=0)
        check_number("majority", self.majority, minimum=1, integer=True)
        check_number("islands", self.islands, minimum=0, integer=True)
        if self.reduce is not None:
            check_number("reduce", self.reduce, minimum=1, integer=True)


def clean(
    settings: CleanSettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Clean a pair.

    Args:
        settings: what and how.
        out: folder; gets `minerals.tif` (numbers of the palette), `classes.tif` (merged, cleaned; 254 = outside, 255 =
            unknown), `classes.csv`, `unknown_colours.csv`, `repaired.tif` and `repaired.png` where the map is a mosaic,
            `sem.tif` (corrected, working pixel size) and `clean.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: no pixel size; FileError: files that cannot be read, a palette with missing or double entries.
    """
    read_palette(settings.palette)  # problems show before anything is written
    open_micrograph(settings.sem, settings.pixel_size, grey=True, sized=True)
    folder = RunFolder(out, settings, command="mineral clean", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("map", _map), Step("micrograph", _micrograph)])


def _map(folder: RunFolder) -> None:
    asked = folder.settings
    palette = read_palette(asked.palette)
    found = read_mineral_map(asked.mineral_map, palette, tolerance=asked.tolerance)
    if found.unknown["pixels"].sum() > 0.5 * found.ids.size:
        raise FileError(
            asked.mineral_map,
            f"has more pixels of unknown colours than of known ones ({', '.join(found.unknown['colour'][:5])} ...).",
            "Pass the palette it was painted with.",
        )
    groups = None if asked.groups is None else read_groups(asked.groups)
    merged = palette.merged(groups, np.bincount(found.ids.ravel(), minlength=256))
    table = palette.merge_table(groups)[1]
    outside = [m.id for m in merged.minerals if m.name.lower() in OUTSIDE_NAMES]
    kept = [m for m in merged.minerals if m.id not in outside]
    if not kept:
        raise UserError("The palette has no class but the background.")
    renumber = np.full(256, IGNORE, np.uint8)
    renumber[outside] = OUTSIDE
    for k, mineral in enumerate(kept):
        renumber[mineral.id] = k
    renumber[IGNORE] = IGNORE
    classes = renumber[table[found.ids]]
    absent = [m.name for k, m in enumerate(kept) if not (classes == k).any()]
    classes = majority_filter(classes, asked.majority, ignore=IGNORE)
    classes, removed = remove_islands(classes, asked.islands, ignore=IGNORE)
    legend = type(palette)(tuple(dataclasses.replace(m, id=k) for k, m in enumerate(kept)))
    facts: dict[str, Any] = {
        "shape": classes.shape,
        "unknown_pixels": int(found.unknown["pixels"].sum()),
        "unknown_colours": len(found.unknown),
        "replaced_pixels": found.replaced,
        "islands_removed": removed,
        "absent_classes": absent,
        "mosaic": None,
    }
    pixel_options = {"axes": "YX", "pixel_size": None, "compress": True}
    write_tiff(folder.file("minerals.tif"), found.ids, **pixel_options)
    write_tiff(folder.file(MAP), classes, **pixel_options)
    write_palette(folder.file(CLASSES), legend)
    io.write_table(folder.file("unknown_colours.csv"), found.unknown, facts={"file": asked.mineral_map})
    if asked.mosaic:
        try:
            mosaic = find_mosaic(classes)
        except UserError as error:
            facts["mosaic_note"] = str(error)
        else:
            repaired, valid = repair_mosaic(classes, mosaic, fill=IGNORE)
            write_tiff(folder.file("repaired.tif"), repaired, **pixel_options)
            io.write_image(folder.file("repaired.png"), paint(legend, repaired))
            facts["mosaic"] = {
                **dataclasses.asdict(mosaic),
                "borders": mosaic.borders,
                "repaired_shape": repaired.shape,
                "covered": float(valid.mean()),
            }
    write_json(folder.file("map.json"), facts)


def _micrograph(folder: RunFolder) -> None:
    asked = folder.settings
    image = open_micrograph(asked.sem, asked.pixel_size, grey=True, sized=True)
    facts = read_json(folder.path / "map.json")
    correction = estimate_correction(image.data, fields=asked.fields)
    per_map = float(np.sqrt(np.prod(image.shape, dtype=float) / np.prod(facts["shape"], dtype=float)))
    factor = asked.reduce or max(1, int(per_map / MAP_PIXELS))
    size = None if image.pixel_size is None else image.pixel_size.scaled(1 / factor)
    small = CorrectedMicrograph(image.data, correction, factor=factor)
    io.check_disk_space(folder.path, small.nbytes, "the corrected micrograph")
    write_tiff(folder.file(SEM), small, "YX", size)
    write_json(
        folder.file(FACTS),
        {
            "sem": str(Path(asked.sem).resolve()),
            "sem_shape": image.shape,
            "pixel_size": None if size is None else {"size": size.size, "unit": size.unit},
            "factor": factor,
            "correction": correction.to_dict(),
            "map": facts,
        },
    )


def read_correction(clean_dir: str | os.PathLike) -> tuple[Correction, int]:
    """Correction and working factor of a folder of `clean`."""
    facts = read_json(Path(clean_dir) / FACTS)
    return Correction.from_dict(facts["correction"]), int(facts["factor"])


def paint(legend: Any, classes: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 picture of class numbers; outside is black, unknown mid-grey."""
    picture = legend.paint(classes)
    picture[classes == OUTSIDE] = 0
    return picture
