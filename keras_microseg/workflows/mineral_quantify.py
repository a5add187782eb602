"""Workflow `mineral quantify`: a mineral map of any size becomes fractions, porosity, contacts, chords, grain sizes."""

from __future__ import annotations

import dataclasses
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError, UserError, check_number
from keras_microseg.image import Image, LazyArray, PixelSize
from keras_microseg.io.palettes import IGNORE, Palette, read_palette
from keras_microseg.measurement import class_maps, composition, grains
from keras_microseg.workflows.mineral_clean import FACTS, OUTSIDE_NAMES, read_correction
from keras_microseg.workflows.mineral_register import SampleOnly
from keras_microseg.workflows.steps import Progress, RunFolder, Step, read_json, run_steps, write_json

DENSITIES = {
    "quartz": 2.65, "albite": 2.62, "k-feldspar": 2.56, "feldspar": 2.56, "kaolinite": 2.6, "illite": 2.75,
    "calcite": 2.71, "dolomite": 2.86, "pyrite": 5.0, "siderite": 3.94, "clay": 2.65,
}  # fmt: skip
"""g/cm3, used where the palette gives none."""
PORE_NAMES = ("pore", "pores", "porosity")
QUANTITIES = "quantities.json"
_FAR = 0.1  # of the sample; a correction beyond this is said


@dataclasses.dataclass(frozen=True)
class QuantifySettings:
    """What is measured.

    Attributes:
        class_map: class numbers, any image or array `io.open_image` knows.
        classes: palette of these numbers (`classes.csv`): names, densities, micro-porosities. Classes called background
            or outside do not belong to the sample.
        clean_dir: folder of `mineral clean`, whose disc bounds the sample; None = the whole map.
        confusion: `confusion.json` of `mineral evaluate` (pixels true x predicted, for each region), by which shares
            are corrected.
        correction: how, see `composition.correct_shares`.
        references: CSV files with the columns `class, fraction` (0 to 1; `porosity` counts as a class) and optionally
            `method`, such as QEMSCAN, XRD, helium.
        margin: rim of the disc left out, mineral map px.
        pixel_size: like "0.3um"; None = from the map.
        block: edge of the blocks of the bootstrap, px; None = 15 mean chords.
        confidence: level of the intervals.
        grain_windows: windows for grains; 0 leaves them out.
        window: edge of those windows, px.
        two_point_windows: windows for the two-point function.
        seed: of the bootstrap.
    """

    class_map: str
    classes: str
    clean_dir: str | None = None
    confusion: str | None = None
    correction: str = "stratified"
    references: tuple[str, ...] = ()
    margin: float = 1.0
    pixel_size: str | None = None
    block: int | None = None
    confidence: float = 0.95
    grain_windows: int = 9
    window: int = 2048
    two_point_windows: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "references", tuple(str(r) for r in self.references))
        check_number("margin", self.margin, minimum=0)
        check_number("confidence", self.confidence, minimum=0, maximum=1, exclusive=True)
        check_number("grain_windows", self.grain_windows, minimum=0, integer=True)
        check_number("window", self.window, minimum=16, integer=True)
        if self.block is not None:
            check_number("block", self.block, minimum=1, integer=True)


