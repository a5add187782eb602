"""The whole path of cathode particles by the command line: from annotated slices to detachment, count and shape.

    KERAS_BACKEND=jax python tests/benchmarks/particle_path.py --out DIR                # a quarter of an hour
    KERAS_BACKEND=torch python tests/benchmarks/particle_path.py --out DIR --tiny       # minutes, every product checked
    KERAS_BACKEND=torch python tests/benchmarks/particle_path.py --out DIR --model MODEL/model.keras --views z y x

Simulated: annotated slices (each through a cathode of its own), a volume whose phases teach a 3D U-Net, and a volume
held back from both. Commands, each in a process of its own: `particles simulate`, `annotations convert` (label images
to COCO and VIA), `particles train` from that file, `particles detect --volume` on the slices of the volume held back,
`particles link`, `volume train` and `volume predict` for the phases, `particles measure` with exact, thresholded and
predicted phases. Every product is looked into; then the table compares with the truth: particles of 200 voxels or more
(count, F1 at IoU 0.5, mean IoU of the found), the share found of those that the border does not cut, and the detachment
of whole particles of 1000 voxels or more.

Started again with the same options it goes on where it stopped. Wanted: count within 3 %, detachment within 0.05.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "tests"))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
from cathode_scenes import large  # noqa: E402

from keras_microseg import io  # noqa: E402
from keras_microseg.metrics.instance import count_split_merge, match, overlap_table  # noqa: E402
from keras_microseg.simulation.cathodes import CRACK, VOID  # noqa: E402

DISTANCE = 3.0
PHASES = {"exact": "crack of its own", "otsu": "two thresholds", "network": "3D U-Net"}


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is simulated and trained.

    Attributes:
        slices: annotated images.
        size: their side, px.
        shape: (z, y, x) of the volume held back, and of the one that teaches the phases.
        diameter: mean of the particles, voxels.
        training: words for `particles train`.
        phases: words for `volume train`.
    """

    slices: int = 24
    size: int = 256
    shape: tuple[int, int, int] = (96, 176, 176)
    diameter: float = 36.0
    training: tuple[str, ...] = ("--preset", "light", "--minutes", "12", "--set", "tile=128", "--set", "batch_size=4")
    phases: tuple[str, ...] = ("--preset", "fast", "--epochs", "25", "--patch", "32", "--batch-size", "4", "--set",
                               "augment=0.05")  # fmt: skip


TINY = Plan(
    slices=6,
    size=128,
    shape=(48, 64, 64),
    diameter=20.0,
    training=("--preset", "light", "--set", "tile=64", "--set", "batch_size=4", "--set", "epochs=6",
              "--set", "steps_per_epoch=20", "--set", "minutes=None"),
    phases=("--preset", "fast", "--epochs", "2", "--steps", "10", "--patch", "16",
            "--set", "filters=(8, 16)", "--set", "pools=((2, 2, 2),)"),
)  # fmt: skip


class Commands:
    """Calls of `keras-microseg` in processes of their own, with a log file each; a failure shows the end of it."""

    def __init__(self, out: Path):
        self.out, self.seconds = out, {}
        out.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"}

    def __call__(self, name: str, *words: object) -> str:
        command = [sys.executable, "-m", "keras_microseg", *map(str, words)]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, check=False)
        self.seconds[name] = time.perf_counter() - start
        text = done.stdout + done.stderr
        (self.out / f"{name}.log").write_text(f"$ {' '.join(command[1:])}\n{text}", encoding="utf-8")
        if done.returncode:
            raise SystemExit(f"{name} ended with {done.returncode}:\n{text[-3000:]}")
        print(f"  {name:22}{self.seconds[name]:7.1f} s  {done.stdout.strip().splitlines()[-1:]}", flush=True)
        return text


