"""The whole path of `volume run` on the real tomography volumes, from the command line to its report, as a table.

    python tests/benchmarks/real_runs.py --out DIR [--only berea grains fiberform] [--backends torch jax tensorflow]
                                         [--edge 256]

berea, grains: the reference labels become a grey scan (blur, noise, rings) in a folder of slices; FiberForm is a grey
scan as it comes. Every run: stack, automatic mask, training on that mask (preset `fast`), prediction, labels, tables,
report. Runs that are complete are not repeated. `--edge` crops the two larger volumes to a cube (0 = all of it). Other
options, such as `--epochs 4 --steps 15`, are passed on to `volume run`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).resolve().parent))
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np  # noqa: E402
import tifffile  # noqa: E402
from real_volumes import unzipped  # noqa: E402
from scipy import ndimage  # noqa: E402

from keras_microseg import io  # noqa: E402

OPTIONS = {
    # pores are dark, so slices are more than half white and the published rule of the mask inverts them
    "berea": [
        "--voxel-size",
        "5.345um",
        "--joined",
        "--set",
        "mask.sigma=0.7",
        "--set",
        "mask.clahe=False",
        "--set",
        "mask.threshold=halfway",
    ],
    "grains": ["--diameter", "30", "--set", "mask.sigma=1", "--set", "mask.clahe=False", "--set", "mask.invert=never"],
    "fiberform": ["--voxel-size", "1.3um", "--joined", "--set", "mask.clahe=False"],
}


def truth_of(name: str, data: Path, edge: int, scratch: Path) -> np.ndarray | None:
    """Labels or mask of the objects, cropped; None where there is no reference per voxel."""
    if name == "berea":
        mask = np.asarray(io.open_volume(unzipped(data / "berea/berea.zip", "berea.tif", scratch)).data) == 0
    elif name == "grains":
        solid = np.load(unzipped(data / "grains/grains.npy.zip", "grains.npy", scratch)).transpose(2, 0, 1) > 0
        mask = ndimage.label(solid, np.ones((3, 3, 3)))[0].astype(np.uint16)
    else:
        return None
    edge = edge or max(mask.shape)
    return np.ascontiguousarray(mask[:edge, :edge, :edge])


def write_scan(name: str, truth: np.ndarray, folder: Path) -> None:
    """A grey scan of the reference: pores dark, grains bright; blur 1 voxel, noise, rings; one TIFF per slice."""
    rng = np.random.default_rng(0)
    objects = truth > 0
    if name == "grains":
        objects = ndimage.binary_closing(objects, np.ones((3, 3, 3))) | objects  # the cuts of the reference
    bright = ~objects if name == "berea" else objects
    grey = ndimage.gaussian_filter(np.where(bright, np.float32(0.7), np.float32(0.3)), 1.0)
    grey += 0.08 * rng.standard_normal(grey.shape, dtype=np.float32)
    y, x = np.indices(grey.shape[1:]) - np.array(grey.shape[1:])[:, None, None] / 2
    grey += (0.02 * rng.standard_normal(2000)).astype(np.float32)[np.hypot(y, x).astype(int)]
    folder.mkdir(parents=True)
    for number, plane in enumerate(np.rint(255 * grey.clip(0, 1)).astype(np.uint8)):
        tifffile.imwrite(folder / f"slice_{number:04d}.tif", plane)


def run(name: str, source: Path, backend: str, folder: Path, more: list[str]) -> dict:
    """One `volume run` in a process of its own, with its time and peak memory."""
    command = [sys.executable, "-m", "keras_microseg", "volume", "run", str(source), "--out", str(folder), "--resume",
               "--model", "train", "--preset", "fast", "--backend", backend, *OPTIONS[name], *more]  # fmt: skip
    print("$", " ".join(command[1:]), flush=True)
    begin = time.time()
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{folder.name} ended with status {status}: see {folder.name}.log")
    row = {"seconds": time.time() - begin, "cpu": usage.ru_utime + usage.ru_stime, "peak_mb": usage.ru_maxrss / 1000}
    steps = json.loads((folder / "manifest.json").read_text())["steps"]
    row["steps"] = {step: round(facts["seconds"]) for step, facts in steps.items() if "seconds" in facts}
    return row


def score(name: str, folder: Path, truth: np.ndarray | None) -> dict:
    """Figures of a finished run."""
    from keras_microseg.metrics import instance, pixel

    facts = json.loads((folder / "tables" / "volume.json").read_text())
    found = {"objects": facts["particles"], "fraction": facts["fraction"]["value"]}
    if truth is None:
        return found
    labels = io.open_volume(folder / "labels" / "labels.zarr").read()
    found |= {"true_fraction": float((truth > 0).mean()), "dice": pixel.dice(pixel.count(truth > 0, labels > 0))}
    if name == "grains":
        match = instance.match(instance.overlap_table(truth, labels))
        found |= {"true_objects": len(np.unique(truth)) - 1, "precision": match.precision, "recall": match.recall}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("MICROSEG_DATA", ROOT.parent / "shared/data")) / "xct_volumes"
    parser.add_argument("--data", type=Path, default=default)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--backends", nargs="+", default=["torch", "jax", "tensorflow"])
    parser.add_argument("--edge", type=int, default=256)
    options, more = parser.parse_known_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        with tempfile.TemporaryDirectory() as scratch:
            truth = truth_of(name, options.data, options.edge, Path(scratch))
        source = options.out / f"{name}_{options.edge}"
        if truth is None:
            source = options.data / "fiberform" / "100_fiberform.tif"
        elif not source.is_dir():
            write_scan(name, truth, source)
        for backend in options.backends:
            folder = options.out / f"{source.stem}_{backend}"
            path = folder.with_suffix(".json")
            if not path.is_file():
                row = run(name, source, backend, folder, more)
                path.write_text(json.dumps({**row, **score(name, folder, truth)}, indent=1))
            print(f"{folder.name:28s} " + ", ".join(
                f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
                for key, value in json.loads(path.read_text()).items()
            ), flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
