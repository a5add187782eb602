"""Step `report`: what happened, on one page, in pictures and numbers."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image as PillowImage

from keras_microseg import io
from keras_microseg.intensity import percentile_limits, stretch
from keras_microseg.report.page import Chart, Picture, Section, Table, write_page
from keras_microseg.simulation.masks import Particles
from keras_microseg.workflows.sem_particles.look import read_facts, usable_images
from keras_microseg.workflows.sem_particles.masks import MATCH, PARTICLES
from keras_microseg.workflows.sem_particles.network import NETWORK, SEGMENTATION
from keras_microseg.workflows.sem_particles.plan import format_duration
from keras_microseg.workflows.sem_particles.settings import Settings
from keras_microseg.workflows.sem_particles.translation import PAIRS, TRANSLATION
from keras_microseg.workflows.steps import RunFolder, plain, read_json, run_facts

logger = logging.getLogger(__name__)

REPORT = "report.html"
_SHOWN = 4
_OUTLINE_FACTS = {
    "distance": "distance of the shapes (kernel distance of all shape quantities)",
    "reference": "the same between two halves of the given outlines",
    "diversity": "diversity (1 = as the given outlines)",
    "copies": "share that copies a given outline",
    "nearest_median": "overlap with the most similar given outline, median IoU",
    "nearest_real_median": "the same among the given outlines",
    "copies_real": "share of the given outlines that repeat another one",
    "usable": "share that is a single whole particle",
    "generated": "usable outlines",
    "stop_reason": "training ended early",
}
_MATCHED = {
    "coverage": ("area covered in tiles with particles", "{:.1%}"),
    "diameters": ("diameter that halves the area of the particles", "{:.1f} px"),
    "contact": ("share of the outlines that faces another particle", "{:.1%}"),
    "fragments": ("small against median diameter (10 % quantile over median)", "{:.2f}"),
    "particles": ("particles per tile", "{:.1f}"),
}


def write_summary(folder: RunFolder) -> None:
    """Write `report.html` from what the steps have left; steps that were not run are left out."""
    settings: Settings = folder.settings
    facts = read_facts(folder)
    cards: dict[str, Any] = {"images": len(facts["images"]), "polarity": facts["polarity"]}
    sections = [_images(folder, facts)]
    for part in (_outlines, _masks, _translation, _pairs, _network, _segmentation):
        section = part(folder, cards)
        if section:
            sections.append(section)
    steps = {
        name: format_duration(record["seconds"])
        for name, record in folder.manifest["steps"].items()
        if "seconds" in record and name != "report"
    }
    cards["computing time"] = format_duration(sum(r.get("seconds", 0) for r in folder.manifest["steps"].values()))
    sections.append(
        Section(
            "How to repeat it",
            [
                "The same settings, seed, backend and machine give the same result; other backends one that is alike.",
                Table(steps, "Time of each step"),
                Table(
                    {key: _short(value) for key, value in plain(settings).items()}, "Settings (all in settings.json)"
                ),
                Table(
                    {**{k: v for k, v in run_facts().items() if k != "versions"}, **run_facts()["versions"]}, "Versions"
                ),
            ],
        )
    )
    failures = [failure.message for failure in folder.failures()]
    failures += folder.manifest.get("segmentation", {}).get("failures", [])
    write_page(
        folder.file(REPORT),
        "Particles without manual labels",
        sections,
        subtitle=f"Preset {settings.preset}, seed {settings.seed}; started {folder.manifest['started']}",
        cards=cards,
        warnings=folder.manifest.get("warnings", []),
        failures=failures,
    )
    logger.info("Report: %s", folder.path / REPORT)


def _images(folder: RunFolder, facts: dict[str, Any]) -> Section:
    pictures = [_grey_picture(path, entry["info_bar"]) for path, entry in usable_images(folder)[:_SHOWN]]
    numbers = {
        "images": len(facts["images"]),
        "too small for a tile": len(facts["too_small"]),
        "polarity": f"{facts['polarity']} (seen in {max(facts['polarity_share'], 1 - facts['polarity_share']):.0%})",
        "typical diameter, px": facts["diameter"],
        "enlarged for training by": facts["scale"],
        "covered by particles": f"{facts['coverage']:.1%}",
    }
    return Section(
        "Images",
        [
            Table(numbers, "From a first look, before any training"),
            Picture(_side_by_side(pictures, 360), "Some of the micrographs", kind="jpeg"),
        ],
    )


def _outlines(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    if not (folder.path / PARTICLES).is_file():
        return None
    facts = read_json(folder.path / "particles.json")
    stock = Particles.load(folder.path / PARTICLES)
    picture = _draw_stock(stock)
    blocks: list[Any] = [
        f"Particles of the masks come from: {facts['source']} ({facts['count']} in stock).",
        Picture(picture, "Some of the stock, drawn at one size"),
    ]
    if facts.get("quality"):
        blocks.append(
            Table(
                _named(facts["quality"], _OUTLINE_FACTS),
                "Generated against given outlines; more in outlines/outlines.html",
            )
        )
    return Section("Outlines", blocks)


def _masks(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    root = folder.path / "masks" / "masks"
    if not root.is_dir():
        return None
    paths = io.find_images(root)
    shown = [np.asarray(io.open_image(path).data) for path in paths[:_SHOWN]]
    covered = float(np.mean([np.mean(np.asarray(io.open_image(path).data) > 0) for path in paths[:200]]))
    match = read_json(folder.path / MATCH)
    numbers = {"masks": len(paths), "covered by particles": f"{covered:.1%}"}
    blocks = [Table(numbers), Picture(_side_by_side(shown, 260), "Simulated masks")]
    if match["match"]:
        blocks.append(Table(_compared(match["match"]), "Settings of the masks were chosen to agree with the images"))
    return Section("Masks", blocks)


def _translation(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    path = folder.path / "translation.json"
    if not path.is_file():
        return None
    facts = read_json(path)
    log = _read_log(folder.path / TRANSLATION / "log.csv")
    cards["texture distance (real among themselves)"] = (
        f"{facts['texture_distance']:.2f} ({facts['texture_reference']:.2f})"
        if facts["texture_distance"] is not None
        else "-"
    )
    figure = Figure(figsize=(7.4, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in ("generator_a_loss", "generator_b_loss"):
        left.plot(
            log["epoch"],
            log[name],
            label={"generator_a_loss": "image to mask", "generator_b_loss": "mask to image"}[name],
        )
    left.set(xlabel="epoch", ylabel="loss of the generators")
    left.legend(frameon=False)
    right.plot(log["epoch"], log["texture_distance"])
    right.axhline(facts["texture_reference"], linestyle=":", color="grey")
    right.set(xlabel="epoch", ylabel="texture distance", yscale="symlog")
    blocks: list[Any] = [
        Chart(figure, "Training of the translation. Dotted: the distance of two halves of the real images."),
        Table(
            {
                "texture distance": facts["texture_distance"],
                "between halves of the real images": facts["texture_reference"],
                "variety (1 = as the real images)": facts["variety"],
                "particles stand out by, standard deviations": facts["contrast"],
            }
        ),
    ]
    previews = sorted((folder.path / TRANSLATION / "previews").glob("epoch_*.png"))
    if previews:
        picture = np.asarray(PillowImage.open(previews[-1]).convert("L"))
        blocks.append(
            Picture(
                picture,
                "Last epoch. Above: micrograph, its mask, and back. Below: simulated mask, its micrograph, and back.",
                width=min(picture.shape[1], 560),
                kind="jpeg",
            )
        )
    return Section("Translation", blocks)


def _pairs(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    path = folder.path / "pairs.json"
    if not path.is_file():
        return None
    facts = read_json(path)
    total = len(facts["kept"]) + len(facts["dropped"])
    cards["pairs kept"] = f"{len(facts['kept'])} of {total}"
    blocks: list[Any] = [
        Table(
            {
                "kept": len(facts["kept"]),
                "dropped because they do not show their mask": len(facts["dropped"]),
                "least overlap": facts["limit"],
                "median overlap": facts["median_agreement"],
                "particles that were not painted": f"{facts['unpainted_particles']} of {facts['particles']}",
            }
        )
    ]
    for title, names in (("Kept", facts["kept"]), ("Dropped", facts["dropped"])):
        rows = []
        for name in names[:_SHOWN]:
            image = np.asarray(io.open_image(folder.path / PAIRS / "images" / f"{name}.tif").data)
            labels = np.asarray(io.read_labels(folder.path / PAIRS / "labels" / f"{name}.tif").data)
            rows.append(np.concatenate([np.repeat(image[..., None], 3, axis=2), _edges_on(image, labels)], axis=0))
        if rows:
            blocks.append(
                Picture(_side_by_side(rows, 520), f"{title}: micrographs, and with their outlines", kind="jpeg")
            )
    return Section("Generated pairs", blocks)


def _network(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    path = folder.path / NETWORK / "log.csv"
    if not path.is_file():
        return None
    log = _read_log(path)
    figure = Figure(figsize=(5.2, 2.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(log["epoch"], log["loss"], label="training")
    if "val_loss" in log:
        axes.plot(log["epoch"], log["val_loss"], label="held-out generated pairs")
    axes.set(xlabel="epoch", ylabel="loss")
    axes.legend(frameon=False)
    return Section("Segmentation network", [Chart(figure, "Loss of the segmentation network")])


def _segmentation(folder: RunFolder, cards: dict[str, Any]) -> Section | None:
    root = folder.path / SEGMENTATION
    if not (root / "particles.csv").is_file():
        return None
    overlays = sorted((root / "overlays").glob("*.png"))[:_SHOWN]
    pictures = [np.asarray(PillowImage.open(path).convert("RGB")) for path in overlays]
    found = folder.manifest["segmentation"]
    cards["particles found"] = found["particles"]
    blocks: list[Any] = [
        *found["highlights"],
        f"Sizes, distributions and every image: {SEGMENTATION}/report.html; the table: {SEGMENTATION}/particles.csv. "
        "The network: model.keras (keras-microseg segment IMAGES --model model.keras --out RESULT).",
    ]
    blocks += [
        Picture(picture, path.stem, width=700, kind="jpeg") for path, picture in zip(overlays, pictures, strict=True)
    ]
    return Section("Result", blocks)


def _grey_picture(path: Path, row: int | None) -> np.ndarray:
    grey = np.asarray(io.read_grey(io.open_image(path)), np.float32)[:row]
    return np.rint(stretch(grey, percentile_limits(grey)) * 255).astype(np.uint8)


def _side_by_side(pictures: list[np.ndarray], height: int) -> np.ndarray:
    """Pictures in a row, all of one height."""
    scaled = []
    for picture in pictures:
        size = (max(1, round(picture.shape[1] * height / picture.shape[0])), height)
        kind = PillowImage.Resampling.BILINEAR
        shown = np.asarray(PillowImage.fromarray(picture).resize(size, kind))
        shown = np.repeat(shown[..., None], 3, axis=2) if shown.ndim == 2 else shown
        scaled.append(np.pad(shown, ((0, 0), (0, 6), (0, 0)), constant_values=255))
    return np.concatenate(scaled, axis=1)


def _edges_on(image: np.ndarray, labels: np.ndarray) -> np.ndarray:
    edges = np.zeros(labels.shape, bool)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    shown = np.repeat(image[..., None], 3, axis=2)
    shown[edges] = (255, 120, 40)
    return shown


def _draw_stock(stock: Particles, columns: int = 20, rows: int = 4, size: int = 44) -> np.ndarray:
    from keras_microseg.simulation.particles import edge_coordinate

    grid = np.zeros((rows * size, columns * size), np.uint8)
    offset = np.arange(size, dtype=np.float32) - (size - 1) / 2
    for number in range(min(len(stock), rows * columns)):
        profile = stock.shapes.profile[number]
        radius = 0.45 * size / max(float(profile.max()), 1e-6)
        u = edge_coordinate(profile, radius, 0.0, float(stock.shapes.bend[number]), offset[:, None], offset[None, :])
        y, x = divmod(number, columns)
        grid[y * size : (y + 1) * size, x * size : (x + 1) * size] = np.where(u < 1, 255, 0)
    return grid


def _read_log(path: Path) -> dict[str, np.ndarray]:
    with open(path, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in rows[0]}


def _named(facts: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """Those facts that have a value, under names for readers; unknown ones under their own."""
    return {names.get(name, name): value for name, value in facts.items() if value is not None}


def _compared(match: Mapping[str, Sequence[Any]]) -> dict[str, str]:
    """Pairs (images, masks) of `match_masks` as lines of text."""
    rows = {}
    for name, (label, template) in _MATCHED.items():
        if name in match:
            images, masks = (value[1] if name == "diameters" else value for value in match[name])
            rows[label] = f"{template.format(images)} in the images, {template.format(masks)} in the masks"
    return rows


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={entry}" for name, entry in value.items())
    return str(value)
