"""Workflow `mineral report`: the folder of `mineral run` becomes one page that opens anywhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from keras_microseg import io
from keras_microseg.checks import FileError
from keras_microseg.io.palettes import read_palette
from keras_microseg.report.minerals import MineralRecord, write_mineral_page
from keras_microseg.workflows.mineral_evaluate import CLASSES, CONFUSION, METHOD
from keras_microseg.workflows.mineral_quantify import QUANTITIES, QuantifySettings, open_class_map
from keras_microseg.workflows.steps import read_json

_PICTURE_EDGE = 1100
_TABLES = (
    "fractions", "association", "representative_area", "convergence", "chords", "lineal_path", "two_point", "grains",
    "grain_sizes", "pore_sizes", "comparison",
)  # fmt: skip


def report(
    tables_dir: str | os.PathLike,
    path: str | os.PathLike,
    *,
    run_dir: str | os.PathLike | None = None,
    title: str = "Mineral map",
    method: str = "",
    facts: dict[str, Any] | None = None,
    warnings: tuple[str, ...] = (),
) -> Path:
    """Write the page about a measured map.

    Args:
        tables_dir: folder of `mineral quantify`.
        path: of the `.html` file.
        run_dir: folder of `mineral run`; its registration, micrograph, errors and zoomable map go onto the page.
        title: of the page.
        method: how the map was made.
        facts: for the last section.
        warnings: what a reader should know.

    Raises:
        FileError: no such folders.
    """
    tables_dir = Path(tables_dir)
    if not (tables_dir / QUANTITIES).is_file():
        raise FileError(tables_dir, f"holds no {QUANTITIES}.", "Run `mineral quantify` first and name its folder.")
    quantities = read_json(tables_dir / QUANTITIES)
    asked = read_json(tables_dir / "settings.json")
    known = {field: asked[field] for field in QuantifySettings.__dataclass_fields__ if field in asked}
    opened = open_class_map(QuantifySettings(**known))
    tables = {}
    for name in _TABLES:
        if (tables_dir / f"{name}.csv").is_file():
            try:
                tables[name] = pd.read_csv(
                    tables_dir / f"{name}.csv", comment="#", keep_default_na=False, na_values=[""]
                )
            except pd.errors.EmptyDataError:
                continue
    classes = thin(opened.classes, _PICTURE_EDGE)
    step = opened.classes.shape[0] / classes.shape[0]
    size = None if opened.pixel_size is None else opened.pixel_size.scaled(1 / step)
    extra: dict[str, Any] = {}
    if run_dir is not None:
        extra = _of_run(Path(run_dir), opened.names, tuple(opened.classes.shape), Path(path).parent)
    minerals = read_palette(asked["classes"]).minerals
    colours = {m.name: m.colour for m in minerals}
    record = MineralRecord(
        title, opened.names, [colours[name] for name in opened.names], quantities, tables, classes,
        picture_size=size, method=method, facts=facts or {}, warnings=warnings, **extra,
    )  # fmt: skip
    return write_mineral_page(path, record)


def thin(image: Any, edge: int) -> np.ndarray:
    """Every n-th pixel so that no side exceeds `edge`, read in bands."""
    step = max(1, -(-max(image.shape) // edge))
    rows = []
    band = max(step, (1 << 24) // image.shape[1] // step * step)
    for top in range(0, image.shape[0], band):
        rows.append(np.asarray(image[top : top + band])[::step, ::step])
    return np.concatenate(rows)


def _of_run(run_dir: Path, names: list[str], shape: tuple[int, ...], page_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    sem = run_dir / "clean" / "sem.tif"
    if sem.is_file():
        image = io.open_image(sem)
        if tuple(image.shape) == shape:
            found["grey"] = _as_bytes(thin(image.data, _PICTURE_EDGE))
    if (run_dir / "register" / "registration.json").is_file():
        found["registration"] = read_json(run_dir / "register" / "registration.json")
        captions = {
            "checkerboard.png": "Micrograph and map in alternate squares: outlines go on where the map lies right.",
            "edges.png": "Borders of the map over the micrograph.",
            "residuals.png": "What windows of the map still ask for.",
        }
        found["registration_pictures"] = {
            caption: io.open_image(run_dir / "register" / name).read()[..., :3]
            for name, caption in captions.items()
            if (run_dir / "register" / name).is_file()
        }
    if (run_dir / "evaluate" / CONFUSION).is_file():
        found["confusion"] = np.array(read_json(run_dir / "evaluate" / CONFUSION)["regions"]).sum(axis=0)
        found["scores"] = scores(run_dir / "evaluate")
        if (run_dir / "evaluate" / "report.html").is_file():
            found["errors_link"] = Path(os.path.relpath(run_dir / "evaluate" / "report.html", page_dir)).as_posix()
    for viewer in ("maps/view/index.html", "view/index.html"):
        if (run_dir / viewer).is_file():
            found["zoom_link"] = Path(os.path.relpath(run_dir / viewer, page_dir)).as_posix()
            break
    return found


def scores(folder: Path) -> pd.DataFrame:
    """Scores of each class and their means over the classes that occur, from a folder of `mineral evaluate`; other
    methods by their IoU.
    """
    classes, overall = pd.read_csv(folder / CLASSES), pd.read_csv(folder / "scores.csv").set_index("method")
    methods = {method: part.set_index("class") for method, part in classes.groupby("method", sort=False)}
    own = methods.pop(METHOD)
    table = {"IoU": own["iou"], "from": own["iou_low"], "to": own["iou_high"]}
    table |= {f"IoU of {method}": part["iou"] for method, part in methods.items()}
    table |= {"precision": own["precision"], "recall": own["recall"], "true %": 100 * own["true_fraction"]}
    out = pd.DataFrame(table)
    occurs = own["true_fraction"] > 0
    out.loc["mean"] = out[occurs].mean()
    out.loc["mean", ["from", "to"]] = overall.loc[METHOD, ["mean_iou_low", "mean_iou_high"]].to_numpy()
    out.loc["mean", "true %"] = out["true %"][:-1].sum()
    return out.rename_axis("class").reset_index()


def _as_bytes(grey: np.ndarray) -> np.ndarray:
    if grey.dtype == np.uint8:
        return grey
    low, high = np.percentile(grey, (0.5, 99.5))
    return np.clip((grey - low) / max(high - low, 1e-6) * 255, 0, 255).astype(np.uint8)