def quantify(
    settings: QuantifySettings,
    out: str | os.PathLike,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> RunFolder:
    """Measure a mineral map; memory does not grow with its height.

    Args:
        settings: what.
        out: folder; gets `fractions.csv`, `association.csv`, `representative_area.csv`, `convergence.csv`,
            `chords.csv`, `lineal_path.csv`, `two_point.csv`, `grains.csv`, `grain_sizes.csv`, `pore_sizes.csv`,
            `comparison.csv` and `quantities.json`.
        resume, overwrite: see `RunFolder`.
        progress: called as `progress(step, done, total, item)`.

    Raises:
        UserError: numbers in the map that the palette does not list, or a reference of an unknown class.
    """
    open_class_map(settings)
    folder = RunFolder(out, settings, command="mineral quantify", resume=resume, overwrite=overwrite, progress=progress)
    return run_steps(folder, [Step("fractions", _fractions), Step("texture", _texture), Step("grains", _grains)])


@dataclasses.dataclass(frozen=True)
class OpenedMap:
    """A class map ready to measure: numbers 0 to K - 1 of `minerals`, others belong to no sample."""

    classes: LazyArray
    minerals: tuple[Any, ...]
    pixel_size: PixelSize | None
    image: Image

    @property
    def names(self) -> list[str]:
        """Of the classes."""
        return [m.name for m in self.minerals]


def open_class_map(settings: QuantifySettings) -> OpenedMap:
    """The map of `settings`, lazily.

    Raises:
        FileError: not a class map.
    """
    size = None if settings.pixel_size in (None, "px") else settings.pixel_size
    image = open_numbers(settings.class_map, pixel_size=size)
    if image.axes != "YX" or image.dtype.kind not in "ub":
        raise FileError(
            settings.class_map, f"is no map of class numbers (axes {image.axes}, {image.dtype}).",
            "Use a grey or palette image whose values are numbers of the classes.",
        )  # fmt: skip
    palette: Palette = read_palette(settings.classes)
    kept = tuple(m for m in palette.minerals if m.name.lower() not in OUTSIDE_NAMES)
    table = np.full(256, IGNORE, np.uint8)
    for k, mineral in enumerate(kept):
        table[mineral.id] = k
    disc, factor, margin = None, 1, 0.0
    if settings.clean_dir is not None:
        correction, factor = read_correction(settings.clean_dir)
        disc = correction.disc
        facts = read_json(Path(settings.clean_dir) / FACTS)
        whole = tuple(n // factor for n in facts["sem_shape"])
        margin = settings.margin * math.sqrt(math.prod(facts["sem_shape"]) / math.prod(facts["map"]["shape"]))
        if whole != tuple(image.shape):
            raise FileError(
                settings.class_map,
                f"has {image.shape[0]} x {image.shape[1]} pixels, the micrograph of {settings.clean_dir} "
                f"{whole[0]} x {whole[1]}.",
                "Name the map that was made from that micrograph, or leave `clean_dir` out.",
            )
    listed = {m.id for m in palette.minerals}
    numbers = _Renumbered(image.data, table, listed, settings.class_map)
    size = None if settings.pixel_size == "px" else image.pixel_size
    return OpenedMap(SampleOnly(numbers, disc, factor, margin), kept, size, image)


def open_numbers(path: str | os.PathLike, *, pixel_size: str | None = None) -> Image:
    """The numbers stored in an image, or in the store of `mineral predict`, unread."""
    stored = Path(path) / "labels" / "classes"
    return io.open_image(stored if stored.is_dir() else path, raw_palette=True, pixel_size=pixel_size)


def find_map(path: str | os.PathLike) -> Path | None:
    """The map of classes that a path means: a file or store itself, or one in a folder of `mineral predict`."""
    path = Path(path)
    if path.is_file() or (path / "labels" / "classes").is_dir():
        return path
    return next((path / name for name in ("classes.ome.tif", "map.ome.zarr", "classes.tif") if (path / name).exists()),
                None)  # fmt: skip


class _Renumbered(LazyArray):
    """Numbers of the file as class numbers; complains about numbers that no class has."""

    def __init__(self, source: Any, table: np.ndarray, listed: set[int], path: str):
        self.source, self.table, self.path = source, table, path
        self.shape, self.dtype, self.chunks = tuple(source.shape), np.dtype(np.uint8), getattr(source, "chunks", None)
        self.unlisted = np.ones(256, bool)
        self.unlisted[[*listed, IGNORE]] = False

    def read_block(self, block: tuple[slice, ...]) -> np.ndarray:
        numbers = np.asarray(self.source[block])
        found = np.unique(numbers)
        wrong = [int(n) for n in found if n > IGNORE or self.unlisted[int(n)]]
        if wrong:
            shown = ", ".join(map(str, wrong[:8]))
            raise FileError(
                self.path,
                f"holds the class numbers {shown}, which the palette does not list.",
                "Pass the class list that belongs to the map; 255 stands for unknown.",
            )
        return self.table[numbers]


def _fractions(folder: RunFolder) -> None:
    asked, opened = folder.settings, open_class_map(folder.settings)
    names, size = opened.names, opened.pixel_size
    count = len(names)
    # counted in quarters of the blocks, which the curve of the representative area needs
    quarter = max(1, round((asked.block or class_maps.choose_block(opened.classes, count)) / 4))
    block = 4 * quarter
    scan = class_maps.scan_class_map(opened.classes, count, block=quarter)
    if not scan.pixels:
        raise UserError(f"{opened.image.name}: no pixel belongs to a class.")
    edge = 1.0 if size is None else size.mean
    reach = int(np.clip(3 * block // 4, 8, 400))
    two_point = class_maps.two_point_functions(
        opened.classes, names, max_distance=reach, window=max(1024, 3 * reach), max_windows=asked.two_point_windows,
        pixel_size=size,
    )  # fmt: skip
    widen = class_maps.block_widening(two_point, names, block, edge)
    regions, notes = _regions(asked, names)
    found = composition.modal_composition(
        class_maps.join_blocks(scan.counts, 4).reshape(-1, count),
        names,
        confusion=regions,
        confidence=asked.confidence,
        seed=asked.seed,
        widen=widen,
        method=asked.correction,
    )
    table = found.table
    if regions is not None:
        table["detection_limit"] = composition.detection_limits(regions)
    moved = (table["share"] - table["raw"]).abs()
    if moved.max() > _FAR:
        worst = table.loc[moved.idxmax()]
        notes.append(
            f"The correction moves {worst['class']} from {100 * worst['raw']:.1f} to {100 * worst['share']:.1f} %: the "
            "shares then rest on the held-out tiles more than on the map, whose contacts and sizes are not corrected."
        )
    errors = class_maps.covariance_errors(scan, two_point, names, edge)
    table = table.merge(errors, on="class").merge(class_maps.surface_table(scan, names, pixel_size=size), on="class")
    densities = _densities(opened.minerals)
    pores = [m.name for m in opened.minerals if m.name.lower() in PORE_NAMES or m.micro_porosity == 1]
    lacking = [name for name in names if name not in densities and name not in pores]
    if lacking:
        notes.append(f"No mass shares: the palette gives no density for {', '.join(lacking)}.")
    else:
        mass = composition.mass_shares(found, densities)
        table = table.merge(mass.rename(columns={"low": "mass_low", "high": "mass_high"}), on="class")
    unit = "px" if size is None else size.unit
    facts = {"map": asked.class_map, "confidence": asked.confidence, "block_px": block, "widen": widen, "unit": unit}
    io.write_table(folder.file("fractions.csv"), table, facts=facts)
    contacts = class_maps.association(scan, names, pixel_size=size)
    io.write_table(folder.file("association.csv"), contacts.rename_axis("class").reset_index(), facts={"unit": unit})
    for name, part in (
        ("representative_area", class_maps.representative_area(scan, names, pixel_size=size)),
        ("convergence", class_maps.convergence(scan, names, pixel_size=size)),
        ("chords", class_maps.chord_distribution(scan, names, pixel_size=size)),
        ("lineal_path", class_maps.lineal_path(scan, names, pixel_size=size)),
        ("two_point", two_point),
    ):
        io.write_table(folder.file(f"{name}.csv"), part, facts={"unit": unit})
    micro = {m.name: m.micro_porosity for m in opened.minerals if 0 < m.micro_porosity < 1}
    space = {}
    if pores or micro:
        value, low, high = composition.porosity(found, pores, micro)
        space = {"porosity": value, "porosity_low": max(low, 0.0), "porosity_high": min(high, 1.0)}
    compared = _compare(asked, found, space)
    io.write_table(folder.file("comparison.csv"), compared, facts={"files": list(asked.references)})
    area = scan.pixels * edge**2
    write_json(
        folder.file(QUANTITIES),
        {
            "map": str(Path(asked.class_map).resolve()), "shape": scan.shape, "classes": names,
            "pixel_size": None if size is None else {"size": size.size, "unit": size.unit}, "unit": unit,
            "sample_pixels": scan.pixels, "sample_area": area, **space, "pores": pores, "micro_porosity": micro,
            "densities": densities, "confidence": asked.confidence, "blocks": found.num_blocks, "block_px": block,
            "widen": widen, "correction": None if regions is None else asked.correction, "notes": notes,
        },
    )  # fmt: skip


def _regions(asked: QuantifySettings, names: list[str]) -> tuple[np.ndarray | None, list[str]]:
    if asked.confusion is None:
        return None, ["The shares are counted, not corrected for errors of classification: no validation was given."]
    values = read_json(asked.confusion)
    if values["classes"] != names:
        raise UserError(
            f"{asked.confusion}: its classes ({', '.join(values['classes'])}) are not those of the map "
            f"({', '.join(names)}). Evaluate with the same classes."
        )
    regions = np.array(values["regions"], float)
    empty = np.flatnonzero(regions.sum(axis=(0, 2)) == 0)
    notes = []
    for k in empty:  # nothing is known about its errors
        regions[:, k, k] = 1.0
        notes.append(f"{names[k]} does not occur in the validation data, so its errors could not be corrected.")
    if len(regions) < 5:
        notes.append(f"Errors of classification rest on {len(regions)} validation regions only.")
    return regions, notes


def _densities(minerals: tuple[Any, ...]) -> dict[str, float]:
    found = {}
    for mineral in minerals:
        value = mineral.density if math.isfinite(mineral.density) else DENSITIES.get(mineral.name.lower(), math.nan)
        if math.isfinite(value) and value > 0:
            found[mineral.name] = value
    return found


def _compare(asked: QuantifySettings, found: composition.Composition, space: dict[str, float]) -> pd.DataFrame:
    tables = []
    for path in asked.references:
        try:
            reference = pd.read_csv(path, comment="#", skipinitialspace=True)
            reference["class"] = reference["class"].astype(str).str.strip()
            reference["fraction"] = reference["fraction"].astype(float)
        except OSError as error:
            raise FileError(path, f"cannot be read ({error.strerror or error}).", "Check the name.") from error
        except (KeyError, ValueError) as error:
            remedy = "Write the columns class and fraction (0 to 1)."
            raise FileError(path, f"is no table of fractions ({error}).", remedy) from error
        if not reference["fraction"].between(0, 1).all():
            raise FileError(path, "has fractions outside 0 to 1.", "Divide percentages by 100.")
        if "method" not in reference:
            reference["method"] = Path(path).stem
        for method, part in reference.groupby("method", sort=False):
            tables.append(_compare_method(str(method), part, found, space))
    columns = ["method", "class", "share", "reference", "points", "relative", "inside"]
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=columns)


def _compare_method(
    method: str, part: pd.DataFrame, found: composition.Composition, space: dict[str, float]
) -> pd.DataFrame:
    values = dict(zip(part["class"], part["fraction"], strict=True))
    pore_space = values.pop("porosity", None)
    table = composition.compare_shares(found, values)
    if pore_space is not None and space:
        away = space["porosity"] - pore_space
        table.loc[len(table)] = (
            "porosity", space["porosity"], pore_space, 100 * away, away / pore_space if pore_space else math.nan,
            bool(space["porosity_low"] <= pore_space <= space["porosity_high"]),
        )  # fmt: skip
    table.insert(0, "method", method)
    return table


def _texture(folder: RunFolder) -> None:
    opened = open_class_map(folder.settings)
    facts = read_json(folder.path / QUANTITIES)
    pores = [k for k, name in enumerate(opened.names) if name in facts["pores"]]
    table = grains.pore_sizes(opened.classes, pores, pixel_size=opened.pixel_size)
    io.write_table(folder.file("pore_sizes.csv"), table, facts={"unit": facts["unit"]})


def _grains(folder: RunFolder) -> None:
    asked, opened = folder.settings, open_class_map(folder.settings)
    if not asked.grain_windows:
        return
    pores = read_json(folder.path / QUANTITIES)["pores"]
    found = grains.measure_grains(
        opened.classes, opened.names, pixel_size=opened.pixel_size, window=asked.window,
        max_windows=asked.grain_windows, leave_out=pores,
    )  # fmt: skip
    io.write_table(folder.file("grains.csv"), found, facts={"map": asked.class_map})
    io.write_table(folder.file("grain_sizes.csv"), grains.grain_summary(found, seed=asked.seed), facts={})