def run(
    plan: Plan,
    out: Path,
    *,
    source: str = "coco",
    views: tuple[str, ...] = ("z",),
    phases: tuple[str, ...] = tuple(PHASES),
    model: Path | None = None,
    seed: int = 0,
    min_score: float | None = None,
) -> pd.DataFrame:
    """The path from annotations of one format; a row per kind of phases.

    Args:
        plan: what is simulated and trained.
        out: folder of everything.
        source: `coco` or `via`.
        views: directions of the slices; two or three are fused.
        phases: of `PHASES`.
        model: a trained detector; None = train one from the annotations.
        seed: of simulation and training.
        min_score: of detections; None = the model's.
    """
    command = Commands(out / "logs" / source)
    simulate(command, plan, out, "held", seed)
    if model is None:
        simulate(command, plan, out, "slices", seed)
        annotations = annotate(command, out, source)
        model = train(command, plan, out, annotations, source, seed)
    found = detect(command, out, model, source, views, min_score)
    linked = link(command, out, found, source)
    rows = []
    for kind in phases:
        result = measure(command, plan, out, linked, source, kind, seed)
        rows.append({"from": source, "phases": kind, **score(out, linked, result)})
    table = pd.DataFrame(rows)
    table.to_csv(out / f"scores_{source}.csv", index=False)
    (out / f"seconds_{source}.json").write_text(json.dumps(command.seconds, indent=1))
    return table


def simulate(command: Commands, plan: Plan, out: Path, name: str, seed: int) -> None:
    """`slices`, annotated and each through a cathode of its own; or a volume: `lesson` (of phases) or `held` back."""
    size, shape = f"{plan.size}x{plan.size}", "x".join(map(str, plan.shape))
    what = ("--images", plan.slices, "--size", size) if name == "slices" else ("--volume", shape, "--kind", "tif")
    number = 3 * seed + ("slices", "lesson", "held").index(name)
    command(f"simulate_{name}", "particles", "simulate", "--out", out / name, *what, "--seed", number, "--diameter",
            plan.diameter, "--voxel-size", "70nm", "--resume")  # fmt: skip
    if name == "slices":
        assert len(list((out / name / "images").iterdir())) == plan.slices
        return
    truth, labels = pd.read_csv(out / name / "particles.csv", comment="#"), read(out / name / "labels.tif")
    assert labels.shape == plan.shape and set(np.unique(labels)) - {0} == set(truth["label"])


def annotate(command: Commands, out: Path, source: str) -> Path:
    """The label images as one COCO or VIA file, which must hold every object."""
    path = out / f"{source}.json"
    text = command(f"convert_{source}", "annotations", "convert", out / "slices" / "labels", "--images",
                   out / "slices" / "images", "--to", source, "--out", path, "--overwrite")  # fmt: skip
    objects = pd.read_csv(out / "slices" / "objects.csv", comment="#")
    record = json.loads(path.read_text(encoding="utf-8"))
    if source == "coco":
        regions = len(record["annotations"])
    else:
        regions = sum(len(one["regions"]) for one in record.get("_via_img_metadata", record).values())
    assert regions >= 0.98 * (objects["area"] >= 10).sum(), (regions, len(objects), text)
    command(f"check_{source}", "annotations", "check", path, "--images", out / "slices" / "images")
    return path


def train(command: Commands, plan: Plan, out: Path, annotations: Path, source: str, seed: int) -> Path:
    """A detector from that file alone; its loss must fall."""
    folder = out / f"detector_{source}"
    command(f"train_{source}", "particles", "train", out / "slices" / "images", "--annotations", annotations, "--out",
            folder, *plan.training, "--seed", seed, "--resume")  # fmt: skip
    log = pd.read_csv(folder / "train" / "log.csv")
    assert np.isfinite(log["loss"]).all() and log["loss"].iloc[-1] < log["loss"].iloc[0], log["loss"].tolist()
    facts = json.loads((folder / "train_settings.json").read_text())
    assert {"ap50", "recall", "min_score"} <= set(facts["scores"]) and facts["card"]["made"]["backend"]
    return folder / "model.keras"


def detect(
    command: Commands, out: Path, model: Path, source: str, views: tuple[str, ...], min_score: float | None
) -> Path:
    """Labels of every slice along every view."""
    grey, shape = out / "held" / "grey.tif", read(out / "held" / "grey.tif").shape
    for axis in views:
        folder = out / f"detections_{source}" / axis
        words = () if min_score is None else ("--min-score", min_score)
        command(f"detect_{source}_{axis}", "particles", "detect", grey, "--volume", "--axis", axis, "--model", model,
                "--out", folder, *words, "--resume")  # fmt: skip
        files = sorted((folder / "labels").iterdir())
        assert len(files) == shape["zyx".index(axis)]
        table = pd.read_csv(folder / "detections.csv", comment="#")
        counted = sum(int(np.asarray(io.read_labels(path).data).max()) for path in files)
        assert len(table) == counted > 0, (len(table), counted)
        assert table["score"].between(0, 1).all() and (table["area"] > 0).all()
    return out / f"detections_{source}" / ("" if len(views) > 1 else views[0])


def link(command: Commands, out: Path, detections: Path, source: str) -> Path:
    """Particles of the volume."""
    folder = out / f"linked_{source}"
    command(f"link_{source}", "particles", "link", detections, "--out", folder, "--voxel-size", "70nm", "--resume")
    labels = read(folder / "labels.zarr")
    objects = pd.read_csv(folder / "objects.csv", comment="#")
    assert labels.dtype == np.uint32 and labels.shape == read(out / "held" / "labels.tif").shape
    assert labels.max() == len(objects) and objects["voxels"].sum() == (labels > 0).sum()
    return folder / "labels.zarr"


def measure(command: Commands, plan: Plan, out: Path, linked: Path, source: str, kind: str, seed: int) -> Path:
    """Tables and report with phases of one kind."""
    folder, grey = out / f"measured_{source}_{kind}", out / "held" / "grey.tif"
    words = {
        "exact": lambda: ("--phases", out / "held" / "phases.tif"),
        "otsu": lambda: ("--phases", "otsu"),
        "network": lambda: ("--phases", predict_phases(command, plan, out, seed), "--crack", "none", "--rim", 1),
    }[kind]()  # fmt: skip
    command(f"measure_{source}_{kind}", "particles", "measure", linked, "--grey", grey, *words, "--distance", DISTANCE,
            "--voxel-size", "70nm", "--out", folder, "--resume")  # fmt: skip
    table = pd.read_csv(folder / "particles.csv", comment="#")
    assert len(table) and table["detachment"].dropna().between(0, 1).all() and (table["volume"] > 0).all()
    check_page(folder / "report.html")
    assert json.loads((folder / "run.json").read_text())["particles"] == len(table)
    return folder


def predict_phases(command: Commands, plan: Plan, out: Path, seed: int) -> Path:
    """Void, CBD, particle of the volume held back, by a 3D U-Net that saw another volume; cracks count as void."""
    simulate(command, plan, out, "lesson", seed)
    lesson, model = out / "lesson", out / "phases_model" / "model.keras"
    classes = lesson / "classes.npy"
    exact = read(lesson / "phases.tif")
    np.save(classes, np.where(exact == CRACK, VOID, exact).astype(np.uint8))
    command("train_phases", "volume", "train", lesson / "grey.tif", classes, "--labels-are", "classes", "--out",
            model.parent, *plan.phases, "--seed", seed, "--resume")  # fmt: skip
    command("predict_phases", "volume", "predict", out / "held" / "grey.tif", "--model", model, "--out",
            out / "phases", "--resume")  # fmt: skip
    path = out / "phases" / "classes.zarr"
    assert set(np.unique(read(path))) <= {0, 1, 2}
    return path


def check_page(path: Path) -> None:
    """A report whose pictures are there."""
    text = path.read_text(encoding="utf-8")
    for name in re.findall(r'(?:src|href)="(?!data:|https?:|#|mailto:)([^"]+)"', text):
        assert (path.parent / name).is_file(), f"{path} names {name}, which is absent"
    assert "Degree of detachment" in text
    for word in (">nan<", "Traceback", "None</td>"):
        assert word not in text, f"{path} shows {word!r}"


def score(out: Path, linked: Path, measured: Path) -> dict[str, float]:
    """Count, F1, mean IoU, and errors of the detachment of whole particles that were found."""
    truth, found = read(out / "held" / "labels.tif").astype(np.int64), read(linked).astype(np.int64)
    scores, parts = match(large(truth), large(found)), count_split_merge(overlap_table(large(truth), large(found)))
    true, count = (len(np.unique(large(labels))) - 1 for labels in (truth, found))
    known = pd.read_csv(out / "held" / "particles.csv", comment="#").set_index("label")
    table = pd.read_csv(measured / "particles.csv", comment="#").set_index("label")
    partner = {int(b): int(a) for a, b in scores.pairs[:, :2]}
    sizes = np.bincount(found.ravel())
    whole = [label for label in table.index if not table.loc[label, "is_edge"] and sizes[label] >= 1000]
    labels = [label for label in whole if label in partner]
    wanted = known.loc[[partner[label] for label in labels]]
    error = table.loc[labels, "detachment"].to_numpy() - wanted["detachment"].to_numpy()
    damage = np.abs(table.loc[labels, "damage"].to_numpy() - wanted["damage"].to_numpy())
    inner = known.index[known["whole"] & (known["volume"] >= 1000)]
    mean = table.loc[whole, "detachment"].mean() - wanted["detachment"].mean()
    return {
        "particles": true, "found": count, "count_error": count / true - 1, "f1": scores.f1,
        "mean_iou": scores.mean_iou, "split": parts.split, "merged": parts.merged,
        "whole_recall": float(np.isin(inner, scores.pairs[:, 0]).mean()), "whole": len(labels),
        "D_mean_error": float(mean) if len(labels) else np.nan,
        "D_mean_abs": float(np.nanmean(np.abs(error))) if len(labels) else np.nan,
        "D_max_abs": float(np.nanmax(np.abs(error))) if len(labels) else np.nan,
        "D_above_0.05": int((np.abs(error) > 0.05).sum()), "damage_abs": float(np.mean(damage)) if len(labels) else
        np.nan,
    }  # fmt: skip


def read(path: Path) -> np.ndarray:
    """A whole volume."""
    return np.asarray(io.open_volume(path).data[...])


def main() -> None:
    """Run the path; print its times and scores."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--from", dest="sources", nargs="+", choices=("coco", "via"), default=["coco"])
    parser.add_argument("--views", nargs="+", choices=("z", "y", "x"), default=["z"])
    parser.add_argument("--phases", nargs="+", choices=tuple(PHASES), default=list(PHASES))
    parser.add_argument("--tiny", action="store_true", help="small images, few steps: products, not scores")
    parser.add_argument("--minutes", type=float, help="of the detector's training")
    parser.add_argument("--model", type=Path, help="a trained detector, instead of training")
    parser.add_argument("--min-score", type=float)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    plan = TINY if options.tiny else Plan()
    if options.minutes is not None:
        plan = dataclasses.replace(plan, training=(*plan.training, "--minutes", str(options.minutes)))
    tables = []
    for source in options.sources:
        print(f"{os.environ.get('KERAS_BACKEND', 'default backend')}, from {source}:", flush=True)
        tables.append(run(plan, options.out, source=source, views=tuple(options.views), phases=tuple(options.phases),
                          model=options.model, seed=options.seed, min_score=options.min_score))  # fmt: skip
    print(pd.concat(tables).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
